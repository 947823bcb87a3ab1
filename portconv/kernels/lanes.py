"""Lanes of vectors in any order, which AVX-512 has, and an order in which sums are computed."""

from __future__ import annotations

from collections.abc import Sequence

from .emit import Function
from .target import Target
from .values import Flag, Int, Number, Value, Variable, Vector


def indices(code: Function, steps: Sequence[int], start: Number) -> Value:
    """Return the integers `start + step`, of 32 bits, for the step of each lane."""
    type = f"<{code.lanes} x i32>"
    numbers = "<" + ", ".join(f"i32 {step}" for step in steps) + ">"
    return Value(code, type, code.assign(f"add {type} {numbers}, {code.spread(_narrow(code, start), 'i32')}"))


def are_below(code: Function, numbers: Value, size: Int) -> Flag:
    """Return the mask of the lanes whose integer is one of 0, 1, ..., size - 1."""
    sizes = code.spread(_narrow(code, size), "i32")
    return Flag(code, code.mask_type, code.assign(f"icmp ult {numbers.typed}, {sizes}"))


def picked(code: Function, vectors: Sequence[Vector], numbers: Value) -> Vector:
    """Return the lanes of one or two vectors that have these numbers, counted from the first vector on."""
    of_one = "x86.avx512.permvar.sf.512" if code.lanes > 8 else "x86.avx2.permps"
    name = f"x86.avx512.vpermi2var.ps.{32 * code.lanes}" if len(vectors) == 2 else of_one
    operands = [vectors[0].typed, numbers.typed, *(vector.typed for vector in vectors[1:])]
    return Vector(code, code.vector_type, code.intrinsic(code.vector_type, name, *operands))


def together(code: Function, vector: Vector, chosen: Flag) -> Vector:
    """Return the chosen lanes as the first ones, in their order; the others are 0."""
    name = f"x86.avx512.mask.compress.v{code.lanes}f32"
    operands = vector.typed, code.zeros.typed, chosen.typed
    return Vector(code, code.vector_type, code.intrinsic(code.vector_type, name, *operands))


def transposed(code: Function, vectors: Sequence[Vector]) -> list[Vector]:
    """Return as many vectors as there are lanes, of which each has one lane of all of these."""
    rows, size = list(vectors), 1
    while size < code.lanes:
        near = [lane if not lane & size else code.lanes + lane - size for lane in range(code.lanes)]
        far = [lane + size if not lane & size else code.lanes + lane for lane in range(code.lanes)]
        for i in range(code.lanes):
            if not i & size:
                a, b = rows[i], rows[i + size]
                rows[i], rows[i + size] = code.shuffle(a, b, near), code.shuffle(a, b, far)
        size *= 2
    return rows


def keep_order(code: Function, target: Target, variables: Sequence[Variable]) -> None:
    """Let LLVM not compute what follows of these vectors before what precedes.

    To keep fewer vectors it would compute one sum after the other, and the steps of a sum wait for one another.
    """
    count = len(variables)
    if count == 1:
        return
    kind = {"avx512": "v", "avx2": "x", "neon": "w"}[target.name]
    constraints = ",".join([f"={kind}"] * count + [str(number) for number in range(count)])
    types, values = ", ".join([code.vector_type] * count), ", ".join(variable.get().typed for variable in variables)
    # No instruction at all, of which LLVM knows only that it takes and gives these.
    all = code.assign(f'call {{ {types} }} asm "", "{constraints}"({values})')
    for number, variable in enumerate(variables):
        name = code.assign(f"extractvalue {{ {types} }} {all}, {number}")
        variable.set(Vector(code, code.vector_type, name))


def _narrow(code: Function, number: Number) -> str:
    return code.assign(f"trunc i64 {number} to i32")
