"""The gradients by `gemm`, which come from the same product of filters and columns as the output.

Axes, in this order: n samples, g groups, c channels of a group; f filters of a group, r rows of the columns,
l positions of a block, flattened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Range, Ranges, pieces
from ..spec.remembered import remembered
from ..spec.sequences import FEW, Made, Product, kept
from .columns import Block, add_columns, columns_of, gather, no_strips, scatter
from .gemm_forward import filter_matrices
from .gemm_plan import Cut, Plan
from .summing import correlate, in_runs
from .window_views import block_columns

Share = tuple[tuple[Any, ...], Sequence[Block]]
"""The index of a part of a result, and the blocks whose results are added up to it."""


def input_grad_by_strips(cut: Cut, dout: Array, w: Array) -> Array:
    """Compute the gradient of the input: its columns are added to strips, and the strips to cells."""
    geometry, backend, plan, least = cut
    xp = backend.xp
    dout = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
    filters = [xp.permute_dims(matrix, (0, 2, 1)) for matrix in filter_matrices(geometry, backend, w, plan)]

    def compute(blocks: Sequence[Block], target: Array, workspace: Workspace) -> Array:
        groups = slice(*blocks[0].groups)
        matrices = [
            matrix[groups, _rows(geometry, blocks[0], taps), :] for taps, matrix in zip(plan.taps, filters, strict=True)
        ]
        grad = backend.zeroed(target)
        for block in blocks:
            values = _values(backend, dout, block, workspace)
            strips = no_strips(geometry, backend, block, workspace)
            for taps, matrix in zip(plan.taps, matrices, strict=True):
                columns = workspace("columns", (*matrix.shape[:2], block.length))
                columns = backend.product(matrix, values, columns)
                strips = add_columns(geometry, backend, strips, columns, block, taps)
            grad = scatter(geometry, backend, strips, grad, block)
        return grad

    shape = (geometry.batch, geometry.groups, geometry.group_in, *geometry.size)
    grad = backend.empty(shape, like=dout, last=2 * geometry.channels_last)
    return xp.reshape(backend.fill(grad, _shares_of_cells(plan), compute, least), geometry.x_shape)


def weight_grad_by_blocks(cut: Cut, dout: Array, x: Array) -> Array:
    """Compute the gradient of the filters: the sum over blocks of products of the output's gradient and columns."""
    geometry, backend, plan, least = cut
    xp = backend.xp
    x = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
    dout = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
    small = backend.strided and plan.small

    def compute(blocks: Sequence[Block], target: Array, workspace: Workspace) -> Array:
        _, groups, channels = blocks[0].counts
        sums: list[Array] = []
        for block in blocks:
            values = _values(backend, dout, block, workspace, small)
            strips = None if small else gather(geometry, backend, x, block, workspace)
            for i, taps in enumerate(plan.taps):
                if small:
                    columns = block_columns(geometry, backend, x, block, workspace)
                else:
                    columns = columns_of(geometry, backend, strips, block, taps, workspace)
                # BLAS is faster with the larger matrix first. If columns are first, their sum is transposed later.
                first, second = (values, columns) if _filters_first(geometry, taps, channels) else (columns, values)
                shape = (groups, first.shape[1], second.shape[1])
                if i == len(sums):
                    into = target if shape == target.shape else workspace(f"sum {i}", shape)
                    sums.append(correlate(backend, first, second, into))
                else:
                    part = correlate(backend, first, second, workspace("product", shape))
                    sums[i] = backend.add(sums[i], (...,), part)
        return _joined(cut, sums, target, (groups, channels), workspace)

    parts, shares = len(_sums(plan)), _shares_of_filters(geometry, plan)
    shape = (parts, geometry.groups, geometry.group_out, geometry.group_in * geometry.taps)
    total = backend.fill(backend.empty(shape, like=x), shares, in_runs(backend, compute), least)
    return xp.reshape(total if parts == 1 else xp.sum(total, axis=0), geometry.w_shape)


def _sums(plan: Plan) -> Ranges:
    """Return, for each partial sum of a weight gradient, which of the ranges of samples it adds up."""
    return pieces(len(plan.samples), -(-len(plan.samples) // plan.sums))


@remembered(lambda shares: sum(kept(blocks) for _, blocks in shares[: kept(shares)]))
def _shares_of_cells(plan: Plan) -> Sequence[Share]:
    """Return the shares of an input gradient: one for each range of samples, groups and channels."""

    def share(parts: tuple[Range, Range, Range]) -> Share:
        return (*(slice(*part) for part in parts), ...), plan.stack((parts[0],), *parts[1:])

    return _kept_if_few(Made(Product(plan.samples, plan.groups, plan.channels), share))


@remembered(lambda shares: sum(kept(blocks) for _, blocks in shares[: kept(shares)]))
def _shares_of_filters(geometry: Geometry, plan: Plan) -> Sequence[Share]:
    """Return the shares of a weight gradient.

    If there are too few groups and channels for all threads, the samples are divided too, with one partial sum for each
    share of them.
    """
    sums = _sums(plan)

    def share(chosen: tuple[int, Range, Range]) -> Share:
        i, groups, channels = chosen
        blocks = plan.stack(plan.samples[slice(*sums[i])], groups, channels)
        return (i, slice(*groups), ALL, _rows(geometry, blocks[0], (0, geometry.kernel[0]))), blocks

    return _kept_if_few(Made(Product(range(len(sums)), plan.groups, plan.channels), share))


def _kept_if_few(shares: Sequence[Share]) -> Sequence[Share]:
    """Make all shares and their blocks now if these are few; the first share has the most."""
    if not shares or len(shares) * len(shares[0][1]) > FEW:
        return shares
    return tuple((index, tuple(blocks)) for index, blocks in shares)


def _filters_first(geometry: Geometry, taps: Range, channels: int) -> bool:
    """Return whether there are at least as many filters as columns of these taps and channels have rows."""
    return geometry.group_out >= channels * (taps[1] - taps[0]) * geometry.other_taps


def _joined(cut: Cut, sums: list[Array], target: Array, counts: tuple[int, int], workspace: Workspace) -> Array:
    """Copy the sums of all ranges of taps side by side, as in `target`; `counts` are its groups and channels."""
    geometry, backend, plan, _ = cut
    xp, (groups, channels), rest = backend.xp, counts, geometry.other_taps
    parts = [
        part if _filters_first(geometry, taps, channels) else xp.permute_dims(part, (0, 2, 1))
        for taps, part in zip(plan.taps, sums, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    grad = workspace("grad", (groups, geometry.group_out, channels, geometry.kernel[0], rest))
    for taps, part in zip(plan.taps, parts, strict=True):
        part = xp.reshape(part, (groups, geometry.group_out, channels, taps[1] - taps[0], rest))
        grad = backend.write(grad, (ALL, ALL, ALL, slice(*taps), ALL), part)
    return xp.reshape(grad, target.shape)


def _rows(geometry: Geometry, block: Block, taps: Range) -> slice:
    """Return the slice of the rows of these taps' columns that belong to a block's channels."""
    first, end = block.channels
    rows = (taps[1] - taps[0]) * geometry.other_taps
    return slice(first * rows, end * rows)


def _values(backend: Backend, dout: Array, block: Block, workspace: Workspace, small: bool = False) -> Array:
    """Return a block of the output's gradient as a matrix (g, f, l).

    Its positions have the order of the columns from strips or, if `small`, of the columns of `block_columns`.
    """
    xp = backend.xp
    part = dout[(slice(*block.samples), slice(*block.groups), ALL, *(slice(*side) for side in block.box))]
    if block.counts[0] == 1:
        return xp.reshape(part[0, ...], (*part.shape[1:3], block.length))
    first, second = (0, 3) if small else (3, 0)
    part = xp.permute_dims(part, (1, 2, first, second, *range(4, part.ndim)))
    values = backend.write(workspace("values", part.shape), (...,), part)
    return xp.reshape(values, (*part.shape[:2], block.length))
