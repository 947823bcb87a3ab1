"""Calls of kernels: code that is ready, plans in memory, scratch memory, and threads.

A call of a few microseconds is one foreign call that keeps the interpreter. A longer one lets other threads of Python
run, and a still longer one is shared with the threads of a `Team`.
"""

from __future__ import annotations

import atexit
import os
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import CFUNCTYPE, PYFUNCTYPE, c_char, c_int64, c_void_p
from ctypes import addressof as address_of
from typing import Any, NamedTuple

from .. import forks
from ..errors import BackendError, in_a_line
from . import state
from .cache import object_of
from .compile import Loaded
from .families import Kernel
from .share import OPERANDS
from .sizes import Planned, ceiling
from .target import NoTarget
from .team import Team, keep_for_ever
from .values import LINE

SHORT, SHARED, LONG = 30_000.0, 30_000.0, 500_000.0
"""A call of fewer cycles keeps the interpreter; one of more is shared, because threads that are awake join it within a
few microseconds; and one of still more wakes those that sleep, which takes about half of the last number."""


class KernelError(BackendError):
    """A kernel cannot be compiled or loaded."""


class Ready(NamedTuple):
    """The functions of one kernel in memory."""

    short: Any
    alone: Any
    together: Any


class Scratch(NamedTuple):
    """Memory that begins on a line of the cache: its bytes, its address and what holds it."""

    size: int
    address: int
    held: bytearray


NO_SCRATCH = Scratch(0, 0, bytearray())


class _Memory(threading.local):
    """The scratch memory of a thread of Python, for all threads that help its calls; kept for its next call."""

    def __init__(self) -> None:
        self.kept = NO_SCRATCH

    def of(self, size: int) -> Scratch:
        """Return at least so many bytes, which live as long as what is returned."""
        if size > self.kept.size:
            self.kept = NO_SCRATCH  # freed before there is more
            held = bytearray(size + LINE)  # zeros that take no memory before they are written
            start = address_of(c_char.from_buffer(held))
            self.kept = Scratch(size, start + -start % LINE, held)
        return self.kept


_memory = _Memory()
_spares = _Memory(), _Memory(), _Memory()
KEPT_BYTES = 64 << 20
"""More spare memory than this is not kept."""
_ready: dict[Kernel, Ready] = {}
failed: dict[Kernel, str] = {}
"""Why kernels cannot be compiled or loaded, which is tried once."""
STANDBY = Kernel("standby", "attend")
_helpers: Team | None = None
"""The threads that help, of this process."""
_ZERO = array("q", [0])
NO_BIAS: int = _ZERO.buffer_info()[0]
"""The address of what stands for a bias where there is none."""


class Call:
    """A planned convolution, ready to be called.

    Parameters
    ----------
    kernel : Kernel
    planned : Planned
    """

    __slots__ = ("address", "compute", "is_long", "kernel", "most", "planned", "ready", "scratch", "shared", "values")

    def __init__(self, kernel: Kernel, planned: Planned) -> None:
        self.kernel, self.planned = kernel, planned
        self.ready = ready(kernel)
        self.values = array("q", planned.values)
        self.address = self.values.buffer_info()[0]
        self.scratch, self.shared = ceiling(planned.scratch_bytes, LINE) * LINE, planned.shared_bytes
        self.most = planned.shares if planned.cycles > SHARED else 1
        self.is_long = planned.cycles > LONG
        self.compute = self.ready.short if planned.cycles < SHORT else self.ready.alone

    def run(self, operands: tuple[int, int, int, int], threads: int) -> int:
        """Compute the output on at most so many threads; return whether a number of it is not finite.

        `operands` are the addresses of the input, the filters, the bias and the output.
        """
        if self.most == 1:  # a call of a few microseconds, in which each step counts
            memory = _memory.of(self.scratch + self.shared)
            alone: int = self.compute(self.address, *operands, memory.address, memory.address + self.scratch)
            return alone
        threads, shared = min(threads, self.most), self.shared
        # A signal handler may call in turn, and need more: so this call holds its own memory.
        memory = _memory.of(threads * self.scratch + shared)
        scratch = memory.address
        common = scratch + threads * self.scratch
        team = _team() if threads > 1 else None
        if team is not None and team.wake(threads - 1, is_long=self.is_long):
            request = array("q", (self.address, *operands, scratch, common, self.scratch, threads))
            found: int = self.ready.together(team.address, request.buffer_info()[0])
            if found >= 0:
                return found
        return int(self.compute(self.address, *operands, scratch, common))


@contextmanager
def spare(size: int, place: int = 0) -> Iterator[int]:
    """Lend memory of so many bytes to what is computed inside; the thread keeps it for the next time.

    What is computed inside may ask for more, of another place.
    """
    memory = _spares[place]
    held = memory.of(size)
    # A signal handler may call in turn, and gets other memory.
    memory.kept = NO_SCRATCH
    yield held.address
    memory.kept = held if held.size <= KEPT_BYTES else NO_SCRATCH


def fault() -> str | None:
    """Return why there is no kernel, where all that were needed could not be compiled or loaded."""
    return None if _ready else next(iter(failed.values()), None)


def ready(kernel: Kernel) -> Ready:
    """Return the functions of a kernel, which is compiled or read from the cache when it is first needed."""
    found = _ready.get(kernel)
    return _prepared(kernel) if found is None else found


def _prepared(kernel: Kernel) -> Ready:
    with forks.lock:
        if kernel not in _ready:
            loaded = _loaded(kernel)
            types = (c_int64, *(c_void_p for _ in OPERANDS))
            alone, together = loaded.addresses["alone"], loaded.addresses["together"]
            _ready[kernel] = Ready(
                PYFUNCTYPE(*types)(alone), CFUNCTYPE(*types)(alone), CFUNCTYPE(c_int64, c_void_p, c_void_p)(together)
            )
        return _ready[kernel]


def _loaded(kernel: Kernel) -> Loaded:
    """Load the code of a kernel, which is never freed: threads may run it while the interpreter ends.

    What fails is tried once, unless it fails only because another call of this thread still loads modules.
    """
    if kernel in failed:
        raise KernelError(failed[kernel])
    try:
        target = state.here()
        loaded = Loaded(object_of(kernel, target), kernel.written(target).public, target)
        keep_for_ever(loaded)
    except Warning:  # of the cache, which the user has made an error: the next call compiles
        raise
    except BackendError as error:  # a call in the middle of another one's imports; the next one may have the kernel
        raise KernelError(str(error)) from error
    except NoTarget as error:
        raise KernelError(f"kernel {kernel}: {in_a_line(error)}") from error
    except Exception as error:
        failed[kernel] = f"kernel {kernel}: {type(error).__name__}: {in_a_line(error)}"
        raise KernelError(failed[kernel]) from error
    return loaded


def _team() -> Team | None:
    """Return the threads that help, or None if there is no code for them to run."""
    global _helpers
    team = _helpers
    if team is None and STANDBY not in failed:
        with forks.lock, suppress(KernelError, OSError):  # OSError: no memory for the record
            team = _helpers
            if team is None:
                team = _helpers = Team(_loaded(STANDBY).addresses["attend"])
    return team


def _at_exit() -> None:
    if _helpers is not None:
        _helpers.stop()


def _start_afresh() -> None:
    """Forget the threads of the parent in a forked process."""
    global _helpers
    if _helpers is not None:
        _helpers.forget()
    _helpers = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
atexit.register(_at_exit)
