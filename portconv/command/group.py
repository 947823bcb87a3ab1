"""The group of subcommands, and what they share: choosing backends, checking files, and refusing bad input."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from .. import backends
from .._version import __version__
from ..algorithms.choice import algorithms
from ..backends import Backend
from ..errors import BackendError

SUBCOMMANDS = ("backends", "bench", "kernels", "run", "verify")
MOST_TAPS = 2**19
"""With more cells in a kernel, the steps for each of them take minutes."""

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
    """Convolve a photograph, list the array libraries and kernels, check the results on each, and time layers."""


class BadInput(click.ClickException):
    """Input that cannot be used; the command prints one line and exits with status 2."""

    exit_code = 2


def refuse(message: object) -> NoReturn:
    """End the command because of bad input."""
    raise BadInput(printable(" ".join(str(message).split())))


def printable(text: str) -> str:
    """Return a text with what is no letter written out: names in files may hold the codes that steer a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)


def echo(text: object = "") -> None:
    """Print a line."""
    click.echo(printable(str(text)))


def run(group: click.Group) -> NoReturn:
    """Run a group of commands; say in a line what went wrong, and exit with a status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            # As Python's own: the descriptor is not closed with the file, which nobody closes.
            nowhere = io.FileIO(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)
            setattr(sys, name, io.TextIOWrapper(nowhere, "utf-8"))
    try:
        status = group.main(prog_name="portconv", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        words = io.StringIO()
        error.show(words)
        click.echo(printable(words.getvalue()), nl=False, err=True)
        status = error.exit_code
    except click.Abort:
        click.echo("Aborted!", err=True)
        status = 1
    except BrokenPipeError:  # the reader has seen enough
        status = _without_output(1)
    except OSError as error:
        if error.filename is not None:
            raise
        click.echo(f"portconv: the output cannot be written: {error.strerror}", err=True)
        status = _without_output(2)
    sys.exit(status)


def _without_output(status: int) -> int:
    """Let nothing more be written to standard output, not at the exit of the interpreter either; return the status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def write(option: str, path: Path, content: bytes) -> None:
    """Write a file whole or not at all; refuse one that cannot be written."""
    try:
        if path.exists() and not path.is_file():  # such as /dev/stdout
            path.write_bytes(content)
            return
        whole = path.resolve()
        aside = whole.with_name(f".{whole.name[:100]}.{os.getpid()}.part")
        try:
            aside.write_bytes(content)
            if whole.exists():
                shutil.copymode(whole, aside)
            aside.replace(whole)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    except OSError as error:
        refuse(f"{option} {path}: {error.strerror or error}")


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
