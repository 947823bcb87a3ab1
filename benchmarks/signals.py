"""Time `portconv.signal` beside SciPy, in one run: lines, pictures and volumes, their Gaussians, and several at once.

    python benchmarks/signals.py [--repeats 9] [--without-kernels] [--json FILE]

The figures are ratios of medians over interleaved turns: portconv's time over SciPy's, of the same call in the mode
"full". A call of some microseconds is made so often that a turn takes a millisecond. An error is the largest difference
from SciPy's result, over the largest magnitude in that, in units of the dtype's epsilon; for integers, it is the number
of elements that differ.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy import ndimage
from scipy import signal as theirs

from portconv import backends
from portconv import signal as ours
from portconv.algorithms.choice import known
from portconv.benchmark import medians, surroundings
from portconv.spec.remembered import forget

SIZES = (
    ((100,), (5,)),
    ((10_000,), (5,)),
    ((10_000,), (50,)),
    ((100_000,), (1_000,)),
    ((32, 32), (3, 3)),
    ((256, 256), (5, 5)),
    ((512, 512), (31, 31)),
    ((64, 64, 64), (5, 5, 5)),
)
TURN = 1e-3
"""The least seconds of a turn."""


@dataclass(frozen=True)
class Pair:
    """A call of portconv, and the same of SciPy."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]


def drawn(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    """Draw small whole numbers, or normal ones."""
    rng = np.random.default_rng(seed)
    return rng.integers(-99, 100, shape) if dtype == "int64" else rng.standard_normal(shape).astype(dtype)


def pairs() -> list[Pair]:
    """Return all that is timed."""
    found = []
    for shape, kernel_shape in SIZES:
        for dtype in ("int64", "float64", "float32"):
            x, kernel = drawn(shape, dtype, 0), drawn(kernel_shape, dtype, 1)
            for name in ("convolve", "correlate"):
                sizes = " by ".join("x".join(map(str, size)) for size in (shape, kernel_shape))
                calls = (partial(getattr(module, name), x, kernel) for module in (ours, theirs))
                found.append(Pair(f"{name}, {sizes}, {dtype}", *calls))
    for dtype in ("float64", "float32"):
        picture, lines, taps = drawn((512, 512), dtype, 0), drawn((1000, 100), dtype, 1), drawn((5,), dtype, 2)
        found += [
            Pair(
                f"gaussian_filter, 512x512, {dtype}",
                lambda x=picture: ours.gaussian_filter(x, 2.0, boundary="reflect"),
                lambda x=picture: ndimage.gaussian_filter(x, 2.0, mode="mirror"),
            ),
            Pair(
                f"1,000 lines of 100 by 5, {dtype}",
                lambda x=lines, k=taps: ours.convolve(x, k, axes=1),
                lambda x=lines, k=taps: theirs.oaconvolve(x, k[None], axes=1),
            ),
        ]
    return found


def several(call: Callable[[], Any]) -> int:
    """Return how often a call is made in a turn."""
    call()
    start = time.perf_counter()
    call()
    return max(1, round(TURN / (time.perf_counter() - start)))


def error(result: Any, truth: Any) -> float:
    """Return the largest error in epsilons of the dtype, or how many integers differ."""
    if result.dtype.kind == "i":
        return float(np.count_nonzero(result != truth))
    return float(np.max(np.abs(result - truth)) / np.max(np.abs(truth)) / np.finfo(result.dtype).eps)


@click.command()
@click.option("--repeats", default=9, show_default=True, help="Turns, of which the median counts.")
@click.option("--without-kernels", is_flag=True, help="As without the extra 'kernels'.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here.")
def main(repeats: int, without_kernels: bool, path: Path | None) -> None:
    """Time `portconv.signal` beside SciPy."""
    if without_kernels:
        type(known()["compiled"]).automatic = False
        forget()
    rows, all_pairs = [], pairs()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for pair in progress.track(all_pairs):
            calls = {"portconv": pair.ours, "SciPy": pair.theirs}
            counts = {who: several(call) for who, call in calls.items()}
            turns = {who: (lambda f=calls[who], n=counts[who]: [f() for _ in range(n)]) for who in calls}
            times = medians(turns, repeats)
            ratio = times["portconv"] / counts["portconv"] / (times["SciPy"] / counts["SciPy"])
            rows.append({"call": pair.name, "ratio": ratio, "error": error(pair.ours(), pair.theirs())})
    table = Table(title="portconv's time over SciPy's (below 1 is faster)")
    for head in ("call", "over SciPy", "error"):
        table.add_column(head, justify="left" if head == "call" else "right")
    for row in rows:
        table.add_row(row["call"], f"{row['ratio']:.2f}", f"{row['error']:.1f}")
    console = Console(width=None if Console().is_terminal else 150)
    console.print(table)
    about = {**surroundings(backends.get("numpy")), "kernels": not without_kernels}
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
    if path is not None:
        path.write_text(json.dumps({"surroundings": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
