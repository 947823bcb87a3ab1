"""What bounds the sums of magnitudes in Winograd's tiles, and so the rounding errors of `winograd` and `compiled`.

Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), section 4.1: F(2, 3) along each
dimension of kernel 3, with the absolute values of the transforms.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from .algorithm import PlainProduct

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
