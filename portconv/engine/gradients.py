"""The gradients of a call."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backends import Array
from ..errors import ConvTypeError
from ..reproducible.magnitudes import remembering
from ..spec import arguments
from ..spec.dtypes import KINDS
from ..spec.operation import Operation, Role, changed
from . import plan as plans
from .call import Forward, check_memory
from .execution import run


class ConvGrads(NamedTuple):
    """What `conv_backward` returns: the gradients of `x`, `w` and `b`; `db` is None where `b` was."""

    dx: Array
    dw: Array
    db: Array | None


def backward(dout: Array, cache: Forward) -> ConvGrads:
    """Compute all gradients of a call, in the dtypes of what they are gradients of."""
    backend, step = cache.backend, cache.operation
    _, common = arguments.arrays(x=cache.x, w=cache.w, b=cache.b, dout=dout)
    if (common.kind == "complex floating") != (KINDS[step.dtype] == "complex floating"):
        name = backend.dtype_name(dout.dtype)
        raise ConvTypeError(f"dout: got dtype {name}, expected a real one, as the output's is")
    arguments.exact_shape("dout", tuple(dout.shape), step.shape(step.result))
    step = changed(step, dtype=common.name)
    with remembering():
        grads: list[Array | None] = [None, None, None]
        for place, operand in enumerate(cache.operands):
            name = backend.dtype_name(operand.dtype)
            own, *operands = adjoint(step, place, name, dout, cache.operands)
            if own.result == Role.X:
                check_memory(own, backend, cache.x, ("x", cache.x.shape))
            grads[place] = run(own, backend, *operands)
    return ConvGrads(*grads)


def plans_of(cache: Forward) -> dict[str, plans.Plan]:
    """Return the plans of the products of a call and its gradients: those of "out", "dx" and "dw"."""
    backend, step = cache.backend, cache.operation
    steps = {"out": (step, cache.x.dtype, cache.w.dtype)}
    # The gradient of the output has the output's dtype.
    dtype = backend.dtype(step.dtype)
    for place, name in enumerate(("dx", "dw")):
        operand = backend.dtype_name(cache.operands[place].dtype)
        steps[name] = adjoint(step, place, operand, dtype, (cache.x.dtype, cache.w.dtype))
    return {name: plans.of_dtypes(own, backend, (one, other), cache.x) for name, (own, one, other) in steps.items()}


def adjoint(
    step: Operation, place: int, dtype: str, dout: Any, operands: tuple[Any, ...]
) -> tuple[Operation, *tuple[Any, ...]]:
    """Return the operation that is the gradient of the operand in that `place`, and its operands.

    Of complex numbers it is the adjoint, by PyTorch's convention: the other operand is conjugated.
    """
    gradient, *arrays = step.gradient(place, dtype, dout, operands)
    if gradient.is_product:
        conjugated = tuple(role != step.result for role in gradient.kind.operands)
        gradient = changed(gradient, conjugated=conjugated)
    return gradient, *arrays
