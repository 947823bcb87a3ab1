"""The convolution that an array library has of its own: how portconv describes a convolution to it, and what it asks.

PyTorch has one, and JAX has; for CuPy's arrays there is cuDNN's. A backend of such a library sets
`Backend.native_convolution` to an object of a subclass of `NativeConvolution`. The algorithm "native" calls it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ._terms import Array

Ints = tuple[int, ...]

KEPT_BYTES, NEW_PAGES = 32 << 20, 4
"""The system takes back larger memory than this when it is freed, and new memory comes page by page: to copy to it
takes so many times as long."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of batches with channels first, padded with zeros.

    Attributes
    ----------
    x_shape, w_shape, out_shape : tuple of int
        (N, C, *S), (F, C/G, *K) and (N, F, *P).
    stride, dilation : tuple of int
        One number for each spatial dimension.
    before, after : tuple of int
        The cells of padding at both ends of each spatial dimension. So many cells are dropped if they are negative.
    groups : int
    """

    x_shape: Ints
    w_shape: Ints
    out_shape: Ints
    stride: Ints
    dilation: Ints
    before: Ints
    after: Ints
    groups: int

    @property
    def dims(self) -> int:
        """The number of spatial dimensions."""
        return len(self.stride)

    @cached_property
    def operations(self) -> int:
        """The multiplications and additions of one of the three products."""
        return 2 * math.prod(self.out_shape) * math.prod(self.w_shape[1:])

    @cached_property
    def elements(self) -> int:
        """The elements of the input, the filters and the output."""
        return math.prod(self.x_shape) + math.prod(self.w_shape) + math.prod(self.out_shape)

    def copied(self, bits: int) -> int:
        """Return `elements` of so many bits, which count several times on a CPU if an array takes new pages."""
        largest = max(map(math.prod, (self.x_shape, self.w_shape, self.out_shape)))
        return self.elements * (NEW_PAGES if largest * bits // 8 > KEPT_BYTES else 1)

    @cached_property
    def is_tiled(self) -> bool:
        """Whether cuDNN has Winograd's algorithm for it: a kernel of 3 x 3, and stride and dilation 1."""
        return self.w_shape[2:] == (3, 3) and self.stride == self.dilation == (1, 1)

    @cached_property
    def is_padded(self) -> bool:
        """Whether there is padding."""
        return any(cells > 0 for cells in (*self.before, *self.after))

    @cached_property
    def has_windows_of_padding(self) -> bool:
        """Whether a window may read nothing but padding: beside the input, or with taps on both sides of it."""
        extents = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.w_shape[2:], strict=True)]
        sides = zip(self.before, self.after, extents, self.dilation, self.x_shape[2:], strict=True)
        return any(
            max(lo, hi) >= extent or min(d, extent) > size + min(0, lo) + min(0, hi)
            for lo, hi, extent, d, size in sides
        )

    @cached_property
    def has_taps_of_padding(self) -> bool:
        """Whether a tap may read nothing but padding, in all windows."""
        sides = zip(
            self.w_shape[2:], self.dilation, self.before, self.stride, self.out_shape[2:], self.x_shape[2:], strict=True
        )
        for taps, d, lo, s, windows, size in sides:
            for first in range(-lo, taps * d - lo, d):  # the cell that a tap reads in the first window
                window = max(0, -(first // s))  # the first window in which it reads no padding before the input
                if window >= windows or first + window * s >= size:
                    return True
        return False

    @cached_property
    def shared(self) -> Ints:
        """The cells of padding that both ends of a dimension have: all that most libraries take.

        Zeros where the input has no cells, which most libraries do not take.
        """
        if 0 in self.x_shape:
            return (0,) * self.dims
        return tuple(max(0, min(sides)) for sides in zip(self.before, self.after, strict=True))

    @cached_property
    def rest(self) -> tuple[tuple[int, int], ...] | None:
        """The cells of padding beyond the shared ones, before and after; None if there are none."""
        sides = zip(self.before, self.after, self.shared, strict=True)
        rest = tuple((lo - both, hi - both) for lo, hi, both in sides)
        return rest if any(map(any, rest)) else None


class NativeWork(NamedTuple):
    """What a product by a library's own convolution takes, as it is compared with other algorithms.

    Attributes
    ----------
    operations : float
        Multiplications and additions, each of which takes ``native`` of the backend's `Costs`. Those that the library
        computes more slowly than in a dense layer count more.
    elements : float
        Elements that are copied, each of which takes ``element`` of these costs.
    calls : float
        Calls, each of which takes ``call`` of these costs.
    workspace : int
        Elements of memory beside the operands and the result.
    """

    operations: float
    elements: float
    calls: float
    workspace: int


class NativeConvolution:
    """The three products of a convolution, by functions of the library.

    All three are needed, but for the gradient of the input where it is mirrored. Operands have one dtype:
    float16, bfloat16, float32 or float64, and may lie in memory in any order. Sums of float16 and bfloat16 are to be
    made in float32: where the library makes them in another dtype, these methods convert the operands first. Results
    are in the dtype of the operands, or in float32.

    A product is None if the library's result may be wrong because a number is not finite: it has lost a nan or an
    infinity of its window, or may have spread one beyond. Then another algorithm computes it. An error that the library
    raises is reported as its own.

    Attributes
    ----------
    integers : bool
        Whether it multiplies integers too, of any number of bits, and sums wrap.
    mirrors : bool
        Whether the gradient of the input is computed as an output, of the flipped kernel; all its strides are 1.
    at_once : bool
        Whether a call needs no settings around it, and a small one is to take as little time as it can.
    """

    integers = False
    at_once = False
    mirrors = False

    def objection(self, convolution: Convolution) -> str | None:
        """Return None if the library computes such a convolution; otherwise say which ones it does compute.

        The words follow "serves" and "expected 'auto', or": "one to three spatial dimensions".
        """
        return None

    def work(self, kind: str, convolution: Convolution, bits: int, device: str) -> NativeWork:
        """Count the work of a product on a device of that kind (see `Backend.device_kind`).

        `kind` is "forward", "input_grad" or "weight_grad", and `bits` are those of an element: 32 for float16 and
        bfloat16 too.
        """
        moved = convolution.elements
        return NativeWork(convolution.operations, moved, 1, moved)

    def in_tiles(self, convolution: Convolution, device: str) -> bool:
        """Return whether the library may compute products by Winograd's algorithm, whose errors are larger."""
        return False

    def code(self, kind: str, convolution: Convolution) -> str:
        """Return the library's call for a product as code, of arrays `x`, `w` and `dout`, for a report of an error."""
        return ""

    def literal(self, values: str, dtype: str, device: str) -> str:
        """Return the code of an array of numbers, of which `values` is a nested list, as the library gets it."""
        return values

    def forward(self, x: Array, w: Array, b: Array | None, convolution: Convolution) -> Array | None:
        """Compute the output (N, F, *P) of `x`, `w` and a bias (F,) or None."""
        raise NotImplementedError

    def input_grad(self, dout: Array, w: Array, convolution: Convolution) -> Array | None:
        """Compute the gradient of the input (N, C, *S) for the gradient `dout` of the output."""
        raise NotImplementedError

    def weight_grad(self, dout: Array, x: Array, convolution: Convolution) -> Array | None:
        """Compute the gradient of the filters (F, C/G, *K) for the gradient `dout` of the output."""
        raise NotImplementedError
