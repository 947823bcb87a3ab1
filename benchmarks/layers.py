"""Time a few real layers beside PyTorch, `direct` and the library's own matrix product, in one run.

    python benchmarks/layers.py [--backend numpy|cupy|torch] [--repeats 7] [--json FILE]

Every figure is a ratio of times, medians over interleaved repeats: what portconv takes over what the peer takes, so
that below 1 is faster. Each turn first runs the candidate untimed until the last one's threads have stopped spinning.
"product" is matrix products of as many operations by the library itself, the limit for anything built on it. Errors
are the largest difference from a float64 result, over the largest magnitude in it, in units of float32's epsilon.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import portconv
from portconv import backends


@dataclass(frozen=True)
class Layer:
    """A 2-D layer with square pictures and kernels, in float32."""

    name: str
    batch: int
    channels: int
    size: int
    filters: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, self.size, self.size)

    @property
    def w_shape(self) -> tuple[int, ...]:
        return (self.filters, self.channels // self.groups, self.kernel, self.kernel)

    @property
    def options(self) -> dict[str, int]:
        return {"stride": self.stride, "padding": self.padding, "groups": self.groups}


LAYERS = (
    Layer("3x3, 64 channels, 56", 16, 64, 56, 64, 3, 1, 1),
    Layer("3x3, 256 channels, 14", 16, 256, 14, 256, 3, 1, 1),
    Layer("3x3, 512 channels, 7", 16, 512, 7, 512, 3, 1, 1),
    Layer("7x7 stem, 224", 16, 3, 224, 64, 7, 2, 3),
    Layer("1x1, 256 to 64, 56", 16, 256, 56, 64, 1),
    Layer("1x1, 64 to 256, 56", 16, 64, 56, 256, 1),
    Layer("3x3 strided, 128 channels, 56", 16, 128, 56, 128, 3, 2, 1),
    Layer("3x3 depthwise, 144 channels, 56", 16, 144, 56, 144, 3, 1, 1, 144),
    Layer("3x3, 64 channels, 56, one sample", 1, 64, 56, 64, 3, 1, 1),
)
PASSES = ("forward", "dx", "dw")
DIRECT = LAYERS[0]
"""The one layer that `direct` is timed on."""

SETTLE, TURN = 0.2, 0.04
"""Seconds that a candidate runs untimed (OpenBLAS's idle threads spin for 0.1 s after a product), and timed."""

Candidates = dict[str, Callable[[], Any]]


def portconv_passes(layer: Layer, x: Any, w: Any, dout: Any, algorithm: str = "auto") -> Candidates:
    """Our three passes."""
    options: dict[str, Any] = {**layer.options, "algorithm": algorithm}
    return {
        "forward": lambda: portconv.conv(x, w, **options),
        "dx": lambda: portconv.conv_input_grad(dout, w, layer.x_shape, **options),
        "dw": lambda: portconv.conv_weight_grad(dout, x, layer.w_shape, **options),
    }


def torch_passes(layer: Layer, x: Any, w: Any, dout: Any) -> Candidates:
    """PyTorch's three passes, without autograd."""
    import torch

    stride, padding = [layer.stride] * 2, [layer.padding] * 2

    def backward(mask: list[bool]) -> Any:
        tail = (None, stride, padding, [1, 1], False, [0, 0], layer.groups, mask)
        return torch.ops.aten.convolution_backward(dout, x, w, *tail)

    def forward() -> Any:
        return torch.nn.functional.conv2d(x, w, stride=stride, padding=padding, groups=layer.groups)

    return {
        "forward": forward,
        "dx": lambda: backward([True, False, False])[0],
        "dw": lambda: backward([False, True, False])[1],
    }


def product_of_the_library(layer: Layer, backend: Any, device: Any, positions: int) -> Callable[[], Any]:
    """As many operations as one pass, in one matrix product a sample."""
    taps = layer.channels // layer.groups * layer.kernel**2
    a = backend.asarray(np.ones((layer.filters, taps)), "float32", device)
    b = backend.asarray(np.ones((taps, positions)), "float32", device)
    return lambda: [backend.xp.matmul(a, b) for _ in range(layer.batch)]


def torch_device(name: str) -> Any:
    """PyTorch's device beside a backend's, or None where there is no PyTorch to compare with."""
    try:
        import torch
    except ImportError:
        return None
    if name != "cupy":
        return torch.device("cpu")
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    return torch.device("cuda") if torch.cuda.is_available() else None


def medians(candidates: Candidates, wait: Callable[[], None], repeats: int) -> dict[str, float]:
    """Median seconds of each candidate, in interleaved turns."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            repeat(run, wait, SETTLE)
            times[name].append(repeat(run, wait, TURN))
    return {name: statistics.median(found) for name, found in times.items()}


def repeat(run: Callable[[], Any], wait: Callable[[], None], seconds: float) -> float:
    """Run for so long at the least; return the seconds a run."""
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < seconds:
        run()
        wait()
        count += 1
    return (time.perf_counter() - start) / count


def extra_memory(run: Callable[[], Any]) -> int:
    """Peak bytes that NumPy allocates during a call, above the result."""
    run()
    tracemalloc.start()
    result = run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return int(peak - result.nbytes)


def surroundings(backend: Any) -> dict[str, str]:
    """What a reader must know to compare these figures with others."""
    names = ("numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "array-api-strict", "threadpoolctl")
    found = {"portconv": portconv.__version__, "python": platform.python_version(), "processor": processor()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "backend": backend.name, **backends.get("numpy").details(), **backend.details()}


def processor() -> str:
    """Name the CPU, as well as the system does."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(layer: Layer, backend: Any, repeats: int) -> list[dict[str, Any]]:
    """Time and check one layer's passes: a row each."""
    rng = np.random.default_rng(0)
    out_shape = portconv.conv_output_shape(layer.x_shape, layer.w_shape, **layer.options)
    shapes = (layer.x_shape, layer.w_shape, out_shape)
    host = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    device = backend.devices()[0]
    arrays = [backend.asarray(a, device=device) for a in host]
    wide = portconv_passes(layer, *(a.astype("float64") for a in host))
    truths = {name: wide[name]() for name in PASSES}
    passes = {"portconv": portconv_passes(layer, *arrays)}
    there = torch_device(backend.name)
    if there is not None:
        import torch

        tensors = [torch.from_numpy(a).to(there) for a in host]
        passes["PyTorch"] = torch_passes(layer, *tensors)
        last = [t.to(memory_format=torch.channels_last) for t in tensors]
        passes["PyTorch channels_last"] = torch_passes(layer, *last)
    if layer == DIRECT:
        passes["direct"] = portconv_passes(layer, *arrays, algorithm="direct")

    def wait() -> None:
        backend.synchronize()
        if there is not None and there.type == "cuda":
            torch.cuda.synchronize()

    rows = []
    for name in PASSES:
        candidates = {who: runs[name] for who, runs in passes.items()}
        candidates["product"] = product_of_the_library(layer, backend, device, int(np.prod(out_shape[2:])))
        times = medians(candidates, wait, repeats)
        errors = {}
        for who, runs in passes.items():
            result = runs[name]()
            plain = result.cpu().numpy() if type(result).__module__ == "torch" else backend.to_numpy(result)
            scale = np.max(np.abs(truths[name])) * np.finfo("float32").eps
            errors[who] = float(np.max(np.abs(plain - truths[name])) / scale)
        rows.append(
            {
                "layer": asdict(layer),
                "pass": name,
                "ratios": {who: times["portconv"] / taken for who, taken in times.items() if who != "portconv"},
                "errors": errors,
                "extra_mib": extra_memory(passes["portconv"][name]) / 2**20 if backend.name == "numpy" else None,
            }
        )
    return rows


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Lay the rows out for a terminal."""
    peers = list(dict.fromkeys(who for row in rows for who in row["ratios"]))
    table = Table(
        title="portconv's time over the peer's (below 1 is faster), and in brackets the error in float32 epsilons"
    )
    for head in ("layer", "pass", "portconv", *peers, "extra MiB"):
        table.add_column(head, justify="left" if head in ("layer", "pass") else "right")
    for row in rows:
        cells = [
            f"{row['ratios'][who]:.2f}" + (f" ({row['errors'][who]:.1f})" if who in row["errors"] else "")
            if who in row["ratios"]
            else ""
            for who in peers
        ]
        memory = "" if row["extra_mib"] is None else f"{row['extra_mib']:.1f}"
        own = f"({row['errors']['portconv']:.1f})"
        table.add_row(row["layer"]["name"] if row["pass"] == "forward" else "", row["pass"], own, *cells, memory)
    return table


@click.command()
@click.option("--backend", "name", default="numpy", show_default=True, help="The backend to time.")
@click.option("--repeats", default=7, show_default=True, help="Turns, of which the median counts.")
@click.option("--layer", "chosen", multiple=True, help="Only layers with this in their name (repeatable).")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here.")
def main(name: str, repeats: int, chosen: tuple[str, ...], path: Path | None) -> None:
    """Time a few real layers beside the peers that are installed."""
    backend = backends.get(name)
    layers = [layer for layer in LAYERS if not chosen or any(part in layer.name for part in chosen)]
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for layer in progress.track(layers, description=name):
            rows += measure(layer, backend, repeats)
    about = surroundings(backend)
    console = Console(width=None if Console().is_terminal else 150)
    console.print(table_of(rows))
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))
    if path is not None:
        path.write_text(json.dumps({"surroundings": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
