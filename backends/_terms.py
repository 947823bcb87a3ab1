"""The terms of a backend: arrays, workspaces, costs, and the reason why a library does not work."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeVar

Array = Any
"""An array of any library; the standard has no type for it."""


class SomeArray(Protocol):
    """What a type checker may know of an array of any library."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...


ArrayT = TypeVar("ArrayT", bound=SomeArray)
"""The arrays of one library: what a function makes of them is of that library too."""

Block = TypeVar("Block")

CPU_WORKSPACE, GPU_WORKSPACE = 64 << 20, 512 << 20
"""How many bytes a call may use on each thread beside its result, unless the user sets a limit."""

MASKED = "got a masked array, expected a plain one"
"""Why an array is refused: a product would count what its mask leaves out."""

RUN = 128
"""The most terms that a library adds up in one sum, one by one or not."""


class Workspace(Protocol):
    """Return an uninitialised array; the next call with the same name may return the same memory."""

    def __call__(self, name: str, /, shape: tuple[int, ...], dtype: Any = None) -> Array: ...


class Costs(NamedTuple):
    """How many nanoseconds each kind of work takes; only the ratios matter, and only to the choice of an algorithm.

    Attributes
    ----------
    operation : float
        One multiplication or addition in a matrix product.
    element : float
        Copying or adding one element of a long row in cache.
    transform : float
        One point of a Fourier transform, for each factor of two in the number of points.
    call : float
        One call of the library, without the work in it.
    native : float
        One multiplication or addition in the library's own convolution; as many as in a matrix product if None or 0.
    """

    operation: float
    element: float
    transform: float
    call: float
    native: float | None = None


class Unavailable(Exception):
    """The reason why a library does not work here.

    `no_device` says that only the hardware or its driver is missing, and `broken` that its import fails although it is
    installed.
    """

    def __init__(self, reason: str, *, no_device: bool = False, broken: bool = False) -> None:
        super().__init__(reason)
        self.no_device, self.broken = no_device, broken
