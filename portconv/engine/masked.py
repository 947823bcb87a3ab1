"""Convolutions in which only some cells of the input count, and normalised convolutions.

A cell that does not count adds nothing, whatever it holds. A normalised convolution divides each sum by the weight of
the cells that count in its window: Knutsson and Westin, "Normalized and differential convolution" (CVPR 1993),
section 3, with a constant basis, and a certainty of 1 for cells that count and of 0 for others. Cells beyond the input
count where the padding is not of zeros, as far as those that it is filled from do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backends import Array, Backend
from ..errors import ConvShapeError, ConvTypeError
from ..spec import arguments
from ..spec.dtypes import EPSILON, KINDS, real
from ..spec.options import Options
from . import call
from .execution import opaque

Filters = tuple[Array, Array | None]
"""The filters of a layer, and a bias or None."""
Convolution = Callable[[Array, Array, Array | None, Options], Array]
"""The convolution of a layer, or the bound of its error."""
Compute = Callable[[Array, bool], Array]
"""A convolution with the filters: of an input, or if so of what counts in it, with ones for a constant padding."""


def convolved(compute: Compute, x: Array, where: Array | None, normalize: bool) -> Array:
    """Convolve the cells that count; divide by their weights if `normalize`."""
    if where is None and normalize is False:
        return compute(x, False)
    backend = _checked(x, where, normalize)
    sums = compute(_present(backend, x, where), False)
    if not normalize:
        return sums
    return _quotients(backend, sums, compute(_weights(backend, x, where), True))


def bound(compute: Compute, bounded: Compute, x: Array, where: Array | None, normalize: bool) -> Array:
    """Bound the error of what `convolved` computes by `compute`, whose own error `bounded` bounds.

    With `n` and `d` a sum and a weight as computed, and `N` and `D` the exact ones, ``n/d - N/D`` is ``((n - N) + n/d
    (D - d)) / D``, and the quotient is rounded once: the bound is ``(e_n + |n/d| e_d) / (|d| - e_d) + u |n/d|``.
    """
    backend = _checked(x, where, normalize)
    present = _present(backend, x, where)
    of_sums = bounded(present, False)
    if not normalize:
        return of_sums
    xp, weights = backend.xp, _weights(backend, x, where)
    divisors, of_divisors = compute(weights, True), bounded(weights, True)
    with backend.quiet():
        quotients = xp.abs(_quotients(backend, compute(present, False), divisors))
        least = xp.abs(divisors) - of_divisors
        eps = EPSILON[real(backend.dtype_name(quotients.dtype))]
        # Complex numbers are divided with a few roundings, and so is this bound.
        error = ((of_sums + quotients * of_divisors) / least + 8 * eps * quotients) * (1 + 8 * eps)
        unknown = xp.isnan(error) | (least <= 0)
        return xp.where(unknown, xp.full_like(error, float("inf")), error)


@opaque
def layer(x: Array, filters: Filters, options: Options, where: Array | None, normalize: bool) -> Array:
    """Convolve as a layer does; a bias is added last."""
    w, b = filters
    backend = call.convolution(x, w, b, options).backend
    compute = _of_layer(call.convolve, w, None if normalize else b, options)
    out = convolved(compute, x, where, normalize)
    if b is None or not normalize:
        return out
    last = options.data_format == "channels_last"
    return out + (b if last else backend.xp.reshape(b, (-1, *(1,) * (len(w.shape) - 2))))


def bound_of_layer(
    bounded: Convolution, x: Array, filters: Filters, options: Options, where: Array | None, normalize: bool
) -> Array:
    """Bound the error of what `layer` computes."""
    w, b = filters
    if where is None and normalize is False:
        return bounded(x, w, b, options)
    backend = call.convolution(x, w, b, options).backend
    own = None if normalize else b
    compute, bound_of = (_of_layer(each, w, own, options) for each in (call.convolve, bounded))
    error = bound(compute, bound_of, x, where, normalize)
    if b is None or not normalize:
        return error
    eps, out = EPSILON[real(backend.dtype_name(error.dtype))], layer(x, filters, options, where, normalize)
    error = (error + eps * backend.xp.abs(out)) * (1 + 8 * eps)
    return backend.xp.where(backend.xp.isnan(error), backend.xp.full_like(error, float("inf")), error)


def _of_layer(convolve: Convolution, w: Array, b: Array | None, options: Options) -> Compute:
    ones = options._replace(padding_value=1) if options.padding_mode == "constant" else options
    return lambda cells, of_weights: convolve(cells, w, b, ones if of_weights else options)


def _checked(x: Array, where: Array | None, normalize: Any) -> Backend:
    """Check a mask, and whether quotients can be computed; return the library."""
    if not isinstance(normalize, bool):
        raise ConvTypeError(f"normalize: got {normalize!r}, expected a bool")
    backend = arguments.owner("x", x, {"x": x})
    if normalize and KINDS.get(backend.dtype_name(x.dtype)) == "integral":
        raise ConvTypeError(
            f"normalize: got True for x of dtype {backend.dtype_name(x.dtype)}, expected a floating-point x; "
            f"{backend.conversion('x', 'float64')} converts it"
        )
    if where is None:
        return backend
    if arguments.owner("where", where, {"x": x, "where": where}) is not backend:
        raise ConvTypeError(f"where: got {type(where).__name__}, expected an array of {backend.name}, as x is")
    if backend.dtype_name(where.dtype) != "bool":
        raise ConvTypeError(f"where: got dtype {backend.dtype_name(where.dtype)}, expected bool")
    shape, mask = tuple(x.shape), tuple(where.shape)
    if len(mask) > len(shape) or any(a not in (1, b) for a, b in zip(mask[::-1], shape[::-1], strict=False)):
        raise ConvShapeError(f"where: got shape {mask}, expected x's {shape}, or one that broadcasts to it")
    return backend


def _quotients(backend: Backend, sums: Array, weights: Array) -> Array:
    """Divide sums by their weights; a window in which no cell counts has no mean: it is nan."""
    xp, none = backend.xp, weights == 0
    return xp.where(none, xp.full_like(sums, float("nan")), sums / xp.where(none, xp.ones_like(weights), weights))


def _present(backend: Backend, x: Array, where: Array | None) -> Array:
    """Return the input with zeros for the cells that do not count."""
    return x if where is None else backend.xp.where(where, x, backend.xp.zeros_like(x))


def _weights(backend: Backend, x: Array, where: Array | None) -> Array:
    """Return ones for the cells that count, and zeros for others."""
    ones = backend.xp.ones_like(x)
    return ones if where is None else backend.xp.where(where, ones, backend.xp.zeros_like(x))
