"""The plan of `rows`: which kernels there are, what a share is, and how long it takes."""

from __future__ import annotations

import math
from array import array
from typing import NamedTuple

from .record import Record
from .row_lines import (
    COPIED,
    EVERY,
    GATHERED,
    STEPS,
    Lines,
    Pitches,
    entries_of,
    joined_pitches_of,
    lines_of,
    lists_of_copy,
    pitches_of,
    steps_of,
    taps_of,
)
from .sizes import FAR_BYTES, Layout, Planned, Sizes, addresses, blocks, ceiling, numbers, share_products
from .target import Target

RUN = 256
"""So many terms are added up one after the other."""
FILTERS = (1, 2, 4, 8)
"""The filters of a tile."""
ALIGNED_STEPS, ALIGNED = "aligned", 4
"""The way of reading neighbouring cells for so many taps from two vectors, where one filter meets each load."""
FEWEST_ALIGNED = 5
"""It pays for rows of so many taps."""
JOINED = "joined-"
"""Before the name of a variant whose pieces go on from one row of a plane to the next one, over the cells between."""
MOST_JOINED, SHARES_JOINED = 16, 16
"""The most rows that are joined, where so many shares are left for threads."""
CAN_BE_JOINED = tuple(f"{STEPS[every]}{max(FILTERS)}" for every in (1, 2, 4))
VARIANTS = (
    *(f"{steps}{filters}" for steps in EVERY for filters in FILTERS),
    f"{ALIGNED_STEPS}1",
    *(f"{JOINED}{name}" for name in CAN_BE_JOINED),
)
MOST_VECTORS = 8
PIECE = 6
"""The numbers of a piece: where it reads in the copy and goes in the output, its length, its taps along the first
dimension (the first that is not outside of the input for all of it, and the last one), and the bits of the lanes that
are outputs, which a joined variant reads."""
CELLS_BYTES, COPY_BYTES, MOST_BYTES = 96 << 10, 640 << 10, 16 << 20
"""About how many bytes of inputs are copied at once; how many where rows are long, to stay in the second cache; and the
most, of all that a share needs."""
MOST_COLUMNS, FEWEST_COLUMNS, FEW_SHARES = 4096, 256, 8
"""The most columns of a share, and the fewest where rows are cut because there are fewer than so many."""
NO_EDGE = 1 << 40
"""The size of a dimension in which no tap lies outside."""
MOST_DIMS = 15
MEASURED = 0.88
"""What was measured takes this part of what is estimated, beside the other families."""
LOAD, ALIGNED_LOAD, LATENCY = 1.75, 1.2, 4.0
CYCLES_OF_COPY = {"full": 2.5, "halved": 3.0, "thirds": 3.5, "quarters": 4.0, GATHERED: 24.0}
CYCLES_OF_LINE, CYCLES_OF_PIECE, CYCLES_OF_TILE, CYCLES_OF_STORE, CYCLES_OF_CHANNEL = 12.0, 25.0, 30.0, 4.0, 4.0
"""About how many vectors are multiplied in the time of a load that crosses lines of the cache, of the copy of a vector,
of finding a line and a piece of a share, of a run of a tile, of a store, and of going on to the next channel."""

PLAN = Record(
    *COPIED,
    *("units", "units_of_share", "groups", "channels", "channels_of_run", "filters", "taps", "taps_of_row", "terms"),
    *("firsts", "firsts_of_share", "first_blocks", "rows_of_first", "lines_of_step", "lines_beyond"),
    *("columns", "columns_of_share", "column_blocks"),
    *("first_size", "first_before", "first_step", "first_apart", "first_taps"),
    *("channel_pitch", "pieces_of_share", "asks_for_outputs"),
    *("x_sample", "x_channel", "out_sample", "out_channel", "bias_step"),
    *("rows", "steps", "line_strides", "row_taps"),
    *("at_lines", "at_entries", "at_pieces", "at_sums"),
)
"""The plan in memory.

A unit is a group of one sample. `firsts` are the positions along the first of several dimensions, each of which has as
many rows as `rows_of_first`, and `first_...` are the numbers of that dimension. `lines` are rows of the padded input.
`rows`, `steps` and `line_strides` have a number for each dimension before the last one, and `row_taps` has where in the
copy each tap reads.
"""


def parted(variant: str) -> tuple[str, int]:
    """Return what a variant is: how it copies cells, and the filters of a tile."""
    name = variant.removeprefix(JOINED)
    return name[:-1], int(name[-1])


def is_joined(target: Target, variant: str) -> bool:
    """Return whether pieces go on from row to row; only AVX-512 brings the outputs of a piece together."""
    return variant.startswith(JOINED) and target.permutes


def vectors_of(target: Target, filters: int) -> int:
    """Return the vectors of a tile of so many filters."""
    return max(1, min(MOST_VECTORS, target.filters * target.vectors // filters))


def tile_sizes(target: Target, filters: int) -> list[int]:
    """Return the vectors of tiles: what is left of the pieces is cut into few smaller ones."""
    most = vectors_of(target, filters)
    return sorted({most, max(1, most // 2), max(1, most // 4), 1}, reverse=True)


def insides(sizes: Sizes, dim: int) -> list[int]:
    """Return, for each tap along a dimension, for how many outputs it reads a cell of the input."""
    ends = (sizes.reading(dim, tap) for tap in range(sizes.kernel[dim]))
    return [stop - start for start, stop in ends]


def skips_taps(sizes: Sizes, dim: int) -> bool:
    """Return whether taps along a dimension may be left out for outputs for which they lie outside of the input.

    An infinite number of a filter makes such an output nan; it shows if the tap is inside for another output at least.
    """
    return 0 < min(insides(sizes, dim)) < sizes.out[dim]


def density(sizes: Sizes, dim: int) -> float:
    """Return which part of the taps along a dimension is not left out."""
    return sum(insides(sizes, dim)) / (sizes.kernel[dim] * sizes.out[dim]) if skips_taps(sizes, dim) else 1.0


class _Block(NamedTuple):
    """What a share computes: channels are copied by so many at once."""

    columns: int
    firsts: int
    units: int
    channels: int


def _blocks(sizes: Sizes, lines: Lines, lanes: int, *, joined: bool) -> list[_Block]:
    """Return what a share may be; the more rows are joined, the more of them fill their vectors."""
    channels = min(sizes.channels, max(1, RUN // sizes.taps))
    columns, rows = min(sizes.out[-1], MOST_COLUMNS), sizes.batch * sizes.groups * math.prod(sizes.out[:-1])
    if 0 < rows < FEW_SHARES:  # a few long rows, as of one signal, are cut for threads to share
        columns = min(columns, max(FEWEST_COLUMNS, ceiling(sizes.out[-1], ceiling(FEW_SHARES, rows))))
    step, beyond = _first(sizes, lines)
    first_lines = lines.strides[0] if lines.padded else 1
    fitting = COPY_BYTES // (sizes.number * len(lines.phases) * channels * beyond * first_lines) - lines.shift
    if fitting < columns:
        columns = min(columns, blocks(sizes.out[-1], max(FEWEST_COLUMNS, fitting))[1])
    of_line = sizes.number * len(lines.phases) * entries_of(columns, lines, lanes) * lanes * channels
    firsts = sizes.out[0] if lines.padded else 1
    room = (CELLS_BYTES // (of_line * first_lines) - beyond) // step + 1
    products = columns * (math.prod(sizes.out[1:-1])) * sizes.filters * sizes.channels * sizes.taps
    units = sizes.batch * sizes.groups
    wanted = share_products(units * firsts * ceiling(sizes.out[-1], columns) * products, lanes)
    most = max(1, min(room, ceiling(wanted, products)))
    counts = range(most, 1 + max(most, min(room, MOST_JOINED, firsts * units // SHARES_JOINED)) if joined else most + 1)
    return [
        _Block(columns, count, blocks(units, ceiling(wanted, products * count))[1], channels)
        for count in sorted({blocks(firsts, count)[1] for count in counts})
    ]


def _filters_of_tile(target: Target, filters: int) -> int:
    """Return the filters of the tile that takes the least time."""

    def cost(tile: int) -> float:
        return ceiling(filters, tile) * _cycles_of_tile(target, tile)

    return min((tile for tile in FILTERS if tile <= target.filters), key=cost)


def _variant(target: Target, sizes: Sizes) -> str:
    """Return the way of copying and the filters of a tile."""
    filters, neighbours = _filters_of_tile(target, sizes.filters), sizes.stride[-1] == sizes.dilation[-1] == 1
    if target.name == "avx512" and filters == 1 and neighbours and sizes.kernel[-1] >= FEWEST_ALIGNED:
        return f"{ALIGNED_STEPS}1"
    return f"{steps_of(sizes)}{filters}"


def _cycles_of_tile(target: Target, filters: int) -> float:
    """Return the cycles of a term and a vector of the largest tile."""
    vectors = vectors_of(target, filters)
    return _cycles_of_term(filters, vectors) / vectors


def _cycles_of_term(filters: int, vectors: int, load: float = LOAD) -> float:
    """Return the cycles of a term of a tile: products, loads, or until a sum can be added to; and the loop."""
    return max(filters * vectors, load * vectors + filters / 2, LATENCY) + 0.15 * vectors + 1.0


def _cycles_of_pieces(target: Target, variant: str, pieces: int) -> float:
    """Return the cycles of a term of all pieces, what is left of which is cut into small tiles."""
    cycles, left, (steps, filters) = 0.0, pieces, parted(variant)
    load = ALIGNED_LOAD if steps == ALIGNED_STEPS else LOAD
    for vectors in tile_sizes(target, filters):
        cycles += left // vectors * _cycles_of_term(filters, vectors, load)
        left %= vectors
    return cycles


class _Copy(NamedTuple):
    """The copy of a share: its lines, the vectors of a phase and of a line, and the pieces of outputs that read it."""

    lines: int
    entries: int
    vectors: int
    pieces: int
    pitches: Pitches
    channel: int
    """The numbers of a channel."""


def _copy(sizes: Sizes, lines: Lines, block: _Block, lanes: int, *, joined: bool) -> _Copy:
    of_first = lines.strides[0] if lines.padded else 1
    step, beyond = _first(sizes, lines)
    rows, entries = block.firsts * math.prod(sizes.out[1:-1]), entries_of(block.columns, lines, lanes)
    lines_copied = ((block.firsts - 1) * step + beyond) * of_first
    vectors = entries * len(lines.phases)
    if joined:
        pitches = joined_pitches_of(sizes, lines, lines_copied, lanes)
        pieces = ceiling((rows - 1) * pitches.line_pitch + block.columns, lanes)
        channel = len(lines.phases) * pitches.phase_pitch
    else:
        pitches, pieces = pitches_of(lines, entries, lanes), rows * ceiling(block.columns, lanes)
        channel = lines_copied * vectors * lanes
    return _Copy(lines_copied, entries, vectors, pieces, pitches, channel)


def _first(sizes: Sizes, lines: Lines) -> tuple[int, int]:
    """Return the stride along the first of several dimensions, and how far the kernel reaches."""
    if not lines.padded:
        return 1, 1
    return sizes.stride[0], (sizes.kernel[0] - 1) * sizes.dilation[0] + 1


def _lists(sizes: Sizes, lines: Lines, pitches: Pitches) -> dict[str, array[int]]:
    """Return the lists that the kernels read."""
    outer = len(lines.padded)
    return lists_of_copy(sizes, lines) | {
        "rows": numbers(sizes.out[:outer]),
        "steps": numbers(sizes.stride[:outer]),
        "line_strides": numbers(lines.strides),
        "row_taps": numbers(taps_of(sizes, lines, pitches)),
    }


def _shares(sizes: Sizes, block: _Block) -> int:
    """Return how many shares there are."""
    units, firsts = sizes.batch * sizes.groups, sizes.out[0] if len(sizes.size) > 1 else 1
    return ceiling(units, block.units) * ceiling(firsts, block.firsts) * ceiling(sizes.out[-1], block.columns)


def _cycles(target: Target, sizes: Sizes, block: _Block, copy: _Copy, variant: str) -> float:
    """Return about how many vectors are multiplied in the time that a share takes."""
    filters = parted(variant)[1]
    copied = copy.lines * copy.vectors * sizes.channels * CYCLES_OF_COPY[steps_of(sizes)]
    found = CYCLES_OF_LINE * copy.lines * len(sizes.size) + CYCLES_OF_PIECE * copy.pieces
    tiles = ceiling(sizes.filters, filters) * copy.pieces
    runs = ceiling(sizes.channels, block.channels) * ceiling(sizes.taps, RUN)
    summed = ceiling(sizes.filters, filters) * _cycles_of_pieces(target, variant, copy.pieces)
    summed *= sizes.channels * sizes.taps
    summed *= density(sizes, 0) if len(sizes.size) > 1 and not variant.startswith(JOINED) else 1.0
    of_tile = runs * CYCLES_OF_TILE + sizes.channels * CYCLES_OF_CHANNEL
    stored = tiles * (filters * CYCLES_OF_STORE + of_tile / vectors_of(target, filters))
    return found + block.units * (copied + summed + stored)


def plan_of(target: Target, sizes: Sizes, *, has_bias: bool, variant: str = "") -> Planned | None:
    """Plan a convolution, or return nothing if the kernels do not serve it."""
    if len(sizes.size) > MOST_DIMS + 1:
        return None
    if variant:
        return _planned(target, sizes, variant, has_bias=has_bias)
    name = _variant(target, sizes)
    ways = ("", JOINED) if name in CAN_BE_JOINED and is_joined(target, JOINED) else ("",)
    plans = (_planned(target, sizes, f"{way}{name}", has_bias=has_bias) for way in ways)
    return min(filter(None, plans), key=lambda plan: plan.cycles, default=None)


def _scratch(sizes: Sizes, lanes: int, filters: int, block: _Block, copy: _Copy) -> tuple[dict[str, int], int]:
    """Return where things lie in the scratch memory of a share, and its bytes; tiles have so many filters."""
    is_one_run = block.channels == sizes.channels and sizes.taps <= RUN
    layout, kept = Layout(), ceiling(sizes.filters, filters) * filters * copy.pieces * lanes
    layout.add(sizes.number * (block.channels * copy.channel + lanes))
    places = {
        "at_lines": layout.add(16 * copy.lines),
        "at_entries": layout.add(16 * copy.vectors),
        "at_pieces": layout.add(8 * PIECE * copy.pieces),
        "at_sums": layout.add(0 if is_one_run else sizes.number * kept),
    }
    return places, layout.bytes


def _planned(target: Target, sizes: Sizes, variant: str, *, has_bias: bool) -> Planned | None:
    """Plan a convolution by one variant, or return nothing if its copies take too much memory."""
    (steps, filters), lines = parted(variant), lines_of(sizes)
    lanes, joined = target.lanes, is_joined(target, variant)
    if joined and len(sizes.size) != 2:
        return None
    if steps == ALIGNED_STEPS:
        lines = lines._replace(shift=lines.shift + lanes)
    found = _blocks(sizes, lines, lanes, joined=joined)
    if joined and found[0].columns < sizes.out[-1]:
        return None
    copies = [(block, _copy(sizes, lines, block, lanes, joined=joined)) for block in found]

    def time(one: tuple[_Block, _Copy]) -> float:
        return _shares(sizes, one[0]) * _cycles(target, sizes, one[0], one[1], variant)

    block, copy = min(copies, key=time)
    phases, (first_step, beyond) = len(lines.phases), _first(sizes, lines)
    places, scratch = _scratch(sizes, lanes, filters, block, copy)
    if scratch > MOST_BYTES:
        return None
    lists = _lists(sizes, lines, copy.pitches)
    of_first, firsts = (lines.strides[0], sizes.out[0]) if lines.padded else (1, 1)
    skips = bool(lines.padded) and not joined and skips_taps(sizes, 0)
    first = (sizes.dilation[0], sizes.kernel[0]) if lines.padded else (1, 1)
    first_blocks, column_blocks = ceiling(firsts, block.firsts), ceiling(sizes.out[-1], block.columns)
    units, shares = sizes.batch * sizes.groups, _shares(sizes, block)
    is_far = sizes.number * sizes.batch * sizes.out_channels * sizes.positions >= FAR_BYTES
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares, "units": units, "units_of_share": block.units},
        **{"groups": sizes.groups, "channels": sizes.channels, "channels_of_run": block.channels},
        **{"filters": sizes.filters, "taps": sizes.taps, "taps_of_row": sizes.kernel[-1]},
        **{"terms": sizes.channels * sizes.taps},
        **{"firsts": firsts, "firsts_of_share": block.firsts, "first_blocks": first_blocks},
        **{"rows_of_first": math.prod(sizes.out[1:-1]), "lines_of_step": first_step * of_first},
        **{"lines_beyond": (beyond - first_step) * of_first, "first_step": first_step},
        **{"first_size": sizes.size[0] if skips else NO_EDGE, "first_before": sizes.before[0] if skips else 0},
        **{"first_apart": first[0], "first_taps": first[1]},
        **{"columns": sizes.out[-1], "columns_of_share": block.columns, "column_blocks": column_blocks},
        **{"width": sizes.size[-1], "step": sizes.stride[-1], "before": sizes.before[-1]},
        **{"entries": copy.entries * phases, "entries_of_phase": copy.entries},
        **{"channel_pitch": copy.channel, "pieces_of_share": copy.pieces, "asks_for_outputs": int(is_far)},
        **copy.pitches._asdict(),
        **{"x_sample": sizes.in_channels * sizes.cells, "x_channel": sizes.cells},
        **{"out_sample": sizes.out_channels * sizes.positions, "out_channel": sizes.positions},
        **{"bias_step": int(has_bias), "outer": len(lines.padded)},
        **places,
        **addresses(lists),
    )
    cycles = MEASURED * time((block, copy))
    shown = {"units": block.units, "rows": block.firsts * math.prod(sizes.out[1:-1]), "columns": block.columns}
    shown["filters"] = filters
    runs = ceiling(sizes.channels, block.channels) * ceiling(sizes.taps, RUN)
    return Planned(
        variant, values, tuple(lists.values()), shares, scratch, shown, is_plain=not skips, cycles=cycles,
        roundings=min(RUN, sizes.channels * sizes.taps) + runs,
    )  # fmt: skip
