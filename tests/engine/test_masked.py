"""`conv` of some cells alone: against loops over the cells that count, and normalised by the weights of these."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv import ConvShapeError, ConvTypeError

RNG = np.random.default_rng(0)
X = RNG.integers(-9, 10, (2, 4, 6, 5)).astype("float64")
W = RNG.integers(1, 4, (6, 2, 3, 2)).astype("float64")
B = RNG.integers(-9, 10, 6).astype("float64")
WHERE = RNG.random((2, 1, 6, 5)) < 0.5
OPTIONS = {"stride": (2, 1), "padding": ((1, 2), (1, 0)), "groups": 2}
SPOILED = np.where(WHERE, X, np.nan)


def looped(cells, counted, mode="constant", **padding):
    """Add up products and weights window by window."""
    cells, counted = (
        np.pad(
            array, ((0, 0), (0, 0), *OPTIONS["padding"]), mode=mode, **({"constant_values": value} if padding else {})
        )
        for array, value in ((cells, padding.get("value")), (counted, 1))
    )
    shape = portconv.conv_output_shape(X.shape, W.shape, **OPTIONS)
    sums, weights = np.zeros(shape), np.zeros(shape)
    for n, f, i, j in np.ndindex(*shape):
        window = n, slice(f // 3 * 2, f // 3 * 2 + 2), slice(2 * i, 2 * i + 3), slice(j, j + 2)
        sums[n, f, i, j] = np.sum(cells[window] * W[f])
        weights[n, f, i, j] = np.sum(counted[window] * W[f])
    return sums, weights


MODES = {
    "zeros": ({}, {}),
    "circular": ({"padding_mode": "circular"}, {"mode": "wrap"}),
    "constant": ({"padding_mode": "constant", "padding_value": 5}, {"value": 5}),
}


@pytest.mark.parametrize(("options", "padding"), MODES.values(), ids=MODES)
@pytest.mark.parametrize("last", [False, True])
def test_the_cells_that_count_are_added_up(target, options, padding, last):
    sums, weights = looped(np.where(WHERE, X, 0), np.broadcast_to(WHERE, X.shape).astype("float64"), **padding)
    layout = (lambda array: np.moveaxis(array, 1, -1)) if last else np.asarray
    x, where = target.array(layout(SPOILED)), target.array(layout(WHERE))
    w, b = target.array(W), target.array(B)
    options = {**OPTIONS, **options, "data_format": "channels_last" if last else "channels_first", "where": where}
    found = portconv.conv(x, w, b, **options)
    assert target.owns(found)
    assert np.array_equal(target.numpy(found), layout(sums + B[:, None, None]))
    with np.errstate(invalid="ignore"):
        truth = sums / weights + B[:, None, None]
    found = target.numpy(portconv.conv(x, w, b, **options, normalize=True))
    assert np.array_equal(found, layout(truth), equal_nan=True)


def test_the_error_of_a_normalised_convolution_keeps_to_its_bound():
    rng = np.random.default_rng(1)
    x, w, b = (rng.standard_normal(shape).astype("float32") for shape in (X.shape, W.shape, B.shape))
    w = np.abs(w)
    options = {**OPTIONS, "where": WHERE, "normalize": True}
    found, bound = portconv.conv(x, w, b, **options), portconv.error_bound(x, w, b, **options)
    exact = portconv.conv(x.astype("f8"), w.astype("f8"), b.astype("f8"), **options)
    known = np.isfinite(exact)
    # The error of float64 is below 2**-28 of that of float32.
    assert np.all(np.abs(found - exact)[known] <= bound[known] * (1 + 2**-20))
    assert np.all(np.isinf(bound[~known]))
    # A mean of 12 weights at most, each bound below 2 * 13 roundings of the largest number, and a bias.
    assert np.max(bound[known]) <= 2 * 13 * 2**-24 * 2 * (np.abs(x).max() + np.abs(b).max())


def test_all_cells_count_unless_a_mask_says_otherwise():
    ones = portconv.conv(np.ones((1, 1, 5)), np.array([[[1.0, 2.0, 3.0]]]), padding=1, normalize=True)
    assert np.array_equal(ones, np.ones((1, 1, 5)))


BAD = {
    "shape": ({"where": np.ones((3, 4, 6, 5), bool)}, ConvShapeError, "where: got shape (3, 4, 6, 5)"),
    "dtype": ({"where": np.ones((6, 5))}, ConvTypeError, "where: got dtype float64, expected bool"),
    "no array": ({"where": [True]}, ConvTypeError, "where: got list"),
    "normalize": ({"normalize": 1}, ConvTypeError, "normalize: got 1, expected a bool"),
}


@pytest.mark.parametrize(("options", "error", "words"), BAD.values(), ids=BAD)
def test_bad_masks_are_named(options, error, words):
    for function in (portconv.conv, portconv.error_bound):
        with pytest.raises(error) as caught:
            function(X, W, **OPTIONS, **options)
        assert words in str(caught.value)
