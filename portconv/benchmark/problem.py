"""The numbers that a layer is timed on, the exact results, and how far a correct result can be from them.

An error is the largest difference from the result in float64, in units of float32's epsilon times the largest magnitude
in that result. portconv itself computes the result in float64: by `direct` if all windows together have at most
`MOST_CELLS` cells, else by `gemm`. The loop of `direct` over output positions shares only the geometry with what is
timed.

Results are judged as in docs/accuracy.md, by a bound that needs no further convolution. A sum of n products is off by
at most gamma(n) * sum |a| |b|, and that sum of magnitudes is at most max |a| times the largest sum of |b| for any one
output: over a filter's taps for the output, over a channel's for dx, over a filter's gradients for dw. If an algorithm
may use tiles of F(2, 3) along q dimensions of kernel 3, its intermediate sums are up to 4**q as large, and a term meets
up to 5 q more roundings. Errors of Fourier transforms are bounded in norm alone; on the layers of the zoo they stay far
below this bound. So does TF32, which the errors in epsilons show: the bound is there to catch wrong results.
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
"""The result of a pass: the output alone, or dx, dw and db."""

PASSES = ("forward", "backward")
EPS = float(np.finfo(np.float32).eps)

MOST_CELLS = 100_000_000
"""The most cells in all windows together for which `direct` computes the exact results in seconds."""


@dataclass(frozen=True)
class Exact:
    """One array in float64, and how far from it any element of a float32 result can be by rounding."""

    value: Host
    reach: float


@dataclass(frozen=True)
class Errors:
    """The largest error in the arrays of a pass.

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
        return self.units <= 1  # False for a nan


@dataclass(frozen=True)
class Problem:
    """A layer and its numbers: float32, drawn from the standard normal distribution, the same for all candidates."""

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
        values: tuple[Any, ...] = (out, *conv_backward(dout, cache))
        exact = [Exact(value, reach) for value, reach in zip(values, self._reaches(), strict=True)]
        return {"forward": (exact[0],), "backward": tuple(exact[1:])}

    def _reaches(self) -> tuple[float, float, float, float]:
        """The bounds of out, dx, dw and db: see the module's docstring."""
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

    def errors(self, name: str, results: Results) -> Errors:
        """Compare the results of a pass, on the host, with the exact ones."""
        epsilons, units = [], []
        for exact, array in zip(self.exact[name], results, strict=True):
            if array.shape != exact.value.shape:
                return Errors(math.inf, math.inf)
            # If any difference is a nan, so is the largest one.
            error = float(np.max(np.abs(array - exact.value)))
            epsilons.append(error / (EPS * float(np.max(np.abs(exact.value)))))
            units.append(error / exact.reach)
        return Errors(float(np.max(epsilons)), float(np.max(units)))
