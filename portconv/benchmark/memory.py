"""Measure the peak memory of a call beyond its result.

For portconv on NumPy the figure is exact: `tracemalloc` counts what NumPy allocates, in a new process, which holds no
workspace of an earlier call. For the others it is the peak of this process's memory, which Linux can reset. That is
less exact, because it does not count memory that the allocator kept from earlier calls.
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
"""The layer of a first call, which imports what the calls need, so that imports do not count as their memory."""


def peak_of_process(run: Run) -> int | None:
    """Return the bytes that a run adds to this process at its peak, beyond its result; None if Linux does not say."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    _release_freed()
    try:
        reset.write_text("5")
        before = _kib(status.read_text(), "VmRSS")
        result = run()
        peak = _kib(status.read_text(), "VmHWM")
    except OSError:
        return None
    return max(0, (peak - before) * 1024 - _size(result))


def peak_of_portconv(layer: Layer, name: str, algorithm: str) -> int | None:
    """Return the bytes that a pass takes on NumPy, beyond its result, in a new process; None if the process failed."""
    question = json.dumps({"layer": asdict(layer), "pass": name, "algorithm": algorithm})
    command = f"from {__name__} import answer; answer()"
    done = subprocess.run((sys.executable, "-P", "-c", command, question), capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def traced_peak(layer: Layer, name: str, algorithm: str) -> int:
    """Return what `peak_of_portconv` does, in this process: exact if portconv has not been called in it."""
    numpy = backends.get("numpy")
    portconv_itself("warm", Problem(WARM), numpy, "auto").runs[name]()
    problem = Problem(layer)
    problem.arrays  # noqa: B018  (makes the arrays before memory is counted)
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
    match = re.search(rf"^{field}:\s*(\d+) kB$", status, re.MULTILINE)
    if match is None:
        raise OSError(f"no {field} in /proc/self/status")
    return int(match[1])


def _release_freed() -> None:
    """Have the C library return freed memory to the system, if it can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


def answer() -> None:
    """Print the answer to the question that `peak_of_portconv` passed to this process."""
    question = json.loads(sys.argv[1])
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in question["layer"].items()
    }
    print(traced_peak(Layer(**fields), question["pass"], question["algorithm"]))
