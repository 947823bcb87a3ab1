"""The power of two at or above the largest magnitude of each group of elements that a sum mixes."""

from __future__ import annotations

from typing import NamedTuple

from ..backends import Array, Backend
from ..spec.dtypes import LEAST_NORMAL, LOWEST, real
from ..spec.geometry import Geometry
from ..spec.ranges import Index
from .magnitudes import _largest, _of_planes, parts_of, plain


class Operand(NamedTuple):
    """An operand of a product, and what is to know of its elements.

    Attributes
    ----------
    array : array
        As it was given, in any order of axes that algorithms see.
    exponents : array of int
        The power of two at or above its largest magnitude, for each element of its first two axes.
    real : str
        The dtype of its elements, or of their parts.
    rare : bool
        Whether it may hold what must be taken for zero: subnormal numbers, nans or infinities.
    finite : bool
    conjugated : bool
        Whether its numbers' conjugates are what is multiplied.
    """

    array: Array
    exponents: Array
    real: str
    rare: bool
    finite: bool
    conjugated: bool = False

    def parts(self, backend: Backend, block: Index) -> list[Array]:
        """The real and the imaginary part of a block, as they are multiplied."""
        real_part, *imaginary = parts_of(backend, self.array[block])
        return [real_part, *(-part if self.conjugated else part for part in imaginary)]

    def doubles(self, backend: Backend, part: Array) -> Array:
        """Some of its real numbers in float64, with zeros for what must be taken for zero."""
        return plain(backend, part, self.real) if self.rare else backend.astype(part, backend.dtype("float64"))


def operand(backend: Backend, geometry: Geometry, powers: Array, array: Array, role: str, bits: int) -> Operand:
    """Find the scales of an operand, quantised to `bits` bits; `role` is which axes share one.

    "sample" for each sample and group, "filter" for each filter, "channel" for each of the second axis of a batch,
    "input channel" for each input channel, of filters.
    """
    own, xp, first, groups = real(backend.dtype_name(array.dtype)), backend.xp, array.shape[0], geometry.groups
    if role in ("sample", "channel"):
        most, finite = _of_planes(backend, array, own)
        if role == "channel":
            most = (
                xp.max(most, axis=0)
                if first
                else xp.zeros(most.shape[1:], dtype=most.dtype, device=backend.device_of(most))
            )
        else:
            most = xp.max(xp.reshape(most, (first, groups, array.shape[1] // groups)), axis=2)
    else:
        most, finite = None, True
        for part in parts_of(backend, array):
            if not backend.all_finite(part):
                part, finite = plain(backend, part, own), False
            if role == "filter":
                found = _largest(backend, part, tuple(part.shape), keep=(0,))
            else:
                found = _largest(backend, part, (groups, first // groups, *part.shape[1:]), keep=(0, 2))
            most = found if most is None else xp.maximum(most, found)
    least = LEAST_NORMAL[own]
    # Where quanta are no smaller than twice the smallest normal number, what lies below that is rounded to zero.
    rare = not finite or not backend.sure((most >= 2.0 ** (least + bits)) | (most == 0))
    found = above(backend, powers, most)
    if role == "sample":
        found = xp.broadcast_to(found[:, :, None], (first, groups, array.shape[1] // groups))
    elif role == "input channel":
        found = xp.broadcast_to(found[:, None, :], (groups, first // groups, array.shape[1]))
    else:
        found = xp.broadcast_to(found[:, None] if role == "filter" else found[None, :], array.shape[:2])
    return Operand(array, xp.reshape(found, tuple(array.shape[:2])), own, rare, finite)


def above(backend: Backend, powers: Array, most: Array) -> Array:
    """The exponents of the powers of two at or above largest magnitudes; 0 where these are."""
    xp = backend.xp
    found = xp.searchsorted(powers, xp.reshape(most, (-1,))) + LOWEST
    found = xp.reshape(xp.astype(found, xp.int64), most.shape)
    return xp.where(most == 0, xp.zeros_like(found), found)


def power(backend: Backend, powers: Array, exponents: Array) -> Array:
    """Two to integer powers, which must be normal numbers."""
    xp = backend.xp
    found = xp.take(powers, xp.reshape(exponents, (-1,)) - LOWEST, axis=0)
    return xp.reshape(found, tuple(exponents.shape))


def halves(backend: Backend, exponents: Array) -> tuple[Array, Array]:
    """Cut exponents in two, whose powers are normal numbers where those of the whole may not be."""
    half = exponents // 2
    return half, exponents - half


def along(backend: Backend, scales: Array, dims: int) -> Array:
    """Scales of the first two axes, to go with arrays that have `dims` more."""
    return backend.xp.reshape(scales, (*scales.shape, *(1,) * dims))


def scaled(backend: Backend, powers: Array, exponents: Array, out: Array) -> Array:
    """Two to the exponents of a result's first two axes, in its dtype and to go with it."""
    return backend.astype(along(backend, power(backend, powers, exponents), out.ndim - 2), out.dtype)
