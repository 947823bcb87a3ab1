"""The sums of a tile: a few filters times a few vectors of positions, which stay in registers while terms are added.

Every dense kernel ends here. A term of the sums is one row of a panel, `vectors` vectors that lie side by side, times
one number of each filter. With eight filters and three vectors there are 24 sums for 11 loads, so a CPU that multiplies
and adds one vector a cycle never waits for memory in the cache (Goto and van de Geijn, "Anatomy of high-performance
matrix multiplication", 2008, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence

from .emit import Function
from .values import Number, Pointer, Variable, Vector

Sums = list[list[Variable]]
"""The sums of a tile: for each filter, for each vector."""


def sums_of(
    code: Function,
    panel: tuple[Pointer, int],
    filters: Sequence[Pointer],
    vectors: int,
    terms: Number,
    step: Pointer | Number = 1,
) -> Sums:
    """Add up `terms` terms, one row of a panel after the other.

    Parameters
    ----------
    code : Function
    panel : tuple of Pointer and int
        The first row, and how many numbers the rows are apart.
    filters : sequence of Pointer
        The first number of each filter; the others lie behind it.
    vectors : int
    terms : int
    step : Pointer, int or Int
        How many numbers those of two terms are apart in a filter, or the list of their places.
    """
    lanes, (first, pitch) = code.lanes, panel
    sums = [[code.variable(code.zeros) for _ in range(vectors)] for _ in filters]
    with code.loop(0, terms) as term:
        row, place = first + term * pitch, step[term] if isinstance(step, Pointer) else term * step
        cells = [code.load(row + lanes * v, align=code.bytes) for v in range(vectors)]
        for numbers, own in zip(filters, sums, strict=True):
            number = code.splat(numbers[place])
            for cell, total in zip(cells, own, strict=True):
                total.set(code.fma(cell, number, total.get()))
    return sums


def filters_from(
    code: Function, first: Pointer, step: Number, start: Number, stop: Number, count: int
) -> list[Pointer]:
    """Return the addresses of `count` filters from `start`; the last one stands for those beyond `stop`."""
    return [first + code.minimum(start + i, stop - 1) * step for i in range(count)]


def finished(sums: Sums) -> list[list[Vector]]:
    """Return what the sums of a tile are."""
    return [[total.get() for total in own] for own in sums]
