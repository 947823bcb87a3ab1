"""NumPy behind CuPy's backend class, with a note of each call that CuPy itself would refuse.

The core runs as on CuPy: with its flags, its blocks and its ways of writing. NumPy computes, so that calls get as far
as they would; nothing is said about CuPy's results. Each function, method, attribute and operator that the core asks
for is looked up in the installed CuPy, and each call is bound to CuPy's signature.

CuPy's ufuncs and compiled methods show no signature to `inspect`; the first line of their docstrings has it, with the
keywords that they document. Of a ufunc a call must also have `nin` operands, and dtypes that one of its `types` has, or
that NumPy casts to those safely, as CuPy does.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from portconv.backends._cupy import CupyBackend

from .installed_calls import misfit, signatures

LACKS: list[str] = []
"""What was asked of CuPy that it lacks or refuses, in words; a test empties it."""
ASKED: set[str] = set()
"""The names of all that was asked for."""
_known: dict[Any, str | None] = {}


def lacks(words: str) -> None:
    if words not in LACKS:
        LACKS.append(words)


def looked_up(owner: Any, name: str, where: str) -> Any:
    """The attribute of CuPy's, or None with a note that it has none."""
    ASKED.add(f"{where}.{name}")
    if not hasattr(owner, name):
        lacks(f"{where}.{name}: CuPy has none")
        return None
    return getattr(owner, name)


def checked(function: Any, raw: Any, where: str, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Note a call that CuPy would refuse; `raw` is CuPy's own function, where array-api-compat wraps it."""
    for arg in (*args, *keywords.values()):
        if isinstance(arg, np.ndarray) and not where.endswith(".asarray"):
            lacks(f"{where}: got an array of NumPy's")
    dtypes = tuple(str(arg.dtype) if isinstance(arg, ndarray) else "" for arg in args)
    key = (where, dtypes, *sorted(keywords))
    if key not in _known:
        _known[key] = refusal(function, raw, args, keywords)
    if _known[key] is not None:
        lacks(f"{where}: {_known[key]}")


def refusal(function: Any, raw: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> str | None:
    if (words := misfit(function, args, keywords)) is not None:
        return words
    (first, *_) = signatures(function)
    if raw is not function and any(one.kind is one.VAR_KEYWORD for one in first.parameters.values()):
        left = {name: value for name, value in keywords.items() if name not in first.parameters}
        if left and (words := misfit(raw, args, left)) is not None:
            return words
    if not hasattr(raw, "types"):
        return None
    arrays = [arg.dtype for arg in args[: raw.nin] if isinstance(arg, ndarray)]
    served = (kinds.partition("->")[0] for kinds in raw.types if "E" not in kinds)  # NumPy has no such letter
    if len(args) >= raw.nin and any(all(np.can_cast(a, k) for a in arrays for k in kinds) for kinds in served):
        return None
    return f"no loop for {', '.join(map(str, arrays)) or 'numbers alone'}"


class Namespace:
    """A namespace of NumPy's whose attributes are looked up in CuPy's."""

    def __init__(self, own: Any, theirs: Any, raw: Any, where: str) -> None:
        self._own, self._theirs, self._raw, self._where = own, theirs, raw, where

    @property
    def array_class(self) -> type:
        """The class of CuPy's arrays."""
        found: type = self._raw.ndarray
        return found

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._own, name)
        theirs = looked_up(self._theirs, name, self._where)
        where = f"{self._where}.{name}"
        raw = getattr(self._raw, name, theirs)
        if isinstance(own, ModuleType):
            return Namespace(own, theirs, raw, where)
        if isinstance(own, type) or not callable(own):
            return own

        def call(*args: Any, **keywords: Any) -> Any:
            if theirs is not None:
                checked(theirs, raw, where, args, keywords)
            result = own(*map(plain, args), **{each: plain(value) for each, value in keywords.items()})
            same = [arg for arg in (*args, *keywords.values()) if isinstance(arg, ndarray) and arg.values is result]
            return same[0] if same else wrapped(result)

        return call


class ndarray:
    """An array of NumPy's that answers as an array of CuPy's: it becomes no array of NumPy's, and no scalar."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # such as the protocols by which NumPy takes an array for its own
            raise AttributeError(name)
        theirs = looked_up(namespace().array_class, name, "ndarray")
        if name == "data":
            return SimpleNamespace(ptr=self.values.ctypes.data)
        own = getattr(self.values, name)
        if not callable(own):
            return wrapped(own)

        def call(*args: Any, **keywords: Any) -> Any:
            if theirs is not None:
                checked(theirs, theirs, f"ndarray.{name}", (self, *args), keywords)
            return wrapped(own(*map(plain, args), **{each: plain(value) for each, value in keywords.items()}))

        return call

    def __array_namespace__(self, api_version: str | None = None) -> Namespace:
        return namespace()

    def __array__(self, *args: Any, **keywords: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    __hash__ = None


@cache
def namespace() -> Namespace:
    """The namespace that the core gets."""
    import array_api_compat.cupy
    import array_api_compat.numpy
    import cupy

    return Namespace(array_api_compat.numpy, array_api_compat.cupy, cupy, "xp")


def plain(value: Any) -> Any:
    """The array of NumPy's, also inside of tuples and lists."""
    if isinstance(value, ndarray):
        return value.values
    return type(value)(map(plain, value)) if type(value) in (tuple, list) else value


def wrapped(result: Any) -> Any:
    """Arrays, also those without axes, as CuPy gives them."""
    if isinstance(result, tuple):
        return tuple(map(wrapped, result))
    return ndarray(np.asarray(result)) if isinstance(result, np.ndarray | np.generic) else result


NUMBERS = ("bool", "int", "float", "complex", "len", "index")
"""The operators of which Python wants numbers of its own."""
ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)
OPERATORS = (
    *(f"{form}{name}" for name in ARITHMETIC for form in ("", "r", "i")),
    *("eq", "ne", "lt", "le", "gt", "ge", "getitem", "setitem", "neg", "pos", "abs", "invert"),
    *NUMBERS,
)


def _operator(name: str) -> Any:
    def method(self: ndarray, *others: Any) -> Any:
        looked_up(namespace().array_class, f"__{name}__", "ndarray")
        if any(isinstance(other, np.ndarray) for other in others):
            lacks(f"ndarray.__{name}__: got an array of NumPy's")
        result = getattr(self.values, f"__{name}__")(*map(plain, others))
        if result is self.values:
            return self
        return result if name in NUMBERS or result is NotImplemented else wrapped(result)

    return method


for _name in OPERATORS:
    setattr(ndarray, f"__{_name}__", _operator(_name))


class CupyOnNumpy(CupyBackend):
    """CuPy's backend, but for what it asks of CUDA."""

    def load(self) -> Any:
        return namespace()

    def owns(self, array: object) -> bool:
        return isinstance(array, ndarray)

    def devices(self) -> list[Any]:
        return ["cpu"]

    def memory(self, like: Any) -> int:
        return 1 << 36

    def to_numpy(self, array: Any) -> Any:
        return array.values

    def synchronize(self) -> None:
        pass

    def during_call(self, like: Any, precision: str) -> AbstractContextManager[Any]:
        return nullcontext()
