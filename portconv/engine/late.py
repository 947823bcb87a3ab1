"""What is imported late, for the time that it takes alone: a call without reproducible precision does without it."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from .. import forks


@cache
def reproducible(name: str) -> ModuleType:
    """Import a module of the package `portconv.reproducible` when it is first needed."""
    return forks.imported(f"portconv.reproducible.{name}")
