"""Threads that help calls: they stand by awake for a moment after each call, and then sleep.

A thread that sleeps takes some 70 microseconds to wake up, as long as a small convolution. So a thread that has helped
looks for the next call for `AWAKE_MICROSECONDS`, in code that needs no interpreter (see `share`), and only then
sleeps. A call that is long enough, or one of a series, wakes those that sleep, and computes meanwhile.

A thread that looks lets the system run others again and again. It may have been woken on the CPU of the caller, who
would wait there until it sleeps.

Nothing here takes two steps to be right: an interrupt may end any step, and a signal handler may call portconv in the
middle of one. Where no thread can start, as at the end of the interpreter, calls compute alone.
"""

from __future__ import annotations

import os
import sys
from _thread import start_new_thread
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_char, c_int64, c_void_p
from ctypes import addressof as address_of
from queue import Empty, SimpleQueue
from time import perf_counter

from .. import forks
from .share import APART, AWAKE, INSIDE, OPEN, SEAT, STOP, TEAM_WORDS, YIELD

AWAKE_MICROSECONDS = 150
"""How long a thread looks for the next call before it sleeps."""
IDLE = 60.0
"""After so many seconds asleep a thread ends."""
FEW_LOOKS = 4000
"""So many looks are timed, to know how many take a microsecond here."""
SERIES = 2 * AWAKE_MICROSECONDS * 1e-6
"""Calls that begin no more than so many seconds apart are a series, in which a thread that is awake stays awake."""
AT_EXIT = 1.0
"""So many seconds the end of the interpreter waits for threads that stand by."""


class Team:
    """The threads that help, and the record that they look at.

    Parameters
    ----------
    attend : int
        The address of the function that `standby` writes.
    """

    def __init__(self, attend: int) -> None:
        # No shared mapping: a forked child must have a record of its own. Threads look at it until the process ends.
        memory = bytearray(8 * (TEAM_WORDS + APART))
        keep_for_ever(memory)
        start = address_of(c_char.from_buffer(memory))
        skipped = -start % (8 * APART)
        self.address = start + skipped
        self.words = memoryview(memory)[skipped : skipped + 8 * TEAM_WORDS].cast("q")
        self.words[YIELD] = _yield_address()
        self.attend: Callable[[int, int], None] = CFUNCTYPE(None, c_void_p, c_int64)(attend)
        self.looks = self._looks()
        self.last = -SERIES
        """When the last call began."""
        self.alive: set[object] = set()
        self.wanted: SimpleQueue[None] = SimpleQueue()
        """An element wakes one thread."""

    def _looks(self) -> int:
        """Return how many looks at the record take as long as a thread is to stay awake."""
        taken = []
        for _ in range(5):
            start = perf_counter()
            self.attend(self.address, FEW_LOOKS)
            taken.append(perf_counter() - start)
        return max(1, int(FEW_LOOKS * AWAKE_MICROSECONDS * 1e-6 / max(min(taken), 1e-9)))

    def wake(self, count: int, *, is_long: bool = True) -> bool:
        """Wake threads, or start them, until `count` are awake; for a short call only if it is one of a series.

        Return whether any thread may help.
        """
        now, before, awake = perf_counter(), self.last, self.words[AWAKE]
        self.last, missing = now, count - awake
        if missing <= 0 or not (is_long or now - before < SERIES):
            return awake > 0
        # Who is about to wake up is not awake yet, and need not be woken twice.
        for _ in range(min(missing, len(self.alive)) - self.wanted.qsize()):
            self.wanted.put(None)
        for _ in range(count - len(self.alive)):
            if not self._start():
                break
        return len(self.alive) > 0

    def _start(self) -> bool:
        """Start one more thread; return whether the system has one to give."""
        if sys.is_finalizing() or self.words[STOP]:
            return False
        one = object()
        try:
            start_new_thread(self._serve, (one,))
        except RuntimeError:
            return False
        self.alive.add(one)  # it does so itself, but maybe later
        return True

    def _serve(self, one: object) -> None:
        """Stand by, sleep, and so on, until nobody has needed this thread for a while."""
        self.alive.add(one)
        try:
            while not self.words[STOP]:
                self.attend(self.address, self.looks)
                self.wanted.get(timeout=IDLE)
        except Empty:
            pass
        finally:
            self.alive.discard(one)

    def stop(self) -> None:
        """Let the threads that stand by leave the code that the interpreter is about to free."""
        self.words[STOP] = 1
        until = perf_counter() + AT_EXIT
        while self.words[AWAKE] > 0 and perf_counter() < until:
            forks.imported("time").sleep(0)

    def forget(self) -> None:
        """Forget all threads: a forked process has none, and a call that went on into it would wait for them."""
        for word in (OPEN, INSIDE, AWAKE, SEAT):
            self.words[word] = 0


def keep_for_ever(one: object) -> None:
    """Let the interpreter never free an object, because threads may use its memory until the process ends."""
    ctypes = forks.imported("ctypes")
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


def _yield_address() -> int:
    """Return the address of the function that lets the system run other threads; 0 where there is none."""
    if not hasattr(os, "sched_yield"):
        return 0
    try:
        function = forks.imported("ctypes").CDLL(None).sched_yield
    except (OSError, AttributeError, TypeError):
        return 0
    return c_void_p.from_buffer(function).value or 0
