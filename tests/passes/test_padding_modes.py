"""Padding by reflection, replication and wrapping: against NumPy's own, with a fold by index for the gradients."""

from __future__ import annotations

import numpy as np
import pytest
from support.oracle import Problem, gamma

import portconv
from portconv.passes import padding

NUMPYS = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}

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


def truth(case, mode, x, w, b, dout):
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
    padded = np.pad(x, widths, mode=NUMPYS[mode])
    results = problem.all(padded, w, b, dout)
    sources = np.pad(np.arange(x.size).reshape(x.shape), widths, mode=NUMPYS[mode])
    dx = np.zeros(x.size, results["dx"].dtype)
    np.add.at(dx, sources.ravel(), results["dx"].ravel())
    return problem, {**results, "dx": dx.reshape(x.shape)}


def operands(case, mode, make):
    x_shape, w_shape, stride, pads, dilation, _ = case
    sides = zip(x_shape[2:], w_shape[2:], stride, pads, dilation, strict=True)
    out = [(n + lo + hi - d * (k - 1) - 1) // s + 1 for n, k, s, (lo, hi), d in sides]
    return [make(s) for s in (x_shape, w_shape, w_shape[:1], (x_shape[0], w_shape[0], *out))]


def run(target, case, mode, given, **options):
    _, _, stride, pads, dilation, groups = case
    options = {"stride": stride, "padding": pads, "dilation": dilation, "groups": groups, **options}
    x, w, b, dout = (target.array(a) for a in given)
    out, cache = portconv.conv_forward(x, w, b, padding_mode=mode, **options)
    results = {"out": out, **portconv.conv_backward(dout, cache)._asdict()}
    for name, like in (("out", dout), ("dx", x), ("dw", w), ("db", b)):
        assert target.owns(results[name]), name
        assert tuple(results[name].shape) == tuple(like.shape), name
        assert results[name].dtype == like.dtype, name
    again = portconv.conv_input_grad(dout, w, tuple(x.shape), padding_mode=mode, **options)
    assert np.array_equal(target.numpy(again), target.numpy(results["dx"]))
    again = portconv.conv_weight_grad(dout, x, tuple(w.shape), padding_mode=mode, **options)
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
        _, magnitudes = truth(case, mode, *(np.abs(a) for a in wide))
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
    named, spelt = (
        portconv.conv(target.array(x), target.array(w), padding=given, padding_mode=mode, **options)
        for given in (padding, pads)
    )
    assert np.array_equal(target.numpy(named), target.numpy(spelt))
    widths = ((0, 0), (0, 0), *pads)
    padded = target.array(np.pad(x, widths, mode=NUMPYS[mode]))
    assert np.array_equal(target.numpy(named), target.numpy(portconv.conv(padded, target.array(w), **options)))


@every_mode
def test_pieces_are_numpys(mode):
    for size, before, after in np.ndindex(6, 14, 14):
        if size == 0:
            continue
        cells = np.arange(size)
        out = np.full(size + before + after, -1)
        out[before : before + size] = cells
        for piece in padding.pieces(mode, size, before, after):
            source = out[slice(*piece.source)]
            assert np.all(source >= 0)
            out[slice(*piece.cells)] = source[::-1] if piece.flipped else source
        assert np.array_equal(out, np.pad(cells, (before, after), mode=NUMPYS[mode]))


@every_mode
def test_a_padding_far_longer_than_the_input_takes_few_pieces(mode):
    # Each piece may be as long as all that is filled before it, so that 20 doublings reach beyond 2**20 cells.
    assert len(padding.pieces(mode, 2, 0, 2**20)) <= 21
    x = np.arange(1.0, 4.0, dtype="float32").reshape(1, 1, 3)
    w = np.ones((1, 1, 1), "float32")
    out, cache = portconv.conv_forward(x, w, padding=2**18, padding_mode=mode)
    assert np.array_equal(out, np.pad(x, ((0, 0), (0, 0), (2**18,) * 2), mode=NUMPYS[mode]))
    cells = np.pad(np.arange(3), 2**18, mode=NUMPYS[mode])
    dx, _, _ = portconv.conv_backward(np.ones_like(out), cache)
    assert np.array_equal(dx[0, 0], np.bincount(cells))


@every_mode
def test_an_empty_input_has_nothing_to_fill_from(mode):
    x, w = np.ones((1, 1, 0, 4)), np.ones((1, 1, 2, 2))
    with pytest.raises(portconv.ConvShapeError, match=rf"x: got no cell in spatial dimension 0 .* '{mode}'"):
        portconv.conv(x, w, padding=2, padding_mode=mode)
    assert portconv.conv(np.ones((0, 1, 3, 4)), w, padding=2, padding_mode=mode).shape == (0, 1, 6, 7)
