"""How much a call may take: memory beside its result, and threads."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
from support.limited import SLACK, peak
from threadpoolctl import threadpool_limits

import portconv
from portconv import backends
from portconv.backends import _numpy
from portconv.benchmark.zoo import ZOO
from portconv.engine import plan
from portconv.engine.call import Asked, operation_of
from portconv.engine.given import Given
from portconv.spec.operation import Kind
from portconv.spec.options import Options

MIB = 1 << 20


def drawn(rng, dtype="float32"):
    """A convolution at random, of up to a few MiB."""
    dims = rng.choice((1, 2, 2, 3))
    groups = rng.choice((1, 1, 2, 8))
    channels, filters = rng.choice((1, 1, 3, 16)), rng.choice((1, 1, 4, 16))
    size = [rng.randint(1, {1: 20_000, 2: 150, 3: 30}[dims]) for _ in range(dims)]
    kernel = [rng.choice([k for k in (1, 2, 3, 3, 5, 9) if k <= n]) for n in size]
    if rng.random() < 0.3:
        kernel = [3 if n >= 3 else 1 for n in size]
    stride = [rng.choice((1, 1, 2, 3)) for _ in range(dims)] if rng.random() < 0.4 else [1] * dims
    options = {"stride": tuple(stride), "padding": tuple(k // 2 for k in kernel), "groups": groups}
    x = np.ones((rng.choice((1, 2, 5)), groups * channels, *size), dtype)
    return x, np.ones((groups * filters, channels, *kernel), dtype), options


@pytest.mark.parametrize("algorithm", ["auto", "gemm", "depthwise", "fft", "winograd"])
@pytest.mark.parametrize("limit", [MIB // 2, 4 * MIB, 64 * MIB])
def test_no_call_takes_more_memory_than_its_limit(algorithm, limit):
    rng = random.Random(f"{algorithm} {limit}")
    served = 0
    for _ in range(20):
        x, w, options = drawn(rng)
        options["algorithm"] = algorithm
        with portconv.workspace_limit(limit):
            try:
                found = portconv.explain(x, w, **options)
                out = portconv.conv(x, w, **options)
                grads = [
                    lambda: [portconv.conv_input_grad(out, w, x.shape, **options)],  # noqa: B023
                    lambda: [portconv.conv_weight_grad(out, x, w.shape, **options)],  # noqa: B023
                ]
                made = peak(lambda: [portconv.conv(x, w, **options)])  # noqa: B023
                assert made <= found.workspace_bytes + SLACK
                assert found.workspace_bytes <= limit
                for call in grads:
                    assert peak(call) <= limit + SLACK
                served += 1
            except portconv.ConvValueError as error:
                assert algorithm != "auto" or "workspace_limit: got" in str(error)  # noqa: PT017
    assert served >= (2 if algorithm != "auto" else 10)


@pytest.mark.parametrize("algorithm", ["auto", "direct"])
@pytest.mark.parametrize(("dtype", "mode"), [("float16", "zeros"), ("int16", "constant"), ("float32", "reflect")])
def test_copies_are_made_a_part_at_a_time(dtype, mode, algorithm):
    # 2 MiB of float16, 4 of its float32, 5 of the output's: more than 6 MiB at once.
    rng = np.random.default_rng(0)
    x, w = rng.integers(-4, 5, (4, 16, 128, 128)).astype(dtype), rng.integers(-4, 5, (20, 16, 3, 3)).astype(dtype)
    options = {"padding": 1, "padding_mode": mode, "padding_value": 3 if mode == "constant" else 0}
    if algorithm == "direct":
        x = x[:, :, :20, :20]
    whole, cache = portconv.conv_forward(x, w, **options)
    dout = (rng.random(whole.shape) < 1 / 16).astype(dtype)
    grads = portconv.conv_backward(dout, cache)
    options["algorithm"] = algorithm
    with portconv.workspace_limit(6 * MIB):
        made = peak(lambda: [portconv.conv(x, w, **options)])
        assert made <= portconv.explain(x, w, **options).workspace_bytes + SLACK
        assert made <= 6 * MIB + SLACK
        assert peak(lambda: [portconv.conv_input_grad(dout, w, x.shape, **options)]) <= 6 * MIB + SLACK
        assert peak(lambda: [portconv.conv_weight_grad(dout, x, w.shape, **options)]) <= 6 * MIB + SLACK
        # All sums are whole numbers far below 2**24 and, in steps of 1/8 in a winograd tile, exact in float32.
        out, cache = portconv.conv_forward(x, w, **options)
        found = portconv.conv_backward(dout, cache)
        for result, expected in zip((out, *found[:2]), (whole, *grads[:2]), strict=True):
            assert np.array_equal(result, expected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_reproducible_calls_take_no_more_than_their_limit(dtype):
    rng = np.random.default_rng(2)
    # In slices, of which float64 makes six of each, 6 MiB of x and 8 of the output.
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((2, 16, 64, 64), (20, 16, 3, 3)))
    options = {"padding": 1, "precision": "reproducible"}
    whole, cache = portconv.conv_forward(x, w, **options)
    grads = portconv.conv_backward(whole, cache)
    calls = (
        (partial(portconv.conv, x, w, **options), whole),
        (partial(portconv.conv_input_grad, whole, w, x.shape, **options), grads.dx),
        (partial(portconv.conv_weight_grad, whole, x, w.shape, **options), grads.dw),
    )
    with portconv.workspace_limit(8 * MIB):
        told = portconv.explain(x, w, **options).workspace_bytes
        assert told <= 8 * MIB
        for (call, expected), most in zip(calls, (told, 8 * MIB, 8 * MIB), strict=True):
            assert peak(lambda: [call()]) <= most + SLACK  # noqa: B023
            assert call().tobytes() == expected.tobytes()


LAYERS = {
    "dense 3x3": ((1, 128, 20, 112), (128, 128, 3, 3), {"padding": 1}),
    "1x1": ((1, 256, 28, 28), (64, 256, 1, 1), {}),
    "strided": ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1, "stride": 2}),
    "depthwise": ((1, 96, 56, 56), (96, 1, 7, 7), {"padding": 3, "groups": 96}),
    "3-D": ((1, 64, 4, 28, 28), (64, 64, 3, 3, 3), {"padding": 1}),
    "dilated": ((1, 64, 4000), (64, 64, 2), {"dilation": 512}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_reproducible_calls_of_ordinary_layers_do_with_4_mib(name):
    x_shape, w_shape, options = LAYERS[name]
    options = {**options, "precision": "reproducible"}
    rng = np.random.default_rng(3)
    x, w = (rng.standard_normal(shape, dtype="float32") for shape in (x_shape, w_shape))
    out, cache = portconv.conv_forward(x, w, **options)
    grads = portconv.conv_backward(out, cache)
    calls = [
        (partial(portconv.conv, x, w, **options), out),
        (partial(portconv.conv_input_grad, out, w, x.shape, **options), grads.dx),
        (partial(portconv.conv_weight_grad, out, x, w.shape, **options), grads.dw),
    ]
    if name != "strided":  # the windows of the others reach the last cell
        calls.append((partial(portconv.conv_transpose, out, w, **options), grads.dx))
    with portconv.workspace_limit(4 * MIB):
        for call, expected in calls:
            assert peak(lambda: [call()]) <= 4 * MIB + SLACK  # noqa: B023
            assert call().tobytes() == expected.tobytes()


@pytest.mark.parametrize("limit", [1 << 12, 1 << 16, MIB])
def test_reproducible_calls_take_no_memory_for_each_block_or_part(limit):
    # A line of 12 MiB, as one number that is repeated, in up to 14,000 blocks; and 2**17 outputs in up to 1,400 parts.
    line, dense = np.broadcast_to(np.float32(1), (1, 1, 3 * 2**20)), np.ones((1, 1, 2**17), "float32")
    w = np.ones((1, 1, 2), "float32")
    for x, stride in ((line, 2**20), *([(dense, 1)] if limit > 1 << 12 else [])):
        options = {"stride": stride, "precision": "reproducible"}
        out = portconv.conv(x, w, **options)
        assert (out == 2).all()
        with portconv.workspace_limit(limit):
            forward, backward = (
                partial(portconv.conv, x, w, **options),
                partial(portconv.conv_weight_grad, out, x, w.shape, **options),
            )
            assert np.array_equal(forward(), out)
            assert (backward() == 2 * out.size).all()
            for call in (forward, backward):
                # The first calls of a thread also make what is kept.
                assert min(peak(lambda: [call()]) for _ in range(3)) <= limit + SLACK  # noqa: B023


def test_nearly_all_layers_of_the_zoo_do_with_4_mib():
    backend, like, refused = backends.get("numpy"), np.ones(1, "float32"), []
    for layer in ZOO:
        options = Options(layer.stride, layer.padding, layer.dilation, layer.groups, precision="reproducible")
        for kind in (Kind.FORWARD, Kind.INPUT_GRAD, Kind.WEIGHT_GRAD):
            step = operation_of(Asked(kind, "float32"), layer.x_shape, layer.w_shape, options)
            with portconv.workspace_limit(4 * MIB):
                try:
                    plan.of_given(step, backend, (Given(like.dtype),) * 2, like)
                except portconv.ConvValueError:
                    refused.append((layer.name, kind))
    # A cell of this gradient is a sum over 16 filters of 1024 taps, of which each is 48 bytes in slices.
    assert refused == [("filterbank 1024 1-16@16000", Kind.INPUT_GRAD)]


@pytest.mark.parametrize("purpose", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_rows_of_one_sample_are_parts_where_it_is_too_large(purpose, stride):
    rng = np.random.default_rng(1)
    # 4 MiB of float16, 8 of float32, where parts may take 2.
    x = rng.integers(-4, 5, (1, 2, 1024, 1024)).astype("float16")
    w = rng.integers(-1, 2, (3, 2, 5, 3)).astype("float16")
    options = {"padding": ((4, 1), (1, 1)), "stride": stride}
    out, cache = portconv.conv_forward(x, w, **options)
    dout = (rng.random(out.shape) < 0.0005).astype("float16")
    grads = portconv.conv_backward(dout, cache)
    with portconv.workspace_limit(4 * MIB):
        call, whole = {
            "forward": (lambda: portconv.conv(x, w, **options), out),
            "input_grad": (lambda: portconv.conv_input_grad(dout, w, x.shape, **options), grads.dx),
            "weight_grad": (lambda: portconv.conv_weight_grad(dout, x, w.shape, **options), grads.dw),
        }[purpose]
        assert peak(lambda: [call()]) <= 4 * MIB + SLACK
        # All sums are whole numbers that float16 holds: at most 30 products of 4, or about 500 of them.
        assert np.array_equal(call(), whole)


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_only_cells_that_windows_read_are_copied(dtype):
    x, w = np.ones((1, 1, 2**22 + 64), dtype), np.ones((1, 1, 2), dtype)
    out = portconv.conv(x, w, stride=2**19)
    assert np.array_equal(out, np.full((1, 1, 9), 2, dtype))
    expected = np.zeros(x.shape, dtype)
    expected[..., :: 2**19] = expected[..., 1 :: 2**19] = 2
    with portconv.workspace_limit(2**14):
        calls = {
            lambda: portconv.conv(x, w, stride=2**19): out,
            lambda: portconv.conv_input_grad(out, w, x.shape, stride=2**19): expected,
            lambda: portconv.conv_weight_grad(out, x, w.shape, stride=2**19): np.full((1, 1, 2), 18, dtype),
        }
        for call, result in calls.items():
            assert np.array_equal(call(), result)
            assert peak(lambda: [call()]) <= 2**14 + SLACK  # noqa: B023


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", ["int8", "int32", "float16"])
def test_only_cells_that_taps_read_are_copied(dtype, stride):
    rng = np.random.default_rng(4)
    x, w = rng.integers(-2, 3, (1, 1, 2**19)).astype(dtype), np.array([[[1, 2]]], dtype)
    options = {"stride": stride, "dilation": 2**17}
    out = portconv.conv(x, w, **options)
    assert np.array_equal(out, x[..., : -(2**17) : stride] + 2 * x[..., 2**17 :: stride])
    dout = (rng.integers(-1, 2, out.shape) * (rng.random(out.shape) < 0.001)).astype(dtype)
    grads = [
        portconv.conv_input_grad(dout, w, x.shape, **options),
        portconv.conv_weight_grad(dout, x, w.shape, **options),
    ]
    with portconv.workspace_limit(2**20):
        calls = (
            (partial(portconv.conv, x, w, **options), out),
            (partial(portconv.conv_input_grad, dout, w, x.shape, **options), grads[0]),
            (partial(portconv.conv_weight_grad, dout, x, w.shape, **options), grads[1]),
        )
        for call, result in calls:
            assert np.array_equal(call(), result)
            assert peak(lambda: [call()]) <= 2**20 + SLACK  # noqa: B023


def test_a_gradient_narrower_than_its_arithmetic_is_rounded_a_part_at_a_time():
    # In float32, 4 MiB of the gradient of x; and in float32 too, 2.5 MiB of the gradient of w.
    x, w = np.ones((4, 16, 128, 128), "float16"), np.ones((8, 16, 3, 3), "float32")
    wide, filters = np.ones((1, 16, 32, 32), "float32"), np.ones((512, 16, 9, 9), "float16")
    for arrays, padding in ((x, w), 1), ((wide, filters), 4):
        out, cache = portconv.conv_forward(*arrays, padding=padding)
        dout = np.full_like(out, 2**-10)
        whole = portconv.conv_backward(dout, cache)
        with portconv.workspace_limit(2 * MIB):
            assert peak(lambda: portconv.conv_backward(dout, cache)) <= 2 * MIB + SLACK  # noqa: B023
            found = portconv.conv_backward(dout, cache)
        # Multiples of 2**-10 up to 1 in float16, and up to 64 in float32, which are exact.
        for result, expected in zip(found[:2], whole[:2], strict=True):
            assert np.array_equal(result, expected)


@pytest.mark.parametrize("mode", ["constant", "reflect", "symmetric", "replicate", "circular"])
def test_padding_is_filled_in_for_some_rows_at_a_time(mode):
    rng = np.random.default_rng(5)
    # 16 MiB, of which parts may take 2.
    x, w = rng.integers(-4, 5, (1, 1, 64, 256, 256)).astype("float32"), np.ones((1, 1, 3, 3, 3), "float32")
    options = {"padding": ((2, 1), (1, 1), (1, 1)), "padding_mode": mode}
    options |= {"padding_value": 3} if mode == "constant" else {}
    out = portconv.conv(x, w, **options)
    dout = (rng.random(out.shape) < 0.01).astype("float32")
    grad = portconv.conv_weight_grad(dout, x, w.shape, **options)
    with portconv.workspace_limit(4 * MIB):
        assert peak(lambda: [portconv.conv(x, w, **options)]) <= 4 * MIB + SLACK
        assert peak(lambda: [portconv.conv_weight_grad(dout, x, w.shape, **options)]) <= 4 * MIB + SLACK
        # Whole numbers, of which sums are exact: at most 27 of them, or about 40,000.
        assert np.array_equal(portconv.conv(x, w, **options), out)
        assert np.array_equal(portconv.conv_weight_grad(dout, x, w.shape, **options), grad)


@pytest.mark.parametrize("dtype", ["float32", "int8", "float16"])
def test_what_cannot_be_held_is_refused_in_the_same_words_by_all_that_plan_it(dtype):
    x, w = np.ones((1, 1, 5), dtype), np.ones((1, 1, 3), dtype)
    cases = (
        ((x, w), {"padding": 10**13}),
        ((x, w), {"padding": 10**13, "padding_mode": "reflect"}),
        ((np.broadcast_to(x, (2**40, 1, 5)), w), {}),
    )
    for arrays, options in cases:
        said = set()
        for call in (portconv.conv, portconv.explain, portconv.error_bound):
            with pytest.raises(portconv.ConvShapeError) as caught:
                call(*arrays, **options)
            said.add(str(caught.value))
        assert len(said) == 1
    empty = np.ones((0, 1, 10**6, 10**6), dtype), np.ones((1, 1, 3, 3), dtype)
    assert portconv.conv(*empty).shape == portconv.error_bound(*empty).shape == (0, 1, 10**6 - 2, 10**6 - 2)
    assert portconv.explain(*empty).workspace_bytes == 0


def test_a_limit_that_no_algorithm_can_do_with_is_an_error_that_says_what_it_takes():
    x, w = np.ones((1, 64, 9, 9), "float32"), np.ones((64, 64, 5, 5), "float32")
    for arrays in ((x, w), (x.astype("float16"), w.astype("float16"))):
        with (
            portconv.workspace_limit(1000),
            pytest.raises(
                portconv.ConvValueError, match="workspace_limit: got 1000 bytes, expected at least"
            ) as caught,
        ):
            portconv.conv(*arrays)
        enough = int(str(caught.value).partition("at least ")[2].partition(",")[0])
        with portconv.workspace_limit(enough):
            assert portconv.conv(*arrays).shape == (1, 64, 5, 5)


@pytest.mark.parametrize("algorithm", ["auto", "gemm"])
@pytest.mark.parametrize("precision", ["standard", "reproducible"])
def test_what_a_limit_serves_larger_ones_do(algorithm, precision):
    rng = random.Random(8)
    shapes = [((3, 4, 12, 17), (6, 2, 3, 3), {"padding": ((1, 1), (0, 2)), "groups": 2})]
    for _ in range(5):
        x, w, options = drawn(rng)
        shapes.append(((*x.shape[:2], *(min(n, 9) for n in x.shape[2:])), w.shape, options))
    for x_shape, w_shape, options in shapes:
        x, w, own = np.ones(x_shape, "float32"), np.ones(w_shape, "float32"), {"algorithm": algorithm, **options}
        dout = np.ones_like(portconv.conv(x, w, **options))
        own["precision"] = precision
        calls = (
            partial(portconv.conv, x, w, **own),
            partial(portconv.conv_input_grad, dout, w, x_shape, **own),
            partial(portconv.conv_weight_grad, dout, x, w_shape, **own),
        )
        for call in calls:
            served, enough = False, set()
            for step in range(8, 48, 1 if precision == "standard" else 2):
                limit = int(2 ** (step / 2))
                try:
                    with portconv.workspace_limit(limit):
                        call()
                    served = True
                except portconv.ConvValueError as error:
                    assert not served, (x_shape, w_shape, options, limit)
                    least = int(str(error).split("at least ")[1].split(maxsplit=1)[0].rstrip(","))
                    assert least > limit
                    if least not in enough:
                        with portconv.workspace_limit(least):
                            call()
                    enough.add(least)
            assert served


def test_without_a_limit_calls_take_what_they_must(monkeypatch):
    # Padding filled in takes 33 MiB a sample, of the 4 that copies may, so it is filled in for some rows at a time.
    x, w = np.ones((1, 1, 2900, 2900), "float32"), np.ones((1, 1, 2, 2), "float32")
    with portconv.workspace_limit(8 * MIB):
        options = {"padding": ((0, 1), (0, 1)), "padding_mode": "reflect"}
        assert peak(lambda: [portconv.conv(x, w, **options)]) <= 8 * MIB + SLACK
    # A column takes 2 MiB, of the 1 that there is.
    monkeypatch.setattr(type(backends.get("numpy")), "default_workspace", lambda *_: 1 << 20)
    x, w = np.ones((1, 2**19, 2), "float32"), np.ones((2, 2**19, 1), "float32")
    assert portconv.conv(x, w, stride=2)[0, 0, 0] == 2**19


@pytest.mark.usefixtures("portable")
def test_an_algorithm_that_needs_more_memory_is_not_considered():
    x, w = np.ones((1, 512, 40, 40), "float32"), np.ones((512, 1, 31, 31), "float32")
    assert portconv.explain(x, w, groups=512).algorithm == "fft"
    with portconv.workspace_limit(30 << 10):
        found = portconv.explain(x, w, groups=512)
        (why,) = (one.why_not for one in found.candidates if one.name == "fft")
        assert found.algorithm == "gemm"
        assert "a workspace_limit of at least" in why
        with pytest.raises(
            portconv.ConvValueError, match=r"algorithm: got 'fft' .* expected 'auto', or a workspace_limit"
        ):
            portconv.conv(x, w, groups=512, algorithm="fft")


@pytest.mark.parametrize("setting", [portconv.workspace_limit, portconv.num_threads])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, portconv.ConvValueError),
        (-1, portconv.ConvValueError),
        (1.0, portconv.ConvTypeError),
        (True, portconv.ConvTypeError),
        (None, portconv.ConvTypeError),
        ("4", portconv.ConvTypeError),
        (2**64, portconv.ConvValueError),
        (10**30, portconv.ConvValueError),
    ],
)
def test_a_limit_that_is_no_positive_int_is_an_error_at_once(setting, value, error):
    name = "nbytes" if setting is portconv.workspace_limit else "n"
    with pytest.raises(error, match=rf"{name}: got {value!r}, expected (a positive|an) int"):
        setting(value)


@pytest.mark.parametrize(("setting", "most"), [(portconv.workspace_limit, sys.maxsize), (portconv.num_threads, 4096)])
def test_a_limit_is_a_number_that_a_machine_may_have(setting, most):
    with setting(most):
        assert portconv.conv(np.ones((1, 1, 5)), np.ones((1, 1, 3))).tolist() == [[[3, 3, 3]]]
    for value, words in ((most + 1, most + 1), (10**5000, "an int of 16610 bits")):
        with pytest.raises(portconv.ConvValueError, match=f"got {words}, expected a positive int of at most {most}"):
            setting(value)


@pytest.mark.parametrize("name", ["PORTCONV_NUM_THREADS", "PORTCONV_WORKSPACE_LIMIT"])
@pytest.mark.parametrize("value", ["0", "-3", "two", "1.5", str(2**64)])
def test_a_variable_that_is_no_positive_integer_is_an_error_that_names_it(name, value):
    code = "import numpy as np, portconv; portconv.conv(np.ones((1, 1, 5)), np.ones((1, 1, 3)))"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], env={**os.environ, name: value}, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert (
        found.stderr.splitlines()[-1]
        .replace("'", "")
        .startswith(f"portconv.errors.ConvValueError: {name}: got {value}, expected a positive int")
    )


def test_variables_set_what_nothing_else_does():
    code = (
        "import numpy as np, portconv\n"
        "from portconv import backends, limits\n"
        "print(backends.get('numpy').details()['threads'], limits.workspace())\n"
        "with portconv.num_threads(2), portconv.workspace_limit(5):\n"
        "    print(backends.get('numpy').details()['threads'], limits.workspace())\n"
    )
    variables = {"PORTCONV_NUM_THREADS": "3", "PORTCONV_WORKSPACE_LIMIT": "1000000"}
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["3", "1000000", "2", "5"]


def blas():
    return [(library.filepath, library.num_threads) for library in _numpy._blas.libraries()]


@pytest.fixture
def layer():
    rng = np.random.default_rng(0)
    return rng.standard_normal((8, 16, 40, 40), dtype="float32"), rng.standard_normal((16, 16, 3, 3), dtype="float32")


def test_threads_of_the_blas_are_as_they_were_after_calls_and_errors(layer):
    with threadpool_limits(2, user_api="blas"):
        before = blas()
        for threads in (1, 3):
            with portconv.num_threads(threads):
                portconv.conv(*layer, padding=1)
                assert blas() == before
                with pytest.raises(portconv.ConvShapeError):
                    portconv.conv(layer[0], layer[1][:, :3])
        assert blas() == before

        def fail(*_):
            raise ZeroDivisionError

        numpy = backends.get("numpy")
        blocks = [((slice(i, i + 1),), i) for i in range(20)]
        with pytest.raises(ZeroDivisionError), portconv.num_threads(3):
            numpy.fill(np.zeros(20), blocks, fail, 20)
        assert blas() == before


def test_no_number_of_threads_changes_a_bit(layer):
    results = []
    for threads in (1, 2, 5):
        with portconv.num_threads(threads):
            out, cache = portconv.conv_forward(*layer, padding=1)
            results.append((out, *portconv.conv_backward(out, cache)[:2]))
    for found in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found, results[0], strict=True))


@pytest.mark.parametrize(("batch", "expected"), [(1, {1: {1}, 2: {2}}), (2, {1: {1}, 2: {1}})], ids=["one", "batch"])
def test_a_single_sample_is_left_to_the_threads_of_the_blas(monkeypatch, batch, expected):
    if not blas():
        pytest.skip("threadpoolctl knows no BLAS here")
    backend = type(backends.get("numpy"))
    seen, original = set(), backend.product

    def product(self, *operands):
        seen.add(max(count for _, count in blas()))
        return original(self, *operands)

    monkeypatch.setattr(backend, "product", product)
    rng = np.random.default_rng(8)
    # Fewer than 2**11 products of at most 9 to a sum: exact, whichever thread adds them up.
    x, w = (rng.integers(-3, 4, s).astype("float32") for s in ((batch, 64, 24, 24), (64, 64, 3, 3)))
    results = []
    for threads, counts in expected.items():
        with portconv.num_threads(threads):
            out, cache = portconv.conv_forward(x, w, padding=1, algorithm="gemm")
            results.append((out, *portconv.conv_backward(np.sign(out), cache)[:2]))
        assert seen == counts
        seen.clear()
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    assert np.array_equal(results[0][0], portconv.conv(x, w, padding=1, algorithm="direct"))


def test_settings_are_those_of_the_thread_that_entered_them(layer):
    seen = []
    with portconv.num_threads(1), portconv.workspace_limit(1 << 20):
        thread = threading.Thread(
            target=lambda: seen.append(portconv.explain(*layer, algorithm="gemm").workspace_bytes)
        )
        thread.start()
        thread.join()
        inside = portconv.explain(*layer, algorithm="gemm").workspace_bytes
    assert inside <= 1 << 20 < seen[0] == portconv.explain(*layer, algorithm="gemm").workspace_bytes


def test_many_threads_at_once_give_what_one_gives(layer):
    expected = portconv.conv(*layer, padding=1)
    found = [None] * 8

    def call(i):
        with portconv.num_threads(1 + i % 3):
            for _ in range(5):
                found[i] = portconv.conv(*layer, padding=1)

    before = blas()
    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, expected) for a in found)
    assert blas() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_the_same():
    code = (
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "import numpy as np, portconv\n"
        "x, w = np.ones((8, 16, 40, 40), 'float32'), np.ones((16, 16, 3, 3), 'float32')\n"
        "first = portconv.conv(x, w)\n"
        "child = os.fork()\n"
        "same = np.array_equal(portconv.conv(x, w), first)\n"
        "if not child: os._exit(0 if same else 1)\n"
        "sys.exit(os.waitpid(child, 0)[1] or not same)\n"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=60, check=False).returncode == 0
