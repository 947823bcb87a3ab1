"""Draw the picture of ``portconv run``: the photograph, its feature maps and its gradient on one sheet."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .filters import Kernels
from .group import printable, write
from .photograph import Photograph
from .result import Result

Values = NDArray[Any]

MOST_MAPS = 64
"""The most maps that fit on a sheet."""
DPI = 200
NO_PICTURES = {"pgf", "raw", "rgba"}
"""The formats of matplotlib that are not pictures: TeX, and bare bytes."""

SHEET = 110.0
"""The area of all cells of a sheet together, in square inches, unless their titles need more."""

# Lengths in inches.
MARGIN = 0.22
CAPTION = 0.3
TITLE = 0.38
ICON = 0.25
LETTER = 0.065
WIDEST_GAP = 0.6

TIMES = "\N{MULTIPLICATION SIGN}"
INK, QUIET, LINE = "#222222", "#777777", "#c8c8c8"


def formats() -> tuple[str, ...]:
    """Return the file name endings of the formats that a sheet can have, without the dot."""
    return tuple(sorted(set(Figure().canvas.get_supported_filetypes()) - NO_PICTURES))


def draw(result: Result, caption: str, destination: Path) -> tuple[int, int]:
    """Draw the sheet into a file, and return its width and height in pixels.

    Parameters
    ----------
    result : Result
        What is drawn.
    caption : str
        The line at the bottom.
    destination : Path
        The file to write; its ending is one of `formats()`.
    """
    drawn = io.BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The sheet must not depend on a matplotlibrc, and a file name may hold letters that the font lacks.
        matplotlib.rcdefaults()
        warnings.simplefilter("ignore")
        if len(result.maps) > MOST_MAPS:
            result = replace(result, maps=result.maps[:MOST_MAPS])
            caption = f"{caption}, the first {MOST_MAPS} of them here"
        figure = _figure(result, printable(caption))
        figure.savefig(drawn, format=destination.suffix[1:].lower())
    write("--output", destination, drawn.getvalue())
    width, height = figure.canvas.get_width_height()
    return width, height


@dataclass(frozen=True)
class _Grid:
    """Cells with one map each; a photograph or gradient takes `zoom` by `zoom` cells, left of or above the maps."""

    zoom: float
    large: int
    large_across: int
    maps: int
    maps_below: bool

    @property
    def block(self) -> tuple[float, float]:
        """The columns and rows of all large pictures together."""
        return self.zoom * self.large_across, self.zoom * (self.large // self.large_across)

    @property
    def aligned(self) -> bool:
        """Whether the maps end at the edge of the large pictures."""
        return self.block[0 if self.maps_below else 1].is_integer()

    @property
    def map_columns(self) -> int:
        columns, rows = self.block
        return int(columns) if self.maps_below else math.ceil(self.maps / rows)

    @property
    def shape(self) -> tuple[float, float]:
        """The columns and rows of the whole grid."""
        columns, rows = self.block
        if self.maps_below:
            return columns, rows + math.ceil(self.maps / columns)
        return columns + self.map_columns, rows

    @property
    def cells(self) -> float:
        columns, rows = self.shape
        return columns * rows

    def large_places(self) -> Iterator[tuple[float, float]]:
        for i in range(self.large):
            row, column = divmod(i, self.large_across)
            yield column * self.zoom, row * self.zoom

    def map_places(self) -> Iterator[tuple[float, float]]:
        columns, rows = self.block
        for i in range(self.maps):
            row, column = divmod(i, self.map_columns)
            yield (column, rows + row) if self.maps_below else (columns + column, row)


def choose_grid(maps: int, large: int, aspect: float) -> _Grid:
    """Choose the grid with little empty space, the shape of a screen, and a photograph that is not too small."""

    def faults(grid: _Grid) -> float:
        columns, rows = grid.shape
        share = large * grid.zoom**2 / grid.cells
        empty = 1 - share - maps / grid.cells
        shape = abs(math.log(columns * aspect / rows / 1.5))
        return 4 * empty + shape + 3 * max(0, share - 0.5) + 4 * max(0, 0.2 * large - share)

    choices = product(range(2, 17), range(1, large + 1), (False, True))
    grids = (_Grid(twice_zoom / 2, large, across, maps, below) for twice_zoom, across, below in choices)
    return min((grid for grid in grids if grid.aligned), key=faults)


class _Sheet:
    """A figure with cells of one size, placed by column and row."""

    def __init__(self, grid: _Grid, aspect: float, least_width: float) -> None:
        columns, rows = grid.shape
        self.width = max(math.sqrt(SHEET / grid.cells * aspect), least_width)
        self.height = self.width / aspect
        # The gaps have the picture's proportions, so that a picture of several cells fills them to the edge.
        self.gap_y = TITLE
        self.gap_x = min(TITLE * aspect, WIDEST_GAP)
        self.across = columns * self.width + (columns - 1) * self.gap_x + 2 * MARGIN
        self.down = rows * (self.height + TITLE) + MARGIN + CAPTION
        self.figure = Figure(figsize=(self.across, self.down), dpi=DPI, facecolor="white")

    def axes(self, column: float, row: float, zoom: float) -> Axes:
        left = MARGIN + column * (self.width + self.gap_x)
        top = MARGIN / 2 + TITLE + row * (self.height + self.gap_y)
        width = zoom * self.width + (zoom - 1) * self.gap_x
        height = zoom * self.height + (zoom - 1) * self.gap_y
        bottom = self.down - top - height
        axes = self.figure.add_axes((left / self.across, bottom / self.down, width / self.across, height / self.down))
        axes.set_anchor("NW")
        _frame(axes)
        return axes

    def caption(self, text: str) -> None:
        self.figure.text(
            MARGIN / self.across, 0.5 * CAPTION / self.down, text, size=7.5, color=QUIET, va="center", parse_math=False
        )


def _figure(result: Result, caption: str) -> Figure:
    photograph, bank = result.picture, result.bank
    height, width = photograph.pixels.shape[1:]
    aspect = min(max(width / height, 0.25), 8.0)
    grid = choose_grid(len(result.maps), 1 if result.gradient is None else 2, aspect)
    least_width = ICON + LETTER * (max(len(title) for title in bank.titles) + len("  ± 0.123"))
    sheet = _Sheet(grid, aspect, least_width)
    large = grid.large_places()
    _show_photograph(sheet.axes(*next(large), grid.zoom), photograph)
    if result.gradient is not None:
        _show_gradient(sheet.axes(*next(large), grid.zoom), result.gradient, bank.on_luminance)
    for place, title, values, kernel in zip(grid.map_places(), bank.titles, result.maps, bank.weights, strict=False):
        axes = sheet.axes(*place, 1)
        _show_map(axes, title, values, kernel)
        _show_kernel(axes, kernel, sheet.width, sheet.height)
    sheet.caption(caption)
    return sheet.figure


def _show_photograph(axes: Axes, photograph: Photograph) -> None:
    channels, height, width = photograph.pixels.shape
    pixels = photograph.pixels[0] if channels == 1 else np.moveaxis(photograph.pixels, 0, 2)
    _show(axes, pixels, cmap="gray", vmin=0, vmax=1)
    _title(axes, printable(photograph.path.name), f"{width} {TIMES} {height}")


def _show_map(axes: Axes, title: str, values: Values, kernel: Kernels) -> None:
    white = float(kernel.sum()) or 1.0
    note = _show_signed(axes, values) if kernel.min() < 0 else _show_grey(axes, values, white)
    _title(axes, title, note, indent=ICON + 0.06)


def _show_kernel(axes: Axes, kernel: Kernels, width: float, height: float) -> None:
    """Show the filter beside the title of its map, whose width and height are given."""
    inset = axes.inset_axes((0, 1 + 0.04 / height, ICON / width, ICON / height))
    inset.set_anchor("SW")
    scale = float(np.abs(kernel).max()) or 1.0
    if len(kernel) == 1:
        _show(inset, kernel[0], cmap="RdBu_r", vmin=-scale, vmax=scale)
    else:
        _show(inset, np.moveaxis(0.5 + 0.5 * kernel / scale, 0, 2))
    _frame(inset)


def _show_gradient(axes: Axes, gradient: Values, on_luminance: bool) -> None:
    """Show the gradient of brightness if the channels differ only by a factor, else colours around mid-grey."""
    brightness = gradient.sum(axis=0)
    if not (on_luminance or len(gradient) == 1):
        scale = _scale(gradient)
        _show(axes, np.moveaxis(0.5 + 0.5 * (gradient / scale).clip(-1, 1), 0, 2))
        note = f"mid-grey is 0, ± {scale:.3g}"
    elif brightness.min() < 0:
        note = _show_signed(axes, brightness)
    else:
        note = _show_grey(axes, brightness, _scale(brightness))
    _title(axes, "gradient of half the maps' sum of squares", note)


def _show_signed(axes: Axes, values: Values) -> str:
    scale = _scale(values)
    # The map is reduced before it is coloured: a mixture of red and blue would be purple, but their mean is white.
    _show(axes, values, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation_stage="data")
    return f"± {scale:.3g}"


def _show_grey(axes: Axes, values: Values, white: float) -> str:
    _show(axes, values, cmap="gray", vmin=0, vmax=white)
    return f"0 to {white:.3g}"


def _scale(values: Values) -> float:
    """Return a bound on nearly all magnitudes; a few at the border are far larger than the rest."""
    magnitudes = np.abs(values)
    return float(np.percentile(magnitudes, 99.5)) or float(magnitudes.max()) or 1.0


def _show(axes: Axes, values: Values, **colours: Any) -> None:
    height, width = values.shape[:2]
    thin = max(width / height, height / width) > 20
    axes.imshow(values, aspect="auto" if thin else "equal", **colours)


def _frame(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=LINE, linewidth=0.6)


def _title(axes: Axes, name: str, note: str, indent: float = 0) -> None:
    for text, x, side, size, colour in ((name, 0, "left", 8, INK), (note, 1, "right", 6.5, QUIET)):
        axes.annotate(
            text,
            (x, 1),
            xycoords="axes fraction",
            xytext=(72 * indent * (1 - x), 4.5),
            textcoords="offset points",
            ha=side,
            size=size,
            color=colour,
            parse_math=False,
        )
