"""The shapes of arrays as the caller has them: channels first or last, a batch or one sample."""

from __future__ import annotations

from .geometry import Geometry

Shape = tuple[int, ...]


def given(geometry: Geometry, shape: Shape, unbatched: bool) -> Shape:
    """Turn a shape (N, C, *cells) into the caller's."""
    batch, channels, *cells = shape
    own = (*cells, channels) if geometry.channels_last else (channels, *cells)
    return own if unbatched else (batch, *own)
