"""How far from the exact value a result can be: the bounds of docs/accuracy.md, in the arrays' own library."""

from __future__ import annotations

import math
from dataclasses import replace

from ..algorithms.choice import PLAIN, known
from ..backends import Array, Backend
from ..passes.padding import extend
from ..reproducible.magnitudes import parts_of
from ..spec.dtypes import EPSILON, HALVES, LARGEST, LEAST_NORMAL, Dtype, gamma, real
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from .products import Contraction

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


def bound(call: Contraction, x: Array, w: Array, b: Array | None = None) -> Array:
    """Bound the error of each element of a forward call that has been checked."""
    dtype, backend = call.dtype, call.backend
    xp = backend.xp
    if dtype.kind == "integral":
        return backend.zeros(call.out_shape, backend.empty((), x, dtype=dtype.dtype))
    own = real(dtype.name)
    wide = Dtype(backend.dtype("float64" if backend.holds("float64", x) else "float32"), "wide", "real floating")
    with backend.during_call(x, "standard"), backend.quiet():
        parts = _Bound(call, x, w, b, wide, own)
        found = parts.of_reproducible() if call.precision == "reproducible" else parts.of_rounding()
        # Up, so that no rounding here or to the result's dtype makes it too small.
        found = found * (1 + 4 * EPSILON[own])
        if dtype.kind == "complex floating":
            found = found * math.sqrt(2)
        found = xp.where(xp.isnan(found), backend.asarray(math.inf, found.dtype, backend.device_of(found)), found)
        return call.given(backend.astype(found, backend.dtype(own)))


class _Bound:
    """A call whose errors are bounded, with its magnitudes: (N, C, *S), (F, C / G, *K) and (F,), in float64."""

    def __init__(self, call: Contraction, x: Array, w: Array, b: Array | None, wide: Dtype, real: str) -> None:
        self.call, self.wide, self.real = call, wide, real
        self.given = call.seen(x), w, b
        self.backend: Backend = call.backend
        self.geometry = replace(call.geometry, channels_last=False)
        # A part of a product of complex numbers is a sum of two, of real ones.
        self.parts = 2 if call.dtype.kind == "complex floating" else 1
        self.x, self.w = self.sizes(self.given[0]), self.sizes(w)
        self.b = None if b is None else self.sizes(b)

    def sizes(self, array: Array) -> Array:
        """Magnitudes; of complex numbers the sums of both parts'."""
        found = [
            self.backend.xp.abs(self.backend.astype(part, self.wide.dtype)) for part in parts_of(self.backend, array)
        ]
        return found[0] + found[1] if len(found) > 1 else found[0]

    def convolved(self, geometry: Geometry, x: Array, w: Array, b: Array | None = None) -> Array:
        call = Contraction(self.backend, self.wide, geometry, PLAIN, False, "standard", self.call.spare)
        return call.forward(self.wide, x, w, b)

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
        algorithm, own = known()[self.call.served("forward")], self.geometry.extended
        terms = algorithm.error_terms(Kind.FORWARD, own, self.parts)
        x = extend(self.geometry, self.backend, self.x)
        magnitude = algorithm.magnitudes(Kind.FORWARD, own, self.backend, self.product, x, self.w)
        if self.b is not None:
            terms += 1
            magnitude = magnitude + self.backend.xp.reshape(self.b, (-1, *(1,) * own.dims))
        half = self.real in HALVES
        unit = relative(terms, "float32" if half else self.real, self.call.precision, products=True)
        # The magnitudes are rounded too, perhaps down.
        magnitude = magnitude * (1 + 2 * gamma(terms, EPSILON[self.wide_name] / 2))
        found = unit * magnitude
        if half:
            found = found + EPSILON[self.real] / 2 * (magnitude + found)
        return self.finite(found + terms * self.tiny, magnitude + found)

    @property
    def wide_name(self) -> str:
        return self.backend.dtype_name(self.wide.dtype)

    def finite(self, bound: Array, magnitude: Array) -> Array:
        """Of results that may be too large for their dtype there is no bound."""
        xp, most = self.backend.xp, LARGEST.get(self.real, math.inf)
        return xp.where(magnitude < most, bound, xp.full_like(bound, math.inf))

    def of_reproducible(self) -> Array:
        """Bound what quantising changes, and one rounding; and the addition of a bias."""
        from ..reproducible.sliced_product import quanta  # which takes as long to import as half the rest

        backend, xp, own = self.backend, self.backend.xp, self.geometry
        call = replace(self.call, geometry=own, unbatched=False)
        x, w, b = self.given
        of_x, of_w = quanta(backend, own, call.dtype.name, "forward", x, w)
        # A part of a complex number is a sum of two products.
        found = self.convolved(own, self.x, self.parts * of_w) + self.convolved(own, of_x, self.parts * (self.w + of_w))
        found = found * (1 + 4 * gamma(self.parts * self.terms + 4))
        unit = EPSILON[self.real] / 2
        out = call.forward(call.dtype, x, w, None)
        found = found + unit * self.sizes(out) + self.tiny
        if b is not None:
            bias = xp.reshape(b, (1, -1, *(1,) * own.dims))
            # What is added is off by its own rounding, and by a bias that is taken for zero.
            found = found + unit * (1 + 2 * unit) * (self.sizes(out) + self.sizes(bias)) + 2 * self.tiny
        return self.finite(found, self.sizes(out) + found)
