"""``portconv backends``: list the array libraries, their devices, and the kernels; say why others do not work."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import backends
from ..kernels import state
from .group import echo


@dataclass
class _Entry:
    """What the list says about one backend."""

    name: str
    available: bool = False
    reason: str | None = None
    install: str | None = None
    no_device: bool = False
    version: str | None = None
    devices: list[str] = field(default_factory=list)
    details: dict[str, str] = field(default_factory=dict)
    advice: str | None = None


@click.command("backends")
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone.")
def command(as_json: bool) -> None:
    """List the array libraries, and say which of them work here.

    A line below says whether there are kernels for this CPU.
    """
    entries = [_entry(name) for name in backends.names()]
    if as_json:
        echo(json.dumps({"backends": [asdict(entry) for entry in entries], "kernels": _kernels()}, indent=2))
        return
    console = Console(highlight=False)
    console.print(_table(entries))
    console.print(Text(f"kernels: {_kernels_in_words()}"), soft_wrap=True)
    for entry in entries:
        if entry.advice:
            console.print(Text(f"{entry.name}: {entry.advice}"), soft_wrap=True)


def device_name(device: Any) -> str:
    """Name a device in a few words; libraries print theirs as Python objects."""
    text = str(device).removeprefix("array_api_strict.")
    return text.removeprefix("Device('").removesuffix("')").strip("<>")


def _entry(name: str) -> _Entry:
    entry = _Entry(name)
    # A broken library may raise or warn of anything when it is imported; the list must still be printed.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            _fill(entry)
        except Exception as error:
            entry.available = False
            entry.reason = _line(caught[0].message if caught else f"{type(error).__name__}: {error}")
    return entry


def _fill(entry: _Entry) -> None:
    backend = backends.find(entry.name)
    entry.install = getattr(backend, "install", None)
    fault = backend.fault
    version = backend.version()
    entry.version = None if version == "unknown" else version
    if fault is not None:
        entry.reason, entry.no_device = _line(fault), fault.no_device
        if fault.broken:  # to install it once more does not help
            entry.install = None
        return
    entry.devices = [device_name(device) for device in backend.devices()]
    entry.details = {key: _line(value) for key, value in backend.details().items()}
    entry.advice = _line(backend.advice() or "") or None
    entry.available = True


def _kernels() -> dict[str, Any]:
    """Return whether kernels are generated for this CPU, with which instructions, and why not."""
    fault = state.fault()
    return {
        "available": fault is None,
        "reason": fault,
        "install": None if state.is_installed() else state.INSTALL,
        "instructions": None if fault else state.here().name,
        "cpu": None if fault else state.here().cpu,
        "version": state.version(),
    }


def _kernels_in_words() -> str:
    fault = state.fault()
    return f"none: {fault}" if fault else f"for {state.here().words}, by {state.version()}"


def _line(text: object) -> str:
    return " ".join(str(text).split())


def _table(entries: list[_Entry]) -> Table:
    table = Table(box=box.ROUNDED, show_lines=True)
    for heading in ("Backend\nand version", "Works", "Devices"):
        table.add_column(heading, overflow="fold")
    table.add_column("Details", overflow="fold", ratio=1)
    for entry in entries:
        # Text and not str: rich reads square brackets in a str as markup, and install commands have them.
        table.add_row(
            Text.assemble((entry.name, "bold"), f"\n{entry.version or ''}"),
            Text("yes", style="green") if entry.available else Text("no", style="yellow"),
            Text("\n".join(entry.devices)),
            _explanation(entry),
        )
    return table


def _explanation(entry: _Entry) -> Text:
    if entry.available:
        return Text("\n".join(f"{key}: {value}" for key, value in entry.details.items()))
    lines = [entry.reason or ""]
    # Where a device is missing, installing the library does not help.
    if entry.install and not entry.no_device:
        lines.append(f"To install it: {entry.install}")
    return Text("\n".join(lines))
