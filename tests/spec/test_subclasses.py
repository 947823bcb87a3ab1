"""Subclasses of a library's array: those that mean more than numbers are refused, the others are numbers."""

from __future__ import annotations

import numpy as np
import pytest
from support.oracle import Problem

import portconv
from portconv import ConvTypeError

X, W, B = np.arange(10.0).reshape(1, 2, 5), np.arange(12.0).reshape(2, 2, 3), np.ones(2)
OUT = Problem(X.shape, W.shape, (1,), ((0, 0),), (1,)).forward(X, W)
"""Whole numbers, whose sums are exact."""
PLAIN = "numpy.asarray(array) is its numbers alone"


class Units(np.ndarray):
    """An array whose functions know units, as those of astropy and unyt do."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return NotImplemented


class Functions(np.ndarray):
    def __array_function__(self, function, types, arguments, options):
        return NotImplemented


class Operators(np.ndarray):
    def __mul__(self, other):
        return NotImplemented


class Masked(np.ma.MaskedArray):
    """A masked array of somebody else's module."""


class Named(np.ndarray):
    """An array that has a name, and whose arithmetic is NumPy's."""


def refusals(array):
    """Messages of every function that takes an array, each with `array` in one place."""
    out, cache = portconv.conv_forward(X, W, B)
    calls = {
        "x": lambda: portconv.conv(array(X), W),
        "w": lambda: portconv.conv(X, array(W)),
        "b": lambda: portconv.conv(X, W, array(B)),
        "dout": lambda: portconv.conv_backward(array(out), cache),
        "columns": lambda: portconv.fold(array(np.ones((1, 6, 3))), (5,), 3),
    }
    for name, call in calls.items():
        with pytest.raises(ConvTypeError) as caught:
            call()
        yield name, str(caught.value)


@pytest.mark.parametrize("subclass", [Units, Functions, Operators])
def test_a_meaning_of_its_own_is_refused_in_words(subclass):
    for name, message in refusals(lambda array: array.view(subclass)):
        assert message == (
            f"{name}: got {subclass.__name__}, which gives arithmetic a meaning of its own, "
            f"expected a plain array: {PLAIN}"
        )
    assert type(np.asarray(X.view(subclass))) is np.ndarray


@pytest.mark.parametrize("subclass", [np.ma.MaskedArray, Masked])
def test_a_masked_array_is_refused_in_words(subclass):
    for name, message in refusals(subclass):
        assert message == (
            f"{name}: got a masked array, expected a plain one: array.filled(0) puts a number where the mask is"
        )


def test_a_matrix_is_refused_as_its_products_are_matrix_products():
    with pytest.raises(ConvTypeError, match="x: got matrix, which gives arithmetic a meaning of its own"):
        portconv.conv(X[0].view(np.matrix), W)


def test_units_of_astropy_and_unyt_are_refused():
    units = pytest.importorskip("astropy.units", reason="astropy is not installed")
    unyt = pytest.importorskip("unyt", reason="unyt is not installed")
    for x, w in ((X * units.Jy, W * units.s), (unyt.unyt_array(X, "Jy"), unyt.unyt_array(W, "s"))):
        with pytest.raises(ConvTypeError, match=f"x: got {type(x).__name__}, which gives arithmetic a meaning of its"):
            portconv.conv(x, w)
        assert np.array_equal(portconv.conv(np.asarray(x), np.asarray(w)), OUT)


@pytest.mark.parametrize("algorithm", ["auto", *portconv.algorithms()])
def test_other_subclasses_are_their_numbers(tmp_path, algorithm):
    groups = 2 if algorithm == "depthwise" else 1
    w = W[:, : 2 // groups]
    mapped = np.memmap(tmp_path / "x", dtype="float64", mode="w+", shape=X.shape)
    mapped[...] = X
    try:
        plain, cache = portconv.conv_forward(X, w, B, groups=groups, algorithm=algorithm)
    except portconv.ConvValueError as error:
        pytest.skip(str(error))
    expected = (plain, *portconv.conv_backward(plain, cache))
    for x in (mapped, X.view(Named), X.view(np.recarray)):
        out, cache = portconv.conv_forward(x, w.view(Named), B.view(Named), groups=groups, algorithm=algorithm)
        found = (out, *portconv.conv_backward(out.view(Named), cache))
        for mine, theirs in zip(found, expected, strict=True):
            assert type(mine) is np.ndarray
            assert np.array_equal(mine, theirs)


def test_subclasses_of_pytorch_s_tensor():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), options=None):
            return super().__torch_function__(function, types, arguments, options or {})

    class Trivial(torch.Tensor):
        pass

    x, w = torch.from_numpy(X), torch.from_numpy(W)
    with pytest.raises(ConvTypeError) as caught:
        portconv.conv(x, w.as_subclass(Own))
    assert str(caught.value) == (
        "w: got Own, which gives arithmetic a meaning of its own, expected a plain tensor: "
        "array.as_subclass(torch.Tensor) is its numbers alone"
    )
    for kernel in (torch.nn.Parameter(w), w.as_subclass(Trivial), w.as_subclass(Own).as_subclass(torch.Tensor)):
        assert np.array_equal(portconv.conv(x, kernel).detach().numpy(), OUT)
