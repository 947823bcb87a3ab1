"""The sum of the elements of each channel, which is the gradient of a bias, and its adjoint."""

from __future__ import annotations

import math

from ..algorithms.choice import sums_of_channels
from ..backends import Array, Backend
from ..passes.casts import narrow, summable
from ..passes.layout import canonical
from ..spec.dtypes import named
from ..spec.operation import Operation, Role
from .late import reproducible
from .plan import held_precision, uses_slices


def add_up(operation: Operation, backend: Backend, array: Array) -> Array:
    """Add up the elements of each channel of an input or an output."""
    dtype, xp = named(backend, operation.dtype), backend.xp
    with backend.during_call(array, held_precision(operation)):
        cells = canonical(operation, backend, Role.OUT, array)
        if uses_slices(operation):
            with backend.quiet():
                return reproducible("bias_grad").channel_sum(operation, backend, cells)
        if (sums := _by_an_algorithm(operation, backend, cells)) is not None:
            return sums
        wide = summable(backend, dtype)
        # Cells first: where they lie side by side, a sum over them is faster than one over samples.
        samples, channels, *sizes = cells.shape
        if operation.geometry.channels_last:
            cells = xp.permute_dims(cells, (0, *range(2, cells.ndim), 1))
            flat, axis = xp.reshape(cells, (samples, math.prod(sizes), channels)), 1
        else:
            flat, axis = xp.reshape(cells, (samples, channels, math.prod(sizes))), 2
        sums = backend.total(backend.total(backend.astype(flat, wide), axis), 0)
        sums = backend.astype(sums, dtype.dtype)
    return narrow(backend, sums, backend.dtype(operation.result_dtype))


def _by_an_algorithm(operation: Operation, backend: Backend, cells: Array) -> Array | None:
    """Return the sums if an algorithm has a faster way, and they are finite."""
    own = backend.dtype_name(cells.dtype)
    if not operation.result_dtype == operation.dtype == own:
        return None
    compute = sums_of_channels(backend, cells)
    return None if compute is None else compute(cells)


def spread(operation: Operation, backend: Backend, bias: Array) -> Array:
    """Repeat a bias over the cells of a result, in the result's dtype."""
    shape = operation.shape(operation.result)
    axis = len(shape) - 1 if operation.geometry.channels_last else int(not operation.unbatched)
    bias = narrow(backend, bias, backend.dtype(operation.result_dtype))
    bias = backend.xp.reshape(bias, (-1, *(1,) * (len(shape) - 1 - axis)))
    return backend.xp.broadcast_to(bias, shape)
