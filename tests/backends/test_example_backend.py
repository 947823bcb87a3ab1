"""The backend of docs/writing-a-backend.md: announced as it says, and held against loops that share nothing with it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from support.oracle import Problem

import portconv

FOLDER = Path(__file__).parents[2] / "docs" / "example_backend"
NEEDED = "the documentation is not beside the tests"
PROBLEMS = {
    "plain": Problem((2, 3, 6, 7), (4, 3, 3, 3), (1, 1), ((1, 1), (0, 2)), (1, 1)),
    "strided, dilated, grouped": Problem((2, 4, 9, 8), (6, 2, 2, 3), (2, 1), ((1, 0), (2, 1)), (1, 2), groups=2),
    "depthwise, 1-D": Problem((3, 4, 11), (4, 1, 5), (1,), ((2, 2),), (1,), groups=4),
    "3-D": Problem((1, 2, 4, 4, 5), (3, 2, 2, 3, 2), (1, 2, 1), ((0, 0), (1, 1), (0, 1)), (1, 1, 1)),
}


@pytest.fixture
def installed(tmp_path):
    """The environment of a process in which the example is installed, from what its pyproject.toml says."""
    if not FOLDER.exists():
        pytest.skip(NEEDED)
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    written = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    written.mkdir()
    named = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (written / "METADATA").write_text(named, encoding="utf-8")
    points = [
        line
        for group, own in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in own.items()))
    ]
    (written / "entry_points.txt").write_text("\n".join(points), encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(tmp_path), str(FOLDER), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture
def backend(monkeypatch):
    """The backend, in this process; the registry knows nothing of it, and is told that these arrays are its own."""
    if not FOLDER.exists():
        pytest.skip(NEEDED)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(portconv.backends, "_by_class", dict(portconv.backends._by_class))
    spec = importlib.util.spec_from_file_location("portconv_tally", FOLDER / "portconv_tally.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = module.TallyBackend()
    portconv.backends._by_class[own.xp.Array] = own
    yield own
    sys.modules.pop("tally", None)


def test_it_is_announced_and_found_by_its_arrays(installed):
    code = (
        "import json, sys, portconv; backend = portconv.backends.find('tally'); early = 'tally' in sys.modules\n"
        "x = backend.asarray([[[1.0, 2.0, 4.0, 8.0]]]); w = backend.asarray([[[-1.0, 0.0, 1.0]]])\n"
        "out = portconv.conv(x, w)\n"
        "print(json.dumps([early, portconv.backends.names(), portconv.backends.of(out).name, out.values.tolist(), "
        "backend.version()]))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], env=installed, capture_output=True, text=True, check=True)
    early, names, name, out, version = json.loads(done.stdout)
    assert not early
    assert "tally" in names
    assert name == "tally"
    assert out == [[[3.0, 6.0]]]
    assert version == "1.0"


def served():
    """Each problem with each algorithm that serves it."""
    for name, problem in PROBLEMS.items():
        for algorithm in portconv.algorithms():
            # `compiled` is for arrays with an address, `tap_loop` for libraries that compile every step, and
            # tally.convolve has no groups.
            if (
                algorithm in ("compiled", "tap_loop")
                or (algorithm == "native" and problem.groups > 1)
                or not problem.serves(algorithm)
            ):
                continue
            yield pytest.param(problem, algorithm, id=f"{name}, {algorithm}")


def test_the_page_about_it(installed):
    code = "import doctest, sys; sys.exit(doctest.testfile(sys.argv[1], module_relative=False).failed)"
    page = str(FOLDER.parent / "writing-a-backend.md")
    done = subprocess.run([sys.executable, "-P", "-c", code, page], env=installed, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("problem", "algorithm"), list(served()))
def test_it_gives_what_loops_give(backend, problem, algorithm, dtype):
    host = problem.operands(dtype)
    x, w, b, dout = (backend.asarray(array) for array in host)
    options = {"stride": problem.stride, "padding": problem.pads, "dilation": problem.dilation}
    out, cache = portconv.conv_forward(x, w, b, **options, groups=problem.groups, algorithm=algorithm)
    found = {"out": out, **portconv.conv_backward(dout, cache)._asdict()}
    wide = [array.astype("float64") for array in host]
    bounds = problem.bounds(*wide, dtype, algorithm)
    for name, exact in problem.all(*wide).items():
        assert type(found[name]) is backend.xp.Array
        assert found[name].dtype == dtype
        assert np.all(np.abs(backend.to_numpy(found[name]) - exact) <= bounds[name]), name


def test_reproducible_results_have_numpys_bits(backend):
    host = PROBLEMS["plain"].operands("float32")
    x, w = (backend.asarray(array) for array in host[:2])
    found = portconv.conv(x, w, padding=1, precision="reproducible")
    expected = portconv.conv(*host[:2], padding=1, precision="reproducible")
    assert backend.to_numpy(found).tobytes() == expected.tobytes()


def test_without_the_library_it_says_so(backend, monkeypatch):
    monkeypatch.setitem(sys.modules, "tally", None)
    absent = type(backend)()
    assert absent.unavailable.startswith("tally is not installed")
    assert not absent.fault.no_device
    with pytest.raises(portconv.BackendError, match="pip install docs/example_backend"):
        absent.asarray([1.0])
