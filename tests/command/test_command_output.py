"""What the command writes where output fails, or where names hold what steers a terminal."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("click", reason="the command needs click: pip install 'portconv[cli]'")
pytest.importorskip("rich", reason="the command needs rich: pip install 'portconv[cli]'")
pytest.importorskip("matplotlib", reason="the command draws with matplotlib: pip install 'portconv[cli]'")
Image = pytest.importorskip("PIL.Image", reason="the command reads pictures with Pillow: pip install 'portconv[cli]'")

from portconv.command import group  # noqa: E402  (needs click)

RED = "\x1b[31mred"
UNIX = pytest.mark.skipif(os.name != "posix", reason="this system has no such file")


def portconv(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "portconv", *map(str, arguments)]
    return subprocess.run(command, text=True, check=False, timeout=300, **{"capture_output": True, **options})


def test_what_steers_a_terminal_is_written_out(tmp_path: Path) -> None:
    folder = tmp_path / RED
    folder.mkdir()
    Image.new("L", (9, 9)).save(folder / "x.png")
    done = portconv("run", folder / "x.png", "--output", folder / "maps.png")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert r"\x1b[31mred/maps.png" in done.stdout
    for arguments in (["run", folder / "none.png"], ["verify", "--layers", folder / "no.toml"], ["run", "--size", RED]):
        done = portconv(*arguments)
        assert done.returncode == 2
        assert r"\x1b[31mred" in done.stderr
        assert "\x1b" not in done.stderr
    assert portconv("verify", "--dtype", RED).stderr.count("\x1b") == 0


def test_names_in_a_model_are_written_out(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'portconv[onnx]'")
    make = onnx.helper
    graph = make.make_graph(
        [make.make_node("Conv", ["x", "w"], ["y"], name=RED), make.make_node(f"{RED}Conv", ["x"], ["z"], domain="d")],
        "graph",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, RED])],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.ones((1, 1, 2), "float32"), "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18), make.make_opsetid("d", 1)]), path)
    options = ("verify", "--backend", "numpy", "--dtype", "float32", "--onnx", path)
    asked = portconv(*options)
    assert asked.returncode == 2
    assert "\x1b" not in asked.stderr
    done = portconv(*options, "--dim", f"{RED}=9")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert r"\x1b[31mred" in done.stdout


@UNIX
def test_a_closed_output_is_no_traceback(tmp_path: Path) -> None:
    command = f'"{sys.executable}" -P -m portconv run --output maps.png >&-'
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "maps.png").stat().st_size


@UNIX
def test_a_closed_output_is_no_warning_of_a_file_left_open() -> None:
    # With all libraries imported the file outlives the filters that ignore such a warning.
    command = f'"{sys.executable}" -P -m portconv backends >&-'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["backends"], ["backends", "--json"], ["--help"]])
def test_an_output_that_is_full_is_a_sentence(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = portconv(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    words = os.strerror(errno.ENOSPC)
    assert (done.returncode, done.stderr) == (2, f"portconv: the output cannot be written: {words}\n")


@UNIX
def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    # A limit on the size of files stands for a full disk.
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from portconv.command.group import write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write('--output', Path('old.bin'), bytes(999)); write('--output', Path('old.bin'), bytes(2000))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stderr.strip().endswith(f"BadInput: --output old.bin: {os.strerror(errno.EFBIG)}")
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("old.bin", 999)]


def test_a_file_keeps_its_rights_and_a_link_its_place(tmp_path: Path) -> None:
    path, link = tmp_path / "maps.png", tmp_path / "link.png"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    group.write("--output", link, b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_strip_of_a_picture_is_reduced(tmp_path: Path) -> None:
    Image.new("L", (1 << 22, 1), 77).save(tmp_path / "strip.png")
    done = portconv("run", tmp_path / "strip.png", "--output", tmp_path / "maps.png", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["convolved_pixels"] == [1024, 1]


def test_work_without_end_is_refused(tmp_path: Path) -> None:
    Image.new("L", (500, 400)).save(tmp_path / "x.png")
    np.save(tmp_path / "large.npy", np.ones((3000, 3000), "float32"))
    done = portconv("run", tmp_path / "x.png", "--filters", tmp_path / "large.npy", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "Error: --filters large.npy: got kernels that take 3.6e+12 multiplications and additions on this photograph, "
        "expected at most 2e+12: give smaller ones, or a smaller --size\n"
    )
    np.save(tmp_path / "large.npy", np.ones((2, 3000, 3000), "float32"))
    np.save(tmp_path / "wide.npy", np.ones((2, 1000, 1000), "float32"))
    Image.new("L", (30, 20)).save(tmp_path / "x.png")
    for arguments, cells, purpose in (
        (["large.npy"], 9000000, ""),
        (["wide.npy", "--gradient"], 1000000, " for the gradient"),
    ):
        done = portconv("run", "x.png", "--filters", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr == (
            f"Error: --filters {arguments[0]}: got kernels of {cells} cells, each of which takes a step on this "
            f"photograph{purpose}, expected at most 524288: give smaller ones\n"
        )
    done = portconv("run", "x.png", "--filters", "wide.npy", cwd=tmp_path)  # by Fourier transforms
    assert (done.returncode, done.stderr) == (0, "")
    layer = {"name": "large", "x_shape": [1, 1, 3000, 3000], "w_shape": [2, 1, 3000, 3000], "padding": "same"}
    (tmp_path / "layers.json").write_text(json.dumps([layer]))
    done = portconv("verify", "--backend", "numpy", "--layers", tmp_path / "layers.json")
    assert done.returncode == 2
    assert done.stderr == (
        "Error: layer 'large': verifying it takes 3.2e+14 multiplications and additions, expected at most 2e+12: give "
        "fewer samples or smaller sizes\n"
    )
    layer = {"name": "wide", "x_shape": [1, 1, 1000, 1000], "w_shape": [2, 1, 1000, 1000]}
    (tmp_path / "layers.json").write_text(json.dumps([layer]))
    done = portconv("verify", "--backend", "numpy", "--layers", tmp_path / "layers.json")
    assert done.stderr == "Error: layer 'wide': got a kernel of 1000000 cells, expected at most 524288\n"
