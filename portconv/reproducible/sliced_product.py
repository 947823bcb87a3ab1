"""A product whose operands are cut into slices.

The slices lie side by side as groups of one convolution, so that one call of an algorithm multiplies all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from ..algorithms.choice import Choice
from ..backends import Array, Backend, Workspace
from ..passes.padding import extend, fold
from ..passes.part import Part, with_samples
from ..spec.dtypes import PARTS_OF
from ..spec.geometry import Geometry
from ..spec.operation import Kind, Operation, Role
from ..spec.ranges import ALL, Index, pieces
from ..spec.sequences import Made
from .blocks import blocks, fill, least_blocks
from .cutting import SliceWriter, slot, sum_by_weight
from .operands import Operand, operand
from .powers import PowersOfTwo, over_cells, powers_of_two, split_exponents
from .slicing import (
    PART_PRODUCTS,
    PART_SIGNS,
    UNCUT,
    Slicing,
    in_slices,
    larger_operand,
    slice_elements,
    slicing,
)

SHORT_SUM = 1 << 8
"""The terms that one product adds up where operands are uncut: more make a larger error."""
ONE_STEP_BITS = 40
"""The most bits for which one step quantises: of the dtypes with so few, that power of two is a normal float64."""
Choose = Callable[[Geometry], Choice]
"""Returns the algorithm that multiplies the slices of a convolution."""


class SlicedProduct(NamedTuple):
    """A product of two operands, and how it is computed.

    Attributes
    ----------
    operation : Operation
    backend : Backend
    choose : callable
    powers : PowersOfTwo
    operands : tuple of Operand
    slicing : Slicing
        How operands are cut, or `UNCUT`.
    """

    operation: Operation
    backend: Backend
    choose: Choose
    powers: PowersOfTwo
    operands: tuple[Operand, Operand]
    slicing: Slicing

    @property
    def kind(self) -> Kind:
        return self.operation.kind

    @property
    def finite(self) -> bool:
        """Whether all elements of both operands are finite."""
        return self.operands[0].finite and self.operands[1].finite

    def uncut(self) -> SlicedProduct:
        """Return the same product of operands that are multiplied whole, in short sums."""
        choose = self.choose

        def choose_short(geometry: Geometry) -> Choice:
            return choose(geometry).with_short_sums(SHORT_SUM)

        return self._replace(slicing=UNCUT, choose=choose_short)

    def roundings(self, geometry: Geometry) -> int:
        """Count how many roundings a product of uncut operands goes through at most on its way into a result."""
        one = in_slices(geometry, 1)
        return self.choose(one).roundings(self.kind, one, self.backend)

    def exponents(self, geometry: Geometry) -> Array:
        """Return the exponents of the powers of two that sums count, for each element of a result's first two axes."""
        xp, groups, quantised = self.backend.xp, geometry.groups, 2 * (self.slicing.bits - 1)
        first, second = (one.exponents for one in self.operands)
        if self.kind == Kind.WEIGHT_GRAD:
            return outer_exponents(self.backend, geometry, first[0, :], second[0, :]) - quantised
        if self.kind == Kind.FORWARD:
            first, second = first[:, :: geometry.group_in], second[:, 0]
        else:
            first = first[:, :: geometry.group_out]
            second = xp.reshape(second, (groups, geometry.group_out, geometry.group_in))[:, 0, :]
        of_channels = xp.reshape(second, (1, groups, math.prod(second.shape) // groups))
        shape = (first.shape[0], groups * of_channels.shape[2])
        return xp.reshape(first[:, :, None] + of_channels, shape) - quantised

    def slot_axis(self, place: int) -> int:
        """Return the axis along which the slices of an operand lie: before those of filters, else after the samples."""
        return 0 if self.kind.operands[place] == Role.W else 1

    def cut_operand(self, place: int, part: Operand, workspace: Workspace) -> Array:
        """Quantise and cut a part of the first or the second operand.

        Returns
        -------
        array, shape (N, slots, channels, *cells) or (slots, F, C / G, *K)
        """
        backend, plan, axis = self.backend, self.slicing, self.slot_axis(place)
        up = plan.bits - 1 - part.exponents
        steps = (up,) if plan.bits <= ONE_STEP_BITS else split_exponents(up)
        factors = [over_cells(backend, self.powers.of(step), part.array.ndim - 2) for step in steps]
        shape = (*part.array.shape[:axis], plan.slots, *part.array.shape[axis:])

        def put(target: Array, block: Index, workspace: Workspace) -> Array:
            writer = SliceWriter(backend, plan, axis, workspace)
            of_block = [factor[(*block[:2], ...)] for factor in factors]
            parts = part.parts(backend, block)
            for number in range(plan.part_products):
                first, which = number * len(plan.pairs), PART_PRODUCTS[number][place]
                if which < len(parts):
                    target = writer.quantise(target, first, part.multipliable(backend, parts[which]), of_block)
                else:  # the imaginary part of real numbers
                    target = backend.write(target, slot(axis, slice(first, first + len(plan.pairs))), 0.0)
            return target

        stack = workspace(f"slices {place}", shape, backend.dtype("float64"))
        return fill_stack(backend, part.array, stack, axis, put)

    def convolve(self, geometry: Geometry, count: int, first: Array, second: Array, chunks: int = 1) -> Array:
        """Multiply `count` pairs of operands that lie side by side; fill in padding that is not of zeros.

        The samples of a weight gradient are cut into `chunks`, which become groups too: chunk i has every sample whose
        number is i modulo `chunks`.

        Returns
        -------
        array, shape (N, count, channels, *cells) or (chunks, count, F, C / G, *K)
        """
        backend, kind = self.backend, self.kind
        one = geometry if chunks == 1 else replace(geometry, batch=geometry.batch // chunks)
        wide = in_slices(one, count * chunks)
        operands = []
        for role, array in zip(kind.operands, (first, second), strict=True):
            array = backend.xp.reshape(array, wide.shape(role))
            operands.append(extend(wide, backend, array) if role == Role.X else array)
        if kind == Kind.FORWARD:
            operands.append(None)
        result = self.choose(wide.extended).compute(kind, wide.extended, backend, *operands)
        if kind.result == Role.X:
            result = fold(wide, backend, result)
        if kind.result == Role.W:
            return backend.xp.reshape(result, (chunks, count, *geometry.w_shape))
        return backend.xp.reshape(result, (result.shape[0], count, *geometry.shape(kind.result)[1:]))

    def sums_by_weight(self, products: Array, axis: int) -> list[list[Array]]:
        """Add up the products of slices, which lie along `axis`, by weight: for the real part, then the imaginary."""
        plan, backend = self.slicing, self.backend
        pairs = len(plan.pairs)

        def part_product(number: int) -> list[Array]:
            return [products[slot(axis, number * pairs + pair)] for pair in range(pairs)]

        if plan.part_products == 1:
            return [sum_by_weight(backend, part_product(0), plan)]
        sums = []
        for first, second in ((0, 1), (2, 3))[: 2 if self.operation.result_dtype in PARTS_OF else 1]:
            both = zip(part_product(first), part_product(second), strict=True)
            added = [a * PART_SIGNS[first] + b * PART_SIGNS[second] for a, b in both]
            sums.append(sum_by_weight(backend, added, plan))
        return sums

    def in_few_samples(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Cut parts into as few samples at a time as make arrays for which memory is used again."""
        for part in parts:
            geometry = part.geometry
            samples_at_once = slice_elements(self.backend, self.slicing) // max(1, larger_operand(geometry))
            first = part.of_x[0].start or 0
            for start, end in pieces(geometry.batch, max(1, samples_at_once)):
                yield with_samples(part, (first + start, first + end))


def sliced_product(
    operation: Operation, backend: Backend, choose: Choose, terms: int, operands: tuple[Array, ...]
) -> SlicedProduct:
    """Find the scales of two operands, and plan slices whose sums of `terms` products are exact."""
    powers = powers_of_two(backend, operands[0])
    first, second = (
        operand(powers, operation, operands[place], place)._replace(conjugated=operation.conjugated[place])
        for place in (0, 1)
    )
    return SlicedProduct(operation, backend, choose, powers, (first, second), slicing(operation.dtype, terms))


def outer_exponents(backend: Backend, geometry: Geometry, of_outputs: Array, of_inputs: Array) -> Array:
    """Return the exponents of a weight gradient (F, C / G): the sums of those of outputs (F,) and of inputs (C,)."""
    xp, groups = backend.xp, geometry.groups
    of_outputs = xp.reshape(of_outputs, (groups, geometry.group_out, 1))
    of_inputs = xp.reshape(of_inputs, (groups, 1, geometry.group_in))
    return xp.reshape(of_outputs + of_inputs, (geometry.out_channels, geometry.group_in))


def fill_stack(
    backend: Backend,
    like: Array,
    stack: Array,
    axis: int,
    put: Callable[[Array, Index, Workspace], Array],
) -> Array:
    """Have `put` write what it makes of each block of `like` into `stack`, which has a new axis of slots at `axis`."""

    def compute(block: Index, target: Array, workspace: Workspace) -> Array:
        return put(target, block, workspace)

    cut = Made(blocks(backend, tuple(like.shape)), lambda block: ((*block[:axis], ALL, *block[axis:]), block))
    return fill(backend, stack, cut, compute, least_blocks(backend, stack.shape))
