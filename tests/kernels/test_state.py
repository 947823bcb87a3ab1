"""Whether there are kernels: each reason why there are none, in words, and nothing imported to find out too early."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from portconv import forks
from portconv.errors import BackendError
from portconv.kernels import compile, state, target

LLVM = pytest.mark.skipif(not state.is_installed(), reason="kernels are compiled with llvmlite: " + state.INSTALL)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not looked yet."""
    for name in (state.VARIABLE, target.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(state, "_state", None)


def none_for(reason: str) -> None:
    """There are no kernels, for this reason, and it is found once."""
    assert state.fault() == reason
    assert state.fault() is state.fault()
    with pytest.raises(target.NoTarget) as caught:
        state.here()
    assert str(caught.value) == reason


@LLVM
def test_kernels_are_here_or_a_reason_is_given():
    fault = state.fault()
    if fault is None:
        assert state.here().name in target.WORDS
        assert state.here() is state.here()
        assert state.version().startswith("llvmlite ")
    else:
        none_for(fault)


def test_without_llvmlite_the_install_command_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    none_for("llvmlite is not installed; to install it: pip install 'portconv[kernels]'")
    assert not state.is_installed()
    assert state.version() is None


def test_a_module_in_the_place_of_llvmlite_is_not_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    assert not state.is_installed()
    assert "not installed" in state.fault()


@pytest.mark.parametrize("error", [ImportError("no such library"), OSError("a file\nis cut short")])
def test_an_import_that_fails_is_said(monkeypatch, error):
    def failing(name: str):
        raise error

    monkeypatch.setattr(state, "is_installed", lambda: True)
    monkeypatch.setattr(compile.forks, "imported", failing)
    words = " ".join(str(error).split())
    none_for(f"llvmlite is installed and cannot be imported: {type(error).__name__}: {words}")


def test_a_call_that_interrupts_an_import_is_not_the_last_word(monkeypatch):
    def busy(name: str):
        raise BackendError("got a call while the first one still loads modules, expected it after that one")

    monkeypatch.setattr(state, "is_installed", lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(forks, "imported", busy)
        assert "still loads modules" in state.fault()
    assert state.fault() is None or "still loads modules" not in state.fault()


@LLVM
def test_a_system_that_forbids_executable_memory(monkeypatch):
    def forbidden():
        raise OSError("cannot allocate executable memory")

    monkeypatch.setattr(compile.binding(), "check_jit_execution", forbidden)
    none_for("this system lets no program make code in its memory: cannot allocate executable memory")


@LLVM
def test_an_llvm_that_refuses(monkeypatch):
    def refusing(target: target.Target):
        raise RuntimeError("no such\nregister")

    monkeypatch.setenv(target.VARIABLE, "")
    words = target.of_host(compile.binding()).words
    monkeypatch.setattr(compile, "machine", refusing)
    none_for(f"LLVM refuses to compile for {words}: no such register")


@LLVM
def test_an_llvm_that_is_too_old(monkeypatch):
    monkeypatch.setattr(compile.binding(), "llvm_version_info", (20, 1, 8))
    none_for("llvmlite is too old: it has LLVM 20.1.8, expected 22 or later; pip install 'portconv[kernels]'")


@LLVM
def test_a_cpu_without_the_instructions(monkeypatch):
    llvm = compile.binding()
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: {"sse2": True, "avx2": True, "fma": False})
    monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: "ancient")
    monkeypatch.setattr(llvm, "get_process_triple", lambda: "x86_64-unknown-linux-gnu")
    none_for("this CPU (ancient) has neither AVX2 with FMA nor NEON")


@LLVM
def test_a_target_that_is_none(monkeypatch):
    monkeypatch.setenv(target.VARIABLE, "sse2")
    none_for("PORTCONV_KERNEL_TARGET: got 'sse2', expected one of avx512, avx2, neon")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("off", "kernels are switched off: PORTCONV_KERNELS=off"),
        (" OFF", "kernels are switched off: PORTCONV_KERNELS=off"),
        ("no", "PORTCONV_KERNELS: got 'no', expected on or off"),
    ],
)
def test_the_switch(monkeypatch, value, reason):
    monkeypatch.setenv(state.VARIABLE, value)
    none_for(reason)


def test_nothing_imports_llvmlite_before_a_kernel_is_needed():
    code = (
        "import sys, numpy, portconv\n"
        "from portconv.kernels import families, state\n"
        "portconv.conv(numpy.ones((1, 1, 4)), numpy.ones((1, 1, 2)), algorithm='gemm')\n"
        "state.is_installed()\n"
        "print([name for name in sys.modules if name.startswith('llvmlite')])\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_whatever_fails_is_a_reason(monkeypatch):
    def failing(*arguments: object):
        raise MemoryError

    monkeypatch.setattr(state, "is_installed", failing)
    none_for("MemoryError")
    assert state.no_compiler() == "MemoryError"
