"""The instruction builder: small functions are compiled for this CPU, and compute what Python computes."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)

from portconv.kernels import compile
from portconv.kernels.emit import Argument, Function, Module
from portconv.kernels.record import Record

TARGET = state.here()
LANES = TARGET.lanes
INTEGERS = (Argument("a"), Argument("b"))
ARRAYS = (Argument("x", "*float"), Argument("out", "*float"), Argument("n"))


class Compiled:
    """A function in memory, which takes numbers and arrays."""

    def __init__(self, *functions):
        module = Module(functions)
        self.loaded = compile.Loaded(compile.compiled(module, TARGET), module.public, TARGET)
        (address,) = self.loaded.addresses.values()
        kinds = [ctypes.c_int64 if kind.element == "i64" else ctypes.c_void_p for kind in functions[-1].arguments]
        self.call = ctypes.CFUNCTYPE(ctypes.c_int64, *kinds)(address)

    def __call__(self, *values):
        return self.call(*(value.ctypes.data if isinstance(value, np.ndarray) else value for value in values))


def of_integers(write):
    code = Function("run", INTEGERS, TARGET, public=True, returns=True)
    code.give(write(code, *code.given))
    return Compiled(code)


OPERATIONS = {
    "+": (lambda code, a, b: a + b, lambda a, b: a + b),
    "-": (lambda code, a, b: a - b, lambda a, b: a - b),
    "7 -": (lambda code, a, b: 7 - a + b * 3, lambda a, b: 7 - a + b * 3),
    "*": (lambda code, a, b: a * b, lambda a, b: a * b),
    "<<": (lambda code, a, b: a << 3, lambda a, b: a << 3),
    "minimum": (lambda code, a, b: code.minimum(a, b), min),
    "maximum": (lambda code, a, b: code.maximum(a, 5), lambda a, b: max(a, 5)),
    "select": (lambda code, a, b: code.select(a < b, a, 9), lambda a, b: a if a < b else 9),
    "is_index": (lambda code, a, b: code.select(a.is_index(6), 1, 0), lambda a, b: int(0 <= a < 6)),
    "equals": (lambda code, a, b: code.select(~a.equals(b) & (a >= 2), 1, 0), lambda a, b: int(a != b and a >= 2)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_integers_are_python_s(name):
    write, expected = OPERATIONS[name]
    run = of_integers(write)
    pairs = [(a, b) for a in (-5, -1, 0, 1, 2, 6, 1 << 40) for b in (-3, 0, 1, 4, 6)]
    assert [run(a, b) for a, b in pairs] == [expected(a, b) for a, b in pairs]


def test_divisions_of_what_is_not_negative():
    run = of_integers(lambda code, a, b: a // b * 1000 + a % b + (a >> 1) + (a & 5))
    pairs = [(a, b) for a in (0, 1, 7, 100, 999) for b in (1, 3, 10, 1000)]
    assert [run(a, b) for a, b in pairs] == [a // b * 1000 + a % b + (a >> 1) + (a & 5) for a, b in pairs]


def test_loops_branches_and_jumps():
    def write(code, a, b):
        total, times = code.variable(0), code.variable(0)
        with code.loop(1, a, 2) as i, code.loop(0, i) as j, code.when((i + j).equals(b)):
            total.set(total.get() + i * 10 + j)
        with code.repeat() as end:
            code.leave(times.get() * times.get() >= a, end)
            times.set(times.get() + 1)
        return total.get() * 1000 + times.get()

    def expected(a, b):
        total = sum(10 * i + j for i in range(1, a, 2) for j in range(i) if i + j == b)
        return total * 1000 + (0 if a <= 0 else math.isqrt(a - 1) + 1)

    run = of_integers(write)
    pairs = [(a, b) for a in (-1, 0, 1, 2, 5, 16, 17) for b in (1, 6, 9)]
    assert [run(a, b) for a, b in pairs] == [expected(a, b) for a, b in pairs]


def test_a_function_calls_another_of_its_module():
    inner = Function("inner", INTEGERS, TARGET, returns=True)
    inner.give(inner.given[0] * 3 + inner.given[1])
    outer = Function("outer", INTEGERS, TARGET, public=True, returns=True)
    outer.give(outer.call(inner, outer.given[1], 4))
    assert [*Module([inner, outer]).public] == ["outer"]
    assert Compiled(inner, outer)(100, 5) == 19


def of_arrays(write):
    code = Function("run", ARRAYS, TARGET, public=True, returns=True)
    write(code, *code.given)
    code.give(0)
    return Compiled(code)


def numbers(count, seed=0):
    return np.random.default_rng(seed).normal(size=count).astype("float32")


def test_masks_choose_the_lanes_that_are_loaded_and_stored():
    def write(code, x, out, n):
        code.store(code.load(x, code.lanes_between(None, n)), out)
        code.store(code.load(x), out + LANES, code.lanes_between(2, n))
        code.store(code.load(x, code.mask_of_bits(n * 2)), out + 2 * LANES)

    run, x, lanes = of_arrays(write), numbers(LANES), np.arange(LANES)
    for n in (-(1 << 40), -1, 0, 1, 3, LANES - 1, LANES, LANES + 1, 1 << 40):
        out = np.full(3 * LANES, -9, dtype="float32")
        run(x, out, n)
        np.testing.assert_array_equal(out[:LANES], np.where(lanes < n, x, 0))
        np.testing.assert_array_equal(out[LANES : 2 * LANES], np.where((lanes >= 2) & (lanes < n), x, -9))
        np.testing.assert_array_equal(out[2 * LANES :], np.where((n * 2) >> lanes & 1, x, 0))


def test_gathers_shuffles_and_splats():
    def write(code, x, out, n):
        code.store(code.gather(x, n, code.lanes_between(1, LANES - 1)), out)
        both = code.load(x), code.load(x + LANES)
        code.store(code.shuffle(*both, [2 * lane for lane in range(LANES)]), out + LANES)
        code.store(code.splat(x[n]), out + 2 * LANES)

    run, x, out = of_arrays(write), numbers(5 * LANES), np.zeros(3 * LANES, dtype="float32")
    run(x, out, 5)
    gathered = x[::5].copy()
    gathered[[0, -1]] = 0
    np.testing.assert_array_equal(out, [*gathered, *x[: 2 * LANES : 2], *[x[5]] * LANES])


def test_a_product_and_sum_are_rounded_once():
    def write(code, x, out, n):
        a, b = code.load(x), code.load(x + LANES)
        code.store(code.fma(a, b, code.zeros - a * b), out)
        code.store(a + b, out + LANES)

    run, x, out = of_arrays(write), numbers(2 * LANES), np.zeros(2 * LANES, dtype="float32")
    run(x, out, 0)
    a, b = x[:LANES], x[LANES:]
    # Products of two float32 numbers are exact in float64, and so is what rounding leaves.
    np.testing.assert_array_equal(out[:LANES], (a.astype("float64") * b - a * b).astype("float32"))
    assert np.any(out[:LANES] != 0)
    np.testing.assert_array_equal(out[LANES:], a + b)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_in_each_lane(value):
    code = Function("run", ARRAYS[:1], TARGET, public=True, returns=True)
    vector = code.load(code.given[0])
    code.give(code.is_not_finite(code.fma(vector, code.zeros, code.zeros)))
    run, x = Compiled(code), numbers(LANES) * np.float32(1e38)
    assert run(x) == 0
    for lane in range(LANES):
        bad = x.copy()
        bad[lane] = value
        assert run(bad) == 1


def test_a_record_is_read_as_it_was_packed():
    record = Record("first", "second", "list")
    code = Function("run", (Argument("memory", "*i64"),), TARGET, public=True, returns=True)
    fields = record.read(code.given[0])
    code.give(fields.first * 100 + fields.second + fields.pointer("list", "i64")[2])
    listed = np.array([1, 2, 3000])
    packed = record.packed(second=7, first=5, list=listed.ctypes.data)
    assert packed == [5, 7, listed.ctypes.data]
    assert Compiled(code)(np.array(packed)) == 3507


def test_text_of_a_kernel_is_the_same_each_time():
    from portconv.kernels.families import kernels

    for kernel in kernels()[::4]:
        assert kernel.written(TARGET).text == kernel.written(TARGET).text
