"""What an input gradient needs to be computed as the forward product of the mirrored convolution."""

from __future__ import annotations

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from .budget import Budget


def mirrored(geometry: Geometry, backend: Backend, w: Array) -> Array:
    """Return the filters of the mirrored convolution: flipped, with input channels in the place of filters."""
    xp, shape = backend.xp, geometry.unstrided.mirrored.w_shape
    if geometry.groups > 1:
        w = xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, *geometry.kernel))
    first = w.ndim - geometry.dims
    order = (*range(first - 2), first - 1, first - 2, *range(first, w.ndim))
    flipped = xp.permute_dims(backend.backwards(w, geometry.dims), order)
    # This is a copy, because BLAS does not accept rows in reverse order.
    flipped = backend.write(backend.empty(tuple(flipped.shape), like=w), (...,), flipped)
    return xp.reshape(flipped, shape) if geometry.groups > 1 else flipped


def beside_filters(geometry: Geometry, budget: Budget) -> Budget:
    """Return the budget of the mirrored convolution: less workspace, by the copy of the filters."""
    return budget._replace(workspace_elements=max(1, budget.workspace_elements - geometry.weights))
