"""One channel a group: shifted lines of padded planes, and a product of all taps with them.

Where a group has one channel there is nothing to add up but the kernel's taps, and columns, each cell copied for every
tap, cost more than the arithmetic. So the input is copied once, into planes with their padding, split into phases where
there is a stride: outputs then lie at the places of the cells that their first tap reads, and each tap reads one long
line, moved by a constant. The few places between rows are computed too, and left out in the end. The shifted lines of
the taps of all dimensions but the first are copied side by side, row after row; what the taps of the first dimension
read are the rows after, so that all taps of an output's row are one matrix as it lies, with no copy: Cho and Brand,
"MEC: memory-efficient convolution" (ICML 2017), section 3. Rows that are too short for products of their own are one
line, and the first dimension's taps are copied side by side too. Gradients take the same steps.

What belongs to no output is multiplied as well, in places that are left out, or by a zero in the place of `dout`. Where
that might matter, because the filters or their gradient are not finite, `gemm` computes instead.

Axes, in this order: g groups; h lines, one for each row of the first dimension or one in all; f filters of a group; t
taps, or those of all dimensions but the first; l places of a line, flattened: with n samples (n, P2, ..., Pd) of a row,
(P1, n, P2, ..., Pd) of all.
"""

from __future__ import annotations

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, MANY_TAPS, Range, cut
from . import gemm
from . import tap_loop as rolled
from .budget import Limits
from .columns import gather, no_strips, scatter
from .depthwise_plan import Lines, Planes, Task, _mirrors, _steps, _tasks, planned
from .depthwise_plan import work as work
from .mirrored import beside_filters, mirrored


def objection(geometry: Geometry) -> str | None:
    """Say what is served where `geometry` is not; None where it is."""
    # What is worked out for each tap is kept with the plan.
    few = geometry.group_in == 1 and geometry.taps < MANY_TAPS
    return None if few else f"one channel a group, and fewer than {MANY_TAPS} taps"


def forward(geometry: Geometry, backend: Backend, bounds: Limits, x: Array, w: Array, b: Array | None) -> Array:
    if 0 in geometry.out_shape:
        return backend.zeros(geometry.out_shape, like=x)
    xp = backend.xp
    own, _ = planned(geometry, "forward", bounds)
    if backend.rolls(_steps(own)):
        return rolled.forward(geometry, backend, x, w, b)
    cells = xp.reshape(x, (geometry.batch, geometry.groups, 1, *geometry.size))
    bias = None if b is None else xp.reshape(b, (geometry.groups, 1, geometry.group_out, 1))
    parts = [(own.filters(backend, w, taps), taps) for taps in own.parts(backend)]

    def compute(task: Task, target: Array, workspace: Workspace) -> Array:
        lines, groups = task.lines, slice(*task.block.groups)
        strips = _strips(backend, own, cells, task, workspace)
        value, first = workspace("sum", lines.sums), True
        for filters, taps in parts:
            chosen, read = filters[groups, ...], _read(backend, own, strips, lines, taps)
            if first:
                value, first = backend.write_product(value, lines.places, chosen, read), False
            else:
                found = backend.product(chosen, read, workspace("product", lines.found))
                value = backend.add(value, lines.places, found)
        if bias is not None:
            value = backend.add(value, (...,), bias[groups, ...])
        if own.rows:
            value = xp.permute_dims(value, (0, 2, 1, 3))
        return xp.permute_dims(xp.reshape(value, lines.outputs)[lines.kept], order)

    order = (3, 0, 1, 2, *range(4, 3 + geometry.dims))
    blocks = [(task.writes, task) for stack in _tasks(own) for task in stack]
    shape = (geometry.batch, geometry.groups, geometry.group_out, *geometry.out)
    out = backend.empty(shape, like=x, last=2 * geometry.channels_last)
    with backend.quiet():  # of what is left out
        out = backend.fill(out, blocks, compute, bounds.least)
    return xp.reshape(out, geometry.out_shape)


def input_grad(geometry: Geometry, backend: Backend, bounds: Limits, dout: Array, w: Array) -> Array:
    if 0 in geometry.x_shape:
        return backend.zeros(geometry.x_shape, like=dout)
    if not backend.all_finite(w):
        return gemm.input_grad(geometry, backend, bounds, dout, w)
    if _mirrors(geometry):
        turned = mirrored(geometry, backend, w)
        return forward(geometry.mirrored, backend, beside_filters(geometry, bounds), dout, turned, None)
    xp = backend.xp
    own, _ = planned(geometry, "input_grad", bounds)
    if backend.rolls(_steps(own)):
        return rolled.input_grad(geometry, backend, dout, w)
    values = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
    parts = [(xp.permute_dims(own.filters(backend, w, row), (0, 1, 3, 2)), row) for row in own.single]

    def compute(stack: tuple[Task, ...], target: Array, workspace: Workspace) -> Array:
        groups = slice(*stack[0].block.groups)
        grad = backend.zeroed(target)
        for task in stack:
            lines = task.lines
            laid = own.laid(backend, values, task, workspace)
            strips = workspace("strips of taps", lines.strips)
            if len(parts) > 1 or lines.length < lines.strips[3]:
                strips = backend.zeroed(strips)
            for filters, row in parts:
                found = workspace("product", (lines.sums[0], lines.sums[1], filters.shape[2], lines.length))
                found = backend.product(filters[groups, ...], laid, found)
                put = backend.add if len(parts) > 1 else backend.write
                strips = put(strips, (ALL, own.which(lines, row), ALL, slice(lines.length)), found)
            planes = xp.reshape(no_strips(own.phases, backend, task.reads, workspace), lines.planes)
            for of_strips, of_planes in task.copies:
                planes = backend.add(planes, of_planes, strips[of_strips])
            grad = scatter(own.phases, backend, planes, grad, task.reads)
        return grad

    shares = []
    for stack in _tasks(own):
        samples, groups = stack[0].block.samples, stack[0].block.groups
        shares.append(((slice(*samples), slice(*groups), ...), stack))
    shape = (geometry.batch, geometry.groups, 1, *geometry.size)
    grad = backend.empty(shape, like=dout, last=2 * geometry.channels_last)
    return xp.reshape(backend.fill(grad, shares, compute, bounds.least), geometry.x_shape)


def weight_grad(geometry: Geometry, backend: Backend, bounds: Limits, dout: Array, x: Array) -> Array:
    if geometry.batch == 0:
        return backend.zeros(geometry.w_shape, like=x)
    xp = backend.xp
    own, _ = planned(geometry, "weight_grad", bounds)
    if backend.rolls(_steps(own)):
        return rolled.weight_grad(geometry, backend, dout, x)
    cells = xp.reshape(x, (geometry.batch, geometry.groups, 1, *geometry.size))
    values = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))

    def compute(stacks: tuple[tuple[Task, ...], ...], target: Array, workspace: Workspace) -> Array:
        put = backend.write
        for task in (task for stack in stacks for task in stack):
            lines = task.lines
            laid = xp.permute_dims(own.laid(backend, values, task, workspace), (0, 1, 3, 2))
            strips = _strips(backend, own, cells, task, workspace)
            for taps in own.parts(backend):
                read = _read(backend, own, strips, lines, taps)
                room = workspace("product", (lines.sums[0], lines.sums[1], read.shape[2], geometry.group_out))
                found = backend.product(read, laid, room)
                found = found[:, 0, ...] if lines.sums[1] == 1 else xp.sum(found, axis=1)
                shape = (lines.sums[0], geometry.group_out, *own.kernel(taps))
                found = xp.reshape(xp.permute_dims(found, (0, 2, 1)), shape)
                target = put(target, (ALL, ALL, slice(*taps), ...), found)
            put = backend.add
        return target

    by_groups: dict[Range, list[tuple[Task, ...]]] = {}
    for stack in _tasks(own):
        by_groups.setdefault(stack[0].block.groups, []).append(stack)
    shares = []
    parts = cut(len(own.samples), len(own.samples), own.sums)
    for groups, stacks in by_groups.items():
        shares += [((i, slice(*groups), ...), tuple(stacks[slice(*part)])) for i, part in enumerate(parts)]
    shape = (len(parts), geometry.groups, geometry.group_out, *geometry.kernel)
    with backend.quiet():
        total = backend.fill(backend.empty(shape, like=x), shares, compute, bounds.least)
        grad = xp.reshape(total if len(parts) == 1 else xp.sum(total, axis=0), geometry.w_shape)
        finite = backend.all_finite(grad)
    return grad if finite else gemm.weight_grad(geometry, backend, bounds, dout, x)


def _strips(backend: Backend, own: Planes, cells: Array, task: Task, workspace: Workspace) -> Array:
    """Put the lines of taps side by side: (g, lines that are read, t, l)."""
    lines = task.lines
    planes = gather(own.phases, backend, cells, task.reads, workspace)
    planes = backend.xp.reshape(planes, lines.planes)
    if own.taps == 1 and not own.rows:  # rows have to follow one another
        lane, _, inner, *_ = task.copies[0][1]
        return planes[lane, :, inner, :, None, :]
    strips = workspace("strips of taps", lines.strips)
    if backend.strided and own.evenly and not (own.phases.pointwise and task.block.counts[0] == 1):
        # In one call: threads that make many short ones spend their time waiting for one another.
        shape, *windows = lines.shifted
        backend.write(backend.xp.reshape(strips, shape), lines.places, backend.view(planes, *windows))
        return strips
    for of_strips, of_planes in task.copies:
        strips = backend.write(strips, of_strips, planes[of_planes])
    return strips


def _read(backend: Backend, own: Planes, strips: Array, lines: Lines, taps: Range) -> Array:
    """What these taps of the first dimension read of the strips: (g, h, t, l)."""
    if own.rows and taps[1] - taps[0] > 1:
        return backend.view(strips, *lines.windows)
    return strips[:, own.which(lines, taps), :, slice(lines.length)]
