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
nan: where a result is not finite, `gemm` computes the whole again.

Axes, in this order: n samples, g groups, c channels and f filters of a group, Q points of a spectrum.
"""

from __future__ import annotations

import math

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Range, edges
from . import gemm
from .budget import Limits
from .fft_tiles import Tile, Tiling, planned
from .fft_tiles import work as work
from .mirrored import beside_filters, mirrored

STAGES = 12
"""Unit roundoffs for each doubling of a transform's points: more than the error of a stage of 2, 3 or 5 for each."""


def transform_terms(geometry: Geometry) -> int:
    """The roundings of three transforms: of n points log2(n) stages, and one more that splits a real one's halves.

    And two more along each dimension, of 1 / n and by it.
    """
    return sum(3 * STAGES * (max(1, n).bit_length() + 1) + 2 for n in geometry.padded)


def objection(geometry: Geometry) -> str | None:
    """Say what is served where `geometry` is not; None where it is."""
    return None if geometry.dense else "stride 1"


def forward(geometry: Geometry, backend: Backend, bounds: Limits, x: Array, w: Array, b: Array | None) -> Array:
    if 0 in geometry.out_shape:
        return backend.zeros(geometry.out_shape, like=x)
    if not backend.all_finite(w):  # taps that read padding alone may share a point, and a nan must not be lost there
        return gemm.forward(geometry, backend, bounds, x, w, b)
    xp = backend.xp
    cells = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
    w = xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, *geometry.kernel))
    bias = None if b is None else xp.reshape(b, (geometry.groups, geometry.group_out, *(1,) * geometry.dims))
    own, _ = planned(geometry, "forward", bounds)
    spectral = _Spectral(backend, x, own)
    spoilt: list[Tile] = []

    def compute(block: tuple[Range, Range, Tile], target: Array, workspace: Workspace) -> Array:
        samples, groups, tile = block
        seen = _segment(own, backend, cells[slice(*samples), slice(*groups), ...], tile, workspace)
        found = spectral.of(seen, workspace, "x")
        part = slice(*_moved(groups, held))
        chosen = filters[:, part, :, :] if own.mixed else filters[part, ...]
        found = spectral.multiplied(found, chosen, workspace)
        value = spectral.back(found, workspace)
        target = backend.write(target, (...,), value[(ALL, ALL, ALL, *(slice(n) for n in target.shape[3:]))])
        if not backend.all_finite(target):
            spoilt.append(tile)
        return target if bias is None else backend.add(target, (...,), bias[slice(*groups), ...])

    shape = (geometry.batch, geometry.groups, geometry.group_out, *geometry.out)
    out = backend.empty(shape, like=x, last=2 * geometry.channels_last)
    with backend.quiet():
        for held in own.held:
            filters: Array = spectral.of_filters(w[slice(*held), ...], bounds.least)
            blocks = [
                ((slice(*samples), slice(*groups), ALL, *tile.outputs), (samples, groups, tile))
                for samples, groups, tile in own.blocks(held)
            ]
            out = backend.fill(out, blocks, compute, bounds.least)
            filters = None  # or those of the next groups would be as many more
    return gemm.forward(geometry, backend, bounds, x, w, b) if spoilt else xp.reshape(out, geometry.out_shape)


def input_grad(geometry: Geometry, backend: Backend, bounds: Limits, dout: Array, w: Array) -> Array:
    if not backend.all_finite(w):
        return gemm.input_grad(geometry, backend, bounds, dout, w)
    turned = mirrored(geometry, backend, w)
    return forward(geometry.mirrored, backend, beside_filters(geometry, bounds), dout, turned, None)


def weight_grad(geometry: Geometry, backend: Backend, bounds: Limits, dout: Array, x: Array) -> Array:
    if geometry.batch == 0:
        return backend.zeros(geometry.w_shape, like=x)
    xp = backend.xp
    cells = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
    values = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
    own, _ = planned(geometry, "weight_grad", bounds)
    spectral = _Spectral(backend, x, own)
    spatial = tuple(range(3, 3 + geometry.dims))

    def compute(share: tuple[tuple[Range, Range, Tile], ...], target: Array, workspace: Workspace) -> Array:
        for block in share:
            samples, groups, tile = block
            seen = _segment(own, backend, cells[slice(*samples), slice(*groups), ...], tile, workspace)
            inputs = spectral.of(seen, workspace, "x")
            part = values[(slice(*samples), slice(*groups), ALL, *tile.outputs)]
            turned = workspace("tile", (*part.shape[:3], *(side.tile for side in own.sides)), part.dtype)
            inside = [slice(side.tile - n, side.tile) for side, n in zip(own.sides, part.shape[3:], strict=True)]
            for edge in edges(inside, turned.shape[3:]):
                turned = backend.write(turned, (ALL, ALL, ALL, *edge), 0)
            turned = backend.write(turned, (ALL, ALL, ALL, *inside), xp.flip(part, axis=spatial))
            grads = spectral.of(turned, workspace, "dout")
            target = spectral.gathered(target, inputs, grads, workspace, first=block is share[0])
        return target

    taps: Array = None
    with backend.quiet():
        for held in own.held:
            shares = own.shares(held)
            count = len({i for i, _, _ in shares})
            spectra: Array = spectral.empty((count, *spectral.shape(held[1] - held[0])))
            axis = 2 if own.mixed else 1
            indices = [(i, *(ALL,) * (axis - 1), slice(*_moved(groups, held)), ...) for i, groups, _ in shares]
            shared = [(index, blocks) for index, (_, _, blocks) in zip(indices, shares, strict=True)]
            spectra = backend.fill(spectra, shared, compute, bounds.least)
            part = spectral.taps(xp.sum(spectra, axis=0), geometry)
            taps = part if taps is None else xp.concat([taps, part], axis=0)
            spectra = None  # or those of the next groups would be as many more
        finite = backend.all_finite(taps)
    return xp.reshape(taps, geometry.w_shape) if finite else gemm.weight_grad(geometry, backend, bounds, dout, x)


class _Spectral:
    """Spectra of one call: transforms there and back, and products of them.

    Spectra of inputs are (n, g, c, *Q) and those of filters (g, f, c, *Q); where a group has several channels to add
    up, those of filters are (Q, g, f, c), a matrix a point.
    """

    def __init__(self, backend: Backend, like: Array, own: Tiling) -> None:
        self.backend, self.like, self.own = backend, like, own
        name = backend.dtype_name(like.dtype)
        self.real = not name.startswith("complex")
        self.dtype = backend.dtype({"float32": "complex64", "float64": "complex128"}.get(name, name))
        last = own.sides[-1].points
        self.sizes = (*(side.points for side in own.sides[:-1]), last // 2 + 1 if self.real else last)

    def empty(self, shape: tuple[int, ...]) -> Array:
        return self.backend.empty(shape, like=self.like, dtype=self.dtype)

    def shape(self, groups: int) -> tuple[int, ...]:
        """The shape of so many groups' filters' spectra."""
        filters, channels = self.own.geometry.group_out, self.own.geometry.group_in
        if self.own.mixed:
            return (math.prod(self.sizes), groups, filters, channels)
        return (groups, filters, channels, *self.sizes)

    def of(self, array: Array, workspace: Workspace, name: str) -> Array:
        """Transform the last axes, the last of them first: it is real, and the others are then half as many."""
        dims = len(self.own.sides)
        for dim in reversed(range(dims)):
            axis, points = array.ndim - dims + dim, self.sizes[dim]
            shape = (*array.shape[:axis], points, *array.shape[axis + 1 :])
            kind = "rfft" if self.real and dim == dims - 1 else "fft"
            room = workspace(f"spectrum {dim} of {name}", shape, self.dtype)
            array = self.backend.transform(kind, array, self.own.sides[dim].points, axis, room)
        return array

    def back(self, array: Array, workspace: Workspace) -> Array:
        """Transform back, and leave out what comes after a tile's outputs as soon as it is known."""
        dims = len(self.own.sides)
        for dim, side in enumerate(self.own.sides):
            axis = array.ndim - dims + dim
            last = dim == dims - 1
            shape = (*array.shape[:axis], side.points, *array.shape[axis + 1 :])
            dtype = self.like.dtype if last else self.dtype
            room = workspace(f"back {dim}", shape, dtype)
            array = self.backend.transform("irfft" if self.real and last else "ifft", array, side.points, axis, room)
            array = array[(*(ALL,) * axis, slice(side.tile), ...)]
        return array

    def multiplied(self, inputs: Array, filters: Array, workspace: Workspace) -> Array:
        """Multiply spectra of inputs (n, g, c, *Q) by those of filters, and add up over channels: (n, g, f, *Q)."""
        xp, count = self.backend.xp, self.own.geometry.group_out
        shape = (*inputs.shape[:2], count, *inputs.shape[3:])
        room = workspace("products", shape, self.dtype)
        if not self.own.mixed:
            return self.backend.elementwise("multiply", room, (...,), inputs, filters[:, :, 0, ...])
        turned = self._turned(inputs, workspace, "x")
        found = workspace("products at points", (*turned.shape[:3], count), self.dtype)
        found = self.backend.product(turned, xp.permute_dims(filters, (0, 1, 3, 2)), found)
        found = xp.reshape(xp.permute_dims(found, (2, 1, 3, 0)), shape)
        return self.backend.write(room, (...,), found)

    def gathered(self, target: Array, inputs: Array, grads: Array, workspace: Workspace, first: bool) -> Array:
        """Add to the spectra of filters what samples and their outputs' gradients give."""
        backend = self.backend
        if self.own.mixed:
            inputs, grads = self._turned(inputs, workspace, "x"), self._turned(grads, workspace, "dout")
            grads = backend.xp.permute_dims(grads, (0, 1, 3, 2))
            found = workspace("products at points", target.shape, self.dtype)
            found = backend.product(grads, inputs, found)
            return backend.write(target, (...,), found) if first else backend.add(target, (...,), found)
        for sample in range(inputs.shape[0]):
            # Filters of a group are one axis, its one channel another.
            one, other = inputs[sample, :, None, ...], grads[sample, :, :, None, ...]
            if first and sample == 0:
                target = backend.elementwise("multiply", target, (...,), one, other)
            else:
                room = backend.elementwise(
                    "multiply", workspace("products", target.shape, self.dtype), (...,), one, other
                )
                target = backend.add(target, (...,), room)
        return target

    def of_filters(self, w: Array, least: int) -> Array:
        """Transform filters (g, f, c, *K) that lie in reverse order from the segments' offset on."""
        backend, own = self.backend, self.own

        def compute(part: tuple[Range, Range], target: Array, workspace: Workspace) -> Array:
            # Transforms that keep the 2-norm make the product of two spectra too small by this.
            array = w[slice(*part[0]), slice(*part[1]), ...] * math.sqrt(own.points)
            dims = len(own.sides)
            for dim in reversed(range(dims)):
                side, axis = own.sides[dim], 3 + dim
                step, before = -own.geometry.dilation[dim], (ALL,) * axis
                shape = (*array.shape[:axis], side.points, *array.shape[axis + 1 :])
                laid = backend.zeroed(workspace(f"filters {dim}", shape, array.dtype))
                for taps, points in _runs(side.offset, step, own.geometry.kernel[dim], side.points):
                    turned = backend.xp.flip(array[(*before, slice(*taps), ...)], axis=axis)
                    laid = backend.write(laid, (*before, points, ...), turned)
                kind = "rfft" if self.real and dim == dims - 1 else "fft"
                size = (*array.shape[:axis], self.sizes[dim], *array.shape[axis + 1 :])
                room = workspace(f"spectrum of filters {dim}", size, self.dtype)
                array = backend.transform(kind, laid, side.points, axis, room)
            if own.mixed:
                array = backend.xp.reshape(array, (*array.shape[:3], -1))
                array = backend.xp.permute_dims(array, (3, 0, 1, 2))
            return backend.write(target, (...,), array)

        index = (ALL,) * own.mixed
        parts = own.filters(w.shape[0])
        blocks = [((*index, slice(*groups), slice(*filters), ...), (groups, filters)) for groups, filters in parts]
        return backend.fill(self.empty(self.shape(w.shape[0])), blocks, compute, least)

    def taps(self, spectra: Array, geometry: Geometry) -> Array:
        """Transform the spectra of gradients back, and take the points that are taps: (g, f, c, *K)."""
        xp, own = self.backend.xp, self.own
        if own.mixed:
            spectra = xp.permute_dims(spectra, (1, 2, 3, 0))
            spectra = xp.reshape(spectra, (*spectra.shape[:3], *self.sizes))
        for dim, side in enumerate(own.sides):
            kind = "irfft" if self.real and dim == geometry.dims - 1 else "ifft"
            spectra = self.backend.transform(kind, spectra, side.points, 3 + dim)
            first = side.tile - 1 - side.offset
            runs = _runs(first, geometry.dilation[dim], geometry.kernel[dim], side.points)
            before = (ALL,) * (3 + dim)
            spectra = xp.concat([spectra[(*before, points, ...)] for _, points in runs], axis=3 + dim)
        return spectra * math.sqrt(own.points)

    def _turned(self, spectra: Array, workspace: Workspace, name: str) -> Array:
        """Spectra (n, g, c, *Q) with points first: (Q, g, n, c)."""
        xp = self.backend.xp
        flat = xp.permute_dims(xp.reshape(spectra, (*spectra.shape[:3], -1)), (3, 1, 0, 2))
        return self.backend.write(workspace(f"points of {name}", flat.shape, self.dtype), (...,), flat)


def _runs(first: int, step: int, count: int, points: int) -> list[tuple[Range, slice]]:
    """Lay `count` taps at `first`, `first + step`, ... modulo `points`: ranges of taps, and slices in rising order."""
    found: list[tuple[Range, slice]] = []
    tap = 0
    while tap < count:
        start = (first + tap * step) % points
        fit = (points - 1 - start) // step if step > 0 else start // -step
        end = min(count, tap + fit + 1)
        last = start + (end - tap - 1) * step
        found.append(((tap, end), slice(min(start, last), max(start, last) + 1, abs(step))))
        tap = end
    return found


def _segment(own: Tiling, backend: Backend, cells: Array, tile: Tile, workspace: Workspace) -> Array:
    """Copy what a tile reads into a segment, with zeros around it."""
    segment = workspace("segment", (*cells.shape[:3], *(side.segment for side in own.sides)), cells.dtype)
    for edge in edges(tile.inside, segment.shape[3:]):
        segment = backend.write(segment, (ALL, ALL, ALL, *edge), 0)
    return backend.write(segment, (ALL, ALL, ALL, *tile.inside), cells[(ALL, ALL, ALL, *tile.cells)])


def _moved(part: Range, origin: Range) -> Range:
    return part[0] - origin[0], part[1] - origin[0]
