"""The plan of Winograd's tiles: what a share of `winograd` is, and how long it takes."""

from __future__ import annotations

import math
from array import array
from itertools import product

from .outer import FIELDS, MOST_OUTER
from .record import Record
from .share import PLAN_HEAD
from .sizes import Layout, Planned, Sizes, addresses, blocks, ceiling, in_runs, numbers
from .target import Target
from .values import WHOLE
from .winograd_schemes import SCHEMES, WHOLE_SCHEMES, Scheme

VARIANTS = tuple(SCHEMES)
RUNS = {"float": 256, "double": 64}
"""So many terms are added up one after the other, by the type of numbers: the bound of the error of reproducible sums,
which are of float64, is in proportion to it."""
WHOLE_RUN = 256
"""The same of integers, whose sums are exact."""
FILTERS_AT_ONCE = 32
"""The sums of so many filters stay in the cache until they are transformed."""
FEW_SHARES, MOST_SHARES, FEWEST_FILTERS = 4, 16, 128
"""Filters are cut where there are fewer shares than the first number, to no fewer filters than the last: each share
transforms inputs. The first phase has no more shares than the second number."""
MANY_BYTES, MANY_TERMS = 1 << 20, 256
"""Where transformed filters take more bytes than this, and more than the inputs, each share transforms its own. With
more terms than the second number it has half as many filters, so that they stay in the cache."""
TRANSFORMED = 1 << 11
"""About so many filters of one channel are transformed in one share."""
MOST_ENTRIES = 1 << 13
"""The most parts of a kernel times pieces of a share, so that the tables stay in the cache."""
CYCLES_OF_INPUT, CYCLES_OF_OUTPUT = {4: 60.0, 5: 120.0, 6: 180.0}, {4: 50.0, 5: 70.0, 6: 120.0}
CYCLES_OF_FILTER, CYCLES_OF_COPY = 150.0, 15.0
"""About how many vectors are multiplied in the time in which one piece of inputs or one vector of outputs is
transformed, by the places of a tile, or one of filters, and one part of a filter is copied."""
MOST_LONE, LOADED_AND_MULTIPLIED, CYCLES_OF_TOTAL = 4, 2.0, 10.0
"""The most tiles that stand alone, where the others fill whole vectors; what a product of theirs takes, and a sum of
lanes."""
CYCLES_OF_TILE, CYCLES_OF_BLOCK = 100.0, 1500.0
"""What a tile of sums takes beside its products, and a block of columns beside its tiles: its tables."""
CYCLES_OF_PHASE = 12_000.0
"""What the first phase takes beside its work: threads wait for one another."""
ROUNDINGS_OF_OUTPUT = 4
"""Two sums in a row along each of two dimensions bring the sums of places into outputs."""
TAPS = 3
"""The taps of a part, along each dimension."""
WORTH = 0.75
"""A kernel is cut into parts if their tiles have at most this part of its products."""
ENTRY, FIRST_ROW, GOAL = 8, 3, 4
"""The numbers that say what a piece reads: where, its lane, a bit for a cell beyond 64 of each row, and from the number
`FIRST_ROW` on the cells of each row; and what a run writes."""

PLAN = Record(
    *PLAN_HEAD,
    *("groups", "filters", "terms", "planes", "pitch"),
    *("rows", "height", "width", "tile_rows", "tile_columns", "tiles", "positions"),
    *("input_height", "input_width", "top", "left", "x_sample", "x_channel", "out_sample", "bias_step"),
    *FIELDS,
    *("tiles_of_block", "column_blocks", "filter_blocks", "filters_of_block", "pieces", "filters_of_share"),
    *("lone", "tiles_first", "at_tables", "at_goals", "at_sums", "at_filters", "at_taps"),
    *("channels", "taps", "parts", "part_places", "part_taps"),
)
"""The plan in memory. A plane of the kernel has so many `parts` of 3x3 taps, each of which begins at a row and a column
of `part_places`; `planes` counts the parts of all planes. `part_taps` has the taps of each, or -1. `pitch` is the
length of a transformed filter, and `rows` counts the planes of outputs of a sample. The last `lone` tiles have a block
each, and are multiplied term by term (see `lone`)."""


def serves(sizes: Sizes) -> bool:
    """Return whether tiles of the 3x3 parts of a plane have its stride and dilation, and fewer products.

    Where a filter has one channel, and a channel one filter, the transforms take longer than all products.
    """
    last, is_depthwise = slice(-2, None), sizes.channels == sizes.filters == 1
    if is_depthwise or not 2 <= len(sizes.size) <= MOST_OUTER or min(sizes.kernel[last]) < TAPS:
        return False
    scheme = _scheme(sizes)
    if scheme is None or sizes.dilation[last] != (1, 1):
        return False
    return scheme.products * parts_of_plane(sizes) <= WORTH * scheme.size**2 * math.prod(sizes.kernel[last])


def variant_of(sizes: Sizes) -> str | None:
    """Return the tiles that have the stride of the last two dimensions, or nothing if none do."""
    for name, scheme in schemes_of(sizes).items():
        if sizes.stride[-2:] == (scheme.stride, scheme.stride):
            return name
    return None


def _scheme(sizes: Sizes) -> Scheme | None:
    name = variant_of(sizes)
    return None if name is None else schemes_of(sizes)[name]


def schemes_of(sizes: Sizes) -> dict[str, Scheme]:
    """Return the tiles that there are for a type of numbers."""
    return WHOLE_SCHEMES if sizes.element in WHOLE else SCHEMES


def parts_of(kernel: int) -> list[tuple[int, int]]:
    """Cut the taps of a dimension into parts: return where each begins, and its first tap that no other part has.

    The last part begins early enough to lie in the kernel, so that it reads no other cells.
    """
    return [(min(first, kernel - TAPS), first) for first in range(0, kernel, TAPS)]


def parts_of_plane(sizes: Sizes) -> int:
    """Return how many parts a plane of the kernel has."""
    return math.prod(len(parts_of(kernel)) for kernel in sizes.kernel[-2:])


def planes_of(sizes: Sizes) -> int:
    """Return how many parts the planes of a kernel have, each of which is a term of the sums for each channel."""
    return math.prod(sizes.kernel[:-2]) * parts_of_plane(sizes)


def _parts(sizes: Sizes) -> dict[str, array[int]]:
    """Return the lists that say where the parts of a plane are, and which taps the parts of all planes have."""
    height, width = sizes.kernel[-2:]
    places, taps = [], []
    parts = list(product(parts_of(height), parts_of(width)))
    for (top, _), (left, _) in parts:
        places += [top, left]
    for plane in range(math.prod(sizes.kernel[:-2])):
        for (top, first_row), (left, first_column) in parts:
            for row, column in product(range(top, top + TAPS), range(left, left + TAPS)):
                is_own = row >= first_row and column >= first_column
                taps.append((plane * height + row) * width + column if is_own else -1)
    return {"part_places": numbers(places), "part_taps": numbers(taps)}


def _tile_rows(sizes: Sizes) -> tuple[int, int]:
    """Return the rows and the columns of tiles of a plane."""
    scheme = _scheme(sizes)
    size = 2 if scheme is None else scheme.size
    return ceiling(sizes.out[-2], size), ceiling(sizes.out[-1], size)


def pieces_of(sizes: Sizes, target: Target) -> int:
    """Return how many pieces a share's tiles have at most."""
    width, row = target.lanes * target.vectors, _tile_rows(sizes)[1]
    of_row = ceiling(min(row, width), target.lanes)
    return min(width, width // row * of_row + of_row + 1)


def plan_of(target: Target, sizes: Sizes, *, has_bias: bool) -> Planned | None:
    """Plan a convolution, or return nothing if the kernels do not serve it.

    Each share has a few vectors of tiles, and some of the filters where there are few tiles.
    """
    variant = variant_of(sizes)
    if variant is None or not serves(sizes) or planes_of(sizes) * pieces_of(sizes, target) > MOST_ENTRIES:
        return None
    scheme = schemes_of(sizes)[variant]
    products = scheme.products
    width, terms = target.lanes * target.vectors, sizes.channels * planes_of(sizes)
    tiles = tiles_of(sizes)
    lone = lone_tiles(target, tiles, terms)
    whole_blocks, vectors = blocks(ceiling(tiles - lone, target.lanes), target.vectors)
    column_blocks = whole_blocks + lone
    pitch = (ceiling(terms, target.lanes) + 1) * target.lanes
    of_tiles = sizes.number * products * (terms * width + target.lanes)
    all_tiles = whole_blocks * of_tiles + lone * sizes.number * products * (terms + target.lanes)
    tiles_first = _transforms_tiles_first(sizes, scheme.numbers, all_tiles)
    filters_of_block = _filters_of_block(sizes, terms, column_blocks, tiles_first=tiles_first)
    filter_blocks = ceiling(sizes.filters, filters_of_block)
    filters_of_share = max(1, ceiling(sizes.out_channels, MOST_SHARES), TRANSFORMED // max(1, terms))
    entries = pieces_of(sizes, target)

    parts = parts_of_plane(sizes)
    layout = Layout()
    layout.add(0 if tiles_first else of_tiles)
    places = {
        "at_tables": layout.add(8 * planes_of(sizes) * entries * ENTRY),
        "at_goals": layout.add(8 * (width * GOAL + 1)),
        "at_sums": layout.add(sizes.number * products * FILTERS_AT_ONCE * width),
        "at_filters": layout.add(sizes.number * scheme.numbers**2 * filters_of_block * pitch if tiles_first else 0),
        "at_taps": layout.add(sizes.number * TAPS**2 * (terms + target.lanes) * (parts > 1)),
    }
    lists, all_columns = lists_of(sizes), sizes.groups * column_blocks
    first = all_columns if tiles_first else ceiling(sizes.out_channels, filters_of_share)
    shares = filter_blocks * (sizes.groups if tiles_first else all_columns)
    values = PLAN.packed(
        **{"phases": 2, "shares_first": first, "shares_last": shares, "tiles_first": int(tiles_first)},
        **described(sizes),
        **{"pitch": pitch, "bias_step": int(has_bias), "tiles_of_block": vectors * target.lanes, "pieces": entries},
        **{"column_blocks": column_blocks, "filter_blocks": filter_blocks, "filters_of_block": filters_of_block},
        **{"filters_of_share": filters_of_share, "lone": lone},
        **places,
        **addresses(lists),
    )
    block = {"tiles": vectors * target.lanes, "filters": min(filters_of_block, sizes.filters)}
    return Planned(
        variant, values, tuple(lists.values()), shares, layout.bytes, block,
        sizes.groups * all_tiles if tiles_first else sizes.number * scheme.numbers**2 * sizes.out_channels * pitch,
        is_plain=sizes.element in WHOLE, cycles=_cycles(sizes, scheme, target, 1 if tiles_first else filter_blocks),
        roundings=_roundings(target, sizes, scheme),
    )  # fmt: skip


def tiles_of(sizes: Sizes) -> int:
    """Return how many tiles there are, of all samples."""
    return sizes.batch * math.prod(sizes.out[:-2]) * math.prod(_tile_rows(sizes))


def lists_of(sizes: Sizes) -> dict[str, array[int]]:
    """Return the lists that the transforms read."""
    return sizes.outer(len(sizes.size) - 2) | _parts(sizes)


def described(sizes: Sizes) -> dict[str, int]:
    """Return the fields that describe a convolution."""
    tile_rows, tile_columns = _tile_rows(sizes)
    return {
        **{"groups": sizes.groups, "filters": sizes.filters, "terms": sizes.channels * planes_of(sizes)},
        **{"planes": planes_of(sizes), "channels": sizes.channels, "taps": sizes.taps},
        **{"parts": parts_of_plane(sizes), "rows": math.prod(sizes.out[:-2]), "height": sizes.out[-2]},
        **{"width": sizes.out[-1], "tiles": tiles_of(sizes), "tile_rows": tile_rows, "tile_columns": tile_columns},
        **{"positions": sizes.positions, "input_height": sizes.size[-2], "input_width": sizes.size[-1]},
        **{"top": sizes.before[-2], "left": sizes.before[-1], "x_channel": sizes.cells},
        **{"x_sample": sizes.in_channels * sizes.cells, "out_sample": sizes.out_channels * sizes.positions},
        **{"outer": len(sizes.size) - 2},
    }


def _filters_of_block(sizes: Sizes, terms: int, column_blocks: int, *, tiles_first: bool) -> int:
    """Return by how many filters a share multiplies its tiles."""
    if tiles_first:
        return FILTERS_AT_ONCE if terms <= MANY_TERMS else FILTERS_AT_ONCE // 2
    split = ceiling(sizes.filters, ceiling(FEW_SHARES, column_blocks * sizes.groups))
    return ceiling(max(FEWEST_FILTERS, split), FILTERS_AT_ONCE) * FILTERS_AT_ONCE


def _roundings(target: Target, sizes: Sizes, scheme: Scheme) -> int:
    """Return how often a term is rounded, times what tiles have more of than windows (see `Scheme.excess`).

    The transforms of inputs and filters are exact. Parts of a plane have cells in common, each at most as many times as
    there are parts.
    """
    run = RUNS.get(sizes.element, WHOLE_RUN)
    terms = in_runs(sizes.channels * planes_of(sizes), run, target.lanes) + ROUNDINGS_OF_OUTPUT
    return math.ceil(scheme.excess * math.sqrt(parts_of_plane(sizes)) * terms)


def lone_tiles(target: Target, tiles: int, terms: int) -> int:
    """Return how many tiles are left over that take less time alone than in a vector."""
    vectors, left = divmod(tiles, target.lanes)
    return left if vectors and left <= MOST_LONE and left * _cycles_of_lone(target, terms) < terms else 0


def _cycles_of_lone(target: Target, terms: int) -> float:
    """Return the cycles of the products of a lone tile with one filter at one place."""
    return LOADED_AND_MULTIPLIED * ceiling(terms, target.lanes) + CYCLES_OF_TOTAL


def _transforms_tiles_first(sizes: Sizes, numbers: int, of_tiles: int) -> bool:
    """Return whether the first phase is to transform the inputs: they take so many bytes, and filters take more."""
    of_filters = sizes.number * numbers**2 * sizes.out_channels * sizes.channels * planes_of(sizes)
    return of_filters > MANY_BYTES and of_filters > sizes.groups * of_tiles


def _cycles(sizes: Sizes, scheme: Scheme, target: Target, filter_blocks: int) -> float:
    """Estimate the time: the products at all places, and the transforms of inputs, outputs and filters."""
    terms, planes = sizes.channels * planes_of(sizes), math.prod(sizes.out[:-2])
    rows, columns = _tile_rows(sizes)
    tiles = sizes.batch * planes * rows * columns
    lone = lone_tiles(target, tiles, terms)
    vectors, width = ceiling(tiles - lone, target.lanes), target.lanes * target.vectors
    pieces = ceiling(min(columns, width), target.lanes) / min(columns, width) * tiles
    filters = ceiling(sizes.filters, target.filters // 2) * (target.filters // 2)
    transforms = pieces * terms * CYCLES_OF_INPUT[scheme.places] * filter_blocks
    transforms += (vectors + lone) * filters * CYCLES_OF_OUTPUT[scheme.places]
    prepared = filters * ceiling(terms, target.lanes) * CYCLES_OF_FILTER
    prepared += filters * terms * CYCLES_OF_COPY * (parts_of_plane(sizes) > 1)
    products = scheme.products * filters * (terms * vectors + lone * _cycles_of_lone(target, terms))
    of_block = (
        scheme.products * ceiling(sizes.filters, target.filters) * CYCLES_OF_TILE + filter_blocks * CYCLES_OF_BLOCK
    )
    blocks_taken = ceiling(vectors, target.vectors) * of_block
    return sizes.groups * (products + transforms + prepared + blocks_taken) + CYCLES_OF_PHASE
