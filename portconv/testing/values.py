"""Compare the values of two arrays of one shape and dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .structures import Doubles, Host


@dataclass(frozen=True)
class Comparison:
    """One part of a function's results: compared between two targets, or wrong in itself on one target.

    Attributes
    ----------
    one, other : str
        The `id` of each target; `other` is None where the result of `one` is wrong in itself.
    case, part : str
        `part` is empty where the function returns one array, and else the part's place, such as ".dx" or "[0]".
    units : float
        The largest error, in units of the tolerance; where equal bits are asked for, infinite or 0.
    ulps : float
        The largest error, in units in the last place of the larger of the two numbers.
    elements, equal : int
        How many elements there are, and how many have equal bits.
    problem : str, optional
        What does not hold.
    """

    one: str
    other: str | None
    case: str
    part: str
    units: float
    ulps: float
    elements: int
    equal: int
    problem: str | None = None

    @property
    def held(self) -> bool:
        return self.problem is None

    def __str__(self) -> str:
        names = self.one if self.other is None else f"{self.one} and {self.other}"
        return f"{names}: case {self.case}{self.part and f', result{self.part}'}: {self.problem or 'consistent'}"


def compare_values(pair: tuple[str, str, str], part: str, one: Host, other: Host, reach: Doubles | None) -> Comparison:
    """Compare two arrays of one shape and dtype: by bits if `reach` is None, else by how far apart they may be."""
    same = _same_bits(one, other)
    error = _error(one, other)
    units = np.where(same, 0.0, np.inf) if reach is None else _ratio(error, reach)
    ulps = _ratio(error, _ulp(one, other))
    wrong = ~same if reach is None else units > 1
    most_units, most_ulps = float(np.max(units, initial=0.0)), float(np.max(ulps, initial=0.0))
    comparison = Comparison(*pair, part, most_units, most_ulps, one.size, int(np.sum(same)))
    if not np.any(wrong):
        return comparison
    # The worst element is wrong, has the most units and, among those that have as many, the most ulps.
    worst = np.lexsort((np.ravel(ulps), np.ravel(units), np.ravel(wrong)))[-1]
    index = tuple(int(i) for i in np.unravel_index(worst, one.shape))
    if reach is None:
        error_in_words = f"{int(np.sum(wrong))} of {one.size} elements differ in bits, by up to {most_ulps:.3g} ulps"
        allowed = ""
    else:
        error_in_words = f"apart by up to {most_units:.3g} times the tolerance, {ulps[index]:.3g} ulps"
        allowed = f", which may be {reach[index]:.3g} apart"
    problem = f"{error_in_words}; at {list(index)} {one[index]} and {other[index]}{allowed}"
    return replace(comparison, problem=problem)


def _same_bits(one: Host, other: Host) -> NDArray[np.bool_]:
    size = one.dtype.itemsize
    bytes_of = (np.ascontiguousarray(a).view(np.uint8).reshape(*a.shape, size) for a in (one, other))
    return np.asarray(np.all(np.equal(*bytes_of), axis=-1))


def _error(one: Host, other: Host) -> Doubles:
    """Return the absolute error: 0 for equal numbers (infinities too), and for two nans."""
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(one.astype(wide) - other.astype(wide))
    if one.dtype.kind in "biu":
        error = np.maximum(error, one != other)  # float64 may not tell two large integers apart
    alike = (one == other) | ((one != one) & (other != other))
    return np.where(alike, 0.0, error)


def _ulp(one: Host, other: Host) -> Doubles:
    if one.dtype.kind in "biu":
        return np.ones(one.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.spacing(np.maximum(np.abs(one), np.abs(other)))).astype(np.float64)


def _ratio(error: Doubles, unit: Doubles) -> Doubles:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0.0, error / unit)
    # The ratio is infinite for a nan beside a number, and for any error where none is allowed.
    return np.where(np.isnan(ratio), np.inf, ratio)
