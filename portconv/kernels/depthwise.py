"""Depthwise products: each filter has one input channel, and a plane of outputs reads one plane of inputs, in place.

A tile is a few rows of outputs times one vector of columns, and its sums stay in registers. Each row of inputs is
loaded once for each column of the kernel, and serves all rows of outputs that it reaches; a narrow row is loaded once
for all columns, which pick their lanes, and of two planes that are narrower still each has half of a vector (see
`depthwise_tiles` and `depthwise_pairs`). Nothing is copied: masks keep loads inside of a row, and rows outside of the
plane are read from a row of zeros.

The kernel and its stride are known when LLVM makes the code; all sizes, the padding and a dilation are not. Rows of a
dilated kernel fall into as many phases, each of which is as if it were not dilated. A convolution of one dimension is
one of a single row; the sums of one of three dimensions go on over several planes of inputs.
"""

from __future__ import annotations

from .depthwise_pairs import Pairs
from .depthwise_plan import PLAN, SHAPES, VARIANTS, Shape, plan_of, variant_of
from .depthwise_tiles import Tiles
from .emit import Function, Module
from .share import SHARE, driver
from .target import Target
from .values import Int

__all__ = ["SHAPES", "VARIANTS", "module", "plan_of", "variant_of"]


def module(target: Target, variant: str) -> Module:
    """Write the kernel of a variant."""
    share = Depthwise(target, SHAPES[variant]).share()
    return Module([share, *driver(target, share)])


class Depthwise:
    """The function that computes a share, for one target and one kernel."""

    def __init__(self, target: Target, shape: Shape) -> None:
        self.shape, self.lanes, self.target = shape, shape.lanes(target), target

    def share(self) -> Function:
        """Compute some bands of some planes."""
        code = Function("share", SHARE, self.shape.vectors_of(self.target), returns=True)
        memory, *arrays, scratch, _, _, index = code.given
        plan = PLAN.read(memory)
        with code.loop(0, plan.zeros, self.lanes) as place:
            code.store(code.zeros, scratch + place, align=code.bytes)
        band_block, plane_block = index % plan.band_blocks, index // plan.band_blocks
        first, first_band = plane_block * plan.planes_of_share, band_block * plan.bands_of_share
        last = code.minimum(first + plan.planes_of_share, plan.planes)
        last_band = code.minimum(first_band + plan.bands_of_share, plan.bands)
        kind = Pairs if self.shape.is_pair(self.target) else Tiles
        tiles = kind(code, self.target, self.shape, plan, scratch)
        start = divided(first_band, plan.bands_of_phase)
        with code.loop(first, last, plan.planes_of_group) as low:
            high = code.minimum(low + plan.planes_of_group, last)
            phase, top = code.variable(start[0]), code.variable(start[1] * self.shape.rows)
            # Divisions take as long as some rows of a small plane: there are none in the loops.
            of_all, depth = divided(low, plan.depth)
            channel, copy = divided(of_all, plan.multiplier)
            x, w, b, out = arrays
            begin = (x + channel * plan.x_channel, out + low * plan.out_plane, of_all % plan.filters, copy, depth)
            with code.loop(first_band, last_band):
                tiles.begin_band(phase, top)
                counters = [code.variable(each) for each in begin]
                with code.loop(low, high, tiles.planes_at_once) as plane:
                    tiles.band(w, b, counters, high - plane)
        code.give(tiles.is_not_finite())
        return code


def divided(a: Int, b: Int) -> tuple[Int, Int]:
    """Return the quotient and the rest."""
    return a // b, a % b
