"""CuPy, on NVIDIA GPUs. Nothing here copies an array to the host but `to_numpy`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..errors import in_a_line
from ._base import GPU_WORKSPACE, Array, Backend, Costs, Unavailable, bfloat16


class CupyBackend(Backend):
    name = "cupy"
    module = "cupy"
    array_class = "ndarray"
    install = "pip install 'portconv[cupy]' (CUDA 13) or 'portconv[cupy12]' (CUDA 12)"
    views = True
    # A launch costs microseconds whatever its size, so a few large blocks serve a GPU best.
    block_bytes = 256 << 20
    block_columns = 1 << 30
    costs = Costs(operation=5e-5, element=6e-3, transform=2e-3, call=5000)

    def load(self) -> Any:
        try:
            cupy = importlib.import_module("cupy")
        except ImportError as error:
            raise Unavailable(f"CuPy is not installed ({in_a_line(error)})") from error
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except Exception as error:
            raise Unavailable(in_a_line(error), no_device=_is_no_device(error)) from error
        if count == 0:
            raise Unavailable("CUDA finds no device", no_device=True)
        # One elementwise kernel proves the compiler and its headers, one product proves cuBLAS.
        try:
            ones = cupy.arange(4.0, dtype=cupy.float32).reshape(2, 2) * 0 + 1
            cupy.matmul(ones, ones)
            cupy.cuda.get_current_stream().synchronize()
        except Exception as error:
            raise Unavailable(f"CUDA finds {count} device(s), but: {in_a_line(error)}") from error
        return importlib.import_module("array_api_compat.cupy")

    def details(self) -> dict[str, str]:
        runtime = self.xp.cuda.runtime
        names = {f"cuda:{i}": runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())}
        return {"CUDA": str(runtime.runtimeGetVersion()), **names}

    def devices(self) -> list[Any]:
        cuda = self.xp.cuda
        current = cuda.Device()
        others = (cuda.Device(i) for i in range(cuda.runtime.getDeviceCount()))
        return [current, *(device for device in others if device != current)]

    def asarray(self, obj: Any, dtype: Any = None, device: Any = None) -> Array:
        with self.xp.cuda.Device(device):
            return self.xp.asarray(obj, dtype=bfloat16() if dtype == "bfloat16" else dtype)

    def native(self, dtype: Any) -> Any:
        return dtype.newbyteorder("=")

    def memory(self, like: Array) -> int:
        with like.device:
            return int(self.xp.cuda.runtime.memGetInfo()[1])

    def default_workspace(self, like: Array) -> int:
        return GPU_WORKSPACE

    def at_hand(self, like: Array) -> bool:
        return False

    def to_numpy(self, array: Array) -> Any:
        return self.xp.asnumpy(array)

    def synchronize(self) -> None:
        self.xp.cuda.get_current_stream().synchronize()

    def empty(self, shape: tuple[int, ...], like: Array, last: int = 0, dtype: Any = None) -> Array:
        # CuPy's creation functions take no notice of `device=`: `during_call` makes the right device current.
        return super().empty(shape, like, last, dtype) if last else self.xp.empty(shape, dtype=dtype or like.dtype)

    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        return self.xp.zeros(shape, dtype=like.dtype)

    def complex(self, real: Array, imag: Array) -> Array:
        return self.xp.stack((real, imag), axis=-1).view(self.xp.result_type(real, self.xp.complex64))[..., 0]

    def product(self, a: Array, b: Array, out: Array | None = None) -> Array:
        if a.ndim != 3 or a.shape[0] != 1 or b.shape[0] != 1:
            return self.xp.matmul(a, b, out=out)
        # In two dimensions CuPy hands transposed operands to cuBLAS as they are; in three it copies them first.
        if out is None:
            return self.xp.matmul(a[0], b[0])[None]
        matrix = out[0]
        if matrix.flags.f_contiguous:  # as with channels last, where it would be a copy too
            self.xp.matmul(b[0].T, a[0].T, out=matrix.T)
        else:
            self.xp.matmul(a[0], b[0], out=matrix)
        return out

    @contextmanager
    def during_call(self, like: Array, precision: str) -> Iterator[None]:
        with like.device, ExitStack() as held:
            if precision != "fast":
                # Also what complex64, halves and small integers are multiplied in.
                _hold_compute_type(held, self.xp.float32)
                _hold_math_mode(held)
            yield


def _hold_compute_type(held: ExitStack, dtype: Any) -> None:
    """Set what the two-dimensional product computes in; `CUPY_TF32=1` makes that TF32 for float32."""
    linalg = importlib.import_module("cupy._core._routines_linalg")
    if not hasattr(linalg, "set_compute_type"):  # not public: without it, the TF32 canary among the tests is the guard
        return
    found = linalg.get_compute_type(dtype)
    if found != linalg.COMPUTE_TYPE_DEFAULT:
        linalg.set_compute_type(dtype, linalg.COMPUTE_TYPE_DEFAULT)
        held.callback(linalg.set_compute_type, dtype, found)


def _hold_math_mode(held: ExitStack) -> None:
    """Set the cuBLAS handle's mode, which the stacked product obeys; 0 is CUBLAS_DEFAULT_MATH, without TF32."""
    cublas = importlib.import_module("cupy.cuda.cublas")
    if not (hasattr(cublas, "getMathMode") and hasattr(cublas, "setMathMode")):
        return
    handle = importlib.import_module("cupy.cuda.device").get_cublas_handle()
    found = cublas.getMathMode(handle)
    if found != 0:
        cublas.setMathMode(handle, 0)
        held.callback(cublas.setMathMode, handle, found)


def _is_no_device(error: Exception) -> bool:
    return any(code in str(error) for code in ("cudaErrorNoDevice", "cudaErrorInsufficientDriver"))
