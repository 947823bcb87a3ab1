"""A library whose float64 is not IEEE 754's is refused before it gives wrong bits."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

import portconv
from portconv import backends
from portconv.reproducible import probe
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
