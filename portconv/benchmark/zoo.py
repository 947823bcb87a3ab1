"""Layers of networks that people run, for ``portconv bench``.

A layer's name has the network, the kernel ("dw" for depthwise), the channels in and out at the size of the input, and
then the stride ("s"), dilation ("d"), batch ("b") and groups ("g") if they are not 1, 1, 16 and 1.

portconv's choices were made on the layers of `ZOO`. Its sizes are those of:

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

The layers of `HELD_OUT` say what other networks get. No costs were fitted to them, but how kernels cut their work and
read memory was adjusted after a look at some. Its sizes are those of:

- AlexNet: Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional networks" (NIPS 2012);
- GoogLeNet: Szegedy et al., "Going deeper with convolutions" (CVPR 2015), and Inception-v3: Szegedy et al., "Rethinking
  the Inception architecture for computer vision" (CVPR 2016);
- U-Net: Ronneberger, Fischer and Brox (MICCAI 2015); 3D U-Net: Cicek et al. (MICCAI 2016);
- DenseNet-121: Huang et al., "Densely connected convolutional networks" (CVPR 2017);
- ResNeXt-50: Xie et al., "Aggregated residual transformations for deep neural networks" (CVPR 2017);
- DeepLabv3: Chen et al., "Rethinking atrous convolution for semantic image segmentation" (2017);
- EDSR: Lim et al. (CVPR workshops 2017), and SRCNN: Dong et al. (ECCV 2014), for super-resolution;
- EfficientNet-B0: Tan and Le (ICML 2019); MnasNet: Tan et al. (CVPR 2019);
- ViT-B/16: Dosovitskiy et al. (ICLR 2021); Swin-T: Liu et al. (ICCV 2021);
- YOLOv3: Redmon and Farhadi (2018);
- wav2vec 2.0: Baevski et al. (NeurIPS 2020); Conformer: Gulati et al. (Interspeech 2020); HiFi-GAN: Kong, Kim and Bae
  (NeurIPS 2020); EEGNet: Lawhern et al. (Journal of Neural Engineering 2018);
- C3D: Tran et al., "Learning spatiotemporal features with 3D convolutional networks" (ICCV 2015);
- LeNet-5: LeCun et al., "Gradient-based learning applied to document recognition" (1998);
- SqueezeNet: Iandola et al. (2016), ShuffleNet v2: Ma et al. (ECCV 2018), MobileNetV3: Howard et al. (ICCV 2019), and
  ResNet-18: He et al. (CVPR 2016), one sample at a time;
- DS-CNN: Zhang et al., "Hello edge: keyword spotting on microcontrollers" (2017);
- Demucs: Defossez et al., "Music source separation in the waveform domain" (2019), on ten seconds of sound;
- the residual network of Ribeiro et al., "Automatic diagnosis of the 12-lead ECG" (Nature Communications, 2020);
- V-Net: Milletari, Navab and Ahmadi (3DV 2016).
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
    groups: int | None = None,
) -> Layer:
    """Describe and name a layer; if `padding` is None, the output has the size of the input."""
    dims = len(size)
    depthwise = groups is None and (kind == "depthwise" or (kind == "large" and channels == filters))
    groups = groups or (channels if depthwise else 1)
    pads = tuple(dilation * (k - 1) // 2 for k in kernel) if padding is None else (padding,) * dims
    words = (
        network,
        f"{'dw' if depthwise else ''}{'x'.join(map(str, kernel))}",
        f"{channels if channels == filters else f'{channels}-{filters}'}@"
        + "x".join(map(str, size if len(set(size)) > 1 else size[:1])),
        f"s{stride}" if stride > 1 else "",
        f"d{dilation}" if dilation > 1 else "",
        f"b{batch}" if batch != BATCH else "",
        f"g{groups}" if 1 < groups < channels else "",
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

HELD_OUT = (
    _layer("alexnet", (11, 11), 3, 64, (224, 224), stride=4, padding=2),
    _layer("alexnet", (5, 5), 64, 192, (27, 27)),
    _layer("alexnet", (3, 3), 192, 384, (13, 13)),
    _layer("googlenet", (5, 5), 16, 32, (28, 28)),
    _layer("googlenet", (3, 3), 96, 208, (14, 14)),
    _layer("googlenet", (1, 1), 480, 192, (14, 14), "pointwise"),
    _layer("inceptionv3", (1, 7), 128, 128, (17, 17)),
    _layer("inceptionv3", (3, 3), 288, 384, (35, 35), stride=2, padding=0),
    _layer("inceptionv3", (1, 1), 768, 192, (17, 17), "pointwise"),
    _layer("unet", (3, 3), 64, 64, (256, 256), batch=1),
    _layer("unet", (3, 3), 256, 128, (128, 128), batch=1),
    _layer("unet3d", (3, 3, 3), 32, 64, (32, 32, 32), batch=1),
    _layer("densenet121", (3, 3), 128, 32, (28, 28)),
    _layer("densenet121", (1, 1), 512, 128, (14, 14), "pointwise"),
    _layer("resnext50", (3, 3), 256, 256, (28, 28), groups=32),
    _layer("deeplabv3", (3, 3), 512, 256, (28, 28), batch=4, dilation=12),
    _layer("edsr", (3, 3), 64, 64, (96, 96), batch=4),
    _layer("srcnn", (9, 9), 1, 64, (128, 128), batch=4),
    _layer("yolov3", (3, 3), 128, 256, (52, 52), batch=4, stride=2),
    _layer("yolov3", (1, 1), 512, 256, (26, 26), "pointwise", batch=4),
    _layer("vit", (16, 16), 3, 768, (224, 224), stride=16, padding=0),
    _layer("swin", (4, 4), 3, 96, (224, 224), stride=4, padding=0),
    _layer("efficientnet", (5, 5), 240, 240, (28, 28), "depthwise"),
    _layer("efficientnet", (3, 3), 480, 480, (14, 14), "depthwise"),
    _layer("efficientnet", (5, 5), 672, 672, (14, 14), "depthwise", stride=2),
    _layer("mnasnet", (3, 3), 72, 72, (56, 56), "depthwise"),
    _layer("wav2vec2", (10,), 1, 512, (16000,), batch=2, stride=5, padding=0),
    _layer("wav2vec2", (3,), 512, 512, (1600,), batch=2, stride=2, padding=0),
    _layer("conformer", (31,), 256, 256, (400,), "depthwise"),
    _layer("hifigan", (11,), 128, 128, (2048,), batch=4, dilation=5),
    _layer("eegnet", (1, 64), 1, 8, (64, 128), "large"),
    _layer("c3d", (3, 3, 3), 64, 128, (16, 56, 56), batch=1),
    _layer("lenet", (5, 5), 1, 6, (28, 28), "small", batch=4),
    _layer("lenet", (5, 5), 6, 16, (14, 14), "small", batch=4, padding=0),
    _layer("squeezenet", (3, 3), 16, 64, (55, 55), batch=1),
    _layer("shufflenetv2", (1, 1), 58, 58, (28, 28), "pointwise", batch=1),
    _layer("shufflenetv2", (3, 3), 58, 58, (28, 28), "depthwise", batch=1),
    _layer("mobilenetv3", (5, 5), 120, 120, (28, 28), "depthwise", batch=1),
    _layer("resnet18", (3, 3), 256, 512, (14, 14), batch=1, stride=2),
    _layer("resnet18", (3, 3), 256, 256, (14, 14), batch=1),
    _layer("dscnn", (10, 4), 1, 64, (49, 10), batch=1, stride=2),
    _layer("demucs", (8,), 2, 64, (441000,), batch=1, stride=4, padding=0),
    _layer("ecg", (17,), 12, 64, (4096,), batch=1),
    _layer("vnet", (5, 5, 5), 16, 16, (32, 64, 64), batch=1),
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
