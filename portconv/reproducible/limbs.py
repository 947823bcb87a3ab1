"""Exact sums as limbs, and how they are rounded.

A sum is a list of limbs, integers in float64, the lowest first: limb k counts `2**(width * k)`.
"""

from __future__ import annotations

from typing import Any

from ..backends import Array, Backend, Workspace
from ..spec.dtypes import DIGITS, LEAST_NORMAL, LOWEST
from .powers import PowersOfTwo, over_cells, split_exponents

LEADING_BITS = 26
"""The bits that decide, with what is known of the rest, how a number is rounded to 24 bits or fewer."""
LOWEST_EXPONENT, HIGHEST_EXPONENT = -1300, 1100
"""The exponents beyond which any sum is 0 or infinite in float64."""


def carry(backend: Backend, limbs: list[Array], width: int) -> list[Array]:
    """Return the same sums in limbs of a magnitude of at most `2**(width - 1)`, but for the highest."""
    xp, carried, rest = backend.xp, [], None
    for limb in limbs[:-1]:
        limb = limb if rest is None else limb + rest
        rest = xp.round(limb * 2.0**-width)
        carried.append(limb - rest * 2.0**width)
    return [*carried, limbs[-1] if rest is None else limbs[-1] + rest]


def round_limbs(powers: PowersOfTwo, limbs: list[Array], width: int, exponents: Array, real: str) -> Array:
    """Round sums to the dtype `real`, half to even, once; a result below the smallest normal number is +0.

    The limbs are carried. `exponents` has one entry for each element of the first two axes, and the sums count two to
    that power.
    """
    backend = powers.backend
    exponents = over_cells(backend, exponents, limbs[0].ndim - 2)
    exponents = backend.xp.clip(exponents, LOWEST_EXPONENT, HIGHEST_EXPONENT)
    if real == "float64":
        value = _round_to_double(powers, limbs, width, exponents)
    else:
        value = _round_to_narrow(powers, _round_to_odd(backend, limbs, width), exponents, real)
    return backend.astype(value, backend.dtype(real))


def round_range(backend: Backend, value: Array, error: Array, dtype: Any, workspace: Workspace) -> tuple[Array, Array]:
    """Round both ends of the range `value` +- `error` to `dtype`; return the upper one, and where both are the same.

    Where they are, every number of the range is rounded to that one (Ziv, "Fast evaluation of elementary mathematical
    functions with correctly rounded last bit", ACM Transactions on Mathematical Software, 1991).
    """
    end = workspace("term", tuple(value.shape), value.dtype)
    rounded = []
    for name in ("subtract", "add"):
        end = backend.elementwise(name, end, (...,), value, error)
        rounded.append(backend.astype(end, dtype))
    return rounded[1], rounded[0] == rounded[1]


def total_and_error(backend: Backend, limbs: list[Array], width: int, workspace: Workspace) -> tuple[Array, Array]:
    """Add up limbs, carried or not, with rounding; return the totals, and a bound of how far each is from the sum."""
    shape, dtype = tuple(limbs[0].shape), limbs[0].dtype
    term, total, error = (workspace(name, shape, dtype) for name in ("term", "total", "error"))
    value = limbs[0]
    for k, limb in enumerate(limbs[1:], start=1):
        term = backend.elementwise("multiply", term, (...,), limb, 2.0 ** (width * k))
        value = total = backend.elementwise("add", total, (...,), value, term)
        if k == 1:
            error = backend.elementwise("abs", error, (...,), value)
        else:
            term = backend.elementwise("abs", term, (...,), value)
            error = backend.elementwise("add", error, (...,), error, term)
    # Each addition is off by 2**-53 of its result at most, and so are those that make the bound and the range: 2**-51
    # is more than all of them together.
    error = backend.elementwise("multiply", error, (...,), error, 2.0**-51)
    return total, error


def _signs_below(backend: Backend, limbs: list[Array]) -> list[Array]:
    """Return the sign of what is below each limb: 0 for the lowest."""
    xp = backend.xp
    signs = [xp.zeros_like(limbs[0])]
    for limb in limbs[:-1]:
        sign = xp.sign(limb)
        signs.append(sign if len(signs) == 1 else xp.where(sign == 0, signs[-1], sign))
    return signs


def _round_to_odd(backend: Backend, limbs: list[Array], width: int) -> Array:
    """Return the leading bits of sums, and half a unit for the rest, so that both are rounded to 24 bits as the sum is.

    That is rounding to odd: Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms
    using rounding to odd" (IEEE Transactions on Computers, 2008), section 3.
    """
    xp, below = backend.xp, _signs_below(backend, limbs)
    top = len(limbs) - 1
    whole = limbs[top]
    value = (whole + 0.5 * below[top]) * 2.0 ** (width * top)
    for level in range(top - 1, -1, -1):
        short = xp.abs(whole) < 2.0**LEADING_BITS
        whole = whole * 2.0**width + limbs[level]
        longer = whole + 0.5 * below[level] if level else whole
        value = xp.where(short, longer * 2.0 ** (width * level), value)
    return value


def _round_to_narrow(powers: PowersOfTwo, value: Array, exponents: Array, real: str) -> Array:
    """Scale sums that are rounded to odd; replace subnormal results by zero, and round those of half precision."""
    xp, least, digits = powers.backend.xp, LEAST_NORMAL[real], DIGITS[real]
    for half in split_exponents(exponents):
        value = value * powers.of(half)
    size, least_normal = xp.abs(value), 2.0**least
    # A number is rounded up to the smallest normal one from half a subnormal unit below it on.
    up = xp.where(size >= least_normal - 2.0 ** (least - digits), xp.sign(value) * least_normal, xp.zeros_like(value))
    value = xp.where(size < least_normal, up, value)
    if real == "float32":
        return value
    # Not every library rounds float64 to half precision once.
    lowest = least - digits + 1
    steps = powers.numbers[lowest - LOWEST : 128 - digits + 1 - LOWEST]
    starts = xp.reshape(xp.abs(value), (-1,)) * 2.0 ** (1 - digits)
    places = xp.clip(xp.searchsorted(steps, starts, side="right") - 1, 0, steps.shape[0] - 1)
    unit = xp.reshape(xp.take(steps, places, axis=0), tuple(value.shape))
    return xp.round(value / unit) * unit


def _round_to_double(powers: PowersOfTwo, limbs: list[Array], width: int, exponents: Array) -> Array:
    """Round sums to float64, scale them, and replace subnormal results by zero."""
    xp = powers.backend.xp
    whole, rest = _whole_and_rest(powers.backend, limbs, width)
    value, zero = whole + rest, xp.zeros_like(whole)
    sign = xp.sign(value)
    least_normal = powers.of(xp.clip(LEAST_NORMAL["float64"] - exponents, -10, 300))
    # A number is rounded up to the smallest normal one from half a subnormal unit below it on. The sum itself is
    # compared, not its rounded value, which has fewer bits.
    up = (whole * sign - least_normal) + rest * sign >= least_normal * -(2.0 ** -DIGITS["float64"])
    value = xp.where(sign * value < least_normal, xp.where(up, sign * least_normal, zero), value)
    for half in split_exponents(exponents):
        value = value * powers.of(half)
    # Zeros are positive.
    return xp.where(value == 0, zero, value)


def _whole_and_rest(backend: Backend, limbs: list[Array], width: int) -> tuple[Array, Array]:
    """Return two numbers whose sum is rounded to float64 in one addition as the sum of the limbs is.

    The first is the exact sum of the highest limbs that fit into 53 bits, the second the leading bits of the rest.
    """
    xp, below = backend.xp, _signs_below(backend, limbs)
    top = len(limbs) - 1

    def rest_below(level: int) -> Array:
        if level == 0:
            return xp.zeros_like(limbs[0])
        if level == 1:
            return limbs[0] * 2.0**-width
        return (
            limbs[level - 1] * 2.0**-width
            + limbs[level - 2] * 2.0 ** (-2 * width)
            + below[level - 2] * 2.0 ** (-2 * width - 3)
        )

    number = limbs[top]
    whole, rest = number * 2.0 ** (width * top), rest_below(top) * 2.0 ** (width * top)
    for level in range(top - 1, -1, -1):
        short = xp.abs(number) < 2.0 ** (DIGITS["float64"] - width)
        number = number * 2.0**width + limbs[level]
        unit = 2.0 ** (width * level)
        whole = xp.where(short, number * unit, whole)
        rest = xp.where(short, rest_below(level) * unit, rest)
    return whole, rest
