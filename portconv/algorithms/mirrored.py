"""The input gradient as the forward product of the mirrored convolution."""

from __future__ import annotations

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from .budget import Budget


def mirrored(geometry: Geometry, backend: Backend, w: Array) -> Array:
    """Return the filters of the mirrored convolution: flipped, with input channels in the place of filters."""
    xp = backend.xp
    w = xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, *geometry.kernel))
    kernel = tuple(range(3, w.ndim))
    flipped = xp.permute_dims(xp.flip(w, axis=kernel), (0, 2, 1, *kernel))
    # A copy, because BLAS takes no rows that run backwards.
    flipped = backend.write(backend.empty(flipped.shape, like=w), (...,), flipped)
    return xp.reshape(flipped, geometry.unstrided.mirrored.w_shape)


def beside_filters(geometry: Geometry, budget: Budget) -> Budget:
    """Return what a copy of the filters leaves of a budget to the mirrored convolution."""
    return budget._replace(workspace_elements=max(1, budget.workspace_elements - geometry.weights))
