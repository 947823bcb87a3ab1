"""The planes, lines and blocks on which `depthwise` works."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Index, Range, Ranges, pieces
from ..spec.remembered import remembered
from ..spec.sequences import Made, Product, kept, kept_if_few
from .columns import Block, gather


class Lines(NamedTuple):
    """The shapes and indices that all blocks of one size have in common.

    Attributes
    ----------
    length : int
        The number of places in a line from its first output to its last.
    places : tuple
        The index of these places.
    sums, products : tuple of int
        (g, h, f, l), with all places of a line, and with its first `length` places.
    outputs : tuple of int
        (g, f, P1, n, P2, ..., Pd), with the places that are skipped.
    kept : tuple
        The index of the outputs in that shape.
    planes : tuple of int
        (g, phases, lines that are read, l).
    strips : tuple of int
        (g, lines that are read, t, l).
    shifted : (tuple of int, tuple of int, tuple of int)
        The shape of the strips with an axis for each dimension's taps, (g, lines, *K, l); then the sizes and the steps
        of the view of the planes that all of them are copied from, if there is a single phase.
    windows : (tuple of int, tuple of int)
        The sizes and the steps of the view of the strips that all taps read, (g, h, taps, l).
    """

    length: int
    places: tuple[Any, ...]
    sums: tuple[int, ...]
    products: tuple[int, ...]
    outputs: tuple[int, ...]
    kept: tuple[Any, ...]
    planes: tuple[int, ...]
    strips: tuple[int, ...]
    shifted: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    windows: tuple[tuple[int, ...], tuple[int, ...]]


class Task(NamedTuple):
    """A block of outputs, and all indices and shapes that it needs.

    Attributes
    ----------
    block, reads : Block
        The outputs, and the places of the phases that they read.
    writes : Index
        The index of the outputs in (N, G, F, *P).
    lines : Lines
        The shapes and indices of blocks of this size.
    copies : tuple of (Index, Index)
        For each tap, its part of the strips, and the part of the planes from which it is copied.
    """

    block: Block
    reads: Block
    writes: Index
    lines: Lines
    copies: tuple[tuple[Index, Index], ...]


@dataclass(frozen=True)
class Planes:
    """A geometry with one channel in each group as shifted planes, cut into blocks.

    Attributes
    ----------
    geometry : Geometry
    rows : bool
        Whether each row of the first dimension is a line, so that taps read the lines that follow. Otherwise all rows
        together are one line.
    samples, groups : Ranges
        The ranges of samples and groups; a block takes one of each.
    height : int
        The maximum number of outputs along the first dimension in a block.
    sums : int
        The number of partial sums of a weight gradient.
    """

    geometry: Geometry
    rows: bool
    samples: Ranges
    groups: Ranges
    height: int
    sums: int

    @cached_property
    def phases(self) -> Geometry:
        """The phases of the input as the taps of a kernel; where rows are lines, the first dimension has one phase."""
        taps = (range(n) for n in self.geometry.kernel)
        sides = zip(taps, self.geometry.dilation, self.geometry.stride, strict=True)
        counts = tuple(max(tap * d % s for tap in taps_of) + 1 for taps_of, d, s in sides)
        ones = (1,) * self.geometry.dims
        stride = self.geometry.stride
        if self.rows:
            counts, stride = (1, *counts[1:]), (1, *stride[1:])
        return replace(self.geometry, out_channels=self.geometry.groups, kernel=counts, stride=stride, dilation=ones)

    @cached_property
    def places(self) -> Geometry:
        """The outputs with the skipped places after them, as a convolution of kernel 1 reads them."""
        ones, none = (1,) * self.geometry.dims, (0,) * self.geometry.dims
        return replace(
            self.geometry,
            in_channels=self.geometry.out_channels,
            size=self.geometry.out,
            kernel=ones,
            stride=ones,
            dilation=ones,
            before=none,
            after=(0, *self.last_shift[1:]),
        )

    @cached_property
    def last_shift(self) -> tuple[int, ...]:
        """How far the last tap is moved along each dimension."""
        sides = zip(self.geometry.kernel, self.geometry.dilation, self.geometry.stride, strict=True)
        return tuple((k - 1) * d // s for k, d, s in sides)

    @cached_property
    def across(self) -> tuple[int, ...]:
        """The numbers of places along all dimensions but the first."""
        return tuple(n + q for n, q in zip(self.geometry.out[1:], self.last_shift[1:], strict=True))

    @cached_property
    def taps(self) -> int:
        """The number of taps whose lines are copied side by side."""
        return self.geometry.other_taps if self.rows else self.geometry.taps

    @property
    def one_phase(self) -> bool:
        """Whether all taps read one phase, so that all neighbouring taps of a dimension have one distance."""
        return self.phases.taps == 1

    @cached_property
    def tap_ranges(self) -> Ranges:
        """The ranges of the first dimension's taps that one product takes: one tap each if rows are lines, else all."""
        return Ranges(self.geometry.kernel[0], self.geometry.kernel[0] if self.rows else 1)

    def parts(self, backend: Backend) -> Ranges:
        """Return the ranges of the first dimension's taps that one product takes: all taps if windows may be views."""
        return Ranges(self.geometry.kernel[0], 1) if backend.strided else self.tap_ranges

    def kernel(self, taps: Range) -> tuple[int, ...]:
        """Return the sizes of a kernel that has only these taps of the first dimension."""
        return (taps[1] - taps[0], *self.geometry.kernel[1:])

    def filters(self, backend: Backend, w: Array, taps: Range) -> Array:
        """Return the filters of these taps of the first dimension: (G, 1, f, t)."""
        w = backend.xp.reshape(w, (self.geometry.groups, self.geometry.group_out, *self.geometry.kernel))
        shape = (self.geometry.groups, 1, self.geometry.group_out, math.prod(self.kernel(taps)))
        return backend.xp.reshape(w[:, :, slice(*taps), ...], shape)

    def lines_of(self, lines: Lines, taps: Range) -> slice:
        """Return the lines that one tap of the first dimension reads."""
        stride = self.geometry.stride[0]
        return slice(taps[0], taps[0] + (lines.sums[1] - 1) * stride + 1, stride) if self.rows else ALL

    @property
    def rows_of_blocks(self) -> Ranges:
        """The ranges of rows of outputs; the blocks of the same samples and groups take one each."""
        return pieces(self.geometry.out[0], self.height)

    def block(self, samples: Range, groups: Range, rows: Range) -> Block:
        """Return the block of these samples, groups and rows of outputs."""
        across, (start, end) = math.prod(self.geometry.out[1:]), rows
        box = (rows, *((0, n) for n in self.geometry.out[1:]))
        return Block(samples, groups, (0, 1), (start * across, end * across), box)

    def writes(self, block: Block) -> Index:
        """Return the index of a block's outputs in arrays (N, G, F, *P)."""
        return (slice(*block.samples), slice(*block.groups), ALL, *(slice(*side) for side in block.box))

    def reach(self, rows: int) -> int:
        """Count the rows of the phases that `rows` rows of outputs read."""
        if not self.rows:
            return rows + self.last_shift[0]
        return (rows - 1) * self.geometry.stride[0] + self.geometry.kernel[0]

    def reads(self, block: Block) -> Block:
        """Return the block of places that a block's taps read in the phases."""
        start = block.box[0][0] * (self.geometry.stride[0] if self.rows else 1)
        return self._block(block, start, start + self.reach(block.rows))

    def _block(self, block: Block, start: int, end: int) -> Block:
        """Return the block of all places in these rows."""
        across = math.prod(self.across)
        box = ((start, end), *((0, n) for n in self.across))
        return replace(block, run=(start * across, end * across), box=box)

    def grads_at_places(self, backend: Backend, values: Array, task: Task, workspace: Workspace) -> Array:
        """Return the output's gradient at the places of a block, and zeros at skipped places: (g, h, f, l)."""

        def of_dout(name: str, /, shape: tuple[int, ...], dtype: object = None) -> Array:
            return workspace(f"{name} of dout", shape, dtype)

        block, (groups, lines, filters, line) = task.block, task.lines.sums
        places = replace(self._block(block, *block.box[0]), channels=(0, filters))
        grads = gather(self.places, backend, values, places, of_dout, by_rows=True)
        grads = backend.xp.reshape(grads, (groups, filters, lines, line))
        return backend.xp.permute_dims(grads, (0, 2, 1, 3))[task.lines.places]

    def lines(self, n: int, groups: int, rows: int) -> Lines:
        """Describe blocks of `n` samples, `groups` groups and `rows` rows of outputs."""
        across, read, filters = n * math.prod(self.across), self.reach(rows), self.geometry.group_out
        count, line, of_strips = (rows, across, read) if self.rows else (1, rows * across, 1)
        length = line - sum(q * self._step(dim, 1) for dim, q in enumerate(self.last_shift) if dim)
        line_length = read * across // of_strips
        # A large stride may overflow an array's steps; with a single line it has no effect.
        down = self.geometry.stride[0] if count > 1 else 1
        first = 1 if self.rows else 0
        kernel = self.geometry.kernel[first:]
        tap_steps = [self._shift(dim, min(1, k - 1), n) for dim, k in enumerate(kernel, start=first)]
        steps = (of_strips * self.taps * line_length, down * self.taps * line_length, line_length, 1)
        return Lines(
            length,
            (..., slice(length)),
            (groups, count, filters, line),
            (groups, count, filters, length),
            (groups, filters, rows, n, *self.across),
            (..., *(slice(size) for size in self.geometry.out[1:])),
            (groups, self.phases.taps, of_strips, line_length),
            (groups, of_strips, self.taps, line_length),
            (
                (groups, of_strips, *kernel, line_length),
                (groups, of_strips, *kernel, length),
                (of_strips * line_length, line_length, *tap_steps, 1),
            ),
            ((groups, count, self.geometry.taps, length), steps),
        )

    def copies(self, n: int) -> tuple[tuple[Index, Index], ...]:
        """Return, for each tap, its part of the strips, and the part of planes with n samples it is copied from."""
        copies: list[tuple[Index, Index]] = []
        for tap, (phase, shift) in enumerate(self.layout(n)):
            shifted = (ALL, phase, ALL, slice(shift, None))
            copies.append(((ALL, ALL, tap, slice(-shift if shift else None)), shifted))
        return tuple(copies)

    def planes(self, block: Block) -> int:
        """Count the elements of a block's planes for each group, over all phases."""
        return self.phases.taps * self.reach(block.rows) * block.counts[0] * math.prod(self.across)

    def largest(self) -> Block:
        """Return a block of the largest size."""
        full = tuple((0, n) for n in self.geometry.out[1:])
        rows = self.rows_of_blocks.longest
        return Block((0, self.samples.longest), (0, self.groups.longest), (0, 1), (0, 0), ((0, rows), *full))

    def layout(self, n: int) -> tuple[tuple[int, int], ...]:
        """Return, for each tap, its phase in planes of n samples, and how far it is shifted."""
        sides = zip(self.geometry.kernel, self.geometry.dilation, self.geometry.stride, strict=True)
        reads = [[(tap * d % s, self._shift(dim, tap, n)) for tap in range(k)] for dim, (k, d, s) in enumerate(sides)]
        if self.rows:
            reads[0] = [(0, 0)]
        places = []
        for taps in product(*reads):
            number = 0
            for count, (phase, _) in zip(self.phases.kernel, taps, strict=True):
                number = number * count + phase
            places.append((number, sum(shift for _, shift in taps)))
        return tuple(places)

    def _shift(self, dim: int, tap: int, n: int) -> int:
        """Return how many places a tap of a dimension is shifted, with n samples."""
        return tap * self.geometry.dilation[dim] // self.geometry.stride[dim] * self._step(dim, n)

    def _step(self, dim: int, n: int) -> int:
        """Return the places from one output to the next along a dimension, with n samples."""
        return math.prod(self.across[dim:]) if dim else n * math.prod(self.across)


@remembered(kept)
def tasks_of(planes: Planes) -> Sequence[Task]:
    """Return all blocks as tasks, in the order of their samples, groups and rows."""
    ranges = Product(planes.samples, planes.groups, planes.rows_of_blocks)
    return kept_if_few(Made(ranges, lambda parts: _task(planes, *parts)))


def stack_of(planes: Planes, samples: Sequence[int], group: int) -> Sequence[Task]:
    """Return the tasks of some ranges of samples and one of groups, which are given by their numbers."""
    tasks, rows, groups = tasks_of(planes), len(planes.rows_of_blocks), len(planes.groups)
    places = Product(samples, range(rows))
    return Made(places, lambda at: tasks[(at[0] * groups + group) * rows + at[1]])


def _task(planes: Planes, samples: Range, groups: Range, rows: Range) -> Task:
    """Return a block of outputs, with all that it needs."""
    block = planes.block(samples, groups, rows)
    n, g, _ = block.counts
    return Task(block, planes.reads(block), planes.writes(block), *_of_size(planes, n, g, block.rows))


@remembered(lambda sized: len(sized[1]))
def _of_size(planes: Planes, n: int, groups: int, rows: int) -> tuple[Lines, tuple[tuple[Index, Index], ...]]:
    """Return what blocks of `n` samples, `groups` groups and `rows` rows have in common."""
    return planes.lines(n, groups, rows), planes.copies(n)
