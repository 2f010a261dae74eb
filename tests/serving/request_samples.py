"""Bodies of requests, good and bad."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image
from sample_models import grey_images

ROW = {"plain": 0.1, "large": -50.0, "tiny": 1e-7, "time": 1.7e9}
GAP = ROW | {"large": None}
CELLS = np.array([list(ROW.values())])
ARROW = "application/vnd.apache.arrow.stream"
NPY = "application/x-npy"


def rows(*given: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"rows": list(given), **options}


def row_text(cell: str) -> bytes:
    """One row, with text in the place of a number."""
    return b'{"rows": [{"plain": ' + cell.encode() + b', "large": 1, "tiny": 1, "time": 1}]}'


def npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def arrow(columns: dict[str, Any] | pa.Table, compression: str | None = None) -> bytes:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    file = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(file, table.schema, options=options) as writer:
        writer.write_table(table)
    return file.getvalue()


def picture(values: Any = None, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey_images(1)[0] if values is None else values).save(file, kind, **options)
    return file.getvalue()


def rotated() -> bytes:
    """A JPEG that asks to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(kind="JPEG", exif=exif)


def bomb() -> bytes:
    """A PNG that announces 20,000 x 20,000 pixels and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def tensors(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs), **more}


def tensor(values: Any, name: str = "x", datatype: str = "FP64", **more: Any) -> dict[str, Any]:
    array = np.asarray(values)
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": datatype,
        "data": array.ravel().tolist(),
    } | more


def binary(values: np.ndarray[Any, Any], datatype: str = "FP64") -> tuple[bytes, dict[str, str]]:
    """Body and headers in the binary extension."""
    data = values.tobytes()
    item = {"name": "x", "shape": list(values.shape), "datatype": datatype}
    text = json.dumps(tensors(item | {"parameters": {"binary_data_size": len(data)}})).encode()
    return text + data, {"inference-header-content-length": str(len(text))}


def people(count: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    city = rng.choice(["Bern", "Oslo", "Rome"], count)
    return pd.DataFrame(
        {
            "amount": rng.normal(size=count) + (city == "Rome"),
            "city": city,
            "age": rng.integers(18, 90, count),
            "vip": rng.random(count) < 0.3,
        }
    )
