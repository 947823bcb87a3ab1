"""Which results are nan or infinite, by exact counts of the terms that are.

A product is nan where either factor is, or where one is infinite and the other zero; it is infinite where one factor is
and neither is nan or zero. A sum is nan where a term is, or where infinities of both signs are, and else infinite where
a term is. Each count is a convolution of indicators: ones, zeros and signs. Padding is zeros, but indicators are padded
with 0 too, as if there were nothing. So terms with a zero of the padded operand are counted as all terms less the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..backends import Array, Backend
from ..spec.ranges import Index

COUNTED = (
    ("nan", "one"),
    ("infinite", "zero"),
    ("nonzero", "infinite"),
    ("sign", "sign"),
    ("finite sign", "finite sign"),
    ("nonzero number", "nonzero number"),
    ("finite size", "finite size"),
    ("one", "bad"),
)
"""The pairs of indicators whose products are counted: of the padded operand, and of the other."""


class Counts:
    """Counts for each element of a part of a result: terms that are nan, terms that are infinite, and their signs."""

    def __init__(self, nans: Array, infinite: Array, signs: Array) -> None:
        self.nans, self.infinite, self.signs = nans, infinite, signs

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.nans + other.nans, self.infinite + other.infinite, self.signs + other.signs)

    def at(self, index: Index) -> Counts:
        """Return the counts of some elements."""
        return Counts(self.nans[index], self.infinite[index], self.signs[index])

    def signed(self, sign: int) -> Counts:
        """Return the counts of the terms times 1 or -1."""
        return Counts(self.nans, self.infinite, self.signs * sign)

    def put(self, backend: Backend, value: Array) -> Array:
        """Put nans and infinities into `value` where they belong; each nan is the one that the library makes."""
        xp, device = backend.xp, backend.device_of(value)
        positive, negative = self.infinite + self.signs > 0, self.infinite - self.signs > 0
        nan, inf = (backend.asarray(number, value.dtype, device) for number in (float("nan"), float("inf")))
        value = xp.where(positive, inf, xp.where(negative, -inf, value))
        return xp.where((self.nans > 0) | (positive & negative), nan, value)


def indicators(backend: Backend, part: Array, least: float, names: Sequence[str]) -> list[Array]:
    """Return the indicators of these names, float64: 1, 0 or -1 as each element is a nan, infinite, zero and so on.

    What is smaller than `least` counts as zero.
    """
    xp, double = backend.xp, backend.dtype("float64")
    wide = backend.astype(part, double)
    normal = xp.abs(wide) >= least
    nan, infinite = xp.isnan(wide), xp.isinf(wide)
    zero = ~(nan | normal)
    zeros = xp.zeros_like(wide)
    sign = xp.where(normal, xp.sign(xp.where(nan, zeros, wide)), zeros)
    by_name = {
        "one": xp.ones_like(wide),
        "nan": backend.astype(nan, double),
        "infinite": backend.astype(infinite, double),
        "zero": backend.astype(zero, double),
        "nonzero": backend.astype(~zero, double),
        "bad": backend.astype(nan | infinite, double),
        "sign": sign,
        "finite sign": xp.where(infinite, zeros, sign),
        "nonzero number": xp.abs(sign),
        "finite size": xp.where(infinite, zeros, xp.abs(sign)),
    }
    return [by_name[name] for name in names]


def counts_of(sums: list[Array], bad_of_all: Array | None) -> Counts:
    """Make counts of the sums of the products of `COUNTED`, in that order.

    `bad_of_all` takes the place of the last sum where terms with padding must be counted as well.
    """
    nans, infinite_by_zero, nonzero_by_infinite, signs, finite_signs, numbers, finite = sums[:7]
    # An infinity or a nan of the operand without padding makes a nan with all but what is not zero.
    bad = sums[7] if bad_of_all is None else bad_of_all
    return Counts(nans + infinite_by_zero + (bad - nonzero_by_infinite), numbers - finite, signs - finite_signs)
