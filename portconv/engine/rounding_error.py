"""How far from the exact value a result can be: the bounds of docs/accuracy.md, in the arrays' own library."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce

from ..algorithms.algorithm import Algorithm
from ..algorithms.choice import PLAIN
from ..backends import Array, Backend
from ..passes.layout import as_given, canonical
from ..passes.padding import extend
from ..reproducible.magnitudes import parts_of
from ..spec.dtypes import EPSILON, HALVES, KINDS, LARGEST, LEAST_NORMAL, gamma, named, real
from ..spec.geometry import Geometry
from ..spec.operation import Kind, Operation, Role, changed
from . import plan as plans
from .products import product, reproducible

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
        return backend.zeros(step.shape(Role.OUT), backend.empty((), x, dtype=backend.dtype(operation.dtype)))
    with backend.during_call(x, "standard"), backend.quiet():
        bounded = _Bound(step, backend, operands)
        error = bounded.of_reproducible() if step.precision == "reproducible" else bounded.of_rounding()
        # Up, so that no rounding here or to the result's dtype makes it too small.
        error = error * (1 + 4 * EPSILON[parts])
        if parts != operation.dtype:
            error = error * math.sqrt(2)
        error = xp.where(xp.isnan(error), backend.asarray(math.inf, error.dtype, backend.device_of(error)), error)
        return as_given(step, backend, Role.OUT, backend.astype(error, backend.dtype(parts)))


class _Bound:
    """A call whose errors are bounded, with its magnitudes: (N, C, *S), (F, C / G, *K) and (F,), in float64."""

    def __init__(self, step: Operation, backend: Backend, operands: tuple[Array, ...]) -> None:
        x, w, *b = operands
        self.plan = plans.of(step, backend, x, w)
        self.wide = named(backend, "float64" if backend.holds("float64", x) else "float32")
        self.operands = canonical(step, backend, Role.X, x), w, *b
        self.backend, self.real = backend, real(step.dtype)
        self.geometry = replace(step.geometry, channels_last=False)
        self.step = replace(step, geometry=self.geometry, unbatched=False)
        # A part of a product of complex numbers is a sum of two, of real ones.
        self.parts = 1 if self.real == step.dtype else 2
        sizes = [self.sizes(array) for array in self.operands]
        self.x, self.w, self.b = sizes[0], sizes[1], sizes[2] if b else None

    def sizes(self, array: Array) -> Array:
        """Return the magnitudes of an array; of complex numbers the sums of those of both parts."""
        found = [
            self.backend.xp.abs(self.backend.astype(part, self.wide.dtype)) for part in parts_of(self.backend, array)
        ]
        return found[0] + found[1] if len(found) > 1 else found[0]

    def convolved(self, geometry: Geometry, x: Array, w: Array, b: Array | None = None) -> Array:
        """Convolve magnitudes by plain sums."""
        step = Operation(Kind.FORWARD, geometry, self.wide.name, self.wide.name, algorithm=PLAIN)
        return product(step, self.backend, *(x, w) if b is None else (x, w, b))

    def product(self, _: Kind, geometry: Geometry, x: Array, w: Array) -> Array:
        """Compute a forward product of magnitudes, for `Algorithm.magnitudes`."""
        return self.convolved(geometry, x, w)

    @property
    def terms(self) -> int:
        return self.geometry.group_in * self.geometry.taps

    @property
    def tiny(self) -> float:
        """The smallest normal number, which is as much as a number loses that is taken for zero."""
        return 2.0 ** LEAST_NORMAL[self.real]

    def of_rounding(self) -> Array:
        """Bound sums that are rounded as they go, by the algorithm that makes them."""
        return reduce(self.backend.xp.maximum, map(self.of_algorithm, self.plan.algorithms))

    def of_algorithm(self, algorithm: Algorithm) -> Array:
        """Bound the sums of one algorithm, as if it computed the whole."""
        extended = self.geometry.extended
        terms = algorithm.error_terms(Kind.FORWARD, extended, self.parts)
        x = extend(self.geometry, self.backend, self.x)
        magnitude = algorithm.magnitudes(Kind.FORWARD, extended, self.backend, self.product, x, self.w)
        if self.b is not None:
            terms += 1
            magnitude = magnitude + self.backend.xp.reshape(self.b, (-1, *(1,) * extended.dims))
        half = self.real in HALVES
        unit = relative(terms, "float32" if half else self.real, self.step.precision, products=True)
        # The magnitudes are rounded too, perhaps down.
        magnitude = magnitude * (1 + 2 * gamma(terms, EPSILON[self.wide.name] / 2))
        found = unit * magnitude
        if half:
            found = found + EPSILON[self.real] / 2 * (magnitude + found)
        return self.finite(found + terms * self.tiny, magnitude + found)

    def finite(self, bound: Array, magnitude: Array) -> Array:
        """Of results that may be too large for their dtype there is no bound."""
        xp, most = self.backend.xp, LARGEST.get(self.real, math.inf)
        return xp.where(magnitude < most, bound, xp.full_like(bound, math.inf))

    def of_reproducible(self) -> Array:
        """Bound what quantising changes, and one rounding; and the addition of a bias."""
        backend, xp, own = self.backend, self.backend.xp, self.geometry
        x, w, *b = self.operands
        of_x, of_w = reproducible("operands").quanta(self.step, backend, (x, w))
        # A part of a complex number is a sum of two products.
        found = self.convolved(own, self.x, self.parts * of_w) + self.convolved(own, of_x, self.parts * (self.w + of_w))
        found = found * (1 + 4 * gamma(self.parts * self.terms + 4))
        unit = EPSILON[self.real] / 2
        out = product(self.step, backend, x, w)
        found = found + unit * self.sizes(out) + self.tiny
        for bias in b:
            bias = xp.reshape(bias, (1, -1, *(1,) * own.dims))
            # What is added is off by its own rounding, and by a bias that is taken for zero.
            found = found + unit * (1 + 2 * unit) * (self.sizes(out) + self.sizes(bias)) + 2 * self.tiny
        return self.finite(found, self.sizes(out) + found)
