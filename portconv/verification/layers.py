"""Read cases from a TOML or JSON file: a list of layers, with keys named as the arguments of `portconv.conv`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..algorithms.choice import algorithms
from ..errors import PortconvError
from ..spec.arguments import option
from ..spec.options import PADDING_MODES
from .cases import Case

READERS = {".toml": ("TOML", tomllib.loads), ".json": ("JSON", json.loads)}
REQUIRED = ("name", "x_shape", "w_shape")
KNOWN = tuple(field.name for field in fields(Case) if field.name not in ("dtype", "numbers", "w", "b"))


class Unusable(ValueError):
    """A file has no usable cases; the message names the file, the entry and the problem in one line."""


def read(path: Path) -> tuple[Case, ...]:
    """Read the layers of a file.

    Parameters
    ----------
    path : Path
        A TOML file with tables ``[[layers]]``, or a JSON file that is a list of objects or has one as "layers".

    Returns
    -------
    tuple of Case
        At least one case, in float32; no two have the same name.

    Raises
    ------
    Unusable
        If the file cannot be read, or an entry is not a layer.
    """
    layers = tuple(_case(path, number, entry) for number, entry in enumerate(_entries(path), 1))
    if not layers:
        raise Unusable(f"{path}: got no layers, expected at least one")
    check_names(path, layers)
    return layers


def check_names(path: Path, cases: Iterable[Case]) -> None:
    """Refuse two cases of one name."""
    names: set[str] = set()
    for case in cases:
        if case.name in names:
            raise Unusable(f"{path}: got two layers of the name {case.name!r}, expected different ones")
        names.add(case.name)


def _entries(path: Path) -> list[Any]:
    if path.suffix.lower() not in READERS:
        raise Unusable(f"{path}: got the ending {path.suffix!r}, expected {' or '.join(READERS)}")
    form, parse = READERS[path.suffix.lower()]
    try:
        entries = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unusable(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{path}: not {form}: {error}") from None
    if isinstance(entries, dict) and entries.keys() == {"layers"}:
        entries = entries["layers"]
    if not isinstance(entries, list):
        kind = f"the keys {sorted(entries)}" if isinstance(entries, dict) else type(entries).__name__
        raise Unusable(f"{path}: got {kind}, expected a list of layers, or 'layers' and nothing else")
    return entries


def _case(path: Path, number: int, entry: Any) -> Case:
    where = f"{path}: layer {number}"
    if not isinstance(entry, dict):
        raise Unusable(f"{where}: got {type(entry).__name__}, expected a table of {', '.join(KNOWN)}")
    name = entry.get("name")
    if "name" in entry and not (isinstance(name, str) and name.strip() and name.isprintable()):
        raise Unusable(f"{where}: name: got {name!r}, expected a string that can be printed")
    where = f"{where} ({name!r})" if name else where
    if unknown := sorted(entry.keys() - set(KNOWN)):
        raise Unusable(f"{where}: got the unknown key {unknown[0]!r}, expected some of {', '.join(KNOWN)}")
    if missing := [key for key in REQUIRED if key not in entry]:
        raise Unusable(f"{where}: got no {missing[0]!r}, expected at least {', '.join(REQUIRED)}")
    if not isinstance(entry.get("bias", False), bool):
        raise Unusable(f"{where}: bias: got {entry['bias']!r}, expected true or false")
    return checked(where, Case(**{key: _tuples(value) for key, value in entry.items()}))


def checked(where: str, case: Case) -> Case:
    """Return the case if its shapes and options fit; else refuse it with the message of portconv's error."""
    try:
        option("padding_mode", case.padding_mode, PADDING_MODES)
        option("algorithm", case.algorithm, ("auto", *algorithms()))
        assert case.out_shape is not None
        assert case.geometry is not None
    except PortconvError as error:
        raise Unusable(f"{where}: {error}") from None
    return case


def _tuples(value: Any) -> Any:
    """Return lists as tuples, which are hashable."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
