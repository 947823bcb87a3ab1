"""The sums that Winograd's tiles make of a convolution, of absolute values: what bounds their rounding errors.

Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), section 4.1: F(2, 3) along each
dimension of kernel 3. Written out tile by tile, so that the algorithm has no part in its own bound.

Axes: N samples, G groups, c channels and f filters of a group, and cells, taps or places in a tile for each dimension.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..algorithms.winograd import tile_terms
from ..spec.geometry import Geometry

Doubles = NDArray[np.float64]

# The transforms B^T, G and A^T, of absolute values.
INPUT = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]], np.float64)
FILTER = np.array([[2, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 2]], np.float64) / 2
OUTPUT = np.array([[1, 1, 1, 0], [0, 1, 1, 1]], np.float64)


class Sums(NamedTuple):
    """What bounds the errors of sums: how many roundings a term meets, at most, and the sums of the magnitudes."""

    terms: int
    magnitude: Doubles


def tiled(geometry: Geometry, x: Any, w: Any, b: Any, dout: Any) -> dict[str, Sums]:
    """Bound what Winograd's tiles make of absolute values, with a batch axis: out, dx and dw; `b` may be None."""
    mirror = geometry.mirrored
    turned = np.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, *geometry.kernel)).swapaxes(1, 2)
    turned = np.flip(turned, tuple(range(3, turned.ndim))).reshape(mirror.w_shape)
    out = _outputs(geometry, x, w)
    if b is not None:
        out += np.reshape(b, (-1, *(1,) * geometry.dims))
    # A term is rounded once by B^T and twice by A^T, or as often by their adjoints, along each dimension of kernel 3;
    # by each addition to the sum of as many terms as there are taps that G is, along all of them at once; once as a
    # product; and once by each addition to the sum, over channels or over tiles.
    dims = geometry.kernel.count(3)
    tiles = geometry.batch * math.prod(_tiles(geometry))
    return {
        "out": Sums(tile_terms(geometry) + (b is not None), out),
        "dx": Sums(tile_terms(mirror), _outputs(mirror, dout, turned)),
        "dw": Sums(tiles + 2 * dims + 3**dims - 1, _weights(geometry, x, dout)),
    }


def _outputs(geometry: Geometry, x: Any, w: Any) -> Doubles:
    filters = np.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, *geometry.kernel))
    filters = _along(FILTER, filters, geometry)
    cells = _padded(geometry, x)
    out = np.zeros((geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
    for tile in np.ndindex(*_tiles(geometry)):
        places = np.einsum("ngc...,gfc...->ngf...", _inputs(geometry, cells, tile), filters)
        target = out[_own(geometry, tile)]
        target[...] = _along(OUTPUT, places, geometry)[tuple(slice(n) for n in target.shape)]
    return out.reshape(geometry.out_shape)


def _weights(geometry: Geometry, x: Any, dout: Any) -> Doubles:
    values = np.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
    cells = _padded(geometry, x)
    places: Any = 0.0
    for tile in np.ndindex(*_tiles(geometry)):
        own = values[_own(geometry, tile)]
        whole = np.zeros((*own.shape[:3], *(2 if kernel == 3 else 1 for kernel in geometry.kernel)))
        whole[tuple(slice(n) for n in own.shape)] = own
        grads = _along(OUTPUT.T, whole, geometry)
        places = places + np.einsum("ngf...,ngc...->gfc...", grads, _inputs(geometry, cells, tile))
    return _along(FILTER.T, places, geometry).reshape(geometry.w_shape)


def _tiles(geometry: Geometry) -> tuple[int, ...]:
    return tuple(-(-n // 2) if kernel == 3 else n for n, kernel in zip(geometry.out, geometry.kernel, strict=True))


def _own(geometry: Geometry, tile: tuple[int, ...]) -> Any:
    """The outputs of a tile, as an index."""
    both = zip(tile, geometry.kernel, strict=True)
    return (..., *(slice(2 * t, 2 * t + 2) if kernel == 3 else slice(t, t + 1) for t, kernel in both))


def _padded(geometry: Geometry, x: Any) -> Doubles:
    """The input with all cells that tiles read; one too many for the last tile of an odd size."""
    cells = np.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
    widths = [(max(0, lo), max(0, hi) + 1) for lo, hi in zip(geometry.before, geometry.after, strict=True)]
    cells = np.pad(cells, [(0, 0)] * 3 + widths)
    inside: Any = (..., *(slice(max(0, -lo), None) for lo in geometry.before))
    return np.asarray(cells[inside])


def _inputs(geometry: Geometry, cells: Doubles, tile: tuple[int, ...]) -> Doubles:
    """The transformed cells of a tile: (N, G, c, places)."""
    both = zip(tile, geometry.kernel, strict=True)
    read: Any = (..., *(slice(2 * t, 2 * t + 4) if kernel == 3 else slice(t, t + 1) for t, kernel in both))
    return _along(INPUT, cells[read], geometry)


def _along(matrix: Doubles, array: Any, geometry: Geometry) -> Doubles:
    """Multiply an array (., ., ., *tile) by a matrix along each dimension of kernel 3."""
    for axis, kernel in enumerate(geometry.kernel, start=3):
        if kernel == 3:
            array = np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)
    return np.asarray(array)
