"""Dask arrays: lazy, in any chunks, equal to NumPy's results, and refused in words where they cannot be."""

from __future__ import annotations

import math
import pickle
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import portconv
from portconv import ConvShapeError, ConvTypeError, ConvValueError, backends, limits
from portconv.engine import execution
from portconv.frameworks.dask_graph import tasks
from portconv.reproducible.bias_grad import channel_sums, round_channel_sums
from portconv.reproducible.magnitudes import magnitudes
from portconv.spec.geometry import Geometry
from portconv.spec.operation import Kind
from portconv.spec.operation import operation as operation_of

dask = pytest.importorskip("dask", reason="Dask is not installed")
da = pytest.importorskip("dask.array", reason="dask.array is not installed")

MODES = ("zeros", "constant", "reflect", "symmetric", "replicate", "circular")
DTYPES = ("float32", "float64", "float16", "complex64", "complex128")
RARE = ("nan", "inf", "-inf", "1e-40", "0.0", "-0.0")
"""What reproducible results must have a rule for; 1e-40 is subnormal in float32."""


@pytest.fixture(autouse=True)
def _in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def cut(random_, size, least=1):
    """Chunks of a few cells each, often of one."""
    found = []
    while sum(found) < size or not found:
        found.append(min(random_.choice((least, 1, 2, 3, 5)), size - sum(found)))
    return tuple(found)


def chunked(random_, array):
    """The same array in Dask's chunks, of sizes drawn anew along each axis."""
    return da.from_array(array, chunks=tuple(cut(random_, size) for size in array.shape))


@dataclass
class Call:
    """A call drawn at random, with operands of NumPy's."""

    seed: int
    dtype: str = "float32"
    whole: bool = False
    rare: bool = False
    transposed: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        random_, self.rng = random.Random(self.seed), np.random.default_rng(self.seed)
        dims = random_.choice((1, 1, 2, 2, 3))
        most = {1: 20, 2: 9, 3: 6}[dims]
        groups = random_.choice((1, 1, 2, 3))
        own = {"zeros": 6, "constant": 6, "reflect": 12, "symmetric": 12, "replicate": 4, "circular": 9}
        mode = "zeros" if self.transposed else random_.choice(MODES)
        while True:
            size = [random_.randint(1, most) for _ in range(dims)]
            kernel = [random_.randint(1, 4) for _ in range(dims)]
            dilation = [random_.randint(1, 3) for _ in range(dims)]
            stride = [random_.randint(1, 4) for _ in range(dims)]
            pads = [(random_.randint(0, own[mode] // dims), random_.randint(0, own[mode] // dims)) for _ in range(dims)]
            extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
            if self.transposed:
                more = [random_.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
                sides = zip(size, stride, pads, extent, more, strict=True)
                if min((s - 1) * t - sum(p) + e + m for s, t, p, e, m in sides) >= 1:
                    self.options["output_padding"] = tuple(more)
                    break
            elif all(s + sum(p) >= e for s, p, e in zip(size, pads, extent, strict=True)):
                self.options["padding_mode"] = mode
                self.options["padding_value"] = 7 if mode == "constant" else 0
                break
        channels, filters = groups * random_.randint(1, 2), groups * random_.randint(1, 2)
        self.options.update(stride=tuple(stride), padding=tuple(pads), dilation=tuple(dilation), groups=groups)
        batch = random_.choice((None, 1, 3, 4))
        shape = (channels, *size) if batch is None else (batch, channels, *size)
        if random_.random() < 0.3:
            self.options["data_format"] = "channels_last"
            shape = (*shape[: len(shape) - dims - 1], *size, channels)
        of_w = (channels, filters // groups) if self.transposed else (filters, channels // groups)
        self.x, self.w = self.array(shape), self.array((*of_w, *kernel))
        self.b = self.array((filters,)) if random_.random() < 0.7 else None
        self.random = random_

    def array(self, shape):
        if self.whole:
            values = self.rng.integers(-3, 4, shape)
        else:
            values = self.rng.standard_normal(shape) * 2.0 ** self.rng.integers(-3, 4, shape)
        if self.dtype.startswith("complex"):
            values = values + 1j * (self.rng.integers(-3, 4, shape) if self.whole else self.rng.standard_normal(shape))
        array = np.asarray(values).astype(self.dtype)
        if self.rare:
            for value in RARE:
                if self.rng.random() < 0.3 and array.size:
                    array.flat[self.rng.integers(array.size)] = np.array(value, dtype="float64").astype(self.dtype)
        return array

    def forward(self, *operands, **more):
        function = portconv.conv_transpose_forward if self.transposed else portconv.conv_forward
        return function(*operands, **self.options, **more)

    def backward(self, dout, cache):
        return (portconv.conv_transpose_backward if self.transposed else portconv.conv_backward)(dout, cache)

    def both(self, **more):
        """All results of NumPy's arrays, and of the same in chunks: by name, computed at once."""
        out, cache = self.forward(self.x, self.w, self.b, **more)
        self.dout = dout = self.array(out.shape)
        truth = {"out": out, **self.backward(dout, cache)._asdict()}
        x, w, d = (chunked(self.random, array) for array in (self.x, self.w, dout))
        b = None if self.b is None else chunked(self.random, self.b)
        lazy, cache = self.forward(x, w, b, **more)
        found = {"out": lazy, **self.backward(d, cache)._asdict()}
        assert all(array is None or isinstance(array, da.Array) for array in found.values())
        for name, array in found.items():
            if array is not None:  # what is said before anything is computed
                assert (array.shape, array.dtype) == (truth[name].shape, truth[name].dtype)
                assert array._meta.dtype == array.dtype
        return truth, dict(zip(found, dask.compute(*found.values()), strict=True))


def same_bits(truth, found):
    for name, array in truth.items():
        if array is None:
            assert found[name] is None
            continue
        assert type(found[name]) is np.ndarray
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        own = (np.ascontiguousarray(each).reshape(*each.shape, 1).view("u1") for each in (found[name], array))
        assert np.array_equal(*own), name


@pytest.mark.filterwarnings("ignore:(overflow|invalid|divide)")
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
@pytest.mark.parametrize("seed", range(45))
def test_reproducible_results_have_the_bits_of_one_machine(seed, transposed):
    call = Call(seed, DTYPES[seed % len(DTYPES)], rare=seed % 3 == 0, transposed=transposed)
    same_bits(*call.both(precision="reproducible"))


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "complex64", "int8", "uint16", "int64"])
@pytest.mark.parametrize("seed", range(8))
def test_sums_that_are_exact_are_equal(seed, dtype, transposed):
    # Products of whole numbers of at most 3, 18 in a complex one's part: float32 holds the sums of 2**19 of them, and
    # halves are rounded from those once.
    both = Call(100 + seed, dtype, whole=True, transposed=transposed).both(algorithm="gemm")
    # The sign of a zero depends on the order in which the BLAS adds: 0 + -0 is 0.
    same_bits(*({name: array if array is None else array + 0 for name, array in own.items()} for own in both))


@pytest.mark.parametrize("precision", ["standard", "fast"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "complex64"])
@pytest.mark.parametrize("seed", range(8))
def test_other_results_are_off_by_no_more_than_their_bound(seed, dtype, precision):
    call = Call(200 + seed, dtype)
    truth, found = call.both(precision=precision, algorithm="gemm")
    # Each is off by at most gamma_n times the sum of magnitudes, where n counts the roundings: of two products a
    # term, as in parts of complex numbers, of the addition of a bias, and one for magnitudes that are rounded too.
    # Halves are rounded once more, and what is subnormal by as much as the smallest normal number.
    wide = Call(200 + seed, dtype)
    counts = []
    for of in (np.abs, lambda array: np.ones(array.shape)):
        x, w = (of(each).astype("float64") for each in (call.x, call.w))
        b = None if call.b is None else of(call.b).astype("float64")
        out, cache = wide.forward(x, w, b, algorithm="direct")
        grads = wide.backward(of(call.dout).astype("float64"), cache)
        counts.append({"out": out, **grads._asdict()})
    sizes, terms = counts
    half = dtype == "float16"
    unit = float(np.finfo("float32" if half else dtype).eps) / 2
    for name, size in sizes.items():
        if size is not None:
            roundings = (2 * terms[name] + 2) * unit
            error = roundings / (1 - roundings) + (float(np.finfo(dtype).eps) / 2 if half else 0)
            assert (np.abs(found[name] - truth[name]) <= 2 * (error * size + np.finfo(dtype).tiny)).all(), name


@pytest.mark.parametrize("precision", ["standard", "reproducible"])
@pytest.mark.parametrize("seed", range(6))
def test_gradient_functions_of_their_own(seed, precision):
    call = Call(300 + seed, "float64", whole=True)
    own = {**call.options, "precision": precision, "algorithm": "gemm"}
    dout = call.array(portconv.conv(call.x, call.w, **own).shape)
    x, w, d = (chunked(call.random, array) for array in (call.x, call.w, dout))
    truth = (
        portconv.conv_input_grad(dout, call.w, call.x.shape, **own),
        portconv.conv_weight_grad(dout, call.x, call.w.shape, **own),
    )
    found = portconv.conv_input_grad(d, w, x.shape, **own), portconv.conv_weight_grad(d, x, w.shape, **own)
    same_bits(dict(zip("xw", truth, strict=True)), dict(zip("xw", dask.compute(*found), strict=True)))


@pytest.mark.parametrize("precision", ["standard", "reproducible"])
@pytest.mark.parametrize("seed", range(6))
def test_bounds_hold(seed, precision):
    call = Call(400 + seed, "float32")
    x, w = chunked(call.random, call.x), chunked(call.random, call.w)
    b = None if call.b is None else chunked(call.random, call.b)
    own = {**call.options, "precision": precision}
    bound, out = dask.compute(portconv.error_bound(x, w, b, **own), portconv.conv(x, w, b, **own))
    b = None if call.b is None else call.b.astype("float64")
    # Float64's own error is 2**-29 of float32's.
    exact = portconv.conv(call.x.astype("float64"), call.w.astype("float64"), b, **call.options)
    assert bound.shape == out.shape
    assert (np.abs(out - exact) <= bound * (1 + 2.0**-20)).all()
    assert np.isfinite(bound).all()


@pytest.mark.parametrize("seed", range(6))
def test_windows(seed):
    random_, rng = random.Random(seed), np.random.default_rng(seed)
    x = rng.integers(-4, 5, (3, 4, 7, 8)).astype("float32")
    own = {"kernel_size": (2, 3), "stride": (1, 2), "padding": ((1, 0), (2, 1)), "dilation": (2, 1)}
    columns = portconv.unfold(x, **own)
    lazy = portconv.unfold(chunked(random_, x), **own)
    assert isinstance(lazy, da.Array)
    folded = portconv.fold(columns, (7, 8), **own)
    again = portconv.fold(chunked(random_, columns), (7, 8), **own)
    same_bits({"columns": columns, "x": folded}, {"columns": lazy.compute(), "x": again.compute()})
    assert lazy.chunks[0] == chunked(random.Random(seed), x).chunks[0]
    same_bits({"x": folded}, {"x": portconv.fold(lazy, (7, 8), **own).compute()})


def test_nothing_in_a_batch():
    x, w, b = (
        da.zeros((0, 2, 5), dtype="float32", chunks=2),
        da.ones((3, 2, 3), dtype="float32"),
        da.ones(3, dtype="float32"),
    )
    for precision in ("standard", "reproducible"):
        out, cache = portconv.conv_forward(x, w, b, precision=precision)
        dx, dw, db = dask.compute(*portconv.conv_backward(da.zeros_like(out), cache))
        assert (out.compute().shape, dx.shape) == ((0, 3, 3), (0, 2, 5))
        assert not dw.any()
        assert not db.any()


def example(chunks=(2, 2, 8, 8), shape=(2, 2, 16, 16)):
    rng = np.random.default_rng(0)
    x = da.from_array(rng.standard_normal(shape).astype("float32"), chunks=chunks)
    w, b = rng.standard_normal((3, 2, 3, 3)).astype("float32"), rng.standard_normal(3).astype("float32")
    return x, da.from_array(w), da.from_array(b)


def test_outputs_lie_in_the_chunks_of_the_input():
    x, w, _ = example((1, 2, (3, 5, 8), (10, 6)))
    out = portconv.conv(x, w, padding="same")
    assert out.chunks == ((1, 1), (3,), (3, 5, 8), (10, 6))
    assert portconv.conv_input_grad(out, w, x.shape, padding="same").chunks == x.chunks
    assert portconv.conv(x, w).chunks == ((1, 1), (3,), (2, 5, 7), (9, 5))
    assert portconv.conv(x, w, padding="same", stride=2).chunks == ((1, 1), (3,), (1, 3, 4), (5, 3))
    # Of chunks that no window has its middle in there are no outputs.
    assert portconv.conv(x.rechunk({2: 1}), w).chunks[2] == (1,) * 14


def test_the_halo_is_what_the_windows_read():
    x, w, _ = example((2, 2, 8, 8))
    out = portconv.conv(x, w, padding="same")
    (name,) = (name for name in out.dask.layers if name.startswith("conv-halo-"))
    halos = out.dask.layers[name]
    sizes = sorted(math.prod(part.stop - part.start for part in task[2]) for task in halos.values())
    # A row, a column and a corner for each of four blocks, of 2 samples and 2 channels.
    assert sizes == [4] * 4 + [32] * 8
    # And with a kernel of one there is none.
    one = portconv.conv(x, da.ones((3, 2, 1, 1), dtype="float32"))
    assert not [name for name in one.dask.layers if "halo" in name]


def test_a_halo_keeps_no_chunk_in_memory():
    chunk = np.arange(24.0).reshape(1, 1, 4, 6)
    part = tasks.halo(chunk, (slice(0, 1), slice(0, 1), slice(3, 4), slice(0, 6)))
    assert part.base is None
    assert np.array_equal(part, chunk[:, :, 3:])


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_sums_of_channels_that_no_machine_holds_take_one_more_limb(dtype):
    backend, geometry = backends.get("numpy"), Geometry(2, 3, 3, 1, (50,), (1,), (1,), (1,), (0,), (0,))
    array = Call(0, dtype).array((2, 3, 50))
    largest = magnitudes(backend, array)[0].max(axis=0)
    operation = operation_of(Kind.CHANNEL_SUM, geometry, dtype, dtype)
    found = []
    for count, limbs in ((100, 2), (2**34, 3)):
        sums = channel_sums(operation, backend, array, count)
        assert sums.shape[1] == limbs + (dtype == "float64" and count > 100)
        found.append(round_channel_sums(operation, backend, sums, largest, count))
    same_bits({"db": found[0]}, {"db": found[1]})


def test_chunks_smaller_than_the_halo():
    x, _, b = example((1, 1, 1, 1), (1, 2, 7, 6))
    wide = da.from_array(np.random.default_rng(1).standard_normal((3, 2, 5, 5)).astype("float32"))
    found = portconv.conv(x, wide, b, padding=2, precision="reproducible")
    assert found.chunks == ((1,), (3,), (1,) * 7, (1,) * 6)
    truth = portconv.conv(*(each.compute() for each in (x, wide, b)), padding=2, precision="reproducible")
    same_bits({"out": truth}, {"out": found.compute()})


def refuse(*_, **__):
    raise AssertionError("computed")


def test_nothing_is_computed_before_it_is_asked_for():
    x, w, b = example()
    with dask.config.set(scheduler=refuse):
        for precision in ("standard", "reproducible"):
            out, cache = portconv.conv_forward(x, w, b, padding=1, padding_mode="reflect", precision=precision)
            portconv.conv_backward(out, cache)
            portconv.conv(x, w, b, precision=precision)
            portconv.conv_input_grad(out, w, x.shape, padding=1, precision=precision)
            portconv.conv_weight_grad(out, x, w.shape, padding=1, precision=precision)
            portconv.error_bound(x, w, b, precision=precision)
            up, cache = portconv.conv_transpose_forward(out, w, stride=2, precision=precision)
            portconv.conv_transpose_backward(up, cache)
        portconv.explain(x, w, b)
        portconv.fold(portconv.unfold(x, 3), (16, 16), 3)
        with pytest.raises(AssertionError, match="computed"):
            out.compute()


def counted(array, loads, name):
    """The same array, which notes each time that a chunk of it is loaded."""

    def load(block, block_info=None):
        loads.append((name, block_info[0]["chunk-location"]))
        return block

    return array.map_blocks(load, dtype=array.dtype, meta=array._meta)


@pytest.mark.parametrize("precision", ["standard", "reproducible"])
def test_each_chunk_is_made_once(precision):
    loads = []
    x, w, b = (counted(array, loads, name) for array, name in zip(example((1, 2, 8, 4)), "xwb", strict=True))
    out, cache = portconv.conv_forward(x, w, b, padding="same", precision=precision)
    out.compute()
    assert len(loads) == len(set(loads)) == 2 * 2 * 4 + 2
    loads.clear()
    dout = counted(da.ones_like(out), loads, "dout")
    dask.compute(out, *portconv.conv_backward(dout, cache))
    assert len(loads) == len(set(loads)) == 2 * 2 * 2 * 4 + 2


def splits(array):
    return {dask.utils.key_split(name) for name in array.dask.layers}


def test_names_say_what_is_computed():
    x, w, b = example()
    out, cache = portconv.conv_forward(x, w, b, padding="same")
    assert out.name.startswith("conv-")
    assert dask.utils.key_split(out.name) == "conv"
    assert splits(out) == {"array", "conv-halo", "conv"}
    dx, dw, db = portconv.conv_backward(out, cache)
    assert splits(dx) == {"array", "conv-halo", "conv", "conv_input_grad-halo", "conv_input_grad"}
    new = {"conv_weight_grad-halo", "conv_weight_grad-partial", "conv_weight_grad-sum"}
    assert splits(dw) == {"array", "conv-halo", "conv", *new}
    assert splits(db) == {"array", "conv-halo", "conv", "conv_bias_grad-partial", "conv_bias_grad-sum"}
    exact = {"conv-magnitudes", "conv-scales"}
    assert splits(portconv.conv(x, w, padding="same", precision="reproducible")) == {
        "array",
        "conv-halo",
        "conv",
        *exact,
    }
    up, cache = portconv.conv_transpose_forward(x, da.ones((2, 3, 3, 3), dtype="float32"))
    assert splits(up) == {"array", "ones_like", "conv_transpose-halo", "conv_transpose"} - {"ones_like"} | splits(
        da.ones((2, 3, 3, 3))
    )
    assert splits(portconv.conv_transpose_backward(up, cache).dx) >= {"conv_transpose_input_grad"}
    assert splits(portconv.conv_transpose_backward(up, cache).dw) >= {"conv_transpose_weight_grad-sum"}


def test_names_are_those_of_what_is_computed():
    x, w, b = example()
    assert portconv.conv(x, w, b).name == portconv.conv(x, w, b).name
    names = [
        portconv.conv(x, w, b, **own).name
        for own in ({}, {"stride": 2}, {"precision": "reproducible"}, {"algorithm": "gemm"})
    ]
    with portconv.workspace_limit(1 << 20):
        names.append(portconv.conv(x, w, b).name)
    with portconv.num_threads(2):
        names.append(portconv.conv(x, w, b).name)
    names += [portconv.conv(x + 1, w, b).name, portconv.conv(x, w).name]
    assert len(set(names)) == 8


def test_sums_are_a_tree():
    x, _, _ = example((1, 2, 2, 2))
    with dask.config.set(split_every=4):
        dw = portconv.conv_weight_grad(x[:, :, 1:-1, 1:-1], x, (2, 2, 3, 3))
    (name,) = (name for name in dw.dask.layers if "conv_weight_grad-sum" in name)
    (partial,) = (name for name in dw.dask.layers if "conv_weight_grad-partial" in name)
    inputs = {
        key: len(task[-1] if task[0].__name__.endswith("_sum") else task[2])
        for key, task in dw.dask.layers[name].items()
    }
    assert max(inputs.values()) == 4
    # 2 * 8 * 8 blocks: 128, of which 32, 8 and 2 are made.
    assert len(dw.dask.layers[partial]) == 128
    assert len(inputs) == 32 + 8 + 2 + 1


def test_graphs_can_be_sent_and_cut():
    x, w, b = example((1, 2, 4, 4))
    out, cache = portconv.conv_forward(x, w, b, padding="same", precision="reproducible")
    grads = portconv.conv_backward(out, cache)
    for array in (out, *grads):
        for task in array.dask.to_dict().values():
            pickle.loads(pickle.dumps(task))
    corner = dask.optimize(out[:1, :, :4, :4])[0]
    plain = portconv.conv(x, w, b, padding="same")
    few = plain.dask.cull([(plain.name, 0, 0, 0, 0)])
    # Of a corner block the task, the halo of three neighbours, four chunks, the filters and the bias.
    sizes = {dask.utils.key_split(name): len(layer) for name, layer in few.layers.items() if name.startswith("conv")}
    assert sizes == {"conv": 1, "conv-halo": 3}
    assert sum(map(len, few.layers.values())) == 1 + 3 + 4 + 2
    assert np.array_equal(corner.compute(), out.compute()[:1, :, :4, :4])


def test_limits_are_those_that_the_graph_was_made_under(monkeypatch):
    seen = []

    def compute(operation, backend, *operands, compute=execution.compute):
        seen.append((limits.threads(), limits.workspace()))
        return compute(operation, backend, *operands)

    monkeypatch.setattr(execution, "compute", compute)
    x, w, b = example()
    with portconv.num_threads(3), portconv.workspace_limit(1 << 20):
        out = portconv.conv(x, w, b)
    out.compute()
    assert set(seen) == {(3, 1 << 20)}
    seen.clear()
    free = portconv.conv(x, w, b)
    with portconv.num_threads(2):
        free.compute()
    assert set(seen) == {(1, None)}


def test_a_limit_that_is_too_small_is_an_error_once_it_is_computed():
    x, w, b = example()
    with portconv.workspace_limit(1):
        out = portconv.conv(x, w, b, precision="reproducible")
    with pytest.raises(ConvValueError, match="workspace_limit: got 1 bytes, expected at least"):
        out.compute()


@pytest.mark.parametrize("place", ["x", "w", "b", "dout"])
def test_unknown_sizes_are_refused(place):
    x, w, b = example()
    given = {"x": x, "w": w, "b": b, "dout": portconv.conv(x, w, b)}
    rows = da.from_array(np.ones(given[place].shape[0]), chunks=1) > 0
    given[place] = given[place][rows]
    nan = tuple(given[place].shape)
    message = (
        f"{place}: got shape {nan} with chunks of unknown sizes, expected known ones; "
        "array.compute_chunk_sizes() finds them, by computing the array"
    )

    def call():
        _, cache = portconv.conv_forward(given["x"], given["w"], given["b"])
        portconv.conv_backward(given["dout"], cache)

    with dask.config.set(scheduler=refuse), pytest.raises(ConvShapeError) as caught:
        call()
    assert str(caught.value) == message
    if place == "x":
        assert portconv.conv(given["x"].compute_chunk_sizes(), w, b).shape == (2, 3, 14, 14)


def test_arrays_of_two_libraries_are_refused():
    x, w, b = example()
    with pytest.raises(ConvTypeError) as caught:
        portconv.conv(x, w.compute(), b)
    assert str(caught.value) == (
        "w: got an array of numpy, expected one of dask, as x is; portconv.backends.get('dask').asarray converts"
    )
    with pytest.raises(ConvTypeError, match="w: got an array of dask, expected one of numpy, as x is"):
        portconv.conv(x.compute(), w)
    assert portconv.conv(x, backends.get("dask").asarray(w.compute()), b).shape == (2, 3, 14, 14)


class Odd:
    """Chunks of a library that nobody knows."""

    def __init__(self, shape):
        self.shape, self.dtype, self.ndim = shape, np.dtype("float32"), len(shape)

    def __array_function__(self, *_):
        return self

    def __getitem__(self, _):
        return self

    def astype(self, *_, **__):
        return self


def test_chunks_that_are_no_arrays_are_refused():
    x, w, _ = example()
    odd = da.Array({("odd", 0, 0, 0): None}, "odd", ((1,), (2,), (5,)), meta=Odd((0, 0, 0)))
    with pytest.raises(ConvTypeError) as caught:
        portconv.conv(odd, w)
    assert str(caught.value) == (
        "x: got chunks of no library that portconv knows: got Odd, expected an array with an Array API namespace"
    )
    masked = da.ma.masked_greater(x, 1)
    with pytest.raises(
        ConvTypeError, match=r"x: of its chunks: got a masked array, expected a plain one: array.filled"
    ):
        portconv.conv(masked, w)


def test_chunks_of_other_libraries_are_refused():
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    _, w, _ = example()
    other = da.Array({("odd", 0, 0, 0): None}, "odd", ((1,), (2,), (5,)), meta=strict.zeros((0, 0, 0)))
    with pytest.raises(ConvTypeError, match="x: got chunks of array_api_strict, expected NumPy's or CuPy's"):
        portconv.conv(other, w)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["standard", "reproducible"])
def test_tasks_stay_in_the_library_of_their_chunks(precision, mode):
    # CuPy wants a GPU: the strict library, which mixes with no other, stands for it once the graph is made.
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    rng = np.random.default_rng(0)
    shapes, options = ((2, 2, 9, 8), (3, 2, 3, 3), (3,)), {"padding": 2, "padding_mode": mode, "precision": precision}
    operands = [rng.integers(-3, 4, shape).astype("float32") for shape in shapes]
    out, cache = portconv.conv_forward(*operands, **options, algorithm="gemm")
    dout = rng.integers(-3, 4, out.shape).astype("float32")
    truth = out, *portconv.conv_backward(dout, cache)
    x, w, b, d = (da.from_array(array, chunks=4) for array in (*operands, dout))
    lazy, cache = portconv.conv_forward(x, w, b, **options, algorithm="gemm")
    for expected, array in zip(truth, (lazy, *portconv.conv_backward(d, cache)), strict=True):
        graph = array.dask.to_dict()
        for given in (x, w, b, d):
            for key in dask.core.flatten(given.__dask_keys__()):
                if key in graph:
                    graph[key] = strict.asarray(dask.get(given.dask.to_dict(), key))
        keys = list(dask.core.flatten(array.__dask_keys__()))
        found = dict(zip(keys, dask.get(graph, keys), strict=True))
        assert {backends.of(block).name for block in found.values()} == {"array_api_strict"}
        whole = np.empty(array.shape, array.dtype)
        for key, place in zip(keys, da.core.slices_from_chunks(array.chunks), strict=True):
            whole[place] = np.from_dlpack(found[key])
        same_bits({"result": expected}, {"result": whole})


def test_other_bad_input_is_what_it_is_elsewhere():
    x, w, b = example()
    with dask.config.set(scheduler=refuse):
        with pytest.raises(ConvShapeError, match="w: got a kernel of 40 in spatial dimension 0"):
            portconv.conv(x, da.ones((3, 2, 40, 3), dtype="float32"))
        with pytest.raises(ConvShapeError, match=r"b: got shape \(4,\), expected \(3,\)"):
            portconv.conv(x, w, da.ones(4, dtype="float32"))
        with pytest.raises(ConvTypeError, match="x: got dtype bool"):
            portconv.conv(x > 0, w)
        with pytest.raises(ConvTypeError, match="w: got dtype int64, expected a floating-point or complex one"):
            portconv.conv(x, w.astype("int64"))
        out, cache = portconv.conv_forward(x, w, b)
        with pytest.raises(ConvShapeError, match=r"dout: got shape \(2, 3, 14, 13\), expected \(2, 3, 14, 14\)"):
            portconv.conv_backward(out[..., 1:], cache)


def test_volumes_larger_than_memory_are_no_error():
    x = da.zeros((1, 1, 20000, 20000, 20000), dtype="float32", chunks=(1, 1, 1000, 1000, 1000))
    assert portconv.conv(x, da.ones((1, 1, 1, 1, 1), dtype="float32"), padding="same").nbytes == 4 * 20000**3


def test_the_backend():
    own = backends.get("dask")
    assert own.framework
    assert not backends.get("numpy").framework
    made = own.asarray([[1, 2], [3, 4]], dtype="float32")
    assert backends.of(made) is own
    assert (own.device_of(made), own.devices()) == ("cpu", ["cpu"])
    assert made.dtype == np.float32
    assert own.asarray(made, dtype="float64").dtype == np.float64
    assert own.asarray(made) is made
    assert np.array_equal(own.to_numpy(made), [[1, 2], [3, 4]])
    with dask.config.set({"array.chunk-size": "64 B"}):
        assert own.asarray(np.zeros((8, 8), "float32")).chunks == ((4, 4), (4, 4))
