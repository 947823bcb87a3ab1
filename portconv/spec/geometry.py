"""All sizes, offsets and ranges of a convolution, as integers that are computed from shapes.

Notation, here and in the algorithms: `N` batch, `C` input channels, `F` output channels (filters), `G` groups,
`S` input sizes, `K` kernel sizes, `P` output sizes (positions); the last three have one entry per spatial dimension.
Output `o` of one dimension reads, through kernel tap `k`, the input cell `o * stride + k * dilation - before`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from .ranges import Range, Span, spans


@dataclass(frozen=True)
class Geometry:
    """The shape of one convolution; the same for forward, input gradient and weight gradient."""

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    mode: str = "zeros"
    channels_last: bool = False
    """Whether inputs and outputs have channels last in memory; algorithms index them with channels first anyway."""
    value: complex = 0
    """What the cells of the padding are, in the mode "constant"."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # each call needs the hash several times
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    @cached_property
    def is_known(self) -> bool:
        """Whether all sizes are numbers, and none is a symbol of a compiler."""
        return isinstance(self.operations, int)

    def __reduce__(self) -> tuple[Any, ...]:  # the hash of another process is of no use
        return Geometry, tuple(getattr(self, field.name) for field in fields(self))

    @property
    def dims(self) -> int:
        return len(self.size)

    @cached_property
    def extent(self) -> tuple[int, ...]:
        """The number of cells from the first tap of a dilated kernel to its last, including both."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @cached_property
    def padded(self) -> tuple[int, ...]:
        return tuple(s + lo + hi for s, lo, hi in zip(self.size, self.before, self.after, strict=True))

    @cached_property
    def out(self) -> tuple[int, ...]:
        return tuple((p - e) // s + 1 for p, e, s in zip(self.padded, self.extent, self.stride, strict=True))

    @cached_property
    def positions(self) -> int:
        return math.prod(self.out)

    @cached_property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @cached_property
    def other_taps(self) -> int:
        """The number of taps of all dimensions but the first."""
        return math.prod(self.kernel[1:])

    @cached_property
    def weights(self) -> int:
        """The number of elements of the filters."""
        return math.prod(self.w_shape)

    @cached_property
    def group_in(self) -> int:
        return self.in_channels // self.groups

    @cached_property
    def group_out(self) -> int:
        return self.out_channels // self.groups

    @cached_property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *self.size)

    @cached_property
    def w_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.group_in, *self.kernel)

    @cached_property
    def out_shape(self) -> tuple[int, ...]:
        return (self.batch, self.out_channels, *self.out)

    def shape(self, role: str) -> tuple[int, ...]:
        """Return the shape of "x", "w" or "out", with a batch and with channels first."""
        shape: tuple[int, ...] = getattr(self, f"{role}_shape")
        return shape

    @cached_property
    def pointwise(self) -> bool:
        """Whether each output reads exactly the input cell at the position of the output."""
        ones, none = (1,) * self.dims, (0,) * self.dims
        return self.kernel == ones and self.stride == ones and self.before == none and self.after == none

    @cached_property
    def operations(self) -> int:
        """The number of multiplications and additions of one of the three products."""
        return 2 * self.batch * self.out_channels * self.group_in * self.taps * self.positions

    def terms(self, kind: str) -> int:
        """Count the products that are added up to one element of a result, at most.

        Products with the zeros between the cells of a strided input gradient do not count.
        """
        if kind == "forward":
            return self.group_in * self.taps
        if kind == "weight_grad":
            return self.batch * self.positions
        sides = zip(self.kernel, self.stride, self.dilation, strict=True)
        return self.group_out * math.prod(-(-k // (s // math.gcd(s, d))) for k, s, d in sides)

    @cached_property
    def dense(self) -> bool:
        """Whether the stride is 1 along every dimension."""
        return self.stride == (1,) * self.dims

    @cached_property
    def extended(self) -> Geometry:
        """The convolution of the padded input, if the padding is not zeros; otherwise the same convolution."""
        none = (0,) * self.dims
        if self.mode == "zeros" or self.before == self.after == none:
            return self
        return replace(self, size=self.padded, before=none, after=none, mode="zeros", value=0)

    @cached_property
    def linear(self) -> Geometry:
        """The same convolution without a constant in its padding: how outputs change with the input."""
        return replace(self, mode="zeros", value=0) if self.mode == "constant" else self

    @cached_property
    def conjugate(self) -> Geometry:
        """The same convolution, of the conjugate of the input and of the constant in its padding."""
        return replace(self, value=self.value.conjugate()) if isinstance(self.value, complex) else self

    def is_filled(self, dim: int) -> bool:
        """Return whether a dimension has padding that is not of zeros."""
        return self.mode != "zeros" and not self.before[dim] == self.after[dim] == 0

    @cached_property
    def unstrided(self) -> Geometry:
        """The convolution of stride 1, of which every `stride`-th output is one of this convolution."""
        unread = ((p - e) % s for p, e, s in zip(self.padded, self.extent, self.stride, strict=True))
        after = tuple(hi - n for hi, n in zip(self.after, unread, strict=True))
        return replace(self, stride=(1,) * self.dims, after=after)

    @cached_property
    def mirrored(self) -> Geometry:
        """The convolution of `dout` with the flipped kernel, whose output is the input gradient; the stride must be 1.

        Its padding is the padding "full" less this convolution's padding, and so may be negative.
        """
        assert self.dense
        before = tuple(e - 1 - lo for e, lo in zip(self.extent, self.before, strict=True))
        after = tuple(e - 1 - hi for e, hi in zip(self.extent, self.after, strict=True))
        return replace(
            self,
            in_channels=self.out_channels,
            out_channels=self.in_channels,
            size=self.out,
            before=before,
            after=after,
        )

    def window(self, position: tuple[int, ...]) -> tuple[slice, ...]:
        """Return the index of the cells of the padded input that the output at `position` reads."""
        return tuple(
            slice(o * s, o * s + e, min(d, e))  # one tap reads a single cell, however large the dilation
            for o, s, e, d in zip(position, self.stride, self.extent, self.dilation, strict=True)
        )

    def spans(self, dim: int, outputs: Range) -> Sequence[Span]:
        """Return, for each tap of dimension `dim`, which of `outputs` read input cells through it, and which cells."""
        return spans(self.size[dim], self.kernel[dim], self.stride[dim], self.dilation[dim], self.before[dim], outputs)
