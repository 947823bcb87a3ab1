"""Run every section of docs/coming-from.md beside the other libraries, and check its tables against its examples."""

from __future__ import annotations

import doctest
import os
import re
from pathlib import Path

import pytest

import portconv

DOCUMENT = Path(__file__).parents[2] / "docs" / "coming-from.md"

SECTIONS = {
    "NumPy": "numpy",
    "PyTorch": "torch",
    "JAX": "jax",
    "Keras": "keras",
    "ONNX": "onnx",
    "SciPy": "scipy",
    "sigpy": "sigpy",
    "CuPy": "numpy",
}
"""The sections, and the module that each needs; the section on CuPy says that it runs on NumPy."""

WARNINGS = {
    "PyTorch": "ignore:Using padding='same' with even kernel lengths:UserWarning",
    "Keras": "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
}
"""Warnings of the libraries, which pytest would turn into errors."""

WORDS = {"CuPy"}
"""The sections whose left-hand side is not run."""


def sections():
    """Return the text of each section by its title, with the number of lines before it."""
    if not DOCUMENT.exists():
        pytest.skip("the documentation is not beside the tests")
    text = DOCUMENT.read_text(encoding="utf-8")
    starts = [head.start() for head in re.finditer("^## ", text, flags=re.MULTILINE)]
    parts = [
        (text[start:end], text.count("\n", 0, start)) for start, end in zip(starts, [*starts[1:], None], strict=True)
    ]
    return {part.partition("\n")[0].removeprefix("## "): (part, line) for part, line in parts}


def examples(title):
    text, line = sections()[title]
    return doctest.DocTestParser().get_doctest(text, {}, f"the section on {title}", str(DOCUMENT), line)


def each_section(test):
    marks = {title: pytest.mark.filterwarnings(warning) for title, warning in WARNINGS.items()}
    params = [pytest.param(title, id=title.lower(), marks=marks.get(title, ())) for title in SECTIONS]
    return pytest.mark.parametrize("title", params)(test)


def test_sections():
    assert list(sections()) == list(SECTIONS)


@each_section
def test_examples(title, monkeypatch, tmp_path):
    test = examples(title)
    if title == "Keras":
        # Keras reads settings from the user's home folder and writes them there, so it gets an empty one.
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setenv("KERAS_BACKEND", backend := os.environ.get("KERAS_BACKEND", "torch"))
        pytest.importorskip(backend, reason=f"{backend}, on which Keras is to run, is not installed")
    pytest.importorskip(SECTIONS[title], reason=f"{title} is not installed")
    results = doctest.DocTestRunner().run(test)
    assert results.attempted > 0
    assert results.failed == 0
    assert any("True" in example.want for example in test.examples)


@each_section
def test_tables(title):
    text, _ = sections()[title]
    code = " ".join(" ".join(example.source.split()) for example in examples(title).examples)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert rows
    for row in rows:
        assert len(row) == 2
        for cell in row[title in WORDS :]:
            for expression in re.findall("`([^`]+)`", cell):
                assert expression.removesuffix("...)") in code, "every expression in a table stands in an example"
    names = set(re.findall(r"\bportconv\.(\w+)", text))
    assert names
    assert names <= {*portconv.__all__, *portconv.LATE}
