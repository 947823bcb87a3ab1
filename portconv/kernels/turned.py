"""Matrices that are turned: channels that come last come first, and the other way round."""

from __future__ import annotations

from .emit import Function, Module
from .lanes import transposed
from .part_stores import store_part
from .record import Record
from .share import PLAN_HEAD, SHARE, driver
from .sizes import Planned, blocks, ceiling
from .target import Target
from .values import Int

VARIANTS = ("all",)
BLOCK, NUMBERS_OF_SHARE = 64, 1 << 15
"""So many rows and columns are read and written together, as the lines of both stay in the cache then; and about how
many numbers are one share."""
CYCLES_OF_VECTOR = 8.0
"""About how many vectors are multiplied in the time in which one is turned."""

PLAN = Record(*PLAN_HEAD, "rows", "columns", "rows_of_share", "blocks")
"""The plan in memory; each matrix has so many `blocks` of rows."""


def plan_of(target: Target, count: int, rows: int, columns: int) -> Planned:
    """Plan to turn so many matrices of so many rows and columns; the call says whether a number is not finite."""
    most = max(1, NUMBERS_OF_SHARE // (columns * BLOCK))
    of_matrix, size = blocks(ceiling(rows, BLOCK), most)
    shares = count * of_matrix
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares, "rows": rows, "columns": columns},
        **{"rows_of_share": size * BLOCK, "blocks": of_matrix},
    )
    vectors = count * ceiling(rows, target.lanes) * ceiling(columns, target.lanes) * target.lanes
    return Planned("all", values, (), shares, 0, {}, is_plain=False, cycles=vectors * CYCLES_OF_VECTOR)


def module(target: Target, variant: str) -> Module:
    """Write the kernel."""
    code = Function("share", SHARE, target, returns=True)
    memory, x, _, _, out, *_, index = code.given
    plan, check, lanes = PLAN.read(memory), code.variable(code.zeros), target.lanes
    matrix, block = index // plan.blocks, index % plan.blocks
    source, goal = (array + matrix * plan.rows * plan.columns for array in (x, out))

    def turn(row: Int, column: Int) -> None:
        rows, columns = code.minimum(plan.rows - row, lanes), code.minimum(plan.columns - column, lanes)
        read, stored = code.lanes_between(None, columns), code.lanes_between(None, rows)
        here = source + (row * plan.columns + column)
        # The last row stands for those beyond it, which are not stored.
        vectors = [code.load(here + code.minimum(i, rows - 1) * plan.columns, read) for i in range(lanes)]
        for value in vectors:
            code.look_at(check, value)
        for i, value in enumerate(transposed(code, vectors)):
            with code.when(i < columns):
                store_part(code, target, value, goal + ((column + i) * plan.rows + row), rows, stored)

    start = block * plan.rows_of_share
    stop = code.minimum(start + plan.rows_of_share, plan.rows)
    with code.loop(start, stop, BLOCK) as first_row, code.loop(0, plan.columns, BLOCK) as first:
        last_row, last = code.minimum(first_row + BLOCK, stop), code.minimum(first + BLOCK, plan.columns)
        with code.loop(first, last, lanes) as column, code.loop(first_row, last_row, lanes) as row:
            turn(row, column)
    code.give(code.is_not_finite(check.get()))
    return Module([code, *driver(target, code)])
