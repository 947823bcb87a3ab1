"""The ways in which a case is run: on which backend and device, with how many threads, whole or in two halves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from threadpoolctl import threadpool_limits

from .. import backends, limits
from ..backends import Backend
from ..convolution import conv
from ..errors import BackendError, in_a_line
from ..spec.dtypes import HALVES


@dataclass(frozen=True)
class Variant:
    """One way to run a case.

    Attributes
    ----------
    backend : Backend
    device : object, optional
        One of the backend's; its default one if None.
    device_name : str
        In words, where `device` is not the default one.
    threads : int, optional
        How many it is held to; as many as it takes by itself if None.
    halves : bool
        Whether the batch is cut in two and the results put together: the output and the input's gradient alone, as the
        other gradients are sums over the batch.
    """

    backend: Backend
    device: Any = None
    device_name: str = ""
    threads: int | None = None
    halves: bool = False

    @property
    def label(self) -> str:
        """The backend's name, and in brackets what else sets this way apart."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}" if self.threads else ""
        apart = [word for word in (self.device_name, threads, "halves" if self.halves else "") if word]
        return f"{self.backend.name} ({', '.join(apart)})" if apart else self.backend.name

    @property
    def place(self) -> tuple[str, str]:
        return self.backend.name, self.device_name

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold portconv's threads and those of the libraries beneath to as many as were asked for."""
        if self.threads is None:
            yield
            return
        with limits.num_threads(self.threads), threadpool_limits(self.threads):
            yield


def plain(ways: Sequence[Backend | Variant]) -> list[Variant]:
    """Return ways to run a case, where a backend alone stands for itself as it is."""
    return [Variant(way) if isinstance(way, Backend) else way for way in ways]


def pairs(variants: Sequence[Variant]) -> list[tuple[Variant, Variant]]:
    """Pair what is compared: the first of each backend and device with one another, the rest with their own first."""
    firsts = {variant.place: variant for variant in reversed(variants)}
    own = [(firsts[variant.place], variant) for variant in variants if variant is not firsts[variant.place]]
    return [*combinations([variant for variant in variants if variant is firsts[variant.place]], 2), *own]


def unsupported(
    backend: Backend, dtype: str, device: Any = None, device_name: str = "", precision: str = "standard"
) -> str | None:
    """Say why a backend cannot be held to a dtype and a precision on a device; None where it can.

    Parameters
    ----------
    backend : Backend
    dtype : str
    device : object, optional
        Where it puts arrays by default if None.
    device_name : str
        In words, where `device` is given.
    precision : {"standard", "fast", "reproducible"}

    Returns
    -------
    str or None
    """
    where = f"device {device_name}" if device_name else "its default device"
    info = getattr(backend.xp, "__array_namespace_info__", None)
    if dtype in HALVES:  # which are none of the standard's, and which the host must have too
        try:
            backends.get("numpy").dtype(dtype)
        except BackendError as error:
            return str(error)
        known = backend.holds(dtype, backend.asarray([0.0], dtype="float32", **_on(device)))
    else:
        known = hasattr(backend.xp, dtype) if info is None else dtype in info().dtypes(**_on(device))
    if not known:
        return f"has no {dtype} on {where}"
    if precision == "standard":
        return None
    try:
        one = backend.asarray([[[1.0]]], dtype=dtype, **_on(device))
        conv(one, one, precision=precision)
    except BackendError as error:
        return f"{dtype} on {where}: {in_a_line(error)}"
    except Exception:  # which is for the cases to show
        return None
    return None


def _on(device: Any) -> dict[str, Any]:
    return {} if device is None else {"device": device}
