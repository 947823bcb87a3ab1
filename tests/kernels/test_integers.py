"""Kernels for integers on convolutions drawn at random, beside pages that nobody may touch: sums wrap, and are exact.

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
from portconv.kernels.values import WHOLE

TARGETS = [cpu.of(element) for cpu in CPUS for element in WHOLE if element != "i16" or cpu.name == "avx512"]


@pytest.mark.parametrize("names", [families.OF_OUTPUTS, families.OF_WEIGHTS, families.OF_INPUTS], ids=" ".join)
@pytest.mark.parametrize("cpu", TARGETS, ids=lambda cpu: f"{cpu.name}-{cpu.element}")
def test_all_families_multiply_integers_exactly(cpu: target.Target, names: tuple[str, ...]) -> None:
    named = {name: families.FAMILIES[name] for name in names if name not in families.IN_TILES}
    dtype, used = DTYPES[cpu.element], set()
    for number in range(DRAWN // 2):
        random = np.random.default_rng((len(cpu.name), cpu.lanes, number))
        sizes = some_sizes(random)._replace(element=cpu.element)
        if number % 4 == 0:  # one row, with any stride
            stride, dilation = (int(random.integers(1, high)) for high in (7, 20))
            filters, size = (int(random.integers(1, high)) for high in (9, 120))
            side = (size, int(random.integers(1, 5)), stride, dilation, int(random.integers(30)), 40)
            sizes = sizes_of(2, 3, filters, 1, [side]) or sizes
            sizes = sizes._replace(element=cpu.element)

        def of(*shape: int, draw: np.random.Generator = random) -> Any:
            return draw.integers(-99, 100, shape).astype(dtype)

        x, w = of(sizes.batch, sizes.in_channels, *sizes.size), of(sizes.out_channels, sizes.channels, *sizes.kernel)
        dout, b = of(sizes.batch, sizes.out_channels, *sizes.out), of(sizes.out_channels)
        options = {"has_bias": True} if names == families.OF_OUTPUTS else {}
        plans = {name: family.plan_of(cpu, sizes, **options) for name, family in named.items()}
        plans = {name: plan for name, plan in plans.items() if plan is not None}
        if not plans:
            continue
        if names == families.OF_OUTPUTS:
            operands, sums = (x, w, b), plain_sums(sizes, x, w, b)[0]
        elif names == families.OF_WEIGHTS:
            operands, sums = (x, dout, None), plain_weight_sums(sizes, x, dout)[0]
        else:
            operands, sums = (dout, w, None), plain_input_sums(sizes, w, dout)[0]
        # At most 3e6 products of numbers below 100 are added up: float64 holds the sums, and the dtype what wraps.
        expected = sums.astype(np.int64).astype(dtype)
        for name, plan in plans.items():
            family = named[name]
            found, flag = by_plan(family, cpu, plan, operands, expected.shape)
            assert flag == 0
            assert np.array_equal(found, expected), (name, plan.variant, plan.block, sizes)
            used.add(name)
    assert used == set(named)
