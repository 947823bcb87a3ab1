"""Products of packs: two vectors of several narrow numbers a lane, multiplied and added up to one wide number a lane.

Of integers the low bits of a product, and of a sum, depend on the low bits of the operands alone. So it does not matter
that an instruction takes bytes without signs, or adds up in 32 bits.
"""

from __future__ import annotations

from typing import Any

from .values import BRAINS, BYTES, PACKS, PAIRS, Vector

VNNI = {BYTES: "x86.avx512.vpdpbusd.512", PAIRS: "x86.avx512.vpdpwssd.512"}
BF16 = {BRAINS: "x86.avx512bf16.dpbf16ps.512"}
"""Instructions of AVX-512 that multiply packs and add them, by the type of the packs."""
MADD = {PAIRS: "pmadd"}
"""What leaves the last addition to another instruction; its name depends on the length of the vectors."""
LONG_MADD, SHORT_MADD = "x86.avx512.pmaddw.d.512", "x86.avx2.pmadd.wd"


def added(code: Any, packs: tuple[Vector, Vector], total: Vector) -> Vector:
    """Return the total and the products of two vectors of packs, by the instructions that the CPU has."""
    element, type = code.element, code.vector_type
    name = code.dots.get(element)
    if name is None:
        return _in_steps(code, packs, total)
    count = PACKS[element] * code.lanes
    number = "bfloat" if element == BRAINS else f"i{32 // PACKS[element]}"
    parts = [f"<{count} x {number}> " + code.assign(f"bitcast {a.typed} to <{count} x {number}>") for a in packs]
    if name != MADD[PAIRS]:
        return Vector(code, type, code.intrinsic(type, name, total.typed, *parts))
    name = LONG_MADD if code.lanes > 8 else SHORT_MADD
    return total + Vector(code, type, code.intrinsic(type, name, *parts))


def _in_steps(code: Any, packs: tuple[Vector, Vector], total: Vector) -> Vector:
    """Multiply and add the numbers of packs one after the other, by what every CPU has."""
    width, whole = 32 // PACKS[code.element], f"<{code.lanes} x i32>"
    bits = [code.assign(f"bitcast {each.typed} to {whole}") for each in packs]
    for start in range(0, 32, width):
        how = "lshr", start
        if code.element == BRAINS:  # as float32, which begins with the same bits
            how = ("and", -(1 << 16)) if start else ("shl", 16)
        moved = [code.assign(f"{how[0]} {whole} {each}, splat (i32 {how[1]})") for each in bits]
        a, b = (
            Vector(code, code.vector_type, code.assign(f"bitcast {whole} {each} to {code.vector_type}"))
            for each in moved
        )
        total = code.multiplied(a, b, total)
    return total
