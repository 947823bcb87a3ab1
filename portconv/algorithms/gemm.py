"""Windows to columns in blocks that stay in cache, and one matrix product a block (im2col, never the whole matrix).

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing" (2006), section
3.1, cast a convolution as one product of filters and columns. Cutting that product into blocks bounds the memory, keeps
the columns in cache until they are used, and gives threads something to share.

Axes, in this order: n samples, g groups, c channels of a group; f filters of a group, r = c * prod(K) rows of a column,
l positions of a block, flattened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from ..backends import Array, Backend, Workspace
from ..geometry import Geometry, Range, boxes, pieces
from .columns import ALL, Block, gather, scatter

FEWEST_COLUMNS = 64
"""With fewer columns a product spends its time preparing the filters, however well the block fits the cache."""
POINTWISE_COLUMNS = 128
"""From here on a 1x1 layer needs no columns at all: each sample is its own right-hand side."""


def forward(geometry: Geometry, backend: Backend, x: Array, w: Array, b: Array | None) -> Array:
    xp = backend.xp
    flat = _positionwise(geometry)
    x = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *(flat or geometry.size)))
    filters = xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in * geometry.taps))
    bias = None if b is None else xp.reshape(b, (geometry.groups, geometry.group_out, 1))

    def compute(block: Block, target: Array, workspace: Workspace) -> Array:
        samples, groups, _ = block.counts
        chosen = filters[slice(*block.groups), :, :]
        if flat:
            part = x[slice(*block.samples), slice(*block.groups), :, slice(*block.run)]
            value = backend.product(chosen[None, ...], part, target)
        else:
            columns = gather(geometry, backend, x, block, workspace)
            shape = (groups, geometry.group_out, columns.shape[2])
            value = backend.product(chosen, columns, target if samples == 1 else workspace("out", shape))
        if bias is not None:
            value = backend.add(value, (...,), bias[slice(*block.groups), :, :])
        if flat or samples == 1:
            return value
        value = xp.reshape(value, (groups, geometry.group_out, samples, block.length))
        return xp.permute_dims(value, (2, 0, 1, 3))

    blocks = []
    for stack in _plan(geometry, "forward", *_limits(geometry, backend, x)).stacks():
        for block in stack:
            samples = block.samples[0] if block.counts[0] == 1 and not flat else slice(*block.samples)
            blocks.append(((samples, slice(*block.groups), ALL, slice(*block.run)), block))
    out = backend.empty((geometry.batch, geometry.groups, geometry.group_out, geometry.positions), like=x)
    return xp.reshape(backend.fill(out, blocks, compute, geometry.operations), geometry.out_shape)


def input_grad(geometry: Geometry, backend: Backend, dout: Array, w: Array) -> Array:
    xp = backend.xp
    flat = _positionwise(geometry)
    dout = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, geometry.positions))
    filters = xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in * geometry.taps))
    filters = xp.permute_dims(filters, (0, 2, 1))

    def compute(blocks: tuple[Block, ...], target: Array, workspace: Workspace) -> Array:
        groups = slice(*blocks[0].groups)
        chosen = filters[groups, _rows(geometry, blocks[0]), :]
        if flat:
            return backend.product(chosen[None, ...], dout[slice(*blocks[0].samples), groups, :, :], target)
        grad = backend.zeroed(target)
        for block in blocks:
            values = _values(backend, dout, block, workspace)
            columns = workspace("columns", (*chosen.shape[:2], values.shape[2]))
            columns = backend.product(chosen, values, columns)
            grad = scatter(geometry, backend, columns, grad, block, workspace)
        return grad

    shares = []
    for blocks in _plan(geometry, "input_grad", *_limits(geometry, backend, dout)).stacks():
        block = blocks[0]
        shares.append(((slice(*block.samples), slice(*block.groups), slice(*block.channels), ...), blocks))
    grad = backend.empty((geometry.batch, geometry.groups, geometry.group_in, *(flat or geometry.size)), like=dout)
    return xp.reshape(backend.fill(grad, shares, compute, geometry.operations), geometry.x_shape)


def weight_grad(geometry: Geometry, backend: Backend, dout: Array, x: Array) -> Array:
    xp = backend.xp
    x = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
    dout = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, geometry.positions))

    if geometry.batch == 0:
        return backend.zeros(geometry.w_shape, like=x)

    def compute(blocks: tuple[Block, ...], target: Array, workspace: Workspace) -> Array:
        total = None
        for block in blocks:
            values = _values(backend, dout, block, workspace)
            rows = xp.permute_dims(gather(geometry, backend, x, block, workspace), (0, 2, 1))
            if total is None:
                total = backend.product(values, rows, target)
            else:
                part = backend.product(values, rows, workspace("product", target.shape))
                total = backend.add(total, (...,), part)
        return total

    plan = _plan(geometry, "weight_grad", *_limits(geometry, backend, x))
    # Where groups and channels give too few blocks to share out, samples do, each share with a sum of its own.
    parts = pieces(len(plan.samples), -(-len(plan.samples) // plan.sums))
    shares = []
    for (i, part), groups, channels in product(enumerate(parts), plan.groups, plan.channels):
        blocks = tuple(plan.stack(plan.samples[slice(*part)], groups, channels))
        shares.append(((i, slice(*groups), ALL, _rows(geometry, blocks[0])), blocks))
    sums = (len(parts), geometry.groups, geometry.group_out, geometry.group_in * geometry.taps)
    total = backend.fill(backend.empty(sums, like=x), shares, compute, geometry.operations)
    return xp.reshape(total if len(parts) == 1 else xp.sum(total, axis=0), geometry.w_shape)


@dataclass(frozen=True)
class Plan:
    """How a product is cut: ranges of samples, groups and channels of a group, and positions a block.

    `sums` is into how many partial sums a weight gradient is cut.
    """

    out: tuple[int, ...]
    samples: tuple[Range, ...]
    groups: tuple[Range, ...]
    channels: tuple[Range, ...]
    positions: int
    sums: int = 1

    def stack(self, samples: tuple[Range, ...], groups: Range, channels: Range) -> Iterator[Block]:
        """The blocks that cover all positions of these samples, groups and channels."""
        for part in samples:
            for run, box in boxes(self.out, self.positions):
                yield Block(part, groups, channels, run, box)

    def stacks(self) -> Iterator[tuple[Block, ...]]:
        """One stack for each range of samples, groups and channels."""
        for samples, groups, channels in product(self.samples, self.groups, self.channels):
            yield tuple(self.stack((samples,), groups, channels))


def _limits(geometry: Geometry, backend: Backend, like: Array) -> tuple[int, int, int]:
    elements = backend.block_bytes * 8 // backend.xp.finfo(like.dtype).bits
    return elements, backend.block_columns, backend.least_blocks(geometry.operations)


@lru_cache(maxsize=1024)
def _plan(geometry: Geometry, purpose: str, elements: int, enough: int, least: int) -> Plan:
    """Cut a product: "forward", "input_grad" or "weight_grad".

    A block's columns hold at most `elements`; more than `enough` columns make no product faster; and there are at least
    `least` blocks to share out, where the sizes allow.
    """
    columns = max(1, min(enough, geometry.batch * geometry.positions))
    rows = max(1, elements // columns)
    groups = pieces(geometry.groups, rows // (geometry.group_in * geometry.taps))
    channels = geometry.group_in if purpose == "forward" else max(1, min(geometry.group_in, rows // geometry.taps))
    if _positionwise(geometry):
        positions = geometry.positions
        samples = geometry.batch if purpose != "weight_grad" else -(-min(enough, elements // channels) // positions)
    else:
        height = (groups[0][1] - groups[0][0]) * channels * geometry.taps
        positions = max(FEWEST_COLUMNS, elements // height)
        samples = min(positions // geometry.positions, -(-enough // geometry.positions))
    # Too few blocks to share out: cut the samples finer, and what is left to cut after that.
    stacks = len(groups) * len(pieces(geometry.group_in, channels))
    wanted = -(-least // stacks)
    cut_samples = _cut(geometry.batch, samples, wanted)
    if purpose == "forward":
        short = -(-least // max(1, len(groups) * len(cut_samples)))
        positions = min(positions, max(FEWEST_COLUMNS, -(-geometry.positions // short)))
        return Plan(geometry.out, cut_samples, groups, ((0, channels),), positions)
    sums = len(cut_samples)
    if purpose == "weight_grad":
        # Partial sums cost memory: at most four blocks' worth.
        weights = geometry.out_channels * geometry.group_in * geometry.taps
        sums = max(1, min(sums, wanted, 4 * elements // weights))
    cut_channels = _cut(geometry.group_in, channels, -(-least // max(1, len(groups) * sums)))
    return Plan(geometry.out, cut_samples, groups, cut_channels, positions, sums)


def _cut(total: int, most: int, least: int) -> tuple[Range, ...]:
    """Cut `range(total)` into ranges of at most `most`, and into at least `least` of them where there are so many."""
    return pieces(total, max(1, min(most, -(-total // least))))


def _positionwise(geometry: Geometry) -> tuple[int, ...]:
    """The flattened positions, where a sample is its own columns (a 1x1 layer with enough of them), or nothing."""
    bare = geometry.pointwise and geometry.positions >= POINTWISE_COLUMNS
    return (geometry.positions,) if bare else ()


def _rows(geometry: Geometry, block: Block) -> slice:
    """The rows of a column that belong to a block's channels."""
    first, end = block.channels
    return slice(first * geometry.taps, end * geometry.taps)


def _values(backend: Backend, dout: Array, block: Block, workspace: Workspace) -> Array:
    """A block of the output's gradient as a matrix: (g, f, n * l)."""
    groups, run = slice(*block.groups), slice(*block.run)
    if block.counts[0] == 1:
        return dout[block.samples[0], groups, :, run]
    part = backend.xp.permute_dims(dout[slice(*block.samples), groups, :, run], (1, 2, 0, 3))
    values = backend.write(workspace("values", part.shape), (...,), part)
    return backend.xp.reshape(values, (*part.shape[:2], part.shape[2] * part.shape[3]))
