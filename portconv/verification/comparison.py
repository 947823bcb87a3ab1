"""Compare backends with the exact values and with one another: shapes, dtypes and devices first, then values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np

from .. import backends as registry
from ..algorithms.choice import known
from ..backends import Backend
from ..convolution import conv_backward, conv_forward, conv_input_grad, conv_weight_grad, explain
from ..engine.call import ConvCache
from ..engine.gradients import plans_of
from ..errors import PortconvError, in_a_line
from ..spec.operation import Kind
from .bounds import Doubles, bounded_as, exact
from .cases import Case, Inputs
from .figures import Figures, Host, Number, Plane, figures, written
from .variants import Variant, on, pairs, plain

Array = Any

PRODUCTS = ("out", "dx", "dw")
"""The quantities that products compute; portconv chooses an algorithm for each of them."""
GRADIENTS = {"dx": Kind.INPUT_GRAD, "dw": Kind.WEIGHT_GRAD}
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
    epsilons : float
        The largest error, in epsilons of `dtype` times the largest exact value of the array.
    elements, equal : int
        How many elements there are, and how many have equal bits (the exact value is rounded to `dtype`).
    problem : str, optional
        Why there was nothing to compare: an exception, or an array of another shape, dtype, library or device.
    precision, algorithm : str
        The precision and the algorithm that were asked for.
    served : str, optional
        The algorithms that computed the result of `backend`.
    where, got, expected, ulps
        The index of the element with the largest error in units of the bound, both values there, and that error in
        units in the last place of the exact value; None if there is no error, and `ulps` also if that value is 0.
    counts : tuple of int
        How many elements there are of each error: see `figures.EDGES`.
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
    epsilons: float
    elements: int
    equal: int
    problem: str | None = None
    precision: str = "standard"
    algorithm: str = "auto"
    served: str | None = None
    where: tuple[int, ...] | None = None
    got: Number | None = None
    expected: Number | None = None
    ulps: float | None = None
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
        return f"{what}: {self._error}{self._place}"

    @property
    def _error(self) -> str:
        """The error of the worst element, in words."""
        away = "off" if self.other is None else "apart"
        ulps = "" if self.ulps is None else f"{self.ulps:.3g} ulp{'' if self.ulps == 1 else 's'}"
        if self.to_the_bit:
            unequal = f"bits differ in {self.elements - self.equal} of {self.elements} elements"
            return f"{unequal}, the furthest {away}{ulps and f' by {ulps}'}"
        if math.isfinite(self.units):
            return f"{away} by {self.units:.3g} times the bound{ulps and f', {ulps}'}"
        finite = all(value is not None and np.isfinite(value) for value in (self.got, self.expected))
        return f"{away}{ulps and f' by {ulps}'} where the bound is 0" if finite else "no finite number"

    @property
    def _place(self) -> str:
        """The index of the worst element and both values, in words."""
        if self.where is None or self.got is None or self.expected is None:
            return ""
        one, other = ("got", "exact") if self.other is None else (self.backend, self.other)
        got, expected = (written(value, self.dtype) for value in (self.got, self.expected))
        return f" at {list(self.where)} ({one} {got}, {other} {expected})"


def unserved(case: Case, precision: str = "standard", backend: Backend | None = None) -> str | None:
    """Say why the algorithm that a case names cannot compute it on a backend; None if it can.

    Parameters
    ----------
    case : Case
    precision : {"standard", "fast", "reproducible"}
    backend : Backend, optional
        NumPy if None.

    Returns
    -------
    str or None
    """
    backend = backend or registry.get("numpy")
    # Only the shapes and dtypes of the arrays matter.
    one = backend.asarray(np.zeros((), "float32"), dtype=case.dtype)
    x, w = (backend.xp.broadcast_to(one, shape) for shape in (case.x_shape, case.w_shape))
    try:
        explain(x, w, **case.options | {"precision": precision}, algorithm=case.algorithm)
    except PortconvError as error:  # other errors show in the results
        return str(error) if str(error).startswith("algorithm:") else None
    return None


def lacking(case: Case) -> tuple[str, ...]:
    """Name the gradients of a case that the algorithm does not have which it names; "auto" has all."""
    algorithm, geometry = known().get(case.algorithm), case.geometry.extended
    if algorithm is None:
        return ()
    return tuple(name for name, kind in GRADIENTS.items() if algorithm.lacks(kind, geometry, "") is not None)


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
    trial = Trial(case, plain(ways), precision, inputs)
    return [comparison for variant in trial.variants for comparison in trial.run(variant)]


class Trial:
    """One case in one precision on the same numbers, with its exact values: it runs the variants one by one.

    Parameters
    ----------
    case : Case
    variants : sequence of Variant
        All variants that will run; they run in this order.
    precision : {"standard", "fast", "reproducible"}
    inputs : Inputs, optional
        Numbers to use instead of the case's own.
    """

    def __init__(
        self, case: Case, variants: Sequence[Variant], precision: str = "standard", inputs: Inputs | None = None
    ) -> None:
        self.case, self.precision, self.variants = case, precision, variants
        self.inputs = case.inputs() if inputs is None else inputs
        self.truth = exact(case, self.inputs)
        without = lacking(case)
        # Where an algorithm lacks a gradient, those that it has are computed one by one, and the bias's is not its own.
        self.quantities = tuple(
            name for name in case.quantities if not without or (name in PRODUCTS and name not in without)
        )
        self.reach = cache(self._reach)
        self.results: dict[str, dict[str, Host]] = {}
        """By the label of a variant and the quantity, the results."""
        self.algorithms: dict[str, dict[str, tuple[str, ...]]] = {}
        """By the label of a variant and the quantity, the algorithms that computed it."""

    def run(self, variant: Variant) -> list[Comparison]:
        """Run a variant; compare its results with the exact values, and with those of the variants before it."""
        label = variant.label
        by_quantity, self.algorithms[label] = self._results(variant)
        self.results[label] = {name: result for name, result in by_quantity.items() if not isinstance(result, str)}
        comparisons = []
        for quantity, result in by_quantity.items():
            if isinstance(result, str):
                nothing = Figures(math.inf, math.inf, 0, 0, ())
                comparisons.append(self._comparison(label, None, quantity, nothing, problem=result))
            else:
                comparisons.append(self._with_exact(label, quantity, result))
        for one in (one.label for one, other in pairs(self.variants) if other.label == label):
            shared = [quantity for quantity in self.results[one] if quantity in self.results[label]]
            comparisons += [self._with_one_another(one, label, quantity) for quantity in shared]
        return comparisons

    def _with_one_another(self, one: str, other: str, quantity: str) -> Comparison:
        exactly, true = self.precision == "reproducible", self.truth[quantity].value
        bound = None if exactly else self._bound(one, quantity) + self._bound(other, quantity)
        first, second = self.results[one][quantity], self.results[other][quantity]
        return self._comparison(one, other, quantity, figures(first, second, bound, true, self.case, quantity))

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
            return results, algorithms
        case, batch = self.case, self.case.geometry.batch
        if len(case.x_shape) < len(case.w_shape) or batch < 2:
            return {}, {}
        by_half = []
        for samples in (slice(batch // 2), slice(batch // 2, None)):
            with variant.held():
                by_half.append(self._run(variant, samples))
        joined: dict[str, Host | str] = {}
        for name in [name for name in ("out", "dx") if name in self.quantities]:
            first, second = (results[name] for results, _ in by_half)
            if isinstance(first, str) or isinstance(second, str):
                joined[name] = first if isinstance(first, str) else str(second)
            else:
                joined[name] = np.concatenate([first, second])
        both = {name: [one for _, algorithms in by_half for one in algorithms[name]] for name in joined}
        return joined, {name: tuple(dict.fromkeys(algorithms)) for name, algorithms in both.items()}

    def _run(
        self, variant: Variant, samples: slice = ALL_SAMPLES
    ) -> tuple[dict[str, Host | str], dict[str, tuple[str, ...]]]:
        """Run some samples of the case in one way; return the results, and the algorithms that computed them."""
        case, backend, inputs = self.case, variant.backend, self.inputs
        algorithms: dict[str, tuple[str, ...]] = dict.fromkeys(self.quantities, (case.algorithm,))
        shapes = {name: true.value.shape for name, true in self.truth.items()}
        if samples != ALL_SAMPLES:
            inputs = inputs._replace(x=inputs.x[samples], dout=inputs.dout[samples])
            shapes |= {"out": inputs.dout.shape, "dx": inputs.x.shape}
        device = on(variant.device)
        try:
            # Each library gets copies, because it may share the host's memory and change it. bfloat16 is handed over in
            # float32, because only NumPy takes an array of ml_dtypes.
            host = (a if a is None else a.astype(np.float32 if case.dtype == "bfloat16" else a.dtype) for a in inputs)
            operands: list[Any] = [a if a is None else backend.asarray(a, dtype=case.dtype, **device) for a in host]
            x, w, b, dout = operands
            options = case.options | {"precision": self.precision}
            out, cache = conv_forward(x, w, b, **options, algorithm=case.algorithm)
        except Exception as error:
            return dict.fromkeys(self.quantities, _words(error)), algorithms
        algorithms |= {name: tuple(bounded_as(plan, x)) for name, plan in plans_of(cache).items()}
        results: dict[str, Host | str] = {"out": _host(backend, x, out, shapes["out"])}
        try:
            grads = self._gradients(dout, cache)
        except Exception as error:
            return results | dict.fromkeys(self.quantities[1:], _words(error)), algorithms
        results |= {name: _host(backend, x, grads[name], shapes[name]) for name in self.quantities[1:]}
        if b is None and grads.get("db") is not None:
            results["db"] = f"got {type(grads['db']).__name__}, expected None where there is no bias"
        return results, algorithms

    def _gradients(self, dout: Array, cache: ConvCache) -> dict[str, Array]:
        """Compute all gradients, or one by one those that the algorithm has."""
        if self.quantities == self.case.quantities:
            return conv_backward(dout, cache)._asdict()
        x, w, options = cache.x, cache.w, self.case.options
        options = options | {"precision": self.precision, "algorithm": self.case.algorithm}
        makers = {
            "dx": partial(conv_input_grad, dout, w, tuple(x.shape), **options),
            "dw": partial(conv_weight_grad, dout, x, tuple(w.shape), **options),
        }
        return {name: makers[name]() for name in self.quantities[1:]}


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
