"""Plan how operands are cut into slices, and long sums into chunks, so that all sums are exact; plain integers alone.

A slice is an integer of so few bits that sums of products of slices are exact in float64, in any order. A quantised
number is ``a = sum of a_i * 2**(width * i)`` with ``|a_i| <= 2**(width - 1)``, so that a product of two is the sum of
``a_i b_j * 2**(width * (i + j))``. By Karatsuba and Ofman ("Multiplication of many-digital numbers by automatic
computers", 1962) the mixed products are ``a_i b_j + a_j b_i = (a_i + a_j) (b_i + b_j) - a_i b_i - a_j b_j``: n slices
take n (n + 1) / 2 products instead of n * n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

from ..backends import Backend
from ..passes.padding import most_terms
from ..passes.partition import Part, in_rows, whole
from ..spec.dtypes import EXACT, PARTS_OF
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.ranges import Range, pieces

SIGNIFICANT_BITS = {"float16": 40, "bfloat16": 40, "float32": 40, "float64": 60, "complex64": 40, "complex128": 60}
"""The bits, sign included, that operands are quantised to, by their common dtype."""
PART_PRODUCTS = ((0, 0), (1, 1), (0, 1), (1, 0))
"""The products of real (0) and imaginary (1) parts: two for the real part of a product, then two for the imaginary."""
PART_SIGNS = (1, -1, 1, 1)
"""The sign that each of `PART_PRODUCTS` is added with."""
LONGEST_SUM = 1 << 13
"""The terms of an exact sum over samples and rows for which two slices of 20 bits suffice, or three of float64's.

A longer sum is cut into chunks.
"""
BLOCKS = 6
"""How many blocks arrays of slices may be as large as: arrays of over 32 MiB are made of fresh memory each time."""
CHUNK_ELEMENTS = 1 << 21
"""The elements of filters that the chunks of one convolution may have."""


@dataclass(frozen=True)
class Slicing:
    """How the operands of a product are cut.

    Attributes
    ----------
    bits : int
        The bits of a quantised number.
    width : int
        The bits of a slice.
    slices : int
        The slices of a number.
    part_products : int
        How many products of parts there are: one of real numbers, four of complex ones.
    """

    bits: int
    width: int
    slices: int
    part_products: int

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """What is multiplied: slice i for a pair (i, i), and the sum of slices i and j for a pair (i, j)."""
        return tuple((i, j) for i in range(self.slices) for j in range(i, self.slices))

    @cached_property
    def slots(self) -> int:
        """How many products of slices one product is made of: one a pair and product of parts."""
        return self.part_products * len(self.pairs)


UNCUT = Slicing(SIGNIFICANT_BITS["float32"], SIGNIFICANT_BITS["float32"], 1, 1)
"""Quantised float32 operands that are multiplied whole, whose products are not exact."""


@lru_cache(maxsize=1024)
def slicing(dtype: str, terms: int) -> Slicing:
    """Plan the fewest slices whose sums of `terms` products are exact."""
    bits, part_products = SIGNIFICANT_BITS[dtype], 4 if dtype in PARTS_OF else 1
    # A part of a complex number is a sum of twice as many products.
    products = max(1, terms) * (2 if part_products > 1 else 1)
    for slices in range(2, bits + 1):
        width = -(-bits // slices)
        # Sums of two slices are multiplied, which is a factor of 4; and up to `slices` sums of one weight, with what is
        # carried, are added up.
        if max(4, slices + 1) * products * 4 ** (width - 1) <= 2 ** EXACT["float64"]:
            return Slicing(bits, width, slices, part_products)
    raise AssertionError("sums of so many terms cannot be addressed")


def addition_slicing(bits: int, terms: int) -> Slicing:
    """Plan the fewest slices of numbers of `bits` bits of which sums of `terms` slices, with a carry, are exact."""
    slices = 2
    while max(1, terms) * 2 ** -(-bits // slices) > 2 ** EXACT["float64"]:
        slices += 1
    return Slicing(bits, -(-bits // slices), slices, 1)


@lru_cache(maxsize=1024)
def in_slices(geometry: Geometry, count: int) -> Geometry:
    """Return the convolution of `count` slices side by side, as groups, with channels first in memory."""
    return replace(
        geometry,
        groups=count * geometry.groups,
        in_channels=count * geometry.in_channels,
        out_channels=count * geometry.out_channels,
        channels_last=False,
    )


def exact_terms(backend: Backend, geometry: Geometry, kind: str, dtype: str) -> int:
    """Count the products that one exact sum has at most, the zeros between cells of an input gradient included."""
    if kind == Kind.WEIGHT_GRAD:
        return chunks(backend, geometry, dtype).terms
    return most_terms(geometry, kind)


def slots(backend: Backend, geometry: Geometry, kind: str, dtype: str) -> int:
    """Count the products of slices that one product is made of."""
    return slicing(dtype, exact_terms(backend, geometry, kind, dtype)).slots


class Chunks(NamedTuple):
    """How a weight gradient's sum over samples and positions is cut into chunks, which are groups of convolutions.

    Attributes
    ----------
    samples : int
        The samples of a chunk.
    calls : tuple of (int, int)
        The range of chunks that each convolution computes.
    rows : tuple of Part
        The rows of a sample that one convolution computes.
    """

    samples: int
    calls: tuple[Range, ...]
    rows: tuple[Part, ...]

    @property
    def terms(self) -> int:
        """How many products one exact sum has at most."""
        return self.samples * max(part.geometry.positions for part in self.rows)

    @property
    def several(self) -> bool:
        """Whether there is more than one chunk."""
        return len(self.calls) > 1 or len(self.rows) > 1 or self.calls[0][1] > 1


def longest_sum(dtype: str) -> int:
    """Count the positions that one exact sum of a weight gradient should have at most."""
    return LONGEST_SUM // (2 if dtype in PARTS_OF else 1)


def chunks(backend: Backend, geometry: Geometry, dtype: str) -> Chunks:
    """Plan the chunks of a weight gradient."""
    return _chunks(geometry.extended, dtype, slice_elements(backend, slicing(dtype, 1)))


@lru_cache(maxsize=256)
def _chunks(geometry: Geometry, dtype: str, elements: int) -> Chunks:
    """Plan chunks of which each has few enough terms; the slices of one call have at most `elements` elements."""
    most = longest_sum(dtype)
    one = replace(geometry, batch=1)
    rows = tuple(in_rows(one, most) or (whole(one),))
    samples_of_call = elements // max(1, larger_operand(geometry))
    samples_of_chunk = max(1, most // max(1, geometry.positions))
    # Of filters larger than a sample, adding up chunks would take longer than making slices of fresh memory.
    if geometry.weights < larger_operand(geometry):
        samples_of_chunk = max(1, min(samples_of_chunk, samples_of_call))
    samples = max((n for n in range(1, samples_of_chunk + 1) if geometry.batch % n == 0), default=1)
    chunks_of_call = max(1, min(CHUNK_ELEMENTS // geometry.weights, samples_of_call // samples))
    return Chunks(samples, pieces(max(1, geometry.batch // samples), chunks_of_call), rows)


def larger_operand(geometry: Geometry) -> int:
    """Count the elements of a sample of the input or of the output, whichever has more."""
    return max(geometry.in_channels * math.prod(geometry.size), geometry.out_channels * geometry.positions)


def slice_elements(backend: Backend, slicing: Slicing) -> int:
    """Count the elements of an operand that should be cut into slices at a time."""
    return backend.block_bytes * BLOCKS // (8 * slicing.slots)
