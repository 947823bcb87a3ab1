"""How reproducible products are cut, so that what is made of an operand stays in the cache until it is used."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from ..kernels.sizes import ceiling
from ..spec.geometry import Geometry
from ..spec.operation import Kind

WIDE = 8
"""The bytes of a number of float64."""
CHUNK_BYTES, OF_FILTERS = 2 << 20, 4
"""About so many bytes are made of what is multiplied at once, or so many times what filters take: each product prepares
these anew."""
WINDOWS = 2
"""A piece has the rows of so many windows at least: it reads again what its windows have in common with others."""
MOST_OF_SAMPLE = 2
"""A sample that takes more than so many times as much is cut into rows."""


class Piece(NamedTuple):
    """A convolution of some samples, or of some rows of one sample.

    Attributes
    ----------
    geometry : Geometry
    sample : int
        The first sample.
    cell, position : int
        The first cell of each channel of the input, and the first position of each channel of the output.
    """

    geometry: Geometry
    sample: int
    cell: int = 0
    position: int = 0

    @property
    def cells(self) -> int:
        """The cells of all samples in each channel of the input."""
        return self.geometry.batch * math.prod(self.geometry.size)

    @property
    def positions(self) -> int:
        """The positions of all samples in each channel of the output."""
        return self.geometry.batch * self.geometry.positions


def pieces_of(geometry: Geometry, kind: Kind, *, cuts: bool) -> list[Piece]:
    """Cut a product into pieces of some samples, or if it `cuts` these, of some rows, of about `CHUNK_BYTES`."""
    of_inputs, one = kind == Kind.INPUT_GRAD, replace(geometry, batch=1)
    channels = WIDE * (geometry.in_channels + geometry.groups), WIDE * (geometry.out_channels + geometry.groups)
    of_sample = channels[0] * math.prod(geometry.size) + channels[1] * geometry.positions
    most = max(CHUNK_BYTES, OF_FILTERS * WIDE * geometry.weights)
    lines = (geometry.size if of_inputs else geometry.out)[0]
    extent, stride = geometry.extent[0], geometry.stride[0]
    at_once = max(1, WINDOWS * (extent if of_inputs else ceiling(extent, stride)), lines * most // of_sample)
    if not cuts or of_sample <= MOST_OF_SAMPLE * most or 2 * at_once > lines:
        samples = ceiling(geometry.batch, ceiling(geometry.batch, max(1, most // of_sample)))
        starts = range(0, geometry.batch, samples)
        return [Piece(replace(geometry, batch=min(samples, geometry.batch - at)), at) for at in starts]
    unit = stride if of_inputs else 1
    length = ceiling(ceiling(lines, ceiling(lines, at_once)), unit) * unit
    parts = [_rows(one, (at, min(at + length, lines)), of_inputs=of_inputs) for at in range(0, lines, length)]
    row, line = math.prod(geometry.size[1:]), math.prod(geometry.out[1:])
    return [
        Piece(part, sample, cell * row, position * line)
        for sample in range(geometry.batch)
        for part, cell, position in parts
    ]


def _rows(geometry: Geometry, rows: tuple[int, int], *, of_inputs: bool) -> tuple[Geometry, int, int]:
    """Return the convolution of some rows of the input or of the output, and the first rows of both.

    Outputs read some rows of the input, and maybe padding. Rows of the input meet some of the output, which may read
    rows beyond: those are its padding.
    """
    size, out, extent = geometry.size[0], geometry.out[0], geometry.extent[0]
    stride, before, (first, last) = geometry.stride[0], geometry.before[0], rows
    if of_inputs:
        start = min(max(0, ceiling(first + before - extent + 1, stride)), out - 1)
        stop = max(start + 1, min(out, (last - 1 + before) // stride + 1))
    else:
        start, stop = rows
    read = start * stride - before, (stop - 1) * stride + extent - before
    if not of_inputs:
        first, last = min(max(read[0], 0), size - 1), max(min(read[1], size), 1)
        last = max(last, first + 1)
    edges = first - read[0], read[1] - last
    part = replace(
        geometry,
        size=(last - first, *geometry.size[1:]),
        before=(edges[0], *geometry.before[1:]),
        after=(edges[1], *geometry.after[1:]),
    )
    return part, first, start
