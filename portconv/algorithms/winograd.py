"""Winograd's minimal filtering of tiles: F(2, 3) along each dimension of kernel 3, and so F(2x2, 3x3) in two of them.

Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), section 4: two outputs of a kernel of
three, from four inputs, take four multiplications for six,

    out = A^T ((G w) * (B^T x))

    B^T = 1  0 -1  0     G =  1    0    0      A^T = 1  1  1  0
          0  1  1  0         1/2  1/2  1/2           0  1 -1  1
          0 -1  1  0         1/2 -1/2  1/2
          0 -1  0  1          0    0    1

along each dimension in turn; summed over channels, `*` is a matrix product. The input gradient is the same of the
mirrored convolution. The weight gradient is the adjoint, G^T ((A dout) * (B^T x)), with the products summed over tiles.

Tiles of four inputs overlap by half, so the input is split into its even and odd cells once, and B^T adds these to one
another and to themselves one tile ahead: long runs of memory, whatever the sizes are (see `tiles`). Runs read on over
the end of a row, into tiles too many; what comes of those is left out, or meets a zero, in the end.

Each output is made of the cells of its own window. But transforms add up what a plain sum would multiply first: there
infinities may cancel, and sums may overflow that a plain one does not have. Where a result is not finite, `gemm`
computes the whole again.

Axes, in this order: places in a tile, one axis for each dimension of kernel 3, the first of which is the lead; g
groups; c channels or f filters of a group; tiles (T1, n, T2, ..., Td) with n samples, flattened.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import product

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Index, Range, cut, largest, pieces
from . import gemm
from .budget import Limits, Work, copied, fitted, narrow
from .columns import Block, gather
from .mirrored import beside_filters, mirrored, of_mirrored
from .winograd_tiles import Cuts, Tiles, cuts, tiling


def tile_terms(geometry: Geometry) -> int:
    """How often a term of an output is rounded on its way through Winograd's tiles, at most."""
    dims = geometry.kernel.count(3)
    return geometry.group_in + 3 * dims + int(3**dims) - 1


STEPS, STEPS_OF_A_WEIGHT = 16, 20
"""How many elementwise steps the work beyond that of `gemm` amounts to, for each cell of input and output, and for each
weight; fitted to layers of 16 to 512 channels, with NumPy on two cores."""

G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
"""What takes three taps to the four places of a tile."""
FILTERS = 1 << 14
"""Filters of a channel to a block: their places stay in cache."""

Row = Callable[[Backend, Array, Index, Array, Array, int, int], Array]


def objection(geometry: Geometry) -> str | None:
    """Say what is served where `geometry` is not; None where it is."""
    ones = (1,) * geometry.dims
    if 3 in geometry.kernel and {*geometry.kernel} <= {1, 3} and geometry.stride == geometry.dilation == ones:
        return None
    return "a kernel of 3 along every dimension (or 1, but not along all), stride 1 and dilation 1"


@lru_cache(maxsize=1024)
def planned(geometry: Geometry, purpose: str, bounds: Limits) -> tuple[Cuts, int]:
    """Cut a product within bounds; return the plan, and the elements of workspace that it needs."""
    return fitted(
        lambda elements: cuts(geometry, elements, bounds.enough, bounds.least),
        lambda plan: _need(geometry, purpose, plan),
        bounds,
    )


def work(geometry: Geometry, purpose: str, bounds: Limits) -> Work:
    """Say what a product takes."""
    if purpose == "input_grad":
        return of_mirrored(work, geometry, bounds)
    plan, need = planned(geometry, purpose, bounds)
    own = tiling(geometry)
    cells = math.prod(geometry.x_shape) + math.prod(geometry.out_shape)
    # Halves are copied from and to rows of every other cell.
    elements = STEPS * cells + copied(cells, geometry.out[-1] // 2) + STEPS_OF_A_WEIGHT * geometry.weights
    tiles, groups = math.prod(own.counts), plan.groups[0][1]
    samples = max((end - start for start, end in plan.samples), default=0)
    count = len(plan.samples) * len(plan.groups) * -(-tiles // min(plan.tiles, tiles))
    if purpose == "weight_grad":  # where each block's products of all places are added up
        elements += 2 * count / len(plan.groups) * 4 * own.inner * geometry.weights / geometry.taps
    calls = count * (40 * own.inner // 4 + 40)
    shape = {"samples": samples, "groups": groups, "tiles": min(plan.tiles, tiles)}
    return Work(narrow(2 * own.multiplications, geometry.group_out), elements, 0, calls, need, shape)


def _need(geometry: Geometry, purpose: str, plan: Cuts) -> int:
    """Elements of workspace: of a block, and of what all blocks share."""
    own = tiling(geometry)
    groups = max(end - start for start, end in plan.groups)
    samples = max((end - start for start, end in plan.samples), default=0)
    box = largest(own.counts, plan.tiles)
    sizes = [end + (dim in own.excess) for dim, (_, end) in enumerate(box)]
    tiles = samples * math.prod(sizes)
    reached = samples * math.prod(end + (dim in own.dims) for dim, (_, end) in enumerate(box))
    dims = len(own.dims)
    # Halves along all dimensions, then places along one more dimension at a time.
    spread = [2 << (2 * axis + dims - 1 - axis) for axis in range(1, dims)]
    inputs, outputs = groups * geometry.group_in, groups * geometry.group_out
    weights: int = 4 * own.inner * geometry.weights // geometry.taps
    if purpose == "forward":
        found = own.inner * outputs * tiles
        strips = max((1 << dims) * inputs * reached, found)
        folded = max(own.inner * inputs * tiles, found)
        finite = (1 << dims) * outputs * tiles // 4 + 1
        return strips + sum(spread) * inputs * reached + found + folded + 2 * found + weights + finite
    of_both = ((1 << dims) + sum(spread)) * reached + own.inner * tiles
    parts = plan.sums * weights
    own_products = own.inner * geometry.group_in * outputs
    # Partial sums, and their total.
    return of_both * (inputs + outputs) + own_products + parts + weights


def forward(geometry: Geometry, backend: Backend, bounds: Limits, x: Array, w: Array, b: Array | None) -> Array:
    xp = backend.xp
    if 0 in geometry.out_shape:
        return backend.zeros(geometry.out_shape, like=x)
    cells = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
    filters = _filters(geometry, backend, bounds, w)
    bias = None if b is None else xp.reshape(b, (geometry.groups, geometry.group_out, *(1,) * geometry.dims))
    own = tiling(geometry)
    spoilt: list[Tiles] = []
    # Blocks are as large as the cache lets them be: what is dead lends its memory, by its name, to what comes after.
    spare = "strips" if len(own.dims) > 1 else "products"

    def compute(block: Tiles, target: Array, workspace: Workspace) -> Array:
        sizes, ahead, outputs = block.shape
        halves = _halves(own.halves, backend, cells, own.reads(block), workspace)
        halves = _spread(backend, _input, halves, ahead, workspace)
        shape = (own.inner, block.tiles.counts[1], geometry.group_out, math.prod(sizes))
        sums = workspace("sums", (2, *shape))
        # The lead's products go to the first output, the second, both, and both with opposite signs: columns of A^T.
        for lead in (0, 3, 1, 2):
            inputs = _led(backend, _input, halves, lead, shape[-1], ahead[0], workspace)
            chosen = filters[lead, :, block.writes[1], :, :]
            if lead in (0, 3):
                sums = backend.write_product(sums, (lead // 3, ...), chosen, inputs)
                continue
            found = backend.product(chosen, inputs, workspace(spare, shape))
            if lead == 1:
                sums = backend.add(sums, (...,), found)
            else:
                sums = backend.add(sums, (0, ...), found)
                sums = backend.elementwise("subtract", sums, (1, ...), sums[1, ...], found)
        sums = _folded(backend, sums, len(own.dims), workspace)
        for output in outputs:
            part = xp.reshape(sums[(*output.place, ...)], (*shape[1:3], *sizes))
            part = xp.permute_dims(part, (3, 0, 1, 2, *range(4, part.ndim)))
            target = backend.write(target, output.cells, part[output.tiles])
        if not backend.all_finite(target):
            spoilt.append(block)
        return target if bias is None else backend.add(target, (...,), bias[block.writes[1], ...])

    found, _ = planned(geometry, "forward", bounds)
    blocks = [
        (block.writes, block) for groups in found.groups for block in own.blocks(found.samples, groups, found.tiles)
    ]
    shape = (geometry.batch, geometry.groups, geometry.group_out, *geometry.out)
    out = backend.empty(shape, like=x, last=2 * geometry.channels_last)
    with backend.quiet():
        out = backend.fill(out, blocks, compute, bounds.least)
    return gemm.forward(geometry, backend, bounds, x, w, b) if spoilt else xp.reshape(out, geometry.out_shape)


def input_grad(geometry: Geometry, backend: Backend, bounds: Limits, dout: Array, w: Array) -> Array:
    if not backend.all_finite(w):
        return gemm.input_grad(geometry, backend, bounds, dout, w)
    turned = mirrored(geometry, backend, w)
    return forward(geometry.mirrored, backend, beside_filters(geometry, bounds), dout, turned, None)


def weight_grad(geometry: Geometry, backend: Backend, bounds: Limits, dout: Array, x: Array) -> Array:
    xp = backend.xp
    if geometry.batch == 0:
        return backend.zeros(geometry.w_shape, like=x)
    cells = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
    values = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))
    own = tiling(geometry)

    def compute(blocks: tuple[Tiles, ...], target: Array, workspace: Workspace) -> Array:
        def of_dout(purpose: str, shape: tuple[int, ...], dtype: object = None) -> Array:
            return workspace(f"{purpose} of dout", shape, dtype)

        for block in blocks:
            sizes, ahead, _ = block.shape
            length = math.prod(sizes)
            halves = _halves(own.halves, backend, cells, own.reads(block), workspace)
            halves = _spread(backend, _input, halves, ahead, workspace)
            # The tiles too many add nothing: they are zeros of dout, of which no more than the block's own is read.
            seen = values[(..., *(slice(part.stop) for part in block.writes[3:]))]
            halves_of_dout, reads = own.reads_of_dout(block)
            grads = _halves(halves_of_dout, backend, seen, reads, of_dout)
            grads = _spread(backend, _output, grads, (0,) * len(ahead), of_dout)
            for lead in range(4):
                inputs = _led(backend, _input, halves, lead, length, ahead[0], workspace)
                outputs = _led(backend, _output, grads, lead, length, 0, of_dout)
                room = workspace("products", (*outputs.shape[:3], geometry.group_in))
                found = backend.product(outputs, xp.permute_dims(inputs, (0, 1, 3, 2)), room)
                put = backend.write if block is blocks[0] else backend.add
                target = put(target, (lead, ...), found)
        return target

    found, _ = planned(geometry, "weight_grad", bounds)
    parts = pieces(len(found.samples), -(-len(found.samples) // found.sums))
    shares = []
    for (i, part), groups in product(enumerate(parts), found.groups):
        blocks = tuple(own.blocks(found.samples[slice(*part)], groups, found.tiles))
        shares.append(((i, ALL, ALL, slice(*groups), ALL, ALL), blocks))
    shape = (len(parts), 4, own.inner, geometry.groups, geometry.group_out, geometry.group_in)
    with backend.quiet():
        places = backend.fill(backend.empty(shape, like=x), shares, compute, bounds.least)
        grad = _weights(geometry, backend, bounds, xp.sum(places, axis=0))
        finite = backend.all_finite(grad)
    return grad if finite else gemm.weight_grad(geometry, backend, bounds, dout, x)


def _halves(halves: Geometry, backend: Backend, cells: Array, block: Block, workspace: Workspace) -> Array:
    """Split cells into the even and the odd along each dimension of kernel 3: (2, ..., 2, g, c, tiles)."""
    strips = backend.xp.permute_dims(gather(halves, backend, cells, block, workspace), (0, 3, 1, 2, 4))
    return backend.xp.reshape(strips, (*(n for n in halves.kernel if n == 2), *strips.shape[2:]))


def _spread(backend: Backend, row: Row, halves: Array, aheads: tuple[int, ...], workspace: Workspace) -> Array:
    """Transform halves to the places of tiles along all dimensions but the lead: (2, 4 * ... * 4, g, c, tiles)."""
    for axis, ahead in enumerate(aheads[1:], start=1):
        before = (ALL,) * axis
        even, odd = halves[(*before, 0, ...)], halves[(*before, 1, ...)]
        halves = workspace(f"spread {axis}", (*halves.shape[:axis], 4, *halves.shape[axis + 1 :]))
        for place in range(4):
            halves = row(backend, halves, (*before, place), even, odd, ahead, place)
        if ahead:  # the last tiles are the ones too many: no tile lies ahead of them
            halves = backend.write(halves, (..., slice(-ahead, None)), 0.0)
    return backend.xp.reshape(halves, (2, -1, *halves.shape[-3:]))


def _led(backend: Backend, row: Row, halves: Array, lead: int, length: int, ahead: int, workspace: Workspace) -> Array:
    """Transform halves to one place of the lead: (4 * ... * 4, g, c, tiles), with `length` tiles."""
    led = workspace("led", (*halves.shape[1:-1], length))
    led = row(backend, led, (), halves[0, ...], halves[1, ...], ahead, lead)
    reached = halves.shape[-1] - ahead
    return led if reached == length else backend.write(led, (..., slice(reached, None)), 0.0)


def _input(backend: Backend, target: Array, index: Index, even: Array, odd: Array, ahead: int, place: int) -> Array:
    """Set `target[index]` to one row of B^T times tiles: their even and odd cells, and those one tile ahead."""
    count = even.shape[-1] - ahead
    here, there, into = (..., slice(count)), (..., slice(ahead, None)), (*index, ..., slice(count))
    if place == 0:
        return backend.elementwise("subtract", target, into, even[here], even[there])
    if place == 1:
        return backend.elementwise("add", target, into, odd[here], even[there])
    if place == 2:
        return backend.elementwise("subtract", target, into, even[there], odd[here])
    return backend.elementwise("subtract", target, into, odd[there], odd[here])


def _output(backend: Backend, target: Array, index: Index, even: Array, odd: Array, ahead: int, place: int) -> Array:
    """Set `target[index]` to one row of A times tiles: their even and odd outputs."""
    into = (*index, ...)
    if place in (0, 3):
        return backend.write(target, into, odd if place else even)
    return backend.elementwise("add" if place == 1 else "subtract", target, into, even, odd)


def _folded(backend: Backend, sums: Array, dims: int, workspace: Workspace) -> Array:
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


def _filters(geometry: Geometry, backend: Backend, bounds: Limits, w: Array) -> Array:
    """Multiply the filters by G: (4, 4 * ... * 4, G, f, c)."""
    xp, own = backend.xp, tiling(geometry)
    columns = xp.permute_dims(xp.reshape(w, (-1, geometry.taps)), (1, 0))
    matrix = _matrix(geometry, backend, w)

    def compute(part: Range, target: Array, workspace: Workspace) -> Array:
        return backend.product(matrix, columns[:, slice(*part)], target)

    parts = [((ALL, slice(*part)), part) for part in cut(columns.shape[1], FILTERS, bounds.least)]
    found = backend.empty((matrix.shape[0], columns.shape[1]), like=w)
    # As blocks of the whole: BLAS's own threads, once woken, would go on spinning beside the blocks that come next.
    found = backend.fill(found, parts, compute, bounds.least)
    return xp.reshape(found, (4, own.inner, geometry.groups, geometry.group_out, geometry.group_in))


def _weights(geometry: Geometry, backend: Backend, bounds: Limits, places: Array) -> Array:
    """Multiply by G^T, the adjoint of `_filters`."""
    xp, matrix = backend.xp, _matrix(geometry, backend, places)
    columns = xp.permute_dims(xp.reshape(places, (matrix.shape[0], -1)), (1, 0))

    def compute(part: Range, target: Array, workspace: Workspace) -> Array:
        return backend.product(columns[slice(*part), :], matrix, target)

    parts = [((slice(*part), ALL), part) for part in cut(columns.shape[0], FILTERS, bounds.least)]
    found = backend.empty((columns.shape[0], matrix.shape[1]), like=places)
    found = backend.fill(found, parts, compute, bounds.least)
    return xp.reshape(found, geometry.w_shape)


def _matrix(geometry: Geometry, backend: Backend, like: Array) -> Array:
    """G along all dimensions of kernel 3 at once: (4 * ... * 4, taps)."""
    rows = [[1.0]]
    for kernel in geometry.kernel:
        if kernel == 3:
            rows = [[a * b for a in row for b in of_tap] for row in rows for of_tap in G]
    return backend.asarray(rows, dtype=like.dtype, device=backend.device_of(like))
