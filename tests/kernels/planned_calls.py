"""Calls of one family of kernels by its plan, with arrays beside pages that nobody may touch, and the sums they owe."""

from __future__ import annotations

import ctypes
from functools import cache
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
from kernels.guarded import PAGE, Guarded, guarded

from portconv.kernels import compile
from portconv.kernels.sizes import Sizes
from portconv.kernels.target import Target
from portconv.kernels.values import BRAINS, BYTES, LONG, PAIRS

ROUNDING = {"float": 2.0**-24, "double": 2.0**-53}
"""The largest error of rounding a number to the type of a kernel."""
DTYPES = {
    **{"float": np.float32, "double": np.float64, "i16": np.int16, "i32": np.int32, LONG: np.int64},
    **{BYTES: np.int32, PAIRS: np.int32, BRAINS: np.float32},
}
RUN = 256


def sizes_of(batch: int, channels: int, filters: int, groups: int, sides: list[tuple[int, ...]]) -> Sizes | None:
    """Return sizes, or None if no output is left; a side is its size, kernel, stride, dilation, before and after."""
    size, kernel, stride, dilation, before, after = zip(*sides, strict=True)
    out = tuple((s + a + b - d * (k - 1) - 1) // step + 1 for s, k, step, d, a, b in sides)
    if min(out) < 1:
        return None
    return Sizes(batch, channels, filters, groups, size, kernel, stride, dilation, before, after, out)


@cache
def compiled(family: ModuleType, variant: str, target: Target) -> Any:
    """Return the function of a kernel, and what keeps it in memory."""
    module = family.module(target, variant)
    loaded = compile.Loaded(compile.compiled(module, target), module.public, target)
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 7)(loaded.addresses["alone"]), loaded


def called(family: ModuleType, target: Target, sizes: Sizes, arrays: tuple[Any, Any, Any], **options: Any) -> Any:
    """Return the output and the flag of a call; the arrays are x, w and b or None. Other memory must be unchanged."""
    plan = family.plan_of(target, sizes, has_bias=arrays[2] is not None, **options)
    return by_plan(family, target, plan, arrays, (sizes.batch, sizes.out_channels, *sizes.out))


def by_plan(family: ModuleType, target: Target, plan: Any, arrays: tuple[Any, ...], shape: tuple[int, ...]) -> Any:
    """Return what a planned call makes of arrays, an array of this shape and of their dtype, and its flag."""
    call, _ = compiled(family, plan.variant, target)
    dtype = arrays[0].dtype
    unwritten = np.nan if dtype.kind == "f" else np.iinfo(dtype).max
    arrays = tuple(np.zeros(1, dtype) if array is None else array for array in arrays)
    results = []
    for at_end in (False, True):
        copies = [guarded(np.ascontiguousarray(array), at_end=at_end) for array in arrays]
        memory = Guarded(dtype.itemsize * int(np.prod(shape)))
        out = memory.array(shape, at_end=at_end, dtype=dtype)
        out[...] = unwritten
        lines = [-(-nbytes // 64) * (64 // dtype.itemsize) for nbytes in (plan.scratch_bytes, plan.shared_bytes)]
        held = [Guarded(dtype.itemsize * count) for count in lines]
        cells = [guard.array((count,), at_end=at_end, dtype=dtype) for guard, count in zip(held, lines, strict=True)]
        for each in cells:
            each[...] = unwritten
        values = np.array(plan.values, np.int64)
        addresses = [array.ctypes.data for array in (values, *(copy for copy, _ in copies), out, *cells)]
        flag = call(*addresses)
        rest = bytearray(memory.memory[PAGE : PAGE + memory.inner])
        start = out.ctypes.data - memory.start
        rest[start : start + out.nbytes] = b""
        assert not any(rest), "memory beside the output was written"
        for (copy, _), array in zip(copies, arrays, strict=True):
            np.testing.assert_array_equal(copy, array)
        results.append((out.copy(), flag))
    (first, flag), (second, other) = results
    assert first.tobytes() == second.tobytes()
    assert flag == other
    return first, flag


def padded_by(x: Any, before: tuple[int, ...], after: tuple[int, ...]) -> Any:
    """Return the cells with zeros around them, or without some where the padding is negative."""
    zeros = np.pad(x, [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in zip(before, after, strict=True))])
    sides = zip(before, after, zeros.shape[2:], strict=True)
    return zeros[(..., *(slice(max(-a, 0), size - max(-b, 0)) for a, b, size in sides))]


def plain_sums(sizes: Sizes, x: Any, w: Any, b: Any) -> tuple[Any, Any]:
    """Return the sums in float64, tap by tap, and those of the magnitudes."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    spans = [step * (out - 1) + 1 for out, step in zip(sizes.out, sizes.stride, strict=True)]
    padded = padded_by(x, sizes.before, sizes.after)
    shape = (sizes.batch, sizes.groups, sizes.filters, *sizes.out)
    sums, magnitudes = np.zeros(shape), np.zeros(shape)
    filters = w.reshape(sizes.groups, sizes.filters, sizes.channels, *sizes.kernel)
    for tap in product(*map(range, sizes.kernel)):
        starts = [k * d for k, d in zip(tap, sizes.dilation, strict=True)]
        where = tuple(slice(a, a + n, s) for a, n, s in zip(starts, spans, sizes.stride, strict=True))
        cells = padded[(..., *where)].reshape(sizes.batch, sizes.groups, sizes.channels, *sizes.out)
        numbers = filters[(..., *tap)]
        sums += np.einsum("ngc...,gfc->ngf...", cells, numbers)
        magnitudes += np.einsum("ngc...,gfc->ngf...", abs(cells), abs(numbers))
    bias = np.zeros(sizes.out_channels) if b is None else b.astype(np.float64)
    bias = bias.reshape(sizes.out_channels, *[1] * len(sizes.out))
    whole = (sizes.batch, sizes.out_channels, *sizes.out)
    return sums.reshape(whole) + bias, magnitudes.reshape(whole) + abs(bias)


def plain_weight_sums(sizes: Sizes, x: Any, dout: Any) -> tuple[Any, Any]:
    """Return the gradient of the filters in float64, tap by tap, and the sums of the magnitudes."""
    spans = [step * (out - 1) + 1 for out, step in zip(sizes.out, sizes.stride, strict=True)]
    padded = padded_by(x.astype(np.float64), sizes.before, sizes.after)
    grads = dout.astype(np.float64).reshape(sizes.batch, sizes.groups, sizes.filters, -1)
    shape = (sizes.groups, sizes.filters, sizes.channels, *sizes.kernel)
    sums, magnitudes = np.zeros(shape), np.zeros(shape)
    for tap in product(*map(range, sizes.kernel)):
        starts = [k * d for k, d in zip(tap, sizes.dilation, strict=True)]
        where = tuple(slice(a, a + n, s) for a, n, s in zip(starts, spans, sizes.stride, strict=True))
        cells = padded[(..., *where)].reshape(sizes.batch, sizes.groups, sizes.channels, -1)
        sums[(..., *tap)] = np.einsum("ngcp,ngfp->gfc", cells, grads)
        magnitudes[(..., *tap)] = np.einsum("ngcp,ngfp->gfc", abs(cells), abs(grads))
    whole = (sizes.out_channels, sizes.channels, *sizes.kernel)
    return sums.reshape(whole), magnitudes.reshape(whole)


def plain_input_sums(sizes: Sizes, w: Any, dout: Any) -> tuple[Any, Any]:
    """Return the gradient of the input in float64, tap by tap, and the sums of the magnitudes."""
    sides = zip(sizes.before, sizes.size, sizes.out, sizes.stride, sizes.kernel, sizes.dilation, strict=True)
    reached = [max(b + size, (o - 1) * s + (k - 1) * d + 1) for b, size, o, s, k, d in sides]
    spans = [step * (out - 1) + 1 for out, step in zip(sizes.out, sizes.stride, strict=True)]
    grads = dout.astype(np.float64).reshape(sizes.batch, sizes.groups, sizes.filters, *sizes.out)
    filters = w.astype(np.float64).reshape(sizes.groups, sizes.filters, sizes.channels, *sizes.kernel)
    shape = (sizes.batch, sizes.groups, sizes.channels, *reached)
    sums, magnitudes = np.zeros(shape), np.zeros(shape)
    for tap in product(*map(range, sizes.kernel)):
        starts = [k * d for k, d in zip(tap, sizes.dilation, strict=True)]
        where = (..., *(slice(a, a + n, s) for a, n, s in zip(starts, spans, sizes.stride, strict=True)))
        numbers = filters[(..., *tap)]
        sums[where] += np.einsum("ngf...,gfc->ngc...", grads, numbers)
        magnitudes[where] += np.einsum("ngf...,gfc->ngc...", abs(grads), abs(numbers))
    inside = (..., *(slice(b, b + size) for b, size in zip(sizes.before, sizes.size, strict=True)))
    whole = (sizes.batch, sizes.in_channels, *sizes.size)
    return sums[inside].reshape(whole), magnitudes[inside].reshape(whole)


def check(family: ModuleType, target: Target, sizes: Sizes, random: Any, **options: Any) -> None:
    """Compare a call with plain sums: at most one rounding for each term of a run, for each run, and for the bias."""
    x = random.standard_normal((sizes.batch, sizes.in_channels, *sizes.size)).astype(np.float32)
    w = random.standard_normal((sizes.out_channels, sizes.channels, *sizes.kernel)).astype(np.float32)
    b = random.standard_normal(sizes.out_channels).astype(np.float32) if random.integers(2) else None
    out, flag = called(family, target, sizes, (x, w, b), **options)
    expected, magnitudes = plain_sums(sizes, x, w, b)
    terms = sizes.channels * sizes.taps
    # Runs end at whole channels or within one, so none has less than half of the most terms but the last of a channel.
    roundings = min(terms, RUN) + 2 * terms / RUN + sizes.channels * (sizes.taps > RUN) + 2
    error = abs(out - expected)
    assert flag == 0
    assert (error <= 1.01 * roundings * ROUNDING["float"] * magnitudes).all(), (sizes, options, error.max())
