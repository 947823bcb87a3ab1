"""What ``portconv run`` computes, on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from .filters import Bank
from .photograph import Photograph


@dataclass(frozen=True, eq=False)
class Result:
    """The results of convolving a photograph.

    Attributes
    ----------
    picture : Photograph
        The photograph that was convolved.
    bank : Bank
        The filters.
    backend, device : str
        The names of the library and the device.
    maps : array, shape (F, height, width)
        The results of the filters.
    gradient : array, shape (C, height, width), optional
        The gradient of half the maps' sum of squares with respect to the photograph.
    """

    picture: Photograph
    bank: Bank
    backend: str
    device: str
    maps: NDArray[Any]
    gradient: NDArray[Any] | None
