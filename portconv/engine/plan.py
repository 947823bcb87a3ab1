"""How a product is computed: what memory it takes, and into which parts it is cut."""

from __future__ import annotations

import math
from functools import lru_cache

from ..backends import Backend
from ..passes.casts import computed_in
from ..passes.partition import Copies
from ..spec.dtypes import HALVES, Dtype
from ..spec.geometry import Geometry


@lru_cache(maxsize=1024)
def copies(
    backend: Backend,
    dtype: Dtype,
    geometry: Geometry,
    purpose: str,
    a: object,
    b: object,
    slices: bool = True,
    exact: int = 0,
) -> Copies:
    """Count the bytes of copies that a product makes before and after an algorithm works on it.

    `a` and `b` are the dtypes of its operands, in the order of `compute`; `exact` is how many products of slices it is
    made of where it is reproducible.
    """
    wide = backend.bits(computed_in(backend, dtype, slices).dtype) // 8
    own = backend.bits(dtype.dtype) // 8
    if exact:
        # In slices, in float64, as are their products.
        operands, result, wide = [8 * exact] * 2, 8 * exact, 8 * exact
    elif dtype.kind == "integral" and slices:
        # As it was given, in slices as they are cut, of at least 8 bits each, and as they are multiplied.
        most = -(-(8 * own + 1) // 8)
        operands, result = [own + most * (wide + 2 * own)] * 2, 3 * wide + 3 * own
    elif dtype.kind == "integral":
        operands, result = [own] * 2, own
    else:
        computed = computed_in(backend, dtype).dtype
        conjugates = dtype.kind == "complex floating" and purpose != "forward"
        operands = [wide if conjugates or backend.native(given) != computed else 0 for given in (a, b)]
        result = wide if dtype.name in HALVES else 0
    shapes = {"x": geometry.x_shape[1:], "w": geometry.w_shape, "out": geometry.out_shape[1:]}
    names = {"forward": ("x", "w", "out"), "input_grad": ("out", "w", "x"), "weight_grad": ("out", "x", "w")}[purpose]
    sizes = {name: math.prod(shapes[name]) * size for name, size in zip(names, (*operands, result), strict=True)}
    sample = sizes["x"] + sizes["out"]
    if geometry.extended is not geometry:
        sample += geometry.in_channels * math.prod(geometry.padded) * max(wide, own)
    # A part's own result, before it is put where it belongs; of filters, what it is added to as well.
    results = {"forward": math.prod(shapes["out"]) * own, "input_grad": math.prod(shapes["x"]) * own}
    return Copies(
        sample, sizes["w"], results.get(purpose, 0), 0 if purpose in results else 2 * math.prod(shapes["w"]) * wide
    )
