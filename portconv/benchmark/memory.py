"""How much memory a call takes beyond its result, at its peak.

On NumPy portconv is asked exactly: `tracemalloc` counts what NumPy allocates, in a process of its own, where no
workspace is left from an earlier call. Others are asked by the peak of this process's memory, which Linux can be told
to forget; what an allocator has and did not give back is not counted there, so it is less exact.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import backends
from .peers import Run, portconv_itself
from .problem import Problem
from .zoo import Layer

WARM = Layer("warm", (1, 1, 8, 8), (1, 1, 3, 3), (1, 1), (1, 1), (1, 1), 1, "small")
"""A first call, for imports that are no part of a call's memory."""


def peak_of_process(run: Run) -> int | None:
    """Return the bytes that a run adds to this process at its peak, beyond its result; None where it is not told."""
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    _give_back()
    try:
        forget.write_text("5")
        before = _kib(status.read_text(), "VmRSS")
        result = run()
        peak = _kib(status.read_text(), "VmHWM")
    except OSError:
        return None
    return max(0, (peak - before) * 1024 - _size(result))


def peak_of_portconv(layer: Layer, name: str, algorithm: str) -> int | None:
    """Return the bytes that a pass of portconv's takes on NumPy, beyond its result; None where its process failed."""
    asked = json.dumps({"layer": asdict(layer), "pass": name, "algorithm": algorithm})
    command = f"from {__name__} import answer; answer()"
    done = subprocess.run((sys.executable, "-P", "-c", command, asked), capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def traced_peak(layer: Layer, name: str, algorithm: str) -> int:
    """Return what `peak_of_portconv` does, of this process: exact where portconv has not been called in it."""
    numpy = backends.get("numpy")
    portconv_itself("warm", Problem(WARM), numpy, "auto").runs[name]()
    problem = Problem(layer)
    problem.arrays  # noqa: B018  (made before anything is counted)
    tracemalloc.start()
    try:
        run = portconv_itself("portconv", problem, numpy, algorithm).runs[name]
        tracemalloc.reset_peak()
        result = run()
        return int(tracemalloc.get_traced_memory()[1]) - _size(result)
    finally:
        tracemalloc.stop()


def _size(result: Iterable[Any]) -> int:
    return int(sum(array.nbytes for array in result))


def _kib(status: str, field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise OSError(f"no {field} in /proc/self/status")
    return int(found[1])


def _give_back() -> None:
    """Have the C library return what it keeps of freed memory, where it is one that can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


def answer() -> None:
    """Print what `peak_of_portconv` asked this process."""
    asked = json.loads(sys.argv[1])
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in asked["layer"].items()
    }
    print(traced_peak(Layer(**fields), asked["pass"], asked["algorithm"]))
