"""Gradients of filters for each sample: those of each sample alone, to the bit in whole numbers."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv import ConvShapeError, ConvTypeError

CASES = {
    "strided groups": ((3, 4, 7, 6), (6, 2, 3, 2), {"stride": 2, "padding": "same", "groups": 2}),
    "depthwise": ((2, 3, 8), (6, 1, 3), {"groups": 3, "padding": 1, "padding_mode": "reflect"}),
    "dilated": ((4, 2, 9), (3, 2, 3), {"dilation": 2}),
    "constant": ((2, 2, 5), (3, 2, 3), {"padding": 2, "padding_mode": "constant", "padding_value": 3}),
}


@pytest.mark.parametrize(("shape", "w_shape", "options"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("last", [False, True])
def test_each_sample_has_its_own_gradient(target, shape, w_shape, options, last):
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, shape).astype("float32")
    if last:
        x, options = np.moveaxis(x, 1, -1), {**options, "data_format": "channels_last"}
    out = portconv.conv(np.ascontiguousarray(x), np.ones(w_shape, "float32"), **options)
    dout = rng.integers(-9, 10, out.shape).astype("float32")
    found = portconv.conv_weight_grad(target.array(dout), target.array(x), w_shape, **options, per_sample=True)
    alone = [portconv.conv_weight_grad(dout[i : i + 1], x[i : i + 1], w_shape, **options) for i in range(shape[0])]
    assert target.owns(found)
    assert np.array_equal(target.numpy(found), np.stack(alone))


def test_reproducible_gradients_have_the_bits_of_each_sample_alone(target):
    rng = np.random.default_rng(1)
    x, dout = (rng.standard_normal((3, 2, 9)).astype("float32") for _ in range(2))
    options = {"padding": 1, "precision": "reproducible"}
    found = portconv.conv_weight_grad(target.array(dout), target.array(x), (2, 2, 3), **options, per_sample=True)
    alone = [portconv.conv_weight_grad(dout[i : i + 1], x[i : i + 1], (2, 2, 3), **options) for i in range(3)]
    assert target.numpy(found).tobytes() == np.stack(alone).tobytes()


def test_an_empty_batch_has_no_gradient():
    found = portconv.conv_weight_grad(np.ones((0, 3, 4)), np.ones((0, 2, 6)), (3, 2, 3), per_sample=True)
    assert found.shape == (0, 3, 2, 3)


def test_it_keeps_to_a_workspace_limit():
    rng = np.random.default_rng(2)
    x, dout = rng.integers(-9, 10, (6, 8, 20, 20)).astype("f4"), rng.integers(-9, 10, (6, 8, 18, 18)).astype("f4")
    whole = portconv.conv_weight_grad(dout, x, (8, 8, 3, 3), per_sample=True)
    with portconv.workspace_limit(1 << 14):
        assert np.array_equal(portconv.conv_weight_grad(dout, x, (8, 8, 3, 3), per_sample=True), whole)


def test_bad_arguments_are_named():
    with pytest.raises(ConvTypeError, match="per_sample: got 1, expected a bool"):
        portconv.conv_weight_grad(np.ones((2, 3, 4)), np.ones((2, 2, 6)), (3, 2, 3), per_sample=1)
    with pytest.raises(ConvShapeError, match=r"dout: got shape \(2, 3, 5\), expected \(2, 3, 4\)"):
        portconv.conv_weight_grad(np.ones((2, 3, 5)), np.ones((2, 2, 6)), (3, 2, 3), per_sample=True)
