"""Copy windows into columns (im2col), and add columns up to the cells that they are windows of (col2im)."""

from __future__ import annotations

import math
from typing import Any

from .backends import Array
from .engine.execution import opaque, run
from .errors import ConvShapeError
from .spec import arguments, checked_geometry
from .spec.checked_geometry import Names
from .spec.geometry import Geometry
from .spec.operation import Kind, operation
from .spec.options import Ints, Options, Padding


# A type of arrays may tell how many dimensions they have, which change here: so these are `Array`, and not `ArrayT`.
@opaque
def unfold(x: Array, kernel_size: Ints, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1) -> Array:
    """Copy the windows of a batch into columns (im2col).

    Column `l` is the window that the `l`-th output of a convolution reads, with the channels first and then the kernel
    taps. With the filters as rows, `conv(x, w)` is `reshape(w, (F, -1)) @ unfold(x, kernel)`.

    Parameters
    ----------
    x : array, shape (N, C, *spatial)
        The input, of a dtype that `conv` takes.
    kernel_size : int or sequence of int
        The size of a window: one int, or one int per spatial dimension.
    stride, padding, dilation
        As for `conv`.

    Returns
    -------
    array, shape (N, C * prod(kernel_size), L)
        The columns, of the dtype of `x`. `L` is the number of windows, ``prod(out_spatial)`` of `conv`.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As for `conv`.

    See Also
    --------
    fold : The adjoint.

    Examples
    --------
    >>> import numpy as np
    >>> portconv.unfold(np.arange(4).reshape(1, 1, 4), 3)
    array([[[0, 1],
            [1, 2],
            [2, 3]]])
    """
    backend, dtype = arguments.arrays(x=x)
    shape = tuple(x.shape)
    kernel = _kernel(shape, len(shape) - 2, "x", kernel_size)
    geometry = _geometry(Names("x", "kernel_size"), shape, kernel, Options(stride, padding, dilation))
    step = operation(Kind.UNFOLD, geometry, dtype.name, dtype.name)
    arguments.memory(backend, x, dtype.name, ("x", shape), step.shape(step.result))
    return run(step, backend, x)


@opaque
def fold(
    columns: Array,
    output_size: tuple[int, ...],
    kernel_size: Ints,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
) -> Array:
    """Add columns up to the cells that they are windows of (col2im): the adjoint of `unfold`.

    Parameters
    ----------
    columns : array, shape (N, C * prod(kernel_size), L)
        Columns as from `unfold`, of a dtype that `conv` takes. float16 and bfloat16 are added up in float32.
    output_size : tuple of int
        The spatial sizes of the result.
    kernel_size, stride, padding, dilation
        As for `unfold`.

    Returns
    -------
    array, shape (N, C, *output_size)
        The sums, of the dtype of `columns`.

    Raises
    ------
    ConvShapeError
        If `columns` does not have the shape that `unfold` would return, and as for `unfold`.
    ConvValueError, ConvTypeError, BackendError
        As for `unfold`.

    See Also
    --------
    unfold : The adjoint.

    Examples
    --------
    >>> import numpy as np
    >>> portconv.fold(np.ones((1, 3, 2)), (4,), 3)
    array([[[1., 2., 2., 1.]]])
    """
    backend, dtype = arguments.arrays(columns=columns)
    sizes = arguments.shape("output_size", output_size)
    kernel = _kernel(sizes, len(sizes), "output_size", kernel_size)
    found = tuple(columns.shape)
    deep = math.prod(kernel)
    if len(found) != 3 or found[1] % deep or found[1] == 0:
        raise ConvShapeError(
            f"columns: got shape {found}, expected three dimensions, and in the second a multiple of {deep}, "
            "the cells of a window"
        )
    x_shape = found[0], found[1] // deep, *sizes
    options = Options(stride, padding, dilation)
    geometry = _geometry(Names("output_size", "kernel_size", sizes), x_shape, kernel, options)
    arguments.exact_shape("columns", found, (*found[:2], geometry.positions))
    arguments.memory(backend, columns, dtype.name, ("output_size", sizes), geometry.x_shape)
    return run(operation(Kind.FOLD, geometry, dtype.name, dtype.name), backend, columns)


def _kernel(shape: tuple[int, ...], dims: int, name: str, kernel_size: Any) -> tuple[int, ...]:
    if dims < 1:
        expected = "(N, C, *spatial)" if name == "x" else "one size per spatial dimension"
        raise ConvShapeError(f"{name}: got shape {shape}, expected {expected}")
    return arguments.per_dimension("kernel_size", kernel_size, dims, 1)


def _geometry(names: Names, x_shape: tuple[int, ...], kernel: tuple[int, ...], options: Options) -> Geometry:
    """Return the geometry of a depthwise convolution with windows of these sizes."""
    channels = x_shape[1]
    if channels < 1:
        raise ConvShapeError(f"x: got {channels} channels in shape {x_shape}, expected at least 1")
    options = options._replace(groups=channels)
    return checked_geometry.convolution(x_shape, (channels, 1, *kernel), options, names).geometry
