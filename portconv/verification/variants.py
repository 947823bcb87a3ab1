"""The ways to run a case: on which backend and device, with how many threads, whole or in two halves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
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
        One of the backend's devices; its default device if None.
    device_name : str
        The device's name, if it is not the default one.
    threads : int, optional
        The number of threads; the library chooses it if None.
    halves : bool
        Whether the batch is cut in two and the results are joined. This gives only the output and the input's
        gradient, because the other gradients are sums over the batch.
    """

    backend: Backend
    device: Any = None
    device_name: str = ""
    threads: int | None = None
    halves: bool = False

    @property
    def label(self) -> str:
        """The backend's name; the device, the threads and "halves" stand in brackets if they are not the default."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}" if self.threads else ""
        details = [word for word in (self.device_name, threads, "halves" if self.halves else "") if word]
        return f"{self.backend.name} ({', '.join(details)})" if details else self.backend.name

    @property
    def place(self) -> tuple[str, str]:
        return self.backend.name, self.device_name

    @contextmanager
    def held(self) -> Iterator[None]:
        """Limit the threads of portconv and of the libraries below it to `threads`; do not warn of infinities."""
        with ExitStack() as stack:
            stack.enter_context(np.errstate(over="ignore", invalid="ignore"))
            if self.threads is not None:
                stack.enter_context(limits.num_threads(self.threads))
                stack.enter_context(threadpool_limits(self.threads))
            yield


def plain(ways: Sequence[Backend | Variant]) -> list[Variant]:
    """Return the ways as variants; a backend becomes a variant with its defaults."""
    return [Variant(way) if isinstance(way, Backend) else way for way in ways]


def pairs(variants: Sequence[Variant]) -> list[tuple[Variant, Variant]]:
    """List the pairs to compare.

    The first variants of each two places (a backend on a device) are a pair, and every other variant is one with the
    first variant of its place.
    """
    firsts = {variant.place: variant for variant in reversed(variants)}
    within_places = [(firsts[variant.place], variant) for variant in variants if variant is not firsts[variant.place]]
    return [*combinations([variant for variant in variants if variant is firsts[variant.place]], 2), *within_places]


def unsupported(
    backend: Backend, dtype: str, device: Any = None, device_name: str = "", precision: str = "standard"
) -> str | None:
    """Say why a backend cannot be verified in a dtype and a precision on a device; None if it can.

    Parameters
    ----------
    backend : Backend
    dtype : str
    device : object, optional
        The backend's default device if None.
    device_name : str
        The device's name, if `device` is given.
    precision : {"standard", "fast", "reproducible"}

    Returns
    -------
    str or None
    """
    where = f"device {device_name}" if device_name else "its default device"
    info = backend.info
    if dtype in HALVES:  # the standard has neither, and the host must have it too
        try:
            backends.get("numpy").dtype(dtype)
        except BackendError as error:
            return str(error)
        known = backend.holds(dtype, backend.asarray([0.0], dtype="float32", **on(device)))
    else:
        known = hasattr(backend.xp, dtype) if info is None else dtype in info.dtypes(**on(device), kind=None)
    if not known:
        return f"has no {dtype} on {where}"
    if precision == "standard":
        return None
    try:
        one = backend.asarray([[[1.0]]], dtype=dtype, **on(device))
        conv(one, one, precision=precision)  # type: ignore[arg-type]
    except BackendError as error:
        return f"{dtype} on {where}: {in_a_line(error)}"
    except Exception:  # the cases will show it
        return None
    return None


def on(device: Any) -> dict[str, Any]:
    """Return the keyword with which a library makes arrays on a device: none for its default one."""
    return {} if device is None else {"device": device}
