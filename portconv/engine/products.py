"""The three products of a convolution, of arrays as the caller has them, each by the algorithm that serves it.

Algorithms know batches of one floating-point dtype, channels first, padded with zeros. What else there is, is brought
into that form and back here: layouts, single samples, padding modes and dtypes.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from .. import limits
from ..algorithms.choice import SLICED, Choice, Explanation, Problem, choose, explanation, named
from ..backends import Array, Backend
from ..errors import ConvValueError
from ..passes.arithmetic import compute
from ..passes.casts import Product, computed_in, conjugate, narrow, summable, with_bias
from ..passes.padding import extend, fold, overlap
from ..passes.partition import Copies, Part, parts, whole
from ..reproducible.slicing import in_slices, slots
from ..spec import arguments
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from ..spec.layout import Shape, given_shape
from .plan import copies

SLICES = 4
"""How much more a reproducible call may take beside its result: its operands are several, in float64."""


@dataclass(frozen=True, eq=False, repr=False)
class Contraction:
    """A call whose shapes and options have been checked.

    Inputs and outputs are those of a convolution: of a transposed one, the other way round.
    """

    backend: Backend
    dtype: Dtype
    geometry: Geometry
    algorithm: str
    unbatched: bool
    precision: str
    spare: int
    """The bytes that the call may take beside its result, a thread, where the user has set no limit."""
    side: str = "out"
    """What a bias is added to: "out", or "x" in a transposed convolution."""

    def served(self, purpose: str) -> str:
        """The algorithm of a product in the call's own dtype: "forward", "input_grad" or "weight_grad"."""
        own = self.dtype.dtype
        made = self._copies(self.dtype, purpose, self.geometry, own, own)
        return self._choice(self.dtype, purpose, self.geometry, made).algorithm.name

    @property
    def x_shape(self) -> Shape:
        """The shape of the input as the caller has it."""
        return given_shape(self.geometry.x_shape, self.geometry.channels_last, self.unbatched)

    @property
    def out_shape(self) -> Shape:
        """The shape of the output as the caller has it."""
        return given_shape(self.geometry.out_shape, self.geometry.channels_last, self.unbatched)

    def apply(
        self,
        purpose: str,
        dtype: Dtype,
        *operands: Array,
        made: str | None = None,
        conjugated: tuple[bool, bool] = (False, False),
    ) -> Array:
        """Have a step computed in the way of the arrays' library; `made` is the dtype of its result, if another.

        Operands are those of `Operation`; `conjugated` says of which the conjugates are multiplied.
        """
        if not self.backend.staged:
            return self.compute(purpose, dtype, *operands, made=made, conjugated=conjugated)
        from .execution import operation

        options = (self.precision, self.algorithm, self.unbatched, self.side, conjugated)
        step = operation(purpose, self.geometry, dtype.name, made or dtype.name, *options)
        return step.apply(self.backend, *operands)

    def compute(
        self,
        purpose: str,
        dtype: Dtype,
        *operands: Array,
        made: str | None = None,
        conjugated: tuple[bool, bool] = (False, False),
    ) -> Array:
        """Compute a step at once, as `apply` has it."""
        if purpose == "bound":
            from .rounding_error import bound  # which computes what is bounded

            return bound(self, *operands)
        if purpose == "spread":
            return self.spread(operands[0], made or dtype.name)
        if purpose == "channel_sum":
            found = self.channel_sum(dtype, operands[0], made)
        else:
            a, b, *more = operands
            bias = more[0] if more else None
            if purpose == "forward":
                found = self.forward(dtype, a, b, bias, made)
            elif purpose == "input_grad":
                found = self.input_grad(dtype, a, b, conjugated[1], bias, made)
            else:
                found = self.weight_grad(dtype, a, b, {(True, False): "dout", (False, True): "x"}.get(conjugated), made)
        return found if made is None else narrow(self.backend, found, self.backend.dtype(made))

    def explain(self, x: Array, w: Array) -> Explanation:
        """Explain the choice for the forward product."""
        cut, _ = self._parts(self.dtype, "forward", x, w)
        largest = max((part.geometry for part in cut), key=lambda own: own.operations)
        one = self._copies(self.dtype, "forward", largest, x.dtype, w.dtype)
        choice = self._choice(self.dtype, "forward", largest, one)
        more = one.bytes(largest, cut=len(cut) > 1)
        more += limits.aside(self.backend.block_bytes, limits.workspace()) if self._exact(self.dtype) else 0
        return explanation(choice, more)

    def forward(self, dtype: Dtype, x: Array, w: Array, b: Array | None, rounded: str | None = None) -> Array:
        """Compute the output; where it is reproducible, rounded to the dtype named by `rounded`, if that is another."""

        def of(part: Part) -> Product:
            own, choice = part.geometry, self._choice(dtype, "forward", part.geometry, made)

            def product(x: Array, w: Array, b: Array | None) -> Array:
                x = extend(own, self.backend, x)
                return choice.compute("forward", own.extended, self.backend, x, w, b)

            return product

        with self._held(dtype, x):
            (cut, made), seen = self._parts(dtype, "forward", x, w), self.seen(x)
            if self._exact(dtype):
                return self.given(self._reproducible(dtype, "forward", cut, made, seen, w, b, rounded))
            terms = self.geometry.group_in * self.geometry.taps
            if len(cut) == 1:
                return self.given(self._computed(dtype, of(cut[0]), terms, seen, w, b))
            out = self._empty(dtype, self.geometry.out_shape, x)
            for part in cut:
                bias = None if b is None else b[part.of_w[0]]
                own = _of(seen, part.of_x), _of(w, part.of_w)
                out = self.backend.write(out, (*part.of_out, ...), self._computed(dtype, of(part), terms, *own, bias))
            return self.given(out)

    def input_grad(
        self,
        dtype: Dtype,
        dout: Array,
        w: Array,
        adjoint: bool = True,
        b: Array | None = None,
        rounded: str | None = None,
    ) -> Array:
        """Compute the gradient of the input; without `adjoint`, the transposed convolution, which adds a bias.

        Where it is reproducible it is rounded to the dtype named by `rounded`, if that is another.
        """

        def of(part: Part) -> Product:
            own, choice = part.geometry, self._choice(dtype, "input_grad", part.geometry, made)

            def product(dout: Array, w: Array, b: Array | None) -> Array:
                grad = choice.compute("input_grad", own.extended, self.backend, dout, w)
                return with_bias(self.backend, fold(own, self.backend, grad), b)

            return product

        with self._held(dtype, dout):
            (cut, made), seen = self._parts(dtype, "input_grad", dout, w), self.seen(dout)
            if self._exact(dtype):
                turned = (False, adjoint)
                return self.given(self._reproducible(dtype, "input_grad", cut, made, seen, w, b, rounded, turned))
            w = conjugate(self.backend, w) if adjoint else w
            terms = self.geometry.group_out * self.geometry.taps * overlap(self.geometry)
            if len(cut) == 1:
                return self.given(self._computed(dtype, of(cut[0]), terms, seen, w, b))
            grad = self._empty(dtype, self.geometry.x_shape, dout)
            for part in cut:
                bias = None if b is None else b[part.of_x[1]]
                own = _of(seen, part.of_out), _of(w, part.of_w)
                grad = self.backend.write(grad, (*part.of_x, ...), self._computed(dtype, of(part), terms, *own, bias))
            return self.given(grad)

    def weight_grad(
        self, dtype: Dtype, dout: Array, x: Array, adjoint_of: str | None = "x", rounded: str | None = None
    ) -> Array:
        """Compute the gradient of the filters; `adjoint_of` which operand, "x" or "dout", is the one given forward.

        With None the product is linear in both.

        Where it is reproducible it is rounded to the dtype named by `rounded`, if that is another.
        """

        def of(part: Part) -> Product:
            own, choice = part.geometry, self._choice(dtype, "weight_grad", part.geometry, made)

            def product(dout: Array, x: Array, _: Array | None) -> Array:
                x = extend(own, self.backend, x)
                return choice.compute("weight_grad", own.extended, self.backend, dout, x)

            return product

        with self._held(dtype, dout):
            (cut, made), seen, cells = self._parts(dtype, "weight_grad", dout, x), self.seen(dout), self.seen(x)
            if self._exact(dtype):
                turned = (adjoint_of == "dout", adjoint_of == "x")
                return self._reproducible(
                    dtype, "weight_grad", cut, made, seen, cells, rounded=rounded, conjugated=turned
                )
            terms = self.geometry.batch * self.geometry.positions
            # What is added up is rounded at the end, as in one sum.
            wide = dtype if len(cut) == 1 or dtype.kind == "integral" else computed_in(self.backend, dtype)
            sums: dict[int, Array] = {}
            for part in cut:
                one, other = _of(seen, part.of_out), _of(cells, part.of_x)
                one = conjugate(self.backend, one) if adjoint_of == "dout" else one
                other = conjugate(self.backend, other) if adjoint_of == "x" else other
                first = part.of_w[0].start or 0
                value = self._computed(wide, of(part), terms, one, other)
                sums[first] = value if first not in sums else self.backend.add(sums[first], (...,), value)
                del value  # or the next part's would be one more
            grad = next(iter(sums.values())) if len(sums) == 1 else self.backend.xp.concat(list(sums.values()), axis=0)
            return self.backend.astype(grad, dtype.dtype)

    def weight_sums(self, dtype: Dtype, dout: Array, x: Array, some: Iterable[Part], rounded: str) -> Array:
        """Sum exactly what some samples and positions add to a reproducible gradient of filters; `some` are cut small.

        It is to be rounded to the dtype named by `rounded`: `reproducible.product` says how that is done.
        """
        made = self._copies(dtype, "weight_grad", self.geometry, dout.dtype, x.dtype)

        def chosen(geometry: Geometry) -> Choice:
            return self._chosen_in(self._sliced(dtype), "weight_grad", geometry, made)

        with self._held(dtype, dout), self.backend.quiet():
            return _imported("weight_grad").weight_sums(
                self.backend, self.geometry, dtype.name, chosen, some, dout, x, rounded
            )

    def channel_sum(self, dtype: Dtype, array: Array, rounded: str | None = None) -> Array:
        """Add up the elements of each channel, of an input or an output as the caller has it.

        Where it is reproducible it is rounded to the dtype named by `rounded`, if that is another.
        """
        with self._held(dtype, array):
            xp, wide = self.backend.xp, summable(self.backend, dtype)
            seen = self.seen(array)
            if self._exact(dtype):
                from ..reproducible.bias_grad import channel_sum

                with self.backend.quiet():
                    return channel_sum(self.backend, self.geometry, dtype.name, seen, rounded)
            if self.geometry.channels_last:
                cells = xp.permute_dims(seen, (0, *range(2, seen.ndim), 1))
                sums = xp.sum(self.backend.astype(cells, wide), axis=tuple(range(seen.ndim - 1)), dtype=wide)
            else:
                # Cells first: they lie side by side, and their sum is then a pairwise one where the library has it.
                flat = self.backend.astype(xp.reshape(seen, (*seen.shape[:2], math.prod(seen.shape[2:]))), wide)
                sums = xp.sum(xp.sum(flat, axis=2, dtype=wide), axis=0, dtype=wide)
            return self.backend.astype(sums, dtype.dtype)

    def spread(self, bias: Array, made: str) -> Array:
        """Give each cell of a result what is added to its channel: the adjoint of `channel_sum`."""
        backend, shape = self.backend, self.out_shape if self.side == "out" else self.x_shape
        place = len(shape) - 1 if self.geometry.channels_last else int(not self.unbatched)
        ones = (1,) * (len(shape) - 1 - place)
        return backend.xp.broadcast_to(
            backend.xp.reshape(narrow(backend, bias, backend.dtype(made)), (-1, *ones)), shape
        )

    def room(self, dtype: Dtype, like: Array, name: str, got: Shape, made: str) -> None:
        """Check that there is memory to make "out", "x" or "w", which argument `name` of shape `got` asks for."""
        geometry = self.geometry
        shapes = [{"out": geometry.out_shape, "x": geometry.x_shape, "w": geometry.w_shape}[made]]
        asked = named(self.algorithm)
        if geometry.extended is not geometry or (asked is not None and asked.pads_input):
            shapes.append((geometry.batch, geometry.in_channels, *geometry.padded))
        arguments.room(self.backend, like, dtype, name, tuple(got), *shapes)

    @property
    def _slices(self) -> bool:
        """Whether integers are multiplied as slices: the readable truth multiplies them as they are."""
        asked = named(self.algorithm)
        return asked is None or asked.slices_integers

    def _exact(self, dtype: Dtype) -> bool:
        """Whether a product is reproducible by slices; that of integers is so as it is."""
        return self.precision == "reproducible" and dtype.kind != "integral"

    def _reproducible(
        self,
        dtype: Dtype,
        purpose: str,
        cut: tuple[Part, ...],
        made: Copies,
        a: Array,
        b: Array,
        bias: Array | None = None,
        rounded: str | None = None,
        conjugated: tuple[bool, bool] = (False, False),
    ) -> Array:
        """Compute a product of slices; `conjugated` which of its operands are."""

        def chosen(geometry: Geometry) -> Choice:
            return self._chosen_in(self._sliced(dtype), purpose, geometry, made)

        with self.backend.quiet():
            return _imported("product").compute(
                self.backend, self.geometry, dtype.name, purpose, chosen, cut, a, b, bias, rounded, conjugated
            )

    def _sliced(self, dtype: Dtype) -> Dtype:
        """What slices are multiplied in."""
        return Dtype(self.backend.dtype("float64"), dtype.name, SLICED)

    def _chosen(self, dtype: Dtype, purpose: str, geometry: Geometry) -> tuple[Geometry, Dtype]:
        """What an algorithm is chosen for: a convolution, and what it is computed in."""
        if self._exact(dtype):
            count = slots(self.backend, geometry, purpose, dtype.name)
            return in_slices(geometry, count).extended, self._sliced(dtype)
        return geometry.extended, computed_in(self.backend, dtype, self._slices)

    def _copies(self, dtype: Dtype, purpose: str, geometry: Geometry, a: Any, b: Any) -> Copies:
        exact = slots(self.backend, geometry, purpose, dtype.name) if self._exact(dtype) else 0
        return copies(self.backend, dtype, geometry, purpose, a, b, self._slices, exact)

    def _choice(self, dtype: Dtype, purpose: str, geometry: Geometry, made: Copies) -> Choice:
        own, computed = self._chosen(dtype, purpose, geometry)
        return self._chosen_in(computed, purpose, own, made)

    def _chosen_in(self, dtype: Dtype, purpose: str, geometry: Geometry, made: Copies) -> Choice:
        """Choose for a convolution that is computed in `dtype`, within the limit."""
        limit = limits.workspace()
        room = self._room(made, limit)
        return choose(Problem(purpose, geometry, dtype, self.backend), self.algorithm, room, limit is not None)

    def _parts(self, dtype: Dtype, purpose: str, a: Array, b: Array) -> tuple[tuple[Part, ...], Copies]:
        """Cut a product so that there is room for its copies; return the copies of the whole, too."""
        made = self._copies(dtype, purpose, self.geometry, a.dtype, b.dtype)
        asked = limits.workspace()
        found = parts(self.geometry, purpose, made, self._room(made, asked))
        if found is not None:
            return found, made
        if asked is None:
            return (whole(self.geometry),), made
        least = self._least(purpose, made, asked)
        raise ConvValueError(
            f"workspace_limit: got {asked} bytes, expected at least {least}, for copies of a sample, or of some rows "
            "of one, and of some filters, and as much again"
        )

    def _least(self, purpose: str, made: Copies, asked: int) -> int:
        """The smallest limit beyond `asked` under which a product can be cut so that there is room for its copies."""

        def enough(limit: int) -> bool:
            return parts(self.geometry, purpose, made, self._room(made, limit)) is not None

        low, high = asked, 2 * asked
        while not enough(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high

    def _room(self, made: Copies, limit: int | None) -> int:
        """Bytes for the copies, where there are any, and as many for an algorithm's workspaces."""
        exact = self.precision == "reproducible"
        room = limit or self.spare * (SLICES if exact else 1)
        room -= limits.aside(self.backend.block_bytes, limit) if exact else 0
        return room // 2 if made else room

    def _computed(
        self, dtype: Dtype, product: Product, terms: int, a: Array, b: Array, bias: Array | None = None
    ) -> Array:
        return compute(self.backend, dtype, product, terms, a, b, bias, slices=self._slices)

    def _held(self, dtype: Dtype, like: Array) -> AbstractContextManager[Any]:
        # Integers stay exact, whatever precision the caller lets floating point have.
        return self.backend.during_call(like, "standard" if dtype.kind == "integral" else self.precision)

    def _empty(self, dtype: Dtype, shape: Shape, like: Array) -> Array:
        """A result of any contents, which lies in memory as the caller has it."""
        return self.backend.empty(shape, like, last=self.geometry.channels_last, dtype=dtype.dtype)

    def seen(self, array: Array) -> Array:
        """An array as algorithms see it: (N, C, *cells)."""
        if self.unbatched:
            array = self.backend.xp.reshape(array, (1, *array.shape))
        if self.geometry.channels_last:
            array = self.backend.xp.permute_dims(array, (0, array.ndim - 1, *range(1, array.ndim - 1)))
        return array

    def given(self, array: Array) -> Array:
        """An array as the caller has it."""
        if self.geometry.channels_last:
            array = self.backend.xp.permute_dims(array, (0, *range(2, array.ndim), 1))
        return array[0, ...] if self.unbatched else array


@cache
def _imported(name: str) -> ModuleType:
    """Import what reproducible products are made by when one is first asked for: it takes as long as half the rest."""
    return importlib.import_module(f"..reproducible.{name}", __package__)


def _of(array: Array, index: tuple[slice, ...]) -> Array:
    return array[(*index, ...)]
