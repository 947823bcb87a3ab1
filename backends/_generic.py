"""Any other library whose arrays have an Array API namespace: the defaults of `Backend` and nothing more."""

from __future__ import annotations

from typing import Any

from ._base import Array, Backend


class GenericBackend(Backend):
    """A library portconv has no module for, known by one of its arrays."""

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
        # JAX lists None, its word for the default, beside the devices themselves.
        return [device for device in super().devices() if device is not None]

    def device_of(self, array: Array) -> Any:
        import array_api_compat

        return array_api_compat.device(array)

    def to_numpy(self, array: Array) -> Any:
        import numpy

        return numpy.asarray(array)
