"""Measure the costs of an array library on this machine, by timing each algorithm on layers of the zoo.

An algorithm describes its work in counts (see `portconv.algorithms.choice`). Its time is the sum of the counts,
each times a cost. The costs are fitted by least squares of the relative errors; none of them is negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..algorithms import choice
from ..backends import Backend, Costs
from ..convolution import conv, conv_input_grad, conv_weight_grad
from ..engine import call
from ..spec.dtypes import named
from ..spec.operation import PRODUCTS
from ..spec.options import Options
from .measurement import medians
from .problem import Problem
from .zoo import Layer

REPEATS = 3
SLOW = 6
"""An algorithm is not timed if its expected time is more than this many times that of the fastest one."""


class Timing(NamedTuple):
    """One product of a layer by one algorithm: its counts, and the nanoseconds it takes."""

    layer: str
    kind: str
    algorithm: str
    counts: tuple[float, ...]
    nanoseconds: float


def timings(layer: Layer, backend: Backend, device: Any) -> Iterator[Timing]:
    """Time every algorithm that "auto" considers, on each product of a layer, on a device."""
    problem = Problem(layer)
    x, w, _, dout = (backend.asarray(array, device=device) for array in problem.arrays)
    options: dict[str, Any] = layer.options
    geometry = call.convolution(x, w, None, Options(**options)).operation.geometry
    dtype = named(backend, backend.dtype_name(x.dtype))
    for kind in PRODUCTS:
        problem_of_kind = choice.Problem(kind, geometry, dtype, backend, backend.device_kind(x))
        budget = choice.choose(problem_of_kind, "auto", backend.default_workspace(x), strict=True).budget
        considered = choice.consider(problem_of_kind, budget)
        lowest_cost = min(candidate.cost for candidate in considered)
        runs, counts = {}, {}
        for candidate in considered:
            if candidate.why_not is None and candidate.work is not None and candidate.cost <= SLOW * lowest_cost:
                keywords = {**options, "algorithm": candidate.name}
                runs[candidate.name] = {
                    "forward": partial(conv, x, w, **keywords),
                    "input_grad": partial(conv_input_grad, dout, w, layer.x_shape, **keywords),
                    "weight_grad": partial(conv_weight_grad, dout, x, layer.w_shape, **keywords),
                }[kind]
                counts[candidate.name] = candidate.work.counts
        for name, seconds in medians(_synchronized(runs, backend), REPEATS).items():
            yield Timing(layer.name, kind, name, counts[name], seconds * 1e9)


def fit(measured: Iterable[Timing]) -> Costs:
    """Compute the costs that explain the times best.

    Parameters
    ----------
    measured : iterable of Timing

    Returns
    -------
    Costs
        The cost of a count that is always 0 is 0.

    Examples
    --------
    >>> from portconv.benchmark.costs import Timing, fit
    >>> fit([Timing("", "", "", (1e6, 1e3 * i, 0, i, 0), 8e4 + 100 * i + 3000 * i) for i in range(5)]).operation
    0.08
    """
    rows = [(timing.counts, timing.nanoseconds) for timing in measured]
    counts = np.array([count for count, _ in rows]) / np.array([time for _, time in rows])[:, None]
    return Costs(*(float(f"{cost:.3g}") for cost in _not_negative(counts)))


def regrets(measured: Iterable[Timing], costs: Costs) -> list[tuple[str, str, str, float]]:
    """List for each layer and product the algorithm that these costs choose, and its time over the fastest one's."""
    products: dict[tuple[str, str], list[Timing]] = {}
    for timing in measured:
        products.setdefault((timing.layer, timing.kind), []).append(timing)

    def estimate(timing: Timing) -> float:
        return sum((cost or 0) * count for cost, count in zip(costs, timing.counts, strict=True))

    listed = []
    for (layer, kind), of_product in products.items():
        chosen = min(of_product, key=estimate)
        fastest = min(timing.nanoseconds for timing in of_product)
        listed.append((layer, kind, chosen.algorithm, chosen.nanoseconds / fastest))
    return listed


def _not_negative(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve `counts @ costs = 1` by least squares; costs that would be negative are set to 0, one after the other."""
    costs = np.zeros(counts.shape[1])
    kept = [column for column in range(counts.shape[1]) if counts[:, column].any()]
    while kept:
        solution = np.linalg.lstsq(counts[:, kept], np.ones(len(counts)), rcond=None)[0]
        if (solution >= 0).all():
            costs[kept] = solution
            break
        del kept[int(np.argmin(solution * counts[:, kept].mean(axis=0)))]
    return costs


def _synchronized(runs: dict[str, Any], backend: Backend) -> dict[str, Any]:
    """Return the same runs, each of which also waits until the device has computed the result."""

    def synchronized(run: Any) -> Any:
        def call() -> None:
            run()
            backend.synchronize()

        return call

    return {name: synchronized(run) for name, run in runs.items()}
