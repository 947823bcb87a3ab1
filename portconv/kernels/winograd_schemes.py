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

How large are the products that one result is a sum of? By Cauchy and Schwarz the sum of their magnitudes is at most
the product of the norms of the transformed cells and filters that they have. Along a dimension at stride 1, an output
has the first three rows of B^T, or the last three, of which only the cells of its own window have entries, and the same
rows of G. Their largest singular values squared are 2 + sqrt(2) and 1 + sqrt(1/2): the norm is (1 + sqrt(2)) times as
large, and squared along two dimensions. At stride 2 an output has places 0, 1 and 3, or 1, 2 and 4, and both largest
singular values are (1 + sqrt(5)) / 2, so it is (3 + sqrt(5)) / 2 times.

The gradient of a tap at stride 1 has each place times an entry of G, at most 1: so the squares of A times the gradients
are at most twice theirs, and those of the cells (3 + sqrt(5)) / 2 times theirs, of which each is in two tiles at most
along a dimension. That makes sqrt(2 * 2 * (3 + sqrt(5)) / 2) = 3.24 along a dimension. At stride 2 tiles have no cell
of a tap in common, and it is (3 + sqrt(5)) / 2.

Integers wrap, and cannot be halved: so they have F(3, 3), three outputs of six products by the rule of Karatsuba for
polynomials of three terms, with no factors but 1 and -1. It is exact for integers of any width,

    B^T = 1 -1 -1  0  0     G = 1  0  0      A^T = 1  0  0  1  1  0
          0 -1  1 -1  0         0  1  0            0  1  0  1  0  1
          0  0 -1 -1  1         0  0  1            0  0  1  0  1  1
          0  1  0  0  0         1  1  0
          0  0  1  0  0         1  0  1
          0  0  0  1  0         0  1  1

(Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, section 4, has the first one; Winograd,
"Arithmetic complexity of computations", SIAM 1980, chapter IV, F(m, r) for all sizes; Weimerskirch and Paar,
"Generalizations of the Karatsuba algorithm for efficient implementations", 2006, section 3.1, the products of the last
one, of which it is the transpose.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .values import Vector

Row = Callable[[Sequence[Vector]], list[Vector]]


FILTER_NUMBERS = 4
"""The numbers of a transformed filter along a dimension, but for those of integers."""


class Scheme(NamedTuple):
    """What is known of tiles while code is made.

    Attributes
    ----------
    stride : int
    places : int
        The numbers of a tile along a dimension. The last places share the last number of a filter, if they are more
        than its numbers.
    filters : callable
        Multiplies three taps by the rows of G that differ, given a half too.
    inputs, outputs : callable
        Multiply numbers by B^T, and by A^T.
    gradients : callable
        Multiplies the gradients of two outputs by A.
    weights : callable
        Multiplies the sums of all places by G^T, given a half too.
    excess, excess_of_weights : float
        A tile's sums have at most so many times the product of the norms of a window and a filter: of the magnitudes of
        the products that an output is a sum of, or the gradient of a tap.
    """

    stride: int
    places: int
    filters: Callable[[Sequence[Vector], Any], list[Vector]]
    inputs: Row
    outputs: Row
    gradients: Row
    weights: Callable[[Sequence[Vector], Vector], list[Vector]]
    excess: float
    excess_of_weights: float
    size: int = 2
    cells: int = 0
    numbers: int = FILTER_NUMBERS

    @property
    def products(self) -> int:
        """The numbers of a tile, each of which is multiplied on its own."""
        return self.places**2


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


def _filters_whole(taps: Sequence[Vector], half: Any) -> list[Vector]:
    a, b, c = taps
    return [a, b, c, a + b, a + c, b + c]


def _inputs_whole(cells: Sequence[Vector]) -> list[Vector]:
    a, b, c, d, e = cells
    return [a - b - c, c - b - d, e - c - d, b, c, d]


def _outputs_whole(sums: Sequence[Vector]) -> list[Vector]:
    a, b, c, ab, ac, bc = sums
    return [a + ab + ac, b + ab + bc, c + ac + bc]


SCHEMES = {
    "3x3": Scheme(1, 4, _filters, _inputs, _outputs, _gradients, _weights, 5.83, 10.5, cells=4),
    "3x3s2": Scheme(
        *(2, 5, _filters_strided, _inputs_strided, _outputs_strided, _gradients_strided, _weights_strided, 6.86, 6.86),
        cells=5,
    ),
}
"""By the names of the kernels."""
WHOLE_SCHEMES = {
    "3x3": Scheme(
        *(1, 6, _filters_whole, _inputs_whole, _outputs_whole, _gradients, _weights, 1.0, 1.0),
        size=3,
        cells=5,
        numbers=6,
    ),
    "3x3s2": SCHEMES["3x3s2"],
}
"""Those of integers; gradients of filters have no tiles of these."""
