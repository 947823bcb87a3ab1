"""What a plan needs to know of the two operands of a product."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backends import Array, Backend
from ..spec.operation import Kind, Operation


class Given(NamedTuple):
    """What a plan needs to know of an operand.

    Attributes
    ----------
    dtype : dtype
    in_order : bool
        Whether it lies in memory in an order that suits products; if not, it is copied first.
    in_a_row : bool
        Whether its elements lie one after the other; some algorithms need that.
    """

    dtype: Any
    in_order: bool = True
    in_a_row: bool = True


Operands = tuple[Given, Given]


def given(operation: Operation, backend: Backend, a: Array, b: Array) -> Operands:
    """Return what a plan needs to know of two operands, as the caller has them."""
    batched = not operation.unbatched
    return (
        Given(a.dtype, backend.in_order(a, batched), backend.lies_in_a_row(a)),
        Given(b.dtype, backend.in_order(b, batched and operation.kind == Kind.WEIGHT_GRAD), backend.lies_in_a_row(b)),
    )


def ordered(operands: Operands) -> Operands:
    """Describe the same operands in an order that suits products."""
    a, b = operands
    return a._replace(in_order=True), b._replace(in_order=True)


def in_rows(operands: Operands) -> Operands:
    """Describe the same operands as such that are copied where their elements do not lie one after the other."""
    a, b = operands
    return a._replace(in_order=a.in_order and a.in_a_row), b._replace(in_order=b.in_order and b.in_a_row)
