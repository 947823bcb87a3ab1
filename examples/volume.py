"""Convolve a volume that is larger than the memory of the workers, and kill one of them on the way.

    pip install 'portconv[dask,cli]' distributed zarr
    python examples/volume.py --precision reproducible

A volume of whole numbers of 12 bits, such as a CT scanner's, is written to Zarr chunk by chunk. Dask's workers smooth
it with a kernel of 3 x 3 x 3 and write the result to Zarr. One worker is killed meanwhile, as machines fail; the others
compute its results again. At the end every voxel is compared with the result of NumPy's integers, which smooth one axis
after the other, a slab at a time. The numbers are so small that float32 holds all sums exactly: no voxel may differ.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import click
import dask
import dask.array as da
import numpy as np
import psutil
import zarr
from distributed import Client, LocalCluster
from rich.console import Console
from rich.progress import Progress

import portconv

WEIGHTS = (1, 2, 1)
"""The kernel along each axis; 64 times 4095, the largest sum, is far below 2**24."""
LARGEST = 4095
MIB = 1 << 20
WORKSPACE = 24
"""The MiB that a convolution may take beside its chunks: a worker has room for the interpreter and some chunks."""
PATIENCE = 600
"""The seconds that the workers may take for a chunk of the result."""


class Watch(threading.Thread):
    """A thread that measures the workers' memory, and kills one of them on request.

    Attributes
    ----------
    peaks : dict
        The most bytes that each process has had, by its number; the kernel's count if it has one.
    """

    def __init__(self, cluster: LocalCluster) -> None:
        super().__init__(daemon=True)
        self.cluster, self.peaks, self.done = cluster, dict[int, int](), threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.05):
            for number in self.numbers():
                self.peaks[number] = max(self.peaks.get(number, 0), peak(number))

    def numbers(self) -> list[int]:
        """Return the numbers of the worker processes."""
        return [worker.pid for worker in list(self.cluster.workers.values()) if worker.pid]

    def kill(self) -> int:
        """Kill a worker without warning; its nanny starts another one."""
        number = self.numbers()[0]
        os.kill(number, signal.SIGKILL)
        return number


def peak(number: int) -> int:
    """Return the most bytes that a process has had; if that is not known, those that it has; 0 if it has ended."""
    try:
        status = Path(f"/proc/{number}/status")
        if status.exists():
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) << 10
        return psutil.Process(number).memory_info().rss
    except (psutil.NoSuchProcess, StopIteration, OSError):
        return 0


def cells(volume: Any) -> Iterator[tuple[slice, ...]]:
    """Yield the index of each chunk of a volume."""
    for first in product(*(range(0, size, step) for size, step in zip(volume.shape, volume.chunks, strict=True))):
        yield tuple(slice(at, at + step) for at, step in zip(first, volume.chunks, strict=True))


def create(path: Path, shape: tuple[int, ...], chunk: int) -> Any:
    """Create an empty volume on disk."""
    return zarr.create_array(path, shape=shape, chunks=(chunk,) * 3, dtype="float32", compressors=None)


def smoothed(slab: np.ndarray) -> np.ndarray:
    """Smooth integers along one axis after the other; the slab has one more plane on both sides."""
    for axis in range(3):
        if axis:
            slab = np.pad(slab, [(1, 1) if each == axis else (0, 0) for each in range(3)])
        left, middle, right = (
            slab[tuple(slice(i, slab.shape[axis] - 2 + i) if each == axis else slice(None) for each in range(3))]
            for i in range(3)
        )
        slab = WEIGHTS[0] * left + WEIGHTS[1] * middle + WEIGHTS[2] * right
    return slab


def different(volume: Any, result: Any, chunk: int, progress: Progress) -> int:
    """Count the voxels of a result that are wrong."""
    count = 0
    for start in progress.track(range(0, volume.shape[0], chunk), description="compare"):
        end = min(start + chunk, volume.shape[0])
        first, last = max(0, start - 1), min(volume.shape[0], end + 1)
        slab = volume[first:last].astype("int32")
        slab = np.pad(slab, [(first - start + 1, end + 1 - last), (0, 0), (0, 0)])
        count += int(np.count_nonzero(smoothed(slab) != result[start:end]))
    return count


def convolve(
    volume: Path, result: Any, precision: str, client: Client, watch: Watch, kill: bool, progress: Progress
) -> int | None:
    """Have the workers convolve a volume; return the number of the killed worker."""
    x = da.from_zarr(volume)
    kernel = np.einsum("i,j,k", *(np.array(WEIGHTS, "float32"),) * 3)
    w = da.from_array(kernel.reshape(1, 1, 3, 3, 3))
    # The limit holds for each task of a worker, beside the chunks that it reads and makes.
    with portconv.workspace_limit(WORKSPACE * MIB):
        out = portconv.conv(x[np.newaxis], w, padding="same", precision=precision)[0]
    future = client.compute(da.to_zarr(out, result, compute=False))
    task, killed, last = progress.add_task("convolve", total=result.nchunks), None, time.monotonic()
    written = 0
    while not future.done():
        time.sleep(0.1)
        chunks = result.nchunks_initialized
        if chunks != written:
            written, last = chunks, time.monotonic()
            progress.update(task, completed=written)
        if kill and killed is None and written >= max(1, result.nchunks // 4):
            killed = watch.kill()
        if time.monotonic() - last > PATIENCE:
            raise click.ClickException(f"the workers have written nothing for {PATIENCE} seconds")
    future.result()
    progress.update(task, completed=result.nchunks)
    return killed


@click.command(epilog="The exit status is 0 only if every voxel is right and no worker took more memory than it may.")
@click.option("--precision", type=click.Choice(("standard", "reproducible")), default="standard", show_default=True)
@click.option(
    "--memory", type=click.IntRange(min=256), default=400, show_default=True, help="MiB that a worker may use."
)
@click.option(
    "--times",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="Size of the volume, at least, in memories of a worker.",
)
@click.option(
    "--chunk", type=click.IntRange(min=2), default=128, show_default=True, help="Voxels along an edge of a chunk."
)
@click.option("--kill/--no-kill", default=True, show_default=True, help="Kill a worker on the way.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Where there is room on disk for the volume and the result; without one the system's temporary folder.",
)
def main(precision: str, memory: int, times: float, chunk: int, kill: bool, folder: Path | None) -> None:
    """Convolve a volume larger than memory with Dask, out of Zarr and into Zarr."""
    console, limit = Console(), memory * MIB
    edge = chunk * max(1, round((times * limit / 4) ** (1 / 3) / chunk))
    deep = chunk * max(1, -int(-times * limit // (4 * edge * edge * chunk)))
    shape = (deep, edge, edge)
    with (
        tempfile.TemporaryDirectory(dir=folder) as name,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        here = Path(name)
        volume, result = create(here / "volume.zarr", shape, chunk), create(here / "result.zarr", shape, chunk)
        for number, place in enumerate(progress.track(list(cells(volume)), description="write")):
            drawn = np.random.default_rng((0, number)).integers(0, LARGEST, (chunk,) * 3, "uint16", endpoint=True)
            volume[place] = drawn.astype("float32")
        size = f"{volume.nbytes / limit:.2f} times the {memory} MiB of a worker"
        console.print(f"volume of {' x '.join(map(str, shape))} in {volume.nchunks} chunks: {size}")
        # Workers write chunks to disk early, because the interpreter takes much of their memory.
        memories = {"target": 0.4, "spill": 0.5, "pause": 0.75, "terminate": False}
        settings = {f"distributed.worker.memory.{name}": share for name, share in memories.items()}
        with (
            dask.config.set(settings),
            LocalCluster(
                n_workers=2,
                processes=True,
                threads_per_worker=1,
                memory_limit=limit,
                local_directory=here / "workers",
                dashboard_address=None,
                silence_logs="CRITICAL",
            ) as cluster,
            Client(cluster) as client,
        ):
            watch = Watch(cluster)
            watch.start()
            killed = convolve(here / "volume.zarr", result, precision, client, watch, kill, progress)
            watch.done.set()
            watch.join()
        wrong = different(volume, result, chunk, progress)
    if kill:
        console.print("worker killed on the way: " + ("none, it was done too soon" if killed is None else str(killed)))
    highest = max(watch.peaks.values())
    peaks = ", ".join(f"{bytes_ / MIB:.0f} MiB ({number})" for number, bytes_ in watch.peaks.items())
    console.print(f"most memory of each worker: {peaks}; limit {memory} MiB")
    console.print(f"voxels that are not right: {wrong} of {volume.size}")
    sys.exit(0 if wrong == 0 and highest <= limit and (killed is not None or not kill) else 1)


if __name__ == "__main__":
    main()
