"""Gradients of the input of depthwise convolutions of any stride, of arrays whose channels come last.

Lanes run along the channels, and nothing is copied. The columns of a row of cells that lie a stride apart are a phase:
all of them meet the same taps, and neighbours meet neighbouring outputs. So a few of them are computed at once. The
first phase of the call turns the filters, so that there is a vector of channels for each tap.
"""

from __future__ import annotations

import math
from array import array
from itertools import product

from .emit import Argument, Function, Module
from .last_depthwise import first_channels, mask_of, turn_filters
from .last_plan import NARROW, WHOLE
from .outer import MOST_OUTER
from .part_stores import store_part
from .record import Record
from .row_copies import digits
from .share import PLAN_HEAD, SHARE, driver
from .sizes import Planned, Sizes, addresses, blocks, ceiling, numbers, share_products
from .target import Target
from .values import INTEGER, Int, Pointer

VARIANTS = (WHOLE, NARROW)
COLUMNS = (4, 2, 1)
"""So many columns of a phase are computed at once where no output lies outside, and of the rest."""
MOST_PHASES = 256
"""The most phases of a row: the plan has some numbers for each."""
COLUMNS_AHEAD = 16
"""Each tile asks for the lines that one of so many columns further on stores into."""
CYCLES_OF_PRODUCT, CYCLES_OF_COLUMN, CYCLES_OF_ROW, CYCLES_OF_FILTER = 1.5, 5.0, 80.0, 60.0
"""About how many vectors are multiplied in the time that a product takes, a cell, a row of them, and a vector of
filters that is turned."""

PLAN = Record(
    *PLAN_HEAD,
    *("channels", "pitch", "rows", "all_rows", "rows_of_share", "width", "out_width", "step", "of_sample"),
    *("phases_of_row", "taps", "first_tap", "next_tap", "taps_of_row", "rows_of_taps", "dims"),
    *("sizes", "outs", "steps", "strides", "firsts", "columns", "entries"),
)
"""The plan in memory. Rows are counted through those of all samples, and have `phases_of_row` phases each. `dims`
dimensions come before that of a row; of these there are lists: the sizes of the input and the output, the strides of
the convolution, those of the output's rows in memory, and for each tap the output that cell 0 meets, times the stride.
"""
OF_PHASE = 5
"""The numbers of a phase: its columns, the first one whose outputs are all inside and the one after the last, its first
entry and how many it has. An entry is a tap of a row, and the output that the phase's first column meets by it."""

TILE = (
    *(Argument(name, "*float") for name in ("dout", "w", "out")),
    *(Argument(name, "*i64") for name in ("active", "entries")),
    *(Argument(name) for name in ("rows", "taps", "column", "channels", "pitch", "step", "out_width")),
)
"""The arguments of a tile: arrays from the sample's, the vector of channels and the phase's first cell on; which rows
it meets; the entries of the phase; and its first column in the phase."""


def plan_of(target: Target, sizes: Sizes) -> Planned | None:
    """Plan the gradient of the input, or return nothing if this family does not serve it."""
    if not sizes.channels == sizes.filters == 1 or len(sizes.size) > MOST_OUTER:
        return None
    if not sizes.batch * sizes.cells * sizes.positions:
        return None
    phases = min(sizes.stride[-1], sizes.size[-1])  # no others have cells
    if phases > MOST_PHASES:
        return None
    dims, channels, vectors = len(sizes.size) - 1, sizes.in_channels, ceiling(sizes.in_channels, target.lanes)
    rows, of_row = sizes.cells // sizes.size[-1], sizes.kernel[-1]
    products = sizes.batch * sizes.positions * channels * sizes.taps
    shares = ceiling(products, share_products(products, target.lanes))
    row_blocks, rows_of_share = blocks(sizes.batch * rows, max(1, sizes.batch * rows // shares))
    lists = _lists(sizes, dims, phases)
    values = PLAN.packed(
        **{"phases": 2, "dims": dims, "channels": channels, "rows": rows} | addresses(lists),
        **{"shares_first": sizes.taps, "shares_last": row_blocks, "pitch": vectors * target.lanes},
        **{"all_rows": sizes.batch * rows, "rows_of_share": rows_of_share, "width": sizes.size[-1]},
        **{"out_width": sizes.out[-1], "step": sizes.stride[-1], "of_sample": channels * sizes.positions},
        **{"phases_of_row": phases, "taps": sizes.taps, "first_tap": 0, "next_tap": 1},
        **{"taps_of_row": of_row, "rows_of_taps": sizes.taps // of_row},
    )
    cycles = vectors * (sizes.batch * sizes.positions * sizes.taps * CYCLES_OF_PRODUCT + sizes.taps * CYCLES_OF_FILTER)
    cycles += sizes.batch * (vectors * sizes.cells * CYCLES_OF_COLUMN + rows * CYCLES_OF_ROW)
    return Planned(
        NARROW if channels < target.lanes else WHOLE, values, tuple(lists.values()), sizes.taps + row_blocks,
        16 * (sizes.taps // of_row), {"rows": rows_of_share}, sizes.number * sizes.taps * vectors * target.lanes,
        is_plain=False, cycles=cycles,
    )  # fmt: skip


def _lists(sizes: Sizes, dims: int, phases: int) -> dict[str, array[int]]:
    """Return the lists that the plan points to."""
    lines = list(zip(sizes.kernel, sizes.stride, sizes.dilation, sizes.before, strict=True))
    firsts = product(*([before - tap * apart for tap in range(taps)] for taps, _, apart, before in lines[:dims]))
    taps, step, apart, before = lines[-1]
    columns: list[int] = []
    entries: list[int] = []
    for phase in range(phases):
        met = [(tap, (phase + before - tap * apart) // step) for tap in range(taps)]
        met = [(tap, shift) for tap, shift in met if shift * step == phase + before - tap * apart]
        count = ceiling(sizes.size[-1] - phase, step)
        low = min(count, max(0, *(-shift for _, shift in met), 0))
        high = max(low, min(count, *(sizes.out[-1] - shift for _, shift in met), count))
        columns += [count, low, high, len(entries) // 2, len(met)]
        entries += [number for entry in met for number in entry]
    lists = {
        **{"sizes": sizes.size[:dims], "outs": sizes.out[:dims], "steps": sizes.stride[:dims]},
        **{"strides": [math.prod(sizes.out[dim + 1 :]) for dim in range(dims)]},
        **{"firsts": [first for tap in firsts for first in tap], "columns": columns, "entries": entries},
    }
    return {name: numbers(values) for name, values in lists.items()}


def module(target: Target, variant: str) -> Module:
    """Write the kernel: it returns 0 if all numbers are finite."""
    tiles = [_tile(target, count, narrow=variant == NARROW) for count in COLUMNS]
    edge = _tile(target, 1, narrow=variant == NARROW, is_edge=True)
    share = _Share(target, tiles, edge, narrow=variant == NARROW).code
    return Module([*tiles, edge, share, *driver(target, share)])


def _tile(target: Target, count: int, *, narrow: bool, is_edge: bool = False) -> Function:
    """Compute some columns of a phase, for a vector of channels; return 1 if a number is not finite."""
    code = Function("edge" if is_edge else f"tile{count}", TILE, target, returns=True)
    dout, w, out, active, entries, rows, taps, column, channels, pitch, step, out_width = code.given
    mask, check = mask_of(code, channels, narrow=narrow), code.variable(code.zeros)
    sums = [code.variable(code.zeros) for _ in range(count)]

    def add(here: Pointer, number: Pointer) -> None:
        tap = code.load(number)
        for i, total in enumerate(sums):
            total.set(code.fma(code.load(here + channels * i, mask), tap, total.get()))

    with code.loop(0, rows) as row, code.loop(0, taps) as tap:
        position, numbers_of_row = column + entries[tap * 2 + 1], w + active[row * 2 + 1]
        here, number = dout + (active[row * 2] + position * channels), numbers_of_row + entries[tap * 2] * pitch
        if is_edge:
            with code.when(position.is_index(out_width)):
                add(here, number)
        else:
            add(here, number)
    for i, total in enumerate(sums):
        code.look_at(check, total.get())
        goal = out + (column + i) * step * channels
        code.prefetch(goal + channels * COLUMNS_AHEAD, write=True)
        if mask is None:
            code.store(total.get(), goal)
        else:
            store_part(code, target, total.get(), goal, channels, mask)
    code.give(code.is_not_finite(check.get()))
    return code


class _Share:
    """The function that computes a share: a tap of all filters, turned, or some rows of the gradient."""

    def __init__(self, target: Target, tiles: list[Function], edge: Function, *, narrow: bool) -> None:
        self.tiles, self.edge, self.narrow = tiles, edge, narrow
        self.code = code = Function("share", SHARE, target, returns=True)
        memory, *_, scratch, _, phase, index = code.given
        self.plan = plan = PLAN.read(memory)
        self.flag, self.active, self.cells = code.variable(0), scratch.of(INTEGER), code.array(MOST_OUTER, INTEGER)
        with code.when(phase.equals(0)):
            turn_filters(code, plan, index, self.flag, narrow=narrow)
        with code.when(~phase.equals(0)):
            first = index * plan.rows_of_share
            with code.loop(first, code.minimum(first + plan.rows_of_share, plan.all_rows)) as row:
                self.row(row)
        code.give(self.flag.get())

    def row(self, row: Int) -> None:
        """Compute a row of the gradient."""
        code, plan = self.code, self.plan
        sample, count = row // plan.rows, self.find_rows(row % plan.rows)
        columns, entries = (plan.pointer(name, INTEGER) for name in ("columns", "entries"))
        grads, results = sample * plan.of_sample, row * plan.width * plan.channels
        with code.loop(0, plan.phases_of_row) as phase:
            number, low, high, first, taps = (columns[phase * OF_PHASE + i] for i in range(OF_PHASE))
            where = grads, results + phase * plan.channels
            of_phase = entries + first * 2, count, taps
            with code.loop(0, low) as column:
                self.compute(self.edge, where, of_phase, column)
            rest = low
            for size, tile in zip(COLUMNS, self.tiles, strict=True):
                tiled = rest + (high - rest) // size * size
                with code.loop(rest, tiled, size) as column:
                    self.compute(tile, where, of_phase, column)
                rest = tiled
            with code.loop(high, number) as column:
                self.compute(self.edge, where, of_phase, column)

    def find_rows(self, number: Int) -> Int:
        """Write down which rows of outputs a row of cells meets, and by which taps; return how many."""
        code, plan, count = self.code, self.plan, self.code.variable(0)
        names = "sizes", "outs", "steps", "strides", "firsts"
        sizes, outs, steps, strides, firsts = (plan.pointer(name, INTEGER) for name in names)
        with digits(code, number, plan.dims, sizes) as (dim, at):
            self.cells[dim] = at
        with code.loop(0, plan.rows_of_taps) as tap:
            place, inside = code.variable(0), code.variable(1)
            with code.loop(0, plan.dims) as dim:
                ahead = self.cells[dim] + firsts[tap * plan.dims + dim]
                position = ahead // steps[dim]
                # Before the first output the quotient is larger than any size.
                is_there = position.is_index(outs[dim]) & (ahead % steps[dim]).equals(0)
                inside.set(code.select(is_there, inside.get(), 0))
                place.set(place.get() + position * strides[dim])
            with code.when(inside.get().equals(1)):
                self.active[count.get() * 2] = place.get() * plan.channels
                self.active[count.get() * 2 + 1] = tap * plan.taps_of_row * plan.pitch
                count.set(count.get() + 1)
        return count.get()  # type: ignore[no-any-return]

    def compute(self, tile: Function, where: tuple[Int, Int], of_phase: tuple[Pointer, Int, Int], column: Int) -> None:
        """Compute some columns of a phase from one on, so that they are written from the first channel to the last."""
        code, plan, (grads, results), (entries, rows, taps) = self.code, self.plan, where, of_phase
        _, dout, _, _, out, _, turned, *_ = code.given
        with code.loop(0, (plan.channels + (code.lanes - 1)) // code.lanes) as vector:
            channel = first_channels(code, plan, vector, narrow=self.narrow)
            found = code.call(
                tile, dout + (grads + channel), turned + channel, out + (results + channel), self.active, entries,
                rows, taps, column, plan.channels, plan.pitch, plan.step, plan.out_width,
            )  # fmt: skip
            self.flag.set(self.flag.get() + found)
