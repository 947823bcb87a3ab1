"""Test that `portconv kernels` lists, compiles, clears and prints kernels, and says why there are none."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MISSING = "the command's libraries are not installed: pip install 'portconv[cli]'"
testing = pytest.importorskip("click.testing", reason=MISSING)
pytest.importorskip("rich", reason=MISSING)

from portconv.command.kernels import command  # noqa: E402  (needs click)
from portconv.kernels import cache, state, target  # noqa: E402
from portconv.kernels.families import kernels  # noqa: E402

LLVM = pytest.mark.skipif(state.no_compiler() is not None, reason=f"nothing can be compiled: {state.no_compiler()}")
NAMES = [str(kernel) for kernel in kernels()]


@pytest.fixture(autouse=True)
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in a process that has not looked for kernels yet."""
    for name in (state.VARIABLE, target.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "kernels"))
    monkeypatch.setattr(state, "_state", None)
    monkeypatch.setattr(cache, "_has_warned", False)
    return tmp_path / "kernels"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes no time."""
    monkeypatch.setattr(cache, "compiled", lambda module, target: b"object")


def done(*arguments: str, status: int = 0) -> str:
    result = testing.CliRunner(env={"COLUMNS": "80"}).invoke(command, arguments)
    assert result.exit_code == status, result.output
    return result.output


def listed(*arguments: str, status: int = 0) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(done("--json", *arguments, status=status))
    return answer


def states(answer: dict[str, Any]) -> dict[str, tuple[str, int]]:
    return {each["name"]: (each["state"], each["bytes"]) for each in answer["kernels"]}


@LLVM
@pytest.mark.usefixtures("quick")
def test_all_compiles_what_is_missing_and_clear_removes_it(where: Path) -> None:
    before = listed("--target", "avx2")
    assert states(before) == dict.fromkeys(NAMES, ("not compiled", 0))
    assert before["target"] == {
        "name": "avx2",
        "words": "AVX2 (haswell)",
        "triple": "x86_64-unknown-linux-gnu",
        "cpu": "haswell",
    }
    after = listed("--all", "--target", "avx2")
    assert states(after) == dict.fromkeys(NAMES, ("cached", 6))
    count = len(NAMES)
    assert after["cache"] == {"folder": str(where), "fault": None, "kernels": count, "stale": 0, "bytes": 6 * count}
    assert states(listed("--target", "neon")) == dict.fromkeys(NAMES, ("not compiled", 0))
    assert listed("--clear") == {"folder": str(where), "removed": count}
    assert states(listed("--target", "avx2")) == states(before)
    assert done("--clear") == f"removed 0 kernels from {where}\n"


@LLVM
@pytest.mark.usefixtures("quick")
def test_the_list_in_words(where: Path) -> None:
    done("--all", "--target", "neon")
    (where / cache.file_name(kernels()[0], target.cross("neon"))).write_bytes(b"nothing")
    text = done("--target", "neon")
    lines = [line.split() for line in text.splitlines()]
    assert [NAMES[0], "damaged"] in lines
    assert [NAMES[1], "cached", "6"] in lines
    assert f"for NEON (neoverse-n1), by {state.version()}" in text
    assert "1 are of other versions or damaged, which --clear removes" in text


@LLVM
def test_assembly_is_that_of_the_target() -> None:
    text = done("--assembly", NAMES[0], "--target", "neon")
    assert "fmla" in text
    assert "\t.text\n" in text
    answer = listed("--assembly", NAMES[0], "--target", "neon")
    assert answer == {"kernel": NAMES[0], "target": "NEON (neoverse-n1)", "assembly": text}


@LLVM
def test_an_unknown_kernel_is_refused() -> None:
    said = " ".join(done("--assembly", "none", "--target", "avx2", status=2).split())
    assert said == f"Error: --assembly: got 'none', expected one of {', '.join(NAMES)}"


@pytest.mark.parametrize(
    "arguments", [("--all", "--clear"), ("--clear", "--assembly", "x"), ("--target", "sse2"), ("x",)]
)
def test_bad_arguments_are_refused(arguments: tuple[str, ...]) -> None:
    done(*arguments, status=2)


def test_without_llvmlite_the_install_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = "llvmlite is not installed; to install it: pip install 'portconv[kernels]'"
    for arguments in ((), ("--all",), ("--target", "neon"), ("--assembly", NAMES[0])):
        assert done(*arguments, status=1) == f"no kernels: {words}\n"
    assert listed(status=1) == {"fault": words, "install": "pip install 'portconv[kernels]'"}
    assert "removed 0 kernels" in done("--clear")


def test_kernels_that_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(state.VARIABLE, "off")
    assert done(status=1) == "no kernels: kernels are switched off: PORTCONV_KERNELS=off\n"


@LLVM
@pytest.mark.usefixtures("quick")
def test_all_says_where_nothing_can_be_kept(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where.write_text("a file")
    text = done("--all", "--target", "avx2", status=1)
    assert text.count("FAILED") == 1
    assert "something else of that name" in text
    assert done("--clear", status=1) == (
        f"Error: --clear: {where}: there is no folder, but something else of that name\n"
    )
    monkeypatch.setenv(cache.VARIABLE, "off")
    answer = listed("--all", "--target", "avx2", status=1)
    assert answer["cache"]["folder"] is None
    assert answer["faults"] == ["nothing is kept: PORTCONV_KERNEL_CACHE is off, or there is no home folder"]
    monkeypatch.setenv(cache.VARIABLE, str(where.with_name("other")))
    monkeypatch.setattr(cache, "sources", str)
    (fault,) = listed("--all", "--target", "avx2", status=1)["faults"]
    assert fault.startswith("nothing is kept: portconv's own files changed")


@LLVM
def test_all_goes_on_after_a_kernel_that_llvm_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(module: object, target: object) -> bytes:
        raise RuntimeError("no such\nregister")

    monkeypatch.setattr(cache, "compiled", refusing)
    answer = listed("--all", "--target", "avx2", status=1)
    assert answer["faults"] == [f"{name}: LLVM cannot compile it: no such register" for name in NAMES]


@LLVM
@pytest.mark.usefixtures("quick")
def test_a_pipe_sees_no_progress_bar(where: Path) -> None:
    done("--all", "--target", "avx2")
    for kernel in kernels()[:5]:
        (where / cache.file_name(kernel, target.cross("avx2"))).unlink()
    program = [sys.executable, "-P", "-m", "portconv", "kernels", "--all", "--json", "--target", "avx2"]
    finished = subprocess.run(program, capture_output=True, text=True, check=True, env=dict(os.environ), timeout=120)
    assert finished.stderr == ""
    assert {each["state"] for each in json.loads(finished.stdout)["kernels"]} == {"cached"}
    assert len([*where.iterdir()]) == len(NAMES)
