"""How `fft` cuts a product into tiles and blocks, and the work and workspace that this takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..spec.geometry import Geometry
from ..spec.ranges import Range, Ranges, cut, pieces
from ..spec.remembered import remembered
from ..spec.sequences import Made, Product
from .budget import Budget, Work
from .summing import runs_take

FEWEST_POINTS = 64
"""With fewer points in a tile, the start of a call takes longer than its work."""
LINE = 100
"""To start another transform takes as long as one level of this many points."""


class Side(NamedTuple):
    """One dimension, cut into tiles.

    Attributes
    ----------
    points : int
        The points of the transform.
    tile : int
        The maximum number of outputs in a tile.
    offset : int
        The distance from the first cell of the first output's window to the first cell of the segment.
    segment : int
        The cells of a segment.
    size, out, before, extent : int
        Those of the geometry along this dimension.
    """

    points: int
    tile: int
    offset: int
    segment: int
    size: int
    out: int
    before: int
    extent: int

    @property
    def tiles(self) -> Sequence[tuple[Range, Range, int]]:
        """For each tile its outputs, the cells of the input in its segment, and the place of the first of them."""
        return Made(range(0, self.out, max(1, self.tile)), self._tile)

    def _tile(self, start: int) -> tuple[Range, Range, int]:
        """Return the tile whose first output is `start`."""
        end, first = min(self.out, start + self.tile), start - self.before + self.offset
        lo = min(self.size, max(0, first))
        hi = max(lo, min(self.size, end + self.extent - 1 - self.before))
        return (start, end), (lo, hi), min(self.points, max(0, lo - first))


class Tile(NamedTuple):
    """One tile of all dimensions: its outputs, the cells that it reads, and their places in the segment."""

    outputs: tuple[slice, ...]
    cells: tuple[slice, ...]
    inside: tuple[slice, ...]


Block = tuple[Range, Range, Tile]
"""The ranges of samples and groups, and the tile."""


@dataclass(frozen=True)
class Tiling:
    """A geometry, cut into tiles, and these into blocks.

    Attributes
    ----------
    geometry : Geometry
    sides : tuple of Side
        One `Side` for each spatial dimension.
    held : Ranges
        Ranges of groups; the filters' spectra of one range are in memory at a time.
    samples : int
        The maximum number of samples in a block.
    groups : int
        The maximum number of groups in a block.
    filter_elements : int
        The maximum number of elements in spectra of filters that are transformed at a time, if one filter has fewer.
    sums : int
        The number of partial sums of a weight gradient.
    """

    geometry: Geometry
    sides: tuple[Side, ...]
    held: Ranges
    samples: int
    groups: int
    filter_elements: int
    sums: int

    @property
    def mixed(self) -> bool:
        """Whether a group has several channels, which are added up."""
        return self.geometry.group_in > 1

    @cached_property
    def tiles(self) -> Sequence[Tile]:
        """The tiles of all dimensions."""
        return Made(Product(*(side.tiles for side in self.sides)), _tile)

    def samples_of_blocks(self) -> Ranges:
        """Return the ranges of samples that blocks have."""
        return pieces(self.geometry.batch, self.samples)

    def groups_of_blocks(self, held: Range) -> Sequence[Range]:
        """Return the ranges of groups that blocks have, of a range of groups."""
        first, last = held
        return Made(pieces(last - first, self.groups), lambda some: (first + some[0], first + some[1]))

    def blocks(self, held: Range) -> Sequence[Block]:
        """Return all blocks of a range of groups: samples, groups and a tile."""
        return Product(self.samples_of_blocks(), self.groups_of_blocks(held), self.tiles)

    def filters(self, count: int) -> Sequence[tuple[Range, Range]]:
        """Return the ranges of groups and filters that are transformed at a time, of `count` groups."""
        one = 2 * self.geometry.group_in * self.points
        filters = pieces(self.geometry.group_out, self.filter_elements // one)
        groups = pieces(count, self.filter_elements // (one * self.geometry.group_out))
        return Product(groups, filters)

    @cached_property
    def points(self) -> int:
        """The number of points of a tile, over all dimensions."""
        return math.prod(side.points for side in self.sides)

    def sums_of_samples(self) -> Sequence[Range]:
        """Return, for each partial sum of a weight gradient, which of the ranges of samples it adds up."""
        parts = len(self.samples_of_blocks())
        return cut(parts, parts, self.sums)[: self.sums]

    def shares(self, held: Range) -> Sequence[tuple[int, Range, Sequence[Block]]]:
        """Return the shares of a range of groups: the number of a partial sum, its groups, and its blocks."""
        samples, sums = self.samples_of_blocks(), self.sums_of_samples()

        def share(chosen: tuple[int, Range]) -> tuple[int, Range, Sequence[Block]]:
            i, groups = chosen
            return i, groups, Product(samples[slice(*sums[i])], (groups,), self.tiles)

        return Made(Product(range(len(sums)), self.groups_of_blocks(held)), share)


def _tile(parts: tuple[Any, ...]) -> Tile:
    """Return the tile of one tile along each dimension."""
    outputs = tuple(slice(*part[0]) for part in parts)
    cells = tuple(slice(*part[1]) for part in parts)
    return Tile(outputs, cells, tuple(slice(at, at + end - start) for _, (start, end), at in parts))


def count_work(kind: str, geometry: Geometry, plan: Tiling, workspace: int) -> Work:
    """Count the work of an output or a gradient of filters by a plan."""
    inputs, outputs = geometry.group_in, geometry.group_out
    levels = sum(math.log2(max(2, side.points)) + LINE / side.points for side in plan.sides)
    planes = geometry.batch * geometry.groups * len(plan.tiles)
    filters = geometry.groups * outputs * inputs
    transforms = (planes * (inputs + outputs) + filters) * plan.points * levels
    products = planes * outputs * inputs * plan.points
    elements = planes * (inputs + outputs) * plan.points
    operations = 0.0
    if plan.mixed:
        # Complex products of small matrices; spectra are copied with points first before them, and back after them.
        # Each product reads the spectra of all filters from memory, or adds to them.
        operations = 8 * products * (1 + 8 / min(inputs, outputs, 8 * plan.samples))
        elements += 8 * planes * (inputs + outputs) * plan.points
        visits = -(-geometry.batch // plan.samples) * len(plan.tiles)
        elements += visits * filters * plan.points * (4 if kind == "forward" else 16)
    else:
        elements += 2 * products
    blocks = planes // (plan.samples * plan.groups) + 1
    calls = (blocks + 1) * (14 + 8 * geometry.dims) * (1 if kind == "forward" else 1.3)
    shape = {"samples": plan.samples, "groups": plan.groups, "tiles": len(plan.tiles), "points": plan.points}
    return Work(operations, elements, transforms, calls, workspace, shape)


def count_workspace(kind: str, geometry: Geometry, plan: Tiling) -> int:
    """Count the elements of workspace: those of one block, and those that all blocks share; a complex number is two."""
    sides, dims = plan.sides, geometry.dims
    inputs, outputs = geometry.group_in, geometry.group_out
    # Real spectra are half as long along the last dimension, plus one point.
    sizes = (*(side.points for side in sides[:-1]), sides[-1].points // 2 + 1)
    points = 2 * math.prod(sizes)
    each = inputs * math.prod(side.segment for side in sides)
    forward = sum(2 * math.prod(side.segment for side in sides[:dim]) * math.prod(sizes[dim:]) for dim in range(dims))
    each += inputs * forward
    if kind == "forward":
        back = sum(2 * math.prod(side.tile for side in sides[:dim]) * math.prod(sizes[dim:]) for dim in range(dims - 1))
        each += outputs * (points + back + math.prod(side.tile for side in sides[:-1]) * sides[-1].points)
        each += (inputs + outputs) * points if plan.mixed else 0
        each += outputs * plan.points // 4 + 1  # the booleans that say whether each output is finite
    else:
        tiles = sum(2 * math.prod(side.tile for side in sides[:dim]) * math.prod(sizes[dim:]) for dim in range(dims))
        each += outputs * (tiles + math.prod(side.tile for side in sides))
        each += (inputs + outputs) * points if plan.mixed else 0
        each += inputs * outputs * points
    block = plan.samples * plan.groups * each
    held = plan.held.longest
    spectra = held * outputs * inputs * points
    (_, groups_at_once), (_, filters_at_once) = plan.filters(held)[0]  # the first ranges are the longest
    filters = groups_at_once * filters_at_once
    if kind == "forward":
        return spectra + max(block, filters * inputs * 4 * plan.points * dims)
    blocks = -(-len(pieces(geometry.batch, plan.samples)) // plan.sums) * len(plan.tiles)
    run = plan.groups * outputs * inputs * points * runs_take(blocks)
    # The partial sums, their total, and the arrays of its transform back.
    return block + run + spectra * (plan.sums + 1 + 2)


def cut_tiles(geometry: Geometry, budget: Budget, elements: int) -> Tiling:
    """Cut a product so that the arrays of a block hold about `elements` elements, and so that all threads have work.

    The spectra of filters that are in memory at a time take at most a quarter of the workspace, or are one group's.
    """
    sides = tuple(cut_side(geometry, dim, elements) for dim in range(geometry.dims))
    points = math.prod(side.points for side in sides)
    each = points * (geometry.group_in + 2 * geometry.group_out) * 2
    filters = 2 * points * geometry.group_in * geometry.group_out
    held = pieces(geometry.groups, budget.workspace_elements // 4 // filters)
    planes, least = max(1, elements // each), budget.least_blocks
    tiles = math.prod(len(side.tiles) for side in sides)
    # A block takes more groups before it takes more samples, so that its filters stay in cache.
    groups = min(planes, held[0][1], max(1, -(-geometry.groups * geometry.batch * tiles // least)))
    samples = max(1, min(geometry.batch, planes // groups))
    shares = -(-geometry.groups // groups)
    return Tiling(geometry, sides, held, samples, groups, elements, max(1, min(-(-least // shares), geometry.batch)))


@remembered()
def cut_side(geometry: Geometry, dim: int, elements: int) -> Side:
    """Cut one dimension into the tiles that cost least."""
    size, out, extent = geometry.size[dim], geometry.out[dim], geometry.extent[dim]
    before = geometry.before[dim]
    # A single tile has a segment that starts at the first cell that is read.
    first = min(size, max(0, -before))
    offset = first + before
    cells = max(1, min(size, out + extent - 1 - before) - first)
    of_dim = size, out, before, extent
    whole = Side(smooth_size(max(cells + offset, out + extent - 1 - offset, out)), out, offset, cells, *of_dim)
    best, least = whole, _cost(whole.points, 1)
    points = smooth_size(max(FEWEST_POINTS, 2 * extent))
    while points < whole.points and (points <= elements or best is whole):
        tile = points - extent + 1
        if (cost := _cost(points, -(-out // tile))) < least or best.points > elements:
            best, least = Side(points, tile, 0, points, *of_dim), cost
        points = smooth_size(points + 1 + points // 8)
    return best


def _cost(points: int, tiles: int) -> float:
    """Return the relative time of the transforms and products of tiles along one dimension."""
    return tiles * points * (math.log2(points) + 4)


def smooth_size(least: int) -> int:
    """Return the first number from `least` on whose prime factors are 2, 3 and 5, because its transform is fast."""
    if least > 1 << 24:  # such numbers are so far apart here that the search would take long
        return 1 << (least - 1).bit_length()
    while True:
        rest = least
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return least
        least += 1
