"""The independent truth: convolution as loops over positions and taps in float64, sharing nothing with the package.

And the tolerance that goes with it. A sum of n products, rounded at each step in any order, is off by at most
gamma_n * sum |a| |b| with gamma_n = n u / (1 - n u) and u = eps / 2 (Higham, "Accuracy and Stability of Numerical
Algorithms", 2nd ed., 2002, section 3.1). The sums of magnitudes come from the same loops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np


@dataclass(frozen=True)
class Problem:
    """A convolution with its padding as cells before and after, and random operands to go with it."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def out(self) -> tuple[int, ...]:
        sizes = zip(self.x[2:], self.w[2:], self.stride, self.pads, self.dilation, strict=True)
        spatial = (1 + (size + sum(pad) - (k - 1) * d - 1) // s for size, k, s, pad, d in sizes)
        return (self.x[0], self.w[0], *spatial)

    def reads(self):
        """Yield group, position, tap and the cell that the position reads through the tap, padding left out."""
        for position in product(*map(range, self.out[2:])):
            for tap in product(*map(range, self.w[2:])):
                cell = tuple(
                    o * s + k * d - pad[0]
                    for o, s, k, d, pad in zip(position, self.stride, tap, self.dilation, self.pads, strict=True)
                )
                if all(0 <= i < size for i, size in zip(cell, self.x[2:], strict=True)):
                    for group in range(self.groups):
                        yield group, position, tap, cell

    def channels(self, group: int) -> slice:
        n = self.x[1] // self.groups
        return slice(group * n, group * n + n)

    def filters(self, group: int) -> slice:
        n = self.w[0] // self.groups
        return slice(group * n, group * n + n)

    def forward(self, x, w, b=None):
        out = np.zeros(self.out, np.result_type(x, w))
        for group, position, tap, cell in self.reads():
            f, c = self.filters(group), self.channels(group)
            out[(slice(None), f, *position)] += x[(slice(None), c, *cell)] @ w[(f, slice(None), *tap)].T
        return out if b is None else out + b.reshape(-1, *[1] * len(self.x[2:]))

    def input_grad(self, dout, w):
        dx = np.zeros(self.x, np.result_type(dout, w))
        for group, position, tap, cell in self.reads():
            f, c = self.filters(group), self.channels(group)
            dx[(slice(None), c, *cell)] += dout[(slice(None), f, *position)] @ w[(f, slice(None), *tap)]
        return dx

    def weight_grad(self, dout, x):
        dw = np.zeros(self.w, np.result_type(dout, x))
        for group, position, tap, cell in self.reads():
            f, c = self.filters(group), self.channels(group)
            dw[(f, slice(None), *tap)] += dout[(slice(None), f, *position)].T @ x[(slice(None), c, *cell)]
        return dw

    def bias_grad(self, dout):
        return dout.sum(axis=(0, *range(2, dout.ndim)))

    def terms(self) -> dict[str, int]:
        """How many rounded products, and additions, an element of each result is made of."""
        taps, positions = int(np.prod(self.w[2:])), self.out[0] * int(np.prod(self.out[2:]))
        return {
            "out": self.w[1] * taps + 1,
            "dx": self.w[0] // self.groups * taps,
            "dw": positions,
            "db": positions,
        }

    def all(self, x, w, b, dout) -> dict[str, np.ndarray]:
        return {
            "out": self.forward(x, w, b),
            "dx": self.input_grad(dout, w),
            "dw": self.weight_grad(dout, x),
            "db": self.bias_grad(dout),
        }

    def bounds(self, x, w, b, dout, dtype: str) -> dict[str, np.ndarray]:
        """The largest error of each result in `dtype`, and of the loops themselves in float64, together."""
        magnitudes = self.all(*(np.abs(a) for a in (x, w, b, dout)))
        terms = self.terms()
        return {name: (gamma(terms[name], dtype) + gamma(terms[name], "float64")) * magnitudes[name] for name in terms}

    def unbatched(self) -> Problem:
        return replace(self, x=(1, *self.x[1:]))

    def operands(self, dtype: str, seed: int = 0) -> tuple[np.ndarray, ...]:
        """Random x, w, b and dout, rounded to `dtype`."""
        rng = np.random.default_rng(seed)
        shapes = (self.x, self.w, self.w[:1], self.out)
        return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def gamma(terms: int, dtype: str) -> float:
    u = float(np.finfo(dtype).eps) / 2
    return terms * u / (1 - terms * u)
