"""Draw the picture of ``portconv bench``: how many times as fast portconv is as each peer, for each layer."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..benchmark import PEERS, Report, Row
from ..benchmark.problem import PASSES
from ..benchmark.report import ratios
from .group import write

FORMATS = ("pdf", "png", "svg")

INK, QUIET, LINE = "#222222", "#777777", "#dddddd"
STYLES = {
    "torch": ("o", "#d1495b"),
    "torch-last": ("s", "#edae49"),
    "onnx": ("^", "#00798c"),
    "jax": ("D", "#6a4c93"),
    "direct": ("x", QUIET),
    "product": ("|", INK),
}
"""The marker and the colour of each peer."""

# Lengths in inches.
WIDTH, ROW, HEAD, FOOT, NAMES, MARGIN = 10.5, 0.24, 0.95, 0.8, 2.35, 0.2
DPI = 150
CAPTION = 170
"""The letters in a line of the caption."""


def draw(report: Report, caption: str, destination: Path) -> None:
    """Draw a report into a file.

    Parameters
    ----------
    report : Report
        It must have at least one row.
    caption : str
        The text at the bottom.
    destination : Path
        The file to write; its ending is one of `FORMATS`.
    """
    drawn = io.BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The picture must not depend on a matplotlibrc; a letter that the font lacks must not print a warning.
        matplotlib.rcdefaults()
        warnings.simplefilter("ignore")
        _figure(report, caption).savefig(drawn, format=destination.suffix[1:].lower(), dpi=DPI)
    write("--plot", destination, drawn.getvalue())


def _figure(report: Report, caption: str) -> Figure:
    layers = list(dict.fromkeys(row.layer.name for row in report.rows))
    height = HEAD + ROW * (len(layers) + 1) + FOOT
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    passes = [name for name in PASSES if any(row.name == name for row in report.rows)]
    panel = (WIDTH - NAMES - len(passes) * MARGIN) / len(passes)
    shared: Axes | None = None
    for place, name in enumerate(passes):
        left = NAMES + place * (panel + MARGIN)
        box = (left / WIDTH, FOOT / height, panel / WIDTH, (height - HEAD - FOOT) / height)
        axes = figure.add_axes(box, sharex=shared)
        shared = shared or axes
        _panel(axes, [row for row in report.rows if row.name == name], layers)
        axes.set_title(name, loc="left", size=9, color=INK)
        if place:
            axes.tick_params(labelleft=False)
    figure.text(
        MARGIN / WIDTH,
        1 - 0.24 / height,
        "How many times as fast portconv is as each peer: right of the line it is faster",
        size=11,
        color=INK,
        va="center",
    )
    if shared is not None and (handles := _legend(shared, report.peers)):
        titles = {peer.name: peer.title for peer in PEERS}
        figure.legend(
            handles,
            [titles[name] for name in report.peers],
            loc="center left",
            bbox_to_anchor=((MARGIN - 0.08) / WIDTH, 1 - 0.52 / height),
            ncols=len(handles),
            frameon=False,
            fontsize=8,
            handletextpad=0.2,
            columnspacing=1.2,
        )
    lines = textwrap.fill(caption, CAPTION)
    figure.text(MARGIN / WIDTH, 0.22 / height, lines, size=6.5, color=QUIET, va="center", parse_math=False)
    return figure


def _panel(axes: Axes, rows: Sequence[Row], layers: Sequence[str]) -> None:
    axes.set_xscale("log")
    axes.set_ylim(len(layers), -1)
    axes.set_yticks(range(len(layers)), layers, size=7.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.axvline(1, color=INK, linewidth=1)
    for spine in axes.spines.values():
        spine.set(color=LINE)
    for row in rows:
        for who, ratio in ratios(row).items():
            marker, colour = STYLES[who]
            axes.scatter(1 / ratio, layers.index(row.layer.name), s=26, marker=marker, color=colour, zorder=3)


def _legend(axes: Axes, peers: Sequence[str]) -> list[Artist]:
    return [
        axes.plot([], [], linestyle="", markersize=5, marker=STYLES[name][0], color=STYLES[name][1])[0]
        for name in peers
    ]
