"""Transposed convolution and its gradients, against a loop that spreads each cell over the output."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
from support.oracle import gamma

import portconv


@dataclass(frozen=True)
class Spread:
    """A transposed convolution, its padding as cells taken off before and after; `out` is worked out by hand."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    out: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def reads(self):
        """Yield group, cell, tap and the output that the cell reaches through the tap, where there is one."""
        for cell in product(*map(range, self.x[2:])):
            for tap in product(*map(range, self.w[2:])):
                at = tuple(
                    i * s + k * d - pad[0]
                    for i, s, k, d, pad in zip(cell, self.stride, tap, self.dilation, self.pads, strict=True)
                )
                if all(0 <= o < n for o, n in zip(at, self.out, strict=True)):
                    yield from ((group, cell, tap, at) for group in range(self.groups))

    def all(self, x, w, b, dout) -> dict[str, np.ndarray]:
        c, f = self.w[0] // self.groups, self.w[1]
        out = np.zeros((self.x[0], f * self.groups, *self.out), np.result_type(x, w))
        dx, dw = np.zeros_like(x, np.result_type(dout, w)), np.zeros_like(w, np.result_type(dout, x))
        for group, cell, tap, at in self.reads():
            ins, outs = slice(group * c, group * c + c), slice(group * f, group * f + f)
            taps = w[(ins, slice(None), *tap)]
            out[(slice(None), outs, *at)] += x[(slice(None), ins, *cell)] @ taps
            dx[(slice(None), ins, *cell)] += dout[(slice(None), outs, *at)] @ taps.conj().T
            dw[(ins, slice(None), *tap)] += x[(slice(None), ins, *cell)].conj().T @ dout[(slice(None), outs, *at)]
        db = dout.sum(axis=(0, *range(2, dout.ndim)))
        return {"out": out + b.reshape(-1, *[1] * len(self.out)), "dx": dx, "dw": dw, "db": db}

    def bounds(self, x, w, b, dout, dtype: str) -> dict[str, np.ndarray]:
        """The largest error in `dtype`, and of the loops in float64: gamma_n times the sum of n terms' magnitudes."""
        magnitudes = self.all(*(np.abs(a) for a in (x, w, b, dout)))
        taps, positions = int(np.prod(self.w[2:])), self.x[0] * int(np.prod(self.x[2:]))
        terms = {
            "out": self.w[0] // self.groups * taps + 1,
            "dx": self.w[1] * taps,
            "dw": positions,
            "db": self.x[0] * int(np.prod(self.out)),
        }
        return {name: (gamma(n, dtype) + gamma(n, "float64")) * magnitudes[name] for name, n in terms.items()}

    def operands(self, dtype: str, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        filters = self.w[1] * self.groups
        shapes = (self.x, self.w, (filters,), (self.x[0], filters, *self.out))
        if dtype.startswith("complex"):
            return [(rng.standard_normal(s) + 1j * rng.standard_normal(s)).astype(dtype) for s in shapes]
        return [rng.standard_normal(s).astype(dtype) for s in shapes]


CASES = {
    "1d": ({}, Spread((2, 3, 4), (3, 2, 3), (6,), (1,), ((0, 0),), (1,))),
    "1d stride": ({"stride": 2, "padding": 1}, Spread((2, 3, 4), (3, 2, 3), (7,), (2,), ((1, 1),), (1,))),
    "1d gaps": ({"stride": 5}, Spread((2, 2, 3), (2, 3, 2), (12,), (5,), ((0, 0),), (1,))),
    "1d output padding": (
        {"stride": 3, "padding": ((0, 1),), "output_padding": 2},
        Spread((1, 2, 3), (2, 2, 2), (9,), (3,), ((0, 1),), (1,)),
    ),
    # Beyond the reach of any tap: zeros, and the bias.
    "1d output padding beyond": (
        {"stride": 4, "output_padding": 3},
        Spread((1, 2, 2), (2, 2, 2), (9,), (4,), ((0, 0),), (1,)),
    ),
    # Less than the dilation alone.
    "1d output padding over stride": (
        {"dilation": 3, "stride": 1, "output_padding": 2, "padding": 1},
        Spread((2, 2, 3), (2, 1, 2), (6,), (1,), ((1, 1),), (3,)),
    ),
    "1d one tap, shifted": (
        {"padding": ((1, 0),), "dilation": 2, "output_padding": 1},
        Spread((1, 2, 4), (2, 3, 1), (4,), (1,), ((1, 0),), (2,)),
    ),
    "1d padding over kernel": ({"padding": 3}, Spread((1, 2, 9), (2, 2, 3), (5,), (1,), ((3, 3),), (1,))),
    "2d": ({"stride": 2, "padding": 1}, Spread((2, 3, 3, 4), (3, 2, 4, 4), (6, 8), (2, 2), ((1, 1), (1, 1)), (1, 1))),
    "2d mixed": (
        {"stride": (2, 3), "padding": ((1, 0), (0, 2)), "output_padding": (1, 2), "dilation": (1, 2)},
        Spread((2, 2, 3, 4), (2, 3, 3, 2), (7, 12), (2, 3), ((1, 0), (0, 2)), (1, 2)),
    ),
    "2d of kernel 3": (
        {"padding": ((1, 1), (0, 2))},
        Spread((2, 3, 5, 6), (3, 2, 3, 3), (5, 6), (1, 1), ((1, 1), (0, 2)), (1, 1)),
    ),
    "2d groups": (
        {"stride": 2, "groups": 2, "output_padding": 1, "padding": 1},
        Spread((2, 4, 3, 2), (4, 3, 3, 3), (6, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 2),
    ),
    "2d depthwise": (
        {"groups": 3, "dilation": 2},
        Spread((2, 3, 4, 3), (3, 1, 2, 3), (6, 7), (1, 1), ((0, 0), (0, 0)), (2, 2), 3),
    ),
    "2d pointwise": ({}, Spread((2, 3, 4, 3), (3, 4, 1, 1), (4, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))),
    "3d": (
        {"stride": (1, 2, 1), "padding": (0, 1, 1), "output_padding": (0, 1, 0)},
        Spread((1, 2, 2, 3, 4), (2, 2, 2, 3, 3), (3, 6, 4), (1, 2, 1), ((0, 0), (1, 1), (1, 1)), (1, 1, 1)),
    ),
    "no samples": ({"stride": 2}, Spread((0, 2, 3), (2, 2, 3), (7,), (2,), ((0, 0),), (1,))),
}
RESULTS = ("out", "dx", "dw", "db")

every_case = pytest.mark.parametrize(("options", "problem"), CASES.values(), ids=CASES)


def run(target, operands, **options):
    """Forward and backward, by way of `target`; form before values, and arguments as they were."""
    given = [target.array(a) for a in operands]
    out, cache = portconv.conv_transpose_forward(*given[:3], **options)
    results = dict(zip(RESULTS, (out, *portconv.conv_transpose_backward(given[3], cache)), strict=True))
    for (name, result), like in zip(results.items(), (given[3], *given[:3]), strict=True):
        assert target.owns(result), name
        assert tuple(result.shape) == tuple(like.shape), name
        assert result.dtype == like.dtype, name
    for before, after in zip(operands, given, strict=True):
        assert before.tobytes() == target.numpy(after).tobytes()
    return {name: target.numpy(result) for name, result in results.items()}


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("algorithm", ["auto", "direct"])
def test_matrix_against_loops(target, options, problem, dtype, algorithm):
    operands = problem.operands(dtype)
    results = run(target, operands, algorithm=algorithm, **options)
    wide = [a.astype("float64") for a in operands]
    truths, bounds = problem.all(*wide), problem.bounds(*wide, dtype)
    for name in RESULTS:
        excess = np.abs(results[name].astype("float64") - truths[name]) - bounds[name]
        assert np.all(excess <= 0), f"{name}: {np.max(excess)} over the bound"


@every_case
@pytest.mark.parametrize("dtype", ["float64", "complex128", "int32", "uint8"])
def test_whole_numbers_are_exact(target, options, problem, dtype):
    # Parts below 4, and fewer than 2**10 products of them, sum below 2**15; uint8 wraps the same way in NumPy's loops.
    operands = [np.round(a) for a in problem.operands("complex128" if dtype == "complex128" else "float64")]
    operands = [np.abs(a).astype(dtype) if dtype == "uint8" else a.astype(dtype) for a in operands]
    with np.errstate(over="ignore"):
        truths = problem.all(*operands)
    for layout in ("channels_first", "channels_last"):
        given = operands
        if layout == "channels_last":
            given = [operands[0], *operands[1:3], operands[3]]
            given[0], given[3] = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (operands[0], operands[3]))
        results = run(target, given, data_format=layout, **options)
        for name in RESULTS:
            found = results[name]
            if layout == "channels_last" and name in ("out", "dx"):
                found = np.moveaxis(found, -1, 1)
            assert np.array_equal(found, truths[name].astype(dtype)), name


def test_one_sample_needs_no_batch_axis(target):
    options, problem = CASES["2d groups"]
    x, w, b, dout = problem.operands("float64")
    both = run(target, (x[:1], w, b, dout[:1]), **options)
    alone = run(target, (x[0], w, b, dout[0]), **options)
    for name in ("out", "dx"):
        assert np.array_equal(alone[name], both[name][0]), name
    for name in ("dw", "db"):
        assert np.array_equal(alone[name], both[name]), name


def test_it_is_the_adjoint_of_conv():
    # <conv(y), x> = <y, conv_transpose(x)> with the same options; whole numbers are exact.
    rng = np.random.default_rng(1)
    options = {"stride": (2, 3), "padding": ((1, 0), (2, 1)), "dilation": (2, 1), "groups": 2}
    y, w, x = (rng.integers(-4, 5, s).astype("float64") for s in ((2, 6, 11, 12), (4, 3, 3, 4), (2, 4, 4, 4)))
    # (4 - 1) * 2 - 1 + 4 + 1 = 10 and (4 - 1) * 3 - 3 + 3 + 1 = 10 cells: 1 and 2 short of those of y.
    back = portconv.conv_transpose(x, w, **options, output_padding=(1, 2))
    assert back.shape == y.shape
    assert np.sum(portconv.conv(y, w, **options) * x) == np.sum(y * back)


X, W = np.ones((2, 4, 5, 6)), np.ones((4, 3, 3, 3))
BAD: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "channels": (
        {"w": np.ones((3, 4, 3, 3))},
        portconv.ConvShapeError,
        ("w: got shape (3, 4, 3, 3), for 3 input channels, expected 4 in its first place",),
    ),
    "w empty": ({"w": np.ones((4, 0, 3, 3))}, portconv.ConvShapeError, ("w: got shape (4, 0, 3, 3)", "at least one")),
    "x flat": ({"x": np.ones((4, 5))}, portconv.ConvShapeError, ("x: got 2 dimensions", "expected 4")),
    "x empty": ({"x": np.ones((2, 4, 0, 6))}, portconv.ConvShapeError, ("x: got shape (2, 4, 0, 6)", "at least one")),
    "b": ({"b": np.ones(4)}, portconv.ConvShapeError, ("b: got shape (4,), expected (3,)",)),
    "groups": ({"groups": 3}, portconv.ConvValueError, ("groups: got 3", "a divisor of x's 4 channels")),
    "output padding": (
        {"output_padding": 1},
        portconv.ConvValueError,
        ("output_padding: got 1", "less than the larger of stride 1 and dilation 1 in spatial dimension 0"),
    ),
    "output padding of one": (
        {"output_padding": (1, 2), "stride": 2},
        portconv.ConvValueError,
        ("output_padding: got (1, 2)", "stride 2 and dilation 1 in spatial dimension 1"),
    ),
    "output padding negative": ({"output_padding": -1}, portconv.ConvValueError, ("output_padding: got -1", "least 0")),
    "output padding float": ({"output_padding": 0.0}, portconv.ConvTypeError, ("output_padding: got 0.0", "an int")),
    "padding by name": ({"padding": "full"}, portconv.ConvValueError, ("padding: got 'full'", "'same'")),
    "padding too large": (
        {"padding": (0, 4)},
        portconv.ConvShapeError,
        ("x: got shape (2, 4, 5, 6) with a padding of ((0, 0), (4, 4))", "it would be (7, 0)"),
    ),
    "stride": ({"stride": 0}, portconv.ConvValueError, ("stride: got 0", "at least 1")),
    "stride enormous": ({"stride": 2**62}, portconv.ConvShapeError, ("x: got shape", "that can be addressed")),
    "stride large": ({"stride": 2**22}, portconv.ConvShapeError, ("x: got shape (2, 4, 5, 6)", "bytes of memory that")),
    "format": ({"data_format": "NCHW"}, portconv.ConvValueError, ("data_format: got 'NCHW'", "'channels_last'")),
    "kind": ({"x": X.astype("int16")}, portconv.ConvTypeError, ("x: got dtype int16, expected a floating-point",)),
    "algorithm": (
        {"algorithm": "winograd", "stride": 2},
        portconv.ConvValueError,
        ("algorithm: got 'winograd'", "stride 1"),
    ),
}


@pytest.mark.parametrize(("change", "error", "words"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("function", [portconv.conv_transpose, portconv.conv_transpose_forward])
def test_bad_argument(function, change, error, words):
    with pytest.raises(error) as caught:
        function(**{"x": X, "w": W, **change})
    assert isinstance(caught.value, portconv.PortconvError)
    for word in words:
        assert word in str(caught.value)


def test_bad_dout_and_foreign_caches():
    _, cache = portconv.conv_transpose_forward(X, W)
    with pytest.raises(portconv.ConvShapeError, match=r"dout: got shape \(2, 3, 7, 7\), expected \(2, 3, 7, 8\)"):
        portconv.conv_transpose_backward(np.ones((2, 3, 7, 7)), cache)
    with pytest.raises(portconv.ConvTypeError, match="dout: got dtype complex128, expected a real one"):
        portconv.conv_transpose_backward(np.ones((2, 3, 7, 8), complex), cache)
    with pytest.raises(portconv.ConvTypeError, match="cache: got ConvTransposeCache, expected the cache that conv_for"):
        portconv.conv_backward(np.ones((2, 3, 7, 8)), cache)
    _, cache = portconv.conv_forward(X, np.ones((3, 4, 3, 3)))
    with pytest.raises(portconv.ConvTypeError, match="cache: got ConvCache, expected the cache that conv_transpose"):
        portconv.conv_transpose_backward(np.ones((2, 3, 7, 8)), cache)
