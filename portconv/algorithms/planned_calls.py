"""Single calls of kernels, planned and made ready: what a product of `kernel_products` consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..kernels import call
from ..kernels.choice import (
    Chosen,
    best,
    chosen_for_last,
    chosen_for_last_inputs,
    chosen_for_last_weights,
    chosen_for_magnitudes,
    chosen_for_mirrored,
    chosen_for_sums,
    chosen_to_cast,
    chosen_to_pack,
    chosen_to_turn,
    found_for_inputs,
    found_for_outputs,
    found_for_weights,
    panels_within,
)
from ..kernels.families import IN_TILES
from ..kernels.sizes import Sizes
from ..kernels.values import ELEMENT_BYTES, LONG
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.remembered import remembered

ELEMENTS = {
    **{"float32": "float", "float64": "double", "float16": "half", "bfloat16": "bfloat"},
    **{"int8": "i8", "int16": "i16", "int32": "i32", "int64": LONG},
}
"""The dtypes that there are kernels for, and what kernels call them."""
CYCLES_OF_CALL = 15_000.0
"""What one more call of a kernel takes, in the vectors that are multiplied meanwhile."""
MIRRORED = "mirrored"
"""The copy of the filters whose convolution is the input gradient at stride 1."""


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
    element: str = "float"
    """The type of the numbers, of `ELEMENTS`."""
    exact: bool = False
    """Whether numbers are whole ones, whose plain sums are exact, and those of tiles are not."""
    is_complex: bool = False
    """Whether the arrays hold complex numbers, of which `element` is the type of the parts; filters come in parts."""

    @property
    def number(self) -> int:
        """The bytes of a number."""
        return ELEMENT_BYTES[self.element]


def sizes_of(geometry: Geometry, element: str = "float") -> Sizes:
    """Return what kernels are told of a convolution of numbers of a type."""
    return Sizes(
        *(geometry.batch, geometry.in_channels, geometry.out_channels, geometry.groups),
        *(geometry.size, geometry.kernel, geometry.stride, geometry.dilation),
        *(geometry.before, geometry.after, geometry.out),
        element=element,
    )


Places = tuple[int, int, int, int]
"""The addresses of two operands, of a bias, and of the result; the input comes before the output's gradient."""


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
def planned(asked: Asked) -> Chosen | None:
    """Plan one call, by the family that is expected to be fastest, or by the one that takes the least memory."""
    if asked.kind == MIRRORED:
        return chosen_for_mirrored(sizes_of(asked.geometry, asked.element))
    found = _found(asked._replace(memory=0))
    if asked.kind == Kind.FORWARD:
        sizes, has_bias = sizes_of(asked.geometry, asked.element), asked.has_bias
        found = [*found, *panels_within(sizes, asked.memory, has_bias=has_bias, transforms=asked.transforms)]
    return best(found, asked.memory)


@remembered(len)
def _found(asked: Asked) -> list[Chosen]:
    """Plan a product by all families whose plans do not depend on the memory that there is."""
    sizes = sizes_of(asked.geometry, asked.element)
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
def call_of(asked: Asked) -> call.Call:
    """Make a planned call ready."""
    return made_ready(planned(asked))


@remembered()
def planned_last(asked: Asked) -> Chosen | None:
    """Plan one call that takes arrays whose channels come last, as they lie."""
    geometry, kind = replace(asked.geometry, channels_last=False), asked.kind
    if kind == Kind.WEIGHT_GRAD:
        return chosen_for_last_weights(sizes_of(geometry, asked.element))
    if kind == Kind.FORWARD:
        return chosen_for_last(sizes_of(geometry, asked.element), has_bias=asked.has_bias, flipped=False)
    if not geometry.dense:
        return chosen_for_last_inputs(sizes_of(geometry, asked.element))
    if geometry.group_in != 1:
        return None
    return chosen_for_last(sizes_of(geometry.mirrored, asked.element), has_bias=False, flipped=True)


@remembered()
def call_last(asked: Asked) -> call.Call:
    """Make such a call ready."""
    return made_ready(planned_last(asked))


@remembered()
def planned_turn(count: int, rows: int, columns: int, element: str) -> Chosen | None:
    """Plan to turn so many matrices of numbers of a type."""
    return chosen_to_turn(count, rows, columns, element)


@remembered()
def turn_of(count: int, rows: int, columns: int, element: str) -> call.Call:
    """Make ready what turns so many matrices."""
    return made_ready(planned_turn(count, rows, columns, element))


@remembered()
def planned_pack(count: int, rows: int, columns: int, variant: str) -> Chosen | None:
    """Plan to copy so many matrices into packs."""
    return chosen_to_pack(count, rows, columns, variant)


@remembered()
def pack_of(count: int, rows: int, columns: int, variant: str) -> call.Call:
    """Make ready what copies so many matrices into packs."""
    return made_ready(planned_pack(count, rows, columns, variant))


@remembered()
def planned_cast(numbers: int, variant: str) -> Chosen | None:
    """Plan to copy so many numbers into another type."""
    return chosen_to_cast(numbers, variant)


@remembered()
def cast_of(numbers: int, variant: str) -> call.Call:
    """Make ready what copies so many numbers into another type."""
    return made_ready(planned_cast(numbers, variant))


@remembered()
def call_of_sums(samples: int, channels: int, cells: int, element: str, *, last: bool) -> call.Call:
    """Make ready what adds up each channel of numbers of a type, whose channels may come last."""
    return made_ready(chosen_for_sums(samples, channels, cells, element, last=last))


@remembered()
def call_of_magnitudes(samples: int, channels: int, cells: int, element: str) -> call.Call:
    """Make ready what finds the largest magnitude of each channel of numbers of a type."""
    return made_ready(chosen_for_magnitudes(samples * channels, cells, element))


def made_ready(found: Chosen | None) -> call.Call:
    """Make a planned call ready."""
    if found is None:
        raise call.KernelError("no kernel is left for this convolution")
    return call.Call(found.kernel, found.planned)
