"""The values of a function of LLVM's language, as Python objects: their operators write instructions.

`a + b` of two `Int` writes an addition and is its result. What is known while a kernel is made, such as a size of a
tile, is a plain int that costs nothing at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

INTEGER, POINTER, FLAG = "i64", "ptr", "i1"
NUMBERS, LINE = "*float", 64
"""What an argument is that points to numbers, of whatever type the function's are; and the bytes of a line of the
cache."""
LONG = "%long"
"""A number of an array of 64 bits that is an integer, which wraps; an `INTEGER` counts, and must not overflow."""
BYTES, PAIRS, BRAINS = "%bytes", "%pairs", "%brains"
"""Packs of 32 bits: four integers of 8 bits, two of 16 bits, or two numbers of bfloat16. The products of two packs are
added up to one number of 32 bits, an integer of which the low 8 or 16 bits are right, or one of float32."""
PACKS = {BYTES: 4, PAIRS: 2, BRAINS: 2}
"""How many numbers a pack has."""
WHOLE = {"i16": "i16", "i32": "i32", LONG: "i64", BYTES: "i32", PAIRS: "i32"}
"""The types of numbers that are integers, and what LLVM calls them."""
NAMED = {**{name: type for name, type in WHOLE.items() if name.startswith("%")}, BRAINS: "float"}
"""The types that have names of ours, and what LLVM calls them."""
SHORT_NAMES = {"float": "f32", "double": "f64", BRAINS: "f32", **WHOLE}
"""How the names of LLVM's functions call the types of numbers."""
NARROW = {"i8": 1, "half": 2, "bfloat": 2}
"""The bytes of numbers that are copied into packs or wider types before they are multiplied; bfloat is bfloat16."""
ELEMENT_BYTES = {
    "float": 4, "double": 8, "i16": 2, "i32": 4, LONG: 8, "i64": 8, "ptr": 8, **dict.fromkeys(PACKS, 4), **NARROW
}  # fmt: skip


class Code(Protocol):
    """What values know of the function that they belong to (see `emit.Function`)."""

    element: str

    def assign(self, instruction: str) -> str: ...

    def add(self, line: str) -> None: ...


class Vectors(Protocol):
    """What a function must know of vectors (see `target.Target`)."""

    @property
    def lanes(self) -> int:
        """The numbers of a vector."""

    @property
    def element(self) -> str:
        """The type of the numbers, as LLVM calls it."""

    @property
    def dots(self) -> dict[str, str]:
        """The instructions that the CPU has for products of packs, by the type of the packs."""


class Value:
    """A value that a function computes at run time: its name, its type and the function."""

    __slots__ = ("code", "name", "type")

    def __init__(self, code: Code, type: str, name: str) -> None:
        self.code, self.type, self.name = code, type, name

    def __str__(self) -> str:
        return self.name

    @property
    def typed(self) -> str:
        """The type and the name, as instructions have them."""
        return f"{self.type} {self.name}"


class Flag(Value):
    """One bit, or a bit for each lane of a vector (a mask)."""

    __slots__ = ()

    def __and__(self, other: Flag) -> Flag:
        return Flag(self.code, self.type, self.code.assign(f"and {self.typed}, {other}"))

    def __or__(self, other: Flag) -> Flag:
        return Flag(self.code, self.type, self.code.assign(f"or {self.typed}, {other}"))

    def __invert__(self) -> Flag:
        ones = "true" if self.type == FLAG else f"splat ({FLAG} true)"
        return Flag(self.code, self.type, self.code.assign(f"xor {self.typed}, {ones}"))


class Int(Value):
    """An integer of 64 bits; beside one, a plain int is one too."""

    __slots__ = ()

    def _with(self, name: str, a: Number, b: Number) -> Int:
        return Int(self.code, INTEGER, self.code.assign(f"{name} i64 {a}, {b}"))

    def __add__(self, other: Number) -> Int:
        return self if isinstance(other, int) and other == 0 else self._with("add nsw", self, other)

    __radd__ = __add__

    def __sub__(self, other: Number) -> Int:
        return self if isinstance(other, int) and other == 0 else self._with("sub nsw", self, other)

    def __rsub__(self, other: Number) -> Int:
        return self._with("sub nsw", other, self)

    def __mul__(self, other: Number) -> Int:
        return self if isinstance(other, int) and other == 1 else self._with("mul nsw", self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Number) -> Int:
        """Divide by a positive number; neither is negative."""
        return self._with("udiv", self, other)

    def __rfloordiv__(self, other: Number) -> Int:
        return self._with("udiv", other, self)

    def __mod__(self, other: Number) -> Int:
        """Return the rest of a division of numbers that are not negative."""
        return self._with("urem", self, other)

    def __and__(self, other: Number) -> Int:
        return self._with("and", self, other)

    def __or__(self, other: Number) -> Int:
        return self._with("or", self, other)

    def __lshift__(self, other: Number) -> Int:
        return self._with("shl", self, other)

    def __rlshift__(self, other: Number) -> Int:
        return self._with("shl", other, self)

    def __rshift__(self, other: Number) -> Int:
        return self._with("lshr", self, other)

    def _compared(self, how: str, other: Number) -> Flag:
        return Flag(self.code, FLAG, self.code.assign(f"icmp {how} i64 {self}, {other}"))

    def __lt__(self, other: Number) -> Flag:
        return self._compared("slt", other)

    def __le__(self, other: Number) -> Flag:
        return self._compared("sle", other)

    def __gt__(self, other: Number) -> Flag:
        return self._compared("sgt", other)

    def __ge__(self, other: Number) -> Flag:
        return self._compared("sge", other)

    def equals(self, other: Number) -> Flag:
        """Compare; `==` would hide what Python means by it."""
        return self._compared("eq", other)

    def is_index(self, size: Number) -> Flag:
        """Return whether the number is one of 0, 1, ..., size - 1."""
        return self._compared("ult", other=size)


Number = int | Int
"""An integer that is known now, or at run time."""


class Vector(Value):
    """Numbers of arrays, one a lane, or a single one."""

    __slots__ = ()

    def _with(self, name: str, other: Vector) -> Vector:
        name = name if self.code.element in WHOLE else f"f{name}"
        return Vector(self.code, self.type, self.code.assign(f"{name} {self.typed}, {other}"))

    def __add__(self, other: Vector) -> Vector:
        return self._with("add", other)

    def __sub__(self, other: Vector) -> Vector:
        return self._with("sub", other)

    def __mul__(self, other: Vector) -> Vector:
        return self._with("mul", other)


class Packed(Vector):
    """Packs of integers, whose numbers are added one by one."""

    __slots__ = ()

    def _with(self, name: str, other: Vector) -> Vector:
        code, width = self.code, 32 // PACKS[self.code.element]
        lanes = int(self.type[1:].split(" ")[0]) * PACKS[code.element]
        parts = f"<{lanes} x i{width}>"
        a, b = (code.assign(f"bitcast {each.typed} to {parts}") for each in (self, other))
        result = code.assign(f"{name} {parts} {a}, {b}")
        return Packed(code, self.type, code.assign(f"bitcast {parts} {result} to {self.type}"))


class Pointer(Value):
    """The address of elements of one type; `pointer + 3` is the address of the third element after it."""

    __slots__ = ("element",)

    def __init__(self, code: Code, element: str, name: str) -> None:
        super().__init__(code, POINTER, name)
        self.element = element

    def __add__(self, index: Number) -> Pointer:
        if isinstance(index, int) and index == 0:
            return self
        name = self.code.assign(f"getelementptr {self.element}, ptr {self}, i64 {index}")
        return Pointer(self.code, self.element, name)

    def __sub__(self, index: Number) -> Pointer:
        return self + (0 - index)

    def of(self, element: str) -> Pointer:
        """Return the same address, of elements of another type."""
        return Pointer(self.code, element, self.name)

    def __getitem__(self, index: Number) -> Any:
        """Load one element: an `Int`, a `Pointer` to numbers, or a number."""
        name = self.code.assign(f"load {self.element}, ptr {self + index}, align {ELEMENT_BYTES[self.element]}")
        if self.element == POINTER:
            return Pointer(self.code, self.code.element, name)
        return (Int if self.element == INTEGER else Vector)(self.code, self.element, name)

    def __setitem__(self, index: Number, value: Number | Value) -> None:
        """Store one element."""
        typed = f"i64 {value}" if isinstance(value, int) else value.typed
        self.code.add(f"store {typed}, ptr {self + index}, align {ELEMENT_BYTES[self.element]}")


@dataclass(slots=True)
class Variable:
    """A value that changes in a loop."""

    code: Code
    place: Pointer
    kind: type[Value]

    def get(self) -> Any:
        """Return what it holds now."""
        element = self.place.element
        name = self.code.assign(f"load {element}, ptr {self.place}")
        return (
            Pointer(self.code, self.code.element, name) if element == POINTER else self.kind(self.code, element, name)
        )

    def set(self, value: Number | Value) -> None:
        """Let it hold another value from here on."""
        typed = f"i64 {value}" if isinstance(value, int) else value.typed
        self.code.add(f"store {typed}, ptr {self.place}")
