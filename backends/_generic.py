"""Any other library whose arrays have an Array API namespace: it has the defaults of `Backend`."""

from __future__ import annotations

from typing import Any

from ._base import Backend
from ._terms import Array


class GenericBackend(Backend):
    """A library that portconv has no module for; one of its arrays says what it is."""

    install = "it came with the array"

    def __init__(self, array: Array) -> None:
        import array_api_compat

        self._namespace = array_api_compat.array_namespace(array)
        self.module = type(array).__module__
        self.array_class = type(array).__name__
        self.name = str(self._namespace.__name__).removeprefix("array_api_compat.").partition(".")[0]
        self.mutable = array_api_compat.is_writeable_array(array)

    def load(self) -> Any:
        return self._namespace

    def owns(self, array: object) -> bool:
        import array_api_compat

        return array_api_compat.is_array_api_obj(array) and array_api_compat.array_namespace(array) is self._namespace

    def devices(self) -> list[Any]:
        # JAX lists its devices, and None for the default device.
        return [device for device in super().devices() if device is not None]

    def device_of(self, array: Array) -> Any:
        import array_api_compat

        return array_api_compat.device(array)

    def to_numpy(self, array: Array) -> Any:
        import numpy

        return numpy.asarray(array)
