"""Blocks of arrays, so small that a block and all that is computed from it stay in cache; threads share the blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .. import limits
from ..backends import Array, Backend, Workspace
from ..spec.ranges import ALL, Index, Range, Ranges, pieces
from ..spec.remembered import remembered
from ..spec.sequences import Made, Product, kept, kept_if_few
from .probe import check_rounding

BYTES = 144
"""The bytes that an element takes while it is cut or rounded, intermediate arrays included."""
BYTES_TO_READ = 36
"""The bytes that an element takes where only its magnitude is looked at."""
OPERATIONS = 32
"""The operations that cutting or rounding an element takes."""
Block = tuple[slice, ...]
Piece = TypeVar("Piece")


def blocks(backend: Backend, shape: tuple[int, ...], element_bytes: int = BYTES) -> Sequence[Block]:
    """Cut an array into blocks along its first three axes; an element takes `element_bytes` bytes of cache."""
    return _blocks(shape, block_elements(backend, element_bytes))


@remembered(kept)
def _blocks(shape: tuple[int, ...], longest: int) -> Sequence[Block]:
    """Cut an array into blocks of at most `longest` elements."""
    rest = (ALL,) * (len(shape) - 3)
    cuts = Product(*_cuts(shape, longest))
    return kept_if_few(Made(cuts, lambda block: (*(slice(*piece) for piece in block), *rest)))


def _cuts(shape: tuple[int, ...], longest: int) -> list[Ranges]:
    """Return the ranges that the first three axes are cut into."""
    first, second, *cells = shape
    row, channel = math.prod(cells[1:]), math.prod(cells)
    sample = second * channel
    cuts = [pieces(first, max(1, longest // max(1, sample))), pieces(second, max(1, longest // max(1, channel)))]
    if cells:
        cuts.append(pieces(cells[0], max(1, longest // max(1, row))))
    return cuts


def block_elements(backend: Backend, element_bytes: int = BYTES) -> int:
    """Count the elements that a block may have where each takes `element_bytes` bytes."""
    return max(1, limits.reproducible_block_bytes(backend.block_bytes, limits.workspace()) // element_bytes)


def least_blocks(backend: Backend, shape: tuple[int, ...]) -> int:
    """Count the blocks that an array of this shape should be cut into at least, so that all threads have work."""
    return backend.least_blocks(OPERATIONS * math.prod(shape), 2)


def fill(
    backend: Backend,
    out: Array,
    cut: Sequence[tuple[tuple[Any, ...], Piece]],
    compute: Callable[[Piece, Array, Workspace], Array],
    least: int,
) -> Array:
    """Fill an array as `Backend.fill` does, on threads that are known to round to nearest."""

    def checked(block: Piece, target: Array, workspace: Workspace) -> Array:
        check_rounding()
        return compute(block, target, workspace)

    return backend.fill(out, cut, checked, least)


def reduce_planes(
    backend: Backend,
    array: Array,
    count: int,
    reduce: Callable[[Index], list[Array]],
    element_bytes: int = BYTES,
) -> Array:
    """Reduce the cells of an array (N, C, *cells) to `count` float64 numbers for each sample and channel.

    `reduce` does so for one block, given as an index. A sample's channel may be cut into several blocks.

    Returns
    -------
    array, shape (blocks of a channel, count, N, C)
    """
    first, second, *cells = _cuts(tuple(array.shape), block_elements(backend, element_bytes))
    shape = (max(1, len(cells[0])) if cells else 1, count, *array.shape[:2])
    out = backend.zeros(shape, backend.empty((), array, dtype=backend.dtype("float64")))

    def compute(block: Index, target: Array, workspace: Workspace) -> Array:
        for i, value in enumerate(reduce(block)):
            target = backend.write(target, (i, ...), value)
        return target

    def indexed(numbers: tuple[Range, Range, int]) -> tuple[Index, Index]:
        sample, channel, number = slice(*numbers[0]), slice(*numbers[1]), numbers[2]
        block = sample, channel, *(slice(*some[number]) for some in cells), *(ALL,) * (array.ndim - 3)
        return (number, ALL, sample, channel), block

    cuts = Made(Product(first, second, range(len(cells[0]) if cells else 1)), indexed)
    return fill(backend, out, cuts, compute, least_blocks(backend, tuple(array.shape)))
