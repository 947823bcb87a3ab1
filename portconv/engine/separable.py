"""Convolutions along one axis after another, each with a kernel of its own, and what their error cannot exceed."""

from __future__ import annotations

from typing import Any

from ..backends import Array, ArrayT
from ..errors import ConvShapeError, ConvTypeError, ConvValueError
from ..spec import arguments, signals
from ..spec.dtypes import EPSILON
from ..spec.options import Ints
from . import call
from .signals import Layer, Wanted, computed


def stepped(x: ArrayT, steps: list[tuple[Any, Array]], wanted: Wanted) -> ArrayT:
    """Convolve along one axis after another."""
    for axis, kernel in steps:
        x = computed(call.convolve, kernel, wanted._replace(axes=axis), x)
    return x


def checked_steps(x: Array, kernels: Any, axes: Ints | None, name: str) -> list[tuple[int, Array]]:
    """Check a kernel for each axis; return the axes, each with its kernel."""
    arguments.owner("x", x, {"x": x})
    places = signals.axes_of(tuple(x.shape), axes, in_order=False)
    if not isinstance(kernels, (tuple, list)):
        raise ConvTypeError(f"{name}: got {type(kernels).__name__}, expected a list of arrays, one for each axis")
    if len(kernels) != len(places):
        raise ConvValueError(f"{name}: got {len(kernels)}, expected {len(places)}, one for each axis")
    for i, kernel in enumerate(kernels):
        arguments.owner(f"{name}[{i}]", kernel, {"x": x, f"{name}[{i}]": kernel})
        if len(kernel.shape) != 1 or kernel.shape[0] < 1:
            raise ConvShapeError(f"{name}[{i}]: got shape {tuple(kernel.shape)}, expected (taps,), at least one")
    return list(zip(places, kernels, strict=True))


def bound_of_steps(bounded: Layer, x: Array, steps: list[tuple[int, Array]], wanted: Wanted) -> Array:
    """Bound the error of one step after another by the bound of a layer: errors move on as numbers do, uncancelled."""
    backend, error = arguments.owner("x", x, {"x": x}), None
    beyond = "zeros" if wanted.boundary == "constant" else wanted.boundary  # a constant has no error
    for number, (axis, kernel) in enumerate(steps):
        if number:
            x = stepped(x, steps[number - 1 : number], wanted)
        step = wanted._replace(axes=axis)
        own = computed(bounded, kernel, step, x)
        if error is not None:
            step = step._replace(boundary=beyond, padding_value=0)
            moved = computed(call.convolve, backend.xp.abs(kernel), step, error)
            eps = EPSILON.get(backend.dtype_name(moved.dtype))  # integers have none, and no error
            own = own + (moved if eps is None else moved * (1 + 2 * (kernel.shape[0] + 2) * eps))
        error = own
    return error
