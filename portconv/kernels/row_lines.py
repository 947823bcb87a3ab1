"""The copies of `rows` and `tall`: what of the input is copied, and where to."""

from __future__ import annotations

import math
from array import array
from itertools import product
from typing import NamedTuple

from .bits import WORD
from .share import PLAN_HEAD
from .sizes import Sizes, ceiling, numbers
from .values import LINE

EVERY_CELL, GATHERED = "full", "gathered"
EVERY = {EVERY_CELL: 1, "halved": 2, "thirds": 3, "quarters": 4, GATHERED: 0}
"""The distance of the cells of a phase; 0 stands for other distances. A few vectors are loaded side by side and every
second, third or fourth number is taken, or each number is loaded on its own."""
STEPS = {every: steps for steps, every in EVERY.items() if every}

COPIED = (
    *PLAN_HEAD,
    *("outer", "padded", "befores", "inputs", "strides", "row_phases"),
    *("width", "step", "before", "entries", "entries_of_phase"),
    *("line_pitch", "line_phases", "line_phase_pitch", "phase_pitch"),
)
"""The first fields of the plan, which say what is copied and where to.

`outer` is how many dimensions there are before the last one, for each of which the next four lists have a number;
`row_phases` has the columns where phases begin. Lines fall into phases too, `line_phases` of them, which begin
`line_phase_pitch` apart; lines of a phase lie `line_pitch` apart."""


class Lines(NamedTuple):
    """The padded input, as the lines along its last dimension that are read.

    Attributes
    ----------
    padded : tuple of int
        For each dimension before the last, how many lines outputs reach.
    strides : tuple of int
        From one line of a dimension to the next one.
    phases : list of int
        Which cells of each run of `stride` cells are copied: all, if they are not gathered one by one.
    shift : int
        How far the last tap reads beyond the first one, in cells of a phase.
    """

    padded: tuple[int, ...]
    strides: tuple[int, ...]
    phases: list[int]
    shift: int


def steps_of(sizes: Sizes) -> str:
    """Return how the cells of a phase are read: a bit of one integer stands for each cell that is loaded at once."""
    stride = sizes.stride[-1]
    return STEPS.get(stride, GATHERED) if stride * (LINE // sizes.number) <= WORD else GATHERED


def lines_of(sizes: Sizes) -> Lines:
    """Return what of the padded input is read."""
    sides = zip(sizes.out[:-1], sizes.stride, sizes.kernel, sizes.dilation, strict=False)
    padded = tuple((out - 1) * step + (taps - 1) * apart + 1 for out, step, taps, apart in sides)
    strides = tuple(math.prod(padded[dim + 1 :]) for dim in range(len(padded)))
    step, cells = sizes.stride[-1], [tap * sizes.dilation[-1] for tap in range(sizes.kernel[-1])]
    phases = list(range(step)) if steps_of(sizes) != GATHERED else sorted({cell % step for cell in cells})
    return Lines(padded, strides, phases, cells[-1] // step)


def entries_of(columns: int, lines: Lines, lanes: int) -> int:
    """Return how many vectors of a phase of a line are read for so many columns.

    The last vector of a narrow output reads further: cells of what follows, for lanes that are not stored.
    """
    return ceiling(columns + lines.shift, lanes)


class Pitches(NamedTuple):
    """How many numbers things are apart in the copy of a channel; the names are those of the fields of the plan."""

    line_pitch: int
    line_phases: int
    line_phase_pitch: int
    phase_pitch: int

    def line(self, number: int) -> int:
        """Return where a line begins."""
        row, phase = divmod(number, self.line_phases)
        return row * self.line_pitch + phase * self.line_phase_pitch


def pitches_of(lines: Lines, entries: int, lanes: int) -> Pitches:
    """Return where whole vectors go: line by line, and phase by phase of each."""
    return Pitches(entries * len(lines.phases) * lanes, 1, 0, entries * lanes)


def joined_pitches_of(sizes: Sizes, lines: Lines, count: int, lanes: int) -> Pitches:
    """Return where `count` lines go, if each row of outputs reads next to the one before, by all of its taps.

    Lines are copied by whole vectors, from the first to the last, and each covers what the one before has too much.
    """
    pitch, step = sizes.out[-1] + lines.shift, sizes.stride[0]
    row_phase = ceiling(count, step) * pitch + lanes
    return Pitches(pitch, step, row_phase, step * row_phase)


def taps_of(sizes: Sizes, lines: Lines, pitches: Pitches) -> list[int]:
    """Return where in the copy of a channel each tap reads, from where its output's first tap does."""
    outer = product(*(range(taps) for taps in sizes.kernel[:-1]))
    steps = [apart * stride for apart, stride in zip(sizes.dilation, lines.strides, strict=False)]
    starts = [pitches.line(sum(tap * step for tap, step in zip(taps, steps, strict=True))) for taps in outer]
    cells = [divmod(tap * sizes.dilation[-1], sizes.stride[-1]) for tap in range(sizes.kernel[-1])]
    phases = [(shift, lines.phases.index(phase)) for shift, phase in cells]
    return [start + phase * pitches.phase_pitch + shift for start in starts for shift, phase in phases]


def lists_of_copy(sizes: Sizes, lines: Lines) -> dict[str, array[int]]:
    """Return the lists of `COPIED`."""
    outer = len(lines.padded)
    return {
        "padded": numbers(lines.padded),
        "befores": numbers(sizes.before[:outer]),
        "inputs": numbers(sizes.size[:outer]),
        "strides": numbers([math.prod(sizes.size[dim + 1 :]) for dim in range(outer)]),
        "row_phases": numbers(lines.phases),
    }
