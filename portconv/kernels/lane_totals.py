"""Sums of the lanes of many vectors, and whether numbers are finite."""

from __future__ import annotations

from .emit import Function
from .values import Int, Number, Pointer, Variable


def totals(code: Function, sums: tuple[Pointer, Number], out: Pointer, check: Variable) -> None:
    """Add up the lanes of so many vectors, which lie side by side, and store a number for each; look at all of them."""
    (place, count), lanes = sums, code.lanes
    with code.loop(0, count) as number:
        total = code.total(code.load(place + number * lanes, align=code.bytes))
        out[number] = total
        code.look_at(check, code.splat(total))


def spoiled(code: Function, numbers: Pointer, count: Int) -> Int:
    """Return 1 if one of some numbers is not finite, else 0."""
    check = code.variable(code.zeros)
    with code.loop(0, count, code.lanes) as at:
        value = code.load(numbers + at, code.lanes_between(None, count - at))
        code.look_at(check, value)
    return code.is_not_finite(check.get())
