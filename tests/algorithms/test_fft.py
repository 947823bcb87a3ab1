"""Test products of spectra: results are within the bound of norms, and what happens to infinities and nans."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.geometries import geometry
from support.oracle import Problem, gamma
from threadpoolctl import threadpool_limits

import portconv
from portconv import backends
from portconv.algorithms.budget import Budget, budget_of
from portconv.algorithms.choice import known

# The package's attribute of that name may be a public function.
FFT = known()["fft"]

NUMPY = backends.get("numpy")
RESULTS = ("out", "dx", "dw", "db")

# Options, and the problem that they describe. It is long enough for several tiles if the name says so.
CASES = {
    "1d": ({}, Problem((2, 3, 9), (4, 3, 3), (1,), ((0, 0),), (1,))),
    "1d tiles": ({"padding": ((5, 2),)}, Problem((2, 2, 603), (3, 2, 9), (1,), ((5, 2),), (1,))),
    "1d tiles, dilated": (
        {"padding": "same", "dilation": 3, "groups": 2},
        Problem((2, 2, 611), (4, 1, 4), (1,), ((4, 5),), (3,), 2),
    ),
    "1d tiles of padding": ({"padding": ((70, 90),)}, Problem((1, 1, 40), (2, 1, 5), (1,), ((70, 90),), (1,))),
    "1d kernel over input": ({"padding": ((3, 9),)}, Problem((2, 2, 4), (3, 2, 13), (1,), ((3, 9),), (1,))),
    "1d padding over kernel": ({"padding": ((9, 0),)}, Problem((2, 2, 5), (3, 2, 2), (1,), ((9, 0),), (1,))),
    "1d whole": ({}, Problem((3, 2, 17), (2, 2, 17), (1,), ((0, 0),), (1,))),
    "2d": ({"padding": 1}, Problem((2, 2, 6, 7), (3, 2, 3, 2), (1, 1), ((1, 1), (1, 1)), (1, 1))),
    "2d full, dilated": (
        {"padding": "full", "dilation": (1, 2)},
        Problem((2, 3, 5, 6), (2, 3, 3, 4), (1, 1), ((2, 2), (6, 6)), (1, 2)),
    ),
    "2d groups": (
        {"padding": ((0, 3), (2, 0)), "groups": 2},
        Problem((3, 4, 7, 8), (6, 2, 4, 3), (1, 1), ((0, 3), (2, 0)), (1, 1), 2),
    ),
    "2d depthwise": (
        {"padding": "same", "groups": 3},
        Problem((2, 3, 6, 7), (3, 1, 5, 4), (1, 1), ((2, 2), (1, 2)), (1, 1), 3),
    ),
    "2d padding alone": ({"padding": 3}, Problem((1, 1, 0, 2), (2, 1, 2, 3), (1, 1), ((3, 3), (3, 3)), (1, 1))),
    "3d": (
        {"padding": ((1, 0), (0, 2), (1, 1))},
        Problem((1, 2, 3, 5, 4), (3, 2, 2, 3, 3), (1,) * 3, ((1, 0), (0, 2), (1, 1)), (1,) * 3),
    ),
    "no samples": ({"padding": 1}, Problem((0, 2, 4, 5), (3, 2, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))),
}
every_case = pytest.mark.parametrize(("options", "problem"), CASES.values(), ids=CASES)


def run(target, operands, algorithm="fft", **options):
    """Return the results of forward and backward on the host; check their library, shape and dtype."""
    arrays = [target.array(a) for a in operands]
    out, cache = portconv.conv_forward(*arrays[:3], algorithm=algorithm, **options)
    results = dict(zip(RESULTS, (out, *portconv.conv_backward(arrays[3], cache)), strict=True))
    for (name, result), like in zip(results.items(), (arrays[3], *arrays[:3]), strict=True):
        assert target.owns(result), name
        assert tuple(result.shape) == tuple(like.shape), name
        assert result.dtype == like.dtype, name
    return {name: target.numpy(result) for name, result in results.items()}


def assert_within(results, truths, bounds):
    """Check that results differ from the exact ones by at most the bounds."""
    for name, truth in truths.items():
        error = results[name].astype(truth.dtype) - truth
        for part in (error.real, error.imag):
            excess = np.abs(part) - bounds[name]
            assert np.all(excess <= 0), f"{name}: {np.max(excess)} over the bound"


def geometry_of(problem):
    """Return the geometry of a problem."""
    pads = tuple(problem.pads)
    return geometry(problem.x, problem.w, problem.stride, pads, problem.dilation, problem.groups)


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_results_against_loops(target, options, problem, dtype):
    operands = problem.operands(dtype)
    results = run(target, operands, **options)
    wide = [a.astype("float64") for a in operands]
    assert_within(results, problem.all(*wide), problem.bounds(*wide, dtype, "fft"))


def test_one_small_case_on_any_library(target):
    options, problem = CASES["1d"]
    operands = problem.operands("float32")
    wide = [a.astype("float64") for a in operands]
    results = run(target, operands, **options)
    assert_within(results, problem.all(*wide), problem.bounds(*wide, "float32", "fft"))


def test_cases_above_cut_tiles():
    for name, (_, problem) in CASES.items():
        convolution = geometry_of(problem)
        for kind in ("forward", "weight_grad"):
            plan, _ = FFT.plan(kind, convolution, budget_of(convolution, NUMPY, 64, 1 << 26))
            assert (len(plan.tiles) > 1) == ("tiles" in name), (name, kind)


@every_case
@pytest.mark.parametrize("elements", [1, 32, 100])
@pytest.mark.parametrize("least", [1, 16])
def test_any_blocks_give_results_within_the_bound(options, problem, elements, least):
    x, w, b, dout = problem.operands("float64")
    convolution, budget = geometry_of(problem), Budget(elements, 16, least, 1 << (4 if least == 1 else 20))
    results = {
        "out": FFT.compute("forward", convolution, NUMPY, budget, x, w, b),
        "dx": FFT.compute("input_grad", convolution, NUMPY, budget, dout, w),
        "dw": FFT.compute("weight_grad", convolution, NUMPY, budget, dout, x),
    }
    truths = problem.all(x, w, b, dout)
    del truths["db"]
    assert_within(results, truths, problem.bounds(x, w, b, dout, "float64", "fft"))


@every_case
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_numbers_against_loops(target, options, problem, dtype):
    parts = [problem.operands("float64", seed) for seed in (0, 1)]
    operands = [(one + 1j * other).astype(dtype) for one, other in zip(*parts, strict=True)]
    results = run(target, operands, **options)
    x, w, b, dout = (a.astype("complex128") for a in operands)
    # Gradients are adjoints.
    truths = {
        "out": problem.forward(x, w, b),
        "dx": problem.input_grad(dout, w.conj()),
        "dw": problem.weight_grad(dout, x.conj()),
    }
    # For the loops: each part of a sum of n complex products is a sum of 2 n real products, and their magnitudes are at
    # most those of |re| + |im| of both operands. The bound of spectra is for absolute values, and so for each part.
    magnitudes = problem.all(*(np.abs(a.real) + np.abs(a.imag) for a in (x, w, b, dout)))
    norms, terms = problem.spectra(*map(np.abs, (x, w, b, dout))), problem.spectral_terms()
    bounds = {
        name: gamma(terms[name], dtype) * norms[name]
        + gamma(2 * problem.terms()[name], dtype="float64") * magnitudes[name]
        for name in truths
    }
    assert_within(results, truths, bounds)


def test_halves_are_computed_in_float32(target):
    if not hasattr(target.backend.xp, "float16"):
        pytest.skip(f"{target.backend.name} has no float16")
    options, problem = CASES["2d groups"]
    operands = problem.operands("float16")
    results = run(target, operands, **options)
    wide = [a.astype("float64") for a in operands]
    bounds, truths = problem.bounds(*wide, "float32", "fft"), problem.all(*wide)
    for name in ("out", "dx", "dw"):
        # The result is rounded once more, by at most 2**-11 times itself, or 2**-25 if it is subnormal.
        allowed = bounds[name] + 2.0**-11 * (np.abs(truths[name]) + bounds[name]) + 2.0**-25
        assert np.all(np.abs(results[name].astype("float64") - truths[name]) <= allowed), name


def test_the_bound_of_a_sum_does_not_hold_and_that_of_spectra_does():
    # The rounding error of a large cell is in all outputs of its tile, even if their windows do not contain the cell.
    problem = Problem((1, 1, 40), (1, 1, 3), (1,), ((0, 0),), (1,))
    x, w, b, dout = problem.operands("float32")
    x[0, 0, 3] = 2.0**30
    out = portconv.conv(x, w, b, algorithm="fft")
    wide = [a.astype("float64") for a in (x, w, b, dout)]
    error = np.abs(out - problem.forward(*wide[:3]))
    assert np.any(error > problem.bounds(*wide, "float32")["out"])
    assert np.all(error <= problem.bounds(*wide, "float32", "fft")["out"])


def test_errors_of_transforms_are_within_their_share_of_the_bound():
    # The bound allows 12 u for each doubling of the points, and 12 u more for a real transform.
    rng = np.random.default_rng(0)
    for points in (2, 3, 5, 8, 27, 125, 180, 512, 729, 1250):
        exponents = np.outer(np.arange(points), np.arange(points)) % points
        weights = np.exp(-2j * np.pi * exponents / points)
        for x in (rng.standard_normal(points), np.ones(points), rng.standard_normal(points) + 1j):
            exact = weights @ x
            rounded = x.astype("complex64" if x.dtype.kind == "c" else "float32")
            spectrum = np.fft.fft(rounded) if x.dtype.kind == "c" else np.fft.rfft(rounded)
            allowed = 12 * (math.log2(points) + 1) * 2.0**-24 * np.linalg.norm(exact)
            # `change` is the rounding of the operand; 2.0**-40 allows for the rounding of the weights in float64.
            change = weights @ (rounded.astype("complex128") - x)
            assert np.linalg.norm(spectrum - (exact + change)[: len(spectrum)]) <= allowed + 2.0**-40 * np.linalg.norm(
                exact
            )


def test_a_single_tap_has_any_dilation():
    x = np.arange(5.0).reshape(1, 1, 5)
    for dilation in (2**31, 2**63, 2**70):
        out = portconv.conv(x, np.ones((1, 1, 1)), dilation=dilation, algorithm="fft")
        assert np.all(np.abs(out - x) <= gamma(200, "float64") * np.linalg.norm(x))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["1d tiles", "2d groups"])
def test_what_is_not_finite_stays_where_windows_touch_it(target, bad, name):
    options, problem = CASES[name]
    for place in (0, 1, 3):
        operands = problem.operands("float32")
        operands[place].reshape(-1)[7] = bad
        with np.errstate(invalid="ignore"):
            spectra, columns = (run(target, operands, algorithm, **options) for algorithm in ("fft", "gemm"))
        clean = [np.where(np.isfinite(a), a, 0).astype("float64") for a in operands]
        spectral, plain = (problem.bounds(*clean, "float32", algorithm) for algorithm in ("fft", "direct"))
        touched = 0
        for result in ("out", "dx", "dw"):
            one, other = spectra[result], columns[result]
            finite = np.isfinite(other)
            touched += np.sum(~finite)
            assert np.array_equal(np.isfinite(one), finite)
            assert np.array_equal(one[~finite], other[~finite], equal_nan=True)
            # Results whose windows do not contain it are the same as with 0 in its place.
            allowed = spectral[result] + plain[result]
            assert np.all(np.abs(one[finite] - other[finite]) <= allowed[finite])
        assert touched


def test_sums_that_overflow_in_transforms_alone_are_computed_again(target):
    # Cells of 3e38 add up beyond float32's 3.4e38 in a transform; the plain sums hold one cell each.
    x, w = np.full((1, 1, 6, 6), 3e38, "float32"), np.zeros((1, 1, 3, 3), "float32")
    w[0, 0, 1, 1] = 1.0
    out, cache = portconv.conv_forward(target.array(x), target.array(w), padding=1, algorithm="fft")
    assert np.array_equal(target.numpy(out), x)
    dout = np.zeros_like(x)
    dout[0, 0, 2, 2] = 1.0
    dx, dw, _ = portconv.conv_backward(target.array(dout), cache)
    assert np.array_equal(target.numpy(dw), np.full((1, 1, 3, 3), 3e38, "float32"))
    assert np.all(np.abs(target.numpy(dx) - dout) <= gamma(400, "float32"))


def test_numpy_does_not_warn_of_results_that_are_computed_again():
    x, w = np.full((1, 1, 6, 6), 3e38, "float32"), np.zeros((1, 1, 3, 3), "float32")
    with np.errstate(all="raise"):
        out, cache = portconv.conv_forward(x, w, algorithm="fft")
        dout = np.zeros_like(out)
        dout[0, 0, 1, 1] = 1.0
        portconv.conv_backward(dout, cache)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_channels_last_and_padding_modes(target, mode):
    rng = np.random.default_rng(2)
    x, w, b, dout = (rng.standard_normal(s) for s in ((2, 2, 5, 6), (3, 2, 4, 3), (3,), (2, 3, 7, 7)))
    pads, modes = ((2, 3), (1, 2)), {"reflect": "reflect", "replicate": "edge", "circular": "wrap", "zeros": "constant"}
    filled = np.pad(x, ((0, 0), (0, 0), *pads), modes[mode])
    # The problem is a convolution of the filled padding. Its dx is folded: each cell is added to its source.
    problem = Problem(filled.shape, w.shape, (1, 1), ((0, 0), (0, 0)), (1, 1))
    truths, bounds = problem.all(filled, w, b, dout), problem.bounds(filled, w, b, dout, "float64", "fft")
    cells = np.arange(1, 31).reshape(5, 6)
    source = np.pad(cells, pads, modes[mode])
    for quantities in (truths, bounds):
        quantities["dx"] = np.stack(
            [quantities["dx"][..., source == cell].sum(-1) for cell in cells.ravel()], -1
        ).reshape(x.shape)
    # At most `added` cells are added up to one, each with the rounding error of spectra.
    added = np.bincount(source.ravel())[1:].max()
    bounds["dx"] = (1 + gamma(added, "float64")) * bounds["dx"] + gamma(added, "float64") * added * np.max(
        problem.spectra(*map(np.abs, (filled, w, b, dout)))["dx"]
    )
    for last in (False, True):
        arrays = [np.moveaxis(a, 1, -1).copy() if last and a.ndim == 4 and a is not w else a for a in (x, w, b, dout)]
        options = {"padding": pads, "padding_mode": mode, "data_format": "channels_last" if last else "channels_first"}
        results = run(target, arrays, **options)
        for name in ("out", "dx") if last else ():
            results[name] = np.moveaxis(results[name], -1, 1)
        assert_within(results, truths, bounds)


def test_one_sample_needs_no_batch_axis(target):
    options, problem = CASES["2d groups"]
    problem = problem.unbatched()
    x, w, b, dout = problem.operands("float64")
    results = run(target, (x[0], w, b, dout[0]), **options)
    results |= {name: results[name][None] for name in ("out", "dx")}
    assert_within(results, problem.all(x, w, b, dout), problem.bounds(x, w, b, dout, "float64", "fft"))


def test_transposed_convolution(target):
    problem = Problem((2, 4, 9, 10), (3, 4, 4, 3), (1, 1), ((1, 0), (0, 2)), (2, 1))
    x, w, _, dout = problem.operands("float64")
    # A transposed convolution is the input gradient with x and dout exchanged, so its dx is the plain convolution.
    arrays = [target.array(a) for a in (dout, w)]
    out, cache = portconv.conv_transpose_forward(*arrays, padding=((1, 0), (0, 2)), dilation=(2, 1), algorithm="fft")
    dx, dw, _ = portconv.conv_transpose_backward(target.array(x), cache)
    results = {"dx": target.numpy(out), "out": target.numpy(dx), "dw": target.numpy(dw)}
    no_bias = np.zeros(3)
    truths = problem.all(x, w, no_bias, dout)
    del truths["db"]
    assert_within(results, truths, problem.bounds(x, w, no_bias, dout, "float64", "fft"))


def test_numpy_gives_the_same_bits_on_any_number_of_threads_and_each_time():
    rng = np.random.default_rng(3)
    x, w, b = (rng.standard_normal(s, dtype="float32") for s in ((6, 16, 40, 41), (16, 1, 15, 15), (16,)))
    mixed = [rng.standard_normal(s, dtype="float32") for s in ((3, 4, 3000), (8, 4, 65), (8,))]
    for operands, options in (((x, w, b), {"groups": 16, "padding": "same"}), (mixed, {"padding": 32})):
        bits = []
        for threads in (1, 2, 3, 2):
            with threadpool_limits(threads, user_api="blas"):
                out, cache = portconv.conv_forward(*operands, algorithm="fft", **options)
                bits.append([a.tobytes() for a in (out, *portconv.conv_backward(out, cache))])
        assert bits[0] == bits[1] == bits[2] == bits[3]


def test_what_is_not_served_is_an_error():
    x = np.ones((1, 2, 8, 8))
    with pytest.raises(portconv.ConvValueError, match=r"algorithm: got 'fft' .* expected 'auto', or stride 1"):
        portconv.conv(x, np.ones((1, 2, 3, 3)), stride=(1, 2), algorithm="fft")
    with pytest.raises(
        portconv.ConvValueError, match=r"algorithm: got 'fft' .*int64, expected 'auto', or floating point"
    ):
        portconv.conv(x.astype("int64"), np.ones((1, 2, 3, 3), "int64"), algorithm="fft")


def test_an_infinite_tap_that_reads_padding_alone_is_not_lost():
    # Two taps that read only padding share a point of the transform. Infinity times zero must still be nan.
    x, w = np.ones((1, 1, 1)), np.array([[[-np.inf, 1.0]]])
    options = {"padding": ((2, 1),), "dilation": 3}
    for algorithm in ("direct", "fft"):
        with np.errstate(invalid="ignore"):
            assert np.isnan(portconv.conv(x, w, **options, algorithm=algorithm)).all()


def test_tiles_are_as_small_as_a_limit_makes_them():
    x, w = np.ones((2, 2, 2003), "float32"), np.ones((3, 2, 9), "float32")
    # One transform of all cells has 2016 points, and spectra of 6 filters' channels alone would take 48 KB.
    with portconv.workspace_limit(8000):
        explained = portconv.explain(x, w, algorithm="fft")
        assert explained.workspace_bytes <= 8000
        assert explained.block["points"] <= 75
        # Outputs are sums of 18 ones. In each of 2 channels the error is at most 3 * 12 (log2 128 + 1) units of 2**-24,
        # times the 2-norm of the input's 75 cells, times the 1-norm of the filter, 9 (see docs/accuracy.md).
        out = portconv.conv(x, w, algorithm="fft")
        assert np.allclose(out, 18, rtol=0, atol=2 * 3 * 12 * 8 * 2.0**-24 * 9 * 9)
