"""Round sums from one float64 product each wherever the bound of its error proves the result; sum the others exactly.

Quantised operands are multiplied whole. What comes of it is off from the exact sum by gamma_n times the sum of the
products' magnitudes at most, in whatever order it is added up: Higham, "Accuracy and Stability of Numerical
Algorithms", 2nd ed. (2002), section 3.1. Where both ends of that range are rounded to one number, so is the exact sum:
Ziv's test, in `limbs.round_range`. It leaves one or a few of a thousand outputs undecided. Their operands are gathered
and multiplied as slices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from ..backends import Array, Backend, Workspace
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.ranges import pieces
from ..spec.sequences import Made
from .bias import addend
from .blocks import OPERATIONS, Block, block_elements, blocks, fill, least_blocks
from .limbs import round_limbs, round_range
from .powers import PowersOfTwo
from .rounding import Target

MOST_TERMS = 5000
"""The terms of a sum up to which recomputing undecided ones takes less time than multiplying everything as slices."""
ALWAYS_UNDECIDED = 8
"""The sums that may be left undecided, however few there are."""
Place = tuple[int, ...]
"""The index of an element of a result."""


@dataclass(frozen=True, eq=False)
class BoundedSums:
    """Float64 sums with a bound of their error, of operands from which any of them can be computed exactly.

    Attributes
    ----------
    powers : PowersOfTwo
    geometry : Geometry
        The convolution whose sums these are.
    """

    powers: PowersOfTwo
    geometry: Geometry

    sums_per_undecided: ClassVar[int] = 256
    """One sum in so many may be left undecided, or all are multiplied as slices."""

    @property
    def backend(self) -> Backend:
        return self.powers.backend

    @property
    def terms(self) -> int:
        """How many products a sum has."""
        raise NotImplementedError

    def exact_sums(self, places: list[Place]) -> tuple[list[Array], int]:
        """Return the exact sums at these places as carried limbs (len(places),), and their width."""
        raise NotImplementedError

    def error_bound(self, block: Block, workspace: Workspace) -> Array:
        """Return how far the sums of a block can be from the exact ones."""
        raise NotImplementedError

    def round_into(self, target: Target, sums: Array) -> Array | None:
        """Round the sums and add the bias into the array of `target`; None where too many are undecided.

        All results must be zero or normal numbers, before and after the bias is added.
        """
        backend, xp, out = self.backend, self.backend.xp, target.array
        factors, added = self.powers.scales_of(target.exponents, out), addend(backend, target.bias, out)
        allowed = max(ALWAYS_UNDECIDED, math.prod(out.shape) // self.sums_per_undecided)
        undecided: list[Place] = []

        def compute(block: Block, part: Array, workspace: Workspace) -> Array:
            if len(undecided) > allowed:
                return part
            error = self.error_bound(block, workspace)
            upper, same = round_range(backend, sums[block], error, part.dtype, workspace)
            part = backend.elementwise("multiply", part, (...,), upper, factors[(*block[:2], ...)])
            if not bool(xp.all(same)):
                undecided.extend(_places(block, xp.nonzero(xp.logical_not(same))))
            return backend.elementwise("add", part, (...,), part, added[:, block[1], ...])

        cut = Made(blocks(backend, tuple(out.shape)), lambda block: (block, block))
        out = fill(backend, out, cut, compute, least_blocks(backend, out.shape))
        if len(undecided) > allowed:
            return None
        return self.recompute(target._replace(array=out), undecided, xp.reshape(added, (-1,))) if undecided else out

    def recompute(self, target: Target, places: list[Place], added: Array) -> Array:
        """Round exact sums into the array of `target` at these places, with `added` for each of the second axis."""
        backend, xp, exponents = self.backend, self.backend.xp, target.exponents
        rows, columns = [at[0] * exponents.shape[1] + at[1] for at in places], [at[1] for at in places]
        scales = xp.take(xp.reshape(exponents, (-1,)), self.indices(rows), axis=0)
        addends = xp.take(added, self.indices(columns), axis=0)

        def compute(block: Block, _: Array, workspace: Workspace) -> Array:
            limbs, width = self.exact_sums(places[block[0]])
            limbs = [xp.reshape(limb, (-1, 1)) for limb in limbs]
            values = round_limbs(self.powers, limbs, width, xp.reshape(scales[block], (-1, 1)), "float32")
            return values[:, 0] + addends[block]

        at_once = max(1, block_elements(backend) // self.terms)
        cut = Made(pieces(len(places), at_once), lambda piece: ((slice(*piece),), (slice(*piece),)))
        least = backend.least_blocks(OPERATIONS * len(places) * self.terms, 2)
        out = target.array
        values = fill(backend, backend.empty((len(places),), out), cut, compute, least)
        for i, at in enumerate(places):
            out = backend.write(out, at, values[i])
        return out

    def indices(self, numbers: list[int]) -> Array:
        """Return integers as an array on the device of the sums."""
        backend = self.backend
        return backend.asarray(numbers, backend.dtype("int64"), backend.device_of(self.powers.numbers))

    def sum_slices(self, first: list[Array], second: list[Array]) -> list[Array]:
        """Sum the products of two operands' slices along the last axis, by weight."""
        sums = [0.0] * (len(first) + len(second) - 1)
        for (i, one), (j, other) in product(enumerate(first), enumerate(second)):
            sums[i + j] = sums[i + j] + self.backend.xp.vecdot(one, other)
        return sums


def is_at_hand(geometry: Geometry, backend: Backend, like: Array) -> bool:
    """Return whether there is something to sum, and single elements can be read and written."""
    is_empty = geometry.operations * math.prod(geometry.size) == 0
    return not is_empty and geometry.extended is geometry and backend.at_hand(like)


def is_worthwhile(kind: str, geometry: Geometry, backend: Backend) -> bool:
    """Return whether recomputing undecided sums one by one takes less time than multiplying everything as slices."""
    # Of longer sums too many are undecided, and each takes too long.
    return geometry.terms(kind) <= (block_elements(backend) if kind == Kind.WEIGHT_GRAD else MOST_TERMS)


def _places(block: Block, indices: tuple[Array, ...]) -> list[Place]:
    """Return the places in the whole result of elements of a block, of which `indices` has an array for each axis."""
    columns = (
        [(side.start or 0) + int(at[i]) for i in range(at.shape[0])] for side, at in zip(block, indices, strict=True)
    )
    return list(zip(*columns, strict=True))
