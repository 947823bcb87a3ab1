"""Dask: its arrays lie in chunks, which are NumPy's or CuPy's, and are computed when a program asks for them."""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any

from ..errors import ConvShapeError, ConvTypeError, PortconvError
from . import of
from ._base import Backend
from ._numpy_like import NumpyLike
from ._terms import Array


class DaskBackend(NumpyLike):
    name = "dask"
    module = "dask.array.core"
    array_class = "Array"
    install = "pip install 'portconv[dask]'"
    mutable = False
    framework = "portconv.frameworks.dask_graph.graph"

    def load(self) -> Any:
        importlib.import_module("dask.array")
        return importlib.import_module("array_api_compat.dask.array")

    def of_chunks(self, array: Array) -> Backend:
        """Return the backend that the chunks of an array belong to."""
        return of(array._meta)

    def objection(self, array: Array) -> PortconvError | None:
        try:
            chunks = self.of_chunks(array)
        except PortconvError as error:
            return ConvTypeError(f"got chunks of no library that portconv knows: {error}")
        if chunks is self or not hasattr(array.dtype, "newbyteorder"):
            return ConvTypeError(f"got chunks of {chunks.name}, expected NumPy's or CuPy's")
        if (objection := chunks.objection(array._meta)) is not None:
            return type(objection)(f"of its chunks: {objection}")
        if not any(math.isnan(size) for size in array.shape):
            return None
        return ConvShapeError(
            f"got shape {tuple(array.shape)} with chunks of unknown sizes, expected known ones; "
            "array.compute_chunk_sizes() finds them, by computing the array"
        )

    def devices(self) -> list[Any]:
        return ["cpu"]

    def device_of(self, array: Array) -> Any:
        return self.of_chunks(array).device_of(array._meta)

    def holds(self, name: str, like: Array) -> bool:
        return self.of_chunks(like).holds(name, like._meta)

    def memory(self, like: Array) -> int:
        return sys.maxsize  # arrays may be larger than the memory of any machine

    def default_workspace(self, like: Array) -> int:
        return self.of_chunks(like).default_workspace(like._meta)

    complex = Backend.complex  # that of NumPy needs both parts of a number in one chunk

    def astype(self, array: Array, dtype: Any) -> Array:
        return array if array.dtype == dtype else array.astype(dtype)

    def asarray(self, obj: Any, dtype: Any = None, device: Any = None) -> Array:
        """Make an array whose chunks have the size that Dask's setting `array.chunk-size` says."""
        import dask.array
        import numpy

        if isinstance(dtype, str):
            dtype = self.dtype(dtype)
        array = obj
        if not self.owns(obj):
            if not hasattr(obj, "__cuda_array_interface__"):
                obj = numpy.asarray(obj, dtype=dtype)
            array = dask.array.from_array(obj, asarray=False)
        return array if dtype is None else self.astype(array, dtype)

    def to_numpy(self, array: Array) -> Any:
        computed = array.compute()
        return of(computed).to_numpy(computed)
