"""Backends against the exact values, and against one another: form first, then values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import backends as registry
from ..backends import Backend
from ..convolution import conv_backward, conv_forward
from .bounds import Exact, exact
from .cases import Case, Inputs
from .tiles import Doubles

Array = Any
Host = NDArray[np.floating[Any]]

PURPOSES = {"out": "forward", "dx": "input_grad", "dw": "weight_grad"}
"""The product that each quantity is, which chooses an algorithm for itself."""


@dataclass(frozen=True)
class Comparison:
    """One quantity of one case: a backend's against the exact values, or against another backend's.

    Attributes
    ----------
    backend, other : str
        `other` is None where the exact values are what `backend` is held against.
    case, dtype, quantity : str
        `quantity` is "out", "dx", "dw" or "db".
    units : float
        The largest error, in units of what rounding can explain; infinite where there is no number to compare.
    ulps : float
        The largest error, in units in the last place of the exact value in `dtype`, where that is not 0.
    elements, equal : int
        How many elements there are, and how many have equal bits (the exact value's being rounded to `dtype`).
    problem : str, optional
        What was wrong before any value could be compared.
    """

    backend: str
    other: str | None
    case: str
    dtype: str
    quantity: str
    units: float
    ulps: float
    elements: int
    equal: int
    problem: str | None = None

    @property
    def held(self) -> bool:
        return self.problem is None and self.units <= 1

    def __str__(self) -> str:
        names = self.backend if self.other is None else f"{self.backend} and {self.other}"
        away = "off" if self.other is None else "apart"
        found = self.problem or f"{away} by {self.units:.3g} times the bound, {self.ulps:.3g} ulps"
        return f"{names}: {self.case} {self.dtype} {self.quantity}: {found}"


def unsupported(backend: Backend, dtype: str) -> str | None:
    """Say why a backend cannot hold a dtype where it puts arrays by default; None where it can.

    Parameters
    ----------
    backend : Backend
    dtype : str

    Returns
    -------
    str or None
    """
    info = getattr(backend.xp, "__array_namespace_info__", None)
    known = hasattr(backend.xp, dtype) if info is None else dtype in info().dtypes()
    return None if known else f"has no {dtype} on its default device"


def compare(
    case: Case, backends: Sequence[Backend], precision: str = "standard", inputs: Inputs | None = None
) -> list[Comparison]:
    """Run a case on backends, and hold their results against the exact values and against one another.

    Whatever a backend raises is a failure of its own and ends nothing.

    Parameters
    ----------
    case : Case
    backends : sequence of Backend
        All of them must work here and hold the case's dtype.
    precision : {"standard", "fast"}
    inputs : Inputs, optional
        Other numbers than the case's own.

    Returns
    -------
    list of Comparison
    """
    given = case.inputs() if inputs is None else inputs
    truth = exact(case, given)
    made: list[Comparison] = []
    sound: dict[str, dict[str, Host]] = {name: {} for name in case.quantities}
    served: dict[str, dict[str, str]] = {}
    for backend in backends:
        found, served[backend.name] = _results(case, backend, given, precision, truth)
        for quantity, result in found.items():
            if isinstance(result, str):
                made.append(
                    Comparison(backend.name, None, case.name, case.dtype, quantity, math.inf, math.inf, 0, 0, result)
                )
                continue
            sound[quantity][backend.name] = result
            true = truth[quantity]
            bound = true.reach(case.dtype, precision, served[backend.name][quantity]) + true.radius
            figures = _figures(result, true.value, bound, case.dtype, true)
            made.append(Comparison(backend.name, None, case.name, case.dtype, quantity, *figures))
    for quantity, results in sound.items():
        true = truth[quantity]
        for (one, ones), (other, others) in combinations(results.items(), 2):
            own, their = (true.reach(case.dtype, precision, served[name][quantity]) for name in (one, other))
            figures = _figures(ones, others, own + their, case.dtype, true)
            made.append(Comparison(one, other, case.name, case.dtype, quantity, *figures))
    return made


def _results(
    case: Case, backend: Backend, inputs: Inputs, precision: str, truth: dict[str, Exact]
) -> tuple[dict[str, Host | str], dict[str, str]]:
    """Each quantity on the host, or in words why it cannot be compared; and which algorithm served it."""
    served = dict.fromkeys(case.quantities, case.algorithm)
    try:
        # Copies: a library may share the host's memory, and no other may see what it did there.
        x, w, b, dout = (None if a is None else backend.asarray(a.copy(), dtype=case.dtype) for a in inputs)
        out, cache = conv_forward(x, w, b, **case.options, precision=precision, algorithm=case.algorithm)
    except Exception as error:
        return dict.fromkeys(case.quantities, _words(error)), served
    served |= {name: cache.call.served(purpose) for name, purpose in PURPOSES.items()}
    results: dict[str, Host | str] = {"out": _host(backend, x, out, truth["out"])}
    try:
        grads = conv_backward(dout, cache)._asdict()
    except Exception as error:
        return results | dict.fromkeys(case.quantities[1:], _words(error)), served
    results |= {name: _host(backend, x, grads[name], truth[name]) for name in case.quantities[1:]}
    if b is None and grads["db"] is not None:
        results["db"] = f"got {type(grads['db']).__name__}, expected None where there is no bias"
    return results, served


def _host(backend: Backend, like: Array, result: Array, true: Exact) -> Host | str:
    """A result of the right form, copied to the host; or what is wrong with its form."""
    try:
        found = registry.of(result)
        if found is not backend:
            return f"got an array of {found.name}, expected one of {backend.name}"
        if tuple(result.shape) != true.value.shape:
            return f"got shape {tuple(result.shape)}, expected {true.value.shape}"
        if result.dtype != like.dtype:
            return f"got dtype {result.dtype}, expected {like.dtype}"
        if backend.device_of(result) != backend.device_of(like):
            return f"got device {backend.device_of(result)}, expected {backend.device_of(like)}"
        return np.asarray(backend.to_numpy(result))
    except Exception as error:
        return _words(error)


def _words(error: Exception) -> str:
    return f"raised {type(error).__name__}: {' '.join(str(error).split())}"


def _figures(
    found: Host, reference: NDArray[np.floating[Any]], bound: Doubles, dtype: str, true: Exact
) -> tuple[float, float, int, int]:
    """The largest error in units of `bound` and in ulps, how many elements there are, and how many are equal."""
    with np.errstate(invalid="ignore"):
        error = np.abs(found.astype(np.float64) - reference.astype(np.float64))
    ulp = np.spacing(np.abs(true.value).astype(dtype)).astype(np.float64)
    ulp[true.value == 0] = np.inf  # which has no size to be far from, and is not 0 where spectra are multiplied
    bits = np.dtype(f"u{found.dtype.itemsize}")
    same = np.ascontiguousarray(found).view(bits) == np.ascontiguousarray(reference.astype(dtype)).view(bits)
    return _largest(error, bound), _largest(error, ulp), found.size, int(np.count_nonzero(same))


def _largest(error: Doubles, unit: Doubles) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0.0, error / unit)
    # A nan, and any error where none is allowed, is beyond measure.
    return float(np.max(np.where(np.isnan(ratio), np.inf, ratio), initial=0.0))
