"""Which cells each block of a result reads along one dimension, in integers.

An output belongs to the chunk of the input that has the middle of its window: a padding of "same" keeps the chunks of
the input. A block reads exactly the cells between the first and the last tap of its windows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise, product
from typing import NamedTuple

from ...passes.padding import repeated
from ...spec.geometry import Geometry
from ...spec.ranges import Range, spans
from ...spec.remembered import remembered

PICKED_OF_ITEM = 16
"""So many integers take about as much memory as one item of other sequences."""


class Reading(NamedTuple):
    """What some outputs read of an input.

    Attributes
    ----------
    runs : tuple of (int, int)
        The ranges of cells that are read, in order.
    picked : tuple of int or None
        If padding repeats cells: where each cell of the windows lies in the joined runs. None if the windows have the
        cells as they are, with zeros or a constant on both sides.
    size, before, after : int
        The input's size and the padding of the convolution that makes the outputs from the picked cells.
    """

    runs: tuple[Range, ...]
    picked: tuple[int, ...] | None
    size: int
    before: int
    after: int


class Touching(NamedTuple):
    """What the gradient of some cells of an input depends on.

    Attributes
    ----------
    outputs : (int, int)
        The outputs whose gradients are read.
    region : (int, int)
        The input of the convolution that makes these outputs alone, as a range of cells of the whole input. It may be
        larger or smaller than the cells in question, and may reach beyond the input.
    before, after : int
        The padding of that convolution.
    """

    outputs: Range
    region: Range
    before: int
    after: int


def ranges(chunks: Sequence[int]) -> tuple[Range, ...]:
    """Return the ranges of the chunks that are not empty; if all are empty, one empty range."""
    ends = tuple(accumulate(chunks))
    filled = tuple((end - size, end) for size, end in zip(chunks, ends, strict=True) if size)
    return filled or ((0, 0),)


def located(chunks: Sequence[int], runs: Iterable[Range]) -> tuple[tuple[int, int, int], ...]:
    """Cut runs of cells into pieces of chunks: return the number of each chunk, and the start and end in it.

    Without any cells the result is an empty piece of the first chunk.
    """
    ends = list(accumulate(chunks))
    pieces = []
    for start, end in runs:
        while start < end:
            chunk = bisect_right(ends, start)
            first, stop = ends[chunk] - chunks[chunk], min(end, ends[chunk])
            pieces.append((chunk, start - first, stop - first))
            start = stop
    return tuple(pieces) or ((0, 0, 0),)


def outputs(geometry: Geometry, dim: int, chunks: Sequence[int]) -> tuple[Range, ...]:
    """Cut the outputs of one dimension into blocks that follow the chunks of the input and are not empty."""
    stride, shift = geometry.stride[dim], geometry.before[dim] - _half(geometry, dim)
    return _between((-(-(start + shift) // stride) for start, _ in ranges(chunks)[1:]), geometry.out[dim])


def inputs(geometry: Geometry, dim: int, chunks: Sequence[int]) -> tuple[Range, ...]:
    """Cut the input of one dimension into blocks that follow the chunks of the outputs and are not empty.

    The first and the last block hold all cells that padding repeats. If padding repeats cells of the other end, there
    is one block.
    """
    stride, shift, size = geometry.stride[dim], geometry.before[dim] - _half(geometry, dim), geometry.size[dim]
    cuts = [start * stride - shift for start, _ in ranges(chunks)[1:]]
    before, after = geometry.before[dim], geometry.after[dim]
    if geometry.mode == "circular" and (before or after):
        cuts = []
    elif geometry.mode != "zeros":
        mirrored = {"reflect": 1, "symmetric": 0}.get(geometry.mode)
        first, last = (int(side > 0) if mirrored is None else side + mirrored * (side > 0) for side in (before, after))
        cuts = [cut for cut in cuts if first <= cut <= size - last]
    return _between(cuts, size)


def boxes(out: tuple[int, ...], limit: int) -> tuple[tuple[Range, ...], ...]:
    """Cut positions into boxes of at most `limit` each, almost cubes, which have the smallest halos."""
    cuts = [1] * len(out)

    def length(dim: int) -> int:
        return -(-out[dim] // cuts[dim])

    while True:
        volume = 1
        for dim in range(len(out)):
            volume *= length(dim)
        longest = max(range(len(out)), key=length)
        if volume <= limit or length(longest) < 2:
            break
        cuts[longest] += 1
    sides = (
        tuple((i * size // count, (i + 1) * size // count) for i in range(count))
        for size, count in zip(out, cuts, strict=True)
    )
    return tuple(product(*sides))


@remembered(lambda reading: len(reading.picked or ()) // PICKED_OF_ITEM)
def read(geometry: Geometry, dim: int, some: Range) -> Reading:
    """Return what one or more outputs read along a dimension."""
    size, before, stride = geometry.size[dim], geometry.before[dim], geometry.stride[dim]
    start, end = some[0] * stride - before, (some[1] - 1) * stride + geometry.extent[dim] - before
    if geometry.mode in ("zeros", "constant"):
        taps = [span.inputs for span in geometry.spans(dim, some) if span.inputs.start < span.inputs.stop]
        if not taps:  # the windows read padding alone
            return Reading(((0, 0),), None, 0, end - start, 0)
        first, last = min(cells.start for cells in taps), max(cells.stop for cells in taps)
        return Reading(((first, last),), None, last - first, first - start, end - last)
    if start >= 0 and end <= size:
        return Reading(((start, end),), None, end - start, 0, 0)
    sources = repeated(geometry.mode, size, (start, end))
    runs: list[Range] = []
    place_of: dict[int, int] = {}
    for place, cell in enumerate(sorted(set(sources))):
        place_of[cell] = place
        if runs and runs[-1][1] == cell:
            runs[-1] = runs[-1][0], cell + 1
        else:
            runs.append((cell, cell + 1))
    return Reading(tuple(runs), tuple(place_of[cell] for cell in sources), end - start, 0, 0)


def convolved(geometry: Geometry, reads: Sequence[Reading]) -> Geometry:
    """Return the convolution of what is read along each dimension."""
    return replace(
        geometry,
        size=tuple(part.size for part in reads),
        before=tuple(part.before for part in reads),
        after=tuple(part.after for part in reads),
    )


@remembered()
def touching(geometry: Geometry, dim: int, cells: Range) -> Touching:
    """Return what the gradient of the cells of a block depends on; the block is one of `inputs`."""
    start, end = cells
    size, before, after = geometry.size[dim], geometry.before[dim], geometry.after[dim]
    stride, extent, out = geometry.stride[dim], geometry.extent[dim], geometry.out[dim]
    padded = geometry.mode != "zeros" and (before > 0 or after > 0)
    if padded and (start, end) == (0, size):
        return Touching((0, out), cells, before, after)
    # The first block also has the padding before it, and the last block the padding after it.
    extra = before if padded and start == 0 else 0, after if padded and end == size else 0
    taps = spans(
        end - start + sum(extra),
        geometry.kernel[dim],
        stride,
        geometry.dilation[dim],
        before + start - extra[0],
        (0, out),
    )
    read_by = [span.outputs for span in taps if span.outputs.start < span.outputs.stop]
    first, last = min((some.start for some in read_by), default=0), max((some.stop for some in read_by), default=0)
    if padded and extra[1]:  # the region must hold all cells that the padding repeats
        first = min(first, (start + before) // stride) if read_by else (start + before) // stride
        first, last = min(first, out - 1), out
        return Touching((first, last), (first * stride - before, size), 0, after)
    if padded and extra[0]:
        last = max(last, 1)
        return Touching((0, last), (0, max(end, (last - 1) * stride + extent - before)), before, 0)
    if first == last:
        return Touching((0, 0), (start, start), 0, 0)
    window = first * stride - before, (last - 1) * stride + extent - before
    if geometry.mode != "zeros":
        return Touching((first, last), window, 0, 0)
    region = max(start, window[0]), min(end, window[1])
    return Touching((first, last), region, region[0] - window[0], window[1] - region[1])


def _half(geometry: Geometry, dim: int) -> int:
    """Return how far the middle of a window is from its first cell; of two middles take that with more padding."""
    extent, before = geometry.extent[dim], geometry.before[dim]
    return extent // 2 if 2 * before >= extent else (extent - 1) // 2


def _between(cuts: Iterable[int], size: int) -> tuple[Range, ...]:
    """Cut `range(size)` at these places into ranges that are not empty."""
    inner = sorted({cut for cut in cuts if 0 < cut < size})
    edges = [0, *inner, size]
    return tuple(pairwise(edges))
