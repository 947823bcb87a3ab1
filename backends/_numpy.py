"""NumPy: blocks run on threads while BLAS has one thread, and products are written into their places."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, copy_context
from ctypes import c_void_p
from functools import cache
from typing import Any

import numpy as np

from .. import forks, limits
from ..errors import ConvTypeError, PortconvError
from ._blas import Blas, cpus
from ._numpy_like import NumpyLike
from ._numpy_native import NumPyConvolution
from ._terms import MASKED, Array, Block, Costs, Workspace
from ._threads import Holding, Workers

FEW_OPERATIONS = 4_000_000
"""Work of fewer operations is done before threads are awake."""
FEW_OF_A_SAMPLE = 64_000_000
"""The same number for a single sample: its calls are short, and threads with short calls wait for each other."""
SEVERAL_OPERATIONS = 1_000_000_000
"""For a single product of fewer operations the threads of BLAS, which stay awake, are faster than blocks on threads,
although one thread then copies what the product needs."""
BUFFER = 512
"""How many elements NumPy may buffer. With its default of 8192 it first copies rows that are shorter into a buffer, and
that takes longer than their addition."""
HEAD = object.__basicsize__
"""The bytes of an object before the fields of its own type."""
BACKWARDS = slice(None, None, -1)
FEW_NUMBERS = 8192
"""The most numbers whose sum of squares BLAS computes on the calling thread."""
CHUNK = 1 << 16
"""So many numbers are looked at at a time, while they are in the cache."""
HALF_EXPONENT, BFLOAT_EXPONENT = np.uint16(0x7C00), np.uint16(0x7F80)
LARGEST, INFINITE = np.array(np.finfo(np.float64).max), np.array(np.inf)
ARITHMETIC = ("__array_ufunc__", "__array_function__", "__add__", "__mul__")
"""The methods by which a subclass of NumPy's array gives arithmetic a meaning of its own."""
AVX2_KERNELS = {"Haswell", "Zen", "Excavator"}
"""The kernels of OpenBLAS that use AVX2 and not AVX-512."""


class NumpyBackend(NumpyLike):
    name = "numpy"
    module = "numpy"
    array_class = "ndarray"
    install = "pip install numpy"
    views = True
    propagates = True
    strided = True
    has_addresses = True
    block_bytes = 4 << 20
    block_columns = 4096
    costs = Costs(operation=0.0074, element=0.08, transform=0.16, call=3500, native=0.0074)
    native_convolution = NumPyConvolution()

    def load(self) -> Any:
        forks.imported("numpy.fft")  # NumPy would load it in the middle of a call
        # The namespace of NumPy 2 has all that is used; importing the one of array_api_compat takes 0.1 s.
        return np

    def objection(self, array: Array) -> PortconvError | None:
        array_class: Any = type(array)
        if array_class is np.ndarray:
            return None
        words = _meaning(array_class)
        return None if words is None else ConvTypeError(words)

    def plain(self, array: Array) -> Array:
        return np.asarray(array)

    def details(self) -> dict[str, str]:
        blas = ", ".join(f"{lib.internal_api} {lib.version} ({_kernel(lib)})" for lib in _blas.libraries())
        return {"threads": str(limits.threads() or _blas.threads()), "BLAS": blas or "unknown to threadpoolctl"}

    def prepare(self) -> None:
        _blas.libraries()

    def advice(self) -> str | None:
        simd = np.show_config(mode="dicts")["SIMD Extensions"]  # type: ignore[call-overload, index, unused-ignore]
        wide = any(name.startswith(("AVX512", "X86_V4")) for name in (*simd["baseline"], *simd["found"]))
        for lib in _blas.libraries():
            if wide and lib.internal_api == "openblas" and _kernel(lib) in AVX2_KERNELS:
                core = os.environ.get("OPENBLAS_CORETYPE")
                where = f"OPENBLAS_CORETYPE is {core}: unset it, or " if core else ""
                return (
                    f"OpenBLAS runs its AVX2 kernels ({_kernel(lib)}) on a CPU with AVX-512; "
                    f"{where}set OPENBLAS_CORETYPE=SkylakeX for up to twice the speed"
                )
        return None

    def devices(self) -> list[Any]:
        return ["cpu"]

    def device_of(self, array: Array) -> Any:
        return "cpu"

    def same_device(self, array: Array, other: Array) -> bool:
        return True

    def holds(self, name: str, like: Array) -> bool:
        return True

    def to_numpy(self, array: Array) -> Any:
        return array

    def in_order(self, array: Array, batched: bool) -> bool:
        flags = array.flags
        plain = bool(flags.aligned and array.dtype.isnative)
        if flags.c_contiguous or not array.size:
            return plain
        # NumPy multiplies without BLAS where rows run backwards, overlap or have gaps between their elements.
        sides = list(zip(array.shape, array.strides, strict=True))[batched:]
        expected, last = array.itemsize, True
        for size, stride in reversed(sides):
            if size > 1:
                if stride < expected or (last and stride > expected):
                    return False
                expected, last = size * stride, False
        return plain

    def astype(self, array: Array, dtype: Any) -> Array:
        return array.astype(dtype, copy=False)

    def elementwise(self, name: str, target: Array, index: tuple[Any, ...], *operands: Any) -> Array:
        getattr(np, name)(*operands, out=target[index])
        return target

    def backwards(self, array: Array, dims: int) -> Array:
        return array[(..., *(BACKWARDS,) * dims)]

    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        return np.zeros(shape, like.dtype)

    def address(self, array: Array) -> int | None:
        # `array.ctypes.data` takes a microsecond. The address is the first field of NumPy's own part of an array.
        return c_void_p.from_address(id(array) + HEAD).value

    def lies_in_a_row(self, array: Array) -> bool:
        flags = array.flags
        return bool(flags.c_contiguous and flags.aligned and array.dtype.isnative)

    def in_a_row(self, array: Array) -> Array:
        if self.lies_in_a_row(array):
            return array
        if array.flags.aligned and array.dtype.isnative:  # which is faster than what follows
            return np.ascontiguousarray(array)
        return np.require(array, array.dtype.newbyteorder("="), ("C", "A"))

    def threads(self) -> int:
        return limits.threads() or _blas.threads()

    def all_finite(self, array: Array) -> bool:
        # np.all takes longer than all other work on a small array.
        return bool(np.isfinite(array).all())

    def view(self, array: Array, shape: tuple[int, ...], steps: tuple[int, ...]) -> Array:
        size = array.itemsize
        # as_strided takes longer than all other work on a small array.
        return np.ndarray(shape, array.dtype, array, 0, [step * size for step in steps])

    def quiet(self) -> AbstractContextManager[Any]:
        return np.errstate(all="ignore")

    def is_suspect(self, result: Array) -> bool:
        if result.dtype.kind in "iu":
            return False
        flat = result.ravel("K")
        if flat.size <= FEW_NUMBERS and flat.dtype.char in "fdFD":
            # A sum of squares is finite only if all are; of more numbers, the threads of BLAS would stay awake for it.
            return not math.isfinite(abs(np.dot(flat, flat)))
        return not all(_is_finite(flat[start : start + CHUNK]) for start in range(0, flat.size, CHUNK))

    def warn_of(self, result: Array, operands: tuple[Array, ...]) -> None:
        with np.errstate(all="ignore"):
            is_infinite = np.isinf(_extremes(result, np.fmax, np.fmin)).any()
            overflows = is_infinite and all(map(_are_finite, operands))
            is_invalid = _have_nan(result) and not any(map(_have_nan, operands))
        # By np.errstate, NumPy itself warns of these two sums, raises an error, or does nothing.
        if overflows:
            np.add(LARGEST, LARGEST)
        if is_invalid:
            np.add(INFINITE, -INFINITE)

    def product(self, a: Array, b: Array, out: Array | None = None) -> Array:
        # BLAS is slow if sums have one term, as in the input gradient of a depthwise convolution.
        return np.multiply(a, b, out=out) if a.shape[-1] == 1 else np.matmul(a, b, out=out)

    def total(self, array: Array, axis: int, dtype: Any = None, keepdims: bool = False) -> Array:
        if array.strides[axis] != array.itemsize:
            return super().total(array, axis, dtype, keepdims)
        # NumPy adds up in pairs what lies side by side.
        return np.sum(array, axis=axis, dtype=dtype or array.dtype, keepdims=keepdims)

    def during_call(self, like: Array, precision: str) -> AbstractContextManager[Any]:
        threads = limits.threads()
        held = threads is None or _workspaces.get() is not None  # by `apart`
        return nullcontext() if held else Holding(_blas.settings(), threads)

    def apart(self, compute: Callable[..., Array], *arguments: Any) -> Array:
        # What is set in the context, such as np.errstate, ends with it, even where an interrupt skips the end of
        # `with`. The call takes the thread's workspaces: one inside of it, as of a signal handler, has others.
        context, kept, _memory.free = copy_context(), _memory.free, {}
        context.run(_workspaces.set, kept)
        threads = limits.threads()
        if threads is None:
            result = context.run(compute, *arguments)
        else:
            # Work that is not in blocks may use so many threads of BLAS.
            result = _hold_blas(threads, context.run, compute, *arguments)
        _memory.free = kept or _memory.free
        return result

    def least_blocks(self, operations: int, samples: int) -> int:
        # The CPUs count, not the threads in use: so the number of threads does not change the bits.
        few = FEW_OPERATIONS if samples > 1 else FEW_OF_A_SAMPLE
        return min(16, 2 * cpus()) if operations >= few else 1

    def whole(self, operations: int) -> bool:
        return FEW_OPERATIONS <= operations < SEVERAL_OPERATIONS

    def transform(self, kind: str, array: Array, length: int, axis: int, out: Array | None = None) -> Array:
        # For another `norm` the factor of NumPy is an int, and then it copies float32 and transforms it in float64.
        return getattr(np.fft, kind)(array, n=length, axis=axis, norm="ortho", out=out)

    def workspace(self, like: Array) -> Workspace:
        held = _workspaces.get()
        if held is None:
            held = _memory.free
        used: set[str] = set()
        views: dict[Any, Array] = {}

        def reuse(name: str, shape: tuple[int, ...], dtype: Any = None) -> Array:
            view = views.get((name, shape, dtype))
            if view is not None:
                return view
            view_dtype = np.dtype(dtype or like.dtype)
            size = math.prod(shape) * view_dtype.itemsize
            used.add(name)
            if name not in held or held[name].size < size:
                views.clear()  # a view would keep memory that is freed here
                held.pop(name, None)
                for unused in held.keys() - used:
                    del held[unused]
                held[name] = np.empty(size, np.uint8)
            view = views[name, shape, dtype] = held[name][:size].view(view_dtype).reshape(shape)
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
        waiting = list(reversed(range(len(blocks))))

        def work() -> None:
            workspace = self.workspace(out)
            np.setbufsize(BUFFER)  # in this context, which ends with the work
            try:
                while True:
                    try:
                        number = waiting.pop()
                    except IndexError:
                        return
                    index, block = blocks[number]
                    target = out[index]
                    value = compute(block, target, workspace)
                    if value is not target:
                        target[...] = value
                    del value  # it may lie in a workspace, which could then not be freed for a larger one
            finally:
                waiting.clear()  # if one thread fails, the others need not go on

        def helped() -> None:
            self.apart(work)

        helpers, workers = min(len(blocks), limits.threads() or _blas.threads()) - 1, _workers
        try:
            done = _hold_blas(1, workers.run, work, helped, helpers)
        finally:
            waiting.clear()
        return out if done else super().fill(out, blocks, compute, least)


class _Memory(threading.local):
    """The workspaces of a thread, kept for its next call: new memory costs more time in page faults than the work.

    A call that needs new memory first frees the workspaces that it has not used, so that a thread keeps no more than
    one call may use.
    """

    def __init__(self) -> None:
        self.free: dict[str, Array] = {}


def _hold_blas(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function while BLAS is held to so many threads."""
    holding = Holding(_blas.settings(), threads)
    try:
        holding.begin()
        result = function(*arguments)
        holding.end()
    finally:
        holding.end()  # once more, in case that an interrupt came before the first step of the other
    return result


def _extremes(array: Array, *functions: Any) -> Any:
    """Return the largest and the smallest number of an array, or of its parts, as two ufuncs find them."""
    parts = (array.real, array.imag) if array.dtype.kind == "c" else (array,)
    return np.array([function.reduce(part, axis=None, initial=0) for part in parts for function in functions])


def _are_finite(array: Array) -> bool:
    return bool(np.isfinite(_extremes(array, np.maximum, np.minimum)).all())


def _is_finite(flat: Array) -> bool:
    """Return whether all numbers of an array are finite, by a few passes over little memory."""
    if flat.itemsize > 2:
        return bool(np.isfinite(flat).all())
    # NumPy has no fast comparisons of halves. What is not finite has all bits of its exponent set.
    exponent = HALF_EXPONENT if flat.dtype.char == "e" else BFLOAT_EXPONENT
    return bool((flat.view(np.uint16) & exponent).max() < exponent)


def _have_nan(array: Array) -> bool:
    return bool(np.isnan(_extremes(array, np.maximum)).any())


@cache
def _meaning(array_class: Any) -> str | None:
    """Say that a subclass of NumPy's array gives arithmetic a meaning of its own, such as units; None if it does not.

    The memory is then handed to products that know nothing of that meaning.
    """
    if any(base.__module__ == "numpy.ma" for base in array_class.__mro__):
        return f"{MASKED}: array.filled(0) puts a number where the mask is"
    if all(getattr(array_class, name) is getattr(np.ndarray, name) for name in ARITHMETIC):
        return None
    return (
        f"got {array_class.__name__}, which gives arithmetic a meaning of its own, expected a plain array: "
        "numpy.asarray(array) is its numbers alone"
    )


def _kernel(library: Any) -> str:
    """Return the name of the kernels that a BLAS runs."""
    return str(getattr(library, "architecture", None) or "kernel unknown")


_blas = Blas()
_workers = Workers(_blas.settings)
_memory = _Memory()
_workspaces: ContextVar[dict[str, Array] | None] = ContextVar("portconv.workspaces", default=None)
"""The workspaces of the call that runs in this context."""


def _start_afresh() -> None:
    """Forget the threads of the parent in a forked process, and give BLAS the number that the user has set."""
    global _workers
    _workers.lost = True
    _workers = Workers(_blas.settings)
    for setting in _blas.of_process:
        setting.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
