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

from ..backends import Array, Backend
from ..spec.dtypes import HALVES, Dtype
from .casts import Product
from .integers import _modular


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
