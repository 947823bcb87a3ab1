"""Run a function on several array libraries, and assert that their results agree."""

from __future__ import annotations

import math
import unittest
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from .. import backends as registry
from ..errors import ConvShapeError, ConvTypeError, ConvValueError
from .libraries import Target, look_up
from .structures import Doubles, Host, arrays, dtype_name, leaves, map_arrays, on_host
from .tolerances import sum_tolerance
from .values import Comparison, compare_values

LISTED = 10
"""How many failures a message lists."""

Arguments = tuple[Any, ...] | dict[str, Any]
Skipped = list[tuple[str, str]]


@dataclass(frozen=True)
class Agreement:
    """What `assert_consistent` compared.

    Attributes
    ----------
    comparisons : list of Comparison
    skipped : list of (str, str)
        The backends and targets that were left out, or that one case was left out on, each with the reason.
    """

    comparisons: list[Comparison]
    skipped: list[tuple[str, str]]

    @property
    def units(self) -> float:
        """The largest error, in units of the tolerance."""
        return max((comparison.units for comparison in self.comparisons), default=0.0)

    @property
    def ulps(self) -> float:
        """The largest error, in units in the last place."""
        return max((comparison.ulps for comparison in self.comparisons), default=0.0)

    @property
    def targets(self) -> list[str]:
        """The `id` of each target that was compared with another."""
        pairs = ((comparison.one, comparison.other) for comparison in self.comparisons)
        return list(dict.fromkeys(name for pair in pairs for name in pair if name is not None))

    def __str__(self) -> str:
        number = len(self.comparisons)
        counted = f"{number} comparison{'' if number == 1 else 's'}"
        return f"{counted} of {', '.join(self.targets)}: off by {self.units:.3g} tolerances, {self.ulps:.3g} ulps"


def assert_consistent(
    fn: Callable[..., Any],
    cases: Iterable[tuple[Any, ...] | dict[str, Any]] | Mapping[str, tuple[Any, ...] | dict[str, Any]],
    backends: Iterable[str | Target] | None = None,
    *,
    tolerance: Callable[..., Any] | None = None,
    bits: bool = False,
) -> Agreement:
    """Assert that a function gives the same results on several array libraries and devices.

    The function runs on each library with the same numbers. Its results must be arrays of that library on that device,
    with the same shapes and dtypes on all of them, and the values of each pair of libraries must agree.

    Parameters
    ----------
    fn : callable
        Takes arrays of any library; returns an array, a number or None, or a (named) tuple, list or dict of these.
    cases : iterable of tuple or dict, or mapping of str to these
        The arguments of each call: a tuple of positional ones, or a dict of keyword ones. NumPy arrays, also inside
        tuples, lists and dicts, become copies on each library; all else is passed on. A mapping names the cases.
    backends : iterable of str or Target, optional
        What to compare: see `targets`. All that work here if None. In a test that asks for `portconv_target`, say
        ``["numpy", portconv_target]``.
    tolerance : callable, optional
        Called as `fn` is, on each library; returns how far the results there can be from the exact ones: one array or
        number for all, or one for each, in their structure. Two results may differ by the sum of their tolerances: see
        `portconv.error_bound`, `conv_grads_tolerance` and `sum_tolerance`. If None, it is guessed: each result is taken
        for a sum of all elements of the arguments, with magnitudes that add up to the largest result.
    bits : bool
        Ask for equal bits instead of a tolerance.

    Returns
    -------
    Agreement
        What was compared, and how far apart it was.

    Raises
    ------
    AssertionError
        If something is not consistent. The message names the targets, the case, the largest error in units of the
        tolerance and in ulps, and the worst element with both values.
    unittest.SkipTest
        If too few libraries work here to compare anything, with the reasons; pytest counts it as a skip.
    BackendError
        If a name in `backends` is unknown.
    ConvTypeError, ConvValueError, ConvShapeError
        If an argument is not as above.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv.testing import assert_consistent
    >>> x, w = np.random.rand(1, 3, 8, 8), np.random.rand(4, 3, 3, 3)
    >>> def layer(x, w):
    ...     return portconv.conv(x, w, precision="reproducible")
    >>> print(assert_consistent(layer, [(x, w)], ["numpy", "numpy"], bits=True))
    1 comparison of numpy-cpu: off by 0 tolerances, 0 ulps
    """
    __tracebackhide__ = True
    return _Run(fn, tolerance, bits).compare(cases, backends)


@dataclass(frozen=True)
class _Results:
    """What a function returned on a target: for each part an array on the host, None, or what is wrong with it."""

    target: Target
    parts: dict[str, Host | str | None]
    reach: dict[str, Doubles] | None
    """How far each part can be from the exact one; None where equal bits are asked for."""


class _Run:
    """A function to run, and what its results on two libraries may differ by."""

    def __init__(self, fn: Callable[..., Any], tolerance: Callable[..., Any] | None, bits: bool) -> None:
        if bits and tolerance is not None:
            raise ConvValueError("tolerance: got one beside bits=True, expected one of the two")
        self.fn, self.tolerance, self.bits = fn, tolerance, bits

    def compare(self, cases: Any, backends: Iterable[str | Target] | None) -> Agreement:
        """Run each case on each target, and compare the results in pairs."""
        __tracebackhide__ = True
        targets, skipped = _chosen_targets(backends)
        comparisons: list[Comparison] = []
        pairs = 0
        for name, arguments in _named_cases(cases):
            runs = self._on_each(name, arguments, targets, skipped)
            comparisons += [fault for results in runs for fault in _faults(name, results)]
            for one, other in combinations([results for results in runs if not _faults(name, results)], 2):
                comparisons += _compare_results(name, one, other)
                pairs += 1
        _raise_failed(comparisons)
        if not pairs:
            raise unittest.SkipTest(f"nothing to compare with: {_reasons(skipped)}")
        return Agreement(comparisons, skipped)

    def _on_each(self, name: str, arguments: Arguments, targets: list[Target], skipped: Skipped) -> list[_Results]:
        """Run one case on each target that has its dtypes; add the other targets to `skipped`."""
        dtypes = {dtype_name(array.dtype) for array in arrays(arguments)}
        runs = []
        for target in targets:
            missing = sorted(dtype for dtype in dtypes if not target.holds(dtype))
            if missing:
                skipped.append((target.id, f"case {name}: there is no {', '.join(missing)}"))
            else:
                runs.append(self._on(name, arguments, target))
        return runs

    def _on(self, name: str, arguments: Arguments, target: Target) -> _Results:
        """Run the function and its tolerance on copies of the arguments."""

        def call(function: Callable[..., Any]) -> Any:
            copies = map_arrays(arguments, target.asarray)
            try:
                return function(**copies) if isinstance(copies, dict) else function(*copies)
            except Exception as error:
                error.add_note(f"assert_consistent: on {target}, case {name}")
                raise

        parts = {part: _form(leaf, target) for part, leaf in leaves(call(self.fn)).items()}
        if self.bits:
            return _Results(target, parts, None)
        if self.tolerance is None:
            terms = sum(array.size for array in arrays(arguments))
            return _Results(target, parts, {part: _guess(terms, value) for part, value in parts.items()})
        return _Results(target, parts, _reach(parts, leaves(call(self.tolerance))))


def _raise_failed(comparisons: list[Comparison]) -> None:
    __tracebackhide__ = True
    failed = [comparison for comparison in comparisons if not comparison.held]
    if failed:
        listed = [f"  {comparison}" for comparison in failed[:LISTED]]
        more = [f"  and {len(failed) - LISTED} more"] * (len(failed) > LISTED)
        lines = (f"not consistent in {len(failed)} of {len(comparisons)} comparisons:", *listed, *more)
        raise AssertionError("\n".join(lines))


def _chosen_targets(names: Iterable[str | Target] | None) -> tuple[list[Target], Skipped]:
    """Return the targets to compare, and the backends that are left out, with reasons."""
    if isinstance(names, str):
        raise ConvTypeError(f"backends: got {names!r}, expected several names or targets")
    chosen: list[Target] = []
    skipped = []
    for name in registry.names() if names is None else names:
        if isinstance(name, Target):
            chosen.append(name)
            continue
        survey = look_up(name)
        chosen += survey.targets
        if survey.reason is not None:
            skipped.append((survey.name, survey.reason))
    if len(chosen) > 1:
        return chosen, skipped
    alone = ", ".join(map(str, chosen)) or "none"
    if not skipped:
        raise ConvValueError(f"backends: got {alone}, expected at least two to compare")
    raise unittest.SkipTest(f"nothing to compare {alone} with: {_reasons(skipped)}")


def _reasons(skipped: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in skipped)


def _named_cases(cases: Any) -> list[tuple[str, Arguments]]:
    """Return the cases with their names or numbers."""
    named = list(cases.items()) if isinstance(cases, Mapping) else list(enumerate(cases))
    for name, arguments in named:
        if not isinstance(arguments, tuple | dict):
            raise ConvTypeError(
                f"cases: got {type(arguments).__name__} for case {name}, expected a tuple of arguments, or a dict"
            )
    if not named:
        raise ConvValueError("cases: got none, expected at least one")
    return [(str(name), arguments) for name, arguments in named]


def _reach(parts: dict[str, Host | str | None], tolerances: dict[str, Any]) -> dict[str, Doubles]:
    """Return the tolerance of each part that is an array; a single tolerance is that of all parts."""
    on_hosts = {part: on_host(leaf) for part, leaf in tolerances.items() if leaf is not None}
    reach = {}
    for part, value in parts.items():
        if not isinstance(value, np.ndarray):
            continue
        bound = on_hosts.get("" if list(on_hosts) == [""] else part)
        if bound is None:
            raise ConvTypeError(f"tolerance: got {_listed(on_hosts)}, expected one for result{part}")
        try:
            reach[part] = np.broadcast_to(bound, value.shape).astype(np.float64)
        except ValueError:
            raise ConvShapeError(
                f"tolerance: got shape {bound.shape} for result{part}, expected one that broadcasts to {value.shape}"
            ) from None
    return reach


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(f"result{part}" for part in parts) or "nothing"


def _guess(terms: int, value: Host | str | None) -> Doubles:
    """Guess a part's tolerance: that of a sum of so many terms, with magnitudes that add up to the largest element."""
    if not isinstance(value, np.ndarray) or value.dtype.kind in "biu":
        return np.zeros(np.shape(value) if isinstance(value, np.ndarray) else ())
    sizes = np.abs(value).astype(np.float64)
    largest = np.max(sizes, initial=0.0, where=np.isfinite(sizes))
    return np.broadcast_to(sum_tolerance(terms, value.dtype, largest), value.shape)


def _form(leaf: Any, target: Target) -> Host | str | None:
    """Return a part on the host, or what is wrong with it: its library first, then its device."""
    if leaf is None:
        return None
    if isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic):
        return np.asarray(leaf)
    leaf = np.asarray(leaf) if isinstance(leaf, np.generic) else leaf
    try:
        backend = registry.of(leaf)
    except ConvTypeError as error:
        return str(error)
    if backend is not target.backend:
        return f"got an array of {backend.name}, expected one of {target.name}"
    device = backend.device_of(leaf)
    if device != target.device:
        return f"got device {device}, expected {target.device}"
    return target.to_numpy(leaf)


def _faults(case: str, results: _Results) -> list[Comparison]:
    """List the parts of the results on one target that are wrong in themselves."""
    return [
        Comparison(results.target.id, None, case, part, math.inf, math.inf, 0, 0, value)
        for part, value in results.parts.items()
        if isinstance(value, str)
    ]


def _compare_results(case: str, one: _Results, other: _Results) -> list[Comparison]:
    """Compare the results of two targets, neither of which is wrong in itself."""
    pair = one.target.id, other.target.id, case

    def unequal(part: str, problem: str) -> Comparison:
        return Comparison(*pair, part, math.inf, math.inf, 0, 0, problem)

    if one.parts.keys() != other.parts.keys():
        return [unequal("", f"got {_listed(one.parts)} and {_listed(other.parts)}, expected the same")]
    comparisons = []
    for part, first in one.parts.items():
        second = other.parts[part]
        if not (isinstance(first, np.ndarray) and isinstance(second, np.ndarray)):
            if first is not second:  # one of them is None
                comparisons.append(unequal(part, f"got {_kind(first)} and {_kind(second)}, expected the same"))
            continue
        problem = _difference("shape", first.shape, second.shape) or _difference("dtype", first.dtype, second.dtype)
        if problem:
            comparisons.append(unequal(part, problem))
            continue
        reach = None if one.reach is None or other.reach is None else one.reach[part] + other.reach[part]
        comparisons.append(compare_values(pair, part, first, second, reach))
    return comparisons


def _kind(value: Any) -> str:
    return "None" if value is None else "an array"


def _difference(what: str, one: Any, other: Any) -> str:
    return "" if one == other else f"got {what} {one} and {other}, expected the same"
