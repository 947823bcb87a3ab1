"""torch.compile and torch.export: a call is one operator of their graphs; and tensors that have a shape and no numbers.

What is compiled calls the same code, so it is compared to the bit. Gradients of calls that are compared to those of
PyTorch's own convolution are of small whole numbers, whose sums are exact.
"""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from support.differentiable import CALLS, shapes_of

import portconv

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch._dynamo.utils import counters  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

X, W, B = (2, 4, 7, 6), (6, 4, 3, 2), (6,)
DOUT = (2, 6, 5, 5)


def tensors(*shapes, seed=0, grad=False, dtype=torch.float32, device="cpu"):
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=made, dtype=dtype).to(device).requires_grad_(grad) for shape in shapes]


def both_ways(x, w, b, dout):
    _, cache = portconv.conv_forward(x, w, b, stride=[1, 1])
    return tuple(portconv.conv_backward(dout, cache))


def both_ways_transposed(x, w, dout):
    out, cache = portconv.conv_transpose_forward(x, w)
    return out, portconv.conv_transpose_backward(dout, cache).dw


def of_each_sample(x, w):
    loss = torch.func.grad(lambda w, x: (portconv.conv(x, w) ** 2).sum())
    return torch.func.vmap(loss, in_dims=(None, 0))(w, x)


def case(name):
    function, _, _, options = CALLS[name]
    return (lambda *arrays: torch.sin(function(*arrays, **options))), shapes_of(name)


FUNCTIONS = {
    **{name: case(name) for name in CALLS},
    "reproducible": (lambda x, w, b: portconv.conv(x, w, b, padding="same", precision="reproducible"), (X, W, B)),
    "conv_backward": (both_ways, (X, W, B, DOUT)),
    "conv_transpose_backward": (both_ways_transposed, (X, (4, 6, 3, 2), (2, 6, 9, 7))),
    "conv_input_grad": (lambda x, w, dout: portconv.conv_input_grad(dout, w, x.shape), (X, W, DOUT)),
    "conv_weight_grad": (lambda x, w, dout: portconv.conv_weight_grad(dout, x, w.shape), (X, W, DOUT)),
    "windows": (lambda x: portconv.fold(portconv.unfold(x, 3) * 2, x.shape[2:], 3), (X,)),
    "shapes": (lambda x, w: x * portconv.conv_output_shape(x.shape, w.shape)[2], (X, W)),
    "error_bound": (portconv.error_bound, (X, W, B)),
    "vmap of grad": (of_each_sample, (X, W)),
    "jvp": (lambda x, w: torch.func.jvp(lambda w: portconv.conv(x, w), (w,), (w,)), (X, W)),
}
"""Functions, and the shapes of their arguments."""


def run_with_gradients(function, shapes):
    """Return the results of a function, and the gradients of its arguments."""
    arguments = tensors(*shapes, grad=True)
    results = [array for array in torch.utils._pytree.tree_leaves(function(*arguments)) if array is not None]
    smooth = [array for array in results if array.requires_grad]
    grads = torch.autograd.grad([(array**2).sum() for array in smooth], arguments, allow_unused=True) if smooth else ()
    return [*results, *(grad for grad in grads if grad is not None)]


@pytest.fixture(autouse=True)
def _forgotten():
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dynamic", [None, True], ids=["numbers", "symbols"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_there_is_no_break_and_no_warning(name, dynamic):
    function, shapes = FUNCTIONS[name]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)
        found = run_with_gradients(compiled, shapes)
    assert [str(one.message) for one in said if one.category is not DeprecationWarning] == []
    assert (counters["stats"]["unique_graphs"], len(counters["graph_break"])) == (1, 0)
    expected = run_with_gradients(function, shapes)
    assert len(found) == len(expected)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_one_graph_serves_all_sizes():
    def function(x, w, b):
        return portconv.conv(torch.cos(x), w, b, stride=2, padding=1)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    w, b = tensors(W, B)
    for sizes in ((2, 7, 6), (3, 9, 12), (5, 30, 8), (4, 11, 90)):  # the first has numbers, and the second symbols
        (x,) = tensors((sizes[0], 4, *sizes[1:]))
        assert torch.equal(compiled(x, w, b), function(x, w, b))
    assert counters["stats"]["unique_graphs"] == 2


def test_a_first_call_may_be_compiled():
    code = """
import portconv, torch
x, w = torch.ones(1, 1, 5), torch.ones(1, 1, 3, requires_grad=True)
out = torch.compile(portconv.conv, backend="aot_eager", fullgraph=True)(x, w)
out.sum().backward()
print(out.tolist(), w.grad.tolist())
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[[[3.0, 3.0, 3.0]]] [[[3.0, 3.0, 3.0]]]\n", 0), done.stderr


def test_an_error_says_what_it_says_elsewhere():
    x, w = tensors(X, (6, 3, 3, 2))
    with pytest.raises(RuntimeError, match=r"w: got shape \(6, 3, 3, 2\), for 3 input channels"):
        torch.compile(portconv.conv, backend="eager")(x, w)


def test_a_module_with_gradients_and_autocast():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(6, 4, 3, 2))

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = portconv.conv(x, self.w)
            return out, portconv.conv(x, self.w)

    module = Module()
    lower, out = torch.compile(module, backend="aot_eager", fullgraph=True)(torch.ones(X))
    (lower.sum() + out.sum()).backward()
    assert (lower.dtype, out.dtype, module.w.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert torch.equal(module.w.grad, torch.full((6, 4, 3, 2), 2.0 * 2 * 5 * 5))


class Layers(torch.nn.Module):
    """A convolution and a transposed one, of whole numbers."""

    def __init__(self):
        super().__init__()
        w, v, b = ((4 * array).round() for array in tensors(W, (6, 3, 4, 4), B))
        self.w, self.v, self.b = (torch.nn.Parameter(array) for array in (w, v, b))

    def forward(self, x):
        out = portconv.conv(x, self.w, self.b, stride=2, padding=((1, 0), (0, 2)))
        return portconv.conv_transpose(torch.relu(out), self.v, self.b[:3], stride=2, padding=1)


@pytest.mark.filterwarnings("ignore")  # what PyTorch's exporter says of itself
@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_calls_and_their_gradients(strict, tmp_path):
    layers, (x,) = Layers(), tensors(X, grad=True)
    sizes = {"x": {0: torch.export.Dim("batch"), 2: torch.export.Dim("rows", min=4)}}
    program = torch.export.export(layers, (x,), dynamic_shapes=sizes, strict=strict)
    called = [str(node.target) for node in program.graph.nodes if "portconv" in str(node.target)]
    assert called == ["portconv.conv_forward.default", "portconv.conv_input_grad.default"]
    torch.export.save(program, tmp_path / "layers.pt2")
    module = torch.export.load(tmp_path / "layers.pt2").module()
    for shape in (X, (3, 4, 9, 6)):
        (x,) = tensors(shape, grad=True)
        mine, theirs = module(x), layers(x)
        assert torch.equal(mine, theirs)
        mine, theirs = (torch.autograd.grad((out**2).sum(), x)[0] for out in (mine, theirs))
        assert torch.equal(mine, theirs)


@pytest.mark.filterwarnings("ignore")  # what PyTorch's exporter says of itself
@pytest.mark.parametrize(("mode", "value"), [("zeros", 0), ("constant", 3), ("reflect", 0), ("symmetric", 0)])
def test_onnx_has_a_conv(mode, value, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    (w,) = ((4 * array).round() for array in tensors(W))

    class Module(Layers):
        def forward(self, x):
            x = super().forward(x)[:, :1]
            return portconv.conv(x, w[:, :1], padding=1, padding_mode=mode, padding_value=value)

    module, path = Module(), tmp_path / "layers.onnx"
    (x,) = ((4 * array).round() for array in tensors(X))
    torch.onnx.export(module, (x,), path, dynamo=True, verbose=False)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert (kinds.count("Conv"), kinds.count("ConvTranspose")) == (2, 1)
    session = runtime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_array_equal(found, module(x).detach().numpy())


@pytest.mark.parametrize("kind", ["conv_forward", "conv_input_grad", "unfold"])
def test_operators_keep_pytorchs_rules(kind):
    portconv.frameworks.torch_operators.register()
    first, second = tensors(X if kind != "conv_input_grad" else DOUT, W, grad=True, dtype=torch.float64)
    sizes = [2, 4, 6, 1, 7, 6, 3, 2, 1, 1, 1, 1, 0, 0, 0, 0]
    words = "float64, float64, standard, auto, out, zeros, 0, channels_first, batch"
    operands = [first] if kind == "unfold" else [first, second]
    torch.library.opcheck(getattr(torch.ops.portconv, kind), (operands, sizes, words))


@pytest.mark.parametrize("how", ["meta", "fake"])
def test_shapes_without_numbers(how):
    shape, w_shape = (100_000, 4, 1000, 1000), (6, 4, 3, 2)
    device = "meta" if how == "meta" else "cpu"
    with FakeTensorMode():
        x = torch.empty(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
        w = torch.empty(w_shape, device=device, requires_grad=True)
    if how == "meta":
        x, w = (torch.empty(shape, device=device, requires_grad=True) for shape in (shape, w_shape))
    out = portconv.conv(x, w, stride=2, precision="reproducible")
    assert (out.shape, out.dtype, out.device.type) == ((100_000, 6, 499, 500), torch.float32, device)
    dx, dw = torch.autograd.grad(out.sum(), (x, w))
    assert (dx.shape, dx.dtype, dw.shape, dw.device.type) == (shape, x.dtype, w_shape, device)
    _, cache = portconv.conv_forward(x, w)
    assert [grad.shape for grad in portconv.conv_backward(torch.empty_like(portconv.conv(x, w)), cache)[:2]] == [
        shape,
        w_shape,
    ]
    with pytest.raises(portconv.ConvShapeError, match="w: got shape"):
        portconv.conv(x, w[:, :3])


def test_signals_and_masks_are_compiled_and_differentiated():
    x, w, where = torch.arange(40.0).reshape(1, 1, 40), torch.tensor([[[1.0, 2.0, 3.0]]]), torch.arange(40) % 3 > 0

    def of_layer(x):
        return portconv.conv(x, w, padding=1, where=where)

    def of_signal(x):
        return portconv.signal.correlate(x[0, 0], w[0, 0], "same", where=where)

    # The sum of a correlation adds up the taps that read each cell.
    taps = torch.tensor([3.0, *[6.0] * 38, 5.0]) * where
    for call in (of_layer, of_signal):
        given = x.clone().requires_grad_()
        out = torch.compile(call, backend="eager", fullgraph=True)(given)
        assert torch.equal(out, call(x))
        out.sum().backward()
        assert torch.equal(given.grad.flatten(), taps)
