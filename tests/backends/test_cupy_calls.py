"""Each call of the core, and of CuPy's backend, fits what the installed CuPy takes; no device is needed.

`support.cupy_on_numpy` says how the calls of the core are caught.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from support import cupy_on_numpy
from support.cupy_on_numpy import ASKED, LACKS, CupyOnNumpy, Namespace, ndarray
from support.installed_calls import faults, misfit, of_file, parsed

import portconv
from portconv import backends
from portconv.backends import _cupy
from portconv.spec.remembered import forget

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
compat = pytest.importorskip("array_api_compat.cupy", reason="CuPy is not installed")


@pytest.fixture
def on_cupy(monkeypatch):
    """Make arrays that the core takes for CuPy's; in the end, nothing was asked that CuPy lacks."""
    backend = CupyOnNumpy()
    monkeypatch.setitem(backends._by_class, ndarray, backend)
    monkeypatch.setattr(cupy_on_numpy, "_known", {})
    forget()
    LACKS.clear()
    ASKED.clear()
    yield lambda array: ndarray(array.copy())
    forget()
    assert not LACKS, "\n".join(LACKS)


SHAPES = {
    1: ((3, 4, 11), (6, 4, 3)),
    2: ((2, 4, 9, 8), (6, 4, 3, 3)),
    3: ((2, 4, 5, 6, 7), (6, 4, 3, 2, 3)),
}
ALGORITHMS = [name for name in portconv.algorithms() if name not in ("compiled", "native", "tap_loop")]
CALLS = {
    **{f"{dims}-D": (dims, {"padding": 1}, "float32") for dims in SHAPES},
    **{name: (2, {"padding": 1, "algorithm": name}, "float32") for name in ALGORITHMS if name != "depthwise"},
    "depthwise": (2, {"padding": 1, "groups": 4, "algorithm": "depthwise"}, "float32"),
    "strides, dilation, groups, pairs": (
        2,
        {"stride": (2, 1), "dilation": (1, 2), "groups": 2, "padding": ((1, 2), (0, 3))},
        "float32",
    ),
    "channels last": (2, {"padding": 1, "data_format": "channels_last"}, "float32"),
    "channels last, groups": (2, {"padding": 1, "groups": 2, "stride": 2, "data_format": "channels_last"}, "float32"),
    **{mode: (2, {"padding": 2, "padding_mode": mode}, "float32") for mode in ("reflect", "replicate", "circular")},
    **{
        dtype: (2, {"padding": 1}, dtype)
        for dtype in ("float64", "float16", "complex64", "complex128", "int8", "uint16", "int64")
    },
    **{
        f"reproducible {dtype}": (2, {"padding": 1, "precision": "reproducible"}, dtype)
        for dtype in ("float32", "float64", "float16", "complex64", "int32")
    },
    "fast": (2, {"padding": 1, "precision": "fast"}, "float32"),
}


def operands(dims, options, dtype):
    """Whole numbers, whose sums are exact, of the shapes that the options take."""
    x, w = SHAPES[dims]
    w = (w[0] // 6 * 8, w[1] // options.get("groups", 1), *w[2:]) if options.get("groups", 1) > 1 else w
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0 if dtype == "uint16" else -3, 4, shape).astype(dtype) for shape in (x, w, w[:1])]
    if options.get("data_format") == "channels_last":
        arrays[0] = np.moveaxis(arrays[0], 1, -1)
    return arrays


def both_ways(arrays, dout, options):
    out, cache = portconv.conv_forward(*arrays, **options)
    return out, *portconv.conv_backward(dout(out), cache)


@pytest.mark.parametrize("call", CALLS)
def test_cupy_takes_what_convolutions_ask(on_cupy, call):
    dims, options, dtype = CALLS[call]
    plain = operands(dims, options, dtype)
    expected = both_ways(plain, lambda out: out, {**options, "algorithm": "direct", "precision": "standard"})
    results = both_ways([on_cupy(array) for array in plain], lambda _: on_cupy(expected[0]), options)
    # Spectra are rounded, by far less than a thousandth of these whole numbers.
    off = 1e-3 if call == "fft" else 0
    for result, truth in zip(results, expected, strict=True):
        assert isinstance(result, ndarray)
        assert np.abs(result.values - truth).max() <= off
    assert {"ndarray.shape", "ndarray.dtype"} <= ASKED


def test_cupy_takes_what_other_functions_ask(on_cupy):
    x, w, b = (on_cupy(array) for array in operands(2, {}, "float32"))
    portconv.conv_transpose(x, on_cupy(np.ones((4, 3, 3, 3), "float32")), stride=2, output_padding=1, padding=1)
    columns = portconv.unfold(x, 3, padding=1)
    portconv.fold(columns, x.shape[2:], 3, padding=1)
    bound = portconv.error_bound(x, w, b, padding=1)
    assert (bound.values > 0).all()
    with portconv.workspace_limit(1 << 14):
        portconv.conv(x, w, b, padding=1)
    x.values[0, 0, 0, 0] = np.inf
    for algorithm in ("gemm", "fft", "winograd"):
        with np.errstate(all="ignore"):
            assert not np.isfinite(portconv.conv(x, w, padding=1, algorithm=algorithm).values[0, :, :2, :2]).any()
    with np.errstate(all="ignore"):
        portconv.conv(x, w, padding=1, precision="reproducible")


def test_the_backend_finds_in_cupy_what_it_calls():
    code = Path(inspect.getfile(_cupy)).read_text(encoding="utf-8")
    known = {"cupy": cupy, "self.xp": compat}
    try:
        cupy.cuda.cublas  # noqa: B018  (imported when it is asked for)
    except ImportError:  # without cuBLAS, which is large
        known["importlib.import_module('cupy.cuda').cublas"] = of_file("cupy_backends.cuda.libs.cublas")
    found, seen = faults(code, known)
    assert found == []
    assert {"linalg.set_compute_type", "cublas.getMathMode", "self.xp.cuda.runtime.memGetInfo"} <= seen
    assert hasattr(cupy._core.flags.Flags, "f_contiguous")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('importlib.import_module("cupy.cuda.cublas")', "import cupy.cuda.cublas: No module named 'cupy.cuda.cublas'"),
        ("self.xp.cuda.runtime.memGetInformation()", "self.xp.cuda.runtime.memGetInformation: module"),
        ("self.xp.cuda.runtime.memGetInfo(0)", "self.xp.cuda.runtime.memGetInfo(0): too many positional arguments"),
        ("self.xp.asnumpy(array, blocks=True)", "got an unexpected keyword argument 'blocks'"),
    ],
)
def test_a_call_of_the_backend_that_cupy_lacks_is_named(code, words):
    (found,) = faults(f"def method(self, array):\n    {code}", {"self.xp": compat})[0]
    assert words in found


def test_a_module_that_lacks_its_library_is_read():
    cublas = of_file("cupy_backends.cuda.libs.cublas")
    code = "def f():\n    cublas.setMathMode(1, 2)\n    cublas.setMathMode(1)\n    cublas.setMode(1)"
    few, none = faults(code, {"cublas": cublas})[0]
    assert few == "cublas.setMathMode(1): missing a required argument: 'mode'"
    assert none.startswith("cublas.setMode: ")


def refused(xp, a):
    """Calls that NumPy takes and CuPy does not, with what is said of them."""
    return {
        "xp.add: got an unexpected keyword argument 'subok'": lambda: xp.add(a, a, subok=True),
        "xp.sum: got an unexpected keyword argument 'where'": lambda: xp.sum(a, where=True),
        "xp.matmul: got an unexpected keyword argument 'subok'": lambda: xp.matmul(a, a, subok=True),
        "xp.busday_count: CuPy has none": lambda: xp.busday_count,
        "xp.add: got an array of NumPy's": lambda: xp.add(a, np.ones(3)),
        "ndarray.__mul__: got an array of NumPy's": lambda: a * np.ones((3, 3)),
        "xp.isnan: no loop for datetime64[s]": lambda: xp.isnan(ndarray(np.zeros(2, "datetime64[s]"))),
        "ndarray.to_device: CuPy has none": lambda: a.to_device,
        "ndarray.sum: got an unexpected keyword argument 'initial'": lambda: a.sum(initial=0.0),
    }


@pytest.mark.parametrize("words", refused(None, None))
def test_a_call_of_the_core_that_cupy_refuses_is_named(words):
    array = ndarray(np.ones((3, 3), "float32"))
    LACKS.clear()
    refused(CupyOnNumpy().load(), array)[words]()
    assert words in LACKS
    LACKS.clear()


def test_an_array_of_cupy_s_becomes_none_of_numpy_s():
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(ndarray(np.ones(2)))
    assert isinstance(CupyOnNumpy().load(), Namespace)


def test_signatures_are_read_from_docstrings():
    assert misfit(parsed, ("f(intptr_t handle, int mode=-1) -> int",), {}) is None
    signature = parsed(r"add(x1, x2, /, out=None, \*, casting='same_kind', dtype=None)")
    assert list(signature.parameters) == ["x1", "x2", "out", "casting", "dtype"]
    with pytest.raises(TypeError, match="too many positional"):
        signature.bind(1, 2, 3, 4)
    overload = parsed("1. f(self: a.b, image: list[int] = [], padding: dict[int, str] = {}) -> c")
    assert list(overload.parameters) == ["self", "image", "padding"]
