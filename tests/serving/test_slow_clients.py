"""Clients that are slow, silent or gone: closed in time, and nobody else notices."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from live_service import Live, answer_of, head, live, read_all
from request_samples import ROW, rows

from serving.service.engine import Engine
from vae_anomaly.runtime import Bundle

DEADLINE = 0.3
SLACK = 1.0


@pytest.fixture(scope="module")
def hasty(table_bundle: Bundle) -> Iterator[Live]:
    with live(table_bundle, receive_deadline=DEADLINE, keep_alive=DEADLINE, max_connections=12) as found:
        yield found


BEGUN = head("POST", "/v1/score", "content-type: application/json", "content-length: 100")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"\r\n", None),
        (b"POST /v1/sc", 408),
        (BEGUN[:-2], 408),
        (BEGUN, 408),
        (BEGUN + b'{"rows"', 408),
        (BEGUN.replace(b"content-length: 100", b"transfer-encoding: chunked") + b"5\r\n", 408),
    ],
    ids=["silent", "line-break", "line", "headers", "no-body", "part-of-body", "part-of-chunk"],
)
def test_a_request_that_does_not_come_is_cut_off(hasty: Live, sent: bytes, status: int | None) -> None:
    started = time.monotonic()
    answer = hasty.raw(sent)
    assert time.monotonic() - started < DEADLINE + SLACK
    assert (answer and answer.status_code) == status


@pytest.mark.parametrize("piece", [b" ", b"\r\n"], ids=["bytes", "line-breaks"])
def test_a_trickle_does_not_move_the_deadline(hasty: Live, piece: bytes) -> None:
    started = time.monotonic()
    with hasty.connect() as connection:
        connection.sendall(BEGUN if piece == b" " else b"")
        connection.settimeout(0.05)
        closed = False
        while not closed and time.monotonic() - started < 5:
            try:
                connection.sendall(piece)
                closed = connection.recv(65536) == b""
            except TimeoutError:
                continue
            except OSError:
                closed = True
    assert closed
    assert time.monotonic() - started < DEADLINE + SLACK + GRACE


GRACE = 1.0  # that a refused connection has to read its answer


def test_others_are_answered_beside_silent_clients(hasty: Live) -> None:
    silent = [hasty.connect() for _ in range(8)]
    try:
        for _ in range(3):
            assert hasty.post("/v1/score", rows(ROW)).status_code == 200
    finally:
        for connection in silent:
            connection.close()


def test_one_connection_too_many_is_told_to_come_back(hasty: Live) -> None:
    time.sleep(0.1)
    held = [hasty.connect() for _ in range(12)]
    try:
        answer = hasty.raw()
        assert answer is not None
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"
    finally:
        for connection in held:
            connection.close()


def test_an_idle_connection_is_closed_and_a_used_one_goes_on(hasty: Live) -> None:
    with hasty.connect() as connection:
        for _ in range(2):
            connection.sendall(head("GET", "/livez"))
            data = b""
            while not data.endswith(b"}"):
                data += connection.recv(65536)
            assert data.startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        assert read_all(connection) == b""
        assert DEADLINE / 2 < time.monotonic() - started < DEADLINE + SLACK


def test_a_refused_body_is_read_to_its_end_and_the_connection_goes_on(hasty: Live) -> None:
    """Else a client that is still sending would never see the answer."""
    body = b" " * 200_000
    refused = head("POST", "/v1/score", "content-type: text/plain", f"content-length: {len(body)}")
    with hasty.connect() as connection:
        connection.sendall(refused + body + head("GET", "/livez", "connection: close"))
        text = read_all(connection)
    assert text.startswith(b"HTTP/1.1 415")
    assert b"HTTP/1.1 200" in text


def test_requests_sent_at_once_are_answered_in_order(hasty: Live) -> None:
    paths = ("/livez", "/nowhere", "/readyz")
    data = b"".join(head("GET", path) for path in paths[:-1]) + head("GET", paths[-1], "connection: close")
    with hasty.connect() as connection:
        connection.sendall(data)
        text = read_all(connection)
    assert [part[:3] for part in text.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200"]


def test_expect_100_is_answered_by_the_refusal_or_the_go_ahead(hasty: Live) -> None:
    expecting = ("expect: 100-continue", "content-type: application/json")
    answer = hasty.raw(head("POST", "/v1/score", *expecting, "content-length: 99999999"))
    assert answer is not None
    assert answer.status_code == 413
    with hasty.connect() as connection:
        connection.sendall(head("POST", "/v1/score", *expecting, "content-length: 11", "connection: close"))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b'{"rows":[]}')
        answer = answer_of(read_all(connection))
        assert answer is not None
        assert answer.status_code == 200


def test_work_for_a_client_that_left_is_dropped(
    table_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, dropped = threading.Event(), threading.Event()

    async def endless(*arguments: Any, **named: Any) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            dropped.set()
            raise

    monkeypatch.setattr(Engine, "run", endless)
    body = b'{"rows": []}'
    line = f"content-length: {len(body)}"
    with live(table_bundle) as found:
        with found.connect() as connection:
            connection.sendall(head("POST", "/v1/score", "content-type: application/json", line) + body)
            assert begun.wait(5)
        assert dropped.wait(5)


def test_an_answer_that_takes_too_long_is_given_up(
    table_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(*arguments: Any, **named: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(Engine, "run", endless)
    with live(table_bundle, request_deadline=0.3) as found:
        answer = found.post("/v1/score", rows(ROW))
    assert (answer.status_code, answer.json()["code"]) == (503, "deadline_exceeded")
    assert answer.headers["retry-after"] == "1"


def test_a_failure_nobody_foresaw_says_nothing_of_itself(
    table_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*arguments: Any, **named: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(Engine, "run", broken)
    with live(table_bundle) as found:
        answer = found.post("/v1/score", rows(ROW))
        assert found.get("/livez").status_code == 200
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
