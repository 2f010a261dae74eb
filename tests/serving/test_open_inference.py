"""The Open Inference Protocol, asked by the public client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from live_service import Live, live
from request_samples import CELLS, tensor, tensors
from sample_models import grey_images, table_rows

from vae_anomaly.runtime import Bundle

MISSING = np.array([[0.1, np.nan, 1e-7, 1.7e9], [np.nan] * 4])


@pytest.fixture(scope="module")
def table(table_bundle: Bundle) -> Iterator[Live]:
    with live(table_bundle) as found:
        yield found


@pytest.fixture(scope="module")
def image(image_bundle: Bundle) -> Iterator[Live]:
    with live(image_bundle, "bars") as found:
        yield found


@pytest.fixture
def client(table: Live) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{table.port}") as found:
        yield found


def put(name: str, values: Any, datatype: str, binary: bool = True) -> Any:
    found = triton.InferInput(name, list(values.shape), datatype)
    found.set_data_from_numpy(values, binary_data=binary)
    return found


def test_health_and_metadata(client: Any, table_bundle: Bundle) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sensors")
    assert client.is_model_ready("sensors-decode", "7")
    assert not client.is_model_ready("sensors", "8")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    found = client.get_model_metadata("sensors")
    assert (found["name"], found["versions"], found["platform"]) == ("sensors", ["7"], "onnxruntime_onnx")
    assert found["inputs"] == [
        {"name": "x", "datatype": "FP64", "shape": [-1, 4]},
        {"name": "observed", "datatype": "BOOL", "shape": [-1, 4]},
    ]
    names = [output["name"] for output in found["outputs"]]
    assert names[:3] == ["score", "p_value", "is_outlier"]
    assert names[3:-1] == [f"score_{name}" for name in table_bundle.score_names]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_scores_are_those_of_the_bundle(client: Any, table_bundle: Bundle, binary: bool) -> None:
    x = table_rows(20).to_numpy() if binary else np.nan_to_num(table_rows(20).to_numpy())
    expected = table_bundle.verdicts(x, false_alarm_rate=0.2)
    wanted = [
        triton.InferRequestedOutput(name, binary_data=binary) for name in ("score", "p_value", "is_outlier")
    ]
    found = client.infer("sensors", [put("x", x, "FP64", binary)], outputs=wanted, parameters={"alpha": 0.2})
    assert found.get_response()["parameters"]["alpha"] == 0.2
    assert found.get_response()["model_version"] == "7"
    np.testing.assert_array_equal(found.as_numpy("score"), expected["score"])
    np.testing.assert_array_equal(found.as_numpy("p_value"), expected["p_value"])
    np.testing.assert_array_equal(found.as_numpy("is_outlier"), expected["is_outlier"].to_numpy(bool))


def test_every_answer_is_that_of_the_bundle(client: Any, table_bundle: Bundle) -> None:
    x = put("x", MISSING, "FP64")
    imputed = client.infer("sensors-impute", [x], parameters={"draws": 2, "seed": 3})
    expected = table_bundle.impute(MISSING, draws=2, seed=3)
    np.testing.assert_array_equal(imputed.as_numpy("mean"), expected.mean)
    np.testing.assert_array_equal(imputed.as_numpy("std"), expected.std)
    np.testing.assert_array_equal(imputed.as_numpy("draws"), np.moveaxis(expected.draws, 0, 1))
    assert imputed.as_numpy("flags").tolist() == [flag.encode() for flag in expected.flags]
    explained = client.infer("sensors-explain", [x], model_version="7", request_id="mine")
    assert explained.get_response()["id"] == "mine"
    np.testing.assert_array_equal(
        explained.as_numpy("contributions"), table_bundle.explain(MISSING).contributions
    )
    encoded = client.infer("sensors-encode", [x])
    latent = table_bundle.encode(MISSING)
    np.testing.assert_array_equal(encoded.as_numpy("mean"), latent.mean)
    np.testing.assert_array_equal(encoded.as_numpy("log_variance"), latent.log_variance)
    decoded = client.infer("sensors-decode", [put("z", latent.mean, "FP32")])
    np.testing.assert_array_equal(decoded.as_numpy("reconstruction"), table_bundle.decode(latent.mean))


def test_the_mask_hides(client: Any, table_bundle: Bundle) -> None:
    observed = np.array([[True, False, True, True]])
    found = client.infer("sensors", [put("x", CELLS, "FP64"), put("observed", observed, "BOOL")])
    assert found.as_numpy("score") == table_bundle.scores(CELLS, observed)["score"].to_numpy()


def test_pixels_travel_as_bytes(image: Live, image_bundle: Bundle) -> None:
    x = grey_images(5)[:, None]
    with triton.InferenceServerClient(f"127.0.0.1:{image.port}") as client:
        assert client.get_model_metadata("bars")["inputs"][0]["datatype"] == "UINT8"
        found = client.infer("bars", [put("x", x, "UINT8")])
        np.testing.assert_array_equal(found.as_numpy("score"), image_bundle.scores(x)["score"])
        floats = client.infer("bars", [put("x", x.astype(np.float32), "FP32", binary=False)])
        np.testing.assert_array_equal(floats.as_numpy("score"), found.as_numpy("score"))


def test_an_autoencoder_offers_no_imputation(autoencoder_bundle: Bundle) -> None:
    with live(autoencoder_bundle, "plain") as found:
        assert found.get("/v2/models/plain-impute").json()["code"] == "unknown_model"
        outputs = found.get("/v2/models/plain-encode").json()["outputs"]
    assert [output["name"] for output in outputs] == ["mean"]


def test_refusals_reach_the_client_as_its_own_errors(client: Any) -> None:
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer("sensors", [put("x", CELLS[:, :3], "FP64")])
    assert caught.value.status() == "422"
    assert caught.value.message() == "rows have shape (1, 3); expected (B, 4)"


def test_what_is_null_or_nan(table: Live) -> None:
    answer = table.post("/v2/models/sensors/infer", tensors({**tensor(CELLS), "data": [None] * 4}))
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    assert outputs["score"] == [None]
    assert outputs["is_outlier"] == [False]


@pytest.mark.parametrize(
    ("change", "status", "detail"),
    [
        ({"shape": [1, 5]}, 422, "tensor x: its data has 4 values, its shape 5"),
        ({"shape": "x"}, 400, "shape is not a list of 1 to 4 whole numbers"),
        ({"shape": [-1, 4]}, 400, "shape is not a list of 1 to 4 whole numbers"),
        ({"datatype": "BYTES"}, 422, "tensor x: its datatype is not one of those read here"),
        ({"datatype": "INT32"}, 422, "tensor x: its data holds other values than INT32"),
        ({"data": [True] * 4}, 422, "tensor x: its data holds other values than FP64"),
        ({"data": {}}, 400, "data is not a list"),
        ({"name": 7}, 400, "an input has no name"),
    ],
    ids=["count", "shape", "negative", "datatype", "kind", "bools", "no-list", "no-name"],
)
def test_a_tensor_that_does_not_fit(table: Live, change: dict[str, Any], status: int, detail: str) -> None:
    answer = table.post("/v2/models/sensors/infer", tensors(tensor(CELLS) | change))
    assert (answer.status_code, answer.json()["detail"]) == (status, detail)
    assert answer.json()["error"].startswith(detail)


@pytest.mark.parametrize(
    ("length", "detail"),
    [
        ("9999", "Inference-Header-Content-Length is no number of bytes of this body"),
        ("-1", "Inference-Header-Content-Length is no number of bytes of this body"),
        ("2", "the JSON is not an object with a list of inputs"),
    ],
)
def test_a_header_length_that_lies(table: Live, length: str, detail: str) -> None:
    headers = {"inference-header-content-length": length}
    answer = table.request("POST", "/v2/models/sensors/infer", content=b"{} more", headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (400, detail)


def test_outputs_are_filtered_and_unknown_ones_named(table: Live) -> None:
    body = tensors(tensor(CELLS), outputs=[{"name": "p_value"}])
    assert [out["name"] for out in table.post("/v2/models/sensors/infer", body).json()["outputs"]] == [
        "p_value"
    ]
    answer = table.post("/v2/models/sensors-encode/infer", tensors(tensor(CELLS), outputs=[{"name": "x"}]))
    assert answer.json()["hint"] == "the outputs are mean, log_variance"
