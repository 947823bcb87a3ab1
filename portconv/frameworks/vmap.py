"""One operation on many operands at once, as one of larger operands: what `vmap` makes of a convolution.

The mapped axis, `B` here, goes where the product already has an axis that it is independent along: into samples where
inputs and outputs have it, into filters where filters and outputs have, into input channels where those and filters
have, and into groups where all three have. Nothing shares a scale then that did not before, so that reproducible
results are those of a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..backends import Array, Backend
from ..spec.operation import Kind, Operation, Role

FOLDS = {
    frozenset(("x", "out")): ("batch",),
    frozenset(("w", "out")): ("out_channels",),
    frozenset(("w", "x")): ("in_channels",),
    frozenset(("x", "w", "out")): ("in_channels", "out_channels", "groups"),
}
"""What of a geometry grows, by which of its arrays are mapped."""


def mapped(
    operation: Operation,
    backend: Backend,
    operands: Sequence[Array],
    axes: Sequence[int | None],
    run: Callable[..., Array],
) -> Array:
    """Compute many operations as one.

    Parameters
    ----------
    operation : Operation
        What each of them computes.
    backend : Backend
    operands : sequence of array
        With an axis more where they are mapped.
    axes : sequence of int or None
        Which axis of each that is; None where all share it.
    run : callable
        Computes an operation, of a backend and its operands.

    Returns
    -------
    array
        The results, along the first axis.
    """
    xp = backend.xp
    count = next(array.shape[axis] for array, axis in zip(operands, axes, strict=True) if axis is not None)
    first = [_first(xp, array, axis) for array, axis in zip(operands, axes, strict=True)]
    if (
        operation.kind == Kind.ERROR_BOUND
    ):  # which is of a call by itself: the larger one may be computed in another way
        each = (
            [array if axis is None else array[i, ...] for array, axis in zip(first, axes, strict=True)]
            for i in range(count)
        )
        return xp.stack([run(operation, backend, *own) for own in each])
    grown, larger, restore = (_Bilinear if operation.is_product else _Linear)(backend, operation, count).of(first, axes)
    return restore(run(grown, backend, *larger))


def _first(xp: Any, array: Array, axis: int | None) -> Array:
    """An array whose mapped axis, if any, is moved to the front."""
    if not axis:
        return array
    return xp.permute_dims(array, (axis, *(n for n in range(array.ndim) if n != axis)))


class _Folded:
    """An operation with `count` times as much to do."""

    def __init__(self, backend: Backend, operation: Operation, count: int) -> None:
        self.xp = backend.xp
        self.operation, self.count = operation, count
        self.geometry, self.unbatched = operation.geometry, operation.unbatched

    def grown(self, names: tuple[str, ...]) -> Operation:
        """The operation of operands that are folded; as algorithms see them."""
        sizes: dict[str, Any] = {name: getattr(self.geometry, name) * self.count for name in names}
        return replace(self.operation, unbatched=False, geometry=replace(self.geometry, channels_last=False, **sizes))

    def seen(self, array: Array, lead: int) -> Array:
        """An input or an output with so many axes before it, as (*lead, N, C, *cells)."""
        if self.unbatched:
            array = self.xp.reshape(array, (*array.shape[:lead], 1, *array.shape[lead:]))
        if self.geometry.channels_last:
            last = array.ndim - 1
            array = self.xp.permute_dims(array, (*range(lead + 1), last, *range(lead + 1, last)))
        return array

    def given(self, array: Array) -> Array:
        """Mapped inputs or outputs (B, N, C, *cells) as the caller has them."""
        if self.geometry.channels_last:
            array = self.xp.permute_dims(array, (0, 1, *range(3, array.ndim), 2))
        return array[:, 0, ...] if self.unbatched else array

    def into_channels(self, array: Array, groups: int) -> Array:
        """Mapped (B, N, C, *cells) as (N, G * B * C / G, *cells)."""
        _, batch, channels, *cells = array.shape
        array = self.xp.reshape(array, (self.count, batch, groups, channels // groups, *cells))
        array = self.xp.permute_dims(array, (1, 2, 0, *range(3, array.ndim)))
        return self.xp.reshape(array, (batch, self.count * channels, *cells))

    def from_channels(self, array: Array, groups: int) -> Array:
        batch, channels, *cells = array.shape
        array = self.xp.reshape(array, (batch, groups, self.count, channels // (groups * self.count), *cells))
        array = self.xp.permute_dims(array, (2, 0, 1, *range(3, array.ndim)))
        return self.xp.reshape(array, (self.count, batch, channels // self.count, *cells))

    def into_samples(self, array: Array) -> Array:
        return self.xp.reshape(array, (self.count * array.shape[1], *array.shape[2:]))

    def from_samples(self, array: Array) -> Array:
        return self.xp.reshape(array, (self.count, array.shape[0] // self.count, *array.shape[1:]))

    def spread(self, array: Array) -> Array:
        return self.xp.broadcast_to(array, (self.count, *array.shape))


class _Bilinear(_Folded):
    """One of the three products."""

    def of(
        self, operands: list[Array], axes: Sequence[int | None]
    ) -> tuple[Operation, list[Array], Callable[[Array], Array]]:
        kind, groups = self.operation.kind, self.geometry.groups
        roles = kind.operands
        have = {kind.result, *(role for role, axis in zip(roles, axes, strict=False) if axis is not None)}
        if len(operands) > 2 and axes[2] is not None:
            have.add("w")  # samples that have each a bias of their own have each filters of their own
        grows = FOLDS[frozenset(have)]
        channels = grows != ("batch",)
        made = []
        for role, array, axis in zip((*roles, "b"), operands, axes, strict=False):
            if role == "b":
                made.append(self.bias(array, axis is None) if channels else array)
                continue
            array = array if role == "w" else self.seen(array, int(axis is not None))
            if role in have:
                array = self.spread(array) if axis is None else array
                array = self.filters(array, grows) if role == "w" else self.cells(array, channels)
            made.append(array)

        def restore(array: Array) -> Array:
            if kind.result == Role.W:
                return self.restored(array, grows)
            return self.given(self.from_channels(array, groups) if channels else self.from_samples(array))

        return self.grown(grows), made, restore

    def cells(self, array: Array, channels: bool) -> Array:
        return self.into_channels(array, self.geometry.groups) if channels else self.into_samples(array)

    def bias(self, array: Array, shared: bool) -> Array:
        array = self.spread(array) if shared else array
        return self.xp.reshape(self.into_channels(array[:, None, :], self.geometry.groups), (-1,))

    def filters(self, array: Array, grows: tuple[str, ...]) -> Array:
        """Mapped filters (B, F, C / G, *K), as more filters or as filters of more channels."""
        _, filters, deep, *kernel = array.shape
        if grows == ("in_channels",):
            array = self.xp.permute_dims(array, (1, 0, *range(2, array.ndim)))
            return self.xp.reshape(array, (filters, self.count * deep, *kernel))
        array = self.into_channels(self.xp.reshape(array, (self.count, 1, filters, -1)), self.geometry.groups)
        return self.xp.reshape(array, (self.count * filters, deep, *kernel))

    def restored(self, array: Array, grows: tuple[str, ...]) -> Array:
        """The gradient of mapped filters."""
        filters, deep, *kernel = array.shape
        if grows == ("in_channels",):
            array = self.xp.reshape(array, (filters, self.count, deep // self.count, *kernel))
            return self.xp.permute_dims(array, (1, 0, *range(2, array.ndim)))
        array = self.from_channels(self.xp.reshape(array, (1, filters, -1)), self.geometry.groups)
        return self.xp.reshape(array, (self.count, filters // self.count, deep, *kernel))


class _Linear(_Folded):
    """A sum of channels and its adjoint, or windows and theirs."""

    def of(
        self, operands: list[Array], axes: Sequence[int | None]
    ) -> tuple[Operation, list[Array], Callable[[Array], Array]]:
        (array,) = operands
        kind = self.operation.kind
        if kind in (Kind.UNFOLD, Kind.FOLD):
            return self.grown(("batch",)), [self.into_samples(array)], self.from_samples
        grown = self.grown(("in_channels", "out_channels", "groups"))
        if kind == Kind.CHANNEL_SUM:
            cells = self.into_channels(self.seen(array, 1), 1)
            return grown, [cells], lambda sums: self.xp.reshape(sums, (self.count, -1))
        return (
            grown,
            [self.xp.reshape(array, (-1,))],
            lambda cells: self.given(self.from_channels(cells, 1)),
        )
