"""Whether there are kernels in this process, for which CPU, and if not, why."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any, NamedTuple

from .. import forks
from ..errors import BackendError, in_a_line
from . import compile
from .emit import Argument, Function, Module
from .target import NoTarget, Target, of_host

VARIABLE = "PORTCONV_KERNELS"
"""The environment variable that switches kernels off."""
INSTALL = "pip install 'portconv[kernels]'"
OLDEST = (22,)
"""The oldest LLVM that the text of kernels is written for; llvmlite has it since 0.48."""


class _State(NamedTuple):
    target: Target | None
    fault: str | None


class _Fault(Exception):
    """Why there are no kernels."""


_state: _State | None = None


def fault() -> str | None:
    """Return why there are no kernels here, in a line; None if there are. It never raises, and looks once a process."""
    return _found().fault


def here() -> Target:
    """Return the target of this process; a `NoTarget` says why there is none."""
    found = _found()
    if found.target is None:
        raise NoTarget(found.fault)
    return found.target


def no_compiler() -> str | None:
    """Return why nothing can be compiled, for any CPU; None if it can."""
    try:
        _compiler()
    except Exception as error:
        return in_a_line(error)
    return None


def is_installed() -> bool:
    """Return whether llvmlite is there to be imported."""
    try:
        return importlib.util.find_spec("llvmlite") is not None
    except (ImportError, ValueError):  # a stand-in without a description, or None, was imported in its place
        return False


def version() -> str | None:
    """Return the versions of llvmlite and of its LLVM; None if they cannot be imported."""
    if no_compiler() is not None:
        return None
    llvm = ".".join(map(str, compile.binding().llvm_version_info))
    return f"llvmlite {sys.modules['llvmlite'].__version__} with LLVM {llvm}"


def _found() -> _State:
    global _state
    if _state is not None:
        return _state
    with forks.lock:  # a child would wait for ever for LLVM's lock, which a thread of its parent had
        try:
            _state = _State(_checked(), None)
        except BackendError as error:  # a call in the middle of another one's imports; the next one may find kernels
            return _State(None, in_a_line(error))
        except Exception as error:
            _state = _State(None, in_a_line(error))
    return _state


def _checked() -> Target:
    """Return the target of this process, or raise why there is none."""
    llvm = _compiler()
    try:
        llvm.check_jit_execution()
    except OSError as error:
        raise _Fault(f"this system lets no program make code in its memory: {in_a_line(error)}") from None
    target = of_host(llvm)
    try:
        compile.machine(target)
        llvm.parse_assembly(_trial(target).text).verify()
    except Exception as error:
        raise _Fault(f"LLVM refuses to compile for {target.words}: {in_a_line(error)}") from None
    return target


def _compiler() -> Any:
    """Import LLVM, or raise why it cannot be used."""
    asked = os.environ.get(VARIABLE, "").strip().lower()
    if asked == "off":
        raise _Fault(f"kernels are switched off: {VARIABLE}=off")
    if asked not in ("", "on"):
        raise _Fault(f"{VARIABLE}: got {asked[:40]!r}, expected on or off")
    if not is_installed():
        raise _Fault(f"llvmlite is not installed; to install it: {INSTALL}")
    try:
        llvm = compile.binding()
        forks.imported("llvmlite")
    except BackendError:
        raise
    except Exception as error:
        raise _Fault(
            f"llvmlite is installed and cannot be imported: {type(error).__name__}: {in_a_line(error)}"
        ) from None
    if llvm.llvm_version_info < OLDEST:
        version = ".".join(map(str, llvm.llvm_version_info))
        raise _Fault(f"llvmlite is too old: it has LLVM {version}, expected {OLDEST[0]} or later; {INSTALL}")
    return llvm


def _trial(target: Target) -> Module:
    """Return a kernel with the instructions that LLVM has changed from version to version."""
    code = Function("trial", [Argument("x", "*float"), Argument("count")], target, public=True)
    x, count = code.given
    mask = code.lanes_between(None, count)
    code.store(code.fma(code.load(x, mask), code.gather(x, count, mask), code.load(x)), x, mask)
    return Module([code])
