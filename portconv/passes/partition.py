"""A convolution cut into parts, for where copies of whole arguments would take more memory than a call may.

Arrays of another dtype are converted, and padding that is not of zeros is filled in, before an algorithm sees them. A
part has some of the samples, or of one sample some rows of the result, and some of the filters, or of the input's
channels where that is what they are the gradient of, so that parts of results never overlap but in a weight gradient,
whose parts are added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from ..spec.operation import Kind, Role
from ..spec.ranges import ALL, Range, pieces

Index = tuple[slice, ...]


class Copies(NamedTuple):
    """Bytes of copies that a product makes: for each sample, and of filters; and more of both, where it is cut."""

    sample: int
    filters: int
    more_sample: int
    more_filters: int

    def __bool__(self) -> bool:
        return self.sample + self.filters > 0

    def bytes(self, geometry: Geometry, cut: bool) -> int:
        """All of them, for the whole of a geometry or for a part."""
        more = self.more_sample * geometry.batch + self.more_filters if cut else 0
        return self.sample * geometry.batch + self.filters + more


class Part(NamedTuple):
    """A convolution of its own, and where its arrays lie in (N, C, *S), (F, C/G, *K) and (N, F, *P)."""

    geometry: Geometry
    of_x: Index
    of_w: Index
    of_out: Index

    def at(self, role: Role) -> Index:
        """Return where the part lies in the array of a role."""
        return {Role.X: self.of_x, Role.W: self.of_w, Role.OUT: self.of_out}[role]

    def operands(self, kind: Kind, operands: tuple[Array, ...]) -> tuple[Array, ...]:
        """Cut the part out of the operands of a product; of a bias, the channels that the part makes."""
        arrays = tuple(array[(*self.at(role), ...)] for role, array in zip(kind.operands, operands, strict=False))
        return *arrays, *(bias[self.at(kind.result)[1]] for bias in operands[2:])


def whole(geometry: Geometry) -> Part:
    """All of it as one part."""
    return Part(geometry, (ALL, ALL), (ALL, ALL), (ALL, ALL))


@lru_cache(maxsize=256)
def parts(geometry: Geometry, purpose: str, copies: Copies, room: int) -> tuple[Part, ...] | None:
    """Cut a product, so that its copies take no more than `room` bytes; None where no cut does."""
    if not copies or copies.bytes(geometry, cut=False) <= room:
        return (whole(geometry),)
    if room < 1:
        return None
    of_filters, of_sample = copies.filters + copies.more_filters, copies.sample + copies.more_sample
    cuts = 1 if of_filters <= room // 2 else -(-2 * of_filters // room)
    some = list(_of_filters(geometry, purpose, cuts))
    if len(some) < cuts:
        return None
    # Nearly all filters of the longest range there is.
    left = room - -(-of_filters // len(some)) * (1 if len(some) == 1 else 2)
    if of_sample <= left:
        cuts_of_samples = pieces(geometry.batch, left // max(1, of_sample))
        return tuple(with_samples(part, samples) for part, samples in product(some, cuts_of_samples))
    rows = geometry.size[0] if purpose == "input_grad" else geometry.out[0]
    # What a part reads beyond its share, of the other array: a window's length of it, at most.
    reach = geometry.extent[0] + geometry.stride[0]
    most = left * max(rows, geometry.size[0], 1) // of_sample - 2 * reach
    most = most * rows // max(rows, geometry.size[0], 1)
    if most < 1 or geometry.mode != "zeros":
        return None
    found = []
    for part, sample, cut in product(some, range(geometry.batch), pieces(rows, most)):
        one = with_samples(part, (sample, sample + 1))
        found.append(_rows_of_x(one, cut) if purpose == "input_grad" else _rows_of_out(one, cut))
    return tuple(found)


def _of_filters(geometry: Geometry, purpose: str, cuts: int) -> Iterator[Part]:
    """Some groups; of a single group some filters, or channels where the result is a gradient of them."""
    every = (ALL, ALL)
    if geometry.groups > 1:
        for first, end in pieces(geometry.groups, geometry.groups // cuts):
            count = end - first
            channels = slice(first * geometry.group_in, end * geometry.group_in)
            filters = slice(first * geometry.group_out, end * geometry.group_out)
            own = replace(
                geometry,
                groups=count,
                in_channels=count * geometry.group_in,
                out_channels=count * geometry.group_out,
            )
            yield Part(own, (ALL, channels), (filters, ALL), (ALL, filters))
    elif purpose == "input_grad":
        for first, end in pieces(geometry.in_channels, geometry.in_channels // cuts):
            own = replace(geometry, in_channels=end - first)
            yield Part(own, (ALL, slice(first, end)), (ALL, slice(first, end)), every)
    else:
        for first, end in pieces(geometry.out_channels, geometry.out_channels // cuts):
            own = replace(geometry, out_channels=end - first)
            yield Part(own, every, (slice(first, end), ALL), (ALL, slice(first, end)))


def with_samples(part: Part, samples: Range) -> Part:
    """Some samples of a part, as the whole counts them."""
    own = replace(part.geometry, batch=samples[1] - samples[0])
    return Part(own, (slice(*samples), *part.of_x[1:]), part.of_w, (slice(*samples), *part.of_out[1:]))


def _rows_of_out(part: Part, rows: Range) -> Part:
    """Some outputs of the first dimension, and the cells that they read."""
    own, (start, end) = part.geometry, rows
    first = start * own.stride[0] - own.before[0]
    last = (end - 1) * own.stride[0] + own.extent[0] - own.before[0]
    lo = min(max(first, 0), own.size[0])
    hi = min(max(last, lo), own.size[0])
    return _cut(part, (lo, hi), rows, lo - first, last - hi)


def _rows_of_x(part: Part, cells: Range) -> Part:
    """Some cells of the first dimension, and the outputs that read them."""
    own, (start, end) = part.geometry, cells
    stride, before = own.stride[0], own.before[0]
    first = max(0, -((own.extent[0] - 1 - before - start) // stride))
    last = min(own.out[0], (end - 1 + before) // stride + 1)
    last = max(first + 1, last) if first < own.out[0] else own.out[0]
    first = min(first, last - 1)
    ahead = before + start - first * stride
    after = (last - 1 - first) * stride + own.extent[0] - ahead - (end - start)
    return _cut(part, cells, (first, last), ahead, after)


def _cut(part: Part, cells: Range, rows: Range, before: int, after: int) -> Part:
    own = replace(
        part.geometry,
        size=(cells[1] - cells[0], *part.geometry.size[1:]),
        before=(before, *part.geometry.before[1:]),
        after=(after, *part.geometry.after[1:]),
    )
    assert own.out[0] == rows[1] - rows[0]
    return Part(own, (*part.of_x, slice(*cells)), part.of_w, (*part.of_out, slice(*rows)))


def place(backend: Backend, result: Array, at: Index, value: Array, begun: set[tuple[int, ...]]) -> Array:
    """Put the value of a part where it belongs in a result; parts that belong in the same place are added up.

    `begun` holds the places that have a value, and gains this one.
    """
    start = tuple(side.start or 0 for side in at)
    put = backend.add if start in begun else backend.write
    begun.add(start)
    return put(result, (*at, ...), value)
