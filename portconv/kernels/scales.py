"""The powers of two that make whole numbers of a group of numbers: the largest becomes one of 40 bits, sign included.

The kernels of this family read

- "numbers": float32, such as filters;
- "magnitudes": the largest magnitudes of planes of cells, in float64. This kernel also looks at the factors of the
  other operand and at the biases: whether each result, with and without its bias, is zero or a normal number.
"""

from __future__ import annotations

from typing import NamedTuple

from .doubles import bits_of, larger, largest_lane, load_single, magnitude, of_bits, widened
from .emit import Function, Module
from .record import Record
from .share import PLAN_HEAD, SHARE, driver
from .sizes import Planned, blocks, ceiling
from .target import Target
from .values import Flag, Int, Pointer

VARIANTS = ("numbers", "magnitudes")
NUMBERS_OF_SHARE = 1 << 15
CYCLES_OF_VECTOR, CYCLES_OF_GROUP = 3.0, 20.0
"""About how many vectors are multiplied in the time that a vector and a group take."""

BITS = 39
"""The largest number of a group becomes 2 to this power at most."""
LEAST = -126
"""The exponent of the smallest normal number of float32. One further up by as many as quantised numbers have bits is
that of the smallest largest number: below it quanta are so small that subnormal numbers would not become zero."""
LEAST_BIAS, MOST = -100, 126
"""Biases from 2 to this power on, or of zero, have normal sums. Two numbers below 2 to the other have finite ones."""
MANTISSA, OFFSET = 52, 1023
"""How float64 is written: the bits of the fraction, and what is added to the exponent."""

PLAN = Record(
    *(*PLAN_HEAD, "groups", "groups_of_share", "inner", "repeats", "tail", "step", "copies"),
    *("others", "biases", "highest"),
)
"""The plan in memory: `others` factors and so many `biases` are looked at. The exponents of two groups add up to no
more than `highest`, or results may be infinite."""


class Groups(NamedTuple):
    """How an array (outer, repeats, inner, tail) is cut into groups, one for each of its first and third axis."""

    outer: int
    repeats: int
    inner: int
    tail: int
    copies: int = 1
    """So many times each factor is written."""


def plan_of(target: Target, variant: str, groups: Groups, others: int = 0, biases: int = 0, terms: int = 1) -> Planned:
    """Plan the factors of groups; sums of so many terms are made with `others` of the other operand."""
    outer, repeats, inner, tail, copies = groups
    count, size = outer * inner, repeats * tail
    shares, of_share = blocks(count, max(1, NUMBERS_OF_SHARE // max(1, size)) if variant == "numbers" else count)
    values = PLAN.packed(
        **{"phases": 1, "shares_first": 0, "shares_last": shares, "groups": count, "groups_of_share": of_share},
        **{"inner": inner, "repeats": repeats, "tail": tail, "step": inner * tail, "copies": copies},
        **{"others": others, "biases": biases, "highest": MOST - (terms - 1).bit_length()},
    )
    cycles = count * (repeats * ceiling(tail, target.lanes) * CYCLES_OF_VECTOR + CYCLES_OF_GROUP)
    return Planned(variant, values, (), shares, 0, {}, cycles=cycles)


def module(target: Target, variant: str) -> Module:
    """Write a kernel: it returns 0 if all numbers are finite and all results zero or normal numbers."""
    share = _Share(target, variant).code
    return Module([share, *driver(target, share)])


class _Share:
    """The function that finds the factors of some groups."""

    def __init__(self, target: Target, variant: str) -> None:
        self.code = code = Function("share", SHARE, target, returns=True)
        memory, self.x, self.others, self.biases, self.out, *_, index = code.given
        self.plan, self.lanes, self.is_single = PLAN.read(memory), target.lanes, variant == "numbers"
        self.check, self.bad = code.variable(code.zeros), code.variable(0)
        self.lowest, self.highest = code.variable(0), code.variable(0)
        first = index * self.plan.groups_of_share
        self.lowest.set(MOST)
        self.highest.set(-MOST)
        with code.loop(first, code.minimum(first + self.plan.groups_of_share, self.plan.groups)) as group:
            self.find(group)
        if not self.is_single:
            self.look_at_others()
            self.look_at_biases()
        code.give(code.is_not_finite(self.check.get()) + self.bad.get())

    def find(self, group: Int) -> None:
        """Find the factor of a group."""
        code, plan = self.code, self.plan
        numbers: Pointer = self.x.of("float") if self.is_single else self.x
        start = numbers + (group // plan.inner * plan.repeats * plan.step + group % plan.inner * plan.tail)
        largest = code.variable(code.zeros)
        with code.loop(0, plan.repeats) as number, code.loop(0, plan.tail, self.lanes) as at:
            place, mask = start + (number * plan.step + at), code.lanes_between(None, plan.tail - at)
            value = magnitude(code, load_single(code, place, mask) if self.is_single else code.load(place, mask))
            code.look_at(self.check, value)
            largest.set(larger(code, value, largest.get()))
        bits = bits_of(code, largest_lane(code, largest.get()))
        # The exponent of the power of two at or above the number.
        above = (bits + ((1 << MANTISSA) - 1)) >> MANTISSA
        exponent = code.select(bits.equals(0), 0, above - OFFSET)
        self.note(~bits.equals(0) & (bits < (OFFSET + LEAST + BITS + 1) << MANTISSA))
        self.lowest.set(code.minimum(self.lowest.get(), exponent))
        self.highest.set(code.maximum(self.highest.get(), exponent))
        factor = of_bits(code, (OFFSET + BITS - exponent) << MANTISSA)
        with code.loop(0, plan.copies) as copy:
            self.out[group * plan.copies + copy] = factor

    def look_at_others(self) -> None:
        """Look whether products with the other operand's groups may be subnormal or infinite."""
        code, plan = self.code, self.plan
        lowest, highest = code.variable(self.lowest.get()), code.variable(self.highest.get())
        with code.loop(0, plan.others) as number:
            exponent = OFFSET + BITS - (bits_of(code, self.others[number]) >> MANTISSA)
            lowest.set(code.minimum(lowest.get(), self.lowest.get() + exponent))
            highest.set(code.maximum(highest.get(), self.highest.get() + exponent))
        with code.when(~plan.others.equals(0)):
            self.note((lowest.get() - 2 * BITS < LEAST) | (highest.get() > plan.highest))

    def look_at_biases(self) -> None:
        """Look whether a sum with a bias may be subnormal or infinite."""
        code, biases = self.code, self.biases.of("float")
        with code.loop(0, self.plan.biases) as number:
            bits = bits_of(code, magnitude(code, widened(code, biases[number])))
            is_small = ~bits.equals(0) & (bits < (OFFSET + LEAST_BIAS) << MANTISSA)
            self.note(is_small | (bits >= (OFFSET + MOST) << MANTISSA))

    def note(self, flag: Flag) -> None:
        """Let the call return what is not 0 if the flag is set."""
        self.bad.set(self.code.select(flag, 1, self.bad.get()))
