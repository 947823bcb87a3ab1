"""Gradients of the filters for each sample: those of one convolution in which each sample has groups of its own."""

from __future__ import annotations

from typing import Any

from ..backends import Array
from ..spec import arguments
from ..spec.checked_geometry import Names
from ..spec.operation import Kind, Role
from ..spec.options import Options
from . import call
from .execution import opaque


@opaque
def weight_grads(dout: Array, x: Array, w_shape: Any, options: Options) -> Array:
    """Compute what each sample adds to the gradient of the filters, (N, *w_shape)."""
    backend, dtype = arguments.arrays(dout=dout, x=x)
    shape = arguments.shape("w_shape", w_shape)
    asked = call.Asked(Kind.WEIGHT_GRAD, dtype.name, Names("x", "w_shape"))
    step = call.operation_of(asked, x.shape, shape, options)
    arguments.exact_shape("dout", tuple(dout.shape), step.shape(Role.OUT))
    geometry, xp = step.geometry, backend.xp
    if geometry.batch == 0:
        return xp.zeros((0, *shape), dtype=dtype.dtype, device=backend.device_of(x))
    if geometry.channels_last:
        x, dout = (xp.moveaxis(each, -1, -1 - geometry.dims) for each in (x, dout))
    x = xp.reshape(x, (1, geometry.batch * geometry.in_channels, *geometry.size))
    dout = xp.reshape(dout, (1, geometry.batch * geometry.out_channels, *geometry.out))
    pads = tuple(zip(geometry.before, geometry.after, strict=True))  # "same" and others, as numbers
    own = options._replace(groups=geometry.batch * geometry.groups, data_format="channels_first", padding=pads)
    filters = ("w_shape", (geometry.batch * shape[0], *shape[1:]))
    grads = call.gradient(Kind.WEIGHT_GRAD, dout, ("x", x), filters, own)
    return xp.reshape(grads, (geometry.batch, *shape))
