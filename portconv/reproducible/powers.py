"""Powers of two, taken from a table, so that every library makes them exactly."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from ..backends import Array, Backend
from ..spec.dtypes import HIGHEST, LOWEST
from .probe import check_float64, check_products, check_rounding


class PowersOfTwo(NamedTuple):
    """The powers of two that are normal numbers of float64, on one device.

    Attributes
    ----------
    backend : Backend
    numbers : array
        The powers in ascending order, from ``2**LOWEST`` to ``2**HIGHEST``.
    """

    backend: Backend
    numbers: Array

    def of(self, exponents: Array) -> Array:
        """Return two to the power of integer exponents; each power must be a normal number."""
        xp = self.backend.xp
        numbers = xp.take(self.numbers, xp.reshape(exponents, (-1,)) - LOWEST, axis=0)
        return xp.reshape(numbers, tuple(exponents.shape))

    def exponents_above(self, magnitudes: Array) -> Array:
        """Return the exponents of the powers of two at or above these magnitudes, and 0 where a magnitude is 0."""
        xp = self.backend.xp
        exponents = xp.searchsorted(self.numbers, xp.reshape(magnitudes, (-1,))) + LOWEST
        exponents = xp.reshape(xp.astype(exponents, xp.int64), magnitudes.shape)
        return xp.where(magnitudes == 0, xp.zeros_like(exponents), exponents)

    def scales_of(self, exponents: Array, out: Array) -> Array:
        """Return the powers for the exponents of the first two axes of `out`, in its dtype, to be multiplied by it."""
        return self.backend.astype(over_cells(self.backend, self.of(exponents), out.ndim - 2), out.dtype)


def powers_of_two(backend: Backend, like: Array) -> PowersOfTwo:
    """Return the powers of two on the device of `like`, once float64 is known to be exact there.

    Raises
    ------
    BackendError
        If the device has no float64, its products are not those of IEEE 754, or this thread rounds otherwise.
    """
    check_rounding()
    check_float64(backend, like)
    return _checked_powers(backend, backend.device_of(like))


@lru_cache(maxsize=64)
def _checked_powers(backend: Backend, device: Any) -> PowersOfTwo:
    with backend.now():
        check_products(backend, device)
        numbers = [2.0**exponent for exponent in range(LOWEST, HIGHEST + 1)]
        return PowersOfTwo(backend, backend.asarray(numbers, backend.dtype("float64"), device))


def split_exponents(exponents: Array) -> tuple[Array, Array]:
    """Split exponents into two that add up to them: both have powers that are normal numbers where the sum may not."""
    half = exponents // 2
    return half, exponents - half


def over_cells(backend: Backend, scales: Array, dims: int) -> Array:
    """Give scales of the first two axes `dims` axes more, so that they can be multiplied by an array with cells."""
    return backend.xp.reshape(scales, (*scales.shape, *(1,) * dims))
