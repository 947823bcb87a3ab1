"""The bound on the error of a library that may compute kernels of 3 x 3 by Winograd's algorithm.

cuDNN does for stride 1, and documents neither when nor by which transforms. The bound is that of F(4x4, 3x3) with the
transforms of Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016), section 4.3, which is the
largest of the public ones whose errors are usual in float32. F(2x2, 3x3), with smaller numbers, is within it.

A tile of 4 outputs along a dimension reads 6 cells. Output `i` is off by a bound in proportion to the sum over taps `t`
and cells `j` of ``sum_k |A[i, k]| |G[k, t]| |B[k, j]| |w[t]| |x[j]|``. Which output of a tile an output is, the library
does not say either. So the largest of these coefficients over `i` counts, for each tap and each distance ``j - i`` of a
cell from its output. The bound is then a plain sum, with a kernel of 7 cells in place of 3.
"""

from __future__ import annotations

from dataclasses import replace

from ..backends import Array, Backend
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from .algorithm import PlainProduct

Matrix = tuple[tuple[float, ...], ...]

# The transforms B^T, G and A^T, of absolute values.
INPUT = (
    (4, 0, 5, 0, 1, 0),
    (0, 4, 4, 1, 1, 0),
    (0, 4, 4, 1, 1, 0),
    (0, 2, 1, 2, 1, 0),
    (0, 2, 1, 2, 1, 0),
    (0, 4, 0, 5, 0, 1),
)
FILTER = ((1 / 4, 0, 0), (1 / 6,) * 3, (1 / 6,) * 3, (1 / 24, 1 / 12, 1 / 6), (1 / 24, 1 / 12, 1 / 6), (0, 0, 1))
OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, 1, 2, 2, 0), (0, 1, 1, 4, 4, 0), (0, 1, 1, 8, 8, 1))

REACH = 2
"""The farthest cells that count, before an output's window and after it."""
ROUNDINGS = 28
"""How often a number is rounded at most by the transforms of both dimensions: 4 times for the input (3 additions and a
product), 4 for the filters (2 additions, a product and a constant), 6 for the output (4 additions, a product and the
last of the sum over channels)."""
MORE = 1.1
"""gamma grows by less than this factor faster than its terms, below a million terms in float32."""


def _coefficients() -> Matrix:
    """Return, for each tap and distance, the largest coefficient, also where filters are in reverse."""
    largest = [[0.0] * 7 for _ in range(3)]
    for i, tap, j in ((i, tap, j) for i in range(4) for tap in range(3) for j in range(6)):
        distance = j - i + REACH
        value = sum(OUTPUT[i][k] * FILTER[k][tap] * INPUT[k][j] for k in range(6))
        if value:
            largest[tap][distance] = max(largest[tap][distance], value)
            largest[2 - tap][6 - distance] = max(largest[2 - tap][6 - distance], value)
    return tuple(map(tuple, largest))


COEFFICIENTS = _coefficients()


def magnitudes(kind: Kind, geometry: Geometry, backend: Backend, product: PlainProduct, a: Array, b: Array) -> Array:
    """Return what the error of a product with a kernel of 3 x 3 and stride 1 is in proportion to."""
    xp = backend.xp
    wide = replace(
        geometry,
        kernel=(7, 7),
        before=tuple(cells + REACH for cells in geometry.before),
        after=tuple(cells + REACH for cells in geometry.after),
    )
    rows = backend.asarray(COEFFICIENTS, b.dtype, backend.device_of(b))
    columns = xp.permute_dims(rows, (1, 0))
    more = MORE * (1 + ROUNDINGS / geometry.terms(kind))
    if kind == Kind.WEIGHT_GRAD:
        return more * xp.matmul(xp.matmul(rows, product(kind, wide, a, b)), columns)
    return more * product(kind, wide, a, xp.matmul(xp.matmul(columns, b), rows))
