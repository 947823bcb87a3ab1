"""Ranges of integers: how they are cut, and which cells each kernel tap reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

Range = tuple[int, int]
"""The first integer, and one past the last."""
Box = tuple[Range, ...]
"""One range for each dimension."""
Index = tuple[int | slice, ...]
"""What an array is indexed by."""
ALL = slice(None)
MANY_TAPS = 1024
"""Kernels with so many taps along a dimension have spans that are too long to remember for many calls."""


class Span(NamedTuple):
    """What one kernel tap reads along one dimension, for a range of outputs.

    `outputs` are the outputs whose tap lies inside the input, counted from the first of the range; `inputs` are the
    cells that they read.
    """

    outputs: slice
    inputs: slice


def spans(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: Range) -> tuple[Span, ...]:
    """Return one `Span` for each tap; both slices are empty where a tap reads only padding."""
    remembered = _few_spans if kernel < MANY_TAPS else _many_spans
    return remembered(size, kernel, stride, dilation, before, outputs)


def _spans(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: Range) -> tuple[Span, ...]:
    (start, end), by_tap = outputs, []
    for tap in range(kernel):
        offset = tap * dilation - before
        first = max(start, -(offset // stride))  # the ceiling of -offset / stride
        last = min(end, (size - 1 - offset) // stride + 1)
        if first < last:
            # One cell needs no step, and libraries multiply steps by strides of memory, which may overflow.
            step = stride if last - first > 1 else 1
            inputs = slice(first * stride + offset, (last - 1) * stride + offset + 1, step)
            by_tap.append(Span(slice(first - start, last - start), inputs))
        else:
            by_tap.append(Span(slice(0, 0), slice(0, 0)))
    return tuple(by_tap)


_few_spans, _many_spans = lru_cache(maxsize=4096)(_spans), lru_cache(maxsize=8)(_spans)


def edges(inside: Sequence[slice], sizes: Sequence[int]) -> list[list[slice]]:
    """Return what lies outside these slices of an array of these sizes, as slices that do not overlap."""
    outside: list[list[slice]] = []
    for dim, (part, size) in enumerate(zip(inside, sizes, strict=True)):
        both = (slice(0, part.start), slice(part.stop, size))
        rest = [slice(None)] * (len(sizes) - dim - 1)
        outside += [[*inside[:dim], edge, *rest] for edge in both if edge.start < edge.stop]
    return outside


def pieces(total: int, most: int) -> tuple[Range, ...]:
    """Cut `range(total)` into the fewest ranges of at most `most`, of nearly one length, with the longest first."""
    count = -(-total // max(1, most))
    return tuple((-(-total * i // count), -(-total * (i + 1) // count)) for i in range(count))


def cut(total: int, most: int, least: int) -> tuple[Range, ...]:
    """Cut `range(total)` into ranges of at most `most`, and into at least `least` ranges where it has so many."""
    return pieces(total, max(1, min(most, -(-total // least))))


def boxes(out: tuple[int, ...], most: int) -> Iterator[tuple[Range, Box]]:
    """Cut the output positions into boxes of at most `most`; each box is one run of the flattened positions.

    Yields
    ------
    run : Range
    box : Box
    """
    ranges, dims, inner = _cut_one_dimension(out, most)
    full = tuple((0, n) for n in out[dims:])
    start = 0
    for lead in product(*(range(n) for n in out[: dims - 1])):
        for first, last in ranges:
            end = start + (last - first) * inner
            yield (start, end), (*((i, i + 1) for i in lead), (first, last), *full)
            start = end


def count_boxes(out: tuple[int, ...], most: int) -> int:
    """Count the boxes that `boxes` yields."""
    ranges, dims, _ = _cut_one_dimension(out, most)
    return len(ranges) * math.prod(out[: dims - 1])


def largest(out: tuple[int, ...], most: int) -> Box:
    """Return the sizes of the largest of the boxes that `boxes` yields, as a box that starts at 0."""
    ranges, dims, _ = _cut_one_dimension(out, most)
    length = max((end - start for start, end in ranges), default=0)
    return (*((0, 1) for _ in out[: dims - 1]), (0, length), *((0, n) for n in out[dims:]))


def _cut_one_dimension(out: tuple[int, ...], most: int) -> tuple[Box, int, int]:
    """Cut the first dimension for which the later ones fit into `most` positions.

    Returns
    -------
    ranges : tuple of Range
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
