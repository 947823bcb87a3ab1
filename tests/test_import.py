"""What importing portconv brings in: no module that only some calls need."""

from __future__ import annotations

import subprocess
import sys

SELDOM = {
    "ast",
    "concurrent.futures",
    "importlib.metadata",
    "inspect",
    "ipaddress",
    "json",
    "logging",
    "pathlib",
    "platform",
    "urllib.parse",
}
"""Modules of the standard library that take long to import."""

CODE = """
import sys
import numpy
for name in {seldom!r} - {of_numpy!r}:
    sys.modules.pop(name, None)  # the start of Python has some, where a package is installed in place
import portconv
print(*sys.modules)
"""


def imported(code: str) -> set[str]:
    """Return the modules that a new process has after this code, without what `site` imports."""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(printed.stdout.split())


def test_an_import_brings_in_nothing_that_only_some_calls_need():
    of_numpy = imported("import sys, numpy; print(*sys.modules)")
    started = imported("import sys; print(*sys.modules)")
    code = CODE.format(seldom=SELDOM, of_numpy=of_numpy - started)
    assert not (imported(code) & SELDOM) - (of_numpy - started)
