"""How `gemm` cuts a product into blocks, and what that takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product

from ..backends import Backend
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Index, Range, boxes, cut, largest, pieces
from .budget import Limits, Work, copied, fitted, narrow
from .columns import Block, strips_of
from .mirrored import beside_filters, of_mirrored
from .window_views import _all_laid, _few, _viewed

FEWEST_COLUMNS = 64
"""With fewer columns a product spends its time preparing the filters, however well the block fits the cache."""
FEWEST_ROWS = 128
"""With fewer rows a product spends its time on its result, so that several taps are then taken together."""
POINTWISE_COLUMNS = 128
"""From here on a 1x1 layer needs no columns at all: each sample is its own right-hand side."""
AT_ONCE = 5
"""Calls of a product of so few."""
AWAKE = 0.7
"""How long a product takes the library's own threads, which wait awake, of the time that it takes threads in blocks."""
REUSE = 16
"""Positions a filter must serve for each of its kind before reordering the filters costs less than copying columns."""


@dataclass(frozen=True)
class Plan:
    """How a product is cut: ranges of samples, groups, channels of a group and first-dimension taps, positions a block.

    `sums` is into how many partial sums a weight gradient is cut; `small` whether samples are so small that a copy of
    all their windows at once is the faster way to columns, where windows can be viewed.
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
    def alone(self) -> bool:
        """Whether no block has more than one sample, so that its outputs are matrices as they lie."""
        return all(end - start == 1 for start, end in self.samples)

    def stack(self, samples: tuple[Range, ...], groups: Range, channels: Range) -> Iterator[Block]:
        """The blocks that cover all positions of these samples, groups and channels."""
        for part in samples:
            for run, box in boxes(self.out, self.positions):
                yield Block(part, groups, channels, run, box)

    def stacks(self) -> Iterator[tuple[Block, ...]]:
        """One stack for each range of samples, groups and channels."""
        for samples, groups, channels in product(self.samples, self.groups, self.channels):
            yield tuple(self.stack((samples,), groups, channels))


def _steps(geometry: Geometry, plan: Plan) -> int:
    """How many blocks there are, times what each copies: a 1x1 layer's nothing."""
    blocks = len(plan.samples) * len(plan.groups) * len(plan.channels) * -(-geometry.positions // plan.positions)
    return blocks * (1 if geometry.pointwise else geometry.kernel[0] + geometry.other_taps)


@lru_cache(maxsize=64)
def _indexed(geometry: Geometry, plan: Plan, small: bool) -> list[tuple[Index, Block]]:
    """The blocks of a forward product, each with its outputs' index: in (N, G, F, positions) where they are a run."""
    flat = _positionwise(geometry)
    blocks: list[tuple[Index, Block]] = []
    for stack in plan.stacks():
        for block in stack:
            if flat or small or not plan.alone:
                samples: int | slice = slice(*block.samples)
            else:
                samples = block.samples[0]
            cells = (slice(*block.run),) if flat or small or plan.alone else tuple(slice(*side) for side in block.box)
            blocks.append(((samples, slice(*block.groups), ALL, *cells), block))
    return blocks


@lru_cache(maxsize=1024)
def planned(geometry: Geometry, purpose: str, bounds: Limits) -> tuple[Plan, int]:
    """Cut a product within bounds; return the plan, and the elements of workspace that it needs."""

    def cut(elements: int) -> Plan:
        whole = 4 * geometry.weights > bounds.room
        return _plan(geometry, purpose, elements, bounds.enough, _least(bounds), whole, bounds.run)

    return fitted(cut, lambda plan: _need(geometry, purpose, plan), bounds)


def _least(bounds: Limits) -> int:
    """The fewest blocks to cut a product into."""
    return 1 if bounds.whole else bounds.least


def _mirrors(geometry: Geometry, bounds: Limits) -> bool:
    """Whether the input gradient is the forward product of the mirrored convolution: its filters are a copy."""
    if not geometry.dense or 4 * geometry.weights > bounds.room:
        return False
    left = beside_filters(geometry, bounds)
    return planned(geometry.mirrored, "forward", left)[1] <= left.room


def work(geometry: Geometry, purpose: str, bounds: Limits) -> Work:
    """Say what a product takes."""
    if purpose == "input_grad" and _mirrors(geometry, bounds):
        return of_mirrored(work, geometry, bounds)
    plan, need = planned(geometry, purpose, bounds)
    sizes, rest = _block(geometry, plan), geometry.other_taps
    n, groups, channels = sizes.counts
    cells = geometry.batch * geometry.positions
    row, blocks = geometry.out[-1], len(plan.taps)
    apart = 1.5 if geometry.stride[-1] > 1 else 1
    elements = calls = 0.0
    if plan.small:
        elements += copied(geometry.in_channels * geometry.taps * cells, row) * apart
        elements += copied(geometry.batch * geometry.in_channels * math.prod(geometry.padded), geometry.padded[-1])
        calls += 2
    elif not geometry.pointwise or (n > 1 and not _positionwise(geometry)):
        planned_strips = strips_of(geometry, sizes.box)
        rows = planned_strips.sizes[0] / max(1, sizes.rows) * planned_strips.lanes
        elements += copied(geometry.in_channels * rest * rows * cells, row) * apart
        calls += 2 * planned_strips.lanes * rest
    if (most := max(end - start for start, end in plan.taps)) > 1 and not plan.small:
        elements += geometry.in_channels * geometry.taps * cells
        calls += most * blocks
    outputs, row = geometry.out_channels * cells, geometry.positions if plan.small else row
    if purpose == "forward":
        elements += (blocks - 1) * outputs + (0 if n == 1 or _positionwise(geometry) else copied(outputs, row))
        lines = geometry.group_out
    elif purpose == "input_grad":
        # What is gathered forward is zeroed and added up here.
        elements *= 2
        elements += 0 if n == 1 else copied(outputs, row)
        lines = geometry.group_in * most * rest
    else:
        elements += 0 if n == 1 else copied(outputs, row)
        lines = min(geometry.group_out, geometry.group_in * most * rest)
    calls += 4 + 3 * blocks
    positions = sizes.run[1]
    count = len(plan.samples) * len(plan.groups) * len(plan.channels) * -(-geometry.positions // max(1, positions))
    shape = {"samples": n, "groups": groups, "channels": channels, "positions": positions}
    calls = AT_ONCE if _few(geometry) else calls * count
    operations = geometry.operations * (AWAKE if bounds.whole else 1)
    return Work(narrow(operations, lines), elements, 0, calls, need, shape)


@lru_cache(maxsize=1024)
def chain(geometry: Geometry, purpose: str, backend: Backend, bounds: Limits) -> int:
    """How many roundings a product of finite numbers goes through on its way into a result, its own among them."""
    if purpose == "weight_grad":
        if backend.strided and _all_laid(geometry) is not None:
            return geometry.batch * geometry.positions
        plan, _ = planned(geometry, purpose, bounds)
        runs = sum(1 for _ in boxes(geometry.out, plan.positions))
        return _block(geometry, plan).length + -(-len(plan.samples) // plan.sums) * runs + plan.sums
    if purpose == "input_grad":
        own = geometry.unstrided.mirrored
        laid = backend.strided and _all_laid(own, geometry.stride) is not None
        if not laid and not _mirrors(geometry, bounds):
            return geometry.group_out + 2 * geometry.taps
        return own.group_in * own.taps if laid else chain(own, "forward", backend, beside_filters(geometry, bounds))
    if backend.strided and _all_laid(geometry) is not None:
        return geometry.group_in * geometry.taps
    plan, _ = planned(geometry, purpose, bounds)
    most = max(end - start for start, end in plan.taps)
    return geometry.group_in * most * geometry.other_taps + len(plan.taps)


def _block(geometry: Geometry, plan: Plan) -> Block:
    """The largest block of a plan."""

    def most(ranges: tuple[Range, ...]) -> Range:
        return 0, max((end - start for start, end in ranges), default=0)

    box = largest(geometry.out, plan.positions)
    run = (0, math.prod(end for _, end in box))
    return Block(most(plan.samples), most(plan.groups), most(plan.channels), run, box)


def _need(geometry: Geometry, purpose: str, plan: Plan) -> int:
    """Elements of workspace: of a block, and of what all blocks share."""
    block = _block(geometry, plan)
    n, groups, channels = block.counts
    rest, outputs = geometry.other_taps, groups * geometry.group_out * block.length
    most = max(end - start for start, end in plan.taps)
    columns = groups * channels * most * rest * block.length if most > 1 or purpose == "input_grad" else 0
    bare = geometry.pointwise and n == 1
    strips = 0 if bare and purpose != "input_grad" else strips_of(geometry, block.box).elements(block)
    if plan.small:
        strips = max(strips, n * groups * channels * math.prod(geometry.padded))
        columns = groups * channels * geometry.taps * block.length
    copies = geometry.weights if len(plan.taps) > 1 else 0
    if purpose == "forward":
        if _positionwise(geometry):
            return copies
        return strips + columns + outputs * ((n > 1) + (len(plan.taps) > 1)) + copies
    values = outputs if n > 1 else 0
    if purpose == "input_grad":
        return strips + columns + values + copies
    own = groups * geometry.group_out * channels * rest
    sums = own * geometry.kernel[0] * (2 if len(plan.taps) > 1 else 1) + own * most
    parts = plan.sums * geometry.weights if plan.sums > 1 else 0
    return strips + columns + values + sums + parts


def _plan(
    geometry: Geometry, purpose: str, elements: int, enough: int, least: int, whole: bool = False, run: int = 0
) -> Plan:
    """Cut a product: "forward", "input_grad" or "weight_grad".

    A block's columns hold at most `elements`; more than `enough` columns make no product faster; and there are at least
    `least` blocks to share out, where the sizes allow. With `whole`, all taps are taken together, so that filters stay
    as they lie in memory. Where `run` is not 0, sums are to be short: taps are added up afterwards, and a weight
    gradient's blocks have at most so many positions each, or a row.
    """
    fewest = max(1, min(FEWEST_COLUMNS, elements >> 10))
    columns = max(1, min(enough, geometry.batch * geometry.positions))
    rows = max(1, elements // columns)
    rest = geometry.other_taps
    together = geometry.kernel[0]
    if not whole and (run or geometry.batch * geometry.positions >= REUSE * geometry.group_out):
        # Of the gradients, few samples leave channels to be shared out, and a block with fewer of them.
        cuts = 1 if purpose == "forward" else -(-least // max(1, geometry.batch))
        together = min(together, -(-FEWEST_ROWS // (-(-geometry.group_in // cuts) * rest)))
    deep = rest * together
    groups = pieces(geometry.groups, rows // (geometry.group_in * deep))
    channels = geometry.group_in if purpose == "forward" else max(1, min(geometry.group_in, rows // deep))
    if _positionwise(geometry):
        positions, most = geometry.positions, elements // channels
    else:
        height = max(end - start for start, end in groups) * channels * deep
        positions = elements // height
        # Strips hold the rows of all first taps: under a tall kernel more than the columns, and bounded with them.
        across = geometry.positions // geometry.out[0]
        reach = (geometry.kernel[0] - 1) * geometry.dilation[0]
        rows = max(1, positions // across) * min(geometry.stride[0], geometry.kernel[0]) + reach
        strips = height // together * min(across, max(1, positions)) * rows
        positions = most = max(fewest, min(positions, positions * 4 * elements // strips))
    if run and purpose == "weight_grad":
        positions, most, enough = min(positions, run), min(most, run), min(enough, run)
    if _positionwise(geometry) and purpose != "weight_grad":
        samples = geometry.batch
    elif 2 * geometry.positions <= enough:
        # What several samples share is copied in short rows, and wants blocks to be larger.
        samples = min(most // geometry.positions, -(-2 * enough // geometry.positions))
    else:  # and is copied once more than what one has
        samples = 1
    taps = pieces(geometry.kernel[0], together)
    # Too few blocks to share out: cut the samples finer, and what is left to cut after that.
    stacks = len(groups) * len(pieces(geometry.group_in, channels))
    wanted = -(-least // stacks)
    cut_samples = cut(geometry.batch, samples, wanted)
    if purpose == "forward":
        short = -(-least // max(1, len(groups) * len(cut_samples)))
        positions = min(positions, max(fewest, -(-geometry.positions // short)))
        return _with_small(geometry, Plan(geometry.out, cut_samples, groups, ((0, channels),), taps, positions))
    sums = len(cut_samples)
    if purpose == "weight_grad":
        # Partial sums cost memory: at most four blocks' worth.
        weights = geometry.out_channels * geometry.group_in * geometry.taps
        sums = max(1, min(sums, wanted, 4 * elements // weights))
    cut_channels = cut(geometry.group_in, channels, -(-least // max(1, len(groups) * sums)))
    plan = Plan(geometry.out, cut_samples, groups, cut_channels, taps, positions, sums)
    return plan if purpose == "input_grad" else _with_small(geometry, plan)


def _with_small(geometry: Geometry, plan: Plan) -> Plan:
    """Say whether samples are small: all taps are taken together, and copies of all windows save longer ones."""
    block = _block(geometry, plan)
    whole = block.counts[0] > 1 and block.length == block.counts[0] * geometry.positions
    if not whole or geometry.kernel[0] == 1 or len(plan.taps) > 1 or not _viewed(geometry):
        return plan
    strips = strips_of(geometry, block.box)
    # Rows of the taps of the first dimension that strips would share, beside the rows of results that become long.
    shared = geometry.kernel[0] - strips.lanes * strips.sizes[0] / geometry.out[0]
    return replace(plan, small=geometry.group_in * geometry.other_taps * shared < geometry.group_out)


def _positionwise(geometry: Geometry) -> tuple[int, ...]:
    """The flattened positions, where a sample is its own columns (a 1x1 layer with enough of them), or nothing."""
    bare = geometry.pointwise and geometry.positions >= POINTWISE_COLUMNS
    return (geometry.positions,) if bare else ()
