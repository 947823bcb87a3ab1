"""JAX's transforms: a step is one operation of theirs, whose derivatives are portconv's own, in both modes.

Of float64: derivatives are compared to differences by `check_grads`. Calls are linear in each operand, so a central
difference of one has no error but that of rounding: with steps of 1e-3, 2**-53 * 1e3 of sums of some hundred terms of
magnitude 1, which is 1e-11; all operands move at once, which adds a cubic term of 1e-6 of a third derivative.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cached_property, partial

import numpy as np
import pytest
from support.differentiable import CALLS, WAYS, counted, shapes_of

import portconv
from portconv.spec.operation import Operation

jax = pytest.importorskip("jax", reason="JAX is not installed")
if portconv.backends.find("jax").fault:
    pytest.skip(f"jax is unavailable: {portconv.backends.find('jax').fault}", allow_module_level=True)

from jax.test_util import check_grads  # noqa: E402

from portconv.frameworks import jax_primitive  # noqa: E402  (needs JAX)

portconv.backends.get("jax").widen()
# Code that runs once need not be good, and compiling it is what takes the time.
jax.config.update("jax_disable_most_optimizations", True)


def arrays(shapes, seed=0, lead=(), dtype="float64"):
    generator = np.random.default_rng(seed)
    made = []
    for shape in shapes:
        values = generator.standard_normal((*lead, *shape))
        if "complex" in dtype:
            values = values + 1j * generator.standard_normal((*lead, *shape))
        made.append(jax.numpy.asarray(values.astype(dtype)))
    return made


def bits(array):
    return np.asarray(array).tobytes()


@pytest.fixture(params=CALLS)
def call(request):
    function, _, _, options = CALLS[request.param]
    return lambda *own: function(*own, **options), shapes_of(request.param)


def test_a_call_is_one_equation(call):
    function, shapes = call
    traced = jax.make_jaxpr(function)(*arrays(shapes))
    assert [equation.primitive.name for equation in traced.eqns] in (["conv_forward"], ["conv_input_grad"])
    assert traced.out_avals[0].shape == function(*arrays(shapes)).shape


def test_under_jit_it_is_what_it_is_outside(call):
    function, shapes = call
    operands = arrays(shapes, dtype="float32")
    assert bits(jax.jit(function)(*operands)) == bits(function(*operands))


def test_gradients_are_those_of_conv_backward_to_the_bit():
    x, w, b, dout = arrays(((2, 4, 9, 8), (6, 4, 3, 3), (6,), (2, 6, 7, 6)), dtype="float32")
    for precision in ("standard", "reproducible"):
        out, back = jax.vjp(partial(portconv.conv, precision=precision), x, w, b)
        plain, cache = portconv.conv_forward(x, w, b, precision=precision)
        assert bits(out) == bits(plain)
        for mine, theirs in zip(back(dout), portconv.conv_backward(dout, cache), strict=True):
            assert bits(mine) == bits(theirs)


def test_reproducible_gradients_have_the_bits_of_numpy():
    x, w, b, dout = arrays(((2, 3, 9, 8), (6, 3, 3, 3), (6,), (2, 6, 7, 6)), dtype="float32")

    @jax.jit
    def both(*own):
        out, back = jax.vjp(lambda *own: portconv.conv(*own, precision="reproducible"), *own)
        return out, *back(dout)

    plain, cache = portconv.conv_forward(*map(np.asarray, (x, w, b)), precision="reproducible")
    expected = (plain, *portconv.conv_backward(np.asarray(dout), cache))
    assert [bits(mine) for mine in both(x, w, b)] == [bits(theirs) for theirs in expected]


def test_gradients_of_first_and_second_order_in_both_modes(call):
    function, shapes = call
    check_grads(function, arrays(shapes), order=2, modes=("fwd", "rev"), eps=1e-3, atol=1e-4, rtol=1e-4)


def test_complex_gradients():
    operands = arrays(((1, 2, 5), (3, 2, 2), (3,)), dtype="complex128")
    check_grads(portconv.conv, operands, order=2, modes=("fwd", "rev"), eps=1e-3, atol=1e-4, rtol=1e-4)


def test_windows_have_gradients():
    (x,) = arrays(((2, 3, 6),))
    columns = portconv.unfold(x, 3, stride=2)
    for function, own in (
        (lambda x: portconv.unfold(x, 3, stride=2), x),
        (lambda columns: portconv.fold(columns, (6,), 3, stride=2), columns),
    ):
        check_grads(function, (own,), order=1, modes=("fwd", "rev"), eps=1e-3)


def test_second_derivatives_are_symmetric(call):
    function, shapes = call
    x, w, b = arrays(shapes)

    def loss(w):
        return (function(x, w, b) ** 3).sum()

    one, other = jax.jacfwd(jax.grad(loss))(w), jax.jacrev(jax.grad(loss))(w)
    # Sums of at most 200 terms whose magnitudes add up to some thousand, in another order.
    np.testing.assert_allclose(one, other, rtol=0, atol=200 * 2**-52 * 5000)
    size = w.size
    square = np.asarray(one).reshape(size, size)
    np.testing.assert_allclose(square, square.T, rtol=0, atol=200 * 2**-52 * 5000)


def test_only_gradients_that_are_asked_for_are_computed(monkeypatch):
    computed = counted(monkeypatch)
    x, w, b = arrays(((2, 4, 5), (6, 4, 3), (6,)), seed=1)
    jax.grad(lambda x: portconv.conv(x, w, b).sum())(x)
    assert set(computed) == {"forward", "input_grad"}


def test_a_step_is_traced_once_for_each_shape(monkeypatch):
    computed = counted(monkeypatch)
    x, w = arrays(((2, 4, 11), (6, 4, 3)), seed=2)
    for _ in range(3):
        portconv.conv(x, w, algorithm="gemm")
    portconv.conv(x + 1, w, algorithm="gemm")
    assert computed == ["forward"]
    portconv.conv(x, w, stride=2, algorithm="gemm")
    assert computed == ["forward", "forward"]


@pytest.mark.parametrize(
    "index",
    [
        (...,),
        (0, ...),
        (..., -1),
        (2, slice(1, 4), ...),
        (slice(None), 3),
        (..., slice(1, None, 2)),
        (slice(0, 3, 2), ..., 5),
    ],
)
def test_writes_are_those_of_numpy(index):
    backend = portconv.backends.get("jax")
    target = np.arange(120.0).reshape(4, 5, 6)
    values = -1 - np.arange(float(target[index].size)).reshape(target[index].shape)
    for value in (values, 7.0):
        expected = target.copy()
        expected[index] = value
        assert bits(backend.write(jax.numpy.asarray(target), index, value)) == expected.tobytes()
    expected = target.copy()
    expected[index] += values
    assert bits(backend.add(jax.numpy.asarray(target), index, jax.numpy.asarray(values))) == expected.tobytes()


@pytest.mark.parametrize("algorithm", ["auto", "tap_loop"])
def test_code_does_not_grow_with_taps(algorithm):
    def lines(taps):
        x, w = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((4, 2, 8000), (8, 2, taps)))

        def both(x, w):
            out, back = jax.vjp(partial(portconv.conv, algorithm=algorithm), x, w)
            return out, *back(out)

        return jax.jit(both).lower(x, w).as_text().count("\n")

    assert max(map(lines, (500, 1000, 2000))) <= 1500


def test_a_step_is_hashed_once(monkeypatch):
    hashed = []
    compute = Operation.__dict__["_hash"].func

    def counting(self):
        hashed.append(self.kind)
        return compute(self)

    own = cached_property(counting)
    own.__set_name__(Operation, "_hash")
    monkeypatch.setattr(Operation, "_hash", own)
    x, w = arrays(((2, 4, 13), (6, 4, 3)), seed=3)
    for _ in range(5):
        jax.grad(lambda x, w: portconv.conv(x, w).sum(), argnums=(0, 1))(x, w)
    assert sorted(hashed) == ["forward", "input_grad", "weight_grad"]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("mapped", WAYS)
def test_vmap_is_a_loop_to_the_bit_where_that_is_reproducible(name, mapped):
    function, _, _, options = CALLS[name]
    batches = arrays(shapes_of(name), lead=(3,), dtype="float32")
    own = [batch if axis == 0 else batch[0] for batch, axis in zip(batches, mapped, strict=True)]

    def reproducible(*own):
        return function(*own, precision="reproducible", **options)

    def host(i):
        return reproducible(
            *(np.asarray(array[i] if axis == 0 else array) for array, axis in zip(own, mapped, strict=True))
        )

    found = jax.vmap(reproducible, in_axes=mapped)(*own)
    assert bits(found) == bits(np.stack([host(i) for i in range(3)]))


def test_gradients_of_each_sample(call):
    function, shapes = call
    x, w, b = arrays(shapes, lead=(3,))

    def loss(x, w, b):
        return (function(x, w, b) ** 2).sum()

    gradients = jax.grad(loss, argnums=(0, 1, 2))
    found = jax.jit(jax.vmap(gradients, in_axes=(0, None, None)))(x, w[0], b[0])
    for i in range(3):
        for mine, theirs in zip((grad[i] for grad in found), gradients(x[i], w[0], b[0]), strict=True):
            # Sums of at most 200 terms of magnitudes up to some hundred, added up in another order.
            np.testing.assert_allclose(mine, theirs, rtol=200 * 2**-52, atol=200 * 2**-52 * 100)


def test_bounds_of_many_calls_are_those_of_each_and_have_no_gradient():
    x, w = arrays(((3, 2, 4, 7), (6, 4, 3)), dtype="float32")
    found = jax.vmap(portconv.error_bound, in_axes=(0, None))(x, w)
    assert bits(found) == bits(np.stack([portconv.error_bound(x[i], w) for i in range(3)]))
    assert not jax.grad(lambda x: portconv.error_bound(x, w).sum())(x[0]).any()


def test_inside_scan_and_checkpoint():
    x, w = arrays(((2, 4, 7), (4, 4, 3)))

    def layer(x, w):
        return portconv.conv(x, w, padding=1) / 4

    def looped(w):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(layer)(x, w), None), x, length=3)[0].sum()

    def written_out(w):
        return layer(layer(layer(x, w), w), w).sum()

    one, other = jax.grad(looped)(w), jax.grad(written_out)(w)
    # Sums of at most 3 * 12 * 14 terms whose magnitudes add up to less than a thousand.
    np.testing.assert_allclose(one, other, rtol=0, atol=3 * 12 * 14 * 2**-52 * 1000)


@pytest.mark.parametrize("algorithm", ["gemm", "winograd", "fft", "native", "direct"])
def test_what_is_not_finite_takes_the_way_that_it_takes_elsewhere(algorithm):
    x, w, dout = (np.array(array) for array in arrays(((1, 4, 9, 8), (6, 4, 3, 3), (1, 6, 9, 8)), dtype="float32"))
    for place, value in (((0, 1, 3, 3), np.inf), ((0, 2, 7, 1), np.nan), ((0, 0, 5, 5), 3e38)):
        for role, array in (("x", x), ("w", w), ("dout", dout)):
            own = {"x": x, "w": w, "dout": dout}
            own[role] = array.copy()
            own[role][tuple(i % n for i, n in zip(place, array.shape, strict=True))] = value
            with np.errstate(all="ignore"):
                mine = gradients(*map(jax.numpy.asarray, own.values()), algorithm)
                theirs = gradients(*map(np.asarray, own.values()), "gemm" if algorithm == "native" else algorithm)
            for one, other in zip(mine, theirs, strict=True):
                assert np.array_equal(np.isnan(one), np.isnan(other))
                assert np.array_equal(np.isposinf(one), np.isposinf(other))
                assert np.array_equal(np.isneginf(one), np.isneginf(other))


def gradients(x, w, dout, algorithm):
    out, cache = portconv.conv_forward(x, w, padding=1, algorithm=algorithm)
    return [np.asarray(array) for array in (out, *portconv.conv_backward(dout, cache)[:2])]


@pytest.mark.parametrize("algorithm", [*(name for name in portconv.algorithms() if name != "compiled"), "reproducible"])
def test_settings_that_find_faults_in_a_users_code_find_none_here(algorithm):
    groups = 4 if algorithm == "depthwise" else 1
    x, w, b, dout = arrays(((2, 4, 7), (4, 4 // groups, 3), (4,), (2, 4, 5)), dtype="float32")
    own = {"precision": algorithm} if algorithm == "reproducible" else {"algorithm": algorithm}
    options = {"groups": groups, **own}

    def call(*operands):
        out, back = jax.vjp(lambda *own: portconv.conv(*own, **options), *operands)
        return out, *back(dout), portconv.error_bound(*operands, **options)

    expected = call(x, w, b)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        found = call(x, w, b)
    assert [bits(mine) for mine in found] == [bits(theirs) for theirs in expected]


def test_traced_numbers_are_no_static_ones():
    x, w = arrays(((2, 4, 7), (6, 4, 3)))
    for name in ("stride", "padding", "dilation", "groups"):
        with pytest.raises(portconv.ConvTypeError, match=name):
            jax.jit(lambda n, name=name: portconv.conv(x, w, **{name: n}))(1)
    with pytest.raises(portconv.ConvTypeError, match="x_shape"):
        jax.jit(lambda n: portconv.conv_input_grad(x, w, (2, 4, n)))(9)


def test_a_numpy_kernel_is_refused_in_words():
    x, w = arrays(((2, 4, 7), (6, 4, 3)))
    with pytest.raises(portconv.ConvTypeError, match="jax"):
        portconv.conv(x, np.asarray(w))
    with pytest.raises(portconv.ConvTypeError, match="jax"):
        jax.jit(lambda x: portconv.conv(x, np.asarray(w)))(x)


def test_symbolic_sizes_are_refused_in_words():
    from jax import export

    (batch,) = export.symbolic_shape("batch")
    x, w = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((batch, 4, 9), (6, 4, 3)))
    with pytest.raises(portconv.ConvShapeError, match=r"x: got shape \(batch, 4, 9\) with symbolic sizes"):
        export.export(jax.jit(portconv.conv))(x, w)


def test_a_workspace_limit_holds_for_what_is_traced():
    x, w = arrays(((1, 64, 40, 40), (64, 64, 3, 3)), dtype="float32")
    with portconv.workspace_limit(1), pytest.raises(portconv.ConvValueError, match="workspace_limit"):
        jax.jit(lambda x, w: portconv.conv(x, w, algorithm="fft"))(x, w)
    assert portconv.conv(x, w, algorithm="fft").shape == (1, 64, 38, 38)


def run(code, **environment):
    own = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=own, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_numbers_of_64_bits():
    code = """
import jax, numpy as np, portconv
x, w = jax.numpy.ones((2, 4, 9), "float32"), jax.numpy.ones((6, 4, 3), "float32")
out = jax.jit(portconv.conv)(x, w)
assert out.dtype == "float32" and np.array_equal(out, np.full((2, 6, 7), 12, "float32"))
for call in (lambda x, w: portconv.conv(x, w, precision="reproducible"), portconv.error_bound):
    for function in (call, jax.jit(call)):
        try:
            print(function(x, w).dtype)
        except portconv.BackendError as error:
            print(error)
"""
    said = run(code, JAX_ENABLE_X64="0").splitlines()
    assert len(said) == 4
    lacking = "precision: got 'reproducible' on jax, which holds no float64; expected jax.config.update("
    assert said[:2] == [f"{lacking}'jax_enable_x64', True)"] * 2
    assert said[2:] == ["float32", "float32"]


def test_on_two_devices():
    code = """
import jax, numpy as np, portconv
from jax.sharding import NamedSharding, PartitionSpec
generator = np.random.default_rng(0)
x, w = generator.standard_normal((4, 3, 9)).astype("float32"), generator.standard_normal((5, 3, 3)).astype("float32")
one, two = jax.devices()
here, there = jax.device_put(w, one), jax.device_put(w, two)
out = portconv.conv(jax.device_put(x, two), there, precision="reproducible")
assert out.device == two
expected = portconv.conv(x, w, precision="reproducible")
assert np.asarray(out).tobytes() == expected.tobytes()
try:
    portconv.conv(jax.device_put(x, two), here)
except portconv.BackendError as error:
    print(error)
mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
shared = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
everywhere = jax.device_put(w, NamedSharding(mesh, PartitionSpec()))
out = jax.jit(lambda x, w: portconv.conv(x, w, precision="reproducible"))(shared, everywhere)
assert len(out.sharding.device_set) == 2
assert np.asarray(out).tobytes() == expected.tobytes()
for checked in (False, True):
    each = jax.shard_map(
        portconv.conv, mesh=mesh, in_specs=(PartitionSpec("batch"), PartitionSpec()), out_specs=PartitionSpec("batch"),
        check_vma=checked,
    )
    try:
        mine, theirs = (jax.grad(lambda w: (call(shared, w) ** 2).sum())(everywhere) for call in (each, portconv.conv))
        # Sums of 4 * 7 terms of 10 products each, whose magnitudes add up to less than a thousand, in another order.
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=280 * 2**-23 * 1000)
    except portconv.BackendError as error:
        print(error)
"""
    said = run(code, JAX_ENABLE_X64="1", JAX_NUM_CPU_DEVICES="2")
    assert [line.partition(":")[0] for line in said.splitlines()] == ["w", "jax.shard_map"]


@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0)])
def test_vmap_over_nothing_gives_nothing_and_gradients_of_zero(mapped):
    x, w = (
        jax.numpy.ones(((0,) if axis == 0 else ()) + shape)
        for axis, shape in zip(mapped, [(2, 1, 5), (4, 1, 3)], strict=True)
    )

    def many(x, w):
        return jax.vmap(portconv.conv, in_axes=mapped)(x, w)

    for run in (many, jax.jit(many)):
        assert run(x, w).shape == (0, 2, 4, 3)
    for array, gradient in zip((x, w), jax.grad(lambda *arrays: many(*arrays).sum(), (0, 1))(x, w), strict=True):
        assert gradient.shape == array.shape
        assert not jax.numpy.any(gradient)
    assert jax.vmap(portconv.error_bound, in_axes=mapped)(x, w).shape == (0, 2, 4, 3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_cache_leaves_one_compiled_function_and_enters_another(bias):
    x, w, b = (jax.numpy.asarray(np.random.default_rng(0).integers(-9, 10, shape), "float64") for shape in BIASED)
    calls = (
        (portconv.conv_forward, portconv.conv_backward),
        (portconv.conv_transpose_forward, portconv.conv_transpose_backward),
    )
    for forward, backward in calls:
        # JAX hashes what a cache has beside its arrays, and a list has no hash.
        out, cache = jax.jit(partial(forward, padding=[1]))(x, w, b if bias else None)
        expected, theirs = forward(x, w, b if bias else None, padding=1)
        assert type(cache) is type(theirs)
        # Whole numbers: sums of at most 2 * 3 * 9 products of at most 81, and of bounded outputs, are exact.
        assert jax.numpy.array_equal(out, expected)
        for mine, wanted in zip(jax.jit(backward)(out, cache), backward(expected, theirs), strict=True):
            assert mine is wanted is None or jax.numpy.array_equal(mine, wanted)


BIASED = ((2, 2, 9), (2, 2, 3), (2,))


def test_a_cache_of_numpy_s_arrays_enters_a_compiled_function():
    out, cache = portconv.conv_forward(np.ones((1, 2, 5)), np.ones((2, 2, 3)))
    dx, dw, db = jax.jit(portconv.conv_backward)(out, cache)
    expected = portconv.conv_backward(out, cache)
    assert np.array_equal(dx, expected.dx)
    assert np.array_equal(dw, expected.dw)
    assert db is None


def test_vmap_maps_a_cache():
    x, w = jax.numpy.arange(40.0).reshape(4, 1, 2, 5), jax.numpy.ones((2, 2, 3))
    out, caches = jax.vmap(lambda x: portconv.conv_forward(x, w))(x)
    grads = jax.vmap(portconv.conv_backward)(out, caches)
    for i in range(4):
        alone, cache = portconv.conv_forward(x[i], w)
        assert jax.numpy.array_equal(grads.dw[i], portconv.conv_backward(alone, cache).dw)


def test_an_error_of_xla_s_is_one_of_portconv_s(monkeypatch):
    def failing(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nwhile trying to allocate")

    monkeypatch.setattr(jax_primitive, "_compiled", lambda *_: failing)
    x, w = arrays(((1, 2, 5), (3, 2, 2)))
    with pytest.raises(portconv.BackendError, match="jax: RESOURCE_EXHAUSTED: out of memory while trying to allocate"):
        portconv.conv(x, w)


def test_signals_and_masks_are_jitted_and_differentiated():
    numpy = jax.numpy
    x, w, where = numpy.arange(40.0), numpy.array([1.0, 2.0, 3.0]), numpy.arange(40) % 3 > 0

    def call(x):
        return portconv.signal.correlate(x, w, "same", where=where)

    # The sum of a correlation adds up the taps that read each cell.
    taps = numpy.array([3.0, *[6.0] * 38, 5.0]) * where
    assert numpy.array_equal(jax.jit(call)(x), call(x))
    assert numpy.array_equal(jax.grad(lambda x: call(x).sum())(x), taps)
