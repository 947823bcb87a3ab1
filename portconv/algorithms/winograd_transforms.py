"""The transforms of `winograd`: to the places of tiles, and back.

Axes, in this order: places in a tile, with one axis for each dimension of kernel 3, the first of which is the lead; g
groups; c channels or f filters of a group; tiles (T1, n, T2, ..., Td) with n samples, flattened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Index, Range, cut
from ..spec.sequences import Made
from .columns import Block, gather
from .winograd_tiles import tiling

G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
"""The matrix that transforms three taps to the four places of a tile."""
FILTERS = 1 << 14
"""A block has this many filters of one channel, so that their places stay in cache."""


class Halves(NamedTuple):
    """The even and the odd cells of tiles along one dimension, and the distance to the next tile."""

    even: Array
    odd: Array
    ahead: int


Row = Callable[[Backend, Array, Index, Halves, int], Array]
"""A function that sets an array to one row of a transform: `input_row` or `output_row`."""


def split(halves: Geometry, backend: Backend, cells: Array, block: Block, workspace: Workspace) -> Array:
    """Split cells into even and odd ones along each dimension of kernel 3: (2, ..., 2, g, c, tiles)."""
    columns = backend.xp.permute_dims(gather(halves, backend, cells, block, workspace, by_rows=True), (2, 0, 1, 3))
    return backend.xp.reshape(columns, (*(n for n in halves.kernel if n == 2), *columns.shape[1:]))


def spread(
    backend: Backend, row: Row, halves: Array, aheads: tuple[int, ...], workspace: Workspace
) -> tuple[Array, Array]:
    """Transform halves to the places of tiles along all dimensions but the lead: each is (4 * ... * 4, g, c, tiles)."""
    for axis, ahead in enumerate(aheads[1:], start=1):
        before = (ALL,) * axis
        along = Halves(halves[(*before, 0, ...)], halves[(*before, 1, ...)], ahead)
        halves = workspace(f"spread {axis}", (*halves.shape[:axis], 4, *halves.shape[axis + 1 :]))
        for place in range(4):
            halves = row(backend, halves, (*before, place), along, place)
        if ahead:  # the last tiles are excess tiles, and have no next tile
            halves = backend.write(halves, (..., slice(-ahead, None)), 0.0)
    halves = backend.xp.reshape(halves, (2, -1, *halves.shape[-3:]))
    return halves[0, ...], halves[1, ...]


def at_lead(backend: Backend, row: Row, halves: Halves, lead: int, length: int, workspace: Workspace) -> Array:
    """Transform halves to one place of the lead: (4 * ... * 4, g, c, tiles), with `length` tiles."""
    at_place = workspace("led", (*halves.even.shape[:-1], length))
    at_place = row(backend, at_place, (), halves, lead)
    reached = halves.even.shape[-1] - halves.ahead
    return at_place if reached == length else backend.write(at_place, (..., slice(reached, None)), 0.0)


def input_row(backend: Backend, target: Array, index: Index, halves: Halves, place: int) -> Array:
    """Set `target[index]` to one row of B^T times tiles: their even and odd cells, and those of the next tile."""
    even, odd, ahead = halves
    count = even.shape[-1] - ahead
    this, following, into = (..., slice(count)), (..., slice(ahead, None)), (*index, ..., slice(count))
    if place == 0:
        return backend.elementwise("subtract", target, into, even[this], even[following])
    if place == 1:
        return backend.elementwise("add", target, into, odd[this], even[following])
    if place == 2:
        return backend.elementwise("subtract", target, into, even[following], odd[this])
    return backend.elementwise("subtract", target, into, odd[following], odd[this])


def output_row(backend: Backend, target: Array, index: Index, halves: Halves, place: int) -> Array:
    """Set `target[index]` to one row of A times tiles: their even and odd outputs."""
    even, odd, _ = halves
    into = (*index, ...)
    if place in (0, 3):
        return backend.write(target, into, odd if place else even)
    return backend.elementwise("add" if place == 1 else "subtract", target, into, even, odd)


def outputs_of_places(backend: Backend, sums: Array, dims: int, workspace: Workspace) -> Array:
    """Multiply by A^T along all dimensions but the lead: (2, 2, ..., 2, g, f, tiles)."""
    sums = backend.xp.reshape(sums, (2, *(4,) * (dims - 1), *sums.shape[2:]))
    for axis in range(1, dims):
        before = (ALL,) * axis
        first, second, third, fourth = (sums[(*before, place, ...)] for place in range(4))
        sums = workspace("led" if axis % 2 else "strips", (*sums.shape[:axis], 2, *sums.shape[axis + 1 :]))
        half = workspace("spread 1", second.shape)
        half = backend.elementwise("add", half, (...,), second, third)
        sums = backend.elementwise("add", sums, (*before, 0, ...), first, half)
        half = backend.elementwise("subtract", half, (...,), second, third)
        sums = backend.elementwise("add", sums, (*before, 1, ...), half, fourth)
    return sums


def filters_at_places(geometry: Geometry, backend: Backend, least: int, w: Array) -> Array:
    """Multiply the filters by G: (4, 4 * ... * 4, G, f, c)."""
    xp, inner = backend.xp, tiling(geometry).inner
    columns = xp.permute_dims(xp.reshape(w, (-1, geometry.taps)), (1, 0))
    matrix = matrix_of(geometry, backend, w)

    def compute(part: Range, target: Array, workspace: Workspace) -> Array:
        return backend.product(matrix, columns[:, slice(*part)], target)

    parts = Made(cut(columns.shape[1], FILTERS, least), lambda part: ((ALL, slice(*part)), part))
    places = backend.empty((matrix.shape[0], columns.shape[1]), like=w)
    # This runs in blocks, because threads that BLAS starts would keep waiting in a loop while later blocks run.
    places = backend.fill(places, parts, compute, least)
    return xp.reshape(places, (4, inner, geometry.groups, geometry.group_out, geometry.group_in))


def weights_of_places(geometry: Geometry, backend: Backend, least: int, places: Array) -> Array:
    """Multiply by G^T, the adjoint of `filters_at_places`."""
    xp, matrix = backend.xp, matrix_of(geometry, backend, places)
    columns = xp.permute_dims(xp.reshape(places, (matrix.shape[0], -1)), (1, 0))

    def compute(part: Range, target: Array, workspace: Workspace) -> Array:
        return backend.product(columns[slice(*part), :], matrix, target)

    parts = Made(cut(columns.shape[0], FILTERS, least), lambda part: ((slice(*part), ALL), part))
    grad = backend.empty((columns.shape[0], matrix.shape[1]), like=places)
    grad = backend.fill(grad, parts, compute, least)
    return xp.reshape(grad, geometry.w_shape)


def matrix_of(geometry: Geometry, backend: Backend, like: Array) -> Array:
    """Return G along all dimensions of kernel 3 at once: (4 * ... * 4, taps)."""
    rows = [[1.0]]
    for kernel in geometry.kernel:
        if kernel == 3:
            rows = [[a * b for a in row for b in of_tap] for row in rows for of_tap in G]
    return backend.asarray(rows, dtype=like.dtype, device=backend.device_of(like))
