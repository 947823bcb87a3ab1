"""Integers multiplied as exact slices in floating point."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..backends import Array, Backend
from ..spec.dtypes import EXACT, Dtype
from .casts import Product, summable, with_bias


class Slicing(NamedTuple):
    """How integers are multiplied: in dtype `name`, in slices of `width` bits, so many of `a` and of `b`."""

    name: str
    width: int
    of_a: int
    of_b: int

    def pairs(self, bits: int) -> list[tuple[int, list[tuple[int, int]]]]:
        """Pairs of slices by weight: the power of two, and the pairs that have it."""
        found = []
        for total in range(min(self.of_a + self.of_b - 1, -(-bits // self.width))):
            pairs = [(i, total - i) for i in range(self.of_a) if 0 <= total - i < self.of_b]
            found.append((total * self.width, pairs))
        return found


@lru_cache(maxsize=1024)
def slicing(bits: int, bits_of_a: int, bits_of_b: int, terms: int, doubles: bool) -> Slicing | None:
    """Find the cheapest slices that are exact, for sums of `terms` products modulo 2**bits; None where there are none.

    `bits_of_a` and `bits_of_b` are those of the operands as signed integers; `doubles` whether there is float64.
    """
    best, least = None, 0
    for name, exact in EXACT.items():
        if name == "float64" and not doubles:
            continue
        for width in range(27, 0, -1):
            found = Slicing(name, width, -(-bits_of_a // width), -(-bits_of_b // width))
            # Pairs of one weight are added up before they are made integers again.
            if terms * min(found.of_a, found.of_b) * 4 ** (width - 1) <= 2**exact:
                cost = sum(len(pairs) for _, pairs in found.pairs(bits)) * (1 if name == "float32" else 2)
                if best is None or cost < least:
                    best, least = found, cost
                break
    return best


def _modular(
    backend: Backend,
    dtype: Dtype,
    product: Product,
    terms: int,
    a: Array,
    b: Array,
    bias: Array | None,
    slices: bool,
) -> Array:
    bits = backend.bits(dtype.dtype)
    signed = summable(backend, dtype)
    found = None
    if slices:
        widths = (min(bits, backend.bits(given) + _unsigned(backend, given)) for given in (a.dtype, b.dtype))
        found = slicing(bits, *widths, max(1, terms), backend.holds("float64", a))
    a, b = backend.astype(a, signed), backend.astype(b, signed)
    bias = None if bias is None else backend.astype(bias, signed)
    if found is None:
        return backend.astype(product(a, b, bias), dtype.dtype)
    floating = backend.dtype(found.name)
    ones = [backend.astype(part, floating) for part in _slices(a, found.width, found.of_a)]
    others = [backend.astype(part, floating) for part in _slices(b, found.width, found.of_b)]
    # A sum of slices fits in as many bits, and not all devices have int64.
    whole = backend.dtype("int32" if found.name == "float32" else "int64")
    result: Array = None
    for shift, pairs in found.pairs(bits):
        total: Array = None
        for i, j in pairs:
            part = product(ones[i], others[j], None)
            total = part if total is None else backend.add(total, (...,), part)
        part = backend.astype(backend.astype(total, whole), signed)
        result = part if result is None else backend.add(result, (...,), part << shift)
    return backend.astype(with_bias(backend, result, bias), dtype.dtype)


def _slices(array: Array, width: int, count: int) -> list[Array]:
    """Cut signed integers into slices, the lowest first; the last one has what is left."""
    found = []
    for _ in range(count - 1):
        half = 1 << (width - 1)
        low = ((array + half) & (2 * half - 1)) - half
        found.append(low)
        array = (array - low) >> width
    return [*found, array]


def _unsigned(backend: Backend, dtype: object) -> bool:
    return backend.dtype_name(dtype).startswith("u")
