"""Caches of forward calls: copied, pickled, and used in another process."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

import portconv

X, W, B = np.arange(20.0).reshape(1, 2, 10), np.ones((2, 2, 3)), np.ones(2)
CALLS = {
    "conv": (portconv.conv_forward, portconv.conv_backward),
    "conv_transpose": (portconv.conv_transpose_forward, portconv.conv_transpose_backward),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("twin", [lambda cache: pickle.loads(pickle.dumps(cache)), copy.deepcopy, copy.copy])
def test_a_copy_of_a_cache_is_as_good(target, name, twin):
    forward, backward = CALLS[name]
    out, cache = forward(*map(target.array, (X, W, B)), stride=2)
    other = twin(cache)
    assert type(other) is type(cache)
    assert other.backend is target.backend
    assert other.operation == cache.operation
    assert hash(other.operation) == hash(cache.operation)
    for mine, theirs in zip(backward(out, other), backward(out, cache), strict=True):
        assert np.array_equal(target.numpy(mine), target.numpy(theirs))


def test_a_cache_goes_to_another_process(tmp_path):
    out, cache = portconv.conv_forward(X, W, B)
    (tmp_path / "cache").write_bytes(pickle.dumps((out, cache)))
    code = (
        "import pickle, sys, pathlib\n"
        "out, cache = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "import portconv\n"
        "_, own = portconv.conv_forward(cache.x, cache.w, cache.b)\n"
        "assert hash(own.operation) == hash(cache.operation)  # of strings, each process has other hashes\n"
        "assert hash(own.operation.geometry) == hash(cache.operation.geometry)\n"
        "assert cache.backend is portconv.backends.get('numpy')\n"
        "sys.stdout.buffer.write(pickle.dumps(portconv.conv_backward(out, cache)))\n"
    )
    arguments = [sys.executable, "-P", "-c", code, str(tmp_path / "cache")]
    done = subprocess.run(arguments, capture_output=True, check=True)
    for mine, theirs in zip(pickle.loads(done.stdout), portconv.conv_backward(out, cache), strict=True):
        assert np.array_equal(mine, theirs)
