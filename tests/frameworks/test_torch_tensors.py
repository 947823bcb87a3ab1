"""PyTorch's tensors that are no block of numbers, and its autocast."""

from __future__ import annotations

import pytest

import portconv

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

NOT_DENSE = {
    "coo": (lambda x: x.to_sparse(), r"layout sparse_coo, expected a dense one, as \.to_dense\(\) returns"),
    "csr": (lambda x: x[0].to_sparse_csr(), r"layout sparse_csr, expected a dense one, as \.to_dense\(\) returns"),
    "mkldnn": (lambda x: x.to_mkldnn(), r"layout mkldnn, expected a dense one, as \.to_dense\(\) returns"),
    "nested": (
        lambda x: torch.nested.nested_tensor([x[0], x[1]]),
        "a nested tensor, .* as torch.nested.to_",
    ),
    "jagged": (
        lambda x: torch.nested.nested_tensor([x[0], x[1, :1]], layout=torch.jagged),
        "a nested tensor",
    ),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), r"as \.dequantize\(\) returns"),
    "masked": (lambda x: torch.masked.masked_tensor(x, x > 0), r"a MaskedTensor, expected a plain one"),
    "lazy": (lambda x: torch.nn.UninitializedParameter(), "an UninitializedParameter, expected a tensor with a shape"),
}


@pytest.mark.filterwarnings("ignore")  # PyTorch says that some of these are prototypes
@pytest.mark.parametrize("name", NOT_DENSE)
def test_a_tensor_that_is_not_dense_is_refused_by_name(name):
    make, said = NOT_DENSE[name]
    x, w = torch.ones(2, 3, 8), torch.ones(4, 3, 3)
    with pytest.raises(portconv.ConvTypeError, match=f"^x: got .*{said}"):
        portconv.conv(make(x), w)
    with pytest.raises(portconv.ConvTypeError, match=f"^w: got .*{said}"):
        portconv.conv_transpose(x, make(w))
    out, cache = portconv.conv_forward(x, w)
    with pytest.raises(portconv.ConvTypeError, match=f"^dout: got .*{said}"):
        portconv.conv_backward(make(out), cache)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [portconv.conv, portconv.conv_transpose])
def test_autocast_is_followed(function, dtype):
    x, w, b = torch.randn(2, 4, 9), torch.randn(4, 4, 3, requires_grad=True), torch.randn(4)
    with torch.autocast("cpu", dtype=dtype):
        out = function(x, w, b)
        exact = function(x.double(), w.double(), b.double())
        same = function(x, w, b, precision="reproducible")
    expected = function(x.to(dtype), w.detach().to(dtype), b.to(dtype))
    assert torch.equal(out, expected)
    assert (out.dtype, exact.dtype) == (dtype, torch.float64)
    assert torch.equal(same, function(x, w, b, precision="reproducible"))  # bits that do not depend on settings
    (grad,) = torch.autograd.grad(out.float().sum(), w)
    assert grad.dtype == torch.float32


def test_gradients_of_autocast_have_the_dtypes_of_the_arguments():
    x, w = torch.randn(2, 4, 9), torch.randn(5, 4, 3)
    with torch.autocast("cpu"):
        out, cache = portconv.conv_forward(x, w)
    dx, dw, _ = portconv.conv_backward(out, cache)
    assert (out.dtype, dx.dtype, dw.dtype) == (torch.bfloat16, torch.float32, torch.float32)
