"""Work out the shapes and the constants of an ONNX model, node by node.

ONNX's own inference stops where a shape is computed: at a padding that an exporter wrote as a dozen nodes, or behind a
branch. Here each node is inferred with the values of its inputs, ONNX's reference computes a node whose inputs are all
known, and branches are entered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_CONSTANT = 1 << 22
"""The most elements that a computed constant may have: filters may be computed, what is larger hardly is."""
NOT_FOLDED = ("Random", "Bernoulli", "Multinomial", "Dropout")
"""The names of operations whose results differ from run to run begin with these."""

STANDARD = ("", "ai.onnx")
"""The domain of ONNX's own operations has two names."""

Shape = tuple[int | None, ...]


@dataclass
class Scope:
    """The tensors that a node can read: those of its graph, and of the graphs around it.

    Attributes
    ----------
    types : dict of str to TypeProto
        What is known of each tensor's type and shape.
    tensors : dict of str to TensorProto
        The values that are known.
    opsets : list of OperatorSetIdProto
        The versions of the operations.
    depth : int
        How many branches and loops are around it.
    """

    types: dict[str, Any]
    tensors: dict[str, Any]
    opsets: list[Any]
    depth: int = 0
    _arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def inner(self) -> Scope:
        """Return the scope of a graph within."""
        return Scope(dict(self.types), dict(self.tensors), self.opsets, self.depth + 1)

    def shape(self, name: str) -> Shape | None:
        """Return the shape of a tensor, with None for a size that is not known; None if nothing is known of it."""
        if name in self.tensors:
            return tuple(self.tensors[name].dims)
        tensor = self.types.get(name)
        if tensor is None or not tensor.HasField("tensor_type") or not tensor.tensor_type.HasField("shape"):
            return None
        sizes = tensor.tensor_type.shape.dim
        return tuple(int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in sizes)

    def array(self, name: str) -> NDArray[Any] | None:
        """Return the value of a tensor, if it is known."""
        from onnx import numpy_helper

        if name in self.tensors and name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self.tensors[name])
        return self._arrays.get(name)

    def hold(self, tensor: Any) -> None:
        """Add a tensor whose value is known."""
        from onnx import helper

        self.tensors[tensor.name] = tensor
        self._arrays.pop(tensor.name, None)
        self.types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tuple(tensor.dims))


def size(dim: Any) -> int | None:
    """Return a size that a model says; None if it is open: some exporters write 0 or -1 for that."""
    return int(dim.dim_value) if dim.dim_value > 0 else None


def _says_shape(value: Any) -> bool:
    shape = value.type.tensor_type
    return shape.HasField("shape") and None not in map(size, shape.shape.dim)


def walk(model: Any, visit: Callable[[Any, Scope], None]) -> None:
    """Call `visit` for each node of a model in turn, with what is known of the tensors at that place."""
    scope = Scope({}, {}, list(model.opset_import))
    _walk(model.graph, scope, visit)


def _walk(graph: Any, scope: Scope, visit: Callable[[Any, Scope], None]) -> None:
    declared = {value.name: value.type for value in (*graph.value_info, *graph.output) if _says_shape(value)}
    scope.types |= {value.name: value.type for value in graph.input}
    for tensor in graph.initializer:
        scope.hold(tensor)
    for node in graph.node:
        visit(node, scope)
        for name, found in _outputs(node, scope, visit).items():
            scope.types[name] = found
        for name in node.output:
            if name in declared and None in (scope.shape(name) or (None,)):
                scope.types[name] = declared[name]
        _fold(node, scope)


def _outputs(node: Any, scope: Scope, visit: Callable[[Any, Scope], None]) -> Mapping[str, Any]:
    """Return the types of a node's outputs, as far as they can be inferred."""
    from onnx import defs, shape_inference

    if node.op_type == "If" and node.domain in STANDARD:
        return _chosen(node, scope, visit)
    for graph in graphs(node):
        _walk(graph, scope.inner(), visit)
    domain = "" if node.domain in STANDARD else node.domain
    versions = {"" if opset.domain in STANDARD else opset.domain: opset.version for opset in scope.opsets}
    try:
        schema = defs.get_schema(node.op_type, versions[domain], domain)
        known = {name: scope.types[name] for name in node.input if name}
        values = {name: scope.tensors[name] for name in node.input if name in scope.tensors and _small(scope, name)}
        found = shape_inference.infer_node_outputs(schema, node, known, values, opset_imports=scope.opsets)
    except (
        Exception
    ):  # an operation that ONNX does not know, an input of which nothing is known, shapes that do not fit
        return {}
    return dict(found)


def _chosen(node: Any, scope: Scope, visit: Callable[[Any, Scope], None]) -> Mapping[str, Any]:
    """Enter the branch that is taken, or both where the model does not say which; return what their outputs share."""
    condition = scope.array(node.input[0]) if node.input else None
    names = {"then_branch", "else_branch"}
    if condition is not None and condition.size == 1:
        names = {"then_branch" if condition.any() else "else_branch"}
    ends = []
    for attribute in node.attribute:
        if attribute.name in names:
            inner = scope.inner()
            _walk(attribute.g, inner, visit)
            ends.append((inner, [value.name for value in attribute.g.output]))
    outputs = {}
    for place, name in enumerate(node.output):
        values = [(inner, inner_names[place]) for inner, inner_names in ends if place < len(inner_names)]
        if values and len({inner.shape(inner_name) for inner, inner_name in values}) == 1:
            inner, inner_name = values[0]
            if inner_name in inner.types:
                outputs[name] = inner.types[inner_name]
            if len(ends) == 1 and inner_name in inner.tensors:
                scope.hold(_renamed(inner.tensors[inner_name], name))
    return outputs


def _fold(node: Any, scope: Scope) -> None:
    """Compute the outputs of a node whose inputs are known, if they are not large."""
    from onnx import numpy_helper

    if node.domain not in STANDARD or node.op_type.startswith(NOT_FOLDED) or any(graphs(node)):
        return
    values = _values(node, scope)
    for name, value in zip(node.output, values, strict=False):
        if name and isinstance(value, np.ndarray | np.generic):
            scope.hold(numpy_helper.from_array(np.asarray(value), name))


def _values(node: Any, scope: Scope) -> tuple[Any, ...]:
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    if node.op_type in ("Shape", "Size"):
        shape = scope.shape(node.input[0]) if node.input else None
        if shape is None or None in shape:
            return ()
        given: dict[str, Any] = {node.input[0]: np.broadcast_to(np.float32(0), [one or 0 for one in shape])}
    elif node.op_type == "Constant" or any(node.input):
        if not all(name in scope.tensors and _small(scope, name) for name in node.input if name):
            return ()
        given = {}
    else:
        return ()
    if not all(_small(scope, name) for name in node.output if name):
        return ()
    try:
        given = given or {name: scope.array(name) for name in node.input if name}
        inputs = [helper.make_value_info(name, scope.types[name]) for name in given]
        outputs = [helper.make_value_info(name, scope.types[name]) for name in node.output if name]
        model = helper.make_model(helper.make_graph([node], "one", inputs, outputs), opset_imports=scope.opsets)
        return tuple(ReferenceEvaluator(model).run(list(node.output), given))
    except Exception:  # the reference does not know the operation, or its inputs do not fit
        return ()


def _small(scope: Scope, name: str) -> bool:
    shape = scope.shape(name)
    return shape is not None and None not in shape and math.prod(one or 0 for one in shape) <= LARGEST_CONSTANT


def _renamed(tensor: Any, name: str) -> Any:
    copy = type(tensor)()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def graphs(node: Any) -> Iterator[Any]:
    """Yield the graphs within a node: the branches of a choice, the body of a loop."""
    for attribute in node.attribute:
        if attribute.type in (attribute.GRAPH, attribute.GRAPHS):
            yield from (attribute.g,) if attribute.type == attribute.GRAPH else attribute.graphs


def nodes(graph: Any, nested: bool = False) -> Iterator[tuple[Any, bool]]:
    """Yield each node, and whether it is inside a branch or a loop."""
    for node in graph.node:
        yield node, nested
        for inner in graphs(node):
            yield from nodes(inner, nested=True)
