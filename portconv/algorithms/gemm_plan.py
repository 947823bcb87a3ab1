"""How `gemm` cuts a product into blocks, and the work and workspace that this takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import NamedTuple

from ..backends import Backend
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Index, Range, boxes, cut, largest, pieces
from .budget import Budget, Work, copied, longest, narrow
from .columns import Block, strips_of
from .window_views import can_be_viewed

FEWEST_COLUMNS = 64
"""With fewer columns, a product spends its time on preparing the filters, even if the block fits the cache."""
FEWEST_ROWS = 128
"""With fewer rows, a product spends its time on its result; so one product then takes several taps together."""
POINTWISE_COLUMNS = 128
"""With this many positions or more, a 1x1 layer copies no columns: each sample is a matrix of columns."""
AT_ONCE = 5
"""The number of calls of a product of few cells."""
LIBRARY_THREADS = 0.7
"""The time of a product on the library's threads, divided by its time in blocks: those threads start faster."""
REUSE = 16
"""With this many positions for each filter or more, to reorder the filters takes less time than to copy columns."""


@dataclass(frozen=True)
class Plan:
    """How a product is cut into blocks.

    Attributes
    ----------
    out : tuple of int
        The sizes of the output.
    samples, groups, channels, taps : tuple of Range
        The ranges of samples, groups, channels of a group, and taps of the first dimension.
    positions : int
        The maximum number of positions in a block.
    sums : int
        The number of partial sums of a weight gradient.
    small : bool
        Whether samples are so small that it is faster to copy all their windows at once, if windows can be views.
    """

    out: tuple[int, ...]
    samples: tuple[Range, ...]
    groups: tuple[Range, ...]
    channels: tuple[Range, ...]
    taps: tuple[Range, ...]
    positions: int
    sums: int = 1
    small: bool = False

    @cached_property
    def one_sample(self) -> bool:
        """Whether each block has one sample, so that its outputs are a matrix without a copy."""
        return all(end - start == 1 for start, end in self.samples)

    @cached_property
    def taps_together(self) -> int:
        """The maximum number of taps of the first dimension in one product."""
        return longest(self.taps)

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        runs = -(-math.prod(self.out) // max(1, self.positions))
        return len(self.samples) * len(self.groups) * len(self.channels) * runs

    def stack(self, samples: tuple[Range, ...], groups: Range, channels: Range) -> Iterator[Block]:
        """Yield the blocks that cover all positions of these samples, groups and channels."""
        for part in samples:
            for run, box in boxes(self.out, self.positions):
                yield Block(part, groups, channels, run, box)

    def stacks(self) -> Iterator[tuple[Block, ...]]:
        """Yield one stack for each range of samples, groups and channels."""
        for samples, groups, channels in product(self.samples, self.groups, self.channels):
            yield tuple(self.stack((samples,), groups, channels))

    @cached_property
    def largest_block(self) -> Block:
        """A block of the largest size."""
        box = largest(self.out, self.positions)
        run = (0, math.prod(end for _, end in box))
        return Block((0, longest(self.samples)), (0, longest(self.groups)), (0, longest(self.channels)), run, box)


class Cut(NamedTuple):
    """A product that is cut into blocks; threads share at least `least_blocks` blocks."""

    geometry: Geometry
    backend: Backend
    plan: Plan
    least_blocks: int


def least_blocks(budget: Budget) -> int:
    """Return the minimum number of blocks into which a product is cut."""
    return 1 if budget.library_threads else budget.least_blocks


def is_positionwise(geometry: Geometry) -> bool:
    """Return whether samples are columns without a copy: those of a 1x1 layer with enough positions."""
    return geometry.pointwise and geometry.positions >= POINTWISE_COLUMNS


@lru_cache(maxsize=64)
def indexed_blocks(geometry: Geometry, plan: Plan, whole: bool) -> list[tuple[Index, Block]]:
    """Return the blocks of a forward product, each with the index of its outputs.

    The index is for an array (N, G, F, positions) if blocks are `whole` samples or one sample each, and for an array
    (N, G, F, *P) otherwise.
    """
    blocks: list[tuple[Index, Block]] = []
    for stack in plan.stacks():
        for block in stack:
            samples = block.samples[0] if plan.one_sample and not whole else slice(*block.samples)
            cells = (slice(*block.run),) if whole or plan.one_sample else tuple(slice(*side) for side in block.box)
            blocks.append(((samples, slice(*block.groups), ALL, *cells), block))
    return blocks


def count_work(
    kind: str, geometry: Geometry, budget: Budget, plan: Plan, workspace: int, at_once: bool = False
) -> Work:
    """Count the work of a product by a plan, or by one product of few windows `at_once`."""
    block, rest = plan.largest_block, geometry.other_taps
    samples, groups, channels = block.counts
    cells = geometry.batch * geometry.positions
    row, together, positionwise = geometry.out[-1], plan.taps_together, is_positionwise(geometry)
    elements, calls = _columns_work(geometry, plan)
    outputs, row = geometry.out_channels * cells, geometry.positions if plan.small else row
    if kind == "forward":
        elements += (len(plan.taps) - 1) * outputs + (0 if samples == 1 or positionwise else copied(outputs, row))
        lines = geometry.group_out
    elif kind == "input_grad":
        # The elements that a forward product copies are set to zero and added to here.
        elements *= 2
        elements += 0 if samples == 1 else copied(outputs, row)
        lines = geometry.group_in * together * rest
    else:
        elements += 0 if samples == 1 else copied(outputs, row)
        lines = min(geometry.group_out, geometry.group_in * together * rest)
    calls += 4 + 3 * len(plan.taps)
    shape = {"samples": samples, "groups": groups, "channels": channels, "positions": block.run[1]}
    count = len(plan.samples) * len(plan.groups) * len(plan.channels)
    calls = AT_ONCE if at_once else calls * count * -(-geometry.positions // max(1, block.run[1]))
    operations = geometry.operations * (LIBRARY_THREADS if budget.library_threads else 1)
    steps = plan.blocks * (1 if geometry.pointwise else geometry.kernel[0] + rest)
    return Work(narrow(operations, lines), elements, 0, calls, workspace, shape, steps)


def _columns_work(geometry: Geometry, plan: Plan) -> tuple[float, float]:
    """Count the elements that are copied to make columns, and the calls for each block."""
    block, rest = plan.largest_block, geometry.other_taps
    cells = geometry.batch * geometry.positions
    row, apart = geometry.out[-1], 1.5 if geometry.stride[-1] > 1 else 1
    elements = calls = 0.0
    if plan.small:
        elements += copied(geometry.in_channels * geometry.taps * cells, row) * apart
        elements += copied(geometry.batch * geometry.in_channels * math.prod(geometry.padded), geometry.padded[-1])
        calls += 2
    elif not geometry.pointwise or (block.counts[0] > 1 and not is_positionwise(geometry)):
        strips = strips_of(geometry, block.box)
        rows = strips.sizes[0] / max(1, block.rows) * strips.lanes
        elements += copied(geometry.in_channels * rest * rows * cells, row) * apart
        calls += 2 * strips.lanes * rest
    if plan.taps_together > 1 and not plan.small:
        elements += geometry.in_channels * geometry.taps * cells
        calls += plan.taps_together * len(plan.taps)
    return elements, calls


def count_workspace(kind: str, geometry: Geometry, plan: Plan) -> int:
    """Count the elements of workspace: those of one block, and those that all blocks share."""
    block = plan.largest_block
    samples, groups, channels = block.counts
    rest, outputs, together = geometry.other_taps, groups * geometry.group_out * block.length, plan.taps_together
    columns = groups * channels * together * rest * block.length if together > 1 or kind == "input_grad" else 0
    uncopied = geometry.pointwise and samples == 1
    strips = 0 if uncopied and kind != "input_grad" else strips_of(geometry, block.box).elements(block)
    if plan.small:
        strips = max(strips, samples * groups * channels * math.prod(geometry.padded))
        columns = groups * channels * geometry.taps * block.length
    copies = geometry.weights if len(plan.taps) > 1 else 0
    if kind == "forward":
        if is_positionwise(geometry):
            return copies
        return strips + columns + outputs * ((samples > 1) + (len(plan.taps) > 1)) + copies
    values = outputs if samples > 1 else 0
    if kind == "input_grad":
        return strips + columns + values + copies
    weights = groups * geometry.group_out * channels * rest
    sums = weights * geometry.kernel[0] * (2 if len(plan.taps) > 1 else 1) + weights * together
    parts = plan.sums * geometry.weights if plan.sums > 1 else 0
    return strips + columns + values + sums + parts


def cut_blocks(kind: str, geometry: Geometry, budget: Budget, elements: int) -> Plan:
    """Cut a product so that the columns of a block hold at most so many elements.

    A block has no more columns than `budget.fast_columns`, because more make no product faster. There are at least as
    many blocks as the budget says, if the sizes allow it.
    """
    least = least_blocks(budget)
    together = _taps_together(kind, geometry, budget, least)
    rows = max(1, elements // max(1, min(budget.fast_columns, geometry.batch * geometry.positions)))
    taps_in_product = geometry.other_taps * together
    groups = pieces(geometry.groups, rows // (geometry.group_in * taps_in_product))
    channels = geometry.group_in if kind == "forward" else max(1, min(geometry.group_in, rows // taps_in_product))
    positions, samples = _block_sizes(kind, geometry, budget, elements, (longest(groups), channels, together))
    taps = pieces(geometry.kernel[0], together)
    # If there are fewer blocks than threads need, cut the samples finer, and then the positions or channels.
    stacks = len(groups) * len(pieces(geometry.group_in, channels))
    blocks_of_samples = -(-least // stacks)
    cut_samples = cut(geometry.batch, samples, blocks_of_samples)
    if kind == "forward":
        blocks_of_positions = -(-least // max(1, len(groups) * len(cut_samples)))
        positions = min(positions, max(_fewest_columns(elements), -(-geometry.positions // blocks_of_positions)))
        return _with_small(geometry, Plan(geometry.out, cut_samples, groups, ((0, channels),), taps, positions))
    sums = len(cut_samples)
    if kind == "weight_grad":
        # Partial sums take memory: at most as much as four blocks.
        weights = geometry.out_channels * geometry.group_in * geometry.taps
        sums = max(1, min(sums, blocks_of_samples, 4 * elements // weights))
    cut_channels = cut(geometry.group_in, channels, -(-least // max(1, len(groups) * sums)))
    plan = Plan(geometry.out, cut_samples, groups, cut_channels, taps, positions, sums)
    return plan if kind == "input_grad" else _with_small(geometry, plan)


def _fewest_columns(elements: int) -> int:
    """Return the minimum number of columns in a block whose columns hold at most `elements` elements."""
    return max(1, min(FEWEST_COLUMNS, elements >> 10))


def _taps_together(kind: str, geometry: Geometry, budget: Budget, least: int) -> int:
    """Return how many taps of the first dimension a matrix product takes together.

    It takes all of them if there is little memory, so that filters need no copy. If sums must be short, it takes fewer,
    and their products are added up afterwards.
    """
    summed, taps = budget.summed_positions, geometry.kernel[0]
    if 4 * geometry.weights > budget.workspace_elements:
        return taps
    if not summed and geometry.batch * geometry.positions < REUSE * geometry.group_out:
        return taps
    # If there are few samples, gradients cut the channels too, so that a block has fewer channels.
    cuts = 1 if kind == "forward" else -(-least // max(1, geometry.batch))
    return min(taps, -(-FEWEST_ROWS // (-(-geometry.group_in // cuts) * geometry.other_taps)))


def _block_sizes(
    kind: str, geometry: Geometry, budget: Budget, elements: int, rows: tuple[int, int, int]
) -> tuple[int, int]:
    """Return the maximum numbers of positions and samples in a block; `rows` are its groups, channels and taps."""
    groups, channels, together = rows
    fast_columns = budget.fast_columns
    if is_positionwise(geometry):
        positions, columns = geometry.positions, elements // channels
    else:
        height = groups * channels * geometry.other_taps * together
        positions = elements // height
        # Strips hold the rows of all taps of the first dimension. They may be larger than columns, so they count too.
        across = geometry.positions // geometry.out[0]
        reach = (geometry.kernel[0] - 1) * geometry.dilation[0]
        lines = max(1, positions // across) * min(geometry.stride[0], geometry.kernel[0]) + reach
        strips = height // together * min(across, max(1, positions)) * lines
        positions = columns = max(_fewest_columns(elements), min(positions, positions * 4 * elements // strips))
    if budget.summed_positions and kind == "weight_grad":
        summed = budget.summed_positions
        positions, columns, fast_columns = min(positions, summed), min(columns, summed), min(fast_columns, summed)
    if is_positionwise(geometry) and kind != "weight_grad":
        return positions, geometry.batch
    if 2 * geometry.positions <= fast_columns:
        # Blocks of several samples are copied in short rows, and are faster if they are larger.
        return positions, min(columns // geometry.positions, -(-2 * fast_columns // geometry.positions))
    return positions, 1  # because blocks of several samples are copied once more


def _with_small(geometry: Geometry, plan: Plan) -> Plan:
    """Return the plan with `small` set: whether one copy of all windows takes less time than strips do."""
    block = plan.largest_block
    whole = block.counts[0] > 1 and block.length == block.counts[0] * geometry.positions
    if not whole or geometry.kernel[0] == 1 or len(plan.taps) > 1 or not can_be_viewed(geometry):
        return plan
    strips = strips_of(geometry, block.box)
    # Strips copy fewer rows, because taps of the first dimension share them; but they make rows of results shorter.
    shared = geometry.kernel[0] - strips.lanes * strips.sizes[0] / geometry.out[0]
    return replace(plan, small=geometry.group_in * geometry.other_taps * shared < geometry.group_out)
