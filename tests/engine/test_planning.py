"""A plan is arithmetic on a few integers: it takes no step for each cell, and what is remembered has a bound."""

from __future__ import annotations

import functools
import gc
import importlib
import pkgutil
import sys
import tracemalloc

import numpy as np
import pytest

import portconv
from portconv import backends
from portconv.algorithms.choice import known
from portconv.engine import call
from portconv.engine.gradients import plans_of
from portconv.spec import remembered
from portconv.spec.options import Options
from portconv.spec.ranges import boxes, pieces
from portconv.spec.sequences import FEW, Made, Product, kept_if_few

MANY = 2**20
# Shapes of x and w, and options, of calls that nobody could compute: arrays of one cell, broadcast.
SHAPES = {
    "signal": ((1, 2, 2**31), (3, 2, 5), {"padding": 2}),
    "strided signal": ((1, 1, 2**30), (1, 1, 64), {"stride": 16}),
    "batch": ((2**28, 3, 8, 8), (4, 3, 3, 3), {"padding": 1}),
    "groups": ((2, MANY, 4), (MANY, 1, 3), {"groups": MANY}),
    "channels": ((1, MANY, 8), (2, MANY, 3), {}),
    "filters": ((1, 2, 8), (MANY, 2, 3), {}),
    "kernel": ((1, 1, 2**21), (1, 1, MANY), {}),
    "strided kernel": ((1, 1, 2**22), (1, 1, MANY), {"stride": 7, "dilation": 2}),
    "picture": ((1, 3, 2**16, 2**16), (8, 3, 3, 3), {"padding": 1}),
    "rows of few cells": ((1, 1, 2**24, 4), (1, 1, 3, 3), {}),
    "volume": ((1, 1, 2**11, 2**11, 2**11), (2, 1, 3, 3, 3), {"padding": 1}),
    "depthwise volume": ((4, 8, 2**9, 2**9, 2**9), (8, 1, 5, 5, 5), {"groups": 8, "stride": 2}),
    "far apart": ((1, 1, 2**40), (1, 1, 2), {"stride": 2**20}),
    "one of few cells": ((3, 1, 8), (1, 1, 1), {"stride": MANY}),
    "taps in the padding": ((3, 2, 8), (2, 1, 3), {"groups": 2, "stride": MANY, "dilation": MANY, "padding": MANY}),
}
CALLS = 1 << 20
"""The most calls of functions that planning a call and its gradients may take. A step for each of the 2**20 and more
cells, samples, groups, channels or taps would take several calls each, in each of the plans that are weighed."""
BYTES = 4 << 20
"""The most memory: less than a pointer for each of them."""


def counted(step):
    """Count the calls that a step makes, and the bytes that it takes at most."""
    calls = 0

    def count(_, event, __):
        nonlocal calls
        calls += event in ("call", "c_call")

    tracemalloc.start()
    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return calls, peak


@pytest.fixture(autouse=True)
def afresh():
    """Start with nothing remembered, and leave nothing."""
    remembered.forget()
    yield
    remembered.forget()


@pytest.mark.parametrize("algorithm", ["auto", *(name for name in known() if name != "tap_loop")])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("precision", ["standard", "reproducible"])
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_a_plan_takes_no_step_for_each_cell(shape, algorithm, precision, data_format):
    (samples, channels, *size), w_shape, options = shape
    last = data_format == "channels_last"
    x_shape, options = (samples, *size, channels) if last else shape[0], options | {"data_format": data_format}
    x, w = (np.broadcast_to(np.zeros((1,) * len(each), "float32"), each) for each in (x_shape, w_shape))
    portconv.explain(np.zeros((1, 1, 9), "float32"), np.zeros((1, 1, 3), "float32"))  # imports what is needed

    def plan():
        asked = Options(algorithm=algorithm, precision=precision, **options)
        try:
            plans_of(call.convolution(x, w, None, asked))
            portconv.explain(x, w, algorithm=algorithm, precision=precision, **options)
        except portconv.PortconvError:
            pass  # an algorithm that does not serve the call says so as fast

    calls, peak = counted(plan)
    assert calls < CALLS
    assert peak < BYTES


def test_few_items_are_kept_and_many_are_made_when_they_are_asked_for():
    made = []
    many = kept_if_few(Made(range(FEW + 1), made.append))
    assert made == []
    assert many[FEW] is None
    assert made == [FEW]
    assert kept_if_few(Made(range(FEW), lambda number: number + 1)) == tuple(range(1, FEW + 1))


def test_sequences_have_the_items_of_the_lists_that_they_stand_for():
    ranges = pieces(2**40, 3)
    assert len(ranges) == -(-(2**40) // 3)
    assert ranges[0] == (0, ranges.longest) == (0, 3)
    assert ranges[-1][1] == 2**40
    assert list(ranges[5:7]) == [ranges[5], ranges[6]]
    with pytest.raises(IndexError):
        ranges[len(ranges)]
    assert list(Product((1, 2), (), (3,))) == []
    assert list(Product((1, 2), (3, 4))) == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert list(Product()) == [()]
    run, box = boxes((2**20, 2**20, 7), 100)[2**30]
    # Boxes have 14 of the 2**20 rows of 7 cells, and so 74,899 of them cover each slice.
    slice_, number = divmod(2**30, len(pieces(2**20, 14)))
    assert box == ((slice_, slice_ + 1), pieces(2**20, 14)[number], (0, 7))
    assert run[0] == (slice_ * 2**20 + box[1][0]) * 7


def shapes_of_all_kinds():
    """Run calls of many shapes, forward and backward: of all algorithms, precisions and dimensions."""
    rng = np.random.default_rng(3)
    for number in range(30):
        for dims, kernel, options in (
            (1, 9, {}),
            (2, 3, {"padding": 1}),
            (2, 3, {"stride": 2, "padding": 1, "padding_mode": "reflect"}),
            (3, 3, {"padding": 1, "algorithm": "gemm"}),
            (2, 3, {"padding": 1, "precision": "reproducible"}),
            (2, 5, {"padding": 2, "groups": 2}),
        ):
            groups = options.get("groups", 1)
            x = rng.standard_normal((2, 2, *(9 + number + dim for dim in range(dims)))).astype("float32")
            w = rng.standard_normal((2, 2 // groups, *(kernel,) * dims)).astype("float32")
            out, cache = portconv.conv_forward(x, w, **options)
            portconv.conv_backward(out, cache)


def volumes_in_many_blocks():
    """Compute volumes in thousands of blocks."""
    for number in range(3):
        x, w = np.zeros((1, 1, 24, 40 + number, 64), "float32"), np.zeros((1, 1, 5, 5, 5), "float32")
        with portconv.workspace_limit(1 << 17):
            portconv.conv(x, w, padding=2, algorithm="gemm")


@pytest.mark.parametrize("work", [shapes_of_all_kinds, volumes_in_many_blocks])
@pytest.mark.parametrize("most", [1 << 20, remembered.MOST_BYTES])
def test_what_is_remembered_has_a_bound_in_bytes(monkeypatch, work, most):
    monkeypatch.setattr(remembered, "MOST_BYTES", most)
    work()  # so that modules and workspaces are there
    remembered.forget()
    gc.collect()
    tracemalloc.start()
    try:
        work()
        gc.collect()
        kept = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    # Workspaces, which a thread keeps too, are arrays; docs/speed.md names a bound of their own.
    arrays = tracemalloc.Filter(inclusive=False, filename_pattern="*backends*")
    assert sum(trace.size for trace in kept.filter_traces([arrays]).traces) < most
    assert remembered._held[0] <= most


BY_NATURE = {
    *("_checked_powers", "_compiled", "_compiled_reproducible", "_compile", "_is_slow"),
    *("_lines", "cut", "kept", "product"),
}
"""The other caches with a largest size: an entry is a device's powers of two, a program that JAX compiled, or what a
library is told of a convolution."""


def test_all_that_may_grow_is_remembered_within_the_bound():
    for folder in ("spec", "passes", "algorithms", "reproducible", "engine"):
        package = importlib.import_module(f"portconv.{folder}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    ours = {
        cache
        for cache in gc.get_objects()
        if type(cache) is functools._lru_cache_wrapper and (cache.__module__ or "").startswith("portconv.")
    }
    bounded = {cache.__name__ for cache in ours if cache.cache_parameters()["maxsize"] is not None}
    assert bounded <= BY_NATURE
    # Of the others, only those that are remembered depend on a call.
    unbounded = {cache for cache in ours - set(remembered._caches) if cache.cache_parameters()["maxsize"] is None}
    assert not [cache.__name__ for cache in unbounded if "geometry" in cache.__wrapped__.__annotations__]


def test_numpy_makes_the_blocks_of_a_long_signal_once_for_each_call():
    x, w = np.ones((1, 1, 441_000)), np.ones((1, 1, 5))
    calls, _ = counted(lambda: portconv.conv(x, w))
    again, _ = counted(lambda: portconv.conv(x, w))
    assert backends.get("numpy").least_blocks(0, 1) == 1  # all on this thread, where calls are counted
    assert calls < again + 20_000
