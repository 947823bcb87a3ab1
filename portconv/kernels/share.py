"""The work of a call is cut into shares of a fixed size, which threads take one after the other.

A share computes some outputs from the first term to the last. So neither the number of threads nor who takes a share
changes a bit. Shares may come in phases, each of which needs all of what the one before has made.
"""

from __future__ import annotations

from .emit import INTEGER, Argument, Function, Pointer
from .target import Target

PLAN_HEAD = ("phases", "shares_first", "shares_last")
"""The first fields of each plan: 1 or 2 phases, and the shares of the first and of the last one."""

OPERANDS = (
    Argument("plan", "*i64"),
    *(Argument(name, "*float") for name in ("x", "w", "b", "out", "scratch")),
)
SHARE = (*OPERANDS, Argument("phase", INTEGER), Argument("index", INTEGER))
"""The arguments of a function that computes one share; it returns 1 if a number is not finite, else 0."""


def driver(target: Target, share: Function) -> list[Function]:
    """Write the function that Python calls."""
    code = Function("run", OPERANDS, target.lanes, public=True, returns=True)
    plan = code.given[0]
    flag = code.variable(0)
    with code.loop(0, plan[2]) as index:
        flag.set(flag.get() + code.call(share, *code.given, 0, index))
    code.give(flag.get())
    return [code]
