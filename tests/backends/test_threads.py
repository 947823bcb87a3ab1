"""What may come in the middle of a call: forks, Ctrl-C, signal handlers, the end of the interpreter, other threads.

Each script runs in a process of its own. Only a process that hangs, or says what is wrong, fails: no deadline is short.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

import portconv
from portconv.backends import _blas, _numpy, _threads

HANGS = 240
"""Seconds after which a process does not end any more, on the slowest machine."""

PREPARED = """
import os, random, signal, sys, threading, time, warnings
import numpy as np, portconv
from portconv.backends import _numpy
from threadpoolctl import threadpool_info
warnings.simplefilter("ignore")
_numpy.FEW_OPERATIONS = 1000  # small calls use threads, too
rng = np.random.default_rng(0)

def layer(x, w):
    # Sums of integers are exact, whoever adds them up.
    return rng.integers(-3, 4, x).astype("float32"), rng.integers(-3, 4, w).astype("float32")

layers = [layer((8, 8, 12, 12), (16, 8, 3, 3)), layer((1, 1, 9), (1, 1, 3)), layer((2, 3, 9, 9), (4, 3, 3, 3))]
precisions = ["standard", "standard", "reproducible"]

def call(i):
    return portconv.conv(*layers[i], precision=precisions[i])

def settings():
    blas = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    return blas, np.geterr(), np.getbufsize(), portconv.limits.threads()

def held():
    return [key for setting in _numpy._blas.settings() for key in setting.asked]
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that signal")


def check(script: str) -> None:
    """Run a script, which asserts what it must find."""
    command = [sys.executable, "-P", "-c", PREPARED + script]
    found = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=False)
    assert (found.returncode, found.stderr) == (0, ""), found.stderr[-2000:]


FORKED = """
def child():
    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = not all(np.array_equal(call(i), expected[i]) for i in range(3)) or settings() != before
        finally:
            os._exit(status)
    end = time.monotonic() + 60
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            sys.exit("a child hangs")
        time.sleep(0.001)
    assert ended[1] == 0, ended
"""


@needs_fork
def test_children_forked_while_other_threads_call_compute_the_same() -> None:
    check(
        FORKED
        + """
before, expected = settings(), [call(i) for i in range(3)]
going = True

def go_on():
    while going:
        for i in range(3):
            call(i)

threads = [threading.Thread(target=go_on, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(30):
    child()
going = False
for thread in threads:
    thread.join()
assert settings() == before and not held()
"""
    )


@needs_fork
def test_children_forked_during_the_first_call_of_a_thread_compute_the_same() -> None:
    # The first call imports most of the package.
    check(
        FORKED
        + """
before, expected = settings(), [np.stack([np.correlate(layers[1][0][0, 0], layers[1][1][0, 0])])[None]]
call = lambda i: portconv.conv(*layers[1])
expected *= 3
thread = threading.Thread(target=call, args=(1,), daemon=True)
thread.start()
for _ in range(10):
    child()
thread.join()
"""
    )


@needs_fork
def test_a_process_that_multiprocessing_forks_computes_the_same() -> None:
    check(
        """
import multiprocessing
before, expected = settings(), [call(i) for i in range(3)]
going = True

def go_on():
    while going:
        call(0)

thread = threading.Thread(target=go_on, daemon=True)
thread.start()
with multiprocessing.get_context("fork").Pool(2) as pool:
    for i, out in zip([0, 1, 2] * 5, pool.map(call, [0, 1, 2] * 5, chunksize=1)):
        assert np.array_equal(out, expected[i])
going = False
thread.join()
"""
    )


@needs_fork
@needs_timers
def test_a_call_goes_on_in_a_child_that_a_signal_handler_forks() -> None:
    check(
        """
expected, parent, children = call(0), os.getpid(), []

def fork(*_):
    if os.getpid() == parent:
        children.append(os.fork())

signal.signal(signal.SIGALRM, fork)
random.seed(0)
for n in range(300):
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1.2e-3))
    while len(children) <= n and os.getpid() == parent:
        assert np.array_equal(call(0), expected)
    if os.getpid() != parent:
        os._exit(not np.array_equal(call(0), expected))
for each in children:
    assert os.waitpid(each, 0)[1] == 0
"""
    )


@needs_timers
def test_an_interrupt_leaves_nothing_behind() -> None:
    check(
        """
before, expected = settings(), [call(i) for i in range(3)]
seconds = []
for i in range(3):
    start = time.perf_counter()
    for _ in range(10):
        call(i)
    seconds.append((time.perf_counter() - start) / 10)

def forever(i, threads):
    while True:
        if threads:
            with portconv.num_threads(threads):
                call(i)
        else:
            call(i)

def interrupted(n):
    i = n % 3
    # The next signal comes only if something has swallowed the first.
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1.2 * seconds[i]), 60)
        forever(i, (None, 1, 3)[n // 3 % 3])
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)

random.seed(0)
signal.signal(signal.SIGALRM, signal.default_int_handler)
for n in range(600):
    started = time.monotonic()
    interrupted(n)
    assert time.monotonic() - started < 55, "something swallowed an interrupt"
    # A worker may still be in its last block.
    end = time.monotonic() + 60
    while held() and time.monotonic() < end:
        time.sleep(1e-4)
    assert not held()
    assert settings()[:3] == before[:3], (settings(), before)
    portconv.limits._threads.set(None)  # the `with` is the test's: the interrupt may come before its end begins
    assert np.array_equal(call(n % 3), expected[n % 3])
"""
    )


@needs_timers
def test_a_signal_handler_may_call_in_the_middle_of_a_call() -> None:
    check(
        """
before, expected, found = settings(), [call(i) for i in range(3)], []

def handler(*_):
    # Other values in the same shapes: they must not come into the workspaces of the call that was interrupted.
    x, w = layers[0]
    found.append(np.array_equal(portconv.conv(x + 1, w), other) and np.array_equal(call(2), expected[2]))

other = portconv.conv(layers[0][0] + 1, layers[0][1])
signal.signal(signal.SIGALRM, handler)
random.seed(0)
for n in range(100):
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-3))
    while len(found) <= n:
        for i in (0, 2):
            assert np.array_equal(call(i), expected[i])
assert all(found) and settings() == before and not held()
"""
    )


@pytest.mark.parametrize("precision", ["standard", "reproducible"])
def test_a_call_in_the_middle_of_the_first_one_is_refused_in_words(precision: str) -> None:
    code = """
import sys
import numpy, portconv

class Handler:
    # Python asks it for each module that is imported, in the middle of the call that imports it.
    busy = False

    def find_spec(self, name, path, target=None):
        if self.busy:
            return
        self.busy = True
        try:
            found.append(call())
        except portconv.BackendError as error:
            refused.append(str(error))
        self.busy = False

def call():
    return float(portconv.conv(x, w, precision=sys.argv[1]).sum())

x, w = numpy.ones((1, 1, 8, 8), "float32"), numpy.ones((1, 1, 3, 3), "float32")
found, refused = [], []
sys.meta_path.insert(0, Handler())
assert call() == call() == 36 * 9
del sys.meta_path[0]
assert call() == 36 * 9
assert set(found) <= {36 * 9}, found
assert len(refused) > 20
assert set(refused) == {"got a call while the first one still loads modules, expected it after that one"}
"""
    done = subprocess.run([sys.executable, "-P", "-c", code, precision], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_calls_at_the_end_of_the_interpreter_compute() -> None:
    check(
        """
import atexit
expected = call(0)

class Late:
    def __del__(self):
        if not np.array_equal(call(0), expected):
            os._exit(1)

def at_exit():
    if not np.array_equal(call(0), expected):
        os._exit(2)

def go_on():
    while True:
        call(0)

late = sys.late = Late()
atexit.register(at_exit)
threading.Thread(target=go_on, daemon=True).start()
"""
    )


def large() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (
        rng.integers(-3, 4, (8, 16, 40, 40)).astype("float32"),
        rng.integers(-3, 4, (16, 16, 3, 3)).astype("float32"),
    )


def test_where_no_thread_can_start_the_caller_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    expected = portconv.conv(*large())
    monkeypatch.setattr(_numpy, "_workers", _threads.Workers(_numpy._blas.settings))
    monkeypatch.setattr(_threads, "start_new_thread", refuse)
    with portconv.num_threads(4):
        assert np.array_equal(portconv.conv(*large()), expected)


def test_an_error_in_a_worker_is_the_caller_s() -> None:
    here = threading.get_ident()
    worked = threading.Event()

    def compute(block: int, target: np.ndarray, workspace: object) -> np.ndarray:
        if threading.get_ident() != here:
            worked.set()
            raise ZeroDivisionError
        worked.wait(60)  # until a worker has had a block
        return target

    blocks = [((slice(i, i + 1),), i) for i in range(50)]
    with portconv.num_threads(2), pytest.raises(ZeroDivisionError):
        portconv.backends.get("numpy").fill(np.zeros(50), blocks, compute, 50)


def test_calls_of_many_threads_keep_their_own_settings() -> None:
    x, w = large()
    expected, over = portconv.conv(x, w), np.full((4, 2, 9, 9), 3e38, "float32")
    seen: list[str] = []

    def caller(i: int) -> None:
        with portconv.num_threads(1 + i % 4), np.errstate(all="raise" if i % 2 else "ignore"):
            for _ in range(5):
                if not np.array_equal(portconv.conv(x, w), expected):
                    seen.append("other values")
                try:
                    _ = over * np.float32(10)
                    seen.extend(["no error"] if i % 2 else [])
                except FloatingPointError:
                    seen.extend([] if i % 2 else ["an error"])

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(8)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert not seen


def test_tasks_may_call_in_threads() -> None:
    async def all_at_once() -> list[np.ndarray]:
        with portconv.num_threads(2):
            return await asyncio.gather(*(asyncio.to_thread(portconv.conv, *large()) for _ in range(6)))

    expected = portconv.conv(*large())
    assert all(np.array_equal(out, expected) for out in asyncio.run(all_at_once()))


def test_a_setting_is_the_least_that_calls_ask_for_until_the_last_ends() -> None:
    library = types.SimpleNamespace(threads=8)
    setting = _threads.Held(lambda: library.threads, lambda count: setattr(library, "threads", count))
    setting.hold("a", 4)
    setting.hold("b", 2)
    assert (library.threads, setting.users()) == (2, 8)
    setting.release("a")
    assert library.threads == 2
    setting.release("b")
    setting.release("b")
    assert library.threads == 8
    library.threads = 5  # the user's new number
    setting.hold("c", 1)
    setting.forget()
    assert (library.threads, setting.users()) == (5, 5)


@pytest.mark.parametrize(("api", "layer"), [("mkl", "intel"), ("openblas", "openmp")])
def test_a_library_whose_threads_are_each_thread_s_own_is_held_in_each(
    monkeypatch: pytest.MonkeyPatch, api: str, layer: str
) -> None:
    local = threading.local()
    library = types.SimpleNamespace(
        internal_api=api,
        threading_layer=layer,
        get_num_threads=lambda: getattr(local, "count", 8),
        set_num_threads=lambda count: setattr(local, "count", count),
    )
    controller = types.SimpleNamespace(select=lambda user_api: types.SimpleNamespace(lib_controllers=[library]))
    monkeypatch.setattr("threadpoolctl.ThreadpoolController", lambda: controller)
    monkeypatch.setattr(_numpy, "_blas", _blas.Blas())
    monkeypatch.setattr(_numpy, "_workers", _threads.Workers(_numpy._blas.settings))
    seen = set()

    def compute(block: int, target: np.ndarray, workspace: object) -> np.ndarray:
        seen.add(library.get_num_threads())
        return target

    blocks = [((slice(i, i + 1),), i) for i in range(50)]
    portconv.backends.get("numpy").fill(np.zeros(50), blocks, compute, 50)
    assert (seen, library.get_num_threads()) == ({1}, 8)
