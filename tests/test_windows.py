"""unfold and fold: against NumPy's windows, against convolution, and each as the other's adjoint."""

from __future__ import annotations

import math

import numpy as np
import pytest

import portconv
from portconv import ConvShapeError, ConvTypeError, ConvValueError

# Shape of x, kernel_size, options, and the padding that they stand for.
CASES = {
    "1d": ((2, 3, 7), 3, {}, ((0, 0),)),
    "1d padded": ((2, 2, 5), (4,), {"padding": 3, "stride": 2}, ((3, 3),)),
    "1d dilated": ((1, 2, 9), 3, {"dilation": 3, "padding": ((1, 0),)}, ((1, 0),)),
    "1d same": ((2, 1, 6), 4, {"padding": "same"}, ((1, 2),)),
    "2d": ((2, 3, 5, 6), (2, 3), {"stride": (1, 2)}, ((0, 0), (0, 0))),
    "2d pairs": ((2, 2, 4, 5), 3, {"padding": ((1, 2), (0, 3)), "stride": 2}, ((1, 2), (0, 3))),
    "2d full": ((1, 2, 3, 4), (3, 2), {"padding": "full", "dilation": (1, 2)}, ((2, 2), (2, 2))),
    "2d beyond": ((1, 2, 2, 3), 2, {"padding": 4, "stride": 3}, ((4, 4), (4, 4))),
    "3d": ((1, 2, 3, 4, 5), (2, 1, 3), {"padding": (1, 0, 1)}, ((1, 1), (0, 0), (1, 1))),
    "no samples": ((0, 2, 5), 3, {}, ((0, 0),)),
    "many": ((9, 40, 31, 30), 3, {"padding": 1}, ((1, 1), (1, 1))),
}
every_case = pytest.mark.parametrize(("x_shape", "kernel", "options", "pads"), CASES.values(), ids=CASES)


def windows(x, kernel, options, pads):
    """NumPy's windows of the padded input, thinned out by stride and dilation."""
    dims = x.ndim - 2
    kernel, stride, dilation = (
        (value,) * dims if isinstance(value, int) else value
        for value in (kernel, options.get("stride", 1), options.get("dilation", 1))
    )
    extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    padded = np.pad(x, ((0, 0), (0, 0), *pads))
    view = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=tuple(range(2, x.ndim)))
    every = tuple(slice(None, None, step) for step in (*stride, *dilation))
    view = view[(slice(None), slice(None), *every)]
    order = (0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    out = math.prod(view.shape[2 : 2 + dims])
    return view.transpose(order).reshape(x.shape[0], x.shape[1] * math.prod(kernel), out)


@every_case
@pytest.mark.parametrize("dtype", ["float32", "int16", "complex64"])
def test_unfold_gives_numpys_windows(target, x_shape, kernel, options, pads, dtype):
    x = np.random.default_rng(0).integers(-99, 100, x_shape).astype(dtype)
    given = target.array(x)
    found = portconv.unfold(given, kernel, **options)
    assert target.owns(found)
    assert found.dtype == given.dtype
    assert np.array_equal(target.numpy(found), windows(x, kernel, options, pads))


@every_case
def test_fold_is_the_adjoint_of_unfold(target, x_shape, kernel, options, pads):
    # Entries up to 9 and fewer than 2**17 of them: sums of products below 2**24, exact in float32.
    rng = np.random.default_rng(1)
    x = rng.integers(-9, 10, x_shape).astype("float32")
    columns = windows(x, kernel, options, pads)
    y = (rng.integers(-9, 10, columns.shape) * (rng.random(columns.shape) < 2**17 / max(1, columns.size))).astype("f4")
    folded = portconv.fold(target.array(y), x_shape[2:], kernel, **options)
    assert target.owns(folded)
    assert tuple(folded.shape) == x_shape
    assert np.sum(columns * y, dtype="float64") == np.sum(x * target.numpy(folded), dtype="float64")


def test_columns_times_filters_are_the_convolution(target):
    rng = np.random.default_rng(2)
    x, w = (rng.integers(-9, 10, s).astype("float32") for s in ((2, 3, 7, 6), (4, 3, 3, 2)))
    options = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}
    columns = target.numpy(portconv.unfold(target.array(x), (3, 2), **options))
    out = portconv.conv(target.array(x), target.array(w), **options)
    assert np.array_equal((w.reshape(4, -1) @ columns).reshape(out.shape), target.numpy(out))


def test_halves_are_added_up_in_float32(target):
    if not target.backend.holds("float16", target.array(np.zeros(1), "float32")):
        pytest.skip(f"{target.backend.name} has no float16")
    # 2048 and nine ones are 2057 in float32, rounded once to 2056; in float16, 2048 + 1 is 2048 each time.
    columns = np.zeros((1, 10, 10), "float16")
    columns[0, range(10), range(9, -1, -1)] = [2048, *[1] * 9]
    folded = portconv.fold(target.array(columns), (19,), 10)
    assert folded.dtype == target.array(columns).dtype
    assert target.numpy(folded)[0, 0, 9] == 2056


X, COLUMNS = np.ones((2, 3, 5, 6)), np.ones((2, 27, 12))
BAD_UNFOLD = {
    "list": (([[1.0]], 3), {}, ConvTypeError, "x: got list, expected an array"),
    "flat": ((np.ones((3, 4)), 3), {}, ConvShapeError, r"x: got shape \(3, 4\), expected \(N, C, \*spatial\)"),
    "no channels": ((np.ones((2, 0, 5)), 3), {}, ConvShapeError, "x: got 0 channels"),
    "bool": ((X > 0, 3), {}, ConvTypeError, "x: got dtype bool, expected a floating-point, complex or integer"),
    "kernel zero": ((X, 0), {}, ConvValueError, "kernel_size: got 0, expected an int of at least 1"),
    "kernel float": ((X, 3.0), {}, ConvTypeError, "kernel_size: got 3.0, expected an int"),
    "kernel long": ((X, (3, 3, 3)), {}, ConvValueError, "kernel_size: got 3 entries"),
    "kernel large": ((X, (3, 7)), {}, ConvShapeError, "kernel_size: got a kernel of 7 in spatial dimension 1"),
    "stride": ((X, 3), {"stride": 0}, ConvValueError, "stride: got 0"),
    "padding": ((X, 3), {"padding": "most"}, ConvValueError, "padding: got 'most'"),
    "dilation": ((X, 3), {"dilation": (1, -1)}, ConvValueError, r"dilation\[1\]: got -1"),
    "enormous": ((X, 3), {"padding": 2**62}, ConvShapeError, "an output that can be addressed"),
    "large": ((X, 3), {"padding": 2**22}, ConvShapeError, r"x: got shape \(2, 3, 5, 6\), for which an array"),
}
BAD_FOLD = {
    "flat": ((COLUMNS[0], (5, 6), 3), {}, ConvShapeError, r"columns: got shape \(27, 12\), expected three dimensions"),
    "windows": ((COLUMNS, (5, 6), 2), {}, ConvShapeError, r"columns: got shape .*, and in the second a multiple of 4"),
    "count": ((COLUMNS, (5, 7), 3), {}, ConvShapeError, r"columns: got shape \(2, 27, 12\), expected \(2, 27, 15\)"),
    "size": ((COLUMNS, 5, 3), {}, ConvTypeError, "output_size: got 5, expected a tuple of ints"),
    "no size": ((COLUMNS, (), 3), {}, ConvShapeError, "output_size: got shape"),
    "size float": ((COLUMNS, (5, 6.0), 3), {}, ConvTypeError, r"output_size\[1\]: got 6.0"),
    "kernel": ((COLUMNS, (5, 6), None), {}, ConvTypeError, "kernel_size: got None"),
    "enormous": ((COLUMNS, (2**62, 6), 3), {"stride": 2**61}, ConvShapeError, "that can be addressed|columns: got"),
}


@pytest.mark.parametrize(("given", "options", "error", "words"), BAD_UNFOLD.values(), ids=BAD_UNFOLD)
def test_bad_unfold(given, options, error, words):
    with pytest.raises(error, match=words):
        portconv.unfold(*given, **options)


@pytest.mark.parametrize(("given", "options", "error", "words"), BAD_FOLD.values(), ids=BAD_FOLD)
def test_bad_fold(given, options, error, words):
    with pytest.raises(error, match=words):
        portconv.fold(*given, **options)
