"""Winograd's minimal filtering of tiles: F(2, 3) along each dimension of kernel 3, for example F(2x2, 3x3) in 2D.

Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), section 4: two outputs of a kernel of
three, from four inputs, take four multiplications instead of six:

    out = A^T ((G w) * (B^T x))

    B^T = 1  0 -1  0     G =  1    0    0      A^T = 1  1  1  0
          0  1  1  0         1/2  1/2  1/2           0  1 -1  1
          0 -1  1  0         1/2 -1/2  1/2
          0 -1  0  1          0    0    1

along one dimension after the other. Summed over channels, `*` is a matrix product. The input gradient is the output of
the mirrored convolution. The weight gradient is the adjoint, G^T ((A dout) * (B^T x)), with products summed over tiles.

Tiles of four inputs overlap by half. So the input is split once into its even and its odd cells. B^T then adds even and
odd cells of a tile and of the next tile, which are long runs of memory for all sizes (see `winograd_tiles`). The runs
continue over the end of a row, and so compute some excess tiles. Their outputs are skipped, or are multiplied by zero.

Each output depends on the cells of one window. But the transforms add numbers before they are multiplied: infinities
may cancel there, and sums may overflow that no plain sum contains. So the algorithm does not vouch for results that are
not finite.

Axes, in this order: places in a tile, with one axis for each dimension of kernel 3, the first of which is the lead; g
groups; c channels or f filters of a group; tiles (T1, n, T2, ..., Td) with n samples, flattened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..backends import Array, Backend, Workspace
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.ranges import ALL, Range, pieces
from ..spec.sequences import Made, Product
from .algorithm import Algorithm, PlainProduct
from .budget import Budget, Work
from .summing import correlate, in_runs
from .winograd_magnitudes import by_plain_sums
from .winograd_tiles import Cuts, Tiles, count_work, count_workspace, cut_tiles, tiling
from .winograd_transforms import (
    Halves,
    at_lead,
    filters_at_places,
    input_row,
    output_row,
    outputs_of_places,
    split,
    spread,
    weights_of_places,
)


class Winograd(Algorithm):
    """Minimal filtering of tiles of two outputs."""

    name = "winograd"
    order = 10
    plain_sums = False

    def objection(self, geometry: Geometry, dtype: Dtype, backend: Backend) -> str | None:
        """Support kernels of 3 in real floating point.

        Integers are excluded because tiles halve them, and complex numbers because the error bound is for real numbers.
        """
        if dtype.kind != "real floating":
            return "real floating point"
        ones = (1,) * geometry.dims
        if 3 in geometry.kernel and {*geometry.kernel} <= {1, 3} and geometry.stride == geometry.dilation == ones:
            return None
        return "a kernel of 3 along every dimension (or 1, but not along all), stride 1 and dilation 1"

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of a product."""
        if kind == Kind.INPUT_GRAD:
            return self.mirrored_work(geometry, budget, backend)
        return count_work(kind, geometry, *self.plan(kind, geometry, budget))

    def cut(self, kind: str, geometry: Geometry, budget: Budget, elements: int) -> Cuts:
        """Cut a product so that a block's arrays hold at most `elements` elements at one place of the lead."""
        return cut_tiles(geometry, budget, elements)

    def workspace_elements(self, kind: str, geometry: Geometry, plan: Cuts) -> int:
        """Count the elements of workspace that a plan takes."""
        return count_workspace(kind, geometry, plan)

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array | None:
        xp, grid = backend.xp, tiling(geometry)
        cells = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
        filters = filters_at_places(geometry, backend, budget.least_blocks, w)
        bias = None if b is None else xp.reshape(b, (geometry.groups, geometry.group_out, *(1,) * geometry.dims))
        not_finite: list[Tiles] = []
        # Blocks nearly fill the cache, so products reuse the memory of the halves, which are not needed after `spread`.
        reused = "strips" if len(grid.dims) > 1 else "products"

        def compute(block: Tiles, target: Array, workspace: Workspace) -> Array:
            sizes, ahead, outputs = block.shape
            halves = split(grid.halves, backend, cells, grid.reads(block), workspace)
            along_lead = Halves(*spread(backend, input_row, halves, ahead, workspace), ahead[0])
            shape = (grid.inner, block.tiles.counts[1], geometry.group_out, math.prod(sizes))
            sums = workspace("sums", (2, *shape))
            # Of the lead, place 0 adds to the first output, 3 to the second, 1 to both, 2 to both with opposite signs.
            for lead in (0, 3, 1, 2):
                inputs = at_lead(backend, input_row, along_lead, lead, shape[-1], workspace)
                matrices = filters[lead, :, block.writes[1], :, :]
                if lead in (0, 3):
                    sums = backend.write_product(sums, (lead // 3, ...), matrices, inputs)
                    continue
                products = backend.product(matrices, inputs, workspace(reused, shape))
                if lead == 1:
                    sums = backend.add(sums, (...,), products)
                else:
                    sums = backend.add(sums, (0, ...), products)
                    sums = backend.elementwise("subtract", sums, (1, ...), sums[1, ...], products)
            sums = outputs_of_places(backend, sums, len(grid.dims), workspace)
            for output in outputs:
                part = xp.reshape(sums[(*output.place, ...)], (*shape[1:3], *sizes))
                part = xp.permute_dims(part, (3, 0, 1, 2, *range(4, part.ndim)))
                target = backend.write(target, output.cells, part[output.tiles])
            if not backend.all_finite(target):
                not_finite.append(block)
            return target if bias is None else backend.add(target, (...,), bias[block.writes[1], ...])

        plan: Cuts = self.plan(Kind.FORWARD, geometry, budget)[0]
        blocks = Made(grid.blocks(plan.samples, plan.groups, plan.tiles), lambda block: (block.writes, block))
        shape = (geometry.batch, geometry.groups, geometry.group_out, *geometry.out)
        out = backend.empty(shape, like=x, last=2 * geometry.channels_last)
        with backend.quiet():
            out = backend.fill(out, blocks, compute, budget.least_blocks)
        return None if not_finite else xp.reshape(out, geometry.out_shape)

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array | None:
        xp, grid = backend.xp, tiling(geometry)
        cells = xp.reshape(x, (geometry.batch, geometry.groups, geometry.group_in, *geometry.size))
        values = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, *geometry.out))

        def compute(blocks: Sequence[Tiles], target: Array, workspace: Workspace) -> Array:
            def of_dout(name: str, /, shape: tuple[int, ...], dtype: object = None) -> Array:
                return workspace(f"{name} of dout", shape, dtype)

            for number, block in enumerate(blocks):
                sizes, ahead, _ = block.shape
                length = math.prod(sizes)
                halves = split(grid.halves, backend, cells, grid.reads(block), workspace)
                of_input = Halves(*spread(backend, input_row, halves, ahead, workspace), ahead[0])
                # Excess tiles add nothing: only cells of the block are read from dout, and the others are zeros.
                part = values[(..., *(slice(part.stop) for part in block.writes[3:]))]
                halves_of_dout, reads = grid.reads_of_dout(block)
                grads = split(halves_of_dout, backend, part, reads, of_dout)
                of_output = Halves(*spread(backend, output_row, grads, (0,) * len(ahead), of_dout), 0)
                for lead in range(4):
                    inputs = at_lead(backend, input_row, of_input, lead, length, workspace)
                    outputs = at_lead(backend, output_row, of_output, lead, length, of_dout)
                    products = workspace("products", (*outputs.shape[:3], geometry.group_in))
                    products = correlate(backend, outputs, inputs, products)
                    write_or_add = backend.add if number else backend.write
                    target = write_or_add(target, (lead, ...), products)
            return target

        plan: Cuts = self.plan(Kind.WEIGHT_GRAD, geometry, budget)[0]
        parts = pieces(len(plan.samples), -(-len(plan.samples) // plan.sums))

        def share(chosen: tuple[int, Range]) -> tuple[tuple[Any, ...], Sequence[Tiles]]:
            i, groups = chosen
            blocks = grid.blocks(plan.samples[slice(*parts[i])], (groups,), plan.tiles)
            return (i, ALL, ALL, slice(*groups), ALL, ALL), blocks

        shares = Made(Product(range(len(parts)), plan.groups), share)
        shape = (len(parts), 4, grid.inner, geometry.groups, geometry.group_out, geometry.group_in)
        with backend.quiet():
            places = backend.fill(backend.empty(shape, like=x), shares, in_runs(backend, compute), budget.least_blocks)
            grad = weights_of_places(geometry, backend, budget.least_blocks, xp.sum(places, axis=0))
            return grad if backend.all_finite(grad) else None

    def error_terms(self, kind: str, geometry: Geometry, products: int = 1) -> int:
        """Count the roundings of the error bound of an element.

        Along each dimension of kernel 3, a term is rounded once by B^T and twice by A^T, or as often by their adjoints.
        Along all these dimensions at once, G is a sum of as many terms as there are taps, and rounds a term at each
        addition. Each product is rounded once, and each addition over channels or over tiles rounds once.
        """
        dims = geometry.kernel.count(3)
        taps = int(3**dims)
        if kind == Kind.WEIGHT_GRAD:
            return geometry.batch * math.prod(tiling(geometry).counts) + 2 * dims + taps - 1
        channels = geometry.group_in if kind == Kind.FORWARD else geometry.group_out
        return channels + 3 * dims + taps - 1

    def magnitudes(
        self, kind: Kind, geometry: Geometry, backend: Backend, product: PlainProduct, a: Array, b: Array
    ) -> Array:
        """Bound |A^T| ((|G| |w|) * (|B^T| |x|)), or its adjoint, by plain sums."""
        axes = [axis for axis, kernel in enumerate(geometry.kernel) if kernel == 3]
        return by_plain_sums(kind, geometry, backend, product, (a, b), axes)
