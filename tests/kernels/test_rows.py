"""Kernels for few filters: their sums for any geometry, here and for AVX2 alone, and no memory beside their arrays."""

from __future__ import annotations

import numpy as np
import pytest

from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)

from kernels.planned_calls import called, check, sizes_of

from portconv.kernels import row_lines, row_plan, rows, target

TARGETS = [state.here(), *([target.cross("avx2")] if state.here().name == "avx512" else [])]
by_target = pytest.mark.parametrize("cpu", TARGETS, ids=lambda cpu: cpu.name)
STRIDES = row_lines.EVERY | {row_plan.ALIGNED_STEPS: 1}


def drawn(random, variant):
    """Sizes that a variant serves, of one to four dimensions."""
    dims = 2 if variant.startswith(row_plan.JOINED) else int(random.choice([1, 2, 2, 3, 3, 4]))
    sides = []
    for dim in range(dims):
        taps, stride, dilation = (int(random.integers(1, most)) for most in (5, 4, 4))
        size = int(random.integers(1, 60 if dim == dims - 1 else 9))
        before, after = (int(each) for each in random.integers(0, 2 * taps + 2, 2))
        if dim == dims - 1:
            stride = STRIDES[row_plan.parted(variant)[0]] or int(random.integers(5, 8))
            if variant.startswith(row_plan.ALIGNED_STEPS):
                taps, dilation = int(random.integers(1, 40)), 1
        sides.append((size, taps, stride, dilation, before, after))
    groups, channels, filters, batch = (int(random.integers(1, most)) for most in (4, 5, 12, 3))
    return sizes_of(batch, groups * channels, groups * filters, groups, sides)


@by_target
@pytest.mark.parametrize("variant", rows.VARIANTS)
def test_every_variant_computes_the_plain_sums(cpu, variant):
    random = np.random.default_rng(sum(map(ord, variant)))
    found = 0
    while found < 15:
        sizes = drawn(random, variant)
        if sizes is not None:
            check(rows, cpu, sizes, random, variant=variant)
            found += 1


@by_target
@pytest.mark.parametrize(
    ("channels", "filters", "groups", "sides"),
    [
        (70, 3, 1, [(9, 3, 1, 1, 1, 1), (21, 3, 1, 1, 1, 1)]),  # three runs of channels
        (2, 9, 1, [(40, 23, 1, 1, 11, 11), (40, 23, 1, 1, 11, 11)]),  # runs within a channel
        (3, 2, 1, [(1500, 600, 1, 1, 300, 0)]),
        (1, 1, 1, [(9001, 9, 1, 1, 4, 4)]),  # blocks of columns
        (1, 2, 1, [(9001, 5, 2, 3, 4, 4)]),
        (2, 2, 2, [(300, 3, 1, 1, 1, 1), (300, 3, 1, 1, 1, 1)]),  # blocks of rows
        (64, 64, 64, [(6, 3, 1, 1, 1, 1)] * 3),  # many units in a share
        (300, 1, 1, [(20, 1, 1, 1, 0, 0)] * 2),
    ],
)
def test_work_is_cut_into_runs_and_shares(cpu, channels, filters, groups, sides):
    random = np.random.default_rng(2)
    sizes = sizes_of(2, channels, filters, groups, sides)
    check(rows, cpu, sizes, random)


@by_target
def test_bits_do_not_depend_on_how_work_is_cut_into_shares(cpu, monkeypatch):
    random = np.random.default_rng(3)
    for sides in (
        [(41, 3, 1, 1, 1, 1)] * 2,
        [(9, 3, 2, 1, 1, 1)] * 3,
        [(300, 5, 1, 1, 2, 2)],
        [(24, 17, 1, 1, 8, 8)] * 2,
    ):
        sizes = sizes_of(2, 70, 6, 2, sides)
        x, w = (random.standard_normal((n, c, *s)).astype(np.float32) for n, c, s in (
            (2, 70, sizes.size), (6, 35, sizes.kernel)
        ))  # fmt: skip
        results = []
        for products, cells, columns in ((1, 1, 37), (20_000, 1 << 16, 100), (1 << 40, 1 << 22, 1 << 20)):
            monkeypatch.setattr(row_plan, "share_products", lambda *_, products=products: products)
            monkeypatch.setattr(row_plan, "CELLS_BYTES", cells)
            monkeypatch.setattr(row_plan, "MOST_COLUMNS", columns)
            results.append(called(rows, cpu, sizes, (x, w, None))[0].tobytes())
        assert len(set(results)) == 1


@by_target
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_number_that_is_not_finite_is_reported(cpu, value):
    sizes = sizes_of(1, 3, 2, 1, [(9, 3, 1, 1, 1, 1), (40, 3, 1, 1, 1, 1)])
    for place in ((0, 0, 0), (1, 8, 39), (2, 4, 20)):
        x, w = np.ones((1, 3, 9, 40), np.float32), np.ones((2, 3, 3, 3), np.float32)
        x[0][place] = value
        assert called(rows, cpu, sizes, (x, w, None))[1] > 0


@by_target
def test_an_infinite_filter_is_reported_wherever_its_tap_is(cpu):
    # No plan leaves out a tap whose products no output would show.
    for sides, is_plain in (
        ([(9, 3, 1, 1, 1, 1), (20, 3, 1, 1, 1, 1)], False),
        ([(3, 3, 1, 1, 0, 0), (20, 3, 1, 1, 1, 1)], True),
        ([(2, 5, 1, 1, 6, 6), (20, 3, 1, 1, 1, 1)], False),
        ([(2, 3, 1, 1, 4, 0), (9, 3, 1, 1, 1, 1), (20, 5, 1, 1, 2, 2)], True),
        ([(20, 5, 1, 1, 2, 2)], True),
    ):
        sizes = sizes_of(1, 2, 1, 1, sides)
        assert rows.plan_of(cpu, sizes, has_bias=False).is_plain == is_plain
        for tap in np.ndindex(sizes.kernel):
            x, w = np.ones((1, 2, *sizes.size), np.float32), np.ones((1, 2, *sizes.kernel), np.float32)
            w[0, 1][tap] = np.inf
            assert called(rows, cpu, sizes, (x, w, None))[1] > 0
