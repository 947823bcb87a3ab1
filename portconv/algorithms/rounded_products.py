"""Products of float32 arrays by kernels of this CPU, quantised, and rounded to float32 as exact sums would be.

Kernels find the scales of the operands (see `kernels.scales`), quantise them piece by piece, multiply them in float64,
and round the sums while they are in the cache (see `kernels.rounded`). All is planned once for a convolution, and runs
on addresses.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..kernels import call
from ..kernels.call import NO_BIAS
from ..kernels.choice import (
    Chosen,
    chosen_to_quantise,
    chosen_to_round,
    chosen_to_round_filters,
    chosen_to_scale,
)
from ..kernels.scales import Groups
from ..kernels.sizes import Layout
from ..spec.dtypes import gamma
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.remembered import remembered
from .kernel_products import product_of
from .planned_calls import Asked, Product, call_of_magnitudes, made_ready, sizes_of
from .rounded_pieces import WIDE, Piece, pieces_of

SINGLE = 4
"""The bytes of a number of float32."""
MORE_ROUNDINGS = 4
"""The roundings beside those of a sum: the bound is rounded itself, and so are the ends of the range."""
SPARE = 2
"""The place of the spare memory: products take others."""


class Addresses(NamedTuple):
    """The addresses of the operands, of a bias for each channel of the result, of magnitudes, and of the result.

    The magnitudes are the largest ones of each sample's channel, of operands that have samples. Those that are 0 are
    found, and so is a bias, of zeros.
    """

    first: int
    second: int
    biases: int
    first_magnitudes: int
    second_magnitudes: int
    out: int


class Planned(NamedTuple):
    """A product that is ready to run on addresses, and the bytes of memory that it takes.

    `run` takes at most so many threads, and returns whether all sums are rounded. Otherwise too many are undecided, a
    number is not finite, or results may be subnormal or infinite.
    """

    memory: int
    run: Callable[[Addresses, int], bool]


class _Scales:
    """What finds the factors of an operand that has samples, of the magnitudes of its channels."""

    def __init__(self, shape: tuple[int, int, int], groups: Groups, others: int, biases: int, terms: int) -> None:
        samples, channels, cells = shape
        self.find = call_of_magnitudes(samples, channels, cells, "float")
        self.scale = made_ready(chosen_to_scale("magnitudes", groups, others, biases, terms))
        self.bytes = WIDE * samples * channels

    def fail(self, array: int, magnitudes: int, others: tuple[int, int], places: tuple[int, int], threads: int) -> bool:
        """Find the factors; return whether results may be no normal numbers.

        `others` are the addresses of the other operand's factors and of the biases, and `places` those of memory for
        magnitudes that are not known, and of the factors.
        """
        own, factors = places
        if not magnitudes:
            magnitudes = own
            if self.find.run((array, array, NO_BIAS, own), threads):
                return True
        return self.scale.run((magnitudes, *others, factors), threads) != 0


@remembered()
def rounded_product(geometry: Geometry, kind: Kind, memory: int) -> Planned | None:
    """Plan a product of operands that take at most so many bytes beside their results; None if there is none."""
    for cuts in (True, False):  # not every convolution of some rows has a plan
        pieces = pieces_of(geometry, kind, cuts=cuts)
        plan = _of_filters if kind == Kind.WEIGHT_GRAD else _of_windows
        planned = plan(geometry, kind, memory, pieces)
        if planned is not None and planned.memory <= memory:
            return planned
    return None


class _Windows(NamedTuple):
    """What computes a piece of an output, or of a gradient of an input."""

    quantise: call.Call
    squares: Product | None
    product: Product
    round: call.Call


class _Filters:
    """What scales and quantises the filters of outputs, or of gradients of inputs."""

    def __init__(self, geometry: Geometry, *, of_inputs: bool) -> None:
        groups, ins, outs = geometry.groups, geometry.group_in * geometry.taps, geometry.group_out
        if of_inputs:  # the factor of a channel is written for each of its taps
            variant, shape = "columns", (groups, outs, ins)
            of_group = Groups(groups, outs, geometry.group_in, geometry.taps, geometry.taps)
        else:
            variant, shape, of_group = "rows", (groups * outs, 1, ins), Groups(groups * outs, 1, 1, ins)
        self.rows = groups * (ins if of_inputs else outs)
        """How many factors and squares there are."""
        self.scale = made_ready(chosen_to_scale("numbers", of_group))
        self.quantise = made_ready(chosen_to_quantise(variant, shape, groups * outs))


def _of_windows(geometry: Geometry, kind: Kind, memory: int, pieces: list[Piece]) -> Planned | None:
    """Plan an output, or a gradient of an input."""
    of_inputs, groups, batch = kind == Kind.INPUT_GRAD, geometry.groups, geometry.batch
    cells, positions = math.prod(geometry.size), geometry.positions
    channels, results = geometry.in_channels, geometry.out_channels
    read, written = cells, positions
    counts = [(piece.cells, piece.positions) for piece in pieces]
    if of_inputs:
        channels, results, read, written = results, channels, written, read
        counts = [each[::-1] for each in counts]
    found = [_windows(piece.geometry, kind, memory, (read, written)) for piece in pieces]
    chunks = [(piece, each) for piece, each in zip(pieces, found, strict=True) if each is not None]
    if len(chunks) < len(pieces):
        return None
    filters = _Filters(geometry, of_inputs=of_inputs)
    of_samples = Groups(batch * groups, 1, 1, channels // groups)
    scales = _Scales((batch, channels, read), of_samples, filters.rows, results, geometry.terms(kind))
    layout, most_read, most_written = Layout(), *map(max, zip(*counts, strict=True))
    at_magnitudes, at_factors = layout.add(scales.bytes), layout.add(WIDE * batch * groups)
    at_row_factors, at_row_squares = layout.add(WIDE * filters.rows), layout.add(WIDE * filters.rows)
    at_filters = layout.add(WIDE * geometry.weights)
    at_cells, at_squares = layout.add(WIDE * channels * most_read), layout.add(WIDE * groups * most_read)
    at_windows, at_sums = layout.add(WIDE * groups * most_written), layout.add(WIDE * results * most_written)
    ones, zeros = array("d", [1.0]) * (groups * geometry.taps), array("f", [0.0]) * results

    def run(places: Addresses, threads: int) -> bool:
        first, second, biases, magnitudes, _, out = places
        biases = biases or zeros.buffer_info()[0]
        with call.spare(layout.bytes, SPARE) as spare:
            factors, of_rows, row_squares = spare + at_factors, spare + at_row_factors, spare + at_row_squares
            if filters.scale.run((second, second, NO_BIAS, of_rows), threads):
                return False
            if scales.fail(first, magnitudes, (of_rows, biases), (spare + at_magnitudes, factors), threads):
                return False
            weights, cells, sums = spare + at_filters, spare + at_cells, spare + at_sums
            filters.quantise.run((second, row_squares, of_rows, weights), threads)
            for (_, sample, cell, position), chunk in chunks:
                start, goal = (position, cell) if of_inputs else (cell, position)
                of_sample, windows = factors + WIDE * sample * groups, spare + at_squares
                here = first + SINGLE * (sample * channels * read + start)
                chunk.quantise.run((here, windows, of_sample, cells), threads)
                if chunk.squares is not None:
                    of_cells, windows = windows, spare + at_windows
                    chunk.squares.run((of_cells, ones.buffer_info()[0], NO_BIAS, windows), threads, True)
                chunk.product.run((cells, weights, NO_BIAS, sums), threads, True)
                # In the order of `kernels.rounded_plan.ARRAYS`.
                record = array("q", (cells, weights, of_sample, of_rows, row_squares, windows, biases))
                there = out + SINGLE * (sample * results * written + goal)
                if chunk.round.run((sums, record.buffer_info()[0], NO_BIAS, there), threads):
                    return False
        return True

    return Planned(layout.bytes + max(chunk.product.memory for _, chunk in chunks), run)


@remembered()
def _windows(geometry: Geometry, kind: Kind, memory: int, given: tuple[int, int]) -> _Windows | None:
    """Plan a piece; in each channel the whole arrays have so many cells that are read, and that are written."""
    of_inputs, groups = kind == Kind.INPUT_GRAD, geometry.groups
    shape = (geometry.batch * groups, geometry.group_out, geometry.positions)
    if not of_inputs:
        shape = (geometry.batch * groups, geometry.group_in, math.prod(geometry.size))
    product = product_of(Asked(geometry, False, memory, kind, element="double"))
    one = replace(geometry, in_channels=groups, out_channels=groups)
    # All terms are positive: their plain sums have small relative errors, and those of tiles may not.
    squares = product_of(Asked(one, False, memory, kind, element="double", exact=True))
    if product is None or squares is None or not shape[2]:
        return None
    is_window = geometry.taps == 1 and geometry.size == geometry.out and not any((*geometry.before, *geometry.after))
    error = gamma((product.roundings or geometry.terms(kind)) + MORE_ROUNDINGS)
    quantise = _ready(chosen_to_quantise("cells", shape, geometry.batch * groups, given[0]))
    rounding = _ready(chosen_to_round(sizes_of(geometry, "double"), error, given[1], of_inputs=of_inputs))
    if quantise is None or rounding is None:
        return None
    return _Windows(quantise, None if is_window else squares, product, rounding)


class _Correlation(NamedTuple):
    """What computes a piece of a gradient of filters."""

    quantise_grads: call.Call
    quantise_cells: call.Call
    product: Product
    roundings: int


def _of_filters(geometry: Geometry, kind: Kind, memory: int, pieces: list[Piece]) -> Planned | None:
    """Plan a gradient of filters, of which the sums of all pieces are added up."""
    ins, outs, weights, batch = geometry.in_channels, geometry.out_channels, geometry.weights, geometry.batch
    positions, size = geometry.positions, math.prod(geometry.size)
    found = [_correlation(piece.geometry, memory, (positions, size)) for piece in pieces]
    chunks = [(piece, each) for piece, each in zip(pieces, found, strict=True) if each is not None]
    if len(chunks) < len(pieces):
        return None
    stacked, squares = len(pieces), sum(piece.geometry.batch for piece in pieces)
    error = gamma(max(chunk.roundings for _, chunk in chunks) + stacked + MORE_ROUNDINGS)
    rounding = made_ready(chosen_to_round_filters(sizes_of(geometry, "double"), error, stacked, squares))
    scale_cells = _Scales((batch, ins, size), Groups(1, batch, ins, 1), 0, 0, 1)
    scale_grads = _Scales((batch, outs, positions), Groups(1, batch, outs, 1), ins, 0, geometry.terms(kind))
    layout, zeros = Layout(), array("f", [0.0]) * outs
    at_magnitudes = layout.add(max(scale_cells.bytes, scale_grads.bytes))
    at_of_grads, at_of_cells = layout.add(WIDE * outs), layout.add(WIDE * ins)
    at_grads = layout.add(WIDE * outs * max(piece.positions for piece in pieces))
    at_cells = layout.add(WIDE * ins * max(piece.cells for piece in pieces))
    at_rows, at_columns = layout.add(WIDE * squares * outs), layout.add(WIDE * squares * ins)
    at_sums = layout.add(WIDE * stacked * weights)

    def run(places: Addresses, threads: int) -> bool:
        first, second, _, first_magnitudes, second_magnitudes, out = places
        with call.spare(layout.bytes, SPARE) as spare:
            of_grads, of_cells, sums = spare + at_of_grads, spare + at_of_cells, spare + at_sums
            found = spare + at_magnitudes, of_cells
            if scale_cells.fail(second, second_magnitudes, (NO_BIAS, NO_BIAS), found, threads):
                return False
            found = spare + at_magnitudes, of_grads
            if scale_grads.fail(first, first_magnitudes, (of_cells, NO_BIAS), found, threads):
                return False
            grads, cells, rows, columns = spare + at_grads, spare + at_cells, spare + at_rows, spare + at_columns
            for (part, sample, cell, position), chunk in chunks:
                here = first + SINGLE * (sample * outs * positions + position)
                chunk.quantise_grads.run((here, rows, of_grads, grads), threads)
                there = second + SINGLE * (sample * ins * size + cell)
                chunk.quantise_cells.run((there, columns, of_cells, cells), threads)
                # Kernels take the input first.
                chunk.product.run((cells, grads, NO_BIAS, sums), threads, True)
                rows, columns = rows + WIDE * part.batch * outs, columns + WIDE * part.batch * ins
                sums += WIDE * weights
            of_all = spare + at_rows, spare + at_columns, zeros.buffer_info()[0]
            record = array("q", (first, second, of_grads, of_cells, *of_all))
            return not rounding.run((spare + at_sums, record.buffer_info()[0], NO_BIAS, out), threads)

    return Planned(layout.bytes + max(chunk.product.memory for _, chunk in chunks), run)


@remembered()
def _correlation(geometry: Geometry, memory: int, given: tuple[int, int]) -> _Correlation | None:
    """Plan a piece; in each channel the whole arrays have so many positions and cells."""
    ins, outs, count = geometry.in_channels, geometry.out_channels, geometry.batch
    product = product_of(Asked(geometry, False, memory, Kind.WEIGHT_GRAD, element="double"))
    grads = _ready(chosen_to_quantise("rows", (count * outs, 1, geometry.positions), outs, given[0]))
    cells = _ready(chosen_to_quantise("rows", (count * ins, 1, math.prod(geometry.size)), ins, given[1]))
    if product is None or grads is None or cells is None or 0 in geometry.size:
        return None
    return _Correlation(grads, cells, product, product.roundings or geometry.terms(Kind.WEIGHT_GRAD))


@remembered()
def rounded_totals(samples: int, channels: int, cells: int) -> Callable[[Sequence[int], int], bool]:
    """Plan the sums of each channel, rounded as exact sums are.

    The function gets the addresses of the array, of its magnitudes or 0, and of the sums; and the most threads.
    """
    scales = _Scales((samples, channels, cells), Groups(1, samples, channels, 1), 0, 0, 1)
    add_up = made_ready(chosen_to_quantise("totals", (samples * channels, 1, cells), channels))
    layout = Layout()
    at_magnitudes, at_factors = layout.add(scales.bytes), layout.add(WIDE * channels)

    def run(places: Sequence[int], threads: int) -> bool:
        cells, magnitudes, out = places
        with call.spare(layout.bytes, SPARE) as spare:
            factors = spare + at_factors
            if scales.fail(cells, magnitudes, (NO_BIAS, NO_BIAS), (spare + at_magnitudes, factors), threads):
                return False
            return not add_up.run((cells, cells, factors, out), threads)

    return run


def _ready(found: Chosen | None) -> call.Call | None:
    return None if found is None else made_ready(found)
