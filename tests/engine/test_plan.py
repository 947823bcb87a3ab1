"""What explains a call, what bounds its error and what computes it read one plan."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.algorithms.choice import Choice
from portconv.engine import call, plan
from portconv.engine.gradients import plans_of
from portconv.engine.rounding_error import relative
from portconv.spec.operation import Kind, Role
from portconv.spec.options import Options
from portconv.testing import conv_grads_tolerance

CALLS = {
    "plain": ({}, "float32", None),
    "halves": ({}, "float16", None),
    "halves in parts": ({}, "float16", 60_000),
    "in parts": ({"padding_mode": "reflect"}, "float32", 60_000),
    "channels last": ({"data_format": "channels_last"}, "float32", None),
    "channels last, in parts": ({"data_format": "channels_last"}, "float16", 60_000),
    "few taps of a kernel of 3": ({"algorithm": "winograd"}, "float32", None),
    "spectra": ({"algorithm": "fft"}, "float32", None),
    "integers": ({}, "int16", None),
    "reproducible": ({"precision": "reproducible"}, "float32", None),
}
"""Options, a dtype and a limit on workspace, in bytes, for a kernel of 3x3 over four samples of 8x14x14 cells."""


@pytest.fixture
def taken(monkeypatch) -> list[tuple[str, str]]:
    """Collect the kind and the algorithm of each product that is computed from here on."""
    pairs, compute = [], Choice.compute

    def watched(self, kind, *operands):
        pairs.append((str(kind), self.algorithm.name))
        return compute(self, kind, *operands)

    monkeypatch.setattr(Choice, "compute", watched)
    return pairs


def arrays(target, options, dtype):
    """Return `x`, `w` and `dout` of a call, of small whole numbers."""
    rng, last = np.random.default_rng(0), options.get("data_format") == "channels_last"
    shapes = (4, 14, 14, 8) if last else (4, 8, 14, 14), (8, 8, 3, 3)
    x, w, dout = (rng.integers(-3, 4, shape) for shape in (*shapes, shapes[0]))
    return tuple(target.array(array, dtype) for array in (x, w, dout))


@pytest.mark.parametrize(("options", "dtype", "limit"), CALLS.values(), ids=CALLS)
def test_every_product_is_computed_by_the_algorithms_of_its_plan(target, taken, options, dtype, limit):
    if not target.backend.holds(dtype, target.array(0.0)):
        pytest.skip(f"{target.backend.name} has no {dtype}")
    if options.get("precision") == "reproducible" and not target.backend.holds("float64", target.array(0.0)):
        pytest.skip(f"{target.backend.name} has no float64 here")
    options = {"padding": 1, **options}
    x, w, dout = arrays(target, options, dtype)
    with portconv.limits.within(limit):
        _, cache = portconv.conv_forward(x, w, **options)
        if target.backend.framework:
            taken.clear()  # a framework may have computed it before: what is traced once is not traced again
        portconv.conv_backward(dout, cache)
        explained = portconv.explain(x, w, **options)
        plans = plans_of(cache)
    kinds = {"out": Kind.FORWARD, "dx": Kind.INPUT_GRAD, "dw": Kind.WEIGHT_GRAD}
    assert explained.algorithm == plans["out"].algorithm
    for name, own in plans.items():
        planned = {algorithm.name for algorithm in own.algorithms}
        used = {algorithm for kind, algorithm in taken if kind == kinds[name]}
        # Reproducible products choose anew for each chunk of slices; the plan says which parts there are.
        assert used <= planned or own.in_slices, name
    if limit is not None:
        assert len(plans["out"].parts) > 1


@pytest.mark.parametrize("options", [{}, {"data_format": "channels_last"}], ids=["channels first", "channels last"])
@pytest.mark.parametrize("algorithm", ["auto", "gemm", "winograd", "fft"])
def test_an_error_bound_is_that_of_the_algorithms_of_the_plan(target, options, algorithm):
    """One product of numbers that are all 1 has a bound that can be worked out by hand."""
    options = {"algorithm": algorithm, **options}
    x, w, _ = arrays(target, options, "float32")
    x, w = abs(x) * 0 + 1, abs(w) * 0 + 1
    bound = target.numpy(portconv.error_bound(x, w, **options))
    cache = call.convolution(x, w, None, Options(**options))
    own = plan.of(cache.operation, cache.backend, x, w)
    expected = 0.0
    for used in own.algorithms:
        terms = used.error_terms(Kind.FORWARD, cache.operation.geometry)
        # The plain sum is of 8 channels and 9 taps. Tiles count the sum of the 9 taps for each of them, (2, 1, 2)
        # times along each dimension; spectra count the norm of a plane, 14, times the sum of the 9 taps.
        tiles = 8 * 9 * (2 + 1 + 2) ** 2
        size = {"winograd": tiles, "compiled": tiles, "fft": 8 * 14 * 9}.get(used.name, 8 * 9)
        expected = max(expected, relative(terms, "float32", "standard", products=True) * size)
    assert np.all(np.abs(bound - expected) <= 1e-3 * expected)
    assert bound.shape == tuple(cache.operation.shape(Role.OUT))


@pytest.mark.parametrize("limit", [None, 90_000])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_tolerance_of_gradients_is_that_of_the_algorithms_of_the_plan(limit, dtype):
    target = portconv.testing.targets(["numpy"])[0]
    x, w, dout = (target.asarray(np.ones(shape, dtype)) for shape in ((4, 8, 14, 14), (8, 8, 3, 3), (4, 8, 14, 14)))
    with portconv.limits.within(limit):
        dx, dw, _ = conv_grads_tolerance(dout, x, w, padding=1)
        for name, tolerance in (("dx", dx), ("dw", dw)):
            by_name = [
                getattr(conv_grads_tolerance(dout, x, w, padding=1, algorithm=algorithm.name), name)
                for algorithm in plans_of(call.convolution(x, w, None, Options(padding=1)))[name].algorithms
            ]
            assert np.array_equal(tolerance, np.maximum.reduce(by_name))
            assert np.all(tolerance > 0)
        parts = plans_of(call.convolution(x, w, None, Options(padding=1)))["dx"].parts
        assert len(parts) > 1 or limit is None or dtype == "float32"  # which makes no copies to cut for


def test_a_transposed_convolution_is_planned_as_the_input_gradient_that_it_is(target):
    x, w = target.array(np.ones((2, 6, 9, 9), "float32")), target.array(np.ones((6, 4, 3, 3), "float32"))
    cache = call.transposed(x, w, None, Options(stride=2))
    assert cache.operation.kind == Kind.INPUT_GRAD
    plans = plans_of(cache)
    assert {name: own.operation.kind for name, own in plans.items()} == {
        "out": Kind.INPUT_GRAD,
        "dx": Kind.FORWARD,
        "dw": Kind.WEIGHT_GRAD,
    }
    assert tuple(cache.run().shape) == cache.operation.shape(Role.X) == (2, 4, 19, 19)
