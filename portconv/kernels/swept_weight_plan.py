"""The plan of gradients of filters of one channel: what a share of `swept_weights` is, and how long it takes."""

from __future__ import annotations

from typing import NamedTuple

from .record import Record
from .row_lines import (
    COPIED,
    EVERY,
    GATHERED,
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
from .sizes import Layout, Planned, Sizes, addresses, blocks, ceiling, numbers, share_products
from .target import Target

VARIANTS = tuple(EVERY)
PASSES = 10
"""The most taps whose sums are in registers at once."""
CELLS_BYTES, MOST_BYTES, MOST_COLUMNS = 128 << 10, 16 << 20, 8192
"""About how many bytes of inputs are copied at once; the most that a share takes; and the most columns of a row."""
FEWEST_SHARES = 8
"""There are so many shares at least, if there are as many channels."""
CYCLES_OF_COPY = {"full": 2.5, "halved": 3.0, "thirds": 3.5, "quarters": 4.0, GATHERED: 24.0}
CYCLES_OF_LINE, CYCLES_OF_PLANE, CYCLES_OF_SWEEP, CYCLES_OF_TOTAL, LOADED = 6.0, 40.0, 15.0, 20.0, 1.75
"""About how many vectors are multiplied in the time that a line of a copy takes beside its vectors, a plane, a sweep
and each of its sums, the sum of lanes, and a product with a cell that is loaded."""

PLAN = Record(
    *COPIED,
    *("batch", "channels", "multiplier", "taps", "taps_of_pass", "positions"),
    *("firsts", "firsts_of_unit", "first_blocks", "lines_of_step", "lines_beyond"),
    *("columns", "columns_of_unit", "column_blocks", "channels_of_share", "x_sample", "x_channel", "out_sample"),
    *("zeros", "row_taps", "at_lines", "at_entries", "at_gradients", "at_sums"),
)
"""The plan in memory; `zeros` numbers at the beginning of the scratch memory are set to zero first, which is where the
copies go and the sums are, and each channel has `multiplier` filters."""


class _Block(NamedTuple):
    """What is swept at once: rows, or a part of one; and the channels of a share."""

    firsts: int
    columns: int
    channels: int


def _firsts(sizes: Sizes) -> tuple[int, int, int]:
    """Return the rows of a plane, their stride, and how many lines a row of outputs reads."""
    if len(sizes.size) == 1:
        return 1, 1, 1
    return sizes.out[0], sizes.stride[0], (sizes.kernel[0] - 1) * sizes.dilation[0] + 1


def _block(sizes: Sizes, lines: Lines, lanes: int) -> _Block:
    rows, step, beyond = _firsts(sizes)
    columns = blocks(sizes.out[-1], MOST_COLUMNS)[1]
    of_line = sizes.number * len(lines.phases) * (columns + lines.shift)
    firsts = max(1, min(rows, (CELLS_BYTES // of_line - beyond) // step + 1)) if columns == sizes.out[-1] else 1
    of_channel = sizes.batch * sizes.filters * sizes.positions * sizes.taps
    wanted = max(1, share_products(of_channel * sizes.in_channels, lanes) // of_channel)
    channels = max(1, min(wanted, ceiling(sizes.in_channels, FEWEST_SHARES)))
    return _Block(blocks(rows, firsts)[1], columns, blocks(sizes.in_channels, channels)[1])


class _Copies(NamedTuple):
    """How a plane is copied: the vectors of a phase of a line, the lines, and where they go."""

    entries: int
    lines: int
    pitches: Pitches


def _copies(sizes: Sizes, lines: Lines, block: _Block, lanes: int) -> _Copies:
    _, step, beyond = _firsts(sizes)
    entries, count = entries_of(block.columns, lines, lanes), (block.firsts - 1) * step + beyond
    if len(sizes.size) == 1:
        return _Copies(entries, count, pitches_of(lines, entries, lanes))
    of_block = sizes._replace(out=(sizes.out[0], block.columns))
    return _Copies(entries, count, joined_pitches_of(of_block, lines, count, lanes))


def plan_of(target: Target, sizes: Sizes) -> Planned | None:
    """Plan the gradient of the filters, or return nothing if they have several channels or more than two dimensions."""
    if sizes.channels != 1 or len(sizes.size) > 2:
        return None
    lines, lanes, (rows, step, beyond) = lines_of(sizes), target.lanes, _firsts(sizes)
    block = _block(sizes, lines, lanes)
    copies = _copies(sizes, lines, block, lanes)
    vectors_of_line, pitches = copies.entries * len(lines.phases), copies.pitches
    layout, swept = Layout(), (block.firsts - 1) * pitches.line_pitch + block.columns
    layout.add(sizes.number * (len(lines.phases) * pitches.phase_pitch + 2 * lanes))
    places = {
        "at_gradients": layout.add(sizes.number * (swept + 2 * lanes)),
        "at_sums": layout.add(sizes.number * block.channels * sizes.filters * sizes.taps * lanes),
        "zeros": layout.bytes // sizes.number,
        "at_lines": layout.add(16 * copies.lines),
        "at_entries": layout.add(16 * vectors_of_line),
    }
    if layout.bytes > MOST_BYTES:
        return None
    lists = lists_of_copy(sizes, lines) | {"row_taps": numbers(taps_of(sizes, lines, pitches))}
    shares = ceiling(sizes.in_channels, block.channels)
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares, "outer": len(lines.padded)},
        **{"width": sizes.size[-1], "step": sizes.stride[-1], "before": sizes.before[-1]},
        **{"entries": vectors_of_line, "entries_of_phase": copies.entries},
        **pitches._asdict(),
        **{"batch": sizes.batch, "channels": sizes.in_channels, "multiplier": sizes.filters, "taps": sizes.taps},
        **{"taps_of_pass": blocks(sizes.taps, PASSES)[1], "positions": sizes.positions},
        **{"firsts": rows, "firsts_of_unit": block.firsts, "first_blocks": ceiling(rows, block.firsts)},
        **{"lines_of_step": step, "lines_beyond": beyond - step},
        **{"columns": sizes.out[-1], "columns_of_unit": block.columns},
        **{"column_blocks": ceiling(sizes.out[-1], block.columns), "channels_of_share": block.channels},
        **{"x_sample": sizes.in_channels * sizes.cells, "x_channel": sizes.cells},
        **{"out_sample": sizes.out_channels * sizes.positions},
        **places,
        **addresses(lists),
    )
    shown = {"channels": block.channels, "rows": block.firsts, "columns": block.columns}
    variant = steps_of(sizes)
    return Planned(
        variant, values, tuple(lists.values()), shares, layout.bytes, shown,
        is_plain=False, cycles=_cycles(target, sizes, lines, block),
    )  # fmt: skip


def _cycles(target: Target, sizes: Sizes, lines: Lines, block: _Block) -> float:
    """Return about how many vectors are multiplied in the time that a call takes."""
    rows, *_ = _firsts(sizes)
    copies, lanes = _copies(sizes, lines, block, target.lanes), target.lanes
    units = ceiling(rows, block.firsts) * ceiling(sizes.out[-1], block.columns)
    of_vector = CYCLES_OF_COPY[steps_of(sizes)]
    copied = copies.lines * (copies.entries * len(lines.phases) * of_vector + CYCLES_OF_LINE)
    spread = block.firsts * (ceiling(block.columns, lanes) * CYCLES_OF_COPY["full"] + CYCLES_OF_LINE)
    vectors = ceiling((block.firsts - 1) * copies.pitches.line_pitch + block.columns, lanes)
    passes, taps = blocks(sizes.taps, PASSES)
    of_tap = vectors * (LOADED * taps + 1) + CYCLES_OF_SWEEP + taps * 3
    swept = passes * max(of_tap, vectors * 4.0)
    planes = sizes.batch * sizes.in_channels * units
    ended = sizes.out_channels * sizes.taps * CYCLES_OF_TOTAL
    return planes * (copied + CYCLES_OF_PLANE + sizes.filters * (spread + swept)) + ended
