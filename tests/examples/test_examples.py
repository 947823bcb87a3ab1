"""Run the examples in docstrings, the README and docs/; every public name has one, and is in the reference."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

import pytest

import portconv
from portconv import backends, cs231n, signal, testing

README = Path(__file__).parents[2] / "README.md"
DOCS = README.parent / "docs"
PAGES = ("index", "quickstart", "choosing-a-backend", "signals", "algorithms")
MODULES = (portconv, backends, cs231n, signal)


def functions():
    for module in MODULES:
        for name in module.__all__:
            member = getattr(module, name)
            if inspect.isfunction(member):
                yield pytest.param(member, id=f"{module.__name__}.{name}")


def run(examples, name):
    test = doctest.DocTestParser().get_doctest(examples, {"portconv": portconv}, name, None, 0)
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("library", ["jax", "torch", "dask"])
def test_what_the_page_of_frameworks_shows_can_be_pasted(library):
    if not DOCS.exists():
        pytest.skip("docs/ is not beside the tests")
    pytest.importorskip(library, reason=f"{library} is not installed")
    blocks = re.findall(r"```python\n(.+?)```", (DOCS / "frameworks.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if block.startswith(f"import {library}"))
    made = {}
    exec(block, made)
    if library == "torch":
        _, _, db = portconv.conv_backward(2 * made["out"] / made["out"].numel(), made["cache"])
        assert made["b"].grad.equal(db)
    if library == "dask":
        assert made["smooth"].shape == (64, 64, 64)
        assert abs(made["smooth"].mean() - 0.5 * (190 / 192) ** 3) < 0.01  # windows at the faces hold zeros
        assert made["dx"].shape == (1, 64, 64, 64)
        assert made["dw"].shape == (1, 1, 3, 3, 3)


def test_what_the_page_of_verify_shows_of_portconv():
    if not DOCS.exists():
        pytest.skip("docs/ is not beside the tests")
    for library in ("torch", "jax"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    run((DOCS / "verify.md").read_text(), "verify.md")


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


@pytest.mark.parametrize("page", PAGES)
def test_page(page):
    if not DOCS.exists():
        pytest.skip("the documentation is not beside the tests")
    run((DOCS / f"{page}.md").read_text(encoding="utf-8"), page)


@pytest.mark.parametrize("module", [*MODULES, testing], ids=lambda module: module.__name__)
def test_reference(module):
    if not DOCS.exists():
        pytest.skip("the documentation is not beside the tests")
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.rst"))
    directives = {name.rpartition(".")[2] for name in re.findall(r"^\.\. (?:auto|py:)\w+:: (\S+)", text, re.MULTILINE)}
    elsewhere = {"__version__", "backends"}  # a word, and a page of its own
    assert set(module.__all__) - elsewhere <= directives
