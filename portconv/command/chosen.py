"""What ``portconv verify`` was asked to run: which cases, on which backends and devices, in which ways."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import backends
from ..backends import Backend
from ..verification import Case, Report, Variant, layers, onnx_model, unserved
from .backends import device_name
from .group import backends_named, refuse

REPRODUCIBLE_THREADS = (1, 2)
"""Numbers of threads that reproducible results are compared under, where none are asked for."""
COPIES = 10
"""Arrays of doubles or complex numbers that each element of a case takes while its exact values are worked out."""


def chosen_backends(names: Sequence[str], report: Report) -> list[Backend]:
    """The backends asked for, or all that work here; what does not is noted as skipped."""
    if names:
        return backends_named(names)
    found = []
    for name in backends.names():
        # One library that cannot even be imported must not keep the others from being verified.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                backend = backends.find(name)
                reason = backend.unavailable
            except Exception as error:
                reason = str(caught[0].message) if caught else f"{type(error).__name__}: {error}"
        if reason is None:
            backend.widen()
            found.append(backend)
        else:
            report.skipped.append((name, reason))
    return found


def places(chosen: Sequence[Backend], devices: Sequence[str], report: Report) -> list[Variant]:
    """Each backend on each device asked for, or on its default one."""
    if not devices:
        return [Variant(backend) for backend in chosen]
    known = {backend.name: {device_name(device): device for device in backend.devices()} for backend in chosen}
    for device in devices:
        if device != "all" and not any(_named(device, own) for own in known.values()):
            listed = "; ".join(f"{name}: {', '.join(own)}" for name, own in known.items())
            refuse(f"--device: got {device!r}, expected 'all' or a device of a backend ({listed})")
    found = []
    for backend in chosen:
        own = known[backend.name]
        wanted = list(own) if "all" in devices else [name for device in devices for name in _named(device, own)]
        for name in dict.fromkeys(wanted):
            default = name == next(iter(own))
            found.append(Variant(backend) if default else Variant(backend, own[name], name))
        if not wanted:
            report.skipped.append((backend.name, f"has no device {' or '.join(devices)}"))
    return found


def _named(device: str, known: dict[str, Any]) -> list[str]:
    return [name for name, own in known.items() if device in (name, str(own))]


def variants(found: Sequence[Variant], threads: Sequence[int], precision: str) -> list[Variant]:
    """Each place as it is or with each number of threads; reproducible results in halves of the batch as well."""
    numbers: tuple[int | None, ...] = tuple(dict.fromkeys(threads)) or (None,)
    if precision == "reproducible":
        numbers = numbers if threads else (None, *REPRODUCIBLE_THREADS)
    made = [replace(place, threads=number) for place in found for number in numbers]
    if precision == "reproducible":
        made += [replace(place, halves=True) for place in found]
    return made


def chosen_layers(
    file: Path | None,
    model: Path | None,
    batch: int | None,
    dims: Sequence[str],
    report: Report,
    dtypes: Sequence[str],
) -> tuple[Case, ...] | None:
    """Read the cases of files, in float32, to be run in `dtypes`; None where none is given."""
    if model is None and (batch is not None or dims):
        refuse(f"{'--dim' if dims else '--batch'}: got a size without a model, expected --onnx FILE beside it")
    if file is None and model is None:
        return None
    found: list[Case] = []
    try:
        if file is not None:
            found += layers.read(file)
        if model is not None:
            read = onnx_model.read(model, batch, _sizes(dims))
            found += read.cases
            for what in read.left_out:
                report.leave_out(f"of the model: {what}")
        if file is not None and model is not None:
            layers.check_names(model, found)
    except layers.Unusable as error:
        refuse(error)
    memory = backends.get("numpy").memory(None)
    wide = 16 if any(dtype.startswith("complex") for dtype in dtypes) else 8
    for case in found:
        sizes = case.geometry
        needed = wide * COPIES * sum(map(math.prod, (sizes.x_shape, sizes.w_shape, sizes.out_shape)))
        if needed > memory:
            refuse(
                f"layer {case.name!r}: verifying it takes about {needed} bytes of memory, of which there are {memory}"
            )
    return tuple(found)


def _sizes(dims: Sequence[str]) -> dict[str, int]:
    found = {}
    for dim in dims:
        name, _, size = dim.rpartition("=")
        if not (name and size.isascii() and size.isdigit() and 0 < len(size) < 10 and int(size)):
            refuse(f"--dim: got {dim!r}, expected NAME=SIZE with a positive size")
        found[name] = int(size)
    return found


def runs(
    given: Sequence[Case], algorithms: Sequence[str], precisions: Sequence[str], report: Report
) -> list[tuple[Case, str]]:
    """Each case in each precision, by each algorithm asked for, or by its own; what none can serve is left out."""
    found, fitting = [], []
    for case in given:
        if case.fits:
            fitting.append(case)
        else:
            report.leave_out(f"{case.dtype} cases whose weights are too large for it")
    for precision in precisions:
        for case in fitting:
            if not algorithms:
                # Reproducible results are the same by whichever algorithm, and complex ones not to be had by each.
                some = precision == "reproducible" or case.dtype.startswith("complex")
                own = not some or case.algorithm == "auto" or unserved(case, precision) is None
                found.append((case if own else replace(case, algorithm="auto"), precision))
            for algorithm in dict.fromkeys(algorithms):
                named = replace(case, algorithm=algorithm)
                if algorithm == "auto" or unserved(named, precision) is None:
                    found.append((named, precision))
                else:
                    report.leave_out(f"{case.dtype} cases that {algorithm} cannot serve, {precision}")
    return found
