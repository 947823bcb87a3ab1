"""Test the algorithm for one channel in each group: its results, and how it cuts planes into lines and blocks."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from support.geometries import geometry
from support.oracle import Problem
from threadpoolctl import threadpool_limits

import portconv
from portconv import backends
from portconv.algorithms.budget import Budget
from portconv.algorithms.choice import known
from portconv.algorithms.depthwise_planes import stack_of

DEPTHWISE = known()["depthwise"]
NUMPY = backends.get("numpy")
RESULTS = ("out", "dx", "dw", "db")
CASES = {
    "1d": ({"groups": 3}, Problem((2, 3, 9), (3, 1, 4), (1,), ((0, 0),), (1,), 3)),
    "1d stride": (
        {"groups": 2, "stride": 2, "padding": ((3, 1),)},
        Problem((2, 2, 10), (4, 1, 5), (2,), ((3, 1),), (1,), 2),
    ),
    "1d stride over kernel": ({"stride": 5}, Problem((3, 1, 13), (2, 1, 2), (5,), ((0, 0),), (1,))),
    "1d dilation over stride": (
        {"stride": 2, "dilation": 3, "padding": 4},
        Problem((2, 1, 11), (3, 1, 4), (2,), ((4, 4),), (3,)),
    ),
    "1d kernel over input": ({"padding": ((2, 9),)}, Problem((2, 1, 3), (2, 1, 8), (1,), ((2, 9),), (1,))),
    "2d": (
        {"groups": 3, "padding": "same"},
        Problem((2, 3, 6, 5), (3, 1, 3, 4), (1, 1), ((1, 1), (1, 2)), (1, 1), 3),
    ),
    "2d stride, two filters": (
        {"groups": 3, "stride": 2, "padding": 1},
        Problem((3, 3, 7, 8), (6, 1, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 3),
    ),
    "2d strides, dilated": (
        {"groups": 2, "stride": (1, 3), "dilation": (2, 1), "padding": ((0, 3), (2, 0))},
        Problem((2, 2, 7, 9), (4, 1, 3, 2), (1, 3), ((0, 3), (2, 0)), (2, 1), 2),
    ),
    "2d rows": (
        {"groups": 2, "padding": (2, 1)},
        Problem((4, 2, 9, 30), (2, 1, 5, 3), (1, 1), ((2, 2), (1, 1)), (1, 1), 2),
    ),
    "2d rows, strides, two filters": (
        {"groups": 2, "stride": (3, 2), "padding": (3, 1)},
        Problem((5, 2, 13, 50), (4, 1, 7, 3), (3, 2), ((3, 3), (1, 1)), (1, 1), 2),
    ),
    "2d rows, one column": (
        {"groups": 2},
        Problem((1, 2, 5, 300), (2, 1, 3, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 2),
    ),
    "2d rows, one output far away from the next": (
        {"stride": (2**62, 1)},
        Problem((4, 1, 4, 60), (1, 1, 3, 3), (2**62, 1), ((0, 0), (0, 0)), (1, 1)),
    ),
    "3d rows": (
        {"groups": 2, "stride": (2, 1, 1), "padding": 1},
        Problem((2, 2, 5, 6, 7), (2, 1, 3, 3, 3), (2, 1, 1), ((1, 1),) * 3, (1,) * 3, 2),
    ),
    "2d padding over kernel": (
        {"groups": 2, "padding": (4, 3)},
        Problem((1, 2, 3, 2), (2, 1, 2, 3), (1, 1), ((4, 4), (3, 3)), (1, 1), 2),
    ),
    "2d padding alone": (
        {"padding": ((3, 0), (1, 1))},
        Problem((1, 1, 0, 3), (2, 1, 2, 2), (1, 1), ((3, 0), (1, 1)), (1, 1)),
    ),
    "2d one tap": ({"groups": 4}, Problem((2, 4, 3, 5), (8, 1, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 4)),
    "2d whole": ({"groups": 2}, Problem((3, 2, 4, 5), (2, 1, 4, 5), (1, 1), ((0, 0), (0, 0)), (1, 1), 2)),
    "3d": (
        {"groups": 2, "padding": ((1, 0), (1, 1), (0, 2))},
        Problem((2, 2, 3, 5, 4), (2, 1, 2, 3, 3), (1,) * 3, ((1, 0), (1, 1), (0, 2)), (1,) * 3, 2),
    ),
    "3d strides": (
        {"groups": 2, "stride": (2, 1, 2), "padding": 1},
        Problem((1, 2, 4, 3, 5), (4, 1, 3, 2, 3), (2, 1, 2), ((1, 1),) * 3, (1,) * 3, 2),
    ),
    "no samples": (
        {"groups": 2, "padding": 1},
        Problem((0, 2, 4, 5), (2, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2),
    ),
}
every_case = pytest.mark.parametrize(("options", "problem"), CASES.values(), ids=CASES)


def run(target, operands, algorithm="depthwise", **options):
    """Return the results of forward and backward on the host; check their library, shape and dtype."""
    arrays = [target.array(a) for a in operands]
    out, cache = portconv.conv_forward(*arrays[:3], algorithm=algorithm, **options)
    results = dict(zip(RESULTS, (out, *portconv.conv_backward(arrays[3], cache)), strict=True))
    for (name, result), like in zip(results.items(), (arrays[3], *arrays[:3]), strict=True):
        assert target.owns(result), name
        assert tuple(result.shape) == tuple(like.shape), name
        assert result.dtype == like.dtype, name
    return {name: target.numpy(result) for name, result in results.items()}


def whole(problem, dtype="float32", largest=15):
    """Return operands of whole numbers."""
    # Products of integers below 16, fewer than 2**13 of them, sum below 2**24: exact in float32 in any order.
    rng = np.random.default_rng(1)
    return [rng.integers(-largest, largest, a.shape, endpoint=True).astype(dtype) for a in problem.operands("float32")]


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_results_against_loops(target, options, problem, dtype):
    operands = problem.operands(dtype)
    results = run(target, operands, **options)
    wide = [a.astype("float64") for a in operands]
    # Its sums are plain ones; some of their terms are zeros.
    truths, bounds = problem.all(*wide), problem.bounds(*wide, dtype)
    for name, truth in truths.items():
        assert np.all(np.abs(results[name].astype("float64") - truth) <= bounds[name]), name


def test_one_small_case_on_any_library(target):
    options, problem = CASES["1d stride"]
    operands = whole(problem)
    results, truths = run(target, operands, **options), problem.all(*[a.astype("int64") for a in operands])
    for name, truth in truths.items():
        assert np.array_equal(results[name], truth), name


@every_case
def test_whole_numbers_are_those_of_direct_to_the_bit(target, options, problem):
    operands = whole(problem)
    results, truths = run(target, operands, **options), problem.all(*[a.astype("int64") for a in operands])
    for name, truth in truths.items():
        assert np.array_equal(results[name], truth), name


@every_case
@pytest.mark.parametrize("dtype", ["complex128", "int16", "uint64"])
def test_other_dtypes_are_exact_in_whole_numbers(options, problem, dtype):
    operands = whole(problem, "int64", largest=9)
    if dtype == "complex128":
        parts = [operands, [np.roll(a, 1) for a in operands]]
        operands = [one + 1j * other for one, other in zip(*parts, strict=True)]
    elif dtype == "uint64":
        operands = [a + 2**63 for a in (o.astype(dtype) for o in operands)]
    operands = [a.astype(dtype) for a in operands]
    results = []
    for algorithm in ("depthwise", "direct"):
        out, cache = portconv.conv_forward(*operands[:3], algorithm=algorithm, **options)
        results.append((out, *portconv.conv_backward(operands[3], cache)))
    for one, other in zip(*results, strict=True):
        assert one.dtype == dtype
        assert np.array_equal(one, other)


BUDGETS = {
    "large blocks": Budget(1 << 20, 4096, 1, 1 << 24),
    "threads": Budget(1 << 20, 4096, 16, 1 << 24),
    "small blocks": Budget(256, 4096, 3, 1 << 24),
    "smallest": Budget(1, 1, 1, 1),
}


@every_case
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_any_blocks_give_the_same_whole_numbers(options, problem, budget):
    x, w, b, dout = whole(problem)
    convolution = geometry(problem.x, problem.w, problem.stride, problem.pads, problem.dilation, problem.groups)
    wide = [a.astype("int64") for a in (x, w, b, dout)]
    products = {
        "forward": ((x, w, b), problem.forward(*wide[:3])),
        "input_grad": ((dout, w), problem.input_grad(wide[3], wide[1])),
        "weight_grad": ((dout, x), problem.weight_grad(wide[3], wide[0])),
    }
    for kind, (operands, expected) in products.items():
        assert np.array_equal(DEPTHWISE.compute(kind, convolution, NUMPY, budget, *operands), expected)


# Shapes of x and w, stride, padding and dilation; there are as many groups as channels.
SHAPES = {
    "mobile": ((6, 24, 56, 56), (24, 1, 3, 3), 2, 1, 1),
    "large kernels": ((3, 16, 56, 57), (16, 1, 31, 31), 1, 15, 1),
    "two filters": ((3, 7, 30, 31), (14, 1, 5, 3), 1, 2, 2),
    "tall": ((1, 2, 700, 9), (2, 1, 5, 3), 1, 0, 1),
    "signal": ((2, 2, 1500), (2, 1, 65), 1, 32, 1),
    "volume": ((1, 4, 17, 40, 41), (8, 1, 3, 3, 3), (2, 1, 2), 1, 1),
    "no samples": ((0, 3, 8, 8), (3, 1, 3, 3), 1, 1, 1),
}


def depthwise_geometry(x_shape, w_shape, stride, padding, dilation):
    """Return the geometry of a convolution with one channel in each group."""
    return geometry(x_shape, w_shape, stride, padding, dilation, x_shape[1])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_blocks_cover_each_output_once_and_stay_bounded(shape, kind, budget):
    convolution = depthwise_geometry(*shape)
    if kind == "input_grad" and convolution.dense and convolution.group_out == 1:
        convolution, kind = convolution.mirrored, "forward"
    plan, elements = DEPTHWISE.plan(kind, convolution, budget)
    planned = plan.geometry
    times_covered = np.zeros((planned.batch, planned.groups), int)
    across = math.prod(plan.across)
    for samples, group in itertools.product(range(len(plan.samples)), range(len(plan.groups))):
        stack = [task.block for task in stack_of(plan, (samples,), group)]
        samples, groups = stack[0].samples, stack[0].groups
        assert all((block.samples, block.groups) == (samples, groups) for block in stack)
        times_covered[slice(*samples), slice(*groups)] += 1
        rows_covered = np.zeros(planned.out[0], int)
        for block in stack:
            assert block.box[1:] == tuple((0, n) for n in planned.out[1:])
            rows_covered[slice(*block.box[0])] += 1
            count = (samples[1] - samples[0]) * (groups[1] - groups[0])
            # The smallest block is one row of one plane, with the rows that its taps read.
            least = (1 + plan.last_shift[0]) * across
            places = count * (block.rows + plan.last_shift[0]) * across
            assert places * plan.phases.taps <= max(budget.block_elements, least * plan.phases.taps)
        assert np.all(rows_covered == 1)
    assert np.all(times_covered == 1)
    assert elements <= budget.workspace_elements or budget.workspace_elements == 1
    assert plan.sums <= max(1, len(plan.samples))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rows", [False, True])
def test_taps_read_what_is_as_far_from_an_output_as_they_are(shape, rows):
    convolution = depthwise_geometry(*shape)
    plan = dataclasses.replace(DEPTHWISE.plan("forward", convolution, BUDGETS["large blocks"])[0], rows=rows)
    for n in (1, 3):
        # Places of the planes are (P1, n, P2, ..., Pd), flattened, for each phase separately. If rows are lines, the
        # taps of the first dimension read other lines, and are not shifted.
        sizes = (n, *plan.across)
        lead = range(1 if rows else convolution.kernel[0])
        taps = list(itertools.product(lead, *(range(k) for k in convolution.kernel[1:])))
        for tap, (phase, shift) in zip(taps, plan.layout(n), strict=True):
            reads = [t * d for t, d in zip(tap, convolution.dilation, strict=True)]
            phases = [r % s for r, s in zip(reads, convolution.stride, strict=True)]
            steps = [r // s for r, s in zip(reads, convolution.stride, strict=True)]
            assert phase == flat((0 if rows else phases[0], *phases[1:]), plan.phases.kernel)
            assert shift == flat((steps[0], 0, *steps[1:]), (1, *sizes))


def test_rows_are_lines_where_that_saves_copies():
    # A row of 16 samples has 16 * 58 places, and a row of one sample of 7 cells has 9. Neighbouring taps read
    # neighbouring rows; dilated taps do not.
    shapes = {
        ((16, 8, 56, 56), (8, 1, 3, 3), 1): True,
        ((16, 8, 56, 56), (8, 1, 3, 3), 2): False,
        ((1, 8, 7, 7), (8, 1, 3, 3), 1): False,
        ((1, 8, 7, 7), (8, 1, 7, 7), 1): False,
        ((16, 8, 56, 56), (8, 1, 1, 3), 1): False,
        ((16, 8, 900), (8, 1, 3), 1): False,
    }
    for (x_shape, w_shape, dilation), rows in shapes.items():
        plan, _ = DEPTHWISE.plan(
            "forward", depthwise_geometry(x_shape, w_shape, 1, 1, dilation), BUDGETS["large blocks"]
        )
        assert plan.rows == rows, x_shape


def flat(index, sizes):
    """Return the index in a flattened array of these sizes."""
    flat_index = 0
    for at, size in zip(index, sizes, strict=True):
        flat_index = flat_index * size + at
    return flat_index


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["1d stride", "2d", "2d stride, two filters", "3d"])
def test_what_is_not_finite_stays_where_windows_touch_it(target, bad, name):
    options, problem = CASES[name]
    for place in (0, 1, 3):
        operands = whole(problem)
        operands[place].reshape(-1)[[3, -1]] = bad
        with np.errstate(invalid="ignore"):
            planes, columns = (run(target, operands, algorithm, **options) for algorithm in ("depthwise", "gemm"))
        touched = 0
        for result in RESULTS:
            touched += np.sum(~np.isfinite(columns[result]))
            assert np.array_equal(planes[result], columns[result], equal_nan=True), (place, result)
        assert touched


def test_numpy_warns_of_no_places_that_are_skipped():
    # Between rows and between samples are places whose sums are no outputs. Only there, 3e38 + 3e38 overflows.
    x, w = np.zeros((2, 1, 4, 4), "float32"), np.ones((1, 1, 1, 2), "float32")
    x[..., 0], x[..., 3] = 3e38, 3e38
    with np.errstate(all="raise"):
        out, cache = portconv.conv_forward(x, w, algorithm="depthwise")
        assert np.array_equal(out, np.broadcast_to(np.array([3e38, 0, 3e38], "float32"), out.shape))
        dout = np.zeros_like(out)
        dout[..., 1] = 1.0
        dx, dw, _ = portconv.conv_backward(dout, cache)
    assert np.array_equal(dx, np.broadcast_to(np.array([0, 1, 1, 0], "float32"), dx.shape))
    assert np.all(dw == 0)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
def test_channels_last_and_padding_modes(target, mode, stride):
    shape = portconv.conv_output_shape((2, 3, 5, 6), (6, 1, 4, 3), stride=stride, padding=((2, 3), (1, 2)), groups=3)
    rng = np.random.default_rng(2)
    x, w, b, dout = (rng.integers(-9, 10, s).astype("float32") for s in ((2, 3, 5, 6), (6, 1, 4, 3), (6,), shape))
    options = {"stride": stride, "padding": ((2, 3), (1, 2)), "groups": 3, "padding_mode": mode}
    out, cache = portconv.conv_forward(x, w, b, algorithm="direct", **options)
    expected = dict(zip(RESULTS, (out, *portconv.conv_backward(dout, cache)), strict=True))
    for last in (False, True):
        arrays = [np.moveaxis(a, 1, -1).copy() if last else a for a in (x, dout)]
        data_format = "channels_last" if last else "channels_first"
        results = run(target, (arrays[0], w, b, arrays[1]), data_format=data_format, **options)
        for name, truth in expected.items():
            moved = np.moveaxis(results[name], -1, 1) if last and name in ("out", "dx") else results[name]
            assert np.array_equal(moved, truth), name


def test_transposed_convolution(target):
    rng = np.random.default_rng(4)
    x, w, b = (rng.integers(-9, 10, s).astype("float32") for s in ((2, 6, 5, 4), (6, 1, 3, 3), (3,)))
    options = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 3}
    results = []
    for algorithm in ("depthwise", "direct"):
        arrays = [target.array(a) for a in (x, w, b)]
        out, cache = portconv.conv_transpose_forward(*arrays, algorithm=algorithm, **options)
        grads = portconv.conv_transpose_backward(out, cache)
        results.append([target.numpy(a) for a in (out, *grads)])
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one, other)


def test_numpy_gives_the_same_bits_on_any_number_of_threads_and_each_time():
    rng = np.random.default_rng(3)
    for stride, filters in ((1, 16), (2, 32)):
        x, w, b = (rng.standard_normal(s, dtype="float32") for s in ((6, 16, 60, 61), (filters, 1, 5, 5), (filters,)))
        bits = []
        for threads in (1, 2, 3, 2):
            with threadpool_limits(threads, user_api="blas"):
                options = {"groups": 16, "padding": 2, "stride": stride}
                out, cache = portconv.conv_forward(x, w, b, algorithm="depthwise", **options)
                bits.append([a.tobytes() for a in (out, *portconv.conv_backward(out, cache))])
        assert bits[0] == bits[1] == bits[2] == bits[3]


def test_several_channels_a_group_are_an_error():
    expected = r"algorithm: got 'depthwise' .* expected 'auto', or one channel a group"
    for channels, groups in ((2, 1), (4, 2)):
        with pytest.raises(portconv.ConvValueError, match=expected):
            portconv.conv(np.ones((1, channels, 8)), np.ones((2, 2, 3)), groups=groups, algorithm="depthwise")


def test_a_gradient_of_no_cells_has_none():
    dx = portconv.conv_input_grad(np.ones((1, 1, 2)), np.ones((1, 1, 1)), (1, 1, 0), padding=1, algorithm="depthwise")
    assert dx.shape == (1, 1, 0)
