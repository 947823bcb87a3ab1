"""Bounds on how far sums of products can be from the exact ones by rounding alone; docs/accuracy.md derives them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from typing import Any

import numpy as np

from .. import backends as registry
from ..backends import Array
from ..engine import call
from ..engine.gradients import ConvGrads, plans_of
from ..errors import ConvShapeError, ConvTypeError, ConvValueError
from ..spec import dtypes
from ..spec.dtypes import EPSILON, HALVES, KINDS, LEAST_NORMAL, real
from ..spec.operation import Role
from ..spec.options import Options
from ..verification import Case, Exact, exact
from ..verification.bounds import bounded_as
from ..verification.cases import Inputs
from .structures import Doubles, dtype_name, on_host


def gamma(terms: int, dtype: Any) -> float:
    """Bound the error of a sum of products, relative to the sum of their magnitudes: Higham's gamma.

    It is ``n u / (1 - n u)``, where ``u`` is the unit roundoff of the dtype, half its epsilon. It holds for any order
    of the additions, with or without fused multiply-adds. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd
    ed. (2002), section 3.1.

    Parameters
    ----------
    terms : int
        How many roundings a term meets at most: for a sum of `n` products, `n`.
    dtype : dtype or str
        A real floating-point dtype of any library, or its name.

    Returns
    -------
    float
        Infinite where there are so many terms that there is no bound.

    Raises
    ------
    ConvTypeError, ConvValueError
        If `dtype` is not real floating point, or `terms` is no int of at least 0.

    Examples
    --------
    >>> from portconv.testing import gamma
    >>> round(gamma(27, "float32") / 2.0**-24, 4)  # 27 roundings, and a little for their products
    27.0
    """
    name = dtype_name(dtype)
    if name not in EPSILON:
        raise ConvTypeError(f"dtype: got {name}, expected one of {', '.join(EPSILON)}")
    if isinstance(terms, bool) or not isinstance(terms, int):
        raise ConvTypeError(f"terms: got {type(terms).__name__}, expected an int")
    if terms < 0:
        raise ConvValueError(f"terms: got {terms}, expected 0 or more")
    return dtypes.gamma(terms, _unit(name))


def sum_tolerance(terms: int, dtype: Any, magnitude: Any) -> Doubles:
    """Bound how far sums of products can be from the exact ones.

    Parameters
    ----------
    terms : int
        How many products each sum has, or how many other terms that were each rounded once.
    dtype : dtype or str
        The dtype of the computation, of any library, or its name. float16 and bfloat16 are taken to be summed in
        float32 and rounded once; integers are exact.
    magnitude : array or float
        The sum of the absolute values of each sum's terms, computed in `dtype` or better, in an array of any library.

    Returns
    -------
    numpy.ndarray
        The bounds in float64, with the shape of `magnitude`. They ignore underflow, except in rounding to float16 or
        bfloat16.

    Raises
    ------
    ConvTypeError, ConvValueError
        If an argument is not as above.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv.testing import sum_tolerance
    >>> x = np.linspace(-1, 1, 1000, dtype="float32")
    >>> bool(abs(float(np.sum(x * x)) - np.sum(x.astype("float64") ** 2)) <= sum_tolerance(1000, x.dtype, 1000.0))
    True
    """
    name, sizes = dtype_name(dtype), np.abs(on_host(magnitude)).astype(np.float64)
    if name == "bool" or name.startswith(("int", "uint")):
        return np.zeros_like(sizes)
    real_name = real(name)
    computed = _computed_in(real_name)
    # A part of a complex product is two products, whose magnitudes add up to no more than that of the whole.
    relative = gamma(terms, computed) if real_name == name else math.sqrt(2) * gamma(2 * terms, computed)
    if real_name in HALVES:
        relative += _unit(real_name) * (1 + relative)
    if relative >= 1:
        return np.full_like(sizes, math.inf)
    # The magnitudes were themselves rounded, perhaps down.
    return np.asarray(sizes * (relative / (1 - relative)) + _underflow(real_name))


def conv_grads_tolerance(dout: Array, x: Array, w: Array, b: Array | None = None, **options: Any) -> ConvGrads[Any]:
    """Bound how far each element of a convolution's gradients can be from the exact one.

    This does for gradients what `portconv.error_bound` does for the output: the bounds are those of the algorithm that
    computes these arrays on their library. The sums are computed on the host by ``algorithm="direct"``, in float64,
    which is slow for large layers.

    Parameters
    ----------
    dout : array
        The gradient of the output.
    x, w, b, **options
        As for `portconv.conv`, of any library, on any device.

    Returns
    -------
    ConvGrads
        The bounds in host arrays of float64, in the form that `portconv.conv_backward` returns; `db` is None where `b`
        is. For complex numbers they bound the absolute value of the error. For integers, which are exact, they are 0.
        They ignore underflow, except in rounding to float16 or bfloat16.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As for `portconv.conv`, and if `dout` does not have the output's shape.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv.testing import conv_grads_tolerance
    >>> x, w, b = np.ones((1, 3, 8, 8), "float32"), np.ones((2, 3, 3, 3), "float32"), np.ones(2, "float32")
    >>> dx, dw, db = conv_grads_tolerance(np.ones((1, 2, 6, 6), "float32"), x, w, b, algorithm="gemm")
    >>> dx.shape, dw.shape, db.shape
    ((1, 3, 8, 8), (2, 3, 3, 3), (2,))
    >>> round(db[0] / 2.0**-24)  # sums of 36 ones
    1296
    """
    cache = call.convolution(x, w, b, Options(**options))
    dtype, precision = cache.operation.dtype, cache.operation.precision
    out_shape = cache.operation.shape(Role.OUT)
    if tuple(dout.shape) != out_shape:
        raise ConvShapeError(f"dout: got shape {tuple(dout.shape)}, expected {out_shape}")
    if KINDS[dtype] == "integral":
        return ConvGrads(*(None if a is None else np.zeros(tuple(a.shape)) for a in (x, w, b)))
    real_name = real(dtype)
    is_complex = real_name != dtype
    computed = real_name if precision == "reproducible" else _computed_in(real_name)
    truth = _exact(computed, is_complex, (x, w, b, dout), options)

    def reach(name: str, array: Array, algorithms: Iterable[str]) -> Doubles:
        bound = reduce(np.maximum, (truth[name].reach(computed, precision, algorithm) for algorithm in algorithms))
        final = real(dtype_name(array.dtype))
        if _unit(final) > _unit(computed):
            bound = bound + _unit(final) * (np.abs(truth[name].value) + bound) + _underflow(final)
        # A part of a complex sum has twice as many terms, for which gamma is less than 2 sqrt(2) times as large while
        # it is less than 0.29; and both parts together are off by at most sqrt(2) times as much as one.
        return 4 * bound if is_complex else bound

    plans = plans_of(cache)
    dx, dw = reach("dx", x, bounded_as(plans["dx"], x)), reach("dw", w, bounded_as(plans["dw"], x))
    return ConvGrads(dx, dw, None if b is None else reach("db", b, ["direct"]))


def _exact(
    computed: str, is_complex: bool, arrays: tuple[Array | None, ...], options: dict[str, Any]
) -> dict[str, Exact]:
    """Compute the exact values for these x, w, b and dout; for complex arrays, for their absolute values."""
    host: list[Any] = [None if a is None else on_host(a) for a in arrays]
    if is_complex:
        host = [None if a is None else np.abs(a) for a in host]
    numpy = registry.get("numpy")
    inputs: Any = [None if a is None else numpy.asarray(a, dtype=computed) for a in host]
    x, w, b, _ = inputs
    shapes = {key: value for key, value in options.items() if key != "precision"}
    case = Case("", tuple(x.shape), tuple(w.shape), b is not None, **shapes, dtype=computed)
    return exact(case, Inputs(*inputs))


def _unit(dtype: str) -> float:
    """Return the unit roundoff."""
    return EPSILON[dtype] / 2


def _computed_in(dtype: str) -> str:
    """Return the dtype that sums are computed in."""
    return "float32" if dtype in HALVES else dtype


def _underflow(dtype: str) -> float:
    """Bound the error of rounding a tiny number to float16 or bfloat16: half the smallest subnormal number."""
    return 2.0 ** LEAST_NORMAL[dtype] * _unit(dtype) if dtype in HALVES else 0.0
