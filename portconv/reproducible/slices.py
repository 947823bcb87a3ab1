"""Operands as slices: integers of so few bits that sums of their products are exact in float64, in any order.

Quantised numbers are `a = sum of a_i * 2**(width * i)` with `|a_i| <= 2**(width - 1)`, so that a product of two is the
sum of `a_i b_j * 2**(width * (i + j))`. By Karatsuba and Ofman ("Multiplication of many-digital numbers by automatic
computers", 1962) the mixed ones are `a_i b_j + a_j b_i = (a_i + a_j) (b_i + b_j) - a_i b_i - a_j b_j`: n slices take
n (n + 1) / 2 products instead of n * n.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from ..backends import Array, Backend, Workspace
from ..spec.dtypes import EXACT

SIGNIFICANT = {"float16": 40, "bfloat16": 40, "float32": 40, "float64": 60, "complex64": 40, "complex128": 60}
"""How many bits, sign included, operands are quantised to, by the dtype that they have in common."""


class Slicing(NamedTuple):
    """How the operands of a product are cut: into `number` slices of `width` bits, of numbers of `bits` bits."""

    bits: int
    width: int
    number: int
    kinds: int
    """How many products of parts there are: one of real numbers, four of complex ones."""

    @property
    def forms(self) -> list[tuple[int, int]]:
        """The slices, or pairs of slices, that are multiplied."""
        return [(i, j) for i in range(self.number) for j in range(i, self.number)]

    @property
    def slots(self) -> int:
        """How many products make up a whole: each of `forms` for each product of parts."""
        return self.kinds * len(self.forms)


PRODUCTS = ((0, 0), (1, 1), (0, 1), (1, 0))
"""Of real (0) and imaginary (1) parts; the first two make up the real part of a product, the others the imaginary."""
SIGNS = (1, -1, 1, 1)


@lru_cache(maxsize=1024)
def slicing(dtype: str, terms: int) -> Slicing:
    """Cut into the fewest slices whose sums of `terms` products are exact."""
    bits, kinds = SIGNIFICANT[dtype], 4 if dtype.startswith("complex") else 1
    # A part of a complex number is a sum of twice as many products.
    many = max(1, terms) * (2 if kinds > 1 else 1)
    for count in range(2, bits + 1):
        width = -(-bits // count)
        # Sums of two slices are multiplied, and products of one weight, `count` of them and what is carried, added up.
        if max(4, count + 1) * many * 4 ** (width - 1) <= 2 ** EXACT["float64"]:
            return Slicing(bits, width, count, kinds)
    raise AssertionError("sums of so many terms cannot be addressed")


def addition(bits: int, terms: int) -> Slicing:
    """Cut into the fewest slices whose sums, of `terms` of them and what is carried, are exact."""
    count = 2
    while max(1, terms) * 2 ** -(-bits // count) > 2 ** EXACT["float64"]:
        count += 1
    return Slicing(bits, -(-bits // count), count, 1)


def cut(backend: Backend, numbers: Array, own: Slicing) -> list[Array]:
    """Cut numbers, scaled so that they have `bits` bits before the point, into slices, the lowest first.

    Each is rounded half to even, the last so that all of them add up to the whole number nearest. Multiplied by powers
    of two alone, so that a fused multiplication and addition makes no difference.
    """
    xp, found = backend.xp, []
    for i in range(own.number - 1, 0, -1):
        slice_ = xp.round(numbers * 2.0 ** (-own.width * i))
        numbers = numbers - slice_ * 2.0 ** (own.width * i)
        found.append(slice_)
    return [xp.round(numbers), *reversed(found)]


def cut_into(
    backend: Backend,
    target: Array,
    at: Callable[[int], tuple[Any, ...]],
    numbers: Array,
    own: Slicing,
    workspace: Workspace,
) -> Array:
    """`target` with the slices of numbers, and their sums, as `cut` makes them; `at` says where each of `forms` is.

    The numbers are not kept.
    """
    form = {both: at(i) for i, both in enumerate(own.forms)}
    step = workspace("step", tuple(numbers.shape), numbers.dtype)
    for i in range(own.number - 1, 0, -1):
        here = form[i, i]
        target = backend.elementwise("multiply", target, here, numbers, 2.0 ** (-own.width * i))
        target = backend.elementwise("round", target, here, target[here])
        step = backend.elementwise("multiply", step, (...,), target[here], 2.0 ** (own.width * i))
        numbers = backend.elementwise("subtract", numbers, (...,), numbers, step)
    target = backend.elementwise("round", target, form[0, 0], numbers)
    for (i, j), here in form.items():
        if i != j:
            target = backend.elementwise("add", target, here, target[form[i, i]], target[form[j, j]])
    return target


def weights(backend: Backend, products: list[Array], own: Slicing, workspace: Workspace | None = None) -> list[Array]:
    """Add up products of slices, in the order of `forms`, by their weight: the power of `2**width` that they have."""
    made = dict(zip(own.forms, products, strict=True))
    found: list[Array] = [None] * (2 * own.number - 1)
    for (i, j), value in made.items():
        if i != j:
            room = None if workspace is None else workspace(f"mixed {i} {j}", tuple(value.shape), value.dtype)
            for less in (made[i, i], made[j, j]):
                value = value - less if room is None else backend.elementwise("subtract", room, (...,), value, less)
        found[i + j] = value if found[i + j] is None else found[i + j] + value
    return found
