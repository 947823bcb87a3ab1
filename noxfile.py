"""Everything that is checked: ``nox`` runs all of it, ``nox --list`` says what there is."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import tomllib
import zipfile
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS = PYPROJECT["dependency-groups"]
PYTEST = next(name for name in GROUPS["tests"] if name.startswith("pytest>"))

# What each backend's environment holds besides the core; PyTorch's other versions bring gigabytes of CUDA.
LIBRARIES = {
    "numpy": (),
    "array_api_strict": ("array-api-strict",),
    "torch": ("torch==2.13.0",),
    "cupy": tuple(PYPROJECT["project"]["optional-dependencies"]["cupy"]),
    "generic": ("jax",),
}
VERIFICATION = ("layers", "onnx_model", "report_page", "verification")
"""Tests of what `portconv verify` is made of."""
MODULES = {"array_api_strict", "torch", "cupy", "jax", "dask"}

nox.options.sessions = [
    "lint",
    "typecheck",
    "tests",
    "consistency",
    "dask",
    "properties",
    "documents",
    "package",
    "docs-examples",
    "site",
]
nox.needs_version = ">=2025.2.9"


def install(session: nox.Session, *more: str, extras: str = "") -> None:
    """Install portconv from this tree, as a wheel, and more beside it."""
    for leftover in ("build", "portconv.egg-info"):
        shutil.rmtree(ROOT / leftover, ignore_errors=True)
    session.install(f".{extras}", *more)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install(*GROUPS["lint"])
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check types, on the installed wheel and from elsewhere: checkers do not follow `backends/` to its package."""
    install(session, *GROUPS["typecheck"], PYTEST, extras="[cli]")
    session.chdir(session.create_tmp())
    session.run("mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "portconv")
    shutil.copy(ROOT / "_portconv_pytest.py", ".")
    session.run("mypy", "--config-file", str(ROOT / "pyproject.toml"), "_portconv_pytest.py")


@nox.session
@nox.parametrize("backend", list(LIBRARIES))
def tests(session: nox.Session, backend: str) -> None:
    """Run the matrix on one backend, in an environment with no other."""
    install(session, *LIBRARIES[backend], *GROUPS["tests"])
    own = {"jax"} if backend == "generic" else {backend}
    find = f"import importlib.util as u; print(*(m for m in {sorted(MODULES)} if u.find_spec(m)))"
    found = set(str(session.run("python", "-P", "-c", find, silent=True)).split())
    if found != own & MODULES:
        session.error(f"this environment should hold {own & MODULES} alone, and holds {found}")
    reason = no_device(session, backend)
    session.run("pytest", "--numprocesses=auto", "--backend", backend, *chosen(backend, reason), *session.posargs)
    if reason:
        session.skip(f"{backend}: the matrix did not run: {reason}")


def chosen(backend: str, reason: str) -> tuple[str, ...]:
    """Return pytest's arguments for fewer tests than all, where all would be too many."""
    if reason:
        return ("tests/test_backends.py",)  # which has how a backend without a device is refused
    # What is about NumPy alone runs beside it alone, and what compares libraries in `consistency`.
    elsewhere = ["benchmark", "testing", "dask", "dask_cluster", *VERIFICATION]
    elsewhere += ["calibration", "example_backend", "gemm", "halos", "limits", "probe"] * (backend != "numpy")
    elsewhere += ["autograd"] * (backend != "torch")
    left = tuple(f"--ignore=tests/test_{name}.py" for name in elsewhere)
    if backend == "numpy":
        return left
    if backend != "generic":
        # Wide numbers take the same steps, on NumPy.
        return ("-k", "not (float64 and (fft or depthwise) or test_reproducible and complex128)", *left)
    # JAX compiles each new shape, and its arrays are immutable: the whole matrix takes half an hour there. `gemm` in
    # float32 is the matrix of it; docs/features.py runs all that there is once.
    own = ("direct", "winograd", "fft", "depthwise-", "test_depthwise", "tiles")
    others = (*own, "float64", "whole_numbers", "adjoint", "differences")
    fewer = f"generic and (on_any_library or not ({' or '.join(others)}))"
    once = ("channels_last", "dtypes", "error_bound", "padding_modes", "reproducible", "transposed", "windows")
    return ("-k", fewer, *left, *(f"--ignore=tests/test_{name}.py" for name in once))


def no_device(session: nox.Session, backend: str) -> str:
    """Return why a backend lacks nothing but a device here; any other fault ends the session."""
    if backend == "generic":
        return ""
    ask = (
        f"import json; from portconv import backends; fault = backends.find({backend!r}).fault; "
        "print(json.dumps([str(fault or ''), bool(fault and fault.no_device)]))"
    )
    reason, device_is_all = json.loads(str(session.run("python", "-P", "-c", ask, silent=True)))
    if reason and not device_is_all:
        session.error(f"{backend} is unavailable, and not for want of a device: {reason}")
    return str(reason)


@nox.session
def consistency(session: nox.Session) -> None:
    """Run all CPU backends together: what compares them, the command, and their agreement."""
    install(session, "array-api-strict", *LIBRARIES["torch"], *GROUPS["tests"], extras="[cli,onnx]")
    backends = [part for name in ("numpy", "array_api_strict", "torch") for part in ("--backend", name)]
    commands = ("command_backends", "command_bench", "command_run", "command_verify")
    together = ("arguments", "backends", "benchmark", *commands, "testing", *VERIFICATION)
    files = (f"tests/test_{name}.py" for name in together)
    session.run("pytest", "--numprocesses=auto", *backends, *(session.posargs or files))
    session.run("portconv", "backends")
    session.run("portconv", "verify", *backends)


@nox.session
def dask(session: nox.Session) -> None:
    """Convolve Dask arrays: in this process, on a cluster of two, and a volume larger than a worker may hold."""
    more = ("distributed", "zarr", "array-api-strict")  # the strict library stands for CuPy in one test
    install(session, *more, *GROUPS["tests"], extras="[cli,dask]")
    session.run("pytest", "--numprocesses=auto", "--backend", "dask", "tests/test_dask.py", "tests/test_golden.py")
    # The cluster's tests start processes of their own.
    session.run("pytest", "--backend", "dask", "tests/test_dask_cluster.py")
    session.run("python", "examples/volume.py")


@nox.session
def properties(session: nox.Session) -> None:
    """Try what holds of every call on 20,000 calls drawn at random."""
    install(session, *GROUPS["tests"])
    session.run("pytest", "--backend", "numpy", "tests/test_properties.py", env={"PORTCONV_HYPOTHESIS": "thorough"})


@nox.session
def documents(session: nox.Session) -> None:
    """Run docs/coming-from.md beside the libraries it speaks of, and what docs/features.md says of each backend."""
    peers = ("torch", "jax", "keras", "onnx", "scipy", "sigpy", "array_api_strict", "dask")
    install(
        session, *LIBRARIES["torch"], *GROUPS["tests"], *(name.replace("_", "-") for name in peers[1:]), extras="[dask]"
    )
    environment = {"KERAS_BACKEND": "torch", "KERAS_HOME": session.create_tmp()}
    session.run("python", "-P", "-c", f"import {', '.join(peers)}", env=environment)
    session.run("pytest", "tests/test_coming_from.py", env=environment)
    session.run("python", "docs/features.py", "--check")


@nox.session
def package(session: nox.Session) -> None:
    """Build the sdist and a wheel from it; import everything from outside the checkout."""
    session.install(*GROUPS["package"])
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--outdir", folder, str(ROOT), silent=True)
        (wheel,) = Path(folder).glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        modules = {f"portconv/backends/{path.name}" for path in (ROOT / "backends").glob("*.py")}
        modules |= {"_portconv_pytest.py"}  # beside the package, as pytest imports it in every session
        modules |= {str(path.relative_to(ROOT)) for path in (ROOT / "portconv").rglob("*.py")}
        shipped = {name for name in names if name.endswith(".py")}
        if shipped != modules:
            session.error(f"the wheel and the tree differ in {sorted(shipped ^ modules)}")
        if "portconv/py.typed" not in names:
            session.error("the wheel lacks portconv/py.typed")
        session.install(str(wheel))
        session.chdir(folder)
        dotted = [re.sub(r"/__init__$", "", name.removesuffix(".py")).replace("/", ".") for name in sorted(shipped)]
        needing = ("portconv.command.", "portconv.chunked.graph", "_portconv_pytest")
        bare = [name for name in dotted if not name.startswith(needing) and not name.endswith("__main__")]
        session.run("python", "-c", "; ".join(f"import {name}" for name in bare))
        session.run("python", "-c", "import backends", success_codes=[1], silent=True)
        said = str(session.run("portconv", "--help", success_codes=[1], silent=True))
        if "pip install 'portconv[cli]'" not in said:
            session.error(f"without its libraries the command says {said!r}, not how to install them")
        session.install(f"{wheel}[cli,dask]", PYTEST)
        session.run("python", "-c", "; ".join(f"import {name}" for name in dotted if not name.endswith("__main__")))
        points = "from importlib.metadata import distribution as d; [p.load() for p in d('portconv').entry_points]"
        session.run("python", "-c", points)
        session.run("portconv", "backends")
        session.run("python", "-m", "portconv", "--version")


@nox.session
def site(session: nox.Session) -> None:
    """Build the documentation, pictures and all; a warning is an error."""
    install(session, *GROUPS["docs"], extras="[cli]")
    out = Path(session.create_tmp()) / "site"
    session.run("sphinx-build", "-W", "--keep-going", "-E", "-b", "html", "-d", f"{out}-doctrees", "docs", str(out))


@nox.session(name="docs-examples")
def docs_examples(session: nox.Session) -> None:
    """Run the examples of the docstrings and the README, and the README's first command in a fresh copy."""
    install(session, *GROUPS["tests"], extras="[cli]")
    session.run("pytest", "tests/test_examples.py")
    first, second = re.findall(r"```sh\n(.+?)\n```", (ROOT / "README.md").read_text())[:2]
    if second not in (ROOT / ".ci" / "run").read_text():
        session.error("the README's test command is not the one that .ci/run calls")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "portconv"
        left = shutil.ignore_patterns(".git", ".nox", ".venv", "build", "*.egg-info", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=left)
        session.chdir(copy)
        session.run("bash", "-euo", "pipefail", "-c", first, external=True)
        if not (copy / "portconv-maps.png").stat().st_size:
            session.error("the README's first command wrote no picture")
