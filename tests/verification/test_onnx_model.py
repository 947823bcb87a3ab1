"""Test the convolutions that `portconv verify` reads from ONNX models against ONNX's own evaluator."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portconv
from portconv.verification import Case, layers, onnx_model

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'portconv[onnx]'")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

FLOAT = TensorProto.FLOAT


def numbers(name: str, *shape: int, dtype: str = "float32") -> Any:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(dtype)
    return numpy_helper.from_array(values, name)


def model(nodes: Any, x_shape: Any, initializers: Any) -> Any:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def one(x_shape: Any, w_shape: Any, bias: bool = False, op: str = "Conv", **attributes: Any) -> Any:
    """Return a model of one convolution."""
    names = ["x", "w", "b"][: 2 + bias]
    filters = w_shape[1] * attributes.get("group", 1) if op == "ConvTranspose" else w_shape[0]
    tensors = [numbers("w", *w_shape), *[numbers("b", filters)][:bias]]
    return model([helper.make_node(op, names, ["y"], **attributes)], x_shape, tensors)


def of_weights(tensor: Any, x_shape: Any = (1, 1, 9)) -> Any:
    """Return a model of one convolution with these weights."""
    return model([helper.make_node("Conv", ["x", tensor.name], ["y"])], x_shape, [tensor])


def saved(folder: Path, proto: Any) -> Path:
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(layers.Unusable) as caught:
        onnx_model.read(path, **options)
    words = str(caught.value)
    assert words.startswith(f"{path}: ")
    assert "\n" not in words
    return words.removeprefix(f"{path}: ")


def evaluated(proto: Any, x: np.ndarray) -> np.ndarray:
    (actual,) = ReferenceEvaluator(proto).run(None, {"x": x})
    return np.asarray(actual)


def convolved(case: Case, x: np.ndarray) -> np.ndarray:
    inputs = case.inputs()
    return np.asarray(portconv.conv(x, inputs.w, inputs.b, **case.options))


@pytest.mark.parametrize(
    "proto",
    [
        one((2, 3, 9), (4, 3, 4)),
        one((2, 3, 9, 8), (4, 3, 3, 2), bias=True, strides=[2, 1], pads=[1, 0, 2, 3], kernel_shape=[3, 2]),
        one((2, 4, 9, 8), (6, 2, 3, 2), group=2, dilations=[1, 3], auto_pad="VALID"),
        one((2, 3, 9, 8), (4, 3, 4, 2), bias=True, auto_pad="SAME_UPPER", strides=[2, 3]),
        one((2, 3, 9, 8), (4, 3, 4, 2), auto_pad="SAME_LOWER", strides=[2, 3]),
        one((1, 2, 5, 6, 7), (3, 2, 2, 3, 1), pads=[1, 0, 2, 0, 1, 0]),
    ],
    ids=["1d", "pads", "groups", "same upper", "same lower", "3d"],
)
def test_a_convolution_is_what_onnx_makes_of_it(tmp_path: Path, proto: Any) -> None:
    (case,) = onnx_model.read(saved(tmp_path, proto)).cases
    x = case.inputs().x
    expected = evaluated(proto, x)
    assert case.out_shape == expected.shape
    np.testing.assert_allclose(convolved(case, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3], "pads": [1, 0, 0, 2]},
        {"strides": [2, 3], "pads": [1, 1, 1, 1], "output_padding": [1, 2], "dilations": [2, 1]},
        {"strides": [2, 2], "output_shape": [12, 13]},
        {"strides": [3, 2], "output_shape": [16, 13], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 3], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER", "output_padding": [1, 1]},
        {"strides": [2, 2], "output_shape": [14, 17]},  # one cell more than the windows reach
        {"strides": [2, 2], "output_shape": [14, 16], "output_padding": [1, 0]},
        {"strides": [2, 3], "auto_pad": "VALID", "output_padding": [0, 1]},
    ],
)
def test_a_transposed_convolution_is_the_adjoint_of_its_case(tmp_path: Path, attributes: dict[str, Any]) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")
    proto = one((2, 4, 6, 7), (4, 3, 3, 4), op="ConvTranspose", **attributes)
    (case,) = onnx_model.read(saved(tmp_path, proto)).cases
    assert case.name == "y (as its adjoint)"
    proto.ir_version = 10
    session = runtime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    dout = case.inputs().dout
    (expected,) = session.run(None, {"x": dout})
    assert case.x_shape == expected.shape
    actual = portconv.conv_input_grad(dout, case.inputs().w, case.x_shape, **case.options)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_transposed_convolutions_bias_is_no_part_of_its_case(tmp_path: Path) -> None:
    (case,) = onnx_model.read(saved(tmp_path, one((1, 4, 6), (4, 3, 2), op="ConvTranspose", bias=True))).cases
    assert case.quantities == ("out", "dx", "dw")


def network(batch: Any, height: Any) -> Any:
    """Return a model of two convolutions with a pooling between them, and with open input sizes."""
    nodes = [
        helper.make_node("Conv", ["x", "first", "bias"], ["a"], name="/stem/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "second"], ["y"]),
    ]
    tensors = [numbers("first", 4, 3, 3, 3), numbers("bias", 4), numbers("second", 5, 4, 1, 1)]
    return model(nodes, (batch, 3, height, 10), tensors)


def test_open_sizes_are_settled_through_the_model(tmp_path: Path) -> None:
    path = saved(tmp_path, network("N", "height"))
    for options, batch in (({}, 1), ({"batch": 5}, 5)):
        cases = onnx_model.read(path, sizes={"height": 8}, **options).cases
        shapes = [(case.name, case.x_shape, case.bias) for case in cases]
        assert shapes == [("/stem/Conv", (batch, 3, 8, 10), True), ("y", (batch, 4, 4, 5), False)]
    assert onnx_model.read(path, sizes={"height": 8, "N": 7}).cases[1].x_shape == (7, 4, 4, 5)
    # The batch may also replace one that the model fixes.
    assert onnx_model.read(saved(tmp_path, network(2, 8)), batch=3).cases[1].x_shape == (3, 4, 4, 5)


def test_an_open_size_that_nobody_says_is_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path, network("N", "height"))
    assert refusal(path) == "got no size for axis 2 of input 'x', expected --dim height=SIZE"
    words = "got the size 'hieght', expected one of N, height"
    assert refusal(path, sizes={"hieght": 8}) == words
    assert refusal(saved(tmp_path, network(None, None)), sizes={}).endswith("expected --dim 'x[2]=SIZE'")
    assert refusal(saved(tmp_path, network(2, 8)), sizes={"N": 1}).endswith("as the model leaves no size open")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_weights_are_the_models_own(tmp_path: Path, dtype: str) -> None:
    values = np.array([[[1.5, -(2.0**-20), 3.0e-7, 2.0**-13]]], dtype)
    tensor = numpy_helper.from_array(values, "w")
    path = saved(tmp_path, model([helper.make_node("Conv", ["x", "w"], ["y"])], (1, 1, 9), [tensor]))
    (case,) = onnx_model.read(path).cases
    assert np.array_equal(case.inputs().w, values.astype("float32"))
    assert not case.inputs().w.flags.writeable


def test_no_product_of_a_models_weights_underflows(tmp_path: Path) -> None:
    # Pruning and weight decay leave such weights: subnormal and tiny ones, and a filter of tiny ones alone.
    values = np.array([[[1e-44, 1e-30, 0.75]], [[1e-20, -1e-21, 0.0]]], "float32")
    for weights in (values, values[1:], np.zeros_like(values)):
        tensor = numpy_helper.from_array(weights, "w")
        path = saved(tmp_path, model([helper.make_node("Conv", ["x", "w"], ["y"])], (1, 1, 9), [tensor]))
        w = onnx_model.read(path).cases[0].inputs().w
        assert np.all((w == 0) | (np.abs(w) >= 2.0**-74))
        largest = np.abs(weights).max()
        assert np.all(np.abs(w.astype(float) - weights) <= max(largest * 2.0**-52, 2.0**-75))


def test_weights_in_constants_count_and_those_drawn_at_random_are_made_up(tmp_path: Path) -> None:
    w = numpy_helper.to_array(numbers("w", 4, 3, 2))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(w)),
        helper.make_node("Abs", ["w"], ["size"]),
        helper.make_node("RandomUniformLike", ["size"], ["random"]),
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Conv", ["x", "size"], ["b"]),
        helper.make_node("Conv", ["x", "random"], ["y"]),
    ]
    actual = onnx_model.read(saved(tmp_path, model(nodes, (1, 3, 9), [])))
    constant, folded, made_up = actual.cases
    assert np.array_equal(constant.inputs().w, w)
    assert np.array_equal(folded.inputs().w, np.abs(w))
    assert made_up.w is None
    assert made_up.w_shape == (4, 3, 2)
    assert actual.left_out == ["weights that it does not hold itself, made up instead"]


def test_functions_are_looked_into(tmp_path: Path) -> None:
    inner = helper.make_function(
        "own", "Block", ["i", "w"], ["o"], [helper.make_node("Conv", ["i", "w"], ["o"])], [helper.make_opsetid("", 18)]
    )
    proto = model([helper.make_node("Block", ["x", "w"], ["y"], domain="own")], (1, 3, 9), [numbers("w", 4, 3, 2)])
    proto.functions.append(inner)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    (case,) = onnx_model.read(saved(tmp_path, proto)).cases
    assert (case.x_shape, case.w_shape) == ((1, 3, 9), (4, 3, 2))
    assert case.w is not None


def branches(condition: str, kernels: tuple[int, int]) -> Any:
    """Return a choice between two convolutions of one name, with kernels of these lengths, and a third behind it."""
    graphs = [
        helper.make_graph(
            [helper.make_node("Conv", ["x", f"w{kernel}"], [f"y{kernel}"], name="inner")],
            "branch",
            [],
            [helper.make_tensor_value_info(f"y{kernel}", FLOAT, None)],
        )
        for kernel in kernels
    ]
    return [
        helper.make_node("If", [condition], ["chosen"], then_branch=graphs[0], else_branch=graphs[1]),
        helper.make_node("Conv", ["chosen", "last"], ["y"]),
    ]


def test_branches_are_entered(tmp_path: Path) -> None:
    tensors = [numbers("w2", 4, 3, 2), numbers("w3", 4, 3, 3), numbers("last", 1, 4, 1)]
    proto = model(branches("either", (2, 3)), (1, 3, 9), tensors)
    proto.graph.input.append(helper.make_tensor_value_info("either", TensorProto.BOOL, ()))
    actual = onnx_model.read(saved(tmp_path, proto))
    assert [(case.name, case.w_shape) for case in actual.cases] == [("inner", (4, 3, 3)), ("inner (2)", (4, 3, 2))]
    # The length of what comes out depends on the branch.
    assert actual.left_out == ["convolutions whose input's shape the model does not say"]
    proto = model(branches("either", (2, 2)), (1, 3, 9), tensors)
    proto.graph.input.append(helper.make_tensor_value_info("either", TensorProto.BOOL, ()))
    assert onnx_model.read(saved(tmp_path, proto)).cases[2].x_shape == (1, 4, 8)
    # A branch that is never taken has no convolution that the model runs.
    known = numpy_helper.from_array(np.array(False), "no")
    actual = onnx_model.read(saved(tmp_path, model(branches("no", (2, 3)), (1, 3, 9), [*tensors, known])))
    assert [(case.name, case.x_shape) for case in actual.cases] == [("inner", (1, 3, 9)), ("y", (1, 4, 7))]


def test_a_padding_that_the_model_computes_is_folded(tmp_path: Path) -> None:
    # As PyTorch exports F.pad(x, (2, 1)): zeros for the other axes, reversed pairs, and a transposition.
    nodes = [
        helper.make_node("ConstantOfShape", ["four"], ["zeros"], value=numpy_helper.from_array(np.array([0]), "")),
        helper.make_node("Concat", ["widths", "zeros"], ["all"], axis=0),
        helper.make_node("Reshape", ["all", "pairs"], ["rows"]),
        helper.make_node("Slice", ["rows", "end", "start", "axis", "back"], ["flipped"]),
        helper.make_node("Transpose", ["flipped"], ["columns"], perm=[1, 0]),
        helper.make_node("Reshape", ["columns", "flat"], ["pads"]),
        helper.make_node("Pad", ["x", "pads"], ["padded"]),
        helper.make_node("Conv", ["padded", "w"], ["y"]),
    ]
    constants = {"four": [4], "widths": [2, 1], "pairs": [-1, 2], "end": [-1], "start": [-(2**63) + 1], "axis": [0]}
    constants |= {"back": [-1], "flat": [-1]}
    tensors = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    (case,) = onnx_model.read(saved(tmp_path, model(nodes, (1, 3, 9), [numbers("w", 4, 3, 2), *tensors]))).cases
    assert case.x_shape == (1, 3, 12)


def test_what_is_computed_from_shapes_is_folded_and_large_constants_are_not_made(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["reshaped"]),
        helper.make_node("Conv", ["reshaped", "w"], ["y"]),
        helper.make_node("ConstantOfShape", ["huge"], ["enormous"]),
        helper.make_node("Expand", ["enormous", "huge"], ["more"]),
    ]
    constants = {"first": [0], "rest": [3, 3, 3], "huge": [2**40]}
    tensors = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    proto = model(nodes, ("N", 3, 9), [numbers("w", 4, 3, 1, 1), *tensors])
    (case,) = onnx_model.read(saved(tmp_path, proto), batch=5).cases
    assert case.x_shape == (5, 3, 3, 3)


def test_all_sizes_that_are_missing_are_asked_for_at_once(tmp_path: Path) -> None:
    # Some exporters call every open size "?"; such sizes differ.
    proto = model([helper.make_node("Conv", ["x", "w"], ["y"])], ("?", 3, "?", "width"), [numbers("w", 4, 3, 1, 1)])
    path = saved(tmp_path, proto)
    assert refusal(path) == (
        "got no size for axis 2 of input 'x', axis 3 of input 'x', expected --dim 'x[2]=SIZE' --dim width=SIZE"
    )
    (case,) = onnx_model.read(path, sizes={"x[2]": 5, "width": 6}).cases
    assert case.x_shape == (1, 3, 5, 6)


def test_functions_that_grow_without_end_are_refused(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    proto = model([helper.make_node("F26", ["x"], ["y"], domain="own")], (1, 3, 9), [])
    for level in range(27):
        inner = [("Identity", "")] if not level else [(f"F{level - 1}", "own")] * 2
        steps = [helper.make_node(op, ["i"], [f"o{i}"], domain=domain) for i, (op, domain) in enumerate(inner)]
        proto.functions.append(helper.make_function("own", f"F{level}", ["i"], ["o0"], steps, imports))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    assert "got 201326591 nodes, its functions written out, expected at most 131072" in refusal(saved(tmp_path, proto))
    proto.functions[0].node[0].CopyFrom(helper.make_node("F26", ["i"], ["o0"], domain="own"))
    assert "calls itself" in refusal(saved(tmp_path, proto))


def test_long_names_are_shortened(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="n" * 300)
    (case,) = onnx_model.read(saved(tmp_path, model([node], (1, 3, 9), [numbers("w", 4, 3, 2)]))).cases
    assert case.name == "n" * 77 + "..."


def test_what_cannot_be_run_is_counted_in_words(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("Conv", ["x", "w"], ["cut"], pads=[-1, 0]),
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["floats"], to=FLOAT),
        helper.make_node("Unsqueeze", ["floats", "first"], ["open"]),
        helper.make_node("Conv", ["open", "w"], ["unknown"]),
        helper.make_node("FusedConv", ["x", "w"], ["fused"], domain="com.microsoft"),
    ]
    tensors = [
        numbers("w", 4, 3, 2),
        numpy_helper.from_array(np.array([0]), "first"),
    ]
    proto = model(nodes, (1, 3, 9), tensors)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    actual = onnx_model.read(saved(tmp_path, proto))
    assert [case.name for case in actual.cases] == ["y"]
    assert actual.left_out == [
        "convolutions with a negative padding",
        "convolutions whose input's shape the model does not say",
        "nodes of the kind FusedConv",
    ]


def test_a_model_without_a_convolution_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, model([helper.make_node("Relu", ["x"], ["y"])], (1, 3, 9), []))
    assert refusal(path) == (
        "got a model without a convolution that can be run (nothing like it), expected at least one"
    )


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (one((1, 3, 9, 8), (4, 3, 2)), "node 'y': got an input of shape (1, 3, 9, 8) for weights of shape (4, 3, 2)"),
        (one((1, 3, 9), (4, 2, 2)), "node 'y': w_shape: got shape (4, 2, 2), for 2 input channels"),
        (one((1, 3, 9), (4, 3, 2), pads=[1]), "node 'y': pads: got (1,), expected 2 ints"),
        (one((1, 3, 9), (4, 3, 2), strides=[0]), "node 'y': stride[0]: got 0, expected an int of at least 1"),
        (one((1, 3, 9), (4, 3, 2), auto_pad="SOME"), "node 'y': auto_pad: got 'SOME', expected one of SAME_UPPER"),
        (
            one((1, 3, 9), (4, 3, 2), auto_pad="VALID", pads=[1, 1]),
            "node 'y': got both auto_pad 'VALID' and pads (1, 1), expected one of them",
        ),
        (one((1, 3, 9), (4, 3, 2), strides=2.5), "node 'y': strides: got (), expected 1 ints"),
        (
            one((1, 1, 4, 4), (1, 1, 3, 3), op="ConvTranspose", output_shape=[0, 0]),
            "node 'y': output_shape: got (0, 0), expected sizes of at least 1",
        ),
        (
            model([helper.make_node("Conv", ["x"], ["y"])], (1, 3, 9), []),
            "convolutions whose weights' shape the model does not say",
        ),
        (of_weights(helper.make_tensor("w", TensorProto.STRING, (1, 1, 1), [b"a"])), "node 'y': got weights of dtype"),
        (
            of_weights(helper.make_tensor("w", TensorProto.COMPLEX64, (1, 1, 1), [1 + 2j])),
            "node 'y': got weights of dtype complex64, expected real numbers",
        ),
        (of_weights(numbers("w", 2), ()), "node 'y': got an input of shape () for weights of shape (2,)"),
        (of_weights(numbers("w", 1, 1), (1, 1)), "node 'y': got an input of shape (1, 1) for weights of shape (1, 1)"),
        (
            of_weights(numbers("w", *(1,) * 19), (1,) * 19),
            "node 'y': w_shape: got 17 spatial dimensions, expected at most 16",
        ),
    ],
)
def test_nodes_that_fit_nothing_are_left_out_by_name(tmp_path: Path, proto: Any, words: str) -> None:
    assert refusal(saved(tmp_path, proto)).startswith(f"got a model without a convolution that can be run ({words}")


@pytest.mark.parametrize(("value", "words"), [(np.nan, "with a nan or an infinity"), (1e30, "of up to 1e+30")])
def test_weights_that_no_sum_holds_are_refused(tmp_path: Path, value: float, words: str) -> None:
    tensor = numpy_helper.from_array(np.full((1, 1, 2), value, "float32"), "w")
    path = saved(tmp_path, model([helper.make_node("Conv", ["x", "w"], ["y"], name="n")], (1, 1, 9), [tensor]))
    assert f"(node 'n': got weights {words}" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"no model at all " * 40, b"\x08\x08"])
def test_files_that_are_no_model_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert refusal(path).startswith("not an ONNX model: ")


def test_missing_files_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.onnx") == "cannot be read: No such file or directory"
    path = tmp_path / "outside.onnx"
    onnx.save_model(one((1, 3, 9), (400, 3, 2)), path, save_as_external_data=True, location="weights.bin")
    assert len(onnx_model.read(path).cases) == 1
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin" in refusal(path)


def test_names_that_cannot_be_printed_are_written_out(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="\x1b[31mred\n")
    (case,) = onnx_model.read(saved(tmp_path, model([node], (1, 3, 9), [numbers("w", 4, 3, 2)]))).cases
    assert case.name == "\\x1b[31mred\\n"


def test_without_onnx_the_command_to_install_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, network(1, 8))
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert refusal(path) == "reading a model needs onnx, which is not installed: pip install 'portconv[onnx]'"
