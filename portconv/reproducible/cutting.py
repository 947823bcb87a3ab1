"""Cut numbers into slices, and add up the products of slices; `slicing` says how many slices there are."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..backends import Array, Backend, Workspace
from ..spec.ranges import ALL
from .slicing import Slicing


def cut(backend: Backend, numbers: Array, slicing: Slicing) -> list[Array]:
    """Cut numbers, scaled so that they have `bits` bits before the point, into slices, the lowest first.

    Each slice is rounded half to even, and all of them add up to the whole number nearest. The numbers are multiplied
    by powers of two alone, so that a fused multiplication and addition changes no bit.
    """
    xp, slices = backend.xp, []
    for i in range(slicing.slices - 1, 0, -1):
        slice_ = xp.round(numbers * 2.0 ** (-slicing.width * i))
        numbers = numbers - slice_ * 2.0 ** (slicing.width * i)
        slices.append(slice_)
    return [xp.round(numbers), *reversed(slices)]


def slot(axis: int, number: int | slice) -> tuple[Any, ...]:
    """Return the index of a slot along an axis of slots, or of a range of them."""
    return (*(ALL,) * axis, number, ...)


class SliceWriter(NamedTuple):
    """Writes slices into their slots of an array.

    Attributes
    ----------
    backend : Backend
    slicing : Slicing
    axis : int
        The axis of the slots.
    workspace : Workspace
    """

    backend: Backend
    slicing: Slicing
    axis: int
    workspace: Workspace

    def quantise(self, target: Array, first: int, values: Array, factors: list[Array]) -> Array:
        """Multiply values by powers of two, and write their slices into `target` from slot `first` on."""
        backend = self.backend
        if self.slicing.slices == 1:  # what is not cut is quantised where it belongs
            numbers = target[slot(self.axis, first)]
        else:
            numbers = self.workspace("numbers", tuple(values.shape), backend.dtype("float64"))
        for factor in factors:
            values = numbers = backend.elementwise("multiply", numbers, (...,), values, factor)
        return self._write(target, first, numbers)

    def _write(self, target: Array, first: int, numbers: Array) -> Array:
        """Write the slices of numbers, and sums of two slices, into `target` from slot `first` on, a pair a slot.

        The slices are those of `cut`. The numbers are overwritten.
        """
        backend, slicing = self.backend, self.slicing
        places = {pair: slot(self.axis, first + i) for i, pair in enumerate(slicing.pairs)}
        step = self.workspace("step", tuple(numbers.shape), numbers.dtype)
        for i in range(slicing.slices - 1, 0, -1):
            place = places[i, i]
            target = backend.elementwise("multiply", target, place, numbers, 2.0 ** (-slicing.width * i))
            target = backend.elementwise("round", target, place, target[place])
            step = backend.elementwise("multiply", step, (...,), target[place], 2.0 ** (slicing.width * i))
            numbers = backend.elementwise("subtract", numbers, (...,), numbers, step)
        target = backend.elementwise("round", target, places[0, 0], numbers)
        for (i, j), place in places.items():
            if i != j:
                target = backend.elementwise("add", target, place, target[places[i, i]], target[places[j, j]])
        return target


def sum_by_weight(
    backend: Backend, products: list[Array], slicing: Slicing, workspace: Workspace | None = None
) -> list[Array]:
    """Add up the products of the slices of each of `pairs` by weight: entry k of the result counts `2**(width * k)`."""
    by_pair = dict(zip(slicing.pairs, products, strict=True))
    sums: list[Array] = [None] * (2 * slicing.slices - 1)
    for (i, j), value in by_pair.items():
        if i != j:
            scratch = None if workspace is None else workspace(f"mixed {i} {j}", tuple(value.shape), value.dtype)
            for square in (by_pair[i, i], by_pair[j, j]):
                if scratch is None:
                    value = value - square
                else:
                    value = backend.elementwise("subtract", scratch, (...,), value, square)
        sums[i + j] = value if sums[i + j] is None else sums[i + j] + value
    return sums
