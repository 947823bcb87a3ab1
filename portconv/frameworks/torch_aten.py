"""A convolution as PyTorch's own: what `torch.onnx.export` makes a Conv of, and a transposed one a ConvTranspose."""

from __future__ import annotations

from typing import Any

import torch

from ..backends import Array, Backend
from ..passes.layout import as_given, canonical
from ..passes.padding import repeated
from ..spec.operation import Kind, Operation

pad: Any = torch.nn.functional.pad


def serves(operation: Operation) -> bool:
    """Return whether PyTorch has the operation: a convolution, or a transposed one."""
    return operation.kind == Kind.FORWARD or (operation.kind == Kind.INPUT_GRAD and operation.geometry.mode == "zeros")


def convolution(operation: Operation, backend: Backend, operands: tuple[Array, ...]) -> Array:
    """Compute an operation by PyTorch."""
    array, w, *bias = (operand.to(backend.dtype(operation.dtype)) for operand in operands)
    array = canonical(operation, backend, operation.roles[0], array)
    result = (_forward if operation.kind == Kind.FORWARD else _transposed)(operation, array, w, *bias)
    result = as_given(operation, backend, operation.result, result)
    return result.to(backend.dtype(operation.result_dtype))


def _forward(operation: Operation, x: Array, w: Array, bias: Array | None = None) -> Array:
    geometry = operation.geometry
    before, none = geometry.before, (0,) * geometry.dims
    if geometry.mode == "symmetric":
        for dim, (lo, size, hi) in enumerate(zip(before, geometry.size, geometry.after, strict=True)):
            cells = torch.tensor(repeated("symmetric", size, (-lo, size + hi)), device=x.device)
            x = x.index_select(2 + dim, cells)
        before = none
    elif geometry.mode in ("zeros", "constant") and (before != geometry.after or geometry.value):
        x, before = pad(x, _sides(before, geometry.after), value=geometry.value), none
    elif geometry.mode != "zeros":
        x, before = pad(x, _sides(before, geometry.after), mode=geometry.mode), none
    return torch.convolution(x, w, bias, geometry.stride, before, geometry.dilation, False, none, geometry.groups)


def _transposed(operation: Operation, dout: Array, w: Array, bias: Array | None = None) -> Array:
    geometry = operation.geometry
    none = (0,) * geometry.dims
    # Where the cells end that windows read, from the end of the result; ONNX has padding at both ends alike.
    whole = ((out - 1) * s + e for out, s, e in zip(dout.shape[2:], geometry.stride, geometry.extent, strict=True))
    ends = tuple(n - length + lo for n, length, lo in zip(geometry.size, whole, geometry.before, strict=True))
    added = tuple(lo + end for lo, end in zip(geometry.before, ends, strict=True))
    steps = zip(added, geometry.stride, geometry.dilation, strict=True)
    options = geometry.stride, geometry.before, geometry.dilation, True, added, geometry.groups
    if all(0 <= extra < max(s, d) for extra, s, d in steps):
        return torch.convolution(dout, w, bias, *options)
    options = geometry.stride, none, geometry.dilation, True, none, geometry.groups
    result = torch.convolution(dout, w, None, *options)
    result = pad(result, _sides(tuple(-lo for lo in geometry.before), ends))
    return result if bias is None else result + bias.reshape(1, -1, *(1,) * geometry.dims)


def _sides(before: tuple[int, ...], after: tuple[int, ...]) -> list[int]:
    """Return the padding of all spatial dimensions as PyTorch has it, the last dimension first."""
    return [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
