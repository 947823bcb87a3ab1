"""Gradients of filters: lanes run along the filters, and the sums over all positions stay in registers.

The gradient of one number of a filter is the sum, over samples and positions, of the output's gradient times the cell
that the number meets there. A share copies rows of the padded input, as `rows` does, so that a tap is nothing but a
distance; and it turns the output's gradients, which lie side by side along positions, into a panel that has a row of
filters for each position. A tile is then that of `tile`: terms (a channel and a tap) in the place of filters, filters
in the place of positions, and positions in the place of terms. A kernel of one tap reads the input in place, also where
channels come last: there the rows of the panel are copied as they are.

Sums are added up in runs of at most 128 positions, then those of the runs of a share, and then, where several shares
add up the same sums, those of the shares, in a second phase: each in an order of its own.
"""

from __future__ import annotations

from .emit import Argument, Function, Module
from .lanes import transposed
from .part_stores import store_part
from .row_copies import Copies, digits
from .share import SHARE, driver
from .target import Target
from .tile import finished, sums_of
from .values import INTEGER, Int, Number, Pointer
from .weight_plan import IN_PLACE, LAST, PLAN, VARIANTS, plan_of

__all__ = ["VARIANTS", "module", "plan_of"]

TILE = tuple(
    Argument(*each)
    for each in (
        *(("panel", "*float"), ("cells", "*float"), ("terms", "*i64"), ("order", "*i64"), ("sums", "*float")),
        *((name, INTEGER) for name in ("apart", "step", "count", "positions", "is_first")),
    )
)
"""The arguments of a run: the panel, the first position's cells, where each term reads and where each position does,
the sums and how far those of two terms are apart, how far positions are in place, the number of terms, that of
positions, and whether the run is the first one."""


def module(target: Target, variant: str) -> Module:
    """Write the kernels for one way of copying cells."""
    copies = None if variant in (IN_PLACE, LAST) else Copies(target, variant)
    return written(target, copies, ShareOfCells, last=variant == LAST)


def written(target: Target, copies: Copies | None, kind: type[ShareOfCells], *, last: bool = False) -> Module:
    """Write the kernels of a kind of share; `last` says whether channels come last."""
    order, panel = _order(target), _rows(target) if last else _panel(target)
    sums = Sums(target, in_place=copies is None)
    share = kind(target, sums, copies, (order, panel)).code
    functions = [*(copies.functions if copies else ()), order, panel, *sums.functions]
    return Module([*functions, share, *driver(target, share)])


class Sums:
    """The functions that add up products, and that store the sums."""

    def __init__(self, target: Target, *, in_place: bool) -> None:
        self.tiles = [_tile(target, vectors, in_place=in_place) for vectors in range(1, target.vectors + 1)]
        self.finish = _finish(target)

    @property
    def functions(self) -> list[Function]:
        """All of them."""
        return [*self.tiles, self.finish]


def _order(target: Target) -> Function:
    """Write down where each position of some rows reads in the copy of a channel, by its first tap."""
    arguments = Argument("plan", "*i64"), Argument("order", "*i64"), Argument("rows"), Argument("columns")
    code = Function("order", arguments, target)
    memory, order, rows, columns = code.given
    plan = PLAN.read(memory)
    sizes, steps, strides = (plan.pointer(name, INTEGER) for name in ("rows", "steps", "line_strides"))
    with code.loop(0, rows) as row:
        line = code.variable(0)
        with digits(code, row, plan.outer, sizes) as (dim, at):
            line.set(line.get() + at * steps[dim] * strides[dim])
        first, goal = line.get() * plan.line_pitch, order + row * columns
        with code.loop(0, columns) as column:
            goal[column] = first + column
    return code


def _panel(target: Target) -> Function:
    """Turn the gradients of a vector of filters at some positions into rows, which are `pitch` numbers apart.

    The last filter stands for those beyond it, whose sums nobody reads.
    """
    pointers = Argument("panel", "*float"), Argument("dout", "*float")
    names = "filters", "positions", "channel", "pitch", "apart"
    code = Function("panel", [*pointers, *map(Argument, names)], target)
    panel, dout, filters, positions, channel, pitch, _ = code.given
    rows = [dout + code.minimum(i, filters - 1) * channel for i in range(target.lanes)]
    whole = positions // target.lanes * target.lanes
    with code.loop(0, whole, target.lanes) as at:
        for i, vector in enumerate(transposed(code, [code.load(row + at) for row in rows])):
            code.store(vector, panel + (at + i) * pitch, align=code.bytes)
    with code.when(whole < positions):
        mask = code.lanes_between(None, positions - whole)
        for i, vector in enumerate(transposed(code, [code.load(row + whole, mask) for row in rows])):
            code.store(vector, panel + (whole + i) * pitch, align=code.bytes)
    return code


def _rows(target: Target) -> Function:
    """Copy the gradients of a vector of filters at some positions, where they lie side by side, into rows."""
    pointers = Argument("panel", "*float"), Argument("dout", "*float")
    names = "filters", "positions", "channel", "pitch", "apart"
    code = Function("panel", [*pointers, *map(Argument, names)], target)
    panel, dout, filters, positions, _, pitch, apart = code.given
    mask = code.lanes_between(None, filters)
    with code.loop(0, positions) as at:
        code.store(code.load(dout + at * apart, mask), panel + at * pitch, align=code.bytes)
    return code


def _tile(target: Target, vectors: int, *, in_place: bool) -> Function:
    """Add the products of some positions to the sums of all terms, for so many vectors of filters."""
    code = Function(f"run{vectors}", TILE, target)
    panel, cells, terms, order, kept, apart, step, count, positions, is_first = code.given
    width, most = vectors * target.lanes, target.filters
    with code.loop(0, count, most) as term:
        left = count - term
        for size, fits in ((most, left > most // 2), (most // 2, left <= most // 2)):
            with code.when(fits):
                # The last term stands for those beyond it.
                places = [cells + terms[code.minimum(term + i, count - 1)] for i in range(size)]
                sums = sums_of(code, (panel, width), places, vectors, positions, step if in_place else order)
                for i, own in enumerate(finished(sums)):
                    with code.when(i < left):
                        row = kept + (term + i) * apart
                        with code.when(is_first.equals(1)):
                            for v, value in enumerate(own):
                                code.store(value, row + v * target.lanes, align=code.bytes)
                        with code.when(~is_first.equals(1)):
                            for v, value in enumerate(own):
                                place = row + v * target.lanes
                                total = code.load(place, align=code.bytes) + value
                                code.store(total, place, align=code.bytes)
    return code


def _finish(target: Target) -> Function:
    """Add up the sums of all shares, which lie `apart`, and store them filter by filter, from one term to another."""
    pointers = Argument("out", "*float"), Argument("sums", "*float")
    names = "shares", "apart", "first", "last", "filters", "terms", "pitch"
    code = Function("finish", [*pointers, *map(Argument, names)], target, returns=True)
    out, kept, shares, apart, first, last, filters, terms, pitch = code.given
    lanes, check = target.lanes, code.variable(code.zeros)
    with code.loop(0, filters, lanes) as filter_, code.loop(first, last, lanes) as term:
        places = [kept + (code.minimum(term + i, last - 1) * pitch + filter_) for i in range(lanes)]
        sums = [code.variable(code.load(place, align=code.bytes)) for place in places]
        with code.loop(1, shares) as share:
            for place, total in zip(places, sums, strict=True):
                total.set(total.get() + code.load(place + share * apart, align=code.bytes))
        mask = code.lanes_between(None, last - term)
        for i, vector in enumerate(transposed(code, [total.get() for total in sums])):
            with code.when(filter_ + i < filters):
                store_part(code, target, vector, out + ((filter_ + i) * terms + term), last - term, mask)
                code.look_at(check, vector)
    code.give(code.is_not_finite(check.get()))
    return code


class Share:
    """The function that computes one share: sums of some filters and channels over some units, or the last phase.

    The plan begins `ahead` numbers after that of the call.
    """

    def __init__(self, target: Target, sums: Sums, ahead: int = 0) -> None:
        self.target, self.sums = target, sums
        self.code = code = Function("share", SHARE, target, returns=True)
        memory, *_, phase, _ = code.given
        self.plan = PLAN.read(memory + ahead)
        adds = phase.equals(0) | self.plan.phases.equals(1)
        self.flag = code.variable(0)
        with code.when(adds):
            self.add()
        with code.when(~adds):
            self.last()
        code.give(self.flag.get())

    def last(self) -> None:
        """Add up the sums of a few terms of a vector block of filters, which the first phase has made."""
        code, plan = self.code, self.plan
        *_, out, _, shared, _, index = code.given
        first, block = index % plan.term_blocks * plan.terms_of_block, index // plan.term_blocks
        group, of_group = block // plan.tiles_of_group, block % plan.tiles_of_group
        width = plan.filters_of_tile
        filter_ = of_group * width
        found = code.call(
            self.sums.finish, out + (group * plan.filters + filter_) * plan.terms, shared + block * plan.terms * width,
            plan.sharers, plan.apart, first, code.minimum(first + plan.terms_of_block, plan.terms),
            code.minimum(plan.filters - filter_, width), plan.terms, width,
        )  # fmt: skip
        self.flag.set(self.flag.get() + found)

    def add(self) -> None:
        """Add up the sums of a share over its units."""
        code, plan = self.code, self.plan
        _, x, dout, _, out, scratch, shared, _, index = code.given
        width, bytes_ = plan.filters_of_tile, scratch.of("i8")
        filter_block, rest = index % plan.filter_blocks, index // plan.filter_blocks
        channel_block, rest = rest % plan.channel_blocks, rest // plan.channel_blocks
        group, part = rest % plan.groups, rest // plan.groups
        channel, tile = channel_block * plan.channels_of_block, filter_block * plan.tiles_of_block
        channels = code.minimum(plan.channels - channel, plan.channels_of_block)
        tiles = code.minimum(plan.tiles_of_group - tile, plan.tiles_of_block)
        count, first = channels * plan.taps, channel * plan.taps
        is_shared = plan.phases.equals(2)
        block = (part * plan.groups + group) * plan.tiles_of_group + tile
        kept = code.select(
            is_shared,
            shared + (block * plan.terms + first) * width,
            (bytes_ + plan.at_sums).of(code.element),
        )
        pitch = code.select(is_shared, plan.terms, count) * width
        terms = (bytes_ + plan.at_terms).of(INTEGER)
        filters = group * plan.filters + tile * width
        arrays = (
            x + (group * plan.channels + channel) * plan.x_channel, dout + filters * plan.filter_pitch,
            terms, kept,
        )  # fmt: skip
        self.units(arrays, (part, channels, count, tiles, pitch), plan.filters - tile * width)
        with code.when(~is_shared), code.loop(0, tiles) as number:
            filter_ = number * width
            goal = out + ((filters + filter_) * plan.terms + first)
            found = code.call(
                self.sums.finish, goal, kept + number * pitch, 1, 0, 0, count,
                code.minimum(plan.filters - tile * width - filter_, width), plan.terms, width,
            )  # fmt: skip
            self.flag.set(self.flag.get() + found)

    def units(self, arrays: tuple[Pointer, ...], numbers: tuple[Int, ...], left: Int) -> None:
        """Add up the sums over the units of a share.

        Parameters
        ----------
        arrays : tuple of Pointer
            The inputs from the first channel of the share on, the gradients from its first filter on, the memory for
            where terms are, and that for the sums.
        numbers : tuple of Int
            Which of the shares with the same sums it is; the channels, the terms and the tiles of filters; and the
            numbers from one tile's sums to the next one's.
        left : Int
            The filters from the share's first one on.
        """
        raise NotImplementedError

    def run(self, arrays: tuple[Pointer, ...], numbers: tuple[Number, ...]) -> None:
        """Add the products of a panel, which has some positions, with all terms."""
        code = self.code
        for vectors, tile in enumerate(self.sums.tiles, start=1):
            with code.when(self.plan.filters_of_tile.equals(vectors * self.target.lanes)):
                code.run(tile, *arrays, *numbers)


class ShareOfCells(Share):
    """A share whose units are rows of a sample, or a part of a row, of which each position is a product."""

    def __init__(self, target: Target, sums: Sums, copies: Copies | None, functions: tuple[Function, Function]) -> None:
        self.copies, (self.order, self.panel) = copies, functions
        super().__init__(target, sums)

    def write_terms(self, terms: Pointer, channels: Int) -> None:
        """Write down where each term reads, from the first channel of the share on; and where each position does."""
        code, plan = self.code, self.plan
        memory, *_, scratch, _, _, _ = code.given
        row_taps = plan.pointer("row_taps", INTEGER)
        with code.loop(0, channels * plan.taps) as term:
            terms[term] = term // plan.taps * plan.channel_pitch + row_taps[term % plan.taps]
        if self.copies:
            order = (scratch.of("i8") + plan.at_order).of(INTEGER)
            code.run(self.order, memory, order, plan.rows_of_unit, plan.columns_of_unit)

    def units(self, arrays: tuple[Pointer, ...], numbers: tuple[Int, ...], left: Int) -> None:
        code, plan = self.code, self.plan
        memory, *_, scratch, _, _, _ = code.given
        (x, dout, terms, kept), (part, channels, _, tiles, pitch) = arrays, numbers
        self.write_terms(terms, channels)
        bytes_ = scratch.of("i8")
        lines, entries = ((bytes_ + place).of(INTEGER) for place in (plan.at_lines, plan.at_entries))
        self.begin(kept, channels, tiles, pitch)
        start = part * plan.units // plan.sharers
        stop = (part + 1) * plan.units // plan.sharers
        with code.loop(start, stop) as unit:
            column_block, rest = unit % plan.column_blocks, unit // plan.column_blocks
            first_block, sample = rest % plan.first_blocks, rest // plan.first_blocks
            column, first = column_block * plan.columns_of_unit, first_block * plan.firsts_of_unit
            columns = code.minimum(plan.columns - column, plan.columns_of_unit)
            firsts = code.minimum(plan.firsts - first, plan.firsts_of_unit)
            cells = x + sample * plan.x_sample
            if self.copies:
                line_count = firsts * plan.lines_of_step + plan.lines_beyond
                code.run(self.copies.lines, memory, lines, first * plan.lines_of_step, line_count)
                code.run(self.copies.entries, memory, entries, column)
                with code.loop(0, channels) as channel:
                    goal, source = scratch + channel * plan.channel_pitch, cells + channel * plan.x_channel
                    code.run(self.copies.copy, memory, goal, source, lines, entries, line_count)
                cells = scratch
            else:
                cells = cells + column * plan.cell_pitch
            positions = firsts * plan.rows_of_first * columns
            place = first * plan.rows_of_first * plan.columns + column
            grads = dout + (sample * plan.out_sample + place * plan.position_pitch)
            with code.loop(0, positions, plan.run) as at:
                length = code.minimum(positions - at, plan.run)
                is_first = code.select(unit.equals(start) & at.equals(0), code.variable(1).get(), 0)
                with code.loop(0, tiles) as number:
                    filters = left - number * plan.filters_of_tile
                    own = grads + (number * plan.filters_of_tile * plan.filter_pitch + at * plan.position_pitch)
                    panel = self.panel_of(own, filters, length)
                    self.multiply((panel, cells, terms, kept + number * pitch), (channels, at, length, is_first))

    def begin(self, sums: Pointer, channels: Int, tiles: Int, pitch: Int) -> None:
        """Prepare the sums of a share, those of each tile so many numbers after those of the one before."""

    def multiply(self, arrays: tuple[Pointer, ...], numbers: tuple[Int, ...]) -> None:
        """Add the products of a panel with all terms.

        Parameters
        ----------
        arrays : tuple of Pointer
            The panel, the cells of the unit, the memory for where terms are, and the sums.
        numbers : tuple of Int
            The channels, the first position of the panel in its unit, how many it has, and whether it is the first one.
        """
        plan, (panel, cells, terms, sums), (channels, at, length, is_first) = self.plan, arrays, numbers
        here = cells if self.copies else cells + at * plan.cell_pitch
        of_terms = plan.filters_of_tile, plan.cell_pitch, channels * plan.taps
        self.run((panel, here, terms, self.order_of(at), sums), (*of_terms, length, is_first))

    def order_of(self, position: Int) -> Pointer:
        """Return where it is written where a position of a unit reads, and those after it."""
        order: Pointer = (self.code.given[5].of("i8") + self.plan.at_order).of(INTEGER)
        return order + position

    def panel_of(self, dout: Pointer, filters: Int, length: Int) -> Pointer:
        """Turn the gradients of a tile of filters at some positions into a panel."""
        code, plan, lanes = self.code, self.plan, self.target.lanes
        panel: Pointer = (code.given[5].of("i8") + plan.at_panel).of(code.element)
        with code.loop(0, plan.filters_of_tile, lanes) as lane:
            first = code.minimum(lane, filters - 1)
            code.run(
                self.panel, panel + lane, dout + first * plan.filter_pitch, filters - first, length,
                plan.filter_pitch, plan.filters_of_tile, plan.position_pitch,
            )  # fmt: skip
        return panel
