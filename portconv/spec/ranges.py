"""Ranges of integers: how they are cut, and which cells each kernel tap reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

Range = tuple[int, int]
"""First and one past the last."""
MANY_TAPS = 1024
"""What is worked out for each tap of kernels this large is too much to keep for many calls."""


class Span(NamedTuple):
    """What one kernel tap reads along one dimension, for a range of outputs.

    `outputs` are the outputs (counted from the range's first) whose tap lies inside the input, `inputs` the cells that
    they read.
    """

    outputs: slice
    inputs: slice


def spans(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: Range) -> tuple[Span, ...]:
    """One `Span` per tap; both slices are empty where a tap meets nothing but padding."""
    kept = _few_spans if kernel < MANY_TAPS else _many_spans
    return kept(size, kernel, stride, dilation, before, outputs)


def _spans(size: int, kernel: int, stride: int, dilation: int, before: int, outputs: Range) -> tuple[Span, ...]:
    start, end = outputs
    found = []
    for tap in range(kernel):
        offset = tap * dilation - before
        first = max(start, -(offset // stride))  # the ceiling of -offset / stride
        last = min(end, (size - 1 - offset) // stride + 1)
        if first < last:
            # Of one cell any step will do, and libraries multiply steps by strides of memory, which may overflow.
            step = stride if last - first > 1 else 1
            inputs = slice(first * stride + offset, (last - 1) * stride + offset + 1, step)
            found.append(Span(slice(first - start, last - start), inputs))
        else:
            found.append(Span(slice(0, 0), slice(0, 0)))
    return tuple(found)


_few_spans, _many_spans = lru_cache(maxsize=4096)(_spans), lru_cache(maxsize=8)(_spans)


def edges(inside: Sequence[slice], sizes: Sequence[int]) -> list[list[slice]]:
    """What lies outside these slices of an array of these sizes, as slices that do not overlap."""
    found: list[list[slice]] = []
    for dim, (part, size) in enumerate(zip(inside, sizes, strict=True)):
        outside = (slice(0, part.start), slice(part.stop, size))
        rest = [slice(None)] * (len(sizes) - dim - 1)
        found += [[*inside[:dim], edge, *rest] for edge in outside if edge.start < edge.stop]
    return found


def pieces(total: int, most: int) -> tuple[Range, ...]:
    """Cut `range(total)` into the fewest ranges of at most `most`, all of nearly one length, the first the longest."""
    count = -(-total // max(1, most))
    return tuple((-(-total * i // count), -(-total * (i + 1) // count)) for i in range(count))


def cut(total: int, most: int, least: int) -> tuple[Range, ...]:
    """Cut `range(total)` into ranges of at most `most`, and into at least `least` of them where there are so many."""
    return pieces(total, max(1, min(most, -(-total // least))))


def boxes(out: tuple[int, ...], most: int) -> Iterator[tuple[Range, tuple[Range, ...]]]:
    """Cut the output positions into boxes of at most `most`, each one run of the flattened positions.

    Yields the run and the box, a range per dimension.
    """
    cuts, dim, inner = _cuts(out, most)
    full = tuple((0, n) for n in out[dim:])
    start = 0
    for lead in product(*(range(n) for n in out[: dim - 1])):
        for cut in cuts:
            end = start + (cut[1] - cut[0]) * inner
            yield (start, end), (*((i, i + 1) for i in lead), cut, *full)
            start = end


def largest(out: tuple[int, ...], most: int) -> tuple[Range, ...]:
    """Give the sizes of the largest of these boxes, as one that starts at 0."""
    cuts, dim, _ = _cuts(out, most)
    length = max((end - start for start, end in cuts), default=0)
    return (*((0, 1) for _ in out[: dim - 1]), (0, length), *((0, n) for n in out[dim:]))


def _cuts(out: tuple[int, ...], most: int) -> tuple[tuple[Range, ...], int, int]:
    """Cut one dimension; return the ranges, how many dimensions it is the last of, and the positions of those after."""
    inner, dim = 1, len(out)
    while dim > 1 and inner * out[dim - 1] <= most:
        dim -= 1
        inner *= out[dim]
    return pieces(out[dim - 1], most // inner), dim, inner


Index = tuple[int | slice, ...]
Box = tuple[Range, ...]

ALL = slice(None)
