"""The readable reference: a loop over output positions, with one matrix product at each.

At one output position, every sample's window is a row and every filter is a column: out = rows @ filters. The gradients
come from the same product: drows = dout @ filters.T is added to the windows that the rows come from, and
dfilters = rows.T @ dout is summed over the positions. This is the course exercise of Stanford's CS231n (assignment 2,
`conv_forward_naive`), with dilation and groups. It uses only the namespace and array-api-extra, and no function that
the fast algorithms share. So an error in those functions shows when results are compared with this reference.

Axes: N samples, G groups, F filters a group, R = C/G * prod(K) cells of a group's window.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import islice, product
from types import ModuleType
from typing import Any

from .. import forks
from ..backends import Array, Backend
from ..spec.geometry import Geometry
from .algorithm import Algorithm
from .budget import Budget, Work


class Direct(Algorithm):
    """A loop over output positions: it is slow, and runs only if the caller names it."""

    name = "direct"
    order = 100
    automatic = False
    vouches = True

    def integer_bits(self, bits: int) -> int:
        """Multiply integers as they are."""
        return bits

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of a product; its memory holds the windows at one position, filters, and an output of each."""
        workspace = 3 * geometry.batch * geometry.in_channels * geometry.taps
        workspace += 3 * math.prod(geometry.w_shape) + 3 * geometry.batch * geometry.out_channels
        return Work(geometry.operations, 0, 0, 10 * geometry.positions, workspace, {"positions": 1})

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array:
        xp = backend.xp
        filters = _filters(geometry, backend, w)
        out = backend.empty(geometry.out_shape, like=x, last=geometry.channels_last)
        for position in _positions(geometry):
            rows = _rows(geometry, backend, x, position)
            values = xp.matmul(rows, filters)  # (G, N, F)
            values = xp.reshape(xp.permute_dims(values, (1, 0, 2)), (geometry.batch, geometry.out_channels))
            out = _extra().at(out)[(..., *position)].set(values if b is None else values + b)
        return out

    def input_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, w: Array) -> Array:
        xp = backend.xp
        filters = xp.permute_dims(_filters(geometry, backend, w), (0, 2, 1))
        grad = backend.zeros(geometry.x_shape, like=dout)
        shape = (geometry.batch, geometry.in_channels, *geometry.kernel)
        for position in _positions(geometry):
            rows = xp.matmul(_values(geometry, backend, dout, position), filters)  # (G, N, R)
            window = xp.reshape(xp.permute_dims(rows, (1, 0, 2)), shape)
            taps, cells = _inside(geometry, position)
            grad = _extra().at(grad)[(..., *cells)].add(window[(..., *taps)])
        return grad

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array:
        xp = backend.xp
        none = backend.zeros((geometry.groups, geometry.group_out, geometry.group_in * geometry.taps), like=x)
        grad, positions = none, _positions(geometry)
        # Runs of positions are summed by themselves, because the error grows with the longest plain sum.
        while run := list(islice(positions, math.isqrt(geometry.positions))):
            part = none
            for position in run:
                values = xp.permute_dims(_values(geometry, backend, dout, position), (0, 2, 1))  # (G, F, N)
                part = part + xp.matmul(values, _rows(geometry, backend, x, position))
            grad = grad + part
        return xp.reshape(grad, geometry.w_shape)


@cache
def _extra() -> ModuleType:
    """Import array-api-extra when it is first needed, because only this algorithm uses it."""
    return forks.imported("array_api_extra")


def _positions(geometry: Geometry) -> Any:
    """Return an iterator over the output positions."""
    return product(*(range(n) for n in geometry.out))


def _inside(geometry: Geometry, position: tuple[int, ...]) -> tuple[list[slice], list[slice]]:
    """Return which taps of the window at one position lie inside the input, and the cells that they read."""
    taps, cells = [], []
    for dim, output in enumerate(position):
        start, step = output * geometry.stride[dim] - geometry.before[dim], geometry.dilation[dim]
        inside = [tap for tap in range(geometry.kernel[dim]) if 0 <= start + tap * step < geometry.size[dim]]
        first, count = (inside[0], len(inside)) if inside else (0, 0)
        taps.append(slice(first, first + count))
        cell = start + first * step
        # One tap reads a single cell, however large the dilation.
        cells.append(slice(cell, cell + (count - 1) * step + 1, step if count > 1 else 1) if count else slice(0, 0))
    return taps, cells


def _filters(geometry: Geometry, backend: Backend, w: Array) -> Array:
    """Return the filters as columns: (G, R, F)."""
    columns = backend.xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in * geometry.taps))
    return backend.xp.permute_dims(columns, (0, 2, 1))


def _rows(geometry: Geometry, backend: Backend, x: Array, position: tuple[int, ...]) -> Array:
    """Return the windows at one position as rows, with zeros in the padding: (G, N, R)."""
    taps, cells = _inside(geometry, position)
    window = x[(..., *cells)]
    shape = (geometry.batch, geometry.in_channels, *geometry.kernel)
    if tuple(window.shape) != shape:
        window = _extra().at(backend.zeros(shape, like=x))[(..., *taps)].set(window)
    rows = backend.xp.reshape(window, (geometry.batch, geometry.groups, geometry.group_in * geometry.taps))
    return backend.xp.permute_dims(rows, (1, 0, 2))


def _values(geometry: Geometry, backend: Backend, dout: Array, position: tuple[int, ...]) -> Array:
    """Return the gradient of the output at one position: (G, N, F)."""
    values = backend.xp.reshape(dout[(..., *position)], (geometry.batch, geometry.groups, geometry.group_out))
    return backend.xp.permute_dims(values, (1, 0, 2))
