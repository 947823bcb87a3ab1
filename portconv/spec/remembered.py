"""What is worked out once for a call is remembered for the next such call, up to a bound in bytes for all of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import _lru_cache_wrapper, lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

from ..errors import PortconvError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MOST_BYTES = 32 << 20
"""All caches together are emptied when they hold more: docs/speed.md names this bound."""
ITEM_BYTES = 1 << 10
"""What an entry takes with its arguments, and what each item of a sequence in it takes, at most on average."""

_caches: list[_lru_cache_wrapper[Any]] = []
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


def forget() -> None:
    """Empty all caches."""
    _held[0] = 0
    for cache in _caches:
        cache.cache_clear()
