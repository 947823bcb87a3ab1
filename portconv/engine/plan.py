"""How a product is computed, decided before an array is looked at and remembered.

What computes a product, what explains it and what bounds its error read the same plan: `of` makes it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from .. import limits
from ..algorithms.algorithm import Algorithm
from ..algorithms.choice import (
    AUTO,
    PLAIN,
    SLICED,
    WHOLE,
    Choice,
    Explanation,
    Problem,
    choose,
    explanation,
    integer_bits,
    objection,
    refusal,
)
from ..algorithms.choice import named as algorithm_named
from ..backends import Array, Backend
from ..errors import ConvValueError
from ..passes.arithmetic import Arithmetic
from ..passes.gathering import gathered, is_copied
from ..passes.padding import most_terms
from ..passes.partition import Bytes, Copies, Parts, parts, whole_of
from ..spec.dtypes import HALVES, KINDS, Dtype, named
from ..spec.geometry import Geometry
from ..spec.operation import Kind, Operation, Role, changed
from ..spec.remembered import remembered
from .given import Operands, given, in_rows, ordered
from .late import reproducible

SLICES = 4
"""How many times as much memory a reproducible call may take: its operands are several, in float64."""

GROWTH, CLOSE = 8, 256
"""To find the least limit that is enough, limits are tried that grow by this factor, and then others between them,
until that least is known to one part in so many."""


class Device(NamedTuple):
    """The kind of device that the arrays are on, and the bytes of workspace that a call may take there by default."""

    kind: str
    workspace: int


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
        The bytes that the product takes for copies of its operands and its result.
    geometry : Geometry
        The convolution that parts are cut from: where copies are made, that of the cells that windows read.
    workspace : int
        The bytes of workspace that an algorithm may take, a thread.
    limited : bool
        Whether the user has set a limit, which nothing may exceed.
    in_slices : bool
        Whether operands are cut into slices, so that the bits are the same everywhere; integers are exact without.
    precision : str
        The precision that the library is held to.
    parts : Parts
        What the product is cut into.
    device : Device
    choices : dict of Geometry to Choice
        The algorithm that serves each part, by its geometry.
    bare : Choice or None
        The one algorithm, where it takes the operands as they are, and what it returns is the result but for a bias.
    """

    operation: Operation
    backend: Backend
    arithmetic: Arithmetic
    given: Operands
    copies: Copies
    geometry: Geometry
    workspace: int
    limited: bool
    in_slices: bool
    precision: str
    parts: Parts
    device: Device
    choices: dict[Geometry, Choice]
    bare: Choice | None = None

    @property
    def largest(self) -> tuple[Geometry, Choice]:
        """The geometry of the part with the most work, and its algorithm."""
        return max(self.choices.items(), key=lambda planned: planned[0].operations)

    @property
    def algorithm(self) -> str:
        """The name of the algorithm that computes the largest part."""
        return self.largest[1].algorithm.name

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """The algorithms of all parts, each once."""
        return tuple(dict.fromkeys(choice.algorithm for choice in self.choices.values()))

    @property
    def is_cut(self) -> bool:
        """Whether results are put where they belong in a result of their own."""
        return len(self.parts) > 1 or self.scatters

    @property
    def scatters(self) -> bool:
        """Whether the result is an input gradient, of which windows do not reach all cells."""
        return self.gathers and self.operation.kind == Kind.INPUT_GRAD

    @property
    def gathers(self) -> bool:
        """Whether only cells that windows read are copied."""
        return self.geometry is not self.operation.geometry

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
        name = self.operation.algorithm
        problem = Problem(self.operation.kind, geometry, dtype, self.backend, self.device.kind)
        if name == AUTO and self.arithmetic.integer_bits:
            name = WHOLE
        elif name == AUTO and self.gathers:
            name = PLAIN  # the others may serve what is gathered, but not the call itself
        return choose(problem, name, self.workspace, self.limited)

    def choice(self, geometry: Geometry) -> Choice:
        """Return the algorithm of a part."""
        return self.choices.get(geometry) or self.choose(*self.asked(geometry))

    def choose_for_slices(self, geometry: Geometry) -> Choice:
        """Choose the algorithm for a convolution of slices."""
        return self.choose(geometry, self.sliced)

    def explain(self) -> Explanation:
        """Say which algorithm computes the largest part, in what blocks and memory, and what the others would cost."""
        geometry, choice = self.largest
        size = self.copies.bytes(geometry, self.is_cut, self.parts.combed)
        if self.in_slices:
            size += limits.reproducible_block_bytes(self.backend.block_bytes, limits.workspace())
        limit = limits.workspace() or self.workspace

        def least(name: str) -> int | None:
            operation = changed(self.operation, algorithm=name)
            return _least_limit(operation, self.backend, ordered(self.given), self.device, limit)

        return explanation(choice, size, least)


def of(operation: Operation, backend: Backend, a: Array, b: Array) -> Plan:
    """Return the plan of a product, for operands such as `a` and `b`, as the caller has them.

    Raises
    ------
    ConvValueError
        If the algorithm that was asked for cannot serve, or nothing can do with as little memory as the limit leaves.
    """
    return of_given(operation, backend, given(operation, backend, a, b), a)


def of_given(operation: Operation, backend: Backend, operands: Operands, like: Array) -> Plan:
    """Return the plan of a product, for operands that are described, on the device of `like`."""
    device = Device(backend.device_kind(like), backend.default_workspace(like))
    return _planned(operation, backend, operands, device, limits.workspace())


def uses_slices(operation: Operation) -> bool:
    """Return whether an operation is reproducible by slices: integers are exact without them."""
    return operation.precision == "reproducible" and KINDS[operation.dtype] != "integral"


def held_precision(operation: Operation) -> str:
    """Return the precision that the library is held to: integers stay exact, whatever floating point may do."""
    return "standard" if KINDS[operation.dtype] == "integral" else operation.precision


def has_no_terms(operation: Operation) -> bool:
    """Return whether a product has no element, or only sums of no term."""
    geometry = operation.geometry
    return not geometry.batch or (operation.kind == Kind.INPUT_GRAD and 0 in geometry.size)


@remembered(lambda plan: len(plan.choices))
def _planned(operation: Operation, backend: Backend, operands: Operands, device: Device, limit: int | None) -> Plan:
    plan, rows = _as_they_lie(operation, backend, operands, device, limit), in_rows(operands)
    if rows == plan.given or not any(algorithm.takes_rows for algorithm in plan.algorithms):
        return plan
    if operation.algorithm != AUTO or _serves(operation, backend, rows, device, limit):
        return _within(operation, backend, rows, device, limit)
    return _as_they_lie(changed(operation, algorithm=PLAIN), backend, operands, device, limit)


def _as_they_lie(operation: Operation, backend: Backend, operands: Operands, device: Device, limit: int | None) -> Plan:
    """Plan a product of operands that are copied only where their order is slow, if there is memory for that."""
    if ordered(operands) != operands:
        try:
            return _attempt(operation, backend, operands, device, limit)
        except ConvValueError:
            # To put an operand in order only saves time. Where there is no memory for that, it stays as it is.
            operands = ordered(operands)
    return _within(operation, backend, operands, device, limit)


def _within(operation: Operation, backend: Backend, operands: Operands, device: Device, limit: int | None) -> Plan:
    """Plan a product, or raise an error that names a limit which is enough."""
    try:
        return _attempt(operation, backend, operands, device, limit)
    except ConvValueError:
        least = None if limit is None else _least_limit(operation, backend, operands, device, limit)
        if least is None:
            raise
    name = operation.algorithm
    if name != AUTO and _serves(changed(operation, algorithm=AUTO), backend, operands, device, limit):
        raise ConvValueError(
            f"algorithm: got {name!r} under a workspace_limit of {limit} bytes, expected 'auto', or a workspace_limit "
            f"of at least {least} bytes, which {name!r} needs for this call"
        )
    raise ConvValueError(
        f"workspace_limit: got {limit} bytes, expected at least {least}, which this call needs"
        f"{'' if name in (AUTO, PLAIN) else f' by {name!r}'}"
    )


def _attempt(operation: Operation, backend: Backend, operands: Operands, device: Device, limit: int | None) -> Plan:
    """Make a plan; raise a ConvValueError if no algorithm serves, or the limit is too small."""
    bits = 0
    if KINDS[operation.dtype] == "integral":
        bits = integer_bits(operation.algorithm, backend.bits(backend.dtype(operation.dtype)))
    if bits and operation.algorithm == AUTO:
        with suppress(ConvValueError):
            return _attempt_in(bits, operation, backend, operands, device, limit)
        bits = 0
    return _attempt_in(bits, operation, backend, operands, device, limit)


def _attempt_in(
    integer_bits: int, operation: Operation, backend: Backend, operands: Operands, device: Device, limit: int | None
) -> Plan:
    """Do what `_attempt` does; integers are multiplied as they are in so many bits, or with 0 in slices."""
    kind, geometry = operation.kind, operation.geometry
    asked, slices = algorithm_named(operation.algorithm), uses_slices(operation)
    is_ordered = ordered(operands) == operands
    terms = most_terms(geometry, kind)
    arithmetic = Arithmetic(named(backend, operation.dtype), terms, integer_bits)
    copies = _copies(operation, backend, arithmetic, operands)
    plan = Plan(
        *(operation, backend, arithmetic, operands, copies, geometry, 0),
        *(limit is not None, slices, held_precision(operation), whole_of(geometry, kind), device, {}),
    )
    if asked is not None:
        problem = Problem(kind, *plan.asked(geometry), backend, device.kind)
        if (why_not := objection(asked, problem)) is not None:
            raise refusal(problem, asked.name, 0, why_not)
    if copies and not slices:
        geometry = gathered(geometry)
        copies = _copies(changed(operation, geometry=geometry), backend, arithmetic, operands)
    all_in_all = limit or device.workspace * (SLICES if slices else 1)
    if slices:
        all_in_all -= limits.reproducible_block_bytes(backend.block_bytes, limit)
    # Copies and an algorithm's workspaces take half each.
    most = all_in_all // 2 if copies else all_in_all

    def cut_to(most: int) -> Parts | None:
        return parts(geometry, kind, copies, most, gathers=not slices)

    cut = cut_to(most)
    if cut is None and limit is None and is_ordered:
        cut = cut_to(_least(lambda more: cut_to(more) is not None, most))
    if cut is None:
        raise ConvValueError(f"workspace_limit: got {limit} bytes, expected more, for copies of operands")
    if not is_ordered and len(cut) == 1:
        # What the copies leave, so that an algorithm has nearly as much as it has for operands in order.
        most = max(most, all_in_all - copies.bytes(geometry, cut=False))
    plan = plan._replace(copies=copies, geometry=geometry, workspace=most, parts=cut)
    plan = plan._replace(choices={each: plan.choose(*plan.asked(each)) for each in cut.geometries()})
    own = arithmetic.dtype.dtype
    as_they_are = all(one.dtype == own and one.in_order for one in operands)
    as_they_are = as_they_are and operation.result_dtype == operation.dtype
    is_bare = as_they_are and not (copies or slices or plan.is_cut or has_no_terms(operation))
    return plan._replace(bare=plan.largest[1] if is_bare else None)


def _serves(operation: Operation, backend: Backend, operands: Operands, device: Device, limit: int | None) -> bool:
    """Return whether a limit is enough for a product."""
    try:
        _attempt(operation, backend, operands, device, limit)
    except ConvValueError:
        return False
    return True


def _least_limit(operation: Operation, backend: Backend, operands: Operands, device: Device, limit: int) -> int | None:
    """Return a limit beyond `limit` that is enough, and little more than the least; None if none is enough."""
    least = _enough(operation, backend, operands, device, 1)
    # A plan may fit under a limit and none under a larger one, whose parts are larger.
    return least if least is None or least > limit else _enough(operation, backend, operands, device, limit)


@remembered()
def _enough(operation: Operation, backend: Backend, operands: Operands, device: Device, limit: int) -> int | None:
    """Return what `_least_limit` does, by trying."""
    if not _serves(operation, backend, operands, device, sys.maxsize):
        return None
    return _least(lambda more: _serves(operation, backend, operands, device, more), limit)


def _copies(operation: Operation, backend: Backend, arithmetic: Arithmetic, given: Operands) -> Copies:
    """Count the bytes of copies that a product makes before and after an algorithm works on it, for each element."""
    if has_no_terms(operation):
        return Copies()
    kind, geometry = operation.kind, operation.geometry
    size = backend.bits(arithmetic.dtype.dtype) // 8
    operands, result, wide = _copied(operation, backend, arithmetic, given)
    # The result before it is rounded to a dtype of its own.
    narrow = backend.bits(backend.dtype(operation.result_dtype)) // 8
    is_narrowed = operation.result_dtype != operation.dtype and not uses_slices(operation)
    each: dict[str, int] = dict(zip(kind.operands, operands, strict=True))
    of_read = backend.bits(given[kind.operands.index(kind.read)].dtype) // 8
    each[kind.result] = result + size * is_narrowed
    if is_copied(geometry) and Role.X in kind.operands:
        each[Role.X] += of_read
    if geometry.extended is not geometry:  # all copies of an input padded with a constant are of the padded one
        each["padded"] = each[Role.X] + of_read if geometry.mode == "constant" else max(wide, size)
    # A part's own result, before it is put where it belongs; of filters, what it is added to as well.
    own = 2 * wide if kind == Kind.WEIGHT_GRAD else size
    part = each | {kind.result: each[kind.result] + own + narrow * (kind == Kind.WEIGHT_GRAD or is_narrowed)}
    if each.get("padded") and Role.X in kind.operands:  # rows with their padding filled in, before that of others is
        part[Role.X] += of_read
    combed = part | {kind.read: part[kind.read] + of_read}
    return Copies(Bytes(**each), Bytes(**part), Bytes(**combed))


def _copied(
    operation: Operation, backend: Backend, arithmetic: Arithmetic, given: Operands
) -> tuple[list[int], int, int]:
    """Return the bytes of copies for each element of the operands and of the result, and of one as it is computed."""
    dtype, computed = arithmetic.dtype, arithmetic.computed_in(backend).dtype
    size, wide = backend.bits(dtype.dtype) // 8, backend.bits(computed) // 8
    of_order = [0 if one.in_order else backend.bits(one.dtype) // 8 for one in given]
    if uses_slices(operation):
        # Slices and their products are in float64, and so are the sums of two products of a complex number's parts.
        number = 8 * reproducible("slicing").slots(backend, operation.geometry, operation.kind, operation.dtype)
        return [more + number for more in of_order], number + number // 4 * operation.is_complex, number
    if dtype.kind != "integral":
        # A copy that puts an operand in order has the byte order of the machine.
        own = [one.dtype if one.in_order else backend.machine_order(one.dtype) for one in given]
        conjugates = (dtype.kind == "complex floating" and each for each in operation.conjugated)
        both = zip(of_order, own, conjugates, strict=True)
        operands = [more + (wide if copied or one != computed else 0) for more, one, copied in both]
        return operands, wide if dtype.name in HALVES else 0, wide
    if arithmetic.integer_bits:
        # Kernels copy bytes: so only those that windows read are to be copied.
        is_narrow = arithmetic.integer_bits == 8
        pairs = zip(of_order, given, strict=True)
        operands = [more + wide * (is_narrow or one.dtype != computed) for more, one in pairs]
        return operands, wide * (is_narrow or dtype.dtype != computed), wide
    # An integer as it was given, its slices as they are cut, of at least 8 bits each, and as they are multiplied.
    most = -(-(8 * size + 1) // 8)
    return [more + size + most * (wide + 2 * size) for more in of_order], 3 * wide + 3 * size, wide


def _least(enough: Callable[[int], bool], limit: int) -> int:
    """Return a number beyond `limit` that is enough: nearly the smallest, if all larger ones are enough."""
    low, high = limit, GROWTH * limit
    while not enough(high):
        low, high = high, GROWTH * high
    while high - low > max(1, low // CLOSE):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
