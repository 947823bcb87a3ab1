"""Words in memory that several threads read and write, and addresses in memory."""

from __future__ import annotations

from .emit import Function
from .values import FLAG, INTEGER, Flag, Int, Number, Pointer, Value


def look(code: Function, word: Pointer) -> Int:
    """Read a word that other threads write."""
    return Int(code, INTEGER, code.assign(f"load atomic i64, ptr {word} seq_cst, align 8"))


def put(code: Function, word: Pointer, value: Number) -> None:
    """Write a word that other threads read."""
    code.add(f"store atomic i64 {value}, ptr {word} seq_cst, align 8")


def rise(code: Function, word: Pointer, by: int) -> Int:
    """Add to a word in one step; return what it was."""
    return Int(code, INTEGER, code.assign(f"atomicrmw add ptr {word}, i64 {by} seq_cst"))


def claims(code: Function, word: Pointer) -> Flag:
    """Change a word from 0 to 1 in one step; return whether it was 0."""
    both = code.assign(f"cmpxchg ptr {word}, i64 0, i64 1 seq_cst seq_cst")
    return Flag(code, FLAG, code.assign(f"extractvalue {{ i64, i1 }} {both}, 1"))


def put_address(code: Function, word: Pointer, address: Value | str) -> None:
    """Write an address into a word."""
    code.add(f"store ptr {address}, ptr {word}, align 8")


def address(code: Function, word: Pointer) -> Pointer:
    """Read an address from a word."""
    return Pointer(code, INTEGER, code.assign(f"load ptr, ptr {word}, align 8"))


def call_at(code: Function, word: Pointer, *values: Value) -> None:
    """Call the function whose address a word holds; what it returns is ignored."""
    code.add(f"call void {address(code, word)}({', '.join(value.typed for value in values)})")


def pause(code: Function, target: str) -> None:
    """Let the CPU know that the thread waits for another one."""
    if target == "neon":
        code.intrinsic("void", "aarch64.hint", "i32 1")
    else:
        code.intrinsic("void", "x86.sse2.pause")
