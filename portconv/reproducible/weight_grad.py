"""The weight gradient, whose sums over samples and positions are cut into chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..algorithms.choice import Choice
from ..backends import Array, Backend, Workspace
from ..passes.padding import extend
from ..passes.partition import Part
from ..spec.dtypes import PARTS_OF, gamma
from ..spec.geometry import Geometry
from .certified import Correlations, magnitude, serves
from .limbs import carried
from .nonfinite import Counts
from .operands import Operand, above, operand
from .probe import ready
from .sliced_product import (
    ROLES,
    Chosen,
    Problem,
    _convolved,
    _counts,
    _exponents,
    _few_samples,
    _finished,
    _normal,
    _of,
    _rounded,
    _roundings,
    _sliced,
    _uncut,
    _weights,
)
from .slices import SIGNIFICANT, slicing
from .slicing import Shares, _elements, _shares, longest


def _weight_grad(problem: Problem, geometry: Geometry, some: tuple[Part, ...], made: str) -> Array:
    backend = problem.backend
    shape = (geometry.out_channels, geometry.group_in, *geometry.kernel)
    grad = backend.empty(shape, problem.of_a.array, dtype=backend.dtype(made))
    if not geometry.batch:
        return backend.zeroed(grad)
    exponents, workspace = _exponents(problem, geometry), backend.workspace(problem.of_a.array)
    for first in sorted({part.of_w[0].start or 0 for part in some}):
        same = [part for part in some if (part.of_w[0].start or 0) == first]
        at = same[0].of_w
        target, value = grad[(*at, ...)], None
        if serves(backend, geometry, problem.purpose, grad) and _normal(problem, target, exponents[at], made, None):
            value = _nearly(problem, geometry, same, target, exponents[at], workspace)
        if value is None:
            value = _summed(problem, same, target, exponents[at], made, workspace)
        if not (backend.views and value is target):
            grad = backend.write(grad, (*at, ...), value)
    return grad


def _summed(
    problem: Problem, some: list[Part], target: Array, exponents: Array, made: str, workspace: Workspace
) -> Array:
    """Compute the gradient of some filters, which parts add up to."""
    elements = _elements(problem.backend, slicing(problem.dtype, 1))
    several = len(some) > 1 or _shares(some[0].geometry.extended, problem.dtype, elements).several
    products, limbs, counts = _sums(problem, some, made, workspace, several)
    if several:
        return _finished(problem, limbs, exponents, made, counts)
    return _rounded(problem, target, products[0, ...], exponents, made, None, counts)


def _sums(
    problem: Problem, some: list[Part], made: str, workspace: Workspace, several: bool
) -> tuple[Array, list[list[Array]], list[Counts] | None]:
    """Sum exactly what parts of a weight gradient add up to.

    Returns the products of the last chunk, the limbs of the sum of all, where there are `several`, and what they hold
    of nans and infinities.
    """
    backend = problem.backend
    limbs: list[list[Array]] = []
    counts: list[Counts] | None = None
    products: Array = None
    elements = _elements(backend, slicing(problem.dtype, 1))
    for part in some:
        grads, cells = _of(problem.of_a, part.of_out), _of(problem.of_b, part.of_x)
        cells = cells._replace(array=extend(part.geometry, backend, cells.array))
        for one, chunks, own in _chunks(_shares(part.geometry.extended, problem.dtype, elements), grads, cells):
            slices = _sliced(problem, 0, own[0], workspace), _sliced(problem, 1, own[1], workspace)
            products = _convolved(problem, one, problem.own.slots, *slices, chunks)
            more = _counts(problem, one, *own, chunks)
            if counts is not None and more is not None:
                more = [old + new for old, new in zip(counts, more, strict=True)]
            counts = more
            if several:
                limbs = _added(problem, limbs, _weights(problem, products, made, axis=1))
    return products, limbs, counts


def weight_sums(
    backend: Backend,
    geometry: Geometry,
    dtype: str,
    choose: Chosen,
    some: Iterable[Part],
    dout: Array,
    x: Array,
    made: str,
) -> Array:
    """Sum exactly what some samples and positions add to a weight gradient, whose scales are those of all of them.

    Parameters
    ----------
    backend, geometry, dtype, choose
        As for `compute`.
    some : iterable of Part
        Of no more than `longest` positions each.
    dout, x : array
        Whose magnitudes are remembered as those of the whole arrays.
    made : str
        The dtype of the result.

    Returns
    -------
    array, shape (1 or 2, limbs, F, C / G, *K)
        The limbs of each part of the result, and where either array is not finite, three counts.
    """
    powers, bits = ready(backend, dout), SIGNIFICANT[dtype]
    one, other = (
        operand(backend, geometry, powers, array, role, bits)
        for array, role in zip((dout, x), ROLES["weight_grad"], strict=True)
    )
    problem = Problem(backend, "weight_grad", choose, powers, dtype, one, other, slicing(dtype, longest(dtype)))
    if not geometry.batch:
        parts_of_result, limbs_of_each = (2 if made in PARTS_OF else 1), 2 * problem.own.number
        shape = (parts_of_result, limbs_of_each, *geometry.w_shape)
        return backend.zeroed(backend.empty(shape, dout, dtype=backend.dtype("float64")))
    _, limbs, counts = _sums(problem, list(some), made, backend.workspace(dout), True)
    found = []
    for i, own in enumerate(limbs):
        more = [] if counts is None else [counts[i].nans, counts[i].infinite, counts[i].signs]
        found.append(backend.xp.stack([*own, *(backend.xp.broadcast_to(one, own[0].shape) for one in more)]))
    return backend.xp.stack(found)


def weight_sum(backend: Backend, dtype: str, sums: list[Array]) -> Array:
    """Add up what `weight_sums` gave, or this, of several."""
    xp, own = backend.xp, slicing(dtype, longest(dtype))
    total = sums[0]
    for more in sums[1:]:
        total = total + more
    found = []
    for part in range(total.shape[0]):
        each = [total[part, i, ...] for i in range(total.shape[1])]
        found.append(xp.stack([*carried(backend, each[: 2 * own.number], own.width), *each[2 * own.number :]]))
    return xp.stack(found)


def weight_rounded(
    backend: Backend, geometry: Geometry, dtype: str, sums: Array, most: tuple[Array, Array], made: str
) -> Array:
    """Round a sum that `weight_sum` gave to a weight gradient; `most` are the largest magnitudes, (F,) and (C,)."""
    powers, own = ready(backend, sums), slicing(dtype, longest(dtype))
    one, other = (Operand(sums, above(backend, powers, each)[None, :], dtype, True, False) for each in most)
    problem = Problem(backend, "weight_grad", _nothing, powers, dtype, one, other, own)
    limbs = [[sums[part, i, ...] for i in range(2 * own.number)] for part in range(sums.shape[0])]
    counts = None
    if sums.shape[1] > 2 * own.number:
        places = range(2 * own.number, sums.shape[1])
        counts = [Counts(*(sums[part, i, ...] for i in places)) for part in range(sums.shape[0])]
    return _finished(problem, limbs, _exponents(problem, geometry), made, counts)


def _nothing(geometry: Geometry) -> Choice:
    raise AssertionError("what is summed needs no algorithm")


def _nearly(
    problem: Problem, geometry: Geometry, some: list[Part], target: Array, exponents: Array, workspace: Workspace
) -> Array | None:
    """Compute the gradient of some filters from products that are not exact; None where too few are decided."""
    backend, problem = problem.backend, _uncut(problem)
    totals: list[Array] = []
    longest = added = 0
    for part in _few_samples(problem, some):
        longest, added = max(longest, _roundings(problem, part.geometry)), added + 1
        own = _of(problem.of_a, part.of_out), _of(problem.of_b, part.of_x)
        slices = _sliced(problem, 0, own[0], workspace), _sliced(problem, 1, own[1], workspace)
        products = _convolved(problem, part.geometry, 1, *slices)[0, 0, ...]
        sizes = magnitude(backend, part.geometry, slices[0][:, 0, ...], slices[1][:, 0, ...])
        totals = (
            [old + new for old, new in zip(totals, (products, sizes), strict=True)] if totals else [products, sizes]
        )
    # Four more: the bound is rounded itself, and so are the ends of the range.
    error = totals[1] * gamma(longest + added + 4)
    first = some[0].of_w[0].start or 0
    unsure = Correlations(backend, geometry, problem.powers, problem.of_a, problem.of_b, first, error)
    return unsure.put(target, totals[0], exponents, None)


def _chunks(shares: Shares, grads: Operand, cells: Operand) -> Iterator[tuple[Geometry, int, tuple[Operand, Operand]]]:
    """One call after the other: its convolution, into how many chunks its samples are cut, and its operands."""
    count = shares.samples
    for first, end in shares.calls:
        samples = slice(first * count, end * count)
        for part in shares.rows:
            own = replace(part.geometry, batch=count * (end - first))
            index = (samples, *part.of_out[1:]), (samples, *part.of_x[1:])
            yield own, end - first, (_of(grads, index[0]), _of(cells, index[1]))


def _added(problem: Problem, held: list[list[Array]], sums: list[list[Array]]) -> list[list[Array]]:
    """Add the sums of chunks, by weight, to limbs, of which there is one more."""
    backend, width, found = problem.backend, problem.own.width, []
    for part, own in enumerate(sums):
        limbs = carried(backend, [*own, backend.xp.zeros_like(own[0])], width)
        limbs = [backend.xp.sum(limb, axis=0) for limb in limbs]
        limbs = [old + new for old, new in zip(held[part], limbs, strict=True)] if held else limbs
        found.append(carried(backend, limbs, width))
    return found
