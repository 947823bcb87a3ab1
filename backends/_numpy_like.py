"""What NumPy, CuPy and Dask have in common: their dtypes are NumPy's."""

from __future__ import annotations

from typing import Any

import numpy

from ._base import Backend
from ._host import bfloat16
from ._terms import Array


class NumpyLike(Backend):
    """A library whose dtypes are NumPy's; it has no name, so it is no backend by itself."""

    def dtype(self, name: str) -> Any:
        return numpy.dtype(bfloat16() if name == "bfloat16" else name)

    def conversion(self, array: str, dtype: str) -> str:
        return f'{array}.astype("{dtype}")'

    def machine_order(self, dtype: Any) -> Any:
        return dtype.newbyteorder("=")

    def complex(self, real: Array, imag: Array) -> Array:
        xp = self.xp
        return xp.stack((real, imag), axis=-1).view(xp.result_type(real, xp.complex64))[..., 0]
