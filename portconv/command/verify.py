"""``portconv verify``: every backend here on the same numbers, against the exact values and one another."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence

import click
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from .. import backends
from ..arguments import PRECISIONS
from ..backends import Backend
from ..verification import Report, cases, compare, unsupported
from ..verification.cases import DTYPES
from ..verification.report import Row
from .group import backend_named

MOST_FAILURES = 20
"""How many failures are told one by one."""


@click.command("verify")
@click.option(
    "--backend",
    "names",
    multiple=True,
    metavar="NAME|auto",
    help="On what (repeatable; all that work here if not given).",
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="standard", show_default=True)
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(DTYPES), help="Repeatable; both if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else; null is no finite number.")
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], precision: str, dtypes: tuple[str, ...], as_json: bool) -> None:
    """Verify that backends agree with the exact values and one another, within what rounding can explain."""
    report = Report()
    chosen = _chosen(names, report)
    _fill(report, chosen, [dtype for dtype in DTYPES if not dtypes or dtype in dtypes], precision)
    if as_json:
        click.echo(json.dumps({"precision": precision, **report.as_json()}, indent=2, allow_nan=False))
    else:
        _print(report)
    ctx.exit(0 if report.held else 1)


def _chosen(names: Sequence[str], report: Report) -> list[Backend]:
    """The backends asked for, or all that work here; what does not is noted as skipped."""
    if names:
        return list({backend.name: backend for backend in map(backend_named, names)}.values())
    found = []
    for name in backends.names():
        # One library that cannot even be imported must not keep the others from being verified.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                backend = backends.find(name)
                reason = backend.unavailable
            except Exception as error:
                reason = str(caught[0].message) if caught else f"{type(error).__name__}: {error}"
        if reason is None:
            found.append(backend)
        else:
            report.skipped.append((name, reason))
    return found


def _fill(report: Report, chosen: Sequence[Backend], dtypes: Sequence[str], precision: str) -> None:
    able: dict[str, list[Backend]] = {}
    for dtype in dtypes:
        reasons = [(backend, unsupported(backend, dtype)) for backend in chosen]
        able[dtype] = [backend for backend, reason in reasons if reason is None]
        report.skipped += [(backend.name, reason) for backend, reason in reasons if reason is not None]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for case in progress.track(cases(dtypes), description="verifying"):
            report.comparisons += compare(case, able[case.dtype], precision)


def _print(report: Report) -> None:
    console = Console(highlight=False)
    if report.comparisons:
        console.print(_truth_table(report.against_truth()))
    if pairs := report.pairs():
        console.print(_pair_table(pairs))
    for name, reason in report.skipped:
        click.echo(f"skipped {name}: {' '.join(reason.split())}")
    failures = report.failures
    for failure in failures[:MOST_FAILURES]:
        click.echo(f"FAILED {failure}")
    if len(failures) > MOST_FAILURES:
        click.echo(f"... and {len(failures) - MOST_FAILURES} more")
    click.echo(report.summary())


def _truth_table(rows: Sequence[Row]) -> Table:
    table = plain_table("Largest errors against the exact values", "backend", "dtype", "array")
    for heading in ("cases", "error/bound", "ulps"):
        table.add_column(heading, justify="right")
    table.add_column("worst case", overflow="fold")
    table.add_column("")
    for row in rows:
        figures = (str(row.count), _figure(row.units, 3), _figure(row.ulps, 1))
        table.add_row(row.backend, row.dtype, row.quantity, *figures, row.worst, _verdict(row))
    return table


def _pair_table(rows: Sequence[Row]) -> Table:
    table = plain_table("Largest differences between backends", "backends", "dtype")
    for heading in ("cases", "error/bound", "ulps", "equal bits"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in rows:
        equal = "" if math.isnan(row.equal) else f"{row.equal:.1%}"
        figures = (str(row.count), _figure(row.units, 3), _figure(row.ulps, 1), equal)
        table.add_row(f"{row.backend}, {row.other}", row.dtype, *figures, _verdict(row))
    return table


def plain_table(title: str, *headings: str) -> Table:
    """A table of few lines, under a title, for as narrow a terminal as may be."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _figure(number: float, places: int) -> str:
    if number == 0 or 10.0**-places <= number < 1000:
        return f"{number:.{places}f}"
    return f"{number:.0e}".replace("e+0", "e+").replace("e-0", "e-")


def _verdict(row: Row) -> Text:
    return Text("FAILED", style="bold red") if row.failed else Text("ok", style="green")
