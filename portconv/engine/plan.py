"""How a product is computed, decided before an array is looked at and remembered.

What computes a product, what explains it and what bounds its error read the same plan: `of` makes it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .. import limits
from ..algorithms.algorithm import Algorithm, remembered
from ..algorithms.choice import SLICED, Choice, Explanation, Problem, choose, explanation
from ..algorithms.choice import named as algorithm_named
from ..backends import Array, Backend
from ..errors import ConvValueError
from ..passes.arithmetic import Arithmetic
from ..passes.padding import most_terms
from ..passes.partition import Copies, Part, parts, whole
from ..spec.dtypes import HALVES, KINDS, Dtype, named
from ..spec.geometry import Geometry
from ..spec.operation import Kind, Operation, Role, changed
from .late import reproducible

SLICES = 4
"""How many times as much memory a reproducible call may take: its operands are several, in float64."""


class Given(NamedTuple):
    """What a plan needs to know of an operand.

    Attributes
    ----------
    dtype : dtype
    in_order : bool
        Whether it lies in memory in an order that suits products; if not, it is copied first.
    """

    dtype: Any
    in_order: bool = True


class Plan(NamedTuple):
    """How one of the three products is computed on arrays of a backend.

    Attributes
    ----------
    operation : Operation
    backend : Backend
    arithmetic : Arithmetic
    given : tuple of Given
        What it needs to know of the two operands.
    copies : Copies
        The bytes that the whole product takes for copies of its operands and its result.
    workspace : int
        The bytes of workspace that an algorithm may take, a thread.
    limited : bool
        Whether the user has set a limit, which nothing may exceed.
    in_slices : bool
        Whether operands are cut into slices, so that the bits are the same everywhere; integers are exact without.
    precision : str
        The precision that the library is held to.
    parts : tuple of (Part, Choice)
        What the product is cut into, and the algorithm that serves each part.
    bare : bool
        Whether one algorithm takes the operands as they are, and what it returns is the result but for a bias.
    """

    operation: Operation
    backend: Backend
    arithmetic: Arithmetic
    given: tuple[Given, Given]
    copies: Copies
    workspace: int
    limited: bool
    in_slices: bool
    precision: str
    parts: tuple[tuple[Part, Choice], ...] = ()
    bare: bool = False

    @property
    def largest(self) -> tuple[Part, Choice]:
        """The part with the most work, and its algorithm."""
        return max(self.parts, key=lambda planned: planned[0].geometry.operations)

    @property
    def algorithm(self) -> str:
        """The name of the algorithm that computes the largest part."""
        return self.largest[1].algorithm.name

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """The algorithms of all parts, each once."""
        return tuple(dict.fromkeys(choice.algorithm for _, choice in self.parts))

    def asked(self, geometry: Geometry) -> tuple[Geometry, Dtype]:
        """Return the convolution that an algorithm computes for a part, and the dtype that it computes in."""
        if not self.in_slices:
            return geometry.extended, self.arithmetic.computed_in(self.backend)
        kind, dtype = self.operation.kind, self.operation.dtype
        slicing = reproducible("slicing")
        return slicing.in_slices(geometry, slicing.slots(self.backend, geometry, kind, dtype)).extended, self.sliced

    @property
    def sliced(self) -> Dtype:
        """The dtype that slices are multiplied in."""
        return Dtype(self.backend.dtype("float64"), self.operation.dtype, SLICED)

    def choose(self, geometry: Geometry, dtype: Dtype) -> Choice:
        """Choose the algorithm for a convolution that is computed in that dtype."""
        problem = Problem(self.operation.kind, geometry, dtype, self.backend)
        return choose(problem, self.operation.algorithm, self.workspace, self.limited)

    def choose_for_slices(self, geometry: Geometry) -> Choice:
        """Choose the algorithm for a convolution of slices."""
        return self.choose(geometry, self.sliced)

    def explain(self) -> Explanation:
        """Say which algorithm computes the largest part, in what blocks and memory, and what the others would cost."""
        part, choice = self.largest
        copies = _copies(changed(self.operation, geometry=part.geometry), self.backend, self.arithmetic, self.given)
        size = copies.bytes(part.geometry, cut=len(self.parts) > 1)
        if self.in_slices:
            size += limits.reproducible_block_bytes(self.backend.block_bytes, limits.workspace())
        return explanation(choice, size)


def of(operation: Operation, backend: Backend, a: Array, b: Array) -> Plan:
    """Return the plan of a product, for operands such as `a` and `b`, as the caller has them.

    Raises
    ------
    ConvValueError
        If the algorithm that was asked for cannot serve, or nothing can do with as little memory as the limit leaves.
    """
    return of_given(operation, backend, given(operation, backend, a, b), a)


def given(operation: Operation, backend: Backend, a: Array, b: Array) -> tuple[Given, Given]:
    """Return what a plan needs to know of two operands, as the caller has them."""
    batched = not operation.unbatched
    return (
        Given(a.dtype, backend.in_order(a, batched)),
        Given(b.dtype, backend.in_order(b, batched and operation.kind == Kind.WEIGHT_GRAD)),
    )


def of_given(operation: Operation, backend: Backend, operands: tuple[Given, Given], like: Array) -> Plan:
    """Return the plan of a product, for operands that are described, on the device of `like`."""
    return _planned(operation, backend, operands, limits.workspace(), backend.default_workspace(like))


def uses_slices(operation: Operation) -> bool:
    """Return whether an operation is reproducible by slices: integers are exact without them."""
    return operation.precision == "reproducible" and KINDS[operation.dtype] != "integral"


def held_precision(operation: Operation) -> str:
    """Return the precision that the library is held to: integers stay exact, whatever floating point may do."""
    return "standard" if KINDS[operation.dtype] == "integral" else operation.precision


@remembered(1024)
def _planned(
    operation: Operation, backend: Backend, operands: tuple[Given, Given], limit: int | None, default: int
) -> Plan:
    a, b = operands
    if not (a.in_order and b.in_order):
        try:
            return _plan(operation, backend, operands, limit, default)
        except ConvValueError:
            # To put an operand in order only saves time. Where there is no memory for that, it stays as it is.
            a, b = Given(a.dtype), Given(b.dtype)
    return _plan(operation, backend, (a, b), limit, default)


def _plan(
    operation: Operation, backend: Backend, operands: tuple[Given, Given], limit: int | None, default: int
) -> Plan:
    geometry = operation.geometry
    asked = algorithm_named(operation.algorithm)
    arithmetic = Arithmetic(
        named(backend, operation.dtype), most_terms(geometry, operation.kind), asked is None or asked.slices_integers
    )
    copies = _copies(operation, backend, arithmetic, operands)
    bare = Plan(
        *(operation, backend, arithmetic, operands, copies, 0, limit is not None),
        uses_slices(operation),
        held_precision(operation),
    )

    most, ordered = default * (SLICES if bare.in_slices else 1), all(one.in_order for one in operands)

    def workspace(limit: int | None) -> int:
        return _workspace(bare, limit or most, limit)

    cut = parts(geometry, operation.kind, copies, workspace(limit))
    if cut is None and (limit is not None or not ordered):
        limit = limit or most
        least = _least(lambda more: parts(geometry, operation.kind, copies, workspace(more)) is not None, limit)
        raise ConvValueError(
            f"workspace_limit: got {limit} bytes, expected at least {least}, for copies of a sample, or of some rows "
            "of one, and of some filters, and as much again"
        )
    plan = bare._replace(workspace=workspace(limit))
    if not ordered and cut is not None and len(cut) == 1:
        # What the copies leave, so that an algorithm has nearly as much as it has for operands in order.
        plan = plan._replace(workspace=max(plan.workspace, (limit or most) - copies.bytes(geometry, cut=False)))
    planned = tuple((part, plan.choose(*plan.asked(part.geometry))) for part in cut or (whole(geometry),))
    own = all(one == Given(arithmetic.dtype.dtype) for one in operands)
    return plan._replace(parts=planned, bare=own and not copies and len(planned) == 1)


def _workspace(plan: Plan, most: int, limit: int | None) -> int:
    """Return the bytes for copies, where there are any, and as many for an algorithm's workspaces."""
    if plan.in_slices:
        most -= limits.reproducible_block_bytes(plan.backend.block_bytes, limit)
    return most // 2 if plan.copies else most


def _copies(operation: Operation, backend: Backend, arithmetic: Arithmetic, given: tuple[Given, Given]) -> Copies:
    """Count the bytes of copies that a product makes before and after an algorithm works on it."""
    kind, geometry = operation.kind, operation.geometry
    size = backend.bits(arithmetic.dtype.dtype) // 8
    operands, result, wide = _copied(operation, backend, arithmetic, given)
    elements = {role: math.prod(geometry.shape(role)[role != Role.W :]) for role in (Role.X, Role.W, Role.OUT)}
    copied = dict(zip(kind.operands, operands, strict=True)) | {kind.result: result}
    sample = sum(elements[role] * copied[role] for role in (Role.X, Role.OUT))
    if geometry.extended is not geometry:
        sample += geometry.in_channels * math.prod(geometry.padded) * max(wide, size)
    filters = elements[Role.W] * copied[Role.W]
    # A part's own result, before it is put where it belongs; of filters, what it is added to as well.
    if kind == Kind.WEIGHT_GRAD:
        return Copies(sample, filters, 0, 2 * elements[Role.W] * wide)
    return Copies(sample, filters, elements[kind.result] * size, 0)


def _copied(
    operation: Operation, backend: Backend, arithmetic: Arithmetic, given: tuple[Given, Given]
) -> tuple[list[int], int, int]:
    """Return the bytes of copies for each element of the operands and of the result, and of one as it is computed."""
    dtype, computed = arithmetic.dtype, arithmetic.computed_in(backend).dtype
    size, wide = backend.bits(dtype.dtype) // 8, backend.bits(computed) // 8
    ordered = [0 if one.in_order else backend.bits(one.dtype) // 8 for one in given]
    if uses_slices(operation):
        # Slices and their products are in float64.
        number = 8 * reproducible("slicing").slots(backend, operation.geometry, operation.kind, operation.dtype)
        return [more + number for more in ordered], number, number
    if dtype.kind != "integral":
        # A copy that puts an operand in order has the byte order of the machine.
        own = [one.dtype if one.in_order else backend.native(one.dtype) for one in given]
        conjugates = (dtype.kind == "complex floating" and each for each in operation.conjugated)
        both = zip(ordered, own, conjugates, strict=True)
        operands = [more + (wide if copied or one != computed else 0) for more, one, copied in both]
        return operands, wide if dtype.name in HALVES else 0, wide
    if not arithmetic.slices:
        return [more + size for more in ordered], size, wide
    # An integer as it was given, its slices as they are cut, of at least 8 bits each, and as they are multiplied.
    most = -(-(8 * size + 1) // 8)
    return [more + size + most * (wide + 2 * size) for more in ordered], 3 * wide + 3 * size, wide


def _least(enough: Any, limit: int) -> int:
    """Return the smallest limit beyond `limit` that is enough."""
    low, high = limit, 2 * limit
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
