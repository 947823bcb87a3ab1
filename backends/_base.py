"""What portconv asks of an array library beyond the Array API standard, with a default in the standard for each.

The requirements this answers to:

- an unknown library works at once, so every method has a default that uses the standard alone;
- arrays may be immutable, so what writes (`write`, `add`, `product`, `fill` and their like) returns its result, and may
  or may not have used the array it was offered;
- no library is imported to find out that an array is not its own (`owns` looks in `sys.modules`);
- a library that is missing or has no device is a reason in words, found once and remembered.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

from ..errors import BackendError, PortconvError, in_a_line

Array = Any
"""An array of whichever library; the standard gives no type for it."""

Block = TypeVar("Block")

CPU_WORKSPACE, GPU_WORKSPACE = 64 << 20, 512 << 20
"""The bytes that a call may take a thread beside its result, where the user sets no limit."""


class Workspace(Protocol):
    """Gives an uninitialised array for a purpose; the next call for the same purpose may give the same memory."""

    def __call__(self, purpose: str, shape: tuple[int, ...], dtype: Any = None) -> Array: ...


class Costs(NamedTuple):
    """How long things take, in nanoseconds; only their ratios matter, and only to which algorithm is taken.

    Attributes
    ----------
    operation : float
        A multiplication or addition of a matrix product.
    element : float
        An element copied or added, on a long run in cache.
    transform : float
        A point of a Fourier transform, for each factor of two in their number.
    call : float
        A call of the library, whatever it does.
    """

    operation: float
    element: float
    transform: float
    call: float


class Unavailable(Exception):
    """Why a library does not work here; `no_device` when all that is missing is the hardware or its driver."""

    def __init__(self, reason: str, *, no_device: bool = False) -> None:
        super().__init__(reason)
        self.no_device = no_device


def bfloat16() -> Any:
    """Return the host's bfloat16, which NumPy has not of its own."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise BackendError("bfloat16 on the host needs ml_dtypes: pip install 'portconv[bfloat16]'") from error
    return ml_dtypes.bfloat16


@cache
def host_memory() -> int:
    """How many bytes of memory this machine has, or could address where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


class Backend:
    """One array library.

    Attributes
    ----------
    name : str
        The name that `portconv.backends.get` knows it by.
    module : str
        The module that defines its arrays.
    array_class : str
        The name of the array class in that module.
    install : str
        The command that installs it.
    """

    name: str
    module: str
    array_class: str
    install: str
    mutable = True
    """Whether `array[index] = value` is allowed."""
    views = False
    """Whether a slice shares its array's memory, so that what is written there needs no writing back."""
    framework = ""
    """The module whose function `node` takes whole operations, to put them off, differentiate or map them; or none."""
    propagates = False
    """Whether the largest and the smallest of elements are nan where any of them is."""
    strided = False
    """Whether `view` gives views of any strides."""
    widening = ""
    """What makes a library hold numbers of 64 bits, where it would not otherwise."""
    block_bytes = 4 << 20
    """How large the columns of one block may be."""
    block_columns = 1 << 14
    """How many columns a product needs to run at full speed; small images share a block up to there."""
    costs = Costs(operation=0.02, element=0.5, transform=0.5, call=10_000)
    """Of a library that makes a new array for each result, on a CPU."""
    compiled_steps: int | None = None
    """The most steps of a product that are better code of their own than a `loop`; None where steps are not code."""

    def load(self) -> Any:
        """Import the library and return its Array API namespace; raise `Unavailable` where it does not work."""
        raise NotImplementedError

    @cached_property
    def _loaded(self) -> tuple[Any, Unavailable | None]:
        try:
            return self.load(), None
        except Unavailable as reason:
            return None, reason
        except Exception as error:  # a library may raise anything on import; that it did is the reason
            return None, Unavailable(f"{self.module} cannot be used: {type(error).__name__}: {in_a_line(error)}")

    @property
    def fault(self) -> Unavailable | None:
        """Why this backend does not work here, or None."""
        return self._loaded[1]

    @property
    def unavailable(self) -> str | None:
        """Why this backend does not work here, in words, or None."""
        return None if self.fault is None else str(self.fault)

    @property
    def xp(self) -> Any:
        """The library's Array API namespace."""
        xp, fault = self._loaded
        if fault is not None:
            raise BackendError(f"backend {self.name!r} is unavailable: {fault}; to install it: {self.install}")
        return xp

    def __repr__(self) -> str:
        return f"<portconv backend {self.name!r}{'' if self.fault is None else ', unavailable'}>"

    def owns(self, array: object) -> bool:
        """Whether `array` is one of this library's; imports nothing."""
        module = sys.modules.get(self.module)
        kind = getattr(module, self.array_class, None)
        return isinstance(kind, type) and isinstance(array, kind)

    def objection(self, array: Array) -> PortconvError | None:
        """Return the error that says why portconv cannot take this array of the library's, or None."""
        return None

    def version(self) -> str:
        return str(getattr(sys.modules.get(self.module.partition(".")[0]), "__version__", "unknown"))

    def details(self) -> dict[str, str]:
        """What a user would want to know about speed here: threads, the BLAS, the device's name."""
        return {}

    def advice(self) -> str | None:
        """One line on a setting that costs the user speed here, or None."""
        return None

    def widen(self) -> None:
        """Let the library have all its dtypes, in a process that is portconv's own, such as that of its command."""

    def devices(self) -> list[Any]:
        """The devices that arrays can live on, the default one first."""
        return list(self.xp.__array_namespace_info__().devices())

    def device_of(self, array: Array) -> Any:
        return array.device

    def asarray(self, obj: Any, dtype: Any = None, device: Any = None) -> Array:
        """Make an array of this library from `obj`; `dtype` is one of the namespace's, or its name."""
        if isinstance(dtype, str):
            dtype = getattr(self.xp, dtype)
        return self.xp.asarray(obj, dtype=dtype, device=device)

    def to_numpy(self, array: Array) -> Any:
        """Copy an array to the host, as NumPy's; the one place that does, and only when a user asks."""
        import numpy

        return numpy.from_dlpack(array)

    def synchronize(self) -> None:
        """Wait until the devices have finished what was asked of them."""

    @cached_property
    def _described(self) -> dict[Any, tuple[str, int]]:
        return {}

    def _describe(self, dtype: Any) -> tuple[str, int]:
        """A dtype's name and bits; what the library takes microseconds to say, it is asked once."""
        found = self._described.get(dtype)
        if found is None:
            name = str(getattr(dtype, "name", None) or dtype).rpartition(".")[2]
            found = self._described[dtype] = name, int("".join(filter(str.isdigit, name)) or 0)
        return found

    def dtype_name(self, dtype: Any) -> str:
        """A dtype's name, such as "float32", whatever its byte order."""
        return self._describe(dtype)[0]

    def native(self, dtype: Any) -> Any:
        """The same dtype in the machine's own byte order."""
        return dtype

    def dtype(self, name: str) -> Any:
        """The dtype of that name, as arrays have it."""
        found = bfloat16() if name == "bfloat16" and not hasattr(self.xp, name) else getattr(self.xp, name)
        # NumPy and CuPy name their scalar types so, not the dtypes that arrays have.
        return self.xp.dtype(found) if isinstance(found, type) and hasattr(self.xp, "dtype") else found

    def bits(self, dtype: Any) -> int:
        """How many bits an element has."""
        return self._describe(dtype)[1]

    def holds(self, name: str, like: Array) -> bool:
        """Whether the device of `like` has arrays of the dtype of that name."""
        info = getattr(self.xp, "__array_namespace_info__", None)
        if info is None or name in ("float16", "bfloat16"):  # which are none of the standard's
            return hasattr(self.xp, name)
        return name in info().dtypes(device=self.device_of(like))

    def memory(self, like: Array) -> int:
        """How many bytes of memory the device of `like` has; what any machine may address where that is not known."""
        return host_memory()

    def astype(self, array: Array, dtype: Any) -> Array:
        return array if array.dtype == dtype else self.xp.astype(array, dtype)

    def complex(self, real: Array, imag: Array) -> Array:
        """Complex numbers of two real parts, whatever these hold."""
        xp, device = self.xp, self.device_of(real)
        made = self.dtype({32: "complex64", 64: "complex128"}[self.bits(real.dtype)])
        # A product with 1j would be nan in both parts where one is not finite; a sum is one in each part.
        finite = xp.isfinite(imag)
        whole = xp.astype(xp.where(finite, imag, xp.zeros_like(imag)), made) * 1j
        for rest, number in ((xp.isnan(imag), "nan"), (imag == float("inf"), "inf"), (imag == -float("inf"), "-inf")):
            whole = xp.where(rest, xp.asarray(complex(0, float(number)), dtype=made, device=device), whole)
        return xp.astype(real, made) + whole

    def empty(self, shape: tuple[int, ...], like: Array, last: int = 0, dtype: Any = None) -> Array:
        """An array of any contents, in the dtype of `like` or another, with so many axes after the first last."""
        if last:
            batch, moved, cells = shape[:1], shape[1 : 1 + last], shape[1 + last :]
            made = self.empty((*batch, *cells, *moved), like, dtype=dtype)
            end = 1 + len(cells)
            return self.xp.permute_dims(made, (0, *range(end, end + last), *range(1, end)))
        return self.xp.empty(shape, dtype=dtype or like.dtype, device=self.device_of(like))

    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        return self.xp.zeros(shape, dtype=like.dtype, device=self.device_of(like))

    def zeroed(self, target: Array) -> Array:
        """`target` with every element 0."""
        return self.write(target, (...,), 0)

    def write(self, target: Array, index: tuple[Any, ...], value: Any) -> Array:
        """`target` with `target[index] = value`."""
        if self.mutable:
            target[index] = value
            return target
        from array_api_extra import at

        return at(target)[index].set(value)

    def add(self, target: Array, index: tuple[Any, ...], value: Array) -> Array:
        """`target` with `target[index] += value`."""
        if self.views:
            part = target[index]
            part += value
            return target
        if self.mutable:
            target[index] += value
            return target
        from array_api_extra import at

        return at(target)[index].add(value)

    def elementwise(self, name: str, target: Array, index: tuple[Any, ...], *operands: Any) -> Array:
        """`target` with `target[index]` the namespace's function of that name of `operands`."""
        return self.write(target, index, getattr(self.xp, name)(*operands))

    def loop(self, count: int, step: Callable[[Any, Array], Array], start: Array) -> Array:
        """Return what `step(i, array)` makes, for each `i` below `count` in turn, of what the one before it made."""
        for i in range(count):
            start = step(i, start)
        return start

    def cut(self, array: Array, starts: tuple[Any, ...], sizes: tuple[int, ...]) -> Array:
        """A part of an array, of such sizes; where it starts may depend on a loop's `i`."""
        return array[tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))]

    def put(self, array: Array, starts: tuple[Any, ...], part: Array) -> Array:
        """`array` with `part` in the place of what `cut` reads there."""
        cells = (slice(start, start + size) for start, size in zip(starts, part.shape, strict=True))
        return self.write(array, tuple(cells), part)

    def view(self, array: Array, shape: tuple[int, ...], steps: tuple[int, ...]) -> Array:
        """A view of a contiguous array with these steps, in elements, along its axes, where `strided`."""
        raise NotImplementedError

    def at_hand(self, like: Array) -> bool:
        """Whether a few numbers of an array such as `like` are read and written in no more time than calls take."""
        return self.mutable

    def all_finite(self, array: Array) -> bool:
        """Whether an array holds neither a nan nor an infinity: one truth value, read from its device."""
        return self.likely(self.xp.isfinite(array))

    def likely(self, condition: Array) -> bool:
        """Whether all elements are true, as `sure`; where a library only traces, that is taken for granted, for now."""
        return bool(self.xp.all(condition))

    def sure(self, condition: Array) -> bool:
        """Whether all elements are true: one truth value, read from its device; not where a library only traces."""
        return bool(self.xp.all(condition))

    def quiet(self) -> AbstractContextManager[Any]:
        """Arithmetic inside says nothing of infinities and nans, where the library would warn of them."""
        return nullcontext()

    def same_device(self, array: Array, other: Array) -> bool:
        """Whether two arrays are on one device."""
        return bool(self.device_of(array) == self.device_of(other))

    def now(self) -> AbstractContextManager[Any]:
        """What is computed inside is so at once, even where a library would only take note of it."""
        return nullcontext()

    def product(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Matrix products of two stacks of matrices, `(..., i, j) @ (..., j, k)`; `out` is memory on offer."""
        return self.xp.matmul(a, b)

    def write_product(self, target: Array, index: tuple[Any, ...], a: Array, b: Array) -> Array:
        """`target` with `target[index] = a @ b`."""
        part = target[index]
        value = self.product(a, b, part)
        return target if self.views and value is part else self.write(target, index, value)

    def during_call(self, like: Array, precision: str) -> AbstractContextManager[Any]:
        """What must hold while a call works on arrays such as `like`.

        The device is current; and unless `precision` is "fast", products keep the arrays' own precision (no TF32,
        no bfloat16 splitting), whatever the user has set. Everything is left as it was found.
        """
        return nullcontext()

    def default_workspace(self, like: Array) -> int:
        """Return the bytes that a call on the device of `like` may take a thread, where the user sets no limit."""
        return CPU_WORKSPACE

    def least_blocks(self, operations: int, samples: int) -> int:
        """Into how many blocks such work, on so many samples, should be cut at the least, for threads to share."""
        return 1

    def whole(self, operations: int) -> bool:
        """Whether a product of so many operations is better left to the library's own threads than cut into blocks."""
        return False

    def transform(self, kind: str, array: Array, length: int, axis: int, out: Array | None = None) -> Array:
        """Fourier transform ("fft", "ifft", "rfft", "irfft") of so many points, with zeros to make them up.

        Normalised to keep the 2-norm. `out` is memory on offer.
        """
        return getattr(self.xp.fft, kind)(array, n=length, axis=axis, norm="ortho")

    def workspace(self, like: Array) -> Workspace:
        return lambda purpose, shape, dtype=None: self.empty(shape, like, dtype=dtype)

    def fill(
        self,
        out: Array,
        blocks: Sequence[tuple[tuple[Any, ...], Block]],
        compute: Callable[[Block, Array, Workspace], Array],
        least: int,
    ) -> Array:
        """Set `out[index] = compute(block, out[index], workspace)` for each block; return `out`.

        The blocks are independent, so a backend may run them in any order, and on several threads where at `least`
        two were asked for. `compute` may write into the `out[index]` it is offered and return it.
        """
        workspace = self.workspace(out)
        for index, block in blocks:
            target = out[index]
            value = compute(block, target, workspace)
            if not (self.views and value is target):
                out = self.write(out, index, value)
        return out
