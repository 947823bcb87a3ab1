"""Windows of a block as the columns of matrices (im2col), and the way back (col2im).

The copies go in two steps, as in Cho and Brand, "MEC: memory-efficient convolution" (ICML 2017), section 3. The first
makes strips: windows along all dimensions but the first, whose rows stay in order. The columns of one tap of the first
dimension are then a run of a strip and need no copy; those of several taps together are copied from such runs, in a
second step. A 3x3 kernel so copies short rows 3 times a cell instead of 9. The way back takes the same steps in reverse
order, adding where the way there copied. All are slices and nothing else, so they run on any array library.

A strided kernel's rows do not follow one another in the input, so a strip has lanes, one for each remainder that the
first dimension's taps leave when divided by the stride; within a lane they do.

Axes, in this order: g groups, c channels of a group, K kernel taps, P output positions with n samples after the first:
(P1, n, P2, ..., Pd), so that rows of several samples follow one another too.
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
"""Cells that are zeroed in the time of a call, and of waiting for a thread that makes one."""


@dataclass(frozen=True)
class Block:
    """Ranges of samples, groups and channels of a group; `run` of the flattened positions, which is `box`."""

    samples: Range
    groups: Range
    channels: Range
    run: Range
    box: Box

    @cached_property
    def counts(self) -> tuple[int, int, int]:
        """How many samples, groups and channels: (n, g, c)."""
        (n0, n1), (g0, g1), (c0, c1) = self.samples, self.groups, self.channels
        return n1 - n0, g1 - g0, c1 - c0

    @cached_property
    def rows(self) -> int:
        """Positions along the first dimension."""
        return self.box[0][1] - self.box[0][0]

    @cached_property
    def length(self) -> int:
        """Positions, over all samples: how many columns the block has."""
        return (self.samples[1] - self.samples[0]) * (self.run[1] - self.run[0])


class Copy(NamedTuple):
    """One copy from the input into a strip, as indices.

    `strips` is the part of a lane and taps of the strips whose taps lie inside the input, `cells` the cells they read,
    None where all taps lie in the padding, `padding` the rest of that lane and taps, and `back` the index of `strips`
    once samples come before groups.
    """

    strips: Index
    cells: Index | None
    padding: tuple[Index, ...]
    back: Index


@dataclass(frozen=True)
class Strips:
    """How the strips of a box are made; what takes a step for each tap is worked out when it is first needed."""

    geometry: Geometry
    box: Box

    @cached_property
    def remainders(self) -> tuple[int, ...]:
        """What the first dimension's taps leave when divided by the stride: a lane for each.

        Empty where taps are so far apart that their rows hardly overlap: each then has a lane for itself.
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
        """Positions of a strip: (P1, ..., Pd)."""
        more = (self.geometry.kernel[0] - 1) * self.geometry.dilation[0] // self.geometry.stride[0]
        first = self._outputs + (more if self.remainders else 0)
        return (first, *(end - start for start, end in self.box[1:]))

    @cached_property
    def reads(self) -> tuple[tuple[int, int], ...]:
        """For each tap of the first dimension, the lane that holds its rows, and the first of them."""
        taps, stride, dilation = range(self.geometry.kernel[0]), self.geometry.stride[0], self.geometry.dilation[0]
        if not self.remainders:
            return tuple((tap, 0) for tap in taps)
        return tuple((self.remainders.index(tap * dilation % stride), tap * dilation // stride) for tap in taps)

    @cached_property
    def copies(self) -> tuple[Copy, ...]:
        """What makes them."""
        geometry, start = self.geometry, self.box[0][0]
        if self.remainders:
            # Row q of the lane of remainder m is the input's row q * stride + m: what one tap reads, moved by m.
            size, before, reach = geometry.size[0], geometry.before[0], (start, start + self.sizes[0])
            steps = [before - remainder for remainder in self.remainders]
            lanes = [spans(size, 1, geometry.stride[0], 1, step, reach)[0] for step in steps]
        else:
            lanes = list(geometry.spans(0, self.box[0]))
        others = [geometry.spans(dim, outputs) for dim, outputs in enumerate(self.box) if dim]
        copies = []
        for lane, along_first in enumerate(lanes):
            for chosen in product(*(range(n) for n in geometry.kernel[1:])):
                parts: list[Span] = [along_first, *(other[tap] for other, tap in zip(others, chosen, strict=True))]
                empty = any(part.outputs.start == part.outputs.stop for part in parts)
                inside = [part.outputs for part in parts]
                (o1, *o2), (i1, *i2) = inside, [part.inputs for part in parts]
                outside = edges(inside, self.sizes)
                copies.append(
                    Copy(
                        strips=(lane, ALL, ALL, *chosen, o1, ALL, *o2),
                        cells=None if empty else (ALL, ALL, i1, ALL, *i2),
                        padding=tuple((lane, ALL, ALL, *chosen, e1, ALL, *e2) for e1, *e2 in outside),
                        back=(lane, ALL, ALL, ALL, *chosen, o1, *o2),
                    )
                )
        return tuple(copies)

    @cached_property
    def edges(self) -> int:
        """Writes that fill in the padding."""
        return sum(len(copy.padding) for copy in self.copies)

    @property
    def _outputs(self) -> int:
        return self.box[0][1] - self.box[0][0]

    def shape(self, block: Block) -> tuple[int, ...]:
        """Return the strips of a block: (lanes, g, c, K2, ..., Kd, P1, n, P2, ..., Pd)."""
        n, g, c = block.counts
        return (self.lanes, g, c, *self.geometry.kernel[1:], self.sizes[0], n, *self.sizes[1:])

    def elements(self, block: Block) -> int:
        """Return the elements of the strips of a block."""
        return math.prod(self.shape(block))


def strips_of(geometry: Geometry, box: Box) -> Strips:
    """Plan how the strips of a box are made."""
    return (_few_strips if geometry.taps < MANY_TAPS else _many_strips)(geometry, box)


_few_strips, _many_strips = lru_cache(maxsize=8192)(Strips), lru_cache(maxsize=8)(Strips)


def gather(geometry: Geometry, backend: Backend, x: Array, block: Block, workspace: Workspace) -> Array:
    """Copy the windows of a block into strips.

    `x` is (N, G, C, *S). The strips are (lanes, g, c, K2 * ... * Kd, P1 * n * P2 * ... * Pd), in the workspace, or a
    view of `x` where a 1x1 layer needs no copy.
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
    # Of few cells, zeros all over take less than a call for each edge.
    few = math.prod(strips.shape) < EDGE * plan.edges
    if few:
        strips = backend.zeroed(strips)
    for copy in plan.copies:
        for edge in () if few else copy.padding:
            strips = backend.write(strips, edge, 0)
        if copy.cells is not None:
            strips = backend.write(strips, copy.strips, source[copy.cells])
    return _flat(geometry, backend, strips, block, plan)


def columns_of(
    geometry: Geometry, backend: Backend, strips: Array, block: Block, taps: Range, workspace: Workspace
) -> Array:
    """Return the columns of some taps of the first dimension: (g, c * taps * K2 * ... * Kd, l); several are copied."""
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
    """Return strips of zeros, to add columns on to."""
    plan = strips_of(geometry, block.box)
    return _flat(geometry, backend, backend.zeroed(workspace("strips", plan.shape(block))), block, plan)


def add_columns(
    geometry: Geometry, backend: Backend, strips: Array, columns: Array, block: Block, taps: Range
) -> Array:
    """Add the columns of some taps on to the strips; the adjoint of `columns_of`."""
    _, g, c = block.counts
    runs = _runs(geometry, block, taps)
    columns = backend.xp.reshape(columns, (g, c, len(runs), geometry.other_taps, block.length))
    for tap, (lane, run) in enumerate(runs):
        strips = backend.add(strips, (lane, ALL, ALL, ALL, run), columns[:, :, tap, :, :])
    return strips


def scatter(geometry: Geometry, backend: Backend, strips: Array, grad: Array, block: Block) -> Array:
    """Add the strips on to the cells of `grad` (n, g, c, *S) that `gather` reads them from; the adjoint of `gather`."""
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
    """Return, for each of these taps of the first dimension, the lane and the run of it that are its columns."""
    across = block.length // block.rows
    reads = strips_of(geometry, block.box).reads[slice(*taps)]
    return [(lane, slice(first * across, first * across + block.length)) for lane, first in reads]


def _flat(geometry: Geometry, backend: Backend, strips: Array, block: Block, plan: Strips) -> Array:
    n, g, c = block.counts
    return backend.xp.reshape(strips, (plan.lanes, g, c, geometry.other_taps, n * math.prod(plan.sizes)))
