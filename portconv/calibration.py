"""The costs of an array library's calls on this machine: the shipped ones, or those measured here.

``portconv bench --calibrate`` stores what it measured in a file in the user's cache folder. A file that is damaged, or
from another version or machine, is ignored with one warning that names it.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import warnings
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .backends import Backend, Costs
from .errors import in_a_line

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
"""The version of the file's format; it changes when the meaning of the numbers changes."""


class CalibrationWarning(UserWarning):
    """A calibration file is ignored; the message says why."""


def path() -> Path:
    """Return the path of the file: ``portconv/calibration.json`` in the user's cache folder."""
    from pathlib import Path  # here, because it takes longer to import than all modules of a first call

    if sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "portconv" / "calibration.json"


def costs(backend: Backend) -> Costs:
    """Return the costs of this backend's calls: those measured on this machine, else the shipped ones."""
    return stored().get(backend.name, backend.costs)


def store(measured: dict[str, Costs]) -> Path:
    """Store the measured costs, keep those of other backends, and return the path of the file."""
    costs = {**stored(), **measured}
    where = path()
    where.parent.mkdir(parents=True, exist_ok=True)
    written = {**_surroundings(), "costs": {name: each._asdict() for name, each in costs.items()}}
    where.write_text(_json().dumps(written, indent=1) + "\n")
    stored.cache_clear()
    return where


def _json() -> ModuleType:
    """Import `json` when a file is read or written: it takes a tenth of the time of importing the package."""
    return importlib.import_module("json")


@cache
def stored() -> dict[str, Costs]:
    """Read the costs that are stored for this machine and version, by the name of the backend."""
    try:
        where = path()
        text = where.read_text()
    except (FileNotFoundError, NotADirectoryError, RuntimeError):  # there is no file, or no home folder
        return {}
    except (OSError, UnicodeDecodeError) as error:
        return _ignored(where, f"it cannot be read: {in_a_line(error)}")
    try:
        contents = _json().loads(text)
        costs = {str(name): _checked(fields) for name, fields in contents["costs"].items()}
        for key, expected in _surroundings().items():
            if contents.get(key) != expected:
                return _ignored(where, f"its {key} is {contents.get(key)!r}, and {expected!r} here")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _ignored(where, "it is damaged")
    return costs


def _ignored(where: Path, why: str) -> dict[str, Costs]:
    warnings.warn(
        f"portconv ignores {where}: {why}; `portconv bench --calibrate` makes it anew", CalibrationWarning, stacklevel=2
    )
    return {}


def _checked(fields: dict[str, Any]) -> Costs:
    costs = Costs(**fields)
    if not all(type(cost) in (int, float) and math.isfinite(cost) and cost >= 0 for cost in costs) or not any(costs):
        raise ValueError(fields)
    return costs


def processor() -> str:
    """Return the CPU's name as the system has it."""
    import platform  # both here, for the time that they take
    from pathlib import Path

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _surroundings() -> dict[str, Any]:
    return {"format": FORMAT, "version": __version__, "machine": f"{processor()}, {os.cpu_count()} CPUs"}
