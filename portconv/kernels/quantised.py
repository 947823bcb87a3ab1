"""Quantised numbers: float32 becomes whole numbers in float64, times a power of two; and the sums of these or squares.

The kernels of this family differ in what has a factor of its own, and a sum of squares:

- "cells": each group has a factor, and each cell of it a sum over channels;
- "columns": each cell of a group has both;
- "rows": each group is one channel and has both; the factors begin again after `period` groups;
- "sums": as "rows", but what is stored is the exact sum of a channel's numbers alone, as two that count 1 and 2**20.
"""

from __future__ import annotations

from .doubles import cut, load_single, whole
from .emit import Function, Module
from .record import Record
from .share import PLAN_HEAD, SHARE, driver
from .sizes import Planned, blocks, ceiling
from .target import Target
from .values import Pointer, Vector

VARIANTS = ("cells", "columns", "rows", "sums")
NUMBERS_OF_SHARE, CELLS_OF_SHARE = 1 << 15, 1 << 10
"""About how many numbers are one share, and the most cells: their sums of squares stay in the nearest cache."""
VECTORS_OF_RUN = 1 << 12
"""So many vectors of numbers of 2**39 at most are added up exactly."""
CYCLES_OF_VECTOR, CYCLES_OF_ROW = 6.0, 30.0
"""About how many vectors are multiplied in the time that a vector and a row take."""

PLAN = Record(*PLAN_HEAD, "groups", "channels", "cells", "groups_of_share", "cell_blocks", "cells_of_share", "period")
"""The plan in memory: so many groups, in all samples, of so many channels."""


def plan_of(target: Target, variant: str, shape: tuple[int, int, int], period: int) -> Planned:
    """Plan to quantise so many groups of so many channels of so many cells."""
    groups, channels, cells = shape
    cell_blocks, cells_of_share = blocks(cells, CELLS_OF_SHARE if variant in ("cells", "columns") else cells)
    most = max(1, NUMBERS_OF_SHARE // max(1, channels * cells_of_share))
    group_blocks, groups_of_share = blocks(groups, most if cell_blocks == 1 else 1)
    shares = group_blocks * cell_blocks
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares, "groups": groups, "channels": channels},
        **{"cells": cells, "groups_of_share": groups_of_share},
        **{"cell_blocks": cell_blocks, "cells_of_share": cells_of_share, "period": max(1, period)},
    )
    rows = groups * channels * cell_blocks
    cycles = rows * (ceiling(cells_of_share, target.lanes) * CYCLES_OF_VECTOR + CYCLES_OF_ROW)
    return Planned(variant, values, (), shares, 0, {}, cycles=cycles)


def module(target: Target, variant: str) -> Module:
    """Write a kernel: `x` is quantised into `out`, `b` has the factors, and `w` gets the sums of squares."""
    if variant == "sums":
        return _sums(target)
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
            own: Pointer = squares + (group * plan.cells + at)
            scale = code.load(factors + (group * plan.cells + at), mask) if variant == "columns" else factor
            value = whole(code, load_single(code, numbers + place, mask) * scale)
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


def _sums(target: Target) -> Module:
    """Write the kernel that stores two numbers for each group in `out`."""
    code, lanes = Function("share", SHARE, target, returns=True), target.lanes
    memory, x, _, factors, out, *_, index = code.given
    plan, numbers = PLAN.read(memory), x.of("float")
    first = index * plan.groups_of_share
    low, high = code.variable(code.zeros), code.variable(code.zeros)
    with code.loop(first, code.minimum(first + plan.groups_of_share, plan.groups)) as group:
        factor, row = code.splat(factors[group % plan.period]), numbers + group * plan.cells
        for part in (low, high):
            part.set(code.zeros)
        with code.loop(0, plan.cells, VECTORS_OF_RUN * lanes) as start:
            stop = code.minimum(start + VECTORS_OF_RUN * lanes, plan.cells)
            with code.loop(start, stop, lanes) as at:
                value = load_single(code, row + at, code.lanes_between(None, stop - at)) * factor
                low.set(low.get() + whole(code, value))
            rest, carried = cut(code, low.get())
            low.set(rest)
            high.set(high.get() + carried)
        out[group * 2] = code.total(low.get())
        out[group * 2 + 1] = code.total(high.get())
    code.give(0)
    return Module([code, *driver(target, code)])
