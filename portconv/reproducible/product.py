"""The three products of a convolution, the same bits however they are cut, shared and multiplied."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from ..algorithms.algorithm import RoundedProduct
from ..backends import Array, Backend
from ..passes.padding import extend
from ..passes.part import Part
from ..passes.partition import Parts
from ..spec.operation import Kind, Operation, Role
from .certified import is_at_hand, is_worthwhile
from .magnitudes import plane_magnitudes
from .nonfinite_counts import count_nonfinite
from .powers import powers_of_two
from .probe import where_rounding_is_to_nearest
from .rounding import Target, all_normal, round_products
from .sliced_product import Choose, SlicedProduct, sliced_product
from .slicing import UNCUT, exact_terms, in_slices
from .weight_grad import weight_grad
from .window_sums import lay_out_filters, window_sums


def product(
    operation: Operation,
    backend: Backend,
    choose: Choose,
    parts: Parts,
    operands: tuple[Array, ...],
) -> Array:
    """Compute a product of canonical arrays.

    Parameters
    ----------
    operation : Operation
    backend : Backend
    choose : callable
        Returns the algorithm that multiplies the slices of a convolution.
    parts : Parts
        What the product is cut into.
    operands : tuple of array
        Those of `Kind.operands`, and for an output or an input gradient maybe a bias, which is added to the result.

    Returns
    -------
    array
    """
    compute = rounding(operation, backend, choose, parts, operands)
    value = None if compute is None else _at_once(operation, backend, compute, operands)
    if value is not None:
        return value
    kind, geometry, like = operation.kind, operation.geometry, operands[0]
    terms = max(exact_terms(backend, each, kind, operation.dtype) for each in parts.geometries())
    sliced = sliced_product(operation, backend, choose, terms, operands)
    certifies = compute is None and is_at_hand(geometry, backend, like) and is_worthwhile(kind, geometry, backend)
    if kind == Kind.WEIGHT_GRAD:
        return weight_grad(sliced, parts, certifies)
    dtype = backend.dtype(operation.result_dtype)
    out = backend.empty(geometry.shape(kind.result), like, last=geometry.channels_last, dtype=dtype)
    bias = operands[2] if len(operands) > 2 else None
    target, left = Target(out, sliced.exponents(geometry), bias), iter(parts)
    if certifies and all_normal(sliced, target):
        out, left = _fill(sliced.uncut(), target, left)
        target = target._replace(array=out)
    return _fill(sliced, target, left)[0]


def rounding(
    operation: Operation, backend: Backend, choose: Choose, parts: Parts, operands: tuple[Array, ...]
) -> RoundedProduct | None:
    """Return what computes a product of such operands, and rounds it, if the algorithm that serves its parts can."""
    is_single = {backend.dtype_name(operand.dtype) for operand in operands} == {operation.result_dtype} == {"float32"}
    geometry = operation.geometry
    if not (is_single and geometry.dims and is_at_hand(geometry, backend, operands[0])):
        return None
    powers_of_two(backend, operands[0])  # float64 is exact here
    return choose(in_slices(next(iter(parts.geometries())), 1)).rounded(operation.kind, geometry, backend)


def repeated(
    operation: Operation, backend: Backend, choose: Choose, parts: Parts, operands: tuple[Array, ...]
) -> RoundedProduct | None:
    """Return what computes a product of operands like these again, if they are canonical arrays."""
    compute = rounding(operation, backend, choose, parts, operands)
    return None if compute is None else where_rounding_is_to_nearest(compute)


def _at_once(
    operation: Operation, backend: Backend, compute: RoundedProduct, operands: tuple[Array, ...]
) -> Array | None:
    """Compute a product by what rounds it, with magnitudes that are known."""
    found = [plane_magnitudes(backend, each) for each in operands[: 2 if operation.kind == Kind.WEIGHT_GRAD else 1]]
    if not all(is_finite for _, is_finite in found):
        return None
    return compute(*operands, magnitudes=[magnitudes for magnitudes, _ in found])


def _fill(sliced: SlicedProduct, target: Target, parts: Iterator[Part]) -> tuple[Array, Iterator[Part]]:
    """Compute parts of a result in its array; return it, and the parts that are left.

    These are the first part with too many undecided sums, and all parts after it.
    """
    backend, out = sliced.backend, target.array
    first, second = sliced.operands
    # One workspace for all parts: fresh memory takes longer to get than to fill.
    workspace = backend.workspace(first.array)
    of_w = filters = laid_out = None
    parts = sliced.in_few_samples(parts)
    for part in parts:
        index, of_first = (part.of_out, part.of_x) if sliced.kind.result == Role.OUT else (part.of_x, part.of_out)
        cells, weights, geometry = first.at(of_first), second.at(part.of_w), part.geometry
        if geometry.mode == "constant":  # a number that is quantised as the cells are
            cells, geometry = cells._replace(array=extend(geometry, backend, cells.array)), geometry.extended
        if of_w != part.of_w:
            # Let go of the last filters first, or the slices of two would take memory at once.
            filters = laid_out = None
            of_w, filters = part.of_w, sliced.cut_operand(1, weights, workspace)
            if sliced.slicing is UNCUT:
                laid_out = lay_out_filters(sliced, geometry, filters[0, ...])
        slices = sliced.cut_operand(0, cells, workspace)
        products = sliced.convolve(geometry, sliced.slicing.slots, slices, filters)
        place = target._replace(array=out).at(index)
        if laid_out is not None:
            sums = window_sums(sliced, geometry, slices[:, 0, ...], laid_out)
            value = sums.round_into(place, products[:, 0, ...])
        else:
            counts = count_nonfinite(sliced, geometry, cells, weights)
            value = round_products(sliced, place, products, counts)
        if value is None:
            return out, chain((part,), parts)
        if not (backend.views and value is place.array):
            out = backend.write(out, (*index, ...), value)
    return out, parts
