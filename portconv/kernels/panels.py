"""Dense products: the cells of a block of positions are copied into panels, and filters multiply the panels.

A panel has a row for each term of a sum, that is a channel and a tap of the kernel, and a column for each position of a
few vectors: im2col, of a block that stays in the cache and without gaps. The positions of all samples are counted
through, so that no lane is wasted at the end of a row or of a sample. Cells outside of the input are zeros that masked
loads bring, so no padded copy is made. The copy reads any stride, dilation, padding and number of dimensions; the
products know none of these.

Sums are added up in runs of `RUN` terms: first those of a run, one after the other, then those of the runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from .emit import Function, Module
from .lane_totals import spoiled
from .lone import lone_column
from .panel_copies import WHOLE, Copies
from .panel_plan import BLOCK_BYTES, ENTRY, PLAN, RUN, VARIANTS, plan_of
from .part_stores import store_part
from .record import Fields
from .share import SHARE, driver
from .target import Target
from .tile import filters_from, finished, sums_of
from .values import INTEGER, Flag, Int, Pointer, Variable, Vector

__all__ = ["BLOCK_BYTES", "VARIANTS", "module", "plan_of"]


def module(target: Target, variant: str) -> Module:
    """Write the kernels for one way of reading cells."""
    copies = Copies(target, variant)
    lone = lone_column(target)
    share = _share(target, copies, lone)
    return Module([copies.tables, copies.copy, lone, share, *driver(target, share)])


@dataclass
class Block:
    """What a share computes: some columns, in panels, for some filters of one group.

    Attributes
    ----------
    x, w, b, out : Pointer
        The arrays, from the group's first channel or filter on.
    panels : Pointer
        The cells of one run of terms, for the columns of some panels.
    tables, pieces, images : Pointer
        For each panel what is read, how many pieces that is, and where its columns go.
    sums : Pointer
        The sums of earlier runs: for each panel, for each filter of the share.
    actives : Pointer
        For each panel which taps read a cell, where the kernel is sparse.
    taps : Int
    start, columns, count : Int
        The first column, how many there are, and in how many panels.
    first, last : Int
        The filters.
    is_last : Flag
        Whether no columns follow but lone ones.
    """

    x: Pointer
    w: Pointer
    b: Pointer
    out: Pointer
    panels: Pointer
    tables: Pointer
    pieces: Pointer
    images: Pointer
    sums: Pointer
    actives: Pointer
    taps: Int
    start: Int
    columns: Int
    count: Int
    first: Int
    last: Int
    is_last: Flag

    def active_of(self, panel: Int) -> Pointer:
        """Return the number of taps that read a cell for a column of a panel, followed by these taps."""
        return self.actives + panel * (self.taps + 1)


def _share(target: Target, copies: Copies, lone: Function) -> Function:
    """Compute the outputs of a block of columns and of filters."""
    code = Function("share", SHARE, target, returns=True)
    plan, flag = PLAN.read(code.given[0]), code.variable(0)
    w, phase, index = code.given[2], *code.given[-2:]
    if copies.is_sparse:
        # What is left out would be nan where a filter is not finite: then the caller computes it all.
        with code.when(phase.equals(0)):
            flag.set(spoiled(code, w + index * plan.terms, plan.terms))
    with code.when(~phase.equals(0)):
        block = _block_of(copies, code, plan)
        flag.set(code.is_not_finite(_outputs(target, copies, code, plan, block).get()))
        _lone_columns(copies, lone, code, (plan, block), flag)
    code.give(flag.get())
    return code


def _block_of(copies: Copies, code: Function, plan: Fields) -> Block:
    """Return the block of a share."""
    _, x, w, b, out, scratch, _, _, index = code.given
    width, memory = copies.width, scratch.of("i8")
    column_block, filters = index // plan.filter_blocks, index % plan.filter_blocks * plan.filters_of_block
    group, column_block = column_block // plan.column_blocks, column_block % plan.column_blocks
    start = column_block * plan.panels * width
    columns = code.minimum(plan.columns - plan.lone - start, plan.panels * width)
    return Block(
        x=x + group * plan.channels * plan.x_channel,
        w=w + group * plan.filters * plan.terms,
        b=b + group * plan.filters * plan.bias_step,
        out=out + group * plan.filters * plan.positions,
        panels=scratch,
        tables=(memory + plan.at_tables).of(INTEGER),
        pieces=(memory + plan.at_pieces).of(INTEGER),
        images=(memory + plan.at_images).of(INTEGER),
        sums=(memory + plan.at_sums).of(code.element),
        actives=(memory + plan.at_active).of(INTEGER),
        taps=plan.taps,
        start=start,
        columns=columns,
        count=(columns + (width - 1)) // width,
        first=filters,
        last=code.minimum(filters + plan.filters_of_block, plan.filters),
        is_last=column_block.equals(plan.column_blocks - 1),
    )


def _outputs(target: Target, copies: Copies, code: Function, plan: Fields, block: Block) -> Variable:
    """Compute the outputs of a share; return a vector that is nan where one of them is not finite."""
    memory, width = code.given[0], copies.width
    table, images = plan.taps * plan.pieces * ENTRY, width * 3 + 1
    order = code.array(RUN, INTEGER)
    with code.loop(0, block.count) as panel:
        first, count = panel * width, code.minimum(block.columns - panel * width, width)
        pieces = code.call(
            copies.tables, memory, block.tables + panel * table, block.images + panel * images,
            block.active_of(panel), block.start + first, count,
        )  # fmt: skip
        in_sample = (block.start + first) % plan.positions + width <= plan.positions
        is_whole = plan.is_linear.equals(1) & count.equals(width) & in_sample
        block.pieces[panel] = code.select(is_whole, WHOLE, pieces)
    products = _Products(target, code, plan, block, order if copies.is_sparse else None)
    with code.loop(0, plan.terms, RUN) as term, code.loop(0, block.count, plan.together) as group_of_panels:
        last_panel = code.minimum(group_of_panels + plan.together, block.count)
        # Where the kernel is sparse, each panel has terms of its own, and stands alone.
        terms = plan.channels * block.active_of(group_of_panels)[0] if copies.is_sparse else plan.terms
        stop = code.minimum(term + RUN, terms)
        with code.when(term < terms):
            with code.loop(group_of_panels, last_panel) as panel:
                code.run(
                    copies.copy, block.panels + (panel - group_of_panels) * RUN * width, block.x,
                    block.tables + panel * table, block.active_of(panel), order, block.pieces[panel], plan.pieces,
                    term, stop, plan.taps, plan.x_channel, plan.step, width,
                )  # fmt: skip
            products.run((term, stop, terms), (group_of_panels, last_panel))
    return products.check


def _lone_columns(copies: Copies, lone: Function, code: Function, what: tuple[Fields, Block], flag: Variable) -> None:
    """Compute the outputs of the last columns, if these are lone; the last block of columns does so."""
    plan, block = what
    with code.when(block.is_last), code.loop(plan.columns - plan.lone, plan.columns) as column:
        images = block.images
        found = code.call(copies.tables, code.given[0], block.tables, images, block.actives, column, 1)
        code.run(
            copies.copy, block.panels, block.x, block.tables, block.actives, block.actives, found, plan.pieces, 0,
            plan.terms, plan.taps, plan.x_channel, plan.step, 1,
        )  # fmt: skip
        spoiled = code.call(
            lone, block.panels, block.w, block.b, block.out + images[2], block.first, block.last, plan.terms,
            plan.terms, plan.positions, plan.bias_step,
        )  # fmt: skip
        flag.set(flag.get() + spoiled)


class _Products:
    """The products of a share: of all its filters with all its panels, one run of terms after the other."""

    def __init__(self, target: Target, code: Function, plan: Fields, block: Block, order: Pointer | None) -> None:
        self.target, self.code, self.plan, self.block, self.order = target, code, plan, block, order
        self.lanes, self.width = target.lanes, target.lanes * target.vectors
        self.check = code.variable(code.zeros)
        """Its lanes become nan if an output is not finite."""
        self.buffer = code.array((target.filters + 1) * self.width)

    def run(self, terms: tuple[Int, Int, Int], panels: tuple[Int, Int]) -> None:
        """Add up the terms from the first number to the second, of so many, for the columns of some panels."""
        code, block, most, (first, last, count_of_terms) = self.code, self.block, self.target.filters, terms
        numbers = block.w + first if self.order is None else block.w
        with code.loop(block.first, block.last, most) as at:
            left = block.last - at
            for size, fits in ((most, left > most // 2), (most // 2, left <= most // 2)):
                with code.when(fits):
                    filters = filters_from(code, numbers, self.plan.terms, at, block.last, size)
                    with code.loop(*panels) as panel:
                        count = code.minimum(block.columns - panel * self.width, self.width)
                        vectors = (count + (self.lanes - 1)) // self.lanes
                        cells = block.panels + (panel - panels[0]) * RUN * self.width
                        with code.when(last.equals(count_of_terms)):
                            self.ask_for_outputs(at, panel, size)
                        with code.when(self.plan.asked_terms > 0):
                            self.ask_for_inputs(at, panel, terms)
                        for each in range(1, self.target.vectors + 1):
                            with code.when(vectors.equals(each)):
                                sums = sums_of(code, (cells, self.width), filters, each, last - first, self.order or 1)
                                self.finish(sums, (at, panel, count), first.equals(0), last.equals(count_of_terms))

    def ask_for_inputs(self, at: Int, panel: Int, terms: tuple[Int, Int, Int]) -> None:
        """Ask for a part of the cells that the panel gets next: those of the next run, or of the next share."""
        code, plan, (_, last, count_of_terms) = self.code, self.plan, terms
        ends = last >= count_of_terms
        first, ahead = code.select(ends, 0, last), code.select(ends, plan.panels * self.width, 0)
        start = first + (at - self.block.first) // self.target.filters * plan.asked_terms
        stop = code.minimum(start + plan.asked_terms, count_of_terms)
        cells = self.block.x + (self.block.tables[panel * plan.pieces * ENTRY] + ahead)
        with code.loop(start, stop) as term:
            for line in range(0, self.width + code.numbers_of_line - 1, code.numbers_of_line):
                code.prefetch(cells + (term * plan.x_channel + line))

    def ask_for_outputs(self, at: Int, panel: Int, filters: int) -> None:
        """Ask for the lines that a tile is going to store into, which come meanwhile."""
        code, block = self.code, self.block
        first = block.images[panel * (self.width * 3 + 1) + 2]
        for i in range(filters):
            row = block.out + (code.minimum(at + i, block.last - 1) * self.plan.positions + first)
            for line in range(0, self.width + code.numbers_of_line - 1, code.numbers_of_line):
                code.prefetch(row + line, write=True)

    def finish(self, sums: list[list[Variable]], where: tuple[Int, Int, Int], is_first: Flag, is_last: Flag) -> None:
        """Add the sums of earlier runs; keep the sums, or store the outputs if this run is the last."""
        code, (at, panel, count) = self.code, where
        kept = self.block.sums + (panel * self.plan.filters_of_block + (at - self.block.first)) * self.width
        with code.when(~is_first):
            for i, v, total in _each(sums):
                total.set(code.load(self.place(kept, i, v), align=code.bytes) + total.get())
        with code.when(~is_last):
            for i, v, total in _each(sums):
                code.store(total.get(), self.place(kept, i, v), align=code.bytes)
        with code.when(is_last):
            self.store(finished(sums), at, panel, count)

    def store(self, sums: list[list[Vector]], at: Int, panel: Int, count: Int) -> None:
        """Add the bias and store the outputs: at once where all lanes lie in one sample, else by way of a buffer."""
        code, plan, block = self.code, self.plan, self.block
        rows = code.minimum(block.last - at, len(sums))
        images = block.images + panel * (self.width * 3 + 1)
        out = block.out + at * plan.positions
        numbers = [code.splat(block.b[code.minimum(at + i, block.last - 1) * plan.bias_step]) for i in range(len(sums))]
        values = [(i, v, value + numbers[i]) for i, own in enumerate(sums) for v, value in enumerate(own)]
        is_whole = images[0].equals(1) & count.equals(len(sums[0]) * self.lanes) & rows.equals(len(sums))
        with code.when(is_whole):
            for i, v, value in values:
                code.store(value, out + (plan.positions * i + images[2] + v * self.lanes))
                code.look_at(self.check, value)
        with code.when(~is_whole):
            for i, v, value in values:
                code.store(value, self.place(self.buffer, i, v), align=code.bytes)
            with code.loop(0, rows) as line, code.loop(0, images[0]) as image:
                entry, row = images + (image * 3 + 1), self.buffer + line * self.width
                with code.loop(0, entry[2], self.lanes) as lane:
                    mask = code.lanes_between(None, entry[2] - lane)
                    value = code.load(row + (entry[0] + lane), mask)
                    goal = out + (plan.positions * line + entry[1] + lane)
                    store_part(code, self.target, value, goal, entry[2] - lane, mask)
                    code.look_at(self.check, value)

    def place(self, first: Pointer, row: int, vector: int) -> Pointer:
        """Return the address of a vector in rows of a panel's width."""
        return first + (row * self.width + vector * self.lanes)


def _each(sums: list[list[Variable]]) -> list[tuple[int, int, Variable]]:
    """Return each sum of a tile, with its filter and its vector."""
    return [(i, v, total) for i, own in enumerate(sums) for v, total in enumerate(own)]
