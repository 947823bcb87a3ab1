"""The terms of one output, or of one gradient of an input: what a window of cells and a filter have at each tap.

Cells lie `spacing` apart, with zeros between, where an input gradient is the output of the mirrored convolution. Lanes
run along the channels.
"""

from __future__ import annotations

from .doubles import ExactSum
from .emit import Argument, Function
from .rounded_plan import ARRAYS, MOST_DIMS, PLAN
from .row_copies import digits
from .target import Target
from .values import INTEGER


class WindowTerms:
    """The function that adds up the terms of one sum exactly, from quantised operands."""

    def __init__(self, target: Target) -> None:
        pointers = Argument("plan", "*i64"), Argument("arrays", "*i64"), Argument("value", "*float")
        self.code = code = Function("exact", [*pointers, *map(Argument, ("group", "row", "column"))], target)
        memory, arrays, value, group, row, column = code.given
        plan, places = PLAN.read(memory), ARRAYS.read(arrays)
        sizes, positions, strides, steps, spacings, taps = (
            plan.pointer(name, INTEGER) for name in ("sizes", "positions", "strides", "steps", "spacings", "taps")
        )
        cells = places.pointer("first", "double") + group * plan.terms * plan.channel_cells
        filter_ = places.pointer("second", "double") + (group % plan.groups * plan.group_step + row * plan.filter_step)
        starts, total, lanes = code.array(MOST_DIMS, INTEGER), ExactSum(code), target.lanes
        with digits(code, column, plan.dims, positions) as (dim, at):
            starts[dim] = at * steps[dim]
        with code.loop(0, plan.tap_count) as tap:
            place, inside = code.variable(0), code.variable(1)
            with code.loop(0, plan.dims) as dim:
                cell = starts[dim] + taps[tap * plan.dims + dim]
                number = cell // spacings[dim]
                # Beyond the first cell the quotient is larger than any size.
                is_there = number.is_index(sizes[dim]) & (cell % spacings[dim]).equals(0)
                inside.set(code.select(is_there, inside.get(), 0))
                place.set(place.get() + number * strides[dim])
            with code.when(inside.get().equals(1)), code.loop(0, plan.terms, lanes) as term:
                mask = code.lanes_between(None, plan.terms - term)
                first = cells + (term * plan.channel_cells + place.get())
                second = filter_ + (term * plan.term_step + tap)
                total.add(code.gather(first, plan.channel_cells, mask), code.gather(second, plan.term_step, mask))
        value[0] = total.rounded()
