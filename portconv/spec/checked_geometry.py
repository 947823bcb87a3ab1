"""The geometry of a call, from shapes and options that are checked together.

Nothing here takes time that grows with the sizes; messages read "argument: got ..., expected ...".
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, NamedTuple

from ..errors import ConvShapeError, ConvTypeError, ConvValueError
from .arguments import integer, option, per_dimension
from .geometry import Geometry
from .layout import Shape, given_shape
from .options import (
    DATA_FORMATS,
    NAMED_PADDINGS,
    PADDING_MODES,
    TRANSPOSED_PADDING_MODES,
    TRANSPOSED_PADDINGS,
    Options,
)
from .remembered import looked_up

Pairs = tuple[tuple[int, int], ...]
MOST_DIMENSIONS = 16
"""Windows have two axes for each spatial dimension, and libraries allow about 64."""
W_AXES, TRANSPOSED_W_AXES = "(filters, channels / groups, *kernel)", "(channels, filters / groups, *kernel)"
"""The axes of the filters of a convolution and of a transposed one."""


class Names(NamedTuple):
    """What messages call the input and the filters, and what they quote where that is not the input's shape."""

    x: str = "x"
    w: str = "w"
    quoted: Shape | None = None


NAMES = Names()


class Checked(NamedTuple):
    """A geometry, and whether the caller's input is one sample without a batch axis."""

    geometry: Geometry
    unbatched: bool


class _Given(NamedTuple):
    """What messages call and quote: the names, and the input's shape and layout as the caller has them."""

    names: Names
    x_shape: Shape
    channels_last: bool
    unbatched: bool

    def shape(self, canonical: Shape) -> Shape:
        """Return a canonical shape (N, C, *cells) in the layout of the caller."""
        return given_shape(canonical, self.channels_last, self.unbatched)


class _Steps(NamedTuple):
    """The options of a call that are numbers, one entry for each spatial dimension."""

    strides: Shape
    pads: str | Pairs
    dilations: Shape
    groups: int


def convolution(x_shape: Shape, w_shape: Shape, options: Options, names: Names = NAMES) -> Checked:
    """Check the shapes and options of a convolution.

    Parameters
    ----------
    x_shape, w_shape : tuple of int
        The shape of the input as the caller has it, and of the filters.
    options : Options
    names : Names
        The names of the arguments that the shapes come from.

    Returns
    -------
    Checked

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError
    """
    mode = option("padding_mode", options.padding_mode, PADDING_MODES)
    canonical, given = _canonical_shape(x_shape, w_shape, names, options.data_format, W_AXES)
    dims = len(w_shape) - 2
    steps = _Steps(
        per_dimension("stride", options.stride, dims, 1),
        # The padding is checked last, as it has the most ways to be wrong.
        dilations=per_dimension("dilation", options.dilation, dims, 1),
        groups=integer("groups", options.groups, 1),
        pads=_pairs(options.padding, dims, NAMED_PADDINGS),
    )
    geometry = _convolution((canonical, w_shape), steps, given, mode)
    if mode == "constant":
        is_padded = geometry.extended is not geometry and options.padding_value != 0
        geometry = replace(geometry, value=options.padding_value) if is_padded else geometry.linear
    return Checked(geometry, given.unbatched)


@looked_up
def _convolution(shapes: tuple[Shape, Shape], steps: _Steps, given: _Given, mode: str) -> Geometry:
    (batch, channels, *size), (filters, _, *kernel) = shapes
    _check_channels(shapes, steps.groups, given)
    extents = tuple(d * (k - 1) + 1 for k, d in zip(kernel, steps.dilations, strict=True))
    pads = steps.pads
    if isinstance(pads, str):
        pads = tuple(_named_pair(pads, s, e, t) for s, e, t in zip(size, extents, steps.strides, strict=True))
    befores, afters = zip(*pads, strict=True)
    lines = tuple(size), tuple(kernel), steps.strides, steps.dilations, befores, afters
    geometry = Geometry(batch, channels, filters, steps.groups, *lines, mode, given.channels_last)
    for dim, (padded, extent) in enumerate(zip(geometry.padded, geometry.extent, strict=True)):
        if padded < extent:
            raise ConvShapeError(
                f"{given.names.w}: got a kernel of {kernel[dim]} in spatial dimension {dim}, {extent} cells with its "
                f"dilation of {steps.dilations[dim]}, expected at most the {padded} cells of the padded input"
            )
        if geometry.mode not in ("zeros", "constant") and size[dim] == 0 and padded:
            raise ConvShapeError(
                f"{given.names.x}: got no cell in spatial dimension {dim} of shape {given.x_shape}, "
                f"expected at least one for padding_mode {geometry.mode!r} to fill the padding from"
            )
    what = f"{given.names.x}: got shape {given.x_shape}, padded to {geometry.padded}"
    _check_addressable(geometry, what, given.shape(geometry.out_shape))
    return geometry


def transposed(x_shape: Shape, w_shape: Shape, options: Options, names: Names = NAMES) -> Checked:
    """Check the shapes and options of a transposed convolution.

    The geometry is that of the convolution that it is the adjoint of: its input is the output here. `output_padding`
    adds cells to it where padding took them away, and beyond that cells which no window reads.

    Parameters and errors are those of `convolution`.
    """
    mode = option("padding_mode", options.padding_mode, TRANSPOSED_PADDING_MODES)
    canonical, given = _canonical_shape(x_shape, w_shape, names, options.data_format, TRANSPOSED_W_AXES)
    dims = len(w_shape) - 2
    strides = per_dimension("stride", options.stride, dims, 1)
    dilations = per_dimension("dilation", options.dilation, dims, 1)
    added = per_dimension("output_padding", options.output_padding, dims, 0)
    for dim, (extra, step, gap) in enumerate(zip(added, strides, dilations, strict=True)):
        # Where outputs wrap around, fewer cells than a stride lie after the last window.
        if extra >= (step if mode == "circular" else max(step, gap)):
            most = f"stride {step}" if mode == "circular" else f"the larger of stride {step} and dilation {gap}"
            raise ConvValueError(
                f"output_padding: got {options.output_padding!r}, expected less than {most} in spatial dimension {dim}"
            )
    pads = _pairs(options.padding, dims, TRANSPOSED_PADDINGS)
    if isinstance(pads, str) and any(added):
        raise ConvValueError(f"output_padding: got {options.output_padding!r}, expected 0 for padding {pads!r}")
    steps = _Steps(strides, pads, dilations, integer("groups", options.groups, 1))
    return Checked(_transposed((canonical, w_shape), steps, added, given, mode), given.unbatched)


@looked_up
def _transposed(shapes: tuple[Shape, Shape], steps: _Steps, added: Shape, given: _Given, mode: str) -> Geometry:
    (batch, channels, *size), w_shape = shapes
    filters, group_channels, *kernel = w_shape
    _check_filters(w_shape, "w")
    if channels != filters:
        raise ConvShapeError(
            f"w: got shape {w_shape}, for {filters} input channels, expected {channels} in its first place, "
            f"for x of shape {given.x_shape}"
        )
    if channels % steps.groups:
        raise ConvValueError(f"groups: got {steps.groups}, expected a divisor of x's {channels} channels")
    if any(s < 1 for s in size):
        raise ConvShapeError(f"x: got shape {given.x_shape}, expected at least one cell along each spatial dimension")
    pads = steps.pads
    if isinstance(pads, str):
        extents = (d * (k - 1) + 1 for k, d in zip(kernel, steps.dilations, strict=True))
        pads = tuple(_transposed_pair(pads, e, t) for e, t in zip(extents, steps.strides, strict=True))
    befores, afters = zip(*pads, strict=True)
    sides = zip(size, steps.strides, befores, afters, steps.dilations, kernel, added, strict=True)
    out = tuple((s - 1) * step - lo - hi + d * (k - 1) + extra + 1 for s, step, lo, hi, d, k, extra in sides)
    if any(s < 1 for s in out):
        raise ConvShapeError(
            f"x: got shape {given.x_shape} with a padding of {pads}, expected one that leaves an output of at "
            f"least one cell along each spatial dimension; it would be {out}"
        )
    ends = tuple(hi - extra for hi, extra in zip(afters, added, strict=True))
    if mode == "circular":  # cells after the last window stay where they are, without a negative padding
        ends = tuple(max(end, 0) for end in ends)
    lines = out, tuple(kernel), steps.strides, steps.dilations, befores, ends
    in_channels = group_channels * steps.groups
    geometry = Geometry(batch, in_channels, channels, steps.groups, *lines, mode, given.channels_last)
    _check_addressable(geometry, f"x: got shape {given.x_shape}", given.shape(geometry.x_shape))
    return geometry


def _canonical_shape(
    x_shape: Shape, w_shape: Shape, names: Names, data_format: Any, w_axes: str
) -> tuple[Shape, _Given]:
    """Check the numbers of dimensions; return the shape of the input with a batch axis and channels first."""
    channels_last = option("data_format", data_format, DATA_FORMATS) == "channels_last"
    dims = len(w_shape) - 2
    x_name, w_name, quoted = names
    one = "..., None" if channels_last else "None"
    if dims < 1:
        hint = ""
        if names == NAMES and len(x_shape) == len(w_shape) > 0:
            hint = f"; for one channel and one filter pass x[{one}], w[None, None]"
        raise ConvShapeError(f"{w_name}: got shape {w_shape}, expected {w_axes}{hint}")
    if dims > MOST_DIMENSIONS:
        raise ConvShapeError(f"{w_name}: got {dims} spatial dimensions, expected at most {MOST_DIMENSIONS}")
    if len(x_shape) not in (dims + 1, dims + 2):
        hint = f"; one channel without an axis for it is x[{one}]" if names == NAMES and len(x_shape) == dims else ""
        raise ConvShapeError(
            f"{x_name}: got {len(x_shape)} dimensions in shape {x_shape}, expected {dims + 2}, or {dims + 1} for one "
            f"sample without a batch axis, to go with {w_name} of shape {w_shape}{hint}"
        )
    unbatched = len(x_shape) == dims + 1
    batch, *rest = (1, *x_shape) if unbatched else x_shape
    if channels_last:
        rest = [rest[-1], *rest[:-1]]
    return (batch, *rest), _Given(names, quoted or x_shape, channels_last, unbatched)


def _pairs(padding: Any, dims: int, known: tuple[str, ...]) -> str | Pairs:
    """Check a padding; return its name, or one (before, after) pair for each dimension."""
    if isinstance(padding, str):
        return option("padding", padding, known)
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
    """Return the padding of one dimension that has a name."""
    if name == "valid":
        return 0, 0
    if name == "full":
        return extent - 1, extent - 1
    if name == "causal":
        return extent - 1, 0
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    less, more = total // 2, total - total // 2
    return (less, more) if name == "same" else (more, less)


def _transposed_pair(name: str, extent: int, stride: int) -> tuple[int, int]:
    """Return how many cells are taken off before and after a dimension of an output; fewer than none are added."""
    if name == "valid":
        return 0, min(extent - stride, 0)
    before = max(extent - stride, 0) // 2 if name == "same" else 0
    return before, extent - stride - before


def _check_filters(w_shape: Shape, name: str) -> None:
    if any(size < 1 for size in w_shape):
        raise ConvShapeError(f"{name}: got shape {w_shape}, expected at least one filter, channel and kernel cell")


def _check_channels(shapes: tuple[Shape, Shape], groups: int, given: _Given) -> None:
    """Check that the channels of an input and of filters go together."""
    x_shape, w_shape = shapes
    channels, filters, group_channels = x_shape[1], w_shape[0], w_shape[1]
    _check_filters(w_shape, given.names.w)
    if channels < 1:
        raise ConvShapeError(f"{given.names.x}: got {channels} channels in shape {given.x_shape}, expected at least 1")
    if channels % groups or filters % groups:
        raise ConvValueError(
            f"groups: got {groups}, expected a divisor of x's {channels} channels and of w's {filters} filters"
        )
    if channels != group_channels * groups:
        raise ConvShapeError(
            f"{given.names.w}: got shape {w_shape}, for {group_channels * groups} input channels in {groups} group(s), "
            f"expected {channels // groups} in its second place, for x of shape {given.x_shape}"
        )


def _check_addressable(geometry: Geometry, what: str, result: Shape) -> None:
    """Check that every size fits in an integer of the machine; `what` begins the message."""
    # A compiler's symbols have no largest value; what it compiles checks the numbers.
    if geometry.is_known and max(2 * geometry.operations, *geometry.padded, *geometry.size) > sys.maxsize:
        raise ConvShapeError(f"{what}, expected an output that can be addressed; it would be {result}")
