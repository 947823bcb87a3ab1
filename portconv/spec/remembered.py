"""What is worked out once for a call is remembered for the next such call, up to a bound in bytes for all of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import _lru_cache_wrapper, lru_cache, wraps
from typing import Any, Generic, ParamSpec, TypeVar

from ..errors import PortconvError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Key = TypeVar("Key")

MOST_BYTES = 32 << 20
"""All caches together are emptied when they hold more: docs/speed.md names this bound."""
ITEM_BYTES = 1 << 10
"""What an entry takes with its arguments, and what each item of a sequence in it takes, at most on average."""

_caches: list[_lru_cache_wrapper[Any]] = []
_shelves: list[Shelf[Any, Any]] = []
_held = [0]
"""The bytes that all caches hold, as they are counted."""


def remembered(
    items: Callable[[Any], int] = lambda result: 0,
) -> Callable[[Callable[..., Result]], _lru_cache_wrapper[Result]]:
    """Decorate a function as `functools.cache` does, but count what it keeps.

    `items` counts the items of the sequences in a result, where there may be many.
    """

    def decorate(function: Callable[..., Result]) -> _lru_cache_wrapper[Result]:
        @wraps(function)
        def make(*values: Any, **named: Any) -> Result:
            result = function(*values, **named)
            size = ITEM_BYTES * (1 + items(result))
            if _held[0] + size > MOST_BYTES:
                forget()
            _held[0] += size
            return result

        cache = lru_cache(maxsize=None)(make)
        _caches.append(cache)
        return cache

    return decorate


def looked_up(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function as `remembered` does; what cannot be looked up, such as a compiler's symbols, is computed."""
    known = remembered()(function)

    @wraps(function)
    def look_up(*values: Arguments.args, **named: Arguments.kwargs) -> Result:
        try:
            return known(*values, **named)  # type: ignore[arg-type]
        except PortconvError:
            raise
        except TypeError:  # no hash
            return function(*values, **named)

    return look_up


class Shelf(Generic[Key, Result]):
    """What is put down to be looked up by a key, until all caches are emptied."""

    def __init__(self) -> None:
        self._items: dict[Key, Result] = {}
        self.get = self._items.get
        _shelves.append(self)

    def put(self, key: Key, value: Result) -> None:
        """Put a value down; it counts as one entry of a cache."""
        if _held[0] + ITEM_BYTES > MOST_BYTES:
            forget()
        _held[0] += ITEM_BYTES
        self._items[key] = value

    def clear(self) -> None:
        """Take all down."""
        self._items.clear()


def forget() -> None:
    """Empty all caches."""
    _held[0] = 0
    for shelf in _shelves:
        shelf.clear()
    for cache in _caches:
        cache.cache_clear()
