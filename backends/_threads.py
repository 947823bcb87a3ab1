"""Settings that overlapping calls share, and threads that help a call.

Both withstand what may come between any two steps of Python code: an interrupt, which ends the step (Ctrl-C), and a
signal handler or a finalizer that calls portconv in turn. So no state here takes two steps to be right.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from typing import Any

from .. import forks

IDLE = 60.0
"""After so many seconds without work a worker ends, and its workspaces are freed."""
LOST = 1.0
"""So many seconds a caller waits for a worker before it looks whether it is in a forked process, which has none."""

_UNSURE = object()


class Held:
    """A setting of the process, or of a thread, that calls hold to a value of theirs while they run.

    Calls overlap, so none restores what it found: the last one restores what the first one found. What calls ask for
    are entries of a dict, and `_apply` leads from any state to what the entries ask for: so a call may release twice.

    Parameters
    ----------
    read, write : callable
        What reads the setting, and what sets it.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        self.read, self.write = read, write
        self.asked: dict[object, Any] = {}
        self.found: Any = None
        self.current: Any = None
        """What the setting is held to; None if it is the user's."""

    def hold(self, key: object, value: Any) -> None:
        """Hold the setting to a value, or to the least of those that calls ask for, until `release(key)`."""
        with forks.lock:
            self.asked[key] = value
            self._apply()

    def release(self, key: object) -> None:
        """End what `hold` began; do nothing where that has been done, or never began."""
        with forks.lock:
            self.asked.pop(key, None)
            self._apply()

    def users(self) -> Any:
        """Return the setting as the user has it."""
        with forks.lock:
            return self.read() if self.current is None else self.found

    def forget(self) -> None:
        """End all that calls hold: in a forked process their threads are no more."""
        with forks.lock:
            self.asked.clear()
            self._apply()

    def _apply(self) -> None:
        wanted = min(self.asked.values(), default=None)
        if wanted == self.current:
            return
        if self.current is None:
            self.found = self.read()
        self.current = _UNSURE
        self.write(self.found if wanted is None else wanted)
        self.current = wanted


class Holding:
    """One call's hold on settings, from `begin` to `end`, or inside of `with`.

    `end` may be called twice: an interrupt may come just before its first step, so a caller that must be sure calls it
    in a `try` and once more in its `finally`.
    """

    def __init__(self, settings: Sequence[Held], value: Any) -> None:
        self.settings, self.value, self.key = settings, value, object()

    def begin(self) -> None:
        for setting in self.settings:
            setting.hold(self.key, self.value)

    def end(self) -> None:
        for setting in self.settings:
            setting.release(self.key)

    def __enter__(self) -> None:
        try:
            self.begin()
        except BaseException:
            self.end()
            raise

    def __exit__(self, *_: object) -> None:
        self.end()


class Workers:
    """The threads that help calls, started when they are first needed.

    They are made of what C code does in one step: a queue, lists, locks and bare threads. An interrupt can leave the
    executors of the standard library locked. Nothing waits for a worker that has not begun, so a call needs none: where
    no thread can start any more, as at the end of the interpreter, the caller does all the work.
    """

    def __init__(self, settings: Callable[[], Sequence[Held]]) -> None:
        self.settings = settings
        """What gives the settings that a worker holds to 1 while it works."""
        self.offers: SimpleQueue[list[tuple[Context, Callable[[], None], Any]]] = SimpleQueue()
        self.alive: set[object] = set()
        self.lost = False
        """Whether this process was forked from the one that has these threads."""

    def run(self, work: Callable[[], None], helped: Callable[[], None], count: int) -> bool:
        """Run `work` here, and `helped` in at most `count` workers, each in a copy of the caller's context.

        Return whether all has been done: in a process that was forked meanwhile, workers have taken some of it away.
        """
        errors: list[BaseException] = []

        def help_out() -> None:
            try:
                helped()
            except BaseException as error:  # the caller raises it
                errors.append(error)

        # Who pops the one element of an offer has taken it: a worker, or the caller at the end.
        begun = []
        try:
            for _ in range(self._start(count)):
                done = allocate_lock()
                done.acquire()
                offer = [(copy_context(), help_out, done)]
                begun.append((offer, done))
                self.offers.put(offer)
            copy_context().run(work)
        finally:
            for offer, done in begun:
                try:
                    offer.pop()
                except IndexError:
                    while not (done.acquire(timeout=LOST) or self.lost):
                        pass
        if errors:
            raise errors[0]
        return not self.lost

    def _start(self, count: int) -> int:
        """Start the workers that are missing; return how many of `count` there are."""
        if len(self.alive) < count and not sys.is_finalizing():
            with forks.lock:
                try:
                    for _ in range(count - len(self.alive)):
                        one = object()
                        start_new_thread(self._serve, (one,))
                        self.alive.add(one)
                except RuntimeError:  # the system has no thread to give, or the interpreter ends
                    pass
        return min(count, len(self.alive))

    def _serve(self, one: object) -> None:
        """Take offers until none has come for a while."""
        try:
            while True:
                try:
                    offer = self.offers.get(timeout=IDLE)
                except Empty:
                    return
                if offer:  # otherwise the caller has finished without this worker
                    self._serve_one(offer)
                del offer
        finally:
            self.alive.discard(one)

    def _serve_one(self, offer: list[tuple[Context, Callable[[], None], Any]]) -> None:
        """Take an offer, unless the caller takes it back first.

        The caller may wait in a signal handler, in the middle of a step that has the lock. So a worker takes an offer
        only while settings are held already, and does not let the caller wait long for the lock at the end.
        """
        holding = Holding(self.settings(), 1)
        try:
            holding.begin()
            context, work, done = offer.pop()
        except IndexError:
            holding.end()
            return
        try:
            context.run(work)
        finally:
            free = forks.lock.acquire(timeout=LOST)
            if free:
                holding.end()
                forks.lock.release()
            done.release()
            if not free:
                holding.end()
