"""Many comparisons in few rows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .cases import QUANTITIES
from .comparison import Comparison
from .figures import EDGES, Number
from .variants import Variant


@dataclass(frozen=True)
class Row:
    """Comparisons of one kind: how many, and the worst of them.

    Attributes
    ----------
    backend, other, dtype, quantity, precision, algorithm : str
        What they have in common; `other`, `quantity` and `algorithm` are None where they have not.
    count, failed : int
        How many they are, and how many of them did not hold.
    units, ulps : float
        The largest error in units of the bound, and in ulps.
    equal : float
        The share of elements with equal bits; nan where there were no elements.
    unequal : int
        How many elements have other bits.
    worst : str
        The case with the largest error in units of the bound.
    worst_quantity, where, got, expected
        Its quantity, the index of the worst element and both values there; None where there is no error.
    counts : tuple of int
        How many errors there are of each size: see `figures.EDGES`.
    equal_in : dict of str to float
        The share of elements with equal bits by quantity.
    """

    backend: str
    other: str | None
    dtype: str
    quantity: str | None
    count: int
    failed: int
    units: float
    ulps: float
    equal: float
    worst: str
    precision: str
    algorithm: str | None
    unequal: int
    worst_quantity: str
    where: tuple[int, ...] | None
    got: Number | None
    expected: Number | None
    counts: tuple[int, ...]
    equal_in: dict[str, float]


@dataclass(frozen=True)
class Digest:
    """One number for all results of a variant in a dtype and a precision: equal where every bit is."""

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
        Without their planes, which `worst` has.
    skipped : list of (str, str)
        Backends, and in words why they or one of their dtypes were left out.
    left_out : dict of str to int
        In words what else was, and how many.
    variants : list of Variant
        What was run, where that is more than backends as they are.
    by_algorithm : bool
        Whether algorithms were asked for by name, so that each has rows of its own.
    expected : tuple of str
        The digests that are expected, if any are.
    worst : dict of bool to Comparison
        The worst comparison with a plane: whether between variants, or else against the exact values.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    variants: list[Variant] = field(default_factory=list)
    by_algorithm: bool = False
    expected: tuple[str, ...] = ()
    worst: dict[bool, Comparison] = field(default_factory=dict)

    def take(self, made: Iterable[Comparison]) -> None:
        """Add comparisons, and keep the plane of the worst alone."""
        for one in made:
            kind = one.other is not None
            if one.plane is not None and (kind not in self.worst or _badness(one) > _badness(self.worst[kind])):
                self.worst[kind] = one
            self.comparisons.append(replace(one, plane=None))

    def leave_out(self, what: str) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + 1

    @property
    def failures(self) -> list[Comparison]:
        return [made for made in self.comparisons if not made.held]

    @property
    def ran(self) -> list[str]:
        """The labels of what anything was compared of, in order."""
        return list(dict.fromkeys(made.backend for made in self.comparisons if made.other is None))

    @property
    def backends(self) -> list[str]:
        """The backends of which anything was compared, in order."""
        names = {variant.label: variant.backend.name for variant in self.variants}
        return list(dict.fromkeys(names.get(label, label) for label in self.ran))

    @property
    def unexpected(self) -> list[Digest]:
        """The digests that are none of those expected."""
        return [digest for digest in self.digests() if self.expected and digest.sha256 not in self.expected]

    @property
    def held(self) -> bool:
        """Whether anything was compared, all of it within its bounds, and its digests are those expected."""
        return bool(self.comparisons) and not self.failures and not self.unexpected

    def against_truth(self) -> list[Row]:
        """Return a row for each variant, dtype, precision, algorithm and quantity."""
        kinds: dict[tuple[Any, ...], list[Comparison]] = {}
        for made in self.comparisons:
            if made.other is None:
                kind = (made.backend, *self._common(made), QUANTITIES.index(made.quantity))
                kinds.setdefault(kind, []).append(made)
        return [self._row(kinds[kind], QUANTITIES[kind[-1]]) for kind in sorted(kinds)]

    def pairs(self) -> list[Row]:
        """Return a row for each pair of variants, dtype, precision and algorithm."""
        kinds: dict[tuple[Any, ...], list[Comparison]] = {}
        for made in self.comparisons:
            if made.other is not None:
                kinds.setdefault((made.backend, made.other, *self._common(made)), []).append(made)
        return [self._row(kinds[kind], None) for kind in sorted(kinds)]

    def digests(self) -> list[Digest]:
        """Return a digest of all that each variant gave whole, by dtype, precision and algorithm."""
        halves = {variant.label for variant in self.variants if variant.halves}
        found: dict[tuple[Any, ...], Any] = {}
        for made in self.comparisons:
            if made.other is None and made.backend not in halves:
                digest = found.setdefault((made.backend, *self._common(made)), hashlib.sha256())
                digest.update(f"{made.case} {made.quantity} {made.sha256}\n".encode())
        return [
            Digest(backend, dtype, precision, algorithm or None, digest.hexdigest())
            for (backend, dtype, precision, algorithm), digest in sorted(found.items(), key=lambda item: item[0])
        ]

    @property
    def firsts(self) -> list[Variant]:
        """The first way of each backend and device, with which its others are compared."""
        return list({variant.place: variant for variant in reversed(self.variants)}.values())[::-1]

    def told(self, rows: Sequence[Row]) -> list[Row]:
        """Choose the rows of the first ways, and whichever others did not hold."""
        firsts = {first.label for first in self.firsts}
        return [row for row in rows if row.backend in firsts or row.failed or not firsts]

    def in_bits(self) -> list[str]:
        """Say of reproducible results which have equal bits, a line each."""
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
        for (dtype, by), found in kinds.items():
            for sha256, who in found.items():
                which = ", ".join(who) if len(found) > 1 else f"in {'all ' * (len(who) > 1)}{counted(len(who), 'way')}"
                lines.append(f"digest {dtype}{by} {sha256}: {which}")
        return lines

    def summary(self) -> str:
        """Say it all in one line."""
        if not self.comparisons:
            return "nothing was compared"
        counts = f"{counted(len(self.comparisons), 'comparison')} on {counted(len(self.backends), 'backend')}"
        if len(self.ran) > len(self.backends):
            counts = f"{counts} run in {len(self.ran)} ways"
        found = f"{len(self.failures)} out of bounds" if self.failures else "all within bounds"
        others = f", {counted(len(self.unexpected), 'digest')} not as expected" if self.unexpected else ""
        return f"{counts}: {found}{others}"

    def as_json(self) -> dict[str, Any]:
        """Everything in plain types; a figure is None where it is not finite, which JSON cannot say.

        Complex numbers are lists of both parts.
        """
        return {
            "held": self.held,
            "comparisons": len(self.comparisons),
            "out_of_bounds": len(self.failures),
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
            "failures": [{**_plain(made), "message": str(made)} for made in self.failures],
            "error_sizes": list(EDGES),
            "results": [_plain(made) for made in self.comparisons],
        }

    def _common(self, made: Comparison) -> tuple[str, str, str]:
        """What the comparisons of a row have in common, beside who they are of."""
        return made.dtype, made.precision, made.algorithm if self.by_algorithm else ""

    def _row(self, members: Sequence[Comparison], quantity: str | None) -> Row:
        first = members[0]
        worst = max(members, key=_badness)
        quantities = dict.fromkeys(made.quantity for made in members)
        return Row(
            first.backend,
            first.other,
            first.dtype,
            quantity,
            count=len(members),
            failed=sum(not made.held for made in members),
            units=worst.units,
            ulps=max(made.ulps for made in members),
            equal=_equal(members),
            worst=worst.case,
            precision=first.precision,
            algorithm=first.algorithm if self.by_algorithm else None,
            unequal=sum(made.elements - made.equal for made in members),
            worst_quantity=worst.quantity,
            where=worst.where,
            got=worst.got,
            expected=worst.expected,
            counts=tuple(map(sum, zip(*(made.counts for made in members if made.counts), strict=True))),
            equal_in={name: _equal([made for made in members if made.quantity == name]) for name in quantities},
        )


def _badness(made: Comparison) -> tuple[float, float]:
    """By what the worst of several comparisons is found: errors that are all beyond measure differ in ulps."""
    return made.units, made.ulps


def _equal(members: Sequence[Comparison]) -> float:
    elements = sum(made.elements for made in members)
    return sum(made.equal for made in members) / elements if elements else math.nan


def _plain(record: Row | Comparison | Digest) -> dict[str, Any]:
    return {name: _value(value) for name, value in vars(record).items() if name != "plane"}


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _value(own) for name, own in value.items()}
    if isinstance(value, complex):
        return [_value(value.real), _value(value.imag)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def grouped(title: str, rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Cut rows into those of one precision and algorithm, under a title that says which where there are several."""
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.precision, row.algorithm), []).append(row)
    if len(groups) == 1:
        return [(title, list(rows))]
    return [
        (f"{title}, {precision}{f', {algorithm}' if algorithm else ''}", own)
        for (precision, algorithm), own in groups.items()
    ]


def figure(number: float, places: int) -> str:
    """Write a figure short: with so many places where it has some, and else in powers of ten."""
    if number == 0 or 10.0**-places <= number < 1000:
        return f"{number:.{places}f}"
    return f"{number:.0e}".replace("e+0", "e+").replace("e-0", "e-")


def both(row: Row) -> str:
    """Name what a pair is of, and another way of the same backend by what sets it apart alone."""
    own, _, apart = (row.other or "").partition(" (")
    return f"{row.backend}, {f'({apart}' if apart and row.backend.partition(' (')[0] == own else row.other}"


def share(row: Row) -> str:
    """Write the share of equal bits; "all" is every single one."""
    if math.isnan(row.equal):
        return ""
    return "all" if row.unequal == 0 else f"{math.floor(1000 * row.equal) / 10:.1f}%"


def counted(number: int, what: str) -> str:
    """So many of something, in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"
