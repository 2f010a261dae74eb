"""Every row of the table of bad inputs that concerns HTTP: its status and its code, in one test."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx
import numpy as np
import pyarrow as pa
import pytest
from live_service import JSON, Live, head, live
from request_samples import (
    ARROW,
    CELLS,
    GAP,
    NPY,
    ROW,
    arrow,
    base64_of,
    binary,
    bomb,
    npy,
    picture,
    rotated,
    row_text,
    rows,
    tensor,
    tensors,
)
from sample_models import grey_images

from vae_anomaly.runtime import Bundle

TOKEN = "correct-horse-battery"
NEW_CITY = {"amount": 0.5, "city": "Atlantis", "age": 40, "vip": True}
CANARY = "kanarienvogel" * 4
DEEP = b'{"rows": ' + b"[" * 8 + b"]" * 8 + b"}"
SCORE, INFER = "/v1/score", "/v2/models/sensors/infer"
PNG, JPEG = "image/png", "image/jpeg"


class Services:
    """The same app under several settings and models."""

    def __init__(
        self, table: Live, small: Live, guarded: Live, image: Live, mixed: Live, starved: Live
    ) -> None:
        self.table, self.small, self.guarded, self.image = table, small, guarded, image
        self.mixed, self.starved = mixed, starved


class Starved:
    """A bundle whose device has no memory left."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bundle, name)

    def judged(self, samples: Any) -> None:
        raise RuntimeError("CUDA failure 2: out of memory")


@pytest.fixture(scope="module")
def services(table_bundle: Bundle, image_bundle: Bundle, mixed: Bundle) -> Iterator[Services]:
    small = {
        "max_rows": 2,
        "max_cells": 7,
        "max_body_bytes": 5000,
        "max_held_bytes": 4900,
        "max_headers": 20,
        "receive_deadline": 0.3,
    }
    with (
        live(table_bundle) as table,
        live(table_bundle, **small) as tight,
        live(table_bundle, token=TOKEN, token_next=TOKEN[::-1]) as guarded,
        live(image_bundle, "bars") as image,
        live(mixed, "people") as people,
        live(cast(Bundle, Starved(table_bundle))) as starved,
    ):
        yield Services(table, tight, guarded, image, people, starved)


Ask = Callable[[Services], httpx.Response | None]


def score(body: Any, path: str = SCORE, **headers: str) -> Ask:
    return lambda services: services.table.post(path, body, **headers)


def infer(*inputs: dict[str, Any], **more: Any) -> Ask:
    return lambda services: services.table.post(INFER, tensors(*inputs, **more))


def binary_infer(values: Any) -> Ask:
    body, headers = binary(values)
    return lambda services: services.table.request("POST", INFER, content=body, headers=headers)


def pixels(body: Any, kind: str = "", path: str = SCORE) -> Ask:
    headers = {"content_type": kind} if kind else {}
    return lambda services: services.image.post(path, body, **headers)


def as_npy(values: Any) -> Ask:
    return score(npy(values), content_type=NPY)


def as_arrow(columns: Any, **options: Any) -> Ask:
    return score(arrow(columns, **options), content_type=ARROW)


def tight(body: Any, **headers: str) -> Ask:
    return lambda services: services.small.post(SCORE, body, **headers)


def raw(*parts: bytes, end: bool = False) -> Ask:
    return lambda services: services.small.raw(*parts, end=end)


def guarded(*lines: str, host: str = "") -> Ask:
    def ask(services: Services) -> httpx.Response | None:
        data = head("GET", "/v1/model", "connection: close", *lines)
        return services.guarded.raw(data.replace(b"host: localhost\r\n", host.encode()) if host else data)

    return ask


def plain(method: str, path: str, **arguments: Any) -> Ask:
    return lambda services: services.table.request(method, path, **arguments)


FEW = {name: [value] for name, value in ROW.items()}
MISSPELT = {name.replace("arg", "rg"): value for name, value in ROW.items()}
TWICE = pa.Table.from_arrays([pa.array([1.0])] * 4, ["plain", "plain", "tiny", "time"])
CHUNKS = [b"800\r\n" + b" " * 2048 + b"\r\n"] * 4
POST = ("content-type: application/json", "connection: close")
OK: dict[str, Ask] = {
    "unseen-category": lambda services: services.mixed.post(SCORE, rows(NEW_CITY)),
    "null-cell": score(rows(GAP)),
    "nan-in-npy": as_npy(np.array([[0.1, np.nan, 1e-7, 1.7e9]])),
    "null-in-arrow": as_arrow(FEW | {"large": pa.array([None], pa.float64())}),
    "null-in-tensor": infer({**tensor(CELLS), "data": [0.1, None, 1e-7, 1.7e9]}),
    "far-outside": score(rows(ROW | {"large": 1e300})),
    "nothing-observed": score(rows(dict.fromkeys(ROW))),
    "other-order": score(rows(dict(reversed(ROW.items())))),
    "no-rows": score(rows()),
    "one-row": score(rows(ROW)),
    "no-rows-npy": as_npy(np.empty((0, 4))),
    "no-rows-arrow": as_arrow({name: pa.array([], pa.float64()) for name in ROW}),
    "float32": as_npy(CELLS.astype(np.float32)),
    "int64": as_npy(CELLS.astype(np.int64)),
    "uint8": as_npy(np.ones((1, 4), np.uint8)),
    "bool": as_npy(np.ones((1, 4), np.bool_)),
    "big-endian": as_npy(CELLS.astype(">f8")),
    "second-token": guarded(f"authorization: Bearer {TOKEN[::-1]}"),
    "own-address": guarded(f"authorization: bearer {TOKEN}", host="host: 127.0.0.1:1\r\n"),
}
BAD: dict[str, tuple[Ask, int, str]] = {
    "nan": (score(row_text("NaN"), **JSON), 400, "bad_json"),
    "infinity": (score(row_text("-Infinity"), **JSON), 400, "bad_json"),
    "1e999": (score(row_text("1e999"), **JSON), 400, "bad_json"),
    "not-utf-8": (score(row_text('"\xff"').decode().encode("latin-1"), **JSON), 400, "bad_json"),
    "lone-surrogate": (score(row_text('"\\ud800"'), **JSON), 400, "bad_json"),
    "repeated-key": (score(b'{"rows": [], "rows": []}', **JSON), 400, "bad_json"),
    "nesting": (score(DEEP, **JSON), 400, "too_deep"),
    "nesting-without-end": (score(b"[" * 200_000, **JSON), 400, "too_deep"),
    "5000-digits": (score(row_text("1" * 5000), **JSON), 400, "bad_json"),
    "no-json": (score(b"{", **JSON), 400, "bad_json"),
    "infinite-npy": (as_npy(np.array([[0, 0, 0, 0], [0, -np.inf, 0, 0]])), 422, "infinite"),
    "infinite-arrow": (as_arrow(FEW | {"time": [np.inf]}), 422, "infinite"),
    "infinite-binary": (binary_infer(np.array([[np.inf, 0, 0, 0]])), 422, "infinite"),
    "object-npy": (as_npy(np.array([[1, 2, 3, "x"]], object)), 422, "bad_sample"),
    "text-npy": (as_npy(np.array([["1", "2", "3", "4"]])), 422, "bad_sample"),
    "complex-npy": (as_npy(np.ones((1, 4), complex)), 422, "bad_sample"),
    "text-arrow": (as_arrow(FEW | {"tiny": ["1.5"]}), 422, "bad_cell"),
    "missing-column": (score(rows({"plain": 1})), 422, "bad_columns"),
    "unknown-column": (score(rows({**ROW, CANARY * 9: 1})), 422, "bad_columns"),
    "misspelt-column": (score(rows(MISSPELT)), 422, "bad_columns"),
    "repeated-column": (as_arrow(TWICE), 422, "bad_columns"),
    "columns-npy": (as_npy(np.ones((2, 5))), 422, "bad_sample"),
    "image-shape": (pixels(npy(np.zeros((2, 9, 9), np.uint8)), NPY), 422, "bad_sample"),
    "channels-last": (pixels(npy(np.zeros((2, 8, 9, 1), np.uint8)), NPY), 422, "bad_sample"),
    "picture-shape": (pixels(picture(np.zeros((9, 9), np.uint8)), PNG), 422, "wrong_shape"),
    "picture-rgba": (pixels(picture(np.zeros((8, 9, 4), np.uint8)), PNG), 422, "wrong_shape"),
    "picture-16-bit": (pixels(picture(np.zeros((8, 9), np.uint16)), PNG), 422, "sixteen_bit"),
    "picture-rotated": (pixels(rotated(), JPEG), 422, "exif_rotation"),
    "other-units": (pixels(npy(grey_images(2) / 255.0), NPY), 422, "bad_sample"),
    "too-many-rows": (tight(rows({}, {}, {})), 413, "too_many_rows"),
    "too-many-cells": (tight(rows(ROW, ROW)), 413, "too_many_cells"),
    "too-many-bytes": (tight(b" " * 5001, **JSON), 413, "body_too_large"),
    "cells-of-tensor": (infer({"name": "x", "datatype": "FP64", "shape": [9, 2**30]}), 413, "too_many_cells"),
    "no-length": (raw(head("POST", SCORE, *POST)), 411, "length_required"),
    "length-too-long": (
        raw(head("POST", SCORE, *POST, "content-length: 99"), b"{}", end=True),
        400,
        "incomplete_body",
    ),
    "length-twice": (
        raw(head("POST", SCORE, *POST, "content-length: 2", "content-length: 3"), b"{}"),
        400,
        "bad_request",
    ),
    "length-and-chunks": (
        raw(head("POST", SCORE, *POST, "content-length: 2", "transfer-encoding: chunked"), b"{}"),
        400,
        "bad_request",
    ),
    "endless-chunks": (
        raw(head("POST", SCORE, *POST, "transfer-encoding: chunked"), *CHUNKS),
        413,
        "body_too_large",
    ),
    "gzip": (score(gzip.compress(b"{}"), content_encoding="gzip", **JSON), 415, "compressed_body"),
    "compressed-arrow": (as_arrow(FEW, compression="zstd"), 415, "compressed_body"),
    "ragged-rows": (score(rows(ROW, {"plain": 1})), 422, "bad_columns"),
    "ragged-tensor": (infer({**tensor(CELLS), "data": [[1, 2, 3], 4]}), 422, "bad_tensor"),
    "bool-cell": (score(rows(ROW, ROW | {"time": True})), 422, "bad_cell"),
    "text-cell": (score(rows(ROW | {"time": CANARY})), 422, "bad_cell"),
    "numeric-text": (score(rows(ROW | {"time": "1.5"})), 422, "bad_cell"),
    "list-cell": (score(rows(ROW | {"time": [CANARY]})), 422, "bad_cell"),
    "row-is-list": (score(rows([1, 2, 3, 4])), 422, "bad_sample"),  # type: ignore[arg-type]
    "no-rows-member": (score([]), 422, "bad_sample"),
    "repeated-ids": (score(rows(ROW, ROW, ids=["a", "a"])), 422, "duplicate_ids"),
    "ids-too-few": (score(rows(ROW, ROW, ids=["a"])), 422, "bad_option"),
    "truncated-npy": (score(npy(CELLS)[:-5], content_type=NPY), 400, "bad_npy"),
    "no-npy": (score(b"not an array", content_type=NPY), 400, "bad_npy"),
    "huge-npy": (score(npy(CELLS).replace(b"(1, 4), ", b"(9**9,),"), content_type=NPY), 400, "bad_npy"),
    "truncated-arrow": (score(arrow(FEW)[:-40], content_type=ARROW), 400, "bad_arrow"),
    "no-arrow": (score(b"not a stream", content_type=ARROW), 400, "bad_arrow"),
    "no-bytes": (pixels(b"", PNG), 400, "bad_image"),
    "no-image": (pixels(b"not an image", PNG), 400, "bad_image"),
    "truncated-image": (pixels(picture()[:70], PNG), 400, "bad_image"),
    "bomb": (pixels(bomb(), PNG), 413, "image_bomb"),
    "no-base64": (pixels({"images": [{"image": CANARY + "!"}]}), 400, "bad_base64"),
    "bomb-in-json": (pixels({"images": [{"image": base64_of(bomb())}]}), 413, "image_bomb"),
    "small-calibration": (score(rows(ROW, alpha=1e-6)), 422, "rate_too_small"),
    "alpha-out-of-range": (score(rows(ROW), SCORE + "?alpha=nan"), 422, "bad_option"),
    "no-token": (guarded(), 401, "unauthorized"),
    "wrong-token": (guarded(f"authorization: Bearer {TOKEN[:-1]}"), 401, "unauthorized"),
    "wrong-scheme": (guarded(f"authorization: Basic {TOKEN}"), 401, "unauthorized"),
    "token-not-ascii": (guarded("authorization: Bearer \xe9\xff"), 401, "unauthorized"),
    "token-twice": (guarded(*[f"authorization: Bearer {TOKEN}"] * 2), 401, "unauthorized"),
    "token-of-1-mb": (guarded("authorization: Bearer " + "a" * 2**20), 400, "headers_too_large"),
    "wrong-host": (guarded(f"authorization: Bearer {TOKEN}", host="host: evil.example\r\n"), 400, "bad_host"),
    "no-host": (guarded(f"authorization: Bearer {TOKEN}", host="x: y\r\n"), 400, "bad_host"),
    "host-twice": (guarded("host: localhost", f"authorization: Bearer {TOKEN}"), 400, "bad_host"),
    "many-headers": (raw(head("GET", "/livez", *[f"x-{i}: y" for i in range(20)])), 400, "too_many_headers"),
    "no-http": (raw(b"\x16\x03\x01\x02\x00 hello\r\n\r\n"), 400, "bad_request"),
    "method": (plain("GET", SCORE), 405, "method_not_allowed"),
    "path": (plain("GET", "/" + CANARY), 404, "not_found"),
    "model": (plain("POST", f"/v2/models/{CANARY}/infer", content=b"{}"), 404, "unknown_model"),
    "version": (plain("GET", f"/v2/models/sensors/versions/{CANARY}"), 404, "unknown_version"),
    "content-type": (score(b"{}", content_type="text/plain"), 415, "unsupported_media_type"),
    "multipart": (score(b"{}", content_type="multipart/form-data"), 415, "unsupported_media_type"),
    "picture-of-table": (score(picture(), content_type=PNG), 415, "unsupported_media_type"),
    "accept": (score(rows(ROW), accept="text/html"), 406, "not_acceptable"),
    "option": (score(rows(ROW, alhpa=0.1)), 422, "bad_option"),
    "option-of-query": (score(rows(ROW), SCORE + f"?{CANARY}=1"), 422, "bad_option"),
    "option-twice": (score(rows(ROW, alpha=0.1), SCORE + "?alpha=0.1"), 422, "bad_option"),
    "unknown-score": (score(rows(ROW, scores=["rcon"])), 422, "bad_option"),
    "tensor-twice": (infer(tensor(CELLS), tensor(CELLS)), 422, "bad_tensor"),
    "tensor-unknown": (infer(tensor(CELLS, "y")), 422, "bad_tensor"),
    "tensor-size": (infer({**tensor(CELLS), "parameters": {"binary_data_size": 32}}), 400, "bad_tensor"),
    "slow-client": (raw(head("POST", SCORE, *POST, "content-length: 9"), b"{"), 408, "receive_deadline"),
    "overload": (tight(b" " * 4950, **JSON), 503, "overloaded"),
    "no-device-memory": (lambda services: services.starved.post(SCORE, rows(ROW)), 503, "overloaded"),
    "unseen-category-strict": (
        lambda services: services.mixed.post(SCORE, rows(NEW_CITY, strict=True)),
        422,
        "unseen_category",
    ),
}


@pytest.mark.parametrize("name", [*OK, *BAD])
def test_every_input_gets_its_status_and_code(services: Services, name: str) -> None:
    ask, status, code = BAD.get(name) or (OK[name], 200, "")
    answer = ask(services)
    assert answer is not None
    assert answer.status_code == status, answer.text
    if name in OK:
        return
    problem = answer.json()
    assert problem["code"] == code
    assert len(answer.content) < 2048
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["type"] == f"urn:vae-anomaly:problem:{code}"
    assert problem["detail"]
    assert problem["hint"]
    assert problem["request_id"]
    assert CANARY * 2 not in answer.text
    assert ("allow" in answer.headers) == (status == 405)
    assert ("retry-after" in answer.headers) == (status == 503)
    assert ("www-authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize(
    ("name", "field", "row"),
    [
        ("infinite-npy", "large", 1),
        ("infinite-arrow", "time", 0),
        ("bool-cell", "time", 1),
        ("ragged-rows", None, 1),
        ("repeated-ids", "ids", 1),
        ("text-arrow", "tiny", None),
        ("option", "alhpa", None),
        ("wrong-host", "host", None),
    ],
)
def test_a_problem_names_the_field_and_the_row(
    services: Services, name: str, field: str | None, row: int | None
) -> None:
    answer = BAD[name][0](services)
    assert answer is not None
    assert (answer.json().get("field"), answer.json().get("row")) == (field, row)


@pytest.mark.parametrize(
    ("name", "detail", "hint"),
    [
        ("misspelt-column", "unknown column 'lrge'", "did you mean 'large'?"),
        (
            "missing-column",
            "missing columns ['large', 'tiny', 'time']",
            "to leave a value out, keep the column and set it to null",
        ),
        ("option", "/v1/score has no option 'alhpa'", "did you mean 'alpha'?"),
        (
            "unknown-score",
            "option scores names a score that this model does not have: 'rcon'",
            "did you mean 'recon'?",
        ),
        (
            "small-calibration",
            "a false alarm rate of 1e-06 needs at least 999999 normal rows, got 48",
            "the smallest rate of this model is 0.0204082",
        ),
        ("picture-shape", "expected 1x8x9, received 1x9x9 (L)", "pass convert=true to adapt"),
    ],
)
def test_a_problem_says_what_and_what_to_do(services: Services, name: str, detail: str, hint: str) -> None:
    answer = BAD[name][0](services)
    assert answer is not None
    assert (answer.json()["detail"], answer.json()["hint"]) == (detail, hint)


def test_answers_to_odd_but_good_rows(services: Services) -> None:
    far = OK["far-outside"](services)
    nothing = OK["nothing-observed"](services)
    assert far is not None
    assert nothing is not None
    [row] = far.json()["results"]
    assert np.isfinite(row["score"])
    assert row["clipped"] == 1
    [row] = nothing.json()["results"]
    assert (row["score"], row["p_value"], row["is_outlier"]) == (None, None, None)
    assert row["reason"] == "nothing_observed"
    [row] = services.table.post("/v1/impute", rows(dict.fromkeys(ROW))).json()["results"]
    assert row["flag"] == "nothing_observed"
    assert list(row["values"]) == list(ROW)
    assert np.isfinite(list(row["values"].values())).all()


def test_a_token_is_never_logged(services: Services, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        for name in ("wrong-token", "second-token"):
            (BAD[name][0] if name in BAD else OK[name])(services)
    text = json.dumps([record.__dict__ for record in caplog.records], default=str)
    assert "/v1/model" in text
    assert TOKEN not in text
    assert TOKEN[::-1] not in text
