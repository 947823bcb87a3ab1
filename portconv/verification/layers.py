"""Cases from a file: a list of layers in TOML or JSON, each with the names that `portconv.conv` gives its arguments."""

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
KNOWN = tuple(own.name for own in fields(Case) if own.name not in ("dtype", "w", "b"))


class Unusable(ValueError):
    """A file that gives no cases: in one line the file, the entry and what is wrong with it."""


def read(path: Path) -> tuple[Case, ...]:
    """Read the layers of a file.

    Parameters
    ----------
    path : Path
        A TOML file with tables ``[[layers]]``, or a JSON file with a list of objects, by itself or as "layers".

    Returns
    -------
    tuple of Case
        At least one, of different names, in float32.

    Raises
    ------
    Unusable
        For a file that cannot be read, or anything in it that is no layer.
    """
    found = tuple(_case(path, number, entry) for number, entry in enumerate(_entries(path), 1))
    if not found:
        raise Unusable(f"{path}: got no layers, expected at least one")
    check_names(path, found)
    return found


def check_names(path: Path, found: Iterable[Case]) -> None:
    """Refuse two cases of one name."""
    names: set[str] = set()
    for case in found:
        if case.name in names:
            raise Unusable(f"{path}: got two layers of the name {case.name!r}, expected different ones")
        names.add(case.name)


def _entries(path: Path) -> list[Any]:
    if path.suffix.lower() not in READERS:
        raise Unusable(f"{path}: got the ending {path.suffix!r}, expected {' or '.join(READERS)}")
    form, parse = READERS[path.suffix.lower()]
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unusable(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{path}: not {form}: {error}") from None
    if isinstance(found, dict) and found.keys() == {"layers"}:
        found = found["layers"]
    if not isinstance(found, list):
        kind = f"the keys {sorted(found)}" if isinstance(found, dict) else type(found).__name__
        raise Unusable(f"{path}: got {kind}, expected a list of layers, or 'layers' and nothing else")
    return found


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
        raise Unusable(f"{where}: got no {missing[0]!r}, expected {', '.join(REQUIRED)} and whatever else")
    if not isinstance(entry.get("bias", False), bool):
        raise Unusable(f"{where}: bias: got {entry['bias']!r}, expected true or false")
    return checked(where, Case(**{key: _tuples(value) for key, value in entry.items()}))


def checked(where: str, case: Case) -> Case:
    """Return a case whose shapes and options fit; refuse another in the words of portconv's own error."""
    try:
        option("padding_mode", case.padding_mode, PADDING_MODES)
        option("algorithm", case.algorithm, ("auto", *algorithms()))
        assert case.out_shape is not None
        assert case.geometry is not None
    except PortconvError as error:
        raise Unusable(f"{where}: {error}") from None
    return case


def _tuples(value: Any) -> Any:
    """Lists as tuples, which can be looked up."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
