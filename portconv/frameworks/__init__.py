"""The frameworks that take an operation as one node of their graph, each in one file or folder."""

from __future__ import annotations

from typing import Any

from .. import forks

MODULES = ("dask_graph", "jax_primitive", "torch_autograd", "torch_compile", "torch_operators")


def __getattr__(name: str) -> Any:
    """Import a module of this package when it is first named."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return forks.attribute(__name__, name)
