"""The copies of cells into panels: im2col of a block of positions, in place of columns of the whole input."""

from __future__ import annotations

from collections.abc import Iterator

from .emit import INTEGER, Argument, Fields, Flag, Function, Int, Pointer, Vector
from .outer import Outer
from .panel_plan import ENTRY, EVERY, PLAN
from .target import Target


class Copies:
    """The functions that copy, for one target and one way of reading cells."""

    def __init__(self, target: Target, variant: str) -> None:
        self.every, self.lanes, self.width = EVERY[variant], target.lanes, target.lanes * target.vectors
        self.tables = self._tables()
        self.copy = self._copy()

    def _tables(self) -> Function:
        """Write down, for a panel, what to read for each tap and where the sums go.

        Pieces are runs of at most `lanes` columns whose cells lie at equal distances for every tap: columns of one row
        of outputs, or where `is_linear`, of one sample. Images are runs of columns in one sample. For each tap and
        piece there are `ENTRY` numbers: where to read, counted from the first channel of the first sample; the bits of
        the cells that are inside of the input; and the first column.
        """
        names = ("plan", "*i64"), ("table", "*i64"), ("images", "*i64"), ("start", INTEGER), ("count", INTEGER)
        code = Function("tables", [Argument(*each) for each in names], self.lanes, returns=True)
        memory, table, images, start, count = code.given
        plan = PLAN.read(memory)
        rows = _Rows(code, plan)
        pieces, column = code.variable(0), code.variable(0)
        with code.repeat() as end:
            lane: Int = column.get()
            code.leave(lane >= count, end)
            position, piece = start + lane, pieces.get()
            of_sample, of_row = plan.positions - position % plan.positions, plan.width - position % plan.width
            left = code.select(plan.is_linear.equals(1), of_sample, of_row)
            length = code.minimum(code.minimum(left, count - lane), self.lanes)
            done = code.variable(0)
            with code.repeat() as end_of_piece:
                ahead: Int = done.get()
                code.leave(ahead >= length, end_of_piece)
                size = rows.enter(position + ahead, length - ahead)
                for entry, place, cell, is_inside in rows.taps(table + piece * ENTRY, plan.pieces * ENTRY):
                    # The rows of a piece follow one another in the input as well, so the place is the same for all.
                    entry[0], entry[2] = place - ahead, lane
                    bits = code.select(is_inside, self._inside(code, plan, cell, size) << ahead, 0)
                    entry[1] = bits + code.select(ahead.equals(0), 0, entry[1])
                done.set(ahead + size)
            pieces.set(piece + 1)
            column.set(lane + length)
        self._images(code, plan.positions, plan.out_sample, images, start, count)
        code.give(pieces.get())
        return code

    def _inside(self, code: Function, plan: Fields, cell: Int, size: Int) -> Int:
        """Return the bits of the cells, or of the lanes that are gathered, that are inside of a row of the input."""
        low, high, most = 0 - cell, plan.input_width - cell, size
        if not self.every:
            low, high = (code.maximum(each + plan.step - 1, 0) // plan.step for each in (low, high))
        elif self.every > 1:
            most = code.minimum(self.every * (self.lanes - 1) + 1, self.every * self.lanes)
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
            entry = table + now * pieces * ENTRY
            with code.loop(0, count) as piece:
                read = entry + piece * ENTRY
                code.store(self._cells(code, here + read[0], read[1], step), row + read[2])
            ends = (now + 1).equals(taps)
            tap.set(code.select(ends, 0, now + 1))
            cells.set(code.select(ends, here + channel, here))
        return code

    def _cells(self, code: Function, place: Pointer, bits: Int, step: Int) -> Vector:
        """Load the cells of neighbouring positions; those outside of the input are zeros."""
        if not self.every:
            return code.gather(place, step, code.mask_of_bits(bits))
        starts = range(0, self.every * self.lanes, self.lanes)
        vectors = [code.load(place + start, code.mask_of_bits(bits >> start)) for start in starts]
        return vectors[0] if self.every == 1 else code.every(self.every, vectors)


class _Rows:
    """The walk through the rows of outputs, and through what each tap reads for a row."""

    def __init__(self, code: Function, plan: Fields) -> None:
        self.code, self.plan, self.outer = code, plan, Outer(code, plan)
        self.row_taps = plan.pointer("row_taps", INTEGER)

    def enter(self, position: Int, most: Int) -> Int:
        """Begin at a position; return how many of at most so many positions lie in its row."""
        row, self.column = position // self.plan.width, position % self.plan.width
        self.sample = row // self.plan.rows
        self.outer.enter(row % self.plan.rows)
        return self.code.minimum(self.plan.width - self.column, most)

    def taps(self, table: Pointer, size: Int) -> Iterator[tuple[Pointer, Int, Int, Flag]]:
        """Write what follows for each tap: its entry, its first cell, that cell's place in its row, whether it is."""
        code, plan = self.code, self.plan
        with code.loop(0, plan.taps // plan.taps_of_row) as tap:
            first, inside = self.outer.read(tap)
            with code.loop(0, plan.taps_of_row) as of_row:
                cell = self.column * plan.step + self.row_taps[of_row]
                entry = table + (tap * plan.taps_of_row + of_row) * size
                yield entry, self.sample * plan.x_sample + first + cell, cell, ~inside.equals(0)
