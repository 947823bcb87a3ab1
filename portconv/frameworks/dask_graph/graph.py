"""Dask's graphs of operations: a task for each block of a result, and for each piece of a chunk that others read.

Inputs and outputs are first made batches with channels first, whose channels lie in one chunk; filters and biases lie
in one chunk too. All of this is lazy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from ...backends import Array, Backend
from ...engine import execution
from ...passes.layout import LAID_OUT, as_given, canonical
from ...spec.dtypes import HALVES
from ...spec.geometry import Geometry
from ...spec.operation import Kind, Operation, Role
from ...spec.ranges import Range
from . import tasks
from .building import Building, Key, Layer, Piece, Reads
from .halos import convolved, inputs, located, outputs, ranges, read, touching
from .tasks import Block, LimitedOperation


def node(operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Return the array that an operation will make; nothing is computed yet."""
    if operation.kind == Kind.SPREAD:
        return execution.compute(operation, backend, *operands)
    if operation.kind in (Kind.UNFOLD, Kind.FOLD):
        return _windows(operation, operands[0])
    arrays = [
        _merged(canonical(operation, backend, role, array), (1,) if role in LAID_OUT else range(array.ndim))
        for role, array in zip((*operation.roles, Role.B), operands, strict=False)
    ]
    building = Building(operation, arrays)
    return as_given(operation, backend, operation.result, BUILD.get(operation.kind, _output)(building, *arrays))


class _Blocks(NamedTuple):
    """The blocks of a result.

    Attributes
    ----------
    task : callable
        Computes one block.
    channels : int
    cuts : sequence of tuple of Range
        The cells of the blocks along each dimension.
    reads : callable
        Returns what a block, of these samples and cells, reads of an array, and the block.
    """

    task: Callable[..., Array]
    channels: int
    cuts: Sequence[tuple[Range, ...]]
    reads: Callable[[Range, Sequence[Range]], tuple[Reads, Block]]


def _output(building: Building, x: Array, w: Array, b: Array | None = None) -> Array:
    """Build the graph of an output, or of its error bound, in blocks that follow the chunks of the input."""
    geometry = building.geometry

    def reads(samples: Range, box: Sequence[Range]) -> tuple[Reads, Block]:
        of_x, of_block = _reads_of_x(geometry, x, samples, box)
        return of_x, Block(of_block)

    cuts = [outputs(geometry, dim, x.chunks[2 + dim]) for dim in range(geometry.dims)]
    return _in_blocks(building, _Blocks(tasks.output, geometry.out_channels, cuts, reads), x, w, b)


def _input_grad(building: Building, dout: Array, w: Array, b: Array | None = None) -> Array:
    """Build the graph of an input gradient, in blocks that follow the chunks of the output's gradient."""
    geometry = building.geometry

    def reads(samples: Range, box: Sequence[Range]) -> tuple[Reads, Block]:
        sides = [touching(geometry, dim, cells) for dim, cells in enumerate(box)]
        common = [(max(c[0], s.region[0]), min(c[1], s.region[1])) for c, s in zip(box, sides, strict=True)]
        block = Block(
            replace(
                geometry,
                batch=samples[1] - samples[0],
                size=tuple(side.region[1] - side.region[0] for side in sides),
                before=tuple(side.before for side in sides),
                after=tuple(side.after for side in sides),
            ),
            shape=(samples[1] - samples[0], geometry.in_channels, *_sizes(box)),
            source=tuple(slice(lo - s.region[0], hi - s.region[0]) for (lo, hi), s in zip(common, sides, strict=True)),
            target=tuple(slice(lo - start, hi - start) for (lo, hi), (start, _) in zip(common, box, strict=True)),
        )
        return _reads(dout, samples, [side.outputs for side in sides]), block

    cuts = [inputs(geometry, dim, dout.chunks[2 + dim]) for dim in range(geometry.dims)]
    return _in_blocks(building, _Blocks(tasks.input_grad, geometry.in_channels, cuts, reads), dout, w, b)


def _in_blocks(building: Building, blocks: _Blocks, array: Array, *others: Array | None) -> Array:
    """Build the graph of a result in blocks, each of what it reads of an array, and of all of the others."""
    name = building.name()
    scales = building.sample_scales(array) if building.limited.exact else None
    more = [_only_key(other) for other in others if other is not None]
    layer: Layer = {}
    for index, samples, box in _boxes(array.chunks[0], blocks.cuts):
        reads, block = blocks.reads(samples, box)
        gathering, pieces = building.gathered(array, reads)
        first_sample = reads.pieces[0][0][0]
        block = replace(block, gatherings=(gathering,))
        key = (name, index[0], 0, *index[1:])
        layer[key] = blocks.task, building.limited, block, pieces, scales and scales(first_sample), *more
    building.add_halos(array)
    building.add(name, layer, building.layers)
    chunks = (_sizes(ranges(array.chunks[0])), (blocks.channels,), *map(_sizes, blocks.cuts))
    return building.array(name, chunks)


def _weight_grad(building: Building, dout: Array, x: Array) -> Array:
    """Build the graph of the filters' gradient: a term for each chunk of the output's gradient, and their sum."""
    geometry, limited, name = building.geometry, building.limited, building.name("partial")
    cuts = [ranges(dout.chunks[2 + dim]) for dim in range(geometry.dims)]
    scales = [building.batch_scales(array) for array in (dout, x)] if limited.exact else None
    summed = _summed(limited)
    layer: Layer = {}
    for index, samples, box in _boxes(dout.chunks[0], cuts):
        of_dout, dout_pieces = building.gathered(dout, _reads(dout, samples, box))
        reads, of_block = _reads_of_x(geometry, x, samples, box)
        of_x, x_pieces = building.gathered(x, reads)
        layer[name, *index] = tasks.weight_grad, summed, Block(of_block, (of_dout, of_x)), dout_pieces, x_pieces, scales
    building.add_halos(dout, x)
    building.add(name, layer, building.layers)

    def add(terms: list[Key]) -> tuple[Any, ...]:
        return tasks.weight_grad_sum, summed, terms

    def end(terms: list[Key]) -> tuple[Any, ...]:
        return tasks.weight_grad_end, summed, terms, scales, limited.operation.result_dtype

    total: Layer = {}
    name = building.name("sum")
    building.tree(total, (name, *(0,) * len(geometry.w_shape)), list(layer), add, end)
    building.add(name, total, building.layers)
    return building.array(name, tuple((size,) for size in geometry.w_shape))


def _channel_sum(building: Building, array: Array) -> Array:
    """Build the graph of a bias gradient: a term for each chunk, and their sum."""
    limited, name = building.limited, building.name("partial")
    scales = building.batch_scales(array) if limited.exact else None
    summed = _summed(limited)
    count = math.prod(array.shape) // array.shape[1]
    block = Block(building.geometry)
    indices = product(*(range(blocks) for blocks in array.numblocks))
    layer: Layer = {
        (name, *index): (tasks.channel_sum, summed, block, (array.name, *index), scales, count) for index in indices
    }
    building.add(name, layer, building.layers)

    def add(terms: list[Key]) -> tuple[Any, ...]:
        return tasks.channel_sum_sum, terms

    def end(terms: list[Key]) -> tuple[Any, ...]:
        return tasks.channel_sum_end, summed, terms, scales, count, limited.operation.result_dtype

    total: Layer = {}
    name = building.name("sum")
    building.tree(total, (name, 0), list(layer), add, end)
    building.add(name, total, building.layers)
    return building.array(name, ((array.shape[1],),))


def _windows(operation: Operation, array: Array) -> Array:
    """Build the graph of `unfold` or `fold`: blocks have some of the samples and channels, and all cells of them."""
    geometry = operation.geometry
    array = _merged(array, range(2, array.ndim))
    # The taps of a channel are rows of columns, which stay together.
    rows_out, rows_in = (geometry.taps, 1) if operation.kind == Kind.UNFOLD else (1, geometry.taps)
    if any(size % rows_in for size in array.chunks[1]):
        array = _merged(array, (1,))
    building = Building(operation, [array])
    name = building.name()
    cells = operation.shape(operation.result)[2:]
    batch, rows = ranges(array.chunks[0]), ranges(array.chunks[1])
    layer: Layer = {}
    for (i, samples), (j, some) in product(enumerate(batch), enumerate(rows)):
        chunk = located(array.chunks[0], [samples])[0][0], located(array.chunks[1], [some])[0][0]
        count = (some[1] - some[0]) // rows_in
        size = samples[1] - samples[0]
        block = replace(geometry, batch=size, in_channels=count, out_channels=count, groups=count)
        key = (array.name, *chunk, *(0,) * (array.ndim - 2))
        layer[name, i, j, *(0 for _ in cells)] = (tasks.windows, building.limited, block, key)
    building.add(name, layer, [array.name])
    sizes = tuple((end - start) // rows_in * rows_out for start, end in rows)
    return building.array(name, (_sizes(batch), sizes, *((size,) for size in cells)))


BUILD: dict[Kind, Callable[..., Array]] = {
    Kind.INPUT_GRAD: _input_grad,
    Kind.WEIGHT_GRAD: _weight_grad,
    Kind.CHANNEL_SUM: _channel_sum,
}
"""The functions that build the graphs of these kinds; `_output` builds those of outputs and of their error bounds."""


def _reads_of_x(geometry: Geometry, x: Array, samples: Range, box: Sequence[Range]) -> tuple[Reads, Geometry]:
    """Return what a box of outputs reads of an input, and the convolution that makes the box."""
    readings = [read(geometry, dim, cells) for dim, cells in enumerate(box)]
    cells = [located(x.chunks[2 + dim], reading.runs) for dim, reading in enumerate(readings)]
    pieces = [located(x.chunks[0], [samples]), _all_channels(x), *cells]
    mode = geometry.mode if geometry.mode == "constant" else "zeros"
    of_block = replace(convolved(geometry, readings), batch=samples[1] - samples[0], mode=mode)
    return Reads(pieces, [None, None, *(reading.picked for reading in readings)]), of_block


def _reads(array: Array, samples: Range, box: Sequence[Range]) -> Reads:
    """Return what it is to read these samples and a box of their cells, with all channels."""
    cells = [located(array.chunks[2 + dim], [some]) for dim, some in enumerate(box)]
    return Reads([located(array.chunks[0], [samples]), _all_channels(array), *cells], [None] * array.ndim)


def _all_channels(array: Array) -> tuple[Piece, ...]:
    return ((0, 0, array.shape[1]),)


def _boxes(
    batch: Sequence[int], cuts: Sequence[tuple[Range, ...]]
) -> Iterator[tuple[tuple[int, ...], Range, tuple[Range, ...]]]:
    """Yield the index of each block of a result, its samples, and its cells along each dimension."""
    for numbered in product(*(tuple(enumerate(each)) for each in (ranges(batch), *cuts))):
        index, (samples, *box) = zip(*numbered, strict=True)
        yield index, samples, tuple(box)


def _summed(limited: LimitedOperation) -> LimitedOperation:
    """Return the operation that makes the terms of a sum: if sums are not exact, float16 and bfloat16 in float32."""
    if limited.exact:
        return limited
    operation = limited.operation
    dtype = "float32" if operation.dtype in HALVES else operation.dtype
    return replace(limited, operation=replace(operation, dtype=dtype, result_dtype=dtype))


def _merged(array: Array, axes: Iterable[int]) -> Array:
    """Return an array that lies in one chunk along these axes."""
    cut = {axis: -1 for axis in axes if array.numblocks[axis] > 1}
    return array.rechunk(cut) if cut else array


def _only_key(array: Array) -> Key:
    """Return the key of the only chunk of an array."""
    return (array.name, *(0,) * array.ndim)


def _sizes(cuts: Iterable[Range]) -> tuple[int, ...]:
    return tuple(end - start for start, end in cuts)
