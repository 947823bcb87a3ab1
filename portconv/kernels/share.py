"""The work of a call is cut into shares of a fixed size, which threads take one after the other.

A share computes some outputs from the first term to the last. So neither the number of threads nor who takes a share
changes a bit. Shares may come in phases, the second of which needs all of what the first one has made.

Each object has two functions for Python: `alone` computes all shares, and `together` divides them among threads, its
own and those that stand by (see `standby`). These look at one record in memory, the team's, which the one call that
holds its seat fills in. A call that finds the seat taken computes alone. Nobody waits for a thread that has not joined.

Why this is safe: all threads see the steps of these words in one order. A thread rises INSIDE and then looks at OPEN;
a call clears OPEN and then looks at INSIDE. So either the thread sees that the call is closed, and touches nothing of
it, or the call sees the thread, and waits until it has left. What is asked is written before OPEN and read after it.
"""

from __future__ import annotations

from . import words
from .emit import Argument, Function
from .record import Record
from .target import Target
from .values import INTEGER, Int, Number, Pointer

PLAN_HEAD = ("phases", "shares_first", "shares_last")
"""The first fields of each plan: 1 or 2 phases, and the shares of the first and of the last one."""
HEAD = Record(*PLAN_HEAD)

OPERANDS = (
    Argument("plan", "*i64"),
    *(Argument(name, "*float") for name in ("x", "w", "b", "out", "scratch", "shared")),
)
SHARE = (*OPERANDS, Argument("phase", INTEGER), Argument("index", INTEGER))
"""The arguments of a function that computes one share; it returns 1 if a number is not finite, else 0.

`scratch` is memory of the thread alone, and `shared` is that of all threads of the call, for what a first phase makes.
"""

REQUEST = Record(*(argument.name for argument in OPERANDS), "scratch_bytes", "most")
"""What `together` is asked for: the operands, the bytes of scratch of each thread, and the most threads."""

APART = 16
"""Words that several threads write lie this far apart, so that they are in different lines of the cache."""
SEAT, CALLS, OPEN, INSIDE, PLACES, FLAG, NEXT, DONE, STOP, AWAKE, ASKED, ENTRY, YIELD = (APART * i for i in range(13))
"""The words of the team's record: whether a call holds it; how many have; the number of the call that threads may join,
or 0; how many have joined and not left; how many places are taken; what is not finite; for each phase the next share,
and the shares that are done (one word apart); whether threads are to leave; how many stand by; what is asked; and two
functions."""
TEAM_WORDS = 13 * APART
LOOKS_OF_YIELD = 64
"""After so many looks, some two microseconds, a thread that waits lets the system run another one."""


def driver(target: Target, share: Function) -> list[Function]:
    """Write the functions that compute the shares of a call, for Python and for threads that help."""
    take = _take(target, share)
    return [_alone(target, share), take, _together(target, take)]


def _alone(target: Target, share: Function) -> Function:
    code = Function("alone", OPERANDS, target, public=True, returns=True)
    plan, flag = HEAD.read(code.given[0]), code.variable(0)
    with code.when(plan.phases.equals(2)), code.loop(0, plan.shares_first) as index:
        flag.set(flag.get() + code.call(share, *code.given, 0, index))
    with code.loop(0, plan.shares_last) as index:
        flag.set(flag.get() + code.call(share, *code.given, 1, index))
    code.give(flag.get())
    return code


def _take(target: Target, share: Function) -> Function:
    """Take shares until there are none, at a place of the thread's own, of which there are as many as asked for."""
    code = _function("take", (Argument("team", "*i64"), Argument("place")), target)
    team, place = code.given
    asked = REQUEST.read(words.address(code, team + ASKED))
    with code.when(place < asked.most):
        operands = [asked.pointer(name, element.removeprefix("*")) for name, element in OPERANDS]
        operands[5] = (operands[5].of("i8") + place * asked.scratch_bytes).of(code.element)
        plan = HEAD.read(operands[0])
        for phase, count in ((0, plan.shares_first), (1, plan.shares_last)):
            with code.repeat() as end:
                ticket = words.rise(code, team + (NEXT + phase), 1)
                code.leave(ticket >= count, end)
                found = code.call(share, *operands, phase, _apart(code, ticket, count, asked.most))
                with code.when(~found.equals(0)):
                    words.rise(code, team + FLAG, 1)
                words.rise(code, team + (DONE + phase), 1)
            if phase == 0:
                _wait(code, target, team, team + DONE, count)
    return code


def _apart(code: Function, ticket: Int, count: Int, threads: Int) -> Int:
    """Return the share of a ticket: neighbouring tickets are far apart, and each thread goes on beside its last share.

    What threads write at the same time then lies in different pages, and what one reads is often in its cache. The last
    share, which may be a small one, comes last: if shares are left over, it is one of them.
    """
    turn, thread = ticket // threads, threads - 1 - ticket % threads
    return thread * (count // threads) + code.maximum(thread + count % threads - threads, 0) + turn


def _together(target: Target, take: Function) -> Function:
    code = _function("together", (Argument("team", "*i64"), Argument("request", "*i64")), target, returns=True)
    team, request = code.given
    flag = code.variable(-1)
    with code.when(words.claims(code, team + SEAT)):
        # Threads may still leave what they came too late for, so INSIDE is theirs alone.
        for word in (FLAG, NEXT, NEXT + 1, DONE, DONE + 1):
            words.put(code, team + word, 0)
        words.put(code, team + PLACES, 1)  # the first one is this thread's, however many stand by
        words.put_address(code, team + ASKED, request)
        words.put_address(code, team + ENTRY, f"@{take.name}")
        words.put(code, team + OPEN, words.rise(code, team + CALLS, 1) + 1)
        code.run(take, team, 0)
        words.put(code, team + OPEN, 0)
        _wait(code, target, team, team + INSIDE, 0)
        flag.set(words.look(code, team + FLAG))
        words.put(code, team + SEAT, 0)
    code.give(flag.get())
    return code


def _wait(code: Function, target: Target, team: Pointer, word: Pointer, wanted: Number) -> None:
    """Wait until a word has a value, which takes no longer than a share unless the system runs other threads."""
    looks = code.variable(0)
    with code.repeat() as end:
        code.leave(words.look(code, word).equals(wanted), end)
        looks.set(looks.get() + 1)
        rest(code, target, team, looks.get())


def rest(code: Function, target: Target, team: Pointer, looks: Int) -> None:
    """Rest between two looks at a word; after some let the system run another thread, which may be the awaited one."""
    words.pause(code, target.name)
    with code.when((looks % LOOKS_OF_YIELD).equals(0) & ~words.look(code, team + YIELD).equals(0)):
        words.call_at(code, team + YIELD)


def _function(name: str, arguments: tuple[Argument, ...], target: Target, *, returns: bool = False) -> Function:
    return Function(name, arguments, target, public=name != "take", returns=returns)
