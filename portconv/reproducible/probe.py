"""Checks, before anything relies on it, that float64 sums of integers are exact and others are rounded to nearest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from ..backends import Array, Backend
from ..errors import BackendError

Result = TypeVar("Result")


class Size(NamedTuple):
    """A matrix product to check: bits of the largest operands, bits of the number of terms, and rows."""

    bits: int
    term_bits: int
    rows: int


SIZES = (Size(24, 5, 16), Size(21, 11, 256))
"""The products to check: a small and a large one, as a library may take another kernel for each.

The bits of two operands and of the number of terms add up to 53, which is all that float64 has.
"""


ONE, NEXT, AFTER, HALF = 1.0, 1 + 2.0**-52, 1 + 2.0**-51, 2.0**-53
"""Three numbers that follow one another, of which the second is odd, and half their distance."""
MANY = 1 << 16
"""So many additions are enough for a library to share them out among its threads."""


def check_rounding() -> None:
    """Raise a BackendError where this thread does not round to nearest, as after another library's `fesetround`.

    Upward, the first sum is too large; downward and toward zero, the second is too small. Each thread has a mode of its
    own. It takes a tenth of a microsecond, so it is asked in each call, and on the threads that share it.
    """
    if ONE + HALF != ONE or NEXT + HALF != AFTER:
        raise BackendError(
            "precision: got 'reproducible' on a thread that does not round to nearest; expected the rounding mode "
            "FE_TONEAREST: a library has set another one with fesetround"
        )


def where_rounding_is_to_nearest(compute: Callable[..., Result]) -> Callable[..., Result]:
    """Return a function that checks how this thread rounds, and then computes."""

    def checked(*arrays: Array) -> Result:
        check_rounding()
        return compute(*arrays)

    return checked


def check_float64(backend: Backend, like: Array) -> None:
    """Raise a BackendError where the device of `like` has no float64."""
    if not backend.holds("float64", like):
        device = backend.device_of(like)  # None where the library traces, or does not name it
        place = "" if device is None else f", device {device}"
        raise BackendError(
            f"precision: got 'reproducible' on {backend.name}{place}, which holds no float64; "
            f"expected {backend.widening or 'a device that does'}"
        )


def check_products(backend: Backend, device: Any) -> None:
    """Raise a BackendError where float64 products of integers are not exact, or sums not rounded to nearest."""
    for size in SIZES:
        if not _is_exact(backend, device, size):
            raise BackendError(
                f"precision: got 'reproducible' on {backend.name}, device {device}, where float64 products of "
                f"{size.rows} rows and {2**size.term_bits} terms are not exact; expected IEEE 754 arithmetic: unset "
                "CUBLAS_EMULATE_DOUBLE_PRECISION, and whatever else lets a library compute in fewer bits"
            )


def _is_exact(backend: Backend, device: Any, size: Size) -> bool:
    """Return whether a product of matrices of integers is exact, and numbers are rounded half to even.

    But for signs the matrices have rank one. All integers but the last are odd, so that partial sums need every bit;
    the last is the largest that the size allows.
    """
    bits, rows, terms = size.bits, size.rows, 2**size.term_bits
    ones = [2**bits - 1 - 2 * (row * row % 4093) for row in range(rows - 1)] + [2**bits]
    others = [2**bits - 3 - 2 * (row * row % 2039) for row in range(rows - 1)] + [2**bits]
    patterns = ((1, 7), (3, 5), (5, 3))
    signs = [[1 if term * step % 7 < positive else -1 for term in range(terms)] for step, positive in patterns]
    double = backend.dtype("float64")
    xp = backend.xp
    left, right = (backend.asarray([float(n) for n in side], double, device) for side in (ones, others))
    # Each entry of the product is one exact product of two integers, times the sum of the signs.
    entries = xp.reshape(left, (rows, 1)) * xp.reshape(right, (1, rows))
    for sign in signs:
        signed = backend.asarray([float(n) for n in sign], double, device)
        a = xp.reshape(left, (1, rows, 1)) * xp.reshape(signed, (1, 1, terms))
        b = xp.broadcast_to(xp.reshape(right, (1, 1, rows)), (1, terms, rows)) * 1.0
        if not bool(xp.all(backend.product(a, b)[0, ...] == entries * float(sum(sign)))):
            return False
    sums = backend.asarray([[ONE], [NEXT]], double, device) + xp.full((2, MANY), HALF, dtype=double, device=device)
    if not bool(xp.all(sums == backend.asarray([[ONE], [AFTER]], double, device))):
        return False
    ties = backend.asarray([0.5, 1.5, 2.5, -2.5, 2.0**52 - 0.5], double, device)
    even = backend.asarray([0.0, 2.0, 2.0, -2.0, 2.0**52], double, device)
    return bool(xp.all(xp.round(ties) == even))
