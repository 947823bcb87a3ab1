"""The exact values of a case, and how far from them a result can be by rounding alone.

A sum of n products, rounded after each operation in whichever order, is within gamma_n * sum |a| |b| of the exact sum,
with gamma_n = n u / (1 - n u) and u = eps / 2: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed.
(2002), section 3.1. Fused or wider arithmetic only helps. There is no term for underflow, because no product of the
numbers that `cases` makes comes near it. Winograd's tiles are sums of products too, if of other ones: see `tiles`; and
what bounds products of spectra is put in the form of sums: see `spectra`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..algorithms import fft, winograd
from ..convolution import conv_backward, conv_forward
from .cases import Case, Inputs
from .spectra import spectral
from .tiles import Doubles, Sums, tiled

TF32_OPERAND = 2.0**-10
"""The largest relative error of a float32 cut to TF32's 10 explicit bits: NVIDIA, "NVIDIA A100 Tensor Core GPU
Architecture" (2020)."""


@dataclass(frozen=True)
class Exact:
    """One quantity of one case, by `direct` in float64 on NumPy.

    Attributes
    ----------
    value : array
        Not quite exact: see `radius`.
    plain : Sums
        How many terms its sums have, at most, and the same sums over the terms' magnitudes.
    others : mapping of str to Sums
        The like by the name of an algorithm that makes other sums, where it can serve: `winograd` and `fft`.
    products : bool
        Whether the terms are products, which fast arithmetic may round more coarsely.
    """

    value: Doubles
    plain: Sums
    others: Mapping[str, Sums]
    products: bool

    def reach(self, dtype: str, precision: str, algorithm: str = "direct") -> Doubles:
        """How far a result in `dtype`, by that algorithm, can be from the exact value, per element."""
        terms, magnitude = self.others.get(algorithm, self.plain)
        # The sum of magnitudes was itself rounded in float64, perhaps down.
        return relative(terms, dtype, precision, self.products) * magnitude / (1 - gamma(terms))

    @property
    def radius(self) -> Doubles:
        """How far `value` can be from the exact value, per element."""
        return self.reach("float64", "standard")


def gamma(terms: int, unit: float = 2.0**-53) -> float:
    """Compute gamma_n for `terms` terms and the unit roundoff `unit`, which is float64's unless given."""
    return terms * unit / (1 - terms * unit)


def relative(terms: int, dtype: str, precision: str, products: bool) -> float:
    """Bound the error of a sum of `terms` terms, relative to the sum of their magnitudes.

    Fast arithmetic in float32 may cut both factors of a product to TF32, and its sums may be truncated where others are
    rounded, which doubles u: Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores" (PeerJ
    Computer Science, 2021), section 4.
    """
    eps = float(np.finfo(dtype).eps)
    if precision == "fast" and dtype == "float32" and products:
        return (1 + TF32_OPERAND) ** 2 * (1 + gamma(terms, eps)) - 1
    return gamma(terms, eps / 2)


def exact(case: Case, inputs: Inputs | None = None) -> dict[str, Exact]:
    """Compute the exact values of a case, and the sums of magnitudes that bound its errors.

    Parameters
    ----------
    case : Case
    inputs : Inputs, optional
        Other numbers than the case's own.

    Returns
    -------
    dict of str to Exact
        By quantity: out, dx, dw and, where there is a bias, db.
    """
    given = case.inputs() if inputs is None else inputs
    doubles = [None if array is None else array.astype(np.float64) for array in given]
    values = _direct(case, *doubles)
    sizes = [None if array is None else np.abs(array) for array in doubles]
    plain, others = _direct(case, *sizes), _others(case, *sizes)
    return {
        name: Exact(
            values[name],
            Sums(case.terms[name], plain[name]),
            {algorithm: sums[name] for algorithm, sums in others.items() if name in sums},
            products=name != "db",
        )
        for name in case.quantities
    }


def _direct(case: Case, x: Any, w: Any, b: Any, dout: Any) -> dict[str, Doubles]:
    out, cache = conv_forward(x, w, b, **case.options, algorithm="direct")
    return {"out": out, **conv_backward(dout, cache)._asdict()}


def _others(case: Case, x: Any, w: Any, b: Any, dout: Any) -> dict[str, dict[str, Sums]]:
    """The sums of the algorithms that make others than plain ones, of magnitudes as the case has them."""
    geometry = case.geometry
    last, channels = case.data_format == "channels_last", -1 - geometry.dims
    cells, grads = (np.moveaxis(a, -1, channels) if last else a for a in (x, dout))
    given = (cells.reshape(geometry.x_shape), w, b, grads.reshape(geometry.out_shape))
    found = {}
    if fft.objection(geometry) is None:
        found["fft"] = spectral(geometry, *given)
    if winograd.objection(geometry) is None and geometry.extended is geometry:
        found["winograd"] = tiled(geometry, *given)

    def seen(name: str, magnitude: Doubles) -> Doubles:
        if name == "dw":
            return magnitude
        magnitude = magnitude.reshape((cells if name == "dx" else grads).shape)
        return np.moveaxis(magnitude, channels, -1) if last else magnitude

    return {
        algorithm: {name: Sums(sums.terms, seen(name, sums.magnitude)) for name, sums in by_name.items()}
        for algorithm, by_name in found.items()
    }
