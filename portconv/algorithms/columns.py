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
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import NamedTuple

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, MANY_TAPS, Box, Index, Range, Span, edges, spans

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
    padding : tuple of Index
        The rest of this lane and these taps, which reads padding.
    back : Index
        The same part as `strips`, for strips whose axis of samples comes before groups.
    """

    strips: Index
    cells: Index | None
    padding: tuple[Index, ...]
    back: Index


@dataclass(frozen=True)
class Strips:
    """The plan of the strips of a box. What takes a step for each tap is computed when it is first needed."""

    geometry: Geometry
    box: Box

    @cached_property
    def remainders(self) -> tuple[int, ...]:
        """The remainders of the first dimension's taps divided by the stride; there is one lane for each.

        Empty if the taps are so far apart that their rows hardly overlap; then each tap has a separate lane.
        """
        taps, stride = self.geometry.kernel[0], self.geometry.stride[0]
        remainders = sorted({tap * self.geometry.dilation[0] % stride for tap in range(taps)})
        rows = self._outputs + (taps - 1) * self.geometry.dilation[0] // stride
        return tuple(remainders) if len(remainders) * rows < taps * self._outputs else ()

    @cached_property
    def lanes(self) -> int:
        return len(self.remainders) or self.geometry.kernel[0]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The positions of a strip: (P1, ..., Pd)."""
        more = (self.geometry.kernel[0] - 1) * self.geometry.dilation[0] // self.geometry.stride[0]
        first = self._outputs + (more if self.remainders else 0)
        return (first, *(end - start for start, end in self.box[1:]))

    @cached_property
    def reads(self) -> tuple[tuple[int, int], ...]:
        """The lane that holds the rows of each tap of the first dimension, and the first of these rows."""
        taps, stride, dilation = range(self.geometry.kernel[0]), self.geometry.stride[0], self.geometry.dilation[0]
        if not self.remainders:
            return tuple((tap, 0) for tap in taps)
        return tuple((self.remainders.index(tap * dilation % stride), tap * dilation // stride) for tap in taps)

    @cached_property
    def copies(self) -> tuple[Copy, ...]:
        """The copies that fill the strips."""
        geometry, start = self.geometry, self.box[0][0]
        if self.remainders:
            # Row q of the lane of remainder m is row q * stride + m of the input, which one tap reads at offset m.
            size, before, reach = geometry.size[0], geometry.before[0], (start, start + self.sizes[0])
            steps = [before - remainder for remainder in self.remainders]
            lanes = [spans(size, 1, geometry.stride[0], 1, step, reach)[0] for step in steps]
        else:
            lanes = list(geometry.spans(0, self.box[0]))
        others = [geometry.spans(dim, outputs) for dim, outputs in enumerate(self.box) if dim]
        copies = []
        for lane, along_first in enumerate(lanes):
            for taps in product(*(range(n) for n in geometry.kernel[1:])):
                parts: list[Span] = [along_first, *(other[tap] for other, tap in zip(others, taps, strict=True))]
                empty = any(part.outputs.start == part.outputs.stop for part in parts)
                inside = [part.outputs for part in parts]
                (o1, *o2), (i1, *i2) = inside, [part.inputs for part in parts]
                outside = edges(inside, self.sizes)
                copies.append(
                    Copy(
                        strips=(lane, ALL, ALL, *taps, o1, ALL, *o2),
                        cells=None if empty else (ALL, ALL, i1, ALL, *i2),
                        padding=tuple((lane, ALL, ALL, *taps, e1, ALL, *e2) for e1, *e2 in outside),
                        back=(lane, ALL, ALL, ALL, *taps, o1, *o2),
                    )
                )
        return tuple(copies)

    @cached_property
    def edges(self) -> int:
        """The number of writes that set the padding to zero."""
        return sum(len(copy.padding) for copy in self.copies)

    @property
    def _outputs(self) -> int:
        return self.box[0][1] - self.box[0][0]

    def shape(self, block: Block) -> tuple[int, ...]:
        """Return the shape of the strips of a block: (lanes, g, c, K2, ..., Kd, P1, n, P2, ..., Pd)."""
        n, g, c = block.counts
        return (self.lanes, g, c, *self.geometry.kernel[1:], self.sizes[0], n, *self.sizes[1:])

    def elements(self, block: Block) -> int:
        """Count the elements of the strips of a block."""
        return math.prod(self.shape(block))


def strips_of(geometry: Geometry, box: Box) -> Strips:
    """Return the plan of the strips of a box."""
    return (_few_strips if geometry.taps < MANY_TAPS else _many_strips)(geometry, box)


_few_strips, _many_strips = lru_cache(maxsize=8192)(Strips), lru_cache(maxsize=8)(Strips)


def gather(geometry: Geometry, backend: Backend, x: Array, block: Block, workspace: Workspace) -> Array:
    """Copy the windows of a block into strips.

    `x` is (N, G, C, *S). The strips are (lanes, g, c, K2 * ... * Kd, P1 * n * P2 * ... * Pd). They lie in the
    workspace, or are a view of `x` if a 1x1 layer needs no copy.
    """
    xp = backend.xp
    n, g, c = block.counts
    cells = (ALL,) * geometry.dims
    if geometry.pointwise and n == 1:
        sample = x[(block.samples[0], slice(*block.groups), slice(*block.channels), *cells)]
        flat = xp.reshape(sample, (1, g, c, 1, geometry.positions))
        return flat[:, :, :, :, slice(*block.run)]
    source = x[(slice(*block.samples), slice(*block.groups), slice(*block.channels), *cells)]
    source = xp.permute_dims(source, (1, 2, 3, 0, *range(4, 3 + geometry.dims)))
    plan = strips_of(geometry, block.box)
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
    return _flat(geometry, backend, strips, block, plan)


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
    plan = strips_of(geometry, block.box)
    return _flat(geometry, backend, backend.zeroed(workspace("strips", plan.shape(block))), block, plan)


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
    plan = strips_of(geometry, block.box)
    strips = backend.xp.reshape(strips, plan.shape(block))
    # (lanes, g, c, K2, ..., Kd, P1, n, P2, ..., Pd) to (lanes, n, g, c, K2, ..., Kd, P1, P2, ..., Pd)
    samples = 3 + geometry.dims
    order = (0, samples, *range(1, samples), *range(samples + 1, strips.ndim))
    strips = backend.xp.permute_dims(strips, order)
    for copy in plan.copies:
        if copy.cells is not None:
            groups, channels, first, _, *others = copy.cells
            grad = backend.add(grad, (ALL, groups, channels, first, *others), strips[copy.back])
    return grad


def _runs(geometry: Geometry, block: Block, taps: Range) -> list[tuple[int, slice]]:
    """Return, for each of these taps of the first dimension, the lane and the run in it that hold its columns."""
    across = block.length // block.rows
    reads = strips_of(geometry, block.box).reads[slice(*taps)]
    return [(lane, slice(first * across, first * across + block.length)) for lane, first in reads]


def _flat(geometry: Geometry, backend: Backend, strips: Array, block: Block, plan: Strips) -> Array:
    n, g, c = block.counts
    return backend.xp.reshape(strips, (plan.lanes, g, c, geometry.other_taps, n * math.prod(plan.sizes)))
