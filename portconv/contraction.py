"""The three products of a convolution, of arrays as the caller has them, by one algorithm.

Algorithms know batches of one floating-point dtype, channels first, padded with zeros. What else there is, is brought
into that form and back here: layouts, single samples, padding modes and dtypes.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from . import arguments
from .arguments import Dtype
from .arithmetic import Product, compute, conjugate, summable, with_bias
from .backends import Array, Backend
from .boundary import extend, fold, overlap
from .geometry import Geometry

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Contraction:
    """A call whose shapes and options have been checked.

    Inputs and outputs are those of a convolution: of a transposed one, the other way round.
    """

    backend: Backend
    geometry: Geometry
    algorithm: ModuleType
    unbatched: bool
    precision: str

    @property
    def name(self) -> str:
        """The algorithm's name."""
        return self.algorithm.__name__.rpartition(".")[2]

    @property
    def x_shape(self) -> Shape:
        """The shape of the input as the caller has it."""
        return given(self.geometry, self.geometry.x_shape, self.unbatched)

    @property
    def out_shape(self) -> Shape:
        """The shape of the output as the caller has it."""
        return given(self.geometry, self.geometry.out_shape, self.unbatched)

    def forward(self, dtype: Dtype, x: Array, w: Array, b: Array | None) -> Array:
        def product(x: Array, w: Array, b: Array | None) -> Array:
            x = extend(self.geometry, self.backend, x)
            out: Array = self.algorithm.forward(self.geometry.extended, self.backend, x, w, b)
            return out

        with self._held(dtype, x):
            terms = self.geometry.group_in * self.geometry.taps
            return self._given(self._computed(dtype, product, terms, self._seen(x), w, b))

    def input_grad(self, dtype: Dtype, dout: Array, w: Array, adjoint: bool = True, b: Array | None = None) -> Array:
        """Compute the gradient of the input; without `adjoint`, the transposed convolution, which adds a bias."""

        def product(dout: Array, w: Array, b: Array | None) -> Array:
            grad = self.algorithm.input_grad(self.geometry.extended, self.backend, dout, w)
            return with_bias(self.backend, fold(self.geometry, self.backend, grad), b)

        with self._held(dtype, dout):
            w = conjugate(self.backend, w) if adjoint else w
            terms = self.geometry.group_out * self.geometry.taps * overlap(self.geometry)
            return self._given(self._computed(dtype, product, terms, self._seen(dout), w, b))

    def weight_grad(self, dtype: Dtype, dout: Array, x: Array, adjoint_of: str = "x") -> Array:
        """Compute the gradient of the filters; `adjoint_of` which operand, "x" or "dout", is the one given forward."""

        def product(dout: Array, x: Array, _: Array | None) -> Array:
            x = extend(self.geometry, self.backend, x)
            grad: Array = self.algorithm.weight_grad(self.geometry.extended, self.backend, dout, x)
            return grad

        with self._held(dtype, dout):
            x = conjugate(self.backend, x) if adjoint_of == "x" else x
            dout = conjugate(self.backend, dout) if adjoint_of == "dout" else dout
            terms = self.geometry.batch * self.geometry.positions
            return self._computed(dtype, product, terms, self._seen(dout), self._seen(x))

    def channel_sum(self, dtype: Dtype, array: Array) -> Array:
        """Add up the elements of each channel, of an input or an output as the caller has it."""
        with self._held(dtype, array):
            xp, wide = self.backend.xp, summable(self.backend, dtype)
            seen = self._seen(array)
            if self.geometry.channels_last:
                cells = xp.permute_dims(seen, (0, *range(2, seen.ndim), 1))
                sums = xp.sum(self.backend.astype(cells, wide), axis=tuple(range(seen.ndim - 1)), dtype=wide)
            else:
                # Cells first: they lie side by side, and their sum is then a pairwise one where the library has it.
                flat = self.backend.astype(xp.reshape(seen, (*seen.shape[:2], math.prod(seen.shape[2:]))), wide)
                sums = xp.sum(xp.sum(flat, axis=2, dtype=wide), axis=0, dtype=wide)
            return self.backend.astype(sums, dtype.dtype)

    def room(self, dtype: Dtype, like: Array, name: str, got: Shape, made: str) -> None:
        """Check that there is memory to make "out", "x" or "w", which argument `name` of shape `got` asks for."""
        geometry = self.geometry
        shapes = [{"out": geometry.out_shape, "x": geometry.x_shape, "w": geometry.w_shape}[made]]
        if geometry.extended is not geometry or self.name == "direct":
            shapes.append((geometry.batch, geometry.in_channels, *geometry.padded))
        arguments.room(self.backend, like, dtype, name, tuple(got), *shapes)

    def _computed(
        self, dtype: Dtype, product: Product, terms: int, a: Array, b: Array, bias: Array | None = None
    ) -> Array:
        # The readable truth multiplies integers as they are.
        return compute(self.backend, dtype, product, terms, a, b, bias, slices=self.name != "direct")

    def _held(self, dtype: Dtype, like: Array) -> AbstractContextManager[Any]:
        # Integers stay exact, whatever precision the caller lets floating point have.
        return self.backend.during_call(like, "standard" if dtype.kind == "integral" else self.precision)

    def _seen(self, array: Array) -> Array:
        """An array as algorithms see it: (N, C, *cells)."""
        if self.unbatched:
            array = self.backend.xp.reshape(array, (1, *array.shape))
        if self.geometry.channels_last:
            array = self.backend.xp.permute_dims(array, (0, array.ndim - 1, *range(1, array.ndim - 1)))
        return array

    def _given(self, array: Array) -> Array:
        """An array as the caller has it."""
        if self.geometry.channels_last:
            array = self.backend.xp.permute_dims(array, (0, *range(2, array.ndim), 1))
        return array[0, ...] if self.unbatched else array


def given(geometry: Geometry, shape: Shape, unbatched: bool) -> Shape:
    """Turn a shape (N, C, *cells) into the caller's."""
    batch, channels, *cells = shape
    own = (*cells, channels) if geometry.channels_last else (channels, *cells)
    return own if unbatched else (batch, *own)
