"""Products of operands that are cut into slices, and how they are rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from ..algorithms.choice import Choice
from ..backends import Array, Backend, Workspace
from ..passes.padding import extend, fold
from ..passes.partition import Part, with_samples
from ..spec.dtypes import HIGHEST, LEAST_NORMAL, LOWEST, PARTS_OF, real
from ..spec.geometry import Geometry
from ..spec.ranges import ALL, Index, pieces
from .bias import addend, biased, usual
from .blocks import Box, blocks, least
from .certified import RUN, UNCUT
from .limbs import carried, rounded, soon
from .magnitudes import plain
from .nonfinite import SLOTS, Counts, counted, indicators
from .operands import Operand, along, halves, operand, power, scaled
from .probe import ready
from .slices import PRODUCTS, SIGNIFICANT, SIGNS, Slicing, cut_into, weights
from .slicing import _elements, _larger, in_slices

ROLES = {
    "forward": ("sample", "filter"),
    "input_grad": ("sample", "input channel"),
    "weight_grad": ("channel", "channel"),
}
"""What shares a scale, of each operand."""
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


def _uncut(problem: Problem) -> Problem:
    """The same of operands that are multiplied as they are, in sums that are short."""
    choose = problem.choose

    def shortly(geometry: Geometry) -> Choice:
        return choose(geometry).with_short_sums(RUN)

    return problem._replace(own=UNCUT, choose=shortly)


def _roundings(problem: Problem, geometry: Geometry) -> int:
    """How many roundings a product of uncut operands goes through on its way into a result."""
    one = in_slices(geometry, 1)
    return problem.choose(one).roundings(problem.purpose, one, problem.backend)


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
    choice = problem.choose(own.extended)
    if purpose == "forward":
        made = choice.compute(purpose, own.extended, backend, extend(own, backend, one), other, None)
        return xp.reshape(made, (made.shape[0], count, *geometry.out_shape[1:]))
    if purpose == "input_grad":
        made = fold(own, backend, choice.compute(purpose, own.extended, backend, one, other))
        return xp.reshape(made, (made.shape[0], count, *geometry.x_shape[1:]))
    made = choice.compute(purpose, own.extended, backend, one, extend(own, backend, other))
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
