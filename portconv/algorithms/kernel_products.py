"""Products by kernels of this CPU: one call, or several where filters are mirrored or channels come last.

A `Product` is planned once for a convolution, and runs on addresses. Arrays whose channels come last are turned, a few
samples at a time so that the copies stay in the cache, and so is the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..kernels import call
from ..kernels.call import NO_BIAS
from ..kernels.choice import (
    Chosen,
    best,
    chosen_for_magnitudes,
    chosen_for_mirrored,
    chosen_for_sums,
    chosen_to_quantise,
    chosen_to_turn,
    found_for_inputs,
    found_for_outputs,
    found_for_weights,
    panels_within,
)
from ..kernels.families import IN_TILES
from ..kernels.sizes import Sizes
from ..spec.geometry import Geometry
from ..spec.operation import Kind, Role
from ..spec.remembered import remembered

ELEMENTS = {32: "float", 64: "double"}
"""The types of numbers by their bits, as LLVM calls them."""
MIRRORED = "mirrored"
"""The copy of the filters whose convolution is the input gradient at stride 1."""
CYCLES_OF_CALL = 15_000.0
"""What one more call of a kernel takes, in the vectors that are multiplied meanwhile."""
TURNED_BYTES = 4 << 20
"""About so many bytes of channels that come first are made at once of such as come last."""

Places = tuple[int, int, int, int]
"""The addresses of two operands, of a bias, and of the result; the input comes before the output's gradient."""


class Asked(NamedTuple):
    """What a plan depends on: the convolution, whether there is a bias, and the bytes of workspace of a thread."""

    geometry: Geometry
    has_bias: bool
    memory: int
    kind: str = Kind.FORWARD
    """What is computed: the output or a gradient, or `MIRRORED` filters."""
    transforms: bool = True
    """Whether tiles may be transformed and taps left out; then what is not finite may be wrong."""
    is_mirrored: bool = True
    """Whether an input gradient may be computed by mirrored filters, which must be finite."""
    bits: int = 32
    """The bits of a number."""
    exact: bool = False
    """Whether numbers are whole ones, whose plain sums are exact, and those of tiles are not."""

    @property
    def number(self) -> int:
        """The bytes of a number."""
        return self.bits // 8


class Product(NamedTuple):
    """How kernels compute a product.

    Attributes
    ----------
    cycles : float
        About how many vectors are multiplied and added in the time that it takes.
    memory : int
        The bytes of workspace of a thread.
    block : dict of str to int
        What was chosen, for people to read.
    run : callable
        Computes the product at these addresses, on at most so many threads; returns whether the result may be taken as
        it is. If the last argument is set, what is not finite is computed again where it may be wrong; otherwise it may
        not be taken. A `KernelError` says that a kernel cannot be compiled.
    is_shared : bool
        Whether threads share it; otherwise it takes less time than to ask how many there are.
    roundings : int
        See `Planned.roundings`.
    """

    cycles: float
    memory: int
    block: dict[str, int]
    run: Callable[[Places, int, bool], bool]
    is_shared: bool = True
    roundings: int = 0


@remembered()
def product_of(asked: Asked) -> Product | None:
    """Plan a product by the kernels that are expected to be fastest; return nothing if there are none."""
    if asked.geometry.channels_last:
        return _of_channels_last(asked)
    found = [one for one in (_direct(asked), _by_mirror(asked)) if one is not None]
    return min(found, key=lambda one: (max(0, one.memory - asked.memory), one.cycles), default=None)


def _direct(asked: Asked) -> Product | None:
    """Plan a product that is one call."""
    found = _planned(asked)
    if found is None:
        return None

    ready: list[call.Call] = []  # compiled when it is first needed

    def run(places: Places, threads: int, plainly: bool) -> bool:
        if not ready:
            ready.append(_call(asked))
        if not ready[0].run(places, threads):
            return True
        return plainly and (found.planned.is_plain or _run_plainly(asked, places, threads))

    is_shared = found.planned.cycles > call.SHARED
    return Product(
        found.planned.cycles, found.memory, found.planned.block, run, is_shared, found.planned.roundings
    )  # fmt: skip


def _run_plainly(asked: Asked, places: Places, threads: int) -> bool:
    """Compute a product without tiles, within the same memory; return whether there is a family that can."""
    asked = asked._replace(transforms=False)
    found = _planned(asked)
    if found is None or found.memory > asked.memory:
        return False
    _call(asked).run(places, threads)
    return True


def _by_mirror(asked: Asked) -> Product | None:
    """Plan an input gradient at stride 1 as the output of the convolution by mirrored filters."""
    geometry, mirror = asked.geometry, asked._replace(kind=MIRRORED)
    if asked.kind != Kind.INPUT_GRAD or not geometry.dense or not asked.is_mirrored:
        return None
    of_filters = geometry.weights * asked.number
    copied = _planned(mirror)
    memory = max(1, asked.memory - of_filters)
    found = _direct(asked._replace(geometry=geometry.mirrored, has_bias=False, memory=memory, kind=Kind.FORWARD))
    if copied is None or found is None:
        return None

    def run(places: Places, threads: int, plainly: bool) -> bool:
        dout, w, none, dx = places
        with call.spare(of_filters) as flipped:
            # The mirrored convolution multiplies filters by zeros that are no part of the gradient.
            if _call(mirror).run((w, w, none, flipped), threads):
                return False
            return found.run((dout, flipped, none, dx), threads, plainly)

    cycles = found.cycles + copied.planned.cycles + CYCLES_OF_CALL
    return Product(cycles, found.memory + of_filters, found.block, run, roundings=found.roundings)


class _Turns(NamedTuple):
    """An operand or a result whose channels come last: its channels and cells, and the bytes of a sample."""

    channels: int
    cells: int
    bits: int

    @property
    def sample(self) -> int:
        """The bytes of a sample."""
        return self.bits // 8 * self.channels * self.cells

    def first(self, count: int, last: int, first: int, threads: int) -> None:
        """Let channels of so many samples come first."""
        _turn(count, self.cells, self.channels, self.bits).run((last, last, NO_BIAS, first), threads)

    def last(self, count: int, first: int, last: int, threads: int) -> None:
        """Let channels of so many samples come last."""
        _turn(count, self.channels, self.cells, self.bits).run((first, first, NO_BIAS, last), threads)


def _of_channels_last(asked: Asked) -> Product | None:
    """Plan a product of arrays whose channels come last: they are turned, and so is the result."""
    geometry, kind = replace(asked.geometry, channels_last=False), Kind(asked.kind)
    roles = (Role.X, Role.OUT) if kind in (Kind.FORWARD, Kind.WEIGHT_GRAD) else (Role.OUT, Role.X)
    one, other = (_Turns(shape[1], math.prod(shape[2:]), asked.bits) for shape in map(geometry.shape, roles))
    samples = geometry.batch
    if kind != Kind.WEIGHT_GRAD:  # whose sums go on from sample to sample
        samples = max(1, min(samples, TURNED_BYTES // max(1, one.sample + other.sample)))
    turned = samples * (one.sample + other.sample)
    memory, count, rest = max(1, asked.memory - turned), geometry.batch // samples, geometry.batch % samples
    step = product_of(asked._replace(geometry=replace(geometry, batch=samples), memory=memory))
    last = product_of(asked._replace(geometry=replace(geometry, batch=rest), memory=memory)) if rest else step
    if step is None or last is None:
        return None

    def run(places: Places, threads: int, plainly: bool) -> bool:
        a, b, bias, result = places
        with call.spare(turned, 1) as near:
            far = near + samples * one.sample
            if kind == Kind.WEIGHT_GRAD:
                one.first(samples, a, near, threads)
                other.first(samples, b, far, threads)
                return step.run((near, far, bias, result), threads, plainly)
            for start in range(0, geometry.batch, samples):
                size = min(samples, geometry.batch - start)
                one.first(size, a + start * one.sample, near, threads)
                if not (step if size == samples else last).run((near, b, bias, far), threads, plainly):
                    return False
                other.last(size, far, result + start * other.sample, threads)
        return True

    planned = [_planned_turn(geometry.batch, each.cells, each.channels, asked.bits) for each in (one, other)]
    turns = sum(each.planned.cycles for each in planned if each is not None)
    cycles = count * step.cycles + (last.cycles if rest else 0) + turns + 3 * count * CYCLES_OF_CALL
    return Product(cycles, max(step.memory, last.memory) + turned, step.block, run)


def sizes_of(geometry: Geometry, bits: int = 32) -> Sizes:
    """Return what kernels are told of a convolution of numbers of so many bits."""
    return Sizes(
        *(geometry.batch, geometry.in_channels, geometry.out_channels, geometry.groups),
        *(geometry.size, geometry.kernel, geometry.stride, geometry.dilation),
        *(geometry.before, geometry.after, geometry.out),
        element=ELEMENTS[bits],
    )


@remembered()
def _planned(asked: Asked) -> Chosen | None:
    """Plan one call, by the family that is expected to be fastest, or by the one that takes the least memory."""
    if asked.kind == MIRRORED:
        return chosen_for_mirrored(sizes_of(asked.geometry, asked.bits))
    found = _found(asked._replace(memory=0))
    if asked.kind == Kind.FORWARD:
        sizes, has_bias = sizes_of(asked.geometry, asked.bits), asked.has_bias
        found = [*found, *panels_within(sizes, asked.memory, has_bias=has_bias, transforms=asked.transforms)]
    return best(found, asked.memory)


@remembered(len)
def _found(asked: Asked) -> list[Chosen]:
    """Plan a product by all families whose plans do not depend on the memory that there is."""
    sizes = sizes_of(asked.geometry, asked.bits)
    if asked.kind == Kind.FORWARD:
        found = found_for_outputs(sizes, has_bias=asked.has_bias, transforms=asked.transforms)
    else:
        plan = found_for_weights if asked.kind == Kind.WEIGHT_GRAD else found_for_inputs
        found = plan(sizes, transforms=asked.transforms)
    found = [one for one in found if not (asked.exact and one.kernel.family in IN_TILES)]
    # Plans have tables: those that take more time and no less memory than another one are dropped.
    kept: list[Chosen] = []
    for one in sorted(found, key=lambda one: (one.planned.cycles, one.memory)):
        if not kept or one.memory < kept[-1].memory:
            kept.append(one)
    return kept


@remembered()
def _call(asked: Asked) -> call.Call:
    """Make a planned call ready."""
    return made_ready(_planned(asked))


@remembered()
def _planned_turn(count: int, rows: int, columns: int, bits: int) -> Chosen | None:
    """Plan to turn so many matrices of numbers of so many bits."""
    return chosen_to_turn(count, rows, columns, ELEMENTS[bits])


@remembered()
def _turn(count: int, rows: int, columns: int, bits: int) -> call.Call:
    """Make ready what turns so many matrices."""
    return made_ready(_planned_turn(count, rows, columns, bits))


@remembered()
def call_of_sums(samples: int, channels: int, cells: int, bits: int) -> call.Call:
    """Make ready what adds up each channel of numbers of so many bits."""
    return made_ready(chosen_for_sums(samples, channels, cells, ELEMENTS[bits]))


@remembered()
def call_of_magnitudes(samples: int, channels: int, cells: int, bits: int) -> call.Call:
    """Make ready what finds the largest magnitude of each channel of numbers of so many bits."""
    return made_ready(chosen_for_magnitudes(samples * channels, cells, ELEMENTS[bits]))


@remembered()
def call_of_quantised_sums(samples: int, channels: int, cells: int, bits: int) -> call.Call:
    """Make ready what quantises each channel and adds it up exactly."""
    return made_ready(chosen_to_quantise("sums", (samples * channels, 1, cells), channels))


def made_ready(found: Chosen | None) -> call.Call:
    """Make a planned call ready."""
    if found is None:
        raise call.KernelError("no kernel is left for this convolution")
    return call.Call(found.kernel, found.planned)
