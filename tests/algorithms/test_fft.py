"""Products of spectra: how tiles are cut, results within the bound of norms, and what is not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.geometries import geometry
from support.oracle import Problem, gamma
from threadpoolctl import threadpool_limits

import portconv
from portconv import backends
from portconv.algorithms import fft_spectra, fft_tiles
from portconv.algorithms.budget import Budget, budget_of
from portconv.algorithms.choice import known

# The package's attribute of that name may be a public function.
FFT = known()["fft"]

NUMPY = backends.get("numpy")
RESULTS = ("out", "dx", "dw", "db")

# Options, and the problem they stand for; long enough for several tiles where the name says so.
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
    """Forward and backward, on the host; kind is checked."""
    given = [target.array(a) for a in operands]
    out, cache = portconv.conv_forward(*given[:3], algorithm=algorithm, **options)
    results = dict(zip(RESULTS, (out, *portconv.conv_backward(given[3], cache)), strict=True))
    for (name, result), like in zip(results.items(), (given[3], *given[:3]), strict=True):
        assert target.owns(result), name
        assert tuple(result.shape) == tuple(like.shape), name
        assert result.dtype == like.dtype, name
    return {name: target.numpy(result) for name, result in results.items()}


def assert_within(results, truths, bounds):
    for name, truth in truths.items():
        error = results[name].astype(truth.dtype) - truth
        for part in (error.real, error.imag):
            excess = np.abs(part) - bounds[name]
            assert np.all(excess <= 0), f"{name}: {np.max(excess)} over the bound"


def of_problem(problem):
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
        found = of_problem(problem)
        for purpose in ("forward", "weight_grad"):
            plan, _ = FFT.plan(purpose, found, budget_of(found, NUMPY, 64, 1 << 26))
            assert (len(plan.tiles) > 1) == ("tiles" in name), (name, purpose)


@every_case
@pytest.mark.parametrize("elements", [1, 32, 100])
@pytest.mark.parametrize("least", [1, 16])
def test_any_blocks_give_results_within_the_bound(options, problem, elements, least):
    x, w, b, dout = problem.operands("float64")
    found, budget = of_problem(problem), Budget(elements, 16, least, 1 << (4 if least == 1 else 20))
    results = {
        "out": FFT.compute("forward", found, NUMPY, budget, x, w, b),
        "dx": FFT.compute("input_grad", found, NUMPY, budget, dout, w),
        "dw": FFT.compute("weight_grad", found, NUMPY, budget, dout, x),
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
    # Each part of a sum of n complex products is one of 2 n real ones, of magnitudes of at most |re| + |im| times the
    # like; that is for the loops. The bound of spectra is one of absolute values, and of each part too.
    magnitudes = problem.all(*(np.abs(a.real) + np.abs(a.imag) for a in (x, w, b, dout)))
    own, terms = problem.spectra(*map(np.abs, (x, w, b, dout))), problem.spectral_terms()
    bounds = {
        name: gamma(terms[name], dtype) * own[name]
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
        # Rounded once more, by 2**-11 of itself, or 2**-25 where it is subnormal.
        allowed = bounds[name] + 2.0**-11 * (np.abs(truths[name]) + bounds[name]) + 2.0**-25
        assert np.all(np.abs(results[name].astype("float64") - truths[name]) <= allowed), name


def test_the_bound_of_a_sum_does_not_hold_and_that_of_spectra_does():
    # A large cell leaves its rounding in outputs whose windows do not hold it.
    problem = Problem((1, 1, 40), (1, 1, 3), (1,), ((0, 0),), (1,))
    x, w, b, dout = problem.operands("float32")
    x[0, 0, 3] = 2.0**30
    out = portconv.conv(x, w, b, algorithm="fft")
    wide = [a.astype("float64") for a in (x, w, b, dout)]
    error = np.abs(out - problem.forward(*wide[:3]))
    assert np.any(error > problem.bounds(*wide, "float32")["out"])
    assert np.all(error <= problem.bounds(*wide, "float32", "fft")["out"])


def test_errors_of_transforms_are_within_their_share_of_the_bound():
    # What the bound is made of: 12 u for each doubling of the points, and as many more of a real transform.
    rng = np.random.default_rng(0)
    for points in (2, 3, 5, 8, 27, 125, 180, 512, 729, 1250):
        turns = np.outer(np.arange(points), np.arange(points)) % points
        weights = np.exp(-2j * np.pi * turns / points)
        for x in (rng.standard_normal(points), np.ones(points), rng.standard_normal(points) + 1j):
            exact = weights @ x
            short = x.astype("complex64" if x.dtype.kind == "c" else "float32")
            found = np.fft.fft(short) if x.dtype.kind == "c" else np.fft.rfft(short)
            allowed = 12 * (math.log2(points) + 1) * 2.0**-24 * np.linalg.norm(exact)
            # The operand's own rounding comes first, and the weights above are of float64.
            moved = weights @ (short.astype("complex128") - x)
            assert np.linalg.norm(found - (exact + moved)[: len(found)]) <= allowed + 2.0**-40 * np.linalg.norm(exact)


# Shapes of x and w, padding, dilation and groups.
SHAPES = {
    "audio": ((4, 1, 160_000), (16, 1, 401), 200, 1, 1),
    "signal": ((2, 8, 5000), (4, 8, 9), 0, 4, 1),
    "large kernels": ((4, 96, 56, 56), (96, 1, 31, 31), 15, 1, 96),
    "wide": ((1, 4, 7, 9000), (6, 2, 3, 65), ((0, 1), (64, 0)), 1, 2),
    "volume": ((2, 3, 20, 21, 22), (5, 3, 7, 5, 7), "full", 1, 1),
    "padding alone": ((2, 3, 5), (3, 1, 4), ((3000, 4000),), 1, 3),
    "no samples": ((0, 3, 8, 8), (8, 3, 3, 3), 1, 1, 1),
    "many filters": ((1, 64, 14, 14), (128, 64, 7, 7), 3, 1, 1),
}
BUDGETS = {
    "usual": Budget(1 << 20, 4096, 1, 1 << 24),
    "threads": Budget(1 << 18, 4096, 16, 1 << 24),
    "little room": Budget(1 << 20, 4096, 4, 1 << 17),
    "small blocks": Budget(1 << 12, 4096, 4, 1 << 24),
}


def made(x_shape, w_shape, padding, dilation, groups):
    return geometry(x_shape, w_shape, 1, padding, dilation, groups)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("mirrored", [False, True], ids=["forward", "input_grad"])
def test_blocks_cover_each_output_once_and_stay_bounded(shape, budget, mirrored):
    found = made(*shape).mirrored if mirrored else made(*shape)
    plan, need = FFT.plan("forward", found, budget)
    points = math.prod(side.points for side in plan.sides)
    each = 2 * points * (found.group_in + 2 * found.group_out)
    assert [group for held in plan.held for group in range(*held)] == [*range(found.groups)]
    # One after the other, so that outputs along each dimension are covered once, and blocks are products of these.
    for side, out in zip(plan.sides, found.out, strict=True):
        assert side.tiles[0][0][0] == 0
        assert side.tiles[-1][0][1] == out
        assert all(one[0][1] == other[0][0] for one, other in zip(side.tiles, side.tiles[1:], strict=False))
        assert all(end - start <= side.tile for (start, end), _, _ in side.tiles)
    seen = {}
    for held in plan.held:
        for samples, groups, tile in plan.blocks(held):
            assert held[0] <= groups[0] < groups[1] <= held[1]
            count, many = samples[1] - samples[0], groups[1] - groups[0]
            assert count * many * each <= max(budget.block_elements, each)
            at = tuple(part.start for part in tile.outputs)
            seen[at] = seen.get(at, 0) + count * many
    assert set(seen.values()) <= {found.batch * found.groups}
    assert len(seen) == (len(plan.tiles) if found.batch else 0)
    # A share of weight_grad's work is of one partial sum and some groups, and all have all blocks.
    for held in plan.held:
        shares = plan.shares(held)
        assert len({(i, groups) for i, groups, _ in shares}) == len(shares)
        assert {i for i, _, _ in shares} <= set(range(plan.sums))
        assert sorted(b for _, _, blocks in shares for b in map(repr, blocks)) == sorted(map(repr, plan.blocks(held)))
    pieces = plan.filters(found.groups)
    covered = np.zeros((found.groups, found.group_out), int)
    for groups, filters in pieces:
        covered[slice(*groups), slice(*filters)] += 1
    assert np.all(covered == 1)
    # One block of one sample, group and tile, and the spectra of one group, are the least there can be.
    if budget.workspace_elements >= 1 << 24:
        assert need <= budget.workspace_elements


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_tiles_are_what_the_bound_takes_them_for(shape, budget):
    for found in (made(*shape), made(*shape).mirrored):
        plan, _ = FFT.plan("forward", found, budget)
        for side, padded, extent in zip(plan.sides, found.padded, found.extent, strict=True):
            assert side.points <= 1 << padded.bit_length()  # the first power of 2 beyond
            assert side.points >= side.tile
            assert all(end - start >= extent for (start, end), _, _ in side.tiles[:-1])


def positions(found, dim, elements):
    """Check one dimension of a plan, cell by cell: what lies where, and that nothing comes round to meet a tap."""
    side = fft_tiles.cut_side(found, dim, elements)
    size, before = found.size[dim], found.before[dim]
    dilation, kernel = found.dilation[dim], found.kernel[dim]
    taps = np.arange(kernel) * dilation
    outputs = []
    for (start, end), (lo, hi), at in side.tiles:
        outputs += range(start, end)
        assert 0 <= lo <= hi <= size
        assert at >= 0
        assert at + hi - lo <= side.segment <= side.points
        assert end - start <= side.tile <= side.points
        cells, places = np.arange(lo, hi), at + np.arange(hi - lo)
        for output in range(start, end):
            reads = output - before + taps
            # Where the transform adds up what each tap reads: point t takes from place t - p of the tap at p.
            point = (output - start) - (side.offset - taps)
            for cell, place in zip(reads, point, strict=True):
                if 0 <= cell < size:
                    assert lo <= cell < hi
                    assert place == at + cell - lo
            if cells.size:
                meets = (places[:, None] - point[None, :]) % side.points == 0
                assert np.array_equal(meets, cells[:, None] == reads[None, :])
    assert outputs == list(range(found.out[dim]))


def test_sides_read_what_each_tap_reads_and_nothing_comes_round():
    rng = np.random.default_rng(1)
    for _ in range(300):
        size, kernel, dilation = int(rng.integers(0, 30)), int(rng.integers(1, 7)), int(rng.integers(1, 4))
        pads = [int(n) for n in rng.integers(0, rng.choice([1, 5, 2 * size + 3]), 2)]
        extent = dilation * (kernel - 1) + 1
        pads[int(rng.integers(0, 2))] += max(0, extent - size - sum(pads))
        found = geometry((1, 1, size), (1, 1, kernel), 1, (tuple(pads),), dilation, 1)
        for elements in (1 << 20, 2 * extent + 6):
            positions(found, 0, elements)
            # Whose padding is negative where there is more of it than the kernel's extent.
            if min(found.mirrored.size) or min(found.mirrored.out):
                positions(found.mirrored, 0, elements)


def test_a_long_side_is_cut_where_one_transform_would_be_too_large():
    found = geometry((1, 1, 100_000), (1, 1, 11), 1, 0, 1, 1)
    side = fft_tiles.cut_side(found, 0, 500)
    assert side.points <= 500
    assert len(side.tiles) == -(-found.out[0] // side.tile)
    positions(geometry((1, 1, 1000), (1, 1, 11), 1, 0, 1, 1), 0, 64)


def test_runs_lay_taps_one_step_apart_and_come_round():
    for points in (1, 2, 5, 12):
        for step in (-7, -3, -1, 1, 2, 5):
            # No more taps than there are places, which a kernel's extent sees to.
            for count in range(1, 1 + max(1, -(-points // abs(step)))):
                for first in range(-points, points):
                    laid = {}
                    for (start, end), places in fft_spectra.runs_of(first, step, count, points):
                        inside = [*range(points)[places]]
                        assert len(inside) == end - start
                        laid |= dict(zip(range(start, end), inside if step > 0 else inside[::-1], strict=True))
                    assert laid == {tap: (first + tap * step) % points for tap in range(count)}


def test_a_single_tap_has_any_dilation():
    x = np.arange(5.0).reshape(1, 1, 5)
    for dilation in (2**31, 2**63, 2**70):
        out = portconv.conv(x, np.ones((1, 1, 1)), dilation=dilation, algorithm="fft")
        assert np.all(np.abs(out - x) <= gamma(200, "float64") * np.linalg.norm(x))


def test_points_have_small_primes_alone():
    for least in (*range(1, 300), 2**20 - 1, 10**7 + 1, 2**24 + 1, 2**40 - 1):
        found = rest = fft_tiles.smooth_size(least)
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1
        assert least <= found <= 1 << (least - 1).bit_length()


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
            # Where windows do not touch it, it may as well be 0.
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


def test_numpy_says_nothing_of_what_it_computes_again():
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
    # The padding filled in, a convolution without any; and its dx folded, each cell on to the one it was filled from.
    problem = Problem(filled.shape, w.shape, (1, 1), ((0, 0), (0, 0)), (1, 1))
    truths, bounds = problem.all(filled, w, b, dout), problem.bounds(filled, w, b, dout, "float64", "fft")
    cells = np.arange(1, 31).reshape(5, 6)
    source = np.pad(cells, pads, modes[mode])
    for found in (truths, bounds):
        found["dx"] = np.stack([found["dx"][..., source == cell].sum(-1) for cell in cells.ravel()], -1).reshape(
            x.shape
        )
    # So many cells, none larger than what spectra round, are added up to one.
    most = np.bincount(source.ravel())[1:].max()
    bounds["dx"] = (1 + gamma(most, "float64")) * bounds["dx"] + gamma(most, "float64") * most * np.max(
        problem.spectra(*map(np.abs, (filled, w, b, dout)))["dx"]
    )
    for last in (False, True):
        given = [np.moveaxis(a, 1, -1).copy() if last and a.ndim == 4 and a is not w else a for a in (x, w, b, dout)]
        options = {"padding": pads, "padding_mode": mode, "data_format": "channels_last" if last else "channels_first"}
        results = run(target, given, **options)
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
    # The input gradient, with x and dout in each other's places; dx is then the plain convolution.
    given = [target.array(a) for a in (dout, w)]
    out, cache = portconv.conv_transpose_forward(*given, padding=((1, 0), (0, 2)), dilation=(2, 1), algorithm="fft")
    dx, dw, _ = portconv.conv_transpose_backward(target.array(x), cache)
    results = {"dx": target.numpy(out), "out": target.numpy(dx), "dw": target.numpy(dw)}
    none = np.zeros(3)
    truths = problem.all(x, w, none, dout)
    del truths["db"]
    assert_within(results, truths, problem.bounds(x, w, none, dout, "float64", "fft"))


def test_numpy_gives_the_same_bits_on_any_number_of_threads_and_each_time():
    rng = np.random.default_rng(3)
    x, w, b = (rng.standard_normal(s, dtype="float32") for s in ((6, 16, 40, 41), (16, 1, 15, 15), (16,)))
    mixed = [rng.standard_normal(s, dtype="float32") for s in ((3, 4, 3000), (8, 4, 65), (8,))]
    for operands, options in (((x, w, b), {"groups": 16, "padding": "same"}), (mixed, {"padding": 32})):
        found = []
        for threads in (1, 2, 3, 2):
            with threadpool_limits(threads, user_api="blas"):
                out, cache = portconv.conv_forward(*operands, algorithm="fft", **options)
                found.append([a.tobytes() for a in (out, *portconv.conv_backward(out, cache))])
        assert found[0] == found[1] == found[2] == found[3]


def test_what_is_not_served_is_an_error():
    x = np.ones((1, 2, 8, 8))
    with pytest.raises(portconv.ConvValueError, match=r"algorithm: got 'fft' .* expected 'auto', or stride 1"):
        portconv.conv(x, np.ones((1, 2, 3, 3)), stride=(1, 2), algorithm="fft")
    with pytest.raises(
        portconv.ConvValueError, match=r"algorithm: got 'fft' .*int64, expected 'auto', or floating point"
    ):
        portconv.conv(x.astype("int64"), np.ones((1, 2, 3, 3), "int64"), algorithm="fft")


def test_an_infinite_tap_that_reads_padding_alone_is_not_lost():
    # Two taps that only padding meets share a point of the transform; infinity times zero is nan all the same.
    x, w = np.ones((1, 1, 1)), np.array([[[-np.inf, 1.0]]])
    options = {"padding": ((2, 1),), "dilation": 3}
    for algorithm in ("direct", "fft"):
        with np.errstate(invalid="ignore"):
            assert np.isnan(portconv.conv(x, w, **options, algorithm=algorithm)).all()


def test_tiles_are_as_small_as_a_limit_makes_them():
    x, w = np.ones((2, 2, 2003), "float32"), np.ones((3, 2, 9), "float32")
    # One transform of all cells has 2016 points, and spectra of 6 filters' channels alone would take 48 KB.
    with portconv.workspace_limit(8000):
        found = portconv.explain(x, w, algorithm="fft")
        assert found.workspace_bytes <= 8000
        assert found.block["points"] <= 75
        # Sums of 18 ones. Each of 2 channels is off by at most 3 * 12 (log2 128 + 1) units of 2**-24 of the 2-norm of
        # the input's 75 cells times the 1-norm of the filter, 9: docs/accuracy.md.
        out = portconv.conv(x, w, algorithm="fft")
        assert np.allclose(out, 18, rtol=0, atol=2 * 3 * 12 * 8 * 2.0**-24 * 9 * 9)
