"""The exact values of a case, and how far from them a result can be by rounding alone.

A sum of n products, rounded after each operation in whichever order, is within gamma_n * sum |a| |b| of the exact sum,
with gamma_n = n u / (1 - n u) and u = eps / 2: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed.
(2002), section 3.1. Fused or wider arithmetic only helps. There is no term for underflow, because no product of the
numbers that `cases` makes comes near it. Winograd's tiles are sums of products too, if of other ones: see `tiles`; and
what bounds products of spectra is put in the form of sums: see `spectra`.

Halves are sums of float32 that are rounded once more: by at most h of what is rounded, with h half the half's epsilon,
or of its smallest normal number where it is below that, as numbers have even distances there (Higham, theorem 2.2).

Each part of a sum of n complex products is one of 2 n real ones, of magnitudes that add up to at most
(|re a| + |im a|) (|re b| + |im b|); and both parts together are off by at most sqrt(2) times as much as one (Higham,
section 3.6, with that sum in the place of sqrt(2) |a| |b|). Spectra are complex from the start, and tiles are of real
numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from .. import backends
from ..algorithms import fft, winograd
from ..convolution import conv_backward, conv_forward
from ..engine.execution import compute
from ..engine.rounding_error import relative
from ..reproducible.operands import quanta
from ..spec.dtypes import EPSILON, HALVES, LARGEST, LEAST_NORMAL, gamma, real
from ..spec.operation import Kind, Operation
from .cases import Case, Floats, Inputs
from .spectra import spectral
from .tiles import Doubles, Sums, tiled


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
        The like by the name of an algorithm that makes other sums, where it can serve: `winograd` and `fft`.
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
    """The sums of the algorithms that make others than plain ones, of magnitudes as the case has them."""
    geometry, found = case.geometry, {}
    cells, grads = _batched(case, x, dout)
    given = (cells, w, b, grads)
    if fft.objection(geometry) is None:
        found["fft"] = spectral(geometry, *given)
    if winograd.objection(geometry) is None and geometry.extended is geometry and _parts(case) == 1:
        found["winograd"] = tiled(geometry, *given)

    return {
        algorithm: {name: Sums(sums.terms, _seen(case, name, sums.magnitude)) for name, sums in by_name.items()}
        for algorithm, by_name in found.items()
    }


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
        of_a, of_b = quanta(Operation(kind, geometry, case.dtype, case.dtype), backend, (a, b))
        step = Operation(kind, geometry, "float64", "float64", algorithm="direct")
        first = compute(step, backend, _sizes(a), of_b)
        found[name] = _seen(case, name, first + compute(step, backend, of_a, _sizes(b) + _parts(case) * of_b))
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
