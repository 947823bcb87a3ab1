"""PyTorch, on the CPU and on the accelerators that it finds."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

from .. import limits
from ..errors import ConvTypeError, PortconvError
from ._base import Backend
from ._host import bfloat16
from ._terms import CPU_WORKSPACE, GPU_WORKSPACE, Array, Costs
from ._threads import Held, Holding
from ._torch_native import TorchConvolution, all_finite


class TorchBackend(Backend):
    name = "torch"
    module = "torch"
    array_class = "Tensor"
    install = "pip install 'portconv[torch]'"
    views = True
    framework = "portconv.frameworks.torch_autograd"
    propagates = True
    costs = Costs(operation=0.007, element=0.16, transform=0.063, call=15_600, native=0.0047)
    accelerator_costs = Costs(5e-5, 6e-3, 2e-3, 10_000, 2e-5)
    native_convolution = TorchConvolution()
    has_addresses = True

    def load(self) -> Any:
        importlib.import_module("torch")
        return importlib.import_module("array_api_compat.torch")

    def details(self) -> dict[str, str]:
        import torch

        names = {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return {"threads": str(torch.get_num_threads()), **names}

    def conversion(self, array: str, dtype: str) -> str:
        return f"{array}.to(torch.{dtype})"

    def device_kind(self, like: Array) -> str:
        kind: str = like.device.type
        return "" if kind in ("cpu", "meta") else kind

    def devices(self) -> list[Any]:
        import torch

        return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]

    def holds(self, name: str, like: Array) -> bool:
        return not (like.device.type == "mps" and name in ("float64", "complex128"))

    def all_finite(self, array: Array) -> bool:
        return all_finite(array)

    def address(self, array: Array) -> int | None:
        if array.device.type != "cpu" or is_abstract(array) or array.is_neg() or array.is_conj():
            return None
        try:
            return int(array.data_ptr())
        except RuntimeError:  # tensors of some transforms have no memory of their own
            return None

    def lies_in_a_row(self, array: Array) -> bool:
        return is_abstract(array) or bool(array.is_contiguous() and not (array.is_conj() or array.is_neg()))

    def in_a_row(self, array: Array) -> Array:
        return array.resolve_conj().resolve_neg().contiguous()

    def threads(self) -> int:
        import torch

        return limits.threads() or int(torch.get_num_threads())

    def at_hand(self, like: Array) -> bool:
        return bool(like.device.type == "cpu")

    def to_numpy(self, array: Array) -> Any:
        host = array.detach().cpu().resolve_conj()
        if self.dtype_name(array.dtype) == "bfloat16":
            return host.view(self.xp.int16).numpy().view(bfloat16())
        return host.numpy()

    def memory(self, like: Array) -> int:
        import torch

        if is_abstract(like):
            return sys.maxsize
        if like.device.type != "cuda":
            return super().memory(like)
        return int(torch.cuda.mem_get_info(like.device)[1])

    def objection(self, array: Array) -> PortconvError | None:
        torch = sys.modules["torch"]
        plain = type(array) is torch.Tensor or type(array) is torch.nn.Parameter
        if plain and array.layout is torch.strided and not (array.is_nested or array.is_quantized):
            return None
        fault = _fault(array)
        return None if fault is None else ConvTypeError(fault)

    def autocast(self, like: Array) -> Callable[[Array], Array] | None:
        torch: Any = sys.modules["torch"]
        if not torch._C._is_any_autocast_enabled():
            return None
        device = like.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return None
        dtype = torch.get_autocast_dtype(device)

        def cast(array: Array) -> Array:
            lowered = array.is_floating_point() and array.dtype != torch.float64
            return array.to(dtype) if lowered else array

        return cast

    def default_workspace(self, like: Array) -> int:
        return CPU_WORKSPACE if like.device.type == "cpu" else GPU_WORKSPACE

    def synchronize(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def complex(self, real: Array, imag: Array) -> Array:
        import torch

        return torch.complex(real, imag)

    def product(self, a: Array, b: Array, out: Array | None = None) -> Array:
        import torch

        return torch.matmul(a, b, out=out)

    def during_call(self, like: Array, precision: str) -> AbstractContextManager[Any]:
        torch: Any = sys.modules["torch"]
        threads = limits.threads()
        if threads == torch.get_num_threads():
            threads = None
        held = () if precision == "fast" else _lowered(like.device.type)
        if threads is None:
            return Holding(held, EXACT[0]) if held else nullcontext()
        return _during_call(threads, held)


@contextmanager
def _during_call(threads: int, held: tuple[Held, ...]) -> Iterator[None]:
    """Set the number of threads, and hold some settings to full precision."""
    torch: Any = sys.modules["torch"]
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        stack.enter_context(Holding(held, EXACT[0]))
        yield


EXACT = ("ieee", "none")
"""The values of `fp32_precision` with which products of float32 are exact to float32."""
LIBRARIES = {"cpu": ("mkldnn",) * 2, "cuda": ("cuda", "cudnn")}
"""The parts of `torch.backends` that multiply matrices and convolve, by the type of a device."""


@cache
def _settings(device: str) -> tuple[Held, ...]:
    """Return the precision of matrix products and of convolutions on a device, as settings of the process.

    Each library has its own: PyTorch's global one raises an error after a program has used both interfaces.
    """
    torch: Any = sys.modules["torch"]
    if device not in LIBRARIES:
        return ()
    multiplies, convolves = (getattr(torch.backends, library) for library in LIBRARIES[device])
    settings = tuple(_setting(each) for each in (multiplies.matmul, convolves.conv))
    if hasattr(os, "register_at_fork"):
        for setting in settings:
            os.register_at_fork(after_in_child=setting.forget)
    return settings


def _setting(owner: Any) -> Held:
    """Return a setting that, where it was left to one above it, is left to that again."""

    def write(value: str) -> None:
        if value != EXACT[0]:
            owner.fp32_precision = "none"
            if owner.fp32_precision == value:
                return
        owner.fp32_precision = value

    return Held(partial(getattr, owner, "fp32_precision"), write)


def _lowered(device: str) -> tuple[Held, ...]:
    """Return the settings if the user has lowered one, or another call holds them."""
    settings = _settings(device)
    as_it_is = all(setting.current is None and setting.read() in EXACT for setting in settings)
    return () if as_it_is else settings


def is_abstract(array: Array) -> bool:
    """Return whether a tensor has a shape and no numbers: on the device "meta", or while PyTorch traces."""
    traced: Any = sys.modules["torch"]._subclasses
    return bool(array.is_meta) or isinstance(array, (traced.FakeTensor, traced.functional_tensor.FunctionalTensor))


def _fault(array: Array) -> str | None:
    """Say what a tensor is if it is no block of plain numbers, and how to make it one."""
    torch: Any = sys.modules["torch"]
    if isinstance(array, torch.nn.parameter.UninitializedTensorMixin):
        return f"got an {type(array).__name__}, expected a tensor with a shape, as it has after the first forward call"
    if isinstance(array, torch.masked.MaskedTensor):
        return "got a MaskedTensor, expected a plain one, as .get_data() or .to_tensor(0) returns"
    if array.is_nested:
        return "got a nested tensor, expected one of a single shape, as torch.nested.to_padded_tensor(..., 0.0) returns"
    if array.layout is not torch.strided:
        layout = str(array.layout).removeprefix("torch.").removeprefix("_")
        return f"got a tensor of layout {layout}, expected a dense one, as .to_dense() returns"
    if array.is_quantized:
        return "got a quantized tensor, expected numbers, as .dequantize() returns"
    # A parameter's is a function of PyTorch's own, which does nothing.
    own, plain = (getattr(cls.__torch_function__, "__func__", None) for cls in (type(array), torch.Tensor))
    if own in (None, plain):
        return None
    return (
        f"got {type(array).__name__}, which gives arithmetic a meaning of its own, expected a plain tensor: "
        "array.as_subclass(torch.Tensor) is its numbers alone"
    )
