"""Convolutions of signals, pictures and volumes, without batch and channels: those of SciPy's `signal` and `ndimage`.

Each is a convolution of a layer with one channel, on the library and device of the arrays: `spec.signals` says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from . import backends
from .backends import Array, ArrayT
from .engine import call, masked
from .engine.execution import opaque
from .engine.separable import bound_of_steps, checked_steps, stepped
from .engine.signals import Wanted, computed
from .error_bound import bounded
from .errors import ConvTypeError, ConvValueError
from .spec import arguments, signals
from .spec.dtypes import KINDS, real
from .spec.options import Ints, PaddingMode, Precision
from .spec.signals import Mode

MOST_RADIUS = 1 << 24
"""A Gaussian that is wider than so many cells is refused, unless a radius ends it."""

__all__ = ["convolve", "convolve_separable", "correlate", "error_bound", "gaussian_filter"]


@opaque
def convolve(
    x: ArrayT,
    kernel: ArrayT,
    mode: Mode = "full",
    *,
    axes: Ints | None = None,
    boundary: PaddingMode = "zeros",
    padding_value: complex = 0,
    where: Array | None = None,
    normalize: bool = False,
    precision: Precision = "standard",
    algorithm: str = "auto",
) -> ArrayT:
    """Convolve two signals, pictures or volumes: the kernel is flipped, as in mathematics.

    In one dimension ``out[n] = sum over k of x[n - k] * kernel[k]``, and so over all axes or over some of them.

    Parameters
    ----------
    x : array
        The signal, of any number of dimensions and of the dtypes of `conv`. Integers beside floating-point numbers, and
        bools beside other numbers, become what the library promotes both to.
    kernel : array
        As many dimensions as `x`, or one for each of `axes`, in the order that these have in `x`. Along axes that are
        not convolved both are broadcast.
    mode : {"full", "same", "valid"}
        ``"full"``: wherever the two overlap. ``"same"``: the middle of that, with the shape of `x`. ``"valid"``:
        where one of them lies inside of the other.
    axes : int or sequence of int, optional
        What to convolve over; the other axes are a batch. All axes, unless given.
    boundary : {"zeros", "constant", "reflect", "symmetric", "replicate", "circular"}
        What lies beyond `x`: see `padding_mode` of `conv`. Of no meaning in the mode "valid".
    padding_value : number
        What lies there with ``boundary="constant"``.
    where : array of bool, optional
        Which cells of `x` count, of its shape or one that broadcasts to it. The others are as absent, also if they
        are nan.
    normalize : bool
        Whether to divide each sum by the kernel's weight on the cells that count: see `conv`. With
        ``where=~isnan(x)`` it fills gaps as astropy's ``nan_treatment="interpolate"`` does.
    precision, algorithm
        As for `conv`.

    Returns
    -------
    array
        Of the arguments' library, device and common dtype.

    Raises
    ------
    ConvShapeError
        A kernel that does not go with `x`, or has no cell.
    ConvValueError, ConvTypeError, BackendError
        As for `conv`; also for axes that are none of `x`, or named twice.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv import signal
    >>> signal.convolve(np.array([1, 2, 3]), np.array([0, 1, 5]), "same")
    array([ 1,  7, 13])
    >>> picture = np.ones((3, 480, 640))
    >>> signal.convolve(picture, np.ones((5, 5)) / 25, "same", axes=(1, 2), boundary="symmetric").shape
    (3, 480, 640)
    """
    wanted = Wanted(mode, axes, boundary, padding_value, precision, algorithm)
    out: ArrayT = masked.convolved(partial(computed, call.convolve, kernel, wanted), x, where, normalize)
    return out


@opaque
def correlate(
    x: ArrayT,
    kernel: ArrayT,
    mode: Mode = "full",
    *,
    axes: Ints | None = None,
    boundary: PaddingMode = "zeros",
    padding_value: complex = 0,
    where: Array | None = None,
    normalize: bool = False,
    precision: Precision = "standard",
    algorithm: str = "auto",
) -> ArrayT:
    """Correlate two signals: `convolve` with the conjugate of the kernel, flipped.

    In one dimension ``out[n] = sum over k of x[n + k - (len(kernel) - 1)] * conj(kernel[k])`` in the mode "full".

    Parameters
    ----------
    x, kernel, mode, axes, boundary, padding_value, where, normalize, precision, algorithm
        As for `convolve`.

    Returns
    -------
    array
        As from `convolve`.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As for `convolve`.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv import signal
    >>> signal.correlate(np.array([1, 2, 3]), np.array([0, 1, 5]), "same")
    array([11, 17,  3])
    """
    wanted = Wanted(mode, axes, boundary, padding_value, precision, algorithm, flips=False)
    out: ArrayT = masked.convolved(partial(computed, call.convolve, kernel, wanted), x, where, normalize)
    return out


@opaque
def error_bound(
    x: ArrayT,
    kernel: ArrayT | Sequence[ArrayT],
    mode: Mode = "full",
    *,
    axes: Ints | None = None,
    boundary: PaddingMode = "zeros",
    padding_value: complex = 0,
    where: Array | None = None,
    normalize: bool = False,
    precision: Precision = "standard",
    algorithm: str = "auto",
) -> ArrayT:
    """Bound the error of each element that `convolve` returns for the same arguments.

    It is `portconv.error_bound` of the layer that computes it. `correlate` has that of the flipped kernel. Of several
    kernels, for `convolve_separable`, each step adds its own, and multiplies that of the steps before by the magnitudes
    of its kernel.

    Parameters
    ----------
    x : array
        As for `convolve`.
    kernel : array or sequence of array
        As for `convolve`; or the kernels of `convolve_separable`, without `where` and `normalize`.
    mode, axes, boundary, padding_value, where, normalize, precision, algorithm
        As for `convolve`.

    Returns
    -------
    array, shape of the result
        As from `portconv.error_bound`.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As for `convolve`.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv import signal
    >>> x, kernel = np.full(5, 0.1), np.full(3, 0.1)
    >>> bool(np.all(signal.error_bound(x, kernel) < 4 * 0.03 * 2.0**-53))
    True
    """
    wanted = Wanted(mode, axes, boundary, padding_value, precision, algorithm)
    if isinstance(kernel, (tuple, list)):
        if where is not None or normalize is not False:
            raise ConvValueError("where, normalize: got one beside several kernels, expected neither")
        both: ArrayT = bound_of_steps(bounded, x, checked_steps(x, kernel, axes, "kernel"), wanted)
        return both
    compute, bound = (partial(computed, layer, kernel, wanted) for layer in (call.convolve, bounded))
    error: ArrayT = masked.bound(compute, bound, x, where, normalize)
    return error


@opaque
def convolve_separable(
    x: ArrayT,
    kernels: Sequence[ArrayT],
    mode: Mode = "same",
    *,
    axes: Ints | None = None,
    boundary: PaddingMode = "zeros",
    padding_value: complex = 0,
    precision: Precision = "standard",
    algorithm: str = "auto",
) -> ArrayT:
    """Convolve along one axis after the other, each with a kernel of its own.

    Where a kernel is the outer product of `kernels`, the result is that of `convolve`, by fewer operations.

    Parameters
    ----------
    x : array
        The signal.
    kernels : sequence of array, shape (taps,)
        One for each of `axes`.
    mode, axes, boundary, padding_value, precision, algorithm
        As for `convolve`.

    Returns
    -------
    array
        As from `convolve`.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As for `convolve`.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv import signal
    >>> signal.convolve_separable(np.eye(3), [np.array([1.0, 2.0, 1.0]), np.array([1.0, 1.0, 1.0])])
    array([[3., 3., 1.],
           [3., 4., 3.],
           [1., 3., 3.]])
    """
    steps = checked_steps(x, kernels, axes, "kernels")
    return stepped(x, steps, Wanted(mode, None, boundary, padding_value, precision, algorithm))


@opaque
def gaussian_filter(
    x: ArrayT,
    sigma: float | Sequence[float],
    *,
    order: Ints = 0,
    axes: Ints | None = None,
    boundary: PaddingMode = "symmetric",
    padding_value: complex = 0,
    truncate: float = 4.0,
    radius: Ints | None = None,
    precision: Precision = "standard",
    algorithm: str = "auto",
) -> ArrayT:
    """Smooth with a Gaussian, or a derivative of one, along one axis after the other.

    The weights are those of `scipy.ndimage.gaussian_filter`: the Gaussian at whole numbers, divided by the sum of them,
    times the polynomial that its derivative has.

    Parameters
    ----------
    x : array
        Floating point or complex; integers become floating-point numbers.
    sigma : float or sequence of float
        The standard deviation in cells, along all axes or along each of `axes`; where it is 0 nothing is done.
    order : int or sequence of int
        Of the derivative; 0 is the Gaussian itself.
    axes : int or sequence of int, optional
        What to filter along; all axes, unless given.
    boundary : {"symmetric", "zeros", "constant", "reflect", "replicate", "circular"}
        What lies beyond `x`: see `padding_mode` of `conv`. SciPy calls "symmetric" its "reflect".
    padding_value : number
        What lies there with ``boundary="constant"``.
    truncate : float
        Where the weights end, in standard deviations.
    radius : int or sequence of int, optional
        Where they end in cells, instead.
    precision, algorithm
        As for `conv`.

    Returns
    -------
    array, shape of `x`

    Raises
    ------
    ConvValueError
        A `sigma` or `truncate` that is negative, or not finite, and as for `convolve`.
    ConvShapeError, ConvTypeError, BackendError
        As for `convolve`.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv import signal
    >>> signal.gaussian_filter(np.array([0.0, 0.0, 1.0, 0.0, 0.0]), 1.0, radius=1).round(4)
    array([0.    , 0.2741, 0.4519, 0.2741, 0.    ])
    """
    backend = arguments.owner("x", x, {"x": x})
    places = signals.axes_of(tuple(x.shape), axes, in_order=False)
    count = len(places)
    given: Any = sigma if hasattr(sigma, "__len__") and not isinstance(sigma, str) else (sigma,) * count
    if len(given) != count:
        raise ConvValueError(f"sigma: got {len(given)} entries, expected {count}, one for each axis")
    sigmas = [_number(f"sigma[{i}]" if given is sigma else "sigma", each) for i, each in enumerate(given)]
    orders = arguments.per_dimension("order", order, count, 0)
    ends = [_number("truncate", truncate) * each + 0.5 for each in sigmas]
    if radius is None and max(ends, default=0) > MOST_RADIUS:
        raise ConvValueError(f"sigma: got {sigma!r}, expected weights that end within {MOST_RADIUS} cells, or a radius")
    radii = map(int, ends) if radius is None else arguments.per_dimension("radius", radius, count, 0)
    name = real(backend.dtype_name(x.dtype))
    if KINDS.get(name) != "real floating":
        name = "float64" if backend.holds("float64", x) else "float32"

    def kernel_of(weights: Any) -> Array:
        return backend.asarray(weights, backend.dtype(name), backend.device_of(x))

    sides = zip(places, sigmas, orders, radii, strict=True)
    steps: list[tuple[Any, Array]] = [
        (axis, kernel_of(_gaussian(width, derivative, end))) for axis, width, derivative, end in sides if width > 0
    ]
    if not steps:  # one tap copies, promotes and checks as any others do
        steps = [(None, kernel_of(_gaussian(1.0, 0, 0).reshape((1,) * len(x.shape))))]
    return stepped(x, steps, Wanted("same", None, boundary, padding_value, precision, algorithm))


def _number(name: str, value: Any) -> float:
    """Check that a value is a finite number of at least 0."""
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise ConvTypeError(f"{name}: got {value!r}, expected a number")
    if not 0 <= float(value) < math.inf:
        raise ConvValueError(f"{name}: got {value!r}, expected a finite number of at least 0")
    return float(value)


def _gaussian(sigma: float, order: int, radius: int) -> Any:
    """Return the weights of a Gaussian's derivative at whole numbers from `-radius` to `radius`, on the host."""
    np = backends.get("numpy").xp
    cells = np.arange(-radius, radius + 1.0)
    weights = np.exp(-0.5 * (cells / sigma) ** 2)
    weights /= weights.sum()
    scale = np.power(-1 / sigma, order)  # of the Hermite polynomial that is the derivative's
    return weights * np.polynomial.hermite_e.hermeval(cells / sigma, [0] * order + [scale]) if order else weights
