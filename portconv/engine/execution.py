"""How an operation is computed: now, or as one node of the framework that the arrays belong to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from .. import forks
from ..backends import Array, Backend
from ..passes.casts import conjugate
from ..spec.operation import PRODUCTS, Kind, Operation, changed
from . import channels, im2col, products, rounding_error

COMPUTE: dict[Kind, Callable[..., Array]] = {
    **dict.fromkeys(PRODUCTS, products.product),
    Kind.CHANNEL_SUM: channels.add_up,
    Kind.SPREAD: channels.spread,
    Kind.UNFOLD: im2col.unfold,
    Kind.FOLD: im2col.fold,
    Kind.ERROR_BOUND: rounding_error.bound,
}
"""What computes each kind of operation."""


def run(operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Run an operation: compute it now, or hand it to the framework, which may put it off, differentiate or map it."""
    if not backend.framework:
        return compute(operation, backend, *operands)
    if any(operation.conjugated):
        # The library conjugates, so that it differentiates products that are linear in both operands.
        pairs = zip(operands[:2], operation.conjugated, strict=True)
        operands = (*(conjugate(backend, array) if each else array for array, each in pairs), *operands[2:])
        operation = changed(operation, conjugated=(False, False))
    node: Array = _framework(backend.framework).node(operation, backend, *operands)
    return node


def compute(operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Compute an operation now, of arrays of `backend`."""
    return backend.apart(COMPUTE[operation.kind], operation, backend, *operands)


@cache
def _framework(module: str) -> Any:
    """Import the module that makes nodes of a framework, when an array of that framework first comes.

    This is the one place where the engine reaches upward: frameworks import the engine, and the engine none of them.
    """
    return forks.imported(module)
