"""One operation as one node of PyTorch's autograd graph, and of the transforms of `torch.func`."""

from __future__ import annotations

from functools import cache
from inspect import signature
from typing import Any

import torch

from ..backends import Array, Backend
from ..backends._torch import is_abstract
from ..engine import execution
from ..engine.execution import run
from ..spec.operation import Kind, Operation
from . import torch_operators
from .vmap import mapped

NAMES = {Kind.FORWARD: "Conv", Kind.UNFOLD: "Unfold", Kind.FOLD: "Fold"}
"""The names of some nodes in the graph; the name of another is that of its kind, such as "ConvInputGrad"."""


def node(operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Make an operation one node of the graph, or compute it where there is no graph."""
    if _is_plain(operands):
        return execution.compute(operation, backend, *operands)
    if operation.kind == Kind.ERROR_BOUND:  # it has no gradient
        with torch.no_grad():
            return _function(operation.kind).apply(backend, operation, *operands)
    return _function(operation.kind).apply(backend, operation, *operands)


def _is_plain(operands: tuple[Array, ...]) -> bool:
    """Return whether PyTorch only wants the numbers: a node takes longer than a small call."""
    if torch.is_grad_enabled() and any(operand.requires_grad for operand in operands):
        return False
    transformed = torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack()
    is_dual = torch.autograd.forward_ad._current_level >= 0
    return not (transformed or is_dual or any(map(is_abstract, operands)))


@cache
def _function(kind: Kind) -> Any:
    """Return the autograd function that computes a kind of operation.

    Its derivatives in both modes are operations too, and so nodes themselves: derivatives of any order work.
    """
    base: Any = torch.autograd.Function

    class Node(base):  # type: ignore[misc]
        @staticmethod
        def forward(backend: Backend, operation: Operation, *operands: Array) -> Array:
            if torch._C._len_torch_dispatch_stack() or any(map(is_abstract, operands)):
                return torch_operators.put(operation, operands)
            return execution.compute(operation, backend, *operands)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:
            ctx.backend, ctx.operation, *operands = inputs
            ctx.save_for_backward(*operands)
            ctx.save_for_forward(*operands)

        @staticmethod
        def backward(ctx: Any, cotangent: Array) -> tuple[Array | None, ...]:
            wanted = ctx.needs_input_grad[2:]
            grads = torch_operators.gradients(ctx.operation, ctx.backend, cotangent, ctx.saved_tensors, wanted)
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

    # PyTorch asks for it at each call, and without it works it out anew.
    Node.forward.__signature__ = signature(Node.forward)  # type: ignore[attr-defined]
    name = NAMES.get(kind) or "Conv" + kind.title().replace("_", "")
    return type(name, (Node,), {})
