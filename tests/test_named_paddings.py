"""Paddings that have a name, and outputs that wrap around: against formulas, loops, adjoints and Keras's shapes."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest

import portconv

# Size, kernel, stride and dilation of one dimension: windows that overlap, touch and lie apart, odd and even.
LINES = [
    line for line in itertools.product((1, 4, 5), (1, 2, 3, 4), (1, 2, 3, 5), (1, 2)) if line[2] == 1 or line[3] == 1
]
FEW = (LINES[9], LINES[30])
"""Enough where each shape is compiled: the kernel longer than its stride, and shorter."""
LAYERS = [((5, 4), (3, 2), (2, 1), (1, 1)), ((3, 6), (4, 3), (3, 2), (1, 1)), ((4, 5), (2, 3), (1, 1), (2, 3))]
"""Sizes, kernels, strides and dilations of two dimensions."""


def extent(kernel, dilation):
    return dilation * (kernel - 1) + 1


def lines_of(target):
    return {"numpy": LINES, "jax": FEW}.get(target.backend.name, LINES[::7])


def spread(x, w, stride, dilation, first, out):
    """The outputs from cell `first` on of a transposed convolution of one channel and dimension, of which `out` remain.

    The dictionary has every output that a window reaches, whether it remains or not.
    """
    reached = dict.fromkeys(range(first, first + out), 0)
    for i, cell in enumerate(x):
        for k, tap in enumerate(w):
            reached[i * stride + k * dilation] = reached.get(i * stride + k * dilation, 0) + cell * tap
    return np.array([reached[cell] for cell in range(first, first + out)]), reached


@pytest.mark.parametrize("name", ["valid", "same", "causal"])
def test_a_transposed_convolution_of_one_dimension(target, name):
    rng = np.random.default_rng(0)
    for size, kernel, stride, dilation in lines_of(target):
        x, w = rng.integers(-3, 4, size), rng.integers(-3, 4, kernel)
        reach = extent(kernel, dilation)
        # TensorFlow's: conv2d_transpose is the gradient of the convolution whose input has that size.
        out = (size - 1) * stride + max(reach, stride) if name == "valid" else size * stride
        first = max(reach - stride, 0) // 2 if name == "same" else 0
        expected, _ = spread(x, w, stride, dilation, first, out)
        arrays = (target.array(array[None, None], "float32") for array in (x, w))
        found = portconv.conv_transpose(*arrays, stride=stride, dilation=dilation, padding=name)
        assert np.array_equal(target.numpy(found)[0, 0], expected), (size, kernel, stride, dilation)


@pytest.mark.parametrize("layer", LAYERS)
def test_same_is_the_adjoint_of_same(target, layer):
    if target.backend.name == "jax" and layer is not LAYERS[1]:
        pytest.skip("JAX takes the same steps, and compiles long")
    size, kernel, stride, dilation = layer
    rng = np.random.default_rng(1)
    x, w = rng.integers(-3, 4, (2, 4, *size)), rng.integers(-3, 4, (4, 3, *kernel))
    y = rng.integers(-3, 4, (2, 3, *(n * s for n, s in zip(size, stride, strict=True))))
    options = {"stride": stride, "dilation": dilation, "padding": "same"}
    x, w, y = (target.array(array, "float32") for array in (x, w, y))
    for mode in ("zeros", "circular"):
        found = portconv.conv_transpose(x, w, **options, padding_mode=mode)
        other = portconv.conv(y, w, **options, padding_mode=mode)
        # Whole numbers of a few digits: both inner products are exact.
        left, right = ((target.numpy(a) * target.numpy(b)).sum() for a, b in ((found, y), (other, x)))
        assert left == right


@pytest.mark.parametrize("padding", ["valid", "same", "causal", 1, ((0, 9),)])
def test_what_falls_outside_wraps_around(target, padding):
    rng = np.random.default_rng(2)
    options = {"padding": padding, "padding_mode": "circular"}
    lines = ((5, 3, 2, 1), (4, 2, 3, 1), (6, 4, 1, 2), (5, 4, 2, 1))
    for size, kernel, stride, dilation in lines[:1] if target.backend.name == "jax" else lines:
        x, w = rng.integers(-3, 4, size), rng.integers(-3, 4, kernel)
        arrays = [target.array(array[None, None], "float32") for array in (x, w)]
        steps = {"stride": stride, "dilation": dilation}
        reach = extent(kernel, dilation)
        first = 1 if padding == 1 else max(reach - stride, 0) // 2 if padding == "same" else 0
        off = {1: 2, ((0, 9),): 9}.get(padding, 0)
        out = (size - 1) * stride + max(reach, stride) if padding == "valid" else size * stride
        out = (size - 1) * stride + reach - off if off else out
        if out < 1:
            continue
        _, reached = spread(x, w, stride, dilation, first, out)
        expected = np.zeros(out)
        for cell, value in reached.items():
            expected[(cell - first) % out] += value
        for precision in ("standard", "reproducible"):
            if precision == "reproducible" and target.backend.name == "jax":
                continue
            found = portconv.conv_transpose(*arrays, **steps, **options, precision=precision)
            assert np.array_equal(target.numpy(found)[0, 0], expected), (size, kernel, stride, dilation)
        out, cache = portconv.conv_transpose_forward(*arrays, **steps, **options)
        # <dout, T(x, w)> is linear in each operand: with dx and dw of dout = out, it is <x, dx> and <w, dw>.
        dx, dw, _ = portconv.conv_transpose_backward(out, cache)
        square = (target.numpy(out) ** 2).sum()
        assert square == (target.numpy(dx) * x).sum() == (target.numpy(dw) * w).sum()


def test_output_padding_wraps_around_an_output_that_is_longer(target):
    x, w = target.array([[[1.0, 2.0]]], "float32"), target.array([[[1.0, 10.0, 100.0]]], "float32")
    options = {"stride": 2, "padding": 1, "output_padding": 1, "padding_mode": "circular"}
    # 1 10 102 20 200 from cell -1 on, in an output of 4 cells.
    assert target.numpy(portconv.conv_transpose(x, w, **options)).tolist() == [[[10.0, 102.0, 20.0, 201.0]]]
    # 1 10 102 20 200 0 from cell 0 on: nothing falls outside.
    found = portconv.conv_transpose(x, w, **{**options, "padding": 0})
    assert target.numpy(found).tolist() == [[[1.0, 10.0, 102.0, 20.0, 200.0, 0.0]]]


@pytest.mark.parametrize("layer", LAYERS)
def test_no_output_depends_on_a_later_input(target, layer):
    if target.backend.name == "jax":
        pytest.skip("JAX takes the same steps, and compiles long")
    size, kernel, stride, dilation = layer
    rng = np.random.default_rng(3)
    steps = {"stride": stride, "dilation": dilation, "padding": "causal"}
    x, w, v = (rng.integers(1, 4, shape) for shape in ((1, 2, *size), (3, 2, *kernel), (2, 3, *kernel)))
    for function, filters in ((portconv.conv, w), (portconv.conv_transpose, v)):
        transposed = function is portconv.conv_transpose
        out = target.numpy(function(target.array(x, "float32"), target.array(filters, "float32"), **steps))
        lengths = zip(size, stride, strict=True)
        assert out.shape[2:] == tuple(n * s if transposed else -(-n // s) for n, s in lengths)
        for dim, (n, s) in enumerate(zip(size, stride, strict=True)):
            for cell in range(n):
                changed = x.copy()
                np.moveaxis(changed, 2 + dim, 0)[cell:] += 5
                found = function(target.array(changed, "float32"), target.array(filters, "float32"), **steps)
                moved = np.moveaxis(target.numpy(found) != out, 2 + dim, 0).any(axis=(1, 2, 3))
                # Filters are positive, so that the first output which may see the cell does.
                first = cell * s if transposed else -(-cell // s)
                assert moved.tolist() == [o >= first for o in range(out.shape[2 + dim])]


def test_causal_is_padding_before_alone():
    x, w = np.arange(14.0).reshape(1, 2, 7), np.arange(12.0).reshape(2, 2, 3)
    found = portconv.conv(x, w, padding="causal", dilation=2, stride=2)
    assert np.array_equal(found, portconv.conv(x, w, padding=((4, 0),), dilation=2, stride=2))
    assert portconv.conv_output_shape(x.shape, w.shape, padding="causal", dilation=2, stride=2) == found.shape
    assert portconv.unfold(x, 3, padding="causal").shape == (1, 6, 7)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_shapes_and_numbers_are_keras():
    if "KERAS_BACKEND" not in os.environ:
        pytest.skip("KERAS_BACKEND does not say what Keras computes with")
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    rng = np.random.default_rng(4)
    for size, kernel, stride, dilation in LINES:
        x, w = (
            rng.integers(-3, 4, (2, size, 2)).astype("float32"),
            rng.integers(-3, 4, (kernel, 3, 2)).astype("float32"),
        )
        for padding in ("valid", "same"):
            theirs = keras.ops.conv_transpose(x, w, stride, padding, dilation_rate=dilation)
            options = {"stride": stride, "dilation": dilation, "padding": padding, "data_format": "channels_last"}
            ours = portconv.conv_transpose(x, w.transpose(2, 1, 0), **options)
            assert ours.shape == tuple(theirs.shape), (size, kernel, stride, dilation, padding)
            assert np.array_equal(ours, keras.ops.convert_to_numpy(theirs)), (size, kernel, stride, dilation, padding)
        layer = keras.layers.Conv1D(3, kernel, strides=stride, padding="causal", dilation_rate=dilation, use_bias=False)
        layer.build(x.shape)
        layer.set_weights([w.transpose(0, 2, 1)])
        options["padding"] = "causal"
        ours = portconv.conv(x, w.transpose(1, 2, 0), **options)
        assert np.array_equal(ours, keras.ops.convert_to_numpy(layer(x))), (size, kernel, stride, dilation)
