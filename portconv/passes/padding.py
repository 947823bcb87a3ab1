"""Padding that is not of zeros: filled in from the input before a product, and folded back on to it after.

Reflect, symmetric, replicate (NumPy's edge) and circular (NumPy's wrap) repeat the input as often as the padding asks
for; reflect and symmetric mirror it in turn, the latter with the cell at the edge. Constant repeats one number, which
has no gradient. Dimensions are filled one after the other, each over the whole length of those before it, so
that corners have the right cells. The fold is the adjoint of that, in reverse order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.ranges import ALL, Index, Range
from ..spec.remembered import remembered


class Piece(NamedTuple):
    """Cells of the padding of one dimension, and the cells of the padded input that they repeat.

    The source is filled before the cells. `flipped` cells repeat it in reverse order; a source of a single cell fills
    all of them, and one of no cell stands for the constant.
    """

    cells: Range
    source: Range
    flipped: bool


@remembered(len)
def pieces(mode: str, size: int, before: int, after: int) -> tuple[Piece, ...]:
    """Cut the padding of one dimension into pieces, each as long as what is filled before it allows."""
    filled = before, before + size
    if mode in ("replicate", "constant") or size == 1:
        sides = ((0, before, before), (filled[1], filled[1] + after, filled[1] - 1))
        return tuple(Piece((lo, hi), (cell, cell + (mode != "constant")), False) for lo, hi, cell in sides if lo < hi)
    period = _period(mode, size)
    in_order = []
    while filled[1] < before + size + after:
        in_order.append(_piece_after(filled, size, period, before + size + after))
        filled = filled[0], in_order[-1].cells[1]
    while filled[0] > 0:
        in_order.append(_piece_before(filled, size, period))
        filled = in_order[-1].cells[0], filled[1]
    return tuple(in_order)


def _period(mode: str, size: int) -> int:
    """Return after how many cells an input repeats itself: a mirrored one once it has been mirrored once."""
    return size if mode == "circular" else 2 * (size - (mode == "reflect"))


def _piece_after(filled: Range, size: int, period: int, total: int) -> Piece:
    """Return the next piece after the cells that are filled: mirrored, or whole periods again."""
    start, end = filled
    if end - start < period:
        stop = end - size + period // 2
        count = min(period // 2, total - end)
        return Piece((end, end + count), (stop - count, stop), True)
    shift = (end - start) // period * period
    count = min(shift, total - end)
    return Piece((end, end + count), (end - shift, end - shift + count), False)


def _piece_before(filled: Range, size: int, period: int) -> Piece:
    """Return the next piece before the cells that are filled."""
    start, end = filled
    if end - start < period:
        first = start + size - period // 2
        count = min(period // 2, start)
        return Piece((start - count, start), (first, first + count), True)
    shift = (end - start) // period * period
    count = min(shift, start)
    return Piece((start - count, start), (start - count + shift, start + shift), False)


def extend(geometry: Geometry, backend: Backend, x: Array) -> Array:
    """Fill in the padding of an input (N, C, *S)."""
    if geometry.extended is geometry:
        return x
    out = backend.empty((*x.shape[:2], *geometry.padded), like=x, last=geometry.channels_last)
    out = backend.write(out, _inside(geometry, 0), x)
    for dim in range(geometry.dims):
        for piece in pieces(geometry.mode, geometry.size[dim], geometry.before[dim], geometry.after[dim]):
            values = _values(geometry, backend, out[_at(geometry, dim, piece.source)], dim, piece)
            out = backend.write(out, _at(geometry, dim, piece.cells), values)
    return out


def filled_rows(geometry: Geometry, backend: Backend, x: Array, dim: int, rows: Range) -> Array:
    """Return some rows along a dimension of the input (N, C, *S), whose rows are counted with those of the padding."""
    lead = (ALL,) * (2 + dim)
    shape = (*x.shape[: 2 + dim], rows[1] - rows[0], *x.shape[3 + dim :])
    out = backend.empty(shape, like=x, last=geometry.channels_last)
    before = geometry.before[dim]
    for piece in sources(geometry.mode, geometry.size[dim], (rows[0] - before, rows[1] - before)):
        values = _values(geometry, backend, x[(*lead, slice(*piece.source), ...)], dim, piece)
        out = backend.write(out, (*lead, slice(*piece.cells), ...), values)
    return out


def sources(mode: str, size: int, cells: Range) -> Iterator[Piece]:
    """Cut cells, which are counted from the first of the input, into pieces that each repeat cells of the input."""
    first, end = cells
    start, period = first, _period(mode, size)
    half = period if mode == "circular" else period // 2
    while start < end:
        if mode in ("replicate", "constant") or size == 1:
            stop, cell, flipped = (
                (0 if start < 0 else size if start < size else end),
                min(max(start, 0), size - 1),
                False,
            )
        elif start % period < half:
            cell, flipped = start % period, False
            stop = start + half - cell
        else:
            stop, cell, flipped = start + period - start % period, period - start % period - (half == size), True
        stop = min(stop, end)
        count = stop - start
        if not 0 <= start < size and (mode in ("replicate", "constant") or size == 1):
            count = int(mode != "constant")
        source = (cell + 1 - count, cell + 1) if flipped else (cell, cell + count)
        yield Piece((start - first, stop - first), source, flipped)
        start = stop


def repeated(mode: str, size: int, cells: Range) -> list[int]:
    """Return the cell of the input that each of these cells repeats, counted as in `sources`."""
    found: list[int] = []
    for piece in sources(mode, size, cells):
        source = range(*piece.source)[:: -1 if piece.flipped else 1]
        found += source if len(source) > 1 else [*source] * (piece.cells[1] - piece.cells[0])
    return found


def fold(geometry: Geometry, backend: Backend, grad: Array) -> Array:
    """Add the gradient of a padded input up to that of the input: the adjoint of `extend`.

    The gradient that is given may be overwritten.
    """
    if geometry.extended is geometry:
        return grad
    dims = () if geometry.mode == "constant" else reversed(range(geometry.dims))
    for dim in dims:
        # In reverse order, because some cells were filled from cells that had been filled before.
        for piece in reversed(pieces(geometry.mode, geometry.size[dim], geometry.before[dim], geometry.after[dim])):
            values = _values(geometry, backend, grad[_at(geometry, dim, piece.cells)], dim, piece)
            if piece.source[1] - piece.source[0] == 1:
                values = backend.total(values, 2 + dim, keepdims=True)
            grad = backend.add(grad, _at(geometry, dim, piece.source), values)
    out = backend.empty((*grad.shape[:2], *geometry.size), like=grad, last=geometry.channels_last)
    return backend.write(out, (...,), grad[_inside(geometry, 0)])


def overlap(geometry: Geometry) -> int:
    """Return how many cells of the padded input one cell of the input fills, at most."""
    most = 1
    if geometry.linear.extended is not geometry:
        for before, after in zip(geometry.before, geometry.after, strict=True):
            most *= before + after + 1
    return most


def most_terms(geometry: Geometry, kind: str) -> int:
    """Count the products that are added up to one element of a result, with those of the padding that is folded back.

    Products with the zeros between the cells of a strided input gradient count, too.
    """
    if kind == Kind.INPUT_GRAD:
        return geometry.group_out * geometry.taps * overlap(geometry)
    return geometry.terms(kind)


def _inside(geometry: Geometry, first: int) -> Index:
    """Return where the input lies in the padded input, along the dimensions from `first` on."""
    sides = zip(geometry.before, geometry.size, strict=True)
    inside = tuple(slice(lo, lo + size) for lo, size in sides)
    return (*(ALL,) * (2 + first), *inside[first:])


def _at(geometry: Geometry, dim: int, cells: Range) -> Index:
    """Return the index of cells of one dimension, of all cells before it and of the input's cells after it."""
    return (*(ALL,) * (2 + dim), slice(*cells), *_inside(geometry, dim + 1)[3 + dim :])


def _values(geometry: Geometry, backend: Backend, source: Array, dim: int, piece: Piece) -> Any:
    """Return what fills a piece of one dimension: its source, in reverse order where it is flipped, or the constant."""
    if piece.source[0] == piece.source[1]:
        return geometry.value
    return backend.xp.flip(source, axis=2 + dim) if piece.flipped else source
