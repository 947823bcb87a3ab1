"""Threads that help calls of kernels: many callers, forks, Ctrl-C, signal handlers, the end of the interpreter.

Each script runs in a process of its own. Only a process that hangs, or says what is wrong, fails: no deadline is short.
`PORTCONV_STRESS` multiplies how often each is tried.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from portconv.kernels import state

if state.fault() is not None:
    pytest.skip(f"there are no kernels here: {state.fault()}", allow_module_level=True)

TIMES = int(os.environ.get("PORTCONV_STRESS", "1"))
HANGS = 240 * TIMES
"""Seconds after which a process does not end any more, on the slowest machine."""

PREPARED = """
import atexit, gc, os, random, signal, sys, threading, time, warnings
import numpy as np, portconv
from portconv.algorithms import compiled
from portconv.kernels import call as kernel_calls, share, team

times = int(os.environ.get("PORTCONV_STRESS", "1"))
kernel_calls.SHORT = kernel_calls.SHARED = 0  # small calls use threads, too
rng = np.random.default_rng(0)

def layer(x, w, **options):
    # Sums of integers are exact, whoever adds them up.
    arrays = (rng.integers(-3, 4, shape).astype("float32") for shape in (x, w))
    return *arrays, {"algorithm": "compiled", **options}

layers = [
    layer((1, 32, 28, 28), (64, 32, 3, 3), padding=1),
    layer((4, 32, 14, 14), (64, 32, 1, 1)),
    layer((2, 16, 20, 20), (32, 16, 5, 5), stride=2),
    layer((1, 24, 300), (48, 24, 7)),
]
larger = layer((2, 64, 40, 40), (64, 64, 3, 3), padding=1)

def call(i, threads=3):
    x, w, options = layers[i]
    with portconv.num_threads(threads):
        return portconv.conv(x, w, **options)

def expect():
    return [call(i, threads=1) for i in range(len(layers))]

def waited(what, said):
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, said
        time.sleep(1e-4)

def word(place):
    return kernel_calls._helpers.words[place]

def check_team():
    # Nobody is left inside of a call, those that stand by fall asleep, and one that sleeps can be woken.
    helpers = kernel_calls._helpers
    assert [word(place) for place in (share.SEAT, share.OPEN)] == [0, 0]
    waited(lambda: word(share.AWAKE) == word(share.INSIDE) == 0, "a thread stands by for ever")
    waited(helpers.wanted.empty, "no thread takes what wakes it")
    assert helpers.alive
    waited(lambda: helpers.wake(1) or word(share.AWAKE), "no thread wakes up")
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that signal")


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which all processes compile a kernel once."""
    return {**os.environ, "PORTCONV_KERNEL_CACHE": str(tmp_path_factory.mktemp("cache") / "kernels")}


def ended(environment: dict[str, str], *command: str) -> None:
    """Run a script, which asserts what it must find."""
    command = (sys.executable, "-P", "-X", "faulthandler", *command)
    found = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=False, env=environment)
    assert (found.returncode, found.stderr) == (0, ""), found.stderr[-4000:]


def check(script: str, environment: dict[str, str]) -> None:
    ended(environment, "-c", PREPARED + script)


def test_many_threads_call_at_once(cached: dict[str, str]) -> None:
    check(
        """
expected, wrong = expect(), []

def caller(number):
    chosen = random.Random(number)
    for _ in range(400 * times):
        i, threads = chosen.randrange(len(layers)), chosen.randrange(1, 9)
        if not np.array_equal(call(i, threads), expected[i]):
            wrong.append((i, threads))

callers = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
for each in callers:
    each.start()
for each in callers:
    each.join()
assert not wrong, wrong
check_team()
""",
        cached,
    )


def test_the_threads_change_no_bit(cached: dict[str, str]) -> None:
    check(
        """
layers = [
    (rng.standard_normal(x.shape, "float32"), rng.standard_normal(w.shape, "float32"), options)
    for x, w, options in layers
]
expected = expect()
for _ in range(30 * times):
    for threads in range(1, 9):
        for i in range(len(layers)):
            assert np.array_equal(call(i, threads), expected[i])
check_team()
assert len(kernel_calls._helpers.alive) <= 7
""",
        cached,
    )


CHILDREN = """
warnings.simplefilter("ignore", DeprecationWarning)  # of forks of a process with threads

def ended(pid):
    end = time.monotonic() + 60
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGABRT)
            os.waitpid(pid, 0)
            sys.exit("a child hangs")
        time.sleep(1e-4)
    assert found[1] == 0, found

def compute_and_leave(i=0):
    status = 1
    try:
        status = not all(np.array_equal(call(i, threads), expected[i]) for threads in (2, 1, 4))
        check_team()
    finally:
        os._exit(status)
"""


@needs_fork
def test_children_forked_while_threads_compute_and_stand_by(cached: dict[str, str]) -> None:
    check(
        CHILDREN
        + """
expected, going, wrong = expect(), True, []

def go_on(number):
    chosen = random.Random(number)
    while going:
        i = chosen.randrange(len(layers))
        if not np.array_equal(call(i, chosen.randrange(1, 5)), expected[i]):
            wrong.append(i)

def fork():
    for n in range(8 * times):
        call(n % 4)  # threads stand by when the process forks, or sleep
        if n % 2:
            time.sleep(1e-3)
        pid = os.fork()
        if not pid:
            compute_and_leave(n % 4)
        ended(pid)

fork()
callers = [threading.Thread(target=go_on, args=(number,)) for number in range(3)]
forking = [threading.Thread(target=fork) for number in range(2)]
for each in callers + forking:
    each.start()
for each in forking:
    each.join()
going = False
for each in callers:
    each.join()
assert not wrong
check_team()
""",
        cached,
    )


@needs_fork
def test_children_forked_while_another_thread_compiles(cached: dict[str, str]) -> None:
    check(
        CHILDREN
        + """
expected = expect()

def afresh():
    compiled.forget()
    kernel_calls._ready.clear()

def compile():
    for _ in range(4 * times):
        afresh()
        call(0)
        call(2)

thread = threading.Thread(target=compile)
thread.start()
while thread.is_alive():
    pid = os.fork()
    if not pid:
        afresh()
        compute_and_leave(2)
    ended(pid)
""",
        {**cached, "PORTCONV_KERNEL_CACHE": "off"},
    )


@needs_fork
@needs_timers
def test_a_call_goes_on_in_a_child_that_a_signal_handler_forks(cached: dict[str, str]) -> None:
    check(
        CHILDREN
        + """
expected, parent, children = expect(), os.getpid(), []

def fork(*_):
    if os.getpid() == parent:
        children.append(os.fork())

signal.signal(signal.SIGALRM, fork)
random.seed(0)
for n in range(40 * times):
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 5e-4))
    while len(children) <= n and os.getpid() == parent:
        assert np.array_equal(call(n % 4), expected[n % 4])
    if os.getpid() != parent:
        compute_and_leave(n % 4)
    ended(children[n])
check_team()
""",
        cached,
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_multiprocessing_compute_the_same(cached: dict[str, str], tmp_path: Path, method: str) -> None:
    script = """
import multiprocessing
warnings.simplefilter("ignore", DeprecationWarning)

if __name__ == "__main__":
    if sys.argv[1] not in multiprocessing.get_all_start_methods():
        sys.exit()
    expected, going = expect(), True
    def go_on():
        while going:
            call(0)
    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        for i, out in zip([0, 1, 2, 3] * 5, pool.map(call, [0, 1, 2, 3] * 5, chunksize=1)):
            assert np.array_equal(out, expected[i])
    going = False
    thread.join()
    check_team()
"""
    path = tmp_path / "script.py"  # spawned processes import it
    path.write_text(PREPARED + script)
    ended(cached, str(path), method)


STEPS = """
FILES = {module.__file__ for module in (team, kernel_calls)}

class At:
    '''Do something at one step of the bytecode of the calls and the threads, as an interrupt or a handler may.'''

    def __init__(self, step, act, by="opcode"):
        self.left, self.act, self.by = step, act, by

    def __call__(self, frame, event, value):
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes = self.by == "opcode"
        if event == self.by:
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                self.act()
        return self

    def run(self, function):
        sys.settrace(self)
        try:
            return function()
        finally:
            sys.settrace(None)

def at_every_step(act, by="opcode", least=100):
    step, trace = 0, None
    while trace is None or trace.left <= 0:
        step += 1
        trace = At(step, act, by)
        yield trace
    assert step > least, step

def interrupt():
    raise KeyboardInterrupt
"""


def test_an_interrupt_at_any_step_of_a_call_loses_no_thread(cached: dict[str, str]) -> None:
    check(
        STEPS
        + """
expected = expect()
call(0)
for trace in at_every_step(interrupt):
    waited(lambda: word(share.AWAKE) == 0, "a thread stands by for ever")
    try:
        trace.run(lambda: call(0))
        assert trace.left > 0
    except KeyboardInterrupt:
        pass
    assert np.array_equal(call(0), expected[0])
    assert len(kernel_calls._helpers.alive) == 2
    waited(lambda: kernel_calls._helpers.wake(2) or word(share.AWAKE) == 2, "a thread is lost")
check_team()
""",
        cached,
    )


def test_an_interrupt_at_any_line_of_a_first_call_leaves_the_next_one_right(cached: dict[str, str]) -> None:
    check(
        STEPS
        + """
expected = expect()
for trace in at_every_step(interrupt, by="line", least=40):
    compiled.forget()
    kernel_calls._ready.clear()
    if kernel_calls._helpers is not None:
        kernel_calls._helpers.stop()
        kernel_calls._helpers = None
    try:
        trace.run(lambda: call(0))
    except KeyboardInterrupt:
        pass
    assert np.array_equal(call(0), expected[0])
    assert not kernel_calls.failed
    check_team()
""",
        cached,
    )


def test_a_larger_call_at_any_step_of_a_call_disturbs_nothing(cached: dict[str, str]) -> None:
    check(
        STEPS
        + """
x, w, options = larger
first, found = expect()[0], []
with portconv.num_threads(1):
    other = portconv.conv(x, w, **options)

def handler():
    size = kernel_calls._memory.kept.size
    with portconv.num_threads(3):
        found.append(np.array_equal(portconv.conv(x, w, **options), other))
    # Memory that was freed, and that the call still writes into, would be given to these.
    others.extend(np.full(size + more, 7, np.uint8) for more in (1, 33, 65))

for trace in at_every_step(handler):
    kernel_calls._memory.kept, others = kernel_calls.NO_SCRATCH, []
    assert np.array_equal(trace.run(lambda: call(0)), first)
    assert all((each == 7).all() for each in others)
assert all(found)
check_team()
""",
        cached,
    )


@needs_fork
def test_a_fork_at_any_step_of_a_call_goes_on_in_both(cached: dict[str, str]) -> None:
    check(
        CHILDREN
        + STEPS
        + """
expected, parent, children = expect(), os.getpid(), []
call(0)

def fork():
    children.append(os.fork())

for trace in at_every_step(fork):
    right = np.array_equal(trace.run(lambda: call(0)), expected[0])
    if os.getpid() != parent:
        if not right:
            os._exit(3)
        compute_and_leave(1)
    assert right
    if children:
        ended(children.pop())
check_team()
""",
        cached,
    )


@needs_timers
def test_an_interrupt_at_any_time_loses_no_thread(cached: dict[str, str]) -> None:
    check(
        """
expected = expect()
call(0)
signal.signal(signal.SIGALRM, signal.default_int_handler)
random.seed(0)
for n in range(300 * times):
    try:
        # The next signal comes only if something has swallowed the first.
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-3), 60)
        while True:
            call(n % 4)
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
    portconv.limits._threads.set(None)  # the `with` is the test's: the interrupt may come before its end begins
    assert np.array_equal(call(n % 4), expected[n % 4])
check_team()
""",
        cached,
    )


@needs_timers
def test_a_signal_handler_and_a_finalizer_may_call(cached: dict[str, str]) -> None:
    check(
        """
expected, found = expect(), []

def compute(*_):
    i = random.randrange(4)
    found.append(np.array_equal(call(i), expected[i]))

class Last:
    def __init__(self):
        self.itself = self  # the collector ends it, in whichever thread it runs
    def __del__(self):
        compute()

signal.signal(signal.SIGALRM, compute)
random.seed(0)
gc.set_threshold(50)
for n in range(100 * times):
    count = len(found)
    Last()
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 5e-4))
    while len(found) < count + 1:
        assert np.array_equal(call(n % 4), expected[n % 4])
gc.collect()
assert all(found)
check_team()
""",
        cached,
    )


ENDS = {
    "threads compute": "for _ in range(3): threading.Thread(target=go_on, daemon=True).start()\ntime.sleep(0.01)",
    "threads stand by": "call(0)",
    "threads sleep": "call(0)\ntime.sleep(0.01)",
    "in atexit": "atexit.register(at_end)\nthreading.Thread(target=go_on, daemon=True).start()",
    "in __del__": "sys.late = Late()\nthreading.Thread(target=go_on, daemon=True).start()",
    "first call in __del__": "sys.late = Late()",
    "exit in a call": "threading.Thread(target=go_on, daemon=True).start()\nAt(200, sys.exit).run(lambda: call(0))",
    "exit in a thread": "thread = threading.Thread(target=sys.exit)\nthread.start()\ncall(0)\nthread.join()",
    "an abrupt end": "threading.Thread(target=go_on, daemon=True).start()\ncall(0)\nos._exit(0)",
}


@pytest.mark.parametrize("how", ENDS)
def test_processes_end(cached: dict[str, str], how: str) -> None:
    prepared = """
expected = np.float32(portconv.conv(*layers[0][:2], padding=1, algorithm="gemm").sum())

def at_end():
    if call(0).sum() != expected:
        os._exit(1)

class Late:
    def __del__(self, at_end=at_end):
        at_end()

def go_on():
    while True:
        call(0)

"""
    for _ in range(2 * TIMES):
        check(STEPS + prepared + ENDS[how], cached)
