"""The three products of a convolution, the same bits however they are cut, shared and multiplied.

Slices of operands lie side by side as groups of a convolution: one call of an algorithm multiplies all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from ..backends import Array, Backend, Workspace
from ..passes.partition import Part
from ..spec.geometry import Geometry
from ..spec.ranges import Index, pieces
from .blocks import Box, at_once, least
from .certified import UNCUT, Turned, Windows, serves, turned, windows
from .operands import operand
from .probe import ready
from .sliced_product import (
    ROLES,
    Chosen,
    Problem,
    _convolved,
    _counts,
    _exponents,
    _few_samples,
    _normal,
    _of,
    _rounded,
    _roundings,
    _sliced,
    _uncut,
)
from .slices import SIGNIFICANT, slicing
from .slicing import summed
from .weight_grad import _weight_grad


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
