"""How an operand lies in memory: what is slow to multiply is copied first, within the limit on memory."""

from __future__ import annotations

import numpy as np
import pytest
from support.kernels import needs_kernels
from support.limited import SLACK, peak

import portconv
from portconv import backends

NUMPY = backends.get("numpy")
CALLS = {
    "gemm": ((2, 3, 9, 12), (4, 3, 3, 2), {"padding": 1}),
    "gemm of many columns": ((2, 8, 40, 40), (8, 8, 3, 3), {"padding": 1}),
    "gemm of one tap": ((2, 8, 20, 20), (8, 8, 1, 1), {}),
    "depthwise": ((1, 1, 30, 20), (1, 1, 5, 5), {}),
    "depthwise of volumes": ((1, 1, 12, 12, 12), (1, 1, 3, 3, 3), {"padding": 1}),
    "depthwise of many channels": ((2, 6, 30, 30), (6, 1, 3, 3), {"groups": 6}),
    "winograd": ((2, 4, 12, 10), (6, 4, 3, 3), {"padding": 1}),
    "fft": ((2, 3, 12, 10), (4, 3, 5, 3), {}),
    "direct": ((2, 3, 6, 5), (4, 3, 3, 2), {"padding": 1}),
}
"""The shapes of `x` and `w`, and options, by the name of an algorithm and what sets the call apart."""


def reversed_in_memory(array):
    return np.flip(np.flip(array).copy())


def with_last_axes_swapped(array):
    return np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)


def every_second(array):
    wide = np.zeros([2 * size for size in array.shape], array.dtype)[(slice(None, None, 2),) * array.ndim]
    wide[...] = array
    return wide


def repeated(array):
    return np.broadcast_to(array[..., :1], array.shape)


def unaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory


def in_other_byte_order(array):
    return array.astype(array.dtype.newbyteorder())


ORDERS = (
    reversed_in_memory,
    np.asfortranarray,
    with_last_axes_swapped,
    every_second,
    repeated,
    unaligned,
    in_other_byte_order,
)


def call(name, shapes, options, operands):
    """Compute the output, or the gradient of an operand, of two operands."""
    functions = {
        "out": lambda: portconv.conv(*operands, **options),
        "dx": lambda: portconv.conv_input_grad(*operands, shapes["x"], **options),
        "dw": lambda: portconv.conv_weight_grad(*operands, shapes["w"], **options),
    }
    return functions[name]()


@pytest.fixture
def products(monkeypatch):
    """Collect the shapes and the steps in memory of all matrices that NumPy multiplies from here on."""
    found, product = [], type(NUMPY).product

    def watched(self, a, b, out=None):
        found.append(tuple((array.shape, array.strides[-2:], array.dtype) for array in (a, b)))
        return product(self, a, b, out)

    monkeypatch.setattr(type(NUMPY), "product", watched)
    return found


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("name", ["out", "dx", "dw"])
@pytest.mark.parametrize("case", CALLS)
def test_numpy_multiplies_the_same_matrices_in_whatever_order_an_operand_lies(products, case, name, last):
    x_shape, w_shape, options = CALLS[case]
    rng = np.random.default_rng(0)
    out_shape = portconv.conv_output_shape(x_shape, w_shape, **options)
    options = {**options, "algorithm": case.split()[0]}
    shapes = {"x": x_shape, "w": w_shape, "out": out_shape}
    if last:
        options["data_format"] = "channels_last"
        shapes |= {key: (shapes[key][0], *shapes[key][2:], shapes[key][1]) for key in ("x", "out")}
    operands = [
        rng.integers(-4, 5, shapes[key]).astype("float32")
        for key in {"out": ("x", "w"), "dx": ("out", "w"), "dw": ("out", "x")}[name]
    ]
    with portconv.num_threads(1):
        for place in (0, 1):
            for order in ORDERS:
                odd = order(operands[place])
                plain = np.array(odd, "float32", order="C")
                results, multiplied = [], []
                for array in (plain, odd):
                    given = [array if i == place else operand for i, operand in enumerate(operands)]
                    products.clear()
                    results.append(call(name, shapes, options, given))
                    multiplied.append(list(products))
                assert multiplied[0] == multiplied[1], order.__name__
                np.testing.assert_array_equal(results[1], results[0], strict=True)


def test_what_lies_in_rows_is_not_copied():
    picture = np.zeros((3, 8, 40, 40), "float32")
    for x in (
        picture,
        picture[:, :, 3:20, 5:30],
        picture[::-1],
        picture[:, 2:5],
        np.broadcast_to(picture[:1], (3, 8, 40, 40)),
    ):
        assert NUMPY.in_order(x, batched=True)
    assert not NUMPY.in_order(picture[::-1], batched=False)
    assert NUMPY.in_order(np.asfortranarray(picture[:, :1, :1, :]), batched=False) is False
    assert NUMPY.in_order(np.zeros((0, 3))[:, ::-1], batched=False)


def test_a_copy_counts_as_memory_of_the_call():
    x, w = np.ones((4, 8, 32, 32), "float32"), np.ones((8, 8, 3, 3), "float32")
    own = portconv.explain(x, w).workspace_bytes
    assert portconv.explain(np.asfortranarray(x), w).workspace_bytes == own + x.nbytes
    assert portconv.explain(x, np.asfortranarray(w)).workspace_bytes == own + w.nbytes
    assert portconv.explain(x.astype(">f4"), w).workspace_bytes == own + x.nbytes


@pytest.mark.parametrize("share", [0.25, 0.5, 1, 4])
def test_a_limit_that_suffices_in_order_suffices_in_any_order(share):
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, (2, 4, 60, 60)).astype("float32")
    w = rng.integers(-4, 5, (4, 4, 3, 3)).astype("float32")
    with portconv.workspace_limit(int(share * x.nbytes)):
        out, cache = portconv.conv_forward(x, w)
        odd, odd_cache = portconv.conv_forward(np.asfortranarray(x), reversed_in_memory(w))
        assert portconv.explain(np.asfortranarray(x), w).workspace_bytes <= share * x.nbytes
        # Sums of small whole numbers are exact in any order.
        np.testing.assert_array_equal(odd, out)
        for grad, expected in zip(
            portconv.conv_backward(np.asfortranarray(out), odd_cache)[:2],
            portconv.conv_backward(out, cache)[:2],
            strict=True,
        ):
            np.testing.assert_array_equal(grad, expected)


@needs_kernels
@pytest.mark.parametrize("limit", [1 << 19, 1 << 22, 1 << 26])
def test_a_copy_for_kernels_counts_too(limit):
    # Rows with gaps suit matrix products as they are, and kernels read what lies in a row.
    x, w = np.ones((2, 16, 200, 200), "float32")[:, :, 1:-1, 1:-1], np.ones((16, 16, 3, 3), "float32")
    assert NUMPY.in_order(x, batched=True)
    assert not NUMPY.lies_in_a_row(x)
    with portconv.workspace_limit(limit):
        found = portconv.explain(x, w)
        out = portconv.conv(x, w)
        assert found.workspace_bytes <= limit
        assert found.algorithm != "compiled" or limit < x.nbytes or found.workspace_bytes > x.nbytes
        assert peak(lambda: [portconv.conv(x, w)]) <= found.workspace_bytes + SLACK
    assert np.all(out == 16 * 9)
