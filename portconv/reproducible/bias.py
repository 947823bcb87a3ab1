"""Add a bias to results that are rounded: one addition of their dtype, without subnormal numbers."""

from __future__ import annotations

from ..backends import Array, Backend
from ..spec.dtypes import DIGITS, HALVES, LEAST_NORMAL, real, zeroed_below
from .magnitudes import join_parts, parts_of


def keeps_normal(backend: Backend, bias: Array, dtype: str) -> bool:
    """Return whether no sum of a result and this bias is subnormal or nan, where the results are zero or normal.

    So it is where the bias has the dtype of the result, is finite, and is zero or far above the smallest normal number.
    """
    if backend.dtype_name(bias.dtype) != dtype:
        return False
    xp, size = backend.xp, backend.xp.abs(bias)
    far = 2.0 ** (LEAST_NORMAL[dtype] + DIGITS[dtype] + 2)
    return backend.sure(xp.isfinite(size) & ((size == 0) | (size >= far)))


def addend(backend: Backend, bias: Array | None, out: Array) -> Array:
    """Return what is added to `out` (N, F, ...): a bias that `keeps_normal`, or zeros, which make -0 to +0."""
    values = backend.zeros((out.shape[1],), out) if bias is None else backend.astype(bias, out.dtype) + 0.0
    return backend.xp.reshape(values, (1, -1, *(1,) * (out.ndim - 2)))


def add_bias(backend: Backend, value: Array, bias: Array, dtype: str) -> Array:
    """Add any bias (F,) to a result (N, F, ...) of `dtype`, in one addition of that dtype."""
    real_dtype = real(dtype)
    wide = backend.dtype("float32" if real_dtype in HALVES else real_dtype)
    xp, sums = backend.xp, []
    bias_parts = parts_of(backend, bias)
    for i, part in enumerate(parts_of(backend, value)):
        if i >= len(bias_parts):
            sums.append(part)
            continue
        least = zeroed_below(backend.dtype_name(bias.dtype), dtype)
        added = backend.astype(bias_parts[i], backend.dtype("float64"))
        added = backend.astype(xp.where(xp.abs(added) < least, xp.zeros_like(added), added), wide)
        # A sum of two half precision numbers in float32 is rounded to half precision as the exact sum would be.
        total = backend.astype(part, wide) + xp.reshape(added, (1, -1, *(1,) * (value.ndim - 2)))
        sums.append(_canonical(backend, backend.astype(total, backend.dtype(real_dtype)), real_dtype))
    return join_parts(backend, sums, dtype)


def _canonical(backend: Backend, value: Array, real_dtype: str) -> Array:
    """Replace subnormal numbers and -0 by +0, and every nan by one and the same."""
    xp, device = backend.xp, backend.device_of(value)
    wide = backend.astype(value, backend.dtype("float64"))
    value = xp.where(xp.abs(wide) < 2.0 ** LEAST_NORMAL[real_dtype], xp.zeros_like(value), value)
    return xp.where(xp.isnan(wide), backend.asarray(float("nan"), value.dtype, device), value)
