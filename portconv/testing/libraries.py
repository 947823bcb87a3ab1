"""The array libraries that work here, and their devices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import backends as registry
from ..backends import Array, Backend
from ..errors import BackendError, ConvTypeError
from .structures import Host, dtype_name


@dataclass(frozen=True)
class Target:
    """An array library on one of its devices.

    Attributes
    ----------
    backend : portconv.backends.Backend
    device : object
        The device, as the library's own `device=` takes it.
    """

    backend: Backend
    device: Any

    @property
    def name(self) -> str:
        """The backend's name, such as "torch"."""
        return self.backend.name

    @property
    def xp(self) -> Any:
        """The library's Array API namespace."""
        return self.backend.xp

    @property
    def id(self) -> str:
        """The names of the backend and the device, such as "torch-cpu" or "array_api_strict-device1"."""
        text = str(self.device)
        quoted = text.split("'")[1::2]
        words = "".join(letter if letter.isalnum() or letter in ":._" else " " for letter in text).split()
        return "-".join((self.name, *(quoted or words)))

    def __str__(self) -> str:
        return self.id

    def asarray(self, obj: Any, dtype: Any = None) -> Array:
        """Copy host numbers into an array of this library on this device; NumPy chooses the dtype if it is None.

        Examples
        --------
        >>> from portconv.testing import targets
        >>> [str(target.asarray([1.0, 2.0]).dtype) for target in targets(["numpy"])]
        ['float64']
        """
        host = np.array(obj)
        name = dtype_name(host.dtype if dtype is None else dtype)
        if dtype_name(host.dtype) == "bfloat16":
            host = host.astype(np.float32)  # only NumPy takes an array of ml_dtypes
        return self.backend.asarray(host, dtype=name, device=self.device)

    def to_numpy(self, array: Array) -> Host:
        """Copy an array from any device to the host."""
        return np.array(self.backend.to_numpy(array))

    def holds(self, dtype: Any) -> bool:
        """Say whether the library has arrays of this dtype on this device."""
        like = self.backend.asarray(np.zeros(1, np.bool_), device=self.device)
        return self.backend.holds(dtype_name(dtype), like)


def targets(names: Iterable[str] | None = None) -> list[Target]:
    """List the libraries that work here, once for each of their devices.

    A device that lacks a dtype of the library's default device is listed only if it is named.

    Parameters
    ----------
    names : iterable of str, optional
        Backends, such as "torch", or the `id` of a target, such as "torch-cuda:0". All that work here if None.

    Returns
    -------
    list of Target

    Raises
    ------
    BackendError
        If a name is unknown, or if its backend or device does not work here. The message gives the reason.

    Examples
    --------
    >>> from portconv.testing import targets
    >>> [target.id for target in targets(["numpy"])]
    ['numpy-cpu']
    """
    surveys = survey(names)
    for one in surveys:
        if names is not None and one.reason is not None:
            registry.get(one.backend)
            raise BackendError(f"backend {one.name!r} is unavailable: {one.reason}")
    return [target for one in surveys for target in one.targets]


@dataclass(frozen=True)
class Survey:
    """The targets that one name stands for here, or the reason why there are none."""

    name: str
    backend: str
    targets: list[Target]
    reason: str | None


def survey(names: Iterable[str] | None = None) -> list[Survey]:
    """Look up these backends or targets, or every known backend; an unknown name is a BackendError."""
    if isinstance(names, str):
        raise ConvTypeError(f"backends: got {names!r}, expected several names")
    return [look_up(name) for name in (registry.names() if names is None else names)]


def look_up(name: str) -> Survey:
    """Find the targets of one backend's name or target's `id`; an unknown name is a BackendError."""
    if not isinstance(name, str):
        raise ConvTypeError(f"backend: got {type(name).__name__}, expected a str")
    prefixes = [known for known in registry.names() if name == known or name.startswith(f"{known}-")]
    backend_name = max(prefixes, key=len, default=name)
    try:
        backend = registry.find(backend_name)
    except BackendError:
        if not prefixes:
            raise
        return Survey(name, backend_name, [], "its entry point cannot be loaded")  # the registry has warned why
    if backend.fault is not None:
        return Survey(name, backend_name, [], str(backend.fault))
    devices = backend.devices()
    if name == backend_name:
        return Survey(name, name, [Target(backend, device) for device in _full_devices(backend, devices)], None)
    on_all_devices = [Target(backend, device) for device in devices]
    matches = [target for target in on_all_devices if target.id == name]
    ids = ", ".join(target.id for target in on_all_devices)
    return Survey(name, backend_name, matches, None if matches else f"here are {ids}")


def _full_devices(backend: Backend, devices: list[Any]) -> list[Any]:
    """List the devices that hold every dtype of the first one."""
    info = backend.info
    if info is None:
        return devices
    needed = set(info.dtypes(device=devices[0], kind=None))
    return [
        device for device in devices if device is devices[0] or needed <= set(info.dtypes(device=device, kind=None))
    ]
