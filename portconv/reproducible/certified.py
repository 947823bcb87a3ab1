"""Sums rounded from one float64 product, where its error is too small to matter; exact sums of the others.

Quantised operands are multiplied as they are. What comes of it is off by gamma_n times the sum of the products'
magnitudes at most, in whatever order it is added up: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed.
(2002), section 3.1. Where both ends of that range are rounded to one number, so is the sum itself (see `limbs.ends`).
Of a thousand outputs one or a few are not decided: what they sum is gathered, and multiplied as slices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import NamedTuple

from ..algorithms.mirrored import mirrored
from ..backends import Array, Backend, Workspace
from ..spec.dtypes import gamma
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, pieces
from .bias import addend
from .blocks import STEPS, Box, at_once, blocks, least
from .limbs import carried, ends, rounded
from .operands import Operand, along, power, scaled
from .slices import SIGNIFICANT, Slicing, cut, slicing

UNCUT = Slicing(SIGNIFICANT["float32"], SIGNIFICANT["float32"], 1, 1)
"""Operands that are multiplied as they are, quantised."""
LONGEST = 5000
"""Terms from which on the windows that are not decided take longer than two products more."""
RUN = 1 << 8
"""Terms of a weight gradient that are added up by themselves: the more, the larger the error."""
ALWAYS = 8
"""So many sums may be left undecided, of however few."""
Place = tuple[int, ...]
"""Where a result has an element."""


@dataclass(frozen=True, eq=False)
class Near:
    """Products that are not exact, and what exact sums are made of.

    Attributes
    ----------
    backend : Backend
    geometry : Geometry
        The convolution that the sums are of.
    powers : array
        The powers of two.
    """

    backend: Backend
    geometry: Geometry
    powers: Array

    few = 256
    """Of so many sums one may be left undecided."""

    @property
    def terms(self) -> int:
        """How many products a sum has."""
        raise NotImplementedError

    def sums(self, places: list[Place]) -> tuple[list[Array], int]:
        """The exact sums of these places, as carried limbs (m,), and their width."""
        raise NotImplementedError

    def error(self, block: Box, workspace: Workspace) -> Array:
        """How far from the sums the products of a block are at most."""
        raise NotImplementedError

    def put(self, out: Array, products: Array, exponents: Array, bias: Array | None) -> Array | None:
        """`out` rounded from products, with a bias (F,) added; None where too few are decided.

        Sums count two to the `exponents`, for each element of the first two axes. None may be below the smallest normal
        number, nor with a bias.
        """
        backend, xp = self.backend, self.backend.xp
        factors, more = scaled(backend, self.powers, exponents, out), addend(backend, bias, out)
        most = max(ALWAYS, math.prod(out.shape) // self.few)
        left: list[Place] = []

        def compute(block: Box, target: Array, workspace: Workspace) -> Array:
            if len(left) > most:
                return target
            high, same = ends(backend, products[block], self.error(block, workspace), target.dtype, workspace)
            target = backend.elementwise("multiply", target, (...,), high, factors[(*block[:2], ...)])
            if not bool(xp.all(same)):
                left.extend(_places(block, xp.nonzero(xp.logical_not(same))))
            return backend.elementwise("add", target, (...,), target, more[:, block[1], ...])

        cut_to = [(block, block) for block in blocks(backend, tuple(out.shape))]
        out = backend.fill(out, cut_to, compute, least(backend, out.shape))
        if len(left) > most:
            return None
        return self.settle(out, left, exponents, xp.reshape(more, (-1,))) if left else out

    def settle(self, out: Array, places: list[Place], exponents: Array, more: Array) -> Array:
        """`out` with exact sums, rounded, in these places, and `more` for each of the second axis."""
        backend, xp = self.backend, self.backend.xp
        rows, columns = [at[0] * exponents.shape[1] + at[1] for at in places], [at[1] for at in places]
        scales = xp.take(xp.reshape(exponents, (-1,)), self.indices(rows), axis=0)
        added = xp.take(more, self.indices(columns), axis=0)

        def compute(block: Box, target: Array, workspace: Workspace) -> Array:
            limbs, width = self.sums(places[block[0]])
            limbs = [xp.reshape(limb, (-1, 1)) for limb in limbs]
            values = rounded(backend, limbs, width, self.powers, xp.reshape(scales[block], (-1, 1)), "float32")
            return values[:, 0] + added[block]

        together = max(1, at_once(backend) // self.terms)
        cut_to = [((slice(*piece),), (slice(*piece),)) for piece in pieces(len(places), together)]
        threads = backend.least_blocks(STEPS * len(places) * self.terms, 2)
        values = backend.fill(backend.empty((len(places),), out), cut_to, compute, threads)
        for i, at in enumerate(places):
            out = backend.write(out, at, values[i])
        return out

    def indices(self, numbers: list[int]) -> Array:
        return self.backend.asarray(numbers, self.backend.dtype("int64"), self.backend.device_of(self.powers))

    def weighed(self, ones: list[Array], others: list[Array]) -> list[Array]:
        """Sum the products of slices along the last axis, by their weight."""
        sums = [0.0] * (len(ones) + len(others) - 1)
        for (i, one), (j, other) in product(enumerate(ones), enumerate(others)):
            sums[i + j] = sums[i + j] + self.backend.xp.vecdot(one, other)
        return sums


@dataclass(frozen=True, eq=False)
class Windows(Near):
    """Of an output, or of an input gradient.

    Attributes
    ----------
    cells, filters : array
        Quantised, (N, *S, C) and (F, *K, C / G): channels last, where rows of taps are but a few cells long.
    apart : tuple of int
        How far apart the cells are to be spaced, with zeros between them.
    norms : array, shape (N, G, *P)
        Of windows.
    of_filters : array, shape (F,)
        The norms of filters, times the largest error that a sum of as many terms can have of their product.
    """

    cells: Array
    filters: Array
    apart: tuple[int, ...]
    norms: Array
    of_filters: Array

    @property
    def terms(self) -> int:
        return self.geometry.group_in * self.geometry.taps

    def error(self, block: Box, workspace: Workspace) -> Array:
        backend, (samples, channels, *cells) = self.backend, block
        own = self.norms[(samples, ALL, *cells)]
        if own.shape[1] > 1:
            count = self.geometry.group_out
            own = backend.xp.take(own, self.indices([i // count for i in range(channels.start, channels.stop)]), axis=1)
        factors = backend.xp.reshape(self.of_filters[channels], (1, -1, *(1,) * len(cells)))
        room = workspace("range", (own.shape[0], factors.shape[1], *own.shape[2:]), own.dtype)
        return backend.elementwise("multiply", room, (...,), own, factors)

    def sums(self, places: list[Place]) -> tuple[list[Array], int]:
        backend, xp, own = self.backend, self.backend.xp, self.geometry
        filters = xp.take(self.filters, self.indices([at[1] for at in places]), axis=0)
        windows = backend.zeros(tuple(filters.shape), filters)
        for i, (sample, channel, *position) in enumerate(places):
            first = channel // own.group_out * own.group_in
            taps, cells = zip(
                *map(_reach, position, own.size, own.kernel, own.stride, own.dilation, own.before, self.apart),
                strict=True,
            )
            window = self.cells[(sample, *cells, slice(first, first + own.group_in))]
            windows = backend.write(windows, (i, *taps, ALL), window)
        cut_to = slicing("float32", self.terms)
        flat = (xp.reshape(array, (len(places), self.terms)) for array in (windows, filters))
        sums = self.weighed(*(cut(backend, array, cut_to) for array in flat))
        return carried(backend, sums, cut_to.width), cut_to.width


@dataclass(frozen=True, eq=False)
class Correlations(Near):
    """Of a weight gradient.

    Attributes
    ----------
    grads, cells : Operand
        All of `dout` and of `x`.
    first : int
        The filter that a result's first one is.
    errors : array, shape (F, C / G)
        How far from the sum a product is at most.
    """

    grads: Operand
    cells: Operand
    first: int
    errors: Array

    few = 64

    @property
    def terms(self) -> int:
        return self.geometry.batch * self.geometry.positions

    def error(self, block: Box, workspace: Workspace) -> Array:
        return along(self.backend, self.errors[block[:2]], len(block) - 2)

    @cached_property
    def factors(self) -> tuple[Array, Array]:
        """What the channels of both are multiplied by to be quantised."""
        of_grads, of_cells = (
            power(self.backend, self.powers, UNCUT.bits - 1 - this.exponents[0, :]) for this in (self.grads, self.cells)
        )
        return of_grads, of_cells

    def sums(self, places: list[Place]) -> tuple[list[Array], int]:
        backend, own, found = self.backend, self.geometry, []
        cut_to = slicing("float32", own.positions)
        for output, channel, *taps in places:
            filter_ = self.first + output
            channel += filter_ // own.group_out * own.group_in
            met = [own.spans(dim, (0, own.out[dim]))[tap] for dim, tap in enumerate(taps)]
            one = self.quantised(0, filter_, tuple(span.outputs for span in met))
            other = self.quantised(1, channel, tuple(span.inputs for span in met))
            sums = self.weighed(cut(backend, one, cut_to), cut(backend, other, cut_to))
            limbs = carried(backend, [*sums, backend.xp.zeros_like(sums[0])], cut_to.width)
            found.append([backend.xp.sum(limb, axis=0) for limb in limbs])
        limbs = [backend.xp.stack(each) for each in zip(*found, strict=True)]
        return carried(backend, limbs, cut_to.width), cut_to.width

    def quantised(self, side: int, channel: int, cells: Box) -> Array:
        """Numbers of a channel, (N, cells)."""
        backend, this = self.backend, (self.grads, self.cells)[side]
        part = this.array[(ALL, channel, *cells)]
        part = backend.xp.reshape(part, (part.shape[0], math.prod(part.shape[1:])))
        return backend.xp.round(this.doubles(backend, part) * self.factors[side][channel])


def serves(backend: Backend, geometry: Geometry, purpose: str, like: Array) -> bool:
    """Whether sums take less time looked at one by one than all of them multiplied as slices."""
    some = geometry.operations * math.prod(geometry.size) > 0
    if not some or geometry.extended is not geometry or not backend.at_hand(like):
        return False
    if purpose == "weight_grad":
        # Of longer sums too many are not decided, and each takes too long.
        return geometry.batch * geometry.positions <= at_once(backend)
    return geometry.terms(purpose) <= LONGEST


class Turned(NamedTuple):
    """Filters as windows are multiplied by them, (F, *K, C / G), and their norms (F,)."""

    filters: Array
    norms: Array


def turned(backend: Backend, geometry: Geometry, purpose: str, filters: Array) -> Turned:
    """Turn quantised filters: their channels last, and of an input gradient those of the mirrored convolution."""
    xp = backend.xp
    filters = mirrored(geometry, backend, filters) if purpose == "input_grad" else filters
    order = _last(filters.ndim)
    made = backend.empty(tuple(filters.shape[axis] for axis in order), filters)
    made = backend.write(made, (...,), xp.permute_dims(filters, order))
    flat = xp.reshape(made, (made.shape[0], -1))
    return Turned(made, xp.sqrt(xp.vecdot(flat, flat)))


def windows(
    backend: Backend,
    geometry: Geometry,
    purpose: str,
    powers: Array,
    cells: Array,
    by: Turned,
    squares: Array,
    rounded: int,
) -> Windows:
    """Bound the error of the products of quantised operands, which are `rounded` so many times at most.

    What is quantised of magnitudes sums up to the product of two norms at most (Cauchy and Schwarz): that of a window,
    whose `squares` are added up to (N, G, *P), and that of a filter.
    """
    xp, apart = backend.xp, (1,) * geometry.dims
    if purpose == "input_grad":
        apart, geometry = geometry.stride, geometry.unstrided.mirrored
    cells = xp.permute_dims(cells, _last(cells.ndim))
    # Four more: norms are rounded themselves, and so are the ends of the range.
    of_filters = by.norms * gamma(rounded + 4)
    return Windows(backend, geometry, powers, cells, by.filters, apart, xp.sqrt(squares), of_filters)


def magnitude(backend: Backend, geometry: Geometry, grads: Array, cells: Array) -> Array:
    """Bound the sums of the magnitudes of a weight gradient's products, (F, C / G), by Cauchy and Schwarz."""
    xp, sides = backend.xp, []
    for array, channels in ((grads, geometry.group_out), (cells, geometry.group_in)):
        flat = xp.reshape(array, (geometry.batch, geometry.groups, channels, math.prod(array.shape[2:])))
        sides.append(xp.permute_dims(xp.sqrt(xp.vecdot(flat, flat)), (1, 2, 0)))
    found = backend.product(sides[0], xp.permute_dims(sides[1], (0, 2, 1)))
    return xp.reshape(found, (geometry.out_channels, geometry.group_in))


def _places(block: Box, found: tuple[Array, ...]) -> list[Place]:
    """Where elements of a block are in the whole."""
    columns = (
        [(side.start or 0) + int(at[i]) for i in range(at.shape[0])] for side, at in zip(block, found, strict=True)
    )
    return list(zip(*columns, strict=True))


def _last(dims: int) -> tuple[int, ...]:
    """The order of axes that has channels last."""
    return (0, *range(2, dims), 1)


@lru_cache(maxsize=8192)
def _reach(
    position: int, size: int, kernel: int, stride: int, dilation: int, before: int, apart: int
) -> tuple[slice, slice]:
    """Which taps of a dimension an output reads cells through, and which cells, that are spaced so far apart."""
    start = position * stride - before
    first = max(0, -(start // dilation))
    end = min(kernel, -((start - size) // dilation))
    step = apart // math.gcd(apart, dilation)
    while first < end and (start + first * dilation) % apart:
        first += 1
    if first >= end:
        return slice(0, 0), slice(0, 0)
    begin, count = (start + first * dilation) // apart, -(-(end - first) // step)
    across = step * dilation // apart
    return slice(first, end, step), slice(begin, begin + (count - 1) * across + 1, across)
