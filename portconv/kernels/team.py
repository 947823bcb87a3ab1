"""Threads that help calls: they stand by awake for a moment after each call, and then sleep.

A thread that sleeps takes some 50 microseconds to wake up, as long as a small convolution. So a thread that has helped
looks for the next call for `AWAKE_MICROSECONDS`, in code that needs no interpreter (see `share`), and only then
sleeps. A call that is long enough wakes those that sleep, and computes meanwhile.

Nothing here takes two steps to be right: an interrupt may end any step, and a signal handler may call portconv in the
middle of one. Where no thread can start, as at the end of the interpreter, calls compute alone.
"""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_char, c_int64, c_void_p
from ctypes import addressof as address_of
from time import perf_counter
from typing import Any

from .. import forks
from .share import AWAKE, STOP, TEAM_WORDS, YIELD

AWAKE_MICROSECONDS = 150
"""How long a thread looks for the next call before it sleeps."""
IDLE = 60.0
"""After so many seconds asleep a thread ends."""
FEW_LOOKS = 4000
"""So many looks are timed, to know how many take a microsecond here."""
AT_EXIT = 1.0
"""So many seconds the end of the interpreter waits for threads that stand by."""


class Team:
    """The threads that help, and the record that they look at.

    Parameters
    ----------
    attend : int
        The address of the function that `share.standby` writes.
    """

    def __init__(self, attend: int) -> None:
        # An anonymous mapping begins on a page, and is never freed: threads may look at it until the process ends.
        self.memory = forks.imported("mmap").mmap(-1, 8 * TEAM_WORDS)
        self.address = address_of(c_char.from_buffer(self.memory))
        self.words = memoryview(self.memory).cast("q")
        self.words[YIELD] = _yield_address()
        self.attend: Callable[[int, int], None] = CFUNCTYPE(None, c_void_p, c_int64)(attend)
        self.looks = self._looks()
        self.sleeping: list[Any] = []
        """The locks of the threads that sleep, each of which its thread waits for."""
        self.alive: set[object] = set()

    def _looks(self) -> int:
        """Return how many looks at the record take as long as a thread is to stay awake."""
        taken = []
        for _ in range(5):
            start = perf_counter()
            self.attend(self.address, FEW_LOOKS)
            taken.append(perf_counter() - start)
        return max(1, int(FEW_LOOKS * AWAKE_MICROSECONDS * 1e-6 / max(min(taken), 1e-9)))

    def wake(self, count: int) -> None:
        """Wake threads, or start them, until `count` are awake."""
        for _ in range(count - self.words[AWAKE]):
            try:
                lock = self.sleeping.pop()
            except IndexError:
                if len(self.alive) >= count or not self._start():
                    return
            else:
                lock.release()

    def _start(self) -> bool:
        """Start one more thread; return whether the system has one to give."""
        if sys.is_finalizing() or self.words[STOP]:
            return False
        lock = allocate_lock()
        self.alive.add(lock)
        try:
            start_new_thread(self._serve, (lock,))
        except RuntimeError:
            self.alive.discard(lock)
            return False
        return True

    def _serve(self, lock: Any) -> None:
        """Stand by, sleep, and so on, until nobody has needed this thread for a while."""
        try:
            lock.acquire()
            while not self.words[STOP]:
                self.attend(self.address, self.looks)
                self.sleeping.append(lock)
                if not lock.acquire(timeout=IDLE):
                    return
        finally:
            self.alive.discard(lock)
            if lock in self.sleeping:
                self.sleeping.remove(lock)

    def stop(self) -> None:
        """Let the threads that stand by leave the code that the interpreter is about to free."""
        self.words[STOP] = 1
        until = perf_counter() + AT_EXIT
        while self.words[AWAKE] > 0 and perf_counter() < until:
            forks.imported("time").sleep(0)


def _yield_address() -> int:
    """Return the address of the function that lets the system run other threads; 0 where there is none."""
    if not hasattr(os, "sched_yield"):
        return 0
    try:
        function = forks.imported("ctypes").CDLL(None).sched_yield
    except (OSError, AttributeError, TypeError):
        return 0
    return c_void_p.from_buffer(function).value or 0
