"""Depthwise products with large kernels: tiles of several rows, so that a cell that is loaded serves several sums.

Shares copy what they read as `rows` do: with zeros around it, and split into phases, so that a tap is a distance. A
tile is a few rows of outputs times a few vectors of columns. A row of inputs meets another row of taps for each row of
the tile: its cells are loaded once for each column of the kernel, and used for all of these. The first and the last
rows of inputs meet only some rows of the tile; they have loops of their own. Rows of inputs that are padding are left
out. The dimensions before are walked through by passes; so are kernels of more than `RUN` taps.
"""

from __future__ import annotations

from collections.abc import Sequence

from .emit import Argument, Function, Module
from .part_stores import store_part
from .record import Fields
from .row_copies import Copies
from .share import SHARE, driver
from .tall_plan import NAMES, PASS, PLACE_BITS, PLAN, TILE, VARIANTS, Shape, plan_of
from .target import Target
from .values import INTEGER, Flag, Int, Pointer, Variable

__all__ = ["VARIANTS", "module", "plan_of"]

ARGUMENTS = tuple(
    Argument(*each)
    for each in (
        ("plan", "*i64"),
        *((name, "*float") for name in ("cells", "w", "b", "out", "sums")),
        *((name, INTEGER) for name in ("last", "low", "high", "first_pass", "last_pass")),
    )
)
"""The arguments of a tile: memory from its first cell, filter and output on, where the last vector begins, and which
rows of inputs are inside, counted in rows of taps, and which passes: from the first one up to the second one. The
function returns 1 if an output is not finite."""


def module(target: Target, variant: str) -> Module:
    """Write the kernels for one way of copying cells and one shape of tiles."""
    steps, _, name = variant.partition("-")
    shape = NAMES[name]
    if shape.half:
        target = target._replace(lanes=target.lanes // 2)
    copies = Copies(target, steps)
    tiles = [_Tile(target, shape.rows, count + 1).code for count in range(shape.vectors)]
    share = _share(target, shape, copies, tiles)
    return Module([*copies.functions, *tiles, share, *driver(target, share)])


class _Tile:
    """The function that computes a tile of so many rows and vectors."""

    def __init__(self, target: Target, rows: int, vectors: int) -> None:
        self.target, self.rows, self.vectors, self.lanes = target, rows, vectors, target.lanes
        self.code = code = Function(f"tile{vectors}", ARGUMENTS, target, returns=True)
        memory, cells, w, b, out, kept, last, self.low, self.high, *between = code.given
        self.plan = plan = PLAN.read(memory)
        self.starts = [last if v and v == vectors - 1 else v * self.lanes for v in range(vectors)]
        passes, self.flag = plan.pointer("passes", INTEGER), code.variable(0)
        with code.loop(*between) as number:
            entry = passes + number * PASS
            self.taps = plan.pointer("taps", INTEGER) + entry[2]
            sums = self.add((cells + entry[0], w + entry[1]), entry[3])
            is_last = number.equals(between[1] - 1)
            self.keep(sums, kept, (number.equals(between[0]), is_last))
            with code.when(is_last):
                self.store(sums, b, out)
        code.give(self.flag.get())

    def add(self, arrays: tuple[Pointer, Pointer], columns: Int) -> list[list[Variable]]:
        """Add up the products of a pass, which has so many columns of taps."""
        code, plan, (cells, w) = self.code, self.plan, arrays
        sums = [[code.variable(code.zeros) for _ in range(self.vectors)] for _ in range(self.rows)]
        places = [cells + start for start in self.starts]
        moves, height, last = plan.steps_apart, plan.rows_of_tap, self.rows - 1
        filters = [w - moves * row * plan.columns_of_tap for row in range(self.rows)]
        # Rows of inputs that meet the first rows of the tile, all of them, and the last ones.
        sections = [((moves * row, moves * (row + 1)), range(row + 1)) for row in range(last)]
        sections.append(((moves * last, height), range(self.rows)))
        sections += [
            ((height + moves * row, height + moves * (row + 1)), range(row + 1, last + 1)) for row in range(last)
        ]
        for (start, stop), rows in sections:
            start, stop = code.maximum(start, self.low), code.minimum(stop, self.high)
            with code.loop(start * columns, stop * columns) as tap:
                self.tap(self.taps[tap], places, [filters[row] for row in rows], [sums[row] for row in rows])
        return sums

    def tap(
        self, tap: Int, places: Sequence[Pointer], filters: Sequence[Pointer], sums: Sequence[Sequence[Variable]]
    ) -> None:
        """Add the products of one tap of each row."""
        code, cell, place = self.code, tap & ((1 << PLACE_BITS) - 1), tap >> PLACE_BITS
        values = [code.load(start + cell) for start in places]
        for numbers, own in zip(filters, sums, strict=True):
            number = code.splat(numbers[place])
            for value, total in zip(values, own, strict=True):
                total.set(code.fma(value, number, total.get()))

    def keep(self, sums: Sequence[Sequence[Variable]], kept: Pointer, ends: tuple[Flag, Flag]) -> None:
        """Add the sums of earlier passes, and keep them if there are more."""
        code, lanes, (is_first, is_last) = self.code, self.lanes, ends
        places = [
            (kept + (row * self.vectors + v) * lanes, total)
            for row, own in enumerate(sums)
            for v, total in enumerate(own)
        ]
        with code.when(~is_first):
            for place, total in places:
                total.set(code.load(place, align=code.bytes) + total.get())
        with code.when(~is_last):
            for place, total in places:
                code.store(total.get(), place, align=code.bytes)

    def store(self, sums: Sequence[Sequence[Variable]], b: Pointer, out: Pointer) -> None:
        """Add the bias and store the outputs; only outputs of few columns have vectors that are not whole."""
        code, plan, bias = self.code, self.plan, self.code.splat(b[0])
        check, pitch = code.variable(code.zeros), plan.rows_apart * plan.out_width
        values = [[total.get() + bias for total in own] for own in sums]
        with code.when(plan.store_length.equals(self.lanes)):
            for row, own in enumerate(values):
                for start, value in zip(self.starts, own, strict=True):
                    code.store(value, out + (pitch * row + start))
                    code.look_at(check, value)
        if self.vectors == 1:
            with code.when(plan.store_length < self.lanes):
                mask = code.lanes_between(None, plan.store_length)
                for row, (value,) in enumerate(values):
                    store_part(code, self.target, value, out + pitch * row, plan.store_length, mask)
                    code.look_at(check, code.select(mask, value, code.zeros))
        self.flag.set(code.is_not_finite(check.get()))


def _share(target: Target, shape: Shape, copies: Copies, tiles: Sequence[Function]) -> Function:
    """Compute some rows, or a part of some rows, of all filters of some units."""
    code = Function("share", SHARE, target, returns=True)
    memory, x, w, b, out, scratch, _, _, index = code.given
    plan, bytes_ = PLAN.read(memory), scratch.of("i8")
    lines, entries = ((bytes_ + place).of(INTEGER) for place in (plan.at_lines, plan.at_entries))
    sums = (bytes_ + plan.at_sums).of(code.element)
    column_block, rest = index % plan.column_blocks, index // plan.column_blocks
    first_block, unit_block = rest % plan.first_blocks, rest // plan.first_blocks
    # The last share of a dimension begins early enough to be as large as the others.
    column = code.minimum(column_block * plan.columns_of_share, plan.columns - plan.columns_of_share)
    first = code.minimum(first_block * plan.firsts_of_share, plan.firsts - plan.firsts_of_share)
    code.run(copies.lines, memory, lines, first * plan.lines_of_step, plan.lines_of_share)
    code.run(copies.entries, memory, entries, column)
    start, flag = unit_block * plan.units_of_share, code.variable(0)
    above = plan.above - first * plan.is_flat * plan.row_step
    # Lines of padding are not read where rows of inputs are left out.
    is_flat = plan.is_flat.equals(1)
    low = code.select(is_flat, code.minimum(code.maximum(above, 0), plan.lines_of_share), 0)
    high = code.select(is_flat, code.minimum(above + plan.height, plan.lines_of_share), plan.lines_of_share)
    place = first * plan.rows_of_first * plan.out_width + column
    with code.loop(start, code.minimum(start + plan.units_of_share, plan.units)) as unit:
        cells = x + unit * plan.x_channel
        code.run(copies.copy, memory, scratch, cells, lines + low * 2, entries, high - low)
        with code.loop(unit * plan.multiplier, (unit + 1) * plan.multiplier) as number:
            filter_ = number % plan.filters
            arrays = scratch, w + filter_ * plan.taps_of_filter, b + filter_ * plan.bias_step
            goal = out + (number * plan.out_channel + place)
            flag.set(flag.get() + _tiles(code, plan, tiles, (memory, *arrays, goal, sums), (first, above)))
    code.give(flag.get())
    return code


def _tiles(
    code: Function, plan: Fields, tiles: Sequence[Function], arrays: Sequence[Pointer], place: tuple[Int, Int]
) -> Int:
    """Compute all tiles of one filter; the place is the first position and how many rows of padding are above it."""
    (memory, cells, w, b, out, sums), (first, above) = arrays, place
    flag, tile = code.variable(0), code.variable(plan.pointer("tiles", INTEGER))
    counts = plan.pointer("tile_counts", INTEGER)
    for at, function in enumerate(tiles):
        with code.loop(0, counts[at]):
            entry: Pointer = tile.get().of(INTEGER)
            rows = _inside(code, above - entry[2] * plan.row_step, plan.height, plan.row_apart)
            planes = plan.first_before - (first + entry[4]) * plan.first_step
            low, high = _inside(code, planes, plan.first_size, plan.first_apart)
            # There is one pass at least, which adds zeros if all planes are padding.
            low = code.minimum(low, plan.first_taps - 1)
            high = code.maximum(code.minimum(high, plan.first_taps), low + 1)
            passes = low * plan.passes_of_first, high * plan.passes_of_first
            goal = out + entry[1]
            found = code.call(function, memory, cells + entry[0], w, b, goal, sums, entry[3], *rows, *passes)
            flag.set(flag.get() + found)
            tile.set(entry + TILE)
    total: Int = flag.get()
    return total


def _inside(code: Function, before: Int, size: Int, apart: Int) -> tuple[Int, Int]:
    """Return which taps so far apart are inside, from one up to another, where so much padding is before the input."""
    low, high = ((code.maximum(each, 0) + (apart - 1)) // apart for each in (before, before + size))
    return low, high
