"""Products that kernels round have the bits of exact sums, however many of their sums are undecided."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator
from itertools import product
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
)

import portconv
from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)

from portconv.algorithms import compiled
from portconv.algorithms.kernel_products import product_of
from portconv.algorithms.planned_calls import Asked
from portconv.kernels import call, rounded_plan
from portconv.kernels.call import NO_BIAS
from portconv.kernels.families import Kernel
from portconv.spec.dtypes import gamma
from portconv.spec.geometry import Geometry
from portconv.spec.operation import Kind
from portconv.spec.remembered import forget

rounded_products = importlib.import_module("portconv.algorithms.rounded_products")
rounded_pieces = importlib.import_module("portconv.algorithms.rounded_pieces")
NAMES = ("float32",) * 4


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether all sums are rounded, of each product that kernels compute."""
    results: list[bool] = []
    plan = compiled.rounded_product

    def watched(*asked: Any) -> Any:
        planned = plan(*asked)
        if planned is None:
            return None

        def run(*given: Any) -> bool:
            results.append(planned.run(*given))
            return results[-1]

        return planned._replace(run=run)

    monkeypatch.setattr(compiled, "rounded_product", watched)
    forget()
    yield results
    forget()


LAYERS = [(case, False) for case in CASES] + [(case, True) for case in TRANSPOSED]
layers = pytest.mark.parametrize(("case", "transposed"), LAYERS, ids=[f"{c}{' T' * t}" for c, t in LAYERS])


@layers
def test_every_sum_added_up_exactly(
    monkeypatch: pytest.MonkeyPatch, rounded: list[bool], target: Any, case: str, transposed: bool
) -> None:
    """An infinite bound of the error leaves every sum undecided."""
    if not target.backend.has_addresses:
        pytest.skip("kernels take arrays in the memory of this machine")
    monkeypatch.setattr(rounded_products, "gamma", lambda terms: math.inf)
    monkeypatch.setattr(rounded_plan, "SUMS_PER_UNDECIDED", 1)
    for name in ("CHUNK_BYTES", "OF_FILTERS", "WINDOWS"):  # samples are cut into single rows
        monkeypatch.setattr(rounded_pieces, name, 0)
    layer, options = (TRANSPOSED if transposed else CASES)[case]
    options = options if transposed else {**options, "padding_mode": layer.mode}
    for contents in ("random", "wide", "cancelling", "ties"):
        given, expected = (of(layer, NAMES, contents, transposed) for of in (operands, exact_results))
        rounded.clear()
        assert_same_bits(forward_and_backward(target, given, options, transposed), expected)
        # Of wide ones, and with a bias of a tie, results may be subnormal, and are made of slices.
        assert contents == "wide" or all(rounded[contents == "ties" :])
        # Padding that is not of zeros is copied, and its sums are made of slices.
        if layer.mode == "zeros" and 0 not in layer.x:
            assert len(rounded) >= 3


def test_a_result_with_too_many_undecided_sums_is_made_of_slices(rounded: list[bool], target: Any) -> None:
    """Sums of -1, 0 and 1 are often 0, and what cancels is nothing that a bound could tell from 0."""
    if not target.backend.has_addresses:
        pytest.skip("kernels take arrays in the memory of this machine")
    layer, options = MIXED
    rng = np.random.default_rng(5)
    shapes = (layer.x, layer.w, layer.w[:1], layer.out)
    given = tuple(rng.integers(-1, 2, shape).astype("float32") for shape in shapes)
    given[0][0, 0, 0, 0] = given[1][0, 0, 0, 0] = given[3][0, 0, 0, 0] = 1 + 2.0**-23
    assert_same_bits(forward_and_backward(target, given, options), layer.all(*given))
    assert not all(rounded)


FAILING = (
    *(Kernel("rounded", variant, "double") for variant in ("windows", "filters")),
    *(Kernel("quantised", variant, "double") for variant in ("cells", "rows", "totals")),
    *(Kernel("scales", variant, "double") for variant in ("numbers", "magnitudes")),
    *(Kernel("magnitudes", "all"), Kernel("winograd", "3x3", "double")),
)


@pytest.mark.parametrize("kernel", FAILING, ids=str)
@pytest.mark.parametrize("is_known", [False, True], ids=["once", "known"])
def test_a_kernel_that_fails_changes_no_bit(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, is_known: bool) -> None:
    rng = np.random.default_rng(8)
    shapes = ((2, 30, 20, 20), (40, 30, 3, 3), (40,), (2, 40, 20, 20))
    x, w, b, dout = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)

    def bits() -> list[bytes]:
        out, cache = portconv.conv_forward(x, w, b, padding=1, precision="reproducible")
        return [out.tobytes(), *(grad.tobytes() for grad in portconv.conv_backward(dout, cache) if grad is not None)]

    expected, ready = bits(), call.ready

    def failing(other: Kernel) -> Any:
        if other == kernel:
            raise call.KernelError("it fails")
        return ready(other)

    monkeypatch.setattr(call, "failed", {kernel: "it fails"} if is_known else {})
    monkeypatch.setattr(call, "ready", failing)
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # another algorithm computes
        assert bits() == expected
    monkeypatch.undo()
    forget()


PRODUCTS = [
    ((2, 70, 9, 8), (4, 70, 3, 3), 1, 1),
    ((1, 300, 12, 13), (9, 300, 3, 3), 1, 1),
    ((3, 20, 17, 16), (8, 20, 3, 3), 2, 1),
    ((2, 9, 15, 15), (8, 9, 5, 5), 1, 1),
    ((3, 6, 21, 20), (8, 3, 3, 2), 2, 2),
    ((2, 9, 40, 30), (9, 1, 3, 3), 1, 9),
    ((1, 700, 30, 30), (3, 700, 1, 1), 1, 1),
    ((4, 20, 900), (16, 20, 3), 1, 1),
    ((2, 5, 9, 9, 9), (7, 5, 3, 3, 3), 1, 1),
    ((1, 1, 3000), (4, 1, 500), 1, 1),
]


@pytest.mark.parametrize("contents", ["equal", "random"])
@pytest.mark.parametrize("kind", [Kind.FORWARD, Kind.INPUT_GRAD, Kind.WEIGHT_GRAD])
@pytest.mark.parametrize("shapes", PRODUCTS, ids=str)
def test_sums_are_off_by_no_more_than_their_bound(shapes: Any, kind: Kind, contents: str) -> None:
    """Numbers that are all one round all alike; quantised numbers have 40 bits, sign included."""
    x_shape, w_shape, stride, groups = shapes
    layer = geometry(x_shape, w_shape, stride, 1, 1, groups)
    rng = np.random.default_rng(7)
    a_shape, b_shape = layer.x_shape, layer.w_shape
    if kind == Kind.INPUT_GRAD:
        a_shape = layer.out_shape
    if kind == Kind.WEIGHT_GRAD:
        b_shape = layer.out_shape
    a, b = (np.floor(rng.uniform(-(2.0**39), 2.0**39, shape)) for shape in (a_shape, b_shape))
    if contents == "equal":
        a[...], b[...] = (float(int(n) | 1) for n in rng.integers(2**38, 2**39, 2))
    options = {"stride": stride, "padding": 1, "groups": groups, "algorithm": "direct"}

    def plain(a: Any, b: Any) -> Any:
        if kind == Kind.FORWARD:
            return portconv.conv(a, b, **options)
        operands = (np.zeros(layer.x_shape), b) if kind == Kind.INPUT_GRAD else (a, np.zeros(layer.w_shape))
        _, cache = portconv.conv_forward(*operands, **options)
        grads = portconv.conv_backward(a if kind == Kind.INPUT_GRAD else b, cache)
        return grads.dx if kind == Kind.INPUT_GRAD else grads.dw

    planned = product_of(Asked(layer, False, 1 << 28, kind, element="double"))
    assert planned is not None
    out = np.empty(layer.shape(kind.result))
    assert planned.run((a.ctypes.data, b.ctypes.data, NO_BIAS, out.ctypes.data), 2, True)
    # Products of halves of 20 bits and their sums are exact in float64.
    halves = [[np.round(one * 2.0**-20), one - np.round(one * 2.0**-20) * 2.0**20] for one in (a, b)]
    exact: Any = 0
    for (i, one), (j, other) in product(enumerate(halves[0]), enumerate(halves[1])):
        exact = exact + np.array([int(n) for n in plain(one, other).flat], object) * 2 ** (20 * (2 - i - j))
    if kind == Kind.WEIGHT_GRAD:
        norms = [np.sqrt((one**2).sum(axis=(0, *range(2, one.ndim)))) for one in (b, a)]
        channel = np.arange(layer.out_channels)[:, None] // layer.group_out * layer.group_in + np.arange(layer.group_in)
        limits = (norms[0][:, None] * norms[1][channel])[:, :, None] * np.ones(layer.taps)
    else:
        by_filter = b.reshape(groups, layer.group_out, layer.group_in, layer.taps) ** 2
        of_row = by_filter.sum(axis=(1, 3) if kind == Kind.INPUT_GRAD else (2, 3)).reshape(1, -1, *[1] * layer.dims)
        windows = plain(a**2, np.ones(b_shape))
        limits = np.sqrt(windows) * np.sqrt(of_row)
    most = gamma(planned.roundings or layer.terms(kind)) * limits
    off = np.array([float(abs(int(n) - m)) for n, m in zip(out.flat, exact, strict=True)])
    assert (off <= most.ravel() * (1 + 1e-9)).all()
    assert off.any() or contents == "equal"


def met(layer: Geometry, cell: int = 0, position: int = 0) -> set[tuple[int, int, int]]:
    """Return which cell and which output of one dimension meet by which tap, counted from others on."""
    (size,), (taps,), (stride,), (apart,), (before,) = (
        layer.size,
        layer.kernel,
        layer.stride,
        layer.dilation,
        layer.before,
    )
    every = product(range(layer.out[0]), range(taps))
    found = ((out * stride + tap * apart - before, out, tap) for out, tap in every)
    return {(at + cell, out + position, tap) for at, out, tap in found if 0 <= at < size}


def test_rows_of_a_sample_meet_what_they_meet_in_the_whole() -> None:
    random = np.random.default_rng(4)
    for _ in range(400):
        taps, stride, apart, size, before, after = (int(random.integers(*of)) for of in SIDES)
        if size + before + after < apart * (taps - 1) + 1:
            continue
        layer = Geometry(1, 1, 1, 1, (size,), (taps,), (stride,), (apart,), (before,), (after,))
        for of_inputs, lines in ((True, size), (False, layer.out[0])):
            length = int(random.integers(1, 6)) * (stride if of_inputs else 1)
            for first in range(0, lines, length):
                last = min(first + length, lines)
                part, cell, position = rounded_pieces._rows(layer, (first, last), of_inputs=of_inputs)
                wanted = {each for each in met(layer) if first <= each[not of_inputs] < last}
                assert met(part, cell, position) == wanted
                assert (part.size if of_inputs else part.out) == (last - first,)


SIDES = ((1, 6), (1, 5), (1, 4), (1, 21), (0, 7), (0, 7))
"""From which number to which the taps, strides, dilations, sizes and paddings are drawn."""
