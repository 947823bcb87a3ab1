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
from itertools import product
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
    slices_integers = False
    pads_input = True

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of a product; its memory holds a padded input, the windows at one position, and filters."""
        sizes = (max(size, padded) for size, padded in zip(geometry.size, geometry.padded, strict=True))
        workspace = geometry.batch * geometry.in_channels * (math.prod(sizes) + 2 * geometry.taps)
        workspace += 3 * math.prod(geometry.w_shape) + 3 * geometry.batch * geometry.out_channels
        return Work(geometry.operations, 0, 0, 10 * geometry.positions, workspace, {"positions": 1})

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array:
        xp = backend.xp
        padded = _pad(geometry, backend, x)
        filters = _filters(geometry, backend, w)
        out = backend.empty(geometry.out_shape, like=x, last=geometry.channels_last)
        for position in _positions(geometry):
            rows = _rows(geometry, backend, padded, position)
            values = xp.matmul(rows, filters)  # (G, N, F)
            values = xp.reshape(xp.permute_dims(values, (1, 0, 2)), (geometry.batch, geometry.out_channels))
            out = _extra().at(out)[(..., *position)].set(values if b is None else values + b)
        return out

    def input_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, w: Array) -> Array:
        xp = backend.xp
        filters = xp.permute_dims(_filters(geometry, backend, w), (0, 2, 1))
        # Windows need not reach the end of the input: cells that no window reads have a gradient of 0.
        sides = zip(geometry.before, geometry.size, geometry.after, strict=True)
        sizes = tuple(lo + size + max(hi, 0) for lo, size, hi in sides)
        padded = backend.zeros((geometry.batch, geometry.in_channels, *sizes), like=dout)
        shape = (geometry.batch, geometry.in_channels, *geometry.kernel)
        for position in _positions(geometry):
            rows = xp.matmul(_values(geometry, backend, dout, position), filters)  # (G, N, R)
            window = xp.reshape(xp.permute_dims(rows, (1, 0, 2)), shape)
            padded = _extra().at(padded)[(..., *geometry.window(position))].add(window)
        return padded[(..., *_inside(geometry))]

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array:
        xp = backend.xp
        padded = _pad(geometry, backend, x)
        grad = backend.zeros((geometry.groups, geometry.group_out, geometry.group_in * geometry.taps), like=x)
        for position in _positions(geometry):
            values = xp.permute_dims(_values(geometry, backend, dout, position), (0, 2, 1))  # (G, F, N)
            rows = _rows(geometry, backend, padded, position)
            grad = grad + xp.matmul(values, rows)
        return xp.reshape(grad, geometry.w_shape)


@cache
def _extra() -> ModuleType:
    """Import array-api-extra when it is first needed, because only this algorithm uses it."""
    return forks.imported("array_api_extra")


def _positions(geometry: Geometry) -> Any:
    """Return an iterator over the output positions."""
    return product(*(range(n) for n in geometry.out))


def _inside(geometry: Geometry) -> tuple[slice, ...]:
    """Return the index of the input in the padded input."""
    return tuple(slice(lo, lo + n) for lo, n in zip(geometry.before, geometry.size, strict=True))


def _pad(geometry: Geometry, backend: Backend, x: Array) -> Array:
    """Return the input with its padding."""
    widths = [(lo, max(hi, 0)) for lo, hi in zip(geometry.before, geometry.after, strict=True)]
    return _extra().pad(x, [(0, 0), (0, 0), *widths], xp=backend.xp) if any(map(any, widths)) else x


def _filters(geometry: Geometry, backend: Backend, w: Array) -> Array:
    """Return the filters as columns: (G, R, F)."""
    columns = backend.xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in * geometry.taps))
    return backend.xp.permute_dims(columns, (0, 2, 1))


def _rows(geometry: Geometry, backend: Backend, padded: Array, position: tuple[int, ...]) -> Array:
    """Return the windows at one position as rows: (G, N, R)."""
    window = padded[(..., *geometry.window(position))]
    rows = backend.xp.reshape(window, (geometry.batch, geometry.groups, geometry.group_in * geometry.taps))
    return backend.xp.permute_dims(rows, (1, 0, 2))


def _values(geometry: Geometry, backend: Backend, dout: Array, position: tuple[int, ...]) -> Array:
    """Return the gradient of the output at one position: (G, N, F)."""
    values = backend.xp.reshape(dout[(..., *position)], (geometry.batch, geometry.groups, geometry.group_out))
    return backend.xp.permute_dims(values, (1, 0, 2))
