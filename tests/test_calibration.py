"""Calibration files: what is stored is used, and what cannot be trusted is ignored with one warning that names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import portconv
from portconv import backends, calibration
from portconv.backends import Costs
from portconv.benchmark.costs import Timing, fit, regrets

OWN = Costs(1.0, 2.0, 3.0, 4.0, 5.0)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache folder with nothing in it, which no earlier call has looked into."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    calibration.stored.cache_clear()
    yield
    monkeypatch.undo()
    calibration.stored.cache_clear()


def numpy_costs():
    calibration.stored.cache_clear()
    return calibration.costs(backends.get("numpy"))


def test_without_a_file_the_shipped_costs_serve():
    assert numpy_costs() == backends.get("numpy").costs


def test_what_is_stored_is_used_and_other_backends_keep_theirs():
    where = calibration.store({"numpy": OWN})
    assert where == calibration.path()
    calibration.store({"torch": Costs(5.0, 6.0, 7.0, 8.0, 9.0)})
    assert numpy_costs() == OWN
    assert calibration.costs(backends.find("torch")) == (5.0, 6.0, 7.0, 8.0, 9.0)
    assert calibration.costs(backends.find("cupy")) == backends.find("cupy").costs


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "it is damaged"),
        (lambda text: "[]", "it is damaged"),
        (lambda text: "\x00", "it is damaged"),
        (lambda text: "[" * 100_000, "it is damaged"),
        (lambda text: text.replace("1.0", "NaN"), "it is damaged"),
        (lambda text: text.replace("1.0", "-1.0"), "it is damaged"),
        (lambda text: text.replace("1.0", "true"), "it is damaged"),
        (lambda text: text.replace("1.0", '"1.0"'), "it is damaged"),
        (lambda text: text.replace("1.0", "1e308"), "it is damaged"),
        (lambda text: text.replace("1.0", f"1{400 * '0'}"), "it is damaged"),
        (lambda text: text.replace("1.0", f"1{5000 * '0'}"), "it is damaged"),
        (lambda text: text + " " * (1 << 20), "it has more than 1048576 bytes"),
        (lambda text: text.replace('"transform"', '"other"'), "it is damaged"),
        (lambda text: text.replace(portconv.__version__, "0.0.0"), "its version is '0.0.0'"),
        (lambda text: text.replace('"machine": "', '"machine": "another '), "its machine is 'another"),
        (lambda text: text.replace('"format": 2', '"format": 1'), "its format is 1"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_ignored_with_one_warning(damage, words):
    where = calibration.store({"numpy": OWN})
    where.write_text(damage(where.read_text()))
    calibration.stored.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for size in (5, 6, 7):
            portconv.conv(np.ones((1, 1, size)), np.ones((1, 1, 3)))
            assert calibration.costs(backends.get("numpy")) == backends.get("numpy").costs
    messages = [str(warning.message) for warning in caught if warning.category is calibration.CalibrationWarning]
    assert len(messages) == 1 or not messages  # the choice may have been made by an earlier call
    with pytest.warns(calibration.CalibrationWarning) as again:
        numpy_costs()
    assert len(again) == 1
    assert str(where) in str(again[0].message)
    assert words in str(again[0].message)


def test_a_file_in_bytes_that_are_no_text_is_ignored():
    where = calibration.store({"numpy": OWN})
    where.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.warns(calibration.CalibrationWarning, match="cannot be read"):
        assert numpy_costs() == backends.get("numpy").costs


@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_what_is_no_plain_file_is_ignored_and_not_waited_for(kind):
    where = calibration.path()
    where.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        where.mkdir()
    elif kind == "fifo" and hasattr(os, "mkfifo"):
        os.mkfifo(where)
    elif kind == "device" and Path("/dev/zero").exists():
        where.symlink_to("/dev/zero")
    else:
        pytest.skip(f"this system has no {kind}")
    with pytest.warns(calibration.CalibrationWarning, match="it is no plain file"):
        assert numpy_costs() == backends.get("numpy").costs


def test_a_file_is_replaced_whole(monkeypatch):
    where = calibration.store({"numpy": OWN})
    before = where.read_bytes()
    monkeypatch.setattr(type(where), "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        calibration.store({"numpy": Costs(9.0, 9.0, 9.0, 9.0)})
    assert where.read_bytes() == before
    assert [path.name for path in where.parent.iterdir()] == [where.name]


def test_a_file_changes_the_choice_of_a_new_process(tmp_path):
    # Where transforms cost nothing they are taken, even for a kernel of 5.
    calibration.store({"numpy": Costs(1.0, 0.0, 0.0, 0.0)})
    code = "import numpy as np, portconv; print(portconv.explain(np.ones((1, 1, 99)), np.ones((1, 1, 5))).algorithm)"
    stored = {"XDG_CACHE_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path), "HOME": str(tmp_path)}
    stored["PORTCONV_KERNELS"] = "off"  # which have costs of their own
    for variables, expected in ((stored, "fft"), ({**stored, "XDG_CACHE_HOME": str(tmp_path / "none")}, "native")):
        if sys.platform != "linux" and expected == "native":
            continue
        found = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == expected
        assert found.stderr == ""


def test_costs_are_found_from_times_that_they_explain():
    rng = np.random.default_rng(0)
    counts = 10 ** rng.uniform(2, 8, (40, 5))
    true = (0.01, 0.2, 0.3, 3000.0, 0.005)
    made = [Timing("layer", "forward", "gemm", tuple(own), float(own @ np.array(true))) for own in counts]
    assert fit(made) == pytest.approx(true, rel=1e-3)  # of three digits


def test_no_cost_is_negative_and_what_is_not_counted_costs_nothing():
    made = [
        Timing("layer", "forward", "gemm", (100.0 * n, 10.0 / n, 0.0, 1.0, 0.0), 300.0 * n - 5 / n)
        for n in (1, 2, 3, 4)
    ]
    found = fit(made)
    assert min(found) == 0
    assert found.transform == 0
    assert found.operation == pytest.approx(3, rel=0.05)


def test_regret_is_the_time_over_that_of_the_fastest():
    made = [
        Timing("a", "forward", "gemm", (10.0, 0, 0, 0, 0), 200.0),
        Timing("a", "forward", "fft", (0, 0, 5.0, 0, 0), 100.0),
        Timing("b", "forward", "gemm", (1.0, 0, 0, 0, 0), 50.0),
    ]
    assert regrets(made, Costs(1, 1, 1, 1, 1)) == [("a", "forward", "fft", 1.0), ("b", "forward", "gemm", 1.0)]
    assert regrets(made, Costs(1, 1, 3, 1, 1))[0] == ("a", "forward", "gemm", 2.0)


def test_the_file_is_json_that_says_where_it_is_from():
    found = json.loads(calibration.store({"numpy": OWN}).read_text())
    costs = {"operation": 1.0, "element": 2.0, "transform": 3.0, "call": 4.0, "native": 5.0}
    assert found["costs"] == {"numpy": costs}
    assert found["version"] == portconv.__version__
    assert found["machine"]
