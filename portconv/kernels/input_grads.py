"""Gradients of the input, at any stride: sums over the filters stay in registers, and are added where they belong.

For each tap of the kernel the gradients of the outputs, times the numbers that the filters have there, are a part of
the gradient of the input, shifted by the tap. So a tile is that of `tile`: a few channels and taps in the place of
filters, positions of outputs in the place of positions, and filters in the place of terms. What it has summed up is
added to a padded plane in the cache whose rows and columns fall into as many phases as the stride has: so positions
that are neighbours are neighbours there. At the end the phases are put together again, without the padding.

A first phase turns the filters, so that the numbers of one channel and tap lie side by side. Gradients of the rows of a
panel are copied with zeros between the rows, where what is added must be nothing. So a filter that is not finite spoils
cells that it is no part of, and the share says so.
"""

from __future__ import annotations

from .bits import between
from .emit import Argument, Function, Module
from .input_grad_plan import EVERY, PLAN, RUN, VARIANTS, plan_of
from .lanes import transposed
from .part_stores import store_bits, store_part
from .row_copies import digits
from .share import SHARE, driver
from .target import Target
from .tile import finished, sums_of
from .values import INTEGER, Int, Pointer, Vector

__all__ = ["VARIANTS", "module", "plan_of"]

TILES = tuple(
    Argument(*each)
    for each in (
        *(("panel", "*float"), ("filters", "*float"), ("plane", "*float"), ("terms", "*i64")),
        *((name, INTEGER) for name in ("count", "length", "pitch", "vectors")),
    )
)
"""The arguments of the tiles of a panel: its gradients, the turned filters from the first term of the share and the
first filter of the run on, where its first position's first tap is added, where each term is, the number of terms, the
filters of the run, the distance of the turned filters of two terms, and the vectors of the panel."""


def module(target: Target, variant: str) -> Module:
    """Write the kernels for one distance of the cells of a phase."""
    functions = [_turn(target), _spread(target), _tiles(target), _lines(target), _store(target, EVERY[variant])]
    share = _Share(target, functions).code
    return Module([*functions, share, *driver(target, share)])


def _turn(target: Target) -> Function:
    """Turn the numbers of the filters of a group: from `pitch` on, those of all filters for one tap and channel."""
    arguments = Argument("plan", "*i64"), Argument("w", "*float"), Argument("turned", "*float"), Argument("first")
    code = Function("turn", arguments, target)
    memory, w, turned, first = code.given
    plan, lanes = PLAN.read(memory), target.lanes
    terms, size = plan.channels * plan.taps, plan.channels_of_block
    left = code.minimum(plan.filters - first, lanes)
    rows = [w + (first + code.minimum(i, left - 1)) * terms for i in range(lanes)]
    with code.loop(0, terms, lanes) as term:
        mask = code.lanes_between(None, terms - term)
        columns = transposed(code, [code.load(row + term, mask) for row in rows])
        for i, column in enumerate(columns):
            with code.when(term + i < terms):
                # The terms of a share lie side by side: of each of its channels, for tap after tap.
                channel, tap = (term + i) // plan.taps, (term + i) % plan.taps
                start, of_block = channel // size * size, channel % size
                here = code.minimum(plan.channels - start, size)
                place = start * plan.taps + tap * here + of_block
                code.store(column, turned + (place * plan.turned_pitch + first))
    return code


def _spread(target: Target) -> Function:
    """Copy gradients of some filters at some positions into a panel, whose rows are `width` numbers apart.

    Positions are counted with the zeros between rows: `pitch` from row to row.
    """
    arguments = Argument("panel", "*float"), Argument("dout", "*float")
    names = "first", "vectors", "rows", "columns", "pitch", "stride", "channel", "filters"
    code = Function("spread", [*arguments, *map(Argument, names)], target)
    panel, dout, first, vectors, rows, columns, pitch, stride, channel, filters = code.given
    lanes, width = target.lanes, target.lanes * target.vectors
    table = code.array(target.vectors * lanes * 3, INTEGER)
    with code.loop(0, vectors) as vector:
        # A vector meets the end of one row, the beginning of the next one, or several short ones.
        start = first + vector * lanes
        pieces, row = code.variable(0), code.variable(start // pitch)
        entries = table + vector * (lanes * 3)
        with code.repeat() as end:
            now: Int = row.get()
            low = now * pitch - start
            code.leave((low >= lanes) | (now >= rows), end)
            begin, stop = code.maximum(low, 0), code.minimum(low + columns, lanes)
            with code.when(begin < stop):
                entry = entries + pieces.get() * 3
                entry[0] = now * stride - low
                entry[1] = between(code, begin, stop, lanes)
                pieces.set(pieces.get() + 1)
            row.set(now + 1)
        entries[2] = pieces.get()
        # A vector of zeros alone reads nothing.
        with code.when(pieces.get().equals(0)):
            entries[0], entries[1], entries[2] = 0, 0, 1
    with code.loop(0, filters) as filter_, code.loop(0, vectors) as vector:
        source, entries = dout + filter_ * channel, table + vector * (lanes * 3)
        value = code.variable(code.load(source + entries[0], code.mask_of_bits(entries[1])))
        with code.loop(1, entries[2]) as piece:
            entry = entries + piece * 3
            value.set(value.get() + code.load(source + entry[0], code.mask_of_bits(entry[1])))
        code.store(value.get(), panel + (filter_ * width + vector * lanes), align=code.bytes)
    return code


def _tiles(target: Target) -> Function:
    """Multiply a panel by the turned filters of some terms, and add the sums to the planes."""
    code = Function("tiles", TILES, target)
    panel, filters, plane, terms, count, length, pitch, vectors = code.given
    lanes, width, most = target.lanes, target.lanes * target.vectors, target.filters
    with code.loop(0, count, most) as term:
        left = count - term
        for size, fits in ((most, left > most // 2), (most // 2, left <= most // 2)):
            for each in range(1, target.vectors + 1):
                with code.when(fits & vectors.equals(each)):
                    places = [filters + code.minimum(term + i, count - 1) * pitch for i in range(size)]
                    sums = finished(sums_of(code, (panel, width), places, each, length))
                    for i, own in enumerate(sums):
                        with code.when(i < left):
                            goal = plane + terms[term + i]
                            for v, value in enumerate(own):
                                code.store(code.load(goal + v * lanes) + value, goal + v * lanes)
    return code


def _store(target: Target, every: int) -> Function:
    """Put the phases of the lines of a channel together, and store what lies inside of the input."""
    arguments = ("plan", "*i64"), ("plane", "*float"), ("out", "*float"), ("lines", "*i64")
    names = "first", "last", "origin", "low", "high"
    code = Function("store", [*(Argument(*each) for each in arguments), *map(Argument, names)], target, returns=True)
    memory, plane, out, lines, first, last, origin, low, high = code.given
    plan, lanes, check = PLAN.read(memory), target.lanes, code.variable(code.zeros)
    phases = plan.pointer("row_phases", INTEGER)
    with code.loop(first, last) as line:
        place: Int = lines[line * 2]
        with code.when(place >= 0):
            row, goal = plane + lines[line * 2 + 1], out + place
            if not every:
                with code.loop(low, high, lanes) as cell:
                    mask = code.lanes_between(None, high - cell)
                    store_part(code, target, code.zeros, goal + cell, high - cell, mask)
            with code.loop(0, plan.entries) as entry:
                at = entry * lanes
                # What follows in memory is the next row.
                reached = code.lanes_between(None, plan.columns_of_phase - at)
                if every:
                    own = [code.load(row + (phase * plan.phase_pitch + at), reached) for phase in range(every)]
                    for value in own:
                        code.look_at(check, value)
                    for number, value in enumerate(_interleaved(code, own)):
                        cell = origin + (at * every + number * lanes)
                        store_bits(code, target, value, goal + cell, between(code, low - cell, high - cell, lanes))
                else:
                    with code.loop(0, plan.row_phase_count) as phase:
                        value = code.load(row + (phase * plan.phase_pitch + at), reached)
                        code.look_at(check, value)
                        _scatter(code, value, goal, (origin + phases[phase] + at * plan.step, plan.step), (low, high))
    code.give(code.is_not_finite(check.get()))
    return code


def _interleaved(code: Function, vectors: list[Vector]) -> list[Vector]:
    """Return vectors side by side whose numbers are in turn from each of these."""
    count, lanes, found = len(vectors), code.lanes, []
    for number in range(count):
        wanted = [divmod(number * lanes + lane, count) for lane in range(lanes)]
        value = vectors[0]
        for phase, vector in enumerate(vectors):
            # Lanes that are already there stay, and those of this phase are taken from it.
            order = [lanes + at if own == phase else lane for lane, (at, own) in enumerate(wanted)]
            value = code.shuffle(value if phase else vector, vector, order)
        found.append(value)
    return found


def _scatter(code: Function, value: Vector, goal: Pointer, cells: tuple[Int, Int], ends: tuple[Int, Int]) -> None:
    """Store each lane on its own, at cells that are a step apart, if these are between two numbers."""
    (first, step), (low, high), buffer = cells, ends, code.array(code.lanes)
    code.store(value, buffer, align=code.bytes)
    with code.loop(0, code.lanes) as lane:
        cell = first + lane * step
        with code.when((cell >= low) & (cell < high)):
            goal[cell] = buffer[lane]


def _lines(target: Target) -> Function:
    """Write down where each line of the padded planes lies in the input, or -1, and where it is in a channel.

    Lines of a plane are counted from the padded line `start` on.
    """
    code = Function("lines", [Argument("plan", "*i64"), Argument("lines", "*i64"), Argument("start")], target)
    memory, lines, start = code.given
    plan = PLAN.read(memory)
    padded, befores, inputs, strides = (
        plan.pointer(name, INTEGER) for name in ("plane_padded", "plane_befores", "plane_inputs", "plane_strides")
    )
    with code.loop(0, plan.planes) as plane:
        place, inside = code.variable(0), code.variable(1)
        with digits(code, plane, plan.outer, padded) as (dim, at):
            cell = at - befores[dim]
            inside.set(code.select(cell.is_index(inputs[dim]), inside.get(), 0))
            place.set(place.get() + cell * strides[dim])
        with code.loop(0, plan.lines_of_plane) as number:
            line, entry = start + number - plan.above, lines + (plane * plan.lines_of_plane + number) * 2
            is_inside = line.is_index(plan.height) & ~inside.get().equals(0)
            entry[0] = code.select(is_inside, place.get() + line * plan.width, -1)
            row, phase = number // plan.line_step, number % plan.line_step
            entry[1] = plane * plan.plane_pitch + phase * plan.line_phase_pitch + row * plan.line_pitch
    return code


class _Share:
    """The function that computes one share: some channels of one sample, or of a part of its rows."""

    def __init__(self, target: Target, functions: list[Function]) -> None:
        self.target = target
        self.turn, self.spread, self.tiles, self.lines, self.store = functions
        self.code = code = Function("share", SHARE, target, returns=True)
        memory, _, w, _, _, _, shared, phase, index = code.given
        self.plan = plan = PLAN.read(memory)
        flag = code.variable(0)
        with code.when(phase.equals(0)):
            group, first = index // plan.turned_blocks, index % plan.turned_blocks * target.lanes
            of_group = plan.channels * plan.taps
            filters = w + group * plan.filters * of_group
            code.run(self.turn, memory, filters, shared + group * of_group * plan.turned_pitch, first)
        with code.when(~phase.equals(0)):
            flag.set(self.compute())
        code.give(flag.get())

    def compute(self) -> Int:
        """Compute the gradients of a share; return whether one is not finite."""
        code, plan, lanes = self.code, self.plan, self.target.lanes
        scratch, index = code.given[5], code.given[-1]
        part, rest = index % plan.parts, index // plan.parts
        block, rest = rest % plan.channel_blocks, rest // plan.channel_blocks
        group, sample = rest % plan.groups, rest // plan.groups
        channel = block * plan.channels_of_block
        channels = code.minimum(plan.channels - channel, plan.channels_of_block)
        # The cells of a part, along the dimension that is cut and counted with the padding, and what reaches them.
        low = part * plan.cells_of_part
        high = code.minimum(low + plan.cells_of_part, plan.cells_cut)
        first = (code.maximum(low - plan.reach, 0) + (plan.step_cut - 1)) // plan.step_cut
        last = code.minimum((high - 1) // plan.step_cut + 1, plan.outputs_cut)
        base = code.minimum(first, low // plan.step_cut)
        with code.loop(0, channels * plan.channel_pitch, lanes) as at:
            code.store(code.zeros, scratch + at, align=code.bytes)
        with code.when(first < last):
            self.add((sample, group, channel, channels), (first, last, base))
        return self.finish((sample, group, channel, channels), (low, high, base * plan.step_cut))

    def add(self, where: tuple[Int, Int, Int, Int], outputs: tuple[Int, Int, Int]) -> None:
        """Add what some outputs give, from the first one on, to planes that begin with the output `base`."""
        code, plan, (sample, group, channel, channels), (first, last, base) = self.code, self.plan, where, outputs
        _, x, _, _, _, scratch, shared, _, _ = code.given
        terms = (scratch.of("i8") + plan.at_terms).of(INTEGER)
        taps = plan.pointer("row_taps", INTEGER)
        with code.loop(0, plan.taps) as tap, code.loop(0, channels) as number:
            terms[tap * channels + number] = taps[tap] + number * plan.channel_pitch
        is_row = plan.is_row.equals(1)
        rows = code.select(is_row, 1, last - first)
        columns = code.select(is_row, last - first, plan.columns)
        of_output = code.select(is_row, 1, plan.columns)
        goal = scratch + (first - base) * code.select(is_row, 1, plan.line_pitch)
        grads = x + (sample * plan.x_sample + group * plan.filters * plan.positions + first * of_output)
        filters = shared + (group * plan.channels + channel) * plan.taps * plan.turned_pitch
        outs, steps = (plan.pointer(name, INTEGER) for name in ("plane_outs", "plane_steps"))
        with code.loop(0, plan.out_planes) as plane:
            place = code.variable(0)
            with digits(code, plane, plan.outer, outs) as (dim, at):
                place.set(place.get() + at * steps[dim])
            here = goal + place.get() * plan.plane_pitch
            self.plane((grads + plane * plan.out_plane, filters, terms, here), (rows, columns, channels * plan.taps))

    def plane(self, arrays: tuple[Pointer, Pointer, Pointer, Pointer], numbers: tuple[Int, Int, Int]) -> None:
        """Add what the outputs of one plane give, panel by panel."""
        code, plan, lanes = self.code, self.plan, self.target.lanes
        (grads, filters, terms, goal), (rows, columns, count) = arrays, numbers
        scratch = code.given[5]
        panel = (scratch.of("i8") + plan.at_panel).of(code.element)
        positions = (rows - 1) * plan.line_pitch + columns
        with code.loop(0, positions, lanes * self.target.vectors) as at, code.loop(0, plan.filters, RUN) as filter_:
            vectors = code.minimum((positions - at + (lanes - 1)) // lanes, self.target.vectors)
            length = code.minimum(plan.filters - filter_, RUN)
            code.run(
                self.spread, panel, grads + filter_ * plan.positions, at, vectors, rows, columns, plan.line_pitch,
                plan.columns, plan.positions, length,
            )  # fmt: skip
            code.run(
                self.tiles, panel, filters + filter_, goal + at, terms, count, length, plan.turned_pitch, vectors,
            )  # fmt: skip

    def finish(self, where: tuple[Int, Int, Int, Int], cells: tuple[Int, Int, Int]) -> Int:
        """Store the gradients of some cells, counted with the padding; return whether one is not finite."""
        code, plan, (sample, group, channel, channels), (low, high, start) = self.code, self.plan, where, cells
        memory, _, _, _, out, scratch, *_ = code.given
        lines, flag = (scratch.of("i8") + plan.at_lines).of(INTEGER), code.variable(0)
        is_row = plan.is_row.equals(1)
        code.run(self.lines, memory, lines, code.select(is_row, 0, start))
        is_cut = plan.parts > 1
        first_line = code.select(is_row | ~is_cut, 0, low - start)
        last_line = code.select(is_row | ~is_cut, plan.lines_of_plane * plan.planes, high - start)
        origin = code.select(is_row, start, 0) - plan.before
        left = code.select(is_row, code.maximum(low - plan.before, 0), 0)
        right = code.select(is_row, high - plan.before, plan.width)
        gradient = out + (sample * plan.out_sample + (group * plan.channels + channel) * plan.out_channel)
        with code.loop(0, channels) as number:
            found = code.call(
                self.store, memory, scratch + number * plan.channel_pitch, gradient + number * plan.out_channel,
                lines, first_line, last_line, origin, left, right,
            )  # fmt: skip
            flag.set(flag.get() + found)
        result: Int = flag.get()
        return result
