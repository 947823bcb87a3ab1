"""NumPy: blocks on threads, with BLAS held to one thread meanwhile, and products written where they belong."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from functools import cache
from typing import Any

import numpy as np

from .. import limits
from ..errors import ConvTypeError, PortconvError
from ._base import Array, Backend, Block, Costs, Workspace, bfloat16

FEW_OPERATIONS = 4_000_000
"""Work below this is done before threads have woken up."""
FEW_OF_A_SAMPLE = 64_000_000
"""The same of a single sample: its calls are short, and threads that make short calls wait for one another."""
SEVERAL_OPERATIONS = 1_000_000_000
"""A single product below this is done sooner by BLAS's threads, which wait awake, though one after the other with what
is copied for it."""
BUFFER = 512
"""Elements that NumPy may buffer. With its usual 8192 it copies rows shorter than that together before it adds them up,
which takes longer than the addition."""
AVX2_KERNELS = {"Haswell", "Zen", "Excavator"}


class NumpyBackend(Backend):
    name = "numpy"
    module = "numpy"
    array_class = "ndarray"
    install = "pip install numpy"
    views = True
    propagates = True
    strided = True
    block_bytes = 4 << 20
    block_columns = 4096
    costs = Costs(operation=0.0074, element=0.08, transform=0.16, call=3500)

    def load(self) -> Any:
        # NumPy 2's own namespace holds all that is used here; importing array_api_compat's wrapper takes 0.1 s.
        return np

    def objection(self, array: Array) -> PortconvError | None:
        if type(array) is not np.ndarray and type(array).__module__.startswith("numpy.ma"):
            return ConvTypeError(
                "got a masked array, expected a plain one: array.filled(0) puts a number where the mask is"
            )
        return None

    def details(self) -> dict[str, str]:
        blas = ", ".join(f"{lib.internal_api} {lib.version} ({_kernel(lib)})" for lib in _blas.libraries())
        return {"threads": str(limits.threads() or _blas.threads()), "BLAS": blas or "unknown to threadpoolctl"}

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

    def native(self, dtype: Any) -> Any:
        return dtype.newbyteorder("=")

    def holds(self, name: str, like: Array) -> bool:
        return True

    def asarray(self, obj: Any, dtype: Any = None, device: Any = None) -> Array:
        if dtype == "bfloat16":
            dtype = bfloat16()
        return np.asarray(obj, dtype=dtype, device=device)

    def to_numpy(self, array: Array) -> Any:
        return array

    def astype(self, array: Array, dtype: Any) -> Array:
        return array.astype(dtype, copy=False)

    def complex(self, real: Array, imag: Array) -> Array:
        return np.stack((real, imag), axis=-1).view(np.result_type(real, np.complex64))[..., 0]

    def elementwise(self, name: str, target: Array, index: tuple[Any, ...], *operands: Any) -> Array:
        getattr(np, name)(*operands, out=target[index])
        return target

    def view(self, array: Array, shape: tuple[int, ...], steps: tuple[int, ...]) -> Array:
        size = array.itemsize
        # as_strided takes longer than all that is done with a small array.
        return np.ndarray(shape, array.dtype, array, 0, [step * size for step in steps])

    def quiet(self) -> AbstractContextManager[Any]:
        return np.errstate(all="ignore")

    def product(self, a: Array, b: Array, out: Array | None = None) -> Array:
        # BLAS is slow at products of one term, which are the depthwise input gradient's.
        return np.multiply(a, b, out=out) if a.shape[-1] == 1 else np.matmul(a, b, out=out)

    def during_call(self, like: Array, precision: str) -> AbstractContextManager[Any]:
        # Also what runs on no threads of ours may run on BLAS's.
        asked = limits.threads()
        return nullcontext() if asked is None else _blas.held(asked)

    def least_blocks(self, operations: int, samples: int) -> int:
        # Of the machine and not of the threads in use, so that the bits do not change with the number of threads.
        few = FEW_OPERATIONS if samples > 1 else FEW_OF_A_SAMPLE
        return min(16, 2 * _cpus()) if operations >= few else 1

    def whole(self, operations: int) -> bool:
        return FEW_OPERATIONS <= operations < SEVERAL_OPERATIONS

    def transform(self, kind: str, array: Array, length: int, axis: int, out: Array | None = None) -> Array:
        # Unless "ortho", NumPy's factor of 1 is an int, which makes it transform float32 in float64, by way of copies.
        return getattr(np.fft, kind)(array, n=length, axis=axis, norm="ortho", out=out)

    def workspace(self, like: Array) -> Workspace:
        held = _memory.held
        used: set[str] = set()
        views: dict[Any, Array] = {}

        def reuse(purpose: str, shape: tuple[int, ...], dtype: Any = None) -> Array:
            view = views.get((purpose, shape, dtype))
            if view is not None:
                return view
            own = np.dtype(dtype or like.dtype)
            size = math.prod(shape) * own.itemsize
            used.add(purpose)
            if purpose not in held or held[purpose].size < size:
                views.clear()  # or what is let go would be kept
                held.pop(purpose, None)
                for stale in held.keys() - used:
                    del held[stale]
                held[purpose] = np.empty(size, np.uint8)
            view = views[purpose, shape, dtype] = held[purpose][:size].view(own).reshape(shape)
            return view

        return reuse

    def fill(
        self,
        out: Array,
        blocks: Sequence[tuple[tuple[Any, ...], Block]],
        compute: Callable[[Block, Array, Workspace], Array],
        least: int,
    ) -> Array:
        if min(least, len(blocks)) < 2:
            return super().fill(out, blocks, compute, least)
        waiting = list(reversed(blocks))

        def work() -> None:
            workspace = self.workspace(out)
            with np.errstate():  # which also puts the buffer's size back
                np.setbufsize(BUFFER)
                while True:
                    try:
                        index, block = waiting.pop()
                    except IndexError:
                        return
                    target = out[index]
                    value = compute(block, target, workspace)
                    if value is not target:
                        target[...] = value
                    del value  # or the next block's larger workspace would be one more

        with _blas.held(1) as found:
            threads = limits.threads() or found
            workers = min(len(blocks), threads)
            # The caller's np.errstate is the workers' too.
            futures = [_pool.executor(threads).submit(copy_context().run, work) for _ in range(workers - 1)]
            try:
                work()
            finally:
                waiting.clear()
                # All have ended before BLAS has its threads back, even where one has failed.
                started = [future for future in futures if not future.cancel()]
                wait(started)
            for future in started:
                future.result()
        return out


class _Memory(threading.local):
    """The workspaces of a thread, kept for its next call: fresh memory costs more in page faults than the work in it.

    What the last call that wanted fresh memory did not use is let go, so no more is kept than one call may take.
    """

    def __init__(self) -> None:
        self.held: dict[str, Array] = {}


class _Pool:
    """The worker threads, started on first need and forgotten by a forked child, which has none of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: ThreadPoolExecutor | None = None
        self.size = 0

    def executor(self, threads: int) -> ThreadPoolExecutor:
        with self.lock:
            if self.held is None or self.size != threads - 1:  # not more either: each keeps workspaces
                self.size = threads - 1
                self.held = ThreadPoolExecutor(self.size, "portconv", _one_thread_of_its_own)
            return self.held


class _Blas:
    """The BLAS's own threads: counted, and held to one while any call here runs blocks on threads.

    threadpoolctl's own context managers do not overlap: the first caller out would restore the threads while the
    second still computes, so here the last one out does.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.known: list[Any] | None = None
        self.calls: list[int] = []
        self.found: list[int] = []

    def libraries(self) -> list[Any]:
        with self.lock:
            if self.known is None:
                from threadpoolctl import ThreadpoolController

                self.known = ThreadpoolController().select(user_api="blas").lib_controllers
            return self.known

    def counts(self) -> list[int]:
        """Each library's threads, as the user has set them."""
        with self.lock:
            return self.found if self.calls else [library.num_threads for library in self.libraries()]

    def threads(self) -> int:
        """As many threads as the user lets BLAS have; as many as there are CPUs where that cannot be known."""
        return max(self.counts(), default=_cpus())

    @contextmanager
    def held(self, count: int) -> Iterator[int]:
        """Hold BLAS to so many threads; give how many it had."""
        with self.lock:
            self.found = self.counts()
            threads = self.threads()
            self.calls.append(count)
            self.put([min(self.calls)] * len(self.found))
        try:
            yield threads
        finally:
            with self.lock:
                self.calls.remove(count)
                # Another call's blocks must not meet more threads than it asked for: that would change their bits.
                left = [min(self.calls)] * len(self.found) if self.calls else self.found
                self.put(left, own=False)
                self.put(self.found, own=True)

    def put(self, counts: list[int], own: bool | None = None) -> None:
        """Set each library's threads; `own` those whose limit is the calling thread's own, as with OpenMP, or not."""
        for library, count in zip(self.libraries(), counts, strict=True):
            if own is not None and own != (getattr(library, "threading_layer", None) == "openmp"):
                continue
            # threadpoolctl 3.8 lets only one Python thread set OpenBLAS's, unless that one is made to let go.
            let_go = getattr(library, "clear_controlling_thread", lambda force: None)
            let_go(force=True)
            library.set_num_threads(count)
            let_go(force=True)


@cache
def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_thread_of_its_own() -> None:
    _blas.put([1] * len(_blas.libraries()), own=True)


def _kernel(library: Any) -> str:
    return str(getattr(library, "architecture", None) or "kernel unknown")


_blas = _Blas()
_pool = _Pool()
_memory = _Memory()


def _start_afresh() -> None:
    global _blas, _pool
    if _blas.calls:
        _blas.put(_blas.found)
    _blas, _pool = _Blas(), _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
