"""A library whose float64 is not IEEE 754's is refused before it gives wrong bits."""

from __future__ import annotations

import ctypes
import ctypes.util
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

import portconv
from portconv import backends
from portconv.kernels import call, state
from portconv.reproducible import blocks, probe
from portconv.reproducible.powers import powers_of_two


def backend(product=np.matmul, rounded=np.round):
    """NumPy, but for what it makes of products and of halves."""

    class Other(type(backends.get("numpy"))):
        name = "other"
        xp = SimpleNamespace(**{**vars(np), "round": rounded})

        def product(self, a, b, out=None):
            return product(a, b)

    return Other()


def shortened(bits: int, fewest: int = 0):
    """Matrix products of operands cut to so many bits, where there are as many terms or more."""

    def product(a, b):
        if a.shape[-1] < fewest:
            return np.matmul(a, b)
        cut = [np.ldexp(np.trunc(np.ldexp(m, bits)), e - bits) for m, e in map(np.frexp, (a, b))]
        return np.matmul(*cut)

    return product


@pytest.mark.parametrize(
    ("product", "held"),
    [
        (np.matmul, True),
        # The operands have 24 bits and 21, and a power of two in each has one.
        (shortened(24), True),
        (shortened(23), False),
        (shortened(20, fewest=1000), False),  # as where only large products are emulated
        (lambda a, b: np.matmul(a, b) + (np.abs(np.matmul(a, b)) == 2.0**53), True),  # 2**53 + 1 is 2**53
        (lambda a, b: np.nextafter(np.matmul(a, b), math.inf), False),
        (lambda a, b: np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(np.float64), False),
    ],
    ids=["exact", "24 bits", "23 bits", "20 bits of large ones", "as rounded", "off by an ulp", "float32"],
)
def test_products_must_be_exact(product, held):
    other, like = backend(product), np.ones(1)
    if held:
        powers = powers_of_two(other, like).numbers
        assert (powers[0], powers[-1], powers.shape) == (2.0**-1022, 2.0**1023, (2046,))
        return
    with pytest.raises(portconv.BackendError) as caught:
        powers_of_two(other, like)
    assert "precision: got 'reproducible' on other, device cpu, where float64 products of" in str(caught.value)
    assert "unset CUBLAS_EMULATE_DOUBLE_PRECISION" in str(caught.value)


def test_halves_must_be_rounded_to_even():
    with pytest.raises(portconv.BackendError, match="are not exact"):
        powers_of_two(backend(rounded=lambda x: np.floor(x + 0.5)), np.ones(1))


def test_operands_take_all_the_bits_that_there_are():
    assert [more + 2 * bits for bits, more, _ in probe.SIZES] == [53, 53]


def test_it_is_asked_once_a_device():
    count = 0

    def counting(a, b):
        nonlocal count
        count += 1
        return np.matmul(a, b)

    other = backend(counting)
    for _ in range(3):
        powers_of_two(other, np.ones(1))
    assert count == 3 * len(probe.SIZES)


UPWARD, DOWNWARD, TOWARD_ZERO = 0x800, 0x400, 0xC00
"""The modes of fesetround on x86."""


@contextmanager
def rounding(mode: int):
    """Set this thread's rounding mode inside."""
    name = ctypes.util.find_library("m")
    libm = ctypes.CDLL(name) if name else None
    if libm is None or not hasattr(libm, "fesetround"):
        pytest.skip("needs a libm with fesetround")
    before = libm.fegetround()
    if libm.fesetround(mode):
        pytest.skip("this CPU has other rounding modes")
    try:
        yield
    finally:
        libm.fesetround(before)


@pytest.mark.parametrize("mode", [UPWARD, DOWNWARD, TOWARD_ZERO])
@pytest.mark.parametrize("threaded", [False, True])
def test_a_thread_that_does_not_round_to_nearest_is_refused(mode, threaded):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 4, 64, 64)), rng.standard_normal((4, 4, 3, 3))
    options = {"precision": "reproducible"}
    expected = portconv.conv(x, w, **options).tobytes()
    entered = []

    def in_mode():
        with rounding(mode):
            entered.append(mode)
            with pytest.raises(portconv.BackendError, match="a thread that does not round to nearest"):
                portconv.conv(x, w, **options)

    if threaded:  # a thread has a mode of its own, so this one still rounds to nearest
        with ThreadPoolExecutor(1) as pool:
            pool.submit(in_mode).result()
    else:
        in_mode()
    assert entered == [mode]
    assert portconv.conv(x, w, **options).tobytes() == expected


def test_a_worker_that_does_not_round_to_nearest_is_refused():
    """The caller rounds to nearest, but a thread that it shares the blocks with does not."""

    class Workers(type(backends.get("numpy"))):
        name = "workers"

        def fill(self, out, blocks, compute, least):
            def work():
                with rounding(UPWARD):
                    return super(Workers, self).fill(out, blocks, compute, 1)

            with ThreadPoolExecutor(1) as pool:
                return pool.submit(work).result()

    array = np.ones((1, 1, 3))
    with pytest.raises(portconv.BackendError, match="a thread that does not round to nearest"):
        blocks.fill(Workers(), array, [((...,), None)], lambda block, target, workspace: target, 1)


def test_threads_that_help_kernels_round_to_nearest():
    """Whatever the mode of the call that starts them, whose mode they begin in."""
    if state.fault() is not None:
        pytest.skip(f"there are no kernels here: {state.fault()}")
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((8, 32, 40, 40), np.float32), rng.standard_normal((32, 32, 3, 3), np.float32)
    with portconv.num_threads(1):
        expected = portconv.conv(x, w, precision="reproducible").tobytes()
    call._start_afresh()
    with portconv.num_threads(4):
        with rounding(UPWARD):
            portconv.conv(x, w)
        found = [portconv.conv(x, w, precision="reproducible").tobytes() for _ in range(5)]
    assert set(found) == {expected}


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_flushing_subnormal_numbers_changes_no_bit(name):
    """Operands and results have none, and nothing between is below float64's normal numbers."""
    torch = pytest.importorskip("torch")
    least = {"float16": 2.0**-14, "float32": 2.0**-126, "float64": 2.0**-1022}[name]
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((2, 3, 9, 9)) * 4 * least).astype(name)
    w, dout = rng.standard_normal((4, 3, 3, 3)).astype(name), rng.standard_normal((2, 4, 7, 7)).astype(name)

    def bits():
        arrays = [portconv.conv(x, w, precision="reproducible")]
        arrays += [portconv.conv_weight_grad(dout, x, w.shape, precision="reproducible")]
        arrays += [portconv.conv_input_grad(dout, w, x.shape, precision="reproducible")]
        arrays += [portconv.conv(x, w.astype("float64"), precision="reproducible")]
        return [array.tobytes() for array in arrays]

    expected = bits()
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU does not flush subnormal numbers")
    try:
        assert np.float32(2.0**-126) * np.float32(0.5) == 0
        assert bits() == expected
    finally:
        torch.set_flush_denormal(False)
