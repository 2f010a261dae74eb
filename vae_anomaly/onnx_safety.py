"""What a graph may hold, read from the bytes of its file before any runtime opens it.

The base install has no `onnx` package, so the few facts that matter are read straight from the
protobuf wire format: which operators, of which domains, and where the weights are. Where two
readers could differ (a repeated field, a long varint) the reading that refuses more is taken.

References
----------
.. [1] Protocol Buffers, "Encoding". https://protobuf.dev/programming-guides/encoding/
.. [2] ONNX, "onnx.proto", field numbers. https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator
from reprlib import repr as shortened
from typing import NamedTuple

from vae_anomaly.exceptions import BundleError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}

# Every path from a model to a node, a tensor or a domain: message -> field -> message.
CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 8: "OperatorSetId", 20: "TrainingInfo", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 9: "OperatorSetId", 11: "Attribute"},
    "OperatorSetId": {},
    "Tensor": {},
}  # fmt: skip
DOMAIN_FIELDS = {"Node": 7, "OperatorSetId": 1, "Function": 10}
DOMAINS = (b"", b"ai.onnx")
OP_TYPE = 4
RANDOM_OPERATORS = frozenset(
    {
        b"Bernoulli",
        b"Multinomial",
        b"RandomNormal",
        b"RandomNormalLike",
        b"RandomUniform",
        b"RandomUniformLike",
    }
)
DIMS, EXTERNAL_DATA, DATA_LOCATION = 1, 13, 14
# No type of ONNX packs more elements into a byte.
ELEMENTS_PER_BYTE = 8
REQUIRED = {7: "graph", 8: "operator set"}

# onnxruntime opens bytes with this mark as its own flatbuffer format, whatever the file is called.
ORT_MARK, ORT_MARK_AT = b"ORTM", slice(4, 8)


class Field(NamedTuple):
    """One field of a message: a number, or the place of its bytes.

    Attributes
    ----------
    number, wire_type : int
    value : int
        Of a varint; 0 otherwise.
    start, end : int
        Where the payload lies.
    """

    number: int
    wire_type: int
    value: int
    start: int
    end: int


def check_graph(name: str, data: bytes) -> None:
    """Refuse a graph that reaches outside its file, claims too much, or leaves standard operators.

    Parameters
    ----------
    name : str
        The file's name, for the message.
    data : bytes
        The whole file.

    Raises
    ------
    BundleError
        If the bytes are not one whole ONNX model, or it holds external data, an operator domain
        other than ONNX's own, a random operator, or a tensor with more elements than bytes for them.
    """
    if data[ORT_MARK_AT] == ORT_MARK:
        raise BundleError(f"graph {name} is in onnxruntime's own format; export it as ONNX")
    try:
        _walk(name, data)
    except _MalformedError as error:
        raise BundleError(
            f"graph {name} is not a whole ONNX model: {error}; fetch the bundle again"
        ) from error


class _MalformedError(Exception):
    """The bytes are not what protobuf writes."""


def _walk(name: str, data: bytes) -> None:
    found: set[int] = set()
    pending = [("Model", 0, len(data))]
    while pending:
        message, start, end = pending.pop()
        if message == "Tensor":
            _check_claim(name, data, start, end)
        for field in _fields(data, start, end):
            if message == "Model":
                found.add(field.number)
            _check_field(name, message, field, data)
            if child := CHILDREN[message].get(field.number):
                pending.append((child, *_span(field)))
    if absent := [what for number, what in REQUIRED.items() if number not in found]:
        raise _MalformedError(f"it has no {absent[0]}")


def _check_claim(name: str, data: bytes, start: int, end: int) -> None:
    """The runtime sets aside room for all that a tensor claims, before it looks for the data."""
    claimed = 1
    for field in _fields(data, start, end):
        if field.number == DIMS:
            for size in _sizes(data, field):
                claimed *= size
    if claimed > ELEMENTS_PER_BYTE * (end - start):
        raise BundleError(
            f"graph {name} claims a tensor of {claimed} elements in {end - start} bytes; export it again"
        )


def _sizes(data: bytes, field: Field) -> Iterator[int]:
    """One number, or several packed."""
    if field.wire_type == VARINT:
        yield field.value
        return
    at, end = _span(field)
    while at < end:
        size, at = _varint(data, at, end)
        yield size


def _check_field(name: str, message: str, field: Field, data: bytes) -> None:
    if message == "Tensor" and (
        field.number == EXTERNAL_DATA or (field.number == DATA_LOCATION and (field.value or field.wire_type))
    ):
        raise BundleError(f"graph {name} keeps weights outside its file; export it with its weights inside")
    if field.number == DOMAIN_FIELDS.get(message):
        domain = data[slice(*_span(field))]
        if domain not in DOMAINS:
            raise BundleError(
                f"graph {name} uses the operator domain {_text(domain)}; only ONNX's own operators may run, "
                "export it with those"
            )
    if message == "Node" and field.number == OP_TYPE:
        operator = data[slice(*_span(field))]
        if operator in RANDOM_OPERATORS:
            raise BundleError(
                f"graph {name} holds the random operator {_text(operator)}; "
                "export it with noise as an input or a stored bank"
            )


def _fields(data: bytes, start: int, end: int) -> Iterator[Field]:
    at = start
    while at < end:
        tag, after = _varint(data, at, end)
        number, wire_type = tag >> 3, tag & 7
        value, begin, stop = 0, after, after
        if wire_type == VARINT:
            value, stop = _varint(data, after, end)
        elif wire_type == BYTES:
            size, begin = _varint(data, after, end)
            stop = begin + size
        elif wire_type in FIXED_SIZES:
            stop = after + FIXED_SIZES[wire_type]
        else:
            raise _MalformedError(f"wire type {wire_type} at byte {at}")
        if not 0 < number < 2**29:
            raise _MalformedError(f"field number {number} at byte {at}")
        if stop > end:
            raise _MalformedError(f"the field at byte {at} runs past its end")
        yield Field(number, wire_type, value, begin, stop)
        at = stop


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        if at + i >= end:
            raise _MalformedError(f"the field at byte {at} runs past its end")
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise _MalformedError(f"a number of more than 10 bytes at byte {at}")


def _span(field: Field) -> tuple[int, int]:
    if field.wire_type != BYTES:
        raise _MalformedError(f"field {field.number} at byte {field.start} has wire type {field.wire_type}")
    return field.start, field.end


def _text(raw: bytes) -> str:
    return shortened(raw.decode("utf-8", "replace"))
