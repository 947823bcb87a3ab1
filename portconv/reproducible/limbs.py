"""Exact sums as limbs, integers in float64 that each count a power of `2**width`, and how they are rounded."""

from __future__ import annotations

from typing import Any

from ..backends import Array, Backend, Workspace
from ..spec.dtypes import DIGITS, LEAST_NORMAL, LOWEST
from .operands import along, halves, power

WIDE = 26
"""Bits that tell how a whole number with a rest is rounded to 24 bits or fewer."""
FEWEST, MOST = -1300, 1100
"""Powers of two beyond which any sum is 0 or infinite, in float64."""


def carried(backend: Backend, limbs: list[Array], width: int) -> list[Array]:
    """The same sum in limbs of at most `2**(width - 1)`, but for the last."""
    xp, found, carry = backend.xp, [], None
    for limb in limbs[:-1]:
        limb = limb if carry is None else limb + carry
        carry = xp.round(limb * 2.0**-width)
        found.append(limb - carry * 2.0**width)
    return [*found, limbs[-1] if carry is None else limbs[-1] + carry]


def rounded(backend: Backend, limbs: list[Array], width: int, powers: Array, exponents: Array, real: str) -> Array:
    """Round sums, of carried limbs in units of two to the `exponents`, to the dtype `real`, half to even, once.

    What is below the smallest normal number is +0. `exponents` are those of the first two axes.
    """
    exponents = along(backend, exponents, limbs[0].ndim - 2)
    exponents = backend.xp.clip(exponents, FEWEST, MOST)
    if real == "float64":
        value = _double(backend, limbs, width, powers, exponents)
    else:
        value = _narrow(backend, _odd(backend, limbs, width), powers, exponents, real)
    return backend.astype(value, backend.dtype(real))


def ends(backend: Backend, value: Array, error: Array, dtype: Any, workspace: Workspace) -> tuple[Array, Array]:
    """Round the ends of the range that a number is in, to `dtype`; return the upper one, and where both are the same.

    There the number itself is rounded to it (Ziv, "Fast evaluation of elementary mathematical functions with correctly
    rounded last bit", ACM Transactions on Mathematical Software, 1991).
    """
    term = workspace("term", tuple(value.shape), value.dtype)
    found = []
    for name in ("subtract", "add"):
        term = backend.elementwise(name, term, (...,), value, error)
        found.append(backend.astype(term, dtype))
    return found[1], found[0] == found[1]


def soon(
    backend: Backend, target: Array, sums: list[Array], width: int, factor: Array, workspace: Workspace
) -> tuple[Array, bool]:
    """`target` with sums rounded to float32, and whether they are as `rounded` rounds them: nearly always.

    Sums by weight are added up with rounding, whose largest error twice over makes the range that `ends` looks at. None
    may be below the smallest normal number; `factor` is the power of two that they count, in float32. Zeros may be
    negative.
    """
    shape, dtype = tuple(sums[0].shape), sums[0].dtype
    term, total, error = (workspace(name, shape, dtype) for name in ("term", "total", "error"))
    value = sums[0]
    for k, more in enumerate(sums[1:], start=1):
        term = backend.elementwise("multiply", term, (...,), more, 2.0 ** (width * k))
        value = total = backend.elementwise("add", total, (...,), value, term)
        if k == 1:
            error = backend.elementwise("abs", error, (...,), value)
        else:
            term = backend.elementwise("abs", term, (...,), value)
            error = backend.elementwise("add", error, (...,), error, term)
    # Each addition is off by 2**-53 of what it makes, and so is what is done with the error here.
    error = backend.elementwise("multiply", error, (...,), error, 2.0**-51)
    high, same = ends(backend, total, error, target.dtype, workspace)
    return backend.elementwise("multiply", target, (...,), high, factor), bool(backend.xp.all(same))


def _signs(backend: Backend, limbs: list[Array]) -> list[Array]:
    """The sign of what is below each limb; below the lowest there is nothing."""
    xp = backend.xp
    found = [xp.zeros_like(limbs[0])]
    for limb in limbs[:-1]:
        sign = xp.sign(limb)
        found.append(sign if len(found) == 1 else xp.where(sign == 0, found[-1], sign))
    return found


def _odd(backend: Backend, limbs: list[Array], width: int) -> Array:
    """Sums with so many leading bits that no rest changes how they are rounded to 24 bits, and half a unit for a rest.

    That is rounding to odd: Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms
    using rounding to odd" (IEEE Transactions on Computers, 2008), section 3.
    """
    xp, below = backend.xp, _signs(backend, limbs)
    top = len(limbs) - 1
    whole = limbs[top]
    value = (whole + 0.5 * below[top]) * 2.0 ** (width * top)
    for level in range(top - 1, -1, -1):
        short = xp.abs(whole) < 2.0**WIDE
        whole = whole * 2.0**width + limbs[level]
        longer = whole + 0.5 * below[level] if level else whole
        value = xp.where(short, longer * 2.0 ** (width * level), value)
    return value


def _narrow(backend: Backend, value: Array, powers: Array, exponents: Array, real: str) -> Array:
    """Scale sums with a rest to what `real` holds: subnormal numbers are left out, and halves are rounded."""
    xp, least, digits = backend.xp, LEAST_NORMAL[real], DIGITS[real]
    for half in halves(backend, exponents):
        value = value * power(backend, powers, half)
    size, tiny = xp.abs(value), 2.0**least
    # From half a subnormal unit below it on, a number is rounded up to the smallest normal one.
    up = xp.where(size >= tiny - 2.0 ** (least - digits), xp.sign(value) * tiny, xp.zeros_like(value))
    value = xp.where(size < tiny, up, value)
    if real == "float32":
        return value
    # Not all libraries round float64 to a half once.
    lowest = least - digits + 1
    steps = powers[lowest - LOWEST : 128 - digits + 1 - LOWEST]
    starts = xp.reshape(xp.abs(value), (-1,)) * 2.0 ** (1 - digits)
    found = xp.clip(xp.searchsorted(steps, starts, side="right") - 1, 0, steps.shape[0] - 1)
    unit = xp.reshape(xp.take(steps, found, axis=0), tuple(value.shape))
    return xp.round(value / unit) * unit


def _double(backend: Backend, limbs: list[Array], width: int, powers: Array, exponents: Array) -> Array:
    """Round sums to float64, in one addition of a whole number and a rest that has bits enough."""
    xp, below = backend.xp, _signs(backend, limbs)
    top, nothing = len(limbs) - 1, xp.zeros_like(limbs[0])

    def rest(level: int) -> Array:
        if level == 0:
            return nothing
        if level == 1:
            return limbs[0] * 2.0**-width
        return (
            limbs[level - 1] * 2.0**-width
            + limbs[level - 2] * 2.0 ** (-2 * width)
            + below[level - 2] * 2.0 ** (-2 * width - 3)
        )

    number = limbs[top]
    whole, more = number * 2.0 ** (width * top), rest(top) * 2.0 ** (width * top)
    for level in range(top - 1, -1, -1):
        short = xp.abs(number) < 2.0 ** (DIGITS["float64"] - width)
        number = number * 2.0**width + limbs[level]
        unit = 2.0 ** (width * level)
        whole = xp.where(short, number * unit, whole)
        more = xp.where(short, rest(level) * unit, more)
    value = whole + more
    sign = xp.sign(value)
    tiny = power(backend, powers, xp.clip(LEAST_NORMAL["float64"] - exponents, -10, 300))
    # As far below the smallest normal number as half a subnormal unit; of the sum itself, which has more bits.
    up = (whole * sign - tiny) + more * sign >= tiny * -(2.0 ** -DIGITS["float64"])
    small = sign * value < tiny
    value = xp.where(small, xp.where(up, sign * tiny, nothing), value)
    for half in halves(backend, exponents):
        value = value * power(backend, powers, half)
    # Zeros are positive.
    return xp.where(value == 0, nothing, value)
