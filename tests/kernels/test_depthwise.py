"""Depthwise kernels: the sums of every variant, for this CPU and for AVX2 alone, and no memory beside their arrays."""

from __future__ import annotations

import numpy as np
import pytest

from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)

from kernels.planned_calls import called, check, sizes_of

import portconv
from portconv.kernels import depthwise, depthwise_plan, target

TARGETS = [state.here(), *([target.cross("avx2")] if state.here().name == "avx512" else [])]
by_target = pytest.mark.parametrize("cpu", TARGETS, ids=lambda cpu: cpu.name)


def drawn(random, shape):
    """Sizes that a variant serves: low, narrow and wide planes, any padding, more filters a channel."""
    (height, width), stride = shape.kernel, shape.stride
    apart = [int(random.choice([1, 1, 2, 3])) if stride == 1 else 1 for _ in range(2)]
    sides = []
    for taps, dilation, most in ((height, apart[0], 20), (width, apart[1], 70)):
        size = int(random.integers(1, 17 if shape.pair else 20 if shape.narrow else most))
        # The gradient of an input may have a negative padding.
        before, after = (int(each) for each in random.integers(-1, 2 * taps + 2, 2))
        sides.append((size, taps, stride, dilation, before, after))
    if height == 1 and random.integers(2):
        sides = sides[1:]
    if shape.deep:
        size, *rest = (int(random.integers(1, most)) for most in (7, 5, 4, 4))
        sides = [(size, *rest, *(int(each) for each in random.integers(0, 6, 2))), *sides]
    channels, multiplier, batch = (int(random.integers(1, most)) for most in (6, 2 if shape.pair else 4, 4))
    return sizes_of(batch, channels, channels * multiplier, channels, sides)


@by_target
@pytest.mark.parametrize("variant", depthwise.VARIANTS)
def test_every_variant_computes_the_plain_sums(cpu, variant):
    random = np.random.default_rng(sum(map(ord, variant)))
    found = 0
    while found < 12:
        sizes = drawn(random, depthwise.SHAPES[variant])
        if sizes is not None and depthwise.plan_of(cpu, sizes, has_bias=True, variant=variant) is not None:
            check(depthwise, cpu, sizes, random, variant=variant)
            found += 1


@by_target
def test_large_planes_are_cut_into_bands_and_small_ones_are_put_together(cpu):
    random = np.random.default_rng(1)
    for side, channels in ((300, 1), (61, 40), (7, 1500)):
        sizes = sizes_of(2, channels, channels, channels, [(side, 3, 1, 1, 1, 1)] * 2)
        assert depthwise.plan_of(cpu, sizes, has_bias=True).shares > 1
        check(depthwise, cpu, sizes, random)


@by_target
def test_bits_do_not_depend_on_how_work_is_cut_into_shares(cpu, monkeypatch):
    random = np.random.default_rng(3)
    for sides in (
        [(41, 3, 1, 1, 1, 1)] * 2,
        [(9, 3, 1, 1, 1, 1)] * 3,
        [(23, 5, 1, 2, 4, 3)] * 2,
        [(70, 5, 1, 1, 2, 2)],
    ):
        sizes = sizes_of(2, 5, 10, 5, sides)
        x, w = (random.standard_normal((n, c, *s)).astype(np.float32) for n, c, s in (
            (2, 5, sizes.size), (10, 1, sizes.kernel)
        ))  # fmt: skip
        results = []
        for products in (1, 2_000, 1 << 40):
            monkeypatch.setattr(depthwise_plan, "share_products", lambda *_, products=products: products)
            results.append(called(depthwise, cpu, sizes, (x, w, None))[0].tobytes())
        assert len(set(results)) == 1


@by_target
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("width", [40, 14, 7])
def test_a_number_that_is_not_finite_is_reported(cpu, value, width):
    sizes = sizes_of(1, 3, 3, 3, [(9, 3, 1, 1, 1, 1), (width, 3, 1, 1, 1, 1)])
    for place in ((0, 0, 0), (1, 8, width - 1), (2, 4, width // 2)):
        x, w = np.ones((1, 3, 9, width), np.float32), np.ones((3, 1, 3, 3), np.float32)
        x[0][place] = value
        assert called(depthwise, cpu, sizes, (x, w, None))[1] > 0


def test_an_input_of_no_cells_gives_the_bias():
    b = np.float32([2.5])
    for x, w in (((1, 1, 0), (1, 1, 3)), ((1, 1, 0, 4), (1, 1, 3, 3)), ((1, 1, 9, 0), (1, 1, 3, 3))):
        out = portconv.conv(np.zeros(x, "float32"), np.ones(w, "float32"), b, padding=2, algorithm="compiled")
        assert out.size > 0
        assert np.all(out == b)


@by_target
def test_numbers_near_the_largest_are_stored_as_they_are(cpu):
    # Whether all are finite is asked of a sum of rows, which may overflow: then the call is looked at once more.
    sizes = sizes_of(1, 1, 1, 1, [(7, 3, 1, 1, 1, 1), (14, 3, 1, 1, 1, 1)])
    x, w = np.full((1, 1, 7, 14), 2.0**127, np.float32), np.zeros((1, 1, 3, 3), np.float32)
    w[..., 1, 1] = 1
    assert np.array_equal(called(depthwise, cpu, sizes, (x, w, None))[0], x)
    assert np.array_equal(portconv.conv(x, w, padding=1, algorithm="compiled"), x)


def test_what_the_family_does_not_serve_has_no_plan():
    side = (20, 3, 1, 1, 1, 1)
    refused = (
        sizes_of(1, 4, 4, 2, [side] * 2),
        sizes_of(1, 4, 4, 4, [side] * 4),
        sizes_of(1, 4, 4, 4, [(20, 5, 1, 1, 1, 1)] * 3),
        sizes_of(1, 4, 4, 4, [side, (20, 4, 1, 1, 1, 1)]),
        sizes_of(1, 4, 4, 4, [side, (20, 3, 2, 1, 1, 1)]),
        sizes_of(1, 4, 4, 4, [(20, 3, 2, 2, 1, 1)] * 2),
    )
    for sizes in refused:
        assert depthwise.plan_of(TARGETS[0], sizes, has_bias=True) is None
