"""Layers, operands with many kinds of contents, and their exact reproducible results from `rational`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.rational import DTYPES, PARTS, Layer, array_of, kept, part_format

import portconv

PRECISE: dict[str, Any] = {"precision": "reproducible"}
RESULTS = ("out", "dx", "dw", "db")


class Case(NamedTuple):
    """A call's options as a user gives them, and the layer that they mean, worked out by hand."""

    layer: Layer
    options: dict[str, Any]


def one_dimension(x, w, stride=1, pads=(0, 0), dilation=1, groups=1, mode="zeros") -> Layer:
    """Return a layer of one spatial dimension."""
    return Layer(x, w, (stride,), (pads,), (dilation,), groups, mode)


MIXED = Case(
    Layer((2, 4, 5, 4), (4, 2, 3, 2), (2, 1), ((1, 2), (0, 1)), (1, 2), 2),
    {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "dilation": (1, 2), "groups": 2},
)
ONES = ((1, 1), (1, 1))
CASES = {
    "1d": Case(one_dimension((2, 3, 7), (4, 3, 3)), {}),
    "1d gaps": Case(one_dimension((2, 2, 11), (3, 2, 2), 5, (2, 2), 3), {"stride": 5, "padding": 2, "dilation": 3}),
    "1d one cell": Case(one_dimension((1, 1, 1), (1, 1, 1)), {}),
    # 9 cells at stride 2 make 5 outputs, which read 2 * 4 + 4 = 12 cells: 3 more.
    "1d same": Case(one_dimension((2, 2, 9), (3, 2, 4), 2, (1, 2)), {"stride": 2, "padding": "same"}),
    "1d same lower": Case(one_dimension((2, 2, 9), (3, 2, 4), 2, (2, 1)), {"stride": 2, "padding": "same_lower"}),
    "1d full": Case(one_dimension((2, 2, 4), (3, 2, 3), 1, (4, 4), 2), {"padding": "full", "dilation": 2}),
    "1d valid": Case(one_dimension((2, 2, 6), (3, 2, 3)), {"padding": "valid"}),
    "2d": Case(Layer((2, 3, 5, 4), (4, 3, 3, 3), (1, 1), ONES, (1, 1)), {"padding": 1}),
    "2d mixed": MIXED,
    "2d depthwise": Case(
        Layer((2, 3, 5, 4), (6, 1, 3, 2), (1, 2), ((2, 2), (0, 0)), (1, 1), 3),
        {"stride": (1, 2), "padding": (2, 0), "groups": 3},
    ),
    "2d pointwise": Case(Layer((2, 4, 3, 4), (3, 4, 1, 1), (1, 1), ((0, 0),) * 2, (1, 1)), {}),
    "3d": Case(
        Layer((1, 2, 3, 3, 4), (2, 2, 2, 3, 2), (1, 2, 1), ((0, 0), (1, 1), (1, 1)), (1, 1, 2)),
        {"stride": (1, 2, 1), "padding": (0, 1, 1), "dilation": (1, 1, 2)},
    ),
    "no samples": Case(one_dimension((0, 2, 5), (3, 2, 2)), {}),
    "no cells": Case(one_dimension((2, 2, 0), (3, 2, 2), 1, (2, 1)), {"padding": ((2, 1),)}),
}
for _mode in ("reflect", "replicate", "circular"):
    CASES[f"1d {_mode} beyond"] = Case(
        one_dimension((2, 2, 3), (2, 2, 4), 2, (5, 7), 1, 1, _mode), {"stride": 2, "padding": ((5, 7),)}
    )
    CASES[f"2d {_mode}"] = Case(
        replace(MIXED.layer, x=(2, 4, 4, 3), pads=((3, 1), (2, 2)), mode=_mode),
        {**MIXED.options, "padding": ((3, 1), (2, 2))},
    )

# The layer of a transposed convolution is the convolution whose adjoint it is: its x has the shape of the output.
TRANSPOSED = {
    "1d": Case(one_dimension((2, 2, 6), (3, 2, 3)), {}),
    "1d gaps": Case(one_dimension((2, 3, 12), (2, 3, 2), 5), {"stride": 5}),
    # No tap reaches the last cell: zeros, and the bias.
    "1d beyond": Case(
        one_dimension((1, 2, 9), (2, 2, 2), 4, (0, -3)), {"stride": 4, "padding": 0, "output_padding": 3}
    ),
    "1d output padding": Case(
        one_dimension((2, 2, 9), (2, 2, 2), 3, (0, -1)), {"stride": 3, "padding": ((0, 1),), "output_padding": 2}
    ),
    "2d groups": Case(
        Layer((2, 4, 6, 4), (4, 2, 3, 3), (2, 2), ((1, 0), (1, 0)), (1, 1), 2),
        {"stride": 2, "groups": 2, "output_padding": 1, "padding": 1},
    ),
    "2d depthwise": Case(
        Layer((2, 3, 6, 7), (3, 1, 2, 3), (1, 1), ((0, 0), (0, 0)), (2, 2), 3), {"groups": 3, "dilation": 2}
    ),
    "3d": Case(
        Layer((1, 2, 3, 6, 4), (2, 2, 2, 3, 3), (1, 2, 1), ((0, 0), (1, 0), (1, 1)), (1, 1, 1)),
        {"stride": (1, 2, 1), "padding": (0, 1, 1), "output_padding": (0, 1, 0)},
    ),
}

CONTENTS = ("random", "wide", "outliers", "cancelling", "ties", "tiny", "subnormal", "huge", "special")


def numbers(rng, form, shape, low, high) -> np.ndarray:
    """Return bit patterns of normal numbers of random signs and fractions, with exponents from `low` to `high`."""
    bias = 2 ** (form.exponent - 1) - 1
    exponents = np.clip(rng.integers(low, high, shape, endpoint=True) + bias, 1, 2 * bias)
    signs, fractions = rng.integers(0, 2, shape), rng.integers(0, 2**form.fraction, shape)
    return (signs.astype("u8") << (form.bits - 1)) + (exponents.astype("u8") << form.fraction) + fractions.astype("u8")


def tied(rng, form, shape, bits) -> np.ndarray:
    """Return bit patterns of numbers of one or two bits, with exponents for which sums are often halfway cases."""
    powers = rng.choice((0, 0, -1, 1, -form.fraction - 1, -form.fraction - 2, -bits, -bits - 1, 1 - bits), shape)
    drawn = numbers(rng, form, shape, powers, powers)
    fractions = rng.choice((0, 0, 1 << (form.fraction - 1), 1, 2**form.fraction - 1), shape).astype("u8")
    return (drawn >> form.fraction << form.fraction) + fractions


def sprinkled(rng, patterns, choices, rate) -> np.ndarray:
    """Return the patterns, each replaced with probability `rate` by one of `choices`."""
    return np.where(rng.random(patterns.shape) < rate, rng.choice(np.array(choices, "u8"), patterns.shape), patterns)


def operand(rng, name, shape, contents, role) -> np.ndarray:
    """Return the operand of a role (x, w, b or dout), of one kind of contents, made from bit patterns."""
    form = part_format(name)
    least = 2 - 2 ** (form.exponent - 1)
    sign = 1 << (form.bits - 1)
    low, high = {
        "wide": (least, 1 - least),
        "tiny": (least // 2 - 2, least // 2 + 1),
        "subnormal": (-1, 3) if role == "w" else (least - 1, least + 1),
        "huge": (-least // 2 - 2, -least // 2 + 1),
    }.get(contents, (-4, 1))
    if role == "b" and contents in ("tiny", "huge"):
        low, high = (least, least + 1) if contents == "tiny" else (-least, 1 - least)
    patterns = []
    for _ in range(2 if name in PARTS else 1):
        part = numbers(rng, form, shape, low, high)
        if contents == "ties" and part.size:
            part = tied(rng, form, shape, kept(name))
        if contents in ("tiny", "subnormal", "special"):
            part = sprinkled(rng, part, [0, sign, 1, sign + 3, 2**form.fraction - 1, sign + 2**form.fraction], 0.2)
        if contents == "special":
            infinity = form.infinity
            unusual = [infinity, sign + infinity, infinity + 5, sign + form.nan]
            part = sprinkled(rng, part, unusual, 0.03)
            if role != "b" and part.size:
                part.flat[rng.integers(part.size)] = rng.choice(np.array(unusual, "u8"))
        if contents == "outliers" and part.size and role in ("x", "w", "dout"):
            # One channel is 2**20 times the others, if that is in range, and its filters are as much smaller.
            factor = min(20, -least // 2) << form.fraction
            channels = part[:, 0] if role == "x" or role == "w" else part[:, -1]
            channels += np.uint64(factor) if role != "w" else np.uint64(2**64 - factor)
        if contents == "cancelling":
            part = cancelling(rng, part, sign, role)
        patterns.append(part)
    return array_of(patterns, shape, name)


def cancelling(rng, part, sign, role) -> np.ndarray:
    """Return patterns of which pairs of samples, channels and filters cancel: opposite signs, and maybe another bit."""
    last = rng.integers(0, 2, part.shape).astype("u8")
    for axis in range(min(2, part.ndim)):
        one, other = ([slice(None)] * part.ndim for _ in range(2))
        even = part.shape[axis] // 2 * 2
        one[axis], other[axis] = slice(0, even, 2), slice(1, even, 2)
        part[tuple(other)] = part[tuple(one)] ^ np.uint64(sign if role == "w" or (role, axis) == ("dout", 0) else 0)
    return part ^ last


@cache
def operands(layer: Layer, names: tuple[str, ...], contents: str, transposed: bool = False, seed: int = 0) -> Any:
    """Return x, w, b and dout in dtypes of these names."""
    rng = np.random.default_rng(seed)
    x, dout = (layer.out, layer.x) if transposed else (layer.x, layer.out)
    along = zip(("x", "w", "b", "dout"), names, (x, layer.w, dout[1:2], dout), strict=True)
    arrays = tuple(operand(rng, name, shape, contents, role) for role, name, shape in along)
    for array in arrays:
        array.flags.writeable = False
    return arrays


@cache
def exact_results(layer: Layer, names: tuple[str, ...], contents: str, transposed: bool = False, seed: int = 0) -> Any:
    """Return the results that the definition gives for `operands` of the same arguments."""
    given = operands(layer, names, contents, transposed, seed)
    return (layer.all_transposed if transposed else layer.all)(*given)


def skip_without(target, *names):
    """Skip the test if the device lacks one of these dtypes, or float64, which every call computes in."""
    like = target.array(np.zeros(1, "float32"))
    for name in ("float64", *names):
        if not target.backend.holds(name, like):
            pytest.skip(f"{target.backend.name} has no {name} here")
    if "bfloat16" in names:
        pytest.importorskip("ml_dtypes", reason="ml_dtypes, NumPy's bfloat16, is not installed")


def skip_most_on_jax(target, *few):
    """Skip the test on JAX, unless there are conditions and all of them hold."""
    if target.backend.name == "jax" and not (few and all(few)):
        pytest.skip(f"{target.backend.name} compiles each shape anew, which takes minutes for as many as these")


def array_on(target, array: np.ndarray) -> Any:
    """Return the same numbers as an array of the target's library, on its device."""
    name = array.dtype.name
    if target.backend.name == "numpy":
        return target.array(array)
    # PyTorch does not take the bfloat16 of ml_dtypes; from float32 it makes the same numbers, also subnormal ones.
    source = array.astype("float32") if name == "bfloat16" and target.backend.name == "torch" else array
    return target.backend.asarray(np.array(source), dtype=name, device=target.device)


def in_layout(array: Any, last: bool, alone: bool) -> Any:
    """Put channels `last`, and take one sample `alone`, of a batch with channels first."""
    array = np.ascontiguousarray(np.moveaxis(array, 1, -1)) if last else array
    return array[0] if alone else array


def forward_and_backward(target, given, options, transposed=False, last=False, alone=False) -> dict[str, np.ndarray]:
    """Compute all results of a call on a target; return them as NumPy arrays, batches with channels first."""
    x, w, b, dout = given
    arrays = [
        array_on(target, in_layout(x, last, alone)),
        array_on(target, w),
        None if b is None else array_on(target, b),
    ]
    forward, backward = (
        (portconv.conv_transpose_forward, portconv.conv_transpose_backward)
        if transposed
        else (portconv.conv_forward, portconv.conv_backward)
    )
    layout = {"data_format": "channels_last"} if last else {}
    with np.errstate(over="ignore", invalid="ignore"):  # magnitudes are wide, and some results too large
        out, cache = forward(*arrays, **{**PRECISE, **options, **layout})
        grads = backward(array_on(target, in_layout(dout, last, alone)), cache)
    results = dict(zip(RESULTS, (out, *grads), strict=True))
    if b is None:
        assert results.pop("db") is None
    for name, result in results.items():
        assert target.owns(result), name
        array = target.numpy(result)
        if name in ("out", "dx"):
            array = array[None] if alone else array
            array = np.moveaxis(array, -1, 1) if last else array
        results[name] = np.ascontiguousarray(array)
    return results


def patterns_of(array: np.ndarray) -> np.ndarray:
    return array.reshape(*array.shape, 1).view(f"u{part_format(array.dtype.name).bits // 8}")


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Assert that every bit of every result is the expected one; the message shows the first that differ."""
    assert {*found} == {*expected}
    for name, truth in expected.items():
        result = found[name]
        assert (result.dtype, result.shape) == (truth.dtype, truth.shape), name
        one, other = patterns_of(result), patterns_of(truth)
        wrong = np.argwhere(one != other)
        few = [(tuple(at.tolist()), hex(one[tuple(at)]), hex(other[tuple(at)])) for at in wrong[:4]]
        assert not len(wrong), f"{name}: {len(wrong)} of {one.size} differ: (where, found, expected) {few}"


every_dtype = pytest.mark.parametrize("name", DTYPES)


# --- The definition itself ---
