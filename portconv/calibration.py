"""The costs of an array library's calls on this machine: the shipped ones, or those measured here.

``portconv bench --calibrate`` stores what it measured in a file in the user's cache folder. A file that is damaged, or
from another version or machine, is ignored with one warning that names it.
"""

from __future__ import annotations

import os
import stat
import sys
import warnings
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import forks
from ._version import __version__
from .backends import Backend, Costs
from .errors import in_a_line

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 2
"""The version of the file's format; it changes when the meaning of the numbers changes."""

MOST_BYTES = 1 << 20
"""The most bytes of a file that is read."""
MOST_NANOSECONDS = 1e12
"""No step takes so long."""


class CalibrationWarning(UserWarning):
    """A calibration file is ignored; the message says why."""


def path() -> Path:
    """Return the path of the file: ``portconv/calibration.json`` in the user's cache folder."""
    # Late, because it takes longer to import than all modules of a first call.
    path_class: type[Path] = forks.imported("pathlib").Path
    if sys.platform == "win32":
        folder = path_class(os.environ.get("LOCALAPPDATA") or path_class.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        folder = path_class.home() / "Library" / "Caches"
    else:
        folder = path_class(os.environ.get("XDG_CACHE_HOME") or path_class.home() / ".cache")
    return folder / "portconv" / "calibration.json"


def costs(backend: Backend, device: str = "") -> Costs:
    """Return the costs of this backend's calls on a kind of device: those measured on this machine, else those shipped.

    `device` is what `Backend.device_kind` returns. Where nobody has measured the library's own convolution, its
    operations cost as much as those of matrix products.
    """
    shipped = backend.accelerator_costs if device else None
    found = stored().get(key(backend, device)) or shipped or backend.costs
    needed = backend.native_convolution is not None and not found.native
    return found._replace(native=found.operation) if needed else found


def key(backend: Backend, device: str) -> str:
    """Return the name under which the costs of a backend on a kind of device are stored."""
    return f"{backend.name} {device}".rstrip()


def store(measured: dict[str, Costs]) -> Path:
    """Store the measured costs, keep those of other backends, and return the path of the file."""
    costs = {**stored(), **measured}
    where = path()
    where.parent.mkdir(parents=True, exist_ok=True)
    written = {**_surroundings(), "costs": {name: each._asdict() for name, each in costs.items()}}
    # Written aside and renamed: who reads it meanwhile has the old file or the new one, whole.
    aside = where.with_name(f"{where.name}.{os.getpid()}")
    try:
        aside.write_text(_json().dumps(written, indent=1) + "\n", encoding="utf-8")
        aside.replace(where)
    finally:
        aside.unlink(missing_ok=True)
    stored.cache_clear()
    return where


def _json() -> ModuleType:
    """Import `json` when a file is read or written: it takes a tenth of the time of importing the package."""
    return forks.imported("json")


@cache
def stored() -> dict[str, Costs]:
    """Read the costs that are stored for this machine and version, by `key`."""
    try:
        where = path()
        text = _read(where)
    except (FileNotFoundError, NotADirectoryError, RuntimeError):  # there is no file, or no home folder
        return {}
    except (OSError, ValueError) as error:
        return _ignored(where, f"it cannot be read: {in_a_line(error)}")
    try:
        contents = _json().loads(text)
        costs = {str(name): _checked(fields) for name, fields in contents["costs"].items()}
        for key, expected in _surroundings().items():
            if contents.get(key) != expected:
                return _ignored(where, f"its {key} is {repr(contents.get(key))[:80]}, and {expected!r} here")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return _ignored(where, "it is damaged")
    return costs


def _read(where: Path) -> str:
    """Read a plain file that is not larger than any that `store` writes; another kind of file might make one wait."""
    if not stat.S_ISREG(where.stat().st_mode):
        raise ValueError("it is no plain file")
    with where.open("rb") as file:
        contents = file.read(MOST_BYTES + 1)
    if len(contents) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    return contents.decode("utf-8")


def _ignored(where: Path, why: str) -> dict[str, Costs]:
    warnings.warn(
        f"portconv ignores {where}: {why}; `portconv bench --calibrate` makes it anew", CalibrationWarning, stacklevel=2
    )
    return {}


def _checked(fields: dict[str, Any]) -> Costs:
    costs = Costs(**fields)
    # Choices add up costs times counts of work, and these sums must be finite; `math.isfinite` fails on 10**400.
    numbers = [cost for cost in costs if cost is not None]
    if not all(type(cost) in (int, float) and 0 <= cost <= MOST_NANOSECONDS for cost in numbers) or not any(numbers):
        raise ValueError(fields)
    return costs


def processor() -> str:
    """Return the CPU's name as the system has it."""
    platform = forks.imported("platform")  # both late, for the time that they take
    cpuinfo: Path = forks.imported("pathlib").Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else str(platform.processor() or platform.machine())


def _surroundings() -> dict[str, Any]:
    return {"format": FORMAT, "version": __version__, "machine": f"{processor()}, {os.cpu_count()} CPUs"}
