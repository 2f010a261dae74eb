"""Categories by name over HTTP: in, out, and those that training never saw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from live_service import Live, live
from request_samples import ARROW, arrow, people, rows

from vae_anomaly.runtime import Bundle

ROW: dict[str, Any] = {"amount": 0.5, "city": "Bern", "age": 40, "vip": True}
GAPS = {"amount": 0.5, "city": None, "age": None, "vip": None}
STRANGE = ROW | {"city": "Atlantis"}


@pytest.fixture(scope="module")
def service(mixed: Bundle) -> Iterator[Live]:
    with live(mixed, "people") as found:
        yield found


def as_arrow(*given: dict[str, Any], coded: bool = False) -> bytes:
    table = pa.Table.from_pylist(list(given))
    if coded:
        place = table.schema.names.index("city")
        table = table.set_column(place, "city", table["city"].combine_chunks().dictionary_encode())
    return arrow(table)


def read_arrow(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()


def test_scores_of_categories_are_those_of_the_bundle(service: Live, mixed: Bundle) -> None:
    frame = people(20)
    expected = mixed.verdicts(frame)["score"].tolist()
    records = [{str(k): v for k, v in record.items()} for record in frame.astype(object).to_dict("records")]
    answer = service.post("/v1/score", rows(*records))
    assert [row["score"] for row in answer.json()["results"]] == expected
    for coded in (False, True):
        found = service.post("/v1/score", as_arrow(*records, coded=coded), content_type=ARROW)
        assert read_arrow(found.content)["score"].to_pylist() == expected


def test_a_category_never_seen_is_missing_and_counted(service: Live, mixed: Bundle) -> None:
    strange, gap = service.post("/v1/score", rows(STRANGE, ROW | {"city": None})).json()["results"]
    assert (strange["unseen"], gap["unseen"]) == (1, 0)
    assert strange["score"] == gap["score"]
    found = read_arrow(service.post("/v1/score", as_arrow(STRANGE), content_type=ARROW).content)
    assert found["unseen"].to_pylist() == [1]


@pytest.mark.parametrize("arrow_body", [False, True], ids=["json", "arrow"])
def test_strict_refuses_a_category_never_seen(service: Live, arrow_body: bool) -> None:
    if arrow_body:
        answer = service.post("/v1/score?strict=true", as_arrow(ROW, STRANGE), content_type=ARROW)
    else:
        answer = service.post("/v1/score", rows(ROW, STRANGE, strict=True))
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "unseen_category")
    assert (problem["field"], problem["row"]) == ("city", 1)
    assert "Atlantis" not in answer.text


def test_gaps_are_filled_by_name_and_strange_cells_are_left(service: Live) -> None:
    filled, strange = service.post("/v1/impute", rows(GAPS, STRANGE, draws=2)).json()["results"]
    assert filled["values"]["city"] in ("Bern", "Oslo", "Rome")
    assert isinstance(filled["values"]["age"], int | float)
    assert set(filled["std"]) == {"city", "age", "vip"}
    assert filled["draws"][0]["city"] in ("Bern", "Oslo", "Rome")
    assert (strange["values"], strange["std"]) == (STRANGE, {})
    found = read_arrow(service.post("/v1/impute", as_arrow(STRANGE, GAPS), content_type=ARROW).content)
    assert found["city"].to_pylist() == ["Atlantis", filled["values"]["city"]]
    assert found["amount"].to_pylist() == [0.5, 0.5]
    assert found["city"].type == pa.string()


def test_explanations_expect_a_category(service: Live) -> None:
    [row] = service.post("/v1/explain", rows(ROW)).json()["results"]
    assert row["expected"]["city"] in ("Bern", "Oslo", "Rome")
    assert list(row["contributions"]) == list(ROW)


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        (ROW | {"city": 3}, "row 0 holds a number in place of text"),
        (ROW | {"city": True}, "row 0 holds true or false in place of text"),
        (ROW | {"age": "forty"}, "row 0 holds text in place of a number"),
        (ROW | {"age": True}, "row 0 holds true or false in place of a number"),
    ],
    ids=["number", "truth", "text", "truth-in-number"],
)
def test_a_cell_of_the_wrong_kind_is_named(service: Live, row: dict[str, Any], detail: str) -> None:
    answer = service.post("/v1/score", rows(row))
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_cell")
    assert answer.json()["detail"] == detail


def test_the_document_knows_the_kinds(service: Live) -> None:
    schemas = service.get("/openapi.json").json()["components"]["schemas"]
    cells = schemas["score-request"]["properties"]["rows"]["items"]["properties"]
    assert cells["city"] == {"type": ["string", "null"], "examples": ["Bern", "Oslo", "Rome"]}
    assert cells["amount"] == {"type": ["number", "null"]}
    assert service.post("/v1/score", rows()).json()["results"] == []
