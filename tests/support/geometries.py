"""Geometries of convolutions, from shapes and options one after the other."""

from __future__ import annotations

from typing import Any

from portconv.spec import checked_geometry
from portconv.spec.geometry import Geometry
from portconv.spec.options import Options


def geometry(x_shape: Any, w_shape: Any, *options: Any) -> Geometry:
    """Return the geometry of batches with channels first; `options` are stride, padding, dilation, groups and mode."""
    return checked_geometry.convolution(x_shape, w_shape, Options(*options)).geometry
