"""The largest magnitude of each plane of cells, which says at what scale a reproducible product rounds them."""

from __future__ import annotations

from .doubles import larger, largest_lane, magnitude, widened
from .emit import Function, Module
from .record import Record
from .share import PLAN_HEAD, SHARE, driver
from .sizes import Planned, blocks, ceiling
from .target import Target
from .values import Pointer

VARIANTS = ("all",)
VECTORS = 4
"""So many vectors are looked at together."""
NUMBERS_OF_SHARE = 1 << 16
"""About how many numbers are one share."""
CYCLES_OF_VECTOR, CYCLES_OF_PLANE = 3.0, 30.0
"""About how many vectors are multiplied in the time that a vector takes that is read from memory, and a plane."""

PLAN = Record(*PLAN_HEAD, "planes", "cells", "planes_of_share")
"""The plan in memory."""


def plan_of(target: Target, planes: int, cells: int) -> Planned:
    """Plan the largest magnitudes of so many planes; the call says whether a number is not finite."""
    shares, of_share = blocks(planes, max(1, NUMBERS_OF_SHARE // max(1, cells)))
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares},
        **{"planes": planes, "cells": cells, "planes_of_share": of_share},
    )
    cycles = planes * (ceiling(cells, target.lanes) * CYCLES_OF_VECTOR + CYCLES_OF_PLANE)
    return Planned("all", values, (), shares, 0, {}, cycles=cycles)


def module(target: Target, variant: str) -> Module:
    """Write the kernel, which stores float64."""
    code, lanes = Function("share", SHARE, target, returns=True), target.lanes
    memory, x, _, _, out, *_, index = code.given
    plan, goal, check = PLAN.read(memory), out.of("double"), code.variable(code.zeros)
    start, step = index * plan.planes_of_share, VECTORS * lanes
    found = [code.variable(code.zeros) for _ in range(VECTORS)]
    whole = plan.cells // step * step
    with code.loop(start, code.minimum(start + plan.planes_of_share, plan.planes)) as plane:
        cells: Pointer = x + plane * plan.cells
        for each in found:
            each.set(code.zeros)
        with code.loop(0, whole, step) as cell:
            for number, each in enumerate(found):
                value = code.load(cells + (cell + number * lanes))
                code.look_at(check, value)
                each.set(larger(code, magnitude(code, value), each.get()))
        with code.loop(whole, plan.cells, lanes) as cell:
            value = code.load(cells + cell, code.lanes_between(None, plan.cells - cell))
            code.look_at(check, value)
            found[0].set(larger(code, magnitude(code, value), found[0].get()))
        of_plane = found[0].get()
        for each in found[1:]:
            of_plane = larger(code, of_plane, each.get())
        largest = largest_lane(code, of_plane)
        goal[plane] = largest if target.element == "double" else widened(code, largest)
    code.give(code.is_not_finite(check.get()))
    return Module([code, *driver(target, code)])
