"""What a thread runs that stands by for calls that it may help; `team` has the threads."""

from __future__ import annotations

from . import words
from .emit import Argument, Function, Module
from .share import AWAKE, ENTRY, INSIDE, OPEN, PLACES, STOP, rest
from .target import Target
from .values import INTEGER

VARIANTS = ("attend",)
TO_NEAREST = 1
"""The rounding mode of all results, as LLVM numbers it."""


def module(target: Target, variant: str) -> Module:
    """Write what a thread runs that stands by: it joins calls until none has come for some looks at the record."""
    arguments = Argument("team", "*i64"), Argument("looks", INTEGER)
    code = Function(variant, arguments, target, public=True)
    team, looks = code.given
    # A thread begins in the rounding mode of the one that started it, which another library may have changed.
    before = code.intrinsic("i32", "get.rounding")
    code.intrinsic("void", "set.rounding", f"i32 {TO_NEAREST}")
    words.rise(code, team + AWAKE, 1)
    seen, left = code.variable(0), code.variable(looks)
    with code.repeat() as end:
        code.leave(~words.look(code, team + STOP).equals(0) | (left.get() <= 0), end)
        left.set(left.get() - 1)
        now = words.look(code, team + OPEN)
        with code.when(~now.equals(0) & ~now.equals(seen.get())):
            words.rise(code, team + INSIDE, 1)
            # The call may have ended meanwhile, and another one begun.
            joined = words.look(code, team + OPEN)
            with code.when(~joined.equals(0)):
                words.call_at(code, team + ENTRY, team, words.rise(code, team + PLACES, 1))
                seen.set(joined)
                left.set(looks)
            words.rise(code, team + INSIDE, -1)
        rest(code, target, team, left.get())
    words.rise(code, team + AWAKE, -1)
    code.intrinsic("void", "set.rounding", f"i32 {before}")
    return Module([code])
