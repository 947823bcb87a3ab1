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
LEAST_BYTES = 1 << 15
"""Blocks that are only reduced take at least so many bytes: to start smaller ones takes longer than to read them."""
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
    combine: Callable[..., Array],
    element_bytes: int = BYTES,
) -> Array:
    """Reduce the cells of an array (N, C, *cells) to `count` float64 numbers for each sample and channel.

    `reduce` does so for one block, given as an index. A sample's channel may be cut into several blocks, whose numbers
    `combine` reduces along its argument `axis`: those of as many blocks at once as take the memory of one.

    Returns
    -------
    array, shape (count, N, C)
    """
    elements = max(block_elements(backend, element_bytes), LEAST_BYTES // element_bytes)
    first, second, *cells = _cuts(tuple(array.shape), elements)
    numbers, of_a_block = range(len(cells[0]) if cells else 1), (count, *array.shape[:2])
    like = backend.empty((), array, dtype=backend.dtype("float64"))
    at_once = max(1, elements * element_bytes // max(1, 8 * math.prod(of_a_block)))

    def compute(block: Index, target: Array, workspace: Workspace) -> Array:
        for i, value in enumerate(reduce(block)):
            target = backend.write(target, (i, ...), value)
        return target

    def indexed(cut: tuple[Range, Range, int]) -> tuple[Index, Index]:
        sample, channel, number = slice(*cut[0]), slice(*cut[1]), cut[2]
        block = sample, channel, *(slice(*some[number]) for some in cells), *(ALL,) * (array.ndim - 3)
        return (number % at_once, ALL, sample, channel), block

    least, total = least_blocks(backend, tuple(array.shape)), None
    for start in range(0, max(1, len(numbers)), at_once):
        some = numbers[start : start + at_once]
        out = backend.zeros((max(1, len(some)), *of_a_block), like)
        out = combine(fill(backend, out, Made(Product(first, second, some), indexed), compute, least), axis=0)
        total = out if total is None else combine(backend.xp.stack([total, out]), axis=0)
    return total
