"""What a fork must not cut in two: a forked child has none of the threads that would go on with it.

`lock` is held while a module is imported late and while a setting of the whole process changes. A fork waits until it
is free, and so it is in the child. The same thread may take it again, because a signal handler or a finalizer may
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

from .errors import BackendError

lock = threading.RLock()
_importing = False


def attribute(package: str, name: str) -> ModuleType:
    """Import a module of a package when it is first used as an attribute, also by another that is being imported."""
    with lock:
        return importlib.import_module(f"{package}.{name}")


def imported(name: str) -> ModuleType:
    """Import a module late; a child would wait for ever for the import of a thread that it does not have.

    A `BackendError` says that this interrupts another late import of the same thread, which Python cannot finish first.
    """
    global _importing
    with lock:
        module = sys.modules.get(name)
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            return module
        if _importing:
            raise BackendError("got a call while the first one still loads modules, expected it after that one")
        _importing = True
        try:
            return importlib.import_module(name)
        finally:
            _importing = False


def _before() -> None:
    lock.acquire()


def _in_parent() -> None:
    with suppress(RuntimeError):  # an interrupt may have ended the wait in `_before`
        lock.release()


def _in_child() -> None:
    global lock
    try:
        lock.release()  # the same lock: a signal handler may have forked while this thread waited for it
    except RuntimeError:  # an interrupt has ended the wait in `_before`, and another thread had it
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
