"""Every dtype: halves, complex numbers, integers modulo 2**bits, mixed widths, byte orders and layouts of memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from support.geometries import geometry
from support.oracle import Problem, gamma

import portconv
from portconv import backends
from portconv.engine import plan
from portconv.passes.integers import slicing
from portconv.spec.dtypes import EXACT, KINDS
from portconv.spec.operation import PRODUCTS, Operation

PROBLEM = Problem((2, 4, 6, 5), (6, 2, 3, 2), (2, 1), ((1, 2), (0, 1)), (1, 2), 2)
OPTIONS: dict[str, Any] = {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "dilation": (1, 2), "groups": 2}
RESULTS = ("out", "dx", "dw", "db")
INTEGERS = [name for name, kind in KINDS.items() if kind == "integral"]
ALGORITHMS = ("auto", "direct")


def holds(target, name):
    if not target.backend.holds(name, target.array(np.zeros(1, "float32"))):
        pytest.skip(f"{target.backend.name} has no {name} here")
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes, NumPy's bfloat16, is not installed")


def run(target, operands, dtype, **options):
    given = [target.backend.asarray(a.copy(), dtype=dtype, device=target.device) for a in operands]
    out, cache = portconv.conv_forward(*given[:3], **{**OPTIONS, **options})
    results = dict(zip(RESULTS, (out, *portconv.conv_backward(given[3], cache)), strict=True))
    for (name, result), like in zip(results.items(), (given[3], *given[:3]), strict=True):
        assert target.owns(result), name
        assert result.dtype == like.dtype, name
        assert tuple(result.shape) == tuple(like.shape), name
    return {name: target.numpy(result) for name, result in results.items()}


def wrapped(operands, name):
    """The exact results of whole operands in Python's integers, modulo 2**bits."""
    whole = [a.astype(object) for a in operands]
    shapes = (PROBLEM.out, PROBLEM.x, PROBLEM.w)
    made = [np.zeros(shape, object) for shape in shapes]
    x, w, b, dout = whole
    for group, position, tap, cell in PROBLEM.reads():
        f, c = PROBLEM.filters(group), PROBLEM.channels(group)
        out_at, x_at, w_at = (slice(None), f, *position), (slice(None), c, *cell), (f, slice(None), *tap)
        made[0][out_at] += x[x_at] @ w[w_at].T
        made[1][x_at] += dout[out_at] @ w[w_at]
        made[2][w_at] += dout[out_at].T @ x[x_at]
    made[0] += b.reshape(-1, 1, 1)
    made.append(dout.sum(axis=(0, 2, 3)))
    bits = np.iinfo(name).bits
    low = np.iinfo(name).min
    return {label: ((a - low) % 2**bits + low).astype(name) for label, a in zip(RESULTS, made, strict=True)}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_integers_are_exact_modulo_two_to_their_bits(target, name, algorithm):
    holds(target, name)
    rng, info = np.random.default_rng(0), np.iinfo(name)
    shapes = (PROBLEM.x, PROBLEM.w, PROBLEM.w[:1], PROBLEM.out)
    for values in ("random", "least"):
        operands = [rng.integers(info.min, info.max, s, dtype=name, endpoint=True) for s in shapes]
        if values == "least":  # the largest magnitudes that slices can have, all of one sign
            operands = [np.full(s, info.min or info.max // 2 + 1, name) for s in shapes]
        results, expected = run(target, operands, name, algorithm=algorithm), wrapped(operands, name)
        for label in RESULTS:
            assert np.array_equal(results[label], expected[label]), (label, values)


def test_integers_are_exact_whatever_precision_floating_point_has(target):
    if target.backend.name != "torch":
        pytest.skip("this is about a setting of PyTorch's")
    import torch

    matmul = torch.backends.mkldnn.matmul
    found = matmul.fp32_precision
    x, w = (torch.full((2, 8, 64), 127, dtype=torch.int8) for _ in range(2))
    try:
        matmul.fp32_precision = "bf16"
        assert torch.all(portconv.conv(x, w, precision="fast") == (8 * 64 * 127 * 127 + 128) % 256 - 128)
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = found


def test_integers_on_devices_without_wide_numbers(target):
    if target.backend.name != "array_api_strict":
        pytest.skip("this is about devices that array-api-strict alone has")
    backend, info = target.backend, target.backend.xp.__array_namespace_info__()
    rng = np.random.default_rng(1)
    for device in info.devices():
        for name in info.dtypes(kind="integral", device=device):
            ends = np.iinfo(name).min, np.iinfo(name).max
            x, w = (rng.integers(*ends, s, dtype=name, endpoint=True) for s in ((1, 3, 9), (2, 3, 4)))
            for mode in ("zeros", "reflect"):
                out, cache = portconv.conv_forward(x, w, padding=2, padding_mode=mode)
                expected = [out, *portconv.conv_backward(out, cache)[:2]]
                given = [backend.asarray(a, device=device) for a in (x, w)]
                out, cache = portconv.conv_forward(*given, padding=2, padding_mode=mode)
                found = [out, *portconv.conv_backward(out, cache)[:2]]
                assert all(str(a.device) == str(device) for a in found)
                for one, other in zip(found, expected, strict=True):
                    assert np.array_equal(backend.to_numpy(one), other), (device, name)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("doubles", [True, False])
def test_slices_are_exact_and_cover_all_bits(bits, doubles):
    for terms in [1, 2, 9, 1000, 2**10, 2**10 + 1, 2**20, 2**23, 2**23 + 1, 2**30]:
        for of_b in (8, 9, bits):
            found = slicing(bits, bits, min(bits, of_b), terms, doubles)
            if found is None:
                # Not even slices of one bit, -1 or 0, can be added up.
                assert not doubles
                assert terms * min(bits, of_b) > 2**24
                continue
            exact = EXACT[found.name]
            # A slice is at least -2**(width - 1); all pairs of one weight are summed before they are rounded.
            most = max(len(pairs) for _, pairs in found.pairs(bits))
            assert most * terms * 4 ** (found.width - 1) <= 2**exact
            assert found.of_a * found.width >= bits
            needed = {(i, j) for i in range(found.of_a) for j in range(found.of_b) if found.width * (i + j) < bits}
            assert {pair for _, pairs in found.pairs(bits) for pair in pairs} == needed


def test_slices_of_common_layers():
    # int8 sums of up to 2**10 products fit float32, int16 ones float64; int32 takes 3 products, int64 6 or more.
    assert [slicing(8, 8, 8, terms, True).name for terms in (2**10, 2**10 + 1)] == ["float32", "float64"]
    assert slicing(16, 16, 16, 576, True).name == "float64"
    counts = [sum(len(p) for _, p in slicing(b, b, b, 576, True).pairs(b)) for b in (8, 16, 32, 64)]
    assert counts == [1, 1, 3, 6]


def test_long_sums_of_integers_are_exact():
    # 2**18 products of the largest magnitudes, beyond what one product of 32 bits in float64 could add up.
    x, dout = (np.full((1, 1, 2**18), -(2**31), "int32") for _ in range(2))
    dw = portconv.conv_weight_grad(dout, x - 1, (1, 1, 1))
    exact = 2**18 * -(2**31) * (2**31 - 1)
    assert int(dw[0, 0, 0]) == (exact + 2**31) % 2**32 - 2**31


def test_long_sums_of_unsigned_integers_beside_signed_ones_are_exact():
    # uint8 reaches 255, as a slice of 9 bits may and one of 8 may not: taken for the latter, 1000 terms pass 2**24.
    for i in range(20):
        x, w = np.full((1, 1, 1000 + i), 255, "uint8"), np.full((1, 1, 1000 + i), 127 - 128 * 256, "int16")
        w[..., 0] -= i
        exact = (x.astype("int64") * w.astype("int64")).sum().astype("int16")
        assert portconv.conv(x, w, algorithm="gemm")[0, 0, 0] == exact


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_halves_accumulate_in_float32_and_round_once(target, name, algorithm):
    holds(target, name)
    rng = np.random.default_rng(2)
    shapes = (PROBLEM.x, PROBLEM.w, PROBLEM.w[:1], PROBLEM.out)
    # Eighths of at most 3 bits each: exact in both dtypes, and sums of products exact in float32.
    operands = [rng.integers(-7, 8, s) / 8 for s in shapes]
    results, truths = run(target, operands, name, algorithm=algorithm), PROBLEM.all(*operands)
    half: Any = np.float16
    if name == "bfloat16":
        import ml_dtypes

        half = ml_dtypes.bfloat16
    for label in RESULTS:
        # One rounding of the exact sum, bias included, and no other.
        assert np.array_equal(results[label].astype("float64"), truths[label].astype(half).astype("float64")), label


def test_a_long_sum_of_halves_does_not_stall(target):
    holds(target, "float16")
    # Added up in float16, ones stay at 2048.
    x, w = (target.array(np.ones((1, 4096, 1)), "float16") for _ in range(2))
    for algorithm in ALGORITHMS:
        assert target.numpy(portconv.conv(x, w, algorithm=algorithm))[0, 0, 0] == 4096


@pytest.mark.parametrize("name", ["complex64", "complex128"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_complex_gradients_are_adjoints(target, name, algorithm, mode):
    holds(target, name)
    rng = np.random.default_rng(3)
    # Parts of at most 4 bits and fewer than 2**8 terms: exact in float32.
    shapes = (PROBLEM.x, PROBLEM.w, PROBLEM.w[:1], PROBLEM.out)
    x, w, b, y = (rng.integers(-15, 16, s) + 1j * rng.integers(-15, 16, s) for s in shapes)
    options = {"algorithm": algorithm, "padding_mode": mode}
    results = run(target, (x, w, np.zeros_like(b), y), name, **options)
    inner = np.vdot(y, results["out"].astype("complex128"))
    assert inner == np.vdot(results["dx"].astype("complex128"), x)
    assert inner == np.vdot(results["dw"].astype("complex128"), w)
    assert np.array_equal(results["db"], y.sum(axis=(0, 2, 3)))
    if mode == "zeros":
        with_bias = run(target, (x, w, b, y), name, **options)["out"]
        assert np.array_equal(with_bias, PROBLEM.forward(x, w, b))


def test_complex_results_are_within_their_bound(target):
    # Each part of a product of complex numbers is a sum of 2 products of reals, so n of them are 2 n terms, and the sum
    # of magnitudes is at most that of (|re| + |im|) (|re| + |im|). Higham (2002), section 3.6, has the same.
    rng = np.random.default_rng(4)
    shapes = (PROBLEM.x, PROBLEM.w, PROBLEM.w[:1], PROBLEM.out)
    x, w, b, y = ((rng.standard_normal(s) + 1j * rng.standard_normal(s)).astype("complex64") for s in shapes)
    results = run(target, (x, w, b, y), "complex64")
    wide = [a.astype("complex128") for a in (x, w, b, y)]
    truths = {"out": PROBLEM.forward(*wide[:3]), "dx": PROBLEM.input_grad(wide[3], wide[1].conj())}
    truths["dw"] = PROBLEM.weight_grad(wide[3], wide[0].conj())
    magnitudes = PROBLEM.all(*(np.abs(a.real) + np.abs(a.imag) for a in wide))
    for label, truth in truths.items():
        terms = 2 * PROBLEM.terms()[label]
        allowed = (gamma(terms, "float32") + gamma(terms, "float64")) * magnitudes[label]
        error = results[label].astype("complex128") - truth
        assert np.all(np.maximum(np.abs(error.real), np.abs(error.imag)) <= allowed), label


def test_real_with_complex_promotes_and_gradients_keep_their_own(target):
    rng = np.random.default_rng(5)
    x = rng.integers(-9, 10, PROBLEM.x).astype("float64")
    w = rng.integers(-9, 10, PROBLEM.w) + 1j * rng.integers(-9, 10, PROBLEM.w)
    y = rng.integers(-9, 10, PROBLEM.out) + 1j * rng.integers(-9, 10, PROBLEM.out)
    given = [target.array(a) for a in (x, w)]
    out, cache = portconv.conv_forward(*given, **OPTIONS)
    assert np.array_equal(target.numpy(out), PROBLEM.forward(x, w))
    dx, dw, _ = portconv.conv_backward(target.array(y), cache)
    assert (dx.dtype, dw.dtype) == (given[0].dtype, given[1].dtype)
    # The gradient of a real input is the real part.
    assert np.array_equal(target.numpy(dx), PROBLEM.input_grad(y, w.conj()).real)
    assert np.array_equal(target.numpy(dw), PROBLEM.weight_grad(y, x.astype(complex)))


def test_a_complex_gradient_of_a_real_output_is_refused(target):
    x, w = target.array(np.ones((1, 1, 4))), target.array(np.ones((1, 1, 2)))
    _, cache = portconv.conv_forward(x, w)
    with pytest.raises(portconv.ConvTypeError, match="dout: got dtype complex128, expected a real one"):
        portconv.conv_backward(target.array(np.ones((1, 1, 3), complex)), cache)


def test_mixed_widths_of_integers(target):
    # 255 as uint8 is no -1 once int16 is what both are.
    x, w = target.array(np.full((1, 1, 3), 255), "uint8"), target.array(np.full((1, 1, 2), -100), "int8")
    for algorithm in ALGORITHMS:
        out = portconv.conv(x, w, algorithm=algorithm)
        assert out.dtype == target.backend.xp.int16
        assert target.numpy(out).tolist() == [[[14536, 14536]]]  # 2 * 255 * -100 = -51000, plus 2**16
    _, cache = portconv.conv_forward(x, w)
    dx, dw, _ = portconv.conv_backward(target.array(np.ones((1, 1, 2)), "int16"), cache)
    assert (dx.dtype, dw.dtype) == (x.dtype, w.dtype)
    assert target.numpy(dx).tolist() == [[[156, 56, 156]]]  # -100 and -200, modulo 2**8
    assert target.numpy(dw).tolist() == [[[-2, -2]]]  # 510 modulo 2**8


@pytest.mark.parametrize("name", ["float32", "complex128", "int32", "float16"])
def test_other_byte_orders(name):
    rng = np.random.default_rng(6)
    shapes = (PROBLEM.x, PROBLEM.w, PROBLEM.w[:1], PROBLEM.out)
    operands = [rng.integers(-9, 10, s).astype(name) for s in shapes]
    expected = portconv.conv_forward(*operands[:3], **OPTIONS)
    expected = [expected[0], *portconv.conv_backward(operands[3], expected[1])]
    swapped = [a.astype(a.dtype.newbyteorder()) for a in operands]
    for mixed in (swapped, [swapped[0], *operands[1:]], [*operands[:3], swapped[3]]):
        out, cache = portconv.conv_forward(*mixed[:3], **OPTIONS)
        for found, result in zip((out, *portconv.conv_backward(mixed[3], cache)), expected, strict=True):
            assert found.dtype == np.dtype(name)
            assert np.array_equal(found, result)
    columns = portconv.unfold(swapped[0], 2)
    assert columns.dtype == np.dtype(name)
    assert np.array_equal(portconv.fold(columns.astype(columns.dtype.newbyteorder()), (6, 5), 2).dtype, np.dtype(name))


def layouts(a):
    """The same numbers in other layouts of memory."""
    yield "negative strides", np.flip(np.flip(a).copy())
    yield "gaps", np.repeat(a[..., np.newaxis], 3, axis=-1)[..., 1]
    yield "turned", np.ascontiguousarray(a.T).T
    unaligned = np.empty(a.nbytes + 1, "u1")[1:].view(a.dtype).reshape(a.shape)
    unaligned[...] = a
    yield "unaligned", unaligned


@pytest.mark.parametrize("name", ["float32", "complex64", "int16"])
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_any_layout_of_memory(name, data_format):
    rng = np.random.default_rng(7)
    shapes = (PROBLEM.x, PROBLEM.w, PROBLEM.w[:1], PROBLEM.out)
    operands = [rng.integers(-9, 10, s).astype(name) for s in shapes]
    if data_format == "channels_last":
        operands[::3] = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in operands[::3])
    options = {**OPTIONS, "data_format": data_format}
    out, cache = portconv.conv_forward(*operands[:3], **options)
    expected = (out, *portconv.conv_backward(operands[3], cache))
    for labelled in zip(*(layouts(a) for a in operands), strict=True):
        given = [a for _, a in labelled]
        for a, original in zip(given, operands, strict=True):
            assert np.array_equal(a, original)
            a.flags.writeable = False
        for algorithm in ("gemm", "direct"):
            out, cache = portconv.conv_forward(*given[:3], algorithm=algorithm, **options)
            for found, result in zip((out, *portconv.conv_backward(given[3], cache)), expected, strict=True):
                assert np.array_equal(found, result), (labelled[0][0], algorithm)


def test_masked_arrays_are_refused():
    x = np.ma.masked_greater(np.ones((1, 1, 4)), 2)
    with pytest.raises(portconv.ConvTypeError, match="x: got a masked array, expected a plain one"):
        portconv.conv(x, np.ones((1, 1, 2)))


def test_winograd_serves_real_floating_point_alone():
    x, w = np.ones((1, 1, 5), "int32"), np.ones((1, 1, 3), "int32")
    for name in ("int32", "complex64"):
        with pytest.raises(portconv.ConvValueError, match=f"algorithm: got 'winograd' .* in {name}, expected 'auto'"):
            portconv.conv(x.astype(name), w.astype(name), algorithm="winograd")
    halves = portconv.conv(x.astype("float16"), w.astype("float16"), algorithm="winograd")
    assert halves.dtype == np.float16
    assert halves.tolist() == [[[3.0, 3.0, 3.0]]]


def test_terms_are_those_of_the_longest_sum():
    # What the exactness of integers rests on; the gradient of a reflected input adds cells of the padding up, too.
    found = geometry((2, 4, 6, 5), (6, 2, 3, 2), 1, ((1, 2), (0, 1)), 1, 2, "reflect")
    terms = []
    for kind in PRODUCTS:
        operands = (np.zeros(found.shape(role)) for role in kind.operands)
        step = Operation(kind, found, "float64", "float64")
        terms.append(plan.of(step, backends.get("numpy"), *operands).arithmetic.terms)
    assert terms == [2 * 6, 3 * 6 * (1 + 1 + 2) * (1 + 0 + 1), 2 * math.prod(found.out)]
