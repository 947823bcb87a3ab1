"""PyTorch, on the CPU and on whichever accelerators it finds."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from .. import limits
from ..errors import in_a_line
from ._base import Array, Backend, Unavailable, bfloat16

if TYPE_CHECKING:
    from ..engine.execution import Operation

NAMES = {"forward": "Conv", "unfold": "Unfold", "fold": "Fold"}
"""How autograd's graph names steps; the others by their purpose, as "ConvInputGrad"."""


class TorchBackend(Backend):
    name = "torch"
    module = "torch"
    array_class = "Tensor"
    install = "pip install 'portconv[torch]'"
    views = True
    staged = True
    propagates = True

    def load(self) -> Any:
        try:
            return importlib.import_module("array_api_compat.torch")
        except (ImportError, OSError) as error:
            raise Unavailable(f"PyTorch is not installed ({in_a_line(error)})") from error

    def stage(self, operation: Operation, *operands: Array) -> Array:
        return _step()(self, operation, *operands)

    def details(self) -> dict[str, str]:
        import torch

        names = {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return {"threads": str(torch.get_num_threads()), **names}

    def devices(self) -> list[Any]:
        import torch

        return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]

    def holds(self, name: str, like: Array) -> bool:
        return not (like.device.type == "mps" and name in ("float64", "complex128"))

    def at_hand(self, like: Array) -> bool:
        return bool(like.device.type == "cpu")

    def to_numpy(self, array: Array) -> Any:
        host = array.detach().cpu().resolve_conj()
        if self.dtype_name(array.dtype) == "bfloat16":
            return host.view(self.xp.int16).numpy().view(bfloat16())
        return host.numpy()

    def memory(self, like: Array) -> int:
        import torch

        if like.device.type != "cuda":
            return super().memory(like)
        return int(torch.cuda.mem_get_info(like.device)[1])

    def spare(self, like: Array) -> int:
        return self.spare_bytes if like.device.type == "cpu" else 8 * self.spare_bytes

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

    @contextmanager
    def during_call(self, like: Array, precision: str) -> Iterator[None]:
        import torch

        threads = limits.threads()
        # Per library, because the global getter raises once a program has used both of PyTorch's interfaces.
        library = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}.get(like.device.type)
        with ExitStack() as held:
            if threads is not None and threads != torch.get_num_threads():
                held.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(threads)
            if precision != "fast" and library is not None:
                matmul: Any = library.matmul
                held.callback(setattr, matmul, "fp32_precision", matmul.fp32_precision)
                matmul.fp32_precision = "ieee"
            yield


@cache
def _step() -> Any:
    """What takes a step of a call: where torch.compile traces the caller, it breaks its graph there alone."""
    import torch

    def step(backend: TorchBackend, operation: Operation, *operands: Array) -> Array:
        if operation.purpose == "bound":  # which has no gradient
            with torch.no_grad():
                return _node(operation.purpose).apply(backend, operation, *operands)
        return _node(operation.purpose).apply(backend, operation, *operands)

    return torch.compiler.disable(step)


@cache
def _node(purpose: str) -> Any:
    """A step as a node of autograd's graph, and of torch.func's transforms.

    Its derivatives in either mode are steps themselves, and so nodes as well, as often as one differentiates.
    """
    import torch

    from ..frameworks.vmap import mapped
    from ..reproducible.magnitudes import remembering

    function: Any = torch.autograd.Function

    class Step(function):  # type: ignore[misc]
        @staticmethod
        def forward(backend: TorchBackend, operation: Operation, *operands: Array) -> Array:
            return operation.compute(backend, *operands)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:
            ctx.backend, ctx.operation, *operands = inputs
            ctx.save_for_backward(*operands)
            ctx.save_for_forward(*operands)

        @staticmethod
        def backward(ctx: Any, cotangent: Array) -> tuple[Array | None, ...]:
            operands = ctx.saved_tensors
            made: list[Array | None] = []
            # PyTorch's gradients are of the conjugate.
            turned = tuple(operand.conj() for operand in operands)
            with remembering():
                for place, operand in enumerate(operands):
                    if not ctx.needs_input_grad[2 + place]:
                        made.append(None)
                        continue
                    name = ctx.backend.dtype_name(operand.dtype)
                    made.append(ctx.backend.stage(*ctx.operation.gradient(place, name, cotangent, turned)))
            return None, None, *made

        @staticmethod
        def jvp(ctx: Any, _: None, __: None, *tangents: Array | None) -> Array:
            operands = ctx.saved_tensors
            terms = [
                ctx.backend.stage(*ctx.operation.tangent(place, tangent, operands))
                for place, tangent in enumerate(tangents)
                if tangent is not None
            ]
            return sum(terms[1:], terms[0])

        @staticmethod
        def vmap(
            info: Any, in_dims: tuple[int | None, ...], backend: TorchBackend, operation: Operation, *operands: Array
        ) -> tuple[Array, int]:
            return mapped(backend, operation, operands, in_dims[2:], backend.stage), 0

    name = NAMES.get(purpose) or "Conv" + purpose.title().replace("_", "")
    return type(name, (Step,), {})
