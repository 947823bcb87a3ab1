"""cuDNN on CuPy's arrays: what is asked of it, as plain integers; its own front end; its plans; and, on a GPU, results.

Each part runs where what it needs is there, and says in words what it lacks elsewhere.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.cupy_on_numpy import CupyOnNumpy, namespace, ndarray
from support.installed_calls import Instance, faults, signatures
from support.oracle import Problem

import portconv
from portconv import backends
from portconv.backends import Convolution, Unavailable, _cudnn
from portconv.spec.remembered import forget

PROBLEMS = {
    "line": Problem((2, 4, 11), (6, 4, 3), (2,), ((1, 2),), (2,)),
    "plane": Problem((2, 4, 9, 8), (6, 2, 3, 2), (2, 1), ((1, 2), (0, 3)), (1, 2), 2),
    "volume": Problem((2, 4, 5, 6, 7), (8, 1, 3, 2, 3), (1, 2, 1), ((1, 0), (0, 2), (1, 1)), (1, 1, 2), 4),
    "cut": Problem((2, 3, 9, 8), (5, 3, 3, 2), (1, 2), ((-2, 1), (0, -1)), (1, 1)),
    "cut line": Problem((2, 3, 9), (5, 3, 3), (1,), ((-2, -1),), (1,)),
    "far": Problem((1, 2, 2, 5), (3, 2, 3, 3), (1, 1), ((3, 0), (1, 1)), (1, 2)),
}
KINDS = tuple(_cudnn.METHODS)
LIMIT = 1 << 20

every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def convolution(problem: Problem) -> Convolution:
    before, after = zip(*problem.pads, strict=True)
    sizes = problem.stride, problem.dilation, before, after, problem.groups
    return Convolution(problem.x, problem.w, problem.out, *sizes)


def product(problem: Problem, kind: str = "forward", dtype: str = "float32", last: bool = False, fast: bool = False):
    return _cudnn.product(kind, convolution(problem), dtype, last, fast, LIMIT)


@every_problem
def test_the_loops_of_a_product_are_those_of_the_convolution(problem):
    asked = product(problem)
    assert [len(shape) for shape in asked.shapes] == [max(4, len(problem.x))] * 3
    assert min(*asked.before, *asked.after) >= 0
    pads = tuple(zip(asked.before, asked.after, strict=True))
    same = Problem(*asked.shapes[:2], asked.stride, pads, asked.dilation, problem.groups)
    assert same.out == asked.shapes[2]
    x, w, _, dout = problem.operands("float64")
    cells = x[_cudnn.kept(convolution(problem))]
    assert np.array_equal(same.forward(cells.reshape(same.x), w.reshape(same.w)).ravel(), problem.forward(x, w).ravel())
    grad = problem.weight_grad(dout, x)
    assert np.array_equal(same.weight_grad(dout.reshape(same.out), cells.reshape(same.x)).ravel(), grad.ravel())
    dx = problem.input_grad(dout, w)
    inside = dx[_cudnn.kept(convolution(problem))]
    assert np.array_equal(same.input_grad(dout.reshape(same.out), w.reshape(same.w)).ravel(), inside.ravel())
    assert np.count_nonzero(dx) == np.count_nonzero(inside)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6), (2, 1, 4, 5), (2, 3, 1, 1), (1, 1, 1, 1)])
def test_steps_are_those_of_arrays_without_gaps(shape):
    first = np.zeros(shape, "float32")
    last = np.moveaxis(np.zeros((shape[0], *shape[2:], shape[1]), "float32"), -1, 1)
    for array, is_last in ((first, False), (last, True)):
        found = tuple(step // 4 for step in array.strides)
        assert _cudnn.lies_as(shape, found, is_last)
        order = _cudnn.memory_order(len(shape), is_last)
        assert array.transpose(order).flags.c_contiguous
        assert array.transpose(order).transpose(_cudnn._inverse(order)).shape == shape
    gaps = tuple(2 * step for step in _cudnn.steps(shape, False))
    assert _cudnn.lies_as(shape, gaps, False) is (max(shape) == 1)
    ordered = shape[1] == 1 or max(shape[2:]) == 1
    assert _cudnn.lies_as(shape, _cudnn.steps(shape, True), False) is ordered


def test_engines_are_left_out_by_precision():
    transforms = {"WINOGRAD", "WINOGRAD_TILE_4x4", "WINOGRAD_TILE_6x6", "WINOGRAD_TILE_13x13", "FFT"}
    always = transforms | {"DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "NONDETERMINISTIC"}
    for dtype in _cudnn.DTYPES:
        assert _cudnn.left_out(dtype, True) == ()
        assert set(_cudnn.left_out(dtype, False)) == always | ({"TENSOR_CORE"} if dtype == "float32" else set())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_taps_that_read_nothing_but_padding_are_found(size):
    for taps, lo, hi, stride, dilation in np.ndindex(3, 4, 4, 3, 3):
        problem = Problem((1, 1, size), (1, 1, taps + 1), (stride + 1,), ((lo, hi),), (dilation + 1,))
        if size + lo + hi > taps * (dilation + 1):
            read = {tap for _, _, tap, _ in problem.reads()}
            assert convolution(problem).has_taps_of_padding is (len(read) < taps + 1), problem


def test_what_it_does_not_serve_it_says_in_words():
    four = replace(convolution(PROBLEMS["line"]), stride=(1,) * 4)
    native = _cudnn.CudnnConvolution()
    assert native.objection(four) == "one to three spatial dimensions, as cuDNN does"
    assert native.objection(replace(convolution(PROBLEMS["line"]), x_shape=(2, 4, 0))) == "inputs that have cells"


@every_kind
def test_a_report_repeats_a_product(kind):
    given = convolution(PROBLEMS["plane"])
    code = _cudnn.CudnnConvolution().code(kind, given)
    compile(code, "a report", "exec")
    assert f"native_convolution.{kind}(" in code
    assert eval(code[code.index("portconv.backends.Convolution") : -1]) == given


class _FrontEnd(types.SimpleNamespace):
    """What `versions` reads of the front end."""

    def backend_version(self):
        return self.version


@pytest.mark.parametrize(
    ("front_end", "version", "words"),
    [
        ("1.22.1", 92800, "nvidia-cudnn-frontend is 1.22.1, and 1.23 is needed"),
        ("1.28.0", 91500, "cuDNN is 9.15.0, and 9.15.1 is needed"),
    ],
)
def test_old_versions_are_named(monkeypatch, front_end, version, words):
    monkeypatch.setitem(sys.modules, "cudnn", _FrontEnd(__version__=front_end, version=version))
    with pytest.raises(Unavailable) as caught:
        _cudnn.versions()
    assert str(caught.value) == words
    monkeypatch.setitem(sys.modules, "cudnn", _FrontEnd(__version__="1.28.0", version=92801))
    assert _cudnn.versions() == "9.28.1, by nvidia-cudnn-frontend 1.28.0"


def test_without_the_package_the_reason_is_in_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "cudnn", None)  # makes the import fail
    with pytest.raises(Unavailable, match="cudnn"):
        _cudnn.versions()
    assert "portconv[cudnn]" in _cudnn.INSTALL


def test_a_plan_is_made_once_for_all_that_it_depends_on(monkeypatch):
    made = []

    def planned(cudnn, asked, handle):
        made.append(asked)
        return None if asked.dtype == "float64" else _cudnn.Plan(asked, len(made))

    monkeypatch.setattr(_cudnn, "planned", planned)
    desk = _cudnn._Desk(types.SimpleNamespace(create_handle=lambda: "handle"))
    plane = PROBLEMS["plane"]
    different = [
        product(plane),
        product(plane, "weight_grad"),
        product(plane, dtype="float16"),
        product(plane, last=True),
        product(plane, fast=True),
        product(PROBLEMS["cut"]),
        product(plane)._replace(limit=LIMIT + 1),
    ]
    assert [desk.plan(asked) for asked in different * 2] == [_cudnn.Plan(a, n) for n, a in enumerate(different, 1)] * 2
    refused = product(plane, dtype="float64")
    assert desk.plan(refused) is desk.plan(refused) is None
    assert len(made) == len(different) + 1
    monkeypatch.setattr(_cudnn, "MOST_PLANS", len(different))
    desk.plan(product(PROBLEMS["line"]))
    assert len(desk.plans) == len(different) + 1  # one came, and one went
    assert different[0] not in desk.plans


def test_a_thread_that_ends_leaves_its_plans_to_another(monkeypatch):
    runtime = types.SimpleNamespace(getDevice=lambda: 3)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime)))
    cudnn = types.SimpleNamespace(create_handle=object)

    def desks():
        return id(_cudnn._desk(cudnn)), id(_cudnn._desk(cudnn))

    own = desks()
    found = []
    for _ in range(2):
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(desks).result())
    assert own[0] == own[1] != found[0][0]
    assert found[0] == found[1]
    vars(_cudnn._here).clear()
    _cudnn._free.clear()


# Arrays in this machine's memory, with loops in the place of cuDNN's engines


class Loops:
    """What a graph describes, computed by loops from the numbers at the addresses; they skip the padding."""

    runs = 0

    def __init__(self, asked):
        self.asked = asked

    def execute(self, addresses, workspace, handle):
        asked, (made,) = self.asked, {*_cudnn.UIDS} - {*_cudnn.METHODS[self.asked.kind][1].values()}
        dtype = np.dtype(asked.dtype)
        Loops.runs += 1
        arrays = {}
        for role, uid in _cudnn.UIDS.items():
            shape = asked.shape(role)
            memory = (ctypes.c_byte * (np.prod(shape) * dtype.itemsize)).from_address(addresses[uid])
            steps = [step * dtype.itemsize for step in _cudnn.steps(shape, asked.last)]
            arrays[role] = np.ndarray(shape, dtype, memory, strides=steps)
        x, w, out = asked.shapes
        pads = tuple(zip(asked.before, asked.after, strict=True))
        problem = Problem(x, w, asked.stride, pads, asked.dilation, x[1] // w[1])
        operands = {"forward": ("x", "w"), "input_grad": ("out", "w"), "weight_grad": ("out", "x")}[asked.kind]
        assert problem.out == out
        with np.errstate(invalid="ignore"):
            arrays[made][...] = getattr(problem, asked.kind)(*(arrays[role] for role in operands))


@pytest.fixture
def by_loops(monkeypatch):
    """A backend as CuPy's on NumPy's arrays, with cuDNN's convolution and loops for its engines."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    xp = namespace()
    cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(getDevice=lambda: 0),
        get_current_stream=lambda: types.SimpleNamespace(ptr=0),
    )
    names = {name: getattr(xp, name) for name in ("empty", "sum", "all", "isfinite")}
    handles = types.SimpleNamespace(create_handle=object, set_stream=lambda handle, stream: None)
    backend = CupyOnNumpy()
    backend.native_convolution = _cudnn.CudnnConvolution()
    monkeypatch.setitem(backends._by_class, ndarray, backend)
    monkeypatch.setattr(_cudnn, "planned", lambda cudnn, asked, handle: _cudnn.Plan(Loops(asked), 8))
    forget()
    monkeypatch.setitem(sys.modules, "cudnn", handles)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cuda, **names))
    yield lambda array: ndarray(array.copy())
    vars(_cudnn._here).clear()
    _cudnn._free.clear()
    forget()


@every_problem
@pytest.mark.parametrize("order", ["first", "last", "gaps", "one last"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_products_are_those_of_loops(by_loops, problem, order, dtype):
    native, given = _cudnn.CudnnConvolution(), convolution(problem)
    rng = np.random.default_rng(0)
    shapes = {"x": problem.x, "w": problem.w, "b": problem.w[:1], "dout": problem.out}
    x, w, b, dout = (rng.integers(-2, 3, shape).astype(dtype) for shape in shapes.values())

    def there(array):
        last = order == "last" or (order == "one last" and array is x)
        memory = np.moveaxis(np.moveaxis(array, 1, -1).copy(), -1, 1) if last else array.copy()
        return ndarray(np.repeat(memory, 2, axis=-1)[..., ::2] if order == "gaps" else memory)

    found = {
        "out": native.forward(there(x), there(w), by_loops(b), given),
        "dx": native.input_grad(there(dout), there(w), given),
        "dw": native.weight_grad(there(dout), there(x), given),
    }
    for name, truth in problem.all(x, w, b, dout).items():
        if name != "db":
            assert found[name].dtype == dtype
            assert np.array_equal(found[name].values, truth), name


@pytest.mark.parametrize("last", [False, True])
def test_calls_are_those_of_direct(by_loops, last):
    options = {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "dilation": (1, 2), "groups": 2}
    rng = np.random.default_rng(0)
    x, w, b = (rng.integers(-2, 3, shape).astype("float32") for shape in ((2, 4, 9, 8), (6, 2, 3, 2), (6,)))
    x = np.moveaxis(x, 1, -1) if last else x
    options["data_format"] = "channels_last" if last else "channels_first"
    for spoiled in ((), ("x",), ("w",), ("x", "w")):
        for name in spoiled:
            {"x": x, "w": w}[name].flat[3] = np.inf
        before = Loops.runs
        with np.errstate(invalid="ignore"):
            out, cache = portconv.conv_forward(x, w, b, **options, algorithm="direct")
            truths = (out, *portconv.conv_backward(out, cache))
            own, cache = portconv.conv_forward(*map(by_loops, (x, w, b)), **options, algorithm="native")
            found = (own, *portconv.conv_backward(by_loops(out), cache))
        assert Loops.runs == before + 3
        for one, two in zip(found, truths, strict=True):
            assert np.array_equal(one.values, two, equal_nan=True), spoiled


# NVIDIA's package, without its library


@pytest.fixture
def cudnn():
    return pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend is not installed")


def test_the_front_end_has_what_is_asked_of_it(cudnn):
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    array, graph = Instance(cupy.ndarray), Instance(cudnn.pygraph)
    known = {"cudnn": cudnn, "self.cudnn": cudnn, "graph": graph, "plan.graph": graph, "cupy": cupy, "xp": cupy}
    arrays = ("x", "w", "b", "out", "grad", "whole", "array", "first", "room", "dout", "result")
    known |= dict.fromkeys(arrays, array)
    known |= {f"{name}.data": Instance(cupy.cuda.MemoryPointer) for name in ("array", "room")}
    drawn_tensor = cudnn.graph_types.Tensor if hasattr(cudnn, "graph_types") else cudnn.tensor  # the latter in 1.23
    known["made"] = Instance(drawn_tensor, chains=True)
    code = Path(inspect.getfile(_cudnn)).read_text(encoding="utf-8")
    found, seen = faults(code, known)
    assert found == []
    assert {"graph.deselect_numeric_notes", "graph.build_plans", "plan.graph.execute", "cudnn.set_stream"} <= seen
    for dtype, name in _cudnn.DTYPES.items():
        assert hasattr(cudnn.data_type, name)
        assert all(hasattr(cudnn.numerical_note, note) for note in _cudnn.left_out(dtype, False))


@every_kind
def test_a_call_that_the_front_end_lacks_is_named(cudnn, kind):
    code = f"def f(graph):\n    graph.{kind}_plans([1])\n    graph.get_workspace_size(1, 2, 3, 4, 5)"
    words = " ".join(faults(code, {"graph": Instance(cudnn.pygraph)})[0])
    assert f"graph.{kind}_plans" in words
    assert "too many positional arguments" in words


@every_kind
@every_problem
def test_a_graph_is_drawn(cudnn, problem, kind):
    asked = product(problem, kind, last=True)
    method, operands, _ = _cudnn.METHODS[kind]
    # The front end takes any keyword; the function that it calls does not.
    compiled = getattr(importlib.import_module("cudnn")._pybind_module, "backend_graph", None)
    if compiled is None:
        pytest.skip("this front end needs cuDNN to draw, and shows nothing of a graph")
    takes = [set(one.parameters) for one in signatures(getattr(compiled, method))]
    assert any({*operands, *asked.options} <= names for names in takes)
    graph = _cudnn.drawn(cudnn, asked)
    tensors = {tensor.get_uid(): tensor for tensor in graph.tensors.values()}
    assert sorted(tensors) == [1, 2, 3]
    for role, uid in _cudnn.UIDS.items():
        assert tuple(tensors[uid].get_dim()) == asked.shape(role)
        assert tuple(tensors[uid].get_stride()) == _cudnn.steps(asked.shape(role), True)
        assert tensors[uid].get_data_type() == cudnn.data_type.FLOAT
        assert tensors[uid].get_is_virtual() is False
    assert graph.nodes[0].params == asked.options


# cuDNN itself, without a device: it plans for a card whose properties it is told


H200 = {
    "deviceName": "NVIDIA H200",
    "deviceVer": 900,
    "driverVer": 13000,
    "multiProcessorCount": 132,
    "smClockRateKHz": 1980000,
    "memClockRateKHz": 3201000,
    "memoryBusWidth": 6144,
    "l2CacheSize": 62914560,
    "totalGlobalMem": 150000000000,
    "warpSize": 32,
    "regsPerBlock": 65536,
    "maxRegistersPerSM": 65536,
    "maxGridSize": [2147483647, 65535, 65535],
    "maxBlockSize": [1024, 1024, 64],
    "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048,
    "maxCtasPerSM": 32,
    "maxSharedMemoryPerBlock": 49152,
    "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024,
    "supportCoopLaunch": 1,
    "isTccDriver": 0,
    "pciDeviceId": 0,
    "cudaDeviceId": 0,
}
"""The card's data sheet, by cuDNN's names."""


@pytest.fixture
def card(cudnn):
    """The place of a plan, for a card that is not here.

    cuDNN loads the driver's library and does not call it for this, so one with empty functions of these names does, in
    a folder of LD_LIBRARY_PATH: cuGetErrorString, cuModuleGetFunction, cuModuleLoadData, cuModuleUnload,
    cuTensorMapEncodeIm2col and cuTensorMapEncodeTiled.
    """
    try:
        cudnn.backend_version()
        ctypes.CDLL("libcuda.so.1")
        return {"device_property": cudnn.create_device_properties(json.dumps(H200)), "sm_version": 90}
    except (OSError, RuntimeError) as error:
        return pytest.skip(f"cuDNN's engines cannot be loaded: {error}")


@every_kind
@every_problem
@pytest.mark.parametrize("dtype", _cudnn.DTYPES)
def test_cudnn_has_a_plan_within_the_limit(cudnn, card, problem, dtype, kind):
    for last in (False, True):
        for fast in (False, True):
            plan = _cudnn.planned(cudnn, product(problem, kind, dtype, last, fast), **card)
            assert plan is not None
            assert plan.workspace <= LIMIT


def test_the_limit_and_the_precision_choose_the_engine(cudnn, card):
    layer = Problem((8, 64, 56, 56), (64, 64, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    asked = product(layer, last=True)._replace(limit=1 << 30)
    # Engines without tensor cores copy arrays whose channels are last, and those with them do not.
    exact, in_tf32, small = (
        _cudnn.planned(cudnn, each, **card).workspace
        for each in (asked, asked._replace(fast=True), asked._replace(limit=1000))
    )
    assert in_tf32 < 1000 < exact
    assert small <= 1000


@every_kind
def test_a_plan_gets_as_far_as_its_handle(cudnn, card, kind):
    plan = _cudnn.planned(cudnn, product(PROBLEMS["plane"], kind), **card)
    with pytest.raises(RuntimeError, match=r"(?i)handle is null"):  # there is none without a device
        plan.graph.execute({1: 1 << 16, 2: 1 << 17, 3: 1 << 18}, 1 << 19, handle=None)


def test_what_cudnn_refuses_is_no_plan(cudnn, card):
    wrong = product(PROBLEMS["plane"])._replace(dtype="float64")
    assert _cudnn.planned(cudnn, wrong, **card) is not None

    class Refusing(cudnn.pygraph):
        def check_support(self):
            raise cudnn.cudnnGraphNotSupportedError("no engine")

    names = ("data_type", "heur_mode", "numerical_note", "cudnnGraphNotSupportedError")
    refusing = types.SimpleNamespace(pygraph=Refusing, **{name: getattr(cudnn, name) for name in names})
    assert _cudnn.planned(refusing, wrong, **card) is None


# On a GPU


@pytest.fixture
def gpu():
    backend = backends.find("cupy")
    if backend.fault is not None:
        pytest.skip(f"cupy is unavailable: {backend.fault}")
    if backend.native_convolution is None:
        pytest.skip(backend.without_native)
    return backend


@every_problem
@pytest.mark.parametrize("dtype", _cudnn.DTYPES)
@pytest.mark.parametrize("last", [False, True])
def test_results_are_exact_for_whole_numbers(gpu, problem, dtype, last):
    rng = np.random.default_rng(0)
    x, w, dout = (rng.integers(-1, 2, shape).astype("float64") for shape in (problem.x, problem.w, problem.out))

    def there(array):
        array = gpu.asarray(array, dtype="float32").astype(gpu.dtype(dtype))
        order = _cudnn.memory_order(array.ndim, last)
        return array.transpose(order).copy().transpose(_cudnn._inverse(order))

    native, given = gpu.native_convolution, convolution(problem)
    found = {
        "out": native.forward(there(x), there(w), None, given),
        "dx": native.input_grad(there(dout), there(w), given),
        "dw": native.weight_grad(there(dout), there(x), given),
    }
    truths = problem.all(x, w, np.zeros(problem.w[0]), dout)
    assert max(np.abs(truth).max() for truth in truths.values()) <= 2**8  # up to which bfloat16 holds whole numbers
    for name, result in found.items():
        assert result is not None, name
        assert result.dtype == gpu.dtype(dtype)
        assert np.array_equal(gpu.to_numpy(result.astype("float64")), truths[name]), name


def test_float32_has_all_its_digits(gpu):
    # 1 + 2**-12 has more than the 11 significant bits of TF32, and each sum has one term.
    x = gpu.xp.full((8, 64, 32, 32), 1 + 2.0**-12, dtype="float32")
    w = gpu.xp.zeros((64, 64, 3, 3), dtype="float32")
    w[gpu.xp.arange(64), gpu.xp.arange(64), 1, 1] = 1 + 2.0**-11
    exact = np.float32((1 + 2.0**-12) * (1 + 2.0**-11))
    for order in ("channels_first", "channels_last"):
        given = x if order == "channels_first" else gpu.xp.ascontiguousarray(gpu.xp.moveaxis(x, 1, -1))
        out = portconv.conv(given, w, padding=1, algorithm="native", data_format=order)
        assert bool((out == exact).all())


def test_the_limit_holds_in_the_pool(gpu):
    x, w = (gpu.xp.ones(shape, dtype="float32") for shape in ((8, 64, 56, 56), (64, 64, 3, 3)))
    limit = 32 << 20
    pool = gpu.xp.get_default_memory_pool()
    with portconv.workspace_limit(limit):
        out = portconv.conv(x, w, padding=1, algorithm="native")
        del out
        pool.free_all_blocks()
        before = pool.total_bytes()
        out = portconv.conv(x, w, padding=1, algorithm="native")
        assert pool.total_bytes() - before <= out.nbytes + limit + (1 << 20)  # the pool rounds up


def test_streams_and_threads_do_not_mix(gpu):
    rng = np.random.default_rng(0)
    cases = [rng.integers(-2, 3, (4, 8, 20 + i, 20)).astype("float32") for i in range(8)]
    w = rng.integers(-2, 3, (8, 8, 3, 3)).astype("float32")

    def on_a_stream(x):
        with gpu.xp.cuda.Stream(non_blocking=True) as stream:
            out = portconv.conv(gpu.asarray(x), gpu.asarray(w), padding=1, algorithm="native")
            stream.synchronize()
            return gpu.to_numpy(out)

    expected = [portconv.conv(x, w, padding=1) for x in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for out, truth in zip(pool.map(on_a_stream, cases), expected, strict=True):
                assert np.array_equal(out, truth)


def test_an_address_that_does_not_suit_is_copied(gpu):
    memory = gpu.xp.arange(2 * 3 * 6 * 6 + 1, dtype="float32") % 5
    x, w = memory[1:].reshape(2, 3, 6, 6), gpu.xp.ones((4, 3, 3, 3), dtype="float32")
    assert x.data.ptr % _cudnn.ALIGNMENT
    out = portconv.conv(x, w, algorithm="native")
    assert np.array_equal(gpu.to_numpy(out), portconv.conv(gpu.to_numpy(x), gpu.to_numpy(w)))


def test_two_calls_give_the_same_bits(gpu):
    rng = np.random.default_rng(0)
    shapes = (16, 64, 28, 28), (64, 64, 3, 3), (16, 64, 28, 28)
    x, w, dout = (gpu.asarray(rng.standard_normal(shape, dtype="float32")) for shape in shapes)
    _, cache = portconv.conv_forward(x, w, padding=1, algorithm="native")
    first, second = (portconv.conv_backward(dout, cache) for _ in range(2))
    for one, two in zip(first[:2], second[:2], strict=True):
        assert bool((one == two).all())
