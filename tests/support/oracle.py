"""Convolution as loops over positions and taps in float64, which share nothing with the package, and its tolerance.

A sum of n products, rounded at each step in any order, is off by at most gamma_n * sum |a| |b| with
gamma_n = n u / (1 - n u) and u = eps / 2 (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., 2002,
section 3.1). The same loops compute the sums of magnitudes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

ABS_INPUT = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]])
ABS_FILTER = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 1]])
ABS_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, 1, 1]])


def computed_in_planes(w, groups, stride, dilation) -> bool:
    """Return whether kernels of this CPU may compute filters of a shape in tiles of their last two dimensions.

    Parts of 3x3 taps take 16 products for 4 outputs each, and 25 at stride 2; they are to have at most three quarters
    of all products.
    """
    if len(w) < 4 or w[:2] == (groups, 1) or min(w[-2:]) < 3 or {*dilation[-2:]} != {1} or stride[-1] != stride[-2]:
        return False
    products = {1: 16, 2: 25}.get(stride[-1], math.inf)
    return products * math.prod(-(-size // 3) for size in w[-2:]) <= 3 * math.prod(w[-2:])


@dataclass(frozen=True)
class Problem:
    """A convolution, with its padding as cells before and after, and its random operands."""

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
        """Yield each group, position and tap, and the cell that the position reads through the tap; no padding."""
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
        """Return how many rounded products and additions an element of each result has."""
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

    def bounds(self, x, w, b, dout, dtype: str, algorithm: str = "direct") -> dict[str, np.ndarray]:
        """Return the largest error of each result in `dtype`, plus that of the loops themselves in float64."""
        sizes = [np.abs(a) for a in (x, w, b, dout)]
        magnitudes, terms = self.all(*sizes), self.terms()
        of_loops = {name: gamma(terms[name], "float64") * magnitudes[name] for name in terms}
        if algorithm == "winograd":
            magnitudes, terms = magnitudes | self.tiles(*sizes), terms | self.tile_terms()
        if algorithm == "compiled" and self.in_planes:
            magnitudes, terms = magnitudes | self.planes(*sizes), terms | self.plane_terms()
        if algorithm == "fft":
            magnitudes, terms = magnitudes | self.spectra(*sizes), terms | self.spectral_terms()
        return {name: gamma(terms[name], dtype) * magnitudes[name] + of_loops[name] for name in terms}

    @property
    def tiled(self) -> bool:
        """Whether Winograd's tiles F(2, 3) can compute it."""
        ones = (1,) * len(self.stride)
        return {3} <= {*self.w[2:]} <= {1, 3} and self.stride == self.dilation == ones

    @property
    def in_planes(self) -> bool:
        """Whether kernels of this CPU may compute it in tiles of its last two dimensions."""
        return computed_in_planes(self.w, self.groups, self.stride, self.dilation)

    def plane_terms(self) -> dict[str, int]:
        """Return how many roundings a term meets in these tiles: 5 along each of two dimensions, and in the sum.

        The sum is over the channels, the taps of the dimensions before, and the parts; the bias is one more.
        """
        outer = math.prod(self.w[2:-2]) * math.prod(-(-size // 3) for size in self.w[-2:])
        terms = {"out": self.w[1] * outer + 5 * 2 + 1, "dx": self.w[0] // self.groups * outer + 5 * 2}
        # Transforms of gradients of filters round once for cells and for outputs, and twice for taps.
        return terms | ({"dw": self.terms()["dw"] + 4 * 2} if self.w[-2:] == (3, 3) else {})

    def planes(self, x, w, b, dout) -> dict[str, np.ndarray]:
        """Return sums of magnitudes no smaller than those through these tiles, for operands that are not negative.

        An output of a tile along one dimension counts its window's cells at most (2, 1, 2) times, each with a number of
        the transformed filter. That is at most the sum of the three taps. More taps are computed as parts of three.
        """
        taps, (height, width) = np.zeros(w.shape), w.shape[-2:]
        for row, column in product(range(0, height, 3), range(0, width, 3)):
            top, left = min(row, height - 3), min(column, width - 3)
            total = w[..., row : top + 3, column : left + 3].sum(axis=(-2, -1), keepdims=True)
            taps[..., top : top + 3, left : left + 3] += total * np.outer((2, 1, 2), (2, 1, 2))
        found = {"out": self.forward(x, taps, b), "dx": self.input_grad(dout, taps)}
        if (height, width) != (3, 3):
            return found
        # The gradient of the filters is the adjoint of that sum: all taps of a plane have one bound.
        grads = (self.weight_grad(dout, x) * np.outer((2, 1, 2), (2, 1, 2))).sum(axis=(-2, -1), keepdims=True)
        return found | {"dw": np.broadcast_to(grads, w.shape)}

    def tiles_anywhere(self, x, w, b, dout) -> dict[str, np.ndarray]:
        """Return sums of magnitudes no smaller than those through tiles that begin anywhere, as in parts of a call.

        As `planes` does along each dimension of kernel 3; the gradient of the filters is the adjoint.
        """
        axes = tuple(2 + axis for axis, size in enumerate(self.w[2:]) if size == 3)
        counts = math.prod(np.reshape((2, 1, 2), [3 if axis == each else 1 for axis in range(w.ndim)]) for each in axes)
        taps = w.sum(axis=axes, keepdims=True) * counts
        grads = (self.weight_grad(dout, x) * counts).sum(axis=axes, keepdims=True)
        return {
            "out": self.forward(x, taps, b),
            "dx": self.input_grad(dout, taps),
            "dw": np.broadcast_to(grads, w.shape),
        }

    def mirrored(self) -> Problem:
        """Return the convolution of dout and flipped filters that computes the input gradient."""
        group_out = self.w[0] // self.groups
        pads = tuple((k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(self.w[2:], self.pads, strict=True))
        return replace(self, x=self.out, w=(self.x[1], group_out, *self.w[2:]), pads=pads)

    def tile_terms(self) -> dict[str, int]:
        """Return the largest number of roundings that a term meets in tiles.

        Along each dimension of kernel 3, B^T rounds once, G twice and A^T twice. The product and the sum round too.
        """
        dims, tiles = self.w[2:].count(3), self.out[0] * len(list(self.tile_ranges()))
        group_out = self.w[0] // self.groups
        return {"out": self.w[1] + 5 * dims + 1, "dx": group_out + 5 * dims, "dw": tiles + 4 * dims}

    def tile_ranges(self):
        """Yield the first output of each tile."""
        return product(*(range(0, n, 2 if k == 3 else 1) for n, k in zip(self.out[2:], self.w[2:], strict=True)))

    def tiles(self, x, w, b, dout) -> dict[str, np.ndarray]:
        """Compute sums of magnitudes through Winograd's tiles, tile by tile, for operands that are not negative.

        Lavin and Gray (2016), section 4.1; |B^T|, |G| and |A^T| along each dimension of kernel 3, in one matrix.
        """
        flipped = np.flip(w, tuple(range(2, w.ndim)))
        mirrored = [np.swapaxes(flipped[self.filters(group)], 0, 1) for group in range(self.groups)]
        return {
            "out": self.tile_outputs(x, w) + b.reshape(-1, *[1] * len(self.x[2:])),
            "dx": self.mirrored().tile_outputs(dout, np.concatenate(mirrored)),
            "dw": self.tile_weights(x, dout),
        }

    def tile_cells(self, x, first, sizes):
        """Return the cells of a block from its first cell on, (N, C, cells), with zeros outside the input."""
        cells = np.zeros((*x.shape[:2], int(np.prod(sizes))))
        for i, step in enumerate(np.ndindex(*sizes)):
            cell = tuple(o + s for o, s in zip(first, step, strict=True))
            if all(0 <= at < n for at, n in zip(cell, x.shape[2:], strict=True)):
                cells[..., i] = x[(..., *cell)]
        return cells

    def tile_outputs(self, x, w):
        out = np.zeros(self.out)
        reads, steps = ([size if k == 3 else 1 for k in self.w[2:]] for size in (4, 2))
        for first in self.tile_ranges():
            start = [o - pad[0] for o, pad in zip(first, self.pads, strict=True)]
            cells = self.tile_cells(x, start, reads) @ self.transform(ABS_INPUT).T
            for group in range(self.groups):
                f, c = self.filters(group), self.channels(group)
                taps = w[f].reshape(*w[f].shape[:2], -1) @ self.transform(ABS_FILTER).T
                values = np.einsum("nck,fck->nfk", cells[:, c], taps) @ self.transform(ABS_OUTPUT).T
                for i, step in enumerate(np.ndindex(*steps)):
                    at = tuple(o + s for o, s in zip(first, step, strict=True))
                    if all(o < n for o, n in zip(at, self.out[2:], strict=True)):
                        out[(slice(None), f, *at)] = values[..., i]
        return out

    def tile_weights(self, x, dout):
        dw = np.zeros(self.w)
        reads, steps = ([size if k == 3 else 1 for k in self.w[2:]] for size in (4, 2))
        for first in self.tile_ranges():
            start = [o - pad[0] for o, pad in zip(first, self.pads, strict=True)]
            cells = self.tile_cells(x, start, reads) @ self.transform(ABS_INPUT).T
            values = self.tile_cells(dout, first, steps) @ self.transform(ABS_OUTPUT)
            for group in range(self.groups):
                f, c = self.filters(group), self.channels(group)
                places = np.einsum("nfk,nck->fck", values[:, f], cells[:, c])
                dw[f] += (places @ self.transform(ABS_FILTER)).reshape(dw[f].shape)
        return dw

    def transform(self, matrix):
        whole = np.ones((1, 1))
        for k in self.w[2:]:
            whole = np.kron(whole, matrix if k == 3 else np.ones((1, 1)))
        return whole

    def spectral_terms(self) -> dict[str, int]:
        """Return the largest number of roundings of spectra, in units of `spectra`: docs/accuracy.md derives it.

        Each of three transforms counts 12 for each doubling of the points, and 12 more because the numbers are real.
        A transform has at most as many points as the first power of 2 beyond the padded size, which is size + extent -
        1 in the mirrored convolution. The factor 1 / points is rounded twice. Each complex product of a sum counts 3;
        the sum is over channels, or over samples and tiles, which have as many outputs as a kernel has cells.
        """
        extents = [d * (k - 1) + 1 for k, d in zip(self.w[2:], self.dilation, strict=True)]
        padded = [size + sum(pad) for size, pad in zip(self.x[2:], self.pads, strict=True)]
        mirrored = [size + extent - 1 for size, extent in zip(self.x[2:], extents, strict=True)]
        there, back = (sum(36 * (math.ceil(math.log2(n + 1)) + 1) + 2 for n in sizes) for sizes in (padded, mirrored))
        tiles = self.x[0] * math.prod(math.ceil(n / e) for n, e in zip(self.out[2:], extents, strict=True))
        return {
            "out": there + 3 * self.w[1] + 1,
            "dx": back + 3 * (self.w[0] // self.groups),
            "dw": there + 3 * tiles,
        }

    def spectra(self, x, w, b, dout) -> dict[str, np.ndarray]:
        """Return norms of planes times sums of the other operand, for operands that are not negative."""
        cells = tuple(range(2, w.ndim))
        (norm_x, norm_d), (sum_w, sum_d) = (
            [np.sqrt(np.sum(a * a, cells)) for a in (x, dout)],
            [np.sum(a, cells) for a in (w, dout)],
        )
        out, dx, dw = (np.zeros(a.shape) for a in (dout, x, w))
        one = (...,) + (None,) * len(cells)
        for group in range(self.groups):
            f, c = self.filters(group), self.channels(group)
            out[:, f] = (norm_x[:, c] @ sum_w[f].T)[one]
            dx[:, c] = (norm_d[:, f] @ sum_w[f])[one]
            dw[f] = (sum_d[:, f].T @ norm_x[:, c])[one]
        return {"out": out + b.reshape(-1, *[1] * len(cells)), "dx": dx, "dw": dw}

    @property
    def dense(self) -> bool:
        """Whether the stride is 1 along all dimensions."""
        return {*self.stride} == {1}

    def serves(self, algorithm: str) -> bool:
        """Whether an algorithm can compute it, in real numbers."""
        can = {
            "winograd": self.tiled,
            "fft": self.dense,
            "depthwise": self.w[1] == 1,
            "native": len(self.w) <= 2 + 3,
        }
        return can.get(algorithm, True)

    def unbatched(self) -> Problem:
        return replace(self, x=(1, *self.x[1:]))

    def operands(self, dtype: str, seed: int = 0) -> tuple[np.ndarray, ...]:
        """Draw x, w, b and dout, rounded to `dtype`."""
        rng = np.random.default_rng(seed)
        shapes = (self.x, self.w, self.w[:1], self.out)
        return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def gamma(terms: int, dtype: str) -> float:
    u = float(np.finfo(dtype).eps) / 2
    return terms * u / (1 - terms * u)
