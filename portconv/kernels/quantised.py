"""Quantised numbers: float32 becomes whole numbers in float64, times a power of two; and the sums of these or squares.

The kernels of this family differ in what has a factor of its own, and a sum of squares:

- "cells": each group has a factor, and each cell of it a sum over channels;
- "columns": each cell of a group has both;
- "rows": each group is one channel and has both; the factors begin again after `period` groups;
- "totals": as "rows", but what is stored is one number of float32 for each of `period` channels: the exact sum of its
  numbers in all samples, rounded.
"""

from __future__ import annotations

from .doubles import ExactSum, load_single, narrowed, quotient, scalar, whole, widened
from .emit import Function, Module
from .record import Record
from .share import PLAN_HEAD, SHARE, driver
from .sizes import Planned, blocks, ceiling
from .target import Target
from .values import Flag, Pointer, Vector

VARIANTS = ("cells", "columns", "rows", "totals")
NUMBERS_OF_SHARE, CELLS_OF_SHARE = 1 << 15, 1 << 10
"""About how many numbers are one share, and the most cells: their sums of squares stay in the nearest cache."""
VECTORS_OF_RUN = 1 << 12
"""So many vectors of numbers of 2**39 at most are added up exactly."""
CYCLES_OF_VECTOR, CYCLES_OF_ROW = 6.0, 30.0
"""About how many vectors are multiplied in the time that a vector and a row take."""

PLAN = Record(
    *(*PLAN_HEAD, "groups", "channels", "cells", "groups_of_share", "cell_blocks", "cells_of_share", "period", "given"),
)
"""The plan in memory: so many groups, in all samples, of so many channels. In the array that is read a channel has
`given` cells."""


def plan_of(target: Target, variant: str, shape: tuple[int, int, int], period: int, given: int = 0) -> Planned:
    """Plan to quantise so many groups of so many channels of so many cells.

    To "totals" all samples of a channel are one group. Cells may be some of those of a channel, which has `given` ones.
    """
    groups, channels, cells = shape
    if variant == "totals":
        groups, channels = period, groups // period
    cell_blocks, cells_of_share = blocks(cells, CELLS_OF_SHARE if variant in ("cells", "columns") else cells)
    most = max(1, NUMBERS_OF_SHARE // max(1, channels * cells_of_share))
    group_blocks, groups_of_share = blocks(groups, most if cell_blocks == 1 else 1)
    shares = group_blocks * cell_blocks
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares, "groups": groups, "channels": channels},
        **{"cells": cells, "groups_of_share": groups_of_share},
        **{
            "cell_blocks": cell_blocks,
            "cells_of_share": cells_of_share,
            "period": max(1, period),
            "given": given or cells,
        },
    )
    rows = groups * channels * cell_blocks
    cycles = rows * (ceiling(cells_of_share, target.lanes) * CYCLES_OF_VECTOR + CYCLES_OF_ROW)
    return Planned(variant, values, (), shares, 0, {}, cycles=cycles)


def module(target: Target, variant: str) -> Module:
    """Write a kernel: `x` is quantised into `out`, `b` has the factors, and `w` gets the sums of squares."""
    if variant == "totals":
        return _totals(target)
    code, lanes = Function("share", SHARE, target, returns=True), target.lanes
    memory, x, squares, factors, out, *_, index = code.given
    plan, numbers = PLAN.read(memory), x.of("float")
    cell = index % plan.cell_blocks * plan.cells_of_share
    last = code.minimum(cell + plan.cells_of_share, plan.cells)
    first = index // plan.cell_blocks * plan.groups_of_share
    stop = code.minimum(first + plan.groups_of_share, plan.groups)
    of_row = code.variable(code.zeros)
    with code.loop(first, stop) as group, code.loop(0, plan.channels) as channel:
        row = group * plan.channels + channel
        factor = code.zeros if variant == "columns" else code.splat(factors[group % plan.period])
        of_row.set(code.zeros)
        with code.loop(cell, last, lanes) as at:
            mask, place = code.lanes_between(None, last - at), row * plan.cells + at
            here = numbers + (row * plan.given + at)
            own: Pointer = squares + (group * plan.cells + at)
            scale = code.load(factors + (group * plan.cells + at), mask) if variant == "columns" else factor
            value = whole(code, load_single(code, here, mask) * scale)
            code.store(value, out + place, mask)
            if variant == "rows":
                of_row.set(code.fma(value, value, of_row.get()))
            else:
                with code.when(channel.equals(0)):
                    code.store(value * value, own, mask)
                with code.when(~channel.equals(0)):
                    code.store(code.fma(value, value, code.load(own, mask)), own, mask)
        if variant == "rows":
            total: Vector = code.total(of_row.get())
            squares[group] = total
    code.give(0)
    return Module([code, *driver(target, code)])


def _totals(target: Target) -> Module:
    """Write the kernel that adds up channels: it returns 0 if all sums are finite."""
    code, lanes = Function("share", SHARE, target, returns=True), target.lanes
    memory, x, _, factors, out, *_, index = code.given
    plan, numbers, sums, bad = PLAN.read(memory), x.of("float"), out.of("float"), code.variable(0)
    first = index * plan.groups_of_share
    with code.loop(first, code.minimum(first + plan.groups_of_share, plan.groups)) as channel:
        factor, total = code.splat(factors[channel]), ExactSum(code)
        low = total.parts[0]
        with code.loop(0, plan.channels) as sample:
            row = numbers + (sample * plan.groups + channel) * plan.cells
            with code.loop(0, plan.cells, VECTORS_OF_RUN * lanes) as start:
                stop = code.minimum(start + VECTORS_OF_RUN * lanes, plan.cells)
                with code.loop(start, stop, lanes) as at:
                    value = load_single(code, row + at, code.lanes_between(None, stop - at)) * factor
                    low.set(low.get() + whole(code, value))
                total.carry()
        scale = quotient(code, scalar(code, 1.0), factors[channel])
        value = narrowed(code, widened(code, narrowed(code, total.rounded())) * scale)
        sums[channel] = value
        is_finite = code.assign(f"fcmp ord {(value - value).typed}, 0.0")
        bad.set(code.select(Flag(code, "i1", is_finite), bad.get(), 1))
    code.give(bad.get())
    return Module([code, *driver(target, code)])
