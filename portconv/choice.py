"""Which algorithm serves a call."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

# Imported here, so that the package's name is bound in portconv before the public function of that name takes it over.
from . import algorithms as package
from .arguments import option

_NAMES = ("gemm", "direct")


def algorithms() -> tuple[str, ...]:
    """Name the algorithms, in the order that ``algorithm="auto"`` considers them.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> portconv.algorithms()
    ('gemm', 'direct')
    """
    return _NAMES


@cache
def _module(name: str) -> ModuleType:
    """Import an algorithm when it is first needed: `direct` needs a library that `gemm` does without."""
    return importlib.import_module(f"{package.__name__}.{name}")


def choose(algorithm: str) -> ModuleType:
    """Return the module of an algorithm given by name; "auto" is the first."""
    name = option("algorithm", algorithm, ("auto", *_NAMES))
    return _module(_NAMES[0] if name == "auto" else name)
