"""NumPy's warnings: a call warns of its result, whatever algorithm computes it, and of no step before it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from support.kernels import needs_kernels

import portconv

OVERFLOW, INVALID = "overflow encountered in add", "invalid value encountered in add"
ALGORITHMS = ("gemm", "winograd", "fft", "depthwise", "direct")
COMPILED = pytest.param("compiled", marks=needs_kernels)


def said(compute) -> list[str]:
    """Return what a call warns of; with `np.errstate(all="raise")` it raises the first of these."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compute()
    messages = [str(warning.message) for warning in caught]
    assert {warning.category for warning in caught} <= {RuntimeWarning}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        compute()
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        if messages:
            with pytest.raises(FloatingPointError, match=messages[0]):
                compute()
        else:
            compute()
    return messages


def cell(value: float) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((2, 1, 40, 40)).astype("float32")
    x[0, 0, 5, 5] = value
    return x


W = np.random.default_rng(1).uniform(0.05, 0.1, (1, 1, 3, 3)).astype("float32")
BIG = np.float32(2e38)
INPUTS = {
    "ordinary": (cell(1), W, []),
    "a cell whose squares overflow": (cell(BIG), W, []),
    # Tiles and spectra add cells up before they multiply: these sums overflow, and no sum of the result does.
    "cells whose sums overflow": (np.full((2, 1, 40, 40), BIG), W, []),
    "products below the smallest number": (cell(1) * np.float32(1e-30), W * np.float32(1e-20), []),
    "overflow": (np.full((2, 1, 40, 40), BIG), 20 * W, [OVERFLOW]),
    "an infinity": (cell(np.inf), W, []),
    "a nan": (cell(np.nan), W, []),
    "infinities of both signs": (np.where(np.arange(40) % 2, cell(1), np.inf * cell(1)), W, [INVALID]),
    "infinity times zero": (cell(np.inf), np.where(np.arange(3) == 1, W, 0), [INVALID]),
}


@pytest.mark.parametrize("precision", ["standard", "reproducible"])
@pytest.mark.parametrize("algorithm", ["auto", COMPILED, *ALGORITHMS])
@pytest.mark.parametrize("name", INPUTS)
def test_a_call_warns_of_its_result_alone(name, algorithm, precision):
    if precision == "reproducible" and algorithm in ("winograd", "fft", "compiled"):
        pytest.skip("these round, and serve no reproducible call")
    x, w, expected = INPUTS[name]
    options = {"algorithm": algorithm, "precision": precision}
    assert said(lambda: portconv.conv(x, w, **options)) == expected
    assert said(lambda: portconv.conv_input_grad(x, w, (2, 1, 42, 42), **options)) == expected
    assert said(lambda: portconv.conv_transpose(x, w, **options)) == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_so_do_gradients_of_filters(algorithm):
    def gradient(dout, x):
        return lambda: portconv.conv_weight_grad(dout, x, (1, 1, 3, 3), algorithm=algorithm)

    ones = np.ones((2, 1, 38, 38), "float32")
    assert said(gradient(ones, cell(BIG))) == []
    assert said(gradient(ones, np.full((2, 1, 40, 40), BIG))) == [OVERFLOW]
    assert said(gradient(np.where(np.arange(38) % 2, ones, 0), cell(np.inf))) == [INVALID]


def test_on_threads_and_in_parts():
    x, w = np.full((16, 8, 64, 64), BIG), np.full((8, 8, 3, 3), 0.01, "float32")
    assert said(lambda: portconv.conv(x, w)) == []
    with portconv.workspace_limit(1 << 20):
        assert said(lambda: portconv.conv(x, 100 * w, padding_mode="reflect", padding=1)) == [OVERFLOW]


def test_casts_sums_and_windows():
    large = np.full((1, 1, 4), 60000, "float16")
    assert said(lambda: portconv.conv(large, np.ones((1, 1, 1), "float16"))) == []
    assert said(lambda: portconv.conv(large, np.ones((1, 1, 2), "float16"))) == [OVERFLOW]
    with portconv.workspace_limit(4096):
        _, cache = portconv.conv_forward(large * 0, np.zeros((1, 1, 1), "float16"), np.zeros(1, "float16"))
    assert said(lambda: portconv.conv_backward(large, cache)) == [OVERFLOW]  # of db alone
    assert said(lambda: portconv.fold(np.full((1, 2, 3), BIG), (4,), 2)) == [OVERFLOW]
    assert said(lambda: portconv.unfold(cell(np.inf), 3, padding=1)) == []
    numbers = np.full((1, 1, 4), 2e38 + 2e38j, "complex64")
    assert said(lambda: portconv.conv(numbers, np.ones((1, 1, 2), "complex64"))) == [OVERFLOW]
    assert said(lambda: portconv.conv(np.full((1, 1, 4), 127, "int8"), np.full((1, 1, 2), 127, "int8"))) == []
    assert said(lambda: portconv.error_bound(numbers, np.ones((1, 1, 2), "complex64"))) == []


def test_dask_warns_as_its_chunks_do():
    da = pytest.importorskip("dask.array")
    x, w = da.full((2, 1, 40, 40), BIG, chunks=(1, 1, 20, 20)), da.from_array(W)
    assert said(lambda: portconv.conv(x, w).compute(scheduler="sync")) == []
    assert set(said(lambda: portconv.conv(x, 20 * w).compute(scheduler="sync"))) == {OVERFLOW}
