"""Sums in float64 are rounded to float32 as the exact sums are, and a bias is added.

A sum of products of quantised numbers is off by a bound at most: that of its row times the norm of its column. Where
both ends of the range are rounded to one number, so is the exact sum. The others are added up exactly, at once.

A row is a filter, and a column a position ("windows", see `window_terms`), or a term of a filter ("filters", see
`filter_terms`).
"""

from __future__ import annotations

from .doubles import (
    as_number,
    differing,
    larger,
    narrowed,
    quotient,
    root,
    scalar,
    single_splat,
    smaller,
    store_single,
    widened,
)
from .emit import Function, Module
from .filter_terms import FilterTerms
from .rounded_plan import ARRAYS, PLAN, VARIANTS, plan_of_filters, plan_of_windows
from .share import SHARE, driver
from .target import Target
from .values import Flag, Int, Pointer, Vector
from .window_terms import WindowTerms

__all__ = ["VARIANTS", "module", "plan_of_filters", "plan_of_windows"]

TERMS: dict[str, type[WindowTerms | FilterTerms]] = {"windows": WindowTerms, "filters": FilterTerms}
"""What adds up the terms of one sum exactly."""


def module(target: Target, variant: str) -> Module:
    """Write a kernel: it returns 0 if all sums are rounded."""
    terms = TERMS[variant](target)
    share = _Share(target, variant, terms.code).code
    return Module([terms.code, share, *driver(target, share)])


class _Share:
    """The function that rounds the sums of one group, of all its rows and some columns."""

    def __init__(self, target: Target, variant: str, exact: Function) -> None:
        self.target, self.by_column, self.exact = target, variant == "filters", exact
        self.code = code = Function("share", SHARE, target, returns=True)
        memory, self.sums, arrays, _, self.out, scratch, *_, index = code.given
        self.plan, self.arrays = PLAN.read(memory), ARRAYS.read(arrays.of("i64"))
        plan = self.plan
        self.group, block = index // plan.column_blocks, index % plan.column_blocks
        self.first = block * plan.columns_of_share
        self.last = code.minimum(self.first + plan.columns_of_share, plan.columns)
        self.norms, self.scales = scratch, scratch + plan.columns_of_share
        self.met, self.given = (self.scales + plan.columns_of_share).of("i64"), (memory, arrays)
        self.error = memory.of("double")[PLAN.places["relative_error"]]
        self.undecided = code.variable(0)
        if self.by_column:
            self.prepare_filters()
        else:
            self.prepare_windows()
        with code.loop(0, plan.rows) as row:
            self.round_row(row)
        code.give(code.select(self.undecided.get() > plan.undecided, code.variable(1).get(), 0))

    def prepare_windows(self) -> None:
        """Write down the norms of the windows of the share."""
        code = self.code
        squares = self.arrays.pointer("column_squares", "double") + self.group * self.plan.columns
        with code.loop(self.first, self.last, self.target.lanes) as at:
            value = code.load(squares + at, code.lanes_between(None, self.last - at))
            code.store(root(code, value), self.norms + (at - self.first))

    def prepare_filters(self) -> None:
        """Write down the norms of the channels that the columns belong to, and what scales their sums."""
        code, plan = self.code, self.plan
        factors, squares = (self.arrays.pointer(name, "double") for name in ("second_factors", "column_squares"))
        with code.loop(self.first, self.last) as column:
            channel = self.group * plan.terms + column // plan.tap_count
            count, step = plan.row_squares, plan.groups * plan.terms
            self.norms[column - self.first] = self.norm(squares + channel, (count, step), count)
            self.scales[column - self.first] = quotient(code, scalar(code, 1.0), factors[channel])

    def norm(self, squares: Pointer, of: tuple[Int, Int], met: Int) -> Vector:
        """Return the root of a sum of squares, or no less than that of any `met` ones; they lie some numbers apart."""
        code, (count, step) = self.code, of
        total, largest = (code.variable(scalar(code, 0.0)) for _ in range(2))
        with code.loop(0, count) as number:
            square = squares[number * step]
            total.set(total.get() + square)
            largest.set(larger(code, square, largest.get()))
        most = largest.get() * as_number(code, met)
        return root(code, smaller(code, total.get(), most))

    def round_row(self, row: Int) -> None:
        """Round the sums of one row."""
        code, plan, arrays = self.code, self.plan, self.arrays
        of_group = self.group % plan.groups * plan.rows + row
        place = self.group * plan.rows + row
        squares = arrays.pointer("row_squares", "double") + of_group * plan.row_step
        bound = code.splat(self.norm(squares, (plan.row_squares, plan.square_step), plan.row_met) * self.error)
        factor = arrays.pointer("first_factors", "double")[of_group if self.by_column else self.group]
        if not self.by_column:
            factor = factor * arrays.pointer("second_factors", "double")[of_group * plan.row_step]
        scale: Vector = quotient(code, scalar(code, 1.0), factor)
        bias: Vector = arrays.pointer("biases", "float")[of_group]
        bias = bias + Vector(code, "float", "0.0")  # which makes -0 to +0
        out, lanes = self.out.of("float") + place * plan.written, self.target.lanes
        sums, numbers = self.sums + place * plan.columns, (bound, scale, bias)
        whole = self.first + (self.last - self.first) // lanes * lanes
        with code.loop(self.first, whole, lanes) as at:
            self.round_vector((row, at), sums + at, out, numbers, None)
        with code.when(whole < self.last):
            mask = code.lanes_between(None, self.last - whole)
            self.round_vector((row, whole), sums + whole, out, numbers, mask)

    def round_vector(
        self, at: tuple[Int, Int], sums: Pointer, out: Pointer, numbers: tuple[Vector, ...], mask: Flag | None
    ) -> None:
        """Round a vector of sums of a row, but for those that a mask leaves out."""
        code, plan, (_, column), (bound, scale, bias) = self.code, self.plan, at, numbers
        near, total, by = column - self.first, code.variable(code.load(sums, mask)), code.splat(scale)
        if self.by_column:
            with code.loop(1, plan.stacked) as number:
                total.set(total.get() + code.load(sums + number * plan.apart, mask))
            by = by * code.load(self.scales + near, mask)
        off = code.load(self.norms + near, mask) * bound
        upper, lower = narrowed(code, total.get() + off), narrowed(code, total.get() - off)
        # Powers of two scale exactly: results are zero or normal numbers.
        value = narrowed(code, widened(code, upper) * by)
        store_single(code, value + single_splat(code, bias), out + column, mask)
        bits = differing(code, upper, lower, mask)
        with code.when(~bits.equals(0)):
            self.decide_some(bits, at, out, (scale, bias))

    def decide_some(self, bits: Int, at: tuple[Int, Int], out: Pointer, numbers: tuple[Vector, Vector]) -> None:
        """Round the exact sums of the lanes whose bits are set."""
        row, column = at
        with self.code.loop(0, self.target.lanes) as lane, self.code.when((bits >> lane & 1).equals(1)):
            self.decide(row, column + lane, out, numbers)

    def decide(self, row: Int, column: Int, out: Pointer, numbers: tuple[Vector, Vector]) -> None:
        """Round an exact sum, unless there are too many."""
        code, (scale, bias) = self.code, numbers
        self.undecided.set(self.undecided.get() + 1)
        with code.when(self.undecided.get() <= self.plan.undecided):
            value = code.array(1)
            code.run(self.exact, *self.given, value, self.met, self.group, row, column)
            by = scale * self.scales[column - self.first] if self.by_column else scale
            exact = narrowed(code, value[0])
            out[column] = narrowed(code, widened(code, exact) * by) + bias
