"""Many comparisons in few rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .cases import QUANTITIES
from .comparison import Comparison


@dataclass(frozen=True)
class Row:
    """Comparisons of one kind: how many, and the worst of them.

    Attributes
    ----------
    backend, other, dtype, quantity : str
        What they have in common; `other` and `quantity` are None where they have not.
    count, failed : int
        How many they are, and how many of them did not hold.
    units, ulps : float
        The largest error in units of the bound, and in ulps.
    equal : float
        The share of elements with equal bits; nan where there were no elements.
    worst : str
        The case with the largest error in units of the bound.
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


@dataclass
class Report:
    """What was compared and what was not.

    Attributes
    ----------
    comparisons : list of Comparison
    skipped : list of (str, str)
        Backends, and in words why they or one of their dtypes were left out.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def failures(self) -> list[Comparison]:
        return [made for made in self.comparisons if not made.held]

    @property
    def backends(self) -> list[str]:
        """The backends of which anything was compared, in order."""
        return list(dict.fromkeys(made.backend for made in self.comparisons if made.other is None))

    @property
    def held(self) -> bool:
        """Whether anything was compared, and all of it within its bounds."""
        return bool(self.comparisons) and not self.failures

    def against_truth(self) -> list[Row]:
        """Return a row for each backend, dtype and quantity."""
        kinds: dict[tuple[str, str, int], list[Comparison]] = {}
        for made in self.comparisons:
            if made.other is None:
                kind = (made.backend, made.dtype, QUANTITIES.index(made.quantity))
                kinds.setdefault(kind, []).append(made)
        return [_row(kinds[kind], QUANTITIES[kind[2]]) for kind in sorted(kinds)]

    def pairs(self) -> list[Row]:
        """Return a row for each pair of backends and dtype."""
        kinds: dict[tuple[str, str, str], list[Comparison]] = {}
        for made in self.comparisons:
            if made.other is not None:
                kinds.setdefault((made.backend, made.other, made.dtype), []).append(made)
        return [_row(kinds[kind], None) for kind in sorted(kinds)]

    def summary(self) -> str:
        """Say it all in one line."""
        if not self.comparisons:
            return "nothing was compared"
        counts = f"{_counted(len(self.comparisons), 'comparison')} on {_counted(len(self.backends), 'backend')}"
        return f"{counts}: {f'{len(self.failures)} out of bounds' if self.failures else 'all within bounds'}"

    def as_json(self) -> dict[str, Any]:
        """Everything in plain types; a figure is None where it is not finite, which JSON cannot say."""
        return {
            "held": self.held,
            "comparisons": len(self.comparisons),
            "out_of_bounds": len(self.failures),
            "backends": self.backends,
            "skipped": [{"backend": name, "reason": reason} for name, reason in self.skipped],
            "against_truth": [_plain(row) for row in self.against_truth()],
            "pairs": [_plain(row) for row in self.pairs()],
            "failures": [{**_plain(made), "message": str(made)} for made in self.failures],
        }


def _row(members: list[Comparison], quantity: str | None) -> Row:
    first, elements = members[0], sum(made.elements for made in members)
    worst = max(members, key=lambda made: made.units)
    return Row(
        first.backend,
        first.other,
        first.dtype,
        quantity,
        count=len(members),
        failed=sum(not made.held for made in members),
        units=worst.units,
        ulps=max(made.ulps for made in members),
        equal=sum(made.equal for made in members) / elements if elements else math.nan,
        worst=worst.case,
    )


def _plain(record: Row | Comparison) -> dict[str, Any]:
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in vars(record).items()}


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
