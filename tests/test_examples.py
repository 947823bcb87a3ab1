"""The examples in docstrings and in the README are run, and every public name has one."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest

import portconv
from portconv import backends, cs231n

README = Path(__file__).parents[1] / "README.md"
MODULES = (portconv, backends, cs231n)


def functions():
    for module in MODULES:
        for name in module.__all__:
            member = getattr(module, name)
            if inspect.isfunction(member):
                yield pytest.param(member, id=f"{module.__name__}.{name}")


def run(examples, name):
    test = doctest.DocTestParser().get_doctest(examples, {"portconv": portconv}, name, None, 0)
    results = doctest.DocTestRunner().run(test)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("function", list(functions()))
def test_docstring(function):
    text = inspect.getdoc(function)
    for section in ("Returns", "Examples"):
        assert f"\n{section}\n----" in text
    run(text, function.__name__)


def test_readme():
    if not README.exists():
        pytest.skip("the README is not beside the tests")
    run(README.read_text(), "README")
