"""The copies of `rows`: what of the input goes where, found once for a share, and the copy of a channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .emit import Argument, Function
from .record import Record
from .row_plan import COPIED, EVERY, PIECE, PLAN
from .target import Target
from .values import INTEGER, Int, Pointer

_COPIED = Record(*COPIED)


@contextmanager
def digits(code: Function, number: Int, count: Int, sizes: Pointer) -> Iterator[tuple[Int, Int]]:
    """Repeat what is written inside for each dimension and the index in it, of a number that counts through all."""
    left = code.variable(number)
    with code.loop(0, count) as back:
        dim, now = count - 1 - back, left.get()
        left.set(now // sizes[dim])
        yield dim, now % sizes[dim]


def _function(lanes: int, name: str, *arguments: str, returns: bool = False) -> Function:
    given = [Argument(each.removeprefix("*"), "*i64" if each[0] == "*" else INTEGER) for each in arguments]
    return Function(name, given, lanes, returns=returns)


class Copies:
    """The functions that copy, for one target and one way of reading cells; plans begin with the fields `COPIED`."""

    def __init__(self, target: Target, steps: str) -> None:
        self.every, self.lanes = EVERY[steps], target.lanes
        self.lines, self.entries, self.copy = self._lines(), self._entries(), self._copy()

    @property
    def functions(self) -> tuple[Function, ...]:
        """All of them."""
        return self.lines, self.entries, self.copy

    def _lines(self) -> Function:
        """Write down where each line of the padded input begins in a channel, or -1 if it is one of zeros."""
        code = _function(self.lanes, "lines", "*plan", "*lines", "start", "count")
        memory, lines, start, count = code.given
        plan = _COPIED.read(memory)
        padded, befores, inputs, strides = (
            plan.pointer(name, INTEGER) for name in ("padded", "befores", "inputs", "strides")
        )
        with code.loop(0, count) as line:
            place, inside = code.variable(0), code.variable(1)
            with digits(code, start + line, plan.outer, padded) as (dim, at):
                cell = at - befores[dim]
                inside.set(code.select(cell.is_index(inputs[dim]), inside.get(), 0))
                place.set(place.get() + cell * strides[dim])
            lines[line] = code.select(inside.get().equals(0), -1, place.get())
        return code

    def _entries(self) -> Function:
        """Write down, for each vector of a copied line, its first cell in a line and which lanes are inside of it."""
        code = _function(self.lanes, "entries", "*plan", "*entries", "column")
        memory, entries, column = code.given
        plan = _COPIED.read(memory)
        phases, step = plan.pointer("row_phases", INTEGER), plan.step
        # One less than all lanes of four vectors is enough, and fits into an integer.
        most = self.every * (self.lanes - 1) + 1 if self.every else self.lanes
        with code.loop(0, plan.entries) as entry:
            phase, vector = entry // plan.entries_of_phase, entry % plan.entries_of_phase
            cell = (column + vector * self.lanes) * step + phases[phase] - plan.before
            low, high = 0 - cell, plan.width - cell
            if not self.every:
                low, high = ((code.maximum(each, 0) + (step - 1)) // step for each in (low, high))
            low, high = (code.minimum(code.maximum(each, 0), most) for each in (low, high))
            one: Int = code.variable(1).get()
            entries[entry * 2] = cell
            entries[entry * 2 + 1] = ((one << high) - 1) & (0 - (one << low))
        return code

    def _copy(self) -> Function:
        """Copy the lines of a channel."""
        names = ("cells", "*float"), ("x", "*float"), ("lines", "*i64"), ("entries", "*i64")
        numbers = ("count", INTEGER), ("entry_count", INTEGER), ("step", INTEGER)
        code = Function("copy", [Argument(*each) for each in (*names, *numbers)], self.lanes)
        cells, x, lines, entries, count, entry_count, step = code.given
        with code.loop(0, count) as line:
            place: Int = lines[line]
            is_inside = code.select(place >= 0, -1, 0)
            here, row = x + code.maximum(place, 0), cells + line * entry_count * self.lanes
            with code.loop(0, entry_count) as entry:
                read = here + entries[entry * 2]
                bits = entries[entry * 2 + 1] & is_inside
                if self.every:
                    starts = range(0, self.every * self.lanes, self.lanes)
                    cells = [code.load(read + start, code.mask_of_bits(bits >> start)) for start in starts]
                    value = cells[0] if self.every == 1 else code.every(self.every, cells)
                else:
                    value = code.gather(read, step, code.mask_of_bits(bits))
                code.store(value, row + entry * self.lanes, align=4 * self.lanes)
        return code


def pieces_of(lanes: int) -> Function:
    """Write down the numbers of each piece (see `PIECE`)."""
    code = _function(lanes, "pieces", "*plan", "*pieces", "first", "count", "column", "columns", returns=True)
    memory, pieces, first, count, column, columns = code.given
    plan = PLAN.read(memory)
    rows, steps, strides = (plan.pointer(name, INTEGER) for name in ("rows", "steps", "line_strides"))
    number, start = code.variable(0), first * plan.rows_of_first
    with code.loop(0, count * plan.rows_of_first) as row:
        line = code.variable(0 - first * plan.lines_of_step)
        with digits(code, start + row, plan.outer, rows) as (dim, at):
            line.set(line.get() + at * steps[dim] * strides[dim])
        above = plan.first_before - (start + row) // plan.rows_of_first * plan.first_step
        low, high = (
            code.minimum((code.maximum(cells, 0) + (plan.first_apart - 1)) // plan.first_apart, plan.first_taps)
            for cells in (above, above + plan.first_size)
        )
        of_first = plan.taps // plan.first_taps
        with code.loop(0, columns, lanes) as begin:
            # The last piece begins early enough to be a whole one, if the row is long enough.
            at = code.minimum(begin, code.maximum(columns - lanes, 0))
            piece = pieces + number.get() * PIECE
            piece[0] = line.get() * (plan.entries * lanes) + at
            piece[1] = (start + row) * plan.columns + column + at
            piece[2] = code.minimum(columns - at, lanes)
            piece[3], piece[4] = low * of_first, high * of_first
            number.set(number.get() + 1)
    code.give(number.get())
    return code
