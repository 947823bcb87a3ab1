"""What the caller gave, checked and made plain: every typed error about an argument is raised here.

Nothing here allocates or writes an array; messages read "argument: got ..., expected ...".
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from . import backends
from .backends import Array, Backend
from .errors import BackendError, ConvShapeError, ConvTypeError, ConvValueError
from .geometry import Geometry

Ints = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]

NAMED_PADDINGS = ("valid", "full", "same", "same_lower")
PADDING_MODES = ("zeros",)
DATA_FORMATS = ("channels_first",)
PRECISIONS = ("standard", "fast")
DTYPES = ("float32", "float64")


def integer(name: str, value: Any, least: int) -> int:
    """Check one plain integer."""
    if isinstance(value, bool):
        raise ConvTypeError(f"{name}: got {value!r}, expected an int")
    try:
        plain = operator.index(value)
    except TypeError:
        raise ConvTypeError(f"{name}: got {value!r}, expected an int") from None
    if plain < least:
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
    expected = " or ".join(repr(choice) for choice in known)
    if not isinstance(value, str):
        raise ConvTypeError(f"{name}: got {value!r}, expected {expected}")
    if value not in known:
        raise ConvValueError(f"{name}: got {value!r}, expected {expected}")
    return value


def shape(name: str, value: Any) -> tuple[int, ...]:
    """Check a shape given as integers."""
    if not isinstance(value, (tuple, list)):
        raise ConvTypeError(f"{name}: got {value!r}, expected a tuple of ints")
    for i, size in enumerate(value):
        if integer(f"{name}[{i}]", size, -sys.maxsize) < 0:
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
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], stride: Any, padding: Any, dilation: Any, groups: Any
) -> Geometry:
    """Check shapes and options together, and compute the geometry of a batched, channels-first call."""
    dims = len(w_shape) - 2
    strides = per_dimension("stride", stride, dims, 1)
    dilations = per_dimension("dilation", dilation, dims, 1)
    group_count = integer("groups", groups, 1)
    named = isinstance(padding, str)
    pads = option("padding", padding, NAMED_PADDINGS) if named else _pairs(padding, dims)
    return _geometry(x_shape, w_shape, strides, pads, dilations, group_count)


@lru_cache(maxsize=1024)
def _geometry(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    strides: tuple[int, ...],
    pads: str | tuple[tuple[int, int], ...],
    dilations: tuple[int, ...],
    groups: int,
) -> Geometry:
    batch, channels, *size = x_shape
    filters, group_channels, *kernel = w_shape
    if min(w_shape) < 1:
        raise ConvShapeError(f"w: got shape {w_shape}, expected at least one filter, channel and kernel cell")
    if channels < 1:
        raise ConvShapeError(f"x: got {channels} channels in shape {x_shape}, expected at least 1")
    if channels % groups or filters % groups:
        raise ConvValueError(
            f"groups: got {groups}, expected a divisor of x's {channels} channels and of w's {filters} filters"
        )
    if channels != group_channels * groups:
        raise ConvShapeError(
            f"w: got shape {w_shape}, for {group_channels * groups} input channels in {groups} group(s), "
            f"expected {channels // groups} in its second place, for x of shape {x_shape}"
        )
    extents = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
    if isinstance(pads, str):
        pads = tuple(_named_pair(pads, s, e, t) for s, e, t in zip(size, extents, strides, strict=True))
    befores, afters = zip(*pads, strict=True)
    found = Geometry(batch, channels, filters, groups, tuple(size), tuple(kernel), strides, dilations, befores, afters)
    for dim, (padded, extent) in enumerate(zip(found.padded, found.extent, strict=True)):
        if padded < extent:
            raise ConvShapeError(
                f"w: got a kernel of {kernel[dim]} in spatial dimension {dim}, {extent} cells with its dilation of "
                f"{dilations[dim]}, expected at most the {padded} cells of the padded input"
            )
    if max(2 * found.operations, *found.padded) > sys.maxsize:
        raise ConvShapeError(
            f"x: got shape {x_shape} with w of shape {w_shape}, padded to {found.padded}, "
            f"expected an output that can be addressed; it would be {found.out_shape}"
        )
    return found


def arrays(**named: Array) -> Backend:
    """Check that all arrays are of one library and one device, and of dtypes served here; return the backend.

    `b` may be None.
    """
    first_name, first, backend = "", None, None
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
        if backend is None:
            first_name, first, backend = name, array, own
        elif own is not backend:
            raise ConvTypeError(
                f"{name}: got an array of {own.name}, expected one of {backend.name}, as {first_name} is; "
                f"portconv.backends.get({backend.name!r}).asarray converts"
            )
        elif own.device_of(array) != own.device_of(first):
            raise BackendError(
                f"{name}: got an array on device {own.device_of(array)}, "
                f"expected one on {own.device_of(first)}, as {first_name} is"
            )
        if array.dtype not in _dtypes(own):
            raise ConvTypeError(f"{name}: got dtype {array.dtype}, expected {' or '.join(DTYPES)}")
    assert backend is not None
    return backend


@lru_cache(maxsize=64)
def _dtypes(backend: Backend) -> tuple[Any, ...]:
    xp = backend.xp
    # NumPy and CuPy name their scalar types so, not the dtypes that arrays have.
    named = (getattr(xp, name) for name in DTYPES)
    return tuple(xp.dtype(kind) if isinstance(kind, type) and hasattr(xp, "dtype") else kind for kind in named)


def dimensions(x_shape: tuple[int, ...], w_shape: tuple[int, ...], what: str = "x") -> bool:
    """Check the numbers of dimensions; return whether the input is one sample without a batch axis."""
    dims = len(w_shape) - 2
    if dims < 1:
        raise ConvShapeError(f"w: got shape {w_shape}, expected (filters, channels / groups, *kernel)")
    if len(x_shape) not in (dims + 1, dims + 2):
        raise ConvShapeError(
            f"{what}: got {len(x_shape)} dimensions in shape {x_shape}, expected {dims + 2}, or {dims + 1} for one "
            f"sample without a batch axis, to go with w of shape {w_shape}"
        )
    return len(x_shape) == dims + 1


def exact_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Check a shape that leaves no choice."""
    if found != expected:
        raise ConvShapeError(f"{name}: got shape {found}, expected {expected}")
