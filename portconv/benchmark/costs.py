"""What an array library's calls cost on this machine, from timing each algorithm on layers of the zoo.

An algorithm says what it does in four counts (see `portconv.algorithms.choice`). The time it takes is their sum, each
times a cost of its own. Costs are fitted by least squares of the relative errors, none of them negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..algorithms import choice
from ..backends import Backend, Costs
from ..convolution import conv, conv_input_grad, conv_weight_grad
from ..engine.call import prepare
from ..spec.operation import PRODUCTS
from .measurement import medians
from .problem import Problem
from .zoo import Layer

REPEATS = 3
SLOW = 6
"""An algorithm expected to take so many times as long as another is not worth the time it takes to measure."""


class Timing(NamedTuple):
    """One product of a layer by one algorithm: its four counts, and the nanoseconds it takes."""

    layer: str
    purpose: str
    algorithm: str
    counts: tuple[float, float, float, float]
    nanoseconds: float


def timings(layer: Layer, backend: Backend) -> Iterator[Timing]:
    """Time every algorithm that "auto" considers, on each product of a layer."""
    problem = Problem(layer)
    device = backend.devices()[0]
    x, w, _, dout = (backend.asarray(array, device=device) for array in problem.arrays)
    options: dict[str, Any] = layer.options
    call = prepare(x, w, None, **options).call
    geometry, dtype = call.geometry, call.dtype
    for purpose in PRODUCTS:
        asked = choice.Problem(purpose, geometry, dtype, backend)
        found = choice.consider(asked, choice.choose(asked, "auto", call.spare, strict=True).budget)
        least = min(one.cost for one in found)
        runs, counts = {}, {}
        for one in found:
            if one.why_not is None and one.work is not None and one.cost <= SLOW * least:
                own = {**options, "algorithm": one.name}
                runs[one.name] = {
                    "forward": lambda own=own: conv(x, w, **own),
                    "input_grad": lambda own=own: conv_input_grad(dout, w, layer.x_shape, **own),
                    "weight_grad": lambda own=own: conv_weight_grad(dout, x, layer.w_shape, **own),
                }[purpose]
                counts[one.name] = one.work[:4]
        for name, seconds in medians(_awaited(runs, backend), REPEATS).items():
            yield Timing(layer.name, purpose, name, counts[name], seconds * 1e9)


def fit(made: Iterable[Timing]) -> Costs:
    """Find the costs that explain the times best.

    Parameters
    ----------
    made : iterable of Timing

    Returns
    -------
    Costs
        What was never counted costs nothing.

    Examples
    --------
    >>> from portconv.benchmark.costs import Timing, fit
    >>> fit([Timing("", "", "", (1e6, 1e3 * i, 0, i), 8e4 + 100 * i + 3000 * i) for i in range(5)]).operation
    0.08
    """
    rows = [(timing.counts, timing.nanoseconds) for timing in made]
    counts = np.array([own for own, _ in rows]) / np.array([taken for _, taken in rows])[:, None]
    return Costs(*(float(f"{cost:.3g}") for cost in _not_negative(counts)))


def regrets(made: Iterable[Timing], costs: Costs) -> list[tuple[str, str, str, float]]:
    """For each layer and product, the algorithm taken at these costs, and its time over that of the fastest."""
    products: dict[tuple[str, str], list[Timing]] = {}
    for timing in made:
        products.setdefault((timing.layer, timing.purpose), []).append(timing)
    found = []
    for (layer, purpose), own in products.items():
        taken = min(own, key=lambda timing: sum(cost * count for cost, count in zip(costs, timing.counts, strict=True)))
        fastest = min(timing.nanoseconds for timing in own)
        found.append((layer, purpose, taken.algorithm, taken.nanoseconds / fastest))
    return found


def _not_negative(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve `counts @ costs = 1` by least squares; what would be negative is left out, one after the other."""
    costs = np.zeros(counts.shape[1])
    kept = [column for column in range(counts.shape[1]) if counts[:, column].any()]
    while kept:
        found = np.linalg.lstsq(counts[:, kept], np.ones(len(counts)), rcond=None)[0]
        if (found >= 0).all():
            costs[kept] = found
            break
        del kept[int(np.argmin(found * counts[:, kept].mean(axis=0)))]
    return costs


def _awaited(runs: dict[str, Any], backend: Backend) -> dict[str, Any]:
    def awaited(run: Any) -> Any:
        def call() -> None:
            run()
            backend.synchronize()

        return call

    return {name: awaited(run) for name, run in runs.items()}
