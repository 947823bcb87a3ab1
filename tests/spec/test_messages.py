"""What messages quote: shapes in the order of the caller, the argument that is wrong, and the code that mends it."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv import ConvShapeError, ConvTypeError, ConvValueError

LAST = {"data_format": "channels_last"}
BATCH, SAMPLE, W = np.ones((10, 28, 28, 9)), np.ones((28, 28, 9)), np.ones((4, 9, 3, 3))
FEW, WIDE = np.ones((4, 3, 3, 3)), np.broadcast_to(np.float32(1), (2**40, 8, 8, 1))
KERNEL = np.ones((1, 1, 3, 3), "float32")
FAR = {"padding": 2**25}

# What is called, and the whole message.
QUOTED = {
    "channels, a batch with channels last": (
        lambda: portconv.conv(BATCH, FEW, **LAST),
        "w: got shape (4, 3, 3, 3), for 3 input channels in 1 group(s), expected 9 in its second place, "
        "for x of shape (10, 28, 28, 9)",
    ),
    "channels, one sample with channels last": (
        lambda: portconv.conv(SAMPLE, FEW, **LAST),
        "w: got shape (4, 3, 3, 3), for 3 input channels in 1 group(s), expected 9 in its second place, "
        "for x of shape (28, 28, 9)",
    ),
    "channels, one sample": (
        lambda: portconv.conv(np.ones((9, 28, 28)), FEW),
        "w: got shape (4, 3, 3, 3), for 3 input channels in 1 group(s), expected 9 in its second place, "
        "for x of shape (9, 28, 28)",
    ),
    "channels, from shapes": (
        lambda: portconv.conv_output_shape((28, 28, 9), FEW.shape, **LAST),
        "w_shape: got shape (4, 3, 3, 3), for 3 input channels in 1 group(s), expected 9 in its second place, "
        "for x of shape (28, 28, 9)",
    ),
    "no channels": (
        lambda: portconv.conv(BATCH[..., :0], FEW, **LAST),
        "x: got 0 channels in shape (10, 28, 28, 0), expected at least 1",
    ),
    "no cell to fill the padding from": (
        lambda: portconv.conv(SAMPLE[:0], W, padding=2, padding_mode="reflect", **LAST),
        "x: got no cell in spatial dimension 0 of shape (0, 28, 9), expected at least one for padding_mode 'reflect' "
        "to fill the padding from",
    ),
    "not to be addressed": (
        lambda: portconv.conv(SAMPLE, W, padding=2**62, **LAST),
        f"x: got shape (28, 28, 9), padded to {(2**63 + 28,) * 2}, expected an output that can be addressed; "
        f"it would be {(*(2**63 + 26,) * 2, 4)}",
    ),
    "no memory": (
        lambda: portconv.conv(WIDE, KERNEL, **LAST),
        "x: got shape (1099511627776, 8, 8, 1), for which an array of shape (1099511627776, 6, 6, 1) and "
        "158329674399744 bytes would be made",
    ),
    "no memory for one sample": (
        lambda: portconv.conv(WIDE[0], KERNEL, **FAR, **LAST),
        "x: got shape (8, 8, 1), for which an array of shape (67108870, 67108870, 1) and",
    ),
    "no memory for the padding of one sample": (
        lambda: portconv.conv(WIDE[0], KERNEL, stride=2**24, padding_mode="circular", **FAR, **LAST),
        "x: got shape (8, 8, 1), for which an array of shape (67108872, 67108872, 1) and",
    ),
    "transposed, channels": (
        lambda: portconv.conv_transpose(BATCH, FEW, **LAST),
        "w: got shape (4, 3, 3, 3), for 4 input channels, expected 9 in its first place, "
        "for x of shape (10, 28, 28, 9)",
    ),
    "transposed, no cells": (
        lambda: portconv.conv_transpose(SAMPLE[:0], np.ones((9, 4, 3, 3)), **LAST),
        "x: got shape (0, 28, 9), expected at least one cell along each spatial dimension",
    ),
    "transposed, no output": (
        lambda: portconv.conv_transpose(SAMPLE, np.ones((9, 4, 3, 3)), padding=20, **LAST),
        "x: got shape (28, 28, 9) with a padding of ((20, 20), (20, 20)), expected one that leaves an output of at "
        "least one cell along each spatial dimension; it would be (-10, -10)",
    ),
    "transposed, not to be addressed": (
        lambda: portconv.conv_transpose(SAMPLE, np.ones((9, 4, 3, 3)), stride=2**61, **LAST),
        "x: got shape (28, 28, 9), expected an output that can be addressed; it would be "
        f"{(*(27 * 2**61 + 3,) * 2, 4)}",
    ),
    "output sizes": (
        lambda: portconv.fold(np.ones((1, 3, 2)), (2**63,), 3, stride=2**63 - 3),
        "output_size: got shape (9223372036854775808,), padded to (9223372036854775808,), expected an output that can "
        "be addressed; it would be (1, 1, 2)",
    ),
    "the gradient of an output": (
        lambda: portconv.conv_input_grad(BATCH, W, (28, 28, 9), **LAST),
        "dout: got shape (10, 28, 28, 9), expected (26, 26, 4)",
    ),
    "one dimension too many": (
        lambda: portconv.conv(BATCH[None], W, **LAST),
        "x: got 5 dimensions in shape (1, 10, 28, 28, 9), expected 4, or 3 for one sample without a batch axis, "
        "to go with w of shape (4, 9, 3, 3)",
    ),
}


@pytest.mark.parametrize(("call", "message"), QUOTED.values(), ids=QUOTED)
def test_a_shape_is_quoted_as_the_caller_has_it(call, message):
    with pytest.raises(ConvShapeError) as caught:
        call()
    assert str(caught.value).startswith(message)


GREY, FILTER = np.ones((300, 400)), np.ones((7, 7))


def test_a_grey_picture_is_told_which_axes_it_lacks():
    lacking = "expected (filters, channels / groups, *kernel); for one channel and one filter pass"
    with pytest.raises(ConvShapeError) as caught:
        portconv.conv(GREY, FILTER)
    assert str(caught.value) == f"w: got shape (7, 7), {lacking} x[None], w[None, None]"
    assert portconv.conv(GREY[None], FILTER[None, None]).shape == (1, 294, 394)
    with pytest.raises(ConvShapeError) as caught:
        portconv.conv(GREY, FILTER, **LAST)
    assert str(caught.value) == f"w: got shape (7, 7), {lacking} x[..., None], w[None, None]"
    assert portconv.conv(GREY[..., None], FILTER[None, None], **LAST).shape == (294, 394, 1)
    with pytest.raises(ConvShapeError) as caught:
        portconv.conv(GREY, FILTER[None, None])
    assert str(caught.value) == (
        "x: got 2 dimensions in shape (300, 400), expected 4, or 3 for one sample without a batch axis, "
        "to go with w of shape (1, 1, 7, 7); one channel without an axis for it is x[None]"
    )
    with pytest.raises(ConvShapeError) as caught:
        portconv.conv(GREY[0], FILTER[0])
    assert str(caught.value) == f"w: got shape (7,), {lacking} x[None], w[None, None]"
    assert portconv.conv(GREY[0][None], FILTER[0][None, None]).shape == (1, 394)


def test_the_axes_of_transposed_filters_are_named_in_their_order():
    for call in (portconv.conv_transpose, portconv.conv_transpose_forward):
        for x, hint in (
            (GREY, "; for one channel and one filter pass x[None], w[None, None]"),
            (np.ones((1, 3, 8, 8)), ""),
        ):
            with pytest.raises(ConvShapeError) as caught:
                call(x, FILTER)
            expected = "expected (channels, filters / groups, *kernel)"
            assert str(caught.value) == f"w: got shape (7, 7), {expected}{hint}"
    assert portconv.conv_transpose(GREY[None], FILTER[None, None]).shape == (1, 306, 406)


@pytest.mark.parametrize("shapes", [((3, 300, 400), (7, 7)), ((300, 400), ()), ((), ())])
def test_axes_are_named_only_where_they_are_known(shapes):
    x, w = map(np.ones, shapes)
    with pytest.raises(ConvShapeError) as caught:
        portconv.conv(x, w)
    assert str(caught.value) == f"w: got shape {w.shape}, expected (filters, channels / groups, *kernel)"


CONVERSIONS = {
    "numpy": 'x.astype("float32")',
    "cupy": 'x.astype("float32")',
    "jax": 'x.astype("float32")',
    "dask": 'x.astype("float32")',
    "torch": "x.to(torch.float32)",
    "array_api_strict": "array_api_strict.astype(x, array_api_strict.float32)",
}


def test_a_photograph_is_told_how_to_become_floating_point(target):
    x, w = target.array(np.ones((3, 9, 9)), "uint8"), target.array(np.ones((4, 3, 3, 3)), "float32")
    conversion = CONVERSIONS[target.backend.name]
    with pytest.raises(ConvTypeError) as caught:
        portconv.conv(x, w)
    assert str(caught.value) == (
        f"x: got dtype uint8, expected a floating-point or complex one, as w's float32 is; {conversion} converts it"
    )
    names = {"x": x, "torch": target.backend.xp, "array_api_strict": target.backend.xp}
    assert portconv.conv(eval(conversion, names), w).shape == (4, 7, 7)


FLOATS = {"x": np.ones((1, 1, 5), "float32"), "w": np.ones((1, 1, 3), "float32"), "b": np.ones(1, "float32")}
MIXED = {
    "x": ("xw", "x", "floating-point or complex one, as w's float32 is; x.astype("),
    "x beside w and b": ("xwb", "x", "floating-point or complex one, as w's float32 is; x.astype("),
    "w": ("xwb", "w", "floating-point or complex one, as x's float32 is; w.astype("),
    "b": ("xwb", "b", "floating-point or complex one, as x's float32 is; b.astype("),
    "w and b": ("xwb", "wb", "floating-point or complex one, as x's float32 is; w.astype("),
    "x and w": ("xw", "x", "floating-point or complex one, as w's float32 is; x.astype("),
}


@pytest.mark.parametrize(("given", "integers", "words"), MIXED.values(), ids=MIXED)
def test_the_integer_is_what_is_to_be_converted(given, integers, words):
    arrays = {name: FLOATS[name].astype("int32") if name in integers else FLOATS[name] for name in given}
    with pytest.raises(ConvTypeError) as caught:
        portconv.conv(**arrays)
    assert str(caught.value).startswith(f"{integers[0]}: got dtype int32, expected a {words}")


def test_what_comes_last_to_integers_is_not_theirs():
    x, w = (FLOATS[name].astype("int32") for name in "xw")
    with pytest.raises(ConvTypeError, match=r"^b: got dtype float32, expected an integer one, as x's int32 is$"):
        portconv.conv(x, w, FLOATS["b"])
    out, cache = portconv.conv_forward(x, w)
    with pytest.raises(ConvTypeError, match=r"^dout: got dtype float64, expected an integer one, as x's int32 is$"):
        portconv.conv_backward(out.astype("float64"), cache)


def test_a_scalar_is_no_array():
    with pytest.raises(ConvTypeError) as caught:
        portconv.conv(np.float64(3), np.float64(3))
    assert str(caught.value) == (
        "x: got float64, expected numpy.ndarray; portconv.backends.get('numpy').asarray makes one of it"
    )


@pytest.mark.parametrize("name", ["x", "w", "b"])
def test_a_scalar_is_to_become_an_array_of_the_library_of_the_others(target, name):
    arrays = {each: target.array(array) for each, array in FLOATS.items()}
    backend = target.backend
    with pytest.raises(ConvTypeError) as caught:
        portconv.conv(**arrays | {name: np.float64(3)})
    assert str(caught.value) == (
        f"{name}: got float64, expected {backend.module}.{backend.array_class}, as {'w' if name == 'x' else 'x'} is; "
        f"portconv.backends.get({backend.name!r}).asarray makes one of it"
    )
    with pytest.raises(ConvShapeError):  # of what the message makes
        portconv.conv(**arrays | {name: backend.asarray(np.float64(3), device=target.device)})


def test_a_parameter_of_flax_wraps_an_array():
    nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")
    numpy = pytest.importorskip("jax.numpy", reason="JAX is not installed")
    x, w = numpy.ones((1, 1, 5)), nnx.Param(numpy.ones((1, 1, 3)))
    for arguments, words, library in (
        ((x, w), "w: got Param, expected jax.Array, as x is", "jax"),
        ((w, w), "x: got Param, expected jax.Array", "jax"),
        ((FLOATS["x"], w), "w: got Param, expected numpy.ndarray, as x is", "numpy"),
    ):
        with pytest.raises(ConvTypeError) as caught:
            portconv.conv(*arguments)
        assert str(caught.value) == f"{words}; portconv.backends.get({library!r}).asarray makes one of it"
    assert portconv.conv(x, portconv.backends.get("jax").asarray(w)).tolist() == [[[3.0] * 3]]


def test_a_strange_string_is_no_option():
    with pytest.raises(ConvValueError, match="padding: got 'smae', expected 'valid' or 'full' or 'same'"):
        portconv.conv(FLOATS["x"], FLOATS["w"], padding="smae")
