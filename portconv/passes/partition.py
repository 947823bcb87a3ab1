"""A convolution cut into parts, where copies of whole operands would take more memory than a call may.

A call copies operands of another dtype, and operands whose padding is not of zeros, before an algorithm computes. A
part has some of the samples, or a box of one sample's result: cells along one dimension or more. It has some of the
filters, or some of the input's channels where the result is a gradient of these. So the results of parts do not
overlap, but for those of a weight gradient, which are added up.

Parts are made one at a time. However many there are, they have few geometries: that of most, and those of the parts at
the ends of the dimensions that are cut.

Where no part is small enough because taps lie far apart, parts read only what their taps do: `Comb` says how.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import NamedTuple

from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.ranges import Range
from ..spec.remembered import remembered
from ..spec.sequences import Computed
from .part import (
    Part,
    whole,
    with_cells,
    with_combed_cells,
    with_combed_outputs,
    with_filters,
    with_outputs,
    with_samples,
)

SHARE_OF_A_WINDOW = 4
"""A box has at least one fourth of a window's length along each dimension: shorter ones would read most cells often."""
AT_AN_END = 2 * SHARE_OF_A_WINDOW
"""So many parts on either side of an end of the input may have a geometry of their own: parts are no shorter than half
of that length."""


class Bytes(NamedTuple):
    """The bytes of copies for each element of the arrays of three roles, and of the padded input."""

    x: int = 0
    w: int = 0
    out: int = 0
    padded: int = 0

    def of(self, batch: int, cells: tuple[int, int, int], weights: int) -> int:
        """Add up the copies of samples of so many cells of the input, of the padded one and of the output."""
        x, padded, out = cells
        return batch * (x * self.x + padded * self.padded + out * self.out) + weights * self.w

    def __bool__(self) -> bool:
        return any(self[:])


class Copies(NamedTuple):
    """The bytes of the copies that a product makes: as a whole, and those of a part, with the part's own result.

    `combed` are those of a part whose cells are put together first.
    """

    whole: Bytes = Bytes()
    part: Bytes = Bytes()
    combed: Bytes = Bytes()

    def __bool__(self) -> bool:
        return bool(self.whole)

    def bytes(self, geometry: Geometry, cut: bool, combed: bool = False) -> int:
        """Add up all copies, for the whole of a geometry or for a part."""
        each = self.combed if combed else self.part if cut else self.whole
        return each.of(geometry.batch, _cells(geometry), geometry.weights)


class Pieces(NamedTuple):
    """`range(total)` in pieces of `length`, of which the last may be shorter."""

    total: int
    length: int

    @property
    def cuts(self) -> int:
        """How many pieces there are."""
        return -(-self.total // self.length) if self.total else 1

    def piece(self, number: int) -> Range:
        """Return the piece of that number."""
        return number * self.length, min(self.total, (number + 1) * self.length)

    def near(self, *places: int) -> list[int]:
        """Return the numbers of the pieces at both ends and about some places."""
        numbers = {0, self.cuts - 1}
        for place in places:
            middle = place // self.length
            numbers.update(range(middle - AT_AN_END, middle + AT_AN_END + 1))
        return sorted(number for number in numbers if 0 <= number < self.cuts)


@dataclass(frozen=True)
class Parts(Computed[Part]):
    """The parts of a product, in an order in which those of the same filters follow one another.

    Attributes
    ----------
    geometry : Geometry
    kind : Kind
    filters : Pieces
        Of the groups, the filters or the input's channels.
    samples : Pieces
    box : tuple of Pieces
        Of the cells of the result along each dimension, which are cut for one sample at a time; () if they are not.
    combed : bool
        Whether parts that are shorter than the gaps between taps read only what taps do.
    """

    geometry: Geometry
    kind: Kind
    filters: Pieces
    samples: Pieces
    box: tuple[Pieces, ...] = ()
    combed: bool = False

    def __len__(self) -> int:
        return self._count

    def at(self, number: int) -> Part:
        numbers: list[int] = []
        for cuts in reversed(self._cuts):
            number, piece = divmod(number, cuts)
            numbers.insert(0, piece)
        return self._part(*numbers)

    def by_filters(self) -> Iterator[Sequence[Part]]:
        """Yield the parts of the same filters, or of the same channels of an input gradient."""
        each = len(self) // self.filters.cuts
        return (self[start : start + each] for start in range(0, len(self), each))

    @cached_property
    def filled_dim(self) -> int | None:
        """The dimension whose rows in parts are those of the input with its padding, which is not of zeros."""
        cut = (dim for dim, pieces in enumerate(self.box) if pieces.cuts > 1 and self.geometry.is_filled(dim))
        return next(cut, None)

    def geometries(self) -> list[Geometry]:
        """Return the geometries of all parts, each once."""
        return self._geometries

    @cached_property
    def _geometries(self) -> list[Geometry]:
        sides = [self._sides(dim) for dim in range(len(self.box))]
        numbers = product(self.filters.near(), self.samples.near(), *sides)
        return list(dict.fromkeys(self._part(*each).geometry for each in numbers))

    @cached_property
    def _count(self) -> int:
        return prod(self._cuts)

    @cached_property
    def _cuts(self) -> tuple[int, ...]:
        return self.filters.cuts, self.samples.cuts, *(pieces.cuts for pieces in self.box)

    def _sides(self, dim: int) -> Iterable[int]:
        """Return the number of one piece of a dimension for each geometry that its pieces have."""
        uncut = whole(self.geometry)
        numbers = reversed(self.box[dim].near(*self._ends(dim)))
        return {self._side(uncut, dim, number).geometry: number for number in numbers}.values()

    def _ends(self, dim: int) -> tuple[int, int]:
        """Return about which cells the parts are at an end of the input, or of the cells that windows reach."""
        geometry = self.geometry
        before, stride = geometry.before[dim], geometry.stride[dim]
        if self.kind == Kind.INPUT_GRAD:
            return 0, (geometry.out[dim] - 1) * stride + geometry.extent[dim] - before
        return before // stride, (before + geometry.size[dim]) // stride

    def _side(self, part: Part, dim: int, number: int) -> Part:
        """Return the part with only one piece of a dimension."""
        if self.box[dim].cuts == 1:
            return part
        of_x, rows = self.kind == Kind.INPUT_GRAD, self.box[dim].piece(number)
        if self.combed and _is_combed(self.geometry, self.kind, dim, rows[1] - rows[0]):
            return (with_combed_cells if of_x else with_combed_outputs)(part, dim, rows)
        return (with_cells if of_x else with_outputs)(part, dim, rows)

    def _part(self, filters: int, samples: int, *box: int) -> Part:
        part = whole(self.geometry)
        if self.filters.cuts > 1:
            part = with_filters(part, self.kind, self.filters.piece(filters))
        if self.samples.cuts > 1:
            part = with_samples(part, self.samples.piece(samples))
        for dim, number in enumerate(box):
            part = self._side(part, dim, number)
        return part


def whole_of(geometry: Geometry, kind: Kind) -> Parts:
    """Return a product as one part."""
    of_one_group = geometry.in_channels if kind == Kind.INPUT_GRAD else geometry.out_channels
    filters = geometry.groups if geometry.groups > 1 else of_one_group
    return Parts(geometry, kind, Pieces(filters, filters), Pieces(geometry.batch, max(1, geometry.batch)))


@remembered()
def parts(geometry: Geometry, kind: Kind, copies: Copies, most: int, gathers: bool = True) -> Parts | None:
    """Cut a product so that its copies take at most `most` bytes; return None where no cut does.

    `gathers` says whether the cells of a part may be put together first: padding that is not of zeros filled in, and
    what the taps of a large dilation read.
    """
    every = whole_of(geometry, kind)
    if copies.bytes(geometry, cut=False) <= most:
        return every
    length = every.filters.length
    while True:
        filters = Pieces(every.filters.total, length)
        some = with_filters(whole(geometry), kind, filters.piece(0)).geometry
        of_filters = copies.part.w * some.weights
        # Some of the samples need all filters again: if these take more than half, they are cut further.
        if of_filters <= most // 2 or length == 1:
            of_sample = copies.bytes(replace(some, batch=1), cut=True) - of_filters
            at_once = (most - of_filters) // max(1, of_sample)
            if at_once > 0:
                return Parts(geometry, kind, filters, _even(geometry.batch, at_once))
            for combed in (False, True)[: 1 + gathers]:
                each = copies.combed if combed else copies.part
                box = _box(some, kind, each, most, gathers, combed)
                if box is not None:
                    return Parts(geometry, kind, filters, Pieces(geometry.batch, 1), box, combed)
        if length == 1:
            return None
        length = -(-length // 2)


def in_rows(geometry: Geometry, most: int) -> Parts | None:
    """Cut the weight gradient of one sample into rows of at most `most` positions; return None where no cut does."""
    if geometry.positions <= most:
        return None
    box = _box(geometry, Kind.WEIGHT_GRAD, Bytes(out=1), most * geometry.out_channels)
    return None if box is None else replace(whole_of(geometry, Kind.WEIGHT_GRAD), box=box)


def _box(
    geometry: Geometry, kind: Kind, each: Bytes, most: int, gathers: bool = True, combed: bool = False
) -> tuple[Pieces, ...] | None:
    """Cut a sample into boxes of at most `most` bytes, along as few dimensions as that takes; None where none can."""
    if kind == Kind.INPUT_GRAD and geometry.extended is not geometry:
        return None  # a cell would get what its copies in the padding of other parts do
    sizes = geometry.size if kind == Kind.INPUT_GRAD else geometry.out

    def fits(lengths: list[int]) -> bool:
        return each.of(1, _cells_of_box(geometry, kind, lengths, combed), geometry.weights) <= most

    for share in (SHARE_OF_A_WINDOW,) if combed else (1, SHARE_OF_A_WINDOW):
        cut = [*sizes]
        for dim, total in enumerate(sizes):
            unit = geometry.stride[dim] if kind == Kind.INPUT_GRAD else 1
            least = -(-geometry.extent[dim] // (geometry.stride[dim] * share)) * unit
            is_filled = geometry.is_filled(dim)
            if combed and _is_combed(geometry, kind, dim, unit):
                least = unit
            if least >= total or (is_filled and not gathers):
                continue
            # Where padding is filled in for some rows at a time, no other dimension is cut.
            lengths = [*sizes] if is_filled else cut[:]
            low, high = least // unit, -(-total // unit)
            lengths[dim] = least
            if not fits(lengths):
                cut = cut if is_filled else lengths
                continue
            while high - low > 1:
                middle = (low + high) // 2
                lengths[dim] = middle * unit
                low, high = (middle, high) if fits(lengths) else (low, middle)
            lengths[dim] = _even(-(-total // unit), low).length * unit
            return tuple(Pieces(size, max(1, length)) for size, length in zip(sizes, lengths, strict=True))
    return None


def _even(total: int, most: int) -> Pieces:
    """Cut a range into the fewest pieces of at most `most`, of nearly one length."""
    return Pieces(total, max(1, -(-total // -(-max(1, total) // most))))


def _cells(geometry: Geometry) -> tuple[int, int, int]:
    """Count the cells of a sample of the input, of the padded input and of the output."""
    channels = geometry.in_channels
    return channels * prod(geometry.size), channels * prod(geometry.padded), geometry.out_channels * geometry.positions


def _is_combed(geometry: Geometry, kind: Kind, dim: int, length: int) -> bool:
    """Return whether a box of this length reads more than its taps do, which can be put together."""
    has_gaps = geometry.kernel[dim] > 1 and not geometry.is_filled(dim)
    return has_gaps and _run(geometry, kind, dim, length) < geometry.dilation[dim]


def _run(geometry: Geometry, kind: Kind, dim: int, length: int) -> int:
    """Count the cells from the first to the last that one tap reads for a box of this length."""
    return length if kind == Kind.INPUT_GRAD else (length - 1) * geometry.stride[dim] + 1


def _cells_of_box(geometry: Geometry, kind: Kind, lengths: list[int], combed: bool = False) -> tuple[int, int, int]:
    """Count, as `_cells` does, what a box of a result has and reads at most; it has these lengths."""
    inputs, padded, outputs = geometry.in_channels, geometry.in_channels, geometry.out_channels
    for dim, length in enumerate(lengths):
        stride, extent, size, out = (
            line[dim] for line in (geometry.stride, geometry.extent, geometry.size, geometry.out)
        )
        if length >= (size if kind == Kind.INPUT_GRAD else out):
            cells, results, filled = size, out, geometry.padded[dim]
        elif combed and _is_combed(geometry, kind, dim, length):
            read = geometry.kernel[dim] * _run(geometry, kind, dim, length)
            cells, results = (length, read) if kind == Kind.INPUT_GRAD else (read, length)
            filled = cells
        elif kind == Kind.INPUT_GRAD:
            cells, results = length, min(out, (length + extent - 2) // stride + 1)
            filled = cells
        else:
            reached = geometry.padded[dim] if geometry.is_filled(dim) else size
            cells, results = min(reached, (length - 1) * stride + extent), length
            filled = cells
        inputs, padded, outputs = inputs * cells, padded * filled, outputs * results
    return inputs, padded, outputs
