"""Are sums of integers exact in a library's float64, on a device? Asked once, before anything relies on it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..backends import Array, Backend
from ..errors import BackendError
from ..spec.dtypes import HIGHEST, LOWEST

SIZES = ((24, 5, 16), (21, 11, 256))
"""Bits of each operand's largest magnitude, of the number of terms, and rows: together they take all 53 bits.

A library may take another kernel for small products than for large ones.
"""


def ready(backend: Backend, like: Array) -> Array:
    """Check that sums on the device of `like` are exact; return the powers of two there.

    Raises
    ------
    BackendError
        If it has no float64, or its products are not those of IEEE 754.
    """
    if not backend.holds("float64", like):
        raise BackendError(
            f"precision: got 'reproducible' on {backend.name}, device {backend.device_of(like) or 'any'}, which holds "
            f"no float64; expected {backend.widening or 'a device that does'}"
        )
    return _ready(backend, backend.device_of(like))


@lru_cache(maxsize=64)
def _ready(backend: Backend, device: Any) -> Array:
    with backend.now():
        return _asked(backend, device)


def _asked(backend: Backend, device: Any) -> Array:
    for bits, more, rows in SIZES:
        if not _exact(backend, device, bits, 2**more, rows):
            raise BackendError(
                f"precision: got 'reproducible' on {backend.name}, device {device}, where float64 products of "
                f"{rows} rows and {2**more} terms are not exact; expected IEEE 754 arithmetic: unset "
                "CUBLAS_EMULATE_DOUBLE_PRECISION, and whatever else lets a library compute in fewer bits"
            )
    return backend.asarray([2.0**power for power in range(LOWEST, HIGHEST + 1)], backend.dtype("float64"), device)


def _exact(backend: Backend, device: Any, bits: int, terms: int, rows: int) -> bool:
    """Whether a product of matrices of such integers, of rank one but for signs, is what it must be.

    Factors are odd, so that partial sums take all the bits there are; the last ones are as large as they may be.
    """
    ones = [2**bits - 1 - 2 * (row * row % 4093) for row in range(rows - 1)] + [2**bits]
    others = [2**bits - 3 - 2 * (row * row % 2039) for row in range(rows - 1)] + [2**bits]
    signs = [[1 if term * step % 7 < most else -1 for term in range(terms)] for step, most in ((1, 7), (3, 5), (5, 3))]
    made = backend.dtype("float64")
    xp, left, right = backend.xp, *(backend.asarray([float(n) for n in side], made, device) for side in (ones, others))
    # Each entry is a product of two such integers, which is exact, times how many signs more are 1 than -1.
    entries = xp.reshape(left, (rows, 1)) * xp.reshape(right, (1, rows))
    for sign in signs:
        signed = backend.asarray([float(n) for n in sign], made, device)
        a = xp.reshape(left, (1, rows, 1)) * xp.reshape(signed, (1, 1, terms))
        b = xp.broadcast_to(xp.reshape(right, (1, 1, rows)), (1, terms, rows)) * 1.0
        if not bool(xp.all(backend.product(a, b)[0, ...] == entries * float(sum(sign)))):
            return False
    halves = backend.asarray([0.5, 1.5, 2.5, -2.5, 2.0**52 - 0.5], made, device)
    even = backend.asarray([0.0, 2.0, 2.0, -2.0, 2.0**52], made, device)
    return bool(xp.all(xp.round(halves) == even))
