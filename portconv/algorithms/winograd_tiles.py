"""How a convolution is cut into tiles of two outputs along dimensions of kernel 3, and tiles into blocks.

A tile reads four cells, and the next tile starts two cells later. So cells are split into two halves, the even and the
odd cells. A tile then reads one cell of each half at its place, and one of each at the place of the next tile. The
tiles of a block lie in the order (T1, n, T2, ..., Td), with n samples. Along T2 to Td, if the kernel is 3, there is one
excess tile, so that the distance to the next tile along a dimension is the same for all tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Box, Index, Range, Ranges, boxes, cut, largest, pieces
from ..spec.remembered import remembered
from ..spec.sequences import Made, Product
from .budget import Budget, Work, copied, narrow
from .columns import Block
from .summing import correlated, runs_take

FEWEST_TILES = 64
"""With fewer tiles in a block, a product spends its time on preparing the filters."""


STEPS, STEPS_OF_A_WEIGHT = 17, 20
"""Beyond the work of `gemm`, this many elements are computed for each cell of input and output, and for each weight.
Both numbers are fitted to layers of 16 to 512 channels, with NumPy on two cores."""


class Output(NamedTuple):
    """One output of each tile of a block.

    Attributes
    ----------
    place : tuple of int
        Which output of its tile it is, along each dimension of kernel 3.
    tiles : Index
        The tiles that have this output, as an index of (n, g, f, T1, ..., Td).
    cells : Index
        The cells of the block's outputs that it is written to.
    """

    place: tuple[int, ...]
    tiles: Index
    cells: Index


class Shape(NamedTuple):
    """The sizes and indices that blocks of tiles of one size have in common.

    Attributes
    ----------
    sizes : tuple of int
        (T1, n, T2, ..., Td).
    ahead : tuple of int
        The distance to the next tile along each dimension of kernel 3.
    outputs : tuple of Output
    """

    sizes: tuple[int, ...]
    ahead: tuple[int, ...]
    outputs: tuple[Output, ...]


class Tiles(NamedTuple):
    """A block: the ranges of its `tiles`, and the index of the outputs that it `writes` in arrays (N, G, F, *P)."""

    tiles: Block
    writes: tuple[slice, ...]
    shape: Shape


@dataclass(frozen=True)
class Tiling:
    """A geometry, cut into tiles: of two outputs along its dimensions of kernel 3, of one along the others."""

    geometry: Geometry

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """The dimensions of kernel 3; the first is the lead."""
        return tuple(dim for dim, kernel in enumerate(self.geometry.kernel) if kernel == 3)

    @cached_property
    def inner(self) -> int:
        """The number of places in a tile for each place of the lead."""
        return math.prod(4 for _ in self.dims[1:])

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The outputs of a tile along each dimension."""
        return tuple(2 if kernel == 3 else 1 for kernel in self.geometry.kernel)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The number of tiles along each dimension."""
        return tuple(-(-n // step) for n, step in zip(self.geometry.out, self.steps, strict=True))

    @cached_property
    def excess(self) -> tuple[int, ...]:
        """The dimensions along which blocks have an excess tile."""
        return tuple(dim for dim in self.dims if dim)

    @cached_property
    def multiplications(self) -> int:
        """The number of multiplications of a product, including those of excess tiles."""
        tiles = math.prod(n + (dim in self.excess) for dim, n in enumerate(self.counts))
        return self.geometry.batch * self.geometry.out_channels * self.geometry.group_in * 4 * self.inner * tiles

    @cached_property
    def halves(self) -> Geometry:
        """The even and the odd cells as the taps of a kernel."""
        return replace(self.geometry, kernel=self.steps, stride=self.steps)

    def blocks(self, samples: Sequence[Range], groups: Sequence[Range], tiles: int) -> Sequence[Tiles]:
        """Return blocks that cover these samples and groups, with at most `tiles` tiles of a sample each."""
        return Made(Product(groups, samples, boxes(self.counts, tiles)), self._tiles)

    def _tiles(self, parts: tuple[Any, ...]) -> Tiles:
        """Return the block of a range of groups, one of samples, and a box of tiles."""
        groups, samples, (run, box) = parts
        ranges = zip(box, self.steps, self.geometry.out, strict=True)
        cells = tuple(slice(start * step, min(end * step, n)) for (start, end), step, n in ranges)
        shape = _shape(self, samples[1] - samples[0], tuple(cell.stop - cell.start for cell in cells))
        block = Block(samples, groups, (0, self.geometry.group_in), run, box)
        return Tiles(block, (slice(*samples), slice(*groups), ALL, *cells), shape)

    def reads(self, block: Tiles) -> Block:
        """Return the block of halves that a block reads: one tile more along each dimension of kernel 3."""
        return replace(block.tiles, box=_longer(block.tiles.box, self.dims))

    def reads_of_dout(self, block: Tiles) -> tuple[Geometry, Block]:
        """Return the same for the outputs' gradient: the box is longer by excess tiles only, which hold padding."""
        none, ends = (0,) * self.geometry.dims, tuple(cells.stop for cells in block.writes[3:])
        box = _longer(block.tiles.box, self.excess)
        tiles = replace(block.tiles, channels=(0, self.geometry.group_out), box=box)
        return replace(self.halves, size=ends, before=none, after=none), tiles


@remembered()
def tiling(geometry: Geometry) -> Tiling:
    """Return the tiling of a geometry."""
    return Tiling(geometry)


def _longer(box: Box, dims: tuple[int, ...]) -> Box:
    """Return a box that is one tile longer along these dimensions."""
    return tuple((start, end + (dim in dims)) for dim, (start, end) in enumerate(box))


@remembered(lambda shape: len(shape.outputs))
def _shape(grid: Tiling, samples: int, lengths: tuple[int, ...]) -> Shape:
    """Describe blocks of `samples` samples, and of `lengths` outputs along each dimension."""
    counts = [
        -(-n // step) + (dim in grid.excess) for dim, (n, step) in enumerate(zip(lengths, grid.steps, strict=True))
    ]
    sizes = (counts[0], samples, *counts[1:])
    outputs = []
    for place in product((0, 1), repeat=len(grid.dims)):
        at = dict(zip(grid.dims, place, strict=True))
        tiles = [slice((n - at[dim] + 1) // 2 if dim in at else n) for dim, n in enumerate(lengths)]
        cells = [slice(at[dim], None, 2) if dim in at else ALL for dim in range(len(lengths))]
        outputs.append(Output(place, (ALL, ALL, ALL, *tiles), (ALL, ALL, ALL, *cells)))
    ahead = tuple(math.prod(sizes[dim + 2 :] if dim else sizes[1:]) for dim in grid.dims)
    return Shape(sizes, ahead, tuple(outputs))


class Cuts(NamedTuple):
    """How the work is cut into blocks.

    Attributes
    ----------
    samples, groups : Ranges
    tiles : int
        The maximum number of tiles of a sample in a block.
    sums : int
        The number of partial sums of a weight gradient.
    """

    samples: Ranges
    groups: Ranges
    tiles: int
    sums: int


def cut_tiles(geometry: Geometry, budget: Budget, elements: int) -> Cuts:
    """Cut a product so that a block's inputs and products hold at most `elements` elements at one place of the lead.

    A block has no more columns than `budget.fast_columns`, because more make no product faster. There are at least as
    many blocks as the budget says, if the sizes allow it.
    """
    grid, fast_columns, least = tiling(geometry), budget.fast_columns, budget.least_blocks
    total = math.prod(grid.counts)
    tile_elements = grid.inner * (geometry.group_in + geometry.group_out)
    groups = pieces(geometry.groups, elements // (tile_elements * min(fast_columns, geometry.batch * total)))
    fewest = max(1, min(FEWEST_TILES, elements >> 10))
    tiles = max(fewest, elements // (tile_elements * groups.longest))
    blocks_of_samples = -(-least // len(groups))
    samples = cut(geometry.batch, min(tiles // total, -(-fast_columns // total)), blocks_of_samples)
    tiles = min(tiles, max(fewest, -(-total // -(-blocks_of_samples // len(samples)))))
    # Partial sums take memory: at most as much as four blocks.
    weights = 4 * grid.inner * geometry.out_channels * geometry.group_in
    return Cuts(samples, groups, tiles, max(1, min(len(samples), blocks_of_samples, 4 * elements // weights)))


def count_work(kind: str, geometry: Geometry, plan: Cuts, workspace: int) -> Work:
    """Count the work of an output or a gradient of filters by a plan."""
    grid = tiling(geometry)
    cells = math.prod(geometry.x_shape) + math.prod(geometry.out_shape)
    # Halves are copied from and to rows of every second cell.
    elements = STEPS * cells + copied(cells, geometry.out[-1] // 2) + STEPS_OF_A_WEIGHT * geometry.weights
    tiles, groups = math.prod(grid.counts), plan.groups[0][1]
    samples = plan.samples.longest
    count = len(plan.samples) * len(plan.groups) * -(-tiles // min(plan.tiles, tiles))
    if kind == "weight_grad":  # the products of all blocks are added up at each place
        elements += 2 * count / len(plan.groups) * 4 * grid.inner * geometry.weights / geometry.taps
    calls = count * (40 * grid.inner // 4 + 40)
    shape = {"samples": samples, "groups": groups, "tiles": min(plan.tiles, tiles)}
    return Work(narrow(2 * grid.multiplications, geometry.group_out), elements, 0, calls, workspace, shape)


def count_workspace(kind: str, geometry: Geometry, plan: Cuts) -> int:
    """Count the elements of workspace: those of one block, and those that all blocks share."""
    grid = tiling(geometry)
    groups, samples = plan.groups.longest, plan.samples.longest
    box = largest(grid.counts, plan.tiles)
    sizes = [end + (dim in grid.excess) for dim, (_, end) in enumerate(box)]
    tiles = samples * math.prod(sizes)
    reached = samples * math.prod(end + (dim in grid.dims) for dim, (_, end) in enumerate(box))
    dims = len(grid.dims)
    # At first there are halves along all dimensions; each step has places along one more dimension.
    places = [2 << (2 * axis + dims - 1 - axis) for axis in range(1, dims)]
    inputs, outputs = groups * geometry.group_in, groups * geometry.group_out
    weights: int = 4 * grid.inner * geometry.weights // geometry.taps
    if kind == "forward":
        products = grid.inner * outputs * tiles
        strips = max((1 << dims) * inputs * reached, products)
        outputs_of_places = max(grid.inner * inputs * tiles, products)
        booleans = (1 << dims) * outputs * tiles // 4 + 1
        return (
            strips + sum(places) * inputs * reached + products + outputs_of_places + 2 * products + weights + booleans
        )
    of_both = ((1 << dims) + sum(places)) * reached + grid.inner * tiles
    parts = plan.sums * weights
    products = grid.inner * geometry.group_in * outputs
    blocks = -(-len(plan.samples) // plan.sums) * len(boxes(grid.counts, plan.tiles))
    sums = products * (correlated(tiles) + 4 * runs_take(blocks))
    # `parts` are the partial sums, and `weights` is their total.
    return of_both * (inputs + outputs) + sums + parts + weights
