"""Test the example that learns digits: its gradients, its accuracy, and the same bits on all libraries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import example_scripts

import portconv

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install scikit-learn")

NUMPY = portconv.backends.get("numpy")


example = example_scripts.loaded("digits")


def run(*arguments: str) -> Any:
    return example_scripts.run(example, *arguments)


@pytest.fixture(scope="module")
def on_numpy() -> Any:
    return example.train(NUMPY, example.load(), "reproducible", 5, 0)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make an epoch two steps."""
    monkeypatch.setattr(example, "TRAINED", 2 * example.BATCH)
    whole = example.load()
    monkeypatch.setattr(example, "load", lambda: whole)
    return whole


def test_it_learns_to_read(on_numpy: Any) -> None:
    assert on_numpy.accuracy >= 0.97
    assert len(on_numpy.losses) == 5 * 44
    # The last epoch's beside the first's.
    assert on_numpy.losses[-44:].mean() < on_numpy.losses[:44].mean() / 10


@pytest.mark.parametrize("seed", [1, 2])
def test_it_learns_from_other_weights_too(seed: int) -> None:
    assert example.train(NUMPY, example.load(), "standard", 5, seed).accuracy >= 0.97


def test_torch_learns_with_the_same_bits(on_numpy: Any) -> None:
    if (reason := portconv.backends.find("torch").unavailable) is not None:
        pytest.skip(f"torch is unavailable: {reason}")
    actual = example.train(portconv.backends.get("torch"), example.load(), "reproducible", 5, 0)
    assert actual.losses.tobytes() == on_numpy.losses.tobytes()
    assert actual.history_digest == on_numpy.history_digest
    assert actual.parameters_digest == on_numpy.parameters_digest
    assert actual.accuracy == on_numpy.accuracy


@pytest.mark.parametrize("name", ["array_api_strict", "dask", "jax"])
def test_a_library_has_the_same_bits(few: Any, name: str) -> None:
    if name not in portconv.backends.names() or (reason := portconv.backends.find(name).unavailable) is not None:
        pytest.skip(f"{name} is unavailable: {reason if name in portconv.backends.names() else 'not known'}")
    done = run("--backend", "numpy", "--backend", name, "--precision", "reproducible", "--epochs", "2", "--json")
    printed = json.loads(done.output)
    assert printed["identical"] is True
    one, other = printed["backends"]
    assert (one["name"], other["name"]) == ("numpy", name)
    assert one["losses"] == other["losses"]
    assert len(one["losses"]) == 4
    for digest in ("history_digest", "parameters_digest"):
        assert one[digest] == other[digest]


def total(parameters: Sequence[np.ndarray], images: np.ndarray, signs: np.ndarray) -> tuple[float, bytes]:
    """Return the loss, and which of the maxima are 0."""
    maps, scores, _ = example.forward(NUMPY, parameters, images, "standard")
    loss, _ = example.loss_and_slope(NUMPY, scores, signs, "standard")
    return float(loss.item()), np.concatenate([(maps > 0).ravel(), (1 - signs * scores > 0).ravel()]).tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_the_losss_slope(seed: int) -> None:
    # In any direction, scores are polynomials of degree 2 as long as no maximum changes sides, and so the loss is one
    # of degree 4: a central difference of 5 points is its derivative, but for rounding.
    generator = np.random.default_rng(seed)
    parameters = [array.astype("float64") for array in example.initial(generator)]
    images = generator.standard_normal((4, 1, 8, 8))
    signs = np.where(np.arange(10)[:, None, None] == generator.integers(0, 10, (4, 1, 1, 1)), 1.0, -1.0)
    _, slopes = example.gradients(NUMPY, parameters, images, signs, "standard")
    assert [slope.shape for slope in slopes] == [array.shape for array in parameters]
    step = 2.0**-20
    for own, slope in enumerate(slopes):
        direction = generator.standard_normal(slope.shape)
        losses, sides = [], set()
        for steps in (-2, -1, 0, 1, 2):
            moved = [p + steps * step * direction if i == own else p for i, p in enumerate(parameters)]
            loss, side = total(moved, images, signs)
            losses.append(loss)
            sides.add(side)
        assert len(sides) == 1
        far_before, before, loss, after, far_after = losses
        numeric = (8 * (after - before) - (far_after - far_before)) / (12 * step)
        # A loss goes through sums of 16, 432 and 40 terms, and a square: its terms are positive, but scores' are not,
        # and are some ten times what they sum up to. So it is off by (2 * 10 * (16 + 432) + 40) u at most, and each of
        # the four has a part in the difference, (8 + 8 + 1 + 1) / 12 in all.
        assert abs(numeric - np.vdot(slope, direction)) <= 1.5 * 9000 * 2.0**-53 * loss / step
        assert abs(numeric) > 100 * 1.5 * 9000 * 2.0**-53 * loss / step


def test_other_bits_are_told_where_they_begin(few: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = example.loss_and_slope, []

    def wrong(*arguments: Any) -> Any:
        loss, slope = whole(*arguments)
        calls.append(loss)
        return (np.nextafter(loss, np.float32(np.inf)) if len(calls) == 4 + 3 else loss), slope

    class Other(type(NUMPY)):
        name = "other"

    monkeypatch.setattr(example, "loss_and_slope", wrong)
    both = {"numpy": NUMPY, "other": Other()}
    monkeypatch.setattr(example, "backends_named", lambda names: [both[name] for name in names])
    asked = ("--backend", "numpy", "--backend", "other", "--epochs", "2", "--least-accuracy", "0")
    done = run(*asked, "--precision", "reproducible")
    assert done.exit_code == 1
    assert "epoch 2, step 1" in done.output
    assert done.output.splitlines()[-1] == "losses and weights: other bits on other libraries"
    calls.clear()
    assert run(*asked, "--precision", "standard").exit_code == 0


def test_too_few_right_answers_are_a_failure(few: Any) -> None:
    done = run("--backend", "numpy", "--epochs", "1", "--least-accuracy", "0.999")
    assert done.exit_code == 1
    assert "NOT all read 99.9% of the test images or more" in done.output


def test_a_picture_is_drawn(few: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'portconv[cli]'")
    picture = tmp_path / "losses.png"
    assert run("--backend", "numpy", "--epochs", "1", "--least-accuracy", "0", "--plot", str(picture)).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    for arguments, words in (
        (("--backend", "nothing"), "backend: got 'nothing', expected one of "),
        (("--plot", str(tmp_path / "a.txt")), "got the ending '.txt', expected one of pdf, png, svg"),
        (("--precision", "exact"), "'exact' is not one of 'standard', 'fast', 'reproducible'"),
        (("--epochs", "0"), "0 is not in the range x>=1"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert words in done.stderr
