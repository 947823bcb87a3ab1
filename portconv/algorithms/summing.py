"""Sums of many terms, cut into runs whose sums are added up: the error grows with the longest plain sum.

A plain sum of n terms rounds its first term n times. Of runs of r terms it is rounded r + n / r times, which is least
near the square root of n: Higham, "The accuracy of floating point summation" (SIAM Journal on Scientific Computing,
1993), section 2, calls this blocked summation. Libraries sum in many ways, some of them plain ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..backends import Array, Backend, Workspace
from ..spec.ranges import Ranges, pieces

Block = TypeVar("Block")
Blocks = Sequence[Block]

SHORT = 32
"""So few blocks are added up one after the other."""
LONGEST_PRODUCT = 1 << 12
"""The most terms that one matrix product adds up."""


def runs_of(count: int) -> Ranges:
    """Cut so many blocks into runs; each run is added up, and then their sums are."""
    return pieces(count, max(SHORT, math.isqrt(count)))


def additions(count: int) -> int:
    """Count how often a term is rounded at most while so many blocks are added up in runs."""
    return max(0, runs_of(count).longest + len(runs_of(count)) - 1)


def runs_take(count: int) -> int:
    """Return how many arrays of the sum's shape it takes to add up so many blocks in runs, beside the sum itself."""
    return int(len(runs_of(count)) > 1)


def in_runs(
    backend: Backend, add_up: Callable[[Blocks[Any], Array, Workspace], Array]
) -> Callable[[Blocks[Any], Array, Workspace], Array]:
    """Return a function that adds up blocks in runs; `add_up` adds up one run, and may write into the array it gets."""

    def of_blocks(blocks: Blocks[Any], target: Array, workspace: Workspace) -> Array:
        runs = runs_of(len(blocks))
        if len(runs) == 1:
            return add_up(blocks, target, workspace)
        for i, run in enumerate(runs):
            part = add_up(blocks[slice(*run)], workspace("run", tuple(target.shape), target.dtype), workspace)
            target = (backend.add if i else backend.write)(target, (...,), part)
        return target

    return of_blocks


def correlate(backend: Backend, a: Array, b: Array, out: Array | None = None) -> Array:
    """Multiply (..., i, l) by (..., j, l), and add up over l: (..., i, j), which may be written into `out`."""
    xp, length, axis = backend.xp, a.shape[-1], a.ndim - 2
    count = length // LONGEST_PRODUCT
    lead, swapped = tuple(range(axis)), (axis + 1, axis)
    if count < 2:
        return backend.product(a, xp.permute_dims(b, (*lead, *swapped)), out)
    whole = slice(count * LONGEST_PRODUCT)
    runs = [xp.reshape(each[..., whole], (*each.shape[:-1], count, LONGEST_PRODUCT)) for each in (a, b)]
    first = xp.permute_dims(runs[0], (*lead, axis + 1, axis, axis + 2))
    second = xp.permute_dims(runs[1], (*lead, axis + 1, axis + 2, axis))
    value = backend.total(backend.product(first, second), axis)
    rest = slice(whole.stop, None)
    return value if whole.stop == length else value + correlate(backend, a[..., rest], b[..., rest])


def correlated(length: int) -> int:
    """Count the products of runs that `correlate` holds at a time, its result among them."""
    count = length // LONGEST_PRODUCT
    return 1 if count < 2 else count + 2


def rounded(length: int) -> int:
    """Count how often a term of what `correlate` adds up is rounded at most, its multiplication included."""
    count = length // LONGEST_PRODUCT
    return length if count < 2 else LONGEST_PRODUCT + count
