"""Casts of operands and results: conjugates, real parts, wider sums, and a bias."""

from __future__ import annotations

from ..backends import Array, Backend
from ..spec.dtypes import HALVES, Dtype


def conjugate(backend: Backend, array: Array) -> Array:
    """Return the complex conjugate of an array; of a real one the array itself."""
    return backend.xp.conj(array) if backend.dtype_name(array.dtype).startswith("complex") else array


def narrow(backend: Backend, array: Array, dtype: object) -> Array:
    """Return an array in a dtype, in the machine's byte order; of complex numbers in a real dtype, the real part."""
    dtype = backend.machine_order(dtype)
    if array.dtype == dtype:
        return array
    complexes = [backend.dtype_name(each).startswith("complex") for each in (array.dtype, dtype)]
    return backend.astype(backend.xp.real(array) if complexes == [True, False] else array, dtype)


def summable(backend: Backend, dtype: Dtype) -> object:
    """Return the dtype to add up elements in, so that a sum is rounded once, and integers wrap."""
    if dtype.name in HALVES:
        return backend.dtype("float32")
    return backend.dtype(dtype.name.removeprefix("u")) if dtype.kind == "integral" else dtype.dtype


def with_bias(backend: Backend, out: Array, bias: Array | None) -> Array:
    """Add a bias (F,) to a result (N, F, ...), which nobody else uses and may be overwritten."""
    if bias is None:
        return out
    return backend.add(out, (...,), backend.xp.reshape(bias, (1, -1, *(1,) * (out.ndim - 2))))
