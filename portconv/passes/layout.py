"""Layouts: arrays as the caller has them, and as algorithms have them: (N, C, *cells)."""

from __future__ import annotations

from ..backends import Array, Backend
from ..spec.operation import Operation, Role

LAID_OUT = (Role.X, Role.OUT)
"""The roles whose arrays have a batch axis and channels; filters and biases have one layout."""


def canonical(operation: Operation, backend: Backend, role: Role, array: Array) -> Array:
    """Return an array of the caller's with a batch axis and channels first."""
    if role not in LAID_OUT:
        return array
    if operation.unbatched:
        array = backend.xp.reshape(array, (1, *array.shape))
    if operation.geometry.channels_last:
        array = backend.xp.permute_dims(array, (0, array.ndim - 1, *range(1, array.ndim - 1)))
    return array


def as_given(operation: Operation, backend: Backend, role: Role, array: Array) -> Array:
    """Return a canonical array in the caller's layout."""
    if role not in LAID_OUT:
        return array
    if operation.geometry.channels_last:
        array = backend.xp.permute_dims(array, (0, *range(2, array.ndim), 1))
    return array[0, ...] if operation.unbatched else array


def reordered(operation: Operation, backend: Backend, role: Role, array: Array) -> Array:
    """Return a copy of a canonical array in the order in which algorithms make arrays of its role."""
    last = operation.geometry.channels_last and role in LAID_OUT
    copy = backend.empty(tuple(array.shape), array, last=last, dtype=backend.machine_order(array.dtype))
    return backend.write(copy, (...,), array)
