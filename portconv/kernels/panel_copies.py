"""The copies of cells into panels: im2col of a block of positions, in place of columns of the whole input."""

from __future__ import annotations

from collections.abc import Iterator

from .emit import Argument, Function
from .outer import Outer
from .panel_plan import ENTRY, EVERY, PLAN, SPARSE
from .record import Fields
from .target import Target
from .values import INTEGER, Flag, Int, Pointer, Vector

WHOLE = -1
"""In place of the number of pieces where cells lie side by side for all columns of a panel."""
CHANNELS_AHEAD = 2
"""Cells are asked for so many channels before they are copied, where that helps."""


class Copies:
    """The functions that copy, for one target and one way of reading cells."""

    def __init__(self, target: Target, variant: str) -> None:
        self.every, self.target = EVERY[variant], target
        self.lanes, self.width = target.lanes, target.lanes * target.vectors
        self.is_sparse = variant == SPARSE
        self.tables = self._tables()
        self.copy = self._copy()

    def _tables(self) -> Function:
        """Write down, for a panel, what to read for each tap and where the sums go.

        Pieces are runs of at most `lanes` columns whose cells lie at equal distances for every tap: columns of one row
        of outputs, or where `is_linear`, of one sample. Images are runs of columns in one sample. For each tap and
        piece there are `ENTRY` numbers: where to read, counted from the first channel of the first sample; the bits of
        the cells that are inside of the input; and the first column. Where the kernel is sparse, columns are counted
        band by band, and `active` gets the number of taps that read a cell for any column, and these taps.
        """
        names = ("plan", "*i64"), ("table", "*i64"), ("images", "*i64"), ("active", "*i64")
        code = Function(
            "tables",
            [*(Argument(*each) for each in names), *map(Argument, ("start", "count"))],
            self.target,
            returns=True,
        )
        memory, table, images, active, start, count = code.given
        plan = PLAN.read(memory)
        rows = _Rows(code, plan, in_bands=self.is_sparse)
        pieces, column = code.variable(0), code.variable(0)
        with code.repeat() as end:
            lane: Int = column.get()
            code.leave(lane >= count, end)
            position, piece = start + lane, pieces.get()
            if self.is_sparse:
                left = rows.enter(position, count - lane)
            else:
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
        self._images(code, plan, rows, images, (start, count))
        if self.is_sparse:
            _write_active(code, plan, table, pieces.get(), active)
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

    def _images(self, code: Function, plan: Fields, rows: _Rows, images: Pointer, columns: tuple[Int, Int]) -> None:
        """Write down how many samples the columns belong to; for each its first column, its place and its length.

        Where columns are counted by bands, each row of a band stands for a sample.
        """
        (start, count), number, column = columns, code.variable(0), code.variable(0)
        with code.repeat() as end:
            lane: Int = column.get()
            code.leave(lane >= count, end)
            position = start + lane
            entry = images + (number.get() * 3 + 1)
            if self.is_sparse:
                length = rows.enter(position, count - lane)
                entry[1] = rows.sample * plan.out_sample + rows.row * plan.width + rows.column
            else:
                length = code.minimum(plan.positions - position % plan.positions, count - lane)
                entry[1] = position // plan.positions * plan.out_sample + position % plan.positions
            entry[0], entry[2] = lane, length
            number.set(number.get() + 1)
            column.set(lane + length)
        images[0] = number.get()

    def _copy(self) -> Function:
        """Copy the cells of some terms into a panel, whose rows are `pitch` numbers apart.

        Where the kernel is sparse, terms are channels and active taps, and `order` gets each term's place in a filter.
        """
        pointers = (("panel", "*float"), ("x", "*float"), ("table", "*i64"), ("active", "*i64"), ("order", "*i64"))
        numbers = ("count", "pieces", "first", "last", "taps", "channel", "step", "pitch")
        arguments = [*(Argument(*each) for each in pointers), *map(Argument, numbers)]
        code = Function("copy", arguments, self.target)
        panel, x, table, active, order, count, pieces, first, last, taps, channel, step, pitch = code.given
        of_channel = active[0] if self.is_sparse else taps
        turn, number = code.variable(first % of_channel), code.variable(first // of_channel)
        with code.loop(first, last) as term:
            row = panel + (term - first) * pitch
            now, here = turn.get(), number.get()
            tap = active[now + 1] if self.is_sparse else now
            entry = table + tap * pieces * ENTRY
            if self.is_sparse:
                order[term - first] = here * taps + tap
            cells = x + here * channel
            if self.every == 1:
                with code.when(count.equals(WHOLE)):
                    starts = range(0, self.width, self.lanes)
                    reads = [(cells + (entry[0] + start), entry[ENTRY * v + 1]) for v, start in enumerate(starts)]
                    for start, vector in zip(starts, [self._cells(code, *read, step) for read in reads], strict=True):
                        code.store(vector, row + start, align=code.bytes)
            with code.loop(0, count) as piece:
                read = entry + piece * ENTRY
                if self.is_sparse:  # short pieces far apart, whose next channels no CPU foresees
                    code.prefetch(cells + read[0] + channel * CHANNELS_AHEAD)
                code.store(self._cells(code, cells + read[0], read[1], step), row + read[2])
            ends = (now + 1).equals(of_channel)
            turn.set(code.select(ends, 0, now + 1))
            number.set(code.select(ends, here + 1, here))
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

    def __init__(self, code: Function, plan: Fields, *, in_bands: bool) -> None:
        self.code, self.plan, self.outer, self.in_bands = code, plan, Outer(code, plan), in_bands
        self.row_taps, self.bands = (plan.pointer(name, INTEGER) for name in ("row_taps", "bands"))

    def enter(self, position: Int, most: Int) -> Int:
        """Begin at a position; return how many of at most so many positions lie in its row."""
        code, plan = self.code, self.plan
        if not self.in_bands:
            row, self.column = position // plan.width, position % plan.width
            self.sample, self.row = row // plan.rows, row % plan.rows
            self.outer.enter(self.row)
            return code.minimum(plan.width - self.column, most)
        band = code.variable(0)
        with code.repeat() as end:
            number: Int = band.get()
            code.leave(position < self.bands[number + 1] * plan.rows_of_band, end)
            band.set(number + 1)
        start, stop = self.bands[band.get()], self.bands[band.get() + 1]
        in_band = position - start * plan.rows_of_band
        row, ahead = in_band // (stop - start), in_band % (stop - start)
        self.column = start + ahead
        # Rows of all samples through which the same taps read padding follow one another.
        self.sample = row % plan.rows_of_samples // plan.rows_of_block
        self.row = row // plan.rows_of_samples * plan.rows_of_block + row % plan.rows_of_block
        self.outer.enter(self.row)
        return code.minimum(stop - start - ahead, most)

    def taps(self, table: Pointer, size: Int) -> Iterator[tuple[Pointer, Int, Int, Flag]]:
        """Write what follows for each tap: its entry, its first cell, that cell's place in its row, whether it is."""
        code, plan = self.code, self.plan
        with code.loop(0, plan.taps // plan.taps_of_row) as tap:
            first, inside = self.outer.read(tap)
            with code.loop(0, plan.taps_of_row) as of_row:
                cell = self.column * plan.step + self.row_taps[of_row]
                entry = table + (tap * plan.taps_of_row + of_row) * size
                yield entry, self.sample * plan.x_sample + first + cell, cell, ~inside.equals(0)


def _write_active(code: Function, plan: Fields, table: Pointer, pieces: Int, active: Pointer) -> None:
    """Write down how many taps read a cell for any column of a panel, and which; there is at least one."""
    number = code.variable(0)
    with code.loop(0, plan.taps) as tap:
        found = code.variable(0)
        with code.loop(0, pieces) as piece:
            found.set(found.get() | (table + (tap * plan.pieces + piece) * ENTRY)[1])
        is_active = ~found.get().equals(0) | (tap.equals(plan.taps - 1) & number.get().equals(0))
        with code.when(is_active):
            active[number.get() + 1] = tap
            number.set(number.get() + 1)
    active[0] = number.get()
