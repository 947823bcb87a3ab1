"""Long sums are cut into runs, so that their errors stay small in every library, layout and algorithm.

A plain float32 sum of equal cells loses about as much as any sum can: each addition is rounded in the same direction.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.oracle import gamma

import portconv
from portconv.algorithms import summing
from portconv.backends import get

CELL = np.float32(0.1)
RUN = 128
"""The terms that one sum of a library may have."""
LONGEST = 2 * 4096 - 1
"""The terms that one matrix product of a gradient of filters may have."""


def levels(count: int) -> int:
    """How often a term is rounded while so many are added up in runs of `RUN`, level after level."""
    return count if count <= RUN else RUN + levels(-(-count // RUN))


@pytest.mark.parametrize("name", ["float32", "complex64"])
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("batch", [64, 20000])
def test_gradients_of_biases_have_short_sums(target, batch, data_format, name):
    cells = 200_000 // batch
    shape = (batch, 4, cells) if data_format == "channels_first" else (batch, cells, 4)
    x = np.zeros((batch, 1, cells) if data_format == "channels_first" else (batch, cells, 1), name)
    x, w, b, dout = map(target.array, (x, np.zeros((4, 1, 1), name), np.zeros(4, name), np.full(shape, CELL, name)))
    _, cache = portconv.conv_forward(x, w, b, data_format=data_format)
    db = target.numpy(portconv.conv_backward(dout, cache).db)
    exact = batch * cells * float(CELL)
    # A plain sum of 64 times 3136 cells was off by 2.0e-3; this is 2.0e-5 at most, and 1.2e-6 on NumPy.
    assert np.all(np.abs(db - exact) <= gamma(levels(batch) + levels(cells), "float32") * exact)


def test_the_gradients_of_direct_have_short_sums_too():
    x = np.full((1, 1, 40_000), CELL)
    dw = portconv.conv_weight_grad(x, x, (1, 1, 1), algorithm="direct")
    exact = 40_000 * float(CELL) ** 2
    # 200 runs of 200 positions; one plain sum of these was off by 2e-4.
    assert abs(dw[0, 0, 0] - exact) <= gamma(200 + 200, "float32") * exact


@pytest.mark.parametrize("algorithm", ["gemm", "fft", "depthwise", "winograd", "tap_loop"])
@pytest.mark.parametrize("shape", [(1, 1, 300_000), (100_000, 1, 3), (5, 1, 150, 200)])
def test_gradients_of_filters_have_short_sums(target, shape, algorithm):
    x = target.array(np.full(shape, CELL))
    sizes = tuple(size - 2 for size in shape[2:])
    dout = target.array(np.full((shape[0], 1, *sizes), CELL))
    try:
        dw = target.numpy(portconv.conv_weight_grad(dout, x, (1, 1) + (3,) * len(sizes), algorithm=algorithm))
    except portconv.ConvValueError as error:
        pytest.skip(str(error))
    count = shape[0] * math.prod(sizes)
    exact = count * float(CELL) ** 2
    # The sums of one product, of blocks in runs, and of partial sums; `fft` and `winograd` round more on their way.
    roundings = LONGEST + 2 * math.isqrt(count) + 16 + 500
    assert np.all(np.abs(dw - exact) <= gamma(roundings, "float32") * exact)


def test_a_library_that_adds_one_by_one_makes_small_errors():
    class Plain(type(get("numpy"))):
        name = "plain"

        class xp:
            reshape, concat = np.reshape, np.concatenate

            @staticmethod
            def sum(array, axis, dtype=None, keepdims=False):
                return np.take(np.cumsum(array, axis=axis, dtype=dtype), [-1] if keepdims else -1, axis=axis)

    plain = Plain()
    for count in (1, 127, 128, 129, 16384, 16385, 1_000_000):
        cells = np.full((count, 2), CELL)
        exact = count * float(CELL)
        for axis, array in ((0, cells), (1, np.ascontiguousarray(cells.T))):
            total = super(type(get("numpy")), plain).total(array, axis)
            assert total.shape == (2,)
            assert np.all(np.abs(total - exact) <= gamma(levels(count), "float32") * exact)
    off = abs(Plain.xp.sum(cells, 0)[0] / exact - 1)
    assert off > 100 * gamma(levels(count), "float32")  # as the library's own sum is


@pytest.mark.parametrize("count", [0, 1, 32, 33, 1000, 100_000])
def test_blocks_are_added_up_in_runs(count):
    backend, terms = get("numpy"), []

    def add_up(blocks, target, workspace):
        terms.append(len(blocks))
        target[...] = sum(blocks)
        return target

    target = np.empty(1)
    total = summing.in_runs(backend, add_up)(tuple(range(count)), target, backend.workspace(target)) if count else 0
    assert total == count * (count - 1) // 2
    assert sum(terms) == count
    longest = max([*terms, 0])
    assert summing.additions(count) == max(0, longest + len(terms) - 1)
    assert summing.additions(count) <= max(32, math.isqrt(count)) + -(-count // max(32, math.isqrt(count)))


@pytest.mark.parametrize("length", [1, 4096, 8191, 8192, 20000])
def test_correlations_are_products(target, length):
    backend = target.backend
    rng = np.random.default_rng(length)
    a, b = (rng.integers(-8, 9, (2, rows, length)).astype("float32") for rows in (3, 5))
    out = backend.empty((2, 3, 5), target.array(a))
    value = target.numpy(summing.correlate(backend, target.array(a), target.array(b), out))
    # Whole numbers of at most 64 times 20000, which float32 holds.
    np.testing.assert_array_equal(value, a @ b.transpose(0, 2, 1))
    assert summing.rounded(length) <= LONGEST
