"""array-api-strict: the standard and nothing else, on devices that refuse to be mixed; the judge of portability."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ._base import Array, Backend, Unavailable


class ArrayApiStrictBackend(Backend):
    name = "array_api_strict"
    module = "array_api_strict._array_object"
    array_class = "Array"
    install = "pip install array-api-strict"

    def load(self) -> Any:
        try:
            import array_api_strict
        except ImportError as error:
            raise Unavailable(f"array-api-strict is not installed ({error})") from error
        return array_api_strict

    def quiet(self) -> AbstractContextManager[Any]:
        import numpy

        return numpy.errstate(all="ignore")  # NumPy does its arithmetic

    def to_numpy(self, array: Array) -> Any:
        import numpy

        return numpy.from_dlpack(array.to_device(self.devices()[0]))
