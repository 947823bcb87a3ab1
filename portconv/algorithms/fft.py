"""Convolution by Fourier transforms: products of the spectra of input and filters, transformed back.

The cost hardly grows with the kernel. Cooley and Tukey (1965) invented the fast transform. Stockham, "High-speed
convolution and correlation" (1966), used it for convolutions, and cut long inputs into tiles (overlap-save). Mathieu,
Henaff and LeCun, "Fast training of convolutional networks through FFTs" (ICLR 2014), section 2, do so for all three
products of a layer.

The product of two spectra of N points is the spectrum of a circular convolution: what goes beyond the last point is
added at the first points. Along each dimension, N is so large that nothing is added there to the outputs of a tile. It
may be smaller than the padded input, because padding of zeros adds nothing.

Each tile reads a segment of the input. The segment starts `offset` cells after the first cell of the window of the
tile's first output. Filters lie in reverse order in their N points, in such a way that output t of a tile lies at point
t. The gradient of the output lies in reverse order in its N points, too. So no spectrum needs a conjugate, and complex
numbers need no special case.

The rounding error of an output is in proportion to the largest values of its tile, even if the output is small. One
infinity or nan makes all outputs of a tile nan. So the algorithm does not vouch for results that are not finite.

Axes, in this order: n samples, g groups, c channels and f filters of a group, Q points of a spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..backends import Array, Backend, Workspace
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.ranges import ALL, Range, edges
from ..spec.sequences import Made
from .algorithm import Algorithm, PlainProduct
from .budget import Budget, Work
from .fft_spectra import Spectra
from .fft_tiles import Block, Tile, Tiling, count_work, count_workspace, cut_tiles
from .summing import in_runs

STAGES = 12
"""The error bound has this many unit roundoffs for each doubling of a transform's points. This is more than the error
of a stage of 2, 3 or 5 points takes for each doubling."""


class Fft(Algorithm):
    """Products of spectra of tiles."""

    name = "fft"
    times_of_complex = 1.0  # spectra are complex anyway
    order = 20
    handicap = 1.25
    """Its errors are larger: they are in proportion to the largest sums of a tile."""
    plain_sums = False

    def objection(self, geometry: Geometry, dtype: Dtype, backend: Backend) -> str | None:
        """Support stride 1 and floating point; spectra would round integers."""
        if dtype.kind == "integral":
            return "floating point"
        if not hasattr(backend.xp, "fft"):
            return "a library with Fourier transforms"
        return None if geometry.dense else "stride 1"

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of a product."""
        if kind == Kind.INPUT_GRAD:
            return self.mirrored_work(geometry, budget, backend)
        return count_work(kind, geometry, *self.plan(kind, geometry, budget))

    def cut(self, kind: str, geometry: Geometry, budget: Budget, elements: int) -> Tiling:
        """Cut a product so that the arrays of a block hold about `elements` elements."""
        return cut_tiles(geometry, budget, elements)

    def workspace_elements(self, kind: str, geometry: Geometry, plan: Tiling) -> int:
        """Count the elements of workspace that a plan takes."""
        return count_workspace(kind, geometry, plan)

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array | None:
        # Taps that read only padding may share a point, where one would overwrite the nan of another.
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
            inputs = spectra.transform(segment, workspace, "x")
            part = slice(*_relative(groups, held))
            products = spectra.multiply(
                inputs, filters[:, part, :, :] if tiling.mixed else filters[part, ...], workspace
            )
            value = spectra.transform_back(products, workspace)
            target = backend.write(target, (...,), value[(ALL, ALL, ALL, *(slice(n) for n in target.shape[3:]))])
            if not backend.all_finite(target):
                not_finite.append(tile)
            return target if bias is None else backend.add(target, (...,), bias[slice(*groups), ...])

        shape = (geometry.batch, geometry.groups, geometry.group_out, *geometry.out)
        out = backend.empty(shape, like=x, last=2 * geometry.channels_last)
        with backend.quiet():
            for held in tiling.held:
                filters: Array = spectra.transform_filters(w[slice(*held), ...], budget.least_blocks)
                out = backend.fill(out, Made(tiling.blocks(held), _indexed), compute, budget.least_blocks)
                filters = None  # otherwise they would lie in memory beside those of the next groups
        return None if not_finite else xp.reshape(out, geometry.out_shape)

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array | None:
        xp = backend.xp
        cells = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
        values = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
        tiling: Tiling = self.plan(Kind.WEIGHT_GRAD, geometry, budget)[0]
        spectra = Spectra(backend, x, tiling)

        def compute(share: Sequence[Block], target: Array, workspace: Workspace) -> Array:
            for number, (samples, groups, tile) in enumerate(share):
                segment = _segment(tiling, backend, cells[slice(*samples), slice(*groups), ...], tile, workspace)
                inputs = spectra.transform(segment, workspace, "x")
                part = values[(slice(*samples), slice(*groups), ALL, *tile.outputs)]
                grads = spectra.transform(_reversed(tiling, backend, part, workspace), workspace, "dout")
                target = spectra.add_products(target, inputs, grads, workspace, first=number == 0)
            return target

        taps: Array = None
        with backend.quiet():
            for held in tiling.held:
                shape = (len(tiling.sums_of_samples()), *spectra.shape(held[1] - held[0]))
                sums: Array = spectra.empty(shape)
                sums = backend.fill(sums, _shares(tiling, held), in_runs(backend, compute), budget.least_blocks)
                part = spectra.taps(xp.sum(sums, axis=0), geometry)
                taps = part if taps is None else xp.concat([taps, part], axis=0)
                sums = None  # otherwise they would lie in memory beside those of the next groups
            return xp.reshape(taps, geometry.w_shape) if backend.all_finite(taps) else None

    def error_terms(self, kind: str, geometry: Geometry, products: int = 1) -> int:
        """Count the roundings of the error bound: those of three transforms and of sums (see docs/accuracy.md)."""
        if kind == Kind.FORWARD:
            return _transform_terms(geometry) + 3 * geometry.group_in
        if kind == Kind.INPUT_GRAD:
            return _transform_terms(geometry.mirrored) + 3 * geometry.group_out
        # Each tile but the last has at least as many outputs as a kernel spans cells.
        tiles = math.prod(-(-n // extent) for n, extent in zip(geometry.out, geometry.extent, strict=True))
        return _transform_terms(geometry) + 3 * geometry.batch * tiles

    def magnitudes(
        self, kind: Kind, geometry: Geometry, backend: Backend, product: PlainProduct, a: Array, b: Array
    ) -> Array:
        """Return the norms of planes times the sums of the other operand's planes, for each element of a plane.

        docs/accuracy.md derives the bound. It holds for all tiles if no transform has more points than the first power
        of 2 beyond the padded input.
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
    """Return the 2-norm of each plane, with a last axis of one cell."""
    planes = backend.xp.reshape(array, (*array.shape[:2], 1, math.prod(array.shape[2:])))
    return backend.xp.sqrt(backend.total(planes * planes, 3))


def _sums(backend: Backend, array: Array) -> Array:
    """Return the sum of each plane, with a last axis of one cell."""
    return backend.total(backend.xp.reshape(array, (*array.shape[:2], math.prod(array.shape[2:]))), 2, keepdims=True)


def _transform_terms(geometry: Geometry) -> int:
    """Count the roundings of three transforms.

    A transform of n points has log2(n) stages, and a transform of real numbers has one more that splits its halves.
    Along each dimension there are two more roundings: of 1 / n, and of the product with it.
    """
    return sum(3 * STAGES * (max(1, n).bit_length() + 1) + 2 for n in geometry.padded)


def _segment(tiling: Tiling, backend: Backend, cells: Array, tile: Tile, workspace: Workspace) -> Array:
    """Copy the cells that a tile reads into a segment, with zeros around them."""
    segment = workspace("segment", (*cells.shape[:3], *(side.segment for side in tiling.sides)), cells.dtype)
    for edge in edges(tile.inside, segment.shape[3:]):
        segment = backend.write(segment, (ALL, ALL, ALL, *edge), 0)
    return backend.write(segment, (ALL, ALL, ALL, *tile.inside), cells[(ALL, ALL, ALL, *tile.cells)])


def _reversed(tiling: Tiling, backend: Backend, part: Array, workspace: Workspace) -> Array:
    """Copy the output's gradient of a tile in reverse order to the end of an array, with zeros before it."""
    tile = workspace("tile", (*part.shape[:3], *(side.tile for side in tiling.sides)), part.dtype)
    inside = [slice(side.tile - n, side.tile) for side, n in zip(tiling.sides, part.shape[3:], strict=True)]
    for edge in edges(inside, tile.shape[3:]):
        tile = backend.write(tile, (ALL, ALL, ALL, *edge), 0)
    flipped = backend.xp.flip(part, axis=tuple(range(3, part.ndim)))
    return backend.write(tile, (ALL, ALL, ALL, *inside), flipped)


def _indexed(block: Block) -> tuple[tuple[Any, ...], Block]:
    """Return the index of a block's outputs, and the block."""
    samples, groups, tile = block
    return (slice(*samples), slice(*groups), ALL, *tile.outputs), block


def _shares(tiling: Tiling, held: Range) -> Sequence[tuple[tuple[Any, ...], Sequence[Block]]]:
    """Return the shares of a range of groups: the index of a partial sum, and the blocks that are added up to it."""

    def indexed(share: tuple[int, Range, Sequence[Block]]) -> tuple[tuple[Any, ...], Sequence[Block]]:
        i, groups, blocks = share
        return (i, *(ALL,) * tiling.mixed, slice(*_relative(groups, held)), ...), blocks

    return Made(tiling.shares(held), indexed)


def _relative(part: Range, origin: Range) -> Range:
    """Return a range counted from the start of another range."""
    return part[0] - origin[0], part[1] - origin[0]
