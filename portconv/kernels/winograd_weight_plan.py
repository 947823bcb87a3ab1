"""The plan of gradients of filters by Winograd's tiles: what a share of `winograd_weights` is, and its time."""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

from .record import Record
from .row_lines import lines_of
from .sizes import Layout, Planned, Sizes, addresses, blocks, ceiling, share_products
from .target import Target
from .weight_plan import ALL_SUMS_BYTES, CUTS, MOST_SHARES, Blocks, Cut, lists_of_cells, values_of, vectors_of_tile
from .weight_plan import PLAN as WEIGHTS
from .winograd_plan import (
    ENTRY,
    GOAL,
    MOST_ENTRIES,
    PLAN,
    ROUNDINGS_OF_OUTPUT,
    TAPS,
    described,
    lists_of,
    pieces_of,
    planes_of,
    serves,
    tiles_of,
    variant_of,
)
from .winograd_schemes import SCHEMES, Scheme

VARIANTS = tuple(SCHEMES)
SHARE_BYTES, MOST_BYTES = 900 << 10, 24 << 20
"""About how many bytes a share works on, to stay in the second cache; and the most of all that a call needs."""
CYCLES_OF_INPUT, CYCLES_OF_GRADIENT, CYCLES_OF_SUM = {1: 70.0, 2: 120.0}, {1: 170.0, 2: 260.0}, 3.0
CYCLES_OF_TILE, CYCLES_OF_BLOCK, CYCLES_OF_WEIGHT = 60.0, 2500.0, 60.0
"""About how many vectors are multiplied in the time in which one piece of inputs or one vector of gradients is
transformed (by stride), one vector of sums is added to, what a tile of sums and a block of tiles take beside that, and
in which a vector of sums becomes taps."""

AHEAD = len(PLAN.names)
"""The plan of `weights` follows that of the transforms."""
PLACES = Record("at_places", "at_tables", "at_goals", "at_rows", "at_panels")
"""What follows both: where sums of places lie in the scratch memory, what tiles read and what they write, gradients
that are transformed, and gradients that are turned."""


class _Share(NamedTuple):
    """What a share is: vectors of filters in a tile, tiles, channels, and how many shares have the same sums."""

    vectors: int
    tiles: int
    channels: int
    sharers: int


def _bytes(target: Target, sizes: Sizes, scheme: Scheme, share: _Share) -> int:
    """Return about how many bytes a share works on."""
    width, filters = target.lanes * target.vectors, share.tiles * share.vectors * target.lanes
    terms = share.channels * planes_of(sizes)
    return sizes.number * scheme.products * (terms * width + width * filters + filters * terms + target.lanes * width)


def _cycles(target: Target, sizes: Sizes, scheme: Scheme, share: _Share) -> float:
    """Return about how many vectors are multiplied in the time that a call takes."""
    lanes, width, stride = target.lanes, target.lanes * target.vectors, scheme.stride
    terms, tiles = sizes.channels * planes_of(sizes), tiles_of(sizes)
    vectors = ceiling(sizes.filters, share.vectors * lanes) * share.vectors
    filter_blocks = ceiling(vectors, share.tiles * share.vectors)
    channel_blocks = ceiling(sizes.channels, share.channels)
    rows = ceiling(terms, target.filters // 2) * (target.filters // 2)
    blocks_of_tiles = ceiling(tiles, width)
    products = scheme.products * tiles * vectors * rows
    runs = blocks_of_tiles * scheme.products * ceiling(terms, target.filters) * ceiling(vectors, share.vectors)
    added = blocks_of_tiles * scheme.products * terms * vectors * CYCLES_OF_SUM + runs * CYCLES_OF_TILE
    columns = ceiling(sizes.out[-1], 2)
    pieces = ceiling(min(columns, width), lanes) / min(columns, width) * tiles
    transformed = pieces * terms * CYCLES_OF_INPUT[stride] * filter_blocks
    transformed += pieces * vectors * lanes * CYCLES_OF_GRADIENT[stride] * channel_blocks
    of_blocks = blocks_of_tiles * filter_blocks * channel_blocks * CYCLES_OF_BLOCK
    ended = vectors * terms * share.sharers * CYCLES_OF_WEIGHT
    return sizes.groups * (products + added + transformed + of_blocks + ended)


def _best(target: Target, sizes: Sizes, scheme: Scheme) -> _Share:
    vectors = vectors_of_tile(target, sizes.filters)
    width, all_tiles = vectors * target.lanes, ceiling(sizes.filters, vectors * target.lanes)
    products = sizes.batch * sizes.positions * sizes.out_channels * sizes.channels * sizes.taps
    wanted = min(MOST_SHARES, max(1, ceiling(products, share_products(products, target.lanes))))
    all_sums = sizes.number * sizes.groups * all_tiles * width * sizes.channels * sizes.taps
    units, found = ceiling(tiles_of(sizes), target.lanes * target.vectors), []
    channels = sorted({blocks(sizes.channels, ceiling(sizes.channels, cuts))[1] for cuts in CUTS})
    tiles = sorted({blocks(all_tiles, ceiling(all_tiles, cuts))[1] for cuts in CUTS})
    for each, tile in product(channels, tiles):
        of_part = sizes.groups * ceiling(sizes.channels, each) * ceiling(all_tiles, tile)
        sharers = max(1, min(ceiling(wanted, of_part), ALL_SUMS_BYTES // all_sums, units))
        found.append(_Share(vectors, tile, each, sharers))

    def time(share: _Share) -> tuple[bool, float]:
        nbytes = _bytes(target, sizes, scheme, share)
        fits = nbytes <= SHARE_BYTES
        return not fits, _cycles(target, sizes, scheme, share) if fits else nbytes

    return min(found, key=time)


def plan_of(target: Target, sizes: Sizes) -> Planned | None:
    """Plan the gradient of the filters, or return nothing if this family does not serve it."""
    variant = variant_of(sizes)
    if variant is None or not serves(sizes) or sizes.kernel[-2:] != (TAPS, TAPS):
        return None
    entries = pieces_of(sizes, target)
    if planes_of(sizes) * entries > MOST_ENTRIES:
        return None
    scheme = SCHEMES[variant]
    share, lanes, width = _best(target, sizes, scheme), target.lanes, target.lanes * target.vectors
    terms, filters = share.channels * planes_of(sizes), share.tiles * share.vectors * lanes
    # The rows of cells that `weights` knows are not those of tiles: it is told of one share of all positions.
    blocks_ = Blocks(share.vectors, share.tiles, share.channels, 1, sizes.out[-1], share.sharers)
    cut = Cut(sizes, lines_of(sizes), blocks_, lanes, in_place=True)
    layout = Layout()
    layout.add(sizes.number * scheme.products * (terms * width + lanes))
    ours = {
        "at_tables": layout.add(8 * planes_of(sizes) * entries * ENTRY),
        "at_goals": layout.add(8 * (width * GOAL + 1)),
        "at_rows": layout.add(sizes.number * scheme.products * lanes * (width + lanes)),
        "at_panels": layout.add(sizes.number * scheme.products * width * filters),
        "at_places": layout.add(sizes.number * scheme.products * terms * filters),
    }
    places = {
        "at_terms": layout.add(8 * terms),
        "at_sums": layout.add(sizes.number * terms * TAPS**2 * filters if cut.phases == 1 else 0),
    }
    shared = 0 if cut.phases == 1 else sizes.number * share.sharers * cut.all_sums
    if layout.bytes + shared > MOST_BYTES:
        return None
    lists, cells = lists_of(sizes), lists_of_cells(cut)
    none = dict.fromkeys(("at_lines", "at_entries", "at_order", "at_panel"), 0)
    units = ceiling(tiles_of(sizes), width)
    of_share = ceiling(units, share.sharers) + share.sharers
    of_weights, adding = values_of(cut, places | none | addresses(cells), units)
    head = dict(zip(WEIGHTS.names[:3], of_weights[:3], strict=True))
    of_tiles = PLAN.packed(
        **head,
        **described(sizes),
        **_unused(sizes, entries, width),
        **{name: ours[name] for name in ("at_tables", "at_goals")},
        **addresses(lists),
    )
    values = [*of_tiles, *of_weights, *PLACES.packed(**ours)]
    shown = {"tiles": width, "filters": min(sizes.filters, filters), "channels": share.channels}
    return Planned(
        variant, values, (*lists.values(), *cells.values()), adding, layout.bytes, shown, shared,
        is_plain=False, cycles=_cycles(target, sizes, scheme, share),
        roundings=math.ceil(scheme.excess_of_weights * (min(width, tiles_of(sizes)) + of_share + ROUNDINGS_OF_OUTPUT)),
    )  # fmt: skip


def _unused(sizes: Sizes, entries: int, width: int) -> dict[str, int]:
    """Return the fields of `winograd` that these transforms need, and zeros for the others."""
    names = ("pitch", "bias_step", "column_blocks", "filter_blocks", "filters_of_block", "filters_of_share", "lone")
    fields = dict.fromkeys((*names, "tiles_first", "at_sums", "at_filters", "at_taps"), 0)
    return fields | {"tiles_of_block": width, "pieces": entries}
