"""Copies of narrow numbers into packs, whose products are added up by one instruction (see `dots`).

Rows of a matrix are taken together: a pack has the numbers of a few rows that lie in one column. What is missing in the
last rows are zeros.
"""

from __future__ import annotations

from .emit import Function, Module
from .record import Record
from .share import PLAN_HEAD, SHARE, driver
from .sizes import Planned, blocks, ceiling
from .target import Target
from .values import BRAINS, BYTES, FLAG, INTEGER, PACKS, PAIRS, Flag, Int, Pointer, Variable, Vector

KINDS = {"bytes": BYTES, "pairs": PAIRS, "bfloat16s": BRAINS}
"""The kernels, and the packs that each makes."""
VARIANTS = tuple(KINDS)
MAGNITUDE, TINY = 0x7FFF, (127 - 50) << 7
"""The bits of a magnitude of bfloat16, and those of 2**-50.

The instruction that multiplies packs of these takes numbers, and sums, below 2**-126 for zero. Products of numbers that
are no less than 2**-50 are multiples of 2**-114, as a number of bfloat16 is a multiple of its last digit, which counts
2**-7 times as much as the first. So are their sums, rounded or not, and none of them is so small.
"""
PACKS_OF_SHARE = 1 << 13
"""About how many packs are one share."""
CYCLES_OF_VECTOR, CYCLES_OF_ROW = 6.0, 12.0
"""About how many vectors are multiplied in the time in which a vector of packs is made, and a row of packs is begun."""

PLAN = Record(
    *PLAN_HEAD, "rows", "columns", "packs", "all_packs", "packs_of_share", "columns_of_share", "column_blocks"
)
"""The plan in memory; each matrix has so many rows of `packs`, and all of them have `all_packs`."""


def plan_of(target: Target, variant: str, count: int, rows: int, columns: int) -> Planned:
    """Plan the copy of so many matrices of so many rows and columns."""
    packs = ceiling(rows, PACKS[KINDS[variant]])
    column_blocks, of_columns = blocks(ceiling(columns, target.lanes), PACKS_OF_SHARE // target.lanes)
    pack_blocks, of_packs = blocks(count * packs, max(1, PACKS_OF_SHARE // max(1, columns)))
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": pack_blocks * column_blocks, "rows": rows},
        **{"columns": columns, "packs": packs, "all_packs": count * packs, "packs_of_share": of_packs},
        **{"columns_of_share": of_columns * target.lanes, "column_blocks": column_blocks},
    )
    cycles = count * packs * (ceiling(columns, target.lanes) * CYCLES_OF_VECTOR + CYCLES_OF_ROW)
    return Planned(variant, values, (), pack_blocks * column_blocks, 0, {}, cycles=cycles)


def module(target: Target, variant: str) -> Module:
    """Write the kernel for one kind of packs."""
    code, count = Function("share", SHARE, target, returns=True), PACKS[KINDS[variant]]
    memory, x, _, _, out, *_, index = code.given
    plan, least = PLAN.read(memory), code.variable(Vector(code, code.vector_type, "splat (i32 -1)"))
    first, column = index // plan.column_blocks * plan.packs_of_share, index % plan.column_blocks
    start = column * plan.columns_of_share
    stop = code.minimum(start + plan.columns_of_share, plan.columns)
    with code.loop(first, code.minimum(first + plan.packs_of_share, plan.all_packs)) as pack:
        matrix, row = pack // plan.packs, pack % plan.packs * count
        rows = code.minimum(plan.rows - row, count)
        source = x.of(f"i{32 // count}") + (matrix * plan.rows + row) * plan.columns
        # The last row stands for those that are missing, of which nothing is taken.
        places = [source + code.minimum(i, rows - 1) * plan.columns for i in range(count)]
        taken = [code.select(rows > i, code.variable(-1).get(), 0) for i in range(count)]
        row_of_packs = _Row(code, places, taken, least if variant == "bfloat16s" else None)
        row_of_packs.make(out + pack * plan.columns, (start, stop), target.name == "avx512")
    code.give(_is_below(code, least, TINY - 1) if variant == "bfloat16s" else 0)
    return Module([code, *driver(target, code)])


class _Row:
    """A row of packs: the rows that it is made of, and which of them are there.

    `least` gets the least magnitudes that are not zero, less one, of numbers of bfloat16.
    """

    def __init__(self, code: Function, places: list[Pointer], taken: list[Int], least: Variable | None) -> None:
        self.code, self.places, self.taken, self.least = code, places, taken, least
        self.width = 32 // len(places)

    def make(self, goal: Pointer, ends: tuple[Int, Int], has_masks: bool) -> None:
        """Make the packs of some columns: whole vectors, and then a part of one, or one by one."""
        code, (start, stop), lanes = self.code, ends, self.code.lanes
        last = start + (stop - start) // lanes * lanes
        with code.loop(start, last, lanes) as column:
            code.store(self.vector(column), goal + column)
        if has_masks:
            with code.when(last < stop):
                mask = code.lanes_between(None, stop - last)
                code.store(self.vector(last, mask), goal + last, mask)
            return
        with code.loop(last, stop) as column:
            # One pack in all lanes.
            packed: Vector | None = None
            for i, place in enumerate(self.places):
                number = code.assign(f"load i{self.width}, ptr {place + column}, align {self.width // 8}")
                wide = code.splat(Vector(code, "i32", code.assign(f"zext i{self.width} {number} to i32")))
                packed = self.joined(packed, wide, i)
            assert packed is not None
            (goal + column)[0] = Vector(code, "i32", code.assign(f"extractelement {packed.typed}, i64 0"))

    def vector(self, column: Int, mask: Flag | None = None) -> Vector:
        """Return the packs from a column on; those that a mask leaves out are zeros."""
        code, packed, width = self.code, None, self.width
        kind = f"<{code.lanes} x i{width}>"
        for i, place in enumerate(self.places):
            at, align = place + column, width // 8
            if mask is None:
                found = code.assign(f"load {kind}, ptr {at}, align {align}")
            else:
                name = f"masked.load.v{code.lanes}i{width}.p0"
                code.declared.add(f"declare {kind} @llvm.{name}(ptr, i32, {mask.type}, {kind})")
                operands = f"ptr {at}, i32 {align}, {mask.typed}, {kind} zeroinitializer"
                found = code.assign(f"call {kind} @llvm.{name}({operands})")
            wide = Vector(code, code.vector_type, code.assign(f"zext {kind} {found} to {code.vector_type}"))
            packed = self.joined(packed, wide, i)
        assert packed is not None
        return packed

    def joined(self, packed: Vector | None, numbers: Vector, place: int) -> Vector:
        """Add the numbers of a row, if it is there, to packs of the rows before."""
        code, type = self.code, self.code.vector_type
        if self.least is not None:
            size = code.assign(f"and {numbers.typed}, splat (i32 {MAGNITUDE})")
            less = code.assign(f"sub {type} {size}, splat (i32 1)")
            operands = self.least.get().typed, f"{type} {less}"
            self.least.set(Vector(code, type, code.intrinsic(type, f"umin.v{code.lanes}i32", *operands)))
        if packed is None:
            return numbers
        kept = code.spread(code.assign(f"trunc {INTEGER} {self.taken[place]} to i32"), "i32")
        kept = code.assign(f"and {numbers.typed}, {kept}")
        moved = code.assign(f"shl {type} {kept}, splat (i32 {self.width * place})")
        return Vector(code, type, code.assign(f"or {packed.typed}, {moved}"))


def _is_below(code: Function, numbers: Variable, size: int) -> Int:
    """Return 1 if a lane is below a size, else 0."""
    lanes = code.assign(f"icmp ult {numbers.get().typed}, splat (i32 {size})")
    some = code.assign(f"bitcast {code.mask_type} {lanes} to i{code.lanes}")
    is_some = code.assign(f"icmp ne i{code.lanes} {some}, 0")
    return Int(code, INTEGER, code.assign(f"zext {FLAG} {is_some} to {INTEGER}"))
