"""The gradients of a call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Generic, NamedTuple

from ..algorithms.choice import AUTO, named
from ..backends import Array, ArrayT, Backend
from ..errors import ConvTypeError
from ..reproducible.magnitudes import remembering
from ..spec import arguments
from ..spec.operation import Operation, Role, changed
from ..spec.options import Options
from ..spec.remembered import looked_up
from . import repeated
from .call import ConvCache, ConvTransposeCache, Forward, check_memory, check_memory_of
from .execution import is_traced, opaque, run
from .given import Given, given
from .plan import Plan, of_given

COTANGENT = -1
"""The place of the gradient of the result among operands: it comes last."""
GRADIENTS = ("dx", "dw")
"""The gradients that products compute, by the place of what they are gradients of."""


class ConvGrads(NamedTuple, Generic[ArrayT]):
    """What `conv_backward` returns: the gradients of `x`, `w` and `b`; `db` is None where `b` was."""

    dx: ArrayT
    dw: ArrayT
    db: ArrayT | None


def backward(dout: ArrayT, cache: Forward) -> ConvGrads[ArrayT]:
    """Compute all gradients of a call, in the dtypes of what they are gradients of."""
    if is_traced():
        is_transposed = isinstance(cache, ConvTransposeCache)
        return ConvGrads(*_traced(dout, cache.x, cache.w, cache.b, cache.options, is_transposed))
    return _computed(dout, cache)


@opaque
def _traced(
    dout: Array, x: Array, w: Array, b: Array | None, options: Options, is_transposed: bool
) -> tuple[Array, Array, Array | None]:
    """Compute all gradients as a plain tuple, from what torch.compile has types for."""
    return tuple(_computed(dout, (ConvTransposeCache if is_transposed else ConvCache)(x, w, b, options)))


def _computed(dout: ArrayT, cache: Forward) -> ConvGrads[ArrayT]:
    key = repeated.key_of_gradient(type(cache), dout, (cache.x, cache.w, cache.b), cache.options)
    known: ConvGrads[ArrayT] | None = repeated.computed(key, dout, cache.x, cache.w, cache.b)
    if known is not None:
        return known
    step = cache.operation
    backend, common = arguments.arrays(x=cache.x, w=cache.w, b=cache.b, dout=dout)
    if (common.kind == "complex floating") != step.is_complex:
        name = backend.dtype_name(dout.dtype)
        raise ConvTypeError(f"dout: got dtype {name}, expected a real one, as the output's is")
    arguments.exact_shape("dout", tuple(dout.shape), step.shape(step.result))
    operands = (*cache.operands, dout)
    dtypes = tuple(backend.dtype_name(operand.dtype) for operand in cache.operands)
    gradients = _gradients(step, common.name, dtypes)
    grads: list[Array | None] = []
    with remembering() if step.precision == "reproducible" else nullcontext():
        for gradient, places in gradients:
            if gradient.result == Role.X:
                check_memory(gradient, backend, cache.x, ("x", cache.x.shape))
            grads.append(run(gradient, backend, *[operands[i] for i in places]))
    if key is not None:
        repeated.remember(key, _repeated(gradients, backend, operands, cache.x))
    return ConvGrads(*grads, *(None,) * (cache.b is None))


def _repeated(
    gradients: list[tuple[Operation, tuple[int, ...]]], backend: Backend, operands: tuple[Array, ...], x: Array
) -> Callable[..., ConvGrads[Array] | None] | None:
    """Return what computes all gradients of such arrays, if each is a single step; it returns None as `found` says."""
    argument, steps = ("x", tuple(x.shape)), []
    for gradient, places in gradients:
        check = partial(check_memory_of, gradient, backend, argument)
        compute = repeated.found(gradient, backend, tuple(operands[i] for i in places), check)
        if compute is None:
            return None
        # `operands` are those of the call and the gradient, which comes first here.
        steps.append((compute, [0 if i == COTANGENT else 1 + i for i in places]))

    def compute_all(*arrays: Array | None) -> ConvGrads[Array] | None:
        grads: list[Array | None] = []
        for compute, places in steps:
            grad = compute(*[arrays[i] for i in places])
            if grad is None:
                return None
            grads.append(grad)
        return ConvGrads(*grads, *(None,) * (len(grads) == 2))

    return compute_all


@looked_up
def _gradients(step: Operation, common: str, dtypes: tuple[str, ...]) -> list[tuple[Operation, tuple[int, ...]]]:
    """Return what `adjoint` returns for each operand, of these dtypes."""
    return [adjoint(step, place, common, dtype) for place, dtype in enumerate(dtypes)]


@looked_up
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


def lacking(cache: Forward) -> tuple[str, ...]:
    """Name the gradients, of "dx" and "dw", that the algorithm of a call does not have; "auto" has all."""
    step, algorithm, device = cache.operation, named(cache.operation.algorithm), cache.backend.device_kind(cache.x)
    if algorithm is None:
        return ()
    kinds = {name: step.gradient(place, step.dtype, None, (None, None))[0].kind for place, name in enumerate(GRADIENTS)}
    geometry = step.geometry.extended
    return tuple(name for name, kind in kinds.items() if algorithm.lacks(kind, geometry, device) is not None)


def plans_of(cache: Forward) -> dict[str, Plan]:
    """Return the plans of the products of a call and its gradients: those of "out", "dx" and "dw".

    A gradient that the call's algorithm does not have is planned as "auto" plans it.
    """
    backend, step = cache.backend, cache.operation
    arrays = given(step, backend, cache.x, cache.w)
    known = {0: arrays[0], 1: arrays[1], COTANGENT: Given(backend.dtype(step.dtype))}
    plans, without = {"out": of_given(step, backend, arrays, cache.x)}, lacking(cache)
    for place, name in enumerate(GRADIENTS):
        gradient, (a, b) = adjoint(step, place, step.dtype, backend.dtype_name(known[place].dtype))
        if name in without:
            gradient = changed(gradient, algorithm=AUTO)
        plans[name] = of_given(gradient, backend, (known[a], known[b]), cache.x)
    return plans
