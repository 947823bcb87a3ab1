"""The plain sums of a call, from tables of the cells that each output reads, and how far a result may be from them.

They share nothing with the package: a table says which cell each output reads through each tap, and an einsum computes
the sums in float64, complex128, or int64 modulo 2**64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from support.oracle import Problem, computed_in_planes, gamma

REAL = ("float32", "float64", "float16", "bfloat16")
COMPLEX = ("complex64", "complex128")
INTEGERS = tuple(f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u"))
HALVES = ("float16", "bfloat16")
PARTS = {"complex64": "float32", "complex128": "float64"}
COMPUTED = {**dict.fromkeys(HALVES, "float32"), **PARTS}
"""The dtype that products are computed in; for complex numbers, that of each part."""
ROUNDING = {
    "float16": (2.0**-11, 2.0**-25),
    "bfloat16": (2.0**-8, 2.0**-134),
    "float32": (2.0**-24, 2.0**-150),
    "float64": (0.0, 0.0),
}
"""Rounding changes a number by at most the first times itself, or by the second if it is subnormal."""
NUMPY_MODES = {"reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "circular": "wrap"}


def kind(name):
    return "integral" if "int" in name else "complex" if name in COMPLEX else "real"


@cache
def numpy_dtype(name):
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _dtype_of(target, name):
    return numpy_dtype(name) if target.backend.name == "numpy" else getattr(target.backend.xp, name)


@cache
def dtypes_of(target):
    """List the dtypes that the library has, and that NumPy has too, because the comparison needs them."""
    names = []
    for name in (*REAL, *COMPLEX, *INTEGERS):
        try:
            numpy_dtype(name), _dtype_of(target, name)
        except (ImportError, AttributeError):
            continue
        names.append(name)
    return tuple(names)


@cache
def common(target, *names):
    """Return the dtype that the library promotes these to; None if it has none, or one of another kind."""
    if len({*names}) == 1:
        return names[0]
    xp = np if target.backend.name == "numpy" else target.backend.xp
    try:
        result = target.backend.dtype_name(xp.result_type(*(_dtype_of(target, name) for name in names)))
    except (TypeError, RuntimeError):
        return None
    return result if result in dtypes_of(target) and kind(result) in {kind(name) for name in names} else None


def wide(array):
    """Return `array` in the dtype of the plain sums."""
    return array.astype({"integral": "int64", "complex": "complex128", "real": "float64"}[kind(array.dtype.name)])


def rounded(values, name):
    """Return plain sums in the dtype of a result; if that is real, the real part of complex sums."""
    if values.dtype.kind == "c" and name not in COMPLEX:
        values = values.real
    return values.astype(numpy_dtype(name))


def sizes(array):
    """Return magnitudes; for complex numbers, the sum of the magnitudes of both parts."""
    return np.abs(array.real) + np.abs(array.imag) if np.iscomplexobj(array) else np.abs(array)


def contents(rng, shape, name, whole, spread=0):
    """Draw integers over their full range, and floating-point numbers: from -2 to 2 if `whole`, else normal ones.

    Normal ones are multiplied by powers of 2 with exponents from -spread to 0.
    """
    if kind(name) == "integral":
        limits = np.iinfo(name)
        return rng.integers(limits.min, limits.max, shape, name, endpoint=True)

    def part():
        if whole:
            return rng.integers(-2, 3, shape).astype("float64")
        return np.ldexp(rng.standard_normal(shape), -rng.integers(0, spread, shape, endpoint=True))

    return (part() + 1j * part() if kind(name) == "complex" else part()).astype(numpy_dtype(name))


def put(target, values, reversed_axes=False, swapped=False):
    """Make an array of the library, which is read-only if the library has such arrays.

    With `reversed_axes` its axes are in reverse order in memory. With `swapped` it has the other byte order, if the
    library has that.
    """
    name, order = values.dtype.name, tuple(reversed(range(values.ndim)))
    if name == "bfloat16" and target.backend.name != "numpy":
        values = values.astype("float32")
    values = np.array(values.transpose(order) if reversed_axes else values, order="C")
    array = target.backend.asarray(values, dtype=_dtype_of(target, name), device=target.device)
    if isinstance(array, np.ndarray):
        array = array.astype(array.dtype.newbyteorder()) if swapped and name != "bfloat16" else array
        array.flags.writeable = False
    return target.backend.xp.permute_dims(array, order) if reversed_axes else array


def table(size, count, kernel, stride, dilation, pads, mode="zeros"):
    """Return the cell that each of `count` outputs reads through each tap along one dimension; -1 for a zero."""
    reads = [[o * stride + k * dilation for k in range(kernel)] for o in range(count)]
    if mode == "zeros":
        cells = [[i - pads[0] if 0 <= i - pads[0] < size else -1 for i in row] for row in reads]
    else:
        filled = np.pad(np.arange(size), pads, NUMPY_MODES[mode])
        cells = [[filled[i] for i in row] for row in reads]
    return np.array(cells, "int64").reshape(count, kernel)


@dataclass(frozen=True, eq=False)
class Plain:
    """The plain sums of one convolution, with the spatial `size` of its input and one table for each dimension."""

    size: tuple[int, ...]
    tables: tuple[Any, ...]
    groups: int = 1

    def windows(self, x):
        """Return the windows (N, C, P1, K1, P2, K2, ...) of cells (N, C, S1, S2, ...)."""
        for dim, cells in enumerate(self.tables):
            axis = 2 + 2 * dim
            zero = np.zeros((*x.shape[:axis], 1, *x.shape[axis + 1 :]), x.dtype)
            x = np.take(np.concatenate([x, zero], axis), cells, axis)
        return x

    def add_windows(self, windows):
        """Add windows up to their cells: the adjoint of `windows`."""
        for dim, cells in reversed([*enumerate(self.tables)]):
            axis = 2 + 2 * dim
            flat = np.reshape(windows, (*windows.shape[:axis], cells.size, *windows.shape[axis + 2 :]))
            flat = np.moveaxis(flat, axis, 0)
            sums = np.zeros((self.size[dim] + 1, *flat.shape[1:]), windows.dtype)
            np.add.at(sums, cells.ravel(), flat)
            windows = np.moveaxis(sums[:-1], 0, axis)
        return windows

    def forward(self, x, w):
        out = np.einsum(self._letters("x", "w", "out"), self._cut(self.windows(x), 1), self._cut(w, 0))
        return np.reshape(out, (x.shape[0], w.shape[0], *out.shape[3:]))

    def input_grad(self, dout, w):
        windows = np.einsum(self._letters("out", "w", "x"), self._cut(dout, 1), self._cut(w, 0))
        return self.add_windows(np.reshape(windows, (dout.shape[0], w.shape[1] * self.groups, *windows.shape[3:])))

    def weight_grad(self, dout, x):
        dw = np.einsum(self._letters("out", "x", "w"), self._cut(dout, 1), self._cut(self.windows(x), 1))
        return np.reshape(dw, (dout.shape[1], *dw.shape[2:]))

    def _letters(self, one, other, result):
        p, k = "pqr"[: len(self.size)], "ijk"[: len(self.size)]
        letters = {"x": "ngc" + "".join(map("".join, zip(p, k, strict=True))), "out": "ngf" + p, "w": "gfc" + k}
        return f"{letters[one]},{letters[other]}->{letters[result]}"

    def _cut(self, array, axis):
        """Cut the channels of an array into groups."""
        groups = (self.groups, array.shape[axis] // self.groups)
        return np.reshape(array, (*array.shape[:axis], *groups, *array.shape[axis + 1 :]))

    @cached_property
    def most_reads(self):
        """How often one cell is read by windows and taps, at most."""
        return math.prod(
            max(np.bincount(cells[cells >= 0].ravel(), minlength=1), default=0)
            for cells in map(np.asarray, self.tables)
        )


@dataclass(frozen=True)
class Call:
    """A legal call of `conv` or `conv_transpose`, and its operands.

    Shapes are those of a batch with channels first. `options` are as a user gives them; the fields before are what they
    mean, computed here. Numbers are spread over `spread` powers of 2, and `limit` is a `workspace_limit` in bytes.
    """

    x: tuple[int, ...]
    w: tuple[int, ...]
    out: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    groups: int
    mode: str
    channels_last: bool
    unbatched: bool
    transposed: bool
    options: dict[str, Any]
    dtypes: dict[str, str]
    whole: bool
    reversed_axes: bool
    swapped: bool
    seed: int
    spread: int = 0
    limit: int | None = None

    @cached_property
    def plain(self):
        cells, positions = (self.out, self.x) if self.transposed else (self.x, self.out)
        along = zip(cells[2:], positions[2:], self.w[2:], self.stride, self.dilation, self.pads, strict=True)
        return Plain(cells[2:], tuple(table(*each, self.mode) for each in along), self.groups)

    @property
    def dims(self):
        return len(self.w) - 2

    @property
    def exact(self):
        """Whether every sum is exact in any order, so that a result is the plain sum, rounded once.

        Sums of integers are exact because they wrap. With whole numbers up to 2, each product is at most 8, also for
        the parts of complex numbers. One sum has fewer than 2**15 products (300 positions, 27 taps, 3 filters), so it
        stays a whole number below 2**24. float32 holds that, and float16 and bfloat16 are computed in float32.

        Winograd's tiles along 3 dimensions hold multiples of 1/8. For an output or `dx` they are sums of at most
        (2 * 1.5 * 3)**3 * 4 * 3 < 2**14, or 2**17 eighths. For `dw` they are products of (2 * 2)**3 * 4 for fewer than
        900 tiles of 3 samples, times 2**3 in G^T: below 2**21, or 2**24 eighths. `compiled` has tiles along 2
        dimensions, and adds them up over at most three taps of the other one, so its sums are smaller.
        """
        return self.whole or kind(self.dtypes["x"]) == "integral"

    @property
    def tiled(self):
        """Whether Winograd's tiles can compute it in real numbers."""
        ones = (1,) * self.dims
        return {3} <= {*self.w[2:]} <= {1, 3} and self.stride == self.dilation == ones

    @property
    def in_planes(self):
        """Whether kernels of this CPU may compute it in tiles of its last two dimensions."""
        return computed_in_planes(self.w, self.groups, self.stride, self.dilation)

    def algorithms(self, exactly=False):
        """List the algorithms that can compute it, with "auto"; `exactly` for those that add up whole numbers exactly.

        "auto" may take `fft`, which does not.
        """
        kinds = {kind(self.dtypes[name]) for name in ("x", "w", "b") if name in self.dtypes}
        padded = math.prod(n + lo + hi for n, (lo, hi) in zip(self.x[2:], self.pads, strict=True))
        names = ["gemm"] if exactly else ["auto", "gemm"]
        names += ["winograd"] if self.tiled and kinds == {"real"} else []
        names += ["depthwise"] if self.w[1] == 1 else []
        # `direct` and `fft` make an array with the padding, which for some calls fits in no memory.
        small = self.transposed or padded < 2**20
        names += ["direct"] if small else []
        dense = {*self.stride} == {1} and small and "integral" not in kinds
        return names + (["fft"] if dense and not exactly else [])

    def operands(self):
        rng = np.random.default_rng(self.seed)
        filters = self.out[1:2]
        shapes = {"x": self.x, "w": self.w, "b": filters, "dout": self.out}
        return {
            name: contents(rng, shapes[name], dtype, self.whole, self.spread) for name, dtype in self.dtypes.items()
        }

    def in_layout(self, array):
        """Convert an array (N, C, *cells) to the caller's layout."""
        array = np.moveaxis(array, 1, -1) if self.channels_last else array
        return array[0] if self.unbatched else array

    def shape(self, shape):
        batch, channels, *cells = shape
        sample = (*cells, channels) if self.channels_last else (channels, *cells)
        return sample if self.unbatched else (batch, *sample)

    def from_layout(self, array):
        """Convert an array from the caller's layout to (N, C, *cells)."""
        array = array[None] if self.unbatched else array
        return np.moveaxis(array, -1, 1) if self.channels_last else array

    def arguments(self, target, operands):
        """Make the operands arrays of the library, in the caller's layout."""
        return {
            name: put(target, self.in_layout(a) if name in ("x", "dout") else a, self.reversed_axes, self.swapped)
            for name, a in operands.items()
        }

    def truths(self, operands):
        """Compute the plain sums of these operands."""
        wides = {name: wide(a) for name, a in operands.items()}
        x, w, dout = wides["x"], wides["w"], wides["dout"]
        if self.transposed:
            results = {
                "out": self.plain.input_grad(x, w),
                "dx": self.plain.forward(dout, w.conj()),
                "dw": self.plain.weight_grad(x.conj(), dout),
            }
        else:
            results = {
                "out": self.plain.forward(x, w),
                "dx": self.plain.input_grad(dout, w.conj()),
                "dw": self.plain.weight_grad(dout, x.conj()),
            }
        if "b" in wides:
            results["out"] = results["out"] + wides["b"].reshape(-1, *[1] * self.dims)
            results["db"] = dout.sum(axis=(0, *range(2, dout.ndim)))
        return results

    def terms(self):
        """Return the largest number of terms in a sum of each result; the bias counts as one."""
        taps, batch = math.prod(self.w[2:]), self.x[0]
        one, other = self.w[1] * taps, self.w[0] // self.groups * self.plain.most_reads
        out, dx = (other, one) if self.transposed else (one, other)
        positions = math.prod((self.x if self.transposed else self.out)[2:])
        return {"out": out + 1, "dx": dx, "dw": batch * positions, "db": batch * math.prod(self.out[2:])}

    def bounds(self, operands, results, used):
        """Bound the error of each result for the algorithm that is `used` for it, as `oracle` does.

        `results` has for each name the dtype of the computation and that of the result. Each part of a complex product
        is one of two real products, ac - bd or ad + bc, so a sum of n of them has 2 n terms. |a| |c| + |b| |d| and
        |a| |d| + |b| |c| are both at most (|a| + |b|) (|c| + |d|), so the sums of magnitudes are those of the real
        numbers |re| + |im|. A result in a narrower dtype than the one of the computation is rounded once more. Where
        several algorithms are used for the parts of a result, any of their bounds may be the largest.
        """
        plain = self.truths({name: sizes(wide(a)) for name, a in operands.items()}), self.terms()
        is_complex = any(kind(name) == "complex" for name in self.dtypes.values())
        own = {"winograd", "fft"} | ({"compiled"} if self.in_planes else set())
        special = {name: self._sums_of(name, operands) for name in own & set().union(*used.values())}
        for _, terms in (plain, *special.values()) if is_complex else ():
            terms.update({name: 2 * n for name, n in terms.items()})
        allowed = {}
        for name, (computed, final) in results.items():
            computed, final = COMPUTED.get(computed, computed), PARTS.get(final, final)
            # If the dtypes are equal, the terms already count the last rounding.
            step, least = ROUNDING[final] if final != computed else (0.0, 0.0)
            most = 0.0
            for algorithm in used[name]:
                magnitudes, terms = special.get(algorithm, plain) if name != "db" else plain
                error = gamma(terms[name], computed) * magnitudes[name]
                most = np.maximum(most, error + step * (magnitudes[name] + error))
            allowed[name] = gamma(plain[1][name], "float64") * plain[0][name] + most + least
        return allowed

    def _sums_of(self, algorithm, operands):
        """Return the magnitudes and terms of the sums that `winograd`, `fft` or `compiled` computes.

        Padding other than zeros is filled in before, and its gradient is added to the repeated cells after.
        """
        magnitudes = {name: sizes(wide(a)) for name, a in operands.items()}
        x, dout = (magnitudes["dout"], magnitudes["x"]) if self.transposed else (magnitudes["x"], magnitudes["dout"])
        w, b = magnitudes["w"], magnitudes.get("b", np.zeros(self.out[1]))
        pads, fold = self.pads, None
        if self.mode != "zeros":
            longer = [n + lo + hi for n, (lo, hi) in zip(self.x[2:], self.pads, strict=True)]
            along = zip(self.x[2:], longer, self.pads, strict=True)
            fold = Plain(self.x[2:], tuple(table(n, m, 1, 1, 1, pair, self.mode) for n, m, pair in along))
            x, pads = np.pad(x, ((0, 0), (0, 0), *pads), NUMPY_MODES[self.mode]), ((0, 0),) * self.dims
        problem = Problem(x.shape, self.w, self.stride, pads, self.dilation, self.groups)
        none = np.zeros(self.w[0]) if self.transposed else b
        make, count = {
            # Within a limit, parts of a call may begin at any position.
            "winograd": (problem.tiles if self.limit is None else problem.tiles_anywhere, problem.tile_terms),
            "fft": (problem.spectra, problem.spectral_terms),
            "compiled": (problem.planes, problem.plane_terms),
        }[algorithm]
        # A transposed call may add cells at the end of its output that are far enough for one more position, if that
        # were an input: it would be zero.
        given = dout.shape
        dout = np.pad(dout, [(0, max(0, m - n)) for n, m in zip(given, problem.out, strict=True)])
        magnitudes, terms = make(x, w, none, dout), count()
        magnitudes["out"] = magnitudes["out"][tuple(map(slice, given))]
        if fold is not None:
            padded = magnitudes["dx"]
            windows = [n for size in padded.shape[2:] for n in (size, 1)]
            magnitudes["dx"] = fold.add_windows(padded.reshape(*padded.shape[:2], *windows))
            terms["dx"] += fold.most_reads
        if self.transposed:
            magnitudes["out"], magnitudes["dx"] = magnitudes["dx"], magnitudes["out"]
            magnitudes["out"] = magnitudes["out"] + b.reshape(-1, *[1] * self.dims)
            terms["out"], terms["dx"] = terms["dx"] + 1, terms["out"]
        return magnitudes, terms
