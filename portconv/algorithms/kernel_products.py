"""Products by kernels of this CPU: one call, or several where filters are mirrored or arrays are turned.

A `Product` is planned once for a convolution, and runs on addresses. Arrays whose channels come last are turned, a few
samples at a time so that the copies stay in the cache, and so is the result. So are complex numbers, whose parts become
channels.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import replace
from typing import NamedTuple

from ..kernels import call
from ..kernels.call import NO_BIAS
from ..kernels.sizes import blocks
from ..kernels.values import ELEMENT_BYTES, LONG
from ..spec.operation import Kind, Role
from ..spec.remembered import remembered
from .complex_parts import in_parts
from .narrow_products import WAYS, has_kernels, narrow_products
from .planned_calls import (
    CYCLES_OF_CALL,
    MIRRORED,
    Asked,
    Places,
    Product,
    call_last,
    call_of,
    planned,
    planned_last,
    planned_turn,
    turn_of,
)

TIMES_OF_INT16 = 1.33
"""Vectors of 16 bits take so many times as long: to multiply them and to add them are two instructions."""
COPIES_OF_PARTS = 12
"""So many real numbers are made of a complex one of a filter, at most: it and its parts, and four numbers twice."""
TURNED_BYTES = 4 << 20
"""About so many bytes of channels that come first are made at once of such as come last."""
PARTS_BYTES = 16 << 20
"""The same of parts of complex numbers, where there is memory: their samples are large, and threads share several of
them better than one."""

CODES = {"float": "f", "double": "d", "i16": "h", "i32": "i", LONG: "q"}
"""How `array` calls the types of numbers."""


@remembered()
def product_of(asked: Asked) -> Product | None:
    """Plan a product by the kernels that are expected to be fastest; return nothing if there are none."""
    found = narrow_products(asked, product_of) if asked.element in WAYS else []
    own = _of_own_type(asked) if has_kernels(asked.element) else None
    if own is not None:
        found.append(own._replace(cycles=own.cycles * TIMES_OF_INT16) if asked.element == "i16" else own)
    return min(found, key=lambda one: (max(0, one.memory - asked.memory), one.cycles), default=None)


def _of_own_type(asked: Asked) -> Product | None:
    """Plan a product by kernels that multiply the numbers as they are."""
    if asked.geometry.channels_last or asked.is_complex:
        turned = _of_turned(asked)
        if asked.is_complex:
            return turned
        best = _of_rows(asked, turned) or _in_place(asked, turned) or turned
        return _of_read_cells(asked, turned, best) or best
    found = [one for one in (_direct(asked), _by_mirror(asked)) if one is not None]
    return min(found, key=lambda one: (max(0, one.memory - asked.memory), one.cycles), default=None)


def _direct(asked: Asked) -> Product | None:
    """Plan a product that is one call."""
    found = planned(asked)
    if found is None:
        return None

    ready: list[call.Call] = []  # compiled when it is first needed

    def run(places: Places, threads: int, plainly: bool) -> bool:
        if not ready:
            ready.append(call_of(asked))
        if not ready[0].run(places, threads):
            return True
        return plainly and (found.planned.is_plain or _run_plainly(asked, places, threads))

    is_shared = found.planned.cycles > call.SHARED
    return Product(
        found.planned.cycles, found.memory, found.planned.block, run, is_shared, found.planned.roundings
    )  # fmt: skip


def _of_rows(asked: Asked, turned: Product | None) -> Product | None:
    """Plan an output or an input gradient by filters of one tap, of arrays whose channels come last, as they lie.

    A position's channels lie side by side as those of a filter do. So positions are taken for filters, and the filters
    for a row of cells, turned for an output.
    """
    geometry, kind, number = asked.geometry, asked.kind, asked.number
    positions, channels, filters = geometry.batch * geometry.positions, geometry.in_channels, geometry.out_channels
    is_matrix = geometry.taps == geometry.groups == 1 and geometry.size == geometry.out and geometry.dense
    if kind == Kind.WEIGHT_GRAD or asked.has_bias or not is_matrix or {*geometry.before, *geometry.after} != {0}:
        return None
    if not positions:
        return None
    turn = planned_turn(1, filters, channels, asked.element) if kind == Kind.FORWARD else None
    of_filters = filters * channels * number if turn is not None else 0
    sums, columns = (channels, filters) if kind == Kind.FORWARD else (filters, channels)
    flat = replace(
        geometry, batch=1, in_channels=sums, out_channels=positions, size=(columns,), kernel=(1,), stride=(1,),
        dilation=(1,), before=(0,), after=(0,), channels_last=False,
    )  # fmt: skip
    found = _direct(asked._replace(geometry=flat, kind=Kind.FORWARD, memory=max(1, asked.memory - of_filters)))
    if found is None or found.memory + of_filters > asked.memory:
        return None
    cycles = found.cycles + (0.0 if turn is None else turn.planned.cycles + CYCLES_OF_CALL)
    if turned is not None and turned.cycles < cycles:
        return None

    def run(places: Places, threads: int, plainly: bool) -> bool:
        a, w, none, result = places
        if turn is None:
            return found.run((w, a, none, result), threads, plainly)
        with call.spare(of_filters, 1) as cells:
            turn_of(1, filters, channels, asked.element).run((w, w, none, cells), threads)
            return found.run((cells, a, none, result), threads, plainly)

    return Product(cycles, found.memory + of_filters, found.block, run)


def _in_place(asked: Asked, turned: Product | None) -> Product | None:
    """Plan a product of arrays whose channels come last, as they lie, if there is memory for it.

    What is not finite is computed of turned arrays.
    """
    found = planned_last(asked._replace(memory=0))
    if found is None or found.memory > asked.memory or (turned is not None and turned.cycles < found.planned.cycles):
        return None

    def run(places: Places, threads: int, plainly: bool) -> bool:
        if not call_last(asked._replace(memory=0)).run(places, threads):
            return True
        return plainly and turned is not None and turned.run(places, threads, plainly)

    return Product(found.planned.cycles, found.memory, found.planned.block, run, found.planned.cycles > call.SHARED)


def _of_read_cells(asked: Asked, turned: Product | None, best: Product | None) -> Product | None:
    """Plan an output or a gradient of filters of one tap, at a stride, of arrays whose channels come last.

    The cells that are read are copied side by side: they are the output of depthwise filters of ones. None if that is
    not faster than the `best` way so far. What is not finite is computed of turned arrays.
    """
    geometry, kind, channels = asked.geometry, asked.kind, asked.geometry.in_channels
    if kind == Kind.INPUT_GRAD or geometry.taps > 1 or geometry.dense or not geometry.batch or geometry.group_in == 1:
        return None
    cells = asked._replace(
        geometry=replace(geometry, out_channels=channels, groups=channels), kind=Kind.FORWARD, has_bias=False, memory=0
    )
    of_cells, none = geometry.batch * channels * geometry.positions * asked.number, (0,) * geometry.dims
    read = replace(geometry, size=geometry.out, stride=(1,) * geometry.dims, before=none, after=none)
    copied, found = (
        planned_last(cells),
        product_of(asked._replace(geometry=read, memory=max(1, asked.memory - of_cells))),
    )
    if copied is None or found is None or copied.memory + found.memory + of_cells > asked.memory:
        return None
    cycles = copied.planned.cycles + found.cycles + CYCLES_OF_CALL
    if best is not None and best.cycles < cycles:
        return None
    ones = array(CODES[asked.element], [1]) * channels

    def run(places: Places, threads: int, plainly: bool) -> bool:
        x, other, bias, result = places
        with call.spare(of_cells, 2) as near:
            if not call_last(cells).run((x, ones.buffer_info()[0], NO_BIAS, near), threads):
                return found.run((near, other, bias, result), threads, plainly)
        return plainly and turned is not None and turned.run(places, threads, plainly)

    return Product(cycles, copied.memory + found.memory + of_cells, found.block, run)


def _run_plainly(asked: Asked, places: Places, threads: int) -> bool:
    """Compute a product without tiles, within the same memory; return whether there is a family that can."""
    asked = asked._replace(transforms=False)
    found = planned(asked)
    if found is None or found.memory > asked.memory:
        return False
    call_of(asked).run(places, threads)
    return True


def _by_mirror(asked: Asked) -> Product | None:
    """Plan an input gradient at stride 1 as the output of the convolution by mirrored filters."""
    geometry, mirror = asked.geometry, asked._replace(kind=MIRRORED)
    if asked.kind != Kind.INPUT_GRAD or not geometry.dense or not asked.is_mirrored:
        return None
    of_filters = geometry.weights * asked.number
    copied = planned(mirror)
    memory = max(1, asked.memory - of_filters)
    found = _direct(asked._replace(geometry=geometry.mirrored, has_bias=False, memory=memory, kind=Kind.FORWARD))
    if copied is None or found is None:
        return None

    def run(places: Places, threads: int, plainly: bool) -> bool:
        dout, w, none, dx = places
        with call.spare(of_filters) as flipped:
            # The mirrored convolution multiplies filters by zeros that are no part of the gradient.
            if call_of(mirror).run((w, w, none, flipped), threads):
                return False
            return found.run((dout, flipped, none, dx), threads, plainly)

    cycles = found.cycles + copied.planned.cycles + CYCLES_OF_CALL
    return Product(cycles, found.memory + of_filters, found.block, run, roundings=found.roundings)


class _Turns(NamedTuple):
    """An operand or a result, of which each sample is some matrices with a row for each cell."""

    matrices: int
    channels: int
    cells: int
    element: str

    @property
    def sample(self) -> int:
        """The bytes of a sample."""
        return ELEMENT_BYTES[self.element] * self.matrices * self.channels * self.cells

    def first(self, count: int, last: int, first: int, threads: int) -> None:
        """Let channels of so many samples come first."""
        turn = turn_of(count * self.matrices, self.cells, self.channels, self.element)
        turn.run((last, last, NO_BIAS, first), threads)

    def last(self, count: int, first: int, last: int, threads: int) -> None:
        """Let channels of so many samples come last."""
        turn = turn_of(count * self.matrices, self.channels, self.cells, self.element)
        turn.run((first, first, NO_BIAS, last), threads)

    def cycles(self, count: int) -> float:
        """Estimate the time of turning so many samples."""
        found = planned_turn(count * self.matrices, self.cells, self.channels, self.element)
        return 0.0 if found is None else found.planned.cycles


def _turns(asked: Asked, shape: tuple[int, ...]) -> _Turns:
    """Describe an array of parts (N, C, ...) as it lies: channels last, or the parts of each number side by side."""
    channels, cells = shape[1], math.prod(shape[2:])
    matrices = 1 if asked.geometry.channels_last else channels // 2
    return _Turns(matrices, channels // matrices, cells, asked.element)


def _of_turned(asked: Asked) -> Product | None:
    """Plan a product of arrays whose channels, or parts of complex numbers, come last: they and the result are turned.

    What filters in parts take, and gradients of these, is counted here too.
    """
    geometry, kind = replace(asked.geometry, channels_last=False), Kind(asked.kind)
    of_parts = 0
    if asked.is_complex:
        of_parts, geometry = COPIES_OF_PARTS * geometry.weights * asked.number, in_parts(geometry)
    roles = (Role.X, Role.OUT) if kind in (Kind.FORWARD, Kind.WEIGHT_GRAD) else (Role.OUT, Role.X)
    one, other = (_turns(asked, geometry.shape(role)) for role in roles)
    asked = asked._replace(is_complex=False, memory=max(1, asked.memory - of_parts))
    samples = geometry.batch
    if kind != Kind.WEIGHT_GRAD:  # whose sums go on from sample to sample
        most = max(TURNED_BYTES, min(PARTS_BYTES, asked.memory // 4)) if of_parts else TURNED_BYTES
        samples = blocks(samples, max(1, most // max(1, one.sample + other.sample)))[1]
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

    turns = one.cycles(geometry.batch) + other.cycles(geometry.batch)
    cycles = count * step.cycles + (last.cycles if rest else 0) + turns + 3 * count * CYCLES_OF_CALL
    return Product(cycles, max(step.memory, last.memory) + turned + of_parts, step.block, run)
