"""Integers whose bits stand for lanes or cells."""

from __future__ import annotations

from .emit import Function
from .values import Int, Number

WORD = 64
"""The bits of an integer."""


def ones(code: Function, number: Number, most: int) -> Int:
    """Return an integer whose low bits are as many ones as the number says, at most so many."""
    none: Int = code.variable(-1).get()
    number = code.minimum(code.maximum(number, 0), most)
    # No CPU moves by as many bits as there are.
    low: Int = -1 - (none << code.minimum(number, WORD - 1))
    return code.select(number.equals(WORD), -1, low) if most == WORD else low


def between(code: Function, low: Number, high: Number, most: int) -> Int:
    """Return an integer whose bits from the one number on, and before the other one, are ones; at most so many."""
    return ones(code, high, most) - ones(code, code.minimum(low, high), most)
