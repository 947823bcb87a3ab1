"""Kernels for large depthwise kernels: their sums for any geometry, and no memory beside their arrays."""

from __future__ import annotations

import numpy as np
import pytest

from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)

from kernels.planned_calls import check, sizes_of

from portconv.kernels import tall, target

TARGETS = [state.here(), *([target.cross("avx2")] if state.here().name == "avx512" else [])]
by_target = pytest.mark.parametrize("cpu", TARGETS, ids=lambda cpu: cpu.name)


def drawn(random, variant):
    """Sizes that a variant may serve: kernels of any size, few or many columns, any padding, more filters a channel."""
    dims = int(random.choice([2, 2, 2, 3, 4]))
    sides = []
    for dim in range(dims):
        last = dims - dim
        most = {1: (34, 24), 2: (40, 36)}.get(last, (6, 4))
        size, taps = (int(random.integers(1, each)) for each in most)
        stride, dilation = int(random.choice([1, 1, 2, 3])), int(random.choice([1, 1, 2, 3]))
        if last == 1:
            size, stride = int(random.integers(1, 150)), 2 if variant.startswith("halved") else 1
        sides.append((size, taps, stride, dilation, *(int(each) for each in random.integers(0, 2 * taps, 2))))
    channels, multiplier, batch = (int(random.integers(1, most)) for most in (6, 4, 3))
    return sizes_of(batch, channels, channels * multiplier, channels, sides)


@by_target
@pytest.mark.parametrize("variant", tall.VARIANTS)
def test_every_variant_computes_the_plain_sums(cpu, variant):
    random = np.random.default_rng(sum(map(ord, variant)))
    found = 0
    while found < 12:
        sizes = drawn(random, variant)
        if sizes is not None and tall.plan_of(cpu, sizes, has_bias=True, variant=variant) is not None:
            check(tall, cpu, sizes, random, variant=variant)
            found += 1
