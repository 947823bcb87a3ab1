"""Products of quantised float32 arrays by kernels of this CPU, rounded to float32 as exact sums would be.

Kernels quantise the operands, a few samples at a time, multiply them in float64, and round the sums while they are in
the cache (see `kernels.rounded`). All is planned once for a convolution, and runs on addresses.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..kernels import call
from ..kernels.call import NO_BIAS
from ..kernels.choice import Chosen, chosen_to_quantise, chosen_to_round, chosen_to_round_filters
from ..kernels.sizes import Layout
from ..spec.dtypes import gamma
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.remembered import remembered
from .kernel_products import product_of
from .planned_calls import Asked, Product, made_ready, sizes_of

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
    """The addresses of the operands, of their factors, of a bias for each channel of the result, and of the result."""

    first: int
    second: int
    first_factors: int
    second_factors: int
    biases: int
    out: int


class Planned(NamedTuple):
    """A product that is ready to run on addresses, and the bytes of memory that it takes.

    `run` takes at most so many threads, and returns whether all sums are rounded: otherwise too many are undecided.
    """

    memory: int
    run: Callable[[Addresses, int], bool]


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
    layout = Layout()
    at_filters, at_row_squares = layout.add(WIDE * filters), layout.add(WIDE * row_squares)
    at_cells, at_squares = layout.add(WIDE * samples * channels * read), layout.add(WIDE * samples * groups * read)
    at_windows = layout.add(WIDE * samples * groups * written * (whole.squares is not None))
    at_sums = layout.add(WIDE * samples * results * written)
    ones = array("d", [1.0]) * (groups * geometry.taps)

    def run(places: Addresses, threads: int) -> bool:
        with call.spare(layout.bytes, SPARE) as spare:
            weights, row_squares = spare + at_filters, spare + at_row_squares
            cells, squares, sums = spare + at_cells, spare + at_squares, spare + at_sums
            of_filters.run((places.second, row_squares, places.second_factors, weights), threads)
            for start in range(0, geometry.batch, samples):
                chunk = whole if start + samples <= geometry.batch else rest
                factors = places.first_factors + WIDE * start * groups
                chunk.quantise.run((places.first + SINGLE * start * channels * read, squares, factors, cells), threads)
                windows = squares
                if chunk.squares is not None:
                    windows = spare + at_windows
                    chunk.squares.run((squares, ones.buffer_info()[0], NO_BIAS, windows), threads, True)
                chunk.product.run((cells, weights, NO_BIAS, sums), threads, True)
                # In the order of `kernels.rounded_plan.ARRAYS`.
                given = (cells, weights, factors, places.second_factors, row_squares, windows, places.biases)
                record = array("q", given)
                out = places.out + SINGLE * start * results * written
                if chunk.round.run((sums, record.buffer_info()[0], NO_BIAS, out), threads):
                    return False
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
    layout = Layout()
    at_grads, at_cells = layout.add(WIDE * samples * of_grads), layout.add(WIDE * samples * of_cells)
    at_rows, at_columns = layout.add(WIDE * geometry.batch * outs), layout.add(WIDE * geometry.batch * ins)
    at_sums = layout.add(WIDE * stacked * weights)

    def run(places: Addresses, threads: int) -> bool:
        first, second, first_factors, second_factors, biases, out = places
        with call.spare(layout.bytes, SPARE) as spare:
            grads, cells, sums = spare + at_grads, spare + at_cells, spare + at_sums
            rows, columns = spare + at_rows, spare + at_columns
            for number, start in enumerate(range(0, geometry.batch, samples)):
                chunk = whole if start + samples <= geometry.batch else rest
                here = first + SINGLE * start * of_grads, rows + WIDE * start * outs, first_factors, grads
                chunk.quantise_grads.run(here, threads)
                there = second + SINGLE * start * of_cells, columns + WIDE * start * ins, second_factors, cells
                chunk.quantise_cells.run(there, threads)
                # Kernels take the input first.
                chunk.product.run((cells, grads, NO_BIAS, sums + WIDE * number * weights), threads, True)
            record = array("q", (first, second, first_factors, second_factors, rows, columns, biases))
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
