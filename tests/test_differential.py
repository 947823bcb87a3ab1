"""Against PyTorch and SciPy, which share no code with portconv nor with each other.

Their sums have the terms that ours have, in an order of their own, so that both are within gamma(n) * sum of |a| |b|
of the exact value (see `oracle`). The peer says itself how many terms those are, and what the magnitudes add up to: the
sums of ones, and of absolute values, computed by the same peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from support.oracle import Problem, gamma

import portconv

try:
    import torch
    from torch.nn import functional
except ImportError:
    torch = None
try:
    from scipy import ndimage, signal
except ImportError:
    signal = None

needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch, the peer of this test, is not installed")
needs_scipy = pytest.mark.skipif(signal is None, reason="SciPy, the peer of this test, is not installed")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums this small take PyTorch's threads longer to share than to add up."""
    if torch is None:
        yield
        return
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


@dataclass(frozen=True)
class Case:
    """A convolution, or a transposed one where there is an `output_padding`, asymmetric in as much as may be."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    mode: str = "zeros"
    output_padding: tuple[int, ...] | None = None

    @property
    def dims(self):
        return len(self.stride)

    @property
    def options(self):
        found = {"stride": self.stride, "padding": self.pads, "dilation": self.dilation, "groups": self.groups}
        if self.output_padding is None:
            return {**found, "padding_mode": self.mode}
        return {**found, "output_padding": self.output_padding}

    @property
    def algorithms(self):
        """Those whose sums of whole numbers are exact."""
        ones = (1,) * self.dims
        tiled = {3} <= {*self.w[2:]} <= {1, 3} and self.stride == self.dilation == ones
        return (*self.plain, "winograd") if tiled else self.plain

    @property
    def plain(self):
        """Those that add up the same terms as PyTorch."""
        return ("gemm", "direct", "depthwise") if self.w[1] == 1 else ("gemm", "direct")


CASES = {
    "1d": Case((2, 4, 11), (6, 2, 4), (3,), ((2, 5),), (2,), 2),
    "1d stride over kernel": Case((3, 2, 13), (4, 2, 2), (5,), ((1, 0),), (1,)),
    "1d padding over kernel": Case((2, 2, 4), (3, 2, 2), (2,), ((5, 3),), (3,)),
    "2d": Case((2, 6, 9, 7), (4, 3, 3, 2), (2, 1), ((0, 2), (3, 1)), (1, 2), 2),
    "2d even kernel": Case((1, 3, 8, 5), (5, 3, 4, 2), (1, 1), ((1, 2), (0, 1)), (1, 1)),
    "2d dilated": Case((2, 2, 9, 6), (3, 2, 2, 3), (1, 1), ((3, 0), (1, 4)), (3, 2)),
    "2d depthwise": Case((2, 3, 7, 6), (6, 1, 3, 2), (1, 3), ((2, 0), (1, 1)), (1, 1), 3),
    "2d tiles": Case((2, 4, 6, 9), (6, 2, 3, 3), (1, 1), ((1, 0), (2, 1)), (1, 1), 2),
    "3d": Case((2, 4, 4, 6, 5), (6, 2, 2, 3, 1), (1, 2, 3), ((1, 0), (0, 2), (1, 1)), (2, 1, 1), 2),
    "3d tiles": Case((1, 2, 5, 3, 4), (3, 2, 3, 1, 3), (1, 1, 1), ((1, 1), (0, 2), (0, 1)), (1, 1, 1)),
}
# PyTorch reflects less than the size of the input, and repeats no more than that.
MODES = {
    f"{mode} {name}": case
    for mode in ("reflect", "replicate", "circular")
    for name, case in {
        "1d": Case((2, 4, 7), (6, 2, 4), (2,), ((5, 3),), (2,), 2, mode),
        "2d": Case((2, 3, 4, 6), (4, 3, 3, 2), (1, 2), ((0, 3), (4, 1)), (2, 1), 1, mode),
        "2d tiles": Case((2, 2, 5, 4), (3, 2, 3, 3), (1, 1), ((2, 1), (0, 3)), (1, 1), 1, mode),
        "3d": Case((1, 2, 4, 3, 5), (4, 1, 2, 3, 2), (1, 1, 2), ((1, 3), (2, 0), (0, 4)), (1, 2, 1), 2, mode),
    }.items()
}
TRANSPOSED = {
    "1d": Case((2, 4, 5), (4, 3, 3), (3,), ((1, 2),), (1,), 2, output_padding=(2,)),
    "1d dilated": Case((2, 2, 6), (2, 3, 4), (2,), ((0, 4),), (3,), output_padding=(2,)),
    "2d": Case((2, 4, 3, 5), (4, 2, 3, 2), (2, 3), ((1, 0), (2, 1)), (1, 2), 2, output_padding=(1, 2)),
    "2d symmetric": Case((1, 3, 4, 6), (3, 2, 4, 3), (2, 2), ((1, 1), (2, 2)), (1, 1), output_padding=(0, 1)),
    "2d depthwise": Case((2, 3, 4, 2), (3, 2, 2, 3), (3, 1), ((0, 0), (0, 1)), (1, 1), 3, output_padding=(0, 0)),
    "2d tiles": Case((2, 4, 5, 3), (4, 1, 3, 3), (1, 1), ((0, 2), (1, 0)), (1, 1), 2, output_padding=(0, 0)),
    "3d": Case(
        (1, 4, 2, 3, 4), (4, 2, 2, 3, 1), (1, 2, 3), ((0, 1), (2, 0), (1, 1)), (2, 1, 1), 2, output_padding=(1, 1, 2)
    ),
}
ALL = CASES | MODES | {f"transposed {name}": case for name, case in TRANSPOSED.items()}
every_case = pytest.mark.parametrize("case", ALL.values(), ids=ALL)


LIBRARIES = ("numpy", "torch")
"""What portconv computes in, where PyTorch is the peer."""


def array_of(library, values, dtype=None):
    """`values`, which `dtype` holds, as an array of the library that portconv is to compute in."""
    if library == "torch":
        made = torch.from_numpy(np.array(values))
        return made if dtype is None else made.to(getattr(torch, dtype))
    if dtype == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 is ml_dtypes', which is not installed")
        dtype = ml_dtypes.bfloat16
    return np.array(values, dtype)


def to_numpy(array):
    """An array as NumPy's, of halves in float32."""
    if isinstance(array, np.ndarray):
        return array.astype("float32") if array.dtype.itemsize == 2 and array.dtype.kind not in "iu" else array
    array = array.resolve_conj()
    return (array.float() if array.dtype in (torch.float16, torch.bfloat16) else array).numpy()


def by_torch(case, x, w, b, dout=None):
    """PyTorch's output; and with `dout` its gradients too, from autograd."""
    given = [torch.from_numpy(np.ascontiguousarray(a)).requires_grad_(dout is not None) for a in (x, w, b)]
    out = _by_torch(case, *given)
    if dout is None:
        return {"out": out.numpy()}
    grads = torch.autograd.grad(out, given, torch.from_numpy(dout))
    names = ("out", "dx", "dw", "db")
    return {name: a.detach().resolve_conj().numpy() for name, a in zip(names, (out, *grads), strict=True)}


def _by_torch(case, x, w, b):
    dims = case.dims
    symmetric = all(lo == hi for lo, hi in case.pads)
    if case.output_padding is None:
        widths = [side for pair in reversed(case.pads) for side in pair]
        if case.mode != "zeros" or not symmetric:
            x = functional.pad(x, widths, "constant" if case.mode == "zeros" else case.mode)
            pads = (0,) * dims
        else:
            pads = tuple(lo for lo, _ in case.pads)
        function = (functional.conv1d, functional.conv2d, functional.conv3d)[dims - 1]
        return function(x, w, b, case.stride, pads, case.dilation, case.groups)
    function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[dims - 1]
    pads = tuple(lo if symmetric else 0 for lo, _ in case.pads)
    out = function(x, w, b, case.stride, pads, case.output_padding, case.groups, case.dilation)
    if symmetric:
        return out
    # It takes as much off both ends: here what is to be taken off, from what it leaves without.
    sizes = zip(out.shape[2:], case.pads, strict=True)
    return out[(..., *(slice(lo, size - hi) for size, (lo, hi) in sizes))]


def operands(case, make):
    """x, w, b and dout, from what makes an array of a shape."""
    filters = case.w[0] if case.output_padding is None else case.w[1] * case.groups
    x, w, b = make(case.x), make(case.w), make((filters,))
    shape = by_torch(case, *(np.zeros(a.shape) for a in (x, w, b)))["out"].shape
    return x, w, b, make(shape)


def normal(dtype, seed=0):
    rng = np.random.default_rng(seed)

    def make(shape):
        values = rng.standard_normal(shape)
        if np.dtype(dtype).kind == "c":
            values = values + 1j * rng.standard_normal(shape)
        return values.astype(dtype)

    return make


def whole(dtype, most, seed=1):
    rng = np.random.default_rng(seed)
    return lambda shape: rng.integers(-most, most, shape, endpoint=True).astype(dtype)


def ours(case, given, algorithm="gemm"):
    """Forward and backward; kind is checked before values."""
    x, w, b, dout = given
    forward, backward = (
        (portconv.conv_forward, portconv.conv_backward)
        if case.output_padding is None
        else (portconv.conv_transpose_forward, portconv.conv_transpose_backward)
    )
    out, cache = forward(x, w, b, **case.options, algorithm=algorithm)
    results = {"out": out, **backward(dout, cache)._asdict()}
    for like, result in zip((dout, x, w, b), results.values(), strict=True):
        assert type(result) is type(like)
        assert tuple(result.shape) == tuple(like.shape)
        assert result.dtype == like.dtype
    return {name: to_numpy(result) for name, result in results.items()}


def sizes(a):
    return np.abs(a.real) + np.abs(a.imag)


def assert_within(results, truths, bounds):
    for name, truth in truths.items():
        error = results[name].astype(truth.dtype) - truth
        for part in (error.real, error.imag):
            assert np.all(np.abs(part) <= bounds[name]), f"{name}: {np.max(np.abs(part) - bounds[name])} over the bound"


@needs_torch
@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_real_numbers_against_torch(case, dtype):
    given = operands(case, normal(dtype))
    wide = [a.astype("float64") for a in given]
    truths, magnitudes = by_torch(case, *wide), by_torch(case, *map(np.abs, wide))
    terms = by_torch(case, *(np.ones(a.shape) for a in wide))
    bounds = {name: (gamma(n, dtype) + gamma(n, "float64")) * magnitudes[name] for name, n in terms.items()}
    # Winograd's sums are others and have another bound (see `oracle`): below, where all are exact, it has its turn.
    for library, algorithm in product(LIBRARIES, case.plain):
        assert_within(ours(case, [array_of(library, a) for a in given], algorithm), truths, bounds)


@needs_torch
@every_case
def test_whole_numbers_against_torch(case):
    # Fewer than 2**12 products below 2**7, in tiles multiples of 1/8: far below 2**53 in any order.
    given = operands(case, whole("float64", 9))
    truths = by_torch(case, *given)
    for library, algorithm in product(LIBRARIES, case.algorithms):
        results = ours(case, [array_of(library, a) for a in given], algorithm)
        for name, truth in truths.items():
            assert np.array_equal(results[name], truth), (library, algorithm, name)


@needs_torch
@every_case
def test_complex_numbers_against_torch(case):
    # Each part of a sum of n complex products is a sum of 2 n real ones, of magnitudes of at most |re| + |im| times
    # |re| + |im|. PyTorch takes three sums of n products for four, those of re re, im im and (re + im) (re + im), and
    # their differences: each sum is within that magnitude too, on its way with four more roundings. Ours is one, and
    # PyTorch's three. Both give the adjoint as a gradient.
    given = operands(case, normal("complex128"))
    truths, magnitudes = by_torch(case, *given), by_torch(case, *map(sizes, given))
    terms = by_torch(case, *(np.ones(a.shape) for a in given))
    bounds = {name: 4 * gamma(2 * n + 4, "float64") * magnitudes[name] for name, n in terms.items()}
    for library, algorithm in product(LIBRARIES, case.plain):
        assert_within(ours(case, [array_of(library, a) for a in given], algorithm), truths, bounds)


def spectral_bounds(case, given):
    """How far spectra may be off, in float64: norms of planes times sums of the other operand (docs/accuracy.md)."""
    x, w, b, dout = map(np.abs, given)
    turned = case.output_padding is not None
    x, dout = (dout, x) if turned else (x, dout)
    problem = Problem(x.shape, w.shape, case.stride, case.pads, case.dilation, case.groups)
    magnitudes, terms = problem.spectra(x, w, np.zeros(w.shape[0]), dout), problem.spectral_terms()
    own = {"out": "dx", "dx": "out", "dw": "dw"} if turned else {"out": "out", "dx": "dx", "dw": "dw"}
    # The bias is one term more, of an output.
    found = {name: gamma(terms[other] + 1, "float64") * magnitudes[other] for name, other in own.items()}
    found["out"] = found["out"] + gamma(terms[own["out"]] + 1, "float64") * b.reshape(-1, *[1] * case.dims)
    return found


DENSE = {name: case for name, case in ALL.items() if {*case.stride} == {1} and case.mode == "zeros"}


@needs_torch
@pytest.mark.parametrize("case", DENSE.values(), ids=DENSE)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_spectra_against_torch(case, dtype):
    given = operands(case, normal(dtype))
    truths, magnitudes = by_torch(case, *given), by_torch(case, *map(sizes, given))
    terms = by_torch(case, *(np.ones(a.shape) for a in given))
    bounds = spectral_bounds(case, given)
    for name in bounds:
        # PyTorch's own are those of sums, as above.
        bounds[name] = bounds[name] + 3 * gamma(2 * terms[name] + 4, "float64") * magnitudes[name]
    del truths["db"]
    for library in LIBRARIES:
        assert_within(ours(case, [array_of(library, a) for a in given], "fft"), truths, bounds)


@needs_torch
@every_case
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_against_torch_in_float32(case, dtype):
    # PyTorch's sums are of the same halves, in float32. Ours are so too, and are then rounded once more: by `roundoff`
    # times themselves at most, or by `least` where they are subnormal.
    roundoff, least = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}[dtype]
    exact = [to_numpy(torch.from_numpy(a).to(getattr(torch, dtype))) for a in operands(case, normal("float32"))]
    truths, magnitudes = by_torch(case, *exact), by_torch(case, *map(np.abs, exact))
    terms = by_torch(case, *(np.ones(a.shape) for a in exact))
    for library, algorithm in product(LIBRARIES, case.plain):
        results = ours(case, [array_of(library, a, dtype) for a in exact], algorithm)
        for name, n in terms.items():
            # The sums of magnitudes are in float32 too, and rounded by less than a part in a thousand.
            error = 1.001 * gamma(n, "float32") * magnitudes[name]
            allowed = 2 * error + roundoff * (np.abs(truths[name]) + error) + least
            assert np.all(np.abs(results[name] - truths[name]) <= allowed), (library, algorithm, name)


INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@needs_torch
@pytest.mark.parametrize("case", (CASES | TRANSPOSED).values(), ids=CASES | TRANSPOSED)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_against_torch_in_int64(case, dtype):
    # PyTorch convolves int64, which wraps, and has no gradients of integers. What is modulo 2**64 is so modulo 2**bits.
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(2)
    filters = case.w[0] if case.output_padding is None else case.w[1] * case.groups
    given = [rng.integers(limits.min, limits.max, s, dtype, endpoint=True) for s in (case.x, case.w, (filters,))]
    truth = by_torch(case, *(a.astype("int64") for a in given))["out"].astype(dtype)
    function = portconv.conv if case.output_padding is None else portconv.conv_transpose
    for library, algorithm in product(LIBRARIES, case.plain):
        out = function(*(array_of(library, a) for a in given), **case.options, algorithm=algorithm)
        assert str(out.dtype).endswith(dtype), library
        assert np.array_equal(to_numpy(out), truth), (library, algorithm)


WINDOWS = {
    "strides": ((2, 3, 7, 9), (3, 2), (2, 3), (1, 0), (1, 1)),
    "dilated": ((1, 2, 8, 6), (2, 3), (1, 2), (0, 2), (3, 2)),
    "stride over kernel": ((2, 1, 9, 8), (2, 1), (4, 3), (2, 1), (1, 1)),
    "padding alone": ((1, 2, 2, 3), (4, 2), (1, 1), (3, 2), (2, 3)),
}


@needs_torch
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation"), WINDOWS.values(), ids=WINDOWS)
def test_unfold_and_fold_against_torch(shape, kernel, stride, padding, dilation):
    # PyTorch's are of images alone, padded alike on both sides. Of whole numbers, so that sums are exact.
    make = whole("float64", 99)
    x = make(shape)
    columns = functional.unfold(torch.from_numpy(x), kernel, dilation, padding, stride)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    y = make(columns.shape)
    sums = functional.fold(torch.from_numpy(y), shape[2:], kernel, dilation, padding, stride)
    for library in LIBRARIES:
        found = portconv.unfold(array_of(library, x), kernel, **options)
        assert np.array_equal(to_numpy(found), columns.numpy()), library
        folded = portconv.fold(array_of(library, y), shape[2:], kernel, **options)
        assert np.array_equal(to_numpy(folded), sums.numpy()), library


def spread(a, steps):
    """The last axes of an array with zeros between its elements, so that neighbours are `steps` apart."""
    lead = a.ndim - len(steps)
    sizes = (step * (n - 1) + 1 for n, step in zip(a.shape[lead:], steps, strict=True))
    made = np.zeros((*a.shape[:lead], *sizes), a.dtype)
    made[(..., *(slice(None, None, step) for step in steps))] = a
    return made


def by_scipy(case, x, w, b, dout):
    """All results of a convolution padded with zeros, a sample, a filter and a channel at a time."""
    every = tuple(slice(None, None, step) for step in case.stride)
    apart = tuple(slice(None, None, step) for step in case.dilation)
    padded = np.pad(x, ((0, 0), (0, 0), *case.pads))
    inside = tuple(slice(lo, lo + n) for n, (lo, _) in zip(x.shape[2:], case.pads, strict=True))
    taps = spread(w, case.dilation)
    steps = spread(dout, case.stride)
    group_in, group_out = w.shape[1], w.shape[0] // case.groups
    out = np.zeros(dout.shape, x.dtype) + b.reshape(-1, *[1] * case.dims)
    dx, dw = np.zeros_like(padded), np.zeros_like(w)
    for n, f, c in product(range(x.shape[0]), range(w.shape[0]), range(group_in)):
        channel = f // group_out * group_in + c
        # `correlate` conjugates its second operand, as the adjoints do the one given forward.
        out[n, f] += signal.correlate(padded[n, channel], taps[f, c].conj(), "valid", "direct")[every]
        grad = signal.convolve(steps[n, f], taps[f, c].conj(), "full", "direct")
        dx[(n, channel, *map(slice, grad.shape))] += grad
        # Cells after the last window are in no sum.
        read = tuple(slice(m + k - 1) for m, k in zip(steps.shape[2:], taps.shape[2:], strict=True))
        dw[f, c] += signal.correlate(padded[(n, channel, *read)], steps[n, f], "valid", "direct").conj()[apart]
    return {"out": out, "dx": dx[(..., *inside)], "dw": dw, "db": dout.sum(axis=(0, *range(2, dout.ndim)))}


def whole_of_a_kind(dtype):
    """What makes whole numbers for which all results are exact: in integers any, which wrap as SciPy's do."""
    if np.dtype(dtype).kind == "i":
        return whole(dtype, 2**62)
    parts = whole("float64", 9), whole("float64", 9, seed=3)
    return lambda shape: parts[0](shape) + 1j * parts[1](shape) if dtype == "complex128" else parts[0](shape)


@needs_scipy
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", ["float64", "complex128", "int64"])
def test_signals_against_scipy(case, dtype):
    # Fewer than 2**12 products, of which each part is below 2**8.
    make = whole_of_a_kind(dtype)
    x, w, b = make(case.x), make(case.w), make(case.w[:1])
    dout = make(
        portconv.conv_output_shape(
            case.x, case.w, stride=case.stride, padding=case.pads, dilation=case.dilation, groups=case.groups
        )
    )
    truths = by_scipy(case, x, w, b, dout)
    for algorithm in case.algorithms if dtype == "float64" else case.plain:
        results = ours(case, (x, w, b, dout), algorithm)
        for name, truth in truths.items():
            assert np.array_equal(results[name], truth), (algorithm, name)


@needs_scipy
@pytest.mark.parametrize("case", TRANSPOSED.values(), ids=TRANSPOSED)
@pytest.mark.parametrize("dtype", ["float64", "complex128", "int64"])
def test_transposed_convolution_against_scipy(case, dtype):
    make = whole_of_a_kind(dtype)
    x, w, b = make(case.x), make(case.w), make((case.w[1] * case.groups,))
    steps, taps = spread(x, case.stride), spread(w, case.dilation)
    group_in, group_out = w.shape[0] // case.groups, w.shape[1]
    more = [(0, extra) for extra in case.output_padding]
    whole_out = [m + k - 1 + extra for m, k, (_, extra) in zip(steps.shape[2:], taps.shape[2:], more, strict=True)]
    truth = np.zeros((x.shape[0], group_out * case.groups, *whole_out), x.dtype) + b.reshape(-1, *[1] * case.dims)
    for n, c, f in product(range(x.shape[0]), range(x.shape[1]), range(group_out)):
        sums = np.pad(signal.convolve(steps[n, c], taps[c, f], "full", "direct"), more)
        truth[n, c // group_in * group_out + f] += sums
    truth = truth[(..., *(slice(lo, m - hi) for m, (lo, hi) in zip(whole_out, case.pads, strict=True)))]
    for algorithm in case.algorithms if dtype == "float64" else case.plain:
        out = portconv.conv_transpose(x, w, b, **case.options, algorithm=algorithm)
        assert np.array_equal(out, truth), algorithm


@needs_scipy
@pytest.mark.parametrize("dtype", ["float64", "complex128", "int64"])
@pytest.mark.parametrize(
    ("x_shape", "w_shape"), [((2, 9), (3, 5)), ((1, 6, 9), (2, 4, 3)), ((2, 3, 5, 4), (2, 2, 3, 2))]
)
def test_full_and_valid_against_scipy(dtype, x_shape, w_shape):
    make = whole_of_a_kind(dtype)
    x, w = make((2, *x_shape)), make((w_shape[0], x_shape[0], *w_shape[1:]))
    for padding in ("full", "valid"):
        expected = np.stack(
            [
                [
                    sum(signal.correlate(a, k.conj(), padding, "direct") for a, k in zip(sample, f, strict=True))
                    for f in w
                ]
                for sample in x
            ]
        )
        assert np.array_equal(portconv.conv(x, w, padding=padding), expected), padding


@needs_scipy
@pytest.mark.parametrize(
    ("mode", "theirs"),
    [
        *(("zeros", "constant"), ("reflect", "mirror"), ("symmetric", "reflect"), ("replicate", "nearest")),
        *(("circular", "wrap"), ("constant", "constant")),
    ],
)
@pytest.mark.parametrize(
    ("x_shape", "kernel"), [((7,), (4,)), ((3,), (10,)), ((5, 6), (3, 4)), ((2, 9), (7, 2)), ((4, 3, 5), (2, 5, 3))]
)
def test_padding_modes_against_scipy_ndimage(x_shape, kernel, mode, theirs):
    # SciPy takes the later of an even kernel's two middles, so that the odd cell lies before; moved by one, after.
    make = whole("float64", 9)
    x, w = make((2, 2, *x_shape)), make((3, 2, *kernel))
    value = 5.0 if mode == "constant" else 0.0
    for padding, moved in (("same_lower", 0), ("same", -1)):
        origin = tuple(moved if k % 2 == 0 else 0 for k in kernel)
        expected = np.stack(
            [
                [
                    sum(ndimage.correlate(a, k, None, theirs, value, origin) for a, k in zip(sample, f, strict=True))
                    for f in w
                ]
                for sample in x
            ]
        )
        for algorithm in ("gemm", "direct"):
            out = portconv.conv(x, w, padding=padding, padding_mode=mode, padding_value=value, algorithm=algorithm)
            assert np.array_equal(out, expected), (padding, algorithm)
