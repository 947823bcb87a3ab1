"""Run each feature on each array library, and write the outcomes to docs/features.md.

``python docs/features.py`` writes the table; with ``--check`` it prints how the file differs from this run, and exits
with 1 if it does. A feature counts only if every result equals to the last bit what loops in NumPy give, which share
nothing with the package. Operands are whole numbers, so that sums are exact in any order.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import portconv
from portconv import backends, cs231n

FILE = Path(__file__).with_suffix(".md")
REQUIRED = {
    "array_api_strict": "array-api-strict",
    "torch": "torch",
    "jax": "jax",
    "dask": "dask[array]",
    "ml_dtypes": "ml_dtypes",
    "scipy": "scipy",
}
"""The modules that are needed, and the packages that have them: without one, a column or a cell would be missing."""
TITLES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "array_api_strict": "array-api-strict",
    "jax": "JAX",
    "dask": "Dask",
    "cupy": "CuPy",
}
YES, NONE, NOT_RUN = "yes", "\N{EN DASH}", "not run"
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
INTRODUCTION = """\
# What works where

`python docs/features.py` ran each feature on each library and wrote this page. Do not edit the page: run that again.
`python docs/features.py --check` runs everything, writes nothing, and prints what has changed.

"yes" means that the call ran on arrays of that library, that every result had the right values, shape, dtype, library
and device, and that the arguments had not changed. The values are whole numbers, and equal exactly those of loops in
NumPy that share nothing with portconv. A dash, with its reason below the table, means that the library itself does not
have the feature. Libraries run on the CPU.

The CuPy column runs only on a GPU; without one it says "not run". Its `native` is cuDNN,
which the extra `cudnn` installs.
"""

Array = Any
Host = Any
"""A NumPy array; NumPy's types do not cover how these are indexed."""
Index = Any
Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


class Wrong(Exception):
    """A library's result is wrong; the message says how."""


def wide(values: Host) -> Host:
    """Return `values` in the arithmetic of the loops: float64, complex128, or integers modulo 2**64."""
    kind = values.dtype.kind
    return values.astype({"c": "complex128", "i": "uint64", "u": "uint64"}.get(kind, "float64"))


def narrow(values: Host, dtype: str) -> Host:
    """Round expected values once to `dtype`: modulo 2**bits for integers, the real part for real dtypes."""
    if values.dtype.kind == "c" and not dtype.startswith("complex"):
        values = values.real
    return values.astype(host_dtype(dtype))


def host_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype of that name; bfloat16 is the one of ml_dtypes."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@dataclass(frozen=True)
class Loops:
    """A convolution as loops; all arrays are in the arithmetic of `wide`, have a batch axis, and channels first.

    `read[p, k]` is the number of the cell that window `p` reads through tap `k`; the number after that of the last cell
    stands for the number `around` the input.
    """

    x: Ints
    w: Ints
    groups: int
    read: Host
    places: Ints
    around: int = 0

    @classmethod
    def of(
        cls, x: Ints, w: Ints, stride: Ints, pads: Pairs, dilation: Ints, groups: int, mode: str, around: int
    ) -> Loops:
        """List the cells that each window of a padded input reads."""
        cells = math.prod(x[2:])
        numbers = np.arange(cells).reshape(x[2:])
        if mode in ("zeros", "constant"):
            padded = np.pad(numbers, pads, constant_values=cells)
        else:
            padded = np.pad(numbers, pads, mode={"replicate": "edge", "circular": "wrap"}.get(mode, mode))  # type: ignore[call-overload]
        extent = [d * (k - 1) + 1 for d, k in zip(dilation, w[2:], strict=True)]
        places = tuple((n - e) // s + 1 for n, e, s in zip(padded.shape, extent, stride, strict=True))
        read = []
        for place in np.ndindex(*places):
            sides = zip(place, stride, extent, dilation, strict=True)
            read.append(padded[tuple(slice(o * s, o * s + e, d) for o, s, e, d in sides)].ravel())
        return cls(x, w, groups, np.array(read), places, around)

    def parts(self) -> list[tuple[int, slice]]:
        """List each filter, and the channels that it reads."""
        filters, channels = self.w[0] // self.groups, self.x[1] // self.groups
        return [(f, slice(f // filters * channels, (f // filters + 1) * channels)) for f in range(self.w[0])]

    def out(self, x: Host, w: Host, b: Host | None = None) -> Host:
        flat = self._with_number(x)
        out = np.zeros((self.x[0], self.w[0], len(self.read)), x.dtype)
        for p, window in enumerate(self.read):
            for f, channels in self.parts():
                out[:, f, p] = (flat[:, channels][..., window] * self._taps(w)[f]).sum(axis=(1, 2))
        out = out if b is None else out + b[:, None]
        return out.reshape(self.x[0], self.w[0], *self.places)

    def dx(self, dout: Host, w: Host) -> Host:
        dout = self._by_window(dout)
        dx = np.zeros((*self.x[:2], math.prod(self.x[2:]) + 1), dout.dtype)
        for p, window in enumerate(self.read):
            cells: Index = (..., window)
            for f, channels in self.parts():
                # One window may read a cell several times, if the padding repeats it.
                np.add.at(dx[:, channels], cells, dout[:, f, p, None, None] * np.conj(self._taps(w)[f]))
        return dx[..., :-1].reshape(self.x)

    def dw(self, dout: Host, x: Host) -> Host:
        flat, dout = self._with_number(x), self._by_window(dout)
        dw = np.zeros((*self.w[:2], math.prod(self.w[2:])), dout.dtype)
        for p, window in enumerate(self.read):
            for f, channels in self.parts():
                dw[f] += (dout[:, f, p, None, None] * np.conj(flat[:, channels][..., window])).sum(axis=0)
        return dw.reshape(self.w)

    def columns(self, x: Host) -> Host:
        """Return every window as a column, as `unfold` does."""
        windows, taps = self.read.shape
        return np.swapaxes(self._with_number(x)[..., self.read], -1, -2).reshape(self.x[0], self.x[1] * taps, windows)

    def added(self, columns: Host) -> Host:
        """Add every column to the cells of its window, as `fold` does."""
        values = columns.reshape(*self.x[:2], self.read.shape[1], len(self.read))
        x = np.zeros((*self.x[:2], math.prod(self.x[2:]) + 1), columns.dtype)
        for p, window in enumerate(self.read):
            cells: Index = (..., window)
            np.add.at(x, cells, values[..., p])
        return x[..., :-1].reshape(self.x)

    def _with_number(self, x: Host) -> Host:
        cells = x.reshape(*self.x[:2], math.prod(self.x[2:]))
        return np.concatenate([cells, np.full((*self.x[:2], 1), self.around, x.dtype)], axis=2)

    def _by_window(self, dout: Host) -> Host:
        return dout.reshape(self.x[0], self.w[0], len(self.read))

    def _taps(self, w: Host) -> Host:
        return w.reshape(*self.w[:2], -1)


def db(dout: Host) -> Host:
    """Add up the gradient of the output over all but its channels."""
    return dout.sum(axis=(0, *range(2, dout.ndim)))


@dataclass(frozen=True)
class TransposedLoops:
    """A transposed convolution as loops: each cell of the input adds to a window of the output."""

    x: Ints
    w: Ints
    stride: Ints
    pads: Pairs
    output_padding: Ints
    dilation: Ints
    groups: int
    wraps: bool = False

    @property
    def full(self) -> Ints:
        """The sizes of the output before the padding is cut off."""
        sides = zip(self.x[2:], self.w[2:], self.stride, self.dilation, self.output_padding, strict=True)
        return tuple((n - 1) * s + d * (k - 1) + 1 + extra for n, k, s, d, extra in sides)

    @property
    def kept(self) -> Index:
        """The index of the full output that cuts off the padding."""
        return (..., *(slice(lo, n - hi) for n, (lo, hi) in zip(self.full, self.pads, strict=True)))

    @property
    def places(self) -> Index:
        """Where each cell of the full output belongs in what is kept, where it wraps around."""
        sides = zip(self.full, self.pads, strict=True)
        return (slice(None), slice(None), *np.ix_(*((np.arange(n) - lo) % (n - lo - hi) for n, (lo, hi) in sides)))

    def parts(self) -> list[tuple[int, slice, tuple[slice, ...], Ints]]:
        """List each channel of each cell, the filters that read it, and the window that it adds to."""
        parts = []
        channels, filters = self.x[1] // self.groups, self.w[1]
        for cell in np.ndindex(*self.x[2:]):
            sides = zip(cell, self.w[2:], self.stride, self.dilation, strict=True)
            window = tuple(slice(i * s, i * s + d * (k - 1) + 1, d) for i, k, s, d in sides)
            for c in range(self.x[1]):
                first = c // channels * filters
                parts.append((c, slice(first, first + filters), window, cell))
        return parts

    def out(self, x: Host, w: Host, b: Host | None = None) -> Host:
        out = np.zeros((self.x[0], self.w[1] * self.groups, *self.full), x.dtype)
        for c, filters, window, cell in self.parts():
            out[(slice(None), filters, *window)] += self._number(x[(slice(None), c, *cell)]) * w[c]
        cut = out[self.kept]
        if self.wraps:
            full, out = out, np.zeros_like(cut)
            np.add.at(out, self.places, full)
        else:
            out = cut
        return out if b is None else out + b.reshape(-1, *(1,) * len(self.full))

    def dx(self, dout: Host, w: Host) -> Host:
        grad, dx = self._full(dout), np.zeros(self.x, dout.dtype)
        for c, filters, window, cell in self.parts():
            part = grad[(slice(None), filters, *window)] * np.conj(w[c])
            at: Index = (slice(None), c, *cell)
            dx[at] = part.sum(axis=tuple(range(1, part.ndim)))
        return dx

    def dw(self, dout: Host, x: Host) -> Host:
        grad, dw = self._full(dout), np.zeros(self.w, dout.dtype)
        for c, filters, window, cell in self.parts():
            number = np.conj(self._number(x[(slice(None), c, *cell)]))
            dw[c] += (grad[(slice(None), filters, *window)] * number).sum(axis=0)
        return dw

    def _full(self, dout: Host) -> Host:
        if self.wraps:
            return dout[self.places]
        full = np.zeros((*dout.shape[:2], *self.full), dout.dtype)
        full[self.kept] = dout
        return full

    def _number(self, values: Host) -> Host:
        return values.reshape(-1, *(1,) * (1 + len(self.full)))


@dataclass(frozen=True)
class Column:
    """A library, and the device that its arrays are made on."""

    key: str
    backend: backends.Backend
    device: Any

    def array(self, values: Host) -> Array:
        """Return `values` as an array of this library, of the same dtype."""
        if values.dtype.name == "bfloat16":  # not all libraries take it from NumPy
            return self.backend.asarray(values.astype("float32"), dtype="bfloat16", device=self.device)
        return self.backend.asarray(values.copy(), device=self.device)

    def host(self, array: Array) -> Host:
        """Copy an array to the host."""
        return np.asarray(self.backend.to_numpy(array))

    def expect(self, name: str, got: Array, truth: Host, dtype: str, off: float = 0.0) -> None:
        """Raise `Wrong` unless `got` has the right library, device, dtype and shape, and the values to within `off`."""
        if backends.of(got) is not self.backend:
            raise Wrong(f"{name} is of {backends.of(got).name}")
        if self.backend.device_of(got) != self.device:
            raise Wrong(f"{name} is on {self.backend.device_of(got)}, not {self.device}")
        if self.backend.dtype_name(got.dtype) != dtype or self.backend.machine_order(got.dtype) != got.dtype:
            raise Wrong(f"{name} is of {got.dtype}, not {dtype}")
        if tuple(got.shape) != truth.shape:
            raise Wrong(f"{name} is of shape {tuple(got.shape)}, not {truth.shape}")
        values, expected = wide(self.host(got)), wide(narrow(truth, dtype))
        if off and np.isfinite(expected).all():
            values = np.where(np.abs(values - expected) <= off, expected, values)
        if not np.array_equal(values, expected, equal_nan=True):
            raise Wrong(f"{name} has {np.count_nonzero(values != expected)} wrong values of {expected.size}")


def columns() -> dict[str, Column | None]:
    """Return every library, with None for CuPy if there is no GPU; exit if another library does not work."""
    faults = {}
    for module, package in REQUIRED.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a library may raise anything on import
            faults[package] = f"{package} ({type(error).__name__}: {in_a_cell(str(error))})"
    if faults:
        print(
            f"docs/features.py runs on all of its libraries, and these do not work: {', '.join(faults.values())}; "
            f"to install them: pip install {' '.join(faults)}",
            file=sys.stderr,
        )
        sys.exit(2)
    by_key: dict[str, Column | None] = {}
    for key in TITLES:
        if key == "jax":
            by_key[key] = jax_column()
            continue
        backend = backends.find(key)
        if backend.fault is not None and key != "cupy":
            print(f"docs/features.py cannot run on {TITLES[key]}: {backend.fault}", file=sys.stderr)
            sys.exit(2)
        if backend.fault is not None:
            by_key[key] = None
            continue
        by_key[key] = column_of(key, backend)
    return by_key


def column_of(key: str, backend: backends.Backend) -> Column:
    """Return a library's column, on its default device."""
    return Column(key, backend, backend.device_of(backend.asarray(np.zeros(1))))


@cache
def jax_column() -> Column:
    """Return JAX, set up alike on every machine: no GPU, a second device, and numbers of 64 bits."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_enable_x64", True)
    # The code runs once, so compiling it takes longer than running it.
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_traceback_in_locations_limit", 0)
    return column_of("jax", backends.get("jax"))


def whole(rng: np.random.Generator, shape: Ints, dtype: str) -> Host:
    """Draw whole numbers: small ones for floating point, the full range for integers."""
    if host_dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    values = rng.integers(-9, 10, shape).astype("float64")
    if dtype.startswith("complex"):
        return (values + 1j * rng.integers(-9, 10, shape)).astype(dtype)
    return values.astype(host_dtype(dtype))


def per_dimension(value: int | Ints, dims: int) -> Ints:
    """Return one int per dimension."""
    return (value,) * dims if isinstance(value, int) else value


Maker = Callable[[Column, Host], Array]
"""A function that makes an argument of a call: an array of the library with the host's values."""


@dataclass(frozen=True)
class Layer:
    """A call as a user makes it, and the loops that compute its truth.

    Attributes
    ----------
    x, w : tuple of int
        The shapes; that of `x` has a batch axis and channels first.
    options : mapping
        Keyword arguments.
    pads : tuple of (int, int)
        The numbers that a padding with a name stands for.
    unbatched : bool
        Whether the call has the first sample alone, without a batch axis.
    transposed : bool
    """

    x: Ints
    w: Ints
    options: Mapping[str, Any] = field(default_factory=dict)
    pads: Pairs | None = None
    unbatched: bool = False
    transposed: bool = False

    @property
    def loops(self) -> Loops | TransposedLoops:
        dims = len(self.x) - 2
        x = (1, *self.x[1:]) if self.unbatched else self.x
        stride, dilation = (per_dimension(self.options.get(name, 1), dims) for name in ("stride", "dilation"))
        groups, pads = self.options.get("groups", 1), self.pads
        if pads is None:
            padding = self.options.get("padding", 0)
            pads = tuple((side, side) if isinstance(side, int) else side for side in per_dimension(padding, dims))
        if self.transposed:
            output_padding = per_dimension(self.options.get("output_padding", 0), dims)
            wraps = self.options.get("padding_mode") == "circular"
            return TransposedLoops(x, self.w, stride, pads, output_padding, dilation, groups, wraps)
        mode, around = self.options.get("padding_mode", "zeros"), self.options.get("padding_value", 0)
        return Loops.of(x, self.w, stride, pads, dilation, groups, mode, around)

    def operands(self, dtypes: Sequence[str]) -> dict[str, Host]:
        """Draw `x`, `w` and `b` of three dtypes, and `dout` of their common dtype, in the loops' layout."""
        rng, loops = np.random.default_rng(len(self.x)), self.loops
        filters = self.w[1] * loops.groups if self.transposed else self.w[0]
        x, w, b = (whole(rng, shape, dtype) for shape, dtype in zip((loops.x, self.w, (filters,)), dtypes, strict=True))
        shape = loops.out(wide(x), wide(w)).shape
        return {"x": x, "w": w, "b": b, "dout": whole(rng, shape, np.result_type(x, w, b).name)}

    def truths(self, operands: Mapping[str, Host]) -> dict[str, Host]:
        """Compute the right results in the user's layout."""
        loops = self.loops
        x, w, b, dout = (wide(operands[name]) for name in ("x", "w", "b", "dout"))
        with np.errstate(invalid="ignore"):  # of features with infinities
            results = {"out": loops.out(x, w, b), "dx": loops.dx(dout, w), "dw": loops.dw(dout, x), "db": db(dout)}
        return {name: self.in_layout(name, values) for name, values in results.items()}

    def in_layout(self, name: str, values: Host) -> Host:
        """Convert an array from the loops' layout to the user's."""
        if name not in ("x", "dx", "out", "dout"):
            return values
        if self.options.get("data_format") == "channels_last":
            values = np.moveaxis(values, 1, -1)
        return values[0] if self.unbatched else values


def layer(x: Ints, w: Ints, *, pads: Pairs | None = None, unbatched: bool = False, **options: Any) -> Layer:
    """Describe a convolution by the options that a user gives."""
    return Layer(x, w, options, pads, unbatched)


def transposed(x: Ints, w: Ints, *, unbatched: bool = False, pads: Pairs | None = None, **options: Any) -> Layer:
    """Describe a transposed convolution by the options that a user gives, as `layer` does."""
    return Layer(x, w, options, unbatched=unbatched, pads=pads, transposed=True)


SINGLES = ("float32",) * 3
ALGORITHMS = [name for name in portconv.algorithms() if name not in ("compiled", "tap_loop", "native")]
"""Those that serve every library; `tap_loop` is for libraries that compile every step, `native` for some, and
`compiled` for arrays in the memory of this machine."""


def both_ways(
    column: Column,
    call: Layer,
    dtypes: Sequence[str] = SINGLES,
    make: Maker = Column.array,
    bias: bool = True,
    spoil: Callable[[dict[str, Host]], None] | None = None,
) -> None:
    """Run forward and backward; compare each result with its truth, and the arguments with what they were before."""
    operands = call.operands(dtypes)
    if spoil is not None:
        spoil(operands)
    if not bias:
        operands["b"] = np.zeros_like(operands["b"])
    host = {name: call.in_layout(name, values) for name, values in operands.items()}
    arrays = {name: make(column, values) for name, values in host.items()}
    if call.transposed:
        forward, backward = portconv.conv_transpose_forward, portconv.conv_transpose_backward
    else:
        forward, backward = portconv.conv_forward, portconv.conv_backward  # type: ignore[assignment]
    out, cache = forward(arrays["x"], arrays["w"], arrays["b"] if bias else None, **call.options)
    results = dict(zip(("out", "dx", "dw", "db"), (out, *backward(arrays["dout"], cache)), strict=True))
    if not bias and results.pop("db") is not None:
        raise Wrong("db is not None, though b was")
    truths = call.truths(operands)
    of = {"out": "dout", "dx": "x", "dw": "w", "db": "b"}
    # Products of spectra are rounded; a result is wrong if it is nearer to another whole number.
    off = 0.4 if call.options.get("algorithm") == "fft" else 0.0
    for name, result in results.items():
        column.expect(name, result, truths[name], operands[of[name]].dtype.name, off)
    for name, values in host.items():
        if not np.array_equal(wide(column.host(arrays[name])), wide(values), equal_nan=True):
            raise Wrong(f"{name}, an argument, has changed")


IMAGES, FILTERS = (2, 4, 5, 6), (3, 4, 2, 3)
SKEWED = layer(IMAGES, (4, 2, 2, 3), stride=(2, 1), padding=((0, 2), (1, 0)), groups=2)
"""A call in which all dimensions and sides differ."""
FEW = layer(IMAGES, (4, 2, 2, 3), stride=(2, 1), dilation=(3, 2), groups=2)
"""A call of few operations, for features other than shapes: JAX compiles each operation for each dtype and device."""
TILED = layer(IMAGES, (4, 1, 3, 3), padding=1, groups=4)
"""A call that every algorithm can compute."""


def forward_only(column: Column) -> None:
    """Run `conv`."""
    operands = SKEWED.operands(SINGLES)
    x, w, b = (column.array(operands[name]) for name in ("x", "w", "b"))
    column.expect("out", portconv.conv(x, w, b, **SKEWED.options), SKEWED.truths(operands)["out"], "float32")


def input_grad(column: Column) -> None:
    """Run `conv_input_grad`."""
    operands = SKEWED.operands(SINGLES)
    dout, w = (column.array(operands[name]) for name in ("dout", "w"))
    dx = portconv.conv_input_grad(dout, w, SKEWED.x, **SKEWED.options)
    column.expect("dx", dx, SKEWED.truths(operands)["dx"], "float32")


def weight_grad(column: Column) -> None:
    """Run `conv_weight_grad`."""
    operands = SKEWED.operands(SINGLES)
    dout, x = (column.array(operands[name]) for name in ("dout", "x"))
    dw = portconv.conv_weight_grad(dout, x, SKEWED.w, **SKEWED.options)
    column.expect("dw", dw, SKEWED.truths(operands)["dw"], "float32")


def output_shape(column: Column) -> None:
    """Run `conv_output_shape` on the shapes that this library's arrays have."""
    operands = SKEWED.operands(SINGLES)
    x, w = (column.array(operands[name]) for name in ("x", "w"))
    shape, expected = portconv.conv_output_shape(x.shape, w.shape, **SKEWED.options), operands["dout"].shape
    if shape != expected:
        raise Wrong(f"the shape is {shape}, not {expected}")


WINDOWS = layer(IMAGES, FILTERS, stride=(2, 1), padding=((0, 2), (1, 0)), dilation=(1, 2))


def unfold(column: Column) -> None:
    """Run `unfold`."""
    x, loops = WINDOWS.operands(SINGLES)["x"], WINDOWS.loops
    assert isinstance(loops, Loops)
    result = portconv.unfold(column.array(x), WINDOWS.w[2:], **WINDOWS.options)
    column.expect("the result", result, loops.columns(wide(x)), "float32")


def fold(column: Column) -> None:
    """Run `fold`."""
    loops = WINDOWS.loops
    assert isinstance(loops, Loops)
    values = whole(
        np.random.default_rng(0), (IMAGES[0], IMAGES[1] * math.prod(FILTERS[2:]), len(loops.read)), "float32"
    )
    result = portconv.fold(column.array(values), IMAGES[2:], WINDOWS.w[2:], **WINDOWS.options)
    column.expect("the result", result, loops.added(wide(values)), "float32")


def course(column: Column, speed: str) -> None:
    """Run both functions of one of the course's pairs."""
    forward = getattr(cs231n, f"conv_forward_{speed}")
    backward = getattr(cs231n, f"conv_backward_{speed}")
    call = layer(IMAGES, FILTERS, stride=2, padding=1)
    operands = call.operands(SINGLES)
    x, w, b, dout = (column.array(operands[name]) for name in ("x", "w", "b", "dout"))
    out, cache = forward(x, w, b, {"stride": 2, "pad": 1})
    truths = call.truths(operands)
    for (name, truth), result in zip(truths.items(), (out, *backward(dout, cache)), strict=True):
        column.expect(name, result, truth, "float32")


def promoted(column: Column, *dtypes: str) -> None:
    """Run a call with several dtypes: the output has their common one, each gradient that of its argument."""
    both_ways(column, FEW, dtypes)


def read_only(column: Column, values: Host) -> Array:
    """Make an array that may not be written."""
    array = column.array(values)
    array.flags.writeable = False
    return array


def permuted(column: Column, values: Host) -> Array:
    """Make an array as every second number of another one, with the axes in reverse order."""
    base = np.full((*values.shape[:0:-1], 2 * values.shape[0]), 77, values.dtype)
    base[..., ::2] = values.T
    return column.backend.xp.permute_dims(column.array(base)[..., ::2], tuple(reversed(range(values.ndim))))


def backwards(column: Column, values: Host) -> Array:
    """Make an array whose numbers are in reverse order in memory."""
    return column.array(np.flip(values))[(slice(None, None, -1),) * values.ndim]


def swapped(column: Column, values: Host) -> Array:
    """Make an array in the other byte order than the machine's."""
    return column.array(values.astype(values.dtype.newbyteorder()))


def second_device(column: Column) -> None:
    """Run a call on a device that is not the library's default one."""
    first, second, *_ = column.backend.devices()
    if column.device != first:
        raise Wrong(f"arrays go to {column.device} unasked, not to {first}")
    both_ways(replace(column, device=second), FEW)


def by_kernels(column: Column) -> None:
    """Run `conv` by kernels for this CPU, which have no gradients of filters."""
    operands = SKEWED.operands(SINGLES)
    arrays = [column.array(operands[name]) for name in ("x", "w", "b")]
    out = portconv.conv(*arrays, **SKEWED.options, algorithm="compiled")
    column.expect("out", out, SKEWED.truths(operands)["out"], "float32", 0.0)


def not_finite(column: Column) -> None:
    """Run each algorithm on infinities and nans: the results are those of the plain formula, in all windows."""

    def spoil(operands: dict[str, Host]) -> None:
        operands["x"][0, 0, 1, 1], operands["x"][1, 3, 4, 5] = np.inf, np.nan
        operands["dout"][0, 1, 0, 4], operands["dout"][1, 2, 4, 0] = np.nan, -np.inf

    own = ["native"] if column.key in FRAMEWORKS else []
    for algorithm in [*ALGORITHMS, *own]:
        with np.errstate(invalid="ignore"):  # NumPy may warn; only the numbers matter here
            both_ways(column, replace(TILED, options={**TILED.options, "algorithm": algorithm}), spoil=spoil)


def shifted(x: Host, kernel: Host) -> Host:
    """Convolve by adding up the signal, shifted to each cell of the kernel."""
    out = np.zeros([n + k - 1 for n, k in zip(x.shape, kernel.shape, strict=True)], x.dtype)
    for at in np.ndindex(*kernel.shape):
        out[tuple(slice(i, i + n) for i, n in zip(at, x.shape, strict=True))] += x * kernel[at]
    return out


def convolved(column: Column, mode: str, dtype: str, flips: bool = True) -> None:
    """Run `signal.convolve`, or `signal.correlate`, over the last two of three axes."""
    rng = np.random.default_rng(0)
    x, kernel = whole(rng, (2, 5, 6), dtype), whole(rng, (3, 4), dtype)
    function = portconv.signal.convolve if flips else portconv.signal.correlate
    found = function(column.array(x), column.array(kernel), mode, axes=(1, 2))  # type: ignore[arg-type]
    taps = wide(kernel) if flips else np.conj(np.flip(wide(kernel)))
    kept: Index = {"full": ..., "same": (slice(1, 6), slice(1, 7)), "valid": (slice(2, 5), slice(3, 6))}[mode]
    truth = np.stack([shifted(plane, taps)[kept] for plane in wide(x)])
    column.expect("the result", found, truth, dtype)


def at_a_boundary(column: Column, boundary: str, mode: str) -> None:
    """Run `signal.convolve` with cells beyond the signal."""
    rng = np.random.default_rng(1)
    x, kernel = whole(rng, (4, 5), "float32"), whole(rng, (3, 7), "float32")
    padded = np.pad(wide(x), ((1, 1), (3, 3)), mode=mode)  # type: ignore[call-overload]
    truth = shifted(padded, wide(kernel))[2:-2, 6:-6]
    found = portconv.signal.convolve(column.array(x), column.array(kernel), "same", boundary=boundary)  # type: ignore[arg-type]
    column.expect("the result", found, truth, "float32")


def of_some_cells(column: Column, normalize: bool) -> None:
    """Run `conv` and `signal.convolve` with a mask; quotients of whole numbers are rounded once."""
    rng = np.random.default_rng(2)
    x, w, where = (
        whole(rng, (1, 1, 6, 7), "float64"),
        np.abs(whole(rng, (1, 1, 3, 3), "float64")) + 1,
        rng.random((6, 7)),
    )
    known = where < 0.7
    sums, weights = (
        shifted(cells, np.flip(w[0, 0]))[1:-1, 1:-1] for cells in (x[0, 0] * known, known.astype("float64"))
    )
    with np.errstate(invalid="ignore"):
        truth = sums / weights if normalize else sums
    given = column.array(np.where(known, x, np.nan)), column.array(w)
    options = {"where": column.array(known), "normalize": normalize}
    column.expect("out", portconv.conv(*given, padding=1, **options), truth[None, None], "float64")
    found = portconv.signal.correlate(given[0][0, 0, ...], given[1][0, 0, ...], "same", **options)
    column.expect("the result", found, truth, "float64")


def separable(column: Column) -> None:
    """Run `signal.convolve_separable`."""
    rng = np.random.default_rng(3)
    x, kernels = whole(rng, (5, 6), "float32"), [whole(rng, (size,), "float32") for size in (3, 5)]
    truth = shifted(wide(x), np.multiply.outer(*map(wide, kernels)))[1:-1, 2:-2]
    found = portconv.signal.convolve_separable(column.array(x), [column.array(kernel) for kernel in kernels])
    column.expect("the result", found, truth, "float32")


def gaussian(column: Column) -> None:
    """Run `signal.gaussian_filter`; its weights are rounded a few times."""
    x, t = np.zeros((1, 17)), np.arange(-8, 9)
    x[0, 8] = 1
    weights = np.exp(-0.5 * t**2 / 4.0)
    found = portconv.signal.gaussian_filter(column.array(x), 2.0, axes=1, order=1)
    column.expect("the result", found, (-t / 4.0 * weights / weights.sum())[None], "float64", 2.0**-50)


def each_sample(column: Column) -> None:
    """Run `conv_weight_grad` for each sample."""
    operands = SKEWED.operands(SINGLES)
    dout, x = (column.array(operands[name]) for name in ("dout", "x"))
    found = portconv.conv_weight_grad(dout, x, SKEWED.w, **SKEWED.options, per_sample=True)
    loops = replace(SKEWED, x=(1, *SKEWED.x[1:])).loops
    pairs = zip(wide(operands["dout"]), wide(operands["x"]), strict=True)
    column.expect("dw", found, np.stack([loops.dw(one[None], of[None]) for one, of in pairs]), "float32")


def operator(column: Column) -> None:
    """Run `linear_operator` and its adjoint on several columns."""
    operands, rng = SKEWED.operands(SINGLES), np.random.default_rng(4)
    found = portconv.linear_operator(column.array(operands["w"]), SKEWED.x, **SKEWED.options)
    cells, outs = (whole(rng, (size, 2), "float32") for size in found.shape[::-1])
    loops, w = SKEWED.loops, wide(operands["w"])
    truths = (
        np.stack([function(wide(one).reshape(shape), w).ravel() for one in columns.T], axis=1)
        for function, columns, shape in ((loops.out, cells, SKEWED.x), (loops.dx, outs, operands["dout"].shape))
    )
    results = found.matmat(column.array(cells)), found.H @ column.array(outs)
    for result, truth in zip(results, truths, strict=True):
        column.expect("the product", result, truth, "float32")


def matrix(column: Column) -> None:
    """Run `convolution_matrix`, a matrix of SciPy's on the host, and multiply a column by it."""
    operands = SKEWED.operands(SINGLES)
    found = portconv.convolution_matrix(column.array(operands["w"]), SKEWED.x, **SKEWED.options)
    loops, x = SKEWED.loops, wide(operands["x"])
    assert isinstance(loops, Loops)
    if not np.array_equal(found @ x.ravel(), loops.out(x, wide(operands["w"])).ravel()):
        raise Wrong("the product is wrong")


def of_framework(column: Column) -> tuple[Any, Callable[..., Array], dict[str, Host], dict[str, Array]]:
    """Return a framework's transforms, a call, and its operands on the host and in the framework."""
    operands = SKEWED.operands(SINGLES)
    arrays = {name: column.array(values) for name, values in operands.items()}
    return importlib.import_module(FRAMEWORKS[column.key]), partial(portconv.conv, **SKEWED.options), operands, arrays


def first_derivatives(column: Column) -> None:
    """Differentiate a call in reverse mode."""
    framework, conv, operands, arrays = of_framework(column)
    out, back = framework.vjp(conv, *(arrays[name] for name in ("x", "w", "b")))
    truths = SKEWED.truths(operands)
    for name, result in zip(("out", "dx", "dw", "db"), (out, *back(arrays["dout"])), strict=True):
        column.expect(name, result, truths[name], "float32")


def second_derivatives(column: Column) -> None:
    """Differentiate the gradient of the input with respect to the filters."""
    framework, conv, operands, arrays = of_framework(column)

    def dx(w: Array) -> Array:
        return framework.vjp(lambda x: conv(x, w), arrays["x"])[1](arrays["dout"])[0]

    _, back = framework.vjp(dx, arrays["w"])
    truth = SKEWED.loops.dw(wide(operands["dout"]), wide(operands["x"]))
    column.expect("the second derivative", back(arrays["x"])[0], truth, "float32")


def forward_mode(column: Column) -> None:
    """Differentiate a call in forward mode, with respect to all operands at once."""
    framework, conv, operands, arrays = of_framework(column)
    primals = tuple(arrays[name] for name in ("x", "w", "b"))
    _, change = framework.jvp(conv, primals, primals)
    x, w, b = (wide(operands[name]) for name in ("x", "w", "b"))
    column.expect("the change", change, SKEWED.loops.out(2 * x, w, b), "float32")


def mapped_calls(column: Column) -> None:
    """Map a call over samples, and over sets of filters."""
    framework, conv, operands, arrays = of_framework(column)
    truth = SKEWED.truths(operands)["out"]
    by_sample = framework.vmap(conv, (0, None, None))(*(arrays[name] for name in ("x", "w", "b")))
    column.expect("of each sample", by_sample, truth, "float32")
    several = column.array(np.stack([operands["w"], -operands["w"]]))
    by_filters = framework.vmap(conv, (None, 0))(arrays["x"], several)
    plain = SKEWED.loops.out(wide(operands["x"]), wide(operands["w"]))
    column.expect("of each set of filters", by_filters, np.stack([plain, -plain]), "float32")


def compiled(column: Column) -> None:
    """Run a call inside `jax.jit`, or inside `torch.compile`, which breaks its graph there."""
    _, conv, operands, arrays = of_framework(column)
    library = importlib.import_module(column.key)
    compile_it = library.jit if column.key == "jax" else partial(library.compile, backend="eager")
    result = compile_it(lambda x, w, b: 2 * conv(x, w, b))(*(arrays[name] for name in ("x", "w", "b")))
    column.expect("the result", result, 2 * SKEWED.truths(operands)["out"], "float32")


@dataclass(frozen=True)
class Feature:
    """One row of a table.

    Attributes
    ----------
    name : str
        The name in Markdown.
    run : callable
        Raises an exception if the feature does not work.
    lacking : mapping
        The reason why a library does not have the feature, by the key of its column.
    """

    name: str
    run: Callable[[Column], None]
    lacking: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows under a heading, and a sentence about all of them."""

    heading: str
    features: tuple[Feature, ...]
    words: str = ""


def row(name: str, call: Layer, **how: Any) -> Feature:
    """Return a feature that is a call, forward and backward."""
    return Feature(name, partial(both_ways, call=call, **how))


def of_dtype(name: str, **lacking: str) -> Feature:
    """Return a feature that is a call with all arrays of one dtype."""
    return Feature(f"`{name}`", partial(both_ways, call=FEW, dtypes=(name,) * 3), lacking)


STANDARD_LACKS = "The standard has no {}, and array-api-strict has nothing but the standard."
NO_STRIDES = "JAX's arrays have no strides: a permuted or sliced array is a new one."
FRAMEWORKS = {"torch": "torch.func", "jax": "jax"}
"""The module with the transforms of each library that has some."""
NO_TRANSFORMS = dict.fromkeys(
    ("numpy", "array_api_strict", "dask", "cupy"), "The library differentiates nothing; `conv_backward` does."
)
UPSIDE = (4, 3, 2, 3)
"""The filters of a transposed convolution of images."""
SMALL = (2, 4, 3, 4)
"""The images of a transposed convolution."""

TABLES = (
    Table(
        "Convolution",
        (
            row("1-D", layer((2, 4, 6), (3, 4, 2))),
            row("2-D", layer(IMAGES, FILTERS)),
            row("3-D", layer((2, 2, 3, 4, 3), (3, 2, 2, 3, 2))),
            row("4-D", layer((2, 2, 3, 2, 3, 2), (3, 2, 2, 1, 2, 2))),
            row("strides, `stride=(2, 3)`", layer(IMAGES, FILTERS, stride=(2, 3))),
            row("dilation, `dilation=(3, 2)`", layer(IMAGES, FILTERS, dilation=(3, 2))),
            row("groups, `groups=2`", layer(IMAGES, (4, 2, 2, 3), groups=2)),
            row("depthwise, `groups=4` of 4 channels", layer(IMAGES, (8, 1, 2, 3), groups=4)),
            row("no bias, and so no `db`", layer(IMAGES, FILTERS), bias=False),
            row("one sample without a batch axis", layer(IMAGES, FILTERS, unbatched=True)),
            row("an empty batch", layer((0, *IMAGES[1:]), FILTERS)),
            row("a number, `padding=1`", layer(IMAGES, FILTERS, padding=1)),
            row("one per dimension, `padding=(2, 1)`", layer(IMAGES, FILTERS, padding=(2, 1))),
            row("pairs, `padding=((0, 2), (1, 0))`", layer(IMAGES, FILTERS, padding=((0, 2), (1, 0)))),
            row('`padding="valid"`', layer(IMAGES, FILTERS, padding="valid", pads=((0, 0), (0, 0)))),
            # Along the first dimension one cell is odd: 5 in steps of 2 make 3 windows, over 2 * 2 + 2 = 6 cells.
            row('`padding="same"`', layer(IMAGES, FILTERS, padding="same", stride=(2, 1), pads=((0, 1), (1, 1)))),
            row(
                '`padding="same_lower"`',
                layer(IMAGES, FILTERS, padding="same_lower", stride=(2, 1), pads=((1, 0), (1, 1))),
            ),
            row('`padding="causal"`', layer(IMAGES, FILTERS, padding="causal", pads=((1, 0), (2, 0)))),
            row('`padding="full"`', layer(IMAGES, FILTERS, padding="full", pads=((1, 1), (2, 2)))),
            row(
                '`padding_mode="constant", padding_value=2`',
                layer(IMAGES, FILTERS, padding=((1, 2), (3, 0)), padding_mode="constant", padding_value=2),
            ),
            *(
                row(f'`padding_mode="{mode}"`', layer(IMAGES, FILTERS, padding=((1, 2), (3, 0)), padding_mode=mode))
                for mode in ("reflect", "symmetric", "replicate", "circular")
            ),
            row('`data_format="channels_last"`', layer(IMAGES, FILTERS, padding=1, data_format="channels_last")),
            row(
                "strides, dilation, groups, reflected padding, channels last, one sample, all at once",
                layer(
                    IMAGES,
                    (6, 2, 2, 3),
                    unbatched=True,
                    stride=(1, 2),
                    dilation=(2, 1),
                    groups=2,
                    padding=((1, 2), (0, 1)),
                    padding_mode="reflect",
                    data_format="channels_last",
                ),
            ),
        ),
        "Forward and backward: `out` of `conv_forward`, and `dx`, `dw` and `db` of `conv_backward`, must all hold.",
    ),
    Table(
        "Transposed convolution",
        (
            row("1-D", transposed((2, 4, 4), (4, 3, 2))),
            row("2-D", transposed(SMALL, UPSIDE)),
            row("3-D", transposed((2, 2, 2, 3, 2), (2, 3, 2, 3, 2))),
            row("strides, `stride=(2, 3)`", transposed(SMALL, UPSIDE, stride=(2, 3))),
            row("asymmetric padding, `padding=((0, 2), (1, 0))`", transposed(SMALL, UPSIDE, padding=((0, 2), (1, 0)))),
            row('`padding="valid"`', transposed(SMALL, UPSIDE, padding="valid", pads=((0, 0), (0, 0)))),
            # The kernel is 2 by 3.
            row('`padding="same"`', transposed(SMALL, UPSIDE, padding="same", stride=(2, 1), pads=((0, 0), (1, 1)))),
            row('`padding="causal"`', transposed(SMALL, UPSIDE, padding="causal", pads=((0, 1), (0, 2)))),
            row(
                '`padding_mode="circular"`',
                transposed(SMALL, UPSIDE, padding=((0, 1), (2, 0)), stride=2, padding_mode="circular"),
            ),
            row("`output_padding=(1, 2)`", transposed(SMALL, UPSIDE, stride=(2, 3), output_padding=(1, 2))),
            row("dilation, `dilation=(2, 3)`", transposed(SMALL, UPSIDE, dilation=(2, 3))),
            row("groups, `groups=2`", transposed(SMALL, UPSIDE, groups=2)),
            row("no bias, and so no `db`", transposed(SMALL, UPSIDE), bias=False),
            row("one sample without a batch axis", transposed(SMALL, UPSIDE, unbatched=True)),
            row('`data_format="channels_last"`', transposed(SMALL, UPSIDE, stride=2, data_format="channels_last")),
        ),
        "Forward and backward: `conv_transpose_forward`, then `conv_transpose_backward`.",
    ),
    Table(
        "Functions",
        (
            Feature("`conv`", forward_only),
            row("`conv_forward`, `conv_backward`", SKEWED),
            Feature("`conv_input_grad`", input_grad),
            Feature("`conv_weight_grad`", weight_grad),
            Feature("`conv_output_shape`", output_shape),
            Feature("`unfold`", unfold),
            Feature("`fold`", fold),
            Feature("`cs231n.conv_forward_naive`, `cs231n.conv_backward_naive`", partial(course, speed="naive")),
            Feature("`cs231n.conv_forward_fast`, `cs231n.conv_backward_fast`", partial(course, speed="fast")),
        ),
    ),
    Table(
        "Signals, masks and operators",
        (
            *(
                Feature(
                    f'`signal.convolve(x, kernel, "{mode}", axes=(1, 2))`, {dtype}',
                    partial(convolved, mode=mode, dtype=dtype),
                )
                for mode, dtype in (("full", "float32"), ("same", "int16"), ("valid", "complex64"))
            ),
            Feature(
                '`signal.correlate(x, kernel, "same", axes=(1, 2))`',
                partial(convolved, mode="same", dtype="complex64", flips=False),
            ),
            *(
                Feature(
                    f'`signal.convolve(x, kernel, "same", boundary="{name}")`',
                    partial(at_a_boundary, boundary=name, mode=mode),
                )
                for name, mode in (
                    ("reflect", "reflect"),
                    ("symmetric", "symmetric"),
                    ("replicate", "edge"),
                    ("circular", "wrap"),
                )
            ),
            Feature("`signal.convolve_separable`", separable),
            Feature("`signal.gaussian_filter`", gaussian),
            Feature("`where=`, of `conv` and `signal.correlate`", partial(of_some_cells, normalize=False)),
            Feature("`where=, normalize=True`", partial(of_some_cells, normalize=True)),
            Feature("`conv_weight_grad(..., per_sample=True)`", each_sample),
            Feature("`linear_operator`, and its adjoint", operator),
            Feature("`convolution_matrix`", matrix),
        ),
    ),
    Table(
        "Dtypes",
        (
            of_dtype("float16", array_api_strict=STANDARD_LACKS.format("float16")),
            of_dtype("bfloat16", array_api_strict=STANDARD_LACKS.format("bfloat16")),
            *(of_dtype(name) for name in ("float32", "float64", "complex64", "complex128")),
            *(of_dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)),
            Feature("`x` float32, `w` float64", lambda column: promoted(column, "float32", "float64", "float32")),
            Feature("`x` complex64, `w` float32", lambda column: promoted(column, "complex64", "float32", "float32")),
            Feature("`x` int8, `w` int32", lambda column: promoted(column, "int8", "int32", "int8")),
        ),
        "Forward and backward. Integers are over their full range, so that results wrap modulo 2**bits.\n"
        "NumPy's bfloat16 is that of `ml_dtypes`; JAX has numbers of 64 bits where `jax_enable_x64` is set.",
    ),
    Table(
        "Arrays",
        (
            Feature(
                "read-only",
                partial(both_ways, call=SKEWED, make=read_only),
                {
                    "torch": "PyTorch has no read-only arrays.",
                    "array_api_strict": "The standard has no read-only arrays.",
                    "jax": "All of JAX's arrays are immutable: every row is of such.",
                    "cupy": "CuPy has no read-only arrays.",
                    "dask": "All of Dask's arrays are immutable: every row is of such.",
                },
            ),
            Feature(
                "not contiguous: axes permuted, every other number",
                partial(both_ways, call=SKEWED, make=permuted),
                {"jax": NO_STRIDES},
            ),
            Feature(
                "negative strides",
                partial(both_ways, call=SKEWED, make=backwards),
                {"torch": "PyTorch's strides are never negative.", "jax": NO_STRIDES},
            ),
            Feature(
                "byte order not the machine's",
                partial(both_ways, call=SKEWED, make=swapped),
                dict.fromkeys(
                    ("torch", "array_api_strict", "jax", "cupy"), "Only NumPy's arrays may have another byte order."
                ),
            ),
            Feature(
                "a device other than the default",
                second_device,
                {
                    "numpy": "NumPy has one device.",
                    "torch": "PyTorch has one CPU device, and what others it has are accelerators.",
                    "dask": "Dask's arrays are where their chunks are.",
                    "cupy": "It takes a second GPU.",
                },
            ),
            Feature("inf and nan stay where windows touch them", not_finite),
        ),
        "Forward and backward.",
    ),
    Table(
        "Algorithms and precision",
        (
            *(
                row(f'`algorithm="{name}"`', replace(TILED, options={**TILED.options, "algorithm": name}))
                for name in ALGORITHMS
            ),
            Feature(
                '`algorithm="compiled"`, the output',
                by_kernels,
                {
                    "array_api_strict": "The standard gives an array no address.",
                    "jax": "JAX's arrays are XLA's, and lie where it puts them.",
                    "cupy": "Its arrays are in a GPU's memory.",
                },
            ),
            Feature(
                '`algorithm="native"`',
                partial(both_ways, call=replace(TILED, options={**TILED.options, "algorithm": "native"})),
                {
                    "numpy": "NumPy has no convolution of several channels.",
                    "array_api_strict": "The standard has no convolution.",
                    "dask": "Dask's chunks are NumPy's, which has none.",
                },
            ),
            *(
                row(f'`precision="{name}"`', replace(SKEWED, options={**SKEWED.options, "precision": name}))
                for name in ("standard", "fast", "reproducible")
            ),
        ),
        "Forward and backward.",
    ),
    Table(
        "Inside frameworks",
        (
            Feature("first derivatives, reverse mode", first_derivatives, NO_TRANSFORMS),
            Feature("second derivatives", second_derivatives, NO_TRANSFORMS),
            Feature("forward mode", forward_mode, NO_TRANSFORMS),
            Feature("`vmap` over samples, and over filters", mapped_calls, NO_TRANSFORMS),
            Feature("`jit` or `compile`", compiled, NO_TRANSFORMS),
        ),
        "What `torch.func` and `jax` make of `conv`: [Inside other frameworks](frameworks.md) has the rest.",
    ),
)


Cells = dict[tuple[str, str], str]
"""The text of each cell of a column, by the table's heading and the row's name."""


def outcome(feature: Feature, column: Column) -> str:
    """Run a feature on a library, and return the text of the cell."""
    if column.key in feature.lacking:
        return NONE
    try:
        feature.run(column)
    except Wrong as wrong:
        return f"no: {in_a_cell(str(wrong))}"
    except Exception as error:  # a library may raise anything, which is an outcome too
        return f"no: {in_a_cell(f'{type(error).__name__}: {error}')}"
    return YES


def in_a_cell(words: str) -> str:
    """Return the words on one line, without the character that ends a cell."""
    return " ".join(words.split()).replace("|", "/")[:160]


def run(column: Column) -> Cells:
    """Run every feature on one library."""
    features = every_feature()
    if column.key != "jax":
        return {place: outcome(feature, column) for place, feature in features.items()}
    # JAX compiles each operation for each new shape. Neighbours share shapes, so each process takes half of the list.
    middle = len(features) // 2
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        first, second = pool.map(run_on_jax, (0, middle), (middle, len(features)))
    return dict(zip(features, first + second, strict=True))


def run_on_jax(start: int, end: int) -> list[str]:
    """Run some of the features on JAX, in a process that has not imported it yet."""
    return [outcome(feature, jax_column()) for feature in list(every_feature().values())[start:end]]


def every_feature() -> dict[tuple[str, str], Feature]:
    """Return all features by the table's heading and the row's name."""
    return {(table.heading, feature.name): feature for table in TABLES for feature in table.features}


def written(text: str, key: str) -> Cells:
    """Read the cells of one column from the text of the file."""
    cells, heading, place = {}, "", 1 + list(TITLES).index(key)
    for line in text.splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        parts = [part.strip() for part in line.strip("|").split("|")]
        if line.startswith("|") and len(parts) == 1 + len(TITLES):
            cells[heading, parts[0]] = NONE if parts[place].startswith(NONE) else parts[place]
    return cells


def render(cells: Mapping[str, Cells]) -> str:
    """Write the text of the file."""
    lines = [INTRODUCTION]
    for table in TABLES:
        lines += [f"## {table.heading}", ""]
        if table.words:
            lines += [table.words, ""]
        lines += [f"| | {' | '.join(TITLES.values())} |", f"|{'---|' * (1 + len(TITLES))}"]
        reasons: list[str] = []
        for feature in table.features:
            texts = []
            for key in TITLES:
                cell = cells[key].get((table.heading, feature.name), NOT_RUN)
                reason = feature.lacking.get(key)
                if cell == NONE and reason is not None:
                    reasons += [] if reason in reasons else [reason]
                    cell += str(1 + reasons.index(reason)).translate(SUPERSCRIPTS)
                texts.append(cell)
            lines.append(f"| {feature.name} | {' | '.join(texts)} |")
        lines.append("")
        lines += [f"{i}. {reason}" for i, reason in enumerate(reasons, 1)]
        lines += [""] if reasons else []
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the file, or check it."""
    parser = argparse.ArgumentParser(description="Run each feature on each array library, and write docs/features.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the file differs")
    check: bool = parser.parse_args().check
    old = FILE.read_text(encoding="utf-8") if FILE.exists() else ""
    cells = {key: {} if column is None else run(column) for key, column in columns().items()}
    failed = [
        f"{TITLES[key]}: {heading}: {name}: {cell}"
        for key, column in cells.items()
        for (heading, name), cell in column.items()
        if cell.startswith("no: ")
    ]
    if check and not cells["cupy"]:
        cells["cupy"] = written(old, "cupy")  # it cannot be run here, so it is not judged
    new = render(cells)
    if check:
        name = f"docs/{FILE.name}"
        sys.stdout.writelines(
            difflib.unified_diff(
                old.splitlines(keepends=True), new.splitlines(keepends=True), f"{name} on disk", f"{name} of this run"
            )
        )
    else:
        FILE.write_text(new, encoding="utf-8")
    for line in failed:
        print(line, file=sys.stderr)
    return int(bool(failed) or (check and new != old))


if __name__ == "__main__":
    sys.exit(main())
