"""A call of the public functions, checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..algorithms.choice import algorithms
from ..backends import Array, Backend
from ..spec import arguments
from ..spec.arguments import Ints, Padding, option
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from .products import Contraction


@dataclass(frozen=True, eq=False, repr=False)
class Forward:
    """A forward call: its arrays, their common dtype, and how it is computed."""

    x: Array
    w: Array
    b: Array | None
    dtype: Dtype
    call: Contraction


class ConvCache(Forward):
    """What `conv_backward` needs to know of a `conv_forward`; to be handed on, not looked into."""


def prepare(
    x: Array,
    w: Array,
    b: Array | None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    data_format: str = "channels_first",
    precision: str = "standard",
    algorithm: str = "auto",
) -> ConvCache:
    """Check the arguments of a forward call, and return the cache that goes with it."""
    backend, dtype = arguments.arrays(x=x, w=w, b=b)
    options = (stride, padding, dilation, groups, padding_mode, data_format, precision, algorithm)
    call = _call(backend, dtype, x, x.shape, w.shape, ("x", "w"), *options)
    if b is not None:
        arguments.exact_shape("b", tuple(b.shape), (call.geometry.out_channels,))
    return ConvCache(x, w, b, dtype, call)


def _call(
    backend: Backend,
    dtype: Dtype,
    like: Array,
    x_shape: Any,
    w_shape: Any,
    names: tuple[str, str],
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    padding_mode: str,
    data_format: str,
    precision: str,
    algorithm: str,
) -> Contraction:
    option("precision", precision, arguments.PRECISIONS)
    options = (stride, padding, dilation, groups, padding_mode, data_format)
    geometry, unbatched = _geometry(x_shape, w_shape, names, *options)
    option("algorithm", algorithm, ("auto", *algorithms()))
    return Contraction(backend, dtype, geometry, algorithm, unbatched, precision, backend.spare(like))


def _geometry(x_shape: Any, w_shape: Any, names: tuple[str, str], *options: Any) -> tuple[Geometry, bool]:
    """Check shapes and options, as `_checked` does; what may be known from an earlier call is."""
    # Where nothing but its type tells True or 1.0 from 1, as inside of tuples, a cache would not.
    known = all(type(option) in (int, str) for option in options)
    return (_known if known else _checked)(tuple(x_shape), tuple(w_shape), names, *options)


def _checked(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    names: tuple[str, str],
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    padding_mode: str,
    data_format: str,
) -> tuple[Geometry, bool]:
    """Check shapes and options; return the geometry, and whether the input is one sample without a batch axis."""
    mode = option("padding_mode", padding_mode, arguments.PADDING_MODES)
    batched, channels_last, unbatched = arguments.batched(x_shape, w_shape, names, data_format)
    options = (stride, padding, dilation, groups, mode, channels_last)
    return arguments.geometry(batched, w_shape, *options, names), unbatched


_known = lru_cache(maxsize=1024, typed=True)(_checked)
