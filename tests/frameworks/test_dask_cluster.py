"""Dask on a real cluster of two processes: the same bits, in memory that holds a part of the data, and workers lost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("dask.array", reason="Dask is not installed")
pytest.importorskip("distributed", reason="distributed is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "volume.py"
GRADIENTS = """
import numpy as np, dask, dask.array as da, portconv
from distributed import Client, LocalCluster

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype("float32") for shape in ((4, 3, 30, 31), (5, 3, 3, 3), (5,))]
    chunks = ((2, 3, 8, 9), -1, -1)
    options = {"stride": (2, 1), "padding": 2, "precision": "reproducible"}
    out, cache = portconv.conv_forward(*arrays, **options)
    dout = rng.standard_normal(out.shape).astype("float32")
    truth = out, *portconv.conv_backward(dout, cache)
    settings = {"n_workers": 2, "processes": True, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**settings) as cluster, Client(cluster) as client:
        lazy, cache = portconv.conv_forward(*map(da.from_array, arrays, chunks), **options)
        grads = portconv.conv_backward(da.from_array(dout, chunks=(3, 5, 5, 11)), cache)
        found = dask.compute(lazy, *grads)
        ran = client.run(lambda: __import__("portconv").backends.find("numpy").fault)
    equal = [a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(truth, found, strict=True)]
    print(len(ran), equal)
"""


def run(*arguments, cwd):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, cwd=cwd)
    assert done.returncode in (0, 1, 2), done.stderr
    return done


def test_gradients_on_two_processes_have_the_bits_of_one(tmp_path):
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    done = run(script, cwd=tmp_path)
    assert done.stdout.strip() == "2 [True, True, True, True]", done.stderr


@pytest.mark.parametrize("precision", ["standard", "reproducible"])
def test_a_volume_out_of_core_with_a_worker_killed(tmp_path, precision):
    for needed in ("zarr", "click", "rich"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    if not EXAMPLE.exists():
        pytest.skip("the examples are not beside the tests")
    small = ("--memory", "400", "--times", "0.2", "--chunk", "64", "--folder", str(tmp_path), "--precision", precision)
    done = run(EXAMPLE, *small, cwd=tmp_path)
    said = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "volume of 320 x 256 x 256 in 80 chunks: 0.20 times the 400 MiB of a worker" in said
    assert re.search(r"worker killed on the way: \d+ ", said)
    assert "voxels that are not right: 0 of 20971520" in said
    peaks = re.search(r"most memory of each worker: (.*); limit 400 MiB", said)[1]
    # Two workers, and the one in the place of the one that was killed.
    assert len(peaks.split(", ")) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--times", "0"], "Invalid value for '--times': 0.0 is not in the range x>0."),
        (["--precision", "exact"], "Invalid value for '--precision': 'exact' is not one of"),
        (["--folder", "nowhere"], "Invalid value for '--folder': Directory 'nowhere' does not exist."),
    ],
)
def test_bad_arguments_of_the_example(tmp_path, arguments, message):
    for needed in ("zarr", "click", "rich"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    done = run(EXAMPLE, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
