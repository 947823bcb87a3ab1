"""The threads of BLAS, as settings that calls hold."""

from __future__ import annotations

import os
import threading
from functools import cache
from itertools import product
from typing import Any

from .. import forks
from ._threads import Held


class _OfThread(threading.local):
    """The settings of the libraries whose number of threads holds for the calling thread alone."""

    def __init__(self, libraries: list[Any]) -> None:
        self.settings = [_setting(library) for library in libraries]


class Blas:
    """The threads of BLAS: their number, and holding it at one while a call runs blocks on threads."""

    def __init__(self) -> None:
        self.known: list[Any] | None = None
        self.of_process: list[Held] = []
        self.of_thread: _OfThread | None = None

    def libraries(self) -> list[Any]:
        """Return what controls the threads of each BLAS in this process."""
        if self.known is None:
            with forks.lock:
                known = forks.imported("threadpoolctl").ThreadpoolController().select(user_api="blas").lib_controllers
                self.of_process = [_setting(library) for library in known if not _is_of_thread(library)]
                own = [library for library in known if _is_of_thread(library)]
                self.of_thread = _OfThread(own) if own else None
                self.known = known
        return self.known

    def settings(self) -> list[Held]:
        """Return the number of threads of each library, as settings of the process or of this thread."""
        if self.known is None:
            self.libraries()
        return self.of_process if self.of_thread is None else [*self.of_process, *self.of_thread.settings]

    def threads(self) -> int:
        """Return how many threads the user allows BLAS; if that is unknown, the number of CPUs."""
        # A list, as this is in the path of calls of a few microseconds.
        users = [setting.users() for setting in self.settings()]
        return max(users) if users else cpus()


def _is_of_thread(library: Any) -> bool:
    """Return whether the number of threads of a BLAS holds for the calling thread alone, otherwise for the process."""
    return library.internal_api == "mkl" or getattr(library, "threading_layer", None) == "openmp"


def _setting(library: Any) -> Held:
    """Return the number of threads of a BLAS as a setting that calls hold."""
    read, write = library.get_num_threads, library.set_num_threads
    if library.internal_api == "openblas" and not _is_of_thread(library):
        # threadpoolctl 3.8 sets it for one Python thread at a time, under a lock of its own, which a signal handler
        # and a forked child may find taken. The functions of the library are one step.
        for prefix, suffix in product(("", "scipy_"), ("", "64_", "_64")):
            read = getattr(library.dynlib, f"{prefix}openblas_get_num_threads{suffix}", read)
            write = getattr(library.dynlib, f"{prefix}openblas_set_num_threads{suffix}", write)
    return Held(read, write)


@cache
def cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
