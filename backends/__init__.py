"""The array libraries that portconv runs on: which are known, which work here, and which an array belongs to.

A backend is one module of this package, `_NAME.py`, with one subclass of `Backend`; nothing lists it elsewhere. A third
party adds one through the entry-point group ``portconv.backends``: a name, and the subclass it stands for. No library
is imported before it is asked for by name, and none to find out that an array is not its own.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from functools import cache
from typing import Any

from ..errors import BackendError, ConvTypeError
from ._base import Array, Backend, Costs, Unavailable, Workspace
from ._generic import GenericBackend

__all__ = ["Array", "Backend", "Costs", "Unavailable", "Workspace", "available", "find", "get", "names", "of"]

GROUP = "portconv.backends"
NO_LIBRARY = {"_base", "_generic"}

_by_class: dict[type, Backend] = {}


@cache
def _own() -> dict[str, Backend]:
    """The backends in this folder, by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_") and module.name not in NO_LIBRARY:
            members = vars(importlib.import_module(f"{__name__}.{module.name}")).values()
            for member in members:
                if isinstance(member, type) and issubclass(member, Backend) and member is not Backend:
                    found[member.name] = member()
    return found


@cache
def _announced() -> dict[str, Any]:
    """Third parties' entry points, by name, not yet loaded."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP) if point.name not in _own()}


@cache
def _third_party(name: str) -> Backend | None:
    """Load a third party's backend; None, after one warning that names it, where it is broken."""
    try:
        backend = _announced()[name].load()()
        if not isinstance(backend, Backend):
            raise TypeError(f"{backend!r} is no portconv.backends.Backend")
        backend.name = name
    except Exception as error:
        warnings.warn(
            f"portconv: the backend {name!r} of {_announced()[name].value!r} is broken: {error}", stacklevel=3
        )
        return None
    return backend


def names() -> tuple[str, ...]:
    """Every known backend, installed or not.

    Returns
    -------
    tuple of str
        Sorted names, third parties' included.

    Examples
    --------
    >>> "numpy" in portconv.backends.names()
    True
    """
    return tuple(sorted({*_own(), *_announced()}))


def find(name: str) -> Backend:
    """Return a known backend, whether or not it works here: `Backend.unavailable` says why not.

    Parameters
    ----------
    name : str
        One of `names()`.

    Returns
    -------
    Backend

    Raises
    ------
    BackendError
        If no backend has that name, or a third party's cannot be loaded.

    Examples
    --------
    >>> portconv.backends.find("numpy").unavailable is None
    True
    """
    backend = _own().get(name) or (_third_party(name) if name in _announced() else None)
    if backend is None:
        raise BackendError(f"backend: got {name!r}, expected one of {', '.join(names())}")
    return backend


def get(name: str) -> Backend:
    """Return a backend that works here.

    Parameters
    ----------
    name : str
        One of `names()`.

    Returns
    -------
    Backend

    Raises
    ------
    BackendError
        If the name is unknown, or the library is missing or has no device here; the message has the reason and the
        command that installs it.

    Examples
    --------
    >>> portconv.backends.get("numpy").devices()
    ['cpu']
    """
    backend = find(name)
    backend.xp  # noqa: B018  (raises where it does not work)
    return backend


def available() -> tuple[Backend, ...]:
    """The backends that work here, in the order of `names()`.

    Returns
    -------
    tuple of Backend

    Examples
    --------
    >>> [backend.name for backend in portconv.backends.available() if backend.name == "numpy"]
    ['numpy']
    """
    known = (_own().get(name) or _third_party(name) for name in names())
    return tuple(backend for backend in known if backend is not None and backend.fault is None)


def of(array: Array) -> Backend:
    """Return the backend that an array belongs to.

    Parameters
    ----------
    array : array
        Of any library with an Array API namespace, known here or not.

    Returns
    -------
    Backend

    Raises
    ------
    ConvTypeError
        If `array` is no array.
    BackendError
        If the array's library does not work here.

    Examples
    --------
    >>> import numpy as np
    >>> portconv.backends.of(np.zeros(3)).name
    'numpy'
    """
    backend = _by_class.get(type(array))
    if backend is None:
        backend = _by_class[type(array)] = _recognised(array)
    return backend


def _recognised(array: Array) -> Backend:
    for backend in _own().values():
        if backend.owns(array):
            return get(backend.name)
    if not hasattr(type(array), "shape"):
        raise ConvTypeError(f"got {type(array).__name__}, expected an array")
    for name in _announced():
        third_party = _third_party(name)
        if third_party is not None and third_party.owns(array):
            return third_party
    try:
        return GenericBackend(array)
    except TypeError as error:
        raise ConvTypeError(f"got {type(array).__name__}, expected an array with an Array API namespace") from error
