"""Only the cells that windows read, where windows lie apart: copies of the input need not hold the others.

Where the stride along a dimension is larger than the extent of the kernel, windows do not touch. The convolution of the
cells that they read, one window after the other, has the same outputs: its stride is the number of taps, and its
dilation 1. Its input gradient is that of the cells that are read; that of all other cells is 0.

Where a part of a result is shorter than the gaps between taps, the part's convolution is that of a run of cells for
each tap, side by side: `Comb` says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import NamedTuple

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Range
from ..spec.remembered import remembered
from .part import Comb, Part, Slices


class Run(NamedTuple):
    """Some cells of the gathered input along one dimension, and where they lie in the input."""

    cells: slice
    source: slice


def gathered(geometry: Geometry) -> Geometry:
    """Return the convolution of the cells that windows read; the very same convolution where windows touch."""
    return _gathered(geometry) or geometry


@remembered()
def _gathered(geometry: Geometry) -> Geometry | None:
    apart = [_apart(geometry, dim) for dim in range(geometry.dims)]
    if not any(apart):
        return None
    lines = [_line(geometry, dim) if each else _given_line(geometry, dim) for dim, each in enumerate(apart)]
    size, stride, dilation, before, after = (tuple(line) for line in zip(*lines, strict=True))
    return replace(geometry, size=size, stride=stride, dilation=dilation, before=before, after=after)


def _given_line(geometry: Geometry, dim: int) -> tuple[int, ...]:
    """Return the size, the stride, the dilation and the padding of one dimension."""
    lines = geometry.size, geometry.stride, geometry.dilation, geometry.before, geometry.after
    return tuple(line[dim] for line in lines)


def _line(geometry: Geometry, dim: int) -> tuple[int, ...]:
    """Return the same of the cells that windows read, which lie apart."""
    before, taps = geometry.before[dim], geometry.kernel[dim]
    first, end = (_read_before(geometry, dim, cell) for cell in (before, before + geometry.size[dim]))
    return end - first, taps, 1, first, geometry.out[dim] * taps - end


def is_copied(geometry: Geometry) -> bool:
    """Return whether gathering copies cells: those of windows of a single cell are a view of the input."""
    return any(_apart(geometry, dim) and geometry.kernel[dim] > 1 for dim in range(geometry.dims))


def take(geometry: Geometry, backend: Backend, x: Array, at: Slices) -> Array:
    """Return a part of the gathered input of a convolution, of its input (N, C, *S)."""
    if gathered(geometry) is geometry:
        return x[(*at, ...)]
    runs, x = _runs(geometry, _ranges(geometry, at)), x[(*at[:2], ...)]
    if len(runs) == 1:
        return x[(..., *(run.source for run in runs[0]))]
    shape = tuple(end - start for start, end in _ranges(geometry, at))
    out = backend.empty((*x.shape[:2], *shape), like=x, last=geometry.channels_last)
    for lines in runs:
        out = backend.write(out, (..., *(run.cells for run in lines)), x[(..., *(run.source for run in lines))])
    return out


def comb(part: Part, backend: Backend, sizes: tuple[int, ...], at: Slices, read: Callable[[Slices], Array]) -> Array:
    """Return what a part with combs reads of an operand of these sizes, of which `read` returns a part."""
    lines, lengths = [], []
    for dim, size in enumerate(sizes):
        teeth = part.combs[dim] if dim < len(part.combs) else None
        cells = at[2 + dim] if 2 + dim < len(at) else ALL
        lines.append([Run(ALL, cells)] if teeth is None else _teeth(teeth, size))
        lengths.append(len(range(size)[cells]) if teeth is None else teeth.runs * teeth.length)
    # Of no cells: this tells the samples, the channels and the dtype.
    none = read((*at[:2], *(slice(0, 0),) * len(sizes)))
    out = backend.empty((*none.shape[:2], *lengths), like=none, last=part.geometry.channels_last)
    out = backend.zeroed(out)
    for runs in product(*lines):
        value = read((*at[:2], *(run.source for run in runs)))
        out = backend.write(out, (..., *(run.cells for run in runs)), value)
    return out


def _teeth(comb: Comb, size: int) -> list[Run]:
    """Return the runs of a comb that lie in a dimension of that size."""
    runs = []
    for number in range(comb.runs):
        start = comb.first + number * comb.step
        first = max(-(-start // comb.spacing), 0)
        count = min(-(-(start + comb.length) // comb.spacing), size) - first
        if count > 0:
            place = number * comb.length + first * comb.spacing - start
            runs.append(Run(_spaced(place, count, comb.spacing), slice(first, first + count)))
    return runs


def put(geometry: Geometry, backend: Backend, result: Array, at: Slices, value: Array) -> Array:
    """Write a part of a gathered input gradient where it belongs in that of the whole input (N, C, *S)."""
    if gathered(geometry) is geometry:
        return backend.write(result, (*at, ...), value)
    for lines in _runs(geometry, _ranges(geometry, at)):
        cells, source = ([getattr(run, name) for run in lines] for name in Run._fields)
        result = backend.write(result, (*at[:2], *source), value[(..., *cells)])
    return result


def _apart(geometry: Geometry, dim: int) -> bool:
    """Return whether windows lie apart along a dimension; padding that is not of zeros is filled in first."""
    return not geometry.is_filled(dim) and geometry.stride[dim] > geometry.extent[dim]


def _read_before(geometry: Geometry, dim: int, cell: int) -> int:
    """Count the cells that windows read before a cell of the padded input."""
    taps = geometry.kernel[dim]
    window, rest = divmod(cell, geometry.stride[dim])
    return min(window * taps + min(taps, -(-rest // geometry.dilation[dim])), geometry.out[dim] * taps)


def _ranges(geometry: Geometry, at: Slices) -> tuple[Range, ...]:
    """Return the ranges of cells of the gathered input that a part has."""
    sizes = gathered(geometry).size
    # A range may reach beyond the input, into padding that is filled in.
    named = [
        (0, size) if cells.stop is None else (cells.start, cells.stop)
        for cells, size in zip(at[2:], sizes, strict=False)
    ]
    return *named, *((0, size) for size in sizes[len(named) :])


@remembered(len)
def _runs(geometry: Geometry, ranges: tuple[Range, ...]) -> list[tuple[Run, ...]]:
    """Return the runs of all dimensions that make up a part of the gathered input."""
    return list(product(*(_runs_along(geometry, dim, cells) for dim, cells in enumerate(ranges))))


def _runs_along(geometry: Geometry, dim: int, cells: Range) -> list[Run]:
    """Cut a range of cells of the gathered input into the fewest runs: of one tap each, or of one window each."""
    start, end = cells
    if not _apart(geometry, dim) or start == end:
        return [Run(slice(0, end - start), slice(start, end))]
    taps, stride, dilation = geometry.kernel[dim], geometry.stride[dim], geometry.dilation[dim]
    padding = _read_before(geometry, dim, geometry.before[dim])
    start, end = start + padding, end + padding

    def run(cell: int, count: int, steps: tuple[int, int]) -> Run:
        window, tap = divmod(cell, taps)
        source = window * stride + tap * dilation - geometry.before[dim]
        return Run(_spaced(cell - start, count, steps[0]), _spaced(source, count, steps[1]))

    if taps <= -(-end // taps) - start // taps:
        firsts = range(start, min(start + taps, end))
        return [run(first, (end - 1 - first) // taps + 1, (taps, stride)) for first in firsts]
    edges = [start, *range(start - start % taps + taps, end, taps), end]
    return [run(first, last - first, (1, dilation)) for first, last in pairwise(edges)]


def _spaced(start: int, count: int, step: int) -> slice:
    """Return the slice of `count` cells, `step` apart."""
    # One cell needs no step, and libraries multiply steps by strides of memory, which may overflow.
    return slice(start, start + (count - 1) * step + 1, step if count > 1 else 1)
