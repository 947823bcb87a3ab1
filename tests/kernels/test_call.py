"""Calls of kernels: kernels that cannot be had, kernels that several threads need at once, and scratch memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import tracemalloc
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import portconv
from portconv.errors import BackendError
from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)

from portconv.algorithms import compiled
from portconv.kernels import call, families, target, team
from portconv.kernels.share import SEAT

PANELS = families.Kernel("panels", "full")
STORED = np.arange(2 * 16 * 40 * 40, dtype="float32").reshape(2, 16, 40, 40) % 7 - 3
FILTERS = np.arange(24 * 16 * 25, dtype="float32").reshape(24, 16, 5, 5) % 5 - 2
NAMED = {"algorithm": "compiled"}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has called no kernel yet; what it has is put back."""
    monkeypatch.setattr(call, "_ready", {})
    monkeypatch.setattr(call, "failed", {})
    monkeypatch.setattr(call, "_helpers", None)
    monkeypatch.setenv("PORTCONV_KERNEL_CACHE", "off")
    compiled.forget()
    yield
    if call._helpers is not None:
        call._helpers.stop()
    compiled.forget()


def expected() -> np.ndarray:
    return portconv.conv(STORED, FILTERS, algorithm="gemm")  # whole numbers, exact in any order


def broken(word: str) -> ModuleType:
    """A family whose kernels LLVM does not understand."""
    module = ModuleType("broken")
    text = {"grammar": "define i64 @alone( {", "types": "define i64 @alone() {\n ret float 0.0\n}"}[word]
    module.module = lambda *_: type("Text", (), {"text": text, "public": {"alone": None}})()  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("word", ["grammar", "types"])
def test_what_llvm_refuses_is_an_error_in_words_and_tried_once(monkeypatch, fresh, word):
    monkeypatch.setitem(families.FAMILIES, "panels", broken(word))
    with pytest.raises(call.KernelError) as caught:
        call.ready(PANELS)
    said = str(caught.value)
    assert said.startswith("kernel panels-full: ")
    assert "\n" not in said
    assert call.failed == {PANELS: said}
    monkeypatch.setattr(call, "object_of", None)  # is not tried again
    with pytest.raises(call.KernelError) as again:
        call.ready(PANELS)
    assert str(again.value) == said


@pytest.mark.parametrize("where", ["object_of", "Loaded"])
@pytest.mark.parametrize("error", [RuntimeError("no\nmemory"), OSError("full"), MemoryError(), ValueError("odd")])
def test_what_fails_is_said_and_another_algorithm_computes(monkeypatch, fresh, where, error):
    def fail(*_: object) -> None:
        raise error

    right = expected()
    monkeypatch.setattr(call, where, fail)
    with pytest.raises(BackendError, match="algorithm 'compiled': "):
        portconv.conv(STORED, FILTERS, **NAMED)
    (said,) = call.failed.values()
    assert type(error).__name__ in said
    assert np.array_equal(portconv.conv(STORED, FILTERS), right)
    assert call._ready == {}


def test_an_interrupt_is_no_reason_to_give_up(monkeypatch, fresh):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(call, "object_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            portconv.conv(STORED, FILTERS, **NAMED)
    assert call.failed == {}
    assert np.array_equal(portconv.conv(STORED, FILTERS, **NAMED), expected())


def test_a_call_in_the_middle_of_imports_is_no_reason_to_give_up(monkeypatch, fresh):
    def busy(*_: object) -> None:
        raise BackendError("got a call while the first one still loads modules")

    with monkeypatch.context() as patch:
        patch.setattr(call, "object_of", busy)
        with pytest.raises(BackendError, match="still loads modules"):
            call.ready(PANELS)
    assert call.failed == {}
    call.ready(PANELS)


def test_without_kernels_there_is_an_error_in_words(monkeypatch, fresh):
    monkeypatch.setattr(state, "_state", state._State(None, "llvmlite is not installed"))
    with pytest.raises(call.KernelError, match=r"^kernel panels-full: llvmlite is not installed$"):
        call.ready(PANELS)
    assert call.failed == {}


def test_without_llvmlite_calls_compute_and_kernels_are_refused_in_words():
    code = """
import sys
sys.modules["llvmlite"] = None
import numpy, portconv
from portconv.kernels import call, families
x, w = numpy.ones((1, 1, 8, 8), "float32"), numpy.ones((1, 1, 3, 3), "float32")
assert portconv.conv(x, w).sum() == 36 * 9
for what in (lambda: portconv.conv(x, w, algorithm="compiled"), lambda: call.ready(families.kernels()[0])):
    try:
        what()
    except portconv.PortconvError as error:
        assert "pip install 'portconv[kernels]'" in str(error), error
    else:
        sys.exit("no error")
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_code_for_threads_the_caller_computes(monkeypatch, fresh):
    made = call._loaded

    def refuse(kernel: families.Kernel) -> Any:
        if kernel == call.STANDBY:
            call.failed[kernel] = "refused"
            raise call.KernelError("refused")
        return made(kernel)

    monkeypatch.setattr(call, "_loaded", refuse)
    monkeypatch.setattr(call, "SHARED", 0)
    with portconv.num_threads(4):
        assert np.array_equal(portconv.conv(STORED, FILTERS, **NAMED), expected())
        assert np.array_equal(portconv.conv(STORED, FILTERS, **NAMED), expected())
    assert call._helpers is None


def test_where_no_thread_can_start_the_caller_computes(monkeypatch, fresh):
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(team, "start_new_thread", refuse)
    monkeypatch.setattr(call, "SHARED", 0)
    with portconv.num_threads(4):
        assert np.array_equal(portconv.conv(STORED, FILTERS, **NAMED), expected())
    assert call._helpers is not None
    assert call._helpers.alive == set()


def test_threads_that_need_a_kernel_at_once_compile_it_once(monkeypatch, fresh):
    compiled_by, begin, object_of = [], threading.Barrier(6), call.object_of

    def counted(kernel: families.Kernel, here: target.Target) -> bytes:
        compiled_by.append(kernel)
        time.sleep(0.01)  # the others come meanwhile
        return object_of(kernel, here)

    monkeypatch.setattr(call, "object_of", counted)
    found = []

    def need() -> None:
        begin.wait()
        found.append(call.ready(PANELS))

    threads = [threading.Thread(target=need) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled_by == [PANELS]
    assert len(found) == 6
    assert len(set(map(id, found))) == 1


def test_a_call_that_finds_the_seat_taken_computes_alone(monkeypatch, fresh):
    monkeypatch.setattr(call, "SHARED", 0)
    with portconv.num_threads(3):
        assert np.array_equal(portconv.conv(STORED, FILTERS, **NAMED), expected())
        call._helpers.words[SEAT] = 1
        assert np.array_equal(portconv.conv(STORED, FILTERS, **NAMED), expected())
        assert call._helpers.words[SEAT] == 1


def test_scratch_memory_is_kept_for_the_next_call_and_freed_with_its_thread():
    memory, size = call._Memory(), 1 << 20
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        first = memory.of(size)
        assert memory.of(size // 2) is first
        assert first.address % 64 == 0
        assert size <= tracemalloc.get_traced_memory()[0] - before < 1.1 * size
        del first
        memory.of(3 * size)
        assert 3 * size <= tracemalloc.get_traced_memory()[0] - before < 3.1 * size
        thread = threading.Thread(target=memory.of, args=(8 * size,))
        thread.start()
        thread.join()
        assert tracemalloc.get_traced_memory()[0] - before < 3.1 * size
    finally:
        tracemalloc.stop()


def test_scratch_memory_is_within_the_limit(fresh):
    limit, layer = 1 << 18, (STORED, np.ascontiguousarray(FILTERS[..., 1:4, 1:4]))
    for threads in (1, 3):
        with portconv.num_threads(threads), portconv.workspace_limit(limit):
            call._memory.kept = call.NO_SCRATCH
            portconv.conv(*layer, **NAMED)
            assert 0 < call._memory.kept.size <= threads * limit
            assert portconv.explain(*layer, **NAMED).workspace_bytes <= limit
