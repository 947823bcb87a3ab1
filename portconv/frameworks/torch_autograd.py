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
"""The names of some nodes in the graph; the name of another is that of its kind, such as "ConvInputGrad"."""


def _node(operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Make an operation one node of the graph."""
    if operation.kind == Kind.ERROR_BOUND:  # it has no gradient
        with torch.no_grad():
            return _function(operation.kind).apply(backend, operation, *operands)
    return _function(operation.kind).apply(backend, operation, *operands)


node: Any = torch.compiler.disable(_node)
"""Makes an operation one node of the graph; where torch.compile traces the caller, it breaks its graph here alone."""


@cache
def _function(kind: Kind) -> Any:
    """Return the autograd function that computes a kind of operation.

    Its derivatives in both modes are operations too, and so nodes themselves: derivatives of any order work.
    """
    base: Any = torch.autograd.Function

    class Node(base):  # type: ignore[misc]
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
            backend = ctx.backend
            grads: list[Array | None] = []
            # PyTorch defines the gradient as the conjugate of the derivative.
            conjugates = tuple(operand.conj() for operand in ctx.saved_tensors)
            with remembering():
                for place, operand in enumerate(ctx.saved_tensors):
                    if not ctx.needs_input_grad[2 + place]:
                        grads.append(None)
                        continue
                    dtype = backend.dtype_name(operand.dtype)
                    gradient, *operands = ctx.operation.gradient(place, dtype, cotangent, conjugates)
                    grads.append(run(gradient, backend, *operands))
            return None, None, *grads

        @staticmethod
        def jvp(ctx: Any, _: None, __: None, *tangents: Array | None) -> Array:
            terms = []
            for place, tangent in enumerate(tangents):
                if tangent is not None:
                    change, *operands = ctx.operation.tangent(place, tangent, ctx.saved_tensors)
                    terms.append(run(change, ctx.backend, *operands))
            return sum(terms[1:], terms[0])

        @staticmethod
        def vmap(
            info: Any, in_dims: tuple[int | None, ...], backend: Backend, operation: Operation, *operands: Array
        ) -> tuple[Array, int]:
            return mapped(operation, backend, operands, in_dims[2:], run), 0

    name = NAMES.get(kind) or "Conv" + kind.title().replace("_", "")
    return type(name, (Node,), {})
