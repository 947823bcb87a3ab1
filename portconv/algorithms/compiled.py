"""Kernels that portconv generates for this CPU, for arrays in the memory of this machine (see `portconv.kernels`).

Each family of kernels plans a product and estimates its time, and the fastest one computes it. The input gradient at
stride 1 may also be computed as the output of the mirrored convolution, where that is faster.

Sums are added up in runs, so each term is rounded no more often than there are terms: the bound of a plain sum holds.
Where Winograd's tiles may be transformed, the bound is theirs: F(2x2, 3x3) along the last two dimensions, of the kernel
or of each of its parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ..backends import Array, Backend
from ..kernels import call, state, winograd
from ..kernels.call import NO_BIAS
from ..kernels.choice import Chosen, chosen, chosen_for_inputs, chosen_for_mirrored, chosen_for_sums, chosen_for_weights
from ..kernels.sizes import Sizes
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.remembered import forget, remembered
from .algorithm import Algorithm, LibraryError, PlainProduct
from .budget import NO_WORK, Budget, Work
from .mirrored import beside_filters
from .winograd_magnitudes import by_plain_sums

OPERATIONS = 1.2
"""A lane that is multiplied and added counts as so many operations of the library's products, where it is two."""
CALLS = 1.0
"""A call of a kernel takes as long as so many calls of the library."""
BYTES = 4
"""The bytes of a number."""


MIRRORED = "mirrored"
"""The copy of the filters whose convolution is the input gradient at stride 1."""
CYCLES_OF_CALL = 15_000.0
"""What one more call of a kernel takes, in the vectors that are multiplied meanwhile."""


class Asked(NamedTuple):
    """What a plan depends on: the convolution, whether there is a bias, and the bytes of workspace of a thread."""

    geometry: Geometry
    has_bias: bool
    memory: int
    transforms: bool = True
    """Whether tiles may be transformed and taps left out; then what is not finite may be wrong."""
    kind: str = Kind.FORWARD
    """What is computed: the output or a gradient, or `MIRRORED` filters."""


class Compiled(Algorithm):
    """Kernels that are generated for this CPU."""

    name = "compiled"
    order = 5
    sums_slices = False
    takes_rows = True

    def objection(self, geometry: Geometry, dtype: Dtype, backend: Backend) -> str | None:
        """Support float32 in the memory of this machine, channels first."""
        if not backend.has_addresses:
            return "arrays in the memory of this machine, as NumPy's are and PyTorch's on a CPU"
        if dtype.name != "float32":
            return "float32 (float16 and bfloat16 become float32)"
        if geometry.channels_last:
            return "channels first"
        if (fault := state.fault() or call.fault()) is not None:
            return f"where there are kernels: {fault}"
        if _planned(Asked(geometry, False, 0)) is None:
            return f"smaller kernels{''.join(f', of which some fail: {why}' for why in call.failed.values())}"
        return None

    def lacks(self, kind: str, geometry: Geometry, device: str) -> str | None:
        """Support all products, of arrays in the memory of this machine."""
        return "arrays in the memory of this machine" if device else None

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of a product."""
        if kind == Kind.INPUT_GRAD and _is_mirrored(geometry, budget):
            found, mirror = _planned(_beside_mirrored(geometry, budget)), _planned(_mirror(geometry))
            assert found is not None
            assert mirror is not None
            cycles = found.planned.cycles + mirror.planned.cycles + CYCLES_OF_CALL
            memory = found.memory // BYTES + geometry.weights
            return Work(cycles * state.here().lanes * OPERATIONS, 0, 0, CALLS, memory, found.planned.block)
        found = _planned(_asked(geometry, budget, kind=kind))
        if found is None:
            return NO_WORK
        operations = found.planned.cycles * state.here().lanes * OPERATIONS
        return Work(operations, 0, 0, CALLS, found.memory // BYTES, found.planned.block)

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array | None:
        asked, threads = _asked(geometry, budget, has_bias=b is not None), backend.threads()
        if not _has_room(asked, backend, x, w):
            return None
        out = backend.empty(geometry.out_shape, like=x)
        x, w = backend.in_a_row(x), backend.in_a_row(w)
        b = None if b is None else backend.in_a_row(b)
        places = _addresses(backend, x, w, b, out)
        if places is None:
            return None
        return out if _run(asked, places, threads) else None

    def input_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, w: Array) -> Array | None:
        if not _is_mirrored(geometry, budget):
            return _gradient(_asked(geometry, budget, kind=Kind.INPUT_GRAD), backend, (dout, w), geometry.x_shape)
        if not _has_room(_beside_mirrored(geometry, budget), backend, dout, w):
            return None
        return _mirrored(geometry, backend, budget, backend.in_a_row(dout), backend.in_a_row(w))

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array | None:
        return _gradient(_asked(geometry, budget, kind=Kind.WEIGHT_GRAD), backend, (x, dout), geometry.w_shape)

    def repeated(
        self, kind: str, geometry: Geometry, backend: Backend, budget: Budget, operands: tuple[Array, ...]
    ) -> Callable[..., Array | None] | None:
        if not all(map(backend.lies_in_a_row, operands)) or 0 in geometry.x_shape:
            return None
        try:
            if kind == Kind.INPUT_GRAD and _is_mirrored(geometry, budget):
                return partial(_mirrored, geometry, backend, budget)
            asked = _asked(geometry, budget, has_bias=len(operands) == 3, kind=kind)
            compute = _repeated(_call(asked), geometry.shape(Kind(kind).result), backend)
        except call.KernelError:  # the next call says so
            return None
        # Kernels take the input first.
        return compute if kind != Kind.WEIGHT_GRAD else lambda dout, x: compute(x, dout)

    def channel_sums(self, backend: Backend, cells: Array) -> Callable[[Array], Array | None] | None:
        if not backend.has_addresses or cells.dtype != backend.dtype("float32") or 0 in cells.shape:
            return None
        if backend.device_kind(cells) or not backend.lies_in_a_row(cells) or state.fault() is not None:
            return None
        samples, channels, *sizes = map(int, cells.shape)
        try:
            compute = _repeated(_call_of_sums(samples, channels, math.prod(sizes)), (channels,), backend)
        except call.KernelError:
            return None
        return lambda array: compute(array, array)

    def error_terms(self, kind: str, geometry: Geometry, products: int = 1) -> int:
        """Count the roundings of a plain sum, or those of a sum over channels of tiles, as the algorithm "winograd"."""
        terms = super().error_terms(kind, geometry, products)
        if not may_transform(kind, geometry):
            return terms
        if kind == Kind.WEIGHT_GRAD:
            return terms + 3 * 2 + 9 - 1
        channels = geometry.group_in if kind == Kind.FORWARD else geometry.group_out
        return max(terms, channels * winograd.planes_of(_sizes(geometry)) + 3 * 2 + 9 - 1)

    def magnitudes(
        self, kind: Kind, geometry: Geometry, backend: Backend, product: PlainProduct, a: Array, b: Array
    ) -> Array:
        """Return the plain sums, or what bounds the errors of tiles where they may be transformed."""
        if may_transform(kind, geometry):
            return magnitudes_of_tiles(kind, geometry, backend, product, a, b)
        return product(kind, geometry, a, b)


def may_transform(kind: str, geometry: Geometry) -> bool:
    """Return whether a product may be computed in Winograd's tiles."""
    if kind == Kind.WEIGHT_GRAD and geometry.kernel[-2:] != (3, 3):  # parts of larger kernels have shared taps
        return False
    return (geometry.dense or kind != Kind.INPUT_GRAD) and winograd.serves(_sizes(geometry))


def magnitudes_of_tiles(
    kind: Kind, geometry: Geometry, backend: Backend, product: PlainProduct, a: Array, b: Array
) -> Array:
    """Return what the errors of tiles are in proportion to, transformed along the last two dimensions."""
    if not may_transform(kind, geometry):
        return product(kind, geometry, a, b)
    axes = (geometry.dims - 2, geometry.dims - 1)
    return by_plain_sums(kind, geometry, backend, product, (a, b), axes)


def _mirror(geometry: Geometry) -> Asked:
    return Asked(geometry, False, 0, kind=MIRRORED)


def _beside_mirrored(geometry: Geometry, budget: Budget) -> Asked:
    return _asked(geometry.mirrored, beside_filters(geometry, budget))


def _is_mirrored(geometry: Geometry, budget: Budget) -> bool:
    """Return whether an input gradient is to be computed as the output of the mirrored convolution."""
    if not budget.mirrored or not geometry.dense:
        return False
    direct, mirror = _planned(_asked(geometry, budget, kind=Kind.INPUT_GRAD)), _planned(_mirror(geometry))
    forward = _planned(_beside_mirrored(geometry, budget))
    if forward is None or mirror is None:
        return False
    if direct is None:
        return True
    memory = budget.workspace_elements * BYTES
    fits = forward.memory + geometry.weights * BYTES <= memory, direct.memory <= memory
    if fits[0] != fits[1]:
        return fits[0]
    return forward.planned.cycles + mirror.planned.cycles + CYCLES_OF_CALL < direct.planned.cycles


def _repeated(planned: call.Call, shape: tuple[int, ...], backend: Backend) -> Callable[..., Array | None]:
    """Return what computes a result of this shape by one call, or None if it needs a second look."""
    empty, run, is_shared = backend.empty, planned.run, planned.most > 1

    def compute(a: Array, b: Array, bias: Array | None = None) -> Array | None:
        out = empty(shape, a)
        places = _addresses(backend, a, b, bias, out)
        # An array may begin anywhere, and the kernels load whole numbers.
        if places is None or (places[0] | places[1] | places[2]) % BYTES:
            return None
        return None if run(places, backend.threads() if is_shared else 1) else out

    return compute


def _mirrored(geometry: Geometry, backend: Backend, budget: Budget, dout: Array, w: Array) -> Array | None:
    """Compute an input gradient by the mirrored convolution; return None if the result may not be taken as it is."""
    asked, threads = _beside_mirrored(geometry, budget), backend.threads()
    with call.spare(geometry.weights * BYTES) as flipped:
        dx = backend.empty(geometry.x_shape, like=dout)
        places = _addresses(backend, dout, w, None, dx)
        if places is None or (places[0] | places[1]) % BYTES:
            return None
        of_dout, of_w, none, of_dx = places
        # The mirrored convolution multiplies filters by zeros that are no part of the gradient.
        is_finite = _run(_mirror(geometry), (of_w, of_w, none, flipped), threads)
        return dx if is_finite and _run(asked, (of_dout, flipped, none, of_dx), threads) else None


def _gradient(asked: Asked, backend: Backend, operands: tuple[Array, Array], shape: tuple[int, ...]) -> Array | None:
    """Compute a gradient by one call of a kernel; return None if the result may not be taken as it is."""
    if not _has_room(asked, backend, *operands):
        return None
    a, b = map(backend.in_a_row, operands)
    result = backend.empty(shape, like=a)
    places = _addresses(backend, a, b, None, result)
    return None if places is None or not _run(asked, places, backend.threads()) else result


def _has_room(asked: Asked, backend: Backend, *operands: Array) -> bool:
    """Return whether there is memory for copies of operands that do not lie in a row, as parts of others may."""
    copied = sum(math.prod(array.shape) for array in operands if not backend.lies_in_a_row(array)) * BYTES
    found = _planned(asked) if copied else None
    return found is None or found.memory + copied <= asked.memory


def _run(asked: Asked, places: tuple[int, int, int, int], threads: int) -> bool:
    """Compute a product; return whether its result may be taken as it is."""
    try:
        planned = _call(asked)
        spoiled = planned.run(places, threads)
        return not spoiled or planned.planned.is_plain or _run_plainly(asked, places, threads)
    except call.KernelError as error:
        forget()  # the next choices leave the kernel out
        raise LibraryError(f"algorithm 'compiled': {error}") from error


def _run_plainly(asked: Asked, places: tuple[int, int, int, int], threads: int) -> bool:
    """Compute an output without tiles, within the same memory; return whether there is a family that can."""
    asked = asked._replace(transforms=False)
    found = _planned(asked)
    if found is None or found.memory > asked.memory:
        return False
    _call(asked).run(places, threads)
    return True


def _addresses(backend: Backend, x: Array, w: Array, b: Array | None, out: Array) -> tuple[int, int, int, int] | None:
    """Return where arrays lie in this machine's memory, or None if one does not."""
    address = backend.address
    of_x, of_w, of_b, of_out = address(x), address(w), NO_BIAS if b is None else address(b), address(out)
    if of_x is None or of_w is None or of_b is None or of_out is None:
        return None
    return of_x, of_w, of_b, of_out


def _asked(geometry: Geometry, budget: Budget, *, has_bias: bool = False, kind: str = Kind.FORWARD) -> Asked:
    return Asked(geometry, has_bias, budget.workspace_elements * BYTES, kind=kind)


def _sizes(geometry: Geometry) -> Sizes:
    return Sizes(
        *(geometry.batch, geometry.in_channels, geometry.out_channels, geometry.groups),
        *(geometry.size, geometry.kernel, geometry.stride, geometry.dilation),
        *(geometry.before, geometry.after, geometry.out),
    )


@remembered()
def _planned(asked: Asked) -> Chosen | None:
    """Plan a convolution by the family that is expected to be fastest, or by the one that takes the least memory."""
    sizes = _sizes(asked.geometry)
    if asked.kind == Kind.WEIGHT_GRAD:
        return chosen_for_weights(sizes, asked.memory, transforms=asked.transforms)
    if asked.kind == Kind.INPUT_GRAD:
        return chosen_for_inputs(sizes, asked.memory, transforms=asked.transforms)
    if asked.kind == MIRRORED:
        return chosen_for_mirrored(sizes) if asked.transforms else None
    return chosen(sizes, asked.memory, has_bias=asked.has_bias, transforms=asked.transforms)


@remembered()
def _call_of_sums(samples: int, channels: int, cells: int) -> call.Call:
    """Make the sums of each channel ready to be called."""
    found = chosen_for_sums(samples, channels, cells)
    if found is None:
        raise call.KernelError("no kernel is left for sums")
    return call.Call(found.kernel, found.planned)


@remembered()
def _call(asked: Asked) -> call.Call:
    """Make a planned convolution ready to be called."""
    found = _planned(asked)
    if found is None:
        raise call.KernelError("no kernel is left for this convolution")
    return call.Call(found.kernel, found.planned)
