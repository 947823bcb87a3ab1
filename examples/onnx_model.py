"""Run the convolutions of an ONNX model beside ONNX Runtime, layer by layer, and show where they differ.

    pip install 'portconv[cli,onnx]' onnxruntime
    python examples/onnx_model.py MODEL.onnx --backend numpy --backend torch

ONNX Runtime runs the whole model once, with what goes into each convolution and what comes out of it as further
outputs. Then portconv convolves what ONNX Runtime's layer was given, so that no layer is blamed for one before it.

How large may a difference be? Each side rounds, and is off from the exact result by no more than a bound that holds for
sums in any order (docs/accuracy.md). So the two differ by at most the sum of their bounds:

    |portconv - runtime| <= |portconv - exact| + |exact - runtime| <= bound of portconv + bound of ONNX Runtime

`portconv.error_bound` gives the first, for the algorithm and the precision that portconv takes. ONNX Runtime on a CPU
adds up the plain products, and so does portconv's "direct": that one's bound is the second.
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
from portconv.verification.onnx_model import nodes

OPERATORS = ("Conv", "ConvTranspose")
SAME = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower"}
DTYPES = ("float32", "float64")
"""Of halves and integers nothing is known of how ONNX Runtime rounds their sums."""
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
    """A layer on a backend: the largest difference from ONNX Runtime's, and the largest in units of the bound."""

    layer: Layer
    backend: str
    shapes: tuple[tuple[int, ...], ...]
    difference: float
    units: float
    at: tuple[int, ...]
    """Where the difference is largest in units of the bound."""

    @property
    def within(self) -> bool:
        """Whether rounding can explain all differences; a nan on one side is explained by nothing."""
        return self.units <= 1


def example_model() -> Any:
    """Build a small model: a strided stem, a depthwise and a pointwise layer in a residual block, and a transposed."""
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
    """Read a model, its functions written out."""
    import onnx.inliner

    try:
        model = onnx.load(path, format="protobuf")
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
    except OSError as error:
        refuse(f"{path}: cannot be read: {error.strerror or error}")
    except Exception as error:  # whatever a parser makes of bytes that are no model
        refuse(f"{path}: not an ONNX model: {type(error).__name__}: {in_a_line(error)}")
    if not model.HasField("graph"):
        refuse(f"{path}: not an ONNX model: it has no graph")
    return model


def layers(where: str, model: Any) -> list[Layer]:
    """Find the convolutions of a model; one that is not known here is refused, and so is one in a branch or a loop."""
    from onnx import helper

    found = []
    for node, nested in nodes(model.graph):
        name = node.name or node.output[0]
        if "Conv" not in node.op_type:
            continue
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            kind = f"{node.domain}.{node.op_type}".lstrip(".")
            refuse(f"{where}: node {name!r}: got the operator {kind}, expected {' or '.join(OPERATORS)}")
        if nested:
            refuse(f"{where}: node {name!r}: got a convolution within a branch or a loop, expected it outside")
        attributes = {own.name: helper.get_attribute_value(own) for own in node.attribute}
        if min(attributes.get("pads", [0])) < 0:
            refuse(f"{where}: node {name!r}: got the pads {attributes['pads']}, expected none below 0")
        inputs = tuple(node.input)
        found.append(Layer(name, node.op_type, inputs[: 3 if inputs[2:] != ("",) else 2], node.output[0], attributes))
    if not found:
        refuse(f"{where}: got a model without a convolution, expected one at the least")
    return found


def session_of(where: str, model: Any, found: Sequence[Layer]) -> Any:
    """Return ONNX Runtime's session of the model, with all that the layers read and write as outputs."""
    import onnx
    import onnxruntime

    given = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    known = given | {value.name for value in model.graph.output}
    for name in dict.fromkeys(name for layer in found for name in (*layer.inputs, layer.output)):
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Layers are to be run as the model has them, not fused with others.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no class in common but this
        refuse(f"{where}: got a model that ONNX Runtime cannot run: {in_a_line(error)}")
    dtypes = {value.name: dtype_of(value) for value in session.get_outputs()}
    for layer in found:
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
        return drawn(where, wanted, seed)
    held = read(file)
    if held.keys() != wanted.keys():
        refuse(f"--input {file}: got the arrays {listed(held)}, expected {listed(wanted)}")
    for name, value in wanted.items():
        array, shape = held[name], tuple(value.shape)
        fits = len(shape) == array.ndim and all(
            size == own for size, own in zip(shape, array.shape, strict=True) if isinstance(size, int)
        )
        if not fits or array.dtype != dtype_of(value):
            got = f"got {array.dtype} of shape {array.shape}"
            refuse(f"--input {file}: {name!r}: {got}, expected {dtype_of(value)} of shape {shape}")
    return held


def listed(arrays: Mapping[str, Any]) -> str:
    """List names, in order."""
    return ", ".join(map(repr, sorted(arrays))) or "none"


def read(file: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file."""
    try:
        return dict(np.load(file).items())
    except Exception as error:  # whatever NumPy makes of bytes that are no archive, or of a lone array
        refuse(f"--input {file}: got no .npz file of arrays, expected one: {in_a_line(error)}")


def drawn(where: str, wanted: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Draw normally distributed inputs, where the model says all there is to say about them."""
    generator, made = np.random.default_rng(seed), {}
    for name, value in wanted.items():
        shape, dtype = tuple(value.shape), dtype_of(value)
        if dtype not in DTYPES or not all(isinstance(size, int) for size in shape):
            expected = "floats of a shape without open sizes, or --input FILE.npz"
            refuse(f"{where}: input {name!r}: got {dtype} of shape {shape}, expected {expected}")
        made[name] = generator.standard_normal(shape).astype(dtype)
    return made


def run(
    where: str, model: Any, session: Any, found: Sequence[Layer], feeds: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Run the model once; return what its convolutions read and wrote."""
    from onnx import numpy_helper

    made = [value.name for value in session.get_outputs()]
    try:
        values = dict(zip(made, session.run(made, dict(feeds)), strict=True))
    except Exception as error:  # as of making a session
        refuse(f"{where}: got a model or inputs that ONNX Runtime cannot run: {in_a_line(error)}")
    wanted = {name for layer in found for name in layer.inputs}
    held = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in wanted}
    return {name: numpy_helper.to_array(tensor) for name, tensor in held.items()} | dict(feeds) | values


def options_of(layer: Layer, x: Sequence[int], w: Sequence[int], out: Sequence[int]) -> dict[str, Any]:
    """Return what portconv calls a layer's attributes, for tensors of these shapes."""
    own, dims = layer.attributes, len(w) - 2
    stride, dilation = (tuple(own.get(name, (1,) * dims)) for name in ("strides", "dilations"))
    pads = own.get("pads", (0,) * 2 * dims)
    auto = own.get("auto_pad", b"NOTSET").decode()
    padding: Any = tuple(zip(pads[:dims], pads[dims:], strict=True))
    options = {"stride": stride, "dilation": dilation, "groups": own.get("group", 1)}
    if layer.operator == "Conv":
        return options | {"padding": SAME.get(auto, "valid" if auto == "VALID" else padding)}
    more = tuple(own.get("output_padding", (0,) * dims))
    if auto in SAME or "output_shape" in own:
        # The size of the output is what is given: what of it is cut off on which side follows.
        padding, settled = [], []
        for dim, extra in enumerate(more):
            whole = stride[dim] * (x[2 + dim] - 1) + dilation[dim] * (w[2 + dim] - 1) + 1
            cut = whole + extra - out[2 + dim]
            settled.append(extra + max(0, -cut))
            less, rest = max(0, cut) // 2, max(0, cut) - max(0, cut) // 2
            padding.append((less, rest) if auto == "SAME_UPPER" else (rest, less))
        padding, more = tuple(padding), tuple(settled)
    return options | {"padding": padding, "output_padding": more}


def spread(x: np.ndarray, w: np.ndarray, options: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Write a transposed convolution as one of the input with zeros between its cells, by the mirrored filters.

    It has the same terms, beside zeros, so `portconv.error_bound`, which is of convolutions, gives its bound. The
    padding is of all overlaps, and what is to be cut off is so afterwards: by `cropped`.
    """
    dims, groups, stride, more = x.ndim - 2, options["groups"], options["stride"], options["output_padding"]
    ends = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    apart = np.zeros((*x.shape[:2], *map(sum, zip(ends, more, strict=True))), x.dtype)
    apart[(..., *(slice(0, end, step) for end, step in zip(ends, stride, strict=True)))] = x
    turned = w.reshape(groups, -1, *w.shape[1:]).swapaxes(1, 2)  # (G, F / G, C / G, *K)
    turned = np.flip(turned.reshape(-1, *turned.shape[2:]), tuple(range(2, 2 + dims)))
    return apart, turned.copy(), {"padding": "full", "dilation": options["dilation"], "groups": groups}


def cropped(array: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """Cut off what the padding of a transposed convolution does."""
    sides = zip(options["padding"], array.shape[2:], strict=True)
    return array[(..., *(slice(before, size - after) for (before, after), size in sides))]


def bound_of(
    layer: Layer, backend: Backend, arrays: Sequence[np.ndarray], options: Mapping[str, Any], **how: str
) -> np.ndarray:
    """Bound the error of each element of a layer's output."""
    x, w, *b = arrays
    transposed, plain = layer.operator == "ConvTranspose", options
    if transposed:
        x, w, plain = spread(x, w, options)
    found = portconv.error_bound(*map(backend.asarray, (x, w, *b)), **plain, **how)
    bound = np.asarray(backend.to_numpy(found), np.float64)
    return cropped(bound, options) if transposed else bound


def compare(
    found: Sequence[Layer], values: Mapping[str, np.ndarray], chosen: Sequence[Backend], precision: str
) -> Iterator[Row]:
    """Convolve what each layer was given on each backend, beside what ONNX Runtime made of it."""
    host = portconv.backends.get("numpy")
    for layer in found:
        transposed = layer.operator == "ConvTranspose"
        call = portconv.conv_transpose if transposed else portconv.conv
        # `error_bound` is told of a transposed one as of a convolution, for which it may expect another algorithm.
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
    """Compare two outputs, element by element, in units of a bound."""
    shapes = tuple(tuple(array.shape) for array in (*arrays[:2], expected))
    if out.shape != expected.shape:
        return Row(layer, backend, (*shapes[:2], tuple(out.shape)), math.inf, math.inf, ())
    if not out.size:
        return Row(layer, backend, shapes, 0.0, 0.0, ())
    with np.errstate(all="ignore"):
        difference = np.abs(out.astype("float64") - expected)
        difference[(out == expected) | (np.isnan(out) & np.isnan(expected))] = 0
        difference[np.isnan(difference)] = math.inf
        # An infinite bound allows a finite difference, and not that one side alone is no number.
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
        own = {one.layer.name: one.units for one in rows if one.backend == backend}
        # Each on top of the one before, and smaller: they may coincide.
        axes.plot(list(own.values()), list(own), "o", markersize=max(3, 10 - 2 * place), label=backend)
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
@click.option("--backend", "names", multiple=True, metavar="NAME", help="On what (repeatable; all that work here).")
@click.option("--precision", type=click.Choice(PRECISIONS), default="standard", show_default=True)
@click.option("--input", "file", metavar="FILE.npz", type=UNCHECKED, help="The model's inputs, by name.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of inputs that are drawn.")
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
    """Run the convolutions of an ONNX model (a small one of its own if none is given) beside ONNX Runtime.

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
    found = layers(where, model)
    session = session_of(where, model, found)
    values = run(where, model, session, found, inputs_of(where, session, file, seed))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        total = len(found) * len(chosen)
        rows = list(progress.track(compare(found, values, chosen, precision), total=total, description="comparing"))
    held = all(one.within for one in rows)
    if plot is not None:
        draw(rows, f"{where}, {precision} precision", plot)
    if as_json:
        told = [
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
        click.echo(json.dumps({"model": where, "precision": precision, "held": held, "layers": told}, indent=2))
    else:
        show(rows)
        click.echo(f"{len(rows)} comparisons: {'all' if held else 'NOT all'} within both sides' bounds")
    ctx.exit(0 if held else 1)


if __name__ == "__main__":
    command()
