"""The operands of a product: the scale of each, and what must be taken for zero in it."""

from __future__ import annotations

import cmath
import math
from enum import Enum
from typing import NamedTuple

from ..algorithms.choice import plane_magnitudes as found_fast
from ..backends import Array, Backend
from ..spec.dtypes import HIGHEST, LOWEST, zeroed_below
from ..spec.geometry import Geometry
from ..spec.operation import Kind, Operation, Role
from ..spec.ranges import Index
from .magnitudes import largest_magnitude, parts_of, plane_magnitudes, zero_unless_normal
from .powers import PowersOfTwo, over_cells, powers_of_two
from .slicing import SIGNIFICANT_BITS


class ScaleGroup(Enum):
    """The elements of an operand that share a scale: all that one sum runs over, and as many others as need be."""

    SAMPLE = "each sample and group of channels"
    CHANNEL = "each channel of all samples"
    FILTER = "each filter"
    INPUT_CHANNEL = "each input channel of the filters of a group"


SCALE_GROUPS = {
    Kind.FORWARD: (ScaleGroup.SAMPLE, ScaleGroup.FILTER),
    Kind.INPUT_GRAD: (ScaleGroup.SAMPLE, ScaleGroup.INPUT_CHANNEL),
    Kind.WEIGHT_GRAD: (ScaleGroup.CHANNEL, ScaleGroup.CHANNEL),
    Kind.CHANNEL_SUM: (ScaleGroup.CHANNEL,),
}
"""What shares a scale in each operand."""


class Operand(NamedTuple):
    """An operand, and what is known of its elements.

    Attributes
    ----------
    array : array
        Not quantised yet: (N, C, *cells) or (F, C / G, *K).
    exponents : array of int
        The exponent of the power of two at or above the largest magnitude, for each element of the first two axes.
    least : float
        The magnitude below which elements are taken for zero.
    zeroing : bool
        Whether there may be elements to be taken for zero: subnormal numbers, nans or infinities.
    finite : bool
        Whether all elements are finite.
    conjugated : bool
        Whether the conjugates of the elements are what is multiplied.
    """

    array: Array
    exponents: Array
    least: float
    zeroing: bool
    finite: bool
    conjugated: bool = False

    def at(self, index: Index) -> Operand:
        """Return a part of the operand."""
        return self._replace(array=self.array[(*index, ...)], exponents=self.exponents[index[:2]])

    def parts(self, backend: Backend, block: Index) -> list[Array]:
        """Return the real and the imaginary part of a block, as they are multiplied."""
        real_part, *imaginary = parts_of(backend, self.array[block])
        return [real_part, *(-part if self.conjugated else part for part in imaginary)]

    def doubles(self, backend: Backend, part: Array) -> Array:
        """Return some of its real numbers in float64, with 0 for what must be taken for zero."""
        if self.zeroing:
            return zero_unless_normal(backend, part, self.least)
        return backend.astype(part, backend.dtype("float64"))

    def multipliable(self, backend: Backend, part: Array) -> Array:
        """Return some of its real numbers in a dtype that float64 can be multiplied by, with zeros as in `doubles`."""
        # Half precision is no part of the standard, and not every library multiplies it by other dtypes.
        return part if not self.zeroing and backend.bits(part.dtype) >= 32 else self.doubles(backend, part)


def operand(powers: PowersOfTwo, operation: Operation, array: Array, place: int) -> Operand:
    """Find the scales of the operand in that `place`, which is to be quantised."""
    group = SCALE_GROUPS[operation.kind][place]
    backend, xp, geometry = powers.backend, powers.backend.xp, operation.geometry
    least = zeroed_below(backend.dtype_name(array.dtype), operation.dtype)
    batched = group in (ScaleGroup.SAMPLE, ScaleGroup.CHANNEL)
    largest, finite = (_of_batch if batched else _of_filters)(backend, geometry, array, group)
    if geometry.mode == "constant" and operation.roles[place] == Role.X:
        largest, finite = with_constant(backend, geometry, largest), finite and cmath.isfinite(geometry.value)
    # Where quanta are at least twice the smallest normal number, subnormal numbers are rounded to zero anyway.
    large = least * 2.0 ** SIGNIFICANT_BITS[operation.dtype]
    zeroing = not finite or not backend.sure((largest >= large) | (largest == 0))
    exponents = powers.exponents_above(largest)
    first, second = array.shape[:2]
    if group is ScaleGroup.SAMPLE:
        shape = (first, geometry.groups, second // geometry.groups)
        exponents = xp.broadcast_to(exponents[:, :, None], shape)
    elif group is ScaleGroup.INPUT_CHANNEL:
        exponents = xp.broadcast_to(exponents[:, None, :], (geometry.groups, first // geometry.groups, second))
    else:
        exponents = exponents[:, None] if group is ScaleGroup.FILTER else exponents[None, :]
        exponents = xp.broadcast_to(exponents, (first, second))
    return Operand(array, xp.reshape(exponents, (first, second)), least, zeroing, finite)


def with_constant(backend: Backend, geometry: Geometry, largest: Array) -> Array:
    """Return the largest magnitudes of some cells of an input and of the constant in its padding."""
    magnitudes = (abs(part) for part in (geometry.value.real, geometry.value.imag) if math.isfinite(part))
    return backend.xp.maximum(largest, backend.xp.full_like(largest, float(max(magnitudes, default=0))))


def _of_batch(backend: Backend, geometry: Geometry, array: Array, group: ScaleGroup) -> tuple[Array, bool]:
    """Return the largest magnitudes of an array (N, C, *cells), (C,) or (N, G), and whether all elements are finite."""
    xp, (samples, channels) = backend.xp, array.shape[:2]
    largest, finite = plane_magnitudes(backend, array)
    if group is ScaleGroup.SAMPLE:
        by_group = xp.reshape(largest, (samples, geometry.groups, channels // geometry.groups))
        return xp.max(by_group, axis=2), finite
    if samples:
        return xp.max(largest, axis=0), finite
    return backend.zeros(largest.shape[1:], largest), finite


def _of_filters(backend: Backend, geometry: Geometry, array: Array, group: ScaleGroup) -> tuple[Array, bool]:
    """Return the largest magnitudes of filters, (F,) or (G, C / G), and whether all elements are finite."""
    largest, finite = None, True
    shape: tuple[int, ...] = tuple(array.shape)
    keep: tuple[int, ...] = (0,)
    if group is ScaleGroup.FILTER:
        found = found_fast(backend, backend.xp.reshape(array, (1, shape[0], -1)))
        if found is not None:  # as it is for nans and infinities
            return found[0, :], True
    if group is ScaleGroup.INPUT_CHANNEL:
        shape, keep = (geometry.groups, shape[0] // geometry.groups, *shape[1:]), (0, 2)
    for part in parts_of(backend, array):
        if not backend.all_finite(part):
            part, finite = zero_unless_normal(backend, part, 0.0), False
        of_part = largest_magnitude(backend, part, shape, keep)
        largest = of_part if largest is None else backend.xp.maximum(largest, of_part)
    return largest, finite


def quanta(operation: Operation, backend: Backend, operands: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return how far each element of the two operands can be from its value once it is quantised, in float64.

    Of the input they are those of the padded one, where padding is not of zeros.
    """
    xp, powers, bits = backend.xp, powers_of_two(backend, operands[0]), SIGNIFICANT_BITS[operation.dtype]
    distances = []
    for place, (array, role) in enumerate(zip(operands, operation.roles, strict=True)):
        scaled = operand(powers, operation, array, place)
        half = powers.of(xp.clip(scaled.exponents - bits, LOWEST, HIGHEST))
        # Subnormal numbers are taken for zero.
        half = xp.clip(half, scaled.least, None)
        half = over_cells(backend, half, array.ndim - 2)
        distances.append(xp.broadcast_to(half, operation.geometry.extended.shape(role)) * 1.0)
    return distances[0], distances[1]
