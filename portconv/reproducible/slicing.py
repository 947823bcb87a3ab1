"""How many slices operands are cut into, and how sums are cut so that they stay exact; plain integers."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from ..backends import Backend
from ..passes.padding import overlap
from ..passes.partition import Copies, Part, parts, whole
from ..spec.dtypes import PARTS_OF
from ..spec.geometry import Geometry
from ..spec.ranges import Range, pieces
from .slices import Slicing, slicing

LONG = 1 << 13
"""Terms that two slices of 20 bits, or three, can sum; a longer sum over samples and rows is cut, and added up."""
BLOCKS = 6
"""Blocks that slices may be as large as: arrays of more than 32 MiB are made of fresh memory each time."""
PARTIAL = 1 << 21
"""Elements of filters that the chunks of one convolution may have."""


def in_slices(geometry: Geometry, count: int) -> Geometry:
    """The convolution of so many slices side by side, as groups; in the order of memory that slices have."""
    return replace(
        geometry,
        groups=count * geometry.groups,
        in_channels=count * geometry.in_channels,
        out_channels=count * geometry.out_channels,
        channels_last=False,
    )


def summed(backend: Backend, geometry: Geometry, purpose: str, dtype: str) -> int:
    """How many products one exact sum has, at most."""
    if purpose == "forward":
        return geometry.group_in * geometry.taps
    if purpose == "input_grad":
        return geometry.group_out * geometry.taps * overlap(geometry)
    return _shares(geometry.extended, dtype, _elements(backend, slicing(dtype, 1))).terms


class Shares(NamedTuple):
    """How a weight gradient's sum over samples and positions is cut: its chunks are groups of one convolution each.

    Attributes
    ----------
    samples : int
        In a chunk.
    calls : tuple of (int, int)
        The samples of each convolution.
    rows : tuple of Part
        What it has of a sample.
    """

    samples: int
    calls: tuple[Range, ...]
    rows: tuple[Part, ...]

    @property
    def terms(self) -> int:
        """How many products one exact sum has, at most."""
        return self.samples * max(part.geometry.positions for part in self.rows)

    @property
    def several(self) -> bool:
        """Whether there is more than one chunk."""
        return len(self.calls) > 1 or len(self.rows) > 1 or self.calls[0][1] > 1


def slots(backend: Backend, geometry: Geometry, purpose: str, dtype: str) -> int:
    """How many products of slices a whole one is made of."""
    return slicing(dtype, summed(backend, geometry, purpose, dtype)).slots


def longest(dtype: str) -> int:
    """How many positions a weight gradient's exact sums are best made of, at most."""
    return LONG // (2 if dtype in PARTS_OF else 1)


@lru_cache(maxsize=256)
def _shares(geometry: Geometry, dtype: str, elements: int) -> Shares:
    """Cut a weight gradient so that few enough products are summed in each chunk; slices have so many `elements`."""
    most = longest(dtype)
    one = replace(geometry, batch=1)
    rows = parts(one, "weight_grad", Copies(geometry.positions, 0, 0, 0), most) or (whole(one),)
    together = elements // max(1, _larger(geometry))
    fits = max(1, most // max(1, geometry.positions))
    if geometry.weights < _larger(geometry):  # or adding up chunks would take longer than making them of fresh memory
        fits = max(1, min(fits, together))
    samples = max((n for n in range(1, fits + 1) if geometry.batch % n == 0), default=1)
    chunks = max(1, min(PARTIAL // geometry.weights, together // samples))
    return Shares(samples, pieces(max(1, geometry.batch // samples), chunks), rows)


def _larger(geometry: Geometry) -> int:
    """Elements of a sample's input or output, whichever has more."""
    return max(geometry.in_channels * math.prod(geometry.size), geometry.out_channels * geometry.positions)


def _elements(backend: Backend, own: Slicing) -> int:
    """How many elements slices are best made of at a time."""
    return backend.block_bytes * BLOCKS // (8 * own.slots)
