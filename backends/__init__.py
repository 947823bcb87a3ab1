"""The array libraries that portconv runs on: which are known, which work here, and which one an array belongs to.

A backend is one module of this package, `_NAME.py`, with one subclass of `Backend`; no other file lists it. A third
party adds a backend through the entry-point group ``portconv.backends``: a name, and the subclass for it. A library is
imported when its name is asked for, and not in order to find out whether an array belongs to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

from .. import forks
from ..errors import BackendError, ConvTypeError
from ._base import Backend
from ._generic import GenericBackend
from ._native import Convolution, NativeConvolution, NativeWork
from ._terms import Array, ArrayT, Costs, Unavailable, Workspace

__all__ = [
    "Array",
    "ArrayT",
    "Backend",
    "Convolution",
    "Costs",
    "NativeConvolution",
    "NativeWork",
    "Unavailable",
    "Workspace",
    "available",
    "find",
    "get",
    "names",
    "of",
]

GROUP = "portconv.backends"
NO_LIBRARY = {
    "_base",
    "_blas",
    "_cudnn",
    "_generic",
    "_host",
    "_library",
    "_native",
    "_numpy_native",
    "_numpy_like",
    "_terms",
    "_threads",
    "_torch_native",
}
"""The modules of this package that have no backend of a library."""

_by_class: dict[type, Backend] = {}
"""The backend of each class of arrays that `of` has had."""


@cache
def _own() -> dict[str, Backend]:
    """Return the backends of this package by name: the subclasses of `Backend` that its modules define."""
    by_name = {}
    for info in forks.imported("pkgutil").iter_modules(__path__):  # late, for the time that it takes
        if info.name.startswith("_") and info.name not in NO_LIBRARY:
            module = forks.imported(f"{__name__}.{info.name}")
            for member in vars(module).values():
                if isinstance(member, type) and issubclass(member, Backend) and member.__module__ == module.__name__:
                    by_name[member.name] = member()
    return by_name


@cache
def announced() -> dict[str, Any]:
    """Return the entry points of third parties by name, without loading them."""
    entry_points = forks.imported("importlib.metadata").entry_points
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in _own()}


@cache
def third_party_backend(name: str) -> Backend | None:
    """Load the backend of a third party; if it is broken, warn once and return None."""
    try:
        backend = announced()[name].load()()
        if not isinstance(backend, Backend):
            raise TypeError(f"{backend!r} is no portconv.backends.Backend")
        backend.name = name
    except Exception as error:
        warnings.warn(f"portconv: the backend {name!r} of {announced()[name].value!r} is broken: {error}", stacklevel=3)
        return None
    return backend


def names() -> tuple[str, ...]:
    """Return the names of all known backends, installed or not.

    Returns
    -------
    tuple of str
        Sorted, with those of third parties.

    Examples
    --------
    >>> "numpy" in portconv.backends.names()
    True
    """
    return tuple(sorted({*_own(), *announced()}))


def find(name: str) -> Backend:
    """Return a known backend, whether it works here or not: `Backend.unavailable` says why it does not.

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
        If no backend has that name, or the backend of a third party cannot be loaded.

    Examples
    --------
    >>> portconv.backends.find("numpy").unavailable is None
    True
    """
    backend = _own().get(name) or (third_party_backend(name) if name in announced() else None)
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
        If the name is unknown, or the library is missing or has no device here; the message has the reason, and the
        command that installs the library.

    Examples
    --------
    >>> portconv.backends.get("numpy").devices()
    ['cpu']
    """
    backend = find(name)
    backend.xp  # noqa: B018  (raises the error if the library does not work)
    return backend


def available() -> tuple[Backend, ...]:
    """Return the backends that work here, in the order of `names()`.

    Returns
    -------
    tuple of Backend

    Examples
    --------
    >>> [backend.name for backend in portconv.backends.available() if backend.name == "numpy"]
    ['numpy']
    """
    known = (_own().get(name) or third_party_backend(name) for name in names())
    return tuple(backend for backend in known if backend is not None and backend.fault is None)


def of(array: Array, beside: Mapping[str, Array] | None = None) -> Backend:
    """Return the backend that an array belongs to.

    Parameters
    ----------
    array : array
        An array of any library with an Array API namespace, known here or not.
    beside : mapping of str to array, optional
        The arguments of the call by name: where `array` is no array, the message asks for one of the library of these.

    Returns
    -------
    Backend

    Raises
    ------
    ConvTypeError
        If `array` is not an array, or a scalar or a wrapper of a library and not its array.
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
        backend = _by_class[type(array)] = _recognised(array, beside or {})
    return backend


def is_symbol(value: object) -> bool:
    """Return whether torch.compile has a symbol in the place of an integer, so that what it compiles serves many."""
    return type(value).__name__ == "SymInt"


def _recognised(array: Array, beside: Mapping[str, Array]) -> Backend:
    """Find the backend of an array: one of this package, of a third party, or one for an unknown library."""
    for backend in _own().values():
        if backend.owns(array):
            return get(backend.name)
    what = type(array).__name__
    lacking = f"got {what}, expected an array with an Array API namespace"
    try:
        is_shaped = hasattr(array, "shape")
    except Exception as error:  # a property may raise any error
        raise ConvTypeError(lacking) from error
    if not is_shaped:
        raise ConvTypeError(f"got {what}, expected an array")
    for name in announced():
        third_party = third_party_backend(name)
        if third_party is not None and third_party.owns(array):
            return third_party
    try:
        for backend in _by_class.values():
            if isinstance(backend, GenericBackend) and backend.owns(array):
                return backend
        backend = GenericBackend(array)
    except Exception as error:  # so may `__array_namespace__`
        raise ConvTypeError(lacking) from error
    known = _own().get(backend.name.partition(".")[0])
    if known is not None:  # such as a scalar of NumPy, or a parameter that wraps an array of JAX
        wanted, why = _first(beside) or (known, "")
        raise ConvTypeError(
            f"got {what}, expected {wanted.module}.{wanted.array_class}{why}; {wanted.converter} makes one of it"
        )
    return backend


def _first(arrays: Mapping[str, Array]) -> tuple[Backend, str] | None:
    """Return the backend of the first that is an array, and say which one that is."""
    for name, array in arrays.items():
        try:
            return of(array), f", as {name} is"
        except ConvTypeError:
            continue
    return None
