"""Transposed convolution, and its gradients: the adjoints of convolution under other names."""

from __future__ import annotations

from .backends import ArrayT
from .engine import call
from .engine.call import ConvTransposeCache
from .engine.execution import is_traced
from .engine.gradients import ConvGrads, backward
from .errors import ConvTypeError
from .spec.options import DataFormat, Ints, Options, Precision, TransposedPadding, TransposedPaddingMode


def conv_transpose(
    x: ArrayT,
    w: ArrayT,
    b: ArrayT | None = None,
    *,
    stride: Ints = 1,
    padding: TransposedPadding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: TransposedPaddingMode = "zeros",
    data_format: DataFormat = "channels_first",
    precision: Precision = "standard",
    algorithm: str = "auto",
) -> ArrayT:
    """Spread each cell of a batch over a window of the output: the adjoint of a convolution with the same filters.

    With ``i`` an input cell and ``k`` a kernel tap, per spatial dimension::

        out[n, f, i * stride + k * dilation - before] += sum over c of x[n, c, i] * w[c, f, k]

    starting from `b`; what falls outside the output is dropped, or wraps around. It undoes the change of size of the
    convolution with the same stride, padding and dilation, not the convolution. See Dumoulin and Visin, "A guide to
    convolution arithmetic for deep learning" (arXiv:1603.07285), section 4.

    Parameters
    ----------
    x : array, shape (N, C, *spatial) or (C, *spatial)
        The input: a batch, or one sample without a batch axis; (N, *spatial, C) with channels last. Of the dtypes of
        `conv`.
    w : array, shape (C, F / groups, *kernel)
        The filters, as PyTorch and ONNX have them.
    b : array, shape (F,), optional
        A number added to each channel of the output.
    stride : int or sequence of int
        The step between the windows of neighbouring cells; one int, or one per spatial dimension.
    padding : int, sequence of int, sequence of (int, int), or str
        Cells taken off the output: the same everywhere, per spatial dimension, or `(before, after)` per spatial
        dimension. By name as Keras and TensorFlow have it, with an extent of ``dilation * (kernel - 1) + 1``:
        ``"valid"`` is none, but adds cells to an output of less than ``size * stride``; ``"same"`` makes the output
        ``size * stride`` long, and takes the odd cell off after. ``"causal"`` makes it as long, and takes all cells off
        after: output ``o`` depends on the inputs up to ``o // stride``, and on none later.
    output_padding : int or sequence of int
        Cells added to the end of the output, fewer than the larger of stride and dilation: which of the sizes that a
        convolution would have taken to that of `x` the output has. A padding with a name has none.
    dilation : int or sequence of int
        The step between neighbouring taps of the kernel.
    groups : int
        Cut channels and filters into so many groups that do not see each other.
    padding_mode : {"zeros", "circular"}
        What becomes of cells that are taken off: they are dropped, or wrap around and are added at the other end, which
        is the adjoint of the convolution with that mode.
    data_format, precision, algorithm
        As for `conv`.

    Returns
    -------
    array, shape (N, F, *out_spatial) or (F, *out_spatial)
        Of the arguments' library, device and `result_type`, with ``out_spatial = (size - 1) * stride - before - after +
        dilation * (kernel - 1) + output_padding + 1``.

    Raises
    ------
    ConvShapeError
        Dimensions or channels that do not fit, an output without cells, or too large.
    ConvValueError
        An option with a bad value.
    ConvTypeError
        An option of the wrong kind, a dtype that is not served, something that is no array, arrays of two libraries.
    BackendError
        Arrays on two devices, or a library that does not work here.

    Examples
    --------
    >>> import numpy as np
    >>> portconv.conv_transpose(np.array([[[1.0, 10.0]]]), np.array([[[1.0, 2.0, 3.0]]]), stride=2)
    array([[[ 1.,  2., 13., 20., 30.]]])
    >>> portconv.conv_transpose(np.ones((2, 8, 16, 16)), np.ones((8, 3, 4, 4)), stride=2, padding="same").shape
    (2, 3, 32, 32)
    """
    given = stride, padding, dilation, groups, padding_mode, data_format, precision, algorithm
    options = Options(*given, output_padding=output_padding)
    out: ArrayT = call.convolve_transposed(x, w, b, options)
    return out


def conv_transpose_forward(
    x: ArrayT,
    w: ArrayT,
    b: ArrayT | None = None,
    *,
    stride: Ints = 1,
    padding: TransposedPadding = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: TransposedPaddingMode = "zeros",
    data_format: DataFormat = "channels_first",
    precision: Precision = "standard",
    algorithm: str = "auto",
) -> tuple[ArrayT, ConvTransposeCache]:
    """Compute a transposed convolution, and keep what `conv_transpose_backward` needs.

    Parameters
    ----------
    x, w, b, stride, padding, output_padding, dilation, groups, padding_mode, data_format, precision, algorithm
        As for `conv_transpose`.

    Returns
    -------
    out : array, shape (N, F, *out_spatial) or (F, *out_spatial)
        As from `conv_transpose`.
    cache : ConvTransposeCache
        Holds on to `x`, `w` and `b`; nothing is copied.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As for `conv_transpose`.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = portconv.conv_transpose_forward(np.ones((1, 1, 2)), np.ones((1, 1, 3)))
    >>> out
    array([[[1., 2., 2., 1.]]])
    """
    given = stride, padding, dilation, groups, padding_mode, data_format, precision, algorithm
    options = Options(*given, output_padding=output_padding)
    if is_traced():
        return call.convolve_transposed(x, w, b, options), ConvTransposeCache(x, w, b, options)
    cache = call.transposed(x, w, b, options)
    return cache.run(), cache


def conv_transpose_backward(dout: ArrayT, cache: ConvTransposeCache) -> ConvGrads[ArrayT]:
    """Compute the gradients of a transposed convolution from the gradient of its output.

    Parameters
    ----------
    dout : array, shape of the output
        The gradient of some number with respect to the output of `conv_transpose_forward`.
    cache : ConvTransposeCache
        What that call of `conv_transpose_forward` returned beside its output.

    Returns
    -------
    ConvGrads
        The gradients `dx`, `dw` and `db` of that number, with the shapes and dtypes of `x`, `w` and `b`; `db` is None
        where `b` was.

    Raises
    ------
    ConvShapeError
        If `dout` has not the output's shape.
    ConvTypeError
        If `cache` is not from `conv_transpose_forward`, or `dout` not of the same library.
    BackendError
        If `dout` is on another device.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = portconv.conv_transpose_forward(np.array([[[1.0, 10.0]]]), np.ones((1, 1, 3)), np.zeros(1))
    >>> dx, dw, db = portconv.conv_transpose_backward(np.arange(4.0).reshape(1, 1, 4), cache)
    >>> dx
    array([[[3., 6.]]])
    >>> dw
    array([[[10., 21., 32.]]])
    >>> db
    array([6.])
    """
    if not isinstance(cache, ConvTransposeCache):
        raise ConvTypeError(
            f"cache: got {type(cache).__name__}, expected the cache that conv_transpose_forward returned"
        )
    return backward(dout, cache)
