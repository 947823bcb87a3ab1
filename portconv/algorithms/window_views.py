"""Columns of few cells, which are copied in one call from a view of all windows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from ..spec.remembered import remembered

FEW_CELLS = 1 << 15
"""With this many cells or fewer, the start of a call takes longer than its work."""


class Windows(NamedTuple):
    """The view of the padded cells of whole samples that shows all their windows.

    Attributes
    ----------
    geometry : Geometry
    cells, padded : tuple of int
        The shapes of the cells, (n, g, c, *S), and of the cells with padding and with the zeros between them.
    whole : tuple of int
        The shape of the padded cells without an axis of groups, (n, g * c, *S).
    inside : tuple
        The index of the cells in the padded cells.
    windows, steps : tuple of int
        The sizes of the view, (g, c, *K, n, *P), and its steps in elements.
    columns : tuple of int
        The shape of the columns, (g, r, l).
    """

    geometry: Geometry
    cells: tuple[int, ...]
    padded: tuple[int, ...]
    whole: tuple[int, ...]
    inside: tuple[Any, ...]
    windows: tuple[int, ...]
    steps: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The elements of workspace of a product of all windows at once: padded cells, columns and outputs."""
        return math.prod(self.padded) + math.prod(self.windows) + math.prod(self.geometry.out_shape)


def has_few_cells(geometry: Geometry) -> bool:
    """Return whether all columns together are so few that the start of a call takes longer than its work."""
    cells = geometry.batch * geometry.in_channels * max(math.prod(geometry.padded), geometry.taps * geometry.positions)
    return 0 < cells <= FEW_CELLS and can_be_viewed(geometry)


def can_be_viewed(geometry: Geometry) -> bool:
    """Return whether windows may be views of padded cells.

    They may not if a stride or a dilation is so large that strides of memory might overflow, or if padding is negative.
    """
    steps_are_small = max(*geometry.stride, *geometry.dilation) <= FEW_CELLS
    return steps_are_small and min(*geometry.before, *geometry.after) >= 0


@remembered()
def windows_of(geometry: Geometry, counts: tuple[int, int, int], apart: tuple[int, ...] = ()) -> Windows:
    """Plan the windows of `counts`: samples, groups and channels.

    Neighbouring cells of the input are `apart` cells apart in the padded cells, with zeros between them.
    """
    batch, groups, channels = counts
    padded, apart = (*counts, *geometry.padded), apart or (1,) * geometry.dims
    # A step must not be larger than the number of cells, because it might overflow; for one cell any step is right.
    inside = (
        slice(lo, lo + n, max(1, min(s, n))) for lo, n, s in zip(geometry.before, geometry.size, apart, strict=True)
    )
    of_sample, of_group, of_channel, *of_cells = (math.prod(padded[i + 1 :]) for i in range(len(padded)))
    taps = (step * d for step, d in zip(of_cells, geometry.dilation, strict=True))
    positions = (step * s for step, s in zip(of_cells, geometry.stride, strict=True))
    return Windows(
        geometry,
        (*counts, *(-(-n // s) for n, s in zip(geometry.size, apart, strict=True))),
        padded,
        (batch, groups * channels, *geometry.padded),
        (..., *inside),
        (groups, channels, *geometry.kernel, batch, *geometry.out),
        (of_group, of_channel, *taps, of_sample, *positions),
        (groups, channels * geometry.taps, batch * geometry.positions),
    )


@remembered()
def few_windows(geometry: Geometry, elements: int, apart: tuple[int, ...] = ()) -> Windows | None:
    """Plan the view of all windows if they are few, and if `elements` of workspace suffice; else return None."""
    if not has_few_cells(geometry):
        return None
    windows = windows_of(geometry, (geometry.batch, geometry.groups, geometry.group_in), apart)
    return windows if windows.elements <= elements else None


def forward_at_once(backend: Backend, windows: Windows, x: Array, w: Array, b: Array | None) -> Array:
    """Compute the output of few windows by one matrix product."""
    xp, geometry, columns = backend.xp, windows.geometry, _columns(backend, windows, x)
    value = backend.product(xp.reshape(w, (geometry.groups, geometry.group_out, -1)), columns)
    if b is not None:
        value = backend.add(value, (...,), xp.reshape(b, (geometry.groups, geometry.group_out, 1)))
    if geometry.batch == 1 and not geometry.channels_last:
        return xp.reshape(value, geometry.out_shape)
    value = xp.reshape(value, (geometry.out_channels, geometry.batch, *geometry.out))
    out = backend.empty(geometry.out_shape, like=columns, last=geometry.channels_last)
    return backend.write(out, (...,), xp.permute_dims(value, (1, 0, *range(2, value.ndim))))


def weight_grad_at_once(backend: Backend, windows: Windows, dout: Array, x: Array) -> Array:
    """Compute the gradient of the filters from few windows by one matrix product."""
    xp, geometry, columns = backend.xp, windows.geometry, _columns(backend, windows, x)
    values = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, geometry.positions))
    values = xp.reshape(xp.permute_dims(values, (1, 2, 0, 3)), (geometry.groups, geometry.group_out, -1))
    return xp.reshape(backend.product(values, xp.permute_dims(columns, (0, 2, 1))), geometry.w_shape)


def _columns(backend: Backend, windows: Windows, x: Array) -> Array:
    """Return all columns of few cells, in one copy of the view: (G, c * K, N * P)."""
    # New memory for few cells takes less time than a workspace.
    padded = backend.zeros(windows.whole, like=x)
    return backend.xp.reshape(_view(backend, windows, x, padded), windows.columns)


def _view(backend: Backend, windows: Windows, x: Array, padded: Array) -> Array:
    """Return the view of all windows of `x`, whose cells are written into `padded`: (g, c, *K, n, *P)."""
    return backend.view(backend.write(padded, windows.inside, x), windows.windows, windows.steps)
