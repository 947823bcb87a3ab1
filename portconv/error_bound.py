"""What the error of `conv` cannot exceed."""

from __future__ import annotations

from .backends import Array, ArrayT
from .engine import call, masked
from .engine.execution import opaque, run
from .spec.dtypes import real
from .spec.operation import Kind, changed
from .spec.options import DataFormat, Ints, Options, Padding, PaddingMode, Precision


@opaque
def error_bound(
    x: ArrayT,
    w: ArrayT,
    b: ArrayT | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    padding_value: complex = 0,
    data_format: DataFormat = "channels_first",
    precision: Precision = "standard",
    algorithm: str = "auto",
    where: Array | None = None,
    normalize: bool = False,
) -> ArrayT:
    """Bound the error of each element that `conv` returns for the same arguments.

    The bounds are derived in docs/accuracy.md from Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed.
    (2002), section 3.1; those of "reproducible" from what quantising changes, and from one rounding. They ask nothing
    of the order in which a library adds, and are worst cases: errors are usually far below.

    Parameters
    ----------
    x, w, b, stride, padding, dilation, groups, padding_mode, padding_value, data_format, precision, algorithm
        As for `conv`.
    where, normalize
        As for `conv`.

    Returns
    -------
    array, shape of the output
        What ``abs(conv(...) - exact)`` cannot exceed, real, in the output's dtype or that of its parts; infinite where
        the output may be no finite number. Of integers, which are exact modulo 2**bits, 0.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w = np.ones((1, 1, 5), np.float32), np.ones((1, 1, 3), np.float32) / 3
    >>> bound = portconv.error_bound(x, w)
    >>> bool(bound.max() < 4 * np.finfo(np.float32).eps)
    True
    >>> exact = x[:, :, :3] * np.float64(w[0, 0, 0]) * 3
    >>> bool(np.all(np.abs(portconv.conv(x, w) - exact) <= bound))
    True
    """
    options = Options(stride, padding, dilation, groups, padding_mode, data_format, precision, algorithm, padding_value)
    bound: ArrayT = masked.bound_of_layer(bounded, x, (w, b), options, where, normalize)
    return bound


def bounded(x: Array, w: Array, b: Array | None, options: Options) -> Array:
    """Check the arguments of a convolution, and bound its error."""
    cache = call.convolution(x, w, b, options)
    call.check_memory(cache.operation, cache.backend, x, ("x", x.shape))
    step = changed(cache.operation, kind=Kind.ERROR_BOUND, result_dtype=real(cache.operation.dtype))
    return run(step, cache.backend, *cache.operands)
