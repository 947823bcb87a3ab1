"""Layers of networks that people run, for ``portconv bench``.

A layer's name has the network, the kernel ("dw" for depthwise), the channels in and out at the size of the input, and
then the stride ("s"), dilation ("d") and batch ("b") if they are not 1, 1 and 16. The sizes are those of:

- ResNet-50: He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (CVPR 2016);
- VGG-16: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition" (ICLR 2015);
- MobileNetV2: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks" (CVPR 2018);
- ConvNeXt-T: Liu et al., "A ConvNet for the 2020s" (CVPR 2022);
- RepLKNet-31B: Ding et al., "Scaling up your kernels to 31x31" (CVPR 2022);
- R3D-18: Tran et al., "A closer look at spatiotemporal convolutions for action recognition" (CVPR 2018);
- WaveNet: van den Oord et al., "WaveNet: a generative model for raw audio" (2016);
- TCN: Bai, Kolter and Koltun, "An empirical evaluation of generic convolutional and recurrent networks" (2018);
- a filterbank over a second of sound, learned as by Ravanelli and Bengio, "Speaker recognition from raw waveform with
  SincNet" (SLT 2018), with a longer kernel;
- Stanford's CS231n: the layers on which its notebooks time and check the fast versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..convolution import conv_output_shape

BATCH = 16
"""The samples in a batch, unless the layer's name says another number."""

KINDS = ("dense", "pointwise", "depthwise", "large", "small")
"""The kinds of layers: an algorithm that is fast for one kind need not be for another. Pointwise layers have kernels of
1 and are dense too; large layers have a large kernel; in small ones the whole call is small."""

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A convolution layer with a bias, in float32; `padding` adds zeros on both sides.

    Attributes
    ----------
    name : str
    x_shape, w_shape : tuple of int
        (N, C, *S) and (F, C / groups, *K).
    stride, padding, dilation : tuple of int
        One number for each spatial dimension.
    groups : int
    kind : str
        One of `KINDS`.
    """

    name: str
    x_shape: Ints
    w_shape: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments for portconv."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def out_shape(self) -> Ints:
        return conv_output_shape(self.x_shape, self.w_shape, **self.options)

    @property
    def kernel(self) -> Ints:
        return self.w_shape[2:]

    @property
    def dense(self) -> bool:
        """Whether every filter reads every channel, with a kernel of common size."""
        return self.kind in ("dense", "pointwise")


def _layer(
    network: str,
    kernel: Ints,
    channels: int,
    filters: int,
    size: Ints,
    kind: str = "dense",
    *,
    batch: int = BATCH,
    stride: int = 1,
    padding: int | None = None,
    dilation: int = 1,
) -> Layer:
    """Describe and name a layer; if `padding` is None, the output has the size of the input."""
    dims = len(size)
    depthwise = kind == "depthwise" or (kind == "large" and channels == filters)
    groups = channels if depthwise else 1
    pads = tuple(dilation * (k - 1) // 2 for k in kernel) if padding is None else (padding,) * dims
    words = (
        network,
        f"{'dw' if depthwise else ''}{'x'.join(map(str, kernel))}",
        f"{channels if channels == filters else f'{channels}-{filters}'}@"
        + "x".join(map(str, size if len(set(size)) > 1 else size[:1])),
        f"s{stride}" if stride > 1 else "",
        f"d{dilation}" if dilation > 1 else "",
        f"b{batch}" if batch != BATCH else "",
    )
    return Layer(
        " ".join(filter(None, words)),
        (batch, channels, *size),
        (filters, channels // groups, *kernel),
        (stride,) * dims,
        pads,
        (dilation,) * dims,
        groups,
        kind,
    )


ZOO = (
    _layer("resnet50", (7, 7), 3, 64, (224, 224), stride=2),
    _layer("resnet50", (3, 3), 64, 64, (56, 56)),
    _layer("resnet50", (3, 3), 128, 128, (56, 56), stride=2),
    _layer("resnet50", (3, 3), 256, 256, (14, 14)),
    _layer("resnet50", (3, 3), 512, 512, (7, 7)),
    _layer("resnet50", (1, 1), 256, 64, (56, 56), "pointwise"),
    _layer("resnet50", (1, 1), 64, 256, (56, 56), "pointwise"),
    _layer("resnet50", (1, 1), 256, 512, (56, 56), "pointwise", stride=2),
    _layer("vgg16", (3, 3), 128, 128, (112, 112), batch=4),
    _layer("vgg16", (3, 3), 512, 512, (14, 14)),
    _layer("mobilenetv2", (3, 3), 144, 144, (56, 56), "depthwise"),
    _layer("mobilenetv2", (3, 3), 144, 144, (56, 56), "depthwise", stride=2),
    _layer("mobilenetv2", (3, 3), 960, 960, (7, 7), "depthwise"),
    _layer("convnext", (7, 7), 96, 96, (56, 56), "depthwise"),
    _layer("convnext", (7, 7), 384, 384, (14, 14), "depthwise"),
    _layer("replknet", (15, 15), 128, 128, (56, 56), "large", batch=4),
    _layer("replknet", (31, 31), 128, 128, (56, 56), "large", batch=4),
    _layer("replknet", (31, 31), 256, 256, (28, 28), "large", batch=4),
    _layer("r3d18", (3, 3, 3), 64, 64, (8, 28, 28), batch=2),
    _layer("wavenet", (2,), 64, 64, (16000,), dilation=512),
    _layer("tcn", (3,), 64, 64, (4000,), dilation=8),
    _layer("filterbank", (1024,), 1, 16, (16000,), "large", padding=0),
    _layer("cs231n", (3, 3), 3, 25, (31, 31), batch=100, stride=2),
    _layer("cs231n", (4, 4), 3, 3, (4, 4), "small", batch=2, stride=2, padding=1),
    _layer("resnet50", (7, 7), 3, 64, (224, 224), batch=1, stride=2),
    _layer("resnet50", (3, 3), 64, 64, (56, 56), batch=1),
    _layer("resnet50", (1, 1), 256, 64, (56, 56), "pointwise", batch=1),
    _layer("mobilenetv2", (3, 3), 144, 144, (56, 56), "depthwise", batch=1),
    _layer("small", (3, 3), 3, 8, (8, 8), "small", batch=1),
)


def named(name: str, layers: tuple[Layer, ...] = ZOO) -> tuple[Layer, ...]:
    """Find layers by name.

    Parameters
    ----------
    name : str
        The name of a layer, or a part of it.
    layers : tuple of Layer

    Returns
    -------
    tuple of Layer
        The layer of that name, else all layers whose name contains it.
    """
    exact = tuple(layer for layer in layers if layer.name == name)
    return exact or tuple(layer for layer in layers if name in layer.name)


def growth_pairs(layers: tuple[Layer, ...], short: int = 15, long: int = 31) -> list[tuple[Layer, Layer]]:
    """Find pairs of layers that differ only in their kernel's length: `short` and `long` along each dimension."""
    return [
        (a, b)
        for a in layers
        for b in layers
        if set(a.kernel) == {short}
        and set(b.kernel) == {long}
        and (a.x_shape, a.out_shape, a.groups) == (b.x_shape, b.out_shape, b.groups)
    ]
