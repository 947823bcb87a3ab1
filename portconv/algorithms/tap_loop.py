"""The three products as loops over taps, for libraries that compile every step of a product.

A tap reads the input at a fixed offset, for all positions at once: ``out = sum over taps of w[tap] @ cells``. The
gradients come from the same product. A library that traces calls, to compile them, compiles such a loop as one step,
however many taps there are (`Backend.loop`). Of the other algorithms it compiles one step for each block and tap.

Axes: N samples, G groups, C channels of a group, F filters of a group, T taps, P positions.
"""

from __future__ import annotations

import math
from typing import Any

from ..backends import Array, Backend
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from .algorithm import Algorithm
from .budget import Budget, Work, narrow
from .summing import correlate

CALLS = 8
"""The number of calls for each tap."""


class TapLoop(Algorithm):
    """A loop over taps, with a matrix product of all positions for each."""

    name = "tap_loop"
    order = 60
    vouches = True
    pads_input = True

    def objection(self, geometry: Geometry, dtype: Dtype, backend: Backend) -> str | None:
        """Support only libraries that compile every step."""
        return "a library that compiles every step of a call" if backend.compiled_steps is None else None

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of a product: for each tap, the cells that it reads and the results that are added up."""
        cells, outputs = geometry.batch * geometry.in_channels, geometry.batch * geometry.out_channels
        padded, read = cells * math.prod(_sizes(geometry)), cells * geometry.positions
        outputs *= geometry.positions
        each = {
            Kind.FORWARD: read + 2 * outputs,
            Kind.INPUT_GRAD: 2 * read + cells * math.prod(_extents(geometry)),
            Kind.WEIGHT_GRAD: read + geometry.batch * geometry.weights // geometry.taps,
        }[Kind(kind)]
        lines = geometry.group_in if kind == Kind.INPUT_GRAD else geometry.group_out
        operations = narrow(geometry.operations, lines)
        calls = CALLS * geometry.taps
        workspace = padded + geometry.weights + each
        return Work(operations, padded + geometry.taps * each, 0, calls, workspace, {"taps": 1}, steps=1)

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array:
        xp = backend.xp
        padded, filters = _padded(geometry, backend, x), _filters(geometry, backend, w)

        def step(tap: Any, out: Array) -> Array:
            return out + backend.product(_filters_of(backend, filters, tap), _cells_of(geometry, backend, padded, tap))

        shape = (geometry.batch, geometry.groups, geometry.group_out, geometry.positions)
        out = backend.loop(geometry.taps, step, backend.zeros(shape, like=x))
        if b is not None:
            out = out + xp.reshape(b, (geometry.groups, geometry.group_out, 1))
        return xp.reshape(out, geometry.out_shape)

    def input_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, w: Array) -> Array:
        xp = backend.xp
        filters = xp.permute_dims(_filters(geometry, backend, w), (0, 1, 3, 2))
        values = _values(geometry, backend, dout)
        part = (geometry.batch, geometry.groups, geometry.group_in, *geometry.out)

        def step(tap: Any, grad: Array) -> Array:
            starts = (0, 0, 0, *_offsets(geometry, tap))
            window = backend.cut(grad, starts, (*part[:3], *_extents(geometry)))
            product = xp.reshape(backend.product(_filters_of(backend, filters, tap), values), part)
            return backend.put(grad, starts, backend.add(window, (..., *_reads(geometry)), product))

        grad = backend.loop(geometry.taps, step, backend.zeros((*part[:3], *_sizes(geometry)), like=dout))
        return xp.reshape(grad[(..., *_inside(geometry))], geometry.x_shape)

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array:
        xp = backend.xp
        padded, values = _padded(geometry, backend, x), _values(geometry, backend, dout)

        def step(tap: Any, grad: Array) -> Array:
            product = backend.total(correlate(backend, values, _cells_of(geometry, backend, padded, tap)), 0)
            return backend.put(grad, (tap, 0, 0, 0), product[None, ...])

        shape = (geometry.taps, geometry.groups, geometry.group_out, geometry.group_in)
        grad = backend.loop(geometry.taps, step, backend.zeros(shape, like=x))
        return xp.reshape(xp.permute_dims(grad, (1, 2, 3, 0)), geometry.w_shape)


def _sizes(geometry: Geometry) -> tuple[int, ...]:
    """Return the sizes of the padded input, with cells at its end that no window reads."""
    sides = zip(geometry.before, geometry.size, geometry.after, strict=True)
    return tuple(lo + size + max(hi, 0) for lo, size, hi in sides)


def _inside(geometry: Geometry) -> tuple[slice, ...]:
    """Return the index of the input in the padded input."""
    return tuple(slice(lo, lo + n) for lo, n in zip(geometry.before, geometry.size, strict=True))


def _padded(geometry: Geometry, backend: Backend, x: Array) -> Array:
    """Return the padded input: (N, G, C, *S)."""
    cells = backend.xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
    zeros = backend.zeros((*cells.shape[:3], *_sizes(geometry)), like=x)
    return backend.write(zeros, (..., *_inside(geometry)), cells)


def _filters(geometry: Geometry, backend: Backend, w: Array) -> Array:
    """Return the filters with taps first: (T, G, F, C)."""
    w = backend.xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, geometry.taps))
    return backend.xp.permute_dims(w, (3, 0, 1, 2))


def _values(geometry: Geometry, backend: Backend, dout: Array) -> Array:
    """Return the gradient of the output: (N, G, F, P)."""
    shape = (geometry.batch, geometry.groups, geometry.group_out, geometry.positions)
    return backend.xp.reshape(dout, shape)


def _filters_of(backend: Backend, filters: Array, tap: Any) -> Array:
    """Return the filters of one tap: (G, F, C)."""
    return backend.cut(filters, (tap, 0, 0, 0), (1, *filters.shape[1:]))[0, ...]


def _offsets(geometry: Geometry, tap: Any) -> tuple[Any, ...]:
    """Return how many cells after the first cell of a window a tap reads, along each dimension."""
    kernel, dilation = geometry.kernel, geometry.dilation
    return tuple(tap // math.prod(kernel[i + 1 :]) % kernel[i] * dilation[i] for i in range(geometry.dims))


def _extents(geometry: Geometry) -> tuple[int, ...]:
    """Return the number of cells from the first that a tap reads to the last, along each dimension."""
    return tuple((n - 1) * step + 1 for n, step in zip(geometry.out, geometry.stride, strict=True))


def _reads(geometry: Geometry) -> tuple[slice, ...]:
    """Return the index of the cells that a tap reads, among those from the first of them to the last."""
    return tuple(slice(0, None, step) for step in geometry.stride)


def _cells_of(geometry: Geometry, backend: Backend, padded: Array, tap: Any) -> Array:
    """Return the cells that a tap reads: (N, G, C, P)."""
    window = backend.cut(padded, (0, 0, 0, *_offsets(geometry, tap)), (*padded.shape[:3], *_extents(geometry)))
    return backend.xp.reshape(window[(..., *_reads(geometry))], (*padded.shape[:3], geometry.positions))
