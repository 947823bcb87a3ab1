"""How `depthwise` cuts a product into lines and blocks, and the work and workspace that this takes."""

from __future__ import annotations

import math
from dataclasses import replace

from ..spec.geometry import Geometry
from ..spec.ranges import Ranges, cut, pieces
from .budget import Budget, Work, copied, narrow
from .depthwise_planes import Planes
from .summing import correlated, runs_take

LONG = 4096
"""With this many places in a line or more, the start of a call takes little of its time."""
WIDE = 1024
"""With this many places in a line or more, the start of one product of a stack takes little of its time."""
FEWER_COPIES = 512
"""If rows as lines save this many copied cells for each line, this saves more time than the extra products cost."""
FEW_ROWS = 8
"""With fewer rows of outputs in a block, the rows that two blocks share are read too often."""
START = 0.05
"""To start one product of a stack takes this part of the time of a call."""


def count_work(kind: str, geometry: Geometry, plan: Planes, workspace: int) -> Work:
    """Count the work of a product by a plan."""
    block = plan.largest()
    samples, groups, _ = block.counts
    count = len(plan.samples) * len(plan.groups) * len(pieces(geometry.out[0], plan.height))
    lines = plan.lines(samples, groups, block.rows)
    filters, planes = geometry.group_out, groups * plan.planes(block)
    whole = math.prod(lines.sums) // filters
    gathered = 0 if plan.phases.pointwise and samples == 1 else planes
    row = plan.across[-1] if plan.across else block.rows * samples
    elements = copied(gathered, row) * (1.5 if geometry.stride[-1] > 1 else 1)
    elements += math.prod(lines.strips) * (plan.taps > 1 or plan.rows)
    elements += copied(whole * filters, geometry.out[-1])
    operations = narrow(2 * whole * filters * geometry.taps, filters)
    # Each product of a stack is started separately.
    starts = START * groups * lines.sums[1]
    copies = 1 if plan.one_phase else plan.taps
    calls = 2 * plan.phases.taps + copies + (9 if kind == "forward" else 14) + starts
    shape = {"samples": samples, "groups": groups, "rows": block.rows}
    # A block copies the lines of each tap, and multiplies each tap of the first dimension separately.
    steps = count * (plan.taps + geometry.kernel[0])
    return Work(count * operations, count * elements, 0, count * calls, workspace, shape, steps)


def count_workspace(kind: str, geometry: Geometry, plan: Planes) -> int:
    """Count the elements of workspace: those of one block, and those that all blocks share."""
    block = plan.largest()
    samples, groups, _ = block.counts
    lines, filters = plan.lines(samples, groups, block.rows), geometry.group_out
    whole = math.prod(lines.sums) // filters
    planes, strips = groups * plan.planes(block), math.prod(lines.strips)
    if plan.phases.pointwise and samples == 1:
        planes = 0
    if plan.taps == 1 and not plan.rows:
        strips = 0
    # A second array holds the product if the array library multiplies the first dimension's taps one by one.
    if kind == "forward":
        return planes + strips + filters * whole * (2 if len(plan.tap_ranges) > 1 else 1)
    grads = 0 if plan.places.pointwise and samples == 1 else filters * whole
    parts = plan.sums * geometry.weights if plan.sums > 1 else 0
    blocks = -(-len(plan.samples) // plan.sums) * len(pieces(geometry.out[0], plan.height))
    weights = groups * geometry.taps * filters
    sums = weights * (lines.sums[1] * (1 + correlated(lines.length)) + runs_take(blocks))
    return planes + strips + grads + sums + parts


def cut_planes(kind: str, geometry: Geometry, budget: Budget, elements: int) -> Planes:
    """Cut a product so that the arrays of a block hold about `elements` elements, and so that all threads have work."""
    least = budget.least_blocks
    uncut = Planes(geometry, False, Ranges(0, 0), Ranges(0, 0), 1, 1)
    across, filters = math.prod(uncut.across), geometry.group_out
    long_enough = min(geometry.batch, -(-WIDE // across))
    # If rows are lines, the taps of the first dimension, if not dilated, read neighbouring lines and need no copies.
    saved = long_enough * across * (geometry.taps - geometry.other_taps)
    planes = replace(uncut, rows=geometry.dims > 1 and geometry.dilation[0] == 1 and saved >= FEWER_COPIES)
    of_taps = planes.taps + filters * (2 if kind == "forward" else 1)
    places = max(1, elements // (planes.phases.taps + of_taps))
    plane = planes.reach(geometry.out[0]) * across
    if not planes.rows:
        long_enough = -(-LONG // plane)
    samples = max(
        1, min(geometry.batch, long_enough, places // (planes.reach(min(geometry.out[0], FEW_ROWS)) * across))
    )
    height = geometry.out[0]
    if plane * samples > places:
        affordable, reach = places // (samples * across), planes.reach(1)
        height = max(1, min(height, 1 + (affordable - reach) // (geometry.stride[0] if planes.rows else 1)))
    groups = max(1, places // (plane * samples))
    rows = len(pieces(geometry.out[0], height)) if kind == "forward" else 1
    shares = -(-geometry.batch // samples) * rows
    cut_groups = cut(geometry.groups, groups, -(-least // max(1, shares if kind != "weight_grad" else 1)))
    cut_samples = cut(geometry.batch, samples, -(-least // (len(cut_groups) * rows)))
    if kind == "forward":
        blocks_of_rows = -(-least // max(1, len(cut_groups) * len(cut_samples)))
        height = min(height, max(-(-LONG // across), -(-geometry.out[0] // blocks_of_rows)))
    sums = max(1, min(len(cut_samples), -(-least // len(cut_groups))))
    return replace(planes, samples=cut_samples, groups=cut_groups, height=height, sums=sums)
