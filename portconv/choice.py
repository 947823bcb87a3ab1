"""Which algorithm serves a call."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

# Imported here, so that the package's name is bound in portconv before the public function of that name takes it over.
from . import algorithms as package
from .arguments import Dtype, option
from .backends import Backend
from .errors import ConvValueError
from .geometry import Geometry

_NAMES = ("winograd", "fft", "depthwise", "gemm", "direct")


def algorithms() -> tuple[str, ...]:
    """Name the algorithms, in the order that ``algorithm="auto"`` considers them.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> portconv.algorithms()
    ('winograd', 'gemm', 'direct')
    """
    return _NAMES


@cache
def _module(name: str) -> ModuleType:
    """Import an algorithm when it is first needed: `direct` needs a library that `gemm` does without."""
    return importlib.import_module(f"{package.__name__}.{name}")


def choose(algorithm: str, geometry: Geometry, backend: Backend, dtype: Dtype) -> ModuleType:
    """Return the module of an algorithm given by name, or of the one that "auto" stands for."""
    name = option("algorithm", algorithm, ("auto", *_NAMES))
    if dtype.kind != "real floating":
        # Tiles halve integers, and the bound of their error is one of real numbers.
        if name == "winograd":
            raise ConvValueError(f"algorithm: got 'winograd' for {dtype.name}, expected 'auto', or real floating point")
        return _module("gemm" if name == "auto" else name)
    if name == "winograd" and (served := _module(name).objection(geometry)):
        raise ConvValueError(
            f"algorithm: got 'winograd' for a kernel of {geometry.kernel}, stride {geometry.stride} and dilation "
            f"{geometry.dilation}, expected 'auto', or {served}"
        )
    if name == "auto":
        name = "winograd" if _module("winograd").worthwhile(geometry, backend) else "gemm"
    return _module(name)
