"""The copies of `rows`: what of the input goes where, found once for a share, and the copy of a channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .bits import ones
from .emit import Argument, Function
from .record import Record
from .row_lines import COPIED, EVERY
from .row_plan import PIECE, PLAN
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


def _function(target: Target, name: str, *arguments: str, returns: bool = False) -> Function:
    given = [Argument(each.removeprefix("*"), "*i64" if each[0] == "*" else INTEGER) for each in arguments]
    return Function(name, given, target, returns=returns)


class Copies:
    """The functions that copy, for one target and one way of reading cells; plans begin with the fields `COPIED`."""

    def __init__(self, target: Target, steps: str, *, aligned: bool = True) -> None:
        self.every, self.target, self.lanes = EVERY[steps], target, target.lanes
        self.align = target.number * (target.lanes if aligned else 1)
        self.lines, self.entries, self.copy = self._lines(), self._entries(), self._copy()

    @property
    def functions(self) -> tuple[Function, ...]:
        """All of them."""
        return self.lines, self.entries, self.copy

    def _lines(self) -> Function:
        """Write down two numbers of each line of the padded input: where it begins in a channel, and in the copy.

        The first number is -1 if it is a line of zeros.
        """
        code = _function(self.target, "lines", "*plan", "*lines", "start", "count")
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
            lines[line * 2] = code.select(inside.get().equals(0), -1, place.get())
            row, phase = line // plan.line_phases, line % plan.line_phases
            lines[line * 2 + 1] = row * plan.line_pitch + phase * plan.line_phase_pitch
        return code

    def _entries(self) -> Function:
        """Write down what is loaded for the vectors of a copied line: a first cell and which ones are inside of a line.

        An entry is for one vector of each phase, or, where cells are gathered, for a vector of one phase.
        """
        code = _function(self.target, "entries", "*plan", "*entries", "column")
        memory, entries, column = code.given
        plan = _COPIED.read(memory)
        phases, step = plan.pointer("row_phases", INTEGER), plan.step
        most = self.lanes * max(self.every, 1)
        with code.loop(0, plan.entries_of_phase if self.every else plan.entries) as entry:
            vector, ahead = entry % plan.entries_of_phase, 0
            if not self.every:
                ahead = phases[entry // plan.entries_of_phase]
            cell = (column + vector * self.lanes) * step - plan.before + ahead
            low, high = 0 - cell, plan.width - cell
            if not self.every:
                low, high = ((code.maximum(each, 0) + (step - 1)) // step for each in (low, high))
            entries[entry * 2] = cell
            entries[entry * 2 + 1] = ones(code, high, most) - ones(code, low, most)
        return code

    def _copy(self) -> Function:
        """Copy the lines of a channel."""
        names = ("plan", "*i64"), ("cells", "*float"), ("x", "*float"), ("lines", "*i64"), ("entries", "*i64")
        code = Function("copy", [Argument(*each) for each in (*names, ("count", INTEGER))], self.target)
        memory, cells, x, lines, entries, count = code.given
        plan = _COPIED.read(memory)
        with code.loop(0, count) as line:
            place: Int = lines[line * 2]
            is_inside = code.select(place >= 0, -1, 0)
            here, row = x + code.maximum(place, 0), cells + lines[line * 2 + 1]
            with code.loop(0, plan.entries_of_phase if self.every else plan.entries) as entry:
                read, goal = here + entries[entry * 2], row + entry * self.lanes
                bits = entries[entry * 2 + 1] & is_inside
                if not self.every:
                    value = code.gather(read, plan.step, code.mask_of_bits(bits))
                    number, vector = entry // plan.entries_of_phase, entry % plan.entries_of_phase
                    code.store(value, row + (number * plan.phase_pitch + vector * self.lanes), align=self.align)
                starts = range(0, self.every * self.lanes, self.lanes)
                found = [code.load(read + start, code.mask_of_bits(bits >> start)) for start in starts]
                for phase in range(self.every):
                    value = found[0] if self.every == 1 else code.every(self.every, found, phase)
                    code.store(value, goal + phase * plan.phase_pitch, align=self.align)
        return code


def pieces_of(target: Target) -> Function:
    """Write down the numbers of each piece (see `PIECE`)."""
    lanes = target.lanes
    code = _function(target, "pieces", "*plan", "*pieces", "first", "count", "column", "columns", returns=True)
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
            piece[0] = line.get() * plan.line_pitch + at
            piece[1] = (start + row) * plan.columns + column + at
            piece[2] = code.minimum(columns - at, lanes)
            piece[3], piece[4] = low * of_first, high * of_first
            number.set(number.get() + 1)
    code.give(number.get())
    return code


def joined_pieces_of(target: Target) -> Function:
    """Write down the numbers of each piece, if pieces go on from row to row."""
    lanes = target.lanes
    code = _function(target, "pieces", "*plan", "*pieces", "first", "count", "column", "columns", returns=True)
    memory, pieces, first, count, _, columns = code.given
    plan = PLAN.read(memory)
    pitch, number = plan.line_pitch, code.variable(0)
    stop = (count - 1) * pitch + columns
    with code.loop(0, stop, lanes) as begin:
        row, bits, found = begin // pitch, code.variable(0), code.variable(0)
        end = code.minimum(begin + lanes, stop)
        with code.loop(row, (end + (pitch - 1)) // pitch) as each:
            start = each * pitch - begin
            low, high = (code.minimum(code.maximum(lane, 0), lanes) for lane in (start, start + columns))
            bits.set(bits.get() | (ones(code, high, lanes) - ones(code, low, lanes)))
            found.set(found.get() + (high - low))
        piece = pieces + number.get() * PIECE
        piece[0] = begin
        piece[1] = (first + row) * columns + code.minimum(begin % pitch, columns)
        piece[2] = found.get()
        piece[3], piece[4] = 0, plan.taps
        piece[5] = bits.get()
        number.set(number.get() + 1)
    code.give(number.get())
    return code
