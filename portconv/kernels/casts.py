"""Copies of numbers into another type: narrow ones become those that are multiplied, and results narrow ones again.

Integers wrap. Numbers with a fraction are rounded to the nearest, ties to even, as array libraries do. Those of
bfloat16 are rounded by their bits, as the CPUs' own instructions take subnormal numbers for zero.
"""

from __future__ import annotations

from .emit import Function, Module
from .record import Record
from .share import PLAN_HEAD, SHARE, driver
from .sizes import Planned, blocks, ceiling
from .target import Target
from .values import ELEMENT_BYTES, Int, Pointer

VARIANTS = (
    *("i8-i16", "i8-i32", "i16-i32", "i16-i8", "i32-i8", "i32-i16"),
    *("half-float", "bfloat-float", "float-half", "float-bfloat"),
)
"""The type that is read, and the one that is written."""
VECTORS, VECTORS_OF_SHARE = 4, 1 << 11
"""So many vectors are read together, and about so many are one share."""
CYCLES_OF_VECTOR = 3.0
"""About how many vectors are multiplied in the time in which one is converted."""
LOW, QUIET = 0x7FFF, 0x40
"""What rounds the bits of float32 up where those that are dropped are more than a half, and what makes a nan quiet."""

PLAN = Record(*PLAN_HEAD, "numbers", "numbers_of_share")
"""The plan in memory."""


def plan_of(target: Target, variant: str, numbers: int) -> Planned:
    """Plan the copy of so many numbers."""
    vectors = ceiling(numbers, target.lanes)
    shares, of_share = blocks(ceiling(vectors, VECTORS), VECTORS_OF_SHARE // VECTORS)
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares},
        **{"numbers": numbers, "numbers_of_share": of_share * VECTORS * target.lanes},
    )
    return Planned(variant, values, (), shares, 0, {}, cycles=vectors * CYCLES_OF_VECTOR)


def module(target: Target, variant: str) -> Module:
    """Write the kernel from one type to another."""
    code, lanes = Function("share", SHARE, target, returns=True), target.lanes
    memory, x, _, _, out, *_, index = code.given
    plan, start, step = PLAN.read(memory), code.variable(0), VECTORS * lanes
    read, written = variant.split("-")
    source, goal = x.of(read), out.of(written)
    start.set(index * plan.numbers_of_share)
    stop = code.minimum(index * plan.numbers_of_share + plan.numbers_of_share, plan.numbers)
    for size in (step, lanes, 1):  # whole groups of vectors, then vectors, then numbers
        with code.repeat() as end:
            at: Int = start.get()
            code.leave(at + size > stop, end)
            count = max(1, size // lanes)
            found = [_loaded(code, source + (at + lanes * i), min(size, lanes)) for i in range(count)]
            for i, value in enumerate(found):
                _store(
                    code,
                    _cast(code, value, (read, written), min(size, lanes)),
                    goal + (at + lanes * i),
                    min(size, lanes),
                )
            start.set(at + size)
    code.give(0)
    return Module([code, *driver(target, code)])


def _type(element: str, lanes: int) -> str:
    """Return the type of some numbers as they lie in memory."""
    element = "i16" if element == "bfloat" else element
    return f"<{lanes} x {element}>"


def _loaded(code: Function, place: Pointer, lanes: int) -> str:
    return code.assign(f"load {_type(place.element, lanes)}, ptr {place}, align {ELEMENT_BYTES[place.element]}")


def _store(code: Function, value: str, place: Pointer, lanes: int) -> None:
    code.add(f"store {_type(place.element, lanes)} {value}, ptr {place}, align {ELEMENT_BYTES[place.element]}")


def _cast(code: Function, value: str, types: tuple[str, str], lanes: int) -> str:
    """Return numbers in another type."""
    read, written = types
    of_read, of_written, whole = _type(read, lanes), _type(written, lanes), f"<{lanes} x i32>"
    if "bfloat" not in types:
        if "half" in types:
            how = "fpext" if read == "half" else "fptrunc"
        else:
            how = "sext" if ELEMENT_BYTES[read] < ELEMENT_BYTES[written] else "trunc"
        return code.assign(f"{how} {of_read} {value} to {of_written}")

    if read == "bfloat":
        bits = code.assign(f"zext {of_read} {value} to {whole}")
        return code.assign(f"bitcast {whole} {code.assign(f'shl {whole} {bits}, splat (i32 16)')} to {of_written}")
    bits = code.assign(f"bitcast {of_read} {value} to {whole}")
    high = code.assign(f"lshr {whole} {bits}, splat (i32 16)")
    is_odd = code.assign(f"and {whole} {high}, splat (i32 1)")
    more = code.assign(f"add {whole} {is_odd}, splat (i32 {LOW})")
    rounded = code.assign(f"lshr {whole} {code.assign(f'add {whole} {bits}, {more}')}, splat (i32 16)")
    is_nan, quiet = (
        code.assign(f"fcmp uno {of_read} {value}, {value}"),
        code.assign(f"or {whole} {high}, splat (i32 {QUIET})"),
    )
    chosen = code.assign(f"select <{lanes} x i1> {is_nan}, {whole} {quiet}, {whole} {rounded}")
    return code.assign(f"trunc {whole} {chosen} to {of_written}")
