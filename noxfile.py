"""Everything that is checked: ``nox`` runs all of it, ``nox --list`` says what there is."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
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
    # cuDNN itself has 500 MB, and its front end 6.
    "cupy": tuple(PYPROJECT["project"]["optional-dependencies"][name][0] for name in ("cupy", "cudnn")),
    "jax": tuple(PYPROJECT["project"]["optional-dependencies"]["jax"]),
}
TOGETHER = ("benchmark", "command", "examples", "verification", "test_testing.py")
"""Tests of what compares libraries, and of the command and the examples."""
IN_FRAMEWORKS = {"torch": ("autograd", "torch_compile", "torch_tensors"), "jax": ("jax",), "dask": ("dask",)}
"""Tests of what one library alone has."""
MODULES = {"array_api_strict", "torch", "cupy", "jax", "dask"}
KERNELS = ("numpy",)
"""The backends whose environments have the library that kernels are compiled with; the others do without."""

nox.options.sessions = [
    "lint",
    "typecheck",
    "tests",
    "consistency",
    "dask",
    "properties",
    "package",
    "docs-examples",
    "site",
]
nox.needs_version = ">=2025.2.9"


def install(session: nox.Session, *more: str, extras: str = "") -> None:
    """Install portconv from this tree, as a wheel, and more beside it."""
    for leftover in ("build", "portconv.egg-info"):
        shutil.rmtree(ROOT / leftover, ignore_errors=True)
    # Compiling what nobody imports would take longer than all else here.
    session.install("--no-compile", f".{extras}", *more)


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
    # What users' calls are: each error that is ignored in there is one that must be found.
    shutil.copy(ROOT / "tests" / "typed" / "calls.py", ".")
    session.run("mypy", "--config-file", str(ROOT / "pyproject.toml"), "calls.py")


@nox.session
@nox.parametrize("backend", list(LIBRARIES))
def tests(session: nox.Session, backend: str) -> None:
    """Run the matrix on one backend, in an environment with no other."""
    install(session, *LIBRARIES[backend], *GROUPS["tests"], extras="[kernels]" if backend in KERNELS else "")
    find = f"import importlib.util as u; print(*(m for m in {sorted({*MODULES, 'llvmlite'})} if u.find_spec(m)))"
    found = set(str(session.run("python", "-P", "-c", find, silent=True)).split())
    expected = {backend} & MODULES | ({"llvmlite"} if backend in KERNELS else set())
    if found != expected:
        session.error(f"this environment should hold {expected or 'no other library'} alone, and holds {found}")
    reason = no_device(session, backend)
    for files in chosen(backend, reason):
        session.run("pytest", "--numprocesses=auto", "--backend", backend, *files, *session.posargs)
    if reason:
        session.skip(f"{backend}: the matrix did not run: {reason}")


def chosen(backend: str, reason: str) -> Iterator[tuple[str, ...]]:
    """Say what pytest runs: all of it on NumPy, the matrix alone on others, and of it less where it takes too long."""
    if reason:
        # How a backend without a device is refused, and what CuPy and the front end of cuDNN have of what is asked.
        yield tuple(f"tests/backends/test_{name}.py" for name in ("backends", "cupy_calls", "cudnn"))
        return
    frameworks = (f"frameworks/test_{name}.py" for names in IN_FRAMEWORKS.values() for name in names)
    left = tuple(f"--ignore=tests/{name}" for name in (*TOGETHER, *frameworks))
    if backend == "numpy":
        yield left
        return
    if backend in IN_FRAMEWORKS:
        yield tuple(f"tests/frameworks/test_{name}.py" for name in IN_FRAMEWORKS[backend])
    # Wide numbers take the same steps, on NumPy.
    most = "not (float64 and (fft or depthwise) or test_reproducible and complex128)"
    # JAX compiles each new shape: all of it takes a quarter of an hour there. docs/features.py runs all that there is.
    few = "on_any_library or gemm and float32 and loops or test_golden or test_dtypes or test_windows"
    few += " or test_tap_loop or test_plan and (parts or transposed)"
    yield "--matrix-only", "-k", few if backend == "jax" else most, *left


def no_device(session: nox.Session, backend: str) -> str:
    """Return why a backend lacks nothing but a device here; any other fault ends the session."""
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
    """Run all CPU backends together: what compares them, the command, the examples, and what documents say of them."""
    peers = ("keras", "onnx", "onnxscript", "pylops", "scipy", "sigpy")
    own = [library for name in ("array_api_strict", "torch", "jax") for library in LIBRARIES[name]]
    install(session, *own, *peers, *GROUPS["examples"], *GROUPS["tests"], extras="[cli,dask,kernels,onnx]")
    environment = {"KERAS_BACKEND": "torch", "KERAS_HOME": session.create_tmp()}
    imported = ("torch", "jax", "keras", "onnx", "scipy", "sigpy", "array_api_strict", "dask")
    session.run("python", "-P", "-c", f"import {', '.join(imported)}", env=environment)
    backends = [part for name in ("numpy", "array_api_strict", "torch") for part in ("--backend", name)]
    files = (f"tests/{name}" for name in ("spec", "backends", "test_differential.py", "test_operators.py", *TOGETHER))
    files = (*files, "tests/frameworks/test_torch_compile.py")
    session.run("pytest", "--numprocesses=auto", *backends, *(session.posargs or files), env=environment)
    of_scipy(session)
    session.run("portconv", "backends")
    session.run("portconv", "kernels")
    session.run("portconv", "verify", *backends)
    session.run("portconv", "verify", "--backend", "jax", "--backend", "dask", "--dtype", "float32")
    session.run("python", "docs/features.py", "--check")
    session.run("python", "examples/digits.py", "--precision", "reproducible")
    session.run("python", "examples/onnx_model.py")


def of_scipy(session: nox.Session) -> None:
    """Run SciPy's own tests of convolutions on portconv: of the 10,000 combinations of sizes one in forty."""
    environment = {
        "PYTHONPATH": str(ROOT / "tests" / "beside_scipy"),
        "PORTCONV_SCIPY_EVERY": "40",
        "SCIPY_ARRAY_API": json.dumps(["numpy", "torch", "array_api_strict"]),
    }
    options = ("--numprocesses=auto", "-p", "signal_for_scipy", "-p", "no:cacheprovider", "-c", os.devnull)
    session.run("pytest", *options, "--pyargs", "scipy.signal.tests.test_signaltools", env=environment)


@nox.session
def dask(session: nox.Session) -> None:
    """Convolve Dask arrays: in this process, on a cluster of two, and a volume larger than a worker may hold."""
    more = ("distributed", "zarr", "array-api-strict")  # the strict library stands for CuPy in one test
    install(session, *more, *GROUPS["tests"], extras="[cli,dask]")
    files = ("tests/frameworks/test_dask.py", "tests/reproducible/test_golden.py")
    session.run("pytest", "--numprocesses=auto", "--backend", "dask", *files)
    # The cluster's tests start processes of their own.
    session.run("pytest", "--backend", "dask", "tests/frameworks/test_dask_cluster.py")
    session.run("python", "examples/volume.py")


@nox.session
def properties(session: nox.Session) -> None:
    """Try what holds of every call on 20,000 calls drawn at random."""
    install(session, *GROUPS["tests"], extras="[kernels]")
    environment = {"PORTCONV_HYPOTHESIS": "thorough"}
    session.run("pytest", "--numprocesses=auto", "--backend", "numpy", "tests/test_properties.py", env=environment)


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
        metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("/METADATA"))).decode()
        if re.search(r"\]\((?!https?:|#)", metadata) or "# portconv" not in metadata:
            session.error("the README in the metadata has a link that an index cannot follow, or is missing")
        session.install(str(wheel))
        session.chdir(folder)
        dotted = [re.sub(r"/__init__$", "", name.removesuffix(".py")).replace("/", ".") for name in sorted(shipped)]
        needing = ("portconv.command.", "portconv.frameworks.", "_portconv_pytest")
        bare = [name for name in dotted if not name.startswith(needing) and not name.endswith("__main__")]
        session.run("python", "-c", "; ".join(f"import {name}" for name in bare))
        session.run("python", "-c", "import backends", success_codes=[1], silent=True)
        said = str(session.run("portconv", "--help", success_codes=[1], silent=True))
        if "pip install 'portconv[cli]'" not in said:
            session.error(f"without its libraries the command says {said!r}, not how to install them")
        session.install(f"{wheel}[cli,dask]", PYTEST)
        absent = ("portconv.frameworks.torch_", "portconv.frameworks.jax_")
        there = [name for name in dotted if not name.startswith(absent) and not name.endswith("__main__")]
        session.run("python", "-c", "; ".join(f"import {name}" for name in there))
        points = "from importlib.metadata import distribution as d; [p.load() for p in d('portconv').entry_points]"
        session.run("python", "-c", points)
        session.run("portconv", "backends")
        said = str(session.run("portconv", "kernels", success_codes=[1], silent=True))
        if "pip install 'portconv[kernels]'" not in said:
            session.error(f"without llvmlite the command says {said!r}, not how to install it")
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
    install(session, *GROUPS["tests"], extras="[cli,kernels]")
    session.run("pytest", "tests/examples/test_examples.py")
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
