"""`error_bound` holds, of whatever a call returns, and is what its derivation says: held against loops in float64.

The loops' own error is known: gamma(n) in float64 times their sums of magnitudes, which is added to the bound. Where
results are compared with bounds written out here, the bound may be larger by what it is rounded up: 4 epsilons and half
a one of the dtype, and the roundings in float64, less than a further epsilon; and by n smallest normal numbers.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.oracle import Problem, gamma

import portconv
from portconv.algorithms.choice import known
from portconv.engine import call
from portconv.spec.operation import Kind
from portconv.spec.options import Options

PROBLEMS = {
    "1d": ({"stride": 2, "padding": 1}, Problem((2, 3, 9), (4, 3, 3), (2,), ((1, 1),), (1,))),
    "2d": ({"padding": 1}, Problem((2, 3, 6, 7), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))),
    "2d groups": (
        {"groups": 2, "dilation": (1, 2), "padding": "full"},
        Problem((2, 4, 5, 6), (6, 2, 3, 2), (1, 1), ((2, 2), (2, 2)), (1, 2), 2),
    ),
    "depthwise": ({"groups": 3}, Problem((2, 3, 7, 6), (3, 1, 3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 3)),
    "3d": ({}, Problem((1, 2, 4, 5, 3), (3, 2, 2, 3, 1), (1, 1, 1), ((0, 0),) * 3, (1, 1, 1))),
}
ALGORITHMS = ("gemm", "direct", "compiled", "winograd", "fft", "depthwise")


def numbers(problem: Problem, name: str, spread: int = 0) -> list[np.ndarray]:
    """x, w and b in a dtype, of magnitudes over `spread` powers of two."""
    part = {"complex64": "float32", "complex128": "float64"}.get(name, name)
    rng = np.random.default_rng(len(name))
    made = []
    for shape in (problem.x, problem.w, problem.w[:1]):
        parts = [rng.standard_normal(shape) * 2.0 ** rng.integers(-spread, spread + 1, shape) for _ in range(2)]
        one, other = (p.astype(part) for p in parts)
        made.append((one + 1j * other).astype(name) if name.startswith("complex") else one)
    return made


def exact(problem: Problem, given: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The output in float64 or complex128, and how far from it that can be."""
    wide = [array.astype(np.result_type(array, np.float64)) for array in given]
    # The magnitude of each part of a complex product is at most that of all its four products.
    sizes = [np.abs(array.real) + np.abs(array.imag) for array in wide]
    return problem.forward(*wide), 2 * gamma(2 * problem.terms()["out"], "float64") * problem.forward(*sizes)


def bound_of(target, given, options) -> np.ndarray:
    """The bound on the host, of the output's form."""
    arrays = [target.array(array) for array in given]
    found = portconv.error_bound(*arrays, **options)
    with np.errstate(all="ignore"):
        out = portconv.conv(*arrays, **options)
    assert target.owns(found)
    assert found.shape == out.shape
    name = target.backend.dtype_name(out.dtype)
    real = {"complex64": "float32", "complex128": "float64"}.get(name, name)
    assert target.backend.dtype_name(found.dtype) == real
    return target.numpy(found).astype(np.float64)


@pytest.mark.parametrize("name", ["float32", "float64", "complex64", "float16"])
@pytest.mark.parametrize("precision", ["standard", "fast", "reproducible"])
@pytest.mark.parametrize("spread", [0, 8])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_result_is_off_by_more(target, problem, spread, precision, name):
    if not hasattr(target.backend.xp, name):
        pytest.skip(f"{target.backend.name} has no {name}")
    if precision == "reproducible" and not target.backend.holds("float64", target.array(0.0, "float32")):
        pytest.skip("needs float64")
    options, problem = PROBLEMS[problem]
    spread = min(spread, 2) if name == "float16" else spread  # or results would be infinite
    given = numbers(problem, name, spread)
    value, radius = exact(problem, given)
    served = 0
    for algorithm in ALGORITHMS:
        own = {**options, "algorithm": algorithm, "precision": precision}
        arrays = [target.array(array) for array in given]
        try:
            out = target.numpy(portconv.conv(*arrays, **own))
        except portconv.ConvValueError as error:
            assert str(error).startswith("algorithm: got ")  # noqa: PT017
            continue
        bound = bound_of(target, given, own)
        assert np.all(np.abs(out - value) <= bound + radius), algorithm
        served += 1
    assert served >= 2  # `gemm` and `direct`


@pytest.mark.parametrize("problem", PROBLEMS)
def test_standard_is_the_plain_bound(target, problem):
    options, problem = PROBLEMS[problem]
    given = numbers(problem, "float32")
    found = bound_of(target, given, {**options, "algorithm": "direct"})
    terms = problem.terms()["out"]
    plain = gamma(terms, "float32") * problem.forward(*(np.abs(array.astype(np.float64)) for array in given))
    assert np.all(found >= plain)
    assert np.all(found <= plain * (1 + 6 * 2.0**-23) + (terms + 1) * 2.0**-126)


@pytest.mark.parametrize("problem", ["2d"])
def test_tiles_are_bounded_by_no_less_than_their_own_sums(target, problem):
    options, problem = PROBLEMS[problem]
    x, w, b = numbers(problem, "float32")
    sizes = [np.abs(array.astype(np.float64)) for array in (x, w, b)]
    geometry = call.convolution(x, w, b, Options(padding=1)).operation.geometry
    terms = known()["winograd"].error_terms(Kind.FORWARD, geometry) + 1
    magnitude = problem.tile_outputs(*sizes[:2]) + sizes[2][:, None, None]
    found = bound_of(target, (x, w, b), {**options, "algorithm": "winograd"})
    u = 2.0**-24
    tight = terms * u / (1 - terms * u) * magnitude
    assert np.all(found >= tight)
    # For each of nine taps the largest is taken, and along two dimensions (2, 1, 2) for the two sums of one tile.
    assert np.all(found <= 9 * 4 * tight)


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_reproducible_results_are_nearly_rounded_exactly(target, name):
    if not target.backend.holds("float64", target.array(0.0, "float32")):
        pytest.skip("needs float64")
    options, problem = PROBLEMS["2d"]
    given = numbers(problem, name)[:2]
    out = portconv.conv(*map(target.array, given), **options, precision="reproducible")
    found = bound_of(target, given, {**options, "precision": "reproducible"})
    wide = [np.abs(array.astype(np.float64)) for array in given]
    kept, u = (40, 2.0**-24) if name == "float32" else (60, 2.0**-53)
    ones = [np.ones_like(array) for array in wide]
    off = (
        2.0**-kept
        * 2
        * (wide[1].max() * problem.forward(wide[0], ones[1]) + wide[0].max() * problem.forward(ones[0], wide[1]))
    )
    # Half an ulp, and what quantising changes: a scale is less than twice the largest magnitude there is.
    assert np.all(found <= (u * np.abs(target.numpy(out).astype(np.float64)) + off) * (1 + 8 * u) + 2.0**-125)


def test_layouts_single_samples_and_padding_modes(target):
    x, w = np.arange(1, 121.0, dtype="float32").reshape(2, 3, 4, 5), np.ones((2, 3, 2, 3), "float32")
    options = {"padding": 1, "padding_mode": "reflect"}
    first = bound_of(target, (x, w), options)
    last = bound_of(target, (np.moveaxis(x, 1, -1), w), {**options, "data_format": "channels_last"})
    alone = bound_of(target, (x[1], w), {**options, "algorithm": "gemm"})
    np.testing.assert_array_equal(np.moveaxis(last, -1, 1), first)
    np.testing.assert_array_equal(alone, bound_of(target, (x, w), {**options, "algorithm": "gemm"})[1])


def test_what_may_be_infinite_has_no_bound(target):
    x, w = np.array([[[1e38, 3e38, 1.0, 1.0]]], "float32"), np.ones((1, 1, 2), "float32")
    assert np.isinf(bound_of(target, (x, w), {})).tolist() == [[[True, False, False]]]
    x[0, 0, 3] = np.nan
    assert np.isinf(bound_of(target, (x, w), {})).tolist() == [[[True, False, True]]]


def test_integers_are_exact(target):
    x, w = np.full((1, 1, 3), 100, "int8"), np.full((1, 1, 2), 100, "int8")
    found = portconv.error_bound(target.array(x), target.array(w))
    assert target.backend.dtype_name(found.dtype) == "int8"
    assert target.numpy(found).tolist() == [[[0, 0]]]


def test_bad_arguments_are_refused_as_by_conv(target):
    x, w = target.array(np.ones((1, 2, 3), "float32")), target.array(np.ones((1, 1, 2), "float32"))
    with pytest.raises(portconv.ConvShapeError, match=r"^w: got shape"):
        portconv.error_bound(x, w)


def test_only_cells_that_windows_read_are_bounded():
    # A line of 16 GiB, as one number that is repeated: windows read 12 cells of it.
    x, w = np.broadcast_to(np.float32(0.5), (1, 1, 2**32)), np.ones((1, 1, 3), "float32")
    alike = np.full((1, 1, 12), 0.5, "float32")
    assert np.array_equal(
        portconv.error_bound(x, w, stride=2**30), portconv.error_bound(alike, w, stride=3, algorithm="gemm")
    )


def test_a_bias_may_make_a_reproducible_result_infinite():
    x, w, b = np.array([[[10536.0, 50848.0]]], "f2"), np.ones((1, 1, 2), "f2"), np.array([9968.0], "f2")
    bound = portconv.error_bound(x, w, b, precision="reproducible")
    assert np.isinf(bound).all()
