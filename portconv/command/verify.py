"""``portconv verify``: compare all backends here with the exact values and one another, on the same numbers."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ..benchmark.report import surroundings
from ..errors import PortconvError
from ..spec.options import PRECISIONS
from ..verification import Report, Trial, Variant, cases, unsupported
from ..verification.cases import ALL_DTYPES, DTYPES, in_dtypes
from ..verification.report import LEGEND, SUBJECT, Row, both, counted, figure, grouped, share
from ..verification.smallest import of_failures
from . import chosen
from .group import UNCHECKED, AlgorithmName, check_destination, echo, refuse, write

MOST_FAILURES = 20
"""How many failures are printed."""
MOST_SMALLEST = 3
"""So many failures are made smaller, which takes up to some hundred runs each."""
PAGES = ("html", "htm")
NOT_SHARED = ("backend", "threads", "BLAS", "load")
"""Surroundings that differ between backends, or that matter only for timings."""
SETTINGS = ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "PORTCONV_NUM_THREADS")
"""Environment variables that may change the last bits of results, except in reproducible precision."""


class _Remembered(click.Command):
    """A command that remembers its arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[__name__] = shlex.join(["portconv", "verify", *args])
        return super().parse_args(ctx, args)


def _digests(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    for value in values:
        if not re.fullmatch("[0-9a-fA-F]{64}", value):
            refuse(f"--expect-digest: got {value!r}, expected 64 hexadecimal digits")
    return tuple(value.lower() for value in values)


@click.command("verify", cls=_Remembered)
@click.option(
    "--backend",
    "names",
    multiple=True,
    metavar="NAME|auto",
    help="An array library (repeatable; all that work here if not given).",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME|all",
    help="A device (repeatable; each backend's default one if not given).",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="The precision (repeatable; standard if not given).",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(ALL_DTYPES),
    help=f"The dtype (repeatable; {' and '.join(DTYPES)} if not given).",
)
@click.option(
    "--algorithm",
    "algorithms",
    multiple=True,
    type=AlgorithmName(),
    help="The algorithm (repeatable; each case's own if not given).",
)
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Run with so many threads (repeatable).",
)
@click.option("--layers", metavar="FILE", type=UNCHECKED, help="Run the layers of a TOML or JSON file.")
@click.option("--onnx", "model", metavar="FILE", type=UNCHECKED, help="Run the convolutions of an ONNX model.")
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="The samples in each input of the model.")
@click.option(
    "--dim", "dims", multiple=True, metavar="NAME=SIZE", help="A size that the model leaves open (repeatable)."
)
@click.option(
    "--expect-digest",
    "expected",
    multiple=True,
    metavar="SHA256",
    callback=_digests,
    help="Fail unless each digest is this one, or one of these (repeatable).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone; null stands for a number that is not finite.")
@click.option("--html", metavar="FILE", type=UNCHECKED, help="Also write the report as a page.")
@click.pass_context
def command(
    ctx: click.Context,
    names: tuple[str, ...],
    devices: tuple[str, ...],
    precisions: tuple[str, ...],
    dtypes: tuple[str, ...],
    algorithms: tuple[str, ...],
    threads: tuple[int, ...],
    layers: Path | None,
    model: Path | None,
    batch: int | None,
    dims: tuple[str, ...],
    expected: tuple[str, ...],
    as_json: bool,
    html: Path | None,
) -> None:
    """Check portconv's results on each array library here.

    portconv runs forward and backward on the arrays of each library. Each result is compared with exact values and with
    the results on the other libraries, and may differ by what rounding can explain. With --algorithm native the
    convolution that each library has of its own computes them. A failure is shown by the smallest call that shows it.

    Reproducible results must also have equal bits on all backends and devices, with any number of threads and in halves
    of the batch. The exit status is 0 only if all comparisons hold.
    """
    if html is not None:
        check_destination("--html", html, PAGES)
    report = Report(by_algorithm=bool(algorithms), expected=expected)
    wanted_dtypes = [dtype for dtype in ALL_DTYPES if dtype in (dtypes or DTYPES)]
    layer_cases = chosen.chosen_layers(chosen.Files(layers, model, batch, dims), report, wanted_dtypes)
    places = chosen.places(chosen.chosen_backends(names, report), devices, report)
    wanted = tuple(dict.fromkeys(precisions)) or ("standard",)
    ways = _ways(report, places, wanted_dtypes, wanted, threads)
    supported = [dtype for dtype in wanted_dtypes if any(ways[dtype, precision] for precision in wanted)]
    to_run = cases(supported) if layer_cases is None else in_dtypes(layer_cases, supported)
    runs = chosen.runs(to_run, algorithms, ways, report)
    if not as_json:
        Console(highlight=False).print(SUBJECT)
    _fill(report, runs)
    report.smallest = of_failures(report.failures, [run.case for run in runs], report.variants, MOST_SMALLEST)
    settings = {"precision": ", ".join(wanted), "dtype": ", ".join(wanted_dtypes)}
    about = _about(ctx, report, places, settings)
    if html is not None:
        _write(report, about, html)
    if as_json:
        precision = wanted[0] if len(wanted) == 1 else None
        asked = {"precision": precision, "precisions": wanted, "dtypes": wanted_dtypes}
        echo(json.dumps({**asked, "about": about, **report.as_json()}, indent=2, allow_nan=False))
    else:
        _print(report, html)
    ctx.exit(0 if report.held else 1)


def _ways(
    report: Report, places: Sequence[Variant], dtypes: Sequence[str], precisions: Sequence[str], threads: Sequence[int]
) -> chosen.Ways:
    ways = {}
    for precision in precisions:
        for dtype in dtypes:
            supporting = []
            for place in places:
                reason = unsupported(place.backend, dtype, place.device, place.device_name, precision)
                if reason is None:
                    supporting.append(place)
                elif (place.label, reason) not in report.skipped:
                    report.skipped.append((place.label, reason))
            ways[dtype, precision] = chosen.variants(supporting, threads, precision)
    report.variants = list({variant.label: variant for variants in ways.values() for variant in variants}.values())
    return ways


def _fill(report: Report, runs: Sequence[chosen.Run]) -> None:
    """Run the cases on one backend after the other, and say on the standard error when each backend is done.

    As many cases at a time as `chosen.batches` says. All variants of a backend run a case in a row, because libraries
    that compile forget what they compiled long ago.
    """
    console = Console(stderr=True)
    counts = Counter(name for run in runs for name in _backends(run.variants))
    left, seconds = counts.copy(), dict.fromkeys(counts, 0.0)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("exact values", total=len(runs) + counts.total())
        for batch in chosen.batches(runs):
            trials = []
            for run in batch:
                trials.append(_trial(run))
                progress.advance(task)
            for name in counts:
                progress.update(task, description=name)
                start = time.monotonic()
                for trial in (trial for trial in trials if name in _backends(trial.variants)):
                    for variant in trial.variants:
                        if variant.backend.name == name:
                            report.take(trial.run(variant))
                    left[name] -= 1
                    progress.advance(task)
                seconds[name] += time.monotonic() - start
                if not left[name]:
                    done = f"{name}: {counted(counts[name], 'case')} in {seconds[name]:.1f} s"
                    progress.console.print(Text(done), soft_wrap=True)


def _backends(variants: Sequence[Variant]) -> list[str]:
    return list(dict.fromkeys(variant.backend.name for variant in variants))


def _trial(run: chosen.Run) -> Trial:
    try:
        return Trial(run.case, run.variants, run.precision)
    except MemoryError:
        refuse(f"layer {run.case.name!r}: its exact values do not fit into memory")
    except PortconvError as error:
        refuse(f"layer {run.case.name!r}: its exact values cannot be computed: {error}")


def _about(
    ctx: click.Context, report: Report, places: Sequence[Variant], settings: Mapping[str, str]
) -> dict[str, str]:
    """Say what a reader must know about the run: the command, versions, the machine and its settings."""
    about = {"command": ctx.meta[__name__], **settings, "runs": ", ".join(variant.label for variant in report.variants)}
    for backend in {place.backend.name: place.backend for place in places}.values():
        about |= {key: value for key, value in surroundings(backend).items() if key not in NOT_SHARED}
        about |= {f"{backend.name}'s {key}": value for key, value in backend.details().items()}
    about["system"] = platform.platform()
    return {**about, **{name: os.environ[name] for name in SETTINGS if name in os.environ}}


def _write(report: Report, about: Mapping[str, str], html: Path) -> None:
    from ..verification.page import page

    write("--html", html, page(report, about).encode())


def _print(report: Report, html: Path | None) -> None:
    console = Console(highlight=False)
    rows = report.against_truth()
    main_rows = report.main_rows(rows)
    for title, members in grouped("Largest errors against the exact values", main_rows):
        console.print(_truth_table(title, members))
    if len(main_rows) < len(rows):
        echo(f"and {len(rows) - len(main_rows)} rows more of other runs, all ok: see --json and --html")
    for title, members in grouped("Largest differences from one another", report.pairs()):
        console.print(_pair_table(title, members))
    for line in LEGEND if main_rows else ():
        console.print(line)
    for kind, what in ((False, "largest error/bound"), (True, "largest difference/bound")):
        if kind in report.worst:
            console.print(Text(f"{what}: {report.worst[kind]}"))
    for name, reason in report.skipped:
        echo(f"skipped {name}: {' '.join(reason.split())}")
    for what, count in report.left_out.items():
        echo(f"left out: {what}: {count}")
    for line in report.in_bits():
        echo(line)
    failures = [*report.problems, *report.failures]
    for failure in failures[:MOST_FAILURES]:
        echo(f"FAILED {failure}")
    if len(failures) > MOST_FAILURES:
        echo(f"... and {len(failures) - MOST_FAILURES} more")
    for smallest in report.smallest:
        echo(smallest)
    for digest in report.unexpected:
        echo(f"FAILED {digest}: not as expected")
    if html is not None:
        echo(f"report in {html}")
    echo(report.summary())


def _truth_table(title: str, rows: Sequence[Row]) -> Table:
    table = plain_table(title, "backend", "dtype", "array")
    for heading in ("cases", "epsilons", "error/bound"):
        table.add_column(heading, justify="right")
    table.add_column("worst case", overflow="fold")
    table.add_column("")
    for row in rows:
        figures = (str(row.count), figure(row.epsilons, 1), figure(row.units, 3))
        # Text and not str: rich reads square brackets in a str as markup, and names may have them.
        texts = (row.backend, row.dtype, row.quantity or "", *figures, row.worst or "")
        table.add_row(*map(Text, texts), _verdict(row))
    return table


def _pair_table(title: str, rows: Sequence[Row]) -> Table:
    table = plain_table(title, "backends", "dtype")
    for heading in ("arrays", "epsilons", "error/bound", "equal bits"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in rows:
        figures = (str(row.count), figure(row.epsilons, 1), figure(row.units, 3), share(row.equal))
        table.add_row(*map(Text, (both(row), row.dtype, *figures)), _verdict(row))
    return table


def plain_table(title: str, *headings: str) -> Table:
    """Make a table with few lines and a title, for narrow terminals too."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _verdict(row: Row) -> Text:
    return Text("FAILED", style="bold red") if row.failed or row.lost else Text("ok", style="green")
