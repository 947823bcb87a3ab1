"""Sums of lanes, of many vectors."""

from __future__ import annotations

from .emit import Function
from .values import Number, Pointer, Variable


def totals(code: Function, sums: tuple[Pointer, Number], out: Pointer, check: Variable) -> None:
    """Add up the lanes of so many vectors, which lie side by side, and store a number for each; look at all of them."""
    (place, count), lanes = sums, code.lanes
    with code.loop(0, count) as number:
        total = code.total(code.load(place + number * lanes, align=code.bytes))
        out[number] = total
        code.look_at(check, code.splat(total))
