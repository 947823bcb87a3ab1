"""``portconv run``: convolve a photograph, and draw the maps in one picture."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from .. import conv_backward, conv_forward, explain
from .._version import __version__
from ..backends import Backend
from ..errors import PortconvError
from . import filters, photograph
from .backends import device_name
from .filters import Bank
from .group import MOST_TAPS, UNCHECKED, backend_named, check_destination, echo, refuse
from .photograph import Photograph
from .result import Result

MOST_OPERATIONS = 2 * 10**12
"""So many multiplications and additions take about a minute on a CPU."""


def _pixels(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Read a number of pixels; refuse anything else in one line."""
    try:
        pixels = int(value)
    except ValueError:
        pixels = -1
    if pixels < 0:
        refuse(f"--size: got {value!r}, expected a number of pixels, or 0 to keep the photograph's size")
    return pixels


@click.command("run")
@click.argument("image", required=False, type=UNCHECKED)
@click.option(
    "--filters",
    "filters_name",
    default="edges",
    show_default=True,
    metavar="edges|blur|gabor|FILE.npy",
    help="What to convolve with: a bank by name, or an array (F, C, height, width) with C 1 for luminance or 3 for "
    "colours; (F, height, width) and (height, width) are for luminance.",
)
@click.option("--gradient", is_flag=True, help="Also draw the gradient of half the maps' sum of squares.")
@click.option(
    "--backend",
    "backend_name",
    default="auto",
    show_default=True,
    metavar="NAME|auto",
    help="The array library; auto is CuPy if a GPU works, else NumPy.",
)
@click.option(
    "--output",
    default="portconv-maps.png",
    show_default=True,
    metavar="FILE",
    type=UNCHECKED,
    help="The picture to write; the ending chooses its format.",
)
@click.option(
    "--size",
    default="1024",
    show_default=True,
    metavar="PIXELS",
    callback=_pixels,
    help="Reduce a photograph whose longer side is longer than this; 0 keeps it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone.")
def command(
    image: Path | None,
    filters_name: str,
    gradient: bool,
    backend_name: str,
    output: Path,
    size: int,
    as_json: bool,
) -> None:
    """Convolve a photograph, and draw the maps.

    IMAGE is any picture that Pillow reads, of which the first page or frame is taken. Without one it is the photograph
    of Grace Hopper that matplotlib ships.
    """
    # Otherwise matplotlib would print where its cache is.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with _progress() as progress:
        task = progress.add_task("Reading", total=3)
        _check_output(output, image)
        bank = filters.bank(filters_name)
        backend = backend_named(backend_name)
        picture = photograph.read(image or _grace_hopper(), size)
        progress.update(task, advance=1, description=f"Convolving on {backend.name}")
        result = convolve(backend, picture, bank, gradient)
        progress.update(task, advance=1, description="Drawing")
        pixels = _draw(result, output)
        progress.update(task, advance=1)
    report = _report(result, output, pixels)
    echo(json.dumps(report, indent=2) if as_json else _in_words(report))


def _progress() -> Progress:
    terminal = sys.stderr.isatty()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        # Quiet as well as disabled: rich ends even a disabled bar with an empty line.
        console=Console(stderr=True, quiet=not terminal),
        transient=True,
        disable=not terminal,
    )


def _grace_hopper() -> Path:
    import matplotlib.cbook

    return Path(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))


def _check_output(output: Path, image: Path | None) -> None:
    """Refuse what cannot be written, before the work and not after it."""
    from .picture import formats

    check_destination("--output", output, formats())
    if image is not None and image.exists() and output.exists() and output.samefile(image):
        refuse(f"--output {output}: the photograph itself, which would be lost")


def convolve(backend: Backend, picture: Photograph, bank: Bank, gradient: bool) -> Result:
    """Convolve a photograph as one sample; the gradient is the one of half the maps' sum of squares."""
    try:
        x = backend.asarray(picture.pixels, dtype="float32")
        w = backend.asarray(bank.over(len(picture.pixels)), dtype="float32")
        operations, taps = 2 * math.prod((*w.shape, *picture.pixels.shape[1:])), math.prod(w.shape[2:])
        are_many = operations > MOST_OPERATIONS or taps > MOST_TAPS
        by_fft = are_many and explain(x, w, padding="same").algorithm == "fft"
        if operations > MOST_OPERATIONS and not by_fft:
            refuse(
                f"--filters {bank.name}: got kernels that take {operations:.2g} multiplications and additions on this "
                f"photograph, expected at most {MOST_OPERATIONS:.2g}: give smaller ones, or a smaller --size"
            )
        if taps > MOST_TAPS and (gradient or not by_fft):  # transforms of the gradients may take too much memory
            refuse(
                f"--filters {bank.name}: got kernels of {taps} cells, each of which takes a step on this photograph"
                f"{' for the gradient' if by_fft else ''}, expected at most {MOST_TAPS}: give smaller ones"
            )
        out, cache = conv_forward(x, w, padding="same")
        # The gradient of half a sum of squares with respect to the squared numbers is those numbers.
        dx = backend.to_numpy(conv_backward(out, cache).dx) if gradient else None
        maps = backend.to_numpy(out)
    except PortconvError as error:
        refuse(error)
    except MemoryError:
        refuse(f"{len(bank.weights)} maps of this size do not fit into memory: give fewer filters or a smaller --size")
    return Result(picture, bank, backend.name, device_name(backend.device_of(out)), maps, dx)


def _draw(result: Result, output: Path) -> tuple[int, int]:
    from .picture import draw

    return draw(result, _caption(result), output)


def _caption(result: Result) -> str:
    height, width = result.bank.weights.shape[2:]
    where = result.backend if result.backend == result.device else f"{result.backend} on {result.device}"
    return (
        f"portconv {__version__}, {where}.  Red is above zero, blue below; zeros around the photograph.  "
        f"{result.bank.name}: {_counted(len(result.maps), 'filter')} of {width} by {height}"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _report(result: Result, output: Path, pixels: tuple[int, int]) -> dict[str, Any]:
    picture, bank = result.picture, result.bank
    channels, height, width = picture.pixels.shape
    report: dict[str, Any] = {
        "output": str(output.absolute()),
        "output_pixels": list(pixels),
        "photograph": str(picture.path.absolute()),
        "photograph_pixels": list(picture.size),
        "pictures_in_file": picture.pictures,
        "convolved_pixels": [width, height],
        "channels": channels,
        "filters": bank.name,
        "kernel": list(bank.weights.shape[2:]),
        "maps": list(bank.titles),
        "backend": result.backend,
        "device": result.device,
    }
    if result.gradient is not None:
        report["energy"] = 0.5 * float(np.sum(np.square(result.maps, dtype=np.float64)))
    return report


def _in_words(report: dict[str, Any]) -> str:
    def sides(name: str) -> str:
        return " x ".join(str(side) for side in report[name])

    size = sides("photograph_pixels")
    if report["convolved_pixels"] != report["photograph_pixels"]:
        size += f", reduced to {sides('convolved_pixels')}"
    about = [size, "grey" if report["channels"] == 1 else "colour"]
    if report["pictures_in_file"] > 1:
        about.append(f"the first of the file's {report['pictures_in_file']} pictures")
    lines = {
        "Wrote": f"{report['output']} ({sides('output_pixels')} pixels)",
        "Photograph": f"{report['photograph']} ({', '.join(about)})",
        "Filters": f"{report['filters']}: {_counted(len(report['maps']), 'map')}, kernels of {sides('kernel')}",
        "Backend": f"{report['backend']} on {report['device']}",
    }
    if "energy" in report:
        lines["Gradient"] = f"of half the maps' sum of squares, {report['energy']:.6g}"
    return "\n".join(f"{name + ':':<11} {text}" for name, text in lines.items())
