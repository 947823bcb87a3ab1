"""The plan of `depthwise`: which kernels there are, which of them is fastest, and what a share of a call is."""

from __future__ import annotations

from typing import NamedTuple

from .record import Record
from .share import PLAN_HEAD
from .sizes import Planned, Sizes, blocks, ceiling, share_products
from .target import Target

DEPTH = ("depth", "depth_size", "depth_taps", "depth_step", "depth_apart", "depth_before")
PLAN = Record(
    *PLAN_HEAD,
    *("planes", "filters", "multiplier", "planes_of_share", "planes_of_group"),
    *("bands", "bands_of_phase", "bands_of_share", "band_blocks"),
    *("height", "width", "out_width", "before_rows", "before_columns"),
    *("row_dilation", "column_dilation", "last_row", "last_phase", "zeros"),
    *DEPTH,
    *("x_channel", "x_plane", "out_plane", "bias_step"),
    *("x_ahead", "out_ahead"),
)
"""The plan in memory.

A plane is one channel of the output of one sample, or one of the `depth` planes of such a channel of three dimensions;
the other numbers of `DEPTH` are of the first of these. A band is what a tile is high. `last_row` is the last row of a
phase, counted in the phase; phases after `last_phase` have one less. `zeros` is how many the row of zeros has. A tile
asks for the lines of one that is `x_ahead` inputs and `out_ahead` outputs further on, unless the last number is 0.
"""
GROUP_CELLS = 4096
"""One band of each plane of a group is computed before the next band; so many inputs stay in the nearest cache."""
NARROW_ROWS, NARROW_LOSS = 7, {True: 1.0, False: 1.1}
"""The rows of a tile whose inputs stay in registers, and what it costs, by whether the CPU halves vectors."""
MOST_ROWS = 14
"""The most rows of a tile where 32 registers hold its sums."""
FEW_ROWS, WIDE, MANY_ROWS_LOSS = 4, 64, 0.5
"""More rows at once than these are slower where rows of inputs are longer than this: they lie in many pages. The less a
cell is used, the more it matters."""
LOSSES = {1: (1.2, 1.0), 2: (1.2, 3.0)}
"""By stride: what a tile costs more for the rows of inputs that its rows do not share, and the columns that a tile of
half vectors costs more than it has, where the CPU halves vectors."""
HALF_VECTOR, HALF_VECTOR_OF_COLUMN = 0.5, 0.045
"""On other CPUs a tile of half vectors costs this part of one of whole vectors, and more for each column of the
kernel."""
FAR_BYTES, FEWEST_CELLS, FEWEST_ASKED, FEWEST_PLANES_AHEAD = 4 << 20, 256, 512, 2
"""Arrays of more bytes lie beyond the nearest caches. Of planes of so many numbers all bands are then computed before
the next plane, as memory is read; and of planes of so many each tile asks for the lines of a later one. Tiles of narrow
rows ask for those of a later plane, at least so many numbers and planes further on."""
INPUTS_AHEAD, OUTPUTS_AHEAD = 2000, 700
"""Other tiles ask for lines so many numbers further on, rounded up to whole bands."""
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


def plane_of(sizes: Sizes) -> Plane:
    """Return what a convolution does with a plane; one of one dimension has a single row."""
    stride = (sizes.stride[-2:][0], sizes.stride[-1])
    size, kernel, dilation, out = ((1, *each)[-2:] for each in (sizes.size, sizes.kernel, sizes.dilation, sizes.out))
    before, after = ((0, *each)[-2:] for each in (sizes.before, sizes.after))
    return Plane(*((each[0], each[1]) for each in (size, kernel, stride, dilation, before, after, out)))


def depth_of(sizes: Sizes) -> dict[str, int]:
    """Return the fields of the plan that say what a convolution of three dimensions does along the first of them."""
    if len(sizes.size) < 3:
        numbers = (1, 1, 1, 1, 1, 0)
    else:
        sides = (sizes.out, sizes.size, sizes.kernel, sizes.stride, sizes.dilation, sizes.before)
        numbers = (sides[0][0], sides[1][0], sides[2][0], sides[3][0], sides[4][0], sides[5][0])
    return dict(zip(DEPTH, numbers, strict=True))


class Shape(NamedTuple):
    """What is known while code is made: the kernel and its stride, and the rows of a tile, of whole or half vectors."""

    kernel: tuple[int, int]
    stride: int
    rows: int
    half: bool = False
    deep: bool = False
    """Whether outputs are sums over several planes, of three dimensions."""
    narrow: bool = False
    """Whether a row of outputs is one vector, and the row of inputs one vector, or two at stride 2."""
    pair: bool = False
    """Whether it is narrow and a row of outputs half a vector, so that a vector holds one of each of two planes."""

    @property
    def name(self) -> str:
        """How the variant is called."""
        height, width = self.kernel
        kinds = {"half": self.half, "deep": self.deep, "narrow": self.narrow, "pair": self.pair}
        return f"{height}x{width}s{self.stride}r{self.rows}{''.join(kind for kind, has in kinds.items() if has)}"

    @property
    def input_rows(self) -> int:
        """The rows of inputs that a tile reads."""
        return self.stride * (self.rows - 1) + self.kernel[0]

    def vectors_of(self, target: Target) -> Target:
        """Return the target with the vectors of a tile, whole ones or half ones."""
        return target._replace(lanes=self.lanes(target))

    def lanes(self, target: Target) -> int:
        """Return the columns of a tile; only the long vectors of AVX-512 are worth halving."""
        return target.lanes // 2 if self.half and target.name == "avx512" else target.lanes

    def is_narrow(self, target: Target) -> bool:
        """Return whether lanes are taken in any order, which AVX-512 does."""
        return (self.narrow or self.pair) and target.permutes

    def is_pair(self, target: Target) -> bool:
        """Return whether a vector holds rows of two planes."""
        return self.pair and self.is_narrow(target)

    def fits(self, target: Target, plane: Plane, filters: int) -> bool:
        """Return whether tiles of this shape can compute a plane, of a channel with so many filters."""
        lanes = self.lanes(target)
        if self.is_pair(target) and (plane.out[1] > lanes // 2 or plane.size[1] > lanes or filters > 1):
            return False
        if self.is_narrow(target) and (plane.out[1] > lanes or plane.size[1] > lanes * self.stride):
            return False
        return self.stride == 1 or plane.dilation == (1, 1)

    def uses(self, row: int) -> list[tuple[int, int]]:
        """Return which rows of the kernel meet a row of inputs, and for which rows of outputs."""
        ways = ((tap, *divmod(row - tap, self.stride)) for tap in range(self.kernel[0]))
        return [(tap, output) for tap, output, rest in ways if rest == 0 and 0 <= output < self.rows]

    def cost(self, target: Target, plane: Plane) -> float:
        """Return about how many vectors are multiplied and added in the time that a plane takes."""
        lanes, (row_loss, half_loss) = self.lanes(target), LOSSES[self.stride]
        vectors = ceiling(plane.out[1], lanes) * (0.5 if self.is_pair(target) else 1.0)
        if self.half:
            of_half = HALF_VECTOR + HALF_VECTOR_OF_COLUMN * self.kernel[1]
            vectors *= (lanes + half_loss) / target.lanes if target.halves_vectors else of_half
        loss = NARROW_LOSS[target.halves_vectors] if self.is_narrow(target) else 1 + row_loss / self.rows
        if self.rows > FEW_ROWS and plane.size[1] > WIDE:
            loss += MANY_ROWS_LOSS / self.kernel[0]
        bands = min(plane.dilation[0], plane.out[0]) * ceiling(ceiling(plane.out[0], plane.dilation[0]), self.rows)
        return vectors * bands * self.rows * self.kernel[0] * self.kernel[1] * loss


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
    deep = [shape._replace(deep=True) for shape in squares if shape.kernel == (3, 3)]
    whole = [shape for shape in squares if shape.rows == NARROW_ROWS and not shape.half]
    narrow, pairs = ([shape._replace(narrow=not pair, pair=pair) for shape in whole] for pair in (False, True))
    return (*squares, *lines, *columns, *deep, *narrow, *pairs)


SHAPES = {shape.name: shape for shape in _shapes()}
VARIANTS = tuple(SHAPES)


def variant_of(target: Target, sizes: Sizes) -> str | None:
    """Return the variant that is fastest for a convolution, or nothing if the family has none for it."""
    plane = plane_of(sizes)
    if len(sizes.size) > 3 or sizes.channels != 1 or plane.stride[0] != plane.stride[1]:
        return None
    if len(sizes.size) == 3 and not _reads_cells(sizes):
        return None
    fitting = [
        shape
        for shape in SHAPES.values()
        if (shape.kernel, shape.stride, shape.deep) == (plane.kernel, plane.stride[0], len(sizes.size) == 3)
        and shape.fits(target, plane, sizes.filters)
        # Only AVX-512 has registers for so many sums, and long vectors.
        and (target.name == "avx512" or not (shape.rows == MOST_ROWS or shape.half or shape.narrow or shape.pair))
    ]
    return min(fitting, key=lambda shape: shape.cost(target, plane)).name if fitting else None


def plan_of(target: Target, sizes: Sizes, *, has_bias: bool, variant: str = "") -> Planned | None:
    """Return the plan of a convolution, or nothing if the family has no kernel for it."""
    variant = variant or variant_of(target, sizes) or ""
    plane = plane_of(sizes)
    if not variant or not SHAPES[variant].fits(target, plane, sizes.filters):
        return None
    shape, depth = SHAPES[variant], depth_of(sizes)
    lanes, planes = shape.lanes(target), sizes.batch * sizes.out_channels * depth["depth"]
    bands_of_phase = ceiling(ceiling(plane.out[0], plane.dilation[0]), shape.rows)
    bands = min(plane.dilation[0], plane.out[0]) * bands_of_phase
    band_products = shape.rows * ceiling(plane.out[1], lanes) * lanes * sizes.taps
    products = share_products(planes * bands * band_products, target.lanes)
    band_blocks, bands_of_share = blocks(bands, ceiling(products, band_products))
    at_once = 2 if shape.is_pair(target) else 1
    plane_blocks, planes_of_share = blocks(
        ceiling(planes, at_once), ceiling(products, at_once * band_products * bands_of_share)
    )
    planes_of_share *= at_once
    planes_of_group = at_once * max(1, GROUP_CELLS // max(1, plane.size[0] * plane.size[1]))
    if bands == 1:
        planes_of_group = planes_of_share
    elif _is_far(planes, plane, FEWEST_CELLS):
        planes_of_group = at_once
    shares = plane_blocks * band_blocks
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
        x_channel=sizes.cells, bias_step=int(has_bias),
        **_ahead(target, sizes, planes, plane, shape),
        x_plane=plane.size[0] * plane.size[1], out_plane=plane.out[0] * plane.out[1], **depth,
    )  # fmt: skip
    block = {"planes": planes_of_share, "bands": bands_of_share, "rows": shape.rows, "lanes": lanes}
    cycles = planes * (depth["depth_taps"] * shape.cost(target, plane) + CYCLES_OF_PLANE)
    # Planes of padding are left out, and zeros times what is not finite with them.
    is_plain = not (shape.deep and (sizes.before[0] or sizes.after[0]))
    return Planned(shape.name, values, (), shares, sizes.number * zeros, block, is_plain=is_plain, cycles=cycles)


def _is_far(planes: int, plane: Plane, fewest: int) -> bool:
    """Return whether the inputs and outputs lie beyond the nearest caches, and planes have so many numbers."""
    cells, positions = (each[0] * each[1] for each in (plane.size, plane.out))
    return 4 * planes * (cells + positions) >= FAR_BYTES and min(cells, positions) >= fewest


def _ahead(target: Target, sizes: Sizes, planes: int, plane: Plane, shape: Shape) -> dict[str, int]:
    """Return how far ahead lines are asked for: those of a later band, or of a later plane if planes are narrow."""
    if not _is_far(planes, plane, 1 if shape.is_narrow(target) else FEWEST_ASKED):
        return {"x_ahead": 0, "out_ahead": 0}
    if shape.is_narrow(target):
        cells = plane.size[0] * plane.size[1]
        count = max(FEWEST_PLANES_AHEAD, ceiling(FEWEST_ASKED, cells))
        return {"x_ahead": count * cells if sizes.filters == 1 else 0, "out_ahead": 0}
    x_band, out_band = shape.rows * shape.stride * plane.size[1], shape.rows * plane.out[1]
    # Filters of one channel read the same plane.
    x_ahead = ceiling(INPUTS_AHEAD, x_band) * x_band if sizes.filters == 1 else 0
    return {"x_ahead": x_ahead, "out_ahead": ceiling(OUTPUTS_AHEAD, out_band) * out_band}


def _reads_cells(sizes: Sizes) -> bool:
    """Return whether each tap of the first dimension reads a cell for some output: then shares see what they multiply.

    Of a filter that is not finite where its taps read padding alone no output would tell.
    """
    ends = (sizes.reading(0, tap) for tap in range(sizes.kernel[0]))
    return all(start < stop for start, stop in ends)
