"""A pytest plugin: SciPy's own tests of convolutions, of `portconv.signal` in the place of `scipy.signal`.

``pytest -p signal_for_scipy --pyargs scipy.signal.tests.test_signaltools`` runs them, with this folder on Python's
path. What SciPy alone does is done here: lists become arrays, an array without cells has an empty result, `fftconvolve`
and `oaconvolve` are of floating point, and boundaries have the names that `convolve2d` gives them.
"""

from __future__ import annotations

import math
import os
import re

import pytest

OF_CONVOLUTIONS = re.compile(r"TestConvolve|TestFFTConvolve|TestOAConvolve|TestAllFreqConvolves|TestCorrelate")
EVERY = int(os.environ.get("PORTCONV_SCIPY_EVERY", "1"))
"""Of the 10,000 combinations of sizes, every so many are tried."""
DIFFERENT = {
    "TestConvolve::test_convolve_method": "it tries long double, which portconv does not serve",
    "TestFFTConvolve::test_fft_nan": "it expects a warning that all is nan, and only the windows of the nan are",
    "TestConvolve2d::test_fillvalue_errors": "portconv's error has other words, and is a TypeError",
    "TestConvolve2d::test_fillvalue_empty": "portconv's error is a TypeError",
}
"""The tests that fail, as they must while the reason holds."""
BOUNDARIES = {"fill": "constant", "wrap": "circular", "symm": "symmetric"}


def as_arrays(in1, in2):
    """Return both as arrays of their library, and the library."""
    from scipy._lib._array_api import array_namespace

    xp = array_namespace(in1, in2)
    a, b = xp.asarray(in1), xp.asarray(in2)
    if a.ndim != b.ndim:
        raise ValueError("expected as many dimensions")
    return xp, a, b


def in_place_of(function):
    """Return what takes the place of SciPy's function of that name."""

    def plain(in1, in2, mode="full", method="auto"):
        if method not in ("auto", "direct", "fft"):
            raise ValueError(method)
        xp, a, b = as_arrays(in1, in2)
        if not math.prod((*a.shape, *b.shape)):
            return xp.asarray([])
        out = function(a, b, mode)
        return out if a.ndim else out[()]  # NumPy makes a number of it

    return plain


def of_floats(function):
    """Return what takes the place of `fftconvolve`: both operands become floating point."""

    def of_axes(in1, in2, mode="full", axes=None):
        xp, a, b = as_arrays(in1, in2)
        if not math.prod((*a.shape, *b.shape)):
            return xp.asarray([])
        if max(math.prod(a.shape), math.prod(b.shape)) == 1:
            return a * b
        a, b = (xp.astype(each, xp.float64) if xp.isdtype(each.dtype, "integral") else each for each in (a, b))
        return function(a, b, mode, axes=axes)

    return of_axes


def of_planes(function):
    """Return what takes the place of `convolve2d`."""

    def plane(in1, in2, mode="full", boundary="fill", fillvalue=0):
        _, a, b = as_arrays(in1, in2)
        if a.ndim != 2 or boundary not in BOUNDARIES:
            raise ValueError(boundary)
        if getattr(fillvalue, "shape", ()) not in ((), (1,)):
            raise ValueError("fillvalue")
        value = {"padding_value": getattr(fillvalue, "item", lambda: fillvalue)()} if boundary == "fill" else {}
        return function(a, b, mode, boundary=BOUNDARIES[boundary], **value)

    return plane


def pytest_collection_modifyitems(config, items):
    """Put the functions in their places, and leave other tests out."""
    import scipy.signal
    from scipy.signal.tests import test_signaltools

    from portconv import signal

    functions = {
        **{name: in_place_of(getattr(signal, name)) for name in ("convolve", "correlate")},
        **dict.fromkeys(("fftconvolve", "oaconvolve"), of_floats(signal.convolve)),
        **{f"{name}2d": of_planes(getattr(signal, name)) for name in ("convolve", "correlate")},
    }
    for name, function in functions.items():
        for module in (scipy.signal, test_signaltools):
            setattr(module, name, function)
    ours = [item for item in items if item.cls is not None and OF_CONVOLUTIONS.match(item.cls.__name__)]
    many = [item for item in ours if item.cls.__name__ == "TestOAConvolve"]
    kept = {*ours} - {*many} | {*many[::EVERY]}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]
    for item in items:
        reason = DIFFERENT.get(f"{item.cls.__name__}::{item.originalname}")
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
