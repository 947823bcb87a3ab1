"""Test the parts of `portconv verify`, and that it finds the faults that it should find."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.oracle import Problem
from threadpoolctl import threadpool_info

import portconv
from portconv import backends
from portconv import limits as call_limits
from portconv.algorithms.budget import budget_of
from portconv.algorithms.choice import known
from portconv.algorithms.gemm_plan import POINTWISE_COLUMNS
from portconv.backends import Backend
from portconv.backends._numpy import FEW_OPERATIONS
from portconv.engine.gradients import plans_of
from portconv.engine.rounding_error import relative
from portconv.spec.dtypes import gamma
from portconv.spec.options import DATA_FORMATS, PADDING_MODES
from portconv.verification import (
    Case,
    Comparison,
    Report,
    Variant,
    cases,
    compare,
    comparison,
    exact,
    figures,
    unserved,
    unsupported,
    variants,
)
from portconv.verification.cases import Inputs

NUMPY = backends.get("numpy")
GEMM = known()["gemm"]
CASES = {case.name: case for case in cases(["float32"])}
CASE = CASES["2d-stride2"]
pytestmark = pytest.mark.usefixtures("portable")
"""What is spoiled here is `gemm`, which "auto" takes on every machine where there are no kernels."""

BFLOAT16 = pytest.param(
    "bfloat16",
    marks=pytest.mark.skipif(find_spec("ml_dtypes") is None, reason="ml_dtypes, NumPy's bfloat16, is not installed"),
)
# Paddings by name, worked out by hand for the cases below.
PADS = {
    "1d-same-stride3": ((2, 2),),  # ceil(13 / 3) = 5 outputs need 4 * 3 + 5 = 17 cells
    "1d-pairs": ((3, 1),),
    "2d-stride2": ((1, 1), (1, 1)),
    "2d-full-dil2": ((4, 4), (2, 2)),
    "2d-lower-even": ((1, 0), (2, 1)),
    "2d-groups2": ((1, 1), (1, 1)),
    "2d-depthwise-x3": ((1, 1), (0, 1)),  # 5 outputs of 9 need 11 cells, 4 outputs of 8 need 9
    "2d-unbatched": ((1, 1), (1, 1)),
    "3d-dil-pairs": ((1, 0), (0, 2), (3, 2)),
    "4d": ((1, 1), (0, 0), (1, 1), (0, 0)),
}


def other_backend() -> Backend:
    pytest.importorskip("array_api_strict", reason="a second library is not installed: pip install array-api-strict")
    return backends.get("array_api_strict")


def failures(case: Case, *chosen: Backend) -> list[Comparison]:
    return [entry for entry in compare(case, chosen or (NUMPY,)) if not entry.held]


def loops(case: Case, inputs: Inputs, pads: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Compute every quantity, one multiplication at a time, in the kind of numbers that the arrays hold."""
    x, w, b, dout = inputs
    dims = len(pads)
    strides, dilations = (
        (value,) * dims if isinstance(value, int) else value for value in (case.stride, case.dilation)
    )
    batched = x.ndim == dims + 2
    x, dout = (x, dout) if batched else (x[None], dout[None])
    zero = x.flat[0] * 0
    out, dx, dw = (np.full(shape, zero) for shape in (dout.shape, x.shape, w.shape))
    db = np.full(w.shape[:1], zero)
    group_in, group_out = w.shape[1], w.shape[0] // case.groups
    for n, f, *o in np.ndindex(dout.shape):
        if b is not None:
            out[(n, f, *o)] += b[f]
        db[f] += dout[(n, f, *o)]
        for c, k in product(range(group_in), np.ndindex(w.shape[2:])):
            cell = [i * s + t * d - p[0] for i, s, t, d, p in zip(o, strides, k, dilations, pads, strict=True)]
            if all(0 <= i < size for i, size in zip(cell, x.shape[2:], strict=True)):
                read, tap = (n, f // group_out * group_in + c, *cell), (f, c, *k)
                out[(n, f, *o)] += x[read] * w[tap]
                dx[read] += dout[(n, f, *o)] * w[tap]
                dw[tap] += dout[(n, f, *o)] * x[read]
    actual = {"out": out, "dx": dx} if batched else {"out": out[0], "dx": dx[0]}
    return {**actual, "dw": dw, "db": db}


def test_cases_cover_the_contract() -> None:
    assert len(CASES) == len({case.name for case in CASES.values()}) >= 40
    assert len(cases()) == 2 * len(CASES)
    assert {len(case.w_shape) - 2 for case in CASES.values()} == {1, 2, 3, 4}
    assert {case.padding for case in CASES.values()} >= {"valid", "full", "same", "same_lower", 1, (1, 2)}
    assert {case.stride for case in CASES.values()} >= {1, 2, 3, (2, 3)}
    assert {case.dilation for case in CASES.values()} >= {1, 2, (1, 3)}
    assert {case.groups for case in CASES.values()} >= {1, 2, 4, 5}
    assert {case.bias for case in CASES.values()} == {True, False}
    assert {case.padding_mode for case in CASES.values()} == {*PADDING_MODES}
    assert {case.data_format for case in CASES.values()} == {*DATA_FORMATS}
    assert {case.algorithm for case in CASES.values()} >= {"auto", "winograd", "fft", "depthwise"}
    assert any(case.x_shape[0] == 0 for case in CASES.values())
    assert any(len(case.x_shape) < len(case.w_shape) for case in CASES.values())
    assert any(case.x_shape[2:] == case.w_shape[2:] != (1, 1) for case in CASES.values())


def test_some_cases_cut_several_blocks_and_use_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[tuple[int, ...]] = []
    original = type(NUMPY).product

    def counted(self: Any, a: Any, b: Any, out: Any = None) -> Any:
        counts.append(a.shape)
        return original(self, a, b, out)

    monkeypatch.setattr(type(NUMPY), "product", counted)
    actual = {}
    for case in CASES.values():
        counts.clear()
        x, w, b, _ = case.inputs()
        portconv.conv(x, w, b, **case.options, algorithm=case.algorithm)
        actual[case.name] = len(counts)
    large = {case.name for case in CASES.values() if case.operations >= FEW_OPERATIONS}
    assert large == {
        "2d-blocks",
        "2d-blocks-groups",
        "2d-1x1-blocks",
        "2d-last-blocks",
        "2d-winograd-blocks",
        "3d-blocks",
    }
    assert all(actual[name] > 1 for name in large)


def test_a_case_of_spectra_cuts_tiles_in_all_three_products() -> None:
    actual = CASES["1d-fft-tiles"].geometry
    budget = budget_of(actual, NUMPY, 32, 1 << 26)
    # The mirrored convolution computes the input gradient.
    products = ((actual, "forward"), (actual.mirrored, "forward"), (actual, "weight_grad"))
    assert all(len(known()["fft"].plan(kind, own, budget)[0].tiles) > 3 for own, kind in products)


def test_pointwise_cases_take_both_paths() -> None:
    taken = {}
    for name in ("2d-1x1-small", "2d-1x1-large", "2d-1x1-groups", "2d-1x1-stride2", "3d-1x1"):
        taken[name] = CASES[name].terms["dw"] // CASES[name].x_shape[0] >= POINTWISE_COLUMNS
    assert taken == {
        "2d-1x1-small": False,
        "2d-1x1-large": True,
        "2d-1x1-groups": True,
        "2d-1x1-stride2": False,
        "3d-1x1": True,
    }


def digest() -> str:
    actual = hashlib.sha256()
    for case in cases():
        for array in case.inputs():
            actual.update(b"" if array is None else array.tobytes())
    return actual.hexdigest()


def test_inputs_are_the_same_in_another_process() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1])\n"
    code += "from verification import test_verification as own; print(own.digest())"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout.strip() == digest()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs_are_of_their_dtype_and_no_product_underflows(dtype: str) -> None:
    for case in cases([dtype]):
        arrays = case.inputs()
        assert (arrays.b is None) is not case.bias
        for array, shape in zip(arrays, (case.x_shape, case.w_shape, case.w_shape[:1], case.out_shape), strict=True):
            if array is not None:
                assert array.dtype == dtype
                assert array.shape == shape
                assert not array.flags.writeable
                assert case.numbers != "plain" or np.all(np.abs(array) <= 1)
                assert np.all(~np.isfinite(array) | (array == 0) | (np.abs(array) >= 2.0**-52))
                # The numbers are random: ones would not show a flipped gradient.
                assert array.size < 2 or len(np.unique(array)) > array.size // 2


@pytest.mark.parametrize("name", PADS)
def test_exact_values_are_those_of_independent_loops(name: str) -> None:
    case = CASES[name]
    doubles = Inputs(*(None if array is None else array.astype(np.float64) for array in case.inputs()))
    magnitudes = Inputs(*(None if array is None else np.abs(array) for array in doubles))
    expected, sums = loops(case, doubles, PADS[name]), loops(case, magnitudes, PADS[name])
    actual = exact(case)
    assert tuple(actual) == case.quantities
    for quantity, true in actual.items():
        assert true.value.dtype == np.float64
        assert true.value.shape == expected[quantity].shape
        assert np.all(np.abs(true.value - expected[quantity]) <= 2 * true.radius)
        np.testing.assert_allclose(true.plain.magnitude, sums[quantity], rtol=1e-12)


def cancelling(case: Case) -> Inputs:
    """Return inputs over 24 binary orders whose sums nearly cancel: half of the terms nearly negate the others."""
    x, w, b, dout = (a * np.exp2(np.arange(a.size) % 13 * 2.0).reshape(a.shape) for a in case.inputs())
    nearly = -(1 + 2.0**-12)
    x[1] = x[0]
    x[:, 1::2] = nearly * x[:, ::2]
    w[:, 1] = w[:, 0]
    w[1::2] = w[::2]
    dout[1] = nearly * dout[0]
    dout[:, 1::2] = nearly * dout[:, ::2]
    return Inputs(*(array.astype(case.dtype) for array in (x, w, b * 2.0**-24, dout)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bounds_hold_in_exact_arithmetic(dtype: str) -> None:
    case = Case("cancelling", (2, 4, 6, 5), (4, 2, 3, 2), bias=True, stride=(2, 1), padding=1, groups=2, dtype=dtype)
    inputs = cancelling(case)
    fractions = Inputs(*(np.vectorize(Fraction, otypes=[object])(array.astype(np.float64)) for array in inputs))
    pads = ((1, 1), (1, 1))
    expected = loops(case, fractions, pads)
    sums = loops(case, Inputs(*(np.abs(array) for array in fractions)), pads)
    x, w, b, dout = inputs
    out, cache = portconv.conv_forward(x, w, b, **case.options)
    actual = {"out": out, **portconv.conv_backward(dout, cache)._asdict()}
    true = exact(case, inputs)
    for quantity, values in actual.items():
        reach, radius = true[quantity].reach(dtype, "standard"), true[quantity].radius
        for index in np.ndindex(values.shape):
            really = expected[quantity][index]
            assert abs(Fraction(float(values[index])) - really) <= Fraction(float(reach[index]))
            assert abs(Fraction(float(true[quantity].value[index])) - really) <= Fraction(float(radius[index]))
            # n times the unit roundoff times the exact sum of magnitudes: the bound is at most 0.1 % larger.
            unit = Fraction(float(np.finfo(dtype).eps)) / 2 * sums[quantity][index]
            n = case.terms[quantity]
            assert n * unit <= Fraction(float(reach[index])) <= Fraction(1001, 1000) * n * unit
            assert abs(really) <= sums[quantity][index] / 100


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_the_bound_of_spectra_is_that_of_independent_norms(dtype: str, last: bool) -> None:
    x_shape = (3, 7, 6, 4) if last else (3, 4, 7, 6)
    form = "channels_last" if last else "channels_first"
    case = Case("norms", x_shape, (6, 2, 3, 4), True, 1, ((2, 1), (0, 5)), (2, 1), 2, data_format=form, dtype=dtype)
    inputs = case.inputs()
    x, w, b, dout = (np.asarray(a, np.float64) for a in inputs)
    x, dout = (np.moveaxis(a, -1, 1) if last else a for a in (x, dout))
    problem = Problem(x.shape, w.shape, (1, 1), ((2, 1), (0, 5)), (2, 1), 2)
    magnitudes, terms = problem.spectra(*map(np.abs, (x, w, b, dout))), problem.spectral_terms()
    for name, true in exact(case, inputs).items():
        reach = true.reach(dtype, "standard", "fft")
        if name == "db":
            assert np.array_equal(reach, true.reach(dtype, "standard"))
            continue
        assert true.others("fft").terms == terms[name]
        expected = relative(terms[name], dtype, "standard", products=True) * magnitudes[name]
        np.testing.assert_allclose(np.moveaxis(reach, -1, 1) if last and name != "dw" else reach, expected, rtol=1e-10)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_the_bound_of_spectra_holds_in_exact_arithmetic(mode: str) -> None:
    case = Case(
        "cancelling", (2, 4, 5, 6), (4, 2, 4, 3), bias=True, padding=2, groups=2, padding_mode=mode, algorithm="fft"
    )
    inputs = cancelling(case)
    doubles = Inputs(*(array.astype(np.float64) for array in inputs))
    x, w, b, dout = inputs
    out, cache = portconv.conv_forward(x, w, b, **case.options, algorithm="fft")
    actual = {"out": out, **portconv.conv_backward(dout, cache)._asdict()}
    assert {plan.algorithm for plan in plans_of(cache).values()} == {"fft"}
    # Sums of few products of float32 numbers over 24 binary orders are nearly exact in float64: see `radius`.
    true = exact(case, doubles)
    beyond = 0
    for quantity, values in actual.items():
        error = np.abs(values - true[quantity].value)
        assert np.all(error <= true[quantity].reach("float32", "standard", "fft") + true[quantity].radius)
        beyond += np.sum(error > true[quantity].reach("float32", "standard"))
    assert beyond  # some errors exceed the bound of plain sums, which does not hold for spectra


def test_each_product_is_judged_by_the_algorithm_that_served_it(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in cases(["float32"]) if case.name == "2d-bias")
    true = exact(case)
    reaches = {
        name: {a: true[name].reach("float32", "standard", a) for a in ("gemm", "fft")} for name in case.quantities
    }
    for served, tight in (("out", "dx"), ("dx", "dw"), ("dw", "dx")):
        with monkeypatch.context() as patch:
            algorithms = {name: "fft" if name == served else "gemm" for name in comparison.PRODUCTS}
            patch.setattr(comparison, "plans_of", lambda _, plans=algorithms: plans)
            patch.setattr(comparison, "bounded_as", lambda algorithm, _: [algorithm])
            # The error is beyond the bound of sums, and within that of spectra.
            for name in (served, tight):
                spoil(patch, name, off_by(4, reaches[name]["gemm"], true[name].value))
                assert np.all(4 * reaches[name]["gemm"] < reaches[name]["fft"])
            assert [entry.quantity for entry in failures(replace(case, algorithm="gemm"))] == [tight]


@pytest.mark.parametrize("name", ["1d-fft-tiles", "2d-fft-depthwise", "2d-fft-groups", "2d-depthwise-s2-x2"])
def test_a_tap_that_is_left_out_is_caught(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case = next(case for case in cases(["float64"]) if case.name == name)
    w = case.inputs().w
    without = np.array(w)
    without.reshape(-1)[w.size // 2] = 0
    algorithm = known()[case.algorithm]
    original = algorithm.forward

    def fewer(geometry: Any, backend: Any, bounds: Any, x: Any, arrays: Any, b: Any) -> Any:
        return original(geometry, backend, bounds, x, without if arrays.shape == w.shape else arrays, b)

    monkeypatch.setattr(algorithm, "forward", fewer)
    out = [entry for entry in compare(case, [NUMPY]) if entry.quantity == "out"]
    assert [entry.held for entry in out] == [False]
    assert out[0].units > 1000


def test_a_legitimate_order_of_summation_nearly_reaches_the_bound() -> None:
    # 1 + u is rounded back to 1 each time, so the last 1000 terms are lost.
    terms = np.array([1.0] + [2.0**-24] * 1000, np.float32)
    total = np.float32(0)
    for term in terms:
        total += term
    lost = float(terms.astype(np.float64).sum()) - float(total)
    allowed = relative(len(terms), "float32", "standard", products=True) * float(terms.astype(np.float64).sum())
    assert 0.99 * allowed < lost <= allowed


def test_fast_precision_allows_tf32_in_float32_products_alone() -> None:
    standard = relative(9, "float32", "standard", products=True)
    assert standard == pytest.approx(9 * 2.0**-24, rel=1e-5)
    assert relative(9, "float32", "fast", products=True) == pytest.approx(2 * 2.0**-10, rel=2e-3)
    assert relative(9, "float32", "fast", products=False) == standard
    assert relative(9, "float64", "fast", products=True) == gamma(9)


def test_all_cases_hold_on_numpy() -> None:
    report = Report([entry for case in cases() for entry in compare(case, [NUMPY])])
    assert report.failures == []
    assert report.held
    assert len(report.comparisons) == sum(len(case.quantities) for case in cases())
    # Errors of exactly 0 would mean that float32 was ignored.
    assert all(0 < row.units < 1 for row in report.against_truth() if row.dtype == "float32")


def test_libraries_are_compared_with_one_another() -> None:
    actual = [entry for entry in compare(CASE, [other_backend(), NUMPY]) if entry.other is not None]
    assert [(entry.backend, entry.other, entry.quantity) for entry in actual] == [
        ("array_api_strict", "numpy", quantity) for quantity in CASE.quantities
    ]
    assert all(entry.held and 0 < entry.equal <= entry.elements for entry in actual)


Change = Callable[[Any], Any]


def spoil(monkeypatch: pytest.MonkeyPatch, quantity: str, change: Change, backend: Backend = NUMPY) -> None:
    """Apply `change` to the results of one quantity on one backend."""
    spoilt = {"out": "forward", "dx": "input_grad", "dw": "weight_grad"}[quantity]
    original = GEMM.compute

    def changed(kind: str, geometry: Any, used: Backend, *arrays: Any) -> Any:
        result = original(kind, geometry, used, *arrays)
        return change(result) if used is backend and kind == spoilt else result

    monkeypatch.setattr(GEMM, "compute", changed)


def off_by(times: float, bound: np.ndarray, value: np.ndarray) -> Change:
    """Return a change that moves one element away from its exact value, by `times` the bound."""
    index = tuple(n // 2 for n in value.shape)

    def change(result: Any) -> Any:
        result[index] = (value[index] + times * bound[index]).item()
        return result

    return change


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("quantity", ["out", "dx", "dw"])
@pytest.mark.parametrize(("times", "caught"), [(2, True), (-2, True), (0.5, False), (-0.5, False)])
def test_twice_the_bound_is_caught_and_half_of_it_is_not(
    monkeypatch: pytest.MonkeyPatch, dtype: str, quantity: str, times: float, caught: bool
) -> None:
    case = next(case for case in cases([dtype]) if case.name == "2d-same-s3-dil2")
    true = exact(case)[quantity]
    bound = true.reach(dtype, "standard") + true.radius
    spoil(monkeypatch, quantity, off_by(times, bound, true.value))
    actual = failures(case)
    assert [(entry.backend, entry.case, entry.quantity) for entry in actual] == (
        [("numpy", case.name, quantity)] if caught else []
    )
    if caught:
        assert actual[0].units == pytest.approx(2, rel=0.2)


def test_a_broken_product_is_caught_in_all_three_products_but_not_in_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    def product_without_last_term(self: Any, a: Any, b: Any, out: Any = None) -> Any:
        return np.matmul(a[..., :-1], b[..., :-1, :], out=out)

    monkeypatch.setattr(type(NUMPY), "product", product_without_last_term)
    assert [entry.quantity for entry in failures(CASE)] == ["out", "dx", "dw"]


def test_low_precision_products_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def tf32(a: Any) -> Any:
        # TF32 does not have the 13 lowest bits of the significand.
        return (np.ascontiguousarray(a).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)

    monkeypatch.setattr(type(NUMPY), "product", lambda _, a, b, out=None: np.matmul(tf32(a), tf32(b), out=out))
    assert [entry.quantity for entry in failures(CASE)] == ["out", "dx", "dw"]
    assert all(entry.held for entry in compare(CASE, [NUMPY], "fast"))


@pytest.mark.parametrize("quantity", ["dw", "dx"])
def test_a_flipped_gradient_is_caught(monkeypatch: pytest.MonkeyPatch, quantity: str) -> None:
    spoil(monkeypatch, quantity, lambda result: np.flip(result, (2, 3)).copy())
    actual = failures(CASE)
    assert [entry.quantity for entry in actual] == [quantity]
    assert actual[0].units > 1000


def test_a_transposed_kernel_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "dw", lambda result: np.swapaxes(result, 2, 3).copy())
    assert [entry.quantity for entry in failures(CASE)] == ["dw"]


def test_a_broken_bias_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = comparison.conv_backward
    monkeypatch.setattr(comparison, "conv_backward", lambda *args: (g := original(*args))._replace(db=g.db[::-1]))
    assert [entry.quantity for entry in failures(CASE)] == ["db"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_caught(monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    def change(result: Any) -> Any:
        result[0, 1, 2, 1] = bad
        return result

    spoil(monkeypatch, "dx", change)
    (actual,) = failures(CASE)
    assert (actual.quantity, actual.units, actual.epsilons, actual.ulps) == ("dx", np.inf, np.inf, None)
    assert (actual.where, str(actual.got)) == ((0, 1, 2, 1), str(bad))
    words = "numpy: 2d-stride2 float32 dx: no finite number at [0, 1, 2, 1]"
    assert str(actual) == f"{words} (got {bad}, exact {actual.expected:.9g})"


def test_an_error_where_none_is_allowed_is_beyond_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    original = comparison.conv_backward
    change = np.float32(1e-30)
    monkeypatch.setattr(comparison, "conv_backward", lambda *args: (g := original(*args))._replace(dw=g.dw + change))
    (actual,) = failures(CASES["2d-batch0"])
    assert (actual.quantity, actual.units, actual.ulps) == ("dw", np.inf, None)
    words = "numpy: 2d-batch0 float32 dw: off where the bound is 0 at [0, 0, 0, 0]"
    assert str(actual) == f"{words} (got 1e-30, exact 0)"


@pytest.mark.parametrize(
    ("quantity", "change", "words"),
    [
        ("out", lambda result: result.astype(np.float64), "got dtype float64, expected float32"),
        ("out", lambda result: result[:, :, :-1], "got shape (2, 4, 4, 5), expected (2, 4, 5, 5)"),
        ("dx", lambda result: result[:1], "got shape (1, 3, 9, 10), expected (2, 3, 9, 10)"),
        ("dw", lambda result: np.swapaxes(result, 0, 1), "got shape (3, 4, 3, 3), expected (4, 3, 3, 3)"),
    ],
)
def test_a_wrong_form_is_caught_before_values(
    monkeypatch: pytest.MonkeyPatch, quantity: str, change: Change, words: str
) -> None:
    spoil(monkeypatch, quantity, change)
    (actual,) = failures(CASE)
    assert (actual.quantity, actual.problem) == (quantity, words)
    assert actual.units == np.inf


def test_a_result_that_is_no_array_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = comparison.conv_forward

    def changed(*arguments: Any, **options: Any) -> Any:
        out, cache = original(*arguments, **options)
        return out.tolist(), cache

    monkeypatch.setattr(comparison, "conv_forward", changed)
    (actual,) = failures(CASE)
    assert (actual.quantity, actual.problem) == ("out", "raised ConvTypeError: got list, expected an array")
    assert actual.units == np.inf


def test_a_result_of_another_library_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_backend()
    spoil(monkeypatch, "out", other.to_numpy, other)
    actual = failures(CASE, NUMPY, other)
    assert [(entry.backend, entry.quantity, entry.problem) for entry in actual] == [
        ("array_api_strict", "out", "got an array of numpy, expected one of array_api_strict")
    ]


def test_a_result_on_another_device_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_backend()
    elsewhere = other.devices()[1]
    spoil(monkeypatch, "out", lambda result: result.to_device(elsewhere), other)
    (actual,) = failures(CASE, other)
    assert actual.quantity == "out"
    assert actual.problem is not None
    assert actual.problem.startswith("got device")


def test_a_bias_gradient_out_of_nowhere_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = comparison.conv_backward
    monkeypatch.setattr(comparison, "conv_backward", lambda *args: original(*args)._replace(db=np.zeros(4)))
    (actual,) = failures(CASES["2d"])
    assert (actual.quantity, actual.problem) == ("db", "got ndarray, expected None where there is no bias")


@pytest.mark.parametrize(("quantity", "lost"), [("out", ["out", "dx", "dw", "db"]), ("dw", ["dx", "dw", "db"])])
def test_an_exception_is_a_failure_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, quantity: str, lost: list[str]
) -> None:
    def change(result: Any) -> Any:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\n  in two lines")

    spoil(monkeypatch, quantity, change)
    actual = compare(CASE, [NUMPY])
    assert [entry.quantity for entry in actual if not entry.held] == lost
    assert [entry.quantity for entry in actual] == list(CASE.quantities)
    words = "raised RuntimeError: CUBLAS_STATUS_NOT_SUPPORTED in two lines"
    assert {entry.problem for entry in actual if not entry.held} == {words}


def test_the_broken_one_of_two_libraries_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_backend()
    true = exact(CASE)["dw"]
    spoil(monkeypatch, "dw", off_by(8, true.reach("float32", "standard"), true.value), other)
    actual = failures(CASE, NUMPY, other)
    assert [(entry.backend, entry.other, entry.quantity) for entry in actual] == [
        ("array_api_strict", None, "dw"),
        ("numpy", "array_api_strict", "dw"),
    ]


def test_a_library_that_writes_to_its_inputs_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_backend()
    original = GEMM.weight_grad

    def overwriting(geometry: Any, backend: Backend, bounds: Any, dout: Any, x: Any) -> Any:
        result = original(geometry, backend, bounds, dout, x)
        if backend is NUMPY:
            x[...] = 0
        return result

    monkeypatch.setattr(GEMM, "weight_grad", overwriting)
    assert all(entry.backend == "numpy" for entry in failures(CASE, NUMPY, other))


class Single(Backend):
    """A library without float64, as some devices are."""

    name = "single"

    class xp:
        float32 = "float32"

        @staticmethod
        def __array_namespace_info__() -> Any:
            class Info:
                @staticmethod
                def dtypes(*, kind: Any) -> dict[str, str]:
                    return {"float32": "float32"}

            return Info


def test_a_dtype_that_a_library_lacks_is_said_in_words() -> None:
    assert unsupported(Single(), "float32") is None
    assert unsupported(Single(), "float64") == "has no float64 on its default device"
    assert unsupported(NUMPY, "float64") is None


def test_a_device_that_lacks_a_dtype_is_said_in_words() -> None:
    other = other_backend()
    devices = {str(device): device for device in other.devices()}
    lacking = devices["array_api_strict.Device('no_float64')"]
    assert unsupported(other, "float32", lacking, "no_float64") is None
    assert unsupported(other, "float64", lacking, "no_float64") == "has no float64 on device no_float64"


def test_the_worst_element_is_told_with_a_map_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    true = exact(CASE)["dx"]
    bound = true.reach("float32", "standard") + true.radius

    def change(result: Any) -> Any:
        result[1, 2, 7, 3] = true.value[1, 2, 7, 3] - 5 * bound[1, 2, 7, 3]
        result[1, 2, 0, 9] = true.value[1, 2, 0, 9] + 3 * bound[1, 2, 0, 9]
        return result

    spoil(monkeypatch, "dx", change)
    (actual,) = failures(CASE)
    assert actual.where == (1, 2, 7, 3)
    assert actual.expected == true.value[1, 2, 7, 3]
    assert actual.got == pytest.approx(true.value[1, 2, 7, 3] - 5 * bound[1, 2, 7, 3], rel=1e-6)
    assert actual.units == pytest.approx(5, rel=0.1)
    assert (sum(actual.counts), actual.counts[-1]) == (true.value.size, 2)
    plane = actual.plane
    assert plane is not None
    assert (plane.index, plane.rows, plane.columns, plane.size) == ("[1, 2, :, :]", "row", "column", (9, 10))
    assert plane.cell == (7, 3)
    assert plane.values[7, 3] == actual.units
    assert np.argwhere(plane.values > 1).tolist() == [[0, 9], [7, 3]]


@pytest.mark.parametrize(
    ("case", "quantity", "index", "expected"),
    [
        (Case("wide", (1, 2, 3, 130), (4, 2, 3, 3), padding=1), "out", (0, 3, 2, 129), ("row", "column", (2, 43))),
        (
            Case("last", (2, 5, 6, 3), (4, 3, 1, 1), data_format="channels_last"),
            "dx",
            (1, 4, 2, 0),
            ("row", "column", (4, 2)),
        ),
        (Case("one", (2, 3, 9), (4, 3, 1)), "dw", (3, 1, 0), ("filter", "channel", (3, 1))),
        (Case("line", (2, 3, 9), (4, 3, 3)), "out", (1, 2, 5), ("filter", "cell", (2, 5))),
        (Case("bias", (2, 3, 9), (4, 3, 3), bias=True), "db", (2,), ("", "filter", (0, 2))),
        (Case("single", (3, 4, 5), (2, 3, 1, 1)), "dx", (2, 3, 1), ("row", "column", (3, 1))),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_a_map_is_of_the_axes_with_most_to_see(
    case: Case, quantity: str, index: tuple[int, ...], expected: tuple[str, str, tuple[int, int]]
) -> None:
    true = exact(case)[quantity].value
    actual = true.astype(np.float32)
    actual[index] += 1
    plane = figures.figures(actual, true, np.full(true.shape, 0.5), true, case, quantity).plane
    assert plane is not None
    assert (plane.rows, plane.columns, plane.cell) == expected
    assert plane.values[plane.cell] == plane.values.max() == pytest.approx(2, abs=1e-3)
    assert max(plane.values.shape) <= figures.MOST_CELLS


def test_errors_are_counted_by_size() -> None:
    case = Case("sizes", (1, 1, 6), (1, 1, 1))
    true = np.ones((1, 1, 6))
    actual = true + np.array([0, 2.0**-13, 2.0**-12, 0.5, 1, 1.5]) / 4
    counted = figures.figures(actual, true, np.full(true.shape, 0.25), true, replace(case, dtype="float64"), "out")
    assert [(place, count) for place, count in enumerate(counted.counts) if count] == [
        (0, 1),
        (1, 2),
        (12, 1),
        (13, 1),
        (14, 1),
    ]
    assert (counted.units, counted.where, counted.equal) == (1.5, (0, 0, 5), 1)


def rounded_apart(monkeypatch: pytest.MonkeyPatch, change: Change, when: Callable[[Any], bool]) -> None:
    """Change reproducible outputs, of inputs that `when` holds of."""
    original = comparison.conv_forward

    def changed(x: Any, *arguments: Any, **options: Any) -> Any:
        out, cache = original(x, *arguments, **options)
        return (change(out) if when(x) else out), cache

    monkeypatch.setattr(comparison, "conv_forward", changed)


def next_number(out: Any) -> Any:
    out[0, 1, 2, 3] = np.nextafter(out[0, 1, 2, 3], np.float32(9))
    return out


def other_zero(out: Any) -> Any:
    out[0, 1, 2, 3] = -0.0
    return out


def test_reproducible_results_have_equal_bits_in_every_way() -> None:
    ways = [Variant(NUMPY), Variant(NUMPY, threads=1), Variant(NUMPY, threads=2), Variant(NUMPY, halves=True)]
    actual = compare(CASES["2d-blocks"], ways, "reproducible")
    assert all(entry.held for entry in actual)
    assert [(entry.other, entry.quantity) for entry in actual if entry.to_the_bit] == [
        *(("numpy (1 thread)", name) for name in ("out", "dx", "dw", "db")),
        *(("numpy (2 threads)", name) for name in ("out", "dx", "dw", "db")),
        *(("numpy (halves)", name) for name in ("out", "dx")),
    ]
    assert {(entry.units, entry.elements - entry.equal) for entry in actual if entry.to_the_bit} == {(0.0, 0)}


def test_one_other_bit_is_a_failure_of_reproducible_results(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded_apart(monkeypatch, next_number, lambda x: len(x) == 1)  # what halves alone have
    ways = [Variant(NUMPY), Variant(NUMPY, halves=True)]
    actual = [entry for entry in compare(CASES["2d-bias"], ways, "reproducible") if not entry.held and entry.to_the_bit]
    assert [(entry.backend, entry.other, entry.quantity, entry.where) for entry in actual] == [
        ("numpy", "numpy (halves)", "out", (0, 1, 2, 3))
    ]
    # The first sample of each half.
    words = "numpy and numpy (halves): 2d-bias float32 out, reproducible: bits differ in 2 of 576 elements, "
    assert str(actual[0]).startswith(f"{words}the furthest apart by 1 ulp at [0, 1, 2, 3] (numpy ")


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16, "complex64", "complex128"])
def test_one_other_bit_is_a_failure_in_halves_and_complex_numbers(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    def changed(out: Any) -> Any:
        whole = out[0, 1, 2, 3:4].view(np.uint8)
        # The last bit, of imaginary parts where there are such.
        whole[len(whole) // 2 if dtype.startswith("complex") else 0] ^= 1
        return out

    case, ways = replace(CASES["2d-bias"], dtype=dtype), [Variant(NUMPY), Variant(NUMPY, threads=1)]
    assert all(entry.held for entry in compare(case, ways, "reproducible"))
    rounded_apart(monkeypatch, changed, lambda _: call_limits.threads() == 1)
    actual = [entry for entry in compare(case, ways, "reproducible") if not entry.held and entry.to_the_bit]
    assert [(entry.quantity, entry.where, entry.elements - entry.equal) for entry in actual] == [
        ("out", (0, 1, 2, 3), 1)
    ]


def test_another_zero_is_another_number_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_backend()
    empty = Inputs(*(np.zeros_like(array) for array in CASE.inputs()))
    assert all(entry.held for entry in compare(CASE, [NUMPY, other], "reproducible", empty))
    rounded_apart(monkeypatch, other_zero, lambda x: isinstance(x, np.ndarray))
    actual = [entry for entry in compare(CASE, [NUMPY, other], "reproducible", empty) if not entry.held]
    assert [(entry.other, entry.quantity, entry.units) for entry in actual] == [("array_api_strict", "out", np.inf)]
    assert all(entry.held for entry in compare(CASE, [NUMPY, other], inputs=empty))


def test_which_ways_are_compared() -> None:
    other = other_backend()
    elsewhere = {"device": other.devices()[1], "device_name": "device1"}
    ways = [
        Variant(NUMPY),
        Variant(NUMPY, threads=2),
        Variant(other),
        Variant(other, **elsewhere),
        Variant(other, **elsewhere, halves=True),
    ]
    assert [(one.label, two.label) for one, two in variants.pairs(ways)] == [
        ("numpy", "array_api_strict"),
        ("numpy", "array_api_strict (device1)"),
        ("array_api_strict", "array_api_strict (device1)"),
        ("numpy", "numpy (2 threads)"),
        ("array_api_strict (device1)", "array_api_strict (device1, halves)"),
    ]
    assert all(entry.held for entry in compare(CASE, ways))


def test_results_are_computed_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_backend()
    device = other.devices()[1]
    seen = []
    original = comparison.conv_forward
    monkeypatch.setattr(comparison, "conv_forward", lambda x, *a, **o: (seen.append(x.device), original(x, *a, **o))[1])
    assert all(entry.held for entry in compare(CASE, [Variant(other, device, "device1")]))
    assert seen == [device]


def test_a_way_holds_the_threads_of_portconv_and_of_the_libraries_beneath() -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info()]

    before = threads()
    with Variant(NUMPY, threads=1).held():
        assert call_limits.threads() == 1
        assert set(threads()) <= {1}
    assert (call_limits.threads(), threads()) == (None, before)


def test_an_algorithm_that_cannot_serve_is_said() -> None:
    assert unserved(CASES["2d-winograd"]) is None
    assert str(unserved(replace(CASES["2d-stride2"], algorithm="winograd"))).startswith("algorithm: got 'winograd'")
    assert unserved(CASES["2d-winograd"], "reproducible") is not None


def test_numbers_of_a_cases_own_are_taken() -> None:
    w, b = np.full((4, 3, 3, 3), 0.5), np.arange(4.0)
    for dtype in ("float32", "float64"):
        own = replace(CASES["2d-bias"], w=w, b=b, dtype=dtype).inputs()
        assert (own.w.dtype, own.b.dtype) == (dtype, dtype)
        assert np.array_equal(own.w, w)
        assert np.array_equal(own.b, b)
        assert np.array_equal(own.x, replace(CASES["2d-bias"], dtype=dtype).inputs().x)


def test_a_report_keeps_the_map_of_the_worst_alone() -> None:
    entry = compare(CASE, [NUMPY, other_backend()])
    report = Report()
    report.take(entry)
    assert all(one.plane is None for one in report.comparisons)
    assert report.comparisons == entry
    against = [one for one in entry if one.other is None]
    assert report.worst[False].units == max(one.units for one in against)
    assert report.worst[False].plane is not None
    report.take([replace(against[0], units=1e-9)])
    assert report.worst[False].units == max(one.units for one in against)


def test_digests_are_equal_where_every_bit_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [Variant(NUMPY), Variant(NUMPY, threads=1), Variant(NUMPY, halves=True)]

    def digests() -> dict[str, str]:
        report = Report(variants=ways)
        for case in (CASES["2d-bias"], CASES["1d"]):
            report.take(compare(case, ways, "reproducible"))
        return {digest.backend: digest.sha256 for digest in report.digests()}

    # A variant in halves has no digest, because it has no gradients of filters.
    first = digests()
    assert list(first) == ["numpy", "numpy (1 thread)"]
    assert len(set(first.values())) == 1
    assert digests() == first
    rounded_apart(monkeypatch, next_number, lambda x: x.ndim == 4 and call_limits.threads() == 1)
    changed = digests()
    assert changed["numpy"] == first["numpy"] != changed["numpy (1 thread)"]


def test_a_digest_of_a_result_is_that_of_its_bytes() -> None:
    actual = next(entry for entry in compare(CASE, [NUMPY]) if entry.quantity == "dw")
    x, w, b, dout = CASE.inputs()
    _, cache = portconv.conv_forward(x, w, b, **CASE.options)
    dw = portconv.conv_backward(dout, cache).dw
    assert actual.sha256 == hashlib.sha256(dw.astype("<f4").tobytes()).hexdigest()


def test_a_report_of_nothing_has_not_held() -> None:
    assert not Report().held
    assert Report().summary() == "nothing was compared"


def test_a_report_sums_up() -> None:
    def entry(units: float, other: str | None = None, quantity: str = "out") -> Comparison:
        ulps = 10 * units
        return Comparison("numpy", other, f"case {units}", "float32", quantity, units, 1 / units, 4, 3, ulps=ulps)

    report = Report([entry(0.25), entry(0.75), entry(3.0, quantity="dx"), entry(0.5, "torch")])
    first, second = report.against_truth()
    assert (first.quantity, first.count, first.failed, first.units, first.worst) == ("out", 2, 0, 0.75, "case 0.75")
    assert (first.epsilons, first.ulps) == (4.0, 7.5)  # the largest of all, and that of the worst element
    assert (second.quantity, second.failed, second.units, second.ulps) == ("dx", 1, 3.0, 30.0)
    (pair,) = report.pairs()
    assert (pair.backend, pair.other, pair.equal) == ("numpy", "torch", 0.75)
    assert report.summary() == "4 comparisons on 1 backend: 1 out of bounds"
    assert str(report.failures[0]) == "numpy: case 3.0 float32 dx: off by 3 times the bound, 30 ulps"
    assert str(entry(2.0, "torch")).startswith("numpy and torch: case 2.0 float32 out: apart by 2 times the bound")


def complex_loops(case: Case, inputs: Inputs, pads: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Compute what `loops` does; gradients multiply by conjugates."""
    x, w, b, dout = inputs
    actual = loops(case, Inputs(np.conj(x), np.conj(w), b, dout), pads)
    return {**actual, "out": loops(case, inputs, pads)["out"]}


SMALL = Case("small", (2, 4, 6, 5), (4, 2, 3, 2), bias=True, stride=(2, 1), padding=1, groups=2)
SMALL_PADS = ((1, 1), (1, 1))
HALF_UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half the distance from 1 to the next number."""


def results(case: Case, inputs: Inputs) -> dict[str, Any]:
    x, w, b, dout = inputs
    out, cache = portconv.conv_forward(x, w, b, **case.options)
    return {"out": out, **portconv.conv_backward(dout, cache)._asdict()}


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16])
def test_bounds_of_halves_hold_in_exact_arithmetic(dtype: str) -> None:
    case = replace(SMALL, dtype=dtype)
    inputs = case.inputs()
    fractions = Inputs(*(np.vectorize(Fraction, otypes=[object])(array.astype(np.float64)) for array in inputs))
    expected = loops(case, fractions, SMALL_PADS)
    sums = loops(case, Inputs(*(np.abs(array) for array in fractions)), SMALL_PADS)
    true, unit, worst = exact(case, inputs), Fraction(HALF_UNIT[dtype]), 0.0
    for quantity, values in results(case, inputs).items():
        assert values.dtype == inputs.x.dtype
        reach = true[quantity].reach(dtype, "standard")
        for index in np.ndindex(values.shape):
            really = expected[quantity][index]
            error = abs(Fraction(float(values[index])) - really)
            assert error <= Fraction(float(reach[index]))
            # The sum is rounded in float32, and its result, at most 1 + 2 h times as large, to the 16-bit dtype.
            sum_in_single = case.terms[quantity] * Fraction(2) ** -24 * sums[quantity][index]
            least = sum_in_single + unit * abs(really)
            assert least <= Fraction(float(reach[index])) <= (1 + 3 * unit) * least + unit * Fraction(2) ** -14
            worst = max(worst, float(error / Fraction(float(reach[index]))))
    # One of some hundred roundings is of nearly half a unit, so the bound is not much too large.
    assert worst > 0.8


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_bounds_of_complex_numbers_are_those_of_both_parts(dtype: str) -> None:
    case = replace(SMALL, dtype=dtype)
    # The numbers are multiples of 2**-22 below 1: sums of products are exact in complex128, and rounded in complex64.
    inputs = Inputs(*(np.round(array.astype(np.complex128) * 2**22) / 2**22 for array in case.inputs()))
    arrays = Inputs(*(array.astype(dtype) for array in inputs))
    expected = complex_loops(case, inputs, SMALL_PADS)
    sums = loops(case, Inputs(*(np.abs(array.real) + np.abs(array.imag) for array in inputs)), SMALL_PADS)
    true, u = exact(case, arrays), {"complex64": 2.0**-24, "complex128": 2.0**-53}[dtype]
    for quantity, values in results(case, arrays).items():
        reach = true[quantity].reach(dtype, "standard")
        assert values.dtype == dtype
        assert np.array_equal(true[quantity].value, expected[quantity])
        assert np.all(np.abs(values - expected[quantity]) <= reach)
        assert np.any(values != expected[quantity]) == (dtype == "complex64")
        n = case.terms[quantity] * (1 if quantity == "db" else 2)
        # Three operations are rounded in float64: the sums, the product by gamma, and that by the root.
        np.testing.assert_allclose(reach, np.sqrt(2) * n * u / (1 - n * u) * sums[quantity], rtol=n * 2.0**-50)


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16, "complex64", "complex128"])
def test_inputs_of_halves_and_complex_numbers(dtype: str) -> None:
    for case in (case for case in cases([dtype]) if case.numbers == "plain"):
        arrays = case.inputs()
        singles = replace(case, dtype="float64").inputs()
        for array, single in zip(arrays, singles, strict=True):
            if array is None or single is None:
                continue
            assert array.dtype.name == dtype
            assert not array.flags.writeable
            wide = array.astype(np.complex128)
            # The real parts are the numbers of other dtypes, rounded once, and the imaginary parts are different ones.
            assert np.all(np.abs(wide.real - single) <= HALF_UNIT.get(dtype, 2.0**-24))
            if dtype.startswith("complex") and array.size > 1:
                assert np.all(np.abs(wide.imag) <= 1)
                assert not np.any(wide.imag == wide.real)


def test_figures_are_of_the_elements_that_they_are_said_of() -> None:
    # In float32, an ulp is 2**-23 at 1, 2**-21 at 4 and 2**-43 at 2**-20; epsilon is 2**-23.
    true = np.array([[[1.0, 4.0, 2.0**-20, 0.0, -2.0]]])
    errors = np.array([[[0.0, 2.0**-21, 2.0**-40, 2.0**-45, 3 * 2.0**-22]]])
    bound = np.array([[[1.0, 2.0**-20, 2.0**-30, 2.0**-30, 2.0**-22]]])
    case = Case("figures", (1, 1, 5), (1, 1, 1))
    summary = figures.figures((true + errors).astype(np.float32), true, bound, true, case, "out")
    # The last element is the worst; that near 0 is off by 8 ulps, and the largest error is 6 epsilons of 1, 1.5 of 4.
    assert (summary.units, summary.where, summary.ulps) == (3, (0, 0, 4), 3)
    assert (summary.epsilons, summary.equal, summary.counts[0]) == (1.5, 1, 1)
    # An element whose exact value is 0 has no ulps, and an array of zeros has no scale.
    bound[0, 0, 3] = 2.0**-60
    summary = figures.figures((true + errors).astype(np.float32), true, bound, true, case, "out")
    assert (summary.where, summary.ulps, summary.epsilons) == ((0, 0, 3), None, 1.5)
    zeros = np.zeros_like(true)
    summary = figures.figures(zeros.astype(np.float32), zeros, bound, zeros, case, "out")
    assert (summary.units, summary.epsilons, summary.where, summary.ulps) == (0, 0, None, None)


def test_the_element_that_a_sentence_names_has_that_error() -> None:
    case = next(case for case in cases(["float32"]) if case.name == "2d-1x1-groups")
    true, (x, w, b, dout) = exact(case), case.inputs()
    out, cache = portconv.conv_forward(x, w, b, **case.options)
    got = {"out": out, **portconv.conv_backward(dout, cache)._asdict()}
    for entry in compare(case, [NUMPY]):
        value = true[entry.quantity].value
        assert entry.expected == value[entry.where]
        assert entry.ulps == abs(entry.got - entry.expected) / float(np.spacing(np.float32(abs(entry.expected))))
        assert f", {entry.ulps:.3g} ulp" in str(entry)
        largest = np.max(np.abs(got[entry.quantity] - value)) / np.max(np.abs(value))
        assert entry.epsilons == pytest.approx(largest * 2.0**23, rel=1e-12)  # a few roundings in float64


def test_an_exception_is_named_once_and_is_no_error_of_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    original = comparison.conv_forward

    def raising(x: Any, *arguments: Any, **options: Any) -> Any:
        if x.ndim == 4:
            raise RuntimeError(f"no kernel for {x.shape}")
        return original(x, *arguments, **options)

    monkeypatch.setattr(comparison, "conv_forward", raising)
    report = Report()
    for name in ("1d-stride2", "2d", "2d-bias", "2d-image"):
        report.take(compare(CASES[name], [NUMPY]))
    (problem,) = report.problems
    assert (problem.backend, problem.cases, problem.first) == ("numpy", 3, "2d float32")
    words = "numpy, 3 cases (the first is 2d float32): raised RuntimeError: no kernel for (2, 3, 8, 9)"
    assert str(problem) == words
    assert (report.held, report.failures) == (False, [])
    assert report.summary() == "4 comparisons on 1 backend: all within bounds, 3 cases without a result"
    printed = report.as_json()
    assert (printed["comparisons"], printed["out_of_bounds"], printed["failures"]) == (4, 0, [])
    assert [entry["text"] for entry in printed["problems"]] == [words]
    assert report.digests() == []
    row = report.against_truth()[0]
    assert (row.quantity, row.count, row.failed, row.lost) == ("out", 1, 0, 3)
    assert 0 < row.units < 1


def test_two_exceptions_of_one_library_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(x: Any, *arguments: Any, **options: Any) -> Any:
        raise (ValueError if x.ndim == 3 else RuntimeError)("no")

    monkeypatch.setattr(comparison, "conv_forward", raising)
    report = Report()
    for name in ("1d-stride2", "2d"):
        report.take(compare(CASES[name], [NUMPY]))
    assert [(one.message, one.cases) for one in report.problems] == [
        ("raised ValueError: no", 1),
        ("raised RuntimeError: no", 1),
    ]
    assert report.summary() == "0 comparisons on 1 backend: 2 cases without a result"
    assert all(math.isnan(row.units) for row in report.against_truth())


def test_ulps_by_hand() -> None:
    true = np.array([[[1.0, 3.0, 1000.0, 2.0**-20]]])
    # The last of float16's 11 bits is 2**-10 at 1, 2**-9 at 3, 2**-1 at 1000, and 2**-24 for subnormal numbers.
    steps = np.array([2.0**-10, 2.0**-9, 2.0**-1, 2.0**-24])
    case = Case("ulps", (1, 1, 4), (1, 1, 1), dtype="float16")
    for place, times in enumerate((1, 5, 2, 3)):
        actual = true.copy()
        actual[0, 0, place] += times * steps[place]
        summary = figures.figures(actual.astype(np.float16), true, np.ones_like(true), true, case, "out")
        assert (summary.ulps, summary.where, summary.equal) == (times, (0, 0, place), 3)
    # The absolute value of 3 + 4j is 5, whose last place in float32 is 2**-21.
    value = np.full((1, 1, 1), 3 + 4j)
    summary = figures.figures(
        (value + 2.0**-20 * 1j).astype(np.complex64),
        value,
        np.full(value.shape, 2.0**-19),
        value,
        Case("ulps", (1, 1, 1), (1, 1, 1), dtype="complex64"),
        "out",
    )
    assert (summary.ulps, summary.units, summary.equal) == (2, 0.5, 0)
    assert (summary.got, summary.expected) == (3 + (4 + 2.0**-20) * 1j, 3 + 4j)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_ulps_are_numpys_spacing(dtype: str) -> None:
    lowest = int(np.log2(float(np.finfo(dtype).smallest_subnormal)))
    numbers = np.ldexp(1.25, np.arange(lowest + 2, 15)).astype(dtype)
    assert np.array_equal(figures._ulps(numbers.astype(np.float64), dtype), np.spacing(numbers).astype(np.float64))


def test_values_are_written_in_few_digits() -> None:
    assert figures.written(float(np.float16(0.1)), "float16") == "0.099976"
    assert figures.written(1.5 - 0.25j, "complex64") == "1.5-0.25j"
    assert figures.written(complex(np.nan, -np.inf), "complex128") == "nan-infj"


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16])
def test_values_are_written_with_as_many_digits_as_tell_them_apart(dtype: str) -> None:
    # All patterns below that of infinity, whose exponent has 5 bits, or 8.
    largest = {"float16": 0x7C00, "bfloat16": 0x7F80}[dtype]
    every = np.arange(largest, dtype=np.uint16).view(NUMPY.dtype(dtype)).astype(np.float64)
    again = np.array([figures.written(float(value), dtype) for value in every], np.float64)
    assert np.array_equal(again.astype(NUMPY.dtype(dtype)).astype(np.float64), every)


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16])
@pytest.mark.parametrize("quantity", ["out", "dx", "dw"])
def test_thrice_the_bound_is_caught_in_halves(monkeypatch: pytest.MonkeyPatch, dtype: str, quantity: str) -> None:
    case = next(case for case in cases([dtype]) if case.name == "2d-same-s3-dil2")
    assert not failures(case)
    true = exact(case)[quantity]
    spoil(monkeypatch, quantity, off_by(3, true.reach(dtype, "standard") + true.radius, true.value))
    (actual,) = failures(case)
    assert actual.quantity == quantity
    # The changed element is then rounded to the dtype, by less than the bound.
    assert 2 < actual.units < 4


@pytest.mark.parametrize("precision", ["standard", "reproducible"])
@pytest.mark.parametrize("bias", [False, True])
def test_what_is_too_large_for_float16_is_judged_too(precision: str, bias: bool) -> None:
    case = Case("large", (2, 1, 4), (1, 1, 1), bias=bias, dtype="float16")
    x = np.array([[[65504.0, 32768.0, 1.0, 65408.0]], [[-65504.0, 2.0, -300.0, 32752.0]]], np.float16)
    w, b = np.array([[[2.0]]], np.float16), np.array([-100.0], np.float16) if bias else None
    inputs = Inputs(x, w, b, np.ones((2, 1, 4), np.float16))
    with np.errstate(over="ignore"):
        # The numbers from 2**15 on overflow; with the bias, 2**16 - 100 does not.
        assert np.isinf(results(case, inputs)["out"]).sum() == (3 if bias else 4)
        assert all(entry.held for entry in compare(case, [NUMPY], precision, inputs))


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16])
def test_an_infinity_or_too_large_a_number_is_caught_in_halves(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    case = replace(CASE, dtype=dtype)
    for wrong in (np.inf, -np.inf, 65280.0, np.nan):

        def change(result: Any, wrong: float = wrong) -> Any:
            result[0, 1, 2, 1] = wrong
            return result

        with monkeypatch.context() as patch:
            spoil(patch, "dx", change)
            (actual,) = failures(case)
        assert (actual.quantity, actual.where, str(actual.got)) == ("dx", (0, 1, 2, 1), str(float(wrong)))


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16])
def test_a_digest_of_halves_is_that_of_their_bytes(dtype: str) -> None:
    case = replace(CASE, dtype=dtype)
    actual = next(entry for entry in compare(case, [NUMPY]) if entry.quantity == "out")
    out = results(case, case.inputs())["out"]
    assert actual.sha256 == hashlib.sha256(out.view(np.uint16).astype("<u2").tobytes()).hexdigest()
    assert actual.equal > 0.9 * actual.elements  # to the rounded exact value


def test_dtypes_that_the_host_or_a_library_lacks_are_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_backend()
    assert unsupported(NUMPY, "float16", precision="reproducible") is None
    assert unsupported(other, "float16") == "has no float16 on its default device"
    assert unsupported(other, "complex64") is None
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert unsupported(NUMPY, "float16") is None
    assert "pip install 'portconv[bfloat16]'" in str(unsupported(NUMPY, "bfloat16"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_wide_numbers_differ_much_in_size_and_no_result_overflows(dtype: str) -> None:
    wide = [case for case in cases([dtype]) if case.numbers == "wide"]
    assert {case.geometry.dims for case in wide} == {1, 2, 3}
    for case in wide:
        inputs = case.inputs()
        sizes = np.abs(inputs.x[inputs.x != 0].astype("float64"))
        assert np.max(sizes) / np.min(sizes) > 2.0 ** {"float16": 6, "float32": 50, "float64": 400}[dtype]
        for exactly in exact(case).values():
            assert np.all(np.isfinite(exactly.value.astype(dtype)))


@pytest.mark.parametrize("where", ["x", "w", "dout"])
def test_one_array_has_a_nan_and_an_infinity(where: str) -> None:
    (case, *_) = (case for case in cases(["float32"]) if case.numbers == f"{where} not finite")
    for name, array in case.inputs()._asdict().items():
        counts = [] if array is None else [np.count_nonzero(np.isnan(array)), np.count_nonzero(np.isinf(array))]
        assert counts == ([1, 1] if name == where else [0, 0] if counts else [])


def test_two_nans_and_two_infinities_of_one_sign_are_alike() -> None:
    case = Case("alike", (1, 1, 4), (1, 1, 1))
    exactly = np.array([[[np.nan, np.inf, -np.inf, 1.0]]])
    bound = np.array([[[np.inf, np.inf, np.inf, 2.0**-20]]])
    assert figures.figures(exactly, exactly, bound, exactly, case, "out").units == 0
    for wrong in ([1.0, np.inf, -np.inf, 1.0], [np.nan, -np.inf, -np.inf, 1.0], [np.nan, np.inf, -np.inf, np.nan]):
        assert figures.figures(np.array([[wrong]]), exactly, bound, exactly, case, "out").units == np.inf
