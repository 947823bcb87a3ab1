"""A call like one before is looked up in one step, and does all that the first one did."""

from __future__ import annotations

import gc
import warnings
import weakref

import numpy as np
import pytest
from support.kernels import needs_kernels

import portconv
from portconv import ConvTypeError, ConvValueError, backends
from portconv.engine import call, repeated
from portconv.spec import arguments, remembered
from portconv.spec.options import Options

pytestmark = needs_kernels

RNG = np.random.default_rng(3)
X, W, B = (RNG.integers(-4, 5, shape).astype("float32") for shape in ((2, 3, 9, 8), (4, 3, 3, 3), (4,)))
OUT = portconv.conv(X, W, B, algorithm="direct")
"""Of whole numbers, so that every algorithm gives these."""
KNOWN = repeated._known._items


@pytest.fixture(autouse=True)
def afresh():
    """Start with nothing remembered, and leave nothing."""
    remembered.forget()
    yield
    remembered.forget()


@pytest.fixture
def checked(monkeypatch):
    """Count the calls whose arguments are checked from here on, which take the long way."""
    taken, check = [], call.convolution

    def counting(*arguments):
        taken.append(arguments)
        return check(*arguments)

    monkeypatch.setattr(call, "convolution", counting)
    return taken


def test_the_second_call_is_looked_up_and_gives_the_same(checked):
    for function in (portconv.conv, lambda *given: portconv.conv_forward(*given)[0]):
        results = [function(X, W, B) for _ in range(3)]
        assert len(checked) == len(KNOWN) == 1
        for out in results:
            assert np.array_equal(out, OUT)
            assert type(out) is np.ndarray
            assert out.flags.owndata
            assert out.flags.writeable
        assert not any(np.shares_memory(results[i], results[j]) for i in range(3) for j in range(i))
        results[0][...] = 7
        assert np.array_equal(results[1], OUT)


def test_a_cache_that_was_looked_up_serves_the_gradients():
    grads = [portconv.conv_backward(OUT, portconv.conv_forward(X, W, B)[1]) for _ in range(2)]
    for one, other in zip(*grads, strict=True):
        assert np.array_equal(one, other)
    with pytest.raises(portconv.ConvShapeError, match="dout: got shape"):
        portconv.conv_backward(OUT[:1], portconv.conv_forward(X, W, B)[1])


def test_other_numbers_are_computed_and_no_array_is_kept():
    portconv.conv(X, W, B)
    assert np.array_equal(portconv.conv(2 * X, W, B), portconv.conv(2 * X, W, B, algorithm="direct"))
    x = X.copy()
    is_there = weakref.ref(x)
    portconv.conv(x, W, B)
    x[0, 0, 0, 0] = 100
    assert np.array_equal(portconv.conv(x, W, B), portconv.conv(x, W, B, algorithm="direct"))
    del x
    gc.collect()
    assert is_there() is None


@pytest.mark.parametrize(
    ("options", "like", "error", "words"),
    [
        ({"stride": True}, {"stride": 1}, ConvTypeError, "stride: got True, expected an int"),
        ({"stride": 1.0}, {"stride": 1}, ConvTypeError, "stride: got 1.0, expected an int"),
        ({"stride": (1, True)}, {"stride": (1, 1)}, ConvTypeError, "stride[1]: got True, expected an int"),
        ({"padding": False}, {"padding": 0}, ConvTypeError, "padding: got False"),
        ({"padding": ((0, 0), (0, 0.0))}, {"padding": ((0, 0), (0, 0))}, ConvTypeError, "padding[1][1]: got 0.0"),
        ({"groups": 1.0}, {"groups": 1}, ConvTypeError, "groups: got 1.0, expected an int"),
        ({"dilation": np.bool_(True)}, {"dilation": 1}, ConvTypeError, "dilation: got"),
        ({"algorithm": "magic"}, {}, ConvValueError, "algorithm: got 'magic'"),
        ({"precision": "exact"}, {}, ConvValueError, "precision: got 'exact'"),
    ],
)
def test_what_is_equal_to_an_option_and_none_is_refused_as_ever(options, like, error, words):
    for _ in range(2):
        assert np.array_equal(portconv.conv(X, W, B, **like), OUT)
    for _ in range(2):
        with pytest.raises(error) as caught:
            portconv.conv(X, W, B, **options)
        assert words in str(caught.value)
    assert np.array_equal(portconv.conv(X, W, B, **like), OUT)


def test_integers_of_numpy_and_lists_are_options_as_ever():
    for stride in (1, np.int64(1), [1, 1], (1, np.int8(1))):
        for _ in range(2):
            assert np.array_equal(portconv.conv(X, W, B, stride=stride), OUT)


def test_another_array_is_another_call():
    portconv.conv(X, W, B)
    others = {
        "dtype": (X.astype("float64"), W, B),
        "dtype of the bias": (X, W, B.astype("float64")),
        "byte order": (X.astype(">f4"), W, B),
        "order": (np.asfortranarray(X), W, B),
        "steps": (np.repeat(X, 2, -1)[..., ::2], W, B),
        "filters' order": (X, np.asfortranarray(W), B),
        "bias's steps": (X, W, np.repeat(B, 3)[::3]),
    }
    for name, arrays in others.items():
        for _ in range(2):
            out = portconv.conv(*arrays)
            assert np.array_equal(out, OUT), name
            assert out.dtype == np.result_type(*arrays), name
    for _ in range(2):
        assert np.array_equal(portconv.conv(X, W), OUT - B[:, None, None])
        assert np.array_equal(portconv.conv(X[0], W, B), OUT[0])
        assert np.array_equal(portconv.conv(X[:1], W, B), OUT[:1])
    for wrong in ((X[:, :2], W, B), (X, W, B[:3]), (X, W, B[None])):
        with pytest.raises(portconv.ConvShapeError):
            portconv.conv(*wrong)
    for wrong in ((X.tolist(), W), (X, W.tolist()), (X, W, B.tolist()), (None, W), (X, 3.0), (np.float32(1), W)):
        with pytest.raises(ConvTypeError):
            portconv.conv(*wrong)


def test_arrays_that_begin_between_two_numbers_are_copied_as_ever():
    portconv.conv(X, W, B)
    for place in range(3):
        arrays = [X, W, B]
        raw = np.zeros(arrays[place].nbytes + 8, "uint8")
        for start in (1, 2, 3, 4):
            moved = raw[start : start + arrays[place].nbytes].view("float32").reshape(arrays[place].shape)
            moved[...] = (X, W, B)[place]
            arrays[place] = moved
            for _ in range(2):
                assert np.array_equal(portconv.conv(*arrays), OUT)


class Named(np.ndarray):
    """A subclass that means what its numbers mean."""


def test_subclasses_and_arrays_that_nobody_may_write():
    plain = portconv.conv(X, W, B)
    frozen = [array.copy() for array in (X, W, B)]
    for array in frozen:
        array.flags.writeable = False
    for arrays in (frozen, [array.view(Named) for array in (X, W, B)]):
        for _ in range(3):
            out = portconv.conv(*arrays)
            assert type(out) is np.ndarray
            assert np.array_equal(out, plain)
    for _ in range(2):
        with pytest.raises(ConvTypeError, match="got a masked array, expected a plain one"):
            portconv.conv(np.ma.masked_array(X), W, B)
        with pytest.raises(ConvTypeError, match="got matrix"):
            portconv.conv(X[0, 0].view(np.matrix), W, B)


def test_limits_hold_in_a_call_that_was_made_without(checked):
    for _ in range(2):
        portconv.conv(X, W, B)
    with portconv.workspace_limit(8):
        for _ in range(2):
            with pytest.raises(ConvValueError, match="workspace_limit: got 8 bytes, expected at least"):
                portconv.conv(X, W, B)
    assert len(checked) == 3
    with portconv.workspace_limit(1 << 24):
        for _ in range(3):
            assert np.array_equal(portconv.conv(X, W, B), OUT)
    assert len(checked) == 4
    for threads in (1, 2, 3):
        with portconv.num_threads(threads):
            for _ in range(2):
                assert np.array_equal(portconv.conv(X, W, B), OUT)
    assert len(checked) == 7
    portconv.conv(X, W, B)
    assert len(checked) == 7


@pytest.mark.parametrize(
    ("big", "words"), [(np.full_like(X, 3e38), "overflow encountered"), (np.where(X > 0, np.inf, -np.inf), "invalid")]
)
def test_each_call_warns_as_the_first(big, words):
    portconv.conv(X, W, B)
    big = big.astype("float32")
    for _ in range(3):
        with pytest.warns(RuntimeWarning, match=words) as caught:
            portconv.conv(big, W, B)
        assert len(caught) == 1
        with np.errstate(all="raise"), pytest.raises(FloatingPointError, match=words):
            portconv.conv(big, W, B)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error")
            out = portconv.conv(big, W, B)
            expected = portconv.conv(big, W, B, algorithm="direct")
        finite = np.isfinite(expected)
        assert np.array_equal(np.isfinite(out), finite)
        assert np.array_equal(out[~finite], expected[~finite], equal_nan=True)
    with np.errstate(all="raise"):
        assert np.array_equal(portconv.conv(X, W, B), OUT)


def test_what_is_not_finite_and_expected_warns_no_time():
    portconv.conv(X, W, B)
    x = X.copy()
    x[0, 0, 4, 4] = np.nan
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            assert np.array_equal(portconv.conv(x, W, B), portconv.conv(x, W, B, algorithm="direct"), equal_nan=True)


def test_all_is_forgotten_with_the_rest(checked):
    portconv.conv(X, W, B)
    remembered.forget()
    assert not KNOWN
    portconv.conv(X, W, B)
    assert len(checked) == 2


def test_what_is_remembered_of_calls_has_a_bound(monkeypatch):
    monkeypatch.setattr(remembered, "MOST_BYTES", 100 << 10)
    most = 0
    for size in range(9, 409):
        x = np.zeros((1, 1, size), "float32")
        portconv.conv(x, W[:1, :1, 0])
        most = max(most, len(KNOWN))
        assert remembered._held[0] <= remembered.MOST_BYTES
    assert 0 < most < 100


def test_large_results_are_checked_against_the_memory_each_time(monkeypatch):
    # One row more of float32 than what is not checked.
    x = np.zeros((1, 1, arguments.LITTLE_BYTES // 4 // 1024 + 1, 1024), "float32")
    w = np.ones((1, 1, 1, 1), "float32")
    remembered.forget()
    portconv.conv(x, w, algorithm="compiled")
    assert len(KNOWN) == 1
    monkeypatch.setattr(type(backends.get("numpy")), "memory", lambda backend, like: x.nbytes - 1)
    with pytest.raises(portconv.ConvShapeError, match="x: got shape"):
        portconv.conv(x, w, algorithm="compiled")


def test_what_is_remembered_holds_no_array():
    x = np.zeros((1, 1, arguments.LITTLE_BYTES // arguments.MOST_BYTES // 1024 + 1, 1024), "float32")
    held = weakref.ref(x)
    portconv.conv(x, np.ones((1, 1, 1, 1), "float32"), algorithm="compiled")
    del x
    gc.collect()
    assert held() is None


def test_only_calls_of_one_step_are_remembered():
    portconv.conv(X.astype("float64"), W, B)
    portconv.conv(X.astype("float64"), W.astype("float64"), precision="reproducible")
    portconv.conv(X, W, B, padding=1, padding_mode="reflect")
    portconv.conv(np.moveaxis(X, 1, -1), W, B, data_format="channels_last")
    portconv.conv(X, W, B, algorithm="gemm")
    portconv.conv(X[:0], W, B)
    assert not KNOWN


def test_what_cannot_be_looked_up_is_no_key():
    assert repeated.key_of(None, W, None, Options()) is None
    assert repeated.key_of(X, W, None, Options(stride=[1, 1])) is None
    key = repeated.key_of(X, W, None, Options())
    assert key is not None
    assert repeated.computed(key, X, W, None) is None
    assert repeated.computed(([],), X, W, None) is None
