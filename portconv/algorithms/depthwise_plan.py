"""How `depthwise` cuts a product into lines and blocks, and what that takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from itertools import product
from typing import Any, NamedTuple

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Index, Range, cut, pieces
from .budget import Limits, Work, copied, fitted, narrow
from .columns import Block, gather
from .mirrored import of_mirrored

LONG = 4096
"""Places of a line from which on calls take little beside what they do."""
WIDE = 1024
"""Places of a line from which on one of a stack's products takes little beside what it does."""
SAVED = 512
"""Cells a line that must be saved from being copied for starting on a product a line to cost less."""
FEW_ROWS = 8
"""With fewer rows of outputs a block, those that blocks share are read too often."""
START = 0.05
"""What starting one of a stack's products takes, of a call."""


class Lines(NamedTuple):
    """What blocks of one size have in common: shapes and indices.

    Attributes
    ----------
    length : int
        Places of a line from its first output to its last one.
    places : tuple
        Those, as an index.
    sums, found : tuple of int
        (g, h, f, l), with all places and with these.
    outputs : tuple of int
        (g, f, P1, n, P2, ..., Pd), with places left out.
    kept : tuple
        What is not left out of that.
    planes : tuple of int
        (lanes, g, phases, lines that are read, l).
    strips : tuple of int
        (g, lines that are read, t, l).
    shifted : (tuple of int, tuple of int, tuple of int)
        The strips with an axis for each dimension's taps, (g, lines, *K, l); what all of them are of the planes where
        there is a single phase, as sizes and steps.
    windows : (tuple of int, tuple of int)
        What all taps read of the strips, (g, h, taps, l), as sizes and steps.
    """

    length: int
    places: tuple[Any, ...]
    sums: tuple[int, ...]
    found: tuple[int, ...]
    outputs: tuple[int, ...]
    kept: tuple[Any, ...]
    planes: tuple[int, ...]
    strips: tuple[int, ...]
    shifted: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    windows: tuple[tuple[int, ...], tuple[int, ...]]


class Task(NamedTuple):
    """A block of outputs, and all that is known of it before its arrays are.

    Attributes
    ----------
    block, reads : Block
        The outputs, and what of the phases they read.
    writes : Index
        The outputs in (N, G, F, *P).
    lines : Lines
    copies : tuple of (Index, Index)
        For each tap, its part of the strips, and what that is of the planes.
    """

    block: Block
    reads: Block
    writes: Index
    lines: Lines
    copies: tuple[tuple[Index, Index], ...]


@dataclass(frozen=True)
class Planes:
    """A geometry of one channel a group as shifted planes, and its work in blocks.

    Attributes
    ----------
    geometry : Geometry
    rows : bool
        Whether each row of the first dimension is a line, whose taps read the lines after; else all rows are one.
    samples, groups : tuple of Range
        What a block takes of samples and groups.
    height : int
        The most outputs of the first dimension a block.
    sums : int
        Into how many partial sums a weight gradient is cut.
    """

    geometry: Geometry
    rows: bool
    samples: tuple[Range, ...]
    groups: tuple[Range, ...]
    height: int
    sums: int

    @cached_property
    def phases(self) -> Geometry:
        """The phases of the input as the taps of a kernel: of lines, along all dimensions but the first."""
        taps = (range(n) for n in self.geometry.kernel)
        sides = zip(taps, self.geometry.dilation, self.geometry.stride, strict=True)
        counts = tuple(max(tap * d % s for tap in own) + 1 for own, d, s in sides)
        ones = (1,) * self.geometry.dims
        stride = self.geometry.stride
        if self.rows:
            counts, stride = (1, *counts[1:]), (1, *stride[1:])
        return replace(self.geometry, out_channels=self.geometry.groups, kernel=counts, stride=stride, dilation=ones)

    @cached_property
    def lays(self) -> Geometry:
        """The outputs with the places left out after them, as a convolution of kernel 1 reads them."""
        ones, none = (1,) * self.geometry.dims, (0,) * self.geometry.dims
        return replace(
            self.geometry,
            in_channels=self.geometry.out_channels,
            size=self.geometry.out,
            kernel=ones,
            stride=ones,
            dilation=ones,
            before=none,
            after=(0, *self.most[1:]),
        )

    @cached_property
    def most(self) -> tuple[int, ...]:
        """How far the last tap is moved along each dimension."""
        sides = zip(self.geometry.kernel, self.geometry.dilation, self.geometry.stride, strict=True)
        return tuple((k - 1) * d // s for k, d, s in sides)

    @cached_property
    def across(self) -> tuple[int, ...]:
        """Places along all dimensions but the first."""
        return tuple(n + q for n, q in zip(self.geometry.out[1:], self.most[1:], strict=True))

    @cached_property
    def taps(self) -> int:
        """Taps whose lines are put side by side."""
        return self.geometry.other_taps if self.rows else self.geometry.taps

    @property
    def evenly(self) -> bool:
        """Whether all taps read one phase, so that along each dimension they are moved by one step after another."""
        return self.phases.taps == 1

    @cached_property
    def single(self) -> tuple[Range, ...]:
        """The first dimension's taps, each by itself where lines are rows."""
        return pieces(self.geometry.kernel[0], 1) if self.rows else ((0, self.geometry.kernel[0]),)

    def parts(self, backend: Backend) -> tuple[Range, ...]:
        """The first dimension's taps that one product takes together: all of them where windows may be views."""
        return ((0, self.geometry.kernel[0]),) if backend.strided else self.single

    def kernel(self, taps: Range) -> tuple[int, ...]:
        """The sizes of a kernel with these taps of the first dimension alone."""
        return (taps[1] - taps[0], *self.geometry.kernel[1:])

    def filters(self, backend: Backend, w: Array, taps: Range) -> Array:
        """The filters of these taps of the first dimension: (G, 1, f, t)."""
        w = backend.xp.reshape(w, (self.geometry.groups, self.geometry.group_out, *self.geometry.kernel))
        shape = (self.geometry.groups, 1, self.geometry.group_out, math.prod(self.kernel(taps)))
        return backend.xp.reshape(w[:, :, slice(*taps), ...], shape)

    def which(self, lines: Lines, taps: Range) -> slice:
        """The lines that one tap of the first dimension reads."""
        stride = self.geometry.stride[0]
        return slice(taps[0], taps[0] + (lines.sums[1] - 1) * stride + 1, stride) if self.rows else ALL

    def stacks(self) -> Iterator[tuple[Block, ...]]:
        """The blocks of the same samples and groups, one stack after the other."""
        across = math.prod(self.geometry.out[1:])
        full = tuple((0, n) for n in self.geometry.out[1:])
        for samples, groups in product(self.samples, self.groups):
            yield tuple(
                Block(samples, groups, (0, 1), (start * across, end * across), ((start, end), *full))
                for start, end in pieces(self.geometry.out[0], self.height)
            )

    def writes(self, block: Block) -> Index:
        """The outputs of a block, as an index of arrays (N, G, F, *P)."""
        return (slice(*block.samples), slice(*block.groups), ALL, *(slice(*side) for side in block.box))

    def reach(self, rows: int) -> int:
        """How many rows of the phases so many rows of outputs read."""
        return (rows - 1) * self.geometry.stride[0] + self.geometry.kernel[0] if self.rows else rows + self.most[0]

    def reads(self, block: Block) -> Block:
        """The places that a block's taps read, in the phases."""
        start = block.box[0][0] * (self.geometry.stride[0] if self.rows else 1)
        return self._block(block, start, start + self.reach(block.rows))

    def _block(self, block: Block, start: int, end: int) -> Block:
        """The places of these rows."""
        across = math.prod(self.across)
        box = ((start, end), *((0, n) for n in self.across))
        return replace(block, run=(start * across, end * across), box=box)

    def laid(self, backend: Backend, values: Array, task: Task, workspace: Workspace) -> Array:
        """A block of the output's gradient at its places, and zeros in those left out: (g, h, f, l)."""

        def of_dout(purpose: str, shape: tuple[int, ...], dtype: object = None) -> Array:
            return workspace(f"{purpose} of dout", shape, dtype)

        block, (groups, lines, filters, line) = task.block, task.lines.sums
        places = replace(self._block(block, *block.box[0]), channels=(0, filters))
        laid = gather(self.lays, backend, values, places, of_dout)
        laid = backend.xp.reshape(laid, (groups, filters, lines, line))
        return backend.xp.permute_dims(laid, (0, 2, 1, 3))[task.lines.places]

    def lines(self, n: int, groups: int, rows: int) -> Lines:
        """Describe blocks of so many samples, groups and rows of outputs."""
        across, read, filters = n * math.prod(self.across), self.reach(rows), self.geometry.group_out
        count, line, of_strips = (rows, across, read) if self.rows else (1, rows * across, 1)
        length = line - sum(q * self._step(dim, 1) for dim, q in enumerate(self.most) if dim)
        wide = read * across // of_strips
        # A stride that no second line takes may be too large for an array's steps.
        down = self.geometry.stride[0] if count > 1 else 1
        first = 1 if self.rows else 0
        kernel = self.geometry.kernel[first:]
        moves = [self._moved(dim, min(1, k - 1), n) for dim, k in enumerate(kernel, start=first)]
        steps = (of_strips * self.taps * wide, down * self.taps * wide, wide, 1)
        return Lines(
            length,
            (..., slice(length)),
            (groups, count, filters, line),
            (groups, count, filters, length),
            (groups, filters, rows, n, *self.across),
            (..., *(slice(size) for size in self.geometry.out[1:])),
            (self.phases.kernel[0], groups, self.phases.other_taps, of_strips, wide),
            (groups, of_strips, self.taps, wide),
            (
                (groups, of_strips, *kernel, wide),
                (groups, of_strips, *kernel, length),
                (of_strips * wide, wide, *moves, 1),
            ),
            ((groups, count, self.geometry.taps, length), steps),
        )

    def copies(self, n: int) -> tuple[tuple[Index, Index], ...]:
        """For each tap, its part of the strips, and what that is of planes with n samples."""
        found: list[tuple[Index, Index]] = []
        for tap, (lane, inner, shift) in enumerate(self.layout(n)):
            moved = (lane, ALL, inner, ALL, slice(shift, None))
            found.append(((ALL, ALL, tap, slice(-shift if shift else None)), moved))
        return tuple(found)

    def planes(self, block: Block) -> int:
        """Elements of a block's planes, over all phases, for each group."""
        return self.phases.taps * self.reach(block.rows) * block.counts[0] * math.prod(self.across)

    def largest(self) -> Block:
        """A block as large as any."""

        def most(ranges: tuple[Range, ...]) -> Range:
            return 0, max((end - start for start, end in ranges), default=0)

        full = tuple((0, n) for n in self.geometry.out[1:])
        rows = most(pieces(self.geometry.out[0], self.height))
        return Block(most(self.samples), most(self.groups), (0, 1), (0, 0), (rows, *full))

    def layout(self, n: int) -> tuple[tuple[int, int, int], ...]:
        """Where taps read in planes of n samples: the lane of a phase, its place there, and how far they are moved."""
        sides = zip(self.geometry.kernel, self.geometry.dilation, self.geometry.stride, strict=True)
        reads = [[(tap * d % s, self._moved(dim, tap, n)) for tap in range(k)] for dim, (k, d, s) in enumerate(sides)]
        if self.rows:
            reads[0] = [(0, 0)]
        found = []
        for own in product(*reads):
            (lane, _), *others = own
            inner = 0
            for count, (phase, _) in zip(self.phases.kernel[1:], others, strict=True):
                inner = inner * count + phase
            found.append((lane, inner, sum(moved for _, moved in own)))
        return tuple(found)

    def _moved(self, dim: int, tap: int, n: int) -> int:
        """How far a tap of a dimension is moved, with n samples."""
        return tap * self.geometry.dilation[dim] // self.geometry.stride[dim] * self._step(dim, n)

    def _step(self, dim: int, n: int) -> int:
        """Places from one output to the next along a dimension, with n samples."""
        return math.prod(self.across[dim:]) if dim else n * math.prod(self.across)


def _steps(own: Planes) -> int:
    """How many blocks there are, times the copies of each and the dimension whose taps are products of their own."""
    return sum(len(task.copies) + own.geometry.kernel[0] for stack in _tasks(own) for task in stack)


@lru_cache(maxsize=64)
def _tasks(own: Planes) -> tuple[tuple[Task, ...], ...]:
    """The blocks of the same samples and groups, one stack after the other."""
    lines, copies = cache(own.lines), cache(own.copies)
    stacks = []
    for stack in own.stacks():
        tasks = []
        for block in stack:
            n, groups, _ = block.counts
            sizes = lines(n, groups, block.rows)
            tasks.append(Task(block, own.reads(block), own.writes(block), sizes, copies(n)))
        stacks.append(tuple(tasks))
    return tuple(stacks)


@lru_cache(maxsize=1024)
def planned(geometry: Geometry, purpose: str, bounds: Limits) -> tuple[Planes, int]:
    """Cut a product within bounds; return the plan, and the elements of workspace that it needs."""
    return fitted(
        lambda elements: _planes(geometry, purpose, elements, bounds.enough, bounds.least),
        lambda plan: _need(geometry, purpose, plan),
        bounds,
    )


def _mirrors(geometry: Geometry) -> bool:
    """Whether the input gradient is a forward product: the mirrored convolution has one channel a group too."""
    return geometry.dense and geometry.group_out == 1


def work(geometry: Geometry, purpose: str, bounds: Limits) -> Work:
    """Say what a product takes."""
    if purpose == "input_grad" and _mirrors(geometry):
        return of_mirrored(work, geometry, bounds)
    plan, need = planned(geometry, purpose, bounds)
    block = plan.largest()
    n, groups, _ = block.counts
    count = len(plan.samples) * len(plan.groups) * len(pieces(geometry.out[0], plan.height))
    lines = plan.lines(n, groups, block.rows)
    filters, planes = geometry.group_out, groups * plan.planes(block)
    whole = math.prod(lines.sums) // filters
    scattered = purpose == "input_grad"
    gathered = 0 if plan.phases.pointwise and n == 1 and not scattered else planes
    elements = copied(gathered, plan.across[-1] if plan.across else block.rows * n) * (1.5 if scattered else 1)
    elements *= 1.5 if geometry.stride[-1] > 1 else 1
    # Adding reads what it writes.
    elements += math.prod(lines.strips) * (2 if scattered else plan.taps > 1 or plan.rows)
    elements += 2 * whole * geometry.taps if scattered and plan.rows else 0
    elements += copied(whole * filters, geometry.out[-1])
    operations = narrow(2 * whole * filters * geometry.taps, 1 if scattered else filters)
    products = len(plan.single) if scattered else 1
    # Each product of a stack has a start of its own.
    starts = START * groups * lines.sums[1] * products
    moved = 1 if plan.evenly and not scattered else plan.taps
    calls = 2 * plan.phases.taps + moved + 2 * products + (7 if purpose == "forward" else 12) + starts
    shape = {"samples": n, "groups": groups, "rows": block.rows}
    return Work(count * operations, count * elements, 0, count * calls, need, shape)


def _need(geometry: Geometry, purpose: str, plan: Planes) -> int:
    """Elements of workspace: of a block, and of what all blocks share."""
    block = plan.largest()
    n, groups, _ = block.counts
    lines, filters = plan.lines(n, groups, block.rows), geometry.group_out
    whole = math.prod(lines.sums) // filters
    planes, strips = groups * plan.planes(block), math.prod(lines.strips)
    if plan.phases.pointwise and n == 1 and purpose != "input_grad":
        planes = 0
    if plan.taps == 1 and not plan.rows and purpose != "input_grad":
        strips = 0
    # A product by itself where the array library takes the first dimension's taps one by one.
    if purpose == "forward":
        return planes + strips + filters * whole * (2 if len(plan.single) > 1 else 1)
    laid = 0 if plan.lays.pointwise and n == 1 else filters * whole
    if purpose == "input_grad":
        return planes + strips + whole * plan.taps + laid
    parts = plan.sums * geometry.weights if plan.sums > 1 else 0
    return planes + strips + laid + 2 * groups * lines.sums[1] * geometry.taps * filters + parts


def _planes(geometry: Geometry, purpose: str, elements: int, enough: int, least: int) -> Planes:
    """Cut so that what a block works on holds about `elements`, and into at least `least` shares where it can be."""
    bare = Planes(geometry, False, (), (), 1, 1)
    across, filters = math.prod(bare.across), geometry.group_out
    wide = min(geometry.batch, -(-WIDE // across))
    # Taps of the first dimension are lines apart where they are neighbours, and need no copies of their own.
    saved = wide * across * (geometry.taps - geometry.other_taps)
    own = replace(bare, rows=geometry.dims > 1 and geometry.dilation[0] == 1 and saved >= SAVED)
    of_taps = {"forward": own.taps + 2 * filters, "input_grad": 2 * own.taps + filters}
    places = max(1, elements // (own.phases.taps + of_taps.get(purpose, own.taps + filters)))
    plane = own.reach(geometry.out[0]) * across
    if not own.rows:
        wide = -(-LONG // plane)
    samples = max(1, min(geometry.batch, wide, places // (own.reach(min(geometry.out[0], FEW_ROWS)) * across)))
    height = geometry.out[0]
    if plane * samples > places:
        left, reach = places // (samples * across), own.reach(1)
        height = max(1, min(height, 1 + (left - reach) // (geometry.stride[0] if own.rows else 1)))
    groups = max(1, places // (plane * samples))
    rows = len(pieces(geometry.out[0], height)) if purpose == "forward" else 1
    shares = -(-geometry.batch // samples) * rows
    cut_groups = cut(geometry.groups, groups, -(-least // max(1, shares if purpose != "weight_grad" else 1)))
    cut_samples = cut(geometry.batch, samples, -(-least // (len(cut_groups) * rows)))
    if purpose == "forward":
        short = -(-least // max(1, len(cut_groups) * len(cut_samples)))
        height = min(height, max(-(-LONG // across), -(-geometry.out[0] // short)))
    sums = max(1, min(len(cut_samples), -(-least // len(cut_groups))))
    return replace(own, samples=cut_samples, groups=cut_groups, height=height, sums=sums)
