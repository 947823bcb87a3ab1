"""Channels last: the same numbers with the axes moved, in memory of that order, without a copy of the whole input."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import portconv

# Shapes of x and w with channels first, and options.
CASES = {
    "1d": ((2, 3, 9), (4, 3, 3), {"padding": 1}),
    "2d": ((2, 3, 7, 8), (4, 3, 3, 2), {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "dilation": (1, 2)}),
    "2d of kernel 3": ((2, 3, 7, 8), (4, 3, 3, 3), {"padding": "same"}),
    "2d groups": ((3, 4, 6, 5), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    "2d depthwise": ((2, 5, 6, 7), (10, 1, 3, 3), {"groups": 5, "stride": 2}),
    "2d pointwise": ((2, 4, 12, 11), (3, 4, 1, 1), {}),
    "2d pointwise groups": ((2, 4, 12, 11), (6, 2, 1, 1), {"groups": 2}),
    "2d blocks": ((4, 24, 40, 41), (16, 24, 3, 3), {"padding": 1}),
    "2d many small": ((40, 16, 6, 5), (24, 16, 3, 3), {"padding": "same", "stride": 2}),
    "3d": ((1, 2, 4, 5, 6), (3, 2, 2, 3, 3), {"padding": 1, "stride": (1, 2, 1)}),
    "no samples": ((0, 3, 5, 5), (4, 3, 3, 3), {"padding": 1}),
}


def last(a):
    return np.ascontiguousarray(np.moveaxis(a, 1, -1))


def whole(*shapes):
    # |entries| <= 3 and fewer than 2**20 terms: every partial sum is an integer below 2**24, exact in float32.
    rng = np.random.default_rng(0)
    return [rng.integers(-3, 4, shape).astype("float32") for shape in shapes]


# `winograd` and `depthwise` on what they serve, and `direct` where its loop over positions is short; `fft` is not
# exact, and has a test of its own.
SERVED = {
    f"{algorithm}-{name}": (*CASES[name], algorithm)
    for algorithm, names in {
        "winograd": ("1d", "2d of kernel 3", "2d groups", "2d blocks", "no samples"),
        "depthwise": ("2d depthwise",),
        "gemm": tuple(CASES),
        "direct": tuple(name for name in CASES if name not in ("2d blocks", "2d many small")),
    }.items()
    for name in names
}


@pytest.mark.parametrize(("x_shape", "w_shape", "options", "algorithm"), SERVED.values(), ids=SERVED)
def test_the_same_as_channels_first(target, x_shape, w_shape, options, algorithm):
    shape = portconv.conv_output_shape(x_shape, w_shape, **options)
    x, w, b, dout = whole(x_shape, w_shape, w_shape[:1], shape)
    out, cache = portconv.conv_forward(x, w, b, algorithm=algorithm, **options)
    expected = (out, *portconv.conv_backward(dout, cache))
    moved = {**options, "data_format": "channels_last"}
    assert portconv.conv_output_shape(last(x).shape, w_shape, **moved) == (*shape[:1], *shape[2:], shape[1])
    given = [target.array(a) for a in (last(x), w, b, last(dout))]
    out, cache = portconv.conv_forward(*given[:3], algorithm=algorithm, **moved)
    results = (out, *portconv.conv_backward(given[3], cache))
    for found, like in zip(results, (given[3], *given[:3]), strict=True):
        assert target.owns(found)
        assert tuple(found.shape) == tuple(like.shape)
        assert found.dtype == like.dtype
    for i, (found, truth) in enumerate(zip(results, expected, strict=True)):
        assert np.array_equal(target.numpy(found), last(truth) if i < 2 else truth)
    if target.backend.name == "numpy" and algorithm != "direct":
        # Neither is a view of an array in another order.
        assert all(found.flags.c_contiguous for found in results[:2])
    dx = portconv.conv_input_grad(given[3], given[1], last(x).shape, algorithm=algorithm, **moved)
    assert np.array_equal(target.numpy(dx), last(expected[1]))
    dw = portconv.conv_weight_grad(given[3], given[0], w_shape, algorithm=algorithm, **moved)
    assert np.array_equal(target.numpy(dw), expected[2])


def test_one_sample_needs_no_batch_axis(target):
    x, w, b = whole((3, 6, 7), (4, 3, 3, 3), (4,))
    expected = portconv.conv(x, w, b, padding=1)
    given = [target.array(a) for a in (np.moveaxis(x, 0, -1).copy(), w, b)]
    out, cache = portconv.conv_forward(*given, padding=1, data_format="channels_last")
    assert tuple(out.shape) == (6, 7, 4)
    assert np.array_equal(np.moveaxis(target.numpy(out), -1, 0), expected)
    assert portconv.conv_backward(out, cache).dx.shape == given[0].shape


@pytest.mark.parametrize("algorithm", ["gemm", "winograd"])
def test_no_copy_of_the_whole_input_is_made(algorithm):
    x, w = np.ones((32, 64, 64, 32), "float32"), np.ones((32, 32, 3, 3), "float32")
    options = {"padding": 1, "data_format": "channels_last", "algorithm": algorithm}
    out, cache = portconv.conv_forward(x, w, **options)
    found = []
    # On two threads, whatever the machine has: each has blocks of its own.
    with portconv.num_threads(2), portconv.workspace_limit(7 << 20):
        tracemalloc.start()
        try:
            for call in (lambda: portconv.conv(x, w, **options), lambda: portconv.conv_backward(out, cache)):
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                kept = call()
                found.append(tracemalloc.get_traced_memory()[1] - before - out.nbytes)
                del kept
        finally:
            tracemalloc.stop()
    # Workspaces of 7 MiB a thread at most; the input has 16 MiB.
    assert max(found) < 14 * 2**20 < x.nbytes
