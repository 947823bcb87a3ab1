"""The convolution that PyTorch has of its own, on the CPU and on accelerators."""

from __future__ import annotations

import cmath
import math
import sys
from functools import lru_cache
from typing import Any

from ._native import Convolution, NativeConvolution, NativeWork
from ._terms import Array

LANES = 16
"""How many channels oneDNN computes at once, and lays side by side in its copies of arrays."""
BY_COLUMNS = 9
"""So many times as long as oneDNN's takes an operation of PyTorch's own code, which makes columns of windows."""
BY_GROUPS = 150
"""So many times as long takes an operation of a group of one channel, of which that code makes a product each."""


class TorchConvolution(NativeConvolution):
    """`torch.convolution` and its backward: oneDNN on CPUs, cuDNN on NVIDIA's GPUs, else code of PyTorch's own."""

    def objection(self, convolution: Convolution) -> str | None:
        if convolution.dims > 3:
            return "one to three spatial dimensions, as PyTorch's own convolution does"
        if convolution.has_windows_of_padding:
            # PyTorch 2.13 writes beyond its memory for some of these, with channels last.
            return "windows of which each reads the input, as PyTorch's own convolution may fail on others"
        return None

    def work(self, kind: str, convolution: Convolution, bits: int, device: str) -> NativeWork:
        padded = sum(math.prod(cells) for cells in (_sizes(convolution),) * 2 if convolution.rest)
        if device:
            return NativeWork(convolution.operations, convolution.elements, 2, convolution.elements + padded)
        if _is_by_columns(convolution, bits):
            (samples, filters, *cells), channels = convolution.out_shape, convolution.w_shape[1]
            columns = samples * convolution.groups * math.prod((*cells, *convolution.w_shape[1:]))
            slowness = BY_COLUMNS if convolution.groups == 1 else max(BY_COLUMNS, BY_GROUPS / channels)
            workspace = columns + 2 * convolution.elements + padded
            return NativeWork(slowness * convolution.operations, convolution.elements + 2 * columns, 4, workspace)
        # Channels are filled up with zeros to a multiple of `LANES`, of filters both.
        shapes = convolution.x_shape, convolution.out_shape
        blocked = sum(math.prod(shape) // max(1, shape[1]) * _filled(shape[1]) for shape in shapes)
        filters, channels, *taps = convolution.w_shape
        blocked += _filled(filters) * _filled(channels) * math.prod(taps)
        slowness = _slowness(kind, convolution)
        return NativeWork(slowness * convolution.operations, convolution.copied(bits), 4, blocked + padded)

    def in_tiles(self, convolution: Convolution, device: str) -> bool:
        return device == "cuda" and convolution.is_tiled

    def code(self, kind: str, convolution: Convolution) -> str:
        options, padded = ", ".join(map(str, _options(convolution))), "torch.nn.functional.pad({}, {})".format
        x = padded("x", _pads(convolution)) if convolution.rest else "x"
        if kind == "forward":
            return f"torch.convolution({x}, w, None, {options})"
        wanted = kind == "input_grad", kind == "weight_grad", False
        x = f"dout.new_empty({_sizes(convolution)})" if wanted[0] else x
        w = "w" if wanted[0] else f"dout.new_empty({convolution.w_shape})"
        call = f"torch.ops.aten.convolution_backward(dout, {x}, {w}, None, {options}, {wanted})[{wanted.index(True)}]"
        return padded(call, [-side for side in _pads(convolution)]) if wanted[0] and convolution.rest else call

    def literal(self, values: str, dtype: str, device: str) -> str:
        on = f', device="{device}"' if device else ""
        halved = dtype in ("float16", "bfloat16")
        return f"torch.tensor({values}, dtype=torch.{'float32' if halved and device != 'cuda' else dtype}{on})"

    def forward(self, x: Array, w: Array, b: Array | None, convolution: Convolution) -> Array | None:
        torch: Any = sys.modules["torch"]
        if not _adds_plainly(x) or (convolution.is_padded and not all_finite(w)):
            return None
        x, w, b = (None if array is None else _served(array) for array in (x, w, b))
        return _checked(torch.convolution(_padded(x, convolution), w, b, *_options(convolution)))

    def input_grad(self, dout: Array, w: Array, convolution: Convolution) -> Array | None:
        if not _adds_plainly(dout) or not all_finite(w):
            return None
        dout, w = _served(dout), _served(w)
        like = _standing_for(_sizes(convolution), dout)
        grad = _backward(dout, like, w, convolution, (True, False, False))[0]
        return _checked(_cropped(grad, convolution))

    def weight_grad(self, dout: Array, x: Array, convolution: Convolution) -> Array | None:
        if not _adds_plainly(x):
            return None
        dout, x = _served(dout), _served(x)
        like = _standing_for(convolution.w_shape, x)
        grad = _backward(dout, _padded(x, convolution), like, convolution, (False, True, False))[1]
        # A number of `dout` that is not finite makes some of these so, whichever zeros the library leaves out.
        return _checked(grad) if not convolution.is_padded or all_finite(grad) else None


def _filled(channels: int) -> int:
    """Return a number of channels, filled up to a multiple of `LANES`."""
    return -(-channels // LANES) * LANES


def _is_by_columns(convolution: Convolution, bits: int) -> bool:
    """Return whether code of PyTorch's own computes a convolution on a CPU, and not oneDNN."""
    return bits > 32 or not _has_onednn() or _is_slow(convolution, sys.modules["torch"].get_num_threads())


@lru_cache(maxsize=256)
def _is_slow(convolution: Convolution, threads: int) -> bool:
    """Return whether PyTorch does not give a convolution in float32 to oneDNN, by its own choice."""
    torch: Any = sys.modules["torch"]
    select = getattr(torch._C, "_select_conv_backend", None)
    if select is None:
        return False
    # Only the shapes matter.
    x, w = (torch.empty(1).expand(shape) for shape in (_sizes(convolution), convolution.w_shape))
    return "slow" in str(select(x, w, None, *_options(convolution), None)).lower()


def _has_onednn() -> bool:
    """Return whether PyTorch calls oneDNN on this CPU, which the user may have switched off."""
    torch: Any = sys.modules["torch"]
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


def _adds_plainly(array: Array) -> bool:
    """Return whether sums are plain ones: without oneDNN, PyTorch may call NNPACK, which computes transforms."""
    return array.device.type != "cpu" or _has_onednn()


def _slowness(kind: str, convolution: Convolution) -> float:
    """Return how many times as long as in a dense layer an operation takes by oneDNN, by its measured times.

    Of depthwise layers oneDNN has fast code for input gradients, for output of short kernels, and for gradients of
    filters of up to 3 taps a dimension. Of other layers it computes `LANES` channels of a result at once.
    """
    filters, channels = convolution.w_shape[0] // convolution.groups, convolution.w_shape[1]
    longest = max(convolution.w_shape[2:])
    if filters == channels == 1 < convolution.groups:
        limit, short, long = {"forward": (7, 3, 30), "input_grad": (7, 3, 2), "weight_grad": (3, 6, 50)}[kind]
        return short if longest <= limit else long
    made = channels if kind == "input_grad" else filters
    strided = 1.5 if kind == "input_grad" and max(convolution.stride) > 1 else 1.0
    lone = 3.0 if kind == "input_grad" and channels == 1 else 1.0
    return strided * lone * _filled(made) / made


def all_finite(array: Array) -> bool:
    """Return whether an array has no nan and no infinity; if its sum is finite, all its numbers are."""
    torch: Any = sys.modules["torch"]
    return cmath.isfinite(array.sum().item()) or bool(torch.isfinite(array).all())


def _checked(result: Array) -> Array | None:
    """Return a result, or None if a GPU's library may have spread a nan or an infinity beyond its windows.

    On CPUs float32 and float64 are added up for each window alone.
    """
    return result if result.device.type == "cpu" or all_finite(result) else None


def _served(array: Array) -> Array:
    """Return an operand in the dtype that the library computes in: float16 and bfloat16 as they are on GPUs alone.

    cuDNN makes sums of them in float32. On CPUs PyTorch's own code rounds sums of float16 in between, and oneDNN's code
    for bfloat16 takes subnormal numbers for zeros and lets a nan reach windows that do not touch it.
    """
    torch: Any = sys.modules["torch"]
    if array.dtype not in (torch.float16, torch.bfloat16) or array.device.type == "cuda":
        return array
    return array.float()


def _sizes(convolution: Convolution) -> tuple[int, ...]:
    """Return the shape of what `_padded` returns."""
    sizes = convolution.x_shape
    cells = zip(sizes[2:], convolution.rest or ((0, 0),) * convolution.dims, strict=True)
    return (*sizes[:2], *(size + lo + hi for size, (lo, hi) in cells))


def _options(convolution: Convolution) -> tuple[Any, ...]:
    """Return the arguments of PyTorch's functions that are no arrays: the last two say that nothing is transposed."""
    none = (0,) * convolution.dims
    return convolution.stride, convolution.shared, convolution.dilation, False, none, convolution.groups


def _pads(convolution: Convolution) -> list[int]:
    """Return the padding that `_options` has not, as PyTorch has it: of the last dimension first."""
    return [side for sides in reversed(convolution.rest or ()) for side in sides]


def _padded(x: Array, convolution: Convolution) -> Array:
    """Return an input with the padding, or without the cells, that the library does not see to."""
    torch: Any = sys.modules["torch"]
    return x if convolution.rest is None else torch.nn.functional.pad(x, _pads(convolution))


def _cropped(grad: Array, convolution: Convolution) -> Array:
    """Return the gradient of an input from that of what `_padded` returns."""
    torch: Any = sys.modules["torch"]
    if convolution.rest is None:
        return grad
    return torch.nn.functional.pad(grad, [-side for side in _pads(convolution)])


def _standing_for(sizes: tuple[int, ...], like: Array) -> Array:
    """Return any numbers for a function that reads the shape of an array, and whether its channels come last."""
    torch: Any = sys.modules["torch"]
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(like.ndim)
    is_last = last is not None and like.is_contiguous(memory_format=last) and not like.is_contiguous()
    order = last if is_last else torch.contiguous_format
    return torch.empty(sizes, dtype=like.dtype, device=like.device, memory_format=order)


def _backward(dout: Array, x: Array, w: Array, convolution: Convolution, wanted: tuple[bool, bool, bool]) -> Any:
    """Return the gradients that are wanted, of the input, the filters and a bias, and None for the others."""
    torch: Any = sys.modules["torch"]
    return torch.ops.aten.convolution_backward.default(dout, x, w, None, *_options(convolution), wanted)
