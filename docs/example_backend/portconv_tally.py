"""portconv on tally: what portconv must know of the library, and what it does better than the standard."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from portconv.backends import Array, Backend, Costs, Unavailable


class TallyBackend(Backend):
    """Arrays of tally."""

    # How to know an array of the library without importing it: the module and the name of its class.
    name = "tally"
    module = "tally"
    array_class = "Array"
    install = "pip install docs/example_backend"

    # What holds of its arrays. Each is False unless said, which is always right and sometimes slower.
    views = True  # a slice shares its array's memory, so that what is written there is written
    propagates = True  # the largest of numbers is nan where one of them is

    # As `portconv bench --backend tally --calibrate` measured them; only their ratios count, and only to
    # which algorithm "auto" takes. Each call takes arrays out of their boxes and puts another into one.
    costs = Costs(operation=0.04, element=0.2, transform=0.4, call=27_000)

    def load(self) -> Any:
        """Import the library, or say why it does not work here."""
        try:
            import tally
        except ImportError as error:
            raise Unavailable(f"tally is not installed ({error})") from error
        return tally

    def details(self) -> dict[str, str]:
        return {"arrays made": str(self.xp.made)}

    def to_numpy(self, array: Array) -> Any:
        # The default goes by way of DLPack, which tally's arrays do not have.
        return array.values

    def quiet(self) -> AbstractContextManager[Any]:
        # NumPy would warn of infinities that an algorithm makes and then takes care of.
        return np.errstate(all="ignore")

    def product(self, a: Array, b: Array, out: Array | None = None) -> Array:
        # Written where it belongs, which saves an array and a copy for each block.
        if out is None:
            return self.xp.matmul(a, b)
        np.matmul(a.values, b.values, out=out.values)
        return out

    def elementwise(self, name: str, target: Array, index: tuple[Any, ...], *operands: Any) -> Array:
        box = sys.modules[self.module].Array
        plain = (operand.values if isinstance(operand, box) else operand for operand in operands)
        getattr(np, name)(*plain, out=target.values[index])
        return target
