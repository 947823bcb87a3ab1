"""For other people's tests: a function on several array libraries, and how far their results may honestly differ.

`assert_consistent` runs a function on the same numbers everywhere, and compares form first, then values. The tolerances
are derived, with the derivations in docs/accuracy.md. With pytest, a plugin gives each test its library and
device: the fixtures `xp` and `portconv_target`, and the marks `skip_backends` and `xfail_backends`. This module needs
no pytest. docs/testing.md has it all by example.
"""

from __future__ import annotations

import math
import unittest
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import backends as registry
from .backends import Array, Backend
from .engine import call
from .engine.gradients import ConvGrads, plans_of
from .errors import BackendError, ConvShapeError, ConvTypeError, ConvValueError
from .spec import dtypes
from .spec.dtypes import EPSILON, HALVES, KINDS, LEAST_NORMAL, real
from .spec.operation import Role
from .spec.options import Options
from .verification import Case, exact
from .verification.cases import Inputs

__all__ = [
    "Agreement",
    "Comparison",
    "Target",
    "assert_consistent",
    "conv_grads_tolerance",
    "gamma",
    "sum_tolerance",
    "targets",
]

Host = NDArray[Any]
Doubles = NDArray[np.float64]

LISTED = 10
"""How many failures a message lists."""


@dataclass(frozen=True)
class Target:
    """An array library on one of its devices.

    Attributes
    ----------
    backend : portconv.backends.Backend
    device : object
        As the library has it, for its `device=`.
    """

    backend: Backend
    device: Any

    @property
    def name(self) -> str:
        """The backend's name, such as "torch"."""
        return self.backend.name

    @property
    def xp(self) -> Any:
        """The library's Array API namespace."""
        return self.backend.xp

    @property
    def id(self) -> str:
        """The name of both, such as "torch-cpu" or "array_api_strict-device1"."""
        text = str(self.device)
        quoted = text.split("'")[1::2]
        words = "".join(letter if letter.isalnum() or letter in ":._" else " " for letter in text).split()
        return "-".join((self.name, *(quoted or words)))

    def __str__(self) -> str:
        return self.id

    def asarray(self, obj: Any, dtype: Any = None) -> Array:
        """Make an array there from a copy of host numbers; the dtype is NumPy's for them, unless another is named.

        Examples
        --------
        >>> from portconv.testing import targets
        >>> [str(target.asarray([1.0, 2.0]).dtype) for target in targets(["numpy"])]
        ['float64']
        """
        host = np.array(obj)
        name = _dtype_name(host.dtype if dtype is None else dtype)
        if _dtype_name(host.dtype) == "bfloat16":
            host = host.astype(np.float32)  # only NumPy takes an array of ml_dtypes
        return self.backend.asarray(host, dtype=name, device=self.device)

    def to_numpy(self, array: Array) -> Host:
        """Copy an array to the host, from whichever device."""
        return np.array(self.backend.to_numpy(array))

    def holds(self, dtype: Any) -> bool:
        """Whether there are arrays of that dtype there."""
        like = self.backend.asarray(np.zeros(1, np.bool_), device=self.device)
        return self.backend.holds(_dtype_name(dtype), like)


def targets(names: Iterable[str] | None = None) -> list[Target]:
    """List the libraries that work here, once for each of their devices.

    A device that lacks dtypes which the library's default one has is left out, unless it is named.

    Parameters
    ----------
    names : iterable of str, optional
        Backends, such as "torch", or the `id` of one on a device, such as "torch-cuda:0"; all that work here unless
        given.

    Returns
    -------
    list of Target

    Raises
    ------
    BackendError
        If a name is unknown, or what it stands for does not work here; the message has the reason.

    Examples
    --------
    >>> from portconv.testing import targets
    >>> [target.id for target in targets(["numpy"])]
    ['numpy-cpu']
    """
    if names is None:
        return [target for found in survey() for target in found.targets]
    surveyed = survey(names)
    for found in surveyed:
        if found.reason is not None:
            registry.get(found.backend)
            raise BackendError(f"backend {found.name!r} is unavailable: {found.reason}")
    return [target for found in surveyed for target in found.targets]


@dataclass(frozen=True)
class Found:
    """What a name stands for here: targets, or in words why there are none."""

    name: str
    backend: str
    targets: list[Target]
    reason: str | None


def survey(names: Iterable[str] | None = None) -> list[Found]:
    """Look for the backends or targets of these names, or of every known one; an unknown name is a BackendError."""
    if isinstance(names, str):
        raise ConvTypeError(f"backends: got {names!r}, expected several names")
    return [_found(name) for name in (registry.names() if names is None else names)]


def _found(name: str) -> Found:
    if not isinstance(name, str):
        raise ConvTypeError(f"backend: got {type(name).__name__}, expected a str")
    known = [own for own in registry.names() if name == own or name.startswith(f"{own}-")]
    called = max(known, key=len, default=name)
    try:
        backend = registry.find(called)
    except BackendError:
        if not known:
            raise
        return Found(name, called, [], "its entry point cannot be loaded")  # of which the registry has warned
    if backend.fault is not None:
        return Found(name, called, [], str(backend.fault))
    devices = backend.devices()
    if name == called:
        return Found(name, name, [Target(backend, device) for device in _whole(backend, devices)], None)
    everywhere = [Target(backend, device) for device in devices]
    own = [target for target in everywhere if target.id == name]
    ids = ", ".join(target.id for target in everywhere)
    return Found(name, called, own, None if own else f"here are {ids}")


def _whole(backend: Backend, devices: list[Any]) -> list[Any]:
    """The devices that hold every dtype that the first one holds."""
    info = getattr(backend.xp, "__array_namespace_info__", None)
    if info is None:
        return devices
    most = set(info().dtypes(device=devices[0]))
    return [device for device in devices if device is devices[0] or most <= set(info().dtypes(device=device))]


@dataclass(frozen=True)
class Comparison:
    """One part of a function's results on one target: beside another's, or by itself where its form is wrong.

    Attributes
    ----------
    one, other : str
        The `id` of each target; `other` is None where the results of `one` are wrong by themselves.
    case, part : str
        `part` is empty where the function returns one array, and else its place, such as ".dx" or "[0]".
    units : float
        The largest error, in units of the tolerance; where equal bits are asked for, infinite or 0.
    ulps : float
        The largest error, in units in the last place of the larger of the two numbers.
    elements, equal : int
        How many elements there are, and how many have equal bits.
    problem : str, optional
        What does not hold.
    """

    one: str
    other: str | None
    case: str
    part: str
    units: float
    ulps: float
    elements: int
    equal: int
    problem: str | None = None

    @property
    def held(self) -> bool:
        return self.problem is None

    def __str__(self) -> str:
        names = self.one if self.other is None else f"{self.one} and {self.other}"
        return f"{names}: case {self.case}{self.part and f', result{self.part}'}: {self.problem or 'consistent'}"


@dataclass(frozen=True)
class Agreement:
    """What `assert_consistent` compared.

    Attributes
    ----------
    comparisons : list of Comparison
    skipped : list of (str, str)
        Backends and targets, and in words why they, or one of the cases on them, were left out.
    """

    comparisons: list[Comparison]
    skipped: list[tuple[str, str]]

    @property
    def units(self) -> float:
        """The largest error, in units of the tolerance."""
        return max((made.units for made in self.comparisons), default=0.0)

    @property
    def ulps(self) -> float:
        """The largest error, in units in the last place."""
        return max((made.ulps for made in self.comparisons), default=0.0)

    @property
    def targets(self) -> list[str]:
        """The `id` of each target that was compared with another."""
        ids = ((made.one, made.other) for made in self.comparisons)
        return list(dict.fromkeys(name for pair in ids for name in pair if name is not None))

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
    """Assert that a function gives the same on several array libraries, devices included.

    The function runs on each with the same numbers. Its results must be arrays of that library on that device, of
    the same shapes and dtypes everywhere, and their values must agree, in each pair of libraries.

    Parameters
    ----------
    fn : callable
        Takes arrays of any library, and returns an array, a number or None, or a tuple (a named one too), list or dict
        of these.
    cases : iterable of tuple or dict, or mapping of str to these
        The arguments of each call: a tuple of positional ones, or a dict of keyword ones. NumPy arrays, also inside of
        tuples, lists and dicts, become copies on each library; anything else is passed on as it is. A mapping names the
        cases; otherwise they are numbered.
    backends : iterable of str or Target, optional
        What to compare: see `targets`; all that work here unless given. In a test that asks for `portconv_target`, say
        ``["numpy", portconv_target]``.
    tolerance : callable, optional
        Called as `fn` is, on each library; returns how far the results there can be from the exact ones: an array or
        number for all of them, or one for each in their own structure. Two results may differ by the sum of
        theirs: see `portconv.error_bound`, `conv_grads_tolerance` and `sum_tolerance`. Unless given, each result is
        taken for a sum with every element of the arguments a term, and their magnitudes to add up to the largest
        result: a guess, where those functions give bounds.
    bits : bool
        Ask for equal bits in place of a tolerance.

    Returns
    -------
    Agreement
        What was compared, and how far it was apart.

    Raises
    ------
    AssertionError
        If something is not consistent. The message names the targets, the case, the largest error in units of the
        tolerance and in ulps, and the worst element with both values.
    unittest.SkipTest
        If what works here leaves nothing to compare, with the reasons; pytest counts it as a skip.
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
    if bits and tolerance is not None:
        raise ConvValueError("tolerance: got one beside bits=True, expected one of the two")
    chosen, skipped = _chosen(backends)
    made: list[Comparison] = []
    pairs = 0
    for name, arguments in _cases(cases):
        kept: list[_Results] = []
        for target in chosen:
            missing = sorted({dtype for dtype in map(_dtype_name, _dtypes(arguments)) if not target.holds(dtype)})
            if missing:
                skipped.append((target.id, f"case {name}: there is no {', '.join(missing)}"))
                continue
            results = _run(fn, arguments, name, target, tolerance, bits)
            faults = [
                Comparison(target.id, None, name, part, math.inf, math.inf, 0, 0, value)
                for part, value in results.parts.items()
                if isinstance(value, str)
            ]
            made += faults
            if not faults:
                kept.append(results)
        for one, other in combinations(kept, 2):
            made += _compared(name, one, other)
            pairs += 1
    failed = [comparison for comparison in made if not comparison.held]
    if failed:
        listed = [f"  {comparison}" for comparison in failed[:LISTED]]
        more = [f"  and {len(failed) - LISTED} more"] * (len(failed) > LISTED)
        lines = (f"not consistent in {len(failed)} of {len(made)} comparisons:", *listed, *more)
        raise AssertionError("\n".join(lines))
    if not pairs:
        raise unittest.SkipTest(f"nothing to compare with: {_reasons(skipped)}")
    return Agreement(made, skipped)


def gamma(terms: int, dtype: Any) -> float:
    """Bound the error of a sum of products, relative to the sum of their magnitudes: Higham's gamma.

    ``n u / (1 - n u)``, with ``u`` the unit roundoff of the dtype, half its epsilon. It holds in whatever order the
    terms are added, with or without fused multiply-adds. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd
    ed. (2002), section 3.1.

    Parameters
    ----------
    terms : int
        How many roundings a term meets at most: for a sum of `n` products, `n`.
    dtype : dtype or str
        A real floating-point dtype of any library, or its name.

    Returns
    -------
    float
        Infinite where there are so many terms that there is no bound.

    Raises
    ------
    ConvTypeError, ConvValueError
        If `dtype` is not real floating point, or `terms` is no int of at least 0.

    Examples
    --------
    >>> from portconv.testing import gamma
    >>> round(gamma(27, "float32") / 2.0**-24, 4)  # 27 roundings, and a little for their products
    27.0
    """
    name = _dtype_name(dtype)
    if name not in EPSILON:
        raise ConvTypeError(f"dtype: got {name}, expected one of {', '.join(EPSILON)}")
    if isinstance(terms, bool) or not isinstance(terms, int):
        raise ConvTypeError(f"terms: got {type(terms).__name__}, expected an int")
    if terms < 0:
        raise ConvValueError(f"terms: got {terms}, expected 0 or more")
    return dtypes.gamma(terms, _unit(name))


def sum_tolerance(terms: int, dtype: Any, magnitude: Any) -> Doubles:
    """Bound how far sums of products can be from the exact ones.

    Parameters
    ----------
    terms : int
        How many products each sum has, or other terms rounded once.
    dtype : dtype or str
        What is computed in, of any library, or its name. float16 and bfloat16 are taken to be summed in float32 and
        rounded once; integers are exact.
    magnitude : array or float
        The sum of the absolute values of each sum's terms, computed in `dtype` or better, in an array of any library.

    Returns
    -------
    numpy.ndarray
        Of float64, with the shape of `magnitude`. Underflow is taken to be absent, but in rounding to a half.

    Raises
    ------
    ConvTypeError, ConvValueError
        If an argument is not as above.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv.testing import sum_tolerance
    >>> x = np.linspace(-1, 1, 1000, dtype="float32")
    >>> bool(abs(float(np.sum(x * x)) - np.sum(x.astype("float64") ** 2)) <= sum_tolerance(1000, x.dtype, 1000.0))
    True
    """
    name, sizes = _dtype_name(dtype), np.abs(_on_host(magnitude)).astype(np.float64)
    if name == "bool" or name.startswith(("int", "uint")):
        return np.zeros_like(sizes)
    own = real(name)
    # A part of a complex product is two products, whose magnitudes add up to no more than that of the whole.
    relative = gamma(terms, _computed(own)) if own == name else math.sqrt(2) * gamma(2 * terms, _computed(own))
    if own in HALVES:
        relative += _unit(own) * (1 + relative)
    if relative >= 1:
        return np.full_like(sizes, math.inf)
    # The magnitudes were themselves rounded, perhaps down.
    return np.asarray(sizes * (relative / (1 - relative)) + _least(own))


def conv_grads_tolerance(dout: Array, x: Array, w: Array, b: Array | None = None, **options: Any) -> ConvGrads:
    """Bound how far the gradients of a convolution can be from the exact ones, each element.

    As `portconv.error_bound` does for the output, by the algorithm that serves these arrays on their library. The sums
    are computed on the host by ``algorithm="direct"``, in float64: large layers take their time.

    Parameters
    ----------
    dout : array
        The gradient of the output.
    x, w, b, **options
        As for `portconv.conv`, of any library, on any device.

    Returns
    -------
    ConvGrads
        Of host arrays of float64, as `portconv.conv_backward` returns gradients; `db` is None where `b` is. Those of
        complex numbers bound the absolute value of the error; those of integers, which are exact, are 0. Underflow is
        taken to be absent, but in rounding to a half.

    Raises
    ------
    ConvShapeError, ConvValueError, ConvTypeError, BackendError
        As for `portconv.conv`, and if `dout` has not the output's shape.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv.testing import conv_grads_tolerance
    >>> x, w, b = np.ones((1, 3, 8, 8), "float32"), np.ones((2, 3, 3, 3), "float32"), np.ones(2, "float32")
    >>> dx, dw, db = conv_grads_tolerance(np.ones((1, 2, 6, 6), "float32"), x, w, b, algorithm="gemm")
    >>> dx.shape, dw.shape, db.shape
    ((1, 3, 8, 8), (2, 3, 3, 3), (2,))
    >>> round(db[0] / 2.0**-24)  # sums of 36 ones
    1296
    """
    cache = call.convolution(x, w, b, Options(**options))
    common, out_shape = cache.operation.dtype, cache.operation.shape(Role.OUT)
    if tuple(dout.shape) != out_shape:
        raise ConvShapeError(f"dout: got shape {tuple(dout.shape)}, expected {out_shape}")
    if KINDS[common] == "integral":
        return ConvGrads(*(None if a is None else np.zeros(tuple(a.shape)) for a in (x, w, b)))
    own = real(common)
    precision = cache.operation.precision
    computed = own if precision == "reproducible" else _computed(own)
    host = [None if a is None else _on_host(a) for a in (x, w, b, dout)]
    if own != common:
        host = [None if a is None else np.abs(a) for a in host]
    given: Any = [None if a is None else registry.get("numpy").asarray(a, dtype=computed) for a in host]
    shapes = {key: value for key, value in options.items() if key != "precision"}
    truth = exact(Case("", tuple(x.shape), tuple(w.shape), b is not None, **shapes, dtype=computed), Inputs(*given))

    def reach(name: str, array: Array, algorithms: Iterable[str]) -> Doubles:
        found = reduce(np.maximum, (truth[name].reach(computed, precision, algorithm) for algorithm in algorithms))
        final = real(_dtype_name(array.dtype))
        if _unit(final) > _unit(computed):
            found = found + _unit(final) * (np.abs(truth[name].value) + found) + _least(final)
        # Sums of twice as many terms, for which gamma is less than 2 sqrt(2) times as large while it is less than 0.29;
        # and both parts together, which are off by sqrt(2) times as much as one.
        return found if own == common else 4 * found

    plans = plans_of(cache)
    dx, dw = reach("dx", x, plans["dx"].algorithms), reach("dw", w, plans["dw"].algorithms)
    return ConvGrads(dx, dw, None if b is None else reach("db", b, ["direct"]))


def _unit(dtype: str) -> float:
    """The unit roundoff."""
    return EPSILON[dtype] / 2


def _computed(dtype: str) -> str:
    """What sums are computed in."""
    return "float32" if dtype in HALVES else dtype


def _least(dtype: str) -> float:
    """What rounding to a half is off by, however small a number is: half the smallest subnormal one."""
    return 2.0 ** LEAST_NORMAL[dtype] * _unit(dtype) if dtype in HALVES else 0.0


@dataclass(frozen=True)
class _Results:
    """What a function gave on a target: each part on the host, or None, or in words what is wrong with its form."""

    target: Target
    parts: dict[str, Host | str | None]
    reach: dict[str, Doubles] | None
    """How far each part can be from the exact one; None where equal bits are asked for."""


def _chosen(names: Iterable[str | Target] | None) -> tuple[list[Target], list[tuple[str, str]]]:
    """The targets to compare, and the backends that are left out, with reasons."""
    if isinstance(names, str):
        raise ConvTypeError(f"backends: got {names!r}, expected several names or targets")
    chosen: list[Target] = []
    skipped = []
    for name in registry.names() if names is None else names:
        if isinstance(name, Target):
            chosen.append(name)
            continue
        found = _found(name)
        chosen += found.targets
        if found.reason is not None:
            skipped.append((found.name, found.reason))
    if len(chosen) > 1:
        return chosen, skipped
    alone = ", ".join(map(str, chosen)) or "none"
    if not skipped:
        raise ConvValueError(f"backends: got {alone}, expected at least two to compare")
    raise unittest.SkipTest(f"nothing to compare {alone} with: {_reasons(skipped)}")


def _reasons(skipped: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in skipped)


def _cases(cases: Any) -> list[tuple[str, tuple[Any, ...] | dict[str, Any]]]:
    """The cases with their names."""
    named = list(cases.items()) if isinstance(cases, Mapping) else list(enumerate(cases))
    for name, arguments in named:
        if not isinstance(arguments, tuple | dict):
            raise ConvTypeError(
                f"cases: got {type(arguments).__name__} for case {name}, expected a tuple of arguments, or a dict"
            )
    if not named:
        raise ConvValueError("cases: got none, expected at least one")
    return [(str(name), arguments) for name, arguments in named]


def _run(
    fn: Callable[..., Any],
    arguments: tuple[Any, ...] | dict[str, Any],
    name: str,
    target: Target,
    tolerance: Callable[..., Any] | None,
    bits: bool,
) -> _Results:
    """Run a function and its tolerance on copies of the arguments."""

    def call(function: Callable[..., Any]) -> Any:
        own = _mapped(arguments, target.asarray)
        try:
            return function(**own) if isinstance(own, dict) else function(*own)
        except Exception as error:
            error.add_note(f"assert_consistent: on {target}, case {name}")
            raise

    parts = {part: _form(leaf, target) for part, leaf in _leaves(call(fn)).items()}
    if bits:
        return _Results(target, parts, None)
    if tolerance is None:
        terms = sum(array.size for array in _arrays(arguments))
        return _Results(target, parts, {part: _guess(terms, value) for part, value in parts.items()})
    found = {part: _on_host(leaf) for part, leaf in _leaves(call(tolerance)).items() if leaf is not None}
    reach = {}
    for part, value in parts.items():
        if not isinstance(value, np.ndarray):
            continue
        own = found.get("" if list(found) == [""] else part)
        if own is None:
            raise ConvTypeError(f"tolerance: got {_listed(found)}, expected one for result{part}")
        try:
            reach[part] = np.broadcast_to(own, value.shape).astype(np.float64)
        except ValueError:
            raise ConvShapeError(
                f"tolerance: got shape {own.shape} for result{part}, expected one that broadcasts to {value.shape}"
            ) from None
    return _Results(target, parts, reach)


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(f"result{part}" for part in parts) or "nothing"


def _guess(terms: int, value: Host | str | None) -> Doubles:
    if not isinstance(value, np.ndarray) or value.dtype.kind in "biu":
        return np.zeros(np.shape(value) if isinstance(value, np.ndarray) else ())
    sizes = np.abs(value).astype(np.float64)
    largest = np.max(sizes, initial=0.0, where=np.isfinite(sizes))
    return np.broadcast_to(sum_tolerance(terms, value.dtype, largest), value.shape)


def _form(leaf: Any, target: Target) -> Host | str | None:
    """A part on the host, or in words what is wrong with it: namespace first, then device."""
    if leaf is None:
        return None
    if isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic):
        return np.asarray(leaf)
    leaf = np.asarray(leaf) if isinstance(leaf, np.generic) else leaf
    try:
        found = registry.of(leaf)
    except ConvTypeError as error:
        return str(error)
    if found is not target.backend:
        return f"got an array of {found.name}, expected one of {target.name}"
    device = found.device_of(leaf)
    if device != target.device:
        return f"got device {device}, expected {target.device}"
    return target.to_numpy(leaf)


def _compared(case: str, one: _Results, other: _Results) -> list[Comparison]:
    """Compare the results of two targets of the right form by themselves."""
    pair = one.target.id, other.target.id, case
    if one.parts.keys() != other.parts.keys():
        problem = f"got {_listed(one.parts)} and {_listed(other.parts)}, expected the same"
        return [Comparison(*pair, "", math.inf, math.inf, 0, 0, problem)]
    made = []
    for part, first in one.parts.items():
        second = other.parts[part]
        if not (isinstance(first, np.ndarray) and isinstance(second, np.ndarray)):
            if first is not second:  # one of them is None
                problem = f"got {_kind(first)} and {_kind(second)}, expected the same"
                made.append(Comparison(*pair, part, math.inf, math.inf, 0, 0, problem))
            continue
        problem = _difference("shape", first.shape, second.shape) or _difference("dtype", first.dtype, second.dtype)
        if problem:
            made.append(Comparison(*pair, part, math.inf, math.inf, 0, 0, problem))
            continue
        reach = None if one.reach is None or other.reach is None else one.reach[part] + other.reach[part]
        made.append(_values(pair, part, first, second, reach))
    return made


def _kind(value: Any) -> str:
    return "None" if value is None else "an array"


def _difference(what: str, one: Any, other: Any) -> str:
    return "" if one == other else f"got {what} {one} and {other}, expected the same"


def _values(pair: tuple[str, str, str], part: str, one: Host, other: Host, reach: Doubles | None) -> Comparison:
    """Compare arrays of one shape and dtype, by bits where there is no `reach`."""
    same = _same_bits(one, other)
    error = _error(one, other)
    units = np.where(same, 0.0, np.inf) if reach is None else _ratio(error, reach)
    ulps = _ratio(error, _ulp(one, other))
    wrong = ~same if reach is None else units > 1
    most, far = float(np.max(units, initial=0.0)), float(np.max(ulps, initial=0.0))
    counted = Comparison(*pair, part, most, far, one.size, int(np.sum(same)))
    if not np.any(wrong):
        return counted
    # Of those that are beyond any tolerance, the one that is farthest off.
    farthest = np.lexsort((np.ravel(ulps), np.ravel(units), np.ravel(wrong)))[-1]
    at = tuple(int(i) for i in np.unravel_index(farthest, one.shape))
    how = f"{far:.3g} ulps"
    if reach is None:
        found = f"{int(np.sum(wrong))} of {one.size} elements differ in bits, by up to {how}"
        allowed = ""
    else:
        found = f"apart by up to {most:.3g} times the tolerance, {how}"
        allowed = f", which may be {reach[at]:.3g} apart"
    problem = f"{found}; at {list(at)} {one[at]} and {other[at]}{allowed}"
    return replace(counted, problem=problem)


def _same_bits(one: Host, other: Host) -> NDArray[np.bool_]:
    size = one.dtype.itemsize
    bytes_of = (np.ascontiguousarray(a).view(np.uint8).reshape(*a.shape, size) for a in (one, other))
    return np.asarray(np.all(np.equal(*bytes_of), axis=-1))


def _error(one: Host, other: Host) -> Doubles:
    """The absolute error: 0 of equal numbers, infinities too, and of two that are both no number."""
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(one.astype(wide) - other.astype(wide))
    if one.dtype.kind in "biu":
        error = np.maximum(error, one != other)  # which float64 may not tell apart
    alike = (one == other) | ((one != one) & (other != other))
    return np.where(alike, 0.0, error)


def _ulp(one: Host, other: Host) -> Doubles:
    if one.dtype.kind in "biu":
        return np.ones(one.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.spacing(np.maximum(np.abs(one), np.abs(other)))).astype(np.float64)


def _ratio(error: Doubles, unit: Doubles) -> Doubles:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0.0, error / unit)
    # A nan beside a number, and any error where none is allowed, is beyond measure.
    return np.where(np.isnan(ratio), np.inf, ratio)


def _mapped(value: Any, change: Callable[[Host], Any]) -> Any:
    """The same structure, with its NumPy arrays changed."""
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(own, change) for key, own in value.items()}
    if isinstance(value, tuple | list):
        own = [_mapped(member, change) for member in value]
        return type(value)(*own) if hasattr(value, "_fields") else type(value)(own)
    return value


def _arrays(value: Any) -> list[Host]:
    found: list[Host] = []
    _mapped(value, found.append)
    return found


def _dtypes(value: Any) -> list[Any]:
    return [array.dtype for array in _arrays(value)]


def _leaves(value: Any, place: str = "") -> dict[str, Any]:
    """The parts of a structure by their places in it."""
    if isinstance(value, dict):
        members = [(f"[{key!r}]", own) for key, own in value.items()]
    elif isinstance(value, tuple | list):
        names = getattr(value, "_fields", None)
        places = [f"[{i}]" for i in range(len(value))] if names is None else [f".{name}" for name in names]
        members = list(zip(places, value, strict=True))
    else:
        return {place: value}
    return {at: leaf for step, own in members for at, leaf in _leaves(own, place + step).items()}


def _on_host(value: Any) -> Host:
    if isinstance(value, np.ndarray | np.generic | bool | int | float | complex):
        return np.asarray(value)
    return np.asarray(registry.of(value).to_numpy(value))


def _dtype_name(dtype: Any) -> str:
    """The name of any library's dtype, such as "float32"."""
    if isinstance(dtype, type):
        return np.dtype(dtype).name
    return str(getattr(dtype, "name", None) or dtype).rpartition(".")[2]
