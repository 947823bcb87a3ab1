"""The rule of the house: each folder stands on those before it and on no other, and no module imports in a circle."""

from __future__ import annotations

import ast
import importlib.util
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(importlib.util.find_spec("portconv").origin).resolve().parent
"""The folder of the installed package; a checkout may have `backends` beside it."""

FLOORS = (
    ("_version", "errors"),
    ("forks",),
    ("limits",),
    ("backends",),
    ("calibration", "spec"),
    ("kernels",),
    ("passes", "algorithms"),
    ("reproducible",),
    ("engine",),
    ("convolution", "transposed", "windows", "error_bound", "frameworks"),
    ("cs231n", "operators", "signal", "verification", "benchmark"),
    ("testing",),
    ("command",),
)
"""The folders and files of the package, from the lowest to the highest; those of one floor do not know each other."""

LATE = {"command"}
"""The only folders that import portconv's own modules inside functions: of what takes long to import."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name under `portconv`."""
    backends = Path(importlib.util.find_spec("portconv.backends").origin).resolve().parent
    files = [(path, path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if "backends" not in path.parts[-2:-1]]
    files += [(path, Path("backends") / path.name) for path in backends.glob("*.py")]
    found = {".".join(relative.with_suffix("").parts): path for path, relative in files}
    return {name.removesuffix(".__init__"): path for name, path in found.items() if "backends" in name or path.exists()}


MODULES = modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imported(name: str, node: ast.stmt) -> set[str]:
    """The modules of the package that one import statement of a module brings in."""
    if isinstance(node, ast.Import):
        return {alias.name.removeprefix("portconv.") for alias in node.names if alias.name.startswith("portconv.")}
    if node.level:
        parts = name.split(".")
        inside = parts if MODULES[name].name == "__init__.py" else parts[:-1]
        inside = [] if name == "__init__" else inside[: len(inside) - node.level + 1]
        base = ".".join([*inside, *filter(None, [node.module])])
    elif node.module == "portconv" or (node.module or "").startswith("portconv."):
        base = node.module.removeprefix("portconv").lstrip(".")
    else:
        return set()
    below = {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
    return {module if module in MODULES else base for module in below} - {""}


def imports(tree: ast.AST) -> list[ast.stmt]:
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


NAMES = sorted(set(MODULES) - {"__init__", "__main__"})
EDGES = {name: set().union(*(imported(name, node) for node in imports(TREES[name]))) for name in NAMES}


def floor_of(name: str) -> int:
    """The number of the floor that a module is on."""
    top = name.partition(".")[0]
    (number,) = (i for i, floor in enumerate(FLOORS) if top in floor)
    return number


def test_every_module_is_seen():
    assert {"spec.operation", "engine.products", "backends._numpy", "frameworks.dask_graph.tasks"} <= set(NAMES)
    assert {"spec.operation", "passes.layout", "engine.plan"} <= EDGES["engine.products"]


@pytest.mark.parametrize("name", NAMES)
def test_no_import_runs_back_up(name):
    for other in EDGES[name]:
        same_folder = other.partition(".")[0] == name.partition(".")[0]
        assert same_folder or floor_of(other) < floor_of(name), f"{name} imports {other}"


def test_no_modules_import_one_another_in_a_circle():
    try:
        TopologicalSorter(EDGES).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("name", NAMES)
def test_no_import_hides_inside_a_function(name):
    if name.partition(".")[0] in LATE:
        return
    top = [node for node in TREES[name].body if isinstance(node, (ast.Import, ast.ImportFrom))]
    late = [node for node in imports(TREES[name]) if node not in top]
    assert [modules for node in late if (modules := imported(name, node))] == []


ALGORITHMIC = ("spec", "passes", "kernels", "algorithms", "reproducible", "engine")


@pytest.mark.parametrize("name", [name for name in NAMES if name.partition(".")[0] in ALGORITHMIC])
def test_no_algorithm_imports_an_array_library(name):
    libraries = {"numpy", "cupy", "torch", "jax", "dask", "array_api_strict"}
    for node in imports(TREES[name]):
        roots = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        if isinstance(node, ast.Import) or not node.level:
            assert not libraries & {root.partition(".")[0] for root in roots}


@pytest.mark.parametrize("name", [name for name in NAMES if name.partition(".")[0] == "kernels"])
def test_kernels_know_nothing_of_convolutions_outside(name):
    others = {other for other in EDGES[name] if other.partition(".")[0] != "kernels"}
    assert others <= {"errors", "forks", "_version"}
    # LLVM takes long to import, and is imported when a call needs a kernel.
    assert "llvmlite" not in {each.name.partition(".")[0] for node in imports(TREES[name]) for each in node.names}


CORE = [name for name in NAMES if name.partition(".")[0] in (*ALGORITHMIC, "frameworks", "backends")]


@pytest.mark.parametrize("name", CORE)
def test_a_file_is_short_enough_to_be_read(name):
    assert len(MODULES[name].read_text().splitlines()) <= 400


@pytest.mark.parametrize("name", CORE)
def test_a_function_fits_on_a_page_and_takes_few_arguments(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, node.name
            arguments = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert len([each for each in arguments if each not in ("self", "cls")]) <= 6, node.name
