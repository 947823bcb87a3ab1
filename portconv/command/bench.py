"""``portconv bench``: time real layers beside the other libraries that are installed, and print ratios."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from .. import calibration
from ..backends import Backend, Costs
from ..benchmark import HELD_OUT, PEERS, ZOO, Layer, NotMeasured, Peer, Report, Row, measure, surroundings
from ..benchmark.costs import Timing, fit, regrets, timings
from ..benchmark.measurement import OURS
from ..benchmark.problem import PASSES
from ..benchmark.report import MIB, ratios
from ..benchmark.zoo import named
from .backends import device_name
from .group import UNCHECKED, AlgorithmName, backend_named, check_destination, echo, refuse
from .verify import plain_table

REPEATS = 5

LAYERS = {
    **{name: f"all, {name}" for name in PASSES},
    "dense": "dense, pointwise too",
    "large": "large kernels",
    "small": "small calls",
}
"""Some of the groups of layers in words."""
LEGEND = (
    "Below 1, portconv is faster. In brackets: the largest error over the largest value of its array, in epsilons of "
    "float32 (2**-23). MiB: memory beside the result.\n"
)
"""What some figures of the table are."""
WIDE = 110
"""The terminal's columns from which a table of all peers needs one line for each pass."""


@click.command("bench")
@click.option(
    "--backend",
    "backend_name",
    default="auto",
    show_default=True,
    metavar="NAME|auto",
    help="The array library that portconv runs on; auto is CuPy if a GPU works, else NumPy.",
)
@click.option(
    "--layer",
    "layer_names",
    multiple=True,
    metavar="NAME",
    help="Only this layer, or those with this in their name (repeatable).",
)
@click.option("--held-out", is_flag=True, help="The layers of other networks, on which nothing was tuned.")
@click.option("--peer", "peer_names", multiple=True, metavar="NAME", help="Only beside this peer (repeatable).")
@click.option("--pass", "passes", type=click.Choice(PASSES), multiple=True, help="Only this pass (repeatable).")
@click.option("--algorithm", type=AlgorithmName(), default="auto", show_default=True, help="portconv's algorithm.")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=REPEATS,
    show_default=True,
    help="The number of turns; the median counts.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone; null stands for a number that is not finite.")
@click.option("--plot", metavar="FILE", type=UNCHECKED, help="Also draw the speed-ups: a PNG, SVG or PDF file.")
@click.option("--calibrate", is_flag=True, help="Time only portconv's algorithms, and store the costs of calls.")
@click.option("--device", metavar="NAME", help="The device that --calibrate measures; the default one if not given.")
@click.option("--list", "listing", is_flag=True, help="List the layers and the peers, and time nothing.")
@click.pass_context
def command(
    ctx: click.Context,
    backend_name: str,
    layer_names: tuple[str, ...],
    held_out: bool,
    peer_names: tuple[str, ...],
    passes: tuple[str, ...],
    algorithm: str,
    repeats: int,
    as_json: bool,
    plot: Path | None,
    calibrate: bool,
    device: str | None,
    listing: bool,
) -> None:
    """Time layers of real networks beside other libraries.

    portconv and the other libraries (PyTorch, ONNX Runtime, JAX: those that are installed) take turns at the forward
    and the backward pass. Every figure is a ratio of median times. Every result is checked too: the exit status is 0
    only if all of them are as near to the exact values as rounding allows.
    """
    if plot is not None:
        from .chart import FORMATS

        check_destination("--plot", plot, FORMATS)
    layers = _layers(layer_names, HELD_OUT if held_out else ZOO)
    backend = backend_named(backend_name)
    if calibrate:
        _calibrate(layers, backend, device, as_json)
        return
    report = Report()
    peers = _peers(peer_names, backend, report)
    if listing:
        _list(layers, peers, report, as_json)
        return
    passes = tuple(name for name in PASSES if name in passes) or PASSES
    for measured in _measure_all(layers, lambda layer: measure(layer, backend, peers, algorithm, repeats, passes)):
        report.take(measured)
    about = surroundings(backend)
    if plot is not None and report.rows:
        _draw(report, about, plot)
    if as_json:
        settings = {"algorithm": algorithm, "repeats": repeats}
        echo(json.dumps({"surroundings": about, **settings, **report.as_json()}, indent=2, allow_nan=False))
    else:
        _print(report, about, plot)
    ctx.exit(0 if report.held else 1)


def _calibrate(layers: Sequence[Layer], backend: Backend, device: str | None, as_json: bool) -> None:
    """Measure what calls cost on this machine, store it, and say how much better the choices get."""
    devices = {device_name(each): each for each in backend.devices()}
    if device is not None and device not in devices:
        refuse(f"--device: got {device!r}, expected one of {', '.join(devices)}")
    place = devices[device or next(iter(devices))]
    kind = backend.device_kind(backend.asarray([0.0], dtype="float32", device=place))
    measured: list[Timing] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for layer in progress.track(layers, description="calibrating"):
            measured += timings(layer, backend, place)
    if not measured:
        refuse("--calibrate: got layers with nothing to time")
    costs = fit(measured)
    before, after = (_regret(measured, each) for each in (calibration.costs(backend, kind), costs))
    name = calibration.key(backend, kind)
    try:
        where = calibration.store({name: costs})
    except OSError as error:
        refuse(f"--calibrate: {calibration.path()} cannot be written: {error}")
    if as_json:
        stored = {"file": str(where), "backend": name, "costs": costs._asdict()}
        echo(json.dumps({**stored, "over_fastest": {"before": before, "after": after}}, indent=2))
        return
    echo(f"{name}: {', '.join(f'{name} {cost:g} ns' for name, cost in costs._asdict().items())}")
    echo(f"time of the chosen algorithms over that of the fastest: {before:.3f} before, {after:.3f} now")
    echo(f"stored in {where}")


def _regret(measured: Sequence[Timing], costs: Costs) -> float:
    """Return the time of the algorithms that "auto" would choose over that of the fastest ones: the geometric mean."""
    return statistics.geometric_mean(ratio for _, _, _, ratio in regrets(measured, costs))


def _layers(names: Sequence[str], zoo: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return the named layers in the order of the zoo; all layers if there is no name."""
    chosen: set[Layer] = set()
    for name in names:
        layers = named(name, zoo)
        if not layers:
            refuse(f"--layer: got {name!r}, expected one of these, or a part of one: {_listed(zoo)}")
        chosen.update(layers)
    return tuple(layer for layer in zoo if layer in chosen or not names)


def _peers(names: Sequence[str], backend: Backend, report: Report) -> list[Peer]:
    """Return the named peers, or the default ones that are installed; the report notes the missing ones."""
    known = {peer.name: peer for peer in PEERS}
    for name in names:
        if name not in known:
            refuse(f"--peer: got {name!r}, expected one of {_listed(PEERS)}")
        if reason := known[name].unavailable(backend):
            refuse(f"--peer {name}: {reason}")
    available = []
    for peer in PEERS:
        if peer.name in names if names else peer.default:
            if reason := peer.unavailable(backend):
                report.missing[peer.name] = reason
            else:
                available.append(peer)
    return available


def _listed(things: Sequence[Layer | Peer]) -> str:
    return ", ".join(thing.name for thing in things)


def _list(layers: Sequence[Layer], peers: Sequence[Peer], report: Report, as_json: bool) -> None:
    if as_json:
        known = [{"name": p.name, "title": p.title, "missing": report.missing.get(p.name)} for p in PEERS]
        listed = [{"name": layer.name, "kind": layer.kind} for layer in layers]
        echo(json.dumps({"layers": listed, "peers": known}, indent=2))
        return
    for layer in layers:
        echo(f"{layer.name:<32} {layer.kind}")
    echo()
    for peer in PEERS:
        note = report.missing.get(peer.name) or ("" if peer in peers else f"only with --peer {peer.name}")
        echo(f"{peer.name:<14} {peer.title}{f' ({note})' if note else ''}")


MeasureLayer = Callable[[Layer], Iterable[Row | NotMeasured]]


def _measure_all(layers: Sequence[Layer], measure_layer: MeasureLayer) -> Iterator[Row | NotMeasured]:
    """Measure each layer, and show the progress."""
    with _progress() as progress:
        task = progress.add_task("", total=len(layers))
        for layer in layers:
            progress.update(task, description=layer.name)
            yield from measure_layer(layer)
            progress.advance(task)


def _progress() -> Progress:
    terminal = sys.stderr.isatty()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        # The console must be quiet too: rich ends even a disabled bar with an empty line.
        console=Console(stderr=True, quiet=not terminal),
        transient=True,
        disable=not terminal,
    )


def _draw(report: Report, about: dict[str, str], plot: Path) -> None:
    from .chart import draw

    draw(report, _words(about), plot)


def _print(report: Report, about: dict[str, str], plot: Path | None) -> None:
    console = Console(highlight=False)
    if report.rows:
        console.print(_table(report, console.width))
        console.print(LEGEND)
    for name, reason in report.missing.items():
        echo(f"without {name}: {reason}")
    for entry in report.not_measured:
        echo(f"{'FAILED' if entry.fault else 'skipped'} {entry}")
    for row, who in report.out_of_bounds:
        echo(f"FAILED {who} on {row.layer.name}, {row.name}: {row.errors[who].units:.3g} times the bound")
    if (speedups := _speedups(report)) is not None:
        console.print(speedups)
    for line in (*_conclusions(report), _words(about)):
        console.print(Text(line))
    if plot is not None and report.rows:
        echo(f"drawn into {plot}")
    echo(report.verdict())


def _table(report: Report, width: int) -> Table:
    """Make a table with a row for each pass; in a narrow terminal errors are below the ratios, else beside them."""
    table = plain_table("portconv's time over the other's", "layer")
    table.add_column("pass")
    for heading in ("own", *report.peers, "MiB"):
        table.add_column(heading.replace("-", "\n"), justify="right", overflow="fold")
    between = " " if width >= WIDE else "\n"
    shown = ""
    for row in report.rows:
        by_peer = ratios(row)
        cells = (_cell(row, who, f"{by_peer[who]:.2f}{between}" if who in by_peer else "") for who in report.peers)
        size = row.memory.get(OURS)
        memory = "" if size is None else f"{size / MIB:.1f}"
        first, shown = "" if row.layer.name == shown else row.layer.name, row.layer.name
        table.add_row(first, row.name, _cell(row, OURS, ""), *cells, memory)
    return table


def _cell(row: Row, who: str, ratio: str) -> Text:
    """Write a ratio and the error, which is red if it is out of bounds."""
    errors = row.errors.get(who)
    if errors is None:
        return Text(ratio.rstrip())
    error = f"({errors.epsilons:.1f})" if errors.epsilons < 1000 else f"({errors.epsilons:.0e})"
    return Text.assemble(ratio, (error, "" if errors.held else "bold red"))


def _speedups(report: Report) -> Table | None:
    """Make a table of the geometric means of speed-ups; None if there is no other library to compare with."""
    summary = report.summary()
    over = {"over_torch": "over PyTorch", "over_best": "over the best peer"}
    shown = [key for key in over if summary["speedup"]["all"][key] is not None]
    if not shown:
        return None
    table = plain_table("Speed-ups, geometric means", "layers")
    for key in shown:
        table.add_column(over[key], justify="right")
    for name, means in {**summary["speedup"], **summary["speedup_by_kind"]}.items():
        table.add_row(LAYERS.get(name, name), *(_figure(means[key]) for key in shown))
    return table


def _conclusions(report: Report) -> list[str]:
    """Sum up the other figures, in one line each."""
    summary = report.summary()
    lines = []
    if worst := summary["worst_dense"]:
        where = f"{worst['layer']}, {worst['pass']}"
        lines.append(f"worst dense layer: {where}: {worst['ratio']:.2f} times the time of {worst['peer']}")
    if cost := summary["reproducible_over_standard"]:
        passes = ", ".join(f"{name} {cost[name]:.1f}" for name in PASSES if name in cost)
        worst = cost["worst"]
        lines.append(
            f"reproducible over standard on dense layers, geometric mean: {passes} times the time "
            f"(worst: {worst['ratio']:.1f}, {worst['layer']}, {worst['pass']})"
        )
    lines += [
        f"kernel 31 over kernel 15: {pair['ratio']:.2f} times the time ({pair['long']}, {pair['pass']})"
        for pair in summary["kernel_31_over_15"]
    ]
    return lines


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _words(about: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in about.items())
