"""Sums rounded from one float64 product, and those it does not decide: the bits of any other way to make them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.reproducible_cases import CASES, MIXED, TRANSPOSED, operands, run, same, skip_without, truth

import portconv
from portconv.algorithms.budget import Budget
from portconv.algorithms.choice import known
from portconv.backends._numpy import NumpyBackend
from portconv.reproducible import certified as near
from portconv.reproducible import product as products
from portconv.reproducible import weight_grad
from portconv.spec import arguments

NAMES = ("float32",) * 4
CONTENTS = ("random", "wide", "cancelling", "ties")


@pytest.fixture
def puts(monkeypatch) -> list[Any]:
    """What each result is put from: the products, and what came of it."""
    found, put = [], near.Near.put

    def watched(self, *given):
        value = put(self, *given)
        found.append(SimpleNamespace(near=self, products=given[1] * 1.0, decided=value is not None))
        return value

    monkeypatch.setattr(near.Near, "put", watched)
    return found


@pytest.fixture
def settled(monkeypatch) -> list[int]:
    """How many sums were made anew, of each result."""
    found, settle = [], near.Near.settle

    def watched(self, out, places, *rest):
        found.append(len(places))
        return settle(self, out, places, *rest)

    monkeypatch.setattr(near.Near, "settle", watched)
    return found


@pytest.fixture
def close(target):
    """A target whose numbers may be looked at one by one."""
    skip_without(target, "float32")
    if not target.backend.at_hand(target.array(np.zeros(1, "float32"))):
        pytest.skip(f"{target.backend.name} multiplies slices: single numbers are far, or of arrays that do not change")
    return target


def every(case: str, transposed: bool) -> Any:
    """A case with its mode, and which contents go with it."""
    layer, options = (TRANSPOSED if transposed else CASES)[case]
    return layer, options if transposed else {**options, "padding_mode": layer.mode}


LAYERS = [(case, False) for case in CASES] + [(case, True) for case in TRANSPOSED]
layers = pytest.mark.parametrize(("case", "transposed"), LAYERS, ids=[f"{c}{' T' * t}" for c, t in LAYERS])


@layers
def test_every_sum_made_anew(close, monkeypatch, settled, case, transposed):
    """An error without bound decides nothing."""
    monkeypatch.setattr(near, "gamma", lambda terms: math.inf)
    monkeypatch.setattr(weight_grad, "gamma", lambda terms: math.inf)
    for kind in (near.Windows, near.Correlations):
        monkeypatch.setattr(kind, "few", 1)
    layer, options = every(case, transposed)
    for contents in CONTENTS:
        given, expected = (of(layer, NAMES, contents, transposed) for of in (operands, truth))
        same(run(close, given, options, transposed), expected)
    # Numbers from 2**-126 on, and padding that is not of zeros, take the other way.
    sizes = [truth(layer, NAMES, "random", transposed)[name].size for name in ("out", "dx", "dw")]
    if layer.mode == "zeros" and 0 not in layer.x:
        assert sum(settled) >= sum(sizes)


@layers
def test_every_sum_of_slices(close, monkeypatch, puts, case, transposed):
    for module in (products, weight_grad):
        monkeypatch.setattr(module, "serves", lambda *call: False)
    layer, options = every(case, transposed)
    for contents in CONTENTS:
        given, expected = (of(layer, NAMES, contents, transposed) for of in (operands, truth))
        same(run(close, given, options, transposed), expected)
    assert not puts


def test_what_too_few_sums_are_decided_of_is_made_of_slices(close, puts):
    """Sums of -1, 0 and 1 are often 0, and what cancels is nothing that a bound could tell from 0."""
    layer, options = MIXED
    rng = np.random.default_rng(5)
    shapes = (layer.x, layer.w, layer.w[:1], layer.out)
    given = tuple(rng.integers(-1, 2, shape).astype("float32") for shape in shapes)
    given[0][0, 0, 0, 0] = given[1][0, 0, 0, 0] = given[3][0, 0, 0, 0] = 1 + 2.0**-23
    same(run(close, given, options), layer.all(*given))
    assert not all(one.decided for one in puts)


def test_windows_of_zeros_are_decided(close, settled):
    """As are cells that no window has, and the gradients of filters of channels that are zeros."""
    rng = np.random.default_rng(6)
    x, w, dout = (
        rng.standard_normal(shape).astype("float32") for shape in ((2, 6, 20, 18), (5, 6, 1, 1), (2, 5, 7, 6))
    )
    x[:, :, 3:], x[:, 1], dout[:, 2], dout[:, :, :2] = 0, 0, 0, 0
    found = run(close, (x, w, None, dout), {"stride": 3})
    exact = np.einsum("ncyx,fc->nfyx", x[:, :, ::3, ::3].astype("f8"), w[:, :, 0, 0].astype("f8"))
    # 6 products of float64, and one rounding to float32.
    assert np.all(np.abs(found["out"] - exact) <= 2.0**-24 * np.abs(exact) + 1e-12)
    assert not found["out"][:, :, 1:].any()
    assert not found["dx"][:, :, 1::3].any()
    assert not found["dw"][2].any()
    assert not found["dw"][:, 1].any()
    # Of 420 outputs, 4320 cells and 30 weights some 90, 108 and 20 are not zero, and next to all of these decided.
    assert sum(settled) <= 3


@pytest.mark.parametrize("algorithm", ["auto", "direct"])
def test_products_are_off_by_no_more_than_their_bound(puts, algorithm):
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
        puts.clear()
        out, cache = portconv.conv_forward(x, w, precision="reproducible", algorithm=algorithm, **options)
        portconv.conv_backward(np.full(out.shape, first, "float32"), cache)
        assert len(puts) == 3
        for one, (terms, factors) in zip(
            puts, ((counts, first * second), (grads.dx, first * second), (grads.dw, first * first)), strict=True
        ):
            # 2**24 is the power of two above them, and numbers of 40 bits, sign included, are 2**39 for it.
            exact = factors * 2**30
            shape = one.products.shape
            room = lambda name, shape, dtype=None: np.empty(shape, dtype)  # noqa: E731
            error = np.broadcast_to(one.near.error(tuple(slice(0, n) for n in shape), room), shape)
            for number, count, bound in set(zip(one.products.flat, terms.flat, error.flat, strict=True)):
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
    yield arguments.geometry((1, 130, 12, 12), (4, 130, 3, 1), 1, 1, 1, 1)
    yield arguments.geometry((9, 1, 30, 31), (2, 1, 2, 2), 1, 0, 1, 1)
    rng = np.random.default_rng(8)
    for _ in range(12):
        dims, groups, batch = (int(n) for n in rng.integers(1, (3, 4, 4)))
        ins, outs = (groups * int(n) for n in rng.integers(1, 14, 2))
        kernel, stride, dilation = (tuple(map(int, rng.integers(1, 4, dims))) for _ in range(3))
        extents = (d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
        size = (extent + int(n) for extent, n in zip(extents, rng.integers(1, 16, dims), strict=True))
        pads = tuple((int(a), int(b)) for a, b in rng.integers(0, 3, (dims, 2)))
        yield arguments.geometry((batch, ins, *size), (outs, ins // groups, *kernel), stride, pads, dilation, groups)


@pytest.mark.parametrize("run_of", [0, 16])
@pytest.mark.parametrize("elements", [1 << 7, 1 << 11, 1 << 20])
@pytest.mark.parametrize("least", [1, 5])
@pytest.mark.parametrize("strided", [False, True])
def test_roundings_are_counted(strided, least, elements, run_of):
    gemm, backend = known()["gemm"], Depths()
    budget = Budget(elements, 64, least, 1 << 22, summed_positions=run_of)
    backend.strided = strided
    ratios = []
    for geometry in geometries():
        x, w, dout = (np.ones(shape) for shape in (geometry.x_shape, geometry.w_shape, geometry.out_shape))
        found = {
            "forward": gemm.compute("forward", geometry, backend, budget, x, w, None),
            "input_grad": gemm.compute("input_grad", geometry, backend, budget, dout, w),
            "weight_grad": gemm.compute("weight_grad", geometry, backend, budget, dout, x),
        }
        for purpose, depths in found.items():
            most = gemm.roundings(purpose, geometry, backend, budget)
            assert np.max(depths) - 1 <= most, (purpose, geometry)
            ratios.append(most / max(1, np.max(depths) - 1))
    # Padding leaves few sums with all terms, where kernels are as large as what they go over.
    assert np.median(ratios) < 1.5
