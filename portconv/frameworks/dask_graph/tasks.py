"""What the tasks of a graph run: each makes one block of a result from the chunks that it reads, with their library.

Inputs and outputs are batches with channels first here, and the operation of a task has the geometry of its block.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce

from ... import backends, limits
from ...backends import Array, Backend
from ...engine import execution
from ...engine.products import weight_sums
from ...passes.casts import narrow, with_bias
from ...passes.part import Part
from ...reproducible.bias import add_bias
from ...reproducible.bias_grad import channel_sums, round_channel_sums
from ...reproducible.magnitudes import magnitudes as magnitudes_of
from ...reproducible.magnitudes import remembering
from ...reproducible.slicing import longest_sum
from ...reproducible.weight_grad import add_weight_sums, round_weight_sums
from ...spec.dtypes import KINDS
from ...spec.geometry import Geometry
from ...spec.operation import Kind, Operation
from ...spec.operation import operation as operation_of
from ...spec.ranges import ALL, Range
from .halos import boxes, convolved, read

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class LimitedOperation:
    """What all blocks of a result have in common: the operation, and the limits under which the graph was made."""

    operation: Operation
    workspace: int | None
    threads: int | None

    @property
    def exact(self) -> bool:
        """Whether sums are exact, and rounded once at the end."""
        return self.operation.precision == "reproducible" and KINDS[self.operation.dtype] != "integral"

    @contextmanager
    def limited(self, known: Sequence[tuple[Array, Array]] = ()) -> Iterator[None]:
        """Set the limits, and remember known magnitudes: pairs of an array and its magnitudes."""
        # Dask runs blocks in parallel, so each block has one thread, unless the user has asked for more.
        with limits.num_threads(self.threads or 1), remembering(known):
            if self.workspace is None:
                yield
            else:
                with limits.workspace_limit(self.workspace):
                    yield

    def of_block(self, geometry: Geometry) -> Operation:
        """Return the operation that computes a block with this geometry."""
        return replace(self.operation, geometry=geometry)


@dataclass(frozen=True)
class Gathering:
    """How pieces of chunks are put together to the array that a block reads.

    Attributes
    ----------
    grid : tuple of int
        How many pieces there are along each axis; the pieces are in C order.
    uncut : int
        The number of the piece whose whole chunk the task gets; -1 if it gets all pieces cut.
    uncut_part : tuple of slice
        Where that piece lies in its chunk.
    picked : tuple of (tuple of int or None)
        For each axis, which cells of the joined pieces are taken, in this order; None takes all cells.
    """

    grid: tuple[int, ...]
    uncut: int
    uncut_part: Slices
    picked: tuple[tuple[int, ...] | None, ...]

    def array(self, chunks: Sequence[Array]) -> Array:
        """Return the array that these pieces make."""
        pieces = [chunk[(*self.uncut_part, ...)] if i == self.uncut else chunk for i, chunk in enumerate(chunks)]
        backend = backends.of(pieces[0])
        array = pieces[0] if len(pieces) == 1 else self._joined(backend, pieces)
        for axis, cells in enumerate(self.picked):
            if cells is not None:
                index = backend.asarray(list(cells), "int64", backend.device_of(array))
                array = backend.xp.take(array, index, axis=axis)
        return array

    def _joined(self, backend: Backend, pieces: list[Array]) -> Array:
        """Copy the pieces into one array."""
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
                rest, number = divmod(rest, count)
                place.append(slice(ends[number], ends[number + 1]))
            array = backend.write(array, (*reversed(place), ...), piece)
        return array


@dataclass(frozen=True)
class Block:
    """One block of a result.

    Attributes
    ----------
    geometry : Geometry
        The convolution that makes the block, or a term of a sum.
    gatherings : tuple of Gathering
        One for each operand that lies in chunks.
    shape : tuple of int
        The shape (N, C, *cells) of a block of an input gradient.
    source, target : tuple of slice
        Which cells of the convolution's result belong to that block, and where they lie in it; no window reads the
        other cells of the block.
    """

    geometry: Geometry
    gatherings: tuple[Gathering, ...] = ()
    shape: tuple[int, ...] = ()
    source: Slices = ()
    target: Slices = ()


def halo(chunk: Array, index: Slices = ()) -> Array:
    """Copy a part of a chunk, so that the chunk need not be kept for this part."""
    part, backend = chunk[(*index, ...)], backends.of(chunk)
    return backend.write(backend.empty(tuple(part.shape), like=part), (...,), part)


def output(limited: LimitedOperation, block: Block, chunks: list[Array], scales: Array | None, *more: Array) -> Array:
    """Compute a block of an output or of its error bound; `more` are the filters, and a bias if there is one."""
    x = block.gatherings[0].array(chunks)
    with limited.limited(() if scales is None else [(x, scales)]):
        return execution.compute(limited.of_block(block.geometry), backends.of(x), x, *more)


def input_grad(
    limited: LimitedOperation, block: Block, chunks: list[Array], scales: Array | None, *more: Array
) -> Array:
    """Compute a block of the gradient of an input, or of a transposed convolution."""
    dout = block.gatherings[0].array(chunks)
    backend = backends.of(dout)
    part = None
    if all(cells.start < cells.stop for cells in block.target):
        with limited.limited(() if scales is None else [(dout, scales)]):
            result = execution.compute(limited.of_block(block.geometry), backend, dout, *more)
        whole = tuple(slice(0, size) for size in result.shape[2:])
        part = result if block.source == whole else result[(ALL, ALL, *block.source)]
        if tuple(part.shape) == block.shape:
            return part if part is result else halo(part)
    dtype = backend.dtype(limited.operation.result_dtype)
    array = backend.zeroed(backend.empty(block.shape, like=dout, dtype=dtype))
    if len(more) > 1:  # cells that no window reads have the bias too
        array = _biased(limited, backend, array, more[1])
    return array if part is None else backend.write(array, (ALL, ALL, *block.target), part)


def _biased(limited: LimitedOperation, backend: Backend, zeros: Array, bias: Array) -> Array:
    """Add a bias to zeros, in the precision of the operation."""
    if not limited.exact:
        return execution.warned(backend, lambda one: with_bias(backend, zeros, narrow(backend, one, zeros.dtype)), bias)
    with limited.limited(), backend.quiet():
        return add_bias(backend, zeros, bias, limited.operation.result_dtype)


def weight_grad(
    limited: LimitedOperation, block: Block, out_chunks: list[Array], x_chunks: list[Array], scales: list[Array] | None
) -> Array:
    """Compute the term of the filters' gradient that a block of outputs adds."""
    dout, x = block.gatherings[0].array(out_chunks), block.gatherings[1].array(x_chunks)
    backend, operation = backends.of(dout), limited.of_block(block.geometry)
    if scales is None:
        with limited.limited():
            return execution.compute(operation, backend, dout, x)
    with limited.limited([(dout, scales[0]), (x, scales[1])]):
        some = boxes(block.geometry.out, longest_sum(operation.dtype))
        return weight_sums(operation, backend, tuple(_part(block.geometry, box) for box in some), dout, x)


def _part(geometry: Geometry, box: tuple[Range, ...]) -> Part:
    """Return the part of a convolution that makes a box of its outputs."""
    reads = [read(geometry, dim, cells) for dim, cells in enumerate(box)]
    x_cells = tuple(slice(*reading.runs[0]) for reading in reads)
    out_cells = tuple(slice(*cells) for cells in box)
    return Part(convolved(geometry, reads), (ALL, ALL, *x_cells), (ALL, ALL), (ALL, ALL, *out_cells))


def weight_grad_sum(limited: LimitedOperation, sums: list[Array]) -> Array:
    """Add up terms of the filters' gradient."""
    if not limited.exact:
        return _total(sums)
    return add_weight_sums(limited.operation.dtype, backends.of(sums[0]), sums)


def weight_grad_end(
    limited: LimitedOperation, sums: list[Array], scales: list[Array] | None, result_dtype: str
) -> Array:
    """Add up the last terms of the filters' gradient, and round to the dtype of the result."""
    total = weight_grad_sum(limited, sums)
    backend, operation = backends.of(total), limited.operation
    if scales is None:
        return execution.warned(backend, lambda one: narrow(backend, one, backend.dtype(result_dtype)), total)
    largest = scales[0][0, 0, :], scales[1][0, 0, :]
    gradient = operation_of(Kind.WEIGHT_GRAD, operation.geometry, operation.dtype, result_dtype)
    with limited.limited(), backend.quiet():
        return round_weight_sums(gradient, backend, total, largest)


def channel_sum(limited: LimitedOperation, block: Block, chunk: Array, scales: Array | None, count: int) -> Array:
    """Compute the term of a bias gradient that a chunk adds; `count` is the number of all terms of a channel."""
    backend, operation = backends.of(chunk), limited.of_block(block.geometry)
    if scales is None:
        with limited.limited():
            return execution.compute(operation, backend, chunk)
    with limited.limited([(chunk, scales)]), backend.during_call(chunk, "reproducible"), backend.quiet():
        term = operation_of(Kind.CHANNEL_SUM, block.geometry, operation.dtype, operation.dtype)
        return channel_sums(term, backend, chunk, count)


def channel_sum_sum(sums: list[Array]) -> Array:
    """Add up terms of a bias gradient; the limbs of exact ones have room for the sum of all of them."""
    return _total(sums)


def _total(sums: list[Array]) -> Array:
    return execution.warned(backends.of(sums[0]), lambda *terms: reduce(operator.add, terms), *sums)


def channel_sum_end(
    limited: LimitedOperation, sums: list[Array], scales: Array | None, count: int, result_dtype: str
) -> Array:
    """Add up the last terms of a bias gradient, and round to the dtype of the result."""
    total = channel_sum_sum(sums)
    backend = backends.of(total)
    if scales is None:
        return execution.warned(backend, lambda one: narrow(backend, one, backend.dtype(result_dtype)), total)
    gradient = operation_of(Kind.CHANNEL_SUM, limited.operation.geometry, limited.operation.dtype, result_dtype)
    with limited.limited(), backend.quiet():
        return round_channel_sums(gradient, backend, total, scales[0, 0, :], count)


def windows(limited: LimitedOperation, geometry: Geometry, chunk: Array) -> Array:
    """Compute `unfold` or `fold` of some samples and channels."""
    with limited.limited():
        return execution.compute(limited.of_block(geometry), backends.of(chunk), chunk)


def magnitudes(limited: LimitedOperation, chunk: Array) -> Array:
    """Return the largest magnitude of each channel of each sample, and whether all elements are finite."""
    backend = backends.of(chunk)
    with limited.limited(), backend.during_call(chunk, "reproducible"), backend.quiet():
        return magnitudes_of(backend, chunk)


def largest(parts: list[Array]) -> Array:
    """Return the largest magnitudes of parts of the same samples."""
    return reduce(backends.of(parts[0]).xp.maximum, parts)


def largest_of_batch(parts: list[Array]) -> Array:
    """Return the largest magnitudes of all samples, as those of one sample."""
    backend = backends.of(parts[0])
    zeros = backend.zeros((parts[0].shape[0], 1, parts[0].shape[2]), parts[0])  # there may be no samples
    of_parts = (backend.xp.max(part, axis=1, keepdims=True) for part in parts if part.shape[1])
    return reduce(backend.xp.maximum, of_parts, zeros)
