"""``portconv kernels``: list the kernels for this CPU, compile them ahead, clear their cache, and print one."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..errors import in_a_line
from ..kernels import cache, compile, state
from ..kernels.families import Kernel, kernels
from ..kernels.target import WORDS, Target, cross
from .group import echo, refuse

CACHED, ABSENT = "cached", "not compiled"
"""The states of a kernel that is in the cache, and of one that is not."""
KIB = 1024


@click.command("kernels")
@click.option("--all", "everything", is_flag=True, help="Compile all kernels ahead, into the cache.")
@click.option("--clear", is_flag=True, help="Remove what is in the cache.")
@click.option("--assembly", metavar="NAME", help="Print the assembly of this kernel.")
@click.option("--target", "name", type=click.Choice(tuple(WORDS)), help="For a typical CPU with these instructions.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone.")
@click.pass_context
def command(
    ctx: click.Context, everything: bool, clear: bool, assembly: str | None, name: str | None, as_json: bool
) -> None:
    """List the kernels for this CPU, and which are compiled.

    A kernel is compiled when a call first needs it, and kept in the cache folder for the processes that follow. The
    exit status is 1 where there can be no kernels, and the reason is printed; also where --all could not compile or
    keep one.
    """
    if everything + clear + (assembly is not None) > 1:
        refuse("--all, --clear, --assembly: got several, expected one")
    if clear:
        _clear(as_json)
        return
    fault = state.fault() if name is None else state.no_compiler()
    if fault is not None:
        install = None if state.is_installed() else state.INSTALL
        echo(json.dumps({"fault": fault, "install": install}, indent=2) if as_json else f"no kernels: {fault}")
        ctx.exit(1)
    target = state.here() if name is None else cross(name)
    if assembly is not None:
        _print_assembly(_named(assembly), target, as_json)
        return
    faults = _compile_all(target) if everything else []
    if as_json:
        echo(json.dumps(_as_json(target, faults), indent=2))
    else:
        _print(target, faults)
    ctx.exit(1 if faults else 0)


def _named(name: str) -> Kernel:
    known = {str(kernel): kernel for kernel in kernels()}
    if name not in known:
        refuse(f"--assembly: got {name!r}, expected one of {', '.join(known)}")
    return known[name]


def _print_assembly(kernel: Kernel, target: Target, as_json: bool) -> None:
    try:
        text = compile.assembly(kernel.written(target), target)
    except Exception as error:  # LLVM's are of several kinds
        raise click.ClickException(f"{kernel}: LLVM cannot compile it: {in_a_line(error)}") from None
    if as_json:
        echo(json.dumps({"kernel": str(kernel), "target": target.words, "assembly": text}, indent=2))
    else:
        click.echo(text, nl=False)  # with its tabs


def _clear(as_json: bool) -> None:
    where = cache.folder()
    try:
        count = cache.clear()
    except OSError as error:
        raise click.ClickException(f"--clear: {in_a_line(error)}") from None
    if as_json:
        echo(json.dumps({"folder": where and str(where), "removed": count}, indent=2))
    else:
        echo("there is no cache" if where is None else f"removed {count} kernels from {where}")


def _compile_all(target: Target) -> list[str]:
    """Compile the kernels that are not in the cache; return what went wrong, in a line each."""
    faults: list[str] = []
    with _heard(faults), _progress() as progress:
        for kernel in progress.track(kernels(), description="compiling"):
            try:
                cache.object_of(kernel, target)
            except Exception as error:
                faults.append(f"{kernel}: LLVM cannot compile it: {in_a_line(error)}")
    if cache.folder() is None:
        faults.append(f"nothing is kept: {cache.VARIABLE} is {cache.OFF}, or there is no home folder")
    elif not cache.sources():
        faults.append("nothing is kept: portconv's own files changed after they were imported, or cannot be read")
    return faults


@contextmanager
def _heard(faults: list[str]) -> Iterator[None]:
    """Take warnings of the cache as faults."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", cache.KernelCacheWarning)
        yield
    faults += [in_a_line(each.message) for each in caught if isinstance(each.message, cache.KernelCacheWarning)]


def _progress() -> Progress:
    terminal = sys.stderr.isatty()
    # The console must be quiet too: rich ends even a disabled bar with an empty line.
    return Progress(console=Console(stderr=True, quiet=not terminal), transient=True, disable=not terminal)


def _found(target: Target, entries: Sequence[cache.Entry]) -> dict[Kernel, tuple[str, int]]:
    """Return the state of each kernel in the cache, and its bytes."""
    by_name = {entry.path.name: entry for entry in entries}
    found = {}
    for kernel in kernels():
        entry = by_name.get(cache.file_name(kernel, target))
        if entry is None:
            found[kernel] = ABSENT, 0
        else:
            found[kernel] = CACHED if entry.state == cache.CURRENT else entry.state, entry.nbytes
    return found


def _as_json(target: Target, faults: Sequence[str]) -> dict[str, Any]:
    entries, where = cache.entries(), cache.folder()
    listed = [
        {"name": str(kernel), "family": kernel.family, "variant": kernel.variant, "state": how, "bytes": nbytes}
        for kernel, (how, nbytes) in _found(target, entries).items()
    ]
    about = {
        "folder": where and str(where),
        "fault": where and cache.distrust(where),
        "kernels": len(entries),
        "stale": sum(entry.state != cache.CURRENT for entry in entries),
        "bytes": sum(entry.nbytes for entry in entries),
    }
    named = {"name": target.name, "words": target.words, "triple": target.triple, "cpu": target.cpu}
    return {"target": named, "compiler": state.version(), "cache": about, "kernels": listed, "faults": list(faults)}


def _print(target: Target, faults: Sequence[str]) -> None:
    entries = cache.entries()
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("kernel", overflow="fold")
    table.add_column("state")
    table.add_column("bytes", justify="right")
    for kernel, (how, nbytes) in _found(target, entries).items():
        table.add_row(str(kernel), how, str(nbytes or ""))
    Console(highlight=False).print(table)
    echo(f"for {target.words}, by {state.version()}")
    echo(_cache_in_words(entries))
    for fault in faults:
        echo(f"FAILED {fault}")


def _cache_in_words(entries: Sequence[cache.Entry]) -> str:
    where = cache.folder()
    if where is None:
        return f"no cache: {cache.VARIABLE} is {cache.OFF}, or there is no home folder"
    if fault := cache.distrust(where):
        return f"no cache: {where}: {fault}"
    stale = sum(entry.state != cache.CURRENT for entry in entries)
    nbytes = sum(entry.nbytes for entry in entries)
    words = f"{len(entries)} kernels of all targets in {where}, {nbytes / KIB:.0f} KiB"
    return words + (f"; {stale} are of other versions or damaged, which --clear removes" if stale else "")
