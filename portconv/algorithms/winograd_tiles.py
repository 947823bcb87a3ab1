"""How a convolution with kernels of 3 is cut into tiles of two outputs along such dimensions, and tiles into blocks.

Tiles read four cells and the next ones two cells on, so cells are split into halves, the even and the odd: a tile's
cells are then the two of its place in the halves, and the two of the next tile's. Tiles of a block lie in the order
(T1, n, T2, ..., Td), with n samples, and along T2 to Td with one tile too many where the kernel is 3, so that the next
tile along any dimension lies at one distance for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import NamedTuple

from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Box, Index, Range, boxes, cut, largest, pieces
from .budget import Budget, Work, copied, longest, narrow
from .columns import Block

FEWEST_TILES = 64
"""With fewer tiles to a block a product spends its time preparing the filters."""


STEPS, STEPS_OF_A_WEIGHT = 16, 20
"""How many elementwise steps the work beyond that of `gemm` amounts to, for each cell of input and output, and for each
weight; fitted to layers of 16 to 512 channels, with NumPy on two cores."""


class Output(NamedTuple):
    """One output of each tile of a block: at `place`, it goes from `tiles` (n, g, f, T1, ..., Td) to `cells` of out."""

    place: tuple[int, ...]
    tiles: Index
    cells: Index


class Shape(NamedTuple):
    """What blocks of tiles have in common.

    Attributes
    ----------
    sizes : tuple of int
        (T1, n, T2, ..., Td).
    ahead : tuple of int
        How far the next tile is along each dimension of kernel 3.
    outputs : tuple of Output
    """

    sizes: tuple[int, ...]
    ahead: tuple[int, ...]
    outputs: tuple[Output, ...]


class Tiles(NamedTuple):
    """A block: `tiles` as ranges, and the outputs that it `writes`, as an index of arrays (N, G, F, *P)."""

    tiles: Block
    writes: tuple[slice, ...]
    shape: Shape


@dataclass(frozen=True)
class Tiling:
    """A geometry in tiles: of two outputs along its dimensions of kernel 3, of one along the others."""

    geometry: Geometry

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """The dimensions of kernel 3, the first of which leads."""
        return tuple(dim for dim, kernel in enumerate(self.geometry.kernel) if kernel == 3)

    @cached_property
    def inner(self) -> int:
        """Places in a tile for each place of the lead."""
        return math.prod(4 for _ in self.dims[1:])

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Outputs from one tile to the next."""
        return tuple(2 if kernel == 3 else 1 for kernel in self.geometry.kernel)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Tiles along each dimension."""
        return tuple(-(-n // step) for n, step in zip(self.geometry.out, self.steps, strict=True))

    @cached_property
    def excess(self) -> tuple[int, ...]:
        """The dimensions along which blocks hold a tile too many."""
        return tuple(dim for dim in self.dims if dim)

    @cached_property
    def multiplications(self) -> int:
        """Multiplications of a product, those of tiles too many included."""
        tiles = math.prod(n + (dim in self.excess) for dim, n in enumerate(self.counts))
        return self.geometry.batch * self.geometry.out_channels * self.geometry.group_in * 4 * self.inner * tiles

    @cached_property
    def halves(self) -> Geometry:
        """The even and the odd cells as the taps of a kernel."""
        return replace(self.geometry, kernel=self.steps, stride=self.steps)

    def blocks(self, samples: Iterable[Range], groups: Range, tiles: int) -> Iterator[Tiles]:
        """Cover these samples and groups with blocks of at most so many tiles of a sample."""
        for part, (run, box) in product(samples, boxes(self.counts, tiles)):
            ranges = zip(box, self.steps, self.geometry.out, strict=True)
            cells = tuple(slice(start * step, min(end * step, n)) for (start, end), step, n in ranges)
            shape = _shape(self, part[1] - part[0], tuple(cell.stop - cell.start for cell in cells))
            yield Tiles(
                Block(part, groups, (0, self.geometry.group_in), run, box),
                (slice(*part), slice(*groups), ALL, *cells),
                shape,
            )

    def reads(self, block: Tiles) -> Block:
        """Return the halves that a block reads, for `gather`: a tile more along each dimension of kernel 3."""
        return replace(block.tiles, box=_longer(block.tiles.box, self.dims))

    def reads_of_dout(self, block: Tiles) -> tuple[Geometry, Block]:
        """Return the same of the outputs' gradient: only the tiles too many are more, and padding alone lies there."""
        none, ends = (0,) * self.geometry.dims, tuple(cells.stop for cells in block.writes[3:])
        box = _longer(block.tiles.box, self.excess)
        tiles = replace(block.tiles, channels=(0, self.geometry.group_out), box=box)
        return replace(self.halves, size=ends, before=none, after=none), tiles


@lru_cache(maxsize=1024)
def tiling(geometry: Geometry) -> Tiling:
    return Tiling(geometry)


def _longer(box: Box, dims: tuple[int, ...]) -> Box:
    return tuple((start, end + (dim in dims)) for dim, (start, end) in enumerate(box))


@lru_cache(maxsize=1024)
def _shape(grid: Tiling, samples: int, lengths: tuple[int, ...]) -> Shape:
    """Describe blocks of so many samples, and of so many outputs along each dimension."""
    counts = [
        -(-n // step) + (dim in grid.excess) for dim, (n, step) in enumerate(zip(lengths, grid.steps, strict=True))
    ]
    sizes = (counts[0], samples, *counts[1:])
    outputs = []
    for place in product((0, 1), repeat=len(grid.dims)):
        at = dict(zip(grid.dims, place, strict=True))
        inside = [slice((n - at[dim] + 1) // 2 if dim in at else n) for dim, n in enumerate(lengths)]
        every = [slice(at[dim], None, 2) if dim in at else ALL for dim in range(len(lengths))]
        outputs.append(Output(place, (ALL, ALL, ALL, *inside), (ALL, ALL, ALL, *every)))
    ahead = tuple(math.prod(sizes[dim + 2 :] if dim else sizes[1:]) for dim in grid.dims)
    return Shape(sizes, ahead, tuple(outputs))


class Cuts(NamedTuple):
    """How the work is cut: ranges of samples and groups, tiles of a sample a block, sums of a weight gradient."""

    samples: tuple[Range, ...]
    groups: tuple[Range, ...]
    tiles: int
    sums: int


def cut_tiles(geometry: Geometry, budget: Budget, elements: int) -> Cuts:
    """Cut so that the inputs and products of a block at one place of the lead hold at most so many elements.

    More than `budget.fast_columns` columns make no product faster; and there are at least as many blocks to share out
    as the budget says, where the sizes allow.
    """
    grid, enough, least = tiling(geometry), budget.fast_columns, budget.least_blocks
    total = math.prod(grid.counts)
    deep = grid.inner * (geometry.group_in + geometry.group_out)
    groups = pieces(geometry.groups, elements // (deep * min(enough, geometry.batch * total)))
    fewest = max(1, min(FEWEST_TILES, elements >> 10))
    tiles = max(fewest, elements // (deep * longest(groups)))
    wanted = -(-least // len(groups))
    samples = cut(geometry.batch, min(tiles // total, -(-enough // total)), wanted)
    tiles = min(tiles, max(fewest, -(-total // -(-wanted // len(samples)))))
    # Partial sums cost memory: at most four blocks' worth.
    weights = 4 * grid.inner * geometry.out_channels * geometry.group_in
    return Cuts(samples, groups, tiles, max(1, min(len(samples), wanted, 4 * elements // weights)))


def count_work(kind: str, geometry: Geometry, plan: Cuts, workspace: int) -> Work:
    """Count what an output or a gradient of filters takes by a plan."""
    grid = tiling(geometry)
    cells = math.prod(geometry.x_shape) + math.prod(geometry.out_shape)
    # Halves are copied from and to rows of every other cell.
    elements = STEPS * cells + copied(cells, geometry.out[-1] // 2) + STEPS_OF_A_WEIGHT * geometry.weights
    tiles, groups = math.prod(grid.counts), plan.groups[0][1]
    samples = longest(plan.samples)
    count = len(plan.samples) * len(plan.groups) * -(-tiles // min(plan.tiles, tiles))
    if kind == "weight_grad":  # where each block's products of all places are added up
        elements += 2 * count / len(plan.groups) * 4 * grid.inner * geometry.weights / geometry.taps
    calls = count * (40 * grid.inner // 4 + 40)
    shape = {"samples": samples, "groups": groups, "tiles": min(plan.tiles, tiles)}
    return Work(narrow(2 * grid.multiplications, geometry.group_out), elements, 0, calls, workspace, shape)


def count_workspace(kind: str, geometry: Geometry, plan: Cuts) -> int:
    """Count the elements of workspace: of a block, and of what all blocks share."""
    grid = tiling(geometry)
    groups, samples = longest(plan.groups), longest(plan.samples)
    box = largest(grid.counts, plan.tiles)
    sizes = [end + (dim in grid.excess) for dim, (_, end) in enumerate(box)]
    tiles = samples * math.prod(sizes)
    reached = samples * math.prod(end + (dim in grid.dims) for dim, (_, end) in enumerate(box))
    dims = len(grid.dims)
    # Halves along all dimensions, then places along one more dimension at a time.
    spread = [2 << (2 * axis + dims - 1 - axis) for axis in range(1, dims)]
    inputs, outputs = groups * geometry.group_in, groups * geometry.group_out
    weights: int = 4 * grid.inner * geometry.weights // geometry.taps
    if kind == "forward":
        products = grid.inner * outputs * tiles
        strips = max((1 << dims) * inputs * reached, products)
        folded = max(grid.inner * inputs * tiles, products)
        finite = (1 << dims) * outputs * tiles // 4 + 1
        return strips + sum(spread) * inputs * reached + products + folded + 2 * products + weights + finite
    of_both = ((1 << dims) + sum(spread)) * reached + grid.inner * tiles
    parts = plan.sums * weights
    products = grid.inner * geometry.group_in * outputs
    # Partial sums, and their total.
    return of_both * (inputs + outputs) + products + parts + weights
