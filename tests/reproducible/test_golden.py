"""Reproducible results as they are for good: hashes, which other versions, libraries and machines must give again.

`golden.json` holds problems and the hashes of their results, as `rational` works them out by definition; what the
package computes is held against both. A result that changes is a change of the definition, and with it of every result
that somebody may have kept: it is made on purpose, has an entry of its own in CHANGELOG.md, and only then is the file
written anew, from the definition and never from what the package computes, by ``python -m reproducible.test_golden
--write`` in the folder ``tests``.
The command says which hashes changed; of a problem that is new to the file, it adds them.

Whoever has whole numbers can make the operands, in any language:

- The state is the problem's `seed`; a step takes it to ``(6364136223846793005 * state + 1442695040888963407) % 2**64``.
  A draw below n is a step, then ``(state >> 32) * n >> 32``.
- The operands x, w, b, where there is one, and dout are drawn in that order, each in C order of its shape, and each
  complex number as its real part, then its imaginary part.
- A part is drawn as a pattern of its IEEE 754 format, of E bits of exponent and F of fraction (5 and 10 for float16, 8
  and 7 for bfloat16, 8 and 23 for float32, 11 and 52 for float64). First, a draw below 2 is its sign; a draw below
  2**26, times 2**26, and another added, shifted right by 52 - F, are its fraction; and `exponents[0]` with a draw below
  ``exponents[1] - exponents[0] + 1`` added is its exponent: with 2**(E - 1) - 1 added, the pattern's. Where the problem
  has `rare` values, a draw below 8 that is 0 is followed by one below their number, which says which of them the part
  is instead, of the same sign: "zero", "subnormal" (the fraction, its last bit set), "infinity" or "nan" (the same
  fraction beneath an exponent of ones).

The hash of a result is SHA-256 of its dtype's name, a space, its shape as numbers with commas between them, a newline,
and its elements in C order and little endian, real parts before imaginary ones, hexadecimal. "out" is what the forward
call gives, "dx", "dw" and "db" what the backward call does.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.rational import PARTS, Layer, array_of, part_format, promoted

import portconv

# NumPy warns of results that are too large or nan: tests/test_warnings.py says of which.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered in add:RuntimeWarning")

FILE = Path(__file__).parents[1] / "golden.json"
PROBLEMS: dict[str, Any] = json.loads(FILE.read_text())
ROLES = ("x", "w", "b", "dout")
ON_JAX = (
    "float32, depthwise",
    "float64, 2d of all options",
    "float64, transposed of all options",
    "float64, about the smallest normal number",
    "float16, about the largest number",
    "bfloat16, reflect beyond the input",
    "complex64, transposed",
    "complex128, 1d",
    "float32, not finite",
    "float32 beside float64",
    "float32, sums of 2**15 products and more",
)
"""The problems on JAX without --every."""


def draws(seed: int) -> Callable[[int], int]:
    state = seed

    def below(n: int) -> int:
        nonlocal state
        state = (6364136223846793005 * state + 1442695040888963407) % 2**64
        return (state >> 32) * n >> 32

    return below


def pattern(below: Callable[[int], int], name: str, exponents: list[int], rare: list[str]) -> int:
    form = part_format(name)
    sign = below(2) << (form.exponent + form.fraction)
    fraction = ((below(2**26) << 26) + below(2**26)) >> (52 - form.fraction)
    exponent = exponents[0] + below(exponents[1] - exponents[0] + 1) + 2 ** (form.exponent - 1) - 1
    if rare and below(8) == 0:
        return (
            sign
            + {
                "zero": 0,
                "subnormal": fraction | 1,
                "infinity": form.infinity,
                "nan": form.infinity + (fraction | 1),
            }[rare[below(len(rare))]]
        )
    return sign + (exponent << form.fraction) + fraction


def operands(problem: dict[str, Any]) -> dict[str, np.ndarray]:
    below, found = draws(problem["seed"]), {}
    for role in ROLES:
        if role in problem["shapes"]:
            name, shape = problem["dtypes"][role], tuple(problem["shapes"][role])
            each = 2 if name in PARTS else 1
            many = int(np.prod(shape)) * each
            drawn = [pattern(below, name, problem["exponents"], problem.get("rare", [])) for _ in range(many)]
            found[role] = array_of([drawn[i::each] for i in range(each)], shape, name)
    return found


def truths(problem: dict[str, Any]) -> dict[str, np.ndarray]:
    """The results by definition."""
    given, options = operands(problem), problem["options"]
    x, w, b, dout = (given.get(role) for role in ROLES)
    stride, dilation, pads = options["stride"], options["dilation"], options["padding"]
    own = {"groups": options["groups"], "mode": options.get("padding_mode", "zeros")}
    if problem["function"] == "conv":
        layer = Layer(x.shape, w.shape, tuple(stride), tuple(map(tuple, pads)), tuple(dilation), **own)
        return layer.all(x, w, b, dout)
    # That of the convolution that it is adjoint to, with as much padding after as leaves it outputs of the shape of x.
    along = zip(x.shape[2:], dout.shape[2:], w.shape[2:], stride, dilation, pads, strict=True)
    both = tuple((lo, (n - 1) * s + d * (k - 1) + 1 - lo - out) for n, out, k, s, d, (lo, _) in along)
    return Layer(dout.shape, w.shape, tuple(stride), both, tuple(dilation), **own).all_transposed(x, w, b, dout)


def digest(array: np.ndarray) -> str:
    own = part_format(array.dtype.name).bits // 8
    patterns = np.ascontiguousarray(array).reshape(*array.shape, 1).view(f"u{own}").astype(f"<u{own}")
    header = f"{array.dtype.name} {','.join(map(str, array.shape))}\n"
    return hashlib.sha256(header.encode() + patterns.tobytes()).hexdigest()


every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def needs_bfloat16(problem):
    if "bfloat16" in problem["dtypes"].values():
        pytest.importorskip("ml_dtypes", reason="ml_dtypes, NumPy's bfloat16, is not installed")


@every_problem
def test_the_definition_gives_what_is_written(problem):
    needs_bfloat16(problem)
    assert {name: digest(array) for name, array in truths(problem).items()} == problem["sha256"]


@every_problem
def test_every_library_gives_what_is_written(target, problem, request):
    every = request.config.getoption("--every")
    if target.backend.name == "jax" and not every and problem not in [PROBLEMS[label] for label in ON_JAX]:
        pytest.skip("JAX compiles each shape anew, and all problems take it minutes: --every runs all")
    names = [problem["dtypes"][role] for role in ROLES if role in problem["shapes"]]
    for name in (*names, "float64"):
        if not target.backend.holds(name, target.array(np.zeros(1, "float32"))):
            pytest.skip(f"{target.backend.name} has no {name} here")
    needs_bfloat16(problem)
    given = {}
    for role, array in operands(problem).items():
        name = array.dtype.name
        # PyTorch takes no bfloat16 of ml_dtypes'; from float32 it makes the same numbers.
        widened = name == "bfloat16" and target.backend.name == "torch"
        own = array.astype("float32") if widened else np.array(array)
        given[role] = target.backend.asarray(own, dtype=name, device=target.device)
    if len({*names}) > 1:
        found = target.backend.dtype_name(target.backend.xp.result_type(*(a.dtype for a in given.values())))
        if found != promoted(*names):
            pytest.skip(f"{target.backend.name} promotes {', '.join(names)} to {found}")
    transposed = problem["function"] == "conv_transpose"
    forward, backward = (
        (portconv.conv_transpose_forward, portconv.conv_transpose_backward)
        if transposed
        else (portconv.conv_forward, portconv.conv_backward)
    )
    out, cache = forward(given["x"], given["w"], given.get("b"), **problem["options"], precision="reproducible")
    found = {"out": out, **backward(given["dout"], cache)._asdict()}
    hashes = {name: digest(target.numpy(array)) for name, array in found.items() if array is not None}
    assert hashes == problem["sha256"]


def write() -> None:
    """Write the hashes of all problems anew, from the definition, and say which changed."""
    for label, problem in PROBLEMS.items():
        hashes = {name: digest(array) for name, array in truths(problem).items()}
        before = problem.get("sha256")
        if before != hashes:
            print(f"{label}: {'new' if before is None else 'CHANGED'}")
        problem["sha256"] = hashes
    lines = []
    for label, problem in PROBLEMS.items():
        parts = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in problem.items() if key != "sha256"]
        hashes = [f"      {json.dumps(key)}: {json.dumps(value)}" for key, value in problem["sha256"].items()]
        parts.append('    "sha256": {\n' + ",\n".join(hashes) + "\n    }")
        lines.append(f"  {json.dumps(label)}: {{\n" + ",\n".join(parts) + "\n  }")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit("usage, in the folder tests: python -m reproducible.test_golden --write")
    write()
