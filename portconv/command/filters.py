"""The filters of ``portconv run``: three banks with names, and users' own filters from a file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .group import refuse

Kernels = NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""The shares of red, green and blue in luminance: ITU-R Recommendation BT.601."""


@dataclass(frozen=True, eq=False)
class Bank:
    """Filters for a photograph, and the titles of their maps.

    Attributes
    ----------
    name : str
        The name that the user asked for.
    titles : tuple of str
        One per filter.
    weights : array, shape (F, 1, kh, kw) or (F, 3, kh, kw)
        Filters with one channel apply to the photograph's luminance, those with three to its red, green and blue.
    """

    name: str
    titles: tuple[str, ...]
    weights: Kernels

    @property
    def on_luminance(self) -> bool:
        return len(self.weights[0]) == 1

    def over(self, channels: int) -> Kernels:
        """Return the weights for a photograph with 1 or 3 channels; in a grey one red, green and blue are equal."""
        if self.weights.shape[1] == channels:
            return self.weights
        if channels == 1:
            merged: Kernels = self.weights.sum(axis=1, keepdims=True)
            return merged
        return np.multiply(self.weights, LUMA[:, None, None], dtype=np.float32)


def bank(name: str) -> Bank:
    """Return the bank that `--filters` names; refuse a name that is neither a bank nor a usable file."""
    if name in NAMED:
        titles, weights = NAMED[name]()
        return Bank(name, titles, weights)
    path = Path(name)
    if path.suffix != ".npy" and not path.exists():
        refuse(f"--filters: got {name!r}, expected {', '.join(NAMED)} or a .npy file")
    return _from_file(path)


def edges() -> tuple[tuple[str, ...], Kernels]:
    """Return filters for luminance, its slope in four directions (Sobel and Feldman's operator) and its Laplacian."""
    across = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
    down = [[-1, -2, -1], [0, 0, 0], [1, 2, 1]]
    falling = [[-2, -1, 0], [-1, 0, 1], [0, 1, 2]]
    rising = [[0, 1, 2], [-1, 0, 1], [-2, -1, 0]]
    named = {
        "luminance": [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
        "Sobel, across": across,
        "Sobel, down": down,
        "Sobel, falling": falling,
        "Sobel, rising": rising,
        "Laplacian": [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
    }
    return tuple(named), _stacked([np.array(kernel, np.float64) for kernel in named.values()])


def blur() -> tuple[tuple[str, ...], Kernels]:
    """Return Gaussian blurs of luminance and their differences, which add up to luminance with the widest blur."""
    widths = (1, 2, 4, 8)
    blurs = [gaussian(width) for width in widths]
    size = max(len(kernel) for kernel in blurs)
    levels = [_centred(kernel, size) for kernel in (np.ones((1, 1)), *blurs)]
    differences = [finer - coarser for finer, coarser in pairwise(levels)]
    names = ("luminance", *(f"blur {width}" for width in widths))
    bands = (f"{finer} - {coarser}" for finer, coarser in pairwise(names))
    return (*names[1:], *bands), _stacked([*levels[1:], *differences])


def gabor() -> tuple[tuple[str, ...], Kernels]:
    """Return Gabor filters of two wavelengths in six directions."""
    named = {
        f"{angle}°, {wavelength} pixels": gabor_kernel(wavelength, math.radians(angle), GABOR_RADIUS)
        for wavelength in (4, 8)
        for angle in range(0, 180, 30)
    }
    return tuple(named), _stacked(list(named.values()))


NAMED = {"edges": edges, "blur": blur, "gabor": gabor}
GABOR_RADIUS = 13
"""At this radius the envelope of the longest wavelength has fallen to a twentieth."""


def gaussian(width: float) -> NDArray[np.float64]:
    """Return a Gaussian with sum 1, out to three standard deviations; `width` is one of them in pixels."""
    reach = math.ceil(3 * width)
    profile = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    profile /= profile.sum()
    return np.outer(profile, profile)


def gabor_kernel(wavelength: float, angle: float, radius: int) -> NDArray[np.float64]:
    """Return a cosine wave under a Gaussian envelope, with sum 0 and absolute sum 1.

    The wave runs along `angle`, counted from the right towards the top; the envelope's standard deviation is half a
    wavelength along the wave, and a third more along the crests. It is the real part of the filters of J. G. Daugman,
    "Uncertainty relation for resolution in space, spatial frequency, and orientation optimized by two-dimensional
    visual cortical filters", Journal of the Optical Society of America A 2 (1985) 1160-1169, minus a multiple of the
    envelope that makes the response to even brightness 0.
    """
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    along = x * math.cos(angle) - y * math.sin(angle)
    crest = x * math.sin(angle) + y * math.cos(angle)
    deviation = wavelength / 2
    envelope = np.exp(-(along**2 + (0.75 * crest) ** 2) / (2 * deviation**2))
    wave = envelope * np.cos(2 * math.pi * along / wavelength)
    wave -= envelope * (wave.sum() / envelope.sum())
    kernel: NDArray[np.float64] = wave / np.abs(wave).sum()
    return kernel


def _centred(kernel: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.pad(kernel, (size - len(kernel)) // 2)


def _stacked(kernels: Sequence[NDArray[np.float64]]) -> Kernels:
    return np.stack(kernels)[:, None].astype(np.float32)


def _from_file(path: Path) -> Bank:
    """Read filters from a file: (F, 3, kh, kw) for colour; (F, 1, kh, kw), (F, kh, kw) or (kh, kw) for luminance."""
    array = _loaded(path)
    shape = array.shape
    if array.ndim in (2, 3):
        array = array.reshape(-1, 1, *shape[-2:]) if array.size else array
    if array.ndim != 4 or not array.size or array.shape[1] not in (1, 3):
        refuse(
            f"--filters {path}: got an array of shape {shape}, "
            "expected (F, C, height, width) with C 1 or 3, (F, height, width) or (height, width), none of them 0"
        )
    with np.errstate(over="ignore"):
        weights = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(weights).all():
        refuse(f"--filters {path}: got nan, inf or numbers too large for float32, expected finite ones")
    return Bank(path.name, tuple(f"filter {i}" for i in range(len(weights))), weights)


def _loaded(path: Path) -> NDArray[Any]:
    if not path.exists():
        refuse(f"--filters {path}: no such file")
    if not path.is_file():
        refuse(f"--filters {path}: not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Mapped, so that a header which claims more than the file holds raises an error and allocates nothing.
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # the parser may raise anything on a damaged header
        refuse(f"--filters {path}: not a .npy file of numbers, as numpy.save writes")
    if not isinstance(array, np.ndarray):
        array.close()
        refuse(f"--filters {path}: a .npz archive, expected a .npy file")
    if array.dtype.kind not in "iuf":
        refuse(f"--filters {path}: got {array.dtype}, expected real numbers")
    return array
