"""Test how `gemm` cuts its work: blocks are bounded, cover all once, and give the same bits on all threads."""

from __future__ import annotations

import math
import threading
import tracemalloc

import numpy as np
import pytest
from support.geometries import geometry
from threadpoolctl import threadpool_info, threadpool_limits

import portconv
from portconv import backends
from portconv.algorithms import columns
from portconv.algorithms.budget import Budget, budget_of
from portconv.algorithms.choice import known
from portconv.algorithms.gemm_plan import FEWEST_COLUMNS, has_views
from portconv.backends import _numpy
from portconv.spec.ranges import boxes, pieces, spans

NUMPY = backends.get("numpy")
GEMM = known()["gemm"]
SHAPES = {
    "resnet": ((16, 64, 56, 56), (64, 64, 3, 3), 1, 1, 1),
    "late": ((16, 512, 7, 7), (512, 512, 3, 3), 1, 1, 1),
    "stem": ((16, 3, 224, 224), (64, 3, 7, 7), 2, 3, 1),
    "depthwise": ((4, 128, 56, 56), (128, 1, 31, 31), 1, 15, 128),
    "volume": ((1, 16, 64, 200, 200), (16, 16, 3, 3, 3), 1, 1, 1),
    "signal": ((2, 32, 100_000), (32, 32, 9), 1, 4, 1),
    "pointwise": ((16, 256, 56, 56), (64, 256, 1, 1), 1, 0, 1),
    "small": ((2, 3, 8, 8), (8, 3, 3, 3), 1, 1, 1),
    "tall": ((1, 64, 100, 224), (8, 64, 31, 31), 1, 15, 1),
    "no samples": ((0, 3, 8, 8), (8, 3, 3, 3), 1, 1, 1),
}


def undilated(x_shape, w_shape, stride, padding, groups):
    """Return the geometry of a convolution with dilation 1."""
    return geometry(x_shape, w_shape, stride, padding, 1, groups)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize(("elements", "fast_columns", "least"), [(1 << 19, 1024, 8), (1 << 26, 1 << 30, 1)])
def test_blocks_cover_all_and_stay_bounded(shape, kind, elements, fast_columns, least):
    convolution = undilated(*shape)
    plan = GEMM.cut(kind, convolution, Budget(elements, fast_columns, least, 1 << 62), elements)
    covered = 0
    for stack in plan.stacks():
        assert stack[0].run[0] == 0
        assert stack[-1].run[1] == convolution.positions
        for block, following in zip(stack, (*stack[1:], None), strict=True):
            assert following is None or block.run[1] == following.run[0]
            samples, groups, channels = block.counts
            assert samples * math.prod(end - start for start, end in block.box) == block.length
            covered += groups * channels * block.length
            height = groups * channels * convolution.taps
            views = has_views(kind, convolution, samples)
            # A block may exceed the budget only if it has at most 64 columns.
            assert views or height * block.length <= max(elements, FEWEST_COLUMNS * height)
    assert covered == convolution.batch * convolution.in_channels * convolution.positions


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_strips_have_fewer_elements_than_columns(shape):
    convolution, elements = undilated(*shape), 1 << 19
    shares = set()
    for kind in ("forward", "input_grad", "weight_grad"):
        for stack in GEMM.cut(kind, convolution, Budget(elements, 1024, 8, 1 << 62), elements).stacks():
            for block in stack:
                shares.add(columns.shares_rows(convolution, block.rows))
                if columns.shares_rows(convolution, block.rows):
                    rows = columns._rows_of(convolution, block)
                    assert rows.rows == columns.rows_read(convolution, block.rows)
                    strips = rows.length * convolution.other_taps
                    assert strips < block.length * convolution.taps
                    # All rows of the padded input can be read.
                    assert rows.box[0][1] <= convolution.padded[0]
    assert shares <= ({False} if convolution.dims == 1 or convolution.kernel[0] == 1 else {False, True})


def test_plans_of_large_kernels_are_not_kept_for_long():
    # Each plan of 5000 taps takes 0.5 MB; those of 100 calls would take 50 MB. Only the last few are kept.
    tracemalloc.start()
    try:
        for size in range(5000, 5100):
            portconv.conv(np.ones((1, 1, size), "float32"), np.ones((1, 1, 5000), "float32"))
        assert tracemalloc.get_traced_memory()[0] < 30 * 2**20
    finally:
        tracemalloc.stop()


# Shapes of x and w, stride, padding, dilation and groups: samples of few cells, and layers of few channels or filters.
SMALL = {
    "course": ((30, 3, 31, 31), (25, 3, 3, 3), 2, 1, 1, 1),
    "uneven": ((9, 4, 24, 27), (12, 2, 3, 2), (2, 1), ((1, 2), (0, 3)), (1, 2), 2),
    "no padding": ((11, 2, 20, 21), (24, 2, 5, 3), 1, 0, 1, 1),
    "1d": ((8, 2, 200), (40, 2, 9), 3, 4, 1, 1),
    "3d": ((6, 1, 9, 10, 11), (30, 1, 3, 3, 3), (2, 1, 2), 1, 1, 1),
    "one channel": ((16, 1, 40, 40), (6, 1, 3, 3), 1, 1, 1, 1),
    "one filter": ((5, 8, 40, 40), (1, 8, 3, 4), 1, ((0, 2), (1, 3)), (2, 1), 1),
    "few filters a group": ((8, 12, 200), (4, 6, 5), 1, 2, 1, 2),
    "no padding and one filter": ((6, 3, 50, 40), (1, 3, 5, 3), 1, 0, 1, 1),
    "taps apart": ((6, 3, 50, 40), (8, 3, 3, 3), 1, 20, 20, 1),
    "rows between windows": ((6, 3, 200, 40), (8, 3, 2, 3), (5, 3), 1, 1, 1),
}


@pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("last", [False, True])
def test_columns_give_the_whole_numbers_of_direct(shape, dtype, last):
    x_shape, w_shape, stride, padding, dilation, groups = shape
    convolution = geometry(*shape)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    # Products of integers below 8, fewer than 2**17 of them, sum below 2**24: exact in float32 in any order.
    assert max(convolution.batch * convolution.positions, convolution.group_in * convolution.taps) < 2**17
    rng = np.random.default_rng(5)
    shapes = (x_shape, w_shape, (w_shape[0],), portconv.conv_output_shape(x_shape, w_shape, **options))
    x, w, b, dout = (rng.integers(-7, 8, s).astype(dtype) for s in shapes)
    if dtype == "complex128":
        x, w, b, dout = (a + 1j * a[::-1] for a in (x, w, b, dout))
    truth, cache = portconv.conv_forward(x, w, b, algorithm="direct", **options)
    grads = portconv.conv_backward(dout, cache)
    if last:
        x, dout = np.moveaxis(x, 1, -1), np.moveaxis(dout, 1, -1)
        options["data_format"] = "channels_last"
    out, cache = portconv.conv_forward(x, w, b, algorithm="gemm", **options)
    dx, dw, db = portconv.conv_backward(dout, cache)
    if last:
        out, dx = np.moveaxis(out, -1, 1), np.moveaxis(dx, -1, 1)
    for one, other in zip((out, dx, dw, db), (truth, *grads), strict=True):
        assert np.array_equal(one, other)


def test_the_side_with_fewer_columns_has_them():
    # Channels and filters: to copy or add columns of the fewer takes less time.
    mirrored = {
        (8, 8): {"input_grad"},
        (1, 3): set(),
        (1, 2): {"input_grad"},
        (3, 1): {"forward", "input_grad", "weight_grad"},
    }
    for (channels, filters), kinds in mirrored.items():
        convolution = undilated((16, channels, 40, 40), (filters, channels, 3, 3), 1, 1, 1)
        budget = budget_of(convolution, NUMPY, 32, 1 << 26)
        assert {
            kind for kind in ("forward", "input_grad", "weight_grad") if GEMM.mirrors(kind, convolution, budget)
        } == kinds


@pytest.mark.parametrize("padding", [0, 2, 3])
@pytest.mark.parametrize("spoiled", ["x", "w", "dout"])
def test_few_filters_keep_infinities_in_their_windows(spoiled, padding):
    # With one filter, the padding that is multiplied is that of the mirrored convolution, unless a number is infinite.
    rng = np.random.default_rng(11)
    arrays = {"x": (4, 6, 50, 50), "w": (1, 6, 3, 3), "dout": (4, 1, 48 + 2 * padding, 48 + 2 * padding)}
    x, w, dout = operands = [rng.integers(1, 8, shape).astype("float32") for shape in arrays.values()]
    operands[list(arrays).index(spoiled)][(0, 0, 0, 0)] = np.inf
    with np.errstate(invalid="ignore"):
        for algorithm in ("gemm", "direct"):
            out, cache = portconv.conv_forward(x, w, padding=padding, algorithm=algorithm)
            results = out, *portconv.conv_backward(dout, cache)[:2]
            if algorithm == "gemm":
                found = results
    for one, other in zip(found, results, strict=True):
        np.testing.assert_array_equal(one, other)


SPACED = {
    "course": ((2, 3, 4, 4), (3, 3, 4, 4), 2, 1, 1, 1),
    "unread cells": ((2, 2, 9, 8), (4, 2, 3, 2), (3, 2), ((1, 2), (0, 1)), (2, 1), 1),
    "groups": ((3, 4, 7), (6, 2, 3), 2, 1, 1, 2),
    "one output far away from the next": ((1, 1, 3, 4), (1, 1, 3, 2), (2**62, 1), 0, 1, 1),
    "no cells": ((1, 2, 0, 3), (2, 2, 2, 2), 2, (2, 1), 1, 1),
}


@pytest.mark.parametrize("shape", SPACED.values(), ids=SPACED)
@pytest.mark.parametrize("last", [False, True])
def test_input_gradients_of_few_spaced_outputs_are_those_of_direct(shape, last):
    x_shape, w_shape, stride, padding, dilation, groups = shape
    convolution = geometry(*shape)
    dense = convolution.unstrided
    assert dense.stride == (1,) * convolution.dims
    assert dense.out == tuple((n - 1) * s + 1 for n, s in zip(convolution.out, convolution.stride, strict=True))
    assert dense.mirrored.out == convolution.size
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    # Products of integers below 8, fewer than 2**10 of them to a sum: exact in any order.
    rng = np.random.default_rng(9)
    dout, w = (rng.integers(-7, 8, s).astype("float32") for s in (convolution.out_shape, w_shape))
    truth = portconv.conv_input_grad(dout, w, x_shape, algorithm="direct", **options)
    if last:
        dout, x_shape = np.moveaxis(dout, 1, -1), (x_shape[0], *x_shape[2:], x_shape[1])
        truth, options["data_format"] = np.moveaxis(truth, 1, -1), "channels_last"
    assert np.array_equal(portconv.conv_input_grad(dout, w, x_shape, algorithm="gemm", **options), truth)


def test_blocks_have_several_samples_only_if_these_have_few_positions():
    for positions, several in ((512, True), (2048, True), (2049, False)):
        convolution = undilated((16, 64, positions), (64, 64, 3), 1, 1, 1)
        for kind in ("forward", "input_grad", "weight_grad"):
            plan, _ = GEMM.plan(kind, convolution, Budget(1 << 20, 4096, 1, 1 << 26))
            counts = {end - start for start, end in plan.samples}
            assert (counts != {1}) == several, (positions, kind)
            assert max(counts) * positions <= max(positions, 2 * 4096), (positions, kind)


def test_pieces_are_nearly_equal():
    assert tuple(pieces(10, 4)) == ((0, 4), (4, 7), (7, 10))
    assert tuple(pieces(3, 5)) == ((0, 3),)
    assert tuple(pieces(0, 5)) == ()


def test_boxes_are_runs_of_the_flattened_positions():
    out = (3, 4, 5)
    numbers = np.arange(60).reshape(out)
    for largest in (1, 3, 5, 7, 10, 20, 41, 60, 99):
        for (start, end), box in boxes(out, largest):
            inside = numbers[tuple(slice(*part) for part in box)]
            assert end - start <= max(largest, 1)
            assert np.array_equal(inside.ravel(), np.arange(start, end))


def test_spans_are_the_taps_inside_the_input():
    for size, kernel, stride, dilation, before in np.ndindex(6, 4, 4, 4, 4):
        if not (kernel and stride and dilation):
            continue
        for tap, span in enumerate(spans(size, kernel, stride, dilation, before, (1, 6))):
            reads = [o * stride + tap * dilation - before for o in range(1, 6)]
            inside = [(i, cell) for i, cell in enumerate(reads) if 0 <= cell < size]
            outputs, inputs = range(5)[span.outputs], range(size)[span.inputs]
            assert list(zip(outputs, inputs, strict=True)) == inside


def test_numpy_gives_the_same_bits_on_any_number_of_threads():
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s, dtype="float32") for s in ((6, 32, 40, 40), (32, 32, 3, 3), (32,)))
    bits = []
    for threads in (1, 2, 3):
        # This limits BLAS, from which portconv reads the number of threads.
        with threadpool_limits(threads, user_api="blas"):
            out, cache = portconv.conv_forward(x, w, b, padding=1)
            bits.append([a.tobytes() for a in (out, *portconv.conv_backward(out, cache))])
    # With one thread, BLAS keeps its setting, which is one thread here, too. So the products are the same.
    assert bits[0] == bits[1] == bits[2]


def test_blas_threads_are_restored(monkeypatch):
    def threads():
        return [library.num_threads for library in _numpy._blas.libraries()]

    x, w = np.ones((4, 16, 64, 64), "float32"), np.ones((16, 16, 3, 3), "float32")
    before = threads()
    portconv.conv(x, w, algorithm="gemm")
    assert threads() == before
    backend = backends.get("numpy")
    during_the_call = []

    def fails(*arguments):
        during_the_call.append(threads())
        raise ArithmeticError("as planned")

    monkeypatch.setattr(backend, "product", fails)
    with pytest.raises(ArithmeticError, match="as planned"):
        portconv.conv(x, w, algorithm="gemm")
    assert threads() == before
    assert during_the_call[0] == [1] * len(before) or max(before) == 1
    with threadpool_limits(1, user_api="blas"):
        assert set(threads()) == {1}


def test_many_threads_may_call_at_once():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((4, 16, 64, 64)), rng.standard_normal((16, 16, 3, 3))
    expected = portconv.conv(x, w).tobytes()
    before = [lib["num_threads"] for lib in threadpool_info()]
    results = []
    callers = [threading.Thread(target=lambda: results.append(portconv.conv(x, w).tobytes())) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [expected] * 6
    assert [lib["num_threads"] for lib in threadpool_info()] == before
