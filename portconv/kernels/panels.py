"""Dense products: the cells of a block of positions are copied into panels, and filters multiply the panels.

A panel has a row for each term of a sum, that is a channel and a tap of the kernel, and a column for each position of a
few vectors: im2col, of a block that stays in the cache and without gaps. The positions of all samples are counted
through, so that no lane is wasted at the end of a row or of a sample. Cells outside of the input are zeros that masked
loads bring, so no padded copy is made. The copy reads any stride, dilation, padding and number of dimensions; the
products know none of these.

Sums are added up in runs of `RUN` terms: first those of a run, one after the other, then those of the runs.
"""

from __future__ import annotations

from .emit import Argument, Flag, Function, Int, Module, Number, Pointer, Record, Vector
from .share import PLAN_HEAD, SHARE, driver
from .sizes import SHARE_PRODUCTS, Layout, Planned, Sizes, addresses, blocks, ceiling, numbers
from .target import Target
from .tile import filters_from, finished, sums_of

RUN = 256
"""So many terms are added up one after the other."""
MOST_OUTER = 15
"""The most dimensions before the last one."""
MOST_PANELS, BLOCK_BYTES = 4, 600 << 10
"""A share has at most so many panels, and takes about so many bytes, so that they stay in the second cache."""
MOST_SHARES, FEWEST_FILTERS = 16, 64
"""There are no more shares than this for the sake of threads, and filters are cut to this number: each share copies."""
MOST_ENTRIES = 1 << 14
"""The most taps times pieces of a panel, so that the tables stay in the cache."""
CYCLES_OF_PIECE = {"full": 3.0, "halved": 4.5, "gathered": 24.0}
CYCLES_OF_TABLE = 12.0
"""About how many vectors are multiplied in the time in which one is copied, and one entry of a table is made."""
FULL, HALVED, GATHERED = "full", "halved", "gathered"
"""How cells are read: side by side, every second one of two vectors, or each by an address of its own."""
VARIANTS = (FULL, HALVED, GATHERED)

PLAN = Record(
    *PLAN_HEAD,
    *("channels", "filters", "terms", "taps", "taps_of_row"),
    *("rows", "width", "positions", "columns"),
    *("input_width", "step", "x_sample", "x_channel", "out_sample", "bias_step"),
    *("outer", "outer_sizes", "outer_steps", "outer_inputs", "outer_strides", "outer_taps", "row_taps"),
    *("panels", "column_blocks", "filter_blocks", "filters_of_block", "pieces"),
    *("at_tables", "at_pieces", "at_images", "at_sums"),
)
"""The plan in memory. `outer` counts the dimensions before the last, which have lists of that length; `outer_taps` has
such a list for each of their taps, and `row_taps` the first cell of each tap along the last dimension."""


def steps_of(stride: int) -> str:
    """Return how the cells of neighbouring positions are read, for a stride along the last dimension."""
    return {1: FULL, 2: HALVED}.get(stride, GATHERED)


def _pieces(sizes: Sizes, width: int, lanes: int) -> int:
    """Return how many pieces a panel has at most."""
    row = sizes.out[-1]
    # A panel that begins within a row has one more.
    return min(width, width // row * ceiling(min(row, width), lanes) + ceiling(min(row, width), lanes) + 1)


def plan_of(target: Target, sizes: Sizes, *, has_bias: bool, memory: int = BLOCK_BYTES) -> Planned | None:
    """Plan a convolution in blocks of about so many bytes, or return nothing if the kernels do not serve it.

    There are few enough panels and filters in a block for the cache, and enough blocks for threads to share.
    """
    width, terms = target.lanes * target.vectors, sizes.channels * sizes.taps
    columns, entries = sizes.batch * sizes.positions, _pieces(sizes, width, target.lanes)
    if len(sizes.size) > MOST_OUTER + 1 or sizes.taps * entries > MOST_ENTRIES:
        return None
    of_panel = 4 * RUN * width + 16 * sizes.taps * entries + (4 * width * sizes.filters if terms > RUN else 0)
    panels_in_all = ceiling(columns, width)
    most = max(1, min(MOST_PANELS, min(BLOCK_BYTES, memory) // of_panel))
    products = sizes.groups * sizes.filters * terms * columns
    wanted = min(MOST_SHARES, max(1, products // SHARE_PRODUCTS))
    column_blocks, panels = blocks(panels_in_all, max(1, min(most, panels_in_all * sizes.groups // wanted)))
    split = min(max(1, wanted // (column_blocks * sizes.groups)), max(1, sizes.filters // FEWEST_FILTERS))
    # A tile of filters is never cut.
    tiles = ceiling(sizes.filters, target.filters)
    filter_blocks, tiles_of_block = blocks(tiles, ceiling(tiles, split))
    filters_of_block = tiles_of_block * target.filters

    layout, table = Layout(), sizes.taps * entries * 16
    layout.add(4 * (panels * RUN * width + target.lanes))
    places = {
        "at_tables": layout.add(panels * table),
        "at_pieces": layout.add(8 * panels),
        "at_images": layout.add(8 * panels * (3 * width + 1)),
        "at_sums": layout.add(4 * panels * filters_of_block * width if terms > RUN else 0),
    }
    kernel, before = sizes.kernel[-1], sizes.before[-1]
    lists = sizes.outer(len(sizes.size) - 1)
    lists["row_taps"] = numbers([tap * sizes.dilation[-1] - before for tap in range(kernel)])
    shares = sizes.groups * column_blocks * filter_blocks
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares, "channels": sizes.channels, "terms": terms},
        **{"filters": sizes.filters, "taps": sizes.taps, "taps_of_row": kernel, "columns": columns},
        **{"rows": sizes.positions // sizes.out[-1], "width": sizes.out[-1], "positions": sizes.positions},
        **{"input_width": sizes.size[-1], "step": sizes.stride[-1], "bias_step": int(has_bias)},
        **{"x_sample": sizes.in_channels * sizes.cells, "x_channel": sizes.cells},
        **{"out_sample": sizes.out_channels * sizes.positions, "outer": len(sizes.size) - 1},
        **{"panels": panels, "column_blocks": column_blocks, "filter_blocks": filter_blocks},
        **{"filters_of_block": filters_of_block, "pieces": entries},
        **places,
        **addresses(lists),
    )
    block = {"positions": panels * width, "filters": min(filters_of_block, sizes.filters)}
    return Planned(
        steps_of(sizes.stride[-1]), values, tuple(lists.values()), shares, layout.bytes, block, 0,
        _cycles(sizes, target, filter_blocks),
    )  # fmt: skip


def _cycles(sizes: Sizes, target: Target, filter_blocks: int) -> float:
    """Estimate the time: products of whole tiles, and the copy of each panel, piece by piece."""
    width, terms = target.lanes * target.vectors, sizes.channels * sizes.taps
    columns = ceiling(sizes.batch * sizes.positions, target.lanes) * target.lanes
    rows = ceiling(sizes.filters, target.filters // 2) * (target.filters // 2)
    row = min(sizes.out[-1], width)
    pieces = ceiling(row, target.lanes) / row * columns
    copies = pieces * CYCLES_OF_PIECE[steps_of(sizes.stride[-1])] * filter_blocks
    return sizes.groups * terms * (rows * columns / target.lanes + copies) + CYCLES_OF_TABLE * pieces * sizes.taps


def module(target: Target, steps: str) -> Module:
    """Write the kernels for one way of reading cells."""
    kernels = Panels(target, steps)
    share = kernels.share()
    return Module([kernels.tables, kernels.copy, share, *driver(target, share)])


class Panels:
    """The functions of this family, for one target and one way of reading cells."""

    def __init__(self, target: Target, steps: str) -> None:
        self.target, self.steps = target, steps
        self.lanes, self.width = target.lanes, target.lanes * target.vectors
        self.tables = self._tables()
        self.copy = self._copy()

    def _tables(self) -> Function:
        """Write down, for a panel, what to read for each tap and where the sums go.

        Pieces are runs of at most `lanes` columns in one row of outputs; images are runs of columns in one sample.
        For each tap and piece there are two numbers: where to read, counted from the sample's first channel, and which
        lanes are inside of the input, in the low 32 bits, beside the first column in the high ones.
        """
        names = ("plan", "*i64"), ("table", "*i64"), ("images", "*i64"), ("start", "i64"), ("count", "i64")
        code = Function("tables", [Argument(*each) for each in names], self.lanes, returns=True)
        memory, table, images, start, count = code.given
        plan = PLAN.read(memory)
        lists = {
            name: plan.pointer(name, "i64")
            for name in ("outer_sizes", "outer_steps", "outer_inputs", "outer_strides", "outer_taps", "row_taps")
        }
        place = code.array(MOST_OUTER + 1, "i64")
        pieces, column = code.variable(0), code.variable(0)
        with code.repeat() as end:
            lane: Int = column.get()
            code.leave(lane >= count, end)
            position = start + lane
            row, ox = position // plan.width, position % plan.width
            sample, rest = row // plan.rows, code.variable(row % plan.rows)
            with code.loop(0, plan.outer) as back:
                dim = plan.outer - 1 - back
                left: Int = rest.get()
                place[dim] = left % lists["outer_sizes"][dim] * lists["outer_steps"][dim]
                rest.set(left // lists["outer_sizes"][dim])
            length = code.minimum(code.minimum(plan.width - ox, count - lane), self.lanes)
            piece: Int = pieces.get()
            entry = code.variable(table + piece * 2)
            with code.loop(0, plan.taps // plan.taps_of_row) as tap:
                first, inside = code.variable(sample * plan.x_sample), code.variable(1)
                with code.loop(0, plan.outer) as dim:
                    cell = place[dim] + lists["outer_taps"][tap * plan.outer + dim]
                    is_inside = cell.is_index(lists["outer_inputs"][dim])
                    inside.set(code.select(is_inside, inside.get(), 0))
                    first.set(first.get() + cell * lists["outer_strides"][dim])
                with code.loop(0, plan.taps_of_row) as of_row:
                    cell = ox * plan.step + lists["row_taps"][of_row]
                    bits = self._inside(code, cell, plan.input_width, plan.step)
                    bits = code.select(inside.get().equals(0), 0, bits)
                    at: Pointer = entry.get()
                    at.of("i64")[0] = first.get() + cell
                    at.of("i64")[1] = bits + (lane << 32)
                    entry.set(at.of("i64") + plan.pieces * 2)
            pieces.set(piece + 1)
            column.set(lane + length)
        self._images(code, plan.positions, plan.out_sample, images, start, count)
        code.give(pieces.get())
        return code

    def _inside(self, code: Function, cell: Number, width: Number, step: Int) -> Int:
        """Return the bits of the lanes, or of the cells that are loaded, that are inside of a row of the input."""
        most: int = self.lanes * (2 if self.steps == HALVED else 1)
        low, high = 0 - cell, width - cell
        if self.steps == GATHERED:
            low = code.maximum(low + step - 1, 0) // step
            high = code.maximum(high + step - 1, 0) // step
        low, high = (code.minimum(code.maximum(each, 0), most) for each in (low, high))
        one = code.variable(1).get()
        below: Int = (one << high) - 1
        return below & (0 - (one << low))

    def _images(self, code: Function, positions: Int, sample: Int, images: Pointer, start: Int, count: Int) -> None:
        """Write down how many samples the columns belong to; for each its first column, its place and its length."""
        number, column = code.variable(0), code.variable(0)
        with code.repeat() as end:
            lane: Int = column.get()
            code.leave(lane >= count, end)
            position = start + lane
            length = code.minimum(positions - position % positions, count - lane)
            entry = images + (number.get() * 3 + 1)
            entry[0], entry[2] = lane, length
            entry[1] = position // positions * sample + position % positions
            number.set(number.get() + 1)
            column.set(lane + length)
        images[0] = number.get()

    def _copy(self) -> Function:
        """Copy the cells of some terms into a panel."""
        names = (
            ("panel", "*float"),
            ("x", "*float"),
            ("table", "*i64"),
            *((name, "i64") for name in ("count", "pieces", "first", "last", "taps", "channel", "step")),
        )
        code = Function("copy", [Argument(*each) for each in names], self.lanes)
        panel, x, table, count, pieces, first, last, taps, channel, step = code.given
        tap, cells = code.variable(first % taps), code.variable(x + first // taps * channel)
        with code.loop(first, last) as term:
            row = panel + (term - first) * self.width
            now, here = tap.get(), cells.get()
            entry = table + now * pieces * 2
            with code.loop(0, count) as piece:
                read = entry + piece * 2
                packed: Int = read[1]
                value = self._cells(code, here + read[0], packed, step)
                code.store(value, row + (packed >> 32))
            ends = (now + 1).equals(taps)
            tap.set(code.select(ends, 0, now + 1))
            cells.set(code.select(ends, here + channel, here))
        return code

    def _cells(self, code: Function, place: Pointer, bits: Int, step: Int) -> Vector:
        """Load the cells of neighbouring positions; those outside of the input are zeros."""
        if self.steps == GATHERED:
            return code.gather(place, step, code.mask_of_bits(bits))
        near = code.load(place, code.mask_of_bits(bits))
        if self.steps == FULL:
            return near
        far = code.load(place + self.lanes, code.mask_of_bits((bits >> self.lanes) & ((1 << self.lanes) - 1)))
        return code.shuffle(near, far, [2 * lane for lane in range(self.lanes)])

    def share(self) -> Function:
        """Compute the outputs of a block of positions and of filters."""
        code = Function("share", SHARE, self.lanes, returns=True)
        memory, x, w, b, out, scratch, _, _, index = code.given
        plan = PLAN.read(memory)
        panel_size = RUN * self.width
        tables, images = scratch.of("i8") + plan.at_tables, scratch.of("i8") + plan.at_images
        counts, sums = (scratch.of("i8") + plan.at_pieces).of("i64"), (scratch.of("i8") + plan.at_sums).of("float")
        tables, images = tables.of("i64"), images.of("i64")
        table_size, images_size = plan.taps * plan.pieces * 2, self.width * 3 + 1

        filter_block, rest = index % plan.filter_blocks, index // plan.filter_blocks
        column_block, group = rest % plan.column_blocks, rest // plan.column_blocks
        start = column_block * plan.panels * self.width
        columns = code.minimum(plan.columns - start, plan.panels * self.width)
        panels = (columns + (self.width - 1)) // self.width
        first_filter = filter_block * plan.filters_of_block
        last_filter = code.minimum(first_filter + plan.filters_of_block, plan.filters)
        x = x + group * plan.channels * plan.x_channel
        w = w + group * plan.filters * plan.terms
        b = b + group * plan.filters * plan.bias_step
        out = out + group * plan.filters * plan.positions
        with code.loop(0, panels) as panel:
            count = code.minimum(columns - panel * self.width, self.width)
            counts[panel] = code.call(
                self.tables, memory, tables + panel * table_size, images + panel * images_size,
                start + panel * self.width, count,
            )  # fmt: skip
        check = code.variable(code.zeros)
        with code.loop(0, plan.terms, RUN) as term:
            stop = code.minimum(term + RUN, plan.terms)
            with code.loop(0, panels) as panel:
                code.call(
                    self.copy, scratch + panel * panel_size, x, tables + panel * table_size, counts[panel],
                    plan.pieces, term, stop, plan.taps, plan.x_channel, plan.step,
                )  # fmt: skip

            run = _Run(self, code, plan, (w, b, out), (scratch, sums, images), (term, stop), check)
            run.filters(first_filter, last_filter, panels, columns)
        code.give(code.is_not_finite(check.get()))
        return code


class _Run:
    """The products of one run of terms: of all filters of a share with all its panels."""

    def __init__(self, family, code, plan, arrays, memory, terms, check) -> None:  # type: ignore[no-untyped-def]
        self.family, self.code, self.plan, self.check = family, code, plan, check
        self.w, self.b, self.out = arrays
        self.scratch, self.sums, self.images = memory
        self.term, self.stop = terms
        self.is_first, self.is_last = self.term.equals(0), self.stop.equals(plan.terms)

    def filters(self, first: Number, last: Number, panels: Int, columns: Int) -> None:
        code, family = self.code, self.family
        most = family.target.filters
        with code.loop(first, last, most) as at:
            left = last - at
            half = most // 2
            for low, high, size in ((half, most, most), (0, half, half)):
                with code.when((left > low) if high == most else (left <= high)):
                    filters = filters_from(code, self.w + self.term, self.plan.terms, at, last, size)
                    with code.loop(0, panels) as panel:
                        count = code.minimum(columns - panel * family.width, family.width)
                        vectors = (count + (family.lanes - 1)) // family.lanes
                        for each in range(1, family.target.vectors + 1):
                            with code.when(vectors.equals(each)):
                                self.tile(at, code.minimum(left, size), filters, panel, count, each)

    def tile(self, at: Int, rows: Number, filters: list[Pointer], panel: Int, count: Number, vectors: int) -> None:
        code, family, plan = self.code, self.family, self.plan
        lanes, width = family.lanes, family.width
        # Where sums of earlier runs are kept: for each panel, for each filter of the share.
        kept = self.sums + (panel * plan.filters_of_block + at % plan.filters_of_block) * width
        totals = sums_of(code, self.scratch + panel * RUN * width, width, filters, vectors, self.stop - self.term)
        with code.when(~self.is_first):
            for i, own in enumerate(totals):
                for v, total in enumerate(own):
                    total.set(code.load(kept + (i * width + v * lanes), align=4 * lanes) + total.get())
        with code.when(~self.is_last):
            for i, own in enumerate(finished(totals)):
                for v, value in enumerate(own):
                    code.store(value, kept + (i * width + v * lanes), align=4 * lanes)
        with code.when(self.is_last):
            images = self.images + panel * (width * 3 + 1)
            values = finished(totals)
            bias = [
                code.splat(self.b[code.minimum(at + i, plan.filters - 1) * plan.bias_step]) for i in range(len(values))
            ]
            values = [[value + number for value in own] for own, number in zip(values, bias, strict=True)]
            whole = (
                images[0].equals(1)
                & (count + 0 if isinstance(count, int) else count).equals(vectors * lanes)
                & (rows + 0).equals(len(values))
            )
            place = self.out + at * plan.positions
            with code.when(whole):
                for i, own in enumerate(values):
                    row = place + (plan.positions * i + images[2])
                    for v, value in enumerate(own):
                        code.store(value, row + v * lanes)
                        self.look(value)
            with code.when(~whole):
                buffer = self.buffer
                for i, own in enumerate(values):
                    for v, value in enumerate(own):
                        code.store(value, buffer + (i * width + v * lanes), align=4 * lanes)
                with code.loop(0, rows) as i:
                    with code.loop(0, images[0]) as image:
                        entry = images + (image * 3 + 1)
                        row = place + (plan.positions * i + entry[1])
                        with code.loop(0, entry[2], lanes) as lane:
                            mask = code.lanes_between(None, entry[2] - lane)
                            value = code.load(buffer + (i * width + entry[0] + lane), mask)
                            code.store(value, row + lane, mask)
                            self.look(value)

    @property
    def buffer(self) -> Pointer:
        if not hasattr(self.family, "_buffer"):
            self.family._buffer = self.code.array((self.family.target.filters + 1) * self.family.width)
        return self.family._buffer

    def look(self, value: Vector) -> None:
        """Let the check become nan if a number is not finite."""
        code = self.code
        self.check.set(code.fma(value, code.zeros, self.check.get()))
