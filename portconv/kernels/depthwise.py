"""Depthwise products: each filter has one input channel, and a plane of outputs reads one plane of inputs, in place.

A tile is a few rows of outputs times one vector of columns, and its sums stay in registers. Each row of inputs is
loaded once for each column of the kernel, and serves all rows of outputs that it reaches. Nothing is copied: masks keep
loads inside of a row, and rows outside of the plane are read from a row of zeros.

The kernel and its stride are known when LLVM makes the code; all sizes, the padding and a dilation are not. Rows of a
dilated kernel fall into as many phases, each of which is as if it were not dilated. A convolution of one dimension is
one of a single row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from .emit import Flag, Function, Int, Module, Number, Pointer, Record, Variable, Vector
from .share import PLAN_HEAD, SHARE, driver
from .sizes import SHARE_PRODUCTS, Planned, Sizes, ceiling
from .target import Target

PLAN = Record(
    *PLAN_HEAD,
    *("planes", "filters", "multiplier", "planes_of_share", "planes_of_group"),
    *("bands", "bands_of_phase", "bands_of_share", "band_blocks"),
    *("height", "width", "out_height", "out_width", "before_rows", "before_columns"),
    *("row_dilation", "column_dilation", "last_row", "last_phase", "zeros"),
    *("x_sample", "x_channel", "out_sample", "out_channel", "bias_step"),
)
GROUP_CELLS = 4096
"""A band of the planes of a group is computed before the next one; their inputs stay in the nearest cache."""
"""The plan in memory. A plane is one channel of the output of one sample; a band is what a tile is high."""


class Shape(NamedTuple):
    """A kernel that is known while code is made: its rows and columns, its stride, and the rows and lanes of a tile."""

    kernel: tuple[int, int]
    stride: int
    rows: int
    half: bool

    @property
    def name(self) -> str:
        """How the variant is called."""
        (height, width), half = self.kernel, "half" if self.half else ""
        return f"{height}x{width}s{self.stride}r{self.rows}{half}"

    @property
    def input_rows(self) -> int:
        """The rows of inputs that a tile reads."""
        return self.stride * (self.rows - 1) + self.kernel[0]

    def uses(self, row: int) -> list[tuple[int, int]]:
        """Return which rows of the kernel meet a row of inputs, and for which rows of outputs."""
        taps = ((tap, row - tap) for tap in range(self.kernel[0]))
        return [(tap, at // self.stride) for tap, at in taps if at % self.stride == 0 and at // self.stride in self.all]

    @property
    def all(self) -> range:
        """The rows of outputs of a tile."""
        return range(self.rows)


SHAPES = {
    shape.name: shape
    for size in (3, 5, 7)
    for stride in (1, 2)
    for rows in (4, 7, 14)
    for half in (False, True)
    for shape in (Shape((size, size), stride, rows, half),)
}
VARIANTS = tuple(SHAPES)


def module(target: Target, variant: str) -> Module:
    """Write the kernel of a variant."""
    share = Depthwise(target, SHAPES[variant]).share()
    return Module([share, *driver(target, share)])


class Depthwise:
    """The function that computes a share, for one target and one kernel."""

    def __init__(self, target: Target, shape: Shape) -> None:
        self.shape, self.lanes = shape, target.lanes // 2 if shape.half else target.lanes

    def share(self) -> Function:
        """Compute some bands of some planes."""
        code = Function("share", SHARE, self.lanes, returns=True)
        memory, x, w, b, out, scratch, _, _, index = code.given
        plan = PLAN.read(memory)
        with code.loop(0, plan.zeros, self.lanes) as at:
            code.store(code.zeros, scratch + at, align=4 * self.lanes)
        band_block, plane_block = index % plan.band_blocks, index // plan.band_blocks
        first, first_band = plane_block * plan.planes_of_share, band_block * plan.bands_of_share
        last = code.minimum(first + plan.planes_of_share, plan.planes)
        last_band = code.minimum(first_band + plan.bands_of_share, plan.bands)
        tile = _Tile(self, code, plan, scratch)
        tile = _Tile(self, code, plan, scratch)
        start = divided(first_band, plan.bands_of_phase)
        with code.loop(first, last, plan.planes_of_group) as low:
            high = code.minimum(low + plan.planes_of_group, last)
            phase, top = code.variable(start[0]), code.variable(start[1] * self.shape.rows)
            # Divisions take as long as some rows of a small plane: there are none in the loops.
            place = divided(low, plan.filters)
            copy_of = divided(place[1], plan.multiplier)
            with code.loop(first_band, last_band):
                tile.begin_band(phase, top)
                sample, number, channel, copy = (code.variable(each) for each in (*place, *copy_of))
                with code.loop(low, high):
                    at: Int = number.get()
                    cells = x + (sample.get() * plan.x_sample + channel.get() * plan.x_channel)
                    results = out + (sample.get() * plan.out_sample + at * plan.out_channel)
                    tile.taps = w + at * (self.shape.kernel[0] * self.shape.kernel[1])
                    tile.bias = code.splat(b[at * plan.bias_step])
                    tile.plane(cells, results)
                    advance(code, (copy, plan.multiplier), channel)
                    advance(code, (number, plan.filters), sample)
                    with code.when(number.get().equals(0)):
                        channel.set(0)
        code.give(tile.is_not_finite())
        return code


class _Tile:
    """The tiles of a band: what is written into the function `code` for each of them."""

    cells: Pointer
    results: Pointer
    taps: Pointer
    bias: Vector

    def __init__(self, family: Depthwise, code: Function, plan: object, zeros: Pointer) -> None:
        self.code, self.shape, self.lanes, self.zeros = code, family.shape, family.lanes, zeros
        self.plan: Any = plan
        # Several sums are checked beside one another, so that none waits for the one before.
        self.checks = [code.variable(code.zeros) for _ in range(min(self.shape.rows, 4))]
        no_lane = code.lanes_between(None, 0)
        self.masked_for = code.variable(-1)
        self.masks = [code.variable(no_lane) for _ in self.offsets()]
        self.stored = code.variable(no_lane)

    def is_not_finite(self) -> Int:
        """Return whether a number that was stored is not finite."""
        total = self.checks[0].get()
        for check in self.checks[1:]:
            total = total + check.get()
        return self.code.is_not_finite(total)

    def offsets(self) -> list[tuple[int, int]]:
        """Return where a tile loads in a row: a column of the kernel, and lanes after it."""
        width = self.shape.kernel[1]
        if self.shape.stride == 1:
            return [(tap, 0) for tap in range(width)]
        return [(tap, lanes) for tap in range(0, width, 2) for lanes in (0, self.lanes)]

    def begin_band(self, phase: Variable, top: Variable) -> None:
        """Find the rows of a band, given its phase and its first row in the phase; go on to the next one."""
        code, plan, shape = self.code, self.plan, self.shape
        number, first = phase.get(), top.get()
        last = code.select(number <= plan.last_phase, plan.last_row, plan.last_row - 1)
        # The last band begins early enough to be a whole one, if the plane has as many rows.
        start = code.maximum(code.minimum(first, last - (shape.rows - 1)), 0)
        row = number + plan.row_dilation * (start * shape.stride) - plan.before_rows
        self.inputs: list[tuple[Flag, Int]] = []
        for _ in range(shape.input_rows):
            self.inputs.append((row.is_index(plan.height), row * plan.width - plan.before_columns))
            row = row + plan.row_dilation
        rows = [number + plan.row_dilation * code.minimum(start + each, last) for each in shape.all]
        self.outputs = [row * plan.out_width for row in rows]
        following = first + shape.rows
        top.set(code.select(following <= last, following, 0))
        phase.set(code.select(following <= last, number, number + 1))

    def plane(self, cells: Pointer, results: Pointer) -> None:
        """Compute the band of one plane, from left to right."""
        code, plan, shape = self.code, self.plan, self.shape
        zeros = self.zeros
        rows = [code.select(is_inside, cells + at, zeros) for is_inside, at in self.inputs]
        outputs = [results + at for at in self.outputs]
        with code.loop(0, plan.out_width, self.lanes) as column:
            cell = column * shape.stride
            first = cell - plan.before_columns
            is_inner = (first >= 0) & (first + self.reach <= plan.width) & (column + self.lanes <= plan.out_width)
            with code.when(is_inner):
                self.tile([row + cell for row in rows], outputs, column, is_masked=False)
            with code.when(~is_inner):
                with code.when(~self.masked_for.get().equals(column)):
                    self.set_masks(first, column)
                self.tile([row + cell for row in rows], outputs, column, is_masked=True)

    @property
    def reach(self) -> Number:
        """The cells of a row from the first that a tile loads to the last."""
        tap, lanes = self.offsets()[-1]
        return self.plan.column_dilation * tap + (lanes + self.lanes)

    def set_masks(self, cell: Int, column: Int) -> None:
        """Find the lanes that are inside of a row; they serve all tiles of this column."""
        code, plan = self.code, self.plan
        for (tap, lanes), mask in zip(self.offsets(), self.masks, strict=True):
            at = cell + (plan.column_dilation * tap + lanes)
            mask.set(code.lanes_between(0 - at, plan.width - at))
        self.stored.set(code.lanes_between(None, plan.out_width - column))
        self.masked_for.set(column)

    def tile(self, rows: Sequence[Pointer], results: Sequence[Pointer], column: Int, *, is_masked: bool) -> None:
        """Compute and store one tile."""
        code, shape = self.code, self.shape
        height, width = shape.kernel
        masks = [mask.get() if is_masked else None for mask in self.masks]
        sums = [code.variable(self.bias) for _ in shape.all]
        loads = dict(zip(self.offsets(), masks, strict=True))
        for tap in range(width):
            numbers = [code.splat(self.taps[row * width + tap]) for row in range(height)]
            for row, place in enumerate(rows):
                used = shape.uses(row)
                value = self.cells_of(place, tap, loads) if used else code.zeros
                for kernel_row, output in used:
                    sums[output].set(code.fma(value, numbers[kernel_row], sums[output].get()))
        self.put(sums, results, column, self.stored.get() if is_masked else None)

    def cells_of(self, place: Pointer, tap: int, loads: dict[tuple[int, int], Flag | None]) -> Vector:
        """Return the cells that a column of the kernel meets in a row."""
        code, step = self.code, self.plan.column_dilation
        if self.shape.stride == 1:
            return code.load(place + step * tap, loads[tap, 0])
        near, far = (code.load(place + (tap // 2 * 2 + lanes), loads[tap // 2 * 2, lanes]) for lanes in (0, self.lanes))
        return code.shuffle(near, far, [2 * lane + tap % 2 for lane in range(self.lanes)])

    def put(self, sums: Sequence[Variable], results: Sequence[Pointer], column: Int, mask: Flag | None) -> None:
        """Store the sums; rows beyond the last one of a low plane are stored in its place, before it."""
        code = self.code
        for row in reversed(self.shape.all):
            value, check = sums[row].get(), self.checks[row % len(self.checks)]
            code.store(value, results[row] + column, mask)
            if mask is not None:
                value = code.select(mask, value, code.zeros)
            check.set(code.fma(value, code.zeros, check.get()))


def divided(a: Int, b: Int) -> tuple[Int, Int]:
    """Return the quotient and the rest."""
    return a // b, a % b


def advance(code: Function, digit: tuple[Variable, Number], carry: Variable) -> None:
    """Add 1 to a digit; where it becomes its limit it begins again at 0, and the next digit is one more."""
    variable, limit = digit
    value: Int = variable.get() + 1
    ends = value.equals(limit)
    variable.set(code.select(ends, 0, value))
    carry.set(code.select(ends, carry.get() + 1, carry.get()))


def plan_of(target: Target, sizes: Sizes, *, has_bias: bool, variant: str = "") -> Planned | None:
    """Return the plan of a convolution, or nothing if the family has no kernel for it."""
    if sizes.channels != 1 or len(sizes.size) > 2:
        return None
    size, out, kernel, stride, dilation = (
        (1, *each)[-2:] for each in (sizes.size, sizes.out, sizes.kernel, sizes.stride, sizes.dilation)
    )
    before, after = ((0, *each)[-2:] for each in (sizes.before, sizes.after))
    shape = SHAPES[variant]
    lanes = target.lanes // 2 if shape.half else target.lanes
    bands_of_phase = ceiling(ceiling(out[0], dilation[0]), shape.rows)
    bands = dilation[0] * bands_of_phase
    band_products = shape.rows * ceiling(out[1], lanes) * lanes * sizes.taps
    planes = sizes.batch * sizes.out_channels
    bands_of_share = min(bands, ceiling(SHARE_PRODUCTS, band_products))
    planes_of_share = min(planes, ceiling(SHARE_PRODUCTS, band_products * bands)) if bands_of_share == bands else 1
    planes_of_group = planes_of_share if bands == 1 else max(1, GROUP_CELLS // math.prod(size))
    band_blocks = ceiling(bands, bands_of_share)
    shares = ceiling(planes, planes_of_share) * band_blocks
    zeros = ceiling(size[1] + before[1] + after[1] + 2 * lanes, lanes) * lanes
    values = PLAN.packed(
        phases=1, shares_first=0, shares_last=shares,
        planes=planes, filters=sizes.out_channels, multiplier=sizes.filters, planes_of_share=planes_of_share, planes_of_group=planes_of_group,
        bands=bands, bands_of_phase=bands_of_phase, bands_of_share=bands_of_share, band_blocks=band_blocks,
        height=size[0], width=size[1], out_height=out[0], out_width=out[1],
        before_rows=before[0], before_columns=before[1],
        row_dilation=dilation[0], column_dilation=dilation[1], last_row=(out[0] - 1) // dilation[0], last_phase=(out[0] - 1) % dilation[0], zeros=zeros,
        x_sample=sizes.in_channels * sizes.cells, x_channel=sizes.cells,
        out_sample=sizes.out_channels * sizes.positions, out_channel=sizes.positions, bias_step=int(has_bias),
    )  # fmt: skip
    block = {"planes": planes_of_share, "bands": bands_of_share, "rows": shape.rows, "lanes": lanes}
    return Planned(shape.name, values, (), shares, 4 * zeros, block)
