"""``portconv verify`` as a user meets it: what it prints, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from portconv import backends
from portconv.algorithms import gemm
from portconv.verification import Case, cases

MISSING = "the command's libraries are not installed: pip install 'portconv[cli]'"
testing = pytest.importorskip("click.testing", reason=MISSING)
pytest.importorskip("rich", reason=MISSING)

from portconv.command import verify  # noqa: E402  (needs click and rich)

NAMES = ("1d-stride2", "2d", "2d-groups2", "2d-batch0")
Verify = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Verify:
    """The command on a few cases, at the width of a pipe."""

    def few(dtypes: Any) -> tuple[Case, ...]:
        return tuple(case for case in cases(dtypes) if case.name in NAMES)

    monkeypatch.setattr(verify, "cases", few)
    monkeypatch.setenv("COLUMNS", "80")

    def invoke(*arguments: str) -> Any:
        return testing.CliRunner().invoke(verify.command, arguments, catch_exceptions=False)

    return invoke


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's gradient of the kernel, in float32, with its taps in the wrong order."""
    original = gemm.weight_grad

    def flipped(geometry: Any, backend: Any, *arguments: Any) -> Any:
        result = original(geometry, backend, *arguments)
        wrong = backend.name == "numpy" and "float32" in str(result.dtype)
        return result[..., ::-1] if wrong else result

    monkeypatch.setattr(gemm, "weight_grad", flipped)


def hide(monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> None:
    monkeypatch.setattr(backends.find(name), "_loaded", (None, backends.Unavailable(reason)))


def test_all_libraries_here_agree(run: Verify) -> None:
    done = run()
    assert done.exit_code == 0, done.output
    here = [backend.name for backend in backends.available()]
    pairs = len(here) * (len(here) - 1) // 2
    comparisons = (4 * 3 + 3) * 2 * (len(here) + pairs)  # four cases, three of them with a bias, in two dtypes
    s = "" if len(here) == 1 else "s"
    assert done.stdout.splitlines()[-1] == f"{comparisons} comparisons on {len(here)} backend{s}: all within bounds"
    assert done.stderr == ""
    for name in here:
        assert sum(line.split()[:1] == [name] for line in done.stdout.splitlines()) >= 8
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80


def test_the_whole_matrix_holds_on_numpy() -> None:
    done = testing.CliRunner().invoke(verify.command, ["--backend", "numpy", "--dtype", "float32"])
    assert done.exit_code == 0, done.output
    assert "on 1 backend: all within bounds" in done.stdout


@pytest.mark.usefixtures("broken")
def test_a_broken_library_is_named_and_fails(run: Verify) -> None:
    done = run("--backend", "numpy")
    assert done.exit_code == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert [line.split(":")[:3] for line in failed] == [
        ["FAILED numpy", f" {name} float32 dw", " off by" + line.split(": off by")[1]]
        for name, line in zip(("1d-stride2", "2d", "2d-groups2"), failed, strict=True)
    ]
    assert all("times the bound" in line and "ulps" in line for line in failed)
    assert done.stdout.splitlines()[-1] == "30 comparisons on 1 backend: 3 out of bounds"
    verdicts = [line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["numpy"]]
    assert [(row[1], row[2]) for row in verdicts if row[-1] == "FAILED"] == [("float32", "dw")]
    assert max(len(line) for line in done.stdout.splitlines() if line not in failed) <= 80


@pytest.mark.usefixtures("broken")
def test_many_failures_are_counted_and_not_all_told(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MOST_FAILURES", 2)
    lines = run("--backend", "numpy").stdout.splitlines()
    assert sum(line.startswith("FAILED") for line in lines) == 2
    assert lines[-2] == "... and 1 more"


def test_an_exception_is_told_in_one_line(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*arguments: Any) -> Any:
        raise RuntimeError("out of [bold]memory[/]\nat line 2")

    monkeypatch.setattr(gemm, "forward", raising)
    done = run("--backend", "numpy", "--dtype", "float64")
    assert done.exit_code == 1
    assert (
        "FAILED numpy: 2d float64 out: raised RuntimeError: out of [bold]memory[/] at line 2"
        in done.stdout.splitlines()
    )


@pytest.mark.usefixtures("broken")
def test_json_has_the_figures_and_nothing_else(run: Verify) -> None:
    done = run("--backend", "numpy", "--json")
    assert done.exit_code == 1
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert (found["held"], found["comparisons"], found["out_of_bounds"]) == (False, 30, 3)
    assert found["backends"] == ["numpy"]
    assert found["precision"] == "standard"
    rows = {(row["dtype"], row["quantity"]): row for row in found["against_truth"]}
    assert 0 < rows["float32", "out"]["units"] < 1
    assert rows["float32", "out"]["count"] == 4
    assert rows["float32", "dw"]["units"] > 100
    assert rows["float32", "dw"]["failed"] == 3
    assert rows["float64", "dw"]["failed"] == 0
    first = found["failures"][0]
    assert (first["backend"], first["case"], first["dtype"], first["quantity"]) == (
        "numpy",
        "1d-stride2",
        "float32",
        "dw",
    )
    assert first["message"].startswith("numpy: 1d-stride2 float32 dw: off by")


def test_json_has_null_where_there_is_no_finite_number(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    original = gemm.forward
    monkeypatch.setattr(gemm, "forward", lambda *arguments: original(*arguments) * float("nan"))
    done = run("--backend", "numpy", "--dtype", "float32", "--json")
    assert done.exit_code == 1
    assert {failure["units"] for failure in json.loads(done.stdout)["failures"]} == {None}


def test_pairs_are_told(run: Verify) -> None:
    pytest.importorskip("array_api_strict", reason="a second library is not installed: pip install array-api-strict")
    done = run("--backend", "array_api_strict", "--backend", "numpy", "--backend", "numpy", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["backends"] == ["array_api_strict", "numpy"]
    assert [(row["backend"], row["other"], row["dtype"]) for row in found["pairs"]] == [
        ("array_api_strict", "numpy", "float32"),
        ("array_api_strict", "numpy", "float64"),
    ]
    assert all(0 < row["equal"] <= 1 and row["units"] < 1 for row in found["pairs"])


def test_what_is_skipped_is_said(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "cupy", "CUDA finds\nno device")
    done = run("--dtype", "float64")
    assert done.exit_code == 0
    assert "skipped cupy: CUDA finds no device" in done.stdout.splitlines()
    assert {"backend": "cupy", "reason": "CUDA finds\nno device"} in json.loads(run("--json").stdout)["skipped"]


def test_a_library_that_breaks_on_import_is_skipped(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    original = backends.find

    def find(name: str) -> Any:
        if name == "cupy":
            raise ValueError("numpy.dtype size changed")
        return original(name)

    monkeypatch.setattr(backends, "find", find)
    done = run("--dtype", "float64")
    assert done.exit_code == 0
    assert "skipped cupy: ValueError: numpy.dtype size changed" in done.stdout.splitlines()


def test_a_dtype_that_a_library_lacks_is_skipped(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "unsupported", lambda backend, dtype: "has none" if dtype == "float64" else None)
    done = run("--backend", "numpy")
    assert done.exit_code == 0
    assert "skipped numpy: has none" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1] == "15 comparisons on 1 backend: all within bounds"


def test_nothing_compared_is_no_success(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "unsupported", lambda backend, dtype: "has none")
    done = run("--backend", "numpy")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1] == "nothing was compared"


def test_an_unavailable_backend_is_refused_in_one_line(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "cupy", "CUDA finds no device")
    done = run("--backend", "cupy")
    assert done.exit_code == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: backend 'cupy' is unavailable: CUDA finds no device")


def test_auto_is_numpy_without_a_gpu(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "cupy", "CUDA finds no device")
    assert json.loads(run("--backend", "auto", "--json").stdout)["backends"] == ["numpy"]


@pytest.mark.parametrize("arguments", [("--dtype", "int8"), ("--precision", "low"), ("--backend", "cuda"), ("extra",)])
def test_bad_arguments_are_refused(run: Verify, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert arguments[-1] in done.stderr


def test_fast_precision_has_its_own_bound(run: Verify) -> None:
    done = run("--backend", "numpy", "--precision", "fast", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["precision"] == "fast"
    units = {(row["dtype"], row["quantity"]): row["units"] for row in found["against_truth"]}
    assert 0 < units["float32", "out"] < 1e-2


def test_a_pipe_gets_the_table_and_no_progress_bar() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "portconv", "verify", "--backend", "numpy", "--dtype", "float32"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1].endswith("on 1 backend: all within bounds")
