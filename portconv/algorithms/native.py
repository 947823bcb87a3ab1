"""The convolution that the array library has of its own, such as PyTorch's and JAX's, and cuDNN's for CuPy.

The library's functions are called through `Backend.native_convolution`, which says what they compute, what they cost,
and where their result may be wrong because a number is not finite. Here is what holds for all libraries.

The error bound is that of a plain sum. It holds for sums in any order, in blocks, with fused multiply-adds or with
zeros between the terms: each term is rounded at most once for each term of its sum. oneDNN, XLA and PyTorch's own code
for CPUs add up so. Where a library may do otherwise the bound is that of `native_tiles`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..backends import Array, Backend, Convolution, NativeConvolution
from ..errors import in_a_line
from ..spec.dtypes import HALVES, KINDS, Dtype
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.ranges import Ranges, pieces
from ..spec.remembered import looked_up
from . import native_tiles
from .algorithm import Algorithm, LibraryError, PlainProduct
from .budget import Budget, Work

MOST_PADDED = 1 << 20
"""So many elements a padded input may have, or `PADDED` times as many as the input and the output."""
PADDED = 4

LONGEST_RUN = 1 << 15
"""So many positions a library adds up at once in a gradient of filters, or those of one sample: it may add up one by
one, and the error grows with the longest plain sum."""
MOST_RUNS = 32
"""There are no more runs than this."""
MOST_POSITIONS, LOSING_DIGITS = 1 << 17, 1000
""""auto" leaves a gradient of filters to others if a sample has more positions: its operations count so many times."""


class Native(Algorithm):
    """The library's own functions."""

    name = "native"
    order = 35
    grows = True
    sums_slices = False
    widens_halves = False
    rounds_sums = True

    def objection(self, geometry: Geometry, dtype: Dtype, backend: Backend) -> str | None:
        """Support the real numbers of a library that has a convolution of its own, and integers where that does."""
        native = backend.native_convolution
        if native is None:
            return backend.without_native
        if dtype.kind == "complex floating":
            return "real numbers: libraries make three products of a complex one, whose differences cancel"
        if dtype.kind == "integral" and not native.integers:
            return "floating-point numbers: libraries convolve integers slowly, or not at all"
        convolution = described(geometry)
        if (why_not := native.objection(convolution)) is not None:
            return why_not
        padded = geometry.batch * geometry.in_channels
        for size, lo, hi in zip(geometry.size, geometry.before, geometry.after, strict=True):
            padded *= size + max(0, lo) + max(0, hi)
        if padded > max(MOST_PADDED, PADDED * convolution.elements):
            return f"padding that makes an input at most {PADDED} times as large as all arrays together"
        return None

    def integer_bits(self, bits: int) -> int:
        """Multiply integers as they are, where the library does."""
        return bits

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of a product as the library's backend does."""
        counted = _own(backend).work(str(kind), described(geometry), budget.bits, budget.device)
        steps, operations = 1, counted.operations
        if kind == Kind.WEIGHT_GRAD:
            steps = len(_runs(geometry))
            operations *= LOSING_DIGITS if geometry.positions > MOST_POSITIONS else 1
        calls = steps * counted.calls
        return Work(0, counted.elements, 0, calls, counted.workspace, {}, steps=steps, native=operations)

    def repeated(
        self, kind: str, geometry: Geometry, backend: Backend, budget: Budget, operands: tuple[Array, ...]
    ) -> Callable[..., Array | None] | None:
        """Return the library's function, if a call of it needs no settings around it."""
        native, convolution = _own(backend), described(geometry)
        name = backend.dtype_name(operands[0].dtype)
        if not native.at_once or kind != Kind.FORWARD or geometry.channels_last or name in HALVES:
            return None
        is_whole = KINDS[name] == "integral"

        def compute(x: Array, w: Array, b: Array | None = None) -> Array | None:
            out = native.forward(x, w, b, convolution)
            return out if out is None or is_whole or backend.all_finite(out) else None

        return compute

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array | None:
        return _called(backend, _own(backend).forward, x, w, b, described(geometry))

    def input_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, w: Array) -> Array | None:
        if _own(backend).mirrors:
            return super().input_grad(geometry, backend, budget, dout, w)
        return _called(backend, _own(backend).input_grad, dout, w, described(geometry))

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array | None:
        product, runs = _own(backend).weight_grad, _runs(geometry)
        if len(runs) == 1:
            return _called(backend, product, dout, x, described(geometry))
        if backend.dtype_name(x.dtype) in HALVES:  # what is added up is in float32
            dout, x = (backend.astype(array, backend.dtype("float32")) for array in (dout, x))
        total: Array = None
        for start, stop in runs:
            convolution = described(replace(geometry, batch=stop - start))
            part = _called(backend, product, dout[start:stop, ...], x[start:stop, ...], convolution)
            if part is None:
                return None
            total = part if total is None else backend.add(total, (...,), part)
        return total

    def magnitudes(
        self, kind: Kind, geometry: Geometry, backend: Backend, product: PlainProduct, a: Array, b: Array
    ) -> Array:
        """Return the plain sums, or what bounds the errors of tiles where the library may compute them."""
        native = backend.native_convolution
        if native is not None and native.in_tiles(described(geometry), backend.device_kind(a)):
            return native_tiles.magnitudes(kind, geometry, backend, product, a, b)
        return product(kind, geometry, a, b)


def _runs(geometry: Geometry) -> Ranges:
    """Cut the samples of a gradient of filters into runs, whose sums are added up."""
    samples = max(1, LONGEST_RUN // max(1, geometry.positions))
    return pieces(geometry.batch, max(samples, -(-geometry.batch // MOST_RUNS)))


@looked_up
def described(geometry: Geometry) -> Convolution:
    """Describe a convolution to a library."""
    return Convolution(
        geometry.x_shape,
        geometry.w_shape,
        geometry.out_shape,
        geometry.stride,
        geometry.dilation,
        geometry.before,
        geometry.after,
        geometry.groups,
    )


def _own(backend: Backend) -> NativeConvolution:
    """Return the convolution of a library that has one."""
    native = backend.native_convolution
    assert native is not None
    return native


def _called(backend: Backend, product: Callable[..., Array | None], *arguments: Any) -> Array | None:
    """Call a function of a library; report an error that it raises as the library's."""
    try:
        return product(*arguments)
    except (NotImplementedError, AttributeError, NameError):  # not of the library: of its backend
        raise
    except Exception as error:
        words = f"{type(error).__name__}: {in_a_line(error)}"
        raise LibraryError(f"algorithm 'native': {backend.name}'s own convolution failed: {words}") from error
