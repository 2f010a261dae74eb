"""Tensors of the Open Inference Protocol, as JSON and in its binary extension.

References
----------
.. [1] KServe, "Open Inference Protocol", HTTP/REST.
   https://github.com/kserve/open-inference-protocol
.. [2] Triton Inference Server, "Binary Tensor Data Extension".
   https://github.com/triton-inference-server/server
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import Any

import numpy as np

from serving.service import strict_json
from serving.service.problems import Problem, shortened
from serving.service.strict_json import Bounds
from vae_anomaly.schema import Array

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
NAMES = {kind: name for name, kind in DATATYPES.items()}
BINARY_SIZE = "binary_data_size"
MAX_DIMENSIONS = 4
HINT = "see the Open Inference Protocol, POST /v2/models/<name>/infer"


@dataclass(frozen=True)
class Wanted:
    """One output asked for."""

    name: str
    binary: bool


@dataclass(frozen=True)
class Inference:
    """One request, read.

    Attributes
    ----------
    inputs : dict of ndarray
    outputs : tuple of Wanted, or None
        None for all.
    binary : bool
        Whether outputs that are not named go out in binary.
    parameters : dict
    id : str
    """

    inputs: dict[str, Array]
    outputs: tuple[Wanted, ...] | None
    binary: bool
    parameters: dict[str, Any] = field(default_factory=dict)
    id: str = ""


def read_inference(
    body: bytes, header_length: str | None, check_size: Callable[[int, int], None], bounds: Bounds
) -> Inference:
    """Read a request.

    Parameters
    ----------
    body : bytes
        JSON, then the binary tensors one after the other.
    header_length : str, optional
        Bytes of JSON, as ``Inference-Header-Content-Length`` says; all by default.
    check_size : callable
        Told rows and cells of every input; refuses too many.
    bounds : Bounds
        Of the JSON.

    Raises
    ------
    Problem
        400 for what is malformed, 422 for what does not fit.
    """
    size = _header_size(header_length, len(body))
    request = strict_json.parse(body[:size], bounds)
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list):
        raise _malformed("the JSON is not an object with a list of inputs", "inputs")
    parameters = _object(request.get("parameters", {}), "parameters")
    inputs, at = {}, size
    # Without these words no JSON holds a boolean, which Python would take for a number.
    numbers = b"true" not in body and b"false" not in body
    for item in request["inputs"]:
        name, values, at = _input(item, body, at, check_size, numbers)
        if name in inputs:
            raise _unfit("an input is given twice", name)
        inputs[name] = values
    if at != len(body):
        raise _malformed(f"{len(body) - at} bytes follow the last tensor", "inputs")
    binary = parameters.pop("binary_data_output", False) is True
    identity = request.get("id", "")
    return Inference(
        inputs,
        _outputs(request.get("outputs"), binary),
        binary,
        parameters,
        shortened(identity, 64) if isinstance(identity, str) else "",
    )


def write_inference(
    inference: Inference, outputs: dict[str, Array], model: str, version: str, parameters: dict[str, Any]
) -> tuple[bytes, int | None]:
    """The answer, and the length of its JSON where binary tensors follow.

    Raises
    ------
    Problem
        422 for an output that there is not.
    """
    wanted = inference.outputs
    if wanted is None:
        wanted = tuple(Wanted(name, inference.binary) for name in outputs)
    described, parts = [], []
    for item in wanted:
        if item.name not in outputs:
            known = ", ".join(outputs)
            raise _unfit("there is no output of this name", item.name, f"the outputs are {known}")
        tensor, part = _output(item, outputs[item.name])
        described.append(tensor)
        if part is not None:
            parts.append(part)
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if inference.id:
        answer["id"] = inference.id
    head = strict_json.written({**answer, "parameters": parameters, "outputs": described})
    return (b"".join([head, *parts]), len(head)) if parts else (head, None)


@cache
def datatype(values: np.dtype[Any]) -> str:
    """The protocol's name of a dtype; texts are BYTES."""
    return "BYTES" if values.kind in "US" else NAMES[values.newbyteorder("<")]


def _header_size(given: str | None, most: int) -> int:
    if given is None:
        return most
    if not (given.isascii() and given.isdigit() and len(given) < 12) or int(given) > most:
        raise Problem(
            400,
            "bad_tensor",
            "Inference-Header-Content-Length is no number of bytes of this body",
            hint=HINT,
            field="inference-header-content-length",
        )
    return int(given)


def _input(
    item: Any, body: bytes, at: int, check_size: Callable[[int, int], None], numbers: bool
) -> tuple[str, Array, int]:
    """Name and values of one input, and where the next one's bytes begin."""
    tensor = _object(item, "inputs")
    name, kind = tensor.get("name"), tensor.get("datatype")
    if not isinstance(name, str):
        raise _malformed("an input has no name", "inputs")
    shape = _shape(tensor.get("shape"), name)
    if not isinstance(kind, str) or kind not in DATATYPES:
        raise _unfit("its datatype is not one of those read here", name, f"send {', '.join(DATATYPES)}")
    count = math.prod(shape)
    check_size(shape[0], count)
    size = _object(tensor.get("parameters", {}), name).get(BINARY_SIZE)
    if size is None:
        return name, _from_json(tensor.get("data"), kind, count, name, numbers).reshape(shape), at
    if size != count * DATATYPES[kind].itemsize or isinstance(size, bool) or size > len(body) - at:
        raise _malformed("binary_data_size does not fit the shape, or the body", name)
    return name, _from_bytes(body, at, kind, count, name).reshape(shape), at + int(size)


def _shape(given: Any, name: str) -> list[int]:
    fits = isinstance(given, list) and 1 <= len(given) <= MAX_DIMENSIONS
    if not fits or not all(type(n) is int and 0 <= n < 2**31 for n in given):
        raise _malformed(f"shape is not a list of 1 to {MAX_DIMENSIONS} whole numbers", name)
    return list(given)


def _from_bytes(body: bytes, at: int, kind: str, count: int, name: str) -> Array:
    if kind != "BOOL":
        return np.frombuffer(body, DATATYPES[kind], count, at)
    flags = np.frombuffer(body, np.uint8, count, at)
    if (flags > 1).any():
        raise _malformed("a boolean is neither 0 nor 1", name)
    return flags.view(np.bool_)


def _from_json(data: Any, kind: str, count: int, name: str, numbers: bool = False) -> Array:
    """Values of any nesting, flat; floats as float64, so that a large one is not infinite yet."""
    if not isinstance(data, list):
        raise _malformed("data is not a list", name)
    while data and isinstance(data[0], list):
        if not all(isinstance(part, list) for part in data):
            raise _unfit("its data is ragged", name)
        data = list(chain.from_iterable(data))
    if len(data) != count:
        raise _unfit(f"its data has {len(data)} values, its shape {count}", name)
    if numbers and kind == "UINT8":
        with suppress(TypeError, ValueError):  # told apart below
            return np.frombuffer(bytes(data), np.uint8)
    allowed: set[type] = {bool} if kind == "BOOL" else {int}
    allowed |= {float, type(None)} if kind.startswith("FP") else set()
    if not set(map(type, data)) <= allowed:
        raise _unfit(f"its data holds other values than {kind}", name, "null is a missing value of FP inputs")
    wide = {"b": np.bool_, "u": np.uint64, "i": np.int64, "f": np.float64}[DATATYPES[kind].kind]
    try:
        return np.frombuffer(bytes(data), np.uint8) if kind == "UINT8" else np.array(data, wide)
    except (OverflowError, ValueError) as error:
        raise _unfit(f"its data is beyond the range of {kind}", name) from error


def _outputs(given: Any, binary: bool) -> tuple[Wanted, ...] | None:
    if given is None or given == []:
        return None
    if not isinstance(given, list):
        raise _malformed("outputs is not a list", "outputs")
    wanted = []
    for item in given:
        tensor = _object(item, "outputs")
        if not isinstance(name := tensor.get("name"), str):
            raise _malformed("an output has no name", "outputs")
        parameters = _object(tensor.get("parameters", {}), name)
        wanted.append(Wanted(name, parameters.get("binary_data", binary) is True))
    if len({item.name for item in wanted}) < len(wanted):
        raise _unfit("an output is asked for twice", "outputs")
    return tuple(wanted)


def _output(item: Wanted, values: Array) -> tuple[dict[str, Any], bytes | None]:
    kind = NAMES.get(values.dtype) or datatype(values.dtype)
    tensor: dict[str, Any] = {"name": item.name, "datatype": kind, "shape": list(values.shape)}
    if not item.binary:
        tensor["data"] = values.ravel().tolist()
        return tensor, None
    part = _texts(values) if kind == "BYTES" else np.ascontiguousarray(values, DATATYPES[kind]).tobytes()
    tensor["parameters"] = {BINARY_SIZE: len(part)}
    return tensor, part


def _texts(values: Array) -> bytes:
    encoded = [str(text).encode() for text in values.ravel().tolist()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _malformed("expected an object", name)
    return value


def _malformed(detail: str, name: str) -> Problem:
    return Problem(400, "bad_tensor", detail, hint=HINT, field=name)


def _unfit(detail: str, name: str, hint: str = HINT) -> Problem:
    return Problem(422, "bad_tensor", f"tensor {shortened(name, 40)}: {detail}", hint=hint, field=name)
