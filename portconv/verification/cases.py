"""The problems that backends are compared on, and their numbers, which are the same for every library."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import backends
from ..convolution import conv_output_shape
from ..passes.padding import overlap
from ..spec import checked_geometry
from ..spec.arguments import with_constant
from ..spec.dtypes import LARGEST, real
from ..spec.geometry import Geometry
from ..spec.options import Ints, Options, Padding

Floats = NDArray[np.inexact[Any]]
Shape = tuple[int, ...]

DTYPES = ("float32", "float64")
"""The dtypes that backends are compared in by default."""
ALL_DTYPES = (*DTYPES, "float16", "bfloat16", "complex64", "complex128")
"""The dtypes that backends can be compared in."""
QUANTITIES = ("out", "dx", "dw", "db")
"""What a case computes; db only if there is a bias."""

WIDEST = {"float16": 2, "bfloat16": 57, "float32": 57, "float64": 500}
"""The largest power of two, by dtype, that a wide number is multiplied by: 2**11 products of two do not overflow."""


class Inputs(NamedTuple):
    """Read-only host arrays in the case's dtype; `b` is None in a case without a bias."""

    x: Floats
    w: Floats
    b: Floats | None
    dout: Floats


@dataclass(frozen=True)
class Case:
    """One convolution with its gradients, in one dtype; the fields are those of `portconv.conv`.

    `w` and `b` are the weights and the bias; if None, `inputs` makes them up. `numbers` says which it makes: "plain"
    ones; "wide" ones, of very different sizes; or plain ones but for a nan and an infinity in one of the arrays: "x not
    finite", "w not finite", "dout not finite".
    """

    name: str
    x_shape: Shape
    w_shape: Shape
    bias: bool = False
    stride: Ints = 1
    padding: Padding = 0
    dilation: Ints = 1
    groups: int = 1
    padding_mode: str = "zeros"
    padding_value: float = 0
    data_format: str = "channels_first"
    algorithm: str = "auto"
    dtype: str = "float32"
    numbers: str = "plain"
    w: Floats | None = field(default=None, compare=False, repr=False)
    b: Floats | None = field(default=None, compare=False, repr=False)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `portconv.conv`."""
        given = {**self._sizes, "padding_mode": self.padding_mode, "padding_value": self.padding_value}
        return {**given, "padding_value": with_constant(Options(**given), real(self.dtype)).padding_value}

    @property
    def _sizes(self) -> dict[str, Any]:
        """The keyword arguments that decide the output's shape."""
        return {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups", "data_format")}

    @cached_property
    def out_shape(self) -> Shape:
        return conv_output_shape(self.x_shape, self.w_shape, **self._sizes)

    @cached_property
    def geometry(self) -> Geometry:
        """The sizes of the problem, with a batch axis and channels first."""
        return checked_geometry.convolution(self.x_shape, self.w_shape, Options(**self.options)).geometry

    @property
    def quantities(self) -> tuple[str, ...]:
        return QUANTITIES if self.bias else QUANTITIES[:-1]

    @property
    def terms(self) -> dict[str, int]:
        """The largest number of terms in the sum behind one element of each quantity; the bias counts as one."""
        sizes = self.geometry
        summed = sizes.batch * sizes.positions
        return {
            "out": sizes.group_in * sizes.taps + self.bias,
            "dx": sizes.group_out * sizes.taps * overlap(sizes),
            "dw": summed,
            "db": summed,
        }

    @property
    def fits(self) -> bool:
        """Whether the dtype can hold all numbers of `w` and `b`."""
        largest = LARGEST.get(real(self.dtype), math.inf)
        return all(array is None or bool(np.all(np.abs(array) <= largest)) for array in (self.w, self.b))

    @property
    def operations(self) -> int:
        """Multiplications and additions of one of the three products."""
        return self.geometry.operations

    def inputs(self) -> Inputs:
        """Make the numbers of the case: in [-1, 1), rounded to its dtype, and the same in every process.

        Both parts of complex numbers are in [-1, 1). `numbers` says how they are changed then. `w` and `b` are taken
        from the case where it has them.
        """
        dtype = host_dtype(self.dtype)
        x, w, b, dout = (
            self._made(which, shape, dtype) if values is None else _frozen(values.astype(dtype))
            for which, shape, values in (
                ("x", self.x_shape, None),
                ("w", self.w_shape, self.w),
                ("b", self.w_shape[:1], self.b),
                ("dout", self.out_shape, None),
            )
        )
        return Inputs(x, w, b if self.bias else None, dout)

    def _made(self, which: str, shape: Shape, dtype: np.dtype[Any]) -> Floats:
        """Make the numbers of one array."""
        label = f"{self.name} {which}"
        array = _numbers(label, shape, dtype)
        if self.numbers == "wide":
            most = np.uint64(WIDEST[real(self.dtype)] + 1)
            powers = np.ldexp(1.0, (_raw(label, shape) % most).astype(np.int64))
            return _frozen(array * powers.astype(array.real.dtype))
        if self.numbers == f"{which} not finite" and array.size:
            array, raw = array.copy(), _raw(label, shape)
            # Libraries differ in products of infinite complex numbers.
            array.flat[np.argmin(raw)], array.flat[np.argmax(raw)] = (
                math.nan,
                math.nan if dtype.kind == "c" else math.inf,
            )
            return _frozen(array)
        return array


def host_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype of that name; if bfloat16 is missing, a BackendError says what it needs."""
    dtype: np.dtype[Any] = backends.get("numpy").dtype(name)
    return dtype


def _raw(label: str, shape: Shape) -> NDArray[np.uint64]:
    """Return random integers: a bit generator's raw numbers, which are the same in every version of NumPy."""
    raw = np.random.PCG64(zlib.crc32(label.encode())).random_raw(math.prod(shape))
    return np.asarray(raw, np.uint64).reshape(shape)


def _numbers(label: str, shape: Shape, dtype: np.dtype[Any]) -> Floats:
    if dtype.kind == "c":
        parts = (_numbers(f"{label}{part}", shape, np.dtype(np.float64)) for part in ("", " imaginary"))
        return _frozen(np.stack([*parts], axis=-1).view(np.complex128)[..., 0].astype(dtype))
    # Multiples of 2**-52: a product of two is 0 or at least 2**-104, so no product underflows in float32.
    return _frozen(((_raw(label, shape) >> np.uint64(11)) * 2.0**-52 - 1.0).astype(dtype))


def _frozen(array: Floats) -> Floats:
    array.flags.writeable = False
    return array


def cases(dtypes: Sequence[str] = DTYPES) -> tuple[Case, ...]:
    """List the cases: every geometry below, in each of `dtypes`.

    Parameters
    ----------
    dtypes : sequence of str

    Returns
    -------
    tuple of Case
        Names are unique within a dtype.

    Examples
    --------
    >>> from portconv.verification import cases
    >>> sorted({case.dtype for case in cases(["float64"])})
    ['float64']
    """
    return in_dtypes([Case(**fields) for fields in _GEOMETRIES], dtypes)


def in_dtypes(layers: Sequence[Case], dtypes: Sequence[str]) -> tuple[Case, ...]:
    """Repeat cases in each of `dtypes`."""
    return tuple(replace(case, dtype=dtype) for dtype in dtypes for case in layers)


def _of(name: str, x_shape: Shape, w_shape: Shape, **options: Any) -> dict[str, Any]:
    return {"name": name, "x_shape": x_shape, "w_shape": w_shape, **options}


# The spatial sizes of a case differ, so that a mix-up of two dimensions shows.
_GEOMETRIES = (
    _of("1d", (2, 3, 17), (4, 3, 5)),
    _of("1d-stride2", (2, 3, 17), (4, 3, 5), stride=2, padding=2, bias=True),
    _of("1d-stride3-dil2", (2, 3, 23), (4, 3, 4), stride=3, dilation=2, padding=3),
    _of("1d-pairs", (2, 3, 10), (2, 3, 4), padding=((3, 1),), bias=True),
    _of("1d-same-even", (2, 2, 11), (3, 2, 4), padding="same"),
    _of("1d-same-stride3", (2, 2, 13), (3, 2, 5), padding="same", stride=3, bias=True),
    _of("1d-lower-even", (2, 2, 11), (3, 2, 4), padding="same_lower"),
    _of("1d-full", (2, 2, 9), (3, 2, 4), padding="full", bias=True),
    _of("1d-depthwise-x2", (2, 4, 20), (8, 1, 3), groups=4, padding=1),
    _of("1d-unbatched", (3, 15), (4, 3, 3), padding=1, bias=True),
    _of("1d-whole", (2, 3, 9), (4, 3, 9)),
    _of("1d-long", (2, 2, 700), (3, 2, 31), padding="same", bias=True),
    _of("2d", (2, 3, 8, 9), (4, 3, 3, 3)),
    _of("2d-bias", (2, 3, 8, 9), (4, 3, 3, 3), padding=1, bias=True),
    _of("2d-stride2", (2, 3, 9, 10), (4, 3, 3, 3), stride=2, padding=1, bias=True),
    _of("2d-stride2x3", (2, 3, 9, 11), (4, 3, 3, 3), stride=(2, 3), padding=1),
    _of("2d-stride-gaps", (2, 3, 10, 12), (4, 3, 2, 2), stride=3, bias=True),
    _of("2d-pad1x2", (2, 3, 7, 8), (4, 3, 3, 4), padding=(1, 2), bias=True),
    _of("2d-pairs", (2, 3, 7, 8), (4, 3, 3, 2), padding=((0, 2), (3, 1)), stride=(1, 2)),
    _of("2d-pad-beyond", (2, 2, 4, 5), (3, 2, 2, 3), padding=((4, 3), (5, 4)), stride=2, bias=True),
    _of("2d-valid", (2, 3, 7, 8), (4, 3, 2, 3), padding="valid", stride=(2, 1)),
    _of("2d-full", (2, 3, 6, 5), (4, 3, 3, 2), padding="full"),
    _of("2d-full-dil2", (2, 3, 6, 7), (4, 3, 3, 2), padding="full", dilation=2, stride=2, bias=True),
    _of("2d-same", (2, 3, 7, 8), (4, 3, 3, 5), padding="same", bias=True),
    _of("2d-same-even", (2, 3, 7, 8), (4, 3, 2, 4), padding="same"),
    _of("2d-same-even-s2", (2, 3, 9, 10), (4, 3, 4, 2), padding="same", stride=2),
    _of("2d-same-s3-dil2", (2, 3, 11, 12), (4, 3, 3, 2), padding="same", stride=(3, 2), dilation=2, bias=True),
    _of("2d-lower-even", (2, 3, 7, 8), (4, 3, 2, 4), padding="same_lower", bias=True),
    _of("2d-lower-s2x3", (2, 3, 9, 10), (4, 3, 4, 3), padding="same_lower", stride=(2, 3)),
    _of("2d-dil2", (2, 3, 9, 10), (4, 3, 3, 3), dilation=2, padding=2, bias=True),
    _of("2d-dil1x3", (2, 3, 7, 12), (4, 3, 3, 3), dilation=(1, 3), stride=(2, 1)),
    _of("2d-groups2", (2, 4, 8, 7), (6, 2, 3, 3), groups=2, padding=1, bias=True),
    _of("2d-groups2-dil2", (2, 4, 10, 9), (6, 2, 3, 2), groups=2, stride=2, dilation=2, padding="same"),
    _of("2d-depthwise", (2, 5, 8, 9), (5, 1, 3, 3), groups=5, padding=1, bias=True),
    _of("2d-depthwise-x3", (2, 4, 9, 8), (12, 1, 3, 3), groups=4, stride=2, padding="same"),
    _of("2d-unbatched", (3, 8, 9), (4, 3, 3, 3), stride=2, padding=1, bias=True),
    _of("2d-batch0", (0, 3, 8, 9), (4, 3, 3, 3), padding=1, bias=True),
    _of("2d-whole", (3, 3, 5, 6), (4, 3, 5, 6), bias=True),
    _of("2d-1x5", (2, 3, 7, 9), (4, 3, 1, 5)),
    _of("2d-5x1", (2, 3, 9, 7), (4, 3, 5, 1), padding="same", stride=(1, 2), bias=True),
    _of("2d-one-of-each", (1, 1, 1, 1), (1, 1, 1, 1), bias=True),
    _of("2d-image", (1, 3, 37, 32), (8, 3, 7, 7), stride=2, padding=3, bias=True),
    _of("2d-many-small", (96, 4, 5, 4), (6, 4, 3, 3), padding=1, bias=True),
    _of("2d-blocks", (2, 32, 48, 47), (32, 32, 3, 3), padding=1, bias=True),
    _of("2d-blocks-groups", (8, 32, 22, 21), (64, 4, 5, 5), groups=8),
    _of("2d-1x1-small", (2, 3, 5, 4), (6, 3, 1, 1), bias=True),
    _of("2d-1x1-large", (3, 5, 12, 13), (4, 5, 1, 1), bias=True),
    _of("2d-1x1-groups", (2, 6, 12, 13), (4, 3, 1, 1), groups=2),
    _of("2d-1x1-stride2", (2, 3, 11, 12), (4, 3, 1, 1), stride=2, bias=True),
    _of("2d-1x1-blocks", (4, 64, 19, 20), (96, 64, 1, 1), bias=True),
    _of("3d", (2, 3, 5, 6, 7), (4, 3, 3, 2, 3), padding=1, bias=True),
    _of("3d-same-s2", (2, 2, 5, 6, 7), (3, 2, 3, 4, 2), padding="same", stride=(2, 1, 2)),
    _of("3d-dil-pairs", (1, 2, 6, 7, 8), (3, 2, 2, 3, 3), dilation=(2, 1, 3), padding=((1, 0), (0, 2), (3, 2))),
    _of("3d-depthwise-s2", (2, 3, 6, 5, 7), (6, 1, 3, 3, 3), groups=3, stride=2, padding=1, bias=True),
    _of("3d-1x1", (2, 3, 5, 6, 7), (4, 3, 1, 1, 1), bias=True),
    _of("3d-unbatched", (2, 5, 4, 6), (3, 2, 2, 3, 2), padding="full"),
    _of("3d-blocks", (2, 8, 9, 10, 11), (16, 8, 3, 3, 3), padding=1),
    _of("1d-reflect", (2, 3, 9), (4, 3, 5), padding=2, padding_mode="reflect", bias=True),
    _of("1d-circular-beyond", (2, 2, 3), (3, 2, 4), padding=((4, 5),), padding_mode="circular"),
    _of("2d-reflect", (2, 3, 8, 9), (4, 3, 3, 3), padding="same", padding_mode="reflect"),
    _of("2d-replicate", (2, 4, 7, 8), (6, 2, 3, 2), padding=((1, 2), (3, 0)), padding_mode="replicate", groups=2),
    _of("2d-circular-s2", (2, 3, 9, 10), (4, 3, 3, 3), padding=1, padding_mode="circular", stride=2, bias=True),
    _of("1d-constant", (2, 4, 9), (6, 2, 4), padding=((5, 2),), padding_mode="constant", padding_value=-0.3, groups=2),
    _of("2d-symmetric", (2, 3, 5, 4), (4, 3, 3, 3), padding=((1, 2), (9, 0)), padding_mode="symmetric", bias=True),
    _of("3d-reflect-dil2", (1, 2, 5, 6, 7), (3, 2, 2, 3, 2), padding=2, padding_mode="reflect", dilation=2),
    _of("1d-last", (2, 17, 3), (4, 3, 5), data_format="channels_last", stride=2, bias=True),
    _of("2d-last", (2, 8, 9, 3), (4, 3, 3, 3), data_format="channels_last", padding=1, bias=True),
    _of("2d-last-groups", (3, 9, 8, 4), (6, 2, 3, 2), data_format="channels_last", groups=2, stride=2, dilation=2),
    _of("2d-last-1x1", (3, 12, 13, 5), (4, 5, 1, 1), data_format="channels_last", bias=True),
    _of(
        "2d-last-blocks",
        (2, 48, 47, 32),
        (32, 32, 3, 3),
        data_format="channels_last",
        padding=1,
        algorithm="gemm",
    ),
    _of(
        "3d-last-unbatched",
        (5, 4, 6, 2),
        (3, 2, 2, 3, 2),
        data_format="channels_last",
        padding_mode="replicate",
        padding=1,
    ),
    _of("1d-winograd", (2, 3, 18), (4, 3, 3), padding=2, bias=True, algorithm="winograd"),
    _of("2d-winograd", (2, 3, 9, 8), (4, 3, 3, 3), padding=1, bias=True, algorithm="winograd"),
    _of("2d-winograd-1x3", (2, 4, 6, 7), (6, 2, 1, 3), groups=2, padding=((0, 0), (2, 0)), algorithm="winograd"),
    _of("2d-winograd-3x1", (3, 7, 6), (4, 3, 3, 1), padding="same", algorithm="winograd"),
    _of("2d-winograd-blocks", (8, 24, 28, 27), (32, 24, 3, 3), padding=1, bias=True, algorithm="winograd"),
    _of("3d-winograd", (1, 2, 5, 6, 7), (3, 2, 3, 3, 3), padding="full", bias=True, algorithm="winograd"),
    _of("1d-fft-tiles", (2, 2, 801), (3, 2, 9), padding=((5, 2),), bias=True, algorithm="fft"),
    _of("1d-fft-whole", (3, 1, 29), (2, 1, 29), padding="full", algorithm="fft"),
    _of("1d-fft-beyond", (2, 2, 6), (3, 2, 4), padding=((9, 13),), dilation=3, bias=True, algorithm="fft"),
    _of("2d-fft-depthwise", (2, 3, 20, 19), (3, 1, 15, 14), groups=3, padding="same", bias=True, algorithm="fft"),
    _of("2d-fft-groups", (2, 6, 12, 17), (4, 3, 5, 4), groups=2, padding=((0, 3), (5, 1)), algorithm="fft"),
    _of("2d-fft-dil2", (5, 3, 13, 11), (4, 3, 3, 4), dilation=(2, 1), padding="full", bias=True, algorithm="fft"),
    _of("2d-fft-reflect", (2, 2, 9, 8), (3, 2, 5, 3), padding="same", padding_mode="reflect", algorithm="fft"),
    _of("2d-fft-last", (9, 10, 3), (4, 3, 4, 5), data_format="channels_last", padding=2, bias=True, algorithm="fft"),
    _of("3d-fft", (1, 2, 6, 5, 7), (3, 2, 3, 4, 2), padding=((2, 0), (1, 3), (0, 1)), algorithm="fft"),
    _of("1d-depthwise", (3, 4, 23), (4, 1, 6), groups=4, padding=((5, 1),), bias=True, algorithm="depthwise"),
    _of("2d-depthwise-dense", (2, 4, 11, 12), (4, 1, 5, 4), groups=4, padding="same", algorithm="depthwise"),
    _of("2d-depthwise-s2-x2", (3, 3, 12, 11), (6, 1, 3, 4), groups=3, stride=2, bias=True, algorithm="depthwise"),
    _of(
        "2d-depthwise-last",
        (2, 9, 8, 3),
        (6, 1, 3, 3),
        groups=3,
        dilation=(1, 2),
        stride=(3, 1),
        padding=2,
        data_format="channels_last",
        algorithm="depthwise",
    ),
    _of("3d-depthwise-dense", (2, 2, 5, 6, 4), (4, 1, 3, 2, 3), groups=2, padding=1, bias=True, algorithm="depthwise"),
    *(
        _of(
            f"2d-{numbers.replace(' ', '-')}",
            (2, 4, 9, 8),
            (6, 2, 3, 3),
            groups=2,
            padding=1,
            bias=True,
            numbers=numbers,
        )
        for numbers in ("wide", "x not finite", "w not finite", "dout not finite")
    ),
    _of("1d-wide-long", (2, 3, 90), (4, 3, 25), padding="same", stride=2, numbers="wide"),
    _of("1d-w-not-finite", (2, 3, 30), (4, 3, 4), padding=((3, 1),), stride=3, numbers="w not finite"),
    _of("2d-x-not-finite-s2", (2, 16, 12, 11), (16, 16, 3, 3), stride=2, padding=1, numbers="x not finite"),
    _of("3d-wide", (2, 3, 5, 6, 7), (4, 3, 3, 2, 3), padding=1, bias=True, numbers="wide"),
    _of("3d-dout-not-finite", (2, 3, 5, 6, 7), (4, 3, 3, 2, 3), padding=1, dilation=2, numbers="dout not finite"),
    _of("4d", (2, 2, 3, 4, 5, 4), (3, 2, 2, 2, 3, 1), padding=(1, 0, 1, 0), stride=(1, 2, 1, 1), bias=True),
)
