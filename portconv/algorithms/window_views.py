"""Columns of few cells, copied at once from a view of their windows."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Index
from .columns import Block

FEW_CELLS = 1 << 13
"""Up to so many, a call takes longer than what it does."""


class _Laid(NamedTuple):
    """How columns of whole samples are laid out: the padded cells, the input's place in them, a view of their windows.

    Attributes
    ----------
    cells, padded : tuple of int
        (n, g, c, *S), and that with its padding, and with zeros between cells that are to be spaced.
    inside : Index
        The cells in the padded ones.
    windows, steps : tuple of int
        The sizes of the view, (g, c, *K, n, *P), and its steps in elements.
    columns : tuple of int
        (g, r, l).
    """

    cells: tuple[int, ...]
    padded: tuple[int, ...]
    inside: Index
    windows: tuple[int, ...]
    steps: tuple[int, ...]
    columns: tuple[int, ...]


def _few(geometry: Geometry) -> bool:
    """Whether all columns together are so few that calls take longer than what they do."""
    cells = geometry.batch * geometry.in_channels * max(math.prod(geometry.padded), geometry.taps * geometry.positions)
    return 0 < cells <= FEW_CELLS and _viewed(geometry)


def _viewed(geometry: Geometry) -> bool:
    """Whether windows may be views of padded cells: strides of memory that mean nothing might overflow."""
    near = max(*geometry.stride, *geometry.dilation) <= FEW_CELLS
    return near and min(*geometry.before, *geometry.after) >= 0


@lru_cache(maxsize=1024)
def _laid(geometry: Geometry, batch: int, groups: int, channels: int, apart: tuple[int, ...] = ()) -> _Laid:
    """Lay out columns of so much of a geometry, whose input is to be spaced: the cells given lie so far `apart`."""
    padded, apart = (batch, groups, channels, *geometry.padded), apart or (1,) * geometry.dims
    # Of one cell any step will do, and steps may be large.
    inside = (
        slice(lo, lo + n, max(1, min(s, n))) for lo, n, s in zip(geometry.before, geometry.size, apart, strict=True)
    )
    of_sample, of_group, of_channel, *of_cells = (math.prod(padded[i + 1 :]) for i in range(len(padded)))
    taps = (step * d for step, d in zip(of_cells, geometry.dilation, strict=True))
    positions = (step * s for step, s in zip(of_cells, geometry.stride, strict=True))
    return _Laid(
        (batch, groups, channels, *(-(-n // s) for n, s in zip(geometry.size, apart, strict=True))),
        padded,
        (ALL, ALL, ALL, *inside),
        (groups, channels, *geometry.kernel, batch, *geometry.out),
        (of_group, of_channel, *taps, of_sample, *positions),
        (groups, channels * geometry.taps, batch * geometry.positions),
    )


@lru_cache(maxsize=1024)
def _all_laid(geometry: Geometry, apart: tuple[int, ...] = ()) -> _Laid | None:
    """Lay out all columns together, where they are few; None elsewhere."""
    return _laid(geometry, geometry.batch, geometry.groups, geometry.group_in, apart) if _few(geometry) else None


def _windows(backend: Backend, laid: _Laid, x: Array, workspace: Workspace) -> Array:
    """A view of all windows of `x` (n, g, c, *S): (g, c, *K, n, *P)."""
    padded = workspace("padded", laid.padded)
    if laid.padded != laid.cells:
        padded = backend.zeroed(padded)
    return backend.view(backend.write(padded, laid.inside, x), laid.windows, laid.steps)


def _columns(geometry: Geometry, backend: Backend, x: Array, block: Block, workspace: Workspace) -> Array:
    """The columns of a block of whole samples, in one copy: (g, c * K, l), with each sample's side by side."""
    laid = _laid(geometry, *block.counts)
    cells = x[(slice(*block.samples), slice(*block.groups), slice(*block.channels), ...)]
    columns = workspace("columns", laid.windows)
    columns = backend.write(columns, (...,), _windows(backend, laid, cells, workspace))
    return backend.xp.reshape(columns, laid.columns)


def _all_columns(backend: Backend, laid: _Laid, x: Array) -> Array:
    """All columns in one copy of a view: (G, c * K, N * P)."""
    xp = backend.xp
    return xp.reshape(_windows(backend, laid, xp.reshape(x, laid.cells), backend.workspace(x)), laid.columns)


def _at_once(geometry: Geometry, backend: Backend, laid: _Laid, x: Array, w: Array, b: Array | None) -> Array:
    """The forward product of few columns, all in one."""
    xp, columns = backend.xp, _all_columns(backend, laid, x)
    value = backend.product(xp.reshape(w, (geometry.groups, geometry.group_out, -1)), columns)
    if b is not None:
        value = backend.add(value, (...,), xp.reshape(b, (geometry.groups, geometry.group_out, 1)))
    if geometry.batch == 1 and not geometry.channels_last:
        return xp.reshape(value, geometry.out_shape)
    value = xp.reshape(value, (geometry.out_channels, geometry.batch, *geometry.out))
    out = backend.empty(geometry.out_shape, like=columns, last=geometry.channels_last)
    return backend.write(out, (...,), xp.permute_dims(value, (1, 0, *range(2, value.ndim))))
