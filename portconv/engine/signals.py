"""Convolutions of two signals, as those of a layer: operands there, and the result back; `spec.signals` says which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .. import backends
from ..backends import Array, Backend
from ..errors import ConvValueError
from ..spec import arguments, signals
from ..spec.dtypes import KINDS
from ..spec.options import PADDING_MODES, Ints, Options, PaddingMode, Precision
from ..spec.remembered import looked_up, remembered
from ..spec.signals import Lowering, Mode

Layer = Callable[[Array, Array, None, Options], Array]
"""A convolution of a layer, or the bound of one, of an input and filters."""


class Wanted(NamedTuple):
    """What a call asks for, beside its arrays."""

    mode: Mode
    axes: Ints | None
    boundary: PaddingMode
    padding_value: complex
    precision: Precision
    algorithm: str
    flips: bool = True


def computed(layer: Layer, kernel: Array, wanted: Wanted, x: Array, of_weights: bool = False) -> Array:
    """Compute a convolution, or where the kernel is not flipped a correlation.

    `of_weights` says whether `x` is what counts in a signal, with ones for a constant boundary.
    """
    backend, x, kernel = _alike(x, kernel)
    if not wanted.flips and KINDS.get(backend.dtype_name(kernel.dtype)) == "complex floating":
        kernel = backend.xp.conj(kernel)
    if len(x.shape) == len(kernel.shape) == 0:
        x, kernel, wanted = (*(backend.xp.reshape(each, (1,)) for each in (x, kernel)), wanted._replace(axes=None))
        return backend.xp.reshape(computed(layer, kernel, wanted._replace(flips=True), x, of_weights), ())
    lowering, options = _planned(tuple(x.shape), tuple(kernel.shape), wanted)
    if wanted.boundary == "constant":
        options = options._replace(padding_value=1 if of_weights else wanted.padding_value)
    if 0 in lowering.wide_shape:
        dtype = arguments.arrays(x=x, kernel=kernel)[1].dtype
        empty = backend.xp.zeros(lowering.wide_shape, dtype=dtype, device=backend.device_of(x))
        return _ordered(backend, empty, lowering.out_axes)
    out = layer(*_operands(backend, x, kernel, lowering, wanted.flips), None, options)
    if lowering.plain:
        return out[0, 0, ...]
    return _ordered(backend, backend.xp.reshape(out, lowering.wide_shape), lowering.out_axes)


@looked_up
def _planned(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], wanted: Wanted) -> tuple[Lowering, Options]:
    """Check the options and shapes of a call; say which convolution of a layer computes it."""
    mode = arguments.option("mode", wanted.mode, signals.MODES)
    arguments.option("boundary", wanted.boundary, PADDING_MODES)
    boundary = wanted.boundary
    if boundary != "constant" and wanted.padding_value != 0:
        raise ConvValueError(
            f"padding_value: got {wanted.padding_value!r}, expected none for boundary {boundary!r}, or 'constant'"
        )
    lowering = signals.lowering(x_shape, kernel_shape, mode, wanted.axes, boundary == "zeros")
    return lowering, Options(
        padding=lowering.padding,
        groups=lowering.groups,
        padding_mode=boundary,
        precision=wanted.precision,
        algorithm=wanted.algorithm,
    )


def _operands(backend: Backend, x: Array, kernel: Array, lowering: Lowering, flips: bool) -> tuple[Array, Array]:
    """Return the input and the filters of the layer."""
    xp = backend.xp
    if len(kernel.shape) < len(lowering.kernel_shape):
        kernel = xp.reshape(kernel, lowering.kernel_shape)
    if lowering.swapped:
        x, kernel = (kernel if flips else xp.flip(kernel, axis=lowering.axes)), x
    if lowering.plain:  # a new shape takes longer, and a small call as long as all else
        x, w = x[None, None, ...], kernel[None, None, ...]
    else:
        x = x[lowering.cuts] if lowering.cuts else x
        x = xp.reshape(_ordered(backend, x, lowering.x_axes), lowering.x_shape)
        w = xp.reshape(_ordered(backend, kernel, lowering.w_axes), lowering.w_shape)
    if flips or lowering.swapped:
        w = backend.in_a_row(backend.backwards(w, len(lowering.padding)))
    return x, w


def _ordered(backend: Backend, array: Array, axes: tuple[int, ...]) -> Array:
    """Put the axes of an array in order, if there is one."""
    return backend.xp.permute_dims(array, axes) if axes else array


def _alike(x: Array, kernel: Array) -> tuple[Backend, Array, Array]:
    """Check two arrays; return them in a common dtype where one is of integers and the other is not, as NumPy does."""
    both = {"x": x, "kernel": kernel}
    backend = arguments.owner("x", x, both)
    if arguments.owner("kernel", kernel, both) is backend:
        if x.dtype == kernel.dtype and backend.same_device(x, kernel):
            return backend, x, kernel
        common = _common(backend, x.dtype, kernel.dtype)
        if common is not None:
            x, kernel = (array if array.dtype == common else backend.astype(array, common) for array in (x, kernel))
    arguments.arrays(x=x, kernel=kernel)
    return backend, x, kernel


@remembered()
def _common(backend: Backend, *dtypes: Any) -> Any:
    """Return the common dtype of two if they are of two kinds, and a layer would not take them; else None."""
    names = [backend.dtype_name(dtype) for dtype in dtypes]
    if sum(KINDS.get(name) == "integral" for name in names) != 1 and "bool" not in names:
        return None
    try:
        return backend.xp.result_type(*dtypes)
    except TypeError:  # the standard does not say what integers and floating-point numbers become
        return backend.dtype(str(backends.get("numpy").xp.result_type(*names)))
