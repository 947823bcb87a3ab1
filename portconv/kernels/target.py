"""The CPU that kernels are made for: how long its vectors are, and how many of them it has."""

from __future__ import annotations

import os
from typing import NamedTuple

from .. import forks
from .dots import BF16, MADD, VNNI
from .values import ELEMENT_BYTES

VARIABLE = "PORTCONV_KERNEL_TARGET"
"""The environment variable that names another target than that of this CPU: "avx2" on a CPU with AVX-512."""


class Target(NamedTuple):
    """What a kernel is made for.

    Attributes
    ----------
    name : str
        The instructions that it uses: "avx512", "avx2" or "neon".
    triple, cpu, features : str
        As LLVM names them.
    lanes : int
        The numbers of a vector.
    filters, vectors : int
        The filters and the vectors of the largest tile of sums that stays in registers.
    element : str
        The type of the numbers, as LLVM calls it: "float" or "double".
    """

    name: str
    triple: str
    cpu: str
    features: str
    lanes: int
    filters: int
    vectors: int
    element: str = "float"

    def of(self, element: str) -> Target:
        """Return the target for numbers of another type, of which a vector has as many as there is room for."""
        lanes = self.lanes * ELEMENT_BYTES[self.element] // ELEMENT_BYTES[element]
        return self._replace(element=element, lanes=lanes)

    @property
    def number(self) -> int:
        """The bytes of a number."""
        return ELEMENT_BYTES[self.element]

    @property
    def permutes(self) -> bool:
        """Whether kernels have lanes of vectors in any order, as AVX-512 does for float32."""
        return self.name == "avx512" and self.element == "float"

    @property
    def dots(self) -> dict[str, str]:
        """The instructions that the CPU has for products of packs, by the type of the packs (see `dots`)."""
        has = self.features.split(",")
        found = MADD if self.name in ("avx512", "avx2") else {}
        if self.name == "avx512":
            found = {**found, **(VNNI if "+avx512vnni" in has else {}), **(BF16 if "+avx512bf16" in has else {})}
        return found

    @property
    def halves_vectors(self) -> bool:
        """Whether the CPU computes a vector of AVX-512 half by half, so that half a vector takes half the time."""
        return self.cpu == "znver4"

    @property
    def words(self) -> str:
        """What a user reads."""
        return f"{WORDS[self.name]} ({self.cpu})"


WORDS = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON"}
SHAPES = {"avx512": (16, 8, 3), "avx2": (8, 4, 3), "neon": (4, 6, 4)}
"""The lanes, and the filters and vectors of a tile. AVX2 has 16 registers, the others 32."""
NEEDED = {
    "avx512": ("avx512f", "avx512vl", "avx512dq", "avx512bw", "fma", "avx2"),
    "avx2": ("avx2", "fma"),
    "neon": ("neon",),
}
"""The features that each needs, in LLVM's words."""


class NoTarget(Exception):
    """The reason why there are no kernels for this CPU."""


def of_host(llvm: object) -> Target:
    """Return the target of this CPU, or the one that the environment names, as LLVM's binding finds it."""
    binding = forks.imported("llvmlite.binding")
    features = dict(binding.get_host_cpu_features())
    triple = str(binding.get_process_triple())
    found = [name for name, needed in NEEDED.items() if all(features.get(one) for one in needed)]
    if triple.startswith(("aarch64", "arm64")):
        found = ["neon"]
    asked = os.environ.get(VARIABLE, "").strip().lower()
    if asked and asked not in SHAPES:
        raise NoTarget(f"{VARIABLE}: got {asked[:40]!r}, expected one of {', '.join(SHAPES)}")
    if asked and asked not in found:
        raise NoTarget(f"{VARIABLE}: got {asked!r}, which this CPU has not")
    if not found:
        raise NoTarget(f"this CPU ({binding.get_host_cpu_name()}) has neither AVX2 with FMA nor NEON")
    name = asked or found[0]
    if name == "avx2" and "avx512" in found:
        return cross("avx2", triple)
    flat = ",".join(f"{'+' if on else '-'}{feature}" for feature, on in sorted(features.items()))
    return Target(name, triple, str(binding.get_host_cpu_name()), flat, *SHAPES[name])


def cross(name: str, triple: str = "") -> Target:
    """Return a target by its name, for a typical CPU of its kind."""
    cpus = {"avx512": "skylake-avx512", "avx2": "haswell", "neon": "neoverse-n1"}
    default = "aarch64-unknown-linux-gnu" if name == "neon" else "x86_64-unknown-linux-gnu"
    return Target(name, triple or default, cpus[name], "", *SHAPES[name])
