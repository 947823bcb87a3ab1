"""Targets: the host's, those that a name gives, and what LLVM makes for each."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("llvmlite", reason="kernels are compiled with llvmlite: pip install 'portconv[kernels]'")

from portconv.kernels import compile, target
from portconv.kernels.families import FAMILIES, kernels
from portconv.kernels.target import NEEDED, NoTarget, cross, of_host

X86 = "x86_64-unknown-linux-gnu"


def host(monkeypatch, features, triple=X86, asked=""):
    """The target of a host with these features."""
    llvm = compile.binding()
    known = {name: False for needed in NEEDED.values() for name in needed}
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: {**known, **dict.fromkeys(features, True)})
    monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: "host")
    monkeypatch.setattr(llvm, "get_process_triple", lambda: triple)
    monkeypatch.setenv(target.VARIABLE, asked)
    return of_host(llvm)


@pytest.mark.parametrize(
    ("features", "triple", "name", "lanes"),
    [
        (NEEDED["avx512"], X86, "avx512", 16),
        (NEEDED["avx2"], X86, "avx2", 8),
        (("avx512f", *NEEDED["avx2"]), X86, "avx2", 8),  # of AVX-512, the first parts alone
        (NEEDED["neon"], "aarch64-unknown-linux-gnu", "neon", 4),
        ((), "arm64-apple-darwin24", "neon", 4),
    ],
)
def test_a_host_has_the_longest_vectors_that_its_features_allow(monkeypatch, features, triple, name, lanes):
    found = host(monkeypatch, features, triple)
    assert (found.name, found.lanes, found.cpu, found.triple) == (name, lanes, "host", triple)
    assert set(found.features.split(",")) >= {f"+{feature}" for feature in features}


def test_avx2_by_name_uses_no_feature_beyond_it(monkeypatch):
    found = host(monkeypatch, NEEDED["avx512"], asked=" AVX2 ")
    assert (found.name, found.lanes, found.cpu, found.features) == ("avx2", 8, "haswell", "")
    assert found.words == "AVX2 (haswell)"


@pytest.mark.parametrize(
    ("features", "asked", "words"),
    [
        (NEEDED["avx2"], "avx512", "PORTCONV_KERNEL_TARGET: got 'avx512', which this CPU has not"),
        (NEEDED["avx512"], "neon", "PORTCONV_KERNEL_TARGET: got 'neon', which this CPU has not"),
        (NEEDED["avx2"], "avx", "PORTCONV_KERNEL_TARGET: got 'avx', expected one of avx512, avx2, neon"),
        (("avx2",), "", "this CPU (host) has neither AVX2 with FMA nor NEON"),
    ],
)
def test_what_a_host_has_not_is_refused_in_words(monkeypatch, features, asked, words):
    with pytest.raises(NoTarget, match=f"^{re.escape(words)}$"):
        host(monkeypatch, features, asked=asked)


# Kernels of other types differ in their instructions alone: two of each family and type stand for the others.
SOME = [
    one
    for one in kernels()
    if one.element == "float" or one.variant in (FAMILIES[one.family].VARIANTS[0], FAMILIES[one.family].VARIANTS[-1])
]


@pytest.fixture(params=SOME, ids=str)
def kernel(request):
    return request.param


def sums(kernel, name):
    """How many multiply-adds of vectors a kernel is written with."""
    return len(re.findall(r"= call [^@]*@llvm\.fma", kernel.written(cross(name)).text))


FROM_C = {"memset", "memcpy", "memmove"}
"""What LLVM may call for a loop that fills or copies memory."""


def calls_its_own(text, calls="callq"):
    """Return whether a kernel's assembly calls the kernel's own functions alone."""
    called = set(re.findall(rf"\b{calls}\s+([A-Za-z_]\w*)", text))
    defined = set(re.findall(r"^([a-z_]\w*):", text, re.MULTILINE))
    return called <= defined | FROM_C


def test_avx2_s_kernels_have_its_registers_alone(kernel, capfd):
    text = compile.assembly(kernel.written(cross("avx2")), cross("avx2"))
    # LLVM joins a few that are the same in two branches.
    assert len(re.findall(r"\bvfn?m(add|sub)\w*p[sd]\s.*%[xy]mm", text)) >= sums(kernel, "avx2") / 2
    assert not re.findall(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])", text)
    assert calls_its_own(text)
    assert capfd.readouterr().err == ""


def test_avx512_s_kernels_keep_their_sums_in_its_registers(kernel, capfd):
    text = compile.assembly(kernel.written(cross("avx512")), cross("avx512"))
    assert calls_its_own(text)
    register = "y" if "half" in str(kernel).replace("halved", "") else "z"
    assert len(re.findall(rf"\bvfn?m(add|sub)\w*p[sd]\s.*%{register}mm", text)) >= sums(kernel, "avx512") / 2
    assert capfd.readouterr().err == ""


def test_neon_s_kernels_cross_compile(kernel, capfd):
    text = compile.assembly(kernel.written(cross("neon")), cross("neon"))
    assert calls_its_own(text, "bl")
    # A half vector of float64 is one number.
    found = re.findall(r"\bfml[as]\s+v\d+\.(?:[24]s|2d)|\bfml[as]\s+d\d+|\bfn?m(?:add|sub)\s+d\d+", text)
    assert len(found) >= sums(kernel, "neon") / 2
    assert "%" not in re.sub(r"[@%](function|object|progbits|nobits)", "", text)
    # LLVM says on standard error what it does not know, and goes on without it.
    assert capfd.readouterr().err == ""
