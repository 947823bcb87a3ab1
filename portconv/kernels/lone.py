"""Products of a lone column: what is left over where the positions do not fill a vector, such as one of 7x7.

A vector of positions, or of Winograd's tiles, would hold one or two numbers. So lanes run along the terms, which lie
side by side in a filter and in a copy of the column, and are added up at the end.
"""

from __future__ import annotations

from .emit import Argument, Function
from .target import Target
from .tile import filters_from
from .values import INTEGER


def lone_column(target: Target) -> Function:
    """Write the function that multiplies some filters by one column; it returns 1 if an output is not finite.

    Filters begin `pitch` numbers apart, and outputs go as many apart as there are positions.
    """
    pointers = (Argument(name, "*float") for name in ("cells", "w", "b", "out"))
    numbers = (Argument(name, INTEGER) for name in ("first", "last", "terms", "pitch", "positions", "bias_step"))
    code = Function("lone", [*pointers, *numbers], target, returns=True)
    cells, w, b, out, first, last, terms, pitch, positions, bias_step = code.given
    check, lanes, most = code.variable(code.zeros), target.lanes, target.filters
    whole = terms // lanes * lanes
    with code.loop(first, last, most) as at:
        filters = filters_from(code, w, pitch, at, last, most)
        sums = [code.variable(code.zeros) for _ in filters]
        with code.loop(0, whole, lanes) as term:
            cell = code.load(cells + term)
            for numbers_of_filter, total in zip(filters, sums, strict=True):
                total.set(code.fma(code.load(numbers_of_filter + term), cell, total.get()))
        mask = code.lanes_between(None, terms - whole)
        cell = code.load(cells + whole, mask)
        for i, (numbers_of_filter, total) in enumerate(zip(filters, sums, strict=True)):
            rest = code.fma(code.load(numbers_of_filter + whole, mask), cell, total.get())
            number = code.total(rest) + b[code.minimum(at + i, last - 1) * bias_step]
            with code.when(at + i < last):
                out[(at + i) * positions] = number
                code.look_at(check, code.splat(number))
    code.give(code.is_not_finite(check.get()))
    return code
