"""Products of float32 arrays by kernels of this CPU, quantised, and rounded to float32 as exact sums would be.

Kernels find the scales of the operands (see `kernels.scales`), quantise them, a few samples at a time, multiply them in
float64, and round the sums while they are in the cache (see `kernels.rounded`). All is planned once for a convolution,
and runs on addresses.
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
from .kernel_products import Product, product_of
from .planned_calls import Asked, call_of_magnitudes, made_ready, sizes_of

WIDE, SINGLE = 8, 4
"""The bytes of a number of float64, and of float32."""
CHUNK_BYTES, OF_FILTERS = 4 << 20, 4
"""About so many bytes are made of the samples that are multiplied at once, or so many times what filters take: each
product prepares these anew."""
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


class _Chunk(NamedTuple):
    """What is computed of some samples at once."""

    quantise: call.Call
    squares: Product | None
    product: Product
    round: call.Call


@remembered()
def rounded_product(geometry: Geometry, kind: Kind, memory: int) -> Planned | None:
    """Plan a product of operands that take at most so many bytes beside their results; None if there is none."""
    planned = _of_filters(geometry, memory) if kind == Kind.WEIGHT_GRAD else _of_windows(geometry, kind, memory)
    return None if planned is None or planned.memory > memory else planned


def _of_windows(geometry: Geometry, kind: Kind, memory: int) -> Planned | None:
    """Plan an output, or a gradient of an input."""
    of_inputs, groups = kind == Kind.INPUT_GRAD, geometry.groups
    read, written = (geometry.positions, math.prod(geometry.size))[:: 1 if of_inputs else -1]
    channels, results = geometry.out_channels, geometry.in_channels
    if not of_inputs:
        channels, results = results, channels
    ins, outs, filters = geometry.group_in * geometry.taps, geometry.group_out, geometry.weights
    shape = (groups, outs, ins) if of_inputs else (groups * outs, 1, ins)
    of_filters = _ready(chosen_to_quantise("columns" if of_inputs else "rows", shape, groups * outs))
    row_squares = groups * ins if of_inputs else groups * outs
    of_sample = WIDE * (channels * read + results * written + groups * (read + written))
    samples = _at_once(geometry.batch, of_sample, WIDE * filters)
    whole, rest = (_windows(replace(geometry, batch=count), kind, memory) for count in _sizes(geometry.batch, samples))
    if of_filters is None or whole is None or rest is None:
        return None
    # The factors of an input gradient's filters are those of each channel, for each of its taps.
    of_group = Groups(groups, outs, geometry.group_in, geometry.taps, geometry.taps)
    scale_filters = made_ready(chosen_to_scale("numbers", of_group if of_inputs else Groups(groups * outs, 1, 1, ins)))
    terms, of_samples = geometry.terms(kind), Groups(geometry.batch * groups, 1, 1, channels // groups)
    scales = _Scales((geometry.batch, channels, read), of_samples, row_squares, results, terms)
    layout = Layout()
    at_magnitudes, at_factors = layout.add(scales.bytes), layout.add(WIDE * geometry.batch * groups)
    at_row_factors, at_row_squares = layout.add(WIDE * row_squares), layout.add(WIDE * row_squares)
    at_filters = layout.add(WIDE * filters)
    at_cells, at_squares = layout.add(WIDE * samples * channels * read), layout.add(WIDE * samples * groups * read)
    at_windows = layout.add(WIDE * samples * groups * written * (whole.squares is not None))
    at_sums = layout.add(WIDE * samples * results * written)
    ones, zeros = array("d", [1.0]) * (groups * geometry.taps), array("f", [0.0]) * results

    def run(places: Addresses, threads: int) -> bool:
        first, second, biases, magnitudes, _, out = places
        biases = biases or zeros.buffer_info()[0]
        with call.spare(layout.bytes, SPARE) as spare:
            factors, of_rows, row_squares = spare + at_factors, spare + at_row_factors, spare + at_row_squares
            if scale_filters.run((second, second, NO_BIAS, of_rows), threads):
                return False
            if scales.fail(first, magnitudes, (of_rows, biases), (spare + at_magnitudes, factors), threads):
                return False
            weights, cells = spare + at_filters, spare + at_cells
            squares, sums = spare + at_squares, spare + at_sums
            of_filters.run((second, row_squares, of_rows, weights), threads)
            for start in range(0, geometry.batch, samples):
                chunk = whole if start + samples <= geometry.batch else rest
                chunk.quantise.run((first + SINGLE * start * channels * read, squares, factors, cells), threads)
                windows = squares
                if chunk.squares is not None:
                    windows = spare + at_windows
                    chunk.squares.run((squares, ones.buffer_info()[0], NO_BIAS, windows), threads, True)
                chunk.product.run((cells, weights, NO_BIAS, sums), threads, True)
                # In the order of `kernels.rounded_plan.ARRAYS`.
                record = array("q", (cells, weights, factors, of_rows, row_squares, windows, biases))
                here = out + SINGLE * start * results * written
                if chunk.round.run((sums, record.buffer_info()[0], NO_BIAS, here), threads):
                    return False
                factors += WIDE * samples * groups
        return True

    workspace = max(chunk.product.memory for chunk in (whole, rest))
    return Planned(layout.bytes + workspace, run)


def _windows(geometry: Geometry, kind: Kind, memory: int) -> _Chunk | None:
    """Plan what is computed of some samples of an output or of a gradient of an input."""
    of_inputs, groups = kind == Kind.INPUT_GRAD, geometry.groups
    shape = (geometry.batch * groups, geometry.group_out, geometry.positions)
    if not of_inputs:
        shape = (geometry.batch * groups, geometry.group_in, math.prod(geometry.size))
    product = product_of(Asked(geometry, False, memory, kind, element="double"))
    one = replace(geometry, in_channels=groups, out_channels=groups)
    # All terms are positive: their plain sums have small relative errors, and those of tiles may not.
    squares = product_of(Asked(one, False, memory, kind, element="double", exact=True))
    if product is None or squares is None:
        return None
    is_window = geometry.taps == 1 and geometry.size == geometry.out and not any((*geometry.before, *geometry.after))
    error = gamma((product.roundings or geometry.terms(kind)) + MORE_ROUNDINGS)
    quantise = _ready(chosen_to_quantise("cells", shape, geometry.batch * groups))
    rounding = _ready(chosen_to_round(sizes_of(geometry, "double"), error, of_inputs=of_inputs))
    if quantise is None or rounding is None:
        return None
    return _Chunk(quantise, None if is_window else squares, product, rounding)


class _Correlation(NamedTuple):
    """What is computed of some samples of a gradient of filters at once."""

    quantise_grads: call.Call
    quantise_cells: call.Call
    product: Product
    roundings: int


def _of_filters(geometry: Geometry, memory: int) -> Planned | None:
    """Plan a gradient of filters, of which the sums of all chunks are added up."""
    ins, outs, weights = geometry.in_channels, geometry.out_channels, geometry.weights
    of_grads, of_cells = outs * geometry.positions, ins * math.prod(geometry.size)
    samples = _at_once(geometry.batch, WIDE * (of_grads + of_cells), WIDE * weights)
    whole, rest = (_correlation(replace(geometry, batch=size), memory) for size in _sizes(geometry.batch, samples))
    if whole is None or rest is None:
        return None
    stacked = -(-geometry.batch // samples)
    error = gamma(max(whole.roundings, rest.roundings) + stacked + MORE_ROUNDINGS)
    rounding = _ready(chosen_to_round_filters(sizes_of(geometry, "double"), error, stacked))
    if rounding is None:
        return None
    of_outs, of_ins = Groups(1, geometry.batch, outs, 1), Groups(1, geometry.batch, ins, 1)
    terms = geometry.terms(Kind.WEIGHT_GRAD)
    scale_cells = _Scales((geometry.batch, ins, math.prod(geometry.size)), of_ins, 0, 0, 1)
    scale_grads = _Scales((geometry.batch, outs, geometry.positions), of_outs, ins, 0, terms)
    layout = Layout()
    at_magnitudes = layout.add(max(scale_cells.bytes, scale_grads.bytes))
    at_of_grads, at_of_cells = layout.add(WIDE * outs), layout.add(WIDE * ins)
    at_grads, at_cells = layout.add(WIDE * samples * of_grads), layout.add(WIDE * samples * of_cells)
    at_rows, at_columns = layout.add(WIDE * geometry.batch * outs), layout.add(WIDE * geometry.batch * ins)
    at_sums = layout.add(WIDE * stacked * weights)
    zeros = array("f", [0.0]) * outs

    def run(places: Addresses, threads: int) -> bool:
        first, second, _, first_magnitudes, second_magnitudes, out = places
        biases = zeros.buffer_info()[0]
        with call.spare(layout.bytes, SPARE) as spare:
            magnitudes, row_factors, column_factors = spare + at_magnitudes, spare + at_of_grads, spare + at_of_cells
            found = magnitudes, column_factors
            if scale_cells.fail(second, second_magnitudes, (NO_BIAS, NO_BIAS), found, threads):
                return False
            found = magnitudes, row_factors
            if scale_grads.fail(first, first_magnitudes, (column_factors, NO_BIAS), found, threads):
                return False
            grads, cells, sums = spare + at_grads, spare + at_cells, spare + at_sums
            rows, columns = spare + at_rows, spare + at_columns
            for number, start in enumerate(range(0, geometry.batch, samples)):
                chunk = whole if start + samples <= geometry.batch else rest
                here = first + SINGLE * start * of_grads, rows + WIDE * start * outs, row_factors, grads
                chunk.quantise_grads.run(here, threads)
                there = second + SINGLE * start * of_cells, columns + WIDE * start * ins, column_factors, cells
                chunk.quantise_cells.run(there, threads)
                # Kernels take the input first.
                chunk.product.run((cells, grads, NO_BIAS, sums + WIDE * number * weights), threads, True)
            record = array("q", (first, second, row_factors, column_factors, rows, columns, biases))
            return not rounding.run((sums, record.buffer_info()[0], NO_BIAS, out), threads)

    return Planned(layout.bytes + max(whole.product.memory, rest.product.memory), run)


def _correlation(geometry: Geometry, memory: int) -> _Correlation | None:
    """Plan what is computed of some samples of a gradient of filters."""
    ins, outs, count = geometry.in_channels, geometry.out_channels, geometry.batch
    product = product_of(Asked(geometry, False, memory, Kind.WEIGHT_GRAD, element="double"))
    grads = _ready(chosen_to_quantise("rows", (count * outs, 1, geometry.positions), outs))
    cells = _ready(chosen_to_quantise("rows", (count * ins, 1, math.prod(geometry.size)), ins))
    if product is None or grads is None or cells is None:
        return None
    return _Correlation(grads, cells, product, product.roundings or geometry.terms(Kind.WEIGHT_GRAD))


def _at_once(batch: int, of_sample: int, of_filters: int) -> int:
    """Return how many samples are multiplied at once: nearly as many each time."""
    most = max(1, max(CHUNK_BYTES, OF_FILTERS * of_filters) // of_sample)
    return -(-batch // -(-batch // most))


def _sizes(batch: int, samples: int) -> tuple[int, int]:
    """Return how many samples all products have but the last, and how many that has."""
    return samples, batch % samples or samples


def _ready(found: Chosen | None) -> call.Call | None:
    return None if found is None else made_ready(found)


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
