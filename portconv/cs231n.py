"""The functions of Stanford's CS231n course (assignment 2, convolutional layers), on any backend.

They can replace the course's own. `conv_forward_naive` and `conv_backward_naive` are the loop that the course asks for
(``algorithm="direct"``); `conv_forward_fast` and `conv_backward_fast` compute the same at full speed.
"""

from __future__ import annotations

from . import backends
from .backends import Array, ArrayT
from .convolution import conv_backward, conv_forward, explain
from .engine import call
from .engine.call import ConvCache
from .errors import ConvTypeError, ConvValueError
from .spec import arguments
from .spec.options import Options

Cache = tuple[ArrayT, ArrayT, ArrayT, dict[str, int]]


class _Known(tuple[ArrayT, ArrayT, ArrayT, dict[str, int]]):
    """The course's cache, ``(x, w, b, conv_param)``, with the call that these were checked for."""

    call: ConvCache


def _load_what_calls_need() -> None:
    """Plan a smallest call: the course's notebook times a first one, which would load the algorithms and the BLAS."""
    numpy = backends.get("numpy")
    numpy.prepare()
    explain(numpy.xp.ones((1, 1, 1, 1)), numpy.xp.ones((1, 1, 1, 1)))


_load_what_calls_need()

__all__ = ["conv_backward_fast", "conv_backward_naive", "conv_forward_fast", "conv_forward_naive"]


def conv_forward_naive(x: ArrayT, w: ArrayT, b: ArrayT, conv_param: dict[str, int]) -> tuple[ArrayT, Cache[ArrayT]]:
    """Convolve by a loop over output positions.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        Images.
    w : array, shape (F, C, HH, WW)
        Filters.
    b : array, shape (F,)
        Biases; integers are converted to the dtype of `x`.
    conv_param : dict
        ``"stride"``, the cells between windows in both directions, and ``"pad"``, the zeros on all four sides.

    Returns
    -------
    out : array, shape (N, F, H', W')
        ``H'`` is ``1 + (H + 2 * pad - HH) / stride``, rounded down; ``W'`` is computed in the same way.
    cache : tuple
        `(x, w, b, conv_param)`.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As `portconv.conv`, and if `conv_param` is not a dict or lacks a key.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv.cs231n import conv_forward_naive
    >>> x, w, b = np.ones((2, 3, 4, 4)), np.ones((3, 3, 4, 4)), np.zeros(3)
    >>> out, cache = conv_forward_naive(x, w, b, {"stride": 2, "pad": 1})
    >>> out.shape, float(out[0, 0, 0, 0])
    ((2, 3, 2, 2), 27.0)
    """
    return _forward(x, w, b, conv_param, "direct")


def conv_backward_naive(dout: ArrayT, cache: Cache[ArrayT]) -> tuple[ArrayT, ArrayT, ArrayT | None]:
    """Compute the gradients by a loop over output positions.

    Parameters
    ----------
    dout : array, shape (N, F, H', W')
        The gradient of the output.
    cache : tuple
        The cache from `conv_forward_naive`: `(x, w, b, conv_param)`.

    Returns
    -------
    dx, dw, db : array
        The gradients of `x`, `w` and `b`.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As `portconv.conv_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv.cs231n import conv_backward_naive
    >>> cache = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)), np.zeros(1), {"stride": 1, "pad": 0}
    >>> dx, dw, db = conv_backward_naive(np.ones((1, 1, 2, 2)), cache)
    >>> dx
    array([[[[1., 2., 1.],
             [2., 4., 2.],
             [1., 2., 1.]]]])
    """
    return _backward(dout, cache, "direct")


def conv_forward_fast(x: ArrayT, w: ArrayT, b: ArrayT, conv_param: dict[str, int]) -> tuple[ArrayT, Cache[ArrayT]]:
    """Do what `conv_forward_naive` does, at full speed.

    Parameters
    ----------
    x, w, b, conv_param
        As for `conv_forward_naive`.

    Returns
    -------
    out, cache
        As from `conv_forward_naive`.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As `conv_forward_naive`.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv.cs231n import conv_forward_fast
    >>> x, w, b = np.ones((100, 3, 31, 31)), np.ones((25, 3, 3, 3)), np.zeros(25)
    >>> conv_forward_fast(x, w, b, {"stride": 2, "pad": 1})[0].shape
    (100, 25, 16, 16)
    """
    return _forward(x, w, b, conv_param, "auto")


def conv_backward_fast(dout: ArrayT, cache: Cache[ArrayT]) -> tuple[ArrayT, ArrayT, ArrayT | None]:
    """Do what `conv_backward_naive` does, at full speed.

    Parameters
    ----------
    dout, cache
        As for `conv_backward_naive`.

    Returns
    -------
    dx, dw, db : array
        As from `conv_backward_naive`.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As `conv_backward_naive`.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv.cs231n import conv_backward_fast
    >>> cache = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)), np.zeros(1), {"stride": 1, "pad": 0}
    >>> conv_backward_fast(np.ones((1, 1, 2, 2)), cache)[2]
    array([4.])
    """
    return _backward(dout, cache, "auto")


def _forward(
    x: ArrayT, w: ArrayT, b: ArrayT, conv_param: dict[str, int], algorithm: str
) -> tuple[ArrayT, Cache[ArrayT]]:
    stride, pad = _options(conv_param)
    out, own = conv_forward(x, w, _bias(x, b), stride=stride, padding=pad, algorithm=algorithm)
    cache = (x, w, b, conv_param)
    if not own.backend.framework:  # JAX takes only plain tuples apart
        cache = _Known(cache)
        cache.call = own
    return out, cache


def _backward(dout: ArrayT, cache: Cache[ArrayT], algorithm: str) -> tuple[ArrayT, ArrayT, ArrayT | None]:
    if not (isinstance(cache, tuple) and len(cache) == 4):
        raise ConvTypeError(f"cache: got {type(cache).__name__}, expected the tuple (x, w, b, conv_param)")
    if isinstance(cache, _Known) and cache.call.operation.algorithm == algorithm:
        return conv_backward(dout, cache.call)
    x, w, b, conv_param = cache
    stride, pad = _options(conv_param)
    return conv_backward(dout, call.convolution(x, w, _bias(x, b), Options(stride, pad, algorithm=algorithm)))


def _options(conv_param: dict[str, int]) -> tuple[int, int]:
    if not isinstance(conv_param, dict):
        raise ConvTypeError(f"conv_param: got {type(conv_param).__name__}, expected a dict")
    missing = [key for key in ("stride", "pad") if key not in conv_param]
    if missing:
        raise ConvValueError(f"conv_param: got keys {sorted(map(str, conv_param))}, expected 'stride' and 'pad'")
    return (
        arguments.integer("conv_param['stride']", conv_param["stride"], 1),
        arguments.integer("conv_param['pad']", conv_param["pad"], 0),
    )


def _bias(x: Array, b: Array) -> Array:
    """Return `b`; integers, as in the course's picture exercise, are converted to the dtype of `x`."""
    backend, like = arguments.owner("b", b, {"x": x}), arguments.owner("x", x, {"b": b})
    return backend.astype(b, x.dtype) if backend is like and backend.xp.isdtype(b.dtype, "integral") else b
