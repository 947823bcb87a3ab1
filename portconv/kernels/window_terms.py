"""The terms of one output, or of one gradient of an input: what a window of cells and a filter have at each tap.

Cells lie `spacing` apart, with zeros between, where an input gradient is the output of the mirrored convolution. Lanes
run along the channels.
"""

from __future__ import annotations

from .doubles import ExactSum
from .emit import Function
from .rounded_plan import ARRAYS, EXACT, MOST_DIMS, PLAN
from .row_copies import digits
from .target import Target
from .values import INTEGER


class WindowTerms:
    """The function that adds up the terms of one sum exactly, from quantised operands."""

    def __init__(self, target: Target) -> None:
        self.code = code = Function("exact", EXACT, target)
        memory, arrays, value, met, group, row, column = code.given
        plan, places = PLAN.read(memory), ARRAYS.read(arrays)
        sizes, positions, strides, steps, spacings, taps = (
            plan.pointer(name, INTEGER) for name in ("sizes", "positions", "strides", "steps", "spacings", "taps")
        )
        starts, count = code.array(MOST_DIMS, INTEGER), code.variable(0)
        with digits(code, column, plan.dims, positions) as (dim, at):
            starts[dim] = at * steps[dim]
        # Where each tap meets a cell, and its number.
        with code.loop(0, plan.tap_count) as tap:
            place, inside = code.variable(0), code.variable(1)
            with code.loop(0, plan.dims) as dim:
                cell = starts[dim] + taps[tap * plan.dims + dim]
                number = cell // spacings[dim]
                # Before the first cell the quotient is larger than any size.
                is_there = number.is_index(sizes[dim]) & (cell % spacings[dim]).equals(0)
                inside.set(code.select(is_there, inside.get(), 0))
                place.set(place.get() + number * strides[dim])
            with code.when(inside.get().equals(1)):
                met[count.get() * 2] = place.get()
                met[count.get() * 2 + 1] = tap
                count.set(count.get() + 1)
        cells = places.pointer("first", "double") + group * plan.terms * plan.channel_cells
        filter_ = places.pointer("second", "double") + (group % plan.groups * plan.group_step + row * plan.filter_step)
        total, lanes = ExactSum(code), target.lanes
        # Neighbouring taps meet cells of one line of the cache.
        with code.loop(0, plan.terms, lanes) as term:
            mask = code.lanes_between(None, plan.terms - term)
            with code.loop(0, count.get()) as number:
                first = cells + (term * plan.channel_cells + met[number * 2])
                second = filter_ + (term * plan.term_step + met[number * 2 + 1])
                total.add(code.gather(first, plan.channel_cells, mask), code.gather(second, plan.term_step, mask))
            total.carry()
        value[0] = total.rounded()
