"""How an operation is computed: now, or as one node of the framework that the arrays belong to."""

from __future__ import annotations

import sys
from cmath import isfinite
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any, ParamSpec, TypeVar

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

WARNED = (*PRODUCTS, Kind.CHANNEL_SUM, Kind.FOLD)
"""The kinds whose results may be infinite or nan though no operand is."""


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

OPAQUE: list[Callable[..., Any]] = []
"""The functions that `opaque` decorates."""


def opaque(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function that torch.compile is to take as one call, without a look at its code.

    torch.compile reads the code of what it compiles: also this wrapper, before PyTorch's module of `frameworks` has
    told it which functions not to read. It imports a module where that is read as an attribute of its package.
    """
    OPAQUE.append(function)
    compiler = sys.modules.get("portconv.frameworks.torch_compile")
    if compiler is not None:  # a module that is imported later than that one
        compiler.take(function)

    @wraps(function)
    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        if is_traced():
            sys.modules["portconv.frameworks"].torch_compile  # noqa: B018
        return function(*arguments, **options)

    return call


def is_traced() -> bool:
    """Return whether torch.compile reads the code of the caller."""
    return "torch._dynamo" in sys.modules and sys.modules["torch"].compiler.is_dynamo_compiling()


def run(operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Run an operation: compute it now, or hand it to the framework, which may put it off, differentiate or map it."""
    if not backend.framework:
        return compute(operation, backend, *map(backend.plain, operands))
    if any(operation.conjugated):
        # The library conjugates, so that it differentiates products that are linear in both operands.
        pairs = zip(operands[:2], operation.conjugated, strict=True)
        operands = (*(conjugate(backend, array) if each else array for array, each in pairs), *operands[2:])
        # Of products with a constant in the padding, only gradients of filters conjugate an operand: the input.
        operation = changed(operation, geometry=operation.geometry.conjugate, conjugated=(False, False))
    node: Array = _framework(backend.framework).node(operation, backend, *operands)
    return node


def compute(operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Compute an operation now, of arrays of `backend`."""
    return backend.apart(_computed, operation, backend, *operands)


def _computed(operation: Operation, backend: Backend, *operands: Array) -> Array:
    step = partial(COMPUTE[operation.kind], operation, backend)
    if operation.kind in WARNED and isfinite(operation.geometry.value):
        return warned(backend, step, *operands)
    with backend.quiet():
        return step(*operands)


def warned(backend: Backend, step: Callable[..., Array], *operands: Array) -> Array:
    """Compute a step; a library that warns of infinities and nans warns of the result alone, once."""
    with backend.quiet():
        result = step(*operands)
        suspect = backend.is_suspect(result)
    if suspect:
        backend.warn_of(result, operands)
    return result


@cache
def _framework(module: str) -> Any:
    """Import the module that makes nodes of a framework, when an array of that framework first comes.

    This is the one place where the engine reaches upward: frameworks import the engine, and the engine none of them.
    """
    return forks.imported(module)
