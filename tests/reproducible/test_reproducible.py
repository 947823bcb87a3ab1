"""The precision "reproducible": bit for bit what its definition says, whatever computes it.

`rational` is that definition in whole numbers, written without a look at what it is to check.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.rational import FORMATS, PARTS, Layer, array_of, numpy_dtype, part_format, promoted
from support.reproducible_cases import (
    CASES,
    CONTENTS,
    MIXED,
    ONES,
    PRECISE,
    RESULTS,
    TRANSPOSED,
    Case,
    array_on,
    assert_same_bits,
    every_dtype,
    exact_results,
    forward_and_backward,
    one_dimension,
    operands,
    skip_most_on_jax,
    skip_without,
)
from threadpoolctl import threadpool_info

import portconv

# NumPy warns of results that are too large or nan: tests/test_warnings.py says of which.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered in add:RuntimeWarning")


class Sum(NamedTuple):
    """One output of one window: x and w, its bias, and what it is, all in one dtype."""

    name: str
    x: list[float]
    w: list[float]
    out: float
    b: float | None = None


LEAST = {name: 2.0 ** (2 - 2 ** (form.exponent - 1)) for name, form in FORMATS.items()}
MOST = {name: 2.0 ** (2 ** (form.exponent - 1) - 1) * (2 - 2.0**-form.fraction) for name, form in FORMATS.items()}
SUMS = {
    # Half a last place: to the even neighbour, below and above.
    "tie down": Sum("float32", [1, 2.0**-24], [1, 1], 1),
    "tie up": Sum("float32", [1 + 2.0**-23, 2.0**-24], [1, 1], 1 + 2.0**-22),
    "tie in float64": Sum("float64", [1 + 2.0**-52, 2.0**-53], [1, 1], 1 + 2.0**-51),
    "over a tie": Sum("float32", [1, 2.0**-24, 2.0**-38], [1, 1, 1], 1 + 2.0**-23),
    # 2**-38 would not survive on the way through float32, and 1 + 2**-11 is a tie.
    "once, not by way of float32": Sum("float16", [1, 2.0**-11, 2.0**-14], [1, 1, 2.0**-14], 1 + 2.0**-10),
    "once in bfloat16": Sum("bfloat16", [1, 2.0**-8, 2.0**-30], [1, 1, 1], 1 + 2.0**-7),
    # 40 bits below 1, of which one is the sign: steps of 2**-39.
    "quantised tie down": Sum("float32", [1, 2.0**-40], [0, 1], 0),
    "quantised tie up": Sum("float32", [1, 3 * 2.0**-40], [0, 1], 2.0**-38),
    "quantised over a tie": Sum("float32", [1, 2.0**-40 * (1 + 2.0**-23)], [0, 1], 2.0**-39),
    "quantised negative": Sum("float32", [1, -3 * 2.0**-40], [0, 1], -(2.0**-38)),
    "quantised filters": Sum("bfloat16", [0, 1], [1, 3 * 2.0**-40], 2.0**-38),
    "quantised in float64": Sum("float64", [1, 3 * 2.0**-60], [0, 1], 2.0**-58),
    "quantised tie in float64": Sum("float64", [1, 2.0**-60], [0, 1], 0),
    # The next power of two above what is a hair larger than one.
    "scale": Sum("float32", [1 + 2.0**-23, 2.0**-39], [0, 1], 0),
    "scale of a power": Sum("float32", [-1, 2.0**-39], [0, 1], 2.0**-39),
    "all of float16": Sum("float16", [2.0**15, 2.0**-14 * (1 + 2.0**-10)], [0, 1], 2.0**-14 * (1 + 2.0**-10)),
    "cancels": Sum("float32", [1e30, 1, -1e30], [1, 1, 1], 0),
    "cancels but for what is kept": Sum("float32", [2.0**30, 1, -(2.0**30)], [1, 1, 1], 1),
    "overflows on the way": Sum("float32", [MOST["float32"], 2.0**127, -MOST["float32"]], [2, 1, 2], 2.0**127),
    "overflows": Sum("float32", [MOST["float32"], 2.0**103], [1, 1], math.inf),
    "does not overflow": Sum("float32", [MOST["float32"], 2.0**102 * 1.5], [1, 1], MOST["float32"]),
    "overflows in float64": Sum("float64", [-MOST["float64"], -MOST["float64"]], [1, 1], -math.inf),
    "overflows in float16": Sum("float16", [MOST["float16"], 16], [1, 1], math.inf),
    "the next below in float16": Sum("float16", [MOST["float16"], 15.9921875], [1, 1], MOST["float16"]),
    # A hair below the smallest normal number: half a subnormal step below it is a tie, and that number even.
    "rounded up to normal": Sum("float32", [LEAST["float32"] * (1 + 2.0**-23)], [1 - 2.0**-23], LEAST["float32"]),
    "tied up to normal": Sum("float32", [LEAST["float32"]], [1 - 2.0**-24], LEAST["float32"]),
    "tied up to normal in float64": Sum("float64", [-LEAST["float64"]], [1 - 2.0**-53], -LEAST["float64"]),
    "tied up to normal in float16": Sum("float16", [LEAST["float16"]], [1 - 2.0**-11], LEAST["float16"]),
    "subnormal": Sum("float32", [LEAST["float32"] * (1 + 2.0**-23)], [1 - 2.0**-22], 0),
    "subnormal and negative": Sum("float64", [-LEAST["float64"]], [0.75], 0),
    "far below": Sum("float64", [1e-200], [-1e-200], 0),
    "of subnormal numbers": Sum("float32", [LEAST["float32"] * (1 - 2.0**-23)], [2.0**60], 0),
    "of subnormal filters": Sum("float16", [2.0**15], [2.0**-15], 0),
    "of a negative zero": Sum("float32", [-0.0], [1], 0),
    "bias after rounding": Sum("float32", [1, 2.0**-24], [1, 1], 1, 2.0**-24),
    "bias": Sum("float32", [1, 2.0**-24], [1, 1], 1 + 2.0**-23, 1.5 * 2.0**-24),
    "bias to subnormal": Sum("float32", [LEAST["float32"] * 1.5], [1], 0, -LEAST["float32"]),
    "subnormal bias": Sum("float32", [LEAST["float32"] * 1.5], [1], LEAST["float32"] * 1.5, -LEAST["float32"] / 2),
    "bias of a negative zero": Sum("float64", [0], [1], 0, -0.0),
    "bias that cancels": Sum("float64", [-3], [1], 0, 3),
    "bias that overflows": Sum("float16", [MOST["float16"]], [1], math.inf, 16),
    "infinite bias": Sum("float32", [1], [1], -math.inf, -math.inf),
    "infinite bias beside an infinity": Sum("float32", [math.inf], [1], math.nan, -math.inf),
    "bias is nan": Sum("float64", [1], [1], math.nan, math.nan),
    "infinite": Sum("float32", [math.inf, 1], [-2, 1], -math.inf),
    "infinite beside what overflows": Sum("float32", [math.inf, -MOST["float32"]], [1, MOST["float32"]], math.inf),
    "infinite twice": Sum("float32", [math.inf, -math.inf], [1, -1], math.inf),
    "infinities of both signs": Sum("float32", [math.inf, math.inf], [1, -1], math.nan),
    "infinite times zero": Sum("float32", [math.inf, 1], [-0.0, 1], math.nan),
    "infinite times subnormal": Sum("float32", [math.inf], [2.0**-130], math.nan),
    # Quantised, it would be 0; it is not what is infinite times it.
    "infinite times what is quantised away": Sum("float32", [1, math.inf], [1, -(2.0**-60)], -math.inf),
    "infinite filter": Sum("bfloat16", [1, 2.0**-60], [1, -math.inf], -math.inf),
    "nan": Sum("float16", [math.nan, 1], [0, math.inf], math.nan),
}


def one_sum(given: Sum) -> tuple[Any, ...]:
    dtype = numpy_dtype(given.name)
    arrays = [np.array(a, "float64").reshape(1, 1, -1).astype(dtype) for a in (given.x, given.w, given.out)]
    b = None if given.b is None else np.array([given.b], "float64").astype(dtype)
    out = arrays[2]
    return (*arrays[:2], b), array_of([[part_format(given.name).nan]], out.shape, given.name) if np.isnan(out) else out


def scales_by_hand() -> Iterator[tuple[Layer, dict[str, Any], tuple[Any, ...], str, list[float]]]:
    """Layers, options, operands, and one of the results, where half a step of the scale 1 is beside what sets it."""
    half, more = 2.0**-40, 2.0**-38
    one = one_dimension((1, 1, 3), (1, 1, 2), 2)
    x, w, b, dout = ([[[half, more, 1]]], [[[1, 1]]], [0], [[[1]]])
    # No window reads the cell of the 1, whether there is a window for it or a stride passes it by.
    yield one, {"stride": 2}, (x, w, b, dout), "out", [more]
    yield one, {"stride": 2}, ([[[half, more, 0]]], w, b, dout), "out", [half + more]
    # A sample, a group and a filter have scales of their own, channels of a group have not.
    two = one_dimension((2, 4, 1), (2, 2, 1), groups=2)
    x, w = [[[1], [half], [half], [0]], [[half], [0], [0], [half]]], [[[1], [1]], [[1], [1]]]
    yield two, {"groups": 2}, (x, w, [0, 0], np.ones((2, 2, 1))), "out", [1, half, half, half]
    x, w = np.ones((2, 4, 1)), [[[1], [half]], [[half], [0]]]
    yield two, {"groups": 2}, (x, w, [0, 0], np.ones((2, 2, 1))), "out", [1, half, 1, half]
    # Of an input gradient, filters of an input channel, all of its taps; and filters of a group, of a sample.
    three = one_dimension((1, 2, 2), (2, 2, 2))
    w = [[[1, half], [half, half]], [[half, half], [half, 0]]]
    yield three, {}, (np.ones((1, 2, 2)), w, [0, 0], [[[1], [1]]]), "dx", [1, 0, 2 * half, half]
    yield three, {}, (np.ones((1, 2, 2)), np.ones((2, 2, 2)), [0, 0], [[[1], [half]]]), "dx", [1, 1, 1, 1]
    yield three, {}, (np.ones((1, 2, 2)), np.ones((2, 2, 2)), [0, 0], [[[0], [half]]]), "dx", [half] * 4
    # Of a weight gradient and of a bias's, a channel of all samples.
    four = one_dimension((2, 2, 1), (2, 2, 1))
    x, dout = [[[1], [half]], [[half], [0]]], [[[0], [1]], [[1], [0]]]
    yield four, {}, (x, np.ones((2, 2, 1)), [0, 0], dout), "dw", [0, 0, 1, half]
    yield four, {}, (np.ones((2, 2, 1)), np.ones((2, 2, 1)), [0, 0], x), "dw", [1, 1, half, half]
    yield four, {}, (np.ones((2, 2, 1)), np.ones((2, 2, 1)), [0, 0], x), "db", [1, half]


def test_scales_by_hand(target):
    skip_without(target)
    skip_most_on_jax(target)
    for layer, options, given, name, values in scales_by_hand():
        arrays = [np.asarray(a, "float32") for a in given]
        expected = layer.all(*arrays)
        assert expected[name].ravel().tolist() == values
        assert_same_bits(forward_and_backward(target, arrays, options), expected)


@pytest.mark.parametrize("wide", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("narrow", ["x", "w", "b", "dout"])
def test_float16_beside_a_wider_dtype_keeps_its_subnormal_numbers(target, narrow, wide):
    skip_without(target, wide)
    skip_most_on_jax(target)
    if not hasattr(target.backend.xp, "float16"):
        pytest.skip(f"{target.backend.name} has no float16")
    layer, small = one_dimension((1, 1, 3), (1, 1, 1)), 2.0**-15  # half of float16's smallest normal number
    shapes = {"x": layer.x, "w": layer.w, "b": (1,), "dout": layer.out}
    ones = {name: np.full(shape, name != "b", wide) for name, shape in shapes.items()}
    given = {**ones, narrow: np.full(shapes[narrow], small, "float16")}
    expected = layer.all(*given.values())
    if narrow != "dout":
        assert expected["out"].ravel().tolist() == [small if narrow != "b" else 1 + small] * 3
    assert_same_bits(forward_and_backward(target, [*given.values()], {}), expected)
    arrays = [target.array(array) for array in [*given.values()][:3]]
    bound = target.numpy(portconv.error_bound(*arrays, precision="reproducible"))
    # Nothing is lost: each result is exact but for one rounding, 2**-23 of it at most, twice with a bias.
    assert np.all(bound < 2.0**-21 * np.abs(expected["out"]))


def test_parts_of_complex_numbers_share_a_scale_and_no_part_is_left_out(target):
    skip_without(target, "complex64")
    skip_most_on_jax(target)
    half = 2.0**-40
    layer = one_dimension((1, 1, 1), (1, 1, 1))
    x, w, b = np.full((1, 1, 1), half + 1j, "complex64"), np.ones((1, 1, 1), "float32"), np.zeros(1, "float32")
    dout = x
    expected = layer.all(x, w, b, dout)
    # The real part is half a step; what is real beside complex numbers has no other.
    assert {name: array.item() for name, array in expected.items()} == {"out": 1j, "dx": 1j, "dw": 1, "db": 0}
    assert_same_bits(forward_and_backward(target, (x, w, b, dout), {}), expected)


@pytest.mark.parametrize("given", SUMS.values(), ids=SUMS)
def test_the_definition_by_hand(given):
    pytest.importorskip("ml_dtypes", reason="ml_dtypes, NumPy's bfloat16, is not installed")
    (x, w, b), out = one_sum(given)
    assert_same_bits({"out": one_dimension(x.shape, w.shape).forward(x, w, b)}, {"out": out})


def test_sums_by_hand(target):
    # All in one test, for JAX: the windows have three lengths.
    skip_without(target)
    wrong = {}
    for label, given in SUMS.items():
        if not target.backend.holds(given.name, target.array(np.zeros(1, "float32"))):
            continue
        if given.name == "bfloat16":
            pytest.importorskip("ml_dtypes", reason="ml_dtypes, NumPy's bfloat16, is not installed")
        arrays, out = one_sum(given)
        found = portconv.conv(*(None if a is None else array_on(target, a) for a in arrays), **PRECISE)
        try:
            assert_same_bits({"out": target.numpy(found)}, {"out": out})
        except AssertionError as error:
            wrong[label] = str(error)
    assert not wrong


# --- What is computed, bit for bit ---


@every_dtype
@pytest.mark.parametrize("case", CASES)
def test_every_layer(target, case, name):
    skip_without(target, name)
    skip_most_on_jax(target, (case, name) in (("2d mixed", "float32"), ("2d reflect", "complex128")))
    layer, options = CASES[case]
    options = {**options, "padding_mode": layer.mode}
    for i, contents in enumerate(("random", "special")):
        given, expected = (of(layer, (name,) * 4, contents) for of in (operands, exact_results))
        assert_same_bits(forward_and_backward(target, given, options, last=i == 1), expected)


@every_dtype
@pytest.mark.parametrize("contents", CONTENTS)
def test_every_kind_of_contents(target, contents, name):
    skip_without(target, name)
    skip_most_on_jax(target, name in ("float32", "bfloat16"))
    layer, options = MIXED
    for seed in range(1, 4 if target.backend.name == "numpy" else 2):
        given, expected = (of(layer, (name,) * 4, contents, seed=seed) for of in (operands, exact_results))
        assert_same_bits(forward_and_backward(target, given, options), expected)


@every_dtype
@pytest.mark.parametrize("case", TRANSPOSED)
def test_every_transposed_layer(target, case, name):
    skip_without(target, name)
    skip_most_on_jax(target, case == "2d groups", name == "float32")
    layer, options = TRANSPOSED[case]
    every = ("special", "wide", "random", "cancelling")
    for i, contents in enumerate(every if target.backend.name == "numpy" else every[:2]):
        given, expected = (of(layer, (name,) * 4, contents, True) for of in (operands, exact_results))
        assert_same_bits(forward_and_backward(target, given, options, transposed=True, last=i % 2 == 1), expected)


@pytest.mark.parametrize("name", ["float32", "complex128"])
@pytest.mark.parametrize("transposed", [False, True])
def test_one_sample_without_a_batch_axis_or_a_bias(target, name, transposed):
    skip_without(target, name)
    skip_most_on_jax(target)
    layer, options = TRANSPOSED["2d groups"] if transposed else MIXED
    layer = replace(layer, x=(1, *layer.x[1:]))
    x, w, _, dout = operands(layer, (name,) * 4, "random", transposed)
    expected = (layer.all_transposed if transposed else layer.all)(x, w, None, dout)
    for last in (False, True):
        assert_same_bits(
            forward_and_backward(target, (x, w, None, dout), options, transposed, last, alone=True), expected
        )


MIXTURES = [
    ("float16", "float32", "float32", "float32"),
    ("float32", "float16", "float16", "float32"),
    ("bfloat16", "float32", "bfloat16", "bfloat16"),
    ("bfloat16", "float16", "float32", "float32"),
    ("float32", "float64", "float32", "float32"),
    ("float64", "float32", "float32", "float64"),
    ("float32", "float32", "float64", "float32"),
    ("float32", "float32", "float32", "float64"),
    ("float32", "complex64", "float32", "complex64"),
    ("complex64", "float32", "float32", "float32"),
    ("complex64", "float64", "complex64", "float32"),
    ("float64", "complex64", "float16", "complex128"),
    ("float16", "complex64", "complex64", "complex64"),
]


def promotes(target, *names):
    """Skip where the library does not promote these dtypes to what NumPy and others do."""
    arrays = [array_on(target, np.zeros(1, numpy_dtype(name))) for name in names]
    try:
        found = target.backend.dtype_name(target.backend.xp.result_type(*(a.dtype for a in arrays)))
    except (TypeError, RuntimeError):
        found = "nothing"
    if found != promoted(*names):
        pytest.skip(f"{target.backend.name} promotes {', '.join(names)} to {found}")


@pytest.mark.parametrize("names", MIXTURES, ids="-".join)
def test_operands_of_several_dtypes(target, names):
    skip_without(target, *names)
    skip_most_on_jax(target, names == MIXTURES[0])
    promotes(target, *names)
    promotes(target, *names[:3])
    for transposed, (layer, options) in ((False, MIXED), (True, TRANSPOSED["2d groups"])):
        for contents in ("random", "special", "subnormal", "wide"):
            given, expected = (of(layer, names, contents, transposed) for of in (operands, exact_results))
            assert_same_bits(forward_and_backward(target, given, options, transposed), expected)


@pytest.mark.parametrize(
    "names", [("float32",) * 2, ("complex128",) * 2, ("float64", "float32"), ("float32", "complex64")], ids="-".join
)
def test_gradients_by_themselves(target, names):
    skip_without(target, *names)
    skip_most_on_jax(target, names == ("float32", "float32"))
    layer, options = CASES["2d circular"]
    options = {**options, "padding_mode": layer.mode}
    own, other = names
    for contents in ("random", "special"):
        x, w, _, dout = operands(layer, (other, other, other, own), contents)
        arrays = [array_on(target, a) for a in (x, w, dout)]
        dx = portconv.conv_input_grad(arrays[2], arrays[1], layer.x, **options, **PRECISE)
        dw = portconv.conv_weight_grad(arrays[2], arrays[0], layer.w, **options, **PRECISE)
        found = {"dx": target.numpy(dx), "dw": target.numpy(dw)}
        assert_same_bits(found, {"dx": layer.input_grad(dout, w), "dw": layer.weight_grad(dout, x)})


@pytest.mark.parametrize("name", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("role", ["x", "w", "b", "dout"])
def test_what_is_not_finite_in_one_operand_alone(target, role, name):
    skip_without(target, name)
    skip_most_on_jax(target, name == "float32")
    for transposed, (layer, options) in ((False, MIXED), (False, CASES["2d reflect"]), (True, TRANSPOSED["2d groups"])):
        usual, special = (operands(layer, (name,) * 4, kind, transposed, 5) for kind in ("random", "special"))
        at = ("x", "w", "b", "dout").index(role)
        given = (*usual[:at], special[at], *usual[at + 1 :])
        assert not all(np.all(np.isfinite(a)) for a in given) or role == "b"
        expected = (layer.all_transposed if transposed else layer.all)(*given)
        mode = {} if transposed else {"padding_mode": layer.mode}
        assert_same_bits(forward_and_backward(target, given, {**options, **mode}, transposed), expected)


def test_what_is_not_finite_changes_no_other_output(target):
    # Far larger than all else, it would move the scale of the others, which share its sample, filter and channels.
    skip_without(target)
    skip_most_on_jax(target)
    layer, options = CASES["2d"]
    x, w, b, dout = operands(layer, ("float32",) * 4, "random")
    before = forward_and_backward(target, (x, w, b, dout), options)
    for value in (math.nan, -math.inf):
        changed = [a.copy() for a in (x, w, b, dout)]
        changed[0][1, 2, 3, 3] = changed[3][0, 1, 0, 0] = value
        after = forward_and_backward(target, changed, options)
        read = {name: ~np.isfinite(after[name]) for name in before}
        assert read["out"][1, :, 2:, 2:].all()
        assert read["dx"][0, :, :2, :2].all()
        assert read["out"].sum() == 4 * 3 * 2
        assert read["dx"].sum() == 3 * 2 * 2
        assert read["db"].tolist() == [False, True, False, False]
        zeroed = [np.where(np.isfinite(a), a, np.float32(0)) for a in changed]
        for name, expected in layer.all(*zeroed).items():
            assert np.array_equal(after[name][~read[name]], expected[~read[name]]), name


def test_integers_are_what_they_are(target):
    skip_most_on_jax(target)
    rng = np.random.default_rng(0)
    layer, options = MIXED
    for name in ("int8", "int32", "uint16"):
        given = [
            rng.integers(np.iinfo(name).min, np.iinfo(name).max, shape, name, endpoint=True)
            for shape in (layer.x, layer.w, layer.w[:1], layer.out)
        ]
        arrays = [target.array(a) for a in given]
        found = []
        for precision in ("standard", "reproducible"):
            out, cache = portconv.conv_forward(*arrays[:3], precision=precision, **options)
            found.append((out, *portconv.conv_backward(arrays[3], cache)))
        for one, other in zip(*found, strict=True):
            assert one.dtype == other.dtype
            assert np.array_equal(target.numpy(one), target.numpy(other))


# --- Whatever computes it ---

WIDE = Case(
    Layer((3, 4, 12, 17), (6, 2, 3, 3), (1, 1), ((1, 1), (0, 2)), (1, 1), 2), {"padding": ((1, 1), (0, 2)), "groups": 2}
)
DEEP = Case(Layer((2, 5, 9, 8), (10, 1, 3, 3), (1, 1), ONES, (1, 1), 5), {"padding": 1, "groups": 5})


def serving(target, case: Case, given) -> Iterator[str]:
    """The algorithms that say they serve."""
    x, w, *_ = (array_on(target, a) for a in given)
    for name in ("auto", *portconv.algorithms()):
        try:
            portconv.explain(x, w, algorithm=name, **case.options, **PRECISE)
        except portconv.ConvValueError as error:
            assert str(error).startswith("algorithm: got ")  # noqa: PT017
            continue
        yield name


@pytest.mark.parametrize("name", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("case", [WIDE, DEEP], ids=["groups", "depthwise"])
def test_every_algorithm_that_serves(target, case, name):
    skip_without(target, name)
    skip_most_on_jax(target)
    served = []
    for contents in ("cancelling", "special"):
        given, expected = (of(case.layer, (name,) * 4, contents) for of in (operands, exact_results))
        for algorithm in serving(target, case, given):
            assert_same_bits(forward_and_backward(target, given, {**case.options, "algorithm": algorithm}), expected)
            served.append(algorithm)
    assert {"auto", "gemm", "direct"} <= {*served}
    assert case is WIDE or "depthwise" in served


@pytest.mark.parametrize("name", ["float32", "complex128"])
def test_threads_and_memory(target, name):
    skip_without(target, name)
    skip_most_on_jax(target)
    for layer, options in (WIDE, DEEP):
        given, expected = (of(layer, (name,) * 4, "wide") for of in (operands, exact_results))
        for threads in (1, 2):
            with portconv.num_threads(threads):
                assert_same_bits(forward_and_backward(target, given, options), expected)
        usual = portconv.explain(
            array_on(target, given[0]), array_on(target, given[1]), **options, **PRECISE
        ).workspace_bytes
        refused = served = 0
        for kibibytes in (1, 64, 96, 128, 192, 256, 512, 700, 1000, 1400):
            with portconv.workspace_limit(kibibytes << 10):
                try:
                    found = forward_and_backward(target, given, options)
                except portconv.ConvValueError as error:
                    # Less than any algorithm needs, which is not what is tested here.
                    assert str(error).startswith("workspace_limit: got ")  # noqa: PT017
                    refused += 1
                    continue
            served += kibibytes << 10 < usual
            assert_same_bits(found, expected)
        assert refused
        assert served


@pytest.mark.parametrize("name", ["float32", "complex128"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_sample_is_the_same_in_any_batch(target, name, transposed):
    skip_without(target, name)
    skip_most_on_jax(target)
    layer, options = TRANSPOSED["2d groups"] if transposed else WIDE
    x, w, b, dout = operands(layer, (name,) * 4, "wide", transposed)
    whole = forward_and_backward(target, (x, w, b, dout), options, transposed)
    batch = len(x)
    for chosen in ([0], [batch - 1], [1, 0, 1], [*range(batch)] * 4):
        part = forward_and_backward(target, (x[chosen], w, b, dout[chosen]), options, transposed)
        for one in ("out", "dx"):
            assert part[one].tobytes() == whole[one][chosen].tobytes(), one


# Of 40 bits, two slices of 20 add up exactly over 2**15 products or so, and of 60 three over 2**13: beyond, sums are
# cut, and what is added up there is as exact.
LONG = {"float32": 2**15, "float64": 2**13, "complex64": 2**14, "complex128": 2**12}


@cache
def long_operands(layer: Layer, name: str, contents: str) -> Any:
    if contents == "cancelling":
        return operands(layer, (name,) * 4, contents)
    # Every slice at its most, and all of one sign: the largest sums there are, and no last place that is even.
    shapes = (layer.x, layer.w, layer.w[:1], layer.out)
    return tuple(np.full(shape, 1 - np.finfo(name).epsneg, name) for shape in shapes)


@cache
def long_truth(layer: Layer, name: str, contents: str) -> Any:
    return layer.all(*long_operands(layer, name, contents))


@pytest.mark.parametrize("contents", ["cancelling", "largest"])
@pytest.mark.parametrize("name", LONG)
def test_long_sums(target, name, contents):
    skip_without(target, name)
    skip_most_on_jax(target)
    if name in PARTS and target.backend.name != "numpy":
        pytest.skip("complex numbers take the same steps, on NumPy")
    many = LONG[name]
    # Of a weight gradient over positions, of an output over channels, and of an input gradient over filters.
    positions = one_dimension((2, 2, many // 2 + 40), (2, 2, 2))
    channels = one_dimension((1, many // 2 + 7, 3), (1, many // 2 + 7, 3))
    filters = one_dimension((1, 1, 3), (many // 2 + 7, 1, 3))
    for layer in (positions, channels, filters):
        given, expected = (of(layer, name, contents) for of in (long_operands, long_truth))
        assert_same_bits(forward_and_backward(target, given, {}), expected)
        if target.backend.name == "numpy":
            # The sums may be cut in other ways, and the results are one.
            for threads in (1, 2):
                with portconv.num_threads(threads):
                    assert_same_bits(forward_and_backward(target, given, {"algorithm": "gemm"}), expected)


CHILD = """
import hashlib, json, sys
import numpy as np, portconv
from threadpoolctl import threadpool_info

rng = np.random.default_rng(7)
digest = hashlib.sha256()
for name in ("float32", "float64", "complex64"):
    for shape, kernel in (((3, 40, 20, 21), (24, 40, 3, 3)), ((2, 7, 64, 30), (9, 7, 2, 5))):
        x, w = ((rng.standard_normal(s) * 2.0 ** rng.integers(-30, 30, s)).astype(name) for s in (shape, kernel))
        out, cache = portconv.conv_forward(x, w, padding=1, precision="reproducible")
        for array in (out, *portconv.conv_backward(np.flip(out).copy(), cache)[:2]):
            digest.update(array.tobytes())
blas = [info.get("architecture", "") for info in threadpool_info() if info["user_api"] == "blas"]
print(json.dumps([digest.hexdigest(), blas]))
"""


def test_kernels_of_other_processors():
    kinds = {info["internal_api"] for info in threadpool_info() if info["user_api"] == "blas"}
    if "openblas" not in kinds or platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"the BLAS is {', '.join(kinds) or 'unknown'} on {platform.machine()}: no kernels to choose from")
    found = {}
    for core in (None, "Prescott", "Haswell", "SkylakeX"):
        environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
        environment |= {"OPENBLAS_CORETYPE": core} if core else {}
        done = subprocess.run([sys.executable, "-P", "-c", CHILD], capture_output=True, text=True, env=environment)
        if done.returncode < 0:
            continue  # this processor lacks instructions that those kernels have
        assert done.returncode == 0, done.stderr
        digest, architectures = json.loads(done.stdout)
        found[" ".join(architectures)] = digest
    if len(found) < 2:
        pytest.skip(f"OpenBLAS has no kernels but those of {', '.join(found)} here")
    assert len({*found.values()}) == 1, found


def test_devices_without_float64_are_refused_in_words(target):
    if target.backend.name != "array_api_strict":
        pytest.skip("this is about devices that array-api-strict alone has")
    strict = target.backend.xp
    info = strict.__array_namespace_info__()
    without = [device for device in info.devices() if "float64" not in info.dtypes(device=device)]
    if not without:
        pytest.skip("every device of this version of array-api-strict has float64")
    for device in without:
        x = strict.ones((1, 1, 4), dtype=strict.float32, device=device)
        for call in (
            lambda x: portconv.conv(x, x, **PRECISE),
            lambda x: portconv.conv_transpose(x, x, **PRECISE),
            lambda x: portconv.conv_input_grad(x[..., :1], x, (1, 1, 4), **PRECISE),
            lambda x: portconv.conv_weight_grad(x[..., :1], x, (1, 1, 4), **PRECISE),
        ):
            with pytest.raises(portconv.BackendError, match=r"precision.*float64"):
                call(x)


def test_any_layout_of_memory_and_byte_order():
    layer, options = MIXED
    for name in ("float32", "complex128", "float16"):
        given, expected = (of(layer, (name,) * 4, "special") for of in (operands, exact_results))
        for change in (
            lambda a: np.flip(np.flip(a).copy()),
            lambda a: np.repeat(a[..., None], 3, axis=-1)[..., 1],
            lambda a: np.ascontiguousarray(a.T).T,
            lambda a: a.astype(a.dtype.newbyteorder()),
        ):
            x, w, b, dout = map(change, given)
            out, cache = portconv.conv_forward(x, w, b, **options, **PRECISE)
            found = dict(zip(RESULTS, (out, *portconv.conv_backward(dout, cache)), strict=True))
            assert_same_bits({label: np.ascontiguousarray(array) for label, array in found.items()}, expected)


# --- Calls drawn at random ---


def layer_of(call) -> Layer:
    """What a call drawn by `strategies` means."""
    if not call.transposed:
        return Layer(call.x, call.w, call.stride, call.pads, call.dilation, call.groups, call.mode)
    along = zip(call.x[2:], call.stride, call.dilation, call.w[2:], call.pads, call.out[2:], strict=True)
    pads = tuple((lo, (n - 1) * s + d * (k - 1) + 1 - lo - out) for n, s, d, k, (lo, _), out in along)
    return Layer(call.out, call.w, call.stride, pads, call.dilation, call.groups)


@pytest.mark.parametrize("transposed", [False, True])
def test_calls_drawn_at_random(target, transposed):
    hypothesis = pytest.importorskip("hypothesis", reason="hypothesis, which draws the calls, is not installed")
    from support import strategies

    skip_without(target)
    skip_most_on_jax(target)
    many = strategies.EXAMPLES[strategies.PROFILE][0 if target.backend.name == "numpy" else 1]
    settings = hypothesis.settings(
        max_examples=2 * many,
        derandomize=strategies.SAME_AGAIN,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    drawn = strategies.transposed_calls if transposed else strategies.calls

    @settings
    @hypothesis.given(
        call=drawn(target, kinds=("real", "complex")),
        contents=hypothesis.strategies.sampled_from(CONTENTS),
    )
    def check(call, contents):
        names = tuple(call.dtypes.get(role, call.dtypes["x"]) for role in ("x", "w", "b", "dout"))
        for several in (names[:3], names):
            hypothesis.assume(strategies.common(target, *several) == promoted(*several))
        layer = layer_of(call)
        x, w, b, dout = operands.__wrapped__(layer, names, contents, transposed, call.seed)
        given = (x, w, b if "b" in call.dtypes else None, dout)
        expected = (layer.all_transposed if transposed else layer.all)(*given)
        options = {name: value for name, value in call.options.items() if name != "data_format"}
        assert_same_bits(
            forward_and_backward(target, given, options, transposed, call.channels_last, call.unbatched), expected
        )

    check()
