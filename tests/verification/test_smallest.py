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
from portconv.verification.smallest import Smallest, of_failures, smallest


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
    assert lines[1] == "    import numpy"
    assert lines[-1] == "    shifted(forward, (1, 1, 1, 2))"
    inputs = found.case.inputs()
    assert lines[2:-1] == [f"    {name} = {getattr(inputs, name).tolist()}" for name in ("x", "w")]
    assert of_failures([failed], [case], [variant], most=1) == [str(found)]
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize("quantity", ["out", "dx", "dw"])
def test_the_code_of_a_report_repeats_the_call(name: str, quantity: str) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    backend = backends.get(name)
    options = {"stride": (2, 1), "padding": ((0, 2), (1, 0)), "dilation": (1, 2), "groups": 2, "algorithm": "native"}
    case = Case("repeated", (2, 4, 8, 7), (6, 2, 3, 2), **options)
    variant = Variant(backend)
    (found,) = (one for one in Trial(case, [variant]).run(variant) if one.quantity == quantity)
    *lines, call = [line.removeprefix("    ") for line in str(Smallest(case, found, variant)).splitlines()[1:]]
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    own = backend.to_numpy(eval(call, names))
    x, w, _, dout = (None if array is None else backend.asarray(array.copy()) for array in case.inputs())
    out, cache = portconv.conv_forward(x, w, **case.options, algorithm="native")
    results = {"out": out, **portconv.conv_backward(dout, cache)._asdict()}
    ours = backend.to_numpy(results[quantity])
    assert np.array_equal(own, ours)
