"""NumPy's own convolution, `numpy.correlate`: exact on whole numbers, in all dtypes, and chosen for lone lines."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv import ConvValueError

# Shapes of the input and of the kernel, dilation, and padding before and after.
CASES = {
    "a line": ((1, 1, 60), (17,), (1,), ((0, 0),)),
    "a padded line": ((1, 1, 60), (17,), (1,), ((16, 3),)),
    "samples": ((3, 1, 20), (4,), (1,), ((1, 2),)),
    "a column of taps": ((2, 1, 9, 7), (5, 1), (2, 1), ((2, 4), (0, 1))),
    "a plane": ((2, 1, 9, 7), (3, 12), (2, 1), ((1, 0), (6, 7))),
    "a volume": ((1, 1, 4, 5, 6), (2, 3, 2), (3, 1, 1), ((1, 1), (0, 2), (3, 0))),
    "longer than a block": ((1, 1, 40, 900), (3, 1), (1, 1), ((1, 1), (0, 0))),
}


@pytest.mark.parametrize(("shape", "kernel", "dilation", "padding"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint16", "int64"])
def test_its_sums_of_whole_numbers_are_exact(shape, kernel, dilation, padding, dtype):
    """Sums of up to 36 products of at most 4 are exact in float16; those of gradients of filters round there once."""
    rng = np.random.default_rng(0)
    x, w, b = (rng.integers(0, 3, size).astype(dtype) for size in (shape, (1, 1, *kernel), 1))
    options = {"dilation": dilation, "padding": padding}
    out = portconv.conv(x, w, b, **options, algorithm="native")
    assert np.array_equal(out, portconv.conv(x, w, b, **options, algorithm="direct"))
    assert np.array_equal(out, portconv.conv(x, w, b, **options, algorithm="native"))  # the second call is looked up
    dout = rng.integers(0, 3, out.shape).astype(dtype)
    for gradient, other, size in ((portconv.conv_input_grad, w, shape), (portconv.conv_weight_grad, x, w.shape)):
        found, truth = (gradient(dout, other, size, **options, algorithm=name) for name in ("native", "direct"))
        assert found.dtype == truth.dtype == dtype
        assert np.array_equal(found, truth)


@pytest.mark.usefixtures("portable")
def test_auto_takes_it_for_lone_lines_of_integers():
    assert portconv.explain(np.ones((1, 1, 1000), int), np.ones((1, 1, 50), int)).algorithm == "native"
    assert portconv.explain(np.ones((1, 2, 1000), int), np.ones((1, 2, 50), int)).algorithm != "native"


def test_what_it_does_not_serve_it_says():
    for shape, options in (((2, 1, 3), {}), ((1, 1, 3), {"stride": 2}), ((1, 1, 3), {"dilation": 2})):
        with pytest.raises(ConvValueError, match="one channel and one filter, at stride 1, with no gaps"):
            portconv.conv(np.ones((1, 1, 9)), np.ones(shape), **options, algorithm="native")


@pytest.mark.filterwarnings("ignore:invalid value")
def test_numbers_that_are_not_finite_stay_in_their_windows():
    x, w = np.ones((1, 1, 4)), np.array([[[1.0, np.inf, 1.0]]])
    for options in ({"padding": 2}, {}):
        results = []
        for algorithm in ("native", "direct"):
            out, cache = portconv.conv_forward(x, w, **options, algorithm=algorithm)
            results.append((out, *portconv.conv_backward(np.where(out > 9, 1.0, out), cache)[:2]))
        assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(*results, strict=True))
    x[0, 0, 1] = np.nan
    out = portconv.conv(x, np.ones((1, 1, 2)), padding=1, algorithm="native")
    assert np.array_equal(out, [[[1.0, np.nan, np.nan, 2.0, 1.0]]], equal_nan=True)
