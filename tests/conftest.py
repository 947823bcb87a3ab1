"""The option --backend, and the fixture `target`: one array library on one device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from portconv import backends
from portconv.algorithms.choice import known
from portconv.backends import Backend
from portconv.spec.remembered import forget

_on_jax = itertools.count(1)


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


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the kernels of this CPU out of what "auto" considers, so that it chooses the same on every machine."""
    monkeypatch.setattr(known()["compiled"], "automatic", False)
    forget()
    yield
    monkeypatch.undo()
    forget()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="run the matrix on this backend (repeatable; default: all that work here, the others skipped in words)",
    )
    parser.addoption("--every", action="store_true", help="try on JAX all problems of golden.json, in minutes")
    parser.addoption("--matrix-only", action="store_true", help="leave out what is the same on all backends")


def pytest_configure(config: pytest.Config) -> None:
    for name in config.getoption("--backend") or ():
        if name not in backends.names():
            raise pytest.UsageError(f"--backend: got {name!r}, expected one of {', '.join(backends.names())}")
        fault = backends.find(name).fault
        if fault is not None and not fault.no_device:
            raise pytest.UsageError(f"--backend {name}: {fault}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        names = metafunc.config.getoption("--backend") or backends.names()
        metafunc.parametrize("target", [param for name in names for param in _targets(name)])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--matrix-only"):
        others: list[pytest.Item] = []
        matrix: list[pytest.Item] = []
        for item in items:
            (matrix if "target" in getattr(item, "fixturenames", ()) else others).append(item)
        config.hook.pytest_deselected(items=others)
        items[:] = matrix


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """JAX keeps all that it has compiled, and a process can map only so much memory."""
    target = getattr(getattr(item, "callspec", None), "params", {}).get("target")
    if target is not None and target.backend.name == "jax" and next(_on_jax) % 100 == 0:
        import jax

        jax.clear_caches()


def _targets(name: str) -> list[Any]:
    fault = backends.find(name).fault
    if fault is not None:
        return [pytest.param(None, id=name, marks=pytest.mark.skip(reason=f"{name} is unavailable: {fault}"))]
    backend = backends.get(name)
    if name == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        # Code that runs once need not be good, and compiling it is what takes the time.
        jax.config.update("jax_disable_most_optimizations", True)
    if name == "torch":
        # Its threads take longer to share sums this small than to add them up, above all beside other processes.
        backend.xp.set_num_threads(1)
    devices = backend.devices()
    if name == "array_api_strict":
        devices = [device for device in devices if str(device).count("CPU_DEVICE") or str(device).count("device1")]
    ids = [name, *(f"{name}-{i}" for i in range(1, len(devices)))]
    return [pytest.param(Target(backend, device), id=label) for device, label in zip(devices, ids, strict=True)]
