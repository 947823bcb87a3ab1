"""What portconv asks of an array library beyond the Array API standard, with a default in the standard for each.

The class `Backend` meets these requirements:

- An unknown library works at once: every method has a default that uses the standard alone.
- Arrays may be immutable: a method that writes (`write`, `add`, `product`, `fill` and others) returns its result, and
  may or may not use the memory of the array that it gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

from .. import limits
from ..errors import BackendError, PortconvError
from ._host import bfloat16, host_memory
from ._library import Library
from ._native import NativeConvolution
from ._terms import CPU_WORKSPACE, RUN, Array, Block, Costs, Workspace


class Backend(Library):
    """One array library.

    Attributes
    ----------
    name : str
        The name for `portconv.backends.get`.
    module : str
        The module that has the class of the library's arrays.
    array_class : str
        The name of that class in the module.
    install : str
        The command that installs the library.
    """

    mutable = True
    """Whether `array[index] = value` is allowed."""
    views = False
    """Whether a slice shares the memory of its array, so that a write to the slice changes the array."""
    framework = ""
    """The module whose function `node` makes an operation one node of a framework's graph; "" if there is none."""
    propagates = False
    """Whether the maximum and the minimum of elements are nan if one of the elements is."""
    strided = False
    """Whether `view` returns views with any steps."""
    widening = ""
    """The setting that gives a library its dtypes of 64 bits, if they are off by default."""
    block_bytes = 4 << 20
    """How many bytes the columns of one block may have."""
    block_columns = 1 << 14
    """How many columns a product needs to run at full speed; small images share a block up to this number."""
    costs = Costs(operation=0.02, element=0.5, transform=0.5, call=10_000, native=0.005)
    """How long work takes; the default is for a library on a CPU that makes a new array for each result."""
    accelerator_costs: Costs | None = None
    """How long work takes on devices of other kinds than the usual one (see `device_kind`); None if as long."""
    native_convolution: NativeConvolution | None = None
    """The convolution that the library has of its own, or None."""
    without_native = "arrays of a library with a convolution of its own, as PyTorch, JAX and NumPy have"
    """What the algorithm "native" serves, in words, if there is none: see `NativeConvolution.objection`."""
    has_addresses = False
    """Whether arrays may lie in the memory of this machine, at an `address`."""
    compiled_steps: int | None = None
    """How many steps of a product may be compiled as code of their own, before a `loop` is better; None if a library
    does not compile steps."""

    def objection(self, array: Array) -> PortconvError | None:
        """Return the error that says why portconv cannot use this array of the library, or None if it can."""
        return None

    def autocast(self, like: Array) -> Callable[[Array], Array] | None:
        """Return what casts the arrays of a convolution as the user has set for arrays such as `like`, or None."""
        return None

    def plain(self, array: Array) -> Array:
        """Return the same array, of the library's own class where it is of a subclass that is used for its numbers."""
        return array

    def details(self) -> dict[str, str]:
        """Return what a user wants to know about speed here: the threads, the BLAS, the names of the devices."""
        return {}

    def prepare(self) -> None:
        """Load what a first call would load."""

    def advice(self) -> str | None:
        """Return one line about a setting that makes the library slow here, or None."""
        return None

    def widen(self) -> None:
        """Switch on all dtypes of the library, in a process that runs only portconv, such as its command."""

    def devices(self) -> list[Any]:
        """Return the devices that can hold arrays, the default device first."""
        info = self.info
        return [None] if info is None else list(info.devices())

    def device_of(self, array: Array) -> Any:
        """Return the device that holds an array."""
        return array.device

    def device_kind(self, like: Array) -> str:
        """Return the kind of device that holds `like`, such as "cuda"; "" for the usual kind."""
        return ""

    def asarray(self, obj: Any, dtype: Any = None, device: Any = None) -> Array:
        """Make an array of this library from `obj`; `dtype` is a dtype of the library or the name of one."""
        if isinstance(dtype, str):
            dtype = self.dtype(dtype)
        return self.xp.asarray(obj, dtype=dtype, device=device)

    def to_numpy(self, array: Array) -> Any:
        """Copy an array to the host, as a NumPy array; nothing else does, and only a user calls this."""
        import numpy

        return numpy.from_dlpack(array)

    def synchronize(self) -> None:
        """Wait until the devices have finished all work."""

    @cached_property
    def _described(self) -> dict[Any, tuple[str, int]]:
        return {}

    def _describe(self, dtype: Any) -> tuple[str, int]:
        """Return the name and the bits of a dtype, and keep them: some libraries take microseconds for a name."""
        description = self._described.get(dtype)
        if description is None:
            name = str(getattr(dtype, "name", None) or dtype).rpartition(".")[2]
            description = self._described[dtype] = name, int("".join(filter(str.isdigit, name)) or 0)
        return description

    def dtype_name(self, dtype: Any) -> str:
        """Return the name of a dtype, such as "float32", without its byte order."""
        return self._describe(dtype)[0]

    def machine_order(self, dtype: Any) -> Any:
        """Return the same dtype in the byte order of the machine."""
        return dtype

    def conversion(self, array: str, dtype: str) -> str:
        """Return the code with which a user of the library converts an array of this name to a dtype."""
        return f"{self.name}.astype({array}, {self.name}.{dtype})"

    def dtype(self, name: str) -> Any:
        """Return the dtype with a name, in the form that arrays have it."""
        own = getattr(self.xp, name, None)
        if own is None and name != "bfloat16":
            raise BackendError(f"{self.name} has no {name}")
        dtype = bfloat16() if own is None else own
        # NumPy, CuPy and JAX give scalar types these names, and arrays have dtypes.
        return self.xp.dtype(dtype) if isinstance(dtype, type) and hasattr(self.xp, "dtype") else dtype

    def bits(self, dtype: Any) -> int:
        """Return how many bits an element of a dtype has."""
        return self._describe(dtype)[1]

    def holds(self, name: str, like: Array) -> bool:
        """Return whether the device of `like` can hold arrays of the dtype with a name."""
        info = self.info
        if info is None or name in ("float16", "bfloat16"):  # the standard does not have these two
            return hasattr(self.xp, name)
        return name in info.dtypes(device=self.device_of(like), kind=None)

    def memory(self, like: Array) -> int:
        """Return how many bytes of memory the device of `like` has; for an unknown device those of this machine."""
        return host_memory()

    def in_order(self, array: Array, batched: bool) -> bool:
        """Return whether the memory of an array suits products: if not, it takes less time to copy the array first.

        If it is `batched`, its samples may lie anywhere. Libraries whose arrays have an order of their own need none.
        """
        return True

    def astype(self, array: Array, dtype: Any) -> Array:
        """Return an array in another dtype, or the array itself if it has that dtype."""
        return array if array.dtype == dtype else self.xp.astype(array, dtype)

    def complex(self, real: Array, imag: Array) -> Array:
        """Return the complex numbers with these real and imaginary parts, which may hold nans and infinities."""
        xp, device = self.xp, self.device_of(real)
        dtype = self.dtype({32: "complex64", 64: "complex128"}[self.bits(real.dtype)])
        # A product of 1j and a number that is not finite has a nan in both parts, but a sum keeps the parts apart.
        finite = xp.isfinite(imag)
        imaginary = xp.astype(xp.where(finite, imag, xp.zeros_like(imag)), dtype) * 1j
        for where, number in ((xp.isnan(imag), "nan"), (imag == float("inf"), "inf"), (imag == -float("inf"), "-inf")):
            imaginary = xp.where(where, xp.asarray(complex(0, float(number)), dtype=dtype, device=device), imaginary)
        return xp.astype(real, dtype) + imaginary

    def empty(self, shape: tuple[int, ...], like: Array, last: int = 0, dtype: Any = None) -> Array:
        """Return an array of any contents, with the dtype of `like` or another one.

        In memory the `last` axes after the first axis come last.
        """
        if last:
            batch, moved, cells = shape[:1], shape[1 : 1 + last], shape[1 + last :]
            array = self.empty((*batch, *cells, *moved), like, dtype=dtype)
            end = 1 + len(cells)
            return self.xp.permute_dims(array, (0, *range(end, end + last), *range(1, end)))
        return self.xp.empty(shape, dtype=dtype or like.dtype, device=self.device_of(like))

    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        """Return an array of zeros with the dtype of `like`, on its device."""
        return self.xp.zeros(shape, dtype=like.dtype, device=self.device_of(like))

    def zeroed(self, target: Array) -> Array:
        """Set every element of `target` to 0; return the result."""
        return self.write(target, (...,), 0)

    def write(self, target: Array, index: tuple[Any, ...], value: Any) -> Array:
        """Set `target[index] = value`; return the result."""
        if self.mutable:
            target[index] = value
            return target
        from array_api_extra import at

        return at(target)[index].set(value)

    def add(self, target: Array, index: tuple[Any, ...], value: Array) -> Array:
        """Add a value: `target[index] += value`; return the result."""
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
        """Set `target[index]` to what the function `name` of the namespace makes of `operands`; return the result."""
        # The standard has numbers beside arrays in functions only since 2024.12.
        place = self.device_of(target)
        arrays = [self.asarray(one, target.dtype, place) if isinstance(one, int | float) else one for one in operands]
        return self.write(target, index, getattr(self.xp, name)(*arrays))

    def backwards(self, array: Array, dims: int) -> Array:
        """Return an array with its last `dims` axes in reverse order."""
        return self.xp.flip(array, axis=tuple(range(array.ndim - dims, array.ndim)))

    def loop(self, count: int, step: Callable[[Any, Array], Array], start: Array) -> Array:
        """Repeat `array = step(i, array)` for each `i` below `count`, from `array = start`; return the last array."""
        array = start
        for i in range(count):
            array = step(i, array)
        return array

    def cut(self, array: Array, starts: tuple[Any, ...], sizes: tuple[int, ...]) -> Array:
        """Return the part of an array with these starts and sizes; the starts may depend on the `i` of a `loop`."""
        return array[tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))]

    def put(self, array: Array, starts: tuple[Any, ...], part: Array) -> Array:
        """Write `part` where `cut` reads from these starts; return the result."""
        cells = (slice(start, start + size) for start, size in zip(starts, part.shape, strict=True))
        return self.write(array, tuple(cells), part)

    def view(self, array: Array, shape: tuple[int, ...], steps: tuple[int, ...]) -> Array:
        """Return a view of a contiguous array with these steps, in elements, along its axes; only if `strided`."""
        raise NotImplementedError

    def at_hand(self, like: Array) -> bool:
        """Return whether reading and writing a few numbers of an array such as `like` takes no longer than a call."""
        return self.mutable

    def address(self, array: Array) -> int | None:
        """Return where the first element of an array lies in this machine's memory; None if it does not lie there."""
        return None

    def lies_in_a_row(self, array: Array) -> bool:
        """Return whether the elements of an array lie one after the other in memory, as the library's numbers."""
        return True

    def in_a_row(self, array: Array) -> Array:
        """Return an array whose elements lie one after the other: the same one, or a copy."""
        return array

    def threads(self) -> int:
        """Return how many threads a call may use, if portconv starts them."""
        return limits.threads() or 1

    def all_finite(self, array: Array) -> bool:
        """Return whether an array has no nan and no infinity, as `likely` does."""
        return self.likely(self.xp.isfinite(array))

    def likely(self, condition: Array) -> bool:
        """Return whether all elements are true; a library that traces may assume so, and check in what it compiles."""
        return bool(self.xp.all(condition))

    def sure(self, condition: Array) -> bool:
        """Return whether all elements are true, one truth value read from the device; False if a library traces."""
        return bool(self.xp.all(condition))

    def quiet(self) -> AbstractContextManager[Any]:
        """Return a context in which the library does not warn of infinities and nans."""
        return nullcontext()

    def is_suspect(self, result: Array) -> bool:
        """Return whether a result may be one that `warn_of` warns of; True means nothing more."""
        return False

    def warn_of(self, result: Array, operands: tuple[Array, ...]) -> None:
        """Warn of an overflow where a result is infinite and no operand is, and of an invalid value where it is nan."""

    def same_device(self, array: Array, other: Array) -> bool:
        """Return whether two arrays are on the same device."""
        return bool(self.device_of(array) == self.device_of(other))

    def now(self) -> AbstractContextManager[Any]:
        """Return a context in which all is computed at once, even by a library that otherwise traces."""
        return nullcontext()

    def product(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Multiply two stacks of matrices, `(..., i, j) @ (..., j, k)`; the result may be written into `out`."""
        return self.xp.matmul(a, b)

    def total(self, array: Array, axis: int, dtype: Any = None, keepdims: bool = False) -> Array:
        """Add up along an axis, in runs of `RUN` whose sums are added up, as a library may add up one by one."""
        xp, dtype, before = self.xp, dtype or array.dtype, (slice(None),) * axis
        while (count := array.shape[axis]) > RUN:
            whole = count // RUN * RUN
            runs = (*array.shape[:axis], whole // RUN, RUN, *array.shape[axis + 1 :])
            sums = xp.sum(xp.reshape(array[(*before, slice(whole), ...)], runs), axis=axis + 1, dtype=dtype)
            if whole < count:
                rest = xp.sum(array[(*before, slice(whole, None), ...)], axis=axis, dtype=dtype, keepdims=True)
                sums = xp.concat([sums, rest], axis=axis)
            array = sums
        return xp.sum(array, axis=axis, dtype=dtype, keepdims=keepdims)

    def write_product(self, target: Array, index: tuple[Any, ...], a: Array, b: Array) -> Array:
        """Set `target[index] = a @ b`; return the result."""
        part = target[index]
        value = self.product(a, b, part)
        return target if self.views and value is part else self.write(target, index, value)

    def during_call(self, like: Array, precision: str) -> AbstractContextManager[Any]:
        """Return a context for the work of a call on arrays such as `like`.

        Inside, the device of the arrays is the current one. Unless `precision` is "fast", products have the precision
        of the arrays (no TF32, no splitting into bfloat16), whatever the user has set. At the end all settings are
        as they were.
        """
        return nullcontext()

    def apart(self, compute: Callable[..., Array], *arguments: Any) -> Array:
        """Compute with the arguments, apart from other calls of the thread: one may run inside of another.

        What it sets for itself has ended when it ends, even where an interrupt ends it.
        """
        return compute(*arguments)

    def default_workspace(self, like: Array) -> int:
        """Return how many bytes of workspace a call on the device of `like` may use, unless the user sets a limit."""
        return CPU_WORKSPACE

    def least_blocks(self, operations: int, samples: int) -> int:
        """Return the least number of blocks for threads to share, of work with so many operations and samples."""
        return 1

    def whole(self, operations: int) -> bool:
        """Return whether the threads of the library compute a product of so many operations faster than blocks do."""
        return False

    def transform(self, kind: str, array: Array, length: int, axis: int, out: Array | None = None) -> Array:
        """Compute a Fourier transform ("fft", "ifft", "rfft" or "irfft") of `length` points along an axis.

        Missing points are zeros. The factor keeps the 2-norm. The result may be written into `out`.
        """
        return getattr(self.xp.fft, kind)(array, n=length, axis=axis, norm="ortho")

    def workspace(self, like: Array) -> Workspace:
        """Return what gives a thread its workspaces, in the dtype of `like` unless another is named."""
        return lambda name, shape, dtype=None: self.empty(shape, like, dtype=dtype)

    def fill(
        self,
        out: Array,
        blocks: Sequence[tuple[tuple[Any, ...], Block]],
        compute: Callable[[Block, Array, Workspace], Array],
        least: int,
    ) -> Array:
        """Set `out[index] = compute(block, out[index], workspace)` for each block; return `out`.

        The blocks are independent: a backend may run them in any order, and on several threads if `least`, the number
        of blocks that threads need, is at least 2. `compute` may write into its `out[index]` and return it.
        """
        workspace = self.workspace(out)
        for index, block in blocks:
            target = out[index]
            value = compute(block, target, workspace)
            if not (self.views and value is target):
                out = self.write(out, index, value)
        return out
