"""The three products as loops over taps, for libraries that would write out each step of a longer one as code.

A tap reads the input moved by its own offset, and all positions at once: ``out = sum over taps of w[tap] @ moved``. The
gradients are the two other ways to read that product. A library that traces calls, to compile them, takes such a loop
as one step, however many taps there are (`Backend.loop`); `gemm`, which is as many steps as there are blocks and taps,
hands over to it where `Backend.rolls` says so.

Axes: N samples, G groups, C channels of a group, F filters of a group, T taps, P positions.
"""

from __future__ import annotations

import math
from typing import Any

from ..backends import Array, Backend
from ..spec.geometry import Geometry


def forward(geometry: Geometry, backend: Backend, x: Array, w: Array, b: Array | None) -> Array:
    xp = backend.xp
    padded, filters = _padded(geometry, backend, x), _filters(geometry, backend, w)

    def step(tap: Any, out: Array) -> Array:
        return out + backend.product(_chosen(backend, filters, tap), _moved(geometry, backend, padded, tap))

    shape = (geometry.batch, geometry.groups, geometry.group_out, geometry.positions)
    out = backend.loop(geometry.taps, step, backend.zeros(shape, like=x))
    if b is not None:
        out = out + xp.reshape(b, (geometry.groups, geometry.group_out, 1))
    return xp.reshape(out, geometry.out_shape)


def input_grad(geometry: Geometry, backend: Backend, dout: Array, w: Array) -> Array:
    xp = backend.xp
    filters = xp.permute_dims(_filters(geometry, backend, w), (0, 1, 3, 2))
    values = _values(geometry, backend, dout)
    part = (geometry.batch, geometry.groups, geometry.group_in, *geometry.out)

    def step(tap: Any, grad: Array) -> Array:
        starts = (0, 0, 0, *_offsets(geometry, tap))
        window = backend.cut(grad, starts, (*part[:3], *_extents(geometry)))
        found = xp.reshape(backend.product(_chosen(backend, filters, tap), values), part)
        return backend.put(grad, starts, backend.add(window, (..., *_reads(geometry)), found))

    grad = backend.loop(geometry.taps, step, backend.zeros((*part[:3], *_sizes(geometry)), like=dout))
    return xp.reshape(grad[(..., *_inside(geometry))], geometry.x_shape)


def weight_grad(geometry: Geometry, backend: Backend, dout: Array, x: Array) -> Array:
    xp = backend.xp
    padded, values = _padded(geometry, backend, x), _values(geometry, backend, dout)

    def step(tap: Any, grad: Array) -> Array:
        moved = xp.permute_dims(_moved(geometry, backend, padded, tap), (0, 1, 3, 2))
        found = xp.sum(backend.product(values, moved), axis=0)
        return backend.put(grad, (tap, 0, 0, 0), found[None, ...])

    shape = (geometry.taps, geometry.groups, geometry.group_out, geometry.group_in)
    grad = backend.loop(geometry.taps, step, backend.zeros(shape, like=x))
    return xp.reshape(xp.permute_dims(grad, (1, 2, 3, 0)), geometry.w_shape)


def _sizes(geometry: Geometry) -> tuple[int, ...]:
    """The sizes of the padded input; windows need not reach its end."""
    sides = zip(geometry.before, geometry.size, geometry.after, strict=True)
    return tuple(lo + size + max(hi, 0) for lo, size, hi in sides)


def _inside(geometry: Geometry) -> tuple[slice, ...]:
    return tuple(slice(lo, lo + n) for lo, n in zip(geometry.before, geometry.size, strict=True))


def _padded(geometry: Geometry, backend: Backend, x: Array) -> Array:
    """The padded input: (N, G, C, *S)."""
    cells = backend.xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
    zeros = backend.zeros((*cells.shape[:3], *_sizes(geometry)), like=x)
    return backend.write(zeros, (..., *_inside(geometry)), cells)


def _filters(geometry: Geometry, backend: Backend, w: Array) -> Array:
    """The filters, by tap: (T, G, F, C)."""
    w = backend.xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, geometry.taps))
    return backend.xp.permute_dims(w, (3, 0, 1, 2))


def _values(geometry: Geometry, backend: Backend, dout: Array) -> Array:
    """The output's gradient: (N, G, F, P)."""
    shape = (geometry.batch, geometry.groups, geometry.group_out, geometry.positions)
    return backend.xp.reshape(dout, shape)


def _chosen(backend: Backend, filters: Array, tap: Any) -> Array:
    """The filters of one tap: (G, F, C)."""
    return backend.cut(filters, (tap, 0, 0, 0), (1, *filters.shape[1:]))[0, ...]


def _offsets(geometry: Geometry, tap: Any) -> tuple[Any, ...]:
    """How far from a window's first cell a tap reads, along each dimension."""
    kernel, dilation = geometry.kernel, geometry.dilation
    return tuple(tap // math.prod(kernel[i + 1 :]) % kernel[i] * dilation[i] for i in range(geometry.dims))


def _extents(geometry: Geometry) -> tuple[int, ...]:
    """From the first cell that a tap reads to its last, along each dimension."""
    return tuple((n - 1) * step + 1 for n, step in zip(geometry.out, geometry.stride, strict=True))


def _reads(geometry: Geometry) -> tuple[slice, ...]:
    """Of the cells from the first that a tap reads to its last, those that it reads."""
    return tuple(slice(0, None, step) for step in geometry.stride)


def _moved(geometry: Geometry, backend: Backend, padded: Array, tap: Any) -> Array:
    """The cells that a tap reads: (N, G, C, P)."""
    window = backend.cut(padded, (0, 0, 0, *_offsets(geometry, tap)), (*padded.shape[:3], *_extents(geometry)))
    return backend.xp.reshape(window[(..., *_reads(geometry))], (*padded.shape[:3], geometry.positions))
