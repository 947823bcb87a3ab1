"""A public call: its arguments are checked here, and become an operation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ..algorithms.choice import algorithms, named
from ..backends import Array, Backend
from ..spec import arguments, checked_geometry
from ..spec.checked_geometry import NAMES, Names
from ..spec.dtypes import KINDS
from ..spec.layout import Shape, given_shape
from ..spec.operation import Kind, Operation, Role
from ..spec.options import PRECISIONS, Options
from ..spec.remembered import looked_up, remembered
from . import repeated
from .execution import opaque, run


class Asked(NamedTuple):
    """What a public function asks for, beside shapes and options.

    `names` are those of the arguments that the shapes of the input and of the filters come from.
    """

    kind: Kind
    dtype: str
    names: Names = NAMES
    transposed: bool = False


@dataclass(slots=True, eq=False, repr=False)
class Forward:
    """A forward call: its arguments, and once they are checked, their library and what is computed of them."""

    x: Array
    w: Array
    b: Array | None
    options: Options
    checked: tuple[Backend, Operation] | None = None

    def check(self, kind: Kind) -> tuple[Backend, Operation]:
        """Check the arguments, and remember what they ask for."""
        backend, dtype = arguments.arrays(x=self.x, w=self.w, b=self.b)
        asked = Asked(kind, dtype.name, transposed=kind == Kind.INPUT_GRAD)
        options = arguments.with_constant(self.options, backend.dtype_name(self.x.dtype))
        step = operation_of(asked, self.x.shape, self.w.shape, options)
        if self.b is not None:
            arguments.exact_shape("b", tuple(self.b.shape), step.shape(Role.B))
        self.checked = backend, step
        return self.checked

    @property
    def backend(self) -> Backend:
        """The library of the arrays."""
        return (self.checked or self.check(self.kind))[0]

    @property
    def operation(self) -> Operation:
        """What is computed."""
        return (self.checked or self.check(self.kind))[1]

    @property
    def kind(self) -> Kind:
        """The product that the result is."""
        return Kind.FORWARD

    @property
    def operands(self) -> tuple[Array, ...]:
        """The arrays, without a bias where there is none."""
        return (self.x, self.w) if self.b is None else (self.x, self.w, self.b)

    def run(self) -> Array:
        """Compute the result."""
        lower = self.backend.autocast(self.x)
        if lower is not None and self.options.precision != "reproducible":
            b = None if self.b is None else lower(self.b)
            return type(self)(lower(self.x), lower(self.w), b, self.options)._result()
        return self._result()

    def _result(self) -> Array:
        backend, step = self.backend, self.operation
        check_memory_of_output(step, backend, self.x)
        return run(step, backend, *self.operands)


class ConvCache(Forward):
    """What `conv_backward` needs to know of a `conv_forward`; to be handed on, not looked into."""

    __slots__ = ()


class ConvTransposeCache(Forward):
    """What `conv_transpose_backward` needs to know of a `conv_transpose_forward`; not to be looked into."""

    __slots__ = ()

    @property
    def kind(self) -> Kind:
        """The product that the result is: the input gradient of the convolution that it is adjoint to."""
        return Kind.INPUT_GRAD


def convolution(x: Array, w: Array, b: Array | None, options: Options) -> ConvCache:
    """Check the arguments of a convolution."""
    cache = ConvCache(x, w, b, options)
    cache.check(Kind.FORWARD)
    return cache


def transposed(x: Array, w: Array, b: Array | None, options: Options) -> ConvTransposeCache:
    """Check the arguments of a transposed convolution: the input gradient of the convolution that it is adjoint to."""
    cache = ConvTransposeCache(x, w, b, options)
    cache.check(Kind.INPUT_GRAD)
    return cache


@opaque
def convolve(x: Array, w: Array, b: Array | None, options: Options) -> Array:
    """Check the arguments of a convolution, and compute it."""
    return convolve_and_keep(x, w, b, options)[0]


def convolve_and_keep(x: Array, w: Array, b: Array | None, options: Options) -> tuple[Array, ConvCache]:
    """Check the arguments of a convolution, and compute it; a call like one before is looked up."""
    key = repeated.key_of(x, w, b, options)
    out = repeated.computed(key, x, w, b)
    if out is not None:
        return out, ConvCache(x, w, b, options)
    cache = convolution(x, w, b, options)
    out = cache.run()
    step, backend = cache.operation, cache.backend
    if key is not None:
        # What is remembered must not hold the arrays.
        check = partial(check_memory_of_output, step, backend)
        repeated.remember(key, repeated.found(step, backend, cache.operands, check))
    return out, cache


@opaque
def convolve_transposed(x: Array, w: Array, b: Array | None, options: Options) -> Array:
    """Check the arguments of a transposed convolution, and compute it."""
    return transposed(x, w, b, options).run()


@opaque
def gradient(kind: Kind, dout: Array, other: tuple[str, Array], shape: tuple[str, Any], options: Options) -> Array:
    """Check the arguments of a gradient, and compute it.

    Parameters
    ----------
    kind : Kind
        The gradient of the input or of the filters.
    dout : array
    other : tuple of str and array
        The name of the other operand, and the operand.
    shape : tuple of str and tuple of int
        The name of the argument that is the result's shape, and the argument.
    options : Options
    """
    name, array = other
    key = repeated.key_of_gradient((kind, shape), dout, (array,), options)
    known: Array | None = repeated.computed(key, dout, array)
    if known is not None:
        return known
    backend, dtype = arguments.arrays(**{"dout": dout, name: array})
    result = arguments.shape(*shape)
    of_x = dtype.name if kind == Kind.INPUT_GRAD else backend.dtype_name(array.dtype)
    options = arguments.with_constant(options, of_x)
    if kind == Kind.INPUT_GRAD:
        step = operation_of(Asked(kind, dtype.name, Names(shape[0], name)), result, array.shape, options)
    else:
        step = operation_of(Asked(kind, dtype.name, Names(name, shape[0])), array.shape, result, options)
    arguments.exact_shape("dout", tuple(dout.shape), step.shape(Role.OUT))
    check = partial(check_memory_of, step, backend, (shape[0], result))
    check(dout)
    gradient = run(step, backend, dout, array)
    if key is not None:
        repeated.remember(key, repeated.found(step, backend, (dout, array), check))
    return gradient


def operation_of(asked: Asked, x_shape: Any, w_shape: Any, options: Options) -> Operation:
    """Check shapes and options, and return the operation that they ask for.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError
    """
    check = _known if options.plain else _checked
    return check(asked, tuple(x_shape), tuple(w_shape), options)


def _checked(asked: Asked, x_shape: Shape, w_shape: Shape, options: Options) -> Operation:
    arguments.option("precision", options.precision, PRECISIONS)
    if asked.transposed:
        geometry, unbatched = checked_geometry.transposed(x_shape, w_shape, options)
    else:
        geometry, unbatched = checked_geometry.convolution(x_shape, w_shape, options, asked.names)
    arguments.option("algorithm", options.algorithm, ("auto", *algorithms()))
    # `conv_input_grad` and `conv_weight_grad` are adjoints: of complex numbers, they conjugate their second operand.
    conjugates = not asked.transposed and asked.kind != Kind.FORWARD and KINDS[asked.dtype] == "complex floating"
    return Operation(
        asked.kind,
        geometry.linear if asked.kind == Kind.INPUT_GRAD else geometry,
        asked.dtype,
        asked.dtype,
        options.precision,
        options.algorithm,
        unbatched,
        Role.X if asked.transposed else Role.OUT,
        (False, conjugates),
    )


_known = looked_up(_checked)


def check_memory(step: Operation, backend: Backend, like: Array, argument: tuple[str, Any]) -> None:
    """Check that the device has memory for the result of a product, and for a padded input where one is made."""
    if step.geometry.is_known:
        arguments.memory(backend, like, step.dtype, argument, *_shapes(step))


def check_memory_of(step: Operation, backend: Backend, argument: tuple[str, Any], like: Array) -> None:
    """Check that there is memory for a product, as `check_memory` does, beside an array."""
    check_memory(step, backend, like, argument)


def check_memory_of_output(step: Operation, backend: Backend, x: Array) -> None:
    """Check that there is memory for what a product makes of an input."""
    check_memory(step, backend, x, ("x", x.shape))


@remembered()
def _shapes(step: Operation) -> list[Shape]:
    """Return the shapes of the large arrays that a product makes."""
    geometry, algorithm = step.geometry, named(step.algorithm)
    shapes = [step.shape(step.result)]
    if geometry.extended is not geometry or (algorithm is not None and algorithm.pads_input):
        padded = (geometry.batch, geometry.in_channels, *geometry.padded)
        shapes.append(given_shape(padded, geometry.channels_last, step.unbatched))
    return shapes
