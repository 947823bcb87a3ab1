"""What a call computes, as one step that a framework can put off, differentiate and map: static, and hashed once.

Each of the three products of a convolution is bilinear, and they are one trilinear form ``<out, conv(x, w)>`` read
three ways: the gradient of an operand of any of them is the product that makes that operand, of the cotangent and the
other operand. So they are closed under differentiation, as often as one likes and in either mode; and so are the sum of
a channel with its adjoint, which spreads a bias over a result, and the windows of an input with theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

from ..backends import Array, Backend
from ..passes.casts import conjugate
from ..spec.dtypes import KINDS, Dtype
from ..spec.geometry import Geometry
from ..spec.layout import Shape, given_shape
from .im2col import fold, unfold
from .products import Contraction

ROLES = {"forward": ("x", "w"), "input_grad": ("out", "w"), "weight_grad": ("out", "x")}
"""The operands of each product."""
MAKES = {"forward": "out", "input_grad": "x", "weight_grad": "w"}
MADE_BY = {made: purpose for purpose, made in MAKES.items()}
ADJOINTS = {"channel_sum": "spread", "spread": "channel_sum", "unfold": "fold", "fold": "unfold"}
"""Of what is linear in its one operand."""

WINDOWS = {"unfold": unfold, "fold": fold}


@dataclass(frozen=True)
class Operation:
    """One step of a call whose shapes and options have been checked.

    Attributes
    ----------
    purpose : str
        "forward", "input_grad" or "weight_grad"; "channel_sum" or "spread"; "unfold" or "fold"; or "bound".
    geometry : Geometry
    dtype : str
        What it is computed in.
    made : str
        The dtype of its result.
    precision, algorithm : str
    unbatched : bool
    side : str
        Whose channels are added up, or spread over: "out", or "x" of a transposed convolution.
    conjugated : tuple of bool
        Whether each operand's conjugate is what is multiplied.
    """

    purpose: str
    geometry: Geometry
    dtype: str
    made: str
    precision: str = "standard"
    algorithm: str = "auto"
    unbatched: bool = False
    side: str = "out"
    conjugated: tuple[bool, bool] = (False, False)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # a framework asks for it at every step
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    @property
    def bilinear(self) -> bool:
        """Whether it is one of the three products."""
        return self.purpose in ROLES

    def shape(self, role: str) -> Shape:
        """The shape of "x", "w", "out", "b" or "columns", as the caller has it."""
        geometry = self.geometry
        if role == "w":
            return geometry.w_shape
        if role == "columns":
            return (geometry.batch, geometry.in_channels * geometry.taps, geometry.positions)
        if role == "b":
            return (geometry.out_channels if self.side == "out" else geometry.in_channels,)
        return given_shape(
            geometry.out_shape if role == "out" else geometry.x_shape, geometry.channels_last, self.unbatched
        )

    @property
    def result(self) -> str:
        """The role of the result."""
        others = {"channel_sum": "b", "spread": self.side, "unfold": "columns", "fold": "x", "bound": "out"}
        return MAKES.get(self.purpose) or others[self.purpose]

    def apply(self, backend: Backend, *operands: Array) -> Array:
        """Compute it, in the way of the arrays' library: at once, put off, or as a step that can be differentiated."""
        if not backend.staged:
            return self.compute(backend, *operands)
        if not any(self.conjugated):
            return backend.stage(self, *operands)
        # Conjugates are the library's own, so that it differentiates products that are linear in both operands.
        turned = [
            conjugate(backend, array) if i < 2 and self.conjugated[i] else array for i, array in enumerate(operands)
        ]
        return backend.stage(replace(self, conjugated=(False, False)), *turned)

    def compute(self, backend: Backend, *operands: Array) -> Array:
        """Compute it at once, of arrays of `backend`."""
        if self.purpose in WINDOWS:
            return WINDOWS[self.purpose](backend, self.geometry, self.common(backend), *operands)
        call = self.call(backend, operands[0])
        return call.compute(self.purpose, call.dtype, *operands, made=self.made, conjugated=self.conjugated)

    def call(self, backend: Backend, like: Array) -> Contraction:
        """The call that computes it, on arrays such as `like`."""
        options = (self.algorithm, self.unbatched, self.precision, backend.spare(like), self.side)
        return Contraction(backend, self.common(backend), self.geometry, *options)

    def common(self, backend: Backend) -> Dtype:
        """The dtype that it is computed in."""
        return Dtype(backend.dtype(self.dtype), self.dtype, KINDS[self.dtype])

    def gradient(self, place: int, made: str, cotangent: Array, operands: tuple[Array, ...]) -> tuple[Any, ...]:
        """Say what the gradient of the operand in that `place` is, of dtype `made`: an operation, and its operands."""
        if not self.bilinear:
            return _changed(self, ADJOINTS[self.purpose], made, self.side), cotangent
        if place == 2:
            return _changed(self, "channel_sum", made, self.result), cotangent
        roles = ROLES[self.purpose]
        purpose = MADE_BY[roles[place]]
        arrays = {self.result: cotangent, roles[1 - place]: operands[1 - place]}
        return _changed(self, purpose, made, self.side), *(arrays[role] for role in ROLES[purpose])

    def tangent(self, place: int, tangent: Array, operands: tuple[Array, ...]) -> tuple[Any, ...]:
        """Say by how much the result changes with the operand in that `place`: an operation, and its operands."""
        if not self.bilinear:
            return self, tangent
        if place == 2:
            return _changed(self, "spread", self.made, self.result), tangent
        return self, *(tangent if i == place else array for i, array in enumerate(operands[:2]))


@lru_cache(maxsize=4096)
def _changed(step: Operation, purpose: str, made: str, side: str) -> Operation:
    """Return a step of the same call, the same object for the same arguments while it is remembered."""
    return replace(step, purpose=purpose, made=made, side=side)


@lru_cache(maxsize=4096)
def operation(*values: Any, **named: Any) -> Operation:
    """Return an `Operation`, the same object for the same arguments while it is remembered."""
    return Operation(*values, **named)
