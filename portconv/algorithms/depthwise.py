"""The algorithm for one channel in each group: all taps are multiplied by shifted lines of padded planes.

If a group has one channel, only the kernel's taps are added up, and columns, which copy each cell once for every tap,
would cost more than the arithmetic. So the input is copied once, into planes with their padding. With a stride, the
planes are split into phases. Each output then has the place of the cell that its first tap reads, and each tap reads
one long line, shifted by a constant. The few places between rows are computed too, and skipped in the end.

The shifted lines of the taps of all dimensions but the first are copied side by side, row after row. The taps of the
first dimension read the rows that follow. So the cells that all taps of a row of outputs read are one matrix, and need
no copy: Cho and Brand, "MEC: memory-efficient convolution" (ICML 2017), section 3. If rows are too short for one
product each, all rows together are one line, and the lines of the first dimension's taps are copied side by side, too.
The gradient of the filters takes the same steps. That of the input is an output, or one for each phase of the stride.

Cells that belong to no output are multiplied too: in places that are skipped, or by a zero in place of `dout`. If the
filters or their gradient are not finite, this could change the result, and so the algorithm does not vouch for it.

Axes, in this order: g groups; h lines, one for each row of the first dimension or a single one; f filters of a group;
t taps, of all dimensions or of all but the first; l places of a line, flattened: with n samples, (n, P2, ..., Pd) if a
line is a row, and (P1, n, P2, ..., Pd) if it is all rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..backends import Array, Backend, Workspace
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.ranges import ALL, Range, cut
from ..spec.sequences import Made, Product
from .algorithm import Algorithm
from .budget import NO_WORK, Budget, Work, copied
from .columns import gather
from .depthwise_plan import count_work, count_workspace, cut_planes
from .depthwise_planes import Lines, Planes, Task, stack_of, tasks_of
from .mirrored import mirrored, phases_of
from .summing import correlate, in_runs

MANY_TAPS = 1024
"""With so many taps, their indices would take too much memory."""
Share = tuple[tuple[Any, ...], Sequence[Task]]
"""The index of a part of a result, and the blocks whose results are added up to it."""


class Depthwise(Algorithm):
    """Products of filters and shifted lines of padded planes, for one channel in each group."""

    name = "depthwise"
    order = 30

    def objection(self, geometry: Geometry, dtype: Dtype, backend: Backend) -> str | None:
        """Support one channel in each group, and few taps, because plans keep indices for each tap."""
        if geometry.group_in == 1 and geometry.taps < MANY_TAPS:
            return None
        return f"one channel a group, and fewer than {MANY_TAPS} taps"

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of a product."""
        if kind != Kind.INPUT_GRAD:
            return count_work(kind, geometry, *self.plan(kind, geometry, budget))
        phases, (budget, beside) = phases_of(_with_one_filter(geometry)), _beside_phase(geometry, budget)
        if not phases:
            return NO_WORK
        work = self.work(Kind.FORWARD, phases[0][0], budget, backend)
        # Each tap is one of a single phase.
        filters, products = geometry.group_out, geometry.group_out * len(phases)
        share, operations = filters * geometry.taps / phases[0][0].taps, work.operations
        elements = work.elements * share + geometry.weights
        if not _is_one_product(geometry):
            elements += filters * copied(math.prod(geometry.x_shape), geometry.out[-1])
        workspace, steps = work.workspace_elements + beside, work.steps * products
        return Work(operations * share, elements, 0, work.calls * products, workspace, work.block, steps)

    def cut(self, kind: str, geometry: Geometry, budget: Budget, elements: int) -> Planes:
        """Cut a product so that the arrays of a block hold about `elements` elements."""
        return cut_planes(kind, geometry, budget, elements)

    def workspace_elements(self, kind: str, geometry: Geometry, plan: Planes) -> int:
        """Count the elements of workspace that a plan takes."""
        return count_workspace(kind, geometry, plan)

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array:
        xp = backend.xp
        planes: Planes = self.plan(Kind.FORWARD, geometry, budget)[0]
        cells = xp.reshape(x, (geometry.batch, geometry.groups, 1, *geometry.size))
        bias = None if b is None else xp.reshape(b, (geometry.groups, 1, geometry.group_out, 1))
        parts = [(planes.filters(backend, w, taps), taps) for taps in planes.parts(backend)]
        order = (3, 0, 1, 2, *range(4, 3 + geometry.dims))

        def compute(task: Task, target: Array, workspace: Workspace) -> Array:
            lines, groups = task.lines, slice(*task.block.groups)
            strips = _strips(backend, planes, cells, task, workspace)
            value, first = workspace("sum", lines.sums), True
            for filters, taps in parts:
                matrix, cells_of_taps = filters[groups, ...], _cells_of_taps(backend, planes, strips, lines, taps)
                if first:
                    value, first = backend.write_product(value, lines.places, matrix, cells_of_taps), False
                else:
                    product = backend.product(matrix, cells_of_taps, workspace("product", lines.products))
                    value = backend.add(value, lines.places, product)
            if bias is not None:
                value = backend.add(value, (...,), bias[groups, ...])
            if planes.rows:
                value = xp.permute_dims(value, (0, 2, 1, 3))
            return xp.permute_dims(xp.reshape(value, lines.outputs)[lines.kept], order)

        blocks = Made(tasks_of(planes), lambda task: (task.writes, task))
        shape = (geometry.batch, geometry.groups, geometry.group_out, *geometry.out)
        out = backend.empty(shape, like=x, last=2 * geometry.channels_last)
        with backend.quiet():  # places that are skipped may overflow
            out = backend.fill(out, blocks, compute, budget.least_blocks)
        return xp.reshape(out, geometry.out_shape)

    def input_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, w: Array) -> Array | None:
        if not backend.all_finite(w):
            return None
        budget, flipped = _beside_phase(geometry, budget)[0], mirrored(geometry, backend, w)
        phases, filters = phases_of(_with_one_filter(geometry)), geometry.group_out
        if _is_one_product(geometry):
            return self.forward(phases[0][0], backend, budget, dout, flipped, None)
        grad = backend.zeroed(backend.empty(geometry.x_shape, like=dout, last=geometry.channels_last))
        for number, (phase, taps, cells) in itertools.product(range(filters), phases):
            values, one = dout[:, number::filters, ...], flipped[:, number : number + 1, ...]
            part = self.forward(phase, backend, budget, values, one[taps], None)
            grad = (backend.add if number else backend.write)(grad, cells, part)
        return grad

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array | None:
        xp = backend.xp
        planes: Planes = self.plan(Kind.WEIGHT_GRAD, geometry, budget)[0]
        cells = xp.reshape(x, (geometry.batch, geometry.groups, 1, *geometry.size))
        values = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))

        def compute(tasks: Sequence[Task], target: Array, workspace: Workspace) -> Array:
            write_or_add = backend.write
            for task in tasks:
                lines = task.lines
                grads = planes.grads_at_places(backend, values, task, workspace)
                strips = _strips(backend, planes, cells, task, workspace)
                for taps in planes.parts(backend):
                    cells_of_taps = _cells_of_taps(backend, planes, strips, lines, taps)
                    product = workspace("product", (*lines.sums[:2], cells_of_taps.shape[2], geometry.group_out))
                    product = correlate(backend, cells_of_taps, grads, product)
                    product = product[:, 0, ...] if lines.sums[1] == 1 else backend.total(product, 1)
                    shape = (lines.sums[0], geometry.group_out, *planes.kernel(taps))
                    product = xp.reshape(xp.permute_dims(product, (0, 2, 1)), shape)
                    target = write_or_add(target, (ALL, ALL, slice(*taps), ...), product)
                write_or_add = backend.add
            return target

        parts, shares = _shares(planes)
        shape = (parts, geometry.groups, geometry.group_out, *geometry.kernel)
        with backend.quiet():
            total = backend.fill(backend.empty(shape, like=x), shares, in_runs(backend, compute), budget.least_blocks)
            grad = xp.reshape(total if parts == 1 else xp.sum(total, axis=0), geometry.w_shape)
            return grad if backend.all_finite(grad) else None


def _with_one_filter(geometry: Geometry) -> Geometry:
    """Return the convolution with one filter in each group."""
    return geometry if geometry.group_out == 1 else replace(geometry, out_channels=geometry.groups)


def _is_one_product(geometry: Geometry) -> bool:
    """Return whether the gradient of the input is a single output, and not the sum of several, or of phases."""
    return geometry.dense and geometry.group_out == 1


def _beside_phase(geometry: Geometry, budget: Budget) -> tuple[Budget, int]:
    """Return the budget of one phase of a gradient, and what is held beside: mirrored filters, and a phase's result."""
    beside = geometry.weights
    if not _is_one_product(geometry):
        sizes = (-(-n // step) for n, step in zip(geometry.size, geometry.stride, strict=True))
        beside += geometry.batch * geometry.in_channels * math.prod(sizes)
    return budget._replace(workspace_elements=max(1, budget.workspace_elements - beside)), beside


def _shares(planes: Planes) -> tuple[int, Sequence[Share]]:
    """Divide the blocks of a weight gradient into shares; return the number of partial sums, and the shares."""
    parts = cut(len(planes.samples), len(planes.samples), planes.sums)

    def share(numbers: tuple[int, int]) -> Share:
        group, i = numbers
        return (i, slice(*planes.groups[group]), ...), stack_of(planes, range(*parts[i]), group)

    return len(parts), Made(Product(range(len(planes.groups)), range(len(parts))), share)


def _strips(backend: Backend, planes: Planes, cells: Array, task: Task, workspace: Workspace) -> Array:
    """Copy the lines that taps read side by side: (g, lines that are read, t, l)."""
    lines = task.lines
    read = backend.xp.reshape(gather(planes.phases, backend, cells, task.reads, workspace, by_rows=True), lines.planes)
    if planes.taps == 1 and not planes.rows:  # one tap needs no copy, but rows must follow one another
        return read[:, task.copies[0][1][1], :, None, :]
    strips = workspace("strips of taps", lines.strips)
    if backend.strided and planes.one_phase and not (planes.phases.pointwise and task.block.counts[0] == 1):
        # This copies all in one call: threads that make many short calls wait for one another.
        shape, *windows = lines.shifted
        backend.write(backend.xp.reshape(strips, shape), lines.places, backend.view(read, *windows))
        return strips
    for of_strips, of_planes in task.copies:
        strips = backend.write(strips, of_strips, read[of_planes])
    return strips


def _cells_of_taps(backend: Backend, planes: Planes, strips: Array, lines: Lines, taps: Range) -> Array:
    """Return the cells that these taps of the first dimension read from the strips: (g, h, t, l)."""
    if planes.rows and taps[1] - taps[0] > 1:
        return backend.view(strips, *lines.windows)
    return strips[:, planes.lines_of(lines, taps), :, slice(lines.length)]
