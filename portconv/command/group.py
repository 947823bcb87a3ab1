"""The group of subcommands, and what they share: choosing backends, checking files, and refusing bad input."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from .. import backends
from .._version import __version__
from ..algorithms.choice import algorithms
from ..backends import Backend
from ..errors import BackendError

SUBCOMMANDS = ("backends", "bench", "run", "verify")

UNCHECKED = click.Path(readable=False, path_type=Path)
"""A path that `check_destination` checks, because click refuses one in several lines."""


class AlgorithmName(click.ParamType):  # type: ignore[type-arg]  # of which older versions have none
    """The name of an algorithm, or "auto"; which there are is looked up when a name is given."""

    name = "algorithm"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str | None:
        """Return the names, as a choice of them has it."""
        return self._choice.get_metavar(param, *(() if ctx is None else (ctx,)))  # older versions take no context

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name that was given; fail where no algorithm has it."""
        return self._choice.convert(value, param, ctx)

    @property
    def _choice(self) -> click.Choice[str]:
        return click.Choice(("auto", *algorithms()))


class _Group(click.Group):
    """A group that imports a subcommand when it is called, so that none waits for another's libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__package__}.{cmd_name}").command
        return command


@click.command(cls=_Group)
@click.version_option(__version__)
def portconv() -> None:
    """Convolve a photograph, list the array libraries, check the results on each, and time layers."""


class BadInput(click.ClickException):
    """Input that cannot be used; the command prints one line and exits with status 2."""

    exit_code = 2


def refuse(message: object) -> NoReturn:
    """End the command because of bad input."""
    raise BadInput(" ".join(str(message).split()))


def backend_named(name: str) -> Backend:
    """Return the backend of that name; "auto" is CuPy if a GPU works, else NumPy."""
    try:
        if name == "auto":
            name = "numpy" if backends.find("cupy").unavailable else "cupy"
        backend = backends.get(name)
    except BackendError as error:
        refuse(error)
    backend.widen()
    return backend


def backends_named(names: Sequence[str]) -> list[Backend]:
    """Return the backends of these names, each once; without names, all that work here."""
    chosen = map(backend_named, names or [backend.name for backend in backends.available()])
    return list({backend.name: backend for backend in chosen}.values())


def check_destination(option: str, path: Path, formats: Sequence[str]) -> None:
    """Refuse a file that cannot be written, or whose ending is not in `formats`."""
    if path.suffix[1:].lower() not in formats:
        refuse(f"{option} {path}: got the ending {path.suffix!r}, expected one of {', '.join(formats)}")
    if path.is_dir():
        refuse(f"{option} {path}: a directory, expected a file")
    if not path.parent.is_dir():
        refuse(f"{option} {path}: no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        refuse(f"{option} {path}: may not be written")
