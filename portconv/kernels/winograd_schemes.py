"""The transforms of Winograd's tiles along one dimension, for 3 taps at stride 1 and at stride 2.

At stride 1 it is F(2, 3): two outputs take four products,

    B^T = 1  0 -1  0     G =  1    0    0      A^T = 1  1  1  0
          0  1  1  0         1/2  1/2  1/2           0  1 -1 -1
          0 -1  1  0         1/2 -1/2  1/2
          0  1  0 -1          0    0    1

At stride 2 the outer taps meet cells 0, 2 and 4 alone, as two neighbouring taps would: that is F(2, 2), of three
products. The middle tap meets cells 1 and 3, by two more. So two outputs take five products in place of six,

    B^T = 1  0 -1  0  0     G = 1  0  0      A^T = 1  1  0  1  0
          0  0  1  0  0         1  0  1            0  1  1  0  1
          0  0 -1  0  1         0  0  1
          0  1  0  0  0         0  1  0
          0  0  0  1  0         0  1  0

The sum of products is linear in inputs, filters and outputs alike. So the gradient of the filters takes the same
products, of transformed inputs and of A times the gradients of the outputs; G^T brings their sums into three taps.

(Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, section 4, has the first one; Winograd,
"Arithmetic complexity of computations", SIAM 1980, chapter IV, F(m, r) for all sizes.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .values import Vector

Row = Callable[[Sequence[Vector]], list[Vector]]


class Scheme(NamedTuple):
    """What is known of tiles while code is made.

    Attributes
    ----------
    stride : int
    places : int
        The numbers of a tile along a dimension, and as many cells that it reads. The last places share the last number
        of a filter, if they are more than its numbers.
    filters : callable
        Multiplies three taps by the rows of G that differ, given a half too.
    inputs, outputs : callable
        Multiply numbers by B^T, and by A^T.
    gradients : callable
        Multiplies the gradients of two outputs by A.
    weights : callable
        Multiplies the sums of all places by G^T, given a half too.
    """

    stride: int
    places: int
    filters: Callable[[Sequence[Vector], Vector], list[Vector]]
    inputs: Row
    outputs: Row
    gradients: Row
    weights: Callable[[Sequence[Vector], Vector], list[Vector]]

    @property
    def products(self) -> int:
        """The numbers of a tile, each of which is multiplied on its own."""
        return self.places**2


FILTER_NUMBERS = 4
"""The numbers of a transformed filter along a dimension."""


def _filters(taps: Sequence[Vector], half: Vector) -> list[Vector]:
    a, b, c = taps
    ends = a + c
    return [a, (ends + b) * half, (ends - b) * half, c]


def _inputs(cells: Sequence[Vector]) -> list[Vector]:
    a, b, c, d = cells
    return [a - c, b + c, c - b, b - d]


def _outputs(sums: Sequence[Vector]) -> list[Vector]:
    a, b, c, d = sums
    both, opposed = b + c, b - c
    return [a + both, opposed - d]


def _gradients(pair: Sequence[Vector]) -> list[Vector]:
    # The last one has the other sign than A has, and so has its sum in G^T.
    a, b = pair
    return [a, a + b, a - b, b]


def _weights(sums: Sequence[Vector], half: Vector) -> list[Vector]:
    a, b, c, d = sums
    both = (b + c) * half
    return [a + both, (b - c) * half, both - d]


def _filters_strided(taps: Sequence[Vector], half: Vector) -> list[Vector]:
    a, b, c = taps
    return [a, a + c, c, b]


def _inputs_strided(cells: Sequence[Vector]) -> list[Vector]:
    a, b, c, d, e = cells
    return [a - c, c, e - c, b, d]


def _outputs_strided(sums: Sequence[Vector]) -> list[Vector]:
    a, b, c, d, e = sums
    return [a + b + d, b + c + e]


def _gradients_strided(pair: Sequence[Vector]) -> list[Vector]:
    a, b = pair
    return [a, a + b, b, a, b]


def _weights_strided(sums: Sequence[Vector], half: Vector) -> list[Vector]:
    a, b, c, d, e = sums
    return [a + b, d + e, b + c]


SCHEMES = {
    "3x3": Scheme(1, 4, _filters, _inputs, _outputs, _gradients, _weights),
    "3x3s2": Scheme(2, 5, _filters_strided, _inputs_strided, _outputs_strided, _gradients_strided, _weights_strided),
}
"""By the names of the kernels."""
