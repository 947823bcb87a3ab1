"""Dask's graphs of convolutions: a task for each block of a result, and for each part of a chunk that others read.

Inputs and outputs are brought to batches with channels first, lazily, whose channels lie in one chunk; so are filters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import astuple, replace
from itertools import product
from typing import Any

import dask
import dask.array as da
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from ... import backends, limits
from ...backends import Array, Backend
from ...engine import execution
from ...passes.layout import LAID_OUT, as_given, canonical
from ...spec.dtypes import HALVES
from ...spec.geometry import Geometry
from ...spec.operation import Kind, Operation, Role
from ...spec.ranges import Range
from . import tasks
from .halos import convolved, inputs, located, outputs, ranges, read, touching
from .tasks import Block, Gathering, Step

Key = tuple[Hashable, ...]
Summing = Callable[[list[Key]], tuple[Any, ...]]
Place = tuple[int, int, int]
"""A chunk's number along an axis, and where a piece of it starts and ends."""
Reads = tuple[list[tuple[Place, ...]], list[Any]]
"""Where what a block reads of an array lies along each axis, and what of that is taken, as `Gathering` has it."""

NAMES = {
    Kind.FORWARD: "conv",
    Kind.INPUT_GRAD: "conv_input_grad",
    Kind.WEIGHT_GRAD: "conv_weight_grad",
    Kind.CHANNEL_SUM: "conv_bias_grad",
    Kind.ERROR_BOUND: "conv_error_bound",
    Kind.UNFOLD: "unfold",
    Kind.FOLD: "fold",
}
TRANSPOSED = {
    Kind.FORWARD: "conv_transpose_input_grad",
    Kind.INPUT_GRAD: "conv_transpose",
    Kind.WEIGHT_GRAD: "conv_transpose_weight_grad",
    Kind.CHANNEL_SUM: "conv_transpose_bias_grad",
}
"""The names that go with a transposed convolution, whose products are a convolution's others."""
FEWEST, USUAL = 2, 8
"""Sums that one task of a tree adds up, unless Dask's setting `split_every` says otherwise."""


def node(operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Put an operation off: return the array that it will make."""
    if operation.kind == Kind.SPREAD:
        return execution.compute(operation, backend, *operands)
    if operation.kind in (Kind.UNFOLD, Kind.FOLD):
        return _windows(operation, backend, operands[0])
    arrays = [
        _whole(canonical(operation, backend, role, array), (1,) if role in LAID_OUT else range(array.ndim))
        for role, array in zip((*operation.roles, Role.B), operands, strict=False)
    ]
    building = _Building(operation, backend, arrays)
    return as_given(operation, backend, operation.result, BUILD.get(operation.kind, _forward)(building, *arrays))


class _Building:
    """A graph as it grows: the layers below, and those of one operation."""

    def __init__(self, operation: Operation, backend: Backend, operands: Sequence[Array]) -> None:
        own = replace(operation.geometry, channels_last=False)
        self.backend, self.operation, self.geometry = backend, operation, own
        held = limits.workspace(), limits.threads()
        self.step = Step(replace(operation, geometry=own, unbatched=False), *held)
        found = dask.config.get("split_every", None)
        self.split_every = found if isinstance(found, int) and found >= FEWEST else USUAL
        names = [array.name for array in operands]
        self.token = tokenize(astuple(self.step.operation), *held, self.split_every, *names)
        self.prefix = (TRANSPOSED if operation.bias_role == Role.X else NAMES)[operation.kind]
        self.like = operands[0]
        merged = HighLevelGraph.merge(*(array.dask for array in operands))
        self.layers: dict[str, Any] = dict(merged.layers)
        self.dependencies: dict[str, set[str]] = {name: set(found) for name, found in merged.dependencies.items()}

    def name(self, *more: str) -> str:
        return "-".join((self.prefix, *more, self.token))

    def add(self, name: str, layer: dict[Key, Any], *below: str) -> None:
        """Add a layer that asks for what some others make; one without tasks is left out."""
        if layer:
            self.layers[name] = layer
            self.dependencies[name] = {each for each in below if each in self.layers}

    def array(self, name: str, chunks: tuple[tuple[int, ...], ...]) -> Array:
        own, like = backends.of(self.like._meta), self.like._meta
        meta = own.empty((0,) * len(chunks), like=like, dtype=own.dtype(self.operation.result_dtype))
        return da.Array(HighLevelGraph(self.layers, self.dependencies), name, chunks, meta=meta)

    def gathered(
        self, array: Array, places: Sequence[tuple[Place, ...]], picked: Sequence[Any], halos: dict[Key, Any], name: str
    ) -> tuple[Gathering, list[Key]]:
        """The pieces that a block reads of an array, at these places along its axes."""
        grid, keys = tuple(map(len, places)), []
        pieces = list(product(*places))
        sizes = [math.prod(end - start for _, start, end in piece) for piece in pieces]
        home = max(range(len(pieces)), key=sizes.__getitem__)
        chunks = [array.chunks[axis][chunk] for axis, (chunk, _, _) in enumerate(pieces[home])]
        # A chunk that is mostly read is not cut: of the others a task has what it reads alone.
        if 2 * sizes[home] < math.prod(chunks) or not sizes[home]:
            home = -1
        for i, piece in enumerate(pieces):
            chunk = tuple(number for number, _, _ in piece)
            index = tuple(slice(start, end) for _, start, end in piece)
            whole = all(end - start == array.chunks[axis][number] for axis, (number, start, end) in enumerate(piece))
            if i == home or whole:
                keys.append((array.name, *chunk))
                continue
            key = (name, *chunk, *(side for _, start, end in piece for side in (start, end)))
            halos[key] = tasks.halo, (array.name, *chunk), index
            keys.append(key)
        inside = tuple(slice(start, end) for _, start, end in pieces[home]) if home >= 0 else ()
        return Gathering(grid, home, inside, tuple(picked)), keys

    def tree(self, layer: dict[Key, Any], key: Key, leaves: list[Key], add: Summing, end: Summing) -> None:
        """Add up what leaves make, few at a time; what `add` and `end` give are tasks."""
        level = 0
        while len(leaves) > self.split_every:
            groups = [leaves[i : i + self.split_every] for i in range(0, len(leaves), self.split_every)]
            leaves = [(*key, "level", level, i) for i in range(len(groups))]
            layer.update(zip(leaves, map(add, groups), strict=True))
            level += 1
        layer[key] = end(leaves)

    def scales(self, array: Array, each: bool) -> Callable[[int], Key]:
        """The largest magnitudes of an array's channels: of `each` chunk of samples over all cells, or of the batch.

        They are named by the array alone, so that all that asks for them has them made once.
        """
        token = tokenize("scales", array.name, self.step.workspace, self.step.threads, self.split_every)
        first, second, third = (f"conv-{name}-{token}" for name in ("magnitudes", "scales", "channel-scales"))
        if first not in self.layers:
            every = product(*(range(count) for count in array.numblocks))
            self.add(
                first,
                {(first, *index): (tasks.magnitudes, self.step_of_scales, (array.name, *index)) for index in every},
                array.name,
            )
        if second not in self.layers:
            layer: dict[Key, Any] = {}
            for sample in range(array.numblocks[0]):
                cells = product(*(range(count) for count in array.numblocks[2:]))
                leaves: list[Key] = [(first, sample, 0, *index) for index in cells]
                self.tree(layer, (second, sample), leaves, _largest, _largest)
            self.add(second, layer, first)
        if each:
            return lambda sample: (second, sample)
        if third not in self.layers:
            layer, leaves = {}, [(second, sample) for sample in range(array.numblocks[0])]
            self.tree(layer, (third,), leaves, _largest_of_batch, _largest_of_batch)
            self.add(third, layer, second)
        return lambda sample: (third,)

    @property
    def step_of_scales(self) -> Step:
        """A step that is the same for all that asks for the scales of an array."""
        one = (1,) * self.geometry.dims
        geometry = Geometry(1, 1, 1, 1, one, one, one, one, (0,) * len(one), (0,) * len(one))
        return replace(self.step, operation=Operation(Kind.FORWARD, geometry, "float32", "float32"))


def _largest(found: list[Key]) -> tuple[Any, ...]:
    return tasks.largest, found


def _largest_of_batch(found: list[Key]) -> tuple[Any, ...]:
    return tasks.largest_of_batch, found


def _forward(building: _Building, x: Array, w: Array, b: Array | None = None) -> Array:
    """Outputs, or their bounds, in blocks that go with the chunks of the input."""
    geometry = building.geometry

    def reads(samples: Range, box: Sequence[Range]) -> tuple[Reads, Block]:
        of_x, own = _reads(geometry, x, samples, box)
        return of_x, Block(own, ())

    some = [outputs(geometry, dim, x.chunks[2 + dim]) for dim in range(geometry.dims)]
    return _in_blocks(building, tasks.computed, geometry.out_channels, some, reads, x, w, b)


def _input_grad(building: _Building, dout: Array, w: Array, b: Array | None = None) -> Array:
    """Inputs' gradients, in blocks that go with the chunks of the outputs'."""
    geometry = building.geometry

    def reads(samples: Range, box: Sequence[Range]) -> tuple[Reads, Block]:
        sides = [touching(geometry, dim, cells) for dim, cells in enumerate(box)]
        places = _places(dout, samples, [side.outputs for side in sides])
        common = [(max(c[0], s.region[0]), min(c[1], s.region[1])) for c, s in zip(box, sides, strict=True)]
        block = Block(
            replace(
                geometry,
                batch=samples[1] - samples[0],
                size=tuple(side.region[1] - side.region[0] for side in sides),
                before=tuple(side.before for side in sides),
                after=tuple(side.after for side in sides),
            ),
            (),
            (samples[1] - samples[0], geometry.in_channels, *(end - start for start, end in box)),
            tuple(slice(lo - s.region[0], hi - s.region[0]) for (lo, hi), s in zip(common, sides, strict=True)),
            tuple(slice(lo - start, hi - start) for (lo, hi), (start, _) in zip(common, box, strict=True)),
        )
        return (places, [None] * len(places)), block

    some = [inputs(geometry, dim, dout.chunks[2 + dim]) for dim in range(geometry.dims)]
    return _in_blocks(building, tasks.input_grad, geometry.in_channels, some, reads, dout, w, b)


def _in_blocks(
    building: _Building,
    task: Callable[..., Array],
    channels: int,
    some: Sequence[tuple[Range, ...]],
    reads: Callable[[Range, Sequence[Range]], tuple[Reads, Block]],
    array: Array,
    *others: Array | None,
) -> Array:
    """A result in blocks, of `some` cells along each dimension, that a task makes of what each `reads` of an array."""
    name, halo = building.name(), building.name("halo")
    scales = building.scales(array, each=True) if building.step.exact else None
    more = [_only(other) for other in others if other is not None]
    layer: dict[Key, Any] = {}
    halos: dict[Key, Any] = {}
    for index, samples, box in _blocks(array.chunks[0], some):
        (places, picked), block = reads(samples, box)
        gathering, pieces = building.gathered(array, places, picked, halos, halo)
        most = scales and scales(places[0][0][0])
        own = replace(block, gathering=(gathering,))
        layer[name, index[0], 0, *index[1:]] = (task, building.step, own, pieces, most, *more)
    building.add(halo, halos, array.name)
    building.add(name, layer, *building.layers)
    return building.array(name, (_sizes(ranges(array.chunks[0])), (channels,), *map(_sizes, some)))


def _weight_grad(building: _Building, dout: Array, x: Array) -> Array:
    """The filters' gradient, of what each chunk of the outputs' gradients adds to it."""
    geometry, step = building.geometry, building.step
    partial, whole, halo = building.name("partial"), building.name("sum"), building.name("halo")
    some = [ranges(dout.chunks[2 + dim]) for dim in range(geometry.dims)]
    most = [building.scales(array, each=False)(0) for array in (dout, x)] if step.exact else None
    own = step if step.exact else replace(step, operation=_wide(step.operation))
    layer: dict[Key, Any] = {}
    halos: dict[Key, Any] = {}
    for index, samples, box in _blocks(dout.chunks[0], some):
        places = _places(dout, samples, box)
        of_dout, dout_pieces = building.gathered(dout, places, [None] * len(places), halos, halo)
        of_x, geometry_of_block = _reads(geometry, x, samples, box)
        gathering, pieces = building.gathered(x, *of_x, halos, halo)
        block = Block(geometry_of_block, (of_dout, gathering))
        layer[partial, *index] = (tasks.weight_grad, own, block, dout_pieces, pieces, most)
    building.add(halo, halos, dout.name, x.name)
    building.add(partial, layer, *building.layers)
    sums: dict[Key, Any] = {}
    key: Key = (whole, *(0,) * len(geometry.w_shape))
    building.tree(
        sums,
        key,
        list(layer),
        lambda found: (tasks.weight_grad_sum, own, found),
        lambda found: (tasks.weight_grad_end, step if step.exact else own, found, most, step.operation.result_dtype),
    )
    building.add(whole, sums, *building.layers)
    return building.array(whole, tuple((size,) for size in geometry.w_shape))


def _channel_sum(building: _Building, array: Array) -> Array:
    """The gradient of a bias, of what each chunk adds to it."""
    geometry, step, partial, whole = building.geometry, building.step, building.name("partial"), building.name("sum")
    most = building.scales(array, each=False)(0) if step.exact else None
    own = step if step.exact else replace(step, operation=_wide(step.operation))
    count = math.prod(array.shape) // array.shape[1]
    block = Block(geometry, ())
    every = product(*(range(blocks) for blocks in array.numblocks))
    layer: dict[Key, Any] = {
        (partial, *index): (tasks.channel_sum, own, block, (array.name, *index), most, count) for index in every
    }
    building.add(partial, layer, *building.layers)
    sums: dict[Key, Any] = {}
    building.tree(
        sums,
        (whole, 0),
        list(layer),
        lambda found: (tasks.channel_sum_sum, found),
        lambda found: (tasks.channel_sum_end, own, found, most, count, step.operation.result_dtype),
    )
    building.add(whole, sums, *building.layers)
    return building.array(whole, ((array.shape[1],),))


def _windows(operation: Operation, backend: Backend, array: Array) -> Array:
    """Columns, or what they add up to: of some samples and channels each, whose cells lie in one chunk."""
    geometry, many = operation.geometry, operation.geometry.taps
    array = _whole(array, range(2, array.ndim))
    made, taken = (many, 1) if operation.kind == Kind.UNFOLD else (1, many)
    if any(size % taken for size in array.chunks[1]):  # a channel's columns go together
        array = _whole(array, (1,))
    building = _Building(operation, backend, [array])
    name = building.name()
    samples, channels = ranges(array.chunks[0]), ranges(array.chunks[1])
    layer: dict[Key, Any] = {}
    cells = operation.shape(operation.result)[2:]
    rest = (0,) * (array.ndim - 2)
    for (i, some), (j, few) in product(enumerate(samples), enumerate(channels)):
        place = located(array.chunks[0], [some])[0][0], located(array.chunks[1], [few])[0][0]
        count = (few[1] - few[0]) // taken
        own = replace(geometry, batch=some[1] - some[0], in_channels=count, out_channels=count, groups=count)
        layer[name, i, j, *(0 for _ in cells)] = (tasks.windows, building.step, own, (array.name, *place, *rest))
    building.add(name, layer, array.name)
    sizes = tuple((end - start) // taken * made for start, end in channels)
    return building.array(name, (_sizes(samples), sizes, *((size,) for size in cells)))


BUILD: dict[Kind, Callable[..., Array]] = {
    Kind.INPUT_GRAD: _input_grad,
    Kind.WEIGHT_GRAD: _weight_grad,
    Kind.CHANNEL_SUM: _channel_sum,
}
"""What builds the graph of each kind of operation; that of an output, or of its error bound, is built as well."""


def _reads(geometry: Geometry, x: Array, samples: Range, box: Sequence[Range]) -> tuple[Reads, Geometry]:
    """Where what a block of outputs reads lies, and what of it is taken; and the convolution that makes the block."""
    reads = [read(geometry, dim, outs) for dim, outs in enumerate(box)]
    cells = [located(x.chunks[2 + dim], part.runs) for dim, part in enumerate(reads)]
    places = [located(x.chunks[0], [samples]), _channels(x), *cells]
    own = replace(convolved(geometry, reads), batch=samples[1] - samples[0], mode="zeros")
    return (places, [None, None, *(part.picked for part in reads)]), own


def _blocks(
    batch: Sequence[int], cells: Sequence[tuple[Range, ...]]
) -> Iterable[tuple[tuple[int, ...], Range, tuple[Range, ...]]]:
    """Each block of a result: its numbers, its samples, and its cells along each dimension."""
    for numbered in product(*(tuple(enumerate(each)) for each in (ranges(batch), *cells))):
        index, (samples, *box) = zip(*numbered, strict=True)
        yield index, samples, tuple(box)


def _wide(operation: Operation) -> Operation:
    """The operation that makes what is added up: halves in float32, to be rounded once."""
    dtype = "float32" if operation.dtype in HALVES else operation.dtype
    return replace(operation, dtype=dtype, result_dtype=dtype)


def _whole(array: Array, axes: Iterable[int]) -> Array:
    """An array that lies in one chunk along some axes."""
    cut = {axis: -1 for axis in axes if array.numblocks[axis] > 1}
    return array.rechunk(cut) if cut else array


def _places(array: Array, samples: Range, box: Sequence[Range]) -> list[tuple[Place, ...]]:
    """Where some samples lie in an array's chunks, and a box of their cells, with all channels."""
    cells = [located(array.chunks[2 + dim], [some]) for dim, some in enumerate(box)]
    return [located(array.chunks[0], [samples]), _channels(array), *cells]


def _channels(array: Array) -> tuple[Place, ...]:
    return ((0, 0, array.shape[1]),)


def _only(array: Array) -> Key:
    """The key of the one chunk of an array."""
    return (array.name, *(0,) * array.ndim)


def _sizes(cuts: Iterable[Range]) -> tuple[int, ...]:
    return tuple(end - start for start, end in cuts)
