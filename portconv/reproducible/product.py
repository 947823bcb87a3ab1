"""The three products of a convolution, the same bits however they are cut, shared and multiplied.

Slices of operands lie side by side as groups of a convolution: one call of an algorithm multiplies all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from ..algorithms.columns import ALL, Index
from ..backends import Array, Backend, Workspace
from ..boundary import extend, fold, overlap
from ..bounds import gamma
from ..choice import Choice
from ..geometry import Geometry, Range, pieces
from ..parts import Copies, Part, parts, whole, with_samples
from .bias import addend, biased, usual
from .blocks import Box, at_once, blocks, least
from .limbs import carried, rounded, soon
from .near import RUN, UNCUT, Correlations, Turned, Windows, magnitude, roundings, serves, turned, windows
from .probe import ready
from .scales import (
    HIGHEST,
    LEAST_NORMAL,
    LOWEST,
    PARTS_OF,
    Operand,
    above,
    along,
    halves,
    operand,
    plain,
    power,
    real,
    scaled,
)
from .slices import PRODUCTS, SIGNIFICANT, SIGNS, Slicing, cut_into, slicing, weights
from .specials import SLOTS, Counts, counted, indicators

ROLES = {
    "forward": ("sample", "filter"),
    "input_grad": ("sample", "input channel"),
    "weight_grad": ("channel", "channel"),
}
"""What shares a scale, of each operand."""
LONG = 1 << 13
"""Terms that two slices of 20 bits, or three, can sum; a longer sum over samples and rows is cut, and added up."""
BLOCKS = 6
"""Blocks that slices may be as large as: arrays of more than 32 MiB are made of fresh memory each time."""
PARTIAL = 1 << 21
"""Elements of filters that the chunks of one convolution may have."""
Chosen = Callable[[Geometry], Choice]


class Problem(NamedTuple):
    """A product with both operands, and how it is computed."""

    backend: Backend
    purpose: str
    choose: Chosen
    powers: Array
    dtype: str
    of_a: Operand
    of_b: Operand
    own: Slicing

    def axis(self, side: int) -> int:
        """Where the slices of an operand lie among its axes: before those of filters, after the samples."""
        return 0 if side == 1 and self.purpose != "weight_grad" else 1


def in_slices(geometry: Geometry, count: int) -> Geometry:
    """The convolution of so many slices side by side, as groups; in the order of memory that slices have."""
    return replace(
        geometry,
        groups=count * geometry.groups,
        in_channels=count * geometry.in_channels,
        out_channels=count * geometry.out_channels,
        channels_last=False,
    )


def summed(backend: Backend, geometry: Geometry, purpose: str, dtype: str) -> int:
    """How many products one exact sum has, at most."""
    if purpose == "forward":
        return geometry.group_in * geometry.taps
    if purpose == "input_grad":
        return geometry.group_out * geometry.taps * overlap(geometry)
    return _shares(geometry.extended, dtype, _elements(backend, slicing(dtype, 1))).terms


class Shares(NamedTuple):
    """How a weight gradient's sum over samples and positions is cut: its chunks are groups of one convolution each.

    Attributes
    ----------
    samples : int
        In a chunk.
    calls : tuple of (int, int)
        The samples of each convolution.
    rows : tuple of Part
        What it has of a sample.
    """

    samples: int
    calls: tuple[Range, ...]
    rows: tuple[Part, ...]

    @property
    def terms(self) -> int:
        """How many products one exact sum has, at most."""
        return self.samples * max(part.geometry.positions for part in self.rows)

    @property
    def several(self) -> bool:
        """Whether there is more than one chunk."""
        return len(self.calls) > 1 or len(self.rows) > 1 or self.calls[0][1] > 1


def slots(backend: Backend, geometry: Geometry, purpose: str, dtype: str) -> int:
    """How many products of slices a whole one is made of."""
    return slicing(dtype, summed(backend, geometry, purpose, dtype)).slots


def longest(dtype: str) -> int:
    """How many positions a weight gradient's exact sums are best made of, at most."""
    return LONG // (2 if dtype in PARTS_OF else 1)


@lru_cache(maxsize=256)
def _shares(geometry: Geometry, dtype: str, elements: int) -> Shares:
    """Cut a weight gradient so that few enough products are summed in each chunk; slices have so many `elements`."""
    most = longest(dtype)
    one = replace(geometry, batch=1)
    rows = parts(one, "weight_grad", Copies(geometry.positions, 0, 0, 0), most) or (whole(one),)
    together = elements // max(1, _larger(geometry))
    fits = max(1, most // max(1, geometry.positions))
    if geometry.weights < _larger(geometry):  # or adding up chunks would take longer than making them of fresh memory
        fits = max(1, min(fits, together))
    samples = max((n for n in range(1, fits + 1) if geometry.batch % n == 0), default=1)
    chunks = max(1, min(PARTIAL // geometry.weights, together // samples))
    return Shares(samples, pieces(max(1, geometry.batch // samples), chunks), rows)


def _larger(geometry: Geometry) -> int:
    """Elements of a sample's input or output, whichever has more."""
    return max(geometry.in_channels * math.prod(geometry.size), geometry.out_channels * geometry.positions)


def _elements(backend: Backend, own: Slicing) -> int:
    """How many elements slices are best made of at a time."""
    return backend.block_bytes * BLOCKS // (8 * own.slots)


def compute(
    backend: Backend,
    geometry: Geometry,
    dtype: str,
    purpose: str,
    choose: Chosen,
    some: Iterable[Part],
    a: Array,
    b: Array,
    bias: Array | None = None,
    rounded_to: str | None = None,
    conjugated: tuple[bool, bool] = (False, False),
) -> Array:
    """Compute a product of operands as algorithms see them.

    Parameters
    ----------
    backend : Backend
    geometry : Geometry
    dtype : str
        What operands have in common.
    purpose : str
        "forward", "input_grad" or "weight_grad".
    choose : callable
        Gives the algorithm of a convolution of slices.
    some : iterable of Part
        The parts that the product is cut into.
    a, b : array
        The operands: `x` and `w`, `dout` and `w`, or `dout` and `x`.
    bias : array, shape (F,), optional
    rounded_to : str, optional
        The dtype of the result, where that is another; of complex numbers rounded to real ones, the real part.
    conjugated : tuple of bool
        Whether each operand's conjugate is what is multiplied.

    Returns
    -------
    array
    """
    powers, bits = ready(backend, a), SIGNIFICANT[dtype]
    roles = zip((a, b), ROLES[purpose], strict=True)
    one, other = (
        operand(backend, geometry, powers, array, role, bits)._replace(conjugated=turned)
        for (array, role), turned in zip(roles, conjugated, strict=True)
    )
    some = tuple(some)
    terms = max(summed(backend, part.geometry, purpose, dtype) for part in some)
    problem = Problem(backend, purpose, choose, powers, dtype, one, other, slicing(dtype, terms))
    made = rounded_to or dtype
    if purpose == "weight_grad":
        return _weight_grad(problem, geometry, some, made)
    exponents = _exponents(problem, geometry)
    shape = geometry.out_shape if purpose == "forward" else geometry.x_shape
    out = backend.empty(shape, a, last=geometry.channels_last, dtype=backend.dtype(made))
    if serves(backend, geometry, purpose, a) and _normal(problem, out, exponents, made, bias):
        out, some = _filled(_uncut(problem), out, some, exponents, made, bias)
    return _filled(problem, out, some, exponents, made, bias)[0]


def _uncut(problem: Problem) -> Problem:
    """The same of operands that are multiplied as they are, in sums that are short."""
    choose = problem.choose

    def shortly(geometry: Geometry) -> Choice:
        found = choose(geometry)
        return found._replace(bounds=found.bounds._replace(run=RUN))

    return problem._replace(own=UNCUT, choose=shortly)


def _filled(
    problem: Problem, out: Array, some: tuple[Part, ...], exponents: Array, made: str, bias: Array | None
) -> tuple[Array, tuple[Part, ...]]:
    """Compute parts of `out`; return which are left, because too many of their sums are not decided."""
    backend, forward = problem.backend, problem.purpose == "forward"
    of_w: Index | None = None
    filters: Array | None = None
    by: Turned | None = None
    workspace = backend.workspace(problem.of_a.array)  # one for all: fresh memory takes longer to get than to fill
    parts = tuple(_few_samples(problem, some))
    for i, part in enumerate(parts):
        at, of_a = (part.of_out, part.of_x) if forward else (part.of_x, part.of_out)
        one, other = _of(problem.of_a, of_a), _of(problem.of_b, part.of_w)
        if of_w != part.of_w:
            filters = by = None  # or the next filters' slices would be one more
            of_w, filters = part.of_w, _sliced(problem, 1, other, workspace)
            if problem.own is UNCUT:
                by = turned(backend, part.geometry, problem.purpose, filters[0, ...])
        cells = _sliced(problem, 0, one, workspace)
        products = _convolved(problem, part.geometry, problem.own.slots, cells, filters)
        own = None if bias is None else bias[part.of_w[0] if forward else part.of_x[1]]
        target = out[(*at, ...)]
        if by is not None:
            unsure = _windows(problem, part.geometry, cells[:, 0, ...], by)
            value = unsure.put(target, products[:, 0, ...], exponents[at[:2]], own)
        else:
            counts = _counts(problem, part.geometry, one, other)
            value = _rounded(problem, target, products, exponents[at[:2]], made, own, counts)
        if value is None:
            return out, parts[i:]
        if not (backend.views and value is target):
            out = backend.write(out, (*at, ...), value)
    return out, ()


def _windows(problem: Problem, geometry: Geometry, cells: Array, by: Turned) -> Windows:
    """What the products of uncut operands are short of."""
    squares, times = _squares(problem, geometry, cells), _roundings(problem, geometry)
    return windows(problem.backend, geometry, problem.purpose, problem.powers, cells, by, squares, times)


def _roundings(problem: Problem, geometry: Geometry) -> int:
    """How many roundings a product of uncut operands goes through on its way into a result."""
    one = in_slices(geometry, 1)
    algorithm, bounds, _ = problem.choose(one)
    return roundings(algorithm, one, problem.purpose, problem.backend, bounds)


def _squares(problem: Problem, geometry: Geometry, cells: Array) -> Array:
    """Add up the squares of what each window holds of a group: (N, G, *P)."""
    backend, xp, groups = problem.backend, problem.backend.xp, geometry.groups
    channels, size = cells.shape[1] // groups, tuple(cells.shape[2:])
    wanted, most = least(backend, tuple(cells.shape)), at_once(backend)
    row = math.prod(size[1:])
    rows = max(1, min(most // row, -(-size[0] * cells.shape[0] * groups // wanted)))
    together = max(1, most // (rows * row))

    def compute(block: Box, target: Array, workspace: Workspace) -> Array:
        sample, group, run = block
        for i, some in enumerate(pieces(channels, together)):
            part = cells[(sample, slice(*(group.start * channels + at for at in some)), run, ...)]
            room = workspace("squares", tuple(part.shape), part.dtype)
            more = xp.sum(backend.elementwise("multiply", room, (...,), part, part), axis=1, keepdims=True)
            target = backend.add(target, (...,), more) if i else backend.write(target, (...,), more)
        return target

    each = product(pieces(cells.shape[0], 1), pieces(groups, 1), pieces(size[0], rows))
    cut = [tuple(slice(*piece) for piece in block) for block in each]
    sums = backend.empty((cells.shape[0], groups, *size), cells)
    sums = backend.fill(sums, [((*block, ...), block) for block in cut], compute, wanted)
    one = replace(geometry, in_channels=groups, out_channels=groups)
    ones = xp.ones((1, *one.w_shape), dtype=cells.dtype, device=backend.device_of(cells))
    return _convolved(problem, one, 1, xp.reshape(sums, (sums.shape[0], 1, *sums.shape[1:])), ones)[:, 0, ...]


def _few_samples(problem: Problem, some: Iterable[Part]) -> Iterator[Part]:
    """The parts, cut into as few samples as make arrays that memory at hand is used again for."""
    for part in some:
        own = part.geometry
        for samples in pieces(own.batch, max(1, _elements(problem.backend, problem.own) // max(1, _larger(own)))):
            first = part.of_x[0].start or 0
            yield with_samples(part, (first + samples[0], first + samples[1]))


def quanta(backend: Backend, geometry: Geometry, dtype: str, purpose: str, a: Array, b: Array) -> tuple[Array, Array]:
    """How far from its own value each element of the operands can be once it is quantised, in float64."""
    xp, powers, found = backend.xp, ready(backend, a), []
    for array, role in zip((a, b), ROLES[purpose], strict=True):
        this = operand(backend, geometry, powers, array, role, SIGNIFICANT[dtype])
        half = power(backend, powers, xp.clip(this.exponents - SIGNIFICANT[dtype], LOWEST, HIGHEST))
        # What is subnormal is taken for zero.
        half = xp.clip(half, 2.0 ** LEAST_NORMAL[this.real], None)
        found.append(xp.broadcast_to(along(backend, half, array.ndim - 2), tuple(array.shape)) * 1.0)
    return found[0], found[1]


def _weight_grad(problem: Problem, geometry: Geometry, some: tuple[Part, ...], made: str) -> Array:
    backend = problem.backend
    shape = (geometry.out_channels, geometry.group_in, *geometry.kernel)
    grad = backend.empty(shape, problem.of_a.array, dtype=backend.dtype(made))
    if not geometry.batch:
        return backend.zeroed(grad)
    exponents, workspace = _exponents(problem, geometry), backend.workspace(problem.of_a.array)
    for first in sorted({part.of_w[0].start or 0 for part in some}):
        same = [part for part in some if (part.of_w[0].start or 0) == first]
        at = same[0].of_w
        target, value = grad[(*at, ...)], None
        if serves(backend, geometry, problem.purpose, grad) and _normal(problem, target, exponents[at], made, None):
            value = _nearly(problem, geometry, same, target, exponents[at], workspace)
        if value is None:
            value = _summed(problem, same, target, exponents[at], made, workspace)
        if not (backend.views and value is target):
            grad = backend.write(grad, (*at, ...), value)
    return grad


def _summed(
    problem: Problem, some: list[Part], target: Array, exponents: Array, made: str, workspace: Workspace
) -> Array:
    """Compute the gradient of some filters, which parts add up to."""
    elements = _elements(problem.backend, slicing(problem.dtype, 1))
    several = len(some) > 1 or _shares(some[0].geometry.extended, problem.dtype, elements).several
    products, limbs, counts = _sums(problem, some, made, workspace, several)
    if several:
        return _finished(problem, limbs, exponents, made, counts)
    return _rounded(problem, target, products[0, ...], exponents, made, None, counts)


def _sums(
    problem: Problem, some: list[Part], made: str, workspace: Workspace, several: bool
) -> tuple[Array, list[list[Array]], list[Counts] | None]:
    """Sum exactly what parts of a weight gradient add up to.

    Returns the products of the last chunk, the limbs of the sum of all, where there are `several`, and what they hold
    of nans and infinities.
    """
    backend = problem.backend
    limbs: list[list[Array]] = []
    counts: list[Counts] | None = None
    products: Array = None
    elements = _elements(backend, slicing(problem.dtype, 1))
    for part in some:
        grads, cells = _of(problem.of_a, part.of_out), _of(problem.of_b, part.of_x)
        cells = cells._replace(array=extend(part.geometry, backend, cells.array))
        for one, chunks, own in _chunks(_shares(part.geometry.extended, problem.dtype, elements), grads, cells):
            slices = _sliced(problem, 0, own[0], workspace), _sliced(problem, 1, own[1], workspace)
            products = _convolved(problem, one, problem.own.slots, *slices, chunks)
            more = _counts(problem, one, *own, chunks)
            if counts is not None and more is not None:
                more = [old + new for old, new in zip(counts, more, strict=True)]
            counts = more
            if several:
                limbs = _added(problem, limbs, _weights(problem, products, made, axis=1))
    return products, limbs, counts


def weight_sums(
    backend: Backend,
    geometry: Geometry,
    dtype: str,
    choose: Chosen,
    some: Iterable[Part],
    dout: Array,
    x: Array,
    made: str,
) -> Array:
    """Sum exactly what some samples and positions add to a weight gradient, whose scales are those of all of them.

    Parameters
    ----------
    backend, geometry, dtype, choose
        As for `compute`.
    some : iterable of Part
        Of no more than `longest` positions each.
    dout, x : array
        Whose magnitudes are remembered as those of the whole arrays.
    made : str
        The dtype of the result.

    Returns
    -------
    array, shape (1 or 2, limbs, F, C / G, *K)
        The limbs of each part of the result, and where either array is not finite, three counts.
    """
    powers, bits = ready(backend, dout), SIGNIFICANT[dtype]
    one, other = (
        operand(backend, geometry, powers, array, role, bits)
        for array, role in zip((dout, x), ROLES["weight_grad"], strict=True)
    )
    problem = Problem(backend, "weight_grad", choose, powers, dtype, one, other, slicing(dtype, longest(dtype)))
    if not geometry.batch:
        parts_of_result, limbs_of_each = (2 if made in PARTS_OF else 1), 2 * problem.own.number
        shape = (parts_of_result, limbs_of_each, *geometry.w_shape)
        return backend.zeroed(backend.empty(shape, dout, dtype=backend.dtype("float64")))
    _, limbs, counts = _sums(problem, list(some), made, backend.workspace(dout), True)
    found = []
    for i, own in enumerate(limbs):
        more = [] if counts is None else [counts[i].nans, counts[i].infinite, counts[i].signs]
        found.append(backend.xp.stack([*own, *(backend.xp.broadcast_to(one, own[0].shape) for one in more)]))
    return backend.xp.stack(found)


def weight_sum(backend: Backend, dtype: str, sums: list[Array]) -> Array:
    """Add up what `weight_sums` gave, or this, of several."""
    xp, own = backend.xp, slicing(dtype, longest(dtype))
    total = sums[0]
    for more in sums[1:]:
        total = total + more
    found = []
    for part in range(total.shape[0]):
        each = [total[part, i, ...] for i in range(total.shape[1])]
        found.append(xp.stack([*carried(backend, each[: 2 * own.number], own.width), *each[2 * own.number :]]))
    return xp.stack(found)


def weight_rounded(
    backend: Backend, geometry: Geometry, dtype: str, sums: Array, most: tuple[Array, Array], made: str
) -> Array:
    """Round a sum that `weight_sum` gave to a weight gradient; `most` are the largest magnitudes, (F,) and (C,)."""
    powers, own = ready(backend, sums), slicing(dtype, longest(dtype))
    one, other = (Operand(sums, above(backend, powers, each)[None, :], dtype, True, False) for each in most)
    problem = Problem(backend, "weight_grad", _nothing, powers, dtype, one, other, own)
    limbs = [[sums[part, i, ...] for i in range(2 * own.number)] for part in range(sums.shape[0])]
    counts = None
    if sums.shape[1] > 2 * own.number:
        places = range(2 * own.number, sums.shape[1])
        counts = [Counts(*(sums[part, i, ...] for i in places)) for part in range(sums.shape[0])]
    return _finished(problem, limbs, _exponents(problem, geometry), made, counts)


def _nothing(geometry: Geometry) -> Choice:
    raise AssertionError("what is summed needs no algorithm")


def _nearly(
    problem: Problem, geometry: Geometry, some: list[Part], target: Array, exponents: Array, workspace: Workspace
) -> Array | None:
    """Compute the gradient of some filters from products that are not exact; None where too few are decided."""
    backend, problem = problem.backend, _uncut(problem)
    totals: list[Array] = []
    longest = added = 0
    for part in _few_samples(problem, some):
        longest, added = max(longest, _roundings(problem, part.geometry)), added + 1
        own = _of(problem.of_a, part.of_out), _of(problem.of_b, part.of_x)
        slices = _sliced(problem, 0, own[0], workspace), _sliced(problem, 1, own[1], workspace)
        products = _convolved(problem, part.geometry, 1, *slices)[0, 0, ...]
        sizes = magnitude(backend, part.geometry, slices[0][:, 0, ...], slices[1][:, 0, ...])
        totals = (
            [old + new for old, new in zip(totals, (products, sizes), strict=True)] if totals else [products, sizes]
        )
    # Four more: the bound is rounded itself, and so are the ends of the range.
    error = totals[1] * gamma(longest + added + 4)
    first = some[0].of_w[0].start or 0
    unsure = Correlations(backend, geometry, problem.powers, problem.of_a, problem.of_b, first, error)
    return unsure.put(target, totals[0], exponents, None)


def _chunks(shares: Shares, grads: Operand, cells: Operand) -> Iterator[tuple[Geometry, int, tuple[Operand, Operand]]]:
    """One call after the other: its convolution, into how many chunks its samples are cut, and its operands."""
    count = shares.samples
    for first, end in shares.calls:
        samples = slice(first * count, end * count)
        for part in shares.rows:
            own = replace(part.geometry, batch=count * (end - first))
            index = (samples, *part.of_out[1:]), (samples, *part.of_x[1:])
            yield own, end - first, (_of(grads, index[0]), _of(cells, index[1]))


def _of(own: Operand, index: Index) -> Operand:
    return own._replace(array=own.array[(*index, ...)], exponents=own.exponents[index[:2]])


def _exponents(problem: Problem, geometry: Geometry) -> Array:
    """The power of two that a result's sums count, for each element of its first two axes."""
    xp, groups = problem.backend.xp, geometry.groups
    one, other = problem.of_a.exponents, problem.of_b.exponents
    fewer = 2 * (problem.own.bits - 1)
    ins, outs = geometry.group_in, geometry.group_out
    if problem.purpose == "weight_grad":
        rows = xp.reshape(one[0, :], (groups, outs, 1))
        return xp.reshape(rows + xp.reshape(other[0, :], (groups, 1, ins)), (geometry.out_channels, ins)) - fewer
    if problem.purpose == "forward":
        samples, mine = one[:, ::ins], xp.reshape(other[:, 0], (1, groups, outs))
    else:
        samples, mine = one[:, ::outs], xp.reshape(other, (groups, outs, ins))[:, :1, :]
        mine = xp.reshape(mine, (1, groups, ins))
    return xp.reshape(samples[:, :, None] + mine, (one.shape[0], groups * mine.shape[2])) - fewer


def _sliced(problem: Problem, side: int, this: Operand, workspace: Workspace) -> Array:
    """The first or the second operand in slices: (N, slots, channels, *cells), or (slots, F, C / G, *K)."""
    own, backend = problem.own, problem.backend
    double, axis = backend.dtype("float64"), problem.axis(side)
    up = own.bits - 1 - this.exponents
    # Powers beyond those of normal numbers are multiplied by in two steps.
    powers = halves(backend, up) if own.bits > 40 else (up,)
    factors = [along(backend, power(backend, problem.powers, p), this.array.ndim - 2) for p in powers]

    def put(target: Array, block: Index, workspace: Workspace) -> Array:
        parts = this.parts(backend, block)
        for kind in range(own.kinds):
            first = kind * len(own.forms)
            if PRODUCTS[kind][side] >= len(parts):  # the imaginary part of what is real
                rest = (*(ALL,) * axis, slice(first, first + len(own.forms)), ...)
                target = backend.write(target, rest, 0.0)
                continue
            part = parts[PRODUCTS[kind][side]]
            # Halves are no part of the standard, and their products with other dtypes not of all libraries.
            part = part if backend.bits(part.dtype) >= 32 else backend.astype(part, double)
            part = plain(backend, part, this.real) if this.rare else part
            here = (*(ALL,) * axis, first, ...)
            # What is not cut is quantised where it belongs.
            numbers = target[here] if own.number == 1 else workspace("numbers", tuple(part.shape), double)
            for factor in factors:
                part = numbers = backend.elementwise("multiply", numbers, (...,), part, factor[(*block[:2], ...)])

            def at(form: int, first: int = first) -> tuple[Any, ...]:
                return (*(ALL,) * axis, first + form, ...)

            target = cut_into(backend, target, at, numbers, own, workspace)
        return target

    return _stacked(backend, this.array, own.slots, axis, put, lambda shape: workspace(f"slices {side}", shape, double))


def _stacked(
    backend: Backend,
    like: Array,
    count: int,
    axis: int,
    put: Callable[[Array, Index, Workspace], Array],
    room: Callable[[tuple[int, ...]], Array],
) -> Array:
    """What `put` makes of each block of an operand, along a new axis, in an array that `room` gives."""
    stack = room((*like.shape[:axis], count, *like.shape[axis:]))

    def compute(block: Index, target: Array, workspace: Workspace) -> Array:
        return put(target, block, workspace)

    cut = [((*block[:axis], ALL, *block[axis:]), block) for block in blocks(backend, tuple(like.shape))]
    return backend.fill(stack, cut, compute, least(backend, stack.shape))


def _convolved(problem: Problem, geometry: Geometry, count: int, one: Array, other: Array, chunks: int = 1) -> Array:
    """Convolve what lies side by side, by the algorithm that serves; padding that is not of zeros is filled in.

    Of a weight gradient every so manieth sample makes up one of the chunks, which are groups as well.
    """
    backend, xp, purpose = problem.backend, problem.backend.xp, problem.purpose
    own = in_slices(geometry, count)
    if purpose == "weight_grad":
        own = in_slices(replace(geometry, batch=geometry.batch // chunks), count * chunks)
        one, other = xp.reshape(one, own.out_shape), xp.reshape(other, own.x_shape)
    else:
        one = xp.reshape(one, own.x_shape if purpose == "forward" else own.out_shape)
        other = xp.reshape(other, own.w_shape)
    algorithm, bounds, _ = problem.choose(own.extended)
    if purpose == "forward":
        made = algorithm.forward(own.extended, backend, bounds, extend(own, backend, one), other, None)
        return xp.reshape(made, (made.shape[0], count, *geometry.out_shape[1:]))
    if purpose == "input_grad":
        made = fold(own, backend, algorithm.input_grad(own.extended, backend, bounds, one, other))
        return xp.reshape(made, (made.shape[0], count, *geometry.x_shape[1:]))
    made = algorithm.weight_grad(own.extended, backend, bounds, one, extend(own, backend, other))
    return xp.reshape(made, (chunks, count, *geometry.w_shape))


def _weights(problem: Problem, products: Array, made: str, axis: int) -> list[list[Array]]:
    """Sums by their weight, of the real part of a result and, where it has one, of the imaginary one."""
    own = problem.own
    forms = len(own.forms)

    def of(kind: int) -> list[Array]:
        return [products[(*(ALL,) * axis, kind * forms + form, ...)] for form in range(forms)]

    if own.kinds == 1:
        return [weights(problem.backend, of(0), own)]
    found = []
    for first, second in ((0, 1), (2, 3))[: 2 if made in PARTS_OF else 1]:
        pairs = zip(of(first), of(second), strict=True)
        found.append(weights(problem.backend, [x * SIGNS[first] + y * SIGNS[second] for x, y in pairs], own))
    return found


def _added(problem: Problem, held: list[list[Array]], sums: list[list[Array]]) -> list[list[Array]]:
    """Add the sums of chunks, by weight, to limbs, of which there is one more."""
    backend, width, found = problem.backend, problem.own.width, []
    for part, own in enumerate(sums):
        limbs = carried(backend, [*own, backend.xp.zeros_like(own[0])], width)
        limbs = [backend.xp.sum(limb, axis=0) for limb in limbs]
        limbs = [old + new for old, new in zip(held[part], limbs, strict=True)] if held else limbs
        found.append(carried(backend, limbs, width))
    return found


def _finished(
    problem: Problem, limbs: list[list[Array]], exponents: Array, made: str, counts: list[Counts] | None
) -> Array:
    """Round the parts of a result, and put nans and infinities in."""
    backend, width = problem.backend, problem.own.width
    found = []
    for i, own in enumerate(limbs):
        value = rounded(backend, own, width, problem.powers, exponents, real(made))
        found.append(value if counts is None else counts[i].put(backend, value))
    return found[0] if made not in PARTS_OF else backend.complex(*found)


def _normal(problem: Problem, out: Array, exponents: Array, made: str, bias: Array | None) -> bool:
    """Whether no sum, which is a whole number of units, is below the smallest normal float32, nor one with a bias."""
    backend = problem.backend
    if not (made == problem.dtype == "float32" and problem.of_a.finite and problem.of_b.finite and out.ndim > 2):
        return False
    enough = (exponents >= LEAST_NORMAL[made]) & (exponents <= -LEAST_NORMAL[made])
    return backend.sure(enough) and (bias is None or usual(backend, bias, made))


def _rounded(
    problem: Problem,
    out: Array,
    products: Array,
    exponents: Array,
    made: str,
    bias: Array | None,
    counts: list[Counts] | None,
) -> Array:
    """Round what products of slices add up to, block by block, into `out`; and add a bias."""
    backend, own = problem.backend, problem.own
    axis = 0 if problem.purpose == "weight_grad" else 1
    normal = _normal(problem, out, exponents, made, bias)
    if normal:
        factors, more = scaled(backend, problem.powers, exponents, out), addend(backend, bias, out)

    def compute(block: Box, target: Array, workspace: Workspace) -> Array:
        found = products[(*block[:axis], ALL, *block[axis:])]
        if normal:
            forms = [found[(*(ALL,) * axis, form, ...)] for form in range(len(own.forms))]
            each = weights(backend, forms, own, workspace)
            target, held = soon(backend, target, each, own.width, factors[(*block[:2], ...)], workspace)
            if not held:
                exact = carried(backend, each, own.width)
                target = backend.write(
                    target, (...,), rounded(backend, exact, own.width, problem.powers, exponents[block[:2]], made)
                )
            return backend.elementwise("add", target, (...,), target, more[:, block[1], ...])
        limbs = [carried(backend, each, own.width) for each in _weights(problem, found, made, axis)]
        some = None if counts is None else [count.at(block) for count in counts]
        value = _finished(problem, limbs, exponents[block[:2]], made, some)
        return value if bias is None else biased(backend, value, bias[block[1]], made)

    cut = [(block, block) for block in blocks(backend, tuple(out.shape))]
    return backend.fill(out, cut, compute, least(backend, out.shape))


def _counts(problem: Problem, geometry: Geometry, one: Operand, other: Operand, chunks: int = 1) -> list[Counts] | None:
    """Count nans and infinities, for the real part of a result and the imaginary one; None where there can be none."""
    if one.finite and other.finite:
        return None
    backend, purpose, own = problem.backend, problem.purpose, problem.own
    padded_first = purpose != "weight_grad"
    stacks = []

    def room(shape: tuple[int, ...]) -> Array:
        return backend.empty(shape, one.array, dtype=backend.dtype("float64"))

    for side, this in enumerate((one, other)):
        names = [slot[side if padded_first else 1 - side] for slot in SLOTS]

        axis = problem.axis(side)

        def put(
            target: Array,
            block: Index,
            workspace: Workspace,
            side: int = side,
            this: Operand = this,
            names: list[str] = names,
            axis: int = axis,
        ) -> Array:
            sides = [indicators(backend, part, this.real, names) for part in this.parts(backend, block)]
            if len(sides) < own.kinds // 2:
                nothing = backend.xp.zeros_like(sides[0][0])
                sides.append(indicators(backend, nothing, this.real, names))
            masks = [mask for kind in PRODUCTS[: own.kinds] for mask in sides[kind[side]]]
            for slot, mask in enumerate(masks):
                target = backend.write(target, (*(ALL,) * axis, slot, ...), mask)
            return target

        stacks.append(_stacked(backend, this.array, len(SLOTS) * own.kinds, axis, put, room))
    found = _convolved(problem, geometry, len(SLOTS) * own.kinds, stacks[0], stacks[1], chunks)
    kinds = []
    for kind in range(own.kinds):
        chosen = range(kind * len(SLOTS), (kind + 1) * len(SLOTS))
        sums = [found[:, slot, ...] for slot in chosen]
        sums = [backend.xp.sum(array, axis=0) for array in sums] if purpose == "weight_grad" else sums
        kinds.append(counted(sums, _every(problem, stacks, chosen[-1])).signed(SIGNS[kind]))
    if own.kinds == 1:
        return kinds
    return [kinds[0] + kinds[1], kinds[2] + kinds[3]]


def _every(problem: Problem, stacks: list[Array], slot: int) -> Array | None:
    """How many terms have a nan or an infinity in the operand without padding, those with padding among them."""
    xp = problem.backend.xp
    if problem.purpose == "forward":
        bad = stacks[1][slot, ...]
        total = xp.sum(bad, axis=tuple(range(1, bad.ndim)))
        return xp.reshape(total, (1, -1, *(1,) * (bad.ndim - 2)))
    if problem.purpose == "weight_grad":
        bad = stacks[0][:, slot, ...]
        total = xp.sum(bad, axis=(0, *range(2, bad.ndim)))
        return xp.reshape(total, (-1, *(1,) * (bad.ndim - 1)))
    return None
