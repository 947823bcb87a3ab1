"""Kernels that portconv generates for this CPU, for arrays in the memory of this machine (see `portconv.kernels`).

Each family of kernels plans a convolution and estimates its time, and the fastest one computes it. The input gradient
at stride 1 is the output of the mirrored convolution.

Sums are added up in runs, so each term is rounded no more often than there are terms: the bound of a plain sum holds.
Where Winograd's tiles may be transformed, the bound is theirs: F(2x2, 3x3) along the last two dimensions, of the kernel
or of each of its parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from ..backends import Array, Backend
from ..kernels import call, state, winograd
from ..kernels.call import NO_BIAS
from ..kernels.choice import Chosen, chosen, chosen_for_weights
from ..kernels.sizes import Sizes
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.remembered import forget, remembered
from .algorithm import Algorithm, LibraryError, PlainProduct
from .budget import NO_WORK, Budget, Work
from .winograd_magnitudes import by_plain_sums

OPERATIONS = 1.2
"""A lane that is multiplied and added counts as so many operations of the library's products, where it is two."""
CALLS = 1.0
"""A call of a kernel takes as long as so many calls of the library."""
BYTES = 4
"""The bytes of a number."""


class Asked(NamedTuple):
    """What a plan depends on: the convolution, whether there is a bias, and the bytes of workspace of a thread."""

    geometry: Geometry
    has_bias: bool
    memory: int
    transforms: bool = True
    """Whether tiles may be transformed and taps left out; then what is not finite may be wrong."""
    kind: str = Kind.FORWARD
    """What is computed: the output, or the gradient of the filters."""


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
        """Support the output, the gradient of the filters, and at stride 1 that of the input."""
        if device:
            return "arrays in the memory of this machine"
        if kind == Kind.INPUT_GRAD and not geometry.dense:
            return "the output, the gradient of the filters, and at stride 1 that of the input"
        return None

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of a product."""
        if kind == Kind.INPUT_GRAD:
            return self.mirrored_work(geometry, budget, backend)
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

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array | None:
        asked = _asked(geometry, budget, kind=Kind.WEIGHT_GRAD)
        if not _has_room(asked, backend, dout, x):
            return None
        dw = backend.empty(geometry.w_shape, like=x)
        places = _addresses(backend, backend.in_a_row(x), backend.in_a_row(dout), None, dw)
        if places is None:
            return None
        return dw if _run(asked, places, backend.threads()) else None

    def repeated(
        self, geometry: Geometry, backend: Backend, budget: Budget, operands: tuple[Array, ...]
    ) -> Callable[[Array, Array, Array | None], Array | None] | None:
        if not all(map(backend.lies_in_a_row, operands)):
            return None
        try:
            planned, shape = _call(_asked(geometry, budget, has_bias=len(operands) == 3)), geometry.out_shape
        except call.KernelError:  # the next call says so
            return None
        empty, run, is_shared = backend.empty, planned.run, planned.most > 1

        def compute(x: Array, w: Array, b: Array | None) -> Array | None:
            out = empty(shape, x)
            places = _addresses(backend, x, w, b, out)
            # An array may begin anywhere, and the kernels load whole numbers.
            if places is None or (places[0] | places[1] | places[2]) % BYTES:
                return None
            return None if run(places, backend.threads() if is_shared else 1) else out

        return compute

    def error_terms(self, kind: str, geometry: Geometry, products: int = 1) -> int:
        """Count the roundings of a plain sum, or those of a sum over channels of tiles, as the algorithm "winograd"."""
        terms = super().error_terms(kind, geometry, products)
        if kind == Kind.WEIGHT_GRAD or not may_transform(geometry):
            return terms
        channels = geometry.group_in if kind == Kind.FORWARD else geometry.group_out
        return max(terms, channels * winograd.planes_of(_sizes(geometry)) + 3 * 2 + 9 - 1)

    def magnitudes(
        self, kind: Kind, geometry: Geometry, backend: Backend, product: PlainProduct, a: Array, b: Array
    ) -> Array:
        """Return the plain sums, or what bounds the errors of tiles where they may be transformed."""
        if may_transform(geometry):
            return magnitudes_of_tiles(kind, geometry, backend, product, a, b)
        return product(kind, geometry, a, b)


def may_transform(geometry: Geometry) -> bool:
    """Return whether a convolution, or its input gradient, may be computed in Winograd's tiles."""
    return winograd.serves(_sizes(geometry))


def magnitudes_of_tiles(
    kind: Kind, geometry: Geometry, backend: Backend, product: PlainProduct, a: Array, b: Array
) -> Array:
    """Return what the errors of tiles are in proportion to, transformed along the last two dimensions."""
    if kind == Kind.WEIGHT_GRAD:  # which has no tiles
        return product(kind, geometry, a, b)
    axes = (geometry.dims - 2, geometry.dims - 1)
    return by_plain_sums(kind, geometry, backend, product, (a, b), axes)


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
    if asked.kind == Kind.WEIGHT_GRAD:
        return chosen_for_weights(_sizes(asked.geometry), asked.memory, transforms=asked.transforms)
    return chosen(_sizes(asked.geometry), asked.memory, has_bias=asked.has_bias, transforms=asked.transforms)


@remembered()
def _call(asked: Asked) -> call.Call:
    """Make a planned convolution ready to be called."""
    found = _planned(asked)
    if found is None:
        raise call.KernelError("no kernel is left for this convolution")
    return call.Call(found.kernel, found.planned)
