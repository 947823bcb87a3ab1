"""Integers, multiplied exactly modulo 2**bits as slices in floating point.

No library multiplies matrices of integers at speed, but all do of floating point, and sums of integers are exact there
while they stay within 2**24 in float32 and 2**53 in float64, in whatever order they are added up. So operands are cut
into slices of s bits, `a = sum of a_i * 2**(s i)` with `-2**(s - 1) <= a_i < 2**(s - 1)`, and each pair of slices is
multiplied in floating point: a sum of K products of slices is at most `K * 4**(s - 1)`. Pairs whose weight
`2**(s (i + j))` is a multiple of 2**bits need no product. This is the splitting of Ozaki, Ogita, Oishi and Rump,
"Error-free transformations of matrix multiplication by using fast routines of matrix multiplication and its
applications" (Numerical Algorithms 59, 2012), section 3, of integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..backends import Array, Backend
from ..spec.dtypes import EXACT, Dtype
from ..spec.remembered import remembered
from .casts import summable, with_bias

Product = Callable[[Array, Array, Array | None], Array]
"""A product of two operands of one dtype, which adds a bias, or None, to its result."""


class Slicing(NamedTuple):
    """How integers are multiplied: in the dtype `name`, in slices of `width` bits, so many of `a` and of `b`."""

    name: str
    width: int
    of_a: int
    of_b: int

    def pairs(self, bits: int) -> list[tuple[int, list[tuple[int, int]]]]:
        """Return the pairs of slices by weight: the exponent of two, and the pairs that have it."""
        weights = []
        for total in range(min(self.of_a + self.of_b - 1, -(-bits // self.width))):
            pairs = [(i, total - i) for i in range(self.of_a) if 0 <= total - i < self.of_b]
            weights.append((total * self.width, pairs))
        return weights


@remembered()
def slicing(bits: int, bits_of_a: int, bits_of_b: int, terms: int, doubles: bool) -> Slicing | None:
    """Find the cheapest slices that are exact, for sums of `terms` products modulo 2**bits; None where there are none.

    `bits_of_a` and `bits_of_b` are those of the operands as signed integers; `doubles` says whether there is float64.
    """
    best, least = None, 0
    for name, exact in EXACT.items():
        if name == "float64" and not doubles:
            continue
        for width in range(27, 0, -1):
            tried = Slicing(name, width, -(-bits_of_a // width), -(-bits_of_b // width))
            # Pairs of one weight are added up before they are made integers again.
            if terms * min(tried.of_a, tried.of_b) * 4 ** (width - 1) <= 2**exact:
                cost = sum(len(pairs) for _, pairs in tried.pairs(bits)) * (1 if name == "float32" else 2)
                if best is None or cost < least:
                    best, least = tried, cost
                break
    return best


def modular(
    terms: int,
    backend: Backend,
    dtype: Dtype,
    product: Product,
    operands: tuple[Array, Array, Array | None],
) -> Array:
    """Compute a product of integers modulo 2**bits, with sums of `terms` products.

    Where there are no slices, the library multiplies the integers themselves.
    """
    a, b, bias = operands
    signed, slices = summable(backend, dtype), _slicing_of(terms, backend, dtype, a, b)
    if slices is None:
        return wrapping(backend, signed, dtype, product, operands)
    a, b = backend.astype(a, signed), backend.astype(b, signed)
    bias = None if bias is None else backend.astype(bias, signed)
    result = _sliced_product(slices, backend, dtype, product, (a, b))
    return backend.astype(with_bias(backend, result, bias), dtype.dtype)


def wrapping(
    backend: Backend, wide: object, dtype: Dtype, product: Product, operands: tuple[Array, Array, Array | None]
) -> Array:
    """Compute a product of integers as they are, in `wide`, which has as many bits as the result or more."""
    a, b, bias = (None if each is None else backend.astype(each, wide) for each in operands)
    return backend.astype(product(a, b, bias), dtype.dtype)


def _slicing_of(terms: int, backend: Backend, dtype: Dtype, a: Array, b: Array) -> Slicing | None:
    bits = backend.bits(dtype.dtype)
    # An unsigned integer takes one bit more as a signed one.
    unsigned = (backend.dtype_name(array.dtype).startswith("u") for array in (a, b))
    widths = (min(bits, backend.bits(each.dtype) + more) for each, more in zip((a, b), unsigned, strict=True))
    return slicing(bits, *widths, max(1, terms), backend.holds("float64", a))


def _sliced_product(
    slices: Slicing, backend: Backend, dtype: Dtype, product: Product, operands: tuple[Array, Array]
) -> Array:
    """Multiply the slices of two operands, and add up the products by weight."""
    a, b = operands
    signed, floating = summable(backend, dtype), backend.dtype(slices.name)
    ones = [backend.astype(part, floating) for part in _cut(a, slices.width, slices.of_a)]
    others = [backend.astype(part, floating) for part in _cut(b, slices.width, slices.of_b)]
    # A sum of slices fits in as many bits, and not all devices have int64.
    whole = backend.dtype("int32" if slices.name == "float32" else "int64")
    result: Array = None
    for shift, pairs in slices.pairs(backend.bits(dtype.dtype)):
        total: Array = None
        for i, j in pairs:
            part = product(ones[i], others[j], None)
            total = part if total is None else backend.add(total, (...,), part)
        part = backend.astype(backend.astype(total, whole), signed)
        result = part if result is None else backend.add(result, (...,), part << shift)
    return result


def _cut(array: Array, width: int, count: int) -> list[Array]:
    """Cut signed integers into slices, the lowest first; the last one has what is left."""
    slices = []
    for _ in range(count - 1):
        half = 1 << (width - 1)
        low = ((array + half) & (2 * half - 1)) - half
        slices.append(low)
        array = (array - low) >> width
    return [*slices, array]
