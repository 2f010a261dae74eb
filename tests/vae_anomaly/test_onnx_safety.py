"""A graph is judged from its bytes; the `onnx` package is the referee here and only here."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    helper,
    numpy_helper,
)

from vae_anomaly.exceptions import BundleError
from vae_anomaly.onnx_safety import CHILDREN, DOMAIN_FIELDS, OP_TYPE, RANDOM_OPERATORS, check_graph

OUTSIDE = "graph score.onnx keeps weights outside its file; export it with its weights inside"
FOREIGN = (
    "graph score.onnx uses the operator domain 'com.evil'; only ONNX's own operators may run, "
    "export it with those"
)


def weight() -> TensorProto:
    return numpy_helper.from_array(np.ones(3, np.float32), "w")


def graph(*nodes: NodeProto) -> GraphProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3]) for name in "xy")
    return helper.make_graph(nodes or [helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight()])


def model(*nodes: NodeProto) -> ModelProto:
    return helper.make_model(graph(*nodes), opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def external() -> TensorProto:
    tensor = weight()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    return tensor


def external_by_location_alone() -> TensorProto:
    tensor = weight()
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def external_by_entry_alone() -> TensorProto:
    tensor = external()
    tensor.ClearField("data_location")
    return tensor


def sparse(values: TensorProto, indices: TensorProto) -> SparseTensorProto:
    return SparseTensorProto(values=values, indices=indices, dims=[3])


def holding(**fields: Any) -> NodeProto:
    """A node with one attribute that holds the given fields."""
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(AttributeProto(name="value", **fields))
    return node


def inner(tensor: TensorProto) -> GraphProto:
    inside = graph()
    inside.initializer.append(tensor)
    return inside


def deep(levels: int, innermost: NodeProto) -> NodeProto:
    for _ in range(levels):
        innermost = holding(g=graph(innermost))
    return innermost


def with_initializer(tensor: TensorProto) -> ModelProto:
    hostile = model()
    hostile.graph.initializer.append(tensor)
    return hostile


def with_sparse(values: TensorProto, indices: TensorProto) -> ModelProto:
    hostile = model()
    hostile.graph.sparse_initializer.append(sparse(values, indices))
    return hostile


def with_function(function: FunctionProto) -> ModelProto:
    hostile = model()
    hostile.functions.append(function)
    return hostile


def with_import(domain: str) -> ModelProto:
    hostile = model()
    hostile.opset_import.append(helper.make_opsetid(domain, 1))
    return hostile


def with_training(field: str) -> ModelProto:
    hostile = model()
    getattr(hostile.training_info.add(), field).initializer.append(external())
    return hostile


def claiming(*dims: int) -> ModelProto:
    return with_initializer(TensorProto(name="huge", dims=dims, data_type=TensorProto.FLOAT))


CLAIM = "graph score.onnx claims a tensor of {} elements in {} bytes; export it again"
HOSTILE: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "initializer": (lambda: with_initializer(external()), OUTSIDE),
    "location-alone": (lambda: with_initializer(external_by_location_alone()), OUTSIDE),
    "entry-alone": (lambda: with_initializer(external_by_entry_alone()), OUTSIDE),
    "sparse-values": (lambda: with_sparse(external(), weight()), OUTSIDE),
    "sparse-indices": (lambda: with_sparse(weight(), external()), OUTSIDE),
    "attribute": (lambda: model(holding(t=external())), OUTSIDE),
    "attribute-list": (lambda: model(holding(tensors=[weight(), external()])), OUTSIDE),
    "attribute-sparse": (lambda: model(holding(sparse_tensor=sparse(weight(), external()))), OUTSIDE),
    "attribute-sparses": (lambda: model(holding(sparse_tensors=[sparse(external(), weight())])), OUTSIDE),
    "subgraph": (lambda: model(holding(g=inner(external()))), OUTSIDE),
    "subgraphs": (lambda: model(holding(graphs=[graph(), inner(external())])), OUTSIDE),
    "function-node": (lambda: with_function(FunctionProto(node=[holding(t=external())])), OUTSIDE),
    "function-default": (
        lambda: with_function(FunctionProto(attribute_proto=[AttributeProto(name="a", t=external())])),
        OUTSIDE,
    ),
    "training-start": (lambda: with_training("initialization"), OUTSIDE),
    "training-step": (lambda: with_training("algorithm"), OUTSIDE),
    "huge-claim": (lambda: claiming(2**20, 2**20), CLAIM.format(2**40, 16)),
    "negative-claim": (lambda: claiming(-1), CLAIM.format(2**64 - 1, 19)),
    "node-domain": (lambda: model(NodeProto(op_type="Add", domain="com.evil")), FOREIGN),
    "deep-domain": (lambda: model(deep(25, NodeProto(op_type="Add", domain="com.evil"))), FOREIGN),
    "import-domain": (lambda: with_import("com.evil"), FOREIGN),
    "function-domain": (lambda: with_function(FunctionProto(name="f", domain="com.evil")), FOREIGN),
    "function-node-domain": (
        lambda: with_function(FunctionProto(node=[NodeProto(op_type="Add", domain="com.evil")])),
        FOREIGN,
    ),
    "function-import-domain": (
        lambda: with_function(FunctionProto(opset_import=[helper.make_opsetid("com.evil", 1)])),
        FOREIGN,
    ),
}


def test_an_ordinary_graph_passes() -> None:
    constant = holding(t=weight(), floats=[1.0, 2.0], ints=[3], strings=[b"s"], f=1.0, i=-1)
    ordinary = model(constant, NodeProto(op_type="Add", domain="ai.onnx", input=["x", "c"], output=["y"]))
    ordinary.graph.initializer.append(TensorProto(dims=[1], data_type=11, double_data=[1.0], name="d"))
    ordinary.graph.initializer[0].data_location = TensorProto.DEFAULT
    ordinary.functions.append(FunctionProto(name="f", node=[holding(g=graph())]))
    ordinary.metadata_props.add(key="k", value="v")
    check_graph("score.onnx", ordinary.SerializeToString())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused(name: str) -> None:
    build, message = HOSTILE[name]
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        check_graph("score.onnx", build().SerializeToString())


@pytest.mark.parametrize("operator", sorted(RANDOM_OPERATORS))
def test_a_random_operator_is_refused(operator: bytes) -> None:
    message = (
        f"graph score.onnx holds the random operator '{operator.decode()}'; "
        "export it with noise as an input or a stored bank"
    )
    node = NodeProto(op_type=operator.decode())
    for hostile in (node, deep(2, node)):
        with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
            check_graph("score.onnx", model(hostile).SerializeToString())


def test_random_operators_are_those_that_onnx_calls_non_deterministic() -> None:
    schemas: Any = onnx.defs.get_all_schemas_with_history()
    flag = onnx.defs.OpSchema.NodeDeterminism.NonDeterministic
    flagged = {s.name.encode() for s in schemas if s.domain == "" and s.node_determinism == flag}
    # Flagged for what their bodies may hold, which the walk looks into; AffineGrid draws nothing.
    bodies = {b"If", b"Loop", b"Scan", b"SequenceMap", b"AffineGrid"}
    # Dropout only draws in training mode, which no exported graph turns on.
    assert flagged - bodies - {b"Dropout"} == RANDOM_OPERATORS


def test_the_walk_knows_every_path_to_a_node_a_tensor_or_a_domain() -> None:
    """The table of field numbers against ONNX's own description of the format."""
    for name, children in CHILDREN.items():
        descriptor = getattr(onnx, f"{name}Proto").DESCRIPTOR
        watched = {
            field.number: field.message_type.name.removesuffix("Proto")
            for field in descriptor.fields
            if field.message_type and field.message_type.name.removesuffix("Proto") in CHILDREN
        }
        assert children == watched, name
        domain = descriptor.fields_by_name.get("domain")
        if name != "Model":  # a model's own domain is a label, not a set of operators
            assert DOMAIN_FIELDS.get(name) == (domain.number if domain else None)
    assert NodeProto.DESCRIPTOR.fields_by_name["op_type"].number == OP_TYPE


def test_every_shorter_file_is_refused() -> None:
    data = model(holding(t=weight())).SerializeToString()
    for size in range(len(data)):
        with pytest.raises(
            BundleError, match=r"^graph score.onnx is not a whole ONNX model: .*; fetch the bundle"
        ):
            check_graph("score.onnx", data[:size])


GOOD = model().SerializeToString()
LONG = b"\xff" * 10


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "it has no graph"),
        (ModelProto(graph=graph()).SerializeToString(), "it has no operator set"),
        (GOOD[:-1], f"the field at byte {len(GOOD) - 6} runs past its end"),
        (GOOD + b"\x0b\x0c", f"wire type 3 at byte {len(GOOD)}"),
        (GOOD + b"\x0f", f"wire type 7 at byte {len(GOOD)}"),
        (GOOD + b"\x02\x00", f"field number 0 at byte {len(GOOD)}"),
        (GOOD + b"\x80\x80\x80\x80\x10\x00", f"field number 536870912 at byte {len(GOOD)}"),
        (GOOD + b"\x08" + LONG, f"a number of more than 10 bytes at byte {len(GOOD) + 1}"),
        (GOOD + b"\x08\x80", f"the field at byte {len(GOOD) + 1} runs past its end"),
        (GOOD + b"\x0d\x00\x00", f"the field at byte {len(GOOD)} runs past its end"),
        (GOOD + b"\x38\x00", f"field 7 at byte {len(GOOD) + 1} has wire type 0"),
        (GOOD + b"\xff\xfe\xfd", f"the field at byte {len(GOOD)} runs past its end"),
        (b"\x3a\x02\x0a\x05" + GOOD, "the field at byte 2 runs past its end"),
        (b"\x3a\x01\x8a" + GOOD, "the field at byte 2 runs past its end"),
        (b"not a model at all", "wire type 6 at byte 0"),
    ],
    ids=[
        "empty", "no-opset", "cut", "group", "wire-7", "field-0", "field-2**29", "long-varint", "cut-varint",
        "cut-fixed", "number-for-graph", "garbage", "past-its-graph", "cut-in-graph", "text",
    ],
)  # fmt: skip
def test_what_protobuf_would_not_write_is_refused(data: bytes, problem: str) -> None:
    message = f"graph score.onnx is not a whole ONNX model: {problem}; fetch the bundle again"
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        check_graph("score.onnx", data)


def test_external_data_cannot_hide_behind_a_later_field_or_a_long_number() -> None:
    location = TensorProto.DESCRIPTOR.fields_by_name["data_location"].number
    tag = bytes([location << 3])
    for hidden in (tag + b"\x01" + tag + b"\x00", tag + b"\x81\x80\x80\x80\x10", tag + b"\x81\x80\x00"):
        tensor = weight().SerializeToString() + hidden
        inside = b"\x2a" + bytes([len(tensor)]) + tensor
        data = b"\x3a" + bytes([len(inside)]) + inside + GOOD
        with pytest.raises(BundleError, match=f"^{re.escape(OUTSIDE)}$"):
            check_graph("score.onnx", data)


def test_a_file_in_the_format_of_onnxruntime_is_refused() -> None:
    """It would skip this walk: onnxruntime goes by the mark at bytes 4 to 8, not by the name."""
    data = b"\x32\x06\x00\x00ORTM" + GOOD
    onnx.load_model_from_string(data)
    message = "graph score.onnx is in onnxruntime's own format; export it as ONNX"
    with pytest.raises(BundleError, match=f"^{re.escape(message)}$"):
        check_graph("score.onnx", data)


def test_a_long_name_is_not_echoed_in_full() -> None:
    with pytest.raises(BundleError) as caught:
        check_graph("score.onnx", with_import("e" * 10_000).SerializeToString())
    assert len(str(caught.value)) < 200
