"""Convolution and its gradients for every array library, written once against the Python Array API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from . import backends
except ImportError as error:
    if error.name != __name__:
        raise
    raise ImportError(
        "portconv is not installed: in the repository its `backends` lies in a folder beside it; there, run: "
        "pip install -e ."
    ) from None
from . import forks, frameworks  # noqa: F401  (the engine names the modules of frameworks)
from ._version import __version__
from .algorithms.choice import Explanation, algorithms
from .convolution import (
    conv,
    conv_backward,
    conv_forward,
    conv_input_grad,
    conv_output_shape,
    conv_weight_grad,
    explain,
)
from .engine.gradients import ConvGrads
from .error_bound import error_bound
from .errors import BackendError, ConvShapeError, ConvTypeError, ConvValueError, PortconvError
from .limits import num_threads, workspace_limit
from .operators import convolution_matrix, linear_operator
from .transposed import conv_transpose, conv_transpose_backward, conv_transpose_forward
from .windows import fold, unfold

if TYPE_CHECKING:
    from . import cs231n as cs231n
    from . import signal as signal
    from . import testing as testing

__all__ = [
    "BackendError",
    "ConvGrads",
    "ConvShapeError",
    "ConvTypeError",
    "ConvValueError",
    "Explanation",
    "PortconvError",
    "__version__",
    "algorithms",
    "backends",
    "conv",
    "conv_backward",
    "conv_forward",
    "conv_input_grad",
    "conv_output_shape",
    "conv_transpose",
    "conv_transpose_backward",
    "conv_transpose_forward",
    "conv_weight_grad",
    "convolution_matrix",
    "error_bound",
    "explain",
    "fold",
    "linear_operator",
    "num_threads",
    "unfold",
    "workspace_limit",
]

LATE = ("cs231n", "signal", "testing")
"""The modules that are imported when they are first used."""

if not TYPE_CHECKING:  # else a checker would take any name for one of the package

    def __getattr__(name: str) -> Any:
        if name in LATE:
            return forks.attribute(__name__, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LATE})
