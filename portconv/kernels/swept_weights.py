"""Gradients of filters of one channel: lanes run along the positions, and each sum of a tap stays in a register.

A share copies a plane of the padded input, and beside it the gradients of the outputs at the same distance from row to
row, with zeros between the rows. So one sweep goes through both from end to end, and a tap is nothing but a distance,
whatever the stride, the dilation and the padding. The lanes of a sum are added up at the end, for all samples.

Numbers between rows meet zeros. So one that is not finite spoils sums that it is no part of, and the share says so.
"""

from __future__ import annotations

from .emit import Argument, Function, Module
from .lane_totals import totals
from .row_copies import Copies
from .share import SHARE, driver
from .swept_weight_plan import PASSES, PLAN, VARIANTS, plan_of
from .target import Target
from .values import INTEGER, Int, Pointer

__all__ = ["VARIANTS", "module", "plan_of"]


def module(target: Target, variant: str) -> Module:
    """Write the kernels for one way of copying cells."""
    copies, spread = Copies(target, variant, aligned=False), _spread(target)
    sweeps = [_sweep(target, taps) for taps in range(1, PASSES + 1)]
    share = _Share(target, copies, spread, sweeps).code
    return Module([*copies.functions, spread, *sweeps, share, *driver(target, share)])


def _spread(target: Target) -> Function:
    """Copy rows of gradients, with what is there already between them; nothing follows the last one but zeros."""
    arguments = Argument("goal", "*float"), Argument("dout", "*float")
    names = "rows", "columns", "stride", "pitch"
    code = Function("spread", [*arguments, *map(Argument, names)], target)
    goal, dout, rows, columns, stride, pitch = code.given
    whole = columns // target.lanes * target.lanes
    mask = code.lanes_between(None, columns - whole)
    with code.loop(0, rows) as row:
        source, place = dout + row * stride, goal + row * pitch
        with code.loop(0, whole, target.lanes) as column:
            code.store(code.load(source + column), place + column)
        with code.when(whole < columns):
            code.store(code.load(source + whole, mask), place + whole)
    code.store(code.zeros, goal + ((rows - 1) * pitch + columns))
    return code


def _sweep(target: Target, taps: int) -> Function:
    """Add the products of so many taps and all vectors of a plane to sums, of which each is a vector."""
    arguments = ("grads", "*float"), ("cells", "*float"), ("taps", "*i64"), ("sums", "*float"), ("vectors", INTEGER)
    code = Function(f"sweep{taps}", [Argument(*each) for each in arguments], target)
    grads, cells, places, kept, vectors = code.given
    lanes, align = target.lanes, 4 * target.lanes
    reads = [cells + places[tap] for tap in range(taps)]
    sums = [code.variable(code.zeros) for _ in range(taps)]
    with code.loop(0, vectors) as vector:
        grad = code.load(grads + vector * lanes, align=align)
        for read, total in zip(reads, sums, strict=True):
            total.set(code.fma(grad, code.load(read + vector * lanes), total.get()))
    for tap, total in enumerate(sums):
        place = kept + tap * lanes
        code.store(code.load(place, align=align) + total.get(), place, align=align)
    return code


class _Share:
    """The function that computes the gradients of the filters of some channels."""

    def __init__(self, target: Target, copies: Copies, spread: Function, sweeps: list[Function]) -> None:
        self.target, self.copies, self.spread, self.sweeps = target, copies, spread, sweeps
        self.code = code = Function("share", SHARE, target, returns=True)
        memory, *_, scratch, _, _, index = code.given
        self.plan = plan = PLAN.read(memory)
        bytes_ = scratch.of("i8")
        self.grads, self.sums = ((bytes_ + at).of(code.element) for at in (plan.at_gradients, plan.at_sums))
        self.lines, self.entries = ((bytes_ + at).of(INTEGER) for at in (plan.at_lines, plan.at_entries))
        first = index * plan.channels_of_share
        last = code.minimum(first + plan.channels_of_share, plan.channels)
        with code.loop(0, plan.zeros, target.lanes) as at:
            code.store(code.zeros, scratch + at, align=code.bytes)
        with code.loop(0, plan.first_blocks) as first_block, code.loop(0, plan.column_blocks) as column_block:
            self.block(first_block, column_block, first, last)
        code.give(self.finish(first, last))

    def block(self, first_block: Int, column_block: Int, first_channel: Int, last_channel: Int) -> None:
        """Add up the products of some rows, or of a part of one, of all samples."""
        code, plan = self.code, self.plan
        memory, x, dout, _, _, scratch, *_ = code.given
        first, column = first_block * plan.firsts_of_unit, column_block * plan.columns_of_unit
        firsts = code.minimum(plan.firsts - first, plan.firsts_of_unit)
        columns = code.minimum(plan.columns - column, plan.columns_of_unit)
        line_count = firsts * plan.lines_of_step + plan.lines_beyond
        code.run(self.copies.lines, memory, self.lines, first * plan.lines_of_step, line_count)
        code.run(self.copies.entries, memory, self.entries, column)
        vectors = ((firsts - 1) * plan.line_pitch + columns + (self.target.lanes - 1)) // self.target.lanes
        with code.loop(first_channel, last_channel) as channel, code.loop(0, plan.batch) as sample:
            cells = x + (sample * plan.x_sample + channel * plan.x_channel)
            code.run(self.copies.copy, memory, scratch, cells, self.lines, self.entries, line_count)
            with code.loop(0, plan.multiplier) as number:
                filter_ = channel * plan.multiplier + number
                grads = dout + (sample * plan.out_sample + filter_ * plan.positions + first * plan.columns + column)
                code.run(self.spread, self.grads, grads, firsts, columns, plan.columns, plan.line_pitch)
                own = (filter_ - first_channel * plan.multiplier) * plan.taps
                self.passes(scratch, self.sums + own * self.target.lanes, vectors)

    def passes(self, cells: Pointer, sums: Pointer, vectors: Int) -> None:
        """Sweep through a plane for all taps, some at a time."""
        code, plan = self.code, self.plan
        taps = plan.pointer("row_taps", INTEGER)
        with code.loop(0, plan.taps, plan.taps_of_pass) as tap:
            count = code.minimum(plan.taps - tap, plan.taps_of_pass)
            for number, sweep in enumerate(self.sweeps, start=1):
                with code.when(count.equals(number)):
                    code.run(sweep, self.grads, cells, taps + tap, sums + tap * self.target.lanes, vectors)

    def finish(self, first: Int, last: Int) -> Int:
        """Add up the lanes of all sums, and store them; return whether one is not finite."""
        code, plan = self.code, self.plan
        out, check = code.given[4], code.variable(code.zeros)
        of_channel = plan.multiplier * plan.taps
        start = first * of_channel
        totals(code, (self.sums, last * of_channel - start), out + start, check)
        return code.is_not_finite(check.get())
