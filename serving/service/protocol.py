"""HTTP/1.1 on one connection, with the bounds that uvicorn leaves out.

uvicorn waits for ever for a request that never ends, takes any number of headers of any size, and
answers what it cannot parse in plain text. Here every phase has a deadline, and every refusal is a
problem document.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.service.problems import MEDIA_TYPE, Problem
from serving.service.settings import Settings

# Seconds that the app has to answer in its own words, or a client to read, before a connection is cut.
GRACE = 1.0


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    Parameters
    ----------
    settings : Settings
        Deadlines and bounds.
    kwargs
        As uvicorn passes them.

    Attributes
    ----------
    task : Task or None
        The work on the request in progress, for the app to set: cancelled when the client goes.
    """

    def __init__(self, settings: Settings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = settings
        self.task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when the request being sent must be here, on the loop's clock
        self._sending = self._head_done = self._refused = False
        self._head_bytes = self._partial = 0  # counted by the parser; received before the head was whole

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse one connection too many; start the clock of the others."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            self._refuse(Problem(503, "overloaded", "too many connections are open", hint="try again later"))
        else:
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and the work for a client that has gone."""
        self._stop()
        abandoned = self.cycle is not None and not self.cycle.response_complete
        super().connection_lost(exc)
        if abandoned and self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse what came, within the bounds."""
        if self._refused or self.parser is None:
            return
        super().data_received(data)
        self._watch(len(data))

    def _watch(self, size: int) -> None:
        if self._refused:
            return
        if self._sending and not self._head_done:
            self._partial += size
            self._check_head(self._partial)
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_request()  # a line break between requests stops uvicorn's own clock

    def eof_received(self) -> None:
        """A request that ends before it is whole is told so; any other client has simply gone."""
        if self._sending and not self._refused:
            detail = "the request ended before all of it had come"
            self._refuse(
                Problem(400, "incomplete_body", detail, hint="send as many bytes as Content-Length says")
            )

    def on_message_begin(self) -> None:
        """A request begins; at the latest now its clock runs."""
        super().on_message_begin()
        self.scope["connection"] = self  # type: ignore[typeddict-unknown-key]
        self._sending, self._head_done = True, False
        self._head_bytes = self._partial = 0
        if self._timer is None:
            self._expect_request()

    def on_url(self, url: bytes) -> None:
        """Count the line of the request."""
        super().on_url(url)
        self._head_bytes += len(url)
        self._check_head(self._head_bytes)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count headers and their bytes."""
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        self._check_head(self._head_bytes)
        if len(self.headers) > self.settings.max_headers:
            detail = f"the request has more than {self.settings.max_headers} headers"
            self._refuse(Problem(400, "too_many_headers", detail, hint="send fewer headers"))

    def on_headers_complete(self) -> None:
        """The head is whole: the app begins."""
        self._head_done = True
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of a body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """All has come: the next deadline is that of the answer."""
        if self._refused:
            return
        super().on_message_complete()
        self._sending = False
        self._stop()
        if not self.cycle.response_complete:
            self._start(self.settings.request_deadline + GRACE, self._abort)

    def on_response_complete(self) -> None:
        """The answer is written; what the client still sends has its own deadline."""
        self._stop()
        super().on_response_complete()
        if self._sending:
            self._start(self._due - self.loop.time(), self._receive_expired)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one that still reads its answer gets a request's time for it."""
        if self.transport.get_write_buffer_size():
            self._start(self.settings.request_deadline, self._abort)
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(
            Problem(400, "bad_request", "the request is not valid HTTP/1.1", hint="use an HTTP client")
        )

    def _check_head(self, size: int) -> None:
        if size > self.settings.max_header_bytes:
            detail = f"the request's line and headers exceed {self.settings.max_header_bytes} bytes"
            self._refuse(
                Problem(400, "headers_too_large", detail, hint="shorten the URL, the token or other headers")
            )

    def _refuse(self, problem: Problem) -> None:
        """Answer and close; the app never sees the request, or learns that its client has gone."""
        if self._refused:
            return
        self._refused = True
        answered = self._head_done and self.cycle is not None and self.cycle.response_started
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not answered:
            self.transport.write(written(problem))
        # Closing while the client still sends would make its system throw the answer away.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._start(GRACE, self._abort)

    def _expect_request(self) -> None:
        self._due = self.loop.time() + self.settings.receive_deadline
        self._start(self.settings.receive_deadline, self._receive_expired)

    def _receive_expired(self) -> None:
        self._timer = None
        waiting = self.cycle is not None and not self.cycle.response_complete and not self._head_done
        if self.flow.read_paused or waiting:  # the server is busy: not the client's fault
            self._expect_request()
        elif self._sending:
            detail = f"the request did not arrive within {self.settings.receive_deadline:g} s"
            self._refuse(Problem(408, "receive_deadline", detail, hint="send it faster, or less at once"))
        else:
            self.transport.close()

    def _start(self, seconds: float, action: Callable[[], None]) -> None:
        self._stop()
        self._timer = self.loop.call_later(max(seconds, 0), action)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _abort(self) -> None:
        self._timer = None
        self.transport.abort()


def written(problem: Problem) -> bytes:
    """A whole response."""
    body = problem.body(secrets.token_hex(8))
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), "connection": "close"}
    lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in (headers | problem.headers).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
