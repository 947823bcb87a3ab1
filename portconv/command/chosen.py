"""Choose what ``portconv verify`` runs: the cases, the backends and devices, and the variants."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from .. import backends
from ..backends import Backend
from ..verification import Case, Report, Variant, lacking, layers, onnx_model, unserved
from ..verification.cases import in_dtypes
from .backends import device_name
from .group import MOST_TAPS, backends_named, refuse

REPRODUCIBLE_THREADS = (1, 2)
"""The numbers of threads that reproducible results are compared under by default."""
MOST_OPERATIONS = 2 * 10**12
"""So many multiplications and additions in float64 take minutes on a CPU."""
HELD = 2**28
"""The bytes that the exact values of several cases may take together."""
COPIES = 10
"""The doubles or complex numbers that each element of a case takes while its exact values are computed."""


def chosen_backends(names: Sequence[str], report: Report) -> list[Backend]:
    """Return the named backends, or all that work here; the report notes the others as skipped."""
    if names:
        return backends_named(names)
    working = []
    for name in backends.names():
        # A library that cannot be imported must not stop the verification of the others.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                backend = backends.find(name)
                reason = backend.unavailable
            except Exception as error:
                reason = str(caught[0].message) if caught else f"{type(error).__name__}: {error}"
        if reason is None:
            backend.widen()
            working.append(backend)
        else:
            report.skipped.append((name, reason))
    return working


def places(chosen: Sequence[Backend], devices: Sequence[str], report: Report) -> list[Variant]:
    """Return each backend on each named device, or on its default device."""
    if not devices:
        return [Variant(backend) for backend in chosen]
    known = {backend.name: {device_name(device): device for device in backend.devices()} for backend in chosen}
    for device in devices:
        if device != "all" and not any(_named(device, by_name) for by_name in known.values()):
            listed = "; ".join(f"{name}: {', '.join(by_name)}" for name, by_name in known.items())
            refuse(f"--device: got {device!r}, expected 'all' or a device of a backend ({listed})")
    variants = []
    for backend in chosen:
        by_name = known[backend.name]
        wanted = list(by_name) if "all" in devices else [name for device in devices for name in _named(device, by_name)]
        for name in dict.fromkeys(wanted):
            default = name == next(iter(by_name))
            variants.append(Variant(backend) if default else Variant(backend, by_name[name], name))
        if not wanted:
            report.skipped.append((backend.name, f"has no device {' or '.join(devices)}"))
    return variants


def _named(device: str, known: dict[str, Any]) -> list[str]:
    return [name for name, value in known.items() if device in (name, str(value))]


def variants(places: Sequence[Variant], threads: Sequence[int], precision: str) -> list[Variant]:
    """Return each place with each number of threads; for reproducible results also with the batch in halves."""
    numbers: tuple[int | None, ...] = tuple(dict.fromkeys(threads)) or (None,)
    if precision == "reproducible":
        numbers = numbers if threads else (None, *REPRODUCIBLE_THREADS)
    chosen = [replace(place, threads=number) for place in places for number in numbers]
    if precision == "reproducible":
        chosen += [replace(place, halves=True) for place in places]
    return chosen


@dataclass(frozen=True)
class Files:
    """The files that the user's cases are read from, and the open sizes of the model.

    Attributes
    ----------
    layers, model : Path, optional
        A TOML or JSON file of layers, and an ONNX model.
    batch : int, optional
        The samples in each input of the model.
    dims : sequence of str
        The other open sizes of the model, as NAME=SIZE.
    """

    layers: Path | None = None
    model: Path | None = None
    batch: int | None = None
    dims: Sequence[str] = ()


def chosen_layers(files: Files, report: Report, dtypes: Sequence[str]) -> tuple[Case, ...] | None:
    """Read the cases of files, in float32, which will be run in `dtypes`; None if no file is given."""
    if files.model is None and (files.batch is not None or files.dims):
        option = "--dim" if files.dims else "--batch"
        refuse(f"{option}: got a size without a model, expected --onnx FILE beside it")
    if files.layers is None and files.model is None:
        return None
    cases: list[Case] = []
    try:
        if files.layers is not None:
            cases += layers.read(files.layers)
        if files.model is not None:
            model = onnx_model.read(files.model, files.batch, _sizes(files.dims))
            cases += model.cases
            for what in model.left_out:
                report.leave_out(f"of the model: {what}")
        if files.layers is not None and files.model is not None:
            layers.check_names(files.model, cases)
    except layers.Unusable as error:
        refuse(error)
    memory = backends.get("numpy").memory(None)
    for case in in_dtypes(cases, dtypes):
        needed = _needed(case)
        if needed > memory:
            refuse(
                f"layer {case.name!r}: verifying it takes about {needed} bytes of memory, of which there are {memory}"
            )
        if case.operations > MOST_OPERATIONS:
            refuse(
                f"layer {case.name!r}: verifying it takes {case.operations:.2g} multiplications and additions, "
                f"expected at most {MOST_OPERATIONS:.2g}: give fewer samples or smaller sizes"
            )
        if case.geometry.taps > MOST_TAPS:
            refuse(f"layer {case.name!r}: got a kernel of {case.geometry.taps} cells, expected at most {MOST_TAPS}")
    return tuple(cases)


def _needed(case: Case) -> int:
    """Return about how many bytes the exact values of a case take while they are computed."""
    sizes, itemsize = case.geometry, 16 if case.dtype.startswith("complex") else 8
    return itemsize * COPIES * sum(map(math.prod, (sizes.x_shape, sizes.w_shape, sizes.out_shape)))


def batches(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Cut the runs into parts whose exact values take at most `HELD` bytes, or are those of one case."""
    batch: list[Run] = []
    total = 0
    for run in runs:
        total += _needed(run.case)
        if batch and total > HELD:
            yield batch
            batch, total = [], _needed(run.case)
        batch.append(run)
    yield batch


def _sizes(dims: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for dim in dims:
        name, _, size = dim.rpartition("=")
        if not (name and size.isascii() and size.isdigit() and 0 < len(size) < 10 and int(size)):
            refuse(f"--dim: got {dim!r}, expected NAME=SIZE with a positive size")
        sizes[name] = int(size)
    return sizes


class Run(NamedTuple):
    """A case in a precision, and the variants that run it."""

    case: Case
    precision: str
    variants: list[Variant]


Ways = Mapping[tuple[str, str], Sequence[Variant]]
"""The variants that run the cases of a dtype in a precision."""


def runs(cases: Sequence[Case], algorithms: Sequence[str], ways: Ways, report: Report) -> list[Run]:
    """Return each case in each precision, by each named algorithm or by its own; the report notes what is left out."""
    fitting = [case for case in cases if case.fits]
    for case in cases:
        if not case.fits:
            report.leave_out(f"{case.dtype} cases whose weights are too large for it")
    chosen = []
    for precision in dict.fromkeys(precision for _, precision in ways):
        for case in fitting:
            wanted = ways[case.dtype, precision]
            if not algorithms:
                case = _by_its_own(case, precision)
                chosen.append(Run(case, precision, _serving(case, precision, wanted) or list(wanted)))
            for algorithm in dict.fromkeys(algorithms):
                named = replace(case, algorithm=algorithm)
                serving = _serving(named, precision, wanted)
                if serving:
                    chosen.append(Run(named, precision, serving))
                    for quantity in lacking(named):
                        report.leave_out(f"{quantity} of {case.dtype} cases, which {algorithm} does not compute")
                what = f"{case.dtype} cases that {algorithm} cannot compute in {precision} precision"
                others = dict.fromkeys(one.backend.name for one in wanted if one not in serving) if serving else [""]
                if len(serving) < len(wanted):
                    report.leave_out(f"{what}{' on ' * bool(serving)}{', '.join(others)}")
    return chosen


def _serving(case: Case, precision: str, variants: Sequence[Variant]) -> list[Variant]:
    """Return the variants on whose backends the algorithm of a case can compute it."""
    if case.algorithm == "auto":
        return list(variants)
    by_name = {variant.backend.name: variant.backend for variant in variants}
    serving = [name for name, backend in by_name.items() if unserved(case, precision, backend) is None]
    return [variant for variant in variants if variant.backend.name in serving]


def _by_its_own(case: Case, precision: str) -> Case:
    """Return the case with its own algorithm if that can compute it, else with "auto".

    Reproducible results are the same for every algorithm, and not every algorithm has complex ones, so "auto" serves
    as well there. In other cases an algorithm that cannot compute its case is a failure.
    """
    replaceable = precision == "reproducible" or case.dtype.startswith("complex")
    if not replaceable or case.algorithm == "auto" or unserved(case, precision) is None:
        return case
    return replace(case, algorithm="auto")
