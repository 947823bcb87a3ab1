"""Sums that are rounded from one float64 product, and those that it leaves undecided, have the bits of exact sums."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.geometries import geometry
from support.reproducible_cases import (
    CASES,
    MIXED,
    TRANSPOSED,
    assert_same_bits,
    exact_results,
    forward_and_backward,
    operands,
    skip_without,
)

import portconv
from portconv.algorithms.budget import Budget
from portconv.algorithms.choice import Choice, known
from portconv.backends._numpy import NumpyBackend
from portconv.reproducible import product as products
from portconv.reproducible import weight_grad, window_sums
from portconv.reproducible.certified import BoundedSums
from portconv.reproducible.correlation_sums import CorrelationSums
from portconv.reproducible.window_sums import WindowSums

NAMES = ("float32",) * 4
CONTENTS = ("random", "wide", "cancelling", "ties")


@pytest.fixture
def portable(monkeypatch) -> None:
    """No algorithm rounds products itself, as where there are no kernels."""
    monkeypatch.setattr(Choice, "rounded", lambda *call: None)


@pytest.fixture
def roundings(monkeypatch, portable) -> list[Any]:
    """The sums that each result is rounded from, what bounds their error, and whether enough of them are decided."""
    calls, round_into = [], BoundedSums.round_into

    def watched(self, target, sums):
        value = round_into(self, target, sums)
        calls.append(SimpleNamespace(bounded=self, sums=sums * 1.0, decided=value is not None))
        return value

    monkeypatch.setattr(BoundedSums, "round_into", watched)
    return calls


@pytest.fixture
def recomputed(monkeypatch, portable) -> list[int]:
    """How many sums of each result are computed exactly because they are undecided."""
    counts, recompute = [], BoundedSums.recompute

    def watched(self, target, places, added):
        counts.append(len(places))
        return recompute(self, target, places, added)

    monkeypatch.setattr(BoundedSums, "recompute", watched)
    return counts


@pytest.fixture
def host_target(target):
    """A target whose numbers can be read one by one, so that sums are certified there."""
    skip_without(target, "float32")
    if not target.backend.at_hand(target.array(np.zeros(1, "float32"))):
        pytest.skip(f"{target.backend.name} multiplies slices: single numbers are far, or of arrays that do not change")
    return target


def layer_and_options(case: str, transposed: bool) -> Any:
    """Return the layer of a case, and its options, the padding mode among them."""
    layer, options = (TRANSPOSED if transposed else CASES)[case]
    return layer, options if transposed else {**options, "padding_mode": layer.mode}


LAYERS = [(case, False) for case in CASES] + [(case, True) for case in TRANSPOSED]
layers = pytest.mark.parametrize(("case", "transposed"), LAYERS, ids=[f"{c}{' T' * t}" for c, t in LAYERS])


@layers
def test_every_sum_recomputed(host_target, monkeypatch, recomputed, case, transposed):
    """An infinite bound of the error leaves every sum undecided."""
    for module in (window_sums, weight_grad):
        monkeypatch.setattr(module, "gamma", lambda terms: math.inf)
    for sums in (WindowSums, CorrelationSums):
        monkeypatch.setattr(sums, "sums_per_undecided", 1)
    layer, options = layer_and_options(case, transposed)
    for contents in CONTENTS:
        given, expected = (of(layer, NAMES, contents, transposed) for of in (operands, exact_results))
        assert_same_bits(forward_and_backward(host_target, given, options, transposed), expected)
    # Contents with the smallest numbers, and padding that is not of zeros, are not certified.
    sizes = [exact_results(layer, NAMES, "random", transposed)[name].size for name in ("out", "dx", "dw")]
    if layer.mode == "zeros" and 0 not in layer.x:
        assert sum(recomputed) >= sum(sizes)


@layers
def test_every_sum_of_slices(host_target, monkeypatch, roundings, case, transposed):
    monkeypatch.setattr(products, "is_at_hand", lambda *call: False)
    layer, options = layer_and_options(case, transposed)
    for contents in CONTENTS:
        given, expected = (of(layer, NAMES, contents, transposed) for of in (operands, exact_results))
        assert_same_bits(forward_and_backward(host_target, given, options, transposed), expected)
    assert not roundings


def test_a_result_with_too_many_undecided_sums_is_made_of_slices(host_target, roundings):
    """Sums of -1, 0 and 1 are often 0, and what cancels is nothing that a bound could tell from 0."""
    layer, options = MIXED
    rng = np.random.default_rng(5)
    shapes = (layer.x, layer.w, layer.w[:1], layer.out)
    given = tuple(rng.integers(-1, 2, shape).astype("float32") for shape in shapes)
    given[0][0, 0, 0, 0] = given[1][0, 0, 0, 0] = given[3][0, 0, 0, 0] = 1 + 2.0**-23
    assert_same_bits(forward_and_backward(host_target, given, options), layer.all(*given))
    assert not all(one.decided for one in roundings)


def test_windows_of_zeros_are_decided(host_target, recomputed):
    """As are cells that no window has, and the gradients of filters of channels that are zeros."""
    rng = np.random.default_rng(6)
    x, w, dout = (
        rng.standard_normal(shape).astype("float32") for shape in ((2, 6, 20, 18), (5, 6, 1, 1), (2, 5, 7, 6))
    )
    x[:, :, 3:], x[:, 1], dout[:, 2], dout[:, :, :2] = 0, 0, 0, 0
    found = forward_and_backward(host_target, (x, w, None, dout), {"stride": 3})
    exact = np.einsum("ncyx,fc->nfyx", x[:, :, ::3, ::3].astype("f8"), w[:, :, 0, 0].astype("f8"))
    # 6 products of float64, and one rounding to float32.
    assert np.all(np.abs(found["out"] - exact) <= 2.0**-24 * np.abs(exact) + 1e-12)
    assert not found["out"][:, :, 1:].any()
    assert not found["dx"][:, :, 1::3].any()
    assert not found["dw"][2].any()
    assert not found["dw"][:, 1].any()
    # Of 420 outputs, 4320 cells and 30 weights some 90, 108 and 20 are not zero, and next to all of these decided.
    assert sum(recomputed) <= 3


@pytest.mark.parametrize("algorithm", ["auto", "direct"])
def test_sums_are_off_by_no_more_than_their_bound(roundings, algorithm):
    """Numbers that are all one: a sum is their product as often as there are terms, and all roundings add up."""
    rng = np.random.default_rng(7)
    worst = 0.0
    shapes = [
        ((2, 70, 9, 8), (4, 70, 3, 3), 1),
        ((3, 6, 21, 20), (8, 3, 3, 2), 2),
        ((1, 130, 30, 30), (3, 130, 1, 1), 1),
    ]
    for (x_shape, w_shape, stride), _ in product(shapes, range(4 if algorithm == "auto" else 1)):
        # 24 bits each, scaled to 40: products of 48 bits, whose sums are soon longer than 53.
        first, second = (int(n) | 1 for n in rng.integers(2**23, 2**24, 2))
        x, w = (np.full(shape, n, "float32") for shape, n in ((x_shape, first), (w_shape, second)))
        options: dict[str, Any] = {"stride": stride, "padding": 1, "groups": x_shape[1] // w_shape[1]}
        ones = [np.ones(shape) for shape in (x_shape, w_shape)]
        counts, cache = portconv.conv_forward(*ones, **options)
        grads = portconv.conv_backward(np.ones_like(counts), cache)
        roundings.clear()
        out, cache = portconv.conv_forward(x, w, precision="reproducible", algorithm=algorithm, **options)
        portconv.conv_backward(np.full(out.shape, first, "float32"), cache)
        assert len(roundings) == 3
        for one, (terms, factors) in zip(
            roundings, ((counts, first * second), (grads.dx, first * second), (grads.dw, first * first)), strict=True
        ):
            # 2**24 is the power of two above them, and numbers of 40 bits, sign included, are 2**39 for it.
            exact = factors * 2**30
            shape = one.sums.shape
            workspace = lambda name, shape, dtype=None: np.empty(shape, dtype)  # noqa: E731
            error = np.broadcast_to(one.bounded.error_bound(tuple(slice(0, n) for n in shape), workspace), shape)
            for number, count, bound in set(zip(one.sums.flat, terms.flat, error.flat, strict=True)):
                off = abs(Fraction(float(number)) - int(count) * exact)
                assert off <= Fraction(float(bound))
                worst = max(worst, float(off / Fraction(float(bound))) if bound else 0)
    # A bound that no error comes near would leave more sums undecided than it must.
    assert worst > 0.01


class Depths(NumpyBackend):
    """Arithmetic on how many roundings a number has been through, and one more; what is 0 stays so, and adds none."""

    def load(self) -> Any:
        class Namespace:
            def __getattr__(self, name: str) -> Any:
                return getattr(np, name)

            def sum(self, array: Any, axis: int) -> Any:
                return np.max(array, axis=axis) + np.maximum(np.count_nonzero(array, axis=axis) - 1, 0)

        return Namespace()

    def product(self, a: Any, b: Any, out: Any = None) -> Any:
        one, other = np.broadcast_arrays(a[..., :, :, None], b[..., None, :, :])
        both = (one > 0) & (other > 0)
        return np.max(np.where(both, np.maximum(one, other), 0), axis=-2) + np.count_nonzero(both, axis=-2)

    def add(self, target: Any, index: Any, value: Any) -> Any:
        old = target[index]
        target[index] = np.maximum(old, value) + ((old > 0) & (value > 0))
        return target


def geometries() -> Iterator[Any]:
    """Taps added up one after the other, samples that are shared out, and what chance gives."""
    yield geometry((1, 130, 12, 12), (4, 130, 3, 1), 1, 1, 1, 1)
    yield geometry((9, 1, 30, 31), (2, 1, 2, 2), 1, 0, 1, 1)
    rng = np.random.default_rng(8)
    for _ in range(12):
        dims, groups, batch = (int(n) for n in rng.integers(1, (3, 4, 4)))
        ins, outs = (groups * int(n) for n in rng.integers(1, 14, 2))
        kernel, stride, dilation = (tuple(map(int, rng.integers(1, 4, dims))) for _ in range(3))
        extents = (d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
        size = (extent + int(n) for extent, n in zip(extents, rng.integers(1, 16, dims), strict=True))
        pads = tuple((int(a), int(b)) for a, b in rng.integers(0, 3, (dims, 2)))
        yield geometry((batch, ins, *size), (outs, ins // groups, *kernel), stride, pads, dilation, groups)


@pytest.mark.parametrize("run_of", [0, 16])
@pytest.mark.parametrize("elements", [1 << 7, 1 << 11, 1 << 20])
@pytest.mark.parametrize("least", [1, 5])
@pytest.mark.parametrize("strided", [False, True])
def test_roundings_are_counted(strided, least, elements, run_of):
    gemm, backend = known()["gemm"], Depths()
    budget = Budget(elements, 64, least, 1 << 22, summed_terms=run_of)
    backend.strided = strided
    ratios = []
    for layer in geometries():
        x, w, dout = (np.ones(shape) for shape in (layer.x_shape, layer.w_shape, layer.out_shape))
        found = {
            "forward": gemm.compute("forward", layer, backend, budget, x, w, None),
            "input_grad": gemm.compute("input_grad", layer, backend, budget, dout, w),
            "weight_grad": gemm.compute("weight_grad", layer, backend, budget, dout, x),
        }
        for kind, depths in found.items():
            most = gemm.roundings(kind, layer, backend, budget)
            assert np.max(depths) - 1 <= most, (kind, layer)
            ratios.append(most / max(1, np.max(depths) - 1))
    # Padding leaves few sums with all terms, where kernels are as large as what they go over.
    assert np.median(ratios) < 1.5
