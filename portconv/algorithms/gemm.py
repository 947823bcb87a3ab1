"""Windows to columns in blocks that stay in cache, and a matrix product for each (im2col, never the whole matrix).

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing" (2006), section
3.1, cast a convolution as one product of filters and columns. Cutting that product into blocks bounds the memory, keeps
the columns in cache until they are used, and gives threads something to share. Cutting the columns by taps of the
first dimension saves most of the copies (see `columns`), at the price of adding up the products.

Axes, in this order: n samples, g groups, c channels of a group; f filters of a group, r rows of the columns,
l positions of a block, flattened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import NamedTuple

from ..backends import Array, Backend, Workspace
from ..geometry import Geometry, Range, boxes, cut, largest, pieces
from . import rolled
from .blocks import Limits, Work, beside_filters, copied, fitted, narrow, of_mirrored
from .columns import ALL, Block, Index, add_columns, columns_of, gather, no_strips, scatter, strips_of

FEWEST_COLUMNS = 64
"""With fewer columns a product spends its time preparing the filters, however well the block fits the cache."""
FEWEST_ROWS = 128
"""With fewer rows a product spends its time on its result, so that several taps are then taken together."""
POINTWISE_COLUMNS = 128
"""From here on a 1x1 layer needs no columns at all: each sample is its own right-hand side."""
FEW_CELLS = 1 << 13
"""Up to so many, a call takes longer than what it does."""
AT_ONCE = 5
"""Calls of a product of so few."""
AWAKE = 0.7
"""How long a product takes the library's own threads, which wait awake, of the time that it takes threads in blocks."""
REUSE = 16
"""Positions a filter must serve for each of its kind before reordering the filters costs less than copying columns."""


def objection(geometry: Geometry) -> str | None:
    """Say what is served where `geometry` is not; None where it is."""
    return None


def forward(geometry: Geometry, backend: Backend, bounds: Limits, x: Array, w: Array, b: Array | None) -> Array:
    if backend.strided and (laid := _all_laid(geometry)) is not None:
        return _at_once(geometry, backend, laid, x, w, b)
    xp = backend.xp
    flat = _positionwise(geometry)
    plan, _ = planned(geometry, "forward", bounds)
    if backend.rolls(_steps(geometry, plan)):
        return rolled.forward(geometry, backend, x, w, b)
    x = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
    filters = _filters(geometry, backend, w, plan)
    bias = None if b is None else xp.reshape(b, (geometry.groups, geometry.group_out, 1))

    def compute(block: Block, target: Array, workspace: Workspace) -> Array:
        samples, groups, _ = block.counts
        if flat:
            # Of the block's own cells: where rows do not follow one another in memory, this is a copy of them.
            part = x[(slice(*block.samples), slice(*block.groups), ALL, *(slice(*side) for side in block.box))]
            part = xp.reshape(part, (samples, groups, geometry.group_in, -1))
            value = backend.product(filters[0][None, slice(*block.groups), ...], part, target)
        elif small:
            columns = _columns(geometry, backend, x, block, workspace)
            room = workspace("out", (groups, geometry.group_out, block.length))
            value = backend.product(filters[0][slice(*block.groups), ...], columns, room)
        else:
            strips = gather(geometry, backend, x, block, workspace)
            shape = (groups, geometry.group_out, block.length)
            value = None
            for taps, matrix in zip(plan.taps, filters, strict=True):
                columns = columns_of(geometry, backend, strips, block, taps, workspace)
                chosen = matrix[slice(*block.groups), :, :]
                if value is None:
                    value = backend.product(chosen, columns, target if alone else workspace("out", shape))
                else:
                    value = backend.add(value, (...,), backend.product(chosen, columns, workspace("product", shape)))
        if bias is not None:
            value = backend.add(value, (...,), bias[slice(*block.groups), :, :])
        if flat or alone:
            return value
        if small:
            value = xp.reshape(value, (groups, geometry.group_out, samples, geometry.positions))
            return xp.permute_dims(value, (2, 0, 1, 3))
        value = xp.reshape(value, (groups, geometry.group_out, block.rows, samples, *target.shape[4:]))
        return xp.permute_dims(value, (3, 0, 1, 2, *range(4, value.ndim)))

    small = backend.strided and plan.small
    blocks = _indexed(geometry, plan, small)
    alone = plan.alone
    positions = (geometry.positions,) if flat or alone or small else geometry.out
    shape = (geometry.batch, geometry.groups, geometry.group_out, *positions)
    out = backend.empty(shape, like=x, last=2 * geometry.channels_last)
    return xp.reshape(backend.fill(out, blocks, compute, _least(bounds)), geometry.out_shape)


def input_grad(geometry: Geometry, backend: Backend, bounds: Limits, dout: Array, w: Array) -> Array:
    if 0 in geometry.x_shape:
        return backend.zeros(geometry.x_shape, like=dout)
    own = geometry.unstrided.mirrored
    laid = _all_laid(own, geometry.stride) if backend.strided else None
    # Cells beyond an edge of dout are no part of any sum, but zeros in the mirrored convolution: 0 times inf is nan.
    if (laid is not None or _mirrors(geometry, bounds)) and backend.all_finite(w):
        turned = mirrored(geometry, backend, w)
        if laid is not None:
            return _at_once(own, backend, laid, dout, turned, None)
        return forward(own, backend, beside_filters(geometry, bounds), dout, turned, None)
    xp = backend.xp
    plan, _ = planned(geometry, "input_grad", bounds)
    if backend.rolls(_steps(geometry, plan)):
        return rolled.input_grad(geometry, backend, dout, w)
    dout = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
    filters = [xp.permute_dims(matrix, (0, 2, 1)) for matrix in _filters(geometry, backend, w, plan)]

    def compute(blocks: tuple[Block, ...], target: Array, workspace: Workspace) -> Array:
        groups = slice(*blocks[0].groups)
        chosen = [
            matrix[groups, _rows(geometry, blocks[0], taps), :] for taps, matrix in zip(plan.taps, filters, strict=True)
        ]
        grad = backend.zeroed(target)
        for block in blocks:
            values = _values(backend, dout, block, workspace)
            strips = no_strips(geometry, backend, block, workspace)
            for taps, matrix in zip(plan.taps, chosen, strict=True):
                columns = workspace("columns", (*matrix.shape[:2], block.length))
                columns = backend.product(matrix, values, columns)
                strips = add_columns(geometry, backend, strips, columns, block, taps)
            grad = scatter(geometry, backend, strips, grad, block)
        return grad

    shares = []
    for blocks in plan.stacks():
        block = blocks[0]
        shares.append(((slice(*block.samples), slice(*block.groups), slice(*block.channels), ...), blocks))
    shape = (geometry.batch, geometry.groups, geometry.group_in, *geometry.size)
    grad = backend.empty(shape, like=dout, last=2 * geometry.channels_last)
    return xp.reshape(backend.fill(grad, shares, compute, _least(bounds)), geometry.x_shape)


class _Laid(NamedTuple):
    """How columns of whole samples are laid out: the padded cells, the input's place in them, a view of their windows.

    Attributes
    ----------
    cells, padded : tuple of int
        (n, g, c, *S), and that with its padding, and with zeros between cells that are to be spaced.
    inside : Index
        The cells in the padded ones.
    windows, steps : tuple of int
        The sizes of the view, (g, c, *K, n, *P), and its steps in elements.
    columns : tuple of int
        (g, r, l).
    """

    cells: tuple[int, ...]
    padded: tuple[int, ...]
    inside: Index
    windows: tuple[int, ...]
    steps: tuple[int, ...]
    columns: tuple[int, ...]


def _few(geometry: Geometry) -> bool:
    """Whether all columns together are so few that calls take longer than what they do."""
    cells = geometry.batch * geometry.in_channels * max(math.prod(geometry.padded), geometry.taps * geometry.positions)
    return 0 < cells <= FEW_CELLS and _viewed(geometry)


def _viewed(geometry: Geometry) -> bool:
    """Whether windows may be views of padded cells: strides of memory that mean nothing might overflow."""
    near = max(*geometry.stride, *geometry.dilation) <= FEW_CELLS
    return near and min(*geometry.before, *geometry.after) >= 0


@lru_cache(maxsize=1024)
def _laid(geometry: Geometry, batch: int, groups: int, channels: int, apart: tuple[int, ...] = ()) -> _Laid:
    """Lay out columns of so much of a geometry, whose input is to be spaced: the cells given lie so far `apart`."""
    padded, apart = (batch, groups, channels, *geometry.padded), apart or (1,) * geometry.dims
    # Of one cell any step will do, and steps may be large.
    inside = (
        slice(lo, lo + n, max(1, min(s, n))) for lo, n, s in zip(geometry.before, geometry.size, apart, strict=True)
    )
    of_sample, of_group, of_channel, *of_cells = (math.prod(padded[i + 1 :]) for i in range(len(padded)))
    taps = (step * d for step, d in zip(of_cells, geometry.dilation, strict=True))
    positions = (step * s for step, s in zip(of_cells, geometry.stride, strict=True))
    return _Laid(
        (batch, groups, channels, *(-(-n // s) for n, s in zip(geometry.size, apart, strict=True))),
        padded,
        (ALL, ALL, ALL, *inside),
        (groups, channels, *geometry.kernel, batch, *geometry.out),
        (of_group, of_channel, *taps, of_sample, *positions),
        (groups, channels * geometry.taps, batch * geometry.positions),
    )


@lru_cache(maxsize=1024)
def _all_laid(geometry: Geometry, apart: tuple[int, ...] = ()) -> _Laid | None:
    """Lay out all columns together, where they are few; None elsewhere."""
    return _laid(geometry, geometry.batch, geometry.groups, geometry.group_in, apart) if _few(geometry) else None


def _windows(backend: Backend, laid: _Laid, x: Array, workspace: Workspace) -> Array:
    """A view of all windows of `x` (n, g, c, *S): (g, c, *K, n, *P)."""
    padded = workspace("padded", laid.padded)
    if laid.padded != laid.cells:
        padded = backend.zeroed(padded)
    return backend.view(backend.write(padded, laid.inside, x), laid.windows, laid.steps)


def _columns(geometry: Geometry, backend: Backend, x: Array, block: Block, workspace: Workspace) -> Array:
    """The columns of a block of whole samples, in one copy: (g, c * K, l), with each sample's side by side."""
    laid = _laid(geometry, *block.counts)
    cells = x[(slice(*block.samples), slice(*block.groups), slice(*block.channels), ...)]
    columns = workspace("columns", laid.windows)
    columns = backend.write(columns, (...,), _windows(backend, laid, cells, workspace))
    return backend.xp.reshape(columns, laid.columns)


def _all_columns(backend: Backend, laid: _Laid, x: Array) -> Array:
    """All columns in one copy of a view: (G, c * K, N * P)."""
    xp = backend.xp
    return xp.reshape(_windows(backend, laid, xp.reshape(x, laid.cells), backend.workspace(x)), laid.columns)


def _at_once(geometry: Geometry, backend: Backend, laid: _Laid, x: Array, w: Array, b: Array | None) -> Array:
    """The forward product of few columns, all in one."""
    xp, columns = backend.xp, _all_columns(backend, laid, x)
    value = backend.product(xp.reshape(w, (geometry.groups, geometry.group_out, -1)), columns)
    if b is not None:
        value = backend.add(value, (...,), xp.reshape(b, (geometry.groups, geometry.group_out, 1)))
    if geometry.batch == 1 and not geometry.channels_last:
        return xp.reshape(value, geometry.out_shape)
    value = xp.reshape(value, (geometry.out_channels, geometry.batch, *geometry.out))
    out = backend.empty(geometry.out_shape, like=columns, last=geometry.channels_last)
    return backend.write(out, (...,), xp.permute_dims(value, (1, 0, *range(2, value.ndim))))


def mirrored(geometry: Geometry, backend: Backend, w: Array) -> Array:
    """The filters of the mirrored convolution: flipped, and input channels in the place of filters."""
    xp = backend.xp
    w = xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, *geometry.kernel))
    kernel = tuple(range(3, w.ndim))
    turned = xp.permute_dims(xp.flip(w, axis=kernel), (0, 2, 1, *kernel))
    # A copy, because BLAS takes no rows that run backwards.
    turned = backend.write(backend.empty(turned.shape, like=w), (...,), turned)
    return xp.reshape(turned, geometry.unstrided.mirrored.w_shape)


def weight_grad(geometry: Geometry, backend: Backend, bounds: Limits, dout: Array, x: Array) -> Array:
    xp = backend.xp
    if geometry.batch == 0:
        return backend.zeros(geometry.w_shape, like=x)
    if backend.strided and (laid := _all_laid(geometry)) is not None:
        columns = _all_columns(backend, laid, x)
        values = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, geometry.positions))
        values = xp.reshape(xp.permute_dims(values, (1, 2, 0, 3)), (geometry.groups, geometry.group_out, -1))
        return xp.reshape(backend.product(values, xp.permute_dims(columns, (0, 2, 1))), geometry.w_shape)
    plan, _ = planned(geometry, "weight_grad", bounds)
    if backend.rolls(_steps(geometry, plan)):
        return rolled.weight_grad(geometry, backend, dout, x)
    x = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
    dout = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
    rest, small = geometry.other_taps, backend.strided and plan.small

    def filters_first(taps: Range, channels: int) -> bool:
        return geometry.group_out >= channels * (taps[1] - taps[0]) * rest

    def compute(blocks: tuple[Block, ...], target: Array, workspace: Workspace) -> Array:
        _, groups, channels = blocks[0].counts
        sums: list[Array] = []
        for block in blocks:
            values = _values(backend, dout, block, workspace, small)
            strips = None if small else gather(geometry, backend, x, block, workspace)
            for i, taps in enumerate(plan.taps):
                if small:
                    columns = _columns(geometry, backend, x, block, workspace)
                else:
                    columns = columns_of(geometry, backend, strips, block, taps, workspace)
                # BLAS is faster with the larger side first; the sums of the others are turned at the end.
                first, second = (values, columns) if filters_first(taps, channels) else (columns, values)
                second = xp.permute_dims(second, (0, 2, 1))
                shape = (groups, first.shape[1], second.shape[2])
                if i == len(sums):
                    own = target if shape == target.shape else workspace(f"sum {i}", shape)
                    sums.append(backend.product(first, second, own))
                else:
                    sums[i] = backend.add(sums[i], (...,), backend.product(first, second, workspace("product", shape)))
        for i, taps in enumerate(plan.taps):
            sums[i] = sums[i] if filters_first(taps, channels) else xp.permute_dims(sums[i], (0, 2, 1))
        if len(sums) == 1:
            return sums[0]
        grad = workspace("grad", (groups, geometry.group_out, channels, geometry.kernel[0], rest))
        for taps, part in zip(plan.taps, sums, strict=True):
            own = xp.reshape(part, (groups, geometry.group_out, channels, taps[1] - taps[0], rest))
            grad = backend.write(grad, (ALL, ALL, ALL, slice(*taps), ALL), own)
        return xp.reshape(grad, target.shape)

    # Where groups and channels give too few blocks to share out, samples do, each share with a sum of its own.
    parts = pieces(len(plan.samples), -(-len(plan.samples) // plan.sums))
    shares = []
    for (i, part), groups, channels in product(enumerate(parts), plan.groups, plan.channels):
        blocks = tuple(plan.stack(plan.samples[slice(*part)], groups, channels))
        rows = _rows(geometry, blocks[0], (0, geometry.kernel[0]))
        shares.append(((i, slice(*groups), ALL, rows), blocks))
    shape = (len(parts), geometry.groups, geometry.group_out, geometry.group_in * geometry.taps)
    total = backend.fill(backend.empty(shape, like=x), shares, compute, _least(bounds))
    return xp.reshape(total if len(parts) == 1 else xp.sum(total, axis=0), geometry.w_shape)


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


def _filters(geometry: Geometry, backend: Backend, w: Array, plan: Plan) -> list[Array]:
    """The filters as a matrix for each range of taps of the first dimension: (G, f, r)."""
    rest = geometry.other_taps
    w = backend.xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, geometry.kernel[0], rest))
    shapes = [
        (geometry.groups, geometry.group_out, geometry.group_in * (end - start) * rest) for start, end in plan.taps
    ]
    return [
        backend.xp.reshape(w[:, :, :, slice(*taps), :], shape) for taps, shape in zip(plan.taps, shapes, strict=True)
    ]


def _rows(geometry: Geometry, block: Block, taps: Range) -> slice:
    """The rows of these taps' columns that belong to a block's channels."""
    first, end = block.channels
    deep = (taps[1] - taps[0]) * geometry.other_taps
    return slice(first * deep, end * deep)


def _values(backend: Backend, dout: Array, block: Block, workspace: Workspace, small: bool = False) -> Array:
    """A block of the output's gradient as a matrix: (g, f, l), in the order of the columns, or of `small` ones."""
    xp = backend.xp
    part = dout[(slice(*block.samples), slice(*block.groups), ALL, *(slice(*side) for side in block.box))]
    if block.counts[0] == 1:
        return xp.reshape(part[0, ...], (*part.shape[1:3], block.length))
    first, second = (0, 3) if small else (3, 0)
    part = xp.permute_dims(part, (1, 2, first, second, *range(4, part.ndim)))
    values = backend.write(workspace("values", part.shape), (...,), part)
    return xp.reshape(values, (*part.shape[:2], block.length))
