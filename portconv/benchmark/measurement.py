"""Time candidates beside one another on a layer, and compare their results with the exact ones.

The candidates take turns, so that other work of the machine slows all of them alike, and the median of a candidate's
turns counts. A turn begins when the threads of the previous candidate have stopped spinning, and the candidate first
runs untimed, unless its call takes too long to be run once more. A candidate gets no more turns once its turns have
taken `ENOUGH` seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import backends
from ..backends import Backend
from ..errors import ConvValueError, in_a_line
from .memory import peak_of_portconv, peak_of_process
from .peers import Candidate, Peer, portconv_itself
from .problem import PASSES, Errors, Problem
from .zoo import Layer

OURS = "portconv"

SETTLE, TURN = 0.06, 0.04
"""The seconds that a candidate runs untimed, and timed."""
LOOK, PATIENCE = 0.01, 1.0
"""The seconds of one look at whether threads still spin, and of all looks. OpenBLAS's spin for 0.1 s after a product,
and ONNX Runtime's for so many rounds, however long these take beside others."""
LONG, ENOUGH = 0.5, 5.0
"""The seconds beyond which a call is not run untimed, and beyond which a candidate gets no more turns."""


@dataclass(frozen=True)
class Row:
    """One pass of one layer.

    Attributes
    ----------
    layer : Layer
    name : str
        The pass.
    times : mapping of str to float
        The median seconds, by candidate. Only their ratios are used.
    errors : mapping of str to Errors
        The errors, by candidate, of those that convolve.
    memory : mapping of str to int or None
        The peak bytes beyond the result, by candidate; None if that cannot be known.
    """

    layer: Layer
    name: str
    times: Mapping[str, float]
    errors: Mapping[str, Errors]
    memory: Mapping[str, int | None]


@dataclass(frozen=True)
class NotMeasured:
    """A pass of a layer, or both passes, that was not measured.

    Attributes
    ----------
    layer : str
    who : str
        The candidate.
    reason : str
    name : str, optional
        The pass; None for both.
    fault : bool
        Whether it should have been measured.
    """

    layer: str
    who: str
    reason: str
    name: str | None = None
    fault: bool = False

    def __str__(self) -> str:
        return f"{self.who} on {self.layer}{f', {self.name}' if self.name else ''}: {self.reason}"


def measure(
    layer: Layer,
    backend: Backend,
    peers: Sequence[Peer],
    algorithm: str,
    repeats: int,
    passes: Sequence[str] = PASSES,
) -> Iterator[Row | NotMeasured]:
    """Measure the passes of a layer.

    Parameters
    ----------
    layer : Layer
    backend : Backend
        The backend that portconv runs on.
    peers : sequence of Peer
        All of them must be available.
    algorithm : str
        portconv's algorithm.
    repeats : int
        The turns of each candidate.
    passes : sequence of str
        Which passes.

    Yields
    ------
    Row or NotMeasured
        A `Row` for each pass, as soon as it is known, and a `NotMeasured` for each failure.
    """
    problem = Problem(layer)
    try:
        candidates = [portconv_itself(OURS, problem, backend, algorithm)]
    except Exception as error:
        yield _ours_not_measured(layer, algorithm, error)
        return
    for peer in peers:
        if peer.skips(problem):
            continue
        try:
            candidates.append(peer.prepare(problem, backend, _threads()))
        except Exception as error:  # a failure in another library must not stop the measurement of the rest
            yield NotMeasured(layer.name, peer.name, _words(error))
    for name in passes:
        trial = _Trial(problem, name)
        for candidate in candidates:
            if name not in candidate.runs:
                continue
            try:
                trial.run(candidate)
            except Exception as error:
                if candidate is candidates[0]:
                    yield _ours_not_measured(layer, algorithm, error, name)
                else:
                    yield NotMeasured(layer.name, candidate.name, _words(error), name)
        if backend.name == "numpy" and OURS in trial.memory:
            trial.memory[OURS] = peak_of_portconv(layer, name, algorithm)
        if OURS in trial.runs:
            times = medians(trial.runs, repeats, trial.slow)
            yield Row(layer, name, times, trial.errors, trial.memory)


class _Trial:
    """One pass, run once by each candidate before the timing: the errors, the memory, and which calls are slow."""

    def __init__(self, problem: Problem, name: str) -> None:
        self.problem, self.name = problem, name
        self.runs: dict[str, Callable[[], Any]] = {}
        """The candidates that did not fail."""
        self.errors: dict[str, Errors] = {}
        self.memory: dict[str, int | None] = {}
        self.slow: set[str] = set()

    def run(self, candidate: Candidate) -> None:
        results = candidate.runs[self.name]()
        if candidate.compared:
            self.errors[candidate.name] = self.problem.errors(self.name, tuple(map(candidate.to_host, results)))
        del results  # else it would count as memory of the next call
        start = time.perf_counter()
        self.memory[candidate.name] = _memory(candidate, self.name)
        if time.perf_counter() - start > LONG:
            self.slow.add(candidate.name)
        self.runs[candidate.name] = candidate.runs[self.name]


def medians(candidates: Mapping[str, Callable[[], Any]], repeats: int, slow: Collection[str] = ()) -> dict[str, float]:
    """Time candidates that take turns.

    Parameters
    ----------
    candidates : mapping of str to callable
        Each returns when its work is done.
    repeats : int
        The turns of each candidate.
    slow : collection of str
        The candidates that are known to take longer than `LONG`.

    Returns
    -------
    dict of str to float
        The median seconds of a call.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            turns = times[name]
            if sum(turns) > ENOUGH:
                continue
            _wait_until_idle()
            if name not in slow and max(turns, default=0.0) <= LONG:
                repeat(run, SETTLE)
            turns.append(repeat(run, TURN))
    return {name: statistics.median(turns) for name, turns in times.items()}


def _wait_until_idle() -> None:
    """Wait until no thread of this process computes, as those that wait for work by spinning do for a while."""
    until = time.perf_counter() + PATIENCE
    while time.perf_counter() < until:
        before = time.process_time()
        time.sleep(LOOK)
        if time.process_time() - before < LOOK / 4:
            return


def repeat(run: Callable[[], Any], seconds: float) -> float:
    """Run repeatedly for at least so many seconds; return the seconds of one run."""
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < seconds:
        run()
        count += 1
    return (time.perf_counter() - start) / count


def _threads() -> int:
    """Return the threads that portconv uses on NumPy, which every peer on the CPU gets too."""
    return int(backends.get("numpy").details()["threads"])


def _memory(candidate: Candidate, name: str) -> int | None:
    run = candidate.runs[name]
    return peak_of_process(run) if candidate.peak is None else candidate.peak(run)


def _ours_not_measured(layer: Layer, algorithm: str, error: Exception, name: str | None = None) -> NotMeasured:
    """Say why portconv was not measured; it is no fault if a named algorithm cannot compute this layer."""
    refused = algorithm != "auto" and isinstance(error, ConvValueError)
    return NotMeasured(layer.name, OURS, in_a_line(error) if refused else _words(error), name, fault=not refused)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {in_a_line(error)}"
