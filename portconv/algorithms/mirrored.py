"""The input gradient as the forward product of the mirrored convolution."""

from __future__ import annotations

from collections.abc import Callable

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from .budget import Limits, Work


def mirrored(geometry: Geometry, backend: Backend, w: Array) -> Array:
    """The filters of the mirrored convolution: flipped, and input channels in the place of filters."""
    xp = backend.xp
    w = xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, *geometry.kernel))
    kernel = tuple(range(3, w.ndim))
    turned = xp.permute_dims(xp.flip(w, axis=kernel), (0, 2, 1, *kernel))
    # A copy, because BLAS takes no rows that run backwards.
    turned = backend.write(backend.empty(turned.shape, like=w), (...,), turned)
    return xp.reshape(turned, geometry.unstrided.mirrored.w_shape)


def beside_filters(geometry: Geometry, bounds: Limits) -> Limits:
    """What bounds leave to the mirrored convolution, of a copy of the filters."""
    return bounds._replace(room=max(1, bounds.room - geometry.weights))


def of_mirrored(work: Callable[[Geometry, str, Limits], Work], geometry: Geometry, bounds: Limits) -> Work:
    """Say what an input gradient takes as the forward product of the mirrored convolution, of a copy of the filters."""
    found = work(geometry.mirrored, "forward", beside_filters(geometry, bounds))
    return found._replace(elements=found.elements + geometry.weights, need=found.need + geometry.weights)
