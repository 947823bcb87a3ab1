"""What tasks run: a block of a result from the chunks that it reads, on the library that these belong to.

Inputs and outputs are batches with channels first here, and a task's operation has the geometry of its block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce

from ... import backends, limits
from ...backends import Array, Backend
from ...engine import execution
from ...engine.products import weight_sums
from ...passes.casts import narrow, with_bias
from ...passes.partition import Part
from ...reproducible.bias import add_bias
from ...reproducible.bias_grad import channel_sums, round_channel_sums
from ...reproducible.magnitudes import magnitudes as magnitudes_of
from ...reproducible.magnitudes import remembering
from ...reproducible.slicing import longest_sum
from ...reproducible.weight_grad import add_weight_sums, round_weight_sums
from ...spec.dtypes import KINDS, real
from ...spec.geometry import Geometry
from ...spec.operation import Kind, Operation
from ...spec.operation import operation as operation_of
from ...spec.ranges import Range
from .halos import boxes, convolved, read

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Step:
    """What all blocks of a result have in common: what is computed, and how much that may take."""

    operation: Operation
    workspace: int | None
    threads: int | None

    @property
    def exact(self) -> bool:
        """Whether sums are rounded at the end alone."""
        return self.operation.precision == "reproducible" and KINDS[self.operation.dtype] != "integral"

    @contextmanager
    def held(self, known: Sequence[tuple[Array, Array]] = ()) -> Iterator[None]:
        """Keep to the limits that the graph was made under, and remember the magnitudes of whole arrays."""
        # Blocks are what runs at the same time: one thread each, unless the user wanted more.
        with limits.num_threads(self.threads or 1), remembering(known):
            if self.workspace is None:
                yield
            else:
                with limits.workspace_limit(self.workspace):
                    yield

    def of(self, geometry: Geometry) -> Operation:
        """The operation of a block."""
        return replace(self.operation, geometry=geometry)


@dataclass(frozen=True)
class Gathering:
    """How pieces of chunks make up what a block reads.

    Attributes
    ----------
    grid : tuple of int
        How many pieces there are along each axis; they come in C order.
    home : int
        Which of them comes as its whole chunk.
    inside : tuple of slice
        What of that chunk the piece is.
    picked : tuple of (tuple of int or None)
        For each axis which of the cells that the pieces make up are taken, in that order; None for all as they are.
    """

    grid: tuple[int, ...]
    home: int
    inside: Slices
    picked: tuple[tuple[int, ...] | None, ...]

    def of(self, pieces: Sequence[Array]) -> Array:
        """Put the pieces together."""
        found = [piece[(*self.inside, ...)] if i == self.home else piece for i, piece in enumerate(pieces)]
        backend = backends.of(found[0])
        array = found[0] if len(found) == 1 else self._joined(backend, found)
        for axis, places in enumerate(self.picked):
            if places is not None:
                index = backend.asarray(list(places), "int64", backend.device_of(array))
                array = backend.xp.take(array, index, axis=axis)
        return array

    def _joined(self, backend: Backend, pieces: list[Array]) -> Array:
        edges, step = [], len(pieces)
        for axis, count in enumerate(self.grid):
            step //= count
            ends = [0]
            for i in range(count):
                ends.append(ends[-1] + pieces[i * step].shape[axis])
            edges.append(ends)
        array = backend.empty(tuple(ends[-1] for ends in edges), like=pieces[0])
        for i, piece in enumerate(pieces):
            place, rest = [], i
            for count, ends in zip(reversed(self.grid), reversed(edges), strict=True):
                rest, at = divmod(rest, count)
                place.append(slice(ends[at], ends[at + 1]))
            array = backend.write(array, (*reversed(place), ...), piece)
        return array


@dataclass(frozen=True)
class Block:
    """One block of a result.

    Attributes
    ----------
    geometry : Geometry
        The convolution that it is the result of, or that it adds to.
    gathering : tuple of Gathering
        One for each operand that lies in chunks.
    shape : tuple of int
        Of the result (N, C, *cells).
    inside, place : tuple of slice
        Where it lies in what the convolution makes, and where that then lies in it; what is left is made of nothing.
    """

    geometry: Geometry
    gathering: tuple[Gathering, ...]
    shape: tuple[int, ...] = ()
    inside: Slices = field(default=())
    place: Slices = field(default=())


def halo(chunk: Array, index: Slices = ()) -> Array:
    """A part of a chunk, in memory of its own, so that the chunk need not be kept for it."""
    part, backend = chunk[(*index, ...)], backends.of(chunk)
    return backend.write(backend.empty(tuple(part.shape), like=part), (...,), part)


def computed(step: Step, block: Block, pieces: list[Array], scales: Array | None, *more: Array) -> Array:
    """A block of an output, or of its bound: `more` are the filters, and a bias."""
    x = block.gathering[0].of(pieces)
    with step.held(() if scales is None else [(x, scales)]):
        return execution.compute(step.of(block.geometry), backends.of(x), x, *more)


def input_grad(step: Step, block: Block, pieces: list[Array], scales: Array | None, *more: Array) -> Array:
    """A block of the gradient of an input, or of a transposed convolution."""
    dout = block.gathering[0].of(pieces)
    backend = backends.of(dout)
    if all(part.start < part.stop for part in block.place):
        with step.held(() if scales is None else [(dout, scales)]):
            found = execution.compute(step.of(block.geometry), backend, dout, *more)
        whole = tuple(slice(0, size) for size in found.shape[2:])
        part = found if block.inside == whole else found[(slice(None), slice(None), *block.inside)]
        if tuple(part.shape) == block.shape:
            return part if part is found else halo(part)
    else:
        part = None
    made = backend.dtype(step.operation.result_dtype)
    array = backend.zeroed(backend.empty(block.shape, like=dout, dtype=made))
    if len(more) > 1:  # the bias of what no window reaches
        array = _biased(step, backend, array, more[1])
    return array if part is None else backend.write(array, (slice(None), slice(None), *block.place), part)


def _biased(step: Step, backend: Backend, zeros: Array, bias: Array) -> Array:
    if not step.exact:
        return with_bias(backend, zeros, narrow(backend, bias, zeros.dtype))
    with step.held(), backend.quiet():
        return add_bias(backend, zeros, bias, step.operation.result_dtype)


def weight_grad(step: Step, block: Block, of_out: list[Array], of_x: list[Array], scales: list[Array] | None) -> Array:
    """What a block of outputs adds to the gradient of the filters."""
    dout, x = block.gathering[0].of(of_out), block.gathering[1].of(of_x)
    backend, operation = backends.of(dout), step.of(block.geometry)
    if scales is None:
        with step.held():
            return execution.compute(operation, backend, dout, x)
    with step.held([(dout, scales[0]), (x, scales[1])]):
        some = [_box(block.geometry, box) for box in boxes(block.geometry.out, longest_sum(operation.dtype))]
        return weight_sums(operation, backend, tuple(some), dout, x)


def _box(geometry: Geometry, box: tuple[Range, ...]) -> Part:
    """The convolution of a box of outputs."""
    reads = [read(geometry, dim, some) for dim, some in enumerate(box)]
    every = (slice(None), slice(None))
    cells = tuple(slice(*part.runs[0]) for part in reads)
    return Part(convolved(geometry, reads), (*every, *cells), every, (*every, *(slice(*some) for some in box)))


def weight_grad_sum(step: Step, sums: list[Array]) -> Array:
    """Add up what blocks add."""
    if not step.exact:
        return reduce(lambda total, more: total + more, sums)
    return add_weight_sums(step.operation.dtype, backends.of(sums[0]), sums)


def weight_grad_end(step: Step, sums: list[Array], scales: list[Array] | None, made: str) -> Array:
    """Add up the last sums, and round to the dtype named by `made`."""
    total = weight_grad_sum(step, sums)
    backend, operation = backends.of(total), step.operation
    if scales is None:
        return narrow(backend, total, backend.dtype(made))
    largest = scales[0][0, 0, :], scales[1][0, 0, :]
    gradient = operation_of(Kind.WEIGHT_GRAD, operation.geometry, operation.dtype, made)
    with step.held(), backend.quiet():
        return round_weight_sums(gradient, backend, total, largest)


def channel_sum(step: Step, block: Block, chunk: Array, scales: Array | None, count: int) -> Array:
    """What a chunk adds to the gradient of a bias."""
    backend, operation = backends.of(chunk), step.of(block.geometry)
    if scales is None:
        with step.held():
            return execution.compute(operation, backend, chunk)
    with step.held([(chunk, scales)]), backend.during_call(chunk, "reproducible"), backend.quiet():
        own = operation_of(Kind.CHANNEL_SUM, block.geometry, operation.dtype, operation.dtype)
        return channel_sums(own, backend, chunk, count)


def channel_sum_sum(sums: list[Array]) -> Array:
    """Add up what chunks add: of exact sums the limbs, which are as short as all of them want."""
    return reduce(lambda total, more: total + more, sums)


def channel_sum_end(step: Step, sums: list[Array], scales: Array | None, count: int, made: str) -> Array:
    """Add up the last sums, and round to the dtype named by `made`."""
    total = channel_sum_sum(sums)
    backend = backends.of(total)
    if scales is None:
        return narrow(backend, total, backend.dtype(made))
    gradient = operation_of(Kind.CHANNEL_SUM, step.operation.geometry, step.operation.dtype, made)
    with step.held(), backend.quiet():
        return round_channel_sums(gradient, backend, total, scales[0, 0, :], count)


def windows(step: Step, geometry: Geometry, chunk: Array) -> Array:
    """Columns of some samples and channels, or the cells that such columns add up to."""
    with step.held():
        return execution.compute(step.of(geometry), backends.of(chunk), chunk)


def magnitudes(step: Step, chunk: Array) -> Array:
    """The largest magnitude of each sample's channel, and whether all are finite, as `reproducible` has it."""
    backend = backends.of(chunk)
    with step.held(), backend.during_call(chunk, "reproducible"), backend.quiet():
        return magnitudes_of(backend, chunk, real(backend.dtype_name(chunk.dtype)))


def largest(found: list[Array]) -> Array:
    """The largest of magnitudes."""
    return reduce(backends.of(found[0]).xp.maximum, found)


def largest_of_batch(found: list[Array]) -> Array:
    """The largest of magnitudes of several samples: those of one."""
    backend = backends.of(found[0])
    nothing = backend.zeros((found[0].shape[0], 1, found[0].shape[2]), found[0])  # where there are no samples
    most = (backend.xp.max(each, axis=1, keepdims=True) for each in found if each.shape[1])
    return reduce(backend.xp.maximum, most, nothing)
