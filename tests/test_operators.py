"""A convolution as a linear operator: its columns are convolutions of unit vectors, its rows those of the adjoint."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import portconv
from portconv import BackendError, ConvShapeError, ConvTypeError, ConvValueError

CASES = {
    "a line": ((1, 2, 6), (3, 2, 3), {"padding": 1}),
    "one sample": ((2, 5, 4), (4, 1, 2, 3), {"groups": 2, "stride": (2, 1), "padding": ((0, 1), (2, 0))}),
    "channels last": ((2, 4, 3, 2), (3, 2, 2, 2), {"data_format": "channels_last", "padding": "same"}),
    "a circle": ((1, 1, 7), (1, 1, 4), {"padding": "same", "padding_mode": "circular", "dilation": 2}),
    "mirrored": ((2, 1, 4, 5), (2, 1, 3, 3), {"padding": 3, "padding_mode": "symmetric"}),
}
every_case = pytest.mark.parametrize(("x_shape", "w_shape", "options"), CASES.values(), ids=CASES)


def filters(shape, dtype="float64"):
    rng = np.random.default_rng(len(shape))
    values = rng.integers(-9, 10, shape)
    return (values + 1j * rng.integers(-9, 10, shape) if "complex" in dtype else values).astype(dtype)


def matrix_of(w, x_shape, options):
    """Write down the matrix, a column for each element of an input; each convolution is computed by loops."""
    units = np.eye(int(np.prod(x_shape)), dtype=w.dtype)
    outs = [portconv.conv(unit.reshape(x_shape), w, **options, algorithm="direct") for unit in units]
    return np.stack([out.ravel() for out in outs], axis=1)


@every_case
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_products_are_those_of_the_matrix(target, x_shape, w_shape, options, dtype):
    w = filters(w_shape, dtype)
    matrix = matrix_of(w, x_shape, options)
    operator = portconv.linear_operator(target.array(w), x_shape, **options)
    assert operator.shape == matrix.shape
    assert operator.H.shape == matrix.shape[::-1]
    assert operator.dtype == target.array(w).dtype
    rng = np.random.default_rng(1)
    v, u = (rng.integers(-9, 10, (size, 3)).astype(dtype) for size in matrix.shape[::-1])
    of_columns, of_rows = operator.matmat(target.array(v)), operator.rmatmat(target.array(u))
    assert target.owns(of_columns)
    assert np.array_equal(target.numpy(of_columns), matrix @ v)
    assert np.array_equal(target.numpy(of_rows), matrix.conj().T @ u)
    assert np.array_equal(target.numpy(operator @ target.array(v[:, 0])), matrix @ v[:, 0])
    assert np.array_equal(target.numpy(operator.rmatvec(target.array(u[:, :1]))), matrix.conj().T @ u[:, :1])


@every_case
def test_the_sparse_matrix_is_the_same(x_shape, w_shape, options):
    pytest.importorskip("scipy", reason="SciPy is not installed")
    for dtype in ("float64", "complex128", "int16"):
        w = filters(w_shape, dtype)
        found = portconv.convolution_matrix(w, x_shape, **options)
        assert found.format == "csr"
        assert found.dtype == dtype
        assert np.array_equal(found.toarray(), matrix_of(w, x_shape, options))


@pytest.mark.skipif(importlib.util.find_spec("scipy") is not None, reason="SciPy is installed")
def test_without_scipy_a_sparse_matrix_says_what_to_install():
    with pytest.raises(BackendError, match="SciPy is missing, expected it: pip install scipy"):
        portconv.convolution_matrix(np.ones((1, 1, 3)), (1, 5))


def test_bad_arguments_are_named():
    with pytest.raises(ConvShapeError, match=r"w: got a kernel of 3"):
        portconv.linear_operator(np.ones((1, 1, 3)), (1, 2))
    with pytest.raises(ConvValueError, match="stride: got 0"):
        portconv.convolution_matrix(np.ones((1, 1, 3)), (1, 5), stride=0)
    operator = portconv.linear_operator(np.ones((1, 1, 3)), (1, 5))
    with pytest.raises(ConvShapeError, match=r"vector: got shape \(4,\), expected 5 rows"):
        operator.matvec(np.ones(4))


def test_no_columns_and_no_samples_have_products_too():
    operator = portconv.linear_operator(np.ones((4, 3, 3)), (3, 8))
    assert operator.matmat(np.ones((24, 0))).shape == (24, 0)
    assert (portconv.linear_operator(np.ones((1, 1, 3)), (0, 1, 8)) @ np.ones(0)).shape == (0,)
    with pytest.raises(ConvTypeError, match="the right-hand side: got list"):
        operator @ [1.0]
    pytest.importorskip("scipy", reason="SciPy is not installed")
    assert portconv.convolution_matrix(np.ones((1, 1, 1), "i4"), (2, 1, 1), stride=2, padding=1).dtype == "int32"
    with pytest.raises(ConvTypeError, match="w: got dtype float16"):
        portconv.convolution_matrix(np.ones((1, 1, 1), "f2"), (1, 1))


def test_scipys_solvers_take_it():
    """A circle blurred by weights that add up to 1, the middle one more than the others: it has an inverse."""
    linalg = pytest.importorskip("scipy.sparse.linalg", reason="SciPy is not installed")
    w = np.array([[[0.2, 0.6, 0.2]]])
    blur = portconv.linear_operator(w, (1, 16), padding="same", padding_mode="circular")
    truth = np.random.default_rng(2).standard_normal(16)
    given = blur @ truth
    # The condition number is 1 / (0.6 - 0.4) = 5, so a residual of 1e-12 leaves an error of at most 5e-12 of the norm.
    for solve, options in ((linalg.lsqr, {"atol": 1e-13, "btol": 1e-13}), (linalg.cg, {"rtol": 1e-12})):
        found = solve(blur, given, **options)[0]
        assert np.linalg.norm(found - truth) <= 1e-11 * np.linalg.norm(truth)
    # Of a circulant matrix the singular values are the magnitudes of the kernel's Fourier transform.
    largest = np.sort(np.abs(0.6 + 0.4 * np.cos(2 * np.pi * np.arange(16) / 16)))[-3:]
    values = np.sort(linalg.svds(linalg.aslinearoperator(blur), k=3, return_singular_vectors=False))
    assert np.allclose(values, largest, rtol=1e-10)


def test_pylops_takes_it():
    pylops = pytest.importorskip("pylops", reason="PyLops is not installed")
    scipy_linalg = pytest.importorskip("scipy.sparse.linalg", reason="SciPy is not installed")
    w = filters((2, 1, 3))
    own = portconv.linear_operator(w, (1, 9), padding=1)
    operator = pylops.LinearOperator(scipy_linalg.aslinearoperator(own))
    assert pylops.utils.dottest(operator, *operator.shape, rtol=1e-12)
    chain = operator.H * operator
    v = np.arange(9.0)
    assert np.array_equal(chain @ v, own.H @ (own @ v))
