"""Legal calls drawn at random, what they give by plain sums over tables of cells, and how many of them are drawn.

The plain sums share nothing with the package: a table says which cell each output reads through each tap, and an einsum
does the rest, in float64, complex128, or int64 modulo 2**64.
"""

from __future__ import annotations

import functools
import math
import os
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest
from support.oracle import Problem, gamma

from portconv import backends

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis, which draws the calls, is not installed")
st = hypothesis.strategies

PROPERTIES = 16
EXAMPLES = {"default": (19, 6), "thorough": (1270, 130)}
"""How often each property is tried on NumPy, and on the others, which are slower; PORTCONV_HYPOTHESIS chooses."""
PROFILE = os.environ.get("PORTCONV_HYPOTHESIS", "default")
if PROFILE not in EXAMPLES:
    raise ValueError(f"PORTCONV_HYPOTHESIS: got {PROFILE!r}, expected {' or '.join(EXAMPLES)}")

ran: Counter[str] = Counter()
"""How many examples each property has had on NumPy."""


def for_all(target, **drawn):
    """Run the decorated check, at once, on what these strategies draw, as often as the profile asks for."""
    if target.backend.name not in backends.names():
        pytest.skip(f"{target.backend.name} compiles each shape anew, which takes minutes for shapes drawn at random")
    on_numpy = target.backend.name == "numpy"
    settings = hypothesis.settings(
        max_examples=EXAMPLES[PROFILE][0 if on_numpy else 1],
        derandomize=PROFILE == "default",
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def run(check):
        @functools.wraps(check)
        def counted(**values):
            ran[check.__qualname__.partition(".")[0]] += on_numpy
            check(**values)

        settings(hypothesis.given(**drawn)(counted))()

    return run


REAL = ("float32", "float64", "float16", "bfloat16")
COMPLEX = ("complex64", "complex128")
INTEGERS = tuple(f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u"))
HALVES = ("float16", "bfloat16")
PARTS = {"complex64": "float32", "complex128": "float64"}
COMPUTED = {**dict.fromkeys(HALVES, "float32"), **PARTS}
"""What products are computed in, and of complex numbers each of their parts."""
# A number is rounded by at most the first times itself, or by the second where it is subnormal.
ROUNDING = {
    "float16": (2.0**-11, 2.0**-25),
    "bfloat16": (2.0**-8, 2.0**-134),
    "float32": (2.0**-24, 2.0**-150),
    "float64": (0.0, 0.0),
}
NUMPY_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def kind(name):
    return "integral" if "int" in name else "complex" if name in COMPLEX else "real"


@cache
def numpy_dtype(name):
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _own(target, name):
    return numpy_dtype(name) if target.backend.name == "numpy" else getattr(target.backend.xp, name)


@cache
def dtypes_of(target):
    """The dtypes that the library has. NumPy has bfloat16 from ml_dtypes, which the other libraries' is compared in."""
    found = []
    for name in (*REAL, *COMPLEX, *INTEGERS):
        try:
            numpy_dtype(name), _own(target, name)
        except (ImportError, AttributeError):
            continue
        found.append(name)
    return tuple(found)


@cache
def common(target, *names):
    """What the library promotes these dtypes to; None where that is nothing, or of another kind."""
    if len({*names}) == 1:
        return names[0]
    xp = np if target.backend.name == "numpy" else target.backend.xp
    try:
        found = target.backend.dtype_name(xp.result_type(*(_own(target, name) for name in names)))
    except (TypeError, RuntimeError):
        return None
    return found if found in dtypes_of(target) and kind(found) in {kind(name) for name in names} else None


def wide(array):
    """`array` in the dtype that the plain sums are computed in."""
    return array.astype({"integral": "int64", "complex": "complex128", "real": "float64"}[kind(array.dtype.name)])


def rounded(values, name):
    """Plain sums in the dtype of a result; of complex ones where that is real, the real part."""
    if values.dtype.kind == "c" and name not in COMPLEX:
        values = values.real
    return values.astype(numpy_dtype(name))


def sizes(array):
    """Magnitudes; of complex numbers the sums of those of their parts."""
    return np.abs(array.real) + np.abs(array.imag) if np.iscomplexobj(array) else np.abs(array)


def contents(rng, shape, name, whole):
    """All integers there are; of floating point whole numbers from -2 to 2, or normal ones."""
    if kind(name) == "integral":
        limits = np.iinfo(name)
        return rng.integers(limits.min, limits.max, shape, name, endpoint=True)

    def part():
        return rng.integers(-2, 3, shape).astype("float64") if whole else rng.standard_normal(shape)

    return (part() + 1j * part() if kind(name) == "complex" else part()).astype(numpy_dtype(name))


def put(target, values, turned=False, swapped=False):
    """Make an array there, read-only where the library has such.

    `turned` with its axes the other way round in memory, `swapped` its bytes, where the library has such.
    """
    name, order = values.dtype.name, tuple(reversed(range(values.ndim)))
    if name == "bfloat16" and target.backend.name != "numpy":
        values = values.astype("float32")
    values = np.array(values.transpose(order) if turned else values, order="C")
    made = target.backend.asarray(values, dtype=_own(target, name), device=target.device)
    if isinstance(made, np.ndarray):
        made = made.astype(made.dtype.newbyteorder()) if swapped and name != "bfloat16" else made
        made.flags.writeable = False
    return target.backend.xp.permute_dims(made, order) if turned else made


def table(size, count, kernel, stride, dilation, pads, mode="zeros"):
    """The cell that each of `count` outputs reads through each tap along one dimension; -1 where that is a zero."""
    reads = [[o * stride + k * dilation for k in range(kernel)] for o in range(count)]
    if mode == "zeros":
        cells = [[i - pads[0] if 0 <= i - pads[0] < size else -1 for i in row] for row in reads]
    else:
        filled = np.pad(np.arange(size), pads, NUMPY_MODES[mode])
        cells = [[filled[i] for i in row] for row in reads]
    return np.array(cells, "int64").reshape(count, kernel)


@dataclass(frozen=True, eq=False)
class Plain:
    """The plain sums of one convolution, whose input has this `size`: one table for each dimension."""

    size: tuple[int, ...]
    tables: tuple[Any, ...]
    groups: int = 1

    def windows(self, x):
        """The windows (N, C, P1, K1, P2, K2, ...) of cells (N, C, S1, S2, ...)."""
        for dim, cells in enumerate(self.tables):
            axis = 2 + 2 * dim
            zero = np.zeros((*x.shape[:axis], 1, *x.shape[axis + 1 :]), x.dtype)
            x = np.take(np.concatenate([x, zero], axis), cells, axis)
        return x

    def spread(self, windows):
        """Add windows up to the cells that they are of: the adjoint."""
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
        return self.spread(np.reshape(windows, (dout.shape[0], w.shape[1] * self.groups, *windows.shape[3:])))

    def weight_grad(self, dout, x):
        dw = np.einsum(self._letters("out", "x", "w"), self._cut(dout, 1), self._cut(self.windows(x), 1))
        return np.reshape(dw, (dout.shape[1], *dw.shape[2:]))

    def _letters(self, one, other, result):
        p, k = "pqr"[: len(self.size)], "ijk"[: len(self.size)]
        letters = {"x": "ngc" + "".join(map("".join, zip(p, k, strict=True))), "out": "ngf" + p, "w": "gfc" + k}
        return f"{letters[one]},{letters[other]}->{letters[result]}"

    def _cut(self, array, axis):
        """`array` with its channels cut into groups."""
        apart = (self.groups, array.shape[axis] // self.groups)
        return np.reshape(array, (*array.shape[:axis], *apart, *array.shape[axis + 1 :]))

    @cached_property
    def most(self):
        """How many windows and taps read one cell, at most."""
        return math.prod(
            max(np.bincount(cells[cells >= 0].ravel(), minlength=1), default=0)
            for cells in map(np.asarray, self.tables)
        )


@dataclass(frozen=True)
class Call:
    """A legal call of `conv`, or of `conv_transpose`, with operands to go with it.

    Shapes are those of a batch with channels first; `options` are as a user gives them, and what stands before them is
    what they mean, worked out here.
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
    turned: bool
    swapped: bool
    seed: int

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

        Of integers because they wrap. Of whole numbers up to 2, each product, complex ones' parts included, is at most
        8; one sum has fewer than 2**15 of them (300 positions, 27 taps, 3 filters), so that it stays a whole number
        below 2**24, which float32 holds, and halves are computed in.

        Winograd's tiles along 3 dimensions hold multiples of 1/8. Of an output or `dx` they are sums of at most
        (2 * 1.5 * 3)**3 * 4 * 3 < 2**14, or 2**17 eighths. Of `dw` they are products of (2 * 2)**3 * 4 for fewer than
        900 tiles of 3 samples, times 2**3 in G^T: below 2**21, or 2**24 eighths.
        """
        return self.whole or kind(self.dtypes["x"]) == "integral"

    @property
    def tiled(self):
        """Whether Winograd's tiles can serve real numbers."""
        ones = (1,) * self.dims
        return {3} <= {*self.w[2:]} <= {1, 3} and self.stride == self.dilation == ones

    def served(self, exactly=False):
        """The algorithms that can serve it, "auto" included; `exactly` those that add up whole numbers exactly.

        "auto" may take `fft`, which does not.
        """
        kinds = {kind(self.dtypes[name]) for name in ("x", "w", "b") if name in self.dtypes}
        padded = math.prod(n + lo + hi for n, (lo, hi) in zip(self.x[2:], self.pads, strict=True))
        names = ["gemm"] if exactly else ["auto", "gemm"]
        names += ["winograd"] if self.tiled and kinds == {"real"} else []
        names += ["depthwise"] if self.w[1] == 1 else []
        # `direct` fills padding in, and `fft` has it in a transform; that of some calls is too large for any memory.
        small = self.transposed or padded < 2**20
        names += ["direct"] if small else []
        dense = {*self.stride} == {1} and small and "integral" not in kinds
        return names + (["fft"] if dense and not exactly else [])

    def operands(self):
        rng = np.random.default_rng(self.seed)
        filters = self.out[1:2]
        shapes = {"x": self.x, "w": self.w, "b": filters, "dout": self.out}
        return {name: contents(rng, shapes[name], dtype, self.whole) for name, dtype in self.dtypes.items()}

    def seen(self, array):
        """`array` (N, C, *cells) as the caller has it."""
        array = np.moveaxis(array, 1, -1) if self.channels_last else array
        return array[0] if self.unbatched else array

    def shape(self, shape):
        batch, channels, *cells = shape
        own = (*cells, channels) if self.channels_last else (channels, *cells)
        return own if self.unbatched else (batch, *own)

    def unseen(self, array):
        array = array[None] if self.unbatched else array
        return np.moveaxis(array, -1, 1) if self.channels_last else array

    def given(self, target, operands):
        """Operands as arrays there, as the caller has them."""
        return {
            name: put(target, self.seen(a) if name in ("x", "dout") else a, self.turned, self.swapped)
            for name, a in operands.items()
        }

    def truths(self, operands):
        """The plain sums for these operands."""
        found = {name: wide(a) for name, a in operands.items()}
        x, w, dout = found["x"], found["w"], found["dout"]
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
        if "b" in found:
            results["out"] = results["out"] + found["b"].reshape(-1, *[1] * self.dims)
            results["db"] = dout.sum(axis=(0, *range(2, dout.ndim)))
        return results

    def terms(self):
        """How many products each result is a sum of, at most, and the bias."""
        taps, batch = math.prod(self.w[2:]), self.x[0]
        one, other = self.w[1] * taps, self.w[0] // self.groups * self.plain.most
        out, dx = (other, one) if self.transposed else (one, other)
        positions = math.prod((self.x if self.transposed else self.out)[2:])
        return {"out": out + 1, "dx": dx, "dw": batch * positions, "db": batch * math.prod(self.out[2:])}

    def bounds(self, operands, results, used):
        """How far each result may be off by the algorithm that is `used` for it, as `oracle` says.

        `results` are (dtype computed in, dtype) by name. Each part of a complex product is one of two real products,
        ac - bd or ad + bc, so a sum of n of them has 2 n terms, and |a| |c| + |b| |d| and |a| |d| + |b| |c| are both at
        most (|a| + |b|) (|c| + |d|): the sums of magnitudes are those of real numbers |re| + |im|. A result in a dtype
        narrower than the one it is computed in is rounded once more.
        """
        magnitudes = self.truths({name: sizes(wide(a)) for name, a in operands.items()})
        terms = self.terms()
        if any(kind(name) == "complex" for name in self.dtypes.values()):
            terms = {name: 2 * n for name, n in terms.items()}
        loops = {name: gamma(terms[name], "float64") * magnitudes[name] for name in results}
        for algorithm in {*used.values()} & {"winograd", "fft"}:
            own = [name for name in results if used[name] == algorithm]
            others, their_terms = self._others(operands, algorithm)
            magnitudes |= {name: others[name] for name in own}
            terms |= {name: their_terms[name] for name in own}
        allowed = {}
        for name, (computed, own) in results.items():
            computed, own = COMPUTED.get(computed, computed), PARTS.get(own, own)
            error = gamma(terms[name], computed) * magnitudes[name]
            # Where the dtypes are the same, the last rounding is one of those counted already.
            step, least = ROUNDING[own] if own != computed else (0.0, 0.0)
            allowed[name] = loops[name] + error + step * (magnitudes[name] + error) + least
        return allowed

    def _others(self, operands, algorithm):
        """The own magnitudes and terms of `winograd` or `fft`.

        A padding of other than zeros is filled in before, and folded after.
        """
        found = {name: sizes(wide(a)) for name, a in operands.items()}
        x, dout = (found["dout"], found["x"]) if self.transposed else (found["x"], found["dout"])
        b = found.get("b", np.zeros(self.out[1]))
        pads, fold = self.pads, None
        if self.mode != "zeros":
            longer = [n + lo + hi for n, (lo, hi) in zip(self.x[2:], self.pads, strict=True)]
            along = zip(self.x[2:], longer, self.pads, strict=True)
            fold = Plain(self.x[2:], tuple(table(n, m, 1, 1, 1, pair, self.mode) for n, m, pair in along))
            x, pads = np.pad(x, ((0, 0), (0, 0), *pads), NUMPY_MODES[self.mode]), ((0, 0),) * self.dims
        problem = Problem(x.shape, self.w, self.stride, pads, self.dilation, self.groups)
        none = np.zeros(self.w[0]) if self.transposed else b
        make, count = {
            "winograd": (problem.tiles, problem.tile_terms),
            "fft": (problem.spectra, problem.spectral_terms),
        }[algorithm]
        magnitudes, terms = make(x, found["w"], none, dout), count()
        if fold is not None:
            padded = magnitudes["dx"]
            apart = [n for size in padded.shape[2:] for n in (size, 1)]
            magnitudes["dx"] = fold.spread(padded.reshape(*padded.shape[:2], *apart))
            terms["dx"] += fold.most
        if self.transposed:
            magnitudes["out"], magnitudes["dx"] = magnitudes["dx"], magnitudes["out"]
            magnitudes["out"] = magnitudes["out"] + b.reshape(-1, *[1] * self.dims)
            terms["out"], terms["dx"] = terms["dx"] + 1, terms["out"]
        return magnitudes, terms


whole_numbers = cache(st.integers)
some = cache(lambda *choices: st.sampled_from(choices))
yes = st.booleans()
seeds = st.integers(0, 2**32 - 1)
FAR = (2**31, 2**40, 2**62, 2**63, 2**70)


@st.composite
def dtypes(draw, target, names, kinds=("real", "complex", "integral"), halves=True, mixed=True):
    """A dtype for each of these operands, often the same, of kinds that go together."""
    known = [name for name in dtypes_of(target) if halves or name not in HALVES]
    of = draw(some(*kinds))
    own = [name for name in known if kind(name) == of]
    first = draw(some(*own))
    if mixed and draw(whole_numbers(0, 2)) == 0:
        others = [name for name in known if kind(name) == "real"] + own if of == "complex" else own
        # The gradient of a real output must be real: what is complex begins with x.
        found = {name: draw(some(*others)) for name in names} | {"x": first}
        if common(target, *found.values()):
            return found
    return dict.fromkeys(names, first)


def _as_given(draw, values, kinds=(tuple, list)):
    """One number where all are the same, or one each; ints of Python's or NumPy's."""
    if len({*values}) == 1 and draw(yes):
        return values[0]
    if max(values) < 2**31 and draw(whole_numbers(0, 3)) == 0:
        values = [np.int64(value) for value in values]
    return draw(some(*kinds))(values)


def _alike(draw, choices, dims):
    """A number for each dimension, often the same."""
    if draw(yes):
        return (draw(choices),) * dims
    return tuple(draw(choices) for _ in range(dims))


def _padding(draw, form, pads):
    if form == "pairs":
        return draw(some(tuple, list))(draw(some(tuple, list))(pair) for pair in pads)
    return _as_given(draw, [lo for lo, _ in pads])


def _resolved(name, size, extent, stride):
    """One dimension of a padding given by name."""
    if name == "full":
        return extent - 1, extent - 1
    if name == "valid":
        return 0, 0
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    return (total // 2, total - total // 2) if name == "same" else (total - total // 2, total // 2)


@st.composite
def calls(draw, target, whole=None, mode=None, groups=(1, 1, 2, 3), far=True, rolls=False, full=False, **about_dtypes):
    """Legal calls of `conv`.

    Parameters
    ----------
    whole : bool, optional
        Whether floating point is of whole numbers; drawn where it is None.
    mode : str, optional
        The padding mode; drawn where it is None.
    groups : tuple of int
        What the number of groups is drawn from.
    far : bool
        Whether strides, dilations and paddings may be huge where that is legal.
    rolls : bool
        Whether output and input have the same sizes.
    full : bool
        Whether the padding is "full", and the stride 1.
    **about_dtypes
        As for `dtypes`.
    """
    dims = draw(whole_numbers(1, 3))
    groups, group_in, group_out = draw(some(*groups)), draw(whole_numbers(1, 3)), draw(whole_numbers(1, 3))
    unbatched = draw(whole_numbers(0, 3)) == 0
    batch = 1 if unbatched else draw(some(1, 2, 3, 0))
    tiled = draw(whole_numbers(0, 2)) == 0
    kernel = _alike(draw, some(3, 1) if tiled else whole_numbers(1, 3), dims)
    stride = dilation = (1,) * dims
    if not tiled:
        dilation = _alike(draw, whole_numbers(1, 3), dims)
        if not (rolls or full):
            stride = _alike(draw, whole_numbers(1, 4), dims)
    mode = mode or draw(some("zeros", "zeros", "reflect", "replicate", "circular"))
    form = draw(some("none", "each", "pairs", "pairs", "valid", "full", "same", "same_lower"))
    form = "pairs" if rolls else "full" if full else form
    distance = draw(some(*FAR)) if far and draw(whole_numbers(0, 9)) == 0 else None
    if distance and not tiled:
        stride = stride if rolls or full else (distance, *stride[1:])
        dilation = tuple(distance if k == 1 else d for k, d in zip(kernel, dilation, strict=True))
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    least = 1 if mode != "zeros" or rolls or form.startswith("same") else 0
    most = (6, 6, 4)[dims - 1]
    size = [draw(whole_numbers(least, most)) for _ in range(dims)]
    pads = [(0, 0)] * dims
    if rolls:
        pads = [(lo, e - 1 - lo) for e in extents for lo in [draw(whole_numbers(0, e - 1))]]
    elif form == "pairs":
        side = whole_numbers(0, (5, 3, 1)[dims - 1])
        pads = [(draw(side), draw(side)) for _ in range(dims)]
        if distance == 2**40 and not tiled and mode == "zeros":
            pads[0] = (distance, pads[0][1])
    elif form == "each":
        pads = [(lo, lo) for lo in _alike(draw, whole_numbers(0, (4, 2, 1)[dims - 1]), dims)]

    def resolved():
        named = form in ("valid", "full", "same", "same_lower")
        found = [_resolved(form, *each) for each in zip(size, extents, stride, strict=True)] if named else pads
        # What is too small for the kernel grows to it.
        for dim, (lo, hi) in enumerate(found):
            size[dim] += max(0, extents[dim] - size[dim] - lo - hi)
        along = zip(size, found, extents, stride, strict=True)
        return found, [(n + lo + hi - e) // s + 1 for n, (lo, hi), e, s in along]

    found, out = resolved()
    while math.prod(out) > 300 and not full:
        stride = tuple(s + (n == max(out)) for s, n in zip(stride, out, strict=True))
        found, out = resolved()
    options = {
        "stride": _as_given(draw, stride),
        "padding": form if form not in ("none", "each", "pairs") else _padding(draw, form, found),
        "dilation": _as_given(draw, dilation),
        "groups": groups,
        "padding_mode": mode,
        "data_format": "channels_last" if (last := draw(yes)) else "channels_first",
    }
    usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"}
    if draw(yes):
        options = {name: value for name, value in options.items() if not _is(value, usual.get(name))}
    names = ("x", "w", "b", "dout") if draw(yes) else ("x", "w", "dout")
    return Call(
        x=(batch, groups * group_in, *size),
        w=(groups * group_out, group_in, *kernel),
        out=(batch, groups * group_out, *out),
        stride=stride,
        dilation=dilation,
        pads=tuple(found),
        groups=groups,
        mode=mode,
        channels_last=last,
        unbatched=unbatched,
        transposed=False,
        options=options,
        **_contents(draw, target, names, whole, about_dtypes),
    )


def _is(value, usual):
    return isinstance(value, (int, str)) and value == usual


def _contents(draw, target, names, whole, about_dtypes):
    return {
        "dtypes": draw(dtypes(target, names, **about_dtypes)),
        "whole": draw(yes) if whole is None else whole,
        "turned": draw(whole_numbers(0, 3)) == 0,
        "swapped": draw(whole_numbers(0, 7)) == 0,
        "seed": draw(seeds),
    }


@st.composite
def transposed_calls(draw, target, whole=None, bare=False, far=True, **about_dtypes):
    """Legal calls of `conv_transpose`; `bare` without padding, of the output too."""
    dims = draw(whole_numbers(1, 3))
    groups, group_in, group_out = draw(some(1, 1, 2, 3)), draw(whole_numbers(1, 3)), draw(whole_numbers(1, 3))
    unbatched = draw(whole_numbers(0, 3)) == 0
    batch = 1 if unbatched else draw(some(1, 2, 3, 0))
    tiled = draw(whole_numbers(0, 3)) == 0
    kernel = _alike(draw, some(3, 1) if tiled else whole_numbers(1, 3), dims)
    stride = dilation = (1,) * dims
    if not tiled:
        stride, dilation = _alike(draw, whole_numbers(1, 3), dims), _alike(draw, whole_numbers(1, 3), dims)
    size = [draw(whole_numbers(1, (6, 4, 3)[dims - 1])) for _ in range(dims)]
    more = (
        [0] * dims if bare else [draw(whole_numbers(0, max(each) - 1)) for each in zip(stride, dilation, strict=True)]
    )
    if far and draw(whole_numbers(0, 9)) == 0:
        distance = draw(some(*FAR))
        stride = tuple(distance if n == 1 else s for n, s in zip(size, stride, strict=True))
        dilation = tuple(distance if k == 1 else d for k, d in zip(kernel, dilation, strict=True))
    sides = zip(size, stride, dilation, kernel, more, strict=True)
    whole_out = [(n - 1) * s + d * (k - 1) + 1 + extra for n, s, d, k, extra in sides]
    form = "none" if bare else draw(some("none", "each", "pairs", "pairs"))
    pads = [(0, 0)] * dims
    if form == "pairs":
        pads = [
            (lo, draw(whole_numbers(0, min(4, n - 1 - lo))))
            for n in whole_out
            for lo in [draw(whole_numbers(0, min(4, n - 1)))]
        ]
    elif form == "each":
        pads = [(lo, lo) for n in whole_out for lo in [draw(whole_numbers(0, min(3, (n - 1) // 2)))]]
    out = [n - lo - hi for n, (lo, hi) in zip(whole_out, pads, strict=True)]
    options = {
        "stride": _as_given(draw, stride),
        "padding": _padding(draw, form, pads),
        "output_padding": _as_given(draw, more),
        "dilation": _as_given(draw, dilation),
        "groups": groups,
        "data_format": "channels_last" if (last := draw(yes)) else "channels_first",
    }
    usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0}
    if draw(yes):
        options = {name: value for name, value in options.items() if not _is(value, usual.get(name))}
    names = ("x", "w", "b", "dout") if draw(yes) else ("x", "w", "dout")
    return Call(
        x=(batch, groups * group_in, *size),
        w=(groups * group_in, group_out, *kernel),
        out=(batch, groups * group_out, *out),
        stride=stride,
        dilation=dilation,
        pads=tuple(pads),
        groups=groups,
        mode="zeros",
        channels_last=last,
        unbatched=unbatched,
        transposed=True,
        options=options,
        **_contents(draw, target, names, whole, about_dtypes),
    )
