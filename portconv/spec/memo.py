"""What is computed from shapes and options alone is remembered, if they can be looked up."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

from ..errors import PortconvError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def looked_up(maxsize: int) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorate a function as `lru_cache` does; what cannot be looked up, such as a compiler's symbols, is computed."""

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        known = lru_cache(maxsize=maxsize)(function)

        @wraps(function)
        def look_up(*values: Arguments.args, **named: Arguments.kwargs) -> Result:
            try:
                return known(*values, **named)  # type: ignore[arg-type]
            except PortconvError:
                raise
            except TypeError:  # no hash
                return function(*values, **named)

        return look_up

    return decorate
