"""Gradients like those before are looked up in one step, and are what the first ones were."""

from __future__ import annotations

import gc
import warnings
import weakref

import numpy as np
import pytest
from support.kernels import needs_kernels

import portconv
from portconv.engine import gradients, repeated
from portconv.spec import remembered

pytestmark = needs_kernels

RNG = np.random.default_rng(5)
X, W, B = (RNG.integers(-4, 5, shape).astype("float32") for shape in ((2, 3, 9, 8), (4, 3, 3, 3), (4,)))
DOUT = RNG.integers(-4, 5, (2, 4, 7, 6)).astype("float32")
"""Whole numbers, so that every algorithm gives the same."""
KNOWN = repeated._known._items
CASES = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "padded": {"padding": ((2, 1), (0, 3))},
    "dilated": {"dilation": (2, 3), "padding": 2},
}


@pytest.fixture(autouse=True)
def afresh():
    """Start with nothing remembered, and leave nothing."""
    remembered.forget()
    yield
    remembered.forget()


@pytest.fixture
def planned(monkeypatch):
    """Count the gradients that take the long way from here on."""
    taken, compute = [], gradients.run

    def counting(*arguments):
        taken.append(arguments[0].kind)
        return compute(*arguments)

    monkeypatch.setattr(gradients, "run", counting)
    return taken


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("bias", [B, None], ids=["bias", "no bias"])
def test_the_second_backward_is_looked_up_and_gives_the_same(planned, options, bias):
    out, cache = portconv.conv_forward(X, W, bias, **options)
    dout = RNG.integers(-4, 5, out.shape).astype("float32")
    expected = portconv.conv_backward(dout, portconv.conv_forward(X, W, bias, algorithm="direct", **options)[1])
    planned.clear()
    for _ in range(3):
        grads = portconv.conv_backward(dout, cache)
        for mine, theirs in zip(grads, expected, strict=True):
            assert (mine is None) == (theirs is None)
            assert mine is None or np.array_equal(mine, theirs)
    assert len(planned) == 2 + (bias is not None)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_single_gradients_are_looked_up_and_give_the_same(options):
    dout = np.ones(portconv.conv_output_shape(X.shape, W.shape, **options), "float32")
    dx, dw = portconv.conv_backward(dout, portconv.conv_forward(X, W, algorithm="direct", **options)[1])[:2]
    remembered.forget()
    for _ in range(3):
        assert np.array_equal(portconv.conv_input_grad(dout, W, X.shape, **options), dx)
        assert np.array_equal(portconv.conv_weight_grad(dout, X, W.shape, **options), dw)
        assert len(KNOWN) == 2
    # The same operands make gradients of other shapes.
    if not options:
        with pytest.raises(portconv.ConvShapeError, match="dout: got shape"):
            portconv.conv_input_grad(dout, W, (2, 3, 9, 9))
        with pytest.raises(portconv.ConvShapeError):
            portconv.conv_weight_grad(dout, X, (4, 3, 3, 2))


def test_a_gradient_of_another_shape_is_another_call():
    _, cache = portconv.conv_forward(X, W, B)
    portconv.conv_backward(DOUT, cache)
    for wrong in (DOUT[:1], DOUT[:, :3], DOUT[..., 1:]):
        for _ in range(2):
            with pytest.raises(portconv.ConvShapeError, match="dout: got shape"):
                portconv.conv_backward(wrong, cache)
    wide = portconv.conv_backward(DOUT.astype("float64"), cache)
    assert [grad.dtype.name for grad in wide] == ["float32"] * 3
    strided = portconv.conv_backward(np.asfortranarray(DOUT), cache)
    for mine, theirs in zip(strided, portconv.conv_backward(DOUT, cache), strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("operand", ["dout", "x", "w"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_takes_the_long_way(operand, value):
    arrays = {"dout": DOUT, "x": X, "w": W}
    portconv.conv_backward(DOUT, portconv.conv_forward(X, W, B)[1])
    arrays[operand] = arrays[operand].copy()
    arrays[operand][0, 0, 1, 2] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        caches = [portconv.conv_forward(arrays["x"], arrays["w"], B, algorithm=name)[1] for name in ("auto", "direct")]
        for _ in range(2):
            found, expected = (portconv.conv_backward(arrays["dout"], cache) for cache in caches)
            for mine, theirs in zip(found, expected, strict=True):
                assert np.array_equal(mine, theirs, equal_nan=True)


def test_each_call_warns_as_the_first():
    _, cache = portconv.conv_forward(X, W, B)
    portconv.conv_backward(DOUT, cache)
    big = np.full_like(DOUT, 3e38)
    for _ in range(3):
        with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning, match="overflow encountered"):
            portconv.conv_backward(big, cache)
        with np.errstate(invalid="ignore", over="raise"), pytest.raises(FloatingPointError, match="overflow"):
            portconv.conv_backward(big, cache)


def test_no_array_is_kept_and_results_are_new():
    dout, x = DOUT.copy(), X.copy()
    out, cache = portconv.conv_forward(x, W, B)
    grads = [portconv.conv_backward(dout, cache) for _ in range(3)]
    arrays = [grad for found in grads for grad in found]
    assert not any(np.shares_memory(arrays[i], arrays[j]) for i in range(len(arrays)) for j in range(i))
    held = [weakref.ref(array) for array in (dout, x)]
    del dout, x, out, cache
    gc.collect()
    assert [each() for each in held] == [None, None]


def test_limits_hold_in_a_call_that_was_made_without():
    _, cache = portconv.conv_forward(X, W, B)
    grads = portconv.conv_backward(DOUT, cache)
    with portconv.workspace_limit(8), pytest.raises(portconv.ConvValueError, match="workspace_limit"):
        portconv.conv_backward(DOUT, cache)
    for threads in (1, 2, 3):
        with portconv.num_threads(threads):
            for mine, theirs in zip(portconv.conv_backward(DOUT, cache), grads, strict=True):
                assert np.array_equal(mine, theirs)


def test_only_gradients_of_one_step_are_remembered():
    for options in ({"algorithm": "gemm"}, {"padding": 1, "padding_mode": "reflect"}):
        out, cache = portconv.conv_forward(X, W, B, **options)
        KNOWN.clear()
        portconv.conv_backward(out, cache)
        assert not KNOWN
    wide, cache = portconv.conv_forward(X.astype("float64"), W, B)
    KNOWN.clear()
    portconv.conv_backward(wide, cache)
    assert not KNOWN


def test_the_gradient_of_a_bias_has_the_bias_s_dtype():
    _, cache = portconv.conv_forward(X, W, B.astype("float64"))
    for _ in range(2):
        grads = portconv.conv_backward(DOUT, cache)
        assert [grad.dtype.name for grad in grads] == ["float32", "float32", "float64"]
        assert np.array_equal(grads.db, DOUT.sum((0, 2, 3), dtype="float64"))
