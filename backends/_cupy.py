"""CuPy, on NVIDIA GPUs. Only `to_numpy` copies an array to the host."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..errors import in_a_line
from . import _cudnn
from ._numpy_like import NumpyLike
from ._terms import GPU_WORKSPACE, Array, Costs, Unavailable


class CupyBackend(NumpyLike):
    name = "cupy"
    module = "cupy"
    array_class = "ndarray"
    install = "pip install 'portconv[cupy]' (CUDA 13) or 'portconv[cupy12]' (CUDA 12)"
    views = True
    # Each launch takes microseconds, whatever its size, so a few large blocks are best.
    block_bytes = 256 << 20
    block_columns = 1 << 30
    costs = Costs(operation=5e-5, element=6e-3, transform=2e-3, call=5000, native=2e-5)

    cudnn = ""
    """The versions of cuDNN, or why there is none."""

    def load(self) -> Any:
        cupy = importlib.import_module("cupy")
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except Exception as error:
            raise Unavailable(in_a_line(error), no_device=_is_no_device(error)) from error
        if count == 0:
            raise Unavailable("CUDA finds no device", no_device=True)
        # An elementwise kernel needs the compiler and its headers, and a product needs cuBLAS.
        try:
            ones = cupy.arange(4.0, dtype=cupy.float32).reshape(2, 2) * 0 + 1
            cupy.matmul(ones, ones)
            cupy.cuda.get_current_stream().synchronize()
        except Exception as error:
            raise Unavailable(f"CUDA finds {count} device(s), but: {in_a_line(error)}") from error
        try:
            self.cudnn = _cudnn.versions()
            self.native_convolution = _cudnn.CudnnConvolution()
        except Unavailable as fault:
            self.cudnn = f"none: {fault}"
            self.without_native = f"CuPy's arrays where cuDNN works ({fault}): {_cudnn.INSTALL}"
        return importlib.import_module("array_api_compat.cupy")

    def details(self) -> dict[str, str]:
        runtime = self.xp.cuda.runtime
        names = {f"cuda:{i}": runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())}
        return {"CUDA": str(runtime.runtimeGetVersion()), "cuDNN": self.cudnn, **names}

    def devices(self) -> list[Any]:
        cuda = self.xp.cuda
        current = cuda.Device()
        others = (cuda.Device(i) for i in range(cuda.runtime.getDeviceCount()))
        return [current, *(device for device in others if device != current)]

    def memory(self, like: Array) -> int:
        with like.device:
            return int(self.xp.cuda.runtime.memGetInfo()[1])

    def default_workspace(self, like: Array) -> int:
        return GPU_WORKSPACE

    def at_hand(self, like: Array) -> bool:
        return False

    def all_finite(self, array: Array) -> bool:
        return _cudnn.all_finite(self.xp, array)

    def to_numpy(self, array: Array) -> Any:
        return self.xp.asnumpy(array)

    def synchronize(self) -> None:
        self.xp.cuda.get_current_stream().synchronize()

    def empty(self, shape: tuple[int, ...], like: Array, last: int = 0, dtype: Any = None) -> Array:
        # `empty` and `zeros` of CuPy ignore `device=`: `during_call` makes the device the current one.
        return super().empty(shape, like, last, dtype) if last else self.xp.empty(shape, dtype=dtype or like.dtype)

    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        return self.xp.zeros(shape, dtype=like.dtype)

    def product(self, a: Array, b: Array, out: Array | None = None) -> Array:
        if a.ndim != 3 or a.shape[0] != 1 or b.shape[0] != 1:
            return self.xp.matmul(a, b, out=out)
        # CuPy passes transposed matrices to cuBLAS without a copy, but copies stacks of transposed matrices.
        if out is None:
            return self.xp.matmul(a[0], b[0])[None]
        matrix = out[0]
        if matrix.flags.f_contiguous:  # channels are last: a product into `matrix` itself would be copied
            self.xp.matmul(b[0].T, a[0].T, out=matrix.T)
        else:
            self.xp.matmul(a[0], b[0], out=matrix)
        return out

    @contextmanager
    def during_call(self, like: Array, precision: str) -> Iterator[None]:
        with like.device, ExitStack() as held:
            held.callback(_cudnn.fast.reset, _cudnn.fast.set(precision == "fast"))
            if precision != "fast":
                # CuPy also multiplies complex64, float16 and small integers by this setting.
                _hold_compute_type(held, self.xp.float32)
                _hold_math_mode(held)
            yield


def _hold_compute_type(held: ExitStack, dtype: Any) -> None:
    """Let products of two matrices compute in their own dtype; `CUPY_TF32=1` makes that TF32 for float32."""
    linalg = importlib.import_module("cupy._core._routines_linalg")
    if not hasattr(linalg, "set_compute_type"):  # it is not public; a test fails if products are in TF32
        return
    before = linalg.get_compute_type(dtype)
    if before != linalg.COMPUTE_TYPE_DEFAULT:
        linalg.set_compute_type(dtype, linalg.COMPUTE_TYPE_DEFAULT)
        held.callback(linalg.set_compute_type, dtype, before)


def _hold_math_mode(held: ExitStack) -> None:
    """Set the mode of the cuBLAS handle, for products of stacks, to 0: CUBLAS_DEFAULT_MATH, without TF32."""
    cublas = importlib.import_module("cupy.cuda").cublas  # no module of that name: CuPy imports it from elsewhere
    if not (hasattr(cublas, "getMathMode") and hasattr(cublas, "setMathMode")):
        return
    handle = importlib.import_module("cupy.cuda.device").get_cublas_handle()
    before = cublas.getMathMode(handle)
    if before != 0:
        cublas.setMathMode(handle, 0)
        held.callback(cublas.setMathMode, handle, before)


def _is_no_device(error: Exception) -> bool:
    """Return whether an error of CUDA says that there is no device, or no driver for it."""
    return any(code in str(error) for code in ("cudaErrorNoDevice", "cudaErrorInsufficientDriver"))
