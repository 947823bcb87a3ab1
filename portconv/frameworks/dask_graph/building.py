"""The parts of Dask's graphs: keys, layers, the pieces of chunks that a block reads, sums in trees, and scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import astuple, replace
from itertools import product
from typing import Any, NamedTuple

import dask
import dask.array as da
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from ... import backends, limits
from ...backends import Array
from ...spec.geometry import Geometry
from ...spec.operation import Kind, Operation, Role
from . import tasks
from .tasks import Gathering, LimitedOperation

Key = tuple[Hashable, ...]
Layer = dict[Key, Any]
Sum = Callable[[list[Key]], tuple[Any, ...]]
"""Returns the task that adds up the terms with these keys."""
Piece = tuple[int, int, int]
"""The number of a chunk along an axis, and where a piece of the chunk starts and ends in it."""

NAMES = {
    Kind.FORWARD: "conv",
    Kind.INPUT_GRAD: "conv_input_grad",
    Kind.WEIGHT_GRAD: "conv_weight_grad",
    Kind.CHANNEL_SUM: "conv_bias_grad",
    Kind.ERROR_BOUND: "conv_error_bound",
    Kind.UNFOLD: "unfold",
    Kind.FOLD: "fold",
}
"""The names of the tasks of each kind of operation."""
TRANSPOSED_NAMES = {
    Kind.FORWARD: "conv_transpose_input_grad",
    Kind.INPUT_GRAD: "conv_transpose",
    Kind.WEIGHT_GRAD: "conv_transpose_weight_grad",
    Kind.CHANNEL_SUM: "conv_transpose_bias_grad",
}
"""The names for a transposed convolution, which is the input gradient of a convolution."""
FEWEST_TERMS, DEFAULT_TERMS = 2, 8
"""How many terms one task of a tree adds up at the least, and without Dask's setting `split_every`."""


class Reads(NamedTuple):
    """What a block reads of an array.

    Attributes
    ----------
    pieces : list of tuple of Piece
        The pieces of chunks along each axis.
    picked : list of (tuple of int or None)
        Which cells of the joined pieces are taken, as in `Gathering`.
    """

    pieces: list[tuple[Piece, ...]]
    picked: list[tuple[int, ...] | None]


class Building:
    """The graph of one operation while it is built: the layers of its operands, and its own."""

    def __init__(self, operation: Operation, operands: Sequence[Array]) -> None:
        self.operation = operation
        self.geometry = replace(operation.geometry, channels_last=False)
        held = limits.workspace(), limits.threads()
        self.limited = LimitedOperation(replace(operation, geometry=self.geometry, unbatched=False), *held)
        split_every = dask.config.get("split_every", None)
        if not (isinstance(split_every, int) and split_every >= FEWEST_TERMS):
            split_every = DEFAULT_TERMS
        self.split_every = split_every
        names = [array.name for array in operands]
        self.token = tokenize(astuple(self.limited.operation), *held, split_every, *names)
        self.prefix = (TRANSPOSED_NAMES if operation.bias_role == Role.X else NAMES)[operation.kind]
        self.like = operands[0]
        merged = HighLevelGraph.merge(*(array.dask for array in operands))
        self.layers: dict[str, Any] = dict(merged.layers)
        self.dependencies: dict[str, set[str]] = {name: set(below) for name, below in merged.dependencies.items()}
        self.halos: Layer = {}

    def name(self, *more: str) -> str:
        """Return the name of a layer: the kind of operation, these words, and the token of the call."""
        return "-".join((self.prefix, *more, self.token))

    def add(self, name: str, layer: Layer, below: Iterable[str]) -> None:
        """Add a layer, unless it is empty, and the names of the layers below whose results it uses."""
        if layer:
            self.dependencies[name] = {each for each in below if each in self.layers}
            self.layers[name] = layer

    def add_halos(self, *arrays: Array) -> None:
        """Add the layer of the pieces that `gathered` cuts out of chunks of these arrays."""
        self.add(self.name("halo"), self.halos, [array.name for array in arrays])

    def array(self, name: str, chunks: tuple[tuple[int, ...], ...]) -> Array:
        """Return the array of the result, whose chunks the layer of that name makes."""
        backend, like = backends.of(self.like._meta), self.like._meta
        dtype = backend.dtype(self.operation.result_dtype)
        meta = backend.empty((0,) * len(chunks), like=like, dtype=dtype)
        return da.Array(HighLevelGraph(self.layers, self.dependencies), name, chunks, meta=meta)

    def gathered(self, array: Array, reads: Reads) -> tuple[Gathering, list[Key]]:
        """Return how a block puts together what it reads of an array, and the keys of the pieces."""
        name, keys = self.name("halo"), []
        pieces = list(product(*reads.pieces))
        sizes = [math.prod(end - start for _, start, end in piece) for piece in pieces]
        uncut = max(range(len(pieces)), key=sizes.__getitem__)
        chunk_shape = [array.chunks[axis][number] for axis, (number, _, _) in enumerate(pieces[uncut])]
        # A block gets one chunk whole, if it reads at least half of it; a cut piece would be a second copy of that.
        if 2 * sizes[uncut] < math.prod(chunk_shape) or not sizes[uncut]:
            uncut = -1
        for i, piece in enumerate(pieces):
            chunk = tuple(number for number, _, _ in piece)
            whole = all(end - start == array.chunks[axis][number] for axis, (number, start, end) in enumerate(piece))
            if i == uncut or whole:
                keys.append((array.name, *chunk))
                continue
            key = (name, *chunk, *(edge for _, start, end in piece for edge in (start, end)))
            self.halos[key] = tasks.halo, (array.name, *chunk), _slices(piece)
            keys.append(key)
        uncut_part = _slices(pieces[uncut]) if uncut >= 0 else ()
        return Gathering(tuple(map(len, reads.pieces)), uncut, uncut_part, tuple(reads.picked)), keys

    def tree(self, layer: Layer, key: Key, terms: list[Key], add: Sum, end: Sum) -> None:
        """Add up terms under a key, few in each task: `add` makes the tasks of the tree, and `end` its last one."""
        level = 0
        while len(terms) > self.split_every:
            groups = [terms[i : i + self.split_every] for i in range(0, len(terms), self.split_every)]
            terms = [(*key, "level", level, i) for i in range(len(groups))]
            layer.update(zip(terms, map(add, groups), strict=True))
            level += 1
        layer[key] = end(terms)

    def sample_scales(self, array: Array) -> Callable[[int], Key]:
        """Return the key of the largest magnitudes of each chunk of samples of an array, over all their cells.

        The name depends on the array alone, so all operations on the array share these tasks.
        """
        magnitudes, scales = self._scale_name("magnitudes", array), self._scale_name("scales", array)
        if magnitudes not in self.layers:
            indices = product(*(range(count) for count in array.numblocks))
            layer: Layer = {
                (magnitudes, *index): (tasks.magnitudes, self._of_scales, (array.name, *index)) for index in indices
            }
            self.add(magnitudes, layer, [array.name])
        if scales not in self.layers:
            layer = {}
            for sample in range(array.numblocks[0]):
                cells = product(*(range(count) for count in array.numblocks[2:]))
                parts: list[Key] = [(magnitudes, sample, 0, *index) for index in cells]
                self.tree(layer, (scales, sample), parts, _largest, _largest)
            self.add(scales, layer, [magnitudes])
        return lambda sample: (scales, sample)

    def batch_scales(self, array: Array) -> Key:
        """Return the key of the largest magnitudes of the channels of an array, over all samples and cells."""
        of_sample, name = self.sample_scales(array), self._scale_name("channel-scales", array)
        if name not in self.layers:
            layer: Layer = {}
            parts = [of_sample(sample) for sample in range(array.numblocks[0])]
            self.tree(layer, (name,), parts, _largest_of_batch, _largest_of_batch)
            self.add(name, layer, [self._scale_name("scales", array)])
        return (name,)

    def _scale_name(self, word: str, array: Array) -> str:
        token = tokenize("scales", array.name, self.limited.workspace, self.limited.threads, self.split_every)
        return f"conv-{word}-{token}"

    @property
    def _of_scales(self) -> LimitedOperation:
        """The limits, with an operation that is the same for all operations that need the scales of an array."""
        one = (1,) * self.geometry.dims
        geometry = Geometry(1, 1, 1, 1, one, one, one, one, (0,) * len(one), (0,) * len(one))
        return replace(self.limited, operation=Operation(Kind.FORWARD, geometry, "float32", "float32"))


def _slices(piece: Sequence[Piece]) -> tuple[slice, ...]:
    """Return where a piece lies in its chunk."""
    return tuple(slice(start, end) for _, start, end in piece)


def _largest(parts: list[Key]) -> tuple[Any, ...]:
    return tasks.largest, parts


def _largest_of_batch(parts: list[Key]) -> tuple[Any, ...]:
    return tasks.largest_of_batch, parts
