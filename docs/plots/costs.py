"""Draw the expected time of each algorithm over that of `gemm`, for growing kernels."""

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
    """Return the expected time over that of `gemm`, for each algorithm that can compute the call."""
    x = np.empty((16, 32, 56, 56), "float32")  # nothing reads its values
    w = np.empty((32, 32 // groups, kernel, kernel), "float32")
    candidates = portconv.explain(x, w, padding="same", groups=groups).candidates
    known = {candidate.name: candidate.cost for candidate in candidates if candidate.cost is not None}
    return {name: cost / known["gemm"] for name, cost in known.items()}


figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True, layout="constrained")
with tempfile.TemporaryDirectory() as empty:
    # Without a home folder portconv takes the shipped costs, so the picture is the same on every machine.
    nowhere = dict.fromkeys(("HOME", "LOCALAPPDATA", "XDG_CACHE_HOME"), empty)
    with patch.dict(os.environ, nowhere):
        tables = {title: {k: costs(k, groups) for k in KERNELS} for title, groups in PANELS.items()}
for axis, (title, table) in zip(axes, tables.items(), strict=True):
    for name, colour in COLOURS.items():
        points = [(k, ratios[name]) for k, ratios in table.items() if name in ratios]
        if points:
            marker = "o" if len(points) == 1 else "."
            axis.plot(*zip(*points, strict=True), marker=marker, color=colour, label=name)
    axis.set(title=title, xlabel="kernel, cells along each side", yscale="log")
    axis.legend()
axes[0].set_ylabel("expected time over gemm's")
