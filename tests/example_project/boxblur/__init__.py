"""Box blur of images (N, C, H, W), and its gradient, on whichever array library the images are of."""

import numpy as np
from array_api_compat import array_namespace, device

import portconv


def box(images, width):
    """The filters of a blur: one for each channel, with equal weights."""
    xp = array_namespace(images)
    shape = (images.shape[1], 1, width, width)
    return xp.full(shape, 1 / width**2, dtype=images.dtype, device=device(images))


def options(images):
    """How portconv has to convolve."""
    return {"padding": "same", "padding_mode": "replicate", "groups": images.shape[1]}


def blur(images, width=3, precision="standard"):
    """Give each cell the mean of the cells around it; beyond an edge they are those at the edge."""
    return portconv.conv(images, box(images, width), **options(images), precision=precision)


def blur_gradient(dout, width=3, precision="standard"):
    """Compute the gradient of the images from that of their blur, which has the same shape."""
    return portconv.conv_input_grad(dout, box(dout, width), dout.shape, **options(dout), precision=precision)


def energy(images):
    """The sum of squares of each image."""
    return array_namespace(images).sum(images * images, axis=(1, 2, 3))


def stretched(images):
    """Spread the values over 0 to 1; by methods, which most libraries' arrays have and the standard has not."""
    return (images - images.min()) / (images.max() - images.min())


def save(path, images):
    """Write images to a file, from the host."""
    np.save(path, images)
