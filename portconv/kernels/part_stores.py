"""Stores of a part of a vector, for CPUs without the masks of AVX-512."""

from __future__ import annotations

from .emit import Function
from .target import Target
from .values import ELEMENT_BYTES, Flag, Int, Pointer, Vector


def store_first(code: Function, value: Vector, place: Pointer, count: Int) -> None:
    """Store the first lanes by halves, quarters and so on: some CPUs take very long for the masked stores of AVX2."""
    left, at, size = code.variable(value), code.variable(place), code.lanes
    while size:
        with code.when(~(count & size).equals(0)):
            now, here = left.get(), at.get()
            chosen = ", ".join(f"i32 {lane}" for lane in range(size))
            part = code.assign(f"shufflevector {now.typed}, {now.typed}, <{size} x i32> <{chosen}>")
            code.add(f"store <{size} x {code.element}> {part}, ptr {here}, align {ELEMENT_BYTES[code.element]}")
            left.set(code.shuffle(now, now, [(lane + size) % code.lanes for lane in range(code.lanes)]))
            at.set(here + size)
        size //= 2


def store_part(code: Function, target: Target, value: Vector, place: Pointer, count: Int, mask: Flag) -> None:
    """Store the first lanes, at most all of them; `mask` has these lanes."""
    if target.name == "avx512":
        code.store(value, place, mask)
    else:
        store_first(code, value, place, code.minimum(count, code.lanes))


def store_bits(code: Function, target: Target, value: Vector, place: Pointer, bits: Int) -> None:
    """Store the lanes of some bits: without the masks of AVX-512 those of a part one by one."""
    if target.name == "avx512":
        code.store(value, place, code.mask_of_bits(bits))
        return
    is_whole = bits.equals((1 << code.lanes) - 1)
    with code.when(is_whole):
        code.store(value, place)
    with code.when(~is_whole):
        buffer, one = code.array(code.lanes), code.variable(1).get()
        code.store(value, buffer, align=code.bytes)
        with code.loop(0, code.lanes) as lane, code.when(~(bits & (one << lane)).equals(0)):
            place[lane] = buffer[lane]
