"""Which algorithm serves a product, and why: the one whose work takes least, by a few constants of the array library.

Each algorithm says how much it would do of what takes time: operations of matrix products, elements that are copied or
added, points of Fourier transforms times their levels, and calls. A backend's `costs` say how long one of each takes;
`portconv bench --calibrate` measures them on the machine at hand (see `calibration`).
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from .. import calibration
from ..backends import Array, Backend
from ..errors import ConvValueError
from ..spec.arguments import option
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from .algorithm import SLICED as SLICED
from .algorithm import Algorithm, registered, remembered
from .budget import NO_WORK, Budget, Work, budget_of

AUTO = "auto"
PLAIN = "plain"
"""In the place of a name: the cheapest algorithm that computes every result by plain sums. No name for users."""
TOO_MANY_STEPS = 1000.0
"""How much dearer a product seems that is more steps than a library is to compile."""
ANEW = 16
"""How many times a step counts of a product that is compiled for the rare result that another cannot vouch for: it
need not be fast."""


class Problem(NamedTuple):
    """A product that an algorithm is chosen for.

    Attributes
    ----------
    kind : Kind or str
    geometry : Geometry
    dtype : Dtype
        What it is computed in.
    backend : Backend
    """

    kind: str
    geometry: Geometry
    dtype: Dtype
    backend: Backend

    @property
    def bits(self) -> int:
        """The bits of an element."""
        return self.backend.bits(self.dtype.dtype)

    def budget(self, workspace: int) -> Budget:
        """Return the budget of so many bytes of workspace."""
        return budget_of(self.geometry, self.backend, self.bits, workspace)


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


class Weighed(NamedTuple):
    """An algorithm with its expected nanoseconds and its work; or with what it serves, or needs, in words."""

    algorithm: Algorithm
    cost: float
    work: Work | None
    why_not: str | None

    @property
    def name(self) -> str:
        """The algorithm's name."""
        return self.algorithm.name


class Choice(NamedTuple):
    """The algorithm that serves a problem, the budget of its blocks, and its work."""

    problem: Problem
    algorithm: Algorithm
    budget: Budget
    work: Work

    def compute(self, kind: str, geometry: Geometry, backend: Backend, *operands: Array) -> Array:
        """Compute a product of `x`, `w` and a bias or None, of `dout` and `w`, or of `dout` and `x`.

        Where the algorithm cannot vouch for its result, another one computes. That may be by mirrored filters, and
        where these are not finite, it is not.
        """
        result = self.algorithm.compute(kind, geometry, backend, self.budget, *operands)
        if result is None:
            other = fall_back(Problem(kind, geometry, self.problem.dtype, backend), self.budget)
            if other is not self.algorithm:
                result = other.compute(kind, geometry, backend, self.budget, *operands)
            if result is None:
                result = other.compute(kind, geometry, backend, self.budget._replace(mirrored=False), *operands)
        return result

    def roundings(self, kind: str, geometry: Geometry, backend: Backend) -> int:
        """Count the roundings that a product of finite numbers goes through at most, its own among them."""
        return self.algorithm.roundings(kind, geometry, backend, self.budget)

    def with_short_sums(self, positions: int) -> Choice:
        """Return the same choice with sums of at most so many positions of a weight gradient at once."""
        return self._replace(budget=self.budget._replace(summed_positions=positions))


@cache
def _import_all() -> None:
    """Import the modules of this folder, which register their algorithms: when one is first asked for, for its time."""
    package = sys.modules[__package__]
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")


@remembered(1)
def known() -> dict[str, Algorithm]:
    """Return the algorithms by name, in their order."""
    _import_all()
    return {algorithm.name: algorithm for algorithm in registered()}


@remembered(1)
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
    ('winograd', 'fft', 'depthwise', 'gemm', 'tap_loop', 'direct')
    """
    return tuple(known())


def named(name: str) -> Algorithm | None:
    """Return the algorithm of that name; None of one that is yet to be chosen."""
    return known().get(name)


@remembered(2048)
def choose(problem: Problem, name: str, workspace: int, strict: bool) -> Choice:
    """Choose an algorithm for a product.

    Parameters
    ----------
    problem : Problem
    name : str
        The name of an algorithm, "auto", or `PLAIN`.
    workspace : int
        The most bytes of workspace a thread.
    strict : bool
        Whether to refuse where nothing can do with so much workspace; otherwise the budget grows to what is needed.

    Returns
    -------
    Choice

    Raises
    ------
    ConvValueError
        If the algorithm of that name cannot serve, or none can with so much workspace.
    """
    if name != PLAIN:
        option("algorithm", name, (AUTO, *algorithms()))
    candidates = _candidates(name)
    budget = problem.budget(workspace)._replace(limited=strict)
    if problem.dtype.kind == SLICED:  # whose filters are several, and read again for each block
        budget = budget._replace(block_elements=2 * budget.block_elements)
    if not strict:
        least = _least_workspace(problem, [one for one in candidates if one.vouches] or candidates)
        budget = budget._replace(workspace_elements=max(budget.workspace_elements, least))
    best = min((weigh(one, problem, budget) for one in candidates), key=lambda weighed: weighed.cost)
    if best.work is None or best.why_not is not None:
        raise _refusal(problem, name, workspace, best.why_not)
    return Choice(problem, best.algorithm, budget, best.work)


def consider(problem: Problem, budget: Budget) -> tuple[Weighed, ...]:
    """Weigh each algorithm that "auto" considers, in their order."""
    return tuple(weigh(one, problem, budget) for one in _candidates(AUTO))


def weigh(algorithm: Algorithm, problem: Problem, budget: Budget, step: int = 1) -> Weighed:
    """Weigh an algorithm for a product, each of whose steps counts so many times."""
    kind, geometry, dtype, backend = problem
    why_not = algorithm.objection(geometry, dtype, backend)
    if why_not is not None:
        return Weighed(algorithm, math.inf, None, why_not)
    if 0 in geometry.x_shape and (kind == Kind.INPUT_GRAD or not geometry.batch):  # no work, and no plan of it
        return Weighed(algorithm, 0.0 if algorithm.vouches else math.inf, NO_WORK, None)
    work = algorithm.work(kind, geometry, budget, backend)
    if work.workspace_elements > budget.workspace_elements and (budget.limited or not algorithm.vouches):
        size = work.workspace_elements * problem.bits // 8
        return Weighed(algorithm, math.inf, work, f"a workspace_limit of at least {size} bytes")
    counts = (work.operations, work.elements, work.transforms, work.calls)
    cost = sum(each * count for each, count in zip(calibration.costs(backend), counts, strict=True))
    if backend.compiled_steps is not None and step * work.steps > backend.compiled_steps:
        cost *= TOO_MANY_STEPS
    return Weighed(algorithm, cost * algorithm.handicap, work, None)


@remembered(1024)
def fall_back(problem: Problem, budget: Budget) -> Algorithm:
    """Return the algorithm that computes what another one cannot vouch for: the cheapest that computes every result.

    Its work is weighed without mirrored filters. Where none can do with the budget, it is the one that takes the least
    workspace.
    """
    budget = budget._replace(mirrored=False)
    weighed = [weigh(one, problem, budget, ANEW) for one in _candidates(PLAIN)]
    served = [one for one in weighed if one.work is not None]
    return min(served, key=lambda one: (one.cost, one.work.workspace_elements if one.work else 0)).algorithm


def explanation(choice: Choice, more: int) -> Explanation:
    """Explain the choice for a product that takes `more` bytes beside the algorithm's workspace."""
    weighed = {one.name: one for one in consider(choice.problem, choice.budget)}
    taken = choice.algorithm.name
    cost = weighed[taken].cost if taken in weighed else None
    candidates = []
    for name in algorithms():
        if name not in weighed:
            candidates.append(Candidate(name, None, None if name == taken else "by name only: it is slow"))
        elif weighed[name].why_not is not None:
            verb = "serves" if weighed[name].work is None else "needs"
            candidates.append(Candidate(name, None, f"{verb} {weighed[name].why_not}"))
        else:
            candidates.append(Candidate(name, weighed[name].cost / cost if cost else None, None))
    workspace = choice.work.workspace_elements * choice.problem.bits // 8 + more
    return Explanation(taken, dict(choice.work.block), workspace, tuple(candidates))


def _candidates(name: str) -> list[Algorithm]:
    """Return the algorithms that are considered under a name."""
    if name in known():
        return [known()[name]]
    return [one for one in known().values() if one.automatic and (name == AUTO or one.vouches)]


def _least_workspace(problem: Problem, candidates: Iterable[Algorithm]) -> int:
    """Return the fewest elements of workspace that any of these algorithms can do with."""
    weighed = (weigh(one, problem, problem.budget(8)) for one in candidates)
    return min((one.work.workspace_elements for one in weighed if one.work is not None), default=0)


def _refusal(problem: Problem, name: str, workspace: int, why_not: str | None) -> ConvValueError:
    """Return the error that says what would serve."""
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
