"""Run the convolutions of an ONNX model beside ONNX Runtime, layer by layer, and show where they differ.

    pip install 'portconv[cli,onnx]' onnxruntime
    python examples/onnx_model.py MODEL.onnx --backend numpy --backend torch

ONNX Runtime runs the whole model once, with the inputs and outputs of each convolution as further outputs. Then
portconv convolves the inputs that ONNX Runtime's layer had, so that no layer is blamed for an earlier one.

How large may a difference be? Each side rounds, and is off from the exact result by no more than a bound that holds for
sums in any order (docs/accuracy.md). So the two differ by at most the sum of their bounds:

    |portconv - runtime| <= |portconv - exact| + |exact - runtime| <= bound of portconv + bound of ONNX Runtime

`portconv.error_bound` computes the first bound, for portconv's algorithm and precision. ONNX Runtime on a CPU adds up
the plain products, as portconv's "direct" does, so the bound of "direct" is the second.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

import portconv
from portconv.backends import Backend
from portconv.command.group import UNCHECKED, backends_named, check_destination, refuse
from portconv.errors import in_a_line
from portconv.spec.options import PRECISIONS
from portconv.verification.onnx_shapes import nodes

OPERATORS = ("Conv", "ConvTranspose")
SAME = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower"}
DTYPES = ("float32", "float64")
"""How ONNX Runtime rounds the sums of other dtypes is not known."""
FORMATS = ("pdf", "png", "svg")


@dataclass(frozen=True)
class Layer:
    """A convolution of the model: its name, its operator, its tensors' names and its attributes."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A layer on a backend: the largest difference from ONNX Runtime's result, and the largest one over the bound."""

    layer: Layer
    backend: str
    shapes: tuple[tuple[int, ...], ...]
    difference: float
    units: float
    at: tuple[int, ...]
    """The index of the largest difference in units of the bound."""

    @property
    def within(self) -> bool:
        """Whether rounding can explain all differences; it cannot explain a nan on one side."""
        return self.units <= 1


def example_model() -> Any:
    """Build a small model: a strided stem, a residual block (depthwise and pointwise), and a transposed layer."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 5, 5), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (8, 8, 1, 1), "w4": (8, 3, 4, 4), "b4": (3,)}
    weights = [
        numpy_helper.from_array(generator.standard_normal(shape).astype("float32"), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["y1"], name="stem", strides=[2, 2], auto_pad="SAME_UPPER"),
        helper.make_node("Relu", ["y1"], ["z1"]),
        helper.make_node("Conv", ["z1", "w2"], ["y2"], name="depthwise", group=8, dilations=[2, 2], pads=[2, 2, 2, 2]),
        helper.make_node("Conv", ["y2", "w3"], ["y3"], name="pointwise"),
        helper.make_node("Add", ["z1", "y3"], ["z3"]),
        helper.make_node(
            "ConvTranspose", ["z3", "w4", "b4"], ["y"], name="upsampling", strides=[2, 2], pads=[1, 1, 1, 1]
        ),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 3, 32, 32)) for name in "xy")
    graph = helper.make_graph(nodes, "example", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def load(path: Path) -> Any:
    """Read a model, and replace its function calls by the functions' nodes."""
    import onnx.inliner

    try:
        model = onnx.load(path, format="protobuf")
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
    except OSError as error:
        refuse(f"{path}: cannot be read: {error.strerror or error}")
    except Exception as error:  # the parser may raise anything on other bytes
        refuse(f"{path}: not an ONNX model: {type(error).__name__}: {in_a_line(error)}")
    if not model.HasField("graph"):
        refuse(f"{path}: not an ONNX model: it has no graph")
    return model


def layers(where: str, model: Any) -> list[Layer]:
    """Find the convolutions of a model; refuse unknown operators, and convolutions in a branch or a loop."""
    from onnx import helper

    listed = []
    for node, nested in nodes(model.graph):
        name = node.name or node.output[0]
        if "Conv" not in node.op_type:
            continue
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            kind = f"{node.domain}.{node.op_type}".lstrip(".")
            refuse(f"{where}: node {name!r}: got the operator {kind}, expected {' or '.join(OPERATORS)}")
        if nested:
            refuse(f"{where}: node {name!r}: got a convolution within a branch or a loop, expected it outside")
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if min(attributes.get("pads", [0])) < 0:
            refuse(f"{where}: node {name!r}: got the pads {attributes['pads']}, expected none below 0")
        inputs = tuple(node.input)
        listed.append(Layer(name, node.op_type, inputs[: 3 if inputs[2:] != ("",) else 2], node.output[0], attributes))
    if not listed:
        refuse(f"{where}: got a model without a convolution, expected one at the least")
    return listed


def session_of(where: str, model: Any, layers: Sequence[Layer]) -> Any:
    """Return ONNX Runtime's session of the model, whose outputs include the layers' inputs and outputs."""
    import onnx
    import onnxruntime

    inputs = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    known = inputs | {value.name for value in model.graph.output}
    for name in dict.fromkeys(name for layer in layers for name in (*layer.inputs, layer.output)):
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # ONNX Runtime must run the layers as the model has them, and not fuse them with others.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no other class in common
        refuse(f"{where}: got a model that ONNX Runtime cannot run: {in_a_line(error)}")
    dtypes = {value.name: dtype_of(value) for value in session.get_outputs()}
    for layer in layers:
        if dtypes[layer.output] not in DTYPES:
            refuse(f"{where}: node {layer.name!r}: got {dtypes[layer.output]}, expected {' or '.join(DTYPES)}")
    return session


def dtype_of(value: Any) -> str:
    """Return NumPy's name for the dtype of one of ONNX Runtime's inputs or outputs."""
    name = str(value.type).removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def inputs_of(where: str, session: Any, file: Path | None, seed: int) -> dict[str, np.ndarray]:
    """Read the model's inputs from a file, or draw them."""
    wanted = {value.name: value for value in session.get_inputs()}
    if file is None:
        return draw_inputs(where, wanted, seed)
    arrays = read(file)
    if arrays.keys() != wanted.keys():
        refuse(f"--input {file}: got the arrays {quoted(arrays)}, expected {quoted(wanted)}")
    for name, value in wanted.items():
        array, shape = arrays[name], tuple(value.shape)
        fits = len(shape) == array.ndim and all(
            size == actual for size, actual in zip(shape, array.shape, strict=True) if isinstance(size, int)
        )
        if not fits or array.dtype != dtype_of(value):
            got = f"got {array.dtype} of shape {array.shape}"
            refuse(f"--input {file}: {name!r}: {got}, expected {dtype_of(value)} of shape {shape}")
    return arrays


def quoted(arrays: Mapping[str, Any]) -> str:
    """Return the names, quoted and in order."""
    return ", ".join(map(repr, sorted(arrays))) or "none"


def read(file: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file."""
    try:
        return dict(np.load(file).items())
    except Exception as error:  # NumPy may raise anything on other bytes, and a single array has no items
        refuse(f"--input {file}: got no .npz file of arrays, expected one: {in_a_line(error)}")


def draw_inputs(where: str, wanted: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Draw normally distributed inputs; refuse a model that leaves their sizes open."""
    generator, inputs = np.random.default_rng(seed), {}
    for name, value in wanted.items():
        shape, dtype = tuple(value.shape), dtype_of(value)
        if dtype not in DTYPES or not all(isinstance(size, int) for size in shape):
            expected = "floats of a shape without open sizes, or --input FILE.npz"
            refuse(f"{where}: input {name!r}: got {dtype} of shape {shape}, expected {expected}")
        inputs[name] = generator.standard_normal(shape).astype(dtype)
    return inputs


def run(
    where: str, model: Any, session: Any, layers: Sequence[Layer], feeds: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Run the model once; return the inputs and outputs of its convolutions."""
    from onnx import numpy_helper

    outputs = [value.name for value in session.get_outputs()]
    try:
        values = dict(zip(outputs, session.run(outputs, dict(feeds)), strict=True))
    except Exception as error:  # of any class, as in session_of
        refuse(f"{where}: got a model or inputs that ONNX Runtime cannot run: {in_a_line(error)}")
    wanted = {name for layer in layers for name in layer.inputs}
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in wanted}
    return {name: numpy_helper.to_array(tensor) for name, tensor in weights.items()} | dict(feeds) | values


def options_of(layer: Layer, x: Sequence[int], w: Sequence[int], out: Sequence[int]) -> dict[str, Any]:
    """Convert a layer's attributes to portconv's keyword arguments, for tensors of these shapes."""
    attributes, dims = layer.attributes, len(w) - 2
    stride, dilation = (tuple(attributes.get(name, (1,) * dims)) for name in ("strides", "dilations"))
    pads = attributes.get("pads", (0,) * 2 * dims)
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    padding: Any = tuple(zip(pads[:dims], pads[dims:], strict=True))
    options = {"stride": stride, "dilation": dilation, "groups": attributes.get("group", 1)}
    if layer.operator == "Conv":
        return options | {"padding": SAME.get(auto, "valid" if auto == "VALID" else padding)}
    output_padding = tuple(attributes.get("output_padding", (0,) * dims))
    if auto in SAME or "output_shape" in attributes:
        # The output's size is given, and the padding follows from it; a missing cell becomes output padding.
        padding, extended = [], []
        for dim, extra in enumerate(output_padding):
            whole = stride[dim] * (x[2 + dim] - 1) + dilation[dim] * (w[2 + dim] - 1) + 1
            cut = whole + extra - out[2 + dim]
            extended.append(extra + max(0, -cut))
            less, rest = max(0, cut) // 2, max(0, cut) - max(0, cut) // 2
            padding.append((less, rest) if auto == "SAME_UPPER" else (rest, less))
        padding, output_padding = tuple(padding), tuple(extended)
    return options | {"padding": padding, "output_padding": output_padding}


def as_convolution(
    x: np.ndarray, w: np.ndarray, options: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Write a transposed convolution as a convolution of the input, with zeros between its cells, by mirrored filters.

    Its sums have the same terms, and zeros. So `portconv.error_bound`, which takes convolutions, computes its bound.
    The padding is "full"; `cropped` cuts off afterwards what the padding of the transposed convolution cuts off.
    """
    dims, groups, stride = x.ndim - 2, options["groups"], options["stride"]
    ends = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    sizes = [end + extra for end, extra in zip(ends, options["output_padding"], strict=True)]
    with_zeros = np.zeros((*x.shape[:2], *sizes), x.dtype)
    with_zeros[(..., *(slice(0, end, step) for end, step in zip(ends, stride, strict=True)))] = x
    mirrored = w.reshape(groups, -1, *w.shape[1:]).swapaxes(1, 2)  # (G, F / G, C / G, *K)
    mirrored = np.flip(mirrored.reshape(-1, *mirrored.shape[2:]), tuple(range(2, 2 + dims)))
    return with_zeros, mirrored.copy(), {"padding": "full", "dilation": options["dilation"], "groups": groups}


def cropped(array: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """Cut off the cells that the padding of a transposed convolution cuts off."""
    sides = zip(options["padding"], array.shape[2:], strict=True)
    return array[(..., *(slice(before, size - after) for (before, after), size in sides))]


def bound_of(
    layer: Layer, backend: Backend, arrays: Sequence[np.ndarray], options: Mapping[str, Any], **how: str
) -> np.ndarray:
    """Bound the error of each element of a layer's output."""
    x, w, *b = arrays
    transposed, plain = layer.operator == "ConvTranspose", options
    if transposed:
        x, w, plain = as_convolution(x, w, options)
    on_backend = portconv.error_bound(*map(backend.asarray, (x, w, *b)), **plain, **how)
    bound = np.asarray(backend.to_numpy(on_backend), np.float64)
    return cropped(bound, options) if transposed else bound


def compare(
    layers: Sequence[Layer], values: Mapping[str, np.ndarray], chosen: Sequence[Backend], precision: str
) -> Iterator[Row]:
    """Convolve each layer's inputs on each backend, and compare the outputs with ONNX Runtime's."""
    host = portconv.backends.get("numpy")
    for layer in layers:
        transposed = layer.operator == "ConvTranspose"
        call = portconv.conv_transpose if transposed else portconv.conv
        # `error_bound` sees a transposed convolution as a convolution, for which "auto" may take another algorithm.
        how = {"precision": precision, "algorithm": "gemm" if transposed else "auto"}
        arrays, expected = [np.array(values[name]) for name in layer.inputs], values[layer.output]
        try:
            options = options_of(layer, arrays[0].shape, arrays[1].shape, expected.shape)
            of_runtime = bound_of(layer, host, arrays, options, algorithm="direct")
            for backend in chosen:
                out = np.asarray(backend.to_numpy(call(*map(backend.asarray, arrays), **options, **how)))
                bound = of_runtime + bound_of(layer, backend, arrays, options, **how)
                yield row(layer, backend.name, arrays, out, expected, bound)
        except portconv.PortconvError as error:
            refuse(f"node {layer.name!r}: {error}")


def row(
    layer: Layer, backend: str, arrays: Sequence[np.ndarray], out: np.ndarray, expected: np.ndarray, bound: np.ndarray
) -> Row:
    """Compare two outputs element by element, in units of a bound."""
    shapes = tuple(tuple(array.shape) for array in (*arrays[:2], expected))
    if out.shape != expected.shape:
        return Row(layer, backend, (*shapes[:2], tuple(out.shape)), math.inf, math.inf, ())
    if not out.size:
        return Row(layer, backend, shapes, 0.0, 0.0, ())
    with np.errstate(all="ignore"):
        difference = np.abs(out.astype("float64") - expected)
        difference[(out == expected) | (np.isnan(out) & np.isnan(expected))] = 0
        difference[np.isnan(difference)] = math.inf
        # An infinite bound allows any finite difference, but not a nan on one side.
        units = np.where(difference == math.inf, math.inf, difference / bound)
    at = np.unravel_index(np.argmax(units), units.shape)
    return Row(layer, backend, shapes, float(difference.max()), float(units[at]), tuple(map(int, at)))


def draw(rows: Sequence[Row], title: str, destination: Path) -> None:
    """Draw the largest difference of each layer in units of the bound."""
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(one.layer.name for one in rows))
    figure = Figure(figsize=(9, 1.5 + 0.25 * len(layers)), layout="constrained")
    axes = figure.subplots()
    for place, backend in enumerate(dict.fromkeys(one.backend for one in rows)):
        units = {one.layer.name: one.units for one in rows if one.backend == backend}
        # Points may coincide, so each backend's are smaller than those drawn before.
        axes.plot(list(units.values()), list(units), "o", markersize=max(3, 10 - 2 * place), label=backend)
    axes.axvline(1, color="black", label="what rounding can explain")
    axes.set_xscale("symlog", linthresh=1e-4)
    axes.set(title=title, xlabel="largest difference / bound", xlim=(-1e-5, None))
    axes.invert_yaxis()
    figure.legend(loc="outside right upper")
    figure.savefig(destination, dpi=150)


def show(rows: Sequence[Row]) -> None:
    """Print a table of all layers on all backends."""
    headings = ("layer", "operator", "x, w -> out", "backend", "difference", "/ bound", "at", "")
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for one, before in zip(rows, (None, *rows), strict=False):
        x, w, out = ("x".join(map(str, shape)) for shape in one.shapes)
        layer = one.layer.name, one.layer.operator, f"{x}, {w} -> {out}"
        figures = f"{one.difference:.2e}", f"{one.units:.3f}", ",".join(map(str, one.at))
        again = before is not None and before.layer == one.layer and before.shapes == one.shapes
        texts = (*(("",) * 3 if again else layer), one.backend, *figures)
        verdict = Text("ok", style="green") if one.within else Text("FAILED", style="bold red")
        table.add_row(*map(Text, texts), verdict)
    Console(highlight=False).print(table)


@click.command()
@click.argument("path", metavar="[MODEL.onnx]", type=UNCHECKED, required=False)
@click.option("--backend", "names", multiple=True, metavar="NAME", help="A backend (repeatable; all that work here).")
@click.option("--precision", type=click.Choice(PRECISIONS), default="standard", show_default=True)
@click.option("--input", "file", metavar="FILE.npz", type=UNCHECKED, help="The model's inputs, by name.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of inputs that are drawn.")
@click.option("--plot", metavar="FILE", type=UNCHECKED, help="Draw the differences into a picture.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else; null is no finite number.")
@click.pass_context
def command(
    ctx: click.Context,
    path: Path | None,
    names: tuple[str, ...],
    precision: str,
    file: Path | None,
    seed: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Run the convolutions of an ONNX model beside ONNX Runtime; without a model, of a small one built here.

    The exit status is 0 only if all differences are within what rounding can explain.
    """
    for library in ("onnx", "onnxruntime", *(("matplotlib",) if plot else ())):
        if not find_spec(library):
            refuse(f"this example needs {library}, which is not installed: pip install {library}")
    if plot is not None:
        check_destination("--plot", plot, FORMATS)
    chosen = backends_named(names)
    where = "the example's model" if path is None else str(path)
    model = example_model() if path is None else load(path)
    convolutions = layers(where, model)
    session = session_of(where, model, convolutions)
    values = run(where, model, session, convolutions, inputs_of(where, session, file, seed))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        total = len(convolutions) * len(chosen)
        rows = list(
            progress.track(compare(convolutions, values, chosen, precision), total=total, description="comparing")
        )
    held = all(one.within for one in rows)
    if plot is not None:
        draw(rows, f"{where}, {precision} precision", plot)
    if as_json:
        listed = [
            {
                "name": one.layer.name,
                "operator": one.layer.operator,
                "backend": one.backend,
                **dict(zip(("x_shape", "w_shape", "out_shape"), one.shapes, strict=True)),
                "difference": one.difference if math.isfinite(one.difference) else None,
                "over_bound": one.units if math.isfinite(one.units) else None,
                "at": one.at,
                "within": one.within,
            }
            for one in rows
        ]
        click.echo(json.dumps({"model": where, "precision": precision, "held": held, "layers": listed}, indent=2))
    else:
        show(rows)
        click.echo(f"{len(rows)} comparisons: {'all' if held else 'NOT all'} within both sides' bounds")
    ctx.exit(0 if held else 1)


if __name__ == "__main__":
    command()
