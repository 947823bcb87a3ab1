"""Test products as loops over taps, for libraries that compile every step of the other algorithms."""

from __future__ import annotations

import numpy as np
import pytest
from support.geometries import geometry
from support.oracle import Problem

import portconv
from portconv.algorithms.algorithm import forget
from portconv.algorithms.choice import known

CASES = {
    "1d gaps, cells at the end that no window reads": Problem((2, 3, 13), (4, 3, 3), (3,), ((1, 0),), (2,)),
    "2d groups": Problem((2, 4, 7, 6), (6, 2, 3, 2), (2, 1), ((1, 2), (0, 3)), (1, 2), 2),
    "2d depthwise": Problem((1, 3, 5, 9), (6, 1, 2, 4), (1, 2), ((0, 0), (2, 1)), (2, 1), 3),
    "3d": Problem((2, 2, 4, 5, 3), (3, 2, 2, 3, 2), (1, 2, 1), ((0, 1), (1, 1), (1, 0)), (1, 1, 2)),
}


@pytest.fixture
def by_taps(target, portable, monkeypatch):
    """Make the library one that compiles every step, and for which `gemm` and `depthwise` have too many steps.

    It has no convolution of its own.
    """
    monkeypatch.setattr(target.backend, "native_convolution", None)
    monkeypatch.setattr(target.backend, "strided", False)
    monkeypatch.setattr(target.backend, "compiled_steps", 1)
    forget()
    yield
    monkeypatch.undo()
    forget()


@pytest.mark.usefixtures("by_taps")
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("algorithm", ["tap_loop", "auto"])
@pytest.mark.parametrize("problem", CASES.values(), ids=CASES)
def test_whole_numbers_are_exact(target, monkeypatch, problem, algorithm, dtype):
    # Integers below 8: sums of fewer than 2**7 products, of parts up to 2 * 7**2, are below 2**14.
    rng = np.random.default_rng(7)
    x, w, b, dout = (rng.integers(-7, 8, a.shape).astype(dtype) for a in problem.operands("float32"))
    if dtype == "complex64":
        x, w, b, dout = (a + 1j * np.flip(a) for a in (x, w, b, dout))
    options = {
        "stride": problem.stride,
        "padding": problem.pads,
        "dilation": problem.dilation,
        "groups": problem.groups,
        "algorithm": algorithm,
    }
    # All other algorithms cost more, except `fft` in some cases; but `fft` is not exact.
    monkeypatch.setattr(known()["fft"], "automatic", False)
    forget()
    assert portconv.explain(*map(target.array, (x, w)), **options).algorithm == "tap_loop"
    out, cache = portconv.conv_forward(*map(target.array, (x, w, b)), **options)
    results = (out, *portconv.conv_backward(target.array(dout), cache))
    truths = problem.all(x, w, b, dout)
    if dtype == "complex64":  # gradients are adjoints
        truths |= {"dx": problem.input_grad(dout, w.conj()), "dw": problem.weight_grad(dout, x.conj())}
    for name, array in zip(truths, results, strict=True):
        assert target.owns(array), name
        assert np.array_equal(target.numpy(array), truths[name]), name


@pytest.mark.parametrize("problem", CASES.values(), ids=CASES)
def test_input_gradients_need_no_mirrored_filters(target, problem):
    _, w, _, dout = (np.rint(4 * a) for a in problem.operands("float64"))
    w[0, 0] = np.inf  # cells that no window reads must not depend on it; times zero padding it would be nan
    convolution = geometry(problem.x, problem.w, problem.stride, problem.pads, problem.dilation, problem.groups)
    with np.errstate(invalid="ignore"), target.backend.quiet():
        grad = known()["tap_loop"].input_grad(convolution, target.backend, None, target.array(dout), target.array(w))
        truth = problem.input_grad(dout, w)
    assert np.array_equal(target.numpy(grad), truth, equal_nan=True)


def test_it_serves_no_library_whose_steps_are_not_compiled():
    x, w = np.ones((1, 1, 9), "float32"), np.ones((1, 1, 3), "float32")
    why_not = {one.name: one.why_not for one in portconv.explain(x, w).candidates}
    assert why_not["tap_loop"] == "serves a library that compiles every step of a call"
    with pytest.raises(
        portconv.ConvValueError, match=r"algorithm: got 'tap_loop' .* expected 'auto', or a library that"
    ):
        portconv.conv(x, w, algorithm="tap_loop")
