"""Winograd's minimal filtering F(2x2, 3x3), with its transforms in the kernel.

Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), section 4: a tile of 2x2 outputs of a
3x3 kernel takes 16 multiplications in place of 36,

    out = A^T ((G w G^T) * (B^T x B)) A

    B^T = 1  0 -1  0     G =  1    0    0      A^T = 1  1  1  0
          0  1  1  0         1/2  1/2  1/2           0  1 -1 -1
          0 -1  1  0         1/2 -1/2  1/2
          0  1  0 -1          0    0    1

Tiles of all samples are counted through, one a lane. A first phase transforms the filters. Then each share transforms
the inputs of a few vectors of tiles into panels, one for each of the 16 places, multiplies them as `panels` does, and
transforms the sums into outputs. A kernel of more dimensions is one of planes, and a larger plane is cut into parts of
3x3: each part of each plane is a term of the sums. So 5x5 taps take 64 multiplications in place of 100.

The transforms add numbers of neighbouring windows, so one number that is not finite spoils its tile. Then at least
one output of the tile is not finite, and the share says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from .emit import Argument, Function, Module
from .outer import Outer
from .part_stores import store_part
from .record import Fields
from .share import SHARE, driver
from .target import Target
from .tile import filters_from, finished, sums_of
from .values import INTEGER, Int, Pointer, Vector
from .winograd_plan import ENTRY, FILTERS_AT_ONCE, GOAL, PLACES, PLAN, RUN, VARIANTS, plan_of, planes_of, serves

__all__ = ["VARIANTS", "module", "plan_of", "planes_of", "serves"]


def module(target: Target, variant: str) -> Module:
    """Write the kernels."""
    kernels = Winograd(target)
    share = kernels.share()
    return Module([kernels.filters, kernels.tables, kernels.inputs, kernels.outputs, share, *driver(target, share)])


def input_row(a: Vector, b: Vector, c: Vector, d: Vector) -> list[Vector]:
    """Multiply four numbers by B^T."""
    return [a - c, b + c, c - b, b - d]


def output_row(a: Vector, b: Vector, c: Vector, d: Vector) -> list[Vector]:
    """Multiply four numbers by A^T."""
    both, opposed = b + c, b - c
    return [a + both, opposed - d]


class Winograd:
    """The functions of this family for one target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.lanes, self.width = target.lanes, target.lanes * target.vectors
        self.filters = self._filters()
        self.tables = self._tables()
        self.inputs = self._inputs()
        self.outputs = self._outputs()

    def _filters(self) -> Function:
        """Transform some filters: for each place, for each of `rows` filters, a number for each term."""
        names = ("plan", "*i64"), ("w", "*float"), ("places", "*float"), ("scratch", "*float")
        counts = map(Argument, ("first", "last", "rows"))
        code = Function("filters", [*(Argument(*each) for each in names), *counts], self.lanes)
        memory, w, places, scratch, first, last, rows = code.given
        plan = PLAN.read(memory)
        half = code.constant(0.5)
        lanes = self.lanes
        copy = (scratch.of("i8") + plan.at_taps).of(code.element)
        part_taps = plan.pointer("part_taps", INTEGER)

        def transformed(a: Vector, b: Vector, c: Vector) -> list[Vector]:
            ends = a + c
            return [a, (ends + b) * half, (ends - b) * half, c]

        with code.loop(first, last) as number:
            numbers = w + number * plan.channels * plan.taps
            with code.when(plan.parts > 1):
                _copy_parts(code, plan, numbers, part_taps, copy)
            numbers = code.select(plan.parts > 1, copy, numbers)
            with code.loop(0, plan.terms, lanes) as term:
                own, left = numbers + term * 9, (plan.terms - term) * 9
                loaded = [code.load(own + lanes * k, code.lanes_between(None, left - lanes * k)) for k in range(9)]
                taps = [code.every(9, loaded, tap) for tap in range(9)]
                columns = [transformed(*taps[i::3]) for i in range(3)]
                for row in range(4):
                    for column, value in enumerate(transformed(*(columns[i][row] for i in range(3)))):
                        place = (row * 4 + column) * rows + (number - first)
                        code.store(value, places + (place * plan.pitch + term), align=4 * lanes)
        return code

    def _tables(self) -> Function:
        """Write down what to read for some tiles, and where their outputs go.

        Pieces are runs of at most `lanes` tiles in one row of tiles. For each part of the kernel and each piece there
        are `ENTRY` numbers. Runs are whole: for each there are its first tile, its first output, its columns and its
        rows. The number of runs comes first.
        """
        names = ("plan", "*i64"), ("table", "*i64"), ("goals", "*i64"), ("start", INTEGER), ("count", INTEGER)
        code = Function("tables", [Argument(*each) for each in names], self.lanes, returns=True)
        memory, table, goals, start, count = code.given
        plan = PLAN.read(memory)
        outer, part_places = Outer(code, plan), plan.pointer("part_places", INTEGER)
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
            goal[1] = sample * plan.out_sample + (rest * plan.height + ty * 2) * plan.width + tx * 2
            goal[2] = code.minimum(length * 2, plan.width - tx * 2)
            goal[3] = code.minimum(plan.height - ty * 2, 2)
            with code.loop(0, length, self.lanes) as ahead:
                piece: Int = pieces.get()
                with code.loop(0, plan.planes // plan.parts) as number:
                    first, inside = outer.read(number)
                    with code.loop(0, plan.parts) as part:
                        entry = table + ((number * plan.parts + part) * plan.pieces + piece) * ENTRY
                        y, x = ty * 2 + part_places[part * 2], (tx + ahead) * 2 + part_places[part * 2 + 1]
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
        most = 2 * self.lanes + 2
        one = code.variable(1).get()
        low, high = (code.minimum(code.maximum(each, 0), most) for each in (0 - x, plan.input_width - x))
        cells = ((one << high) - 1) & (0 - (one << low))
        # The highest bits hold the lane: a row has at most 34 cells.
        entry[0] = first + y * plan.input_width + x
        for row in range(4):
            is_inside = (y + row).is_index(plan.input_height)
            bits = code.select(is_inside, cells, 0)
            entry[1 + row] = code.select(inside.equals(0), 0, bits) + (lane << 40)

    def _inputs(self) -> Function:
        """Transform the inputs of some tiles, term by term, into the panels of all places."""
        names = (
            ("panels", "*float"),
            ("x", "*float"),
            ("table", "*i64"),
            *((name, INTEGER) for name in ("count", "pieces", "terms", "planes", "channel", "row", "size")),
        )
        code = Function("inputs", [Argument(*each) for each in names], self.lanes)
        panels, x, table, count, pieces, terms, planes, channel, row, size = code.given
        plane, cells = code.variable(0), code.variable(x)
        with code.loop(0, terms) as term:
            now, here = plane.get(), cells.get()
            panel, entries = panels + term * self.width, table + now * pieces * ENTRY
            with code.loop(0, count) as piece:
                entry = entries + piece * ENTRY
                place = here + entry[0]
                packed = [entry[1 + i] for i in range(4)]
                rows = [self._row(code, place + row * i, bits) for i, bits in enumerate(packed)]
                columns = [input_row(*(rows[i][j] for i in range(4))) for j in range(4)]
                goal = panel + (packed[0] >> 40)
                for i in range(4):
                    for j, value in enumerate(input_row(*(columns[j][i] for j in range(4)))):
                        code.store(value, goal + size * (4 * i + j))
            ends = (now + 1).equals(planes)
            plane.set(code.select(ends, 0, now + 1))
            cells.set(code.select(ends, here + channel, here))
        return code

    def _row(self, code: Function, place: Pointer, bits: Int) -> list[Vector]:
        """Return the four cells of each tile in one row; those outside of the input are zeros."""
        lanes = self.lanes
        starts = (0, lanes, 2, lanes + 2)
        masks = [code.mask_of_bits(bits >> start if start else bits) for start in starts]
        near, far, next_near, next_far = (
            code.load(place + start, mask) for start, mask in zip(starts, masks, strict=True)
        )
        even, odd = [2 * lane for lane in range(lanes)], [2 * lane + 1 for lane in range(lanes)]
        return [code.shuffle(*pair, which) for pair in ((near, far), (next_near, next_far)) for which in (even, odd)]

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
        code = Function("outputs", [Argument(*each) for each in names], self.lanes, returns=True)
        sums, b, out, goals, vectors, width = code.given
        lanes = self.lanes
        rows, check, bias = code.array(2 * (2 * self.width + lanes)), code.variable(code.zeros), code.splat(b[0])
        pitch = 2 * self.width + lanes
        with code.loop(0, vectors) as v:
            size = FILTERS_AT_ONCE * self.width
            tiles = [
                [code.load(sums + (v * lanes + (4 * i + j) * size), align=4 * lanes) for j in range(4)]
                for i in range(4)
            ]
            columns = [output_row(*(tiles[i][j] for i in range(4))) for j in range(4)]
            for i in range(2):
                left, right = (value + bias for value in output_row(*(columns[j][i] for j in range(4))))
                for part in range(2):
                    order = [(part * lanes + k) // 2 + (lanes if k % 2 else 0) for k in range(lanes)]
                    value = code.shuffle(left, right, order)
                    code.store(value, rows + (v * 2 * lanes + (i * pitch + part * lanes)), align=4 * lanes)
        with code.loop(0, goals[0]) as number:
            goal = goals + (number * GOAL + 1)
            columns_of_run: Int = goal[2]
            with code.loop(0, goal[3]) as line:
                source, place = rows + (line * pitch + goal[0] * 2), out + (goal[1] + line * width)
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

    def share(self) -> Function:
        """Transform what all shares read in the first phase; in the second one compute outputs.

        Few tiles and many filters: the first phase transforms the inputs, and each share its own filters, which stay in
        the cache until all tiles are multiplied. Otherwise it is the other way round.
        """
        code = Function("share", SHARE, self.lanes, returns=True)
        memory, x, w, b, out, scratch, shared, phase, index = code.given
        plan, flag = PLAN.read(memory), code.variable(0)
        tiles_first, filters = plan.tiles_first.equals(1), plan.groups * plan.filters
        block = _Block(self, code, plan, (memory, x, scratch))
        is_first = phase.equals(0)
        with code.when(is_first & ~tiles_first):
            first = index * plan.filters_of_share
            last = code.minimum(first + plan.filters_of_share, filters)
            code.run(self.filters, memory, w, shared + first * plan.pitch, scratch, first, last, filters)
        with code.when(is_first & tiles_first):
            _, pieces = block.enter(index)
            block.transform(index, pieces, shared + index * block.numbers)
        with code.when(~is_first):
            filter_block, columns = index % plan.filter_blocks, index // plan.filter_blocks
            group = code.select(tiles_first, columns, columns // plan.column_blocks)
            first = filter_block * plan.filters_of_block
            last = code.minimum(first + plan.filters_of_block, plan.filters)
            ahead = group * plan.filters
            own = (scratch.of("i8") + plan.at_filters).of(code.element)
            with code.when(tiles_first):
                code.run(self.filters, memory, w, own, scratch, ahead + first, ahead + last, plan.filters_of_block)
            places = code.select(tiles_first, own - first * plan.pitch, shared + ahead * plan.pitch)
            block.rows = code.select(tiles_first, plan.filters_of_block, filters)
            start = group * plan.column_blocks
            here = code.select(tiles_first, start, columns)
            with code.loop(here, code.select(tiles_first, start + plan.column_blocks, columns + 1)) as number:
                block.panels = code.select(tiles_first, shared + number * block.numbers, scratch)
                count, pieces = block.enter(number)
                with code.when(~tiles_first):
                    block.transform(number, pieces, scratch)
                arrays = places, b + ahead * plan.bias_step, out + ahead * plan.positions
                with code.loop(first, last, FILTERS_AT_ONCE) as at:
                    stop = code.minimum(at + FILTERS_AT_ONCE, last)
                    flag.set(flag.get() + block.filters(arrays, (at, stop), count))
        code.give(flag.get())
        return code


def _copy_parts(code: Function, plan: Fields, numbers: Pointer, part_taps: Pointer, copy: Pointer) -> None:
    """Copy the taps of a filter, part by part; those that another part has are 0."""
    count = plan.planes * 9
    with code.loop(0, plan.channels) as channel:
        source, goal = numbers + channel * plan.taps, copy + channel * count
        with code.loop(0, count) as number:
            tap = part_taps[number]
            value = source[code.maximum(tap, 0)]
            goal[number] = code.select(tap < 0, Vector(code, code.element, "0.0"), value)


class _Block:
    """The tiles of a share, and their products with filters.

    Attributes
    ----------
    panels : Pointer
        The transformed inputs: for each place, a panel.
    rows : Int
        How many transformed filters there are for each place.
    """

    def __init__(self, family: Winograd, code: Function, plan: Fields, given: Sequence[Pointer]) -> None:
        self.family, self.code, self.plan = family, code, plan
        self.memory, self.x, scratch = given
        self.panels, self.rows = scratch, plan.filters
        self.table, self.goals, self.sums = (
            (scratch.of("i8") + at).of(kind)
            for at, kind in ((plan.at_tables, INTEGER), (plan.at_goals, INTEGER), (plan.at_sums, code.element))
        )
        # A piece is stored as a whole vector, so the last one of a panel writes beyond its end.
        self.size = plan.terms * family.width + family.lanes
        self.numbers = self.size * PLACES

    def enter(self, number: Int) -> tuple[Int, Int]:
        """Write down where the tiles of a block lie; return how many there are, and in how many pieces."""
        code, plan = self.code, self.plan
        start = number % plan.column_blocks * plan.tiles_of_block
        count = code.minimum(plan.tiles - start, plan.tiles_of_block)
        return count, code.call(self.family.tables, self.memory, self.table, self.goals, start, count)

    def transform(self, number: Int, pieces: Int, panels: Pointer) -> None:
        """Transform the inputs of the block's tiles."""
        plan, channels = self.plan, self.plan.terms // self.plan.planes
        self.code.run(
            self.family.inputs, panels, self.x + number // plan.column_blocks * channels * plan.x_channel, self.table,
            pieces, plan.pieces, plan.terms, plan.planes, plan.x_channel, plan.input_width, self.size,
        )  # fmt: skip

    def filters(self, arrays: Sequence[Pointer], between: tuple[Int, Int], count: Int) -> Int:
        """Multiply at all places, transform and store the outputs of some filters."""
        code, family, plan = self.code, self.family, self.plan
        (places, b, out), (first, last) = arrays, between
        vectors = (count + (family.lanes - 1)) // family.lanes
        most = family.target.filters
        flag = code.variable(0)
        with code.loop(0, PLACES) as place:
            own = places + place * self.rows * plan.pitch
            with code.loop(first, last, most) as at:
                left = last - at
                for size, fits in ((most, left > most // 2), (most // 2, left <= most // 2)):
                    with code.when(fits):
                        filters = filters_from(code, own, plan.pitch, at, last, size)
                        goal = self.sums + (place * FILTERS_AT_ONCE + (at - first)) * family.width
                        for each in range(1, family.target.vectors + 1):
                            with code.when(vectors.equals(each)):
                                self.tile(place, filters, goal, each)
        with code.loop(first, last) as at:
            found = code.call(
                family.outputs, self.sums + (at - first) * family.width, b + at * plan.bias_step,
                out + at * plan.positions, self.goals, vectors, plan.width,
            )  # fmt: skip
            flag.set(flag.get() + found)
        result: Int = flag.get()
        return result

    def tile(self, place: Int, filters: list[Pointer], goal: Pointer, vectors: int) -> None:
        """Add up the products of a tile at one place, in runs."""
        code, family, terms = self.code, self.family, self.plan.terms
        lanes, width = family.lanes, family.width
        with code.loop(0, terms, RUN) as first:
            panel = self.panels + place * self.size + first * width
            length = code.minimum(terms - first, RUN)
            totals = sums_of(code, (panel, width), [one + first for one in filters], vectors, length)
            with code.when(first > 0):
                for i, own in enumerate(totals):
                    for v, total in enumerate(own):
                        total.set(code.load(goal + (i * width + v * lanes), align=4 * lanes) + total.get())
            for i, values in enumerate(finished(totals)):
                for v, value in enumerate(values):
                    code.store(value, goal + (i * width + v * lanes), align=4 * lanes)
