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
from .columns import Block, add_columns, columns_of
from .gemm_plan import Cut, Plan
from .summing import correlate, in_runs

Share = tuple[tuple[Any, ...], Sequence[Block]]
"""The index of a part of a result, and the blocks whose results are added up to it."""


def input_grad_by_blocks(cut: Cut, dout: Array, w: Array) -> Array:
    """Compute the gradient of the input: its columns are added to cells."""
    geometry, backend, plan, least = cut
    xp = backend.xp
    dout = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
    filters = xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in * geometry.taps))
    filters = xp.permute_dims(filters, (0, 2, 1))

    def compute(blocks: Sequence[Block], target: Array, workspace: Workspace) -> Array:
        matrix = filters[slice(*blocks[0].groups), _rows(geometry, blocks[0]), :]
        grad = backend.zeroed(target)
        for block in blocks:
            columns = workspace("columns", (*matrix.shape[:2], block.length))
            columns = backend.product(matrix, _values(backend, dout, block, workspace), columns)
            grad = add_columns(geometry, backend, columns, grad, block, workspace)
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

    def compute(blocks: Sequence[Block], target: Array, workspace: Workspace) -> Array:
        _, groups, channels = blocks[0].counts
        rows = channels * geometry.taps
        # BLAS is faster with the larger matrix first. If columns are first, their sum is transposed in the end.
        columns_first = geometry.group_out < rows
        total = workspace("sum", (groups, rows, geometry.group_out)) if columns_first else target
        for number, block in enumerate(blocks):
            values = _values(backend, dout, block, workspace)
            columns = columns_of(geometry, backend, x, block, workspace)
            first, second = (columns, values) if columns_first else (values, columns)
            if number:
                product = correlate(backend, first, second, workspace("product", tuple(total.shape)))
                total = backend.add(total, (...,), product)
            else:
                total = correlate(backend, first, second, total)
        return xp.permute_dims(total, (0, 2, 1)) if columns_first else total

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
        return (i, slice(*groups), ALL, _rows(geometry, blocks[0])), blocks

    return _kept_if_few(Made(Product(range(len(sums)), plan.groups, plan.channels), share))


def _kept_if_few(shares: Sequence[Share]) -> Sequence[Share]:
    """Make all shares and their blocks now if these are few; the first share has the most."""
    if not shares or len(shares) * len(shares[0][1]) > FEW:
        return shares
    return tuple((index, tuple(blocks)) for index, blocks in shares)


def _rows(geometry: Geometry, block: Block) -> slice:
    """Return the slice of the rows of columns that belong to a block's channels."""
    first, end = block.channels
    return slice(first * geometry.taps, end * geometry.taps)


def _values(backend: Backend, dout: Array, block: Block, workspace: Workspace) -> Array:
    """Return a block of the output's gradient as a matrix (g, f, l), whose positions have the order of columns."""
    xp = backend.xp
    part = dout[(slice(*block.samples), slice(*block.groups), ALL, *(slice(*side) for side in block.box))]
    if block.counts[0] == 1:
        return xp.reshape(part[0, ...], (*part.shape[1:3], block.length))
    part = xp.permute_dims(part, (1, 2, 0, *range(3, part.ndim)))
    values = backend.write(workspace("values", part.shape), (...,), part)
    return xp.reshape(values, (*part.shape[:2], block.length))
