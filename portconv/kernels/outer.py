"""The dimensions before the last ones: which plane or row of the input a tap reads for a plane or row of the output.

There may be any number of them, so kernels walk through lists in memory (see `sizes.Sizes.outer`).
"""

from __future__ import annotations

from .emit import Function
from .record import Fields
from .values import INTEGER, Int, Number

FIELDS = ("outer", "outer_sizes", "outer_steps", "outer_inputs", "outer_strides", "outer_taps")
"""The fields of a plan: how many dimensions there are, and the addresses of lists. `outer_taps` has for each tap as
many numbers as there are dimensions, the others one number for each."""
MOST_OUTER = 15
"""The most dimensions before the last one."""


class Outer:
    """The walk through these dimensions in one function, whose plan has `FIELDS`."""

    def __init__(self, code: Function, plan: Fields) -> None:
        self.code, self.count = code, plan.outer
        self.lists = {name: plan.pointer(name, INTEGER) for name in FIELDS[1:]}
        self.cells = code.array(MOST_OUTER + 1, INTEGER)

    def enter(self, number: Number) -> None:
        """Begin with the output of this number, counted through all of these dimensions."""
        code, left = self.code, self.code.variable(number)
        with code.loop(0, self.count) as back:
            dim = self.count - 1 - back
            now: Int = left.get()
            self.cells[dim] = now % self.lists["outer_sizes"][dim] * self.lists["outer_steps"][dim]
            left.set(now // self.lists["outer_sizes"][dim])

    def read(self, tap: Number) -> tuple[Int, Int]:
        """Return where the cells lie that a tap reads, from the sample's first on, and 1 if they are inside, else 0."""
        code, first, inside = self.code, self.code.variable(0), self.code.variable(1)
        with code.loop(0, self.count) as dim:
            cell = self.cells[dim] + self.lists["outer_taps"][self.count * tap + dim]
            is_inside = cell.is_index(self.lists["outer_inputs"][dim])
            inside.set(code.select(is_inside, inside.get(), 0))
            first.set(first.get() + cell * self.lists["outer_strides"][dim])
        return first.get(), inside.get()
