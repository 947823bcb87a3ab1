"""Windows of a block as the columns of a matrix (im2col), and the way back (col2im).

Columns are gathered in two steps, as in Cho and Brand, "MEC: memory-efficient convolution" (ICML 2017), section 3:
first along all dimensions but the first, then along the first, whose taps are long contiguous runs by then. A 3x3
kernel so copies short rows 3 times a cell instead of 9. The way back takes the same steps in reverse order, adding
where the way there copied. Both are slices and nothing else, so they run on any array library.

Axes, in this order: n samples, g groups, c channels of a group, K taps, P output positions of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from ..backends import Array, Backend, Workspace
from ..geometry import Geometry, Range, spans

Slices = tuple[slice, ...]
Box = tuple[Range, ...]

ALL = slice(None)


@dataclass(frozen=True)
class Block:
    """Ranges of samples, groups and channels of a group; `run` of the flattened positions, which is `box`."""

    samples: Range
    groups: Range
    channels: Range
    run: Range
    box: Box

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many samples, groups and channels: (n, g, c)."""
        (n0, n1), (g0, g1), (c0, c1) = self.samples, self.groups, self.channels
        return n1 - n0, g1 - g0, c1 - c0

    @property
    def length(self) -> int:
        return self.run[1] - self.run[0]


class Tap(NamedTuple):
    """One combination of kernel taps: the outputs it serves and the inputs they read, None where all is padding."""

    taps: tuple[int, ...]
    outputs: Slices
    inputs: Slices | None
    whole: bool


class Steps(NamedTuple):
    """The copies that make a box's columns.

    `first` copies from the input; `second` holds, for each tap of the first dimension, the rows that it reads from
    what `first` made, whose taps and sizes are `taps` and `sizes`. Without a second step they are the columns'.
    """

    first: tuple[Tap, ...]
    taps: tuple[int, ...]
    sizes: tuple[int, ...]
    second: tuple[slice, ...]


@lru_cache(maxsize=8192)
def _steps(geometry: Geometry, box: Box) -> Steps:
    taps, sizes = geometry.kernel, tuple(end - start for start, end in box)
    by_dim = [geometry.spans(dim, outputs) for dim, outputs in enumerate(box)]
    second: tuple[slice, ...] = ()
    if geometry.kernel[0] > 1 and geometry.taps > geometry.kernel[0]:
        reach = geometry.reach(0, box[0])
        by_dim[0] = spans(geometry.size[0], 1, 1, 1, geometry.before[0], reach)
        rows = reach[1] - reach[0]
        along = spans(rows, geometry.kernel[0], geometry.stride[0], geometry.dilation[0], 0, (0, sizes[0]))
        second = tuple(span.inputs for span in along)
        taps, sizes = (1, *taps[1:]), (rows, *sizes[1:])
    first = []
    for chosen in product(*(range(n) for n in taps)):
        parts = [by_dim[dim][tap] for dim, tap in enumerate(chosen)]
        empty = any(part.outputs.start == part.outputs.stop for part in parts)
        inputs = None if empty else tuple(part.inputs for part in parts)
        first.append(Tap(chosen, tuple(part.outputs for part in parts), inputs, all(part.whole for part in parts)))
    return Steps(tuple(first), taps, sizes, second)


def gather(geometry: Geometry, backend: Backend, x: Array, block: Block, workspace: Workspace) -> Array:
    """Copy the windows of a block into columns.

    `x` is (N, G, C, *S); the result is (g, c * prod(K), n * prod(P)), in the workspace, or a view of `x` where a 1x1
    layer needs no copy.
    """
    xp = backend.xp
    n, g, c = block.counts
    cells = (ALL,) * geometry.dims
    if geometry.pointwise and n == 1:
        sample = x[(block.samples[0], slice(*block.groups), slice(*block.channels), *cells)]
        return xp.reshape(sample, (g, c, geometry.positions))[:, :, slice(*block.run)]
    source = x[(slice(*block.samples), slice(*block.groups), slice(*block.channels), *cells)]
    steps = _steps(geometry, block.box)
    rows = workspace("rows" if steps.second else "columns", (g, c, *steps.taps, n, *steps.sizes))
    forth = (1, 2, 0, *range(3, 3 + geometry.dims))
    for taps, outputs, inputs, whole in steps.first:
        if not whole:
            rows = backend.write(rows, (ALL, ALL, *taps, ALL, *cells), 0.0)
        if inputs is not None:
            part = xp.permute_dims(source[(ALL, ALL, ALL, *inputs)], forth)
            rows = backend.write(rows, (ALL, ALL, *taps, ALL, *outputs), part)
    columns = rows
    if steps.second:
        columns = workspace("columns", (g, c, *geometry.kernel, n, *_sizes(block.box)))
        for tap, reads in enumerate(steps.second):
            part = rows[(ALL, ALL, 0, *cells[1:], ALL, reads, *cells[1:])]
            columns = backend.write(columns, (ALL, ALL, tap, *cells[1:], ALL, *cells), part)
    return xp.reshape(columns, (g, c * geometry.taps, n * block.length))


def scatter(
    geometry: Geometry, backend: Backend, columns: Array, grad: Array, block: Block, workspace: Workspace
) -> Array:
    """Add columns on to the cells that `gather` reads them from; the adjoint of `gather`.

    `columns` is (g, c * prod(K), n * prod(P)); `grad` (n, g, c, *S) is returned.
    """
    n, g, c = block.counts
    cells = (ALL,) * geometry.dims
    columns = backend.xp.reshape(columns, (g, c, *geometry.kernel, n, *_sizes(block.box)))
    steps = _steps(geometry, block.box)
    rows = columns
    if steps.second:
        rows = backend.zeroed(workspace("rows", (g, c, *steps.taps, n, *steps.sizes)))
        for tap, reads in enumerate(steps.second):
            part = columns[(ALL, ALL, tap, *cells[1:], ALL, *cells)]
            rows = backend.add(rows, (ALL, ALL, 0, *cells[1:], ALL, reads, *cells[1:]), part)
    back = (2, 0, 1, *range(3, 3 + geometry.dims))
    for taps, outputs, inputs, _ in steps.first:
        if inputs is not None:
            part = backend.xp.permute_dims(rows[(ALL, ALL, *taps, ALL, *outputs)], back)
            grad = backend.add(grad, (ALL, ALL, ALL, *inputs), part)
    return grad


def _sizes(box: Box) -> tuple[int, ...]:
    return tuple(end - start for start, end in box)
