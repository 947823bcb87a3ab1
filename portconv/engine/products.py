"""The three products of a convolution: one trilinear form, computed by one function, by role.

Algorithms know batches of one floating-point dtype, channels first, padded with zeros. The passes bring what else there
is into that form, and the result back from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

from ..algorithms.choice import Choice
from ..backends import Array, Backend
from ..passes.casts import conjugate, narrow, with_bias
from ..passes.gathering import comb, put, take
from ..passes.layout import as_given, canonical, reordered
from ..passes.padding import extend, filled_rows, fold
from ..passes.part import EVERY, Part, Slices, whole
from ..spec.operation import Kind, Operation, Role
from ..spec.ranges import ALL
from . import plan as plans
from .late import reproducible
from .plan import Plan, has_no_terms


def product(operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Compute one of the three products of arrays as the caller has them: two operands, and a bias or none."""
    plan = plans.of(operation, backend, operands[0], operands[1])
    with backend.during_call(operands[0], plan.precision):
        result = _by_plan(plan, *_canonical(operation, backend, operands))
        if not operation.is_canonical:
            result = as_given(operation, backend, operation.result, result)
    return result


def _canonical(operation: Operation, backend: Backend, operands: tuple[Array, ...]) -> tuple[Array, ...]:
    """Bring operands into the layout that algorithms know."""
    if operation.is_canonical:
        return operands
    roles = (*operation.kind.operands, Role.B)
    return tuple(canonical(operation, backend, role, array) for role, array in zip(roles, operands, strict=False))


def _by_plan(plan: Plan, *operands: Array) -> Array:
    """Compute a product of canonical arrays: exactly, in one part or in several."""
    if plan.bare is not None:
        return _bare(plan, plan.bare, *operands)
    if has_no_terms(plan.operation):
        return plan.backend.zeroed(_empty(plan, operands[0]))
    if plan.in_slices:
        return _reproducible(plan, *operands)
    if plan.is_cut:
        return _in_parts(plan, *operands)
    result = _part(plan, whole(plan.geometry), operands)
    return result if plan.operation.result_dtype == plan.operation.dtype else _narrow(plan, result)


def _bare(plan: Plan, choice: Choice, a: Array, b: Array, bias: Array | None = None) -> Array:
    """Compute a product of operands that an algorithm takes as they are: small calls spend their time in Python."""
    operation, backend = plan.operation, plan.backend
    if operation.kind == Kind.WEIGHT_GRAD:
        return choice.compute(operation.kind, operation.geometry, backend, a, b)
    bias = None if bias is None else backend.astype(bias, plan.arithmetic.dtype.dtype)
    if operation.kind == Kind.FORWARD:
        return choice.compute(operation.kind, operation.geometry, backend, a, b, bias)
    return with_bias(backend, choice.compute(operation.kind, operation.geometry, backend, a, b), bias)


def _in_parts(plan: Plan, *operands: Array) -> Array:
    """Compute each part, and put it where it belongs."""
    backend, kind = plan.backend, plan.operation.kind
    result = _empty(plan, operands[0])
    if plan.scatters:
        result = backend.zeroed(result)
        for bias in operands[2:]:
            shape = (1, -1, *(1,) * (result.ndim - 2))
            result = backend.write(result, (...,), backend.xp.reshape(_narrow(plan, bias), shape))
    if kind == Kind.WEIGHT_GRAD and plan.arithmetic.dtype.kind != "integral":
        # Parts that add up to a gradient of filters are rounded at the end, as in one sum.
        wide = plan.arithmetic.computed_in(backend)
        plan = plan._replace(arithmetic=plan.arithmetic._replace(dtype=wide))
    for at, same in groupby(plan.parts, key=lambda part: part.at(kind.result)):
        total: Array = None
        for part in same:
            value = _part(plan, part, operands)
            total = value if total is None else backend.add(total, (...,), value)
            del value  # or the next part's would be one more
        total = _narrow(plan, total)
        if plan.scatters:
            result = put(plan.operation.geometry, backend, result, at, total)
        else:
            result = backend.write(result, (*at, ...), total)
    return result


def _empty(plan: Plan, like: Array) -> Array:
    """Return an array for a result of any contents."""
    operation, backend = plan.operation, plan.backend
    last = operation.geometry.channels_last and operation.kind != Kind.WEIGHT_GRAD
    shape, dtype = operation.geometry.shape(operation.result), backend.dtype(operation.result_dtype)
    return backend.empty(shape, like, last=last, dtype=dtype)


def _narrow(plan: Plan, result: Array) -> Array:
    """Round a result, or a part of one, to its dtype."""
    return narrow(plan.backend, result, plan.backend.dtype(plan.operation.result_dtype))


def _part(plan: Plan, part: Part, operands: tuple[Array, ...]) -> Array:
    """Compute one part: put in order, conjugate, cast, fill and later fold the padding, multiply, add a bias, cast."""
    kind, backend, geometry = plan.operation.kind, plan.backend, part.geometry
    choice = plan.choice(geometry)
    ordered = _in_order(plan, tuple(_operands_of(plan, part, operands)))
    if geometry.mode == "constant":  # a number as the input is given: it is conjugated, cast and cut as the cells are
        place = kind.operands.index(Role.X)
        ordered[place], geometry = extend(geometry, backend, ordered[place]), geometry.extended
    a, b, *bias = ordered
    if plan.operation.is_complex:
        a, b = (
            conjugate(backend, array) if conjugated else array
            for array, conjugated in zip((a, b), plan.operation.conjugated, strict=True)
        )

    def multiply(a: Array, b: Array, bias: Array | None) -> Array:
        if kind == Kind.FORWARD:
            return choice.compute(kind, geometry.extended, backend, extend(geometry, backend, a), b, bias)
        if kind == Kind.WEIGHT_GRAD:
            return choice.compute(kind, geometry.extended, backend, a, extend(geometry, backend, b))
        grad = choice.compute(kind, geometry.extended, backend, a, b)
        return with_bias(backend, fold(geometry, backend, grad), bias)

    # The gradient of filled padding is added to that of the cells it is filled from, before it is rounded.
    folds = kind == Kind.INPUT_GRAD and geometry.extended is not geometry
    # So is the sum that a bias is added to here, but for a library's own, which may round both.
    adds = kind == Kind.INPUT_GRAD and bool(bias) and not choice.algorithm.rounds_sums
    widens = folds or adds or choice.algorithm.widens_halves
    return plan.arithmetic.compute(backend, multiply, widens, a, b, *bias)


def _operands_of(plan: Plan, part: Part, operands: tuple[Array, ...]) -> Iterator[Array]:
    """Cut a part out of the operands of a product; of a bias, the channels that the part computes."""
    kind = plan.operation.kind
    for role, array in zip((*kind.operands, Role.B), operands, strict=False):
        at = part.at(kind.result)[1:2] if role == Role.B else part.at(role)
        if role == Role.X and (dim := plan.parts.filled_dim) is not None:
            rows = at[2 + dim]
            array = filled_rows(plan.geometry, plan.backend, array[(*at[:2], ...)], dim, (rows.start, rows.stop))
            at = (*EVERY, *(ALL,) * dim, slice(0, rows.stop - rows.start))
        if part.combs and role == kind.read:
            sizes = plan.geometry.out if role == Role.OUT else plan.geometry.size
            yield comb(part, plan.backend, sizes, at, partial(_cells, plan, role, array))
        else:
            yield _cells(plan, role, array, at)


def _cells(plan: Plan, role: Role, array: Array, at: Slices) -> Array:
    """Return some cells of an operand; of the input, of those that windows read."""
    if role == Role.X and plan.gathers:
        return take(plan.operation.geometry, plan.backend, array, at)
    return array if at is EVERY else array[(*at, ...)]


def _in_order(plan: Plan, operands: tuple[Array, ...]) -> list[Array]:
    """Return operands in an order that suits products, copied where they are not, and a bias as it is."""
    roles = plan.operation.kind.operands
    pairs = zip(operands, plan.given, roles, strict=False)
    ordered = [
        array if given.in_order else reordered(plan.operation, plan.backend, role, array)
        for array, given, role in pairs
    ]
    return [*ordered, *operands[2:]]


def _reproducible(plan: Plan, *operands: Array) -> Array:
    """Compute a product whose bits are the same everywhere."""
    if len(plan.parts) == 1:
        ordered = tuple(_in_order(plan, operands))
        for array, copy in zip(operands, ordered, strict=True):
            reproducible("magnitudes").remember_copy(array, copy)
        operands = ordered
    with plan.backend.quiet():
        return reproducible("product").product(
            plan.operation, plan.backend, plan.choose_for_slices, plan.parts, operands
        )


def weight_sums(operation: Operation, backend: Backend, parts: Sequence[Part], dout: Array, x: Array) -> Array:
    """Sum exactly what some samples and positions add to a reproducible gradient of filters.

    `parts` are small enough for their sums to be exact; `reproducible.weight_grad` says how the sums are rounded.
    """
    plan = plans.of(operation, backend, dout, x)
    operands = (canonical(operation, backend, Role.OUT, dout), canonical(operation, backend, Role.X, x))
    with backend.during_call(dout, plan.precision), backend.quiet():
        sums = reproducible("weight_grad").weight_sums
        return sums(operation, backend, plan.choose_for_slices, parts, operands)
