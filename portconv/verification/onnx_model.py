"""Read cases from an ONNX model: each of its convolutions, with its input shape and weights there.

A transposed convolution is verified as the convolution whose adjoint it is: its output is the gradient `dx`.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import in_a_line
from ..spec.dtypes import HALVES
from .cases import Case
from .layers import Unusable, check_names, checked
from .onnx_shapes import STANDARD, Scope, Shape, graphs, size, walk

NEEDED = "onnx, which is not installed: pip install 'portconv[onnx]'"
PADDINGS = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower", "VALID": "valid", "NOTSET": None}
LARGEST = 2.0**60
"""The largest weight: beyond it, sums in float32 may overflow."""
MOST_NODES = 1 << 17
"""The most nodes that a model may have, its functions written out."""
LONGEST_NAME = 80
"""The most letters of a node's name that are shown."""


@dataclass
class Model:
    """The convolutions of a model.

    Attributes
    ----------
    cases : list of Case
    left_out : list of str
        One entry for each convolution that is not a case, and for each whose weights the model does not hold: its kind,
        or what is wrong with the node.
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
    _fill_in(path, model, dict(sizes or {}), batch or 1)
    result = Model()
    names: Counter[str] = Counter()

    def visit(node: Any, scope: Scope) -> None:
        if "Conv" not in node.op_type:
            return
        if node.op_type not in ("Conv", "ConvTranspose") or node.domain not in STANDARD:
            result.left_out.append(f"nodes of the kind {_printable(node.op_type)}")
            return
        try:
            case = _case(node, scope, batch)
        except _Unknown as reason:
            result.left_out.append(str(reason))
            return
        if case.w is None:
            result.left_out.append("weights that it does not hold itself, made up instead")
        names[case.name] += 1  # both branches of a choice may have a node of one name
        result.cases.append(case if names[case.name] == 1 else replace(case, name=f"{case.name} ({names[case.name]})"))

    walk(model, visit)
    if not result.cases:
        others = ", ".join(dict.fromkeys(result.left_out)) or "nothing like it"
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
        count = _inlined(model)
        if count > MOST_NODES:
            raise Unusable(f"{path}: got {count} nodes, its functions written out, expected at most {MOST_NODES}")
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
    except Unusable:
        raise
    except OSError as error:
        raise Unusable(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # the parser may raise anything on other bytes
        raise Unusable(f"{path}: not an ONNX model: {type(error).__name__}: {in_a_line(error)}") from None
    if not model.HasField("graph"):
        raise Unusable(f"{path}: not an ONNX model: it has no graph")
    return model


def _inlined(model: Any) -> int:
    """Count the nodes of a model in which each function is written out where it is called."""
    functions = {(function.domain, function.name): function for function in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(nodes: Any, within: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            total += 1 + sum(count(graph.node, within) for graph in graphs(node))
            key = (node.domain, node.op_type)
            if key in within:
                raise ValueError(f"the function {node.op_type!r} calls itself")
            if key in functions:
                if key not in counts:
                    counts[key] = count(functions[key].node, (*within, key))
                total += counts[key]
        return total

    return count(model.graph.node, ())


def _fill_in(path: Path, model: Any, sizes: dict[str, int], batch: int) -> None:
    """Fill in the open sizes of the inputs, and of the tensors that share their names."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    places = {name: (axis, value.name) for value in reversed(inputs) for axis, _, name in reversed(_open(value))}
    if unknown := sorted(sizes.keys() - places.keys()):
        known = f"one of {', '.join(sorted(places))}" if places else "none, as the model leaves no size open"
        raise Unusable(f"{path}: got the size {unknown[0]!r}, expected {known}")
    for value in inputs:
        for axis, _, name in _open(value):
            if axis == 0:
                sizes.setdefault(name, batch)
    missing = [name for name in reversed(places) if name not in sizes]
    if missing:
        which = ", ".join(f"axis {axis} of input {of!r}" for axis, of in map(places.__getitem__, missing))
        asked = " ".join(f"--dim {shlex.quote(f'{name}=SIZE')}" for name in missing)
        raise Unusable(f"{path}: got no size for {which}, expected {asked}")
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for _, dim, name in _open(value):
            if name in sizes:
                dim.dim_value = sizes[name]


def _open(value: Any) -> list[tuple[int, Any, str]]:
    """List the open sizes of a tensor: the axis, the size and its name, which some exporters give as "?" or "None"."""
    dims = [*enumerate(value.type.tensor_type.shape.dim)]
    names = {axis: dim.dim_param for axis, dim in dims if any(map(str.isalpha, dim.dim_param.replace("None", "")))}
    return [(axis, dim, names.get(axis, f"{value.name}[{axis}]")) for axis, dim in dims if size(dim) is None]


def _case(node: Any, scope: Scope, batch: int | None) -> Case:
    name = _printable(node.name or next(iter(node.output), "without a name"))
    where = f"node {name!r}"
    try:
        x_name, w_name, b_name = (*node.input, "", "", "")[:3]
        w, b = _numbers(scope, w_name, where), _numbers(scope, b_name, where)
        x_shape, w_shape = _known(scope.shape(x_name), "input's"), _known(scope.shape(w_name), "weights'")
        if len(x_shape) != len(w_shape) or len(w_shape) < 3:
            raise Unusable(f"{where}: got an input of shape {_few(x_shape)} for weights of shape {_few(w_shape)}")
        read = _Read(where, node, x_shape[2:], w_shape[2:])
        options, bias = read.options(), bool(b_name)
        x_shape = (batch or x_shape[0], *x_shape[1:])
        if node.op_type == "ConvTranspose":
            # The bias of a transposed convolution is added to what is a gradient here.
            x_shape, b, bias = (x_shape[0], w_shape[1] * options["groups"], *read.output(options)), None, False
            name = f"{name} (as its adjoint)"
        case = checked(where, Case(name, x_shape, w_shape, bias, w=w, b=b, **options))
        if node.op_type == "ConvTranspose" and case.out_shape[2:] != read.size:
            raise _Unknown("transposed convolutions with an output padding that no convolution has")
        if b is not None and b.shape != w_shape[:1]:
            raise Unusable(f"{where}: got a bias of shape {b.shape}, expected {w_shape[:1]}")
    except Unusable as error:
        raise _Unknown(str(error)) from None
    return case


@dataclass
class _Read:
    """The attributes of a convolution.

    Attributes
    ----------
    where : str
        The node, for messages.
    node : NodeProto
    size, kernel : tuple of int
        The sizes of the input and of the kernel.
    """

    where: str
    node: Any
    size: tuple[int, ...]
    kernel: tuple[int, ...]

    def __post_init__(self) -> None:
        self.attributes = {attribute.name: attribute for attribute in self.node.attribute}
        self.transposed = self.node.op_type == "ConvTranspose"
        self.auto = (
            self.attributes["auto_pad"].s.decode(errors="replace") if "auto_pad" in self.attributes else "NOTSET"
        )

    def ints(self, key: str, default: int = 1, each: int = 1) -> tuple[int, ...]:
        """Return an attribute of `each` ints for each dimension."""
        length = each * len(self.kernel)
        values = tuple(self.attributes[key].ints) if key in self.attributes else (default,) * length
        if len(values) != length:
            raise Unusable(f"{self.where}: {key}: got {_few(values)}, expected {length} ints")
        return values

    def options(self) -> dict[str, Any]:
        """Return the stride, padding, dilation and groups; the padding cannot be a name where it is transposed."""
        pads = self.ints("pads", 0, each=2)
        if self.auto not in PADDINGS:
            raise Unusable(f"{self.where}: auto_pad: got {self.auto!r}, expected one of {', '.join(PADDINGS)}")
        if self.auto != "NOTSET" and any(pads):
            raise Unusable(f"{self.where}: got both auto_pad {self.auto!r} and pads {_few(pads)}, expected one of them")
        if min(pads, default=0) < 0:
            raise _Unknown("convolutions with a negative padding")
        options = {
            "stride": self.ints("strides"),
            "padding": PADDINGS[self.auto] or tuple(zip(pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=True)),
            "dilation": self.ints("dilations"),
            "groups": int(self.attributes["group"].i) if "group" in self.attributes else 1,
        }
        if self.transposed:
            options["padding"] = self._padding_around(options)
        return options

    def output(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the sizes of a transposed convolution's output."""
        if "output_shape" in self.attributes:
            return self.ints("output_shape")
        padding = (sum(pair) for pair in options["padding"])
        return tuple(uncut - pad for uncut, pad in zip(self._uncut(options), padding, strict=True))

    def _uncut(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the sizes of a transposed convolution's output without padding."""
        along = zip(
            self.size, options["stride"], self.kernel, options["dilation"], self.ints("output_padding", 0), strict=True
        )
        return tuple(stride * (n - 1) + dilation * (taps - 1) + 1 + extra for n, stride, taps, dilation, extra in along)

    def _padding_around(self, options: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
        """Return the padding of a transposed convolution.

        Where the output's size is given, or follows from `auto_pad`, the padding cuts off what is more; where it is
        larger than what the windows reach, nothing is cut off (the operator's definition, and ONNX Runtime).
        """
        if "output_shape" in self.attributes:
            wanted = self.ints("output_shape")
        elif self.auto.startswith("SAME"):
            wanted = tuple(n * stride for n, stride in zip(self.size, options["stride"], strict=True))
        else:
            given = options["padding"]
            return given if self.auto == "NOTSET" else ((0, 0),) * len(self.kernel)
        padding = []
        for uncut, out in zip(self._uncut(options), wanted, strict=True):
            if out < 1:
                raise Unusable(f"{self.where}: output_shape: got {_few(wanted)}, expected sizes of at least 1")
            total = max(0, uncut - out)
            less, rest = total // 2, total - total // 2
            padding.append((less, rest) if self.auto == "SAME_UPPER" else (rest, less))
        return tuple(padding)


def _known(shape: Shape | None, what: str) -> tuple[int, ...]:
    if shape is None or None in shape:
        raise _Unknown(f"convolutions whose {what} shape the model does not say")
    return tuple(size for size in shape if size is not None)


def _numbers(scope: Scope, name: str, where: str) -> NDArray[np.float64] | None:
    """Return the weights or the bias of that name, if the model holds them."""
    try:
        values = scope.array(name)
    except Exception as error:
        raise Unusable(f"{where}: the weights cannot be read: {in_a_line(error)}") from None
    if values is None:
        return None
    if values.dtype.kind not in "fiu" and values.dtype.name not in HALVES:
        raise Unusable(f"{where}: got weights of dtype {values.dtype}, expected real numbers")
    return _on_grid(where, values)


def _few(values: tuple[int, ...]) -> str:
    """Write numbers in a message, not too many of them."""
    return str(values) if len(values) <= 8 else f"{len(values)} ints"


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
    name = name if name.isprintable() else repr(name)[1:-1]
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
