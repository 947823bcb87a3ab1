"""A convolution as a linear operator, for iterative solvers, and as a sparse matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from . import backends, forks
from .backends import Array
from .engine import call
from .errors import BackendError, ConvShapeError, ConvTypeError
from .passes.padding import extend
from .spec import arguments, checked_geometry
from .spec.checked_geometry import Names
from .spec.dtypes import HALVES
from .spec.geometry import Geometry
from .spec.layout import Shape, given_shape
from .spec.operation import Kind
from .spec.options import DataFormat, Ints, Options, Padding, PaddingMode, Precision
from .windows import unfold


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
    options: Options
    in_shape: Shape
    out_shape: Shape
    is_adjoint: bool = False

    @property
    def _shapes(self) -> tuple[Shape, Shape]:
        """What is made, and what it is made of."""
        shapes = self.out_shape, self.in_shape
        return shapes[::-1] if self.is_adjoint else shapes

    @property
    def shape(self) -> tuple[int, int]:
        made, given = self._shapes
        return prod(made), prod(given)

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
        made, given = self._shapes
        shape = tuple(columns.shape)
        if len(shape) not in (1, 2) or shape[0] != prod(given):
            raise ConvShapeError(f"{name}: got shape {shape}, expected {prod(given)} rows")
        count = shape[1] if len(shape) == 2 else 1
        vectors = xp.permute_dims(xp.reshape(columns, (prod(given), count)), (1, 0))
        # The columns are samples: of one convolution, however many there are.
        dims = len(self.w.shape) - 1
        arrays = xp.reshape(vectors, (count * prod(given[:-dims]), *given[-dims:]))
        if self.is_adjoint:
            shape_of_grad = "x_shape", (arrays.shape[0], *made[-dims:])
            result = call.gradient(Kind.INPUT_GRAD, arrays, ("w", self.w), shape_of_grad, self.options)
        else:
            result = call.convolve(arrays, self.w, None, self.options)
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
    return _checked(w, x_shape, options)[0]


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
    operator, geometry = _checked(w, x_shape, options)
    try:
        sparse: Any = forks.imported("scipy.sparse")
    except ImportError as error:
        raise BackendError("convolution_matrix: SciPy is missing, expected it: pip install scipy") from error
    if dtype.name in HALVES:
        raise ConvTypeError(f"w: got dtype {dtype.name}, expected one that SciPy's sparse matrices have, as float32")
    numpy, host = backends.get("numpy"), backend.to_numpy(w)
    # Each cell is its number, from 1: what the padding repeats, it has the number of, and zeros are 0.
    cells = extend(geometry, numpy, _numbered(numpy.xp, geometry.x_shape, geometry.channels_last) + 1)
    inner, lead = geometry.extended, (geometry.batch, geometry.groups)
    pads = tuple(zip(inner.before, inner.after, strict=True))
    read = unfold(cells, inner.kernel, stride=inner.stride, padding=pads, dilation=inner.dilation)
    read = read.reshape(*lead, 1, geometry.group_in * geometry.taps, geometry.positions)
    made = _numbered(numpy.xp, geometry.out_shape, geometry.channels_last)
    made = made.reshape(*lead, geometry.group_out, 1, geometry.positions)
    values = host.reshape(geometry.groups, geometry.group_out, -1, 1)
    columns, rows, entries = numpy.xp.broadcast_arrays(read, made, values)
    is_cell = columns > 0
    places = rows[is_cell], columns[is_cell] - 1
    return sparse.csr_array(sparse.coo_array((entries[is_cell], places), shape=operator.shape)).astype(host.dtype)


def _checked(w: Array, x_shape: Any, options: Options) -> tuple[LinearOperator, Geometry]:
    """Check shapes and options; return the operator, and the convolution of a batch with channels first."""
    shape = arguments.shape("x_shape", x_shape)
    geometry, unbatched = checked_geometry.convolution(shape, tuple(w.shape), options, Names("x_shape", "w"))
    out_shape = given_shape(geometry.out_shape, geometry.channels_last, unbatched)
    return LinearOperator(w, options, shape, out_shape), geometry


def _numbered(np: Any, shape: Shape, channels_last: bool) -> Any:
    """Return a canonical array (N, C, *cells) of the numbers that its elements have in the caller's layout."""
    numbers = np.arange(prod(shape)).reshape(given_shape(shape, channels_last, False))
    return np.moveaxis(numbers, -1, 1) if channels_last else numbers
