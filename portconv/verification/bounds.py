"""The exact values of a case, and how far from them a result can be by rounding alone.

A sum of n products, rounded after each operation in whichever order, is within gamma_n * sum |a| |b| of the exact sum,
with gamma_n = n u / (1 - n u) and u = eps / 2: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed.
(2002), section 3.1. Fused or wider arithmetic only helps. There is no term for underflow, because no product of the
numbers that `cases` makes comes near it. An algorithm may make other sums than plain ones: what its error is in
proportion to, and how many roundings that allows for, it says itself (`Algorithm.sharp_magnitudes`, `error_terms`).

Halves are sums of float32 that are rounded once more: by at most h of what is rounded, with h half the half's epsilon,
or of its smallest normal number where it is below that, as numbers have even distances there (Higham, theorem 2.2).

Each part of a sum of n complex products is one of 2 n real ones, of magnitudes that add up to at most
(|re a| + |im a|) (|re b| + |im b|); and both parts together are off by at most sqrt(2) times as much as one (Higham,
section 3.6, with that sum in the place of sqrt(2) |a| |b|).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..algorithms.algorithm import Algorithm
from ..algorithms.choice import known
from ..convolution import conv_backward, conv_forward
from ..engine.execution import compute
from ..engine.rounding_error import relative
from ..passes.padding import extend, fold, overlap
from ..reproducible.operands import quanta
from ..spec.dtypes import EPSILON, HALVES, LARGEST, LEAST_NORMAL, Dtype, gamma, named, real
from ..spec.geometry import Geometry
from ..spec.operation import Kind, Operation, Role
from .cases import Case, Floats, Inputs

Doubles = NDArray[np.float64]


class Sums(NamedTuple):
    """What bounds the errors of sums: how many roundings a term meets, at most, and the sums of the magnitudes."""

    terms: int
    magnitude: Doubles


@dataclass(frozen=True)
class Exact:
    """One quantity of one case, by `direct` in float64, or complex128, on NumPy.

    Attributes
    ----------
    value : array
        Not quite exact: see `radius`.
    plain : Sums
        How many terms its sums have, at most, and the same sums over the terms' magnitudes; of complex numbers those
        of either part.
    others : mapping of str to Sums
        The like by the name of an algorithm that makes other sums, where it can serve.
    products : bool
        Whether the terms are products, which fast arithmetic may round more coarsely.
    quantising : callable
        Gives what quantising the operands changes, at most, per element, as reproducible arithmetic does.
    roundings : int
        How often a reproducible result is rounded: once, and where there is a bias once more.
    """

    value: Floats
    plain: Sums
    others: Mapping[str, Sums]
    products: bool
    quantising: Callable[[], Doubles]
    roundings: int = 1

    def reach(self, dtype: str, precision: str, algorithm: str = "direct") -> Doubles:
        """How far a result in `dtype`, by that algorithm, can be from the exact value, per element."""
        own = real(dtype)
        found = self._of_reproducible(own) if precision == "reproducible" else self._of_sums(own, precision, algorithm)
        return found if own == dtype else math.sqrt(2) * found

    def _of_reproducible(self, own: str) -> Doubles:
        unit, tiny = EPSILON[own] / 2, 2.0 ** LEAST_NORMAL[own]
        off = self.quantising() * (1 + 4 * gamma(2 * self.plain.terms + 4))
        # A sum before a bias is added may be larger than what it comes to.
        size = np.abs(self.value) if self.roundings == 1 else self.plain.magnitude
        found = off + self.roundings * (unit * (1 + 2 * unit) * (size + off) + tiny)
        if self.roundings > 1:
            # And too large for the dtype, to which it is rounded before the bias is added.
            found = np.where(size + off < LARGEST.get(own, math.inf), found, math.inf)
        return found

    def _of_sums(self, own: str, precision: str, algorithm: str) -> Doubles:
        terms, magnitude = self.others.get(algorithm, self.plain)
        computed = "float32" if own in HALVES else own
        # The sum of magnitudes was itself rounded in float64, perhaps down.
        found = relative(terms, computed, precision, self.products) * magnitude / (1 - gamma(terms))
        if own in HALVES:
            unit = EPSILON[own] / 2
            # As much more as `value` can be off by, and to spare.
            found = found + unit * (1 + 2 * unit) * (np.abs(self.value) + found) + unit * 2.0 ** LEAST_NORMAL[own]
        return found

    @property
    def radius(self) -> Doubles:
        """How far `value` can be from the exact value, per element."""
        return self.reach("complex128" if np.iscomplexobj(self.value) else "float64", "standard")


def exact(case: Case, inputs: Inputs | None = None) -> dict[str, Exact]:
    """Compute the exact values of a case, and the sums of magnitudes that bound its errors.

    Parameters
    ----------
    case : Case
    inputs : Inputs, optional
        Other numbers than the case's own.

    Returns
    -------
    dict of str to Exact
        By quantity: out, dx, dw and, where there is a bias, db.
    """
    given = case.inputs() if inputs is None else inputs
    values = _direct(case, *(None if array is None else wide(array) for array in given))
    sizes = [None if array is None else _sizes(array) for array in given]
    plain, others = _direct(case, *sizes), _others(case, *sizes)
    parts = _parts(case)

    @cache
    def quantising() -> dict[str, Doubles]:
        return _quantising(case, given)

    return {
        name: Exact(
            values[name],
            Sums(case.terms[name] * (parts if name != "db" else 1), plain[name]),
            {algorithm: sums[name] for algorithm, sums in others.items() if name in sums},
            products=name != "db",
            quantising=partial(_item, quantising, name),
            roundings=2 if name == "out" and case.bias else 1,
        )
        for name in case.quantities
    }


def _item(made: Callable[[], dict[str, Doubles]], name: str) -> Doubles:
    return made()[name]


def wide(array: Floats) -> Floats:
    """The same numbers in float64 or complex128."""
    with np.errstate(invalid="ignore"):  # which ml_dtypes says of a nan
        return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _sizes(array: Floats) -> Doubles:
    """Magnitudes; of complex numbers the sums of both parts'."""
    doubles = wide(array)
    return np.asarray(np.abs(doubles.real) + np.abs(doubles.imag), np.float64)


def _parts(case: Case) -> int:
    """Of how many products of real numbers a part of a product is the sum."""
    return 1 if real(case.dtype) == case.dtype else 2


def _direct(case: Case, x: Any, w: Any, b: Any, dout: Any) -> dict[str, Any]:
    out, cache = conv_forward(x, w, b, **case.options, algorithm="direct")
    return {"out": out, **conv_backward(dout, cache)._asdict()}


def _others(case: Case, x: Any, w: Any, b: Any, dout: Any) -> dict[str, dict[str, Sums]]:
    """Return the sums of the algorithms that make others than plain ones, of magnitudes as the case has them."""
    numpy = backends.get("numpy")
    return {
        name: _of_algorithm(case, algorithm, x, w, b, dout)
        for name, algorithm in known().items()
        if not algorithm.plain_sums and algorithm.objection(case.geometry.extended, _dtype(case), numpy) is None
    }


def _of_algorithm(case: Case, algorithm: Algorithm, *operands: Any) -> dict[str, Sums]:
    """Return the sums that an algorithm makes of magnitudes `x`, `w`, `b` or None and `dout`: out, dx and dw."""
    numpy, geometry, (x, w, b, dout) = backends.get("numpy"), case.geometry, operands
    own, overlaps = geometry.extended, overlap(geometry)
    cells, grads = _batched(case, x, dout)
    arrays = {Role.X: extend(geometry, numpy, cells), Role.W: w, Role.OUT: grads}
    sums = {}
    for name, kind in {"out": Kind.FORWARD, "dx": Kind.INPUT_GRAD, "dw": Kind.WEIGHT_GRAD}.items():
        given = [arrays[role] for role in kind.operands]
        magnitude = algorithm.sharp_magnitudes(kind, own, numpy, _plain_product, *given)
        terms = algorithm.error_terms(kind, own, _parts(case))
        if name == "out" and b is not None:
            magnitude, terms = magnitude + np.reshape(b, (-1, *(1,) * own.dims)), terms + 1
        if name == "dx" and overlaps > 1:
            # Of a padding that is filled in, the gradient is added up on to the cells that it was filled from.
            magnitude, terms = fold(geometry, numpy, magnitude), terms + overlaps
        sums[name] = Sums(terms, _seen(case, name, magnitude))
    return sums


def _dtype(case: Case) -> Dtype:
    """Return the dtype that sums of a case are bounded in: as wide as any, real or complex as the case's."""
    return named(backends.get("numpy"), "float64" if _parts(case) == 1 else "complex128")


def _plain_product(kind: Kind, geometry: Geometry, a: Any, b: Any) -> Any:
    """Compute a product of doubles by the readable truth."""
    step = Operation(kind, replace(geometry, channels_last=False), "float64", "float64", algorithm="direct")
    return compute(step, backends.get("numpy"), a, b)


def _quantising(case: Case, given: Inputs) -> dict[str, Doubles]:
    """What quantising operands changes in results, at most: products with what each can be off by."""
    backend, geometry = backends.get("numpy"), replace(case.geometry, channels_last=False)
    cells, grads = _batched(case, given.x, given.dout)
    products = {
        "out": (Kind.FORWARD, cells, given.w),
        "dx": (Kind.INPUT_GRAD, grads, given.w),
        "dw": (Kind.WEIGHT_GRAD, grads, cells),
    }
    found: dict[str, Doubles] = {}
    for name, (kind, a, b) in products.items():
        product = partial(_plain_product, kind, geometry)
        of_a, of_b = quanta(Operation(kind, geometry, case.dtype, case.dtype), backend, (a, b))
        found[name] = _seen(case, name, product(_sizes(a), of_b) + product(of_a, _sizes(b) + _parts(case) * of_b))
    step = Operation(Kind.WEIGHT_GRAD, geometry, case.dtype, case.dtype)
    of_dout, _ = quanta(step, backend, (grads, cells))
    found["db"] = np.sum(of_dout, axis=(0, *range(2, of_dout.ndim)))
    return found


def _batched(case: Case, x: Any, dout: Any) -> tuple[Any, Any]:
    """The input and the gradient of the output as the geometry has them: (N, C, *S) and (N, F, *P)."""
    geometry, last = case.geometry, case.data_format == "channels_last"
    cells, grads = (np.moveaxis(a, -1, -1 - geometry.dims) if last else a for a in (x, dout))
    return cells.reshape(geometry.x_shape), grads.reshape(geometry.out_shape)


def _seen(case: Case, name: str, magnitude: Doubles) -> Doubles:
    """What is (N, C, *cells) as the case has it; what is of filters as it is."""
    if name == "dw":
        return magnitude
    last = case.data_format == "channels_last"
    shape = case.x_shape if name == "dx" else case.out_shape
    channels_first = (*shape[: -1 - case.geometry.dims], shape[-1], *shape[-1 - case.geometry.dims : -1])
    magnitude = magnitude.reshape(channels_first if last else shape)
    return np.moveaxis(magnitude, -1 - case.geometry.dims, -1) if last else magnitude
