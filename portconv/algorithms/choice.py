"""Which algorithm serves a call, and why: the one whose work takes least, by a few constants of the array library.

Each algorithm says how much it would do of what takes time: operations of matrix products, elements that are copied or
added, points of Fourier transforms times their levels, and calls. A backend's `costs` say how long one of each takes;
`portconv bench --calibrate` measures them on the machine at hand (see `calibration`).
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import NamedTuple

from .. import algorithms as package
from .. import calibration
from ..backends import Array, Backend
from ..errors import ConvValueError
from ..spec.arguments import option
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from .budget import Limits, Work, limits

WORTH = 1.25
"""How much faster spectra must be to be taken: their errors are small beside the largest sums of a tile alone."""

SLICED = "slices"
"""The kind of a dtype that holds whole numbers which no algorithm may round."""

_NAMES = ("winograd", "fft", "depthwise", "gemm", "direct")


def algorithms() -> tuple[str, ...]:
    """Name the algorithms, in the order that ``algorithm="auto"`` considers them.

    Returns
    -------
    tuple of str
        "auto" takes the one that it expects to be fastest, and never "direct", the readable truth that the others are
        held against.

    Examples
    --------
    >>> portconv.algorithms()
    ('winograd', 'fft', 'depthwise', 'gemm', 'direct')
    """
    return _NAMES


class Candidate(NamedTuple):
    """An algorithm, and why it was taken or not.

    Attributes
    ----------
    name : str
    cost : float or None
        The time it is expected to take, over that of the one that was taken; None where it cannot serve.
    why_not : str or None
        Why it cannot serve, or is not considered.
    """

    name: str
    cost: float | None
    why_not: str | None


@dataclass(frozen=True)
class Explanation:
    """Which algorithm a call takes, and what that means.

    Attributes
    ----------
    algorithm : str
        Its name.
    block : dict of str to int
        What it works on at a time: samples, groups, positions and the like.
    workspace_bytes : int
        The most memory that the call takes for each of its threads, beside the result.
    candidates : tuple of Candidate
        Every algorithm, in the order of `algorithms()`.
    """

    algorithm: str
    block: dict[str, int]
    workspace_bytes: int
    candidates: tuple[Candidate, ...]


class Choice(NamedTuple):
    """The algorithm that serves a product, the bounds on its blocks, and its work."""

    algorithm: ModuleType
    bounds: Limits
    work: Work

    def compute(self, kind: str, geometry: Geometry, backend: Backend, *operands: Array) -> Array:
        """Compute a product: of `x`, `w` and a bias or None, of `dout` and `w`, or of `dout` and `x`."""
        return getattr(self.algorithm, kind)(geometry, backend, self.bounds, *operands)

    def roundings(self, kind: str, geometry: Geometry, backend: Backend) -> int:
        """Count how many roundings a product of finite numbers goes through at most, its own among them."""
        if hasattr(self.algorithm, "chain"):
            return int(self.algorithm.chain(geometry, kind, backend, self.bounds))
        return geometry.terms(kind)

    def with_short_sums(self, positions: int) -> Choice:
        """Return the same choice with sums of at most so many positions of a weight gradient at once."""
        return self._replace(bounds=self.bounds._replace(run=positions))


class _Considered(NamedTuple):
    name: str
    cost: float
    work: Work | None
    why_not: str | None


@cache
def _module(name: str) -> ModuleType:
    """Import an algorithm when it is first needed: `direct` needs a library that the others do without."""
    return importlib.import_module(f"{package.__name__}.{name}")


@lru_cache(maxsize=2048)
def choose(
    algorithm: str, geometry: Geometry, backend: Backend, dtype: Dtype, purpose: str, room: int, strict: bool = True
) -> Choice:
    """Choose for one product: "forward", "input_grad" or "weight_grad".

    Parameters
    ----------
    algorithm : str
        A name, or "auto".
    geometry : Geometry
    backend : Backend
    dtype : Dtype
        What the product is computed in.
    purpose : str
    room : int
        The most bytes of workspace a thread.
    strict : bool
        Whether to refuse where nothing can do with as much; else it is what `gemm` can do with.

    Returns
    -------
    Choice

    Raises
    ------
    ConvValueError
        If the algorithm of that name cannot serve, or none can with so much workspace.
    """
    option("algorithm", algorithm, ("auto", *_NAMES))
    bits = backend.bits(dtype.dtype)
    bounds = limits(geometry, backend, bits, room)
    if dtype.kind == SLICED:  # whose filters are several, and read again for each block
        bounds = bounds._replace(elements=2 * bounds.elements)
    if not strict:
        name = "gemm" if algorithm == "auto" else algorithm
        smallest = _one(name, geometry, backend, dtype, purpose, limits(geometry, backend, bits, 8))
        if smallest.work is not None:
            bounds = bounds._replace(room=max(bounds.room, smallest.work.need))
    if algorithm == "auto":
        found = min(consider(geometry, backend, dtype, purpose, bounds), key=lambda one: one.cost)
        if found.why_not is not None:
            least = _least(geometry, backend, dtype, purpose)
            raise ConvValueError(
                f"workspace_limit: got {room} bytes, expected at least {least}, what this call's smallest blocks take"
            )
    else:
        found = _one(algorithm, geometry, backend, dtype, purpose, bounds)
        if found.why_not is not None:
            raise ConvValueError(
                f"algorithm: got {algorithm!r} for a kernel of {geometry.kernel}, stride {geometry.stride} and "
                f"dilation {geometry.dilation} in {dtype.name}, expected 'auto', or {found.why_not}"
            )
    assert found.work is not None
    return Choice(_module(found.name), bounds, found.work)


def consider(
    geometry: Geometry, backend: Backend, dtype: Dtype, purpose: str, bounds: Limits
) -> tuple[_Considered, ...]:
    """Weigh each algorithm but `direct`, in their order."""
    return tuple(_one(name, geometry, backend, dtype, purpose, bounds) for name in _NAMES[:-1])


def explanation(choice: Choice, geometry: Geometry, dtype: Dtype, backend: Backend, more: int) -> Explanation:
    """Explain the choice for a forward product, which takes `more` bytes beside the algorithm's workspace."""
    own = choice.algorithm.__name__.rpartition(".")[2]
    weighed = {one.name: one for one in consider(geometry, backend, dtype, "forward", choice.bounds)}
    taken = weighed[own].cost if own in weighed else None
    candidates = []
    for name in _NAMES:
        if name not in weighed:
            candidates.append(Candidate(name, None, None if name == own else "by name only: it is slow"))
        elif weighed[name].why_not is not None:
            verb = "serves" if weighed[name].work is None else "needs"
            candidates.append(Candidate(name, None, f"{verb} {weighed[name].why_not}"))
        else:
            candidates.append(Candidate(name, weighed[name].cost / taken if taken else None, None))
    need = choice.work.need * backend.bits(dtype.dtype) // 8 + more
    return Explanation(own, dict(choice.work.block), need, tuple(candidates))


def _one(name: str, geometry: Geometry, backend: Backend, dtype: Dtype, purpose: str, bounds: Limits) -> _Considered:
    module = _module(name)
    why_not = _unserved(name, backend, dtype) or module.objection(geometry)
    if why_not is not None:
        return _Considered(name, math.inf, None, why_not)
    if 0 in geometry.x_shape and (purpose == "input_grad" or not geometry.batch):  # no work, and no plan of it
        return _Considered(name, 0.0 if name == "gemm" else math.inf, Work(0, 0, 0, 0, 0, {}), None)
    work = module.work(geometry, purpose, bounds)
    if work.need > bounds.room:
        size = work.need * backend.bits(dtype.dtype) // 8
        return _Considered(name, math.inf, work, f"a workspace_limit of at least {size} bytes")
    costs = calibration.costs(backend)
    spent = zip(costs, (work.operations, work.elements, work.transforms, work.calls), strict=True)
    cost = sum(cost * count for cost, count in spent)
    return _Considered(name, cost * (WORTH if name == "fft" else 1), work, None)


def _least(geometry: Geometry, backend: Backend, dtype: Dtype, purpose: str) -> int:
    """The fewest bytes of workspace that any algorithm can do with."""
    bounds = limits(geometry, backend, backend.bits(dtype.dtype), 8)
    needs = [one.work.need for one in consider(geometry, backend, dtype, purpose, bounds) if one.work is not None]
    return min(needs) * backend.bits(dtype.dtype) // 8


def _unserved(name: str, backend: Backend, dtype: Dtype) -> str | None:
    """Say what dtypes an algorithm serves where it does not this one."""
    if dtype.kind == SLICED and name in ("winograd", "fft"):
        return "a precision other than 'reproducible'"
    # Tiles halve integers, and the bound of their error is one of real numbers; spectra round integers.
    if name == "winograd" and dtype.kind != "real floating":
        return "real floating point"
    if name == "fft" and (dtype.kind == "integral" or not hasattr(backend.xp, "fft")):
        return "floating point" if dtype.kind == "integral" else "a library with Fourier transforms"
    return None
