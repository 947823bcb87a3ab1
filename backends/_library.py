"""What an array library is called, how it is found, and whether it works here.

- Asking whether an array belongs to a library imports no library: `owns` looks in `sys.modules`.
- If a library is missing or has no device, the reason is found once, kept, and given in words.
"""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

from ..errors import BackendError, in_a_line
from ._terms import Unavailable


class Library:
    """The names of a library, and its namespace or why it has none; `Backend` describes the attributes."""

    name: str
    module: str
    array_class: str
    install: str

    def load(self) -> Any:
        """Import the library and return its Array API namespace.

        Import the library before what adapts it: only where its own module is not found is it not installed. Raise
        `Unavailable` for other reasons why it does not work.
        """
        raise NotImplementedError

    @cached_property
    def _loaded(self) -> tuple[Any, Unavailable | None]:
        try:
            return self.load(), None
        except Unavailable as reason:
            return None, reason
        except BackendError:  # not of the library: of a call while the first one still loads modules
            raise
        except Exception as error:  # a library may raise any error when it is imported
            if isinstance(error, ModuleNotFoundError) and error.name == self.module.partition(".")[0]:
                return None, Unavailable(f"{self.name} is not installed ({in_a_line(error)})")
            words = f"{type(error).__name__}: {in_a_line(error)}"
            return None, Unavailable(f"{self.name} is installed and cannot be imported: {words}", broken=True)

    @property
    def fault(self) -> Unavailable | None:
        """The error that says why this backend does not work here, or None if it works."""
        return self._loaded[1]

    @property
    def unavailable(self) -> str | None:
        """The reason why this backend does not work here, in words, or None if it works."""
        return None if self.fault is None else str(self.fault)

    @cached_property
    def xp(self) -> Any:
        """The library's Array API namespace."""
        xp, fault = self._loaded
        if fault is not None:
            remedy = "; it needs a device and its driver" if fault.no_device else f"; to install it: {self.install}"
            raise BackendError(f"backend {self.name!r} is unavailable: {fault}{'' if fault.broken else remedy}")
        return xp

    def __repr__(self) -> str:
        return f"<portconv backend {self.name!r}{'' if self.fault is None else ', unavailable'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # There is one of each: a copy is the same object, and so is what a pickle gives.
        return sys.modules[__package__].find, (self.name,)

    def owns(self, array: object) -> bool:
        """Return whether an array is of this library; import nothing."""
        array_type = getattr(sys.modules.get(self.module), self.array_class, None)
        return isinstance(array_type, type) and isinstance(array, array_type)

    @property
    def converter(self) -> str:
        """The code of the function with which a user makes an array of this library."""
        return f"portconv.backends.get({self.name!r}).asarray"

    def version(self) -> str:
        """Return the version of the library."""
        return str(getattr(sys.modules.get(self.module.partition(".")[0]), "__version__", "unknown"))

    @property
    def info(self) -> Any:
        """What the namespace says of itself, or None if it says nothing: the standard asks for it since 2023.12."""
        try:
            return self.xp.__array_namespace_info__()
        except (AttributeError, RuntimeError):
            return None
