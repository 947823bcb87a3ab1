"""Kernels of all families on convolutions drawn at random: their sums, and no memory touched but what is theirs.

`PORTCONV_FUZZ` is how many convolutions are drawn.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)
if os.name != "posix":
    pytest.skip("this system has no mprotect", allow_module_level=True)

from kernels.guarded import Guarded, guarded
from kernels.planned_calls import DTYPES, ROUNDING, RUN, called, padded_by, plain_sums, sizes_of

from portconv.algorithms import compiled
from portconv.kernels import call, families, target, winograd
from portconv.kernels.sizes import Sizes

DRAWN = int(os.environ.get("PORTCONV_FUZZ", "120"))
MOST_PRODUCTS = 3e6 if DRAWN < 1000 else 3e7
CPUS = [state.here(), *([target.cross("avx2", state.here().triple)] if state.here().name == "avx512" else [])]
TARGETS = [cpu.of(element) for cpu in CPUS for element in ROUNDING]
FAMILIES = {name: families.FAMILIES[name] for name in families.OF_OUTPUTS if families.serves(name, "float")}
CHOICES: dict[str, tuple[Any, ...]] = {"memory": (1 << 16, 600 << 10), "skips": (True, False)}
"""What a family may be told beside the sizes."""


MATRICES = {
    1: (
        [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]],
        [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, 1, 1]],
    ),
    2: (
        [[1, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0]],
        [[1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 1, 0], [0, 1, 0]],
        [[1, 1, 0, 1, 0], [0, 1, 1, 0, 1]],
    ),
}
"""By stride: the transforms of cells, of filters and of sums along a dimension, without their signs."""


def drawn(random: np.random.Generator) -> Sizes | None:
    """Sizes of one to four dimensions, of which few are round; half of the kernels are 3x3, 5x5 or their like."""

    def one_of(*numbers: int) -> int:
        return int(random.choice(numbers))

    dims, plain, of_plane = one_of(1, 1, 2, 2, 2, 3, 4), random.random() < 0.45, one_of(1, 1, 2)
    sides = []
    for dim in range(dims):
        if dims < 3:
            size, taps = one_of(1, 2, 3, 5, 7, 8, 13, 14, 16, 17, 28, 31, 50, 97), one_of(1, 2, 3, 3, 3, 5, 7)
        else:
            size, taps = one_of(1, 2, 3, 5, 9, 14), one_of(1, 2, 3)
        stride, dilation = one_of(1, 1, 1, 2, 3, 5), one_of(1, 1, 1, 2, 3)
        if plain:
            taps, stride, dilation = one_of(3, 3, 3, 5, 6, 7), (one_of(1, 2) if dim < dims - 2 else of_plane), 1
        # The gradient of an input may have a negative padding.
        sides.append((size, taps, stride, dilation, one_of(0, 0, 1, 1, 2, 3, -1), one_of(0, 0, 1, 1, 2, 4, -1)))
    groups, channels = one_of(1, 1, 1, 2, 3, 5), one_of(1, 1, 2, 3, 5, 17, 40)
    filters, batch = one_of(1, 2, 3, 4, 7, 8, 9, 16, 33), one_of(1, 1, 2, 3, 5)
    sizes = sizes_of(batch, groups * channels, groups * filters, groups, sides)
    if sizes is None or batch * sizes.positions * groups * channels * filters * sizes.taps > MOST_PRODUCTS:
        return None
    return sizes


def arrays_of(sizes: Sizes, random: np.random.Generator) -> tuple[Any, Any, Any]:
    x = random.standard_normal((sizes.batch, sizes.in_channels, *sizes.size), np.float32)
    w = random.standard_normal((sizes.out_channels, sizes.channels, *sizes.kernel), np.float32)
    return x, w, random.standard_normal(sizes.out_channels, np.float32) if random.random() < 0.7 else None


def options_of(family: ModuleType, random: np.random.Generator) -> dict[str, Any]:
    known = inspect.signature(family.plan_of).parameters
    return {name: values[random.integers(len(values))] for name, values in CHOICES.items() if name in known}


by_target = pytest.mark.parametrize("cpu", TARGETS, ids=lambda cpu: f"{cpu.name}-{cpu.element}")


def typed(cpu: target.Target, sizes: Sizes, *arrays: Any) -> tuple[Any, ...]:
    """Return sizes and arrays in the type of the target's numbers."""
    dtype = DTYPES[cpu.element]
    return sizes._replace(element=cpu.element), *(None if each is None else each.astype(dtype) for each in arrays)


def parts(kernel: int) -> list[tuple[int, int]]:
    """Cut a kernel into parts of 3 taps: where each begins, and its first tap that is not that of another part."""
    return [(min(first, kernel - 3), first) for first in range(0, kernel, 3)]


def magnitudes_of_tiles(sizes: Sizes, x: Any, w: Any, b: Any) -> Any:
    """Return the sums of Winograd's tiles with all numbers, and all entries of the matrices, without their signs."""
    stride = sizes.stride[-1]
    of_inputs, of_filters, of_outputs = (np.array(rows, float) for rows in MATRICES[stride])
    size, step = len(of_inputs), 2 * stride
    tiles = [-(-size // 2) for size in sizes.out[-2:]]
    more = [2 * count - size for count, size in zip(tiles, sizes.out[-2:], strict=True)]
    after = (*sizes.after[:-2], *(a + stride * b for a, b in zip(sizes.after[-2:], more, strict=True)))
    padded = padded_by(abs(x.astype(float)), sizes.before, after)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (-2, -1))
    shape = (sizes.batch, sizes.groups, sizes.filters, *sizes.out[:-2], *tiles, size, size)
    sums, of_parts = np.zeros(shape), [parts(size) for size in sizes.kernel[-2:]]
    for *tap, (top, row), (left, column) in product(*map(range, sizes.kernel[:-2]), *of_parts):
        outer = zip(tap, sizes.dilation, sizes.stride, sizes.out, strict=False)
        where = tuple(slice(k * d, k * d + step * (out - 1) + 1, step) for k, d, step, out in outer)
        rows, columns = (
            slice(at, at + step * (count - 1) + 1, step) for at, count in zip((top, left), tiles, strict=True)
        )
        cells = windows[(slice(None), slice(None), *where, rows, columns)]
        cells = np.einsum("ik,...kl,jl->...ij", of_inputs, cells, of_inputs)
        cells = cells.reshape(sizes.batch, sizes.groups, sizes.channels, *shape[3:])
        part = abs(w.astype(float))[(slice(None), slice(None), *tap)].copy()
        part[..., :row, :], part[..., :column] = 0, 0
        part = part[..., top : top + 3, left : left + 3]
        filters = np.einsum("ik,...kl,jl->...ij", of_filters, part, of_filters)
        filters = filters.reshape(sizes.groups, sizes.filters, sizes.channels, size, size)
        sums += np.einsum("ngc...ij,gfcij->ngf...ij", cells, filters)
    outputs = np.einsum("ik,...kl,jl->...ij", of_outputs, sums, of_outputs)
    whole = np.moveaxis(outputs, -2, -3).reshape(
        sizes.batch, sizes.out_channels, *sizes.out[:-2], 2 * tiles[0], 2 * tiles[1]
    )
    bias = 0 if b is None else abs(b.astype(float)).reshape(sizes.out_channels, *[1] * len(sizes.out))
    return whole[..., : sizes.out[-2], : sizes.out[-1]] + bias


def bound(family: str, sizes: Sizes, x: Any, w: Any, b: Any, magnitudes: Any) -> Any:
    """Return the most that rounding may change: of each term in its run, of each run, and of the bias."""
    terms = sizes.channels * sizes.taps
    if family != "winograd":
        # Runs end at whole channels or within one, so none has less than half of the most terms but a channel's last.
        roundings = min(terms, RUN) + 2 * terms / RUN + sizes.channels * (sizes.taps > RUN) + 2
        return 1.01 * roundings * ROUNDING[sizes.element] * magnitudes
    # Two sums in a row in each of two dimensions for filters and outputs, and one for inputs.
    terms = sizes.channels * winograd.planes_of(sizes)
    roundings = min(terms, RUN) + terms / RUN + 2 * 2 + 2 * 2 + 2 * 1 + 2
    return 1.01 * roundings * ROUNDING[sizes.element] * magnitudes_of_tiles(sizes, x, w, b)


def some(seed: int) -> Iterator[tuple[Sizes, np.random.Generator]]:
    """Draw convolutions, each from a seed of its own, which a failure shows."""
    for number in range(DRAWN):
        random = np.random.default_rng((seed, number))
        sizes = None
        while sizes is None:
            sizes = drawn(random)
        yield sizes, random


@by_target
def test_all_families_compute_the_sums_within_their_memory(cpu: target.Target) -> None:
    used = set()
    for sizes, random in some(len(cpu.name) + cpu.lanes):
        sizes, *arrays = typed(cpu, sizes, *arrays_of(sizes, random))
        expected, magnitudes = plain_sums(sizes, *arrays)
        for name, family in FAMILIES.items():
            options = options_of(family, random)
            if family.plan_of(cpu, sizes, has_bias=arrays[2] is not None, **options) is None:
                continue
            out, flag = called(family, cpu, sizes, arrays, **options)
            error = abs(out - expected)
            assert flag == 0, (name, options, sizes)
            # The expected sums are of float64 themselves.
            allowed = bound(name, sizes, *arrays, magnitudes) * (2 if cpu.element == "double" else 1)
            assert (error <= allowed).all(), (name, options, sizes, error.max())
            used.add(name)
    assert used == set(FAMILIES)


@by_target
@pytest.mark.parametrize("taps", [3, 5])
def test_winograd_reports_what_is_not_finite(cpu: target.Target, taps: int) -> None:
    edge = taps // 2
    sizes = sizes_of(2, 3, 5, 1, [(9, taps, 1, 1, edge, edge), (40, taps, 1, 1, edge, edge)])
    assert sizes is not None
    for place, value in product(((0, 0, 0, 0), (1, 1, 8, 39), (1, 2, 4, 20)), (np.inf, -np.inf, np.nan)):
        x, w = np.ones((2, 3, 9, 40), np.float32), np.ones((5, 3, taps, taps), np.float32)
        x[place] = value
        sizes, x, w = typed(cpu, sizes, x, w)
        assert called(winograd, cpu, sizes, (x, w, None))[1] > 0


class Pages:
    """In place of a thread's scratch memory: it ends at a page that nobody may touch, and begins as nan."""

    def __init__(self) -> None:
        self.held: list[Guarded] = []

    def of(self, size: int) -> call.Scratch:
        memory = Guarded(size)
        cells = memory.array((size // 4,), at_end=True)
        cells[...] = np.nan
        self.held.append(memory)
        return call.Scratch(size, cells.ctypes.data, bytearray())


@pytest.mark.parametrize("name", FAMILIES)
def test_threads_stay_in_their_memory_and_change_no_bit(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(call, "SHARED", 0)
    monkeypatch.setattr(call, "_memory", Pages())
    side = (30, 3, 1, 1, 1, 1)
    for groups, channels in ((1, 24), (24, 24)):
        sizes, random = sizes_of(2, channels, 48, groups, [side, side]), np.random.default_rng(0)
        assert sizes is not None
        plan = FAMILIES[name].plan_of(state.here(), sizes, has_bias=True)
        if plan is None:
            continue
        x, w, _ = arrays_of(sizes, random)
        b = random.standard_normal(48, np.float32)
        (x, held_x), (w, held_w), (b, held_b) = (guarded(array, at_end=True) for array in (x, w, b))
        planned = call.Call(families.Kernel(name, plan.variant), plan)
        outs = []
        for count in [1, 8, 3, 8, 2] * 10:  # more threads stand by than may help
            memory = Guarded(4 * 2 * 48 * 900)
            out = memory.array((2, 48, 30, 30), at_end=True)
            out[...] = np.nan
            assert planned.run(tuple(array.ctypes.data for array in (x, w, b, out)), count) == 0
            outs.append(out.tobytes())
        assert set(outs) == {outs[0]}
        assert np.isfinite(np.frombuffer(outs[0], np.float32)).all()
        assert planned.most > 1
        del held_x, held_w, held_b


def test_the_public_functions_stay_within_their_arrays() -> None:
    # Through the whole package, with arrays that begin or end at a page, in one dimension to three.
    import portconv

    for dims, at_end in product((1, 2, 3), (False, True)):
        random = np.random.default_rng(dims)
        x, w, b = (
            random.integers(-3, 4, shape).astype(np.float32)
            for shape in ((2, 6, *[11] * dims), (9, 6, *[3] * dims), (9,))
        )
        expected = portconv.conv(x, w, b, padding=1, algorithm="gemm")
        held = [guarded(array, at_end=at_end) for array in (x, w, b)]
        for _ in range(3):  # the first call takes another way than those after it
            out = portconv.conv(*(array for array, _ in held), padding=1, algorithm="compiled")
            np.testing.assert_array_equal(out, expected)
    compiled.forget()
