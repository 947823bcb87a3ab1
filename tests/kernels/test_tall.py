"""Kernels for large depthwise kernels: their sums for any geometry, and no memory beside their arrays."""

from __future__ import annotations

import numpy as np
import pytest

from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)

from kernels.planned_calls import called, check, sizes_of

from portconv.kernels import tall, tall_plan, target

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
    while found < 6:
        sizes = drawn(random, variant)
        if sizes is not None and tall.plan_of(cpu, sizes, has_bias=True, variant=variant) is not None:
            check(tall, cpu, sizes, random, variant=variant)
            found += 1


@by_target
@pytest.mark.parametrize(
    ("channels", "filters", "sides"),
    [
        (3, 3, [(61, 31, 1, 1, 15, 15)] * 2),  # several passes of columns of taps, and shares of rows
        (2, 4, [(40, 250, 1, 1, 130, 130), (30, 3, 1, 1, 1, 1)]),
        (1, 1, [(9, 5, 1, 1, 2, 2), (9001, 9, 1, 1, 4, 4)]),  # blocks of columns
        (1, 2, [(9, 9, 2, 1, 2, 2), (9001, 5, 2, 3, 4, 4)]),
        (70, 70, [(7, 13, 1, 1, 6, 6)] * 2),  # many units in a share
        (2, 2, [(9, 5, 1, 1, 2, 2), (12, 6, 1, 1, 3, 2), (20, 7, 1, 1, 3, 3)]),  # planes of padding are left out
        (2, 2, [(3, 4, 1, 1, 9, 0), (12, 5, 1, 1, 9, 2), (20, 5, 1, 1, 9, 3)]),  # some taps read padding alone
    ],
)
def test_work_is_cut_into_passes_and_shares(cpu, channels, filters, sides):
    sizes = sizes_of(2, channels, filters, channels, sides)
    assert tall.plan_of(cpu, sizes, has_bias=True) is not None
    check(tall, cpu, sizes, np.random.default_rng(2))


@by_target
def test_bits_do_not_depend_on_how_work_is_cut_into_shares(cpu, monkeypatch):
    random = np.random.default_rng(3)
    for sides in (
        [(41, 9, 1, 1, 4, 4)] * 2,
        [(24, 17, 1, 1, 8, 8)] * 2,
        [(41, 9, 2, 1, 4, 4)] * 2,
        [(60, 5, 1, 3, 6, 6)] * 2,
        [(9, 5, 1, 1, 2, 2), (12, 6, 1, 1, 3, 2), (150, 7, 1, 1, 3, 3)],
    ):
        sizes = sizes_of(2, 5, 10, 5, sides)
        x, w = (random.standard_normal((n, c, *s)).astype(np.float32) for n, c, s in (
            (2, 5, sizes.size), (10, 1, sizes.kernel)
        ))  # fmt: skip
        variant, results = tall.plan_of(cpu, sizes, has_bias=False).variant, []
        for products, columns in ((1, 37), (20_000, 100), (1 << 40, 1 << 20)):
            monkeypatch.setattr(tall_plan, "share_products", lambda *_, products=products: products)
            monkeypatch.setattr(tall_plan, "MOST_COLUMNS", columns)
            results.append(called(tall, cpu, sizes, (x, w, None), variant=variant)[0].tobytes())
        assert len(set(results)) == 1


@by_target
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_number_that_is_not_finite_is_reported(cpu, value):
    for width in (5, 40):  # vectors that are not whole, and whole ones
        sizes = sizes_of(1, 3, 3, 3, [(9, 7, 1, 1, 3, 3), (width, 7, 1, 1, 3, 3)])
        for place in ((0, 0, 0), (1, 8, width - 1), (2, 4, 3)):
            x, w = np.ones((1, 3, 9, width), np.float32), np.ones((3, 1, 7, 7), np.float32)
            x[0][place] = value
            assert called(tall, cpu, sizes, (x, w, None))[1] > 0


@by_target
def test_an_infinite_filter_is_reported_wherever_its_tap_is(cpu):
    # No plan leaves out a tap whose products no output would show.
    for sides in (
        [(9, 7, 1, 1, 3, 3), (20, 7, 1, 1, 3, 3)],
        [(3, 7, 1, 1, 6, 6), (20, 7, 1, 1, 3, 3)],
        [(3, 7, 1, 1, 0, 9), (20, 7, 1, 1, 0, 3)],
        [(4, 3, 1, 1, 1, 1), (9, 5, 1, 1, 2, 2), (20, 5, 1, 1, 2, 2)],
        [(2, 3, 1, 1, 4, 0), (9, 5, 1, 1, 2, 2), (20, 5, 1, 1, 2, 2)],
    ):
        sizes = sizes_of(1, 1, 1, 1, sides)
        assert tall.plan_of(cpu, sizes, has_bias=False) is not None
        for tap in np.ndindex(sizes.kernel):
            x, w = np.ones((1, 1, *sizes.size), np.float32), np.ones((1, 1, *sizes.kernel), np.float32)
            w[0, 0][tap] = np.inf
            assert called(tall, cpu, sizes, (x, w, None))[1] > 0


def test_what_may_be_wrong_where_it_is_not_finite_is_said():
    def is_plain(*sides):
        return tall.plan_of(TARGETS[0], sizes_of(1, 2, 2, 2, list(sides)), has_bias=False).is_plain

    padded, bare = (20, 7, 1, 1, 3, 3), (20, 7, 1, 1, 0, 0)
    assert is_plain(bare, bare)
    assert is_plain(bare, padded)  # lanes of padding are multiplied
    assert not is_plain(padded, bare)
    assert not is_plain(padded, bare, bare)
    assert is_plain((4, 7, 1, 1, 9, 0), bare)  # some taps read padding alone


def test_what_the_family_does_not_serve_has_no_plan():
    side = (20, 9, 1, 1, 4, 4)
    refused = (
        sizes_of(1, 4, 4, 2, [side] * 2),
        sizes_of(1, 4, 4, 4, [side]),
        sizes_of(1, 4, 4, 4, [side, (20, 9, 3, 1, 4, 4)]),
        sizes_of(1, 4, 4, 4, [(20, 1, 1, 1, 0, 0), side]),
        sizes_of(1, 4, 4, 4, [(2, 3, 1, 1, 1, 1), side]),
        sizes_of(1, 4, 4, 4, [(600, 300, 1, 1, 0, 0), side]),
    )
    for sizes in refused:
        assert tall.plan_of(TARGETS[0], sizes, has_bias=True) is None
