"""Gradients of depthwise filters of arrays whose channels come last: lanes run along the channels.

A share adds up the products of some rows of outputs, of one tap of the dimensions before the last after the other: for
a vector of channels, some taps of a row are summed along it in registers. A second phase adds up what the shares have.
Taps that read padding are left out, so what is not finite is looked for in the gradients of outputs.
"""

from __future__ import annotations

from .emit import Argument, Function, Module
from .lane_totals import spoiled
from .last_depthwise import first_channels, mask_of
from .last_plan import NARROW, PLAN, SHAPES, VARIANTS
from .last_plan import plan_of_weights as plan_of
from .outer import Outer
from .share import SHARE, driver
from .target import Target
from .values import INTEGER, Int, Variable

__all__ = ["VARIANTS", "module", "plan_of"]

TAPS, COLUMNS, SETS = 4, 4, 2
"""The most taps whose sums are in registers at once; the columns that are read together, and the sums of each tap that
they are added to in turn."""

RUN = (
    *(Argument(name, "*float") for name in ("x", "dout", "sums")),
    Argument("ends", "*i64"),
    *(Argument(name) for name in ("channels", "apart", "step", "pitch")),
)
"""The arguments of a run: arrays from its first cell, vector of channels and tap on; the columns of each tap; and how
far numbers are apart: cells, those of two taps, those of two outputs, and sums of two taps."""


def module(target: Target, variant: str) -> Module:
    """Write the kernel."""
    narrow = variant == NARROW
    shape = SHAPES.get(variant)
    runs = {taps: _run(target, taps, shape and shape[1], narrow=narrow) for taps in range(1, TAPS + 1)}
    code = Function("share", SHARE, target, returns=True)
    phase, flag = code.given[-2], code.variable(0)
    with code.when(phase.equals(0)):
        _add(code, runs, flag, narrow=narrow)
    with code.when(~phase.equals(0)):
        _finish(code, flag)
    code.give(flag.get())
    return Module([*runs.values(), code, *driver(target, code)])


def _run(target: Target, taps: int, stride: int | None, *, narrow: bool) -> Function:
    """Add the products of a row to the sums of some taps, for a vector of channels.

    With a stride, taps lie side by side, and the cells that several of them read are loaded once.
    """
    code = Function(f"run{taps}", RUN, target)
    x, dout, kept, ends, channels, apart, step, pitch = code.given
    mask = mask_of(code, channels, narrow=narrow)
    sums = [[code.variable(code.zeros) for _ in range(taps)] for _ in range(SETS)]

    def multiply(column: Int, own: list[Variable], some: range) -> None:
        grad, here = code.load(dout + column * channels, mask), x + column * step
        for tap in some:
            own[tap].set(code.fma(grad, code.load(here + apart * tap, mask), own[tap].get()))

    starts, stops = ([ends[2 * tap + end] for tap in range(taps)] for end in range(2))
    inner, end = starts[0], stops[0]
    for start, stop in zip(starts[1:], stops[1:], strict=True):
        inner, end = code.maximum(inner, start), code.minimum(end, stop)
    end = code.maximum(inner, end)
    whole = inner + (end - inner) // COLUMNS * COLUMNS
    with code.loop(inner, whole, COLUMNS) as column:
        if stride is None:
            for number in range(COLUMNS):
                multiply(column + number, sums[number % SETS], range(taps))
        else:
            grads, here = [code.load(dout + (column + i) * channels) for i in range(COLUMNS)], x + column * step
            for place in range((COLUMNS - 1) * stride + taps):
                cell = code.load(here + channels * place)
                for i, grad in enumerate(grads):
                    if 0 <= (tap := place - i * stride) < taps:
                        total = sums[i % SETS][tap]
                        total.set(code.fma(grad, cell, total.get()))
    with code.loop(whole, end) as column:
        multiply(column, sums[0], range(taps))
    for tap, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        for low, high in ((start, code.minimum(inner, stop)), (code.maximum(end, start), stop)):
            with code.loop(low, high) as column:
                multiply(column, sums[0], range(tap, tap + 1))
    for tap in range(taps):
        place = kept + pitch * tap
        code.store(code.load(place) + (sums[0][tap].get() + sums[1][tap].get()), place)
    return code


def _add(code: Function, runs: dict[int, Function], flag: Variable, *, narrow: bool) -> None:
    """Add up the products of the rows of a share."""
    memory, x, dout, _, _, _, shared, _, index = code.given
    plan = PLAN.read(memory)
    outer, ends = Outer(code, plan), plan.pointer("columns_of_taps", INTEGER)
    sums = shared + index * plan.taps * plan.pitch
    with code.loop(0, plan.taps * plan.pitch, code.lanes) as at:
        code.store(code.zeros, sums + at, align=code.bytes)
    start = index * plan.rows_of_share
    with code.loop(start, code.minimum(start + plan.rows_of_share, plan.all_rows)) as row:
        outer.enter(row % plan.rows)
        cells, grads = x + row // plan.rows * plan.x_sample, dout + row * plan.columns * plan.channels
        flag.set(flag.get() + spoiled(code, grads, plan.columns * plan.channels))
        with code.loop(0, plan.taps // plan.taps_of_row) as tap:
            first, inside = outer.read(tap)
            here = cells + (first - plan.before) * plan.channels
            with (
                code.when(inside.equals(1)),
                code.loop(0, (plan.channels + (code.lanes - 1)) // code.lanes) as vector,
                code.loop(0, plan.taps_of_row, TAPS) as of_row,
            ):
                channel = first_channels(code, plan, vector, narrow=narrow)
                count = code.minimum(plan.taps_of_row - of_row, TAPS)
                place = (tap * plan.taps_of_row + of_row) * plan.pitch
                # The last vector begins early: its sums lie in a place of their own.
                arrays = (
                    here + (of_row * plan.apart * plan.channels + channel), grads + channel,
                    sums + (place + vector * code.lanes), ends + of_row * 2,
                )  # fmt: skip
                for taps, run in runs.items():
                    with code.when(count.equals(taps)):
                        steps = plan.apart * plan.channels, plan.step * plan.channels
                        code.run(run, *arrays, plan.channels, *steps, plan.pitch)


def _finish(code: Function, flag: Variable) -> None:
    """Add up the sums of all shares for some taps, and store them channel by channel."""
    memory, _, _, _, out, _, shared, _, index = code.given
    plan, check = PLAN.read(memory), code.variable(code.zeros)
    lanes, buffer = code.lanes, code.array(code.lanes)
    first = index * plan.taps_of_last
    with (
        code.loop(first, code.minimum(first + plan.taps_of_last, plan.taps)) as tap,
        code.loop(0, plan.pitch, lanes) as at,
    ):
        total, place = code.variable(code.zeros), shared + (tap * plan.pitch + at)
        total.set(code.zeros)
        with code.loop(0, plan.sharers) as share:
            total.set(total.get() + code.load(place + share * plan.taps * plan.pitch, align=code.bytes))
        code.look_at(check, total.get())
        code.store(total.get(), buffer, align=code.bytes)
        channel = code.maximum(code.minimum(at, plan.channels - lanes), 0)
        with code.loop(0, code.minimum(plan.channels, lanes)) as lane:
            out[(channel + lane) * plan.taps + tap] = buffer[lane]
    flag.set(flag.get() + code.is_not_finite(check.get()))
