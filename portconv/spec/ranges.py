"""Ranges of integers: how they are cut, and which cells each kernel tap reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .sequences import Computed, Made, Product

Range = tuple[int, int]
"""The first integer, and one past the last."""
Box = tuple[Range, ...]
"""One range for each dimension."""
Index = tuple[int | slice, ...]
"""What an array is indexed by."""
ALL = slice(None)


class Span(NamedTuple):
    """What one kernel tap reads along one dimension, for a range of outputs.

    `outputs` are the outputs whose tap lies inside the input, counted from the first of the range; `inputs` are the
    cells that they read.
    """

    outputs: slice
    inputs: slice


NO_SPAN = Span(slice(0, 0), slice(0, 0))
"""That of a tap which reads only padding."""


def span(size: int, stride: int, offset: int, outputs: Range) -> Span:
    """Return what a tap reads that is `offset` cells from the first cell of the first output's window."""
    start, end = outputs
    first = max(start, -(offset // stride))  # the ceiling of -offset / stride
    last = min(end, (size - 1 - offset) // stride + 1)
    if first >= last:
        return NO_SPAN
    # One cell needs no step, and libraries multiply steps by strides of memory, which may overflow.
    step = stride if last - first > 1 else 1
    inputs = slice(first * stride + offset, (last - 1) * stride + offset + 1, step)
    return Span(slice(first - start, last - start), inputs)


def spans(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: Range) -> Sequence[Span]:
    """Return one `Span` for each tap; both slices are empty where a tap reads only padding."""
    return Made(range(kernel), lambda tap: span(size, stride, tap * dilation - before, outputs))


def edges(inside: Sequence[slice], sizes: Sequence[int]) -> list[list[slice]]:
    """Return what lies outside these slices of an array of these sizes, as slices that do not overlap."""
    outside: list[list[slice]] = []
    for dim, (part, size) in enumerate(zip(inside, sizes, strict=True)):
        both = (slice(0, part.start), slice(part.stop, size))
        rest = [slice(None)] * (len(sizes) - dim - 1)
        outside += [[*inside[:dim], edge, *rest] for edge in both if edge.start < edge.stop]
    return outside


@dataclass(frozen=True)
class Ranges(Computed[Range]):
    """`range(total)`, cut into so many `ranges` of nearly one length, the longest first."""

    total: int
    ranges: int

    def __len__(self) -> int:
        return self.ranges

    def at(self, number: int) -> Range:
        return -(-self.total * number // self.ranges), -(-self.total * (number + 1) // self.ranges)

    @property
    def longest(self) -> int:
        """The length of the longest range; 0 if there is none."""
        return -(-self.total // self.ranges) if self.ranges else 0


def pieces(total: int, most: int) -> Ranges:
    """Cut `range(total)` into the fewest ranges of at most `most`, of nearly one length, with the longest first."""
    return Ranges(total, -(-total // max(1, most)))


def cut(total: int, most: int, least: int) -> Ranges:
    """Cut `range(total)` into ranges of at most `most`, and into at least `least` ranges where it has so many."""
    return pieces(total, max(1, min(most, -(-total // least))))


def boxes(out: tuple[int, ...], most: int) -> Sequence[tuple[Range, Box]]:
    """Cut the output positions into boxes of at most `most`; each box is one run of the flattened positions.

    Returns
    -------
    sequence of (Range, Box)
        Each run, and its box.
    """
    ranges, dims, inner = _cut_one_dimension(out, most)
    full = tuple((0, n) for n in out[dims:])
    lead = tuple(Ranges(n, n) for n in out[: dims - 1])

    def box(sides: tuple[Range, ...]) -> tuple[Range, Box]:
        start = 0
        for (first, _), n in zip(sides, out, strict=False):
            start = start * n + first
        first, last = sides[-1]
        return (start * inner, (start + last - first) * inner), (*sides, *full)

    return Made(Product(*lead, ranges), box)


def largest(out: tuple[int, ...], most: int) -> Box:
    """Return the sizes of the largest of the boxes that `boxes` returns, as a box that starts at 0."""
    ranges, dims, _ = _cut_one_dimension(out, most)
    return (*((0, 1) for _ in out[: dims - 1]), (0, ranges.longest), *((0, n) for n in out[dims:]))


def _cut_one_dimension(out: tuple[int, ...], most: int) -> tuple[Ranges, int, int]:
    """Cut the first dimension for which the later ones fit into `most` positions.

    Returns
    -------
    ranges : Ranges
    dims : int
        The number of dimensions up to the one that is cut, with it.
    inner : int
        The positions of the dimensions after it.
    """
    inner, dims = 1, len(out)
    while dims > 1 and inner * out[dims - 1] <= most:
        dims -= 1
        inner *= out[dims]
    return pieces(out[dims - 1], most // inner), dims, inner
