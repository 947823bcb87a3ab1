"""Test the example that runs an ONNX model's convolutions beside ONNX Runtime: attributes and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import example_scripts

import portconv

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'portconv[onnx]'")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FLOAT = TensorProto.FLOAT
Run = Callable[..., Any]


example = example_scripts.loaded("onnx_model")


def run(*arguments: str | Path, backend: str = "numpy") -> Any:
    command_line = [*map(str, arguments), *(("--backend", backend) if backend else ())]
    return example_scripts.run(example, *command_line)


def numbers(name: str, *shape: int) -> Any:
    values = np.random.default_rng(len(name) + sum(shape)).standard_normal(shape)
    return numpy_helper.from_array(values.astype("float32"), name)


def saved(folder: Path, nodes: Any, shape: tuple[int | str, ...], weights: Any = (), dtype: int = FLOAT) -> Path:
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [onnx.ValueInfoProto(name=nodes[-1].output[0])],
        list(weights),
    )
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def one(
    folder: Path, x: tuple[int, ...], w: tuple[int, ...], op: str = "Conv", bias: bool = True, **attributes: Any
) -> Path:
    filters = w[1] * attributes.get("group", 1) if op == "ConvTranspose" else w[0]
    inputs, weights = ["x", "w"], [numbers("w", *w)]
    if bias:
        inputs, weights = [*inputs, "b"], [*weights, numbers("b", filters)]
    return saved(folder, [helper.make_node(op, inputs, ["y"], name="n", **attributes)], x, weights)


CONVOLUTIONS = [
    {},
    {"bias": False},
    {"strides": [2, 3], "pads": [2, 0, 1, 1]},
    {"dilations": [2, 1], "pads": [1, 2, 3, 4]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"auto_pad": "VALID"},
    {"auto_pad": "NOTSET", "kernel_shape": [4, 3], "pads": [0, 1, 0, 2]},
]
TRANSPOSED = [
    {},
    {"bias": False, "strides": [2, 3]},
    {"strides": [2, 3], "pads": [1, 0, 2, 1]},
    {"strides": [3, 2], "output_padding": [2, 1]},
    {"dilations": [2, 3], "strides": [2, 1], "output_padding": [1, 0], "pads": [0, 1, 1, 0]},
    {"strides": [2, 3], "output_shape": [13, 20]},
    {"strides": [2, 3], "output_shape": [17, 21]},
    {"strides": [2, 3], "output_shape": [13, 20], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 3], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 3], "auto_pad": "SAME_LOWER"},
    {"strides": [3, 2], "auto_pad": "SAME_LOWER", "output_padding": [1, 0]},
    {"strides": [2, 2], "auto_pad": "VALID", "kernel_shape": [4, 3]},
]


@pytest.mark.parametrize("precision", ["standard", "reproducible"])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    ("op", "attributes"),
    [("Conv", each) for each in CONVOLUTIONS] + [("ConvTranspose", each) for each in TRANSPOSED],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)) or "plain",
)
def test_every_attribute_means_what_it_does_to_onnx_runtime(
    tmp_path: Path, op: str, attributes: dict[str, Any], group: int, precision: str
) -> None:
    w = (4, 6 // group, 4, 3) if op == "Conv" else (6, 4 // group, 4, 3)
    done = run(one(tmp_path, (2, 6, 7, 7), w, op, group=group, **attributes), "--json", "--precision", precision)
    printed = json.loads(done.output)
    assert done.exit_code == 0
    assert printed["held"] is True
    (layer,) = printed["layers"]
    assert (layer["name"], layer["operator"], layer["x_shape"]) == ("n", op, [2, 6, 7, 7])
    # Sums of some dozen terms differ by at most a few ulps, and outputs are below 32.
    assert layer["difference"] < 2**-17
    assert layer["over_bound"] < 0.5


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_signals_and_volumes(tmp_path: Path, op: str, dims: int) -> None:
    path = one(tmp_path, (1, 2, *(5,) * dims), (2, 2, *(3,) * dims), op, strides=[2] * dims, pads=[1] * 2 * dims)
    assert run(path).exit_code == 0


def test_its_own_model_on_all_libraries_here() -> None:
    names = [name for name in ("numpy", "torch", "array_api_strict") if portconv.backends.find(name).fault is None]
    done = run("--json", *(part for name in names for part in ("--backend", name)), backend="")
    printed = json.loads(done.output)
    assert done.exit_code == 0
    layers = ["stem", "depthwise", "pointwise", "upsampling"]
    assert [(one["name"], one["backend"]) for one in printed["layers"]] == [
        (one, name) for one in layers for name in names
    ]
    assert max(one["over_bound"] for one in printed["layers"]) < 0.5
    assert printed["layers"][0]["out_shape"] == [2, 8, 16, 16]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_a_wrong_weight_is_found_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    name = "conv" if op == "Conv" else "conv_transpose"
    right = getattr(portconv, name)

    def wrong(x: Any, w: Any, *rest: Any, **options: Any) -> Any:
        w = w.copy()
        w[(3, 1) if op == "Conv" else (1, 3)] += 1e-2
        return right(x, w, *rest, **options)

    monkeypatch.setattr(portconv, name, wrong)
    path = one(tmp_path, (2, 4, 7, 7), (4, 4, 3, 3), op)
    printed = json.loads(run(path, "--json").output)
    assert printed["held"] is False
    (layer,) = printed["layers"]
    assert layer["within"] is False
    assert layer["over_bound"] > 10
    assert layer["at"][1] == 3
    done = run(path)
    assert done.exit_code == 1
    assert "FAILED" in done.output
    assert done.output.splitlines()[-1] == "1 comparisons: NOT all within both sides' bounds"


def test_inputs_from_a_file_open_sizes_and_weights_from_the_graph(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["w", "w"], ["squares"]),
        helper.make_node("Conv", ["x", "squares", ""], ["y"], name="n"),
    ]
    path = saved(tmp_path, nodes, ("N", 3, 9), [numbers("w", 4, 3, 2)])
    file = tmp_path / "inputs.npz"
    np.savez(file, x=np.full((5, 3, 9), 0.1, "float32"))
    (layer,) = json.loads(run(path, "--input", file, "--json").output)["layers"]
    assert (layer["x_shape"], layer["out_shape"], layer["within"]) == ([5, 3, 9], [5, 4, 8], True)


def test_a_nan_on_both_sides_is_no_difference_and_on_one_side_it_is() -> None:
    layer = example.Layer("n", "Conv", ("x", "w"), "y", {})
    nan, zero, bound = np.array([[np.nan, 1.0]]), np.array([[0.0, 1.0]]), np.full((1, 2), np.inf)
    assert example.row(layer, "numpy", (nan, nan), nan, nan, bound).within
    actual = example.row(layer, "numpy", (nan, nan), nan, zero, bound)
    assert not actual.within
    assert actual.at == (0, 0)
    assert not example.row(layer, "numpy", (nan, nan), nan, zero[:, :1], bound).within


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'portconv[cli]'")
    picture = tmp_path / "layers.png"
    assert run("--plot", picture).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def refusal(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line.removeprefix("Error: ")


@pytest.fixture
def nothing_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the test fail if the model is run."""

    def compute(*_: Any) -> Any:
        raise AssertionError("the model was run")

    monkeypatch.setattr(example, "run", compute)


def test_files_that_are_no_model_are_refused(tmp_path: Path, nothing_computed: None) -> None:
    path = tmp_path / "model.onnx"
    assert refusal(path) == f"{path}: cannot be read: No such file or directory"
    path.write_bytes(b"")
    assert refusal(path) == f"{path}: not an ONNX model: it has no graph"
    path.write_bytes(b"no model at all " * 40)
    assert refusal(path).startswith(f"{path}: not an ONNX model: DecodeError: ")


@pytest.mark.parametrize(
    ("op", "domain", "kind"),
    [
        ("ConvInteger", "", "ConvInteger"),
        ("QLinearConv", "", "QLinearConv"),
        ("DeformConv", "", "DeformConv"),
        ("FusedConv", "com.microsoft", "com.microsoft.FusedConv"),
        ("Conv", "com.microsoft", "com.microsoft.Conv"),
    ],
)
def test_other_convolutions_are_refused(
    tmp_path: Path, nothing_computed: None, op: str, domain: str, kind: str
) -> None:
    nodes = [helper.make_node(op, ["x", "w"], ["y"], name="n", domain=domain)]
    path = saved(tmp_path, nodes, (1, 3, 9, 9), [numbers("w", 4, 3, 2, 2)])
    assert refusal(path) == f"{path}: node 'n': got the operator {kind}, expected Conv or ConvTranspose"


def test_models_that_cannot_be_compared_are_refused(tmp_path: Path, nothing_computed: None) -> None:
    path = saved(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], (1, 3, 9))
    assert refusal(path) == f"{path}: got a model without a convolution, expected one at the least"
    path = one(tmp_path, (1, 3, 9), (4, 3, 2), pads=[-1, 0])
    assert refusal(path) == f"{path}: node 'n': got the pads [-1, 0], expected none below 0"
    inner = helper.make_node("Conv", ["x", "w"], ["inner"], name="n")
    branch = helper.make_graph([inner], "branch", [], [helper.make_tensor_value_info("inner", FLOAT, None)])
    weights = [numbers("w", 4, 3, 2), numpy_helper.from_array(np.array(True), "yes")]
    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)]
    path = saved(tmp_path, nodes, (1, 3, 9), weights)
    assert refusal(path) == f"{path}: node 'n': got a convolution within a branch or a loop, expected it outside"


@pytest.mark.parametrize("node", [{"op": "Nonsense"}, {"op": "Conv", "auto_pad": "SOME"}])
def test_what_onnx_runtime_cannot_run_is_refused(tmp_path: Path, node: dict[str, Any]) -> None:
    op = node.pop("op")
    nodes = [helper.make_node("Conv", ["x", "w"], ["z"]), helper.make_node(op, ["z", "w"], ["y"], **node)]
    path = saved(tmp_path, nodes, (1, 3, 9), [numbers("w", 3, 3, 2)])
    start = f"{path}: got a model that ONNX Runtime cannot run: "
    assert refusal(path).startswith(start)


def test_what_onnx_runtime_gives_up_on_is_refused(tmp_path: Path) -> None:
    path = one(tmp_path, (1, 3, 9), (3, 4, 2), "ConvTranspose", dilations=[3], output_padding=[2])
    assert refusal(path).startswith(f"{path}: got a model or inputs that ONNX Runtime cannot run: ")


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path, nothing_computed: None) -> None:
    weights = [numbers("w", 4, 3, 2)]
    path = saved(tmp_path, [helper.make_node("Conv", ["x", "w"], ["y"])], ("N", 3, 9), weights)
    expected = "expected floats of a shape without open sizes, or --input FILE.npz"
    assert refusal(path) == f"{path}: input 'x': got float32 of shape ('N', 3, 9), {expected}"
    file = tmp_path / "inputs.npz"
    np.savez(file, z=np.zeros(3, "float32"))
    assert refusal(path, "--input", file) == f"--input {file}: got the arrays 'z', expected 'x'"
    np.savez(file, x=np.zeros((2, 3, 9)))
    got = f"--input {file}: 'x': got float64 of shape (2, 3, 9), expected float32 of shape ('N', 3, 9)"
    assert refusal(path, "--input", file) == got
    np.savez(file, x=np.zeros((2, 4, 9), "float32"))
    assert "got float32 of shape (2, 4, 9), expected float32" in refusal(path, "--input", file)
    file.write_bytes(b"nothing")
    assert refusal(path, "--input", file).startswith(f"--input {file}: got no .npz file of arrays, expected one: ")
    integers = [helper.make_node("Cast", ["x"], ["f"], to=FLOAT), helper.make_node("Conv", ["f", "w"], ["y"])]
    path = saved(tmp_path, integers, (1, 3, 9), weights, TensorProto.INT64)
    assert refusal(path) == f"{path}: input 'x': got int64 of shape (1, 3, 9), {expected}"


def test_halves_are_refused(tmp_path: Path, nothing_computed: None) -> None:
    w = numpy_helper.from_array(np.ones((4, 3, 2, 2), "float16"), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="n")]
    path = saved(tmp_path, nodes, (1, 3, 9, 9), [w], TensorProto.FLOAT16)
    assert refusal(path) == f"{path}: node 'n': got float16, expected float32 or float64"


def test_unknown_backends_and_endings_are_refused(tmp_path: Path, nothing_computed: None) -> None:
    assert refusal("--backend", "nothing").startswith("backend: got 'nothing', expected one of ")
    assert refusal("--plot", tmp_path / "a.txt").endswith("got the ending '.txt', expected one of pdf, png, svg")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "find_spec", lambda name: None)
    assert refusal() == "this example needs onnx, which is not installed: pip install onnx"
