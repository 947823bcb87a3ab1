"""Windows, copied into columns and added up from them, tap by tap of the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..backends import Array, Backend, Workspace
from ..passes.casts import summable
from ..passes.layout import reordered
from ..spec.dtypes import named
from ..spec.geometry import Geometry
from ..spec.operation import Operation, Role
from ..spec.ranges import ALL, NO_SPAN, Index, Range, Span, cut, edges
from ..spec.remembered import remembered
from ..spec.sequences import Made, Product, kept, kept_if_few

OPERATIONS = 16
"""How many operations of a product take as long as copying one element."""


def unfold(operation: Operation, backend: Backend, x: Array) -> Array:
    """Copy the windows of a batch into columns (N, C * prod(K), L)."""
    geometry = operation.geometry
    taps = _taps(geometry)

    def compute(block: Index, target: Array, workspace: Workspace) -> Array:
        for tap in taps:
            for edge in tap.padding:
                target = backend.write(target, (ALL, ALL, *tap.place, *edge), 0)
            if tap.cells is not None:
                target = backend.write(target, (ALL, ALL, *tap.place, *tap.outputs), x[(*block, *tap.cells)])
        return target

    with backend.during_call(x, "standard"):
        # A copy in order takes less time than a copy of each tap from where rows are no rows in memory.
        x = x if backend.in_order(x, batched=True) else reordered(operation, backend, Role.X, x)
        x = backend.astype(x, backend.dtype(operation.dtype))
        columns = backend.empty((*geometry.x_shape[:2], *geometry.kernel, *geometry.out), like=x)
        blocks = _blocks(geometry, backend)
        columns = backend.fill(columns, blocks, compute, len(blocks))
        return backend.xp.reshape(columns, operation.shape(operation.result))


def fold(operation: Operation, backend: Backend, columns: Array) -> Array:
    """Add columns up to the cells that they are windows of, (N, C, *S)."""
    geometry, dtype = operation.geometry, named(backend, operation.dtype)
    taps = _taps(geometry)
    xp, shape = backend.xp, geometry.x_shape

    def compute(block: Index, target: Array, workspace: Workspace) -> Array:
        target = backend.zeroed(target)
        for tap in taps:
            if tap.cells is not None:
                part = cells[(*block, *tap.place, *tap.outputs)]
                target = backend.add(target, (ALL, ALL, *tap.cells), backend.astype(part, wide))
        return target

    with backend.during_call(columns, "standard"):
        wide = summable(backend, dtype)
        cells = xp.reshape(columns, (*shape[:2], *geometry.kernel, *geometry.out))
        out = backend.empty(shape, columns, dtype=wide)
        blocks = _blocks(geometry, backend)
        out = backend.fill(out, blocks, compute, len(blocks))
        return backend.astype(out, dtype.dtype)


class Tap(NamedTuple):
    """One tap of the kernel, for all outputs.

    Attributes
    ----------
    place : tuple of int
        Where it is in the kernel.
    outputs : tuple of slice
        The outputs whose tap lies inside the input.
    cells : tuple of slice or None
        The cells of the input that they read; None where there are none.
    padding : tuple of tuple of slice
        The other outputs, whose tap lies in the padding.
    """

    place: tuple[int, ...]
    outputs: tuple[slice, ...]
    cells: tuple[slice, ...] | None
    padding: tuple[tuple[slice, ...], ...]


@remembered(kept)
def _taps(geometry: Geometry) -> Sequence[Tap]:
    """Return the taps of the kernel."""
    spans = [kept_if_few(geometry.spans(dim, (0, n))) for dim, n in enumerate(geometry.out)]

    def of_place(place: tuple[int, ...]) -> Tap:
        along: list[Span] = [of_dimension[tap] for of_dimension, tap in zip(spans, place, strict=True)]
        outputs = tuple(span.outputs for span in along)
        cells = None if NO_SPAN in along else tuple(span.inputs for span in along)
        return Tap(place, outputs, cells, tuple(tuple(edge) for edge in edges(outputs, geometry.out)))

    return kept_if_few(Made(Product(*(range(n) for n in geometry.kernel)), of_place))


def _blocks(geometry: Geometry, backend: Backend) -> Sequence[tuple[tuple[Any, ...], Index]]:
    """Cut samples and channels into blocks for threads to share: an index of the result, and one of its source."""
    least = backend.least_blocks(OPERATIONS * geometry.operations // 2, geometry.batch)
    samples = cut(geometry.batch, geometry.batch, least)
    channels = cut(geometry.in_channels, geometry.in_channels, -(-least // max(1, len(samples))))

    def indexed(some: tuple[Range, Range]) -> tuple[tuple[Any, ...], Index]:
        index = tuple(slice(*part) for part in some)
        return (*index, ...), index

    return Made(Product(samples, channels), indexed)
