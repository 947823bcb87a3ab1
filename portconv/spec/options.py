"""The keywords of a call, in one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

Ints = int | Sequence[int]
"""One int for all spatial dimensions, or one for each."""
Pads = int | Sequence[int] | Sequence[tuple[int, int]]
"""A padding that has no name."""
NamedPadding = Literal["valid", "full", "same", "same_lower", "causal"]
TransposedPadding = Literal["valid", "same", "causal"] | Pads
Padding = NamedPadding | Pads
PaddingMode = Literal["zeros", "constant", "reflect", "symmetric", "replicate", "circular"]
TransposedPaddingMode = Literal["zeros", "circular"]
DataFormat = Literal["channels_first", "channels_last"]
Precision = Literal["standard", "fast", "reproducible"]

NAMED_PADDINGS: tuple[str, ...] = get_args(NamedPadding)
TRANSPOSED_PADDINGS: tuple[str, ...] = get_args(get_args(TransposedPadding)[0])
PADDING_MODES: tuple[str, ...] = get_args(PaddingMode)
TRANSPOSED_PADDING_MODES: tuple[str, ...] = get_args(TransposedPaddingMode)
DATA_FORMATS: tuple[str, ...] = get_args(DataFormat)
PRECISIONS: tuple[str, ...] = get_args(Precision)


def _are_plain(options: tuple[object, ...]) -> bool:
    """Return whether each option is an int, a str or a tuple of such; a bool is no int here."""
    for option in options:
        kind = type(option)
        if kind is int or kind is str:
            continue
        if kind is not tuple or not isinstance(option, tuple) or not _are_plain(option):
            return False
    return True


class Options(NamedTuple):
    """The keywords of `conv` and `conv_transpose`, as the caller gave them: `spec.arguments` checks them.

    A tuple is built and hashed in C, and small calls spend their time in Python.
    """

    stride: Ints = 1
    padding: Padding = 0
    dilation: Ints = 1
    groups: int = 1
    padding_mode: PaddingMode = "zeros"
    data_format: DataFormat = "channels_first"
    precision: Precision = "standard"
    algorithm: str = "auto"
    padding_value: complex = 0
    """Only the padding mode "constant" has another."""
    output_padding: Ints = 0
    """Only a transposed convolution has any."""

    @property
    def plain(self) -> bool:
        """Whether every option is an int, a str or a tuple of such, so that options that are equal have equal types.

        A cache takes True and 1.0 for 1, so only such options may be looked up in one; a padding of 1.0 is one of 1.
        """
        has_float = type(self.padding_value) is float
        return _are_plain(self._replace(padding_value=0) if has_float else self)
