"""cuDNN's convolution of CuPy's arrays, through NVIDIA's package nvidia-cudnn-frontend; CuPy has none of its own.

A product is one graph of one node, as plain integers (`Product`), for which cuDNN makes a plan: the choice of an
engine, which takes milliseconds, so plans are kept. A plan, and the handle that runs it, belong to one thread and one
device at a time. What cuDNN has no plan for another algorithm computes.

Unless the precision is "fast", engines are left out that would break the error bound of a plain sum, or that give other
bits at each run: see `left_out`.
"""

from __future__ import annotations

import importlib
import math
import sys
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

from .. import limits
from ..errors import in_a_line
from ._native import Convolution, Ints, NativeConvolution, NativeWork
from ._terms import GPU_WORKSPACE, Array, Unavailable

INSTALL = "pip install 'portconv[cudnn]' (CUDA 13) or 'portconv[cudnn12]' (CUDA 12)"
OLDEST_FRONT_END, OLDEST_CUDNN = (1, 23), 91501
"""Older front ends have other calls, and cuDNN before 9.15.1 has wrong kernels of three dimensions."""
DTYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}
"""cuDNN's names of the dtypes."""
ALIGNMENT = 16
"""The bytes of which an address must be a multiple: cuDNN assumes it."""
MOST_PLANS = 1024
"""The plans that a thread keeps for a device, of some 200 KiB each; the one that was used longest ago goes first."""

METHODS = {
    "forward": ("conv_fprop", {"image": "x", "weight": "w"}, "out"),
    "input_grad": ("conv_dgrad", {"loss": "out", "filter": "w"}, "x"),
    "weight_grad": ("conv_wgrad", {"image": "x", "loss": "out"}, "w"),
}
"""The method of a graph for each product, the array that each of its arguments is, and the array that it makes."""
UIDS = {"x": 1, "w": 2, "out": 3}
"""The number of each array in a graph, which cuDNN gets its address by."""

fast: ContextVar[bool] = ContextVar("portconv.cudnn.fast", default=False)
"""Whether the precision of the call is "fast"."""


class Product(NamedTuple):
    """A product as cuDNN is asked for it: all that a plan depends on, beside the device.

    One spatial dimension is a plane of one row, as cuDNN has no other. `shapes` are those of "x", "w" and "out", and
    `last` says that channels come last in the memory of all three. A plan may take `limit` bytes of workspace.
    """

    kind: str
    dtype: str
    shapes: tuple[Ints, Ints, Ints]
    before: Ints
    after: Ints
    stride: Ints
    dilation: Ints
    last: bool
    fast: bool
    limit: int

    def shape(self, role: str) -> Ints:
        """Return the shape of "x", "w" or "out"."""
        return self.shapes[UIDS[role] - 1]

    @property
    def options(self) -> dict[str, list[int]]:
        """The padding, strides and dilation, by the names of cuDNN's arguments."""
        sizes = (self.before, self.after, self.stride, self.dilation)
        return dict(zip(("pre_padding", "post_padding", "stride", "dilation"), map(list, sizes), strict=True))


class Plan(NamedTuple):
    """A graph that cuDNN has a plan for, and the bytes of workspace that the plan takes."""

    graph: Any
    workspace: int


@lru_cache(maxsize=MOST_PLANS)
def product(kind: str, convolution: Convolution, dtype: str, last: bool, fast: bool, limit: int) -> Product:
    """Return the product of a convolution, of whose input the cells that negative padding drops are cut off."""
    row = (1,) * (convolution.dims == 1)
    shapes = (cut(convolution), convolution.w_shape, convolution.out_shape)
    x, w, out = ((*shape[:2], *row, *shape[2:]) for shape in shapes)
    sides = ((0,) * len(row) + side for side in (convolution.before, convolution.after))
    before, after = (tuple(max(0, cells) for cells in side) for side in sides)
    stride, dilation = row + convolution.stride, row + convolution.dilation
    return Product(kind, dtype, (x, w, out), before, after, stride, dilation, last, fast, limit)


@lru_cache(maxsize=MOST_PLANS)
def cut(convolution: Convolution) -> Ints:
    """Return the shape of an input without the cells that negative padding drops."""
    sizes = zip(convolution.x_shape[2:], convolution.before, convolution.after, strict=True)
    return (*convolution.x_shape[:2], *(size + min(0, lo) + min(0, hi) for size, lo, hi in sizes))


@lru_cache(maxsize=MOST_PLANS)
def kept(convolution: Convolution) -> tuple[Any, ...]:
    """Return the index of the cells of an input that negative padding does not drop."""
    sides = zip(convolution.before, cut(convolution)[2:], strict=True)
    return (..., *(slice(max(0, -lo), max(0, -lo) + size) for lo, size in sides))


def steps(shape: Ints, last: bool) -> Ints:
    """Return the steps, in elements, of an array without gaps, whose channels come last in memory or not."""
    found, step = [0] * len(shape), 1
    for axis in reversed(memory_order(len(shape), last)):
        found[axis] = step
        step *= shape[axis]
    return tuple(found)


def memory_order(ndim: int, last: bool) -> Ints:
    """Return the axes of an array (N, C, *S) in the order in which they lie in memory."""
    return (0, *range(2, ndim), 1) if last else tuple(range(ndim))


def lies_as(shape: Ints, found: Ints, last: bool) -> bool:
    """Return whether an array with the steps `found` lies in memory without gaps, with its channels last or not."""
    return all(size == 1 or one == two for size, one, two in zip(shape, found, steps(shape, last), strict=True))


def left_out(dtype: str, fast: bool) -> tuple[str, ...]:
    """Name the notes of the engines that are left out.

    Winograd's and Fourier's transforms, and sums in fewer digits, have errors beyond those of a plain sum. Tensor cores
    compute float32 as TF32; other dtypes they multiply exactly. The sums of some engines have another order each time.
    """
    if fast:
        return ()
    transforms = ("WINOGRAD", "WINOGRAD_TILE_4x4", "WINOGRAD_TILE_6x6", "WINOGRAD_TILE_13x13", "FFT")
    lossy = ("DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "NONDETERMINISTIC")
    return (*transforms, *lossy, *(("TENSOR_CORE",) if dtype == "float32" else ()))


def drawn(cudnn: Any, asked: Product, **place: Any) -> Any:
    """Draw the graph of a product, for the device of a `handle`; sums of 16 bits are made in float32."""
    dtype = getattr(cudnn.data_type, DTYPES[asked.dtype])
    sums = dtype if asked.dtype == "float64" else cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=dtype, intermediate_data_type=sums, compute_data_type=sums, **place)
    method, operands, result = METHODS[asked.kind]
    layout = {role: (list(asked.shape(role)), list(steps(asked.shape(role), asked.last))) for role in UIDS}
    tensors = {
        name: graph.tensor(dim=layout[role][0], stride=layout[role][1], data_type=dtype, uid=UIDS[role])
        for name, role in operands.items()
    }
    made = getattr(graph, method)(**tensors, **asked.options)
    made.set_output(True).set_data_type(dtype).set_uid(UIDS[result])
    made.set_dim(layout[result][0]).set_stride(layout[result][1])  # several shapes of an input have the same output
    return graph


def planned(cudnn: Any, asked: Product, **place: Any) -> Plan | None:
    """Let cuDNN make a plan for a product; None if it has none."""
    graph = drawn(cudnn, asked, **place)
    try:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        # Notes and the limit mark engines of the list that the line above made.
        graph.deselect_numeric_notes(
            [getattr(cudnn.numerical_note, note) for note in left_out(asked.dtype, asked.fast)]
        )
        graph.deselect_workspace_greater_than(asked.limit)
        graph.check_support()
        graph.build_plans()
    except cudnn.cudnnGraphNotSupportedError:
        return None
    return Plan(graph, int(graph.get_workspace_size()))


def versions() -> str:
    """Name the versions of cuDNN and of its front end; raise `Unavailable` if one is missing or too old."""
    try:
        cudnn = importlib.import_module("cudnn")
        front_end, version = str(cudnn.__version__), int(cudnn.backend_version())
    except Exception as error:  # a broken library may raise any error
        raise Unavailable(in_a_line(error)) from error
    words = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
    if (*map(int, front_end.split(".")[:2]),) < OLDEST_FRONT_END:
        raise Unavailable(f"nvidia-cudnn-frontend is {front_end}, and 1.23 is needed")
    if version < OLDEST_CUDNN:
        raise Unavailable(f"cuDNN is {words}, and 9.15.1 is needed")
    return f"{words}, by nvidia-cudnn-frontend {front_end}"


class _Desk:
    """A handle of the current device, and the plans that were made with it; one thread uses it at a time."""

    def __init__(self, cudnn: Any) -> None:
        self.cudnn, self.handle = cudnn, cudnn.create_handle()
        self.plans: OrderedDict[Product, Plan | None] = OrderedDict()

    def plan(self, asked: Product) -> Plan | None:
        """Return the plan for a product, or None if cuDNN has none."""
        if asked not in self.plans:
            self.plans[asked] = planned(self.cudnn, asked, handle=self.handle)
            if len(self.plans) > MOST_PLANS:
                self.plans.popitem(last=False)
        self.plans.move_to_end(asked)
        return self.plans[asked]


_free: defaultdict[int, list[_Desk]] = defaultdict(list)
"""The desks of threads that have ended, by the number of their device."""


class _Desks(dict[int, _Desk]):
    """The desks of a thread by the number of their device; when the thread ends, others may take them."""

    def __del__(self) -> None:
        for device, desk in self.items():
            _free[device].append(desk)


_here = threading.local()
"""What this thread has: its `desks`."""


def _desk(cudnn: Any) -> _Desk:
    """Return this thread's desk for the current device."""
    desks: _Desks = vars(_here).setdefault("desks", _Desks())
    device = sys.modules["cupy"].cuda.runtime.getDevice()
    if device not in desks:
        try:
            desks[device] = _free[device].pop()
        except IndexError:
            desks[device] = _Desk(cudnn)
    return desks[device]


class CudnnConvolution(NativeConvolution):
    """cuDNN's convolution, of CuPy's arrays on NVIDIA's GPUs.

    cuDNN may skip padding, where the plain formula multiplies it, and may multiply zeros of its own. A result is taken
    if all its numbers are finite: then so are all numbers that count, if each tap and each window reads some cell.
    """

    def objection(self, convolution: Convolution) -> str | None:
        if convolution.dims > 3:
            return "one to three spatial dimensions, as cuDNN does"
        if 0 in cut(convolution)[2:]:
            return "inputs that have cells"
        if not convolution.x_shape[0]:  # there is nothing to compute
            return None
        asked = product("forward", convolution, "float32", False, False, limits.workspace() or GPU_WORKSPACE)
        try:
            plan = _desk(importlib.import_module("cudnn")).plan(asked)
        except Exception as error:
            return f"devices on which cuDNN does not fail ({in_a_line(error)})"
        return "convolutions that cuDNN has a plan for" if plan is None else None

    def work(self, kind: str, convolution: Convolution, bits: int, device: str) -> NativeWork:
        # All arrays are copied at worst; what a plan takes is held within the rest of the limit.
        return NativeWork(convolution.operations, convolution.elements, 3, convolution.elements)

    def code(self, kind: str, convolution: Convolution) -> str:
        operands = {"forward": "x, w, None", "input_grad": "dout, w", "weight_grad": "dout, x"}[kind]
        own = "portconv.backends.get('cupy').native_convolution"
        return f"import portconv; {own}.{kind}({operands}, portconv.backends.{convolution})"

    def literal(self, values: str, dtype: str, device: str) -> str:
        return f'cupy.asarray({values}, dtype="{dtype}")'

    def forward(self, x: Array, w: Array, b: Array | None, convolution: Convolution) -> Array | None:
        if convolution.has_taps_of_padding and not all_finite(sys.modules["cupy"], w):
            return None
        out = _computed("forward", convolution, x=x[kept(convolution)], w=w)
        if out is not None and b is not None:
            out += b.reshape(-1, *(1,) * convolution.dims)
        return out

    def input_grad(self, dout: Array, w: Array, convolution: Convolution) -> Array | None:
        grad = _computed("input_grad", convolution, out=dout, w=w)
        if grad is None or grad.shape == convolution.x_shape:
            return grad
        whole = _empty(convolution.x_shape, grad.dtype, not lies_as(grad.shape, _steps(grad), False))
        whole.fill(0)
        whole[kept(convolution)] = grad
        return whole

    def weight_grad(self, dout: Array, x: Array, convolution: Convolution) -> Array | None:
        if convolution.has_windows_of_padding and not all_finite(sys.modules["cupy"], dout):
            return None
        return _computed("weight_grad", convolution, x=x[kept(convolution)], out=dout)


def all_finite(xp: Any, array: Array) -> bool:
    """Return whether an array has no nan and no infinity; if its sum is finite, all its numbers are.

    It reads one truth value from the device, and a second one only if the sum is not finite.
    """
    total = xp.sum(array, dtype="float32" if array.dtype.itemsize == 2 else None)
    return bool(xp.isfinite(total)) or bool(xp.all(xp.isfinite(array)))


def _computed(kind: str, convolution: Convolution, **operands: Array) -> Array | None:
    """Compute a product of CuPy's arrays on the current device and stream.

    The result lies in memory as the first operand does. It is None if cuDNN has no plan, or a number is not finite.
    """
    cupy, cudnn = sys.modules["cupy"], importlib.import_module("cudnn")
    first = next(iter(operands.values()))
    last = not lies_as(first.shape, _steps(first), False) and lies_as(first.shape, _steps(first), True)
    arrays = {role: _ordered(array, last) for role, array in operands.items()}
    made = METHODS[kind][2]
    shape = {"x": cut(convolution), "w": convolution.w_shape, "out": convolution.out_shape}[made]
    more = sum(array.nbytes for role, array in arrays.items() if array is not operands[role])
    if made == "x" and shape != convolution.x_shape:  # the whole gradient will be an array beside this one
        more += math.prod(shape) * first.dtype.itemsize
    limit = max(0, (limits.workspace() or GPU_WORKSPACE) - more)
    desk = _desk(cudnn)
    plan = desk.plan(product(kind, convolution, first.dtype.name, last, fast.get(), limit))
    if plan is None:
        return None
    arrays[made] = _empty(shape, first.dtype, last)
    room = cupy.empty(plan.workspace, dtype="uint8")
    cudnn.set_stream(handle=desk.handle, stream=cupy.cuda.get_current_stream().ptr)
    addresses = {UIDS[role]: array.data.ptr for role, array in arrays.items()}
    plan.graph.execute(addresses, room.data.ptr, handle=desk.handle)
    result = arrays[made]
    in_a_row = result.transpose(memory_order(result.ndim, last))  # which is fastest to add up
    return result if all_finite(cupy, in_a_row) else None


def _steps(array: Array) -> Ints:
    """Return the steps of an array along its axes, in elements."""
    return tuple(step // array.dtype.itemsize for step in array.strides)


def _ordered(array: Array, last: bool) -> Array:
    """Return an array that lies as asked, at an address that suits cuDNN: the same one, or a copy."""
    if lies_as(array.shape, _steps(array), last) and array.data.ptr % ALIGNMENT == 0:
        return array
    order = memory_order(array.ndim, last)
    return array.transpose(order).copy().transpose(_inverse(order))


def _empty(shape: Ints, dtype: Any, last: bool) -> Array:
    """Return an array of any contents that lies as asked."""
    order = memory_order(len(shape), last)
    return sys.modules["cupy"].empty(tuple(shape[axis] for axis in order), dtype=dtype).transpose(_inverse(order))


def _inverse(order: Iterable[int]) -> Ints:
    """Return the axes that undo a transposition."""
    places = list(order)
    return tuple(places.index(axis) for axis in range(len(places)))
