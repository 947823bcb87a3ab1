"""Padding that is not of zeros: filled in from the input before a convolution, and folded back on to it after.

With NumPy's meaning of reflect, edge (replicate) and wrap (circular): the input is repeated, mirrored or not, as often
as the padding asks for. Dimensions are filled one after the other, each over the whole length of those before it, so
that corners come out as they should; the fold is the adjoint of that, in reverse order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Index, Range


class Piece(NamedTuple):
    """Cells of the padding of one dimension, and the cells of the padded input, filled before them, that they repeat.

    `flipped` in reverse order; a single cell fills them all.
    """

    cells: Range
    source: Range
    flipped: bool


@lru_cache(maxsize=1024)
def pieces(mode: str, size: int, before: int, after: int) -> tuple[Piece, ...]:
    """Cut the padding of one dimension into pieces, each as long as what is filled before it allows."""
    found = []
    start, end, total = before, before + size, before + size + after
    if mode == "replicate" or size == 1:
        sides = ((0, start, start), (end, total, end - 1))
        return tuple(Piece((lo, hi), (cell, cell + 1), False) for lo, hi, cell in sides if lo < hi)
    # A reflected input repeats itself once it has been mirrored once.
    period = size if mode == "circular" else 2 * (size - 1)
    while end < total:
        if end - start < period:
            count = min(size - 1, total - end)
            source = (end - 1 - count, end - 1)
        else:
            shift = (end - start) // period * period
            count = min(shift, total - end)
            source = (end - shift, end - shift + count)
        found.append(Piece((end, end + count), source, end - start < period))
        end += count
    while start > 0:
        if end - start < period:
            count = min(size - 1, start)
            source = (start + 1, start + 1 + count)
        else:
            shift = (end - start) // period * period
            count = min(shift, start)
            source = (start - count + shift, start + shift)
        found.append(Piece((start - count, start), source, end - start < period))
        start -= count
    return tuple(found)


def extend(geometry: Geometry, backend: Backend, x: Array) -> Array:
    """Fill in the padding of an input (N, C, *S)."""
    if geometry.extended is geometry:
        return x
    out = backend.empty((*x.shape[:2], *geometry.padded), like=x, last=geometry.channels_last)
    out = backend.write(out, _inside(geometry, 0), x)
    for dim in range(geometry.dims):
        for piece in pieces(geometry.mode, geometry.size[dim], geometry.before[dim], geometry.after[dim]):
            values = out[_at(geometry, dim, piece.source)]
            out = backend.write(out, _at(geometry, dim, piece.cells), _turned(backend, values, dim, piece))
    return out


def fold(geometry: Geometry, backend: Backend, grad: Array) -> Array:
    """Add the gradient of a padded input, not used elsewhere, up to that of the input; the adjoint of `extend`."""
    if geometry.extended is geometry:
        return grad
    for dim in reversed(range(geometry.dims)):
        # Backwards, as what filled some cells may have been filled from others.
        for piece in reversed(pieces(geometry.mode, geometry.size[dim], geometry.before[dim], geometry.after[dim])):
            values = _turned(backend, grad[_at(geometry, dim, piece.cells)], dim, piece)
            if piece.source[1] - piece.source[0] == 1:
                values = backend.xp.sum(values, axis=2 + dim, keepdims=True, dtype=grad.dtype)
            grad = backend.add(grad, _at(geometry, dim, piece.source), values)
    out = backend.empty((*grad.shape[:2], *geometry.size), like=grad, last=geometry.channels_last)
    return backend.write(out, (...,), grad[_inside(geometry, 0)])


def overlap(geometry: Geometry) -> int:
    """How many cells of the padded input one cell of the input may fill, at most."""
    most = 1
    if geometry.extended is not geometry:
        for before, after in zip(geometry.before, geometry.after, strict=True):
            most *= before + after + 1
    return most


def _inside(geometry: Geometry, first: int) -> Index:
    """Where the input lies in its padded self, along the dimensions from `first` on."""
    sides = zip(geometry.before, geometry.size, strict=True)
    inside = tuple(slice(lo, lo + size) for lo, size in sides)
    return (*(ALL,) * (2 + first), *inside[first:])


def _at(geometry: Geometry, dim: int, cells: Range) -> Index:
    """Cells of one dimension, over the whole of those before it and the inside of those after it."""
    return (*(ALL,) * (2 + dim), slice(*cells), *_inside(geometry, dim + 1)[3 + dim :])


def _turned(backend: Backend, values: Array, dim: int, piece: Piece) -> Array:
    return backend.xp.flip(values, axis=2 + dim) if piece.flipped else values
