"""The tiles of `depthwise` where rows fill half of a vector at most: two planes at once, each in one half."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .bits import ones
from .depthwise_tiles import Tiles, counted
from .lanes import are_below, indices
from .values import Flag, Int, Pointer, Variable, Vector


class Pairs(Tiles):
    """The tiles of two neighbouring planes, each of which has its own channel; the last one may come twice."""

    planes_at_once = 2

    is_first: Flag
    stored: tuple[Flag, Flag]
    reads: list[tuple[Int, Int]]

    def prepare_lanes(self) -> None:
        """Find which lanes of both rows each column of the kernel meets; those outside of a row are 0."""
        code, plan, half, step = self.code, self.plan, self.lanes // 2, self.shape.stride
        # LLVM would move lanes by a shuffle if it knew this mask; the depth of a plane is 1.
        self.is_first = code.mask_of_bits((plan.depth << half) - 1)
        self.stored = code.lanes_between(None, plan.out_width), code.lanes_between(half, plan.out_width + half)
        self.met = []
        steps = [step * (lane % half) for lane in range(self.lanes)]
        # Lanes of the second row are counted from the first one of the first row on.
        ahead = [lane // half * self.lanes for lane in range(self.lanes)]
        for tap in range(self.shape.kernel[1]):
            first = plan.column_dilation * tap - plan.before_columns
            in_rows = [step + more for step, more in zip(steps, ahead, strict=True)]
            inside = are_below(code, indices(code, steps, first), plan.width)
            self.met.append((indices(code, in_rows, first), inside))

    def begin_band(self, phase: Variable, top: Variable) -> None:
        """Find the rows of a band as other tiles do; those outside of the plane are loaded by a mask of no lane."""
        super().begin_band(phase, top)
        cells = ones(self.code, self.plan.width, self.lanes)
        self.reads = [(at, self.code.select(is_inside, cells, 0)) for is_inside, at in self.inputs]

    def band(self, w: Pointer, b: Pointer, counters: Sequence[Variable], left: Int) -> None:
        """Compute the band of two planes, or of the one that is left, and count on to the next ones."""
        code, plan, shape = self.code, self.plan, self.shape
        x, out, number, _, _ = counters
        more, taps = code.select(left > 1, 1, 0), shape.kernel[0] * shape.kernel[1]
        first = number.get()
        counted(code, number, plan.filters)
        filters = first, code.select(left > 1, number.get(), first)
        counted(code, number, plan.filters)
        cells, results = x.get(), out.get()
        planes = cells, cells + more * plan.x_channel
        rows = [([plane + at for plane in planes], bits) for at, bits in self.reads]
        self.ask_for_a_plane([row for pair, _ in rows for row in pair])
        bias = self.halves(*(code.splat(b[each * plan.bias_step]) for each in filters))
        sums = [code.variable(bias) for _ in range(shape.rows)]
        self.add(rows, [w + each * taps for each in filters], sums, ())
        values = [total.get() for total in sums]
        for value, at in reversed(list(zip(values, self.outputs, strict=True))):
            code.store(value, results + at, self.stored[0])
            code.store(value, results + (more * plan.out_plane + at - self.lanes // 2), self.stored[1])
        self.look_at(values)
        x.set(cells + 2 * plan.x_channel)
        out.set(results + 2 * plan.out_plane)

    def halves(self, first: Vector, second: Vector) -> Vector:
        """Return the first half of a vector, and the second one of another."""
        value: Vector = self.code.select(self.is_first, first, second)
        return value

    def number(self, taps: Any, place: int) -> Vector:
        """Return a number of each of both filters."""
        return self.halves(*(self.code.splat(each[place]) for each in taps))

    def row(self, row: Any) -> list[Vector]:
        """Load a row of each plane, whole."""
        places, bits = row
        return [self.code.load(place, self.code.mask_of_bits(bits)) for place in places]
