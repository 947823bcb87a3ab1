"""The exact values of a case, and bounds of the rounding errors of its results.

A sum of n products, rounded after each operation in whichever order, is within gamma_n * sum |a| |b| of the exact sum,
with gamma_n = n u / (1 - n u) and u = eps / 2: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed.
(2002), section 3.1. Fused or wider arithmetic has smaller errors. There is no term for underflow, because all products
of the numbers of `cases` are far above it. An algorithm may compute other sums than plain ones. Then its methods
`magnitudes` and `error_terms` say what its error is in proportion to, and for how many roundings this allows.

Results in 16 bits are sums in float32 that are rounded once more: by at most h times the rounded number, with h half
the epsilon of the dtype. Below the smallest normal number the error is at most h times that number, because numbers are
evenly spaced there (Higham, theorem 2.2).

The real or the imaginary part of a sum of n complex products is a sum of 2 n real products, whose magnitudes add up to
at most the sum of (|re a| + |im a|) (|re b| + |im b|). The error of both parts together is at most sqrt(2) times the
bound of one part (Higham, section 3.6, with that sum in place of sqrt(2) |a| |b|).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..algorithms import compiled, native_tiles
from ..algorithms.algorithm import Algorithm
from ..algorithms.choice import known
from ..algorithms.native import described
from ..convolution import conv_backward, conv_forward
from ..engine.execution import compute
from ..engine.plan import Plan
from ..engine.rounding_error import relative
from ..passes.padding import extend, fold, overlap
from ..reproducible.operands import quanta
from ..spec.dtypes import EPSILON, HALVES, LARGEST, LEAST_NORMAL, Dtype, gamma, named, real
from ..spec.geometry import Geometry
from ..spec.operation import Kind, Operation, Role
from .cases import Case, Floats, Inputs

Doubles = NDArray[np.float64]

IN_TILES, COMPILED_IN_TILES = "native in tiles", "compiled in tiles"
"""The algorithms of a library and of kernels that may compute by Winograd's: see `portconv.algorithms.native_tiles` and
`portconv.algorithms.compiled`."""
OF_TILES = {
    IN_TILES: ("native", native_tiles.magnitudes),
    COMPILED_IN_TILES: ("compiled", compiled.magnitudes_of_tiles),
}
"""The algorithm that each of them is, and what its errors are in proportion to."""


class Sums(NamedTuple):
    """What bounds the errors of sums: how often a term is rounded at most, and the sums of the magnitudes."""

    terms: int
    magnitude: Doubles


@dataclass(frozen=True)
class Exact:
    """One quantity of one case, computed by `direct` in float64 or complex128 on NumPy.

    Attributes
    ----------
    value : array
        The value, which has the small error `radius`.
    plain : Sums
        The maximum of terms in its sums, and the sums of the terms' magnitudes. For complex numbers, these are the
        terms of the real part or of the imaginary part.
    others : callable
        Returns the same for the algorithm of a name that computes other sums and supports the case, else None.
    products : bool
        Whether the terms are products, for which fast arithmetic may have larger rounding errors.
    quantising : callable
        Returns the maximum change of each element when operands are quantised, as reproducible arithmetic does.
    roundings : int
        How often a reproducible result is rounded: once, or twice if there is a bias.
    """

    value: Floats
    plain: Sums
    others: Callable[[str], Sums | None]
    products: bool
    quantising: Callable[[], Doubles]
    roundings: int = 1

    def reach(self, dtype: str, precision: str, algorithm: str = "direct") -> Doubles:
        """Bound the error of each element of a result in `dtype` by that algorithm."""
        part = real(dtype)
        bound = (
            self._of_reproducible(part) if precision == "reproducible" else self._of_sums(part, precision, algorithm)
        )
        return bound if part == dtype else math.sqrt(2) * bound

    def _of_reproducible(self, dtype: str) -> Doubles:
        """Bound the error of each element of a reproducible result in a real dtype."""
        unit, smallest = EPSILON[dtype] / 2, 2.0 ** LEAST_NORMAL[dtype]
        change = self.quantising() * (1 + 4 * gamma(2 * self.plain.terms + 4))
        # The sum may be larger before the bias is added than after it.
        size = np.abs(self.value) if self.roundings == 1 else self.plain.magnitude
        bound = change + self.roundings * (unit * (1 + 2 * unit) * (size + change) + smallest)
        if self.roundings > 1:
            # The sum is rounded to the dtype before the bias is added, and may be too large for it.
            bound = np.where(size + change < LARGEST.get(dtype, math.inf), bound, math.inf)
        return bound

    def _of_sums(self, dtype: str, precision: str, algorithm: str) -> Doubles:
        """Bound the error of each element of sums in a real dtype."""
        terms, magnitude = self.others(algorithm) or self.plain
        magnitude = np.where(np.isnan(magnitude), np.inf, magnitude)
        computed = "float32" if dtype in HALVES else dtype
        # The sum of magnitudes is rounded in float64, and may be too small by this factor.
        bound = relative(terms, computed, precision, self.products) * magnitude / (1 - gamma(terms))
        if dtype in HALVES:
            unit = EPSILON[dtype] / 2
            # The factor 1 + 2 * unit allows for more than the error of `value`.
            bound = bound + unit * (1 + 2 * unit) * (np.abs(self.value) + bound) + unit * 2.0 ** LEAST_NORMAL[dtype]
            if self.roundings > 1 and algorithm in ("native", IN_TILES):
                # A library may round the sum before it adds the bias.
                bound = bound + unit * (1 + 2 * unit) * magnitude
        return bound

    @property
    def radius(self) -> Doubles:
        """The error bound of each element of `value`."""
        return self.reach("complex128" if np.iscomplexobj(self.value) else "float64", "standard")


def exact(case: Case, inputs: Inputs | None = None) -> dict[str, Exact]:
    """Compute the exact values of a case, and the sums of magnitudes that bound its errors.

    Parameters
    ----------
    case : Case
    inputs : Inputs, optional
        The numbers that replace those of the case.

    Returns
    -------
    dict of str to Exact
        The exact values by quantity: out, dx, dw and, if there is a bias, db.
    """
    inputs = case.inputs() if inputs is None else inputs
    with np.errstate(over="ignore", invalid="ignore"):
        values = _direct(case, *(None if array is None else wide(array) for array in inputs))
        magnitudes = [None if array is None else _magnitudes(array) for array in inputs]
        plain = _direct(replace(case, padding_value=abs(case.padding_value)), *magnitudes)
    parts = _parts(case)

    @cache
    def others(algorithm: str) -> dict[str, Sums]:
        with np.errstate(over="ignore", invalid="ignore"):
            return _others(case, algorithm, *magnitudes)

    @cache
    def quantising() -> dict[str, Doubles]:
        with np.errstate(over="ignore", invalid="ignore"):
            return _quantising(case, inputs)

    return {
        name: Exact(
            values[name],
            Sums(case.terms[name] * (parts if name != "db" else 1), plain[name]),
            partial(_sums_of, others, name),
            products=name != "db",
            quantising=partial(_item, quantising, name),
            roundings=2 if name == "out" and case.bias else 1,
        )
        for name in case.quantities
    }


def bounded_as(plan: Plan, like: Any) -> list[str]:
    """Return the names by which `Exact.reach` knows the algorithms of a plan, on the device of `like`."""
    native, geometry = plan.backend.native_convolution, plan.operation.geometry.extended
    in_tiles = native is not None and native.in_tiles(described(geometry), plan.backend.device_kind(like))
    tiles = {"native": IN_TILES} if in_tiles else {}
    if compiled.may_transform(plan.operation.kind, geometry):
        tiles["compiled"] = COMPILED_IN_TILES
    return [tiles.get(algorithm.name, algorithm.name) for algorithm in plan.algorithms]


def _item(function: Callable[[], dict[str, Doubles]], name: str) -> Doubles:
    """Return one item of what a function returns."""
    return function()[name]


def _sums_of(function: Callable[[str], dict[str, Sums]], name: str, algorithm: str) -> Sums | None:
    """Return one item of what a function returns for an algorithm, if it has it."""
    return function(algorithm).get(name)


def wide(array: Floats) -> Floats:
    """Return the same numbers in float64 or complex128."""
    with np.errstate(invalid="ignore"):  # ml_dtypes warns about nan
        return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _magnitudes(array: Floats) -> Doubles:
    """Return the magnitudes of numbers; for complex numbers, the sum of the magnitudes of both parts."""
    doubles = wide(array)
    return np.asarray(np.abs(doubles.real) + np.abs(doubles.imag), np.float64)


def _parts(case: Case) -> int:
    """Count the products of real numbers in one part of a product: 1 for real numbers, 2 for complex numbers."""
    return 1 if real(case.dtype) == case.dtype else 2


def _direct(case: Case, x: Any, w: Any, b: Any, dout: Any) -> dict[str, Any]:
    """Compute all quantities of a case by `direct`."""
    out, cache = conv_forward(x, w, b, **case.options, algorithm="direct")
    return {"out": out, **conv_backward(dout, cache)._asdict()}


def _others(case: Case, name: str, x: Any, w: Any, b: Any, dout: Any) -> dict[str, Sums]:
    """Return the sums of magnitudes for the algorithm of a name if it computes other sums than plain ones."""
    if name in OF_TILES:
        own, magnitudes = OF_TILES[name]
        return _of_algorithm(case, magnitudes, known()[own], x, w, b, dout)
    algorithm = known().get(name)
    if algorithm is None or algorithm.plain_sums:
        return {}
    if algorithm.objection(case.geometry.extended, _dtype(case), backends.get("numpy")) is not None:
        return {}
    return _of_algorithm(case, algorithm.magnitudes, algorithm, x, w, b, dout)


def _of_algorithm(
    case: Case, bounding: Callable[..., Doubles], algorithm: Algorithm, *operands: Any
) -> dict[str, Sums]:
    """Return what bounds the sums of magnitudes for an algorithm, of out, dx and dw, by its function of that name.

    `operands` are the magnitudes of `x`, `w`, `b` or None, and `dout`.
    """
    numpy, geometry, (x, w, b, dout) = backends.get("numpy"), case.geometry, operands
    extended, overlaps = geometry.extended, overlap(geometry)
    cells, grads = batched(case, x, dout)
    arrays = {Role.X: extend(geometry, numpy, cells), Role.W: w, Role.OUT: grads}
    sums = {}
    for name, kind in {"out": Kind.FORWARD, "dx": Kind.INPUT_GRAD, "dw": Kind.WEIGHT_GRAD}.items():
        magnitudes = [arrays[role] for role in kind.operands]
        magnitude = bounding(kind, extended, numpy, _plain_product, *magnitudes)
        terms = algorithm.error_terms(kind, extended, _parts(case))
        if name == "out" and b is not None:
            magnitude, terms = magnitude + np.reshape(b, (-1, *(1,) * extended.dims)), terms + 1
        if name == "dx" and extended is not geometry:
            # The gradient of filled padding is added to the cells from which the padding is filled.
            magnitude, terms = fold(geometry, numpy, magnitude), terms + overlaps
        sums[name] = Sums(terms, _in_layout_of(case, name, magnitude))
    return sums


def _dtype(case: Case) -> Dtype:
    """Return the widest dtype that is real or complex as the case's dtype is; sums are bounded in it."""
    return named(backends.get("numpy"), "float64" if _parts(case) == 1 else "complex128")


def _plain_product(kind: Kind, geometry: Geometry, a: Any, b: Any) -> Any:
    """Compute a product of doubles by the readable reference, `direct`."""
    step = Operation(kind, replace(geometry, channels_last=False), "float64", "float64", algorithm="direct")
    return compute(step, backends.get("numpy"), a, b)


def _quantising(case: Case, inputs: Inputs) -> dict[str, Doubles]:
    """Bound the change of results when operands are quantised: products with the change of each operand."""
    backend, geometry = backends.get("numpy"), replace(case.geometry, channels_last=False)
    cells, grads = batched(case, inputs.x, inputs.dout)
    products = {
        "out": (Kind.FORWARD, cells, inputs.w),
        "dx": (Kind.INPUT_GRAD, grads, inputs.w),
        "dw": (Kind.WEIGHT_GRAD, grads, cells),
    }
    changes: dict[str, Doubles] = {}
    for name, (kind, a, b) in products.items():
        of_a, of_b = quanta(Operation(kind, geometry, case.dtype, case.dtype), backend, (a, b))
        product = partial(_plain_product, kind, geometry.linear if kind == Kind.INPUT_GRAD else geometry.extended)
        both = zip(kind.operands, (a, b), strict=True)
        size_a, size_b = (_magnitudes(extend(geometry, backend, c) if role == Role.X else c) for role, c in both)
        change = product(size_a, of_b) + product(of_a, size_b + _parts(case) * of_b)
        changes[name] = _in_layout_of(case, name, change)
    step = Operation(Kind.WEIGHT_GRAD, geometry, case.dtype, case.dtype)
    of_dout, _ = quanta(step, backend, (grads, cells))
    changes["db"] = np.sum(of_dout, axis=(0, *range(2, of_dout.ndim)))
    return changes


def batched(case: Case, x: Any, dout: Any) -> tuple[Any, Any]:
    """Return the input and the gradient of the output with channels first: (N, C, *S) and (N, F, *P)."""
    geometry, last = case.geometry, case.data_format == "channels_last"
    cells, grads = (np.moveaxis(a, -1, -1 - geometry.dims) if last else a for a in (x, dout))
    return cells.reshape(geometry.x_shape), grads.reshape(geometry.out_shape)


def _in_layout_of(case: Case, name: str, magnitude: Doubles) -> Doubles:
    """Return magnitudes (N, C, *cells) in the layout of the case; those of filters stay as they are."""
    if name == "dw":
        return magnitude
    last = case.data_format == "channels_last"
    shape = case.x_shape if name == "dx" else case.out_shape
    channels_first = (*shape[: -1 - case.geometry.dims], shape[-1], *shape[-1 - case.geometry.dims : -1])
    magnitude = magnitude.reshape(channels_first if last else shape)
    return np.moveaxis(magnitude, -1 - case.geometry.dims, -1) if last else magnitude
