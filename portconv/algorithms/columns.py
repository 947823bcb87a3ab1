"""Windows of a block as the columns of matrices (im2col), and columns added back to cells (col2im).

The windows are copied in two steps, as in Cho and Brand, "MEC: memory-efficient convolution" (ICML 2017), section 3.
The first step copies strips: windows along all dimensions but the first, whose rows stay in order. The columns of one
tap of the first dimension are then a run of a strip and need no copy. The columns of several taps together are copied
from such runs, in the second step. So a 3x3 kernel copies each cell 3 times in short rows, instead of 9 times.
`add_columns` and `scatter` take the same steps in reverse order, and add instead of copying. All steps are slices, so
they run on any array library.

With a stride, the rows that a tap reads do not follow one another in the input. So a strip has lanes, one for each
remainder of the taps of the first dimension divided by the stride; within a lane the rows follow one another.

Axes, in this order: g groups, c channels of a group, K kernel taps, P output positions with the n samples after the
first dimension: (P1, n, P2, ..., Pd), so that rows of several samples follow one another too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, NO_SPAN, Box, Index, Range, Span, edges, span, spans
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
    """One copy from the input into the strips: one lane, and one tap of each dimension but the first.

    Attributes
    ----------
    strips : Index
        The part of the strips that reads cells of the input.
    cells : Index or None
        The cells that this part reads; None if all lie in the padding.
    inputs : tuple of slice
        These cells along each dimension.
    padding : tuple of Index
        The rest of this lane and these taps, which reads padding.
    back : Index
        The same part as `strips`, for strips whose axis of samples comes before groups.
    """

    strips: Index
    cells: Index | None
    inputs: tuple[slice, ...]
    padding: tuple[Index, ...]
    back: Index


class Side(NamedTuple):
    """What a box reads along one dimension: how many outputs, the padding before its cells, and how many cells."""

    outputs: int
    before: int
    cells: int


class Lanes(NamedTuple):
    """The lanes of strips, and how many rows each has for the outputs of a box.

    `period` is 0 if the taps of the first dimension are so far apart that their rows hardly overlap; each then has a
    lane of its own. Otherwise the taps whose distance is a multiple of `period` share a lane.
    """

    number: int
    rows: int
    period: int

    def read(self, geometry: Geometry, tap: int) -> tuple[int, int]:
        """Return the lane that holds the rows of a tap of the first dimension, and the first of these rows."""
        return (tap % self.period, tap * geometry.dilation[0] // geometry.stride[0]) if self.period else (tap, 0)


class Strips(NamedTuple):
    """The plan of the strips of all boxes that read as many cells, and as much padding.

    Attributes
    ----------
    geometry : Geometry
    lanes : Lanes
    sizes : tuple of int
        The positions of a strip: (P1, ..., Pd).
    copies : sequence of Copy
        The copies that fill the strips. Their `cells` are counted from the first cell that the box reads.
    edges : int
        The number of writes that set the padding to zero.
    """

    geometry: Geometry
    lanes: Lanes
    sizes: tuple[int, ...]
    copies: Sequence[Copy]
    edges: int

    def shape(self, block: Block) -> tuple[int, ...]:
        """Return the shape of the strips of a block: (lanes, g, c, K2, ..., Kd, P1, n, P2, ..., Pd)."""
        n, g, c = block.counts
        return (self.lanes.number, g, c, *self.geometry.kernel[1:], self.sizes[0], n, *self.sizes[1:])


@remembered()
def lanes_of(geometry: Geometry, outputs: int) -> Lanes:
    """Return the lanes of the strips of so many outputs along the first dimension."""
    taps, stride, dilation = geometry.kernel[0], geometry.stride[0], geometry.dilation[0]
    # There is a lane for each remainder of the taps divided by the stride; the remainders repeat after so many taps.
    period = stride // math.gcd(stride, dilation)
    count, rows = min(taps, period), outputs + (taps - 1) * dilation // stride
    return Lanes(count, rows, period) if count * rows < taps * outputs else Lanes(taps, outputs, 0)


def strip_elements(geometry: Geometry, block: Block) -> int:
    """Count the elements of the strips of a block."""
    lanes, across = lanes_of(geometry, block.rows), block.length // max(1, block.rows)
    return lanes.number * block.counts[1] * block.counts[2] * geometry.other_taps * lanes.rows * across


def reads_of(geometry: Geometry, box: Box) -> tuple[tuple[slice, ...], tuple[Side, ...]]:
    """Return the cells that a box reads, and what it reads along each dimension."""
    cells, sides = [], []
    for dim, (start, end) in enumerate(box):
        size, stride = geometry.size[dim], geometry.stride[dim]
        first = start * stride - geometry.before[dim]
        # Rows of a lane that no tap reads may lie after the last window, by less than a stride.
        last = first + (end - start - 1) * stride + geometry.extent[dim] + (0 if dim else stride - 1)
        lo, hi = max(first, 0), min(last, size)
        if lo < hi:
            cells.append(slice(lo, hi))
            sides.append(Side(end - start, lo - first, hi - lo))
        else:
            cells.append(slice(0, 0))
            sides.append(Side(end - start, 0, 0))
    return tuple(cells), tuple(sides)


@remembered(lambda strips: kept(strips.copies))
def strips_of(geometry: Geometry, sides: tuple[Side, ...]) -> Strips:
    """Return the plan of the strips of the boxes that read this much along each dimension."""
    lanes, stride, dilation = lanes_of(geometry, sides[0].outputs), geometry.stride[0], geometry.dilation[0]
    sizes = (lanes.rows, *(side.outputs for side in sides[1:]))

    def of_lane(lane: int) -> Span:
        # Where taps share a lane, row q of the lane of remainder m is row q * stride + m of the cells.
        offset = lane * dilation % stride if lanes.period else lane * dilation
        return span(sides[0].cells, stride, offset - sides[0].before, (0, lanes.rows))

    others = [
        spans(side.cells, taps, step, apart, side.before, (0, side.outputs))
        for side, taps, step, apart in zip(sides, geometry.kernel, geometry.stride, geometry.dilation, strict=True)
    ]
    parts = [kept_if_few(some) for some in (Made(range(lanes.number), of_lane), *others[1:])]
    places = Product(*(range(len(some)) for some in parts))
    copies: Made[Copy] = Made(places, lambda at: _copy(at, [some[i] for some, i in zip(parts, at, strict=True)], sizes))
    count = sum(
        len(places) // len(some) * sum((one.outputs.start > 0) + (one.outputs.stop < size) for one in some)
        for some, size in zip(parts, sizes, strict=True)
    )
    return Strips(geometry, lanes, sizes, kept_if_few(copies), count)


def _copy(place: tuple[int, ...], parts: list[Span], sizes: tuple[int, ...]) -> Copy:
    """Return the copy of a lane and of one tap of each other dimension, which are its `place`."""
    lane, *taps = place
    inside, inputs = [part.outputs for part in parts], tuple(part.inputs for part in parts)
    (o1, *o2), (i1, *i2) = inside, inputs
    return Copy(
        strips=(lane, ALL, ALL, *taps, o1, ALL, *o2),
        cells=None if NO_SPAN in parts else (ALL, ALL, i1, ALL, *i2),
        inputs=inputs,
        padding=tuple((lane, ALL, ALL, *taps, e1, ALL, *e2) for e1, *e2 in edges(inside, sizes)),
        back=(lane, ALL, ALL, ALL, *taps, o1, *o2),
    )


def gather(geometry: Geometry, backend: Backend, x: Array, block: Block, workspace: Workspace) -> Array:
    """Copy the windows of a block into strips.

    `x` is (N, G, C, *S). The strips are (lanes, g, c, K2 * ... * Kd, P1 * n * P2 * ... * Pd). They lie in the
    workspace, or are a view of `x` if a 1x1 layer needs no copy.
    """
    xp = backend.xp
    n, g, c = block.counts
    if geometry.pointwise and n == 1:
        sample = x[(block.samples[0], slice(*block.groups), slice(*block.channels), *(ALL,) * geometry.dims)]
        flat = xp.reshape(sample, (1, g, c, 1, geometry.positions))
        return flat[:, :, :, :, slice(*block.run)]
    cells, sides = reads_of(geometry, block.box)
    plan = strips_of(geometry, sides)
    source = x[(slice(*block.samples), slice(*block.groups), slice(*block.channels), *cells)]
    source = xp.permute_dims(source, (1, 2, 3, 0, *range(4, 3 + geometry.dims)))
    strips = workspace("strips", plan.shape(block))
    # For few cells, it is faster to set all to zero than to call once for each edge.
    all_zeroed = math.prod(strips.shape) < EDGE * plan.edges
    if all_zeroed:
        strips = backend.zeroed(strips)
    for copy in plan.copies:
        for edge in () if all_zeroed else copy.padding:
            strips = backend.write(strips, edge, 0)
        if copy.cells is not None:
            strips = backend.write(strips, copy.strips, source[copy.cells])
    return _flat(geometry, backend, strips, block)


def columns_of(
    geometry: Geometry, backend: Backend, strips: Array, block: Block, taps: Range, workspace: Workspace
) -> Array:
    """Return the columns of a range of taps of the first dimension: (g, c * taps * K2 * ... * Kd, l).

    The columns of one tap are a view of the strips; those of several taps are copied.
    """
    xp = backend.xp
    _, g, c = block.counts
    runs, rest = _runs(geometry, block, taps), geometry.other_taps
    if len(runs) == 1:
        lane, run = runs[0]
        return xp.reshape(strips[lane, :, :, :, run], (g, c * rest, block.length))
    columns = workspace("columns", (g, c, len(runs), rest, block.length))
    for tap, (lane, run) in enumerate(runs):
        columns = backend.write(columns, (ALL, ALL, tap, ALL, ALL), strips[lane, :, :, :, run])
    return xp.reshape(columns, (g, c * len(runs) * rest, block.length))


def no_strips(geometry: Geometry, backend: Backend, block: Block, workspace: Workspace) -> Array:
    """Return strips of zeros, to which columns can be added."""
    strips = workspace("strips", strips_of(geometry, reads_of(geometry, block.box)[1]).shape(block))
    return _flat(geometry, backend, backend.zeroed(strips), block)


def add_columns(
    geometry: Geometry, backend: Backend, strips: Array, columns: Array, block: Block, taps: Range
) -> Array:
    """Add the columns of a range of taps to the strips; the adjoint of `columns_of`."""
    _, g, c = block.counts
    runs = _runs(geometry, block, taps)
    columns = backend.xp.reshape(columns, (g, c, len(runs), geometry.other_taps, block.length))
    for tap, (lane, run) in enumerate(runs):
        strips = backend.add(strips, (lane, ALL, ALL, ALL, run), columns[:, :, tap, :, :])
    return strips


def scatter(geometry: Geometry, backend: Backend, strips: Array, grad: Array, block: Block) -> Array:
    """Add the strips to the cells of `grad` (n, g, c, *S) that they are copied from; the adjoint of `gather`."""
    first, reads = reads_of(geometry, block.box)
    plan = strips_of(geometry, reads)
    strips = backend.xp.reshape(strips, plan.shape(block))
    # (lanes, g, c, K2, ..., Kd, P1, n, P2, ..., Pd) to (lanes, n, g, c, K2, ..., Kd, P1, P2, ..., Pd)
    samples = 3 + geometry.dims
    order = (0, samples, *range(1, samples), *range(samples + 1, strips.ndim))
    strips = backend.xp.permute_dims(strips, order)
    for copy in plan.copies:
        if copy.cells is not None:
            sides = zip(copy.inputs, first, strict=True)
            cells = (slice(part.start + lo.start, part.stop + lo.start, part.step) for part, lo in sides)
            grad = backend.add(grad, (ALL, ALL, ALL, *cells), strips[copy.back])
    return grad


def _runs(geometry: Geometry, block: Block, taps: Range) -> list[tuple[int, slice]]:
    """Return, for each of these taps of the first dimension, the lane and the run in it that hold its columns."""
    across, lanes = block.length // block.rows, lanes_of(geometry, block.rows)
    reads = [lanes.read(geometry, tap) for tap in range(*taps)]
    return [(lane, slice(first * across, first * across + block.length)) for lane, first in reads]


def _flat(geometry: Geometry, backend: Backend, strips: Array, block: Block) -> Array:
    """Return strips with one axis for the taps, and one for the positions."""
    _, g, c = block.counts
    return backend.xp.reshape(strips, (strips.shape[0], g, c, geometry.other_taps, -1))
