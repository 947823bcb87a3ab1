"""Depthwise convolution of arrays whose channels come last: lanes run along the channels, and nothing is copied.

The first phase turns the filters, so that there is a vector of channels for each tap. A share of the second one
computes rows of outputs, for one vector of channels after the other. Rows of cells that lie in the padding are left
out, and so are taps at the edges of a row: as zero times what is not finite is nan, the filters are looked at.
"""

from __future__ import annotations

from collections.abc import Callable

from .emit import Argument, Function, Module
from .last_plan import NARROW, PLAN, SHAPES, VARIANTS
from .last_plan import plan_of_outputs as plan_of
from .outer import Outer
from .part_stores import store_part
from .record import Fields
from .share import SHARE, driver
from .target import Target
from .values import INTEGER, Flag, Int, Number, Variable, Vector

__all__ = ["VARIANTS", "module", "plan_of"]

COLUMNS, EDGE = (8, 4), 4
"""So many outputs are computed at once where none of them reads padding in its row, and of the rest; and so many at the
edges, or one where the shape is not known."""
COLUMNS_AHEAD = 32
"""Each tile asks for the lines that one of so many columns further on stores into."""

TILE = (
    *(Argument(name, "*float") for name in ("x", "w", "b", "out")),
    Argument("active", "*i64"),
    *(Argument(name) for name in ("count", "first", "last", "outputs")),
    *(Argument(name) for name in ("channels", "apart", "step", "pitch", "bias_step")),
)
"""The arguments of a tile: arrays from its cell, vector of channels and output on; which rows of cells it reads, and
how many; the cells along a row that are inside, from its own on, or the taps that read these; the outputs that are
stored; and how far numbers are apart: cells, those of two taps, those of two outputs."""


def module(target: Target, variant: str) -> Module:
    """Write the kernel."""
    narrow = variant == NARROW
    shape = SHAPES.get(variant)
    tiles = {count: _tile(target, count, shape, narrow=narrow) for count in COLUMNS}
    edge = _tile(target, 1, None, narrow=narrow) if shape is None else _edge(target, shape)
    share = _Share(target, tiles, edge, EDGE if shape else 1, narrow=narrow).code
    return Module([*tiles.values(), edge, share, *driver(target, share)])


def first_channels(code: Function, plan: Fields, vector: Int, *, narrow: bool) -> Int:
    """Return the first channel of a vector: the last vector begins early enough to be a whole one."""
    start = vector * code.lanes
    return start if narrow else code.minimum(start, plan.channels - code.lanes)


def mask_of(code: Function, channels: Number, *, narrow: bool) -> Flag | None:
    """Return the mask of a vector of channels, or nothing where it is whole."""
    return code.lanes_between(None, channels) if narrow else None


def turn_filters(code: Function, plan: Fields, tap: Int, flag: Variable, *, narrow: bool) -> None:
    """Bring the numbers of a tap of all filters side by side, and let a flag rise if one is not finite."""
    _, _, w, _, _, _, turned, *_ = code.given
    check = code.variable(code.zeros)
    with code.loop(0, (plan.channels + (code.lanes - 1)) // code.lanes) as vector:
        channel = first_channels(code, plan, vector, narrow=narrow)
        place = w + (channel * plan.taps + plan.first_tap + tap * plan.next_tap)
        value = code.gather(place, plan.taps, code.lanes_between(None, plan.channels - channel))
        code.look_at(check, value)
        code.store(value, turned + (tap * plan.pitch + channel))
    flag.set(flag.get() + code.is_not_finite(check.get()))


def _add_row(
    code: Function, sums: list[Variable], of_taps: list[Vector], stride: int, cell_at: Callable[[int], Vector]
) -> None:
    """Add the products of a row of cells, each of which is loaded once for all taps, to the sums of some outputs."""
    for place in range((len(sums) - 1) * stride + len(of_taps)):
        cell = cell_at(place)
        for i, total in enumerate(sums):
            if 0 <= place - i * stride < len(of_taps):
                total.set(code.fma(cell, of_taps[place - i * stride], total.get()))


def _edge(target: Target, shape: tuple[int, int]) -> Function:
    """Compute at most `EDGE` outputs of a row, of which some cells lie in the padding, as `_tile` does."""
    code, (taps, stride) = Function("edge", TILE, target, returns=True), shape
    x, w, b, out, active, rows, first, last, outputs, channels, _, _, pitch, bias_step = code.given
    check, sums = code.variable(code.zeros), [code.variable(code.zeros) for _ in range(EDGE)]
    places = range((EDGE - 1) * stride + taps)
    here = [code.minimum(code.maximum(first, place), last - 1) for place in places]
    with code.when(first < last), code.loop(0, rows) as row:
        cells, numbers = x + active[row * 2], w + active[row * 2 + 1]
        of_taps = [code.load(numbers + pitch * tap) for tap in range(taps)]

        def cell_at(place: int) -> Vector:
            inside: Flag = here[place].equals(place)
            cell: Vector = code.select(inside, code.load(cells + here[place] * channels), code.zeros)
            return cell

        _add_row(code, sums, of_taps, stride, cell_at)
    bias = code.variable(code.zeros)
    with code.when(bias_step.equals(1)):
        bias.set(code.load(b))
    for i, total in enumerate(sums):
        with code.when(outputs > i):
            value = total.get() + bias.get()
            code.look_at(check, value)
            code.store(value, out + channels * i)
    code.give(code.is_not_finite(check.get()))
    return code


def _tile(target: Target, count: int, shape: tuple[int, int] | None, *, narrow: bool) -> Function:
    """Compute some outputs of a row, for a vector of channels; return 1 if one is not finite."""
    code = Function(f"tile{count}", TILE, target, returns=True)
    x, w, b, out, active, rows, first, last, _, channels, apart, step, pitch, bias_step = code.given
    mask, check = mask_of(code, channels, narrow=narrow), code.variable(code.zeros)
    sums = [code.variable(code.zeros) for _ in range(count)]
    with code.loop(0, rows) as row:
        cells, numbers = x + active[row * 2], w + active[row * 2 + 1]
        if shape is not None:
            taps, stride = shape
            of_taps = [code.load(numbers + pitch * tap) for tap in range(taps)]
            _add_row(code, sums, of_taps, stride, lambda place: code.load(cells + channels * place))
        else:
            with code.loop(first, last) as tap:
                here, number = cells + tap * apart, code.load(numbers + tap * pitch)
                for i, total in enumerate(sums):
                    total.set(code.fma(code.load(here + step * i, mask), number, total.get()))
    with code.when(bias_step.equals(1)):
        bias = code.load(b, mask)
        for total in sums:
            total.set(total.get() + bias)
    for i, total in enumerate(sums):
        code.look_at(check, total.get())
        goal = out + channels * i
        code.prefetch(goal + channels * COLUMNS_AHEAD, write=True)
        if mask is None:
            code.store(total.get(), goal)
        else:
            store_part(code, target, total.get(), goal, channels, mask)
    code.give(code.is_not_finite(check.get()))
    return code


class _Share:
    """The function that computes a share: some columns of some rows."""

    def __init__(
        self, target: Target, tiles: dict[int, Function], edge: Function, of_edge: int, *, narrow: bool
    ) -> None:
        self.target, self.tiles, self.edge, self.of_edge, self.narrow = target, tiles, edge, of_edge, narrow
        self.code = code = Function("share", SHARE, target, returns=True)
        memory, *_, scratch, _, phase, index = code.given
        self.plan = plan = PLAN.read(memory)
        self.flag, self.outer = code.variable(0), Outer(code, plan)
        self.active = scratch.of(INTEGER)
        self.vectors = (plan.channels + (code.lanes - 1)) // code.lanes
        with code.when(phase.equals(0)):
            turn_filters(code, plan, index, self.flag, narrow=narrow)
        with code.when(~phase.equals(0)):
            first = index // plan.column_blocks * plan.rows_of_share
            start = index % plan.column_blocks * plan.columns_of_share
            stop = code.minimum(start + plan.columns_of_share, plan.columns)
            with code.loop(first, code.minimum(first + plan.rows_of_share, plan.all_rows)) as row:
                self.row(row, start, stop)
        code.give(self.flag.get())

    def row(self, row: Int, start: Int, stop: Int) -> None:
        """Compute the outputs of a row from one column to another."""
        code, plan = self.code, self.plan
        sample, of_sample = row // plan.rows, row % plan.rows
        self.outer.enter(of_sample)
        count = code.variable(0)
        with code.loop(0, plan.taps // plan.taps_of_row) as tap:
            first, inside = self.outer.read(tap)
            with code.when(inside.equals(1)):
                entry = self.active + count.get() * 2
                entry[0] = first * plan.channels
                entry[1] = tap * plan.taps_of_row * plan.pitch
                count.set(count.get() + 1)
        inner, end = (code.minimum(code.maximum(each, start), stop) for each in (plan.inner_start, plan.inner_stop))
        cells, results = sample * plan.x_sample, row * plan.columns * plan.channels
        self.ask_ahead(cells, start, stop, count.get())
        where, rest = (cells, results, count.get()), inner
        for size, tile in self.tiles.items():
            tiled = rest + (end - rest) // size * size
            with code.loop(rest, tiled, size) as column:
                self.compute(tile, where, (column, code.variable(size).get()))
            rest = tiled
        for low, high in ((start, inner), (rest, stop)):
            with code.loop(low, high, self.of_edge) as column:
                self.compute(self.edge, where, (column, high - column))

    def ask_ahead(self, cells: Int, start: Int, stop: Int, count: Int) -> None:
        """Ask for the cells that the next row of outputs reads first, which come meanwhile, as they lie."""
        code, plan = self.code, self.plan
        last = self.active[code.maximum(count - 1, 0) * 2] + cells + plan.x_ahead
        here = code.given[1] + (last + (start * plan.step - plan.before) * plan.channels)
        with code.loop(0, (stop - start) * plan.step * plan.channels, code.numbers_of_line) as at:
            code.prefetch(here + at)

    def compute(self, tile: Function, where: tuple[Int, Int, Int], outputs: tuple[Int, Int]) -> None:
        """Compute some outputs from a column on, from the first channel to the last, of so many rows of cells."""
        code, plan, (cells, results, rows), (column, count) = self.code, self.plan, where, outputs
        _, x, _, b, out, _, turned, *_ = code.given
        cell = column * plan.step - plan.before
        first, last = code.maximum(0 - cell, 0), plan.width - cell
        if self.of_edge == 1:
            first, last = code.variable(0).get(), code.variable(plan.taps_of_row).get()
            if tile is self.edge:
                first, last = (
                    code.minimum((code.maximum(each, 0) + (plan.apart - 1)) // plan.apart, plan.taps_of_row)
                    for each in (0 - cell, plan.width - cell)
                )
        with code.loop(0, self.vectors) as vector:
            channel = first_channels(code, plan, vector, narrow=self.narrow)
            found = code.call(
                tile, x + (cells + cell * plan.channels + channel), turned + channel, b + channel * plan.bias_step,
                out + (results + column * plan.channels + channel), self.active, rows, first, last, count,
                plan.channels, plan.apart * plan.channels, plan.step * plan.channels, plan.pitch, plan.bias_step,
            )  # fmt: skip
            self.flag.set(self.flag.get() + found)
