"""The checks of single arguments, each with a typed error; `checked_geometry` checks shapes and options together.

No function allocates or writes an array. Messages have the form "argument: got ..., expected ...".
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from .. import backends
from ..backends import Array, Backend
from ..errors import BackendError, ConvShapeError, ConvTypeError, ConvValueError, in_a_line
from .dtypes import KINDS, Dtype, real, rounded
from .options import PADDING_MODES, Options
from .remembered import remembered

MOST_BYTES = 16
"""The bytes of an element of the largest dtype, complex128."""
LITTLE_BYTES = 1 << 26
"""For arrays of at most 64 MiB, the free memory of the device is not checked."""


def integer(name: str, value: Any, least: int | None = None) -> int:
    """Check that a value is an integer; return it as an int."""
    if isinstance(value, bool):
        raise ConvTypeError(f"{name}: got {value!r}, expected an int")
    try:
        plain = value if backends.is_symbol(value) else operator.index(value)
    except TypeError:
        raise ConvTypeError(f"{name}: got {value!r}, expected an int") from None
    if least is not None and plain < least:
        raise ConvValueError(f"{name}: got {value!r}, expected an int of at least {least}")
    return plain


def per_dimension(name: str, value: Any, dims: int, least: int) -> tuple[int, ...]:
    """Check that a value is an int or one int for each spatial dimension; return one int for each."""
    if not isinstance(value, (tuple, list)):
        if isinstance(value, str) or value is None or hasattr(value, "__len__"):
            raise ConvTypeError(f"{name}: got {value!r}, expected an int or a tuple of {dims}")
        return (integer(name, value, least),) * dims
    if len(value) != dims:
        raise ConvValueError(f"{name}: got {len(value)} entries in {value!r}, expected {dims}, one per dimension")
    return tuple(integer(f"{name}[{i}]", entry, least) for i, entry in enumerate(value))


def option(name: str, value: Any, known: Sequence[str]) -> str:
    """Check that a value is one of the known strings; return it."""
    if isinstance(value, str) and value in known:
        return value
    error = ConvValueError if isinstance(value, str) else ConvTypeError
    raise error(f"{name}: got {value!r}, expected {' or '.join(repr(choice) for choice in known)}")


def with_constant(options: Options, dtype: str) -> Options:
    """Check that only padding of a constant has a value; return options with that value as an input's dtype has it."""
    value: Any = options.padding_value
    mode = options.padding_mode
    if mode != "constant" and type(value) is int and value == 0:
        return options
    # What torch.compile makes of a symbol serves this number alone.
    made = {"SymInt": int, "SymFloat": float}.get(type(value).__name__)
    value = value if made is None else made(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Complex):
        raise ConvTypeError(f"padding_value: got {value!r}, expected a number")
    if option("padding_mode", mode, PADDING_MODES) != "constant" and value != 0:
        raise ConvValueError(f"padding_value: got {value!r}, expected none for padding_mode {mode!r}, or 'constant'")
    return options._replace(padding_value=_number(value, dtype))


def _number(value: Any, dtype: str) -> complex:
    """Return a number as a dtype has it: rounded, and an integer as it is."""
    kind, is_real = KINDS[dtype], isinstance(value, numbers.Real)
    if kind == "complex floating":
        return complex(_number(value.real, real(dtype)), _number(value.imag, real(dtype)))
    if not is_real:
        raise ConvTypeError(f"padding_value: got {value!r}, expected a real number, for an input of {dtype}")
    if kind != "integral":
        number = rounded(value, dtype)
        if math.isinf(number) and value not in (number, -number):
            raise ConvValueError(f"padding_value: got {value!r}, expected a number within the range of {dtype}")
        return number
    if not (isinstance(value, numbers.Integral) or float(value).is_integer()):
        raise ConvTypeError(f"padding_value: got {value!r}, expected an integer, for an input of {dtype}")
    signed, bits = dtype.startswith("i"), int(dtype.lstrip("uint"))
    least, most = -(signed << bits - 1), (1 << bits - signed) - 1
    if not least <= value <= most:
        raise ConvValueError(f"padding_value: got {value!r}, expected one from {least} to {most}, those of {dtype}")
    return int(value)


def shape(name: str, value: Any) -> tuple[int, ...]:
    """Check that a value is a shape; return it as a tuple of ints."""
    if not isinstance(value, (tuple, list)):
        raise ConvTypeError(f"{name}: got {value!r}, expected a tuple of ints")
    for i, size in enumerate(value):
        if integer(f"{name}[{i}]", size) < 0:
            raise ConvShapeError(f"{name}: got {tuple(value)}, expected no negative size")
    return tuple(size if backends.is_symbol(size) else operator.index(size) for size in value)


def memory(backend: Backend, like: Array, dtype: str, argument: tuple[str, Any], *shapes: tuple[int, ...]) -> None:
    """Check that the device of `like` has memory for arrays of these shapes and that dtype.

    `argument` is the name and the requested shape of the argument for which a call allocates them.
    """
    for shape in shapes:
        cells = math.prod(shape)
        if backends.is_symbol(cells) or cells * MOST_BYTES <= LITTLE_BYTES:
            continue
        needed = cells * backend.bits(backend.dtype(dtype)) // 8
        if needed > LITTLE_BYTES and needed > (available := backend.memory(like)):
            name, asked = argument
            raise ConvShapeError(
                f"{name}: got shape {tuple(asked)}, for which an array of shape {shape} and {needed} bytes would be "
                f"made, expected what fits in the {available} bytes of memory that the device has"
            )


def owner(name: str, array: Any, beside: Mapping[str, Any]) -> Backend:
    """Check that a value is an array that portconv can use, `beside` other arguments; return its backend."""
    try:
        backend = backends.of(array, beside)
    except ConvTypeError as error:
        raise ConvTypeError(f"{name}: {error}") from error.__cause__
    if (objection := backend.objection(array)) is not None:
        raise type(objection)(f"{name}: {objection}")
    return backend


def arrays(**named: Array) -> tuple[Backend, Dtype]:
    """Check that all arrays are of one library, device and kind; return their backend and their common dtype.

    Only `b` may be None.
    """
    first_name, first, backend = "", None, None
    dtypes = []
    for name, array in named.items():
        if name == "b" and array is None:
            continue
        array_backend = owner(name, array, named)
        if backend is None:
            first_name, first, backend = name, array, array_backend
        elif array_backend is not backend:
            raise ConvTypeError(
                f"{name}: got an array of {array_backend.name}, expected one of {backend.name}, as {first_name} is; "
                f"{backend.converter} converts"
            )
        elif not array_backend.same_device(array, first):
            raise BackendError(
                f"{name}: got an array on device {array_backend.device_of(array)}, "
                f"expected one on {array_backend.device_of(first)}, as {first_name} is"
            )
        dtypes.append((name, array.dtype))
    assert backend is not None
    return backend, _common(backend, tuple(dtypes))


@remembered()
def _common(backend: Backend, dtypes: tuple[tuple[str, Any], ...]) -> Dtype:
    """Check the dtypes of arrays, which come with the arrays' names; return the dtype to which they are promoted."""
    found = [(name, backend.dtype_name(dtype)) for name, dtype in dtypes]
    for name, dtype_name in found:
        if dtype_name not in KINDS:
            raise ConvTypeError(f"{name}: got dtype {dtype_name}, expected a floating-point, complex or integer one")
    _one_kind(backend, found)
    try:
        # A single dtype needs no promotion.
        common = dtypes[0][1] if len({d for _, d in dtypes}) == 1 else backend.xp.result_type(*(d for _, d in dtypes))
        common = backend.machine_order(common)
        dtype_name = backend.dtype_name(common)
    except (TypeError, ValueError, RuntimeError) as error:
        dtype_name, why = "", f" ({in_a_line(error)})"
    else:
        why = f", only {dtype_name}"
    if KINDS.get(dtype_name) not in {KINDS[backend.dtype_name(dtype)] for _, dtype in dtypes}:
        names = ", ".join(f"{name}'s {backend.dtype_name(dtype)}" for name, dtype in dtypes)
        raise ConvTypeError(
            f"{dtypes[-1][0]}: got dtypes {names}, expected ones with a common dtype of their kind{why}"
        )
    return Dtype(common, dtype_name, KINDS[dtype_name])


def _one_kind(backend: Backend, dtypes: list[tuple[str, str]]) -> None:
    """Check that all arrays are integers or none is, from their names and the names of their dtypes."""
    integers = [each for each in dtypes if KINDS[each[1]] == "integral"]
    others = [each for each in dtypes if KINDS[each[1]] != "integral"]
    if not (integers and others):
        return
    if len(integers) > 1 and others == dtypes[-1:]:  # the last is what does not go with the rest, as `dout` may
        (name, dtype), (other, other_dtype) = others[0], integers[0]
        raise ConvTypeError(f"{name}: got dtype {dtype}, expected an integer one, as {other}'s {other_dtype} is")
    (name, dtype), (other, other_dtype) = integers[0], others[0]
    raise ConvTypeError(
        f"{name}: got dtype {dtype}, expected a floating-point or complex one, as {other}'s {other_dtype} is; "
        f"{backend.conversion(name, other_dtype)} converts it"
    )


def exact_shape(name: str, actual: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Check that a shape is the expected one."""
    if actual != expected:
        raise ConvShapeError(f"{name}: got shape {actual}, expected {expected}")
