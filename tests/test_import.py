"""What importing the package gives: modules when they are first used, and a sentence where it is not installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import portconv

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
    printed = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return set(printed.stdout.split())


def test_an_import_brings_in_nothing_that_only_some_calls_need():
    of_numpy = imported("import sys, numpy; print(*sys.modules)")
    started = imported("import sys; print(*sys.modules)")
    code = CODE.format(seldom=SELDOM, of_numpy=of_numpy - started)
    assert not (imported(code) & SELDOM) - (of_numpy - started)


def in_new_process(code, *options, **where):
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, **where)


@pytest.mark.parametrize(("module", "name"), [("cs231n", "conv_forward_fast"), ("testing", "assert_consistent")])
def test_a_module_is_imported_when_it_is_first_used(module, name):
    code = (
        "import sys, portconv\n"
        f"assert 'portconv.{module}' not in sys.modules\n"
        f"assert '{module}' in dir(portconv)\n"
        f"print(portconv.{module}.{name}.__name__)\n"
    )
    done = in_new_process(code, "-P")
    assert (done.stdout, done.stderr) == (f"{name}\n", "")


def test_a_first_call_of_the_course_s_functions_loads_nothing():
    code = """
import sys
import numpy
from portconv import cs231n
before = {*sys.modules}
x, w, b = (numpy.ones(shape) for shape in ((100, 3, 31, 31), (25, 3, 3, 3), 25))
out, cache = cs231n.conv_forward_fast(x, w, b, {"stride": 2, "pad": 1})
cs231n.conv_backward_fast(out, cache)
print(*{*sys.modules} - before)
"""
    assert imported(code) == set()


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match=r"^module 'portconv' has no attribute 'cs231'$"):
        portconv.cs231  # noqa: B018
    assert {*portconv.__all__} <= {*dir(portconv)}


def test_the_repository_without_an_installation_says_what_to_do(tmp_path):
    package = Path(portconv.__file__).parent
    (tmp_path / "portconv").mkdir()
    for file in package.glob("*.py"):
        shutil.copy(file, tmp_path / "portconv")
    # Where `backends` is missing, and nothing but the standard library is to be found.
    done = in_new_process("import portconv", "-S", cwd=tmp_path, env={})
    assert done.stderr.splitlines()[-1] == (
        "ImportError: portconv is not installed: in the repository its `backends` lies in a folder beside it; there, "
        "run: pip install -e ."
    )
