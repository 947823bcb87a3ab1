"""The plan of dense products: what a share of `panels` is, and how long the products take."""

from __future__ import annotations

from .emit import Record
from .outer import FIELDS, MOST_OUTER
from .share import PLAN_HEAD
from .sizes import SHARE_PRODUCTS, Layout, Planned, Sizes, addresses, blocks, ceiling, numbers
from .target import Target

RUN = 128
"""So many terms are added up one after the other."""
MOST_PANELS, BLOCK_BYTES = 4, 600 << 10
"""A share has at most so many panels, and takes about so many bytes, so that they stay in the second cache."""
MANY_TERMS = 512
"""With fewer terms all panels of a share are copied before the first filter multiplies them."""
MOST_SHARES, FEWEST_FILTERS = 16, 64
"""There are no more shares than this for the sake of threads, and filters are cut to this number: each share copies."""
MOST_ENTRIES = 1 << 14
"""The most taps times pieces of a panel, so that the tables stay in the cache."""
EVERY = {"full": 1, "halved": 2, "thirds": 3, "quarters": 4, "gathered": 0}
"""The distance of the cells that neighbouring columns read; 0 stands for other distances. A few vectors are loaded side
by side and every second, third or fourth number is taken, or each number is loaded on its own."""
VARIANTS = tuple(EVERY)
ENTRY = 3
"""The numbers that say what a piece reads for one tap."""
CYCLES_OF_PIECE = {"full": 5.5, "halved": 7.5, "thirds": 9.0, "quarters": 11.0, "gathered": 30.0}
CYCLES_OF_TABLE = 12.0
"""About how many vectors are multiplied in the time in which one is copied, and one entry of a table is made."""

PLAN = Record(
    *PLAN_HEAD,
    *("channels", "filters", "terms", "taps", "taps_of_row"),
    *("rows", "width", "positions", "columns"),
    *("input_width", "step", "is_linear", "x_sample", "x_channel", "out_sample", "bias_step"),
    *FIELDS,
    "row_taps",
    *("panels", "together", "column_blocks", "filter_blocks", "filters_of_block", "pieces"),
    *("at_tables", "at_pieces", "at_images", "at_sums"),
)
"""The plan in memory. `row_taps` has the first cell of each tap along the last dimension."""


def variant_of(stride: int) -> str:
    """Return the variant that reads cells at this distance."""
    return next((name for name, every in EVERY.items() if every == stride), "gathered")


def is_linear(sizes: Sizes) -> bool:
    """Return whether the cells that a tap reads follow one another from row to row, as the outputs do."""
    return sizes.size == sizes.out and set(sizes.stride) == {1}


def length_of_pieces(sizes: Sizes) -> int:
    """Return the length of the row, or of the sample, that is cut into pieces."""
    return sizes.positions if is_linear(sizes) else sizes.out[-1]


def _pieces(sizes: Sizes, width: int, lanes: int) -> int:
    """Return how many pieces a panel has at most."""
    row = length_of_pieces(sizes)
    # A panel that begins within a row has one more.
    return min(width, width // row * ceiling(min(row, width), lanes) + ceiling(min(row, width), lanes) + 1)


def plan_of(target: Target, sizes: Sizes, *, has_bias: bool, memory: int = BLOCK_BYTES) -> Planned | None:
    """Plan a convolution in blocks of about so many bytes, or return nothing if the kernels do not serve it.

    There are few enough panels and filters in a block for the cache, and enough blocks for threads to share.
    """
    width, terms = target.lanes * target.vectors, sizes.channels * sizes.taps
    columns, entries = sizes.batch * sizes.positions, _pieces(sizes, width, target.lanes)
    if len(sizes.size) > MOST_OUTER + 1 or sizes.taps * entries > MOST_ENTRIES:
        return None
    of_panel = 4 * RUN * width + 8 * ENTRY * sizes.taps * entries + (4 * width * sizes.filters if terms > RUN else 0)
    panels_in_all = ceiling(columns, width)
    most = max(1, min(MOST_PANELS, min(BLOCK_BYTES, memory) // of_panel))
    products = sizes.groups * sizes.filters * terms * columns
    wanted = min(MOST_SHARES, max(1, products // SHARE_PRODUCTS))
    column_blocks, panels = blocks(panels_in_all, max(1, min(most, panels_in_all * sizes.groups // wanted)))
    split = min(max(1, wanted // (column_blocks * sizes.groups)), max(1, sizes.filters // FEWEST_FILTERS))
    # A tile of filters is never cut.
    tiles = ceiling(sizes.filters, target.filters)
    filter_blocks, tiles_of_block = blocks(tiles, ceiling(tiles, split))
    filters_of_block = tiles_of_block * target.filters

    # A panel whose cells are read often stays in the first cache; with few terms, rows of outputs are written at once.
    together = 1 if terms >= MANY_TERMS else panels
    layout, table = Layout(), 8 * ENTRY * sizes.taps * entries
    layout.add(4 * (together * RUN * width + target.lanes))
    places = {
        "at_tables": layout.add(panels * table),
        "at_pieces": layout.add(8 * panels),
        "at_images": layout.add(8 * panels * (3 * width + 1)),
        "at_sums": layout.add(4 * panels * filters_of_block * width if terms > RUN else 0),
    }
    kernel, before = sizes.kernel[-1], sizes.before[-1]
    lists = sizes.outer(len(sizes.size) - 1)
    lists["row_taps"] = numbers([tap * sizes.dilation[-1] - before for tap in range(kernel)])
    shares = sizes.groups * column_blocks * filter_blocks
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares, "channels": sizes.channels, "terms": terms},
        **{"filters": sizes.filters, "taps": sizes.taps, "taps_of_row": kernel, "columns": columns},
        **{"rows": sizes.positions // sizes.out[-1], "width": sizes.out[-1], "positions": sizes.positions},
        **{
            "input_width": sizes.size[-1],
            "step": sizes.stride[-1],
            "is_linear": int(is_linear(sizes)),
            "bias_step": int(has_bias),
        },
        **{"x_sample": sizes.in_channels * sizes.cells, "x_channel": sizes.cells},
        **{"out_sample": sizes.out_channels * sizes.positions, "outer": len(sizes.size) - 1},
        **{"panels": panels, "together": together, "column_blocks": column_blocks, "filter_blocks": filter_blocks},
        **{"filters_of_block": filters_of_block, "pieces": entries},
        **places,
        **addresses(lists),
    )
    block = {"positions": panels * width, "filters": min(filters_of_block, sizes.filters)}
    return Planned(
        variant_of(sizes.stride[-1]), values, tuple(lists.values()), shares, layout.bytes, block, 0,
        _cycles(sizes, target, filter_blocks),
    )  # fmt: skip


def _cycles(sizes: Sizes, target: Target, filter_blocks: int) -> float:
    """Estimate the time: products of whole tiles, and the copy of each panel, piece by piece."""
    width, terms = target.lanes * target.vectors, sizes.channels * sizes.taps
    columns = ceiling(sizes.batch * sizes.positions, target.lanes) * target.lanes
    rows = ceiling(sizes.filters, target.filters // 2) * (target.filters // 2)
    row = min(length_of_pieces(sizes), width)
    pieces = ceiling(row, target.lanes) / row * columns
    copies = pieces * CYCLES_OF_PIECE[variant_of(sizes.stride[-1])] * filter_blocks
    return sizes.groups * terms * (rows * columns / target.lanes + copies) + CYCLES_OF_TABLE * pieces * sizes.taps
