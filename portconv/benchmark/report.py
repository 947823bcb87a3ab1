"""Figures of many layers: ratios and their means, never times, which are of one machine in one minute."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from statistics import geometric_mean
from typing import Any

from .. import backends
from .._version import __version__
from ..backends import Backend
from ..calibration import processor
from .measurement import OURS, Left, Row
from .peers import PEERS
from .problem import PASSES
from .zoo import KINDS, growth_pairs

RIVALS = tuple(peer.name for peer in PEERS if peer.rival)
DEFAULT = "torch"
"""The peer that stands for what people use."""
BEST = "best"
"""Stands for whichever rival is fastest on a pass of a layer."""

MIB = 2**20


def ratios(row: Row) -> dict[str, float]:
    """Divide our time by each peer's: below 1 is faster."""
    return {who: row.times[OURS] / taken for who, taken in row.times.items() if who != OURS}


def best(row: Row) -> str | None:
    """Name the fastest rival, or None where there was none."""
    rivals = {who: taken for who, taken in row.times.items() if who in RIVALS}
    return min(rivals, key=rivals.__getitem__, default=None)


def speedup(rows: Iterable[Row], peer: str) -> float | None:
    """Return the geometric mean of a peer's times over ours; None where it has none. `BEST` may be the peer."""
    found = []
    for row in rows:
        who = best(row) if peer == BEST else peer
        if who is not None and who in row.times:
            found.append(row.times[who] / row.times[OURS])
    return geometric_mean(found) if found else None


@dataclass
class Report:
    """What was measured and what was not.

    Attributes
    ----------
    rows : list of Row
    left : list of Left
    missing : dict of str to str
        Peers that cannot run here, and in words why.
    """

    rows: list[Row] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def take(self, found: Row | Left) -> None:
        """Note what `measure` gave."""
        if isinstance(found, Row):
            self.rows.append(found)
        else:
            self.left.append(found)

    @property
    def out_of_bounds(self) -> list[tuple[Row, str]]:
        """Results that rounding cannot explain, and whose."""
        return [(row, who) for row in self.rows for who, errors in row.errors.items() if not errors.held]

    @property
    def faults(self) -> list[Left]:
        return [left for left in self.left if left.fault]

    @property
    def held(self) -> bool:
        """Whether anything was measured, nothing of ours failed, and all results are within bounds."""
        return bool(self.rows) and not self.faults and not self.out_of_bounds

    @property
    def peers(self) -> list[str]:
        """The peers that were timed, in their usual order."""
        timed = {who for row in self.rows for who in row.times}
        return [peer.name for peer in PEERS if peer.name in timed]

    def speedups(self, rows: Iterable[Row]) -> dict[str, float | None]:
        """Geometric means of the peers' times over ours, above 1 where we are faster."""
        rows = list(rows)
        return {f"over_{peer}": speedup(rows, peer) for peer in (DEFAULT, BEST)}

    def by_kind(self) -> dict[str, dict[str, float | None]]:
        """Do so for each kind of layer that there is; pointwise layers are dense too."""
        found = {}
        for kind in KINDS:
            rows = [row for row in self.rows if row.layer.dense] if kind == "dense" else self._of_kind(kind)
            if rows:
                found[kind] = self.speedups(rows)
        return found

    def worst_dense(self) -> Row | None:
        """The pass of a dense layer on which the best peer is ahead of us by most, or we of it by least."""
        rows = [row for row in self.rows if row.layer.dense and best(row) is not None]
        return max(rows, key=_over_best, default=None)

    def reproducible(self) -> dict[str, Any] | None:
        """How many times as long as "standard" "reproducible" takes on dense layers: geometric means, and the worst."""
        who = "same-bits"
        found = {
            (row.layer.name, row.name): 1 / ratios(row)[who]
            for row in self.rows
            if row.layer.dense and who in row.times
        }
        if not found:
            return None
        layer, name = max(found, key=found.__getitem__)
        passes = {own: [ratio for (_, at), ratio in found.items() if at == own] for own in PASSES}
        means = {own: geometric_mean(some) for own, some in passes.items() if some}
        return {**means, "worst": {"layer": layer, "pass": name, "ratio": found[layer, name]}}

    def kernel_growth(self) -> list[dict[str, Any]]:
        """Our time with kernels of 31 over that with kernels of 15, for layers that differ in nothing else."""
        own = {(row.layer, row.name): row.times[OURS] for row in self.rows}
        layers = tuple(dict.fromkeys(row.layer for row in self.rows))
        return [
            {"short": a.name, "long": b.name, "pass": name, "ratio": own[b, name] / own[a, name]}
            for a, b in growth_pairs(layers)
            for name in PASSES
            if (a, name) in own and (b, name) in own
        ]

    def summary(self) -> dict[str, Any]:
        """Every figure that is of more than one layer."""
        worst = self.worst_dense()
        return {
            "speedup": {
                "all": self.speedups(self.rows),
                **{name: self.speedups(row for row in self.rows if row.name == name) for name in PASSES},
            },
            "speedup_by_kind": self.by_kind(),
            "worst_dense": None
            if worst is None
            else {"layer": worst.layer.name, "pass": worst.name, "peer": best(worst), "ratio": _over_best(worst)},
            "kernel_31_over_15": self.kernel_growth(),
            "reproducible_over_standard": self.reproducible(),
        }

    def verdict(self) -> str:
        """Say in one line whether all held."""
        if not self.rows:
            return "nothing was measured"
        wrong, layers = len(self.out_of_bounds), len({row.layer for row in self.rows})
        counts = f"{_counted(len(self.rows), 'pass', 'es')} of {_counted(layers, 'layer')}"
        found = f"{_counted(wrong, 'result')} out of bounds" if wrong else "all results within bounds"
        return f"{counts}: {found}{f', {len(self.faults)} failed' if self.faults else ''}"

    def as_json(self) -> dict[str, Any]:
        """Everything in plain types; None where there is no finite number."""
        return {
            "held": self.held,
            "layers": [_plain(row) for row in self.rows],
            "summary": self.summary(),
            "peers": [
                {
                    "name": peer.name,
                    "title": peer.title,
                    "note": peer.note or None,
                    "measured": peer.name in self.peers,
                    "missing": self.missing.get(peer.name),
                }
                for peer in PEERS
            ],
            "left": [asdict(left) for left in self.left],
        }

    def _of_kind(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row.layer.kind == kind]


def surroundings(backend: Backend) -> dict[str, str]:
    """Say what a reader must know to compare figures with others: versions, the processor, the BLAS, threads, the day.

    And how many programs wanted each CPU in the last minute, this one among them: above about 1.5, figures mislead.

    Parameters
    ----------
    backend : Backend
        What portconv runs on.

    Returns
    -------
    dict of str to str
    """
    libraries = ("numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "onnxruntime", "jax", "array-api-strict")
    found = {"portconv": __version__, "python": platform.python_version(), "processor": processor()}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    about = {**backends.get("numpy").details(), **backend.details()}
    if hasattr(os, "getloadavg"):
        about["load"] = f"{os.getloadavg()[0] / (os.cpu_count() or 1):.1f} a CPU"
    return {**found, "backend": backend.name, **about, "date": datetime.now(UTC).date().isoformat()}


def _over_best(row: Row) -> float:
    return ratios(row)[best(row) or ""]


def _plain(row: Row) -> dict[str, Any]:
    memory = {who: None if taken is None else taken / MIB for who, taken in row.memory.items()}
    return {
        "layer": asdict(row.layer),
        "pass": row.name,
        "ratios": ratios(row),
        "best_peer": best(row),
        "error_epsilons": _finite({who: errors.epsilons for who, errors in row.errors.items()}),
        "error_over_bound": _finite({who: errors.units for who, errors in row.errors.items()}),
        "held": all(errors.held for errors in row.errors.values()),
        "extra_mib": memory,
    }


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {who: value if math.isfinite(value) else None for who, value in figures.items()}


def _counted(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"
