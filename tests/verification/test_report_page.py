"""Test the page of `portconv verify --html`: it loads nothing, has the report's figures, and fits a browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portconv import backends
from portconv.verification import Case, Comparison, Report, Variant, cases, compare, figures
from portconv.verification.drawing import heat_map, histogram, sizes
from portconv.verification.page import page

NUMPY = backends.get("numpy")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>alert('&')</script>" + "very" * 30
ABOUT = {"command": "portconv verify --layers '<b>.toml'", "numpy": np.__version__}
VOID = {"meta", "br"}
SHOWN = """<script>
const wide = (e) => e.closest("svg") ? e.ownerSVGElement.getScreenCTM().a : 1;
const texts = [...document.body.querySelectorAll("*")].filter(e => e.tagName !== "SCRIPT" &&
  [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && !e.closest("title") && e.getClientRects().length);
parent.document.documentElement.setAttribute("data-shown", JSON.stringify({
  inner: innerWidth, page: document.documentElement.scrollWidth,
  letters: Math.min(...texts.map(e => wide(e) * parseFloat(getComputedStyle(e).fontSize))),
  scrolling: [...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth).length,
  back: getComputedStyle(document.body).backgroundColor,
  maps: [...document.querySelectorAll("svg")].map(e => [e.clientWidth, e.clientHeight])}));
</script>"""


@cache
def report() -> Report:
    """Return a report of two precisions in several ways, with a wrong and a lost result, and names to escape."""
    full = Report(skipped=[("cupy", "CUDA <finds> no\ndevice")], left_out={"cases that <fft> cannot serve": 2})
    full.variants = [Variant(NUMPY), Variant(NUMPY, threads=1)]
    named = Case(EVIL, (2, 3, 70, 51), (4, 3, 3, 3), bias=True, padding=1)
    for case in (named, *(case for case in cases(["float64"]) if case.name in ("1d", "2d-1x1-groups"))):
        for precision in ("standard", "fast"):
            full.take(compare(case, full.variants, precision))
    first = next(one for one in full.comparisons if one.case == EVIL)
    full.comparisons[0] = replace(first, units=3.5, where=(1, 2, 3, 4), got=0.25, expected=0.5)
    full.take([Comparison("numpy", None, "2d", "float32", "out", np.inf, np.inf, 0, 0, "raised <Error>: &lost")])
    return full


class Reader(HTMLParser):
    """A parser that checks that tags match, and keeps the tags, cells and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data
        if self.open and self.open[-1] != "style":
            self.text += data


def test_the_page_needs_nothing_else() -> None:
    text = page(report(), ABOUT)
    read = Reader(text)
    assert text.startswith("<!doctype html>\n<html lang=")
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert not {"src", "href", "onload", "onclick"} & {key for _, attributes in read.tags for key in attributes}
    assert not re.search(r"url\(|@import|https?:", text)
    metas = [attributes for tag, attributes in read.tags if tag == "meta"]
    assert {"charset": "utf-8"} in metas
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert [tag for tag, _ in read.tags].count("title") > 1  # of bars, and of the page


def test_the_page_tells_what_the_report_does() -> None:
    full = report()
    read = Reader(page(full, ABOUT))
    assert full.summary().endswith("1 out of bounds, 1 case without a result")
    assert read.text.count(full.summary()) == 2  # the title and the verdict
    for words in (EVIL, "raised <Error>: &lost", "CUDA <finds> no device", "cases that <fft> cannot serve: 2"):
        assert words in read.text
    assert [read.text.count(value) > 0 for value in ABOUT.values()] == [True, True]
    assert "off by 3.5 times the bound" in read.text
    rows = {(row[1], row[2], row[3]): row for row in read.cells if len(row) == 9 and row[0] != ""}
    failed = rows["numpy", "float32", "out"]
    assert failed[0] == "1 FAILED, 1 without a result"
    row = next(
        row for row in full.against_truth() if (row.backend, row.dtype, row.quantity) == ("numpy", "float64", "dx")
    )
    headings = read.cells[0]
    told = dict(zip(headings, rows["numpy", "float64", "dx"], strict=True))
    assert told["error/bound"] == f"{row.units:.3f}"
    assert told["epsilons"] == f"{row.epsilons:.1f}"
    assert told["worst case"] == f"{row.worst} {list(row.where or ())}"
    assert 0 < row.equal < 1
    assert told["equal to exact"] == f"{math.floor(1000 * row.equal) / 10:.1f}%"


def test_the_share_below_a_histogram_is_the_column_s() -> None:
    full = Report()
    full.take(compare(cases(["float32"])[0], [NUMPY]))
    read = Reader(page(full, ABOUT))
    elements, equal = (sum(getattr(one, name) for one in full.comparisons) for name in ("elements", "equal"))
    assert 0 < equal < elements
    assert f"{elements:,} elements, equal to exact: {math.floor(1000 * equal / elements) / 10:.1f}%" in read.text
    assert ["equal", f"{equal:,}"] in read.cells


def test_a_row_without_error_names_no_worst_case() -> None:
    counts = (4, *[0] * len(figures.EDGES))
    full = Report([Comparison("numpy", None, "2d", "float32", "out", 0.0, 0.0, 4, 4, counts=counts)])
    row = dict(zip(*Reader(page(full, ABOUT)).cells[:2], strict=True))
    assert (row["worst case"], row["error/bound"], row["equal to exact"]) == ("", "0.000", "all")


def test_names_are_escaped() -> None:
    text = page(report(), ABOUT)
    assert "<script" not in text
    assert "&lt;script&gt;alert('&amp;')&lt;/script&gt;" in text


def test_a_report_of_nothing_has_a_page() -> None:
    read = Reader(page(Report(), {}))
    assert "nothing was compared" in read.text
    assert read.cells == []


def test_a_histogram_has_a_bar_for_each_size_there_is() -> None:
    counts = [0] * (len(figures.EDGES) + 1)
    counts[0], counts[3], counts[-2], counts[-1] = 1000, 1, 10, 7
    bars = {bar.findtext("title"): bar for bar in histogram(counts).iter("rect")}
    assert list(bars) == ["equal: 1,000", "1/2048 to 1/1024: 1", "1/2 to 1: 10", "more than 1: 7"]
    assert [bar.get("class") for bar in bars.values()] == ["bar", "bar", "bar", "beyond"]
    heights = [float(bar.get("height", 0)) for bar in bars.values()]
    assert heights[0] == pytest.approx(2 * heights[2], abs=0.1)
    assert heights[0] == pytest.approx(4 * heights[1], abs=0.1)
    assert len(sizes()) == len(counts)


def test_a_map_has_errors_where_they_are() -> None:
    values = np.zeros((3, 5))
    values[0, 1], values[2, 4], values[1, 0] = 0.5, 0.25, 40
    plane = figures.Plane(values, "[0, 0, :, :]", "row", "column", (3, 5), (1, 0))
    actual = {(path.get("class"), path.get("fill-opacity")): path.get("d") for path in heat_map(plane).iter("path")}
    assert actual == {
        ("bar", "0.5"): "M4 2h1v1h-1z",
        ("bar", "1"): "M1 0h1v1h-1z",
        ("beyond", None): "M0 1h1v1h-1z",
    }
    (mark,) = heat_map(plane).iter("rect")
    assert [mark.get(key) for key in ("x", "y")] == ["0", "1"]


def shown(folder: Path, text: str, width: int) -> tuple[dict[str, Any], str]:
    """Show a page in a browser of that width; return its sizes, and what the browser printed on its console."""
    assert BROWSER is not None
    path = folder / "page.html"
    # The page is in a frame, because a browser's window has a minimal width.
    inner = escape(text.replace("</body>", f"{SHOWN}</body>"))
    frame = f'<iframe srcdoc="{inner}" style="width: {width}px; height: 844px; border: 0"></iframe>'
    path.write_text(f"<!doctype html><html><body>{frame}</body></html>", encoding="utf-8")
    quiet = ("background-networking", "component-update", "sync", "extensions", "gpu", "default-apps")
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--no-first-run",
            *(f"--disable-{name}" for name in quiet),
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            "--window-size=1400,900",
            "--enable-logging=stderr",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        timeout=120,
    )
    root = next(attributes for tag, attributes in Reader(done.stdout).tags if tag == "html")
    return json.loads(root["data-shown"] or ""), "".join(re.findall(r".*CONSOLE.*", done.stderr))


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_at_the_width_of_a_phone_and_of_a_desk(tmp_path: Path, width: int) -> None:
    actual, console = shown(tmp_path, page(report(), ABOUT), width)
    assert console == ""
    assert actual["inner"] == width
    assert actual["page"] <= width
    assert actual["letters"] >= 15.9
    assert min(side for size in actual["maps"] for side in size) >= 16
    assert actual["scrolling"] >= (width == 390)
