"""Kernels of reproducible products: what they find, quantise and round, and no memory touched but what is theirs.

`PORTCONV_FUZZ` is how many convolutions are drawn.
"""

from __future__ import annotations

import math
import os
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)
if os.name != "posix":
    pytest.skip("this system has no mprotect", allow_module_level=True)

from kernels.guarded import PAGE, Guarded, guarded
from kernels.planned_calls import DTYPES, compiled, plain_input_sums, plain_sums, plain_weight_sums
from kernels.test_guard_pages import CPUS, DRAWN, TARGETS, drawn

from portconv.kernels import magnitudes, quantised, rounded, rounded_plan, scales, target
from portconv.kernels.rounded_plan import ARRAYS
from portconv.kernels.sizes import Sizes

DRAWN_HERE = max(10, DRAWN // 3)
by_type = pytest.mark.parametrize("cpu", TARGETS, ids=lambda cpu: f"{cpu.name}-{cpu.element}")
by_double = pytest.mark.parametrize("cpu", [cpu.of("double") for cpu in CPUS], ids=lambda cpu: cpu.name)

Result = tuple[tuple[int, ...], Any]
"""The shape and the dtype of a result."""


def called(
    family: ModuleType, cpu: target.Target, plan: Any, given: dict[str, Any], results: dict[str, Result]
) -> tuple[dict[str, Any], int]:
    """Return the results of a call, by the names of the kernel's operands, and its flag.

    All arrays are beside pages that nobody may touch. In the place of `w` may be the addresses of all arrays.
    """
    call, _ = compiled(family, plan.variant, cpu)
    found = []
    for at_end in (False, True):
        held = {name: guarded(np.ascontiguousarray(array), at_end=at_end) for name, array in given.items()}
        for name, (shape, dtype) in results.items():
            memory = Guarded(np.dtype(dtype).itemsize * math.prod(shape))
            held[name] = memory.array(shape, at_end=at_end, dtype=dtype), memory
            held[name][0][...] = np.nan
        memory = Guarded(-(-plan.scratch_bytes // 64) * 64)
        held["scratch"] = memory.array((-(-plan.scratch_bytes // 64) * 8,), at_end=at_end, dtype=np.float64), memory
        held["scratch"][0][...] = np.nan
        record = np.array([held[name][0].ctypes.data if name in held else 0 for name in ARRAYS.names], np.int64)
        places = {name: array.ctypes.data for name, (array, _) in held.items()} | {"record": record.ctypes.data}
        values = np.array(plan.values, np.int64)
        operands = ("x", "w" if "w" in held else "record", "b", "out", "scratch")
        flag = call(values.ctypes.data, *(places.get(name, 0) for name in operands), 0)
        for name, array in given.items():
            assert held[name][0].tobytes() == np.ascontiguousarray(array).tobytes()
        outs = {name: held[name][0] for name in results}
        for name, out in outs.items():
            memory = held[name][1]
            rest, start = bytearray(memory.memory[PAGE : PAGE + memory.inner]), out.ctypes.data - memory.start
            rest[start : start + out.nbytes] = b""
            assert not any(rest), "memory beside a result was written"
        found.append(({name: out.copy() for name, out in outs.items()}, flag))
    (first, flag), (second, other) = found
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    assert flag == other
    return first, flag


@by_type
def test_the_largest_magnitudes_of_planes(cpu: target.Target) -> None:
    dtype = DTYPES[cpu.element]
    random = np.random.default_rng(1)
    for planes, cells in product((1, 2, 5, 300), (1, 3, 8, 17, 64, 65, 1000)):
        x = (random.standard_normal((planes, cells)) * 2.0 ** random.integers(-60, 60, (planes, cells))).astype(dtype)
        x[random.random(x.shape) < 0.2] = 0
        x[0] = -0.0
        x[-1, random.integers(cells)] = np.finfo(dtype).smallest_subnormal
        plan = magnitudes.plan_of(cpu, planes, cells)
        found, flag = called(magnitudes, cpu, plan, {"x": x}, {"out": ((planes,), np.float64)})
        np.testing.assert_array_equal(found["out"], abs(x.astype(np.float64)).max(axis=1))
        assert flag == 0
        for value in (np.nan, np.inf, -np.inf):
            bad = x.copy()
            bad[random.integers(planes), random.integers(cells)] = value
            assert called(magnitudes, cpu, plan, {"x": bad}, {"out": ((planes,), np.float64)})[1] != 0


@by_double
@pytest.mark.parametrize("variant", ["cells", "columns", "rows"])
def test_numbers_are_quantised(cpu: target.Target, variant: str) -> None:
    random = np.random.default_rng(2)
    for groups, channels, cells in product((1, 3, 40), (1, 2, 7), (1, 5, 8, 21, 1030)):
        channels = 1 if variant == "rows" else channels
        period = {"rows": random.integers(1, groups + 1), "cells": groups, "columns": groups}[variant]
        shape = (groups, channels, cells)
        x = (random.standard_normal(shape) * 2.0 ** random.integers(-70, 1, shape)).astype(np.float32)
        # Ties, zeros of both signs and subnormal numbers.
        x.flat[: 4 * x.size // 5 : 3] = np.float32(2.0**-39) * random.choice([0.5, 1.5, -2.5, 0, -0.0, 2.0**-100])
        of_cells = variant == "columns"
        factors = 2.0 ** random.integers(39, 42, (groups, cells) if of_cells else (period,))
        scales = factors[:, None, :] if of_cells else factors[np.arange(groups) % period][:, None, None]
        numbers = np.round(x * scales)
        skipped = int(random.integers(3))
        plan = quantised.plan_of(cpu, variant, shape, int(period), cells + skipped)
        results: dict[str, Result] = {
            "w": ((groups,) if variant == "rows" else (groups, cells), np.float64),
            "out": (shape, np.float64),
        }
        given = np.full((groups * channels, cells + skipped), np.nan, np.float32)
        given[:, :cells] = x.reshape(-1, cells)
        read = given.reshape(-1)[: given.size - skipped]
        found, flag = called(quantised, cpu, plan, {"x": read, "b": factors}, results)
        assert flag == 0
        np.testing.assert_array_equal(found["out"], numbers)
        squares = (numbers**2).sum(axis=(1, 2) if variant == "rows" else 1)
        # Each square and each of the sums after it are rounded, here and there.
        np.testing.assert_allclose(found["w"], squares, rtol=2.1 * (channels * cells + 1) * 2.0**-53)


@by_double
def test_quantised_numbers_are_added_up_exactly(cpu: target.Target) -> None:
    random = np.random.default_rng(4)
    for samples, channels, cells in [(1, 1, 1), (3, 5, 7), (2, 40, 64), (2, 3, 1001), (1, 2, 70_003)]:
        x = random.uniform(0.5, 1, (samples, channels, cells)).astype(np.float32)
        x[:, 1:] *= random.choice([-1, 0, 2.0**-25], x[:, 1:].shape)
        factors = 2.0 ** random.integers(37, 40, channels)
        numbers = np.round(x * factors[:, None]).astype(np.int64)
        plan = quantised.plan_of(cpu, "totals", (samples * channels, 1, cells), channels)
        given = {"x": x, "w": np.zeros(1), "b": factors}
        found, flag = called(quantised, cpu, plan, given, {"out": ((channels,), np.float32)})
        totals = np.array([sum(map(int, numbers[:, channel].flat)) for channel in range(channels)], object)
        np.testing.assert_array_equal(found["out"], (single(totals) / factors).astype(np.float32))
        assert flag == 0
        given["x"] = np.full(x.shape, np.float32(3e38))
        given["b"] = np.full(channels, 2.0**-89)
        flag = called(quantised, cpu, plan, given, {"out": ((channels,), np.float32)})[1]
        assert (flag != 0) == (samples * cells > 1)  # which is infinite


@by_double
@pytest.mark.parametrize("variant", scales.VARIANTS)
def test_the_largest_number_of_a_group_becomes_one_of_40_bits(cpu: target.Target, variant: str) -> None:
    random = np.random.default_rng(6)
    dtype = np.float32 if variant == "numbers" else np.float64
    for outer, repeats, inner, tail, copies in [
        *((1, 1, 1, 1, 1), (3, 1, 1, 20, 1), (1, 5, 9, 1, 1), (2, 3, 4, 9, 9), (1, 1, 1, 70_000, 1), (2, 40, 3, 1, 2)),
        (300, 1, 1, 8, 1),
    ]:
        groups = scales.Groups(outer, repeats, inner, tail, copies)
        shape = (outer, repeats, inner, tail)
        x = (random.uniform(-1, 1, shape) * 2.0 ** random.integers(-80, 90, (outer, 1, inner, 1))).astype(np.float32)
        x[0, :, 0] = 0
        x[-1, :, -1] = np.float32(2.0 ** int(random.integers(-86, 100)))
        x = (x if variant == "numbers" else abs(x)).astype(dtype)
        largest = abs(x).max(axis=(1, 3))
        exponents = np.array([[0 if n == 0 else math.ceil(math.log2(n)) for n in row] for row in largest])
        plan = scales.plan_of(cpu, variant, groups)
        results: dict[str, Result] = {"out": ((outer, inner, copies), np.float64)}
        found, flag = called(scales, cpu, plan, {"x": x}, results)
        np.testing.assert_array_equal(found["out"], np.repeat(2.0 ** (39 - exponents)[..., None], copies, axis=2))
        assert flag == 0
        for bad in (np.nan, np.inf, -np.inf):
            if variant == "numbers" or not bad < 0:
                other = x.copy()
                other.flat[random.integers(x.size)] = bad
                assert called(scales, cpu, plan, {"x": other}, results)[1] != 0
        x[-1, :, -1] = np.nextafter(dtype(2.0**-87), dtype(0))
        assert called(scales, cpu, plan, {"x": x}, results)[1] != 0


@by_double
def test_results_that_may_be_subnormal_or_infinite_are_left_to_others(cpu: target.Target) -> None:
    plan = scales.plan_of(cpu, "magnitudes", scales.Groups(3, 1, 1, 2), others=4, biases=5, terms=9)
    results: dict[str, Result] = {"out": ((3,), np.float64)}

    def flag(own: int, other: int, bias: float) -> bool:
        x, factors, biases = np.ones((3, 2)), np.full(4, 2.0**39), np.ones(5, np.float32)
        x[2, 1], factors[3], biases[4] = 2.0**own, 2.0 ** (39 - other), bias
        x[2, 0] = 0
        return called(scales, cpu, plan, {"x": x, "w": factors, "b": biases}, results)[1] != 0

    # A unit of the sums is 2**(own + other - 78), and nine of them are less than 2**4.
    assert not flag(-20, -28, 0.0)
    assert flag(-20, -29, 0.0)
    assert not flag(60, 62, 0.0)
    assert flag(60, 63, 0.0)
    for bias in (-0.0, 2.0**-100, -(2.0**-100), 2.0**126 * (1 - 2.0**-24)):
        assert not flag(0, 0, bias)
    for bias in (2.0**-101, 2.0**-149, -(2.0**126), math.inf, math.nan):
        assert flag(0, 0, bias)


def slices_of(numbers: Any) -> tuple[Any, Any]:
    """Return the upper and the lower 20 bits of whole numbers, as floats."""
    upper = np.round(numbers * 2.0**-20)
    return upper, numbers - upper * 2.0**20


def exact(sums: Any, sizes: Sizes, first: Any, second: Any) -> Any:
    """Return the exact sums of products of whole numbers, as Python's integers: `sums` adds up products of slices."""
    total: Any = 0
    for (i, a), (j, b) in product(enumerate(slices_of(first)), enumerate(slices_of(second))):
        part = sums(sizes, a, b)
        total = total + np.array([int(n) for n in part.flat], object).reshape(part.shape) * 2 ** (20 * (2 - i - j))
    return total


def single(numbers: Any) -> Any:
    """Round integers to float32: their leading bits, and a last one for any rest, are rounded as the whole would be."""

    def one(number: int) -> float:
        shift = max(0, abs(number).bit_length() - 60)
        size = abs(number) >> shift
        odd = size | (abs(number) != size << shift)
        return math.copysign(float(np.float32(np.int64(odd))), number) * 2.0**shift

    return np.array([one(number) for number in numbers.flat]).reshape(numbers.shape)


def whole_numbers(random: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Draw quantised numbers: large and small ones, few bits, zeros."""
    numbers = np.round(random.standard_normal(shape) * 2.0 ** random.integers(0, 37, shape))
    if random.random() < 0.4:
        numbers = np.round(random.standard_normal(shape)) * 2.0 ** int(random.integers(0, 37))
    numbers[random.random(shape) < 0.1] = 0
    return np.clip(numbers, -(2.0**39), 2.0**39)


def some_sizes(random: np.random.Generator) -> Sizes:
    sizes = None
    while sizes is None or sizes.batch * sizes.out_channels * sizes.positions * sizes.channels * sizes.taps > 2e5:
        sizes = drawn(random)
    return sizes._replace(element="double")


def met(sizes: Sizes) -> int:
    """Return how many taps meet in a cell of the input at most: those that lie a whole number of strides apart."""
    lines = zip(sizes.kernel, sizes.stride, sizes.dilation, strict=True)
    return math.prod(sum(tap * spacing % step == 0 for tap in range(count)) for count, step, spacing in lines)


MODES = pytest.mark.parametrize("mode", ["all", "none", "some"])
"""Which sums are undecided: all where their error may be infinite, and none where it is 0."""


def disturbed(random: np.random.Generator, mode: str, totals: Any, norms: Any) -> tuple[Any, float]:
    """Return sums in float64 near the exact ones, and the largest relative error."""
    sums = np.array([float(n) for n in totals.flat]).reshape(totals.shape)
    if mode == "all":
        return sums * np.nan, math.inf
    if mode == "none":
        return single(totals), 0.0
    error = 2.0**-45
    # The bound is rounded itself, and so is the sum.
    return sums + (error - 2.0**-50) * norms * random.uniform(-1, 1, norms.shape), error


@by_double
@MODES
@pytest.mark.parametrize("of_inputs", [False, True], ids=["outputs", "inputs"])
def test_sums_of_windows_are_rounded(
    cpu: target.Target, mode: str, of_inputs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounded_plan, "SUMS_PER_UNDECIDED", 1)
    plain = (
        (lambda s, a, b: plain_input_sums(s, b, a)[0]) if of_inputs else (lambda s, a, b: plain_sums(s, a, b, None)[0])
    )
    for number in range(DRAWN_HERE):
        random = np.random.default_rng((number, of_inputs))
        sizes = some_sizes(random)
        if of_inputs and min(sizes.before) < 0:  # which the plain sums are not made for
            continue
        groups, ins, outs, taps = sizes.groups, sizes.channels, sizes.filters, sizes.taps
        channels, read = (sizes.out_channels, sizes.out) if of_inputs else (sizes.in_channels, sizes.size)
        results, written = (sizes.in_channels, sizes.size) if of_inputs else (sizes.out_channels, sizes.out)
        cells = whole_numbers(random, (sizes.batch, channels, *read))
        filters = whole_numbers(random, (sizes.out_channels, ins, *sizes.kernel))
        totals = exact(plain, sizes, cells, filters).reshape(sizes.batch, groups, -1, math.prod(written))
        windows = plain(sizes, cells**2, np.ones(filters.shape))
        windows = windows.reshape(sizes.batch, groups, -1, math.prod(written))[:, :, 0]
        by_filter = filters.reshape(groups, outs, ins * taps) ** 2
        row_squares = by_filter.sum(axis=1) if of_inputs else by_filter.sum(axis=2)
        of_taps = row_squares.reshape(groups, -1, taps if of_inputs else 1)
        of_row = np.minimum(of_taps.sum(axis=2), met(sizes) * of_taps.max(axis=2)) if of_inputs else row_squares
        norms = np.sqrt(windows)[:, :, None, :] * np.sqrt(of_row)[None, :, :, None]
        sums, error = disturbed(random, mode, totals, norms)
        first_factors = 2.0 ** random.integers(20, 60, (sizes.batch, groups))
        second_factors = 2.0 ** random.integers(20, 60, (groups, ins if of_inputs else outs))
        biases = random.standard_normal((groups, results // groups)).astype(np.float32)
        scale = 1 / (first_factors[:, :, None] * second_factors)
        expected = (single(totals) * scale[..., None]).astype(np.float32) + biases[None, :, :, None]
        width = totals.shape[-1] + int(random.integers(3))
        plan = rounded_plan.plan_of_windows(cpu, sizes, error, of_inputs=of_inputs, written=width)
        assert plan is not None
        given = {
            **{"x": sums, "first": cells, "second": filters, "first_factors": first_factors},
            "second_factors": np.repeat(second_factors, taps, axis=1) if of_inputs else second_factors,
            **{"row_squares": row_squares, "column_squares": windows, "biases": biases},
        }
        count = totals.size // totals.shape[-1]
        found, flag = called(rounded, cpu, plan, given, {"out": ((count, width), np.float32)})
        assert flag == 0
        own = found["out"][:, : totals.shape[-1]].reshape(totals.shape)
        np.testing.assert_array_equal(own, expected, err_msg=str(sizes))
        assert np.isnan(found["out"][:, totals.shape[-1] :]).all()


@by_double
@MODES
def test_sums_of_filters_are_rounded(cpu: target.Target, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounded_plan, "SUMS_PER_UNDECIDED", 1)
    for number in range(DRAWN_HERE):
        random = np.random.default_rng((number, 7))
        sizes = some_sizes(random)
        groups, stacked = sizes.groups, int(random.integers(1, 4))
        grads = random.standard_normal((sizes.batch, sizes.out_channels, *sizes.out)).astype(np.float32)
        cells = random.standard_normal((sizes.batch, sizes.in_channels, *sizes.size)).astype(np.float32)
        first_factors, second_factors = (
            2.0 ** random.integers(25, 37, channels) for channels in (sizes.out_channels, sizes.in_channels)
        )
        by_channel = (1, -1, *[1] * len(sizes.size))
        a = np.round(grads * first_factors.reshape(by_channel))
        b = np.round(cells * second_factors.reshape(by_channel))
        totals = exact(lambda s, a, b: plain_weight_sums(s, b, a)[0], sizes, a, b)
        totals = totals.reshape(groups, sizes.filters, sizes.channels * sizes.taps)
        squares = [(one**2).reshape(*one.shape[:2], -1).sum(axis=2) for one in (a, b)]
        of_rows, of_columns = (np.sqrt(one.sum(axis=0)).reshape(groups, -1) for one in squares)
        norms = of_rows[:, :, None] * np.repeat(of_columns, sizes.taps, axis=1)[:, None, :]
        sums, error = disturbed(random, mode, totals, norms)
        parts = np.zeros((stacked, *sums.shape))
        parts[random.integers(stacked)] = sums
        columns = np.repeat(second_factors.reshape(groups, -1), sizes.taps, axis=1)
        scale = 1 / (first_factors.reshape(groups, -1, 1) * columns[:, None, :])
        expected = (single(totals) * scale).astype(np.float32) + np.float32(0)
        given = {
            **{"x": parts, "first": grads, "second": cells},
            **{"first_factors": first_factors, "second_factors": second_factors},
            **{"row_squares": squares[0], "column_squares": squares[1]},
            "biases": np.zeros(sizes.out_channels, np.float32),
        }
        plan = rounded_plan.plan_of_filters(cpu, sizes, error, stacked, sizes.batch)
        found, flag = called(rounded, cpu, plan, given, {"out": (totals.shape, np.float32)})
        assert flag == 0
        np.testing.assert_array_equal(found["out"], expected, err_msg=str(sizes))


@by_double
def test_too_many_undecided_sums_are_given_up(cpu: target.Target) -> None:
    random = np.random.default_rng(3)
    sizes = Sizes(1, 2, 30, 1, (20, 20), (1, 1), (1, 1), (1, 1), (0, 0), (0, 0), (20, 20), element="double")
    cells, filters = whole_numbers(random, (1, 2, 20, 20)), whole_numbers(random, (30, 2, 1, 1))
    given = {
        **{"x": np.ones((1, 30, 400)), "first": cells, "second": filters},
        **{"first_factors": np.ones(1), "second_factors": np.ones(30)},
        **{"row_squares": np.ones(30), "column_squares": np.ones(400), "biases": np.zeros(30, np.float32)},
    }
    plan = rounded_plan.plan_of_windows(cpu, sizes, math.inf, of_inputs=False)
    assert plan is not None
    assert called(rounded, cpu, plan, given, {"out": ((1, 30, 400), np.float32)})[1] != 0
