"""One channel a group: shifted runs of padded planes, and a product of a filter's row with them for each of its rows.

Where a group has one channel there is nothing to add up but the kernel's taps, and columns, each cell copied for every
tap, cost more than the arithmetic. So the input is copied once, into planes with their padding, split into phases where
there is a stride: outputs then lie at the places of the cells that their first tap reads, and each tap reads one long
run, moved by a constant. The few places between rows are computed too, and left out in the end. The shifted runs of the
last dimension's taps are copied side by side, which serves every tap of the other dimensions, as in Cho and Brand,
"MEC: memory-efficient convolution" (ICML 2017), section 3, and a product adds them up. Gradients take the same steps.

What belongs to no output is multiplied as well, in places that are left out, or by a zero in the place of `dout`. Where
that might matter, because the filters or their gradient are not finite, `gemm` computes instead.

Axes, in this order: g groups; f filters of a group; K taps of the last dimension; places (P1, n, P2, ..., Pd) with n
samples, flattened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import NamedTuple

from ..backends import Array, Backend, Workspace
from ..geometry import MANY_TAPS, Geometry, Range, cut, pieces
from . import gemm
from .blocks import Limits, Work, copied, fitted, narrow, of_mirrored
from .columns import ALL, Block, Index, gather, no_strips, scatter

LONG = 4096
"""Places of a run from which on calls take little beside what they do."""


def objection(geometry: Geometry) -> str | None:
    """Say what is served where `geometry` is not; None where it is."""
    # What is worked out for each tap is kept with the plan.
    few = geometry.group_in == 1 and geometry.taps < MANY_TAPS
    return None if few else f"one channel a group, and fewer than {MANY_TAPS} taps"


def forward(geometry: Geometry, backend: Backend, bounds: Limits, x: Array, w: Array, b: Array | None) -> Array:
    if 0 in geometry.out_shape:
        return backend.zeros(geometry.out_shape, like=x)
    xp = backend.xp
    cells = xp.reshape(x, (geometry.batch, geometry.groups, 1, *geometry.size))
    filters = xp.reshape(w, (geometry.groups, geometry.group_out, *geometry.kernel))
    bias = None if b is None else xp.reshape(b, (geometry.groups, geometry.group_out, 1))
    own, _ = planned(geometry, "forward", bounds)

    def compute(block: Block, target: Array, workspace: Workspace) -> Array:
        n, groups, _ = block.counts
        places = (..., slice(own.length(block)))
        chosen = filters[slice(*block.groups), ...]
        planes = gather(own.phases, backend, cells, own.reads(block), workspace)
        value, first = workspace("sum", (groups, geometry.group_out, own.whole(block))), True
        for part in own.layout(n):
            runs = _runs(backend, planes, part, workspace)
            for taps, moved in part.rows:
                one, read = chosen[taps], runs[:, :, slice(moved, moved + own.length(block))]
                if first:
                    value, first = backend.write_product(value, places, one, read), False
                else:
                    found = backend.product(one, read, workspace("product", (*value.shape[:2], read.shape[2])))
                    value = backend.add(value, places, found)
        if bias is not None:
            value = backend.add(value, (...,), bias[slice(*block.groups), ...])
        value = xp.reshape(value, (groups, geometry.group_out, block.rows, n, *own.across))
        value = value[(..., *(slice(size) for size in geometry.out[1:]))]
        return xp.permute_dims(value, (3, 0, 1, 2, *range(4, value.ndim)))

    blocks = [(own.writes(block), block) for stack in own.stacks() for block in stack]
    shape = (geometry.batch, geometry.groups, geometry.group_out, *geometry.out)
    out = backend.empty(shape, like=x, last=2 * geometry.channels_last)
    with backend.quiet():  # of what is left out
        out = backend.fill(out, blocks, compute, geometry.operations)
    return xp.reshape(out, geometry.out_shape)


def input_grad(geometry: Geometry, backend: Backend, bounds: Limits, dout: Array, w: Array) -> Array:
    if 0 in geometry.x_shape:
        return backend.zeros(geometry.x_shape, like=dout)
    if not backend.all_finite(w):
        return gemm.input_grad(geometry, backend, bounds, dout, w)
    if _mirrors(geometry):
        return forward(geometry.mirrored, backend, bounds, dout, gemm.mirrored(geometry, backend, w), None)
    xp = backend.xp
    values = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
    filters = xp.reshape(w, (geometry.groups, geometry.group_out, *geometry.kernel))
    own, _ = planned(geometry, "input_grad", bounds)

    def compute(stack: tuple[Block, ...], target: Array, workspace: Workspace) -> Array:
        chosen = filters[slice(*stack[0].groups), ...]
        grad = backend.zeroed(target)
        for block in stack:
            n, groups, _ = block.counts
            length = own.length(block)
            laid = own.laid(backend, values, block, workspace)[:, :, slice(length)]
            strips = no_strips(own.phases, backend, own.reads(block), workspace)
            total = strips.shape[-1]
            for part in own.layout(n):
                runs = backend.zeroed(workspace("runs", (groups, geometry.kernel[-1], total)))
                for taps, moved in part.rows:
                    one = xp.permute_dims(chosen[taps], (0, 2, 1))
                    found = backend.product(one, laid, workspace("product", (*runs.shape[:2], length)))
                    runs = backend.add(runs, (ALL, ALL, slice(moved, moved + length)), found)
                for tap, (lane, inner, shift) in enumerate(part.shifts):
                    index = (lane, ALL, 0, inner, slice(shift, None))
                    strips = backend.add(strips, index, runs[:, tap, slice(total - shift)])
            grad = scatter(own.phases, backend, strips, grad, own.reads(block))
        return grad

    shares = []
    for stack in own.stacks():
        samples, groups = stack[0].samples, stack[0].groups
        shares.append(((slice(*samples), slice(*groups), ...), tuple(stack)))
    shape = (geometry.batch, geometry.groups, 1, *geometry.size)
    grad = backend.empty(shape, like=dout, last=2 * geometry.channels_last)
    return xp.reshape(backend.fill(grad, shares, compute, geometry.operations), geometry.x_shape)


def weight_grad(geometry: Geometry, backend: Backend, bounds: Limits, dout: Array, x: Array) -> Array:
    if geometry.batch == 0:
        return backend.zeros(geometry.w_shape, like=x)
    xp = backend.xp
    cells = xp.reshape(x, (geometry.batch, geometry.groups, 1, *geometry.size))
    values = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
    own, _ = planned(geometry, "weight_grad", bounds)

    def compute(stacks: tuple[tuple[Block, ...], ...], target: Array, workspace: Workspace) -> Array:
        first = True
        for block in (block for stack in stacks for block in stack):
            n, groups, _ = block.counts
            length = own.length(block)
            laid = own.laid(backend, values, block, workspace)[:, :, slice(length)]
            laid = xp.permute_dims(laid, (0, 2, 1))
            planes = gather(own.phases, backend, cells, own.reads(block), workspace)
            put = backend.write if first else backend.add
            for part in own.layout(n):
                runs = _runs(backend, planes, part, workspace)
                for taps, moved in part.rows:
                    read = runs[:, :, slice(moved, moved + length)]
                    room = workspace("product", (groups, geometry.kernel[-1], geometry.group_out))
                    found = xp.permute_dims(backend.product(read, laid, room), (0, 2, 1))
                    target = put(target, taps, found)
            first = False
        return target

    by_groups: dict[Range, list[tuple[Block, ...]]] = {}
    for stack in own.stacks():
        by_groups.setdefault(stack[0].groups, []).append(stack)
    shares = []
    parts = cut(len(own.samples), len(own.samples), own.sums)
    for groups, stacks in by_groups.items():
        shares += [((i, slice(*groups), ...), tuple(stacks[slice(*part)])) for i, part in enumerate(parts)]
    shape = (len(parts), geometry.groups, geometry.group_out, *geometry.kernel)
    with backend.quiet():
        total = backend.fill(backend.empty(shape, like=x), shares, compute, geometry.operations)
        grad = xp.reshape(total if len(parts) == 1 else xp.sum(total, axis=0), geometry.w_shape)
        finite = backend.all_finite(grad)
    return grad if finite else gemm.weight_grad(geometry, backend, bounds, dout, x)


def _runs(backend: Backend, planes: Array, part: Part, workspace: Workspace) -> Array:
    """Put the runs of the last dimension's taps side by side: (g, K, places)."""
    if len(part.shifts) == 1:
        lane, inner, _ = part.shifts[0]
        return planes[lane, :, 0, inner, None, :]
    total = planes.shape[-1]
    runs = workspace("runs", (planes.shape[1], len(part.shifts), total))
    for tap, (lane, inner, shift) in enumerate(part.shifts):
        runs = backend.write(runs, (ALL, tap, slice(total - shift)), planes[lane, :, 0, inner, slice(shift, None)])
    return runs


class Part(NamedTuple):
    """Taps that read the same phases of all dimensions but the last.

    Attributes
    ----------
    rows : tuple of (Index, int)
        For the taps of all dimensions but the last, their index in filters (g, f, *K), and how far they are moved.
    shifts : tuple of (int, int, int)
        For each tap of the last dimension, the lane of its phase, the place of that among the others, and how far it
        is moved.
    """

    rows: tuple[tuple[Index, int], ...]
    shifts: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Planes:
    """A geometry of one channel a group as shifted planes, and its work in blocks.

    Attributes
    ----------
    geometry : Geometry
    samples, groups : tuple of Range
        What a block takes of samples and groups.
    height : int
        The most outputs of the first dimension a block.
    sums : int
        Into how many partial sums a weight gradient is cut.
    """

    geometry: Geometry
    samples: tuple[Range, ...]
    groups: tuple[Range, ...]
    height: int
    sums: int

    @cached_property
    def phases(self) -> Geometry:
        """The phases of the input as the taps of a kernel."""
        taps = (range(n) for n in self.geometry.kernel)
        sides = zip(taps, self.geometry.dilation, self.geometry.stride, strict=True)
        counts = tuple(max(tap * d % s for tap in own) + 1 for own, d, s in sides)
        ones = (1,) * self.geometry.dims
        return replace(self.geometry, out_channels=self.geometry.groups, kernel=counts, dilation=ones)

    @cached_property
    def lays(self) -> Geometry:
        """The outputs with the places left out after them, as a convolution of kernel 1 reads them."""
        ones, none = (1,) * self.geometry.dims, (0,) * self.geometry.dims
        return replace(
            self.geometry,
            in_channels=self.geometry.out_channels,
            size=self.geometry.out,
            kernel=ones,
            stride=ones,
            dilation=ones,
            before=none,
            after=(0, *self.most[1:]),
        )

    @cached_property
    def most(self) -> tuple[int, ...]:
        """How far the last tap is moved along each dimension."""
        sides = zip(self.geometry.kernel, self.geometry.dilation, self.geometry.stride, strict=True)
        return tuple((k - 1) * d // s for k, d, s in sides)

    @cached_property
    def across(self) -> tuple[int, ...]:
        """Places along all dimensions but the first."""
        return tuple(n + q for n, q in zip(self.geometry.out[1:], self.most[1:], strict=True))

    def stacks(self) -> Iterator[tuple[Block, ...]]:
        """The blocks of the same samples and groups, one stack after the other."""
        across = math.prod(self.geometry.out[1:])
        full = tuple((0, n) for n in self.geometry.out[1:])
        for samples, groups in product(self.samples, self.groups):
            yield tuple(
                Block(samples, groups, (0, 1), (start * across, end * across), ((start, end), *full))
                for start, end in pieces(self.geometry.out[0], self.height)
            )

    def writes(self, block: Block) -> Index:
        """The outputs of a block, as an index of arrays (N, G, F, *P)."""
        return (slice(*block.samples), slice(*block.groups), ALL, *(slice(*side) for side in block.box))

    def reads(self, block: Block) -> Block:
        """The places that a block's taps read, in the phases."""
        start, end = block.box[0][0], block.box[0][1] + self.most[0]
        across = math.prod(self.across)
        box = ((start, end), *((0, n) for n in self.across))
        return replace(block, run=(start * across, end * across), box=box)

    def laid(self, backend: Backend, values: Array, block: Block, workspace: Workspace) -> Array:
        """A block of the output's gradient at its places, and zeros in those left out: (g, f, places)."""

        def of_dout(purpose: str, shape: tuple[int, ...], dtype: object = None) -> Array:
            return workspace(f"{purpose} of dout", shape, dtype)

        start, end = block.box[0]
        across = math.prod(self.across)
        box = ((start, end), *((0, n) for n in self.across))
        lays = replace(block, channels=(0, self.geometry.group_out), run=(start * across, end * across), box=box)
        return gather(self.lays, backend, values, lays, of_dout)[0, :, :, 0, :]

    def whole(self, block: Block) -> int:
        """Places of a block's outputs."""
        return block.rows * block.counts[0] * math.prod(self.across)

    def planes(self, block: Block) -> int:
        """Elements of a block's planes, over all phases, for each group."""
        return self.phases.taps * (block.rows + self.most[0]) * block.counts[0] * math.prod(self.across)

    def largest(self) -> Block:
        """A block as large as any."""

        def most(ranges: tuple[Range, ...]) -> Range:
            return 0, max((end - start for start, end in ranges), default=0)

        full = tuple((0, n) for n in self.geometry.out[1:])
        rows = most(pieces(self.geometry.out[0], self.height))
        return Block(most(self.samples), most(self.groups), (0, 1), (0, 0), (rows, *full))

    def length(self, block: Block) -> int:
        """Places from a block's first output to its last one."""
        return self.whole(block) - sum(q * self._step(dim, 1) for dim, q in enumerate(self.most) if dim)

    def layout(self, n: int) -> tuple[Part, ...]:
        """Where each tap reads in planes of n samples."""
        found = self._layouts.get(n)
        if found is None:
            found = self._layouts[n] = self._layout(n)
        return found

    @cached_property
    def _layouts(self) -> dict[int, tuple[Part, ...]]:
        return {}

    def _layout(self, n: int) -> tuple[Part, ...]:
        sides = list(zip(self.geometry.kernel, self.geometry.dilation, self.geometry.stride, strict=True))
        reads = [
            [(tap * d % s, tap * d // s * self._step(dim, n)) for tap in range(k)]
            for dim, (k, d, s) in enumerate(sides)
        ]
        by_phase: dict[tuple[int, ...], list[tuple[Index, int]]] = {}
        for taps in product(*(range(k) for k in self.geometry.kernel[:-1])):
            own = [read[tap] for read, tap in zip(reads, taps, strict=False)]
            index: Index = (ALL, ALL, *taps, ALL)
            by_phase.setdefault(tuple(phase for phase, _ in own), []).append((index, sum(moved for _, moved in own)))
        parts = []
        for phases, rows in by_phase.items():
            shifts = []
            for phase, shift in reads[-1]:
                lane, *others = (*phases, phase)
                inner = 0
                for count, other in zip(self.phases.kernel[1:], others, strict=True):
                    inner = inner * count + other
                shifts.append((lane, inner, shift))
            parts.append(Part(tuple(rows), tuple(shifts)))
        return tuple(parts)

    def _step(self, dim: int, n: int) -> int:
        """Places from one output to the next along a dimension, with n samples."""
        return math.prod(self.across[dim:]) if dim else n * math.prod(self.across)


@lru_cache(maxsize=1024)
def planned(geometry: Geometry, purpose: str, bounds: Limits) -> tuple[Planes, int]:
    """Cut a product within bounds; return the plan, and the elements of workspace that it needs."""
    return fitted(
        lambda elements: _planes(geometry, purpose, elements, bounds.enough, bounds.least),
        lambda plan: _need(geometry, purpose, plan),
        bounds,
    )


def _mirrors(geometry: Geometry) -> bool:
    """Whether the input gradient is a forward product: the mirrored convolution has one channel a group too."""
    return geometry.dense and geometry.group_out == 1


def work(geometry: Geometry, purpose: str, bounds: Limits) -> Work:
    """Say what a product takes."""
    if purpose == "input_grad" and _mirrors(geometry):
        return of_mirrored(work, geometry, bounds)
    plan, need = planned(geometry, purpose, bounds)
    block = plan.largest()
    n, groups, _ = block.counts
    count = len(plan.samples) * len(plan.groups) * len(pieces(geometry.out[0], plan.height))
    parts, taps, filters = len(plan.layout(n)), geometry.kernel[-1], geometry.group_out
    rows = geometry.taps // taps
    planes, whole = plan.planes(block), plan.whole(block)
    runs = parts * taps * planes // max(1, plan.phases.taps) if taps > 1 else 0
    scattered = purpose == "input_grad"
    gathered = 0 if plan.phases.pointwise and n == 1 and not scattered else planes
    elements = copied(gathered, plan.across[-1] if plan.across else block.rows * n) * (1.5 if scattered else 1)
    elements *= 1.5 if geometry.stride[-1] > 1 else 1
    # Adding reads what it writes; what a product gives is read again where it is added up.
    elements += groups * runs * (2 if scattered else 1)
    if purpose != "weight_grad":
        elements += 2 * groups * whole * (rows * taps if scattered else (rows - 1) * filters)
    elements += copied(groups * filters * whole, geometry.out[-1])
    operations = narrow(2 * groups * filters * whole * geometry.taps, 1 if scattered else filters)
    copies = 2 * plan.phases.taps + parts * taps + 2 * rows + 8
    shape = {"samples": n, "groups": groups, "rows": block.rows}
    return Work(count * operations, count * elements, 0, count * copies, need, shape)


def _need(geometry: Geometry, purpose: str, plan: Planes) -> int:
    """Elements of workspace: of a block, and of what all blocks share."""
    block = plan.largest()
    n, groups, _ = block.counts
    taps, filters, whole = geometry.kernel[-1], geometry.group_out, plan.whole(block)
    planes = groups * plan.planes(block)
    if plan.phases.pointwise and n == 1 and purpose != "input_grad":
        planes = 0
    runs = groups * taps * plan.planes(block) // plan.phases.taps if taps > 1 or purpose == "input_grad" else 0
    outputs = groups * filters * whole
    if purpose == "forward":
        return planes + runs + 2 * outputs
    laid = 0 if plan.lays.pointwise and n == 1 else outputs
    if purpose == "input_grad":
        return planes + runs + groups * taps * whole + laid
    parts = plan.sums * geometry.weights if plan.sums > 1 else 0
    return planes + runs + laid + groups * taps * filters + parts


def _planes(geometry: Geometry, purpose: str, elements: int, enough: int, least: int) -> Planes:
    """Cut so that what a block works on holds about `elements`, and into at least `least` shares where it can be."""
    bare = Planes(geometry, (), (), 1, 1)
    across = math.prod(bare.across)
    taps, filters = geometry.kernel[-1], geometry.group_out
    of_runs = {"forward": taps + 2 * filters, "input_grad": 2 * taps + filters, "weight_grad": taps + filters}
    each = bare.phases.taps + of_runs[purpose]
    places = max(1, elements // each)
    plane = (geometry.out[0] + bare.most[0]) * across
    if plane > places:
        height, samples, groups = max(1, places // across - bare.most[0]), 1, 1
    else:
        height = geometry.out[0]
        samples = max(1, min(geometry.batch, places // plane, -(-LONG // plane)))
        groups = max(1, places // (plane * samples))
    rows = len(pieces(geometry.out[0], height)) if purpose == "forward" else 1
    shares = -(-geometry.batch // samples) * rows
    cut_groups = cut(geometry.groups, groups, -(-least // max(1, shares if purpose != "weight_grad" else 1)))
    cut_samples = cut(geometry.batch, samples, -(-least // (len(cut_groups) * rows)))
    if purpose == "forward":
        short = -(-least // max(1, len(cut_groups) * len(cut_samples)))
        height = min(height, max(-(-LONG // across), -(-geometry.out[0] // short)))
    sums = max(1, min(len(cut_samples), -(-least // len(cut_groups))))
    return Planes(geometry, cut_samples, cut_groups, height, sums)
