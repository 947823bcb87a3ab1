"""The plan of gradients of the input: what a share of `input_grads` is, and how long it takes."""

from __future__ import annotations

import math
from array import array
from itertools import islice, product
from typing import NamedTuple

from .record import Record
from .row_lines import EVERY as EVERY
from .row_lines import GATHERED, steps_of
from .share import PLAN_HEAD
from .sizes import Layout, Planned, Sizes, addresses, blocks, ceiling, numbers, share_products
from .target import Target

VARIANTS = tuple(EVERY)
RUN = 256
"""So many filters are added up one after the other."""
PLANES_BYTES, MOST_BYTES, MOST_DIMS = 320 << 10, 24 << 20, 16
"""About how many bytes the planes of a share take, to stay in the second cache; the most of all that a call needs; and
the most dimensions."""
CUTS, MOST_TRIED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512), 4
"""Into how many parts channels and rows may be cut, and how many ways of cutting rows are weighed."""
MOST_SHARES = 16
"""There are no more shares than this for the sake of threads."""
CYCLES_OF_SPREAD, CYCLES_OF_ADDED, CYCLES_OF_CELLS, CYCLES_OF_TILE, CYCLES_OF_TURNED = 4.0, 3.0, 5.0, 30.0, 8.0
CYCLES_OF_SHARE, CYCLES_OF_TERM = 500.0, 3.0
"""About how many vectors are multiplied in the time that a vector of a panel takes, one that is added to a plane, one
of a plane that is cleared and stored, a tile, one of filters that is turned, a share, and a term of it."""

PLAN = Record(
    *PLAN_HEAD,
    *("groups", "channels", "filters", "taps", "positions", "columns", "turned_pitch", "turned_blocks"),
    *("outer", "planes", "out_planes", "out_plane", "lines_of_plane", "plane_pitch", "is_row"),
    *("plane_padded", "plane_befores", "plane_inputs", "plane_strides", "plane_outs", "plane_steps"),
    *("parts", "cells_of_part", "cells_cut", "outputs_cut", "step_cut", "reach"),
    *("channels_of_block", "channel_blocks", "channel_pitch"),
    *("line_step", "line_pitch", "line_phase_pitch", "phase_pitch", "columns_of_phase", "entries"),
    *("row_phases", "row_phase_count", "step", "height", "above", "width", "before", "row_taps"),
    *("x_sample", "out_sample", "out_channel", "at_terms", "at_lines", "at_panel"),
)
"""The plan in memory.

The gradient of the output is the operand `x`. Channels and filters are those of a group. Planes of the padded input are
counted through by `outer` dimensions before the last two, for each of which the lists of planes have a number; where
there is one dimension alone, `is_row`, a plane is a single line. The last dimension but one, or that line, is cut into
`parts`, of so many cells each; an output reaches `reach` cells beyond its first one. Lines of a plane fall into
`line_step` phases, and cells of a line into those whose first cells are `row_phases`.
"""


class _Side(NamedTuple):
    """The numbers of one dimension."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    out: int

    @property
    def reach(self) -> int:
        """How far the last tap lies from the first one."""
        return (self.kernel - 1) * self.dilation

    @property
    def padded(self) -> int:
        """The cells from the first of the padding to the last one of the input or of an output."""
        return max(self.before + self.size, (self.out - 1) * self.stride + self.reach + 1)


class _Block(NamedTuple):
    """What a share computes: so many channels, of one of so many parts."""

    channels: int
    parts: int


class _Cut:
    """A convolution that is cut into shares, and where things lie in the planes of one."""

    def __init__(self, sizes: Sizes, lanes: int, block: _Block) -> None:
        self.sizes, self.lanes, self.block = sizes, lanes, block
        sides = [
            _Side(*each)
            for each in zip(
                sizes.size, sizes.kernel, sizes.stride, sizes.dilation, sizes.before, sizes.out, strict=True
            )
        ]
        self.is_row = len(sides) == 1
        self.outer, self.row = sides[:-2], sides[-1]
        self.lines = _Side(1, 1, 1, 1, 0, 1) if self.is_row else sides[-2]
        self.cut = self.row if self.is_row else self.lines
        self.cells_cut = self.cut.before + self.cut.size
        self.cells_of_part = ceiling(self.cells_cut, block.parts)
        self.parts = ceiling(self.cells_cut, self.cells_of_part)
        held = min(self.cells_of_part + 2 * self.cut.reach + self.cut.stride, self.cut.padded)
        if self.parts == 1:
            held = self.cut.padded
        self.held_lines, self.held_cells = (1, held) if self.is_row else (held, self.row.padded)
        step, reads = self.row.stride, [tap * self.row.dilation for tap in range(self.row.kernel)]
        self.phases = list(range(step)) if steps_of(sizes) != GATHERED else sorted({cell % step for cell in reads})
        columns = ceiling(held, step) if self.is_row else self.row.out
        self.pitch = columns + self.row.reach // step
        self.of_line_phase = ceiling(self.held_lines, self.lines.stride) * self.pitch + lanes
        self.of_phase = self.lines.stride * self.of_line_phase
        self.of_plane = len(self.phases) * self.of_phase
        self.planes = math.prod(side.padded for side in self.outer)
        # Vectors beyond the last position of a plane add nothing, but are loaded and stored.
        self.of_channel = ceiling(self.planes * self.of_plane + 4 * lanes, lanes) * lanes
        # Of a row that is cut, what is held; of others, as far as the input goes.
        cells = held if self.is_row else self.row.before + self.row.size
        self.entries = ceiling(ceiling(cells, step), lanes)
        if self.is_row:
            self.of_channel += self.entries * lanes * len(self.phases)

    @property
    def shares(self) -> int:
        """How many shares there are."""
        return self.sizes.batch * self.sizes.groups * ceiling(self.sizes.channels, self.block.channels) * self.parts

    @property
    def outputs(self) -> int:
        """The outputs of a part along the dimension that is cut."""
        return min(self.cut.out, (self.cells_of_part + self.cut.reach) // self.cut.stride + 1)

    def taps(self) -> list[int]:
        """Return where each tap adds in the planes of a channel, from where its output's first tap does."""
        found = []
        strides = [math.prod(side.padded for side in self.outer[dim + 1 :]) for dim in range(len(self.outer))]
        sides = [*self.outer, *([] if self.is_row else [self.lines]), self.row]
        for *outer, column in product(*(range(side.kernel) for side in sides)):
            row = 0 if self.is_row else outer[-1] * self.lines.dilation
            plane = sum(t * side.dilation * stride for t, side, stride in zip(outer, self.outer, strides, strict=False))
            shift, phase = divmod(column * self.row.dilation, self.row.stride)
            line, line_phase = divmod(row, self.lines.stride)
            place = plane * self.of_plane + self.phases.index(phase) * self.of_phase
            found.append(place + line_phase * self.of_line_phase + line * self.pitch + shift)
        return found

    def lists(self) -> dict[str, array[int]]:
        """Return the lists that the kernels read."""
        outer, sizes = self.outer, self.sizes
        padded = [side.padded for side in outer]
        strides = [math.prod(padded[dim + 1 :]) for dim in range(len(outer))]
        return {
            "plane_padded": numbers(padded),
            "plane_befores": numbers([side.before for side in outer]),
            "plane_inputs": numbers([side.size for side in outer]),
            "plane_strides": numbers([math.prod(sizes.size[dim + 1 :]) for dim in range(len(outer))]),
            "plane_outs": numbers([side.out for side in outer]),
            "plane_steps": numbers([side.stride * stride for side, stride in zip(outer, strides, strict=True)]),
            "row_phases": numbers(self.phases),
            "row_taps": numbers(self.taps()),
        }


def _cycles(target: Target, cut: _Cut) -> float:
    """Return about how many vectors are multiplied in the time that a call takes."""
    sizes, lanes, block = cut.sizes, cut.lanes, cut.block
    rows, columns = (1, cut.outputs) if cut.is_row else (cut.outputs, cut.row.out)
    vectors = math.prod(side.out for side in cut.outer) * ceiling((rows - 1) * cut.pitch + columns, lanes)
    terms = block.channels * sizes.taps
    tiles = ceiling(terms, target.filters // 2) * (target.filters // 2)
    runs = ceiling(sizes.filters, RUN)
    of_share = vectors * sizes.filters * (tiles + CYCLES_OF_SPREAD)
    of_share += vectors * runs * (terms * CYCLES_OF_ADDED + ceiling(terms, target.filters) * CYCLES_OF_TILE / 3)
    of_share += block.channels * cut.of_channel / lanes * CYCLES_OF_CELLS + CYCLES_OF_SHARE + terms * CYCLES_OF_TERM
    turned = sizes.out_channels * sizes.channels * sizes.taps / lanes * CYCLES_OF_TURNED
    return cut.shares * of_share + turned


def _best(target: Target, sizes: Sizes) -> _Cut:
    """Cut channels and rows so that threads share them and the time is the least."""
    products = sizes.batch * sizes.positions * sizes.out_channels * sizes.channels * sizes.taps
    wanted = min(MOST_SHARES, max(1, ceiling(products, share_products(products, target.lanes))))
    size = sizes.size[-1] if len(sizes.size) == 1 else sizes.size[-2]
    parts = [cuts for cuts in CUTS if cuts <= size] if len(sizes.size) <= 2 else [1]
    channels = sorted({blocks(sizes.channels, ceiling(sizes.channels, cuts))[1] for cuts in CUTS})

    def fits(cut: _Cut) -> bool:
        return sizes.number * cut.block.channels * cut.of_channel <= PLANES_BYTES

    def time(cut: _Cut) -> tuple[bool, float]:
        even = 2 * ceiling(cut.shares, 2) / cut.shares if cut.shares < wanted else 1.0
        return not fits(cut), even * _cycles(target, cut) if fits(cut) else cut.block.channels * cut.of_channel

    found: list[_Cut] = []
    for each in channels:
        # More parts take longer, but some are for threads.
        cuts = (_Cut(sizes, target.lanes, _Block(each, count)) for count in parts)
        enough = islice(filter(lambda cut: fits(cut) or cut.block.parts == parts[-1], cuts), MOST_TRIED)
        found += enough
    return min(found, key=time)


def plan_of(target: Target, sizes: Sizes) -> Planned | None:
    """Plan the gradient of the input of a convolution, or return nothing if its planes take too much memory."""
    if len(sizes.size) > MOST_DIMS or min(sizes.before) < 0:
        return None
    cut, lanes = _best(target, sizes), target.lanes
    block, layout = cut.block, Layout()
    layout.add(sizes.number * block.channels * cut.of_channel)
    places = {
        "at_terms": layout.add(8 * block.channels * sizes.taps),
        "at_lines": layout.add(16 * cut.planes * cut.held_lines),
        "at_panel": layout.add(sizes.number * RUN * lanes * target.vectors),
    }
    turned_pitch = ceiling(sizes.filters, lanes) * lanes
    shared = sizes.number * sizes.groups * sizes.channels * sizes.taps * turned_pitch
    if layout.bytes + shared > MOST_BYTES:
        return None
    lists = cut.lists()
    values = PLAN.packed(
        **{"phases": 2, "shares_first": sizes.groups * (turned_pitch // lanes), "shares_last": cut.shares},
        **{"groups": sizes.groups, "channels": sizes.channels, "filters": sizes.filters, "taps": sizes.taps},
        **{"positions": sizes.positions, "columns": sizes.out[-1]},
        **{"turned_pitch": turned_pitch, "turned_blocks": turned_pitch // lanes},
        **{"outer": len(cut.outer), "planes": cut.planes, "is_row": int(cut.is_row)},
        **{"out_planes": math.prod(side.out for side in cut.outer), "out_plane": math.prod(sizes.out[-2:])},
        **{"lines_of_plane": cut.held_lines, "plane_pitch": cut.of_plane},
        **{"parts": cut.parts, "cells_of_part": cut.cells_of_part, "cells_cut": cut.cells_cut},
        **{"outputs_cut": cut.cut.out, "step_cut": cut.cut.stride, "reach": cut.cut.reach},
        **{"channels_of_block": block.channels, "channel_blocks": ceiling(sizes.channels, block.channels)},
        **{"channel_pitch": cut.of_channel, "line_step": cut.lines.stride, "line_pitch": cut.pitch},
        **{"line_phase_pitch": cut.of_line_phase, "phase_pitch": cut.of_phase, "entries": cut.entries},
        **{"columns_of_phase": cut.entries * lanes if cut.is_row else cut.pitch},
        **{"row_phase_count": len(cut.phases), "step": cut.row.stride, "height": cut.lines.size},
        **{"above": cut.lines.before, "width": cut.row.size, "before": cut.row.before},
        **{"x_sample": sizes.out_channels * sizes.positions, "out_sample": sizes.in_channels * sizes.cells},
        **{"out_channel": sizes.cells},
        **places,
        **addresses(lists),
    )
    shown = {"channels": block.channels, "parts": cut.parts}
    return Planned(
        steps_of(sizes), values, tuple(lists.values()), cut.shares, layout.bytes, shown, shared,
        is_plain=False, cycles=_cycles(target, cut),
    )  # fmt: skip
