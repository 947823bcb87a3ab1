"""Calls that were made before, with arrays of the same kinds: what was found then is looked up in one step.

A small convolution takes a few microseconds, and checks and plans take thirty. All that they depend on is the key of a
look-up here: shapes, strides, dtypes, options, and the limits that are set. Its value is a function of an algorithm
that computes such a call, or hands it back: a result that needs a second look, such as one that is not finite, takes
the long way with all its checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .. import limits
from ..algorithms.choice import sums_of_channels
from ..backends import Array, Backend
from ..passes.layout import canonical
from ..spec.arguments import LITTLE_BYTES, MOST_BYTES
from ..spec.operation import PRODUCTS, Kind, Operation, Role
from ..spec.options import Options
from ..spec.remembered import Shelf
from . import plan as plans
from .late import reproducible
from .plan import has_no_terms, uses_slices

Key = tuple[Any, ...]
Compute = Callable[..., Array | None]

_known: Shelf[Key, Compute] = Shelf()


def key_of(x: Array, w: Array, b: Array | None, options: Options) -> Key | None:
    """Return all that a call depends on but the numbers; None for arrays or options that are looked at each time."""
    try:
        of_bias = None if b is None else (type(b), b.shape, b.strides, b.dtype)
        of_arrays = type(x), x.shape, x.strides, x.dtype, type(w), w.shape, w.strides, w.dtype, of_bias
    except Exception:  # no array, or one whose attributes raise what they like; the checks say so
        return None
    return (of_arrays, options, limits.threads(), limits.workspace()) if options.plain else None


def key_of_gradient(what: Any, dout: Array, arrays: tuple[Array | None, ...], options: Options) -> Key | None:
    """Return the key of gradients, which depend on `what` beside the arrays; None as `key_of` does."""
    try:
        of_arrays = tuple(array if array is None else (type(array), array.shape, array.strides) for array in arrays)
        key = (what, type(dout), dout.shape, dout.strides, of_arrays)
        hash(key)
        dtypes = tuple(array.dtype for array in (dout, *arrays) if array is not None)
    except Exception:
        return None
    return (key, dtypes, options, limits.threads(), limits.workspace()) if options.plain else None


def computed(key: Key | None, *arrays: Array | None) -> Any:
    """Compute a call as the one before it, or return None if there was none, or if it takes the long way."""
    if key is None:
        return None
    try:
        compute = _known.get(key)
    except TypeError:  # a shape of symbols
        return None
    return None if compute is None else compute(*arrays)


def remember(key: Key | None, compute: Callable[..., Any] | None) -> None:
    """Remember what computes a call, if there is such a function."""
    if key is not None and compute is not None:
        _known.put(key, compute)


def found(
    operation: Operation, backend: Backend, operands: tuple[Array, ...], check_memory: Callable[[Array], None]
) -> Compute | None:
    """Return what computes a product, if that is a single step on arrays as they are.

    Whether there is memory for a large result is checked each time.
    """
    if backend.framework or operation.unbatched:
        return None
    if operation.kind == Kind.CHANNEL_SUM and uses_slices(operation):
        found = reproducible("bias_grad").repeated
        return found(operation, backend, operands[0]) if operation.is_canonical else None
    if operation.kind == Kind.CHANNEL_SUM:
        is_plain = operation.result_dtype == operation.dtype == backend.dtype_name(operands[0].dtype)
        # What computes takes the address of an array, whatever the order of its axes.
        return sums_of_channels(backend, canonical(operation, backend, Role.OUT, operands[0])) if is_plain else None
    if operation.kind not in PRODUCTS:
        return None
    plan = plans.of(operation, backend, *operands[:2])
    bare, kind, compute = plan.bare, operation.kind, None
    if plan.in_slices and operation.is_canonical and not has_no_terms(operation):
        found = reproducible("product").repeated
        compute = found(operation, backend, plan.choose_for_slices, plan.parts, operands)
    elif bare is not None and all(array.dtype == operands[0].dtype for array in operands):
        compute = bare.algorithm.repeated(kind, operation.geometry, backend, bare.budget, operands)
    if compute is None:
        return None
    is_large = math.prod(operation.geometry.shape(kind.result)) * MOST_BYTES > LITTLE_BYTES
    return _with_check(check_memory, compute) if is_large else compute


def _with_check(check_memory: Callable[[Array], None], compute: Compute) -> Compute:
    def checked(*arrays: Array | None) -> Array | None:
        check_memory(arrays[0])
        return compute(*arrays)

    return checked
