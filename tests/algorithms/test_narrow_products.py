"""Products of narrow numbers in each way that this CPU has: integers to the bit, and halves rounded once."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.algorithms import kernel_products, narrow_products
from portconv.kernels import state
from portconv.spec.dtypes import EPSILON
from portconv.spec.remembered import forget

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)

DTYPES = {"i8": "int8", "i16": "int16", "half": "float16", "bfloat": "bfloat16"}
WAYS = [
    pytest.param(element, way, id=f"{DTYPES[element]}-{way.element}")
    for element, ways in narrow_products.WAYS.items()
    for way in ways
    if way.element not in narrow_products.PACKS or way.element in state.here().dots
]
LAYERS = {
    "plane": ((5, 6, 20, 21), (7, 6, 3, 3), {"padding": 1}),
    "strided": ((3, 5, 20, 33), (4, 5, 3, 3), {"padding": 1, "stride": 2}),
    "groups": ((3, 6, 40), (4, 3, 5), {"groups": 2, "dilation": 2}),
    "matrix": ((4, 8, 9, 9), (12, 8, 1, 1), {}),
    "depthwise": ((2, 6, 17, 17), (6, 1, 3, 3), {"groups": 6, "padding": 1}),
    "last": ((3, 6, 20, 21), (7, 6, 3, 3), {"padding": 1, "data_format": "channels_last"}),
}


def dtype_named(name):
    if name != "bfloat16":
        return np.dtype(name)
    return np.dtype(pytest.importorskip("ml_dtypes", reason="ml_dtypes, NumPy's bfloat16, is not installed").bfloat16)


@pytest.fixture
def only(monkeypatch):
    """Let narrow numbers be multiplied in one way, two samples at a time."""

    def choose(element, way, sample):
        monkeypatch.setitem(narrow_products.WAYS, element, (way,))
        monkeypatch.setattr(narrow_products, "COPIED_BYTES", 2 * sample)
        has_kernels = narrow_products.has_kernels
        monkeypatch.setattr(kernel_products, "has_kernels", lambda each: each != element and has_kernels(each))
        forget()

    yield choose
    forget()


def results(x, w, b, draw, options, algorithm="compiled"):
    """Return an output and its gradients."""
    out, cache = portconv.conv_forward(x, w, b, algorithm=algorithm, **options)
    grads = portconv.conv_backward(draw(out.shape), cache)
    return {"out": out, **grads._asdict()}


def drawn(dtype, layer):
    """Return operands, and a function that draws the gradient of the output: the same in each call."""
    (samples, *shape), w, options = LAYERS[layer]
    random = np.random.default_rng(0)
    shape = (samples, *shape[1:], shape[0]) if "data_format" in options else (samples, *shape)

    def draw(shape, random=random):
        if dtype.kind == "i":
            limits = np.iinfo(dtype)
            return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        return random.standard_normal(shape).astype(dtype)

    return (draw(shape), draw(w), draw(w[:1])), lambda shape: draw(shape, np.random.default_rng(1)), options


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("element", "way"), WAYS)
def test_each_way_multiplies_narrow_numbers(only, element, way, layer):
    dtype = dtype_named(DTYPES[element])
    operands, draw, options = drawn(dtype, layer)
    if way.element in narrow_products.PACKS and layer == "last":
        pytest.skip("packs are made of channels that come first")
    wide = np.dtype("int64" if dtype.kind == "i" else "float64")
    as_wide = [each.astype(wide) for each in operands]
    expected = results(*as_wide, lambda shape: draw(shape).astype(wide), options, "auto")
    magnitudes = results(*map(np.abs, as_wide), lambda shape: np.abs(draw(shape).astype(wide)), options, "auto")
    only(element, way, operands[0][0].size * 4 + 4 * expected["out"][0].size)
    found = results(*operands, draw, options)
    for name, result in found.items():
        assert result.dtype == dtype
        if dtype.kind == "i":
            assert np.array_equal(result, expected[name].astype(dtype)), name
            continue
        # Sums of at most 3000 products in float32, of which tiles count each 25 times, and one rounding to the dtype.
        of_sums, unit = 25 * 3000 * 2.0**-24 * magnitudes[name], EPSILON[DTYPES[element]] / 2
        bound = of_sums + unit * (np.abs(expected[name]) + of_sums)
        assert np.all(np.abs(result.astype("float64") - expected[name]) <= bound), name


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_no_number_of_a_half_is_taken_for_zero(name):
    dtype = dtype_named(name)
    # All magnitudes, subnormal ones too, times one, and in a sum with zeros: 1x1 filters of two channels.
    numbers = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    numbers = numbers[np.isfinite(numbers.astype("float32"))]
    x = np.stack([numbers, np.zeros_like(numbers)])[None]
    w = np.array([[1, 0], [0, 1]], dtype)[:, :, None]
    out = portconv.conv(x, w, algorithm="compiled")
    assert np.array_equal(out.astype("float64"), x.astype("float64"))
