"""Draw errors as SVG in the page's colours: how many there are of each size, and where they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree

from .figures import EDGES, Plane

Element = ElementTree.Element

WIDTH, HEIGHT, FOOT = 300, 120, 26
"""The sizes of a histogram: as wide as a phone, its letters are as large as the page's."""
TICKS = {0.5: "=", 4: "1/1024", 8: "1/64", 11: "1/8", 14: "1"}
"""The labels below a histogram, by their place: the number of bars to the left."""
CELL = (16, 40)
"""The smallest and the largest width and height of a map's cell, if they fit into the width."""
SHADES = 16


def sizes() -> list[str]:
    """Say what each bar of a histogram counts."""
    edges = ["0", *(f"1/{round(1 / edge)}" if edge < 1 else "1" for edge in EDGES[1:])]
    between = [f"{low} to {high}" for low, high in pairwise(edges[1:])]
    return ["equal", f"up to {edges[1]}", *between, "more than 1"]


def histogram(counts: Sequence[int]) -> Element:
    """Draw how many errors there are of each size; the height of a bar is the logarithm of the number."""
    svg = _svg(f"0 0 {WIDTH} {HEIGHT + FOOT}", "histogram", "How many errors there are of each size")
    step = WIDTH / len(counts)
    scale = HEIGHT / math.log10(10 * max(1, *counts))
    for place, (count, what) in enumerate(zip(counts, sizes(), strict=True)):
        if count:
            height = scale * math.log10(10 * count)
            box: dict[str, float] = {"x": place * step + 1.5, "y": HEIGHT - height, "width": step - 3, "height": height}
            kind = "beyond" if place == len(counts) - 1 else "bar"
            bar = ElementTree.SubElement(svg, "rect", {"class": kind, **{k: f"{v:.1f}" for k, v in box.items()}})
            ElementTree.SubElement(bar, "title").text = f"{what}: {count:,}"
    ElementTree.SubElement(svg, "path", {"class": "axis", "d": f"M0 {HEIGHT}H{WIDTH}M{14 * step:.1f} 0V{HEIGHT}"})
    for edge, what in TICKS.items():
        where = {"x": f"{edge * step:.1f}", "y": f"{HEIGHT + 19}", "text-anchor": "middle"}
        ElementTree.SubElement(svg, "text", where).text = what
    return svg


def heat_map(plane: Plane) -> Element:
    """Draw errors over two axes: a larger error has a stronger colour, one beyond the bound another colour."""
    rows, columns = plane.values.shape
    svg = _svg(f"0 0 {columns} {rows}", "map", f"Errors over {plane.rows or 'one row'} and {plane.columns}")
    within = plane.values[plane.values <= 1]
    largest = float(within.max(initial=0.0))
    cells: dict[str, list[str]] = {}
    for row, values in enumerate(plane.values):
        for column, value in enumerate(values):
            if value > 0:
                shade = "beyond" if value > 1 else f"{math.ceil(SHADES * value / largest) / SHADES:.4g}"
                cells.setdefault(shade, []).append(f"M{column} {row}h1v1h-1z")
    for shade, path in sorted(cells.items()):
        kind = {"class": "beyond"} if shade == "beyond" else {"class": "bar", "fill-opacity": shade}
        ElementTree.SubElement(svg, "path", {**kind, "d": "".join(path)})
    row, column = plane.cell
    mark = {"class": "mark", "x": str(column), "y": str(row), "width": "1", "height": "1"}
    ElementTree.SubElement(svg, "rect", mark)
    width, height = (min(CELL[1], WIDTH / count) for count in (columns, rows))
    # Cells are square unless one side would be too thin.
    square = min(width, height)
    width, height = (max(square, min(side, CELL[0])) for side in (width, height))
    size = f"max-width:{width * columns:.0f}px;aspect-ratio:{width * columns:.0f}/{height * rows:.0f}"
    svg.set("preserveAspectRatio", "none")
    svg.set("shape-rendering", "crispEdges")
    svg.set("style", size)
    return svg


def _svg(box: str, kind: str, label: str) -> Element:
    return Element("svg", {"viewBox": box, "class": kind, "role": "img", "aria-label": label})
