"""Take apart the tuples, lists and dicts that hold a function's arguments, its results and their tolerances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import backends as registry

Host = NDArray[Any]
Doubles = NDArray[np.float64]


def map_arrays(value: Any, change: Callable[[Host], Any]) -> Any:
    """Return the same structure, with `change` applied to its NumPy arrays."""
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, dict):
        return {key: map_arrays(member, change) for key, member in value.items()}
    if isinstance(value, tuple | list):
        members = [map_arrays(member, change) for member in value]
        return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)
    return value


def arrays(value: Any) -> list[Host]:
    """List the NumPy arrays of a structure."""
    listed: list[Host] = []
    map_arrays(value, listed.append)
    return listed


def leaves(value: Any, place: str = "") -> dict[str, Any]:
    """Return the parts of a structure by their places, such as ".dx" or "[0]"."""
    if isinstance(value, dict):
        members = [(f"[{key!r}]", member) for key, member in value.items()]
    elif isinstance(value, tuple | list):
        names = getattr(value, "_fields", None)
        places = [f"[{i}]" for i in range(len(value))] if names is None else [f".{name}" for name in names]
        members = list(zip(places, value, strict=True))
    else:
        return {place: value}
    return {inner: leaf for step, member in members for inner, leaf in leaves(member, place + step).items()}


def on_host(value: Any) -> Host:
    """Return a number, or an array of any library, as a NumPy array."""
    if isinstance(value, np.ndarray | np.generic | bool | int | float | complex):
        return np.asarray(value)
    return np.asarray(registry.of(value).to_numpy(value))


def dtype_name(dtype: Any) -> str:
    """Return the name of any library's dtype, such as "float32"."""
    if isinstance(dtype, type):
        return np.dtype(dtype).name
    return str(getattr(dtype, "name", None) or dtype).rpartition(".")[2]
