"""How far from the exact value a result can be: the bounds of docs/accuracy.md, in the arrays' own library."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from functools import reduce

from ..algorithms.algorithm import Algorithm
from ..algorithms.choice import PLAIN
from ..backends import Array, Backend
from ..passes.gathering import gathered, take
from ..passes.layout import as_given, canonical
from ..passes.padding import extend
from ..passes.part import EVERY
from ..reproducible.magnitudes import parts_of
from ..spec.dtypes import EPSILON, HALVES, KINDS, LARGEST, LEAST_NORMAL, gamma, named, real, zeroed_below
from ..spec.geometry import Geometry
from ..spec.operation import Kind, Operation, Role, changed
from . import plan as plans
from .late import reproducible
from .products import product

TF32_OPERAND = 2.0**-10
"""The largest relative error of a float32 cut to TF32's 10 explicit bits: NVIDIA, "NVIDIA A100 Tensor Core GPU
Architecture" (2020)."""


def relative(terms: int, dtype: str, precision: str, products: bool) -> float:
    """Bound the error of a sum of `terms` terms, relative to the sum of their magnitudes.

    Fast arithmetic in float32 may cut both factors of a product to TF32, and its sums may be truncated where others are
    rounded, which doubles u: Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores" (PeerJ
    Computer Science, 2021), section 4.
    """
    eps = EPSILON[dtype]
    if precision == "fast" and dtype == "float32" and products:
        return (1 + TF32_OPERAND) ** 2 * (1 + gamma(terms, eps)) - 1
    return gamma(terms, eps / 2)


def bound(operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Bound the error of each element of a forward product: of the input, the filters and a bias or none."""
    xp, x, parts = backend.xp, operands[0], real(operation.dtype)
    step = changed(operation, kind=Kind.FORWARD, result_dtype=operation.dtype)
    if KINDS[operation.dtype] == "integral":
        plans.of(step, backend, *operands[:2])  # which raises what the call itself would
        return backend.zeros(step.shape(Role.OUT), backend.empty((), x, dtype=backend.dtype(operation.dtype)))
    with backend.during_call(x, "standard"), backend.quiet():
        bounded = _Bound(step, backend, operands)
        error = bounded.of_reproducible() if step.precision == "reproducible" else bounded.of_rounding()
        # It is rounded up, so that no rounding here or to the dtype of the result makes it too small.
        error = error * (1 + 4 * EPSILON[parts])
        if parts != operation.dtype:
            error = error * math.sqrt(2)
        error = xp.where(xp.isnan(error), backend.asarray(math.inf, error.dtype, backend.device_of(error)), error)
        return as_given(step, backend, Role.OUT, backend.astype(error, backend.dtype(parts)))


class _Bound:
    """The bound of a forward product, from the magnitudes of its operands, (N, C, *S), (F, C / G, *K) and (F,)."""

    def __init__(self, step: Operation, backend: Backend, operands: tuple[Array, ...]) -> None:
        x, w, *b = operands
        self.plan = plans.of(step, backend, x, w)
        self.wide = named(backend, "float64" if backend.holds("float64", x) else "float32")
        x, self.geometry = canonical(step, backend, Role.X, x), replace(step.geometry, channels_last=False)
        if step.precision != "reproducible":  # whose scales depend on cells that no window reads, too
            x, self.geometry = take(self.geometry, backend, x, EVERY), gathered(self.geometry)
        self.operands = x, w, *b
        self.backend, self.real = backend, real(step.dtype)
        self.step = replace(step, geometry=self.geometry, unbatched=False)
        self.parts = 1 if self.real == step.dtype else 2
        """How many products of real numbers are added up to a part of a product of two numbers."""
        self.x, self.w, *self.b = (self.magnitudes_of(array) for array in self.operands)
        number = self.geometry.value
        around = replace(self.geometry, value=abs(number.real) + abs(number.imag))
        self.x, self.extended = extend(around, backend, self.x), self.geometry.extended

    def magnitudes_of(self, array: Array) -> Array:
        """Return the magnitudes of an array; of complex numbers, the sums of the magnitudes of both parts."""
        parts = (self.backend.astype(part, self.wide.dtype) for part in parts_of(self.backend, array))
        return reduce(operator.add, map(self.backend.xp.abs, parts))

    def convolve(self, _: Kind, geometry: Geometry, x: Array, w: Array) -> Array:
        """Convolve magnitudes by plain sums."""
        step = Operation(Kind.FORWARD, geometry, self.wide.name, self.wide.name, algorithm=PLAIN)
        return product(step, self.backend, x, w)

    @property
    def tiny(self) -> float:
        """The smallest normal number: a number that is taken for zero loses at most so much."""
        return 2.0 ** LEAST_NORMAL[self.real]

    def of_rounding(self) -> Array:
        """Bound sums that are rounded as they go, by the algorithms that compute the parts of the product."""
        return reduce(self.backend.xp.maximum, map(self.of_algorithm, self.plan.algorithms))

    def of_algorithm(self, algorithm: Algorithm) -> Array:
        """Bound the sums of one algorithm, as if it computed the whole."""
        extended = self.extended
        terms = algorithm.error_terms(Kind.FORWARD, extended, self.parts)
        magnitude = algorithm.magnitudes(Kind.FORWARD, extended, self.backend, self.convolve, self.x, self.w)
        for bias in self.b:
            terms += 1
            magnitude = magnitude + self.backend.xp.reshape(bias, (-1, *(1,) * extended.dims))
        half = self.real in HALVES
        unit = relative(terms, "float32" if half else self.real, self.step.precision, products=True)
        # The magnitudes are rounded too, perhaps down.
        magnitude = magnitude * (1 + 2 * gamma(terms, EPSILON[self.wide.name] / 2))
        error = unit * magnitude
        if half:
            # A library that takes them as they are may round the sum before it adds the bias.
            roundings = 2 if self.b and algorithm.rounds_sums else 1
            error = error + roundings * EPSILON[self.real] / 2 * (magnitude + error)
        return self.infinite_beyond(error + terms * self.tiny, magnitude + error)

    def of_reproducible(self) -> Array:
        """Bound what quantising changes, one rounding, and the addition of a bias."""
        backend, geometry, (x, w, *b) = self.backend, self.geometry, self.operands
        quanta_of_x, quanta_of_w = reproducible("operands").quanta(self.step, backend, (x, w))
        error = self.convolve(Kind.FORWARD, self.extended, self.x, self.parts * quanta_of_w)
        error = error + self.convolve(Kind.FORWARD, self.extended, quanta_of_x, self.parts * (self.w + quanta_of_w))
        terms = self.parts * geometry.terms(Kind.FORWARD)
        error = error * (1 + 4 * gamma(terms + 4))
        unit = EPSILON[self.real] / 2
        size = self.magnitudes_of(product(self.step, backend, x, w))
        error = error + unit * size + self.tiny
        for bias in b:
            of_bias = self.magnitudes_of(backend.xp.reshape(bias, (1, -1, *(1,) * geometry.dims)))
            # The addition is off by its own rounding, and by a bias that is taken for zero.
            least = zeroed_below(backend.dtype_name(bias.dtype), self.step.dtype)
            size = size + of_bias
            error = error + unit * (1 + 2 * unit) * size + self.tiny + least
        return self.infinite_beyond(error, size + error)

    def infinite_beyond(self, bound: Array, magnitude: Array) -> Array:
        """Return the bound, infinite where a result may be too large for its dtype."""
        xp, most = self.backend.xp, LARGEST.get(self.real, math.inf)
        return xp.where(magnitude < most, bound, xp.full_like(bound, math.inf))
