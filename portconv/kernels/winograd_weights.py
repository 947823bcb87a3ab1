"""Gradients of filters by Winograd's tiles: 16 products a tile of 2x2 outputs in place of 36, and 25 at stride 2.

The sum of products of a tile is linear in the cells, in the numbers of the filter and in the outputs. So the gradient
of a filter takes the products that `winograd` takes,

    dw = G^T ((A dout A^T) * (B^T x B)) G

with the matrices of `winograd_schemes`. A share transforms the cells of some tiles as `winograd` does, and their
gradients, which it turns so that a row has a number for each filter. The products of a place of all tiles are those of
`weights`, with tiles in the place of positions. At the end the sums of all places become taps.

The transforms add numbers of neighbouring windows, so one number that is not finite spoils others, and the share says
so.
"""

from __future__ import annotations

from .emit import Argument, Function, Module
from .lanes import transposed
from .record import Fields
from .share import driver
from .target import Target
from .values import INTEGER, Int, Pointer, Vector
from .weight_plan import PLAN as WEIGHTS
from .weights import Share, Sums
from .winograd_plan import GOAL, TAPS
from .winograd_plan import PLAN as TILES
from .winograd_schemes import SCHEMES, Scheme
from .winograd_transforms import Transforms
from .winograd_weight_plan import AHEAD, PLACES, VARIANTS, plan_of

__all__ = ["VARIANTS", "module", "plan_of"]


def module(target: Target, variant: str) -> Module:
    """Write the kernels."""
    scheme = SCHEMES[variant]
    transforms, sums = Transforms(target, scheme), Sums(target, in_place=True)
    gradients = _gradients(target, scheme, transforms.width), _turned(target, scheme, transforms.width)
    weights = _weights(target, scheme)
    share = _ShareOfTiles(target, sums, transforms, (*gradients, weights)).code
    functions = [transforms.tables, transforms.inputs, *gradients, weights, *sums.functions]
    return Module([*functions, share, *driver(target, share)])


def _gradients(target: Target, scheme: Scheme, width: int) -> Function:
    """Transform the gradients of a few filters at some tiles: for each place and filter, a row of tiles.

    The last filter stands for those beyond it, whose sums nobody reads. Tiles that there are not have zeros.
    """
    pointers = Argument("rows", "*float"), Argument("dout", "*float"), Argument("goals", "*i64")
    names = "filters", "positions", "width_of_plane"
    code = Function("gradients", [*pointers, *map(Argument, names)], target)
    rows, dout, goals, filters, positions, width_of_plane = code.given
    # What is stored beyond the last tile of a row must not be of the next one.
    lanes, pitch = target.lanes, width + target.lanes
    even, odd = [2 * lane for lane in range(lanes)], [2 * lane + 1 for lane in range(lanes)]
    with code.loop(0, goals[0]) as number:
        goal = goals + (number * GOAL + 1)
        columns, height = goal[2], goal[3]
        with code.loop(0, columns, 2 * lanes) as column:
            masks = [code.lanes_between(None, columns - column - at) for at in (0, lanes)]
            below = [mask & code.lanes_between(None, (height - 1) * lanes) for mask in masks]
            tile = goal[0] + column // 2
            with code.loop(0, lanes) as filter_:
                place = dout + (code.minimum(filter_, filters - 1) * positions + goal[1] + column)
                numbers: list[list[Vector]] = []
                for line, used in ((place, masks), (place + width_of_plane, below)):
                    near, far = (code.load(line + at, mask) for at, mask in zip((0, lanes), used, strict=True))
                    numbers.append([code.shuffle(near, far, which) for which in (even, odd)])
                of_columns = [scheme.gradients(pair) for pair in zip(*numbers, strict=True)]
                row = rows + (filter_ * pitch + tile)
                for i, pair in enumerate(zip(*of_columns, strict=True)):
                    for j, value in enumerate(scheme.gradients(pair)):
                        code.store(value, row + (scheme.places * i + j) * lanes * pitch)
    return code


def _turned(target: Target, scheme: Scheme, width: int) -> Function:
    """Turn transformed gradients: for each place, for each tile, a row of `pitch` filters; places lie `apart`."""
    pointers = Argument("panels", "*float"), Argument("rows", "*float")
    code = Function("turned", [*pointers, *map(Argument, ("tiles", "pitch", "apart"))], target)
    panels, rows, tiles, pitch, apart = code.given
    lanes, length = target.lanes, width + target.lanes
    with code.loop(0, scheme.products) as place, code.loop(0, tiles, lanes) as tile:
        own, goal = rows + (place * (lanes * length) + tile), panels + (place * apart + tile * pitch)
        for i, vector in enumerate(transposed(code, [code.load(own + i * length) for i in range(lanes)])):
            code.store(vector, goal + i * pitch, align=code.bytes)
    return code


def _weights(target: Target, scheme: Scheme) -> Function:
    """Transform the sums of all places into taps, term by term and vector by vector of filters."""
    pointers = Argument("taps", "*float"), Argument("sums", "*float")
    code = Function("weights", [*pointers, *map(Argument, ("terms", "pitch", "apart"))], target)
    goal, sums, terms, pitch, apart = code.given
    lanes, half = target.lanes, code.constant(0.5)
    with code.loop(0, terms) as term, code.loop(0, pitch, lanes) as lane:
        here = sums + (term * pitch + lane)
        places = [
            [code.load(here + (scheme.places * i + j) * apart, align=code.bytes) for j in range(scheme.places)]
            for i in range(scheme.places)
        ]
        columns = [scheme.weights(column, half) for column in zip(*places, strict=True)]
        for row in range(TAPS):
            for tap, value in enumerate(scheme.weights([column[row] for column in columns], half)):
                number = term * TAPS**2 + (row * TAPS + tap)
                code.store(value, goal + (number * pitch + lane), align=code.bytes)
    return code


class _ShareOfTiles(Share):
    """A share whose units are blocks of tiles."""

    def __init__(
        self, target: Target, sums: Sums, transforms: Transforms, functions: tuple[Function, Function, Function]
    ) -> None:
        self.transforms, (self.gradients, self.turned, self.weights) = transforms, functions
        super().__init__(target, sums, AHEAD)

    def units(self, arrays: tuple[Pointer, ...], numbers: tuple[Int, ...], left: Int) -> None:
        code, plan, width = self.code, self.plan, self.transforms.width
        memory, *_, scratch, _, _, _ = code.given
        (x, dout, terms, kept), (part, _, count, tiles, pitch) = arrays, numbers
        shape, places = TILES.read(memory), PLACES.read(memory + (AHEAD + len(WEIGHTS.names)))
        bytes_ = scratch.of("i8")
        of_terms = count // TAPS**2
        sums = (bytes_ + places.at_places).of(code.element)
        with code.loop(0, of_terms) as term:
            terms[term] = term * width
        start, stop = part * plan.units // plan.sharers, (part + 1) * plan.units // plan.sharers
        with code.loop(start, stop) as unit:
            first = unit * shape.tiles_of_block
            in_block = code.minimum(shape.tiles - first, shape.tiles_of_block)
            self.transform((x, dout), (shape, places), (first, in_block), (of_terms, tiles, left))
            is_first = code.select(unit.equals(start), code.variable(1).get(), 0)
            self.multiply((shape, places), (terms, sums), (in_block, of_terms, tiles, is_first))
        apart = of_terms * plan.filters_of_tile
        with code.loop(0, tiles) as tile:
            code.run(
                self.weights, kept + tile * pitch, sums + tile * self.transforms.scheme.products * apart, of_terms,
                plan.filters_of_tile, apart,
            )  # fmt: skip

    def transform(
        self,
        arrays: tuple[Pointer, Pointer],
        plans: tuple[Fields, Fields],
        block: tuple[Int, Int],
        counts: tuple[Int, Int, Int],
    ) -> None:
        """Transform the cells and the gradients of a block of tiles."""
        code, plan, width, lanes = self.code, self.plan, self.transforms.width, self.target.lanes
        memory, *_, scratch, _, _, _ = code.given
        (x, dout), (shape, places), (first, in_block), (terms, tiles, left) = arrays, plans, block, counts
        bytes_ = scratch.of("i8")
        table, goals = ((bytes_ + at).of(INTEGER) for at in (places.at_tables, places.at_goals))
        pieces = code.call(self.transforms.tables, memory, table, goals, first, in_block)
        code.run(
            self.transforms.inputs, scratch, x, table, pieces, shape.pieces, terms, shape.planes, shape.x_channel,
            shape.input_width, width, terms * width + lanes,
        )  # fmt: skip
        rows, panels = ((bytes_ + at).of(code.element) for at in (places.at_rows, places.at_panels))
        of_tile = plan.filters_of_tile
        with code.loop(0, tiles * of_tile, lanes) as filter_:
            here = code.minimum(filter_, left - 1)
            code.run(
                self.gradients, rows, dout + here * shape.positions, goals, left - here, shape.positions, shape.width
            )
            tile, lane = filter_ // of_tile, filter_ % of_tile
            goal = panels + (tile * self.transforms.scheme.products * width * of_tile + lane)
            code.run(self.turned, goal, rows, in_block, of_tile, width * of_tile)

    def multiply(
        self, plans: tuple[Fields, Fields], arrays: tuple[Pointer, Pointer], numbers: tuple[Int, Int, Int, Int]
    ) -> None:
        """Add the products of a block of tiles to the sums, place by place."""
        code, plan, width, lanes = self.code, self.plan, self.transforms.width, self.target.lanes
        scratch = code.given[5]
        (_, places), (terms, sums), (in_block, of_terms, tiles, is_first) = plans, arrays, numbers
        panels = (scratch.of("i8") + places.at_panels).of(code.element)
        products, of_tile = self.transforms.scheme.products, plan.filters_of_tile
        with code.loop(0, tiles) as tile, code.loop(0, products) as place:
            number = tile * products + place
            cells = scratch + place * (of_terms * width + lanes)
            panel, goal = panels + number * width * of_tile, sums + number * of_terms * of_tile
            self.run((panel, cells, terms, terms, goal), (of_tile, 1, of_terms, in_block, is_first))
