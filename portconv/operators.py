"""A convolution as a linear operator, for iterative solvers, and as a sparse matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from . import backends, forks
from .backends import Array
from .convolution import conv, conv_input_grad
from .errors import BackendError, ConvShapeError, ConvTypeError
from .passes.padding import extend
from .spec import arguments, checked_geometry
from .spec.checked_geometry import Names
from .spec.dtypes import HALVES
from .spec.layout import given_shape
from .spec.options import DataFormat, Ints, Options, Padding, PaddingMode, Precision
from .windows import unfold

NAMES = Names("x_shape", "w")


@dataclass(frozen=True, eq=False)
class LinearOperator:
    """A convolution with fixed filters, as a matrix that multiplies flattened inputs; it is never written down.

    SciPy's and CuPy's solvers take it, such as `scipy.sparse.linalg.lsqr`, and PyLops does.

    Attributes
    ----------
    shape : (int, int)
        The elements of an output and of an input.
    dtype : dtype
        That of the filters.
    H : LinearOperator
        The adjoint: of real filters, the transpose.
    """

    w: Array
    options: dict[str, Any]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    is_adjoint: bool = False
    unbatched: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        shapes = prod(self.out_shape), prod(self.in_shape)
        return shapes[::-1] if self.is_adjoint else shapes

    @property
    def dtype(self) -> Any:
        return self.w.dtype

    @property
    def H(self) -> LinearOperator:
        return replace(self, is_adjoint=not self.is_adjoint)

    def matvec(self, vector: Array) -> Array:
        """Multiply a vector of shape (n,) or (n, 1), an input flattened in C order; the result has m elements."""
        return self._multiplied("vector", vector)

    def matmat(self, columns: Array) -> Array:
        """Multiply a matrix of shape (n, k), of which each column is a flattened input; the result is (m, k)."""
        return self._multiplied("columns", columns)

    def _multiplied(self, name: str, columns: Array) -> Array:
        """Multiply a vector or a matrix, which messages call `name`."""
        xp = arguments.arrays(**{"w": self.w, name: columns})[0].xp
        given, made = (self.in_shape, self.out_shape)[:: -1 if self.is_adjoint else 1]
        shape = tuple(columns.shape)
        if len(shape) not in (1, 2) or shape[0] != prod(given):
            raise ConvShapeError(f"{name}: got shape {shape}, expected {prod(given)} rows")
        count = shape[1] if len(shape) == 2 else 1
        vectors = xp.permute_dims(xp.reshape(columns, (prod(given), count)), (1, 0))
        # The columns are samples: of one convolution, however many there are.
        batch, sample = (count, given) if self.unbatched else (count * given[0], given[1:])
        arrays = xp.reshape(vectors, (batch, *sample))
        if self.is_adjoint:
            result = conv_input_grad(arrays, self.w, (batch, *made[-len(sample) :]), **self.options)
        else:
            result = conv(arrays, self.w, **self.options)
        result = xp.permute_dims(xp.reshape(result, (count, prod(made))), (1, 0))
        return result if len(shape) == 2 else xp.reshape(result, (prod(made),))

    def rmatvec(self, vector: Array) -> Array:
        """Multiply a vector by the adjoint."""
        return self.H.matvec(vector)

    def rmatmat(self, columns: Array) -> Array:
        """Multiply a matrix by the adjoint."""
        return self.H.matmat(columns)

    def __matmul__(self, other: Array) -> Array:
        return self._multiplied("the right-hand side", other)


def linear_operator(
    w: Array,
    x_shape: tuple[int, ...],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    data_format: DataFormat = "channels_first",
    precision: Precision = "standard",
    algorithm: str = "auto",
) -> LinearOperator:
    """Make a linear operator of a convolution: `conv` of flattened inputs, with its adjoint.

    Parameters
    ----------
    w : array, shape (F, C / groups, *kernel)
        The filters.
    x_shape : tuple of int
        The shape of an input: (N, C, *spatial) or (C, *spatial), with channels last in that order.
    stride, padding, dilation, groups, padding_mode, data_format, precision, algorithm
        As for `conv`; a constant padding is of zeros, or the operator would not be linear.

    Returns
    -------
    LinearOperator
        With `shape`, `dtype`, `matvec`, `rmatvec`, `matmat`, `rmatmat`, `H` and ``@``.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> blur = portconv.linear_operator(np.array([[[1.0, 2.0, 1.0]]]) / 4, (1, 8), padding="same")
    >>> blur.shape
    (8, 8)
    >>> blur @ np.array([0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 8.0])
    array([0., 1., 2., 1., 0., 0., 2., 4.])
    """
    arguments.arrays(w=w)
    options = Options(stride, padding, dilation, groups, padding_mode, data_format, precision, algorithm)
    shape = arguments.shape("x_shape", x_shape)
    geometry, unbatched = checked_geometry.convolution(shape, tuple(w.shape), options, NAMES)
    out_shape = given_shape(geometry.out_shape, geometry.channels_last, unbatched)
    keywords = {name: getattr(options, name) for name in KEYWORDS}
    return LinearOperator(w, keywords, shape, out_shape, unbatched=unbatched)


KEYWORDS = "stride", "padding", "dilation", "groups", "padding_mode", "data_format", "precision", "algorithm"


def convolution_matrix(
    w: Array,
    x_shape: tuple[int, ...],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    data_format: DataFormat = "channels_first",
) -> Any:
    """Write down the matrix of `linear_operator`, sparse, in SciPy's compressed rows: for small convolutions.

    Parameters
    ----------
    w : array, shape (F, C / groups, *kernel)
        The filters, which are copied to the host.
    x_shape : tuple of int
        The shape of an input, as for `linear_operator`.
    stride, padding, dilation, groups, padding_mode, data_format
        As for `linear_operator`.

    Returns
    -------
    scipy.sparse.csr_array, shape (elements of an output, elements of an input)
        Of the dtype of `w`.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError
        As for `conv`.
    BackendError
        If SciPy is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> portconv.convolution_matrix(np.array([[[1, -1]]]), (1, 4)).toarray()
    array([[ 1, -1,  0,  0],
           [ 0,  1, -1,  0],
           [ 0,  0,  1, -1]])
    """
    backend, dtype = arguments.arrays(w=w)
    options = Options(stride, padding, dilation, groups, padding_mode, data_format)
    shape = arguments.shape("x_shape", x_shape)
    geometry, _ = checked_geometry.convolution(shape, tuple(w.shape), options, NAMES)
    try:
        sparse: Any = forks.imported("scipy.sparse")
    except ImportError as error:
        raise BackendError("convolution_matrix: SciPy is missing, expected it: pip install scipy") from error
    if dtype.name in HALVES:
        raise ConvTypeError(f"w: got dtype {dtype.name}, expected one that SciPy's sparse matrices have, as float32")
    numpy, host = backends.get("numpy"), backend.to_numpy(w)
    np, one = numpy.xp, replace(geometry, batch=1)
    # Each cell is its number, from 1: what the padding repeats, it has the number of, and zeros are 0.
    cells = extend(one, numpy, _numbered(np, one.x_shape, geometry.channels_last) + 1)
    inner = one.extended
    pads = tuple(zip(inner.before, inner.after, strict=True))
    read = unfold(cells, inner.kernel, stride=inner.stride, padding=pads, dilation=inner.dilation)
    read = read.reshape(geometry.groups, 1, geometry.group_in * geometry.taps, geometry.positions)
    made = _numbered(np, one.out_shape, geometry.channels_last)
    made = made.reshape(geometry.groups, geometry.group_out, 1, geometry.positions)
    values = host.reshape(geometry.groups, geometry.group_out, -1, 1)
    columns, rows, entries = np.broadcast_arrays(read, made, values)
    is_cell = columns > 0
    places = rows[is_cell], columns[is_cell] - 1
    sizes = prod(one.out_shape), prod(one.x_shape)
    matrix = sparse.csr_array(sparse.coo_array((entries[is_cell], places), shape=sizes))
    if geometry.batch != 1:
        matrix = sparse.csr_array(sparse.kron(sparse.eye_array(geometry.batch, dtype=host.dtype), matrix))
    return matrix.astype(host.dtype)


def _numbered(np: Any, shape: tuple[int, ...], channels_last: bool) -> Any:
    """Return a canonical array (1, C, *cells) of the numbers that its elements have in the caller's layout."""
    numbers = np.arange(prod(shape)).reshape(given_shape(shape, channels_last, False))
    return np.moveaxis(numbers, -1, 1) if channels_last else numbers
