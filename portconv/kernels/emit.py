"""Instructions for LLVM, written by functions of Python.

A `Function` collects the text of one function of LLVM's language. Its values are Python objects, so that a kernel reads
like the loop it becomes: `+` and `*` of two `Int` emit an addition and a multiplication, and what is known while the
kernel is made, such as a size of a tile, is a plain int that costs nothing at run time.

LLVM's language is documented in https://llvm.org/docs/LangRef.html. A variable is a place on the stack (`alloca`), which
LLVM's pass "sroa" turns into a register.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

INTEGER, POINTER, FLAG = "i64", "ptr", "i1"
ELEMENT_BYTES = {"float": 4, "double": 8, "i64": 8, "ptr": 8, "i8": 1}


class Value:
    """A value that a function computes at run time: its name, its type and the function."""

    __slots__ = ("code", "name", "type")

    def __init__(self, code: Function, type: str, name: str) -> None:
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

    def __mod__(self, other: Number) -> Int:
        """Return the rest of a division of numbers that are not negative."""
        return self._with("urem", self, other)

    def __and__(self, other: Number) -> Int:
        return self._with("and", self, other)

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
    """Floating-point numbers, one a lane, or a single one."""

    __slots__ = ()

    def _with(self, name: str, other: Vector) -> Vector:
        return Vector(self.code, self.type, self.code.assign(f"{name} {self.typed}, {other}"))

    def __add__(self, other: Vector) -> Vector:
        return self._with("fadd", other)

    def __sub__(self, other: Vector) -> Vector:
        return self._with("fsub", other)

    def __mul__(self, other: Vector) -> Vector:
        return self._with("fmul", other)


class Pointer(Value):
    """The address of elements of one type; `pointer + 3` is the address of the third element after it."""

    __slots__ = ("element",)

    def __init__(self, code: Function, element: str, name: str) -> None:
        super().__init__(code, POINTER, name)
        self.element = element

    def __add__(self, index: Number) -> Pointer:
        if isinstance(index, int) and index == 0:
            return self
        name = self.code.assign(f"getelementptr {self.element}, ptr {self}, i64 {index}")
        return Pointer(self.code, self.element, name)

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

    code: Function
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


class Argument(NamedTuple):
    """An argument of a function: its name and what it is, `INTEGER` or the element type that it points to."""

    name: str
    element: str = INTEGER


class Function:
    """One function of LLVM's language, as it is written.

    Parameters
    ----------
    name : str
    arguments : sequence of Argument
        They become attributes of `given`, in their order.
    lanes : int
        The lanes of a vector.
    element : str
        The type of the numbers: "float".
    public : bool
        Whether other objects may call it.
    returns : bool
        Whether it returns an integer.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[Argument],
        lanes: int,
        element: str = "float",
        *,
        public: bool = False,
        returns: bool = False,
    ) -> None:
        self.name, self.arguments, self.lanes, self.element = name, arguments, lanes, element
        self.public, self.returns = public, returns
        self.lines: list[str] = []
        self.places: list[str] = []
        self.declared: set[str] = set()
        self.numbers = count()
        self.vector_type, self.mask_type = f"<{lanes} x {element}>", f"<{lanes} x {FLAG}>"
        self.given: list[Any] = [
            Int(self, INTEGER, f"%{name}")
            if element == INTEGER
            else Pointer(self, element.removeprefix("*"), f"%{name}")
            for name, element in arguments
        ]

    @property
    def text(self) -> str:
        """The whole function."""
        types = ", ".join(f"{_type(element)} %{name}" for name, element in self.arguments)
        kind = "define" if self.public else "define internal"
        result = INTEGER if self.returns else "void"
        end = [] if self.returns else ["  ret void"]
        head = f"{kind} {result} @{self.name}({types}) nounwind {{"
        return "\n".join([head, "entry:", *self.places, *self.lines, *end, "}"])

    # What is written.

    def add(self, line: str) -> None:
        """Write an instruction without a result."""
        self.lines.append(f"  {line}")

    def assign(self, instruction: str) -> str:
        """Write an instruction; return the name of its result."""
        name = f"%v{next(self.numbers)}"
        self.lines.append(f"  {name} = {instruction}")
        return name

    def intrinsic(self, result: str, name: str, *operands: str) -> str:
        """Write a call of one of LLVM's own functions; return the name of its result."""
        types = ", ".join(operand.rsplit(" ", 1)[0] if " " in operand else operand for operand in operands)
        self.declared.add(f"declare {result} @llvm.{name}({types})")
        call = f"call {result} @llvm.{name}({', '.join(operands)})"
        if result == "void":
            self.add(call)
            return ""
        return self.assign(call)

    def call(self, other: Function, *values: Number | Value) -> Int | None:
        """Call another function of the same module."""
        pairs = zip(other.arguments, values, strict=True)
        operands = ", ".join(f"{_type(argument.element)} {value}" for argument, value in pairs)
        if not other.returns:
            self.add(f"call void @{other.name}({operands})")
            return None
        return Int(self, INTEGER, self.assign(f"call i64 @{other.name}({operands})"))

    def give(self, value: Number) -> None:
        """Return from the function, at its end."""
        self.add(f"ret i64 {value}")

    # Memory and variables.

    def variable(self, value: Number | Value) -> Variable:
        """Return a variable with a first value."""
        element = INTEGER if isinstance(value, int) else value.type
        place = f"%p{next(self.numbers)}"
        self.places.append(f"  {place} = alloca {element}, align 64")
        variable = Variable(self, Pointer(self, element, place), Int if isinstance(value, int) else type(value))
        variable.set(value)
        return variable

    def array(self, length: int, element: str = "") -> Pointer:
        """Return the address of a small array on the stack."""
        element, place = element or self.element, f"%p{next(self.numbers)}"
        self.places.append(f"  {place} = alloca [{length} x {element}], align 64")
        return Pointer(self, element, place)

    # Words that several threads read and write.

    def look(self, word: Pointer) -> Int:
        """Read a word that other threads write."""
        return Int(self, INTEGER, self.assign(f"load atomic i64, ptr {word} seq_cst, align 8"))

    def put(self, word: Pointer, value: int) -> None:
        """Write a word that other threads read."""
        self.add(f"store atomic i64 {value}, ptr {word} seq_cst, align 8")

    def rise(self, word: Pointer, by: int) -> Int:
        """Add to a word in one step; return what it was."""
        return Int(self, INTEGER, self.assign(f"atomicrmw add ptr {word}, i64 {by} seq_cst"))

    def claims(self, word: Pointer) -> Flag:
        """Change a word from 0 to 1 in one step; return whether it was 0."""
        both = self.assign(f"cmpxchg ptr {word}, i64 0, i64 1 seq_cst seq_cst")
        return Flag(self, FLAG, self.assign(f"extractvalue {{ i64, i1 }} {both}, 1"))

    def put_address(self, word: Pointer, address: Value | str) -> None:
        """Write an address into a word."""
        self.add(f"store ptr {address}, ptr {word}, align 8")

    def address(self, word: Pointer) -> Pointer:
        """Read an address from a word."""
        return Pointer(self, INTEGER, self.assign(f"load ptr, ptr {word}, align 8"))

    def call_at(self, word: Pointer, *values: Value) -> None:
        """Call the function whose address a word holds; what it returns is ignored."""
        self.add(f"call void {self.address(word)}({', '.join(value.typed for value in values)})")

    def pause(self, target: str) -> None:
        """Let the CPU know that the thread waits for another one."""
        if target == "neon":
            self.intrinsic("void", "aarch64.hint", "i32 1")
        else:
            self.intrinsic("void", "x86.sse2.pause")

    # Integers.

    def minimum(self, a: Number, b: Number) -> Number:
        """Return the smaller of two integers."""
        return self._extreme("smin", min, a, b)

    def maximum(self, a: Number, b: Number) -> Number:
        """Return the larger of two integers."""
        return self._extreme("smax", max, a, b)

    def _extreme(self, name: str, known: Any, a: Number, b: Number) -> Number:
        if isinstance(a, int) and isinstance(b, int):
            return int(known(a, b))
        return Int(self, INTEGER, self.intrinsic(INTEGER, f"{name}.i64", f"i64 {a}", f"i64 {b}"))

    def select(self, flag: Flag, a: Any, b: Any) -> Any:
        """Return `a` where the flag is set, else `b`."""
        like = b if isinstance(a, int) else a
        if isinstance(like, int):
            return Int(self, INTEGER, self.assign(f"select {flag.typed}, i64 {a}, i64 {b}"))
        name = self.assign(f"select {flag.typed}, {like.type} {a}, {like.type} {b}")
        return Pointer(self, like.element, name) if isinstance(like, Pointer) else type(like)(self, like.type, name)

    # Vectors.

    @property
    def zeros(self) -> Vector:
        """A vector of zeros."""
        return Vector(self, self.vector_type, "zeroinitializer")

    def constant(self, number: float) -> Vector:
        """Return a vector whose lanes all hold a number that is known now, and exact in few bits."""
        return self.splat(Vector(self, self.element, f"{number!r}"))

    def splat(self, number: Vector) -> Vector:
        """Return a vector whose lanes all hold a number."""
        first = self.assign(f"insertelement {self.vector_type} poison, {number.typed}, i64 0")
        mask = f"<{self.lanes} x i32> zeroinitializer"
        name = self.assign(f"shufflevector {self.vector_type} {first}, {self.vector_type} poison, {mask}")
        return Vector(self, self.vector_type, name)

    def load(self, place: Pointer, mask: Flag | None = None, align: int = 0) -> Vector:
        """Load a vector; lanes that a mask leaves out are 0, and their memory is not read."""
        align = align or ELEMENT_BYTES[self.element]
        if mask is None:
            return Vector(self, self.vector_type, self.assign(f"load {self.vector_type}, ptr {place}, align {align}"))
        name = f"masked.load.v{self.lanes}{_short(self.element)}.p0"
        self.declared.add(f"declare {self.vector_type} @llvm.{name}(ptr, i32, {self.mask_type}, {self.vector_type})")
        call = f"call {self.vector_type} @llvm.{name}(ptr {place}, i32 {align}, {mask.typed}, {self.zeros.typed})"
        return Vector(self, self.vector_type, self.assign(call))

    def gather(self, place: Pointer, step: Number, mask: Flag) -> Vector:
        """Load every `step`-th element; lanes that a mask leaves out are 0, and their memory is not read."""
        steps = self._spread(step)
        offsets = self.assign(f"mul <{self.lanes} x i64> {steps}, {self._iota()}")
        pointers = self.assign(f"getelementptr {self.element}, ptr {place}, <{self.lanes} x i64> {offsets}")
        types = f"<{self.lanes} x ptr>"
        name = f"masked.gather.v{self.lanes}{_short(self.element)}.v{self.lanes}p0"
        self.declared.add(
            f"declare {self.vector_type} @llvm.{name}({types}, i32, {self.mask_type}, {self.vector_type})"
        )
        align = ELEMENT_BYTES[self.element]
        call = (
            f"call {self.vector_type} @llvm.{name}({types} {pointers}, i32 {align}, {mask.typed}, {self.zeros.typed})"
        )
        return Vector(self, self.vector_type, self.assign(call))

    def store(self, value: Vector, place: Pointer, mask: Flag | None = None, align: int = 0) -> None:
        """Store a vector; memory of lanes that a mask leaves out is not touched."""
        align = align or ELEMENT_BYTES[self.element]
        if mask is None:
            self.add(f"store {value.typed}, ptr {place}, align {align}")
            return
        name = f"masked.store.v{self.lanes}{_short(self.element)}.p0"
        self.declared.add(f"declare void @llvm.{name}({self.vector_type}, ptr, i32, {self.mask_type})")
        self.add(f"call void @llvm.{name}({value.typed}, ptr {place}, i32 {align}, {mask.typed})")

    def fma(self, a: Vector, b: Vector, c: Vector) -> Vector:
        """Return `a * b + c`, rounded once."""
        name = f"fma.v{self.lanes}{_short(self.element)}"
        return Vector(self, self.vector_type, self.intrinsic(self.vector_type, name, a.typed, b.typed, c.typed))

    def shuffle(self, a: Vector, b: Vector, lanes: Sequence[int]) -> Vector:
        """Return lanes of two vectors; those of the second one are numbered after those of the first."""
        chosen = ", ".join(f"i32 {lane}" for lane in lanes)
        name = self.assign(f"shufflevector {a.typed}, {b.typed}, <{len(lanes)} x i32> <{chosen}>")
        return Vector(self, self.vector_type, name)

    def lanes_between(self, low: Number | None, high: Number) -> Flag:
        """Return the mask of the lanes `i` with `low <= i < high`."""
        mask = self._lanes("slt", high)
        return mask if low is None else mask & self._lanes("sge", low)

    def _lanes(self, how: str, bound: Number) -> Flag:
        # Lanes are numbered in 32 bits, for which there are more comparisons; far bounds are clamped to fit.
        near = self.minimum(self.maximum(bound, -1), self.lanes)
        if isinstance(near, int):
            number = str(near)
        else:
            number = self.assign(f"trunc i64 {near} to i32")
        first = self.assign(f"insertelement <{self.lanes} x i32> poison, i32 {number}, i64 0")
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        spread = self.assign(f"shufflevector <{self.lanes} x i32> {first}, <{self.lanes} x i32> poison, {zeros}")
        numbers = ", ".join(f"i32 {lane}" for lane in range(self.lanes))
        name = self.assign(f"icmp {how} <{self.lanes} x i32> <{numbers}>, {spread}")
        return Flag(self, self.mask_type, name)

    def mask_of_bits(self, bits: Number) -> Flag:
        """Return the mask whose lanes are the low bits of an integer."""
        narrow = self.assign(f"trunc i64 {bits} to i{self.lanes}")
        return Flag(self, self.mask_type, self.assign(f"bitcast i{self.lanes} {narrow} to {self.mask_type}"))

    def _iota(self) -> str:
        return "<" + ", ".join(f"i64 {lane}" for lane in range(self.lanes)) + ">"

    def _spread(self, number: Number) -> str:
        first = self.assign(f"insertelement <{self.lanes} x i64> poison, i64 {number}, i64 0")
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        return self.assign(f"shufflevector <{self.lanes} x i64> {first}, <{self.lanes} x i64> poison, {zeros}")

    def prefetch(self, place: Pointer, *, write: bool = False) -> None:
        """Ask for a line of memory before it is needed."""
        self.declared.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.add(f"call void @llvm.prefetch.p0(ptr {place}, i32 {int(write)}, i32 3, i32 1)")

    def is_not_finite(self, sums: Vector) -> Int:
        """Return 1 if a lane is a nan, else 0."""
        lanes = self.assign(f"fcmp uno {sums.typed}, {sums}")
        bits = self.assign(f"bitcast {self.mask_type} {lanes} to i{self.lanes}")
        flag = self.assign(f"icmp ne i{self.lanes} {bits}, 0")
        return Int(self, INTEGER, self.assign(f"zext i1 {flag} to i64"))

    # Control.

    def label(self, name: str) -> None:
        """Begin a block of instructions."""
        self.lines.append(f"{name}:")

    @contextmanager
    def loop(self, start: Number, stop: Number, step: Number = 1) -> Iterator[Int]:
        """Repeat what is written inside, while a counter from `start` is less than `stop`."""
        number = next(self.numbers)
        head, body, end = f"head{number}", f"body{number}", f"end{number}"
        counter = self.variable(start)
        self.add(f"br label %{head}")
        self.label(head)
        value: Int = counter.get()
        self.add(f"br i1 {value < stop}, label %{body}, label %{end}")
        self.label(body)
        yield value
        counter.set(value + step)
        self.add(f"br label %{head}")
        self.label(end)

    @contextmanager
    def repeat(self) -> Iterator[str]:
        """Repeat what is written inside until it jumps, with `leave`, to the label that is given."""
        number = next(self.numbers)
        body, end = f"again{number}", f"left{number}"
        self.add(f"br label %{body}")
        self.label(body)
        yield end
        self.add(f"br label %{body}")
        self.label(end)

    def leave(self, flag: Flag, end: str) -> None:
        """Jump out of a `repeat` if the flag is set."""
        on = f"on{next(self.numbers)}"
        self.add(f"br i1 {flag}, label %{end}, label %{on}")
        self.label(on)

    @contextmanager
    def when(self, flag: Flag) -> Iterator[None]:
        """Do what is written inside if the flag is set."""
        number = next(self.numbers)
        self.add(f"br i1 {flag}, label %then{number}, label %after{number}")
        self.label(f"then{number}")
        yield
        self.add(f"br label %after{number}")
        self.label(f"after{number}")


class Module:
    """Functions that become one object, and call one another."""

    def __init__(self, functions: Sequence[Function]) -> None:
        self.functions = functions

    @property
    def text(self) -> str:
        """The whole module."""
        declared = sorted(set().union(*(function.declared for function in self.functions)))
        return "\n".join([*declared, *(function.text for function in self.functions)]) + "\n"

    @property
    def public(self) -> dict[str, Function]:
        """The functions that Python may call, by name."""
        return {function.name: function for function in self.functions if function.public}


class Record:
    """Numbers and addresses of 8 bytes each, by name, that Python writes into memory and a kernel reads."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.places = {name: place for place, name in enumerate(names)}

    def read(self, memory: Pointer) -> Fields:
        """Read all fields at this point of a function; what is not used costs nothing."""
        return Fields(memory, self.places)

    def packed(self, **values: int) -> list[int]:
        """Return the values in the order of the fields; each field needs one."""
        assert values.keys() == self.places.keys(), values.keys() ^ self.places.keys()
        return [values[name] for name in self.names]


class Fields:
    """The fields of a record, as values of a function."""

    def __init__(self, memory: Pointer, places: dict[str, int]) -> None:
        self._values: dict[str, Int] = {name: memory.of(INTEGER)[place] for name, place in places.items()}
        self._memory, self._places = memory, places

    def __getattr__(self, name: str) -> Int:
        return self._values[name]

    def pointer(self, name: str, element: str) -> Pointer:
        """Return the field of a name as an address; read where the function begins."""
        # LLVM may take addresses that are made of integers for others: it is loaded as an address.
        pointer: Pointer = self._memory.of(POINTER)[self._places[name]]
        return pointer.of(element)


def _type(element: str) -> str:
    """Return the type of an argument."""
    return INTEGER if element == INTEGER else POINTER


def _short(element: str) -> str:
    """Return how the names of LLVM's functions call a type."""
    return {"float": "f32", "double": "f64"}[element]
