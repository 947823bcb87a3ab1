"""The output by `gemm`, in three ways: from cells without a copy, from windows of small samples, or from strips.

Axes, in this order: n samples, g groups, c channels of a group; f filters of a group, r rows of the columns,
l positions of a block, flattened.
"""

from __future__ import annotations

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL
from .columns import Block, columns_of, gather
from .gemm_plan import Cut, Plan, indexed_blocks
from .window_views import block_columns


def by_positions(cut: Cut, x: Array, w: Array, b: Array | None) -> Array:
    """Compute the output of a 1x1 layer, whose samples are matrices of columns without a copy."""
    geometry, backend, plan, least = cut
    xp, cells, bias = backend.xp, _cells(geometry, backend, x), _bias(geometry, backend, b)
    (filters,) = filter_matrices(geometry, backend, w, plan)

    def compute(block: Block, target: Array, workspace: Workspace) -> Array:
        samples, groups, _ = block.counts
        # This copies the cells of the block if their rows do not follow one another in memory.
        part = cells[(slice(*block.samples), slice(*block.groups), ALL, *(slice(*side) for side in block.box))]
        part = xp.reshape(part, (samples, groups, geometry.group_in, -1))
        value = backend.product(filters[None, slice(*block.groups), ...], part, target)
        return value if bias is None else backend.add(value, (...,), bias[slice(*block.groups), :, :])

    shape = (geometry.batch, geometry.groups, geometry.group_out, geometry.positions)
    out = backend.empty(shape, like=x, last=2 * geometry.channels_last)
    out = backend.fill(out, indexed_blocks(geometry, plan, True), compute, least)
    return xp.reshape(out, geometry.out_shape)


def by_windows(cut: Cut, x: Array, w: Array, b: Array | None) -> Array:
    """Compute the output of small samples, whose windows are copied to columns in one call."""
    geometry, backend, plan, least = cut
    xp, cells, bias = backend.xp, _cells(geometry, backend, x), _bias(geometry, backend, b)
    (filters,) = filter_matrices(geometry, backend, w, plan)

    def compute(block: Block, target: Array, workspace: Workspace) -> Array:
        samples, groups, _ = block.counts
        columns = block_columns(geometry, backend, cells, block, workspace)
        value = workspace("out", (groups, geometry.group_out, block.length))
        value = backend.product(filters[slice(*block.groups), ...], columns, value)
        if bias is not None:
            value = backend.add(value, (...,), bias[slice(*block.groups), :, :])
        value = xp.reshape(value, (groups, geometry.group_out, samples, geometry.positions))
        return xp.permute_dims(value, (2, 0, 1, 3))

    shape = (geometry.batch, geometry.groups, geometry.group_out, geometry.positions)
    out = backend.empty(shape, like=x, last=2 * geometry.channels_last)
    out = backend.fill(out, indexed_blocks(geometry, plan, True), compute, least)
    return xp.reshape(out, geometry.out_shape)


def by_strips(cut: Cut, x: Array, w: Array, b: Array | None) -> Array:
    """Compute the output from strips: for each range of taps of the first dimension a product, which are added up."""
    geometry, backend, plan, least = cut
    xp, cells, bias = backend.xp, _cells(geometry, backend, x), _bias(geometry, backend, b)
    filters, one_sample = filter_matrices(geometry, backend, w, plan), plan.one_sample

    def compute(block: Block, target: Array, workspace: Workspace) -> Array:
        samples, groups, _ = block.counts
        strips = gather(geometry, backend, cells, block, workspace)
        shape = (groups, geometry.group_out, block.length)
        value = None
        for taps, matrix in zip(plan.taps, filters, strict=True):
            columns = columns_of(geometry, backend, strips, block, taps, workspace)
            of_groups = matrix[slice(*block.groups), :, :]
            if value is None:
                value = backend.product(of_groups, columns, target if one_sample else workspace("out", shape))
            else:
                value = backend.add(value, (...,), backend.product(of_groups, columns, workspace("product", shape)))
        if bias is not None:
            value = backend.add(value, (...,), bias[slice(*block.groups), :, :])
        if one_sample:
            return value
        value = xp.reshape(value, (groups, geometry.group_out, block.rows, samples, *target.shape[4:]))
        return xp.permute_dims(value, (3, 0, 1, 2, *range(4, value.ndim)))

    positions = (geometry.positions,) if one_sample else geometry.out
    shape = (geometry.batch, geometry.groups, geometry.group_out, *positions)
    out = backend.empty(shape, like=x, last=2 * geometry.channels_last)
    out = backend.fill(out, indexed_blocks(geometry, plan, False), compute, least)
    return xp.reshape(out, geometry.out_shape)


def filter_matrices(geometry: Geometry, backend: Backend, w: Array, plan: Plan) -> list[Array]:
    """Return the filters as one matrix for each range of taps of the first dimension: (G, f, r)."""
    xp, rest = backend.xp, geometry.other_taps
    w = xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, geometry.kernel[0], rest))
    sizes = [geometry.group_in * (end - start) * rest for start, end in plan.taps]
    return [
        xp.reshape(w[:, :, :, slice(*taps), :], (geometry.groups, geometry.group_out, size))
        for taps, size in zip(plan.taps, sizes, strict=True)
    ]


def _cells(geometry: Geometry, backend: Backend, x: Array) -> Array:
    """Return the input with an axis of groups: (N, G, c, *S)."""
    return backend.xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))


def _bias(geometry: Geometry, backend: Backend, b: Array | None) -> Array | None:
    """Return a bias with an axis of groups: (G, f, 1)."""
    return None if b is None else backend.xp.reshape(b, (geometry.groups, geometry.group_out, 1))
