"""Test ``portconv verify`` as a user runs it: what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portconv import backends
from portconv.algorithms.choice import known
from portconv.verification import Case, Report, Trial, Variant, cases, comparison
from portconv.verification.cases import in_dtypes

GEMM = known()["gemm"]
MISSING = "the command's libraries are not installed: pip install 'portconv[cli]'"
testing = pytest.importorskip("click.testing", reason=MISSING)
pytest.importorskip("rich", reason=MISSING)

from portconv.command import chosen, verify  # noqa: E402  (needs click and rich)

pytestmark = pytest.mark.usefixtures("portable")
"""What is spoiled here is `gemm`, which "auto" takes on every machine where there are no kernels."""

NAMES = ("1d-stride2", "2d", "2d-groups2", "2d-batch0")
Verify = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Verify:
    """Return a function that runs the command on a few cases, 80 columns wide."""

    def few_cases(dtypes: Any) -> tuple[Case, ...]:
        return tuple(case for case in cases(dtypes) if case.name in NAMES)

    monkeypatch.setattr(verify, "cases", few_cases)
    monkeypatch.setenv("COLUMNS", "80")

    def invoke(*arguments: str) -> Any:
        return testing.CliRunner().invoke(verify.command, arguments, catch_exceptions=False)

    return invoke


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the taps of NumPy's kernel gradient in the wrong order, in float32."""
    original = GEMM.weight_grad

    def flipped(geometry: Any, backend: Any, *arguments: Any) -> Any:
        result = original(geometry, backend, *arguments)
        wrong = backend.name == "numpy" and "float32" in str(result.dtype)
        return result[..., ::-1] if wrong else result

    monkeypatch.setattr(GEMM, "weight_grad", flipped)


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
    assert done.stdout.startswith("portconv's results on the arrays of each library, compared with exact values and")
    words = " ".join(done.stdout.split())
    assert "The libraries' own convolutions run where the algorithm is native, or auto chooses it." in words
    assert [line.rpartition(" in ")[0] for line in done.stderr.splitlines()] == [f"{name}: 8 cases" for name in here]
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
    # Lines to be copied are not broken.
    copied = [line for line in done.stdout.splitlines() if line.startswith(("smallest call", "    x =", "    dout ="))]
    assert max(len(line) for line in done.stdout.splitlines() if line not in (*failed, *copied)) <= 80
    # A flipped gradient shows with two taps, or with two filters or channels, and with no option.
    assert copied[0].startswith("smallest call with numpy ")
    assert copied[0].split(": ")[2].endswith("float32 dw")
    assert [line.split()[0] for line in copied[1:]] == ["x", "dout"]
    assert eval(copied[1].split(" = ")[1].split("  #")[0])


@pytest.mark.usefixtures("broken")
def test_many_failures_are_counted_and_not_all_told(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MOST_FAILURES", 2)
    lines = run("--backend", "numpy").stdout.splitlines()
    assert sum(line.startswith("FAILED") for line in lines) == 2
    assert "... and 1 more" in lines


def test_an_exception_is_told_in_one_line(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*arguments: Any) -> Any:
        raise RuntimeError("out of [bold]memory[/]\nat line 2")

    monkeypatch.setattr(GEMM, "forward", raising)
    done = run("--backend", "numpy", "--dtype", "float64")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("FAILED")] == [
        "FAILED numpy, 3 cases (the first is 1d-stride2 float64): raised RuntimeError: out of [bold]memory[/] at line 2"
    ]
    assert lines[-1] == "4 comparisons on 1 backend: all within bounds, 3 cases without a result"


@pytest.mark.usefixtures("broken")
def test_json_has_the_figures_and_nothing_else(run: Verify) -> None:
    done = run("--backend", "numpy", "--json")
    assert done.exit_code == 1
    printed = json.loads(done.stdout)
    assert (printed["held"], printed["comparisons"], printed["out_of_bounds"]) == (False, 30, 3)
    assert printed["compares"].startswith("portconv's results")
    assert printed["smallest"][0].startswith("smallest call with numpy ")
    assert printed["problems"] == []
    assert printed["backends"] == ["numpy"]
    assert printed["precision"] == "standard"
    rows = {(row["dtype"], row["quantity"]): row for row in printed["against_truth"]}
    assert 0 < rows["float32", "out"]["units"] < 1
    assert rows["float32", "out"]["count"] == 4
    assert rows["float32", "dw"]["units"] > 100
    assert rows["float32", "dw"]["failed"] == 3
    assert rows["float64", "dw"]["failed"] == 0
    first = printed["failures"][0]
    assert (first["backend"], first["case"], first["dtype"], first["quantity"]) == (
        "numpy",
        "1d-stride2",
        "float32",
        "dw",
    )
    assert first["message"].startswith("numpy: 1d-stride2 float32 dw: off by")


def test_json_has_null_where_there_is_no_finite_number(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    original = GEMM.forward
    monkeypatch.setattr(GEMM, "forward", lambda *arguments: original(*arguments) * float("nan"))
    done = run("--backend", "numpy", "--dtype", "float32", "--json")
    assert done.exit_code == 1
    assert {failure["units"] for failure in json.loads(done.stdout)["failures"]} == {None}


def test_pairs_are_told(run: Verify) -> None:
    pytest.importorskip("array_api_strict", reason="a second library is not installed: pip install array-api-strict")
    done = run("--backend", "array_api_strict", "--backend", "numpy", "--backend", "numpy", "--json")
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    assert printed["backends"] == ["array_api_strict", "numpy"]
    assert [(row["backend"], row["other"], row["dtype"]) for row in printed["pairs"]] == [
        ("array_api_strict", "numpy", "float32"),
        ("array_api_strict", "numpy", "float64"),
    ]
    assert all(0 < row["equal"] <= 1 and row["units"] < 1 for row in printed["pairs"])


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
    monkeypatch.setattr(verify, "unsupported", lambda backend, dtype, *_: "has none" if dtype == "float64" else None)
    done = run("--backend", "numpy")
    assert done.exit_code == 0
    assert "skipped numpy: has none" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1] == "15 comparisons on 1 backend: all within bounds"


def test_nothing_compared_is_no_success(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "unsupported", lambda *_: "has none")
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


@pytest.fixture
def layers(tmp_path: Path) -> str:
    """Write a file of two layers."""
    path = tmp_path / "layers.json"
    entries = [
        {"name": "own[bold]", "x_shape": [3, 2, 9, 8], "w_shape": [4, 2, 3, 3], "padding": "same", "bias": True},
        {"name": "strided", "x_shape": [2, 2, 9], "w_shape": [4, 1, 3], "stride": 2, "groups": 2},
    ]
    path.write_text(json.dumps(entries))
    return str(path)


def test_layers_of_a_file_take_the_matrixs_place(run: Verify, layers: str) -> None:
    done = run("--backend", "numpy", "--layers", layers, "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["comparisons"] == 2 * (4 + 3)
    assert {(entry["case"], entry["dtype"]) for entry in printed["results"]} == {
        (name, dtype) for name in ("own[bold]", "strided") for dtype in ("float32", "float64")
    }
    text = run("--backend", "numpy", "--layers", layers).stdout
    assert any(line.split()[:3] == ["numpy", "float32", "db"] and "own[bold]" in line for line in text.splitlines())


def test_json_has_each_comparison_with_its_worst_element(run: Verify) -> None:
    printed = json.loads(run("--backend", "numpy", "--dtype", "float32", "--json").stdout)
    assert len(printed["results"]) == printed["comparisons"] == 15
    for entry in printed["results"]:
        assert sum(entry["counts"]) == entry["elements"]
        assert entry["counts"][0] == entry["equal"]
        assert len(entry["counts"]) == len(printed["error_sizes"]) + 1
        assert (entry["where"] is None) == (entry["units"] == 0)
        assert len(entry["sha256"]) == 64
        if entry["where"]:
            assert entry["got"] != entry["expected"]
    row = next(row for row in printed["against_truth"] if row["quantity"] == "out")
    worst = max((entry for entry in printed["results"] if entry["quantity"] == "out"), key=lambda entry: entry["units"])
    keys = ("worst", "units", "where", "got", "expected", "ulps")
    assert [row[key] for key in keys] == [worst[key] for key in ("case", *keys[1:])]
    counts = [entry["counts"] for entry in printed["results"] if entry["quantity"] == "out"]
    assert row["counts"] == [sum(sizes) for sizes in zip(*counts, strict=True)]
    assert printed["about"]["python"] == platform.python_version()
    assert printed["about"]["command"] == "portconv verify --backend numpy --dtype float32 --json"


def test_devices_are_chosen_by_name(run: Verify) -> None:
    other = pytest.importorskip(
        "array_api_strict", reason="a second library is not installed: pip install array-api-strict"
    )
    known = [str(device) for device in other.__array_namespace_info__().devices()]
    both = ("--backend", "array_api_strict", "--backend", "numpy", "--json")
    printed = json.loads(run(*both, "--device", "device1", "--device", known[2]).stdout)
    assert [(entry["label"], entry["device"]) for entry in printed["variants"]] == [
        ("array_api_strict (device1)", "device1"),
        ("array_api_strict (device2)", "device2"),
    ]
    assert printed["backends"] == ["array_api_strict"]
    assert {"backend": "numpy", "reason": f"has no device device1 or {known[2]}"} in printed["skipped"]
    assert [(row["backend"], row["other"]) for row in printed["pairs"]] == [
        ("array_api_strict (device1)", "array_api_strict (device2)")
    ] * 2
    printed = json.loads(run(*both, "--device", "all", "--dtype", "float64").stdout)
    labels = {row["backend"] for row in printed["against_truth"]}
    assert labels == {"array_api_strict", "array_api_strict (device1)", "array_api_strict (device2)", "numpy"}
    lacking = {"backend": "array_api_strict (no_float64)", "reason": "has no float64 on device no_float64"}
    assert lacking in printed["skipped"]


def test_threads_are_compared(run: Verify) -> None:
    printed = json.loads(run("--backend", "numpy", "--threads", "1", "--threads", "2", "--json").stdout)
    assert [(entry["label"], entry["threads"]) for entry in printed["variants"]] == [
        ("numpy (1 thread)", 1),
        ("numpy (2 threads)", 2),
    ]
    assert printed["backends"] == ["numpy"]
    assert [(row["backend"], row["other"]) for row in printed["pairs"]] == [
        ("numpy (1 thread)", "numpy (2 threads)")
    ] * 2
    assert {row["equal"] for row in printed["pairs"]} == {1.0}


def test_algorithms_are_taken_by_name_and_what_they_cannot_serve_is_counted(run: Verify) -> None:
    arguments = ("--backend", "numpy", "--dtype", "float32", "--algorithm", "winograd", "--algorithm", "direct")
    done = run(*arguments, "--json")
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    # Three of the four cases have a kernel of 3 and stride 1.
    assert printed["left_out"] == [
        {"what": "float32 cases that winograd cannot compute in standard precision", "count": 1}
    ]
    assert {(row["algorithm"], row["count"]) for row in printed["against_truth"] if row["quantity"] == "out"} == {
        ("winograd", 3),
        ("direct", 4),
    }
    assert {entry["served"] for entry in printed["results"] if entry["quantity"] == "dw"} == {"winograd", "direct"}
    lines = run(*arguments).stdout.splitlines()
    assert "left out: float32 cases that winograd cannot compute in standard precision: 1" in lines
    assert "Largest errors against the exact values, standard, winograd" in map(str.strip, lines)


def test_several_precisions_have_rows_of_their_own(run: Verify) -> None:
    printed = json.loads(run("--backend", "numpy", "--precision", "standard", "--precision", "fast", "--json").stdout)
    assert (printed["precision"], printed["precisions"]) == (None, ["standard", "fast"])
    assert printed["comparisons"] == 60
    assert {(row["precision"], row["count"]) for row in printed["against_truth"] if row["quantity"] == "out"} == {
        ("standard", 4),
        ("fast", 4),
    }


def test_reproducible_results_are_compared_to_the_bit(run: Verify) -> None:
    names = [backend.name for backend in backends.available()]
    done = run("--precision", "reproducible", "--dtype", "float32", "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    ways = ("", " (1 thread)", " (2 threads)", " (halves)")
    assert {entry["label"] for entry in printed["variants"]} == {name + way for name in names for way in ways}
    assert len(printed["pairs"]) == 3 * len(names) + len(names) * (len(names) - 1) // 2
    for row in printed["pairs"]:
        assert (row["equal"], row["unequal"], row["failed"], row["units"]) == (1.0, 0, 0, 0.0)
        assert row["equal_in"].keys() == {"out", "dx"} | (set() if "halves" in row["other"] else {"dw", "db"})
    assert len({digest["sha256"] for digest in printed["digests"]}) == 1
    assert len(printed["digests"]) == 3 * len(names)
    lines = run("--backend", "numpy", "--precision", "reproducible", "--dtype", "float32").stdout.splitlines()
    assert "reproducible: bits equal, forward and all gradients, in 3 of 3 pairs" in lines
    assert f"digest float32 {printed['digests'][0]['sha256']}: all 3 runs of the whole batch" in lines
    assert lines[-1].endswith("on 1 backend in 4 runs: all within bounds")


def test_a_bit_that_differs_fails_and_is_told(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    original = comparison.conv_backward

    def changed(dout: Any, cache: Any) -> Any:
        grads = original(dout, cache)
        if len(dout) == 1:  # half of a batch
            grads.dx[0, 0, 0] *= 1 + 2.0**-23
        return grads

    monkeypatch.setattr(comparison, "conv_backward", changed)
    done = run("--backend", "numpy", "--precision", "reproducible", "--dtype", "float32")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert "reproducible: bits equal, forward and all gradients, in 2 of 3 pairs" in lines
    failed = [line for line in lines if line.startswith("FAILED numpy and numpy (halves): 2d float32 dx")]
    assert len(failed) == 1
    # A row of 9 in each half, whose numbers are 1 or 2 ulps further from 0.
    assert "reproducible: bits differ in 18 of 432 elements, the furthest apart by " in failed[0]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="OpenBLAS's kernels are named here for x86")
def test_reproducible_digests_are_those_of_other_kernels_too(run: Verify, layers: str) -> None:
    arguments = ["--backend", "numpy", "--precision", "reproducible", "--layers", layers]
    digests = json.loads(run(*arguments, "--json").stdout)["digests"]
    expected = sorted({digest["sha256"] for digest in digests})
    assert len(expected) == 2  # of two dtypes
    more = [part for sha256 in expected for part in ("--expect-digest", sha256)]
    for kernels in ("Haswell", "Nehalem"):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "portconv", "verify", *arguments, *more, "--json"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OPENBLAS_CORETYPE": kernels},
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        printed = json.loads(done.stdout)
        assert printed["about"]["OPENBLAS_CORETYPE"] == kernels
        assert {digest["sha256"] for digest in printed["digests"]} == {*expected}


def test_a_digest_that_is_not_expected_fails(run: Verify) -> None:
    done = run("--backend", "numpy", "--dtype", "float32", "--expect-digest", "0" * 64)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    (failed,) = [line for line in lines if line.startswith("FAILED")]
    assert failed.startswith("FAILED digest of numpy, standard float32: ")
    assert failed.endswith(": not as expected")
    assert lines[-1] == "15 comparisons on 1 backend: all within bounds, 1 digest not as expected"
    sha256 = failed.split(": ")[1]
    assert run("--backend", "numpy", "--dtype", "float32", "--expect-digest", sha256.upper()).exit_code == 0


class Text(HTMLParser):
    """The text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words = ""
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.usefixtures("broken")
def test_a_page_is_written_beside_the_rest(run: Verify, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    done = run("--backend", "numpy", "--html", str(path))
    assert done.exit_code == 1
    assert f"report in {path}" in done.stdout.splitlines()
    words = Text(path.read_text(encoding="utf-8")).words
    assert "30 comparisons on 1 backend: 3 out of bounds" in words
    assert "What failed" in words
    assert "numpy: 2d-groups2 float32 dw: off by" in words
    assert f"portconv verify --backend numpy --html {path}" in words
    assert json.loads(run("--backend", "numpy", "--html", str(path), "--json").stdout)["held"] is False


def nothing_may_run(*arguments: Any) -> Any:
    raise AssertionError("work was done before the refusal")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("report.pdf", "got the ending '.pdf', expected one of html, htm"),
        ("none/report.html", "no directory"),
        ("folder.html", "a directory, expected a file"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    run: Verify, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    monkeypatch.setattr(verify, "Trial", nothing_may_run)
    done = run("--backend", "numpy", "--html", str(tmp_path / name))
    assert done.exit_code == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: --html {tmp_path / name}: {words}")


def refusals(folder: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    bad = folder / "bad.toml"
    bad.write_text("[[layers]]\nname = 'a'\nx_shape = [1, 2, 5]\nw_shape = [3, 2, 9]\n")
    large = folder / "large.json"
    large.write_text(json.dumps([{"name": "huge", "x_shape": [10**12, 2, 5], "w_shape": [3, 2, 3]}]))
    yield ("--layers", str(bad)), f"{bad}: layer 1 ('a'): w_shape: got a kernel of 9"
    yield ("--layers", str(folder / "none.toml")), f"{folder / 'none.toml'}: cannot be read: No such file"
    yield ("--layers", str(large)), "layer 'huge': verifying it takes about"
    yield ("--batch", "2"), "--batch: got a size without a model, expected --onnx FILE beside it"
    yield ("--dim", "a=2"), "--dim: got a size without a model"
    yield ("--onnx", str(bad), "--dim", "a"), "--dim: got 'a', expected NAME=SIZE with a positive size"
    yield ("--onnx", str(bad), "--dim", "a=0"), "--dim: got 'a=0', expected NAME=SIZE"
    yield ("--expect-digest", "abc"), "--expect-digest: got 'abc', expected 64 hexadecimal digits"
    yield ("--device", "cuda:9"), "--device: got 'cuda:9', expected 'all' or a device of a backend (numpy: cpu)"


@pytest.mark.parametrize("which", range(9))
def test_bad_input_is_refused_in_one_line_before_the_work(
    run: Verify, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, which: int
) -> None:
    monkeypatch.setattr(verify, "Trial", nothing_may_run)
    arguments, words = list(refusals(tmp_path))[which]
    done = run("--backend", "numpy", *arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {words}")


def test_exact_values_that_cannot_be_computed_are_refused(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(verify, "Trial", full)
    done = run("--backend", "numpy")
    assert done.exit_code == 2
    assert done.stderr == "Error: layer '1d-stride2': its exact values do not fit into memory\n"


def test_a_model_is_verified_by_its_own_weights(run: Verify, layers: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'portconv[onnx]'")
    make = onnx.helper
    w = onnx.numpy_helper.from_array(np.full((4, 3, 2, 2), 0.75, "float32"), "w")
    graph = make.make_graph(
        [make.make_node("Conv", ["x", "w"], ["y"], name="/net/conv1"), make.make_node("QLinearConv", ["x"] * 8, ["q"])],
        "graph",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, "size", 7])],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [w],
    )
    path = tmp_path / "model.onnx"
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)]), path)
    arguments = ("--backend", "numpy", "--dtype", "float32", "--onnx", str(path))
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr == f"Error: {path}: got no size for axis 2 of input 'x', expected --dim size=SIZE\n"
    printed = json.loads(run(*arguments, "--batch", "3", "--dim", "size=6", "--json").stdout)
    assert printed["left_out"] == [{"what": "of the model: nodes of the kind QLinearConv", "count": 1}]
    # 3 samples, 4 filters and 5 by 6 cells, of which each is 0.75 times a sum.
    assert [(entry["case"], entry["quantity"], entry["elements"]) for entry in printed["results"]] == [
        ("/net/conv1", "out", 3 * 4 * 5 * 6),
        ("/net/conv1", "dx", 3 * 3 * 6 * 7),
        ("/net/conv1", "dw", 4 * 3 * 2 * 2),
    ]
    both = json.loads(run(*arguments, "--dim", "size=6", "--layers", layers, "--json").stdout)
    assert {entry["case"] for entry in both["results"]} == {"/net/conv1", "own[bold]", "strided"}


def test_without_onnx_the_command_to_install_it_is_said(
    run: Verify, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    done = run("--onnx", str(path))
    assert done.exit_code == 2
    assert done.stderr.endswith("needs onnx, which is not installed: pip install 'portconv[onnx]'\n")
    assert len(done.stderr.splitlines()) == 1


def test_each_backend_is_told_when_it_is_done(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("array_api_strict", reason="a second library is not installed: pip install array-api-strict")
    ran = []
    original = Trial.run
    monkeypatch.setattr(
        Trial, "run", lambda trial, one: ran.append((one.label, trial.case.name)) or original(trial, one)
    )
    both = ("--backend", "array_api_strict", "--backend", "numpy", "--dtype", "float32")
    done = run(*both)
    assert ran == [(name, case) for name in ("array_api_strict", "numpy") for case in NAMES]
    assert [line.split(" in ")[0] for line in done.stderr.splitlines()] == [
        "array_api_strict: 4 cases",
        "numpy: 4 cases",
    ]
    ran.clear()
    run(*both, "--precision", "reproducible")
    labels = [f"{name}{run}" for name in ("array_api_strict", "numpy") for run in ("", " (1 thread)", " (2 threads)")]
    # All runs of a case on a backend are in a row.
    assert [one for one in ran if one[1] == "2d" and "halves" not in one[0]] == [(label, "2d") for label in labels]
    assert ran.index(("numpy", "2d")) + 3 == ran.index(("numpy (halves)", "2d"))
    # Where the exact values of all cases do not fit into memory together, a backend is done with its last case.
    ran.clear()
    monkeypatch.setattr(chosen, "HELD", 0)
    assert run(*both).stdout == done.stdout
    assert ran == [(name, case) for case in NAMES for name in ("array_api_strict", "numpy")]


def test_fast_precision_has_its_own_bound(run: Verify) -> None:
    done = run("--backend", "numpy", "--precision", "fast", "--json")
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    assert printed["precision"] == "fast"
    units = {(row["dtype"], row["quantity"]): row["units"] for row in printed["against_truth"]}
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
    number = len(cases(["float32"]))
    assert re.fullmatch(rf"numpy: {number} cases in [0-9.]+ s\n", done.stderr)
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1].endswith("on 1 backend: all within bounds")


BFLOAT16 = pytest.param(
    "bfloat16",
    marks=pytest.mark.skipif(find_spec("ml_dtypes") is None, reason="ml_dtypes, NumPy's bfloat16, is not installed"),
)
NEW_DTYPES = ("float16", BFLOAT16, "complex64", "complex128")


@pytest.mark.parametrize("dtype", NEW_DTYPES)
def test_the_whole_matrix_holds_on_numpy_in_halves_and_complex_numbers(dtype: str) -> None:
    done = testing.CliRunner().invoke(verify.command, ["--backend", "numpy", "--dtype", dtype, "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert (printed["comparisons"], printed["out_of_bounds"]) == (
        sum(len(case.quantities) for case in cases([dtype])),
        0,
    )
    # Errors of exactly 0 would mean that the dtype was ignored; only db is summed as the exact values are.
    assert all((dtype == "complex128" and row["quantity"] == "db") or row["units"] for row in printed["against_truth"])


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", NEW_DTYPES)
def test_halves_and_complex_numbers_hold_in_every_precision(run: Verify, dtype: str, name: str) -> None:
    if backends.find(name).unavailable:
        pytest.skip(f"{name}: {backends.find(name).unavailable}")
    precisions = [part for each in ("standard", "fast", "reproducible") for part in ("--precision", each)]
    done = run("--backend", "numpy", "--backend", name, "--dtype", dtype, *precisions, "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["dtypes"] == [dtype]
    assert all(0 <= row["units"] <= 1 and not row["failed"] for row in printed["against_truth"] + printed["pairs"])
    exactly = [row for row in printed["pairs"] if row["precision"] == "reproducible"]
    assert {row["unequal"] for row in exactly} == {0}
    assert len({each["sha256"] for each in printed["digests"] if each["precision"] == "reproducible"}) == 1
    assert exactly
    for entry in printed["results"]:
        assert isinstance(entry["got"], list if dtype.startswith("complex") else float) or entry["where"] is None


@pytest.mark.parametrize("dtype", NEW_DTYPES)
def test_a_flipped_gradient_is_found_in_halves_and_complex_numbers(
    run: Verify, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: str
) -> None:
    original = GEMM.weight_grad
    monkeypatch.setattr(GEMM, "weight_grad", lambda *arguments: original(*arguments)[..., ::-1])
    path = tmp_path / "report.html"
    done = run("--backend", "numpy", "--dtype", dtype, "--html", str(path))
    assert done.exit_code == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert [line.split(":")[1] for line in failed] == [f" {name} {dtype} dw" for name in NAMES[:3]]
    # Both values are printed with as many digits as the dtype has, and imaginary parts with their sign.
    number = {"float16": r"-?[\d.e-]{1,11}", "bfloat16": r"-?[\d.e-]{1,10}"}.get(dtype, r"-?[\d.e-]+[+-][\d.e-]+j")
    assert all(re.search(rf"\(got {number}, exact {number}\)$", line) for line in failed)
    assert all(line.removeprefix("FAILED ") in Text(path.read_text(encoding="utf-8")).words for line in failed)


def test_bfloat16_without_ml_dtypes_is_left_out_in_words(run: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    done = run("--backend", "numpy", "--dtype", "bfloat16", "--dtype", "float16")
    assert done.exit_code == 0, done.output
    needed = "skipped numpy: bfloat16 on the host needs ml_dtypes: pip install 'portconv[bfloat16]'"
    assert needed in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1] == "15 comparisons on 1 backend: all within bounds"
    done = run("--backend", "numpy", "--dtype", "bfloat16", "--algorithm", "winograd")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (1, "nothing was compared")


def test_a_library_without_halves_is_left_out_in_words(run: Verify) -> None:
    pytest.importorskip("array_api_strict", reason="a second library is not installed: pip install array-api-strict")
    both = ("--backend", "array_api_strict", "--backend", "numpy")
    done = run(*both, "--dtype", "float16")
    assert done.exit_code == 0, done.output
    assert "skipped array_api_strict: has no float16 on its default device" in done.stdout.splitlines()
    assert (
        run(*both, "--dtype", "complex64").stdout.splitlines()[-1] == "45 comparisons on 2 backends: all within bounds"
    )


def test_weights_too_large_for_float16_are_left_out_and_counted() -> None:
    report = Report()
    large = Case("large", (1, 1, 4), (1, 1, 1), w=np.array([[[65536.0]]]))
    plain = Case("plain", (1, 1, 4), (1, 1, 1), w=np.array([[[65504.0]]]))
    numpy = [Variant(backends.get("numpy"))]
    ways = {(dtype, precision): numpy for dtype in ("float32", "float16") for precision in ("standard", "fast")}
    printed = chosen.runs(in_dtypes([large, plain], ("float32", "float16")), (), ways, report)
    names = [(case.name, case.dtype) for case, precision, _ in printed if precision == "fast"]
    assert names == [("large", "float32"), ("plain", "float32"), ("plain", "float16")]
    assert report.left_out == {"float16 cases whose weights are too large for it": 1}
