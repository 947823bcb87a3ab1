"""Windows to columns in blocks that stay in cache, and a matrix product for each (im2col, never the whole matrix).

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing" (2006), section
3.1, cast a convolution as one product of filters and columns. Cutting that product into blocks bounds the memory, keeps
the columns in cache until they are used, and gives threads something to share. Cutting the columns by taps of the
first dimension saves most of the copies (see `columns`), at the price of adding up the products.

Axes, in this order: n samples, g groups, c channels of a group; f filters of a group, r rows of the columns,
l positions of a block, flattened.
"""

from __future__ import annotations

from itertools import product

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Range, pieces
from . import tap_loop as rolled
from .budget import Limits
from .columns import Block, add_columns, columns_of, gather, no_strips, scatter
from .gemm_plan import Plan, _indexed, _least, _mirrors, _positionwise, _steps, planned
from .gemm_plan import chain as chain
from .gemm_plan import work as work
from .mirrored import beside_filters, mirrored
from .window_views import _all_columns, _all_laid, _at_once, _columns


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
