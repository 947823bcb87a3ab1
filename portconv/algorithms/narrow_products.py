"""Products of narrow numbers by kernels that multiply wider ones, or several of them at once.

Operands are copied, a few samples at a time so that the copies stay in the cache: into packs, whose products one
instruction adds up, or into a wider type. The sums that come out are copied into the narrow type. Numbers of a pack
are those of neighbouring channels, or filters, or samples: of whatever the sums are taken over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..kernels import call, state
from ..kernels.call import NO_BIAS
from ..kernels.choice import Chosen
from ..kernels.packs import KINDS
from ..kernels.sizes import blocks, ceiling
from ..kernels.values import BRAINS, BYTES, ELEMENT_BYTES, LINE, PACKS, PAIRS
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from .planned_calls import (
    CYCLES_OF_CALL,
    Asked,
    Places,
    Product,
    cast_of,
    pack_of,
    planned_cast,
    planned_pack,
)

SPARE = 2
"""The place of the memory for copies."""
COPIED_BYTES = 4 << 20
"""About so many bytes of copies of samples are made at once."""


class Way(NamedTuple):
    """How narrow numbers are multiplied: as packs or as numbers of the type `element`, with sums of the type `sums`."""

    element: str
    sums: str

    @property
    def numbers(self) -> int:
        """How many narrow numbers become one."""
        return PACKS.get(self.element, 1)


WAYS = {
    "i8": (Way(BYTES, "i32"), Way("i16", "i16"), Way("i32", "i32")),
    "i16": (Way(PAIRS, "i32"), Way("i32", "i32")),
    "half": (Way("float", "float"),),
    "bfloat": (Way(BRAINS, "float"), Way("float", "float")),
}
"""The ways for each narrow type."""
PACKED = {packs: name for name, packs in KINDS.items()}
"""The kernels that make packs."""


def has_kernels(element: str) -> bool:
    """Return whether numbers of a type are multiplied as they are here: those of 16 bits need the masks of AVX-512."""
    return element not in WAYS or (element == "i16" and state.here().name == "avx512")


def narrow_products(asked: Asked, product_of: Callable[[Asked], Product | None]) -> list[Product]:
    """Plan a product of narrow numbers in all ways that there are."""
    found = (_Steps(asked, way, product_of).product() for way in WAYS[asked.element] if _serves(way, asked.geometry))
    products = [one for one in found if one is not None]
    if asked.element == "bfloat" and len(products) > 1:
        # What packs may not be made of is multiplied in float32.
        products[0] = _with_second(*products)
    return products


def _serves(way: Way, geometry: Geometry) -> bool:
    dots = state.here().dots
    if way.element in PACKS:
        return way.element in dots and not geometry.channels_last
    return has_kernels(way.element) or (way.element == "i16" and PAIRS in dots)


def _with_second(first: Product, second: Product) -> Product:
    """Return a product that is computed in the second way where the first one fails."""

    def run(places: Places, threads: int, plainly: bool) -> bool:
        return first.run(places, threads, False) or second.run(places, threads, plainly)

    return first._replace(run=run, memory=max(first.memory, second.memory))


class _Copy(NamedTuple):
    """A copy of one operand: matrices of so many rows and columns, of a type, in packs of rows or in another type."""

    matrices: int
    rows: int
    columns: int
    source: str
    way: Way

    @property
    def is_there(self) -> bool:
        """Whether the operand lies in packs as it is."""
        # Numbers of bfloat16 must be looked at.
        is_plain = self.way.element in (BYTES, PAIRS)
        return is_plain and self.columns == 1 and self.rows % self.way.numbers == 0

    @property
    def bytes(self) -> int:
        """The bytes that are read."""
        return self.matrices * self.rows * self.columns * ELEMENT_BYTES[self.source]

    @property
    def memory(self) -> int:
        """The bytes that are written, of whole lines of the cache."""
        made = self.matrices * ceiling(self.rows, self.way.numbers) * self.columns * ELEMENT_BYTES[self.way.element]
        return 0 if self.is_there else _lines(made)

    @property
    def cycles(self) -> float:
        """Estimate the time."""
        if self.is_there:
            return 0.0
        if self.way.element in PACKED:
            return _cycles_of(planned_pack(self.matrices, self.rows, self.columns, PACKED[self.way.element]))
        return _cycles_of(planned_cast(self.matrices * self.rows * self.columns, f"{self.source}-{self.way.element}"))

    def run(self, place: int, goal: int, threads: int) -> tuple[int, int]:
        """Copy the operand, unless it may be taken as it is; return where to find it, and 1 if that may not be done."""
        if self.is_there:
            return place, 0
        if self.way.element in PACKED:
            ready = pack_of(self.matrices, self.rows, self.columns, PACKED[self.way.element])
        else:
            ready = cast_of(self.matrices * self.rows * self.columns, f"{self.source}-{self.way.element}")
        return goal, ready.run((place, place, NO_BIAS, goal), threads)


def _cycles_of(found: Chosen | None) -> float:
    return math.inf if found is None else found.planned.cycles


def _in_packs(geometry: Geometry, kind: Kind, numbers: int) -> Geometry:
    """Return the convolution of packs."""
    if kind == Kind.WEIGHT_GRAD:
        return replace(geometry, batch=ceiling(geometry.batch, numbers))
    if kind == Kind.FORWARD:
        return replace(geometry, in_channels=geometry.groups * ceiling(geometry.group_in, numbers))
    return replace(geometry, out_channels=geometry.groups * ceiling(geometry.group_out, numbers))


def _copies(asked: Asked, way: Way, samples: int) -> tuple[_Copy, _Copy]:
    """Return the copies of both operands, of so many samples."""
    geometry, kind, source = asked.geometry, asked.kind, asked.element
    cells, positions, groups = math.prod(geometry.size), geometry.positions, geometry.groups
    if kind == Kind.WEIGHT_GRAD:
        sides = (1, samples, geometry.in_channels * cells), (1, samples, geometry.out_channels * positions)
    elif kind == Kind.FORWARD:
        of_filters = geometry.out_channels, geometry.group_in, geometry.taps
        sides = (samples * groups, geometry.group_in, cells), of_filters
    else:
        of_filters = groups, geometry.group_out, geometry.group_in * geometry.taps
        sides = (samples * groups, geometry.group_out, positions), of_filters
    first, second = (_Copy(*side, source, way) for side in sides)
    return first, second


class _Steps:
    """A product in one way, a few samples at a time; a gradient of filters at once, as its sums go on."""

    def __init__(self, asked: Asked, way: Way, product_of: Callable[[Asked], Product | None]) -> None:
        self.asked, self.way, self.product_of = asked, way, product_of
        geometry, self.kind, self.number = asked.geometry, Kind(asked.kind), ELEMENT_BYTES[way.sums]
        self.batch, self.at_once = geometry.batch, self.kind == Kind.WEIGHT_GRAD
        self.results = math.prod(geometry.shape(self.kind.result))
        self.of_sample = self.results if self.at_once else self.results // max(1, self.batch)
        of_samples = self.of_sample * self.number + _copies(asked, way, 1)[0].memory
        few = blocks(self.batch, max(1, COPIED_BYTES // max(1, of_samples)))[1]
        self.samples = max(1, self.batch) if self.at_once else few
        self.first, self.second = _copies(asked, way, self.samples)
        self.rest = 0 if self.at_once else self.batch % self.samples
        self.of_rest = _copies(asked, way, self.rest)[0]
        self.of_sums = _lines((1 if self.at_once else self.samples) * self.of_sample * self.number)
        of_bias = _lines(geometry.out_channels * self.number) if asked.has_bias else 0
        self.memory = self.first.memory + self.second.memory + self.of_sums + of_bias
        self.step = self.planned(self.samples)
        self.last = self.planned(self.rest) if self.rest else self.step

    def planned(self, samples: int) -> Product | None:
        """Plan the product of so many samples by the numbers, or packs, that are multiplied."""
        geometry = _in_packs(self.asked.geometry, self.kind, self.way.numbers)
        if not self.at_once:
            geometry = replace(geometry, batch=samples)
        memory = max(1, self.asked.memory - self.memory)
        return self.product_of(self.asked._replace(geometry=geometry, element=self.way.element, memory=memory))

    def product(self) -> Product | None:
        """Return the whole product."""
        if self.step is None or self.last is None:
            return None
        steps = max(1, self.batch // self.samples)
        cycles = steps * self.step.cycles + (self.last.cycles if self.rest else 0.0)
        cycles += _copies(self.asked, self.way, max(1, self.batch))[0].cycles + self.second.cycles
        cycles += _cycles_of(planned_cast(self.results, f"{self.way.sums}-{self.asked.element}"))
        cycles += (2 + 2 * (steps + bool(self.rest))) * CYCLES_OF_CALL
        memory = max(self.step.memory, self.last.memory) + self.memory
        return Product(cycles, memory, self.step.block, self.run) if cycles < math.inf else None

    def run(self, places: Places, threads: int, plainly: bool) -> bool:
        """Compute the product; return whether it may be taken as it is."""
        a, b, bias, result = places
        narrow, types = ELEMENT_BYTES[self.asked.element], f"{self.way.sums}-{self.asked.element}"
        with call.spare(self.memory, SPARE) as near:
            far = near + self.first.memory
            sums = far + self.second.memory
            b, spoiled = self.second.run(b, far, threads)
            if spoiled:
                return False
            if self.asked.has_bias:
                filters, there = self.asked.geometry.out_channels, sums + self.of_sums
                cast_of(filters, f"{self.asked.element}-{self.way.sums}").run((bias, bias, NO_BIAS, there), threads)
                bias = there
            for start in range(0, self.batch, self.samples):
                size = min(self.samples, self.batch - start)
                copy, step = (self.first, self.step) if size == self.samples else (self.of_rest, self.last)
                at, spoiled = copy.run(a + start // self.samples * self.first.bytes, near, threads)
                if spoiled or step is None or not step.run((at, b, bias, sums), threads, plainly):
                    return False
                count = self.of_sample * (1 if self.at_once else size)
                goal = result + start * self.of_sample * narrow
                cast_of(count, types).run((sums, sums, NO_BIAS, goal), threads)
        return True


def _lines(nbytes: int) -> int:
    """Return the bytes of whole lines of the cache."""
    return ceiling(nbytes, LINE) * LINE
