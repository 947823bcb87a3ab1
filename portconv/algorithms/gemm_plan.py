"""How `gemm` cuts a product into blocks, and the work and workspace that this takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..backends import Backend
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Index, Range, Ranges, boxes, cut, largest, pieces
from ..spec.remembered import remembered
from ..spec.sequences import Made, Product, kept, kept_if_few
from .budget import Budget, Work, copied, narrow
from .columns import Block, rows_read, shares_rows
from .summing import correlated, runs_take

FEWEST_COLUMNS = 64
"""With fewer columns, a product spends its time on preparing the filters, even if the block fits the cache."""
FEWEST_ROWS = 128
"""With fewer rows, a gradient spends its time on gathering outputs, once for each range of channels."""
POINTWISE_COLUMNS = 128
"""With this many positions or more, a 1x1 layer copies no columns: each sample is a matrix of columns by itself."""
AT_ONCE = 5
"""The number of calls of a product of few cells."""
LIBRARY_THREADS = 0.7
"""The time of a product on the library's threads, divided by its time in blocks: those threads start faster."""


@dataclass(frozen=True)
class Plan:
    """How a product is cut into blocks.

    Attributes
    ----------
    out : tuple of int
        The sizes of the output.
    samples, groups, channels : Ranges
        The ranges of samples, groups, and channels of a group.
    positions : int
        The maximum number of positions in a block.
    sums : int
        The number of partial sums of a weight gradient.
    runs : Ranges or None
        The ranges of terms of an output that one product adds up; None for gradients.
    """

    out: tuple[int, ...]
    samples: Ranges
    groups: Ranges
    channels: Ranges
    positions: int
    sums: int = 1
    runs: Ranges | None = None

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        runs = -(-math.prod(self.out) // max(1, self.positions))
        return len(self.samples) * len(self.groups) * len(self.channels) * runs

    @cached_property
    def blocks_of_share(self) -> int:
        """The most blocks that are added up to one partial sum of a weight gradient."""
        return -(-len(self.samples) // self.sums) * len(boxes(self.out, self.positions))

    def stack(self, samples: Sequence[Range], groups: Range, channels: Range) -> Sequence[Block]:
        """Return the blocks that cover all positions of these samples, groups and channels."""
        return Made(
            Product(samples, boxes(self.out, self.positions)),
            lambda parts: Block(parts[0], groups, channels, *parts[1]),
        )

    def stacks(self) -> Sequence[Sequence[Block]]:
        """Return one stack for each range of samples, groups and channels."""
        ranges = Product(self.samples, self.groups, self.channels)
        return Made(ranges, lambda parts: self.stack((parts[0],), *parts[1:]))

    @cached_property
    def largest_block(self) -> Block:
        """A block of the largest size."""
        box = largest(self.out, self.positions)
        run = (0, math.prod(end for _, end in box))
        samples, groups, channels = ((0, ranges.longest) for ranges in (self.samples, self.groups, self.channels))
        return Block(samples, groups, channels, run, box)


class Cut(NamedTuple):
    """A product that is cut into blocks; threads share at least `least_blocks` blocks."""

    geometry: Geometry
    backend: Backend
    plan: Plan
    least_blocks: int


def least_blocks(budget: Budget) -> int:
    """Return the minimum number of blocks into which a product is cut."""
    return 1 if budget.library_threads else budget.least_blocks


def has_views(kind: str, geometry: Geometry, samples: int) -> bool:
    """Return whether a block of so many samples has its columns without a copy: cells of a 1x1 layer."""
    one_by_one = kind == "forward" and geometry.positions >= POINTWISE_COLUMNS
    return geometry.pointwise and (samples == 1 or one_by_one)


@remembered(kept)
def indexed_blocks(geometry: Geometry, plan: Plan) -> Sequence[tuple[Index, Block]]:
    """Return the blocks of a forward product, each with the index of its outputs.

    The index is for an array (N, G, F, positions); that of a block of one sample has no axis of samples.
    """

    def indexed(parts: tuple[Any, ...]) -> tuple[Index, Block]:
        (samples, groups, channels), (run, box) = parts[:3], parts[3]
        index = samples[0] if samples[1] - samples[0] == 1 else slice(*samples), slice(*groups), ALL, slice(*run)
        return index, Block(samples, groups, channels, run, box)

    runs = boxes(geometry.out, plan.positions)
    return kept_if_few(Made(Product(plan.samples, plan.groups, plan.channels, runs), indexed))


def count_work(
    kind: str, geometry: Geometry, budget: Budget, plan: Plan, workspace: int, at_once: bool = False
) -> Work:
    """Count the work of a product by a plan, or by one product of few windows `at_once`."""
    block = plan.largest_block
    samples, groups, channels = block.counts
    cells, outputs = geometry.batch * geometry.positions, geometry.out_channels * geometry.batch * geometry.positions
    row, calls, elements = geometry.out[-1], 7.0, 0.0
    if not has_views(kind, geometry, samples):
        columns, apart = geometry.in_channels * geometry.taps * cells, 1.5 if geometry.stride[-1] > 1 else 1
        if shares_rows(geometry, block.rows):
            read = rows_read(geometry, block.rows) / (block.rows * geometry.kernel[0])
            elements += columns + copied(columns * read, row) * apart
            calls += 2 * geometry.other_taps + geometry.kernel[0]
        else:
            elements += copied(columns, row) * apart
            calls += 2 * geometry.taps
    if kind == "input_grad":  # the elements that a forward product copies are added to others here
        elements *= 2
    elements += 0 if samples == 1 or has_views(kind, geometry, samples) else copied(outputs, row)
    rows = geometry.group_in * geometry.taps
    lines = {"forward": geometry.group_out, "input_grad": rows}.get(kind, min(geometry.group_out, rows))
    shape = {"samples": samples, "groups": groups, "channels": channels, "positions": block.run[1]}
    count = len(plan.samples) * len(plan.groups) * len(plan.channels)
    calls = AT_ONCE if at_once else calls * count * -(-geometry.positions // max(1, block.run[1]))
    operations = geometry.operations * (LIBRARY_THREADS if budget.library_threads else 1)
    steps = plan.blocks * (1 if geometry.pointwise else geometry.kernel[0] + geometry.other_taps)
    return Work(narrow(operations, lines), elements, 0, calls, workspace, shape, steps)


def count_workspace(kind: str, geometry: Geometry, plan: Plan) -> int:
    """Count the elements of workspace: those of one block, and those that all blocks share."""
    block = plan.largest_block
    samples, groups, channels = block.counts
    outputs = groups * geometry.group_out * block.length
    uncopied = has_views(kind, geometry, samples)
    columns = 0 if uncopied and kind != "input_grad" else groups * channels * geometry.taps * block.length
    if shares_rows(geometry, block.rows):
        columns += columns // (block.rows * geometry.kernel[0]) * rows_read(geometry, block.rows)
    values = outputs if samples > 1 and not uncopied else 0
    if kind != "weight_grad":
        return columns + values + (outputs if plan.runs and len(plan.runs) > 1 else 0)
    sums = groups * geometry.group_out * channels * geometry.taps
    sums *= runs_take(plan.blocks_of_share) + correlated(block.length) + 1
    return columns + values + sums + (plan.sums * geometry.weights if plan.sums > 1 else 0)


def cut_blocks(kind: str, geometry: Geometry, budget: Budget, elements: int) -> Plan:
    """Cut a product so that the columns of a block hold at most so many elements.

    A block has no more columns than `budget.fast_columns`, because more make no product faster. There are at least as
    many blocks as the budget says, if the sizes allow it.
    """
    least = least_blocks(budget)
    rows = max(1, elements // max(1, min(budget.fast_columns, geometry.batch * geometry.positions)))
    groups = pieces(geometry.groups, rows // (geometry.group_in * geometry.taps))
    fewest = -(-FEWEST_ROWS // geometry.taps)
    channels = geometry.group_in if kind == "forward" else min(geometry.group_in, max(fewest, rows // geometry.taps))
    positions, samples = _block_sizes(kind, geometry, budget, elements, groups.longest * channels * geometry.taps)
    # If there are fewer blocks than threads need, cut the samples finer, and then the positions or channels.
    stacks = len(groups) * len(pieces(geometry.group_in, channels))
    blocks_of_samples = -(-least // stacks)
    cut_samples = cut(geometry.batch, samples, blocks_of_samples)
    if kind == "forward":
        blocks_of_positions = -(-least // max(1, len(groups) * len(cut_samples)))
        positions = min(positions, max(_fewest_columns(elements), -(-geometry.positions // blocks_of_positions)))
        terms = channels * geometry.taps
        runs = pieces(terms, budget.summed_terms or terms)
        return Plan(geometry.out, cut_samples, groups, Ranges(channels, 1), positions, runs=runs)
    sums = len(cut_samples)
    if kind == "weight_grad":
        # Partial sums take memory: at most as much as four blocks.
        weights = geometry.out_channels * geometry.group_in * geometry.taps
        sums = max(1, min(sums, blocks_of_samples, 4 * elements // weights))
    cut_channels = cut(geometry.group_in, channels, -(-least // max(1, len(groups) * sums)))
    return Plan(geometry.out, cut_samples, groups, cut_channels, positions, sums)


def _fewest_columns(elements: int) -> int:
    """Return the minimum number of columns in a block whose columns hold at most `elements` elements."""
    return max(1, min(FEWEST_COLUMNS, elements >> 10))


def _block_sizes(kind: str, geometry: Geometry, budget: Budget, elements: int, rows: int) -> tuple[int, int]:
    """Return the maximum numbers of positions and samples in a block, whose columns have so many rows."""
    fast_columns, positions = budget.fast_columns, max(_fewest_columns(elements), elements // rows)
    if budget.summed_terms and kind == "weight_grad":
        summed = budget.summed_terms
        positions, fast_columns = min(positions, summed), min(fast_columns, summed)
    if geometry.pointwise and geometry.positions >= POINTWISE_COLUMNS:
        return (geometry.positions, geometry.batch) if kind == "forward" else (positions, 1)
    if 2 * geometry.positions <= fast_columns:
        # Blocks of several samples are copied in short rows, and are faster if they are larger.
        return positions, min(positions // geometry.positions, -(-2 * fast_columns // geometry.positions))
    return positions, 1  # because blocks of several samples are copied once more
