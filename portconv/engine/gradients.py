"""The gradients of a call."""

from __future__ import annotations

from functools import lru_cache
from typing import Generic, NamedTuple

from ..backends import Array, ArrayT
from ..errors import ConvTypeError
from ..reproducible.magnitudes import remembering
from ..spec import arguments
from ..spec.operation import Operation, Role, changed
from .call import Forward, check_memory
from .execution import run
from .plan import Plan, of_dtypes

COTANGENT = -1
"""The place of the gradient of the result among operands."""


class ConvGrads(NamedTuple, Generic[ArrayT]):
    """What `conv_backward` returns: the gradients of `x`, `w` and `b`; `db` is None where `b` was."""

    dx: ArrayT
    dw: ArrayT
    db: ArrayT | None


def backward(dout: ArrayT, cache: Forward) -> ConvGrads[ArrayT]:
    """Compute all gradients of a call, in the dtypes of what they are gradients of."""
    step = cache.operation
    backend, common = arguments.arrays(x=cache.x, w=cache.w, b=cache.b, dout=dout)
    if (common.kind == "complex floating") != step.is_complex:
        name = backend.dtype_name(dout.dtype)
        raise ConvTypeError(f"dout: got dtype {name}, expected a real one, as the output's is")
    arguments.exact_shape("dout", tuple(dout.shape), step.shape(step.result))
    grads: list[Array | None] = [None, None, None]
    with remembering():
        for place, operand in enumerate(cache.operands):
            gradient, places = adjoint(step, place, common.name, backend.dtype_name(operand.dtype))
            if gradient.result == Role.X:
                check_memory(gradient, backend, cache.x, ("x", cache.x.shape))
            grads[place] = run(gradient, backend, *(dout if i == COTANGENT else cache.operands[i] for i in places))
    return ConvGrads(*grads)


@lru_cache(maxsize=4096)
def adjoint(step: Operation, place: int, common: str, dtype: str) -> tuple[Operation, tuple[int, ...]]:
    """Return the operation that is the gradient of the operand in that `place`, and where its operands are.

    Of complex numbers it is the adjoint, by PyTorch's convention: the other operand is conjugated.

    Parameters
    ----------
    step : Operation
    place : int
    common, dtype : str
        The dtype that all arrays have in common, and that of the operand.

    Returns
    -------
    Operation, tuple of int
        The places of its operands among those of `step`, or `COTANGENT`.
    """
    gradient, *places = changed(step, dtype=common).gradient(place, dtype, COTANGENT, (0, 1))
    if gradient.is_product and gradient.is_complex:
        conjugated = tuple(i != COTANGENT for i in places)
        gradient = changed(gradient, conjugated=conjugated)
    return gradient, tuple(places)


def plans_of(cache: Forward) -> dict[str, Plan]:
    """Return the plans of the products of a call and its gradients: those of "out", "dx" and "dw"."""
    backend, step = cache.backend, cache.operation
    dtypes = {0: cache.x.dtype, 1: cache.w.dtype, COTANGENT: backend.dtype(step.dtype)}
    plans = {"out": of_dtypes(step, backend, (dtypes[0], dtypes[1]), cache.x)}
    for place, name in enumerate(("dx", "dw")):
        gradient, places = adjoint(step, place, step.dtype, backend.dtype_name(dtypes[place]))
        plans[name] = of_dtypes(gradient, backend, tuple(dtypes[i] for i in places), cache.x)
    return plans
