"""The plan of gradients of filters: what a share of `weights` is, and how long it takes."""

from __future__ import annotations

import math
from array import array
from typing import NamedTuple

from .panel_plan import density
from .record import Record
from .row_lines import (
    COPIED,
    EVERY,
    EVERY_CELL,
    GATHERED,
    Lines,
    entries_of,
    lines_of,
    lists_of_copy,
    pitches_of,
    steps_of,
    taps_of,
)
from .sizes import Layout, Planned, Sizes, addresses, blocks, ceiling, numbers, share_products
from .target import Target

RUN = 128
"""So many positions are added up one after the other."""
IN_PLACE = "in-place"
"""The variant that reads the input in place: the kernel has one tap, and meets each cell in its order."""
LAST = "in-place-last"
"""The same where channels come last."""
VARIANTS = (*EVERY, IN_PLACE, LAST)
CELLS_BYTES, SUMS_BYTES, ALL_SUMS_BYTES = 160 << 10, 320 << 10, 5 << 20
"""About how many bytes of inputs are copied at once, and the sums of a share take, to stay in the second cache; and the
most that the sums of all shares take."""
MOST_SHARES, MOST_RUNS = 16, 64
"""There are no more shares than this for the sake of threads; and a share adds up no more runs one after the other, if
the sums of more shares take little memory."""
MOST_COLUMNS, MOST_BYTES, MOST_DIMS = 2048, 16 << 20, 16
"""The most columns of a unit; the most bytes that a share's copies take; and the most dimensions."""
MOST_DENSITY = 0.9
"""Taps that read padding are left out where at most this part of the products remains."""
TERMS_OF_BLOCK = 512
"""About so many terms of a vector block of filters are one share of the last phase."""
CYCLES_OF_COPY = {"full": 3.0, "halved": 3.5, "thirds": 4.0, "quarters": 4.5, GATHERED: 24.0}
CYCLES_OF_LINE, CYCLES_OF_TRANSPOSED, CYCLES_OF_TILE, CYCLES_OF_SUM, CYCLES_OF_TERM = 12.0, 7.0, 40.0, 3.0, 20.0
"""About how many vectors are multiplied in the time of the copy of a vector, of finding a line, of turning a vector of
gradients, of a run of a tile beside its products, of adding a vector of sums, and of finding a term."""
CYCLES_OF_COPIED_LINE, CYCLES_OF_READ = 6.0, 1.5
"""What a line that is copied takes beside its vectors, and what a vector takes that is read in place."""
CUTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
"""Into how many parts filters and channels may be cut."""
SMALL_TILES = {1: 1.2, 2: 1.05}
"""How much longer a product takes in tiles of so many vectors."""

PLAN = Record(
    *COPIED,
    *("groups", "channels", "filters", "taps", "terms", "positions"),
    *("firsts", "firsts_of_unit", "first_blocks", "rows_of_first", "rows_of_unit", "lines_of_step", "lines_beyond"),
    *("columns", "columns_of_unit", "column_blocks", "units", "sharers"),
    *("channels_of_block", "channel_blocks", "tiles_of_block", "filter_blocks", "tiles_of_group", "filters_of_tile"),
    *("term_blocks", "terms_of_block", "apart", "channel_pitch", "x_sample", "x_channel", "out_sample"),
    *("filter_pitch", "position_pitch", "cell_pitch"),
    *("rows", "steps", "line_strides", "row_taps", "columns_of_taps", "taps_of_row"),
    *("at_lines", "at_entries", "at_order", "at_terms", "at_panel", "at_sums", "run"),
)
"""The plan in memory.

`columns_of_taps` has the first column whose cell lies inside by each tap of a row, and the one after the last.

Gradients of two filters lie `filter_pitch` apart, those of two positions `position_pitch`, and in place the cells of
two positions `cell_pitch`.

A unit is some rows of a sample, or a part of one row; `firsts` are the positions along the first of several dimensions,
each of which has as many rows as `rows_of_first`. A share adds up the sums of some tiles of
filters and some channels over some units, and `sharers` shares add up the same sums, which lie `apart`.
"""


class Blocks(NamedTuple):
    """What a share and a unit are."""

    vectors: int
    tiles: int
    channels: int
    firsts: int
    columns: int
    sharers: int


def _flat(sizes: Sizes) -> Sizes:
    """Return the same product of one dimension, where the kernel has one tap and meets each cell in its order."""
    ones, none = (1,), (0,)
    cells = (sizes.cells,)
    return sizes._replace(
        size=cells, kernel=ones, stride=ones, dilation=ones, before=none, after=none, out=(sizes.positions,)
    )


def _is_in_place(sizes: Sizes) -> bool:
    return sizes.taps == 1 and sizes.size == sizes.out and {*sizes.stride} == {1} and {*sizes.before} == {0}


def vectors_of_tile(target: Target, filters: int) -> int:
    """Return the vectors of filters of the tile that takes the least time."""

    def cost(vectors: int) -> float:
        return ceiling(filters, vectors * target.lanes) * vectors * SMALL_TILES.get(vectors, 1.0)

    return min(range(target.vectors, 0, -1), key=cost)


def _line_bytes(lines: Lines, columns: int, lanes: int, number: int) -> int:
    return number * len(lines.phases) * entries_of(columns, lines, lanes) * lanes


def _first(sizes: Sizes, lines: Lines) -> tuple[int, int, int]:
    """Return the stride along the first of several dimensions, how far the kernel reaches, and the lines of each."""
    if not lines.padded:
        return 1, 1, 1
    return sizes.stride[0], (sizes.kernel[0] - 1) * sizes.dilation[0] + 1, lines.strides[0]


def _blocks(target: Target, sizes: Sizes, lines: Lines, *, in_place: bool) -> Blocks:
    """Cut filters, channels and positions so that threads share them and the time is the least."""
    lanes, vectors = target.lanes, vectors_of_tile(target, sizes.filters)
    width, all_tiles = vectors * lanes, ceiling(sizes.filters, vectors * lanes)
    products = sizes.batch * sizes.positions * sizes.out_channels * sizes.channels * sizes.taps
    wanted = min(MOST_SHARES, max(1, ceiling(products, share_products(products, lanes))))
    found = [
        _cut(sizes, lines, lanes, (vectors, tiles, channels, wanted), in_place=in_place)
        for channels in sorted({blocks(sizes.channels, ceiling(sizes.channels, cuts))[1] for cuts in CUTS})
        for tiles in sorted({blocks(all_tiles, ceiling(all_tiles, cuts))[1] for cuts in CUTS})
        if sizes.number * width * tiles * channels * sizes.taps <= SUMS_BYTES or channels == tiles == 1
    ]
    found = found or [_cut(sizes, lines, lanes, (vectors, 1, 1, wanted), in_place=in_place)]
    return min(found, key=lambda block: _cycles(target, sizes, lines, block, in_place=in_place))


def _cut(sizes: Sizes, lines: Lines, lanes: int, asked: tuple[int, int, int, int], *, in_place: bool) -> Blocks:
    """Cut the positions, for so many vectors of a tile, tiles and channels of a share, and shares at least."""
    vectors, tiles, channels, wanted = asked
    width, all_tiles = vectors * lanes, ceiling(sizes.filters, vectors * lanes)
    step, beyond, of_first = _first(sizes, lines)
    # Gradients of a part of several rows would not lie side by side.
    can_cut = math.prod(sizes.out[1:-1]) == 1
    columns = min(sizes.out[-1], MOST_COLUMNS) if can_cut else sizes.out[-1]
    of_part = sizes.groups * ceiling(sizes.channels, channels) * ceiling(all_tiles, tiles)
    all_sums = sizes.number * sizes.groups * all_tiles * width * sizes.channels * sizes.taps
    runs = ceiling(sizes.batch * sizes.positions, RUN * MOST_RUNS)
    sharers = max(1, min(max(ceiling(wanted, of_part), runs), ALL_SUMS_BYTES // all_sums))
    if not lines.padded:
        columns = min(columns, max(RUN, ceiling(sizes.batch * sizes.out[-1], sharers)))
    columns = blocks(sizes.out[-1], columns)[1]
    all_firsts = _firsts(sizes)
    firsts = 1 if columns < sizes.out[-1] else min(all_firsts, ceiling(sizes.batch * all_firsts, sharers))
    if not in_place:
        of_line = _line_bytes(lines, columns, lanes, sizes.number) * of_first
        firsts = max(1, min(firsts, (CELLS_BYTES // (of_line * channels) - beyond) // step + 1))
    firsts = blocks(all_firsts, firsts)[1]
    units = sizes.batch * ceiling(all_firsts, firsts) * ceiling(sizes.out[-1], columns)
    return Blocks(vectors, tiles, channels, firsts, columns, min(sharers, units))


def _line_count(sizes: Sizes, lines: Lines, block: Blocks) -> int:
    """Return how many lines of a channel are copied for a unit."""
    step, beyond, of_first = _first(sizes, lines)
    return ((block.firsts - 1) * step + beyond) * of_first


class Cut(NamedTuple):
    """A convolution that is cut: its blocks, the copied lines, and how often each is found."""

    sizes: Sizes
    lines: Lines
    block: Blocks
    lanes: int
    in_place: bool
    density: float = 1.0
    """Which part of the products is computed: where it is less than all, those of each row by each tap."""
    last: bool = False
    """Whether channels come last, and the input is read in place."""

    @property
    def width(self) -> int:
        """The filters of a tile."""
        return self.block.vectors * self.lanes

    @property
    def all_tiles(self) -> int:
        """The tiles of a group."""
        return ceiling(self.sizes.filters, self.width)

    @property
    def terms(self) -> int:
        """The numbers of a filter."""
        return self.sizes.channels * self.sizes.taps

    @property
    def rows(self) -> int:
        """The rows of outputs of a unit."""
        return self.block.firsts * math.prod(self.sizes.out[1:-1])

    @property
    def entries(self) -> int:
        """The vectors of a phase of a copied line."""
        return entries_of(self.block.columns, self.lines, self.lanes)

    @property
    def vectors_of_line(self) -> int:
        """The vectors of a copied line."""
        return self.entries * len(self.lines.phases)

    @property
    def line_count(self) -> int:
        """The lines of a channel that are copied for a unit."""
        return 0 if self.in_place else _line_count(self.sizes, self.lines, self.block)

    @property
    def channel_pitch(self) -> int:
        """The numbers from one channel to the next, in the copy or in place."""
        if self.last:
            return 1
        return self.sizes.cells if self.in_place else self.line_count * self.vectors_of_line * self.lanes

    @property
    def all_sums(self) -> int:
        """The numbers of the sums of all filters."""
        return self.sizes.groups * self.all_tiles * self.terms * self.width

    @property
    def run(self) -> int:
        """The positions of a run, at most."""
        positions = self.rows * self.block.columns
        return blocks(positions, RUN)[1] if self.density == 1.0 else self.block.columns

    @property
    def phases(self) -> int:
        """How many phases a call has: the second one adds up what several shares have summed."""
        return 1 if self.block.sharers == 1 else 2


def sparse_plan_of(target: Target, sizes: Sizes) -> Planned | None:
    """Plan the gradient of filters of which many taps read padding, or return nothing where few do."""
    share = density(sizes)
    if share > MOST_DENSITY or steps_of(sizes) != EVERY_CELL or sizes.out[-1] > RUN:
        return None
    return plan_of(target, sizes, share)


def last_plan_of(target: Target, sizes: Sizes) -> Planned | None:
    """Plan the gradient of filters of one tap, of arrays whose channels come last, or return nothing for others."""
    return plan_of(target, sizes, last=True) if _is_in_place(sizes) else None


def plan_of(target: Target, sizes: Sizes, density: float = 1.0, *, last: bool = False) -> Planned | None:
    """Plan the gradient of the filters of a convolution, or return nothing if its copies take too much memory.

    Where only a part of the products is computed, `density` says which; `last` says whether channels come last.
    """
    if len(sizes.size) > MOST_DIMS:
        return None
    in_place = _is_in_place(sizes)
    sizes = _flat(sizes) if in_place else sizes
    lines, lanes = lines_of(sizes), target.lanes
    cut = Cut(sizes, lines, _blocks(target, sizes, lines, in_place=in_place), lanes, in_place, density, last)
    block, terms_of_share, layout = cut.block, cut.block.channels * sizes.taps, Layout()
    layout.add(0 if in_place else sizes.number * (block.channels * cut.channel_pitch + lanes))
    places = {
        "at_lines": layout.add(16 * cut.line_count),
        "at_entries": layout.add(16 * cut.vectors_of_line),
        "at_order": layout.add(0 if in_place else 8 * cut.rows * block.columns),
        "at_terms": layout.add(8 * terms_of_share),
        "at_panel": layout.add(sizes.number * RUN * cut.width),
        "at_sums": layout.add(sizes.number * block.tiles * terms_of_share * cut.width if cut.phases == 1 else 0),
    }
    shared = 0 if cut.phases == 1 else sizes.number * block.sharers * cut.all_sums
    if layout.bytes + shared > MOST_BYTES:
        return None
    lists = lists_of_cells(cut)
    values, adding = values_of(cut, places | addresses(lists), _units(sizes, block))
    shown = {"filters": min(sizes.filters, block.tiles * cut.width), "channels": block.channels}
    shown |= {"rows": cut.rows, "columns": block.columns, "sums": block.sharers}
    cycles = _cycles(target, sizes, lines, block, in_place=in_place, density=density)
    variant = LAST if last else IN_PLACE if in_place else steps_of(sizes)
    units, runs = ceiling(_units(sizes, block), block.sharers) + 1, ceiling(cut.rows * block.columns, cut.run)
    return Planned(
        variant, values, tuple(lists.values()), adding, layout.bytes, shown, shared,
        is_plain=density == 1.0, cycles=cycles, roundings=cut.run + units * runs + block.sharers,
    )  # fmt: skip


def values_of(cut: Cut, places: dict[str, int], units: int) -> tuple[list[int], int]:
    """Return the plan in memory, and the shares that add up products, of so many units."""
    sizes, lines, block, lanes, *_ = cut
    (step, beyond, of_first), all_tiles = _first(sizes, lines), cut.all_tiles
    filter_blocks, channel_blocks = ceiling(all_tiles, block.tiles), ceiling(sizes.channels, block.channels)
    adding = block.sharers * sizes.groups * filter_blocks * channel_blocks
    term_blocks, terms_of_block = blocks(ceiling(cut.terms, lanes), TERMS_OF_BLOCK // lanes)
    ending = sizes.groups * all_tiles * term_blocks
    first_blocks, column_blocks = ceiling(_firsts(sizes), block.firsts), ceiling(sizes.out[-1], block.columns)
    values = PLAN.packed(
        **{"phases": cut.phases, "shares_first": adding if cut.phases == 2 else 0},
        **{"shares_last": ending if cut.phases == 2 else adding},
        **{"outer": len(lines.padded), "width": sizes.size[-1], "step": sizes.stride[-1], "before": sizes.before[-1]},
        **{"entries": cut.vectors_of_line, "entries_of_phase": cut.entries},
        **pitches_of(lines, cut.entries, lanes)._asdict(),
        **{"groups": sizes.groups, "channels": sizes.channels, "filters": sizes.filters, "taps": sizes.taps},
        **{"terms": cut.terms, "positions": sizes.positions},
        **{"firsts": _firsts(sizes), "firsts_of_unit": block.firsts, "first_blocks": first_blocks},
        **{"rows_of_first": math.prod(sizes.out[1:-1]), "rows_of_unit": cut.rows},
        **{"lines_of_step": step * of_first, "lines_beyond": (beyond - step) * of_first},
        **{"columns": sizes.out[-1], "columns_of_unit": block.columns, "column_blocks": column_blocks},
        **{"units": units, "sharers": block.sharers, "taps_of_row": sizes.kernel[-1]},
        **{"channels_of_block": block.channels, "channel_blocks": channel_blocks},
        **{"tiles_of_block": block.tiles, "filter_blocks": filter_blocks},
        **{"tiles_of_group": all_tiles, "filters_of_tile": cut.width},
        **{"term_blocks": term_blocks, "terms_of_block": terms_of_block * lanes, "apart": cut.all_sums},
        **{"channel_pitch": cut.channel_pitch, "x_channel": 1 if cut.last else sizes.cells},
        **{"filter_pitch": 1 if cut.last else sizes.positions},
        **{"position_pitch": sizes.out_channels if cut.last else 1},
        **{"cell_pitch": sizes.in_channels if cut.last else 1},
        **{"x_sample": sizes.in_channels * sizes.cells, "out_sample": sizes.out_channels * sizes.positions},
        **{"run": cut.run},
        **places,
    )
    return values, adding


def _firsts(sizes: Sizes) -> int:
    return sizes.out[0] if len(sizes.size) > 1 else 1


def lists_of_cells(cut: Cut) -> dict[str, array[int]]:
    """Return the lists that the copies and the products read."""
    sizes, lines = cut.sizes, cut.lines
    outer, pitches = len(lines.padded), pitches_of(lines, cut.entries, cut.lanes)
    return lists_of_copy(sizes, lines) | {
        "rows": numbers(sizes.out[:outer]),
        "steps": numbers(sizes.stride[:outer]),
        "line_strides": numbers(lines.strides),
        "row_taps": numbers([0] if cut.in_place else taps_of(sizes, lines, pitches)),
        "columns_of_taps": sizes.columns_of_taps(),
    }


def _cycles(
    target: Target, sizes: Sizes, lines: Lines, block: Blocks, *, in_place: bool, density: float = 1.0
) -> float:
    """Return about how many vectors are multiplied in the time that a call takes."""
    lanes, width = target.lanes, block.vectors * target.lanes
    tiles, terms = ceiling(sizes.filters, width), sizes.channels * sizes.taps
    filter_blocks, channel_blocks = ceiling(tiles, block.tiles), ceiling(sizes.channels, block.channels)
    positions, units = sizes.batch * sizes.positions, _units(sizes, block)
    rows = ceiling(terms, target.filters // 2) * (target.filters // 2)
    products = density * positions * tiles * block.vectors * rows * SMALL_TILES.get(block.vectors, 1.0)
    of_unit = block.firsts * math.prod(sizes.out[1:-1]) * block.columns
    runs = units * ceiling(of_unit, RUN) * tiles * ceiling(terms, target.filters)
    if density < 1.0:  # which is about the same along both of two dimensions
        runs = int(positions // block.columns * math.sqrt(density)) * tiles * ceiling(terms, target.filters)
    ran = runs * (CYCLES_OF_TILE + block.vectors * target.filters * CYCLES_OF_SUM)
    turned = ceiling(positions, lanes) * tiles * width * channel_blocks * CYCLES_OF_TRANSPOSED
    copied = positions / lanes * sizes.channels * filter_blocks * CYCLES_OF_READ
    if not in_place:
        of_vector, count = CYCLES_OF_COPY[steps_of(sizes)], _line_count(sizes, lines, block)
        of_line = entries_of(block.columns, lines, lanes) * len(lines.phases) * of_vector + CYCLES_OF_COPIED_LINE
        copied = units * count * (sizes.channels * filter_blocks * of_line + CYCLES_OF_LINE)
    ended = tiles * block.vectors * terms * (block.sharers + 2) * CYCLES_OF_SUM
    found = block.sharers * filter_blocks * terms * CYCLES_OF_TERM
    return sizes.groups * (products + ran + turned + copied + ended + found)


def _units(sizes: Sizes, block: Blocks) -> int:
    return sizes.batch * ceiling(_firsts(sizes), block.firsts) * ceiling(sizes.out[-1], block.columns)
