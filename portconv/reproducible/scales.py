"""The power of two at or above the largest magnitude of each group of elements that a sum mixes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from ..algorithms.columns import Index
from ..arithmetic import HALVES
from ..backends import Array, Backend, of
from ..geometry import Geometry
from .blocks import READ, planes

LOWEST, HIGHEST = -1022, 1023
"""The powers of two that are normal float64."""
LEAST_NORMAL = {"float16": -14, "bfloat16": -126, "float32": -126, "float64": -1022}
"""The power of two that is a dtype's smallest normal number."""
DIGITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
"""The bits of a significand, with the one that is not written down."""
PARTS_OF = {"complex64": "float32", "complex128": "float64"}


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


def real(dtype: str) -> str:
    """The dtype of the parts of complex numbers; of real ones their own."""
    return PARTS_OF.get(dtype, dtype)


def parts_of(backend: Backend, array: Array) -> list[Array]:
    """The real and the imaginary part of complex numbers; real ones themselves."""
    if backend.dtype_name(array.dtype) in PARTS_OF:
        return [backend.xp.real(array), backend.xp.imag(array)]
    return [array]


def plain(backend: Backend, part: Array, real: str) -> Array:
    """Real numbers in float64, with zeros for nans, infinities and subnormal numbers."""
    xp, wide = backend.xp, backend.astype(part, backend.dtype("float64"))
    kept = xp.isfinite(wide) & (xp.abs(wide) >= 2.0 ** LEAST_NORMAL[real])
    return xp.where(kept, wide, xp.zeros_like(wide))


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


_remembered: ContextVar[dict[int, tuple[Array, tuple[Array, bool]]] | None] = ContextVar("remembered", default=None)


@contextmanager
def remembering(known: Iterable[tuple[Array, Array]] = ()) -> Iterator[None]:
    """Look for the largest magnitudes of each array once: what is a gradient's operand more than once, say.

    Those of arrays that are parts of larger ones are `known` from these, as `magnitudes` finds them.
    """
    token = _remembered.set({id(array): (array, _told(of(found), found)) for array, found in known})
    try:
        yield
    finally:
        _remembered.reset(token)


def _of_planes(backend: Backend, array: Array, own: str) -> tuple[Array, bool]:
    """The largest magnitude of each sample's channel (N, C, *cells), and whether all elements are finite."""
    known = _remembered.get()
    if known is not None and id(array) in known:
        return known[id(array)][1]
    found = _looked_for(backend, array, own)
    if known is not None:
        known[id(array)] = array, found  # the array too, or another might have its place in memory
    return found


def _looked_for(backend: Backend, array: Array, own: str) -> tuple[Array, bool]:
    return _told(backend, magnitudes(backend, array, own))


def _told(backend: Backend, found: Array) -> tuple[Array, bool]:
    return found[0, ...], backend.likely(backend.xp.logical_not(found[1, ...] > 0))


def magnitudes(backend: Backend, array: Array, own: str) -> Array:
    """The largest magnitude of each sample's channel (N, C, *cells), and 1 where not all are finite: (2, N, C)."""
    xp = backend.xp

    def of(block: Index) -> list[Array]:
        part = array[block]
        if 0 in part.shape:
            return []
        found, odd = None, False
        for one in parts_of(backend, part):
            most = None
            if backend.propagates or backend.all_finite(one):
                most = _largest(backend, one, tuple(one.shape), keep=(0, 1))
            # Where a nan or an infinity goes through, that of the elements says as much as theirs.
            if most is None or not backend.all_finite(most):
                most, odd = _largest(backend, plain(backend, one, own), tuple(one.shape), keep=(0, 1)), True
            found = most if found is None else xp.maximum(found, most)
        return [found, xp.full_like(found, float(odd))]

    return xp.max(planes(backend, array, 2, of, READ), axis=0)


def _largest(backend: Backend, part: Array, shape: tuple[int, ...], keep: tuple[int, ...]) -> Array:
    """The largest magnitude along all axes but those kept, in float64."""
    xp, double = backend.xp, backend.dtype("float64")
    if backend.dtype_name(part.dtype) in HALVES:
        part = backend.astype(part, backend.dtype("float32"))
    most = least = xp.reshape(part, shape)
    last = max(keep) + 1
    # The last axes at once, which lie side by side; of those before them one by one, while rows are long.
    for axes in (*((axis,) for axis in range(last) if axis not in keep), tuple(range(last, len(shape)))):
        if axes:
            most, least = xp.max(most, axis=axes, keepdims=True), xp.min(least, axis=axes, keepdims=True)
    found = xp.reshape(xp.maximum(most, -least), tuple(shape[axis] for axis in keep))
    return backend.astype(found, double)


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
