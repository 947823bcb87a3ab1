"""Count the nans and infinities that the operands of a product bring into its results."""

from __future__ import annotations

from ..backends import Array, Workspace
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.ranges import Index
from .cutting import slot
from .nonfinite import COUNTED, Counts, counts_of, indicators
from .operands import Operand
from .sliced_product import SlicedProduct, fill_stack
from .slicing import PART_PRODUCTS, PART_SIGNS


def count_nonfinite(
    sliced: SlicedProduct, geometry: Geometry, first: Operand, second: Operand, chunks: int = 1
) -> list[Counts] | None:
    """Count nans and infinities for the real part of a result, and the imaginary one; None where there can be none.

    `geometry`, `first`, `second` and `chunks` are those of `SlicedProduct.convolve`.
    """
    if first.finite and second.finite:
        return None
    per_product, part_products = len(COUNTED), sliced.slicing.part_products
    stacks = [_indicator_stack(sliced, place, part) for place, part in enumerate((first, second))]
    products = sliced.convolve(geometry, per_product * part_products, stacks[0], stacks[1], chunks)
    counts = []
    for number in range(part_products):
        sums = [products[:, number * per_product + i, ...] for i in range(per_product)]
        if sliced.kind == Kind.WEIGHT_GRAD:
            sums = [sliced.backend.xp.sum(array, axis=0) for array in sums]
        bad_of_all = _bad_of_all(sliced, stacks, (number + 1) * per_product - 1)
        counts.append(counts_of(sums, bad_of_all).signed(PART_SIGNS[number]))
    if part_products == 1:
        return counts
    return [counts[0] + counts[1], counts[2] + counts[3]]


def _indicator_stack(sliced: SlicedProduct, place: int, part: Operand) -> Array:
    """Return the indicators of an operand side by side: those of `COUNTED` for each product of parts."""
    backend, part_products = sliced.backend, sliced.slicing.part_products
    names = [pair[0 if sliced.kind.operands[place] == sliced.kind.read else 1] for pair in COUNTED]
    axis = sliced.slot_axis(place)
    shape = (*part.array.shape[:axis], len(COUNTED) * part_products, *part.array.shape[axis:])
    stack = backend.empty(shape, part.array, dtype=backend.dtype("float64"))

    def put(target: Array, block: Index, workspace: Workspace) -> Array:
        of_parts = [indicators(backend, values, part.least, names) for values in part.parts(backend, block)]
        if len(of_parts) < part_products // 2:  # the imaginary part of real numbers
            zeros = backend.xp.zeros_like(of_parts[0][0])
            of_parts.append(indicators(backend, zeros, part.least, names))
        values = [each for parts in PART_PRODUCTS[:part_products] for each in of_parts[parts[place]]]
        for number, value in enumerate(values):
            target = backend.write(target, slot(axis, number), value)
        return target

    return fill_stack(backend, part.array, stack, axis, put)


def _bad_of_all(sliced: SlicedProduct, stacks: list[Array], slot: int) -> Array | None:
    """Count all terms with a nan or an infinity of the operand without padding, those with padding included.

    None for an input gradient, whose sums have no terms with padding.
    """
    xp = sliced.backend.xp
    if sliced.kind == Kind.FORWARD:
        bad = stacks[1][slot, ...]
        total = xp.sum(bad, axis=tuple(range(1, bad.ndim)))
        return xp.reshape(total, (1, -1, *(1,) * (bad.ndim - 2)))
    if sliced.kind == Kind.WEIGHT_GRAD:
        bad = stacks[0][:, slot, ...]
        total = xp.sum(bad, axis=(0, *range(2, bad.ndim)))
        return xp.reshape(total, (-1, *(1,) * (bad.ndim - 1)))
    return None
