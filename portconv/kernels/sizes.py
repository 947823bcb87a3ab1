"""What a kernel is told of a convolution, and the plan of a call that it answers with."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

from .values import ELEMENT_BYTES, LINE

SHARE_PRODUCTS = 500_000
"""So many multiplications are about one share of the work: some 10 to 20 microseconds of one thread."""
ALONE_VECTORS, FEWEST_PRODUCTS = 25_000, 150_000
"""A call of no more vectors of multiplications is one share: threads take as long to hand it over as to compute it. A
share of a small call has at least so many multiplications; handing over one costs as much as some thousands."""

LANES_ADDED = 6
"""How often a sum is rounded at most while the lanes of a vector are added up, and what lies beyond the last vector."""

TIME_OF_BLOCK = 0.05
"""How long each block of a call takes beside the things that it has, in the time of one of these."""

FAR_BYTES = 2 << 20
"""Arrays of more bytes lie beyond the nearest caches, so that it pays to ask for lines of them ahead."""


class Sizes(NamedTuple):
    """The sizes of a convolution whose arrays have channels first; the tuples have one number a dimension."""

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    out: tuple[int, ...]
    element: str = "float"
    """The type of the numbers, as LLVM calls it."""

    @property
    def number(self) -> int:
        """The bytes of a number."""
        return ELEMENT_BYTES[self.element]

    @property
    def channels(self) -> int:
        """The input channels of a group."""
        return self.in_channels // self.groups

    @property
    def filters(self) -> int:
        """The filters of a group."""
        return self.out_channels // self.groups

    @property
    def cells(self) -> int:
        """The numbers of one channel of the input."""
        return math.prod(self.size)

    @property
    def positions(self) -> int:
        """The numbers of one channel of the output."""
        return math.prod(self.out)

    @property
    def taps(self) -> int:
        """The numbers of one channel of a filter."""
        return math.prod(self.kernel)

    def reading(self, dim: int, tap: int) -> tuple[int, int]:
        """Return the first output along a dimension that reads a cell through a tap, and the one after the last."""
        first = self.before[dim] - tap * self.dilation[dim]
        start, stop = (ceiling(cell, self.stride[dim]) for cell in (first, first + self.size[dim]))
        start = min(self.out[dim], max(0, start))
        return start, min(self.out[dim], max(start, stop))

    def columns_of_taps(self) -> array[int]:
        """Return what `reading` says of each tap along the last dimension, as kernels read it."""
        return numbers([end for tap in range(self.kernel[-1]) for end in self.reading(-1, tap)])

    def outer(self, count: int) -> dict[str, array[int]]:
        """Return, for the first `count` dimensions, the lists that kernels read, by the names of their fields."""
        edges = zip(self.kernel, self.dilation, self.before, strict=True)
        firsts = [range(-before, step * taps - before, step) for taps, step, before in edges]
        lists: dict[str, Sequence[int]] = {
            "outer_sizes": self.out[:count],
            "outer_steps": self.stride[:count],
            "outer_inputs": self.size[:count],
            "outer_strides": [math.prod(self.size[dim + 1 :]) for dim in range(count)],
            "outer_taps": [cell for tap in product(*firsts[:count]) for cell in tap],
        }
        return {name: numbers(values) for name, values in lists.items()}


class Planned(NamedTuple):
    """The plan of a call.

    Attributes
    ----------
    variant : str
        The kernel of the family.
    values : list of int
        The plan as the kernel reads it, 8 bytes a number.
    tables : tuple of arrays
        What addresses in the plan point to; they must live as long as it does.
    shares : int
        All shares, of all phases.
    scratch_bytes : int
        The memory that a thread needs for itself, which begins at a multiple of 64 bytes.
    block : dict of str to int
        What was chosen, for people to read.
    shared_bytes : int
        The memory that all threads of a call share.
    is_plain : bool
        Whether what is not finite is what the formula gives. Otherwise a result that is not finite may be wrong.
    cycles : float
        About how many vectors are multiplied and added in the time that it takes.
    roundings : int
        Of operands of at most 40 bits in float64: a sum is off by gamma_n, with this n, times the product of the norms
        of the numbers that meet in it. 0 if it is no less than the sum has terms.
    """

    variant: str
    values: list[int]
    tables: tuple[array[int], ...]
    shares: int
    scratch_bytes: int
    block: dict[str, int]
    shared_bytes: int = 0
    is_plain: bool = True
    cycles: float = 0.0
    roundings: int = 0


def share_products(products: int, lanes: int) -> int:
    """Return how many of the multiplications are about one share: fewer of a small call, so that threads share it."""
    if products <= ALONE_VECTORS * lanes:
        return max(1, products)
    return min(SHARE_PRODUCTS, max(FEWEST_PRODUCTS, ceiling(products, 4)))


def ceiling(a: int, b: int) -> int:
    """Return `a / b`, rounded up."""
    return -(-a // b)


def in_runs(terms: int, run: int, lanes: int) -> int:
    """Return how often a term is rounded at most: added up in runs, and then their sums; or lane by lane."""
    return max(min(terms, run) + ceiling(terms, run), ceiling(terms, lanes) + LANES_ADDED)


class Layout:
    """Places for arrays in scratch memory, one after the other, each of which begins on a line of the cache."""

    def __init__(self) -> None:
        self.bytes = 0

    def add(self, nbytes: int) -> int:
        """Add an array of so many bytes; return where it begins."""
        place = self.bytes
        self.bytes += ceiling(nbytes, LINE) * LINE
        return place


def numbers(values: Sequence[int]) -> array[int]:
    """Return integers as kernels read them; at least one, so that they have an address."""
    return array("q", values or (0,))


def addresses(lists: Mapping[str, array[int]]) -> dict[str, int]:
    """Return where lists lie, while they live."""
    return {name: values.buffer_info()[0] for name, values in lists.items()}


def blocks_for_two(count: int, most: int) -> tuple[int, int]:
    """Cut as `blocks` does, but so that two threads end together, and more threads soon after one another.

    The last block is smaller than the others, and is computed last.
    """

    def time(size: int) -> float:
        number, last = ceiling(count, size), (count - 1) % size + 1
        of_one = number // 2 * size + number % 2 * last
        return of_one + TIME_OF_BLOCK * number

    size = min(range(max(1, most), (most - 1) // 2, -1), key=time)
    return max(1, ceiling(count, size)), size


def blocks(count: int, most: int) -> tuple[int, int]:
    """Cut a number of things into blocks of nearly the same size, at most `most`; return their number and that size."""
    size = max(1, ceiling(count, max(1, ceiling(count, most))))
    return max(1, ceiling(count, size)), size
