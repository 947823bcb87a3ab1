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

Compute = Callable[[Array, Any], Array]
"""A convolution of an input, or of the cells of it that count, with the filters; a constant padding has that value."""


def convolved(compute: Compute, x: Array, where: Array | None, normalize: bool, value: Any = 0) -> Array:
    """Convolve the cells that count, with a constant padding of `value`; divide by their weights if `normalize`."""
    backend = _checked(x, where, normalize)
    sums = compute(_present(backend, x, where), value)
    if not normalize:
        return sums
    with backend.quiet():  # a window in which no cell counts has no mean: it is nan
        return sums / compute(_weights(backend, x, where), 1)


def bound(compute: Compute, bounded: Compute, x: Array, where: Array | None, normalize: bool, value: Any = 0) -> Array:
    """Bound the error of what `convolved` computes by `compute`, whose own error `bounded` bounds.

    With `n` and `d` a sum and a weight as computed, and `N` and `D` the exact ones, ``n/d - N/D`` is ``((n - N) + n/d
    (D - d)) / D``, and the quotient is rounded once: the bound is ``(e_n + |n/d| e_d) / (|d| - e_d) + u |n/d|``.
    """
    backend = _checked(x, where, normalize)
    present = _present(backend, x, where)
    of_sums = bounded(present, value)
    if not normalize:
        return of_sums
    xp, weights = backend.xp, _weights(backend, x, where)
    divisors, of_divisors = compute(weights, 1), bounded(weights, 1)
    with backend.quiet():
        quotients = xp.abs(compute(present, value) / divisors)
        least = xp.abs(divisors) - of_divisors
        eps = EPSILON[real(backend.dtype_name(quotients.dtype))]
        # Complex numbers are divided with a few roundings, and so is this bound.
        error = ((of_sums + quotients * of_divisors) / least + 8 * eps * quotients) * (1 + 8 * eps)
        unknown = xp.isnan(error) | (least <= 0)
        return xp.where(unknown, xp.full_like(error, float("inf")), error)


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


def _present(backend: Backend, x: Array, where: Array | None) -> Array:
    """Return the input with zeros for the cells that do not count."""
    return x if where is None else backend.xp.where(where, x, backend.xp.zeros_like(x))


def _weights(backend: Backend, x: Array, where: Array | None) -> Array:
    """Return ones for the cells that count, and zeros for others."""
    ones = backend.xp.ones_like(x)
    return ones if where is None else backend.xp.where(where, ones, backend.xp.zeros_like(x))
