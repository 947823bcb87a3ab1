"""Test the bound for a library that computes tiles, with one that does: F(4x4, 3x3) and F(2x2, 3x3) in float32."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import portconv
from portconv import backends
from portconv.algorithms.native_tiles import COEFFICIENTS
from portconv.backends import NativeConvolution
from portconv.spec.remembered import forget
from portconv.testing import conv_grads_tolerance

# Lavin and Gray, section 4: B^T, G and A^T of tiles of two and of four outputs.
TILES = {
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: (
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [
            [1 / 4, 0, 0],
            [-1 / 6] * 3,
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}


class Tiled(NativeConvolution):
    """Outputs and gradients in tiles of `size` outputs, of which the first begins `start` outputs before the first."""

    def __init__(self, size, start):
        self.size, self.start = size, start
        self.input, self.filter, self.output = (np.array(matrix, "float32") for matrix in TILES[size])

    def in_tiles(self, convolution, device):
        return convolution.is_tiled

    def tiles(self, x, convolution):
        """The cells of each tile (N, C, T, T, alpha, alpha), and how many tiles there are along each dimension."""
        counts = [-(-(n + self.start) // self.size) for n in convolution.out_shape[2:]]
        padded = np.zeros((*x.shape[:2], *(self.size * n + 2 for n in counts)), "float32")
        at = [lo + self.start for lo in convolution.before]
        whole = np.zeros(
            (*x.shape[:2], *(max(n, a + s) for n, a, s in zip(padded.shape[2:], at, x.shape[2:], strict=True))),
            "float32",
        )
        whole[:, :, at[0] : at[0] + x.shape[2], at[1] : at[1] + x.shape[3]] = x
        padded = whole[:, :, : padded.shape[2], : padded.shape[3]]
        windows = np.lib.stride_tricks.sliding_window_view(padded, (self.size + 2,) * 2, axis=(2, 3))
        return windows[:, :, :: self.size, :: self.size], counts

    def forward(self, x, w, b, convolution):
        cells, counts = self.tiles(x, convolution)
        places = self.input @ cells @ self.input.T
        filters = self.filter @ w @ self.filter.T
        sums = np.zeros((len(x), len(w), *places.shape[2:]), "float32")
        for channel in range(x.shape[1]):
            sums += places[:, channel, None] * filters[None, :, channel, None, None]
        out = self.output @ sums @ self.output.T
        out = np.moveaxis(out, 4, 3).reshape(len(x), len(w), counts[0] * self.size, counts[1] * self.size)
        ends = [slice(self.start, self.start + n) for n in convolution.out_shape[2:]]
        out = out[(..., *ends)]
        return out if b is None else out + b.reshape(-1, 1, 1)

    def input_grad(self, dout, w, convolution):
        flipped = np.flip(w.swapaxes(0, 1), axis=(2, 3))
        pads = tuple((2 - lo, 2 - hi) for lo, hi in zip(convolution.before, convolution.after, strict=True))
        mirrored = type(convolution)(
            dout.shape, flipped.shape, convolution.x_shape, (1, 1), (1, 1), *map(tuple, zip(*pads, strict=True)), 1
        )
        return self.forward(dout, flipped, None, mirrored)

    def weight_grad(self, dout, x, convolution):
        cells, counts = self.tiles(x, convolution)
        grads = np.zeros((*dout.shape[:2], *(n * self.size for n in counts)), "float32")
        grads[(..., *(slice(self.start, self.start + n) for n in dout.shape[2:]))] = dout
        grads = grads.reshape(*dout.shape[:2], counts[0], self.size, counts[1], self.size)
        grads = self.output.T @ np.moveaxis(grads, 4, 3) @ self.output
        places = self.input @ cells @ self.input.T
        sums = np.zeros((dout.shape[1], x.shape[1], self.size + 2, self.size + 2), "float32")
        for sample, row, column in itertools.product(range(len(x)), *map(range, counts)):
            sums += grads[sample, :, None, row, column] * places[sample, None, :, row, column]
        return self.filter.T @ sums @ self.filter


def test_the_coefficients_are_those_of_the_matrices():
    inputs, filters, outputs = (np.abs(np.array(matrix)) for matrix in TILES[4])
    own = np.array(COEFFICIENTS)
    assert np.array_equal(own, own[::-1, ::-1])
    for size, reach in ((4, 2), (2, 2)):
        inputs, filters, outputs = (np.abs(np.array(matrix)) for matrix in TILES[size])
        for i, tap, j in itertools.product(range(size), range(3), range(size + 2)):
            value = np.sum(outputs[i] * filters[:, tap] * inputs[:, j])
            if value:
                assert own[tap, j - i + reach] >= value * (1 - 2**-50)
    assert own.max() == pytest.approx(64 / 6)


@pytest.mark.parametrize("size", TILES)
@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("channels", [1, 4, 40])
def test_errors_of_tiles_are_within_the_bound_and_beyond_that_of_plain_sums(monkeypatch, size, start, channels):
    monkeypatch.setattr(backends.get("numpy"), "native_convolution", Tiled(size, start % size))
    forget()
    rng = np.random.default_rng(size + 10 * start + 100 * channels)
    # Numbers of very different sizes: a tile mixes them, and a plain sum does not.
    x, w, dout = (
        (rng.standard_normal(shape) * 2.0 ** rng.integers(-12, 13, shape)).astype("float32")
        for shape in ((2, channels, 11, 9), (3, channels, 3, 3), (2, 3, 11, 9))
    )
    options = {"padding": 1, "algorithm": "native"}
    out, cache = portconv.conv_forward(x, w, **options)
    bound = portconv.error_bound(x, w, **options)
    dx, dw, _ = portconv.conv_backward(dout, cache)
    bounds = (bound, *conv_grads_tolerance(dout, x, w, **options)[:2])
    plain = portconv.error_bound(x, w, padding=1, algorithm="gemm")
    monkeypatch.undo()
    forget()
    wide = [array.astype("float64") for array in (x, w)]
    exact, cache = portconv.conv_forward(*wide, padding=1, algorithm="direct")
    truths = (exact, *portconv.conv_backward(dout.astype("float64"), cache)[:2])
    for result, truth, own in zip((out, dx, dw), truths, bounds, strict=True):
        assert np.all(np.abs(result - truth) <= own)
    # Of one channel, the bound of plain sums does not hold.
    assert channels > 1 or np.any(np.abs(out - exact) > plain)
