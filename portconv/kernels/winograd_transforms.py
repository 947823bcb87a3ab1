"""The transforms of `winograd`: of filters, of inputs into panels, and of sums into outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .bits import WORD, ones
from .emit import Argument, Function
from .lone import lone_column
from .outer import Outer
from .part_stores import store_part
from .record import Fields
from .target import Target
from .values import INTEGER, PACKS, WHOLE, Int, Packed, Pointer, Vector
from .winograd_plan import ENTRY, FILTERS_AT_ONCE, FIRST_ROW, GOAL, PLAN
from .winograd_schemes import Scheme


class Transforms:
    """The functions of this family for one target."""

    def __init__(self, target: Target, scheme: Scheme) -> None:
        self.target, self.scheme = target, scheme
        self.lanes, self.width = target.lanes, target.lanes * target.vectors
        self.filters = self._filters()
        self.tables = self._tables()
        self.inputs = self._inputs()
        self.lone = lone_column(target)
        self.outputs = self._outputs()

    @property
    def functions(self) -> tuple[Function, ...]:
        """All of them."""
        return self.filters, self.tables, self.inputs, self.lone, self.outputs

    def _filters(self) -> Function:
        """Transform some filters: for each place, for each of `rows` filters, a number for each term."""
        names = ("plan", "*i64"), ("w", "*float"), ("places", "*float"), ("scratch", "*float")
        counts = map(Argument, ("first", "last", "rows"))
        code = Function("filters", [*(Argument(*each) for each in names), *counts], self.target)
        memory, w, places, scratch, first, last, rows = code.given
        plan = PLAN.read(memory)
        half = None if code.element in WHOLE else code.constant(0.5)
        lanes = self.lanes
        copy = (scratch.of("i8") + plan.at_taps).of(code.element)
        part_taps = plan.pointer("part_taps", INTEGER)

        with code.loop(first, last) as number:
            numbers = w + number * plan.channels * plan.taps
            with code.when(plan.parts > 1):
                _copy_parts(code, plan, numbers, part_taps, copy)
            numbers = code.select(plan.parts > 1, copy, numbers)
            with code.loop(0, plan.terms, lanes) as term:
                own, left = numbers + term * 9, (plan.terms - term) * 9
                loaded = [code.load(own + lanes * k, code.lanes_between(None, left - lanes * k)) for k in range(9)]
                taps = in_numbers(code, [code.every(9, loaded, tap) for tap in range(9)])
                columns = [self.scheme.filters(taps[i::3], half) for i in range(3)]
                for row in range(self.scheme.numbers):
                    for column, value in enumerate(self.scheme.filters([each[row] for each in columns], half)):
                        place = (row * self.scheme.numbers + column) * rows + (number - first)
                        code.store(value, places + (place * plan.pitch + term), align=code.bytes)
        return code

    def _tables(self) -> Function:
        """Write down what to read for some tiles, and where their outputs go.

        Pieces are runs of at most `lanes` tiles in one row of tiles. For each part of the kernel and each piece there
        are `ENTRY` numbers. Runs are whole: for each there are its first tile, its first output, its columns and its
        rows. The number of runs comes first.
        """
        names = ("plan", "*i64"), ("table", "*i64"), ("goals", "*i64"), ("start", INTEGER), ("count", INTEGER)
        code = Function("tables", [Argument(*each) for each in names], self.target, returns=True)
        memory, table, goals, start, count = code.given
        plan = PLAN.read(memory)
        outer, part_places = Outer(code, plan), plan.pointer("part_places", INTEGER)
        size = self.scheme.size
        step = size * self.scheme.stride
        pieces, runs, tile = code.variable(0), code.variable(0), code.variable(0)
        with code.repeat() as end:
            lane: Int = tile.get()
            code.leave(lane >= count, end)
            at = start + lane
            row, tx = at // plan.tile_columns, at % plan.tile_columns
            ty, plane = row % plan.tile_rows, row // plan.tile_rows
            sample, rest = plane // plan.rows, plane % plan.rows
            outer.enter(rest)
            length = code.minimum(plan.tile_columns - tx, count - lane)
            goal = goals + (runs.get() * GOAL + 1)
            goal[0] = lane
            goal[1] = sample * plan.out_sample + (rest * plan.height + ty * size) * plan.width + tx * size
            goal[2] = code.minimum(length * size, plan.width - tx * size)
            goal[3] = code.minimum(plan.height - ty * size, size)
            with code.loop(0, length, self.lanes) as ahead:
                piece: Int = pieces.get()
                with code.loop(0, plan.planes // plan.parts) as number:
                    first, inside = outer.read(number)
                    with code.loop(0, plan.parts) as part:
                        entry = table + ((number * plan.parts + part) * plan.pieces + piece) * ENTRY
                        y, x = ty * step + part_places[part * 2], (tx + ahead) * step + part_places[part * 2 + 1]
                        of_plane = sample * plan.x_sample + first, inside
                        self._entry(code, plan, entry, of_plane, (y - plan.top, x - plan.left, lane + ahead))
                pieces.set(piece + 1)
            runs.set(runs.get() + 1)
            tile.set(lane + length)
        goals[0] = runs.get()
        code.give(pieces.get())
        return code

    def _entry(
        self, code: Function, plan: Fields, entry: Pointer, plane: tuple[Int, Int], tile: tuple[Int, Int, Int]
    ) -> None:
        """Write down what a piece reads of a plane: where it begins, and which cells of each row are inside of it."""
        (first, inside), (y, x, lane) = plane, tile
        most = min(self.row_cells, WORD)
        cells = ones(code, plan.input_width - x, most) - ones(code, 0 - x, most)
        beyond = code.select((x + WORD).is_index(plan.input_width), 1, 0)
        entry[0], entry[1], last = first + y * plan.input_width + x, lane, code.variable(0)
        for row in range(self.scheme.cells):
            is_inside = (y + row).is_index(plan.input_height) & ~inside.equals(0)
            entry[FIRST_ROW + row] = code.select(is_inside, cells, 0)
            last.set(last.get() | (code.select(is_inside, beyond, 0) << row))
        entry[2] = last.get()

    def _inputs(self) -> Function:
        """Transform the inputs of some tiles, term by term, into the panels of all places.

        Rows of a panel are `pitch` numbers apart. A piece is stored as a whole vector, so that those of a lone tile
        cover one another up to its own number.
        """
        names = (
            ("panels", "*float"),
            ("x", "*float"),
            ("table", "*i64"),
            *((name, INTEGER) for name in ("count", "pieces", "terms", "planes", "channel", "row", "pitch", "size")),
        )
        code = Function("inputs", [Argument(*each) for each in names], self.target)
        panels, x, table, count, pieces, terms, planes, channel, row, pitch, size = code.given
        plane, cells = code.variable(0), code.variable(x)
        with code.loop(0, terms) as term:
            now, here = plane.get(), cells.get()
            panel, entries = panels + term * pitch, table + now * pieces * ENTRY
            with code.loop(0, count) as piece:
                entry = entries + piece * ENTRY
                place = here + entry[0]
                count_of_rows = range(self.scheme.cells)
                read = self._reader()
                rows = [read(code, place + row * i, entry[FIRST_ROW + i], entry[2] >> i) for i in count_of_rows]
                columns = [self.scheme.inputs(in_numbers(code, column)) for column in zip(*rows, strict=True)]
                goal = panel + entry[1]
                for i, row_of_places in enumerate(zip(*columns, strict=True)):
                    for j, value in enumerate(self.scheme.inputs(row_of_places)):
                        code.store(value, goal + size * (self.scheme.places * i + j))
            ends = (now + 1).equals(planes)
            plane.set(code.select(ends, 0, now + 1))
            cells.set(code.select(ends, here + channel, here))
        return code

    @property
    def row_cells(self) -> int:
        """The cells that a vector of tiles reads in a row."""
        return self.scheme.size * self.scheme.stride * (self.lanes - 1) + self.scheme.cells

    def _reader(self) -> Callable[[Function, Pointer, Int, Int], list[Vector]]:
        if self.scheme.size == 3:
            return self._row_of_threes
        return self._row if self.scheme.stride == 1 else self._strided_row

    def _row_of_threes(self, code: Function, place: Pointer, bits: Int, last: Int) -> list[Vector]:
        """Return the five cells of each tile of three outputs in one row, as `_row` does."""
        lanes, found = self.lanes, []
        for ahead, count in ((0, 3), (3, 2)):
            starts = [ahead + lanes * number for number in range(3)]
            masks = [code.mask_of_bits(bits >> start if start else bits) for start in starts]
            loaded = [code.load(place + start, mask) for start, mask in zip(starts, masks, strict=True)]
            found += [code.every(3, loaded, cell) for cell in range(count)]
        return found

    def _row(self, code: Function, place: Pointer, bits: Int, last: Int) -> list[Vector]:
        """Return the four cells of each tile in one row; those outside of the input are zeros."""
        lanes = self.lanes
        starts = (0, lanes, 2, lanes + 2)
        masks = [code.mask_of_bits(bits >> start if start else bits) for start in starts]
        near, far, next_near, next_far = (
            code.load(place + start, mask) for start, mask in zip(starts, masks, strict=True)
        )
        even, odd = [2 * lane for lane in range(lanes)], [2 * lane + 1 for lane in range(lanes)]
        return [code.shuffle(*pair, which) for pair in ((near, far), (next_near, next_far)) for which in (even, odd)]

    def _strided_row(self, code: Function, place: Pointer, bits: Int, last: Int) -> list[Vector]:
        """Return the five cells of each tile in one row, as `_row` does; the last tile's last one may have no bit."""
        lanes = self.lanes
        starts = [lanes * number for number in range(4)]
        loaded = [code.load(place + start, code.mask_of_bits(bits >> start if start else bits)) for start in starts]
        ends = last & 1 if 4 * lanes == WORD else (bits >> (4 * lanes)) & 1
        beyond = code.load(place + 4 * lanes, code.mask_of_bits(ends))
        even, odd = [2 * lane for lane in range(lanes)], [2 * lane + 1 for lane in range(lanes)]
        evens, odds = (
            [code.shuffle(loaded[0], loaded[1], which), code.shuffle(loaded[2], loaded[3], which)]
            for which in (even, odd)
        )
        (a, c), (b, d) = ([code.shuffle(pair[0], pair[1], which) for which in (even, odd)] for pair in (evens, odds))
        return [a, b, c, d, code.shuffle(a, beyond, range(1, lanes + 1))]

    def _outputs(self) -> Function:
        """Transform the sums of one filter into outputs, add the bias, and store them."""
        names = (
            ("sums", "*float"),
            ("b", "*float"),
            ("out", "*float"),
            ("goals", "*i64"),
            ("vectors", INTEGER),
            ("width", INTEGER),
        )
        code = Function("outputs", [Argument(*each) for each in names], self.target, returns=True)
        sums, b, out, goals, vectors, width = code.given
        lanes = self.lanes
        size = self.scheme.size
        pitch = size * self.width + lanes
        rows, check, bias = code.array(size * pitch), code.variable(code.zeros), code.splat(b[0])
        with code.loop(0, vectors) as v:
            apart = FILTERS_AT_ONCE * self.width
            places, outputs = self.scheme.places, self.scheme.outputs
            tiles = [
                [code.load(sums + (v * lanes + (places * i + j) * apart), align=code.bytes) for j in range(places)]
                for i in range(places)
            ]
            columns = [outputs(column) for column in zip(*tiles, strict=True)]
            for i in range(size):
                values = [value + bias for value in outputs([column[i] for column in columns])]
                for part in range(size):
                    goal = rows + (v * size * lanes + (i * pitch + part * lanes))
                    code.store(_side_by_side(code, values, part), goal, align=code.bytes)
        with code.loop(0, goals[0]) as number:
            goal = goals + (number * GOAL + 1)
            columns_of_run: Int = goal[2]
            with code.loop(0, goal[3]) as line:
                source, place = rows + (line * pitch + goal[0] * size), out + (goal[1] + line * width)
                whole = columns_of_run // lanes * lanes
                with code.loop(0, whole, lanes) as column:
                    value = code.load(source + column)
                    code.store(value, place + column)
                    code.look_at(check, value)
                with code.when(whole < columns_of_run):
                    mask = code.lanes_between(None, columns_of_run - whole)
                    value = code.load(source + whole, mask)
                    store_part(code, self.target, value, place + whole, columns_of_run - whole, mask)
                    code.look_at(check, value)
        code.give(code.is_not_finite(check.get()))
        return code


def in_numbers(code: Function, vectors: Sequence[Vector]) -> list[Vector]:
    """Return vectors whose numbers are added one by one: those of packs of integers too."""
    is_packed = code.element in PACKS
    return [Packed(code, each.type, each.name) if is_packed else each for each in vectors]


def _side_by_side(code: Function, values: Sequence[Vector], part: int) -> Vector:
    """Return a vector of what it is if the first lanes of all come side by side, then the second ones."""
    lanes, count = code.lanes, len(values)
    wanted = [divmod(part * lanes + lane, count) for lane in range(lanes)]
    result = values[0]
    for number in range(1, count):
        # What is there stays, and the first vector is moved with the second one.
        kept = [cell if number == 1 and at == 0 else lane for lane, (cell, at) in enumerate(wanted)]
        order = [lanes + cell if at == number else kept[lane] for lane, (cell, at) in enumerate(wanted)]
        result = code.shuffle(result, values[number], order)
    return result


def _copy_parts(code: Function, plan: Fields, numbers: Pointer, part_taps: Pointer, copy: Pointer) -> None:
    """Copy the taps of a filter, part by part; those that another part has are 0."""
    count = plan.planes * 9
    with code.loop(0, plan.channels) as channel:
        source, goal = numbers + channel * plan.taps, copy + channel * count
        with code.loop(0, count) as number:
            tap = part_taps[number]
            value = source[code.maximum(tap, 0)]
            goal[number] = code.select(tap < 0, Vector(code, code.element, "zeroinitializer"), value)
