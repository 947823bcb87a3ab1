"""One step of a call, as plain data: what is asked, with no array and no backend in it.

Each of the three products of a convolution is bilinear, and they are one trilinear form ``<out, conv(x, w)>`` read
three ways: the gradient of an operand of any product is the product that makes that operand, of the cotangent and the
other operand. So the products are closed under differentiation, as often as one likes and in either mode. So are the
sum of a channel with its adjoint, which spreads a bias over a result, and the windows of an input with their adjoint.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from .dtypes import KINDS
from .geometry import Geometry
from .layout import Shape, given_shape
from .remembered import looked_up


class Role(StrEnum):
    """What an array is to a convolution."""

    X = "x"
    """The input."""
    W = "w"
    """The filters."""
    OUT = "out"
    """The output, or the gradient with respect to it."""
    B = "b"
    """A bias: one number for each channel."""
    COLUMNS = "columns"
    """The windows of an input, as `unfold` gives them."""


class Kind(StrEnum):
    """What a step computes."""

    FORWARD = "forward"
    INPUT_GRAD = "input_grad"
    WEIGHT_GRAD = "weight_grad"
    CHANNEL_SUM = "channel_sum"
    """The sum of the elements of each channel: the gradient of a bias."""
    SPREAD = "spread"
    """A bias, repeated over the cells of a result: the adjoint of `CHANNEL_SUM`."""
    UNFOLD = "unfold"
    FOLD = "fold"
    ERROR_BOUND = "error_bound"
    """What the error of each element of a forward product cannot exceed."""

    @property
    def operands(self) -> tuple[Role, ...]:
        """The roles of the two operands of a product."""
        return OPERANDS[self]

    @property
    def read(self) -> Role:
        """The role of the operand whose cells are read through taps: the input, or the output where there is none."""
        return Role.X if Role.X in self.operands else Role.OUT

    @property
    def result(self) -> Role:
        """The role of the result of a product."""
        return RESULTS[self]


PRODUCTS = (Kind.FORWARD, Kind.INPUT_GRAD, Kind.WEIGHT_GRAD)
"""The three readings of the trilinear form."""
OPERANDS = {
    Kind.FORWARD: (Role.X, Role.W),
    Kind.INPUT_GRAD: (Role.OUT, Role.W),
    Kind.WEIGHT_GRAD: (Role.OUT, Role.X),
}
RESULTS = {Kind.FORWARD: Role.OUT, Kind.INPUT_GRAD: Role.X, Kind.WEIGHT_GRAD: Role.W}
MAKING = {role: kind for kind, role in RESULTS.items()}
"""The product whose result has a role."""
ADJOINTS = {
    Kind.CHANNEL_SUM: Kind.SPREAD,
    Kind.SPREAD: Kind.CHANNEL_SUM,
    Kind.UNFOLD: Kind.FOLD,
    Kind.FOLD: Kind.UNFOLD,
}
"""The adjoint of each step that is linear in its one operand."""


@dataclass(frozen=True)
class Operation:
    """One step of a call whose shapes and options have been checked.

    Attributes
    ----------
    kind : Kind
    geometry : Geometry
    dtype : str
        The common dtype of the operands.
    result_dtype : str
        The dtype of the result; of complex numbers rounded to a real dtype, the real part is the result.
    precision, algorithm : str
    unbatched : bool
        Whether inputs and outputs are one sample without a batch axis.
    bias_role : Role
        What a bias is added to: the output, or the input, which a transposed convolution makes.
    conjugated : tuple of bool
        Whether the conjugate of each operand is what is multiplied.
    """

    kind: Kind
    geometry: Geometry
    dtype: str
    result_dtype: str
    precision: str = "standard"
    algorithm: str = "auto"
    unbatched: bool = False
    bias_role: Role = Role.OUT
    conjugated: tuple[bool, bool] = (False, False)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # a framework asks for it at every step
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    def __reduce__(self) -> tuple[Any, ...]:  # the hash of another process is of no use
        return operation, tuple(getattr(self, field.name) for field in fields(self))

    @property
    def is_complex(self) -> bool:
        """Whether its operands are complex numbers."""
        return KINDS[self.dtype] == "complex floating"

    @property
    def is_canonical(self) -> bool:
        """Whether inputs and outputs are batches with channels first, as algorithms have them."""
        return not (self.unbatched or self.geometry.channels_last)

    @property
    def is_product(self) -> bool:
        """Whether it is one of the three products."""
        return self.kind in OPERANDS

    @cached_property
    def result(self) -> Role:
        """The role of the result."""
        others = {
            Kind.CHANNEL_SUM: Role.B,
            Kind.SPREAD: self.bias_role,
            Kind.UNFOLD: Role.COLUMNS,
            Kind.FOLD: Role.X,
            Kind.ERROR_BOUND: Role.OUT,
        }
        return RESULTS.get(self.kind) or others[self.kind]

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles of the operands, without that of a bias."""
        others = {
            Kind.CHANNEL_SUM: (self.bias_role,),
            Kind.SPREAD: (Role.B,),
            Kind.UNFOLD: (Role.X,),
            Kind.FOLD: (Role.COLUMNS,),
            Kind.ERROR_BOUND: OPERANDS[Kind.FORWARD],
        }
        return OPERANDS.get(self.kind) or others[self.kind]

    def shape(self, role: Role) -> Shape:
        """Return the shape of the array of a role, as the caller has it."""
        geometry = self.geometry
        if role == Role.W or (role in (Role.X, Role.OUT) and self.is_canonical):
            return geometry.shape(role)
        if role == Role.COLUMNS:
            return (geometry.batch, geometry.in_channels * geometry.taps, geometry.positions)
        if role == Role.B:
            return (geometry.out_channels if self.bias_role == Role.OUT else geometry.in_channels,)
        return given_shape(geometry.shape(role), geometry.channels_last, self.unbatched)

    def gradient(self, place: int, dtype: str, cotangent: Any, operands: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the operation that is the gradient of the operand in that `place`, of that dtype, and its operands."""
        if not self.is_product:
            return changed(self, kind=ADJOINTS[self.kind], result_dtype=dtype), cotangent
        if place == 2:
            return changed(self, kind=Kind.CHANNEL_SUM, result_dtype=dtype, bias_role=self.result), cotangent
        roles = self.kind.operands
        kind = MAKING[roles[place]]
        arrays = {self.result: cotangent, roles[1 - place]: operands[1 - place]}
        # Changes of an input have no constant around them.
        geometry = self.geometry.linear if Role.X in (self.result, roles[place]) else self.geometry
        step = changed(self, kind=kind, geometry=geometry, result_dtype=dtype)
        return step, *(arrays[role] for role in kind.operands)

    def tangent(self, place: int, tangent: Any, operands: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the operation that is the change of the result with the operand in that `place`, and its operands."""
        if not self.is_product:
            return self, tangent
        if place == 2:
            return changed(self, kind=Kind.SPREAD, bias_role=self.result), tangent
        geometry = self.geometry.linear if self.kind.operands[place] == Role.X else self.geometry
        step = self if geometry is self.geometry else changed(self, geometry=geometry)
        return step, *(tangent if i == place else array for i, array in enumerate(operands[:2]))


@looked_up
def operation(*values: Any, **named: Any) -> Operation:
    """Return an `Operation`: the same object for the same arguments, while it is remembered."""
    return Operation(*values, **named)


@looked_up
def changed(step: Operation, **fields: Any) -> Operation:
    """Return an operation with other fields: the same object for the same arguments, while it is remembered."""
    return replace(step, **fields)
