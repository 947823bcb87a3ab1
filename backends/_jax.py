"""JAX; it has numbers of 64 bits if `jax_enable_x64` is set."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

from ..errors import ConvShapeError, PortconvError
from . import of
from ._base import Backend
from ._native import Convolution, NativeConvolution, NativeWork
from ._terms import GPU_WORKSPACE, Array, Costs

GPUS = ("gpu", "cuda", "rocm")
"""JAX's names for GPUs."""
REORDERED = 5
"""So many times as long as to copy an element it takes XLA to bring it into its own order and back, on a CPU."""
GROUPED, FEW_TAPS = 92, 21
"""So many times as long as one of a dense layer takes an operation of a layer with groups, on a CPU, with many taps;
and the taps with which it takes twice as long."""
SLOWNESS = {1: 1.0, 2: 1.0, 3: 6.0}
WIDE_SLOWNESS = {1: 90.0, 2: 2.0, 3: 85.0}
"""How many times as long as in a layer of two dimensions an operation takes on a CPU, by the number of dimensions, in
float32 and in float64."""
FEW_CHANNELS = 8
"""With fewer channels than this an output takes 4 times as long."""


class _Native(NativeConvolution):
    """`jax.lax.conv_general_dilated`, for all three products.

    XLA multiplies zeros with what is not finite: the zeros between the cells of a strided `dout`, and in float64 those
    that stand for the channels of other groups. So an output and an input gradient are only taken if both operands are
    finite. A number of an operand that is not finite makes some of the gradients of filters so.
    """

    def objection(self, convolution: Convolution) -> str | None:
        return None if convolution.dims <= 3 else "one to three spatial dimensions, as XLA does"

    def work(self, kind: str, convolution: Convolution, bits: int, device: str) -> NativeWork:
        moved = convolution.elements
        if device:
            return NativeWork(convolution.operations, moved, 1, moved)
        operations = _slowness(kind, convolution, bits) * convolution.operations
        return NativeWork(operations, REORDERED * convolution.copied(bits), 2, 2 * moved)

    def in_tiles(self, convolution: Convolution, device: str) -> bool:
        return device in GPUS and convolution.is_tiled

    def code(self, kind: str, convolution: Convolution) -> str:
        groups, (filters, channels, *kernel) = convolution.groups, convolution.w_shape
        by_group = f"w.reshape({(groups, filters // groups, channels, *kernel)}).swapaxes(1, 2)"
        swapped = f"{by_group}.reshape({(groups * channels, filters // groups, *kernel)})"
        flipped = f"jax.numpy.flip({swapped}, {tuple(range(2, 2 + convolution.dims))})"
        operands = {"forward": "x, w", "input_grad": f"dout, {flipped}", "weight_grad": "x, dout"}[kind]
        options = ", ".join(f"{name}={value}" for name, value in _options(kind, convolution).items())
        options = options.replace("ConvDim", "jax.lax.ConvDim")
        return f"jax.lax.conv_general_dilated({operands}, {options}, precision='highest')"

    def literal(self, values: str, dtype: str, device: str) -> str:
        return f'jax.numpy.asarray({values}, dtype="{dtype}")'

    def forward(self, x: Array, w: Array, b: Array | None, convolution: Convolution) -> Array | None:
        if not _all_finite(x, w):
            return None
        out = _convolved(x, w, _options("forward", convolution))
        return out if b is None else out + b.astype(out.dtype).reshape(-1, *(1,) * convolution.dims)

    def input_grad(self, dout: Array, w: Array, convolution: Convolution) -> Array | None:
        if not _all_finite(dout, w):
            return None
        groups, (filters, channels, *kernel) = convolution.groups, convolution.w_shape
        w = w.reshape(groups, filters // groups, channels, *kernel).swapaxes(1, 2)
        w = w.reshape(groups * channels, filters // groups, *kernel)
        flipped = w[(..., *(slice(None, None, -1),) * convolution.dims)]
        return _convolved(dout, flipped, _options("input_grad", convolution))

    def weight_grad(self, dout: Array, x: Array, convolution: Convolution) -> Array | None:
        if convolution.has_windows_of_padding and not _all_finite(dout):
            return None
        grad = _convolved(x, dout, _options("weight_grad", convolution))
        return grad if _all_finite(grad) else None


def _slowness(kind: str, convolution: Convolution, bits: int) -> float:
    """Return how many times as long as in a dense layer an operation takes on a CPU, by measured times."""
    wide, dims = bits > 32, convolution.dims
    is_strided = kind == "input_grad" and max(convolution.stride) > 1
    filters, channels, *kernel = convolution.w_shape
    filters //= convolution.groups
    if convolution.groups > 1:
        slowness = GROUPED * (1 + FEW_TAPS / math.prod(kernel)) * (2 if wide else 1)
        if kind == "weight_grad":
            return 2 * filters * slowness
        return max(1.0, slowness / (channels if kind == "forward" else filters)) * (8 if is_strided else 1)
    slowness = (WIDE_SLOWNESS if wide else SLOWNESS)[dims]
    if is_strided:
        slowness *= 100 if dims == 3 else 25 if wide else 1.8
    if kind == "weight_grad" and dims == 3:
        slowness *= 2.5
    return slowness * (4 if kind == "forward" and channels < FEW_CHANNELS else 1)


def _options(kind: str, convolution: Convolution) -> dict[str, Any]:
    """Return the options with which XLA's convolution computes a product.

    The input gradient is a convolution of `dout`, with zeros between its cells, and the filters in reverse. The
    gradient of filters is one of the input and `dout`, whose samples are summed over as channels are; its strides are
    the dilations, and its dilations the strides.
    """
    import jax

    strides, dilations, groups = convolution.stride, convolution.dilation, convolution.groups
    sizes, taps, cells = (shape[2:] for shape in (convolution.x_shape, convolution.w_shape, convolution.out_shape))
    extents = [d * (k - 1) + 1 for d, k in zip(dilations, taps, strict=True)]
    spread = [s * (p - 1) + 1 for s, p in zip(strides, cells, strict=True)]
    if kind == "forward":
        padding = list(zip(convolution.before, convolution.after, strict=True))
        return {
            "window_strides": strides,
            "padding": padding,
            "rhs_dilation": dilations,
            "feature_group_count": groups,
        }
    # Both are padded so that there is an output for each cell of the input, or for each tap of the filters.
    ends = [size - one + lo for size, one, lo in zip(sizes, spread, convolution.before, strict=True)]
    if kind == "input_grad":
        starts = [extent - 1 - lo for extent, lo in zip(extents, convolution.before, strict=True)]
        return {
            "window_strides": (1,) * convolution.dims,
            "padding": list(zip(starts, ends, strict=True)),
            "lhs_dilation": strides,
            "rhs_dilation": dilations,
            "feature_group_count": groups,
        }
    ends = [extent - 1 - end for extent, end in zip(extents, ends, strict=True)]
    order = (1, 0, *range(2, 2 + convolution.dims))
    return {
        "window_strides": dilations,
        "padding": list(zip(convolution.before, ends, strict=True)),
        "rhs_dilation": strides,
        "dimension_numbers": jax.lax.ConvDimensionNumbers(order, order, order),
        "batch_group_count": groups,
    }


def _all_finite(*arrays: Array) -> bool:
    """Return whether arrays have no nan and no infinity, as `Backend.all_finite` does."""
    return all(of(array).all_finite(array) for array in arrays)


def _convolved(a: Array, b: Array, options: dict[str, Any]) -> Array:
    """Convolve by XLA, with sums of float16 and bfloat16 in float32."""
    import jax

    wide = "float32" if of(a).bits(a.dtype) == 16 else None
    convolved: Array = jax.lax.conv_general_dilated(a, b, preferred_element_type=wide, **options)
    return convolved


class JaxBackend(Backend):
    name = "jax"
    module = "jax"
    array_class = "Array"
    install = "pip install 'portconv[jax]'"
    widening = "jax.config.update('jax_enable_x64', True)"
    mutable = False
    framework = "portconv.frameworks.jax_primitive"
    native_convolution = _Native()
    costs = Costs(operation=0.0099, element=0.21, transform=0.22, call=17_000, native=0.0049)
    accelerator_costs = Costs(5e-5, 6e-3, 2e-3, 10_000, 2e-5)
    block_bytes = 64 << 20
    """Each block is compiled by itself, so a few large blocks are better than many small ones."""
    compiled_steps = 256
    """Up to this number, blocks and taps that are each compiled by themselves run faster than a loop over taps."""

    def load(self) -> Any:
        return importlib.import_module("jax.numpy")

    def devices(self) -> list[Any]:
        import jax

        return list(jax.devices())

    def total(self, array: Array, axis: int, dtype: Any = None, keepdims: bool = False) -> Array:
        dtype = dtype or array.dtype
        if self.dtype_name(dtype).startswith("complex"):
            # XLA makes one sum of several, and adds up real numbers pairwise but complex ones one by one.
            real, imag = (
                super(JaxBackend, self).total(part, axis, None, keepdims) for part in (array.real, array.imag)
            )
            return self.complex(real, imag)
        return super().total(array, axis, dtype, keepdims)

    def device_of(self, array: Array) -> Any:
        import jax

        # A traced array has no device.
        return None if isinstance(array, jax.core.Tracer) else array.device

    def device_kind(self, like: Array) -> str:
        import jax

        device = self.device_of(like)
        kind = jax.default_backend() if device is None else next(iter(like.devices())).platform
        return "" if kind == "cpu" else kind

    def same_device(self, array: Array, other: Array) -> bool:
        one, two = self.device_of(array), self.device_of(other)
        return one is None or two is None or bool(one == two)

    def conversion(self, array: str, dtype: str) -> str:
        return f'{array}.astype("{dtype}")'

    def to_numpy(self, array: Array) -> Any:
        import numpy

        return numpy.asarray(array)

    def write(self, target: Array, index: tuple[Any, ...], value: Any) -> Array:
        from jax import lax

        xp = self.xp
        runs = _runs(index, target.shape)
        value = xp.broadcast_to(xp.asarray(value, dtype=target.dtype), xp.shape(target[index]))
        value = xp.reshape(value, tuple(run.cells for run in runs))
        if all(run.step == 1 for run in runs):
            whole = value.shape == target.shape
            return value if whole else lax.dynamic_update_slice(target, value, [run.start for run in runs])
        # JAX writes this as a scatter. XLA may turn one into a map, and aborts if the map is then reversed.
        around = [run.around(length) for run, length in zip(runs, target.shape, strict=True)]
        there = lax.pad(xp.ones(value.shape, dtype=bool), False, around)
        return xp.where(there, lax.pad(value, xp.zeros((), dtype=value.dtype), around), target)

    def add(self, target: Array, index: tuple[Any, ...], value: Array) -> Array:
        return self.write(target, index, target[index] + value)

    def loop(self, count: int, step: Callable[[Any, Array], Array], start: Array) -> Array:
        from jax import lax

        array: Array = lax.fori_loop(0, count, step, start)
        return array

    def cut(self, array: Array, starts: tuple[Any, ...], sizes: tuple[int, ...]) -> Array:
        from jax import lax

        return lax.dynamic_slice(array, starts, sizes)

    def put(self, array: Array, starts: tuple[Any, ...], part: Array) -> Array:
        from jax import lax

        return lax.dynamic_update_slice(array, part, starts)

    def all_finite(self, array: Array) -> bool:
        # On a CPU this takes a tenth of the time of a truth value for each element. A sum of finite numbers that is too
        # large only lets another algorithm compute. The maximum over several devices may lose a nan.
        xp = self.xp
        return self.likely(xp.isfinite(xp.sum(array, dtype="float32" if self.bits(array.dtype) == 16 else None)))

    def likely(self, condition: Array) -> bool:
        import jax

        if not isinstance(condition, jax.core.Tracer):
            return super().likely(condition)
        assumed = _assumed.get()
        if assumed is None:
            return False
        assumed.append(condition)
        return True

    @contextmanager
    def assuming(self) -> Iterator[list[Array]]:
        """Let `likely` assume that traced conditions are true; yield the list of these conditions."""
        conditions: list[Array] = []
        token = _assumed.set(conditions)
        try:
            yield conditions
        finally:
            _assumed.reset(token)

    def sure(self, condition: Array) -> bool:
        import jax

        return not isinstance(condition, jax.core.Tracer) and super().sure(condition)

    def widen(self) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)

    def synchronize(self) -> None:
        import jax

        jax.block_until_ready(jax.live_arrays())

    def details(self) -> dict[str, str]:
        import jax

        return {
            "device": str(jax.devices()[0].device_kind),
            "64-bit numbers": "on" if jax.config.jax_enable_x64 else "off",
        }

    def during_call(self, like: Array, precision: str) -> AbstractContextManager[Any]:
        import jax

        # Otherwise XLA may use TF32 or bfloat16 on GPUs and TPUs.
        full: AbstractContextManager[Any] = jax.default_matmul_precision("highest")
        return nullcontext() if precision == "fast" else full

    def now(self) -> AbstractContextManager[Any]:
        import jax

        at_once: AbstractContextManager[Any] = jax.ensure_compile_time_eval()
        return at_once

    def objection(self, array: Array) -> PortconvError | None:
        if all(isinstance(size, int) for size in array.shape):
            return None
        return ConvShapeError(f"got shape {tuple(array.shape)} with symbolic sizes, expected numbers")

    def default_workspace(self, like: Array) -> int:
        return GPU_WORKSPACE


class _Run(NamedTuple):
    """The cells of one axis that an index selects."""

    start: int
    step: int
    cells: int

    def around(self, length: int) -> tuple[int, int, int]:
        """Return how many cells of an axis of this length are before, after and between the selected cells."""
        end = self.start + (self.cells - 1) * self.step + 1
        return self.start, length - end, self.step - 1


def _runs(index: tuple[Any, ...], shape: tuple[int, ...]) -> list[_Run]:
    """Return the cells that an index, of integers, slices and one `...`, selects of each axis of an array."""
    rest = index.index(...) if ... in index else len(index)
    missing = len(shape) - len(index) + (rest < len(index))
    full = (*index[:rest], *(slice(None),) * missing, *index[rest + 1 :])
    runs = []
    for at, length in zip(full, shape, strict=True):
        cells = range(length)[at] if isinstance(at, slice) else range(length)[at : at + 1 or None]
        runs.append(_Run(cells.start, cells.step if len(cells) > 1 else 1, len(cells)))
    return runs


_assumed: ContextVar[list[Array] | None] = ContextVar("portconv.jax.assumed", default=None)
"""The traced conditions that `likely` has assumed to be true, for a caller that also compiles the other case."""
