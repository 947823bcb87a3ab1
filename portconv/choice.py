"""Which algorithm serves a call."""

from __future__ import annotations

from types import ModuleType

from .algorithms import direct, gemm
from .arguments import option

_MODULES: dict[str, ModuleType] = {"gemm": gemm, "direct": direct}


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
    return tuple(_MODULES)


def choose(algorithm: str) -> ModuleType:
    """Return the module of an algorithm given by name; "auto" is the first."""
    name = option("algorithm", algorithm, ("auto", *_MODULES))
    return _MODULES[algorithms()[0] if name == "auto" else name]
