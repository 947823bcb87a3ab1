"""One operation as one node of PyTorch's autograd graph, and of the transforms of `torch.func`."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from ..backends import Array, Backend
from ..engine import execution
from ..engine.execution import run
from ..reproducible.magnitudes import remembering
from ..spec.operation import Kind, Operation
from .vmap import mapped

NAMES = {Kind.FORWARD: "Conv", Kind.UNFOLD: "Unfold", Kind.FOLD: "Fold"}
"""The names of some nodes in the graph; the others have names of their kind, such as "ConvInputGrad"."""


@torch.compiler.disable
def node(operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Take an operation as a node; where torch.compile traces the caller, it breaks its graph here alone."""
    if operation.kind == Kind.ERROR_BOUND:  # which has no gradient
        with torch.no_grad():
            return _function(operation.kind).apply(backend, operation, *operands)
    return _function(operation.kind).apply(backend, operation, *operands)


@cache
def _function(kind: Kind) -> Any:
    """Return the function of autograd's that computes a kind of operation.

    Its derivatives in either mode are operations themselves, and so nodes as well, as often as one differentiates.
    """
    base: Any = torch.autograd.Function

    class Step(base):  # type: ignore[misc]
        @staticmethod
        def forward(backend: Backend, operation: Operation, *operands: Array) -> Array:
            return execution.compute(operation, backend, *operands)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:
            ctx.backend, ctx.operation, *operands = inputs
            ctx.save_for_backward(*operands)
            ctx.save_for_forward(*operands)

        @staticmethod
        def backward(ctx: Any, cotangent: Array) -> tuple[Array | None, ...]:
            backend, grads = ctx.backend, []
            # PyTorch's gradients are of the conjugate.
            conjugates = tuple(operand.conj() for operand in ctx.saved_tensors)
            with remembering():
                for place, operand in enumerate(ctx.saved_tensors):
                    if not ctx.needs_input_grad[2 + place]:
                        grads.append(None)
                        continue
                    dtype = backend.dtype_name(operand.dtype)
                    step, *operands = ctx.operation.gradient(place, dtype, cotangent, conjugates)
                    grads.append(run(step, backend, *operands))
            return None, None, *grads

        @staticmethod
        def jvp(ctx: Any, _: None, __: None, *tangents: Array | None) -> Array:
            terms = []
            for place, tangent in enumerate(tangents):
                if tangent is not None:
                    step, *operands = ctx.operation.tangent(place, tangent, ctx.saved_tensors)
                    terms.append(run(step, ctx.backend, *operands))
            return sum(terms[1:], terms[0])

        @staticmethod
        def vmap(
            info: Any, in_dims: tuple[int | None, ...], backend: Backend, operation: Operation, *operands: Array
        ) -> tuple[Array, int]:
            return mapped(operation, backend, operands, in_dims[2:], run), 0

    name = NAMES.get(kind) or "Conv" + kind.title().replace("_", "")
    return type(name, (Step,), {})
