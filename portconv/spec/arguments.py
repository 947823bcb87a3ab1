"""What the caller gave, checked and made plain: every typed error about an argument is raised here.

Nothing here allocates or writes an array; messages read "argument: got ..., expected ...".
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .. import backends
from ..backends import Array, Backend
from ..errors import BackendError, ConvShapeError, ConvTypeError, ConvValueError, in_a_line
from .dtypes import KINDS, Dtype
from .geometry import Geometry

Ints = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]

NAMED_PADDINGS = ("valid", "full", "same", "same_lower")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
DATA_FORMATS = ("channels_first", "channels_last")
PRECISIONS = ("standard", "fast", "reproducible")
LITTLE_BYTES = 1 << 26


def integer(name: str, value: Any, least: int | None = None) -> int:
    """Check one plain integer."""
    if isinstance(value, bool):
        raise ConvTypeError(f"{name}: got {value!r}, expected an int")
    try:
        plain = operator.index(value)
    except TypeError:
        raise ConvTypeError(f"{name}: got {value!r}, expected an int") from None
    if least is not None and plain < least:
        raise ConvValueError(f"{name}: got {value!r}, expected an int of at least {least}")
    return plain


def per_dimension(name: str, value: Any, dims: int, least: int) -> tuple[int, ...]:
    """Check an int, or one int per spatial dimension."""
    if not isinstance(value, (tuple, list)):
        if isinstance(value, str) or value is None or hasattr(value, "__len__"):
            raise ConvTypeError(f"{name}: got {value!r}, expected an int or a tuple of {dims}")
        return (integer(name, value, least),) * dims
    if len(value) != dims:
        raise ConvValueError(f"{name}: got {len(value)} entries in {value!r}, expected {dims}, one per dimension")
    return tuple(integer(f"{name}[{i}]", entry, least) for i, entry in enumerate(value))


def option(name: str, value: Any, known: Sequence[str]) -> str:
    """Check one of a few strings."""
    if isinstance(value, str) and value in known:
        return value
    error = ConvValueError if isinstance(value, str) else ConvTypeError
    raise error(f"{name}: got {value!r}, expected {' or '.join(repr(choice) for choice in known)}")


def shape(name: str, value: Any) -> tuple[int, ...]:
    """Check a shape given as integers."""
    if not isinstance(value, (tuple, list)):
        raise ConvTypeError(f"{name}: got {value!r}, expected a tuple of ints")
    for i, size in enumerate(value):
        if integer(f"{name}[{i}]", size) < 0:
            raise ConvShapeError(f"{name}: got {tuple(value)}, expected no negative size")
    return tuple(operator.index(size) for size in value)


def _pairs(padding: Any, dims: int) -> tuple[tuple[int, int], ...]:
    """Check a padding that is no string, as one (before, after) pair per dimension."""
    if isinstance(padding, (tuple, list)) and any(isinstance(entry, (tuple, list)) for entry in padding):
        if len(padding) != dims:
            raise ConvValueError(
                f"padding: got {len(padding)} pairs in {padding!r}, expected {dims}, one per dimension"
            )
        pairs = []
        for i, entry in enumerate(padding):
            if not isinstance(entry, (tuple, list)):
                raise ConvTypeError(f"padding[{i}]: got {entry!r}, expected a pair (before, after), as beside it")
            if len(entry) != 2:
                raise ConvValueError(f"padding[{i}]: got {entry!r}, expected a pair (before, after)")
            before, after = (integer(f"padding[{i}][{j}]", side, 0) for j, side in enumerate(entry))
            pairs.append((before, after))
        return tuple(pairs)
    return tuple((side, side) for side in per_dimension("padding", padding, dims, 0))


def _named_pair(name: str, size: int, extent: int, stride: int) -> tuple[int, int]:
    """Work out one dimension of a padding given by name."""
    if name == "valid":
        return 0, 0
    if name == "full":
        return extent - 1, extent - 1
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    less, more = total // 2, total - total // 2
    return (less, more) if name == "same" else (more, less)


def geometry(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    mode: str = "zeros",
    channels_last: bool = False,
    names: tuple[str, str] = ("x", "w"),
) -> Geometry:
    """Check shapes and options together, and compute the geometry of a batched call; `x_shape` is channels first.

    `names` are those of the arguments that the shapes come from.
    """
    dims = len(w_shape) - 2
    strides = per_dimension("stride", stride, dims, 1)
    dilations = per_dimension("dilation", dilation, dims, 1)
    group_count = integer("groups", groups, 1)
    pads = option("padding", padding, NAMED_PADDINGS) if isinstance(padding, str) else _pairs(padding, dims)
    return _geometry(x_shape, w_shape, strides, pads, dilations, group_count, mode, channels_last, names)


@lru_cache(maxsize=1024)
def _geometry(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    strides: tuple[int, ...],
    pads: str | tuple[tuple[int, int], ...],
    dilations: tuple[int, ...],
    groups: int,
    mode: str,
    channels_last: bool,
    names: tuple[str, str],
) -> Geometry:
    batch, channels, *size = x_shape
    filters, group_channels, *kernel = w_shape
    x_name, w_name = names
    _not_empty(w_shape, w_name)
    if channels < 1:
        raise ConvShapeError(f"{x_name}: got {channels} channels in shape {x_shape}, expected at least 1")
    if channels % groups or filters % groups:
        raise ConvValueError(
            f"groups: got {groups}, expected a divisor of x's {channels} channels and of w's {filters} filters"
        )
    if channels != group_channels * groups:
        raise ConvShapeError(
            f"{w_name}: got shape {w_shape}, for {group_channels * groups} input channels in {groups} group(s), "
            f"expected {channels // groups} in its second place, for x of shape {x_shape}"
        )
    extents = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
    if isinstance(pads, str):
        pads = tuple(_named_pair(pads, s, e, t) for s, e, t in zip(size, extents, strides, strict=True))
    befores, afters = zip(*pads, strict=True)
    found = Geometry(
        batch,
        channels,
        filters,
        groups,
        tuple(size),
        tuple(kernel),
        strides,
        dilations,
        befores,
        afters,
        mode,
        channels_last,
    )
    for dim, (padded, extent) in enumerate(zip(found.padded, found.extent, strict=True)):
        if padded < extent:
            raise ConvShapeError(
                f"{w_name}: got a kernel of {kernel[dim]} in spatial dimension {dim}, {extent} cells with its dilation "
                f"of {dilations[dim]}, expected at most the {padded} cells of the padded input"
            )
        if mode != "zeros" and size[dim] == 0 and padded:
            raise ConvShapeError(
                f"{x_name}: got no cell in spatial dimension {dim} of shape {x_shape}, "
                f"expected at least one for padding_mode {mode!r} to fill the padding from"
            )
    _addressable(found, x_name, x_shape, f"padded to {found.padded}, ", found.out_shape)
    return found


def transposed(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: Any,
    channels_last: bool,
) -> Geometry:
    """Check shapes and options of a transposed convolution; return the geometry of the convolution it is adjoint to.

    The input of that convolution is the output here; `output_padding` adds cells to it where padding took them away,
    and beyond that cells which no window reads.
    """
    dims = len(w_shape) - 2
    strides = per_dimension("stride", stride, dims, 1)
    dilations = per_dimension("dilation", dilation, dims, 1)
    more = per_dimension("output_padding", output_padding, dims, 0)
    for dim, (extra, step, gap) in enumerate(zip(more, strides, dilations, strict=True)):
        if extra >= max(step, gap):
            raise ConvValueError(
                f"output_padding: got {output_padding!r}, expected less than the larger of stride {step} and dilation "
                f"{gap} in spatial dimension {dim}"
            )
    return _transposed(
        x_shape, w_shape, strides, _pairs(padding, dims), more, dilations, integer("groups", groups, 1), channels_last
    )


@lru_cache(maxsize=1024)
def _transposed(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
    more: tuple[int, ...],
    dilations: tuple[int, ...],
    groups: int,
    channels_last: bool,
) -> Geometry:
    batch, channels, *size = x_shape
    filters, group_channels, *kernel = w_shape
    _not_empty(w_shape, "w")
    if channels != filters:
        raise ConvShapeError(
            f"w: got shape {w_shape}, for {filters} input channels, expected {channels} in its first place, "
            f"for x of shape {x_shape}"
        )
    if channels % groups:
        raise ConvValueError(f"groups: got {groups}, expected a divisor of x's {channels} channels")
    if min(size) < 1:
        raise ConvShapeError(f"x: got shape {x_shape}, expected at least one cell along each spatial dimension")
    befores, afters = zip(*pads, strict=True)
    sides = zip(size, strides, befores, afters, dilations, kernel, more, strict=True)
    out = tuple((s - 1) * step - lo - hi + d * (k - 1) + extra + 1 for s, step, lo, hi, d, k, extra in sides)
    if min(out) < 1:
        raise ConvShapeError(
            f"x: got shape {x_shape} with a padding of {pads}, expected one that leaves an output of at least one "
            f"cell along each spatial dimension; it would be {out}"
        )
    ends = tuple(hi - extra for hi, extra in zip(afters, more, strict=True))
    found = Geometry(
        batch,
        group_channels * groups,
        channels,
        groups,
        out,
        tuple(kernel),
        strides,
        dilations,
        befores,
        ends,
        channels_last=channels_last,
    )
    _addressable(found, "x", x_shape, "", found.x_shape)
    return found


def _not_empty(w_shape: tuple[int, ...], name: str) -> None:
    if min(w_shape) < 1:
        raise ConvShapeError(f"{name}: got shape {w_shape}, expected at least one filter, channel and kernel cell")


def _addressable(found: Geometry, name: str, x_shape: tuple[int, ...], how: str, result: tuple[int, ...]) -> None:
    if max(2 * found.operations, *found.padded, *found.size) > sys.maxsize:
        raise ConvShapeError(
            f"{name}: got shape {x_shape}, {how}expected an output that can be addressed; it would be {result}"
        )


def room(backend: Backend, like: Array, dtype: Dtype, name: str, got: tuple[int, ...], *made: tuple[int, ...]) -> None:
    """Check that the device has the memory for each array that a call is to make for an argument of shape `got`."""
    for shape in made:
        needed = math.prod(shape) * backend.bits(dtype.dtype) // 8
        # Small needs are not worth asking the device.
        if needed > LITTLE_BYTES and needed > (memory := backend.memory(like)):
            raise ConvShapeError(
                f"{name}: got shape {got}, for which an array of shape {shape} and {needed} bytes would be made, "
                f"expected what fits in the {memory} bytes of memory that the device has"
            )


def arrays(**named: Array) -> tuple[Backend, Dtype]:
    """Check that all arrays are of one library, device and kind; return the backend and their common dtype.

    `b` may be None.
    """
    first_name, first, backend = "", None, None
    dtypes = []
    for name, array in named.items():
        if name == "b" and array is None:
            continue
        try:
            own = backends.of(array)
        except ConvTypeError as error:
            raise ConvTypeError(f"{name}: {error}") from None
        objection = own.objection(array)
        if objection is not None:
            raise ConvTypeError(f"{name}: {objection}")
        if own.staged and (unsized := own.unsized(array)) is not None:
            raise ConvShapeError(f"{name}: {unsized}")
        if backend is None:
            first_name, first, backend = name, array, own
        elif own is not backend:
            raise ConvTypeError(
                f"{name}: got an array of {own.name}, expected one of {backend.name}, as {first_name} is; "
                f"portconv.backends.get({backend.name!r}).asarray converts"
            )
        elif not own.same_device(array, first):
            raise BackendError(
                f"{name}: got an array on device {own.device_of(array)}, "
                f"expected one on {own.device_of(first)}, as {first_name} is"
            )
        dtypes.append((name, array.dtype))
    assert backend is not None
    return backend, _common(backend, tuple(dtypes))


@lru_cache(maxsize=1024)
def _common(backend: Backend, dtypes: tuple[tuple[str, Any], ...]) -> Dtype:
    """Check the dtypes of arrays, given with the arrays' names, and promote them."""
    first, first_name = dtypes[0][0], backend.dtype_name(dtypes[0][1])
    for name, dtype in dtypes:
        own = backend.dtype_name(dtype)
        if own not in KINDS:
            raise ConvTypeError(f"{name}: got dtype {own}, expected a floating-point, complex or integer one")
        if (KINDS[own] == "integral") != (KINDS[first_name] == "integral"):
            expected = "an integer one" if KINDS[first_name] == "integral" else "a floating-point or complex one"
            raise ConvTypeError(f"{name}: got dtype {own}, expected {expected}, as {first}'s {first_name} is")
    try:
        # Of one dtype there is nothing to promote.
        common = dtypes[0][1] if len({d for _, d in dtypes}) == 1 else backend.xp.result_type(*(d for _, d in dtypes))
        common = backend.native(common)
        own = backend.dtype_name(common)
    except (TypeError, ValueError, RuntimeError) as error:
        own, why = "", f" ({in_a_line(error)})"
    else:
        why = f", only {own}"
    if KINDS.get(own) not in {KINDS[backend.dtype_name(dtype)] for _, dtype in dtypes}:
        names = ", ".join(f"{name}'s {backend.dtype_name(dtype)}" for name, dtype in dtypes)
        raise ConvTypeError(
            f"{dtypes[-1][0]}: got dtypes {names}, expected ones with a common dtype of their kind{why}"
        )
    return Dtype(common, own, KINDS[own])


def batched(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], names: tuple[str, str], data_format: Any
) -> tuple[tuple[int, ...], bool, bool]:
    """Check the numbers of dimensions; return the shape of `x` with a batch axis and channels first.

    And whether the channels are last, and whether `x` is one sample without a batch axis.
    """
    channels_last = option("data_format", data_format, DATA_FORMATS) == "channels_last"
    dims = len(w_shape) - 2
    x_name, w_name = names
    if dims < 1:
        raise ConvShapeError(f"{w_name}: got shape {w_shape}, expected (filters, channels / groups, *kernel)")
    if len(x_shape) not in (dims + 1, dims + 2):
        raise ConvShapeError(
            f"{x_name}: got {len(x_shape)} dimensions in shape {x_shape}, expected {dims + 2}, or {dims + 1} for one "
            f"sample without a batch axis, to go with {w_name} of shape {w_shape}"
        )
    unbatched = len(x_shape) == dims + 1
    batch, *rest = (1, *x_shape) if unbatched else x_shape
    if channels_last:
        rest = [rest[-1], *rest[:-1]]
    return (batch, *rest), channels_last, unbatched


def exact_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Check a shape that leaves no choice."""
    if found != expected:
        raise ConvShapeError(f"{name}: got shape {found}, expected {expected}")
