"""Matrices that are turned: channels that come last come first, and the other way round.

Matrices of two columns, as are the parts of complex numbers, are split, and those of two rows joined, whole vectors at
a time.
"""

from __future__ import annotations

from .emit import Function, Module
from .lanes import transposed
from .part_stores import store_part
from .record import Record
from .share import PLAN_HEAD, SHARE, driver
from .sizes import Planned, blocks, ceiling
from .target import Target
from .values import Int

SPLIT, JOINED = "split", "joined"
VARIANTS = ("all", SPLIT, JOINED)
BLOCK, NUMBERS_OF_SHARE = 64, 1 << 15
"""So many rows and columns are read and written together, as the lines of both stay in the cache then; and about how
many numbers are one share."""
CYCLES_OF_VECTOR = 8.0
"""About how many vectors are multiplied in the time in which one is turned."""

PLAN = Record(*PLAN_HEAD, "rows", "columns", "rows_of_share", "blocks")
"""The plan in memory; each matrix has so many `blocks` of rows."""


def plan_of(target: Target, count: int, rows: int, columns: int) -> Planned:
    """Plan to turn so many matrices of so many rows and columns; the call says whether a number is not finite."""
    variant = SPLIT if columns == 2 else JOINED if rows == 2 else "all"
    cells = columns if variant == JOINED else rows
    others = rows if variant == JOINED else columns
    most = max(1, NUMBERS_OF_SHARE // (max(1, others) * BLOCK))
    of_matrix, size = blocks(ceiling(cells, BLOCK), most)
    shares = count * of_matrix
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares, "rows": rows, "columns": columns},
        **{"rows_of_share": size * BLOCK, "blocks": of_matrix},
    )
    vectors = count * ceiling(rows, target.lanes) * ceiling(columns, target.lanes) * target.lanes
    if variant != "all":
        vectors = 2 * count * ceiling(cells, target.lanes)
    return Planned(variant, values, (), shares, 0, {}, is_plain=False, cycles=vectors * CYCLES_OF_VECTOR)


def module(target: Target, variant: str) -> Module:
    """Write the kernel."""
    if variant != "all":
        return _of_pairs(target, splits=variant == SPLIT)
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


def _of_pairs(target: Target, *, splits: bool) -> Module:
    """Write the kernel that splits pairs of numbers into two rows, or joins two rows to pairs."""
    code = Function("share", SHARE, target, returns=True)
    memory, x, _, _, out, *_, index = code.given
    plan, check, lanes = PLAN.read(memory), code.variable(code.zeros), target.lanes
    matrix, block = index // plan.blocks, index % plan.blocks
    source, goal = (array + matrix * plan.rows * plan.columns for array in (x, out))
    cells, start = plan.rows if splits else plan.columns, block * plan.rows_of_share
    with code.loop(start, code.minimum(start + plan.rows_of_share, cells), lanes) as cell:
        left = code.minimum(cells - cell, lanes)
        pairs, of_pairs = source if splits else goal, [(cell * 2, left * 2), (cell * 2 + lanes, left * 2 - lanes)]
        parts, of_parts = goal if splits else source, [(cell, left), (cells + cell, left)]
        read, stored = (pairs, parts) if splits else (parts, pairs)
        reads, stores = (of_pairs, of_parts) if splits else (of_parts, of_pairs)
        found = [code.load(read + at, code.lanes_between(None, count)) for at, count in reads]
        for value in found:
            code.look_at(check, value)
        if splits:
            moved = [code.every(2, found, part) for part in range(2)]
        else:
            order = [part * lanes + lane for lane in range(lanes) for part in range(2)]
            moved = [code.shuffle(found[0], found[1], order[half * lanes :][:lanes]) for half in range(2)]
        for (at, count), value in zip(stores, moved, strict=True):
            with code.when(count > 0):
                store_part(code, target, value, stored + at, count, code.lanes_between(None, count))
    code.give(code.is_not_finite(check.get()))
    return Module([code, *driver(target, code)])
