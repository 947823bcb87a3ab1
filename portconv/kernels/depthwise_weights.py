"""Gradients of filters of one channel, in place: lanes run along a row, and the sums of taps stay in registers.

At stride 1 each row of inputs is loaded once for each column of the kernel, and meets as many rows of gradients as the
kernel has, which stay in registers from one row of inputs to the next. At stride 2 each row of gradients meets the rows
of inputs that it was made of. Masks keep loads inside of a row, and rows outside of the plane are zeros.

The kernel and its stride are known when LLVM makes the code. Other kernels take `swept_weights`.

A zero that stands for a number outside of a plane meets what is inside of the other one. So a number that is not finite
spoils sums that it is no part of, and the share says so.
"""

from __future__ import annotations

from .bits import between
from .depthwise_weight_plan import PLAN, SHAPES, VARIANTS, Shape, plan_of
from .emit import Argument, Function, Module
from .lane_totals import totals
from .share import SHARE, driver
from .target import Target
from .values import INTEGER, Flag, Int, Pointer, Variable, Vector

__all__ = ["VARIANTS", "module", "plan_of"]

TILE = tuple(
    Argument(*each)
    for each in (
        *(("plan", "*i64"), ("x", "*float"), ("dout", "*float"), ("sums", "*float")),
        *((name, INTEGER) for name in ("first", "last", "column")),
    )
)
"""The arguments of a tile: the plane of the first sample and its gradients, the sums, the samples, and where the vector
of columns begins."""


def module(target: Target, variant: str) -> Module:
    """Write the kernel of a variant."""
    shape = SHAPES[variant]
    tiles = [_Tile(target, shape, number).code for number in range(len(shape.groups(target)))]
    share = _share(target, shape, tiles)
    return Module([*tiles, share, *driver(target, share)])


class _Tile:
    """The function that adds the products of some samples, for one vector of columns and some columns of the kernel."""

    def __init__(self, target: Target, shape: Shape, group: int) -> None:
        self.target, self.shape, self.lanes, self.asks = target, shape, target.lanes, group == 0
        self.taps = shape.groups(target)[group]
        self.code = code = Function(f"tile{group}", TILE, target)
        memory, x, dout, kept, first, last, self.column = code.given
        self.plan = plan = PLAN.read(memory)
        self.of_grads = between(code, 0, plan.out_width - self.column, self.lanes)
        cell = self.column * shape.stride
        self.of_cells = {
            at: between(
                code, plan.before_columns - at - cell, plan.width + plan.before_columns - at - cell, self.lanes
            )
            for at in self.offsets()
        }  # fmt: skip
        height, width = range(shape.kernel), shape.kernel
        places = {(row, tap): kept + (row * width + tap) * self.lanes for row in height for tap in self.taps}
        align = 4 * self.lanes
        sums = {key: code.variable(code.zeros) for key in places}
        with code.loop(first, last) as sample:
            planes = x + sample * plan.x_sample, dout + sample * plan.out_sample
            is_last = (sample + 1).equals(plan.batch)
            ahead = (
                code.select(is_last, plan.x_next, plan.x_sample),
                code.select(is_last, plan.out_next, plan.out_sample),
            )
            (self.add if shape.stride == 1 else self.add_strided)(planes, ahead, sums)
        for key, place in places.items():
            code.store(code.load(place, align=align) + sums[key].get(), place, align=align)

    def offsets(self) -> list[int]:
        """Return where a tile loads in a row, counted from the cell of the first tap."""
        if self.shape.stride == 1:
            return list(self.taps)
        return [tap + ahead for tap in range(self.taps[0] // 2 * 2, self.taps[-1] + 1, 2) for ahead in (0, self.lanes)]

    def grads(self, dout: Pointer, row: Int) -> Vector:
        """Load the gradients of a row, or zeros if there is no such row."""
        code, plan = self.code, self.plan
        bits = code.select(row.is_index(plan.out_height), self.of_grads, 0)
        return code.load(dout + (row * plan.out_width + self.column), code.mask_of_bits(bits))

    def add(
        self, planes: tuple[Pointer, Pointer], ahead: tuple[Int, Int], sums: dict[tuple[int, int], Variable]
    ) -> None:
        """Add the products of a plane at stride 1, row of inputs by row of inputs."""
        code, plan, (x, dout), height = self.code, self.plan, planes, self.shape.kernel
        # Row 0 of the kernel meets the newest row of gradients.
        grads = [code.variable(self.grads(dout, plan.before_rows - 1 - row)) for row in range(height)]
        with code.loop(0, plan.height) as row:
            for newer, older in zip(reversed(grads[:-1]), reversed(grads[1:]), strict=True):
                older.set(newer.get())
            grads[0].set(self.grads(dout, row + plan.before_rows))
            cells = x + (row * plan.width + self.column - plan.before_columns)
            if self.asks:
                code.prefetch(cells + ahead[0])
                code.prefetch(dout + (row * plan.out_width + self.column + ahead[1]))
            for tap in self.taps:
                value = code.load(cells + tap, code.mask_of_bits(self.of_cells[tap]))
                for number, grad in enumerate(grads):
                    total = sums[number, tap]
                    total.set(code.fma(value, grad.get(), total.get()))

    def add_strided(
        self, planes: tuple[Pointer, Pointer], ahead: tuple[Int, Int], sums: dict[tuple[int, int], Variable]
    ) -> None:
        """Add the products of a plane at stride 2, row of gradients by row of gradients."""
        code, plan, (x, dout), lanes = self.code, self.plan, planes, self.lanes
        first = self.column * 2 - plan.before_columns
        with code.loop(0, plan.out_height) as out_row:
            grad = self.grads(dout, out_row)
            if self.asks:
                code.prefetch(dout + (out_row * plan.out_width + self.column + ahead[1]))
            for kernel_row in range(self.shape.kernel):
                row = out_row * 2 + kernel_row - plan.before_rows
                is_inside: Flag = row.is_index(plan.height)
                cells = x + (row * plan.width + first)
                if self.asks and kernel_row < 2:
                    for line in range(0, 2 * lanes, code.numbers_of_line):
                        code.prefetch(cells + (ahead[0] + line))
                masks = {at: code.mask_of_bits(code.select(is_inside, bits, 0)) for at, bits in self.of_cells.items()}
                for even in range(self.taps[0] // 2 * 2, self.taps[-1] + 1, 2):
                    near, far = (code.load(cells + at, masks[at]) for at in (even, even + lanes))
                    for tap in {even, even + 1} & {*self.taps}:
                        value = code.shuffle(near, far, [2 * lane + tap - even for lane in range(lanes)])
                        total = sums[kernel_row, tap]
                        total.set(code.fma(value, grad, total.get()))


def _share(target: Target, shape: Shape, tiles: list[Function]) -> Function:
    """Compute the gradients of the filters of some channels."""
    code = Function("share", SHARE, target, returns=True)
    memory, x, dout, _, out, _, _, _, index = code.given
    plan, check, lanes, taps = PLAN.read(memory), code.variable(code.zeros), target.lanes, shape.kernel**2
    sums = code.array(taps * lanes)
    start = index * plan.filters_of_share
    with code.loop(start, code.minimum(start + plan.filters_of_share, plan.filters)) as filter_:
        for tap in range(taps):
            code.store(code.zeros, sums + tap * lanes, align=code.bytes)
        planes = x + filter_ // plan.multiplier * plan.x_channel, dout + filter_ * plan.positions
        # Rows of several vectors are read plane by plane, as they lie in memory.
        is_narrow = plan.out_width <= lanes
        of_turn = code.select(is_narrow, plan.batch, 1)
        with code.loop(0, plan.batch, of_turn) as sample, code.loop(0, plan.out_width, lanes) as column:
            for tile in tiles:
                code.run(tile, memory, *planes, sums, sample, sample + of_turn, column)
        totals(code, (sums, taps), out + filter_ * taps, check)
    code.give(code.is_not_finite(check.get()))
    return code
