"""``portconv bench`` as a user meets it: what it prints and draws, what it refuses, and its exit status."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from portconv import backends, calibration
from portconv.algorithms.choice import known
from portconv.benchmark import HELD_OUT, PEERS, ZOO, measurement

GEMM = known()["gemm"]
MISSING = "the command's libraries are not installed: pip install 'portconv[cli]'"
testing = pytest.importorskip("click.testing", reason=MISSING)
pytest.importorskip("rich", reason=MISSING)
pytest.importorskip("matplotlib", reason=MISSING)

from portconv.command import bench  # noqa: E402  (needs click and rich)

SMALL, COURSE = "small 3x3 3-8@8 b1", "cs231n 4x4 3@4 s2 b2"
OWN = ("--peer", "direct", "--peer", "product")
"""Peers that are always here."""
QUICK = ("--backend", "numpy", "--repeats", "1", *OWN)

Bench = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The command with turns of one call, at the width of a pipe."""
    monkeypatch.setattr(measurement, "SETTLE", 0.0)
    monkeypatch.setattr(measurement, "TURN", 0.0)
    monkeypatch.setenv("COLUMNS", "80")

    def invoke(*arguments: str) -> Any:
        return testing.CliRunner().invoke(bench.command, arguments, catch_exceptions=False)

    return invoke


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be measured."""

    def measure(*arguments: Any) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr(bench, "measure", measure)


def refusal(done: Any) -> str:
    """The one line with which the command refused."""
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from portconv.command.group import portconv
portconv(["bench", *sys.argv[2:]])
"""


def without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where a module is not installed, as far as Python can tell."""
    return subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT, module, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_ratios_and_errors_are_printed(run: Bench) -> None:
    done = run(*QUICK, "--layer", SMALL, "--layer", COURSE)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("portconv 0"))]
    assert max(map(len, table)) <= 80
    rows = [line for line in table if {"forward", "backward"} & set(line.split())]
    assert [("forward" in row, "backward" in row) for row in rows] == [(True, False), (False, True)] * 2
    # Our error, the ratio over direct, its error where the line has room for it, and the ratio over the product.
    figures = [re.findall(r"\(\d+\.\d\)|\d+\.\d\d", row) for row in rows]
    assert all(len(printed) in (3, 4) for printed in figures)
    assert lines[-1] == "4 passes of 2 layers: all results within bounds"
    assert not [line for line in lines if "Speed-up" in line]  # for there was no library to be compared with


def test_all_peers_of_one_layer_fit_a_pipe(run: Bench) -> None:
    done = run(
        "--backend", "numpy", "--repeats", "1", "--layer", SMALL, *(w for p in available() for w in ("--peer", p))
    )
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    for name in available():
        assert all(part in done.stdout for part in name.split("-"))


def available() -> list[str]:
    numpy = backends.get("numpy")
    return [peer.name for peer in PEERS if peer.unavailable(numpy) is None]


def test_a_library_is_compared_with(run: Bench) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    arguments = ("--backend", "numpy", "--repeats", "1", "--layer", SMALL, "--peer", "torch")
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    start = next(i for i, line in enumerate(lines) if line.startswith("Speed-ups, geometric means"))
    assert lines[start + 2].split("over") == [" layers        ", " PyTorch ", " the best peer "]
    rows = [line.rsplit(maxsplit=2) for line in lines[start + 4 : start + 8]]
    assert [row[0].strip() for row in rows] == ["all", "all, forward", "all, backward", "small calls"]
    assert all(re.fullmatch(r"\d+\.\d\d", value) for row in rows for value in row[1:])
    printed = json.loads(run(*arguments, "--json").stdout)
    assert [layer["best_peer"] for layer in printed["layers"]] == ["torch", "torch"]
    means = printed["summary"]["speedup"]
    forward, backward = (1 / layer["ratios"]["torch"] for layer in printed["layers"])
    assert means["all"]["over_torch"] == means["all"]["over_best"] == pytest.approx((forward * backward) ** 0.5)


def test_json_has_the_figures_and_nothing_else(run: Bench) -> None:
    done = run(*QUICK, "--layer", SMALL, "--json")
    assert done.exit_code == 0
    assert done.stderr == ""

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    printed = json.loads(done.stdout, parse_constant=refuse)
    assert printed["held"] is True
    assert (printed["algorithm"], printed["repeats"]) == ("auto", 1)
    assert printed["surroundings"]["backend"] == "numpy"
    assert [(layer["layer"]["name"], layer["pass"]) for layer in printed["layers"]] == [
        (SMALL, "forward"),
        (SMALL, "backward"),
    ]
    for layer in printed["layers"]:
        assert set(layer["ratios"]) == {"direct", "product"}
        assert set(layer["error_epsilons"]) == set(layer["error_over_bound"]) == {"portconv", "direct"}
        assert all(0 <= value < 1 for value in layer["error_over_bound"].values())
        assert "portconv" not in layer["ratios"]
    assert not {"times", "seconds", "time"} & keys(printed)


def keys(printed: Any) -> set[str]:
    if isinstance(printed, dict):
        return set(printed).union(*map(keys, printed.values()))
    return set().union(*map(keys, printed)) if isinstance(printed, list) else set()


@pytest.mark.usefixtures("idle")
def test_an_unknown_layer_is_refused_with_those_there_are(run: Bench) -> None:
    line = refusal(run("--layer", "alexnet"))
    assert line.startswith("--layer: got 'alexnet', expected one of these, or a part of one: ")
    assert all(layer.name in line for layer in ZOO)


@pytest.mark.usefixtures("idle")
def test_an_unknown_peer_is_refused_with_those_there_are(run: Bench) -> None:
    line = refusal(run("--peer", "caffe"))
    assert line == f"--peer: got 'caffe', expected one of {', '.join(peer.name for peer in PEERS)}"


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    "arguments", [("--repeats", "0"), ("--algorithm", "magic"), ("--backend", "cuda"), ("--plot", "a.txt"), ("extra",)]
)
def test_bad_arguments_are_refused(run: Bench, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert arguments[-1] in done.stderr


def test_a_part_of_a_name_chooses_all_that_have_it(run: Bench) -> None:
    printed = json.loads(run("--list", "--json", "--layer", "resnet50 3x3 64@56", "--layer", "1x1").stdout)
    names = [layer["name"] for layer in printed["layers"]]
    assert names == [layer.name for layer in ZOO if "1x1" in layer.name or layer.name == "resnet50 3x3 64@56"]
    assert "resnet50 3x3 64@56 b1" not in names
    printed = json.loads(run("--list", "--json", "--held-out", "--layer", "yolov3").stdout)
    assert [layer["name"] for layer in printed["layers"]] == [
        layer.name for layer in HELD_OUT if "yolov3" in layer.name
    ]


def test_one_pass_alone_is_measured(run: Bench) -> None:
    options = (*QUICK, "--json", "--layer", "small 3x3 3-8@8 b1")
    for chosen in (("forward",), ("backward",), ("backward", "forward")):
        done = run(*options, *(word for name in chosen for word in ("--pass", name)))
        assert done.exit_code == 0
        rows = json.loads(done.stdout)["layers"]
        assert [row["pass"] for row in rows] == sorted(chosen, reverse=True)
    assert run(*options, "--pass", "sideways").exit_code == 2


@pytest.mark.usefixtures("idle")
def test_layers_and_peers_are_listed(run: Bench) -> None:
    done = run("--list")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    for layer in ZOO:
        assert f"{layer.name:<32} {layer.kind}" in lines
    assert "direct         portconv's direct (only with --peer direct)" in lines
    for peer in PEERS:
        assert any(line.startswith(f"{peer.name} ") and peer.title in line for line in lines)


def test_a_missing_peer_is_named() -> None:
    done = without("torch", "--backend", "numpy", "--list")
    assert done.returncode == 0, done.stderr
    assert "torch          PyTorch (torch is not installed: pip install torch)" in done.stdout.splitlines()
    done = without("torch", "--backend", "numpy", "--layer", SMALL, "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert "without torch: torch is not installed: pip install torch" in done.stdout.splitlines()
    assert done.stderr == ""


def test_a_missing_peer_is_named_in_json() -> None:
    done = without("jax", "--backend", "numpy", "--layer", SMALL, "--repeats", "1", "--json")
    assert done.returncode == 0, done.stderr
    (jax,) = (peer for peer in json.loads(done.stdout)["peers"] if peer["name"] == "jax")
    assert jax["missing"] == "jax is not installed: pip install jax"
    assert jax["measured"] is False


def test_a_missing_peer_that_was_asked_for_is_refused() -> None:
    done = without("jax", "--backend", "numpy", "--peer", "jax")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["Error: --peer jax: jax is not installed: pip install jax"]


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_drawn(run: Bench, tmp_path: Path, ending: str, start: bytes) -> None:
    plot = tmp_path / f"speed.{ending}"
    done = run(*QUICK, "--layer", SMALL, "--layer", COURSE, "--plot", str(plot))
    assert done.exit_code == 0, done.output
    assert f"drawn into {plot}" in done.stdout.splitlines()
    assert plot.read_bytes().startswith(start)
    assert plot.stat().st_size > 5000
    if ending == "svg":
        assert plot.read_text().count("<!-- small 3x3 3-8@8 b1 -->") == 1


@pytest.mark.usefixtures("idle")
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(
    run: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.png").mkdir()
    assert refusal(run("--plot", str(tmp_path / "folder.png"))).endswith("a directory, expected a file")
    assert f"no directory {tmp_path / 'none'}" in refusal(run("--plot", str(tmp_path / "none" / "a.png")))
    assert "got the ending '.txt', expected one of pdf, png, svg" in refusal(run("--plot", str(tmp_path / "a.txt")))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "may not be written" in refusal(run("--plot", str(tmp_path / "a.png")))


def test_a_wrong_result_fails(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    original = GEMM.weight_grad

    def flipped(*arguments: Any) -> Any:
        return original(*arguments)[..., ::-1]

    monkeypatch.setattr(GEMM, "weight_grad", flipped)
    done = run(*QUICK, "--layer", SMALL, "--algorithm", "gemm")
    assert done.exit_code == 1
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FAILED"))
    assert re.fullmatch(rf"FAILED portconv on {SMALL}, backward: \S+ times the bound", line)
    assert done.stdout.splitlines()[-1] == "2 passes of 1 layer: 1 result out of bounds"


def test_an_exception_is_told_in_one_line_and_fails(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*arguments: Any) -> Any:
        raise RuntimeError("out of [bold]memory[/]\nat line 2")

    monkeypatch.setattr(GEMM, "input_grad", raising)
    done = run(*QUICK, "--layer", SMALL, "--algorithm", "gemm")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert f"FAILED portconv on {SMALL}, backward: RuntimeError: out of [bold]memory[/] at line 2" in lines
    assert lines[-1] == "1 pass of 1 layer: all results within bounds, 1 failed"


def test_a_layer_that_the_algorithm_does_not_serve_is_skipped(run: Bench) -> None:
    done = run(*QUICK, "--layer", SMALL, "--layer", COURSE, "--algorithm", "winograd")
    assert done.exit_code == 0, done.output
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("skipped"))
    assert line.startswith(f"skipped portconv on {COURSE}: algorithm: got 'winograd'")
    assert done.stdout.splitlines()[-1] == "2 passes of 1 layer: all results within bounds"
    done = run(*QUICK, "--layer", COURSE, "--algorithm", "winograd")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1] == "nothing was measured"


def test_interrupting_it_ends_it_without_a_traceback(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", measure)
    done = run(*QUICK)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.strip() == "Aborted!"


def test_a_pipe_gets_the_table_and_no_progress_bar() -> None:
    command = [sys.executable, "-P", "-m", "portconv", "bench", *QUICK, "--layer", SMALL]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1] == "2 passes of 1 layer: all results within bounds"


def test_calibrating_stores_what_calls_cost_here(run: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    calibration.stored.cache_clear()
    try:
        done = run("--backend", "numpy", "--calibrate", "--layer", "cs231n", "--layer", SMALL, "--json")
        assert done.exit_code == 0, done.output
        printed = json.loads(done.stdout)
        assert printed["file"] == str(calibration.path())
        assert tmp_path in calibration.path().parents
        assert printed["costs"] == calibration.stored()["numpy"]._asdict()
        assert min(printed["costs"].values()) >= 0 < max(printed["costs"].values())
        assert min(printed["over_fastest"].values()) >= 1
    finally:
        monkeypatch.undo()
        calibration.stored.cache_clear()


def test_a_cache_folder_that_cannot_be_written_is_told_in_one_line(
    run: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    calibration.stored.cache_clear()
    try:
        line = refusal(run("--backend", "numpy", "--calibrate", "--layer", SMALL))
        assert line.startswith("--calibrate: ")
        assert "cannot be written" in line
    finally:
        monkeypatch.undo()
        calibration.stored.cache_clear()
