"""Compare backends with the exact values and with one another: shapes, dtypes and devices first, then values."""

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
from ..engine.gradients import plans_of
from ..errors import PortconvError, in_a_line
from .bounds import Doubles, exact
from .cases import Case, Inputs, host_dtype
from .figures import Figures, Host, Number, Plane, figures, written
from .variants import Variant, pairs, plain

Array = Any

PRODUCTS = ("out", "dx", "dw")
"""The quantities that products compute; portconv chooses an algorithm for each of them."""
ALL_SAMPLES = slice(None)


@dataclass(frozen=True)
class Comparison:
    """One quantity of one case: a variant's result compared with the exact values, or with another variant's.

    Attributes
    ----------
    backend, other : str
        The labels of variants; `other` is None where `backend` is compared with the exact values.
    case, dtype, quantity : str
        `quantity` is "out", "dx", "dw" or "db".
    units : float
        The largest error, in units of what rounding can explain. It is infinite if there is no number to compare, or if
        bits differ that must be equal.
    ulps : float
        The largest error, in units in the last place of the exact value in `dtype`, over elements where that is not 0.
    elements, equal : int
        How many elements there are, and how many have equal bits (the exact value is rounded to `dtype`).
    problem : str, optional
        Why no value could be compared.
    precision, algorithm : str
        The precision and the algorithm that were asked for.
    served : str, optional
        The algorithms that computed the result of `backend`.
    where, got, expected
        The index of the worst element and both values there; None if there is no error.
    counts : tuple of int
        How many errors there are of each size: see `figures.EDGES`.
    sha256 : str, optional
        Of the bytes of the result of `backend`, where it is compared with the exact values.
    plane : Plane, optional
        A map of the errors around the worst element.
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
        """Whether the bits had to be equal."""
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
            error = f"bits differ in {unequal} of {self.elements} elements, {self.ulps:.3g} ulps"
        else:
            away = "off" if self.other is None else "apart"
            error = f"{away} by {self.units:.3g} times the bound, {self.ulps:.3g} ulps"
        return f"{what}: {error}{self.place}"

    @property
    def place(self) -> str:
        """The index of the worst element and both values, in words."""
        if self.where is None or self.got is None or self.expected is None:
            return ""
        one, other = ("got", "exact") if self.other is None else ("one", "other")
        got, expected = (written(value, self.dtype) for value in (self.got, self.expected))
        return f" at {list(self.where)} ({one} {got}, {other} {expected})"


def unserved(case: Case, precision: str = "standard") -> str | None:
    """Say why the algorithm that a case names cannot compute it on any backend; None if it can.

    Parameters
    ----------
    case : Case
    precision : {"standard", "fast", "reproducible"}

    Returns
    -------
    str or None
    """
    # Only the shapes and dtypes of the arrays matter.
    x, w = (np.broadcast_to(np.zeros((), host_dtype(case.dtype)), shape) for shape in (case.x_shape, case.w_shape))
    try:
        explain(x, w, **case.options | {"precision": precision}, algorithm=case.algorithm)
    except PortconvError as error:  # other errors show in the results
        return str(error) if str(error).startswith("algorithm:") else None
    return None


def compare(
    case: Case, ways: Sequence[Backend | Variant], precision: str = "standard", inputs: Inputs | None = None
) -> list[Comparison]:
    """Run a case in several ways, and compare the results with the exact values and with one another.

    An exception in a backend is a failure of that backend alone. Reproducible results must have equal bits.

    Parameters
    ----------
    case : Case
    ways : sequence of Backend or Variant
        All of them must work here and have the case's dtype. `variants.pairs` says which of them are compared.
    precision : {"standard", "fast", "reproducible"}
    inputs : Inputs, optional
        Numbers to use instead of the case's own.

    Returns
    -------
    list of Comparison
    """
    return _CaseRun(case, precision, case.inputs() if inputs is None else inputs).compare(plain(ways))


class _CaseRun:
    """One case in one precision on the same numbers: it runs the variants and compares their results."""

    def __init__(self, case: Case, precision: str, inputs: Inputs) -> None:
        self.case, self.precision, self.inputs = case, precision, inputs
        self.truth = exact(case, inputs)
        self.reach = cache(self._reach)
        self.algorithms: dict[str, dict[str, tuple[str, ...]]] = {}
        """By the label of a variant and the quantity, the algorithms that computed it."""

    def compare(self, variants: Sequence[Variant]) -> list[Comparison]:
        """Compare each variant with the exact values, and the pairs of variants."""
        comparisons: list[Comparison] = []
        results: dict[str, dict[str, Host]] = {name: {} for name in self.case.quantities}
        for variant in variants:
            label = variant.label
            by_quantity, self.algorithms[label] = self._results(variant)
            for quantity, result in by_quantity.items():
                if isinstance(result, str):
                    no_figures = Figures(math.inf, math.inf, 0, 0, ())
                    comparisons.append(self._comparison(label, None, quantity, no_figures, problem=result))
                else:
                    results[quantity][label] = result
                    comparisons.append(self._with_exact(label, quantity, result))
        for quantity, by_label in results.items():
            for one, other in ((one.label, other.label) for one, other in pairs(variants)):
                if one in by_label and other in by_label:
                    bound = None
                    if self.precision != "reproducible":
                        bound = self._bound(one, quantity) + self._bound(other, quantity)
                    true = self.truth[quantity].value
                    pair = figures(by_label[one], by_label[other], bound, true, self.case, quantity)
                    comparisons.append(self._comparison(one, other, quantity, pair))
        return comparisons

    def _with_exact(self, label: str, quantity: str, result: Host) -> Comparison:
        true = self.truth[quantity]
        bound = self._bound(label, quantity) + true.radius
        errors = figures(result, true.value, bound, true.value, self.case, quantity)
        return self._comparison(label, None, quantity, errors, sha256=_digest(result))

    def _reach(self, quantity: str, algorithm: str) -> Doubles:
        return self.truth[quantity].reach(self.case.dtype, self.precision, algorithm)

    def _bound(self, label: str, quantity: str) -> Doubles:
        reaches = [self.reach(quantity, algorithm) for algorithm in self.algorithms[label][quantity]]
        return reaches[0] if len(reaches) == 1 else np.maximum.reduce(reaches)

    def _comparison(self, one: str, other: str | None, quantity: str, errors: Figures, **more: Any) -> Comparison:
        served = "+".join(self.algorithms[one][quantity]) if quantity in PRODUCTS else None
        common = {"precision": self.precision, "algorithm": self.case.algorithm, "served": served}
        return Comparison(one, other, self.case.name, self.case.dtype, quantity, **{**common, **more}, **vars(errors))

    def _results(self, variant: Variant) -> tuple[dict[str, Host | str], dict[str, tuple[str, ...]]]:
        """Return each quantity on the host, or why it cannot be compared; and the algorithms that computed it."""
        if not variant.halves:
            with variant.held():
                results, algorithms = self._run(variant)
            return results, {name: (algorithm,) for name, algorithm in algorithms.items()}
        case, batch = self.case, self.case.geometry.batch
        if len(case.x_shape) < len(case.w_shape) or batch < 2:
            return {}, {}
        by_half = []
        for samples in (slice(batch // 2), slice(batch // 2, None)):
            with variant.held():
                by_half.append(self._run(variant, samples))
        joined: dict[str, Host | str] = {}
        for name in ("out", "dx"):
            first, second = (results[name] for results, _ in by_half)
            if isinstance(first, str) or isinstance(second, str):
                joined[name] = first if isinstance(first, str) else str(second)
            else:
                joined[name] = np.concatenate([first, second])
        return joined, {name: tuple(dict.fromkeys(algorithms[name] for _, algorithms in by_half)) for name in joined}

    def _run(self, variant: Variant, samples: slice = ALL_SAMPLES) -> tuple[dict[str, Host | str], dict[str, str]]:
        """Run some samples of the case in one way; return the results, and the algorithms that computed them."""
        case, backend, inputs = self.case, variant.backend, self.inputs
        algorithms = dict.fromkeys(case.quantities, case.algorithm)
        shapes = {name: true.value.shape for name, true in self.truth.items()}
        if samples != ALL_SAMPLES:
            inputs = inputs._replace(x=inputs.x[samples], dout=inputs.dout[samples])
            shapes |= {"out": inputs.dout.shape, "dx": inputs.x.shape}
        device = {} if variant.device is None else {"device": variant.device}
        try:
            # Each library gets copies, because it may share the host's memory and change it. bfloat16 is handed over in
            # float32, because only NumPy takes an array of ml_dtypes.
            host = (a if a is None else a.astype(np.float32 if case.dtype == "bfloat16" else a.dtype) for a in inputs)
            operands: list[Any] = [a if a is None else backend.asarray(a, dtype=case.dtype, **device) for a in host]
            x, w, b, dout = operands
            options = case.options | {"precision": self.precision}
            out, cache = conv_forward(x, w, b, **options, algorithm=case.algorithm)
        except Exception as error:
            return dict.fromkeys(case.quantities, _words(error)), algorithms
        algorithms |= {name: plan.algorithm for name, plan in plans_of(cache).items()}
        results: dict[str, Host | str] = {"out": _host(backend, x, out, shapes["out"])}
        try:
            grads = conv_backward(dout, cache)._asdict()
        except Exception as error:
            return results | dict.fromkeys(case.quantities[1:], _words(error)), algorithms
        results |= {name: _host(backend, x, grads[name], shapes[name]) for name in case.quantities[1:]}
        if b is None and grads["db"] is not None:
            results["db"] = f"got {type(grads['db']).__name__}, expected None where there is no bias"
        return results, algorithms


def _digest(result: Host) -> str:
    """Return the SHA-256 of an array's numbers, the same for either byte order of the machine."""
    # The array is seen as bytes, because NumPy gives no buffer of bfloat16.
    whole = np.ascontiguousarray(result, result.dtype.newbyteorder("<")).reshape(-1)
    return hashlib.sha256(whole.view(np.uint8).data).hexdigest()


def _host(backend: Backend, like: Array, result: Array, shape: tuple[int, ...]) -> Host | str:
    """Copy a result to the host; if its library, shape, dtype or device is wrong, return the problem in words."""
    try:
        library = registry.of(result)
        if library is not backend:
            return f"got an array of {library.name}, expected one of {backend.name}"
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
