"""Draw the largest error of each algorithm and its bound, for sums of growing length."""

import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import portconv

CHANNELS = (1, 2, 4, 8, 16, 32, 64, 128)
WAYS = {"gemm": "C0", "winograd": "C1", "fft": "C2", "reproducible": "C4"}


def errors(channels):
    """Return the largest error and the largest bound of each way, in roundoffs of the largest output."""
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((2, channels, 24, 24)).astype("float32")
    w = rng.standard_normal((8, channels, 3, 3)).astype("float32")
    windows = sliding_window_view(x.astype("float64"), (3, 3), axis=(2, 3))
    exact = np.einsum("ncijkl,fckl->nfij", windows, w.astype("float64"), optimize=True)
    unit = np.finfo("float32").eps / 2 * np.abs(exact).max()
    by_way = {}
    for way in WAYS:
        options = {"precision": way} if way == "reproducible" else {"algorithm": way}
        out, bound = portconv.conv(x, w, **options), portconv.error_bound(x, w, **options)
        assert np.all(np.abs(out - exact) <= bound)
        by_way[way] = np.abs(out - exact).max() / unit, bound.max() / unit
    return by_way


table = {channels: errors(channels) for channels in CHANNELS}
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
terms = [9 * channels for channels in CHANNELS]
for way, colour in WAYS.items():
    measured, allowed = zip(*(by_way[way] for by_way in table.values()), strict=True)
    axis.plot(terms, measured, ".-", color=colour, label=f"{way}: largest error")
    axis.plot(terms, allowed, "--", color=colour, label=f"{way}: bound")
axis.set(xscale="log", yscale="log", xlabel="terms of a sum", ylabel="roundoffs of the largest output")
figure.legend(loc="outside right center")
