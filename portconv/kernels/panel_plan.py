"""The plan of dense products: what a share of `panels` is, and how long the products take."""

from __future__ import annotations

import math
from array import array
from itertools import pairwise
from typing import NamedTuple

from .outer import FIELDS, MOST_OUTER
from .record import Record
from .row_lines import steps_of
from .share import PLAN_HEAD
from .sizes import (
    FAR_BYTES,
    Layout,
    Planned,
    Sizes,
    addresses,
    blocks,
    blocks_for_two,
    ceiling,
    in_runs,
    numbers,
    share_products,
)
from .target import Target

RUN = 128
"""So many terms are added up one after the other."""
MOST_PANELS, MOST_SMALL_PANELS, BLOCK_BYTES = 4, 16, 600 << 10
"""A share has at most so many panels, or so many with few terms, and takes about so many bytes, so that they stay in
the second cache."""
DENSE, FEWEST_COLUMNS = 0.8, 3
"""Taps that read padding alone are left out if fewer than this part of all taps read cells; bands have so many columns
at least."""
MANY_FILTERS, MANY_MORE, FILTERS_AT_ONCE = 2048, 4, 256
"""More filters than this, and so many times more than columns, are read from memory once: they are cut into blocks of
so many."""
MANY_TERMS = 512
"""With fewer terms all panels of a share are copied before the first filter multiplies them."""
MOST_SHARES, MOST_COPIES = 16, 12
"""There are no more shares than this for the sake of threads, and filters are cut into blocks that take at least so
many times as long as the copy of what they multiply."""
MOST_LONE, MOST_VECTORS_BESIDE = 2, 8
"""Up to so many columns beside at most so many vectors are multiplied one by one, along their terms."""
CYCLES_OF_LONE, CYCLES_OF_STORE = 2.0, 3.0
"""A lone column takes so many times as long as its multiplications: filters are loaded as well. A vector of outputs is
stored in the time in which so many are multiplied."""
MOST_ENTRIES = 1 << 14
"""The most taps times pieces of a panel, so that the tables stay in the cache."""
EVERY = {"full": 1, "halved": 2, "thirds": 3, "quarters": 4, "gathered": 0, "sparse": 1}
"""The distance of the cells that neighbouring columns read; 0 stands for other distances. A few vectors are loaded side
by side and every second, third or fourth number is taken, or each number is loaded on its own."""
SPARSE = "sparse"
"""The variant that leaves out taps which read padding alone; its columns are counted in bands that have such taps."""
VARIANTS = tuple(EVERY)
ENTRY = 3
"""The numbers that say what a piece reads for one tap."""
CYCLES_OF_PIECE = {"full": 5.5, "halved": 7.5, "thirds": 9.0, "quarters": 11.0, "gathered": 30.0, "sparse": 5.5}
CYCLES_OF_TABLE = 12.0
"""About how many vectors are multiplied in the time in which one is copied, and one entry of a table is made."""

PLAN = Record(
    *PLAN_HEAD,
    *("channels", "filters", "terms", "taps", "taps_of_row"),
    *("rows", "rows_of_band", "rows_of_block", "rows_of_samples", "width", "positions", "columns"),
    *("input_width", "step", "is_linear", "x_sample", "x_channel", "out_sample", "bias_step"),
    *FIELDS,
    *("row_taps", "bands"),
    *("panels", "together", "lone", "column_blocks", "filter_blocks", "filters_of_block", "pieces"),
    *("at_tables", "at_pieces", "at_images", "at_sums", "at_active", "asked_terms"),
)
"""The plan in memory. `row_taps` has the first cell of each tap along the last dimension, and `bands` their columns."""


def is_linear(sizes: Sizes) -> bool:
    """Return whether the cells that a tap reads follow one another from row to row, as the outputs do."""
    return sizes.size == sizes.out and set(sizes.stride) == {1}


def bands_of(sizes: Sizes) -> list[int]:
    """Return where bands of columns begin, and where the last one ends, if few taps read cells; else nothing.

    In a band the same taps read padding alone. A dilated kernel on a small input with as much padding is an example:
    DeepLab's, of 3x3 with dilation 12 on 28x28.
    """
    if sizes.stride[-1] != 1 or density(sizes) > DENSE:
        return []
    edges = {0, sizes.out[-1]}
    for tap in range(sizes.kernel[-1]):
        edges.update(sizes.reading(-1, tap))
    bands = sorted(edges)
    return bands if min(b - a for a, b in pairwise(bands)) >= FEWEST_COLUMNS else [0, sizes.out[-1]]


def _alike(sizes: Sizes, dim: int) -> int:
    """Return into what lengths a dimension of outputs can be cut so that the same taps read padding all along."""
    edges = [sizes.out[dim]]
    for tap in range(sizes.kernel[dim]):
        edges += sizes.reading(dim, tap)
    return math.gcd(*edges)


def density(sizes: Sizes) -> float:
    """Return which part of all taps, at all positions, reads a cell of the input."""
    part = 1.0
    for dim, kernel in enumerate(sizes.kernel):
        ends = [sizes.reading(dim, tap) for tap in range(kernel)]
        part *= sum(stop - start for start, stop in ends) / (kernel * sizes.out[dim])
    return part


def _pieces(row: int, target: Target) -> int:
    """Return how many pieces a panel has at most, whose columns lie in rows of this length."""
    width, of_row = target.lanes * target.vectors, ceiling(min(row, target.lanes * target.vectors), target.lanes)
    # A panel that begins within a row has one more.
    return min(width, width // row * of_row + of_row + 1)


class _Blocks(NamedTuple):
    """What a share is: so many panels, which are multiplied by so many filters, and how many shares that makes."""

    columns: int
    panels: int
    filters: int
    filters_of_block: int
    together: int


def _blocks(target: Target, sizes: Sizes, columns: int, row: int, of_panel: int) -> _Blocks:
    """Cut so many columns so that what belongs to a panel, of so many bytes, fits in the cache; and cut the filters."""
    width, terms = target.lanes * target.vectors, sizes.channels * sizes.taps
    panels_in_all = max(1, ceiling(columns, width))
    # Panels of few terms are small, and more of them write longer runs of outputs.
    most = max(1, min(max(MOST_PANELS, min(MOST_SMALL_PANELS, MANY_TERMS // terms)), BLOCK_BYTES // of_panel))
    products = sizes.groups * sizes.filters * terms * sizes.batch * sizes.positions
    wanted = min(MOST_SHARES, max(1, ceiling(products, share_products(products, target.lanes))))
    at_once = _filters_at_once(sizes)
    if at_once < sizes.filters:  # which threads share, so that they need no blocks of columns
        column_blocks, panels = blocks(panels_in_all, most)
    else:
        for_threads = max(1, min(most, panels_in_all * sizes.groups // wanted))
        column_blocks, panels = blocks_for_two(panels_in_all, for_threads)
    # Each block of filters copies the panels again, which is to take little of its time; an even number shares better.
    fewest = MOST_COPIES * _copies(sizes, target, row) * target.lanes
    split = min(max(1, wanted // (column_blocks * sizes.groups)), max(1, int(sizes.filters / fewest)))
    split = max(split, ceiling(sizes.filters, at_once))
    split += split % 2 if split > 1 else 0
    # A tile of filters is never cut.
    tiles = ceiling(sizes.filters, target.filters)
    filters, tiles_of_block = blocks(tiles, ceiling(tiles, split))
    # A panel whose cells are read often stays in the first cache; with few terms, rows of outputs are written at once.
    together = 1 if terms >= MANY_TERMS else panels
    return _Blocks(column_blocks, panels, filters, tiles_of_block * target.filters, together)


def _filters_at_once(sizes: Sizes) -> int:
    """Return the most filters of a share: all, unless there are far more of them than columns."""
    many = sizes.filters > max(MANY_FILTERS, MANY_MORE * sizes.batch * sizes.positions)
    return FILTERS_AT_ONCE if many else sizes.filters


def plan_of(
    target: Target, sizes: Sizes, *, has_bias: bool, memory: int = BLOCK_BYTES, skips: bool = True
) -> Planned | None:
    """Plan a convolution in blocks of about so many bytes, or return nothing if the kernels do not serve it.

    There are few enough panels and filters in a block for the cache, and enough blocks for threads to share. `skips`
    says whether taps that read padding alone may be left out: not where filters are infinite, as 0 times that is nan.
    """
    width, terms = target.lanes * target.vectors, sizes.channels * sizes.taps
    bands = bands_of(sizes) if skips else []
    linear = is_linear(sizes) and not bands
    row = sizes.positions if linear else sizes.out[-1] // max(1, len(bands) - 1)
    # A panel may lie in several bands, each of which begins a piece.
    entries = max((_pieces(b - a, target) for a, b in pairwise(bands)), default=_pieces(row, target)) + len(bands)
    if len(sizes.size) > MOST_OUTER + 1 or sizes.taps * entries > MOST_ENTRIES:
        return None
    table, has_runs = 8 * ENTRY * sizes.taps * entries, terms > RUN
    of_panel = sizes.number * RUN * width + table + sizes.number * width * _filters_at_once(sizes) * has_runs
    lone = 0 if bands else lone_columns(target, sizes)
    # Less memory than a block may take is like panels of more bytes.
    of_panel = of_panel * BLOCK_BYTES // min(BLOCK_BYTES, max(1, memory))
    block = _blocks(target, sizes, sizes.batch * sizes.positions - lone, row, of_panel)
    # Where the kernel is sparse, each panel has terms of its own.
    together = 1 if bands else block.together

    layout = Layout()
    # A lone column lies where the panels do.
    layout.add(sizes.number * (max(together * RUN * width, terms if lone else 0) + target.lanes))
    places = {
        "at_tables": layout.add(block.panels * table),
        "at_pieces": layout.add(8 * block.panels),
        "at_images": layout.add(8 * block.panels * (3 * width + 1)),
        "at_active": layout.add(8 * block.panels * (sizes.taps + 1)),
        "at_sums": layout.add(sizes.number * block.panels * block.filters_of_block * width * has_runs),
    }
    shares = sizes.groups * block.columns * block.filters
    lists = sizes.outer(len(sizes.size) - 1)
    values = PLAN.packed(
        **{"phases": 2 if bands else 1, "shares_first": sizes.groups * sizes.filters, "shares_last": shares},
        **{"panels": block.panels, "together": together, "lone": lone, "pieces": entries, "bias_step": int(has_bias)},
        **{"column_blocks": block.columns, "filter_blocks": block.filters},
        **{"filters_of_block": block.filters_of_block},
        **{"asked_terms": _asked_terms(target, sizes, block.filters_of_block) if linear else 0},
        **_numbers(sizes, bands, linear, lists),
        **places,
        **addresses(lists),
    )
    shown = {"positions": block.panels * width, "filters": min(block.filters_of_block, sizes.filters)}
    return Planned(
        SPARSE if bands else steps_of(sizes), values, tuple(lists.values()), shares, layout.bytes, shown,
        is_plain=not bands, cycles=_cycles(sizes, target, row, block.filters) * (density(sizes) if bands else 1.0),
        roundings=in_runs(terms, RUN, target.lanes),
    )  # fmt: skip


def _numbers(sizes: Sizes, bands: list[int], linear: bool, lists: dict[str, array[int]]) -> dict[str, int]:
    """Return the fields that describe the convolution, and add the lists of taps and of bands of the last dimension."""
    lists["bands"] = numbers(bands)
    lists["row_taps"] = numbers([tap * sizes.dilation[-1] - sizes.before[-1] for tap in range(sizes.kernel[-1])])
    rows = sizes.positions // sizes.out[-1]
    # Of a band, rows of all samples through which the same taps read padding follow one another.
    rows_of_block = _alike(sizes, -2) if bands and len(sizes.size) > 1 else rows
    return {
        **{"channels": sizes.channels, "terms": sizes.channels * sizes.taps, "filters": sizes.filters},
        **{"taps": sizes.taps, "taps_of_row": sizes.kernel[-1], "columns": sizes.batch * sizes.positions},
        **{"rows": rows, "rows_of_band": sizes.batch * rows, "rows_of_block": rows_of_block},
        **{"rows_of_samples": sizes.batch * rows_of_block, "width": sizes.out[-1]},
        **{"positions": sizes.positions, "input_width": sizes.size[-1]},
        **{"step": sizes.stride[-1], "is_linear": int(linear), "x_channel": sizes.cells},
        **{"x_sample": sizes.in_channels * sizes.cells, "out_sample": sizes.out_channels * sizes.positions},
        **{"outer": len(sizes.size) - 1},
    }


def _asked_terms(target: Target, sizes: Sizes, filters: int) -> int:
    """Return of how many terms each tile asks for cells, so that all ask for those of a run; 0 if it is no use."""
    if sizes.taps > 1 or sizes.number * sizes.batch * sizes.in_channels * sizes.cells < FAR_BYTES:
        return 0
    return ceiling(min(RUN, sizes.channels), ceiling(filters, target.filters))


def lone_columns(target: Target, sizes: Sizes) -> int:
    """Return how many columns are left over that a vector of their own would waste; 0 if that is little."""
    vectors, left = divmod(sizes.batch * sizes.positions, target.lanes)
    return left if left <= MOST_LONE and vectors <= MOST_VECTORS_BESIDE else 0


def _copies(sizes: Sizes, target: Target, row: int) -> float:
    """Estimate the time of copying one term of a column, whose columns lie in rows of this length."""
    row = min(row, target.lanes * target.vectors)
    return ceiling(row, target.lanes) / row * CYCLES_OF_PIECE[steps_of(sizes)]


def _cycles(sizes: Sizes, target: Target, row: int, filter_blocks: int) -> float:
    """Estimate the time: products of whole tiles, and the copy of each panel, piece by piece."""
    terms, columns = sizes.channels * sizes.taps, sizes.batch * sizes.positions
    lone = lone_columns(target, sizes)
    vectors = ceiling(columns - lone, target.lanes) + lone / target.lanes * CYCLES_OF_LONE
    filters = ceiling(sizes.filters, target.filters // 2) * (target.filters // 2)
    row = min(row, target.lanes * target.vectors)
    tables = ceiling(row, target.lanes) / row * columns * sizes.taps * CYCLES_OF_TABLE
    copies = columns * _copies(sizes, target, row) * filter_blocks
    stored = filters * vectors * CYCLES_OF_STORE
    return sizes.groups * (terms * (filters * vectors + copies) + stored + tables * filter_blocks)
