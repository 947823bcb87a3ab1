"""The sums of a weight gradient, over samples and positions, with a bound of their error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.ranges import ALL
from .blocks import Block
from .certified import BoundedSums, Place
from .cutting import cut
from .limbs import carry
from .operands import Operand
from .powers import over_cells
from .slicing import UNCUT, slicing


@dataclass(frozen=True, eq=False)
class CorrelationSums(BoundedSums):
    """The sums of a weight gradient, or of some of its filters.

    Attributes
    ----------
    operands : tuple of Operand
        All of `dout` and of `x`.
    first_filter : int
        The filter that the first of these sums belongs to.
    errors : array, shape (F, C / G)
        How far a sum can be from the exact one.
    """

    operands: tuple[Operand, Operand]
    first_filter: int
    errors: Array

    sums_per_undecided = 64

    @property
    def terms(self) -> int:
        return self.geometry.batch * self.geometry.positions

    def error_bound(self, block: Block, workspace: Workspace) -> Array:
        return over_cells(self.backend, self.errors[block[:2]], len(block) - 2)

    @cached_property
    def factors(self) -> tuple[Array, Array]:
        """What the channels of both operands are multiplied by to be quantised."""
        first, second = (self.powers.of(UNCUT.bits - 1 - one.exponents[0, :]) for one in self.operands)
        return first, second

    def exact_sums(self, places: list[Place]) -> tuple[list[Array], int]:
        backend, xp, geometry = self.backend, self.backend.xp, self.geometry
        plan, sums = slicing("float32", geometry.positions), []
        for output, input_, *taps in places:
            filter_ = self.first_filter + output
            channel = filter_ // geometry.group_out * geometry.group_in + input_
            spans = [geometry.spans(dim, (0, geometry.out[dim]))[tap] for dim, tap in enumerate(taps)]
            grads = self.quantised(0, filter_, tuple(span.outputs for span in spans))
            cells = self.quantised(1, channel, tuple(span.inputs for span in spans))
            limbs = self.sum_slices(cut(backend, grads, plan), cut(backend, cells, plan))
            limbs = carry(backend, [*limbs, xp.zeros_like(limbs[0])], plan.width)
            sums.append([xp.sum(limb, axis=0) for limb in limbs])
        limbs = [xp.stack(each) for each in zip(*sums, strict=True)]
        return carry(backend, limbs, plan.width), plan.width

    def quantised(self, place: int, channel: int, cells: Block) -> Array:
        """Return cells of a channel of the first or the second operand, scaled and rounded to integers, (N, cells)."""
        backend, operand = self.backend, self.operands[place]
        part = operand.array[(ALL, channel, *cells)]
        part = backend.xp.reshape(part, (part.shape[0], math.prod(part.shape[1:])))
        return backend.xp.round(operand.doubles(backend, part) * self.factors[place][channel])


def bound_magnitudes(backend: Backend, geometry: Geometry, grads: Array, cells: Array) -> Array:
    """Bound the sums of the magnitudes of a weight gradient's products, (F, C / G), by Cauchy and Schwarz."""
    xp, norms = backend.xp, []
    for array, channels in ((grads, geometry.group_out), (cells, geometry.group_in)):
        flat = xp.reshape(array, (geometry.batch, geometry.groups, channels, math.prod(array.shape[2:])))
        norms.append(xp.permute_dims(xp.sqrt(xp.vecdot(flat, flat)), (1, 2, 0)))
    bounds = backend.product(norms[0], xp.permute_dims(norms[1], (0, 2, 1)))
    return xp.reshape(bounds, (geometry.out_channels, geometry.group_in))
