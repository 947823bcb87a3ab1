"""The spectra of `fft`: the transforms of tiles and filters, their products, and the transforms back.

Axes, in this order: n samples, g groups, c channels and f filters of a group, Q points of a spectrum.
"""

from __future__ import annotations

import math
from typing import Any

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Range
from ..spec.sequences import Made
from .fft_tiles import Tiling
from .summing import correlate
from .summing import runs_of as runs_of_blocks


class Spectra:
    """The spectra of one call: it transforms, multiplies and transforms back.

    Spectra of inputs are (n, g, c, *Q). Those of filters are (g, f, c, *Q) if a group has one channel. If it has
    several, which are added up, they are (Q, g, f, c): one matrix for each point.
    """

    def __init__(self, backend: Backend, like: Array, tiling: Tiling) -> None:
        self.backend, self.like, self.tiling = backend, like, tiling
        name = backend.dtype_name(like.dtype)
        self.real = not name.startswith("complex")
        self.dtype = backend.dtype({"float32": "complex64", "float64": "complex128"}.get(name, name))
        last = tiling.sides[-1].points
        self.sizes = (*(side.points for side in tiling.sides[:-1]), last // 2 + 1 if self.real else last)

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return an array of spectra of that shape, with any contents."""
        return self.backend.empty(shape, like=self.like, dtype=self.dtype)

    def shape(self, groups: int) -> tuple[int, ...]:
        """Return the shape of the spectra of the filters of `groups` groups."""
        filters, channels = self.tiling.geometry.group_out, self.tiling.geometry.group_in
        if self.tiling.mixed:
            return (math.prod(self.sizes), groups, filters, channels)
        return (groups, filters, channels, *self.sizes)

    def transform(self, array: Array, workspace: Workspace, name: str) -> Array:
        """Transform the spatial axes, the last one first: if it is real, this halves the work of the others."""
        dims = len(self.tiling.sides)
        for dim in reversed(range(dims)):
            axis, points = array.ndim - dims + dim, self.sizes[dim]
            shape = (*array.shape[:axis], points, *array.shape[axis + 1 :])
            kind = "rfft" if self.real and dim == dims - 1 else "fft"
            into = workspace(f"spectrum {dim} of {name}", shape, self.dtype)
            array = self.backend.transform(kind, array, self.tiling.sides[dim].points, axis, into)
        return array

    def transform_back(self, array: Array, workspace: Workspace) -> Array:
        """Transform back; after each axis, keep only the points that are outputs of a tile."""
        dims = len(self.tiling.sides)
        for dim, side in enumerate(self.tiling.sides):
            axis = array.ndim - dims + dim
            last = dim == dims - 1
            shape = (*array.shape[:axis], side.points, *array.shape[axis + 1 :])
            dtype = self.like.dtype if last else self.dtype
            into = workspace(f"back {dim}", shape, dtype)
            array = self.backend.transform("irfft" if self.real and last else "ifft", array, side.points, axis, into)
            array = array[(*(ALL,) * axis, slice(side.tile), ...)]
        return array

    def multiply(self, inputs: Array, filters: Array, workspace: Workspace) -> Array:
        """Multiply spectra of inputs (n, g, c, *Q) by those of filters, and add up over channels: (n, g, f, *Q)."""
        xp, count = self.backend.xp, self.tiling.geometry.group_out
        shape = (*inputs.shape[:2], count, *inputs.shape[3:])
        into = workspace("products", shape, self.dtype)
        if not self.tiling.mixed:
            return self.backend.elementwise("multiply", into, (...,), inputs, filters[:, :, 0, ...])
        reordered = self._points_first(inputs, workspace, "x")
        products = workspace("products at points", (*reordered.shape[:3], count), self.dtype)
        products = self.backend.product(reordered, xp.permute_dims(filters, (0, 1, 3, 2)), products)
        products = xp.reshape(xp.permute_dims(products, (2, 1, 3, 0)), shape)
        return self.backend.write(into, (...,), products)

    def add_products(self, target: Array, inputs: Array, grads: Array, workspace: Workspace, first: bool) -> Array:
        """Add the products of the spectra of inputs and outputs' gradients to the spectra of filters.

        If this is the `first` block, set them to these products instead.
        """
        backend = self.backend
        if self.tiling.mixed:
            inputs, grads = self._points_first(inputs, workspace, "x"), self._points_first(grads, workspace, "dout")
            inputs, grads = (backend.xp.permute_dims(each, (0, 1, 3, 2)) for each in (inputs, grads))
            products = workspace("products at points", target.shape, self.dtype)
            products = correlate(backend, grads, inputs, products)
            return (backend.write if first else backend.add)(target, (...,), products)
        for start, end in runs_of_blocks(inputs.shape[0]):
            # One axis is the filters of a group, another its single channel.
            one, other = inputs[start:end, :, None, ...], grads[start:end, :, :, None, ...]
            product = workspace("products", (end - start, *target.shape), self.dtype)
            product = backend.elementwise("multiply", product, (...,), one, other)
            total = product[0, ...] if end - start == 1 else backend.total(product, 0)
            target = (backend.write if first and not start else backend.add)(target, (...,), total)
        return target

    def transform_filters(self, w: Array, least: int) -> Array:
        """Transform filters (g, f, c, *K), which lie in reverse order from the segments' offset on."""
        backend, tiling = self.backend, self.tiling

        def compute(part: tuple[Range, Range], target: Array, workspace: Workspace) -> Array:
            # The transforms keep the 2-norm, so a product of two spectra would be too small by this factor.
            array = w[slice(*part[0]), slice(*part[1]), ...] * math.sqrt(tiling.points)
            dims = len(tiling.sides)
            for dim in reversed(range(dims)):
                side, axis = tiling.sides[dim], 3 + dim
                step, before = -tiling.geometry.dilation[dim], (ALL,) * axis
                shape = (*array.shape[:axis], side.points, *array.shape[axis + 1 :])
                placed = backend.zeroed(workspace(f"filters {dim}", shape, array.dtype))
                for taps, points in runs_of(side.offset, step, tiling.geometry.kernel[dim], side.points):
                    flipped = backend.xp.flip(array[(*before, slice(*taps), ...)], axis=axis)
                    placed = backend.write(placed, (*before, points, ...), flipped)
                kind = "rfft" if self.real and dim == dims - 1 else "fft"
                size = (*array.shape[:axis], self.sizes[dim], *array.shape[axis + 1 :])
                into = workspace(f"spectrum of filters {dim}", size, self.dtype)
                array = backend.transform(kind, placed, side.points, axis, into)
            if tiling.mixed:
                array = backend.xp.reshape(array, (*array.shape[:3], -1))
                array = backend.xp.permute_dims(array, (3, 0, 1, 2))
            return backend.write(target, (...,), array)

        index = (ALL,) * tiling.mixed

        def indexed(part: tuple[Range, Range]) -> tuple[tuple[Any, ...], tuple[Range, Range]]:
            return (*index, slice(*part[0]), slice(*part[1]), ...), part

        blocks = Made(tiling.filters(w.shape[0]), indexed)
        return backend.fill(self.empty(self.shape(w.shape[0])), blocks, compute, least)

    def taps(self, spectra: Array, geometry: Geometry) -> Array:
        """Transform the spectra of the filters' gradient back, and return the points that are taps: (g, f, c, *K)."""
        xp, tiling = self.backend.xp, self.tiling
        if tiling.mixed:
            spectra = xp.permute_dims(spectra, (1, 2, 3, 0))
            spectra = xp.reshape(spectra, (*spectra.shape[:3], *self.sizes))
        for dim, side in enumerate(tiling.sides):
            kind = "irfft" if self.real and dim == geometry.dims - 1 else "ifft"
            spectra = self.backend.transform(kind, spectra, side.points, 3 + dim)
            first = side.tile - 1 - side.offset
            runs = runs_of(first, geometry.dilation[dim], geometry.kernel[dim], side.points)
            before = (ALL,) * (3 + dim)
            spectra = xp.concat([spectra[(*before, points, ...)] for _, points in runs], axis=3 + dim)
        return spectra * math.sqrt(tiling.points)

    def _points_first(self, spectra: Array, workspace: Workspace, name: str) -> Array:
        """Return a copy of spectra (n, g, c, *Q) with the points first: (Q, g, n, c)."""
        xp = self.backend.xp
        flat = xp.permute_dims(xp.reshape(spectra, (*spectra.shape[:3], -1)), (3, 1, 0, 2))
        return self.backend.write(workspace(f"points of {name}", flat.shape, self.dtype), (...,), flat)


def runs_of(first: int, step: int, count: int, points: int) -> list[tuple[Range, slice]]:
    """Return the runs of taps whose points `first`, `first + step`, ..., modulo `points`, do not pass the end.

    Each run is a range of the `count` taps, and the slice of its points in rising order.
    """
    runs: list[tuple[Range, slice]] = []
    tap = 0
    while tap < count:
        start = (first + tap * step) % points
        fit = (points - 1 - start) // step if step > 0 else start // -step
        end = min(count, tap + fit + 1)
        last = start + (end - tap - 1) * step
        runs.append(((tap, end), slice(min(start, last), max(start, last) + 1, abs(step))))
        tap = end
    return runs
