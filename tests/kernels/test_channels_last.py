"""Kernels of arrays whose channels come last, drawn at random, beside pages that nobody may touch.

`PORTCONV_FUZZ` is how many convolutions are drawn.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)
if os.name != "posix":
    pytest.skip("this system has no mprotect", allow_module_level=True)

from kernels.planned_calls import (
    DTYPES,
    ROUNDING,
    by_plan,
    plain_input_sums,
    plain_sums,
    plain_weight_sums,
    sizes_of,
)
from kernels.test_guard_pages import CPUS, DRAWN

from portconv.kernels import last_depthwise, last_depthwise_weights, last_input_grads, target, weights
from portconv.kernels.sizes import Sizes
from portconv.kernels.values import PACKS
from portconv.kernels.weight_plan import last_plan_of

TARGETS = [
    cpu.of(element)
    for cpu in CPUS
    for element in DTYPES
    if element not in PACKS and (element != "i16" or cpu.name == "avx512")
]
by_target = pytest.mark.parametrize("cpu", TARGETS, ids=lambda cpu: f"{cpu.name}-{cpu.element}")


def some(cpu: target.Target, seed: int) -> Iterator[tuple[Sizes, np.random.Generator]]:
    """Draw depthwise convolutions of one to three dimensions, every second one of a common kernel."""
    for number in range(DRAWN):
        random, sizes = np.random.default_rng((seed, cpu.lanes, len(cpu.name), number)), None
        while sizes is None:
            dims, sides = int(random.integers(1, 4)), []
            for _ in range(dims):
                size, taps = int(random.integers(1, (70, 24, 8)[dims - 1])), int(random.integers(1, 8))
                stride, dilation = int(random.integers(1, 4)), int(random.integers(1, 4))
                if number % 2:
                    taps, stride, dilation = int(random.choice([3, 5, 7])), int(random.choice([1, 2])), 1
                sides.append((size, taps, stride, dilation, *(int(each) for each in random.integers(-1, 6, 2))))
            channels = int(random.choice([1, 3, 8, 15, 16, 17, 33, 50]))
            sizes = sizes_of(int(random.integers(1, 3)), channels, channels, channels, sides)
            if sizes is not None and (sizes.batch * sizes.positions * channels * sizes.taps > 3e6):
                sizes = None
        yield sizes._replace(element=cpu.element), random


def numbers(cpu: target.Target, random: np.random.Generator, *shape: int) -> Any:
    """Draw numbers of the target's type: integers of less than 100, or normal ones."""
    values = random.standard_normal(shape) if cpu.element in ROUNDING else random.integers(-99, 100, shape)
    return values.astype(DTYPES[cpu.element])


def last(array: Any) -> Any:
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def assert_sums(cpu: target.Target, found: Any, sums: Any, magnitudes: Any, terms: int) -> None:
    """Integers wrap; of other numbers no term is rounded more often than there are terms, and the sums are theirs."""
    if cpu.element not in ROUNDING:
        np.testing.assert_array_equal(found, sums.astype(np.int64).astype(found.dtype))
        return
    most = ROUNDING[cpu.element] * (2 if cpu.element == "double" else 1)
    assert (abs(found - sums) <= 1.01 * (terms + 1) * most * magnitudes).all()


@by_target
@pytest.mark.parametrize("flipped", [False, True])
def test_outputs_are_the_sums_within_their_memory(cpu: target.Target, flipped: bool) -> None:
    for sizes, random in some(cpu, 1):
        x, b = numbers(cpu, random, sizes.batch, sizes.in_channels, *sizes.size), None
        w = numbers(cpu, random, sizes.in_channels, 1, *sizes.kernel)
        if random.integers(2):
            b = numbers(cpu, random, sizes.in_channels)
        plan = last_depthwise.plan_of(cpu, sizes, has_bias=b is not None, flipped=flipped)
        if plan is None:
            continue
        shape = (sizes.batch, *sizes.out, sizes.in_channels)
        out, flag = by_plan(last_depthwise, cpu, plan, (last(x), w, b), shape)
        filters = w[(..., *(slice(None, None, -1),) * len(sizes.kernel))] if flipped else w
        assert flag == 0
        assert_sums(cpu, np.moveaxis(out, -1, 1), *plain_sums(sizes, x, filters, b), sizes.taps)


@by_target
def test_gradients_of_inputs_are_the_sums_within_their_memory(cpu: target.Target) -> None:
    for sizes, random in some(cpu, 4):
        w = numbers(cpu, random, sizes.in_channels, 1, *sizes.kernel)
        dout = numbers(cpu, random, sizes.batch, sizes.in_channels, *sizes.out)
        plan = last_input_grads.plan_of(cpu, sizes)
        if plan is None or min(sizes.before) < 0:  # which the plain sums are not made for
            continue
        shape = (sizes.batch, *sizes.size, sizes.in_channels)
        dx, flag = by_plan(last_input_grads, cpu, plan, (last(dout), w, None), shape)
        assert flag == 0
        assert_sums(cpu, np.moveaxis(dx, -1, 1), *plain_input_sums(sizes, w, dout), sizes.taps)


@by_target
def test_gradients_of_filters_are_the_sums_within_their_memory(cpu: target.Target) -> None:
    for sizes, random in some(cpu, 2):
        x = numbers(cpu, random, sizes.batch, sizes.in_channels, *sizes.size)
        dout = numbers(cpu, random, sizes.batch, sizes.in_channels, *sizes.out)
        plan = last_depthwise_weights.plan_of(cpu, sizes)
        if plan is None:
            continue
        sums, magnitudes = plain_weight_sums(sizes, x, dout)
        dw, flag = by_plan(last_depthwise_weights, cpu, plan, (last(x), last(dout), None), sums.shape)
        assert flag == 0
        assert_sums(cpu, dw, sums, magnitudes, sizes.batch * sizes.positions)


@by_target
def test_gradients_of_filters_of_one_tap_are_the_sums_within_their_memory(cpu: target.Target) -> None:
    for number in range(DRAWN // 2):
        random = np.random.default_rng((3, cpu.lanes, len(cpu.name), number))
        groups, channels, filters, batch = (int(random.integers(1, most)) for most in (4, 60, 60, 4))
        sides = [(int(random.integers(1, 20)), 1, 1, 1, 0, 0)] * int(random.integers(1, 3))
        sizes = sizes_of(batch, groups * channels, groups * filters, groups, sides)
        assert sizes is not None
        sizes = sizes._replace(element=cpu.element)
        x = numbers(cpu, random, batch, groups * channels, *sizes.size)
        dout = numbers(cpu, random, batch, groups * filters, *sizes.out)
        plan, (sums, magnitudes) = last_plan_of(cpu, sizes), plain_weight_sums(sizes, x, dout)
        dw, flag = by_plan(weights, cpu, plan, (last(x), last(dout), None), sums.shape)
        assert flag == 0
        assert_sums(cpu, dw, sums, magnitudes, batch * sizes.positions)


@pytest.mark.parametrize("cpu", [cpu for cpu in TARGETS if cpu.element in ROUNDING], ids=lambda cpu: cpu.name)
@pytest.mark.parametrize("channels", [5, 40])
def test_what_is_not_finite_is_reported(cpu: target.Target, channels: int) -> None:
    # Each output is far from some taps, which read padding: a number of a filter that is not finite spoils these too.
    sizes = sizes_of(1, channels, channels, channels, [(4, 5, 1, 1, 2, 2), (9, 3, 1, 1, 1, 1)])
    assert sizes is not None
    sizes = sizes._replace(element=cpu.element)
    outputs = last_depthwise.plan_of(cpu, sizes, has_bias=False)
    gradients = last_depthwise_weights.plan_of(cpu, sizes)
    for value in (np.inf, -np.inf, np.nan):
        for operand in range(2):
            of_filters = [last(np.ones((1, channels, 4, 9))), np.ones((channels, 1, 5, 3)), None]
            of_outputs = [last(np.ones((1, channels, 4, 9))), last(np.ones((1, channels, 4, 9))), None]
            for operands, family, plan, shape in (
                (of_filters, last_depthwise, outputs, (1, 4, 9, channels)),
                (of_outputs, last_depthwise_weights, gradients, (channels, 1, 5, 3)),
            ):
                arrays = [None if each is None else each.astype(DTYPES[cpu.element]) for each in operands]
                arrays[operand].flat[-1] = value
                assert by_plan(family, cpu, plan, tuple(arrays), shape)[1] > 0
