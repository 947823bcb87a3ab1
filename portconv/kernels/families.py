"""The families of kernels, and the kernels of each: what can be compiled for a CPU."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from . import (
    casts,
    channel_sums,
    depthwise,
    depthwise_input_grads,
    depthwise_weights,
    input_grads,
    karatsuba,
    last_depthwise,
    last_depthwise_weights,
    last_input_grads,
    magnitudes,
    mirror,
    packs,
    panels,
    quantised,
    rounded,
    rows,
    scales,
    sparse_weights,
    standby,
    swept_weights,
    tall,
    turned,
    weights,
    winograd,
    winograd_weights,
)
from .emit import Module
from .target import Target
from .values import BRAINS, BYTES, LONG, PACKS, PAIRS, WHOLE

FAMILIES: dict[str, ModuleType] = {
    "winograd": winograd,
    "karatsuba": karatsuba,
    "depthwise": depthwise,
    "rows": rows,
    "tall": tall,
    "panels": panels,
    "depthwise_input_grads": depthwise_input_grads,
    "input_grads": input_grads,
    "weights": weights,
    "sparse_weights": sparse_weights,
    "winograd_weights": winograd_weights,
    "depthwise_weights": depthwise_weights,
    "swept_weights": swept_weights,
    "last_depthwise": last_depthwise,
    "last_depthwise_weights": last_depthwise_weights,
    "last_input_grads": last_input_grads,
    "mirror": mirror,
    "turned": turned,
    "packs": packs,
    "casts": casts,
    "channel_sums": channel_sums,
    "magnitudes": magnitudes,
    "scales": scales,
    "quantised": quantised,
    "rounded": rounded,
    "standby": standby,
}
"""Each family is a module with `VARIANTS`, which names its kernels, and `module(target, variant)`, which writes one."""

OF_OUTPUTS = ("winograd", "karatsuba", "depthwise", "rows", "tall", "panels")
"""The families that compute outputs."""
IN_TILES = ("winograd", "winograd_weights")
"""The families whose sums are not those of the products, but of Winograd's tiles."""
OF_INPUTS = ("depthwise_input_grads", "input_grads")
"""The families that compute gradients of inputs. The gradient of the output is given to these in the place of the
input, and the gradient of the input is their output."""
OF_WEIGHTS = ("winograd_weights", "depthwise_weights", "swept_weights", "weights", "sparse_weights")
"""The families that compute gradients of filters. The gradient of the output is given to these in the place of the
filters, and the gradient of the filters is their output."""

NAMES = {
    **{"float": "", "double": "-double", "i16": "-int16", "i32": "-int32", LONG: "-int64"},
    **{BYTES: "-bytes", PAIRS: "-pairs", BRAINS: "-bfloat16s"},
}
"""The types of numbers, and how the names of their kernels end."""


class Kernel(NamedTuple):
    """One kernel: its family, which of the family's it is, and the type of its numbers, as LLVM calls it."""

    family: str
    variant: str
    element: str = "float"

    def __str__(self) -> str:
        return f"{self.family}-{self.variant}{NAMES[self.element]}"

    def written(self, target: Target) -> Module:
        """Write the kernel for a target."""
        module: Module = FAMILIES[self.family].module(target.of(self.element), self.variant)
        return module


OF_FRACTIONS = (*IN_TILES, "magnitudes")
"""Families that have no kernels for integers."""
OF_ONE_TYPE = {
    "standby": "float",
    "packs": "i32",
    "casts": "float",
    **dict.fromkeys(("scales", "quantised", "rounded"), "double"),
}
"""Families of one type alone: threads stand by for kernels of any type, and reproducible sums are of float64. Copies
into packs and other types have names for the types."""
OF_PACKS = ("panels", "input_grads", "weights")
"""Families that multiply packs."""
OF_WHOLE = "karatsuba"
"""The family that has no kernels but for integers; a vector of those of 16 bits would be too long."""


def serves(family: str, element: str) -> bool:
    """Return whether a family has kernels for a type of numbers."""
    if family == OF_WHOLE:
        return element in WHOLE and element != "i16"
    if element in PACKS:
        return family in OF_PACKS
    return OF_ONE_TYPE.get(family, element) == element and not (family in OF_FRACTIONS and element in WHOLE)


def kernels() -> tuple[Kernel, ...]:
    """Return all kernels."""
    return tuple(
        Kernel(family, variant, element)
        for element in NAMES
        for family, module in FAMILIES.items()
        for variant in module.VARIANTS
        if serves(family, element)
    )
