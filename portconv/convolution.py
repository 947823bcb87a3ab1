"""The convolution, its gradients and its output shape."""

from __future__ import annotations

from .algorithms.choice import Explanation
from .backends import Array, ArrayT
from .engine import call, masked, plan
from .engine.call import ConvCache
from .engine.execution import is_traced, opaque
from .engine.gradients import ConvGrads, backward
from .engine.per_sample import weight_grads
from .errors import ConvTypeError
from .spec import arguments, checked_geometry
from .spec.checked_geometry import Names
from .spec.layout import given_shape
from .spec.operation import Kind
from .spec.options import DataFormat, Ints, Options, Padding, PaddingMode, Precision


def conv(
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
    """Convolve a batch of signals, images or volumes with filters.

    It is cross-correlation, as in every deep-learning library: the kernel is not flipped.
    With ``o`` an output position and ``k`` a kernel tap, per spatial dimension::

        out[n, f, o] = b[f] + sum over c, k of x[n, c, o * stride + k * dilation - before] * w[f, c, k]

    where cells outside `x` are what `padding_mode` says and `c` runs over the channels of the filter's group. See
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (arXiv:1603.07285), sections 2 and 5.1.

    Parameters
    ----------
    x : array, shape (N, C, *spatial) or (C, *spatial)
        The input: a batch, or one sample without a batch axis; (N, *spatial, C) or (*spatial, C) with channels last.
        Floating point of 16 to 64 bits (bfloat16 where the library has it; NumPy's is that of ml_dtypes), complex, or
        integers of 8 to 64 bits. float16 and bfloat16 accumulate in float32; integers are exact modulo 2**bits. All
        arrays are integers or none is.
    w : array, shape (F, C / groups, *kernel)
        The filters.
    b : array, shape (F,), optional
        A number added to each filter's output.
    stride : int or sequence of int
        The step between neighbouring windows; one int, or one per spatial dimension.
    padding : int, sequence of int, sequence of (int, int), or str
        Cells around the input: the same everywhere, per spatial dimension, or `(before, after)` per spatial dimension.
        ``"valid"`` is none, ``"full"`` every overlap (``dilation * (kernel - 1)`` on both sides), ``"same"``
        makes the output ``ceil(size / stride)`` long, with the odd cell after, ``"same_lower"`` with the odd cell
        before, ``"causal"`` with all cells before, so that no output reads a later cell than its own.
    dilation : int or sequence of int
        The step between neighbouring taps of the kernel.
    groups : int
        Cut channels and filters into so many groups that do not see each other; `C` of them are a depthwise
        convolution.
    padding_mode : {"zeros", "constant", "reflect", "symmetric", "replicate", "circular"}
        What the padding holds: zeros; `padding_value`; the input mirrored at its edge cells, which are not repeated;
        mirrored with its edge cells; its edge cells; the input again. However long the padding is, as `numpy.pad` has
        it with "constant", "reflect", "symmetric", "edge" and "wrap".
    padding_value : number
        What the padding holds in the mode "constant", which must be a number of `x`'s kind and is rounded to its dtype.
        It has no gradient.
    data_format : {"channels_first", "channels_last"}
        Where the channels of `x` and of the output are; `w` stays as it is.
    precision : {"standard", "fast", "reproducible"}
        ``"standard"`` computes in the arrays' own dtype, never in TF32; ``"fast"`` lets the backend trade accuracy for
        speed; ``"reproducible"`` gives the same bits on every library, device, number of threads and batch.
    algorithm : {"auto", "compiled", "winograd", "fft", "depthwise", "native", "gemm", "tap_loop", "direct"}
        How to compute it; ``"auto"`` takes the fastest, by estimate: see `explain`.
    where : array of bool, optional
        Which cells of `x` count, of its shape or one that broadcasts to it. The others are as absent: they add nothing,
        also if they are nan or infinite.
    normalize : bool
        Whether to divide each sum, before the bias is added, by the weight of the filters on the cells that count:
        normalised convolution, Knutsson and Westin, "Normalized and differential convolution" (CVPR 1993), section 3.
        Zeros beyond the input do not count, other padding does as far as the cells do that it is filled from. Where
        nothing counts the result is nan.

    Returns
    -------
    array, shape (N, F, *out_spatial) or (F, *out_spatial)
        Of the arguments' library, device and `result_type`, with
        ``out_spatial = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1``.

    Raises
    ------
    ConvShapeError
        Dimensions or channels that do not fit, a kernel larger than the padded input, an output too large.
    ConvValueError
        An option with a bad value, an algorithm that cannot serve, or less memory than any needs: see
        `workspace_limit`.
    ConvTypeError
        An option of the wrong kind, a dtype that is not served, something that is no array, arrays of two libraries.
    BackendError
        Arrays on two devices, or a library that does not work here.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(10.0).reshape(1, 1, 10)
    >>> difference = np.array([[[-1.0, 0.0, 1.0]]])
    >>> portconv.conv(x, difference)
    array([[[2., 2., 2., 2., 2., 2., 2., 2.]]])
    >>> portconv.conv(np.ones((2, 3, 32, 32)), np.ones((8, 3, 3, 3)), stride=2, padding="same").shape
    (2, 8, 16, 16)
    """
    options = Options(stride, padding, dilation, groups, padding_mode, data_format, precision, algorithm, padding_value)
    if where is None and normalize is False:
        out: ArrayT = call.convolve(x, w, b, options)
    else:
        out = masked.layer(x, (w, b), options, where, normalize)
    return out


def conv_forward(
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
) -> tuple[ArrayT, ConvCache]:
    """Convolve, and keep what `conv_backward` needs.

    Parameters
    ----------
    x, w, b, stride, padding, dilation, groups, padding_mode, padding_value, data_format, precision, algorithm
        As for `conv`.

    Returns
    -------
    out : array, shape (N, F, *out_spatial) or (F, *out_spatial)
        As from `conv`.
    cache : ConvCache
        Holds on to `x`, `w` and `b`; nothing is copied.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = portconv.conv_forward(np.ones((1, 1, 4)), np.ones((1, 1, 3)))
    >>> out
    array([[[3., 3.]]])
    """
    options = Options(stride, padding, dilation, groups, padding_mode, data_format, precision, algorithm, padding_value)
    if is_traced():
        return call.convolve(x, w, b, options), ConvCache(x, w, b, options)
    return call.convolve_and_keep(x, w, b, options)


def conv_backward(dout: ArrayT, cache: ConvCache) -> ConvGrads[ArrayT]:
    """Compute the gradients of a convolution from the gradient of its output.

    Of complex numbers they are adjoints, as in PyTorch: ``vdot(dout, conv(x, w)) == vdot(dx, x) == vdot(dw, w)``. A
    real `x` or `w` beside a complex one has the real part.

    Parameters
    ----------
    dout : array, shape of the output
        The gradient of some number with respect to the output of `conv_forward`.
    cache : ConvCache
        What that call of `conv_forward` returned beside its output.

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
        If `cache` is not from `conv_forward`, or `dout` not of the same library.
    BackendError
        If `dout` is on another device.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = portconv.conv_forward(np.arange(4.0).reshape(1, 1, 4), np.ones((1, 1, 3)), np.zeros(1))
    >>> dx, dw, db = portconv.conv_backward(np.ones_like(out), cache)
    >>> dx
    array([[[1., 2., 2., 1.]]])
    >>> dw
    array([[[1., 3., 5.]]])
    >>> db
    array([2.])
    """
    if not isinstance(cache, ConvCache):
        raise ConvTypeError(f"cache: got {type(cache).__name__}, expected the cache that conv_forward returned")
    return backward(dout, cache)


def conv_input_grad(
    dout: ArrayT,
    w: ArrayT,
    x_shape: tuple[int, ...],
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
) -> ArrayT:
    """Compute the gradient of a convolution with respect to its input: the adjoint of `conv` in `x`.

    Of complex numbers too: ``vdot(dout, conv(x, w)) == vdot(conv_input_grad(dout, w, x.shape), x)``. The gradient of
    padding that is not zeros is added to the cells that it was filled in from.

    Parameters
    ----------
    dout : array, shape (N, F, *out_spatial) or (F, *out_spatial)
        The gradient with respect to the output; with channels last, in its order.
    w : array, shape (F, C / groups, *kernel)
        The filters.
    x_shape : tuple of int
        The shape of the input, batch axis included where `dout` has one.
    stride, padding, dilation, groups, padding_mode, padding_value, data_format, precision, algorithm
        As for `conv`.

    Returns
    -------
    array, shape `x_shape`
        Of the `result_type` of `dout` and `w`.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As for `conv`; and if `dout` has not the shape of the output.

    Examples
    --------
    >>> import numpy as np
    >>> portconv.conv_input_grad(np.ones((1, 1, 2)), np.array([[[1.0, 2.0, 3.0]]]), (1, 1, 4))
    array([[[1., 3., 5., 3.]]])
    """
    options = Options(stride, padding, dilation, groups, padding_mode, data_format, precision, algorithm, padding_value)
    dx: ArrayT = call.gradient(Kind.INPUT_GRAD, dout, ("w", w), ("x_shape", x_shape), options)
    return dx


def conv_weight_grad(
    dout: ArrayT,
    x: ArrayT,
    w_shape: tuple[int, ...],
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
    per_sample: bool = False,
) -> ArrayT:
    """Compute the gradient of a convolution with respect to its filters: the adjoint of `conv` in `w`.

    Of complex numbers too: ``vdot(dout, conv(x, w)) == vdot(conv_weight_grad(dout, x, w.shape), w)``.

    Parameters
    ----------
    dout : array, shape (N, F, *out_spatial) or (F, *out_spatial)
        The gradient with respect to the output; with channels last, in its order.
    x : array, shape (N, C, *spatial) or (C, *spatial)
        The input.
    w_shape : tuple of int
        The shape of the filters, (F, C / groups, *kernel).
    stride, padding, dilation, groups, padding_mode, padding_value, data_format, precision, algorithm
        As for `conv`.
    per_sample : bool
        Whether to return what each sample adds to the gradient, one after the other.

    Returns
    -------
    array, shape `w_shape`, or (N, *w_shape) for each sample
        Of the `result_type` of `dout` and `x`.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As for `conv`; and if `dout` has not the shape of the output.

    Examples
    --------
    >>> import numpy as np
    >>> portconv.conv_weight_grad(np.ones((1, 1, 2)), np.arange(4.0).reshape(1, 1, 4), (1, 1, 3))
    array([[[1., 3., 5.]]])
    """
    options = Options(stride, padding, dilation, groups, padding_mode, data_format, precision, algorithm, padding_value)
    if not isinstance(per_sample, bool):
        raise ConvTypeError(f"per_sample: got {per_sample!r}, expected a bool")
    dw: ArrayT = (
        weight_grads(dout, x, w_shape, options)
        if per_sample
        else call.gradient(Kind.WEIGHT_GRAD, dout, ("x", x), ("w_shape", w_shape), options)
    )
    return dw


@opaque
def conv_output_shape(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    data_format: DataFormat = "channels_first",
) -> tuple[int, ...]:
    """Compute the shape that `conv` returns, from shapes alone.

    Parameters
    ----------
    x_shape, w_shape : tuple of int
        The shapes of the input and of the filters.
    stride, padding, dilation, groups, data_format
        As for `conv`.

    Returns
    -------
    tuple of int

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError
        As for `conv`.

    Examples
    --------
    >>> portconv.conv_output_shape((16, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3)
    (16, 64, 112, 112)
    """
    options = Options(stride, padding, dilation, groups, data_format=data_format)
    shapes = arguments.shape("x_shape", x_shape), arguments.shape("w_shape", w_shape)
    geometry, unbatched = checked_geometry.convolution(*shapes, options, Names("x_shape", "w_shape"))
    return given_shape(geometry.out_shape, geometry.channels_last, unbatched)


def explain(
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
) -> Explanation:
    """Say which algorithm a call of `conv` takes, in what blocks and memory, and what the others were expected to cost.

    Parameters
    ----------
    x, w, b, stride, padding, dilation, groups, padding_mode, padding_value, data_format, precision, algorithm
        As for `conv`. Only the arrays' shapes, dtypes and devices matter; nothing is computed.

    Returns
    -------
    Explanation
        With the algorithm's name, its block, the most bytes of workspace a thread, and for each algorithm what it was
        expected to cost, over that of the one taken, or why it cannot serve.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As for `conv`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w = np.ones((4, 64, 56, 56), complex), np.ones((64, 1, 31, 31), complex)
    >>> found = portconv.explain(x, w, padding="same", groups=64)
    >>> found.algorithm
    'fft'
    >>> {"fft", "depthwise", "gemm"} <= {one.name for one in found.candidates if one.why_not is None}
    True
    """
    options = Options(stride, padding, dilation, groups, padding_mode, data_format, precision, algorithm, padding_value)
    cache = call.convolution(x, w, b, options)
    call.check_memory(cache.operation, cache.backend, x, ("x", x.shape))
    return plan.of(cache.operation, cache.backend, x, w).explain()
