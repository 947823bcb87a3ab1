"""What is known of dtypes by name: their kind, digits, smallest and largest numbers, and unit roundoff."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..backends import Backend

KINDS = {
    **dict.fromkeys(("float16", "bfloat16", "float32", "float64"), "real floating"),
    **dict.fromkeys(("complex64", "complex128"), "complex floating"),
    **dict.fromkeys((f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "integral"),
}
"""The kind of each dtype that is served, by its name."""
HALVES = ("float16", "bfloat16")
"""The dtypes that products are computed in float32 for."""
PARTS_OF = {"complex64": "float32", "complex128": "float64"}
"""The dtype of the real and the imaginary part of a complex dtype."""
DIGITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
"""The bits of a significand, with the one that is not written down."""
EPSILON = {name: 2.0 ** (1 - digits) for name, digits in DIGITS.items()}
"""The distance from 1 to the next larger number of a dtype."""
LARGEST = {"float16": 65504.0, "bfloat16": 2.0**128 - 2.0**120, "float32": 2.0**128 - 2.0**104}
"""The largest finite number of a dtype."""
LEAST_NORMAL = {"float16": -14, "bfloat16": -126, "float32": -126, "float64": -1022}
"""The exponent of the power of two that is a dtype's smallest normal number."""
LOWEST, HIGHEST = -1022, 1023
"""The exponents of the powers of two that are normal numbers of float64."""
EXACT = {"float32": 24, "float64": 53}
"""Integers of a magnitude up to two to this power are exact in a dtype."""


class Dtype(NamedTuple):
    """A dtype of one library, with its name and its kind."""

    dtype: Any
    name: str
    kind: str


def named(backend: Backend, name: str) -> Dtype:
    """Return the dtype of a backend that has a name."""
    return Dtype(backend.dtype(name), name, KINDS[name])


def real(dtype: str) -> str:
    """Return the dtype of the parts of complex numbers; of real numbers their own."""
    return PARTS_OF.get(dtype, dtype)


def zeroed_below(dtype: str, call: str) -> float:
    """Return the magnitude below which a reproducible call in the dtype `call` takes elements of a dtype for zero.

    It is the smallest normal number. float16 beside a wider dtype is first promoted, which every library does exactly.
    Numbers that are subnormal in the other dtypes are no normal float32 either, or not every library can widen them.
    """
    own = real(dtype)
    return 2.0 ** LEAST_NORMAL["float32" if own == "float16" != real(call) else own]


def rounded(value: Any, dtype: str) -> float:
    """Round a real number to a real floating-point dtype, half to even; what is too large for it is infinite."""
    try:
        number = float(value)
    except OverflowError:
        return math.inf
    if math.isnan(number):
        return math.nan  # one object, which equals itself as a key
    if number == 0 or math.isinf(number):
        return number
    quantum = 2.0 ** (max(math.frexp(number)[1], LEAST_NORMAL[dtype] + 1) - DIGITS[dtype])
    number = round(number / quantum) * quantum
    return math.copysign(math.inf, number) if abs(number) > LARGEST.get(dtype, math.inf) else number


def gamma(terms: int, unit: float = 2.0**-53) -> float:
    """Compute gamma_n for `terms` terms and the unit roundoff `unit`, which is float64's unless given.

    Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed. (2002), section 3.1.
    """
    return terms * unit / (1 - terms * unit) if terms * unit < 1 else math.inf
