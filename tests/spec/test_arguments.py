"""Every bad argument: the typed error, its words, and nothing allocated before it."""

from __future__ import annotations

import re

import numpy as np
import pytest

import portconv
from portconv import BackendError, ConvShapeError, ConvTypeError, ConvValueError, backends
from portconv.engine.call import convolution
from portconv.spec.options import Options

X, W, B = np.ones((2, 4, 8, 8)), np.ones((6, 4, 3, 3)), np.ones(6)

# What is wrong, the error, and words that its message must have: the argument, what it got and what was expected.
CONSTANT = {"padding": 1, "padding_mode": "constant"}
WHOLE = {"x": X.astype("int8"), "w": W.astype("int64"), "b": None}
BAD = {
    "x a list": ({"x": [[1.0]]}, ConvTypeError, ("x: got list", "expected an array")),
    "w a float": ({"w": 1.0}, ConvTypeError, ("w: got float", "expected an array")),
    "x None": ({"x": None}, ConvTypeError, ("x: got NoneType", "expected an array")),
    "x integer": (
        {"x": np.ones((2, 4, 8, 8), "int64")},
        ConvTypeError,
        (
            "x: got dtype int64, expected a floating-point or complex one, as w's float64 is; ",
            'x.astype("float64") conv',
        ),
    ),
    "b integer": (
        {"b": np.ones(6, "int64")},
        ConvTypeError,
        ("b: got dtype int64", "expected a floating-point or complex one, as x's float64 is"),
    ),
    "b bool": ({"b": np.ones(6, bool)}, ConvTypeError, ("b: got dtype bool", "a floating-point, complex or integer")),
    "x bool": ({"x": X > 0}, ConvTypeError, ("x: got dtype bool", "a floating-point, complex or integer one")),
    "w object": ({"w": W.astype(object)}, ConvTypeError, ("w: got dtype object", "a floating-point, complex or int")),
    "x dates": ({"x": X.astype("datetime64[s]")}, ConvTypeError, ("x: got dtype datetime64", "a floating-point, comp")),
    "64 bits of both signs": (
        {"x": X.astype("int64"), "w": W.astype("uint64"), "b": None},
        ConvTypeError,
        ("w: got dtypes x's int64, w's uint64", "expected ones with a common dtype of their kind, only float64"),
    ),
    "x flat": ({"x": np.ones((8, 8))}, ConvShapeError, ("x: got 2 dimensions in shape (8, 8)", "expected 4")),
    "x deep": ({"x": np.ones((1, 2, 4, 8, 8))}, ConvShapeError, ("x: got 5 dimensions", "expected 4")),
    "w flat": ({"w": np.ones((6, 4))}, ConvShapeError, ("w: got shape (6, 4)", "*kernel")),
    "w empty": ({"w": np.ones((6, 4, 0, 3))}, ConvShapeError, ("w: got shape (6, 4, 0, 3)", "at least one")),
    "no filters": ({"w": np.ones((0, 4, 3, 3))}, ConvShapeError, ("w: got shape (0, 4, 3, 3)", "at least one")),
    "no channels": ({"x": np.ones((2, 0, 8, 8))}, ConvShapeError, ("x: got 0 channels", "at least 1")),
    "channels": ({"w": np.ones((6, 3, 3, 3))}, ConvShapeError, ("w: got shape (6, 3, 3, 3)", "expected 4 in its")),
    "group channels": ({"groups": 2}, ConvShapeError, ("8 input channels in 2 group(s)", "expected 2 in its")),
    "groups": ({"groups": 3}, ConvValueError, ("groups: got 3", "a divisor of x's 4 channels and of w's 6")),
    "groups zero": ({"groups": 0}, ConvValueError, ("groups: got 0", "an int of at least 1")),
    "groups float": ({"groups": 1.0}, ConvTypeError, ("groups: got 1.0", "expected an int")),
    "b shape": ({"b": np.ones(5)}, ConvShapeError, ("b: got shape (5,)", "expected (6,)")),
    "b column": ({"b": np.ones((6, 1))}, ConvShapeError, ("b: got shape (6, 1)", "expected (6,)")),
    "stride zero": ({"stride": 0}, ConvValueError, ("stride: got 0", "an int of at least 1")),
    "stride negative": ({"stride": (1, -2)}, ConvValueError, ("stride[1]: got -2", "an int of at least 1")),
    "stride bool": ({"stride": True}, ConvTypeError, ("stride: got True", "expected an int")),
    "stride float": ({"stride": 2.0}, ConvTypeError, ("stride: got 2.0", "expected an int")),
    "stride None": ({"stride": None}, ConvTypeError, ("stride: got None", "expected an int")),
    "stride text": ({"stride": "2"}, ConvTypeError, ("stride: got '2'", "expected an int")),
    "stride long": ({"stride": (1, 1, 1)}, ConvValueError, ("stride: got 3 entries", "expected 2")),
    "stride array": ({"stride": np.ones(2, int)}, ConvTypeError, ("stride: got array([1, 1])", "expected an int")),
    "dilation zero": ({"dilation": (0, 1)}, ConvValueError, ("dilation[0]: got 0", "an int of at least 1")),
    "dilation None": ({"dilation": (None, 1)}, ConvTypeError, ("dilation[0]: got None", "expected an int")),
    "padding negative": ({"padding": -1}, ConvValueError, ("padding: got -1", "an int of at least 0")),
    "padding long": ({"padding": (1, 1, 1)}, ConvValueError, ("padding: got 3 entries", "expected 2")),
    "padding float": ({"padding": (1, 1.5)}, ConvTypeError, ("padding[1]: got 1.5", "expected an int")),
    "padding pairs": ({"padding": ((1, 1),)}, ConvValueError, ("padding: got 1 pairs", "expected 2")),
    "padding pair long": ({"padding": ((1, 1, 1), (0, 0))}, ConvValueError, ("padding[0]: got (1, 1, 1)", "a pair")),
    "padding pair negative": ({"padding": ((1, -1), (0, 0))}, ConvValueError, ("padding[0][1]: got -1", "at least 0")),
    "padding mixed": ({"padding": ((1, 1), 2)}, ConvTypeError, ("padding[1]: got 2", "a pair (before, after)")),
    "padding text": ({"padding": "SAME"}, ConvValueError, ("padding: got 'SAME'", "'valid' or 'full' or 'same'")),
    "padding bool": ({"padding": False}, ConvTypeError, ("padding: got False", "expected an int")),
    "kernel": ({"w": np.ones((6, 4, 9, 3))}, ConvShapeError, ("w: got a kernel of 9 in spatial dimension 0", "the 8")),
    "dilated kernel": ({"dilation": 4}, ConvShapeError, ("9 cells with its dilation of 4", "expected at most the 8")),
    "too large": ({"padding": 2**62}, ConvShapeError, ("x: got shape (2, 4, 8, 8)", "an output that can be addressed")),
    "mode": (
        {"padding_mode": "mirror"},
        ConvValueError,
        ("padding_mode: got 'mirror'", "expected 'zeros' or 'constant' or 'reflect'"),
    ),
    "constant of no mode": (
        {"padding_value": 3, "padding_mode": "reflect"},
        ConvValueError,
        ("padding_value: got 3", "expected none for padding_mode 'reflect', or 'constant'"),
    ),
    "constant text": ({"padding_value": "3", **CONSTANT}, ConvTypeError, ("padding_value: got '3'", "a number")),
    "constant None": ({"padding_value": None}, ConvTypeError, ("padding_value: got None", "a number")),
    "constant bool": ({"padding_value": True, **CONSTANT}, ConvTypeError, ("padding_value: got True", "a number")),
    "constant array": (
        {"padding_value": np.ones(1), **CONSTANT},
        ConvTypeError,
        ("padding_value: got array([1.])", "a number"),
    ),
    "constant complex": (
        {"padding_value": 2j, **CONSTANT},
        ConvTypeError,
        ("padding_value: got 2j", "a real number, for an input of float64"),
    ),
    "constant beyond float64": (
        {"padding_value": 10**400, **CONSTANT},
        ConvValueError,
        ("padding_value: got 1000", "a number within the range of float64"),
    ),
    "constant beyond float16": (
        {"x": X.astype("float16"), "padding_value": 65520, **CONSTANT},
        ConvValueError,
        ("padding_value: got 65520", "a number within the range of float16"),
    ),
    "constant beyond int8": (
        {**WHOLE, "padding_value": -129, **CONSTANT},
        ConvValueError,
        ("padding_value: got -129", "expected one from -128 to 127, those of int8"),
    ),
    "constant in between": (
        {**WHOLE, "padding_value": 0.5, **CONSTANT},
        ConvTypeError,
        ("padding_value: got 0.5", "an integer, for an input of int8"),
    ),
    "format": (
        {"data_format": "NHWC"},
        ConvValueError,
        ("data_format: got 'NHWC'", "'channels_first' or 'channels_last'"),
    ),
    "precision": ({"precision": "double"}, ConvValueError, ("precision: got 'double'", "'standard' or 'fast'")),
    "precision None": ({"precision": None}, ConvTypeError, ("precision: got None", "'standard' or 'fast'")),
    "algorithm": (
        {"algorithm": "magic"},
        ConvValueError,
        (
            "algorithm: got 'magic'",
            "'auto' or 'compiled' or 'winograd' or 'fft' or 'depthwise' or 'native' or 'gemm' or "
            "'tap_loop' or 'direct'",
        ),
    ),
}


@pytest.fixture
def nothing_allocated(monkeypatch):
    def refused(*arguments, **options):
        raise AssertionError("an array was allocated or written before the arguments were checked")

    for name in ("empty", "zeros", "write", "add", "product", "fill", "astype"):
        monkeypatch.setattr(backends.get("numpy"), name, refused)


def assert_message(caught, words):
    message = str(caught.value)
    assert "{" not in message
    assert "}" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(("change", "error", "words"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("function", [portconv.conv, portconv.conv_forward])
@pytest.mark.usefixtures("nothing_allocated")
def test_bad_argument(function, change, error, words):
    with pytest.raises(error) as caught:
        function(**{"x": X, "w": W, "b": B, **change})
    assert isinstance(caught.value, portconv.PortconvError)
    assert_message(caught, words)


SHAPES_ALONE = {
    name: case
    for name, case in BAD.items()
    if not set(case[0]) & {"x", "w", "b", "padding_mode", "padding_value", "precision"}
}


@pytest.mark.parametrize(("change", "error", "words"), SHAPES_ALONE.values(), ids=SHAPES_ALONE)
@pytest.mark.usefixtures("nothing_allocated")
def test_bad_option_of_the_gradients(change, error, words):
    dout = np.ones((2, 6, 6, 6))
    for call in (
        lambda: portconv.conv_input_grad(dout, W, X.shape, **change),
        lambda: portconv.conv_weight_grad(dout, X, W.shape, **change),
    ):
        with pytest.raises(error) as caught:
            call()
        assert_message(caught, [re.sub(r"^[xw]: ", "", word) for word in words])


@pytest.mark.usefixtures("nothing_allocated")
def test_wrong_dout_and_shapes():
    cache = convolution(X, W, None, Options())
    with pytest.raises(ConvShapeError) as caught:
        portconv.conv_backward(np.ones((2, 6, 6, 5)), cache)
    assert_message(caught, ["dout: got shape (2, 6, 6, 5), expected (2, 6, 6, 6)"])
    with pytest.raises(ConvShapeError) as caught:
        portconv.conv_input_grad(np.ones((2, 6, 6, 6)), W, (2, 4, 8, 9))
    assert_message(caught, ["dout: got shape (2, 6, 6, 6), expected (2, 6, 6, 7)"])
    with pytest.raises(ConvShapeError) as caught:
        portconv.conv_weight_grad(np.ones((2, 6, 6, 6)), X, (6, 4, 3))
    assert_message(caught, ["x: got 4 dimensions in shape (2, 4, 8, 8), expected 3"])
    for bad in ([2.0, 4, 8, 8], None, "2488", 3):
        with pytest.raises(ConvTypeError, match="x_shape"):
            portconv.conv_input_grad(np.ones((2, 6, 6, 6)), W, bad)
    with pytest.raises(ConvShapeError, match=r"w_shape: got \(6, 4, -3, 3\), expected no negative size"):
        portconv.conv_weight_grad(np.ones((2, 6, 6, 6)), X, (6, 4, -3, 3))


@pytest.mark.parametrize("cache", [None, (1, 2), {"x": X}, np.ones(3)])
def test_foreign_cache(cache):
    with pytest.raises(ConvTypeError) as caught:
        portconv.conv_backward(np.ones((2, 6, 6, 6)), cache)
    assert_message(caught, [f"cache: got {type(cache).__name__}", "expected the cache that conv_forward returned"])


WIDE = np.broadcast_to(np.float32(1), (1, 1, 2**60))
LINE, TAPS, TWO = np.ones((1, 1, 8), "float32"), np.ones((1, 1, 3), "float32"), np.ones((1, 1, 2), "float32")
ENORMOUS = {
    "stride 1 over 2**60 cells": (lambda: portconv.conv(WIDE, TAPS), "an output that can be addressed"),
    "padding of 2**40": (lambda: portconv.conv(LINE, TAPS, padding=2**40), "shape (1, 1, 2199023255558)"),
    "padding of 2**62": (lambda: portconv.conv(LINE, TAPS, padding=2**62), "an output that can be addressed"),
    "padded in memory": (
        lambda: portconv.conv(LINE, TAPS, padding=2**40, stride=2**39, padding_mode="circular"),
        "shape (1, 1, 2199023255560) and 8796093022240 bytes",
    ),
    "samples": (lambda: portconv.conv(np.broadcast_to(LINE, (2**40, 1, 8)), TAPS), "shape (1099511627776, 1, 6)"),
    "x_shape": (
        lambda: portconv.conv_input_grad(TWO, TAPS, (1, 1, 2**40), stride=2**40 - 3),
        "x_shape: got shape (1, 1, 1099511627776), for which an array of shape (1, 1, 1099511627776)",
    ),
    "w_shape": (
        lambda: portconv.conv_weight_grad(np.ones((1, 1, 9), "float32"), LINE, (1, 1, 2**40), padding=2**39),
        "w_shape: got shape (1, 1, 1099511627776)",
    ),
    "dilation": (
        lambda: portconv.conv(LINE, TAPS, padding="full", dilation=2**50),
        "(1, 1, 2251799813685256) and 9007199254741024 bytes",
    ),
    "transposed": (lambda: portconv.conv_transpose(LINE, TAPS, stride=2**61), "an output that can be addressed"),
    "transposed, in memory": (lambda: portconv.conv_transpose(LINE, TAPS, stride=2**40), "shape (1, 1, 76965813944"),
    "unfold": (lambda: portconv.unfold(WIDE, 3), "an output that can be addressed"),
    "fold": (
        lambda: portconv.fold(np.ones((1, 3, 2)), (2**62,), 3, stride=2**62 - 3),
        "output_size: got shape (4611686018427387904,)",
    ),
    "from shapes": (lambda: portconv.conv_output_shape((1, 1, 2**62), (1, 1, 3)), "an output that can be addressed"),
}


@pytest.mark.parametrize(("call", "words"), ENORMOUS.values(), ids=ENORMOUS)
@pytest.mark.usefixtures("nothing_allocated")
def test_what_no_memory_holds_is_refused(call, words):
    with pytest.raises(ConvShapeError) as caught:
        call()
    assert_message(caught, [words])


def test_large_numbers_that_ask_for_little_are_served():
    # The windows lie 2**39 cells apart in 2**41 cells of padding, of which none is made.
    assert portconv.conv(LINE, TAPS, padding=2**40, stride=2**39).tolist() == [[[0.0, 0.0, 3.0, 0.0, 0.0]]]
    far = {"stride": 2**40, "dilation": 2**40, "padding": 2**41}
    assert portconv.conv(LINE, TAPS, **far).tolist() == [[[1.0, 1.0, 1.0]]]
    assert portconv.conv_input_grad(TAPS, TAPS, LINE.shape, **far).tolist() == [[[3.0, *[0.0] * 7]]]
    for algorithm in ("auto", "direct"):
        assert portconv.conv(WIDE, TAPS, stride=2**58, algorithm=algorithm).tolist() == [[[3.0] * 4]]
    assert portconv.conv(LINE, TAPS, padding="same", dilation=2**50).tolist() == [[[1.0] * 8]]


@pytest.mark.parametrize("algorithm", ["auto", "direct"])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_an_empty_batch_takes_no_time_however_large_its_output_is(algorithm, mode):
    nothing, options = LINE[:0], {"padding": 2**40, "padding_mode": mode, "algorithm": algorithm}
    out, cache = portconv.conv_forward(nothing, TAPS, **options)
    assert out.shape == (0, 1, 2**41 + 6)
    dx, dw, _ = portconv.conv_backward(out, cache)
    assert dx.shape == nothing.shape
    assert not np.any(dw)


def test_integers_of_any_kind_are_integers():
    expected = portconv.conv(X, W, stride=2, padding=1)
    assert np.array_equal(portconv.conv(X, W, stride=np.int64(2), padding=[np.uint8(1), 1]), expected)
    assert np.array_equal(portconv.conv(X, W, stride=[2, 2], padding=[[1, 1], (1, 1)]), expected)


def test_two_libraries(target):
    if target.backend.name == "numpy":
        pytest.skip("needs a library besides NumPy")
    with pytest.raises(ConvTypeError) as caught:
        portconv.conv(X, target.array(W))
    assert_message(caught, [f"w: got an array of {target.backend.name}, expected one of numpy, as x is", "asarray"])
    out, cache = portconv.conv_forward(target.array(X), target.array(W))
    with pytest.raises(ConvTypeError, match=f"dout: got an array of numpy, expected one of {target.backend.name}"):
        portconv.conv_backward(np.ones(tuple(out.shape)), cache)


def test_two_devices(target):
    devices = [device for device in target.backend.devices() if device != target.device]
    if not devices:
        pytest.skip(f"{target.backend.name} has one device here")
    elsewhere = target.backend.asarray(W, device=devices[0])
    with pytest.raises(BackendError) as caught:
        portconv.conv(target.array(X), elsewhere)
    assert_message(caught, [f"w: got an array on device {devices[0]}", f"expected one on {target.device}, as x is"])


def test_options_are_remembered_only_where_equal_ones_have_equal_types():
    assert Options((1, 2), ((0, 1), (2, 3)), groups=1).plain
    for stride in (True, 1.0, [1], (1, True), (1, 1.0), ((1, 0), (1, True)), np.int64(1), None):
        assert not Options(stride).plain
    assert portconv.conv(X, W, padding=((1, 1), (1, 1))).shape == portconv.conv(X, W, padding=1).shape
    with pytest.raises(ConvTypeError):
        portconv.conv(X, W, padding=((1, 1), (1, True)))


def test_a_number_of_any_kind_is_a_padding_value():
    with_value = {"padding": 2, "padding_mode": "constant"}
    for array, value in ((X, 2.5), (X.astype("complex64"), 2.5 - 1j), ((10 * X).astype("int16"), 3)):
        w = W.astype(array.dtype)
        padded = np.pad(array, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=np.asarray(value).astype(array.dtype))
        expected = portconv.conv(padded, w, precision="reproducible")
        for given in (
            value,
            np.asarray(value)[()],
            np.complex64(value) if array.dtype.kind == "c" else np.float32(value),
        ):
            out = portconv.conv(array, w, **with_value, padding_value=given, precision="reproducible")
            assert np.array_equal(out, expected)
    zeros = portconv.conv(X, W, padding=2)
    assert np.array_equal(portconv.conv(X, W, **with_value), zeros)
    assert np.array_equal(portconv.conv(X, W, **with_value, padding_value=-0.0), zeros)
    assert np.array_equal(portconv.conv(X, W, padding=2, padding_value=0.0), zeros)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("precision", ["standard", "reproducible"])
def test_a_padding_that_is_not_finite_reaches_the_windows_that_read_it(value, precision):
    x, w = np.ones((1, 1, 5), "float32"), np.full((1, 1, 3), 2, "float32")
    options = {"padding": ((1, 0),), "padding_mode": "constant", "padding_value": value, "precision": precision}
    assert np.array_equal(portconv.conv(x, w, **options), np.array([[[value, 6, 6, 6]]]), equal_nan=True)
    assert np.isinf(portconv.error_bound(x, w, **options)).tolist() == [[[True, False, False, False]]]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"padding": "full"}, ConvValueError, "padding: got 'full', expected 'valid' or 'same' or 'causal'"),
        ({"padding_mode": "reflect"}, ConvValueError, "padding_mode: got 'reflect', expected 'zeros' or 'circular'"),
        (
            {"padding": "same", "stride": 2, "output_padding": 1},
            ConvValueError,
            "output_padding: got 1, expected 0 for padding 'same'",
        ),
        (
            {"padding_mode": "circular", "dilation": 3, "output_padding": 1},
            ConvValueError,
            "output_padding: got 1, expected less than stride 1 in spatial dimension 0",
        ),
    ],
)
@pytest.mark.usefixtures("nothing_allocated")
def test_bad_padding_of_a_transposed_convolution(change, error, words):
    with pytest.raises(error) as caught:
        portconv.conv_transpose(X, np.ones((4, 6, 3, 3)), **change)
    assert str(caught.value) == words
