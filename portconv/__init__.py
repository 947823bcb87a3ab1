"""Convolution and its gradients for every array library, written once against the Python Array API."""

from __future__ import annotations

from . import backends, frameworks  # noqa: F401  (the engine names the modules of frameworks)
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
from .transposed import conv_transpose, conv_transpose_backward, conv_transpose_forward
from .windows import fold, unfold

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
    "error_bound",
    "explain",
    "fold",
    "num_threads",
    "unfold",
    "workspace_limit",
]
