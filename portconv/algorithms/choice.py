"""The choice of the algorithm that computes a product: the one with the least expected time.

Each algorithm counts its work in five numbers: operations of matrix products, elements that are copied or added, points
of Fourier transforms times their levels, calls, and operations of the library's own convolution. A backend's `costs`
say how many nanoseconds one of each takes; `portconv bench --calibrate` measures them on a machine (see `calibration`).
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from .. import calibration, forks
from ..backends import Array, Backend
from ..errors import ConvValueError
from ..spec.arguments import option
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.remembered import remembered
from .algorithm import SLICED as SLICED
from .algorithm import Algorithm, LibraryError, RoundedProduct, RoundedSums, registered
from .budget import NO_WORK, Budget, Work, budget_of

AUTO = "auto"
PLAIN = "plain"
"""This name stands for the cheapest algorithm that computes every result. Users cannot give it."""
TOO_MANY_STEPS = 1000.0
"""The cost of a product is multiplied by this if it has more steps than a library should compile."""
WHOLE = "whole"
"""This name stands for the cheapest algorithm that multiplies integers as they are. Users cannot give it."""
FALL_BACK_STEPS = 16
"""A step counts this many times in a product that is compiled to replace the result of another algorithm. Such results
are few: short code matters more than speed."""


class Problem(NamedTuple):
    """A product for which an algorithm is chosen.

    Attributes
    ----------
    kind : Kind or str
    geometry : Geometry
    dtype : Dtype
        The dtype in which it is computed.
    backend : Backend
    device : str
        The kind of device that the arrays are on (see `Backend.device_kind`).
    """

    kind: str
    geometry: Geometry
    dtype: Dtype
    backend: Backend
    device: str = ""

    @property
    def bits(self) -> int:
        """The number of bits of an element."""
        return self.backend.bits(self.dtype.dtype)

    def budget(self, workspace: int) -> Budget:
        """Return the budget of the product with `workspace` bytes of workspace."""
        budget = budget_of(self.geometry, self.backend, self.bits, workspace, self.device)
        return budget._replace(dtype=self.backend.dtype_name(self.dtype.dtype))


@dataclass(frozen=True)
class Explanation:
    """Which algorithm a call takes, with its blocks, its memory, and the other algorithms.

    Attributes
    ----------
    algorithm : str
        Its name.
    block : dict of str to int
        The size of the blocks that it works on: samples, groups, positions and others.
    workspace_bytes : int
        The most bytes of memory that the call takes for each of its threads, in addition to the result.
    candidates : tuple of Candidate
        Every algorithm, in the order of `algorithms()`.
    """

    algorithm: str
    block: dict[str, int]
    workspace_bytes: int
    candidates: tuple[Candidate, ...]

    def __str__(self) -> str:
        """Write it as a table, of which `time` is the expected time over that of the algorithm that is taken."""
        block = ", ".join(f"{name} {size}" for name, size in self.block.items())
        lines = [
            f"{self.algorithm}{block and f', blocks of {block}'}",
            f"at most {self.workspace_bytes} bytes of workspace for each thread",
            "algorithm    time",
        ]
        for name, cost, why_not in self.candidates:
            time = "" if cost is None else f"{cost:.2f}"
            lines.append(f"{name:<10} {time:>6}  {'taken' if name == self.algorithm else why_not or ''}".rstrip())
        return "\n".join(lines)


class Candidate(NamedTuple):
    """An algorithm, with its expected time or the reason why a call cannot take it.

    Attributes
    ----------
    name : str
    cost : float or None
        Its expected time, divided by that of the algorithm that is taken; None if it does not support the call.
    why_not : str or None
        Why it does not support the call or is not considered; None if it is considered.
    """

    name: str
    cost: float | None
    why_not: str | None


class Weighed(NamedTuple):
    """An algorithm with its expected nanoseconds and its work, or with what it supports or needs, in words."""

    algorithm: Algorithm
    cost: float
    work: Work | None
    why_not: str | None

    @property
    def name(self) -> str:
        """The algorithm's name."""
        return self.algorithm.name


class Choice(NamedTuple):
    """The algorithm that computes a problem, the budget of its blocks, its work, and whether the user named it."""

    problem: Problem
    algorithm: Algorithm
    budget: Budget
    work: Work
    is_named: bool = False

    def compute(self, kind: str, geometry: Geometry, backend: Backend, *operands: Array) -> Array:
        """Compute a product of `x`, `w` and a bias or None, of `dout` and `w`, or of `dout` and `x`.

        If the algorithm cannot vouch for its result, another one computes it. If that one cannot either, because its
        mirrored filters are not finite, it computes the result without mirrored filters.
        """
        try:
            result = self.algorithm.compute(kind, geometry, backend, self.budget, *operands)
        except LibraryError as error:
            if self.is_named:
                raise
            warnings.warn(f"{error}; another algorithm computes", RuntimeWarning, stacklevel=2)
            result = None
        return self._by_another(kind, geometry, backend, *operands) if result is None else result

    def _by_another(self, kind: str, geometry: Geometry, backend: Backend, *operands: Array) -> Array:
        """Compute a product that the chosen algorithm cannot vouch for."""
        if not self.algorithm.widens_halves:
            dtype = self.problem.dtype.dtype
            operands = tuple(None if each is None else backend.astype(each, dtype) for each in operands)
        other = fall_back(self.problem._replace(kind=kind, geometry=geometry, backend=backend), self.budget)
        result = None
        if other is not self.algorithm:
            result = other.compute(kind, geometry, backend, self.budget, *operands)
        if result is None:
            result = other.compute(kind, geometry, backend, self.budget._replace(mirrored=False), *operands)
        return result

    def rounded(self, kind: Kind, geometry: Geometry, backend: Backend) -> RoundedProduct | None:
        """Return what computes a product as if sums of quantised operands were exact, if the algorithm can."""
        return self.algorithm.rounded(kind, geometry, backend, self.budget)

    def roundings(self, kind: str, geometry: Geometry, backend: Backend) -> int:
        """Count how often a term of a sum is rounded at most, its multiplication included; all numbers are finite."""
        return self.algorithm.roundings(kind, geometry, backend, self.budget)

    def with_short_sums(self, terms: int) -> Choice:
        """Return the same choice for products that add up at most so many terms at once."""
        return self._replace(budget=self.budget._replace(summed_terms=terms))


@cache
def _import_all() -> None:
    """Import the modules of this folder, which register their algorithms.

    This takes time, so it waits until an algorithm is first needed.
    """
    package = sys.modules[__package__]
    for module in forks.imported("pkgutil").iter_modules(package.__path__):
        forks.imported(f"{__package__}.{module.name}")


@remembered()
def known() -> dict[str, Algorithm]:
    """Return all algorithms by name, sorted by their `order`."""
    _import_all()
    return {algorithm.name: algorithm for algorithm in registered()}


@remembered()
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
    ('compiled', 'winograd', 'fft', 'depthwise', 'native', 'gemm', 'tap_loop', 'direct')
    """
    return tuple(known())


def sums_of_channels(backend: Backend, cells: Array) -> Callable[[Array], Array | None] | None:
    """Return the fastest way that an algorithm has of adding up each channel of such arrays, or None."""
    found = (algorithm.channel_sums(backend, cells) for algorithm in known().values())
    return next((compute for compute in found if compute is not None), None)


def plane_magnitudes(backend: Backend, cells: Array) -> Array | None:
    """Return the largest magnitude of each channel of an array (N, C, ...), if an algorithm finds it fast."""
    found = (algorithm.plane_magnitudes(backend, cells) for algorithm in known().values())
    return next((magnitudes for magnitudes in found if magnitudes is not None), None)


def rounded_sums(backend: Backend, shape: tuple[int, ...]) -> RoundedSums | None:
    """Return what quantises the channels of arrays of this shape and rounds their sums, if an algorithm can."""
    found = (algorithm.rounded_sums(backend, shape) for algorithm in known().values())
    return next((compute for compute in found if compute is not None), None)


def named(name: str) -> Algorithm | None:
    """Return the algorithm of that name; None if the name is "auto" or `PLAIN`."""
    return known().get(name)


def integer_bits(name: str, bits: int) -> int:
    """Return in how many bits an algorithm, or for "auto" one of those, multiplies integers as they are; 0 if none."""
    return max(algorithm.integer_bits(bits) for algorithm in _candidates(name))


@remembered()
def choose(problem: Problem, name: str, workspace: int, strict: bool) -> Choice:
    """Choose an algorithm for a product.

    Parameters
    ----------
    problem : Problem
    name : str
        The name of an algorithm, "auto", or `PLAIN`.
    workspace : int
        The maximum number of bytes of workspace for each thread.
    strict : bool
        Whether to raise an error if every algorithm needs more workspace. If not, the budget grows to the least that
        is needed.

    Returns
    -------
    Choice

    Raises
    ------
    ConvValueError
        If the algorithm of that name does not support the product, or none can compute it with so little workspace.
    """
    if name not in (PLAIN, WHOLE):
        option("algorithm", name, (AUTO, *algorithms()))
    candidates = _candidates(name)
    budget = problem.budget(workspace)._replace(limited=strict)
    if problem.dtype.kind in (SLICED, "integral"):
        budget = budget._replace(exact=True)
    if problem.dtype.kind == SLICED:  # each block reads several slices of the filters, so there are to be fewer blocks
        budget = budget._replace(block_elements=2 * budget.block_elements)
    if not strict:
        least = _least_workspace(problem, [one for one in candidates if one.vouches] or candidates)
        budget = budget._replace(workspace_elements=max(budget.workspace_elements, least))
    best = min((weigh(one, problem, budget) for one in candidates), key=lambda weighed: weighed.cost)
    if best.work is None or best.why_not is not None:
        raise refusal(problem, name, workspace, best.why_not)
    return Choice(problem, best.algorithm, budget, best.work, is_named=name in known())


def consider(problem: Problem, budget: Budget) -> tuple[Weighed, ...]:
    """Weigh each algorithm that "auto" considers, sorted by their `order`."""
    serving, why_not = _candidates(WHOLE if budget.dtype.startswith("int") else AUTO), "integers cut into slices"
    return tuple(
        weigh(one, problem, budget) if one in serving else Weighed(one, math.inf, None, why_not)
        for one in _candidates(AUTO)
    )


def objection(algorithm: Algorithm, problem: Problem) -> str | None:
    """Return None if an algorithm serves a product with enough memory; otherwise say what it does serve."""
    kind, geometry, dtype, backend, device = problem
    if (why_not := algorithm.lacks(kind, geometry, device)) is not None:
        return why_not
    if dtype.kind != SLICED:
        return algorithm.objection(geometry, dtype, backend)
    # Slices are whole numbers in float64, whose plain sums are exact.
    why_not = algorithm.objection(geometry, dtype._replace(kind="real floating"), backend)
    exact = algorithm.plain_sums and algorithm.sums_slices
    return why_not if exact else "a precision other than 'reproducible'"


def weigh(algorithm: Algorithm, problem: Problem, budget: Budget, step: int = 1) -> Weighed:
    """Estimate the time of a product by an algorithm; for a library that compiles, each step counts `step` times."""
    kind, geometry, dtype, backend, device = problem
    why_not = objection(algorithm, problem)
    if why_not is not None:
        return Weighed(algorithm, math.inf, None, why_not)
    if 0 in geometry.x_shape and (kind == Kind.INPUT_GRAD or not geometry.batch):  # there is no work to plan
        return Weighed(algorithm, 0.0 if algorithm.vouches else math.inf, NO_WORK, None)
    work = algorithm.work(kind, geometry, budget, backend)
    grows = algorithm.vouches or algorithm.grows
    if work.workspace_elements > budget.workspace_elements and (budget.limited or not grows):
        size = work.workspace_elements * problem.bits // 8
        return Weighed(algorithm, math.inf, work, f"a workspace_limit of at least {size} bytes")
    costs = calibration.costs(backend, device)
    cost = sum((each or 0) * count for each, count in zip(costs, work.counts, strict=True))
    if backend.compiled_steps is not None and step * work.steps > backend.compiled_steps:
        cost *= TOO_MANY_STEPS
    cost *= algorithm.handicap * (algorithm.times_of_complex if dtype.kind == "complex floating" else 1.0)
    return Weighed(algorithm, cost, work, None)


@remembered()
def fall_back(problem: Problem, budget: Budget) -> Algorithm:
    """Return the algorithm that computes a result that another one cannot vouch for.

    It is the cheapest of those that compute every result; its work is counted without mirrored filters. If all need
    more than the budget, it is the one that takes the least workspace.
    """
    budget = budget._replace(mirrored=False)
    weighed = [weigh(one, problem, budget, FALL_BACK_STEPS) for one in _candidates(PLAIN)]
    supported = [one for one in weighed if one.work is not None]
    return min(supported, key=lambda one: (one.cost, one.work.workspace_elements if one.work else 0)).algorithm


def explanation(choice: Choice, more: int, least: Callable[[str], int | None]) -> Explanation:
    """Explain a choice; the product takes `more` bytes of memory in addition to the algorithm's workspace.

    `least` returns the least limit under which the algorithm of a name serves the call, or None.
    """
    weighed = {one.name: one for one in consider(choice.problem, choice.budget)}
    taken = choice.algorithm.name
    cost = weighed[taken].cost if taken in weighed else None
    candidates = []
    for name in algorithms():
        if name not in weighed:
            candidates.append(Candidate(name, None, None if name == taken else "by name only: it is slow"))
        elif weighed[name].why_not is not None:
            why_not = f"serves {weighed[name].why_not}"
            if weighed[name].work is not None:
                why_not = f"needs a workspace_limit of at least {least(name)} bytes"
            candidates.append(Candidate(name, None, why_not))
        else:
            candidates.append(Candidate(name, weighed[name].cost / cost if cost and cost < math.inf else None, None))
    workspace = choice.work.workspace_elements * choice.problem.bits // 8 + more
    return Explanation(taken, dict(choice.work.block), workspace, tuple(candidates))


def _candidates(name: str) -> list[Algorithm]:
    """Return the algorithms that are considered under a name."""
    if name in known():
        return [known()[name]]
    automatic = [one for one in known().values() if one.automatic]
    if name == WHOLE:
        return [one for one in automatic if one.integer_bits(8)]
    return [one for one in automatic if name == AUTO or one.vouches]


def _least_workspace(problem: Problem, candidates: Iterable[Algorithm]) -> int:
    """Return the least elements of workspace that any of these algorithms needs."""
    weighed = (weigh(one, problem, problem.budget(8)) for one in candidates)
    return min((one.work.workspace_elements for one in weighed if one.work is not None), default=0)


def refusal(problem: Problem, name: str, workspace: int, why_not: str | None) -> ConvValueError:
    """Return the error that says what would be accepted."""
    if name in known():
        geometry = problem.geometry
        return ConvValueError(
            f"algorithm: got {name!r} for a kernel of {geometry.kernel}, stride {geometry.stride} and "
            f"dilation {geometry.dilation} in {problem.dtype.name}, expected 'auto', or {why_not}"
        )
    least = _least_workspace(problem, _candidates(name)) * problem.bits // 8
    return ConvValueError(
        f"workspace_limit: got {workspace} bytes, expected at least {least}, what this call's smallest blocks take"
    )
