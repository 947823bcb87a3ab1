"""Operations as operators of PyTorch: in the graphs of torch.compile and torch.export, and on tensors without numbers.

An operator takes what an `Operation` says as numbers, which may be symbols, and words. It computes as any call does.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from .. import backends
from ..backends import Array, Backend
from ..engine import execution
from ..engine.execution import run
from ..reproducible.magnitudes import remembering
from ..spec.geometry import Geometry
from ..spec.operation import Kind, Operation, Role, changed
from ..spec.remembered import looked_up
from . import torch_aten
from .vmap import mapped

SCHEMA = "(Tensor[] operands, SymInt[] sizes, str words) -> Tensor"
LINES = ("size", "kernel", "stride", "dilation", "before", "after")
"""The fields of a geometry that have one number for each spatial dimension."""
library: Any = torch.library


def put(operation: Operation, operands: tuple[Array, ...]) -> Array:
    """Put an operation into the graph that PyTorch traces; return a tensor without numbers."""
    if torch.onnx.is_in_onnx_export() and torch_aten.serves(operation):
        return torch_aten.convolution(operation, backends.get("torch"), operands)
    geometry = operation.geometry
    sizes = [geometry.batch, geometry.in_channels, geometry.out_channels, geometry.groups]
    for name in LINES:
        sizes += getattr(geometry, name)
    shown = [operation.dtype, operation.result_dtype, operation.precision, operation.algorithm, operation.bias_role]
    shown += [geometry.mode, str(geometry.value), "channels_last" if geometry.channels_last else "channels_first"]
    shown += ["one sample" if operation.unbatched else "batch"]
    return operator(operation.kind)(list(operands), sizes, ", ".join(shown))


def gradients(
    operation: Operation, backend: Backend, cotangent: Array, operands: tuple[Array, ...], wanted: tuple[bool, ...]
) -> list[Array | None]:
    """Compute the gradients of the operands that are wanted, as operations."""
    # PyTorch defines the gradient as the conjugate of the derivative.
    conjugates = tuple(operand.conj() for operand in operands)
    if operation.is_complex:
        operation = changed(operation, geometry=operation.geometry.conjugate)
    grads: list[Array | None] = [None] * len(operands)
    with remembering():
        for place, operand in enumerate(operands):
            if wanted[place]:
                dtype = backend.dtype_name(operand.dtype)
                gradient, *arrays = operation.gradient(place, dtype, cotangent, conjugates)
                grads[place] = run(gradient, backend, *arrays)
    return grads


def _number(shown: str) -> complex:
    """Return the number that `str` has shown as one without a space."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(shown)
    return complex(shown)


@looked_up
def _operation(kind: Kind, sizes: tuple[int, ...], words: str) -> Operation:
    """Return the operation that `put` took apart."""
    dtype, result_dtype, precision, algorithm, bias_role, mode, value, data_format, samples = words.split(", ")
    dims = (len(sizes) - 4) // len(LINES)
    lines: dict[str, Any] = {name: sizes[4 + i * dims : 4 + (i + 1) * dims] for i, name in enumerate(LINES)}
    batch, in_channels, out_channels, groups = sizes[:4]
    last = data_format == "channels_last"
    lines |= {"mode": mode, "channels_last": last, "value": _number(value)}
    geometry = Geometry(batch, in_channels, out_channels, groups, **lines)
    unbatched, role = samples == "one sample", Role(bias_role)
    return Operation(kind, geometry, dtype, result_dtype, precision, algorithm, unbatched, role)


def register() -> None:
    """Make all operators known to PyTorch, which is needed before `torch.export.load`; a call makes its own known."""
    for kind in Kind:
        operator(kind)


@cache
def operator(kind: Kind) -> Any:
    """Return the operator for a kind of operation, such as `torch.ops.portconv.conv_forward`."""
    backend = backends.get("torch")
    name = kind if kind in (Kind.UNFOLD, Kind.FOLD) else f"conv_{kind}"

    def compute(operands: list[Array], sizes: list[int], words: str) -> Array:
        result = execution.compute(_operation(kind, tuple(sizes), words), backend, *operands)
        # Operators promise new memory, without gaps.
        shared = any(result.untyped_storage().data_ptr() == each.untyped_storage().data_ptr() for each in operands)
        return result.clone(memory_format=torch.contiguous_format) if shared else result.contiguous()

    def shape(operands: list[Array], sizes: list[int], words: str) -> Array:
        operation = _operation(kind, tuple(sizes), words)
        return operands[0].new_empty(operation.shape(operation.result), dtype=backend.dtype(operation.result_dtype))

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:
        operands, *ctx.operation = inputs
        ctx.save_for_backward(*operands)

    def backward(ctx: Any, cotangent: Array) -> tuple[Any, ...]:
        sizes, words = ctx.operation
        operation, wanted = _operation(kind, tuple(sizes), words), ctx.needs_input_grad[0]
        return gradients(operation, backend, cotangent, ctx.saved_tensors, wanted), None, None

    def vmap(_: Any, axes: tuple[Any, ...], operands: list[Array], sizes: list[int], words: str) -> tuple[Array, int]:
        return mapped(_operation(kind, tuple(sizes), words), backend, operands, axes[0], run), 0

    made = library.custom_op(f"portconv::{name}", compute, mutates_args=(), schema=SCHEMA)
    made.register_fake(shape)
    made.register_vmap(vmap)
    if kind != Kind.ERROR_BOUND:  # it has no gradient
        made.register_autograd(backward, setup_context=keep)
    packet = getattr(torch.ops.portconv, name)
    register_flop_formula(packet, get_raw=True)(
        lambda operands, sizes, words, **_: _operation(kind, tuple(sizes), words).geometry.operations
    )
    return made
