"""Draw a photograph, one of its feature maps, and the gradient of the map's energy."""

import matplotlib.cbook
import matplotlib.pyplot as plt
import numpy as np

import portconv

photograph = plt.imread(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
x = photograph[::2, ::2].mean(axis=2, dtype="float32")[None] / 255  # one channel of one sample
sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype="float32")
w = np.stack([sobel, sobel.T])[:, None]  # two filters, of one channel
out, cache = portconv.conv_forward(x, w, padding="same", padding_mode="reflect")
dx, dw, db = portconv.conv_backward(out, cache)  # gradients of half the sum of squares of `out`

figure, axes = plt.subplots(1, 4, figsize=(9, 3.2), layout="constrained")
titles = ("x", "out[0]", "out[1]", "dx")
for axis, title, picture in zip(axes, titles, (x[0], out[0], out[1], dx[0]), strict=True):
    scale = np.quantile(np.abs(picture), 0.99)
    limits = {"cmap": "gray"} if title == "x" else {"cmap": "RdBu", "vmin": -scale, "vmax": scale}
    axis.imshow(picture, **limits)
    axis.set_title(title, family="monospace")
    axis.axis("off")
