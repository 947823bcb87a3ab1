"""Products of spectra: Fourier transforms of input and filters, and back, whose cost hardly grows with the kernel.

Cooley and Tukey (1965) made the transform fast, Stockham, "High-speed convolution and correlation" (1966), convolved by
it, and cut long inputs into tiles (overlap-save). Mathieu, Henaff and LeCun, "Fast training of convolutional networks
through FFTs" (ICLR 2014), section 2, do so for all three products of a layer. A transform of N points multiplies
spectra point by point for a circular convolution, so along each dimension N is as large as keeps what comes round from
meeting what is wanted: not as large as the padded input where padding is zeros, as those need no room.

Each tile reads a segment of the input, from `offset` cells after the first cell that its first output's window has.
Filters lie in their N points in reverse order from there, so that output t of a tile lies at point t; and the gradient
of the output lies in reverse order in its own, so that nothing needs to be conjugated and complex numbers are served.

An output is small beside what else lies in its tile only up to rounding, and an infinity or nan makes the whole tile
nan: where a result is not finite, there is none.

Axes, in this order: n samples, g groups, c channels and f filters of a group, Q points of a spectrum.
"""

from __future__ import annotations

import math

from ..backends import Array, Backend, Workspace
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.ranges import ALL, Range, edges
from .algorithm import SLICED, Algorithm, PlainProduct
from .budget import Budget, Work
from .fft_spectra import Spectra
from .fft_tiles import Tile, Tiling, count_work, count_workspace, cut_tiles

STAGES = 12
"""Unit roundoffs for each doubling of a transform's points: more than the error of a stage of 2, 3 or 5 for each."""
Block = tuple[Range, Range, Tile]
"""Samples, groups and a tile."""


class Fft(Algorithm):
    """Products of spectra of tiles."""

    name = "fft"
    order = 20
    handicap = 1.25
    """Its errors are small beside the largest sums of a tile alone."""
    plain_sums = False

    def objection(self, geometry: Geometry, dtype: Dtype, backend: Backend) -> str | None:
        """Say that it serves stride 1 and floating point: spectra round integers."""
        if dtype.kind == SLICED:
            return "a precision other than 'reproducible'"
        if dtype.kind == "integral":
            return "floating point"
        if not hasattr(backend.xp, "fft"):
            return "a library with Fourier transforms"
        return None if geometry.dense else "stride 1"

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count what a product takes."""
        if kind == Kind.INPUT_GRAD:
            return self.mirrored_work(geometry, budget, backend)
        return count_work(kind, geometry, *self.plan(kind, geometry, budget))

    def cut(self, kind: str, geometry: Geometry, budget: Budget, elements: int) -> Tiling:
        """Cut a product so that what a block works on holds about so many elements."""
        return cut_tiles(geometry, budget, elements)

    def workspace_elements(self, kind: str, geometry: Geometry, plan: Tiling) -> int:
        """Count the elements of workspace of a plan."""
        return count_workspace(kind, geometry, plan)

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array | None:
        # Taps that read padding alone may share a point, and a nan must not be lost there.
        if not backend.all_finite(w):
            return None
        xp = backend.xp
        cells = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
        w = xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, *geometry.kernel))
        bias = None if b is None else xp.reshape(b, (geometry.groups, geometry.group_out, *(1,) * geometry.dims))
        tiling: Tiling = self.plan(Kind.FORWARD, geometry, budget)[0]
        spectra = Spectra(backend, x, tiling)
        not_finite: list[Tile] = []

        def compute(block: Block, target: Array, workspace: Workspace) -> Array:
            samples, groups, tile = block
            segment = _segment(tiling, backend, cells[slice(*samples), slice(*groups), ...], tile, workspace)
            inputs = spectra.of(segment, workspace, "x")
            part = slice(*_moved(groups, held))
            products = spectra.multiplied(
                inputs, filters[:, part, :, :] if tiling.mixed else filters[part, ...], workspace
            )
            value = spectra.back(products, workspace)
            target = backend.write(target, (...,), value[(ALL, ALL, ALL, *(slice(n) for n in target.shape[3:]))])
            if not backend.all_finite(target):
                not_finite.append(tile)
            return target if bias is None else backend.add(target, (...,), bias[slice(*groups), ...])

        shape = (geometry.batch, geometry.groups, geometry.group_out, *geometry.out)
        out = backend.empty(shape, like=x, last=2 * geometry.channels_last)
        with backend.quiet():
            for held in tiling.held:
                filters: Array = spectra.of_filters(w[slice(*held), ...], budget.least_blocks)
                blocks = [
                    ((slice(*samples), slice(*groups), ALL, *tile.outputs), (samples, groups, tile))
                    for samples, groups, tile in tiling.blocks(held)
                ]
                out = backend.fill(out, blocks, compute, budget.least_blocks)
                filters = None  # or those of the next groups would be as many more
        return None if not_finite else xp.reshape(out, geometry.out_shape)

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array | None:
        xp = backend.xp
        cells = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
        values = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
        tiling: Tiling = self.plan(Kind.WEIGHT_GRAD, geometry, budget)[0]
        spectra = Spectra(backend, x, tiling)

        def compute(share: tuple[Block, ...], target: Array, workspace: Workspace) -> Array:
            for block in share:
                samples, groups, tile = block
                segment = _segment(tiling, backend, cells[slice(*samples), slice(*groups), ...], tile, workspace)
                inputs = spectra.of(segment, workspace, "x")
                part = values[(slice(*samples), slice(*groups), ALL, *tile.outputs)]
                grads = spectra.of(_reversed(tiling, backend, part, workspace), workspace, "dout")
                target = spectra.gathered(target, inputs, grads, workspace, first=block is share[0])
            return target

        taps: Array = None
        with backend.quiet():
            for held in tiling.held:
                shares = tiling.shares(held)
                count = len({i for i, _, _ in shares})
                sums: Array = spectra.empty((count, *spectra.shape(held[1] - held[0])))
                axis = 2 if tiling.mixed else 1
                indices = [(i, *(ALL,) * (axis - 1), slice(*_moved(groups, held)), ...) for i, groups, _ in shares]
                shared = [(index, blocks) for index, (_, _, blocks) in zip(indices, shares, strict=True)]
                sums = backend.fill(sums, shared, compute, budget.least_blocks)
                part = spectra.taps(xp.sum(sums, axis=0), geometry)
                taps = part if taps is None else xp.concat([taps, part], axis=0)
                sums = None  # or those of the next groups would be as many more
            return xp.reshape(taps, geometry.w_shape) if backend.all_finite(taps) else None

    def error_terms(self, kind: str, geometry: Geometry, products: int = 1) -> int:
        """Count the roundings of the error bound: three transforms, and sums of spectra (see docs/accuracy.md)."""
        if kind == Kind.FORWARD:
            return _transform_terms(geometry) + 3 * geometry.group_in
        if kind == Kind.INPUT_GRAD:
            return _transform_terms(geometry.mirrored) + 3 * geometry.group_out
        # A tile but the last has at least as many outputs as a kernel spans cells.
        tiles = math.prod(-(-n // extent) for n, extent in zip(geometry.out, geometry.extent, strict=True))
        return _transform_terms(geometry) + 3 * geometry.batch * tiles

    def magnitudes(
        self, kind: Kind, geometry: Geometry, backend: Backend, product: PlainProduct, a: Array, b: Array
    ) -> Array:
        """Return norms of planes times sums of taps, or of the output's gradient, for each element of a plane.

        The bound is derived in docs/accuracy.md. It asks nothing of how tiles are cut but that a transform has no more
        points than the first power of 2 beyond the padded input.
        """
        sides = [_sums, _norms] if kind == Kind.WEIGHT_GRAD else [_norms, _sums]
        ones, none = (1,), (0,)
        channels = (geometry.batch, geometry.in_channels, geometry.out_channels, geometry.groups)
        planes = Geometry(*channels, ones, ones, ones, ones, none, none)
        result = product(kind, planes, sides[0](backend, a), sides[1](backend, b))
        shape = geometry.shape(kind.result)
        result = backend.xp.reshape(result, (*shape[:2], *(1,) * geometry.dims))
        return backend.xp.broadcast_to(result, shape) * 1.0


def _norms(backend: Backend, array: Array) -> Array:
    """Return the norm of each plane, with an axis of one cell."""
    planes = backend.xp.reshape(array, (*array.shape[:2], 1, math.prod(array.shape[2:])))
    return backend.xp.sqrt(backend.xp.sum(planes * planes, axis=3))


def _sums(backend: Backend, array: Array) -> Array:
    """Return the sum of each plane, with an axis of one cell."""
    sums = backend.xp.sum(array, axis=tuple(range(2, array.ndim)))
    return backend.xp.reshape(sums, (*array.shape[:2], 1))


def _transform_terms(geometry: Geometry) -> int:
    """Count the roundings of three transforms.

    A transform of n points has log2(n) stages, and one more that splits a real one's halves. Along each dimension two
    more are of 1 / n and by it.
    """
    return sum(3 * STAGES * (max(1, n).bit_length() + 1) + 2 for n in geometry.padded)


def _segment(tiling: Tiling, backend: Backend, cells: Array, tile: Tile, workspace: Workspace) -> Array:
    """Copy what a tile reads into a segment, with zeros around it."""
    segment = workspace("segment", (*cells.shape[:3], *(side.segment for side in tiling.sides)), cells.dtype)
    for edge in edges(tile.inside, segment.shape[3:]):
        segment = backend.write(segment, (ALL, ALL, ALL, *edge), 0)
    return backend.write(segment, (ALL, ALL, ALL, *tile.inside), cells[(ALL, ALL, ALL, *tile.cells)])


def _reversed(tiling: Tiling, backend: Backend, part: Array, workspace: Workspace) -> Array:
    """Copy the output's gradient of a tile in reverse order to the end of a tile, with zeros before it."""
    whole = workspace("tile", (*part.shape[:3], *(side.tile for side in tiling.sides)), part.dtype)
    inside = [slice(side.tile - n, side.tile) for side, n in zip(tiling.sides, part.shape[3:], strict=True)]
    for edge in edges(inside, whole.shape[3:]):
        whole = backend.write(whole, (ALL, ALL, ALL, *edge), 0)
    flipped = backend.xp.flip(part, axis=tuple(range(3, part.ndim)))
    return backend.write(whole, (ALL, ALL, ALL, *inside), flipped)


def _moved(part: Range, origin: Range) -> Range:
    """Return a range counted from the start of another."""
    return part[0] - origin[0], part[1] - origin[0]
