"""What a thread runs that stands by for calls that it may help; `team` has the threads."""

from __future__ import annotations

from .emit import INTEGER, Argument, Function, Module
from .share import AWAKE, ENTRY, EPOCH, INSIDE, OPEN, STOP
from .target import Target

VARIANTS = ("attend",)


def module(target: Target, variant: str) -> Module:
    """Write what a thread runs that stands by: it joins calls until none has come for some looks at the record."""
    arguments = Argument("team", "*i64"), Argument("looks", INTEGER)
    code = Function(variant, arguments, target.lanes, public=True)
    team, looks = code.given
    code.rise(team + AWAKE, 1)
    seen, left = code.variable(-1), code.variable(looks)
    with code.repeat() as end:
        code.leave(~code.look(team + STOP).equals(0) | (left.get() <= 0), end)
        now = code.look(team + EPOCH)
        with code.when(~now.equals(seen.get()) & ~code.look(team + OPEN).equals(0)):
            seen.set(now)
            code.rise(team + INSIDE, 1)
            # The call may have ended meanwhile: it waits only for those that it finds inside after it has closed.
            with code.when(~code.look(team + OPEN).equals(0)):
                code.call_at(team + ENTRY, team)
            code.rise(team + INSIDE, -1)
            left.set(looks)
        left.set(left.get() - 1)
        code.pause(target.name)
    code.rise(team + AWAKE, -1)
    return Module([code])
