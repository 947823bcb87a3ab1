"""Complex convolutions as real ones: a complex channel is two real ones, its real and its imaginary part.

A product of complex numbers is four products of real ones, (a + ib)(c + id) = (ac - bd) + i(ad + bc), with no sum that
cancels more than that of the formula itself.
"""

from __future__ import annotations

from dataclasses import replace

from ..backends import Array, Backend
from ..spec.geometry import Geometry


def in_parts(geometry: Geometry) -> Geometry:
    """Return the convolution of the parts of complex numbers."""
    return replace(geometry, in_channels=2 * geometry.in_channels, out_channels=2 * geometry.out_channels)


def filters_in_parts(backend: Backend, w: Array, *, adjoint: bool) -> Array:
    """Return filters (F, C, *K) as (2 F, 2 C, *K), which multiply parts of channels.

    The input gradient multiplies by the transposed matrix of the four numbers: of the adjoint filters, it is the one
    whose products are those of the filters themselves.
    """
    xp, real, imag = backend.xp, backend.xp.real(w), backend.xp.imag(w)
    imag = -imag if adjoint else imag
    rows = [xp.stack(row, axis=2) for row in ([real, -imag], [imag, real])]
    both = xp.stack(rows, axis=1)
    return xp.reshape(both, (2 * w.shape[0], 2 * w.shape[1], *w.shape[2:]))


def grads_of_parts(backend: Backend, sums: Array) -> Array:
    """Return gradients of filters (F, C, *K) of the sums (2 F, 2 C, *K) of each part of one with each of the other."""
    filters, channels, *kernel = sums.shape
    pairs = backend.xp.reshape(sums, (filters // 2, 2, channels // 2, 2, *kernel))
    real = pairs[:, 0, :, 0, ...] - pairs[:, 1, :, 1, ...]
    return backend.complex(real, pairs[:, 0, :, 1, ...] + pairs[:, 1, :, 0, ...])
