"""`portconv.signal` against sums of shifted signals in NumPy, its filters against formulas, its errors in words."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from portconv import ConvShapeError, ConvTypeError, ConvValueError, backends, signal


def full(x, kernel):
    """Add up the signal, shifted to each cell of the kernel and multiplied by it."""
    out = np.zeros([n + k - 1 for n, k in zip(x.shape, kernel.shape, strict=True)], np.result_type(x, kernel))
    for at in np.ndindex(*kernel.shape):
        out[tuple(slice(i, i + n) for i, n in zip(at, x.shape, strict=True))] += x * kernel[at]
    return out


def part(out, x, kernel, mode):
    """Cut out what a mode keeps: SciPy's "same" is centred, with the odd cell after."""
    sizes = zip(x.shape, kernel.shape, strict=True)
    if mode == "same":
        return out[tuple(slice((k - 1) // 2, (k - 1) // 2 + n) for n, k in sizes)]
    return out[tuple(slice(min(n, k) - 1, max(n, k)) for n, k in sizes)] if mode == "valid" else out


def drawn(shape, dtype, seed=0):
    """Whole numbers of up to 9, whose sums here are exact in every dtype of 32 bits."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-9, 10, shape)
    return (values + 1j * rng.integers(-9, 10, shape)).astype(dtype) if "complex" in dtype else values.astype(dtype)


SHAPES = {
    "a line": ((9,), (4,)),
    "a kernel longer than the line": ((3,), (8,)),
    "a picture": ((6, 5), (3, 2)),
    "a kernel larger than the picture": ((2, 3), (4, 5)),
    "a volume": ((4, 3, 5), (2, 3, 1)),
    "one cell": ((1,), (1,)),
}
every_shape = pytest.mark.parametrize(("shape", "kernel_shape"), SHAPES.values(), ids=SHAPES)


@every_shape
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("dtype", ["float32", "int16", "complex64"])
def test_convolve_adds_up_shifted_signals(target, shape, kernel_shape, mode, dtype):
    x, kernel = drawn(shape, dtype), drawn(kernel_shape, dtype, 1)
    found = signal.convolve(target.array(x), target.array(kernel), mode)
    truth = part(full(x, kernel), x, kernel, mode)
    assert target.owns(found)
    assert target.numpy(found).dtype == truth.dtype
    assert np.array_equal(target.numpy(found), truth)


@every_shape
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_correlate_flips_and_conjugates(target, shape, kernel_shape, mode):
    x, kernel = drawn(shape, "complex64"), drawn(kernel_shape, "complex64", 1)
    found = signal.correlate(target.array(x), target.array(kernel), mode)
    assert np.array_equal(target.numpy(found), part(full(x, np.conj(np.flip(kernel))), x, kernel, mode))


def test_a_signal_and_a_kernel_on_any_library(target):
    x, kernel = drawn((3, 7, 2, 6), "float32"), drawn((1, 3, 2, 1), "float32", 1)
    found = signal.convolve(target.array(x), target.array(kernel), "same", axes=(1,))
    for i, j, k in np.ndindex(3, 2, 6):
        line, own = x[i, :, j, k], kernel[0, :, j, 0]
        assert np.array_equal(target.numpy(found)[i, :, j, k], part(full(line, own), line, own, "same"))


BATCHES = {
    "samples before and behind": ((3, 7, 2), (4,), 1),
    "samples all around a plane": ((2, 5, 3, 4, 2), (2, 3), (1, 3)),
    "a kernel for each": ((3, 6), (3, 4), -1),
    "several kernels": ((1, 6), (5, 4), 1),
    "all of these": ((2, 3, 1, 6, 2), (1, 3, 4, 3, 1), 3),
    "the longer is the kernel": ((2, 3, 2), (2, 7, 1), 1),
    "no sample": ((0, 6), (3,), 1),
}


@pytest.mark.parametrize(("shape", "kernel_shape", "axes"), BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("mode", ["full", "valid"])
def test_axes_that_are_not_convolved_are_broadcast(target, shape, kernel_shape, axes, mode):
    x, kernel = drawn(shape, "float32"), drawn(kernel_shape, "float32", 1)
    found = target.numpy(signal.convolve(target.array(x), target.array(kernel), mode, axes=axes))
    convolved = {axis % x.ndim for axis in ((axes,) if isinstance(axes, int) else axes)}
    if kernel.ndim < x.ndim:
        kernel = np.expand_dims(kernel, tuple(set(range(x.ndim)) - convolved))
    wide = np.broadcast_shapes(
        *([1 if i in convolved else n for i, n in enumerate(s)] for s in (x.shape, kernel.shape))
    )
    for at in np.ndindex(*wide):
        own = [
            array[tuple(slice(None) if i in convolved else (j if array.shape[i] > 1 else 0) for i, j in enumerate(at))]
            for array in (x, kernel)
        ]
        index = tuple(slice(None) if i in convolved else j for i, j in enumerate(at))
        assert np.array_equal(found[index], part(full(*own), *own, mode))
    assert tuple(n for i, n in enumerate(found.shape) if i not in convolved) == tuple(
        n for i, n in enumerate(wide) if i not in convolved
    )


NUMPYS = {"reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "circular": "wrap"}


@pytest.mark.parametrize("boundary", [*NUMPYS, "constant"])
def test_a_boundary_is_numpys_padding(target, boundary):
    x, kernel = drawn((5, 4), "float32"), drawn((3, 6), "float32", 1)
    more = {"padding_value": -3} if boundary == "constant" else {}
    padding = {"mode": NUMPYS[boundary]} if boundary in NUMPYS else {"mode": "constant", "constant_values": -3}
    for mode, pads in (("full", ((2, 2), (5, 5))), ("same", ((1, 1), (3, 2)))):
        found = signal.convolve(target.array(x), target.array(kernel), mode, boundary=boundary, **more)
        padded = np.pad(x, pads, **padding)
        assert np.array_equal(target.numpy(found), part(full(padded, kernel), padded, kernel, "valid"))


def test_integers_beside_floating_point_become_what_the_library_promotes_both_to(target):
    x, kernel = drawn((6,), "int32"), drawn((3,), "float64", 1)
    found = signal.convolve(target.array(x), target.array(kernel))
    assert target.backend.dtype_name(found.dtype) == "float64"
    assert np.array_equal(target.numpy(found), full(x, kernel))
    mask = signal.convolve(target.array(x > 0), target.array(kernel))
    assert np.array_equal(target.numpy(mask), full((x > 0).astype("float64"), kernel))


def test_two_numbers_are_multiplied(target):
    found = signal.convolve(target.array(3.0), target.array(4.0))
    assert tuple(found.shape) == ()
    assert float(target.numpy(found)) == 12.0


@pytest.mark.parametrize("boundary", ["zeros", "circular", "constant"])
def test_cells_that_do_not_count_are_absent(target, boundary):
    """A mean over the cells that count is exact here: a quotient of whole numbers, rounded once."""
    x, kernel = drawn((7, 6), "float64"), np.abs(drawn((3, 3), "float64", 1)) + 1
    where = np.random.default_rng(2).random((7, 6)) < 0.6
    where[:4, :4] = False  # a window in which nothing counts
    x[~where] = np.nan
    more = {"padding_value": 2} if boundary == "constant" else {}
    pads = {"zeros": {}, "circular": {"mode": "wrap"}}
    padded, counted = (
        np.pad(array, 1, **pads.get(boundary, {"constant_values": value}))
        for array, value in ((np.where(where, x, 0), 2), (where.astype("float64"), 1))
    )
    sums, weights = (part(full(array, kernel), array, kernel, "valid") for array in (padded, counted))
    given = target.array(x), target.array(kernel), "same"
    options = {"boundary": boundary, "where": target.array(where), **more}
    assert np.array_equal(target.numpy(signal.convolve(*given, **options)), sums)
    with np.errstate(invalid="ignore"):
        means = sums / weights
    found = target.numpy(signal.convolve(*given, **options, normalize=True))
    assert np.array_equal(found, means, equal_nan=True)
    assert np.isnan(found[1, 1])
    assert np.isfinite(found).any()
    # No sum or weight has an error, and a quotient has that of one rounding.
    bound = target.numpy(signal.error_bound(*given, **options, normalize=True))
    for value, limit, over, under in zip(found.flat, bound.flat, sums.flat, weights.flat, strict=True):
        assert math.isinf(limit) if under == 0 else abs(Fraction(value) - Fraction(over) / Fraction(under)) <= limit


@pytest.mark.parametrize("precision", ["standard", "reproducible"])
def test_the_error_keeps_to_its_bound_on_any_library(target, precision):
    rng = np.random.default_rng(3)
    x, kernel = rng.standard_normal((40, 3)).astype("float32"), rng.standard_normal((9, 3)).astype("float32")
    given = target.array(x), target.array(kernel), "same"
    found, bound = (
        target.numpy(function(*given, axes=0, precision=precision))
        for function in (signal.convolve, signal.error_bound)
    )
    lines = zip(x.T.astype("f8"), kernel.T.astype("f8"), strict=True)
    truth = np.stack([part(full(*line), *line, "same") for line in lines], axis=1)
    # float64 rounds each of 9 products and sums: its error is below 2**-48 of the bound's magnitudes.
    assert np.all(np.abs(found - truth) <= bound * (1 + 2**-20))
    assert np.max(bound) < 10 * 2**-24 * 9 * np.abs(x).max() * np.abs(kernel).max()


def test_reproducible_signals_have_the_bits_of_numpy(target):
    rng = np.random.default_rng(4)
    x, kernel = rng.standard_normal((30,)).astype("float32"), rng.standard_normal((7,)).astype("float32")
    found = signal.correlate(target.array(x), target.array(kernel), precision="reproducible")
    truth = signal.correlate(x, kernel, precision="reproducible")
    assert target.numpy(found).tobytes() == truth.tobytes()


def test_separable_kernels_are_their_outer_product(target):
    x, kernels = drawn((6, 5, 4), "float32"), [drawn((n,), "float32", n) for n in (3, 2)]
    found = signal.convolve_separable(target.array(x), [target.array(k) for k in kernels], axes=(2, 0))
    kernel = np.multiply.outer(kernels[1], kernels[0])[:, None]
    assert np.array_equal(target.numpy(found), part(full(x, kernel), x, kernel, "same"))


@pytest.mark.parametrize("boundary", ["symmetric", "constant"])
def test_the_error_of_separable_kernels_keeps_to_its_bound(target, boundary):
    rng = np.random.default_rng(5)
    x, *kernels = (rng.standard_normal(shape).astype("float32") for shape in ((20, 30), (5,), (9,)))
    more = {"boundary": boundary, "padding_value": 2.5 if boundary == "constant" else 0}
    given = target.array(x), [target.array(kernel) for kernel in kernels], "same"
    found, bound = (
        target.numpy(function(*given, **more)) for function in (signal.convolve_separable, signal.error_bound)
    )
    exact = signal.convolve_separable(x.astype("f8"), [kernel.astype("f8") for kernel in kernels], "same", **more)
    # The error of float64 is below 2**-28 of that of float32.
    assert np.all(np.abs(found - exact) <= bound * (1 + 2**-20))
    largest = np.abs(kernels[0]).sum() * np.abs(kernels[1]).sum() * max(np.abs(x).max(), 2.5)
    assert np.max(bound) <= 1.1 * (5 + 9) * 2**-24 * largest


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_gaussian_has_the_weights_of_its_formula(target, order):
    sigma, radius = 1.5, 6  # truncate=4 ends at int(4 * 1.5 + 0.5)
    t = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * t**2 / sigma**2)
    weights /= weights.sum()
    weights *= [1, -t / sigma**2, t**2 / sigma**4 - 1 / sigma**2][order]
    x = np.zeros((2, 4 * radius + 1))
    x[1, 2 * radius] = 1
    found = target.numpy(signal.gaussian_filter(target.array(x), (0, sigma), order=order))
    # Both sides round each weight a few times.
    assert np.allclose(found[1, radius : 3 * radius + 1], weights, rtol=16 * 2.0**-53, atol=16 * 2.0**-53)
    assert np.count_nonzero(found[0]) == 0


def test_a_gaussian_of_integers_is_of_floating_point(target):
    found = signal.gaussian_filter(target.array(np.full((5, 5), 7)), 1.0)
    # Weights add up to 1 within their roundings, along each of two axes.
    assert np.allclose(target.numpy(found), 7.0, rtol=2 * 16 * 2.0**-53, atol=0)


def test_a_gaussian_of_no_width_is_a_copy():
    x = np.arange(6)
    for given, sigma, axes in ((x, 0, None), (x.reshape(2, 3), (0, 0.0), None), (x.reshape(2, 3), np.zeros(1), 1)):
        found = signal.gaussian_filter(given, sigma, axes=axes)
        assert found.dtype == "float64"
        assert np.array_equal(found, given)
    floats = np.arange(6.0)
    assert not np.shares_memory(signal.gaussian_filter(floats, 0), floats)
    with pytest.raises(ConvTypeError, match="x: got dtype object"):
        signal.gaussian_filter(floats.astype(object), 0)


def test_arrays_without_cells_beside_the_convolved_axes():
    for shape, kernel_shape, axes, expected in (
        ((5, 0), (3,), 0, (7, 0)),
        ((0, 5), (0, 3), 1, (0, 7)),
        ((4, 0, 5), (3,), 2, (4, 0, 7)),
    ):
        assert signal.convolve(np.ones(shape), np.ones(kernel_shape), axes=axes).shape == expected


LINE, PICTURE, TAPS = np.ones(5), np.ones((4, 5)), np.ones(3)
BAD = {
    "a mode": (lambda: signal.convolve(LINE, TAPS, "middle"), ConvValueError, "mode: got 'middle'"),
    "a boundary": (lambda: signal.convolve(LINE, TAPS, boundary="wrap"), ConvValueError, "boundary: got 'wrap'"),
    "an axis": (lambda: signal.convolve(PICTURE, TAPS, axes=2), ConvValueError, "axes: got 2, expected axes of x"),
    "an axis twice": (lambda: signal.convolve(PICTURE, PICTURE, axes=(0, -2)), ConvValueError, "each axis once"),
    "no axis": (lambda: signal.convolve(PICTURE, PICTURE, axes=()), ConvValueError, "at least one axis"),
    "half an axis": (lambda: signal.convolve(PICTURE, TAPS, axes=0.5), ConvTypeError, "axes: got 0.5"),
    "dimensions": (lambda: signal.convolve(PICTURE, TAPS), ConvShapeError, "kernel: got 1 dimensions in shape (3,)"),
    "no taps": (lambda: signal.convolve(LINE, TAPS[:0]), ConvShapeError, "kernel: got shape (0,)"),
    "no cells": (lambda: signal.convolve(LINE[:0], TAPS), ConvShapeError, "x: got shape (0,)"),
    "a batch": (lambda: signal.convolve(PICTURE, np.ones((3, 2)), axes=1), ConvShapeError, "whose axis 0"),
    "neither inside": (
        lambda: signal.convolve(PICTURE, np.ones((5, 2)), "valid"),
        ConvShapeError,
        "kernel: got shape (5, 2)",
    ),
    "a value": (
        lambda: signal.convolve(LINE, TAPS, padding_value=1),
        ConvValueError,
        "padding_value: got 1, expected none",
    ),
    "a list": (lambda: signal.convolve(LINE, [1.0, 2.0]), ConvTypeError, "kernel: got list"),
    "a mask's shape": (
        lambda: signal.convolve(LINE, TAPS, where=np.ones(4, bool)),
        ConvShapeError,
        "where: got shape (4,), expected x's (5,)",
    ),
    "a mask's dtype": (lambda: signal.convolve(LINE, TAPS, where=LINE), ConvTypeError, "where: got dtype float64"),
    "a mean of integers": (
        lambda: signal.convolve(np.ones(5, int), np.ones(3, int), normalize=True),
        ConvTypeError,
        "normalize: got True for x of dtype int64",
    ),
    "kernels": (lambda: signal.convolve_separable(PICTURE, [TAPS]), ConvValueError, "kernels: got 1, expected 2"),
    "a plane among them": (
        lambda: signal.convolve_separable(PICTURE, [TAPS, PICTURE]),
        ConvShapeError,
        "kernels[1]: got shape (4, 5)",
    ),
    "sigma": (lambda: signal.gaussian_filter(LINE, -1), ConvValueError, "sigma: got -1"),
    "sigmas": (lambda: signal.gaussian_filter(LINE, (1, 2)), ConvValueError, "sigma: got 2 entries, expected 1"),
    "a sigma without end": (lambda: signal.gaussian_filter(LINE, 1e300), ConvValueError, "sigma: got 1e+300"),
    "no sigma": (lambda: signal.gaussian_filter(LINE, "wide"), ConvTypeError, "sigma: got 'wide'"),
    "an order": (lambda: signal.gaussian_filter(LINE, 1, order=-1), ConvValueError, "order: got -1"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)


def test_arrays_of_two_libraries_are_refused():
    other = backends.get("array_api_strict") if backends.find("array_api_strict").fault is None else None
    if other is None:
        pytest.skip("array-api-strict is not installed")
    with pytest.raises(ConvTypeError, match="kernel: got an array of array_api_strict, expected one of numpy"):
        signal.convolve(LINE, other.asarray(TAPS))
