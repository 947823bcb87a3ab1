"""Mirrored filters: the input gradient at stride 1 is the output of a convolution by these.

Taps come in reverse order, and input channels in the place of filters.
"""

from __future__ import annotations

from .emit import Function, Module
from .lanes import transposed
from .part_stores import store_part
from .record import Fields, Record
from .share import PLAN_HEAD, SHARE, driver
from .sizes import Planned, Sizes, blocks, ceiling
from .target import Target
from .values import Int, Number, Pointer, Variable

VARIANTS = ("turned", "reversed")
"""For kernels of one tap, and for others."""
BLOCK = 16
"""So many filters of so many channels are read and written together, as the lines of both stay in the cache then."""
NUMBERS_OF_SHARE = 1 << 16
"""About how many numbers are one share."""
CYCLES = {"turned": 8.0, "reversed": 5.0}
"""About how many vectors are multiplied in the time in which a vector is copied."""

PLAN = Record(*PLAN_HEAD, "channels", "filters", "taps", "channels_of_share", "blocks")
"""The plan in memory; channels and filters are those of a group, which has so many `blocks` of channels."""


def plan_of(target: Target, sizes: Sizes) -> Planned:
    """Plan the copy of the filters of a convolution; the call says whether one is not finite."""
    variant = "turned" if sizes.taps == 1 else "reversed"
    of_channel = sizes.filters * sizes.taps
    most = ceiling(max(1, NUMBERS_OF_SHARE // of_channel), BLOCK) * BLOCK
    count, channels = blocks(ceiling(sizes.channels, BLOCK), most // BLOCK)
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": sizes.groups * count, "channels": sizes.channels},
        **{"filters": sizes.filters, "taps": sizes.taps, "channels_of_share": channels * BLOCK, "blocks": count},
    )
    vectors = sizes.out_channels * sizes.channels * ceiling(sizes.taps, target.lanes)
    vectors = vectors // target.lanes if sizes.taps == 1 else vectors
    return Planned(variant, values, (), sizes.groups * count, 0, {}, is_plain=False, cycles=vectors * CYCLES[variant])


def module(target: Target, variant: str) -> Module:
    """Write the kernel of a variant."""
    code = Function("share", SHARE, target.lanes, returns=True)
    memory, _, w, _, out, *_, index = code.given
    plan, check = PLAN.read(memory), code.variable(code.zeros)
    group, block = index // plan.blocks, index % plan.blocks
    of_group = group * plan.channels * plan.filters * plan.taps
    copy = _Copy(target, code, plan, (w + of_group, out + of_group), check)
    start = block * plan.channels_of_share
    last = code.minimum(start + plan.channels_of_share, plan.channels)
    with code.loop(start, last, BLOCK) as channel, code.loop(0, plan.filters, BLOCK) as filter_:
        (copy.turned if variant == "turned" else copy.reversed)(channel, filter_)
    code.give(code.is_not_finite(check.get()))
    return Module([code, *driver(target, code)])


class _Copy:
    """The copy of a block of channels and filters."""

    def __init__(
        self, target: Target, code: Function, plan: Fields, arrays: tuple[Pointer, Pointer], check: Variable
    ) -> None:
        self.target, self.code, self.plan, (self.w, self.out), self.check = target, code, plan, arrays, check

    def turned(self, first_channel: Int, first_filter: Int) -> None:
        """Copy a block of numbers, one for each channel and filter."""
        code, plan, lanes = self.code, self.plan, self.target.lanes
        with code.loop(0, BLOCK, lanes) as down, code.loop(0, BLOCK, lanes) as right:
            channel, filter_ = first_channel + right, first_filter + down
            channels = code.minimum(plan.channels - channel, lanes)
            filters = code.minimum(plan.filters - filter_, lanes)
            with code.when((channels > 0) & (filters > 0)):
                mask = code.lanes_between(None, channels)
                rows = [code.minimum(filter_ + i, plan.filters - 1) * plan.channels + channel for i in range(lanes)]
                stored = code.lanes_between(None, filters)
                for i, value in enumerate(transposed(code, [code.load(self.w + row, mask) for row in rows])):
                    with code.when(i < channels):
                        place = self.out + ((channel + i) * plan.filters + filter_)
                        store_part(code, self.target, value, place, filters, stored)
                        code.look_at(self.check, code.select(stored, value, code.zeros))

    def reversed(self, first_channel: Int, first_filter: Int) -> None:
        """Copy a block of rows of taps."""
        code, plan = self.code, self.plan
        last_channel = code.minimum(first_channel + BLOCK, plan.channels)
        last_filter = code.minimum(first_filter + BLOCK, plan.filters)
        with code.loop(first_channel, last_channel) as channel, code.loop(first_filter, last_filter) as filter_:
            source = self.w + (filter_ * plan.channels + channel) * plan.taps
            self.row(source, self.out + (channel * plan.filters + filter_) * plan.taps)

    def row(self, source: Pointer, goal: Pointer) -> None:
        """Copy a row of taps in reverse order."""
        code, taps, lanes = self.code, self.plan.taps, self.target.lanes
        backwards = [lanes - 1 - lane for lane in range(lanes)]
        whole = taps // lanes * lanes
        with code.loop(0, whole, lanes) as tap:
            value = code.load(source + tap)
            code.store(code.shuffle(value, value, backwards), goal + (taps - lanes - tap))
            code.look_at(self.check, value)
        left: Number = taps - whole
        with code.when(left > 0):
            if self.target.name == "avx512":
                value = code.load(source + whole, code.lanes_between(None, left))
                # What is left goes to the beginning, and lanes before it are not stored.
                mask = code.lanes_between(lanes - left, lanes)
                code.store(code.shuffle(value, value, backwards), goal + (left - lanes), mask)
                code.look_at(self.check, value)
            else:
                with code.loop(0, left) as lane:
                    number = source[whole + lane]
                    goal[left - 1 - lane] = number
                    code.look_at(self.check, code.splat(number))
