"""Sums of the numbers of each channel, which are the gradient of a bias.

Where channels come last, lanes run along them. Shares of the first phase add up some rows of channels each, and those
of the second one add up their sums.
"""

from __future__ import annotations

from .emit import Argument, Function, Module
from .part_stores import store_part
from .record import Record
from .share import PLAN_HEAD, SHARE, driver
from .sizes import Planned, blocks, ceiling
from .target import Target
from .values import INTEGER, Flag, Int, Pointer, Variable

ALL, LAST = "all", "last"
VARIANTS = (ALL, LAST)
VECTORS = 4
"""So many vectors are added up at once, each to a sum of its own."""
CELLS, RUN = 8192, 128
"""So many numbers are a piece, and so many pieces, or rows of channels, are added up one after the other before their
sums are."""
NUMBERS_OF_SHARE, FEWEST_SHARES = 1 << 16, 8
"""About how many numbers a share adds up; there are so many shares at least, if there are as many channels."""
CYCLES_OF_VECTOR, CYCLES_OF_PLANE = 3.0, 30.0
"""About how many vectors are multiplied in the time that a vector takes that is read from memory, and a plane."""

PLAN = Record(*PLAN_HEAD, "samples", "channels", "cells", "channels_of_share")
"""The plan in memory."""
PLAN_OF_LAST = Record(*PLAN_HEAD, "channels", "rows", "rows_of_share", "pitch")
"""The plan in memory where channels come last: so many rows, and how far apart the sums of shares are."""


def plan_of(target: Target, samples: int, channels: int, cells: int) -> Planned:
    """Plan the sums of each channel, of so many samples of so many numbers."""
    most = min(max(1, NUMBERS_OF_SHARE // max(1, samples * cells)), ceiling(channels, FEWEST_SHARES))
    shares, of_share = blocks(channels, most)
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares, "samples": samples, "channels": channels},
        **{"cells": cells, "channels_of_share": of_share},
    )
    cycles = samples * channels * (ceiling(cells, target.lanes) * CYCLES_OF_VECTOR + CYCLES_OF_PLANE)
    return Planned(ALL, values, (), shares, 0, {}, cycles=cycles)


def plan_of_last(target: Target, rows: int, channels: int) -> Planned:
    """Plan the sums of each channel, of so many rows of channels."""
    shares, of_share = blocks(rows, max(1, NUMBERS_OF_SHARE // channels))
    vectors = ceiling(channels, target.lanes)
    pitch = vectors * target.lanes
    values = PLAN_OF_LAST.packed(
        **{"phases": 2, "shares_first": shares, "shares_last": vectors, "channels": channels},
        **{"rows": rows, "rows_of_share": of_share, "pitch": pitch},
    )
    cycles = (rows + shares) * vectors * CYCLES_OF_VECTOR
    return Planned(LAST, values, (), shares + vectors, 0, {}, shares * pitch * target.number, cycles=cycles)


def module(target: Target, variant: str) -> Module:
    """Write the kernel."""
    if variant == LAST:
        return _of_last(target)
    plane = _plane(target)
    code = Function("share", SHARE, target, returns=True)
    memory, x, _, _, out, *_, index = code.given
    plan, check = PLAN.read(memory), code.variable(code.zeros)
    start = index * plan.channels_of_share
    last = code.minimum(start + plan.channels_of_share, plan.channels)
    run, total, pieces = code.array(target.lanes), code.array(target.lanes), code.variable(0)
    with code.loop(start, last) as channel:
        for vector in (run, total):
            code.store(code.zeros, vector, align=code.bytes)
        pieces.set(0)
        with code.loop(0, plan.samples) as sample, code.loop(0, plan.cells, CELLS) as cell:
            here = x + ((sample * plan.channels + channel) * plan.cells + cell)
            code.run(plane, here, code.minimum(plan.cells - cell, CELLS), run)
            pieces.set(pieces.get() + 1)
            with code.when((pieces.get() % RUN).equals(0)):
                _add(code, run, total)
                code.store(code.zeros, run, align=code.bytes)
        _add(code, run, total)
        number = code.total(code.load(total, align=code.bytes))
        out[channel] = number
        code.look_at(check, code.splat(number))
    code.give(code.is_not_finite(check.get()))
    return Module([plane, code, *driver(target, code)])


def _of_last(target: Target) -> Module:
    """Write the kernel of channels that come last."""
    code, lanes = Function("share", SHARE, target, returns=True), target.lanes
    memory, x, _, _, out, _, shared, phase, index = code.given
    plan, check = PLAN_OF_LAST.read(memory), code.variable(code.zeros)
    sums, runs = ([code.variable(code.zeros) for _ in range(VECTORS)] for _ in range(2))

    def add_rows(channel: Int, sums: list[Variable], mask: Flag | None) -> None:
        first = index * plan.rows_of_share
        last = code.minimum(first + plan.rows_of_share, plan.rows)
        for own in sums:
            own.set(code.zeros)
        with code.loop(first, last, RUN) as start:
            for run in runs[: len(sums)]:
                run.set(code.zeros)
            with code.loop(start, code.minimum(start + RUN, last)) as row:
                here = x + (row * plan.channels + channel)
                for number, run in enumerate(runs[: len(sums)]):
                    run.set(run.get() + code.load(here + number * lanes, mask))
            for own, run in zip(sums, runs, strict=False):
                own.set(own.get() + run.get())
        for number, own in enumerate(sums):
            code.store(own.get(), shared + (index * plan.pitch + channel + number * lanes))

    whole = plan.channels // (VECTORS * lanes) * (VECTORS * lanes)
    with code.when(phase.equals(0)):
        with code.loop(0, whole, VECTORS * lanes) as channel:
            add_rows(channel, sums, None)
        with code.loop(whole, plan.channels, lanes) as channel:
            add_rows(channel, sums[:1], code.lanes_between(None, plan.channels - channel))
    with code.when(~phase.equals(0)):
        total, channel = sums[0], index * lanes
        with code.loop(0, plan.shares_first) as number:
            total.set(total.get() + code.load(shared + (number * plan.pitch + channel)))
        code.look_at(check, total.get())
        left = plan.channels - channel
        store_part(code, target, total.get(), out + channel, left, code.lanes_between(None, left))
    code.give(code.is_not_finite(check.get()))
    return Module([code, *driver(target, code)])


def _add(code: Function, vector: Pointer, total: Pointer) -> None:
    """Add a vector to another one in memory."""
    value = code.load(total, align=code.bytes) + code.load(vector, align=code.bytes)
    code.store(value, total, align=code.bytes)


def _plane(target: Target) -> Function:
    """Add the numbers of a plane to a vector."""
    arguments = Argument("x", "*float"), Argument("cells", INTEGER), Argument("total", "*float")
    code, lanes = Function("plane", arguments, target), target.lanes
    x, cells, total = code.given
    sums = [code.variable(code.zeros) for _ in range(VECTORS)]
    step = VECTORS * lanes
    whole: Int = cells // step * step
    with code.loop(0, whole, step) as cell:
        for number, own in enumerate(sums):
            own.set(own.get() + code.load(x + (cell + number * lanes)))
    with code.loop(whole, cells, lanes) as cell:
        here: Pointer = x + cell
        sums[0].set(sums[0].get() + code.load(here, code.lanes_between(None, cells - cell)))
    while len(sums) > 1:
        low, high = sums[::2], sums[1::2]
        for own, other in zip(low, high, strict=True):
            own.set(own.get() + other.get())
        sums = low
    code.store(code.load(total, align=code.bytes) + sums[0].get(), total, align=code.bytes)
    return code
