"""Products of few filters: rows of a padded copy of the input, in the cache, are read in place for all taps.

A share copies the rows that it needs of some channels into scratch memory, once, with zeros around them, and split into
as many phases as the stride has: so cells that neighbouring outputs read are neighbours in the copy, whatever the
stride, the dilation, the padding and the number of dimensions. A tap is then nothing but a distance. The tiles know no
edges. A tile is a few filters times a few pieces; a piece is one vector of outputs of one row.

Where `panels` copies each cell once for each tap, this copies it once, so it wins where filters are too few to pay for
the copies. Sums are added up in runs of at most `RUN` terms: first those of a run, then those of the runs.
"""

from __future__ import annotations

from typing import Any

from .emit import Argument, Function, Module
from .lanes import together
from .part_stores import store_part
from .record import Fields
from .row_copies import Copies, joined_pieces_of, pieces_of
from .row_lines import STEPS
from .row_plan import (
    ALIGNED,
    ALIGNED_STEPS,
    FILTERS,
    PIECE,
    PLAN,
    RUN,
    VARIANTS,
    is_joined,
    parted,
    plan_of,
    tile_sizes,
)
from .share import SHARE, driver
from .target import Target
from .tile import filters_from
from .values import ELEMENT_BYTES, INTEGER, Flag, Int, Number, Pointer, Variable, Vector

__all__ = ["VARIANTS", "module", "plan_of"]

TILE = tuple(
    Argument(*each)
    for each in (
        ("plan", "*i64"),
        *((name, "*float") for name in ("cells", "w", "b", "out", "sums")),
        *((name, "*i64") for name in ("pieces", "taps")),
        *((name, INTEGER) for name in ("left", "channels", "tap", "stop", "is_first", "is_last")),
    )
)
"""The arguments of a tile: memory from its first filter and piece on, the filters that are left, the channels of the
run and its taps, and whether it is the first one and the last one. It returns 1 if an output is not finite."""


def module(target: Target, variant: str) -> Module:
    """Write the kernels for one way of copying cells and one number of filters in a tile."""
    steps, filters = parted(variant)
    assert filters in FILTERS
    # Vectors of float64 may be too short for that.
    aligned, joined = steps == ALIGNED_STEPS and target.lanes >= ALIGNED, is_joined(target, variant)
    copies = Copies(target, STEPS[1] if steps == ALIGNED_STEPS else steps, aligned=not joined)
    tiles = {
        count: _Tile(target, filters, count, aligned=aligned, joined=joined).code
        for count in tile_sizes(target, filters)
    }
    pieces = (joined_pieces_of if joined else pieces_of)(target)
    share = _share(target, filters, (copies, pieces), tiles)
    return Module([*copies.functions, pieces, *tiles.values(), share, *driver(target, share)])


class _Tile:
    """The function that computes one run of a tile, with so many filters and pieces."""

    def __init__(self, target: Target, filters: int, pieces: int, *, aligned: bool, joined: bool) -> None:
        self.target, self.lanes = target, target.lanes
        self.code = code = Function(f"tile{pieces}", TILE, target, returns=True)
        memory, cells, w, b, out, kept, table, self.taps, left, channels, tap, stop, is_first, is_last = code.given
        self.plan = plan = PLAN.read(memory)
        sums = [[code.variable(code.zeros) for _ in range(pieces)] for _ in range(filters)]
        # Later pieces lie further on, so the first taps that are inside are those of the last one.
        low, high = code.maximum(tap, table[PIECE * (pieces - 1) + 3]), code.minimum(stop, table[4])
        starts = [table[PIECE * piece] for piece in range(pieces)]
        rows_there: Any = code.minimum(left, filters)
        with code.when(is_last.equals(1) & plan.asks_for_outputs.equals(1)):
            for i in range(filters):
                for piece in range(pieces):
                    code.prefetch(
                        out + (plan.out_channel * code.minimum(i, rows_there - 1) + table[PIECE * piece + 1]),
                        write=True,
                    )
        rows = filters_from(code, w, plan.terms, 0, left, filters)
        places = [cells + start for start in starts]
        with code.loop(0, channels) as channel:
            # All addresses of a channel are counted by these two numbers: few kernels have many taps.
            ahead, before = channel * plan.channel_pitch, channel * plan.taps
            if aligned:
                self.add_aligned([place + ahead for place in places], rows[0] + before, (low, high), sums[0])
            else:
                with code.loop(low, high) as now:
                    here = ahead + self.taps[now]
                    self.add([code.load(place + here) for place in places], rows, before + now, sums)
        self.check = code.variable(code.zeros)
        places = [kept + (plan.pieces_of_share * self.lanes * i) for i in range(filters)]
        with code.when(~is_first.equals(1)):
            for place, own in zip(places, sums, strict=True):
                for v, total in enumerate(own):
                    total.set(code.load(place + v * self.lanes, align=code.bytes) + total.get())
        with code.when(~is_last.equals(1)):
            for place, own in zip(places, sums, strict=True):
                for v, total in enumerate(own):
                    code.store(total.get(), place + v * self.lanes, align=code.bytes)
        with code.when(is_last.equals(1)):
            store = self.store_joined if joined else self.store
            store(sums, plan, (b, out, table), rows_there)
        code.give(code.is_not_finite(self.check.get()))

    def add(self, cells: list[Vector], filters: list[Pointer], tap: Number, sums: list[list[Variable]]) -> None:
        """Add the products of one tap."""
        code = self.code
        for own, row in zip(sums, filters, strict=True):
            number = code.splat(row[tap])
            for total, cell in zip(own, cells, strict=True):
                total.set(code.fma(cell, number, total.get()))

    def add_aligned(
        self, places: list[Pointer], numbers: Pointer, between: tuple[Int, Int], sums: list[Variable]
    ) -> None:
        """Add the products of taps of which those of a row read neighbouring cells.

        For some taps of a row the cells are taken from two vectors, as a load that crosses a line takes two loads.
        """
        code, (low, high) = self.code, between
        begin, end = code.variable(low), code.variable((low // self.plan.taps_of_row + 1) * self.plan.taps_of_row)
        with code.repeat() as done:
            start: Int = begin.get()
            code.leave(start >= high, done)
            stop = code.minimum(end.get(), high)
            here = [place + self.taps[start] for place in places]
            groups = (stop - start) // ALIGNED
            with code.loop(0, groups) as group:
                at = group * ALIGNED
                found = [neighbours(code, place + at, ALIGNED) for place in here]
                for ahead, cells in enumerate(zip(*found, strict=True)):
                    self.add(list(cells), [numbers], start + at + ahead, [sums])
            with code.loop(start + groups * ALIGNED, stop) as tap:
                self.add([code.load(place + (tap - start)) for place in here], [numbers], tap, [sums])
            begin.set(stop)
            end.set(end.get() + self.plan.taps_of_row)

    def store(self, sums: list[list[Variable]], plan: Fields, arrays: tuple[Pointer, ...], rows: Any) -> None:
        """Add the bias and store the outputs: at once where all pieces are whole, else by way of a buffer."""
        code, lanes, (b, out, table) = self.code, self.lanes, arrays
        pieces, buffer = len(sums[0]), code.array(len(sums) * len(sums[0]) * self.lanes)
        numbers = [code.splat(b[code.minimum(i, rows - 1) * plan.bias_step]) for i in range(len(sums))]
        values = [[total.get() + number for total in own] for own, number in zip(sums, numbers, strict=True)]
        is_whole: Flag = rows.equals(len(sums))
        for piece in range(pieces):
            is_whole = is_whole & table[PIECE * piece + 2].equals(lanes)
        with code.when(is_whole):
            for i, own in enumerate(values):
                for piece, value in enumerate(own):
                    code.store(value, out + (plan.out_channel * i + table[PIECE * piece + 1]))
                    code.look_at(self.check, value)
        with code.when(~is_whole):
            for i, own in enumerate(values):
                for piece, value in enumerate(own):
                    code.store(value, buffer + (i * pieces + piece) * lanes, align=code.bytes)
            with code.loop(0, rows) as line, code.loop(0, pieces) as at:
                mask = code.lanes_between(None, table[at * PIECE + 2])
                value = code.load(buffer + (line * pieces + at) * lanes, mask)
                place = out + (plan.out_channel * line + table[at * PIECE + 1])
                store_part(code, self.target, value, place, table[at * PIECE + 2], mask)
                code.look_at(self.check, value)

    def store_joined(self, sums: list[list[Variable]], plan: Fields, arrays: tuple[Pointer, ...], rows: Any) -> None:
        """Add the bias, bring the outputs of each piece together, and store them; the last filter may come again."""
        code, (b, out, table) = self.code, arrays
        pieces = [table + PIECE * piece for piece in range(len(sums[0]))]
        outputs = [(code.mask_of_bits(piece[5]), code.lanes_between(None, piece[2]), piece[1]) for piece in pieces]
        for i, own in enumerate(sums):
            filter_ = code.minimum(i, rows - 1)
            number, goal = code.splat(b[filter_ * plan.bias_step]), out + plan.out_channel * filter_
            for total, (are_outputs, stored, place) in zip(own, outputs, strict=True):
                value = together(code, total.get() + number, are_outputs)
                code.store(value, goal + place, stored)
                code.look_at(self.check, value)


def _share(target: Target, filters: int, ways: tuple[Copies, Function], tiles: dict[int, Function]) -> Function:
    """Compute some rows, or a part of some rows, of all filters of some units."""
    copies, find_pieces = ways
    code = Function("share", SHARE, target, returns=True)
    memory, x, w, b, out, scratch, _, _, index = code.given
    plan, bytes_ = PLAN.read(memory), scratch.of("i8")
    lines, entries, pieces = (
        (bytes_ + place).of(INTEGER) for place in (plan.at_lines, plan.at_entries, plan.at_pieces)
    )
    column_block, rest = index % plan.column_blocks, index // plan.column_blocks
    first_block, unit_block = rest % plan.first_blocks, rest // plan.first_blocks
    column, first = column_block * plan.columns_of_share, first_block * plan.firsts_of_share
    columns = code.minimum(plan.columns - column, plan.columns_of_share)
    firsts = code.minimum(plan.firsts - first, plan.firsts_of_share)
    line_count = firsts * plan.lines_of_step + plan.lines_beyond
    code.run(copies.lines, memory, lines, first * plan.lines_of_step, line_count)
    code.run(copies.entries, memory, entries, column)
    count = code.call(find_pieces, memory, pieces, first, firsts, column, columns)
    start = unit_block * plan.units_of_share
    products = _Products(code, plan, filters, tiles, pieces, count)
    with code.loop(start, code.minimum(start + plan.units_of_share, plan.units)) as unit:
        sample, group = unit // plan.groups, unit % plan.groups
        cells = x + (sample * plan.x_sample + group * plan.channels * plan.x_channel)
        place = group * plan.filters
        arrays = (
            memory, scratch, w + place * plan.terms, b + place * plan.bias_step,
            out + (sample * plan.out_sample + place * plan.out_channel), (bytes_ + plan.at_sums).of(code.element),
        )  # fmt: skip
        with code.loop(0, plan.channels, plan.channels_of_run) as channel:
            stop = code.minimum(channel + plan.channels_of_run, plan.channels)
            with code.loop(channel, stop) as each:
                goal = scratch + (each - channel) * plan.channel_pitch
                code.run(copies.copy, memory, goal, cells + each * plan.x_channel, lines, entries, line_count)
            with code.loop(0, plan.taps, RUN) as tap:
                products.run(arrays, (channel, stop), (tap, code.minimum(tap + RUN, plan.taps)))
    code.give(products.flag.get())
    return code


class _Products:
    """The products of a unit: of all filters with all pieces of the share, one run of terms after the other."""

    def __init__(
        self, code: Function, plan: Fields, filters: int, tiles: dict[int, Function], pieces: Pointer, count: Int
    ) -> None:
        self.code, self.plan, self.filters, self.tiles = code, plan, filters, tiles
        self.pieces, self.count, self.flag = pieces, count, code.variable(0)

    def run(self, arrays: tuple[Pointer, ...], channels: tuple[Int, Int], taps: tuple[Int, Int]) -> None:
        """Add up the terms of some channels and some of their taps."""
        code, plan = self.code, self.plan
        memory, cells, w, b, out, sums = arrays
        row_taps = plan.pointer("row_taps", INTEGER)
        one, none = code.variable(1).get(), code.variable(0).get()
        is_first = code.select((channels[0] + taps[0]).equals(0), one, none)
        is_last = code.select(channels[1].equals(plan.channels) & taps[1].equals(plan.taps), one, none)
        w = w + channels[0] * plan.taps
        piece = code.variable(0)
        with code.loop(0, plan.filters, self.filters) as filter_:
            piece.set(0)
            for size, tile in self.tiles.items():
                with code.repeat() as end:
                    at: Int = piece.get()
                    code.leave(at + size > self.count, end)
                    found = code.call(
                        tile, memory, cells, w + filter_ * plan.terms, b + filter_ * plan.bias_step,
                        out + filter_ * plan.out_channel,
                        sums + (filter_ * plan.pieces_of_share + at) * code.lanes,
                        self.pieces + at * PIECE, row_taps, plan.filters - filter_,
                        channels[1] - channels[0], *taps, is_first, is_last,
                    )  # fmt: skip
                    self.flag.set(self.flag.get() + found)
                    piece.set(at + size)


def neighbours(code: Function, place: Pointer, count: int) -> list[Vector]:
    """Load vectors of which each begins one number after the one before, by two loads."""
    align, found = ELEMENT_BYTES[code.element], []
    # As integers: LLVM moves them by one instruction, but permutes numbers, which takes twice the time.
    kind = f"<{code.lanes} x i{8 * align}>"
    near, far = (
        Vector(code, kind, code.assign(f"load {kind}, ptr {place + ahead}, align {align}")) for ahead in (0, code.lanes)
    )
    for ahead in range(count):
        moved = code.shuffle(near, far, range(ahead, ahead + code.lanes)) if ahead else near
        name = code.assign(f"bitcast {kind} {moved} to {code.vector_type}")
        found.append(Vector(code, code.vector_type, name))
    return found
