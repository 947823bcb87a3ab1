"""Parts along several dimensions: the results are those of one part, to the bit."""

from __future__ import annotations

import random

import numpy as np
import pytest

import portconv
from portconv.passes import partition
from portconv.spec.geometry import Geometry
from portconv.spec.operation import Kind


def drawn(rng: random.Random) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]:
    """Small shapes and options, of which windows often lie in the padding, reach beyond it or lie apart."""
    while True:
        dims, groups = rng.choice((1, 2, 2, 3)), rng.choice((1, 1, 2))
        x = (
            rng.randint(1, 2),
            groups * rng.randint(1, 3),
            *(rng.randint(1, 14 if dims < 3 else 8) for _ in range(dims)),
        )
        w = (groups * rng.randint(1, 3), x[1] // groups, *(rng.randint(1, 4) for _ in range(dims)))
        options = {
            "stride": tuple(rng.randint(1, 4) for _ in range(dims)),
            "padding": [(rng.randint(0, 5), rng.randint(0, 5)) for _ in range(dims)],
            "dilation": tuple(rng.randint(1, 3) for _ in range(dims)),
            "groups": groups,
            "padding_mode": rng.choice(("zeros", "zeros", "reflect", "replicate", "circular")),
        }
        try:
            portconv.conv_output_shape(
                x, w, **{name: options[name] for name in ("stride", "padding", "dilation", "groups")}
            )
        except portconv.ConvShapeError:
            continue
        return x, w, options


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("form", ["int8", "float16", "reproducible"])
def test_boxes_of_a_sample_have_the_bits_of_the_whole(form, seed):
    rng, numbers, compared = random.Random(f"{form} {seed}"), np.random.default_rng(seed), 0
    dtype = "float32" if form == "reproducible" else form
    precision = "reproducible" if form == "reproducible" else "standard"
    for _ in range(8):
        x_shape, w_shape, options = drawn(rng)
        options["precision"] = precision
        # Whole numbers of at most 4: their sums are exact in every dtype.
        x, w = (numbers.integers(-4, 5, shape).astype(dtype) for shape in (x_shape, w_shape))
        if precision == "reproducible":
            x = x * numbers.standard_normal(x.shape).astype(dtype)
        try:
            out, cache = portconv.conv_forward(x, w, **options)
        except portconv.ConvShapeError:  # a padding that reflect cannot fill
            continue
        dout = numbers.integers(-4, 5, out.shape).astype(dtype)
        grads = portconv.conv_backward(dout, cache)
        for limit in (1500, 6000, 25000):
            for call, whole in (
                (lambda: portconv.conv(x, w, **options), out),  # noqa: B023
                (lambda: portconv.conv_input_grad(dout, w, x.shape, **options), grads.dx),  # noqa: B023
                (lambda: portconv.conv_weight_grad(dout, x, w.shape, **options), grads.dw),  # noqa: B023
            ):
                try:
                    with portconv.workspace_limit(limit):
                        result = call()
                except portconv.ConvValueError:
                    continue
                np.testing.assert_array_equal(result, whole)
                compared += 1
    assert compared > 10


@pytest.mark.parametrize("kind", [Kind.FORWARD, Kind.INPUT_GRAD, Kind.WEIGHT_GRAD])
def test_a_box_is_cut_along_as_many_dimensions_as_it_takes(kind):
    geometry = Geometry(2, 4, 4, 1, (20, 30, 40), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))
    copies = partition.Copies(*[partition.Bytes(8, 0, 8)] * 3)
    dims = []
    for most in (2_000_000, 400_000, 40_000, 8_000, 1_000):
        parts = partition.parts(geometry, kind, copies, most)
        every = list(parts)
        assert len(every) == len(parts)
        assert {part.geometry for part in every} == {*parts.geometries()}
        assert all(copies.bytes(part.geometry, cut=True) <= most for part in every)
        seen = np.zeros((geometry.x_shape if kind == Kind.INPUT_GRAD else geometry.out_shape), int)
        for part in every:
            seen[(*part.at(kind.result if kind != Kind.WEIGHT_GRAD else "out"), ...)] += 1
        # The parts of a gradient of filters share the outputs out, too.
        assert np.all(seen == 1)
        dims.append(sum(pieces.cuts > 1 for pieces in parts.box))
    assert dims == sorted(dims)
    assert (dims[0], dims[-1]) == (0, 3)
