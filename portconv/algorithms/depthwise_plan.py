"""How `depthwise` cuts a product into lines and blocks, and what that takes."""

from __future__ import annotations

import math
from dataclasses import replace

from ..spec.geometry import Geometry
from ..spec.ranges import cut, pieces
from .budget import Budget, Work, copied, narrow
from .depthwise_planes import Planes

LONG = 4096
"""Places of a line from which on calls take little beside what they do."""
WIDE = 1024
"""Places of a line from which on one of a stack's products takes little beside what it does."""
SAVED = 512
"""Cells a line that must be saved from being copied for starting on a product a line to cost less."""
FEW_ROWS = 8
"""With fewer rows of outputs a block, the rows that blocks share are read too often."""
START = 0.05
"""What starting one of a stack's products takes, of a call."""


def count_work(kind: str, geometry: Geometry, plan: Planes, workspace: int) -> Work:
    """Count what a product takes by a plan."""
    block = plan.largest()
    samples, groups, _ = block.counts
    count = len(plan.samples) * len(plan.groups) * len(pieces(geometry.out[0], plan.height))
    lines = plan.lines(samples, groups, block.rows)
    filters, planes = geometry.group_out, groups * plan.planes(block)
    whole = math.prod(lines.sums) // filters
    scattered = kind == "input_grad"
    gathered = 0 if plan.phases.pointwise and samples == 1 and not scattered else planes
    row = plan.across[-1] if plan.across else block.rows * samples
    elements = copied(gathered, row) * (1.5 if scattered else 1)
    elements *= 1.5 if geometry.stride[-1] > 1 else 1
    # Adding reads what it writes.
    elements += math.prod(lines.strips) * (2 if scattered else plan.taps > 1 or plan.rows)
    elements += 2 * whole * geometry.taps if scattered and plan.rows else 0
    elements += copied(whole * filters, geometry.out[-1])
    operations = narrow(2 * whole * filters * geometry.taps, 1 if scattered else filters)
    products = len(plan.single) if scattered else 1
    # Each product of a stack has a start of its own.
    starts = START * groups * lines.sums[1] * products
    moved = 1 if plan.evenly and not scattered else plan.taps
    calls = 2 * plan.phases.taps + moved + 2 * products + (7 if kind == "forward" else 12) + starts
    shape = {"samples": samples, "groups": groups, "rows": block.rows}
    # The copies of each block, and the dimension whose taps are products of their own.
    steps = count * (plan.taps + geometry.kernel[0])
    return Work(count * operations, count * elements, 0, count * calls, workspace, shape, steps)


def count_workspace(kind: str, geometry: Geometry, plan: Planes) -> int:
    """Count the elements of workspace: of a block, and of what all blocks share."""
    block = plan.largest()
    samples, groups, _ = block.counts
    lines, filters = plan.lines(samples, groups, block.rows), geometry.group_out
    whole = math.prod(lines.sums) // filters
    planes, strips = groups * plan.planes(block), math.prod(lines.strips)
    if plan.phases.pointwise and samples == 1 and kind != "input_grad":
        planes = 0
    if plan.taps == 1 and not plan.rows and kind != "input_grad":
        strips = 0
    # A product by itself where the array library takes the first dimension's taps one by one.
    if kind == "forward":
        return planes + strips + filters * whole * (2 if len(plan.single) > 1 else 1)
    grads = 0 if plan.places.pointwise and samples == 1 else filters * whole
    if kind == "input_grad":
        return planes + strips + whole * plan.taps + grads
    parts = plan.sums * geometry.weights if plan.sums > 1 else 0
    return planes + strips + grads + 2 * groups * lines.sums[1] * geometry.taps * filters + parts


def cut_planes(kind: str, geometry: Geometry, budget: Budget, elements: int) -> Planes:
    """Cut so that what a block works on holds about so many elements, and into shares for threads where it can be."""
    least = budget.least_blocks
    bare = Planes(geometry, False, (), (), 1, 1)
    across, filters = math.prod(bare.across), geometry.group_out
    wide = min(geometry.batch, -(-WIDE // across))
    # Taps of the first dimension are lines apart where they are neighbours, and need no copies of their own.
    saved = wide * across * (geometry.taps - geometry.other_taps)
    planes = replace(bare, rows=geometry.dims > 1 and geometry.dilation[0] == 1 and saved >= SAVED)
    of_taps = {"forward": planes.taps + 2 * filters, "input_grad": 2 * planes.taps + filters}
    places = max(1, elements // (planes.phases.taps + of_taps.get(kind, planes.taps + filters)))
    plane = planes.reach(geometry.out[0]) * across
    if not planes.rows:
        wide = -(-LONG // plane)
    samples = max(1, min(geometry.batch, wide, places // (planes.reach(min(geometry.out[0], FEW_ROWS)) * across)))
    height = geometry.out[0]
    if plane * samples > places:
        left, reach = places // (samples * across), planes.reach(1)
        height = max(1, min(height, 1 + (left - reach) // (geometry.stride[0] if planes.rows else 1)))
    groups = max(1, places // (plane * samples))
    rows = len(pieces(geometry.out[0], height)) if kind == "forward" else 1
    shares = -(-geometry.batch // samples) * rows
    cut_groups = cut(geometry.groups, groups, -(-least // max(1, shares if kind != "weight_grad" else 1)))
    cut_samples = cut(geometry.batch, samples, -(-least // (len(cut_groups) * rows)))
    if kind == "forward":
        short = -(-least // max(1, len(cut_groups) * len(cut_samples)))
        height = min(height, max(-(-LONG // across), -(-geometry.out[0] // short)))
    sums = max(1, min(len(cut_samples), -(-least // len(cut_groups))))
    return replace(planes, samples=cut_samples, groups=cut_groups, height=height, sums=sums)
