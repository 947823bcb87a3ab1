"""Mirrored filters: the input gradient at stride 1 is the output of a convolution by these.

Taps come in reverse order, and input channels in the place of filters. Filters of one tap are `turned`.
"""

from __future__ import annotations

from .emit import Function, Module
from .record import Fields, Record
from .share import PLAN_HEAD, SHARE, driver
from .sizes import Planned, Sizes, blocks, ceiling
from .target import Target
from .values import Int, Pointer, Variable

VARIANTS = ("all",)
BLOCK, NUMBERS_OF_SHARE = 16, 1 << 16
"""So many filters of so many channels are read and written together, as the lines of both stay in the cache then; and
about how many numbers are one share."""
CYCLES_OF_VECTOR = 5.0
"""About how many vectors are multiplied in the time in which one is copied."""

PLAN = Record(*PLAN_HEAD, "channels", "filters", "taps", "channels_of_share", "blocks")
"""The plan in memory; channels and filters are those of a group, which has so many `blocks` of channels."""


def plan_of(target: Target, sizes: Sizes) -> Planned:
    """Plan the copy of the filters of a convolution; the call says whether one is not finite."""
    of_channel = sizes.filters * sizes.taps
    most = max(1, NUMBERS_OF_SHARE // (of_channel * BLOCK))
    count, channels = blocks(ceiling(sizes.channels, BLOCK), most)
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": sizes.groups * count, "channels": sizes.channels},
        **{"filters": sizes.filters, "taps": sizes.taps, "channels_of_share": channels * BLOCK, "blocks": count},
    )
    vectors = sizes.out_channels * sizes.channels * ceiling(sizes.taps, target.lanes)
    cycles = vectors * CYCLES_OF_VECTOR
    return Planned("all", values, (), sizes.groups * count, 0, {}, is_plain=False, cycles=cycles)


def module(target: Target, variant: str) -> Module:
    """Write the kernel."""
    code = Function("share", SHARE, target, returns=True)
    memory, x, _, _, out, *_, index = code.given
    plan, check = PLAN.read(memory), code.variable(code.zeros)
    group, block = index // plan.blocks, index % plan.blocks
    of_group = group * plan.channels * plan.filters * plan.taps
    w, copy, start = x + of_group, out + of_group, block * plan.channels_of_share
    stop = code.minimum(start + plan.channels_of_share, plan.channels)
    with code.loop(start, stop, BLOCK) as first_channel, code.loop(0, plan.filters, BLOCK) as first_filter:
        last_channel = code.minimum(first_channel + BLOCK, stop)
        last_filter = code.minimum(first_filter + BLOCK, plan.filters)
        with code.loop(first_channel, last_channel) as channel, code.loop(first_filter, last_filter) as filter_:
            source = w + (filter_ * plan.channels + channel) * plan.taps
            _reverse(target, code, plan, (source, copy + (channel * plan.filters + filter_) * plan.taps), check)
    code.give(code.is_not_finite(check.get()))
    return Module([code, *driver(target, code)])


def _reverse(target: Target, code: Function, plan: Fields, rows: tuple[Pointer, Pointer], check: Variable) -> None:
    """Copy a row of taps in reverse order."""
    (source, goal), taps, lanes = rows, plan.taps, target.lanes
    backwards = [lanes - 1 - lane for lane in range(lanes)]
    whole = taps // lanes * lanes
    with code.loop(0, whole, lanes) as tap:
        value = code.load(source + tap)
        code.store(code.shuffle(value, value, backwards), goal + (taps - lanes - tap))
        code.look_at(check, value)
    left: Int = taps - whole
    with code.when(left > 0):
        if target.name == "avx512":
            value = code.load(source + whole, code.lanes_between(None, left))
            # What is left goes to the beginning, and lanes before it are not stored.
            mask = code.lanes_between(lanes - left, lanes)
            code.store(code.shuffle(value, value, backwards), goal + (left - lanes), mask)
            code.look_at(check, value)
        else:
            with code.loop(0, left) as lane:
                number = source[whole + lane]
                goal[left - 1 - lane] = number
                code.look_at(check, code.splat(number))
