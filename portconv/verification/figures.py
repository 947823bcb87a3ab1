"""The errors of an array in few figures: the largest of them and where it is, how many are how large, and a map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..spec.dtypes import DIGITS, LEAST_NORMAL, real
from .bounds import Doubles, wide
from .cases import Case, host_dtype

Host = NDArray[np.inexact[Any]]
Number = float | complex

EDGES = (0.0, *(2.0**-n for n in range(12, -1, -1)))
"""Errors are counted by size, in units of the bound: none, up to each of these and beyond the last."""
MOST_CELLS = 48
"""Cells of a map along either side."""


@dataclass(frozen=True)
class Plane:
    """Errors in units of the bound over two axes of an array, through its worst element.

    Attributes
    ----------
    values : array
        The largest error of each block of elements.
    index : str
        Which plane it is.
    rows, columns : str
        What the axes are.
    size : (int, int)
        How many elements there are along each.
    cell : (int, int)
        Where among `values` the worst element is.
    """

    values: Doubles
    index: str
    rows: str
    columns: str
    size: tuple[int, int]
    cell: tuple[int, int]


@dataclass(frozen=True)
class Figures:
    """What there is to say of an array of errors.

    Attributes
    ----------
    units, ulps : float
        The largest, in units of the bound and in units in the last place; of complex numbers absolute values in those
        of absolute values.
    elements, equal : int
        How many elements there are, and how many have equal bits.
    counts : tuple of int
        How many errors there are of each size: see `EDGES`.
    where : tuple of int, optional
        The index of the largest one in units of the bound, if there is any error.
    got, expected : float, optional
        The values there.
    plane : Plane, optional
    """

    units: float
    ulps: float
    elements: int
    equal: int
    counts: tuple[int, ...]
    where: tuple[int, ...] | None = None
    got: Number | None = None
    expected: Number | None = None
    plane: Plane | None = None


def figures(found: Host, reference: Host, bound: Doubles | None, true: Host, case: Case, quantity: str) -> Figures:
    """Compare values with those they should have; without a `bound` equal bits are all that is allowed."""
    with np.errstate(invalid="ignore"):
        error = np.abs(_within(found, case.dtype) - _within(reference, case.dtype))
    ulp = _ulps(np.abs(true), case.dtype)
    ulp[true == 0] = np.inf  # which has no size to be far from, and is not 0 where spectra are multiplied
    with np.errstate(over="ignore"):
        same = np.all(_bits(found, found.dtype) == _bits(reference, host_dtype(case.dtype)), axis=-1)
    off = _ratio(error, ulp)
    ratio = _ratio(error, bound) if bound is not None else np.where(same, 0.0, np.inf)
    counts = np.bincount(np.searchsorted(EDGES, ratio.reshape(-1)), minlength=len(EDGES) + 1)
    units = float(np.max(ratio, initial=0.0))
    where: tuple[int, ...] | None = None
    if units > 0:
        # Of several that are beyond measure, the largest; a nan is larger than all.
        large = np.where(ratio == units, np.nan_to_num(error, nan=np.inf), -1.0)
        where = tuple(int(i) for i in np.unravel_index(np.argmax(large), large.shape))
    return Figures(
        units,
        float(np.max(off if bound is not None else np.where(same, 0.0, off), initial=0.0)),
        found.size,
        int(np.count_nonzero(same)),
        tuple(int(count) for count in counts),
        where,
        None if where is None else wide(found)[where].item(),
        None if where is None else wide(reference)[where].item(),
        None if where is None else _plane(ratio, where, case, quantity),
    )


def written(value: Number, dtype: str) -> str:
    """Write a value with as many digits as tell it from its neighbours in `dtype`."""
    # Matula, "In-and-out conversions" (Communications of the ACM 11, 1968): 10**(n - 1) must be more than 2**bits.
    digits = math.ceil(1 + DIGITS[real(dtype)] * math.log10(2))
    if isinstance(value, complex):
        return f"{value.real:.{digits}g}{value.imag:+.{digits}g}j"
    return f"{value:.{digits}g}"


def _within(array: Host, dtype: str) -> Host:
    """The numbers in float64, or complex128, to be compared.

    What is too large for float16 is infinite there, which is as if it were the next power of two: as the exact value is
    cut to that too, rounding is off by no more than the bound that takes no notice of it.
    """
    return np.clip(wide(array), -(2.0**16), 2.0**16) if dtype == "float16" else wide(array)


def _ulps(sizes: Doubles, dtype: str) -> Doubles:
    """Units in the last place of magnitudes, subnormal ones too; NumPy's `spacing` knows no bfloat16."""
    own = real(dtype)
    # frexp's powers are those above a number's first digit.
    return np.asarray(np.ldexp(1.0, np.maximum(np.frexp(sizes)[1], LEAST_NORMAL[own] + 1) - DIGITS[own]), np.float64)


def _bits(array: Host, dtype: np.dtype[Any]) -> NDArray[np.unsignedinteger[Any]]:
    """The bits of numbers rounded to a dtype, with an axis more, of their parts."""
    whole = np.ascontiguousarray(array.astype(dtype, copy=False))[..., np.newaxis]
    return whole.view(f"u{dtype.itemsize // (2 if dtype.kind == 'c' else 1)}")


def _ratio(error: Doubles, unit: Doubles) -> Doubles:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0.0, error / unit)
    # A nan, and any error where none is allowed, is beyond measure.
    return np.where(np.isnan(ratio), np.inf, ratio)


def _plane(ratio: Doubles, where: tuple[int, ...], case: Case, quantity: str) -> Plane:
    names = _axes(case, quantity)
    inside = [axis for axis, name in enumerate(names) if name not in ("sample", "channel", "filter")]
    # A picture where there is one; else the two axes with the most to see, such as the channels and filters of 1x1.
    shown = [axis for axis in inside[-2:] if quantity in ("out", "dx") and ratio.shape[axis] > 1]
    if len(shown) < 2:
        shown = sorted(sorted(range(ratio.ndim), key=lambda axis: ratio.shape[axis])[-2:])
    cut = tuple(slice(None) if axis in shown else i for axis, i in enumerate(where))
    values = np.atleast_2d(ratio[cut])
    rows, columns = ("", *(names[axis] for axis in shown))[-2:]
    told = ", ".join(":" if axis in shown else str(i) for axis, i in enumerate(where))
    height, width = values.shape
    # The largest of neighbours, as many as it takes to have few.
    down, across = (-(-length // MOST_CELLS) for length in values.shape)
    pooled = np.maximum.reduceat(values, np.arange(0, height, down), axis=0)
    pooled = np.maximum.reduceat(pooled, np.arange(0, width, across), axis=1)
    row, column = (0, *(where[axis] for axis in shown))[-2:]
    return Plane(pooled, f"[{told}]", rows, columns, (height, width), (row // down, column // across))


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
