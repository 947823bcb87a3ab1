"""A convolution cut into parts, where copies of whole operands would take more memory than a call may.

A call copies operands of another dtype, and operands whose padding is not of zeros, before an algorithm computes. A
part has some of the samples, or some rows of one sample's result. It has some of the filters, or some of the input's
channels where the result is a gradient of these. So the results of parts do not overlap, but for those of a weight
gradient, which are added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from ..spec.operation import Kind, Role
from ..spec.ranges import ALL, Range, pieces
from ..spec.remembered import remembered

Slices = tuple[slice, ...]
EVERY: Slices = (ALL, ALL)


class Copies(NamedTuple):
    """The bytes of the copies that a product makes.

    Attributes
    ----------
    sample : int
        For each sample.
    filters : int
        For the filters.
    more_sample, more_filters : int
        What is added to both where the product is cut: the results of parts.
    """

    sample: int
    filters: int
    more_sample: int
    more_filters: int

    def __bool__(self) -> bool:
        return self.sample + self.filters > 0

    def bytes(self, geometry: Geometry, cut: bool) -> int:
        """Add up all copies, for the whole of a geometry or for a part."""
        more = self.more_sample * geometry.batch + self.more_filters if cut else 0
        return self.sample * geometry.batch + self.filters + more


class Part(NamedTuple):
    """A convolution of its own, and where its arrays lie in (N, C, *S), (F, C/G, *K) and (N, F, *P)."""

    geometry: Geometry
    of_x: Slices
    of_w: Slices
    of_out: Slices

    def at(self, role: Role) -> Slices:
        """Return where the part lies in the array of a role."""
        return {Role.X: self.of_x, Role.W: self.of_w, Role.OUT: self.of_out}[role]

    def operands(self, kind: Kind, operands: tuple[Array, ...]) -> tuple[Array, ...]:
        """Cut the part out of the operands of a product; of a bias, the channels that the part computes."""
        arrays = tuple(array[(*self.at(role), ...)] for role, array in zip(kind.operands, operands, strict=False))
        return *arrays, *(bias[self.at(kind.result)[1]] for bias in operands[2:])


def whole(geometry: Geometry) -> Part:
    """Return a convolution as one part."""
    return Part(geometry, EVERY, EVERY, EVERY)


@remembered(lambda parts: len(parts or ()))
def parts(geometry: Geometry, kind: Kind, copies: Copies, most: int) -> tuple[Part, ...] | None:
    """Cut a product so that its copies take at most `most` bytes; return None where no cut does."""
    if not copies or copies.bytes(geometry, cut=False) <= most:
        return (whole(geometry),)
    if most < 1:
        return None
    of_filters, of_sample = copies.filters + copies.more_filters, copies.sample + copies.more_sample
    cuts = 1 if of_filters <= most // 2 else -(-2 * of_filters // most)
    by_filters = list(_by_filters(geometry, kind, cuts))
    if len(by_filters) < cuts:
        return None
    # The longest range of filters may be nearly twice as long as they are on average.
    left = most - -(-of_filters // len(by_filters)) * (1 if len(by_filters) == 1 else 2)
    if of_sample <= left:
        by_samples = pieces(geometry.batch, left // max(1, of_sample))
        return tuple(with_samples(part, samples) for part, samples in product(by_filters, by_samples))
    return _by_rows(geometry, kind, by_filters, left, of_sample)


def _by_filters(geometry: Geometry, kind: Kind, cuts: int) -> Iterator[Part]:
    """Cut into groups; cut a single group into filters, or into channels where the result is a gradient of them."""
    if geometry.groups > 1:
        for first, end in pieces(geometry.groups, geometry.groups // cuts):
            count = end - first
            channels = slice(first * geometry.group_in, end * geometry.group_in)
            filters = slice(first * geometry.group_out, end * geometry.group_out)
            ins, outs = count * geometry.group_in, count * geometry.group_out
            some = replace(geometry, groups=count, in_channels=ins, out_channels=outs)
            yield Part(some, (ALL, channels), (filters, ALL), (ALL, filters))
    elif kind == Kind.INPUT_GRAD:
        for first, end in pieces(geometry.in_channels, geometry.in_channels // cuts):
            channels = slice(first, end)
            yield Part(replace(geometry, in_channels=end - first), (ALL, channels), (ALL, channels), EVERY)
    else:
        for first, end in pieces(geometry.out_channels, geometry.out_channels // cuts):
            filters = slice(first, end)
            yield Part(replace(geometry, out_channels=end - first), EVERY, (filters, ALL), (ALL, filters))


def _by_rows(
    geometry: Geometry, kind: Kind, by_filters: list[Part], left: int, of_sample: int
) -> tuple[Part, ...] | None:
    """Cut parts into single samples, and these into rows, so that a part takes `left` of the bytes of a sample."""
    cells, results = geometry.size[0], geometry.size[0] if kind == Kind.INPUT_GRAD else geometry.out[0]
    longest = max(results, cells, 1)
    # A part reads at most a window's length of the other array beyond its share.
    reach = geometry.extent[0] + geometry.stride[0]
    rows = (left * longest // of_sample - 2 * reach) * results // longest
    if rows < 1 or geometry.mode != "zeros":
        return None
    cut = _rows_of_x if kind == Kind.INPUT_GRAD else _rows_of_out
    every = product(by_filters, range(geometry.batch), pieces(results, rows))
    return tuple(cut(with_samples(part, (sample, sample + 1)), piece) for part, sample, piece in every)


def with_samples(part: Part, samples: Range) -> Part:
    """Return the part with only these samples, which are counted in the whole."""
    geometry = replace(part.geometry, batch=samples[1] - samples[0])
    return Part(geometry, (slice(*samples), *part.of_x[1:]), part.of_w, (slice(*samples), *part.of_out[1:]))


def _rows_of_out(part: Part, rows: Range) -> Part:
    """Return the part with only these outputs of the first dimension, and the cells that they read."""
    geometry, (start, end) = part.geometry, rows
    first = start * geometry.stride[0] - geometry.before[0]
    last = (end - 1) * geometry.stride[0] + geometry.extent[0] - geometry.before[0]
    lo = min(max(first, 0), geometry.size[0])
    hi = min(max(last, lo), geometry.size[0])
    return _with_rows(part, (lo, hi), rows, (lo - first, last - hi))


def _rows_of_x(part: Part, cells: Range) -> Part:
    """Return the part with only these cells of the first dimension, and the outputs that read them."""
    geometry, (start, end) = part.geometry, cells
    stride, before, extent = geometry.stride[0], geometry.before[0], geometry.extent[0]
    first = max(0, -((extent - 1 - before - start) // stride))
    last = min(geometry.out[0], (end - 1 + before) // stride + 1)
    last = max(first + 1, last) if first < geometry.out[0] else geometry.out[0]
    first = min(first, last - 1)
    ahead = before + start - first * stride
    after = (last - 1 - first) * stride + extent - ahead - (end - start)
    return _with_rows(part, cells, (first, last), (ahead, after))


def _with_rows(part: Part, cells: Range, outputs: Range, padding: tuple[int, int]) -> Part:
    """Return the part with only these cells and outputs of the first dimension, and that padding of the cells."""
    geometry = replace(
        part.geometry,
        size=(cells[1] - cells[0], *part.geometry.size[1:]),
        before=(padding[0], *part.geometry.before[1:]),
        after=(padding[1], *part.geometry.after[1:]),
    )
    assert geometry.out[0] == outputs[1] - outputs[0]
    return Part(geometry, (*part.of_x, slice(*cells)), part.of_w, (*part.of_out, slice(*outputs)))


def place(backend: Backend, result: Array, at: Slices, value: Array, begun: set[tuple[int, ...]]) -> Array:
    """Put the value of a part where it belongs in a result; parts that belong in the same place are added up.

    `begun` holds the places that have a value, and gains this one.
    """
    start = tuple(side.start or 0 for side in at)
    put = backend.add if start in begun else backend.write
    begun.add(start)
    return put(result, (*at, ...), value)
