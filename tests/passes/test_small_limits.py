"""Calls under limits so small that they are cut into parts: the loops' results, or the limit that is enough."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from support.limited import within
from support.oracle import Problem

import portconv
from portconv.passes.gathering import gathered, put, take
from portconv.passes.partition import Bytes, Copies, parts
from portconv.spec.geometry import Geometry
from portconv.spec.operation import PRODUCTS, Kind, Role

DTYPES = ("int8", "uint8", "int16", "int32", "uint32", "int64", "float16", "float32", "float64", "complex64")
MODES = {"reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "circular": "wrap"}
"""NumPy's names of the padding modes."""
CASES = 60
WIDE = {"i": "int64", "u": "uint64", "f": "float64", "c": "complex128"}


def drawn(rng: random.Random) -> Problem:
    """Draw a convolution, often with windows that lie apart or in the padding, taps that lie apart, or no cell."""
    dims = rng.choice((1, 1, 2, 2, 3))
    groups, channels, filters = rng.choice((1, 1, 1, 2, 3)), rng.randint(1, 3), rng.randint(1, 3)
    kernel, dilation = ([rng.choice((1, 1, 2, 3)) for _ in range(dims)] for _ in range(2))
    stride = [rng.choice((1, 1, 2, 3, 5, 9)) for _ in range(dims)]
    size = [rng.randint(1, {1: 40, 2: 9, 3: 5}[dims]) for _ in range(dims)]
    if rng.random() < 0.08:
        size[rng.randrange(dims)] = 0
    if rng.random() < 0.2:
        dim = rng.randrange(dims)
        size[dim], kernel[dim], dilation[dim] = rng.randint(30, 80), rng.randint(2, 3), rng.randint(10, 30)
        stride[dim] = rng.randint(1, 3)
    pads = []
    for n, k, d in zip(size, kernel, dilation, strict=True):
        before, after = rng.choice(((0, 0), (1, 1), (0, 3), (9, 3), (0, 20), (20, 0), (2, 0)))
        pads.append((before, max(after, d * (k - 1) + 1 - n - before)))
    shapes = (rng.choice((1, 1, 2, 3, 0)), groups * channels, *size), (groups * filters, channels, *kernel)
    return Problem(*shapes, tuple(stride), tuple(pads), tuple(dilation), groups)


class Padded:
    """The loops over an input whose padding is filled in by NumPy."""

    def __init__(self, problem: Problem, mode: str) -> None:
        sides = [np.pad(np.arange(n), pad, mode) for n, pad in zip(problem.x[2:], problem.pads, strict=True)]
        self.shape, self.index = problem.x, (slice(None), slice(None), *np.ix_(*sides))
        x = (*problem.x[:2], *map(len, sides))
        self.plain = replace(problem, x=x, pads=((0, 0),) * len(sides))

    def forward(self, x, w, b):
        return self.plain.forward(x[self.index], w, b)

    def weight_grad(self, dout, x):
        return self.plain.weight_grad(dout, x[self.index])

    def input_grad(self, dout, w):
        grad = np.zeros(self.shape, np.result_type(dout, w))
        np.add.at(grad, self.index, self.plain.input_grad(dout, w))
        return grad


def whole_numbers(rng: random.Random, shape, dtype):
    """Draw all integers of a dtype, or so small ones that every sum of their products is exact in float16."""
    source = np.random.default_rng(rng.randrange(2**32))
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        return source.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    parts = source.integers(-1, 2, (2, *shape))
    return (parts[0] + (1j * parts[1] if dtype == "complex64" else 0)).astype(dtype)


def results(problem, dtype, arrays, options):
    """Return each product as a call, and as what the loops give, rounded once to the dtype."""
    x, w, b, dout = arrays
    mode = options["padding_mode"]
    plain = problem if mode == "zeros" else Padded(problem, MODES[mode])
    with np.errstate(over="ignore"):
        wide_x, wide_w, wide_b, wide_dout = (array.astype(WIDE[array.dtype.kind]) for array in arrays)
        expected = (
            plain.forward(wide_x, wide_w, wide_b),
            plain.input_grad(wide_dout, wide_w.conj()),
            plain.weight_grad(wide_dout, wide_x.conj()),
        )
        expected = [array.astype(dtype) for array in expected]
    calls = (
        lambda: portconv.conv(x, w, b, **options),
        lambda: portconv.conv_input_grad(dout, w, x.shape, **options),
        lambda: portconv.conv_weight_grad(dout, x, w.shape, **options),
    )
    return zip(calls, expected, strict=True)


@pytest.mark.parametrize("algorithm", ["auto", "direct", "gemm"])
@pytest.mark.parametrize("mode", ["zeros", *MODES])
@pytest.mark.parametrize("precision", ["standard", "reproducible"])
def test_any_limit_gives_the_result_or_names_one_that_does(algorithm, mode, precision):
    rng = random.Random(f"{algorithm} {mode} {precision}")
    for _ in range(CASES if precision == "standard" else CASES // 3):
        problem, dtype, limit = drawn(rng), rng.choice(DTYPES), int(2 ** rng.uniform(3, 14))
        if mode != "zeros" and 0 in problem.x[2:]:
            continue  # there is nothing to fill the padding from
        options = {"stride": problem.stride, "padding": problem.pads, "dilation": problem.dilation}
        options |= {"groups": problem.groups, "algorithm": algorithm, "padding_mode": mode, "precision": precision}
        shapes = problem.x, problem.w, problem.w[:1], problem.out
        arrays = [whole_numbers(rng, shape, dtype) for shape in shapes]
        for kind, (call, expected) in zip(PRODUCTS, results(problem, dtype, arrays, options), strict=True):
            # All sums are whole numbers, which every dtype holds, or integers modulo 2**bits.
            assert np.array_equal(within(limit, call), expected), (kind, problem, dtype, limit)


def test_a_transposed_convolution_of_few_taps_has_the_bias_where_no_window_writes():
    x = np.arange(1, 14, dtype="int16").reshape(1, 1, 13)
    w, b = np.array([[[3]]], "int16"), np.array([-7], "int16")
    expected = np.full((1, 1, 25), -7, "int16")
    expected[..., ::2] += 3 * x
    for algorithm, limit in itertools.product(("auto", "direct", "gemm"), (121, 1 << 20)):
        found = within(limit, lambda: portconv.conv_transpose(x, w, b, stride=2, algorithm=algorithm))  # noqa: B023
        assert np.array_equal(found, expected)


def test_windows_that_lie_wholly_in_the_padding_give_the_bias():
    x, w = np.ones((1, 1, 5, 2), "int32"), np.full((1, 1, 1, 1), 4, "int32")
    expected = np.full((1, 1, 17, 2), 2, "int32")
    expected[:, :, 9:14] = 6
    for algorithm in ("auto", "direct", "gemm", "depthwise"):
        options = {"padding": ((9, 3), (0, 0)), "algorithm": algorithm}
        found = within(256, lambda: portconv.conv(x, w, np.array([2], "int32"), **options))  # noqa: B023
        assert np.array_equal(found, expected)


def test_only_cells_that_windows_read_are_gathered(target):
    rng, apart = random.Random(3), 0
    for _ in range(300):
        problem = drawn(rng)
        problem = replace(problem, x=(2, *problem.x[1:]))
        lines = problem.x[2:], problem.w[2:], problem.stride, problem.dilation, *zip(*problem.pads, strict=True)
        geometry = Geometry(2, problem.x[1], problem.w[0], problem.groups, *lines)
        fewer = gathered(geometry)
        assert fewer.out == geometry.out
        assert min(*fewer.before, *fewer.after) >= 0
        if fewer is geometry:
            continue
        apart += 1
        of_fewer = replace(
            problem,
            x=fewer.x_shape,
            stride=fewer.stride,
            dilation=fewer.dilation,
            pads=tuple(zip(fewer.before, fewer.after, strict=True)),
        )
        x, w, dout = (whole_numbers(rng, shape, "float64") for shape in (problem.x, problem.w, problem.out))
        every = (slice(None), slice(None))
        cells = target.numpy(take(geometry, target.backend, target.array(x), every))
        assert np.array_equal(of_fewer.forward(cells, w), problem.forward(x, w))
        assert np.array_equal(of_fewer.weight_grad(dout, cells), problem.weight_grad(dout, x))
        grad = target.array(of_fewer.input_grad(dout, w))
        grad = put(geometry, target.backend, target.backend.zeros(problem.x, grad), every, grad)
        assert np.array_equal(target.numpy(grad), problem.input_grad(dout, w))
    assert apart > 50


@pytest.mark.parametrize("kind", PRODUCTS)
def test_parts_are_few_geometries_however_many_they_are(kind):
    rng, cut, combed = random.Random(str(kind)), 0, 0
    for _ in range(400):
        problem = drawn(rng)
        lines = problem.x[2:], problem.w[2:], problem.stride, problem.dilation, *zip(*problem.pads, strict=True)
        geometry = gathered(Geometry(problem.x[0], problem.x[1], problem.w[0], problem.groups, *lines))
        each = Bytes(1, 1, 1, 0)
        made = parts(geometry, kind, Copies(each, each, each), int(2 ** rng.uniform(3, 9)))
        if made is None or not problem.x[0]:
            continue
        every, known = list(made), made.geometries()
        assert len(every) == len(made)
        assert {part.geometry for part in every} == {*known}
        shape, role = geometry.shape(kind.result), kind.result
        covered = np.zeros(shape, int)
        for part in every:
            assert min(part.geometry.out) > 0
            assert kind == Kind.INPUT_GRAD or min(*part.geometry.before, *part.geometry.after) >= 0
            covered[part.at(role)] += 1
        assert np.all(covered == (covered.max() if kind == Kind.WEIGHT_GRAD else 1))
        cut += len(every) > 1
        combed += any(part.combs for part in every)
    assert cut > 100
    assert combed > 10


def test_a_million_million_parts_are_made_one_at_a_time():
    each = Bytes(2, 2, 2, 0)
    geometry = Geometry(2**40, 1, 1, 1, (2**20,), (3,), (1,), (1,), (0,), (0,))
    for kind in PRODUCTS:
        made = parts(geometry, kind, Copies(each, each, each), 1 << 12)
        assert len(made) > 2**48
        assert len(made.geometries()) <= 10
        rows = [part.at(kind.result if kind != Kind.WEIGHT_GRAD else Role.OUT)[2] for part in itertools.islice(made, 2)]
        assert 0 == rows[0].start < rows[0].stop == rows[1].start
