"""Float32 in memory and float64 in vectors, of which reproducible results are made."""

from __future__ import annotations

from .emit import Function
from .values import Flag, Int, Pointer, Vector

SLICE_BITS = 20
"""The bits of a slice: products of two of these are so short that sums of 2**13 terms are exact in float64."""


def load_single(code: Function, place: Pointer, mask: Flag) -> Vector:
    """Load numbers of float32 and widen them; lanes that the mask leaves out are 0, and their memory is not read."""
    type = f"<{code.lanes} x float>"
    name = f"masked.load.v{code.lanes}f32.p0"
    code.declared.add(f"declare {type} @llvm.{name}(ptr, i32, {code.mask_type}, {type})")
    loaded = f"call {type} @llvm.{name}(ptr {place}, i32 4, {mask.typed}, {type} zeroinitializer)"
    return widened(code, Vector(code, type, code.assign(loaded)))


def gather_single(code: Function, place: Pointer, step: Int, mask: Flag) -> Vector:
    """Load numbers of float32 that lie `step` numbers apart and widen them, as `load_single` does."""
    type, pointers, numbers = f"<{code.lanes} x float>", f"<{code.lanes} x ptr>", f"<{code.lanes} x i64>"
    lanes = "<" + ", ".join(f"i64 {lane}" for lane in range(code.lanes)) + ">"
    offsets = code.assign(f"mul {numbers} {code.spread(step, 'i64')}, {lanes}")
    places = code.assign(f"getelementptr float, ptr {place}, {numbers} {offsets}")
    name = f"masked.gather.v{code.lanes}f32.v{code.lanes}p0"
    code.declared.add(f"declare {type} @llvm.{name}({pointers}, i32, {code.mask_type}, {type})")
    loaded = f"call {type} @llvm.{name}({pointers} {places}, i32 4, {mask.typed}, {type} zeroinitializer)"
    return widened(code, Vector(code, type, code.assign(loaded)))


def store_single(code: Function, value: Vector, place: Pointer, mask: Flag | None) -> None:
    """Store numbers of float32 but for those that a mask leaves out."""
    if mask is None:
        code.add(f"store {value.typed}, ptr {place}, align 4")
        return
    name = f"masked.store.v{code.lanes}f32.p0"
    code.declared.add(f"declare void @llvm.{name}({value.type}, ptr, i32, {code.mask_type})")
    code.add(f"call void @llvm.{name}({value.typed}, ptr {place}, i32 4, {mask.typed})")


def widened(code: Function, value: Vector) -> Vector:
    """Return numbers of float32, or one, in float64."""
    type = value.type.replace("float", "double")
    return Vector(code, type, code.assign(f"fpext {value.typed} to {type}"))


def narrowed(code: Function, value: Vector) -> Vector:
    """Return numbers of float64, or one, rounded to float32."""
    type = value.type.replace("double", "float")
    return Vector(code, type, code.assign(f"fptrunc {value.typed} to {type}"))


def whole(code: Function, value: Vector) -> Vector:
    """Round to whole numbers, half to even."""
    return _plain(code, "roundeven", value)


def root(code: Function, value: Vector) -> Vector:
    """Return square roots."""
    return _plain(code, "sqrt", value)


def single_splat(code: Function, number: Vector) -> Vector:
    """Return a vector whose lanes all hold one number of float32."""
    name = code.spread(number.name, "float")
    return Vector(code, f"<{code.lanes} x float>", name)


def differing(code: Function, a: Vector, b: Vector, mask: Flag | None) -> Int:
    """Return an integer whose bits say which lanes of two vectors, of those of a mask, differ."""
    flags = Flag(code, code.mask_type, code.assign(f"fcmp une {a.typed}, {b}"))
    flags = flags if mask is None else flags & mask
    bits = code.assign(f"bitcast {code.mask_type} {flags} to i{code.lanes}")
    return Int(code, "i64", code.assign(f"zext i{code.lanes} {bits} to i64"))


def larger(code: Function, a: Vector, b: Vector) -> Vector:
    """Return the larger one of two numbers in each lane, and the second one where either is a nan."""
    flags = code.assign(f"fcmp ogt {a.typed}, {b}")
    type = code.mask_type if a.type == code.vector_type else "i1"
    return code.select(Flag(code, type, flags), a, b)  # type: ignore[no-any-return]


def magnitude(code: Function, value: Vector) -> Vector:
    """Return magnitudes."""
    return _plain(code, "fabs", value)


def smaller(code: Function, a: Vector, b: Vector) -> Vector:
    """Return the smaller one of two numbers, and the second one where either is a nan."""
    return code.select(Flag(code, "i1", code.assign(f"fcmp olt {a.typed}, {b}")), a, b)  # type: ignore[no-any-return]


def as_number(code: Function, integer: Int) -> Vector:
    """Return an integer as a number of float64."""
    return Vector(code, "double", code.assign(f"sitofp i64 {integer} to double"))


def largest_lane(code: Function, value: Vector) -> Vector:
    """Return the largest number of a vector without nans."""
    half = code.lanes // 2
    while half:
        other = code.shuffle(value, value, [(lane + half) % code.lanes for lane in range(code.lanes)])
        value, half = larger(code, value, other), half // 2
    return Vector(code, code.element, code.assign(f"extractelement {value.typed}, i64 0"))


def bits_of(code: Function, number: Vector) -> Int:
    """Return the bits of one number of float64."""
    return Int(code, "i64", code.assign(f"bitcast {number.typed} to i64"))


def of_bits(code: Function, bits: Int) -> Vector:
    """Return the number of float64 that has these bits."""
    return Vector(code, "double", code.assign(f"bitcast i64 {bits} to double"))


def quotient(code: Function, a: Vector, b: Vector) -> Vector:
    """Return a quotient."""
    return Vector(code, a.type, code.assign(f"fdiv {a.typed}, {b}"))


def scalar(code: Function, number: float) -> Vector:
    """Return one number of float64 that is known now."""
    return Vector(code, "double", f"{number!r}")


def _plain(code: Function, name: str, value: Vector) -> Vector:
    lanes, _, element = value.type.strip("<>").rpartition(" x ")
    short = {"float": "f32", "double": "f64"}[element]
    full = f"{name}.v{lanes}{short}" if lanes else f"{name}.{short}"
    return Vector(code, value.type, code.intrinsic(value.type, full, value.typed))


def cut(code: Function, value: Vector) -> tuple[Vector, Vector]:
    """Cut whole numbers into the lowest 20 bits and the rest."""
    upper = whole(code, value * code.constant(2.0**-SLICE_BITS))
    return code.fma(upper, code.constant(-(2.0**SLICE_BITS)), value), upper


class ExactSum:
    """A sum of products of whole numbers of at most 40 bits, sign included, as slices that are added up exactly.

    Each number is cut into two of 20 bits, so the sum has parts that count 1, 2**20 and 2**40; a fourth one counts
    2**60. `carry` leaves 20 bits in the others: once in 2**13 products a lane, of which there may be 2**34.
    """

    def __init__(self, code: Function) -> None:
        self.code = code
        self.parts = [code.variable(code.zeros) for _ in range(4)]

    def add(self, a: Vector, b: Vector) -> None:
        """Add the products of whole numbers."""
        code, (low, mixed, high) = self.code, self.parts[:3]
        (low_a, high_a), (low_b, high_b) = cut(code, a), cut(code, b)
        low.set(code.fma(low_a, low_b, low.get()))
        mixed.set(code.fma(low_a, high_b, code.fma(high_a, low_b, mixed.get())))
        high.set(code.fma(high_a, high_b, high.get()))

    def carry(self) -> None:
        """Leave 20 bits in all parts but the last."""
        for lower, upper in zip(self.parts[:-1], self.parts[1:], strict=True):
            rest, carried = cut(self.code, lower.get())
            lower.set(rest)
            upper.set(upper.get() + carried)

    def rounded(self) -> Vector:
        """Return the sum of all lanes in float64, rounded to odd, so that float32 gets it as if it were exact.

        Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd"
        (IEEE Transactions on Computers, 2008), section 3.
        """
        code = self.code
        self.carry()
        # Totals are exact, and so is what is below 2**40.
        totals = [code.total(part.get()) for part in self.parts]
        scaled = [total * scalar(code, 2.0 ** (n * SLICE_BITS)) for n, total in enumerate(totals)]
        below = scaled[0] + scaled[1]
        high, rest = _two_sum(scaled[2], scaled[3])
        # There is a rest only beside a sum of more than 2**93, so it is a multiple of 2**40, and of 2**43 at most.
        value, error = _two_sum(high, rest + below)
        return self._to_odd(value, error)

    def _to_odd(self, value: Vector, rest: Vector) -> Vector:
        """Return the one of the two numbers around `value + rest` whose last bit is set, if there is a rest."""
        code = self.code
        bits, signs = bits_of(code, value), bits_of(code, rest)
        is_exact = Flag(code, "i1", code.assign(f"fcmp oeq {rest.typed}, 0.0"))
        # Numbers further from 0 have larger bits.
        differ = Int(code, "i64", code.assign(f"xor i64 {bits}, {signs}")) < 0
        step = code.select(differ, -1, code.variable(1).get())
        step = code.select(is_exact | (bits & 1).equals(1), 0, step)
        return of_bits(code, bits + step)


def _two_sum(a: Vector, b: Vector) -> tuple[Vector, Vector]:
    """Return a sum rounded to float64, and the rest (Knuth, "The art of computer programming", volume 2, 4.2.2)."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)
