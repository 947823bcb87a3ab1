"""What a type checker says of calls: mypy reads this file and nothing runs it.

Each `type: ignore` is an error that mypy must find; one too many is an error too.
"""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import portconv

Floats = NDArray[np.float32]


def arrays_of_one_library_come_back(x: Floats, w: Floats, b: Floats) -> None:
    assert_type(portconv.conv(x, w, b), Floats)
    out, cache = portconv.conv_forward(x, w)
    assert_type(out, Floats)
    grads = portconv.conv_backward(out, cache)
    assert_type(grads.dw, Floats)
    assert_type(grads.db, Floats | None)
    dx, _, _ = grads
    assert_type(dx, Floats)
    assert_type(portconv.conv_input_grad(out, w, x.shape), Floats)
    assert_type(portconv.conv_weight_grad(out, x, (2, 2, 3)), Floats)
    assert_type(portconv.error_bound(x, w), Floats)
    transposed, transposed_cache = portconv.conv_transpose_forward(x, w, b)
    assert_type(transposed, Floats)
    assert_type(portconv.conv_transpose_backward(transposed, transposed_cache).dx, Floats)
    assert_type(portconv.conv_transpose(x, w), Floats)
    course, _ = portconv.cs231n.conv_forward_fast(x, w, b, {"stride": 1, "pad": 1})
    assert_type(course, Floats)


def an_array_of_any_type_is_fine(x: Any, w: Any) -> None:
    assert_type(portconv.conv(x, w), Any)
    assert_type(portconv.unfold(x, 3), Any)


def every_option_has_its_type(x: Floats, w: Floats, name: str) -> None:
    portconv.conv(x, w, stride=(1, 2), padding=((1, 2), (0, 0)), dilation=[1, 1], groups=1)
    portconv.conv(x, w, padding="same", padding_mode="reflect", data_format="channels_last", precision="fast")
    portconv.conv(x, w, padding=1, padding_mode="constant", padding_value=0.5)
    portconv.conv(x, w, algorithm=name)  # `algorithms()` has their names, which are no fixed set
    portconv.conv_transpose(x, w, padding=[(1, 0), (0, 1)], output_padding=1)
    portconv.conv_transpose(x, w, padding="causal", padding_mode="circular")
    portconv.testing.assert_consistent(portconv.conv, x, w)


def what_a_call_would_refuse_is_an_error_before(x: Floats, w: Floats, other: int) -> None:
    portconv.conv(x, w, padding="smae")  # type: ignore[arg-type]
    portconv.conv(x, w, padding_mode="mirror")  # type: ignore[arg-type]
    portconv.conv(x, w, data_format="NHWC")  # type: ignore[arg-type]
    portconv.conv(x, w, precision="double")  # type: ignore[arg-type]
    portconv.conv(x, w, stride=1.5)  # type: ignore[arg-type]
    portconv.conv(x, w, stride=None)  # type: ignore[arg-type]
    portconv.conv_transpose(x, w, padding="full")  # type: ignore[arg-type]
    portconv.conv_transpose(x, w, padding_mode="reflect")  # type: ignore[arg-type]
    portconv.conv(x, [[[1.0]]])  # type: ignore[type-var]
    portconv.conv(x, other)  # type: ignore[type-var]
    portconv.convv  # type: ignore[attr-defined]  # noqa: B018
