"""Test Winograd's tiles: how they are cut, when they are chosen, and what happens if their sums overflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.geometries import geometry
from support.oracle import Problem

import portconv
from portconv import backends
from portconv.algorithms.budget import Budget, budget_of
from portconv.algorithms.choice import known
from portconv.algorithms.winograd_tiles import FEWEST_TILES, cut_tiles, tiling
from portconv.engine.gradients import plans_of
from portconv.spec.dtypes import Dtype

SHAPES = {
    "resnet": ((16, 64, 56, 56), (64, 64, 3, 3), 1, 1),
    "many small": ((40, 32, 7, 5), (32, 32, 3, 3), 1, 1),
    "wide": ((1, 64, 6, 30_000), (32, 64, 3, 3), 1, 1),
    "groups": ((2, 64, 30, 31), (64, 2, 3, 3), 1, 32),
    "signal": ((3, 16, 5001), (16, 16, 3), 0, 1),
    "volume": ((1, 16, 9, 40, 41), (16, 16, 3, 1, 3), 2, 1),
    "rows alone": ((2, 24, 50, 33), (24, 24, 1, 3), (0, 1), 1),
}
CANDIDATES = [known()[name] for name in ("winograd", "fft", "depthwise", "gemm")]
FLOAT32 = Dtype(np.dtype("float32"), "float32", "real floating")
RESNET = geometry((16, 64, 56, 56), (64, 64, 3, 3), 1, 1, 1, 1)


def chosen(convolution, name, kind="forward"):
    """Return the algorithm that "auto" takes in float32; the library need not be installed."""
    backend = backends.find(name)
    budget = budget_of(convolution, backend, 32, 32 << 20)
    # Objections are those on NumPy, because the library need not be installed.
    works = {
        algorithm.name: algorithm.work(kind, convolution, budget, backend)
        for algorithm in CANDIDATES
        if not algorithm.objection(convolution, FLOAT32, backends.get("numpy"))
    }
    costs = backend.costs
    times = {
        algorithm: sum((c or 0) * n for c, n in zip(costs, work.counts, strict=True))
        for algorithm, work in works.items()
    }
    return min(times, key=times.get)


def unit_stride(x_shape, w_shape, padding, groups):
    """Return the geometry of a convolution with stride 1 and dilation 1."""
    return geometry(x_shape, w_shape, 1, padding, 1, groups)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("elements", "fast_columns", "least"), [(1 << 19, 1024, 8), (1 << 26, 1 << 30, 1)])
def test_blocks_cover_each_output_once_and_stay_bounded(shape, elements, fast_columns, least):
    convolution = unit_stride(*shape)
    grid, cuts = tiling(convolution), cut_tiles(convolution, Budget(elements, fast_columns, least, 1 << 62), elements)
    times_covered = np.zeros((convolution.batch, convolution.groups, 1, *convolution.out), int)
    blocks = grid.blocks(cuts.samples, cuts.groups, cuts.tiles)
    for block in blocks:
        part = np.zeros(times_covered[block.writes].shape, int)
        for output in block.shape.outputs:
            part[output.cells] += 1
        assert np.all(part == 1)
        times_covered[block.writes] += 1
        # This counts inputs and outputs at one place of the lead, without excess tiles.
        samples, groups, _ = block.tiles.counts
        needed = samples * math.prod(end - start for start, end in block.tiles.box)
        assert samples == block.shape.sizes[1]
        assert needed == samples * math.prod(-(-n // step) for n, step in zip(part.shape[3:], grid.steps, strict=True))
        deep = grid.inner * groups * (convolution.group_in + convolution.group_out)
        assert deep * needed <= max(elements, FEWEST_TILES * deep)
    assert np.all(times_covered == 1)
    assert len(blocks) >= min(least, convolution.batch)


@pytest.mark.parametrize(("x_shape", "w_shape", "padding", "groups"), SHAPES.values(), ids=SHAPES)
def test_blocks_agree_with_gemm_on_whole_numbers(target, x_shape, w_shape, padding, groups):
    if target.backend.name not in ("numpy", "torch", "cupy") and math.prod(x_shape) > 500_000:
        pytest.skip("too slow for a large case on this library")
    # |entries| <= 2: a place of a tile holds quarters, or eighths along three dimensions, below 2**3 * 2 for cells and
    # filters each, and a sum of fewer than 2**13 of their products, as each result is, eighths below 2**21: exact.
    rng = np.random.default_rng(6)
    options = {"padding": padding, "groups": groups}
    shape = portconv.conv_output_shape(x_shape, w_shape, **options)
    some = rng.random((1, *shape[1:])) < 2**12 / math.prod((shape[0], *shape[2:]))
    x, w, b = (rng.integers(-2, 3, s).astype("float32") for s in (x_shape, w_shape, w_shape[:1]))
    dout = (rng.integers(-2, 3, shape) * some).astype("float32")
    results = {}
    for algorithm in ("winograd", "gemm"):
        arrays = [target.array(a) for a in (x, w, b)]
        out, cache = portconv.conv_forward(*arrays, **options, algorithm=algorithm)
        grads = portconv.conv_backward(target.array(dout), cache)
        results[algorithm] = [target.numpy(a) for a in (out, *grads)]
    for tiles, columns in zip(results["winograd"], results["gemm"], strict=True):
        assert np.array_equal(tiles, columns)


def test_the_bound_of_a_sum_does_not_hold_and_that_of_tiles_does():
    # A tap of 0 keeps the large cell out of the sum, but not out of B^T x, where adding it to the 3 rounds the 3 away.
    problem = Problem((1, 1, 4), (1, 1, 3), (1,), ((0, 0),), (1,))
    x, w = np.array([[[0.0, 2.0**30, 3.0, 1.0]]], "float32"), np.array([[[0.0, 0.0, 1.0]]], "float32")
    out = portconv.conv(x, w, algorithm="winograd")
    wide = [a.astype("float64") for a in (x, w, np.zeros(1), np.ones((1, 1, 2)))]
    error = np.abs(out - problem.forward(*wide[:2]))
    assert np.any(error > problem.bounds(*wide, "float32")["out"])
    assert np.all(error <= problem.bounds(*wide, "float32", "winograd")["out"])


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_where_windows_touch_it(target, bad):
    rng = np.random.default_rng(7)
    x, w = rng.standard_normal((2, 2, 9, 8)).astype("float32"), rng.standard_normal((3, 2, 3, 3)).astype("float32")
    dout = rng.standard_normal((2, 3, 9, 8)).astype("float32")
    for place in range(3):
        operands = [x.copy(), w.copy(), dout.copy()]
        operands[place][0, 1, 0, 2] = bad
        results = {}
        for algorithm in ("winograd", "gemm"):
            with np.errstate(invalid="ignore"):
                arrays = [target.array(a) for a in operands]
                out, cache = portconv.conv_forward(*arrays[:2], padding=1, algorithm=algorithm)
                grads = portconv.conv_backward(arrays[2], cache)
            results[algorithm] = [target.numpy(a) for a in (out, *grads[:2])]
        touched = 0
        for tiles, columns in zip(results["winograd"], results["gemm"], strict=True):
            finite = np.isfinite(columns)
            touched += np.sum(~finite)
            assert np.array_equal(np.isfinite(tiles), finite)
            assert np.array_equal(tiles[~finite], columns[~finite], equal_nan=True)
        assert touched


def test_sums_that_overflow_in_tiles_alone_are_computed_again(target):
    # Cells of 3e38 add up beyond float32's 3.4e38 in B^T x; the plain sums hold one cell each.
    x, w = np.full((1, 1, 6, 6), 3e38, "float32"), np.zeros((1, 1, 3, 3), "float32")
    w[0, 0, 1, 1] = 1.0
    out, cache = portconv.conv_forward(target.array(x), target.array(w), padding=1, algorithm="winograd")
    assert np.array_equal(target.numpy(out), x)
    dout = np.zeros_like(x)
    dout[0, 0, 2, 2] = 1.0
    _, dw, _ = portconv.conv_backward(target.array(dout), cache)
    assert np.array_equal(target.numpy(dw), np.full((1, 1, 3, 3), 3e38, "float32"))


def test_numpy_does_not_warn_of_results_that_are_computed_again():
    x, w = np.full((1, 1, 6, 6), 3e38, "float32"), np.zeros((1, 1, 3, 3), "float32")
    with np.errstate(all="raise"):
        portconv.conv(x, w, algorithm="winograd")


@pytest.mark.usefixtures("portable")
def test_auto_takes_tiles_where_they_pay():
    assert chosen(RESNET, "numpy") == "winograd"
    few_channels = geometry((16, 3, 56, 56), (64, 3, 3, 3), 1, 1, 1, 1)
    depthwise = geometry((16, 64, 56, 56), (64, 1, 3, 3), 1, 1, 1, 64)
    weights = geometry((1, 512, 7, 7), (512, 512, 3, 3), 1, 1, 1, 1)
    small = geometry((1, 64, 14, 14), (64, 64, 3, 3), 1, 1, 1, 1)
    strided = geometry((16, 64, 56, 56), (64, 64, 3, 3), 2, 1, 1, 1)
    for convolution in (few_channels, depthwise, weights, small, strided):
        assert chosen(convolution, "numpy") != "winograd"
    x, w = np.ones((16, 64, 56, 56), "float32"), np.ones((64, 64, 3, 3), "float32")
    _, cache = portconv.conv_forward(x, w, padding=1)
    assert [plan.algorithm for plan in plans_of(cache).values()] == ["winograd"] * 3


def test_auto_takes_no_tiles_where_each_step_makes_a_new_array():
    for name in ("array_api_strict", "torch", "cupy"):
        assert chosen(RESNET, name) == "gemm"


@pytest.mark.parametrize("kernel", [(1, 1), (3, 2), (5, 3)])
def test_a_kernel_that_is_not_served_is_an_error(kernel):
    x, w = np.ones((1, 1, 8, 8)), np.ones((1, 1, *kernel))
    with pytest.raises(portconv.ConvValueError, match=r"algorithm: got 'winograd' for a kernel of .*, expected 'auto'"):
        portconv.conv(x, w, algorithm="winograd")
    with pytest.raises(portconv.ConvValueError, match="stride 1"):
        portconv.conv(x, np.ones((1, 1, 3, 3)), stride=2, algorithm="winograd")
