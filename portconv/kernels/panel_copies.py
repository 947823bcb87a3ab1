"""The copies of cells into panels: im2col of a block of positions, in place of columns of the whole input."""

from __future__ import annotations

from .emit import INTEGER, Argument, Function, Int, Number, Pointer, Vector
from .outer import Outer
from .panel_plan import FULL, GATHERED, HALVED, PLAN
from .target import Target


class Copies:
    """The functions that copy, for one target and one way of reading cells."""

    def __init__(self, target: Target, steps: str) -> None:
        self.steps, self.lanes, self.width = steps, target.lanes, target.lanes * target.vectors
        self.tables = self._tables()
        self.copy = self._copy()

    def _tables(self) -> Function:
        """Write down, for a panel, what to read for each tap and where the sums go.

        Pieces are runs of at most `lanes` columns in one row of outputs; images are runs of columns in one sample.
        For each tap and piece there are two numbers: where to read, counted from the sample's first channel, and which
        lanes are inside of the input, in the low 32 bits, beside the first column in the high ones.
        """
        names = ("plan", "*i64"), ("table", "*i64"), ("images", "*i64"), ("start", INTEGER), ("count", INTEGER)
        code = Function("tables", [Argument(*each) for each in names], self.lanes, returns=True)
        memory, table, images, start, count = code.given
        plan = PLAN.read(memory)
        outer, row_taps = Outer(code, plan), plan.pointer("row_taps", INTEGER)
        pieces, column = code.variable(0), code.variable(0)
        with code.repeat() as end:
            lane: Int = column.get()
            code.leave(lane >= count, end)
            position = start + lane
            row, ox = position // plan.width, position % plan.width
            sample = row // plan.rows
            outer.enter(row % plan.rows)
            length = code.minimum(code.minimum(plan.width - ox, count - lane), self.lanes)
            piece: Int = pieces.get()
            entry = code.variable(table + piece * 2)
            with code.loop(0, plan.taps // plan.taps_of_row) as tap:
                first, inside = outer.read(tap)
                with code.loop(0, plan.taps_of_row) as of_row:
                    cell = ox * plan.step + row_taps[of_row]
                    bits = self._inside(code, cell, plan.input_width, plan.step)
                    bits = code.select(inside.equals(0), 0, bits)
                    at: Pointer = entry.get()
                    at.of(INTEGER)[0] = sample * plan.x_sample + first + cell
                    at.of(INTEGER)[1] = bits + (lane << 32)
                    entry.set(at.of(INTEGER) + plan.pieces * 2)
            pieces.set(piece + 1)
            column.set(lane + length)
        self._images(code, plan.positions, plan.out_sample, images, start, count)
        code.give(pieces.get())
        return code

    def _inside(self, code: Function, cell: Number, width: Number, step: Int) -> Int:
        """Return the bits of the lanes, or of the cells that are loaded, that are inside of a row of the input."""
        most: int = self.lanes * (2 if self.steps == HALVED else 1)
        low, high = 0 - cell, width - cell
        if self.steps == GATHERED:
            low = code.maximum(low + step - 1, 0) // step
            high = code.maximum(high + step - 1, 0) // step
        low, high = (code.minimum(code.maximum(each, 0), most) for each in (low, high))
        one: Int = code.variable(1).get()
        return ((one << high) - 1) & (0 - (one << low))

    def _images(self, code: Function, positions: Int, sample: Int, images: Pointer, start: Int, count: Int) -> None:
        """Write down how many samples the columns belong to; for each its first column, its place and its length."""
        number, column = code.variable(0), code.variable(0)
        with code.repeat() as end:
            lane: Int = column.get()
            code.leave(lane >= count, end)
            position = start + lane
            length = code.minimum(positions - position % positions, count - lane)
            entry = images + (number.get() * 3 + 1)
            entry[0], entry[2] = lane, length
            entry[1] = position // positions * sample + position % positions
            number.set(number.get() + 1)
            column.set(lane + length)
        images[0] = number.get()

    def _copy(self) -> Function:
        """Copy the cells of some terms into a panel."""
        names = (
            ("panel", "*float"),
            ("x", "*float"),
            ("table", "*i64"),
            *((name, INTEGER) for name in ("count", "pieces", "first", "last", "taps", "channel", "step")),
        )
        code = Function("copy", [Argument(*each) for each in names], self.lanes)
        panel, x, table, count, pieces, first, last, taps, channel, step = code.given
        tap, cells = code.variable(first % taps), code.variable(x + first // taps * channel)
        with code.loop(first, last) as term:
            row = panel + (term - first) * self.width
            now, here = tap.get(), cells.get()
            entry = table + now * pieces * 2
            with code.loop(0, count) as piece:
                read = entry + piece * 2
                packed: Int = read[1]
                value = self._cells(code, here + read[0], packed, step)
                code.store(value, row + (packed >> 32))
            ends = (now + 1).equals(taps)
            tap.set(code.select(ends, 0, now + 1))
            cells.set(code.select(ends, here + channel, here))
        return code

    def _cells(self, code: Function, place: Pointer, bits: Int, step: Int) -> Vector:
        """Load the cells of neighbouring positions; those outside of the input are zeros."""
        if self.steps == GATHERED:
            return code.gather(place, step, code.mask_of_bits(bits))
        near = code.load(place, code.mask_of_bits(bits))
        if self.steps == FULL:
            return near
        far = code.load(place + self.lanes, code.mask_of_bits((bits >> self.lanes) & ((1 << self.lanes) - 1)))
        return code.shuffle(near, far, [2 * lane for lane in range(self.lanes)])
