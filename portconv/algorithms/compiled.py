"""Kernels that portconv generates for this CPU, for arrays in the memory of this machine (see `portconv.kernels`).

Each family of kernels plans a product and estimates its time, and the fastest one computes it. The input gradient at
stride 1 may also be computed as the output of the mirrored convolution, where that is faster.

Sums are added up in runs, so each term is rounded no more often than there are terms: the bound of a plain sum holds.
Where Winograd's tiles may be transformed, the bound is theirs: F(2x2, 3x3) along the last two dimensions, of the kernel
or of each of its parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from .. import limits
from ..backends import Array, Backend
from ..kernels import call, state, winograd
from ..kernels.call import NO_BIAS
from ..spec.dtypes import HALVES, PARTS_OF, Dtype, real
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.remembered import forget
from .algorithm import Algorithm, LibraryError, PlainProduct, RoundedProduct, RoundedSums
from .budget import NO_WORK, Budget, Work
from .complex_parts import filters_in_parts, grads_of_parts, in_parts
from .kernel_products import product_of
from .narrow_products import has_kernels
from .planned_calls import ELEMENTS, Asked, Places, Product, call_of_magnitudes, call_of_sums, sizes_of
from .rounded_products import Addresses, rounded_product, rounded_totals
from .winograd_magnitudes import by_plain_sums

FLOATING = ("float32", "float64")
"""The dtypes whose largest magnitudes a kernel finds."""
OPERATIONS = 1.2
"""A lane that is multiplied and added counts as so many operations of the library's products, where it is two."""
NONE = NO_WORK._replace(operations=math.inf)
"""The work of a product that no kernel is left for."""
CALLS = 1.0
"""A call of a kernel takes as long as so many calls of the library."""


class Compiled(Algorithm):
    """Kernels that are generated for this CPU."""

    name = "compiled"
    order = 5
    takes_rows = True
    widens_halves = False
    times_of_complex = 1.0  # its work is that of the parts

    def objection(self, geometry: Geometry, dtype: Dtype, backend: Backend) -> str | None:
        """Support the dtypes that there are kernels for, in the memory of this machine."""
        if not backend.has_addresses:
            return "arrays in the memory of this machine, as NumPy's are and PyTorch's on a CPU"
        name = backend.dtype_name(dtype.dtype)
        if real(name) not in ELEMENTS:
            return "real and complex floating-point numbers, and integers"
        if (fault := state.fault() or call.fault()) is not None:
            return f"where there are kernels: {fault}"
        if product_of(Asked(geometry, False, 0, element=ELEMENTS[real(name)], is_complex=name in PARTS_OF)) is None:
            return f"smaller kernels{''.join(f', of which some fail: {why}' for why in call.failed.values())}"
        return None

    def lacks(self, kind: str, geometry: Geometry, device: str) -> str | None:
        """Support all products, of arrays in the memory of this machine."""
        return "arrays in the memory of this machine" if device else None

    def integer_bits(self, bits: int) -> int:
        """Multiply integers as they are."""
        return bits if state.fault() is None else 0

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of a product."""
        asked = _asked(kind, geometry, budget)
        found = product_of(asked)
        if found is None:
            return NONE
        operations = found.cycles * state.here().lanes * 32 // (8 * asked.number) * OPERATIONS
        return Work(operations, 0, 0, CALLS, found.memory * 8 // budget.bits, found.block)

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array | None:
        return _computed(_asked(Kind.FORWARD, geometry, budget, has_bias=b is not None), backend, x, w, b)

    def input_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, w: Array) -> Array | None:
        return _computed(_asked(Kind.INPUT_GRAD, geometry, budget), backend, dout, w)

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array | None:
        return _computed(_asked(Kind.WEIGHT_GRAD, geometry, budget), backend, x, dout)

    def repeated(
        self, kind: str, geometry: Geometry, backend: Backend, budget: Budget, operands: tuple[Array, ...]
    ) -> Callable[..., Array | None] | None:
        if not all(map(backend.lies_in_a_row, operands)) or 0 in geometry.x_shape:
            return None
        if any(backend.dtype_name(array.dtype) != budget.dtype for array in operands) or budget.dtype in PARTS_OF:
            return None
        product = product_of(_asked(kind, geometry, budget, has_bias=len(operands) == 3))
        if product is None:
            return None
        shape = geometry.shape(Kind(kind).result)
        if geometry.channels_last and kind != Kind.WEIGHT_GRAD:
            shape = (shape[0], *shape[2:], shape[1])
        compute = _repeated(product, shape, backend, budget.bits // 8)
        # Kernels take the input first.
        return compute if kind != Kind.WEIGHT_GRAD else lambda dout, x: compute(x, dout)

    def channel_sums(self, backend: Backend, cells: Array) -> Callable[[Array], Array | None] | None:
        if not backend.has_addresses or backend.dtype_name(cells.dtype) not in ELEMENTS or 0 in cells.shape:
            return None
        if backend.device_kind(cells) or state.fault() is not None:
            return None
        is_last = not backend.lies_in_a_row(cells)
        if is_last and not backend.lies_in_a_row(_channels_last(backend, cells)):
            return None
        samples, channels, *sizes = map(int, cells.shape)
        element = ELEMENTS[backend.dtype_name(cells.dtype)]
        if not has_kernels(element):
            return None
        try:
            ready = call_of_sums(samples, channels, math.prod(sizes), element, last=is_last)
        except call.KernelError:
            return None

        def run(places: Places, threads: int, plainly: bool) -> bool:
            return not ready.run(places, threads)

        number = backend.bits(cells.dtype) // 8
        compute = _repeated(Product(0.0, 0, {}, run, ready.most > 1), (channels,), backend, number)
        return lambda array: compute(array, array)

    def plane_magnitudes(self, backend: Backend, cells: Array) -> Array | None:
        if backend.dtype_name(cells.dtype) not in FLOATING:
            return None
        if not backend.has_addresses or 0 in cells.shape or backend.device_kind(cells) or state.fault() is not None:
            return None
        limit = limits.workspace()
        if limit is not None and _bytes_copied(backend, cells) > limit:
            return None
        cells = backend.in_a_row(cells)
        samples, channels, *sizes = map(int, cells.shape)
        result = backend.empty((samples, channels), cells, dtype=backend.dtype("float64"))
        places = _addresses(backend, cells, cells, None, result)
        try:
            kernel = call_of_magnitudes(samples, channels, math.prod(sizes), ELEMENTS[backend.dtype_name(cells.dtype)])
        except call.KernelError:
            return None
        return None if places is None or kernel.run(places, backend.threads()) else result

    def rounded_sums(self, backend: Backend, shape: tuple[int, ...]) -> RoundedSums | None:
        if not backend.has_addresses or 0 in shape or state.fault() is not None:
            return None
        samples, channels, *sizes = map(int, shape)
        try:
            run = rounded_totals(samples, channels, math.prod(sizes))
        except call.KernelError:
            return None

        def compute(array: Array, magnitudes: Array | None = None) -> Array | None:
            limit = limits.workspace()
            if limit is not None and _bytes_copied(backend, array) > limit:
                return None
            array = backend.in_a_row(array)
            result = backend.empty((channels,), array)
            places = _places(backend, array, magnitudes if magnitudes is None else backend.in_a_row(magnitudes), result)
            if places is None or not run(places, backend.threads()):
                return None
            return result

        return compute

    def rounded(self, kind: Kind, geometry: Geometry, backend: Backend, budget: Budget) -> RoundedProduct | None:
        plain = replace(geometry, channels_last=False) if geometry.channels_last else geometry
        memory = budget.workspace_elements * budget.bits // 8
        try:
            product = rounded_product(plain, kind, memory)
        except call.KernelError:
            return None
        if product is None:
            return None
        shape, is_last = geometry.shape(kind.result), geometry.channels_last and kind != Kind.WEIGHT_GRAD
        empty, run, threads, limit = backend.empty, product.run, backend.threads, memory - product.memory

        def compute(
            first: Array, second: Array, bias: Array | None = None, magnitudes: Sequence[Array] = ()
        ) -> Array | None:
            arrays = [first, second, bias, *magnitudes, *(None,) * (2 - len(magnitudes))]
            copied = 0
            for i, each in enumerate(arrays):
                if each is not None and not backend.lies_in_a_row(each):
                    copied += _bytes_copied(backend, each)
                    arrays[i] = backend.in_a_row(each)
            if copied and copied > limit:
                return None
            result = empty(shape, arrays[0])
            places = _places(backend, *arrays, result)
            if places is None:
                return None
            try:
                if not run(Addresses(*places), threads()):
                    return None
            except call.KernelError:
                forget()  # the next choices leave the kernel out
                return None
            return backend.write(empty(shape, arrays[0], last=True), (...,), result) if is_last else result

        return compute

    def error_terms(self, kind: str, geometry: Geometry, products: int = 1) -> int:
        """Count the roundings of a plain sum, or those of a sum over channels of tiles, as the algorithm "winograd"."""
        terms = super().error_terms(kind, geometry, products)
        if not may_transform(kind, geometry):
            return terms
        if kind == Kind.WEIGHT_GRAD:
            return terms + 3 * 2 + 9 - 1
        channels = products * (geometry.group_in if kind == Kind.FORWARD else geometry.group_out)
        return max(terms, channels * winograd.planes_of(sizes_of(geometry)) + 3 * 2 + 9 - 1)

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
    return (geometry.dense or kind != Kind.INPUT_GRAD) and winograd.serves(sizes_of(geometry))


def magnitudes_of_tiles(
    kind: Kind, geometry: Geometry, backend: Backend, product: PlainProduct, a: Array, b: Array
) -> Array:
    """Return what the errors of tiles are in proportion to, transformed along the last two dimensions."""
    if not may_transform(kind, geometry):
        return product(kind, geometry, a, b)
    axes = (geometry.dims - 2, geometry.dims - 1)
    return by_plain_sums(kind, geometry, backend, product, (a, b), axes)


def _bytes_widened(geometry: Geometry) -> int:
    """Return the bytes of float32 that are counted for halves, of operands and the result, beside the workspace."""
    return 4 * (math.prod(geometry.x_shape) + math.prod(geometry.w_shape) + math.prod(geometry.out_shape))


def _bytes_copied(backend: Backend, array: Array) -> int:
    """Return the bytes of a copy of an array whose elements do not lie in a row; 0 if they do."""
    return 0 if backend.lies_in_a_row(array) else math.prod(array.shape) * backend.bits(array.dtype) // 8


def _asked(kind: str, geometry: Geometry, budget: Budget, *, has_bias: bool = False) -> Asked:
    memory, element = budget.workspace_elements * budget.bits // 8, ELEMENTS[real(budget.dtype)]
    return Asked(
        *(geometry, has_bias, memory, kind),
        is_mirrored=budget.mirrored,
        element=element,
        exact=budget.exact,
        is_complex=budget.dtype in PARTS_OF,
    )


def _computed(asked: Asked, backend: Backend, a: Array, b: Array, bias: Array | None = None) -> Array | None:
    """Compute a product; return None if the result may not be taken as it is."""
    geometry, kind = asked.geometry, Kind(asked.kind)
    # Slices of integers may be narrower than what they are planned for.
    name, last = backend.dtype_name(a.dtype), geometry.channels_last
    if real(name) not in ELEMENTS or any(array.dtype != a.dtype for array in (b, bias) if array is not None):
        return None
    memory = asked.memory + (_bytes_widened(geometry) if name in HALVES else 0)
    asked = asked._replace(element=ELEMENTS[real(name)], is_complex=name in PARTS_OF, memory=memory)
    product = product_of(asked)
    if last:
        a = _channels_last(backend, a)
        b = _channels_last(backend, b) if kind == Kind.WEIGHT_GRAD else b
    operands = [array for array in (a, b, bias) if array is not None]
    # There must be memory for copies of operands that do not lie in a row, as parts of others may.
    copied = sum(_bytes_copied(backend, array) for array in operands)
    if product is None or (copied and product.memory + copied > asked.memory):
        return None
    shape, dtype, grads_in_parts = geometry.shape(kind.result), a.dtype, asked.is_complex and kind == Kind.WEIGHT_GRAD
    if grads_in_parts:
        shape, dtype = in_parts(geometry).w_shape, backend.dtype(real(name))
    elif asked.is_complex:
        operands[1] = filters_in_parts(backend, b, adjoint=kind == Kind.INPUT_GRAD)
    a, b, *biases = map(backend.in_a_row, operands)
    result = backend.empty(shape, a, last and kind != Kind.WEIGHT_GRAD, dtype)
    places = _addresses(backend, a, b, biases[0] if biases else None, result)
    if places is None:
        return None
    try:
        if not product.run(places, backend.threads(), True):
            return None
    except call.KernelError as error:
        forget()  # the next choices leave the kernel out
        raise LibraryError(f"algorithm 'compiled': {error}") from error
    return grads_of_parts(backend, result) if grads_in_parts else result


def _channels_last(backend: Backend, array: Array) -> Array:
    """Return a view in the order in which an array lies whose channels come last."""
    return backend.xp.permute_dims(array, (0, *range(2, array.ndim), 1))


def _repeated(product: Product, shape: tuple[int, ...], backend: Backend, number: int) -> Callable[..., Array | None]:
    """Return what computes a result of this shape, of numbers of so many bytes, or None if it needs a second look."""
    empty, run, is_shared = backend.empty, product.run, product.is_shared

    def compute(a: Array, b: Array, bias: Array | None = None) -> Array | None:
        out = empty(shape, a)
        places = _addresses(backend, a, b, bias, out)
        # An array may begin anywhere, and the kernels load whole numbers.
        if places is None or (places[0] | places[1] | places[2]) % number:
            return None
        try:
            return out if run(places, backend.threads() if is_shared else 1, False) else None
        except call.KernelError:  # the long way says so
            return None

    return compute


def _addresses(backend: Backend, a: Array, b: Array, bias: Array | None, result: Array) -> Places | None:
    """Return where arrays lie in this machine's memory, or None if one does not."""
    address = backend.address
    places = address(a), address(b), NO_BIAS if bias is None else address(bias), address(result)
    of_a, of_b, of_bias, of_result = places
    if of_a is None or of_b is None or of_bias is None or of_result is None:
        return None
    return of_a, of_b, of_bias, of_result


def _places(backend: Backend, *arrays: Array | None) -> list[int] | None:
    """Return where arrays lie in this machine's memory, 0 for None, or None if one does not."""
    places = []
    for array in arrays:
        place = 0 if array is None else backend.address(array)
        if place is None:
            return None
        places.append(place)
    return places
