"""What is imported late, for the time that it takes alone: a call without reproducible precision does without it."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType


@cache
def reproducible(name: str) -> ModuleType:
    """Import a module of the package `portconv.reproducible` when it is first needed."""
    return importlib.import_module(f"portconv.reproducible.{name}")
