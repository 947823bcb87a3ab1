"""Read cases from an ONNX model: each of its convolutions, with its input shape and weights there.

A transposed convolution is verified as the convolution whose adjoint it is: its output is the gradient `dx`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import in_a_line
from ..spec.options import NAMED_PADDINGS
from .cases import Case
from .layers import Unusable, check_names, checked

NEEDED = "onnx, which is not installed: pip install 'portconv[onnx]'"
PADDINGS = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower", "VALID": "valid", "NOTSET": None}
LARGEST = 2.0**60
"""The largest weight: beyond it, sums in float32 may overflow."""

Shape = tuple[int | None, ...]


@dataclass
class Model:
    """The convolutions of a model.

    Attributes
    ----------
    cases : list of Case
    left_out : list of str
        One entry for each convolution that is not a case, and for each whose weights the model does not hold.
    """

    cases: list[Case] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


class _Unknown(Exception):
    """A convolution of a sound file cannot become a case; the message says which kind it is."""


def read(path: Path, batch: int | None = None, sizes: Mapping[str, int] | None = None) -> Model:
    """Read the convolutions of a model.

    Parameters
    ----------
    path : Path
    batch : int, optional
        The samples in each layer's input. If None, as many as the model says, or one if it does not say.
    sizes : mapping of str to int, optional
        The other sizes of inputs that the model leaves open, by the model's names for them.

    Returns
    -------
    Model
        A model with at least one case.

    Raises
    ------
    Unusable
        If onnx is not installed, the file is not a model, it has no convolution that can be run, or an open size is
        missing from `sizes`.
    """
    model = _loaded(path)
    shapes, weights = _shapes(path, model, dict(sizes or {}), batch or 1), _weights(path, model)
    result = Model()
    for node, nested in nodes(model.graph):
        if node.op_type not in ("Conv", "ConvTranspose") or node.domain not in ("", "ai.onnx"):
            if "Conv" in node.op_type:
                result.left_out.append(f"nodes of the kind {_printable(node.op_type)}")
        elif nested:
            result.left_out.append("convolutions within a branch or a loop")
        else:
            try:
                case = _case(path, node, shapes, weights, batch)
                result.cases.append(case)
                if case.w is None:
                    result.left_out.append("weights that it does not hold itself, made up instead")
            except _Unknown as reason:
                result.left_out.append(str(reason))
    if not result.cases:
        others = ", ".join(sorted(set(result.left_out))) or "nothing like it"
        raise Unusable(f"{path}: got a model without a convolution that can be run ({others}), expected at least one")
    check_names(path, result.cases)
    return result


def _loaded(path: Path) -> Any:
    try:
        import onnx
        import onnx.inliner
    except ImportError:
        raise Unusable(f"{path}: reading a model needs {NEEDED}") from None
    try:
        model = onnx.load(path, format="protobuf")
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
    except OSError as error:
        raise Unusable(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # the parser may raise anything on other bytes
        raise Unusable(f"{path}: not an ONNX model: {type(error).__name__}: {in_a_line(error)}") from None
    if not model.HasField("graph"):
        raise Unusable(f"{path}: not an ONNX model: it has no graph")
    return model


def _shapes(path: Path, model: Any, sizes: dict[str, int], batch: int) -> dict[str, Shape]:
    """Find the shape of each tensor, after filling in the open sizes; None for a size that is not known."""
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    names = [name for value in inputs for _, _, name in _open(value)]
    if unknown := sorted(sizes.keys() - set(names)):
        known = f"one of {', '.join(dict.fromkeys(names))}" if names else "none, as the model leaves no size open"
        raise Unusable(f"{path}: got the size {unknown[0]!r}, expected {known}")
    for value in inputs:
        for axis, _, name in _open(value):
            if axis == 0:
                sizes.setdefault(name, batch)
    for value in inputs:
        for _, _, name in _open(value):
            if name not in sizes:
                raise Unusable(f"{path}: input {value.name!r}: got no size {name!r}, expected it as --dim {name}=SIZE")
    # The shapes of inner tensors may use the same names.
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for _, dim, name in _open(value):
            if name in sizes:
                dim.dim_value = sizes[name]
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:
        raise Unusable(f"{path}: the shapes of its tensors cannot be worked out: {in_a_line(error)}") from None
    return {
        value.name: tuple(_size(dim) for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _open(value: Any) -> list[tuple[int, Any, str]]:
    """List the open sizes of a tensor: the axis, the size and its name."""
    dims = enumerate(value.type.tensor_type.shape.dim)
    return [(axis, dim, dim.dim_param or f"{value.name}[{axis}]") for axis, dim in dims if _size(dim) is None]


def _size(dim: Any) -> int | None:
    return int(dim.dim_value) if dim.dim_value > 0 else None  # some exporters write 0 or -1 for an open size


def _weights(path: Path, model: Any) -> dict[str, NDArray[Any]]:
    """Find the tensors whose values the model holds."""
    from onnx import numpy_helper

    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            held.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    wanted = {name for node in model.graph.node if "Conv" in node.op_type for name in node.input[1:3]}
    try:
        return {name: numpy_helper.to_array(tensor) for name, tensor in held.items() if name in wanted}
    except Exception as error:
        raise Unusable(f"{path}: its weights cannot be read: {in_a_line(error)}") from None


def nodes(graph: Any, nested: bool = False) -> Iterator[tuple[Any, bool]]:
    """Yield each node, and whether it is inside a branch or a loop."""
    for node in graph.node:
        yield node, nested
        for attribute in node.attribute:
            if attribute.type in (attribute.GRAPH, attribute.GRAPHS):
                for inner in (attribute.g, *attribute.graphs):
                    yield from nodes(inner, nested=True)


def _case(
    path: Path, node: Any, shapes: Mapping[str, Shape], weights: Mapping[str, NDArray[Any]], batch: int | None
) -> Case:
    name = _printable(node.name or node.output[0])
    where = f"{path}: node {name!r}"
    attributes = {attribute.name: attribute for attribute in node.attribute}
    x_name, w_name, b_name = (*node.input, "")[:3]
    w = weights.get(w_name)
    x_shape = _known(shapes.get(x_name), "input")
    w_shape = _known(shapes.get(w_name) if w is None else w.shape, "weights")
    if len(x_shape) != len(w_shape):
        raise Unusable(f"{where}: got an input of shape {x_shape} for weights of shape {w_shape}")
    dims = len(w_shape) - 2

    options, auto = _options(where, attributes, dims)
    x_shape = (batch or x_shape[0], *x_shape[1:])
    bias = bool(b_name)
    transposed = node.op_type == "ConvTranspose"
    size = x_shape[2:]
    if transposed:
        out = _known(shapes.get(node.output[0]), "output")
        if "output_shape" in attributes or options["padding"] in NAMED_PADDINGS:
            extra = _ints(attributes, "output_padding", dims, 0)
            options["padding"] = _padding_around(zip(size, out[2:], w_shape[2:], extra, strict=True), options, auto)
        # The bias of a transposed convolution is added to what is a gradient here.
        x_shape, bias = (x_shape[0], w_shape[1] * options["groups"], *out[2:]), False
        name = f"{name} (as its adjoint)"
    b = weights.get(b_name) if bias else None
    options |= {"w": None if w is None else _on_grid(where, w), "b": None if b is None else _on_grid(where, b)}
    case = checked(where, Case(name, x_shape, w_shape, bias, **options))
    if transposed and case.out_shape[2:] != size:
        raise _Unknown("transposed convolutions with an output padding that no convolution has")
    if b is not None and b.shape != w_shape[:1]:
        raise Unusable(f"{where}: got a bias of shape {b.shape}, expected {w_shape[:1]}")
    return case


def _options(where: str, attributes: Mapping[str, Any], dims: int) -> tuple[dict[str, Any], str]:
    """Return the stride, padding, dilation and groups of a convolution, and its `auto_pad`."""
    auto = attributes["auto_pad"].s.decode(errors="replace") if "auto_pad" in attributes else "NOTSET"
    if auto not in PADDINGS:
        raise Unusable(f"{where}: auto_pad: got {auto!r}, expected one of {', '.join(PADDINGS)}")
    pads = _ints(attributes, "pads", 2 * dims, 0)
    if len(pads) != 2 * dims:
        raise Unusable(f"{where}: pads: got {pads}, expected {2 * dims} ints")
    if min(pads) < 0:
        raise _Unknown("convolutions with a negative padding")
    options = {
        "stride": _ints(attributes, "strides", dims),
        "padding": PADDINGS[auto] or tuple(zip(pads[:dims], pads[dims:], strict=True)),
        "dilation": _ints(attributes, "dilations", dims),
        "groups": int(attributes["group"].i) if "group" in attributes else 1,
    }
    return options, auto


def _ints(attributes: Mapping[str, Any], key: str, length: int, default: int = 1) -> tuple[int, ...]:
    return tuple(attributes[key].ints) if key in attributes else (default,) * length


def _padding_around(
    sizes: Iterable[tuple[int, int, int, int]], options: Mapping[str, Any], auto: str
) -> tuple[tuple[int, int], ...]:
    """Return the padding of a transposed convolution whose output size is given.

    `sizes` has the input size, the output size, the kernel size and the output padding of each dimension.
    """
    padding = []
    for (cells, out, taps, extra), stride, dilation in zip(sizes, options["stride"], options["dilation"], strict=True):
        total = stride * (cells - 1) + extra + dilation * (taps - 1) + 1 - out
        less, rest = total // 2, total - total // 2
        padding.append((less, rest) if auto == "SAME_UPPER" else (rest, less))
    return tuple(padding)


def _known(shape: Shape | None, what: str) -> tuple[int, ...]:
    if shape is None or None in shape:
        raise _Unknown(f"convolutions whose {what} has a shape that the model does not say")
    return tuple(size for size in shape if size is not None)


def _on_grid(where: str, array: NDArray[Any]) -> NDArray[np.float64]:
    """Round a model's numbers to multiples of 2**-52 of the largest, so that no product underflows."""
    values = np.asarray(array, np.float64)
    if not np.all(np.isfinite(values)):
        raise Unusable(f"{where}: got weights with a nan or an infinity, expected finite ones")
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest > LARGEST:
        raise Unusable(f"{where}: got weights of up to {largest:.3g}, expected none beyond {LARGEST:.3g}")
    # The inputs are multiples of 2**-52 too.
    grid = max(2.0 ** (math.frexp(largest)[1] - 52), 2.0**-74)
    return np.asarray(np.rint(values / grid) * grid)


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)[1:-1]
