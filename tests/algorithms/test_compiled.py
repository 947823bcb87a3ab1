"""Test that kernels generated for this CPU compute the convolution, and what happens where they cannot."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.kernels import needs_kernels
from support.limited import within
from support.oracle import Problem

import portconv
from portconv import backends
from portconv.algorithms import kernel_products
from portconv.algorithms.choice import known
from portconv.engine.gradients import plans_of
from portconv.kernels import call, choice, state
from portconv.spec.remembered import forget
from portconv.testing import conv_grads_tolerance
from portconv.verification import Case, lacking

COMPILED = known()["compiled"]

# One of each family and of each way to read cells; in some, a dimension of an array is 1, or all of it is padding.
PROBLEMS = {
    "1d": Problem((2, 3, 40), (5, 3, 4), (1,), ((2, 0),), (2,)),
    "1d of stride 2": Problem((2, 3, 41), (5, 3, 3), (2,), ((0, 3),), (1,)),
    "1d of stride 3": Problem((1, 1, 60), (1, 1, 7), (3,), ((9, 8),), (4,)),
    "2d": Problem((2, 4, 9, 8), (6, 2, 3, 2), (2, 1), ((1, 2), (0, 3)), (1, 2), 2),
    "more than a run of terms": Problem((1, 67, 5, 6), (9, 67, 3, 2), (1, 1), ((1, 0), (0, 1)), (1, 1)),
    "many filters": Problem((1, 2, 3, 5), (133, 2, 2, 1), (1, 1), ((0, 1), (1, 0)), (1, 1)),
    "pointwise": Problem((2, 33, 7, 5), (17, 33, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    "depthwise": Problem((2, 5, 9, 19), (5, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 5),
    "depthwise of stride 2": Problem((1, 3, 11, 18), (6, 1, 5, 5), (2, 2), ((2, 3), (4, 0)), (1, 1), 3),
    "depthwise, dilated": Problem((1, 3, 16, 18), (3, 1, 7, 7), (1, 1), ((3, 9), (8, 2)), (2, 3), 3),
    "tiles": Problem((2, 20, 11, 12), (40, 20, 3, 3), (1, 1), ((1, 0), (2, 1)), (1, 1)),
    "tiles of a volume": Problem((1, 32, 5, 14, 15), (48, 32, 2, 3, 3), (2, 1, 1), ((1, 0), (1, 1), (0, 2)), (2, 1, 1)),
    "tiles of parts": Problem((2, 32, 13, 12), (64, 32, 5, 5), (1, 1), ((2, 1), (3, 2)), (1, 1)),
    "tiles of stride 2": Problem((2, 64, 27, 26), (128, 64, 3, 3), (2, 2), ((1, 0), (1, 2)), (1, 1)),
    "tiles of parts at stride 2": Problem((1, 24, 33, 38), (64, 24, 6, 6), (2, 2), ((2, 3), (3, 1)), (1, 1)),
    "tiles of many parts": Problem((1, 16, 23, 24), (40, 16, 9, 7), (1, 1), ((4, 3), (0, 6)), (1, 1)),
    "tiles of parts of a volume": Problem(
        (1, 16, 4, 15, 16), (64, 16, 2, 3, 5), (1, 1, 1), ((1, 0), (1, 1), (0, 4)), (1, 1, 1)
    ),
    "tiles in groups": Problem((1, 66, 15, 14), (70, 33, 3, 3), (1, 1), ((1, 2), (0, 1)), (1, 1), 2),
    "4d": Problem((1, 2, 2, 3, 3, 2), (2, 2, 2, 2, 1, 2), (1, 2, 1, 1), ((0, 0), (1, 1), (0, 2), (1, 1)), (1,) * 4),
    "wide padding": Problem((1, 16, 5, 9), (8, 8, 3, 3), (1, 1), ((4, 3), (0, 5)), (1, 1), 2),
    "taps that read no cell": Problem(
        (1, 3, 1, 1, 1), (9, 1, 3, 3, 3), (3, 1, 1), ((3, 3), (1, 3), (4, 1)), (1, 2, 2), 3
    ),
    "depthwise volume": Problem((1, 3, 6, 8, 9), (3, 1, 3, 3, 3), (1, 1, 1), ((1, 1),) * 3, (1, 1, 1), 3),
    "mostly padding": Problem((2, 6, 19, 28), (24, 6, 3, 3), (1, 1), ((12, 12), (12, 11)), (12, 12)),
    "padding alone": Problem((1, 1, 1), (1, 1, 2), (1,), ((3, 3),), (3,)),
    "far apart": Problem((1, 2, 30), (3, 2, 2), (1,), ((0, 1),), (29,)),
}


def options_of(problem):
    return {
        "stride": problem.stride,
        "padding": problem.pads,
        "dilation": problem.dilation,
        "groups": problem.groups,
        "algorithm": "compiled",
    }


def drawn(number):
    """Draw a problem of one to four dimensions, of at most so many products that loops compute it in a moment."""
    rng = np.random.default_rng(number)
    while True:
        dims, groups = int(rng.integers(1, 5)), int(rng.choice([1, 1, 2, 3]))
        kernel = rng.choice([1, 2, 3, 3, 5, 7] if dims < 3 else [1, 2, 3, 3], dims)
        stride, dilation = (rng.choice(steps, dims) for steps in ([1, 1, 2, 3], [1, 1, 2, 4]))
        if rng.random() < 0.4:
            stride = dilation = np.ones(dims, int)
        pads = rng.integers(0, 5, (dims, 2)).tolist()
        size = rng.integers(1, (60, 20, 9, 5)[dims - 1], dims)
        channels, filters = rng.choice([1, 1, 2, 3, 17, 40]), rng.choice([1, 2, 3, 9, 33])
        x, w = (rng.choice([1, 1, 2, 3]), groups * channels, *size), (groups * filters, channels, *kernel)
        shapes = [tuple(map(int, each)) for each in (x, w, stride, dilation)]
        problem = Problem(shapes[0], shapes[1], shapes[2], tuple(map(tuple, pads)), shapes[3], groups)
        if min(problem.out[2:]) >= 1 and math.prod(problem.out[2:]) * math.prod(problem.w[2:]) < 4000:
            return problem


@pytest.fixture
def addressed(target):
    """A library whose arrays lie in the memory of this machine."""
    if not target.backend.has_addresses or target.backend.device_kind(target.array([0.0])):
        pytest.skip(f"arrays of {target.backend.name} have no address here")
    return target


def assert_within(target, problem, operands, data_format="channels_first"):
    """Assert that an output and the gradients are within the bound of each element."""
    x, w, b, dout = operands
    wide = [array.astype("float64") for array in operands]
    bounds, options = problem.bounds(*wide, x.dtype.name, "compiled"), options_of(problem)
    options["data_format"], last = data_format, data_format == "channels_last"
    laid = [np.ascontiguousarray(np.moveaxis(array, 1, -1)) if last else array for array in (x, dout)]
    own_x, own_w, own_b, own_dout = map(target.array, (laid[0], w, b, laid[1]))
    for _ in range(2):  # the second time all is looked up
        out = portconv.conv(own_x, own_w, own_b, **options)
        dx = portconv.conv_input_grad(own_dout, own_w, own_x.shape, **options)
        dw = portconv.conv_weight_grad(own_dout, own_x, w.shape, **options)
        results = {"out": out, "dx": dx, "dw": dw}
        assert all(map(target.owns, results.values()))
        expected = problem.all(*wide)
        for name, result in results.items():
            found = target.numpy(result)
            assert found.dtype == x.dtype
            found = np.moveaxis(found, -1, 1) if last and name != "dw" else found
            assert np.all(np.abs(found - expected[name]) <= bounds[name]), name


@needs_kernels
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_each_element_is_within_its_bound(addressed, problem):
    assert_within(addressed, problem, problem.operands("float32"))


@needs_kernels
@pytest.mark.parametrize("start", range(0, 120, 20))
def test_each_element_of_what_is_drawn_is_within_its_bound(addressed, start):
    for number in range(start, start + 20):
        problem = drawn(number)
        assert_within(addressed, problem, problem.operands("float32", number))


@needs_kernels
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_complex_numbers_are_multiplied_in_parts(addressed, problem, dtype):
    part = "float32" if dtype == "complex64" else "float64"
    parts = zip(problem.operands(part, 1), problem.operands(part, 2), strict=True)
    x, w, b, dout = (real + 1j * imag for real, imag in parts)
    # A term of a part is two products. Magnitudes of both parts, added up, bound those of their products.
    sizes = [np.abs(array.real.astype("float64")) + np.abs(array.imag.astype("float64")) for array in (x, w, b, dout)]
    bounds = problem.bounds(*sizes, part, "compiled")
    wide = [array.astype("complex128") for array in (x, w, b, dout)]
    conjugated = [wide[0].conj(), wide[1].conj(), *wide[2:]]
    expected = problem.all(*conjugated) | {"out": problem.forward(*wide[:3])}
    for data_format in ("channels_first", "channels_last"):
        last, options = data_format == "channels_last", {**options_of(problem), "data_format": data_format}
        laid = [np.ascontiguousarray(np.moveaxis(array, 1, -1)) if last else array for array in (x, dout)]
        out, cache = portconv.conv_forward(*map(addressed.array, (laid[0], w, b)), **options)
        grads = portconv.conv_backward(addressed.array(laid[1]), cache)
        for name, result in {"out": out, **grads._asdict()}.items():
            found = addressed.numpy(result)
            assert found.dtype == dtype
            found = np.moveaxis(found, -1, 1) if last and name in ("out", "dx") else found
            for each in (np.real, np.imag):
                assert np.all(np.abs(each(found) - each(expected[name])) <= 2 * bounds[name]), name


@needs_kernels
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_integers_wrap(addressed, problem):
    rng = np.random.default_rng(0)
    for dtype in ("int8", "int16", "int32", "int64"):
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        shapes = (problem.x, problem.w, problem.w[:1], problem.out)
        arrays = [rng.integers(least, most, shape, dtype=dtype, endpoint=True) for shape in shapes]
        expected = problem.all(*(array.astype("int64") for array in arrays))
        x, w, b, dout = map(addressed.array, arrays)
        for _ in range(2):  # the second time all is looked up
            out, cache = portconv.conv_forward(x, w, b, **options_of(problem))
            for name, result in {"out": out, **portconv.conv_backward(dout, cache)._asdict()}.items():
                assert np.array_equal(addressed.numpy(result), expected[name].astype(dtype)), name


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_channels_may_come_last_and_numbers_be_of_float64(addressed, problem, dtype):
    for data_format in ("channels_last", "channels_first")[: 1 + (dtype == "float64")]:
        assert_within(addressed, problem, problem.operands(dtype), data_format)


@needs_kernels
def test_many_samples_whose_channels_come_last_are_turned_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(kernel_products, "TURNED_BYTES", 40_000)
    problem = Problem((7, 5, 20, 21), (6, 5, 3, 3), (1, 2), ((1, 1), (0, 1)), (1, 1))
    forget()
    x, w, b, _ = problem.operands("float32")
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    first = portconv.conv(x, w, b, **options_of(problem))
    for _ in range(2):
        out = portconv.conv(last, w, b, data_format="channels_last", **options_of(problem))
        assert np.max(np.abs(np.moveaxis(out, -1, 1) - first)) < 1e-4
    forget()


@needs_kernels
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_whole_numbers_are_exact(addressed, problem):
    # |entries| <= 4: fewer than 2**12 products of at most 2**4; tiles count each 25 times, in quarters: below 2**23.
    assert problem.w[1] * math.prod(problem.w[2:]) < 2**12
    x, w, b, _ = (np.clip(np.rint(2 * array), -4, 4) for array in problem.operands("float32"))
    out = portconv.conv(*map(addressed.array, (x, w, b)), **options_of(problem))
    assert np.array_equal(addressed.numpy(out), problem.forward(x, w, b))


@needs_kernels
@pytest.mark.parametrize("name", PROBLEMS)
def test_tiles_are_transformed_where_they_pay(name):
    problem = PROBLEMS[name]
    x, w, _, _ = problem.operands("float32")
    block = portconv.explain(x, w, **options_of(problem)).block
    assert "tiles" in block or not name.startswith("tiles")
    assert "tiles" not in block or problem.in_planes


def bits(problem, operands, target=None):
    """The bits of an output and of the gradients, on this number of threads."""
    x, w, b, dout = operands
    options = options_of(problem)
    results = (
        portconv.conv(x, w, b, **options),
        portconv.conv_input_grad(dout, w, x.shape, **options),
        portconv.conv_weight_grad(dout, x, w.shape, **options),
    )
    return [result.tobytes() for result in results]


# Long enough for threads to share it, and not a multiple of anything.
LONG = {
    "panels": Problem((2, 31, 37, 41), (67, 31, 3, 5), (1, 1), ((1, 1), (2, 2)), (1, 1)),
    "tiles": Problem((1, 65, 39, 43), (71, 65, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "depthwise": Problem((2, 71, 61, 63), (71, 1, 5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 71),
    "depthwise, strided": Problem((3, 71, 61, 63), (71, 1, 5, 5), (2, 2), ((2, 2), (2, 2)), (1, 1), 71),
    "strided": Problem((3, 31, 37, 61), (67, 31, 3, 5), (2, 3), ((1, 1), (2, 2)), (1, 1)),
    "many kernels": Problem((2, 40, 33, 34), (40, 1, 9, 9), (1, 1), ((4, 4), (4, 4)), (1, 1), 40),
    "one filter": Problem((1, 96, 9001), (1, 96, 9), (1,), ((4, 4),), (1,)),
}


@needs_kernels
@pytest.mark.parametrize("problem", LONG.values(), ids=LONG)
def test_bits_do_not_depend_on_threads_or_on_calls_before(problem):
    operands = problem.operands("float32")
    forget()
    first = bits(problem, operands)
    for threads in (1, 2, 3, 1):
        with portconv.num_threads(threads):
            assert bits(problem, operands) == first
    assert bits(problem, operands) == first
    order = [np.asfortranarray(array) for array in operands[:2]]
    assert bits(problem, (*order, *operands[2:])) == first
    torch = backends.find("torch")
    if torch.fault is None:
        out = portconv.conv(*map(torch.asarray, operands[:3]), **options_of(problem))
        assert torch.to_numpy(out).tobytes() == first[0]


LAST = {
    "depthwise": Problem((3, 70, 40, 41), (70, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 70),
    "one tap": Problem((3, 70, 40, 41), (90, 70, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    "dense": Problem((3, 20, 40, 41), (30, 20, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "far taps": Problem((3, 20, 40, 41), (30, 20, 3, 3), (1, 1), ((15, 15), (15, 15)), (15, 15)),
}


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "complex64", "int32"])
@pytest.mark.parametrize("problem", LAST.values(), ids=LAST)
def test_bits_do_not_depend_on_threads_where_channels_come_last(problem, dtype):
    x, w, _, dout = ((3 * array).astype(dtype) for array in problem.operands("float32"))
    x, dout = (np.ascontiguousarray(np.moveaxis(array, 1, -1)) for array in (x, dout))
    results, options = set(), {**options_of(problem), "data_format": "channels_last"}
    for threads in (1, 2, 3, 1):
        with portconv.num_threads(threads):
            out, cache = portconv.conv_forward(x, w, **options)
            grads = portconv.conv_backward(dout, cache)
            results.add((out.tobytes(), grads.dx.tobytes(), grads.dw.tobytes()))
    assert len(results) == 1


@needs_kernels
@pytest.mark.parametrize("limit", [1 << 12, 1 << 16, 1 << 18, 1 << 20])
@pytest.mark.parametrize("problem", LONG.values(), ids=LONG)
def test_results_under_a_limit_are_within_their_bounds_too(problem, limit):
    x, w, b, _ = problem.operands("float32")
    options = options_of(problem)
    exact = portconv.conv(*(array.astype("float64") for array in (x, w, b)), **{**options, "algorithm": "gemm"})
    # float64's own error is far below the bounds in float32, and those of tiles are no less than those of plain sums.
    bound = portconv.error_bound(x, w, b, **options)

    def compute():
        assert portconv.explain(x, w, **options).workspace_bytes <= portconv.limits.workspace()
        return portconv.conv(x, w, b, **options)

    assert np.all(np.abs(within(limit, compute) - exact) <= bound)


BAD = (np.inf, -np.inf, np.nan)


@needs_kernels
@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_what_is_not_finite_stays_in_its_windows(addressed, problem, bad):
    x, w, b, dout = problem.operands("float32")
    rng = np.random.default_rng(7)
    for which in range(4):
        operands = [array.copy() for array in (x, w, b, dout)]
        # The cells at the edges are those that meet zeros of the padding, and those that windows may leave out.
        for place in (0, operands[which].size - 1, int(rng.integers(operands[which].size))):
            changed = [array.copy() for array in operands]
            changed[which].flat[place] = bad
            results = {}
            for algorithm in ("compiled", "direct"):
                options = {**options_of(problem), "algorithm": algorithm}
                arrays = list(map(addressed.array, changed))
                with np.errstate(invalid="ignore"):
                    found = [portconv.conv(*arrays[:3], **options)]
                    found.append(portconv.conv_input_grad(arrays[3], arrays[1], x.shape, **options))
                    found.append(portconv.conv_weight_grad(arrays[3], arrays[0], w.shape, **options))
                results[algorithm] = list(map(addressed.numpy, found))
            for mine, theirs in zip(results["compiled"], results["direct"], strict=True):
                finite = np.isfinite(theirs)
                assert np.array_equal(np.isfinite(mine), finite)
                assert np.array_equal(mine[~finite], theirs[~finite], equal_nan=True)


@needs_kernels
@pytest.mark.parametrize("problem", [PROBLEMS["tiles"], LONG["tiles"]], ids=["tiles", "tiles on threads"])
def test_what_overflows_in_tiles_alone_is_computed_again(addressed, problem):
    # Cells of 3e38 add up beyond float32's 3.4e38 in B^T x; each plain sum holds one cell.
    x, w = np.full(problem.x, 3e38, "float32"), np.zeros(problem.w, "float32")
    w[:, 0, 1, 1] = 1.0
    exact = problem.forward(x.astype("float64"), w.astype("float64"))
    with np.errstate(all="raise"):
        for _ in range(2):
            out = portconv.conv(addressed.array(x), addressed.array(w), **options_of(problem))
            assert np.array_equal(addressed.numpy(out), exact)


def forms(array):
    """The same numbers as arrays that lie otherwise in memory, all read-only."""
    raw = np.zeros(array.nbytes + 1, "uint8")
    misaligned = raw[1:].view("float32").reshape(array.shape)
    misaligned[...] = array
    twice = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), "float32")
    twice[..., ::2] = array
    found = {
        "plain": array.copy(),
        "reversed": np.asfortranarray(array),
        "strided": twice[..., ::2],
        "backwards": np.flip(np.flip(array).copy()),
        "swapped": array.astype(array.dtype.newbyteorder()),
        "misaligned": misaligned,
    }
    for each in found.values():
        each.flags.writeable = False
    return found


@needs_kernels
@pytest.mark.parametrize("name", ["2d", "tiles", "depthwise", "1d of stride 3"])
def test_arrays_may_lie_in_any_way(name):
    problem = PROBLEMS[name]
    x, w, b, _ = (forms(array) for array in problem.operands("float32"))
    for algorithm in ("compiled", "auto"):
        options = {**options_of(problem), "algorithm": algorithm}
        expected = portconv.conv(x["plain"], w["plain"], b["plain"], **options)
        for form in x:
            for operands in ((x[form], w["plain"], b["plain"]), (x["plain"], w[form], b[form])):
                for _ in range(2):
                    out = portconv.conv(*operands, **options)
                    assert np.array_equal(out, expected)
                    assert out.dtype == np.dtype("float32")
                    assert out.dtype.isnative
                    assert out.flags.c_contiguous
                    assert out.flags.writeable


@needs_kernels
def test_an_array_of_one_cell_may_stand_for_many():
    x, w = np.broadcast_to(np.float32(2), (2, 3, 9, 8)), np.broadcast_to(np.float32(3), (4, 3, 2, 2))
    for _ in range(2):
        assert np.all(portconv.conv(x, w, algorithm="compiled") == 2 * 3 * 3 * 4)


@needs_kernels
def test_no_sample_and_no_batch_and_other_padding(addressed):
    x, w = np.ones((0, 2, 5, 6), "float32"), np.ones((3, 2, 3, 3), "float32")
    for _ in range(2):
        assert portconv.conv(addressed.array(x), addressed.array(w), algorithm="compiled").shape == (0, 3, 3, 4)
    one = np.arange(60, dtype="float32").reshape(2, 5, 6)
    filters = np.arange(54, dtype="float32").reshape(3, 2, 3, 3)
    for mode in ("zeros", "reflect", "replicate", "circular"):
        options = {"padding": 3, "padding_mode": mode}
        found = [
            portconv.conv(addressed.array(one), addressed.array(filters), algorithm=algorithm, **options)
            for algorithm in ("compiled", "direct")
        ]
        # Whole numbers below 60 and 54: 18 products, of which tiles count 25 times in quarters, are below 2**23.
        assert np.array_equal(*map(addressed.numpy, found)), mode


@needs_kernels
def test_halves_are_summed_in_float32(addressed):
    x, w = np.full((1, 64, 8, 8), 0.1, "float16"), np.full((8, 64, 3, 3), 0.1, "float16")
    out = addressed.numpy(portconv.conv(addressed.array(x), addressed.array(w), algorithm="compiled"))
    exact = 64 * 9 * float(np.float16(0.1)) ** 2
    # A sum in float32, of tiles at most 64 + 11 roundings of 25 times the magnitudes, is rounded to float16 once.
    assert out.dtype == np.float16
    assert np.all(np.abs(out.astype("float64") - exact) <= exact * (25 * 75 * 2.0**-24 + 2.0**-11) * (1 + 2.0**-10))


@needs_kernels
@pytest.mark.parametrize("name", PROBLEMS)
def test_bounds_are_those_of_plain_sums_or_of_tiles(addressed, name):
    problem, algorithms = PROBLEMS[name], ("compiled", "gemm")
    x, w, b, dout = problem.operands("float32")
    arrays = list(map(addressed.array, (x, w, b)))
    bounds = {
        algorithm: addressed.numpy(portconv.error_bound(*arrays, **{**options_of(problem), "algorithm": algorithm}))
        for algorithm in algorithms
    }
    tolerances = {
        algorithm: conv_grads_tolerance(
            addressed.array(dout), *arrays[:2], **{**options_of(problem), "algorithm": algorithm}
        )
        for algorithm in algorithms
    }
    own = problem.bounds(*(each.astype("float64") for each in (x, w, b, dout)), "float32", "compiled")
    # The bounds of loops have a part for their own rounding, in float64.
    assert np.all(own["out"] <= bounds["compiled"] * (1 + 2.0**-20) + 2.0**-126)
    if not problem.in_planes:
        assert np.array_equal(bounds["compiled"], bounds["gemm"])
    if problem.dense:
        assert np.all(own["dx"] <= tolerances["compiled"].dx * (1 + 2.0**-20))
        assert problem.in_planes or np.array_equal(tolerances["compiled"].dx, tolerances["gemm"].dx)
    # The gradient of the filters is that of "auto".
    auto = conv_grads_tolerance(addressed.array(dout), *arrays[:2], **{**options_of(problem), "algorithm": "auto"})
    assert np.array_equal(tolerances["compiled"].dw, auto.dw)


@needs_kernels
def test_the_bound_of_a_sum_does_not_hold_and_that_of_tiles_does():
    # A tap of 0 keeps the large cell out of the sum, but not out of B^T x, where adding it to the 3 rounds the 3 away.
    problem = PROBLEMS["tiles"]
    x, w = np.zeros(problem.x, "float32"), np.zeros(problem.w, "float32")
    x[0, 0, 4, 5:8], w[:, 0, 1, 2] = (2.0**30, 3.0, 1.0), 1.0
    out = portconv.conv(x, w, **options_of(problem))
    wide = [a.astype("float64") for a in (x, w, np.zeros(problem.w[0]), np.ones(problem.out))]
    error = np.abs(out - problem.forward(*wide[:2]))
    assert np.any(error > problem.bounds(*wide, "float32")["out"])
    assert np.all(error <= problem.bounds(*wide, "float32", "compiled")["out"])
    assert np.all(error <= portconv.error_bound(x, w, **options_of(problem)))


def refusal(call, words):
    with pytest.raises(portconv.ConvValueError, match="algorithm: got 'compiled'") as raised:
        call()
    assert words in str(raised.value)


@needs_kernels
def test_what_it_does_not_serve_it_says(addressed):
    x, w = addressed.array(np.ones((1, 2, 5, 5), "float32")), addressed.array(np.ones((3, 2, 2, 2), "float32"))
    named = {"algorithm": "compiled"}
    with portconv.workspace_limit(64), pytest.raises(portconv.ConvValueError, match=r"expected .*at least \d+"):
        portconv.conv(x, w, **named)


def test_no_other_device_and_no_other_library():
    assert "the memory of this machine" in COMPILED.lacks("forward", None, "gpu")
    strict = backends.find("array_api_strict")
    if strict.fault is None:
        x, w = (strict.asarray(np.ones(shape, "float32")) for shape in ((1, 1, 5), (1, 1, 2)))
        refusal(lambda: portconv.conv(x, w, algorithm="compiled"), "arrays in the memory of this machine, as NumPy's")
        (own,) = (one for one in portconv.explain(x, w).candidates if one.name == "compiled")
        assert own.why_not.startswith("serves arrays in the memory of this machine")


def test_a_tensor_without_memory_is_described_by_others():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, w = torch.ones(2, 3, 9, 9, device="meta"), torch.ones(4, 3, 3, 3, device="meta")
    assert portconv.conv(x, w).shape == (2, 4, 7, 7)


def test_without_kernels_it_says_why(addressed, monkeypatch):
    monkeypatch.setattr(state, "_state", state._State(None, "kernels are switched off: as planned"))
    forget()
    try:
        x, w = addressed.array(np.ones((1, 2, 5), "float32")), addressed.array(np.ones((3, 2, 2), "float32"))
        words = "where there are kernels: kernels are switched off: as planned"
        refusal(lambda: portconv.conv(x, w, algorithm="compiled"), words)
        found = portconv.explain(x, w)
        (own,) = (one for one in found.candidates if one.name == "compiled")
        assert own.why_not == f"serves {words}"
        assert found.algorithm != "compiled"
        assert np.all(addressed.numpy(portconv.conv(x, w)) == 4)
    finally:
        monkeypatch.undo()
        forget()


@needs_kernels
def test_auto_takes_it_and_explains_it(addressed):
    for problem in (PROBLEMS["2d"], LONG["tiles"], LONG["panels"]):
        x, w, _, _ = map(addressed.array, problem.operands("float32"))
        found = portconv.explain(x, w, **{**options_of(problem), "algorithm": "auto"})
        assert found.algorithm == "compiled"
        assert found.candidates[0] == ("compiled", 1.0, None)
        assert all(one.cost is None or one.cost >= 1 for one in found.candidates)
        assert str(found).splitlines()[3].split() == ["compiled", "1.00", "taken"]


@needs_kernels
def test_it_has_all_gradients():
    case = Case("strided", (1, 1, 5), (1, 1, 2), stride=2, algorithm="compiled")
    assert lacking(case) == ()
    _, cache = portconv.conv_forward(np.ones((1, 1, 5), "float32"), np.ones((1, 1, 2), "float32"), algorithm="compiled")
    assert {plan.algorithm for plan in plans_of(cache).values()} == {"compiled"}


@pytest.fixture
def no_kernel(monkeypatch):
    """Let no kernel be compiled from here on, as where LLVM refuses."""
    monkeypatch.setattr(call, "_ready", {})
    monkeypatch.setattr(call, "failed", {})
    monkeypatch.setattr(choice.call, "failed", call.failed)

    def refuse(*_):
        raise RuntimeError("LLVM refuses\nas planned")

    monkeypatch.setattr(call, "object_of", refuse)
    forget()
    yield
    monkeypatch.undo()
    forget()


WORDS = r"algorithm 'compiled': kernel \w+-\w+: RuntimeError: LLVM refuses as planned"


@needs_kernels
@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize("name", ["2d", "depthwise", "tiles"])
def test_a_kernel_that_cannot_be_compiled_is_replaced_with_one_warning(addressed, recwarn, name):
    problem = PROBLEMS[name]
    x, w, b, _ = (np.rint(array) for array in problem.operands("float32"))
    arrays, options = list(map(addressed.array, (x, w, b))), {**options_of(problem), "algorithm": "auto"}
    for _ in range(4):
        # Sums of small whole numbers are exact.
        assert np.array_equal(addressed.numpy(portconv.conv(*arrays, **options)), problem.forward(x, w, b))
    messages = [str(each.message) for each in recwarn]
    assert len(messages) == 1, messages
    assert messages[0].endswith("LLVM refuses as planned; another algorithm computes")


@needs_kernels
@pytest.mark.usefixtures("no_kernel")
def test_a_kernel_that_cannot_be_compiled_is_an_error_by_name(addressed):
    arrays = [addressed.array(array) for array in PROBLEMS["2d"].operands("float32")[:3]]
    for words in (WORDS, "LLVM refuses as planned"):
        with pytest.raises(portconv.PortconvError, match=words):
            portconv.conv(*arrays, **options_of(PROBLEMS["2d"]))


def test_tensors_without_memory_in_a_second_derivative_take_another_way():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, w, dout = (torch.ones(shape) for shape in ((1, 2, 9), (3, 2, 3), (1, 3, 7)))

    def dx(w):
        return torch.func.vjp(lambda x: portconv.conv(x, w), x)[1](dout)[0]

    # PyTorch adds up zeros that have no memory here.
    (second,) = torch.func.vjp(dx, w)[1](x)
    assert torch.equal(second, torch.full_like(w, 7.0))


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "complex64", "int32"])
def test_empty_batches_may_have_channels_last(dtype):
    for shape, groups in (((1, 1), 1), ((4, 3), 1), ((3, 1), 3), ((2, 3), 1)):
        for kernel in (1, 3):
            x, w = np.ones((0, 5, shape[1] * groups), dtype), np.ones((*shape, kernel), dtype)
            out, cache = portconv.conv_forward(x, w, groups=groups, data_format="channels_last")
            grads = portconv.conv_backward(out, cache)
            assert out.shape == (0, 6 - kernel, shape[0])
            assert grads.dx.shape == x.shape
            assert not grads.dw.any()


@needs_kernels
def test_inputs_of_no_cells_may_have_channels_last_or_be_complex():
    w = np.ones((2, 3, 1, 3), "float32")
    for dtype in ("float32", "complex64"):
        x = np.ones((1, 4, 0, 3), dtype)
        out = portconv.conv(x, w.astype(dtype), padding=((0, 0), (2, 2)), data_format="channels_last")
        assert np.array_equal(out, np.zeros((1, 4, 2, 2)))
