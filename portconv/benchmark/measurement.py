"""Time candidates beside one another on a layer, and hold their results against the exact ones.

Turns are interleaved, so that what else the machine does meets all alike, and the median of a candidate's turns counts.
Before each turn the candidate runs untimed until the last one's threads have stopped spinning. Where a call takes so
long that another one would cost too much, it waits instead; and what has been timed for long enough is timed no more.
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

SETTLE, TURN = 0.12, 0.04
"""Seconds that a candidate runs untimed (OpenBLAS's idle threads spin for 0.1 s after a product), and timed."""
LONG, ENOUGH = 0.5, 5.0
"""Seconds of a call that is not run merely to settle, and of turns after which a candidate has no more of them."""


@dataclass(frozen=True)
class Row:
    """One pass of one layer.

    Attributes
    ----------
    layer : Layer
    name : str
        The pass.
    times : mapping of str to float
        Median seconds, by candidate: for ratios of them alone.
    errors : mapping of str to Errors
        By candidate, of those that convolve.
    memory : mapping of str to int or None
        Peak bytes beyond the result, by candidate; None where that cannot be known.
    """

    layer: Layer
    name: str
    times: Mapping[str, float]
    errors: Mapping[str, Errors]
    memory: Mapping[str, int | None]


@dataclass(frozen=True)
class Left:
    """A pass of a layer, or all of them, that was not measured.

    Attributes
    ----------
    layer : str
    who : str
        The candidate.
    reason : str
    name : str, optional
        The pass, where it is one.
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
    layer: Layer, backend: Backend, peers: Sequence[Peer], algorithm: str, repeats: int
) -> Iterator[Row | Left]:
    """Measure both passes of a layer.

    Parameters
    ----------
    layer : Layer
    backend : Backend
        What portconv runs on.
    peers : sequence of Peer
        All of them must be available.
    algorithm : str
        portconv's.
    repeats : int
        Turns of each candidate.

    Yields
    ------
    Row or Left
        A `Row` for each pass, as soon as it is known, and a `Left` for whatever could not be measured.
    """
    problem = Problem(layer)
    try:
        own = portconv_itself(OURS, problem, backend, algorithm)
    except Exception as error:
        yield _ours_left(layer, algorithm, error)
        return
    candidates = [own]
    for peer in peers:
        if peer.skips(problem):
            continue
        try:
            candidates.append(peer.prepare(problem, backend, _threads()))
        except Exception as error:  # what another library cannot do must not keep the rest from being measured
            yield Left(layer.name, peer.name, _words(error))
    for name in PASSES:
        errors: dict[str, Errors] = {}
        memory: dict[str, int | None] = {}
        sound: list[Candidate] = []
        slow: set[str] = set()
        for candidate in candidates:
            if name not in candidate.runs:
                continue
            try:
                found = candidate.runs[name]()
                if candidate.compared:
                    errors[candidate.name] = problem.errors(name, tuple(map(candidate.to_host, found)))
                del found  # or it would be memory of the next call
                start = time.perf_counter()
                memory[candidate.name] = _memory(candidate, name)
            except Exception as error:
                if candidate is own:
                    yield _ours_left(layer, algorithm, error, name)
                else:
                    yield Left(layer.name, candidate.name, _words(error), name)
                continue
            if time.perf_counter() - start > LONG:
                slow.add(candidate.name)
            sound.append(candidate)
        if backend.name == "numpy" and OURS in memory:
            memory[OURS] = peak_of_portconv(layer, name, algorithm)
        if own in sound:
            times = medians({candidate.name: candidate.runs[name] for candidate in sound}, repeats, slow)
            yield Row(layer, name, times, errors, memory)


def medians(candidates: Mapping[str, Callable[[], Any]], repeats: int, slow: Collection[str] = ()) -> dict[str, float]:
    """Time candidates in interleaved turns.

    Parameters
    ----------
    candidates : mapping of str to callable
        Each returns when its work is done.
    repeats : int
        Turns.
    slow : collection of str
        Those that take longer than `LONG`, where that is known already.

    Returns
    -------
    dict of str to float
        The median seconds of a call.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            found = times[name]
            if sum(found) > ENOUGH:
                continue
            if name in slow or max(found, default=0.0) > LONG:
                time.sleep(SETTLE)
            else:
                repeat(run, SETTLE)
            found.append(repeat(run, TURN))
    return {name: statistics.median(found) for name, found in times.items()}


def repeat(run: Callable[[], Any], seconds: float) -> float:
    """Run for so long at the least; return the seconds a run."""
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < seconds:
        run()
        count += 1
    return (time.perf_counter() - start) / count


def _threads() -> int:
    """How many threads portconv has on NumPy, and every peer on the CPU is to have."""
    return int(backends.get("numpy").details()["threads"])


def _memory(candidate: Candidate, name: str) -> int | None:
    run = candidate.runs[name]
    return peak_of_process(run) if candidate.peak is None else candidate.peak(run)


def _ours_left(layer: Layer, algorithm: str, error: Exception, name: str | None = None) -> Left:
    """What of ours was not measured; that one algorithm serves only some layers is how it is."""
    chosen = algorithm != "auto" and isinstance(error, ConvValueError)
    return Left(layer.name, OURS, in_a_line(error) if chosen else _words(error), name, fault=not chosen)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {in_a_line(error)}"
