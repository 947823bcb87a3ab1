"""Write a report as one page of HTML that loads nothing else: no script, no font, no picture.

The page is built as a tree, so that names from files are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from .cases import QUANTITIES
from .comparison import Comparison
from .drawing import heat_map, histogram, sizes
from .report import LEGEND, SUBJECT, Report, Row, both, counted, figure, grouped, share

Element = ElementTree.Element

MORE_LEGEND = (
    "equal to exact: the share of the elements that are equal to the exact value, rounded to the dtype. The exact "
    "values are computed in float64 or complex128. In these dtypes they are rounded too, which the bound allows for.",
    "Arrays: a convolution's output (out), and its gradients for the input (dx), the filters (dw) and the bias (db).",
    "In sentences, ulps are units in the last place of the exact value of the element that the sentence names.",
)
"""What the figures of a page are that the command does not print."""
MOST_FAILURES = 200
"""How many failures a page lists."""

FIGURES = {"epsilons": "number", "error/bound": "number"}
"""The columns that tables have in common."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --quiet: #57606a; --paper: #fff; --card: #f5f7f9; --line: #d5dbe1;
  --bar: #1f6fb2; --bad: #b42318; --good: #1a7f4b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --quiet: #a3adb8; --paper: #14181d; --card: #1d232a;
  --line: #38424d; --bar: #5aa9e6; --bad: #ff7b6b; --good: #56c98a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; } h2 { font-size: 1.25rem; margin: 2rem 0 0.5rem; }
h3 { font-size: 1rem; margin: 0 0 0.25rem; }
p, ul { margin: 0.5rem 0; max-width: 46rem; } li { margin: 0.25rem 0; }
p, li, dd, h3, td.name { overflow-wrap: anywhere; }
.verdict { font-size: 1.15rem; font-weight: 600; padding: 0.6rem 0.9rem; border-left: 0.4rem solid var(--good);
  background: var(--card); max-width: none; }
.verdict.bad { border-color: var(--bad); }
.bad { color: var(--bad); } .good { color: var(--good); } .verdict.bad { color: inherit; }
.quiet { color: var(--quiet); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 0.4rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.6rem; text-align: left; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--line); }
tr:last-child > td { border-bottom: 0; }
td.name { white-space: normal; min-width: 20rem; }
th { background: var(--card); font-weight: 600; }
th.number, td.number { text-align: right; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 0.4rem; padding: 0.75rem; margin: 0;
  min-width: 0; }
.card p { margin: 0.25rem 0; }
svg { display: block; width: 100%; height: auto; margin: 0.5rem 0; }
svg text { font: 16px system-ui, sans-serif; fill: var(--quiet); }
svg.map { border: 1px solid var(--line); background: var(--paper); }
.bar { fill: var(--bar); } .beyond { fill: var(--bad); } .axis { stroke: var(--line); fill: none; }
.mark { fill: none; stroke: var(--ink); stroke-width: 2; vector-effect: non-scaling-stroke; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: 0.25rem 1rem; margin: 0.5rem 0; }
dt { color: var(--quiet); } dd { margin: 0; min-width: 0; }
code { font: 1em ui-monospace, monospace; overflow-wrap: anywhere; }
summary { cursor: pointer; padding: 0.25rem 0; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 0.5rem; } }
@media print { .scroll { overflow: visible; } }
"""


def page(report: Report, about: Mapping[str, str]) -> str:
    """Write a report as a page.

    Parameters
    ----------
    report : Report
    about : mapping of str to str
        What a reader must know about the run: the command, versions, the machine.

    Returns
    -------
    str
    """
    html = Element("html", {"lang": "en"})
    head = _in(html, "head")
    _in(head, "meta", charset="utf-8")
    _in(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    _in(head, "title", f"portconv verify: {report.summary()}")
    _in(head, "style", STYLE)
    main = _in(_in(html, "body"), "main")
    _in(main, "h1", "portconv verify")
    _in(main, "p", SUBJECT)
    _in(main, "p", report.summary(), kind="verdict" if report.held else "verdict bad")
    listed = _in(main, "ul")
    for line in (*LEGEND, *MORE_LEGEND):
        _in(listed, "li", line)
    for section in (_bits, _failures, _worst, _truth, _pairs, _histograms, _left_out):
        section(main, report)
    _in(main, "h2", "How this was made")
    _listed(main, about)
    return f"<!doctype html>\n{ElementTree.tostring(html, encoding='unicode', method='html')}\n"


def _in(parent: Element, tag: str, text: str | None = None, kind: str | None = None, **attributes: str) -> Element:
    element = ElementTree.SubElement(parent, tag, {**attributes, **({"class": kind} if kind else {})})
    element.text = text
    return element


def _listed(parent: Element, about: Mapping[str, str]) -> None:
    listed = _in(parent, "dl")
    for key, value in about.items():
        _in(listed, "dt", key)
        _in(_in(listed, "dd"), "code", value)


def _table(parent: Element, headings: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> None:
    """Add a table that scrolls; `headings` maps each heading to its column's class, and a cell may be (text, class)."""
    # With a tab index, a reader without a pointer can scroll it by keys.
    around = _in(parent, "div", kind="scroll", tabindex="0", role="group", **{"aria-label": "table"})
    table = _in(around, "table")
    line = _in(_in(table, "thead"), "tr")
    for heading, kind in headings.items():
        _in(line, "th", heading, kind=kind or None, scope="col")
    body = _in(table, "tbody")
    for row in rows:
        line = _in(body, "tr")
        for cell, kind in zip(row, headings.values(), strict=True):
            text, cell_kind = cell if isinstance(cell, tuple) else (cell, kind)
            _in(line, "td", text, kind=cell_kind or None)


def _bits(main: Element, report: Report) -> None:
    lines = report.in_bits()
    if not lines and not report.unexpected:
        return
    _in(main, "h2", "Equal bits")
    listed = _in(main, "ul")
    for line in lines:
        _in(_in(listed, "li"), "code", line) if line.startswith("digest") else _in(listed, "li", line)
    for digest in report.unexpected:
        _in(listed, "li", f"{digest}: not as expected", kind="bad")


def _failures(main: Element, report: Report) -> None:
    failures = [*report.problems, *report.failures]
    if not failures:
        return
    _in(main, "h2", "What failed")
    listed = _in(main, "ul")
    for failure in failures[:MOST_FAILURES]:
        _in(listed, "li", str(failure), kind="bad")
    if len(failures) > MOST_FAILURES:
        _in(main, "p", f"and {len(failures) - MOST_FAILURES} more")
    for smallest in report.smallest:
        _in(main, "pre", smallest)


def _worst(main: Element, report: Report) -> None:
    if not report.worst:
        return
    _in(main, "h2", "The worst case")
    _in(
        main,
        "p",
        "Errors over the plane of the array that has the worst element in it. The stronger the colour, the nearer to "
        "the largest error within the bound; red is beyond it. A frame marks the worst element.",
    )
    cards = _in(main, "div", kind="cards")
    for kind, title in ((False, "Largest error/bound against the exact values"), (True, "Largest difference/bound")):
        if kind in report.worst:
            _map(_in(cards, "figure", kind="card"), title, report.worst[kind])


def _map(card: Element, title: str, comparison: Comparison) -> None:
    _in(card, "h3", title)
    _in(card, "p", str(comparison))
    if (plane := comparison.plane) is None:
        return
    card.append(heat_map(plane))
    rows, columns = plane.size
    down = f"{plane.rows}s down ({rows}) and " if plane.rows else ""
    text = f"{comparison.quantity}{plane.index}: {down}{plane.columns}s across ({columns})"
    if plane.values.shape != plane.size:
        text = f"{text}, each cell the largest error of a block"
    _in(card, "figcaption", text, kind="quiet")


def _figures(row: Row) -> list[str]:
    return [str(row.count), figure(row.epsilons, 1), figure(row.units, 3)]


def _place(row: Row) -> str:
    """Name the worst case and the index of its worst element; in pairs of runs, the array too."""
    if row.worst is None:
        return ""
    at = f" {list(row.where)}" if row.where else ""
    return f"{row.worst}, {row.worst_quantity}{at}" if row.other else f"{row.worst}{at}"


def _verdict(row: Row) -> tuple[str, str]:
    faults = [f"{row.failed} FAILED"] if row.failed else []
    faults += [f"{row.lost} without a result"] if row.lost else []
    return (", ".join(faults), "bad") if faults else ("ok", "good")


def _truth(main: Element, report: Report) -> None:
    rows = report.against_truth()
    main_rows = report.main_rows(rows)
    for title, members in grouped("Against the exact values", main_rows):
        _in(main, "h2", title)
        _truth_table(main, members)
    if others := [row for row in rows if row not in main_rows]:
        folded = _in(main, "details")
        _in(folded, "summary", f"{counted(len(others), 'row')} of other runs, all ok")
        for title, members in grouped("Other runs", others):
            _in(folded, "h3", title)
            _truth_table(folded, members)


def _truth_table(parent: Element, rows: Sequence[Row]) -> None:
    headings = {"": "", "backend": "", "dtype": "", "array": "", "cases": "number", **FIGURES}
    headings |= {"worst case": "name", "equal to exact": "number"}
    cells = [
        [_verdict(row), row.backend, row.dtype, row.quantity, *_figures(row), _place(row), share(row.equal)]
        for row in rows
    ]
    _table(parent, headings, cells)


def _pairs(main: Element, report: Report) -> None:
    headings = {
        "": "",
        "backends": "",
        "dtype": "",
        "arrays": "number",
        **FIGURES,
        "worst case": "name",
        "equal bits": "number",
    }
    headings |= {f"in {name}": "number" for name in QUANTITIES}
    for title, rows in grouped("Against one another", report.pairs()):
        _in(main, "h2", title)
        cells = []
        for row in rows:
            equal = [share(row.equal_in.get(name, math.nan)) for name in QUANTITIES]
            cells.append([_verdict(row), both(row), row.dtype, *_figures(row), _place(row), share(row.equal), *equal])
        _table(main, headings, cells)


def _histograms(main: Element, report: Report) -> None:
    """Draw a histogram for each dtype and precision; variants whose histograms are equal share one."""
    kinds: dict[tuple[str, str, str | None], dict[str, list[tuple[int, ...]]]] = {}
    for row in report.against_truth():
        if row.counts:
            kind = (row.dtype, row.precision, row.algorithm)
            kinds.setdefault(kind, {}).setdefault(row.backend, []).append(row.counts)
    if not kinds:
        return
    _in(main, "h2", "How large the errors are")
    _in(
        main,
        "p",
        "The first bar (=) counts the elements that are equal to the exact value, rounded to the dtype. The others "
        "count elements by error/bound, where 1 is the most that rounding can explain. Bars are as high as the "
        "logarithm of the number.",
    )
    cards = _in(main, "div", kind="cards")
    for (dtype, precision, algorithm), by_name in kinds.items():
        labels_by_counts: dict[tuple[int, ...], list[str]] = {}
        for name, counts in by_name.items():
            labels_by_counts.setdefault(tuple(map(sum, zip(*counts, strict=True))), []).append(name)
        for total, labels in labels_by_counts.items():
            title = f"{', '.join(labels)}: {precision} {dtype}{f' by {algorithm}' if algorithm else ''}"
            _histogram(_in(cards, "figure", kind="card"), title, total)


def _histogram(card: Element, title: str, counts: Sequence[int]) -> None:
    _in(card, "h3", title)
    card.append(histogram(counts))
    caption = _in(card, "figcaption")
    equal = share(counts[0] / sum(counts) if sum(counts) else math.nan)
    _in(caption, "p", f"{sum(counts):,} elements, equal to exact: {equal}")
    numbers = _in(caption, "details")
    _in(numbers, "summary", "in numbers")
    rows = [(what, (f"{count:,}", "number")) for what, count in zip(sizes(), counts, strict=True) if count]
    _table(numbers, {"error/bound": "", "elements": "number"}, rows)


def _left_out(main: Element, report: Report) -> None:
    if not report.skipped and not report.left_out:
        return
    _in(main, "h2", "What was left out")
    listed = _in(main, "ul")
    for name, reason in report.skipped:
        _in(listed, "li", f"{name}: {' '.join(reason.split())}")
    for what, count in report.left_out.items():
        _in(listed, "li", f"{what}: {count}")
