"""Draw what each algorithm is expected to take, over what `gemm` is, as kernels grow."""

import os
import tempfile
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np

import portconv

KERNELS = (1, 2, 3, 5, 7, 9, 11, 13, 15, 19, 23, 27, 31)
PANELS = {"32 channels to 32": 1, "32 channels, depthwise": 32}
COLOURS = {"winograd": "C1", "fft": "C2", "depthwise": "C3", "gemm": "C0"}


def costs(kernel, groups):
    """What each algorithm that serves is expected to take, over `gemm`."""
    x = np.empty((16, 32, 56, 56), "float32")  # of which nothing is read
    w = np.empty((32, 32 // groups, kernel, kernel), "float32")
    found = portconv.explain(x, w, padding="same", groups=groups).candidates
    known = {one.name: one.cost for one in found if one.cost is not None}
    return {name: cost / known["gemm"] for name, cost in known.items()}


figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True, layout="constrained")
with tempfile.TemporaryDirectory() as empty:
    # The shipped costs, and not those that may have been measured on this machine: the picture is the same everywhere.
    nowhere = dict.fromkeys(("HOME", "LOCALAPPDATA", "XDG_CACHE_HOME"), empty)
    with patch.dict(os.environ, nowhere):
        tables = {title: {k: costs(k, groups) for k in KERNELS} for title, groups in PANELS.items()}
for axis, (title, table) in zip(axes, tables.items(), strict=True):
    for name, colour in COLOURS.items():
        points = [(k, own[name]) for k, own in table.items() if name in own]
        if points:
            marker = "o" if len(points) == 1 else "."
            axis.plot(*zip(*points, strict=True), marker=marker, color=colour, label=name)
    axis.set(title=title, xlabel="kernel, cells along each side", yscale="log")
    axis.legend()
axes[0].set_ylabel("expected time over gemm's")
