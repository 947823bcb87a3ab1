"""Blocks of arrays that stay in cache with all that is made of them, for threads to share."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

from .. import limits
from ..backends import Array, Backend, Workspace
from ..spec.ranges import ALL, Index, pieces

BYTES = 144
"""What an element takes while it is cut or rounded, with what is made of it on the way."""
READ = 36
"""What one takes that is only looked at."""
STEPS = 32
"""Operations that it takes."""
Box = tuple[slice, ...]


def blocks(backend: Backend, shape: tuple[int, ...], taken: int = BYTES) -> list[Box]:
    """Cut an array, whose elements take so many bytes, into blocks along its first three axes."""
    first, second, *cells = shape
    most = at_once(backend, taken)
    row = math.prod(cells[1:])
    rows, channels = math.prod(cells), second * math.prod(cells)
    cuts = [pieces(first, max(1, most // max(1, channels))), pieces(second, max(1, most // max(1, rows)))]
    if cells:
        cuts.append(pieces(cells[0], max(1, most // max(1, row))))
    rest = (ALL,) * (len(cells) - 1)
    return [(*(slice(*piece) for piece in block), *rest) for block in product(*cuts)]


def at_once(backend: Backend, taken: int = BYTES) -> int:
    """How many elements that take so many bytes a block may have."""
    return max(1, limits.aside(backend.block_bytes, limits.workspace()) // taken)


def least(backend: Backend, shape: tuple[int, ...]) -> int:
    """Into how many blocks an array is cut at the least, for threads to share."""
    return backend.least_blocks(STEPS * math.prod(shape), 2)


def planes(backend: Backend, array: Array, count: int, of: Callable[[Index], list[Array]], taken: int = BYTES) -> Array:
    """What `of` makes of the cells of each block (N, C, *cells): so many numbers for each sample and channel, float64.

    Returns
    -------
    array, shape (parts, count, N, C)
        With as many parts as blocks have a sample's channel in.
    """
    cut = blocks(backend, tuple(array.shape), taken)
    starts = sorted({block[2].start for block in cut}) if array.ndim > 2 else [0]
    shape = (max(1, len(starts)), count, *array.shape[:2])
    out = backend.zeros(shape, backend.empty((), array, dtype=backend.dtype("float64")))

    def compute(block: Index, target: Array, workspace: Workspace) -> Array:
        for i, value in enumerate(of(block)):
            target = backend.write(target, (i, ...), value)
        return target

    indices = [(starts.index(block[2].start) if array.ndim > 2 else 0, ALL, *block[:2]) for block in cut]
    return backend.fill(out, list(zip(indices, cut, strict=True)), compute, least(backend, tuple(array.shape)))
