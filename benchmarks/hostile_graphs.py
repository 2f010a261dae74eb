"""Thirty ways to make a graph of a bundle hostile; each takes and gives the bytes of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

Make = Callable[[bytes, Path], bytes]
Change = Callable[[ModelProto, Path], None]


def changed(change: Change) -> Make:
    """A change to the parsed model, on its bytes."""

    def make(data: bytes, secret: Path) -> bytes:
        model = onnx.load_model_from_string(data)
        change(model, secret)
        return bytes(model.SerializeToString())

    return make


def external(secret: Path, *, location: bool = True, entry: bool = True) -> TensorProto:
    """A weight that lies in another file."""
    tensor = TensorProto(name="stolen", dims=[4], data_type=TensorProto.FLOAT)
    if location:
        tensor.data_location = TensorProto.EXTERNAL
    if entry:
        tensor.external_data.add(key="location", value=str(secret))
        tensor.external_data.add(key="length", value="16")
    return tensor


def weight() -> TensorProto:
    return numpy_helper.from_array(np.ones(4, np.float32), "w")


def node(**fields: object) -> NodeProto:
    """A constant whose attribute holds the fields."""
    made = helper.make_node("Constant", [], ["unused"])
    made.attribute.append(AttributeProto(name="value", **fields))  # type: ignore[arg-type]
    return made


def inner(*tensors: TensorProto, nodes: tuple[NodeProto, ...] = ()) -> GraphProto:
    graph = GraphProto(name="inner")
    graph.initializer.extend(tensors)
    graph.node.extend(nodes)
    return graph


def deep(levels: int, innermost: NodeProto) -> NodeProto:
    for _ in range(levels):
        innermost = node(g=inner(nodes=(innermost,)), type=AttributeProto.GRAPH)
    return innermost


def _first_weight_external(model: ModelProto, secret: Path) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(secret))


def _relative(model: ModelProto, secret: Path) -> None:
    tensor = external(secret)
    tensor.external_data[0].value = "../../../../../../etc/passwd"
    model.graph.initializer.append(tensor)


def _sparse(model: ModelProto, secret: Path, part: str) -> None:
    made = model.graph.sparse_initializer.add(dims=[4])
    made.values.CopyFrom(external(secret) if part == "values" else weight())
    made.indices.CopyFrom(external(secret) if part == "indices" else weight())


def _function(model: ModelProto, function: FunctionProto) -> None:
    model.functions.append(function)


def _huge_weight(model: ModelProto, secret: Path) -> None:
    model.graph.initializer.append(TensorProto(name="huge", dims=[2**40], data_type=TensorProto.FLOAT))


def _huge_shape(model: ModelProto, secret: Path) -> None:
    """Two terabytes of zeros, added to the first output's way."""
    shape = numpy_helper.from_array(np.array([2**38], np.int64), "huge_shape")
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge_shape"], ["huge"]))
    model.graph.output.append(helper.make_tensor_value_info("huge", TensorProto.FLOAT, None))


def _wrong_data(model: ModelProto, secret: Path) -> None:
    model.graph.initializer[0].dims.append(1000)


def _negative_dims(model: ModelProto, secret: Path) -> None:
    model.graph.initializer[0].dims[:] = [-1]


def _rename_input(model: ModelProto, secret: Path) -> None:
    old = model.graph.input[0].name
    model.graph.input[0].name = "y"
    for made in model.graph.node:
        for i, name in enumerate(made.input):
            if name == old:
                made.input[i] = "y"


def _other_type(model: ModelProto, secret: Path) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def _more_inputs(model: ModelProto, secret: Path) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def _other_width(model: ModelProto, secret: Path) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7


def _rename_output(model: ModelProto, secret: Path) -> None:
    old = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Identity", [old], ["renamed"]))
    model.graph.output[0].name = "renamed"


def _no_nodes(model: ModelProto, secret: Path) -> None:
    del model.graph.node[:]


def _circle(model: ModelProto, secret: Path) -> None:
    model.graph.node.append(helper.make_node("Identity", ["b"], ["a"]))
    model.graph.node.append(helper.make_node("Identity", ["a"], ["b"]))


def _noise(model: ModelProto, secret: Path) -> None:
    model.graph.node.append(helper.make_node("RandomNormal", [], ["r"], shape=[4]))


def _foreign_version(model: ModelProto, secret: Path) -> None:
    model.opset_import[0].version = 10**6


def _in_ort_format(data: bytes, secret: Path) -> bytes:
    return b"\x32\x06\x00\x00ORTM" + data


def _evil(**fields: object) -> NodeProto:
    return NodeProto(op_type="Add", domain="com.evil", **fields)  # type: ignore[arg-type]


HOSTILE: dict[str, Make] = {
    "external-weight": changed(_first_weight_external),
    "external-new": changed(lambda m, s: m.graph.initializer.append(external(s))),
    "external-location-alone": changed(lambda m, s: m.graph.initializer.append(external(s, entry=False))),
    "external-entry-alone": changed(lambda m, s: m.graph.initializer.append(external(s, location=False))),
    "external-relative": changed(_relative),
    "external-sparse-values": changed(lambda m, s: _sparse(m, s, "values")),
    "external-sparse-indices": changed(lambda m, s: _sparse(m, s, "indices")),
    "external-attribute": changed(lambda m, s: m.graph.node.append(node(t=external(s)))),
    "external-attribute-list": changed(
        lambda m, s: m.graph.node.append(node(tensors=[weight(), external(s)]))
    ),
    "external-subgraph": changed(lambda m, s: m.graph.node.append(node(g=inner(external(s))))),
    "external-subgraphs": changed(
        lambda m, s: m.graph.node.append(node(graphs=[inner(), inner(external(s))]))
    ),
    "external-deep": changed(lambda m, s: m.graph.node.append(deep(30, node(t=external(s))))),
    "external-function": changed(lambda m, s: _function(m, FunctionProto(node=[node(t=external(s))]))),
    "external-training": changed(
        lambda m, s: m.training_info.add().algorithm.initializer.append(external(s))
    ),
    "domain-node": changed(lambda m, s: m.graph.node.append(_evil())),
    "domain-deep": changed(lambda m, s: m.graph.node.append(deep(30, _evil()))),
    "domain-import": changed(lambda m, s: m.opset_import.append(helper.make_opsetid("com.evil", 1))),
    "domain-function": changed(lambda m, s: _function(m, FunctionProto(name="f", domain="com.evil"))),
    "random": changed(_noise),
    "huge-weight": changed(_huge_weight),
    "huge-output": changed(_huge_shape),
    "wrong-data": changed(_wrong_data),
    "negative-size": changed(_negative_dims),
    "input-renamed": changed(_rename_input),
    "input-of-text": changed(_other_type),
    "input-more": changed(_more_inputs),
    "input-width": changed(_other_width),
    "output-renamed": changed(_rename_output),
    "no-nodes": changed(_no_nodes),
    "circle": changed(_circle),
    "opset-unknown": changed(_foreign_version),
    "ort-format": _in_ort_format,
}
