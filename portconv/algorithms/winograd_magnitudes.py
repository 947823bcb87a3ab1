"""The sums of magnitudes in Winograd's tiles, which bound the rounding errors of `winograd`.

Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), section 4.1: F(2, 3) along each
dimension of kernel 3, with the absolute values of the transforms. This module computes all tiles at once and uses no
function of the algorithm, so that an error in the algorithm cannot change the bound.

Axes: one axis of places for each dimension of kernel 3, the last dimension first; N samples, G groups, c channels and f
filters of a group, and cells, taps or tiles for each dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from .algorithm import PlainProduct

Matrix = tuple[tuple[float, ...], ...]

# The transforms B^T, G and A^T, of absolute values.
INPUT = ((1, 0, 1, 0), (0, 1, 1, 0), (0, 1, 1, 0), (0, 1, 0, 1))
FILTER = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (0, 0, 1))
OUTPUT = ((1, 1, 1, 0), (0, 1, 1, 1))
CELL_WEIGHTS = (2.0, 1.0, 2.0)
"""Upper bounds of how often |A^T| |B^T| counts each cell of an output's window, along a dimension of kernel 3."""


def by_plain_sums(
    kind: Kind,
    geometry: Geometry,
    backend: Backend,
    product: PlainProduct,
    operands: tuple[Array, Array],
    axes: Sequence[int],
) -> Array:
    """Bound |A^T| ((|G| |w|) * (|B^T| |x|)), or its adjoint, where the dimensions `axes` are transformed.

    The plain sums are those with a kernel of (2, 1, 2) along each of these dimensions, times the sum of a filter's taps
    along them. A kernel of more taps consists of parts of 3 along a dimension, whose sums are added. The last begins
    early enough to lie in the kernel, and the taps that the part before has count as 0 in it.
    """
    (a, b), xp, along = operands, backend.xp, tuple(2 + axis for axis in axes)
    if kind != Kind.WEIGHT_GRAD:
        for axis in along:
            b = _of_parts(backend, b, axis)
        return product(kind, geometry, a, b * 1.0)
    # The bound of the gradient of the filters is the adjoint of that sum: all taps of a filter have one bound.
    row, taps = backend.asarray(CELL_WEIGHTS, b.dtype, backend.device_of(b)), 1.0
    for axis in axes:
        taps = taps * xp.reshape(row, (1, 1, *(3 if at == axis else 1 for at in range(geometry.dims))))
    sums = xp.sum(product(kind, geometry, a, b) * taps, axis=along, keepdims=True)
    return xp.broadcast_to(sums, geometry.w_shape) * 1.0


def _of_parts(backend: Backend, w: Array, axis: int) -> Array:
    """Return the kernel of the plain sums along one axis of the magnitudes of filters."""
    xp, kernel, ahead = backend.xp, w.shape[axis], (slice(None),) * axis
    cells: list[Array] = [0.0] * kernel
    for first in range(0, kernel, 3):
        start = min(first, kernel - 3)
        total = xp.sum(w[(*ahead, slice(first, start + 3), ...)], axis=axis, keepdims=True)
        for cell, weight in enumerate(CELL_WEIGHTS, start):
            cells[cell] = cells[cell] + weight * total
    return xp.concat(cells, axis=axis)


def of_outputs(geometry: Geometry, backend: Backend, x: Array, w: Array) -> Array:
    """Return |A^T| ((|G| w) * (|B^T| x)), summed over channels, of magnitudes `x` and `w`."""
    xp, counts = backend.xp, tile_counts(geometry)
    inputs, filters = _inputs(geometry, backend, x), _filters(geometry, backend, w)
    places = (4,) * geometry.kernel.count(3)
    inputs = xp.reshape(
        inputs, (math.prod(places), geometry.batch, geometry.groups, geometry.group_in, math.prod(counts))
    )
    sums = xp.matmul(filters[:, None, ...], inputs)
    sums = xp.reshape(sums, (*places, geometry.batch, geometry.groups, geometry.group_out, *counts))
    for dim in reversed(_dims(geometry)):
        axis = sums.ndim - geometry.dims + dim - 1
        both = [_combined(row, [sums[place, ...] for place in range(4)]) for row in OUTPUT]
        sums = xp.stack(both, axis=axis + 1)
        sums = xp.reshape(sums, (*sums.shape[:axis], 2 * sums.shape[axis], *sums.shape[axis + 2 :]))
    sums = sums[(..., *(slice(n) for n in geometry.out))]
    return xp.reshape(sums, geometry.out_shape)


def of_weights(geometry: Geometry, backend: Backend, dout: Array, x: Array) -> Array:
    """Return |G^T| ((|A| dout) * (|B^T| x)), summed over tiles, of magnitudes `dout` and `x`."""
    xp, counts = backend.xp, tile_counts(geometry)
    sizes = tuple(2 * n if kernel == 3 else n for n, kernel in zip(counts, geometry.kernel, strict=True))
    grads = backend.zeros((geometry.batch, geometry.groups, geometry.group_out, *sizes), like=dout)
    values = xp.reshape(dout, (*grads.shape[:3], *geometry.out))
    grads = backend.write(grads, (..., *(slice(n) for n in geometry.out)), values)
    for dim in _dims(geometry):
        parts = [_every_other(grads, grads.ndim - geometry.dims + dim, start, counts[dim]) for start in (0, 1)]
        grads = xp.stack([_combined(row, parts) for row in zip(*OUTPUT, strict=True)])
    inputs = _inputs(geometry, backend, x)
    places, sides = (4,) * geometry.kernel.count(3), []
    for array, channels in ((grads, geometry.group_out), (inputs, geometry.group_in)):
        array = xp.reshape(array, (math.prod(places), geometry.batch, geometry.groups, channels, math.prod(counts)))
        array = xp.permute_dims(array, (0, 2, 3, 1, 4))
        sides.append(xp.reshape(array, (*array.shape[:3], array.shape[3] * array.shape[4])))
    sums = xp.matmul(sides[0], xp.permute_dims(sides[1], (0, 1, 3, 2)))
    sums = xp.reshape(sums, (*places, *sums.shape[1:]))
    for _ in _dims(geometry):
        taps = [_combined(row, [sums[place, ...] for place in range(4)]) for row in zip(*FILTER, strict=True)]
        sums = xp.stack(taps, axis=-1)
    # The places of the last dimension are the first axis, so its taps come first too.
    order = (*range(3), *reversed(range(3, sums.ndim)))
    return xp.reshape(xp.permute_dims(sums, order), geometry.w_shape)


def tile_counts(geometry: Geometry) -> tuple[int, ...]:
    """Return the number of tiles along each dimension: tiles of two outputs, or of one if the kernel is 1."""
    return tuple(-(-n // 2) if kernel == 3 else n for n, kernel in zip(geometry.out, geometry.kernel, strict=True))


def _dims(geometry: Geometry) -> list[int]:
    """Return the dimensions of kernel 3."""
    return [dim for dim, kernel in enumerate(geometry.kernel) if kernel == 3]


def _inputs(geometry: Geometry, backend: Backend, x: Array) -> Array:
    """Return the transformed cells of all tiles: (*places, N, G, c, *T)."""
    counts = tile_counts(geometry)
    cells = _padded(geometry, backend, x)
    for dim in _dims(geometry):
        axis = cells.ndim - geometry.dims + dim
        parts = [_every_other(cells, axis, start, counts[dim]) for start in range(4)]
        cells = backend.xp.stack([_combined(row, parts) for row in INPUT])
    return cells


def _filters(geometry: Geometry, backend: Backend, w: Array) -> Array:
    """Return the transformed filters: (places, G, f, c)."""
    shape = (geometry.groups, geometry.group_out, geometry.group_in, *geometry.kernel)
    filters = backend.xp.reshape(w, shape)
    for dim in _dims(geometry):
        axis = filters.ndim - geometry.dims + dim
        parts = [filters[(*(slice(None),) * axis, slice(tap, tap + 1), ...)] for tap in range(3)]
        filters = backend.xp.stack([_combined(row, parts) for row in FILTER])
    return backend.xp.reshape(filters, (-1, *shape[:3]))


def _padded(geometry: Geometry, backend: Backend, x: Array) -> Array:
    """Return the input padded to all cells that tiles read: (N, G, c, *S)."""
    sizes = [2 * n + 2 if kernel == 3 else n for n, kernel in zip(tile_counts(geometry), geometry.kernel, strict=True)]
    cells = backend.xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
    targets, sources = [], []
    for lo, n, size in zip(geometry.before, geometry.size, sizes, strict=True):
        start, end = max(0, -lo), min(n, size - lo)
        sources.append(slice(start, max(start, end)))
        targets.append(slice(start + lo, start + lo + max(0, end - start)))
    padded = backend.zeros((*cells.shape[:3], *sizes), like=x)
    return backend.write(padded, (..., *targets), cells[(..., *sources)])


def _every_other(array: Array, axis: int, start: int, count: int) -> Array:
    """Return `count` elements of an axis, every second one from `start` on."""
    return array[(*(slice(None),) * axis, slice(start, start + 2 * count - 1, 2), ...)]


def _combined(row: tuple[float, ...], parts: list[Array]) -> Array:
    """Return the sum of parts, each multiplied by its number in the row of a matrix."""
    total: Array = None
    for factor, part in zip(row, parts, strict=True):
        if factor:
            total = part * float(factor) if total is None else total + part * float(factor)
    return total
