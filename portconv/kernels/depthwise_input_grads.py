"""Gradients of the input of depthwise convolutions at stride 2, in place.

Two rows of the gradient, and every second column of each, meet the same gradients of outputs, by other taps: so these
are loaded once for all four. The four sums are put together in registers. Masks keep loads and stores inside of a row.

The kernel is known when LLVM makes the code. At stride 1 the gradient is the output of the mirrored convolution; other
strides and kernels take `input_grads`. Gradients outside of a plane are zeros, so a filter that is not finite spoils
cells that it is no part of, and the share says so.
"""

from __future__ import annotations

from .bits import between
from .emit import Argument, Function, Module
from .part_stores import store_bits
from .record import Record
from .share import PLAN_HEAD, SHARE, driver
from .sizes import Planned, Sizes, blocks, ceiling, share_products
from .target import Target
from .values import INTEGER, Int, Variable

KERNELS = {f"{kernel}x{kernel}": kernel for kernel in (3, 5, 7)}
VARIANTS = tuple(KERNELS)
ROWS_AHEAD = 8
"""Each tile asks for the lines that one of so many rows further on stores into."""
CYCLES_OF_TILE, CYCLES_OF_PLANE = 25.0, 60.0
"""About how many vectors are multiplied in the time that a tile takes beside its products, and a plane."""

PLAN = Record(
    *PLAN_HEAD,
    *("planes", "planes_of_share", "channels", "multiplier", "height", "width", "out_height", "out_width"),
    *("above", "before", "cells", "positions"),
)
"""The plan in memory. A plane is a channel of one sample, and `multiplier` filters read it."""


def plan_of(target: Target, sizes: Sizes) -> Planned | None:
    """Plan the gradient of the input, or return nothing if this family does not serve it."""
    kernel = sizes.kernel[0]
    if target.name == "neon" or sizes.channels != 1 or len(sizes.size) != 2 or {*sizes.dilation} != {1}:
        return None
    if {*sizes.kernel} != {kernel} or kernel not in KERNELS.values() or {*sizes.stride} != {2} or min(sizes.before) < 0:
        return None
    planes, of_plane = sizes.batch * sizes.in_channels, sizes.filters * sizes.positions * sizes.taps
    wanted = max(1, share_products(planes * of_plane, target.lanes) // of_plane)
    of_share = blocks(planes, wanted)[1]
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": ceiling(planes, of_share), "planes": planes},
        **{"planes_of_share": of_share, "channels": sizes.in_channels, "multiplier": sizes.filters},
        **{"height": sizes.size[0], "width": sizes.size[1], "out_height": sizes.out[0], "out_width": sizes.out[1]},
        **{"above": sizes.before[0], "before": sizes.before[1], "cells": sizes.cells, "positions": sizes.positions},
    )
    tiles = (sizes.size[0] // 2 + 1) * ceiling(sizes.size[1] // 2 + 1, target.lanes)
    cycles = planes * (tiles * (sizes.filters * kernel**2 + CYCLES_OF_TILE) + CYCLES_OF_PLANE)
    variant, shares = f"{kernel}x{kernel}", ceiling(planes, of_share)
    return Planned(variant, values, (), shares, 0, {"planes": of_share}, is_plain=False, cycles=cycles)


def module(target: Target, variant: str) -> Module:
    """Write the kernel of a variant."""
    plane = _Plane(target, KERNELS[variant]).code
    share = _share(target, plane)
    return Module([plane, share, *driver(target, share)])


def _share(target: Target, plane: Function) -> Function:
    """Compute some planes."""
    code = Function("share", SHARE, target, returns=True)
    memory, dout, w, _, out, *_, index = code.given
    plan, flag = PLAN.read(memory), code.variable(0)
    start = index * plan.planes_of_share
    with code.loop(start, code.minimum(start + plan.planes_of_share, plan.planes)) as number:
        filter_ = number % plan.channels * plan.multiplier
        found = code.call(
            plane, memory, dout + number * plan.multiplier * plan.positions, w, out + number * plan.cells, filter_
        )
        flag.set(flag.get() + found)
    code.give(flag.get())
    return code


class _Plane:
    """The function that computes the gradient of one plane, from vector to vector of columns and from row to row."""

    def __init__(self, target: Target, kernel: int) -> None:
        self.target, self.kernel, self.lanes = target, kernel, target.lanes
        names = ("plan", "*i64"), ("dout", "*float"), ("w", "*float"), ("out", "*float"), ("filter_", INTEGER)
        self.code = code = Function("plane", [Argument(*each) for each in names], target, returns=True)
        memory, self.dout, w, self.out, filter_ = code.given
        self.plan = plan = PLAN.read(memory)
        self.w, self.check = w + filter_ * kernel**2, code.variable(code.zeros)
        self.reach = (kernel + 1) // 2
        """The rows and columns of gradients that a row or column meets."""
        last_row, end = (plan.above + plan.height + 1) // 2, (plan.before + plan.width + 1) // 2
        with code.loop(plan.before // 2, end, self.lanes) as column:
            loaded = [
                between(code, shift - column, plan.out_width + shift - column, self.lanes)
                for shift in range(self.reach)
            ]
            first = column * 2 - plan.before
            stored = [between(code, 0 - first - at, plan.width - first - at, self.lanes) for at in (0, self.lanes)]
            with code.loop(plan.above // 2, last_row) as row:
                sums = self.sums(row, column, loaded)
                self.store(sums, row * 2 - plan.above, first, stored)
        code.give(code.is_not_finite(self.check.get()))

    def sums(self, row: Int, column: Int, loaded: list[Int]) -> dict[tuple[int, int], Variable]:
        """Add up the products of a tile: of both rows and of both phases of columns."""
        code, plan, kernel = self.code, self.plan, self.kernel
        sums = {(down, right): code.variable(code.zeros) for down in (0, 1) for right in (0, 1)}
        with code.loop(0, plan.multiplier) as number:
            taps, grads = self.w + number * kernel**2, self.dout + number * plan.positions
            for up in range(self.reach):
                out_row = row - up
                is_inside = out_row.is_index(plan.out_height)
                line = grads + (out_row * plan.out_width + column)
                for shift, bits in enumerate(loaded):
                    value = code.load(line - shift, code.mask_of_bits(code.select(is_inside, bits, 0)))
                    for (down, right), total in sums.items():
                        tap_row, tap = 2 * up + down, 2 * shift + right
                        if tap_row < kernel and tap < kernel:
                            number_of_tap = code.splat(taps[tap_row * kernel + tap])
                            total.set(code.fma(value, number_of_tap, total.get()))
        return sums

    def store(self, sums: dict[tuple[int, int], Variable], first_row: Int, first: Int, stored: list[Int]) -> None:
        """Put the columns of both rows together, and store them."""
        code, plan, lanes = self.code, self.plan, self.lanes
        for down in (0, 1):
            row = first_row + down
            with code.when(row.is_index(plan.height)):
                even, odd = (sums[down, right].get() for right in (0, 1))
                code.look_at(self.check, even)
                code.look_at(self.check, odd)
                goal = self.out + (row * plan.width + first)
                for half, bits in enumerate(stored):
                    lanes_of = [(half * lanes + lane) // 2 + (lanes if lane % 2 else 0) for lane in range(lanes)]
                    place = goal + half * lanes
                    code.prefetch(place + plan.width * ROWS_AHEAD, write=True)
                    store_bits(code, self.target, code.shuffle(even, odd, lanes_of), place, bits)
