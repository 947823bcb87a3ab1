"""The weight gradient, whose sums over samples and positions are cut into chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..backends import Array, Backend, Workspace
from ..passes.padding import extend
from ..passes.part import Part
from ..passes.partition import Parts
from ..spec.dtypes import PARTS_OF, gamma
from ..spec.geometry import Geometry
from ..spec.operation import Operation
from .correlation_sums import CorrelationSums, bound_magnitudes
from .limbs import carry
from .nonfinite import Counts
from .nonfinite_counts import count_nonfinite
from .operands import Operand, with_constant
from .powers import powers_of_two
from .rounding import Rounding, Target, all_normal, round_products, rounding_of
from .sliced_product import Choose, SlicedProduct, outer_exponents, sliced_product
from .slicing import SIGNIFICANT_BITS, Chunks, chunks, longest_sum, slicing


class ExactSums(NamedTuple):
    """The exact sums of some filters' gradients.

    Attributes
    ----------
    products : array
        The products of slices of the last chunk.
    limbs : list of list of array
        For each part of the result the limbs of the sum of all chunks; empty unless these are added up.
    counts : list of Counts or None
        The nans and infinities of each part of the result.
    """

    products: Array
    limbs: list[list[Array]]
    counts: list[Counts] | None


def weight_grad(sliced: SlicedProduct, parts: Parts, certifies: bool) -> Array:
    """Compute the weight gradient from parts, of which those of the same filters are added up.

    `certifies` says whether sums that are not exact may be tried first.
    """
    backend, geometry, like = sliced.backend, sliced.operation.geometry, sliced.operands[0].array
    grad = backend.empty(geometry.w_shape, like, dtype=backend.dtype(sliced.operation.result_dtype))
    if not geometry.batch:
        return backend.zeroed(grad)
    exponents, workspace = sliced.exponents(geometry), backend.workspace(like)
    for added_up in parts.by_filters():
        index = added_up[0].of_w
        target, value = Target(grad[(*index, ...)], exponents[index]), None
        if certifies and all_normal(sliced, target):
            value = _certified(sliced, added_up, target, workspace)
        if value is None:
            value = _exact(sliced, added_up, target, workspace)
        if not (backend.views and value is target.array):
            grad = backend.write(grad, (*index, ...), value)
    return grad


def _certified(sliced: SlicedProduct, parts: Sequence[Part], target: Target, workspace: Workspace) -> Array | None:
    """Compute the gradient of some filters from sums that are not exact; None where too many are undecided."""
    sliced, backend = sliced.uncut(), sliced.backend
    total: Array = None
    magnitudes: Array = None
    roundings = additions = 0
    for part in sliced.in_few_samples(parts):
        roundings, additions = max(roundings, sliced.roundings(part.geometry)), additions + 1
        grads = sliced.cut_operand(0, sliced.operands[0].at(part.of_out), workspace)
        cells = sliced.cut_operand(1, sliced.operands[1].at(part.of_x), workspace)
        sums = sliced.convolve(part.geometry, 1, grads, cells)[0, 0, ...]
        bounds = bound_magnitudes(backend, part.geometry, grads[:, 0, ...], cells[:, 0, ...])
        total, magnitudes = (sums, bounds) if total is None else (total + sums, magnitudes + bounds)
    # Four roundings more than those of the sum: the bound is rounded itself, and so are the ends of the range.
    errors = magnitudes * gamma(roundings + additions + 4)
    first = parts[0].of_w[0].start or 0
    bounded = CorrelationSums(sliced.powers, sliced.operation.geometry, sliced.operands, first, errors)
    return bounded.round_into(target, total)


def _exact(sliced: SlicedProduct, parts: Sequence[Part], target: Target, workspace: Workspace) -> Array:
    """Compute the gradient of some filters from exact sums."""
    several = len(parts) > 1 or chunks(sliced.backend, parts[0].geometry, sliced.operation.dtype).several
    sums = _exact_sums(sliced, parts, workspace, several)
    if several:
        return rounding_of(sliced).round(sums.limbs, target.exponents, sums.counts)
    return round_products(sliced, target, sums.products[0, ...], sums.counts)


def _exact_sums(sliced: SlicedProduct, parts: Sequence[Part], workspace: Workspace, several: bool) -> ExactSums:
    """Compute the exact sums of some filters' gradients; where there are `several` chunks, add their limbs up."""
    backend = sliced.backend
    limbs: list[list[Array]] = []
    counts: list[Counts] | None = None
    products: Array = None
    for part in parts:
        grads, cells = sliced.operands[0].at(part.of_out), sliced.operands[1].at(part.of_x)
        cells = cells._replace(array=extend(part.geometry, backend, cells.array))
        plan = chunks(backend, part.geometry, sliced.operation.dtype)
        for geometry, count, first, second in _calls(plan, grads, cells):
            slices = sliced.cut_operand(0, first, workspace), sliced.cut_operand(1, second, workspace)
            products = sliced.convolve(geometry, sliced.slicing.slots, *slices, count)
            of_call = count_nonfinite(sliced, geometry, first, second, count)
            if counts is not None and of_call is not None:
                of_call = [old + new for old, new in zip(counts, of_call, strict=True)]
            counts = of_call
            if several:
                limbs = _add_chunks(sliced, limbs, sliced.sums_by_weight(products, axis=1))
    return ExactSums(products, limbs, counts)


def _calls(plan: Chunks, grads: Operand, cells: Operand) -> Iterator[tuple[Geometry, int, Operand, Operand]]:
    """Yield the convolution of each call, the number of chunks that its samples are cut into, and its operands."""
    for first, end in plan.calls:
        samples = slice(first * plan.samples, end * plan.samples)
        for part in plan.rows:
            geometry = replace(part.geometry, batch=plan.samples * (end - first))
            yield geometry, end - first, grads.at((samples, *part.of_out[1:])), cells.at((samples, *part.of_x[1:]))


def _add_chunks(sliced: SlicedProduct, held: list[list[Array]], sums: list[list[Array]]) -> list[list[Array]]:
    """Add the sums of chunks, which lie along the first axis, to the limbs held; these are one more than the sums."""
    backend, width, added = sliced.backend, sliced.slicing.width, []
    for number, part in enumerate(sums):
        limbs = carry(backend, [*part, backend.xp.zeros_like(part[0])], width)
        limbs = [backend.xp.sum(limb, axis=0) for limb in limbs]
        if held:
            limbs = [old + new for old, new in zip(held[number], limbs, strict=True)]
        added.append(carry(backend, limbs, width))
    return added


def weight_sums(
    operation: Operation, backend: Backend, choose: Choose, parts: Sequence[Part], operands: tuple[Array, ...]
) -> Array:
    """Sum exactly what some samples and positions add to a weight gradient, whose scales are those of all of them.

    Parameters
    ----------
    operation : Operation
        The weight gradient of these samples and positions.
    backend : Backend
    choose : callable
        Returns the algorithm that multiplies the slices of a convolution.
    parts : sequence of Part
        Each of at most `longest_sum` positions.
    operands : tuple of array
        `dout` and `x`, whose magnitudes are remembered as those of the whole arrays.

    Returns
    -------
    array, shape (1 or 2, limbs, F, C / G, *K)
        The limbs of each part of the result, and where either operand is not finite, three counts after them.
    """
    sliced = sliced_product(operation, backend, choose, longest_sum(operation.dtype), operands)
    geometry, like = operation.geometry, operands[0]
    if not geometry.batch:
        shape = (2 if operation.result_dtype in PARTS_OF else 1, 2 * sliced.slicing.slices, *geometry.w_shape)
        return backend.zeroed(backend.empty(shape, like, dtype=backend.dtype("float64")))
    _, limbs, counts = _exact_sums(sliced, parts, backend.workspace(like), True)
    xp, stacks = backend.xp, []
    for i, part in enumerate(limbs):
        counted = [] if counts is None else [counts[i].nans, counts[i].infinite, counts[i].signs]
        stacks.append(xp.stack([*part, *(xp.broadcast_to(one, part[0].shape) for one in counted)]))
    return xp.stack(stacks)


def add_weight_sums(dtype: str, backend: Backend, sums: list[Array]) -> Array:
    """Add up several results of `weight_sums`, or of this; `dtype` is that of their operation."""
    xp, plan = backend.xp, slicing(dtype, longest_sum(dtype))
    total, limbs = sums[0], 2 * plan.slices
    for one in sums[1:]:
        total = total + one
    stacks = []
    for part in range(total.shape[0]):
        each = [total[part, i, ...] for i in range(total.shape[1])]
        stacks.append(xp.stack([*carry(backend, each[:limbs], plan.width), *each[limbs:]]))
    return xp.stack(stacks)


def round_weight_sums(operation: Operation, backend: Backend, sums: Array, largest: tuple[Array, Array]) -> Array:
    """Round the sum of all results of `weight_sums` to the weight gradient.

    `largest` are the largest magnitudes of each channel of `dout` and of `x`, (F,) and (C,).
    """
    powers, plan = powers_of_two(backend, sums), slicing(operation.dtype, longest_sum(operation.dtype))
    largest = largest[0], with_constant(backend, operation.geometry, largest[1])
    of_outputs, of_inputs = (powers.exponents_above(each) for each in largest)
    quantised = 2 * (SIGNIFICANT_BITS[operation.dtype] - 1)
    exponents = outer_exponents(backend, operation.geometry, of_outputs, of_inputs) - quantised
    limbs = [[sums[part, i, ...] for i in range(2 * plan.slices)] for part in range(sums.shape[0])]
    counts = None
    if sums.shape[1] > 2 * plan.slices:
        places = range(2 * plan.slices, sums.shape[1])
        counts = [Counts(*(sums[part, i, ...] for i in places)) for part in range(sums.shape[0])]
    return Rounding(powers, plan.width, operation.result_dtype).round(limbs, exponents, counts)
