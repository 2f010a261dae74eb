"""What the service answers is what the bundle answers, in every format."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from live_service import Live, live
from PIL import Image
from request_samples import ARROW, GAP, NPY, ROW, arrow, base64_of, npy, picture, rows
from sample_models import grey_images, table_rows

from vae_anomaly.runtime import Bundle

PNG = "image/png"


@pytest.fixture(scope="module")
def table(table_bundle: Bundle) -> Iterator[Live]:
    with live(table_bundle, ops_port=0) as found:
        yield found


@pytest.fixture(scope="module")
def image(image_bundle: Bundle) -> Iterator[Live]:
    with live(image_bundle, "bars") as found:
        yield found


def as_rows(frame: pd.DataFrame) -> list[dict[str, float | None]]:
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(name): value for name, value in record.items()} for record in records]


def read_arrow(content: bytes) -> pd.DataFrame:
    return pa.ipc.open_stream(content).read_pandas()


def column(answer: Any, name: str) -> list[Any]:
    return [row[name] for row in answer.json()["results"]]


def test_scores_of_rows(table: Live, table_bundle: Bundle) -> None:
    frame = table_rows(30)
    expected = table_bundle.verdicts(frame, false_alarm_rate=0.3)
    answer = table.post("/v1/score", rows(*as_rows(frame), alpha=0.3))
    assert answer.json()["alpha"] == 0.3
    for name in ("score", "p_value", "is_outlier", "clipped"):
        assert column(answer, name) == expected[name].tolist()
    for row, (_, wanted) in zip(answer.json()["results"], expected.iterrows(), strict=True):
        assert row["scores"] == {name: wanted[f"score_{name}"] for name in table_bundle.score_names}


def test_every_format_gives_the_same_scores(table: Live, table_bundle: Bundle) -> None:
    frame = table_rows(9)
    expected = table_bundle.verdicts(frame)
    plain = table.post("/v1/score", npy(frame.to_numpy()), content_type=NPY)
    assert column(plain, "score") == expected["score"].tolist()
    by_column = table.post("/v1/score", npy(np.asfortranarray(frame.to_numpy())), content_type=NPY)
    assert column(by_column, "score") == expected["score"].tolist()
    sent = arrow(pa.Table.from_pandas(frame[frame.columns[::-1]], preserve_index=False))
    found = read_arrow(
        table.post("/v1/score?scores=recon&ids=a,b,c,d,e,f,g,h,i", sent, content_type=ARROW).content
    )
    assert list(found) == ["id", "score", "p_value", "is_outlier", "score_recon", "clipped", "reason"]
    assert found["score"].tolist() == expected["score"].tolist()
    assert found["id"].tolist() == list("abcdefghi")
    as_json = table.post("/v1/score", sent, content_type=ARROW, accept="application/json")
    assert column(as_json, "score") == expected["score"].tolist()


def test_every_answer_names_one_version(table: Live, table_bundle: Bundle) -> None:
    answer = table.post("/v1/score", rows(ROW))
    named = {
        "name": "sensors",
        "version": "7",
        "digest": table_bundle.digest,
        "provider": table_bundle.provider,
    }
    assert answer.json()["model"] == named
    assert answer.headers["x-model-version"] == "7"
    assert answer.headers["x-model-digest"] == table_bundle.digest
    assert answer.headers["x-provider"] == "CPUExecutionProvider"
    stream = table.post("/v1/score", arrow(pa.table({k: [v] for k, v in ROW.items()})), content_type=ARROW)
    metadata = pa.ipc.open_stream(stream.content).schema.metadata
    assert metadata[b"model_version"] == b"7"


def test_the_scores_named_are_those_asked_for(table: Live) -> None:
    answer = table.post("/v1/score?scores=recon,neg_elbo", rows(ROW))
    assert list(answer.json()["results"][0]["scores"]) == ["neg_elbo", "recon"]
    assert table.post("/v1/score", rows(ROW, scores=[])).json()["results"][0]["scores"] == {}


def test_explanations(table: Live, table_bundle: Bundle) -> None:
    frame = table_rows(5)
    expected = table_bundle.explain(frame)
    answer = table.post("/v1/explain", rows(*as_rows(frame), ids=[4, 3, 2, 1, 0]))
    assert column(answer, "id") == [4, 3, 2, 1, 0]
    assert column(answer, "recon") == expected.recon.tolist()
    for row, contributions in zip(answer.json()["results"], expected.contributions, strict=True):
        assert row["contributions"] == dict(zip(frame.columns, contributions.tolist(), strict=True))
    found = read_arrow(table.post("/v1/explain", rows(*as_rows(frame)), accept=ARROW).content)
    np.testing.assert_array_equal(found[list(frame)], expected.contributions)
    np.testing.assert_array_equal(found["plain__expected"], expected.reconstruction[:, 0])


def test_imputations(table: Live, table_bundle: Bundle) -> None:
    frame = pd.DataFrame([GAP, ROW])
    expected = table_bundle.impute(frame, draws=3, seed=5, ids=["a", "b"])
    answer = table.post("/v1/impute", rows(GAP, ROW, draws=3, seed=5, ids=["a", "b"]))
    first, second = answer.json()["results"]
    assert first["values"] == expected.mean.iloc[0].to_dict()
    assert first["std"] == {"large": expected.std[0, 1]}
    assert [draw["large"] for draw in first["draws"]] == expected.draws[:, 0, 1].tolist()
    assert (second["values"], second["std"], second["draws"]) == (ROW, {}, [{}] * 3)
    assert column(answer, "ess") == expected.ess.tolist()


def test_observed_cells_come_back_as_they_were_sent(table: Live) -> None:
    large = 2**60 + 1  # no float64
    answer = table.post("/v1/impute", rows(GAP | {"time": large}))
    assert f'"time":{large}' in answer.text
    sent = pa.table(
        {"time": pa.array([large]), "plain": [0.1], "tiny": [1e-7], "large": pa.array([None], pa.float32())}
    )
    found = pa.ipc.open_stream(table.post("/v1/impute", arrow(sent), content_type=ARROW).content).read_all()
    assert found["time"].to_pylist() == [large]
    assert found["large"].type == pa.float32()
    assert found["large"].null_count == 0
    assert found["large__std"].to_pylist()[0] > 0


def test_pictures(image: Live, image_bundle: Bundle) -> None:
    pixels = grey_images(2)
    expected = image_bundle.verdicts(pixels)["score"].tolist()
    assert column(image.post("/v1/score", picture(pixels[0]), content_type=PNG), "score") == expected[:1]
    sent = {"images": [{"image": base64_of(picture(one))} for one in pixels]}
    assert column(image.post("/v1/score", sent), "score") == expected
    assert column(image.post("/v1/score", {"images": []}), "score") == []
    listed = pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), 72)
    stream = image.post("/v1/score", arrow(pa.table({"image": listed})), content_type=ARROW)
    assert read_arrow(stream.content)["score"].tolist() == expected


def test_transparent_or_masked_pixels_are_missing(image: Live, image_bundle: Bundle) -> None:
    pixels = grey_images(1)[0]
    observed = np.ones(pixels.shape, bool)
    observed[:3] = False
    expected = image_bundle.impute(pixels[None], observed[None])
    alpha = np.where(observed, 255, 0).astype(np.uint8)
    file = io.BytesIO()
    Image.merge("LA", [Image.fromarray(pixels), Image.fromarray(alpha)]).save(file, "PNG")
    by_alpha = image.post("/v1/impute", file.getvalue(), content_type=PNG)
    item = {"image": base64_of(picture(pixels)), "mask": base64_of(picture(alpha))}
    by_mask = image.post("/v1/impute", {"images": [item]})
    for answer in (by_alpha, by_mask):
        assert column(answer, "values") == expected.mean[:, None].tolist()
        np.testing.assert_array_equal(column(answer, "std"), expected.std)


def test_a_picture_is_converted_only_on_request(image: Live) -> None:
    large = picture(np.zeros((16, 18, 3), np.uint8))
    assert image.post("/v1/score", large, content_type=PNG).json()["code"] == "wrong_shape"
    assert image.post("/v1/score?convert=true", large, content_type=PNG).status_code == 200


def test_the_model_card(table: Live, table_bundle: Bundle) -> None:
    card = table.get("/v1/model").json()
    assert card["digest"] == table_bundle.digest
    assert card["schema"] == table_bundle.schema.to_dict()
    assert card["entries"] == ["score", "explain", "impute", "encode", "decode"]
    assert card["limits"] == {"bytes": 16777216, "rows": 10000, "cells": 2000000}
    assert table.get("/v1/model", headers={"accept": "text/markdown"}).text.startswith("# ")


def test_probes_and_metrics_have_a_port_of_their_own(table: Live, table_bundle: Bundle) -> None:
    ops = Live(table.settings, table.models, table.metrics, table.ops_port or 0, None)
    assert ops.get("/readyz", headers={"host": "pod-7"}).json() == {"status": "ready"}
    assert table.get("/readyz").status_code == 404
    table.post("/v1/score", rows(ROW))
    text = ops.get("/metrics").text
    assert 'vae_anomaly_requests_total{entry="score",status="200"}' in text
    with live(table_bundle, token="a" * 16, ops_port=0) as guarded:
        assert (
            Live(guarded.settings, guarded.models, guarded.metrics, guarded.ops_port or 0, None)
            .get("/metrics")
            .status_code
            == 200
        )
    with live(table_bundle, token="a" * 16) as guarded:
        statuses = [
            guarded.get(path).status_code for path in ("/livez", "/readyz", "/", "/metrics", "/openapi.json")
        ]
    assert statuses == [200, 200, 200, 401, 401]


def test_the_page_is_sent_under_a_strict_policy(table: Live) -> None:
    answer = table.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert table.get("/static/style.css").headers["content-type"] == "text/css; charset=utf-8"
    for path in ("/static/../settings.py", "/static/%2e%2e/settings.py", "/static//etc/passwd", "/static/"):
        assert (
            table.raw(
                f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
            ).status_code
            == 404
        )  # type: ignore[union-attr]


def test_request_ids_and_traces_are_kept_and_logged(table: Live, caplog: pytest.LogCaptureFixture) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with caplog.at_level("INFO", "serving.access"):
        answer = table.post(
            "/v1/score", rows(ROW), x_request_id="mine-1", traceparent=f"00-{trace}-{parent}-01"
        )
        # The line is written once the answer is on its way.
        deadline = time.monotonic() + 10
        while not (logged := [r for r in caplog.records if r.name == "serving.access"]):
            assert time.monotonic() < deadline, "nothing was logged"
            time.sleep(0.01)
    assert answer.headers["x-request-id"] == "mine-1"
    assert re.fullmatch(f"00-{trace}-[0-9a-f]{{16}}-01", answer.headers["traceresponse"])
    [facts] = [record.facts for record in logged]  # type: ignore[attr-defined]
    assert (facts["trace_id"], facts["parent_id"], facts["request_id"]) == (trace, parent, "mine-1")
    assert (facts["route"], facts["status"], facts["rows"], facts["model_version"]) == (
        "/v1/score",
        200,
        1,
        "7",
    )
    strange = table.post("/v1/score", rows(ROW), x_request_id='"\\{x}', traceparent="00-zz-1-1")
    assert re.fullmatch("[0-9a-f]{16}", strange.headers["x-request-id"])
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", strange.headers["traceresponse"])


def test_the_document_describes_the_model_that_answers(table: Live, image: Live) -> None:
    found = table.get("/openapi.json").json()
    sample = found["components"]["schemas"]["score-request"]["properties"]["rows"]["items"]
    assert list(sample["properties"]) == list(ROW)
    assert sample["required"] == list(ROW)
    alpha = next(
        item for item in found["paths"]["/v1/score"]["post"]["parameters"] if item["name"] == "alpha"
    )
    smallest = alpha["schema"]["minimum"]
    assert table.post(f"/v1/score?alpha={smallest}", rows(ROW)).status_code == 200
    assert table.post(f"/v1/score?alpha={smallest * 0.99}", rows(ROW)).status_code == 422
    served = {path: set(item) for path, item in found["paths"].items()}
    assert {"/v1/score", "/v2/models/{model}/infer", "/v1/model", "/"} <= set(served)
    references = re.findall(r'"\$ref": ?"#/([^"]+)"', json.dumps(found))
    for reference in references:
        part = found
        for key in reference.split("/"):
            part = part[key]
    assert (
        "image/png"
        in image.get("/openapi.json").json()["paths"]["/v1/score"]["post"]["requestBody"]["content"]
    )


def test_head_is_get_without_a_body(table: Live) -> None:
    for path in ("/v1/model", "/nowhere"):
        answer = table.request("HEAD", path)
        assert answer.content == b""
        assert answer.status_code == table.get(path).status_code
