"""Matrix products of filters and columns of windows (im2col), in blocks that stay in cache.

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing" (2006), section
3.1, compute a convolution as one product of filters and columns. In blocks, this product takes little memory, its
columns stay in cache until they are used, and threads can share it. If the columns are also cut by taps of the first
dimension, few of them are copied (see `columns`), but the products must be added up.
"""

from __future__ import annotations

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.ranges import boxes
from .algorithm import Algorithm, remembered
from .budget import Budget, Work
from .gemm_forward import by_positions, by_strips, by_windows
from .gemm_gradients import input_grad_by_strips, weight_grad_by_blocks
from .gemm_plan import Cut, Plan, count_work, count_workspace, cut_blocks, is_positionwise, least_blocks
from .mirrored import beside_filters, mirrored
from .window_views import Windows, few_windows, forward_at_once, weight_grad_at_once


class Gemm(Algorithm):
    """Products of filters and columns of windows, block by block."""

    name = "gemm"
    order = 40
    vouches = True

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of a product."""
        if kind == Kind.INPUT_GRAD and self.mirrors(geometry, budget):
            return self.mirrored_work(geometry, budget, backend)
        plan, workspace = self.plan(kind, geometry, budget)
        windows = _few_windows(kind, geometry, backend, budget)
        if windows is not None:
            workspace = windows.elements + (geometry.weights if kind == Kind.INPUT_GRAD else 0)
        return count_work(kind, geometry, budget, plan, workspace, windows is not None)

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array:
        if (windows := _few_windows(Kind.FORWARD, geometry, backend, budget)) is not None:
            return forward_at_once(backend, windows, x, w, b)
        plan: Plan = self.plan(Kind.FORWARD, geometry, budget)[0]
        cut = Cut(geometry, backend, plan, least_blocks(budget))
        if is_positionwise(geometry):
            return by_positions(cut, x, w, b)
        if backend.strided and plan.small:
            return by_windows(cut, x, w, b)
        return by_strips(cut, x, w, b)

    def input_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, w: Array) -> Array | None:
        windows = _few_windows(Kind.INPUT_GRAD, geometry, backend, budget)
        if windows is not None or self.mirrors(geometry, budget):
            if not backend.all_finite(w):
                return None
            flipped = mirrored(geometry, backend, w)
            if windows is not None:
                return forward_at_once(backend, windows, dout, flipped, None)
            mirror = geometry.unstrided.mirrored
            return self.forward(mirror, backend, beside_filters(geometry, budget), dout, flipped, None)
        plan: Plan = self.plan(Kind.INPUT_GRAD, geometry, budget)[0]
        return input_grad_by_strips(Cut(geometry, backend, plan, least_blocks(budget)), dout, w)

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array:
        if (windows := _few_windows(Kind.WEIGHT_GRAD, geometry, backend, budget)) is not None:
            return weight_grad_at_once(backend, windows, dout, x)
        plan: Plan = self.plan(Kind.WEIGHT_GRAD, geometry, budget)[0]
        return weight_grad_by_blocks(Cut(geometry, backend, plan, least_blocks(budget)), dout, x)

    def mirrors(self, geometry: Geometry, budget: Budget) -> bool:
        """Return whether the input gradient is computed as the output of the mirrored convolution.

        It is if the stride is 1, and if the budget has space for the copy of the filters.
        """
        if not budget.mirrored or not geometry.dense or 4 * geometry.weights > budget.workspace_elements:
            return False
        budget = beside_filters(geometry, budget)
        return self.plan(Kind.FORWARD, geometry.mirrored, budget)[1] <= budget.workspace_elements

    def cut(self, kind: str, geometry: Geometry, budget: Budget, elements: int) -> Plan:
        """Cut a product so that the columns of a block hold at most so many elements."""
        return cut_blocks(kind, geometry, budget, elements)

    def workspace_elements(self, kind: str, geometry: Geometry, plan: Plan) -> int:
        """Count the elements of workspace that a plan takes."""
        return count_workspace(kind, geometry, plan)

    def roundings(self, kind: str, geometry: Geometry, backend: Backend, budget: Budget) -> int:
        """Count how often a term is rounded at most: in its block, and in the sums of blocks and taps."""
        return _roundings(self, kind, geometry, backend, budget)


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


@remembered(1024)
def _roundings(gemm: Gemm, kind: str, geometry: Geometry, backend: Backend, budget: Budget) -> int:
    """Return what `Gemm.roundings` returns."""
    at_once = _few_windows(kind, geometry, backend, budget) is not None
    if kind == Kind.INPUT_GRAD:
        mirror = geometry.unstrided.mirrored
        if at_once:
            return mirror.group_in * mirror.taps
        if not gemm.mirrors(geometry, budget):
            return geometry.group_out + 2 * geometry.taps
        return gemm.roundings(Kind.FORWARD, mirror, backend, beside_filters(geometry, budget))
    if at_once:
        return geometry.terms(kind)
    plan: Plan = gemm.plan(kind, geometry, budget)[0]
    if kind == Kind.FORWARD:
        return geometry.group_in * plan.taps_together * geometry.other_taps + len(plan.taps)
    runs = sum(1 for _ in boxes(geometry.out, plan.positions))
    return plan.largest_block.length + -(-len(plan.samples) // plan.sums) * runs + plan.sums
