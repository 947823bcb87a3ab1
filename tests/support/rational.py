"""Compute reproducible results from their definition alone, in Python's integers, without the package.

A finite number is an integer multiple of the smallest subnormal of its format, and a quantised number is a multiple of
its group's step. So the code only shifts, multiplies and adds integers. Where the definition could be read in more than
one way, this is how it is read:

- Operands that are subnormal in their own dtype count as zero, but for float16 beside a wider dtype, which is promoted
  first; so does -0. The real and the imaginary part of a complex number are two numbers that only share a scale.
- All operands of a call, including its bias, and `dout` in a backward call, are promoted to their common dtype; a real
  one beside complex ones has imaginary part 0. T, the number of bits kept, is that dtype's: 40, or 60 with float64
  parts.
- A group's scale 2**mu is the smallest power of two that no magnitude in it exceeds, over all finite parts of numbers.
  The group includes cells that no window reads, and imaginary parts that no result needs. A number a becomes
  q * 2**(mu - T + 1), with q = a * 2**(T - 1 - mu) rounded half to even.
- A group is what one sum runs over: `SUMMED`. The groups of a transposed convolution are those of the convolution whose
  adjoint it is: its x is the `dout` of an input gradient, and in its backward call `dout` is the `x` of a convolution.
- A sum is rounded once, to nearest, half to even, as IEEE 754 does with gradual underflow and overflow to infinity,
  directly to the dtype of the result, which in a backward call is that of x, w or b. Only then a subnormal result
  becomes +0: a sum just below the smallest normal number may be rounded up to it. -0 becomes +0.
- A bias is added to the rounded sum, and the result is rounded in the same way.
- Gradients are adjoints: they multiply by conjugates. If x, w or b is real beside complex operands, its gradient is the
  real part.
- A term is a product of two real numbers. It is nan if a factor is nan, or if one factor is infinite and the other 0;
  flushed subnormals and zeros of the padding are 0. It is infinite if a factor is infinite. No finite factor overflows,
  and none counts as 0 because it is quantised to 0. A sum with a nan, or with infinities of both signs, is nan, in one
  canonical form; a sum with an infinity is that infinity. In all else numbers that are not finite count as 0. An input
  gradient has no terms from its padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Format:
    """A binary format: the bits of its exponent and its fraction, and the pattern of its nan."""

    exponent: int
    fraction: int
    nan: int

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.fraction

    @property
    def unit(self) -> int:
        """The smallest subnormal number is two to this power."""
        return 2 - 2 ** (self.exponent - 1) - self.fraction

    @property
    def infinity(self) -> int:
        return (2**self.exponent - 1) << self.fraction

    def decode(self, pattern: int, subnormal: bool = False) -> tuple[int, float]:
        """Return a pattern's number in units, and its sign; if it is not finite, 0 and the nan or infinity.

        A subnormal number is 0, unless the form's `subnormal` numbers are kept.
        """
        sign = -1 if pattern >> (self.bits - 1) else 1
        exponent, fraction = divmod(pattern % 2 ** (self.bits - 1), 2**self.fraction)
        if exponent == 2**self.exponent - 1:
            return 0, math.nan if fraction else sign * math.inf
        if exponent == 0:
            return (sign * fraction, float(sign)) if subnormal and fraction else (0, 0.0)
        return sign * ((2**self.fraction + fraction) << (exponent - 1)), float(sign)

    def encode(self, number: int, power: int) -> int:
        """Return the pattern of number * 2**power, rounded; that of +0 if the result is subnormal."""
        # A normal number has one digit more than the fraction; a subnormal one has fewer.
        step = max(abs(number).bit_length() - 1 - self.fraction + power, self.unit)
        digits = half_even(abs(number), power - step)
        if digits < 2**self.fraction:
            return 0
        # The first digit is not in the pattern, but adds 1 to the exponent there, or 2 if rounding made one more digit.
        magnitude = min(((step - self.unit) << self.fraction) + digits, self.infinity)
        return magnitude + (2 ** (self.bits - 1) if number < 0 else 0)

    def special(self, value: float) -> int:
        """Return the pattern of nan or an infinity."""
        return self.nan if math.isnan(value) else self.infinity + (2 ** (self.bits - 1) if value < 0 else 0)


def half_even(number: int, shift: int) -> int:
    """Return number * 2**shift as an integer, rounded half to even."""
    if shift >= 0:
        return number << shift
    whole, rest = number >> -shift, number & ((1 << -shift) - 1)
    half = 1 << (-shift - 1)
    return whole + (rest > half or (rest == half and whole % 2 == 1))


FORMATS = {
    "float16": Format(5, 10, 0x7E00),
    "bfloat16": Format(8, 7, 0x7FC0),
    "float32": Format(8, 23, 0x7FC00000),
    "float64": Format(11, 52, 0x7FF8000000000000),
}
PARTS = {"complex64": "float32", "complex128": "float64"}
DTYPES = (*FORMATS, *PARTS)


def part_format(name: str) -> Format:
    return FORMATS[PARTS.get(name, name)]


def kept(name: str) -> int:
    """Return T, the bits that operands of this dtype keep."""
    return 60 if part_format(name).bits == 64 else 40


def promoted(*names: str) -> str:
    """Return the common dtype."""
    if len({*names}) == 1:
        return names[0]
    bits = 64 if any(part_format(name).bits == 64 for name in names) else 32
    return f"complex{2 * bits}" if any(name in PARTS for name in names) else f"float{bits}"


def numpy_dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def array_of(patterns: list[Any], shape: tuple[int, ...], name: str) -> np.ndarray:
    """Make an array from the patterns of its real part and, for complex dtypes, its imaginary part."""
    dtype = f"<u{part_format(name).bits // 8}"
    stacked = np.stack([np.array(part, dtype).reshape(shape) for part in patterns], axis=-1)
    return stacked.view(numpy_dtype(name)).reshape(shape)


@dataclass(frozen=True)
class Operand:
    """The parts of numbers in units, and their signs, nans and infinities, in arrays of Python's numbers."""

    units: list[Any]
    signs: list[Any]
    unit: int

    def reshaped(self, *shape: int) -> Operand:
        return Operand([a.reshape(shape) for a in self.units], [a.reshape(shape) for a in self.signs], self.unit)

    def conjugate(self) -> Operand:
        if len(self.units) == 1:
            return self
        return Operand([self.units[0], -self.units[1]], [self.signs[0], -self.signs[1]], self.unit)

    @property
    def finite(self) -> bool:
        return all(math.isfinite(sign) for part in self.signs for sign in part.flat)

    def quantised(self, axes: tuple[int, ...], bits: int) -> tuple[list[Any], Any]:
        """Return the numbers as multiples of a power of two, and the power of each group of numbers along `axes`."""
        largest = np.max([np.max(np.abs(part), axis=axes, keepdims=True, initial=0) for part in self.units], axis=0)
        shift = bits - 1 - np.frompyfunc(lambda n: (n - 1).bit_length() if n else 0, 1, 1)(largest)
        return [np.frompyfunc(half_even, 2, 1)(part, shift) for part in self.units], self.unit - shift


def operand(array: np.ndarray, common: str) -> Operand:
    """Decode an array; if `common`, the dtype that it is promoted to, is complex, it gets an imaginary part."""
    name = array.dtype.name
    form = part_format(name)
    parts = np.ascontiguousarray(array).reshape(*array.shape, 1).view(f"u{form.bits // 8}")
    decode = np.frompyfunc(partial(form.decode, subnormal=name == "float16" != common), 1, 2)
    units, signs = zip(*(decode(parts[..., i]) for i in range(parts.shape[-1])), strict=True)
    if common in PARTS and name not in PARTS:
        units, signs = (units[0], units[0] * 0), (signs[0], np.full(array.shape, 0.0, object))
    return Operand([*map(np.asarray, units)], [*map(np.asarray, signs)], form.unit)


def times(formula: Callable[[Any, Any], Any], a: list[Any], b: list[Any]) -> list[Any]:
    """Apply a bilinear formula to numbers with one part or two; return the parts of the result."""
    with np.errstate(invalid="ignore"):  # of infinities and nans among signs
        if len(a) == 1:
            return [formula(a[0], b[0])]
        return [formula(a[0], b[0]) - formula(a[1], b[1]), formula(a[0], b[1]) + formula(a[1], b[0])]


SUMMED = {"forward": ((2, 3), (2, 3)), "input_grad": ((2, 3), (1, 3)), "weight_grad": ((0, 3), (0, 3))}
"""The axes along which the scale of each operand is the same. The operands have their cells in one axis:

x (batch, groups, channels, cells), w (groups, filters, channels, taps), dout (batch, groups, filters, positions).
"""


def source(mode: str, at: int, size: int) -> int:
    """Return the cell that the padded cell `at` repeats, counted from the first cell; -1 if it is a zero."""
    if mode == "zeros" or 0 <= at < size:
        return at if 0 <= at < size else -1
    if mode == "replicate":
        return min(max(at, 0), size - 1)
    if mode == "circular":
        return at % size
    if mode == "symmetric":
        return min(at % (2 * size), 2 * size - 1 - at % (2 * size))
    assert mode == "reflect"
    at %= max(2 * size - 2, 1)
    return min(at, 2 * size - 2 - at)


@dataclass(frozen=True)
class Layer:
    """A convolution of a batch with channels first, with its padding as cells before and after."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    mode: str = "zeros"

    @cached_property
    def out(self) -> tuple[int, ...]:
        sizes = zip(self.x[2:], self.w[2:], self.stride, self.pads, self.dilation, strict=True)
        return (self.x[0], self.w[0], *((n + sum(pad) - (k - 1) * d - 1) // s + 1 for n, k, s, pad, d in sizes))

    @cached_property
    def reads(self) -> np.ndarray:
        """The cell that each position reads through each tap, counted in C order; -1 for a zero."""
        along = [*zip(self.x[2:], self.stride, self.pads, self.dilation, strict=True)]
        cells = []
        for position in product(*map(range, self.out[2:])):
            for tap in product(*map(range, self.w[2:])):
                flat = 0
                for o, k, (n, s, pad, d) in zip(position, tap, along, strict=True):
                    cell = source(self.mode, o * s + k * d - pad[0], n)
                    flat = -1 if cell < 0 or flat < 0 else flat * n + cell
                cells.append(flat)
        return np.array(cells, int).reshape(math.prod(self.out[2:]), math.prod(self.w[2:]))

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, like: tuple[str, ...] = ()) -> Any:
        """Return the output; `like` are the dtypes of other operands of the call."""
        common = promoted(*(a.dtype.name for a in (x, w, b) if a is not None), *like)
        out = self._product("forward", operand(x, common), operand(w, common), common, common)
        return out if b is None else biased(out, b)

    def input_grad(self, dout: np.ndarray, w: np.ndarray, dtype: str | None = None, like: tuple[str, ...] = ()) -> Any:
        """Return the gradient of x, in the dtype `dtype` if operands, else in the common dtype."""
        common = promoted(dout.dtype.name, w.dtype.name, *like)
        operands = operand(dout, common), operand(w, common).conjugate()
        return self._product("input_grad", *operands, common, dtype or common)

    def weight_grad(self, dout: np.ndarray, x: np.ndarray, dtype: str | None = None, like: tuple[str, ...] = ()) -> Any:
        common = promoted(dout.dtype.name, x.dtype.name, *like)
        operands = operand(dout, common), operand(x, common).conjugate()
        return self._product("weight_grad", *operands, common, dtype or common)

    def all(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, dout: np.ndarray) -> dict[str, np.ndarray]:
        """Return the results of a forward and a backward call."""
        dtypes = tuple(a.dtype.name for a in (x, w, b, dout) if a is not None)
        results = {
            "out": self.forward(x, w, b),
            "dx": self.input_grad(dout, w, x.dtype.name, dtypes),
            "dw": self.weight_grad(dout, x, w.dtype.name, dtypes),
        }
        return results if b is None else {**results, "db": channel_sums(dout, b.dtype.name, dtypes)}

    def transposed(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        """Return the transposed convolution whose adjoint this is: `x` has the shape of this one's output."""
        common = promoted(*(a.dtype.name for a in (x, w, b) if a is not None))
        out = self._product("input_grad", operand(x, common), operand(w, common), common, common)
        return out if b is None else biased(out, b)

    def all_transposed(
        self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, dout: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return all results of the transposed convolution: its `dout` has the shape of this one's input."""
        dtypes = tuple(a.dtype.name for a in (x, w, b, dout) if a is not None)
        common = promoted(*dtypes)
        operands = {
            "x": operand(x, common).conjugate(),
            "w": operand(w, common).conjugate(),
            "dout": operand(dout, common),
        }
        results = {
            "out": self.transposed(x, w, b),
            "dx": self._product("forward", operands["dout"], operands["w"], common, x.dtype.name),
            "dw": self._product("weight_grad", operands["x"], operands["dout"], common, w.dtype.name),
        }
        return results if b is None else {**results, "db": channel_sums(dout, b.dtype.name, dtypes)}

    def _product(self, kind: str, a: Operand, b: Operand, common: str, dtype: str) -> np.ndarray:
        """Return one of the three products; the operands are in the order of `SUMMED`."""
        batch, channels, filters = self.x[0], self.w[1], self.w[0] // self.groups
        split = {
            "x": (batch, self.groups, channels, math.prod(self.x[2:])),
            "w": (self.groups, filters, channels, math.prod(self.w[2:])),
            "out": (batch, self.groups, filters, math.prod(self.out[2:])),
        }
        names, formula, shape = {
            "forward": (("x", "w"), self._forward, self.out),
            "input_grad": (("out", "w"), self._input_grad, self.x),
            "weight_grad": (("out", "x"), self._weight_grad, self.w),
        }[kind]
        a, b = (one.reshaped(*split[name]) for one, name in zip((a, b), names, strict=True))
        along_a, along_b = SUMMED[kind]
        multiples_a, powers_a = a.quantised(along_a, kept(common))
        multiples_b, powers_b = b.quantised(along_b, kept(common))
        # The axes of the powers are put in the place that they have in the result.
        if kind == "forward":
            powers = powers_a + powers_b[None, ..., 0]
        elif kind == "input_grad":
            powers = powers_a + powers_b[None, :, 0]
        else:
            powers = powers_a[0, :, :, None] + powers_b[0, :, None]
        sums = times(formula, multiples_a, multiples_b)
        signs = None if a.finite and b.finite else times(formula, a.signs, b.signs)
        return rounded(sums, powers, signs, dtype, shape)

    def _windows(self, x: Any) -> Any:
        zero = np.zeros((*x.shape[:3], 1), int).astype(object)
        return np.concatenate([x, zero], axis=3)[..., self.reads]

    def _forward(self, x: Any, w: Any) -> Any:
        return np.einsum("ngcpk,gfck->ngfp", self._windows(x), w)

    def _input_grad(self, dout: Any, w: Any) -> Any:
        terms = np.einsum("ngfp,gfck->ngcpk", dout, w)
        dx = np.zeros((*terms.shape[:3], math.prod(self.x[2:])), int).astype(object)
        for (position, tap), cell in np.ndenumerate(self.reads):
            if cell >= 0:
                dx[..., cell] += terms[..., position, tap]
        return dx

    def _weight_grad(self, dout: Any, x: Any) -> Any:
        return np.einsum("ngfp,ngcpk->gfck", dout, self._windows(x))


def rounded(sums: list[Any], powers: Any, signs: list[Any] | None, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Round sums * 2**powers, which are the parts of numbers, to a dtype; nans and infinities are in `signs`."""
    form = part_format(dtype)
    special = np.frompyfunc(lambda n, sign: n if math.isfinite(sign) else form.special(sign), 2, 1)
    patterns = []
    for i, part in enumerate(sums[: 2 if dtype in PARTS else 1]):
        pattern = np.frompyfunc(form.encode, 2, 1)(part, powers)
        patterns.append(pattern if signs is None else special(pattern, signs[i]))
    return array_of(patterns, shape, dtype)


def biased(out: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Add a bias for each channel to the rounded `out`, and round again."""
    name = out.dtype.name
    one, other = operand(out, name), operand(b.reshape(-1, *[1] * (out.ndim - 2)), name)
    unit = min(one.unit, other.unit)
    sums = [(p << (one.unit - unit)) + (q << (other.unit - unit)) for p, q in zip(one.units, other.units, strict=True)]
    with np.errstate(invalid="ignore"):
        signs = [p + q for p, q in zip(one.signs, other.signs, strict=True)]
    return rounded(sums, unit, signs, name, out.shape)


def channel_sums(dout: np.ndarray, dtype: str | None = None, like: tuple[str, ...] = ()) -> np.ndarray:
    """Return the gradient of a bias."""
    common = promoted(dout.dtype.name, *like)
    a = operand(dout, common).reshaped(*dout.shape[:2], math.prod(dout.shape[2:]))
    multiples, powers = a.quantised((0, 2), kept(common))
    with np.errstate(invalid="ignore"):
        sums, signs = ([np.sum(part, axis=(0, 2), initial=0) for part in parts] for parts in (multiples, a.signs))
    return rounded(sums, powers[0, :, 0], signs, dtype or common, dout.shape[1:2])
