"""Any other library whose arrays have an Array API namespace: it has the defaults of `Backend`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ..errors import BackendError, ConvShapeError, ConvTypeError, PortconvError, in_a_line
from ._base import Backend
from ._terms import MASKED, Array


class GenericBackend(Backend):
    """A library that portconv has no module for; one of its arrays says what it is."""

    install = "it came with the array"

    def __init__(self, array: Array) -> None:
        import array_api_compat

        self._namespace = array_api_compat.array_namespace(array)
        self.module = type(array).__module__
        self.array_class = type(array).__name__
        self.name = str(self._namespace.__name__).removeprefix("array_api_compat.")
        self.mutable = array_api_compat.is_writeable_array(array)

    def __reduce__(self) -> tuple[Any, ...]:
        # The arrays of a library say what it is, in another process too.
        return sys.modules[__package__].of, (self.xp.empty((0,), dtype=self.xp.float32),)

    @property
    def converter(self) -> str:
        return f"{self.name}.asarray"  # `portconv.backends.get` does not know the name

    def load(self) -> Any:
        return self._namespace

    def owns(self, array: object) -> bool:
        import array_api_compat

        return array_api_compat.is_array_api_obj(array) and array_api_compat.array_namespace(array) is self._namespace

    def objection(self, array: Array) -> PortconvError | None:
        if not (hasattr(array, "__setitem__") or hasattr(array, "at")):
            return BackendError(
                f"got an array of {self.name}, which has no array[index] = value, expected one that has"
            )
        if not all(isinstance(size, int) for size in array.shape):
            return ConvShapeError(f"got shape {tuple(array.shape)} with unknown sizes, expected numbers")
        if _is_masked(array):
            return ConvTypeError(f"{MASKED}, with a number where the mask is")
        return None

    def devices(self) -> list[Any]:
        # JAX lists its devices, and None for the default device.
        return [device for device in super().devices() if device is not None] or [None]

    def device_of(self, array: Array) -> Any:
        import array_api_compat

        try:
            return array_api_compat.device(array)
        except AttributeError:  # a library with one device may not say which
            return None

    def asarray(self, obj: Any, dtype: Any = None, device: Any = None) -> Array:
        dtype = self.dtype(dtype) if isinstance(dtype, str) else dtype
        return self.xp.asarray(obj, dtype=dtype, **_on(device))

    def empty(self, shape: tuple[int, ...], like: Array, last: int = 0, dtype: Any = None) -> Array:
        if last:
            return super().empty(shape, like, last, dtype)
        return self.xp.empty(shape, dtype=dtype or like.dtype, **_on(self.device_of(like)))

    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        return self.xp.zeros(shape, dtype=like.dtype, **_on(self.device_of(like)))

    def during_call(self, like: Array, precision: str) -> AbstractContextManager[Any]:
        return lacks_are_named(self)

    def to_numpy(self, array: Array) -> Any:
        import numpy

        return numpy.asarray(array)


def _is_masked(array: Array) -> bool:
    """Return whether an array, such as one of marray, has a mask that leaves out some of its elements."""
    import array_api_compat

    mask = getattr(array, "mask", None)
    if mask is None or not array_api_compat.is_array_api_obj(mask):
        return False
    return bool(array_api_compat.array_namespace(mask).any(mask))


def _on(device: Any) -> dict[str, Any]:
    """Return the keyword that names a device, if there is one to name."""
    return {} if device is None else {"device": device}


@contextmanager
def lacks_are_named(backend: Backend) -> Iterator[None]:
    """Turn an error of a library that has less than the Array API standard says into a `BackendError`."""
    try:
        yield
    except PortconvError:
        raise
    except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise BackendError(
            f"{backend.name}: got {type(error).__name__}: {in_a_line(error)}; expected what the Array API standard says"
        ) from error
