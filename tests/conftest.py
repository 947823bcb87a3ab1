"""The option --backend, and the fixture `target`: one array library on one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from portconv.backends import Backend

from portconv import backends

GENERIC = "generic"
"""Stands for a library that portconv has no module for; JAX, whose arrays are immutable, is the one tested."""


@dataclass(frozen=True)
class Target:
    """A backend and a device of its own."""

    backend: Backend
    device: Any

    def array(self, values: Any, dtype: str | None = None) -> Any:
        """An array there, read-only where the library has such."""
        made = self.backend.asarray(np.array(values, dtype=dtype), device=self.device)
        if isinstance(made, np.ndarray):
            made.flags.writeable = False
        return made

    def numpy(self, array: Any) -> np.ndarray:
        return np.asarray(self.backend.to_numpy(array))

    def owns(self, array: Any) -> bool:
        return backends.of(array) is self.backend and self.backend.device_of(array) == self.device


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="run the matrix on this backend (repeatable; default: all that work here, the others skipped in words)",
    )


def pytest_configure(config: pytest.Config) -> None:
    for name in config.getoption("--backend") or ():
        known = (*backends.names(), GENERIC)
        if name not in known:
            raise pytest.UsageError(f"--backend: got {name!r}, expected one of {', '.join(known)}")
        reason, no_device = _absence(name)
        if reason and not no_device:
            raise pytest.UsageError(f"--backend {name}: {reason}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        names = metafunc.config.getoption("--backend") or backends.names()
        metafunc.parametrize("target", [param for name in names for param in _targets(name)])


def _absence(name: str) -> tuple[str | None, bool]:
    """Why a backend cannot be tested here, and whether for want of a device alone."""
    if name == GENERIC:
        try:
            import jax  # noqa: F401
        except ImportError:
            return "JAX, which stands for any other library, is not installed", False
        return None, False
    fault = backends.find(name).fault
    return (None, False) if fault is None else (str(fault), fault.no_device)


def _targets(name: str) -> list[Any]:
    reason, _ = _absence(name)
    if reason:
        return [pytest.param(None, id=name, marks=pytest.mark.skip(reason=f"{name} is unavailable: {reason}"))]
    if name == GENERIC:
        import jax

        jax.config.update("jax_enable_x64", True)
        # Code that runs once need not be good, and compiling it is what takes the time.
        jax.config.update("jax_disable_most_optimizations", True)
        array = jax.numpy.zeros(1)
        return [pytest.param(Target(backends.of(array), array.device), id="generic-jax")]
    backend = backends.get(name)
    if name == "torch":
        # Its threads take longer to share sums this small than to add them up, above all beside other processes.
        backend.xp.set_num_threads(1)
    devices = backend.devices()
    if name == "array_api_strict":
        devices = [device for device in devices if str(device).count("CPU_DEVICE") or str(device).count("device1")]
    ids = [name, *(f"{name}-{i}" for i in range(1, len(devices)))]
    return [pytest.param(Target(backend, device), id=label) for device, label in zip(devices, ids, strict=True)]
