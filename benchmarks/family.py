"""Time the rest of the family beside PyTorch, in one run: dtypes, padding modes, channels last, transposed, windows.

    python benchmarks/family.py [--repeats 5] [--only TEXT] [--json FILE]

All features use one layer: a 3x3 convolution of 64 channels, or a transposed one with 4x4 filters and a stride of 2.
The figures are ratios of medians over interleaved turns, as in `portconv bench`: portconv's time over PyTorch's, and
over portconv's in float32. An error is the largest difference from a result in float64, complex128 or PyTorch's
integers, over the largest magnitude in that result, in units of the dtype's epsilon; for integers, it is the number of
elements that differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.nn import functional

import portconv
from portconv import backends
from portconv.benchmark import medians, surroundings

X, W, TRANSPOSED = (8, 64, 56, 56), (64, 64, 3, 3), (64, 64, 4, 4)
DTYPES = ("float16", "bfloat16", "complex64", "complex128", "float64", "int8", "uint8", "int16", "int32", "int64")
MODES = ("reflect", "replicate", "circular")


@dataclass(frozen=True)
class Feature:
    """A call of portconv, the same in PyTorch, and a function that computes the right result."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    truth: Callable[[], Any]


def numbers(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    """Draw normal numbers, or integers over their full range."""
    rng = np.random.default_rng(seed)
    if "int" in dtype:
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    values = rng.standard_normal(shape)
    return values + 1j * rng.standard_normal(shape) if dtype.startswith("complex") else values


def of_dtype(dtype: str) -> Feature:
    """Return a convolution in one dtype, on NumPy's arrays; bfloat16 is the dtype of ml_dtypes."""
    x, w = numbers(X, dtype, 0), numbers(W, dtype, 1)
    numpy = backends.get("numpy")
    ours = [numpy.asarray(a, dtype) for a in (x, w)]
    theirs = [torch.from_numpy(a).to(getattr(torch, dtype)) for a in (x, w)]

    def convolve() -> Any:
        return functional.conv2d(*theirs, padding=1)

    def truth() -> Any:
        if "int" in dtype:
            return convolve().numpy()
        wide = "complex128" if dtype.startswith("complex") else "float64"
        return portconv.conv(*(a.astype(wide) for a in ours), padding=1, algorithm="direct")

    return Feature(dtype, lambda: portconv.conv(*ours, padding=1), convolve, truth)


def of_mode(mode: str) -> Feature:
    """Return a convolution in float32 with one of the padding modes."""
    x, w = (numbers(s, "float32", i).astype("float32") for i, s in enumerate((X, W)))
    tx, tw = torch.from_numpy(x), torch.from_numpy(w)
    options: dict[str, Any] = {"padding": 1, "padding_mode": mode}
    return Feature(
        mode,
        lambda: portconv.conv(x, w, **options),
        lambda: functional.conv2d(functional.pad(tx, (1, 1, 1, 1), mode=mode), tw),
        lambda: portconv.conv(x.astype("float64"), w.astype("float64"), **options, algorithm="direct"),
    )


def others() -> list[Feature]:
    """Return channels last, the transposed convolution with its gradient, `unfold` and `fold`, in float32."""
    x, w, v = (numbers(s, "float32", i).astype("float32") for i, s in enumerate((X, W, TRANSPOSED)))
    tx, tw, tv = (torch.from_numpy(a) for a in (x, w, v))
    wide_x, wide_w, wide_v = (a.astype("float64") for a in (x, w, v))
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    options: dict[str, Any] = {"padding": 1, "data_format": "channels_last"}
    tx_last, tw_last = (t.to(memory_format=torch.channels_last) for t in (tx, tw))
    sizes: dict[str, Any] = {"stride": 2, "padding": 1}
    out, cache = portconv.conv_transpose_forward(x, v, **sizes)
    _, wide_cache = portconv.conv_transpose_forward(wide_x, wide_v, **sizes, algorithm="direct")
    dout = torch.from_numpy(out)
    columns = portconv.unfold(x, 3, padding=1)
    t_columns = torch.from_numpy(columns)

    def their_gradients() -> Any:
        tail = (None, [2, 2], [1, 1], [1, 1], True, [0, 0], 1, [True, True, False])
        return torch.ops.aten.convolution_backward(dout, tx, tv, *tail)[0]

    return [
        Feature(
            "channels last",
            lambda: portconv.conv(last, w, **options),
            lambda: functional.conv2d(tx_last, tw_last, padding=1),
            lambda: np.moveaxis(portconv.conv(wide_x, wide_w, padding=1, algorithm="direct"), 1, -1),
        ),
        Feature(
            "transposed, stride 2",
            lambda: portconv.conv_transpose(x, v, **sizes),
            lambda: functional.conv_transpose2d(tx, tv, **sizes),
            lambda: portconv.conv_transpose(wide_x, wide_v, **sizes, algorithm="direct"),
        ),
        Feature(
            "transposed, gradients",
            lambda: portconv.conv_transpose_backward(out, cache).dx,
            their_gradients,
            lambda: portconv.conv_transpose_backward(out.astype("float64"), wide_cache).dx,
        ),
        Feature(
            "unfold",
            lambda: portconv.unfold(x, 3, padding=1),
            lambda: functional.unfold(tx, 3, padding=1),
            lambda: functional.unfold(tx, 3, padding=1).numpy(),
        ),
        Feature(
            "fold",
            lambda: portconv.fold(columns, X[2:], 3, padding=1),
            lambda: functional.fold(t_columns, X[2:], 3, padding=1),
            lambda: portconv.fold(columns.astype("float64"), X[2:], 3, padding=1),
        ),
    ]


def error(result: Any, truth: Any) -> float:
    """Return the largest error in epsilons of the dtype, or how many integers differ."""
    if result.dtype.kind in "iu":
        return float(np.count_nonzero(result != truth))
    name = result.dtype.name
    eps = 2.0**-7 if name == "bfloat16" else float(np.finfo(name).eps)
    wide = result.astype("complex128" if result.dtype.kind == "c" else "float64")
    return float(np.max(np.abs(wide - truth)) / (np.max(np.abs(truth)) * eps))


@click.command()
@click.option("--repeats", default=5, show_default=True, help="Turns, of which the median counts.")
@click.option("--only", default="", help="Only features with this in their name.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here.")
def main(repeats: int, only: str, path: Path | None) -> None:
    """Time the rest of the family beside PyTorch."""
    x, w = (numbers(s, "float32", i).astype("float32") for i, s in enumerate((X, W)))
    features = [*map(of_dtype, DTYPES), *map(of_mode, MODES), *others()]
    features = [feature for feature in features if only in feature.name]
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for feature in progress.track(features):
            candidates = {
                "portconv": feature.ours,
                "PyTorch": feature.theirs,
                "float32": lambda: portconv.conv(x, w, padding=1),
            }
            times = medians(candidates, repeats)
            ratios = {who: times["portconv"] / times[who] for who in ("PyTorch", "float32")}
            rows.append({"feature": feature.name, "ratios": ratios, "error": error(feature.ours(), feature.truth())})
    table = Table(title="portconv's time over PyTorch's and over its own float32 convolution (below 1 is faster)")
    for head in ("feature", "over PyTorch", "over float32", "error"):
        table.add_column(head, justify="left" if head == "feature" else "right")
    for row in rows:
        figures = (f"{row['ratios'][who]:.2f}" for who in ("PyTorch", "float32"))
        table.add_row(row["feature"], *figures, f"{row['error']:.1f}")
    console = Console(width=None if Console().is_terminal else 150)
    console.print(table)
    about = surroundings(backends.get("numpy"))
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
    if path is not None:
        path.write_text(json.dumps({"surroundings": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
