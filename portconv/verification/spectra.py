"""How far products of spectra can be off by rounding alone: norms of whole planes, as a transform mixes all its cells.

The bound is derived in docs/accuracy.md. It asks nothing of how `fft` cuts its tiles but that a transform has no more
points than the first power of 2 beyond the padded input, and that a tile but the last has as many outputs as a kernel
has cells.

Axes: N samples, G groups, c channels and f filters of a group, and one for each dimension.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import backends
from ..algorithms.fft import transform_terms
from ..passes.padding import extend, overlap
from ..spec.geometry import Geometry
from .tiles import Doubles, Sums


def spectral(geometry: Geometry, x: Any, w: Any, b: Any, dout: Any) -> dict[str, Sums]:
    """Bound what spectra make of numbers (N, C, *cells), in the form of sums: out, dx and dw; `b` may be None."""
    own, mirror = geometry.extended, geometry.extended.mirrored
    group_in, group_out = own.group_in, own.group_out
    inputs = _planes(extend(geometry, backends.get("numpy"), x), (own.batch, own.groups, group_in))
    grads = _planes(dout, (own.batch, own.groups, group_out))
    taps = _planes(w, (own.groups, group_out, group_in))
    sizes, many, most = _sums(taps), _sums(grads), overlap(geometry)
    out = _whole(np.einsum("ngc,gfc->ngf", _norms(inputs), sizes), own.out_shape)
    if b is not None:
        out = out + np.reshape(np.abs(b), (-1, *(1,) * own.dims))
    # Of a padding that is filled in, the gradient is added up on to the cells that it was filled from.
    dx = most * _whole(np.einsum("ngf,gfc->ngc", _norms(grads), sizes), geometry.x_shape)
    dw = _whole(np.einsum("ngf,ngc->gfc", many, _norms(inputs)), own.w_shape)
    tiles = own.batch * math.prod(-(-n // extent) for n, extent in zip(own.out, own.extent, strict=True))
    return {
        "out": Sums(transform_terms(own) + 3 * group_in + (b is not None), out),
        "dx": Sums(transform_terms(mirror) + 3 * group_out + (most if most > 1 else 0), dx),
        "dw": Sums(transform_terms(own) + 3 * tiles, dw),
    }


def _planes(array: Any, shape: tuple[int, ...]) -> Doubles:
    """Magnitudes with all cells, or all taps, along one axis."""
    return np.abs(np.reshape(array, (*shape, math.prod(array.shape[2:]))))


def _norms(planes: Doubles) -> Doubles:
    return np.asarray(np.sqrt(np.sum(planes**2, axis=-1)))


def _sums(planes: Doubles) -> Doubles:
    return np.asarray(np.sum(planes, axis=-1))


def _whole(norms: Doubles, shape: tuple[int, ...]) -> Doubles:
    """A bound of each plane for each of its cells."""
    return np.broadcast_to(np.reshape(norms, (*shape[:2], *(1,) * (len(shape) - 2))), shape)
