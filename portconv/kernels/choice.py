"""Which family of kernels computes a convolution: the one that is expected to be fastest of those that fit."""

from __future__ import annotations

from typing import NamedTuple

from . import (
    call,
    casts,
    channel_sums,
    last_depthwise,
    last_depthwise_weights,
    last_input_grads,
    magnitudes,
    mirror,
    packs,
    panels,
    quantised,
    rounded,
    scales,
    state,
    turned,
)
from .families import FAMILIES, OF_INPUTS, OF_OUTPUTS, OF_WEIGHTS, Kernel, serves
from .panel_plan import BLOCK_BYTES
from .scales import Groups
from .sizes import Planned, Sizes
from .values import PACKS
from .weight_plan import last_plan_of

MOST_TAPS = 1 << 13
"""Plans have lists with numbers for each tap; where there are more taps, transforms are faster than sums."""

FARTHEST = 1 << 40
"""The largest stride, dilation and padding: kernels compute with 64 bits."""


class Chosen(NamedTuple):
    """A kernel, and its plan of a convolution."""

    kernel: Kernel
    planned: Planned

    @property
    def memory(self) -> int:
        """The bytes of workspace of a thread."""
        return self.planned.scratch_bytes + self.planned.shared_bytes


def found_for_outputs(sizes: Sizes, *, has_bias: bool, transforms: bool) -> list[Chosen]:
    """Return the plans that there are of a convolution, but for that of `panels`, of which `best` takes one.

    `transforms` says whether tiles may be transformed and taps left out: then what is not finite may be wrong.
    """
    if not _can_be_planned(sizes):
        return []
    target, names = state.here().of(sizes.element), [name for name in _serving(OF_OUTPUTS, sizes) if name != "panels"]
    plans = {name: FAMILIES[name].plan_of(target, sizes, has_bias=has_bias) for name in names}
    return [one for one in _found(plans, sizes.element) if transforms or one.planned.is_plain]


def panels_within(sizes: Sizes, memory: int, *, has_bias: bool, transforms: bool) -> list[Chosen]:
    """Return the plan of a convolution by `panels`, whose blocks take about so many bytes, if there is one."""
    if not _can_be_planned(sizes):
        return []
    target = state.here().of(sizes.element)
    plan = panels.plan_of(target, sizes, has_bias=has_bias, memory=memory or BLOCK_BYTES, skips=transforms)
    return _found({"panels": plan}, sizes.element)


def found_for_weights(sizes: Sizes, *, transforms: bool) -> list[Chosen]:
    """Return the plans that there are of the gradient of the filters of a convolution, of which `best` takes one."""
    return _found_of(OF_WEIGHTS, sizes, transforms=transforms)


def found_for_inputs(sizes: Sizes, *, transforms: bool) -> list[Chosen]:
    """Return the plans that there are of the gradient of the input of a convolution, of which `best` takes one."""
    return _found_of(OF_INPUTS, sizes, transforms=transforms)


def chosen_for_last(sizes: Sizes, *, has_bias: bool, flipped: bool) -> Chosen | None:
    """Plan the outputs of a depthwise convolution of arrays whose channels come last, by filters or flipped ones."""
    if not _can_be_planned(sizes):
        return None
    plan = last_depthwise.plan_of(state.here().of(sizes.element), sizes, has_bias=has_bias, flipped=flipped)
    return best(_found({"last_depthwise": plan}, sizes.element), 0)


def chosen_for_last_inputs(sizes: Sizes) -> Chosen | None:
    """Plan the gradient of the input of a depthwise convolution, of arrays whose channels come last."""
    if not _can_be_planned(sizes):
        return None
    plan = last_input_grads.plan_of(state.here().of(sizes.element), sizes)
    return best(_found({"last_input_grads": plan}, sizes.element), 0)


def chosen_for_last_weights(sizes: Sizes) -> Chosen | None:
    """Plan the gradient of filters, depthwise or of one tap, of arrays whose channels come last."""
    if not _can_be_planned(sizes):
        return None
    target = state.here().of(sizes.element)
    plans = {
        "last_depthwise_weights": last_depthwise_weights.plan_of(target, sizes),
        "weights": last_plan_of(target, sizes),
    }
    return min(_found(plans, sizes.element), key=lambda one: one.planned.cycles, default=None)


def chosen_for_mirrored(sizes: Sizes) -> Chosen | None:
    """Plan the copy of the filters that makes an input gradient at stride 1 the output of a convolution."""
    if sizes.taps == 1:
        return chosen_to_turn(sizes.groups, sizes.filters, sizes.channels, sizes.element)
    element = "i32" if sizes.element in PACKS else sizes.element  # packs are copied as they are
    return best(_found({"mirror": mirror.plan_of(state.here().of(element), sizes)}, element), 0)


def chosen_to_turn(count: int, rows: int, columns: int, element: str) -> Chosen | None:
    """Plan to turn so many matrices of so many rows and columns, of numbers of this type."""
    element = "i32" if element in PACKS else element
    plan = turned.plan_of(state.here().of(element), count, rows, columns)
    return best(_found({"turned": plan}, element), 0)


def chosen_to_pack(count: int, rows: int, columns: int, variant: str) -> Chosen | None:
    """Plan to copy so many matrices of so many rows and columns into packs."""
    plan = packs.plan_of(state.here().of("i32"), variant, count, rows, columns)
    return best(_found({"packs": plan}, "i32"), 0)


def chosen_to_cast(numbers: int, variant: str) -> Chosen | None:
    """Plan to copy so many numbers into another type."""
    return best(_found({"casts": casts.plan_of(state.here(), variant, numbers)}, "float"), 0)


def chosen_for_sums(samples: int, channels: int, cells: int, element: str, *, last: bool) -> Chosen | None:
    """Plan the sums of each channel, of numbers of this type, whose channels may come last."""
    target = state.here().of(element)
    if last:
        plan = channel_sums.plan_of_last(target, samples * cells, channels)
    else:
        plan = channel_sums.plan_of(target, samples, channels, cells)
    return best(_found({"channel_sums": plan}, element), 0)


def chosen_for_magnitudes(planes: int, cells: int, element: str) -> Chosen | None:
    """Plan the largest magnitudes of planes of numbers of this type."""
    return best(_found({"magnitudes": magnitudes.plan_of(state.here().of(element), planes, cells)}, element), 0)


def chosen_to_scale(variant: str, groups: Groups, others: int = 0, biases: int = 0, terms: int = 1) -> Chosen | None:
    """Plan the factors of groups of numbers of float32, or of magnitudes."""
    plan = scales.plan_of(state.here().of("double"), variant, groups, others, biases, terms)
    return best(_found({"scales": plan}, "double"), 0)


def chosen_to_quantise(variant: str, shape: tuple[int, int, int], period: int, given: int = 0) -> Chosen | None:
    """Plan to quantise groups of channels of cells, or of some of `given` cells, of float32."""
    plan = quantised.plan_of(state.here().of("double"), variant, shape, period, given)
    return best(_found({"quantised": plan}, "double"), 0)


def chosen_to_round(sizes: Sizes, error: float, written: int, *, of_inputs: bool) -> Chosen | None:
    """Plan to round outputs or gradients of inputs, whose relative error is this one at most.

    They may be some of the `written` cells of a channel.
    """
    plan = rounded.plan_of_windows(state.here().of("double"), sizes, error, of_inputs=of_inputs, written=written)
    return best(_found({"rounded": plan}, "double"), 0)


def chosen_to_round_filters(sizes: Sizes, error: float, stacked: int, squares: int) -> Chosen | None:
    """Plan to round gradients of filters, of which so many sums are added up, and so many sums of squares."""
    plan = rounded.plan_of_filters(state.here().of("double"), sizes, error, stacked, squares)
    return best(_found({"rounded": plan}, "double"), 0)


def _found_of(names: tuple[str, ...], sizes: Sizes, *, transforms: bool) -> list[Chosen]:
    if not _can_be_planned(sizes):
        return []
    target = state.here().of(sizes.element)
    plans = {name: FAMILIES[name].plan_of(target, sizes) for name in _serving(names, sizes)}
    found = _found(plans, sizes.element)
    return [one for one in found if transforms or one.planned.is_plain]


def _serving(names: tuple[str, ...], sizes: Sizes) -> list[str]:
    """Name the families that there are for a type of numbers: tiles are not transformed of integers."""
    return [name for name in names if serves(name, sizes.element)]


def _can_be_planned(sizes: Sizes) -> bool:
    far = max(map(abs, (*sizes.before, *sizes.after, *sizes.dilation, *sizes.stride)))
    return sizes.taps <= MOST_TAPS and far <= FARTHEST


def _found(plans: dict[str, Planned | None], element: str) -> list[Chosen]:
    """Return the plans that there are, of kernels that do not fail."""
    found = [Chosen(Kernel(family, plan.variant, element), plan) for family, plan in plans.items() if plan is not None]
    return [one for one in found if one.kernel not in call.failed]


def best(found: list[Chosen], memory: int) -> Chosen | None:
    """Return the fastest one within so many bytes, else the one that takes the least."""
    if not found:
        return None
    return min(found, key=lambda one: (one.memory > memory, one.memory if one.memory > memory else one.planned.cycles))
