"""The gradients of a call."""

from __future__ import annotations

from typing import NamedTuple

from ..backends import Array
from ..errors import ConvTypeError
from ..passes.casts import conjugate
from ..reproducible.magnitudes import remembering
from ..spec import arguments
from .call import Forward


class ConvGrads(NamedTuple):
    """What `conv_backward` returns: the gradients of `x`, `w` and `b`; `db` is None where `b` was."""

    dx: Array
    dw: Array
    db: Array | None


def backward(dout: Array, cache: Forward, transposed: bool = False) -> ConvGrads:
    """Compute all gradients of a call, in the dtypes of what they are gradients of."""
    x, w, b, call = cache.x, cache.w, cache.b, cache.call
    backend, common = arguments.arrays(x=x, w=w, b=b, dout=dout)
    if common.kind == "complex floating" != cache.dtype.kind:
        raise ConvTypeError(
            f"dout: got dtype {backend.dtype_name(dout.dtype)}, expected a real one, as the output's is"
        )
    arguments.exact_shape("dout", tuple(dout.shape), call.x_shape if transposed else call.out_shape)
    of_x, of_w = (backend.dtype_name(array.dtype) for array in (x, w))
    with remembering():
        if transposed:
            dx = call.apply("forward", common, dout, conjugate(backend, w), made=of_x)
            dw = call.apply("weight_grad", common, x, dout, made=of_w, conjugated=(True, False))
        else:
            call.room(common, x, "x", x.shape, "x")
            dx = call.apply("input_grad", common, dout, w, made=of_x, conjugated=(False, True))
            dw = call.apply("weight_grad", common, dout, x, made=of_w, conjugated=(False, True))
        db = None if b is None else call.apply("channel_sum", common, dout, made=backend.dtype_name(b.dtype))
    return ConvGrads(dx, dw, db)
