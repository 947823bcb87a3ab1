"""Sum up the errors of an array: the largest and where it is, how many there are of each size, and a map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..spec.dtypes import DIGITS, EPSILON, LEAST_NORMAL, real
from .bounds import Doubles, wide
from .cases import Case, host_dtype

Host = NDArray[np.inexact[Any]]
Number = float | complex

EDGES = (0.0, *(2.0**-n for n in range(12, -1, -1)))
"""Elements are counted by error, in units of the bound: those with equal bits, of which 0 is the edge, then those up
to each of the other numbers, and those beyond the last."""
MOST_CELLS = 48
"""The largest number of cells along a side of a map."""


@dataclass(frozen=True)
class Plane:
    """The errors over two axes of an array, in the plane of its worst element, in units of the bound.

    Attributes
    ----------
    values : array
        The largest error of each block of elements.
    index : str
        The index of the plane, with a colon for each of its axes.
    rows, columns : str
        The names of the axes.
    size : (int, int)
        The number of elements along each axis.
    cell : (int, int)
        The index in `values` of the worst element.
    """

    values: Doubles
    index: str
    rows: str
    columns: str
    size: tuple[int, int]
    cell: tuple[int, int]


@dataclass(frozen=True)
class Figures:
    """The figures that sum up an array of errors.

    Attributes
    ----------
    units : float
        The largest error in units of the bound; of complex numbers, that of the absolute value of the difference.
    epsilons : float
        The largest error in epsilons of the dtype times the largest exact value of the array.
    elements, equal : int
        How many elements there are, and how many have equal bits.
    counts : tuple of int
        How many elements there are of each error: see `EDGES`.
    where : tuple of int, optional
        The index of the largest error in units of the bound, if there is any error.
    got, expected : float, optional
        The values at that index.
    ulps : float, optional
        The error at that index in units in the last place of the exact value there; None if that value is 0, or the
        error is not finite.
    plane : Plane, optional
    """

    units: float
    epsilons: float
    elements: int
    equal: int
    counts: tuple[int, ...]
    where: tuple[int, ...] | None = None
    got: Number | None = None
    expected: Number | None = None
    ulps: float | None = None
    plane: Plane | None = None


def figures(got: Host, expected: Host, bound: Doubles | None, true: Host, case: Case, quantity: str) -> Figures:
    """Compare two arrays; if `bound` is None, only equal bits are allowed. `true` has the exact values."""
    with np.errstate(invalid="ignore"):
        one, other = _clipped(got, case.dtype), _clipped(expected, case.dtype)
        # Two nans are alike, and two infinities of one sign.
        alike = (one == other) | (np.isnan(one) & np.isnan(other))
        error = np.where(alike, 0.0, np.abs(one - other))
    with np.errstate(over="ignore"):
        same = np.all(_bits(got, got.dtype) == _bits(expected, host_dtype(case.dtype)), axis=-1)
    if bound is None:
        error = np.where(same, 0.0, error)
    ratio = _ratio(error, bound) if bound is not None else np.where(same, 0.0, np.inf)
    sizes = np.abs(_clipped(true, case.dtype))
    size = np.max(sizes, initial=0.0, where=np.isfinite(sizes))
    units = float(np.max(ratio, initial=0.0))
    where = _worst(ratio, error) if units > 0 else None
    return Figures(
        units,
        float(np.max(_ratio(error, EPSILON[real(case.dtype)] * size), initial=0.0)),
        got.size,
        int(np.count_nonzero(same)),
        _counts(ratio, same),
        where,
        None if where is None else wide(got)[where].item(),
        None if where is None else wide(expected)[where].item(),
        None if where is None else _in_ulps(float(error[where]), true[where], case.dtype),
        None if where is None else _plane(ratio, where, case, quantity),
    )


def _in_ulps(error: float, true: Any, dtype: str) -> float | None:
    """Return an error in units in the last place of the exact value; None if that is 0, or the error is not finite."""
    return None if true == 0 or not math.isfinite(error) else error / float(_ulps(np.abs(true), dtype))


def _counts(ratio: Doubles, same: NDArray[np.bool_]) -> tuple[int, ...]:
    """Count the elements with equal bits, and the others by their errors in units of the bound: see `EDGES`."""
    places = np.where(same, 0, np.maximum(np.searchsorted(EDGES, ratio), 1))
    return tuple(int(count) for count in np.bincount(places.reshape(-1), minlength=len(EDGES) + 1))


def _worst(ratio: Doubles, error: Doubles) -> tuple[int, ...]:
    """Return the index of the largest ratio; among equal ones, of the largest error, where a nan is the largest."""
    large = np.where(ratio == np.max(ratio), np.nan_to_num(error, nan=np.inf), -1.0)
    return tuple(int(i) for i in np.unravel_index(np.argmax(large), large.shape))


def written(value: Number, dtype: str) -> str:
    """Write a value with enough digits to tell it from its neighbours in `dtype`."""
    # Matula, "In-and-out conversions" (Communications of the ACM 11, 1968): 10**(n - 1) must be more than 2**bits.
    digits = math.ceil(1 + DIGITS[real(dtype)] * math.log10(2))
    if isinstance(value, complex):
        return f"{value.real:.{digits}g}{value.imag:+.{digits}g}j"
    return f"{value:.{digits}g}"


def _clipped(array: Host, dtype: str) -> Host:
    """Return the numbers in float64 or complex128, those of float16 cut to the power of two above its largest number.

    A number too large for float16 is infinite there. Both the result and the exact value are cut to 2**16, so the
    error is within the bound, which does not know of the overflow.
    """
    return np.clip(wide(array), -(2.0**16), 2.0**16) if dtype == "float16" else wide(array)


def _ulps(sizes: Doubles, dtype: str) -> Doubles:
    """Return the unit in the last place of each magnitude, also of subnormal ones; `numpy.spacing` has no bfloat16."""
    name = real(dtype)
    # The power that frexp returns is the first one above the number.
    return np.asarray(np.ldexp(1.0, np.maximum(np.frexp(sizes)[1], LEAST_NORMAL[name] + 1) - DIGITS[name]), np.float64)


def _bits(array: Host, dtype: np.dtype[Any]) -> NDArray[np.unsignedinteger[Any]]:
    """Return the bits of numbers rounded to a dtype, with one more axis for their real and imaginary parts."""
    whole = np.ascontiguousarray(array.astype(dtype, copy=False))[..., np.newaxis]
    return whole.view(f"u{dtype.itemsize // (2 if dtype.kind == 'c' else 1)}")


def _ratio(error: Doubles, unit: Doubles | np.float64) -> Doubles:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0.0, error / unit)
    # The ratio is infinite for a nan, and for any error where none is allowed.
    return np.where(np.isnan(ratio), np.inf, ratio)


def _plane(ratio: Doubles, where: tuple[int, ...], case: Case, quantity: str) -> Plane:
    """Map the errors in the plane of the worst element; a cell has the largest error of a block of elements."""
    names = _axes(case, quantity)
    spatial = [axis for axis, name in enumerate(names) if name not in ("sample", "channel", "filter")]
    # The last two spatial axes if both are longer than 1, else the two longest axes, such as channels and filters.
    shown = [axis for axis in spatial[-2:] if quantity in ("out", "dx") and ratio.shape[axis] > 1]
    if len(shown) < 2:
        shown = sorted(sorted(range(ratio.ndim), key=lambda axis: ratio.shape[axis])[-2:])
    values = np.atleast_2d(ratio[tuple(slice(None) if axis in shown else i for axis, i in enumerate(where))])
    rows, columns = ("", *(names[axis] for axis in shown))[-2:]
    index = ", ".join(":" if axis in shown else str(i) for axis, i in enumerate(where))
    height, width = values.shape
    block_height, block_width = (-(-length // MOST_CELLS) for length in values.shape)
    pooled = np.maximum.reduceat(values, np.arange(0, height, block_height), axis=0)
    pooled = np.maximum.reduceat(pooled, np.arange(0, width, block_width), axis=1)
    row, column = (0, *(where[axis] for axis in shown))[-2:]
    cell = row // block_height, column // block_width
    return Plane(pooled, f"[{index}]", rows, columns, (height, width), cell)


def _axes(case: Case, quantity: str) -> list[str]:
    """Name the axes of a quantity."""
    if quantity == "db":
        return ["filter"]
    dims = len(case.w_shape) - 2
    cells = {1: ["cell"], 2: ["row", "column"], 3: ["slice", "row", "column"]}.get(dims)
    cells = cells or [f"dimension {dim}" for dim in range(dims)]
    if quantity == "dw":
        return ["filter", "channel", *cells]
    channel = "filter" if quantity == "out" else "channel"
    batch = ["sample"] if len(case.x_shape) == dims + 2 else []
    return [*batch, *cells, channel] if case.data_format == "channels_last" else [*batch, channel, *cells]
