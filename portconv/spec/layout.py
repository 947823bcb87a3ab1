"""Layouts: channels first or last, a batch or one sample; here their shapes, in `passes.layout` their arrays."""

from __future__ import annotations

Shape = tuple[int, ...]


def given_shape(shape: Shape, channels_last: bool, unbatched: bool) -> Shape:
    """Turn a canonical shape (N, C, *cells) into the shape that the caller's array has."""
    batch, channels, *cells = shape
    sample = (*cells, channels) if channels_last else (channels, *cells)
    return sample if unbatched else (batch, *sample)
