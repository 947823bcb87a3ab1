"""The registry, detection without imports, backends that are missing, third parties' and unknown libraries."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import portconv
from portconv import BackendError, ConvTypeError, backends
from portconv.backends import Backend, Unavailable, _cupy, _generic

LIBRARIES = ("torch", "cupy", "jax", "dask", "array_api_strict", "array_api_compat", "array_api_extra", "click", "rich")


def in_new_process(code: str) -> object:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_import_and_a_convolution_load_numpy_alone():
    code = (
        "import json, sys, numpy as np, portconv; out = portconv.conv(np.ones((1, 1, 3)), np.ones((1, 1, 2)))\n"
        "_, cache = portconv.conv_forward(np.ones((2, 3, 9, 9)), np.ones((4, 3, 3, 3)))\n"
        "portconv.conv_backward(np.ones((2, 4, 7, 7)), cache)\n"
        f"print(json.dumps([name for name in {LIBRARIES} if name in sys.modules]))"
    )
    assert in_new_process(code) == []


def test_an_unknown_object_imports_nothing_to_be_refused():
    code = (
        "import json, sys, portconv\n"
        "class Stranger: shape = (1, 1, 3)\n"
        "try: portconv.conv(Stranger(), Stranger())\n"
        "except portconv.ConvTypeError as error: message = str(error)\n"
        f"found = [name for name in {LIBRARIES} if name in sys.modules and not name.startswith('array_api_compat')]\n"
        "print(json.dumps([message, found]))"
    )
    message, found = in_new_process(code)
    assert message == "x: got Stranger, expected an array with an Array API namespace"
    assert found == []


def test_every_library_of_the_folder_is_known():
    assert set(backends.names()) >= {"numpy", "cupy", "torch", "array_api_strict"}
    assert list(backends.names()) == sorted(backends.names())
    assert backends.get("numpy") in backends.available()
    assert all(backend.unavailable is None for backend in backends.available())


def test_unknown_name():
    with pytest.raises(BackendError, match="backend: got 'numpyy', expected one of array_api_strict, cupy, dask"):
        backends.get("numpyy")


def test_missing_ones_say_why_and_what_to_do():
    for name in backends.names():
        backend = backends.find(name)
        if backend.unavailable:
            with pytest.raises(BackendError) as caught:
                backends.get(name)
            assert backend.unavailable in str(caught.value)
            assert (backend.install in str(caught.value)) is not backend.fault.no_device
            assert backend not in backends.available()
            assert "unavailable" in repr(backend)


def test_cupy_without_a_device_gives_the_reason_of_cuda():
    pytest.importorskip("cupy", reason="CuPy is not installed")
    cupy = backends.find("cupy")
    if cupy.unavailable is None:
        pytest.skip("CuPy works here")
    assert cupy.fault.no_device
    assert cupy.unavailable.startswith(("cudaErrorInsufficientDriver", "cudaErrorNoDevice"))
    assert "\n" not in cupy.unavailable


def test_a_fault_is_found_once_and_remembered():
    class Broken(Backend):
        name, module, array_class, install = "broken", "broken", "Array", "nothing helps"
        tries = 0

        def load(self):
            self.tries += 1
            raise Unavailable("the moon is full")

    broken = Broken()
    for _ in range(3):
        assert broken.unavailable == "the moon is full"
        with pytest.raises(BackendError, match="'broken' is unavailable: the moon is full; to install it: nothing"):
            broken.xp.zeros(3)
    assert broken.tries == 1


def test_a_library_that_crashes_on_import_is_unavailable_for_that():
    class Crashing(Backend):
        name, module, array_class, install = "crashing", "crashing", "Array", "nothing helps"

        def load(self):
            raise ValueError("two lines\nof woe")

    assert Crashing().unavailable == "crashing is installed and cannot be imported: ValueError: two lines of woe"
    assert not Crashing().fault.no_device


@pytest.mark.parametrize(
    ("init", "reason"),
    [
        ("raise ImportError('failed to load\\nlibcuda.so.1')", "ImportError: failed to load libcuda.so.1"),
        ("import a_third_module", "ModuleNotFoundError: No module named 'a_third_module'"),
        ("import halves._core", "ModuleNotFoundError: No module named 'halves._core'"),
    ],
)
def test_a_library_that_fails_on_import_is_not_to_be_installed_again(tmp_path, monkeypatch, init, reason):
    class Halves(Backend):
        name, module, array_class, install = "half", "halves.arrays", "Array", "pip install halves"

        def load(self):
            return importlib.import_module("halves")

    with pytest.raises(BackendError) as caught:
        Halves().xp  # noqa: B018
    assert str(caught.value) == (
        "backend 'half' is unavailable: half is not installed (No module named 'halves'); "
        "to install it: pip install halves"
    )
    (tmp_path / "halves").mkdir()
    (tmp_path / "halves" / "__init__.py").write_text(init)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError) as caught:
        Halves().xp  # noqa: B018
    assert str(caught.value) == f"backend 'half' is unavailable: half is installed and cannot be imported: {reason}"


def test_no_device_is_told_from_other_faults():
    assert _cupy._is_no_device(RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"))
    assert not _cupy._is_no_device(RuntimeError("cudaErrorMemoryAllocation: out of memory"))


@pytest.mark.parametrize("stranger", [3, "x", None, [1.0], object(), np.float64])
def test_what_is_no_array_is_refused(stranger):
    with pytest.raises(ConvTypeError, match="expected an array"):
        backends.of(stranger)


def test_every_backend_does_what_the_contract_says(target):
    backend, xp = target.backend, target.backend.xp
    values = np.arange(6, dtype="float32").reshape(2, 3)
    array = backend.asarray(values, dtype="float64", device=target.device)
    assert backends.of(array) is backend
    assert backend.device_of(array) == target.device
    assert array.dtype == xp.float64
    assert target.device in backend.devices()
    host = backend.to_numpy(array)
    assert type(host) is np.ndarray
    assert np.array_equal(host, values)
    assert backend.synchronize() is None
    assert backend.version() != "unknown"
    zeros = backend.zeros((2, 3), like=array)
    assert target.owns(zeros)
    zeros = backend.write(zeros, (slice(0, 1), slice(0, 2)), 2.0)
    zeros = backend.add(zeros, (slice(0, 1), slice(1, 3)), array[0:1, 0:2])
    assert np.array_equal(target.numpy(zeros), [[2, 2, 1], [0, 0, 0]])
    assert np.array_equal(target.numpy(backend.zeroed(zeros)), np.zeros((2, 3)))
    out = backend.empty((1, 2, 2), like=array)
    product = backend.product(array[None, :, :], xp.permute_dims(array, (1, 0))[None, :, :], out)
    assert np.array_equal(target.numpy(product)[0], values @ values.T)


def test_fill_takes_what_compute_returns_or_wrote(target):
    backend = target.backend
    out = backend.zeros((4, 2), like=target.array([1.0]))

    def compute(block, part, workspace):
        return backend.write(part, (...,), 1.0) if block == "written" else backend.zeroed(workspace("w", (2,))) + 2.0

    blocks = [((0, ...), "written"), ((1, ...), "returned"), ((3, ...), "written")]
    for least in (1, 3):
        assert target.numpy(backend.fill(out, blocks, compute, least)).tolist() == [[1, 1], [2, 2], [0, 0], [1, 1]]


def test_a_library_nobody_announced_works_by_the_standard_alone():
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    stranger = _generic.GenericBackend(strict.zeros(1))
    assert stranger.name == "array_api_strict"
    assert stranger.owns(strict.ones(2))
    assert not stranger.owns(np.ones(2))
    assert np.array_equal(stranger.to_numpy(stranger.asarray([1.0, 2.0], dtype="float32")), [1, 2])


@pytest.mark.parametrize("mutable", [True, False])
@pytest.mark.parametrize("algorithm", [name for name in portconv.algorithms() if name not in ("native", "compiled")])
def test_a_stranger_s_arrays_are_convolved(monkeypatch, algorithm, mutable):
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    known = {name: backend for name, backend in backends._own().items() if name != "array_api_strict"}
    monkeypatch.setattr(backends, "_own", lambda: known)
    monkeypatch.setattr(backends, "_by_class", {})
    channels = 1 if algorithm == "depthwise" else 4
    generator = np.random.default_rng(0)
    # Whole numbers: sums of at most 4 * 9 products of at most 81, and Winograd's of four times as much, are exact.
    x, w, dout = (
        generator.integers(-9, 10, shape).astype("float64")
        for shape in ((2, 4, 6, 8), (4, channels, 3, 3), (2, 4, 6, 8))
    )
    options = {"padding": 1, "groups": 4 // channels, "algorithm": algorithm}
    given = [strict.asarray(array) for array in (x, w, dout)]
    stranger = backends.of(given[0])
    assert type(stranger) is _generic.GenericBackend
    stranger.mutable = mutable
    stranger.compiled_steps = 256 if algorithm == "tap_loop" else None
    out, cache = portconv.conv_forward(*given[:2], **options)
    found = (out, *portconv.conv_backward(given[2], cache)[:2])
    assert {backends.of(array) for array in found} == {stranger}
    plain, cache = portconv.conv_forward(x, w, **options | {"algorithm": "direct"})
    expected = (plain, *portconv.conv_backward(dout, cache)[:2])
    for mine, theirs in zip(found, expected, strict=True):
        # A Fourier transform of at most 2**8 points and back: some 20 roundings of sums of magnitude 36 * 81.
        assert np.abs(stranger.to_numpy(mine) - theirs).max() <= (20 * 2**-53 * 36 * 81 if algorithm == "fft" else 0)


class Announced:
    """An entry point of a third party."""

    def __init__(self, name, loaded):
        self.name, self.value, self.loaded = name, f"somewhere:{name}", loaded

    def load(self):
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


@pytest.fixture
def announce(monkeypatch):
    backends.available()  # libraries look for entry points of their own when they are imported
    monkeypatch.setattr(backends, "_by_class", {})

    def put(*points):
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
        backends.announced.cache_clear()
        backends.third_party_backend.cache_clear()

    yield put
    monkeypatch.undo()
    backends.announced.cache_clear()
    backends.third_party_backend.cache_clear()


def test_third_parties_add_one_by_entry_point(announce):
    class Third(Backend):
        module, array_class, install = "third", "Box", "pip install third"

        def load(self):
            return np

        def owns(self, array):
            return type(array).__name__ == "Box"

        def device_of(self, array):
            return "shelf"

    class Box:
        shape, dtype = (1, 1, 3), np.dtype("float32")

    announce(Announced("third", Third))
    assert "third" in backends.names()
    assert backends.get("third").name == "third"
    assert backends.of(Box()) is backends.get("third")
    assert backends.of(np.ones(2)).name == "numpy"


def test_a_broken_third_party_warns_and_is_left_out(announce):
    announce(Announced("bad", ImportError("no such thing")), Announced("worse", types.SimpleNamespace))
    broken = r"the backend 'bad' of 'somewhere:bad' is broken: no such thing"
    with pytest.warns(UserWarning, match=broken), pytest.raises(BackendError, match="'bad'"):
        backends.find("bad")
    with pytest.warns(UserWarning, match=r"the backend 'worse' .* is broken"):
        names = [backend.name for backend in backends.available()]
    assert "numpy" in names
    assert not {"bad", "worse"} & set(names)


def library_settings(torch):
    return torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv


@pytest.mark.parametrize("which", [0, 1], ids=["matmul", "conv"])
def test_precision_of_products_is_held_and_left_as_found(which):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    setting = library_settings(torch)[which]
    found = setting.fp32_precision
    seen = []
    backend = backends.get("torch")
    x = torch.ones(1, 1, 4)
    for value in ("bf16", "tf32", "ieee", "none"):
        setting.fp32_precision = value
        try:
            with backend.during_call(x, "standard"):
                seen.append(setting.fp32_precision)
                with backend.during_call(x, "standard"):
                    assert setting.fp32_precision == seen[-1]
                assert setting.fp32_precision == seen[-1]
            assert setting.fp32_precision == value
            with backend.during_call(x, "fast"):
                assert setting.fp32_precision == value
            with pytest.raises(RuntimeError, match="a library's"), backend.during_call(x, "standard"):
                raise RuntimeError("a library's")
            assert setting.fp32_precision == value
        finally:
            setting.fp32_precision = found
    # "none" is full precision where nothing above it says otherwise, and is left alone.
    assert seen == ["ieee", "ieee", "ieee", "none"]


def test_precision_is_held_until_the_last_of_several_threads_ends():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    backend = backends.get("torch")
    setting = library_settings(torch)[1]
    found = setting.fp32_precision
    setting.fp32_precision = "tf32"
    try:
        first = backend.during_call(torch.ones(1), "standard")
        first.__enter__()
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(backend.during_call, torch.ones(1), "standard").result()
            pool.submit(second.__enter__).result()
            first.__exit__(None, None, None)
            assert setting.fp32_precision == "ieee"
            pool.submit(second.__exit__, None, None, None).result()
        assert setting.fp32_precision == "tf32"
    finally:
        setting.fp32_precision = found


def test_advice_names_the_variable_where_avx2_kernels_run_on_avx512(monkeypatch):
    numpy = backends.get("numpy")
    simd = {"SIMD Extensions": {"baseline": ["X86_V2"], "found": ["X86_V3", "X86_V4"]}}
    monkeypatch.setattr(np, "show_config", lambda mode: simd)
    library = types.SimpleNamespace(internal_api="openblas", architecture="Haswell", version="0", num_threads=2)
    monkeypatch.setattr(portconv.backends._numpy._blas, "known", [library])
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert "unset it" in numpy.advice()
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert "set OPENBLAS_CORETYPE=SkylakeX" in numpy.advice()
    library.architecture = "SkylakeX"
    assert numpy.advice() is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_number_that_is_not_finite_is_seen_in_a_large_array(target, dtype, value):
    array = np.ones(40_000, dtype)
    assert target.backend.all_finite(target.array(array))
    array[7] = value
    assert not target.backend.all_finite(target.array(array))


def test_a_precision_that_was_left_to_the_setting_above_it_is_left_to_it_again():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    mkldnn, backend = torch.backends.mkldnn, backends.get("torch")
    found = mkldnn.fp32_precision
    try:
        mkldnn.fp32_precision = "bf16"
        with backend.during_call(torch.ones(1), "standard"):
            assert (mkldnn.matmul.fp32_precision, mkldnn.conv.fp32_precision) == ("ieee", "ieee")
        assert mkldnn.conv.fp32_precision == "bf16"
        mkldnn.fp32_precision = "ieee"
        assert (mkldnn.matmul.fp32_precision, mkldnn.conv.fp32_precision) == ("ieee", "ieee")
    finally:
        mkldnn.fp32_precision = found
