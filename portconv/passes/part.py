"""A part of a convolution: a convolution of its own, and where its arrays lie in those of the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ..spec.geometry import Geometry
from ..spec.operation import Kind, Role
from ..spec.ranges import ALL, Range

Slices = tuple[slice, ...]
EVERY: Slices = (ALL, ALL)


class Comb(NamedTuple):
    """The cells that taps of a large dilation read along a dimension, side by side: a run of them for each tap.

    The first run starts at the cell `first`, and each other `step` cells after the one before; each has `length` cells.
    Those of the array lie `spacing` apart; between them and beyond them are zeros.
    """

    first: int
    length: int
    runs: int
    step: int
    spacing: int = 1


class Part(NamedTuple):
    """A convolution of its own, and where its arrays lie in (N, C, *S), (F, C/G, *K) and (N, F, *P).

    `combs` says what it reads along each dimension, of the input or for an input gradient of the output, where that is
    more than one run of cells; () if there is no such dimension.
    """

    geometry: Geometry
    of_x: Slices
    of_w: Slices
    of_out: Slices
    combs: tuple[Comb | None, ...] = ()

    def at(self, role: Role) -> Slices:
        """Return where the part lies in the array of a role."""
        return {Role.X: self.of_x, Role.W: self.of_w, Role.OUT: self.of_out}[role]


def whole(geometry: Geometry) -> Part:
    """Return a convolution as one part."""
    return Part(geometry, EVERY, EVERY, EVERY)


def with_filters(part: Part, kind: Kind, some: Range) -> Part:
    """Return the part with only some groups; of a single group, with some filters or channels of the gradient."""
    geometry, (first, end) = part.geometry, some
    if geometry.groups > 1:
        ins, outs = geometry.group_in, geometry.group_out
        channels, filters = slice(first * ins, end * ins), slice(first * outs, end * outs)
        count = end - first
        groups = replace(geometry, groups=count, in_channels=count * ins, out_channels=count * outs)
        return Part(groups, (ALL, channels), (filters, ALL), (ALL, filters))
    chosen = slice(first, end)
    if kind == Kind.INPUT_GRAD:
        return Part(replace(geometry, in_channels=end - first), (ALL, chosen), (ALL, chosen), EVERY)
    return Part(replace(geometry, out_channels=end - first), EVERY, (chosen, ALL), (ALL, chosen))


def with_samples(part: Part, samples: Range) -> Part:
    """Return the part with only these samples, which are counted in the whole."""
    geometry = replace(part.geometry, batch=samples[1] - samples[0])
    of_x, of_out = (slice(*samples), *part.of_x[1:]), (slice(*samples), *part.of_out[1:])
    return part._replace(geometry=geometry, of_x=of_x, of_out=of_out)


def with_outputs(part: Part, dim: int, rows: Range) -> Part:
    """Return the part with only these outputs of a dimension, and the cells that they read."""
    geometry, (start, end) = part.geometry, rows
    first = start * geometry.stride[dim] - geometry.before[dim]
    last = (end - 1) * geometry.stride[dim] + geometry.extent[dim] - geometry.before[dim]
    if geometry.is_filled(dim):
        before = geometry.before[dim]
        return _with_rows(part, dim, ((first + before, last + before), rows), (0, 0))
    lo, hi = max(first, 0), min(last, geometry.size[dim])
    if lo >= hi:  # all of them read nothing but padding
        return _with_rows(part, dim, ((0, 0), rows), (last - first, 0))
    return _with_rows(part, dim, ((lo, hi), rows), (lo - first, last - hi))


def with_cells(part: Part, dim: int, cells: Range) -> Part:
    """Return the part with only these cells of a dimension, and the outputs that read them, or one that does not."""
    geometry, (start, end) = part.geometry, cells
    stride, before, extent = geometry.stride[dim], geometry.before[dim], geometry.extent[dim]
    first = max(0, -((extent - 1 - before - start) // stride))
    last = min(geometry.out[dim], (end - 1 + before) // stride + 1)
    if first >= last:  # the window lies just beyond the cells
        first = min(first, geometry.out[dim] - 1)
        ahead = extent if first * stride - before < start else start - end
        return _with_rows(part, dim, (cells, (first, first + 1)), (ahead, extent - ahead - (end - start)))
    ahead = before + start - first * stride
    after = (last - 1 - first) * stride + extent - ahead - (end - start)
    return _with_rows(part, dim, (cells, (first, last)), (ahead, after))


def with_combed_outputs(part: Part, dim: int, rows: Range) -> Part:
    """Return the part with only these outputs of a dimension, which read the cells of each tap side by side."""
    geometry, (start, end) = part.geometry, rows
    stride, taps = geometry.stride[dim], geometry.kernel[dim]
    run = (end - start - 1) * stride + 1
    comb = Comb(start * stride - geometry.before[dim], run, taps, geometry.dilation[dim])
    return _with_rows(part, dim, ((0, taps * run), rows), (0, 0), comb)


def with_combed_cells(part: Part, dim: int, cells: Range) -> Part:
    """Return the part with only these cells of a dimension, which get of each tap a run of outputs, side by side.

    Outputs lie a stride apart, with zeros between them. Their runs lie in the order of the outputs, which is the
    reverse of that of the taps; so tap k of dilation `run` brings each run back to the cells.
    """
    geometry, (start, end) = part.geometry, cells
    taps, dilation, run = geometry.kernel[dim], geometry.dilation[dim], end - start
    first = start + geometry.before[dim] - (taps - 1) * dilation
    comb = Comb(first, run, taps, dilation, geometry.stride[dim])
    return _with_rows(part, dim, (cells, (0, taps * run)), ((taps - 1) * run,) * 2, comb)


def _with_rows(
    part: Part, dim: int, ranges: tuple[Range, Range], padding: tuple[int, int], comb: Comb | None = None
) -> Part:
    """Return the part with only these cells and outputs of a dimension, and that padding; those before it are cut.

    With a comb, the dilation is the length of its runs, and the stride that of what is read.
    """
    whole, (cells, outputs) = part.geometry, ranges

    def changed(line: tuple[int, ...], entry: int) -> tuple[int, ...]:
        return (*line[:dim], entry, *line[dim + 1 :])

    geometry = replace(
        whole,
        size=changed(whole.size, cells[1] - cells[0]),
        stride=whole.stride if comb is None else changed(whole.stride, whole.stride[dim] // comb.spacing),
        dilation=whole.dilation if comb is None else changed(whole.dilation, comb.length),
        before=changed(whole.before, padding[0]),
        after=changed(whole.after, padding[1]),
        # Zeros stand for the cells of other parts where there is no padding.
        mode="zeros" if whole.extended is whole else whole.mode,
    )
    assert geometry.out[dim] == outputs[1] - outputs[0]
    rest = (ALL,) * (2 + dim - len(part.of_x))
    of_x, of_out = (*part.of_x, *rest, slice(*cells)), (*part.of_out, *rest, slice(*outputs))
    combs = part.combs
    if comb is not None:
        combs = (*combs, *(None,) * (dim - len(combs)), comb)
    return Part(geometry, of_x, part.of_w, of_out, combs)
