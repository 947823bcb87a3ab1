"""What nans and infinities make of sums, counted exactly: which results hold a nan or an infinity.

A product is nan where either factor is, or where one is infinite and the other zero; infinite where one is and neither
is zero; a sum is nan where a term is or infinities of both signs are, and else infinite where a term is. Each count is
a convolution of ones and zeros. Padding counts as zeros: of the operand that has any, the padded one, what is zero is
counted as all that is not otherwise.
"""

from __future__ import annotations

from typing import Any

from ..backends import Array, Backend
from ..spec.dtypes import LEAST_NORMAL

SLOTS = (
    ("nan", "one"),
    ("infinite", "zero"),
    ("nonzero", "infinite"),
    ("sign", "sign"),
    ("finite sign", "finite sign"),
    ("nonzero number", "nonzero number"),
    ("finite size", "finite size"),
    ("one", "bad"),
)
"""What is counted: of the padded operand, and of the other."""


class Counts:
    """Terms of each element of one part of a result: those that are nan, those that are infinite, and their signs."""

    def __init__(self, nans: Array, infinite: Array, signs: Array) -> None:
        self.nans, self.infinite, self.signs = nans, infinite, signs

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.nans + other.nans, self.infinite + other.infinite, self.signs + other.signs)

    def at(self, index: tuple[Any, ...]) -> Counts:
        """Those of some elements."""
        return Counts(self.nans[index], self.infinite[index], self.signs[index])

    def signed(self, sign: int) -> Counts:
        """The same of the terms times 1 or -1."""
        return Counts(self.nans, self.infinite, self.signs * sign)

    def put(self, backend: Backend, value: Array) -> Array:
        """Put nans and infinities where they belong; a nan is the one that the library makes."""
        xp, device = backend.xp, backend.device_of(value)
        above, below = self.infinite + self.signs > 0, self.infinite - self.signs > 0
        nan, inf = (backend.asarray(number, value.dtype, device) for number in (float("nan"), float("inf")))
        value = xp.where(above, inf, xp.where(below, -inf, value))
        return xp.where((self.nans > 0) | (above & below), nan, value)


def indicators(backend: Backend, part: Array, real: str, names: list[str]) -> list[Array]:
    """Ones, zeros and signs in float64 that tell what kind of number each element is."""
    xp, double = backend.xp, backend.dtype("float64")
    wide = backend.astype(part, double)
    # Subnormal numbers count as zeros.
    normal = xp.abs(wide) >= 2.0 ** LEAST_NORMAL[real]
    nan, infinite = xp.isnan(wide), xp.isinf(wide)
    zero = ~(nan | normal)
    nothing = xp.zeros_like(wide)
    sign = xp.where(normal, xp.sign(xp.where(nan, nothing, wide)), nothing)
    kinds = {
        "one": xp.ones_like(wide),
        "nan": backend.astype(nan, double),
        "infinite": backend.astype(infinite, double),
        "zero": backend.astype(zero, double),
        "nonzero": backend.astype(~zero, double),
        "bad": backend.astype(nan | infinite, double),
        "sign": sign,
        "finite sign": xp.where(infinite, nothing, sign),
        "nonzero number": xp.abs(sign),
        "finite size": xp.where(infinite, nothing, xp.abs(sign)),
    }
    return [kinds[name] for name in names]


def counted(counts: list[Array], every: Array | None) -> Counts:
    """Make counts of convolutions, in the order of `SLOTS`; `every` is the last where padding counts as well."""
    nans, infinite_zero, met, signs, finite_signs, numbers, finite = counts[:7]
    bad = counts[7] if every is None else every
    return Counts(nans + infinite_zero + (bad - met), numbers - finite, signs - finite_signs)
