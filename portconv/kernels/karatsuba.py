"""Tiles of 3x3 outputs for integers, F(3x3, 3x3), of 36 products in place of 81.

The kernels are those of `winograd`, with transforms that are exact for integers that wrap (see `winograd_schemes`).
Numbers of packs are transformed one by one, and the packs are multiplied.
"""

from __future__ import annotations

from .emit import Module
from .sizes import Planned, Sizes
from .target import Target
from .values import WHOLE
from .winograd import plan_of as plan_of_tiles
from .winograd import written
from .winograd_schemes import WHOLE_SCHEMES

VARIANTS = tuple(WHOLE_SCHEMES)
MOST_LANES = 16
"""The cells of a row that a vector of tiles reads have a bit each of one integer."""


def plan_of(target: Target, sizes: Sizes, *, has_bias: bool) -> Planned | None:
    """Plan a convolution, or return nothing if the kernels do not serve it."""
    serves = sizes.element in WHOLE and target.lanes <= MOST_LANES
    return plan_of_tiles(target, sizes, has_bias=has_bias) if serves else None


def module(target: Target, variant: str) -> Module:
    """Write the kernels."""
    return written(target, WHOLE_SCHEMES[variant])
