"""The plan of `tall`: the tiles and shares of depthwise products with large kernels, and how long they take."""

from __future__ import annotations

import math
from array import array
from itertools import pairwise, product
from typing import NamedTuple

from .record import Record
from .row_lines import COPIED, Lines, entries_of, lines_of, lists_of_copy, pitches_of
from .row_plan import (
    CYCLES_OF_COPY,
    CYCLES_OF_LINE,
    LOAD,
    MOST_BYTES,
    MOST_COLUMNS,
    MOST_DIMS,
    NO_EDGE,
    RUN,
    density,
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
    *("first_size", "first_before", "first_step", "first_apart", "first_taps", "passes_of_first"),
    *("rows_of_tap", "columns_of_tap", "taps_of_filter", "taps", "passes", "tiles", "tile_counts"),
    *("at_lines", "at_entries", "at_sums"),
)
"""The plan in memory, which begins with what `rows` copies.

A unit is a channel of one sample, with as many filters as `multiplier`. `firsts` are the positions along the first
dimension. `height` and `above` are the size and the padding of the dimension before the last one, and `row_step` and
`row_apart` its stride and dilation; `steps_apart` is by how many taps the kernel moves from one row of a tile to the
next. `taps` has the taps of the last two dimensions, row by row, and further rows that only later rows of a tile meet.
"""
TILE, PASS = 5, 4
"""The numbers of a tile: where it reads in the copy, where its outputs go, the row of its first output, where its last
vector begins, which may overlap the one before, and its position along the first of three dimensions or more. The
numbers of a pass: where it reads, from the tile's first cell on, its first number in a filter, its first tap in the
list, and its columns of taps."""
PLACE_BITS = 32
"""A tap of the list has in so many low bits where it reads, and above them its number in a filter."""
HALF, LATENCY, LOOP, CYCLES_OF_TILE, CYCLES_OF_STORE = 0.5, 3.0, 0.25, 30.0, 3.0
"""About how many whole vectors are multiplied in the time of half a vector (loaded, where the CPU does not halve them),
until a sum can be added to, and that a tap takes beside loads and products, and a tile, and the store or sum of a
vector."""

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
    "avx512": (
        *(Shape(4, 4), Shape(7, 3), Shape(5, 4), Shape(3, 4)),
        *(Shape(4, 4, half=True), Shape(7, 3, half=True), Shape(5, 4, half=True)),
    ),
    "avx2": (Shape(4, 3), Shape(5, 2), Shape(7, 1), Shape(3, 3)),
    "neon": (Shape(4, 4), Shape(7, 3), Shape(3, 4)),
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
    entries: int
    """The vectors of a phase of a line."""


def turns(sizes: Sizes) -> tuple[int, int]:
    """Return how far the rows of a tile are apart so that they read the same rows, and by how many taps it moves."""
    common = math.gcd(sizes.stride[-2], sizes.dilation[-2])
    return sizes.dilation[-2] // common, sizes.stride[-2] // common


def _chosen(target: Target, sizes: Sizes, lines: Lines, shape: Shape) -> _Plan | None:
    """Return the shares and passes for a shape, or nothing if its tiles are too high or the copy is too large."""
    lanes = target.lanes // 2 if shape.half else target.lanes
    apart, moves = turns(sizes)
    height, width = sizes.kernel[-2:]
    count = ceiling(width, max(1, RUN // height))
    edges = [width * i // count for i in range(count + 1)]
    # All rows of a tile must meet some row of inputs; no tile may have rows beyond the last one.
    if height < moves * (shape.rows - 1) or sizes.out[-2] // apart < shape.rows:
        return None
    columns, is_flat = min(sizes.out[-1], MOST_COLUMNS), len(sizes.size) == 2
    products = columns * math.prod(sizes.out[1:-1]) * sizes.taps * sizes.filters
    wanted = share_products(sizes.batch * sizes.groups * sizes.out[0] * products, target.lanes)
    firsts = max(1, wanted // products)
    if is_flat:
        firsts = blocks(sizes.out[0], ceiling(firsts, shape.rows * apart) * shape.rows * apart)[1]
        firsts = min(sizes.out[0], ceiling(firsts, shape.rows * apart) * shape.rows * apart)
    else:
        firsts = blocks(sizes.out[0], firsts)[1]
    units = blocks(sizes.batch * sizes.groups, max(1, wanted // (products * firsts)))[1]
    plan = _Plan(shape, lanes, list(pairwise(edges)), columns, firsts, units, entries_of(columns, lines, lanes))
    return plan if _scratch(sizes, lines, plan)[1] <= MOST_BYTES else None


def _starts(count: int, size: int) -> list[int]:
    """Return where runs of a size begin of which the last one ends with the others, if these are enough."""
    return [max(0, min(start, count - size)) for start in range(0, count, size)]


def _rows_and_pieces(sizes: Sizes, plan: _Plan) -> tuple[list[int], list[int]]:
    """Return the first rows of the tiles of a share, and the first columns of its vectors."""
    apart, _ = turns(sizes)
    height = plan.firsts if len(sizes.size) == 2 else sizes.out[-2]
    rows = [
        turn + apart * start
        for turn in range(apart)
        for start in _starts((height - turn - 1) // apart + 1, plan.shape.rows)
    ]
    return rows, _starts(plan.columns, plan.lanes)


def _counts(sizes: Sizes, plan: _Plan) -> tuple[int, int]:
    """Return how many of each `_rows_and_pieces` returns."""
    apart, _ = turns(sizes)
    height = plan.firsts if len(sizes.size) == 2 else sizes.out[-2]
    # The first `more` turns have one row more than the others.
    fewer, more = divmod(height, apart)
    of_turns = more * ceiling(fewer + 1, plan.shape.rows) + (apart - more) * ceiling(fewer, plan.shape.rows)
    return of_turns, ceiling(plan.columns, plan.lanes)


def _planes(sizes: Sizes, plan: _Plan) -> list[range]:
    """Return the dimensions before the last two, as far as a share goes."""
    return [range(plan.firsts), *map(range, sizes.out[1:-2])] if len(sizes.size) > 2 else []


def _tiles(sizes: Sizes, lines: Lines, plan: _Plan, pitch: int) -> dict[int, list[tuple[int, ...]]]:
    """Return the tiles of a share by their number of vectors."""
    rows, pieces = _rows_and_pieces(sizes, plan)
    most = blocks(len(pieces), plan.shape.vectors)[1]
    tiles: dict[int, list[tuple[int, ...]]] = {}
    for place in product(*_planes(sizes, plan)):
        line = sum(at * s * stride for at, s, stride in zip(place, sizes.stride, lines.strides, strict=False))
        first = sum(at * math.prod(sizes.out[dim + 1 : -1]) for dim, at in enumerate(place))
        for row, at in product(rows, range(0, len(pieces), most)):
            own = pieces[at : at + most]
            reads = (line + row * sizes.stride[-2]) * pitch + own[0]
            goal = (first + row) * sizes.out[-1] + own[0]
            tiles.setdefault(len(own), []).append((reads, goal, row, own[-1] - own[0], *(place[:1] or (0,))))
    return tiles


def _lists(sizes: Sizes, lines: Lines, plan: _Plan, pitch: int) -> dict[str, array[int]]:
    """Return the lists that the kernels read; `pitch` is that of lines, of which each phase has a part."""
    step, width = sizes.stride[-1], pitch // len(lines.phases)
    cells = [divmod(tap * sizes.dilation[-1], step) for tap in range(sizes.kernel[-1])]
    cells_of_row = [lines.phases.index(phase) * width + shift for shift, phase in cells]
    rows = range(sizes.kernel[-2] + turns(sizes)[1] * (plan.shape.rows - 1))
    taps: list[int] = []
    passes: list[int] = []
    starts = []
    for low, high in plan.columns_of_passes:
        starts.append(len(taps))
        for row in rows:
            line, first = row * sizes.dilation[-2] * pitch, row * sizes.kernel[-1]
            taps += [line + cells_of_row[tap] + (first + tap << PLACE_BITS) for tap in range(low, high)]
    for number, place in enumerate(product(*map(range, sizes.kernel[:-2]))):
        sides = zip(place, sizes.dilation, lines.strides, strict=False)
        reads = sum(tap * apart * stride for tap, apart, stride in sides) * pitch
        for start, (low, high) in zip(starts, plan.columns_of_passes, strict=True):
            passes += [reads, number * sizes.kernel[-2] * sizes.kernel[-1], start, high - low]
    tiles = _tiles(sizes, lines, plan, pitch)
    order = sorted(tiles)
    return lists_of_copy(sizes, lines) | {
        "taps": numbers(taps),
        "passes": numbers(passes),
        "tiles": numbers([number for count in order for tile in tiles[count] for number in tile]),
        "tile_counts": numbers([len(tiles.get(count + 1, ())) for count in range(plan.shape.vectors)]),
    }


def _cycles(target: Target, sizes: Sizes, lines: Lines, plan: _Plan) -> float:
    """Return about how many whole vectors are multiplied in the time that a call takes."""
    rows, size = plan.shape.rows, HALF if plan.shape.half else 1.0
    of_product = size if target.halves_vectors else 1.0
    count, vectors_copied = _line_count(sizes, lines, plan), len(lines.phases) * plan.entries
    copied = count * vectors_copied * size * CYCLES_OF_COPY[STEPS[sizes.stride[-1]]]
    starts, pieces = _counts(sizes, plan)
    of_tiles, height, (_, moves) = 0.0, sizes.kernel[-2], turns(sizes)
    of_column = sizes.taps // height * density(sizes, len(sizes.size) - 2)
    of_column *= density(sizes, 0) if len(sizes.size) > 2 else 1.0
    passes = len(plan.columns_of_passes) * math.prod(sizes.kernel[:-2])
    most = blocks(pieces, plan.shape.vectors)[1]
    for vectors, tiles in ((most, pieces // most), (pieces % most, 1)):
        if vectors == 0:
            continue
        # Few rows of a tile read together at its ends, where loads, or a sum and the next one, take longer.
        loads, products = size * LOAD * vectors, of_product * vectors
        of_rows = [max(n * products, loads + n / 2, LATENCY) + LOOP for n in range(1, rows + 1)]
        taps = 2 * moves * sum(of_rows[:-1]) + of_rows[-1] * (height - moves * (rows - 1))
        of_tiles += tiles * (taps * of_column + CYCLES_OF_TILE + CYCLES_OF_STORE * rows * vectors * passes)
    of_tiles *= starts * math.prod(map(len, _planes(sizes, plan)))
    return _shares(sizes, plan) * (plan.units * (copied + sizes.filters * of_tiles) + CYCLES_OF_LINE * count)


def _shares(sizes: Sizes, plan: _Plan) -> int:
    units = ceiling(sizes.batch * sizes.groups, plan.units)
    return units * ceiling(sizes.out[0], plan.firsts) * ceiling(sizes.out[-1], plan.columns)


def _line_count(sizes: Sizes, lines: Lines, plan: _Plan) -> int:
    beyond = (sizes.kernel[0] - 1) * sizes.dilation[0] + 1
    return ((plan.firsts - 1) * sizes.stride[0] + beyond) * lines.strides[0]


def _scratch(sizes: Sizes, lines: Lines, plan: _Plan) -> tuple[dict[str, int], int]:
    """Return where things lie in the scratch memory, and its bytes."""
    vectors, line_count, layout = plan.entries * len(lines.phases), _line_count(sizes, lines, plan), Layout()
    layout.add(sizes.number * plan.lanes * (line_count * vectors + 1))
    places = {
        "at_lines": layout.add(16 * line_count),
        "at_entries": layout.add(16 * vectors),
        "at_sums": layout.add(sizes.number * plan.shape.rows * plan.shape.vectors * plan.lanes),
    }
    return places, layout.bytes


def _skips_first(sizes: Sizes) -> bool:
    """Return whether planes of padding along the first of three dimensions or more are left out."""
    return len(sizes.size) > 2 and skips_taps(sizes, 0)


def _first(sizes: Sizes, passes: int) -> dict[str, int]:
    """Return the fields that say which passes a tile has, by its position along the first of several dimensions."""
    if not _skips_first(sizes):
        sides = (NO_EDGE, 0, 0, 1, 1, passes)
    else:
        taps = sizes.kernel[0]
        sides = (sizes.size[0], sizes.before[0], sizes.stride[0], sizes.dilation[0], taps, passes // taps)
    names = ("first_size", "first_before", "first_step", "first_apart", "first_taps", "passes_of_first")
    return dict(zip(names, sides, strict=True))


def _planned(target: Target, sizes: Sizes, lines: Lines, plan: _Plan, *, has_bias: bool) -> Planned:
    lanes, phases, (places, scratch) = plan.lanes, len(lines.phases), _scratch(sizes, lines, plan)
    pitch, line_count = plan.entries * phases * lanes, _line_count(sizes, lines, plan)
    lists, (apart, moves) = _lists(sizes, lines, plan, pitch), turns(sizes)
    first_blocks, column_blocks = ceiling(sizes.out[0], plan.firsts), ceiling(sizes.out[-1], plan.columns)
    units, skips = sizes.batch * sizes.groups, skips_taps(sizes, len(sizes.size) - 2)
    shares = _shares(sizes, plan)
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares, "outer": len(lines.padded)},
        **{"width": sizes.size[-1], "step": sizes.stride[-1], "before": sizes.before[-1]},
        **{"entries": plan.entries * phases, "entries_of_phase": plan.entries},
        **pitches_of(lines, plan.entries, lanes)._asdict(),
        **{"units": units, "units_of_share": plan.units, "multiplier": sizes.filters, "taps_of_filter": sizes.taps},
        **{"filters": sizes.out_channels},
        **{"firsts": sizes.out[0], "firsts_of_share": plan.firsts, "first_blocks": first_blocks},
        **{"rows_of_first": math.prod(sizes.out[1:-1]), "lines_of_step": sizes.stride[0] * lines.strides[0]},
        **{"lines_of_share": line_count, "columns": sizes.out[-1], "columns_of_share": plan.columns},
        **{"column_blocks": column_blocks, "store_length": min(plan.columns, lanes)},
        **{"height": sizes.size[-2] if skips else NO_EDGE, "above": sizes.before[-2] if skips else 0},
        **{"row_step": sizes.stride[-2], "row_apart": sizes.dilation[-2], "steps_apart": moves, "rows_apart": apart},
        **{"rows_of_tap": sizes.kernel[-2], "columns_of_tap": sizes.kernel[-1]},
        **{"is_flat": int(len(sizes.size) == 2)},
        **_first(sizes, len(lists["passes"]) // PASS),
        **{"x_channel": sizes.cells, "out_channel": sizes.positions, "bias_step": int(has_bias)},
        **{"out_width": sizes.out[-1]},
        **places,
        **addresses(lists),
    )
    shown = {"units": plan.units, "rows": plan.firsts * (1 if len(sizes.size) == 2 else math.prod(sizes.out[1:-1]))}
    shown |= {"columns": plan.columns, "tile_rows": plan.shape.rows, "lanes": lanes}
    cycles, variant = _cycles(target, sizes, lines, plan), f"{STEPS[sizes.stride[-1]]}-{plan.shape.name}"
    is_plain, tables = not skips and not _skips_first(sizes), tuple(lists.values())
    return Planned(variant, values, tables, shares, scratch, shown, is_plain=is_plain, cycles=cycles)


def plan_of(target: Target, sizes: Sizes, *, has_bias: bool, variant: str = "") -> Planned | None:
    """Plan a convolution by the shape of tiles that takes the least time, or return nothing if none serves it."""
    if sizes.channels != 1 or not 2 <= len(sizes.size) <= MOST_DIMS or sizes.kernel[-2] > RUN:
        return None
    if sizes.stride[-1] not in STEPS:
        return None
    lines = lines_of(sizes)
    shapes = [NAMES[variant.partition("-")[2]]] if variant else SHAPES[target.name]
    plans = [plan for shape in shapes if (plan := _chosen(target, sizes, lines, shape)) is not None]
    best = min(plans, key=lambda plan: _cycles(target, sizes, lines, plan), default=None)
    return None if best is None else _planned(target, sizes, lines, best, has_bias=has_bias)
