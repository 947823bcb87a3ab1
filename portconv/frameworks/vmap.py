"""Many operations as one larger operation: how `vmap` maps a convolution.

The mapped axis, of length B, is folded into an axis along which the product is independent already: into the samples
if the input and the output are mapped, into the filters if the filters and the output are, into the input channels if
the filters and the input are, and into the groups if all three are. No numbers get a common scale that had different
ones before, so reproducible results have the bits of a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..backends import Array, Backend
from ..spec.operation import Kind, Operation, Role

FOLDS = {
    frozenset((Role.X, Role.OUT)): ("batch",),
    frozenset((Role.W, Role.OUT)): ("out_channels",),
    frozenset((Role.W, Role.X)): ("in_channels",),
    frozenset((Role.X, Role.W, Role.OUT)): ("in_channels", "out_channels", "groups"),
}
"""The sizes of a geometry that are multiplied by B, for each set of mapped arrays."""

Axes = Sequence[int | None]


class Folded(NamedTuple):
    """One larger operation in the place of many.

    Attributes
    ----------
    operation : Operation
    operands : list of array
        The operands of that operation.
    unfold : callable
        Returns the results (B, ...) of the many operations for the result of the larger one.
    """

    operation: Operation
    operands: list[Array]
    unfold: Callable[[Array], Array]


def mapped(
    operation: Operation, backend: Backend, operands: Sequence[Array], axes: Axes, run: Callable[..., Array]
) -> Array:
    """Compute many operations as one.

    Parameters
    ----------
    operation : Operation
        What each of them computes.
    backend : Backend
    operands : sequence of array
        Mapped operands have one axis more.
    axes : sequence of int or None
        The mapped axis of each operand; None if all operations share the operand.
    run : callable
        Computes an operation, from a backend and operands.

    Returns
    -------
    array
        The results, along the first axis.
    """
    xp = backend.xp
    count = next(array.shape[axis] for array, axis in zip(operands, axes, strict=True) if axis is not None)
    arrays = [_mapped_first(xp, array, axis) for array, axis in zip(operands, axes, strict=True)]
    if count == 0:  # computed once, and left out: shared operands have derivatives, of 0
        arrays = [
            array if axis is None else xp.concat([array, backend.zeros((1, *array.shape[1:]), array)])
            for array, axis in zip(arrays, axes, strict=True)
        ]
        first = [None if axis is None else 0 for axis in axes]
        return mapped(operation, backend, arrays, first, run)[:0, ...]
    if operation.kind == Kind.ERROR_BOUND:  # a larger call may use another algorithm, which has another bound
        calls = (
            [array if axis is None else array[i, ...] for array, axis in zip(arrays, axes, strict=True)]
            for i in range(count)
        )
        return xp.stack([run(operation, backend, *call) for call in calls])
    folding = (_Product if operation.is_product else _OneOperand)(backend, operation, count)
    folded = folding.fold(arrays, axes)
    return folded.unfold(run(folded.operation, backend, *folded.operands))


def _mapped_first(xp: Any, array: Array, axis: int | None) -> Array:
    """Move the mapped axis of an array, if it has one, to the front."""
    if not axis:
        return array
    return xp.permute_dims(array, (axis, *(n for n in range(array.ndim) if n != axis)))


class _Folding:
    """Moves the mapped axis, of length `count`, into another axis of an array, and back."""

    def __init__(self, backend: Backend, operation: Operation, count: int) -> None:
        self.xp = backend.xp
        self.operation, self.count = operation, count
        self.geometry = operation.geometry

    def larger(self, names: tuple[str, ...]) -> Operation:
        """Return the operation on canonical arrays in which the sizes of these names are `count` times as large."""
        sizes: dict[str, Any] = {name: getattr(self.geometry, name) * self.count for name in names}
        return replace(self.operation, unbatched=False, geometry=replace(self.geometry, channels_last=False, **sizes))

    def canonical(self, array: Array, lead: int) -> Array:
        """Return an input or an output with `lead` axes before it as (*lead, N, C, *cells)."""
        if self.operation.unbatched:
            array = self.xp.reshape(array, (*array.shape[:lead], 1, *array.shape[lead:]))
        if self.geometry.channels_last:
            last = array.ndim - 1
            array = self.xp.permute_dims(array, (*range(lead + 1), last, *range(lead + 1, last)))
        return array

    def as_given(self, array: Array) -> Array:
        """Return mapped inputs or outputs (B, N, C, *cells) in the layout of the caller."""
        if self.geometry.channels_last:
            array = self.xp.permute_dims(array, (0, 1, *range(3, array.ndim), 2))
        return array[:, 0, ...] if self.operation.unbatched else array

    def into_channels(self, array: Array, groups: int) -> Array:
        """Return mapped (B, N, C, *cells) as (N, G * B * C / G, *cells)."""
        _, batch, channels, *cells = array.shape
        array = self.xp.reshape(array, (self.count, batch, groups, channels // groups, *cells))
        array = self.xp.permute_dims(array, (1, 2, 0, *range(3, array.ndim)))
        return self.xp.reshape(array, (batch, self.count * channels, *cells))

    def from_channels(self, array: Array, groups: int) -> Array:
        """Return (N, G * B * C / G, *cells) as mapped (B, N, C, *cells)."""
        batch, channels, *cells = array.shape
        array = self.xp.reshape(array, (batch, groups, self.count, channels // (groups * self.count), *cells))
        array = self.xp.permute_dims(array, (2, 0, 1, *range(3, array.ndim)))
        return self.xp.reshape(array, (self.count, batch, channels // self.count, *cells))

    def into_samples(self, array: Array) -> Array:
        """Return mapped (B, N, ...) as (B * N, ...)."""
        return self.xp.reshape(array, (self.count * array.shape[1], *array.shape[2:]))

    def from_samples(self, array: Array) -> Array:
        """Return (B * N, ...) as mapped (B, N, ...)."""
        return self.xp.reshape(array, (self.count, array.shape[0] // self.count, *array.shape[1:]))

    def repeated(self, array: Array) -> Array:
        """Return a shared array as a mapped one."""
        return self.xp.broadcast_to(array, (self.count, *array.shape))


class _Product(_Folding):
    """Folds one of the three products."""

    def fold(self, operands: list[Array], axes: Axes) -> Folded:
        kind = self.operation.kind
        mapped_roles = {
            kind.result,
            *(role for role, axis in zip(kind.operands, axes, strict=False) if axis is not None),
        }
        if len(operands) > 2 and axes[2] is not None:
            mapped_roles.add(Role.W)  # a bias for each call belongs to filters for each call
        sizes = FOLDS[frozenset(mapped_roles)]
        in_channels = sizes != ("batch",)
        folded = []
        for role, array, axis in zip((*kind.operands, Role.B), operands, axes, strict=False):
            shared = axis is None
            if role == Role.B:
                folded.append(self.bias(array, shared) if in_channels else array)
                continue
            array = array if role == Role.W else self.canonical(array, int(not shared))
            if role in mapped_roles:
                array = self.repeated(array) if shared else array
                array = self.filters(array, sizes) if role == Role.W else self.cells(array, in_channels)
            folded.append(array)

        def unfold(array: Array) -> Array:
            if kind.result == Role.W:
                return self.filters_back(array, sizes)
            groups = self.geometry.groups
            return self.as_given(self.from_channels(array, groups) if in_channels else self.from_samples(array))

        return Folded(self.larger(sizes), folded, unfold)

    def cells(self, array: Array, in_channels: bool) -> Array:
        """Fold mapped inputs or outputs (B, N, C, *cells), into the channels or into the samples."""
        return self.into_channels(array, self.geometry.groups) if in_channels else self.into_samples(array)

    def bias(self, array: Array, shared: bool) -> Array:
        """Fold a shared bias (C,), or mapped ones (B, C), into the channels."""
        array = self.repeated(array) if shared else array
        return self.xp.reshape(self.into_channels(array[:, None, :], self.geometry.groups), (-1,))

    def filters(self, array: Array, sizes: tuple[str, ...]) -> Array:
        """Fold mapped filters (B, F, C / G, *K): into more filters, or into filters of more channels."""
        _, filters, channels, *kernel = array.shape
        if sizes == ("in_channels",):
            array = self.xp.permute_dims(array, (1, 0, *range(2, array.ndim)))
            return self.xp.reshape(array, (filters, self.count * channels, *kernel))
        array = self.into_channels(self.xp.reshape(array, (self.count, 1, filters, -1)), self.geometry.groups)
        return self.xp.reshape(array, (self.count * filters, channels, *kernel))

    def filters_back(self, array: Array, sizes: tuple[str, ...]) -> Array:
        """Return mapped filters (B, F, C / G, *K) from what `filters` makes of them."""
        filters, channels, *kernel = array.shape
        if sizes == ("in_channels",):
            array = self.xp.reshape(array, (filters, self.count, channels // self.count, *kernel))
            return self.xp.permute_dims(array, (1, 0, *range(2, array.ndim)))
        array = self.from_channels(self.xp.reshape(array, (1, filters, -1)), self.geometry.groups)
        return self.xp.reshape(array, (self.count, filters // self.count, channels, *kernel))


class _OneOperand(_Folding):
    """Folds an operation with one operand: a sum of channels, the windows of an input, and their adjoints."""

    def fold(self, operands: list[Array], axes: Axes) -> Folded:
        (array,) = operands
        kind = self.operation.kind
        if kind in (Kind.UNFOLD, Kind.FOLD):
            return Folded(self.larger(("batch",)), [self.into_samples(array)], self.from_samples)
        larger = self.larger(("in_channels", "out_channels", "groups"))
        if kind == Kind.CHANNEL_SUM:
            cells = self.into_channels(self.canonical(array, 1), 1)
            return Folded(larger, [cells], lambda sums: self.xp.reshape(sums, (self.count, -1)))
        bias = self.xp.reshape(array, (-1,))
        return Folded(larger, [bias], lambda cells: self.as_given(self.from_channels(cells, 1)))
