"""Casts of operands and results: conjugates, real parts, wider sums, and a bias."""

from __future__ import annotations

from collections.abc import Callable

from ..backends import Array, Backend
from ..spec.dtypes import HALVES, Dtype

Product = Callable[[Array, Array, Array | None], Array]
"""Of two operands of one dtype, and a bias to add to the result, or None."""


def computed_in(backend: Backend, dtype: Dtype, slices: bool = True) -> Dtype:
    """Return the dtype that products are computed in: of integers the widest that slices may be multiplied in."""
    if dtype.name in HALVES:
        return Dtype(backend.dtype("float32"), "float32", dtype.kind)
    if dtype.kind == "integral" and slices and hasattr(backend.xp, "float64"):
        return Dtype(backend.dtype("float64"), dtype.name, dtype.kind)
    return dtype


def conjugate(backend: Backend, array: Array) -> Array:
    """The complex conjugate of an array; the array itself where it is real."""
    return backend.xp.conj(array) if backend.dtype_name(array.dtype).startswith("complex") else array


def narrow(backend: Backend, array: Array, dtype: object) -> Array:
    """`array` in `dtype`, native; of complex numbers where that is real, the real part."""
    dtype = backend.native(dtype)
    if array.dtype == dtype:
        return array
    complexes = [backend.dtype_name(given).startswith("complex") for given in (array.dtype, dtype)]
    return backend.astype(backend.xp.real(array) if complexes == [True, False] else array, dtype)


def summable(backend: Backend, dtype: Dtype) -> object:
    """Return the dtype to add up elements of `dtype` in, so that a result is rounded once, and integers wrap."""
    if dtype.name in HALVES:
        return backend.dtype("float32")
    return backend.dtype(dtype.name.removeprefix("u")) if dtype.kind == "integral" else dtype.dtype


def with_bias(backend: Backend, out: Array, bias: Array | None) -> Array:
    """`out` (N, F, ...), not used elsewhere, with a bias (F,) added."""
    if bias is None:
        return out
    return backend.add(out, (...,), backend.xp.reshape(bias, (1, -1, *(1,) * (out.ndim - 2))))
