"""Load a script of `examples/` as a module, and run it as a command."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

testing = pytest.importorskip("click.testing", reason="click is not installed: pip install 'portconv[cli]'")
pytest.importorskip("rich", reason="rich is not installed: pip install 'portconv[cli]'")

FOLDER = Path(__file__).parents[2] / "examples"


def loaded(name: str) -> Any:
    """Load the script of that name; if the examples are not beside the tests, skip its tests."""
    path = FOLDER / f"{name}.py"
    if not path.exists():
        pytest.skip("the examples are not beside the tests", allow_module_level=True)
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for a module's names there
    spec.loader.exec_module(module)
    return module


def run(example: Any, *arguments: str) -> Any:
    """Run its command with these arguments, and return the result."""
    return testing.CliRunner().invoke(example.command, arguments, catch_exceptions=False)
