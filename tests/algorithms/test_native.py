"""Test that `native` is the library's own convolution: chosen, held to its precision, and replaced where it fails."""

from __future__ import annotations

import numpy as np
import pytest
from support.oracle import Problem

import portconv
from portconv import backends
from portconv.backends import Backend, NativeConvolution, _torch_native
from portconv.spec.remembered import forget

PROBLEM = Problem((2, 4, 9, 8), (6, 2, 3, 2), (2, 1), ((1, 2), (0, 3)), (1, 2), 2)
OPTIONS = {"stride": (2, 1), "padding": ((1, 2), (0, 3)), "dilation": (1, 2), "groups": 2}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture
def native(target):
    own = target.backend.native_convolution
    if own is None:
        pytest.skip(f"{target.backend.name} has no convolution of its own")
    if target.backend.name == "numpy":
        pytest.skip("NumPy's own has one channel and one filter: test_numpy_native.py")
    return own


def refusal(*arrays, **options):
    """The message of the error that `native` raises."""
    with pytest.raises(portconv.ConvValueError, match="algorithm: got 'native'") as raised:
        portconv.conv(*arrays, algorithm="native", **options)
    return str(raised.value)


def test_a_library_without_one_says_so(target):
    if target.backend.native_convolution is not None:
        pytest.skip(f"{target.backend.name} has a convolution of its own")
    x, w = target.array(np.ones((1, 2, 5), "float32")), target.array(np.ones((3, 2, 2), "float32"))
    try:
        message = refusal(x, w)
    except pytest.fail.Exception:  # Dask's chunks say so when they are computed
        with pytest.raises(portconv.ConvValueError) as raised:
            target.numpy(portconv.conv(x, w, algorithm="native"))
        message = str(raised.value)
    assert message.endswith(f"expected 'auto', or {target.backend.without_native}")
    if target.backend.name != "cupy":
        assert message.endswith("arrays of a library with a convolution of its own, as PyTorch, JAX and NumPy have")


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("dtype", "options", "words"),
    [
        ("complex64", {}, "real numbers: libraries make three products of a complex one"),
        ("int32", {}, "floating-point numbers: libraries convolve integers slowly, or not at all"),
        ("float32", {"precision": "reproducible"}, "a precision other than 'reproducible'"),
    ],
)
def test_what_it_does_not_serve_it_says(target, dtype, options, words):
    x, w = target.array(np.ones((1, 2, 5), dtype)), target.array(np.ones((3, 2, 2), dtype))
    assert words in refusal(x, w, **options)


@pytest.mark.usefixtures("native")
def test_four_dimensions_are_portconv_s_own(target):
    x, w = (target.array(np.ones(shape, "float32")) for shape in ((1, 1, 3, 3, 3, 3), (1, 1, 2, 2, 2, 2)))
    assert "one to three spatial dimensions" in refusal(x, w)
    assert portconv.explain(x, w).algorithm != "native"


@pytest.mark.usefixtures("native")
def test_its_bound_is_that_of_a_plain_sum(target):
    x, w, b, _ = (target.array(array) for array in PROBLEM.operands("float32"))
    options = {**OPTIONS, "padding": ((1, 2), (0, 2))}
    ours, plain = (portconv.error_bound(x, w, b, algorithm=name, **options) for name in ("native", "gemm"))
    assert np.array_equal(target.numpy(ours), target.numpy(plain))


@pytest.mark.usefixtures("portable")
def test_auto_takes_it_for_dense_layers_and_leaves_large_kernels(torch):
    x, w = torch.ones(4, 32, 28, 28), torch.ones(32, 32, 3, 3)
    explained = portconv.explain(x, w, padding=1)
    assert explained.algorithm == "native"
    (gemm,) = (one for one in explained.candidates if one.name == "gemm")
    assert gemm.cost > 1
    assert (
        portconv.explain(torch.ones(4, 32, 56, 56), torch.ones(32, 1, 31, 31), groups=32, padding=15).algorithm == "fft"
    )


def test_a_small_limit_leaves_no_room_for_it(torch):
    x, w = torch.ones(4, 32, 28, 28), torch.ones(32, 32, 3, 3)
    with portconv.workspace_limit(1 << 16):
        explained = portconv.explain(x, w)
    (own,) = (one for one in explained.candidates if one.name == "native")
    assert explained.algorithm != "native"
    assert own.why_not.startswith("needs a workspace_limit of at least")


def test_only_the_gradient_that_is_asked_for_is_computed(torch, monkeypatch):
    asked = []
    original = torch.ops.aten.convolution_backward.default

    def backward(dout, x, w, convolution, wanted):
        asked.append(wanted)
        return original(dout, x, w, None, *_torch_native._options(convolution), wanted)

    monkeypatch.setattr(_torch_native, "_backward", backward)
    dout, w, x = torch.ones(2, 3, 6), torch.ones(3, 4, 3), torch.ones(2, 4, 8)
    portconv.conv_input_grad(dout, w, tuple(x.shape), algorithm="native")
    portconv.conv_weight_grad(dout, x, tuple(w.shape), algorithm="native")
    assert asked == [(True, False, False), (False, True, False)]


@pytest.mark.parametrize("setting", ["bf16", "tf32"])
def test_float32_is_never_less_though_the_user_allows_it(torch, setting):
    # 1 + 2**-12 has more than the 8 and 11 significant bits of bfloat16 and TF32, and each sum has one term.
    convolution = torch.backends.mkldnn.conv
    found = convolution.fp32_precision
    x = torch.full((8, 1, 32, 32), 1 + 2.0**-12)
    w = torch.zeros(32, 1, 3, 3)
    w[:, :, 1, 1] = 1 + 2.0**-11
    exact = (1 + 2.0**-12) * (1 + 2.0**-11)
    convolution.fp32_precision = setting
    try:
        out = portconv.conv(x, w, algorithm="native")
        dx = portconv.conv_input_grad(torch.full_like(out, 1 / 32), w, tuple(x.shape), algorithm="native")
        assert convolution.fp32_precision == setting
    finally:
        convolution.fp32_precision = found
    assert (out == torch.tensor(exact)).all()
    assert (dx[..., 1:-1, 1:-1] == 1 + 2.0**-11).all()


class Failing(NativeConvolution):
    """A library's convolution that fails inside its kernels."""

    def forward(self, x, w, b, convolution):
        raise MemoryError("no engine\nfor this call")

    def input_grad(self, dout, w, convolution):
        raise RuntimeError("out of memory")

    weight_grad = input_grad


@pytest.fixture
def failing(target, monkeypatch):
    monkeypatch.setattr(target.backend, "native_convolution", Failing())
    monkeypatch.setattr(target.backend, "costs", target.backend.costs._replace(native=0.0, call=0.0, element=0.0))
    forget()
    yield
    monkeypatch.undo()
    forget()


@pytest.mark.usefixtures("failing")
def test_a_library_that_fails_is_named_or_replaced(target):
    if target.backend.name == "dask":
        pytest.skip("chunks ask their own library")
    operands = [np.rint(4 * array).astype("float32") for array in PROBLEM.operands("float32")]
    x, w, b, dout = (target.array(array) for array in operands)
    words = rf"algorithm 'native': {target.backend.name}'s own convolution failed: MemoryError: no engine for this call"
    with pytest.raises(portconv.BackendError, match=words):
        portconv.conv(x, w, b, algorithm="native", **OPTIONS)
    with pytest.raises(portconv.BackendError, match="RuntimeError: out of memory"):
        portconv.conv_weight_grad(dout, x, PROBLEM.w, algorithm="native", **OPTIONS)
    assert portconv.explain(x, w, **OPTIONS).algorithm == "native"
    with pytest.warns(RuntimeWarning, match=f"{words}; another algorithm computes"):
        out, cache = portconv.conv_forward(x, w, b, **OPTIONS)
    with pytest.warns(RuntimeWarning, match="RuntimeError: out of memory; another algorithm computes"):
        results = (out, *portconv.conv_backward(dout, cache))
    # Sums of small whole numbers are exact.
    for (name, truth), result in zip(PROBLEM.all(*operands).items(), results, strict=True):
        assert np.array_equal(target.numpy(result), truth), name


def test_halves_are_rounded_once_also_where_pytorch_rounds_its_sums(torch):
    # PyTorch 2.13 adds up input gradients of float16 in float16: 2048 + 1 is 2048 there, and 1 + 2048 + 1 is 2050.
    w = torch.tensor([[[1.0, 2048.0, 1.0]]], dtype=torch.float16)
    dout = torch.ones(1, 1, 3, dtype=torch.float16)
    grad = portconv.conv_input_grad(dout, w, (1, 1, 5), algorithm="native")
    assert grad.dtype == torch.float16
    assert grad.flatten().tolist() == [1.0, 2048.0, 2050.0, 2048.0, 1.0]  # 2049 is half way, and rounded to even


@pytest.mark.parametrize("algorithm", ["native", "auto"])
def test_bfloat16_keeps_subnormal_numbers_and_windows(torch, algorithm):
    # oneDNN's own code for bfloat16 takes 1e-39 for zero, and makes a nan of the first output.
    x, w = (torch.full(shape, value).bfloat16() for shape, value in (((2, 16, 8, 8), 1e-39), ((16, 16, 3, 3), 1e38)))
    assert portconv.conv(x, w, algorithm=algorithm)[0, 0, 0, 0].item() == pytest.approx(16 * 9 * 0.1, rel=2**-7)
    x = torch.ones(1, 1, 5).bfloat16()
    x[0, 0, 3] = float("inf")
    out = portconv.conv(x, torch.ones(1, 1, 2).bfloat16(), padding=1, dilation=3, algorithm=algorithm)
    assert out.flatten().tolist() == [1.0, float("inf"), 2.0, 1.0]


@pytest.mark.usefixtures("native")
def test_a_window_of_padding_alone_keeps_the_nan_of_its_gradient(target):
    # Its taps lie before and after the input; 0 times infinity is nan.
    dout, x = (target.array(np.full((1, 1, 1), value, "float32")) for value in (np.inf, 1.0))
    grad = portconv.conv_weight_grad(dout, x, (1, 1, 2), padding=1, dilation=2)
    assert np.isnan(target.numpy(grad)).all()


def test_pytorch_is_not_asked_for_windows_of_padding_alone(torch):
    # PyTorch 2.13 writes beyond its memory for this one.
    x, w = torch.ones(4, 1, 4, 4), torch.ones(2, 2, 3, 2)
    options = {"stride": (1, 2), "padding": (3, 9), "dilation": 2, "groups": 2, "data_format": "channels_last"}
    assert "windows of which each reads the input" in refusal(x, w, **options)
    assert portconv.explain(x, w, **options).algorithm != "native"


def test_without_onednn_another_algorithm_computes(torch):
    # PyTorch then calls NNPACK, whose transforms are off by as much as a large number elsewhere in the plane allows.
    x, w = torch.rand(16, 1, 14, 14), torch.rand(32, 1, 3, 3)
    x[:, :, 5, 5] = 1e6
    exact = portconv.conv(x.double(), w.double(), padding=1, algorithm="direct")
    torch._C._set_mkldnn_enabled(False)
    try:
        out = portconv.conv(x, w, padding=1, algorithm="native")
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert ((out - exact).abs() <= portconv.error_bound(x, w, padding=1, algorithm="native")).all()


class Recording(NativeConvolution):
    """Gradients of filters by `direct`, and how many samples each call had."""

    def __init__(self):
        self.samples = []

    def weight_grad(self, dout, x, convolution):
        self.samples.append(convolution.x_shape[0])
        return portconv.conv_weight_grad(dout, x, convolution.w_shape, algorithm="direct")


def test_gradients_of_filters_are_added_up_in_runs(monkeypatch):
    native = Recording()
    monkeypatch.setattr(backends.get("numpy"), "native_convolution", native)
    forget()
    x = np.arange(7 * 12_000.0, dtype="float32").reshape(7, 1, 12_000) % 3
    grad = portconv.conv_weight_grad(x, x, (1, 1, 1), algorithm="native")
    # Two samples have at most 2**15 positions, and their sums are whole numbers below 2**24.
    assert native.samples == [2, 2, 2, 1]
    assert grad.item() == np.sum(x.astype("float64") ** 2)
    x = (x / 16).astype("float16")
    narrow = portconv.conv_weight_grad(x, x, (1, 1, 1), algorithm="native")
    assert narrow.dtype == "float16"
    assert narrow.item() == np.float16(np.sum(x.astype("float64") ** 2))
    monkeypatch.undo()
    forget()


def test_a_long_sum_of_one_sample_is_left_to_others(torch):
    x = torch.full((1, 1, 1 << 20), 0.1)
    _, cache = portconv.conv_forward(x, torch.ones(1, 1, 1))
    dw = portconv.conv_backward(x, cache).dw.item()
    assert abs(dw / (2**20 * float(x[0, 0, 0]) ** 2) - 1) <= 1e-5


@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
def test_results_lie_as_their_operands_do(torch, order):
    last = order == "channels_last"
    x = torch.ones((2, 9, 8, 4) if last else (2, 4, 9, 8))
    out, cache = portconv.conv_forward(x, torch.ones(6, 4, 3, 3), padding=1, data_format=order, algorithm="native")
    assert out.is_contiguous()
    assert portconv.conv_backward(out, cache).dx.is_contiguous()


def test_a_call_without_gradients_is_no_node(torch):
    x, w = torch.ones(1, 2, 5), torch.ones(3, 2, 2)
    assert portconv.conv(x, w).grad_fn is None
    w.requires_grad_()
    assert type(portconv.conv(x, w).grad_fn).__name__ == "ConvBackward"
    with torch.no_grad():
        assert portconv.conv(x, w).grad_fn is None


def test_the_default_is_none():
    assert Backend.native_convolution is None
    with pytest.raises(NotImplementedError):
        NativeConvolution().forward(None, None, None, None)
