"""How far from the exact value a result can be: the bounds of docs/accuracy.md, in the arrays' own library."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce

from ..algorithms.fft import transform_terms
from ..algorithms.winograd import tile_terms
from ..backends import Array, Backend
from ..passes.layout import as_given, canonical
from ..passes.padding import extend
from ..reproducible.magnitudes import parts_of
from ..spec import checked_geometry
from ..spec.dtypes import EPSILON, HALVES, KINDS, LARGEST, LEAST_NORMAL, gamma, named, real
from ..spec.geometry import Geometry
from ..spec.operation import Kind, Operation, Role, changed
from ..spec.options import Options
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
        """Convolve magnitudes."""
        step = Operation(Kind.FORWARD, geometry, self.wide.name, self.wide.name, algorithm="gemm")
        return product(step, self.backend, *(x, w) if b is None else (x, w, b))

    @property
    def terms(self) -> int:
        return self.geometry.group_in * self.geometry.taps

    @property
    def tiny(self) -> float:
        """The smallest normal number, which is as much as a number loses that is taken for zero."""
        return 2.0 ** LEAST_NORMAL[self.real]

    def of_rounding(self) -> Array:
        """Bound sums that are rounded as they go, by the algorithm that makes them."""
        xp, bounds = self.backend.xp, [self.of_algorithm(name) for name in sorted(self.plan.algorithms)]
        return reduce(xp.maximum, bounds)

    def of_algorithm(self, algorithm: str) -> Array:
        """Bound what one algorithm makes of the whole."""
        own, more = self.geometry.extended, 0 if self.b is None else 1
        if algorithm == "winograd":
            magnitude, terms = self.of_tiles(), tile_terms(own) + more
        elif algorithm == "fft":
            magnitude, terms = self.of_spectra(), transform_terms(own) + 3 * own.group_in + more
        else:
            magnitude, terms = self.convolved(self.geometry, self.x, self.w, self.b), self.parts * self.terms + more
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

    def of_tiles(self) -> Array:
        """|A^T| ((|G| |w|) * (|B^T| |x|)), with the sum of a filter's taps for each of them."""
        xp, dims = self.backend.xp, self.geometry.dims
        taps = xp.sum(self.w, axis=tuple(range(2, 2 + dims)), keepdims=True)
        for axis, kernel in enumerate(self.geometry.kernel):
            if kernel == 3:
                row = [2.0, 1.0, 2.0]
                device = self.backend.device_of(taps)
                shape = tuple(3 if at == axis else 1 for at in range(dims))
                taps = taps * xp.reshape(self.backend.asarray(row, self.wide.dtype, device), (1, 1, *shape))
        return self.convolved(self.geometry, self.x, taps * 1.0, self.b)

    def of_spectra(self) -> Array:
        """Norms of planes times sums of taps; of complex numbers those of their absolute values."""
        xp, own = self.backend.xp, self.geometry.extended
        cells = extend(self.geometry, self.backend, self.x)
        planes = xp.reshape(cells, (own.batch, own.in_channels, 1, -1))
        norms = xp.sqrt(xp.sum(planes * planes, axis=3))
        sums = xp.reshape(xp.sum(self.w, axis=tuple(range(2, self.w.ndim))), (own.out_channels, own.group_in, 1))
        one, _ = checked_geometry.convolution(norms.shape, sums.shape, Options(groups=own.groups))
        found = xp.reshape(self.convolved(one, norms, sums, self.b), (own.batch, own.out_channels, *(1,) * own.dims))
        return xp.broadcast_to(found, own.out_shape) * 1.0

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
