"""The forward and backward matrix on every backend, against loops that share nothing with the package."""

from __future__ import annotations

import numpy as np
import pytest
from support.oracle import Problem, gamma

import portconv

# Keyword arguments as a user gives them, and the problem they stand for, worked out by hand.
CASES = {
    "1d": ({}, Problem((2, 3, 9), (4, 3, 3), (1,), ((0, 0),), (1,))),
    "1d stride": ({"stride": 2, "padding": 1}, Problem((2, 3, 9), (4, 3, 3), (2,), ((1, 1),), (1,))),
    "1d stride over kernel": ({"stride": 5}, Problem((2, 1, 12), (2, 1, 2), (5,), ((0, 0),), (1,))),
    "1d dilated": ({"dilation": 3, "padding": (2,)}, Problem((1, 2, 11), (3, 2, 3), (1,), ((2, 2),), (3,))),
    "1d same even": ({"padding": "same"}, Problem((1, 2, 7), (2, 2, 4), (1,), ((1, 2),), (1,))),
    "1d same_lower even": ({"padding": "same_lower"}, Problem((1, 2, 7), (2, 2, 4), (1,), ((2, 1),), (1,))),
    "1d padding over kernel": ({"padding": 4, "stride": 3}, Problem((1, 2, 3), (2, 2, 2), (3,), ((4, 4),), (1,))),
    "1d padding over kernel, dense": (
        {"padding": ((4, 0),), "dilation": 2},
        Problem((2, 2, 5), (3, 2, 2), (1,), ((4, 0),), (2,)),
    ),
    "2d": ({}, Problem((2, 3, 6, 7), (4, 3, 3, 2), (1, 1), ((0, 0), (0, 0)), (1, 1))),
    "2d padded": ({"padding": 1}, Problem((2, 3, 6, 7), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))),
    "2d strides": (
        {"stride": (2, 3), "padding": (0, 2)},
        Problem((2, 2, 7, 8), (3, 2, 2, 3), (2, 3), ((0, 0), (2, 2)), (1, 1)),
    ),
    "2d pairs": (
        {"padding": ((0, 2), (3, 1)), "stride": 2},
        Problem((1, 2, 5, 6), (3, 2, 3, 3), (2, 2), ((0, 2), (3, 1)), (1, 1)),
    ),
    "2d full": (
        {"padding": "full", "dilation": (1, 2)},
        Problem((1, 2, 4, 5), (2, 2, 3, 2), (1, 1), ((2, 2), (2, 2)), (1, 2)),
    ),
    "2d same strided": (
        {"padding": "same", "stride": (2, 3), "dilation": 2},
        # ceil(7 / 2) = 4 outputs need 3 * 2 + 5 = 11 cells, 4 more; ceil(8 / 3) = 3 need 2 * 3 + 3 = 9, 1 more.
        Problem((2, 2, 7, 8), (3, 2, 3, 2), (2, 3), ((2, 2), (0, 1)), (2, 2)),
    ),
    "2d dilated": (
        {"dilation": 2, "padding": 2},
        Problem((2, 2, 6, 6), (2, 2, 3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2)),
    ),
    "2d groups": (
        {"groups": 2, "padding": 1},
        Problem((2, 4, 5, 5), (6, 2, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2),
    ),
    "2d depthwise": (
        {"groups": 3, "padding": "same", "stride": 2},
        Problem((2, 3, 6, 5), (6, 1, 3, 3), (2, 2), ((0, 1), (1, 1)), (1, 1), 3),
    ),
    "2d mixed kernels": (
        {"padding": ((0, 0), (2, 0)), "groups": 2},
        Problem((2, 4, 4, 7), (6, 2, 1, 3), (1, 1), ((0, 0), (2, 0)), (1, 1), 2),
    ),
    "2d padding over kernel, dense": (
        {"padding": (3, 4)},
        Problem((2, 2, 3, 2), (3, 2, 3, 3), (1, 1), ((3, 3), (4, 4)), (1, 1)),
    ),
    "2d depthwise, dense": (
        {"groups": 3, "padding": "same"},
        Problem((2, 3, 6, 5), (6, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 3),
    ),
    "2d pointwise": ({}, Problem((3, 4, 3, 5), (2, 4, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))),
    "2d pointwise grouped, wide": (
        {"groups": 2},
        Problem((2, 4, 12, 11), (4, 2, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 2),
    ),
    "2d pointwise strided": ({"stride": 2}, Problem((2, 2, 5, 5), (3, 2, 1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1))),
    "2d whole": ({}, Problem((3, 2, 4, 5), (3, 2, 4, 5), (1, 1), ((0, 0), (0, 0)), (1, 1))),
    "2d column kernel": ({"padding": (1, 0)}, Problem((1, 2, 5, 4), (2, 2, 3, 1), (1, 1), ((1, 1), (0, 0)), (1, 1))),
    "2d padding alone": (
        {"padding": ((3, 0), (0, 0))},
        Problem((1, 1, 0, 3), (2, 1, 2, 2), (1, 1), ((3, 0), (0, 0)), (1, 1)),
    ),
    "3d": (
        {"stride": (1, 2, 1), "padding": ((1, 0), (1, 1), (0, 2))},
        Problem((2, 2, 3, 5, 4), (3, 2, 2, 3, 3), (1, 2, 1), ((1, 0), (1, 1), (0, 2)), (1, 1, 1)),
    ),
    "3d of kernel 3": (
        {"padding": ((1, 0), (0, 2), (1, 1))},
        Problem((2, 2, 4, 3, 5), (2, 2, 3, 3, 3), (1, 1, 1), ((1, 0), (0, 2), (1, 1)), (1, 1, 1)),
    ),
    "3d of kernels 3, 1, 3": (
        {},
        Problem((1, 2, 4, 2, 6), (3, 2, 3, 1, 3), (1, 1, 1), ((0, 0),) * 3, (1, 1, 1)),
    ),
    "3d dilated groups": (
        {"dilation": (1, 2, 2), "groups": 2, "padding": 1},
        Problem((1, 4, 3, 4, 4), (4, 2, 2, 2, 2), (1, 1, 1), ((1, 1),) * 3, (1, 2, 2), 2),
    ),
    "4d": (
        {"padding": (0, 1, 0, 1), "stride": (1, 2, 1, 1)},
        Problem((2, 2, 2, 3, 3, 2), (2, 2, 2, 2, 1, 2), (1, 2, 1, 1), ((0, 0), (1, 1), (0, 0), (1, 1)), (1,) * 4),
    ),
    "4d of kernels 3, 3, 1, 3": (
        {"padding": 1},
        Problem((1, 2, 2, 3, 1, 2), (2, 2, 3, 3, 1, 3), (1,) * 4, ((1, 1),) * 4, (1,) * 4),
    ),
    "no samples": ({"padding": 1}, Problem((0, 2, 4, 4), (3, 2, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))),
}
DTYPES = ("float32", "float64")
RESULTS = ("out", "dx", "dw", "db")

ALGORITHMS = [name for name in portconv.algorithms() if name != "compiled"]
"""Those that have all three products, in float32 and float64; algorithms/test_compiled.py tests the other one."""

# Each algorithm on what it serves: `winograd` on kernels of 3 and 1, of stride and dilation 1; `fft` on stride 1; and
# `depthwise` on one channel a group.
SERVED = {
    f"{algorithm}-{name}": (options, problem, algorithm)
    for algorithm in ALGORITHMS
    for name, (options, problem) in CASES.items()
    if problem.serves(algorithm)
}
EXACT = {name: case for name, case in SERVED.items() if case[2] != "fft"}
# A case that is not symmetric, for each algorithm.
SKEWED = {
    "winograd": "2d mixed kernels",
    "fft": "2d mixed kernels",
    "depthwise": "2d depthwise",
    "native": "2d padded",
    "gemm": "2d pairs",
    "tap_loop": "2d pairs",
    "direct": "2d pairs",
}

every_case = pytest.mark.parametrize(("options", "problem", "algorithm"), SERVED.values(), ids=SERVED)
every_exact_case = pytest.mark.parametrize(("options", "problem", "algorithm"), EXACT.values(), ids=EXACT)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@pytest.fixture(autouse=True)
def _skip_what_is_not_served(request):
    params = getattr(getattr(request.node, "callspec", None), "params", {})
    algorithm = params.get("algorithm")
    if algorithm == "tap_loop" and params["target"].backend.compiled_steps is None:
        pytest.skip("tap_loop serves libraries that compile every step")
    if algorithm == "native" and "problem" in params:
        x, w = (
            params["target"].array(np.zeros(shape, "float32")) for shape in (params["problem"].x, params["problem"].w)
        )
        try:
            portconv.explain(x, w, algorithm=algorithm, **params["options"])
        except portconv.ConvValueError as error:
            pytest.skip(str(error))
    elif algorithm == "native" and params["target"].backend.native_convolution is None:
        pytest.skip("native serves libraries with a convolution of their own")
    elif algorithm == "native" and params["target"].backend.name == "numpy":
        pytest.skip("NumPy's own convolution has one channel and one filter")


def run(target, operands, **options):
    """Forward and backward; kind is checked before values, and that the arguments are as they were."""
    given = [target.array(a) for a in operands]
    out, cache = portconv.conv_forward(*given[:3], **options)
    results = dict(zip(RESULTS, (out, *portconv.conv_backward(given[3], cache)), strict=True))
    alike = dict(zip(RESULTS, (given[3], *given[:3]), strict=True))
    for name, result in results.items():
        assert target.owns(result), name
        assert tuple(result.shape) == tuple(alike[name].shape), name
        assert result.dtype == alike[name].dtype, name
    for before, after in zip(operands, given, strict=True):
        assert before.tobytes() == target.numpy(after).tobytes()
    return {name: target.numpy(result) for name, result in results.items()}


def assert_within(results, truths, bounds):
    for name, truth in truths.items():
        excess = np.abs(results[name].astype("float64") - truth) - bounds[name]
        assert np.all(excess <= 0), f"{name}: {np.max(excess)} over the bound"


@every_case
@every_dtype
def test_matrix_against_loops(target, options, problem, dtype, algorithm):
    operands = problem.operands(dtype)
    results = run(target, operands, algorithm=algorithm, **options)
    wide = [a.astype("float64") for a in operands]
    assert_within(results, problem.all(*wide), problem.bounds(*wide, dtype, algorithm))


@every_exact_case
def test_whole_numbers_are_exact(target, options, problem, algorithm):
    # Products of integers below 16, fewer than 2**13 of them, sum below 2**24: exact in float32 in any order. A tile of
    # `winograd` along 3 dimensions holds multiples of 1/8, which the fewer than 2**6 terms there keep below 2**21.
    rng = np.random.default_rng(1)
    operands = [rng.integers(-15, 16, a.shape) for a in problem.operands("float32")]
    results = run(target, [a.astype("float32") for a in operands], algorithm=algorithm, **options)
    for name, truth in problem.all(*operands).items():
        assert np.array_equal(results[name], truth), name


@every_dtype
@every_algorithm
def test_gradient_functions_give_what_backward_gives(target, dtype, algorithm):
    options, problem = CASES[SKEWED[algorithm]]
    x, w, _, dout = (target.array(a) for a in problem.operands(dtype))
    options = {**options, "algorithm": algorithm}
    _, cache = portconv.conv_forward(x, w, **options)
    grads = portconv.conv_backward(dout, cache)
    assert grads.db is None
    for mine, theirs in (
        (portconv.conv_input_grad(dout, w, problem.x, **options), grads.dx),
        (portconv.conv_weight_grad(dout, x, problem.w, **options), grads.dw),
    ):
        assert target.owns(mine)
        assert np.array_equal(target.numpy(mine), target.numpy(theirs))


@every_algorithm
def test_one_sample_needs_no_batch_axis(target, algorithm):
    options, problem = CASES["2d depthwise" if algorithm == "depthwise" else "2d groups"]
    problem = problem.unbatched()
    operands = problem.operands("float64")
    batched = run(target, operands, algorithm=algorithm, **options)
    x, w, b, dout = operands
    alone = run(target, (x[0], w, b, dout[0]), algorithm=algorithm, **options)
    for name in ("out", "dx"):
        assert np.array_equal(alone[name], batched[name][0]), name
    for name in ("dw", "db"):
        assert np.array_equal(alone[name], batched[name]), name
    given = [target.array(a) for a in (dout[0], w)]
    dx = portconv.conv_input_grad(*given, problem.x[1:], algorithm=algorithm, **options)
    assert np.array_equal(target.numpy(dx), alone["dx"])


# Large enough for several blocks of every kind, for threads, and for samples that share a block.
LARGE = {
    "rows": ((4, 24, 40, 41), (16, 24, 3, 3), {"padding": 1}),
    "many small images": ((40, 32, 6, 5), (24, 32, 3, 3), {"padding": "same", "stride": 2}),
    "many channels": ((2, 160, 9, 9), (8, 160, 3, 3), {"dilation": 2, "padding": 2}),
    "stem": ((2, 3, 61, 60), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
    "one sample": ((1, 16, 48, 50), (32, 16, 3, 3), {}),
    "pointwise": ((6, 48, 20, 20), (40, 48, 1, 1), {}),
    "depthwise": ((3, 64, 30, 31), (64, 1, 5, 5), {"groups": 64, "padding": 2}),
    "volume": ((2, 8, 12, 13, 14), (8, 8, 3, 3, 3), {"stride": (1, 2, 1), "padding": 1}),
    "signal": ((2, 16, 3000), (16, 16, 9), {"padding": "same", "dilation": 4}),
}


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), LARGE.values(), ids=LARGE)
@every_dtype
def test_gradients_are_the_adjoints(target, x_shape, w_shape, options, dtype):
    rng = np.random.default_rng(2)
    shape = portconv.conv_output_shape(x_shape, w_shape, **options)
    x, w, y = (rng.standard_normal(s).astype(dtype) for s in (x_shape, w_shape, shape))
    results = run(target, (x, w, np.zeros(w_shape[0], dtype), y), **options)
    # <conv(x), y> = <x, dx> = <w, dw>: each side is a sum of the same triple products |x| |w| |y|, of which `total` is
    # the sum; one is rounded at most `terms` times on its way to a result, and the inner products are exact enough in
    # float64 to add nothing that its epsilon times their length would not cover.
    magnitudes = run(target, [np.abs(a) for a in (x, w, np.zeros(w_shape[0], dtype), y)], **options)
    total = float(np.sum(magnitudes["out"].astype("float64") * np.abs(y)))
    group_out = w_shape[0] // options.get("groups", 1)
    taps = int(np.prod(w_shape[2:]))
    terms = {
        "out": w_shape[1] * taps + 1,
        "dx": group_out * taps,
        "dw": y.size // w_shape[0],
    }
    sides = {"out": (results["out"], y), "dx": (results["dx"], x), "dw": (results["dw"], w)}
    values = {name: float(np.sum(a.astype("float64") * b)) for name, (a, b) in sides.items()}
    for one, other in (("out", "dx"), ("out", "dw"), ("dx", "dw")):
        allowed = total * (gamma(terms[one], dtype) + gamma(terms[other], dtype) + gamma(x.size + y.size, "float64"))
        # The sum of magnitudes is itself rounded, by less than a part in a thousand.
        assert abs(values[one] - values[other]) <= 1.001 * allowed, (one, other)


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), LARGE.values(), ids=LARGE)
def test_blocks_agree_with_direct_on_whole_numbers(target, x_shape, w_shape, options):
    if target.backend.name not in ("numpy", "torch", "cupy"):
        pytest.skip("the loop of `direct` over thousands of positions takes minutes on this library")
    # |entries| <= 3 and fewer than 2**20 terms: every partial sum is an integer below 2**24, exact in float32.
    rng = np.random.default_rng(3)
    shape = portconv.conv_output_shape(x_shape, w_shape, **options)
    shapes = (x_shape, w_shape, w_shape[:1], shape)
    operands = [rng.integers(-3, 4, s).astype("float32") for s in shapes]
    fast = run(target, operands, algorithm="gemm", **options)
    truth = run(target, operands, algorithm="direct", **options)
    for name in RESULTS:
        assert np.array_equal(fast[name], truth[name]), name


@every_algorithm
def test_gradients_against_central_differences(target, algorithm):
    options, problem = CASES[SKEWED[algorithm]]
    operands = problem.operands("float64")
    *inputs, dout = operands
    grads = run(target, operands, algorithm=algorithm, **options)
    wide = [np.abs(a) for a in operands]
    # sum(out * dout) is linear in each operand, so a central difference has no truncation error and any step serves;
    # with a step of 1 its rounding is that of two sums of `size` elements, each within the bound of an output.
    sums = problem.forward(*wide[:3]) + np.sum(wide[1]) + np.sum(wide[0]) + 1
    terms = problem.terms()
    if algorithm == "winograd":
        # A tile reads no more than all of x and w, and adds no product to more than 3 of the places behind an output.
        sums, terms = 3 * (np.sum(wide[0]) + 1) * (np.sum(wide[1]) + 1) + np.max(wide[2]) + 1, problem.tile_terms()
    if algorithm == "fft":
        # Norms are no more than sums of magnitudes.
        sums, terms = (np.sum(wide[0]) + 1) * (np.sum(wide[1]) + 1) + np.max(wide[2]) + 1, problem.spectral_terms()
    allowed = 2 * gamma(terms["out"] + dout.size + terms["dw"], "float64") * float(np.sum(sums * wide[3]))

    def energy(*changed):
        given = [target.array(a) for a in changed]
        return float(np.sum(target.numpy(portconv.conv(*given, algorithm=algorithm, **options)) * dout))

    rng = np.random.default_rng(4)
    for place, name in enumerate(("dx", "dw", "db")):
        for flat in rng.choice(inputs[place].size, size=min(5, inputs[place].size), replace=False):
            index = np.unravel_index(flat, inputs[place].shape)
            sides = []
            for step in (1.0, -1.0):
                changed = [a.copy() for a in inputs]
                changed[place][index] += step
                sides.append(energy(*changed))
            assert abs((sides[0] - sides[1]) / 2 - grads[name][index]) <= allowed, (name, index)


@pytest.mark.parametrize("size", [1, 300])
def test_float32_products_are_no_tf32(target, size):
    # One term a sum, and operands of 24 significant bits against 1: TF32 keeps 11 and bfloat16 8, so both would show.
    rng = np.random.default_rng(5)
    x = (rng.integers(2**23, 2**24, (2, size, 16, 16)) | 1).astype("float32")
    w = np.eye(size, dtype="float32").reshape(size, size, 1, 1)
    for algorithm in ("gemm", "direct"):
        out = portconv.conv(target.array(x), target.array(w), algorithm=algorithm)
        assert np.array_equal(target.numpy(out), x), algorithm


@pytest.mark.parametrize("size", [1, 300])
def test_float32_tiles_are_no_tf32(target, size):
    # The middle tap alone: 4 places of a tile, each the sum of 4 cells below 2**24 times 1/4, are within
    # gamma(size + 10) * 2**26 of the cell, or 4 for each term; TF32 would be off by up to 2**24 / 2**11 = 8192.
    rng = np.random.default_rng(5)
    x = (rng.integers(2**23, 2**24, (2, size, 6, 6)) | 1).astype("float32")
    w = np.zeros((size, size, 3, 3), "float32")
    w[:, :, 1, 1] = np.eye(size)
    out = target.numpy(portconv.conv(target.array(x), target.array(w), padding=1, algorithm="winograd"))
    assert np.max(np.abs(out.astype("float64") - x)) <= gamma(size + 10, "float32") * 2**26 < 2000


def test_mixed_widths_promote_and_gradients_keep_their_own(target):
    x, w = target.array(np.ones((1, 1, 3)), "float32"), target.array(np.ones((1, 1, 2)), "float64")
    out, cache = portconv.conv_forward(x, w)
    assert out.dtype == w.dtype
    dx, dw, _ = portconv.conv_backward(out, cache)
    assert (dx.dtype, dw.dtype) == (x.dtype, w.dtype)
    assert portconv.conv_input_grad(target.array([[[1.0, 1.0]]], "float32"), w, (1, 1, 3)).dtype == w.dtype


@every_algorithm
def test_any_memory_layout(target, algorithm):
    options, problem = CASES["2d depthwise, dense" if algorithm == "depthwise" else "2d padded"]
    x, w, b, dout = problem.operands("float64")
    expected = run(target, (x, w, b, dout), algorithm=algorithm, **options)

    def turned(a):
        order = tuple(reversed(range(a.ndim)))
        return target.backend.xp.permute_dims(target.array(np.transpose(a)), order)

    out, cache = portconv.conv_forward(turned(x), turned(w), target.array(b), algorithm=algorithm, **options)
    results = (out, *portconv.conv_backward(turned(dout), cache))
    for name, result in zip(RESULTS, results, strict=True):
        assert np.array_equal(target.numpy(result), expected[name]), name


def test_output_shape_from_shapes_alone():
    for options, problem in CASES.values():
        assert portconv.conv_output_shape(problem.x, problem.w, **options) == problem.out
    assert portconv.conv_output_shape((3, 2**40), (1, 3, 2**39), stride=2**38) == (1, 3)


@every_algorithm
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_in_filters_stays_where_their_taps_reach(target, bad, algorithm):
    # A tap at an edge of the kernel reaches no cell of dx at the other end: dout ends there, no zero lies beyond it.
    w = np.ones((1, 1, 3), "float32")
    w[0, 0, 0] = bad
    given = [target.array(a) for a in (np.ones((1, 1, 5), "float32"), w)]
    dx = target.numpy(portconv.conv_input_grad(*given, (1, 1, 7), algorithm=algorithm))
    assert np.array_equal(dx[0, 0, 5:], [2.0, 1.0])
    assert not np.any(np.isfinite(dx[0, 0, :5]))


@every_algorithm
@every_dtype
def test_a_finite_result_where_windows_touch_nothing_else(target, dtype, algorithm):
    x = np.zeros((1, 1, 6, 6), dtype)
    x[0, 0, 1, 1], x[0, 0, 4, 4] = np.inf, np.nan
    w = np.ones((1, 1, 3, 3), dtype)
    out = target.numpy(portconv.conv(target.array(x), target.array(w), padding=1, algorithm=algorithm))[0, 0]
    touched = np.zeros((6, 6), bool)
    touched[0:3, 0:3] = touched[3:6, 3:6] = True
    assert np.all(np.isfinite(out) == ~touched)
