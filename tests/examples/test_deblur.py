"""Test the example that deblurs a photograph: the result is nearer to it, and what cannot be used is named."""

from __future__ import annotations

import numpy as np
import pytest
from support import example_scripts

pytest.importorskip("scipy", reason="SciPy is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'portconv[cli]'")

example = example_scripts.loaded("deblur")


def test_a_blurred_photograph_gains_five_decibels(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((12, 12, 1))).astype("uint8")
    Image.fromarray(picture).save(tmp_path / "squares.png")
    output = tmp_path / "out.png"
    result = example_scripts.run(example, str(tmp_path / "squares.png"), "--output", str(output), "--length", "7")
    assert result.exit_code == 0
    blurred, restored = (float(word) for word in result.output.splitlines()[3].replace("│", " ").split()[1:])
    assert restored > blurred + 5
    assert output.stat().st_size


def test_weights_of_a_motion_add_up_to_one():
    weights = example.motion(9, 90.0)
    assert weights.shape == (1, 1, 9, 9)
    assert np.isclose(weights.sum(), 1, rtol=2**-50)
    assert np.allclose(weights[0, 0, :, 4], 1 / 9)


def test_a_backend_without_a_solver_is_named(tmp_path):
    result = example_scripts.run(example, "--backend", "torch", "--output", str(tmp_path / "out.png"))
    assert result.exit_code == 2
    assert "--backend torch: no solver is known" in result.output
