"""Gradients by all families of kernels, on convolutions drawn at random, beside pages that nobody may touch.

`PORTCONV_FUZZ` is how many convolutions are drawn.
"""

from __future__ import annotations

import os
from itertools import product
from typing import Any

import numpy as np
import pytest

from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)
if os.name != "posix":
    pytest.skip("this system has no mprotect", allow_module_level=True)

from kernels.planned_calls import DTYPES, ROUNDING, by_plan, plain_input_sums, plain_weight_sums, sizes_of
from kernels.test_guard_pages import DRAWN, by_target, drawn, typed

from portconv.kernels import call, families, target
from portconv.kernels.sizes import Sizes

FAMILIES = {name: families.FAMILIES[name] for name in families.OF_WEIGHTS}
OF_INPUTS = {name: families.FAMILIES[name] for name in families.OF_INPUTS}


def some_sizes(random: np.random.Generator) -> Sizes:
    """Draw a convolution; every second one is depthwise, mostly of a plane with a common kernel."""

    def one_of(*numbers: int) -> int:
        return int(random.choice(numbers))

    while True:
        sizes = drawn(random)
        if sizes is None:
            continue
        if one_of(1, 2) == 1:
            return sizes
        channels, multiplier = one_of(1, 2, 3, 5, 9, 17), one_of(1, 1, 2, 3)
        sizes = sizes._replace(in_channels=channels, out_channels=multiplier * channels, groups=channels)
        if one_of(1, 2, 3) == 1:
            return sizes
        kernel, stride, plane = one_of(3, 3, 5, 7), one_of(1, 2), (*sizes.size, one_of(3, 8, 17, 33))[:2]
        sides = [(size, kernel, stride, 1, one_of(0, 1, 2, 3, 9, -1), one_of(0, 1, 2, 3, -1)) for size in plane]
        found = sizes_of(sizes.batch, channels, multiplier * channels, channels, sides)
        if found is not None:
            return found


def operands_of(sizes: Sizes, random: np.random.Generator) -> tuple[Any, Any]:
    x = random.standard_normal((sizes.batch, sizes.in_channels, *sizes.size), np.float32)
    return x, random.standard_normal((sizes.batch, sizes.out_channels, *sizes.out), np.float32)


def bound_of_tiles(sizes: Sizes, magnitudes: Any) -> Any:
    """Return the most that rounding may change where tiles are transformed, in units of the largest rounding.

    A tap of a tile counts each product of an output and a cell of its window at most (2, 1, 2) times along a dimension.
    Cells and outputs are rounded once along each of two dimensions, and taps twice.
    """
    counted = (magnitudes * np.outer((2, 1, 2), (2, 1, 2))).sum(axis=(-2, -1), keepdims=True)
    return 1.01 * (sizes.batch * sizes.positions + 2 * 4) * np.broadcast_to(counted, magnitudes.shape)


@by_target
def test_all_families_compute_the_sums_within_their_memory(cpu: target.Target) -> None:
    used = set()
    for number in range(DRAWN):
        random = np.random.default_rng((len(cpu.name), cpu.lanes, number))
        sizes = some_sizes(random)
        sizes, x, dout = typed(cpu, sizes, *operands_of(sizes, random))
        expected, magnitudes = plain_weight_sums(sizes, x, dout)
        # No term is rounded more often than there are terms: at its product, and at each sum that follows.
        # The expected sums of float64 are of float64 themselves.
        most = ROUNDING[cpu.element] * (2 if cpu.element == "double" else 1)
        plain = 1.01 * sizes.batch * sizes.positions * most * magnitudes
        for name, family in FAMILIES.items():
            plan = family.plan_of(cpu, sizes)
            if plan is None:
                continue
            bound = most * bound_of_tiles(sizes, magnitudes) if name == "winograd_weights" else plain
            dw, flag = by_plan(family, cpu, plan, (x, dout, None), expected.shape)
            assert flag == 0, (name, sizes)
            assert (abs(dw - expected) <= bound).all(), (name, plan.variant, plan.block, sizes)
            used.add(name)
    assert used == set(FAMILIES)


@by_target
def test_all_families_of_inputs_compute_the_sums_within_their_memory(cpu: target.Target) -> None:
    used = set()
    for number in range(DRAWN):
        random = np.random.default_rng((len(cpu.name), cpu.lanes, 1, number))
        sizes = some_sizes(random)
        w = random.standard_normal((sizes.out_channels, sizes.channels, *sizes.kernel), np.float32)
        dout = random.standard_normal((sizes.batch, sizes.out_channels, *sizes.out), np.float32)
        sizes, w, dout = typed(cpu, sizes, w, dout)
        for name, family in OF_INPUTS.items():
            plan = family.plan_of(cpu, sizes)
            if plan is None:
                continue
            expected, magnitudes = plain_input_sums(sizes, w, dout)
            dx, flag = by_plan(family, cpu, plan, (dout, w, None), expected.shape)
            # A term is rounded in the sum over filters, and as often as sums of taps are added.
            most = ROUNDING[cpu.element] * (2 if cpu.element == "double" else 1)
            bound = 1.01 * (sizes.filters + sizes.taps) * most * magnitudes
            assert flag == 0, (name, sizes)
            assert (abs(dx - expected) <= bound).all(), (name, plan.variant, plan.block, sizes)
            used.add(name)
    assert used == set(OF_INPUTS)


@by_target
def test_mirrored_filters_are_copied_within_their_memory(cpu: target.Target) -> None:
    mirror = families.FAMILIES["mirror"]
    for groups, filters, channels, kernel in product((1, 3), (1, 5, 16, 37), (1, 7, 32, 33), ((1,), (3, 3), (2, 17))):
        ones = (1,) * len(kernel)
        sizes = Sizes(
            1, groups * channels, groups * filters, groups, kernel, kernel, ones, ones, (0,) * len(kernel),
            (0,) * len(kernel), ones,
        )  # fmt: skip
        w = np.random.default_rng(0).standard_normal((groups, filters, channels, *kernel), np.float32)
        sizes, w = typed(cpu, sizes, w)
        expected = w[(..., *(slice(None, None, -1),) * len(kernel))].swapaxes(1, 2)
        for value in (None, np.inf, np.nan):
            if value is not None:
                w[-1, -1, -1] = value
            plan = mirror.plan_of(cpu, sizes)
            copy, flag = by_plan(mirror, cpu, plan, (w, w, None), expected.shape)
            np.testing.assert_array_equal(copy, expected)
            assert (flag > 0) == (value is not None)


@by_target
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "weights"])
@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_not_finite_is_reported(cpu: target.Target, name: str, stride: int) -> None:
    side = (20, 3, stride, 1, 1, 1)
    if name == "sparse_weights":
        side = (20, 3, 1, 7 + stride, 7 + stride, 7 + stride)
    sizes = sizes_of(2, 3, 3, 3 if name in ("depthwise_weights", "swept_weights") else 1, [side, side])
    assert sizes is not None
    sizes, random = sizes._replace(element=cpu.element), np.random.default_rng(0)
    family, shape = FAMILIES[name], (3, sizes.channels, 3, 3)
    plan = family.plan_of(cpu, sizes)
    for operand, value, place in product((0, 1), (np.inf, -np.inf, np.nan), ((0, 0, 0, 0), (1, 2, 5, 9))):
        sizes, *operands = typed(cpu, sizes, *operands_of(sizes, random))
        operands[operand][place] = value
        assert by_plan(family, cpu, plan, (*operands, None), shape)[1] > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(call, "SHARED", 0)
    side, groups = (30, 3, 1, 1, 1, 1), 24 if name in ("depthwise_weights", "swept_weights") else 1
    if name == "sparse_weights":
        side = (30, 3, 1, 12, 12, 12)
    sizes = sizes_of(5, 24, 48, groups, [side, side])
    assert sizes is not None
    plan = FAMILIES[name].plan_of(state.here(), sizes)
    x, dout = operands_of(sizes, np.random.default_rng(0))
    planned = call.Call(families.Kernel(name, plan.variant), plan)
    assert planned.most > 1
    grads = []
    for count in [1, 8, 3, 8, 2] * 10:
        dw = np.full((48, 24 // groups, 3, 3), np.nan, np.float32)
        assert planned.run((x.ctypes.data, dout.ctypes.data, call.NO_BIAS, dw.ctypes.data), count) == 0
        grads.append(dw.tobytes())
    assert set(grads) == {grads[0]}


@by_target
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 5, 130), (2, 64, 64), (2, 129, 31), (1, 3, 1000), (5, 67, 2), (3, 2, 50)], ids=str
)
def test_matrices_are_turned_within_their_memory(cpu: target.Target, shape: tuple[int, int, int]) -> None:
    turned = families.FAMILIES["turned"]
    matrices = np.random.default_rng(0).standard_normal(shape).astype(DTYPES[cpu.element])
    for value in (None, np.nan):
        if value is not None:
            matrices[-1, -1, -1] = value
        found = by_plan(turned, cpu, turned.plan_of(cpu, *shape), (matrices, matrices, None), (shape[0], *shape[:0:-1]))
        np.testing.assert_array_equal(found[0], matrices.swapaxes(1, 2))
        assert (found[1] > 0) == (value is not None)


@by_target
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 70), (300, 5, 9), (2, 3, 20_000)], ids=str)
def test_channels_are_added_up_within_their_memory(cpu: target.Target, shape: tuple[int, int, int]) -> None:
    sums = families.FAMILIES["channel_sums"]
    x = np.random.default_rng(0).standard_normal(shape).astype(DTYPES[cpu.element])
    found, flag = by_plan(sums, cpu, sums.plan_of(cpu, *shape), (x, x, None), (shape[1],))
    # A number is added up in its lane, with other lanes, and with what some hundred pieces have given.
    bound = 400 * ROUNDING[cpu.element] * abs(x).sum(axis=(0, 2), dtype=np.float64)
    assert (abs(found - x.sum(axis=(0, 2), dtype=np.float64)) <= bound).all()
    assert flag == 0
    last, rows = np.ascontiguousarray(np.moveaxis(x, 1, -1)), shape[0] * shape[2]
    plan = sums.plan_of_last(cpu, rows, shape[1])
    found, flag = by_plan(sums, cpu, plan, (last, last, None), (shape[1],))
    # A number is added up in its share, and then with those of others.
    bound = rows * ROUNDING[cpu.element] * abs(x).sum(axis=(0, 2), dtype=np.float64)
    assert (abs(found - x.sum(axis=(0, 2), dtype=np.float64)) <= bound).all()
    assert flag == 0
    x[-1, -1, -1] = last[-1, -1, -1] = np.inf
    assert by_plan(sums, cpu, sums.plan_of(cpu, *shape), (x, x, None), (shape[1],))[1] > 0
    assert by_plan(sums, cpu, plan, (last, last, None), (shape[1],))[1] > 0
