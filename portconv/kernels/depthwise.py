"""Depthwise products: each filter has one input channel, and a plane of outputs reads one plane of inputs, in place.

A tile is a few rows of outputs times one vector of columns, and its sums stay in registers. Each row of inputs is
loaded once for each column of the kernel, and serves all rows of outputs that it reaches. Nothing is copied: masks keep
loads inside of a row, and rows outside of the plane are read from a row of zeros.

The kernel and its stride are known when LLVM makes the code; all sizes, the padding and a dilation are not. Rows of a
dilated kernel fall into as many phases, each of which is as if it were not dilated. A convolution of one dimension is
one of a single row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .emit import INTEGER, Flag, Function, Int, Module, Number, Pointer, Record, Variable, Vector
from .share import PLAN_HEAD, SHARE, driver
from .sizes import SHARE_PRODUCTS, Planned, Sizes, ceiling
from .target import Target

PLAN = Record(
    *PLAN_HEAD,
    *("planes", "filters", "multiplier", "planes_of_share", "planes_of_group"),
    *("bands", "bands_of_phase", "bands_of_share", "band_blocks"),
    *("height", "width", "out_width", "before_rows", "before_columns"),
    *("row_dilation", "column_dilation", "last_row", "last_phase", "zeros"),
    *("x_sample", "x_channel", "out_sample", "out_channel", "bias_step"),
)
"""The plan in memory. A plane is one channel of the output of one sample; a band is what a tile is high. `last_row` is
the last row of a phase, counted in the phase; phases after `last_phase` have one less. `zeros` is how many the row of
zeros has."""
GROUP_CELLS = 4096
"""One band of each plane of a group is computed before the next band; so many inputs stay in the nearest cache."""
MOST_ROWS = 14
"""The most rows of a tile where 32 registers hold its sums."""
FEW_ROWS, WIDE, MANY_ROWS_LOSS = 4, 64, 0.5
"""More rows at once than these are slower where rows of inputs are longer than this: they lie in many pages. The less a
cell is used, the more it matters."""
LOSSES = {1: (1.2, 1.0), 2: (1.2, 3.0)}
"""By stride: what a tile costs more for the rows of inputs that its rows do not share, and the columns that a tile of
half vectors costs more than it has."""

CYCLES_OF_PLANE = 20.0
"""What a plane costs beside its tiles."""


class Plane(NamedTuple):
    """The sizes of a plane: numbers for its rows and for its columns."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    out: tuple[int, int]


def plane_of(sizes: Sizes) -> Plane | None:
    """Return what a convolution of one or two dimensions does with a plane; one of one dimension has a single row."""
    if len(sizes.size) > 2:
        return None
    stride = (sizes.stride[0], sizes.stride[-1])
    size, kernel, dilation, out = ((1, *each)[-2:] for each in (sizes.size, sizes.kernel, sizes.dilation, sizes.out))
    before, after = ((0, *each)[-2:] for each in (sizes.before, sizes.after))
    return Plane(*((each[0], each[1]) for each in (size, kernel, stride, dilation, before, after, out)))


class Shape(NamedTuple):
    """What is known while code is made: the kernel and its stride, and the rows of a tile, of whole or half vectors."""

    kernel: tuple[int, int]
    stride: int
    rows: int
    half: bool = False

    @property
    def name(self) -> str:
        """How the variant is called."""
        height, width = self.kernel
        return f"{height}x{width}s{self.stride}r{self.rows}{'half' if self.half else ''}"

    @property
    def input_rows(self) -> int:
        """The rows of inputs that a tile reads."""
        return self.stride * (self.rows - 1) + self.kernel[0]

    def lanes(self, target: Target) -> int:
        """Return the columns of a tile."""
        return target.lanes // 2 if self.half else target.lanes

    def uses(self, row: int) -> list[tuple[int, int]]:
        """Return which rows of the kernel meet a row of inputs, and for which rows of outputs."""
        ways = ((tap, *divmod(row - tap, self.stride)) for tap in range(self.kernel[0]))
        return [(tap, output) for tap, output, rest in ways if rest == 0 and 0 <= output < self.rows]

    def cost(self, target: Target, plane: Plane) -> float:
        """Return about how many vectors are multiplied and added in the time that a plane takes."""
        lanes, (row_loss, half_loss) = self.lanes(target), LOSSES[self.stride]
        columns = ceiling(plane.out[1], lanes) * (lanes + (half_loss if self.half else 0))
        loss = 1 + row_loss / self.rows
        if self.rows > FEW_ROWS and plane.size[1] > WIDE:
            loss += MANY_ROWS_LOSS / self.kernel[0]
        bands = min(plane.dilation[0], plane.out[0]) * ceiling(ceiling(plane.out[0], plane.dilation[0]), self.rows)
        return columns / target.lanes * bands * self.rows * self.kernel[0] * self.kernel[1] * loss


def _shapes() -> tuple[Shape, ...]:
    """Return the shapes for which there are kernels."""
    squares = [
        Shape((size, size), stride, rows, half)
        for size, stride, most in ((3, 1, 7), (3, 2, 7), (5, 1, 14), (5, 2, 7), (7, 1, 14), (7, 2, 7))
        for rows in (4, 7, 14)
        for half in (False, True)
        if rows <= most
    ]
    lines = [Shape((1, size), 1, rows) for size in (3, 5, 7) for rows in (1, 4)]
    columns = [Shape((size, 1), 1, 7) for size in (3, 5, 7)]
    return (*squares, *lines, *columns)


SHAPES = {shape.name: shape for shape in _shapes()}
VARIANTS = tuple(SHAPES)


def variant_of(target: Target, sizes: Sizes) -> str | None:
    """Return the variant that is fastest for a convolution, or nothing if the family has none for it."""
    plane = plane_of(sizes)
    if plane is None or sizes.channels != 1 or plane.stride[0] != plane.stride[1]:
        return None
    fitting = [
        shape
        for shape in SHAPES.values()
        if (shape.kernel, shape.stride) == (plane.kernel, plane.stride[0])
        and (shape.stride == 1 or plane.dilation == (1, 1))
        and (target.name == "avx512" or (shape.rows < MOST_ROWS and not shape.half))
    ]
    return min(fitting, key=lambda shape: shape.cost(target, plane)).name if fitting else None


def module(target: Target, variant: str) -> Module:
    """Write the kernel of a variant."""
    share = Depthwise(target, SHAPES[variant]).share()
    return Module([share, *driver(target, share)])


class Depthwise:
    """The function that computes a share, for one target and one kernel."""

    def __init__(self, target: Target, shape: Shape) -> None:
        self.shape, self.lanes = shape, shape.lanes(target)

    def share(self) -> Function:
        """Compute some bands of some planes."""
        code = Function("share", SHARE, self.lanes, returns=True)
        memory, *arrays, scratch, _, _, index = code.given
        plan = PLAN.read(memory)
        with code.loop(0, plan.zeros, self.lanes) as place:
            code.store(code.zeros, scratch + place, align=4 * self.lanes)
        band_block, plane_block = index % plan.band_blocks, index // plan.band_blocks
        first, first_band = plane_block * plan.planes_of_share, band_block * plan.bands_of_share
        last = code.minimum(first + plan.planes_of_share, plan.planes)
        last_band = code.minimum(first_band + plan.bands_of_share, plan.bands)
        tile = _Tile(self, code, plan, scratch)
        start = divided(first_band, plan.bands_of_phase)
        with code.loop(first, last, plan.planes_of_group) as low:
            high = code.minimum(low + plan.planes_of_group, last)
            phase, top = code.variable(start[0]), code.variable(start[1] * self.shape.rows)
            # Divisions take as long as some rows of a small plane: there are none in the loops.
            sample, number = divided(low, plan.filters)
            begin = (sample, number, *divided(number, plan.multiplier))
            with code.loop(first_band, last_band):
                tile.begin_band(phase, top)
                counters = [code.variable(each) for each in begin]
                with code.loop(low, high):
                    tile.plane(arrays, counters)
        code.give(tile.is_not_finite())
        return code


class _Tile:
    """The tiles of a band: what is written into the function `code` for each of them."""

    taps: Pointer
    bias: Vector
    inputs: list[tuple[Flag, Int]]
    outputs: list[Int]

    def __init__(self, family: Depthwise, code: Function, plan: object, zeros: Pointer) -> None:
        self.code, self.shape, self.lanes, self.zeros = code, family.shape, family.lanes, zeros
        self.plan: Any = plan
        # Several sums are checked beside one another, so that none waits for the one before.
        self.checks = [code.variable(code.zeros) for _ in range(min(self.shape.rows, 4))]
        # The masks of the first tile of a row, and those of the last one: each is found once for many rows.
        self.bits = code.array(2 * (len(self.offsets()) + 1), INTEGER)
        self.found = code.array(2, INTEGER)
        self.found[0], self.found[1] = -1, -1

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
        self.inputs = []
        for _ in range(shape.input_rows):
            self.inputs.append((row.is_index(plan.height), row * plan.width - plan.before_columns))
            row = row + plan.row_dilation
        rows = [number + plan.row_dilation * code.minimum(start + each, last) for each in range(shape.rows)]
        self.outputs = [row * plan.out_width for row in rows]
        following = first + shape.rows
        stays = following < plan.bands_of_phase * shape.rows
        top.set(code.select(stays, following, 0))
        phase.set(code.select(stays, number, number + 1))

    def plane(self, arrays: Sequence[Pointer], counters: Sequence[Variable]) -> None:
        """Compute the band of one plane, from left to right, and count on to the next plane."""
        code, plan, shape = self.code, self.plan, self.shape
        x, w, b, out = arrays
        sample, number, channel, _ = (counter.get() for counter in counters)
        cells = x + (sample * plan.x_sample + channel * plan.x_channel)
        results = out + (sample * plan.out_sample + number * plan.out_channel)
        self.taps = w + number * (shape.kernel[0] * shape.kernel[1])
        self.bias = code.splat(b[number * plan.bias_step])
        rows = [code.select(is_inside, cells + at, self.zeros) for is_inside, at in self.inputs]
        outputs = [results + at for at in self.outputs]
        with code.loop(0, plan.out_width, self.lanes) as column:
            cell = column * shape.stride
            first = cell - plan.before_columns
            is_inner = (first >= 0) & (first + self.reach <= plan.width) & (column + self.lanes <= plan.out_width)
            with code.when(is_inner):
                self.tile([row + cell for row in rows], outputs, column)
            with code.when(~is_inner):
                masks = self.masks(first, column)
                self.tile([row + cell for row in rows], outputs, column, masks)
        self.count_on(counters)

    def count_on(self, counters: Sequence[Variable]) -> None:
        """Count to the next filter: its sample, its number, its channel, and which filter of the channel it is."""
        code, plan = self.code, self.plan
        sample, number, channel, copy = counters
        advance(code, (copy, plan.multiplier), channel)
        advance(code, (number, plan.filters), sample)
        with code.when(number.get().equals(0)):
            channel.set(0)

    @property
    def reach(self) -> Int:
        """The cells of a row from the first that a tile loads to the last."""
        tap, lanes = self.offsets()[-1]
        dilation: Int = self.plan.column_dilation
        return dilation * tap + (lanes + self.lanes)

    def masks(self, cell: Int, column: Int) -> list[Flag]:
        """Return the lanes that are inside of a row, for each load of a tile, and those that are stored."""
        code, plan, offsets = self.code, self.plan, self.offsets()
        side = code.select(column.equals(0), 0, 1)
        bits, found = self.bits + side * (len(offsets) + 1), self.found + side
        with code.when(~found[0].equals(column)):
            for i, (tap, lanes) in enumerate(offsets):
                at = cell + (plan.column_dilation * tap + lanes)
                bits[i] = code.bits_of_mask(code.lanes_between(0 - at, plan.width - at))
            bits[len(offsets)] = code.bits_of_mask(code.lanes_between(None, plan.out_width - column))
            found[0] = column
        return [code.mask_of_bits(bits[i]) for i in range(len(offsets) + 1)]

    def tile(
        self, rows: Sequence[Pointer], results: Sequence[Pointer], column: Int, masks: Sequence[Flag] = ()
    ) -> None:
        """Compute and store one tile; one that has no masks lies inside."""
        code, shape, offsets = self.code, self.shape, self.offsets()
        height, width = shape.kernel
        of_loads: Sequence[Flag | None] = masks[:-1] or [None] * len(offsets)
        loads = dict(zip(offsets, of_loads, strict=True))
        sums = [code.variable(self.bias) for _ in range(shape.rows)]
        for tap in range(width):
            numbers = [code.splat(self.taps[row * width + tap]) for row in range(height)]
            for row, place in enumerate(rows):
                used = shape.uses(row)
                value = self.cells_of(place, tap, loads) if used else code.zeros
                for kernel_row, output in used:
                    sums[output].set(code.fma(value, numbers[kernel_row], sums[output].get()))
        self.put(sums, results, column, masks[-1] if masks else None)

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
        for row in reversed(range(self.shape.rows)):
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
    variant = variant or variant_of(target, sizes) or ""
    plane = plane_of(sizes)
    if not variant or plane is None:
        return None
    shape = SHAPES[variant]
    lanes, planes = shape.lanes(target), sizes.batch * sizes.out_channels
    bands_of_phase = ceiling(ceiling(plane.out[0], plane.dilation[0]), shape.rows)
    bands = min(plane.dilation[0], plane.out[0]) * bands_of_phase
    band_products = shape.rows * ceiling(plane.out[1], lanes) * lanes * sizes.taps
    bands_of_share = min(bands, ceiling(SHARE_PRODUCTS, band_products))
    planes_of_share = min(planes, ceiling(SHARE_PRODUCTS, band_products * bands_of_share))
    planes_of_group = planes_of_share if bands == 1 else max(1, GROUP_CELLS // sizes.cells)
    band_blocks = ceiling(bands, bands_of_share)
    shares = ceiling(planes, planes_of_share) * band_blocks
    zeros = ceiling(plane.before[1] + plane.size[1] + plane.after[1] + 2 * lanes, lanes) * lanes
    last_row, last_phase = divmod(plane.out[0] - 1, plane.dilation[0])
    values = PLAN.packed(
        phases=1, shares_first=0, shares_last=shares,
        planes=planes, filters=sizes.out_channels, multiplier=sizes.filters,
        planes_of_share=planes_of_share, planes_of_group=planes_of_group,
        bands=bands, bands_of_phase=bands_of_phase, bands_of_share=bands_of_share, band_blocks=band_blocks,
        height=plane.size[0], width=plane.size[1], out_width=plane.out[1],
        before_rows=plane.before[0], before_columns=plane.before[1],
        row_dilation=plane.dilation[0], column_dilation=plane.dilation[1],
        last_row=last_row, last_phase=last_phase, zeros=zeros,
        x_sample=sizes.in_channels * sizes.cells, x_channel=sizes.cells,
        out_sample=sizes.out_channels * sizes.positions, out_channel=sizes.positions, bias_step=int(has_bias),
    )  # fmt: skip
    block = {"planes": planes_of_share, "bands": bands_of_share, "rows": shape.rows, "lanes": lanes}
    cycles = planes * (shape.cost(target, plane) + CYCLES_OF_PLANE)
    return Planned(shape.name, values, (), shares, 4 * zeros, block, 0, cycles)
