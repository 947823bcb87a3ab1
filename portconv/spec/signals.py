"""How a convolution of two signals is asked of a layer: shapes, axes, cuts and padding, as plain integers.

The layer's input and filters are the signal and the kernel, or the other way round. An axis that is not convolved is
one of these, by its sizes: a sample axis, which the filters lack; a group axis, which both have; a filter axis, which
the input lacks. Sample axes behind a convolved one stay where they are, as spatial ones of one tap: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import prod
from typing import Any, Literal, NamedTuple, get_args

from ..errors import ConvShapeError, ConvValueError
from .arguments import integer
from .layout import Shape
from .ranges import ALL
from .remembered import looked_up

Mode = Literal["full", "same", "valid"]
MODES: tuple[str, ...] = get_args(Mode)


class Lowering(NamedTuple):
    """A convolution of signals as one of a layer, and the way back.

    Attributes
    ----------
    swapped : bool
        Whether the kernel is the layer's input, and the signal its filters.
    axes : tuple of int
        The axes of the signal that are convolved.
    kernel_shape : tuple of int
        The kernel's, with an axis for each of the signal's.
    cuts : tuple of slice
        What of the layer's input is read; () for all.
    x_axes, w_axes, out_axes : tuple of int
        The orders of axes in which input, filters and output are reshaped; () for the order that they have.
    x_shape, w_shape, wide_shape : tuple of int
        The layer's input and filters, and its output before its axes are put in order.
    padding : tuple of (int, int)
    groups : int
    plain : bool
        Whether input and filters are the operands with two more axes in front, and nothing else.
    """

    swapped: bool
    axes: Shape
    kernel_shape: Shape
    cuts: tuple[slice, ...]
    x_axes: Shape
    w_axes: Shape
    out_axes: Shape
    x_shape: Shape
    w_shape: Shape
    wide_shape: Shape
    padding: tuple[tuple[int, int], ...]
    groups: int
    plain: bool


@looked_up
def lowering(x_shape: Shape, given_kernel: Shape, mode: str, axes: Any, swaps: bool) -> Lowering:
    """Check the shapes of a signal and a kernel, and the axes; say which convolution of a layer computes the same.

    `swaps` says whether cells beyond the signal are zeros, so that either operand may be the one that slides.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError
    """
    convolved = axes_of(x_shape, axes)
    kernel_shape = _with_all_axes(x_shape, given_kernel, convolved)
    for axis, (of_x, of_kernel) in enumerate(zip(x_shape, kernel_shape, strict=True)):
        if axis in convolved and 0 in (of_x, of_kernel):
            name, shape = ("x", x_shape) if of_kernel else ("kernel", given_kernel)
            raise ConvShapeError(f"{name}: got shape {shape}, expected at least one cell along axis {axis} of x")
        if axis not in convolved and 1 not in (of_x, of_kernel) and of_x != of_kernel:
            raise ConvShapeError(
                f"kernel: got shape {given_kernel}, expected one whose axis {axis}, which is not convolved, has 1 cell "
                f"or as many as that of x of shape {x_shape}"
            )
    swapped = swaps and mode != "valid" and _cells(kernel_shape, convolved) > _cells(x_shape, convolved)
    if mode == "valid":
        swapped = any(kernel_shape[axis] > x_shape[axis] for axis in convolved)
        if swapped and any(kernel_shape[axis] < x_shape[axis] for axis in convolved):
            raise ConvShapeError(
                f"kernel: got shape {given_kernel}, expected one that is no larger than x of shape {x_shape} along any "
                f"convolved axis, or no smaller along any, for mode 'valid'"
            )
    return _placed((kernel_shape, x_shape) if swapped else (x_shape, kernel_shape), convolved, mode, swapped)


def _placed(shapes: tuple[Shape, Shape], convolved: Shape, mode: str, swapped: bool) -> Lowering:
    """Lay out the layer of an input and filters of these shapes."""
    a, v = shapes
    cuts, pads, outs = [ALL] * len(a), {}, list(a)
    for axis in convolved:
        cuts[axis], pads[axis], outs[axis] = _window(a[axis], v[axis], mode, swapped)
    of_batch = [axis for axis in range(len(a)) if axis not in convolved]
    of_groups = [axis for axis in of_batch if v[axis] == a[axis] != 1]
    of_filters = [axis for axis in of_batch if v[axis] != a[axis] == 1]
    of_samples = [axis for axis in of_batch if v[axis] == 1 and axis < convolved[0]]
    rest = [axis for axis in range(len(a)) if axis not in (*of_groups, *of_filters, *of_samples)]
    segments = [list(each) for _, each in groupby(rest, lambda axis: axis if axis in convolved else -1)]
    segments = [each for each in segments if each[0] in convolved or _cells(a, each) != 1]
    groups, filters = _cells(v, of_groups), _cells(v, of_filters)
    lengths = [len(range(size)[cut]) for size, cut in zip(a, cuts, strict=True)]
    order = [*of_samples, *of_groups, *of_filters, *rest]
    return Lowering(
        swapped,
        convolved,
        a if swapped else v,
        tuple(cuts) if any(cut != ALL for cut in cuts) else (),
        _in_order([*of_samples, *of_filters, *of_groups, *rest]),
        _in_order(order),
        _in_order([order.index(axis) for axis in range(len(order))]),
        (_cells(a, of_samples), groups, *(_cells(lengths, each) for each in segments)),
        (groups * filters, 1, *(_cells(v, each) for each in segments)),
        tuple(v[axis] if axis in of_filters else outs[axis] for axis in order),
        tuple(pads.get(each[0], (0, 0)) for each in segments),
        groups,
        len(segments) == len(a) and all(cut == ALL for cut in cuts),
    )


@looked_up
def axes_of(x_shape: Shape, axes: Any, in_order: bool = True) -> Shape:
    """Check which axes are convolved; return their numbers from 0, in order or as they are named."""
    dims = len(x_shape)
    if axes is None:
        return tuple(range(dims))
    given = axes if isinstance(axes, (tuple, list)) else (axes,)
    numbers = [integer("axes" if given[0] is axes else f"axes[{i}]", axis) for i, axis in enumerate(given)]
    if any(not -dims <= axis < dims for axis in numbers):
        raise ConvValueError(f"axes: got {axes!r}, expected axes of x, which has {dims}")
    found = tuple(axis % dims for axis in numbers)
    if not found or len({*found}) < len(found):
        raise ConvValueError(f"axes: got {axes!r}, expected {'each axis once' if found else 'at least one axis'}")
    return tuple(sorted(found)) if in_order else found


def _with_all_axes(x_shape: Shape, kernel_shape: Shape, convolved: Shape) -> Shape:
    """Return the shape of a kernel with an axis for each axis of the signal."""
    if len(kernel_shape) == len(x_shape):
        return kernel_shape
    if len(kernel_shape) != len(convolved):
        some = f", or {len(convolved)}, one for each axis that is convolved" if len(convolved) < len(x_shape) else ""
        got = f"got {len(kernel_shape)} dimensions in shape {kernel_shape}"
        raise ConvShapeError(f"kernel: {got}, expected {len(x_shape)}, as x has{some}")
    sizes = dict(zip(convolved, kernel_shape, strict=True))
    return tuple(sizes.get(axis, 1) for axis in range(len(x_shape)))


def _window(size: int, kernel: int, mode: str, swapped: bool) -> tuple[slice, tuple[int, int], int]:
    """Return what of an input is read along an axis, the padding of that, and the number of outputs."""
    # The signal is what "same" is as long as, and `kernel` is that where the operands have changed places.
    same, taps = (kernel, size) if swapped else (size, kernel)
    valid = min(size, kernel) - 1, max(size, kernel)
    middle = (taps - 1) // 2, (taps - 1) // 2 + same
    first, stop = {"full": (0, size + kernel - 1), "same": middle, "valid": valid}[mode]
    # Output `n` of the full convolution reads the input from `n - kernel + 1` to `n`.
    start = first - kernel + 1
    cut = slice(max(0, start), min(size, stop))
    pads = max(0, -start), max(0, stop - size)
    return ALL if (cut.start, cut.stop) == (0, size) else cut, pads, stop - first


def _cells(shape: Sequence[int], axes: Sequence[int]) -> int:
    return prod(shape[axis] for axis in axes)


def _in_order(axes: Sequence[int]) -> Shape:
    """Return an order of axes, or () if they are in order."""
    return () if list(axes) == sorted(axes) else tuple(axes)
