"""The course's names, on the numbers of the course's own notebook."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv import ConvTypeError, ConvValueError, cs231n

PAIRS = [
    (cs231n.conv_forward_naive, cs231n.conv_backward_naive),
    (cs231n.conv_forward_fast, cs231n.conv_backward_fast),
]
both = pytest.mark.parametrize(("forward", "backward"), PAIRS, ids=["naive", "fast"])


@both
def test_the_notebook_s_forward_numbers(target, forward, backward):
    x = np.linspace(-0.1, 0.5, num=96).reshape(2, 3, 4, 4)
    w = np.linspace(-0.2, 0.3, num=144).reshape(3, 3, 4, 4)
    b = np.linspace(-0.1, 0.2, num=3)
    out, _ = forward(*map(target.array, (x, w, b)), {"stride": 2, "pad": 1})
    expected = [
        [
            [[-0.08759809, -0.10987781], [-0.18387192, -0.2109216]],
            [[0.21027089, 0.21661097], [0.22847626, 0.23004637]],
            [[0.50813986, 0.54309974], [0.64082444, 0.67101435]],
        ],
        [
            [[-0.98053589, -1.03143541], [-1.19128892, -1.24695841]],
            [[0.69108355, 0.66880383], [0.59480972, 0.56776003]],
            [[2.36270298, 2.36904306], [2.38090835, 2.38247847]],
        ],
    ]
    # The notebook prints eight decimals.
    assert np.max(np.abs(target.numpy(out) - expected)) <= 0.5e-8


@both
def test_backward_takes_the_tuple(target, forward, backward):
    rng = np.random.default_rng(231)
    operands = [rng.integers(-9, 10, s).astype("float64") for s in ((4, 3, 5, 5), (2, 3, 3, 3), (2,), (4, 2, 5, 5))]
    x, w, b, dout = map(target.array, operands)
    out, cache = forward(x, w, b, {"stride": 1, "pad": 1})
    assert len(cache) == 4
    assert cache[0] is x
    assert cache[3] == {"stride": 1, "pad": 1}
    _, own = portconv.conv_forward(x, w, b, padding=1)
    # Whole numbers: exact in any order.
    for mine, theirs in zip(backward(dout, cache), portconv.conv_backward(dout, own), strict=True):
        assert np.array_equal(target.numpy(mine), target.numpy(theirs))
    assert tuple(out.shape) == (4, 2, 5, 5)


@both
def test_the_cache_is_the_course_s_tuple_whoever_made_it(target, forward, backward):
    x, w, b, dout = (target.array(np.ones(shape)) for shape in ((2, 3, 6, 5), (2, 3, 3, 3), (2,), (2, 2, 6, 5)))
    conv_param = {"stride": 1, "pad": 1}
    expected = [target.numpy(grad) for grad in backward(dout, (x, w, b, conv_param))]
    for make, _ in PAIRS:
        cache = make(x, w, b, conv_param)[1]
        assert isinstance(cache, tuple)
        assert [one is other for one, other in zip(cache, (x, w, b, conv_param), strict=True)] == [True] * 4
        for grad, own in zip(backward(dout, cache), expected, strict=True):
            assert np.array_equal(target.numpy(grad), own)


@both
def test_an_integer_bias_is_taken_to_the_dtype_of_x(target, forward, backward):
    x, w = target.array(np.ones((1, 3, 4, 4))), target.array(np.zeros((2, 3, 3, 3)))
    out, cache = forward(x, w, target.array([0, 128]), {"stride": 1, "pad": 1})
    assert target.numpy(out)[0, 1].tolist() == [[128.0] * 4] * 4
    assert backward(out, cache)[2].dtype == x.dtype


@both
@pytest.mark.parametrize(
    ("conv_param", "error", "words"),
    [
        ({"stride": 1}, ConvValueError, r"conv_param: got keys \['stride'\], expected 'stride' and 'pad'"),
        ({}, ConvValueError, r"conv_param: got keys \[\], expected 'stride' and 'pad'"),
        (None, ConvTypeError, "conv_param: got NoneType, expected a dict"),
        ({"stride": 0, "pad": 0}, ConvValueError, r"conv_param\['stride'\]: got 0, expected an int of at least 1"),
        ({"stride": 1, "pad": 0.5}, ConvTypeError, r"conv_param\['pad'\]: got 0.5, expected an int"),
        ({"stride": 1, "pad": -1}, ConvValueError, r"conv_param\['pad'\]: got -1, expected an int of at least 0"),
        ({"stride": 1, "pad": "same"}, ConvTypeError, r"conv_param\['pad'\]: got 'same', expected an int"),
    ],
)
def test_bad_conv_param(forward, backward, conv_param, error, words):
    x, w, b = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)), np.zeros(1)
    with pytest.raises(error, match=words):
        forward(x, w, b, conv_param)
    with pytest.raises(error, match=words):
        backward(np.ones((1, 1, 2, 2)), (x, w, b, conv_param))


@both
def test_foreign_cache(forward, backward):
    with pytest.raises(ConvTypeError, match=r"cache: got NoneType, expected the tuple \(x, w, b, conv_param\)"):
        backward(np.ones((1, 1, 2, 2)), None)


@both
@pytest.mark.parametrize("name", ["x", "w", "b"])
@pytest.mark.parametrize("value", [None, [1.0]])
def test_what_is_no_array_is_named(forward, backward, name, value):
    arrays = {"x": np.ones((1, 1, 3, 3)), "w": np.ones((1, 1, 2, 2)), "b": np.zeros(1)} | {name: value}
    conv_param = {"stride": 1, "pad": 0}
    words = f"^{name}: got {type(value).__name__}, expected an array$"
    with pytest.raises(ConvTypeError, match=words):
        forward(**arrays, conv_param=conv_param)
    with pytest.raises(ConvTypeError, match=words):
        backward(np.ones((1, 1, 2, 2)), (*arrays.values(), conv_param))
