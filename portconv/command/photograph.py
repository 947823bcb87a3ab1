"""Read photographs from files as arrays of numbers between 0 and 1."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .group import refuse

Pixels = NDArray[np.float32]

GREY_MODES = {"1", "L", "LA", "La"}


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph, upright.

    Attributes
    ----------
    path : Path
        The file that it was read from.
    size : tuple of int
        The width and height in the file.
    pixels : array, shape (1, height, width) for grey or (3, height, width) for colour
        Numbers between 0 and 1; the array is smaller than `size` if the photograph was reduced.
    pictures : int
        How many pictures the file has, such as the pages of a TIFF; this is the first one.
    """

    path: Path
    size: tuple[int, int]
    pixels: Pixels
    pictures: int = 1


def read(path: Path, longest: int) -> Photograph:
    """Read a photograph, and reduce its longer side to `longest` pixels unless that is 0; refuse other files."""
    _check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                image = _plain(ImageOps.exif_transpose(file))
                pictures = getattr(file, "n_frames", 1)
    except UnidentifiedImageError:
        refuse(f"{path}: not a picture that Pillow can read")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        refuse(f"{path}: more than {Image.MAX_IMAGE_PIXELS} pixels, as in files that are made to fill memory")
    except Exception as error:  # Pillow's readers may raise anything on a damaged file
        refuse(f"{path}: the picture cannot be read: {str(error) or type(error).__name__}")
    return Photograph(path, image.size, _pixels(_reduced(image, longest)), pictures)


def _check_file(path: Path) -> None:
    if not path.exists():
        refuse(f"{path}: no such file")
    if path.is_dir():
        refuse(f"{path}: a directory, expected a picture")
    if not path.is_file():
        refuse(f"{path}: not a file")
    if not os.access(path, os.R_OK):
        refuse(f"{path}: may not be read")
    if path.stat().st_size == 0:
        refuse(f"{path}: an empty file, expected a picture")


def _plain(image: Image.Image) -> Image.Image:
    """Return the picture as 8-bit grey or colour, on white if it is transparent; deeper grey as F between 0 and 1."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_unit_scaled(np.asarray(image, np.float64), image.mode))
    grey = image.mode in GREY_MODES
    if {"A", "a"} & set(image.getbands()) or "transparency" in image.info:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return image.convert("L" if grey else "RGB")


def _unit_scaled(values: NDArray[Any], mode: str) -> Pixels:
    """Scale deep grey to 0..1: 16 bits by 65535, fractions by 1, and other values from the least to the greatest."""
    least, greatest = float(values.min()), float(values.max())
    if not np.isfinite(greatest - least):
        message = "it has values that are not finite"
        raise ValueError(message)
    limit = 1.0 if mode == "F" else 65535.0
    if least < 0 or greatest > limit:
        values, limit = values - least, greatest - least or 1.0
    return (values / limit).astype(np.float32)


def _reduced(image: Image.Image, longest: int) -> Image.Image:
    factor = longest / max(image.size) if longest else 1.0
    if factor >= 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    # The gap lets Pillow average first what is far longer: its filter alone would not fit into memory.
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _pixels(image: Image.Image) -> Pixels:
    values = np.asarray(image, np.float32)
    # The reduction of deep grey overshoots at sharp edges; Pillow clips that of 8 bits to 0 and 255.
    values = values.clip(0, 1) if image.mode == "F" else values / np.float32(255)
    return np.ascontiguousarray(values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0))
