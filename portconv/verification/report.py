"""Sum up many comparisons in few rows."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .cases import QUANTITIES
from .comparison import Comparison
from .figures import EDGES, Number
from .variants import Variant

SUBJECT = (
    "portconv's results on the arrays of each library, compared with exact values and between libraries. The "
    "libraries' own convolutions run where the algorithm is native, or auto chooses it."
)
"""What is compared, in the first lines of a report."""
LEGEND = (
    "error/bound: the largest error, where 1 is the most that rounding can explain. The worst case is the one that "
    "has it.",
    "epsilons: the largest error over the largest exact value of its array, in units of the dtype's epsilon (2**-23 in "
    "float32, 2**-52 in float64).",
)
"""What the figures of a report are."""


@dataclass(frozen=True)
class Row:
    """Comparisons of one kind: how many there are, and the worst of them.

    Attributes
    ----------
    backend, other, dtype, quantity, precision, algorithm : str
        What the comparisons have in common; `other`, `quantity` and `algorithm` are None where they differ.
    count, failed, lost : int
        How many results were compared, how many of them are out of bounds, and how many more there was no result of.
    units, epsilons : float
        The largest error in units of the bound, and the largest one in epsilons of the array's largest value; nan if
        nothing could be compared.
    equal : float
        The share of elements with equal bits; nan if there are no elements.
    unequal : int
        How many elements have different bits.
    worst, worst_quantity, where, got, expected, ulps
        The case and the quantity with the largest error in units of the bound, and what `Comparison` says of its worst
        element; None if there is no error.
    counts : tuple of int
        How many elements there are of each error: see `figures.EDGES`.
    equal_in : dict of str to float
        By quantity, the share of elements with equal bits.
    """

    backend: str
    other: str | None
    dtype: str
    quantity: str | None
    count: int
    failed: int
    lost: int
    units: float
    epsilons: float
    equal: float
    worst: str | None
    precision: str
    algorithm: str | None
    unequal: int
    worst_quantity: str | None
    where: tuple[int, ...] | None
    got: Number | None
    expected: Number | None
    ulps: float | None
    counts: tuple[int, ...]
    equal_in: dict[str, float]


@dataclass(frozen=True)
class Problem:
    """One reason for which a variant had no results to compare, such as an exception.

    Attributes
    ----------
    backend : str
        The label of the variant.
    message : str
        The reason, as the first case has it; that of others may have other numbers in it.
    cases : int
        The number of cases, each in one dtype and precision, of which some results are lost.
    first : str
        The first of them.
    """

    backend: str
    message: str
    cases: int
    first: str

    def __str__(self) -> str:
        first = f"the first is {self.first}" if self.cases > 1 else self.first
        return f"{self.backend}, {counted(self.cases, 'case')} ({first}): {self.message}"


@dataclass(frozen=True)
class Digest:
    """One hash of all results of a variant in a dtype and a precision: it is equal if all bits are equal."""

    backend: str
    dtype: str
    precision: str
    algorithm: str | None
    sha256: str

    def __str__(self) -> str:
        by = f" by {self.algorithm}" if self.algorithm else ""
        return f"digest of {self.backend}, {self.precision} {self.dtype}{by}: {self.sha256}"


@dataclass
class Report:
    """What was compared and what was not.

    Attributes
    ----------
    comparisons : list of Comparison
        They have no planes; `worst` keeps the planes of two.
    skipped : list of (str, str)
        The backends that were left out, or one of whose dtypes was, each with the reason.
    left_out : dict of str to int
        What else was left out, and how many.
    variants : list of Variant
        The variants that were run, if they are more than backends with their defaults.
    by_algorithm : bool
        Whether algorithms were asked for by name; then each has its own rows.
    expected : tuple of str
        The expected digests, if any.
    worst : dict of bool to Comparison
        The worst comparison that has a plane: True for those between variants, False for those with the exact values.
    smallest : list of str
        The smallest calls that show some of the failures, and code that repeats them.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    variants: list[Variant] = field(default_factory=list)
    by_algorithm: bool = False
    expected: tuple[str, ...] = ()
    worst: dict[bool, Comparison] = field(default_factory=dict)
    smallest: list[str] = field(default_factory=list)

    def take(self, comparisons: Iterable[Comparison]) -> None:
        """Add comparisons, and keep only the planes of the worst ones."""
        for comparison in comparisons:
            kind = comparison.other is not None
            worst = self.worst.get(kind)
            if comparison.plane is not None and (worst is None or _badness(comparison) > _badness(worst)):
                self.worst[kind] = comparison
            self.comparisons.append(replace(comparison, plane=None))

    def leave_out(self, what: str) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + 1

    @property
    def compared(self) -> list[Comparison]:
        """The comparisons that had something to compare."""
        return [comparison for comparison in self.comparisons if comparison.problem is None]

    @property
    def failures(self) -> list[Comparison]:
        """The comparisons that are out of bounds."""
        return [comparison for comparison in self.compared if not comparison.held]

    @property
    def problems(self) -> list[Problem]:
        """Why there was nothing to compare, each reason once for each variant."""
        kinds: dict[tuple[str, str], list[Comparison]] = {}
        for comparison in self.comparisons:
            if comparison.problem is not None:
                kind = re.sub(r"\d[\d, ]*", "#", comparison.problem)
                kinds.setdefault((comparison.backend, kind), []).append(comparison)
        return [
            Problem(first.backend, first.problem or "", len({*map(_case, (first, *others))}), _case(first))
            for first, *others in kinds.values()
        ]

    @property
    def ran(self) -> list[str]:
        """The labels of the variants that were compared, in order."""
        return list(dict.fromkeys(comparison.backend for comparison in self.comparisons if comparison.other is None))

    @property
    def backends(self) -> list[str]:
        """The backends that were compared, in order."""
        names = {variant.label: variant.backend.name for variant in self.variants}
        return list(dict.fromkeys(names.get(label, label) for label in self.ran))

    @property
    def unexpected(self) -> list[Digest]:
        """The digests that are not among the expected ones."""
        return [digest for digest in self.digests() if self.expected and digest.sha256 not in self.expected]

    @property
    def held(self) -> bool:
        """Whether everything could be compared, is within its bounds, and has the expected digests."""
        all_held = all(comparison.held for comparison in self.comparisons)
        return bool(self.comparisons) and all_held and not self.unexpected

    def against_truth(self) -> list[Row]:
        """Return a row for each variant, dtype, precision, algorithm and quantity."""
        kinds: dict[tuple[Any, ...], list[Comparison]] = {}
        for comparison in self.comparisons:
            if comparison.other is None:
                kind = (comparison.backend, *self._common(comparison), QUANTITIES.index(comparison.quantity))
                kinds.setdefault(kind, []).append(comparison)
        return [self._row(kinds[kind], QUANTITIES[kind[-1]]) for kind in sorted(kinds)]

    def pairs(self) -> list[Row]:
        """Return a row for each pair of variants, dtype, precision and algorithm."""
        kinds: dict[tuple[Any, ...], list[Comparison]] = {}
        for comparison in self.comparisons:
            if comparison.other is not None:
                kinds.setdefault((comparison.backend, comparison.other, *self._common(comparison)), []).append(
                    comparison
                )
        return [self._row(kinds[kind], None) for kind in sorted(kinds)]

    def digests(self) -> list[Digest]:
        """Return a digest of the results of each variant that has all of them, by dtype, precision and algorithm.

        Variants in halves have only some.
        """
        halves = {variant.label for variant in self.variants if variant.halves}
        partial = {(one.backend, *self._common(one)) for one in self.comparisons if one.problem is not None}
        hashes: dict[tuple[Any, ...], Any] = {}
        for comparison in self.comparisons:
            if comparison.other is None and comparison.backend not in halves:
                digest = hashes.setdefault((comparison.backend, *self._common(comparison)), hashlib.sha256())
                digest.update(f"{comparison.case} {comparison.quantity} {comparison.sha256}\n".encode())
        return [
            Digest(backend, dtype, precision, algorithm or None, digest.hexdigest())
            for (backend, dtype, precision, algorithm), digest in sorted(hashes.items(), key=lambda item: item[0])
            if (backend, dtype, precision, algorithm) not in partial
        ]

    @property
    def firsts(self) -> list[Variant]:
        """The first variant of each backend and device, with which the others there are compared."""
        return list({variant.place: variant for variant in reversed(self.variants)}.values())[::-1]

    def main_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Choose the rows of the first variants, and all rows that did not hold."""
        firsts = {first.label for first in self.firsts}
        return [row for row in rows if row.backend in firsts or row.failed or row.lost or not firsts]

    def in_bits(self) -> list[str]:
        """Say which reproducible results have equal bits, one per line."""
        lines = []
        rows = [row for row in self.pairs() if row.precision == "reproducible"]
        if rows:
            alike = sum(row.unequal == 0 and not row.failed for row in rows)
            lines.append(f"reproducible: bits equal, forward and all gradients, in {alike} of {len(rows)} pairs")
        kinds: dict[tuple[str, str], dict[str, list[str]]] = {}
        for digest in self.digests():
            if digest.precision == "reproducible":
                by = f" by {digest.algorithm}" if digest.algorithm else ""
                kinds.setdefault((digest.dtype, by), {}).setdefault(digest.sha256, []).append(digest.backend)
        for (dtype, by), labels in kinds.items():
            for sha256, who in labels.items():
                which = f"{'all ' * (len(who) > 1)}{counted(len(who), 'run')} of the whole batch"
                lines.append(f"digest {dtype}{by} {sha256}: {', '.join(who) if len(labels) > 1 else which}")
        return lines

    def summary(self) -> str:
        """Sum up the report in one line."""
        if not self.comparisons:
            return "nothing was compared"
        counts = f"{counted(len(self.compared), 'comparison')} on {counted(len(self.backends), 'backend')}"
        if len(self.ran) > len(self.backends):
            counts = f"{counts} in {len(self.ran)} runs"
        verdicts = [f"{len(self.failures)} out of bounds" if self.failures else "all within bounds"]
        if not self.compared:
            verdicts = []
        if lost := {(one.backend, _case(one), one.algorithm) for one in self.comparisons if one.problem is not None}:
            verdicts.append(f"{counted(len(lost), 'case')} without a result")
        if self.unexpected:
            verdicts.append(f"{counted(len(self.unexpected), 'digest')} not as expected")
        return f"{counts}: {', '.join(verdicts)}"

    def as_json(self) -> dict[str, Any]:
        """Return everything in JSON's types: None for a figure that is not finite, a list for a complex number."""
        return {
            "compares": SUBJECT,
            "held": self.held,
            "comparisons": len(self.compared),
            "out_of_bounds": len(self.failures),
            "problems": [{**_plain(problem), "text": str(problem)} for problem in self.problems],
            "backends": self.backends,
            "variants": [
                {
                    "label": variant.label,
                    "backend": variant.backend.name,
                    "device": variant.device_name or None,
                    "threads": variant.threads,
                    "halves": variant.halves,
                }
                for variant in self.variants
            ],
            "skipped": [{"backend": name, "reason": reason} for name, reason in self.skipped],
            "left_out": [{"what": what, "count": count} for what, count in self.left_out.items()],
            "against_truth": [_plain(row) for row in self.against_truth()],
            "pairs": [_plain(row) for row in self.pairs()],
            "digests": [_plain(digest) for digest in self.digests()],
            "expected_digests": list(self.expected),
            "smallest": self.smallest,
            "failures": [{**_plain(comparison), "message": str(comparison)} for comparison in self.failures],
            "error_sizes": list(EDGES),
            "results": [_plain(comparison) for comparison in self.comparisons],
        }

    def _common(self, comparison: Comparison) -> tuple[str, str, str]:
        """What the comparisons of a row have in common, beside their variants."""
        return comparison.dtype, comparison.precision, comparison.algorithm if self.by_algorithm else ""

    def _row(self, members: Sequence[Comparison], quantity: str | None) -> Row:
        first = members[0]
        compared = [member for member in members if member.problem is None]
        worst = max(compared or members, key=_badness)
        quantities = dict.fromkeys(member.quantity for member in members)
        return Row(
            first.backend,
            first.other,
            first.dtype,
            quantity,
            count=len(compared),
            failed=sum(not member.held for member in compared),
            lost=len(members) - len(compared),
            units=worst.units if compared else math.nan,
            epsilons=max((member.epsilons for member in compared), default=math.nan),
            equal=_equal(members),
            worst=worst.case if worst.units else None,
            precision=first.precision,
            algorithm=first.algorithm if self.by_algorithm else None,
            unequal=sum(member.elements - member.equal for member in members),
            worst_quantity=worst.quantity if worst.units else None,
            where=worst.where,
            got=worst.got,
            expected=worst.expected,
            ulps=worst.ulps,
            counts=tuple(map(sum, zip(*(member.counts for member in members if member.counts), strict=True))),
            equal_in={name: _equal([member for member in members if member.quantity == name]) for name in quantities},
        )


def _badness(comparison: Comparison) -> tuple[float, float]:
    """The key that finds the worst of several comparisons: by epsilons where the units are all infinite."""
    return comparison.units, comparison.epsilons


def _case(comparison: Comparison) -> str:
    """Name the case, the dtype and, unless it is standard, the precision of a comparison."""
    precision = "" if comparison.precision == "standard" else f", {comparison.precision}"
    return f"{comparison.case} {comparison.dtype}{precision}"


def _equal(members: Sequence[Comparison]) -> float:
    elements = sum(member.elements for member in members)
    return sum(member.equal for member in members) / elements if elements else math.nan


def _plain(record: Row | Comparison | Digest | Problem) -> dict[str, Any]:
    return {name: _value(value) for name, value in vars(record).items() if name != "plane"}


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _value(member) for name, member in value.items()}
    if isinstance(value, complex):
        return [_value(value.real), _value(value.imag)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def grouped(title: str, rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Group rows by precision and algorithm; if there are several groups, their titles name both."""
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.precision, row.algorithm), []).append(row)
    if len(groups) == 1:
        return [(title, list(rows))]
    return [
        (f"{title}, {precision}{f', {algorithm}' if algorithm else ''}", members)
        for (precision, algorithm), members in groups.items()
    ]


def figure(number: float, places: int) -> str:
    """Write a figure with so many decimal places, or as a power of ten if it is below 10**-places or above 1000.

    A nan, which stands for no figure, is written as nothing.
    """
    if math.isnan(number):
        return ""
    if number == 0 or 10.0**-places <= number < 1000:
        return f"{number:.{places}f}"
    return f"{number:.0e}".replace("e+0", "e+").replace("e-0", "e-")


def both(row: Row) -> str:
    """Name the two variants of a pair; if both have one backend, only the brackets of the second are written."""
    backend, _, details = (row.other or "").partition(" (")
    return f"{row.backend}, {f'({details}' if details and row.backend.partition(' (')[0] == backend else row.other}"


def share(equal: float) -> str:
    """Write a share in per cent, rounded down; 0 and 1 as "none" and "all", and a nan, of no elements, as nothing."""
    if math.isnan(equal):
        return ""
    if equal in (0, 1):
        return "all" if equal else "none"
    return f"{math.floor(1000 * equal) / 10:.1f}%" if equal >= 0.001 else "below 0.1%"


def counted(number: int, what: str) -> str:
    """Write a number with its noun, such as "2 cases"."""
    return f"{number} {what}{'' if number == 1 else 's'}"
