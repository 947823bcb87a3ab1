"""What calls of an array library cost on this machine: shipped constants, or those that were measured here.

``portconv bench --calibrate`` stores what it measured in a file of the user's cache folder. A file that is damaged, or
from another version or machine, is ignored with one warning that names it.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from ._version import __version__
from .backends import Backend, Costs
from .errors import in_a_line

FORMAT = 1
"""Of the file; another one is another meaning of its numbers."""


class CalibrationWarning(UserWarning):
    """A calibration file is ignored."""


def path() -> Path:
    """Where the file lies: ``portconv/calibration.json`` in the user's cache folder."""
    if sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "portconv" / "calibration.json"


def costs(backend: Backend) -> Costs:
    """What this backend's calls cost: as calibrated on this machine, or as shipped."""
    return _stored().get(backend.name, backend.costs)


def store(measured: dict[str, Costs]) -> Path:
    """Write what was measured, beside what is stored of other backends; return where."""
    found = {**_stored(), **measured}
    where = path()
    where.parent.mkdir(parents=True, exist_ok=True)
    written = {**_surroundings(), "costs": {name: own._asdict() for name, own in found.items()}}
    where.write_text(json.dumps(written, indent=1) + "\n")
    _stored.cache_clear()
    return where


@cache
def _stored() -> dict[str, Costs]:
    try:
        where = path()
        text = where.read_text()
    except (FileNotFoundError, NotADirectoryError, RuntimeError):  # no file, or no home to look for one in
        return {}
    except (OSError, UnicodeDecodeError) as error:
        return _ignored(where, f"it cannot be read: {in_a_line(error)}")
    try:
        given = json.loads(text)
        found = {str(name): _checked(own) for name, own in given["costs"].items()}
        for key, expected in _surroundings().items():
            if given.get(key) != expected:
                return _ignored(where, f"its {key} is {given.get(key)!r}, and {expected!r} here")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _ignored(where, "it is damaged")
    return found


def _ignored(where: Path, why: str) -> dict[str, Costs]:
    warnings.warn(
        f"portconv ignores {where}: {why}; `portconv bench --calibrate` makes it anew", CalibrationWarning, stacklevel=2
    )
    return {}


def _checked(own: dict[str, Any]) -> Costs:
    found = Costs(**own)
    if not all(type(cost) in (int, float) and math.isfinite(cost) and cost >= 0 for cost in found) or not any(found):
        raise ValueError(own)
    return found


def processor() -> str:
    """Name the CPU, as well as the system does."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _surroundings() -> dict[str, Any]:
    return {"format": FORMAT, "version": __version__, "machine": f"{processor()}, {os.cpu_count()} CPUs"}
