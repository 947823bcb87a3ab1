"""The largest magnitudes of operands, found once for each array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..backends import Array, Backend, of
from ..spec.dtypes import HALVES, LEAST_NORMAL, PARTS_OF
from ..spec.ranges import Index
from .blocks import READ, planes


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
