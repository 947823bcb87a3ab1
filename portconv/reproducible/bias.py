"""A bias added to results that are rounded: one addition of their dtype, without subnormal numbers."""

from __future__ import annotations

from ..backends import Array, Backend
from ..spec.dtypes import DIGITS, HALVES, LEAST_NORMAL, PARTS_OF, real
from .magnitudes import parts_of


def usual(backend: Backend, bias: Array, made: str) -> bool:
    """Whether sums with a bias are neither subnormal nor nan: it is finite, and far from the smallest normal number."""
    if backend.dtype_name(bias.dtype) != made:
        return False
    xp, size = backend.xp, backend.xp.abs(bias)
    far = 2.0 ** (LEAST_NORMAL[made] + DIGITS[made] + 2)
    return backend.sure(xp.isfinite(size) & ((size == 0) | (size >= far)))


def addend(backend: Backend, bias: Array | None, out: Array) -> Array:
    """What is added to a usual result such as `out` (N, F, ...): where there is no bias, zeros make zeros positive."""
    more = backend.zeros((out.shape[1],), out) if bias is None else backend.astype(bias, out.dtype) + 0.0
    return backend.xp.reshape(more, (1, -1, *(1,) * (out.ndim - 2)))


def biased(backend: Backend, value: Array, bias: Array, made: str) -> Array:
    """Add a bias (F,) to a result (N, F, ...), in one addition of its dtype."""
    own = real(made)
    wide = backend.dtype("float32" if own in HALVES else own)
    xp, found = backend.xp, []
    parts = parts_of(backend, bias)
    for i, part in enumerate(parts_of(backend, value)):
        if i >= len(parts):
            found.append(part)
            continue
        low = 2.0 ** LEAST_NORMAL[real(backend.dtype_name(bias.dtype))]
        more = backend.astype(parts[i], backend.dtype("float64"))
        more = backend.astype(xp.where(xp.abs(more) < low, xp.zeros_like(more), more), wide)
        # A sum of two halves in float32 is rounded to a half as the exact one would be.
        total = backend.astype(part, wide) + xp.reshape(more, (1, -1, *(1,) * (value.ndim - 2)))
        found.append(_canonical(backend, backend.astype(total, backend.dtype(own)), own))
    return found[0] if made not in PARTS_OF else backend.complex(*found)


def _canonical(backend: Backend, value: Array, name: str) -> Array:
    """Subnormal numbers made zero, zeros positive, and one nan of all."""
    xp, device = backend.xp, backend.device_of(value)
    wide = backend.astype(value, backend.dtype("float64"))
    value = xp.where(xp.abs(wide) < 2.0 ** LEAST_NORMAL[name], xp.zeros_like(value), value)
    return xp.where(xp.isnan(wide), backend.asarray(float("nan"), value.dtype, device), value)
