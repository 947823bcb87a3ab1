"""Matrix products of filters and columns of windows (im2col), in blocks that stay in cache.

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing" (2006), section
3.1, compute a convolution as one product of filters and columns. In blocks, this product takes little memory, its
columns stay in cache until they are used, and threads can share it.

Axes, in this order: n samples, g groups, c channels of a group; f filters of a group, r rows of the columns,
l positions of a block, flattened.
"""

from __future__ import annotations

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.ranges import ALL
from ..spec.remembered import remembered
from .algorithm import Algorithm
from .budget import Budget, Work
from .columns import Block, columns_of
from .gemm_gradients import input_grad_by_blocks, weight_grad_by_blocks
from .gemm_plan import Cut, Plan, count_work, count_workspace, cut_blocks, has_views, indexed_blocks, least_blocks
from .mirrored import beside_filters, mirrored
from .summing import additions, rounded
from .window_views import Windows, few_windows, forward_at_once, weight_grad_at_once

ADDED = 2
"""To add an element of a column to a cell takes as long as to copy so many."""
MIRRORED = {Kind.FORWARD: Kind.INPUT_GRAD, Kind.INPUT_GRAD: Kind.FORWARD, Kind.WEIGHT_GRAD: Kind.WEIGHT_GRAD}
"""The product of the mirrored convolution that is a product of a convolution of stride 1."""


class Gemm(Algorithm):
    """Products of filters and columns of windows, block by block."""

    name = "gemm"
    order = 40
    vouches = True

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of a product."""
        windows, copies = _few_windows(kind, geometry, backend, budget), 0
        mirrors = windows is None and self.mirrors(kind, geometry, budget)
        if mirrors or (windows is not None and kind == Kind.INPUT_GRAD):
            copies = geometry.weights
        if mirrors:
            kind, geometry, budget = MIRRORED[Kind(kind)], geometry.mirrored, beside_filters(geometry, budget)
        plan, workspace = self.plan(kind, geometry, budget)
        workspace = copies + (workspace if windows is None else windows.elements)
        work = count_work(kind, geometry, budget, plan, workspace, windows is not None)
        return work._replace(elements=work.elements + copies)

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array | None:
        if (windows := _few_windows(Kind.FORWARD, geometry, backend, budget)) is not None:
            return forward_at_once(backend, windows, x, w, b)
        if not self.mirrors(Kind.FORWARD, geometry, budget):
            return forward_by_blocks(self._cut_of(Kind.FORWARD, geometry, backend, budget), x, w, b)
        if not backend.all_finite(w):
            return None
        cut = self._cut_of(Kind.INPUT_GRAD, geometry.mirrored, backend, beside_filters(geometry, budget))
        out = input_grad_by_blocks(cut, x, mirrored(geometry, backend, w))
        return out if b is None else backend.add(out, (...,), backend.xp.reshape(b, (-1, *(1,) * geometry.dims)))

    def input_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, w: Array) -> Array | None:
        windows = _few_windows(Kind.INPUT_GRAD, geometry, backend, budget)
        if windows is None and not self.mirrors(Kind.INPUT_GRAD, geometry, budget):
            return input_grad_by_blocks(self._cut_of(Kind.INPUT_GRAD, geometry, backend, budget), dout, w)
        if not backend.all_finite(w):
            return None
        flipped = mirrored(geometry, backend, w)
        if windows is not None:
            return forward_at_once(backend, windows, dout, flipped, None)
        cut = self._cut_of(Kind.FORWARD, geometry.mirrored, backend, beside_filters(geometry, budget))
        return forward_by_blocks(cut, dout, flipped, None)

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array | None:
        if (windows := _few_windows(Kind.WEIGHT_GRAD, geometry, backend, budget)) is not None:
            return weight_grad_at_once(backend, windows, dout, x)
        if not self.mirrors(Kind.WEIGHT_GRAD, geometry, budget):
            return weight_grad_by_blocks(self._cut_of(Kind.WEIGHT_GRAD, geometry, backend, budget), dout, x)
        cut = self._cut_of(Kind.WEIGHT_GRAD, geometry.mirrored, backend, beside_filters(geometry, budget))
        grad = weight_grad_by_blocks(cut, x, dout)
        return mirrored(geometry.mirrored, backend, grad) if backend.all_finite(grad) else None

    def mirrors(self, kind: str, geometry: Geometry, budget: Budget) -> bool:
        """Return whether a product is computed as one of the mirrored convolution.

        It is if the stride is 1, if it then has fewer columns to copy or add, and if the budget has space for the copy
        of the filters. What is multiplied by zeros that only one of the two convolutions pads with must be finite. For
        a gradient of filters, the result says whether it is: then each window has a cell.
        """
        if kind == Kind.INPUT_GRAD:
            has_fewer_columns = geometry.pointwise or geometry.group_out <= ADDED * geometry.group_in
        else:
            has_fewer_columns = not geometry.pointwise and geometry.group_in > ADDED * geometry.group_out
        if not (has_fewer_columns and budget.mirrored and geometry.dense):
            return False
        mirror, budget = geometry.mirrored, beside_filters(geometry, budget)
        if 4 * geometry.weights > budget.workspace_elements or not mirror.positions:
            return False
        if kind == Kind.WEIGHT_GRAD and not (
            min(*mirror.before, *mirror.after) >= 0
            and all(apart <= size for apart, size in zip(geometry.dilation, geometry.size, strict=True))
        ):
            return False
        return self.plan(MIRRORED[Kind(kind)], mirror, budget)[1] <= budget.workspace_elements

    def _cut_of(self, kind: str, geometry: Geometry, backend: Backend, budget: Budget) -> Cut:
        """Return a product that is cut into blocks."""
        return Cut(geometry, backend, self.plan(kind, geometry, budget)[0], least_blocks(budget))

    def cut(self, kind: str, geometry: Geometry, budget: Budget, elements: int) -> Plan:
        """Cut a product so that the columns of a block hold at most so many elements."""
        return cut_blocks(kind, geometry, budget, elements)

    def workspace_elements(self, kind: str, geometry: Geometry, plan: Plan) -> int:
        """Count the elements of workspace that a plan takes."""
        return count_workspace(kind, geometry, plan)

    def roundings(self, kind: str, geometry: Geometry, backend: Backend, budget: Budget) -> int:
        """Count how often a term is rounded at most: in its block, and in the sums of blocks and taps."""
        return _roundings(self, kind, geometry, backend, budget)


def forward_by_blocks(cut: Cut, x: Array, w: Array, b: Array | None) -> Array:
    """Compute the output: for each block the product of filters and columns."""
    geometry, backend, plan, least = cut
    xp = backend.xp
    cells = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
    filters = xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in * geometry.taps))
    bias = None if b is None else xp.reshape(b, (geometry.groups, geometry.group_out, 1))

    def compute(block: Block, target: Array, workspace: Workspace) -> Array:
        samples, groups, _ = block.counts
        shape, of_groups, value = (
            (groups, geometry.group_out, block.length),
            filters[slice(*block.groups), :, :],
            target,
        )
        one_by_one = samples > 1 and has_views(Kind.FORWARD, geometry, samples)
        if one_by_one:
            columns = cells[(slice(*block.samples), slice(*block.groups), ALL, *(slice(*side) for side in block.box))]
            columns, shape = xp.reshape(columns, (samples, groups, geometry.group_in, -1)), tuple(target.shape)
        else:
            columns = columns_of(geometry, backend, cells, block, workspace)
            value = target if samples == 1 else workspace("out", shape)
        for start, end in plan.runs or ():
            if not start:
                value = backend.product(of_groups[:, :, :end], columns[..., :end, :], value)
                continue
            product = workspace("product", shape)
            product = backend.product(of_groups[:, :, start:end], columns[..., start:end, :], product)
            value = backend.add(value, (...,), product)
        if bias is not None:
            value = backend.add(value, (...,), bias[slice(*block.groups), :, :])
        if samples == 1 or one_by_one:
            return value
        value = xp.reshape(value, (groups, geometry.group_out, samples, -1))
        return xp.permute_dims(value, (2, 0, 1, 3))

    shape = (geometry.batch, geometry.groups, geometry.group_out, geometry.positions)
    out = backend.empty(shape, like=x, last=2 * geometry.channels_last)
    return xp.reshape(backend.fill(out, indexed_blocks(geometry, plan), compute, least), geometry.out_shape)


def _few_windows(kind: str, geometry: Geometry, backend: Backend, budget: Budget) -> Windows | None:
    """Return the windows of a product that are few enough for one copy, or None; those of mirrored filters, if any."""
    if not backend.strided:
        return None
    if kind != Kind.INPUT_GRAD:
        return few_windows(geometry, budget.workspace_elements)
    if not budget.mirrored:
        return None
    left = budget.workspace_elements - geometry.weights
    return few_windows(geometry.unstrided.mirrored, left, geometry.stride)


@remembered()
def _roundings(gemm: Gemm, kind: str, geometry: Geometry, backend: Backend, budget: Budget) -> int:
    """Return what `Gemm.roundings` returns."""
    if _few_windows(kind, geometry, backend, budget) is not None:
        mirror = geometry.unstrided.mirrored
        return mirror.group_in * mirror.taps if kind == Kind.INPUT_GRAD else geometry.terms(kind)
    if gemm.mirrors(kind, geometry, budget):
        kind, geometry, budget = MIRRORED[Kind(kind)], geometry.mirrored, beside_filters(geometry, budget)
    plan: Plan = gemm.plan(kind, geometry, budget)[0]
    if plan.runs is not None:
        return plan.runs.longest + len(plan.runs)
    if kind == Kind.INPUT_GRAD:
        return geometry.group_out + 2 * geometry.taps  # to strips, and to cells
    return rounded(plan.largest_block.length) + additions(plan.blocks_of_share) + plan.sums
