"""The sums of an output or of an input gradient, each over a window of cells, with a bound of their error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..algorithms.mirrored import mirrored
from ..backends import Array, Workspace
from ..spec.dtypes import gamma
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.ranges import ALL, pieces
from ..spec.remembered import remembered
from ..spec.sequences import Made, Product
from .blocks import Block, block_elements, fill, least_blocks
from .certified import BoundedSums, Place
from .cutting import cut
from .limbs import carry
from .sliced_product import SlicedProduct
from .slicing import slicing


class Dimension(NamedTuple):
    """The sizes of one dimension, of which the cells lie `spacing` apart with zeros between them."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    spacing: int


class Filters(NamedTuple):
    """Quantised filters as windows are multiplied by them, channels last (F, *K, C / G), and their norms (F,).

    Those of an input gradient are the filters of the mirrored convolution.
    """

    array: Array
    norms: Array


@dataclass(frozen=True, eq=False)
class WindowSums(BoundedSums):
    """The sums of an output, or of an input gradient as the output of the mirrored convolution.

    Attributes
    ----------
    cells : array
        Quantised (N, *S, C), channels last, as rows of taps have but a few cells.
    filters : array
        Quantised (F, *K, C / G).
    spacing : tuple of int
        The distance of cells along each dimension; between them lie zeros.
    norms : array, shape (N, G, *P)
        The norms of the windows.
    filter_bounds : array, shape (F,)
        The norms of the filters, times the largest relative error of a sum.
    """

    cells: Array
    filters: Array
    spacing: tuple[int, ...]
    norms: Array
    filter_bounds: Array

    @property
    def terms(self) -> int:
        return self.geometry.group_in * self.geometry.taps

    def error_bound(self, block: Block, workspace: Workspace) -> Array:
        """Return how far the sums of a block can be from the exact ones.

        The magnitudes of a sum's products add up to the product of two norms at most (Cauchy and Schwarz): that of the
        window and that of the filter.
        """
        backend, (samples, channels, *cells) = self.backend, block
        norms = self.norms[(samples, ALL, *cells)]
        if norms.shape[1] > 1:
            groups = [i // self.geometry.group_out for i in range(channels.start, channels.stop)]
            norms = backend.xp.take(norms, self.indices(groups), axis=1)
        factors = backend.xp.reshape(self.filter_bounds[channels], (1, -1, *(1,) * len(cells)))
        bound = workspace("range", (norms.shape[0], factors.shape[1], *norms.shape[2:]), norms.dtype)
        return backend.elementwise("multiply", bound, (...,), norms, factors)

    def exact_sums(self, places: list[Place]) -> tuple[list[Array], int]:
        backend, xp, geometry = self.backend, self.backend.xp, self.geometry
        dimensions = _dimensions(geometry, self.spacing)
        filters = xp.take(self.filters, self.indices([at[1] for at in places]), axis=0)
        windows = backend.zeros(tuple(filters.shape), filters)
        for i, (sample, channel, *position) in enumerate(places):
            first = channel // geometry.group_out * geometry.group_in
            taps, cells = zip(*map(_taps_and_cells, position, dimensions), strict=True)
            window = self.cells[(sample, *cells, slice(first, first + geometry.group_in))]
            windows = backend.write(windows, (i, *taps, ALL), window)
        plan = slicing("float32", self.terms)
        slices = (cut(backend, xp.reshape(array, (len(places), self.terms)), plan) for array in (windows, filters))
        return carry(backend, self.sum_slices(*slices), plan.width), plan.width


def lay_out_filters(sliced: SlicedProduct, geometry: Geometry, filters: Array) -> Filters:
    """Lay quantised filters (F, C / G, *K) out with channels last, mirrored for an input gradient."""
    backend, xp = sliced.backend, sliced.backend.xp
    if sliced.kind == Kind.INPUT_GRAD:
        filters = mirrored(geometry, backend, filters)
    order = _channels_last(filters.ndim)
    array = backend.empty(tuple(filters.shape[axis] for axis in order), filters)
    array = backend.write(array, (...,), xp.permute_dims(filters, order))
    flat = xp.reshape(array, (array.shape[0], -1))
    return Filters(array, xp.sqrt(xp.vecdot(flat, flat)))


def window_sums(sliced: SlicedProduct, geometry: Geometry, cells: Array, filters: Filters) -> WindowSums:
    """Bound the errors of a product of uncut operands; `cells` are quantised (N, C, *S)."""
    xp, squares = sliced.backend.xp, _window_squares(sliced, geometry, cells)
    # Four roundings more than those of the sum: the norms are rounded themselves, and so are the ends of the range.
    filter_bounds = filters.norms * gamma(sliced.roundings(geometry) + 4)
    spacing = (1,) * geometry.dims
    if sliced.kind == Kind.INPUT_GRAD:
        spacing, geometry = geometry.stride, geometry.unstrided.mirrored
    cells = xp.permute_dims(cells, _channels_last(cells.ndim))
    return WindowSums(sliced.powers, geometry, cells, filters.array, spacing, xp.sqrt(squares), filter_bounds)


def _window_squares(sliced: SlicedProduct, geometry: Geometry, cells: Array) -> Array:
    """Add up the squares of the cells (N, C, *S) that each window holds of a group: (N, G, *P)."""
    backend, xp, groups = sliced.backend, sliced.backend.xp, geometry.groups
    channels, size = cells.shape[1] // groups, tuple(cells.shape[2:])
    least, elements = least_blocks(backend, tuple(cells.shape)), block_elements(backend)
    row = max(1, math.prod(size[1:]))
    rows = max(1, min(elements // row, -(-size[0] * cells.shape[0] * groups // least)))
    channels_at_once = max(1, elements // (rows * row))

    def compute(block: Block, target: Array, workspace: Workspace) -> Array:
        sample, group, run = block
        for i, (start, end) in enumerate(pieces(channels, channels_at_once)):
            first = group.start * channels
            part = cells[(sample, slice(first + start, first + end), run, ...)]
            squares = workspace("squares", tuple(part.shape), part.dtype)
            squares = backend.elementwise("multiply", squares, (...,), part, part)
            sums = xp.sum(squares, axis=1, keepdims=True)
            target = backend.add(target, (...,), sums) if i else backend.write(target, (...,), sums)
        return target

    cuts = Product(pieces(cells.shape[0], 1), pieces(groups, 1), pieces(size[0], rows))
    indices = Made(cuts, lambda block: tuple(slice(*piece) for piece in block))
    sums = backend.empty((cells.shape[0], groups, *size), cells)
    sums = fill(backend, sums, Made(indices, lambda block: ((*block, ...), block)), compute, least)
    one = replace(geometry, in_channels=groups, out_channels=groups)
    ones = backend.zeros((1, *one.w_shape), cells) + 1
    return sliced.convolve(one, 1, xp.reshape(sums, (sums.shape[0], 1, *sums.shape[1:])), ones)[:, 0, ...]


def _channels_last(dims: int) -> tuple[int, ...]:
    """Return the order of axes that puts the second one last."""
    return (0, *range(2, dims), 1)


def _dimensions(geometry: Geometry, spacing: tuple[int, ...]) -> list[Dimension]:
    """Return the sizes of each dimension."""
    sizes = (geometry.size, geometry.kernel, geometry.stride, geometry.dilation, geometry.before, spacing)
    return [Dimension(*each) for each in zip(*sizes, strict=True)]


@remembered()
def _taps_and_cells(position: int, dimension: Dimension) -> tuple[slice, slice]:
    """Return the taps of a dimension through which an output reads cells that are no zeros between, and those cells."""
    size, kernel, stride, dilation, before, spacing = dimension
    start = position * stride - before
    first = max(0, -(start // dilation))
    end = min(kernel, -((start - size) // dilation))
    step = spacing // math.gcd(spacing, dilation)
    while first < end and (start + first * dilation) % spacing:
        first += 1
    if first >= end:
        return slice(0, 0), slice(0, 0)
    begin, count = (start + first * dilation) // spacing, -(-(end - first) // step)
    across = step * dilation // spacing
    return slice(first, end, step), slice(begin, begin + (count - 1) * across + 1, across)
