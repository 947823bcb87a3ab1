"""The gradient of a bias: the elements of each channel, quantised and added up exactly."""

from __future__ import annotations

import math

from ..backends import Array, Backend
from ..spec.dtypes import PARTS_OF, real
from ..spec.geometry import Geometry
from ..spec.ranges import Index
from .blocks import planes
from .limbs import carried, rounded
from .magnitudes import parts_of
from .nonfinite import Counts, indicators
from .operands import above, along, halves, operand, power
from .probe import ready
from .slices import SIGNIFICANT, addition, cut

MOST_BITS = 40
"""Up to so many a plane's sum fits in int64, and powers of two are within those of float64 in one step."""


def channel_sum(backend: Backend, geometry: Geometry, dtype: str, array: Array, rounded_to: str | None = None) -> Array:
    """Add up the elements (N, C, *cells) of each channel: quantised, exactly, and rounded once.

    Parameters
    ----------
    backend : Backend
    geometry : Geometry
    dtype : str
        What says to how many bits the elements are quantised.
    array : array
    rounded_to : str, optional
        The dtype of the result, where that is another; of complex numbers rounded to real ones, the real part.

    Returns
    -------
    array, shape (C,)
    """
    count = math.prod(array.shape) // array.shape[1]
    found, exponents = _sums(backend, geometry, dtype, array, count)
    return _rounded(backend, dtype, count, found, exponents, rounded_to or dtype)


def channel_sums(backend: Backend, geometry: Geometry, dtype: str, array: Array, count: int) -> Array:
    """Add up exactly some of the elements of each channel, of which there are `count` in all.

    Their magnitudes are remembered as those of all of them. What this gives of several is added up as it is.

    Returns
    -------
    array, shape (1 or 2, limbs, C)
        Of each part of the result; with four counts where not all elements are finite.
    """
    return _sums(backend, geometry, dtype, array, count)[0]


def channel_rounded(backend: Backend, dtype: str, count: int, sums: Array, most: Array, made: str) -> Array:
    """Round the sum of what `channel_sums` gave; `most` are the largest magnitudes, (C,)."""
    exponents = above(backend, ready(backend, sums), most) - (SIGNIFICANT[dtype] - 1)
    return _rounded(backend, dtype, count, sums, exponents, made)


def _sums(backend: Backend, geometry: Geometry, dtype: str, array: Array, count: int) -> tuple[Array, Array]:
    xp, powers, bits = backend.xp, ready(backend, array), SIGNIFICANT[dtype]
    this = operand(backend, geometry, powers, array, "channel", bits)
    own = addition(bits, count)
    names = [] if this.finite else ["nan", "infinite", "sign", "finite sign"]
    each = own.number + len(names)
    kinds = range(len(parts_of(backend, array[:0, ...])))
    double, axes = backend.dtype("float64"), tuple(range(2, array.ndim))
    up = bits - 1 - this.exponents
    short = bits <= MOST_BITS and own.number == 2 and math.prod(array.shape[2:]) <= 2 ** (63 - bits)
    factors = [along(backend, power(backend, powers, p), len(axes)) for p in ((up,) if short else halves(backend, up))]

    def of(block: Index) -> list[Array]:
        found = []
        for part in parts_of(backend, array[block]):
            numbers = this.doubles(backend, part)
            for factor in factors:
                numbers = numbers * factor[(*block[:2], ...)]
            if short:
                total = xp.sum(xp.astype(xp.round(numbers), xp.int64), axis=axes, dtype=xp.int64)
                high = total >> own.width
                found += [backend.astype(one, double) for one in (total - (high << own.width), high)]
            else:
                found += [xp.sum(one, axis=axes) for one in cut(backend, numbers, own)]
            if names:
                found += [xp.sum(one, axis=axes) for one in indicators(backend, part, this.real, names)]
        return found

    sums = xp.sum(planes(backend, array, each * len(kinds), of), axis=(0, 2))
    exponents = xp.max(this.exponents, axis=0) - (bits - 1) if array.shape[0] else xp.astype(sums[0, :], xp.int64)
    return xp.reshape(sums, (len(kinds), each, array.shape[1])), exponents


def _rounded(backend: Backend, dtype: str, count: int, sums: Array, exponents: Array, made: str) -> Array:
    xp, powers, own = backend.xp, ready(backend, sums), addition(SIGNIFICANT[dtype], count)
    found = []
    for kind in range(sums.shape[0]):
        mine = [xp.reshape(sums[kind, i, :], (-1, 1)) for i in range(sums.shape[1])]
        exact = carried(backend, mine[: own.number], own.width)
        value = rounded(backend, exact, own.width, powers, xp.reshape(exponents, (-1, 1)), real(made))
        if len(mine) > own.number:
            nans, infinite, signs, finite = mine[own.number :]
            value = Counts(nans, infinite, signs - finite).put(backend, value)
        found.append(xp.reshape(value, (-1,)))
    if made not in PARTS_OF:
        return found[0]
    return backend.complex(found[0], found[1] if len(found) > 1 else xp.zeros_like(found[0]))
