"""The plan of `tall`: the tiles and shares of depthwise products with large kernels, and how long they take."""

from __future__ import annotations

import math
from array import array
from itertools import pairwise, product
from typing import NamedTuple

from .record import Record
from .row_plan import (
    COPIED,
    CYCLES_OF_COPY,
    CYCLES_OF_LINE,
    LOAD,
    MOST_BYTES,
    MOST_COLUMNS,
    MOST_DIMS,
    NO_EDGE,
    RUN,
    Lines,
    density,
    entries_of,
    lines_of,
    skips_taps,
)
from .sizes import Layout, Planned, Sizes, addresses, blocks, ceiling, numbers, share_products
from .target import Target

PLAN = Record(
    *COPIED,
    *("units", "units_of_share", "filters", "multiplier"),
    *("firsts", "firsts_of_share", "first_blocks", "rows_of_first", "lines_of_step", "lines_of_share"),
    *("columns", "columns_of_share", "column_blocks", "store_length"),
    *("height", "above", "row_step", "row_apart", "steps_apart", "rows_apart", "is_flat", "out_width"),
    *("x_channel", "out_channel", "bias_step"),
    *("rows_of_tap", "columns_of_tap", "taps_of_filter", "taps", "passes", "pass_count", "tiles", "tile_counts"),
    *("at_lines", "at_entries", "at_sums"),
)
"""The plan in memory, which begins with what `rows` copies.

A unit is a channel of one sample, with as many filters as `multiplier`. `firsts` are the positions along the first
dimension. `height` and `above` are the size and the padding of the dimension before the last one, and `row_step` and
`row_apart` its stride and dilation; `steps_apart` is by how many taps the kernel moves from one row of a tile to the
next. `taps` has the taps of the last two dimensions, row by row, and further rows that only later rows of a tile meet.
"""
TILE, PASS = 4, 4
"""The numbers of a tile: where it reads in the copy, where its outputs go, the row of its first output, and where its
last vector begins, which may overlap the one before. The numbers of a pass: where it reads, from the tile's first cell
on, its first number in a filter, its first tap in the list, and its columns of taps."""
PLACE_BITS = 32
"""A tap of the list has in so many low bits where it reads, and above them its number in a filter."""
HALF, LATENCY, LOOP, CYCLES_OF_TILE, CYCLES_OF_STORE = 0.5, 3.0, 0.25, 30.0, 3.0
"""About how many whole vectors are multiplied in the time of half a vector, until a sum can be added to, and that a tap
takes beside loads and products, and a tile, and the store or sum of a vector."""

STEPS = {1: "full", 2: "halved"}
"""The strides along the last dimension, and how cells are copied."""


class Shape(NamedTuple):
    """The rows and the most vectors of a tile, of whole or half vectors."""

    rows: int
    vectors: int
    half: bool = False

    @property
    def name(self) -> str:
        """How variants are called."""
        return f"{self.rows}x{self.vectors}{'half' if self.half else ''}"


SHAPES = {
    "avx512": (Shape(4, 4), Shape(7, 3), Shape(3, 4), Shape(4, 4, half=True), Shape(7, 3, half=True)),
    "avx2": (Shape(4, 3), Shape(3, 4)),
    "neon": (Shape(4, 4), Shape(3, 4)),
}
NAMES = {shape.name: shape for shapes in SHAPES.values() for shape in shapes}
VARIANTS = tuple(f"{steps}-{name}" for steps in STEPS.values() for name in NAMES)


class _Plan(NamedTuple):
    """What is chosen: the shape, the shares and the passes."""

    shape: Shape
    lanes: int
    columns_of_passes: list[tuple[int, int]]
    """The columns of taps of each pass: the first one, and the one after the last."""
    columns: int
    firsts: int
    units: int


def turns(sizes: Sizes) -> tuple[int, int]:
    """Return how far the rows of a tile are apart so that they read the same rows, and by how many taps it moves."""
    common = math.gcd(sizes.stride[-2], sizes.dilation[-2])
    return sizes.dilation[-2] // common, sizes.stride[-2] // common


def _chosen(sizes: Sizes, shape: Shape, lanes: int) -> _Plan | None:
    """Return the shares and passes for a shape, or nothing if its tiles are too high."""
    apart, moves = turns(sizes)
    height, width = sizes.kernel[-2:]
    count = ceiling(width, max(1, RUN // height))
    edges = [width * i // count for i in range(count + 1)]
    # All rows of a tile must meet some row of inputs; no tile may have rows beyond the last one.
    if height < moves * (shape.rows - 1) or sizes.out[-2] // apart < shape.rows:
        return None
    columns, is_flat = min(sizes.out[-1], MOST_COLUMNS), len(sizes.size) == 2
    products = columns * math.prod(sizes.out[1:-1]) * sizes.taps * sizes.filters
    wanted = share_products(sizes.batch * sizes.groups * sizes.out[0] * products)
    firsts = max(1, wanted // products)
    if is_flat:
        firsts = blocks(sizes.out[0], ceiling(firsts, shape.rows * apart) * shape.rows * apart)[1]
        firsts = min(sizes.out[0], ceiling(firsts, shape.rows * apart) * shape.rows * apart)
    else:
        firsts = blocks(sizes.out[0], firsts)[1]
    units = blocks(sizes.batch * sizes.groups, max(1, wanted // (products * firsts)))[1]
    return _Plan(shape, lanes, list(pairwise(edges)), columns, firsts, units)


def _starts(count: int, size: int) -> list[int]:
    """Return where runs of a size begin of which the last one ends with the others, if these are enough."""
    return [max(0, min(start, count - size)) for start in range(0, count, size)]


def _tiles(sizes: Sizes, lines: Lines, plan: _Plan, pitch: int) -> dict[int, list[tuple[int, ...]]]:
    """Return the tiles of a share by their number of vectors."""
    apart, _ = turns(sizes)
    rows, is_flat = plan.shape.rows, len(sizes.size) == 2
    height = plan.firsts if is_flat else sizes.out[-2]
    outer = [] if is_flat else [range(plan.firsts), *map(range, sizes.out[1:-2])]
    starts = [
        turn + apart * start for turn in range(apart) for start in _starts((height - turn - 1) // apart + 1, rows)
    ]
    pieces = _starts(plan.columns, plan.lanes)
    groups = blocks(len(pieces), plan.shape.vectors)[1]
    tiles: dict[int, list[tuple[int, ...]]] = {}
    for place in product(*outer):
        line = sum(at * s * stride for at, s, stride in zip(place, sizes.stride, lines.strides, strict=False))
        first = sum(at * math.prod(sizes.out[dim + 1 : -1]) for dim, at in enumerate(place))
        for row in starts:
            for at in range(0, len(pieces), groups):
                count = min(groups, len(pieces) - at)
                reads = (line + row * sizes.stride[-2]) * pitch + pieces[at]
                goal, last = (first + row) * sizes.out[-1] + pieces[at], pieces[at + count - 1] - pieces[at]
                tiles.setdefault(count, []).append((reads, goal, row, last))
    return tiles


def _lists(sizes: Sizes, lines: Lines, plan: _Plan, pitch: int) -> dict[str, array[int]]:
    """Return the lists that the kernels read; `pitch` is that of lines, of which each phase has a part."""
    outer, step, width = len(lines.padded), sizes.stride[-1], pitch // len(lines.phases)
    cells = [divmod(tap * sizes.dilation[-1], step) for tap in range(sizes.kernel[-1])]
    cells_of_row = [lines.phases.index(phase) * width + shift for shift, phase in cells]
    rows = range(sizes.kernel[-2] + turns(sizes)[1] * (plan.shape.rows - 1))
    taps: list[int] = []
    passes: list[int] = []
    for low, high in plan.columns_of_passes:
        start = len(taps)
        for row in rows:
            line, first = row * sizes.dilation[-2] * pitch, row * sizes.kernel[-1]
            taps += [line + cells_of_row[tap] + (first + tap << PLACE_BITS) for tap in range(low, high)]
        for number, place in enumerate(product(*map(range, sizes.kernel[:-2]))):
            sides = zip(place, sizes.dilation, lines.strides, strict=False)
            reads = sum(tap * apart * stride for tap, apart, stride in sides) * pitch
            passes += [reads, number * sizes.kernel[-2] * sizes.kernel[-1], start, high - low]
    tiles = _tiles(sizes, lines, plan, pitch)
    order = sorted(tiles)
    return {
        "padded": numbers(lines.padded),
        "befores": numbers(sizes.before[:outer]),
        "inputs": numbers(sizes.size[:outer]),
        "strides": numbers([math.prod(sizes.size[dim + 1 :]) for dim in range(outer)]),
        "row_phases": numbers(lines.phases),
        "taps": numbers(taps),
        "passes": numbers(passes),
        "tiles": numbers([number for count in order for tile in tiles[count] for number in tile]),
        "tile_counts": numbers([len(tiles.get(count + 1, ())) for count in range(plan.shape.vectors)]),
    }


def _cycles(sizes: Sizes, lines: Lines, plan: _Plan, vectors_copied: int, lists: dict[str, array[int]]) -> float:
    """Return about how many whole vectors are multiplied in the time that a share takes."""
    rows, size = plan.shape.rows, HALF if plan.shape.half else 1.0
    count = _line_count(sizes, lines, plan)
    copied = count * vectors_copied * CYCLES_OF_COPY[STEPS[sizes.stride[-1]]]
    _, moves = turns(sizes)
    of_tiles, height, of_column = 0.0, sizes.kernel[-2], sizes.taps // sizes.kernel[-2]
    for at, tiles in enumerate(lists["tile_counts"]):
        vectors = at + 1
        # Few rows of a tile read together at its ends, where loads, or a sum and the next one, take longer.
        of_rows = [max(size * n * vectors, size * LOAD * vectors + n / 2, LATENCY) + LOOP for n in range(1, rows + 1)]
        taps = 2 * moves * sum(of_rows[:-1]) + of_rows[-1] * (height - moves * (rows - 1))
        taps *= of_column * density(sizes, len(sizes.size) - 2)
        of_tiles += tiles * (taps + CYCLES_OF_TILE + CYCLES_OF_STORE * rows * vectors * len(lists["passes"]) // PASS)
    return plan.units * (copied + sizes.filters * of_tiles) + CYCLES_OF_LINE * count


def _line_count(sizes: Sizes, lines: Lines, plan: _Plan) -> int:
    beyond = (sizes.kernel[0] - 1) * sizes.dilation[0] + 1
    return ((plan.firsts - 1) * sizes.stride[0] + beyond) * lines.strides[0]


def _planned(sizes: Sizes, lines: Lines, plan: _Plan, steps: str, has_bias: bool) -> Planned | None:
    lanes, phases = plan.lanes, len(lines.phases)
    entries, line_count = entries_of(plan.columns, lines, lanes), _line_count(sizes, lines, plan)
    pitch, layout = entries * phases * lanes, Layout()
    layout.add(4 * line_count * pitch)
    places = {
        "at_lines": layout.add(8 * line_count),
        "at_entries": layout.add(16 * entries * phases),
        "at_sums": layout.add(4 * plan.shape.rows * plan.shape.vectors * lanes),
    }
    if layout.bytes > MOST_BYTES:
        return None
    lists, (apart, moves) = _lists(sizes, lines, plan, pitch), turns(sizes)
    first_blocks, column_blocks = ceiling(sizes.out[0], plan.firsts), ceiling(sizes.out[-1], plan.columns)
    units, skips = sizes.batch * sizes.groups, skips_taps(sizes, len(sizes.size) - 2)
    shares = ceiling(units, plan.units) * first_blocks * column_blocks
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares, "outer": len(lines.padded)},
        **{"width": sizes.size[-1], "step": sizes.stride[-1], "before": sizes.before[-1]},
        **{"entries": entries * phases, "entries_of_phase": entries},
        **{"units": units, "units_of_share": plan.units, "multiplier": sizes.filters, "taps_of_filter": sizes.taps},
        **{"filters": sizes.out_channels},
        **{"firsts": sizes.out[0], "firsts_of_share": plan.firsts, "first_blocks": first_blocks},
        **{"rows_of_first": math.prod(sizes.out[1:-1]), "lines_of_step": sizes.stride[0] * lines.strides[0]},
        **{"lines_of_share": line_count, "columns": sizes.out[-1], "columns_of_share": plan.columns},
        **{"column_blocks": column_blocks, "store_length": min(plan.columns, lanes)},
        **{"height": sizes.size[-2] if skips else NO_EDGE, "above": sizes.before[-2] if skips else 0},
        **{"row_step": sizes.stride[-2], "row_apart": sizes.dilation[-2], "steps_apart": moves, "rows_apart": apart},
        **{"rows_of_tap": sizes.kernel[-2], "columns_of_tap": sizes.kernel[-1]},
        **{"is_flat": int(len(sizes.size) == 2), "pass_count": len(lists["passes"]) // PASS},
        **{"x_channel": sizes.cells, "out_channel": sizes.positions, "bias_step": int(has_bias)},
        **{"out_width": sizes.out[-1]},
        **places,
        **addresses(lists),
    )
    cycles = shares * _cycles(sizes, lines, plan, entries * phases, lists)
    shown = {"units": plan.units, "rows": plan.firsts * (1 if len(sizes.size) == 2 else math.prod(sizes.out[1:-1]))}
    shown |= {"columns": plan.columns, "tile_rows": plan.shape.rows, "lanes": lanes}
    return Planned(
        f"{steps}-{plan.shape.name}", values, tuple(lists.values()), shares, layout.bytes, shown, is_plain=not skips,
        cycles=cycles,
    )  # fmt: skip


def plan_of(target: Target, sizes: Sizes, *, has_bias: bool, variant: str = "") -> Planned | None:
    """Plan a convolution by the shape of tiles that takes the least time, or return nothing if none serves it."""
    if sizes.channels != 1 or not 2 <= len(sizes.size) <= MOST_DIMS or sizes.kernel[-2] > RUN:
        return None
    if sizes.stride[-1] not in STEPS:
        return None
    steps, lines = STEPS[sizes.stride[-1]], lines_of(sizes)
    shapes = [NAMES[variant.partition("-")[2]]] if variant else SHAPES[target.name]
    plans = [
        _planned(sizes, lines, chosen, steps, has_bias)
        for shape in shapes
        if (chosen := _chosen(sizes, shape, target.lanes // 2 if shape.half else target.lanes)) is not None
    ]
    return min((plan for plan in plans if plan is not None), key=lambda plan: plan.cycles, default=None)
