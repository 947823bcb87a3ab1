"""array-api-strict: the standard alone, on devices that cannot be mixed; it shows whether code is portable."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from typing import Any

from ._base import Backend
from ._generic import lacks_are_named
from ._terms import Array


class ArrayApiStrictBackend(Backend):
    name = "array_api_strict"
    module = "array_api_strict._array_object"
    array_class = "Array"
    install = "pip install array-api-strict"

    def load(self) -> Any:
        return importlib.import_module("array_api_strict")

    def during_call(self, like: Array, precision: str) -> AbstractContextManager[Any]:
        return lacks_are_named(self)  # it can be set to an old version of the standard

    def quiet(self) -> AbstractContextManager[Any]:
        import numpy

        return numpy.errstate(all="ignore")  # its arithmetic is NumPy's

    def to_numpy(self, array: Array) -> Any:
        import numpy

        return numpy.from_dlpack(array.to_device(self.devices()[0]))
