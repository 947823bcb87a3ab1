"""NumPy: blocks on threads, with BLAS held to one thread meanwhile, and products written where they belong."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from ._base import Array, Backend, Block, Workspace

FEW_OPERATIONS = 4_000_000
"""Work below this is done before threads have woken up."""
AVX2_KERNELS = {"Haswell", "Zen", "Excavator"}


class NumpyBackend(Backend):
    name = "numpy"
    module = "numpy"
    array_class = "ndarray"
    install = "pip install numpy"
    views = True
    block_bytes = 2 << 20
    block_columns = 1024

    def load(self) -> Any:
        # NumPy 2's own namespace holds all that is used here; importing array_api_compat's wrapper takes 0.1 s.
        return np

    def details(self) -> dict[str, str]:
        blas = ", ".join(f"{lib.internal_api} {lib.version} ({_kernel(lib)})" for lib in _blas.libraries())
        return {"threads": str(_blas.threads()), "BLAS": blas or "unknown to threadpoolctl"}

    def advice(self) -> str | None:
        simd = np.show_config(mode="dicts")["SIMD Extensions"]  # type: ignore[call-overload, index, unused-ignore]
        wide = any(name.startswith(("AVX512", "X86_V4")) for name in (*simd["baseline"], *simd["found"]))
        for lib in _blas.libraries():
            if wide and lib.internal_api == "openblas" and _kernel(lib) in AVX2_KERNELS:
                found = os.environ.get("OPENBLAS_CORETYPE")
                where = f"OPENBLAS_CORETYPE is {found}: unset it, or " if found else ""
                return (
                    f"OpenBLAS runs its AVX2 kernels ({_kernel(lib)}) on a CPU with AVX-512; "
                    f"{where}set OPENBLAS_CORETYPE=SkylakeX for up to twice the speed"
                )
        return None

    def devices(self) -> list[Any]:
        return ["cpu"]

    def device_of(self, array: Array) -> Any:
        return "cpu"

    def asarray(self, obj: Any, dtype: Any = None, device: Any = None) -> Array:
        return np.asarray(obj, dtype=dtype, device=device)

    def to_numpy(self, array: Array) -> Any:
        return array

    def astype(self, array: Array, dtype: Any) -> Array:
        return array.astype(dtype, copy=False)

    def product(self, a: Array, b: Array, out: Array | None = None) -> Array:
        return np.matmul(a, b, out=out)

    def least_blocks(self, operations: int) -> int:
        # Of the work alone and not of the threads, so that the bits do not change with the number of threads.
        return 8 if operations >= FEW_OPERATIONS else 1

    def workspace(self, like: Array) -> Workspace:
        held: dict[str, Array] = {}

        def reuse(purpose: str, shape: tuple[int, ...]) -> Array:
            # Fresh memory costs more in page faults than the arithmetic on it: each thread keeps its own.
            size = math.prod(shape)
            if purpose not in held or held[purpose].size < size:
                held[purpose] = np.empty(size, like.dtype)
            return held[purpose][:size].reshape(shape)

        return reuse

    def fill(
        self,
        out: Array,
        blocks: Sequence[tuple[tuple[Any, ...], Block]],
        compute: Callable[[Block, Array, Workspace], Array],
        operations: int,
    ) -> Array:
        workers = 1 if operations < FEW_OPERATIONS else min(len(blocks), _blas.threads())
        if workers <= 1:
            return super().fill(out, blocks, compute, operations)
        waiting = list(reversed(blocks))

        def work() -> None:
            workspace = self.workspace(out)
            while True:
                try:
                    index, block = waiting.pop()
                except IndexError:
                    return
                target = out[index]
                value = compute(block, target, workspace)
                if value is not target:
                    target[...] = value

        with _blas.one_thread():
            futures = [_pool.executor().submit(work) for _ in range(workers - 1)]
            try:
                work()
            finally:
                waiting.clear()
                for future in futures:
                    if not future.cancel():
                        future.result()
        return out


class _Pool:
    """The worker threads, started on first need and forgotten by a forked child, which has none of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: ThreadPoolExecutor | None = None

    def executor(self) -> ThreadPoolExecutor:
        with self.lock:
            if self.held is None:
                self.held = ThreadPoolExecutor(max(1, _blas.threads() - 1), "portconv")
            return self.held


class _Blas:
    """The BLAS's own threads: counted, and held to one while any call here runs blocks on threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.controller: Any = None
        self.limiter: Any = None
        self.calls = 0
        self.found = 1

    def libraries(self) -> list[Any]:
        if self.controller is None:
            from threadpoolctl import ThreadpoolController

            self.controller = ThreadpoolController().select(user_api="blas")
        return list(self.controller.lib_controllers)

    def threads(self) -> int:
        """As many threads as the user lets BLAS have; as many as there are CPUs where that cannot be known."""
        libraries = self.libraries()
        if self.calls:
            return self.found
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max((lib.num_threads for lib in libraries), default=cpus)

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        with self.lock:
            if self.calls == 0:
                self.found = self.threads()
                self.limiter = self.controller.limit(limits=1)
            self.calls += 1
        try:
            yield
        finally:
            with self.lock:
                self.calls -= 1
                if self.calls == 0:
                    self.limiter.restore_original_limits()


def _kernel(library: Any) -> str:
    return str(getattr(library, "architecture", None) or "kernel unknown")


_blas = _Blas()
_pool = _Pool()


def _start_afresh() -> None:
    global _blas, _pool
    if _blas.calls:
        _blas.limiter.restore_original_limits()
    _blas, _pool = _Blas(), _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
