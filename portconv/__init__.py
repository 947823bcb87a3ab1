"""Convolution and its gradients for every array library, written once against the Python Array API."""

from . import backends
from .bounds import error_bound
from .choice import Explanation, algorithms
from .convolution import (
    ConvGrads,
    conv,
    conv_backward,
    conv_forward,
    conv_input_grad,
    conv_output_shape,
    conv_weight_grad,
    explain,
)
from .errors import BackendError, ConvShapeError, ConvTypeError, ConvValueError, PortconvError
from .limits import num_threads, workspace_limit
from .transposed import conv_transpose, conv_transpose_backward, conv_transpose_forward
from .windows import fold, unfold

__version__ = "0.1.0"

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
