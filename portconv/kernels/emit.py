"""Instructions for LLVM, written by functions of Python.

A `Function` collects the text of one function of LLVM's language, so that a kernel reads like the loop it becomes. The
language is documented in https://llvm.org/docs/LangRef.html. A variable is a place on the stack (`alloca`), which
LLVM's pass "sroa" turns into a register.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

from . import dots
from .values import (
    ELEMENT_BYTES,
    FLAG,
    INTEGER,
    LINE,
    NAMED,
    NUMBERS,
    PACKS,
    POINTER,
    SHORT_NAMES,
    WHOLE,
    Flag,
    Int,
    Number,
    Pointer,
    Value,
    Variable,
    Vector,
    Vectors,
)


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
    target : Vectors
        The lanes of a vector, and the type of its numbers.
    public : bool
        Whether other objects may call it.
    returns : bool
        Whether it returns an integer.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[Argument],
        target: Vectors,
        *,
        public: bool = False,
        returns: bool = False,
    ) -> None:
        lanes, element = target.lanes, target.element
        self.name, self.arguments, self.lanes, self.element = name, arguments, lanes, element
        self.dots = target.dots
        self.public, self.returns = public, returns
        self.lines: list[str] = []
        self.places: list[str] = []
        self.declared: set[str] = set()
        self.numbers = count()
        self.vector_type, self.mask_type = f"<{lanes} x {element}>", f"<{lanes} x {FLAG}>"
        self.given: list[Any] = [
            Int(self, INTEGER, f"%{name}")
            if element == INTEGER
            else Pointer(self, self.element if element == NUMBERS else element.removeprefix("*"), f"%{name}")
            for name, element in arguments
        ]

    @property
    def bytes(self) -> int:
        """The bytes of a vector."""
        return self.lanes * ELEMENT_BYTES[self.element]

    @property
    def numbers_of_line(self) -> int:
        """The numbers of a line of the cache."""
        return LINE // ELEMENT_BYTES[self.element]

    @property
    def text(self) -> str:
        """The whole function."""
        types = ", ".join(f"{_type(element)} %{name}" for name, element in self.arguments)
        kind = "define" if self.public else "define internal"
        result = INTEGER if self.returns else "void"
        end = [] if self.returns else ["  ret void"]
        # Vectors that do not fit into registers are kept on the stack, where none may cross a line of the cache.
        head = f"{kind} {result} @{self.name}({types}) nounwind alignstack(64) {{"
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

    def call(self, other: Function, *values: Number | Value) -> Int:
        """Call another function of the same module, and return what it returns."""
        return Int(self, INTEGER, self.assign(f"call i64 @{other.name}({other.given_as(values)})"))

    def run(self, other: Function, *values: Number | Value) -> None:
        """Call another function of the same module that returns nothing."""
        self.add(f"call void @{other.name}({other.given_as(values)})")

    def given_as(self, values: Sequence[Number | Value]) -> str:
        """Return the arguments of a call of this function."""
        pairs = zip(self.arguments, values, strict=True)
        return ", ".join(f"{_type(argument.element)} {value}" for argument, value in pairs)

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

    # Integers.

    def minimum(self, a: Number, b: Number) -> Int:
        """Return the smaller of two integers."""
        return self._extreme("smin", a, b)

    def maximum(self, a: Number, b: Number) -> Int:
        """Return the larger of two integers."""
        return self._extreme("smax", a, b)

    def _extreme(self, name: str, a: Number, b: Number) -> Int:
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
        name = f"masked.load.v{self.lanes}{SHORT_NAMES[self.element]}.p0"
        self.declared.add(f"declare {self.vector_type} @llvm.{name}(ptr, i32, {self.mask_type}, {self.vector_type})")
        call = f"call {self.vector_type} @llvm.{name}(ptr {place}, i32 {align}, {mask.typed}, {self.zeros.typed})"
        return Vector(self, self.vector_type, self.assign(call))

    def gather(self, place: Pointer, step: Number, mask: Flag) -> Vector:
        """Load every `step`-th element; lanes that a mask leaves out are 0, and their memory is not read."""
        steps = self.spread(step, INTEGER)
        offsets = self.assign(f"mul <{self.lanes} x i64> {steps}, {self._numbers(INTEGER)}")
        pointers = self.assign(f"getelementptr {self.element}, ptr {place}, <{self.lanes} x i64> {offsets}")
        types = f"<{self.lanes} x ptr>"
        name = f"masked.gather.v{self.lanes}{SHORT_NAMES[self.element]}.v{self.lanes}p0"
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
        name = f"masked.store.v{self.lanes}{SHORT_NAMES[self.element]}.p0"
        self.declared.add(f"declare void @llvm.{name}({self.vector_type}, ptr, i32, {self.mask_type})")
        self.add(f"call void @llvm.{name}({value.typed}, ptr {place}, i32 {align}, {mask.typed})")

    def fma(self, a: Vector, b: Vector, c: Vector) -> Vector:
        """Return `a * b + c`, rounded once; of packs `c` and the sum of their products."""
        return dots.added(self, (a, b), c) if self.element in PACKS else self.multiplied(a, b, c)

    def multiplied(self, a: Vector, b: Vector, c: Vector) -> Vector:
        """Return `a * b + c` of numbers that are no packs."""
        if self.element in WHOLE:
            return a * b + c
        name = f"fma.v{self.lanes}{SHORT_NAMES[self.element]}"
        return Vector(self, self.vector_type, self.intrinsic(self.vector_type, name, a.typed, b.typed, c.typed))

    def shuffle(self, a: Vector, b: Vector, lanes: Sequence[int]) -> Vector:
        """Return lanes of two vectors; those of the second one are numbered after those of the first."""
        chosen = ", ".join(f"i32 {lane}" for lane in lanes)
        name = self.assign(f"shufflevector {a.typed}, {b.typed}, <{len(lanes)} x i32> <{chosen}>")
        return Vector(self, self.vector_type, name)

    def every(self, step: int, vectors: Sequence[Vector], start: int = 0) -> Vector:
        """Return every `step`-th number, from `start` on, of vectors that lie side by side."""
        wanted = [divmod(step * lane + start, self.lanes) for lane in range(self.lanes)]
        result = vectors[0]
        for number, vector in enumerate(vectors):
            # Lanes that are already there stay, and those that this vector has are taken from it.
            order = [self.lanes + cell if at == number else lane for lane, (at, cell) in enumerate(wanted)]
            result = self.shuffle(result if number else vector, vector, order)
        return result

    def total(self, vector: Vector) -> Vector:
        """Add up the lanes of a vector: halves of it, then halves of these, and so on."""
        half = self.lanes // 2
        while half:
            vector = vector + self.shuffle(vector, vector, [(lane + half) % self.lanes for lane in range(self.lanes)])
            half //= 2
        return Vector(self, self.element, self.assign(f"extractelement {vector.typed}, i64 0"))

    def lanes_between(self, low: Number | None, high: Number) -> Flag:
        """Return the mask of the lanes `i` with `low <= i < high`."""
        mask = self._lanes("slt", high)
        return mask if low is None else mask & self._lanes("sge", low)

    def _lanes(self, how: str, bound: Number) -> Flag:
        # Lanes are numbered in 32 bits, for which there are more comparisons; far bounds are clamped to fit.
        near = self.minimum(self.maximum(bound, -1), self.lanes)
        spread = self.spread(self.assign(f"trunc i64 {near} to i32"), "i32")
        name = self.assign(f"icmp {how} <{self.lanes} x i32> {self._numbers('i32')}, {spread}")
        return Flag(self, self.mask_type, name)

    def mask_of_bits(self, bits: Number) -> Flag:
        """Return the mask whose lanes are the low bits of an integer."""
        if self.lanes > 8:
            narrow = self.assign(f"trunc i64 {bits} to i{self.lanes}")
            return Flag(self, self.mask_type, self.assign(f"bitcast i{self.lanes} {narrow} to {self.mask_type}"))
        # CPUs without registers for masks would take the bits one by one.
        spread, powers = self.spread(self.assign(f"trunc i64 {bits} to i32"), "i32"), self._numbers("i32", 2)
        chosen = self.assign(f"and <{self.lanes} x i32> {spread}, {powers}")
        return Flag(self, self.mask_type, self.assign(f"icmp ne <{self.lanes} x i32> {chosen}, zeroinitializer"))

    def _numbers(self, type: str, base: int = 0) -> str:
        """Return the numbers of the lanes, or the powers of `base` with these exponents."""
        return "<" + ", ".join(f"{type} {base**lane if base else lane}" for lane in range(self.lanes)) + ">"

    def spread(self, number: Number | str, type: str) -> str:
        """Return a vector of integers that are all the same."""
        first = self.assign(f"insertelement <{self.lanes} x {type}> poison, {type} {number}, i64 0")
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        return self.assign(f"shufflevector <{self.lanes} x {type}> {first}, <{self.lanes} x {type}> poison, {zeros}")

    def prefetch(self, place: Pointer, *, write: bool = False) -> None:
        """Ask for a line of memory before it is needed."""
        self.declared.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.add(f"call void @llvm.prefetch.p0(ptr {place}, i32 {int(write)}, i32 3, i32 1)")

    def look_at(self, check: Variable, value: Vector) -> None:
        """Let a check become nan where a number is not finite."""
        if self.element in WHOLE:
            return
        check.set(self.multiplied(value, self.zeros, check.get()))

    def is_not_finite(self, sums: Vector) -> Int:
        """Return 1 if a lane is a nan, else 0."""
        if self.element in WHOLE:
            return Int(self, INTEGER, "0")
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
        named = [f"{name} = type {type}" for name, type in NAMED.items()]
        return "\n".join([*named, *declared, *(function.text for function in self.functions)]) + "\n"

    @property
    def public(self) -> dict[str, Function]:
        """The functions that Python may call, by name."""
        return {function.name: function for function in self.functions if function.public}


def _type(element: str) -> str:
    """Return the type of an argument."""
    return INTEGER if element == INTEGER else POINTER
