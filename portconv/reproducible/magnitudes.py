"""The largest magnitudes of arrays, looked for once in each array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..algorithms.choice import plane_magnitudes as found_fast
from ..backends import Array, Backend, of
from ..spec.dtypes import HALVES, PARTS_OF
from ..spec.ranges import Index
from .blocks import BYTES_TO_READ, reduce_planes


def parts_of(backend: Backend, array: Array) -> list[Array]:
    """Return the real and the imaginary part of complex numbers, and real numbers as they are."""
    if backend.dtype_name(array.dtype) in PARTS_OF:
        return [backend.xp.real(array), backend.xp.imag(array)]
    return [array]


def join_parts(backend: Backend, parts: list[Array], dtype: str) -> Array:
    """Make an array of a real dtype from the first part, or of a complex one from both, or from one and zeros."""
    if dtype not in PARTS_OF:
        return parts[0]
    return backend.complex(parts[0], parts[1] if len(parts) > 1 else backend.xp.zeros_like(parts[0]))


def zero_unless_normal(backend: Backend, part: Array, least: float) -> Array:
    """Return real numbers in float64, with 0 in the place of nans, infinities and what is smaller than `least`."""
    xp, wide = backend.xp, backend.astype(part, backend.dtype("float64"))
    normal = xp.isfinite(wide) & (xp.abs(wide) >= least)
    return xp.where(normal, wide, xp.zeros_like(wide))


Magnitudes = tuple[Array, bool]
"""The largest magnitude of each sample's channel, (N, C), and whether all elements are finite."""
_remembered: ContextVar[dict[int, tuple[Array, Magnitudes]] | None] = ContextVar("remembered", default=None)


@contextmanager
def remembering(known: Iterable[tuple[Array, Array]] = ()) -> Iterator[None]:
    """Look for the largest magnitudes of each array once inside, however often it is an operand.

    `known` are pairs of an array and what `magnitudes` gives for it. A part of a larger array may so have the
    magnitudes of the whole.
    """
    token = _remembered.set({id(array): (array, _with_finite(of(each), each)) for array, each in known})
    try:
        yield
    finally:
        _remembered.reset(token)


def remember_copy(array: Array, copy: Array) -> None:
    """Let the copy of an array have the magnitudes that are known of the array: they may be those of a larger one."""
    remembered = _remembered.get()
    if remembered is not None and id(array) in remembered:
        remembered[id(copy)] = copy, remembered[id(array)][1]


def plane_magnitudes(backend: Backend, array: Array) -> Magnitudes:
    """Return the largest magnitude of each sample's channel (N, C, *cells), and whether all elements are finite."""
    remembered = _remembered.get()
    if remembered is not None and id(array) in remembered:
        return remembered[id(array)][1]
    found = found_fast(backend, array)  # which is None for nans and infinities
    entry = _with_finite(backend, magnitudes(backend, array)) if found is None else (found, True)
    if remembered is not None:
        # The array is kept too, so that no other array gets its place in memory, and so its id.
        remembered[id(array)] = array, entry
    return entry


def _with_finite(backend: Backend, magnitudes: Array) -> Magnitudes:
    return magnitudes[0, ...], backend.likely(backend.xp.logical_not(magnitudes[1, ...] > 0))


def magnitudes(backend: Backend, array: Array) -> Array:
    """Return the largest magnitude of each sample's channel (N, C, *cells), and 1 where not all elements are finite.

    Returns
    -------
    array, shape (2, N, C)
    """
    xp = backend.xp

    def reduce(block: Index) -> list[Array]:
        cells = array[block]
        if 0 in cells.shape:
            return []
        of_all, has_nonfinite = None, False
        for part in parts_of(backend, cells):
            largest = None
            if backend.propagates or backend.all_finite(part):
                largest = largest_magnitude(backend, part, tuple(part.shape), keep=(0, 1))
            # Where the library lets nans and infinities through, its largest magnitudes tell whether there are any.
            if largest is None or not backend.all_finite(largest):
                part = zero_unless_normal(backend, part, 0.0)
                largest, has_nonfinite = largest_magnitude(backend, part, tuple(part.shape), keep=(0, 1)), True
            of_all = largest if of_all is None else xp.maximum(of_all, largest)
        return [of_all, xp.full_like(of_all, float(has_nonfinite))]

    return reduce_planes(backend, array, 2, reduce, xp.max, BYTES_TO_READ)


def largest_magnitude(backend: Backend, part: Array, shape: tuple[int, ...], keep: tuple[int, ...]) -> Array:
    """Return the largest magnitude along all axes but `keep` of an array reshaped to `shape`, in float64."""
    xp, double = backend.xp, backend.dtype("float64")
    if backend.dtype_name(part.dtype) in HALVES:
        part = backend.astype(part, backend.dtype("float32"))
    highest = lowest = xp.reshape(part, shape)
    last = max(keep) + 1
    # Axes before the last kept one are reduced one by one, while rows are long; those after it lie side by side in
    # memory and are reduced at once.
    for axes in (*((axis,) for axis in range(last) if axis not in keep), tuple(range(last, len(shape)))):
        if axes:
            highest, lowest = xp.max(highest, axis=axes, keepdims=True), xp.min(lowest, axis=axes, keepdims=True)
    largest = xp.reshape(xp.maximum(highest, -lowest), tuple(shape[axis] for axis in keep))
    return backend.astype(largest, double)
