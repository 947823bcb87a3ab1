"""Array libraries that portconv does not know and that have less than the standard: done without, or named."""

from __future__ import annotations

import copy
import pickle
import types

import numpy as np
import pytest

import portconv
from portconv import BackendError, ConvShapeError, ConvTypeError, backends
from portconv.backends import Backend, Unavailable

X, W, B = np.arange(36.0).reshape(2, 3, 6), np.ones((4, 3, 3)), np.ones(4)


class Strange:
    """An array of a library of a test's own: one of NumPy's, with what a subclass leaves of it."""

    def __init__(self, array):
        self.array = np.asarray(array)
        self.shape, self.dtype, self.ndim = self.array.shape, self.array.dtype, self.array.ndim

    def __array_namespace__(self, api_version=None):
        return NAMESPACES[type(self)]

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __getitem__(self, index):
        return type(self)(self.array[index])

    def __bool__(self):
        return bool(self.array)


def operator(name):
    return lambda self, *others: type(self)(getattr(self.array, name)(*map(plain, others)))


for name in (
    "add",
    "radd",
    "sub",
    "mul",
    "rmul",
    "truediv",
    "and",
    "neg",
    "invert",
    "lt",
    "le",
    "gt",
    "ge",
    "eq",
    "ne",
):
    setattr(Strange, f"__{name}__", operator(f"__{name}__"))


def plain(value):
    return value.array if isinstance(value, Strange) else value


class Writable(Strange):
    def __setitem__(self, index, value):
        self.array[index] = plain(value)


class Placed(Writable):
    device = "here"


class Nowhere(Writable):
    """Arrays of a library with one device, which they do not name; nor do its functions take one."""


class Fixed(Strange):
    """Arrays that cannot be written to."""

    device = "here"


class Masked(Writable):
    """Arrays with a mask, as those of marray are: it is an array of the library inside."""

    device = "here"

    def __init__(self, array, mask=False):
        super().__init__(array)
        self.mask = np.broadcast_to(mask, self.shape)


class Info:
    """What a namespace says of itself, with a keyword that has no default, as ndonnx has it."""

    def devices(self):
        return ["here"]

    def dtypes(self, *, device=None, kind):
        return {name: np.dtype(name) for name in ("float32", "float64", "int32")}


def namespace(name, kind, without=(), device=True):
    """A namespace whose functions are NumPy's, for arrays of one class."""

    def wrapped(function):
        def call(*arguments, **options):
            if not device and "device" in options:
                raise TypeError("got an unexpected keyword argument 'device'")
            options = {key: plain(value) for key, value in options.items() if key != "device"}
            arguments = [[*map(plain, each)] if isinstance(each, (list, tuple)) else plain(each) for each in arguments]
            result = function(*arguments, **options)
            return kind(result) if isinstance(result, (np.ndarray, np.generic)) else result

        return call

    made = types.SimpleNamespace(__name__=name, __array_namespace_info__=Info)
    for each in dir(np):
        if each not in without and not each.startswith("_"):
            value = getattr(np, each)
            setattr(made, each, value if isinstance(value, (type, types.ModuleType)) else wrapped(value))
    return made


NAMESPACES = {
    Placed: namespace("strange.placed", Placed, without=("float16", "fft")),
    Nowhere: namespace("strange.nowhere", Nowhere, device=False),
    Fixed: namespace("strange.fixed", Fixed),
    Masked: namespace("strange.masked", Masked),
}


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(backends, "_by_class", {})


def given(kind, *arrays):
    return [kind(array) for array in arrays]


@pytest.mark.parametrize("kind", [Placed, Nowhere])
def test_a_shape_may_be_an_attribute_of_the_instance_and_a_device_may_have_no_name(kind):
    x, w, b = given(kind, X, W, B)
    assert backends.of(x).name == NAMESPACES[kind].__name__
    out, cache = portconv.conv_forward(x, w, b, padding=1)
    expected, theirs = portconv.conv_forward(X, W, B, padding=1)
    found = (out, *portconv.conv_backward(out, cache))
    for mine, wanted in zip(found, (expected, *portconv.conv_backward(expected, theirs)), strict=True):
        assert type(mine) is kind
        assert np.array_equal(mine.array, wanted)  # whole numbers, whose sums are exact
    bound = portconv.error_bound(x, w, b, padding=1)
    assert np.all(bound.array > 0)


def test_two_classes_of_one_namespace_are_one_library():
    class Other(Placed):
        pass

    NAMESPACES[Other] = NAMESPACES[Placed]
    x, w = Placed(X), Other(W)
    assert backends.of(x) is backends.of(w)
    assert np.array_equal(portconv.conv(x, w).array, portconv.conv(X, W))


def test_a_dtype_that_a_library_lacks_is_named():
    x, w = given(Placed, X.astype("float16"), W.astype("float16"))
    with pytest.raises(BackendError) as caught:
        portconv.conv(x, w)
    assert str(caught.value) == "strange.placed has no float16"


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: portconv.conv(x, w),
        lambda x, w: portconv.error_bound(x, w),
        lambda x, w: portconv.unfold(x, 3),
        lambda x, w: portconv.conv_transpose(x, w),
        lambda x, w: portconv.explain(x, w),
    ],
)
def test_arrays_that_cannot_be_written_to_are_refused_at_once(call):
    with pytest.raises(BackendError) as caught:
        call(*given(Fixed, X, W))
    assert (
        str(caught.value)
        == "x: got an array of strange.fixed, which has no array[index] = value, expected one that has"
    )


def test_a_function_that_a_library_lacks_is_named(monkeypatch):
    x, w = given(Placed, X, W)
    monkeypatch.delattr(NAMESPACES[Placed], "matmul")
    with pytest.raises(BackendError) as caught:
        portconv.conv(x, w, algorithm="gemm")
    assert str(caught.value) == (
        "strange.placed: got AttributeError: 'types.SimpleNamespace' object has no attribute 'matmul'; "
        "expected what the Array API standard says"
    )
    monkeypatch.delattr(NAMESPACES[Placed], "sum")
    cache = portconv.engine.call.convolution(x, w, Placed(B), portconv.spec.options.Options())
    with pytest.raises(BackendError, match=r"^strange.placed: got AttributeError: .* has no attribute"):
        portconv.conv_backward(Placed(np.ones((2, 4, 4))), cache)


def test_an_open_size_is_refused_in_words():
    x, w = given(Placed, X, W)
    x.shape = (None, 3, 6)
    with pytest.raises(ConvShapeError) as caught:
        portconv.conv(x, w)
    assert str(caught.value) == "x: got shape (None, 3, 6) with unknown sizes, expected numbers"


def test_a_wrapper_of_a_known_library_s_arrays_is_told_what_is_expected():
    class Wrapper:
        def __init__(self, array):
            self.array, self.shape, self.dtype = array, array.shape, array.dtype

        def __array_namespace__(self, api_version=None):
            return np

    with pytest.raises(ConvTypeError) as caught:
        portconv.conv(X, Wrapper(W))
    assert str(caught.value) == (
        "w: got Wrapper, expected numpy.ndarray, as x is; portconv.backends.get('numpy').asarray makes one of it"
    )


def test_an_array_is_refused_where_its_mask_leaves_something_out():
    x, w = given(Masked, X, W)
    out, cache = portconv.conv_forward(x, w)
    assert np.array_equal(out.array, portconv.conv(X, W))
    words = "got a masked array, expected a plain one, with a number where the mask is"
    for name, call in {
        "x": lambda: portconv.conv(Masked(X, X == 3), w),
        "w": lambda: portconv.conv(x, Masked(W, True)),
        "dout": lambda: portconv.conv_backward(Masked(out.array, out.array > 0), cache),
    }.items():
        with pytest.raises(ConvTypeError) as caught:
            call()
        assert str(caught.value) == f"{name}: {words}"


def test_another_library_s_array_is_converted_by_what_the_namespace_has():
    with pytest.raises(ConvTypeError) as caught:
        portconv.conv(Placed(X), W)
    assert str(caught.value) == (
        "w: got an array of numpy, expected one of strange.placed, as x is; strange.placed.asarray converts"
    )
    with pytest.raises(ConvTypeError) as caught:
        portconv.conv(X, Placed(W))
    assert str(caught.value) == (
        "w: got an array of strange.placed, expected one of numpy, as x is; "
        "portconv.backends.get('numpy').asarray converts"
    )


def raising(error):
    def get(self, api_version=None):
        raise error

    return get


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ({"__array_namespace__": raising(ValueError("no such version"))}, "ValueError('no such version')"),
        ({"__array_namespace__": raising(RuntimeError("gone"))}, "RuntimeError('gone')"),
        ({"__array_namespace__": lambda self, api_version=None: None}, "has no attribute '__name__'"),
        ({"shape": property(raising(RuntimeError("deleted")))}, "RuntimeError('deleted')"),
    ],
)
def test_what_has_no_namespace_is_no_array(members, cause, is_first):
    if not is_first:
        backends.of(Placed(X))
    broken = type("Broken", (), {"shape": (1, 1, 3)} | members)()
    with pytest.raises(ConvTypeError) as caught:
        portconv.conv(broken, broken)
    assert str(caught.value) == "x: got Broken, expected an array with an Array API namespace"
    assert cause in repr(caught.value.__cause__)


def test_an_old_version_of_the_standard_is_enough_or_named():
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    version, before = "2022.12", strict.get_array_api_strict_flags()["api_version"]
    x, w, b = (strict.asarray(array) for array in (X, W, B))
    strict.set_array_api_strict_flags(api_version=version)
    try:
        out, cache = portconv.conv_forward(x, w, b)
        grads = portconv.conv_backward(out, cache)
        assert portconv.error_bound(x, w, b).shape == out.shape
        assert backends.get("array_api_strict").devices()
        with pytest.raises(BackendError) as caught:
            portconv.conv(x, w, precision="reproducible")
        assert str(caught.value) == (
            "array_api_strict: got RuntimeError: The function maximum requires API version 2023.12 or later, but the "
            f"current API version for array-api-strict is {version}; expected what the Array API standard says"
        )
    finally:
        strict.set_array_api_strict_flags(api_version=before)
    expected, cache = portconv.conv_forward(X, W, B)
    for mine, theirs in zip((out, *grads), (expected, *portconv.conv_backward(expected, cache)), strict=True):
        assert np.array_equal(np.from_dlpack(mine), theirs)


def test_where_a_device_is_missing_nothing_is_to_be_installed():
    class Lacking(Backend):
        name, module, array_class, install = "lacking", "lacking", "Array", "pip install lacking"

        def load(self):
            raise Unavailable("cudaErrorInsufficientDriver: the driver is insufficient", no_device=True)

    with pytest.raises(BackendError) as caught:
        Lacking().xp  # noqa: B018
    assert str(caught.value) == (
        "backend 'lacking' is unavailable: cudaErrorInsufficientDriver: the driver is insufficient; "
        "it needs a device and its driver"
    )


def test_a_copy_of_a_backend_is_the_backend(target):
    backend = target.backend
    for twin in (pickle.loads(pickle.dumps(backend)), copy.deepcopy(backend), copy.copy(backend)):
        assert twin is backend


def test_a_copy_of_a_stranger_is_the_stranger():
    stranger = backends.of(Placed(X))
    for twin in (pickle.loads(pickle.dumps(stranger)), copy.deepcopy(stranger), copy.copy(stranger)):
        assert twin is stranger


def test_a_standard_without_numbers_beside_arrays_is_enough_for_the_same_bits():
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    x, w = np.linspace(-1, 1, 9)[None, None], np.linspace(1, 2, 3)[None, None]
    before = strict.get_array_api_strict_flags()["api_version"]
    strict.set_array_api_strict_flags(api_version="2023.12")
    try:
        found = portconv.conv(strict.asarray(x), strict.asarray(w), precision="reproducible")
        assert np.array_equal(np.asarray(found), portconv.conv(x, w, precision="reproducible"))
    finally:
        strict.set_array_api_strict_flags(api_version=before)
