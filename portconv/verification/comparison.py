"""Backends against the exact values, and against one another: form first, then values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from .. import backends as registry
from ..backends import Backend
from ..convolution import conv_backward, conv_forward, explain
from ..errors import PortconvError, in_a_line
from .bounds import Doubles, Exact, exact
from .cases import Case, Inputs, host_dtype
from .figures import Figures, Host, Number, Plane, figures, written
from .variants import Variant, pairs, plain

Array = Any

PURPOSES = {"out": "forward", "dx": "input_grad", "dw": "weight_grad"}
"""The product that each quantity is, which chooses an algorithm for itself."""
WHOLE = slice(None)


@dataclass(frozen=True)
class Comparison:
    """One quantity of one case: a variant's against the exact values, or against another variant's.

    Attributes
    ----------
    backend, other : str
        The labels of variants; `other` is None where the exact values are what `backend` is held against.
    case, dtype, quantity : str
        `quantity` is "out", "dx", "dw" or "db".
    units : float
        The largest error, in units of what rounding can explain; infinite where there is no number to compare, and
        where bits differ that must be equal.
    ulps : float
        The largest error, in units in the last place of the exact value in `dtype`, where that is not 0.
    elements, equal : int
        How many elements there are, and how many have equal bits (the exact value's being rounded to `dtype`).
    problem : str, optional
        What was wrong before any value could be compared.
    precision, algorithm : str
        What was asked for.
    served : str, optional
        The algorithms that computed what `backend` gave.
    where, got, expected
        The index of the worst element and both values there; None where there is no error.
    counts : tuple of int
        How many errors there are of each size: see `figures.EDGES`.
    sha256 : str, optional
        Of the bytes of what `backend` gave, where it is held against the exact values.
    plane : Plane, optional
        A map of the errors about the worst element.
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
    precision: str = "standard"
    algorithm: str = "auto"
    served: str | None = None
    where: tuple[int, ...] | None = None
    got: Number | None = None
    expected: Number | None = None
    counts: tuple[int, ...] = ()
    sha256: str | None = None
    plane: Plane | None = field(default=None, compare=False, repr=False)

    @property
    def held(self) -> bool:
        return self.problem is None and self.units <= 1

    @property
    def to_the_bit(self) -> bool:
        """Whether nothing but equal bits was allowed."""
        return self.precision == "reproducible" and self.other is not None

    def __str__(self) -> str:
        names = self.backend if self.other is None else f"{self.backend} and {self.other}"
        what = f"{names}: {self.case} {self.dtype} {self.quantity}"
        if self.precision != "standard":
            what = f"{what}, {self.precision}"
        if self.problem:
            return f"{what}: {self.problem}"
        if self.to_the_bit:
            unequal = self.elements - self.equal
            found = f"bits differ in {unequal} of {self.elements} elements, {self.ulps:.3g} ulps"
        else:
            away = "off" if self.other is None else "apart"
            found = f"{away} by {self.units:.3g} times the bound, {self.ulps:.3g} ulps"
        return f"{what}: {found}{self.place}"

    @property
    def place(self) -> str:
        """Where the worst element is, and both values, in words."""
        if self.where is None or self.got is None or self.expected is None:
            return ""
        one, other = ("got", "exact") if self.other is None else ("one", "other")
        got, expected = (written(value, self.dtype) for value in (self.got, self.expected))
        return f" at {list(self.where)} ({one} {got}, {other} {expected})"


def unserved(case: Case, precision: str = "standard") -> str | None:
    """Say why the algorithm that a case names cannot serve it, whatever the backend; None where it can.

    Parameters
    ----------
    case : Case
    precision : {"standard", "fast", "reproducible"}

    Returns
    -------
    str or None
    """
    # Of the arrays, only their shapes and dtypes matter.
    x, w = (np.broadcast_to(np.zeros((), host_dtype(case.dtype)), shape) for shape in (case.x_shape, case.w_shape))
    try:
        explain(x, w, **case.options, precision=precision, algorithm=case.algorithm)
    except PortconvError as error:  # any other is for the results to show
        return str(error) if str(error).startswith("algorithm:") else None
    return None


def compare(
    case: Case, ways: Sequence[Backend | Variant], precision: str = "standard", inputs: Inputs | None = None
) -> list[Comparison]:
    """Run a case in several ways, and hold the results against the exact values and against one another.

    Whatever a backend raises is a failure of its own and ends nothing. Reproducible results must have equal bits.

    Parameters
    ----------
    case : Case
    ways : sequence of Backend or Variant
        All of them must work here and hold the case's dtype. See `variants.pairs` for which of them are compared.
    precision : {"standard", "fast", "reproducible"}
    inputs : Inputs, optional
        Other numbers than the case's own.

    Returns
    -------
    list of Comparison
    """
    given = case.inputs() if inputs is None else inputs
    truth = exact(case, given)
    variants = plain(ways)
    made: list[Comparison] = []
    sound: dict[str, dict[str, Host]] = {name: {} for name in case.quantities}
    served: dict[str, dict[str, tuple[str, ...]]] = {}

    @cache
    def reach(quantity: str, algorithm: str) -> Doubles:
        return truth[quantity].reach(case.dtype, precision, algorithm)

    def bound(label: str, quantity: str) -> Doubles:
        reaches = [reach(quantity, algorithm) for algorithm in served[label][quantity]]
        return reaches[0] if len(reaches) == 1 else np.maximum.reduce(reaches)

    def comparison(one: str, other: str | None, quantity: str, found: Figures, **more: Any) -> Comparison:
        by = "+".join(served[one][quantity]) if quantity in PURPOSES else None
        common = {"precision": precision, "algorithm": case.algorithm, "served": by}
        return Comparison(one, other, case.name, case.dtype, quantity, **{**common, **more}, **vars(found))

    for variant in variants:
        label = variant.label
        found, served[label] = _results(case, variant, given, precision, truth)
        for quantity, result in found.items():
            if isinstance(result, str):
                nothing = Figures(math.inf, math.inf, 0, 0, ())
                made.append(comparison(label, None, quantity, nothing, problem=result))
                continue
            sound[quantity][label] = result
            true = truth[quantity]
            told = figures(result, true.value, bound(label, quantity) + true.radius, true.value, case, quantity)
            made.append(comparison(label, None, quantity, told, sha256=_digest(result)))
    for quantity, results in sound.items():
        for one, other in ((one.label, other.label) for one, other in pairs(variants)):
            if one in results and other in results:
                alike = precision == "reproducible"
                allowed = None if alike else bound(one, quantity) + bound(other, quantity)
                told = figures(results[one], results[other], allowed, truth[quantity].value, case, quantity)
                made.append(comparison(one, other, quantity, told))
    return made


def _digest(result: Host) -> str:
    """Of the numbers as they are, whatever the machine's byte order."""
    # As bytes, because no buffer can be had of bfloat16.
    whole = np.ascontiguousarray(result, result.dtype.newbyteorder("<")).reshape(-1)
    return hashlib.sha256(whole.view(np.uint8).data).hexdigest()


def _results(
    case: Case, variant: Variant, inputs: Inputs, precision: str, truth: dict[str, Exact]
) -> tuple[dict[str, Host | str], dict[str, tuple[str, ...]]]:
    """Each quantity on the host, or in words why it cannot be compared; and which algorithms served it."""
    if not variant.halves:
        with variant.held():
            found, served = _run(case, variant, inputs, precision, truth)
        return found, {name: (algorithm,) for name, algorithm in served.items()}
    batch = case.geometry.batch
    if len(case.x_shape) < len(case.w_shape) or batch < 2:
        return {}, {}
    half = batch // 2
    parts, taken = [], []
    for cut in (slice(half), slice(half, None)):
        with variant.held():
            found, served = _run(case, variant, inputs, precision, truth, cut)
        parts.append(found)
        taken.append(served)
    joined: dict[str, Host | str] = {}
    for name in ("out", "dx"):
        first, second = (part[name] for part in parts)
        if isinstance(first, str) or isinstance(second, str):
            joined[name] = first if isinstance(first, str) else str(second)
        else:
            joined[name] = np.concatenate([first, second])
    return joined, {name: tuple(dict.fromkeys(served[name] for served in taken)) for name in joined}


def _run(
    case: Case, variant: Variant, inputs: Inputs, precision: str, truth: dict[str, Exact], cut: slice = WHOLE
) -> tuple[dict[str, Host | str], dict[str, str]]:
    """Run a case, or the samples of it that `cut` names."""
    backend = variant.backend
    served = dict.fromkeys(case.quantities, case.algorithm)
    shapes = {name: true.value.shape for name, true in truth.items()}
    if cut != WHOLE:
        inputs = inputs._replace(x=inputs.x[cut], dout=inputs.dout[cut])
        shapes |= {"out": inputs.dout.shape, "dx": inputs.x.shape}
    device = {} if variant.device is None else {"device": variant.device}
    try:
        # Copies: a library may share the host's memory, and no other may see what it did there. In float32 where only
        # NumPy takes an array of ml_dtypes.
        given = (a if a is None else a.astype(np.float32 if case.dtype == "bfloat16" else a.dtype) for a in inputs)
        x, w, b, dout = (None if a is None else backend.asarray(a, dtype=case.dtype, **device) for a in given)
        out, cache = conv_forward(x, w, b, **case.options, precision=precision, algorithm=case.algorithm)
    except Exception as error:
        return dict.fromkeys(case.quantities, _words(error)), served
    served |= {name: cache.call.served(purpose) for name, purpose in PURPOSES.items()}
    results: dict[str, Host | str] = {"out": _host(backend, x, out, shapes["out"])}
    try:
        grads = conv_backward(dout, cache)._asdict()
    except Exception as error:
        return results | dict.fromkeys(case.quantities[1:], _words(error)), served
    results |= {name: _host(backend, x, grads[name], shapes[name]) for name in case.quantities[1:]}
    if b is None and grads["db"] is not None:
        results["db"] = f"got {type(grads['db']).__name__}, expected None where there is no bias"
    return results, served


def _host(backend: Backend, like: Array, result: Array, shape: tuple[int, ...]) -> Host | str:
    """A result of the right form, copied to the host; or what is wrong with its form."""
    try:
        found = registry.of(result)
        if found is not backend:
            return f"got an array of {found.name}, expected one of {backend.name}"
        if tuple(result.shape) != shape:
            return f"got shape {tuple(result.shape)}, expected {shape}"
        if result.dtype != like.dtype:
            return f"got dtype {result.dtype}, expected {like.dtype}"
        if backend.device_of(result) != backend.device_of(like):
            return f"got device {backend.device_of(result)}, expected {backend.device_of(like)}"
        return np.asarray(backend.to_numpy(result))
    except Exception as error:
        return _words(error)


def _words(error: Exception) -> str:
    return f"raised {type(error).__name__}: {in_a_line(error)}"
