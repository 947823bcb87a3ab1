"""The plan of `rounded`: what a share of it is, and where the terms of one sum lie."""

from __future__ import annotations

import math
from array import array
from itertools import product

from .emit import Argument
from .record import Record
from .share import PLAN_HEAD
from .sizes import Layout, Planned, Sizes, addresses, blocks, ceiling, numbers
from .target import Target
from .values import NUMBERS

VARIANTS = ("windows", "filters")
COLUMNS_OF_SHARE, NUMBERS_OF_SHARE = 1 << 11, 1 << 14
"""The most columns of a share, whose norms stay in the nearest cache, and about how many sums one rounds."""
CYCLES_OF_VECTOR, CYCLES_OF_ROW = 10.0, 20.0
"""About how many vectors are multiplied in the time that a vector of sums and a row take."""

SUMS_PER_UNDECIDED, ALWAYS_UNDECIDED = 16, 8
"""One sum of a share in so many may be undecided, and always so many; or the call is given up: then all are better
multiplied as slices."""
MOST_DIMS = 16
"""The most dimensions that the terms of a window may have."""
ARRAYS = Record(
    *("first", "second", "first_factors", "second_factors", "row_squares", "column_squares", "biases"),
)
"""The arrays beside the sums and the results: the operands, quantised ("windows") or not ("filters"), what they are
multiplied by to be quantised, the sums of the squares of rows and of columns, and a bias of float32 for each row."""

ENDS = 3
"""The numbers that `ends` has for each tap: the first position of a line that reads a cell there, the one after the
last, and the cell that position 0 would read."""
LISTS = ("sizes", "positions", "strides", "steps", "spacings", "taps")
"""Lists of numbers for each dimension: the cells that are read, the results, the distance of neighbouring cells in
memory, by how many cells windows move, and how far cells lie apart; and for each tap its first cell."""
PLAN = Record(
    *PLAN_HEAD,
    *(
        "groups",
        "rows",
        "columns",
        "columns_of_share",
        "column_blocks",
        "written",
        "stacked",
        "apart",
        "relative_error",
        "undecided",
    ),
    *("row_step", "row_squares", "square_step", "row_met"),
    *("dims", "tap_count", "terms", "channel_cells", "term_step", "filter_step", "group_step"),
    *("samples", "lines", "line", "line_step", "in_sample", "out_sample", "ends"),
    *LISTS,
)
"""The plan in memory. A row of results has `written` columns, of which `columns` are computed. `stacked` arrays of
sums, `apart` from one another, are added up. So many sums of a share may be `undecided`. `relative_error` has the
bits of a float64: how far a sum is from the exact one in parts of the product of two norms. A row has a factor, and
`row_squares` sums of squares, every `square_step` numbers, from `row_step` numbers after those of the row before. No
more than `row_met` of them meet in one sum. What follows says where the terms of one sum are."""

EXACT = (
    *(Argument("plan", "*i64"), Argument("arrays", "*i64"), Argument("value", NUMBERS), Argument("met", "*i64")),
    *map(Argument, ("group", "row", "column")),
)
"""The arguments of the functions that add up the terms of one sum exactly: `value` gets it, rounded to odd, and `met`
is memory for two numbers a tap."""


def plan_of_windows(target: Target, sizes: Sizes, error: float, *, of_inputs: bool, written: int = 0) -> Planned | None:
    """Plan to round outputs, or gradients of inputs, whose terms are then the filters of a group.

    `error` is the largest relative error of a sum. The results may be some of the `written` cells of a channel.
    """
    ins, outs, taps = sizes.channels, sizes.filters, sizes.taps
    rows, terms = (ins, outs) if of_inputs else (outs, ins)
    if len(sizes.size) > MOST_DIMS:
        return None
    columns = sizes.cells if of_inputs else sizes.positions
    firsts = _firsts(sizes)
    if of_inputs:
        firsts = [[-cell for cell in each] for each in firsts]
        read, results, steps, spacings = sizes.out, sizes.size, (1,) * len(sizes.size), sizes.stride
        term_step, filter_step = ins * taps, taps
    else:
        read, results, steps, spacings = sizes.size, sizes.out, sizes.stride, (1,) * len(sizes.size)
        term_step, filter_step = taps, ins * taps
    lists = {
        **{"sizes": numbers(read), "positions": numbers(results), "strides": _strides(read)},
        **{"steps": numbers(steps), "spacings": numbers(spacings)},
        **{"taps": numbers([cell for tap in product(*firsts) for cell in tap])},
    }
    where = {
        **{"dims": len(read), "tap_count": taps, "terms": terms, "channel_cells": math.prod(read)},
        **{"term_step": term_step, "filter_step": filter_step, "group_step": outs * ins * taps},
        **{"row_step": taps if of_inputs else 1, "row_squares": taps if of_inputs else 1, "square_step": 1},
        **{"written": written or columns, "row_met": _met(sizes) if of_inputs else 1},
    }
    return _planned(target, "windows", (sizes.batch, sizes.groups, rows, columns), where | _bits(error), lists)


def plan_of_filters(target: Target, sizes: Sizes, error: float, stacked: int, squares: int) -> Planned:
    """Plan to round gradients of filters, of which so many sums are added up, and of the norms so many squares."""
    last, columns = len(sizes.size) - 1, sizes.channels * sizes.taps
    firsts = _firsts(sizes)
    ends = [(*sizes.reading(last, tap), cell) for tap, cell in enumerate(firsts[last])]
    taps = product(*firsts)
    of_taps = [ends[tap % sizes.kernel[last]] for tap in range(sizes.taps)]
    lists = {
        **{"sizes": numbers(sizes.size), "positions": numbers(sizes.out[:last]), "strides": _strides(sizes.size)},
        **{
            "steps": numbers(sizes.stride),
            "spacings": numbers(()),
            "ends": numbers([n for end in of_taps for n in end]),
        },
        **{"taps": numbers([cell for tap in taps for cell in tap[:last]])},
    }
    where = {
        **{"dims": last, "tap_count": sizes.taps, "terms": sizes.channels, "channel_cells": sizes.cells},
        **{"samples": sizes.batch, "lines": math.prod(sizes.out[:last]), "line": sizes.out[last]},
        **{"line_step": sizes.stride[last], "in_sample": sizes.in_channels * sizes.cells},
        **{"out_sample": sizes.out_channels * sizes.positions},
        **{"row_step": 1, "row_squares": squares, "square_step": sizes.out_channels},
        **{"written": columns, "row_met": squares},
    }
    return _planned(target, "filters", (1, sizes.groups, sizes.filters, columns), where | _bits(error), lists, stacked)


def _planned(
    target: Target,
    variant: str,
    shape: tuple[int, int, int, int],
    where: dict[str, int],
    lists: dict[str, array[int]],
    stacked: int = 1,
) -> Planned:
    samples, groups, rows, columns = shape
    most = min(COLUMNS_OF_SHARE, max(target.lanes, NUMBERS_OF_SHARE // max(1, rows)))
    column_blocks, columns_of_share = blocks(columns, most)
    # A share begins where a vector of the first row does.
    columns_of_share = ceiling(columns_of_share, target.lanes) * target.lanes
    column_blocks, layout = ceiling(columns, columns_of_share), Layout()
    layout.add(2 * target.number * columns_of_share)
    layout.add(16 * where["tap_count"])
    shares = samples * groups * column_blocks
    values = dict.fromkeys(PLAN.names, 0) | where | addresses(lists)
    values |= {"phases": 1, "shares_last": shares, "groups": groups, "rows": rows, "columns": columns}
    values |= {"columns_of_share": columns_of_share, "column_blocks": column_blocks}
    allowed = max(ALWAYS_UNDECIDED, rows * columns_of_share // SUMS_PER_UNDECIDED)
    values |= {"undecided": allowed, "stacked": stacked, "apart": groups * rows * columns}
    lines = samples * groups * rows * column_blocks
    cycles = lines * (columns_of_share // target.lanes * (CYCLES_OF_VECTOR + stacked) + CYCLES_OF_ROW)
    return Planned(variant, PLAN.packed(**values), (*lists.values(),), shares, layout.bytes, {}, cycles=cycles)


def _bits(error: float) -> dict[str, int]:
    return {"relative_error": array("q", array("d", [error]).tobytes())[0]}


def _firsts(sizes: Sizes) -> list[list[int]]:
    """Return, for each dimension, the cell that the first window reads through each tap."""
    edges = zip(sizes.kernel, sizes.dilation, sizes.before, strict=True)
    return [[tap * step - before for tap in range(count)] for count, step, before in edges]


def _met(sizes: Sizes) -> int:
    """Return how many taps of a filter meet a cell of the input at most."""
    steps = zip(sizes.kernel, sizes.stride, sizes.dilation, strict=True)
    return math.prod(ceiling(count, step // math.gcd(step, spacing)) for count, step, spacing in steps)


def _strides(sizes: tuple[int, ...]) -> array[int]:
    return numbers([math.prod(sizes[dim + 1 :]) for dim in range(len(sizes))])
