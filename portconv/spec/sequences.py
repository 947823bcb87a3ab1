"""Sequences that are computed: a plan of many blocks takes no more time and memory than a plan of few."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

Item = TypeVar("Item")
Other = TypeVar("Other")

FEW = 1024
"""So many items may be made at once and kept."""


class Computed(Sequence[Item], Generic[Item]):
    """A sequence that makes each item from its number, whenever it is asked for, and keeps none."""

    __slots__ = ()

    def at(self, number: int) -> Item:
        """Return the item of a number from 0 to one less than the length."""
        raise NotImplementedError

    @overload
    def __getitem__(self, number: int) -> Item: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Item]: ...

    def __getitem__(self, number: int | slice) -> Item | Sequence[Item]:
        numbers = range(len(self))[number]
        return self.at(numbers) if isinstance(numbers, int) else Made(numbers, self.at)

    def __iter__(self) -> Iterator[Item]:
        return map(self.at, range(len(self)))


class Made(Computed[Item]):
    """What a function makes of each item of a sequence."""

    __slots__ = ("get", "length", "make")

    def __init__(self, of: Sequence[Other], make: Callable[[Other], Item]) -> None:
        self.length, self.get, self.make = len(of), _getter(of), make

    def __len__(self) -> int:
        return self.length

    def at(self, number: int) -> Item:
        return self.make(self.get(number))


class Product(Computed[tuple[Any, ...]]):
    """All combinations of an item of each sequence, in the order of `itertools.product`, which copies them all."""

    __slots__ = ("factors", "length")

    def __init__(self, *factors: Sequence[Any]) -> None:
        self.length = math.prod(map(len, factors))
        self.factors = [(len(factor), _getter(factor)) for factor in reversed(factors)]

    def __len__(self) -> int:
        return self.length

    def at(self, number: int) -> tuple[Any, ...]:
        chosen = []
        for length, get in self.factors:
            number, place = divmod(number, length)
            chosen.append(get(place))
        chosen.reverse()
        return tuple(chosen)


def _getter(items: Sequence[Item]) -> Callable[[int], Item]:
    """Return the fastest function that gives an item by its number."""
    return items.at if isinstance(items, Computed) else items.__getitem__


def kept_if_few(items: Sequence[Item]) -> Sequence[Item]:
    """Make the items of a sequence now if they are few, so that they are made once; otherwise return it as it is."""
    return tuple(items) if len(items) <= FEW else items


def kept(items: Sequence[Any]) -> int:
    """Count the items that `kept_if_few` has made."""
    return len(items) if isinstance(items, tuple) else 0
