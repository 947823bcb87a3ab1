"""Blur a photograph, add noise, and get it back by least squares: the convolution is a linear operator.

    pip install 'portconv[cli]' scipy
    python examples/deblur.py PHOTOGRAPH.jpg --backend numpy

The camera moved: each pixel of the blurred photograph is a weighted mean along a slanted line, and beyond the edge the
photograph is as if mirrored. `portconv.linear_operator` is this blur, and its adjoint. A solver needs nothing else to
minimise

    |blur @ x - blurred|**2 + damp**2 |x|**2

On NumPy the solver is SciPy's `lsqr`, and on CuPy `cupyx`'s `lsmr`, on the GPU. The picture has the photograph, the
blurred one and the result, for each backend.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import portconv
from portconv.backends import Backend
from portconv.command import photograph
from portconv.command.group import UNCHECKED, backend_named, check_destination, refuse

SOLVERS = {"numpy": ("scipy.sparse.linalg", "lsqr"), "cupy": ("cupyx.scipy.sparse.linalg", "lsmr")}
"""The module and the name of the solver that takes each backend's arrays."""


def motion(length: int, angle: float) -> Any:
    """Return the weights of a camera that moved so many pixels, by an angle in degrees: (1, 1, size, size)."""
    half = length // 2
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    along = columns * math.cos(math.radians(angle)) + rows * math.sin(math.radians(angle))
    across = columns * math.sin(math.radians(angle)) - rows * math.cos(math.radians(angle))
    weights = np.clip(1 - np.abs(across), 0, 1) * (np.abs(along) <= half)
    return (weights / weights.sum())[None, None]


def decibels(x: Any, truth: Any) -> float:
    """Return the peak signal-to-noise ratio of a photograph whose largest number is 1."""
    return float(-10 * np.log10(np.mean((x - truth) ** 2)))


def restored(backend: Backend, truth: Any, weights: Any, noise: float, damp: float, steps: int) -> tuple[Any, Any]:
    """Blur a photograph (C, height, width), and get it back; return both on the host."""
    xp, shape = backend.xp, (len(truth), 1, *truth.shape[1:])  # colours are samples
    w = backend.asarray(weights)
    blur = portconv.linear_operator(w, shape, padding="same", padding_mode="symmetric")
    blurred = blur @ backend.asarray(truth.ravel())
    blurred = blurred + backend.asarray(np.random.default_rng(0).normal(0, noise, truth.size))
    module, solver = SOLVERS[backend.name]
    solve = getattr(importlib.import_module(module), solver)
    limit = "iter_lim" if solver == "lsqr" else "maxiter"
    # The solver starts from the blurred photograph, and finds what to add.
    more = solve(blur, blurred - blur @ blurred, damp=damp, **{limit: steps})[0]
    return tuple(backend.to_numpy(xp.reshape(array, truth.shape)) for array in (blurred, blurred + more))


@click.command()
@click.argument("image", required=False, type=UNCHECKED)
@click.option("--backend", "names", multiple=True, default=("numpy",), show_default=True, help="numpy or cupy.")
@click.option("--length", default=15, show_default=True, help="How many pixels the camera moved.")
@click.option("--angle", default=30.0, show_default=True, help="Which way, in degrees.")
@click.option("--noise", default=0.002, show_default=True, help="The noise's standard deviation; white is 1.")
@click.option("--damp", default=0.02, show_default=True, help="How much large corrections count against the result.")
@click.option("--steps", default=60, show_default=True, help="The most steps of the solver.")
@click.option("--output", default="deblurred.png", show_default=True, type=click.Path(path_type=Path))
def command(
    image: Path | None,
    names: tuple[str, ...],
    length: int,
    angle: float,
    noise: float,
    damp: float,
    steps: int,
    output: Path,
) -> None:
    """Blur a photograph, add noise, and get it back by least squares."""
    check_destination("--output", output, ("pdf", "png", "svg"))
    for name in names:
        if name not in SOLVERS:
            refuse(f"--backend {name}: no solver is known for it, expected numpy or cupy")
    truth = photograph.read(image or Path(get_sample_data("grace_hopper.jpg", asfileobj=False)), 512).pixels
    truth, weights = truth.astype("float64"), motion(length, angle)
    figure = Figure(figsize=(12, 4.4 * len(names)), layout="constrained")
    table = Table("backend", "blurred, dB", "restored, dB")
    better = True
    for row, name in enumerate(names):
        blurred, result = restored(backend_named(name), truth, weights, noise, damp, steps)
        before, after = decibels(blurred, truth), decibels(result, truth)
        better = better and after > before
        table.add_row(name, f"{before:.1f}", f"{after:.1f}")
        titles = "photograph", f"blurred: {before:.1f} dB", f"restored on {name}: {after:.1f} dB"
        for column, (title, pixels) in enumerate(zip(titles, (truth, blurred, result), strict=True)):
            axes = figure.add_subplot(len(names), 3, 1 + 3 * row + column, title=title)
            axes.imshow(np.clip(np.moveaxis(pixels, 0, -1), 0, 1), cmap="gray")
            axes.set_axis_off()
    figure.savefig(output, dpi=120)
    Console().print(table)
    click.echo(f"wrote {output}")
    raise SystemExit(not better)


if __name__ == "__main__":
    command()
