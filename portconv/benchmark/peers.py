"""The peers that portconv is timed beside: other libraries, portconv's `direct`, and bare matrix products.

Each peer says why it is not available here, imports its library when it is first used, and makes a `Candidate` of a
problem. A candidate runs either pass on arrays that are ready, as a user of that library has them. Backward is dx, dw
and db together.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..backends import Backend
from ..convolution import conv_backward, conv_forward
from ..errors import in_a_line
from .problem import Problem, Results

Run = Callable[[], Results]


@dataclass(frozen=True)
class Candidate:
    """A peer, or portconv, ready to be timed on a problem.

    Attributes
    ----------
    name : str
    runs : mapping of str to callable
        A function for each pass, which returns when its result is there.
    to_host : callable
        Copies an array of a result to the host.
    compared : bool
        Whether its results are those of a convolution.
    peak : callable, optional
        Returns the most bytes that a run takes on the device, if the library knows.
    """

    name: str
    runs: Mapping[str, Run]
    to_host: Callable[[Any], Any] = np.asarray
    compared: bool = True
    peak: Callable[[Run], int] | None = None


@dataclass(frozen=True)
class Peer:
    """Something that portconv is timed beside.

    Attributes
    ----------
    name, title : str
        Its name on the command line, and in sentences.
    modules : tuple of str
        The modules that it imports.
    install : str
        The command that installs it.
    note : str
        What a reader of its figures should know.
    default : bool
        Whether it runs if no peer is named.
    rival : bool
        Whether it is a library that could replace portconv.
    """

    name: str
    title: str
    modules: tuple[str, ...] = ()
    install: str = ""
    note: str = ""
    default: bool = True
    rival: bool = True

    def unavailable(self, backend: Backend) -> str | None:
        """Say why it cannot run beside a backend; None if it can."""
        for module in self.modules:
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                return f"{error.name} is not installed: {self.install}"
            except Exception as error:  # a broken library may raise anything
                return f"{module} cannot be imported: {type(error).__name__}: {in_a_line(error)}"
        return self.objection(backend)

    def objection(self, backend: Backend) -> str | None:
        """Say why it cannot run beside a backend although its library is installed; None if it can."""
        return None

    def skips(self, problem: Problem) -> bool:
        """Whether it does not run this layer."""
        return False

    def prepare(self, problem: Problem, backend: Backend, threads: int) -> Candidate:
        """Prepare the layer's arrays.

        Parameters
        ----------
        problem : Problem
        backend : Backend
            The backend that portconv runs on; for CuPy a peer runs on the GPU.
        threads : int
            The threads that it may use on the CPU.

        Returns
        -------
        Candidate
        """
        raise NotImplementedError


def portconv_itself(
    name: str, problem: Problem, backend: Backend, algorithm: str, precision: str = "standard"
) -> Candidate:
    """Return portconv's two passes on a backend's default device."""
    x, w, b, dout = (backend.asarray(array) for array in problem.arrays)
    options: dict[str, Any] = {**problem.layer.options, "algorithm": algorithm, "precision": precision}
    cache = conv_forward(x, w, b, **options)[1]

    def forward() -> Results:
        out = conv_forward(x, w, b, **options)[0]
        backend.synchronize()
        return (out,)

    def backward() -> Results:
        grads = conv_backward(dout, cache)
        backend.synchronize()
        return grads

    peak = _cupy_peak(backend) if backend.name == "cupy" else None
    runs = {"forward": forward, "backward": backward}
    return Candidate(name, runs, backend.to_numpy, compared=precision != "fast", peak=peak)


def _cupy_peak(backend: Backend) -> Callable[[Run], int]:
    def peak(run: Run) -> int:
        pool = backend.xp.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.total_bytes()
        result = run()
        # The pool grows only when none of its memory fits, and never shrinks during a run.
        added = pool.total_bytes() - before
        return int(added - sum(array.nbytes for array in result))

    return peak


class Named(Peer):
    """portconv by the algorithm of this name."""

    def prepare(self, problem: Problem, backend: Backend, threads: int) -> Candidate:
        return portconv_itself(self.name, problem, backend, self.name)


@dataclass(frozen=True)
class Precise(Peer):
    """portconv with another precision, which shows what it costs or saves."""

    precision: str = "standard"

    def objection(self, backend: Backend) -> str | None:
        on_cpu = self.precision == "fast" and backend.name != "cupy"
        return "on a CPU 'fast' computes as 'standard' does: --backend cupy" if on_cpu else None

    def prepare(self, problem: Problem, backend: Backend, threads: int) -> Candidate:
        return portconv_itself(self.name, problem, backend, "auto", self.precision)


class Product(Peer):
    """One matrix product per sample with the operations of a pass: the limit for algorithms built on products.

    Backward is two products. Grouped layers are skipped: nobody would multiply their small matrices one by one.
    """

    def skips(self, problem: Problem) -> bool:
        return problem.layer.groups > 1

    def prepare(self, problem: Problem, backend: Backend, threads: int) -> Candidate:
        layer = problem.layer
        taps = math.prod(layer.w_shape[1:])
        a = backend.asarray(np.ones((layer.w_shape[0], taps), np.float32))
        b = backend.asarray(np.ones((taps, math.prod(layer.out_shape[2:])), np.float32))

        def products(count: int) -> Run:
            def run() -> Results:
                results = tuple(backend.xp.matmul(a, b) for _ in range(count * layer.x_shape[0]))
                backend.synchronize()
                return results

            return run

        return Candidate(self.name, {"forward": products(1), "backward": products(2)}, compared=False)


@dataclass(frozen=True)
class Torch(Peer):
    """PyTorch, eager and without autograd; on a GPU it calls cuDNN.

    `last` selects channels last, where PyTorch has that memory format, and `tf32` lets cuDNN compute in TF32.
    """

    last: bool = False
    tf32: bool = False
    formats: Mapping[int, str] = field(default_factory=lambda: {2: "channels_last", 3: "channels_last_3d"})

    def objection(self, backend: Backend) -> str | None:
        import torch

        if backend.name == "cupy" and not torch.cuda.is_available():
            return "this PyTorch finds no CUDA device"
        return "TF32 is for NVIDIA's GPUs: --backend cupy" if self.tf32 and backend.name != "cupy" else None

    def skips(self, problem: Problem) -> bool:
        return self.last and len(problem.layer.kernel) not in self.formats

    def prepare(self, problem: Problem, backend: Backend, threads: int) -> Candidate:
        import torch

        on_gpu = backend.name == "cupy"
        precision = "tf32" if self.tf32 else "ieee"
        if not on_gpu:
            torch.set_num_threads(threads)
        tensors = [torch.from_numpy(array).to("cuda" if on_gpu else "cpu") for array in problem.arrays]
        layer = problem.layer
        dims = len(layer.kernel)
        if self.last:
            memory = getattr(torch, self.formats[dims])
            tensors = [t.to(memory_format=memory) if t.ndim == dims + 2 else t for t in tensors]
        x, w, b, dout = tensors
        convolve = getattr(torch.nn.functional, f"conv{dims}d")
        sizes = (list(layer.stride), list(layer.padding), list(layer.dilation))
        wait = torch.cuda.synchronize if on_gpu else lambda: None

        def hold() -> None:  # at each run: peers that take turns share the setting
            if on_gpu:
                torch.backends.cudnn.conv.fp32_precision = precision

        def forward() -> Results:
            hold()
            out = convolve(x, w, b, *sizes, layer.groups)
            wait()
            return (out,)

        def backward() -> Results:
            hold()
            # The operation that autograd calls.
            tail = (False, [0] * dims, layer.groups, [True] * 3)
            grads = torch.ops.aten.convolution_backward(dout, x, w, [len(b)], *sizes, *tail)
            wait()
            return tuple(grads)

        def peak(run: Run) -> int:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            result = run()
            return int(torch.cuda.max_memory_allocated() - before - sum(t.nbytes for t in result))

        runs = {"forward": forward, "backward": backward}
        peak_of = peak if on_gpu else None
        return Candidate(self.name, runs, lambda t: t.cpu().numpy(), compared=not self.tf32, peak=peak_of)


class OnnxRuntime(Peer):
    """ONNX Runtime's Conv; it knows the filters when the session is made, and has no backward pass."""

    def objection(self, backend: Backend) -> str | None:
        return "it is compared on the CPU alone" if backend.name == "cupy" else None

    def prepare(self, problem: Problem, backend: Backend, threads: int) -> Candidate:
        onnx, runtime = map(importlib.import_module, ("onnx", "onnxruntime"))
        helper, layer = onnx.helper, problem.layer
        x, w, b, _ = problem.arrays
        node = helper.make_node(
            "Conv",
            ["x", "w", "b"],
            ["out"],
            kernel_shape=layer.kernel,
            strides=layer.stride,
            pads=layer.padding * 2,
            dilations=layer.dilation,
            group=layer.groups,
        )
        floats = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            [node],
            "layer",
            [helper.make_tensor_value_info("x", floats, layer.x_shape)],
            [helper.make_tensor_value_info("out", floats, layer.out_shape)],
            [onnx.numpy_helper.from_array(array, name) for array, name in ((w, "w"), (b, "b"))],
        )
        # Every ONNX Runtime of the last years reads these versions.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Candidate(self.name, {"forward": lambda: tuple(session.run(None, {"x": x}))})


class Jax(Peer):
    """JAX; each pass is compiled as a whole."""

    def objection(self, backend: Backend) -> str | None:
        return None if self._devices(backend) else "this JAX finds no GPU"

    @staticmethod
    def _devices(backend: Backend) -> list[Any]:
        # Otherwise JAX takes most of the GPU's memory at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        jax = importlib.import_module("jax")
        try:
            return list(jax.devices("gpu" if backend.name == "cupy" else "cpu"))
        except RuntimeError:
            return []

    def prepare(self, problem: Problem, backend: Backend, threads: int) -> Candidate:
        jax = importlib.import_module("jax")
        layer = problem.layer
        device = self._devices(backend)[0]
        x, w, b, dout = (jax.device_put(array, device) for array in problem.arrays)

        def convolve(x: Any, w: Any, b: Any) -> Any:
            out = jax.lax.conv_general_dilated(
                x,
                w,
                layer.stride,
                [(pad, pad) for pad in layer.padding],
                rhs_dilation=layer.dilation,
                feature_group_count=layer.groups,
                precision=jax.lax.Precision.HIGHEST,
            )
            return out + b.reshape(-1, *(1,) * len(layer.kernel))

        forward = jax.jit(lambda x, w, b: (convolve(x, w, b),))
        backward = jax.jit(lambda x, w, b, dout: jax.vjp(convolve, x, w, b)[1](dout))
        wait = jax.block_until_ready
        runs = {"forward": lambda: wait(forward(x, w, b)), "backward": lambda: wait(backward(x, w, b, dout))}
        return Candidate(self.name, runs)


PEERS: tuple[Peer, ...] = (
    Torch("torch", "PyTorch", ("torch",), "pip install torch"),
    Torch("torch-last", "PyTorch, channels last", ("torch",), "pip install torch", last=True),
    Torch(
        "torch-tf32",
        "PyTorch with TF32",
        ("torch",),
        "pip install torch",
        note="beside portconv with precision 'fast'; TF32 rounds numbers to 11 bits, so its errors are not judged",
        default=False,
        rival=False,
        tf32=True,
    ),
    OnnxRuntime(
        "onnx",
        "ONNX Runtime",
        ("onnx", "onnxruntime"),
        "pip install onnx onnxruntime",
        note="forward alone, and the filters are laid out anew when its session is made",
    ),
    Jax(
        "jax",
        "JAX",
        ("jax",),
        "pip install jax",
        note="has a thread for each CPU, however many the others have",
    ),
    Named("direct", "portconv's direct", default=False, rival=False),
    Named("gemm", "portconv's gemm", default=False, rival=False),
    Precise(
        "same-bits", "portconv with precision 'reproducible'", default=False, rival=False, precision="reproducible"
    ),
    Precise("fast", "portconv with precision 'fast'", default=False, rival=False, precision="fast"),
    Product("product", "matrix products of as many operations", rival=False),
)
