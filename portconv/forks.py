"""What a fork must not cut in two: a forked child has none of the threads that would go on with it.

`lock` is held while a module is imported late and while a setting of the whole process changes. A fork waits until it
is free, and the child has a new one. The same thread may take it again, because a signal handler or a finalizer may
call portconv in the middle of a call.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from contextlib import suppress
from functools import cached_property
from types import ModuleType
from typing import Any

lock = threading.RLock()


def imported(name: str) -> ModuleType:
    """Import a module late; a child would wait for ever for the import of a thread that it does not have."""
    with lock:
        return importlib.import_module(name)


def _before() -> None:
    lock.acquire()


def _in_parent() -> None:
    with suppress(RuntimeError):  # an interrupt may have ended the wait in `_before`
        lock.release()


def _in_child() -> None:
    global lock
    lock = threading.RLock()
    if sys.version_info < (3, 12):  # until then each cached_property has a lock, one for all instances
        for name in [name for name in sys.modules if name.partition(".")[0] == "portconv"]:
            for member in vars(sys.modules[name]).values():
                for each in vars(member).values() if isinstance(member, type) else ():
                    if isinstance(each, cached_property):
                        unlocked: Any = each
                        unlocked.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
