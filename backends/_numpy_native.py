"""The convolution that NumPy has of its own: `numpy.correlate`, which slides one line along another."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ._native import Convolution, NativeConvolution, NativeWork
from ._terms import Array

SLOWNESS = 16
"""So many times as long as in a product of matrices takes an operation of `numpy.correlate`."""
SHORT, FEW_INTEGERS = 1, 8
"""Rows of no more taps are faster tap by tap: those of floating point, and those of integers."""
BLOCK = 1 << 14
"""So many places are computed tap by tap before the next ones, while they are in the cache."""


class _Lines(NamedTuple):
    """A padded input as one line, with all samples one after the other.

    Attributes
    ----------
    padded : tuple of int
        (N, *sizes), with the padding.
    filled : tuple of slice, or None
        Where in that the input goes, and what of it; None if it has no padding.
    length : int
        The places from the first output to the last, in the line; each is where the first tap of its window is.
    offsets : tuple of int
        How far from there each row of taps begins.
    """

    padded: tuple[int, ...]
    filled: tuple[tuple[slice, ...], tuple[slice, ...]] | None
    length: int
    offsets: tuple[int, ...]


class NumPyConvolution(NativeConvolution):
    """`numpy.correlate` of the padded input, as one line, with each row of the kernel's taps.

    Places where a window runs over the end of a row are computed too, and dropped.
    """

    integers = True
    at_once = True
    mirrors = True

    def objection(self, convolution: Convolution) -> str | None:
        lone = convolution.x_shape[1] == 1 == convolution.w_shape[0]
        if lone and max(convolution.stride) == 1 == convolution.dilation[-1]:
            return None
        return "one channel and one filter, at stride 1, with no gaps between the taps of a row"

    def work(self, kind: str, convolution: Convolution, bits: int, device: str) -> NativeWork:
        lines, rows = _lines(convolution), math.prod(convolution.w_shape[2:-1])
        cells = math.prod(lines.padded)
        taps = math.prod(convolution.w_shape)
        if convolution.w_shape[-1] <= SHORT:
            blocks = -(-cells // BLOCK)
            return NativeWork(0, 2 * cells * (1 + 2 * taps), 2 + blocks * taps, 3 * cells)
        return NativeWork(SLOWNESS * 2 * cells * taps, 2 * cells * (1 + rows), 2 + 2 * rows, 3 * cells)

    def forward(self, x: Array, w: Array, b: Array | None, convolution: Convolution) -> Array | None:
        lines, out_shape = _lines(convolution), convolution.out_shape
        total = _slid(_line(_wide(x), lines), _wide(w).reshape(len(lines.offsets), -1), lines)
        if lines.length != math.prod(out_shape):
            total = _dropped(total, lines, out_shape)
        out = total.reshape(out_shape)
        return out if b is None else out + _wide(b)

    def weight_grad(self, dout: Array, x: Array, convolution: Convolution) -> Array | None:
        lines, (width, *_) = _lines(convolution), convolution.w_shape[:1:-1]
        line, grads = _line(_wide(x), lines), np.zeros(lines.padded, _wide(dout).dtype)
        grads[_outputs(convolution.out_shape)] = dout[:, 0]
        grads = grads.reshape(-1)[: lines.length]
        rows = [
            np.correlate(line[offset : offset + lines.length + width - 1], grads, "valid") for offset in lines.offsets
        ]
        grad = np.stack(rows).reshape(convolution.w_shape)
        return grad if _finite(grad) else None


@lru_cache(maxsize=256)
def _lines(convolution: Convolution) -> _Lines:
    samples, _, *sizes = convolution.x_shape
    sides = list(zip(sizes, convolution.before, convolution.after, strict=True))
    padded = (samples, *(size + lo + hi for size, lo, hi in sides))
    into = (slice(None), *(slice(max(0, lo), max(0, lo) + size + min(0, lo) + min(0, hi)) for size, lo, hi in sides))
    of = (slice(None), *(slice(max(0, -lo), size - max(0, -hi)) for size, lo, hi in sides))
    steps = [math.prod(padded[dim + 1 :]) for dim in range(len(padded))]
    last = sum((count - 1) * step for count, step in zip(_counts(convolution.out_shape), steps, strict=True))
    rows = itertools.product(*map(range, convolution.w_shape[2:-1]))
    taps = [d * step for d, step in zip(convolution.dilation, steps[1:], strict=True)]
    offsets = tuple(sum(i * step for i, step in zip(row, taps, strict=False)) for row in rows)
    is_padded = any((*convolution.before, *convolution.after))
    return _Lines(padded, (into, of) if is_padded else None, last + 1, offsets)


def _counts(out_shape: tuple[int, ...]) -> tuple[int, ...]:
    return (out_shape[0], *out_shape[2:])


def _outputs(out_shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(count) for count in _counts(out_shape))


def _line(x: Array, lines: _Lines) -> Array:
    """Return the padded input as one line."""
    if lines.filled is None:
        return x.reshape(-1)
    into, of = lines.filled
    line = np.zeros(lines.padded, x.dtype)
    line[into] = x[:, 0][of]
    return line.reshape(-1)


def _slid(line: Array, taps: Array, lines: _Lines) -> Array:
    """Slide each row of taps along the line, from its own offset; return the sum at each place."""
    length, width = lines.length, taps.shape[1]
    if width > (SHORT if taps.dtype.kind == "f" else FEW_INTEGERS):
        rows = zip(lines.offsets, taps, strict=True)
        values = (np.correlate(line[offset : offset + length + width - 1], row, "valid") for offset, row in rows)
        total = next(values)
        for value in values:
            total += value
        return total
    total, products = np.empty(length, taps.dtype), np.empty(min(length, BLOCK), taps.dtype)
    places = [offset + i for offset in lines.offsets for i in range(width)]
    weights = taps.reshape(-1)
    for start in range(0, length, BLOCK):
        part = total[start : start + BLOCK]
        count = len(part)
        np.multiply(line[places[0] + start :][:count], weights[0], out=part)
        for place, weight in zip(places[1:], weights[1:], strict=True):
            np.add(part, np.multiply(line[place + start :][:count], weight, out=products[:count]), out=part)
    return total


def _dropped(total: Array, lines: _Lines, out_shape: tuple[int, ...]) -> Array:
    """Return the outputs without the places between them."""
    wide = np.empty(math.prod(lines.padded), total.dtype)
    wide[: len(total)] = total
    return wide.reshape(lines.padded)[_outputs(out_shape)]


def _wide(array: Array) -> Array:
    """Return an array in the dtype that sums are made in: NumPy adds up float16 in float16, and not by BLAS."""
    return array if array.dtype.kind in "iu" or array.dtype.itemsize > 2 else array.astype(np.float32)


def _finite(array: Array) -> bool:
    return array.dtype.kind in "iu" or bool(np.isfinite(array).all())
