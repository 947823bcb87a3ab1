"""Test that a failure is shown by the smallest call that shows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import portconv
from portconv import backends
from portconv.backends import NativeConvolution
from portconv.spec.remembered import forget
from portconv.verification import Case, Trial, Variant
from portconv.verification.smallest import of_failures, smallest


class Shifted(NativeConvolution):
    """A convolution that is off by an eighth where a filter has two taps or more, and that only computes outputs."""

    def forward(self, x: Any, w: Any, b: Any, convolution: Any) -> Any:
        out = portconv.conv(x, w, b, stride=convolution.stride, padding=convolution.shared, algorithm="direct")
        return out + 0.125 * (w.shape[-1] > 1)

    def code(self, kind: str, convolution: Any) -> str:
        return f"shifted({kind}, {convolution.w_shape})"


def test_the_smallest_call_that_shows_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = backends.get("numpy")
    monkeypatch.setattr(numpy, "native_convolution", Shifted())
    forget()
    case = Case("shifted", (3, 5, 9, 8), (4, 5, 3, 3), bias=True, stride=2, padding=1, algorithm="native")
    variant = Variant(numpy)
    (failed, *_) = (one for one in Trial(case, [variant]).run(variant) if one.quantity == "out")
    found = smallest(failed, case, variant)
    assert found is not None
    assert (found.case.x_shape, found.case.w_shape, found.case.bias) == ((1, 1, 1, 2), (1, 1, 1, 2), False)
    assert (found.case.stride, found.case.padding) == (1, 0)
    lines = str(found).splitlines()
    assert lines[0].startswith(f"smallest call with numpy {np.__version__}: numpy: shifted float32 out: off by")
    assert lines[1] == "    shifted(forward, (1, 1, 1, 2))"
    inputs = found.case.inputs()
    assert lines[2:] == [f"    {name} = {getattr(inputs, name).tolist()}  # float32" for name in ("x", "w")]
    assert of_failures([failed], [case], [variant], most=1) == [str(found)]
    monkeypatch.undo()
    forget()
