import numpy as np
import pytest
from boxblur import blur, blur_gradient, box, energy, options, save, stretched

import portconv
from portconv.testing import assert_consistent, conv_grads_tolerance, sum_tolerance


def pixels(*shape, dtype="float32"):
    return np.random.default_rng(len(shape)).uniform(-1, 1, shape).astype(dtype)


CASES = {
    "narrow": (pixels(2, 3, 8, 9), 3),
    "wide": (pixels(1, 1, 12, 12, dtype="float64"), 8),
}


def blur_tolerance(images, width):
    return portconv.error_bound(images, box(images, width), **options(images))


def gradient_tolerance(dout, width):
    return conv_grads_tolerance(dout, dout, box(dout, width), **options(dout)).dx


def energy_tolerance(images, width):
    return sum_tolerance(images.shape[1] * images.shape[2] * images.shape[3], images.dtype, energy(images))


# The fixture `xp`: a namespace, and arrays wherever it puts them.
def test_a_flat_image_stays_flat(xp):
    images = xp.ones((1, 2, 6, 6), dtype=xp.float32)
    assert xp.all(blur(images, 4) == images)


# The fixture `portconv_target`: a library on each of its devices.
def test_a_blur_is_a_mean(portconv_target):
    images = portconv_target.asarray(CASES["narrow"][0])
    corner = portconv_target.to_numpy(blur(images))[0, 0, 0, 0]
    x = CASES["narrow"][0][0, 0].astype("float64")
    mean = (4 * x[0, 0] + 2 * x[0, 1] + 2 * x[1, 0] + x[1, 1]) / 9
    # The weights are rounded to float32 once, which is one rounding more.
    assert abs(corner - mean) <= sum_tolerance(9 + 1, "float32", 1.0)


# Both together, and `assert_consistent` within a derived tolerance.
def test_blurs_agree(xp, portconv_target):
    assert portconv_target.xp is xp
    assert_consistent(blur, CASES, ["numpy", portconv_target], tolerance=blur_tolerance)


def test_gradients_agree(portconv_target):
    assert_consistent(blur_gradient, CASES, ["numpy", portconv_target], tolerance=gradient_tolerance)


def test_energies_agree(portconv_target):
    assert_consistent(
        lambda images, width: energy(images), CASES, ["numpy", portconv_target], tolerance=energy_tolerance
    )


# To the bit, where the function promises as much.
@pytest.mark.parametrize("function", [blur, blur_gradient])
def test_same_bits(portconv_target, function):
    def reproducible(images, width):
        return function(images, width, precision="reproducible")

    assert_consistent(reproducible, CASES, ["numpy", portconv_target], bits=True)


# All that work here in one test; skipped where NumPy is alone.
def test_all_at_once():
    agreement = assert_consistent(blur, CASES, tolerance=blur_tolerance)
    assert agreement.units < 0.5


# A failure that is known of still runs, and has to happen.
@pytest.mark.xfail_backends(
    "array_api_strict", reason="the standard's arrays have no method min", raises=AttributeError
)
def test_stretched(portconv_target):
    found = portconv_target.to_numpy(stretched(portconv_target.asarray(CASES["narrow"][0])))
    assert found.min() == 0
    # A library may multiply by the reciprocal instead, which is two roundings of half an epsilon each.
    assert abs(found.max() - 1) <= np.finfo(found.dtype).eps


# What makes no sense elsewhere is not run there.
@pytest.mark.skip_backends("array_api_strict", "cupy", "dask", "jax", "torch", reason="files are written from the host")
def test_save(xp, tmp_path):
    save(tmp_path / "images.npy", xp.zeros((1, 1, 2, 2)))
    assert np.load(tmp_path / "images.npy").shape == (1, 1, 2, 2)
