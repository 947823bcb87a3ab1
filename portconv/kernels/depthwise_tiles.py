"""The tiles of `depthwise`: the sums of a few rows of outputs times one vector of columns, in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .depthwise_plan import Shape
from .emit import Function
from .lanes import are_below, indices, keep_order, picked
from .part_stores import store_first
from .record import Fields
from .target import Target
from .values import INTEGER, Flag, Int, Number, Pointer, Value, Variable, Vector

KEPT_MASKS = 8
"""The masks of so many tiles are kept; a power of 2."""


class Tiles:
    """The tiles of a band: what is written into the function `code` for each of them.

    Parameters
    ----------
    code : Function
    target : Target
    shape : Shape
    plan : Fields
    zeros : Pointer
        A row of zeros.
    """

    planes_at_once = 1

    taps: Pointer
    bias: Vector
    rows: list[Pointer]
    inputs: list[tuple[Flag, Int]]
    outputs: list[Int]
    is_stored: Flag
    loaded: list[Flag]
    met: list[tuple[Value, Flag]]

    def __init__(self, code: Function, target: Target, shape: Shape, plan: Fields, zeros: Pointer) -> None:
        self.code, self.target, self.shape, self.plan, self.zeros = code, target, shape, plan, zeros
        self.lanes, self.has_masks, self.is_narrow = code.lanes, target.name == "avx512", shape.is_narrow(target)
        self.check = code.variable(code.zeros)
        # The masks of a tile serve many rows: those of some tiles are kept, with the columns that they are for.
        self.bits = code.array(KEPT_MASKS * (len(self.offsets()) + 1), INTEGER)
        self.found = code.array(KEPT_MASKS, INTEGER)
        for place in range(KEPT_MASKS):
            self.found[place] = -1
        if self.is_narrow:
            self.prepare_lanes()

    def is_not_finite(self) -> Int:
        """Return whether a number that was stored may not be finite."""
        return self.code.is_not_finite(self.check.get())

    def offsets(self) -> list[tuple[int, int]]:
        """Return where a tile loads in a row: a column of the kernel, and lanes after it."""
        width = self.shape.kernel[1]
        if self.shape.stride == 1:
            return [(tap, 0) for tap in range(width)]
        return [(tap, lanes) for tap in range(0, width, 2) for lanes in (0, self.lanes)]

    def begin_band(self, phase: Variable, top: Variable) -> None:
        """Find the rows of a band, given its phase and its first row in the phase; go on to the next one."""
        code, plan, shape = self.code, self.plan, self.shape
        number, first = phase.get(), top.get()
        last = code.select(number <= plan.last_phase, plan.last_row, plan.last_row - 1)
        # The last band begins early enough to be a whole one, if the plane has as many rows.
        start = code.maximum(code.minimum(first, last - (shape.rows - 1)), 0)
        row = number + plan.row_dilation * (start * shape.stride) - plan.before_rows
        # Narrow rows are loaded from their first cell on.
        first_column = 0 if self.is_narrow else plan.before_columns
        self.inputs = []
        for _ in range(shape.input_rows):
            self.inputs.append((row.is_index(plan.height), row * plan.width - first_column))
            row = row + plan.row_dilation
        rows = [number + plan.row_dilation * code.minimum(start + each, last) for each in range(shape.rows)]
        self.outputs = [row * plan.out_width for row in rows]
        following = first + shape.rows
        stays = following < plan.bands_of_phase * shape.rows
        top.set(code.select(stays, following, 0))
        phase.set(code.select(stays, number, number + 1))

    def band(self, w: Pointer, b: Pointer, counters: Sequence[Variable], left: Int) -> None:
        """Compute the band of one plane of those that are left, from left to right, and count on to the next one."""
        code, plan, shape = self.code, self.plan, self.shape
        self.cells, results, number, _, depth = (counter.get() for counter in counters)
        self.taps = w + number * (plan.depth_taps * shape.kernel[0] * shape.kernel[1])
        self.bias = code.splat(b[number * plan.bias_step])
        if shape.deep:
            self.enter(depth)
        else:
            self.rows = self.rows_of(self.cells)
        outputs = [results + at for at in self.outputs]
        if self.is_narrow:
            self.ask_for_a_plane(self.rows)
            self.tile(0, outputs, 0, [self.is_stored])
        else:
            self.tiles(outputs)
        self.count_on(counters)

    def tiles(self, outputs: Sequence[Pointer]) -> None:
        """Compute the tiles of a band, from left to right."""
        code, plan, shape = self.code, self.plan, self.shape
        # The last tile begins early enough to be a whole one, if the row is long enough.
        most = code.maximum(plan.out_width - self.lanes, 0)
        with code.loop(0, plan.out_width, self.lanes) as begin:
            column = code.minimum(begin, most)
            cell = column * shape.stride
            first = cell - plan.before_columns
            self.ask_ahead(cell, outputs, column)
            is_inner = (first >= 0) & (first + self.reach <= plan.width) & (column + self.lanes <= plan.out_width)
            with code.when(is_inner):
                self.tile(cell, outputs, column)
            with code.when(~is_inner):
                place = (begin >> (self.lanes.bit_length() - 1)) & (KEPT_MASKS - 1)
                self.tile(cell, outputs, column, self.masks(first, column, place))

    def ask_ahead(self, cell: Int, outputs: Sequence[Pointer], column: Int) -> None:
        """Ask for the lines that a later tile reads and stores into, where the arrays are not in the nearest caches."""
        if self.shape.deep:
            return
        code, plan = self.code, self.plan
        # Two tiles of half vectors lie in the same lines.
        is_new = (column & (code.numbers_of_line - 1)) < self.lanes
        with code.when((plan.out_ahead > 0) & is_new):
            for row in self.rows:
                for line in range(self.shape.stride):
                    code.prefetch(row + (cell + plan.x_ahead + line * code.numbers_of_line))
            for result in outputs:
                code.prefetch(result + (column + plan.out_ahead), write=True)

    def ask_for_a_plane(self, rows: Sequence[Pointer]) -> None:
        """Ask for the lines that a band of a later plane reads, where rows are narrow."""
        code, plan = self.code, self.plan
        with code.when(plan.x_ahead > 0):
            for row in rows:
                code.prefetch(row + plan.x_ahead)

    def prepare_lanes(self) -> None:
        """Find which lanes of a row each column of the kernel meets; those outside of the row are 0."""
        code, plan, step = self.code, self.plan, self.shape.stride
        self.is_stored = code.lanes_between(None, plan.out_width)
        self.loaded = [code.lanes_between(None, plan.width - self.lanes * vector) for vector in range(step)]
        self.met = []
        for tap in range(self.shape.kernel[1]):
            steps = [step * lane for lane in range(self.lanes)]
            cells = indices(code, steps, plan.column_dilation * tap - plan.before_columns)
            self.met.append((cells, are_below(code, cells, plan.width)))

    def enter(self, depth: Int) -> None:
        """Find the planes that an output plane reads: from which tap on, up to which, and the plane of tap 0."""
        code, plan = self.code, self.plan
        above = plan.depth_before - depth * plan.depth_step
        low, high = (
            (code.maximum(planes, 0) + (plan.depth_apart - 1)) // plan.depth_apart
            for planes in (above, above + plan.depth_size)
        )
        self.planes = low, code.minimum(high, plan.depth_taps)
        self.cells = self.cells - above * plan.x_plane

    def rows_of(self, cells: Pointer) -> list[Pointer]:
        """Return where the rows of a band begin in a plane; those outside are in the row of zeros."""
        return [self.code.select(is_inside, cells + at, self.zeros) for is_inside, at in self.inputs]

    def count_on(self, counters: Sequence[Variable]) -> None:
        """Count to the next plane: its channel, its outputs, its filter and that of the channel, and its depth."""
        code, plan = self.code, self.plan
        x, out, number, copy, depth = counters
        out.set(out.get() + plan.out_plane)
        if self.shape.deep:
            depth.set(depth.get() + 1)
        with code.when(depth.get().equals(plan.depth) if self.shape.deep else plan.depth.equals(1)):
            depth.set(0)
            ends = counted(code, copy, plan.multiplier)
            x.set(x.get() + code.select(ends, plan.x_channel, 0))
            counted(code, number, plan.filters)

    @property
    def reach(self) -> Int:
        """The cells of a row from the first that a tile loads to the last."""
        tap, lanes = self.offsets()[-1]
        dilation: Int = self.plan.column_dilation
        return dilation * tap + (lanes + self.lanes)

    def masks(self, cell: Int, column: Int, place: Int) -> list[Flag]:
        """Return the lanes that are inside of a row, for each load of a tile, and those that are stored."""
        code, plan, offsets = self.code, self.plan, self.offsets()
        bits, found = self.bits + place * (len(offsets) + 1), self.found + place
        with code.when(~found[0].equals(column)):
            for i, (tap, lanes) in enumerate(offsets):
                at = cell + (plan.column_dilation * tap + lanes)
                bits[i] = bits_of(code, code.lanes_between(0 - at, plan.width - at))
            bits[len(offsets)] = bits_of(code, code.lanes_between(None, plan.out_width - column))
            found[0] = column
        return [code.mask_of_bits(bits[i]) for i in range(len(offsets) + 1)]

    def tile(self, cell: Number, results: Sequence[Pointer], column: Number, masks: Sequence[Flag] = ()) -> None:
        """Compute and store one tile, from a cell of the rows on; one that has no masks lies inside."""
        code, plan, (height, width) = self.code, self.plan, self.shape.kernel
        sums = [code.variable(self.bias) for _ in range(self.shape.rows)]
        if self.shape.deep:
            with code.loop(*self.planes) as tap:
                rows = self.rows_of(self.cells + tap * plan.depth_apart * plan.x_plane)
                self.add([row + cell for row in rows], self.taps + tap * (height * width), sums, masks)
        else:
            self.add([row + cell for row in self.rows], self.taps, sums, masks)
        self.put(sums, results, column, masks[-1] if masks else None)

    def number(self, taps: Any, place: int) -> Vector:
        """Return a number of the filter, in all lanes."""
        return self.code.splat(taps[place])

    def add(self, rows: Sequence[Any], taps: Any, sums: Sequence[Variable], masks: Sequence[Flag]) -> None:
        """Add the products of one plane to the sums of a tile."""
        code, (height, width) = self.code, self.shape.kernel
        met = self.met_in_registers(rows) if self.is_narrow else self.met_in_memory(rows, masks)
        # Two columns at stride 2 meet cells of the same loads, which no registers keep for long.
        together = 1 if self.is_narrow else self.shape.stride
        for first in range(0, width, together):
            columns = range(first, min(first + together, width))
            numbers = {(row, tap): self.number(taps, row * width + tap) for tap in columns for row in range(height)}
            for row in range(len(rows)):
                for tap in columns:
                    used = self.shape.uses(row)
                    value = met(row, tap) if used else code.zeros
                    for kernel_row, output in used:
                        sums[output].set(code.fma(value, numbers[kernel_row, tap], sums[output].get()))
            keep_order(code, self.target, sums)

    def row(self, row: Any) -> list[Vector]:
        """Load a row whole."""
        return [self.code.load(row + self.lanes * v, mask) for v, mask in enumerate(self.loaded)]

    def met_in_registers(self, rows: Sequence[Any]) -> Callable[[int, int], Vector]:
        """Load rows whole; return what gives the cells of a row that a column of the kernel meets."""
        code, loaded = self.code, [self.row(row) for row in rows]

        def met(row: int, tap: int) -> Vector:
            cells, is_inside = self.met[tap]
            value: Vector = code.select(is_inside, picked(code, loaded[row], cells), code.zeros)
            return value

        return met

    def met_in_memory(self, rows: Sequence[Pointer], masks: Sequence[Flag]) -> Callable[[int, int], Vector]:
        """Return what loads the cells of a row that a column of the kernel meets."""
        code, step, offsets = self.code, self.plan.column_dilation, self.offsets()
        of_loads: Sequence[Flag | None] = masks[:-1] or [None] * len(offsets)
        loads = dict(zip(offsets, of_loads, strict=True))

        def met(row: int, tap: int) -> Vector:
            place, even = rows[row], tap // 2 * 2
            if self.shape.stride == 1:
                return code.load(place + step * tap, loads[tap, 0])
            near, far = (code.load(place + (even + lanes), loads[even, lanes]) for lanes in (0, self.lanes))
            return code.shuffle(near, far, [2 * lane + tap % 2 for lane in range(self.lanes)])

        return met

    def put(self, sums: Sequence[Variable], results: Sequence[Pointer], column: Number, mask: Flag | None) -> None:
        """Store the sums; rows beyond the last one of a low plane are stored in its place, before it."""
        code, values = self.code, [total.get() for total in sums]
        places = [result + column for result in results]
        if mask is None or self.has_masks:
            self.put_rows(values, places, mask)
        else:
            is_whole = self.plan.out_width >= self.lanes
            with code.when(is_whole):
                self.put_rows(values, places, None)
            with code.when(~is_whole):
                for value, place in reversed(list(zip(values, places, strict=True))):
                    store_first(code, value, place, self.plan.out_width)
        self.look_at(values)

    def look_at(self, values: Sequence[Vector]) -> None:
        """Let the check become nan where a number of a tile is not finite.

        Only these additions wait for one another; lanes that are not stored hold products of the same cells.
        """
        total = values[0]
        for value in values[1:]:
            total = total + value
        self.code.look_at(self.check, total)

    def put_rows(self, values: Sequence[Vector], places: Sequence[Pointer], mask: Flag | None) -> None:
        """Store the rows of a tile from the last to the first."""
        for value, place in reversed(list(zip(values, places, strict=True))):
            self.code.store(value, place, mask)


def bits_of(code: Function, mask: Flag) -> Int:
    """Return the integer whose low bits are the lanes of a mask."""
    bits = code.assign(f"bitcast {mask.typed} to i{code.lanes}")
    return Int(code, INTEGER, code.assign(f"zext i{code.lanes} {bits} to i64"))


def counted(code: Function, number: Variable, limit: Int) -> Flag:
    """Add 1 to a number, which begins again at 0 where it is the limit; return whether it does."""
    value: Int = number.get() + 1
    ends = value.equals(limit)
    number.set(code.select(ends, 0, value))
    return ends
