"""The plan of `depthwise_weights`: which kernels there are, what a share is, and how long it takes."""

from __future__ import annotations

from typing import NamedTuple

from .record import Record
from .share import PLAN_HEAD
from .sizes import Planned, Sizes, blocks, ceiling, share_products
from .target import Target

REGISTERS = {"avx512": 32, "avx2": 16}
"""The registers for vectors. NEON has no masks, which this family needs."""
KEPT = 5
"""The registers for loaded cells at stride 2, beside the sums and a row of gradients."""
FEWEST_SHARES = 8
"""There are so many shares at least, if there are as many filters."""
CYCLES_OF_TILE, CYCLES_OF_ROW, CYCLES_OF_SUM, CYCLES_OF_TOTAL, LOADED = 50.0, 3.0, 2.0, 20.0, 1.6
"""About how many vectors are multiplied in the time that a tile takes, a row of it, each sum that is loaded and stored,
the sum of lanes, and a load."""

PLAN = Record(
    *PLAN_HEAD,
    *("batch", "filters", "filters_of_share", "multiplier"),
    *("height", "width", "out_height", "out_width", "positions", "before_rows", "before_columns"),
    *("x_channel", "x_sample", "out_sample", "x_next", "out_next"),
)
"""The plan in memory; the next plane after that of the last sample lies `x_next` further on, and its gradients
`out_next`."""


class Shape(NamedTuple):
    """What is known while code is made: the rows and columns of the kernel, and its stride."""

    kernel: int
    stride: int

    @property
    def name(self) -> str:
        """How the variant is called."""
        return f"{self.kernel}x{self.kernel}s{self.stride}"

    def groups(self, target: Target) -> list[range]:
        """Return the columns of the kernel whose sums are in registers at once."""
        registers = REGISTERS.get(target.name, 0)
        left = registers - (self.kernel + 2 if self.stride == 1 else 1 + KEPT)
        size = max(1, left // self.kernel)
        return [range(first, min(first + size, self.kernel)) for first in range(0, self.kernel, size)]


SHAPES = {shape.name: shape for shape in (Shape(kernel, stride) for kernel in (3, 5, 7) for stride in (1, 2))}
VARIANTS = tuple(SHAPES)


def plan_of(target: Target, sizes: Sizes) -> Planned | None:
    """Plan the gradient of the filters, or return nothing if this family does not serve it."""
    if target.name not in REGISTERS or sizes.channels != 1 or len(sizes.size) != 2 or {*sizes.dilation} != {1}:
        return None
    shape = Shape(sizes.kernel[0], sizes.stride[0])
    if {*sizes.kernel} != {shape.kernel} or {*sizes.stride} != {shape.stride} or shape.name not in SHAPES:
        return None
    of_filter = sizes.batch * sizes.positions * sizes.taps
    wanted = max(1, share_products(of_filter * sizes.out_channels, target.lanes) // of_filter)
    filters = blocks(sizes.out_channels, max(1, min(wanted, ceiling(sizes.out_channels, FEWEST_SHARES))))[1]
    shares = ceiling(sizes.out_channels, filters)
    x_sample, out_sample = sizes.in_channels * sizes.cells, sizes.out_channels * sizes.positions
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares, "batch": sizes.batch},
        **{"filters": sizes.out_channels, "filters_of_share": filters, "multiplier": sizes.filters},
        **{"height": sizes.size[0], "width": sizes.size[1], "out_height": sizes.out[0], "out_width": sizes.out[1]},
        **{"positions": sizes.positions, "before_rows": sizes.before[0], "before_columns": sizes.before[1]},
        **{"x_channel": sizes.cells, "x_sample": x_sample, "out_sample": out_sample},
        **{"x_next": sizes.cells // sizes.filters - (sizes.batch - 1) * x_sample},
        **{"out_next": sizes.positions - (sizes.batch - 1) * out_sample},
    )
    cycles = _cycles(target, sizes, shape)
    return Planned(shape.name, values, (), shares, 0, {"filters": filters}, is_plain=False, cycles=cycles)


def _cycles(target: Target, sizes: Sizes, shape: Shape) -> float:
    """Return about how many vectors are multiplied in the time that a call takes."""
    vectors, kernel = ceiling(sizes.out[1], target.lanes), shape.kernel
    tiles = vectors * (sizes.batch if vectors > 1 else 1)
    of_filter = 0.0
    for taps in shape.groups(target):
        if shape.stride == 1:
            rows, of_row = sizes.size[0], max(kernel * len(taps), LOADED * (len(taps) + 1))
        else:
            rows, loads = sizes.out[0], kernel * 2 * ceiling(len(taps) + 1, 2)
            of_row = max(kernel * len(taps), LOADED * loads) + kernel * len(taps)
        of_filter += vectors * sizes.batch * rows * (of_row + CYCLES_OF_ROW)
        of_filter += tiles * (CYCLES_OF_TILE + 2 * kernel * len(taps) * CYCLES_OF_SUM)
    return sizes.out_channels * (of_filter + kernel**2 * CYCLES_OF_TOTAL)
