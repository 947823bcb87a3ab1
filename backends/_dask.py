"""Dask: chunks of NumPy's or CuPy's, and steps of a call as graphs that nothing computes until somebody asks."""

from __future__ import annotations

import math
import sys
from typing import Any

from ..errors import ConvShapeError, ConvTypeError, PortconvError
from . import of
from ._base import Array, Backend, Unavailable, bfloat16


class DaskBackend(Backend):
    name = "dask"
    module = "dask.array.core"
    array_class = "Array"
    install = "pip install 'portconv[dask]'"
    mutable = False
    framework = "portconv.frameworks.dask_graph.graph"

    def load(self) -> Any:
        try:
            import array_api_compat.dask.array as xp
            import dask.array  # noqa: F401
        except ImportError as error:
            raise Unavailable(f"Dask is not installed ({error})") from error
        return xp

    def of_chunks(self, array: Array) -> Backend:
        """The backend that an array's chunks belong to."""
        return of(array._meta)

    def objection(self, array: Array) -> PortconvError | None:
        try:
            chunks = self.of_chunks(array)
        except PortconvError as error:
            return ConvTypeError(f"got chunks of no library that portconv knows: {error}")
        if chunks is self or not hasattr(array.dtype, "newbyteorder"):
            return ConvTypeError(f"got chunks of {chunks.name}, expected NumPy's or CuPy's")
        if (error := chunks.objection(array._meta)) is not None:
            return type(error)(f"of its chunks: {error}")
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
        return sys.maxsize  # arrays may be larger than memory: that is what they are for

    def default_workspace(self, like: Array) -> int:
        return self.of_chunks(like).default_workspace(like._meta)

    def dtype(self, name: str) -> Any:
        import numpy

        return numpy.dtype(bfloat16() if name == "bfloat16" else name)

    def native(self, dtype: Any) -> Any:
        return dtype.newbyteorder("=")

    def astype(self, array: Array, dtype: Any) -> Array:
        return array if array.dtype == dtype else array.astype(dtype)

    def asarray(self, obj: Any, dtype: Any = None, device: Any = None) -> Array:
        """Make an array of chunks as large as Dask's setting `array.chunk-size` says."""
        import dask.array
        import numpy

        own = self.dtype(dtype) if isinstance(dtype, str) else dtype
        if self.owns(obj):
            return obj if own is None else self.astype(obj, own)
        if not hasattr(obj, "__cuda_array_interface__"):
            obj = numpy.asarray(obj, dtype=own)
        array = dask.array.from_array(obj, asarray=False)
        return array if own is None else self.astype(array, own)

    def to_numpy(self, array: Array) -> Any:
        found = array.compute()
        return of(found).to_numpy(found)
