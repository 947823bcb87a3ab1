"""Windows of a block as the columns of matrices (im2col), and columns added back to cells (col2im).

`gather` makes one copy for each tap of the kernel: of the cells that it reads, for all positions of the block. So all
steps are slices, and run on any array library. `scatter` adds instead of copying.

The rows that taps of the first dimension read are the same ones but for a few. So `columns_of` first gathers all these
rows once, along the other dimensions alone, and copies the columns from there, in runs of many rows. A 3x3 kernel thus
copies 3 times in short rows, instead of 9 times. `add_columns` takes the same steps in reverse order.

Axes, in this order: g groups, c channels of a group, K kernel taps, n samples, P output positions. Where columns are
`by_rows`, the samples come after the first dimension of positions, (P1, n, P2, ..., Pd), so that it is as far from a
row to the next one of its sample for all rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, NO_SPAN, Box, Index, Range, Span, edges, spans
from ..spec.remembered import remembered
from ..spec.sequences import Made, Product, kept, kept_if_few

EDGE = 1 << 15
"""One call, and the wait for another thread's call, take as long as to set this many cells to zero."""


@dataclass(frozen=True)
class Block:
    """Ranges of samples, groups and channels of a group; `run` is the range of the flattened positions of `box`."""

    samples: Range
    groups: Range
    channels: Range
    run: Range
    box: Box

    @cached_property
    def counts(self) -> tuple[int, int, int]:
        """The numbers of samples, groups and channels: (n, g, c)."""
        (n0, n1), (g0, g1), (c0, c1) = self.samples, self.groups, self.channels
        return n1 - n0, g1 - g0, c1 - c0

    @cached_property
    def rows(self) -> int:
        """The number of positions along the first dimension."""
        return self.box[0][1] - self.box[0][0]

    @cached_property
    def length(self) -> int:
        """The number of positions in all samples, which is the number of columns of the block."""
        return (self.samples[1] - self.samples[0]) * (self.run[1] - self.run[0])


class Copy(NamedTuple):
    """The copy of the cells that one tap reads into the columns.

    Attributes
    ----------
    columns : Index
        The part of the columns that reads cells of the input, of columns (n, g, c, K1, ..., Kd, P1, ..., Pd).
    inputs : tuple of slice or None
        The cells along each dimension that this part reads; None if all lie in the padding.
    padding : tuple of Index
        The rest of this tap, which reads padding.
    """

    columns: Index
    inputs: tuple[slice, ...] | None
    padding: tuple[Index, ...]


class Side(NamedTuple):
    """What a box reads along one dimension: how many outputs, the padding before its cells, and how many cells."""

    outputs: int
    before: int
    cells: int


class Copies(NamedTuple):
    """The plan of the columns of all boxes that read as many cells, and as much padding.

    Attributes
    ----------
    geometry : Geometry
    sizes : tuple of int
        The positions: (P1, ..., Pd).
    copies : sequence of Copy
        The copies that fill the columns. Their `inputs` are counted from the first cell that the box reads.
    edges : int
        The number of writes that set the padding to zero.
    """

    geometry: Geometry
    sizes: tuple[int, ...]
    copies: Sequence[Copy]
    edges: int

    def shape(self, block: Block, by_rows: bool) -> tuple[int, ...]:
        """Return the shape of the columns of a block: (g, c, K1, ..., Kd, n, P1, ..., Pd), or with n after P1."""
        n, g, c = block.counts
        positions = (self.sizes[0], n, *self.sizes[1:]) if by_rows else (n, *self.sizes)
        return (g, c, *self.geometry.kernel, *positions)


def reads_of(geometry: Geometry, box: Box) -> tuple[tuple[slice, ...], tuple[Side, ...]]:
    """Return the cells that a box reads, and what it reads along each dimension."""
    cells, sides = [], []
    for dim, (start, end) in enumerate(box):
        size, stride = geometry.size[dim], geometry.stride[dim]
        first = start * stride - geometry.before[dim]
        last = first + (end - start - 1) * stride + geometry.extent[dim]
        lo, hi = max(first, 0), min(last, size)
        if lo < hi:
            cells.append(slice(lo, hi))
            sides.append(Side(end - start, lo - first, hi - lo))
        else:
            cells.append(slice(0, 0))
            sides.append(Side(end - start, 0, 0))
    return tuple(cells), tuple(sides)


@remembered(lambda plan: kept(plan.copies))
def copies_of(geometry: Geometry, sides: tuple[Side, ...]) -> Copies:
    """Return the plan of the columns of the boxes that read this much along each dimension."""
    sizes = tuple(side.outputs for side in sides)
    taps = [
        kept_if_few(spans(side.cells, taps, step, apart, side.before, (0, side.outputs)))
        for side, taps, step, apart in zip(sides, geometry.kernel, geometry.stride, geometry.dilation, strict=True)
    ]
    places = Product(*(range(len(some)) for some in taps))
    copies: Made[Copy] = Made(places, lambda at: _copy(at, [some[i] for some, i in zip(taps, at, strict=True)], sizes))
    count = sum(
        len(places) // len(some) * sum((one.outputs.start > 0) + (one.outputs.stop < size) for one in some)
        for some, size in zip(taps, sizes, strict=True)
    )
    return Copies(geometry, sizes, kept_if_few(copies), count)


def _copy(place: tuple[int, ...], parts: list[Span], sizes: tuple[int, ...]) -> Copy:
    """Return the copy of the tap at a `place` in the kernel."""
    tap: Index = (ALL, ALL, ALL, *place)
    inside = [part.outputs for part in parts]
    inputs = None if NO_SPAN in parts else tuple(part.inputs for part in parts)
    return Copy((*tap, *inside), inputs, tuple((*tap, *edge) for edge in edges(inside, sizes)))


def gather(
    geometry: Geometry, backend: Backend, x: Array, block: Block, workspace: Workspace, by_rows: bool = False
) -> Array:
    """Copy the windows of a block into columns.

    `x` is (N, G, C, *S). The columns are (g, c, K1 * ... * Kd, n * P1 * ... * Pd), or with n after P1 if they are
    `by_rows`. They lie in the workspace, or are a view of `x` if a 1x1 layer needs no copy.
    """
    xp = backend.xp
    n, g, c = block.counts
    if geometry.pointwise and n == 1:
        sample = x[(block.samples[0], slice(*block.groups), slice(*block.channels), *(ALL,) * geometry.dims)]
        return xp.reshape(sample, (g, c, 1, geometry.positions))[:, :, :, slice(*block.run)]
    cells, sides = reads_of(geometry, block.box)
    plan = copies_of(geometry, sides)
    source = x[(slice(*block.samples), slice(*block.groups), slice(*block.channels), *cells)]
    columns = workspace("strips", plan.shape(block, by_rows))
    # For few cells, it is faster to set all to zero than to call once for each edge.
    all_zeroed = math.prod(columns.shape) < EDGE * plan.edges
    if all_zeroed:
        columns = backend.zeroed(columns)
    samples = 2 + geometry.dims + by_rows  # the axis of samples, which comes first where cells are copied
    columns = xp.permute_dims(columns, (samples, *range(samples), *range(samples + 1, columns.ndim)))
    for copy in plan.copies:
        for edge in () if all_zeroed else copy.padding:
            columns = backend.write(columns, edge, 0)
        if copy.inputs is not None:
            columns = backend.write(columns, copy.columns, source[(ALL, ALL, ALL, *copy.inputs)])
    columns = xp.permute_dims(columns, (*range(1, samples + 1), 0, *range(samples + 1, columns.ndim)))
    return xp.reshape(columns, (g, c, geometry.taps, -1))


def columns_of(geometry: Geometry, backend: Backend, x: Array, block: Block, workspace: Workspace) -> Array:
    """Copy the windows of a block into a matrix for each group: (g, c * K1 * ... * Kd, n * P1 * ... * Pd)."""
    xp, (_, g, c) = backend.xp, block.counts
    if not shares_rows(geometry, block.rows):
        columns = gather(geometry, backend, x, block, workspace)
    else:
        strips = gather(_of_rows(geometry), backend, x, _rows_of(geometry, block), workspace)
        strips = xp.reshape(strips, _with_rows(geometry, block, 1, rows_read(geometry, block.rows)))
        parts = ((tap, strips[:, :, 0, :, :, rows, :]) for tap, rows in _rows_of_taps(geometry, block))
        if backend.mutable:
            columns = workspace("columns", _with_rows(geometry, block, geometry.kernel[0], block.rows))
            for tap, part in parts:
                columns = backend.write(columns, (ALL, ALL, tap, ...), part)
        else:
            columns = xp.stack([part for _, part in parts], axis=2)
    return xp.reshape(columns, (g, c * geometry.taps, block.length))


def add_columns(
    geometry: Geometry, backend: Backend, columns: Array, grad: Array, block: Block, workspace: Workspace
) -> Array:
    """Add the columns of a block to the cells of `grad` (n, g, c, *S); the adjoint of `columns_of`."""
    if not shares_rows(geometry, block.rows):
        return scatter(geometry, backend, columns, grad, block)
    columns = backend.xp.reshape(columns, _with_rows(geometry, block, geometry.kernel[0], block.rows))
    shape = _with_rows(geometry, block, 1, rows_read(geometry, block.rows))
    strips = backend.zeroed(workspace("strips", shape))
    for tap, rows in _rows_of_taps(geometry, block):
        strips = backend.add(strips, (ALL, ALL, 0, ALL, ALL, rows, ALL), columns[:, :, tap, ...])
    return scatter(_of_rows(geometry), backend, strips, grad, _rows_of(geometry, block))


def shares_rows(geometry: Geometry, outputs: int) -> bool:
    """Return whether taps of the first dimension read so many of the same rows that all are gathered once."""
    return geometry.dims > 1 and rows_read(geometry, outputs) < geometry.kernel[0] * outputs


def rows_read(geometry: Geometry, outputs: int) -> int:
    """Count the rows from the first to the last that so many outputs along the first dimension read."""
    return (outputs - 1) * geometry.stride[0] + geometry.extent[0]


@remembered()
def _of_rows(geometry: Geometry) -> Geometry:
    """Return the convolution along all dimensions but the first, whose outputs are all rows of the padded input."""
    kernel, stride, dilation = ((1, *sides[1:]) for sides in (geometry.kernel, geometry.stride, geometry.dilation))
    return replace(geometry, kernel=kernel, stride=stride, dilation=dilation)


def _rows_of(geometry: Geometry, block: Block) -> Block:
    """Return the block of the rows that a block reads."""
    start, across = block.box[0][0] * geometry.stride[0], geometry.positions // geometry.out[0]
    end = start + rows_read(geometry, block.rows)
    return replace(block, run=(start * across, end * across), box=((start, end), *block.box[1:]))


def _rows_of_taps(geometry: Geometry, block: Block) -> Iterator[tuple[int, slice]]:
    """Return each tap of the first dimension, and the rows that it reads of those that the block reads."""
    stride, dilation = geometry.stride[0], geometry.dilation[0]
    last = (block.rows - 1) * stride + 1
    return ((tap, slice(tap * dilation, tap * dilation + last, stride)) for tap in range(geometry.kernel[0]))


def _with_rows(geometry: Geometry, block: Block, taps: int, rows: int) -> tuple[int, ...]:
    """Return the shape of columns of so many taps and rows of the first dimension: (g, c, K1, K2, n, P1, P2)."""
    n, g, c = block.counts
    return (g, c, taps, geometry.other_taps, n, rows, block.length // (n * block.rows))


def scatter(geometry: Geometry, backend: Backend, columns: Array, grad: Array, block: Block) -> Array:
    """Add columns to the cells of `grad` (n, g, c, *S) that they are copied from; the adjoint of `gather`."""
    first, sides = reads_of(geometry, block.box)
    plan = copies_of(geometry, sides)
    columns = backend.xp.reshape(columns, plan.shape(block, False))
    samples = 2 + geometry.dims
    columns = backend.xp.permute_dims(columns, (samples, *range(samples), *range(samples + 1, columns.ndim)))
    for copy in plan.copies:
        if copy.inputs is not None:
            pairs = zip(copy.inputs, first, strict=True)
            cells = (slice(part.start + lo.start, part.stop + lo.start, part.step) for part, lo in pairs)
            grad = backend.add(grad, (ALL, ALL, ALL, *cells), columns[copy.columns])
    return grad
