"""Test that `portconv backends` says which libraries work, and why the others do not."""

from __future__ import annotations

import importlib.util
import json
import warnings
from typing import Any

import numpy as np
import pytest

from portconv import backends
from portconv.backends import Backend, Unavailable
from portconv.errors import BackendError

pytest.importorskip("click", reason="the command's libraries are not installed: pip install 'portconv[cli]'")
pytest.importorskip("rich", reason="the command's libraries are not installed: pip install 'portconv[cli]'")

from click.testing import CliRunner

from portconv.command.backends import command, device_name
from portconv.kernels import state
from portconv.kernels.target import cross


class Fast(Backend):
    name = "fast"
    module = "json"
    array_class = "nothing"
    install = "pip install fast"

    def load(self) -> Any:
        return np

    def version(self) -> str:
        return "12.3"

    def devices(self) -> list[Any]:
        return ["cpu", "gpu:0"]

    def details(self) -> dict[str, str]:
        return {"threads": "7"}

    def advice(self) -> str | None:
        return "a setting that costs half the speed; " + "words that are longer than one line of 80 columns; " * 2


class Missing(Fast):
    name = "missing"
    install = "pip install 'portconv[missing]'"

    def load(self) -> Any:
        reason = "Missing is not installed (No module named 'a_module_of_a_very_long_name_that_must_not_be_cut_short')"
        raise Unavailable(reason)

    def version(self) -> str:
        return "unknown"


class NoDevice(Missing):
    name = "no_device"

    def load(self) -> Any:
        raise Unavailable("CUDA finds no device", no_device=True)


class Crashing(Missing):
    name = "crashing"

    def load(self) -> Any:
        raise RuntimeError("the driver\nis confused")


KNOWN: dict[str, Backend] = {kind.name: kind() for kind in (Crashing, Fast, Missing, NoDevice)}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the known backends by one for each case, and by a broken one of a third party."""

    def find(name: str) -> Backend:
        if name == "broken":
            warnings.warn("portconv: the backend 'broken' of 'nothing:here' is broken: no such module", stacklevel=2)
            raise BackendError("backend: got 'broken', expected one of others")
        return type(KNOWN[name])()

    monkeypatch.setattr(backends, "names", lambda: ("broken", *KNOWN))
    monkeypatch.setattr(backends, "find", find)


def listed(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def entries() -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in json.loads(listed("--json"))["backends"]}


def test_json_tells_of_every_known_backend() -> None:
    actual = entries()
    assert list(actual) == list(backends.names())
    for name, entry in actual.items():
        backend = backends.find(name)
        assert entry["available"] == (backend.unavailable is None)
        assert entry["reason"] == backend.unavailable
        assert entry["install"] == backend.install
    numpy = actual["numpy"]
    assert numpy["available"]
    assert (numpy["version"], numpy["devices"], numpy["no_device"]) == (np.__version__, ["cpu"], False)
    assert int(numpy["details"]["threads"]) >= 1


@pytest.mark.usefixtures("made_up")
def test_json_of_each_case() -> None:
    actual = entries()
    assert actual["fast"] == {
        "name": "fast",
        "available": True,
        "reason": None,
        "install": "pip install fast",
        "no_device": False,
        "version": "12.3",
        "devices": ["cpu", "gpu:0"],
        "details": {"threads": "7"},
        "advice": Fast().advice().strip(),
    }
    assert [name for name, entry in actual.items() if entry["available"]] == ["fast"]
    assert [name for name, entry in actual.items() if entry["no_device"]] == ["no_device"]
    assert actual["crashing"]["reason"] == (
        "crashing is installed and cannot be imported: RuntimeError: the driver is confused"
    )
    assert (actual["crashing"]["install"], actual["missing"]["install"]) == (None, "pip install 'portconv[missing]'")
    assert actual["broken"]["reason"].endswith("is broken: no such module")
    assert actual["missing"]["version"] is None
    assert actual["missing"]["devices"] == []


@pytest.mark.usefixtures("made_up")
def test_table_fits_80_columns_and_cuts_nothing_short() -> None:
    lines = listed().splitlines()
    table = [line for line in lines if not line.startswith(("fast: ", "kernels: "))]
    assert max(len(line) for line in table) == 80
    details = "".join(line.split("│")[4].strip() for line in table if line.count("│") == 5)
    assert "…" not in "".join(table)
    assert "a_module_of_a_very_long_name_that_must_not_be_cut_short" in details
    assert "pip install 'portconv[missing]'" in details.replace("install'", "install '")
    assert "threads: 7" in details


@pytest.mark.usefixtures("made_up")
def test_install_command_is_shown_only_where_installing_helps() -> None:
    # Of the four that do not work, one lacks a device, which pip cannot install, and two cannot be loaded.
    assert listed().count("To install it") == 1


@pytest.mark.usefixtures("made_up")
def test_advice_is_one_line_below_the_table() -> None:
    *_, border, kernels, advice = listed().splitlines()
    assert kernels.startswith("kernels: ")
    assert border.startswith("╰")
    assert advice == f"fast: {Fast().advice()}".rstrip()


def test_whether_there_are_kernels_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    here = cross("avx2")
    monkeypatch.setattr(state, "_state", state._State(here, None))
    said = json.loads(listed("--json"))["kernels"]
    assert (said["available"], said["reason"], said["instructions"], said["cpu"]) == (True, None, "avx2", "haswell")
    assert "\nkernels: for AVX2 (haswell), by " in listed()


def test_without_llvmlite_the_install_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llvmlite" else found(name))
    monkeypatch.setattr(state, "_state", None)
    assert json.loads(listed("--json"))["kernels"] == {
        "available": False,
        "reason": "llvmlite is not installed; to install it: pip install 'portconv[kernels]'",
        "install": "pip install 'portconv[kernels]'",
        "instructions": None,
        "cpu": None,
        "version": None,
    }
    assert "\nkernels: none: llvmlite is not installed" in listed()


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("cpu", "cpu"),
        ("<CUDA Device 0>", "CUDA Device 0"),
        ("array_api_strict.Device('CPU_DEVICE')", "CPU_DEVICE"),
        ("Device('device1')", "device1"),
    ],
)
def test_device_names_are_words(device: str, name: str) -> None:
    assert device_name(device) == name


def test_wrong_argument_is_refused() -> None:
    assert CliRunner().invoke(command, ["extra"]).exit_code == 2
