"""Sum up many layers in ratios and their means; times would hold only for one machine in one minute."""

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
from ..kernels import state
from .measurement import OURS, NotMeasured, Row
from .peers import PEERS
from .problem import PASSES
from .zoo import KINDS, growth_pairs

RIVALS = tuple(peer.name for peer in PEERS if peer.rival)
DEFAULT = "torch"
"""The peer that most people use."""
BEST = "best"
"""The name for the rival that is fastest on each pass of a layer."""

MIB = 2**20


def ratios(row: Row) -> dict[str, float]:
    """Divide portconv's time by each peer's: below 1 portconv is faster."""
    return {who: row.times[OURS] / time for who, time in row.times.items() if who != OURS}


def best(row: Row) -> str | None:
    """Name the fastest rival; None if no rival was timed."""
    rivals = {who: time for who, time in row.times.items() if who in RIVALS}
    return min(rivals, key=rivals.__getitem__, default=None)


def speedup(rows: Iterable[Row], peer: str) -> float | None:
    """Return the geometric mean of a peer's times over portconv's; None if it has none. `peer` may be `BEST`."""
    speedups = []
    for row in rows:
        who = best(row) if peer == BEST else peer
        if who is not None and who in row.times:
            speedups.append(row.times[who] / row.times[OURS])
    return geometric_mean(speedups) if speedups else None


@dataclass
class Report:
    """What was measured and what was not.

    Attributes
    ----------
    rows : list of Row
    not_measured : list of NotMeasured
    missing : dict of str to str
        The peers that cannot run here, each with the reason.
    """

    rows: list[Row] = field(default_factory=list)
    not_measured: list[NotMeasured] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def take(self, measured: Row | NotMeasured) -> None:
        """Add what `measure` yielded."""
        if isinstance(measured, Row):
            self.rows.append(measured)
        else:
            self.not_measured.append(measured)

    @property
    def out_of_bounds(self) -> list[tuple[Row, str]]:
        """The results that rounding cannot explain: the row and the candidate."""
        return [(row, who) for row in self.rows for who, errors in row.errors.items() if not errors.held]

    @property
    def faults(self) -> list[NotMeasured]:
        return [entry for entry in self.not_measured if entry.fault]

    @property
    def held(self) -> bool:
        """Whether something was measured, portconv did not fail, and all results are within bounds."""
        return bool(self.rows) and not self.faults and not self.out_of_bounds

    @property
    def peers(self) -> list[str]:
        """The peers that were timed, in the order of `PEERS`."""
        timed = {who for row in self.rows for who in row.times}
        return [peer.name for peer in PEERS if peer.name in timed]

    def speedups(self, rows: Iterable[Row]) -> dict[str, float | None]:
        """Return the geometric means of the peers' times over portconv's: above 1 portconv is faster."""
        rows = list(rows)
        return {f"over_{peer}": speedup(rows, peer) for peer in (DEFAULT, BEST)}

    def by_kind(self) -> dict[str, dict[str, float | None]]:
        """Return the `speedups` of each kind of layer that was measured; pointwise layers are dense too."""
        by_kind = {}
        for kind in KINDS:
            rows = [row for row in self.rows if row.layer.dense] if kind == "dense" else self._of_kind(kind)
            if rows:
                by_kind[kind] = self.speedups(rows)
        return by_kind

    def worst_dense(self) -> Row | None:
        """Return the pass of a dense layer with the largest time of portconv over the best peer's."""
        rows = [row for row in self.rows if row.layer.dense and best(row) is not None]
        return max(rows, key=_over_best, default=None)

    def reproducible(self) -> dict[str, Any] | None:
        """Return the time of "reproducible" over that of "standard" on dense layers: geometric means, and the worst."""
        who = "same-bits"
        costs = {
            (row.layer.name, row.name): 1 / ratios(row)[who]
            for row in self.rows
            if row.layer.dense and who in row.times
        }
        if not costs:
            return None
        layer, name = max(costs, key=costs.__getitem__)
        by_pass = {each: [ratio for (_, other), ratio in costs.items() if other == each] for each in PASSES}
        means = {each: geometric_mean(of_pass) for each, of_pass in by_pass.items() if of_pass}
        return {**means, "worst": {"layer": layer, "pass": name, "ratio": costs[layer, name]}}

    def kernel_growth(self) -> list[dict[str, Any]]:
        """List portconv's time with kernels of 31 over that with kernels of 15, for layers that differ only in that."""
        times = {(row.layer, row.name): row.times[OURS] for row in self.rows}
        layers = tuple(dict.fromkeys(row.layer for row in self.rows))
        return [
            {"short": a.name, "long": b.name, "pass": name, "ratio": times[b, name] / times[a, name]}
            for a, b in growth_pairs(layers)
            for name in PASSES
            if (a, name) in times and (b, name) in times
        ]

    def summary(self) -> dict[str, Any]:
        """Return the figures that sum up several layers."""
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
        """Say in one line how many results were measured, and whether they are within bounds."""
        if not self.rows:
            return "nothing was measured"
        wrong, layers = len(self.out_of_bounds), len({row.layer for row in self.rows})
        counts = f"{_counted(len(self.rows), 'pass', 'es')} of {_counted(layers, 'layer')}"
        verdict = f"{_counted(wrong, 'result')} out of bounds" if wrong else "all results within bounds"
        return f"{counts}: {verdict}{f', {len(self.faults)} failed' if self.faults else ''}"

    def as_json(self) -> dict[str, Any]:
        """Return everything in JSON's types; None where there is no finite number."""
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
            "left": [asdict(entry) for entry in self.not_measured],
        }

    def _of_kind(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row.layer.kind == kind]


def surroundings(backend: Backend) -> dict[str, str]:
    """Say what a reader must know to compare figures: the versions, the processor, the BLAS, the threads, the day.

    The load says how many programs wanted each CPU in the last minute, this one included. Above about 1.5, figures
    mislead.

    Parameters
    ----------
    backend : Backend
        The backend that portconv runs on.

    Returns
    -------
    dict of str to str
    """
    libraries = ("numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "onnxruntime", "jax", "array-api-strict")
    versions = {"portconv": __version__, "python": platform.python_version(), "processor": processor()}
    for name in libraries:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    about = {**backends.get("numpy").details(), **backend.details()}
    about["kernels"] = "none" if state.fault() is not None else state.here().words
    if hasattr(os, "getloadavg"):
        about["load"] = f"{os.getloadavg()[0] / (os.cpu_count() or 1):.1f} a CPU"
    return {**versions, "backend": backend.name, **about, "date": datetime.now(UTC).date().isoformat()}


def _over_best(row: Row) -> float:
    return ratios(row)[best(row) or ""]


def _plain(row: Row) -> dict[str, Any]:
    memory = {who: None if size is None else size / MIB for who, size in row.memory.items()}
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
