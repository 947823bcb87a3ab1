"""The terms of one number of a filter's gradient: what `dout` and the input have at each position of each sample.

Lanes run along the last dimension, and lines of positions are added up one after the other.
"""

from __future__ import annotations

from .doubles import ExactSum, gather_single, load_single, whole
from .emit import Function
from .rounded_plan import ARRAYS, ENDS, EXACT, PLAN
from .row_copies import digits
from .target import Target
from .values import INTEGER

STEPS = 1 << 12
"""The most vectors that are added up before sums are carried."""


class FilterTerms:
    """The function that adds up the terms of one sum exactly, of operands that it quantises."""

    def __init__(self, target: Target) -> None:
        self.code = code = Function("exact", EXACT, target)
        memory, arrays, value, _, group, row, column = code.given
        plan, places = PLAN.read(memory), ARRAYS.read(arrays)
        sizes, positions, strides, steps, taps, ends = (
            plan.pointer(name, INTEGER) for name in ("sizes", "positions", "strides", "steps", "taps", "ends")
        )
        tap = column % plan.tap_count
        filter_, channel = group * plan.rows + row, group * plan.terms + column // plan.tap_count
        of_filter = code.splat(places.pointer("first_factors", "double")[filter_])
        of_channel = code.splat(places.pointer("second_factors", "double")[channel])
        grads = places.pointer("first", "float") + filter_ * plan.lines * plan.line
        cells = places.pointer("second", "float") + channel * plan.channel_cells
        end, total, step = ends + tap * ENDS, ExactSum(code), plan.line_step
        with code.loop(0, plan.samples) as sample, code.loop(0, plan.lines) as line:
            place, inside = code.variable(0), code.variable(1)
            with digits(code, line, plan.dims, positions) as (dim, at):
                cell = at * steps[dim] + taps[tap * plan.dims + dim]
                inside.set(code.select(cell.is_index(sizes[dim]), inside.get(), 0))
                place.set(place.get() + cell * strides[dim])
            with code.when(inside.get().equals(1)):
                here = grads + (sample * plan.out_sample + line * plan.line)
                there = cells + (sample * plan.in_sample + place.get() + end[2])
                with code.loop(end[0], end[1], STEPS * target.lanes) as first:
                    last = code.minimum(first + STEPS * target.lanes, end[1])
                    with code.loop(first, last, target.lanes) as at:
                        mask = code.lanes_between(None, last - at)
                        a = load_single(code, here + at, mask) * of_filter
                        b = gather_single(code, there + at * step, step, mask) * of_channel
                        total.add(whole(code, a), whole(code, b))
                    total.carry()
        value[0] = total.rounded()
