"""Kernels for integers on convolutions drawn at random, beside pages that nobody may touch: sums wrap, and are exact.

Packs of integers stand for several channels, filters or samples: those that the sums are taken over.

`PORTCONV_FUZZ` is how many convolutions are drawn.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)
if os.name != "posix":
    pytest.skip("this system has no mprotect", allow_module_level=True)

from kernels.planned_calls import DTYPES, by_plan, plain_input_sums, plain_sums, plain_weight_sums, sizes_of
from kernels.test_gradients import some_sizes
from kernels.test_guard_pages import CPUS, DRAWN

from portconv.kernels import families, target
from portconv.kernels.sizes import Sizes
from portconv.kernels.values import PACKS, WHOLE

NARROW = {2: np.int16, 4: np.int8}
"""The dtype of the numbers of a pack, by how many there are."""
TARGETS = [cpu.of(element) for cpu in CPUS for element in WHOLE if element != "i16" or cpu.name == "avx512"]


def unpacked(array: Any, axis: int, count: int) -> Any:
    """Return the numbers of packs, those of a pack one after the other along an axis."""
    parts = np.ascontiguousarray(array).view(NARROW[count]).reshape(*array.shape, count)
    shape = (*array.shape[:axis], array.shape[axis] * count, *array.shape[axis + 1 :])
    return np.moveaxis(parts, -1, axis + 1).reshape(shape)


def in_numbers(sizes: Sizes, names: tuple[str, ...], arrays: tuple[Any, ...], count: int) -> tuple[Sizes, Any, Any]:
    """Return the convolution of the numbers of packs, and its two operands."""
    a, b = arrays[:2]
    if names == families.OF_OUTPUTS:
        sizes = sizes._replace(in_channels=sizes.in_channels * count)
        return sizes, unpacked(a, 1, count), unpacked(b, 1, count)
    if names == families.OF_WEIGHTS:
        return sizes._replace(batch=sizes.batch * count), unpacked(a, 0, count), unpacked(b, 0, count)
    return sizes._replace(out_channels=sizes.out_channels * count), unpacked(a, 1, count), unpacked(b, 0, count)


@pytest.mark.parametrize("names", [families.OF_OUTPUTS, families.OF_WEIGHTS, families.OF_INPUTS], ids=" ".join)
@pytest.mark.parametrize("cpu", TARGETS, ids=lambda cpu: f"{cpu.name}-{cpu.element}")
def test_all_families_multiply_integers_exactly(cpu: target.Target, names: tuple[str, ...]) -> None:
    named = {name: families.FAMILIES[name] for name in names if families.serves(name, cpu.element)}
    dtype, used, count = DTYPES[cpu.element], set(), PACKS.get(cpu.element, 1)
    most = np.iinfo(dtype).max if count > 1 else 99
    for number in range(DRAWN // (2 if count == 1 else 4)):
        random = np.random.default_rng((len(cpu.name), cpu.lanes, number))
        sizes = some_sizes(random)._replace(element=cpu.element)
        if number % 4 == 0:  # one row, with any stride
            stride, dilation = (int(random.integers(1, high)) for high in (7, 20))
            filters, size = (int(random.integers(1, high)) for high in (9, 120))
            side = (size, int(random.integers(1, 5)), stride, dilation, int(random.integers(30)), 40)
            sizes = sizes_of(2, 3, filters, 1, [side]) or sizes
            sizes = sizes._replace(element=cpu.element)

        def of(*shape: int, draw: np.random.Generator = random) -> Any:
            return draw.integers(-most, most, shape).astype(dtype)

        x, w = of(sizes.batch, sizes.in_channels, *sizes.size), of(sizes.out_channels, sizes.channels, *sizes.kernel)
        dout, b = of(sizes.batch, sizes.out_channels, *sizes.out), of(sizes.out_channels)
        options = {"has_bias": True} if names == families.OF_OUTPUTS else {}
        plans = {name: family.plan_of(cpu, sizes, **options) for name, family in named.items()}
        plans = {name: plan for name, plan in plans.items() if plan is not None}
        if not plans:
            continue
        operands = {families.OF_OUTPUTS: (x, w, b), families.OF_WEIGHTS: (x, dout, None)}.get(names, (dout, w, None))
        numbers = in_numbers(sizes, names, operands, count) if count > 1 else (sizes, *operands[:2])
        if names == families.OF_OUTPUTS:
            sums = plain_sums(*numbers, b)[0]
        elif names == families.OF_WEIGHTS:
            sums = plain_weight_sums(*numbers)[0]
        else:
            sums = plain_input_sums(numbers[0], numbers[2], numbers[1])[0]
        # At most 3e6 products of numbers below 100 are added up, or 6e6 products up to 2**30 of packs: float64 holds
        # the sums, and the dtype what wraps. Of a sum of packs, the low bits are right, as many as a number has.
        expected = sums.astype(np.int64).astype(NARROW.get(count, dtype))
        for name, plan in plans.items():
            family = named[name]
            found, flag = by_plan(family, cpu, plan, operands, expected.shape)
            assert flag == 0
            assert np.array_equal(found.astype(expected.dtype), expected), (name, plan.variant, plan.block, sizes)
            used.add(name)
    assert used == set(named)
