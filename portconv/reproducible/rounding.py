"""Round exact sums to results: block by block, with a bias, and with nans and infinities where they belong."""

from __future__ import annotations

from typing import NamedTuple

from ..backends import Array, Workspace
from ..spec.dtypes import LEAST_NORMAL, real
from ..spec.operation import Kind
from ..spec.ranges import ALL, Index
from ..spec.sequences import Made
from .bias import add_bias, addend, keeps_normal
from .blocks import Block, blocks, fill, least_blocks
from .cutting import slot, sum_by_weight
from .limbs import carry, round_limbs, round_range, total_and_error
from .magnitudes import join_parts
from .nonfinite import Counts
from .powers import PowersOfTwo
from .sliced_product import SlicedProduct


class Target(NamedTuple):
    """A result, or a part of one, that sums are rounded to.

    Attributes
    ----------
    array : array
    exponents : array of int
        The sums count two to this power, for each element of the first two axes.
    bias : array, shape (F,), optional
        What is added after rounding.
    """

    array: Array
    exponents: Array
    bias: Array | None = None

    def at(self, index: Index) -> Target:
        """Return a part of the result."""
        bias = None if self.bias is None else self.bias[index[1]]
        return Target(self.array[(*index, ...)], self.exponents[index[:2]], bias)


class Rounding(NamedTuple):
    """How exact sums are rounded: their limbs have `width` bits, and the result has `dtype`."""

    powers: PowersOfTwo
    width: int
    dtype: str

    def round(self, limbs: list[list[Array]], exponents: Array, counts: list[Counts] | None) -> Array:
        """Round the carried limbs of each part of a result, put nans and infinities in, and join the parts."""
        parts, backend = [], self.powers.backend
        for i, part in enumerate(limbs):
            value = round_limbs(self.powers, part, self.width, exponents, real(self.dtype))
            parts.append(value if counts is None else counts[i].put(backend, value))
        return join_parts(backend, parts, self.dtype)


def rounding_of(sliced: SlicedProduct) -> Rounding:
    """Return how the sums of a product are rounded."""
    return Rounding(sliced.powers, sliced.slicing.width, sliced.operation.result_dtype)


def all_normal(sliced: SlicedProduct, target: Target) -> bool:
    """Return whether all results, with and without the bias, are known to be zero or normal numbers of float32.

    A sum is a whole number of units, so it suffices to know that its unit is a normal number.
    """
    dtype = sliced.operation.result_dtype
    if not (dtype == sliced.operation.dtype == "float32" and sliced.finite and target.array.ndim > 2):
        return False
    exponents = target.exponents
    normal = (exponents >= LEAST_NORMAL[dtype]) & (exponents <= -LEAST_NORMAL[dtype])
    return sliced.backend.sure(normal) and (target.bias is None or keeps_normal(sliced.backend, target.bias, dtype))


def round_products(sliced: SlicedProduct, target: Target, products: Array, counts: list[Counts] | None) -> Array:
    """Round what products of slices add up to, add the bias, and write the result into the array of `target`."""
    if all_normal(sliced, target):
        return _round_normal(sliced, target, products)
    backend, rounding, axis = sliced.backend, rounding_of(sliced), _slot_axis(sliced)

    def compute(block: Block, _: Array, workspace: Workspace) -> Array:
        sums = sliced.sums_by_weight(products[(*block[:axis], ALL, *block[axis:])], axis)
        limbs = [carry(backend, part, rounding.width) for part in sums]
        of_block = None if counts is None else [count.at(block) for count in counts]
        value = rounding.round(limbs, target.exponents[block[:2]], of_block)
        return value if target.bias is None else add_bias(backend, value, target.bias[block[1]], rounding.dtype)

    cut = Made(blocks(backend, tuple(target.array.shape)), lambda block: (block, block))
    return fill(backend, target.array, cut, compute, least_blocks(backend, target.array.shape))


def _round_normal(sliced: SlicedProduct, target: Target, products: Array) -> Array:
    """Round sums that are normal numbers to float32: from float64 totals, or exactly if a block has undecided ones."""
    backend, plan, axis, exponents = sliced.backend, sliced.slicing, _slot_axis(sliced), target.exponents
    factors = sliced.powers.scales_of(exponents, target.array)
    added = addend(backend, target.bias, target.array)

    def compute(block: Block, out: Array, workspace: Workspace) -> Array:
        of_block = products[(*block[:axis], ALL, *block[axis:])]
        pairs = [of_block[slot(axis, pair)] for pair in range(len(plan.pairs))]
        limbs = sum_by_weight(backend, pairs, plan, workspace)
        total, error = total_and_error(backend, limbs, plan.width, workspace)
        upper, same = round_range(backend, total, error, out.dtype, workspace)
        out = backend.elementwise("multiply", out, (...,), upper, factors[(*block[:2], ...)])
        if not bool(backend.xp.all(same)):
            limbs = carry(backend, limbs, plan.width)
            exact = round_limbs(sliced.powers, limbs, plan.width, exponents[block[:2]], "float32")
            out = backend.write(out, (...,), exact)
        return backend.elementwise("add", out, (...,), out, added[:, block[1], ...])

    cut = Made(blocks(backend, tuple(target.array.shape)), lambda block: (block, block))
    return fill(backend, target.array, cut, compute, least_blocks(backend, target.array.shape))


def _slot_axis(sliced: SlicedProduct) -> int:
    """Return the axis of the slots in the products of slices, which a weight gradient has no samples before."""
    return 0 if sliced.kind == Kind.WEIGHT_GRAD else 1
