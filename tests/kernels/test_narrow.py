"""Copies of narrow numbers into packs and other types: every bit, beside pages that nobody may touch."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)
if os.name != "posix":
    pytest.skip("this system has no mprotect", allow_module_level=True)

from kernels.guarded import guarded
from kernels.planned_calls import by_plan, compiled, plain_sums, sizes_of
from kernels.test_guard_pages import CPUS

from portconv.kernels import casts, packs, panels, target
from portconv.kernels.values import BRAINS

by_cpu = pytest.mark.parametrize("cpu", CPUS, ids=lambda cpu: cpu.name)
SOURCES = {"bytes": np.uint8, "pairs": np.uint16, "bfloat16s": np.uint16}
TYPES = {
    **{"i8": np.int8, "i16": np.int16, "i32": np.int32},
    **{"half": np.float16, "float": np.float32, "bfloat": np.uint16},
}
"""The dtype of numbers in memory; of bfloat16 the bits."""
NAN, INFINITE = 0x7FC0, 0x7F80


def copied(family: Any, cpu: target.Target, plan: Any, source: Any, size: int, dtype: Any) -> tuple[Any, int]:
    """Return what a kernel makes of an array, so many numbers, and its flag: the same at both ends of the memory."""
    call, _ = compiled(family, plan.variant, cpu)
    values, results = np.array(plan.values, np.int64), []
    for at_end in (False, True):
        (x, kept), (out, held) = (guarded(array, at_end=at_end) for array in (source, np.zeros(size, dtype)))
        flag = call(*(array.ctypes.data for array in (values, x, x, x, out, out, out)))
        results.append((out.copy(), flag))
        del kept, held
    (first, flag), (second, other) = results
    assert first.tobytes() == second.tobytes()
    assert flag == other
    return first, flag


@by_cpu
@pytest.mark.parametrize("variant", packs.VARIANTS)
def test_packs_have_the_rows_of_a_matrix_and_zeros(cpu: target.Target, variant: str) -> None:
    random, of_packs, dtype = np.random.default_rng(0), cpu.of("i32"), SOURCES[variant]
    count = 4 // np.dtype(dtype).itemsize
    for matrices, rows, columns in ((1, 1, 1), (3, 5, 9), (2, 4, 16), (1, 7, 33), (5, 2, 1), (1, 3, 20_000)):
        source = random.integers(0, np.iinfo(dtype).max, (matrices, rows, columns), dtype, endpoint=True)
        whole = -(-rows // count)
        expected = np.zeros((matrices, whole * count, columns), dtype)
        expected[:, :rows] = source
        expected = expected.reshape(matrices, whole, count, columns).swapaxes(2, 3).copy().view(np.int32)
        plan = packs.plan_of(of_packs, variant, matrices, rows, columns)
        found, _ = copied(packs, of_packs, plan, source, expected.size, np.int32)
        assert np.array_equal(found, expected.ravel())


@by_cpu
def test_packs_of_bfloat16_say_whether_a_number_is_tiny(cpu: target.Target) -> None:
    # 2**-50 is 1.0 with an exponent of 77; what is less is tiny, but for zeros. What is not finite is not.
    least = 77 << 7
    for numbers, is_tiny in (
        ([0, 1 << 15, least, least | 1 << 15, NAN, INFINITE], 0),
        ([least - 1], 1),
        ([(least - 1) | 1 << 15], 1),
        ([1], 1),
    ):
        for columns in (1, 40):
            source = np.full((2, columns), numbers[0], np.uint16)
            source.ravel()[-len(numbers) :] = numbers[-source.size :]
            plan = packs.plan_of(cpu.of("i32"), "bfloat16s", 1, 2, columns)
            assert copied(packs, cpu.of("i32"), plan, source, columns, np.int32)[1] == is_tiny


@by_cpu
def test_packs_of_bfloat16_are_multiplied_in_float32(cpu: target.Target) -> None:
    random, sizes = np.random.default_rng(0), sizes_of(2, 70, 9, 1, [(50, 3, 1, 1, 1, 1)])
    assert sizes is not None
    packed = [random.standard_normal((*shape, 2), np.float32) for shape in ((2, 70, 50), (9, 70, 3))]
    packed = [(each.view(np.uint32) >> 16).astype(np.uint16) for each in packed]
    x, w = (each.view(np.float32)[..., 0] for each in packed)
    numbers = [(each.astype(np.uint32) << 16).view(np.float32) for each in packed]
    numbers = [np.moveaxis(each, -1, 2).reshape(each.shape[0], 140, each.shape[2]) for each in numbers]
    sums, magnitudes = plain_sums(sizes._replace(in_channels=140), *numbers, None)
    plan = panels.plan_of(cpu.of(BRAINS), sizes._replace(element=BRAINS), has_bias=False)
    found, flag = by_plan(panels, cpu.of(BRAINS), plan, (x, w, None), sums.shape)
    assert flag == 0
    # A term is rounded once in its run of 128 packs, and once for each of two runs.
    assert np.all(np.abs(found - sums) <= 1.01 * (2 * 128 + 2) * 2.0**-24 * magnitudes)


def bits_of_singles(random: np.random.Generator) -> Any:
    """Numbers of float32 of all kinds: half way between two of bfloat16, or nearly so, subnormal, infinite and nans."""
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    low = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    return np.concatenate([high + each for each in low] + [random.integers(0, 1 << 32, 1000, np.uint32)])


def to_bfloat(singles: Any) -> Any:
    """Round numbers of float32 to the nearest of bfloat16, ties to even: what is dropped is compared with one half."""
    bits = singles.view(np.uint32).astype(np.uint64)
    high, low = bits >> 16, bits & 0xFFFF
    up = (low > 0x8000) | ((low == 0x8000) & (high & 1 == 1))
    # A nan keeps its sign and its first bits, and becomes a quiet one.
    return np.where(np.isnan(singles), high | 0x40, high + up).astype(np.uint16)


@by_cpu
@pytest.mark.parametrize("variant", casts.VARIANTS)
def test_casts_are_those_of_array_libraries(cpu: target.Target, variant: str) -> None:
    random, (read, written) = np.random.default_rng(0), variant.split("-")
    if read == "float":
        source = bits_of_singles(random).view(np.float32)
    elif read == "i32":
        source = random.integers(-(1 << 31), 1 << 31, 70_001).astype(np.int32)
    else:
        source = np.arange(1 << 16, dtype=np.uint16).astype(np.uint8 if read == "i8" else np.uint16).view(TYPES[read])
    with np.errstate(all="ignore"):
        if "bfloat" in variant:
            single = source.astype(np.uint32) << 16 if read == "bfloat" else None
            expected = to_bfloat(source) if single is None else single.view(np.float32)
        else:
            expected = source.astype(TYPES[written])
    for count in (1, 17, source.size):
        plan = casts.plan_of(cpu, variant, count)
        found, flag = copied(casts, cpu, plan, source[-count:], count, TYPES[written])
        assert flag == 0
        if written in ("float", "half"):  # a nan may have other bits
            nans = np.isnan(expected[-count:])
            assert np.array_equal(np.isnan(found), nans)
            found, expected_bits = found[~nans], expected[-count:][~nans]
        else:
            expected_bits = expected[-count:]
        assert found.tobytes() == expected_bits.tobytes()
