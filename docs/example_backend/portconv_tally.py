"""portconv's backend for tally: what portconv must know about the library, and what tally can do faster."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from portconv.backends import Array, Backend, Costs


class TallyBackend(Backend):
    """Arrays of tally."""

    # The module and the name of the array class identify an array without importing the library.
    name = "tally"
    module = "tally"
    array_class = "Array"
    install = "pip install docs/example_backend"

    # Properties of its arrays. Each is False by default, which is always right and sometimes slower.
    views = True  # a slice shares its array's memory, so a write to the slice changes the array
    propagates = True  # the maximum of numbers is nan if one of them is

    # `portconv bench --backend tally --calibrate` measured these. Only their ratios matter, and only for the
    # algorithm that "auto" takes. A call is expensive, because it unwraps its arrays and wraps the result.
    costs = Costs(operation=0.04, element=0.2, transform=0.4, call=27_000)

    def load(self) -> Any:
        """Import the library. A ModuleNotFoundError for tally means that it is not installed."""
        import tally

        return tally

    def details(self) -> dict[str, str]:
        return {"arrays made": str(self.xp.made)}

    def to_numpy(self, array: Array) -> Any:
        # The default uses DLPack, which tally's arrays do not have.
        return array.values

    def quiet(self) -> AbstractContextManager[Any]:
        # Otherwise NumPy would warn of infinities that an algorithm makes and then handles.
        return np.errstate(all="ignore")

    def product(self, a: Array, b: Array, out: Array | None = None) -> Array:
        # The result is written to its place, which saves an array and a copy for each block.
        if out is None:
            return self.xp.matmul(a, b)
        np.matmul(a.values, b.values, out=out.values)
        return out

    def elementwise(self, name: str, target: Array, index: tuple[Any, ...], *operands: Any) -> Array:
        box = sys.modules[self.module].Array
        plain = (operand.values if isinstance(operand, box) else operand for operand in operands)
        getattr(np, name)(*plain, out=target.values[index])
        return target
