"""The plans of `last_depthwise` and `last_depthwise_weights`: what a share is, and how long it takes."""

from __future__ import annotations

from array import array

from .outer import FIELDS, MOST_OUTER
from .record import Record
from .share import PLAN_HEAD
from .sizes import Planned, Sizes, addresses, blocks, ceiling, share_products
from .target import Target

WHOLE, NARROW = "whole", "narrow"
"""The variants: with a vector of channels and more, where the last vector begins early enough to be a whole one, and
with fewer."""
SHAPES = {f"{taps}s{stride}": (taps, stride) for taps in (3, 5, 7) for stride in (1, 2)}
"""The variants for so many taps of a row, side by side, and a stride, whose cells are loaded once for all of them."""
VARIANTS = (WHOLE, NARROW, *SHAPES)
MOST_SHARES = 64
"""Gradients of filters have no more shares than this, each with sums of its own."""
CYCLES_OF_PRODUCT, CYCLES_OF_COLUMN, CYCLES_OF_ROW, CYCLES_OF_FILTER, CYCLES_OF_SUM = 1.2, 4.0, 60.0, 60.0, 2.0
"""About how many vectors are multiplied in the time that a product takes, whose cell is loaded, an output, a row of
them, a vector of filters that is turned, and a vector of sums that is loaded and stored."""

PLAN = Record(
    *PLAN_HEAD,
    *FIELDS,
    *("channels", "pitch", "rows", "all_rows", "rows_of_share", "columns", "columns_of_share", "column_blocks"),
    *("width", "step", "apart", "before", "inner_start", "inner_stop", "taps", "taps_of_row", "columns_of_taps"),
    *("x_sample", "x_ahead", "bias_step", "first_tap", "next_tap", "sharers", "taps_of_last"),
)
"""The plan in memory. Rows are counted through those of all samples. Outputs from `inner_start` on, and before
`inner_stop`, read no padding in their row. The next row of outputs reads cells `x_ahead` further on. `columns_of_taps`
has the first column whose cell lies inside by each tap of a row, and the one after the last. Filters are read from the
tap `first_tap` on."""


def _values(target: Target, sizes: Sizes, cut: dict[str, int], *, flipped: bool) -> tuple[list[int], list[array[int]]]:
    """Return the plan in memory, with what depends on the product, and the lists that it points to."""
    first, last = 0, sizes.out[-1]
    for tap in range(sizes.kernel[-1]):
        start, stop = sizes.reading(-1, tap)
        first, last = max(first, start), min(last, stop)
    lists = sizes.outer(len(sizes.size) - 1) | {"columns_of_taps": sizes.columns_of_taps()}
    rows, ahead = sizes.positions // sizes.out[-1], sizes.stride[-2] if len(sizes.size) > 1 else 1
    values = PLAN.packed(
        **{"outer": len(sizes.size) - 1, **addresses(lists)},
        **{"channels": sizes.in_channels, "pitch": ceiling(sizes.in_channels, target.lanes) * target.lanes},
        **{"rows": rows, "all_rows": sizes.batch * rows, "columns": sizes.out[-1]},
        **{"width": sizes.size[-1], "step": sizes.stride[-1], "apart": sizes.dilation[-1], "before": sizes.before[-1]},
        **{"inner_start": first, "inner_stop": max(first, last), "taps": sizes.taps, "taps_of_row": sizes.kernel[-1]},
        **{"x_sample": sizes.in_channels * sizes.cells, "x_ahead": ahead * sizes.in_channels * sizes.size[-1]},
        **{"first_tap": sizes.taps - 1 if flipped else 0, "next_tap": -1 if flipped else 1},
        **cut,
    )
    return values, list(lists.values())


def _variant(target: Target, sizes: Sizes) -> str:
    if sizes.in_channels < target.lanes:
        return NARROW
    shape = f"{sizes.kernel[-1]}s{sizes.stride[-1]}"
    return shape if shape in SHAPES and sizes.dilation[-1] == 1 else WHOLE


def _serves(sizes: Sizes) -> bool:
    depthwise = sizes.channels == sizes.filters == 1
    return depthwise and len(sizes.size) <= MOST_OUTER and bool(sizes.batch * sizes.cells * sizes.positions)


def plan_of_outputs(target: Target, sizes: Sizes, *, has_bias: bool, flipped: bool = False) -> Planned | None:
    """Plan the outputs, by the filters as they are or flipped, or return nothing if this family does not serve them."""
    if not _serves(sizes):
        return None
    vectors, rows = ceiling(sizes.in_channels, target.lanes), sizes.batch * sizes.positions // sizes.out[-1]
    of_row = vectors * sizes.out[-1] * (sizes.taps * CYCLES_OF_PRODUCT + CYCLES_OF_COLUMN) + CYCLES_OF_ROW
    of_filters = sizes.taps * vectors * CYCLES_OF_FILTER
    products = sizes.batch * sizes.positions * sizes.in_channels * sizes.taps
    shares = ceiling(products, share_products(products, target.lanes))
    row_blocks, rows_of_share = blocks(rows, max(1, rows // shares))
    column_blocks, columns = blocks(sizes.out[-1], ceiling(sizes.out[-1], max(1, shares // row_blocks)))
    cut = {
        **{"phases": 2, "shares_first": sizes.taps, "shares_last": row_blocks * column_blocks},
        **{"rows_of_share": rows_of_share, "columns_of_share": columns, "column_blocks": column_blocks},
        **{"bias_step": int(has_bias), "sharers": 0, "taps_of_last": 0},
    }
    values, lists = _values(target, sizes, cut, flipped=flipped)
    return Planned(
        _variant(target, sizes), values, tuple(lists), sizes.taps + row_blocks * column_blocks,
        16 * (sizes.taps // sizes.kernel[-1]), {"rows": rows_of_share, "columns": columns},
        sizes.number * sizes.taps * vectors * target.lanes, is_plain=False, cycles=rows * of_row + of_filters,
    )  # fmt: skip


def plan_of_weights(target: Target, sizes: Sizes) -> Planned | None:
    """Plan the gradient of the filters, or return nothing if this family does not serve it."""
    if not _serves(sizes):
        return None
    vectors, rows = ceiling(sizes.in_channels, target.lanes), sizes.batch * sizes.positions // sizes.out[-1]
    of_row = vectors * sizes.taps * (sizes.out[-1] * CYCLES_OF_PRODUCT + CYCLES_OF_SUM) + CYCLES_OF_ROW
    products = sizes.batch * sizes.positions * sizes.in_channels * sizes.taps
    shares = min(MOST_SHARES, ceiling(products, share_products(products, target.lanes)))
    sharers, rows_of_share = blocks(rows, ceiling(rows, shares))
    last, taps = blocks(sizes.taps, max(1, 4096 // sizes.in_channels))
    cut = {
        **{"phases": 2, "shares_first": sharers, "shares_last": last},
        **{"rows_of_share": rows_of_share, "columns_of_share": sizes.out[-1], "column_blocks": 1},
        **{"bias_step": 0, "sharers": sharers, "taps_of_last": taps},
    }
    values, lists = _values(target, sizes, cut, flipped=False)
    nbytes = sizes.number * sizes.taps * vectors * target.lanes
    return Planned(
        _variant(target, sizes), values, tuple(lists), sharers + last, 0, {"rows": rows_of_share},
        sharers * nbytes, is_plain=False,
        cycles=rows * of_row + sizes.taps * (sharers * vectors * CYCLES_OF_SUM + sizes.in_channels),
    )  # fmt: skip
