"""The gradient of a bias: the elements of each channel, quantised and added up exactly."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..algorithms.algorithm import RoundedSums
from ..algorithms.choice import rounded_sums as found_fast
from ..backends import Array, Backend
from ..spec.operation import Operation
from ..spec.ranges import Index
from .blocks import reduce_planes
from .cutting import cut
from .limbs import carry
from .magnitudes import parts_of, plane_magnitudes
from .nonfinite import Counts, indicators
from .operands import Operand, operand
from .powers import over_cells, powers_of_two, split_exponents
from .probe import where_rounding_is_to_nearest
from .rounding import Rounding
from .slicing import SIGNIFICANT_BITS, Slicing, addition_slicing

SHORT_BITS = 40
"""The most bits for which a block's sum may fit in int64, and one power of two, a normal float64, quantises."""
COUNTED = ("nan", "infinite", "sign", "finite sign")
"""The indicators that are added up where not all elements are finite."""


class _Limbs(NamedTuple):
    """How the elements of a block become limbs."""

    backend: Backend
    operand: Operand
    slicing: Slicing
    factors: list[Array]
    """The powers of two that quantise an element, one after the other."""
    short: bool
    """Whether the sum of a block's quantised elements fits in int64."""

    @property
    def number(self) -> int:
        """How many numbers a part of a channel becomes: its limbs, and the counts where it is not finite."""
        return self.slicing.slices + (0 if self.operand.finite else len(COUNTED))

    def of(self, block: Index) -> list[Array]:
        """Sum the quantised elements of a block as limbs, and count those that are not finite."""
        sums = []
        for part in parts_of(self.backend, self.operand.array[block]):
            numbers = self.operand.doubles(self.backend, part)
            for factor in self.factors:
                numbers = numbers * factor[(*block[:2], ...)]
            sums += self._sums(numbers)
            if not self.operand.finite:
                counted = indicators(self.backend, part, self.operand.least, COUNTED)
                sums += [self._sum(each) for each in counted]
        return sums

    def _sums(self, numbers: Array) -> list[Array]:
        xp, backend = self.backend.xp, self.backend
        if not self.short:
            return [self._sum(slice_) for slice_ in cut(backend, numbers, self.slicing)]
        total = xp.sum(xp.astype(xp.round(numbers), xp.int64), axis=tuple(range(2, numbers.ndim)), dtype=xp.int64)
        high = total >> self.slicing.width
        low = total - (high << self.slicing.width)
        return [backend.astype(limb, backend.dtype("float64")) for limb in (low, high)]

    def _sum(self, cells: Array) -> Array:
        return self.backend.xp.sum(cells, axis=tuple(range(2, cells.ndim)))


def channel_sum(operation: Operation, backend: Backend, array: Array) -> Array:
    """Add up the elements (N, C, *cells) of each channel: quantised, exactly, and rounded once.

    Parameters
    ----------
    operation : Operation
        Its dtype says to how many bits the elements are quantised, its result dtype what the sum is rounded to.
    backend : Backend
    array : array

    Returns
    -------
    array, shape (C,)
    """
    compute = rounded_sums(operation, backend, array)
    if compute is not None:
        magnitudes, is_finite = plane_magnitudes(backend, array)
        value = compute(array, magnitudes) if is_finite else None
        if value is not None:
            return value
    count = math.prod(array.shape) // array.shape[1]
    sums, exponents = _sums(operation, backend, array, count)
    return _round(operation, backend, sums, exponents, count)


def rounded_sums(operation: Operation, backend: Backend, like: Array) -> RoundedSums | None:
    """Return what adds up such arrays and rounds the sums, if an algorithm can."""
    if {operation.dtype, operation.result_dtype, backend.dtype_name(like.dtype)} != {"float32"}:
        return None
    if not backend.at_hand(like):
        return None
    powers_of_two(backend, like)  # float64 is exact here
    return found_fast(backend, tuple(like.shape))


def repeated(operation: Operation, backend: Backend, like: Array) -> RoundedSums | None:
    """Return what adds up such arrays again, if they are canonical."""
    compute = rounded_sums(operation, backend, like)
    return None if compute is None else where_rounding_is_to_nearest(compute)


def channel_sums(operation: Operation, backend: Backend, array: Array, count: int) -> Array:
    """Add up exactly some of the elements of each channel, of which there are `count` in all.

    Their magnitudes are remembered as those of all of them. Several results add up as they are.

    Returns
    -------
    array, shape (1 or 2, limbs, C)
        The limbs of each part of the result, and where not all elements are finite, four counts after them.
    """
    return _sums(operation, backend, array, count)[0]


def round_channel_sums(operation: Operation, backend: Backend, sums: Array, largest: Array, count: int) -> Array:
    """Round the sum of all results of `channel_sums`; `largest` are the largest magnitudes, (C,)."""
    exponents = powers_of_two(backend, sums).exponents_above(largest) - (SIGNIFICANT_BITS[operation.dtype] - 1)
    return _round(operation, backend, sums, exponents, count)


def _sums(operation: Operation, backend: Backend, array: Array, count: int) -> tuple[Array, Array]:
    """Return the sums of `channel_sums`, and the exponent of the power of two that those of each channel count."""
    xp, powers, bits = backend.xp, powers_of_two(backend, array), SIGNIFICANT_BITS[operation.dtype]
    scaled = operand(powers, operation, array, 0)
    plan = addition_slicing(bits, count)
    up = bits - 1 - scaled.exponents
    short = bits <= SHORT_BITS and plan.slices == 2 and math.prod(array.shape[2:]) <= 2 ** (63 - bits)
    steps = (up,) if short else split_exponents(up)
    factors = [over_cells(backend, powers.of(step), array.ndim - 2) for step in steps]
    limbs = _Limbs(backend, scaled, plan, factors, short)
    parts = len(parts_of(backend, array[:0, ...]))
    sums = xp.sum(reduce_planes(backend, array, limbs.number * parts, limbs.of, xp.sum), axis=1)
    exponents = xp.max(scaled.exponents, axis=0) - (bits - 1) if array.shape[0] else xp.astype(sums[0, :], xp.int64)
    return xp.reshape(sums, (parts, limbs.number, array.shape[1])), exponents


def _round(operation: Operation, backend: Backend, sums: Array, exponents: Array, count: int) -> Array:
    """Round the sums of `_sums` to the result dtype."""
    xp, plan = backend.xp, addition_slicing(SIGNIFICANT_BITS[operation.dtype], count)
    limbs, counts = [], []
    for part in range(sums.shape[0]):
        each = [xp.reshape(sums[part, i, :], (-1, 1)) for i in range(sums.shape[1])]
        limbs.append(carry(backend, each[: plan.slices], plan.width))
        if len(each) > plan.slices:
            nans, infinite, signs, finite_signs = each[plan.slices :]
            counts.append(Counts(nans, infinite, signs - finite_signs))
    rounding = Rounding(powers_of_two(backend, sums), plan.width, operation.result_dtype)
    return xp.reshape(rounding.round(limbs, xp.reshape(exponents, (-1, 1)), counts or None), (-1,))
