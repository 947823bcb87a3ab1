"""``portconv verify``: every backend here on the same numbers, against the exact values and one another."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
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
from ..spec.arguments import PRECISIONS
from ..verification import Case, Report, Variant, cases, compare, unsupported
from ..verification.cases import ALL_DTYPES, DTYPES, in_dtypes
from ..verification.report import Row, both, figure, grouped, share
from . import chosen
from .group import UNCHECKED, AlgorithmName, check_destination, refuse

MOST_FAILURES = 20
"""How many failures are told one by one."""
PAGES = ("html", "htm")
OWN = ("backend", "threads", "BLAS", "load")
"""Surroundings that are each backend's own, or of timings alone."""
SETTINGS = ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "PORTCONV_NUM_THREADS")
"""Variables that may change the last bits of results, or in reproducible precision must not."""


class _Remembered(click.Command):
    """Remembers what it was called with."""

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
    help="On what (repeatable; all that work here if not given).",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME|all",
    help="On which devices of theirs (repeatable; each backend's default one if not given).",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="Repeatable; standard if not given. Reproducible results must have equal bits.",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(ALL_DTYPES),
    help=f"Repeatable; {' and '.join(DTYPES)} if not given.",
)
@click.option(
    "--algorithm",
    "algorithms",
    multiple=True,
    type=AlgorithmName(),
    help="Repeatable; each case's own if not given.",
)
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Compare results under so many threads (repeatable).",
)
@click.option("--layers", metavar="FILE", type=UNCHECKED, help="Layers of your own, in a TOML or JSON file.")
@click.option("--onnx", "model", metavar="FILE", type=UNCHECKED, help="The convolutions of an ONNX model.")
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Samples in each input of the model's.")
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
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else; null is no finite number.")
@click.option("--html", metavar="FILE", type=UNCHECKED, help="Also write a page to read and to send.")
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
    """Verify that backends agree with the exact values and one another, within what rounding can explain.

    Forward and backward; reproducible results must have equal bits besides, on all backends and devices, with any
    number of threads and in halves of the batch. The exit status is 0 only where all held.
    """
    if html is not None:
        check_destination("--html", html, PAGES)
    report = Report(by_algorithm=bool(algorithms), expected=expected)
    asked = [dtype for dtype in ALL_DTYPES if dtype in (dtypes or DTYPES)]
    given = chosen.chosen_layers(layers, model, batch, dims, report, asked)
    found = chosen.places(chosen.chosen_backends(names, report), devices, report)
    wanted = tuple(dict.fromkeys(precisions)) or ("standard",)
    ways = _ways(report, found, asked, wanted, threads)
    able = [dtype for dtype in asked if any(ways[dtype, precision] for precision in wanted)]
    made = cases(able) if given is None else in_dtypes(given, able)
    _fill(report, chosen.runs(made, algorithms, wanted, report), ways)
    settings = {"precision": ", ".join(wanted), "dtype": ", ".join(asked)}
    about = _about(ctx, report, found, settings)
    if html is not None:
        _write(report, about, html)
    if as_json:
        one = wanted[0] if len(wanted) == 1 else None
        told = {"precision": one, "precisions": wanted, "dtypes": asked, "about": about, **report.as_json()}
        click.echo(json.dumps(told, indent=2, allow_nan=False))
    else:
        _print(report, html)
    ctx.exit(0 if report.held else 1)


Ways = Mapping[tuple[str, str], Sequence[Variant]]
"""How cases of a dtype are run in a precision."""


def _ways(
    report: Report, found: Sequence[Variant], dtypes: Sequence[str], precisions: Sequence[str], threads: Sequence[int]
) -> Ways:
    made = {}
    for precision in precisions:
        for dtype in dtypes:
            able = []
            for place in found:
                reason = unsupported(place.backend, dtype, place.device, place.device_name, precision)
                if reason is None:
                    able.append(place)
                elif (place.label, reason) not in report.skipped:
                    report.skipped.append((place.label, reason))
            made[dtype, precision] = chosen.variants(able, threads, precision)
    report.variants = list({way.label: way for ways in made.values() for way in ways}.values())
    return made


def _fill(report: Report, runs: Sequence[tuple[Case, str]], ways: Ways) -> None:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for case, precision in progress.track(runs, description="verifying"):
            try:
                report.take(compare(case, ways[case.dtype, precision], precision))
            except MemoryError:
                refuse(f"layer {case.name!r}: its exact values do not fit into memory")
            except PortconvError as error:
                refuse(f"layer {case.name!r}: its exact values cannot be computed: {error}")


def _about(ctx: click.Context, report: Report, found: Sequence[Variant], settings: Mapping[str, str]) -> dict[str, str]:
    """What a reader must know of the run: the command, versions, the machine and its settings."""
    about = {"command": ctx.meta[__name__], **settings, "ways": ", ".join(way.label for way in report.variants)}
    for backend in {way.backend.name: way.backend for way in found}.values():
        about |= {key: value for key, value in surroundings(backend).items() if key not in OWN}
        about |= {f"{backend.name}'s {key}": value for key, value in backend.details().items()}
    about["system"] = platform.platform()
    return {**about, **{name: os.environ[name] for name in SETTINGS if name in os.environ}}


def _write(report: Report, about: Mapping[str, str], html: Path) -> None:
    from ..verification.page import page

    try:
        html.write_text(page(report, about), encoding="utf-8")
    except OSError as error:
        refuse(f"--html {html}: {error.strerror or error}")


def _print(report: Report, html: Path | None) -> None:
    console = Console(highlight=False)
    rows = report.against_truth()
    told = report.told(rows)
    for title, own in grouped("Largest errors against the exact values", told):
        console.print(_truth_table(title, own))
    if len(told) < len(rows):
        click.echo(f"and {len(rows) - len(told)} rows more of other ways, all ok: see --json and --html")
    for title, own in grouped("Largest differences between backends", report.pairs()):
        console.print(_pair_table(title, own))
    for kind, what in ((False, "largest error"), (True, "largest difference")):
        if kind in report.worst:
            console.print(Text(f"{what}: {report.worst[kind]}"))
    for name, reason in report.skipped:
        click.echo(f"skipped {name}: {' '.join(reason.split())}")
    for what, count in report.left_out.items():
        click.echo(f"left out: {count} {what}")
    for line in report.in_bits():
        click.echo(line)
    failures = report.failures
    for failure in failures[:MOST_FAILURES]:
        click.echo(f"FAILED {failure}")
    if len(failures) > MOST_FAILURES:
        click.echo(f"... and {len(failures) - MOST_FAILURES} more")
    for digest in report.unexpected:
        click.echo(f"FAILED {digest}: not as expected")
    if html is not None:
        click.echo(f"report in {html}")
    click.echo(report.summary())


def _truth_table(title: str, rows: Sequence[Row]) -> Table:
    table = plain_table(title, "backend", "dtype", "array")
    for heading in ("cases", "error/bound", "ulps"):
        table.add_column(heading, justify="right")
    table.add_column("worst case", overflow="fold")
    table.add_column("")
    for row in rows:
        figures = (str(row.count), figure(row.units, 3), figure(row.ulps, 1))
        # Text and not str: rich reads square brackets in a str as markup, and names may have them.
        texts = (row.backend, row.dtype, row.quantity or "", *figures, row.worst)
        table.add_row(*map(Text, texts), _verdict(row))
    return table


def _pair_table(title: str, rows: Sequence[Row]) -> Table:
    table = plain_table(title, "backends", "dtype")
    for heading in ("cases", "error/bound", "ulps", "equal bits"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in rows:
        figures = (str(row.count), figure(row.units, 3), figure(row.ulps, 1), share(row))
        table.add_row(*map(Text, (both(row), row.dtype, *figures)), _verdict(row))
    return table


def plain_table(title: str, *headings: str) -> Table:
    """A table of few lines, under a title, for as narrow a terminal as may be."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _verdict(row: Row) -> Text:
    return Text("FAILED", style="bold red") if row.failed else Text("ok", style="green")
