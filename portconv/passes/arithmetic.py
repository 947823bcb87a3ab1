"""What a product of a convolution is computed in, for each dtype.

Every one of the three products of a convolution is bilinear: linear in each of its two operands.

- Floating point of 32 bits and more, real and complex, is computed in its own dtype.
- float16 and bfloat16 are computed in float32, bias included, and rounded once at the end: here, or by an algorithm.
- Integers are multiplied as they are by algorithms that can, and else as slices in floating point: see
  `passes.integers`.
"""

from __future__ import annotations

from typing import NamedTuple

from ..backends import Array, Backend
from ..spec.dtypes import HALVES, Dtype
from .integers import Product, modular, wrapping


class Arithmetic(NamedTuple):
    """How the products of a call are computed.

    Attributes
    ----------
    dtype : Dtype
        The dtype of the result.
    terms : int
        How many products of elements are added up to one element of the result, at most.
    integer_bits : int
        In how many bits integers are multiplied as they are; 0 where they are cut into slices in floating point.
    """

    dtype: Dtype
    terms: int
    integer_bits: int = 0

    def computed_in(self, backend: Backend) -> Dtype:
        """Return the dtype that an algorithm computes in: of integers the widest that slices may be multiplied in."""
        dtype = self.dtype
        if dtype.name in HALVES:
            return Dtype(backend.dtype("float32"), "float32", dtype.kind)
        if dtype.kind == "integral" and self.integer_bits:
            return Dtype(backend.dtype(f"int{self.integer_bits}"), dtype.name, dtype.kind)
        if dtype.kind == "integral" and hasattr(backend.xp, "float64"):
            return Dtype(backend.dtype("float64"), dtype.name, dtype.kind)
        return dtype

    def compute(
        self, backend: Backend, product: Product, widens: bool, a: Array, b: Array, bias: Array | None = None
    ) -> Array:
        """Compute a product of two operands, and add a bias (F,) to its result (N, F, ...), in this arithmetic.

        `product` computes it of operands, and a bias or None, that are all of one floating-point dtype: of float16 and
        bfloat16 only unless it `widens` them.
        """
        dtype = self.dtype
        if dtype.kind == "integral":
            if self.integer_bits:
                return wrapping(backend, self.computed_in(backend).dtype, dtype, product, (a, b, bias))
            return modular(max(1, self.terms), backend, dtype, product, (a, b, bias))
        half = dtype.name in HALVES
        wide = backend.dtype("float32") if half and widens else dtype.dtype
        a, b = backend.astype(a, wide), backend.astype(b, wide)
        result = product(a, b, None if bias is None else backend.astype(bias, wide))
        return backend.astype(result, dtype.dtype) if half else result
