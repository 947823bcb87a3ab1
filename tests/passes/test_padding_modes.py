"""Padding that is not of zeros: against NumPy's own, with a fold by index for the gradients."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from support.oracle import Problem, gamma

import portconv
from portconv.passes import padding

VALUE = -2
NUMPYS = {
    "reflect": "reflect",
    "symmetric": "symmetric",
    "replicate": "edge",
    "circular": "wrap",
    "constant": "constant",
}

# Shape of x, shape of w, stride, padding as cells before and after, dilation, groups.
CASES = {
    "1d": ((2, 3, 7), (4, 3, 3), (1,), ((1, 1),), (1,), 1),
    "1d uneven": ((2, 2, 5), (2, 2, 4), (2,), ((3, 1),), (1,), 1),
    "1d over size": ((1, 2, 3), (3, 2, 2), (1,), ((7, 8),), (1,), 1),
    "1d one cell": ((2, 2, 1), (2, 2, 3), (1,), ((4, 5),), (1,), 1),
    "1d two cells": ((1, 1, 2), (2, 1, 3), (3,), ((5, 4),), (2,), 1),
    "2d": ((2, 3, 6, 7), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "2d mixed": ((2, 4, 5, 6), (6, 2, 3, 2), (2, 1), ((0, 3), (4, 2)), (1, 2), 2),
    "2d one side": ((1, 2, 4, 4), (2, 2, 3, 3), (1, 1), ((2, 0), (0, 0)), (1, 1), 1),
    "2d depthwise": ((2, 3, 5, 4), (3, 1, 3, 3), (1, 2), ((2, 2), (2, 2)), (2, 1), 3),
    "3d": ((1, 2, 3, 4, 2), (2, 2, 2, 3, 2), (1, 2, 1), ((1, 2), (2, 2), (3, 0)), (1, 1, 1), 1),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_mode = pytest.mark.parametrize("mode", NUMPYS)
every_repeating_mode = pytest.mark.parametrize("mode", [mode for mode in NUMPYS if mode != "constant"])


def pad(x, widths, mode, value=VALUE):
    """Pad by NumPy."""
    return np.pad(x, widths, mode=NUMPYS[mode], **({"constant_values": value} if mode == "constant" else {}))


def named(mode, value=VALUE):
    """Return the keywords of a mode."""
    return {"padding_mode": mode, **({"padding_value": value} if mode == "constant" else {})}


def truth(case, mode, x, w, b, dout, value=VALUE):
    """Pad by NumPy, convolve by loops; add the padded input's gradient up by the index of the cell it came from."""
    x_shape, w_shape, stride, pads, dilation, groups = case
    none = ((0, 0),) * len(stride)
    widths = ((0, 0), (0, 0), *pads)
    problem = Problem(
        (*x_shape[:2], *(n + lo + hi for n, (lo, hi) in zip(x_shape[2:], pads, strict=True))),
        w_shape,
        stride,
        none,
        dilation,
        groups,
    )
    padded = pad(x, widths, mode, value)
    results = problem.all(padded, w, b, dout)
    # The constant is one cell more, whose gradient is left out.
    sources = pad(np.arange(x.size).reshape(x.shape), widths, mode, x.size)
    dx = np.zeros(x.size + 1, results["dx"].dtype)
    np.add.at(dx, sources.ravel(), results["dx"].ravel())
    return problem, {**results, "dx": dx[:-1].reshape(x.shape)}


def operands(case, mode, make):
    x_shape, w_shape, stride, pads, dilation, _ = case
    sides = zip(x_shape[2:], w_shape[2:], stride, pads, dilation, strict=True)
    out = [(n + lo + hi - d * (k - 1) - 1) // s + 1 for n, k, s, (lo, hi), d in sides]
    return [make(s) for s in (x_shape, w_shape, w_shape[:1], (x_shape[0], w_shape[0], *out))]


def run(target, case, mode, given, **options):
    _, _, stride, pads, dilation, groups = case
    options = {"stride": stride, "padding": pads, "dilation": dilation, "groups": groups, **named(mode), **options}
    x, w, b, dout = (target.array(a) for a in given)
    out, cache = portconv.conv_forward(x, w, b, **options)
    results = {"out": out, **portconv.conv_backward(dout, cache)._asdict()}
    for name, like in (("out", dout), ("dx", x), ("dw", w), ("db", b)):
        assert target.owns(results[name]), name
        assert tuple(results[name].shape) == tuple(like.shape), name
        assert results[name].dtype == like.dtype, name
    again = portconv.conv_input_grad(dout, w, tuple(x.shape), **options)
    assert np.array_equal(target.numpy(again), target.numpy(results["dx"]))
    again = portconv.conv_weight_grad(dout, x, tuple(w.shape), **options)
    assert np.array_equal(target.numpy(again), target.numpy(results["dw"]))
    return {name: target.numpy(result) for name, result in results.items()}


@every_case
@every_mode
def test_whole_numbers_are_exact(target, case, mode):
    # Entries up to 3 and fewer than 2**12 terms of a sum, folded up to 20 times: below 2**24, exact in float32.
    rng = np.random.default_rng(0)
    given = operands(case, mode, lambda shape: rng.integers(-3, 4, shape).astype("float32"))
    _, expected = truth(case, mode, *given)
    for options in ({}, {"algorithm": "direct"}):
        results = run(target, case, mode, given, **options)
        for name in expected:
            assert np.array_equal(results[name], expected[name]), (name, options)


@every_mode
def test_within_the_bound(target, mode):
    rng = np.random.default_rng(1)
    for case in (CASES["2d"], CASES["2d mixed"]):
        given = operands(case, mode, lambda shape: rng.standard_normal(shape).astype("float32"))
        wide = [a.astype("float64") for a in given]
        problem, expected = truth(case, mode, *wide)
        _, magnitudes = truth(case, mode, *(np.abs(a) for a in wide), value=abs(VALUE))
        terms = problem.terms()
        # A cell of dx adds up those of the padding that repeat it, of which there are at most as many as padded cells.
        terms["dx"] += int(np.prod([1 + lo + hi for lo, hi in case[3]]))
        results = run(target, case, mode, given, algorithm="gemm")
        for name, exact in expected.items():
            allowed = (gamma(terms[name], "float32") + gamma(terms[name], "float64")) * magnitudes[name]
            assert np.all(np.abs(results[name] - exact) <= allowed), name


@every_mode
def test_channels_last(target, mode):
    rng = np.random.default_rng(2)
    case = CASES["2d mixed"]
    x, w, b, dout = operands(case, mode, lambda shape: rng.integers(-3, 4, shape).astype("float32"))
    first = run(target, case, mode, (x, w, b, dout))
    x, dout = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dout))
    last = run(target, case, mode, (x, w, b, dout), data_format="channels_last")
    for name in first:
        found = np.moveaxis(last[name], -1, 1) if name in ("out", "dx") else last[name]
        assert np.array_equal(found, first[name]), name


@every_mode
@pytest.mark.parametrize("padding", ["same", "same_lower", "full"])
def test_paddings_by_name(target, mode, padding):
    rng = np.random.default_rng(3)
    x, w = (rng.integers(-3, 4, shape).astype("float32") for shape in ((2, 2, 5, 7), (3, 2, 4, 3)))
    options = {"stride": (2, 3), "dilation": (1, 2)}
    # ceil(5 / 2) = 3 outputs need 2 * 2 + 4 = 8 cells, 3 more; ceil(7 / 3) = 3 need 2 * 3 + 5 = 11, 4 more.
    pads = {"same": ((1, 2), (2, 2)), "same_lower": ((2, 1), (2, 2)), "full": ((3, 3), (4, 4))}[padding]
    by_name, spelt = (
        portconv.conv(target.array(x), target.array(w), padding=given, **named(mode), **options)
        for given in (padding, pads)
    )
    assert np.array_equal(target.numpy(by_name), target.numpy(spelt))
    widths = ((0, 0), (0, 0), *pads)
    padded = target.array(pad(x, widths, mode))
    assert np.array_equal(target.numpy(by_name), target.numpy(portconv.conv(padded, target.array(w), **options)))


@every_mode
def test_pieces_are_numpys(mode):
    for size, before, after in np.ndindex(6, 14, 14):
        if size == 0:
            continue
        cells = np.arange(size)
        out = np.full(size + before + after, -1)
        out[before : before + size] = cells
        for piece in padding.pieces(mode, size, before, after):
            source = out[slice(*piece.source)] if mode != "constant" else np.array([VALUE])
            assert np.all(source >= 0) or mode == "constant"
            out[slice(*piece.cells)] = source[::-1] if piece.flipped else source
        assert np.array_equal(out, pad(cells, (before, after), mode))


@every_mode
def test_a_padding_far_longer_than_the_input_takes_few_pieces(mode):
    # Each piece may be as long as all that is filled before it, so that 20 doublings reach beyond 2**20 cells.
    assert len(padding.pieces(mode, 2, 0, 2**20)) <= 21
    x = np.arange(1.0, 4.0, dtype="float32").reshape(1, 1, 3)
    w = np.ones((1, 1, 1), "float32")
    out, cache = portconv.conv_forward(x, w, padding=2**18, **named(mode))
    assert np.array_equal(out, pad(x, ((0, 0), (0, 0), (2**18,) * 2), mode))
    cells = pad(np.arange(3), 2**18, mode, 3)
    dx, _, _ = portconv.conv_backward(np.ones_like(out), cache)
    assert np.array_equal(dx[0, 0], np.bincount(cells)[:3])


@every_repeating_mode
def test_an_empty_input_has_nothing_to_fill_from(mode):
    x, w = np.ones((1, 1, 0, 4)), np.ones((1, 1, 2, 2))
    with pytest.raises(portconv.ConvShapeError, match=rf"x: got no cell in spatial dimension 0 .* '{mode}'"):
        portconv.conv(x, w, padding=2, padding_mode=mode)
    assert portconv.conv(np.ones((0, 1, 3, 4)), w, padding=2, padding_mode=mode).shape == (0, 1, 6, 7)


def test_an_empty_input_may_have_a_constant_around_it():
    x, w = np.ones((1, 1, 0, 4)), np.ones((1, 1, 2, 2))
    out, cache = portconv.conv_forward(x, w, padding=2, padding_mode="constant", padding_value=3)
    assert np.array_equal(out, portconv.conv(pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)), "constant", 3), w))
    assert portconv.conv_backward(out, cache).dx.shape == x.shape


EXACT = {"float16": 0.25, "float32": -2.5, "complex64": 1.5 - 2j, "int16": -300, "int64": 2**62 + 1}
ROUNDED = {"float16": 0.1, "float32": 2.0**40 / 3, "complex64": 0.1 - 7e-9j}


CALLS = {
    "standard": (EXACT, None, "standard"),
    "standard in parts": ({name: EXACT[name] for name in ("float16", "float32", "int16")}, 14_000, "standard"),
    "reproducible": (EXACT | ROUNDED, None, "reproducible"),
    "reproducible in parts": ({"float16": 0.1, "float32": 2.0**40 / 3}, 80_000, "reproducible"),
}


@pytest.mark.parametrize(("numbers", "limit", "precision"), CALLS.values(), ids=CALLS)
def test_a_constant_is_a_number_of_the_inputs_dtype(target, numbers, limit, precision):
    # The same call of the input as NumPy pads it: exact sums are equal, "reproducible" has the same bits of all.
    if (
        target.backend.name != "numpy"
    ):  # where other precisions and limits take the same steps, and compiling takes long
        if limit or precision == "reproducible":
            pytest.skip("the same steps on NumPy")
        numbers = {"complex64": 1.5 - 2j, "int16": -300}
    rng = np.random.default_rng(4)
    shapes, options = ((2, 4, 9, 8), (6, 2, 3, 2)), {"groups": 2, "stride": (2, 1), "precision": precision}
    for dtype, value in numbers.items():
        x, w = (rng.integers(-2, 3, shape).astype(dtype) for shape in shapes)
        if dtype == "complex64":
            x, w = x + 1j * x[..., ::-1], w - 1j * w[::-1]
        padded = np.pad(x, ((0, 0), (0, 0), (2, 3), (0, 9)), constant_values=np.asarray(value).astype(dtype))
        given = {"padding": ((2, 3), (0, 9)), "padding_mode": "constant", "padding_value": value, **options}
        x, w, padded = (target.array(array) for array in (x, w, padded))
        with nullcontext() if limit is None else portconv.workspace_limit(limit):
            out, cache = portconv.conv_forward(x, w, **given)
            dw = portconv.conv_backward(out, cache).dw
            again = portconv.conv_weight_grad(out, x, tuple(w.shape), **given)
        expected, cache = portconv.conv_forward(padded, w, **options)
        expected_dw = portconv.conv_backward(expected, cache).dw
        for found, one in ((out, expected), (dw, expected_dw), (again, expected_dw)):
            assert np.array_equal(target.numpy(found), target.numpy(one)), (dtype, value)
