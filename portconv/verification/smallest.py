"""The smallest call that shows a failure, and code that repeats it, to be reported to a library."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import backends as registry
from ..algorithms.native import described
from ..errors import PortconvError
from ..passes.padding import extend
from ..spec.operation import Kind, Role
from .bounds import batched
from .cases import Case
from .comparison import Comparison, Trial
from .variants import Variant, on

MOST_SECONDS = 20.0
"""For so long smaller cases are tried."""
MOST_NUMBERS = 64
"""Arrays of up to so many numbers are written out."""

KINDS = {"out": Kind.FORWARD, "dx": Kind.INPUT_GRAD, "dw": Kind.WEIGHT_GRAD}


@dataclass(frozen=True)
class Smallest:
    """A small case that fails as a larger one did: in what way, and on which variant.

    Attributes
    ----------
    case : Case
    comparison : Comparison
        Its result beside the exact one.
    variant : Variant
    """

    case: Case
    comparison: Comparison
    variant: Variant

    def __str__(self) -> str:
        """Say which call it is and what it gives, with code that repeats it."""
        backend, quantity = self.variant.backend, self.comparison.quantity
        head = f"smallest call with {backend.name} {backend.version()}: {self.comparison}"
        served = (self.comparison.served or "").startswith("native")
        code = self._own if served and backend.native_convolution is not None else self._ours
        return "\n".join([head, *(f"    {line}" for line in code(quantity))])

    def _own(self, quantity: str) -> Iterator[str]:
        """Return the library's own call, of batches with channels first and with their padding filled in."""
        backend, case, kind = self.variant.backend, self.case, KINDS[quantity]
        native, numpy, inputs = backend.native_convolution, registry.get("numpy"), case.inputs()
        assert native is not None
        device = backend.device_kind(backend.asarray([0.0], dtype="float32", **on(self.variant.device)))
        cells, grads = batched(case, inputs.x, inputs.dout)
        arrays = {Role.X: extend(case.geometry, numpy, cells), Role.W: inputs.w, Role.OUT: grads}
        names = {Role.X: "x", Role.W: "w", Role.OUT: "dout"}
        yield f"import {backend.module}"
        if case.numbers.endswith("not finite"):
            yield "from math import inf, nan"
        for role, array in arrays.items():
            if role in kind.operands:
                yield f"{names[role]} = {native.literal(str(array.tolist()), case.dtype, device)}"
        yield native.code(str(kind), described(case.geometry.extended))

    def _ours(self, quantity: str) -> Iterator[str]:
        """Return portconv's call, of the case's numbers."""
        for name, array in self.case.inputs()._asdict().items():
            if array is not None and name in OPERANDS[quantity]:
                written = str(array.tolist()) if array.size <= MOST_NUMBERS else f"{_code(self.case)}.inputs().{name}"
                yield f"{name} = {written}  # {array.shape} {self.case.dtype}"


OPERANDS = {"out": ("x", "w", "b"), "dx": ("w", "dout"), "dw": ("x", "dout"), "db": ("dout",)}
"""The arrays that a quantity is computed of."""


def _code(case: Case) -> str:
    """Return the code that makes a case."""
    options = {"bias": case.bias, **case.options, "algorithm": case.algorithm, "dtype": case.dtype}
    options["numbers"] = case.numbers
    plain = Case("", (), ())
    own = "".join(f", {name}={value!r}" for name, value in options.items() if value != getattr(plain, name))
    return f"portconv.verification.Case({case.name!r}, {case.x_shape}, {case.w_shape}{own})"


def smallest(failed: Comparison, case: Case, variant: Variant) -> Smallest | None:
    """Make a case smaller, step by step, for as long as the same quantity is out of its bound.

    Parameters
    ----------
    failed : Comparison
        A comparison with the exact values that did not hold.
    case : Case
    variant : Variant

    Returns
    -------
    Smallest or None
        None if the failure does not show again: with the numbers of a model's weights, or not at every call.
    """
    case = replace(case, w=None, b=None)
    end = time.monotonic() + MOST_SECONDS
    found = _failing(failed, case, variant)
    while found is not None:
        for smaller in _smaller(found.case):
            if time.monotonic() > end:
                return found
            again = _failing(failed, smaller, variant)
            if again is not None:
                found = again
                break
        else:
            break
    return found


def _failing(failed: Comparison, case: Case, variant: Variant) -> Smallest | None:
    """Return a case with its comparison if it fails; None if it holds, or is no legal call of its algorithm."""
    try:
        comparisons = Trial(case, [variant], failed.precision).run(variant)
    except (PortconvError, MemoryError):
        return None
    for comparison in comparisons:
        if comparison.quantity == failed.quantity and comparison.problem is None and not comparison.held:
            return Smallest(case, comparison, variant)
    return None


def _smaller(case: Case) -> Iterator[Case]:
    """Return cases with fewer numbers or plainer options, those that change most first."""
    has_batch, last = len(case.x_shape) == len(case.w_shape), case.data_format == "channels_last"
    dims = len(case.w_shape) - 2
    if last:
        batch, sizes, channels = case.x_shape[:has_batch], case.x_shape[has_batch:-1], case.x_shape[-1]
        yield replace(case, x_shape=(*batch, channels, *sizes), data_format="channels_first")
    at = int(has_batch) + (0 if last else 1)
    if has_batch:
        for count in _fewer(case.x_shape[0]):
            yield replace(case, x_shape=(count, *case.x_shape[1:]))
    channel_axis = len(case.x_shape) - 1 if last else int(has_batch)
    for groups in _fewer(case.groups):
        channels, filters = case.w_shape[1] * groups, max(1, case.w_shape[0] // case.groups) * groups
        yield replace(
            case,
            groups=groups,
            x_shape=_put(case.x_shape, channel_axis, channels),
            w_shape=(filters, *case.w_shape[1:]),
        )
    for filters in _fewer(case.w_shape[0] // case.groups):
        yield replace(case, w_shape=(filters * case.groups, *case.w_shape[1:]))
    for channels in _fewer(case.w_shape[1]):
        x_shape = _put(case.x_shape, channel_axis, channels * case.groups)
        yield replace(case, x_shape=x_shape, w_shape=_put(case.w_shape, 1, channels))
    plain = Case("", (), ())
    for name in ("bias", "padding_value", "padding_mode", "dilation", "stride", "padding", "numbers"):
        if getattr(case, name) != getattr(plain, name):
            yield replace(case, **{name: getattr(plain, name)})
    for dim in range(dims):
        for size in _fewer(case.x_shape[at + dim]):
            yield replace(case, x_shape=_put(case.x_shape, at + dim, size))
        for taps in _fewer(case.w_shape[2 + dim]):
            yield replace(case, w_shape=_put(case.w_shape, 2 + dim, taps))


def _fewer(count: int) -> Iterator[int]:
    """Return smaller counts, the smallest first: 1, half, and one less."""
    yield from sorted({1, math.ceil(count / 2), count - 1} - {0, count})


def _put(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def of_failures(
    failures: Sequence[Comparison], cases: Sequence[Case], variants: Sequence[Variant], most: int
) -> list[str]:
    """Write the smallest calls of up to `most` failures: the worst of each backend, dtype, quantity and precision."""
    by_kind: dict[tuple[Any, ...], Comparison] = {}
    for failure in failures:
        if failure.other is None:
            kind = failure.backend, failure.dtype, failure.quantity, failure.precision
            if kind not in by_kind or failure.units > by_kind[kind].units:
                by_kind[kind] = failure
    by_label = {variant.label: variant for variant in variants}
    by_name = {(case.name, case.dtype, case.algorithm): case for case in cases}
    found = []
    for failure in list(by_kind.values())[:most]:
        case = by_name[failure.case, failure.dtype, failure.algorithm]
        one = smallest(failure, case, by_label[failure.backend])
        if one is not None:
            found.append(str(one))
    return found
