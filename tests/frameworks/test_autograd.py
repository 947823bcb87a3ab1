"""PyTorch's autograd and torch.func: a call is one node, whose gradients are portconv's own, as often as one likes.

Of float64: analytic derivatives are compared to differences by `torch.autograd.gradcheck`, whose tolerances are for the
error of a difference with steps of 1e-6: cells here are bilinear in each argument, so that a central difference has no
error but that of rounding, 2**-53 * 1e6 of sums of some hundred terms of magnitude 1, which is 1e-8.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.differentiable import CALLS, WAYS, counted, shapes_of

import portconv

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

# What PyTorch says of itself, when it first differentiates in forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(params=CALLS)
def call(request):
    function, _, _, options = CALLS[request.param]
    return lambda *arrays: function(*arrays, **options), shapes_of(request.param)


def tensors(shapes, seed=0, lead=(), dtype=torch.float64, grad=True):
    made = torch.Generator().manual_seed(seed)
    return [torch.randn((*lead, *shape), generator=made, dtype=dtype).requires_grad_(grad) for shape in shapes]


def test_a_call_is_one_node(call):
    function, shapes = call
    operands = tensors(shapes)
    out = function(*operands)
    above = [node for node, _ in out.grad_fn.next_functions if node is not None]
    assert type(out.grad_fn).__name__ in ("ConvBackward", "ConvInputGradBackward")
    assert [type(node).__name__ for node in above] == ["AccumulateGrad"] * 3


def test_gradients_are_those_of_conv_backward_to_the_bit():
    for precision in ("standard", "reproducible"):
        x, w, b = tensors(((2, 4, 9, 8), (6, 4, 3, 3), (6,)), dtype=torch.float32)
        dout = torch.randn(2, 6, 7, 6)
        out = portconv.conv(x, w, b, precision=precision)
        found = torch.autograd.grad(out, (x, w, b), dout)
        with torch.no_grad():
            plain, cache = portconv.conv_forward(x, w, b, precision=precision)
            expected = portconv.conv_backward(dout, cache)
        assert plain.grad_fn is None
        assert torch.equal(plain, out)
        for mine, theirs in zip(found, expected, strict=True):
            assert torch.equal(mine, theirs)


def test_reproducible_gradients_have_the_bits_of_numpy():
    x, w = tensors(((2, 3, 9, 8), (6, 3, 3, 3)), dtype=torch.float32)
    dout = torch.randn(2, 6, 7, 6)
    out = portconv.conv(x, w, precision="reproducible")
    found = torch.autograd.grad(out, (x, w), dout)
    plain, cache = portconv.conv_forward(x.detach().numpy(), w.detach().numpy(), precision="reproducible")
    dx, dw, _ = portconv.conv_backward(dout.numpy(), cache)
    assert out.detach().numpy().tobytes() == plain.tobytes()
    assert [grad.numpy().tobytes() for grad in found] == [np.ascontiguousarray(grad).tobytes() for grad in (dx, dw)]


def test_gradients_of_first_and_second_order_in_both_modes(call):
    function, shapes = call
    operands = tensors(shapes)
    assert torch.autograd.gradcheck(function, operands, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, operands, fast_mode=True, check_fwd_over_rev=True)


def test_complex_gradients():
    operands = tensors(((1, 2, 5), (3, 2, 2), (3,)), dtype=torch.complex128)
    assert torch.autograd.gradcheck(portconv.conv, operands, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(portconv.conv, operands, fast_mode=True)


def test_a_real_operand_beside_a_complex_one_has_a_real_gradient():
    (x,), (w,) = tensors(((1, 2, 5),)), tensors(((3, 2, 2),), dtype=torch.complex128)
    assert torch.autograd.gradcheck(portconv.conv, (x, w))
    dx, _ = torch.autograd.grad(portconv.conv(x, w).abs().sum(), (x, w))
    assert dx.dtype == torch.float64


def test_windows_have_gradients():
    (x,) = tensors(((2, 3, 6),))
    assert torch.autograd.gradcheck(lambda x: portconv.unfold(x, 3, stride=2), (x,), check_forward_ad=True)
    columns = portconv.unfold(x, 3, stride=2).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: portconv.fold(c, (6,), 3, stride=2), (columns,), check_forward_ad=True)


def test_only_gradients_that_are_asked_for_are_computed(monkeypatch):
    seen = counted(monkeypatch)
    x, w, b = tensors(((2, 4, 5), (6, 4, 3), (6,)))
    portconv.conv(x, w.detach(), b.detach()).sum().backward()
    assert seen == ["forward", "input_grad"]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("mapped", WAYS)
def test_vmap_is_a_loop_to_the_bit_where_that_is_reproducible(name, mapped):
    function, _, _, options = CALLS[name]
    batches = tensors(shapes_of(name), lead=(3,), dtype=torch.float32, grad=False)
    arrays = [batch if dim == 0 else batch[0] for batch, dim in zip(batches, mapped, strict=True)]

    def reproducible(*own):
        return function(*own, precision="reproducible", **options)

    each = [
        reproducible(*(array[i] if dim == 0 else array for array, dim in zip(arrays, mapped, strict=True)))
        for i in range(3)
    ]
    assert torch.equal(torch.func.vmap(reproducible, in_dims=mapped)(*arrays), torch.stack(each))


def test_gradients_of_each_sample(call):
    function, shapes = call
    x, w, b = tensors(shapes, lead=(3,), grad=False)

    def loss(x, w, b):
        return (function(x, w, b) ** 2).sum()

    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)), in_dims=(0, None, None))(x, w[0], b[0])
    for i in range(3):
        own = torch.func.grad(loss, argnums=(0, 1, 2))(x[i], w[0], b[0])
        for mine, theirs in zip((grad[i] for grad in found), own, strict=True):
            # Sums of at most 200 terms of magnitudes up to some hundred, added up in another order.
            torch.testing.assert_close(mine, theirs, rtol=200 * 2**-52, atol=200 * 2**-52 * 100)


def test_bounds_of_many_calls_are_those_of_each():
    x, w = tensors(((3, 2, 4, 7), (6, 4, 3)), dtype=torch.float32)
    found = torch.func.vmap(portconv.error_bound, in_dims=(0, None))(x, w)
    assert torch.equal(found, torch.stack([portconv.error_bound(x[i], w) for i in range(3)]))


def test_bounds_have_no_gradient():
    x, w = tensors(((2, 4, 7), (6, 4, 3)), dtype=torch.float32)
    assert portconv.error_bound(x, w).requires_grad is False


@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0)])
def test_vmap_over_nothing_gives_nothing_and_gradients_of_zero(mapped):
    shapes = ((0,) if axis == 0 else () for axis in mapped)
    x, w = (
        torch.ones(lead + shape, requires_grad=True) for lead, shape in zip(shapes, [(2, 1, 5), (4, 1, 3)], strict=True)
    )
    out = torch.vmap(portconv.conv, in_dims=mapped)(x, w)
    assert out.shape == (0, 2, 4, 3)
    out.sum().backward()
    for array in (x, w):
        assert array.grad.shape == array.shape
        assert not array.grad.any()
    assert torch.vmap(portconv.error_bound, in_dims=mapped)(x, w).shape == (0, 2, 4, 3)
