"""What holds of every call, tried on calls drawn at random.

PORTCONV_HYPOTHESIS=thorough tries it on 20,000 calls, the same ones in each run, and PORTCONV_HYPOTHESIS=long on
100,000, which are others each time.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.limited import within
from support.oracle import gamma
from support.plain_sums import (
    COMPUTED,
    HALVES,
    ROUNDING,
    Call,
    common,
    contents,
    dtypes_of,
    kind,
    numpy_dtype,
    put,
    rounded,
    sizes,
    wide,
)
from support.strategies import (
    EXAMPLES,
    PROFILE,
    calls,
    for_all,
    ran,
    some,
    st,
    transposed_calls,
    whole_numbers,
    yes,
)

import portconv
from portconv import ConvShapeError, ConvTypeError, ConvValueError
from portconv.engine.gradients import plans_of

RESULTS = ("out", "dx", "dw", "db")
REFUSALS = 6
"""Three products are planned for a call's arrays, and three for what `used_by` tells."""


def computed_and_own(target, call):
    """The dtype that each result is computed in, and its own."""
    own = dict(call.dtypes)
    dout = own.pop("dout")
    out, every = common(target, *own.values()), common(target, *own.values(), dout)
    return {"out": (out, out), **{f"d{name}": (every, dtype) for name, dtype in own.items()}}


def run(target, call, operands, **options):
    """Forward and backward, as a batch with channels first, and the algorithms used; kind is checked before values."""
    given = call.arguments(target, operands)
    forward, backward = (
        (portconv.conv_transpose_forward, portconv.conv_transpose_backward)
        if call.transposed
        else (portconv.conv_forward, portconv.conv_backward)
    )

    def both():
        out, cache = forward(given["x"], given["w"], given.get("b"), **call.options, **options)
        return dict(zip(RESULTS, (out, *backward(given["dout"], cache)), strict=True)), used_by(cache)

    found, used = within(call.limit, both, refusals=REFUSALS)
    if "b" not in given:
        assert found.pop("db") is None
    shapes = {"out": call.shape(call.out), "dx": call.shape(call.x), "dw": call.w, "db": call.out[1:2]}
    expected = computed_and_own(target, call)
    for name, result in found.items():
        assert target.owns(result), name
        assert tuple(result.shape) == shapes[name], name
        assert target.backend.dtype_name(result.dtype) == expected[name][1], name
    for name, array in call.arguments(target, operands).items():
        assert target.numpy(array).tobytes() == target.numpy(given[name]).tobytes(), name
    found = {name: target.numpy(result) for name, result in found.items()}
    found = {name: call.from_layout(a) if name in ("out", "dx") else a for name, a in found.items()}
    return found, used


def used_by(cache):
    """The algorithms that served the parts of each result."""
    plans = {name: {part.name for part in plan.algorithms} for name, plan in plans_of(cache).items()}
    return plans | {"db": {"gemm"}}


def assert_are(results, truths, bounds=None):
    """Each result is the plain sum rounded once, or within its bound of it."""
    for name, found in results.items():
        truth = truths[name].real if found.dtype.kind != "c" else truths[name]
        if bounds is None:
            assert np.array_equal(found, rounded(truth, found.dtype.name)), name
            continue
        error = wide(found) - truth
        for part in (error.real, error.imag):
            assert np.all(np.abs(part) <= bounds[name]), f"{name}: {np.max(np.abs(part) - bounds[name])} over the bound"


def check_algorithms(target, call):
    operands = call.operands()
    truths = call.truths(operands)
    for algorithm in call.algorithms():
        found, used = run(target, call, operands, algorithm=algorithm)
        assert algorithm == "auto" or set().union(*(used[name] for name in ("out", "dx", "dw"))) == {algorithm}
        exact = call.exact and "fft" not in set().union(*used.values())
        assert_are(found, truths, None if exact else call.bounds(operands, computed_and_own(target, call), used))


def test_every_algorithm_gives_the_plain_sums(target):
    @for_all(target, call=calls(target))
    def check(call):
        check_algorithms(target, call)


def test_every_algorithm_gives_the_plain_sums_of_transposed_convolution(target):
    @for_all(target, call=transposed_calls(target))
    def check(call):
        check_algorithms(target, call)


def windowed(call):
    """The options of a call that `unfold` and `fold` have."""
    return {name: call.options[name] for name in ("stride", "padding", "dilation") if name in call.options}


def columns_shape(call):
    return (call.x[0], call.x[1] * math.prod(call.w[2:]), math.prod(call.out[2:]))


def to_columns(call, windows):
    """Windows (N, C, P1, K1, ...) as columns (N, C * K1 * ..., P1 * ...)."""
    places = range(2, windows.ndim)
    return windows.transpose(0, 1, *places[1::2], *places[::2]).reshape(columns_shape(call))


def from_columns(call, columns):
    windows = columns.reshape(*call.x[:2], *call.w[2:], *call.out[2:])
    return windows.transpose(0, 1, *(2 + at for dim in range(call.dims) for at in (call.dims + dim, dim)))


def bound_of_fold(call, columns):
    """That of a sum of so many numbers: in float32 if they are halves, which are rounded once more."""
    magnitude = call.plain.add_windows(from_columns(call, sizes(wide(columns))))
    name = columns.dtype.name
    error = (
        gamma(call.plain.most_reads, COMPUTED.get(name, name)) + gamma(call.plain.most_reads, "float64")
    ) * magnitude
    step, least = ROUNDING[name] if name in HALVES else (0.0, 0.0)
    return error + step * (magnitude + error) + least


def unfolded_and_folded(target, call):
    """x and columns, and what `unfold` and `fold` make of them; kind is checked before values."""
    name, rng = call.dtypes["x"], np.random.default_rng(call.seed)
    x, columns = (contents(rng, shape, name, call.whole, call.spread) for shape in (call.x, columns_shape(call)))
    given = [put(target, a, call.reversed_axes, call.swapped) for a in (x, columns)]
    options, sizes = windowed(call), (call.x[2:], list(call.w[2:]))
    unfolded = within(call.limit, lambda: portconv.unfold(given[0], call.w[2:], **options), refusals=2)
    folded = within(call.limit, lambda: portconv.fold(given[1], *sizes, **options), refusals=2)
    for result, like in ((unfolded, columns), (folded, x)):
        assert target.owns(result)
        assert tuple(result.shape) == like.shape
        assert target.backend.dtype_name(result.dtype) == name
    return x, columns, target.numpy(unfolded), target.numpy(folded)


def test_unfold_copies_windows_and_fold_adds_them_up(target):
    @for_all(target, call=calls(target, mode="zeros"))
    def check(call):
        x, columns, unfolded, folded = unfolded_and_folded(target, call)
        assert np.array_equal(unfolded, to_columns(call, call.plain.windows(x)))
        truth = call.plain.add_windows(from_columns(call, wide(columns)))
        bounds = None if call.exact else {"folded": bound_of_fold(call, columns)}
        assert_are({"folded": folded}, {"folded": truth}, bounds)


def inner(a, b):
    """<a, b>, linear in a; of integers modulo 2**64."""
    return np.sum(wide(a) * wide(b).conj())


def assert_adjoint(sides, exact):
    """Each side is a result, the operand it goes with, its magnitude and its bound; their inner products are one.

    Of integers modulo 2**bits. The first result is conv(x) on the left, the others gradients on the right. A result
    within its bound puts <result, operand> off by at most <bound, |operand|>, in each part of a complex number, where
    |operand| is |re| + |im|. The inner product, in float64, adds its own: 2 n products of what is at most
    <magnitude + bound, |operand|>.
    """
    (out, y, *_), *gradients = sides
    values = [inner(out, y), *(inner(operand, result) for result, operand, *_ in gradients)]
    if values[0].dtype.kind == "i":
        bits = min(8 * result.dtype.itemsize for result, *_ in sides)
        assert len({int(value) % 2**bits for value in values}) == 1
        return
    if exact:
        assert len({complex(value) for value in values}) == 1
        return
    allowed = []
    for result, operand, magnitude, bound in sides:
        own, most = (float(np.sum(a * sizes(wide(operand)))) for a in (bound, magnitude))
        allowed.append(own + gamma(2 * result.size, "float64") * (most + own))
    for (one, a), (other, b) in combinations(zip(values, allowed, strict=True), 2):
        difference = one - other
        # The sums of magnitudes are themselves rounded, by less than a part in a thousand.
        assert max(abs(difference.real), abs(difference.imag)) <= 1.001 * (a + b)


def check_adjoints(target, call, algorithm):
    """<conv(x), y> == <x, dx(y)> == <w, dw(y)>, by the plain gradient functions where there are such."""
    own = {name: dtype for name, dtype in call.dtypes.items() if name != "b"}
    if algorithm == "auto":
        # Of several dtypes, "auto" may take another algorithm for a gradient alone than the plans of the call say.
        own = dict.fromkeys(own, own["x"])
    elif call.transposed:
        # `conv_transpose_backward` gives the real part of a complex gradient of real numbers, which is no adjoint.
        own = own if kind(own["x"]) != "complex" else dict.fromkeys(own, own["x"])
    call = replace(call, dtypes=own)
    operands = call.operands()
    given = call.arguments(target, operands)
    x, w, y = given["x"], given["w"], given["dout"]
    options = {**call.options, "algorithm": algorithm}

    def all_three():
        if call.transposed:
            out, cache = portconv.conv_transpose_forward(x, w, **options)
            dx, dw, _ = portconv.conv_transpose_backward(y, cache)
        else:
            out, cache = portconv.conv_forward(x, w, **options)
            dx = portconv.conv_input_grad(y, w, call.shape(call.x), **options)
            dw = portconv.conv_weight_grad(y, x, call.w, **options)
        return out, dx, dw, used_by(cache)

    out, dx, dw, used = within(call.limit, all_three, refusals=REFUSALS)
    if call.transposed:
        names = computed_and_own(target, call)
    else:
        pairs = {"out": ("x", "w"), "dx": ("dout", "w"), "dw": ("dout", "x")}
        names = {name: (common(target, *(own[one] for one in pair)),) * 2 for name, pair in pairs.items()}
    magnitudes = call.truths({name: sizes(wide(a)) for name, a in operands.items()})
    # Halves are exact only up to 2**11 and 2**8.
    exact = call.exact and not {*own.values()} & {*HALVES} and "fft" not in set().union(*used.values())
    bounds = dict.fromkeys(names) if exact else call.bounds(operands, names, used)
    sides = [
        (call.from_layout(target.numpy(out)), operands["dout"], magnitudes["out"], bounds["out"]),
        (call.from_layout(target.numpy(dx)), operands["x"], magnitudes["dx"], bounds["dx"]),
        (target.numpy(dw), operands["w"], magnitudes["dw"], bounds["dw"]),
    ]
    assert_adjoint(sides, exact)


def with_algorithm(strategy, exactly=False):
    return strategy.flatmap(lambda call: st.tuples(st.just(call), some(*call.algorithms(exactly))))


def test_both_gradients_are_adjoints(target):
    @for_all(target, drawn=with_algorithm(calls(target)))
    def check(drawn):
        check_adjoints(target, *drawn)


def test_both_gradients_of_transposed_convolution_are_adjoints(target):
    @for_all(target, drawn=with_algorithm(transposed_calls(target)))
    def check(drawn):
        check_adjoints(target, *drawn)


def test_fold_is_the_adjoint_of_unfold(target):
    @for_all(target, call=calls(target, mode="zeros"))
    def check(call):
        x, columns, unfolded, folded = unfolded_and_folded(target, call)
        magnitudes = sizes(wide(unfolded)), call.plain.add_windows(from_columns(call, sizes(wide(columns))))
        exact = call.exact and call.dtypes["x"] not in HALVES
        bound = None if exact else bound_of_fold(call, columns)
        sides = [(unfolded, columns, magnitudes[0], np.zeros(unfolded.shape)), (folded, x, magnitudes[1], bound)]
        assert_adjoint(sides, exact)


def convolved(target, call, operands, algorithm):
    """The output alone, as a batch with channels first."""
    given = call.arguments(target, operands)
    function = portconv.conv_transpose if call.transposed else portconv.conv
    arrays = given["x"], given["w"], given.get("b")
    out = within(call.limit, lambda: function(*arrays, **call.options, algorithm=algorithm), refusals=2)
    return call.from_layout(target.numpy(out))


# Below, floating point holds whole numbers, for which results are exact (see `Call.exact`), but for those of `fft`.


def test_linear_in_x_and_in_w(target):
    # Halves would round sums, and integers of several widths wrap at several places.
    drawn = with_algorithm(calls(target, whole=True, halves=False, mixed=False), exactly=True)
    factors = st.tuples(whole_numbers(-3, 3), whole_numbers(-3, 3))

    @for_all(target, drawn=drawn, factors=factors)
    def check(drawn, factors):
        call, algorithm = drawn
        call = replace(call, dtypes={name: dtype for name, dtype in call.dtypes.items() if name != "b"})
        operands, others = call.operands(), replace(call, seed=call.seed + 1).operands()
        name = call.dtypes["x"]

        def combined(one, other):
            return rounded(factors[0] * wide(one) + factors[1] * wide(other), name)

        out = convolved(target, call, operands, algorithm)
        for changed in ("x", "w"):
            other = convolved(target, call, {**operands, changed: others[changed]}, algorithm)
            mixture = {**operands, changed: combined(operands[changed], others[changed])}
            assert np.array_equal(convolved(target, call, mixture, algorithm), combined(out, other)), changed


def test_a_circular_convolution_commutes_with_shifts(target):
    shifts = st.tuples(*(whole_numbers(-7, 7) for _ in range(3)))

    @for_all(
        target,
        drawn=with_algorithm(calls(target, whole=True, mode="circular", rolls=True), exactly=True),
        shifts=shifts,
    )
    def check(drawn, shifts):
        call, algorithm = drawn
        axes, shifts = tuple(range(2, 2 + call.dims)), shifts[: call.dims]
        operands = call.operands()
        rolled = {**operands, **{name: np.roll(operands[name], shifts, axes) for name in ("x", "dout")}}
        results, _ = run(target, call, operands, algorithm=algorithm)
        others, _ = run(target, call, rolled, algorithm=algorithm)
        for name in ("out", "dx"):
            assert np.array_equal(np.roll(results[name], shifts, axes), others[name]), name
        assert np.array_equal(results["dw"], others["dw"])


def test_groups_are_blocks_along_a_diagonal(target):
    @for_all(target, drawn=with_algorithm(calls(target, whole=True, groups=(2, 3)), exactly=True))
    def check(drawn):
        call, algorithm = drawn
        filters, channels, *kernel = call.w
        operands = call.operands()
        dense = np.zeros((filters, channels * call.groups, *kernel), operands["w"].dtype)
        blocks = [
            (
                slice(filters * i // call.groups, filters * (i + 1) // call.groups),
                slice(channels * i, channels * (i + 1)),
            )
            for i in range(call.groups)
        ]
        for f, c in blocks:
            dense[f, c] = operands["w"][f]
        together = replace(call, w=dense.shape, groups=1, options={**call.options, "groups": 1})
        results, _ = run(target, call, operands, algorithm=algorithm)
        # One group has several channels, which `depthwise` does not serve.
        other = algorithm if algorithm in together.algorithms(exactly=True) else "gemm"
        others, _ = run(target, together, {**operands, "w": dense}, algorithm=other)
        others["dw"] = np.concatenate([others["dw"][block] for block in blocks])
        for name, result in results.items():
            assert np.array_equal(result, others[name]), name


def delta(call, places):
    """One 1 among zeros in the first sample: where, its group, its channel in that group, and x."""
    x = np.zeros(call.x)
    channel = places[0] % call.x[1]
    at = tuple(place % n for place, n in zip(places[1:], call.x[2:], strict=False))
    x[(0, channel, *at)] = 1
    group_in = call.x[1] // call.groups
    return at, channel // group_in, channel % group_in, x


places = st.tuples(*(whole_numbers(0, 11) for _ in range(4)))


def test_full_convolution_of_a_delta_gives_the_flipped_kernel(target):
    drawn = with_algorithm(calls(target, whole=True, mode="zeros", full=True, mixed=False), exactly=True)

    @for_all(target, drawn=drawn, places=places)
    def check(drawn, places):
        call, algorithm = drawn
        if 0 in call.x:
            call = replace(call, x=tuple(max(1, n) for n in call.x))
        at, group, channel, x = delta(call, places)
        operands = {**call.operands(), "x": x.astype(call.operands()["x"].dtype)}
        operands.pop("b", None)
        group_out = call.w[0] // call.groups
        filters = slice(group_out * group, group_out * (group + 1))
        extents = [d * (k - 1) + 1 for d, k in zip(call.dilation, call.w[2:], strict=True)]
        out = tuple(n + e - 1 for n, e in zip(call.x[2:], extents, strict=True))
        expected = np.zeros((call.x[0], call.w[0], *out), operands["w"].dtype)
        window = tuple(slice(i, i + e, d) for i, e, d in zip(at, extents, call.dilation, strict=True))
        expected[(0, filters, *window)] = np.flip(operands["w"][filters, channel], tuple(range(1, 1 + call.dims)))
        assert np.array_equal(convolved(target, call, operands, algorithm), expected)


def test_transposed_convolution_of_a_delta_gives_the_kernel(target):
    @for_all(
        target,
        drawn=with_algorithm(transposed_calls(target, whole=True, bare=True, mixed=False), exactly=True),
        places=places,
    )
    def check(drawn, places):
        call, algorithm = drawn
        call = replace(call, x=(max(1, call.x[0]), *call.x[1:]), out=(max(1, call.x[0]), *call.out[1:]))
        at, group, channel, x = delta(call, places)
        operands = {**call.operands(), "x": x.astype(call.operands()["x"].dtype)}
        operands.pop("b", None)
        group_in, group_out = call.w[0] // call.groups, call.w[1]
        expected = np.zeros(call.out, operands["w"].dtype)
        along = zip(at, call.stride, call.dilation, call.w[2:], strict=True)
        window = tuple(slice(i * s, i * s + d * (k - 1) + 1, d) for i, s, d, k in along)
        expected[(0, slice(group_out * group, group_out * (group + 1)), *window)] = operands["w"][
            group_in * group + channel
        ]
        assert np.array_equal(convolved(target, call, operands, algorithm), expected)


def test_channels_last_is_channels_first_moved(target):
    either = st.one_of(calls(target, whole=True), transposed_calls(target, whole=True))

    @for_all(target, drawn=with_algorithm(either, exactly=True))
    def check(drawn):
        call, algorithm = drawn
        results = [
            run(
                target,
                replace(call, channels_last=last, options={**call.options, "data_format": name}),
                call.operands(),
                algorithm=algorithm,
            )[0]
            for last, name in ((False, "channels_first"), (True, "channels_last"))
        ]
        for name, result in results[0].items():
            assert np.array_equal(result, results[1][name]), name


def test_the_output_has_the_shape_that_shapes_alone_give(target):
    @for_all(target, call=calls(target), listed=yes)
    def check(call, listed):
        options = {name: value for name, value in call.options.items() if name != "padding_mode"}
        shapes = [list(shape) if listed else shape for shape in (call.shape(call.x), call.w)]
        found = portconv.conv_output_shape(*shapes, **options)
        assert found == call.shape(call.out)
        assert {*map(type, (found, *found))} == {tuple, int}
        given = call.arguments(target, call.operands())
        assert tuple(portconv.conv(given["x"], given["w"], **call.options).shape) == found


def test_what_is_not_finite_stays_where_windows_hold_it(target):
    spoilt = st.tuples(some("x", "w", "dout"), some(np.inf, -np.inf, np.nan), whole_numbers(0, 2**16))
    drawn = calls(target, whole=True, kinds=("real", "complex"), mixed=False)

    @for_all(target, call=drawn, spoilt=st.lists(spoilt, min_size=1, max_size=2))
    def check(call, spoilt):
        operands = call.operands()
        for name, value, place in spoilt:
            flat = operands[name].reshape(-1)
            if flat.size:
                flat[place % flat.size] = value
        # Infinities of opposite signs, and infinities times 0, are nans, and say so.
        with np.errstate(invalid="ignore"):
            truths = call.truths(operands)
            for algorithm in call.algorithms(exactly=True):
                found, _ = run(target, call, operands, algorithm=algorithm)
                for name, result in found.items():
                    truth = rounded(truths[name], result.dtype.name)
                    finite = np.isfinite(truth)
                    assert np.array_equal(np.isfinite(result), finite), (algorithm, name)
                    assert np.array_equal(result[finite], truth[finite]), (algorithm, name)
                    if result.dtype.kind != "c":
                        # Of complex numbers, libraries differ in which part an infinity leaves its mark.
                        assert np.array_equal(result[~finite], truth[~finite], equal_nan=True), (algorithm, name)


# What may be wrong with one argument of a legal call.

NUMBERS = ("stride", "padding", "output_padding", "dilation", "groups", "kernel_size")
TEXTS = ("padding_mode", "data_format", "precision", "algorithm")
ARRAYS = ("x", "w", "b", "dout", "columns")
SHAPES = ("x_shape", "w_shape", "output_size")
NO_NUMBERS = (1.0, 1.5, math.nan, True, False, None, b"1", 1j, np.ones(2), np.float64(2), np.True_, slice(1), int)
NO_TEXTS = (None, 0, True, 1.5, b"zeros", ("zeros",), ["auto"], str)
UNKNOWN = ("", "Zeros", "zeros ", "mirror", "NCHW", "SAME", "winograd4", "double")
HUGE = (2**40, 2**53, 2**62)


class Wrong(NamedTuple):
    """What to give instead, the arguments that the message may name, and the errors that it may be."""

    change: dict[str, Any]
    names: tuple[str, ...]
    errors: tuple[type[Exception], ...]


@dataclass(frozen=True)
class Right:
    """A legal call of one of the functions, to be spoilt."""

    draw: Any
    target: Any
    call: Call
    function: str
    given: dict[str, Any]

    @cached_property
    def named(self):
        return [*inspect.signature(getattr(portconv, self.function)).parameters]

    def of(self, names):
        return [name for name in names if name in self.named]

    def has(self, names):
        return [name for name in names if name in self.given]

    def one(self, choices):
        return choices[self.draw(whole_numbers(0, len(choices) - 1))]

    def somewhere(self, value, usual=1):
        """A number for all dimensions, or one of them, with a usual one for the others."""
        if self.draw(yes):
            return value
        entries = [usual] * self.call.dims
        entries[self.draw(whole_numbers(0, self.call.dims - 1))] = value
        return self.draw(some(tuple, list))(entries)

    def shape(self, name):
        return [*(self.given[name] if name in SHAPES else self.given[name].shape)]

    def filled(self, name, shape):
        """The argument of that name, with another shape."""
        shape = tuple(shape)
        return {name: shape if name in SHAPES else put(self.target, np.ones(shape, self.dtype(name)))}

    def dtype(self, name):
        return numpy_dtype(self.call.dtypes.get(name, self.call.dtypes["x"]))

    def longer(self, name, axis, by=1):
        shape = self.shape(name)
        shape[axis] += by
        return self.filled(name, shape)

    def channels(self, name):
        """The axis of the channels of an input or output."""
        return -1 if self.call.channels_last else -1 - self.call.dims

    @property
    def cells(self):
        """One batch at least, so that what is large holds something."""
        return self.call.x[0] > 0


FAULTS = []


def fault(when):
    def register(draws):
        FAULTS.append((when, draws))
        return draws

    return register


@fault(lambda right: right.of(NUMBERS))
def no_number(right):
    name, value = right.one(right.of(NUMBERS)), right.one(NO_NUMBERS)
    return Wrong({name: value if name == "groups" else right.somewhere(value)}, (name,), (ConvTypeError,))


@fault(lambda right: right.of(NUMBERS))
def number_out_of_range(right):
    name = right.one(right.of(NUMBERS))
    value = right.one((-1, -(2**40), -(2**70)) if name.endswith("padding") else (0, -1, -(2**40), -(2**70)))
    return Wrong({name: value if name == "groups" else right.somewhere(value)}, (name,), (ConvValueError,))


@fault(lambda right: right.of(NUMBERS))
def number_of_numbers(right):
    name = right.one([name for name in right.of(NUMBERS) if name != "groups"])
    entries = (1,) * right.one([n for n in range(5) if n != right.call.dims])
    if name == "padding" and right.draw(yes):
        entries = ((1, 1),) * len(entries)
    return Wrong({name: right.draw(some(tuple, list))(entries)}, (name,), (ConvValueError,))


@fault(lambda right: right.of(("groups",)))
def several_groups(right):
    return Wrong({"groups": (1,) * right.draw(whole_numbers(0, 3))}, ("groups",), (ConvTypeError,))


@fault(lambda right: right.of(("padding",)))
def no_pair(right):
    entry, error = right.one(
        [
            ((1,), ConvValueError),
            ((), ConvValueError),
            ([0, 1, 2], ConvValueError),
            ((0, -1), ConvValueError),
            ((1.0, 0), ConvTypeError),
            ((0, None), ConvTypeError),
            ((0, "1"), ConvTypeError),
            ((True, 0), ConvTypeError),
            ((0, (1, 1)), ConvTypeError),
            *([(1, ConvTypeError), ("11", ConvTypeError), (None, ConvTypeError)] if right.call.dims > 1 else []),
        ]
    )
    pairs = [(1, 1)] * right.call.dims
    pairs[right.draw(whole_numbers(0, right.call.dims - 1))] = entry
    return Wrong({"padding": tuple(pairs)}, ("padding",), (error,))


@fault(lambda right: right.of(("padding",)))
def padding_of_another_name(right):
    name = right.one([*UNKNOWN, "zeros", "reflect"] + ["full", "same_lower"] * right.call.transposed)
    return Wrong({"padding": name}, ("padding",), (ConvValueError,))


@fault(lambda right: right.of(TEXTS))
def unknown_text(right):
    name = right.one(right.of(TEXTS))
    return Wrong({name: right.one(UNKNOWN)}, (name,), (ConvValueError,))


@fault(lambda right: right.of(TEXTS))
def no_text(right):
    name = right.one(right.of(TEXTS))
    return Wrong({name: right.one(NO_TEXTS)}, (name,), (ConvTypeError,))


@fault(lambda right: right.has(ARRAYS))
def no_array(right):
    name = right.one(right.has(ARRAYS))
    values = [[1.0], (), 1.0, 3, "x", np.float64, range(3), *([] if name == "b" else [None])]
    return Wrong({name: right.one(values)}, (name,), (ConvTypeError,))


@fault(lambda right: right.has(ARRAYS))
def truth_values(right):
    name = right.one(right.has(ARRAYS))
    return Wrong({name: put(right.target, np.ones(right.shape(name), bool))}, (name,), (ConvTypeError,))


@fault(lambda right: len(right.has(ARRAYS)) > 1 or "cache" in right.given)
def another_kind(right):
    name = right.one(right.has(ARRAYS))
    own = right.call.dtypes[name]
    other = "float32" if kind(own) == "integral" else right.one(("int8", "int32", "uint8"))
    change = {name: put(right.target, np.ones(right.shape(name), other))}
    return Wrong(change, tuple(right.has(ARRAYS)), (ConvTypeError,))


@fault(lambda right: "cache" in right.given and kind(right.call.dtypes["x"]) == "real")
def complex_gradient_of_a_real_output(right):
    return Wrong({"dout": put(right.target, np.ones(right.shape("dout"), "complex64"))}, ("dout",), (ConvTypeError,))


@fault(lambda right: len(right.has(ARRAYS)) > 1 and {"int64", "uint64"} <= {*dtypes_of(right.target)})
def no_common_integer(right):
    names = right.has(ARRAYS)
    signed = right.one(names)
    change = {
        name: put(right.target, np.ones(right.shape(name), "int64" if name == signed else "uint64")) for name in names
    }
    return Wrong(change, tuple(names), (ConvTypeError,))


@fault(lambda right: right.has(("x", "x_shape")) and right.of(("groups",)))
def dimensions_of_x(right):
    (name,) = right.has(("x", "x_shape"))
    shape = right.shape(name)
    dims = right.call.dims
    deeper = (1,) * (dims + right.one((3, 4)) - len(shape))
    shape = right.one([shape[len(shape) - dims :], shape[:1], [], [*deeper, *shape]])
    return Wrong(right.filled(name, shape), (name,), (ConvShapeError,))


@fault(lambda right: right.function == "unfold")
def x_without_cells(right):
    return Wrong(right.filled("x", right.shape("x")[: right.draw(whole_numbers(0, 2))]), ("x",), (ConvShapeError,))


@fault(lambda right: right.has(("w", "w_shape")))
def w_without_a_kernel(right):
    (name,) = right.has(("w", "w_shape"))
    return Wrong(right.filled(name, right.shape(name)[: right.draw(whole_numbers(0, 2))]), (name,), (ConvShapeError,))


@fault(lambda right: right.has(("w", "w_shape")))
def w_of_nothing(right):
    (name,) = right.has(("w", "w_shape"))
    shape = right.shape(name)
    shape[right.draw(whole_numbers(0, len(shape) - 1))] = 0
    return Wrong(right.filled(name, shape), (name,), (ConvShapeError,))


@fault(lambda right: right.has(("x", "x_shape")))
def x_without_channels(right):
    (name,) = right.has(("x", "x_shape"))
    shape = right.shape(name)
    shape[1 if right.function == "unfold" else right.channels(name)] = 0
    return Wrong(right.filled(name, shape), (name, *right.has(("w", "w_shape"))), (ConvShapeError,))


@fault(lambda right: right.has(("x", "x_shape")) and right.of(("groups",)))
def a_channel_too_many(right):
    (x,), (w,) = right.has(("x", "x_shape")), right.has(("w", "w_shape"))
    name = right.one((x, w))
    change = right.longer(name, right.channels(x) if name == x else 0 if right.call.transposed else 1)
    return Wrong(change, (x, w, "groups"), (ConvShapeError, ConvValueError))


@fault(lambda right: right.of(("groups",)))
def groups_that_do_not_divide(right):
    return Wrong({"groups": right.one((right.call.x[1] + 1, 2**40, 2**70))}, ("groups",), (ConvValueError,))


@fault(lambda right: right.has(("w", "w_shape")) and right.call.groups > 1 and not right.call.transposed)
def filters_that_groups_do_not_divide(right):
    (name,) = right.has(("w", "w_shape"))
    return Wrong(right.longer(name, 0), ("groups",), (ConvValueError,))


@fault(lambda right: right.has(("b",)))
def shape_of_b(right):
    filters = right.call.out[1]
    shape = right.one(((filters + 1,), (filters, 1), (1, filters), (), (0,)))
    return Wrong(right.filled("b", shape), ("b",), (ConvShapeError,))


@fault(lambda right: right.has(("dout", "columns")))
def shape_of_dout(right):
    (name,) = right.has(("dout", "columns"))
    shape = right.shape(name)
    axis = 2 if name == "columns" else right.draw(whole_numbers(0, len(shape) - 1))
    others = [[*shape[:axis], n, *shape[axis + 1 :]] for n in (shape[axis] + 1, shape[axis] - 1) if n >= 0]
    others += [shape[1:], [1, *shape], [*shape, 1], []]
    if name == "columns":
        others.append([shape[0], 0, shape[2]])
    return Wrong(right.filled(name, right.one(others)), (name,), (ConvShapeError,))


@fault(lambda right: not right.call.transposed and right.of(("padding",)))
def kernel_that_does_not_fit(right):
    (name,) = right.has(("w", "w_shape", "kernel_size"))
    dim = right.draw(whole_numbers(0, right.call.dims - 1))
    change = {"padding": right.one((0, "valid"))}
    size = right.call.x[2 + dim]
    if right.call.w[2 + dim] > 1 and right.draw(yes):
        change["dilation"] = right.one((size + 1, 2**40, 2**62, 2**70))
    elif name == "kernel_size":
        change[name] = tuple(n + (i == dim) * size for i, n in enumerate(right.call.w[2:]))
    else:
        change |= right.longer(name, 2 + dim, size)
    return Wrong(change, (name, *right.has(("columns",))), (ConvShapeError,))


@fault(lambda right: not right.call.transposed and right.of(("padding",)))
def padding_beyond_addresses(right):
    change = {"padding": right.one((2**62, 2**70, ((2**62, 2**62),) * right.call.dims))}
    return Wrong(change, (*right.has(("x", "x_shape", "output_size")), "padding"), (ConvShapeError,))


@fault(lambda right: right.function in ("conv", "conv_forward", "unfold") and right.cells)
def padding_beyond_memory(right):
    change = {"padding": right.one(HUGE), "stride": 1}
    return Wrong(change, ("x", "padding"), (ConvShapeError,))


@fault(lambda right: right.of(("output_padding",)) and right.cells)
def output_beyond_memory(right):
    change = {"stride": right.one(HUGE), "output_padding": right.one(HUGE) - 1, "padding": 0}
    # A kernel of one tap may be dilated by more than any stride.
    if change["output_padding"] >= min(max(change["stride"], gap) for gap in right.call.dilation):
        return Wrong(change, ("output_padding",), (ConvValueError,))
    return Wrong(change, ("x",), (ConvShapeError,))


@fault(lambda right: right.of(("output_padding",)) and right.cells and max(right.call.x[2:]) > 1)
def stride_beyond_memory(right):
    change = {"stride": right.one((*HUGE, 2**63, 2**70)), "padding": 0}
    return Wrong(change, ("x",), (ConvShapeError,))


@fault(lambda right: right.of(("output_padding",)) and right.cells and max(right.call.w[2:]) > 1)
def dilation_beyond_memory(right):
    change = {"dilation": right.one((*HUGE, 2**63, 2**70)), "padding": 0}
    return Wrong(change, ("x",), (ConvShapeError,))


@fault(lambda right: right.of(("output_padding",)))
def padding_that_takes_all(right):
    if right.draw(yes):
        return Wrong({"padding": right.one((2**40, 2**62, 2**70))}, ("x", "padding"), (ConvShapeError,))
    dim = right.draw(whole_numbers(0, right.call.dims - 1))
    pairs = [*right.call.pads]
    pairs[dim] = (pairs[dim][0] + right.call.out[2 + dim], pairs[dim][1])
    return Wrong({"padding": pairs}, ("x", "padding"), (ConvShapeError,))


@fault(lambda right: right.of(("output_padding",)))
def output_padding_of_a_stride(right):
    steps = [max(each) for each in zip(right.call.stride, right.call.dilation, strict=True)]
    return Wrong({"output_padding": tuple(steps)}, ("output_padding",), (ConvValueError,))


@fault(lambda right: right.has(("x",)) and right.of(("output_padding",)))
def x_of_no_cells(right):
    shape = right.shape("x")
    cells = [axis for axis in range(len(shape)) if axis - len(shape) != right.channels("x")]
    shape[right.one(cells if right.call.unbatched else cells[1:])] = 0
    return Wrong(right.filled("x", shape), ("x",), (ConvShapeError,))


@fault(
    lambda right: right.has(("x", "x_shape")) and "padding_mode" in right.named and "transpose" not in right.function
)
def nothing_to_fill_the_padding_from(right):
    (name,) = right.has(("x", "x_shape"))
    shape = right.shape(name)
    cells = [axis for axis in range(len(shape)) if axis - len(shape) != right.channels(name)]
    shape[right.one(cells if right.call.unbatched else cells[1:])] = 0
    mode = right.one(("reflect", "symmetric", "replicate", "circular"))
    change = {**right.filled(name, shape), "padding": 8, "padding_mode": mode}
    return Wrong(change, (name,), (ConvShapeError,))


@fault(lambda right: right.has(("x_shape", "output_size")) and right.cells)
def result_beyond_memory(right):
    (name,) = right.has(("x_shape", "output_size"))
    shape = right.shape(name)
    axis = right.channels(name) - 1 if right.call.channels_last and name == "x_shape" else -1
    shape[axis] = right.one((2**62, 2**63, 2**70))
    if right.function == "conv_output_shape":
        shape[axis] = 2**70
    return Wrong({name: tuple(shape), "stride": 1}, (name, "dout", "columns"), (ConvShapeError,))


@fault(lambda right: right.has(SHAPES))
def no_shape(right):
    name = right.one(right.has(SHAPES))
    shape = right.shape(name)
    entry = [*shape]
    entry[right.draw(whole_numbers(0, len(shape) - 1))] = right.one((1.0, True, None, "1", (1,), math.nan))
    return Wrong({name: right.one((None, 5, "12", 1.5, {*shape}, entry, tuple(entry)))}, (name,), (ConvTypeError,))


@fault(lambda right: right.has(SHAPES))
def negative_size(right):
    name = right.one(right.has(SHAPES))
    shape = right.shape(name)
    shape[right.draw(whole_numbers(0, len(shape) - 1))] = right.one((-1, -(2**40), -(2**70)))
    return Wrong({name: shape}, (name,), (ConvShapeError,))


@fault(lambda right: "algorithm" in right.named and not right.call.tiled)
def tiles_for_another_kernel(right):
    return Wrong({"algorithm": "winograd"}, ("algorithm",), (ConvValueError,))


@fault(lambda right: right.has(("cache",)))
def foreign_cache(right):
    x, w = put(right.target, np.ones((1, 1, 3))), put(right.target, np.ones((1, 1, 2)))
    other = portconv.conv_forward if right.call.transposed else portconv.conv_transpose_forward
    cache = right.one([None, (), 1, other(x, w)[1], other(x, w)])
    return Wrong({"cache": cache}, ("cache",), (ConvTypeError,))


def given_to(function, target, call):
    """The arguments of a legal call of a function, by name."""
    arrays = call.arguments(target, call.operands())
    if function in ("unfold", "fold"):
        columns = put(target, np.ones(columns_shape(call), numpy_dtype(call.dtypes["x"])))
        x = put(target, np.ones(call.x, numpy_dtype(call.dtypes["x"])))
        own = {"x": x} if function == "unfold" else {"columns": columns, "output_size": call.x[2:]}
        return {**own, "kernel_size": call.w[2:], **windowed(call)}
    if function.endswith("backward"):
        forward = portconv.conv_transpose_forward if call.transposed else portconv.conv_forward
        _, cache = forward(arrays["x"], arrays["w"], arrays.get("b"), **call.options)
        return {"dout": arrays["dout"], "cache": cache}
    shapes = {"x_shape": call.shape(call.x), "w_shape": call.w}
    names = inspect.signature(getattr(portconv, function)).parameters
    return {name: value for name, value in (arrays | shapes | call.options).items() if name in names}


@st.composite
def spoilt_calls(draw, target, strategy, *functions):
    """A function, the arguments of a legal call of it but for one that is wrong, and what the error should say."""
    call, function = draw(strategy), draw(some(*functions))
    right = Right(draw, target, call, function, given_to(function, target, call))
    draws = right.one([draws for when, draws in FAULTS if when(right)])
    wrong = draws(right)
    return function, {**right.given, **wrong.change}, wrong, draws.__name__


def check_spoilt(function, arguments, wrong, reason):
    with pytest.raises(portconv.PortconvError) as caught:
        getattr(portconv, function)(**arguments)
    message = str(caught.value)
    assert isinstance(caught.value, wrong.errors), (reason, message)
    assert re.match(rf"({'|'.join(wrong.names)})(\[\d+\])*: got .*, expected ", message), (reason, message)
    assert not {*"{}"} & {*message} or isinstance(arguments[wrong.names[0]], set), (reason, message)


def test_one_wrong_argument_is_an_error_that_names_it(target):
    functions = (
        "conv",
        "conv_forward",
        "conv_backward",
        "conv_input_grad",
        "conv_weight_grad",
        "conv_output_shape",
    )

    @for_all(target, spoilt=spoilt_calls(target, calls(target), *functions))
    def check(spoilt):
        check_spoilt(*spoilt)


def test_one_wrong_argument_is_an_error_that_names_it_transposed_and_in_windows(target):
    transposed = ("conv_transpose", "conv_transpose_forward", "conv_transpose_backward")
    spoilt = st.one_of(
        spoilt_calls(target, transposed_calls(target), *transposed),
        spoilt_calls(target, calls(target, mode="zeros"), "unfold", "fold"),
    )

    @for_all(target, spoilt=spoilt)
    def check(spoilt):
        check_spoilt(*spoilt)


def test_as_many_examples_ran_as_the_profile_asks_for(request):
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("no process of pytest-xdist's sees all examples")
    properties = {name for name, test in globals().items() if name.startswith("test_") and "target" in signature(test)}
    chosen = [item for item in request.session.items if item.module is request.module and "target" in item.fixturenames]
    if properties != {item.originalname for item in chosen if item.callspec.id == "numpy"}:
        pytest.skip("only some of the properties were chosen, or not NumPy")
    assert {*ran} == properties
    assert min(ran.values()) >= 0.9 * EXAMPLES[PROFILE][0]
    assert sum(ran.values()) >= {"default": 300, "thorough": 20_000, "long": 100_000}[PROFILE]


def signature(test):
    return inspect.signature(test).parameters
