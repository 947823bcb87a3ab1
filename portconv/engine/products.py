"""The three products of a convolution: one trilinear form, computed by one function, by role.

Algorithms know batches of one floating-point dtype, channels first, padded with zeros. The passes bring what else there
is into that form, and the result back from it.
"""

from __future__ import annotations

from ..algorithms.choice import Choice
from ..backends import Array, Backend
from ..passes.casts import conjugate, narrow, with_bias
from ..passes.layout import as_given, canonical, reordered
from ..passes.padding import extend, fold
from ..passes.partition import Part, place
from ..spec.operation import Kind, Operation, Role
from . import plan as plans
from .late import reproducible
from .plan import Plan


def product(operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Compute one of the three products of arrays as the caller has them: two operands, and a bias or none."""
    plan = plans.of(operation, backend, operands[0], operands[1])
    with backend.during_call(operands[0], plan.precision):
        result = _by_plan(plan, *_canonical(operation, backend, operands))
        if not operation.is_canonical:
            result = as_given(operation, backend, operation.result, result)
    if operation.result_dtype == operation.dtype:
        return result
    return narrow(backend, result, backend.dtype(operation.result_dtype))


def _canonical(operation: Operation, backend: Backend, operands: tuple[Array, ...]) -> tuple[Array, ...]:
    """Bring operands into the layout that algorithms know."""
    if operation.is_canonical:
        return operands
    roles = (*operation.kind.operands, Role.B)
    return tuple(canonical(operation, backend, role, array) for role, array in zip(roles, operands, strict=False))


def _by_plan(plan: Plan, *operands: Array) -> Array:
    """Compute a product of canonical arrays: exactly, in one part or in several."""
    if plan.bare:
        return _bare(plan, *operands)
    if plan.in_slices:
        return _reproducible(plan, *operands)
    return _part(plan, *plan.parts[0], operands) if len(plan.parts) == 1 else _in_parts(plan, *operands)


def _in_parts(plan: Plan, *operands: Array) -> Array:
    """Compute each part, and put it where it belongs."""
    operation, backend = plan.operation, plan.backend
    kind, geometry, arithmetic = operation.kind, operation.geometry, plan.arithmetic
    # Parts that add up to a gradient of filters are rounded at the end, as in one sum.
    wide = arithmetic.computed_in(backend) if kind == Kind.WEIGHT_GRAD else arithmetic.dtype
    if arithmetic.dtype.kind == "integral":
        wide = arithmetic.dtype
    plan = plan._replace(arithmetic=arithmetic._replace(dtype=wide))
    result = backend.empty(
        geometry.shape(operation.result),
        operands[0],
        last=geometry.channels_last and kind != Kind.WEIGHT_GRAD,
        dtype=wide.dtype,
    )
    begun: set[tuple[int, ...]] = set()
    for part, choice in plan.parts:
        value = _part(plan, part, choice, part.operands(kind, operands))
        result = place(backend, result, part.at(kind.result), value, begun)
        del value  # or the next part's would be one more
    return backend.astype(result, arithmetic.dtype.dtype)


def _bare(plan: Plan, a: Array, b: Array, bias: Array | None = None) -> Array:
    """Compute a product of operands that an algorithm takes as they are: small calls spend their time in Python."""
    operation, backend, (_, choice) = plan.operation, plan.backend, plan.parts[0]
    if operation.kind == Kind.WEIGHT_GRAD:
        return choice.compute(operation.kind, operation.geometry, backend, a, b)
    bias = None if bias is None else backend.astype(bias, plan.arithmetic.dtype.dtype)
    if operation.kind == Kind.FORWARD:
        return choice.compute(operation.kind, operation.geometry, backend, a, b, bias)
    return with_bias(backend, choice.compute(operation.kind, operation.geometry, backend, a, b), bias)


def _part(plan: Plan, part: Part, choice: Choice, operands: tuple[Array, ...]) -> Array:
    """Compute one part: put in order, conjugate, cast, fill and later fold the padding, multiply, add a bias, cast."""
    kind, backend, geometry = plan.operation.kind, plan.backend, part.geometry
    a, b, *bias = _in_order(plan, operands)
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

    return plan.arithmetic.compute(backend, multiply, a, b, *bias)


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
    parts = tuple(part for part, _ in plan.parts)
    if len(parts) == 1:
        ordered = tuple(_in_order(plan, operands))
        for array, copy in zip(operands, ordered, strict=True):
            reproducible("magnitudes").remember_copy(array, copy)
        operands = ordered
    with plan.backend.quiet():
        return reproducible("product").product(plan.operation, plan.backend, plan.choose_for_slices, parts, operands)


def weight_sums(operation: Operation, backend: Backend, parts: tuple[Part, ...], dout: Array, x: Array) -> Array:
    """Sum exactly what some samples and positions add to a reproducible gradient of filters.

    `parts` are small enough for their sums to be exact; `reproducible.weight_grad` says how the sums are rounded.
    """
    plan = plans.of(operation, backend, dout, x)
    operands = (canonical(operation, backend, Role.OUT, dout), canonical(operation, backend, Role.X, x))
    with backend.during_call(dout, plan.precision), backend.quiet():
        sums = reproducible("weight_grad").weight_sums
        return sums(operation, backend, plan.choose_for_slices, parts, operands)
