"""A toy array library: NumPy's arithmetic behind another array class, which counts its arrays.

It stands for a library that you have and that portconv does not know. It has the Python Array API and nothing else. Its
functions are NumPy's: they unwrap their arguments from `Array` and wrap their results in one.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import numpy as np

__version__ = "1.0"

DTYPES = ("bool", "float32", "float64", "complex64", "complex128", "int8", "int16", "int32", "int64")
DTYPES += ("uint8", "uint16", "uint32", "uint64")
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")

made = 0
"""How many arrays have been made."""


class Array:
    """A NumPy array behind another class."""

    def __init__(self, values: Any) -> None:
        global made
        made += 1
        self.values = np.asarray(values)

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    mT = property(lambda self: Array(self.values.mT))
    device = "cpu"

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return sys.modules[__name__]

    def to_device(self, device: str) -> Array:
        return self

    def __getitem__(self, index: Any) -> Array:
        return Array(self.values[_unwrapped(index)])  # a view if NumPy's is one

    def __setitem__(self, index: Any, value: Any) -> None:
        self.values[_unwrapped(index)] = _unwrapped(value)

    def __repr__(self) -> str:
        return f"tally.{self.values!r}"


def _unwrapped(value: Any) -> Any:
    """Replace this library's arrays by NumPy's, also inside tuples and lists."""
    if isinstance(value, tuple | list):
        return type(value)(_unwrapped(member) for member in value)
    return value.values if isinstance(value, Array) else value


def _wrapped(value: Any) -> Any:
    """Wrap NumPy's arrays in this library's, also inside tuples and lists."""
    if isinstance(value, tuple | list):
        return tuple(_wrapped(member) for member in value)
    return Array(value) if isinstance(value, np.ndarray | np.generic) else value


def _function(function: Any) -> Any:
    def call(*args: Any, device: str | None = None, **kwargs: Any) -> Any:
        return _wrapped(function(*_unwrapped(args), **{name: _unwrapped(value) for name, value in kwargs.items()}))

    return call


def _operator(name: str) -> Any:
    def apply(self: Array, *others: Any) -> Any:
        if not all(isinstance(other, Array | bool | int | float | complex) for other in others):
            return NotImplemented
        return _wrapped(getattr(self.values, name)(*_unwrapped(others)))

    return apply


def _in_place(name: str) -> Any:
    def apply(self: Array, other: Any) -> Array:
        self.values = getattr(operator, name)(self.values, _unwrapped(other))
        return self

    return apply


for _name in OPERATORS:
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(Array, f"__r{_name}__", _operator(f"__r{_name}__"))
    setattr(Array, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert"):
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))
for _type in (bool, int, float, complex):
    setattr(Array, f"__{_type.__name__}__", lambda self, _type=_type: _type(self.values))


class _Namespace:
    """The functions of a NumPy module, for arrays of this library."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return _function(getattr(self.module, name))


def convolve(x: Array, w: Array, strides: tuple[int, ...], dilations: tuple[int, ...]) -> Array:
    """Slide filters (F, C, *K) over inputs (N, C, *S) without padding: (N, F, *P)."""
    dims = len(strides)
    extents = tuple(d * (k - 1) + 1 for k, d in zip(w.shape[2:], dilations, strict=True))
    cells = np.lib.stride_tricks.sliding_window_view(x.values, extents, axis=tuple(range(2, 2 + dims)))
    cells = cells[(..., *(slice(None, None, step) for step in strides), *(slice(None, None, d) for d in dilations))]
    taps = tuple(range(2 + dims, 2 + 2 * dims))
    return Array(np.moveaxis(np.tensordot(cells, w.values, axes=((1, *taps), (1, *range(2, 2 + dims)))), -1, 1))


fft = _Namespace(np.fft)
inf, nan, pi, e, newaxis = np.inf, np.nan, np.pi, np.e, None


class _Info:
    """What `__array_namespace_info__` returns."""

    def devices(self) -> list[str]:
        return ["cpu"]

    def default_device(self) -> str:
        return "cpu"

    def dtypes(self, *, device: str | None = None, kind: Any = None) -> dict[str, Any]:
        return np.__array_namespace_info__().dtypes(device="cpu", kind=kind)


def __array_namespace_info__() -> _Info:
    return _Info()


def __getattr__(name: str) -> Any:
    if name in DTYPES:
        return np.dtype(name)
    if name.startswith("_") or isinstance(getattr(np, name, None), type | None):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _function(getattr(np, name))
