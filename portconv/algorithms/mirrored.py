"""What an input gradient needs to be computed as the forward product of the mirrored convolution.

With a stride it is several such products: one for each phase of the input, which is every `stride`-th cell along each
dimension, from one on. A phase reads all outputs, through every so many taps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Index
from ..spec.remembered import remembered
from ..spec.sequences import Made, Product
from .budget import Budget


def mirrored(geometry: Geometry, backend: Backend, w: Array) -> Array:
    """Return the filters of the mirrored convolution: flipped, with input channels in the place of filters."""
    xp, shape = backend.xp, geometry.unstrided.mirrored.w_shape
    if geometry.groups > 1:
        w = xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, *geometry.kernel))
    first = w.ndim - geometry.dims
    order = (*range(first - 2), first - 1, first - 2, *range(first, w.ndim))
    flipped = xp.permute_dims(backend.backwards(w, geometry.dims), order)
    # This is a copy, because BLAS does not accept rows in reverse order.
    flipped = backend.write(backend.empty(tuple(flipped.shape), like=w), (...,), flipped)
    return xp.reshape(flipped, shape) if geometry.groups > 1 else flipped


def beside_filters(geometry: Geometry, budget: Budget) -> Budget:
    """Return the budget of the mirrored convolution: less workspace, by the copy of the filters."""
    return budget._replace(workspace_elements=max(1, budget.workspace_elements - geometry.weights))


@remembered()
def phases_of(geometry: Geometry) -> Sequence[tuple[Geometry, Index, Index]]:
    """Return the phases of the input that windows read.

    Each has the convolution whose output it is, and the indices of its mirrored filters, and of its cells.
    """
    whole = geometry.unstrided.mirrored

    def phase(sides: tuple[tuple[Any, ...], ...]) -> tuple[Geometry, Index, Index]:
        kernel, dilation, before, after, taps, cells = zip(*sides, strict=True)
        one = replace(whole, size=geometry.out, kernel=kernel, dilation=dilation, before=before, after=after)
        return one, (ALL, ALL, *taps), (ALL, ALL, *cells)

    return Made(Product(*(tuple(_sides_of(geometry, dim)) for dim in range(geometry.dims))), phase)


def _sides_of(geometry: Geometry, dim: int) -> Iterator[tuple[Any, ...]]:
    """Yield each phase along one dimension: its kernel, dilation and padding, and its taps and cells.

    Output o reads cell i through tap k if o * stride + k * dilation = i + before. So taps that reach the same cells are
    `step` apart, and from one of them to the next the output changes by `apart`.
    """
    size, kernel, before, outputs = geometry.size[dim], geometry.kernel[dim], geometry.before[dim], geometry.out[dim]
    stride, dilation = geometry.stride[dim], geometry.dilation[dim]
    step, apart = stride // math.gcd(stride, dilation), dilation // math.gcd(stride, dilation)
    for tap in range(min(kernel, step)):
        first = (tap * dilation - before) % stride
        if first < size:
            taps, count = len(range(tap, kernel, step)), len(range(first, size, stride))
            output, begin = (first + before - tap * dilation) // stride, (kernel - 1 - tap) % step
            # One cell needs no step, and libraries multiply steps by strides of memory, which may overflow.
            of_filters = slice(begin, begin + 1) if taps == 1 else slice(begin, kernel, step)
            cells = slice(first, first + 1) if count == 1 else slice(first, size, stride)
            yield taps, apart, (taps - 1) * apart - output, count - outputs + output, of_filters, cells
