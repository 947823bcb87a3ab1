"""The numbers that a layer is timed on, the exact results, and how far from them an honest one can be.

Errors are the largest difference from the result in float64, in units of float32's epsilon times the largest magnitude
in that result. The result in float64 is portconv's own: by `direct`, whose loop over output positions has nothing in
common with what is timed but the geometry, where its windows are together less than `MOST_CELLS`; by `gemm` beyond.

Results are judged as in docs/accuracy.md, by a bound that needs no further convolution. A sum of n products is off by
at most gamma(n) * sum |a| |b|, and that sum of magnitudes is at most max |a| times the largest sum of |b| that one
output meets: of a filter's taps for the output, of a channel's for dx, of a filter's gradients for dw. Where tiles of
F(2, 3) may serve, along q dimensions of kernel 3, their intermediate sums are up to 4**q as large, and a term meets up
to 5 q roundings more. Transforms are bounded in norm alone; on the layers of the zoo they stay far below this bound. So
does TF32, which is what errors in epsilons show: the bound is there to catch what is wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..convolution import conv_backward, conv_forward
from ..spec.dtypes import gamma
from .zoo import Layer

Host = NDArray[Any]
Results = tuple[Any, ...]
"""What a pass gives: the output alone, or dx, dw and db."""

PASSES = ("forward", "backward")
EPS = float(np.finfo(np.float32).eps)

MOST_CELLS = 100_000_000
"""Up to so many cells in all windows together, `direct` computes the exact results in seconds."""


@dataclass(frozen=True)
class Exact:
    """One array in float64, and how far from it a float32 result can be by rounding, anywhere."""

    value: Host
    reach: float


@dataclass(frozen=True)
class Errors:
    """The worst of a pass's arrays.

    Attributes
    ----------
    epsilons : float
        In units of float32's epsilon times the largest magnitude in the array.
    units : float
        In units of what rounding can explain.
    """

    epsilons: float
    units: float

    @property
    def held(self) -> bool:
        return self.units <= 1  # which a nan is not


@dataclass(frozen=True)
class Problem:
    """A layer, and the float32 numbers that everything here is given; drawn from the standard normal distribution."""

    layer: Layer
    seed: int = 0

    @cached_property
    def arrays(self) -> tuple[Host, Host, Host, Host]:
        """The input, the filters, the bias, and the gradient of the output."""
        rng = np.random.default_rng(self.seed)
        layer = self.layer
        x, w, b, dout = (
            rng.standard_normal(shape, dtype=np.float32)
            for shape in (layer.x_shape, layer.w_shape, layer.w_shape[:1], layer.out_shape)
        )
        return x, w, b, dout

    @cached_property
    def exact(self) -> dict[str, tuple[Exact, ...]]:
        """The results of each pass in float64."""
        layer = self.layer
        cells = math.prod(layer.x_shape[:2]) * math.prod(layer.kernel) * math.prod(layer.out_shape[2:])
        algorithm = "direct" if cells <= MOST_CELLS else "gemm"
        x, w, b, dout = (array.astype(np.float64) for array in self.arrays)
        out, cache = conv_forward(x, w, b, **layer.options, algorithm=algorithm)
        values = (out, *conv_backward(dout, cache))
        exact = [Exact(value, reach) for value, reach in zip(values, self._reaches(), strict=True)]
        return {"forward": (exact[0],), "backward": tuple(exact[1:])}

    def _reaches(self) -> tuple[float, float, float, float]:
        """The bounds of out, dx, dw and db: see the module's words."""
        layer = self.layer
        x, w, b, dout = (np.abs(array.astype(np.float64)) for array in self.arrays)
        tiled = layer.kernel.count(3) if set(layer.stride) == {1} else 0
        filters = layer.w_shape[0] // layer.groups
        by_group = w.reshape(layer.groups, filters, -1, math.prod(layer.kernel))
        positions = layer.x_shape[0] * math.prod(layer.out_shape[2:])
        by_filter = dout.sum(axis=(0, *range(2, dout.ndim)))

        def reach(terms: int, magnitude: float) -> float:
            return 4.0**tiled * gamma(terms + 5 * tiled, EPS / 2) * magnitude

        return (
            reach(math.prod(layer.w_shape[1:]) + 1, float(x.max() * by_group.sum(axis=(2, 3)).max() + b.max())),
            reach(filters * math.prod(layer.kernel), float(dout.max() * by_group.sum(axis=(1, 3)).max())),
            reach(positions, float(x.max() * by_filter.max())),
            gamma(positions, EPS / 2) * float(by_filter.max()),
        )

    def errors(self, name: str, found: Results) -> Errors:
        """Hold the results of a pass, on the host, against the exact ones."""
        epsilons, units = [], []
        for exact, array in zip(self.exact[name], found, strict=True):
            if array.shape != exact.value.shape:
                return Errors(math.inf, math.inf)
            # The largest of differences is a nan where any is.
            off = float(np.max(np.abs(array - exact.value)))
            epsilons.append(off / (EPS * float(np.max(np.abs(exact.value)))))
            units.append(off / exact.reach)
        return Errors(float(np.max(epsilons)), float(np.max(units)))
