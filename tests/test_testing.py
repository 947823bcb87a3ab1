"""What other projects test themselves with: the comparison, the tolerances, and the plugin as a stranger has it."""

from __future__ import annotations

import doctest
import inspect
import os
import re
import shutil
import subprocess
import sys
import unittest
from fractions import Fraction
from importlib.metadata import distribution
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import portconv
from portconv import BackendError, ConvShapeError, ConvTypeError, ConvValueError, backends, testing
from portconv.testing import Target, assert_consistent, conv_grads_tolerance, gamma, sum_tolerance, targets

EXAMPLE = Path(__file__).parent / "example_project"
DOCUMENT = Path(__file__).parents[1] / "docs" / "testing.md"
TWICE = ["numpy", "numpy"]
ONE = np.float32(1)
ULP = np.finfo("float32").eps

SETTINGS = """
[tool.pytest.ini_options]
addopts = ["--strict-markers", "--strict-config"]
filterwarnings = ["error"]
"""


class Pair(NamedTuple):
    first: Any
    second: Any


# The comparison.


def given(*results):
    """A function that gives these results in turn, whatever it is called with."""
    turns = cycle(results)
    return lambda *arguments, **options: next(turns)


def fault(*results, **options):
    """What is wrong with these results of two runs on NumPy."""
    with pytest.raises(AssertionError) as caught:
        assert_consistent(given(*results), [(np.ones(1, "float32"),)], TWICE, **options)
    first, *lines = str(caught.value).split("\n")
    assert re.fullmatch(r"not consistent in \d+ of \d+ comparisons:", first)
    assert all(line.startswith("  ") for line in lines)
    return "\n".join(line.strip() for line in lines)


def agreement(*results, **options):
    return assert_consistent(given(*results), [(np.ones(1, "float32"),)], TWICE, **options)


def within(*tolerances):
    return lambda x: tolerances[0] if len(tolerances) == 1 else tolerances


def test_equal_results_agree():
    for results in (np.ones(3), np.ones(3, bool), np.arange(3), 1, 2.5, None, (np.ones(2), None), {"a": [np.ones(0)]}):
        found = agreement(results, results, bits=True)
        assert found.units == found.ulps == 0
        assert found.skipped == []
    assert agreement(Pair(np.ones(2), 1), Pair(np.ones(2), 1)).comparisons[0].part == ".first"


def test_what_was_compared():
    second = np.array([1, 1, 1 + ULP, 1 + 2 * ULP], "float32")
    found = agreement(np.ones(4, "float32"), second, tolerance=within(2 * ULP))
    (made,) = found.comparisons
    assert (made.one, made.other, made.case, made.part) == ("numpy-cpu", "numpy-cpu", "0", "")
    assert (made.units, made.elements, made.equal) == (0.5, 4, 2)
    assert made.held
    assert found.targets == ["numpy-cpu"]
    assert str(found) == "1 comparison of numpy-cpu: off by 0.5 tolerances, 2 ulps"
    assert str(made) == "numpy-cpu and numpy-cpu: case 0: consistent"


def test_message_of_values():
    first = np.array([[1, 2, 3], [4, 5, 6]], "float32")
    second = first + np.array([[0, 0.125, 0], [0.5, 0, 0]], "float32")
    assert fault(first, second, tolerance=within(0.0625)) == (
        "numpy-cpu and numpy-cpu: case 0: apart by up to 4 times the tolerance, 1.05e+06 ulps; "
        "at [1, 0] 4.0 and 4.5, which may be 0.125 apart"
    )
    assert fault(first, second, bits=True) == (
        "numpy-cpu and numpy-cpu: case 0: 2 of 6 elements differ in bits, by up to 1.05e+06 ulps; at [1, 0] 4.0 and 4.5"
    )
    # The second element is off by more ulps, 2**23, and by less than the tolerance: the ulps are of the first, 2**22.
    first, second = np.array([1, 2.0**-20], "float32"), np.array([1.5, 2.0**-20 + 2.0**-10], "float32")
    assert "4 times the tolerance, 4.19e+06 ulps; at [0] 1.0 and 1.5" in fault(first, second, tolerance=within(0.0625))


def test_message_names_case_and_part():
    fn = given({"a": (1, 1)}, {"a": (1, 2)})
    with pytest.raises(AssertionError, match=re.escape("case wide, result['a'][1]: apart by up to inf times")):
        assert_consistent(fn, {"wide": {"x": np.ones(1)}}, TWICE)


def test_message_lists_only_so_many():
    results = tuple(np.zeros(12)), tuple(np.ones(12))
    lines = fault(*results).split("\n")
    assert len(lines) == testing.LISTED + 1
    assert lines[-1] == "and 2 more"


def test_the_worst_element_is_the_farthest_beyond_its_tolerance():
    first, second = np.zeros(3), np.array([5.0, 1.0, 3.0])
    assert "at [1] 0.0 and 1.0" in fault(first, second, tolerance=within(np.array([1.0, 0.01, 1.0])))
    # Beyond measure, where none is allowed: no number, then any other error.
    assert "at [1] 0.0 and 1.0" in fault(first, second, tolerance=within(np.array([1.0, 0.0, 1.0])))
    assert "inf times" in fault(first, np.array([0, np.nan, 0]), tolerance=within(1.0))


def test_form_comes_before_values():
    ones = np.ones(3)
    assert fault(ones, np.ones(4)).endswith("got shape (3,) and (4,), expected the same")
    assert fault(ones, np.ones((3, 1))).endswith("got shape (3,) and (3, 1), expected the same")
    assert fault(ones, np.ones(3, "float32")).endswith("got dtype float64 and float32, expected the same")
    assert fault(1, 1.0).endswith("got dtype int64 and float64, expected the same")
    assert fault(ones, None).endswith("case 0: got an array and None, expected the same")
    assert fault((ones, None), (None, ones)).count("expected the same") == 2
    assert fault((ones,), (ones, ones)).endswith("got result[0] and result[0], result[1], expected the same")
    assert fault({"a": ones}, {"b": ones}).endswith("got result['a'] and result['b'], expected the same")
    assert fault({}, ones).endswith("got nothing and result, expected the same")
    assert "numpy-cpu: case 0, result[0]: got str, expected an array" in fault(("words",), ("words",))


def test_values_that_are_no_numbers():
    first = np.array([np.nan, np.inf, -np.inf, 0.0])
    assert agreement(first, first.copy(), tolerance=within(0.0)).comparisons[0].equal == 4
    other_nan = np.array([0x7FF8000000000001], np.uint64).view(np.float64)
    assert agreement(first[:1], other_nan).units == 0
    assert "1 of 1 elements differ in bits, by up to 0 ulps" in fault(first[:1], other_nan, bits=True)
    assert "at [0] inf and -inf" in fault(first[1:2], first[2:3], tolerance=within(1.0))
    assert "at [] -0.0 and 0.0" in fault(np.array(-0.0), np.array(0.0), bits=True)
    assert agreement(np.array(-0.0), np.array(0.0)).units == 0


def test_whole_numbers_must_be_equal():
    large, larger = np.array([2**62, 1]), np.array([2**62 + 1, 1])
    assert "at [0] 4611686018427387904 and 4611686018427387905" in fault(large, larger)
    assert "by up to 1 ulps" in fault(large, larger, bits=True)
    assert "at [1] True and False" in fault(np.array([True, True]), np.array([True, False]))


@pytest.mark.parametrize("name", ["float16", "float32", "float64", "complex64", "complex128", "bfloat16"])
def test_ulps_are_the_dtype_s_own(name):
    if name == "bfloat16":
        name = pytest.importorskip("ml_dtypes", reason="ml_dtypes, NumPy's bfloat16, is not installed").bfloat16
    first = np.array([1.0, 1.5]).astype(name)
    second = np.array(np.spacing(np.real(first))).astype(name) + first
    assert agreement(first, second, tolerance=within(1.0)).ulps == 1
    assert f"2 of 2 elements differ in bits, by up to 1 ulps; at [1] {first[1]} and" in fault(first, second, bits=True)


def test_the_default_tolerance_counts_the_arguments_elements():
    def off(by):
        fn = given(np.array([-8.0, 1.0], "float32"), np.array([-8.0, 1.0 + by], "float32"))
        return assert_consistent(fn, [(np.ones((5, 4), "float32"), np.ones(5), 7)], TWICE).units

    allowed = 2 * 25 * 2.0**-24 * 8
    assert off(allowed / 4) == pytest.approx(0.25, rel=0.01)
    with pytest.raises(AssertionError, match="apart by up to 2 times the tolerance"):
        off(allowed * 2)


def test_tolerances_have_the_structure_of_the_results():
    first, second = Pair(np.zeros(2), [np.zeros(2), None]), Pair(np.ones(2), [np.full(2, 2.0), None])
    found = agreement(first, second, tolerance=lambda x: Pair(1.0, [np.array([2.0, 4.0]), None]))
    assert [made.units for made in found.comparisons] == [0.5, 0.5]
    assert agreement(first, second, tolerance=within(4.0)).units == 0.25
    with pytest.raises(
        ConvTypeError, match=re.escape("tolerance: got result.first, expected one for result.second[0]")
    ):
        agreement(first, second, tolerance=lambda x: Pair(1.0, None))
    with pytest.raises(
        ConvShapeError, match=re.escape("got shape (3,) for result.first, expected one that broadcasts")
    ):
        agreement(first, second, tolerance=lambda x: Pair(np.ones(3), 1.0))


def test_each_run_has_copies_of_its_own():
    mine, seen = np.zeros(2), []

    def fn(x, rest):
        seen.append((x[0], rest["deep"][0].y[0], rest["name"]))
        x += 1
        rest["deep"][0].y[:] = 5
        return x

    class Holder(NamedTuple):
        y: Any

    rest = {"deep": [Holder(np.zeros(3))], "name": "as it is"}
    assert_consistent(fn, [(mine, rest)], TWICE)
    assert seen == [(0, 0, "as it is")] * 2
    assert mine.tolist() == [0, 0]


def test_an_error_says_where_it_was_raised():
    def fn(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        assert_consistent(fn, {"small": (np.ones(1),)}, TWICE)
    assert caught.value.__notes__ == ["assert_consistent: on numpy-cpu, case small"]


def test_wrong_arguments():
    cases = [(np.ones(1),)]
    for error, words, arguments, options in (
        (ConvValueError, "tolerance: got one beside bits=True", (cases, TWICE), {"bits": True, "tolerance": within(1)}),
        (ConvValueError, "cases: got none, expected at least one", ([], TWICE), {}),
        (ConvTypeError, "cases: got ndarray for case 0, expected a tuple", ([np.ones(1)], TWICE), {}),
        (ConvTypeError, "backends: got 'numpy', expected several names", (cases, "numpy"), {}),
        (ConvTypeError, "backend: got int, expected a str", (cases, [1, 2]), {}),
        (ConvValueError, "backends: got numpy-cpu, expected at least two", (cases, ["numpy"]), {}),
        (ConvValueError, "backends: got none, expected at least two", (cases, []), {}),
        (BackendError, "backend: got 'numpyy', expected one of", (cases, ["numpy", "numpyy"]), {}),
    ):
        with pytest.raises(error, match=re.escape(words)):
            assert_consistent(abs, *arguments, **options)


def test_nothing_to_compare_with_is_a_skip(monkeypatch):
    monkeypatch.setattr(backends.find("cupy"), "_loaded", (None, backends.Unavailable("no device")), raising=False)
    with pytest.raises(unittest.SkipTest, match="nothing to compare numpy-cpu with: cupy: no device"):
        assert_consistent(abs, [(np.ones(1),)], ["numpy", "cupy"])
    found = assert_consistent(abs, [(np.ones(1),)], ["cupy", *TWICE])
    assert found.skipped == [("cupy", "no device")]


# Targets.


def strict(*names):
    pytest.importorskip(
        "array_api_strict", reason="a library with devices is not installed: pip install array-api-strict"
    )
    return targets(names or ["array_api_strict"])


def test_targets():
    known = [target.name for target in targets()]
    assert [*dict.fromkeys(known)] == [backend.name for backend in backends.available()]
    (numpy,) = targets(["numpy"])
    assert (numpy.id, str(numpy), numpy.device, numpy.xp) == ("numpy-cpu", "numpy-cpu", "cpu", np)
    assert targets(["numpy-cpu"]) == [numpy]


def test_targets_that_there_are_not(monkeypatch):
    with pytest.raises(BackendError, match="backend 'numpy-cuda:0' is unavailable: here are numpy-cpu"):
        targets(["numpy-cuda:0"])
    with pytest.raises(BackendError, match="backend: got 'numpyy', expected one of"):
        targets(["numpyy"])
    with pytest.raises(ConvTypeError, match="backends: got 'numpy', expected several names"):
        targets("numpy")
    monkeypatch.setattr(backends.find("cupy"), "_loaded", (None, backends.Unavailable("no device")), raising=False)
    with pytest.raises(BackendError, match="backend 'cupy' is unavailable: no device; to install it"):
        targets(["cupy-0"])
    monkeypatch.setattr(backends, "names", lambda: ("broken", "numpy"))
    assert [target.id for target in targets()] == ["numpy-cpu"]
    (found, _) = testing.survey()
    assert found.reason == "its entry point cannot be loaded"


@pytest.mark.parametrize(
    ("device", "label"),
    [
        ("cpu", "own-cpu"),
        ("cuda:1", "own-cuda:1"),
        ("own.Device('device1')", "own-device1"),
        ("<CUDA Device 0>", "own-CUDA-Device-0"),
    ],
)
def test_labels(device, label):
    class Own(backends.Backend):
        name = "own"

    assert Target(Own(), device).id == label


def test_devices_that_lack_dtypes_are_left_out_unless_named():
    ids = [target.id for target in strict()]
    assert ids[:2] == ["array_api_strict-CPU_DEVICE", "array_api_strict-device1"]
    assert not any("no_" in name for name in ids)
    (less,) = strict("array_api_strict-no_x64")
    assert less.holds("float32")
    assert not less.holds(np.float64)
    assert not less.holds("int64")


@pytest.fixture
def there(target):
    return Target(target.backend, target.device)


def test_arrays_go_there_and_back(there):
    for host in (np.arange(3), np.ones((2, 2), "float32"), np.array(True), np.ones(0, "complex128")):
        array = there.asarray(host)
        assert backends.of(array) is there.backend
        assert there.backend.device_of(array) == there.device
        back = there.to_numpy(array)
        assert back.dtype == host.dtype
        assert back.tolist() == host.tolist()
    assert there.to_numpy(there.asarray([1, 2], "float32")).dtype == np.float32
    assert there.to_numpy(there.asarray([1.0, 2.0])).dtype == np.float64
    frozen = np.ones(2)
    frozen.flags.writeable = False
    assert there.to_numpy(there.asarray(frozen)).tolist() == [1, 1]


def test_bfloat16_goes_there_and_back(there):
    half = pytest.importorskip("ml_dtypes", reason="ml_dtypes, NumPy's bfloat16, is not installed").bfloat16
    if not there.holds(half):
        pytest.skip(f"{there} has no bfloat16")
    back = there.to_numpy(there.asarray(np.array([1.5, 2]).astype(half)))
    assert back.dtype == half
    assert back.tolist() == [1.5, 2]


def test_a_library_of_its_own_is_asked_for():
    target = strict()[0]
    cases = [(np.ones(3),)]
    with pytest.raises(AssertionError, match="CPU_DEVICE: case 0: got an array of numpy, expected one of array_api_st"):
        assert_consistent(lambda x: np.ones(3), cases, ["numpy", target])
    for result in (np.float64(1), np.ones(3)):
        with pytest.raises(AssertionError, match="got an array of numpy"):
            assert_consistent(given(result), cases, [target, target])
    # A number out of an array is NumPy's own way to give an array without axes.
    assert_consistent(lambda x: x[0] * 2, cases, ["numpy", target])


def test_the_same_device_is_asked_for():
    cpu, other = strict()[:2]

    def fn(x):
        return x.to_device(cpu.device)

    with pytest.raises(AssertionError, match=r"strict-device1: case 0: got device .*CPU_DEVICE.*, expected .*device1"):
        assert_consistent(fn, [(np.ones(3),)], [cpu, other])


def test_each_pair_is_compared():
    chosen = strict()[:2]

    def fn(x):
        return x + float(backends.of(x).device_of(x) == chosen[1].device)

    with pytest.raises(AssertionError) as caught:
        assert_consistent(fn, [(np.zeros(2),)], ["numpy", *chosen])
    assert str(caught.value).startswith("not consistent in 2 of 3 comparisons:\n")
    for one in ("numpy-cpu", "array_api_strict-CPU_DEVICE"):
        assert f"\n  {one} and array_api_strict-device1: case 0: apart by up to" in str(caught.value)


def test_a_dtype_that_a_device_has_not_is_left_out_in_words():
    cases = {"wide": (np.ones(2),), "narrow": (np.ones(2, "float32"),)}
    (less,) = strict("array_api_strict-no_float64")
    found = assert_consistent(abs, cases, ["numpy", less])
    assert [made.case for made in found.comparisons] == ["narrow"]
    assert found.skipped == [("array_api_strict-no_float64", "case wide: there is no float64")]
    with pytest.raises(unittest.SkipTest, match="strict-no_float64: case wide: there is no float64"):
        assert_consistent(abs, {"wide": cases["wide"]}, ["numpy", less])


def test_tolerances_are_given_the_library_s_own_arrays():
    seen = []

    def tolerance(x, w):
        seen.append(backends.of(x).name)
        return portconv.error_bound(x, w)

    target = strict()[1]
    x, w = np.ones((1, 1, 5), "float32"), np.ones((1, 1, 3), "float32")
    assert_consistent(portconv.conv, [(x, w)], ["numpy", target], tolerance=tolerance)
    assert seen == ["numpy", "array_api_strict"]


# Tolerances.


def test_gamma_is_higham_s():
    unit = Fraction(1, 2**24)
    for terms in (0, 1, 27, 10_000):
        assert gamma(terms, "float32") == pytest.approx(float(terms * unit / (1 - terms * unit)), rel=1e-15)
    assert gamma(3, np.float16) == pytest.approx(3 * 2.0**-11, rel=0.01)
    assert gamma(3, "bfloat16") == pytest.approx(3 * 2.0**-8, rel=0.02)
    assert gamma(3, np.dtype("float64")) == pytest.approx(3 * 2.0**-53)
    assert gamma(2**11, "float16") == np.inf
    for error, words, arguments in (
        (ConvTypeError, "dtype: got int8, expected one of float16, bfloat16, float32, float64", (1, "int8")),
        (ConvTypeError, "terms: got float, expected an int", (1.0, "float32")),
        (ConvTypeError, "terms: got bool, expected an int", (True, "float32")),
        (ConvValueError, "terms: got -1, expected 0 or more", (-1, "float32")),
    ):
        with pytest.raises(error, match=re.escape(words)):
            gamma(*arguments)


def test_dtypes_and_arrays_of_any_library(there):
    assert gamma(3, there.xp.float32) == gamma(3, "float32")
    sizes = there.asarray([1.0, -2.0], "float32")
    assert sum_tolerance(1, sizes.dtype, sizes) == pytest.approx([2.0**-24, 2.0**-23], rel=1e-6)
    x, w, b, dout, options = layer("plain", "float32")
    expected = conv_grads_tolerance(dout, x, w, b, **options, algorithm="gemm")
    arrays = (there.asarray(a) for a in (dout, x, w, b))
    for found, own in zip(conv_grads_tolerance(*arrays, **options, algorithm="gemm"), expected, strict=True):
        assert found == pytest.approx(own, rel=1e-12)


def products(dtype, terms):
    """Numbers whose products cancel, and the exact sum and magnitude of each pair of rows."""
    rng = np.random.default_rng(terms)
    a, b = (rng.uniform(-1, 1, (20, terms)) for _ in range(2))
    if np.dtype(dtype).kind == "c":
        a, b = (x + 1j * rng.uniform(-1, 1, x.shape) for x in (a, b))
    a, b = a.astype(dtype), b.astype(dtype)
    real = [[[Fraction(float(x)) for x in part.flat] for part in (np.real(c), np.imag(c))] for c in (a, b)]
    (ar, ai), (br, bi) = real
    exact = []
    for row in range(20):
        at = range(row * terms, (row + 1) * terms)
        exact.append(
            complex(sum(ar[i] * br[i] - ai[i] * bi[i] for i in at), sum(ar[i] * bi[i] + ai[i] * br[i] for i in at))
        )
    return a, b, np.array(exact), np.sum(np.abs(a) * np.abs(b), axis=1)


@pytest.mark.parametrize("terms", [1, 30, 1000])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
def test_sums_are_within_their_tolerance(dtype, terms):
    a, b, exact, magnitude = products(dtype, terms)
    computed = np.zeros(20, "float32" if dtype == "float16" else dtype)
    for i in range(terms):  # one after the other, which is the worst of orders
        computed += (a[:, i] * b[:, i].astype(computed.dtype)).astype(computed.dtype)
    tolerance = sum_tolerance(terms, dtype, magnitude)
    assert tolerance.shape == magnitude.shape
    # In float64 the exact sums are themselves rounded to float64.
    error = np.abs(computed.astype(dtype).astype(complex) - exact) - 2.0**-53 * np.abs(exact)
    assert np.all(error <= tolerance)
    # And no tolerance is wide enough for a term that is left out, unless terms are as many as a half has ulps.
    assert np.all(tolerance < 0.01 * np.sqrt(terms))


def test_sum_tolerance_of_other_numbers():
    for dtype in ("int8", "uint64", np.int32, "bool"):
        assert sum_tolerance(9, dtype, np.ones(2)).tolist() == [0, 0]
    assert sum_tolerance(2**24, "float32", 0.0) == np.inf
    assert sum_tolerance(4, "float16", 0.0) == 2.0**-25
    with pytest.raises(ConvTypeError, match="dtype: got str, expected one of float16"):
        sum_tolerance(1, "str", 1.0)


LAYERS = {
    "plain": ((2, 3, 9, 8), (4, 3, 3, 3), {"padding": 1}),
    "strided": ((2, 4, 9), (6, 2, 4), {"stride": 2, "dilation": 2, "padding": ((3, 2),), "groups": 2}),
    "unbatched": ((9, 8, 4), (4, 1, 3, 2), {"groups": 4, "padding": "same", "data_format": "channels_last"}),
    "reflected": ((2, 3, 6, 7), (2, 3, 3, 3), {"padding": 2, "padding_mode": "reflect"}),
}


def layer(name, dtype, dtype_of_w=None):
    x_shape, w_shape, options = LAYERS[name]
    keywords = {key: value for key, value in options.items() if key != "padding_mode"}
    out_shape = portconv.conv_output_shape(x_shape, w_shape, **keywords)
    rng = np.random.default_rng(5)

    def numbers(shape, dtype):
        made = rng.uniform(-1, 1, shape)
        return (made + 1j * rng.uniform(-1, 1, shape) if np.dtype(dtype).kind == "c" else made).astype(dtype)

    of_w = dtype_of_w or dtype
    return (
        numbers(x_shape, dtype),
        numbers(w_shape, of_w),
        numbers(w_shape[:1], of_w),
        numbers(out_shape, dtype),
        options,
    )


def gradients(x, w, b, dout, **options):
    _, cache = portconv.conv_forward(x, w, b, **options)
    return portconv.conv_backward(dout, cache)


def wide(array):
    return array.astype("complex128" if array.dtype.kind == "c" else "float64")


WAYS = [
    *(
        (name, dtype, way)
        for name in LAYERS
        for dtype in ("float16", "float32", "complex64")
        for way in ("auto", "gemm")
    ),
    *((name, dtype, "fft") for name in ("plain", "unbatched", "reflected") for dtype in ("float16", "complex64")),
    *(("unbatched", dtype, "depthwise") for dtype in ("float32", "complex64")),
    *(("plain", dtype, "winograd") for dtype in ("float16", "float32")),
]


@pytest.mark.parametrize(("name", "dtype", "algorithm"), WAYS)
def test_gradients_are_within_their_tolerance(name, dtype, algorithm):
    x, w, b, dout, options = layer(name, dtype)
    found = gradients(x, w, b, dout, **options, algorithm=algorithm)
    truth = gradients(*map(wide, (x, w, b, dout)), **options, algorithm="direct")
    tolerances = conv_grads_tolerance(dout, x, w, b, **options, algorithm=algorithm)
    for grad, exact, tolerance in zip(found, truth, tolerances, strict=True):
        assert tolerance.shape == grad.shape
        assert np.all(np.abs(wide(grad) - exact) <= tolerance)
        if algorithm == "gemm" and dtype != "float16":
            assert np.all(tolerance < 0.005)  # nowhere near what a term that is left out would change


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
def test_reproducible_gradients_are_within_their_tolerance(dtype):
    x, w, b, dout, options = layer("plain", dtype)
    x *= np.logspace(0, -12 if dtype != "float16" else -2, 9, dtype="float32")[:, None].astype(x.real.dtype)
    found = gradients(x, w, b, dout, **options, precision="reproducible")
    truth = gradients(*map(wide, (x, w, b, dout)), **options, algorithm="direct")
    tolerances = conv_grads_tolerance(dout, x, w, b, **options, precision="reproducible")
    for grad, exact, tolerance in zip(found, truth, tolerances, strict=True):
        assert np.all(np.abs(wide(grad) - exact) <= tolerance)


def test_gradients_of_two_dtypes_are_rounded_to_their_own():
    x, w, b, dout, options = layer("plain", "float64", "float32")
    found = gradients(x, w, b, dout, **options, algorithm="gemm")
    truth = gradients(*map(wide, (x, w, b, dout)), **options, algorithm="direct")
    tolerances = conv_grads_tolerance(dout, x, w, b, **options, algorithm="gemm")
    assert [grad.dtype for grad in found] == ["float64", "float32", "float32"]
    for grad, exact, tolerance in zip(found, truth, tolerances, strict=True):
        assert np.all(np.abs(wide(grad) - exact) <= tolerance)
    assert tolerances.dx.max() < 1e-12 < tolerances.dw.max() < 1e-4


def test_tolerance_of_gradients_by_hand():
    x, w = np.array([[[1, -2, 3, 4]]], "float32"), np.array([[[5, -6]]], "float32")
    dout = np.array([[[1, -1, 2]]], "float32")
    dx, dw, db = conv_grads_tolerance(dout, x, w, algorithm="direct")
    unit = 2.0**-24
    assert dx == pytest.approx(2 * unit * np.array([[[5, 6 + 5, 6 + 10, 12]]]), rel=1e-6)
    assert dw == pytest.approx(3 * unit * np.array([[[1 + 2 + 6, 2 + 3 + 8]]]), rel=1e-6)
    assert db is None


def test_tolerance_of_gradients_of_other_arguments():
    whole = [np.ones(shape, "int32") for shape in ((1, 1, 2), (1, 1, 4), (1, 1, 3))]
    assert [np.max(found) for found in conv_grads_tolerance(*whole)[:2]] == [0, 0]
    with pytest.raises(ConvShapeError, match=re.escape("dout: got shape (1, 1, 3), expected (1, 1, 2)")):
        conv_grads_tolerance(whole[2], whole[1], whole[2])
    with pytest.raises(ConvValueError, match="padding: got"):
        conv_grads_tolerance(whole[2], whole[1], whole[2], padding="some")


# The documentation.


def functions():
    members = [getattr(testing, name) for name in testing.__all__]
    return [member for member in members if inspect.isfunction(member)]


@pytest.mark.parametrize("function", [*functions(), Target.asarray])
def test_docstring(function):
    text = inspect.getdoc(function)
    if function in functions():
        assert "\nReturns\n----" in text
    found = doctest.DocTestParser().get_doctest(text, {"portconv": portconv}, function.__name__, None, 0)
    assert doctest.DocTestRunner().run(found).failed == 0
    assert found.examples


def test_every_name_is_documented():
    if not DOCUMENT.exists():
        pytest.skip("docs/ is not beside the tests")
    text = DOCUMENT.read_text()
    plugin = ("xp", "portconv_target", "skip_backends", "xfail_backends", "--portconv-backend", "portconv_backends")
    for name in (*testing.__all__, *plugin):
        assert re.search(rf"(?<!\w){name}\b", text), name


# The plugin, as a stranger has it: in a process and a folder of its own.


def run(folder, *options, x64="1"):
    """The exit status of pytest there, and what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "-v", "-rs", *options]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment, "COLUMNS": "200", "JAX_ENABLE_X64": x64},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


def outcomes(said):
    """Of each test by name, in lower case."""
    found = re.findall(r"^\S+?::(\S+) (PASSED|FAILED|SKIPPED|XFAIL|XPASS|ERROR)\b", said, re.MULTILINE)
    return {name: outcome.lower() for name, outcome in found}


def project(folder, text, settings=SETTINGS, **more):
    for name, content in {"pyproject.toml": settings, "test_own.py": text, **more}.items():
        (folder / name).write_text(content)
    return folder


def test_the_example_project(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "boxblur", ignore=shutil.ignore_patterns("__pycache__"))
    status, said = run(tmp_path / "boxblur")
    here = targets()
    of_strict = sum(target.name == "array_api_strict" for target in here)
    working = {target.name for target in here}
    absent = len(backends.names()) - len(working)
    # Two tests of `xp`; six of `portconv_target`, one of which is of two functions; one that is expected to fail on
    # array-api-strict; and one of all libraries at once.
    skipped = len(working - {"numpy"}) + (len(here) == 1) + absent * (2 + 6 + 1)
    passed = len(working) + 1 + len(here) * 6 + (len(here) - of_strict) + (len(here) > 1)
    counts = {"passed": passed, "skipped": skipped, "xfailed": of_strict}
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    assert re.search(rf"=+ {summary} in ", said), said
    assert status == 0
    for name in backends.names():
        if name not in working:
            assert f"{name} is unavailable: {backends.find(name).unavailable}" in said


def test_the_page_can_be_pasted(tmp_path):
    if not DOCUMENT.exists():
        pytest.skip("docs/ is not beside the tests")
    blocks = re.findall(r"```python\n(.+?)```", DOCUMENT.read_text(), re.DOTALL)
    marks = {"numpy": "passed", "array_api_strict": "xfail", "jax": "passed"}
    for name in marks.keys() & {target.name for target in targets()}:
        status, said = run(project(tmp_path, "\n\n".join(blocks)), "--portconv-backend", name, x64="0")
        found = outcomes(said)
        assert len({test.partition("[")[0] for test in found}) == 7
        assert {outcome for test, outcome in found.items() if not test.startswith("test_least")} == {"passed"}, said
        assert {outcome for test, outcome in found.items() if test.startswith("test_least")} == {marks[name]}, said
        assert status == 0


UNUSED = """
import sys

def test_own():
    own = {name for name in sys.modules if name.partition(".")[0] == "portconv"}
    libraries = {"numpy", "torch", "cupy", "jax", "array_api_strict", "array_api_compat", "array_api_extra"}
    assert not libraries & set(sys.modules)
    assert LEFT
"""


def test_a_session_that_does_not_use_it_imports_no_array_library(tmp_path):
    left = "not own & {'portconv.testing', 'portconv.verification', 'portconv.backends._numpy'}"
    status, said = run(project(tmp_path, UNUSED.replace("LEFT", left)))
    assert outcomes(said) == {"test_own": "passed"}, said
    assert "portconv-" in said.partition("collecting")[0]  # the plugin is there
    assert status == 0


def test_a_session_that_does_not_use_it_imports_nothing_of_portconv(tmp_path):
    (point,) = distribution("portconv").entry_points.select(group="pytest11")
    _, said = run(project(tmp_path, UNUSED.replace("LEFT", f"own <= {{{point.module!r}}}")))
    assert outcomes(said) == {"test_own": "passed"}


def test_testing_needs_no_pytest():
    code = "import sys, portconv.testing; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


MARKED = """
import pytest
from portconv.testing import Target

xfail = pytest.mark.xfail_backends
skip = pytest.mark.skip_backends
other = pytest.mark.xfail_backends("torch", reason="not here")

@other
def test_plain(xp):
    assert xp.__name__ == "numpy"

def test_target(portconv_target, xp):
    assert isinstance(portconv_target, Target) and portconv_target.xp is xp

def test_none():
    pass

@skip("torch", "numpy", reason="why not")
def test_skipped(xp):
    raise AssertionError

@xfail("numpy", reason="known")
def test_fails(xp, tmp_path):
    (tmp_path.parent.parent / "ran").touch()
    raise ValueError

@xfail("numpy", reason="known")
def test_passes(xp):
    pass

@xfail("numpy", reason="known", raises=ValueError)
def test_fails_as_known(portconv_target):
    raise ValueError

@xfail("numpy", reason="known", raises=(TypeError, KeyError))
def test_fails_otherwise(portconv_target):
    raise ValueError

two, three = skip("numpy", reason="two"), xfail("numpy", reason="three")

@pytest.mark.parametrize("n", [1, pytest.param(2, marks=two), pytest.param(3, marks=three)])
def test_parameters(xp, n):
    assert n == 1

@skip("numpy", reason="all of them")
class TestClass:
    def test_method(self, xp):
        raise AssertionError

    def test_without(self):
        pass

@pytest.fixture
def broken(portconv_target):
    raise ValueError

@xfail("numpy", reason="known")
def test_fails_in_a_fixture(broken):
    pass
"""


def test_marks(tmp_path):
    status, said = run(project(tmp_path, MARKED), "--portconv-backend", "numpy", f"--basetemp={tmp_path / 'temporary'}")
    assert outcomes(said) == {
        "test_plain[numpy-cpu]": "passed",
        "test_target[numpy-cpu]": "passed",
        "test_none": "passed",
        "test_skipped[numpy-cpu]": "skipped",
        "test_fails[numpy-cpu]": "xfail",
        "test_passes[numpy-cpu]": "failed",
        "test_fails_as_known[numpy-cpu]": "xfail",
        "test_fails_otherwise[numpy-cpu]": "failed",
        "test_parameters[numpy-cpu-1]": "passed",
        "test_parameters[numpy-cpu-2]": "skipped",
        "test_parameters[numpy-cpu-3]": "xfail",
        "TestClass::test_method[numpy-cpu]": "skipped",
        "TestClass::test_without": "passed",
        "test_fails_in_a_fixture[numpy-cpu]": "xfail",
    }, said
    assert "[XPASS(strict)] known" in said
    assert "why not" in said
    assert (tmp_path / "ran").exists()
    assert status == 1


MISTAKES = {
    "pytest.mark.skip_backends('numpyy', reason='a')": "skip_backends: got 'numpyy', expected one or more of ",
    "pytest.mark.xfail_backends(numpy, reason='a')": "xfail_backends: got <module 'numpy'",
    "pytest.mark.skip_backends(reason='a')": "skip_backends: got no backend, expected one or more of ",
    "pytest.mark.skip_backends('numpy')": "skip_backends: got no reason, expected reason=WORDS",
    "pytest.mark.xfail_backends('numpy', reason=' ')": "xfail_backends: got ' ', expected reason=WORDS",
    "pytest.mark.xfail_backends('numpy', reason=3)": "xfail_backends: got 3, expected reason=WORDS",
    "pytest.mark.xfail_backends('numpy', reason='a', strict=False)": (
        "xfail_backends: got strict=, expected raises or reason alone"
    ),
    "pytest.mark.skip_backends('numpy', reason='a', raises=ValueError)": (
        "skip_backends: got raises=, expected reason alone"
    ),
}


def test_mistakes_name_the_test(tmp_path):
    files = {
        f"test_{i}.py": f"import numpy, pytest\n\n@{mark}\ndef test_{i}(xp):\n    pass\n"
        for i, mark in enumerate(MISTAKES)
    }
    late = "pytest.param(1, marks=pytest.mark.skip_backends('numpyy', reason='a'))"
    files["test_late.py"] = (
        f"import pytest\n\n@pytest.mark.parametrize('n', [{late}])\ndef test_late(xp, n):\n    pass\n"
    )
    own = project(tmp_path, "def test_own(): pass", **files)
    status, said = run(own, "--portconv-backend", "numpy", "--continue-on-collection-errors")
    for i, message in enumerate(MISTAKES.values()):
        assert f"\ntest_{i}.py::test_{i}: {message}" in said, said
    assert "test_late.py::test_late[numpy-cpu-1]: skip_backends: got 'numpyy', expected one or more of " in said
    assert outcomes(said) == {"test_own": "passed", "test_late[numpy-cpu-1]": "error"}
    assert "Traceback" not in said
    assert "During handling" not in said
    assert status == 1


def test_backends_are_chosen(tmp_path):
    own = project(
        tmp_path,
        "def test_own(xp): pass",
        SETTINGS + 'portconv_backends = ["numpy", "numpy-cuda:7"]\n',
    )
    status, said = run(own)
    assert outcomes(said) == {"test_own[numpy-cpu]": "passed", "test_own[numpy-cuda:7]": "skipped"}
    assert "numpy-cuda:7 is unavailable: here are numpy-cpu" in said
    assert status == 0
    status, said = run(own, "--portconv-backend", "numpy-cpu")
    assert outcomes(said) == {"test_own[numpy-cpu]": "passed"}
    status, said = run(own, "--portconv-backend", "numpy", "--portconv-backend", "numpy-cuda:7")
    assert "ERROR: --portconv-backend: backend 'numpy-cuda:7' is unavailable: here are numpy-cpu" in said
    assert status == pytest.ExitCode.USAGE_ERROR
    status, said = run(own, "--portconv-backend", "numpyy")
    assert "ERROR: --portconv-backend: backend: got 'numpyy', expected one of array_api_strict, cupy" in said
    assert status == pytest.ExitCode.USAGE_ERROR
    status, said = run(project(tmp_path, "def test_own(xp): pass", SETTINGS + 'portconv_backends = ["numpyy"]\n'))
    assert "portconv_backends: backend: got 'numpyy', expected one of array_api_strict, cupy" in said
    assert status == pytest.ExitCode.INTERRUPTED


OTHERS = """
import pytest

def pytest_addoption(parser):
    parser.addoption("--backend", action="append")
    parser.addoption("--array-api-backend", action="append")

@pytest.fixture(params=["mine", "too"])
def xp(request):
    return request.param
"""

OTHERS_TESTS = """
import pytest

@pytest.mark.skip_backends(lambda: 1)
def test_own(xp):
    assert xp in ("mine", "too")

def test_too(portconv_target):
    pass

@pytest.mark.parametrize("xp", [1, 2])
def test_direct(xp):
    pass
"""


def test_others_are_left_alone(tmp_path):
    own = project(tmp_path, OTHERS_TESTS, **{"conftest.py": OTHERS})
    status, said = run(own, "--backend", "mine", "--array-api-backend", "too", "--portconv-backend", "numpy")
    assert outcomes(said) == {
        "test_own[mine]": "passed",
        "test_own[too]": "passed",
        "test_too[numpy-cpu]": "passed",
        "test_direct[1]": "passed",
        "test_direct[2]": "passed",
    }, said
    assert status == 0


def test_the_plugin_says_what_it_has(tmp_path):
    _, said = run(project(tmp_path, ""), "--help")
    assert "--portconv-backend=NAME" in said
    assert "portconv_backends (args)" in said
    _, said = run(tmp_path, "--markers")
    assert "@pytest.mark.skip_backends(*names, reason): " in said
    assert "@pytest.mark.xfail_backends(*names, reason, raises=None): " in said
    _, said = run(tmp_path, "--fixtures", "-q")
    assert re.search(r"^xp -- .*_portconv_pytest", said, re.MULTILINE)
    assert re.search(r"^portconv_target -- ", said, re.MULTILINE)
    assert "_portconv_param" not in said
