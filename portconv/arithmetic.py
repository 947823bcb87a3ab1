"""What a product of a convolution is computed in, for each dtype.

Every one of the three products of a convolution is bilinear: linear in each of its two operands.

- Floating point of 32 bits and more, real and complex, is computed in its own dtype.
- float16 and bfloat16 are computed in float32, bias included, and rounded once at the end.
- Integers are exact modulo 2**bits. No library multiplies matrices of integers at speed, but all do of floating point,
  and sums of integers are exact there while they stay within 2**24 in float32 and 2**53 in float64, in whatever order
  they are added up. So operands are cut into slices of s bits, `a = sum of a_i * 2**(s i)` with
  `-2**(s - 1) <= a_i < 2**(s - 1)`, and each pair of slices is multiplied in floating point: a sum of K products of
  slices is at most `K * 4**(s - 1)`. Pairs whose weight `2**(s (i + j))` is a multiple of 2**bits need no product. This
  is the splitting of Ozaki, Ogita, Oishi and Rump, "Error-free transformations of matrix multiplication by using fast
  routines of matrix multiplication and its applications" (Numerical Algorithms 59, 2012), section 3, of integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from .arguments import Dtype
from .backends import Array, Backend
from .geometry import Geometry
from .parts import Copies

HALVES = ("float16", "bfloat16")
EXACT = {"float32": 24, "float64": 53}
"""Integers up to two to this power are exact."""

Product = Callable[[Array, Array, Array | None], Array]
"""Of two operands of one dtype, and a bias to add to the result, or None."""


def compute(
    backend: Backend,
    dtype: Dtype,
    product: Product,
    terms: int,
    a: Array,
    b: Array,
    bias: Array | None = None,
    slices: bool = True,
) -> Array:
    """Compute a bilinear product of `a` and `b` in `dtype`.

    Parameters
    ----------
    backend : Backend
    dtype : Dtype
        Of the result.
    product : callable
        The product itself.
    terms : int
        How many products of elements are added up to one element of the result, at most.
    a, b : array
    bias : array, shape (F,), optional
        Added to the result (N, F, ...).
    slices : bool
        Whether integers may be multiplied as slices in floating point.

    Returns
    -------
    array
    """
    if dtype.kind == "integral":
        return _modular(backend, dtype, product, terms, a, b, bias, slices)
    wide = backend.dtype("float32") if dtype.name in HALVES else dtype.dtype
    a, b = backend.astype(a, wide), backend.astype(b, wide)
    bias = None if bias is None else backend.astype(bias, wide)
    result = product(a, b, bias)
    return backend.astype(result, dtype.dtype) if dtype.name in HALVES else result


def computed_in(backend: Backend, dtype: Dtype, slices: bool = True) -> Dtype:
    """Return the dtype that products are computed in: of integers the widest that slices may be multiplied in."""
    if dtype.name in HALVES:
        return Dtype(backend.dtype("float32"), "float32", dtype.kind)
    if dtype.kind == "integral" and slices and hasattr(backend.xp, "float64"):
        return Dtype(backend.dtype("float64"), dtype.name, dtype.kind)
    return dtype


@lru_cache(maxsize=1024)
def copies(
    backend: Backend,
    dtype: Dtype,
    geometry: Geometry,
    purpose: str,
    a: object,
    b: object,
    slices: bool = True,
    exact: int = 0,
) -> Copies:
    """Count the bytes of copies that a product makes before and after an algorithm works on it.

    `a` and `b` are the dtypes of its operands, in the order of `compute`; `exact` is how many products of slices it is
    made of where it is reproducible.
    """
    wide = backend.bits(computed_in(backend, dtype, slices).dtype) // 8
    own = backend.bits(dtype.dtype) // 8
    if exact:
        # In slices, in float64, as are their products.
        operands, result, wide = [8 * exact] * 2, 8 * exact, 8 * exact
    elif dtype.kind == "integral" and slices:
        # As it was given, in slices as they are cut, of at least 8 bits each, and as they are multiplied.
        most = -(-(8 * own + 1) // 8)
        operands, result = [own + most * (wide + 2 * own)] * 2, 3 * wide + 3 * own
    elif dtype.kind == "integral":
        operands, result = [own] * 2, own
    else:
        computed = computed_in(backend, dtype).dtype
        conjugates = dtype.kind == "complex floating" and purpose != "forward"
        operands = [wide if conjugates or backend.native(given) != computed else 0 for given in (a, b)]
        result = wide if dtype.name in HALVES else 0
    shapes = {"x": geometry.x_shape[1:], "w": geometry.w_shape, "out": geometry.out_shape[1:]}
    names = {"forward": ("x", "w", "out"), "input_grad": ("out", "w", "x"), "weight_grad": ("out", "x", "w")}[purpose]
    sizes = {name: math.prod(shapes[name]) * size for name, size in zip(names, (*operands, result), strict=True)}
    sample = sizes["x"] + sizes["out"]
    if geometry.extended is not geometry:
        sample += geometry.in_channels * math.prod(geometry.padded) * max(wide, own)
    # A part's own result, before it is put where it belongs; of filters, what it is added to as well.
    results = {"forward": math.prod(shapes["out"]) * own, "input_grad": math.prod(shapes["x"]) * own}
    return Copies(
        sample, sizes["w"], results.get(purpose, 0), 0 if purpose in results else 2 * math.prod(shapes["w"]) * wide
    )


def conjugate(backend: Backend, array: Array) -> Array:
    """The complex conjugate of an array; the array itself where it is real."""
    return backend.xp.conj(array) if backend.dtype_name(array.dtype).startswith("complex") else array


def narrow(backend: Backend, array: Array, dtype: object) -> Array:
    """`array` in `dtype`, native; of complex numbers where that is real, the real part."""
    dtype = backend.native(dtype)
    if array.dtype == dtype:
        return array
    complexes = [backend.dtype_name(given).startswith("complex") for given in (array.dtype, dtype)]
    return backend.astype(backend.xp.real(array) if complexes == [True, False] else array, dtype)


def summable(backend: Backend, dtype: Dtype) -> object:
    """Return the dtype to add up elements of `dtype` in, so that a result is rounded once, and integers wrap."""
    if dtype.name in HALVES:
        return backend.dtype("float32")
    return backend.dtype(dtype.name.removeprefix("u")) if dtype.kind == "integral" else dtype.dtype


def with_bias(backend: Backend, out: Array, bias: Array | None) -> Array:
    """`out` (N, F, ...), not used elsewhere, with a bias (F,) added."""
    if bias is None:
        return out
    return backend.add(out, (...,), backend.xp.reshape(bias, (1, -1, *(1,) * (out.ndim - 2))))


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
