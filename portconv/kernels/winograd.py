"""Winograd's minimal filtering F(2x2, 3x3), with its transforms in the kernel.

Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), section 4: a tile of 2x2 outputs of a
3x3 kernel takes 16 multiplications in place of 36,

    out = A^T ((G w G^T) * (B^T x B)) A

and 25 at stride 2; `winograd_schemes` has the matrices. Tiles of all samples are counted through, one a lane. A first
phase transforms the filters. Then each share transforms the inputs of a few vectors of tiles into panels, one for
each place of a tile, multiplies them as `panels` does, and transforms the sums into outputs. A kernel of more
dimensions is one of planes, and a larger plane is cut into parts of 3x3: each part of each plane is a term of the sums.
So 5x5 taps take 64 multiplications in place of 100.

The transforms add numbers of neighbouring windows, so one number that is not finite spoils its tile. Then at least
one output of the tile is not finite, and the share says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from .emit import Function, Module
from .record import Fields
from .share import SHARE, driver
from .target import Target
from .tile import filters_from, finished, sums_of
from .values import INTEGER, Flag, Int, Number, Pointer, Vector
from .winograd_plan import FILTERS_AT_ONCE, PLAN, RUNS, VARIANTS, WHOLE_RUN, plan_of, planes_of, serves
from .winograd_schemes import SCHEMES, Scheme
from .winograd_transforms import Transforms

__all__ = ["VARIANTS", "module", "plan_of", "planes_of", "serves", "written"]


def module(target: Target, variant: str) -> Module:
    """Write the kernels."""
    return written(target, SCHEMES[variant])


def written(target: Target, scheme: Scheme) -> Module:
    """Write the kernels for one kind of tiles."""
    transforms = Transforms(target, scheme)
    share = _share(target, transforms)
    return Module([*transforms.functions, share, *driver(target, share)])


def _share(target: Target, transforms: Transforms) -> Function:
    """Transform what all shares read in the first phase; in the second one compute outputs.

    Few tiles and many filters: the first phase transforms the inputs, and each share its own filters, which stay in
    the cache until all tiles are multiplied. Otherwise it is the other way round.
    """
    code = Function("share", SHARE, target, returns=True)
    memory, x, w, b, out, scratch, shared, phase, index = code.given
    plan, flag = PLAN.read(memory), code.variable(0)
    tiles_first, filters = plan.tiles_first.equals(1), plan.groups * plan.filters
    block = _Block(transforms, code, plan, (memory, x, scratch))
    is_first = phase.equals(0)
    with code.when(is_first & ~tiles_first):
        first = index * plan.filters_of_share
        last = code.minimum(first + plan.filters_of_share, filters)
        code.run(transforms.filters, memory, w, shared + first * plan.pitch, scratch, first, last, filters)
    with code.when(is_first & tiles_first):
        block.enter(index)
        block.transform(index, shared + block.place(index))
    with code.when(~is_first):
        filter_block, columns = index % plan.filter_blocks, index // plan.filter_blocks
        group = code.select(tiles_first, columns, columns // plan.column_blocks)
        first = filter_block * plan.filters_of_block
        last = code.minimum(first + plan.filters_of_block, plan.filters)
        ahead = group * plan.filters
        own = (scratch.of("i8") + plan.at_filters).of(code.element)
        with code.when(tiles_first):
            code.run(transforms.filters, memory, w, own, scratch, ahead + first, ahead + last, plan.filters_of_block)
        places = code.select(tiles_first, own - first * plan.pitch, shared + ahead * plan.pitch)
        block.rows = code.select(tiles_first, plan.filters_of_block, filters)
        start = group * plan.column_blocks
        here = code.select(tiles_first, start, columns)
        with code.loop(here, code.select(tiles_first, start + plan.column_blocks, columns + 1)) as number:
            block.enter(number)
            block.panels = code.select(tiles_first, shared + block.place(number), scratch)
            with code.when(~tiles_first):
                block.transform(number, scratch)
            arrays = places, b + ahead * plan.bias_step, out + ahead * plan.positions
            with code.loop(first, last, FILTERS_AT_ONCE) as at:
                stop = code.minimum(at + FILTERS_AT_ONCE, last)
                flag.set(flag.get() + block.filters(arrays, (at, stop)))
    code.give(flag.get())
    return code


class _Block:
    """The tiles of a share, and their products with filters.

    The last blocks of a group are those of lone tiles, one each.

    Attributes
    ----------
    panels : Pointer
        The transformed inputs: for each place, a panel.
    rows : Int
        How many transformed filters there are for each place.
    is_lone : Flag
    count, pieces : Int
        How many tiles there are, and in how many pieces.
    pitch, size : Int
        The numbers from one row of a panel to the next, and from one panel to the next.
    """

    is_lone: Flag
    count: Int
    pieces: Int
    pitch: Int
    size: Int

    def __init__(self, transforms: Transforms, code: Function, plan: Fields, given: Sequence[Pointer]) -> None:
        self.transforms, self.code, self.plan = transforms, code, plan
        self.memory, self.x, scratch = given
        self.panels, self.rows = scratch, plan.filters
        self.table, self.goals, self.sums = (
            (scratch.of("i8") + at).of(kind)
            for at, kind in ((plan.at_tables, INTEGER), (plan.at_goals, INTEGER), (plan.at_sums, code.element))
        )
        self.zero = code.array(1)
        self.zero[0] = Vector(code, code.element, "zeroinitializer")

    def enter(self, number: Int) -> None:
        """Write down where the tiles of a block lie."""
        code, plan, width = self.code, self.plan, self.transforms.width
        of_group = number % plan.column_blocks
        self.is_lone = of_group >= plan.column_blocks - plan.lone
        start = code.select(self.is_lone, plan.tiles - plan.column_blocks + of_group, of_group * plan.tiles_of_block)
        self.count = code.minimum(plan.tiles - plan.lone - start, plan.tiles_of_block)
        self.count = code.select(self.is_lone, 1, self.count)
        self.pitch = code.select(self.is_lone, 1, width)
        self.size = self.size_of(self.pitch)
        self.pieces = code.call(self.transforms.tables, self.memory, self.table, self.goals, start, self.count)

    def size_of(self, pitch: Number) -> Int:
        """Return the numbers of a panel; a piece is stored as a whole vector, so the last one goes beyond its rows."""
        size: Int = self.plan.terms * pitch + self.transforms.lanes
        return size

    def place(self, number: Int) -> Int:
        """Return where the panels of a block begin in the memory that holds those of all blocks."""
        code, plan = self.code, self.plan
        of_group, group, whole = (
            number % plan.column_blocks,
            number // plan.column_blocks,
            self.size_of(self.transforms.width),
        )
        before = code.minimum(of_group, plan.column_blocks - plan.lone)
        of_groups = group * ((plan.column_blocks - plan.lone) * whole + plan.lone * self.size_of(1))
        of_place: Int = of_groups + before * whole + (of_group - before) * self.size_of(1)
        return of_place * self.transforms.scheme.products

    def transform(self, number: Int, panels: Pointer) -> None:
        """Transform the inputs of the block's tiles."""
        plan, channels = self.plan, self.plan.terms // self.plan.planes
        cells = self.x + number // plan.column_blocks * channels * plan.x_channel
        self.code.run(
            self.transforms.inputs, panels, cells, self.table,
            self.pieces, plan.pieces, plan.terms, plan.planes, plan.x_channel, plan.input_width, self.pitch, self.size,
        )  # fmt: skip

    def filters(self, arrays: Sequence[Pointer], between: tuple[Int, Int]) -> Int:
        """Multiply at all places, transform and store the outputs of some filters."""
        code, transforms, plan = self.code, self.transforms, self.plan
        (places, b, out), (first, last) = arrays, between
        vectors = (self.count + (transforms.lanes - 1)) // transforms.lanes
        flag = code.variable(0)
        with code.loop(0, transforms.scheme.products) as place:
            own = places + self.filter_place(place) * self.rows * plan.pitch
            with code.when(self.is_lone):
                goal = self.sums + place * FILTERS_AT_ONCE * transforms.width - first * transforms.width
                panel = self.panels + place * self.size
                # What is not finite here shows in an output.
                code.call(
                    transforms.lone,
                    panel,
                    own,
                    self.zero,
                    goal,
                    first,
                    last,
                    plan.terms,
                    plan.pitch,
                    transforms.width,
                    0,
                )
            with code.when(~self.is_lone):
                self.products(place, own, between, vectors)
        with code.loop(first, last) as at:
            found = code.call(
                transforms.outputs, self.sums + (at - first) * transforms.width, b + at * plan.bias_step,
                out + at * plan.positions, self.goals, vectors, plan.width,
            )  # fmt: skip
            flag.set(flag.get() + found)
        result: Int = flag.get()
        return result

    def filter_place(self, place: Int) -> Int:
        """Return which number of a transformed filter is multiplied at a place."""
        size, numbers = self.transforms.scheme.places, self.transforms.scheme.numbers
        row, column = (self.code.minimum(each, numbers - 1) for each in (place // size, place % size))
        return row * numbers + column

    def products(self, place: Int, own: Pointer, between: tuple[Int, Int], vectors: Int) -> None:
        """Multiply the filters, which begin at `own`, by so many vectors of tiles at one place."""
        code, transforms, (first, last), most = self.code, self.transforms, between, self.transforms.target.filters
        with code.loop(first, last, most) as at:
            left = last - at
            for size, fits in ((most, left > most // 2), (most // 2, left <= most // 2)):
                with code.when(fits):
                    filters = filters_from(code, own, self.plan.pitch, at, last, size)
                    goal = self.sums + (place * FILTERS_AT_ONCE + (at - first)) * transforms.width
                    for each in range(1, transforms.target.vectors + 1):
                        with code.when(vectors.equals(each)):
                            self.tile(place, filters, goal, each)

    def tile(self, place: Int, filters: list[Pointer], goal: Pointer, vectors: int) -> None:
        """Add up the products of a tile at one place, in runs."""
        code, transforms, terms = self.code, self.transforms, self.plan.terms
        lanes, width, run = transforms.lanes, transforms.width, RUNS.get(transforms.target.element, WHOLE_RUN)
        with code.loop(0, terms, run) as first:
            panel = self.panels + place * self.size + first * width
            length = code.minimum(terms - first, run)
            totals = sums_of(code, (panel, width), [one + first for one in filters], vectors, length)
            with code.when(first > 0):
                for i, own in enumerate(totals):
                    for v, total in enumerate(own):
                        total.set(code.load(goal + (i * width + v * lanes), align=code.bytes) + total.get())
            for i, values in enumerate(finished(totals)):
                for v, value in enumerate(values):
                    code.store(value, goal + (i * width + v * lanes), align=code.bytes)
